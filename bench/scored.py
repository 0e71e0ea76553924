"""Runs as a comparison reads them: who takes part, which figures there are, and whether two of them may be set against each other.

A *contestant* is a method of a run, a *question* a figure (metric, attacker, recogniser, convention, label), an *entry* the row that
answers it with what it is made of.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from deidbench import comparable, evidence
from deidbench.errors import InputError
from deidbench.records import Run, read_run
from deidbench.stats.evidence import DISTRIBUTION, REPEATS, Evidence

#: What is compared unless somebody asks for more: one line per thing that a reader decides by.
DEFAULT_METRICS = (
    "reid.worst_rank1",
    "reid.rank1",
    "reid.eer",
    "reid.d_sys",
    "distance.cosine",
    "soft.mean_balanced_accuracy",
    "emotion.uar",
    "emotion.mean_delta_p",
    "attributes.mean_balanced_accuracy",
    "attributes.mean_retention",
    "geometry.detected_dlib",
    "geometry.nme_facemesh",
    "quality.ssim_face",
    "throughput.faces_per_s",
)


class Question(NamedTuple):
    """Which figure."""

    metric: str
    attacker: str = ""
    recognizer: str = ""
    convention: str = ""
    comparison: str = ""
    label: str = ""

    @property
    def text(self) -> str:
        """For messages."""
        convention = self.convention if self.convention not in ("", "headline") else ""
        more = [x for x in (self.attacker, self.recognizer, self.label, convention) if x]
        return self.metric + (f" ({', '.join(more)})" if more else "")


@dataclass(frozen=True, eq=False)
class Contestant:
    """A method of a run.  name: unique in the comparison.  control: an untouched or blackened image."""

    name: str
    run: Run
    label: str
    control: bool
    record: Mapping[str, Any]


class Entry(NamedTuple):
    """A figure of a contestant: its row and what it is made of."""

    row: Mapping[str, Any]
    evidence: Evidence | None


def figure(entry: Entry) -> float | None:
    """The figure itself, None where there is none."""
    value = entry.row.get("value")
    return None if value is None else float(value)


def mismatch(a: Entry, b: Entry, ours: Scored, theirs: Scored) -> str:
    """In words, why the evidence of two figures cannot be set against each other; "" where it can."""
    for e in (a, b):
        if e.evidence is None:
            return "the run keeps nothing of this figure by which it could be compared"
        if e.evidence.summed and e.evidence.columns.size and (value := figure(e)) is not None:
            again = e.evidence.value()
            if not math.isclose(again, value, rel_tol=1e-6, abs_tol=1e-6):
                return f"the evidence gives another value ({again:.4g}, not {value:.4g})"
    x, y = a.evidence, b.evidence
    assert x is not None and y is not None
    if x.form != y.form:
        return f"the figures are of two kinds ({x.form}, {y.form})"
    if x.form == REPEATS:
        return "" if comparable.same_machine(ours.run, theirs.run) else "timed on different machines"
    if ours.persons != theirs.persons or (x.summed and {len(x.columns), len(y.columns)} != {len(ours.persons)}):
        return "the figures are of other persons"
    if x.form == DISTRIBUTION and ours.protocol("seed", 0) != theirs.protocol("seed", 0):
        return "the replicates were drawn with another seed: they are no pairs"
    return ""


def identical(a: Entry, b: Entry, same: str) -> str:
    """In words, why the figure of both is the same beyond doubt; "" if it is not.

    same: that the outputs are the same pictures, if so.  Equal counts of different pictures are no identity: nothing was seen
    to differ, and that has a bound.
    """
    x, y = a.evidence, b.evidence
    if x is None or y is None or a.row.get("value") != b.row.get("value") or not x.same(y):
        return ""
    return same or ("the same numbers for every person" if x.telling else "")


def question_of(row: Mapping[Any, Any]) -> Question:
    """Which figure a row is."""
    q = Question(*(str(row.get(f) or "") for f in Question._fields))
    # a worst case is one figure, whichever attacks were trusted in it
    return q._replace(attacker="", recognizer="") if q.recognizer.startswith("max(") else q


class Scored:
    """Figures of one run with their evidence, by method and question.

    bare: without evidence, which runs of older versions have none of.  Raises InputError for a run that is damaged.
    """

    def __init__(self, run: Run, *, bare: bool = False) -> None:
        comparable.sound(run)
        self.run = run
        self.bare = bare

    @cached_property
    def entries(self) -> dict[str, dict[Question, Entry]]:
        known = {} if self.bare else evidence.read(self.run.folder, len(self.run.rows))
        table = self.run.rows.astype(object).where(self.run.rows.notna(), None)
        out: dict[str, dict[Question, Entry]] = defaultdict(dict)
        for i, row in enumerate(table.to_dict("records")):
            out[str(row["method"])][question_of(row)] = Entry({str(k): v for k, v in row.items()}, known.get(i))
        return dict(out)

    @cached_property
    def persons(self) -> list[str]:
        return sorted({str(s) for s in self.run.images["subject_id"].unique()})

    @cached_property
    def outputs(self) -> dict[str, dict[str, str]]:
        """Method -> image -> hash of its output, "" where nothing was released; {} of a run that does not say."""
        if "output_sha256" not in self.run.images:
            return {}
        out: dict[str, dict[str, str]] = {}
        for method, part in self.run.images.groupby("method"):
            hashes = part["output_sha256"].fillna("")
            out[str(method)] = {str(i): str(h) for i, h in zip(part["id"].tolist(), hashes.tolist(), strict=True)}
        return out

    def same_outputs(self, method: str, other: Scored, second: str) -> str:
        """In words, if both methods released the very same pictures; "" if not, or if a run does not say."""
        a, b = self.outputs.get(method, {}), other.outputs.get(second, {})
        return f"all {len(a)} outputs are the same pictures" if a and a == b and any(a.values()) else ""

    def protocol(self, name: str, default: Any) -> Any:
        return self.run.record.get("protocol", {}).get(name, default)


def load(folders: Sequence[Path]) -> list[Run]:
    """Reads runs; the same folder twice is one run."""
    runs: dict[Path, Run] = {}
    for folder in folders:
        runs.setdefault(Path(folder).resolve(), read_run(Path(folder)))
    return list(runs.values())


def contestants(runs: Sequence[Run], only: Sequence[str] = ()) -> list[Contestant]:
    """The methods of all runs; a control that several runs share is taken once.

    only: labels, sweep families or names given here; raises InputError for one that is nowhere.
    """
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        for m in run.record.get("methods", []):
            counts[m["label"]] += 1
    names = _folder_names([r.folder for r in runs])
    out: list[Contestant] = []
    controls: set[tuple[str, str]] = set()
    for run, folder in zip(runs, names, strict=True):
        for m in run.record.get("methods", []):
            label, control = str(m["label"]), bool(m.get("control"))
            if control:
                if (label, str(m.get("fingerprint"))) in controls:
                    continue
                controls.add((label, str(m.get("fingerprint"))))
            alone = counts[label] == 1 or (control and len([c for c in out if c.label == label]) == 0)
            out.append(Contestant(label if alone else f"{label} ({folder})", run, label, control, m))
    if only:
        known = {n for c in out for n in called(c)}
        for name in only:
            if name not in known:
                import difflib

                close = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
                raise InputError(
                    f"no method {name!r} in {'these runs' if len(runs) > 1 else 'this run'}",
                    f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has: {', '.join(c.name for c in out)}",
                )
        out = [c for c in out if called(c) & set(only)]
    return out


def called(c: Contestant) -> set[str]:
    return {c.name, c.label, str(c.record.get("family", "")), str(c.record.get("slug", ""))} - {""}


def _folder_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [Path(f).resolve().parts for f in folders]
    for n in range(1, max((len(p) for p in parts), default=1) + 1):
        ends = ["/".join(p[-n:]) for p in parts]
        if len(set(ends)) == len(ends):
            return ends
    return ["/".join(p) for p in parts]


def check(runs: Sequence[Run], *, force: bool = False, across: bool = False) -> tuple[list[str], list[str]]:
    """(what differs all the same, remarks).  Raises InputError, naming the first differences, unless ``force``."""
    differ: list[str] = []
    remarks: list[str] = []
    for run in runs:
        comparable.sound(run)
    for run in runs[1:]:
        found = comparable.differences(runs[0], run, across=across)
        differ += [f"{runs[0].folder.name} and {run.folder.name} differ in {d}" for d in found.refuse]
        remarks += [f"{runs[0].folder.name} and {run.folder.name}: {r}" for r in found.remarks]
    if differ and not force:
        more = f" (and {len(differ) - 3} more differences)" if len(differ) > 3 else ""
        raise InputError(
            "these runs cannot be compared: " + "; ".join(differ[:3]) + more,
            "run both with the same suite and data; --force compares them all the same and marks the result",
        )
    return differ, remarks


def asked(scored: Sequence[Mapping[Question, Entry]], metrics: Sequence[str], everything: bool = False) -> list[Question]:
    """Questions that at least two contestants can answer: by default those of :data:`DEFAULT_METRICS` in the headline convention.

    metrics: names or patterns with ``*``; "reid.rank1/sface" or "reid.*/lazy-informed" also names the recogniser or attacker.
    Raises InputError for a pattern that nothing matches.
    """
    counts: dict[Question, int] = defaultdict(int)
    for entries in scored:
        for q, entry in entries.items():
            counts[q] += entry.row.get("value") is not None
    every = [q for q, n in counts.items() if n > 1]
    if everything and not metrics:
        return every
    out: list[Question] = []
    for pattern in metrics or DEFAULT_METRICS:
        name, _, who = pattern.partition("/")
        found = [
            q
            for q in every
            if fnmatchcase(q.metric, name)
            and (everything or q.convention in ("", "headline"))
            and (not who or who in (q.attacker, q.recognizer, q.label))
        ]
        if not found and metrics:
            import difflib

            names = sorted({q.metric for q in every})
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            raise InputError(
                f"no figure {pattern!r} that two of these methods have",
                f"did you mean {', '.join(close)}?" if close else f"there are: {_few(names)}",
            )
        if not metrics and name.startswith("emotion."):
            # the adapted reader where there is one: the stock classifier's classes differ from the data set's
            adapted = [q for q in found if q.comparison.startswith("adapted")]
            found = adapted or found
        out += [q for q in found if q not in out]
    return out


def _few(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
