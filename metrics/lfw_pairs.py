"""Pair verification by the protocol of Labeled Faces in the Wild: given pairs in folds, a threshold per fold, accuracy.

View 2 of LFW (Huang, Ramesh, Berg & Learned-Miller 2007) has ten folds of 300 pairs of one person and 300 pairs of
two.  The threshold of each fold is chosen on the other nine; the figure is the mean accuracy over the folds, with its standard
error S = s / sqrt(10), s the standard deviation (n - 1) of the ten accuracies.  Recognisers publish this figure on clear images;
here it is also measured between clear and anonymised, and between anonymised images.

Official folds hold as many pairs of one person as of two.  Of a part of the images the pairs that are left may be nearly all of
one kind, and saying always the same would be right nearly always: so accuracy is here the mean of the two kinds' shares of right
answers, and thresholds are chosen by it.  On whole folds that is the published figure, and chance is always one half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import metrics
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Table
from deidbench.metrics.distance import paired
from deidbench.metrics.reid.figures import notes, put, refuse
from deidbench.records import CONVENTIONS, Row
from deidbench.stats import intervals, roc, wilson
from deidbench.stats.evidence import Evidence
from deidbench.stats.intervals import Interval

if TYPE_CHECKING:
    from deidbench.datasets.base import Dataset
    from deidbench.datasets.lfw import ImagePair

FAMILY = "lfw_pairs"
#: Word instead of a file: pairs are drawn from the images at hand.
DRAWN = "drawn"
FOLDS, PER_FOLD = 10, 300
#: Attacker -> whether the first image of a pair is anonymised too (the second always is).
ATTACKERS: Mapping[str, bool] = {"ignorant": False, "lazy-informed": True}

Scores = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]


class Trials(NamedTuple):
    """Pairs as columns: rows of both images in the table, fold from 0, whether they show one person."""

    first: Places
    second: Places
    fold: Places
    same: Flags

    @property
    def n(self) -> int:
        return len(self.first)


class Verdicts(NamedTuple):
    """What the protocol makes of scores.

    correct, same: per pair; a pair without a score is never correct.  thresholds: per fold that has pairs.
    accuracies: per fold that has both kinds of pairs.
    """

    correct: Flags
    same: Flags
    thresholds: Scores
    accuracies: Scores

    @property
    def accuracy(self) -> float:
        """Over all pairs; on official folds the mean over the folds."""
        return share(self.correct, self.same)

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the folds; None where no fold has both kinds of pairs."""
        return float(self.accuracies.mean()) if len(self.accuracies) else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean over the folds, as published; None with fewer than two folds of both kinds."""
        k = len(self.accuracies)
        return float(self.accuracies.std(ddof=1) / np.sqrt(k)) if k > 1 else None


def weights(same: Flags) -> Scores:
    """What each pair weighs in the accuracy: both kinds weigh one half, so that the weights sum to 1.  Both must be there."""
    genuine = int(same.sum())
    return np.where(same, 0.5 / genuine, 0.5 / (len(same) - genuine))


def share(correct: Flags, same: Flags) -> float:
    """The mean of both kinds' shares of right answers: ``weights(same) @ correct`` without its rounding."""
    return float((correct[same].mean() + correct[~same].mean()) / 2)


def best_threshold(scores: Scores, same: Flags) -> float:
    """The threshold (accepted iff score >= threshold) with the highest accuracy, both kinds of pairs weighing one half.

    scores: (n,) without NaN, of both kinds of pairs.  Every threshold between two neighbouring scores does the same; their
    middle is taken, below and above all scores half a unit away.  Of several that are equally good the middle one counts, which
    favours neither side.
    """
    values = np.unique(scores)
    genuine, impostor = int(same.sum()), int((~same).sum())
    missed = np.append(np.searchsorted(np.sort(scores[same]), values, "left"), genuine)  # the last one accepts nothing
    refused = np.append(np.searchsorted(np.sort(scores[~same]), values, "left"), impostor)
    right = (genuine - missed) * impostor + refused * genuine  # in whole numbers, so that ties are ties
    cuts = np.concatenate([[values[0] - 0.5], (values[1:] + values[:-1]) / 2, [values[-1] + 0.5]])
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[(len(best) - 1) // 2]])


def judge(scores: Scores, same: Flags, fold: Places) -> Verdicts:
    """The protocol on the scores of pairs (n,), NaN where two images could not be compared: such a pair is wrong.

    Raises InputError with fewer than two folds, or where the other folds of one have no scores of either kind of pair.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise InputError(
            "the pairs at hand are of one fold: no other fold to choose its threshold on", "use more of the images"
        )
    known = ~np.isnan(scores)
    correct = np.zeros(len(scores), np.bool_)
    thresholds, accuracies = [], []
    for k in folds:
        train, test = known & (fold != k), fold == k
        if not same[train].any() or same[train].all():
            raise InputError(
                f"without fold {k + 1} there are not both kinds of pairs to choose a threshold on", "use more of the images"
            )
        threshold = best_threshold(scores[train], same[train])
        with np.errstate(invalid="ignore"):
            correct[test] = ((scores[test] >= threshold) == same[test]) & known[test]
        thresholds.append(threshold)
        if same[test].any() and not same[test].all():
            accuracies.append(share(correct[test], same[test]))
    return Verdicts(correct, same, np.array(thresholds), np.array(accuracies))


def accuracy_interval(verdicts: Verdicts, a: Places, b: Places, level: float) -> Interval:
    """Wilson's interval of the accuracy, with a variance that knows which pairs share a person.

    a, b: persons of each pair, equal in a genuine one.  Two pairs are dependent where they share a person, as in
    :func:`deidbench.stats.wilson.pair_rate_variance`, whose formula this is with genuine pairs added: with r_k = u_k (c_k - p)
    (u_k: :func:`weights`), S_i the sum over the pairs that person i is in, and y_ij over those of i and j,
    v = sum_i S_i^2 - sum_{i<j} y_ij^2.  Thresholds are taken as chosen.
    """
    correct, u = verdicts.correct, weights(verdicts.same)
    persons = np.unique(np.concatenate([a, b]))
    if len(persons) < 2:
        return Interval.none(level, "one person: nothing is known about the spread between persons")
    if correct.all():
        return intervals.all_events(len(persons), level)
    if not correct.any():
        return intervals.zero_events(len(persons), level)
    rate = verdicts.accuracy
    r = u * (correct - rate)
    lo, hi = np.searchsorted(persons, np.minimum(a, b)), np.searchsorted(persons, np.maximum(a, b))
    code, group = np.unique(lo * len(persons) + hi, return_inverse=True)
    y, m = np.bincount(group, r), np.bincount(group, u)
    i, j = code // len(persons), code % len(persons)
    two = i != j
    total = np.bincount(i, y, len(persons)) + np.bincount(j[two], y[two], len(persons))
    own = float((y * y).sum())
    shared = float((total * total).sum()) - float((y[two] ** 2).sum()) - own
    variance = own + max(0.0, shared)
    if not variance > 0:
        return Interval.none(level, intervals.NO_VARIANCE)
    square = float(u @ u)
    size = wilson.effective_size(rate, variance, 1 / square, float(m @ m) / square, wilson.supporting(y))
    critical = wilson.critical_value(level, max(wilson.supporting(total), min(len(persons), 4)))
    bounds = wilson.score_bounds(rate, size, critical)
    return Interval(*bounds, level, "Wilson score, pairs that share persons, thresholds as chosen")


def replicated(verdicts: Verdicts, a: Places, b: Places, draws: npt.NDArray[np.uint8]) -> Scores:
    """Person bootstrap of the accuracy, thresholds as chosen: float64 (B,), NaN where a replicate lacks a kind of pair.

    draws, a, b: as in :func:`pair_weights`.
    """
    out = np.empty(len(draws))
    same, correct = verdicts.same, verdicts.correct
    for k, weight in enumerate(pair_weights(same, a, b, draws)):
        kinds = [(weight[kind & correct].sum(), weight[kind].sum()) for kind in (same, ~same)]
        out[k] = sum(right / total for right, total in kinds) / 2 if all(total for _, total in kinds) else np.nan
    return out


def pair_weights(same: Flags, a: Places, b: Places, draws: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.int64]]:
    """For each replicate (n,): a genuine pair weighs w_i, one of two persons w_i w_j.

    draws: (B, P), columns are the persons that a and b number.
    """
    for w in draws:
        weight = w[a].astype(np.int64)
        weight[~same] *= w[b[~same]]
        yield weight


def bootstrap_scores(scores: Scores, same: Flags, a: Places, b: Places, draws: npt.NDArray[np.uint8]) -> tuple[Scores, Scores]:
    """EER and AUC in each replicate: two float64 (B,), NaN where one lacks a kind of pair.

    The conventions and the figures are those of :func:`deidbench.stats.pairs.bootstrap_eer` and ``bootstrap_auc``, which want all
    pairs of all persons; of a list of pairs most persons meet few others, and a pass over the list is enough.
    """
    values, level = np.unique(scores, return_inverse=True)
    out = np.full((2, len(draws)), np.nan)
    for k, weight in enumerate(pair_weights(same, a, b, draws)):
        genuine, impostor = (np.bincount(level[kind], weight[kind], len(values)) for kind in (same, ~same))
        below = [np.concatenate([[0.0], np.cumsum(x)]) for x in (genuine, impostor)]
        g, i = below[0][-1], below[1][-1]
        if not g or not i:
            continue
        fmr, fnmr = 1 - below[1] / i, below[0] / g  # accepting from each level on, and nothing
        at = int(np.flatnonzero(fmr >= fnmr)[-1])
        out[0, k] = roc.crossing(fmr[at], fnmr[at], fmr[at + 1], fnmr[at + 1])
        out[1, k] = float(genuine @ (below[1][:-1] + impostor / 2)) / (g * i)
    return out[0], out[1]


def _genuine(
    by: Mapping[str, Places],
    several: Sequence[str],
    wanted: int,
    rng: np.random.Generator,
    seen: set[tuple[int, int]] | None = None,
) -> list[tuple[int, int]]:
    """So many new pairs of images of one person.  several: persons with two images or more.  seen: pairs that there are."""
    known = set(seen or ())
    new: set[tuple[int, int]] = set()
    while len(new) < wanted:
        i, j = sorted(rng.choice(by[several[int(rng.integers(len(several)))]], 2, replace=False).tolist())
        new |= {(i, j)} - known
    return sorted(new)


def _impostors(
    by: Mapping[str, Places],
    people: Sequence[str],
    wanted: int,
    rng: np.random.Generator,
    seen: set[tuple[int, int]] | None = None,
) -> list[tuple[int, int]]:
    """So many new pairs of images of two persons."""
    known = set(seen or ())
    new: set[tuple[int, int]] = set()
    while len(new) < wanted:
        p, q = rng.choice(len(people), 2, replace=False)
        i, j = sorted((int(rng.choice(by[people[p]])), int(rng.choice(by[people[q]]))))
        new |= {(i, j)} - known
    return sorted(new)


def _possible(by: Mapping[str, Places], people: Sequence[str]) -> tuple[int, int]:
    """How many genuine and impostor pairs these people's images make."""
    images = np.array([len(by[p]) for p in people], np.int64)
    return int((images * (images - 1)).sum() // 2), int((images.sum() ** 2 - (images**2).sum()) // 2)


def filled(trials: Trials, subjects: npt.NDArray[np.str_], seed: int) -> Trials:
    """Every fold with as many pairs of one kind as of the other: the scarcer kind is drawn by the recipe, of the fold's own people
    and their images at hand, as far as they go.
    """
    by = {p: np.flatnonzero(subjects == p) for p in np.unique(subjects)}
    added: list[tuple[int, int, int, bool]] = []
    for k in np.unique(trials.fold).tolist():
        here = trials.fold == k
        i, j = trials.first[here], trials.second[here]
        seen = {(min(x), max(x)) for x in zip(i.tolist(), j.tolist(), strict=True)}
        people = sorted({*subjects[i].tolist(), *subjects[j].tolist()})
        genuine = int(trials.same[here].sum())
        impostor = int(here.sum()) - genuine
        rng = np.random.default_rng([seed, int(k), 1])
        room = _possible(by, people)
        if impostor < genuine:
            lack = min(genuine, room[1]) - impostor
            added += [(x, y, int(k), False) for x, y in _impostors(by, people, lack, rng, seen)]
        else:
            several = [p for p in people if len(by[p]) > 1]
            lack = min(impostor, room[0]) - genuine
            added += [(x, y, int(k), True) for x, y in _genuine(by, several, lack, rng, seen)]
    columns = np.array(added, np.intp).reshape(-1, 4)
    return Trials(
        np.concatenate([trials.first, columns[:, 0]]),
        np.concatenate([trials.second, columns[:, 1]]),
        np.concatenate([trials.fold, columns[:, 2]]),
        np.concatenate([trials.same, columns[:, 3].astype(np.bool_)]),
    )


def draw(ids: Sequence[str], subjects: npt.NDArray[np.str_], folds: int, per_fold: int, seed: int) -> Trials:
    """Pairs by LFW's recipe (Huang et al. 2007) from the images at hand; nothing but these and the seed decides.

    Persons are dealt to the folds at random, none to two.  A genuine pair: a person with two images or more, uniformly at random,
    and two of its images; an impostor pair: two persons, uniformly, and an image of each; a pair that was drawn is drawn anew.
    A fold has per_fold of either kind, or as many as its scarcer kind allows, so that it stays balanced.
    """
    by = {p: np.flatnonzero(subjects == p) for p in np.unique(subjects)}
    order = sorted(by, key=lambda p: hashlib.sha256(f"{seed}|lfw-pairs|{p}".encode()).digest())
    rows: list[tuple[int, int, int, bool]] = []
    for k in range(folds):
        mine = order[k::folds]
        several = [p for p in mine if len(by[p]) > 1]
        wanted = min(per_fold, *_possible(by, mine))
        rng = np.random.default_rng([seed, k])
        rows += [(i, j, k, True) for i, j in _genuine(by, several, wanted, rng)]
        rows += [(i, j, k, False) for i, j in _impostors(by, mine, wanted, rng)]
    columns = np.array(rows, np.intp).reshape(-1, 4)
    return Trials(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3].astype(np.bool_))


@dataclass(frozen=True, eq=False)
class _Scored:
    """Scores of all pairs under one attacker with one recogniser.  found: a face was found in both images."""

    scores: Scores
    found: Flags


@metrics.register("lfw-pairs")
class LfwPairs(Metric):
    """Accuracy on given pairs (LFW's View 2): folds, a threshold chosen on the other folds, mean and standard error.

    pairs: a file like LFW's ``pairs.txt``; "" takes the data set's own (``lfw``); "drawn" draws balanced pairs from the images at
        hand by LFW's recipe, on any data set with persons.
    folds, per_fold: of drawn pairs.
    fill: True draws, where the images at hand leave a fold of a list with fewer pairs of one kind, the others by the same recipe
        among the fold's people.  The figure is then no longer that of the list, and says so.

    Attackers: ``ignorant`` has a clear first and an anonymised second image, ``lazy-informed`` anonymises both.  On the control
    row ``original`` both are the figure that recognisers publish.  Pairs of a list whose images are not at hand are left out and
    counted; folds stay what they are.  A pair of which an image was not released is wrong.
    """

    version = "1"
    citation = "Huang, Ramesh, Berg & Learned-Miller, Labeled Faces in the Wild, Univ. of Massachusetts Amherst, TR 07-49, 2007"
    quantities = (
        Quantity(f"{FAMILY}.accuracy", "Accuracy of pair verification (LFW's protocol)", "rate", False, "privacy", FAMILY),
        Quantity(
            f"{FAMILY}.standard_error", "Standard error of the mean accuracy over the folds", "rate", None, "privacy", FAMILY
        ),
        Quantity(f"{FAMILY}.eer", "Equal error rate on the pairs", "rate", True, "privacy", FAMILY),
        Quantity(f"{FAMILY}.auc", "Area under the ROC curve on the pairs", "rate", False, "privacy", FAMILY),
    )

    def __init__(self, pairs: str = "", folds: int = FOLDS, per_fold: int = PER_FOLD, fill: bool = False) -> None:
        self.pairs = pairs
        self.folds = folds
        self.per_fold = per_fold
        self.fill = fill

    def bind(self, dataset: Dataset) -> None:
        """Reads the list of pairs.  Raises MissingError where there is none, InputError for one that is not usable."""
        if not dataset.identities:
            raise InputError(
                f"metric 'lfw-pairs': the data set {dataset.name!r} names no persons", "take the metric out of the suite"
            )
        if self.pairs == DRAWN:
            if self.folds < 2 or self.per_fold < 1:
                raise InputError(
                    f"metric 'lfw-pairs': folds = {self.folds}, per_fold = {self.per_fold} make no pairs in folds",
                    f"e.g. folds = {FOLDS}, per_fold = {PER_FOLD}",
                )
            self.pairs_: tuple[ImagePair, ...] = ()
            return
        if self.pairs:
            from deidbench.datasets.lfw import read_pairs

            path = Path(self.pairs).expanduser()
            if not path.is_file():
                raise MissingError(f"metric 'lfw-pairs': {path} is not there", 'name LFW\'s pairs.txt, or pairs = "drawn"')
            self.pairs_ = tuple(read_pairs(path))
            return
        own = getattr(dataset, "pairs", None)
        if own is None:
            raise InputError(
                f"metric 'lfw-pairs': the data set {dataset.name!r} has no pairs of its own",
                'pairs = "drawn" draws balanced ones from its images, pairs = FILE takes a list in the form of LFW\'s pairs.txt',
            )
        self.pairs_ = tuple(own())

    def params(self) -> dict[str, Any]:
        """The pairs themselves, wherever their file lies."""
        if self.pairs == DRAWN:
            return {"pairs": DRAWN, "folds": self.folds, "per_fold": self.per_fold}
        text = "\n".join(f"{p.fold}\t{p.first}\t{p.second}\t{p.same}" for p in getattr(self, "pairs_", ()))
        return {"pairs": hashlib.sha256(text.encode()).hexdigest(), **({"fill": True} if self.fill else {})}

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not."""
        if not (np.array_equal(clear.ids, anonymised.ids) and np.array_equal(clear.subjects, anonymised.subjects)):
            raise InputError(
                f"{anonymised.method!r} and the clear images of {clear.dataset!r} are not the same images in the same order",
                "run the same deidbench run command again",
            )
        trials, said = self._trials(clear, protocol)
        rows: list[Row] = []
        for recognizer in sorted(clear.embeddings.keys() & anonymised.embeddings.keys()):
            for attacker in ATTACKERS:
                rows += _Attack(clear, anonymised, trials, said, recognizer, attacker, protocol).rows()
        return Findings(rows, [])

    def _trials(self, clear: Table, protocol: Protocol) -> tuple[Trials, str]:
        """The pairs at hand, and in words which they are."""
        if self.pairs == DRAWN:
            drawn = draw(clear.ids.tolist(), clear.subjects, self.folds, self.per_fold, protocol.seed)
            return drawn, f"{drawn.n:,} pairs drawn by LFW's recipe, {len(np.unique(drawn.fold))} folds"
        at: dict[str, int] = {}
        for i, name in enumerate(clear.ids.tolist()):
            stem = PurePosixPath(name).stem
            if stem in at:
                raise InputError(
                    f"metric 'lfw-pairs': two images are called {stem} ({clear.ids[at[stem]]} and {name})",
                    "a list of pairs names images by their file alone; give files names of their own",
                )
            at[stem] = i
        listed: tuple[ImagePair, ...] = getattr(self, "pairs_", ())
        usable = [p for p in listed if p.first in at and p.second in at]
        wrong = [p for p in usable if (clear.subjects[at[p.first]] == clear.subjects[at[p.second]]) != p.same]
        if wrong:
            p = wrong[0]
            raise InputError(
                f"metric 'lfw-pairs': {p.where} says that {p.first} and {p.second} show {'one person' if p.same else 'two persons'}, "
                "the data set says otherwise",
                "take list and images from one release",
            )
        columns = np.array([(at[p.first], at[p.second], p.fold, p.same) for p in usable], np.intp).reshape(-1, 4)
        trials = Trials(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3].astype(np.bool_))
        total, every = len(np.unique(trials.fold)), len({p.fold for p in listed})
        of = "all" if trials.n == len(listed) else f"{trials.n:,} of"
        said = f"{of} {len(listed):,} pairs, {total} of {every} folds"
        if not self.fill:
            return trials, said
        whole = filled(trials, clear.subjects, protocol.seed)
        return whole, f"{said}, and {whole.n - trials.n:,} drawn"


class _Attack:
    """One attacker with one recogniser on one method."""

    def __init__(
        self, clear: Table, anonymised: Table, trials: Trials, said: str, recognizer: str, attacker: str, protocol: Protocol
    ) -> None:
        self.clear, self.anonymised, self.trials = clear, anonymised, trials
        self.recognizer, self.protocol, self.said = recognizer, protocol, said
        self.persons, self.person = np.unique(clear.subjects, return_inverse=True)
        first = anonymised if ATTACKERS[attacker] else clear
        self.scored = self._score(first, anonymised)
        self.base = Row(
            anonymised.dataset, anonymised.method, "", "rate", None, None, recognizer=recognizer, attacker=attacker,
            comparison=said, family=FAMILY,
        )  # fmt: skip

    def _score(self, first: Table, second: Table) -> _Scored:
        """Cosine similarity of the pairs, NaN where an image was not released or has no embedding."""
        t = self.trials
        x, y = first.embeddings[self.recognizer][t.first], second.embeddings[self.recognizer][t.second]
        scores = paired(x, y)
        gone = first.withheld[t.first] | second.withheld[t.second]
        scores[gone] = np.nan
        return _Scored(scores, ~(gone | first.fta[t.first] | second.fta[t.second] | np.isnan(scores)))

    def _named(self, row: Row, name: str) -> Row:
        q = next(q for q in LfwPairs.quantities if q.name == f"{FAMILY}.{name}")
        return replace(row, metric=q.name, unit=q.unit, higher_is_better=q.higher_is_better)

    def rows(self) -> list[Row]:
        sane, told = self._sanity()
        # Without failures the conventions are one and the same figure; it is computed once.
        same = bool(self.scored.found.all())
        out: list[Row] = []
        for convention in CONVENTIONS[:1] if same else CONVENTIONS:
            out += self._rows(replace(self.base, convention=convention, trusted=sane), told, convention)
        return [replace(row, convention=convention) for convention in CONVENTIONS for row in out] if same else out

    def _sanity(self) -> tuple[bool, str]:
        """The recogniser on clear images: (fit for the task, in words)."""
        scores, t = self._score(self.clear, self.clear).scores, self.trials
        known = ~np.isnan(scores)
        genuine, impostor = scores[known & t.same], scores[known & ~t.same]
        if not len(genuine) or not len(impostor):
            return False, "untrusted: nothing is known about this recogniser on clear pairs"
        error = roc.eer(genuine, impostor).value
        try:
            verdicts = judge(scores, t.same, t.fold)
            clear = f"clear images: accuracy {verdicts.accuracy:.4f}, EER {error:.4f}"
        except InputError:
            clear = f"clear images: EER {error:.4f}"
        if error > self.protocol.max_clear_eer:
            return False, f"untrusted, sanity check failed: clear EER {error:.3f} is above {self.protocol.max_clear_eer:g}"
        return True, clear

    def _rows(self, base: Row, told: str, convention: str) -> list[Row]:
        t, scored = self.trials, self.scored
        lost, fta = np.isnan(scored.scores), ~scored.found & ~np.isnan(scored.scores)
        use = scored.found if convention == "without_fta" else np.ones(t.n, np.bool_)
        scores = np.where(fta, np.nan, scored.scores) if convention == "fta_as_miss" else scored.scores
        places = np.unique(np.concatenate([t.first[use], t.second[use]])) if use.any() else np.empty(0, np.intp)
        counts = notes(
            f"{int(lost.sum())} pairs could not be compared" if lost.any() else "",
            f"{int(fta.sum())} pairs with an image in which no face was found" if fta.any() else "",
        )
        row = replace(
            base,
            n_images=len(places),
            n_persons=len(np.unique(self.person[places])),
            n_failed=int(lost.sum()),
            n_fta=int(fta.sum()),
            note=notes(
                f"{int((use & t.same).sum()):,} genuine and {int((use & ~t.same).sum()):,} impostor pairs", counts, told
            ),
        )
        named = partial(self._named, row)
        names = [q.name.partition(".")[2] for q in LfwPairs.quantities]
        if not use.any():
            why = (
                "none of the listed pairs has both images in the data set"
                if not t.n
                else "no pair in which both faces were found"
            )
            return [refuse(named(name), why) for name in names]
        a, b, same = self.person[t.first[use]], self.person[t.second[use]], t.same[use]
        return [*self._accuracy(named, scores[use], same, t.fold[use], a, b), *self._whole(named, scores[use], same, a, b)]

    def _accuracy(self, named: Any, scores: Scores, same: Flags, fold: Places, a: Places, b: Places) -> list[Row]:
        accuracy, spread = replace(named("accuracy"), chance=0.5), named("standard_error")
        try:
            verdicts = judge(scores, same, fold)
        except InputError as error:
            return [refuse(accuracy, error.message), refuse(spread, error.message)]
        interval = accuracy_interval(verdicts, a, b, self.protocol.confidence)
        evidence = Evidence.distribution(replicated(verdicts, a, b, self._draws()), len(np.unique([a, b])))
        spread_seen, folds = verdicts.standard_error, len(verdicts.accuracies)
        text = (
            "" if spread_seen is None else f"mean over {folds} folds {verdicts.mean:.4f} ± {spread_seen:.4f} (standard error)"
        )
        accuracy = replace(accuracy, note=notes(text, accuracy.note), threshold=float(np.median(verdicts.thresholds)))
        rows = [put(accuracy, verdicts.accuracy, interval, evidence)]
        if spread_seen is None:
            return [*rows, refuse(spread, f"{folds} folds have both kinds of pairs, two are needed")]
        none = Interval.none(self.protocol.confidence, "it is a measure of spread itself")
        return [*rows, put(replace(spread, note=notes(text, spread.note)), spread_seen, none)]

    def _whole(self, named: Any, scores: Scores, same: Flags, a: Places, b: Places) -> list[Row]:
        """EER and AUC; a pair that could not be compared is never accepted."""
        values = np.where(np.isnan(scores), -np.inf, scores)
        rows = [replace(named("eer"), chance=0.5), replace(named("auc"), chance=0.5)]
        if not same.any() or same.all():
            why = f"there are no {'genuine' if not same.any() else 'impostor'} pairs"
            return [refuse(row, why) for row in rows]
        found = [roc.eer(values[same], values[~same]).value, roc.auc(values[same], values[~same])]
        drawn = bootstrap_scores(values, same, a, b, self._draws())
        persons = len(np.unique(a[same]))
        return [
            put(row, value, self._read_off(value, reps, persons), Evidence.distribution(reps, persons))
            for row, value, reps in zip(rows, found, drawn, strict=True)
        ]

    def _read_off(self, value: float, replicates: Scores, persons: int) -> Interval:
        if persons >= 2 and value in (0, 1):
            return (intervals.zero_events if value == 0 else intervals.all_events)(persons, self.protocol.confidence)
        return intervals.percentile_interval(replicates, self.protocol.confidence, persons, "person bootstrap of pairs")

    def _draws(self) -> npt.NDArray[np.uint8]:
        return intervals.person_draws(self.persons.tolist(), self.protocol.curve_replicates, self.protocol.seed)
