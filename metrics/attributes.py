"""Attributes: whether what CelebA's labels say of a face can still be read after anonymisation, and what is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.kinds import metrics
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Reading, Table
from deidbench.metrics.models.labels import ATTRIBUTE_GROUPS, ATTRIBUTES
from deidbench.metrics.soft_biometrics import MIN_PERSONS, above_chance
from deidbench.records import Row
from deidbench.stats import intervals
from deidbench.stats.evidence import Evidence
from deidbench.stats.groups import holm
from deidbench.stats.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "attributes"
#: A probability of at least this says that the face has the attribute.
OPERATING_POINT = 0.5
CHANCE = 0.5
HEADLINE, WITHOUT = "headline", "without_fta"
METHOD = "person bootstrap, classifier fixed"
#: Skill above chance that is rounding of zero.
_NONE = 1e-12
#: Numbers that one block of labels may take at a time.
_BLOCK = 1 << 22


def _quantity(name: str, title: str, higher_is_better: bool | None, unit: str = "rate") -> Quantity:
    return Quantity(f"{FAMILY}.{name}", title, unit, higher_is_better, "utility", FAMILY)


# --- counts.  Every image is in one of 27 cells per attribute: truth, what was read off the clear and the anonymised image.

_UNKNOWN = 2
_T, _C, _A = np.indices((3, 3, 3)).reshape(3, 27)
_READ = _A != _UNKNOWN
_BOTH = _READ & (_C != _UNKNOWN)
#: What figures are made of: each is the number of images in some of the cells.
_SUMS: Mapping[str, npt.NDArray[np.bool_]] = {
    "labelled": _T != _UNKNOWN,
    "pos": _T == 1,
    "neg": _T == 0,
    "clear_hits_pos": (_T == 1) & (_C == 1),
    "clear_hits_neg": (_T == 0) & (_C == 0),
    "hits_pos": (_T == 1) & (_A == 1),
    "hits_neg": (_T == 0) & (_A == 0),
    "read": (_T != _UNKNOWN) & _READ,
    "read_pos": (_T == 1) & _READ,
    "read_neg": (_T == 0) & _READ,
    # Retention without FTA compares the same images before and after.
    "both": (_T != _UNKNOWN) & _BOTH,
    "both_pos": (_T == 1) & _BOTH,
    "both_neg": (_T == 0) & _BOTH,
    "both_clear_hits_pos": (_T == 1) & (_C == 1) & _BOTH,
    "both_clear_hits_neg": (_T == 0) & (_C == 0) & _BOTH,
    "both_hits_pos": (_T == 1) & (_A == 1) & _BOTH,
    "both_hits_neg": (_T == 0) & (_A == 0) & _BOTH,
    # Predicted on the clear image, whatever the truth.
    "shown": _C == 1,
    "kept": (_C == 1) & (_A == 1),
    "shown_read": (_C == 1) & _READ,
    "absent": _C == 0,
    "appeared": (_C == 0) & (_A == 1),
    "absent_read": (_C == 0) & _READ,
    "clear_misses_pos": (_T == 1) & (_C != 1),
    "lost_shown": (_C == 1) & (_A != 1),
    "lost_shown_read": (_C == 1) & (_A == 0),
}
_WEIGHTS = np.stack([mask.astype(np.float64) for mask in _SUMS.values()], 1)


class _Kind(NamedTuple):
    """A figure of one attribute; ``about``, ``counted`` and ``of`` are sums.

    about: the images that it is about, whose failures are counted.  counted: those of them in its denominators.
    of: the denominators, one or one per class: the spread is that of the one with the fewest persons.
    rate: in [0, 1], made of events.  clear: of the clear images only.
    """

    name: str
    convention: str
    about: str
    counted: str
    of: tuple[str, ...]
    rate: bool = True
    clear: bool = False
    chance: float | None = None

    @property
    def key(self) -> str:
        return self.name + (f"_{WITHOUT}" if self.convention == WITHOUT else "")


_CLASSES = ("pos", "neg")
_KINDS = (
    _Kind("base_rate", "", "labelled", "labelled", ("labelled",), clear=True),
    _Kind("clear_balanced_accuracy", HEADLINE, "labelled", "labelled", _CLASSES, clear=True, chance=CHANCE),
    _Kind("clear_false_negative_rate", HEADLINE, "pos", "pos", ("pos",), clear=True),
    _Kind("balanced_accuracy", HEADLINE, "labelled", "labelled", _CLASSES, chance=CHANCE),
    _Kind("balanced_accuracy", WITHOUT, "labelled", "read", ("read_pos", "read_neg"), chance=CHANCE),
    _Kind("retention", HEADLINE, "labelled", "labelled", _CLASSES, rate=False, chance=0.0),
    _Kind("retention", WITHOUT, "labelled", "both", ("both_pos", "both_neg"), rate=False, chance=0.0),
    _Kind("removal", HEADLINE, "shown", "shown", ("shown",)),
    _Kind("removal", WITHOUT, "shown", "shown_read", ("shown_read",)),
    _Kind("appearance", HEADLINE, "absent", "absent", ("absent",)),
    _Kind("appearance", WITHOUT, "absent", "absent_read", ("absent_read",)),
)
_BY_KEY = {kind.key: kind for kind in _KINDS}
#: Balanced accuracies over the images that could be read before and after: parts of the retention without FTA.
_SAME_CLEAR, _SAME = "clear_balanced_accuracy_same_images", "balanced_accuracy_same_images"
#: Figures of which there are means over attributes.
_AVERAGED = ("balanced_accuracy", "retention", "removal")
#: What is kept of figures so that methods can be compared: the form and the sums that are its columns.
_MADE_OF: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "base_rate": ("macro", ("pos", "labelled")),
    "clear_balanced_accuracy": ("macro", ("clear_hits_pos", "clear_hits_neg", "pos", "neg")),
    "clear_false_negative_rate": ("macro", ("clear_misses_pos", "pos")),
    "balanced_accuracy": ("macro", ("hits_pos", "hits_neg", "pos", "neg")),
    "balanced_accuracy_without_fta": ("macro", ("hits_pos", "hits_neg", "read_pos", "read_neg")),
    "retention": ("skill", ("hits_pos", "hits_neg", "clear_hits_pos", "clear_hits_neg", "pos", "neg")),
    "retention_without_fta": (
        "skill",
        ("both_hits_pos", "both_hits_neg", "both_clear_hits_pos", "both_clear_hits_neg", "both_pos", "both_neg"),
    ),
    "removal": ("macro", ("lost_shown", "shown")),
    "removal_without_fta": ("macro", ("lost_shown_read", "shown_read")),
    "appearance": ("macro", ("appeared", "absent")),
    "appearance_without_fta": ("macro", ("appeared", "absent_read")),
}


def _divide(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """a / b, NaN where b is not above 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(b > 0, a / b, np.nan))


def _skill_ratio(after: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(after - chance) / (before - chance), NaN where there was no skill before."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(before - CHANCE > _NONE, (after - CHANCE) / (before - CHANCE), np.nan))


def _figures(sums: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, npt.NDArray[np.float64]]:
    """The figures out of the sums, all of one shape; NaN where one cannot be computed."""

    def accuracy(hits: str, of: str) -> npt.NDArray[np.float64]:
        recalls = [_divide(sums[f"{hits}_{c}"], sums[f"{of}_{c}" if of else c]) for c in _CLASSES]
        return (recalls[0] + recalls[1]) / 2

    clear, after = accuracy("clear_hits", ""), accuracy("hits", "")
    same_clear, same = accuracy("both_clear_hits", "both"), accuracy("both_hits", "both")
    return {
        "base_rate": _divide(sums["pos"], sums["labelled"]),
        "clear_balanced_accuracy": clear,
        "clear_false_negative_rate": _divide(sums["pos"] - sums["clear_hits_pos"], sums["pos"]),
        "balanced_accuracy": after,
        "balanced_accuracy_without_fta": accuracy("hits", "read"),
        "retention": _skill_ratio(after, clear),
        "retention_without_fta": _skill_ratio(same, same_clear),
        "removal": _divide(sums["shown"] - sums["kept"], sums["shown"]),
        "removal_without_fta": _divide(sums["shown_read"] - sums["kept"], sums["shown_read"]),
        "appearance": _divide(sums["appeared"], sums["absent"]),
        "appearance_without_fta": _divide(sums["appeared"], sums["absent_read"]),
        _SAME_CLEAR: same_clear,
        _SAME: same,
    }


def _cells(
    truth: npt.NDArray[Any],
    clear: npt.NDArray[Any],
    anonymised: npt.NDArray[Any],
    clear_lost: npt.NDArray[np.bool_],
    lost: npt.NDArray[np.bool_],
) -> npt.NDArray[np.uint8]:
    """uint8 (n, L): the cell of each image and attribute.  Arguments as for :func:`table_of`."""
    out: npt.NDArray[np.uint8] = np.where(truth == 1, np.uint8(9), np.where(truth == 0, np.uint8(0), np.uint8(9 * _UNKNOWN)))
    for p, unread, step in ((clear, clear_lost, 3), (anonymised, lost, 1)):
        said = np.where(np.isnan(p), np.uint8(_UNKNOWN), (p >= OPERATING_POINT).view(np.uint8))
        said[unread] = _UNKNOWN
        out += said * np.uint8(step)
    return out


def _count(cells: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(n, L) cells -> float64 (L, 27) images in each."""
    labels = cells.shape[1]
    at = cells + 27 * np.arange(labels, dtype=np.int32)
    return np.bincount(at.ravel(), minlength=27 * labels).reshape(labels, 27).astype(np.float64)


def _named(sums: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """(len(_SUMS), ...) -> by name."""
    return dict(zip(_SUMS, sums, strict=True))


def table_of(
    truth: npt.NDArray[Any],
    clear: npt.NDArray[Any],
    anonymised: npt.NDArray[Any],
    labels: Sequence[str],
    clear_lost: npt.NDArray[np.bool_] | None = None,
    lost: npt.NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """All figures of all attributes, without intervals: one line per attribute.

    truth: (n, L) of 0 and 1; anything else is unknown.  clear, anonymised: probabilities (n, L), of at least
    :data:`OPERATING_POINT` for a positive; NaN where nothing was read.  clear_lost, lost: (n,) withheld or no face was found.
    Columns: the names of the quantities, and those with ``_without_fta`` at the end; see :class:`Attributes`.  NaN where a
    figure cannot be computed, such as balanced accuracy of one class.  Raises ValueError for shapes that do not fit.
    """
    import pandas as pd

    n = len(truth)
    if truth.shape != (n, len(labels)) or not truth.shape == clear.shape == anonymised.shape:
        raise ValueError(f"{len(labels)} labels; truth {truth.shape}, clear {clear.shape}, anonymised {anonymised.shape}")
    nobody = np.zeros(n, np.bool_)
    cells = _cells(
        truth, clear, anonymised, nobody if clear_lost is None else clear_lost, nobody if lost is None else lost
    )  # fmt: skip
    found = _figures(_named((_count(cells) @ _WEIGHTS).T))
    return pd.DataFrame({kind.key: found[kind.key] for kind in _KINDS}, index=pd.Index(labels, name="attribute"))


# --- one classifier


@dataclass(frozen=True, eq=False)
class _Study:
    """What one classifier read, against the truth.

    labels: L attributes.  cells: (n, L).  images, persons: by sum, (L,).  values: by figure, (L,).
    replicates: by figure, (L, B).  lost: by clear (True) and anonymised (False): cells (L, 27) of the images withheld, and of
    those released without a face.
    """

    labels: tuple[str, ...]
    cells: npt.NDArray[np.uint8]
    images: Mapping[str, npt.NDArray[np.float64]]
    persons: Mapping[str, npt.NDArray[np.intp]]
    values: Mapping[str, npt.NDArray[np.float64]]
    replicates: Mapping[str, npt.NDArray[np.float64]]
    lost: Mapping[bool, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
    #: (n,) person of each image, and how many persons there are.
    who: npt.NDArray[np.intp]
    people: int
    #: Intervals that were asked for before: notes repeat those of the clear images.
    kept: dict[tuple[str, int, float], Interval] = field(default_factory=dict)
    #: Counts per person that were asked for before.
    counted: dict[tuple[int, ...], dict[str, npt.NDArray[np.float64]]] = field(default_factory=dict)

    @classmethod
    def of(cls, clear: Table, anonymised: Table, name: str, labels: Sequence[str], protocol: Protocol) -> _Study:
        truth = np.stack([clear.attributes[a] for a in labels], 1)
        before, after = (t.readings[name] for t in (clear, anonymised))
        at = [before.labels.index(a) for a in labels]
        cells = _cells(
            truth,
            before.probabilities[:, at],
            after.probabilities[:, at],
            clear.withheld | clear.fta,
            anonymised.withheld | anonymised.fta,
        )
        names, who = np.unique(clear.subjects, return_inverse=True)
        draws = intervals.person_draws(names.tolist(), protocol.replicates, protocol.seed)
        images, persons, replicates = [], [], []
        # Some labels at a time: all of them in a large set would take gigabytes.
        wide = max(1, _BLOCK // max(1, 27 * len(names), len(_SUMS) * len(draws)))
        for start in range(0, len(labels), wide):
            part = cells[:, start : start + wide]
            each = _count_persons(part, who, len(names))
            images.append(each.sum(1))
            persons.append((each > 0).sum(1))
            k, p, m = each.shape
            drawn = intervals.ratio_replicates(each.transpose(1, 0, 2).reshape(p, k * m), np.ones(p), draws)
            replicates.append(_figures(_named(np.ascontiguousarray(drawn.T).reshape(k, m, len(draws)))))
        totals = _named(np.concatenate(images, 1))
        return cls(
            tuple(labels),
            cells,
            totals,
            dict(zip(_SUMS, np.concatenate(persons, 1), strict=True)),
            _figures(totals),
            {key: np.concatenate([r[key] for r in replicates]) for key in replicates[0]},
            {
                first: (_count(cells[t.withheld]), _count(cells[t.fta & ~t.withheld]))
                for first, t in ((True, clear), (False, anonymised))
            },
            who,
            len(names),
        )

    def on(self, kind: _Kind, i: int) -> int:
        """Persons on whom the spread of a figure of attribute i depends."""
        return int(min(self.persons[of][i] for of in kind.of))

    def interval(self, kind: _Kind, i: int, level: float) -> Interval:
        at = (kind.key, i, level)
        if at not in self.kept:
            value, replicates = float(self.values[kind.key][i]), self.replicates[kind.key][i]
            form, names = _MADE_OF[kind.key]
            if form == "macro" and len(names) == 2:  # events over trials of one kind of image
                made_of = self.evidence(kind, [i], self.on(kind, i))
                events, trials = made_of.columns.T
                self.kept[at] = intervals.rate_interval(events, trials, level=level, what="classifier fixed")
            else:
                self.kept[at] = _interval(value, replicates, self.on(kind, i), level, kind.rate)
        return self.kept[at]

    def evidence(self, kind: _Kind, which: Sequence[int], persons: int) -> Evidence:
        """What a figure of one attribute, or its mean over several, is made of."""
        at = tuple(which)
        if at not in self.counted:
            self.counted[at] = dict(zip(_SUMS, _count_persons(self.cells[:, at], self.who, self.people), strict=True))
        each = self.counted[at]
        form, names = _MADE_OF[kind.key]
        return Evidence.sums(form, *(each[n] for n in names), persons=persons)

    def said(self, key: str, what: str, level: float, i: int) -> str:
        """A figure with its interval, for a note."""
        return _said(what, float(self.values[key][i]), self.interval(_BY_KEY[key], i, level))

    def measurable(self, level: float) -> tuple[dict[int, str], list[int]]:
        """Per unmeasurable attribute the reason, and the measurable ones."""
        refused: dict[int, str] = {}
        tested: list[int] = []
        for i in range(len(self.labels)):
            people = {c: int(self.persons[c][i]) for c in _CLASSES}
            scarce = [f"{w} ({people[c]} person{'s' * (people[c] != 1)})" for c, w in _WORDS.items() if people[c] < MIN_PERSONS]
            if not self.images["labelled"][i]:
                refused[i] = "unmeasurable: no image is labelled"
            elif scarce:
                refused[i] = f"unmeasurable: fewer than {MIN_PERSONS} persons of {', '.join(scarce)}"
            else:
                tested.append(i)
        kind = _BY_KEY["clear_balanced_accuracy"]
        p = [
            above_chance(float(self.values[kind.key][i]), self.replicates[kind.key][i], self.on(kind, i), CHANCE)
            for i in tested
        ]  # fmt: skip
        good = []
        for i, adjusted in zip(tested, holm(p) if p else (), strict=True):
            if adjusted < 1 - level:
                good.append(i)
            else:
                stands = self.said(kind.key, "clear", level, i)
                refused[i] = f"unmeasurable: {stands} is not above chance {CHANCE:.3f} (Holm over {len(p)})"
        return refused, good


#: The classes, in notes.
_WORDS = {"neg": "no", "pos": "yes"}


def _count_persons(cells: npt.NDArray[np.uint8], who: npt.NDArray[np.intp], persons: int) -> npt.NDArray[np.float64]:
    """float64 (len(_SUMS), persons, L) images of each person."""
    labels = cells.shape[1]
    at = cells + 27 * (np.arange(labels) + labels * who[:, None])
    counts = np.bincount(at.ravel(), minlength=27 * labels * persons).reshape(persons, labels, 27)
    return np.ascontiguousarray(np.moveaxis(counts @ _WEIGHTS, 2, 0))


def _interval(value: float, replicates: npt.NDArray[np.float64], persons: int, level: float, rate: bool) -> Interval:
    if rate and persons >= 2:
        if value <= _NONE:
            return intervals.zero_events(persons, level)
        if value >= 1 - _NONE:
            return intervals.all_events(persons, level)
    return intervals.percentile_interval(replicates, level, persons, METHOD)


def _said(what: str, value: float, interval: Interval) -> str:
    if np.isnan(value):
        return ""
    return f"{what} {value:.3f}" + ("" if interval.lo is None else f" [{interval.lo:.3f}, {interval.hi:.3f}]")


@metrics.register("attributes")
class Attributes(Metric):
    """What classifiers read of the face's labelled attributes, after anonymisation against before.

    A probability of at least 0.5 says yes.  ``balanced_accuracy`` is the mean of the recalls of yes and no; an image that was
    withheld, or in which no face was found, is wrong whichever it is.  ``retention`` is (balanced accuracy - 0.5) over
    the same of the clear images: 1 all skill is kept, 0 the classifier guesses, below 0 it is misled or sees no face; it is
    not clipped and may exceed 1.

    ``removal`` is the paper's measure: of the images that are read as yes when clear, the share that is no longer; an image
    without a face counts as removed.  It takes a classifier's mistakes for attributes and its blindness for privacy, so
    the share of true yes that it misses on clear images stands beside it.  ``appearance`` is the reverse: of those read as no, the
    share read as yes afterwards.  Both are over all images, labelled or not.

    ``without_fta``: over the images that could be read after anonymisation (retention: and before, the clear figure over
    the same ones).

    An attribute is *unmeasurable* where a class has fewer than ten persons, or where balanced accuracy on clear images is not
    above chance (one-sided, Holm over the attributes of the classifier); only the clear figures are then given.  Means are over
    the measurable attributes, with equal weight; mean retention is the ratio of the mean skills, which a barely
    readable attribute cannot upset as it does a mean of ratios.
    """

    version = "2"
    citation = (
        "Hellmann et al., GANonymization: a GAN-based face anonymization framework for preserving emotional expressions, 2023; "
        "Liu et al., Deep learning face attributes in the wild, ICCV 2015"
    )
    quantities = (
        _quantity("base_rate", "Attribute, share of images that have it", None),
        _quantity("clear_balanced_accuracy", "Attribute, balanced accuracy on clear images", None),
        _quantity("clear_false_negative_rate", "Attribute, share missed on clear images", None),
        _quantity("balanced_accuracy", "Attribute, balanced accuracy", True),
        _quantity("retention", "Attribute, retention of skill above chance", True, "ratio"),
        _quantity("removal", "Attribute, share no longer read of what was read off the clear images", None),
        _quantity("appearance", "Attribute, share read where it was not read off the clear images", None),
        _quantity("mean_balanced_accuracy", "Attributes, mean balanced accuracy", True),
        _quantity("mean_retention", "Attributes, retention of mean skill above chance", True, "ratio"),
        _quantity("mean_removal", "Attributes, mean removal", None),
        _quantity("group_balanced_accuracy", "Group of attributes, mean balanced accuracy", True),
        _quantity("group_retention", "Group of attributes, retention of mean skill above chance", True, "ratio"),
        _quantity("group_removal", "Group of attributes, mean removal", None),
    )

    def params(self) -> dict[str, Any]:
        return {"operating_point": OPERATING_POINT, "min_persons": MIN_PERSONS}

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not."""
        if not (np.array_equal(clear.ids, anonymised.ids) and np.array_equal(clear.subjects, anonymised.subjects)):
            raise InputError(
                f"{anonymised.method!r} and the clear images of {clear.dataset!r} are not the same images in the same order",
                "run the same deidbench run command again",
            )
        names = sorted(
            name
            for name in clear.readings.keys() & anonymised.readings.keys()
            if clear.readings[name].task == anonymised.readings[name].task == FAMILY
        )
        blank = Row(anonymised.dataset, anonymised.method, "", "", None, None, family=FAMILY)
        if not names:
            return Findings(_refusals(blank, "the suite has no attribute classifier"), [])
        rows: list[Row] = []
        for name in names:
            base = replace(blank, recognizer=name)
            before, after = clear.readings[name], anonymised.readings[name]
            if before.labels != after.labels:
                raise InputError(
                    f"{name!r} has other attributes on the clear images than on those of {anonymised.method!r}",
                    "run the same deidbench run command again",
                )
            labels = _common(clear, before)
            if why := _nothing(clear, labels):
                rows += _refusals(base, why)
                continue
            study = _Study.of(clear, anonymised, name, labels, protocol)
            rows += _rows(study, base, anonymised, protocol.confidence)
        return Findings(rows, [])


def _common(table: Table, reading: Reading) -> list[str]:
    """The labels of data set and classifier: CelebA's in its order, then others in the order of the alphabet."""
    both = set(reading.labels) & set(table.attributes)
    return [a for a in ATTRIBUTES if a in both] + sorted(both - set(ATTRIBUTES))


def _nothing(table: Table, labels: Sequence[str]) -> str:
    """Why there is nothing to report; empty where there is something."""
    if not table.n:
        return "there are no images"
    if not table.attributes:
        return "the images have no labels of attributes"
    return "" if labels else "the classifier knows none of the attributes of the images"


def _quantity_of(name: str) -> Quantity:
    return next(q for q in Attributes.quantities if q.name == f"{FAMILY}.{name}")


def _as(base: Row, name: str, convention: str, label: str = "", chance: float | None = None) -> Row:
    q = _quantity_of(name)
    return replace(
        base,
        metric=q.name,
        unit=q.unit,
        higher_is_better=q.higher_is_better,
        convention=convention,
        label=label,
        chance=chance,
    )


def _refusals(base: Row, reason: str) -> list[Row]:
    return [_refuse(_as(base, f"mean_{name}", c), reason) for name in _AVERAGED for c in (HEADLINE, WITHOUT)]


def _refuse(row: Row, reason: str) -> Row:
    return replace(row, reason=reason, ci_reason=reason, chance=None)


def _put(row: Row, value: float, interval: Interval, note: Sequence[str], evidence: Evidence) -> Row:
    return replace(
        row,
        evidence=evidence,
        value=value,
        lo=interval.lo,
        hi=interval.hi,
        ci_level=interval.level if interval.lo is not None else None,
        ci_method=interval.method,
        ci_reason=interval.reason,
        note="; ".join(part for part in note if part),
    )


def _rows(study: _Study, base: Row, anonymised: Table, level: float) -> list[Row]:
    """All rows of one classifier."""
    refused, good = study.measurable(level)
    every = range(len(study.labels))
    rows = [_row(study, base, kind, i, level, refused.get(i, "")) for kind in _KINDS for i in every]
    mean = _Mean(study, base, anonymised, level)
    rows += mean.rows("mean", "", every, good)
    for group, members in ATTRIBUTE_GROUPS.items():
        if known := [i for i in every if study.labels[i] in members]:
            rows += mean.rows("group", group, known, [i for i in known if i in good])
    return rows


def _row(study: _Study, base: Row, kind: _Kind, i: int, level: float, refused: str) -> Row:
    """One figure of attribute i.  refused: why it is unmeasurable; figures of the clear images are given all the same."""
    cells = _SUMS[kind.about]
    withheld, faceless = study.lost[kind.clear]
    row = replace(
        _as(base, kind.name, kind.convention, study.labels[i], kind.chance),
        n_images=int(study.images[kind.counted][i]),
        n_persons=int(study.persons[kind.counted][i]),
        n_failed=int(withheld[i][cells].sum()),
        n_fta=int(faceless[i][cells].sum()),
    )
    value = float(study.values[kind.key][i])
    if refused and not kind.clear:
        return _refuse(row, refused)
    if np.isnan(value):
        return _refuse(row, _why(study, kind, i))
    note = ""
    if kind.name == "balanced_accuracy":
        note = study.said("clear_balanced_accuracy", "clear", level, i)
    elif kind.name == "retention":
        before, after = (study.values[_part(kind, clear)][i] for clear in (True, False))
        note = f"balanced accuracy {before:.3f} clear, {after:.3f} anonymised"
    elif kind.name == "removal":
        note = study.said("clear_false_negative_rate", "missed on clear images", level, i)
    elif kind.name == "clear_balanced_accuracy":
        note = refused
    return _put(row, value, study.interval(kind, i, level), [note], study.evidence(kind, [i], study.on(kind, i)))


def _why(study: _Study, kind: _Kind, i: int) -> str:
    """Why a figure of the clear images, or of a measurable attribute, cannot be computed."""
    if kind.clear:
        if not study.images["labelled"][i]:
            return "no image is labelled"
        return f"every labelled image is {_WORDS['pos' if study.images['pos'][i] else 'neg']}"
    if not study.images[kind.counted][i]:
        withheld = study.lost[False][0][i][_SUMS[kind.about]].sum()
        gone = withheld == study.images[kind.about][i]
        return "nothing was released" if gone else "no face was found in any released image"
    for class_, of in zip(_CLASSES, kind.of, strict=False):
        if not study.images[of][i]:
            return f"no face was found in any image whose label is {_WORDS[class_]}"
    return "the classifier has no skill above chance on the clear images of the faces that were found"


@dataclass(frozen=True, eq=False)
class _Mean:
    """Makes rows about several attributes."""

    study: _Study
    base: Row
    table: Table
    level: float

    def rows(self, prefix: str, label: str, known: Sequence[int], good: Sequence[int]) -> list[Row]:
        """known: attributes of data set and classifier.  good: the measurable ones of them."""
        return [
            self._row(prefix, label, _BY_KEY[name + end], known, good) for name in _AVERAGED for end in ("", f"_{WITHOUT}")
        ]  # fmt: skip

    def _row(self, prefix: str, label: str, kind: _Kind, known: Sequence[int], good: Sequence[int]) -> Row:
        study = self.study
        cells = study.cells[:, list(good)]
        about, counted = (_SUMS[name][cells].any(1) for name in (kind.about, kind.counted))
        row = replace(
            _as(self.base, f"{prefix}_{kind.name}", kind.convention, label, kind.chance),
            n_images=int(counted.sum()),
            n_persons=len(np.unique(self.table.subjects[counted])),
            n_failed=int((self.table.withheld & about).sum()),
            n_fta=int((self.table.fta & ~self.table.withheld & about).sum()),
        )
        if not good:
            return _refuse(row, f"unmeasurable: none of {_many(len(known))} can be read off the clear images")
        lost = [i for i in good if np.isnan(study.values[kind.key if kind.name != "retention" else _part(kind)][i])]
        if lost:
            reasons = {_why(study, kind, i) for i in lost}
            if len(lost) == len(good) and len(reasons) == 1:
                return _refuse(row, reasons.pop())
            names = ", ".join(study.labels[i] for i in lost)
            return _refuse(row, f"no face was found in any image that this takes of {names}")
        value, replicates = self._mean(kind, good, study.values), self._mean(kind, good, study.replicates)
        if np.isnan(value):
            return _refuse(row, "the classifier has no skill above chance on the clear images of the faces that were found")
        interval = _interval(float(value), replicates, row.n_persons, self.level, kind.rate)
        kept = study.evidence(kind, good, row.n_persons)
        return _put(row, float(value), interval, [self._aside(kind, good), self._of(known, good)], kept)

    def _mean(self, kind: _Kind, good: Sequence[int], of: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        if kind.name != "retention":
            return np.asarray(of[kind.key][list(good)].mean(0))
        after, before = (of[_part(kind, clear)][list(good)].mean(0) for clear in (False, True))
        return _skill_ratio(after, before)

    def _aside(self, kind: _Kind, good: Sequence[int]) -> str:
        """What stands beside the figure."""
        study = self.study
        if kind.name == "retention":
            after, before = (study.values[_part(kind, clear)][list(good)].mean() for clear in (False, True))
            return f"ratio of mean skills above chance, mean balanced accuracy {before:.3f} clear, {after:.3f} anonymised"
        beside = _BY_KEY["clear_balanced_accuracy" if kind.name == "balanced_accuracy" else "clear_false_negative_rate"]
        value = float(study.values[beside.key][list(good)].mean())
        people = len(np.unique(self.table.subjects[_SUMS["labelled"][study.cells[:, list(good)]].any(1)]))
        interval = _interval(value, study.replicates[beside.key][list(good)].mean(0), people, self.level, rate=True)
        return _said("clear" if kind.name == "balanced_accuracy" else "missed on clear images", value, interval)

    def _of(self, known: Sequence[int], good: Sequence[int]) -> str:
        """Which attributes are in the mean, by the shorter list."""
        bad = [i for i in known if i not in good]
        said = f"{len(good)} of {_many(len(known))} measurable"
        few, word = (bad, ", not: ") if len(bad) < len(good) else (good, ": ")
        return said + (word + ", ".join(self.study.labels[i] for i in few) if few else "")


def _many(n: int) -> str:
    return f"{n} attribute{'s' * (n != 1)}"


def _part(kind: _Kind, clear: bool = False) -> str:
    """The balanced accuracies that a retention compares."""
    if kind.convention == WITHOUT:
        return _SAME_CLEAR if clear else _SAME
    return "clear_balanced_accuracy" if clear else "balanced_accuracy"
