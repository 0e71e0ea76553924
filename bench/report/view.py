"""A run as the writers see it: typed rows, methods in suite order, names for people, numbers as text.

Everything that tables, figures and the page have in common is decided here once: which column stands where, how many
digits a rate gets, how an interval, a missing value or an untrusted figure is written.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.records import CONVENTIONS, Row, Run, columns_of

if TYPE_CHECKING:
    import pandas as pd

WORST = "reid.worst_rank1"
RANK1 = "reid.rank1"
SSIM = "quality.ssim_face"
UAR = "emotion.uar"
#: What stands for utility where one figure must: the first that a run has for some method other than a control.
UTILITY = (UAR, "attributes.mean_balanced_accuracy", SSIM)
#: Stands where other attackers name a recogniser, for those that learn from pixels alone.
PIXELS = "pixels"

#: Short headings for columns; :func:`heading` falls back to the registered title, then to the bare name.
HEADINGS: Mapping[str, str] = {
    WORST: "Worst-case rank-1",
    RANK1: "Rank-1",
    "reid.rank5": "Rank-5",
    "reid.rank10": "Rank-10",
    "reid.eer": "EER",
    "reid.auc": "AUC",
    "reid.cllr_min": "Cllr min",
    "reid.d_sys": "D_sys",
    "reid.group_rank1": "Rank-1 of a group",
    "reid.group_gap": "Largest gap between groups",
    "reid.fta": "FTA",
    "reid.withheld": "Withheld",
    SSIM: "SSIM, face",
    "quality.ssim_frame": "SSIM, frame",
    "quality.psnr_face": "PSNR, face",
    "quality.psnr_frame": "PSNR, frame",
    "emotion.uar": "Expression, UAR",
    "emotion.accuracy": "Expression, accuracy",
    "emotion.macro_f1": "Expression, macro F1",
    "emotion.uar_change": "UAR, change",
    "emotion.kappa": "Agreement (kappa)",
    "emotion.mean_delta_p": "Mean |Δp|",
    "emotion.delta_p": "|Δp| of each class",
    "emotion.recall": "Recall of each class",
    "emotion.retrained_uar": "UAR, trained on anonymised",
    "emotion.retrained_macro_f1": "F1, trained on anonymised",
    "attributes.mean_balanced_accuracy": "Attributes, balanced accuracy",
    "attributes.mean_retention": "Attributes, retention",
    "attributes.mean_removal": "Attributes, removal",
    "attributes.group_retention": "Retention by group",
    "attributes.retention": "Retention of each attribute",
    "attributes.removal": "Removal of each attribute",
    "attributes.balanced_accuracy": "Balanced accuracy of each attribute",
    "attributes.base_rate": "Base rate",
    "attributes.clear_balanced_accuracy": "Clear images",
    "attributes.clear_false_negative_rate": "Missed on clear images",
    "distance.cosine": "Cosine distance to the original",
    "distance.beyond": "Beyond the threshold of clear pairs",
    "soft.balanced_accuracy": "Balanced accuracy",
    "soft.mean_balanced_accuracy": "Balanced accuracy, mean",
    "throughput.faces_per_s": "Speed",
    "throughput.latency_p50": "Latency, median",
    "throughput.latency_p90": "Latency, p90",
    "throughput.latency_p99": "Latency, p99",
    "throughput.end_to_end_faces_per_s": "Speed, end to end",
}

#: What attackers know, in words, for runs that do not say so themselves and attackers that are not installed here.
ATTACKERS: Mapping[str, str] = {
    "ignorant": "does not know that images were anonymised: compares anonymised probes with a gallery of clear images, "
    "using a stock recogniser",
    "lazy-informed": "knows the method and anonymises the gallery as well (with independent randomness); stock recogniser",
    "lda": "knows the method, and learns a linear discriminant on a stock recogniser's embeddings of other persons' anonymised images",
    "arcface": "knows the method, and learns a projection of a stock recogniser's embeddings of other persons' anonymised images",
    "pixel-lda": "knows the method, and learns from the pixels of other persons' anonymised images, without a recogniser",
    "pixel-cnn": "knows the method, and trains a small network on other persons' anonymised images",
    "finetune": "knows the method, and trains a recogniser further on other persons' anonymised images",
    "semi-informed": "knows the method, anonymises the gallery, retrains the recogniser on anonymised images of other persons",
    "reverser": "undoes the method with a de-anonymiser trained on pairs of other persons, then compares with clear images",
}

CONVENTION_WORDS: Mapping[str, str] = {
    "headline": "the attacker falls back to a fixed crop where no face is found in the output",
    "without_fta": "images in which no face is found are left out (an optimistic view)",
    "fta_as_miss": "images in which no face is found count as not re-identified (an optimistic view)",
    "withheld_as_unchanged": "an image that was not released counts as unchanged (distance 0)",
}


# ---------------------------------------------------------------------------------------------------------------- text
def plain(text: object) -> str:
    """``text`` on one line, without control characters and without characters that reorder what follows.

    Names come from suites and plug-ins; an escape sequence in one must not reach a terminal.
    """
    return _plain(str(text))


@lru_cache(maxsize=4096)  # a big run has few texts in many cells
def _plain(text: str) -> str:
    out = []
    for char in text:
        kind = unicodedata.category(char)
        if char.isspace():
            out.append(" " if char != "\u00a0" else char)
        # invisible signs among which are those that turn the direction; joiners belong to scripts and to pictures of people
        elif kind in ("Cc", "Cs") or (kind == "Cf" and char not in "\u200c\u200d") or ord(char) & 0xFFFE == 0xFFFE:
            out.append("\ufffd")
        else:
            out.append(char)
    return re.sub(" +", " ", "".join(out)).strip()


def shorten(text: object, length: int) -> str:
    """``text`` with its middle left out when it is longer than ``length`` (both ends tell names apart)."""
    s = plain(text)
    if len(s) <= length:
        return s
    tail = max(length // 3, 1)
    return f"{s[: max(length - tail - 1, 1)]}…{s[-tail:]}"


def listing(names: Sequence[str], limit: int = 6) -> str:
    """``a, b and c``; more than ``limit`` are counted: ``a, b and 7 more``."""
    names = list(names)
    if len(names) > limit:
        names = [*names[: limit - 1], f"{len(names) - limit + 1} more"]
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(n: int, noun: str, plural: str = "") -> str:
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}".replace(",", "\u202f" if n >= 10_000 else "")


def spoken(name: str) -> str:
    """A field's name for people: ``fta_as_miss`` is "FTA as miss"."""
    return " ".join(w.upper() if w in ("fta", "fmr", "eer", "sha256") else w for w in name.split("_"))


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u00a0%"


def slug(text: str) -> str:
    """A file name part: lower case ASCII letters, digits and dashes."""
    ascii_ = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_.lower()).strip("-") or "data"


# ------------------------------------------------------------------------------------------------------------- numbers
def number(value: float, unit: str) -> str:
    """``value`` with the digits its unit deserves; rates (0..1) in percent, without the sign (the heading has it)."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "–"
    if unit == "rate":
        text = f"{100 * value:.1f}"
    elif unit in ("images", "persons", "count", "1") and float(value).is_integer():
        text = f"{value:.0f}"
    elif unit.lower() == "db":
        text = f"{value:.1f}"
    elif unit in ("", "ssim", "index", "score", "correlation", "bit", "distance") and abs(value) <= 10:
        text = f"{value:.3f}"
    elif value == 0:
        text = "0"
    else:
        size = math.floor(math.log10(abs(value)))
        text = f"{value:.{min(max(2 - size, 0), 4)}f}" if -4 <= size <= 7 else f"{value:.2e}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.") else f"−{text[1:]}"
    return text


def unit_sign(unit: str) -> str:
    """What stands behind a heading: ``%`` for rates."""
    return {"rate": "%", "db": "dB", "ssim": "", "index": "", "1": "", "score": "", "distance": ""}.get(unit.lower(), unit)


def bound(row: Row) -> str:
    """``upper`` or ``lower`` where the interval is one-sided (nothing, or nothing else, was seen), else empty."""
    if row.lo is None and row.hi is None:
        return ""
    if row.lo is None or ("one-sided" in row.ci_method and row.value is not None and row.value == row.lo):
        return "upper"
    if row.hi is None or ("one-sided" in row.ci_method and row.value is not None and row.value == row.hi):
        return "lower"
    return ""


def interval(row: Row) -> str:
    """``[5.1, 12.3]``, ``[≤ 7.2]`` for a one-sided bound, empty where there is none."""
    if row.lo is None and row.hi is None:
        return ""
    side = bound(row)
    if side == "upper":
        return f"[≤ {number(row.hi if row.hi is not None else math.nan, row.unit)}]"
    if side == "lower":
        return f"[≥ {number(row.lo if row.lo is not None else math.nan, row.unit)}]"
    assert row.lo is not None
    assert row.hi is not None
    return f"[{number(row.lo, row.unit)}, {number(row.hi, row.unit)}]"


def attained(row: Row) -> list[tuple[str, str]]:
    """(attacker, recogniser) pairs that reached a worst case, as its note says; else what the row itself names."""
    said = re.search(r"attained by ([^;]+)", row.note)
    pairs = [tuple(part.split(" with ", 1)) for part in said[1].strip().split(" and ")] if said else []
    if pairs and all(len(p) == 2 for p in pairs):
        return [(p[0], p[1]) for p in pairs]
    return [(row.attacker, row.recognizer)]


#: Parts of a note that belong to one cell alone, or are said elsewhere; rows.csv has them all.
_ASIDE = re.compile(
    r"attained by |taking the largest of |not trusted and left out: |seed \d+ of \d+ |rank-1 per seed |learnt: |\d+ bins, omega = 1"
    r"|\d+ of \d+ outputs are |clear \d|learnt on clear |overlap: |ratio of mean skills |\d+ of \d+ attributes measurable"
    r"|threads: |\d+ images, \d+ faces|\d+ images a call|batch of \d|outputs compared with those that were judged: the same|judged by "
)


@lru_cache(maxsize=4096)
def parts(note: str) -> tuple[str, ...]:
    """A note in its parts: split at semicolons that are not in brackets."""
    out, depth, start = [], 0, 0
    for i, char in enumerate(note):
        depth = max(depth + (char in "([") - (char in ")]"), 0)
        if char == ";" and not depth:
            out.append(note[start:i])
            start = i + 1
    return tuple(p for p in (x.strip() for x in (*out, note[start:])) if p)


def remarks(row: Row) -> list[str]:
    """What a reader of the figure must know, without what would need a footnote of its own for every cell."""
    return [_unnumbered(p) for p in parts(row.note) if not _ASIDE.match(p)]


def _unnumbered(part: str) -> str:
    """``mis-trained: ...`` without its figures, so that cells share the remark."""
    return re.sub(r" \([0-9.]+ against [0-9.]+\)$", "", part) if part.startswith("mis-trained") else part


def mistrained(row: Row) -> bool:
    """The attacker was trained and is weaker than a stock one."""
    return not row.trusted and row.note.startswith("mis-trained")


def withdrawn(row: Row) -> str:
    """Why a figure is not published, "" where it is (or where there is no value for another reason)."""
    return row.reason.removeprefix("not published: ") if row.reason.startswith("not published: ") else ""


def level(row: Row) -> str:
    return f"{100 * row.ci_level:g}\u00a0%" if row.ci_level else ""


def arrow(higher_is_better: bool | None) -> str:
    return {True: "↑", False: "↓", None: ""}[higher_is_better]


# ------------------------------------------------------------------------------------------------------------ the view
@dataclass(frozen=True)
class Method:
    """One configured method of the suite.  ``info`` is its entry in the run record, whole."""

    label: str
    slug: str = ""
    family: str = ""
    strength: float | None = None
    control: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Methods with the same group form a sweep."""
        return self.family or self.label

    @property
    def released(self) -> int:
        return sum(int(self.counts.get(status, 0)) for status in ("ok", "passthrough", "copy"))

    @property
    def images(self) -> int:
        """Images that the method was given."""
        return int(self.counts.get("images", 0)) or sum(int(v) for k, v in self.counts.items() if k not in ("fta", "images"))

    @property
    def setting(self) -> str:
        """The swept value as text, where the method belongs to a sweep."""
        if self.strength is not None:
            return f"{self.strength:g}"
        return self.label.removeprefix(f"{self.family} ") if self.family and self.label != self.family else ""


@dataclass(frozen=True)
class Knowledge:
    """What an attacker has and knows, as the run record says it (else what is registered here).

    trained: None where nobody says.  missing: why it could not be carried out on the machine of the run.
    """

    label: str
    knows: str
    name: str = ""
    gallery: str = ""
    trained: bool | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""
    missing: str = ""


@dataclass(frozen=True, order=True)
class Key:
    """What tells the rows of one method apart."""

    metric: str
    attacker: str = ""
    recognizer: str = ""
    convention: str = ""
    comparison: str = ""
    label: str = ""


def key(row: Row) -> Key:
    return Key(row.metric, row.attacker, row.recognizer, row.convention, row.comparison, row.label)


def _typed(table: pd.DataFrame) -> list[Row]:
    """Rows out of a frame; columns that are missing take the default, columns that we do not know are left aside."""
    names = [f for f in columns_of(Row) if f.name in table.columns]
    bare = table[[f.name for f in names]].astype(object)
    bare = bare.where(bare.notna(), None)
    empty: dict[str, Any] = {
        f.name: ""
        if f.default is MISSING and f.name in ("dataset", "method", "metric", "unit")
        else None
        if f.default is MISSING
        else f.default
        for f in columns_of(Row)
    }
    cast: dict[str, type] = {f.name: t for f in columns_of(Row) for t in (str, int, bool) if f.type == t.__name__}
    rows = []
    for values in bare.to_dict("records"):
        entry = dict(empty)
        for name, value in values.items():
            if value is None:
                continue
            if name in cast:
                entry[str(name)] = cast[str(name)](value)
            elif name == "higher_is_better":
                entry["higher_is_better"] = bool(value)
            else:
                entry[str(name)] = float(value)
        rows.append(Row(**entry))
    return rows


class View:
    """A run with its rows typed and indexed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.record = run.record
        self.rows = _typed(run.rows)

    def entry(self, name: str) -> Mapping[str, Any]:
        """A table of the run record, empty where it is missing."""
        value = self.record.get(name)
        return value if isinstance(value, Mapping) else {}

    def entries(self, name: str) -> list[Mapping[str, Any]]:
        """A list of tables of the run record."""
        value = self.record.get(name)
        return (
            [v for v in value if isinstance(v, Mapping)] if isinstance(value, Sequence) and not isinstance(value, str) else []
        )

    @cached_property
    def names_persons(self) -> bool:
        """Whether the data set says who is in its images; else these are the unit of inference, and nobody is re-identified."""
        return self.entry("dataset").get("identities", True) is not False

    @cached_property
    def datasets(self) -> list[str]:
        """Names of the data sets in the rows, in order of appearance (the record's own where there are no rows)."""
        found = list(dict.fromkeys(r.dataset for r in self.rows))
        return found or [str(self.entry("dataset").get("name", ""))]

    @cached_property
    def methods(self) -> list[Method]:
        """Methods in suite order, the members of a sweep moved up to its first one.

        Methods that only the rows know come last.
        """
        found: dict[str, Method] = {}
        for info in self.entries("methods"):
            label = str(info.get("label") or info.get("name") or "")
            strength = info.get("strength")
            counts = info.get("counts")
            found[label] = Method(
                label=label,
                slug=str(info.get("slug") or ""),
                family=str(info.get("family") or ""),
                strength=float(strength) if isinstance(strength, int | float) and not isinstance(strength, bool) else None,
                control=bool(info.get("control", False)),
                counts={str(k): int(v) for k, v in counts.items() if v is not None} if isinstance(counts, Mapping) else {},
                info=info,
            )
        for row in self.rows:
            found.setdefault(row.method, Method(label=row.method))
        groups: dict[str, list[Method]] = {}
        for method in found.values():
            groups.setdefault(method.group, []).append(method)
        return [m for group in groups.values() for m in group]

    @cached_property
    def sweeps(self) -> dict[str, list[Method]]:
        """Family -> its methods with a strength, weakest number first; families of one are no sweep."""
        found: dict[str, list[Method]] = {}
        for m in self.methods:
            if m.family and m.strength is not None and not m.control:
                found.setdefault(m.family, []).append(m)
        return {k: sorted(v, key=lambda m: m.strength or 0.0) for k, v in found.items() if len(v) > 1}

    @cached_property
    def recognizers(self) -> list[str]:
        listed = [str(r.get("name", "")) for r in self.entries("recognizers")]
        readers = {str(r.get("name", "")) for r in self.entries("classifiers")}
        named = (r.recognizer for r in self.rows if r.recognizer and r.metric != WORST and r.recognizer not in readers)
        return list(dict.fromkeys([*listed, *named]))

    @cached_property
    def stock(self) -> list[str]:
        """The recognisers of the suite; where the record does not name them, those of the rows."""
        return list(dict.fromkeys(str(r.get("name", "")) for r in self.entries("recognizers"))) or self.recognizers

    @cached_property
    def attackers(self) -> list[str]:
        """Attackers of the re-identification, in the order of the run record; those that learn nothing first."""
        used = list(
            dict.fromkeys(r.attacker for r in self.rows if r.attacker and r.metric != WORST and r.metric.startswith("reid."))
        )
        order = [k.label for k in self._recorded] or list(ATTACKERS)
        learns = {k.label for k in self._recorded if k.trained}
        used.sort(key=lambda a: (a in learns, order.index(a) if a in order else len(order)))
        return used

    @cached_property
    def _recorded(self) -> list[Knowledge]:
        listed = self.entry("attackers").get("attackers")
        out = []
        for a in listed if isinstance(listed, list | tuple) else ():
            if isinstance(a, Mapping) and a.get("label"):
                params, trained = a.get("params"), a.get("trained")
                out.append(
                    Knowledge(
                        str(a["label"]),
                        str(a.get("knows") or ""),
                        str(a.get("name") or ""),
                        str(a.get("gallery") or ""),
                        trained if isinstance(trained, bool) else None,
                        params if isinstance(params, Mapping) else {},
                        str(a.get("citation") or ""),
                        str(a.get("missing") or ""),
                    )
                )
        return out

    @cached_property
    def knowledge(self) -> list[Knowledge]:
        """What each attacker knows: those of the run record, then those that only the rows name."""
        known = {k.label: k for k in self._recorded}
        labels = [*self.attackers, *(a for a in known if a not in self.attackers)]
        out = []
        for label in labels:
            k = known.get(label, Knowledge(label, ""))
            out.append(k if k.knows else replace(k, knows=self.knows(k.name or label)))
        return out

    def attacks(self, dataset: str, method: str, attacker: str) -> list[Row]:
        """The headline rank-1 rows of an attacker, one per recogniser."""
        return [
            r for k, r in self.of(dataset, method).items()
            if k.metric == RANK1 and k.attacker == attacker and k.convention in ("", "headline") and not k.label
        ]  # fmt: skip

    def strongest(self, dataset: str, method: str, attacker: str) -> Row | None:
        """The recogniser with which an attacker names most persons: of the trusted ones, else of the others.

        Where no attack has a value, the first row, which says why; None where there is no row.
        """
        rows = self.attacks(dataset, method, attacker)
        known = [r for r in rows if r.value is not None]
        return max(known, key=lambda r: (r.trusted, r.value or 0.0)) if known else rows[0] if rows else None

    @cached_property
    def comparisons(self) -> list[str]:
        """How images are compared in re-identification (and in quantities of unknown metrics)."""
        other = ("soft.", "emotion.", "attributes.", "geometry.", "perceptual.", "throughput.")
        return list(dict.fromkeys(r.comparison for r in self.rows if r.comparison and not r.metric.startswith(other)))

    def utility(self, dataset: str) -> str:
        """The quantity that stands for utility: the first of UTILITY that some method other than a control has."""
        free = [m.label for m in self.methods if not m.control] or [m.label for m in self.methods]
        for metric in UTILITY:
            if any((r := self.headline(dataset, label, metric)) is not None and r.value is not None for label in free):
                return metric
        return SSIM

    def refused(self, dataset: str, method: str) -> str:
        """Why a method's figures are not published, "" where they are."""
        return next((why for r in self.of(dataset, method).values() if (why := withdrawn(r))), "")

    @cached_property
    def _index(self) -> dict[tuple[str, str], dict[Key, Row]]:
        index: dict[tuple[str, str], dict[Key, Row]] = {}
        for row in self.rows:
            index.setdefault((row.dataset, row.method), {}).setdefault(key(row), row)
        return index

    @cached_property
    def _samples(self) -> dict[tuple[str, str], Row]:
        found: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            found.setdefault((row.dataset, row.metric), row)
        return found

    def sample(self, dataset: str, metric: str) -> Row | None:
        """Any row of a quantity: unit and direction are those of all."""
        return self._samples.get((dataset, metric))

    @cached_property
    def fixed(self) -> set[str]:
        """Quantities at a fixed threshold, whose realised FMR is stated."""
        return {r.metric for r in self.rows if r.realised_fmr is not None}

    def of(self, dataset: str, method: str) -> Mapping[Key, Row]:
        return self._index.get((dataset, method), {})

    def row(self, dataset: str, method: str, key: Key) -> Row | None:
        return self.of(dataset, method).get(key)

    def keys(self, dataset: str) -> list[Key]:
        """All keys of a data set: by metric in order of appearance, then attacker, recogniser, convention."""
        seen = dict.fromkeys(key(r) for r in self.rows if r.dataset == dataset)
        order = {metric: i for i, metric in enumerate(dict.fromkeys(k.metric for k in seen))}

        labels = list(dict.fromkeys(k.label for k in seen))

        def place(names: Iterable[str], name: str) -> int:
            listed = list(names)
            return listed.index(name) if name in listed else len(listed)

        return sorted(
            seen,
            key=lambda k: (
                order[k.metric], place(CONVENTIONS, k.convention), place(self.comparisons, k.comparison),
                place(self.attackers, k.attacker), place(self.recognizers, k.recognizer), place(labels, k.label),
            ),
        )  # fmt: skip

    def headline(self, dataset: str, method: str, metric: str) -> Row | None:
        """The row of ``metric`` that stands for the method: the headline convention.

        Where there is one per attacker or recogniser, the one that is worst for the person in the picture.
        """
        rows = [r for k, r in self.of(dataset, method).items() if k.metric == metric and k.convention in ("", "headline")]
        if not rows:
            return None
        known = [r for r in rows if r.value is not None]
        if not known:
            return rows[0]
        # A classifier that was fitted to the data set's own classes says more of what is left than one that was not.
        known = [r for r in known if r.comparison.startswith("adapted")] or known
        if known[0].higher_is_better is None:
            return known[0]
        return (min if known[0].higher_is_better else max)(known, key=lambda r: r.value if r.value is not None else 0.0)

    def sizes(self, dataset: str, method: Method) -> tuple[int, int, int]:
        """Images, persons and images not released of a method: from its headline rows, else from the record's counts."""
        for metric in (WORST, RANK1, "reid.eer", "reid.withheld"):
            row = self.headline(dataset, method.label, metric)
            if row is not None and (row.n_images or row.n_failed):
                return row.n_images, row.n_persons, row.n_failed
        rows = list(self.of(dataset, method.label).values())
        images = max((r.n_images for r in rows), default=0)
        persons = max((r.n_persons for r in rows), default=0)
        missing = sum(int(method.counts.get(k, 0)) for k in ("no_face", "no_landmarks", "failed"))
        return images or method.released, persons, max((r.n_failed for r in rows), default=0) or missing

    def chance(self, dataset: str, metric: str) -> tuple[float, float] | None:
        """Lowest and highest chance level of ``metric`` over methods, None where no row states one."""
        levels = [r.chance for r in self.rows if r.dataset == dataset and r.metric == metric and r.chance is not None]
        return (min(levels), max(levels)) if levels else None

    def control(self, name: str) -> Method | None:
        for m in self.methods:
            if m.control and str(m.info.get("name", m.label)) == name:
                return m
        return None

    @cached_property
    def deviations(self) -> list[str]:
        value = self.entry("protocol").get("deviations")
        if isinstance(value, str):
            return [value] if value else []
        return [plain(v) for v in value] if isinstance(value, Sequence) else []

    @cached_property
    def _titles(self) -> dict[str, str]:
        """Long titles of registered quantities.  A plug-in that cannot be imported leaves the bare names."""
        from deidbench import kinds
        from deidbench.errors import MissingError

        titles = {}
        for name in kinds.metrics.names():
            try:
                metric = kinds.metrics.get(name)
            except MissingError:
                continue
            titles.update({q.name: q.title for q in metric.quantities})
        return titles

    def knows(self, attacker: str) -> str:
        """What an attacker has and knows: its own sentence where it is registered here, else the protocol's."""
        from deidbench import kinds
        from deidbench.errors import DeidbenchError

        try:
            said = kinds.attackers.get(attacker).knows
        except DeidbenchError:  # a run made elsewhere, with a plug-in that is absent here
            said = ""
        return said or ATTACKERS.get(attacker, "not described (its plug-in is not installed here)")

    def title(self, metric: str) -> str:
        """The long title of a quantity, "" where nobody registered one."""
        return self._titles.get(metric, "")

    def heading(self, metric: str) -> str:
        """The short title of a quantity for a column."""
        if metric in HEADINGS:
            return HEADINGS[metric]
        fixed = re.fullmatch(r"reid\.(tmr|fnmr|fmr|fnir|fpir)@(?:fmr|fpir)=([0-9.e-]+)", metric)
        if fixed:
            at = "FPIR" if fixed[1] in ("fnir", "fpir") else "FMR"
            if fixed[1].upper() == at:
                return f"Realised {at}, set for {100 * float(fixed[2]):g}\u00a0%"
            return f"{fixed[1].upper()} at {at} {100 * float(fixed[2]):g}\u00a0%"
        return self.title(metric) or metric


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats, where x is better lower and y better higher.

    Points that tie on both count all; sorted by x, then y.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    best = -math.inf
    for i in order:
        x, y = points[i]
        if y > best or (front and points[front[-1]] == (x, y)):
            front.append(i)
            best = max(best, y)
    return front


def write_atomically(path: Path, data: bytes | str) -> Path:
    """The whole file or nothing, its folder made where it is absent."""
    from deidbench.images import atomic_write, make_folder

    make_folder(path.parent)
    atomic_write(path, data)
    return path
