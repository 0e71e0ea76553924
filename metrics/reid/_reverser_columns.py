"""Undoing a fixed shuffle of pixels: which pixel of the anonymised crops follows which pixel of the clear ones.

A fixed permutation hides a face from the eye and from a network, but each pixel still rises and falls over the pictures
exactly as it did before.  So the columns of the two matrices (pictures x pixels) are compared by their correlation, and each
clear pixel is read off the anonymised one that goes with it, by a straight line: that undoes any permutation, and any
brightness, contrast or inversion that each pixel was given besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.types import Floats

#: At most so many pairs are correlated, spread evenly over those given; the straight lines are fitted to all of them.
PICTURES = 300
#: Clear pixels with which a shuffle is looked for before all are matched.
SAMPLE = 256
#: Share of the sampled pixels that must be each other's best match for a shuffle to be there.
MUTUAL = 0.5
#: Correlations are compared on this grid, so that columns that are alike tie (and the first one counts) on any machine.
_GRID = np.float32(2.0**-16)
#: Clear pixels correlated at once: 512 x 12,544 correlations in float32 are 26 MB.
_TILE = 512


class Match(NamedTuple):
    """best: (k,) the anonymised column that goes with each of k clear ones.  mutual: share of them that go back to it."""

    best: npt.NDArray[np.intp]
    mutual: float


@dataclass(frozen=True, eq=False)
class Columns:
    """A shuffle found.  Value v of a restored crop, flattened, is gain[v] * value source[v] of the anonymised one + offset[v].

    source: intp (s * s * 3,).  gain, offset: float64 (s * s * 3,).  together: the channels of a pixel stay together.
    mutual: share of the sampled clear pixels that are their match's best match.
    """

    source: npt.NDArray[np.intp]
    gain: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    together: bool
    mutual: float

    def restore(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Anonymised crops uint8 (n, s, s, 3) -> clear ones as far as they can be told, same shape and type."""
        out = np.empty_like(crops)
        for i, crop in enumerate(crops):
            values = crop.reshape(-1)[self.source] * self.gain + self.offset
            out[i] = np.rint(values).clip(0, 255).astype(np.uint8).reshape(crop.shape)
        return out


def learn_columns(anonymised: npt.NDArray[np.uint8], clear: npt.NDArray[np.uint8]) -> Columns | None:
    """The shuffle between pairs, both uint8 (n, s, s, 3); None where there is none.

    Pixels are looked for as a whole first (each with its three channels), then each value on its own.
    """
    n = len(clear)
    few = np.unique(np.linspace(0, n - 1, min(n, PICTURES)).round().astype(np.intp))
    for together in (True, False):
        x, y = (_standardised(crops[few], together) for crops in (anonymised, clear))
        # spread evenly over the clear pixels that are not always the same
        alive = np.flatnonzero(np.abs(y).sum(axis=(0, 1)) > 0)
        if len(alive) == 0 or not x.any():
            return None
        sample = alive[np.unique(np.linspace(0, len(alive) - 1, min(len(alive), SAMPLE)).round().astype(np.intp))]
        mutual = matches(x, y, sample).mutual
        if mutual < MUTUAL:
            continue
        best = matches(x, y, np.arange(y.shape[2]), both_ways=False).best
        source = (best[:, None] * 3 + np.arange(3)).reshape(-1) if together else best
        return Columns(source, *_lines(anonymised, clear, source), together, mutual)
    return None


def matches(x: Floats, y: Floats, which: npt.NDArray[np.intp], *, both_ways: bool = True) -> Match:
    """The columns of ``x`` that go with the columns ``which`` of ``y``, both float32 (parts, n, columns), standardised.

    How well two columns go together is the mean over the parts of the size of their correlation.  Of columns that are alike the
    first counts.  mutual is NaN unless ``both_ways``; a column counts as going back where none does better.
    """
    best = np.empty(len(which), np.intp)
    score = np.empty(len(which), np.float32)
    for start in range(0, len(which), _TILE):
        rows = slice(start, start + _TILE)
        r = _together(np.ascontiguousarray(y[:, :, which[rows]]), x)
        best[rows] = r.argmax(axis=1)
        score[rows] = r[np.arange(len(r)), best[rows]]
    if not both_ways:
        return Match(best, np.nan)
    back = np.empty(len(which), np.float32)
    for start in range(0, len(which), _TILE):
        rows = slice(start, start + _TILE)
        back[rows] = _together(np.ascontiguousarray(x[:, :, best[rows]]), y).max(axis=1)
    return Match(best, float(np.mean(score >= back)))


def _together(a: Floats, b: Floats) -> Floats:
    """float32 (columns of a, columns of b): mean over the parts of |correlation|, on the grid."""
    total = np.zeros((a.shape[2], b.shape[2]), np.float32)
    for one, other in zip(a, b, strict=True):
        r = one.T @ other
        np.abs(r, out=r)
        total += r
    total /= np.float32(len(a)) * _GRID
    np.rint(total, out=total)
    return total


def _standardised(crops: npt.NDArray[np.uint8], together: bool) -> Floats:
    """Columns of mean 0 and length 1, float32: (3, n, s * s) a part per channel, or (1, n, s * s * 3); 0 where constant."""
    n = len(crops)
    flat = crops.reshape(n, -1, 3).transpose(2, 0, 1) if together else crops.reshape(1, n, -1)
    x = np.ascontiguousarray(flat, np.float32)  # rows that lie apart would not be multiplied by BLAS
    x -= x.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("pij,pij->pj", x, x))[:, None, :]
    # integers: what is not constant is off its mean by more than 1 / n somewhere
    x *= np.where(length > 0.5 / n, 1 / np.maximum(length, 1e-9), 0).astype(np.float32)
    return x


def _lines(
    anonymised: npt.NDArray[np.uint8], clear: npt.NDArray[np.uint8], source: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least-squares gain and offset from column source[v] of the anonymised values to column v of the clear ones.

    Sums of whole numbers, exact.  A column that never changes gives gain 0 and the mean of the clear one.
    """
    n, values = len(clear), len(source)
    sx, sy, sxx, sxy = (np.zeros(values, np.int64) for _ in range(4))
    for one, other in zip(anonymised, clear, strict=True):
        x = one.reshape(-1)[source].astype(np.int64)
        y = other.reshape(-1).astype(np.int64)
        sx += x
        sy += y
        sxx += x * x
        sxy += x * y
    variance = n * sxx - sx * sx
    gain = np.where(variance > 0, (n * sxy - sx * sy) / np.maximum(variance, 1), 0.0)
    return gain, (sy - gain * sx) / n
