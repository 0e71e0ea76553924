"""Exact error rates of a comparison of two score samples: genuine (same person) and impostor (different persons).

A pair is accepted iff ``score >= threshold``.  FMR(t) is the share of impostors accepted, FNMR(t) the share of genuine
pairs rejected.  Scores are used as they are: never squashed, binned or clipped, any finite value and -inf allowed.

The ROC polyline joins the operating points of all distinct thresholds by straight lines, from (FMR 1, FNMR 0) to
(0, 1).  Where genuine and impostor scores tie, the straight line is the expected value under random order of the tied
scores, so a constant score has EER and AUC exactly 0.5.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

#: Above this many scores in both samples together, the EER is looked for in a bracket found on a part of them.
_MANY = 1 << 16
#: Scores of each sample that the bracket is found on.
_PROBE = 1 << 13


class Roc(NamedTuple):
    """Operating points, thresholds ascending; the last threshold is +inf.  Each array is (n,)."""

    threshold: npt.NDArray[np.float64]
    fmr: npt.NDArray[np.float64]
    fnmr: npt.NDArray[np.float64]


class Levels(NamedTuple):
    """Both samples counted per distinct score; each array (n,).

    score: ascending float64.  genuine, impostor: int64, how many have that score.  genuine_below,
    impostor_below: int64, how many have a lower one.
    """

    score: npt.NDArray[np.float64]
    genuine: npt.NDArray[np.int64]
    impostor: npt.NDArray[np.int64]
    genuine_below: npt.NDArray[np.int64]
    impostor_below: npt.NDArray[np.int64]

    def auc(self) -> float:
        """See :func:`auc`."""
        # Twice the wins of each level's genuine scores; below 2**63 for 2 billion scores a side.
        twice = int((self.genuine * (2 * self.impostor_below + self.impostor)).sum())
        return twice / (2 * int(self.genuine.sum()) * int(self.impostor.sum()))

    def roc(self) -> Roc:
        """See :func:`roc`: the same points, without sorting anew."""
        ng, ni = int(self.genuine.sum()), int(self.impostor.sum())
        n = len(self.score)
        threshold, fmr, fnmr = (np.empty(n + 1) for _ in Roc._fields)
        threshold[:-1], threshold[-1] = self.score, np.inf
        np.subtract(ni, self.impostor_below, out=fmr[:-1], casting="unsafe")
        fmr[-1], fnmr[-1] = 0, ng
        fnmr[:-1] = self.genuine_below
        fmr /= ni
        fnmr /= ng
        return Roc(threshold, fmr, fnmr)


class Eer(NamedTuple):
    """Equal error rate, and the operating threshold just below the crossing."""

    value: float
    threshold: float


def _checked(scores: npt.ArrayLike, kind: str) -> npt.NDArray[Any]:
    """Flat float32 or float64.  Raises ValueError where there are none, and for NaN."""
    x = np.asarray(scores)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    x = x.ravel()
    if x.size == 0:
        raise ValueError(f"no {kind} scores")
    if np.isnan(x.min()):  # NaN is every minimum
        raise ValueError(f"{kind} scores contain NaN: a failed comparison is -inf, never left out")
    return x


def crossing(fmr: Any, fnmr: Any, fmr_next: Any, fnmr_next: Any) -> Any:
    """FMR = FNMR on the line from (fmr, fnmr), where fmr >= fnmr, to the next point, where it is not.  Elementwise."""
    before, after = fmr - fnmr, fmr_next - fnmr_next
    return fmr + (fmr_next - fmr) * (before / (before - after))


def eer(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> Eer:
    """Exact equal error rate: where the ROC polyline meets FMR = FNMR (linear interpolation, no convex hull).

    genuine, impostor: scores, any length, unsorted.  No ROC is built: large samples are counted outside a bracket around
    the crossing, and only what lies inside is sorted and bisected.
    Raises ValueError for empty samples and NaN.
    """
    gen, imp = _checked(genuine, "genuine"), _checked(impostor, "impostor")
    ng, ni = len(gen), len(imp)
    if ng + ni > _MANY:
        gen, gen_below, imp, imp_below = _bracketed(gen, imp)
    else:
        gen_below = imp_below = 0
    gen, imp = np.sort(gen), np.sort(imp)

    def rates(t: Any) -> tuple[float, float]:
        accepted = ni - imp_below - int(np.searchsorted(imp, t, "left"))
        return accepted / ni, (gen_below + int(np.searchsorted(gen, t, "left"))) / ng

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


def _bracketed(gen: npt.NDArray[Any], imp: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int, npt.NDArray[Any], int]:
    """The scores among which the crossing lies, and how many lie below: genuine, below, impostor, below.  Unsorted.

    The ends of the bracket are scores of evenly spaced members of both samples, well to the left and right of where those
    cross.  They are checked on all scores: if the crossing is not between them (scores in some periodic order), nothing is
    left out.
    """
    part_g, part_i = (np.sort(x[:: max(1, len(x) // _PROBE)]) for x in (gen, imp))
    points = np.sort(np.concatenate([part_g, part_i]))
    fmr = 1 - np.searchsorted(part_i, points, "left") / len(part_i)
    fnmr = np.searchsorted(part_g, points, "left") / len(part_g)
    # Six standard errors of the difference of two rates, each at most sqrt(1 / (4 n)).
    margin = 3 * np.sqrt(1 / len(part_g) + 1 / len(part_i))
    left, right = np.flatnonzero(fmr - fnmr > margin), np.flatnonzero(fmr - fnmr < -margin)
    lo = points[left[-1]] if len(left) else -np.inf
    hi = points[right[0]] if len(right) else np.inf
    ng, ni = len(gen), len(imp)

    def below(x: npt.NDArray[Any], t: Any) -> int:
        return int(np.count_nonzero(x < t))

    gen_below, imp_below = below(gen, lo), below(imp, lo)
    # lo itself must be at or before the last score with FMR >= FNMR, and hi behind it.
    start = (ni - imp_below) / ni >= gen_below / ng
    end = hi == np.inf or (ni - below(imp, hi)) / ni < below(gen, hi) / ng
    if not (start and end):
        return gen, 0, imp, 0
    inside = [x[(x >= lo) & (x <= hi)] for x in (gen, imp)]
    return inside[0], gen_below, inside[1], imp_below


def auc(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> float:
    """Probability that a genuine score exceeds an impostor score, ties counted half (Mann-Whitney)."""
    return levels(genuine, impostor).auc()


def levels(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> Levels:
    """Both samples counted at each distinct score.  Raises ValueError for empty samples and NaN."""
    score, is_impostor, first = _pooled(_checked(genuine, "genuine"), _checked(impostor, "impostor"))
    n = len(score)
    below = np.empty(n + 1, np.int64)  # impostors among the first k
    below[0] = 0
    np.cumsum(is_impostor, out=below[1:])
    ends = np.arange(n + 1) if first is None else np.append(first, n)
    impostor_below = below if first is None else below[ends]
    genuine_below = ends - impostor_below
    return Levels(
        score if first is None else score[first],
        np.diff(genuine_below),
        np.diff(impostor_below),
        genuine_below[:-1],
        impostor_below[:-1],
    )


def _pooled(
    gen: npt.NDArray[Any], imp: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.intp] | None]:
    """All scores, ascending (ties in any order); whether each is an impostor's; where each distinct one starts.

    None for the last, if there are no ties.
    """
    if gen.dtype == imp.dtype == np.float32:
        score, is_impostor = _tagged(gen, imp)
    else:
        score = np.concatenate([gen, imp]).astype(np.float64, copy=False)
        order = np.argsort(score)
        score, is_impostor = score[order], order >= len(gen)
    new = np.empty(len(score), np.bool_)
    new[0] = True
    np.not_equal(score[1:], score[:-1], out=new[1:])
    return score, is_impostor, None if new.all() else np.flatnonzero(new)


def _tagged(
    gen: npt.NDArray[np.float32], imp: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """All scores, sorted, and whether each is an impostor's.

    A float32 in a float64 leaves 29 bits free: the lowest one says which sample a score comes from, and one plain sort
    sorts both, which is quicker than a sort of indices.
    """
    x = np.empty(len(gen) + len(imp))
    np.add(gen, np.float32(0), out=x[: len(gen)])  # -0.0 becomes 0.0, the same score
    np.add(imp, np.float32(0), out=x[len(gen) :])
    # With the bit set an infinity would be NaN.  Twice the largest float32 stands for it meanwhile.
    far = 2.0**129
    endless = any(np.isinf(end) for sample in (gen, imp) for end in (sample.min(), sample.max()))
    if endless:
        x.clip(-far, far, out=x)
    bits = x.view(np.int64)
    bits[len(gen) :] |= 1
    x.sort()
    tag = (x.view(np.int8)[:: x.itemsize] if sys.byteorder == "little" else bits) & 1
    bits &= ~1
    if endless:
        x[: np.searchsorted(x, -far, "right")] = -np.inf
        x[np.searchsorted(x, far, "left") :] = np.inf
    return x, tag.astype(np.bool_)


def roc(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> Roc:
    """All operating points, one per distinct score, then (0, 1) at +inf."""
    gen, imp = _checked(genuine, "genuine"), _checked(impostor, "impostor")
    score, is_impostor, first = _pooled(gen, imp)
    below = np.empty(len(score))  # impostors before each score: whole numbers
    below[0] = 0
    np.cumsum(is_impostor[:-1], out=below[1:])
    n = len(score) if first is None else len(first)
    threshold, fmr, fnmr = (np.empty(n + 1) for _ in Roc._fields)
    if first is None:
        threshold[:-1], fmr[:-1], fnmr[:-1] = score, below, np.arange(n)
    else:
        np.take(score, first, out=threshold[:-1], mode="clip")
        np.take(below, first, out=fmr[:-1], mode="clip")
        fnmr[:-1] = first
    threshold[-1], fmr[-1], fnmr[-1] = np.inf, len(imp), len(imp) + len(gen)
    # In place, in this order: all below less impostors below, over all genuine; impostors not below, over all impostors.
    fnmr -= fmr
    fnmr /= len(gen)
    np.subtract(len(imp), fmr, out=fmr)
    fmr /= len(imp)
    return Roc(threshold, fmr, fnmr)


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
