"""Open-set identification: the person on a probe may or may not be enrolled, and a threshold decides whether to name anybody.

Terms of ISO/IEC 19795-1 (FNIR, FPIR), at rank 1 and with a threshold, as the 1:N track of NIST's FRVT reports them.  Each
probe is searched for twice:

- a *mated* search, in the whole gallery (without the probe's own image).  It succeeds if a mate ranks first and scores at
  least the threshold.  FNIR is the share that does not;
- a *non-mated* search, in the gallery without any image of the probe's person, as if that person had never been enrolled.
  Any score at or above the threshold names a stranger.  FPIR is the share of searches in which that happens.

Ties take their expected value under random order, as in :mod:`deidbench.metrics.reid.identification`: m mates and t strangers
level at the top give a hit of m / (m + t).  A probe about which nothing is known (nothing released, or no embedding), and a
gallery image without an embedding, score -inf: at any finite threshold never a false positive, never a hit.

The threshold is fixed beforehand on *other* searches (clear ones, or those of attacker-train persons), never on the searches
that it judges; print the realised FPIR beside the FNIR.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.metrics.reid import verification
from deidbench.types import Floats


class Outcomes(NamedTuple):
    """What the searches of each probe found; each (n_probes,).

    best_mate, best_other: float32, highest score of a mate and of a stranger, -inf where there is none or nothing is known.
    tied_mates, tied_others: int64, how many have that score; 0 iff there is no mate, or no stranger, in the gallery.
    """

    best_mate: Floats
    best_other: Floats
    tied_mates: npt.NDArray[np.int64]
    tied_others: npt.NDArray[np.int64]


def outcomes(
    scores: Floats,
    probe_person: npt.NDArray[np.intp],
    gallery_person: npt.NDArray[np.intp],
    same_image: npt.NDArray[np.intp],
) -> Outcomes:
    """Outcomes of both searches of each probe; rows do not depend on each other, so tiles of probes may be concatenated.

    scores: float32 (n_probes, n_gallery), NaN where a probe or gallery row had no embedding.  same_image: (n_probes,)
    column of the probe's own image, which takes no part, -1 for none.
    """
    s = np.where(np.isnan(scores), np.float32(-np.inf), scores).astype(np.float32, copy=False)
    mate = probe_person[:, None] == gallery_person[None, :]
    other = ~mate
    rows = np.flatnonzero(same_image >= 0)
    mate[rows, same_image[rows]] = False
    other[rows, same_image[rows]] = False

    def top(of: npt.NDArray[np.bool_]) -> tuple[Floats, npt.NDArray[np.int64]]:
        best = np.max(s, axis=1, where=of, initial=-np.inf).astype(np.float32)
        return best, np.count_nonzero((s == best[:, None]) & of, axis=1).astype(np.int64)

    (best_mate, tied_mates), (best_other, tied_others) = top(mate), top(other)
    return Outcomes(best_mate, best_other, tied_mates, tied_others)


def hits(found: Outcomes) -> npt.NDArray[np.float64]:
    """Probability that a mate ranks first, whatever its score: float64 (n,), 0 where there is no mate."""
    m, t = found.tied_mates, found.tied_others
    # -inf on both sides is a tie as well: nothing is known of either.
    tie = np.divide(m, m + t, out=np.zeros(len(m)), where=m > 0)
    won = (m > 0) & ((found.best_mate > found.best_other) | (t == 0))
    level = found.best_mate == found.best_other
    out: npt.NDArray[np.float64] = np.where(won, 1.0, np.where(level, tie, 0.0))
    return out


def threshold_at_fpir(best_other: npt.ArrayLike, fpir: float) -> float:
    """The smallest float32 threshold at which at most the share ``fpir`` of these searches names a stranger.

    best_other: (n,) of searches other than those that the threshold will judge.  With m = floor(fpir * n) false positives
    allowed, it is the next float32 above the (m + 1)-th highest, so the realised rate is never above the target.
    """
    if not 0 <= fpir < 1:
        raise ValueError(f"an FPIR target is a rate in [0, 1), not {fpir!r}")
    if not np.size(best_other):
        raise ValueError("no searches")
    return verification.threshold_at_fmr(best_other, fpir)


def unsupported(fpir: float, searches: int, persons: int) -> str:
    """Why ``searches`` non-mated searches for ``persons`` persons cannot support an FPIR target; "" where they can.

    The rule: at least 30 / fpir searches (30 false positives expected: Doddington's rule of 30), and at least 1 / fpir
    persons, because searches for one person tend to err together: with fewer, one person alone can use up what is allowed.
    """
    if searches * fpir < 30 - 1e-9:
        need = f"{int(np.ceil(30 / fpir - 1e-9))} (30 expected false positives)" if fpir > 0 else "infinitely many"
        return f"{searches} searches do not support FPIR {fpir:g}: that takes {need}"
    if persons * fpir < 1 - 1e-9:
        return f"{persons} persons do not support FPIR {fpir:g}: that takes {int(np.ceil(1 / fpir - 1e-9))}"
    return ""


def fpir(found: Outcomes, threshold: float) -> npt.NDArray[np.float64]:
    """Whether each non-mated search names a stranger: float64 (n,), 0 or 1.  Its mean is the FPIR."""
    named = (found.best_other >= np.float32(threshold)) & (found.tied_others > 0)
    return named.astype(np.float64)


def fnir(found: Outcomes, threshold: float) -> npt.NDArray[np.float64]:
    """Probability that each mated search misses: float64 (n,) in [0, 1].  Its mean is the FNIR.

    Raises ValueError for a probe without a mate: its search is not mated; leave it out and say so.
    """
    if np.any(found.tied_mates < 1):
        raise ValueError("a probe without a mate in the gallery makes no mated search; leave it out and say so")
    missed: npt.NDArray[np.float64] = np.where(found.best_mate >= np.float32(threshold), 1 - hits(found), 1.0)
    return missed
