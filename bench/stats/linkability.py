"""Linkability of two samples of scores: D_sys of Gomez-Barrero, Galbally, Rathgeb and Busch 2018.

"General framework to evaluate unlinkability in biometric template protection systems", IEEE Transactions on Information
Forensics and Security 13 (6).  With LR(s) = p(s | mated) / p(s | non-mated) and omega = p(mated) / p(non-mated), a score s
links two images to the degree that it makes the same person more probable than not::

    D(s)  = 2 omega LR(s) / (1 + omega LR(s)) - 1   where omega LR(s) > 1, else 0
    D_sys = integral of D(s) p(s | mated) ds        0: the two distributions are equal.  1: they do not overlap.

The densities are histograms, and the integral is the sum over bins of genuine share times D; with genuine share a and
impostor share b, D = (omega a - b) / (omega a + b).  D is 1 where there are genuine scores and no impostors.

The bins are part of the figure and must be stated with it: of equal width from the lowest to the highest finite score of
both samples, the last one closed on the right; a tenth of the number of genuine scores, at least 2 and at most 100 of them,
as is the custom.  Comparisons that could not be made (-inf) form a further bin of their own.

With few scores D_sys is too high: bins differ by chance, and only the differences in one direction count.  For equal
distributions, n independent genuine scores in k bins and many impostors it is about sqrt(k / (8 pi n)) + k / (8 n): 0.076 for
1000 scores in 100 bins.  It is more where scores depend on each other.  Compare it with that of scores without identity.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

MIN_BINS, MAX_BINS = 2, 100


class Linkability(NamedTuple):
    """D_sys in [0, 1] and how it was found.

    bins: of equal width between lo and hi, the lowest and highest finite score (0 bins, both NaN, without a finite score).
    failed: whether a further bin holds comparisons that could not be made.
    """

    value: float
    bins: int
    lo: float
    hi: float
    omega: float
    failed: bool


def edges(genuine: npt.ArrayLike, impostor: npt.ArrayLike, bins: int | None = None) -> Values:
    """Lower ends of the bins, ascending float64 (bins,): what lies below the first is -inf, the last has no upper end.

    bins: None for the custom (see the top of this file).  A single bin where all finite scores are equal, none where there
    are no finite scores.  Raises ValueError for empty samples, NaN, +inf and less than one bin.
    """
    gen, imp = np.asarray(genuine), np.asarray(impostor)
    ends = []
    for kind, x in (("genuine", gen), ("impostor", imp)):
        if not x.size:
            raise ValueError(f"no {kind} scores")
        lo, hi = float(x.min()), float(x.max())
        if np.isnan(hi):
            raise ValueError(f"{kind} scores contain NaN: a failed comparison is -inf, never left out")
        if hi == np.inf:
            raise ValueError(f"{kind} scores contain +inf, which no comparison gives")
        if lo == -np.inf and hi > lo:
            lo = float(x[x > -np.inf].min())
        ends += [e for e in (lo, hi) if e > -np.inf]
    if bins is None:
        bins = min(max(gen.size // 10, MIN_BINS), MAX_BINS)
    elif bins < 1:
        raise ValueError(f"at least one bin is needed, not {bins}")
    if not ends:
        return np.empty(0)
    # Of numbers too close together to be told apart, unique leaves one.
    lower: Values = np.unique(np.linspace(min(ends), max(ends), bins + 1)[:-1])
    return lower


def counts(scores: npt.ArrayLike, lower: Values) -> npt.NDArray[np.int64]:
    """How many scores lie below the first edge, then in each bin: int64 (bins + 1,).  lower: from :func:`edges`."""
    x = np.asarray(scores).ravel()
    return np.bincount(np.searchsorted(lower, x, "right"), minlength=len(lower) + 1).astype(np.int64)


def d_sys(genuine: npt.ArrayLike, impostor: npt.ArrayLike, bins: int | None = None, omega: float = 1.0) -> Linkability:
    """Global linkability of two samples of scores, any length, unsorted, -inf allowed; see :func:`edges` for the bins.

    omega: prior ratio p(mated) / p(non-mated), above 0.
    """
    lower = edges(genuine, impostor, bins)
    gen, imp = counts(genuine, lower), counts(impostor, lower)
    value = float(d_sys_from_counts(gen[None], imp[None], omega)[0])
    finite = [float(x.max()) for x in (np.asarray(genuine), np.asarray(impostor))]
    lo, hi = (float(lower[0]), max(finite)) if len(lower) else (float("nan"), float("nan"))
    return Linkability(value, len(lower), lo, hi, float(omega), bool(gen[0] + imp[0]))


def d_sys_from_counts(genuine: npt.NDArray[Any], impostor: npt.NDArray[Any], omega: float = 1.0) -> Values:
    """D_sys of binned scores, for many replicates at once: float64 (B,), NaN where a replicate lacks one of the samples.

    genuine, impostor: (B, bins) counts or weights, not negative; the order of bins does not matter.
    """
    if not omega > 0 or not np.isfinite(omega):
        raise ValueError(f"omega is a ratio of priors above 0, not {omega!r}")
    gen, imp = np.asarray(genuine, np.float64), np.asarray(impostor, np.float64)
    all_gen, all_imp = gen.sum(1, keepdims=True), imp.sum(1, keepdims=True)
    # Times both totals, so that equal histograms of whole numbers give exactly 0.
    a, b = omega * gen * all_imp, imp * all_gen
    gain = np.divide(np.maximum(a - b, 0), a + b, out=np.zeros_like(a), where=a > 0)
    total = (gen * gain).sum(1)
    whole = all_gen[:, 0]
    ok = (whole > 0) & (all_imp[:, 0] > 0)
    return np.divide(total, whole, out=np.full(len(gen), np.nan), where=ok)


def local(genuine: npt.NDArray[Any], impostor: npt.NDArray[Any], omega: float = 1.0) -> Values:
    """D of each bin from its counts (bins,): float64 (bins,), NaN for a bin without scores."""
    gen, imp = np.asarray(genuine, np.float64), np.asarray(impostor, np.float64)
    if not gen.sum() or not imp.sum():
        raise ValueError("D needs genuine and impostor scores")
    a, b = omega * gen / gen.sum(), imp / imp.sum()
    return np.divide(np.maximum(a - b, 0), a + b, out=np.full(len(a), np.nan), where=a + b > 0)
