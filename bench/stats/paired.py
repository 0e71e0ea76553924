"""Tests of two methods that were scored on the same persons.

Which test for which figure (a paired design always; the person is the unit):

* hits over trials: :func:`mcnemar` (exact with one image a person, else clustered), or :func:`swap_test`;
* any other figure that is a function of sums over persons (macro F1, UAR, means, retention): :func:`swap_test`;
* per-person means of a distance: :func:`wilcoxon_persons`, which also says how large the shift is;
* a figure that no sum over persons gives (EER, AUC, D_sys): :func:`bootstrap_test` on paired replicates;
* speed: :func:`log_ratio`.

A permutation test asks: are the two methods exchangeable on every person?  It is exact whatever the figure and however
dependent the images of one person are, because all that a person has is swapped at once.

Sources: McNemar 1947; Obuchowski 1998, Statistics in Medicine 17:1495; Yang, Sun & Hardin 2010, Biometrical Journal 52:638;
Fagerland, Lydersen & Laake 2013 (mid-p); Fisher 1935 and Pitman 1937 (permutation of pairs); Phipson & Smyth 2010 (the
(1 + b) / (1 + n) p-value); Wilcoxon 1945; Pratt 1959 (zeros); Hodges & Lehmann 1963; Hollander & Wolfe 1999, chapter 3;
Kerby 2014 (rank-biserial r of pairs); Johnson & Mizoguchi 1978 (selection among sums).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.stats.intervals import MAX_EMPTY, Interval, _entropy

#: Figure from summed columns: (..., m) -> (...).  Must take any leading axes; NaN where it cannot be computed.
Value = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

#: Relative: sums of fractional hits differ in their last bits with the order of summation, and a swap that gives the
#: observed difference again must count as equal.
_TIE = 1e-9
#: Per-person means closer than this share of the largest one are equal.
_SAME = 1e-12
#: Up to this many differences the null distribution of the signed ranks is enumerated, beyond it is taken as normal.
_EXACT_RANKS = 50
#: Up to this many persons all Walsh averages are written down; beyond, the wanted ones are searched for.
_ALL_WALSH = 1000
#: Columns times rows that are permuted at once: 64 MB of float64.
_BLOCK = 1 << 23
#: Columns that share one matrix product: 2048 permutations of them are a block.
_COLUMNS = 4096
#: Packed signs up to this many bytes are kept for the next caller.
_CACHED_BYTES = 1 << 26


class Test(NamedTuple):
    """What a test of "no difference" found.

    p: two-sided, in (0, 1]; None where nothing could be tested, and ``reason`` says why.  statistic: in the units of
    ``method``, which says in words what was done.  persons: informative ones, on whom the two methods differ.
    """

    p: float | None
    statistic: float | None
    method: str
    persons: int
    reason: str = ""

    @classmethod
    def none(cls, method: str, persons: int, reason: str, statistic: float | None = None) -> Test:
        """No test, because of ``reason``."""
        return cls(None, statistic, method, persons, reason)


Test.__test__ = False  # type: ignore[attr-defined]  # or pytest takes it for a collection of tests


class Pair(NamedTuple):
    """Two methods on one metric, for :func:`swap_tests`.  a, b: (P, m) per-person columns.  value: see :data:`Value`."""

    a: npt.ArrayLike
    b: npt.ArrayLike
    value: Value


class Shift(NamedTuple):
    """How far the per-person figures of one method lie from those of another (first minus second).

    test: Wilcoxon signed-rank; its statistic is the sum of the ranks of the positive differences.
    shift: Hodges-Lehmann estimate, in the unit of the figure; interval: of it.  rank_biserial: in [-1, 1], positive where
    the first is larger.  persons: with both figures; zeros: of them without a difference; dropped: persons that lack one.
    """

    test: Test
    shift: float | None
    interval: Interval
    rank_biserial: float | None
    persons: int
    zeros: int
    dropped: int


class LogRatio(NamedTuple):
    """How many times the first of two timings the second is, on the logarithmic scale.

    value: median of log(a / b); interval: of that median; p: two-sided sign test; None with ``reason``.
    """

    value: float | None
    interval: Interval
    p: float | None
    repeats: int
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """exp(value): above 1 where the first is larger."""
        return None if self.value is None else float(np.exp(self.value))


# --- hits over trials


def _hits(
    a: npt.ArrayLike, b: npt.ArrayLike, trials: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x, y, t = (np.asarray(v, np.float64) for v in (a, b, trials))
    if x.ndim != 1 or not x.shape == y.shape == t.shape:
        raise ValueError(f"hits {x.shape}, {y.shape} and trials {t.shape} are one number per person")
    for hits in (x, y):
        if not (np.all(hits >= 0) and np.all(hits <= t * (1 + 1e-9))):
            raise ValueError("a person has between 0 and all of the trials as hits, and no NaN; is this a percentage?")
    return x, y, t


def clustered_mcnemar(a: npt.ArrayLike, b: npt.ArrayLike, trials: npt.ArrayLike, *, modified: bool = False) -> Test:
    """Difference of two correlated proportions, where the images of one person depend on each other.

    a, b: (P,) hits of the two methods summed over a person's images, fractional ones (ties) included, 0 <= hits <= trials.
    trials: (P,) the same for both; a person without any is no cluster.  The statistic is chi-square with one degree of
    freedom.  With d = a - b per person and K persons it is ``(K - 1) / K * sum(d)**2 / sum(d**2)``: Obuchowski 1998 with
    the variances under the null hypothesis, in the short form that Yang et al. 2010 give for it.
    modified: their own test instead, whose denominator averages the variances with and without the null hypothesis;
    it rejects more readily (they advise it for equal numbers of images, or from 50 persons on).

    An approximation for many persons; with a few, :func:`swap_test` is exact.
    """
    x, y, t = _hits(a, b, trials)
    name = "modified Obuchowski, Yang et al. 2010" if modified else "Obuchowski 1998"
    method = f"subject-clustered McNemar ({name})"
    d = x - y
    d[np.abs(d) <= _TIE] = 0
    known = t > 0
    k, informative = int(np.count_nonzero(known)), int(np.count_nonzero(d))
    if k < 2:
        return Test.none(method, informative, f"{'one person has' if k else 'no person has'} trials: two at least")
    if not informative:
        return Test.none(method, 0, "both methods have the same hits on every person")
    spread = float(np.sum(d**2))
    if modified:
        spread = (spread + float(np.sum((d - t * d.sum() / t.sum())[known] ** 2))) / 2
    statistic = (k - 1) / k * float(d.sum()) ** 2 / spread
    from scipy.special import chdtrc

    return Test(float(chdtrc(1, statistic)), statistic, f"{method}, {k} persons", informative)


def exact_mcnemar(b01: int, b10: int, *, mid_p: bool = False) -> Test:
    """McNemar's test by the binomial distribution, for independent images (one a person).

    b01: images that only the second method hit; b10: only the first.  The statistic is the smaller of them.
    mid_p: counts half of the probability of what was seen (Fagerland et al. 2013), less conservative and not quite exact.
    """
    if min(b01, b10) < 0 or b01 != int(b01) or b10 != int(b10):
        raise ValueError(f"discordant images are counted, not {b01!r} and {b10!r}")
    n, least = int(b01 + b10), int(min(b01, b10))
    method = "McNemar, mid-p" if mid_p else "exact McNemar"
    if not n:
        return Test.none(method, 0, "both methods hit the same images")
    from scipy.special import bdtr, gammaln

    here = float(np.exp(gammaln(n + 1) - gammaln(least + 1) - gammaln(n - least + 1) - n * np.log(2)))
    p = min(1.0, 2 * float(bdtr(least, n, 0.5)))
    if mid_p:
        p = 1 - here / 2 if b01 == b10 else p - here
    return Test(p, float(least), f"{method}, {n} discordant images", n)


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike, trials: npt.ArrayLike) -> Test:
    """:func:`exact_mcnemar` where every person has one image and hits are whole, else :func:`clustered_mcnemar`.

    Arguments as for the latter.
    """
    x, y, t = _hits(a, b, trials)
    if t.max(initial=0) <= 1 and bool((x == np.rint(x)).all() and (y == np.rint(y)).all() and (t == np.rint(t)).all()):
        return exact_mcnemar(int(np.sum((x == 0) & (y == 1))), int(np.sum((x == 1) & (y == 0))))
    return clustered_mcnemar(x, y, t)


# --- permutations


def _packed(persons: tuple[str, ...], permutations: int, seed: int) -> npt.NDArray[np.uint8]:
    """Who is swapped: a bit per person, (permutations, 8 * ceil(P / 64)) bytes; fewer rows are a prefix of more."""
    rng = np.random.default_rng(_entropy(persons, seed, "swap"))
    words = rng.integers(0, (1 << 64) - 1, size=(permutations, -(-len(persons) // 64)), dtype=np.uint64, endpoint=True)
    out = words.astype("<u8", copy=False).view(np.uint8)
    out.flags.writeable = False
    return out


_packed_kept = lru_cache(maxsize=4)(_packed)


def swap_signs(persons: Sequence[str], permutations: int, seed: int) -> npt.NDArray[np.int8]:
    """Which persons keep (+1) and which swap (-1) their two methods in each random permutation.

    persons: sorted, unique.  Returns int8 (permutations, P), from nothing but the arguments; the first rows are the same
    whatever ``permutations``.  Raises ValueError for unsorted or repeated persons.
    """
    return _signs(_packed(tuple(persons), permutations, seed), len(persons), np.int8)


def _signs(packed: npt.NDArray[np.uint8], p: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    signs: npt.NDArray[Any] = np.unpackbits(packed, axis=1, count=p, bitorder="little").astype(dtype)
    signs *= -2
    signs += 1
    return signs


class _Prepared(NamedTuple):
    """One pair, ready to be permuted.  moved @ signs is the difference of the summed columns, total their sum."""

    half: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    value: Value
    observed: float
    tolerance: float
    informative: npt.NDArray[np.bool_]


def _prepare(pair: Pair, p: int) -> _Prepared:
    a, b = np.asarray(pair.a, np.float64), np.asarray(pair.b, np.float64)
    if a.ndim != 2 or a.shape != b.shape or len(a) != p:
        raise ValueError(f"columns of shape {a.shape} and {b.shape} are not one row for each of {p} persons")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("per-person columns are sums, and finite: leave out a person without the figure")
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = float(pair.value(a.sum(0))), float(pair.value(b.sum(0)))
    return _Prepared(
        a - b,
        a.sum(0) + b.sum(0),
        pair.value,
        first - second,
        _TIE * max(abs(first), abs(second)),
        (a != b).any(1),
    )


def _extreme(pair: _Prepared, moved: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many permutations are at least as far from 0 as what was seen, and how many of these have no figure.

    moved: (n, m) differences of summed columns.  A permutation in which the figure cannot be computed counts as extreme:
    p is never too small for it.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = pair.value((pair.total + moved) / 2) - pair.value((pair.total - moved) / 2)
    empty = np.count_nonzero(np.isnan(difference))
    return np.array([empty + np.count_nonzero(np.abs(difference) >= abs(pair.observed) - pair.tolerance), empty])


def _all_swaps(pair: _Prepared, what: str) -> Test:
    """Every way of swapping.  Swapping everybody only turns the sign, so the first person stays as it is."""
    half = pair.half[pair.informative]
    n = len(half)
    count = np.zeros(2, np.int64)
    step = max(1, _BLOCK // max(n, half.shape[1]))
    for start in range(1, 1 << (n - 1), step):  # row 0 swaps nobody: what was seen, and counted below
        rows = np.arange(start, min(start + step, 1 << (n - 1)))
        signs = 1.0 - 2.0 * (rows[:, None] >> np.arange(n - 1) & 1)
        count += _extreme(pair, half[0] + signs @ half[1:])
    done = 1 << (n - 1)
    return _told(pair, count, n, (1 + int(count[0])) / done, done, f"exact {what} over {n} persons, all {2 * done}")


def _told(pair: _Prepared, count: npt.NDArray[np.int64], n: int, p: float, done: int, method: str) -> Test:
    empty = int(count[1])
    if empty > MAX_EMPTY * done:
        reason = f"{empty} of {done} permutations have no figure (an empty denominator)"
        return Test.none(method, n, reason, pair.observed)
    if empty:
        method += f" ({empty} without a figure, counted as extreme)"
    return Test(p, pair.observed, method, n)


def _permuted(pairs: Sequence[Pair], persons: Sequence[str], permutations: int, seed: int, what: str) -> list[Test]:
    if permutations < 1:
        raise ValueError("a permutation test takes one permutation at least")
    names, p = tuple(persons), len(persons)
    done: dict[int, Test] = {}
    left: dict[int, _Prepared] = {}
    for i, pair in enumerate(_prepare(pair, p) for pair in pairs):
        n = int(np.count_nonzero(pair.informative))
        if p < 2:
            done[i] = Test.none(
                what, n, f"{'one person' if p else 'no person'}: nothing is known about the spread between persons"
            )
        elif np.isnan(pair.observed):
            done[i] = Test.none(what, n, "one of the methods has no figure (an empty denominator)")
        elif not n:
            done[i] = Test.none(what, 0, "the methods do not differ on any person", pair.observed)
        elif n < 40 and 1 << n <= permutations:
            done[i] = _all_swaps(pair, what)
        else:
            left[i] = pair
    if left:
        packed = (_packed_kept if permutations * p <= 8 * _CACHED_BYTES else _packed)(names, permutations, seed)
        for group in _groups(left):
            counts = _shared({i: left[i] for i in group}, packed, p)
            for i in group:
                n = int(np.count_nonzero(left[i].informative))
                method = f"{what} over {n} persons, {permutations} draws"
                done[i] = _told(left[i], counts[i], n, (1 + int(counts[i][0])) / (1 + permutations), permutations, method)
    return [done[i] for i in range(len(pairs))]


def _whole(pair: _Prepared) -> bool:
    """Sums of whole numbers that stay below 2**24 are exact in float32 too, in half the time."""
    return bool((pair.half == np.rint(pair.half)).all()) and float(np.abs(pair.half).sum(0).max(initial=0)) < 1 << 24


def _groups(pairs: dict[int, _Prepared]) -> list[list[int]]:
    """Pairs that are permuted together: of one precision, and few enough for their columns to fit a block."""
    out: list[list[int]] = []
    for whole in (True, False):
        columns = _COLUMNS  # full: the first pair opens a group
        for i, pair in pairs.items():
            if _whole(pair) is not whole:
                continue
            m = pair.half.shape[1]
            if columns + m > max(_COLUMNS, m):
                out.append([])
                columns = 0
            out[-1].append(i)
            columns += m
    return out


def _shared(pairs: dict[int, _Prepared], packed: npt.NDArray[np.uint8], p: int) -> dict[int, npt.NDArray[np.int64]]:
    """Counts of :func:`_extreme` for pairs that are all permuted in the same way: one matrix product for all columns."""
    dtype = np.float32 if all(_whole(pair) for pair in pairs.values()) else np.float64
    columns = np.concatenate([pair.half for pair in pairs.values()], axis=1).astype(dtype)
    counts = {i: np.zeros(2, np.int64) for i in pairs}
    step = max(1, _BLOCK // max(p, columns.shape[1]))
    for start in range(0, len(packed), step):
        moved = _signs(packed[start : start + step], p, dtype) @ columns
        at = 0
        for i, pair in pairs.items():
            m = pair.half.shape[1]
            counts[i] += _extreme(pair, moved[:, at : at + m].astype(np.float64))
            at += m
    return counts


def swap_tests(
    pairs: Sequence[Pair | tuple[npt.ArrayLike, npt.ArrayLike, Value]],
    persons: Sequence[str],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> list[Test]:
    """:func:`swap_test` for many pairs on the same persons, all with the same swaps and in one go, in the order given."""
    return _permuted([Pair(*pair) for pair in pairs], persons, permutations, seed, "person swap permutation")


def swap_test(
    a: npt.ArrayLike, b: npt.ArrayLike, value: Value, persons: Sequence[str], *, permutations: int = 10_000, seed: int = 0
) -> Test:
    """Permutation test of the difference of any figure that is a function of sums over persons.

    a, b: (P, m) columns of the two methods per person (hits, trials, cells of a confusion matrix, ...), finite.
    value: turns summed columns into the figure, see :data:`Value`.  persons: the names of the rows, sorted and unique.
    In each permutation each person's whole row changes sides with probability one half, and the figure is taken anew on
    both sides.  p is the share of permutations with a difference at least as large, ``(1 + b) / (1 + n)``; all swaps are
    enumerated where they are no more than ``permutations``.  The statistic is value(sum a) - value(sum b).

    The swaps depend on seed and persons only, so p-values of one run belong together.  A permutation without a figure
    (NaN) counts as extreme; above 5 % of them there is no p.  The smallest p is 1 / (1 + permutations): a family of many
    tests takes more of them (:func:`deidbench.stats.multiplicity.permutations_needed`).
    """
    return swap_tests([Pair(a, b, value)], persons, permutations=permutations, seed=seed)[0]


def sign_flip(
    differences: npt.ArrayLike,
    persons: Sequence[str],
    weights: npt.ArrayLike | None = None,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> Test:
    """Permutation test of the mean difference: each person's difference keeps or changes its sign.

    differences: (P,), NaN for a person without one (left out, and told).  weights: (P,) >= 0, for instance images; equal
    by default.  persons: the names, sorted and unique.  The statistic is the weighted mean.  Else as :func:`swap_test`.
    """
    d = np.array(differences, np.float64)
    w = np.ones(d.shape) if weights is None else np.array(weights, np.float64)
    if d.shape != (len(persons),) or w.shape != d.shape:
        raise ValueError(f"differences {d.shape} and weights {w.shape} are one number for each of {len(persons)} persons")
    lacking = np.isnan(d) | np.isnan(w)
    if np.any(w[~lacking] < 0):
        raise ValueError("a weight is not negative")
    d[lacking], w[lacking] = 0, 0
    what, total = "sign-flip permutation", float(w.sum())
    if np.count_nonzero(w) < 2:
        n = int(np.count_nonzero(w))
        return Test.none(what, n, f"{'one person' if n else 'no person'}: nothing is known about the spread between persons")
    column = (w * d)[:, None]
    pair = Pair(column, np.zeros_like(column), lambda sums: np.asarray(sums[..., 0] / total))
    (test,) = _permuted([pair], persons, permutations, seed, what)
    dropped = int(np.count_nonzero(lacking))
    return test._replace(method=f"{test.method} ({dropped} persons without a figure left out)") if dropped else test


# --- ranks


def _midranks(x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Twice the average ranks of x, which are whole numbers."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.int64] = (2 * last - counts + 1)[inverse]
    return ranks


def _sum_distribution(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """P(sum of a random half of the ranks = s) for s = 0, 1, ...; each rank is in or out with probability one half."""
    out = np.zeros(int(ranks.sum()) + 1)
    out[0] = 1
    top = 0
    for r in ranks.tolist():
        out[r : top + r + 1] += out[: top + 1].copy()
        out[: top + r + 1] /= 2
        top += r
    return out


@lru_cache(maxsize=256)
def _untied(n: int) -> npt.NDArray[np.float64]:
    """P(T+ <= t) for t = 0, 1, ...: the signed ranks 1 ... n without ties."""
    below: npt.NDArray[np.float64] = np.cumsum(_sum_distribution(np.arange(1, n + 1)))
    below.flags.writeable = False
    return below


def _signed_ranks(d: npt.NDArray[np.float64]) -> tuple[Test, float | None]:
    """Wilcoxon's test and the rank-biserial r; d: differences in which equal ones are equal to the last bit."""
    zeros = int(np.count_nonzero(d == 0))
    n = len(d) - zeros
    with_zeros = f", {zeros} zeros ranked (Pratt)" if zeros else ""
    method = f"Wilcoxon signed-rank over {len(d)} persons{with_zeros}"
    if not n:
        return Test.none(method, 0, "the methods do not differ on any person" if len(d) else "no persons"), None
    twice = _midranks(np.abs(d))
    plus, minus = int(twice[d > 0].sum()), int(twice[d < 0].sum())
    r = (plus - minus) / int(twice.sum())
    if len(d) < 2:
        return Test.none(method, n, "one person: nothing is known about the spread between persons", plus / 2), r
    ranks = twice[d != 0]
    if n <= _EXACT_RANKS:
        p = min(1.0, 2 * float(_sum_distribution(ranks)[: min(plus, minus) + 1].sum()))
        return Test(p, plus / 2, f"{method}, exact", n), r
    from scipy.special import ndtr

    z = (plus - minus) / np.sqrt(np.sum(ranks.astype(np.float64) ** 2))
    return Test(float(2 * ndtr(-abs(z))), plus / 2, f"{method}, normal approximation", n), r


def _merged(d: npt.NDArray[np.float64], scale: float) -> npt.NDArray[np.float64]:
    """Differences on a grid, so that rounding does not break ties or turn a zero into a rank."""
    return np.rint(d / (_SAME * scale)) if scale > 0 else np.zeros_like(d)


def signed_rank(a: npt.ArrayLike, b: npt.ArrayLike) -> Test:
    """Wilcoxon's signed-rank test of paired figures a, b (n,), finite: the test that :func:`wilcoxon_persons` reports."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"figures of shape {x.shape} and {y.shape} are not finite pairs")
    return _signed_ranks(_merged(x - y, float(np.abs([x, y]).max(initial=0))))[0]


def _walsh(x: npt.NDArray[np.float64], wanted: Sequence[int]) -> list[float]:
    """The wanted order statistics (from 0) of the n (n + 1) / 2 averages of two of x, a value with itself included."""
    x = np.sort(x)
    if len(x) <= _ALL_WALSH:
        sums = np.concatenate([x[i] + x[i:] for i in range(len(x))])
        sums.partition(sorted(set(wanted)))
        return [float(sums[k]) / 2 for k in wanted]
    return [_selected_sum(x, k) / 2 for k in wanted]


def _selected_sum(x: npt.NDArray[np.float64], k: int) -> float:
    """The k-th smallest (from 0) of x[i] + x[j], i <= j, x sorted, without writing down all of them.

    In row i the sums ascend with j, and [low, high) is what is still in question there.  The weighted median of the rows'
    middle elements has at least a quarter of these on either side (Johnson & Mizoguchi 1978), so some tens of rounds do.
    """
    n = len(x)
    low, high = np.arange(n), np.full(n, n)
    below = 0  # sums that are known to lie below what is in question
    while (left := int((high - low).sum())) > 8 * n:
        rows = np.flatnonzero(high > low)
        middle = x[rows] + x[(low[rows] + high[rows]) // 2]
        order = np.argsort(middle)
        share = np.cumsum((high - low)[rows][order])
        pivot = middle[order][np.searchsorted(share, left / 2)]
        less = _bisect(x, low, high, pivot, np.less)
        if k < below + int((less - low).sum()):
            high = less
            continue
        upto = _bisect(x, less, high, pivot, np.less_equal)
        reached = int((upto - low).sum())
        if k < below + reached:
            return float(pivot)
        below, low = below + reached, upto
    sums = np.concatenate([x[i] + x[low[i] : high[i]] for i in np.flatnonzero(high > low)])
    return float(np.partition(sums, k - below)[k - below])


def _bisect(
    x: npt.NDArray[np.float64], low: npt.NDArray[np.intp], high: npt.NDArray[np.intp], pivot: float, compare: np.ufunc
) -> npt.NDArray[np.intp]:
    """In each row i the first j in [low, high] whose x[i] + x[j] does not compare with the pivot.

    Bisection of the rounded sums themselves: to look up pivot - x[i] rounds otherwise, and loses whole runs of ties.
    """
    low, high = low.copy(), high.copy()
    while (rows := np.flatnonzero(low < high)).size:
        middle = (low[rows] + high[rows]) // 2
        yes = compare(x[rows] + x[middle], pivot)
        low[rows[yes]] = middle[yes] + 1
        high[rows[~yes]] = middle[~yes]
    return low


def _shift_interval(x: npt.NDArray[np.float64], level: float) -> tuple[float, Interval]:
    n = len(x)
    total = n * (n + 1) // 2
    tail = (1 - level) / 2
    if n <= _EXACT_RANKS:
        below = _untied(n)
        low = int(np.searchsorted(below, tail * (1 + 1e-12), "right"))  # P(T+ <= low - 1) <= tail
        reached = f"exact, {100 * (1 - 2 * below[low - 1]):.3g} % reached" if low else ""
    else:
        from scipy.special import ndtri

        low = int(np.floor(total / 2 + ndtri(tail) * np.sqrt(n * (n + 1) * (2 * n + 1) / 24) + 0.5))
        reached = "normal approximation"
    ends = [max(low, 1) - 1, total - max(low, 1)]
    lo, first, second, hi = _walsh(x, [ends[0], (total - 1) // 2, total // 2, ends[1]])
    shift = (first + second) / 2
    if not low:
        widest = 100 * (1 - 2.0 ** (1 - n))
        return shift, Interval.none(
            level, f"{n} persons: no distribution-free interval has more than {widest:.3g} % confidence"
        )
    if not hi - lo > _SAME * max(abs(lo), abs(hi)):
        return shift, Interval.none(level, "no variance between most persons")
    return shift, Interval(lo, hi, level, f"Walsh averages of {n} persons, distribution-free ({reached})")


def wilcoxon_persons(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95) -> Shift:
    """Are the per-person figures of the first method larger, and by how much?

    a, b: (P,) per-person means; a person who is NaN in one of them is dropped from both, and counted.

    Wilcoxon's signed-rank test, two-sided: conditional on the ranks seen, so that ties cost nothing; exact up to 50
    differences, a normal approximation beyond.  Zeros are ranked with the others and then carry no sign (Pratt 1959):
    persons whom both methods treat alike are evidence for "no difference", and with Wilcoxon's own rule, which forgets
    them, adding such persons would not change p, and a uniformly larger shift could lose significance.
    The shift is the median of the Walsh averages (x_i + x_j) / 2, i <= j, of all differences, with the interval that
    belongs to it: order statistics of these averages, coverage at least ``level`` (Hollander & Wolfe 1999, section 3.3).
    Rank-biserial r: ranks in favour minus ranks against, over all ranks (Kerby 2014), those of zeros included.

    All differences zero: shift 0, and no p.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"per-person figures have shapes {x.shape} and {y.shape}: one number per person and method")
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level!r}")
    lacking = np.isnan(x) | np.isnan(y)
    x, y = x[~lacking], y[~lacking]
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("an infinite figure: leave out that person (NaN)")
    dropped, n = int(np.count_nonzero(lacking)), len(x)
    d = x - y
    grid = _merged(d, float(np.abs([x, y]).max(initial=0)))
    d[grid == 0] = 0
    test, r = _signed_ranks(grid)
    if dropped:
        test = test._replace(method=f"{test.method} ({dropped} persons without a figure left out)")
    zeros = int(np.count_nonzero(grid == 0))
    if n < 2:
        reason = f"{'one person' if n else 'no person'}: nothing is known about the spread between persons"
        return Shift(test, float(d[0]) if n else None, Interval.none(level, reason), r, n, zeros, dropped)
    if np.ptp(grid) == 0:
        return Shift(test, float(d[0]), Interval.none(level, "no variance between persons"), r, n, zeros, dropped)
    shift, interval = _shift_interval(d, level)
    return Shift(test, shift, interval, r, n, zeros, dropped)


# --- figures that exist only as replicates


def bootstrap_test(difference: float | None, replicates: npt.ArrayLike, persons: int) -> Test:
    """Test of a difference of figures of which there are only paired person-bootstrap replicates (EER, AUC, D_sys).

    difference: of the figures themselves.  replicates: (B,) of the difference, NaN where a replicate has no figure (left
    out; above 5 % no test).  persons: that carry information.  The statistic is the difference over its bootstrap
    standard error, which is taken for t-distributed with persons - 1 degrees of freedom.  The standard error has the
    factor sqrt(n / (n - 1)) of Hesterberg 2015 (section 4.2), as the intervals have: so p < 0.05 and an interval that
    excludes 0 agree, but for skewness.
    """
    method = "t test on the person-bootstrap standard error"
    values = np.asarray(replicates, np.float64)
    if persons < 2:
        many = "one person" if persons == 1 else "no person"
        return Test.none(method, persons, f"{many}: nothing is known about the spread between persons", difference)
    if difference is None or np.isnan(difference):
        return Test.none(method, persons, "one of the methods has no figure")
    good = values[~np.isnan(values)]
    empty = len(values) - len(good)
    if len(good) < 2 or empty > MAX_EMPTY * len(values):
        reason = f"too few persons: {empty} of {len(values)} bootstrap replicates have no figure"
        return Test.none(method, persons, reason, difference)
    if np.ptp(good) <= 1e-12 * max(1.0, float(np.abs(good).max())):
        return Test.none(method, persons, "no variance between persons", difference)
    from scipy.special import stdtr

    t = difference / (float(good.std(ddof=1)) * np.sqrt(persons / (persons - 1)))
    said = f"{method}, {persons - 1} degrees of freedom, {len(values)} replicates"
    if empty:
        said += f" ({empty} empty ones left out)"
    return Test(float(2 * stdtr(persons - 1, -abs(t))), float(t), said, persons)


# --- speed


def log_ratio(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95) -> LogRatio:
    """Ratio of two timings (or speeds) from interleaved repeats.

    a, b: (R,) positive, the i-th of both measured one right after the other, so that what slows the machine down slows
    both; NaN in one of them drops the repeat.  The interval is that of the median by order statistics (the sign test
    turned around): distribution-free, which a bootstrap of the median of a handful of repeats is not; 95 % takes six
    repeats.  It knows of the spread between these repeats only, not between machines.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"repeats have shapes {x.shape} and {y.shape}: interleaved ones come in pairs")
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level!r}")
    lacking = np.isnan(x) | np.isnan(y)
    x, y = x[~lacking], y[~lacking]
    if not (np.all(x > 0) and np.all(y > 0) and np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("timings are positive and finite")
    logs = np.sort(np.log(x) - np.log(y))
    n = len(logs)
    if not n:
        return LogRatio(None, Interval.none(level, "no repeats"), None, 0, "no repeats")
    from scipy.special import bdtr

    value = float(np.median(logs))
    tail = (1 - level) / 2
    below = bdtr(np.arange(n // 2 + 1), n, 0.5)
    low = int(np.searchsorted(below, tail * (1 + 1e-12), "right"))
    if not low:
        takes = int(np.ceil(1 - np.log2(2 * tail) - 1e-12))
        reason = f"{n} repeats: a distribution-free interval of the median takes {takes}"
        return LogRatio(value, Interval.none(level, reason), None, n, reason)
    if not logs[n - low] > logs[low - 1]:
        reason = "no variance between repeats"
        return LogRatio(value, Interval.none(level, reason), None, n, reason)
    up, down = int(np.count_nonzero(logs > 0)), int(np.count_nonzero(logs < 0))
    p = min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5)))
    reached = 100 * (1 - 2 * float(below[low - 1]))
    said = f"order statistics of {n} interleaved repeats ({reached:.3g} % reached)"
    return LogRatio(value, Interval(float(logs[low - 1]), float(logs[n - low]), level, said), p, n)
