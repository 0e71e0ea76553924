"""Figures of classification out of counts per person, with their bootstrap replicates: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.metrics.soft_biometrics import FOLDS, folds
from deidbench.stats import intervals
from deidbench.stats.evidence import Evidence
from deidbench.stats.intervals import Interval

#: scikit-learn's C of the linear heads (inverse penalty, loss summed over images).  Features of emotion-cnn, 0.0001, 0.001 and
#: 0.01: UAR on clear images of CK+ 0.897, 0.914, 0.909, of the London set 0.873, 0.887, 0.907; after pixelation (16 blocks to
#: the crop) 0.73, 0.67, 0.62 and 0.79, 0.79, 0.77.
STRENGTH = 0.001
#: Features that vary less among the images learnt from are noise of the machine, not information.
_CONSTANT = 1e-4
#: Scores of a head closer than this tie: the solver stops at a gradient of 1e-8.
_TIE = 1e-6
METHOD = "person bootstrap, classifier fixed"


class Figure(NamedTuple):
    """A figure, NaN where it cannot be computed, and its bootstrap replicates (B,).

    persons: on whom the spread depends (of the smallest class for a mean over classes).  rate: in [0, 1], made of events, so
    that 0 and 1 have one-sided bounds.  evidence: what the figure is made of; minus: of a difference of two rates what the second
    one is made of.
    """

    value: float
    replicates: npt.NDArray[np.float64]
    persons: int
    rate: bool = True
    evidence: Evidence | None = None
    minus: Evidence | None = None

    def interval(self, level: float) -> Interval:
        if np.isnan(self.value):
            return Interval.none(level, "no value")
        if self.minus is not None and self.evidence is not None:
            ours, theirs = self.evidence.columns.T, self.minus.columns.T
            return intervals.difference_interval(ours[0], ours[1], theirs[0], theirs[1], level, what="classifier fixed")
        if self.evidence is not None and self.evidence.form == "rate":
            hits, trials = self.evidence.columns.T
            return intervals.rate_interval(hits, trials, level=level, what="classifier fixed")
        if self.rate and self.persons >= 2:
            if self.value <= 1e-12:
                return intervals.zero_events(self.persons, level)
            if self.value >= 1 - 1e-12:
                return intervals.all_events(self.persons, level)
        return intervals.percentile_interval(self.replicates, level, self.persons, METHOD)

    def less(self, other: Figure) -> Figure:
        """The difference, paired: both were drawn with the same draws."""
        rates = all(f.evidence is not None and f.evidence.form == "rate" for f in (self, other))
        return Figure(
            self.value - other.value,
            self.replicates - other.replicates,
            min(self.persons, other.persons),
            False,
            self.evidence if rates else None,
            other.evidence if rates else None,
        )


def shares(scores: npt.NDArray[np.float64], unread: npt.NDArray[np.bool_], tolerance: float = 0.0) -> npt.NDArray[np.float64]:
    """(n, k + 1): 1 at the class with the highest score; m classes that tie for it get 1/m each, their expected share.

    scores: (n, k).  unread: (n,); such an image is of no class, which the last column says.  tolerance: within which scores tie.
    """
    n, k = scores.shape
    out = np.zeros((n, k + 1))
    if k:
        seen = np.where(unread[:, None], 0.0, scores)
        best = seen >= seen.max(1, keepdims=True) - tolerance
        out[:, :k] = best / best.sum(1, keepdims=True)
    out[unread] = 0
    out[unread, k] = 1
    return out


@dataclass(frozen=True, eq=False)
class Tally:
    """True against predicted class.

    counts: float64 (P, k, k + 1), images per person, true class and predicted class; last column: none could be predicted.
    draws: float64 (B, k, k + 1), the same of all persons in each bootstrap replicate, up to a common factor.
    """

    counts: npt.NDArray[np.float64]
    draws: npt.NDArray[np.float64]

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """(k, k + 1) images."""
        return np.asarray(self.counts.sum(0))

    def persons(self, conditional: bool = False) -> npt.NDArray[np.intp]:
        """(k,): persons with an image of the class (conditional: one that was read)."""
        of = self.counts[:, :, :-1] if conditional else self.counts
        return np.asarray((of.sum(2) > 0).sum(0), np.intp)

    def figure(self, name: str, conditional: bool = False) -> Figure:
        """name: "accuracy", "macro_f1" or "uar".  conditional: without the images that could not be read.

        A replicate (or a figure) that lacks a class has no UAR and no macro F1.
        """
        k = self.counts.shape[1]
        value, draws = (_summary(c, name, conditional) for c in (self.table, self.draws))
        if name == "accuracy":
            of = self.counts[:, :, :k] if conditional else self.counts
            persons = int((of.sum((1, 2)) > 0).sum())
        else:
            persons = int(self.persons(conditional).min(initial=len(self.counts)))
        return Figure(float(value), draws, persons, evidence=self._evidence(name, conditional, persons))

    def _evidence(self, name: str, conditional: bool, persons: int) -> Evidence:
        k = self.counts.shape[1]
        said = self.counts[:, :, :k]
        of_class = (said if conditional else self.counts).sum(2)
        hits = np.diagonal(said, axis1=1, axis2=2)
        if name == "accuracy":
            return Evidence.sums("rate", hits.sum(1), of_class.sum(1), persons=persons)
        if name == "uar":
            return Evidence.sums("macro", hits, of_class, persons=persons)
        return Evidence.sums("macro-f1", hits, of_class, said.sum(1), persons=persons)

    def share(self, true: int, predicted: int) -> Figure:
        """Share of the images of class ``true`` that were said to be ``predicted`` (k: could not be read)."""
        value, draws = (_divide(c[..., true, predicted], c[..., true, :].sum(-1)) for c in (self.table, self.draws))
        kept = Evidence.sums("rate", self.counts[:, true, predicted], self.counts[:, true].sum(1))
        return Figure(float(value), draws, int(self.persons()[true]), evidence=kept)

    def present(self) -> Figure:
        """UAR whose replicates are means over the classes drawn, so that a rare class does not leave them empty."""
        draws = _divide(np.diagonal(self.draws, axis1=-2, axis2=-1), self.draws.sum(-1))
        there = ~np.isnan(draws)
        figure = self.figure("uar")
        persons = int((self.counts.sum((1, 2)) > 0).sum())
        return figure._replace(
            replicates=_divide(np.where(there, draws, 0.0).sum(1), there.sum(1).astype(np.float64)), persons=persons
        )


def _divide(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """a / b, NaN where b is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(b > 0, a / b, np.nan))


def _summary(c: npt.NDArray[np.float64], name: str, conditional: bool) -> npt.NDArray[np.float64]:
    """c: (..., k, k + 1).  Returns (...,)."""
    k = c.shape[-2]
    said = c[..., :k]
    of_class = (said if conditional else c).sum(-1)
    hits: npt.NDArray[np.float64] = np.diagonal(said, axis1=-2, axis2=-1)
    if name == "accuracy":
        return _divide(hits.sum(-1), of_class.sum(-1))
    if name == "uar":
        return np.asarray(_divide(hits, of_class).mean(-1))
    # F1 = 2 TP / (2 TP + FN + FP); a class of which there is no image has none.
    f1 = np.where(of_class > 0, _divide(2.0 * hits, of_class + said.sum(-2)), np.nan)
    return np.asarray(f1.mean(-1))


def tally(
    readings: Sequence[tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]],
    who: npt.NDArray[np.intp],
    draws: npt.NDArray[np.uint8],
) -> list[Tally]:
    """One tally per (code (n,), shares (n, k + 1)); code: true class, -1 for images that do not count.

    who: (n,) person.  draws: (B, P) of the same persons.
    """
    persons = draws.shape[1]
    counts: list[npt.NDArray[np.float64]] = []
    for code, said in readings:
        k = said.shape[1] - 1
        use = np.flatnonzero(code >= 0)
        cell = who[use] * k + code[use]
        columns = [intervals.per_person(cell, said[use, p], persons * k) for p in range(k + 1)]
        counts.append(np.stack(columns, -1).reshape(persons, k, k + 1))
    if not counts:
        return []
    sums = _sums(np.hstack([c.reshape(persons, -1) for c in counts]), draws)
    ends = np.cumsum([c[0].size for c in counts])[:-1]
    return [
        Tally(c, s.reshape(-1, *c.shape[1:])) for c, s in zip(counts, np.split(sums, ends, axis=1), strict=True)
    ]  # fmt: skip


def _sums(columns: npt.NDArray[np.float64], draws: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Per-person sums (P, m) over the persons of each replicate, over P: float64 (B, m)."""
    return intervals.ratio_replicates(columns, np.ones(len(columns)), draws)


def kappa(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], who: npt.NDArray[np.intp], draws: npt.NDArray[np.uint8]
) -> Figure:
    """Cohen's kappa (1960) of two predictions per image: (n, c) shares each, as :func:`shares` returns them.

    Ties are broken by the same lot in both, so that equal shares agree.  NaN without images, or where both say one and the same
    class throughout (agreement by chance is then 1).
    """
    c = a.shape[1]
    columns = np.column_stack([np.minimum(a, b).sum(1), np.ones(len(a)), a, b])
    sums = intervals.per_person(who, columns, draws.shape[1])

    def of(s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        agree = _divide(s[..., 0], s[..., 1])
        first, second = (_divide(s[..., at : at + c], s[..., 1:2]) for at in (2, 2 + c))
        chance = (first * second).sum(-1)
        return np.asarray(np.where(1 - chance > 1e-12, 1 - _divide(1 - agree, 1 - chance), np.nan))

    persons = int((sums[:, 1] > 0).sum())
    kept = Evidence.sums("kappa", sums, persons=persons)
    return Figure(float(of(sums.sum(0))), of(_sums(sums, draws)), persons, rate=False, evidence=kept)


def means(x: npt.NDArray[np.float64], who: npt.NDArray[np.intp], draws: npt.NDArray[np.uint8]) -> list[Figure]:
    """Mean over images of each column of x (n, m); NaN without images."""
    persons = draws.shape[1]
    sums = intervals.per_person(who, x, persons)
    images = np.bincount(who, minlength=persons).astype(np.float64)
    values, replicates = (
        _divide(sums.sum(0), np.full(x.shape[1], images.sum())),
        intervals.ratio_replicates(sums, images, draws),
    )
    there = int((images > 0).sum())
    return [
        Figure(float(v), r, there, rate=False, evidence=Evidence.sums("mean", s, images))
        for v, r, s in zip(values, replicates.T, sums.T, strict=True)
    ]


class Head(NamedTuple):
    """A linear classifier.  mean, scale: (d,) of the features learnt from.  weights: (d, k).  bias: (k,)."""

    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    def shares(self, x: npt.NDArray[np.float64], unread: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Answers (n, k + 1) to features (n, d), as :func:`shares` gives them."""
        z = (np.where(unread[:, None], self.mean, x) - self.mean) * self.scale
        return shares(z @ self.weights + self.bias, unread, _TIE)


def learn_head(x: npt.NDArray[np.float64], code: npt.NDArray[np.intp], classes: int, strength: float = STRENGTH) -> Head:
    """Multinomial logistic regression with L2 penalty, balanced class weights and standardised features.

    x: (n, d) without NaN.  code: (n,) in [0, classes).  A class of which there is no image is never the answer; where there are
    no two classes to tell apart, all answers are equally likely.
    """
    from sklearn.linear_model import LogisticRegression

    d = x.shape[1]
    mean, spread = (x.mean(0), x.std(0)) if len(x) else (np.zeros(d), np.zeros(d))
    scale = np.divide(1.0, spread, out=np.zeros(d), where=spread > _CONSTANT)
    weights, bias = np.zeros((d, classes)), np.zeros(classes)
    there = np.unique(code)
    if len(there) >= 2:
        model = LogisticRegression(C=strength, class_weight="balanced", tol=1e-8, max_iter=5000)
        model.fit((x - mean) * scale, code)
        bias[:] = -np.inf
        if len(there) == 2:  # one column, of the second class
            bias[there] = [0, model.intercept_[0]]
            weights[:, there[1]] = model.coef_[0]
        else:
            bias[there] = model.intercept_
            weights[:, there] = model.coef_.T
    return Head(mean, scale, weights, bias)


class Heads(NamedTuple):
    """What linear heads said of images of persons from whom they did not learn: shares (n, k + 1).

    clear, anonymised: learnt on clear features.  retrained: learnt on anonymised ones, asked about clear images.
    """

    clear: npt.NDArray[np.float64]
    anonymised: npt.NDArray[np.float64]
    retrained: npt.NDArray[np.float64]


def heads(
    clear: npt.NDArray[np.float64],
    anonymised: npt.NDArray[np.float64],
    code: npt.NDArray[np.intp],
    classes: int,
    subjects: npt.NDArray[np.str_],
    ids: npt.NDArray[np.str_],
    seed: int,
    strength: float = STRENGTH,
) -> Heads:
    """Learns and reads in five folds of persons.

    clear, anonymised: features (n, d); rows with NaN could not be read: they are not learnt from.  code: (n,), -1 for images
    that do not count.
    """
    n = len(code)
    x, y = clear, anonymised
    dark, hidden = np.isnan(x).any(1), np.isnan(y).any(1)
    out = Heads(*(np.zeros((n, classes + 1)) for _ in range(3)))
    used = code >= 0
    names, who = np.unique(subjects[used], return_inverse=True)
    fold = np.full(n, -1, np.intp)
    fold[used] = folds(names.tolist(), seed)[who]
    order = np.argsort(ids, kind="stable")  # sums in one order: the figures do not depend on that of the images
    for f in range(FOLDS):
        test = np.flatnonzero(fold == f)
        learn = order[used[order] & (fold[order] != f)]
        plain, other = (
            learn_head(z[rows], code[rows], classes, strength)
            for z, rows in ((x, learn[~dark[learn]]), (y, learn[~hidden[learn]]))
        )
        out.clear[test] = plain.shares(x[test], dark[test])
        out.anonymised[test] = plain.shares(y[test], hidden[test])
        out.retrained[test] = other.shares(x[test], dark[test])
    return out
