"""What a figure is made of, kept per person, so that two methods can be compared later and elsewhere.

Nearly every figure of the suite is a function of sums over persons: a rate is hits over trials, a balanced accuracy the mean
of two such rates, a kappa a function of counts.  An :class:`Evidence` holds these sums per person and the name of the function
(its *form*).  A bootstrap replicate then is the function of the drawn persons' sums, a permutation that of sums in which some
persons' columns are swapped between two methods; both are matrix products.  Figures that are read off the scores of
*pairs* of persons (EER, AUC, D_sys, Cllr_min) are no such function: of them the replicates themselves are kept, which are
paired between methods, because draws depend on the seed and the persons alone (:func:`~deidbench.stats.intervals.person_draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deidbench.stats.intervals import (
    Interval,
    all_events,
    largest_interval,
    percentile_interval,
    rate_interval,
    ratio_replicates,
    zero_events,
)

Values = npt.NDArray[np.float64]
Form = Callable[[Values], Values]


def _divide(a: Values, b: Values) -> Values:
    """a / b, NaN where b is not above 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(b > 0, a / b, np.nan))


def _ratio(s: Values) -> Values:
    """Columns: events (or sum of values), trials (or images)."""
    return _divide(s[..., 0], s[..., 1])


def _macro(s: Values) -> Values:
    """Columns: hits of k classes, then images of k classes.  The mean of the classes' rates (balanced accuracy, UAR)."""
    k = s.shape[-1] // 2
    return np.asarray(_divide(s[..., :k], s[..., k:]).mean(-1))


def _macro_f1(s: Values) -> Values:
    """Columns: true positives of k classes, images of each, predictions of each.  F1 = 2 TP / (images + predictions).

    A class without an image has no F1, and then there is no macro F1.
    """
    k = s.shape[-1] // 3
    hits, of, said = s[..., :k], s[..., k : 2 * k], s[..., 2 * k :]
    return np.asarray(np.where(of > 0, _divide(2 * hits, of + said), np.nan).mean(-1))


def _largest(s: Values) -> Values:
    """Columns: events of k attacks on the same probes, then the probes.  The largest of the k rates."""
    return _divide(s[..., :-1].max(-1), s[..., -1])


def _kappa(s: Values) -> Values:
    """Columns: agreements, images, first answers per class, second answers per class (Cohen 1960)."""
    c = (s.shape[-1] - 2) // 2
    agree = _divide(s[..., 0], s[..., 1])
    first, second = (_divide(s[..., at : at + c], s[..., 1:2]) for at in (2, 2 + c))
    chance = (first * second).sum(-1)
    return np.asarray(np.where(1 - chance > 1e-12, 1 - _divide(1 - agree, 1 - chance), np.nan))


def _skill(s: Values) -> Values:
    """Columns of l attributes, six blocks: hits yes, hits no, clear hits yes, clear hits no, images yes, images no.

    (Mean balanced accuracy - 1/2) over the same of the clear images, NaN where there was no skill before.
    """
    b = s.reshape(*s.shape[:-1], 6, s.shape[-1] // 6)
    after, before = (
        ((_divide(b[..., h, :], b[..., 4, :]) + _divide(b[..., h + 1, :], b[..., 5, :])) / 2).mean(-1) - 0.5 for h in (0, 2)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(before > 1e-12, after / before, np.nan))


def _pearson(s: Values) -> Values:
    """Columns: images, sums of x, y, x^2, y^2, xy (x and y centred and scaled beforehand, for the digits' sake)."""
    n = s[..., 0]
    mx, my = _divide(s[..., 1], n), _divide(s[..., 2], n)
    vx, vy = _divide(s[..., 3], n) - mx**2, _divide(s[..., 4], n) - my**2
    covariance = _divide(s[..., 5], n) - mx * my
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where((vx > 1e-12) & (vy > 1e-12), covariance / np.sqrt(vx * vy), np.nan))


#: Sums over persons (..., m) to the figure (...).
FORMS: dict[str, Form] = {
    "rate": _ratio,
    "mean": _ratio,
    "macro": _macro,
    "macro-f1": _macro_f1,
    "largest": _largest,
    "kappa": _kappa,
    "skill": _skill,
    "pearson": _pearson,
}
#: How many columns a form may have.
WIDTHS: dict[str, Callable[[int], bool]] = {
    "rate": lambda m: m == 2,
    "mean": lambda m: m == 2,
    "macro": lambda m: m > 0 and m % 2 == 0,
    "macro-f1": lambda m: m > 0 and m % 3 == 0,
    "largest": lambda m: m > 1,
    "kappa": lambda m: m > 3 and m % 2 == 0,
    "skill": lambda m: m > 0 and m % 6 == 0,
    "pearson": lambda m: m == 6,
    "repeats": lambda m: m == 1,
}
#: In [0, 1] and made of events: 0 and 1 mean that no event, or nothing else, was seen.
RATES = ("rate", "macro", "macro-f1", "largest")
#: Kept as replicates.
DISTRIBUTION = "distribution"
#: Kept as repeats of a stop-watch: columns (R, 1), no persons.
REPEATS = "repeats"


@dataclass(frozen=True, eq=False)
class Evidence:
    """Sums per person, or replicates, of one figure.

    form: of :data:`FORMS`, or "distribution" (replicates), or "repeats".  columns: float64 (P, m), a row per person of the run in
    the order of the alphabet (repeats: a row per repeat); (0, 0) for a distribution.  replicates: float64 (B,), empty for the others.
    persons: on whom the spread depends; of the smallest class for a mean over classes.  names: of the columns that are
    maximised over, so that only like is compared with like.
    """

    form: str
    columns: Values
    replicates: Values
    persons: int
    names: tuple[str, ...] = ()

    @classmethod
    def sums(cls, form: str, *columns: npt.ArrayLike, persons: int | None = None, names: Sequence[str] = ()) -> Evidence:
        """columns: (P,) or (P, k) each, side by side.  persons: by default those with anything in the last column."""
        parts = [np.asarray(c, np.float64) for c in columns]
        table = np.hstack([p.reshape(len(p), -1) for p in parts])
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}: {', '.join(FORMS)}")
        if persons is None:
            last = {"macro": slice(table.shape[1] // 2, None), "kappa": slice(1, 2), "pearson": slice(0, 1)}.get(
                form, slice(-1, None)
            )
            persons = int((table[:, last] > 0).sum(0).min(initial=len(table)))
        return cls(form, table, np.empty(0), persons, tuple(names))

    @classmethod
    def distribution(cls, replicates: npt.ArrayLike, persons: int) -> Evidence:
        """Replicates (B,) that were drawn with the run's person draws."""
        return cls(DISTRIBUTION, np.empty((0, 0)), np.asarray(replicates, np.float64), persons)

    @classmethod
    def repeats(cls, values: Sequence[float]) -> Evidence:
        """Repeats (R,) of a measurement, in the order in which they were taken."""
        return cls(REPEATS, np.asarray(values, np.float64).reshape(-1, 1), np.empty(0), 0)

    @property
    def summed(self) -> bool:
        """Is it a function of sums over persons?"""
        return self.form in FORMS

    def value(self) -> float:
        """The figure itself; NaN for a distribution."""
        return float(FORMS[self.form](self.columns.sum(0))) if self.summed else float("nan")

    def draw(self, draws: npt.NDArray[np.uint8]) -> Values:
        """(B,) replicates for (B, P) draws; a distribution has its own, of the first draws."""
        return self.replicates if not self.summed else replicates(self.form, self.columns, draws)

    def same(self, other: Evidence) -> bool:
        """Are the two equal to the last bit?"""
        return (
            self.form == other.form
            and self.names == other.names
            and np.array_equal(self.columns, other.columns, equal_nan=True)
            and np.array_equal(self.replicates, other.replicates, equal_nan=True)
        )

    @property
    def telling(self) -> bool:
        """Do the very same numbers mean the very same pictures?

        Sums of real numbers that vary between persons, or replicates that vary, do not agree to the last bit by chance.
        Counts do: two methods of which nobody saw an event have the same ones.
        """
        if self.form == DISTRIBUTION:
            known = self.replicates[~np.isnan(self.replicates)]
            return bool(known.size and np.ptp(known) > 0)
        if self.form not in ("mean", "pearson"):
            return False
        first = self.columns[:, 0 if self.form == "mean" else 1]
        return bool(first.size and np.ptp(first) > 0 and (first != np.rint(first)).any())

    def fault(self) -> str:
        """In words, what cannot be right about it (it was read from a file); "" where nothing is."""
        shape, p = self.columns.shape, len(self.columns)
        if self.persons < 0 or (self.summed and self.columns.size and self.persons > p):
            return f"{self.persons} persons of {p}"
        if not np.isfinite(self.columns).all() or np.isinf(self.replicates).any():
            return f"a {self.form} of numbers that are not finite"
        if self.form == DISTRIBUTION:
            return "a distribution with columns" if self.columns.size else ""
        if not self.columns.size:
            return ""
        if not WIDTHS[self.form](shape[1]):
            return f"a {self.form} does not have {shape[1]} columns"
        if self.form == REPEATS:
            return "" if (self.columns > 0).all() else "repeats of a stop-watch are positive"
        if self.form in RATES:
            k = shape[1] - 1 if self.form == "largest" else shape[1] // (3 if self.form == "macro-f1" else 2)
            if (self.columns < 0).any() or (self.columns[:, :k] > self.columns[:, k : 2 * k] * (1 + 1e-9)).any():
                return f"a {self.form} with more events than trials, or fewer than none"
        return ""

    def means(self) -> Values:
        """(P,) each person's own figure, NaN where one has none; only of rates and means."""
        if self.form not in ("rate", "mean"):
            raise ValueError(f"a {self.form} has no figure per person")
        return _divide(self.columns[:, 0], self.columns[:, 1])


def replicates(form: str, columns: Values, draws: npt.NDArray[np.uint8]) -> Values:
    """The figure in each replicate: columns (P, m) and draws (B, P) to (B,), NaN where it cannot be computed."""
    sums: Any = ratio_replicates(columns, np.ones(len(columns)), draws)  # up to a common factor, which no form sees
    return FORMS[form](sums)


def interval(evidence: Evidence, draws: npt.NDArray[np.uint8], level: float, what: str = "person bootstrap") -> Interval:
    """The interval of the figure from its evidence.  what: said of the method."""
    if evidence.form == "rate":
        return rate_interval(evidence.columns[:, 0], evidence.columns[:, 1], level=level)
    if evidence.form == "largest":
        return largest_interval(evidence.columns[:, :-1], evidence.columns[:, -1], level)
    value = evidence.value()
    if evidence.form in RATES and evidence.persons >= 2:
        if value <= 1e-12:
            return zero_events(evidence.persons, level)
        if value >= 1 - 1e-12:
            return all_events(evidence.persons, level)
    return percentile_interval(evidence.draw(draws), level, evidence.persons, what)
