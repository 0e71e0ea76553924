"""Person bootstrap of figures that are made of pairs (EER, AUC, Cllr_min, D_sys, FMR).

A replicate draws person i w_i times.  A genuine pair of person i then weighs w_i, an impostor pair of persons i and j
weighs w_i * w_j; a person's duplicates are never compared with each other.  Every threshold is found anew in each
replicate.  All weighted counts are whole numbers that the floats in use hold exactly, so replicates are exact and do not
depend on the order of summation, the number of threads or the BLAS.

The work is one matrix product: replicates by pairs of persons (the weights w_i * w_j) times pairs of persons by score bins
(the counts).  It is done once for all figures (:func:`bootstrap_all`), each of which then sums the bins that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.stats import calibration, linkability, roc
from deidbench.stats.roc import crossing

#: Up to this many persons the AUC is exact, through persons^3 counts; with more, scores are binned.
EXACT_AUC_PERSONS = 100
#: Bins of the scores for AUC and Cllr_min: their edges are quantiles of the genuine and of the impostor scores, half each.
AUC_BINS = 256
#: Quantiles of each sample that divide a bin further where the EER is looked for.
_FINER = 24
#: Pairs of persons, and entries of a block of weights, that are worked on together (64 MB of float32).
_COLUMNS = 1 << 14
_BLOCK = 1 << 24
#: Whole numbers below this are exact in float32.
_EXACT32 = 1 << 24
#: Counts of pairs of persons and score bins that are held at once (512 MB); beyond, they are made block by block.
_CELLS = 1 << 26

Values = npt.NDArray[np.float64]


class Pairs(NamedTuple):
    """Scores with the persons they compare; persons are integers in [0, P).

    genuine: (g,) scores.  genuine_person: (g,).  impostor: (m,) scores.  impostor_a, impostor_b: (m,), never equal.
    """

    genuine: npt.NDArray[np.float32]
    genuine_person: npt.NDArray[np.intp]
    impostor: npt.NDArray[np.float32]
    impostor_a: npt.NDArray[np.intp]
    impostor_b: npt.NDArray[np.intp]


class Binned(NamedTuple):
    """Weighted histograms of each replicate: float64 (B, bins), whole numbers."""

    genuine: Values
    impostor: Values


class Replicates(NamedTuple):
    """Figures of each replicate: float64 (B,), NaN where one has no pairs.  The functions of each name say what they are."""

    eer: Values
    auc: Values
    cllr_min: Values
    d_sys: Values
    fnmr: Values


def bootstrap_all(
    pairs: Pairs, draws: npt.NDArray[np.uint8], fmr: npt.ArrayLike = (), levels: roc.Levels | None = None
) -> Replicates:
    """EER, AUC, Cllr_min and D_sys (omega 1, its own bins) in each replicate, the very numbers of the single functions.

    draws: (B, P) from :func:`deidbench.stats.intervals.person_draws`.  fmr: (f,) false match rates at which ``fnmr`` (B, f) is
    read off the replicate's DET curve (see :func:`_det`).  levels: of the pairs' scores, if they are known.  Costs little more than the most costly of them.
    """
    at = np.asarray(fmr, np.float64)
    if _empty(pairs):
        empty = np.full(len(draws), np.nan)
        return Replicates(empty, empty, empty, empty, np.full((len(draws), len(at)), np.nan))
    own, linked = _score_edges(pairs), linkability.edges(pairs.genuine, pairs.impostor)
    edges = np.unique(np.concatenate([own, linked]))
    split = _split(pairs, edges)
    binned = _histograms(pairs, draws, split)
    coarse, sample = (_coarser(x, edges, own) for x in (binned, _sample(split)))
    levels = levels or roc.levels(pairs.genuine, pairs.impostor)
    return Replicates(
        _eer(pairs, draws, split, binned),
        _auc(levels, sample, coarse) if _many(draws) else _exact_auc(pairs, draws),
        _cllr_min(levels, sample, coarse),
        linkability.d_sys_from_counts(*_coarser(binned, edges, linked)),
        _det(levels, _sample(split), binned, at),
    )


def _det(levels: roc.Levels, sample: Binned, binned: Binned, fmr: Values) -> Values:
    """FNMR at given FMRs in each replicate, on straight lines between the edges of the bins: float64 (B, f), clipped to [0, 1].

    What the bins change in the sample's own curve is taken off every replicate.
    """
    if not len(fmr):
        return np.empty((len(binned.genuine), 0))

    def curves(b: Binned) -> Values:
        under = Binned(*(np.cumsum(x, 1) / np.maximum(x.sum(1, keepdims=True), 1) for x in b))
        start = np.ones((len(under.impostor), 1))
        falling = np.hstack([start, 1 - under.impostor])[:, ::-1]  # ascending, as interp wants it
        missed = np.hstack([0 * start, under.genuine])[:, ::-1]
        # where several edges share an FMR the lowest threshold's FNMR counts, as on the polyline from the right
        return np.array([np.interp(fmr, x, y) for x, y in zip(falling, missed, strict=True)]).reshape(-1, len(fmr))

    exact = levels.roc()
    own = np.interp(fmr, exact.fmr[::-1], exact.fnmr[::-1])
    out: Values = np.clip(curves(binned) + (own - curves(sample)), 0, 1)
    out[(binned.genuine.sum(1) == 0) | (binned.impostor.sum(1) == 0)] = np.nan
    return out


def bootstrap_binned(pairs: Pairs, draws: npt.NDArray[np.uint8], edges: npt.ArrayLike) -> Binned:
    """Weighted histograms in each replicate.

    edges: (e,) strictly ascending.  Bin k of the e + 1 holds the scores in [edges[k - 1], edges[k]); the first has no lower
    end, the last no upper one.
    """
    return _histograms(pairs, draws, _split(pairs, np.asarray(edges, np.float64)))


def bootstrap_eer(pairs: Pairs, draws: npt.NDArray[np.uint8]) -> Values:
    """EER (:func:`deidbench.stats.roc.eer`'s convention) in each replicate: float64 (B,), NaN where one has no pairs.

    Exact.  All replicates together are evaluated at the edges of the bins; each is left with the bin in which its rates
    cross, and the pairs in there are searched.
    """
    if _empty(pairs):
        return np.full(len(draws), np.nan)
    split = _split(pairs, _score_edges(pairs))
    return _eer(pairs, draws, split, _histograms(pairs, draws, split))


def bootstrap_auc(pairs: Pairs, draws: npt.NDArray[np.uint8]) -> Values:
    """AUC, ties half, in each replicate: float64 (B,), NaN where one has no pairs.

    Exact up to 100 persons.  Beyond, the scores are put into 256 quantile bins, and what the bins change in the sample's own
    AUC is taken off every replicate.  What is left is a few 1e-4 in a single replicate and below 1e-4 in the ends of an
    interval (tested), a fiftieth of its width.
    """
    if _empty(pairs):
        return np.full(len(draws), np.nan)
    if not _many(draws):
        return _exact_auc(pairs, draws)
    split = _split(pairs, _score_edges(pairs))
    return _auc(roc.levels(pairs.genuine, pairs.impostor), _sample(split), _histograms(pairs, draws, split))


def bootstrap_cllr_min(pairs: Pairs, draws: npt.NDArray[np.uint8]) -> Values:
    """Cllr_min in each replicate, read anew (PAV) from 256 quantile bins: float64 (B,), NaN where one has no pairs.

    What the bins change in the sample's own Cllr_min is taken off every replicate.
    """
    if _empty(pairs):
        return np.full(len(draws), np.nan)
    split = _split(pairs, _score_edges(pairs))
    return _cllr_min(roc.levels(pairs.genuine, pairs.impostor), _sample(split), _histograms(pairs, draws, split))


def bootstrap_d_sys(pairs: Pairs, draws: npt.NDArray[np.uint8], bins: int | None = None, omega: float = 1.0) -> Values:
    """D_sys in each replicate: float64 (B,), NaN where one has no pairs.

    The bins are those of the sample (:func:`deidbench.stats.linkability.edges`), the same in all replicates.  A replicate
    holds fewer different scores than the sample, so that its D_sys is somewhat higher (see there on few scores).
    """
    if _empty(pairs):
        return np.full(len(draws), np.nan)
    edges = linkability.edges(pairs.genuine, pairs.impostor, bins)
    return linkability.d_sys_from_counts(*bootstrap_binned(pairs, draws, edges), omega)


def recentred(replicates: Values, value: float) -> Values:
    """Replicates of a figure in [0, 1], moved so that their mean is the sample's own ``value``, then clipped.  NaN stays.

    Cllr_min and D_sys are fitted to their scores, and a replicate holds fewer different scores than the sample: without
    identity D_sys of 40 persons with 10 images is 0.044 and its replicates 0.065 +- 0.007 (measured), so that the interval
    of the replicates themselves would leave out the very figure.  The interval of the moved ones is one of the figure as
    it is measured, with these bins and this many scores, not of its limit with infinitely many.
    """
    if np.isnan(replicates).all():
        return replicates
    out: Values = np.clip(replicates + (value - np.nanmean(replicates)), 0, 1)
    return out


def _empty(pairs: Pairs) -> bool:
    return not len(pairs.genuine) or not len(pairs.impostor)


def _many(draws: npt.NDArray[np.uint8]) -> bool:
    return draws.shape[1] > EXACT_AUC_PERSONS


def _quantiles(scores: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
    """At most n members of a sample, evenly spread, the lowest among them.  Sorted."""
    ordered = np.sort(scores)
    return ordered[(np.arange(n) * len(ordered)) // n] if len(ordered) else ordered


def _score_edges(pairs: Pairs) -> Values:
    """Edges of the bins for AUC and Cllr_min; comparisons that could not be made (-inf) get a bin of their own."""
    found = np.concatenate([_quantiles(x, AUC_BINS // 2) for x in (pairs.genuine, pairs.impostor)])
    if found.min() == -np.inf:
        finite = [x[x > -np.inf] for x in (pairs.genuine, pairs.impostor)]
        found = np.concatenate([found, [x.min() for x in finite if len(x)]])
    return np.unique(found[found > -np.inf].astype(np.float64))


class _Split(NamedTuple):
    """Which bin each score falls into: intp (g,) and (m,), and how many bins there are."""

    genuine: npt.NDArray[np.intp]
    impostor: npt.NDArray[np.intp]
    bins: int


def _split(pairs: Pairs, edges: Values) -> _Split:
    # float32 scores are at or above a float64 edge iff they are at or above the next float32.
    lower = edges.astype(np.float32)
    lower = np.where(lower < edges, np.nextafter(lower, np.float32(np.inf)), lower)
    gbin, ibin = (np.searchsorted(lower, x, "right") for x in (pairs.genuine, pairs.impostor))
    return _Split(gbin, ibin, len(edges) + 1)


def _coarser(binned: Binned, edges: Values, kept: Values) -> Binned:
    """The histograms with some of the edges only."""
    first = np.append(0, np.searchsorted(edges, kept) + 1)
    return Binned(*(np.add.reduceat(x, first, axis=1) for x in binned))


def _histograms(pairs: Pairs, draws: npt.NDArray[np.uint8], split: _Split) -> Binned:
    persons, bins = draws.shape[1], split.bins
    mine = np.bincount(pairs.genuine_person * bins + split.genuine, minlength=persons * bins).reshape(persons, bins)
    genuine = draws.astype(np.float64) @ mine.astype(np.float64)
    whole = _Block(0, max(persons - 1, 0), persons)
    if persons > 1 and whole.columns * bins <= _CELLS:
        # One table for all pairs of persons, in one pass over the scores.
        i, j = np.triu_indices(persons, 1)
        number = np.zeros((persons, persons), np.intp)
        number[i, j] = number[j, i] = np.arange(whole.columns)
        cell = number.ravel()[pairs.impostor_a * persons + pairs.impostor_b]
        cell *= bins
        cell += split.impostor
        table = np.bincount(cell, minlength=whole.columns * bins).reshape(-1, bins)
        per_pair = np.zeros((persons, persons))
        per_pair[i, j] = table.sum(1)

        def rows_of(block: _Block, dtype: Any) -> npt.NDArray[Any]:
            first = int(whole.column(block.start)) + block.start + 1
            return table[first : first + block.columns].astype(dtype)

        return Binned(genuine, _forms(draws, per_pair, rows_of, bins))
    a, b = np.minimum(pairs.impostor_a, pairs.impostor_b), np.maximum(pairs.impostor_a, pairs.impostor_b)
    per_pair = _by_persons(a * persons + b, persons)
    blocks = list(_blocks(persons))
    if len(blocks) > 1:
        order = np.argsort(a, kind="stable")
        a, b, ibin = a[order], b[order], split.impostor[order]
    else:
        ibin = split.impostor
    ends = np.append(0, np.cumsum(np.bincount(a, minlength=persons)))

    def counts(block: _Block, dtype: Any) -> npt.NDArray[Any]:
        here = slice(ends[block.start], ends[block.stop]) if len(blocks) > 1 else slice(None)
        cell = (block.column(a[here]) + b[here]) * bins + ibin[here]
        return np.bincount(cell, minlength=block.columns * bins).reshape(-1, bins).astype(dtype)

    return Binned(genuine, _forms(draws, per_pair, counts, bins))


class _Block(NamedTuple):
    """Pairs of persons (i, j) with start <= i < stop and i < j < persons, numbered in this order."""

    start: int
    stop: int
    persons: int

    def column(self, i: Any) -> Any:
        """Number of the pair (i, j), less j."""
        before = i - self.start
        return before * (self.persons - 1 - self.start) - before * (before - 1) // 2 - i - 1

    @property
    def columns(self) -> int:
        return int(self.column(self.stop)) + self.stop + 1


def _blocks(persons: int) -> Iterator[_Block]:
    start = 0
    while start < persons - 1:
        stop = start + 1
        while stop < persons - 1 and _Block(start, stop + 1, persons).columns <= _COLUMNS:
            stop += 1
        yield _Block(start, stop, persons)
        start = stop


def _forms(
    draws: npt.NDArray[np.uint8],
    per_pair: Values,
    matrix: Callable[[_Block, Any], npt.NDArray[Any]],
    columns: int,
) -> Values:
    """sum over i < j of w_i w_j matrix[(i, j), k] for each replicate and k: float64 (B, columns).

    per_pair: (P, P), an upper bound of the sum of matrix[(i, j)] over k, at [i, j] with i < j.  It decides between float32,
    which is twice as fast, and float64: all sums are exact in either.
    """
    persons = draws.shape[1]
    w = draws.astype(np.float64)
    totals = w * (w @ per_pair.T)
    out = np.zeros((len(draws), columns))
    for block in _blocks(persons):
        small = totals[:, block.start : block.stop].sum(1).max(initial=0) < _EXACT32
        dtype = np.float32 if small else np.float64
        right = matrix(block, dtype)
        weights = np.ascontiguousarray(draws.T).astype(dtype)
        step = max(1, min(len(draws), _BLOCK // block.columns))
        left = np.empty((block.columns, step), dtype)
        for first in range(0, len(draws), step):
            rows = weights[:, first : first + step]
            products = left[:, : rows.shape[1]]
            at = 0
            for i in range(block.start, block.stop):
                np.multiply(rows[i], rows[i + 1 :], out=products[at : at + persons - i - 1])
                at += persons - i - 1
            out[first : first + step] += products.T @ right
    return out


def _eer(pairs: Pairs, draws: npt.NDArray[np.uint8], split: _Split, binned: Binned) -> Values:
    totals = Binned(*(x.sum(1, keepdims=True) for x in binned))
    out = np.full(len(draws), np.nan)
    ok = np.flatnonzero((totals.genuine[:, 0] > 0) & (totals.impostor[:, 0] > 0))
    zero = np.zeros((len(ok), 1))
    totals = Binned(*(x[ok] for x in totals))
    out[ok] = _crossings(pairs, draws[ok], split, Binned(*(x[ok] for x in binned)), Binned(zero, zero), totals)
    return out


def _crossings(
    pairs: Pairs, draws: npt.NDArray[np.uint8], split: _Split, binned: Binned, below: Binned, totals: Binned
) -> Values:
    """EER of each replicate, which lies among these pairs.

    split, binned: bins of the pairs and their weights in each replicate.  below: (B, 1) weight of the pairs left out that
    score less.  totals: (B, 1) weight of all.
    """
    under = Binned(*(np.cumsum(np.hstack([b, x]), 1) for b, x in zip(below, binned, strict=True)))
    fmr, fnmr = 1 - under.impostor / totals.impostor, under.genuine / totals.genuine
    # FMR - FNMR falls from 1 to -1: the crossing lies in the bin that starts at the last edge at which it is not negative.
    here = (fmr[:, :-1] >= fnmr[:, :-1]).sum(1) - 1
    k = np.arange(len(here))
    out: Values = np.asarray(crossing(fmr[k, here], fnmr[k, here], fmr[k, here + 1], fnmr[k, here + 1]))
    order = [np.argsort(x.astype(np.uint16), kind="stable") for x in (split.genuine, split.impostor)]  # radix sort
    cut = [np.append(0, np.cumsum(np.bincount(x, minlength=split.bins))) for x in (split.genuine, split.impostor)]
    for s in np.unique(here):
        g, i = (o[c[s] : c[s + 1]] for o, c in zip(order, cut, strict=True))
        inside = Pairs(pairs.genuine[g], pairs.genuine_person[g], pairs.impostor[i], pairs.impostor_a[i], pairs.impostor_b[i])
        levels = np.unique(np.concatenate([inside.genuine, inside.impostor]))
        if len(levels) < 2:
            continue  # the ends of the bin are its only operating points
        rows = np.flatnonzero(here == s)
        start = Binned(*(x[rows, s, None] for x in under))
        whole = Binned(*(x[rows] for x in totals))
        # A pair costs about as much here as four pairs of persons in a matrix product.
        if len(i) > draws.shape[1] ** 2 // 8 + 1000:
            edges = np.unique(np.concatenate([levels[:1], *(_quantiles(x, _FINER) for x in inside[:3:2]), levels[-1:]]))[1:]
            finer = _split(inside, edges.astype(np.float64))
            part = _histograms(inside, draws[rows], finer)
            out[rows] = _crossings(inside, draws[rows], finer, part, start, whole)
        else:
            out[rows] = _searched(inside, draws[rows], levels, start, whole)
    return out


def _searched(
    pairs: Pairs, draws: npt.NDArray[np.uint8], levels: npt.NDArray[np.float32], below: Binned, totals: Binned
) -> Values:
    """As :func:`_crossings`, with every level of these pairs its own bin.  levels: (n,) distinct scores, ascending."""
    order = [np.argsort(x, kind="stable") for x in (pairs.genuine, pairs.impostor)]
    cut = [
        np.append(np.searchsorted(x[o], levels, "left"), len(x))
        for x, o in zip((pairs.genuine, pairs.impostor), order, strict=True)
    ]
    person, a, b = pairs.genuine_person[order[0]], pairs.impostor_a[order[1]], pairs.impostor_b[order[1]]
    out = np.empty(len(draws))
    step = max(1, (1 << 20) // (1 + len(person) + len(a)))
    for first in range(0, len(draws), step):
        rows = slice(first, first + step)
        w = draws[rows].astype(np.float64)
        zero = np.zeros((len(w), 1))
        under_g = np.cumsum(np.hstack([zero, w[:, person]]), 1)[:, cut[0]] + below.genuine[rows]
        under_i = np.cumsum(np.hstack([zero, w[:, a] * w[:, b]]), 1)[:, cut[1]] + below.impostor[rows]
        fmr, fnmr = 1 - under_i / totals.impostor[rows], under_g / totals.genuine[rows]
        here, k = (fmr[:, :-1] >= fnmr[:, :-1]).sum(1) - 1, np.arange(len(w))
        out[rows] = crossing(fmr[k, here], fnmr[k, here], fmr[k, here + 1], fnmr[k, here + 1])
    return out


def _auc(levels: roc.Levels, sample: Binned, replicates: Binned) -> Values:
    """From bins, less what they change in the sample's own figure."""
    out: Values = np.clip(_binned_auc(replicates) + (levels.auc() - _binned_auc(sample)[0]), 0, 1)
    return out


def _binned_auc(binned: Binned) -> Values:
    """AUC in each replicate with scores of the same bin counted as ties."""
    genuine, impostor = binned
    total = genuine.sum(1)
    above = total[:, None] - np.cumsum(genuine, 1)
    wins = (impostor * (above + genuine / 2)).sum(1)
    return _share(wins, impostor.sum(1) * total)


def _exact_auc(pairs: Pairs, draws: npt.NDArray[np.uint8]) -> Values:
    from scipy.sparse import csr_matrix

    persons = draws.shape[1]
    levels, level_of = np.unique(pairs.genuine, return_inverse=True)
    # Slot 2k + 1: impostors that tie with genuine level k; slot 2k: those between level k - 1 and level k.
    slot = np.searchsorted(levels, pairs.impostor, "left") + np.searchsorted(levels, pairs.impostor, "right")
    mine = np.bincount(level_of * persons + pairs.genuine_person, minlength=len(levels) * persons)
    mine = mine.reshape(len(levels), persons)
    over = np.zeros((len(levels) + 1, persons))  # each person's genuine scores at or above level k
    over[:-1] = np.cumsum(mine[::-1], 0)[::-1]
    twice = np.empty((2 * len(levels) + 1, persons))  # twice the wins of each person over an impostor in each slot
    twice[0::2] = 2 * over
    twice[1::2] = over[:-1] + over[1:]
    a, b = np.minimum(pairs.impostor_a, pairs.impostor_b), np.maximum(pairs.impostor_a, pairs.impostor_b)
    per_pair = _by_persons(a * persons + b, persons)

    def wins_of(block: _Block, dtype: Any) -> npt.NDArray[Any]:
        here = (a >= block.start) & (a < block.stop)
        column = block.column(a[here]) + b[here]
        count = csr_matrix((np.ones(len(column)), (column, slot[here])), (block.columns, len(twice)))
        return np.asarray(count @ twice, dtype)

    w = draws.astype(np.float64)
    bound = per_pair * (2 * len(pairs.genuine))
    wins = (w * _forms(draws, bound, wins_of, persons)).sum(1)
    return _share(wins, 2 * _quadratic(w, per_pair) * (w @ _genuine_counts(pairs, persons)))


def _cllr_min(levels: roc.Levels, sample: Binned, replicates: Binned) -> Values:
    """From bins, less what they change in the sample's own figure."""
    from_counts = calibration.cllr_min_from_counts
    shift = from_counts(levels.genuine[None], levels.impostor[None])[0] - from_counts(*sample)[0]
    out: Values = np.clip(from_counts(*replicates) + shift, 0, 1)
    return out


def _sample(split: _Split) -> Binned:
    """The sample's own histograms, as one replicate: (1, bins)."""
    return Binned(*(np.bincount(x, minlength=split.bins).astype(np.float64)[None] for x in split[:2]))


def _genuine_counts(pairs: Pairs, persons: int) -> Values:
    return np.bincount(pairs.genuine_person, minlength=persons).astype(np.float64)


def _quadratic(weights: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sum_ij w_i counts_ij w_j for each row of weights (B, P); counts (P, P).  Returns (B,)."""
    out: npt.NDArray[np.float64] = np.einsum("bp,bp->b", weights @ counts, weights)
    return out


def _by_persons(code: npt.NDArray[np.intp], persons: int) -> npt.NDArray[np.float64]:
    """Pairs counted per (a, b): float64 (persons, persons).  code: a * persons + b."""
    return np.bincount(code, minlength=persons * persons).astype(np.float64).reshape(persons, persons)


def _share(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def bootstrap_pair_rate(
    accepted: npt.NDArray[np.bool_],
    person_a: npt.NDArray[np.intp],
    person_b: npt.NDArray[np.intp],
    weights: npt.NDArray[np.uint8],
) -> npt.NDArray[np.float64]:
    """Share of accepted pairs, each weighing w_a * w_b, in each replicate: float64 (B,), NaN where one has no pairs.

    With weights from :func:`deidbench.stats.intervals.double_or_nothing_draws` this is the double-or-nothing identity
    bootstrap of an FMR (Fogliato et al. 2024), which does not under-cover where pairs share persons.
    """
    persons = weights.shape[1]
    w = weights.astype(np.float64)
    code = person_a * persons + person_b
    return _share(_quadratic(w, _by_persons(code[accepted], persons)), _quadratic(w, _by_persons(code, persons)))
