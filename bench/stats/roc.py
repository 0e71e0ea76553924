"""Exact error rates of a comparison of two score samples: genuine (same person) and impostor (different persons).

A pair is accepted iff ``score >= threshold``.  FMR(t) is the share of impostors accepted, FNMR(t) the share of genuine
pairs rejected.  Scores are used as they are: never squashed, binned or clipped, any finite value and -inf allowed.

The ROC polyline joins the operating points of all distinct thresholds by straight lines, from (FMR 1, FNMR 0) to
(0, 1).  Where genuine and impostor scores tie, the straight line is the expected value under random order of the tied
scores, so a constant score has EER and AUC exactly 0.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Roc(NamedTuple):
    """Operating points, thresholds ascending; the last threshold is +inf.  Each array is (n,)."""

    threshold: npt.NDArray[np.float64]
    fmr: npt.NDArray[np.float64]
    fnmr: npt.NDArray[np.float64]


class Eer(NamedTuple):
    """Equal error rate, and the operating threshold just below the crossing."""

    value: float
    threshold: float


def _sorted(scores: npt.ArrayLike, kind: str) -> npt.NDArray[Any]:
    x = np.asarray(scores)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    x = np.sort(x, axis=None)
    if x.size == 0:
        raise ValueError(f"no {kind} scores")
    if np.isnan(x[-1]):  # NaN sorts last
        raise ValueError(f"{kind} scores contain NaN: a failed comparison is -inf, never left out")
    return x


def crossing(fmr: Any, fnmr: Any, fmr_next: Any, fnmr_next: Any) -> Any:
    """FMR = FNMR on the line from (fmr, fnmr), where fmr >= fnmr, to the next point, where it is not.  Elementwise."""
    before, after = fmr - fnmr, fmr_next - fnmr_next
    return fmr + (fmr_next - fmr) * (before / (before - after))


def eer(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> Eer:
    """Exact equal error rate: where the ROC polyline meets FMR = FNMR (linear interpolation, no convex hull).

    genuine, impostor: scores, any length, unsorted.  Two sorts and a bisection, no ROC is built.
    Raises ValueError for empty samples and NaN.
    """
    gen, imp = _sorted(genuine, "genuine"), _sorted(impostor, "impostor")
    ng, ni = len(gen), len(imp)

    def rates(t: Any) -> tuple[float, float]:
        return (ni - int(np.searchsorted(imp, t, "left"))) / ni, int(np.searchsorted(gen, t, "left")) / ng

    # FMR falls and FNMR rises with the threshold: find the last score of each sample at which FMR >= FNMR.
    low = []
    for sample in (gen, imp):
        lo, hi = -1, len(sample)
        while hi - lo > 1:
            mid = (lo + hi) // 2
            fmr, fnmr = rates(sample[mid])
            lo, hi = (mid, hi) if fmr >= fnmr else (lo, mid)
        if lo >= 0:
            low.append(sample[lo])
    # The lowest score of all accepts everything (FMR 1, FNMR 0), so ``low`` is not empty.
    t = max(low)
    above = [s[i] for s in (gen, imp) if (i := int(np.searchsorted(s, t, "right"))) < len(s)]
    here = rates(t)
    after = rates(min(above)) if above else (0.0, 1.0)
    return Eer(float(crossing(*here, *after)), float(t))


def auc(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> float:
    """Probability that a genuine score exceeds an impostor score, ties counted half (Mann-Whitney)."""
    gen, imp = _sorted(genuine, "genuine"), _sorted(impostor, "impostor")
    twice = np.searchsorted(imp, gen, "left").sum(dtype=np.int64) + np.searchsorted(imp, gen, "right").sum(dtype=np.int64)
    return float(twice / (2 * len(gen) * len(imp)))


def roc(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> Roc:
    """All operating points, one per distinct score, then (0, 1) at +inf."""
    gen, imp = _sorted(genuine, "genuine"), _sorted(impostor, "impostor")
    t = np.sort(np.concatenate([gen, imp]))
    t = t[np.concatenate([[True], t[1:] != t[:-1]])]
    fmr = np.append((len(imp) - np.searchsorted(imp, t, "left")) / len(imp), 0.0)
    fnmr = np.append(np.searchsorted(gen, t, "left") / len(gen), 1.0)
    return Roc(np.append(t.astype(np.float64), np.inf), fmr, fnmr)


def thin(curve: Roc, points: int = 200) -> Roc:
    """At most ``points`` of the operating points, spread evenly along the DET curve (normal-deviate axes); ends kept."""
    from scipy.special import ndtri

    n = len(curve.fmr)
    if n <= points:
        return curve
    x, y = ndtri(np.clip(curve.fmr, 1e-6, 1 - 1e-6)), ndtri(np.clip(curve.fnmr, 1e-6, 1 - 1e-6))
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.unique(np.searchsorted(way, np.linspace(0, way[-1], points)).clip(0, n - 1))
    keep[0], keep[-1] = 0, n - 1
    return Roc(curve.threshold[keep], curve.fmr[keep], curve.fnmr[keep])
