"""Minimum log-likelihood-ratio cost: what the scores of a recogniser tell about identity, were they read as well as possible.

Cllr (Brümmer & du Preez 2006, "Application-independent evaluation of speaker detection") is the cost, in bits, of scores
read as likelihood ratios, at equal priors::

    Cllr = 1/2 (mean over genuine of log2(1 + 1 / LR)  +  mean over impostors of log2(1 + LR))

Cllr_min is its least value over all monotone readings of the scores.  The best reading comes from pool-adjacent-violators
(PAV) on the scores in ascending order; tied scores are one score.  Within a block that holds the share a of the genuine and
b of the impostor scores it is LR = a / b, so that ::

    Cllr_min = 1/2 sum over blocks of (a log2((a + b) / a) + b log2((a + b) / b))

0: a threshold separates the samples.  1: the scores say nothing.  Blocks are the segments of the ROC's convex hull.  As the
reading is fitted to the very scores that it is judged on, few scores give a figure that is too low.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deidbench.stats import roc

Values = npt.NDArray[np.float64]


def cllr_min(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> float:
    """Cllr_min in bits, in [0, 1].

    genuine, impostor: scores, any length, unsorted; -inf (a comparison that could not be made) is the lowest of all scores.
    Raises ValueError for empty samples and NaN.
    """
    levels = roc.levels(genuine, impostor)
    return float(cllr_min_from_counts(levels.genuine[None], levels.impostor[None])[0])


def cllr_min_from_counts(genuine: npt.NDArray[Any], impostor: npt.NDArray[Any]) -> Values:
    """Cllr_min of binned scores, for many replicates at once: float64 (B,), NaN where a replicate lacks one of the samples.

    genuine, impostor: (B, bins) counts or weights, not negative, bins in ascending order of score.
    """
    from sklearn.isotonic import isotonic_regression

    gen, imp = np.asarray(genuine, np.float64), np.asarray(impostor, np.float64)
    all_gen, all_imp = gen.sum(1), imp.sum(1)
    ok = (all_gen > 0) & (all_imp > 0)
    out = np.full(len(gen), np.nan)
    # One regression for all replicates: shares lie in [0, 1], and each replicate's are lifted above those before it.
    weight = np.where(ok[:, None], gen + imp, 0)
    replicate, column = np.nonzero(weight)
    if not len(replicate):
        return out
    gen, imp, weight = gen[replicate, column], imp[replicate, column], weight[replicate, column]
    fit = isotonic_regression(gen / weight + 2.0 * replicate, sample_weight=weight)
    first = np.flatnonzero(np.concatenate([[True], fit[1:] != fit[:-1]]))
    replicate = replicate[first]
    # Each block's LR is taken from its own sums: the lift has cost the fitted shares digits.
    a = np.add.reduceat(gen, first) / all_gen[replicate]
    b = np.add.reduceat(imp, first) / all_imp[replicate]
    cost = np.zeros(len(a))
    mixed = (a > 0) & (b > 0)
    a, b = a[mixed], b[mixed]
    cost[mixed] = a * np.log2((a + b) / a) + b * np.log2((a + b) / b)
    # Rounding may leave a constant score at 1 - 1e-16 or 1 + 1e-16, which would be another figure than "says nothing".
    total = np.bincount(replicate, weights=cost, minlength=len(ok)) / 2
    out[ok] = np.minimum(total, 1)[ok]
    return out
