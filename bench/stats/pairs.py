"""Person bootstrap of figures that are made of pairs (EER, AUC, FMR).

A replicate draws person i w_i times.  A genuine pair of person i then weighs w_i, an impostor pair of persons i and j
weighs w_i * w_j; a person's duplicates are never compared with each other.  Every threshold is found anew in each
replicate.  All weighted counts are whole numbers below 2**53 held in float64, so replicates are exact and do not depend
on the order of summation, the number of threads or the BLAS.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.stats import roc
from deidbench.stats.roc import crossing

#: Up to this many persons the AUC is exact, through persons^3 counts; with more, scores are binned.
EXACT_AUC_PERSONS = 100
AUC_BINS = 256
#: Quantiles of each sample at which all replicates are evaluated together, twice, before the exact search.
_COARSE = 24


class Pairs(NamedTuple):
    """Scores with the persons they compare; persons are integers in [0, P).

    genuine: (g,) scores.  genuine_person: (g,).  impostor: (m,) scores.  impostor_a, impostor_b: (m,), never equal.
    """

    genuine: npt.NDArray[np.float32]
    genuine_person: npt.NDArray[np.intp]
    impostor: npt.NDArray[np.float32]
    impostor_a: npt.NDArray[np.intp]
    impostor_b: npt.NDArray[np.intp]


def _quadratic(weights: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sum_ij w_i counts_ij w_j for each row of weights (B, P); counts (P, P).  Returns (B,)."""
    out: npt.NDArray[np.float64] = np.einsum("bp,bp->b", weights @ counts, weights)
    return out


class _Bracket(NamedTuple):
    """Where each replicate's EER lies.

    edges: (e,) ascending scores, the first -inf.  icut, gcut: (e + 1,) impostors and genuine scores under each edge, then
    all.  ibelow, gbelow: (B, e + 1) the same, weighted.  segment: (B,) the crossing lies in [edges[s], edges[s + 1]).
    """

    edges: npt.NDArray[np.float32]
    icut: npt.NDArray[np.intp]
    gcut: npt.NDArray[np.intp]
    ibelow: npt.NDArray[np.float64]
    gbelow: npt.NDArray[np.float64]
    segment: npt.NDArray[np.intp]


def _bracket(pairs: Pairs, w: npt.NDArray[np.float64], edges: npt.NDArray[np.float32]) -> _Bracket:
    """pairs: sorted by score.  All replicates at all edges at once, by matrix products of person-by-person counts."""
    persons = w.shape[1]
    icut = np.append(np.searchsorted(pairs.impostor, edges, "left"), len(pairs.impostor))
    gcut = np.append(np.searchsorted(pairs.genuine, edges, "left"), len(pairs.genuine))
    code = pairs.impostor_a * persons + pairs.impostor_b
    ibelow, gbelow = np.zeros((2, len(w), len(edges) + 1))
    counts = np.zeros((persons, len(edges)))
    for s in range(len(edges)):
        ibelow[:, s + 1] = _quadratic(w, _by_persons(code[icut[s] : icut[s + 1]], persons))
        counts[:, s] = np.bincount(pairs.genuine_person[gcut[s] : gcut[s + 1]], minlength=persons)
    gbelow[:, 1:] = w @ counts
    np.cumsum(ibelow, 1, out=ibelow)
    np.cumsum(gbelow, 1, out=gbelow)
    with np.errstate(invalid="ignore", divide="ignore"):
        # FMR - FNMR falls from 1 to -1; the crossing lies after the last edge at which it is not negative.
        segment = (1 - ibelow / ibelow[:, -1:] >= gbelow / gbelow[:, -1:]).sum(1) - 1
    return _Bracket(edges, icut, gcut, ibelow, gbelow, segment)


def _quantiles(scores: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
    """At most n members of a sorted sample, evenly spread."""
    return scores[(np.arange(n) * len(scores)) // n] if len(scores) else scores


def bootstrap_eer(pairs: Pairs, draws: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """EER (:func:`deidbench.stats.roc.eer`'s convention) in each replicate: float64 (B,), NaN where one has no pairs.

    Exact.  The scores are sorted once.  All replicates together are evaluated at a few dozen thresholds, then at a few
    dozen in the range where they cross; each is left with a bracket of a few pairs, which is searched.
    """
    w = draws.astype(np.float64)
    out = np.full(len(w), np.nan)
    if not len(pairs.genuine) or not len(pairs.impostor):
        return out
    order, gorder = np.argsort(pairs.impostor, kind="stable"), np.argsort(pairs.genuine, kind="stable")
    pairs = Pairs(
        pairs.genuine[gorder],
        pairs.genuine_person[gorder],
        pairs.impostor[order],
        pairs.impostor_a[order],
        pairs.impostor_b[order],
    )
    gen, gp, imp, ia, ib = pairs
    code = ia * w.shape[1] + ib
    bottom = np.full(1, -np.inf, np.float32)
    b = _bracket(pairs, w, np.unique(np.concatenate([bottom, _quantiles(gen, _COARSE), _quantiles(imp, _COARSE)])))
    ok = (b.ibelow[:, -1] > 0) & (b.gbelow[:, -1] > 0)
    if not ok.any():
        return out
    first, last = b.segment[ok].min(), b.segment[ok].max() + 1
    inside = [gen[b.gcut[first] : b.gcut[last]], imp[b.icut[first] : b.icut[last]]]
    ends = b.edges[[i for i in (first, last) if i < len(b.edges)]]
    b = _bracket(pairs, w, np.unique(np.concatenate([bottom, ends, *(_quantiles(x, _COARSE) for x in inside)])))
    for s in np.unique(b.segment[ok]):
        rows = np.flatnonzero(ok & (b.segment == s))
        i0, i1, g0, g1 = b.icut[s], b.icut[s + 1], b.gcut[s], b.gcut[s + 1]
        levels = np.unique(np.concatenate([imp[i0:i1], gen[g0:g1]]))
        icuts, gcuts = np.searchsorted(imp[i0:i1], levels, "left"), np.searchsorted(gen[g0:g1], levels, "left")
        # Nothing beyond the start of the last level is asked for: with many ties (a constant embedding) that is nearly all.
        i1, g1 = i0 + icuts[-1], g0 + gcuts[-1]
        tied = i1 - i0 > 20 * len(levels)  # few levels of many pairs (failures scored -inf): a level at a time is quicker
        parts = [_by_persons(code[i0 + a : i0 + b], w.shape[1]) for a, b in pairwise(icuts)] if tied else []
        step = max(1, (1 << 20) // (1 + (len(levels) if tied else i1 - i0) + (g1 - g0)))
        for start in range(0, len(rows), step):
            r = rows[start : start + step]
            column = np.zeros((len(r), 1))
            if tied:
                iw = np.cumsum(np.hstack([column, *(_quadratic(w[r], part)[:, None] for part in parts)]), 1)
            else:
                iw = np.hstack([column, np.cumsum(w[r][:, ia[i0:i1]] * w[r][:, ib[i0:i1]], 1)])[:, icuts]
            iw = iw + b.ibelow[r, s, None]
            gw = np.hstack([column, np.cumsum(w[r][:, gp[g0:g1]], 1)])[:, gcuts] + b.gbelow[r, s, None]
            # The operating points of the levels, then that of the next edge.
            f = 1 - np.hstack([iw, b.ibelow[r, s + 1, None]]) / b.ibelow[r, -1:]
            n = np.hstack([gw, b.gbelow[r, s + 1, None]]) / b.gbelow[r, -1:]
            here, k = (f >= n).sum(1) - 1, np.arange(len(r))
            out[r] = crossing(f[k, here], n[k, here], f[k, here + 1], n[k, here + 1])
    return out


def bootstrap_auc(pairs: Pairs, draws: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """AUC, ties half, in each replicate: float64 (B,), NaN where one has no pairs.

    Exact up to 100 persons.  Beyond, the scores are put into 256 quantile bins of the genuine ones, and what the bins
    change in the sample's own AUC is taken off every replicate.  What is left is a few 1e-4 in a single replicate and
    below 1e-4 in the ends of an interval (tested), a fiftieth of its width.
    """
    persons = draws.shape[1]
    w = draws.astype(np.float64)
    if not len(pairs.genuine) or not len(pairs.impostor):
        return np.full(len(w), np.nan)
    if persons > EXACT_AUC_PERSONS:
        shift = roc.auc(pairs.genuine, pairs.impostor) - _binned_auc(pairs, np.ones((1, persons)))[0]
        out: npt.NDArray[np.float64] = np.clip(_binned_auc(pairs, w) + shift, 0, 1)
        return out
    levels, level_of = np.unique(pairs.genuine, return_inverse=True)
    # Slot 2k + 1: impostors that tie with genuine level k; slot 2k: those between level k - 1 and level k.
    slot = np.searchsorted(levels, pairs.impostor, "left") + np.searchsorted(levels, pairs.impostor, "right")
    code = pairs.impostor_a * persons + pairs.impostor_b
    wins = np.zeros(len(w))  # twice the weighted wins
    for p in range(persons):
        mine = np.bincount(level_of[pairs.genuine_person == p], minlength=len(levels)).astype(np.float64)
        if not mine.any():
            continue
        over = np.append(np.cumsum(mine[::-1])[::-1], 0.0)  # p's genuine scores at or above level k
        twice = np.empty(2 * len(levels) + 1)
        twice[0::2] = 2 * over
        twice[1::2] = over[:-1] + over[1:]
        wins += w[:, p] * _quadratic(w, _by_persons(code, persons, twice[slot]))
    return _share(wins, 2 * _quadratic(w, _by_persons(code, persons)) * (w @ _genuine_counts(pairs, persons)))


def _binned_auc(pairs: Pairs, w: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """AUC in each replicate with scores of the same bin counted as ties."""
    persons = w.shape[1]
    edges = np.unique(_quantiles(np.sort(pairs.genuine), AUC_BINS))
    gbin, ibin = np.searchsorted(edges, pairs.genuine, "right"), np.searchsorted(edges, pairs.impostor, "right")
    order = np.argsort(ibin, kind="stable")
    code = (pairs.impostor_a * persons + pairs.impostor_b)[order]
    cut = np.searchsorted(ibin[order], np.arange(len(edges) + 2))
    total, wins = np.zeros(len(w)), np.zeros(len(w))
    above = genuine = w @ _genuine_counts(pairs, persons)
    for k in range(len(edges) + 1):
        here = w @ np.bincount(pairs.genuine_person[gbin == k], minlength=persons).astype(np.float64)
        impostors = _quadratic(w, _by_persons(code[cut[k] : cut[k + 1]], persons))
        above = above - here
        wins += impostors * (above + here / 2)
        total += impostors
    return _share(wins, total * genuine)


def _genuine_counts(pairs: Pairs, persons: int) -> npt.NDArray[np.float64]:
    return np.bincount(pairs.genuine_person, minlength=persons).astype(np.float64)


def _by_persons(
    code: npt.NDArray[np.intp], persons: int, weights: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """Pairs, or their weights, summed per (a, b): float64 (persons, persons).  code: a * persons + b."""
    return np.bincount(code, weights=weights, minlength=persons * persons).astype(np.float64).reshape(persons, persons)


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
