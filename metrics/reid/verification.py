"""Verification: genuine and impostor scores, thresholds fixed beforehand, and the rates that they give.

A pair is accepted iff its score is at least the threshold.  A comparison that could not be made (nothing released, no
embedding) scores -inf: it is never accepted at a finite threshold, and stays in every denominator.
EER and AUC are in :mod:`deidbench.stats.roc`, where their conventions are stated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deidbench.stats.pairs import Pairs
from deidbench.stats.roc import Eer, Roc, auc, eer, roc, thin
from deidbench.types import Floats

__all__ = ["Eer", "Pairs", "Roc", "accepted_rate", "auc", "eer", "extract", "roc", "thin", "threshold_at_fmr", "unsupported"]


def extract(
    scores: Floats,
    probe_person: npt.NDArray[np.intp],
    gallery_person: npt.NDArray[np.intp],
    same_image: npt.NDArray[np.intp],
) -> Pairs:
    """All pairs of a score matrix (n_probes, n_gallery) but those of an image with itself.  NaN scores become -inf."""
    take = np.ones(scores.shape, np.bool_)
    rows = np.flatnonzero(same_image >= 0)
    take[rows, same_image[rows]] = False
    mate = probe_person[:, None] == gallery_person[None, :]
    stranger = ~mate
    genuine = np.nonzero(mate & take)
    values = np.where(np.isnan(scores), np.float32(-np.inf), scores).astype(np.float32, copy=False)
    return Pairs(
        values[genuine],
        probe_person[genuine[0]],
        values[stranger],
        np.repeat(probe_person, stranger.sum(1)),
        np.broadcast_to(gallery_person, scores.shape)[stranger],
    )


def threshold_at_fmr(impostor: npt.ArrayLike, fmr: float) -> float:
    """The smallest float32 threshold at which at most the share ``fmr`` of the impostor scores is accepted.

    Found on impostors only, never on genuine scores (which would fix the answer beforehand).  With m = floor(fmr * n)
    impostors allowed, it is the next float32 above the (m + 1)-th highest score.
    """
    x = np.asarray(impostor, np.float32).ravel()
    if not len(x):
        raise ValueError("no impostor scores")
    if np.isnan(x).any():
        raise ValueError("impostor scores contain NaN: a failed comparison is -inf, never left out")
    if not 0 <= fmr < 1:
        raise ValueError(f"an FMR target is a rate in [0, 1), not {fmr!r}")
    allowed = int(np.floor(fmr * len(x) + 1e-9))  # 0.29 * 100 is 28.999999999999996
    place = len(x) - 1 - allowed
    return float(np.nextafter(np.partition(x, place)[place], np.float32(np.inf)))


def unsupported(fmr: float, pairs: int, persons: int) -> str:
    """Why ``pairs`` impostor comparisons of ``persons`` persons cannot support an FMR target; "" where they can.

    The rule: at least 30 / fmr impostor pairs (30 false matches expected: Doddington's rule of 30), and at least
    1 / fmr unordered pairs of persons, because comparisons of the same two persons tend to err together.
    """
    if pairs * fmr < 30 - 1e-9:
        need = int(np.ceil(30 / fmr - 1e-9))
        return f"{pairs} impostor pairs do not support FMR {fmr:g}: that takes {need} (30 expected false matches)"
    two = persons * (persons - 1) // 2
    if two * fmr < 1 - 1e-9:
        need = int(np.ceil(1 / fmr - 1e-9))
        return f"{persons} persons ({two} pairs of persons) do not support FMR {fmr:g}: that takes {need} pairs of persons"
    return ""


def accepted_rate(scores: npt.ArrayLike, threshold: float) -> float:
    """Share of scores at or above the threshold: TMR of genuine scores, FMR of impostor scores."""
    x = np.asarray(scores)
    if not x.size:
        raise ValueError("no scores")
    return float(np.count_nonzero(x >= np.float32(threshold)) / x.size)
