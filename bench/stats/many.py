"""Many methods over many data sets: who ranks where, and which of them can be told apart.

The unit is the data set: its figure is one number per method, however many persons stand behind it.  Friedman's test first
(is there any difference at all?), then Wilcoxon's for each pair, corrected by Holm: what two methods are told about each
other then does not hang on which others are in the pool, as it does with Nemenyi's critical distance.

Friedman's p is that of his statistic under all ways of ordering the methods within each data set (or ten thousand random
ones): with a handful of data sets his chi-square distribution is too careful (5 data sets, 6 methods: 3.4 % at a level of
5 %) and Iman and Davenport's F too bold (5 data sets, 4 methods: 6.7 %).  Both are told as well.

Sources: Friedman 1937; Iman & Davenport 1980; Phipson & Smyth 2010 (the (1 + b) / (1 + n) p-value); Demsar 2006, "Statistical Comparisons of Classifiers over Multiple Data
Sets" (average ranks, the diagram); Benavoli, Corani & Mangili 2016, "Should We Really Use Post-Hoc Tests Based on
Mean-Ranks?"; Ismail Fawaz et al. 2019 (the diagram with Wilcoxon and Holm); Holm 1979.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.stats.intervals import _entropy
from deidbench.stats.multiplicity import holm_known
from deidbench.stats.paired import Test, _merged, signed_rank

#: Fewer data sets say nothing about ranks: with four, no order of two methods has a p-value below 0.125.
MIN_DATASETS = 5


class PairOfMethods(NamedTuple):
    """Two methods over all data sets.  test: Wilcoxon signed-rank; adjusted: its p by Holm over all pairs.

    different: adjusted < alpha, and Friedman's test had found a difference to begin with.
    """

    first: str
    second: str
    test: Test
    adjusted: float | None
    different: bool


class Ranking(NamedTuple):
    """What :func:`friedman` found.

    names: methods with a figure on every data set; ranks: their average ranks, 1 is best (empty where refused).
    n: data sets.  chi2: Friedman's statistic, corrected for ties; p: of it by permutation, which decides; chi2_p: by its
    chi-square distribution.  f, f_p: Iman and Davenport's; None where all data sets agree completely and f is not finite.
    cliques: indices into names, see :func:`cliques`.  left_out: methods without a figure somewhere, and where.
    reason: why there is no p; note: what a reader should know beside it.
    """

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    n: int
    p: float | None
    chi2: float | None
    chi2_p: float | None
    f: float | None
    f_p: float | None
    method: str
    pairs: tuple[PairOfMethods, ...]
    cliques: tuple[tuple[int, ...], ...]
    alpha: float
    left_out: tuple[str, ...] = ()
    reason: str = ""
    note: str = ""


def ranks_per_dataset(scores: npt.ArrayLike, higher_is_better: bool) -> npt.NDArray[np.float64]:
    """Ranks of the methods within each data set, 1 is best, ties share the mean: (N, k) -> float64 (N, k).

    scores: finite.  Figures that differ in their last bits only are equal.
    """
    x = np.asarray(scores, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"scores of shape {x.shape} are not finite figures of data sets x methods")
    from scipy.stats import rankdata

    rows = [_merged(-row if higher_is_better else row, float(np.abs(row).max(initial=0))) for row in x]
    ranks: npt.NDArray[np.float64] = rankdata(np.reshape(rows, x.shape), axis=1)
    return ranks


def cliques(ranks: Sequence[float], different: npt.ArrayLike) -> tuple[tuple[int, ...], ...]:
    """Maximal runs of methods, neighbours in average rank, of whom no two can be told apart: the bars of the diagram.

    ranks: (k,).  different: (k, k) bool, symmetric.  Returns indices, best rank first; a method that is told apart from
    both its neighbours is in none.
    """
    order = np.argsort(np.asarray(ranks, np.float64), kind="stable")
    apart = np.asarray(different, np.bool_)
    if apart.shape != (len(order), len(order)):
        raise ValueError(f"{apart.shape} is no table of {len(order)} methods against each other")
    apart = (apart | apart.T)[np.ix_(order, order)]
    out: list[tuple[int, ...]] = []
    reached = 0
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not apart[start:end, end].any():
            end += 1
        if end - start > 1 and end > reached:
            out.append(tuple(int(i) for i in order[start:end]))
            reached = end
    return tuple(out)


def _lacking(
    x: npt.NDArray[np.float64], methods: Sequence[str], datasets: Sequence[str]
) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    empty = np.isnan(x)
    told = tuple(
        f"{methods[j]} (no figure on {', '.join(datasets[i] for i in np.flatnonzero(empty[:, j]))})"
        for j in np.flatnonzero(empty.any(0))
    )
    return empty.any(0), told


def friedman(
    scores: npt.ArrayLike,
    methods: Sequence[str],
    datasets: Sequence[str] | None = None,
    *,
    higher_is_better: bool,
    alpha: float = 0.05,
    permutations: int = 10_000,
    seed: int = 0,
) -> Ranking:
    """Rank methods over data sets and test which of them differ.

    scores: (N, k) one figure per data set and method, NaN where there is none: such a method is left out of all data sets,
    and named.  methods: k names.  datasets: N names, for messages.  Refused with fewer than five data sets, or two methods.

    p is the share of orders within the data sets that give a statistic at least as large: of all of them where they are
    no more than ``permutations``, else (1 + b) / (1 + n) of as many random ones, which depend on nothing but seed and names
    of the data sets.  Only where p < alpha do pairs count as different.  F = (N - 1) chi2 / (N (k - 1) - chi2) has
    k - 1 and (k - 1)(N - 1) degrees of freedom (Iman & Davenport 1980).  Two methods: their Wilcoxon test alone, p is its own.
    """
    x = np.asarray(scores, np.float64)
    if x.ndim != 2 or x.shape[1] != len(methods):
        raise ValueError(f"scores of shape {x.shape} are not one column for each of {len(methods)} methods")
    if np.isinf(x).any():
        raise ValueError("an infinite score has a rank but no difference: give NaN where there is no figure")
    if len(set(methods)) != len(methods):
        raise ValueError("two methods of the same name")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha lies between 0 and 1, not {alpha!r}")
    n = len(x)
    known = [str(i + 1) for i in range(n)] if datasets is None else list(datasets)
    if len(known) != n or len(set(known)) != n:
        raise ValueError(f"{len(set(known))} different names for {n} data sets")
    if permutations < 1:
        raise ValueError("a permutation test takes one permutation at least")
    drop, left_out = _lacking(x, methods, known)
    names = tuple(m for m, gone in zip(methods, drop, strict=True) if not gone)
    x = x[:, ~drop]
    refused = Ranking(names, (), n, None, None, None, None, None, "", (), (), alpha, left_out)
    if n < MIN_DATASETS:
        return refused._replace(reason=f"{n} data sets: ranks take at least {MIN_DATASETS}")
    if len(names) < 2:
        many = "one method has" if names else "no method has"
        return refused._replace(reason=f"{many} a figure on every data set: ranks take at least two")

    ranks = ranks_per_dataset(x, higher_is_better)
    mean = tuple(float(r) for r in ranks.mean(0))
    tests = {(i, j): signed_rank(x[:, i], x[:, j]) for i, j in itertools.combinations(range(len(names)), 2)}
    adjusted = holm_known([t.p for t in tests.values()])
    if len(names) == 2:
        (test,) = tests.values()
        overall = refused._replace(ranks=mean, p=test.p, reason=test.reason, method=test.method)
    else:
        order = np.argsort(known)  # what comes out must not hang on the order in which data sets were named
        entropy = _entropy(sorted(known), seed, "friedman")
        overall = _overall(ranks[order], permutations, entropy, refused._replace(ranks=mean))
    found = overall.p is not None and overall.p < alpha
    apart = np.zeros((len(names), len(names)), np.bool_)
    pairs = []
    for ((i, j), test), q in zip(tests.items(), adjusted, strict=True):
        apart[i, j] = found and q is not None and q < alpha
        pairs.append(PairOfMethods(names[i], names[j], test, q, bool(apart[i, j])))
    least = len(tests) * 2.0 ** (1 - n)
    note = (
        f"with {n} data sets no pair of {len(tests)} can come below {min(1.0, least):.3g} after Holm" if least >= alpha else ""
    )
    return overall._replace(pairs=tuple(pairs), cliques=cliques(mean, apart), note=note)


def _overall(ranks: npt.NDArray[np.float64], permutations: int, entropy: list[int], out: Ranking) -> Ranking:
    n, k = ranks.shape
    if (ranks == (k + 1) / 2).all():
        return out._replace(reason="the methods do not differ on any data set")
    from scipy.special import fdtrc
    from scipy.stats import friedmanchisquare

    chi2, chi2_p = (float(v) for v in friedmanchisquare(*ranks.T))
    p, method = _permuted(ranks, permutations, entropy)
    out = out._replace(chi2=chi2, chi2_p=chi2_p, p=p, method=method)
    left = n * (k - 1) - chi2
    if left <= 1e-9 * n * k:
        return out
    f = (n - 1) * chi2 / left
    return out._replace(f=f, f_p=float(fdtrc(k - 1, (k - 1) * (n - 1), f)))


def _permuted(ranks: npt.NDArray[np.float64], permutations: int, entropy: list[int]) -> tuple[float, str]:
    """p of the sum of squared rank sums, which is Friedman's statistic but for constants; doubled ranks are whole."""
    n, k = ranks.shape
    twice = np.rint(2 * np.sort(ranks, axis=1)).astype(np.int64)  # sorted: the order of the methods must not show
    seen = np.sum(np.rint(2 * ranks).astype(np.int64).sum(0) ** 2)
    every = math.factorial(k) ** (n - 1)
    if every <= permutations:
        orders = np.array(list(itertools.permutations(range(k))))
        sums = twice[:1]  # this one stays: to turn all of them around together changes nothing
        for row in twice[1:]:
            sums = (sums[:, None] + row[orders]).reshape(-1, k)
        count = np.count_nonzero(np.sum(sums**2, axis=1) >= seen)
        return count / every, f"Friedman, exact over all orders within {n} data sets"
    rng = np.random.default_rng(entropy)
    sums = np.zeros((permutations, k), np.int64)
    for row in twice:
        sums += rng.permuted(np.tile(row, (permutations, 1)), axis=1)
    count = np.count_nonzero(np.sum(sums**2, axis=1) >= seen)
    return (1 + count) / (1 + permutations), f"Friedman, {permutations} random orders within {n} data sets"
