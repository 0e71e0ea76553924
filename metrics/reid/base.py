"""The interface of an attacker: somebody who holds photographs of known persons and wants to name an anonymised one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from deidbench.metrics.base import Table
from deidbench.types import Floats

#: Grid of similarity scores, 2**-16 (about 1.5e-5).  Recognisers promise embeddings that agree to 1e-5 between batches
#: (``Recognizer.embed``); a smaller difference of scores is noise of the machine, not information of the attacker.  On
#: the grid identical pictures tie exactly, whatever batches they were embedded in, and every score is exact in float32.
SCORE_GRID = 2.0**-16
#: Embeddings are rounded to multiples of 2**-26 before the product.  Products are then multiples of 2**-52 whose partial
#: sums stay below 2 in magnitude (Cauchy-Schwarz, unit rows): they are exact in float64 in any order of summation, so the
#: score of a pair does not depend on tile, batch, thread or BLAS.  The rounding itself moves a score by about 1e-8.
_EMBEDDING_GRID = 2.0**-26


class Attacker(ABC):
    """Scores how alike gallery images and probes are; the higher, the more alike.

    An instance serves one recogniser: :meth:`fit` is called once, then :meth:`scores` for tiles of probes.  A subclass
    stores parameters in ``__init__`` and nothing else; what it learns ends in ``_``.
    """

    #: Set by the registry.
    name: ClassVar[str] = ""
    #: Raise it when a score for the same input changes.
    version: ClassVar[str] = "1"
    #: One sentence: what the attacker has and knows.
    knows: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    #: Which images the attacker enrolled: "clear" photographs, or "anonymised" ones made with the same method.
    gallery: ClassVar[Literal["clear", "anonymised"]] = "clear"

    def fit(self, clear: Table | None, anonymised: Table | None, seed: int) -> None:  # noqa: B027 - a stock attacker learns nothing
        """Learns from images of *attacker-train* persons, never of those who are evaluated.

        clear, anonymised: the same images before and after, or None where the attacker gets none.
        """

    @abstractmethod
    def scores(self, gallery: Floats, probes: Floats) -> Floats:
        """gallery: float32 (n_gallery, d), probes: float32 (n_probes, d), rows L2-normalised or NaN.

        Returns float32 (n_probes, n_gallery), NaN where a row of either is NaN, else finite.  The score of a pair
        does not depend on what else is in ``gallery`` and ``probes``.
        """


def cosine(gallery: npt.NDArray[np.float32], probes: npt.NDArray[np.float32]) -> Floats:
    """Cosine similarity of unit rows on a grid of 2**-16: float32 (n_probes, n_gallery) in [-1, 1], NaN for NaN rows.

    Bit-identical for a pair whatever else is in the matrices.  Raises ValueError for rows that are not of unit length.
    """
    if gallery.ndim != 2 or probes.ndim != 2 or gallery.shape[1] != probes.shape[1]:
        raise ValueError(f"gallery {gallery.shape} and probes {probes.shape} must be matrices with the same number of columns")

    def on_grid(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        y = x.astype(np.float64)
        squared = np.einsum("ij,ij->i", y, y)
        if np.any(np.abs(squared - 1) > 1e-3):  # False for NaN
            raise ValueError("embeddings must be L2-normalised (or NaN): use l2_normalise")
        y[np.isnan(squared)] = 0  # set to NaN again below: BLAS promises nothing about NaN
        out: npt.NDArray[np.float64] = np.rint(y / _EMBEDDING_GRID) * _EMBEDDING_GRID
        return out

    score = on_grid(probes) @ on_grid(gallery).T
    score[np.isnan(probes).any(1)] = np.nan
    score[:, np.isnan(gallery).any(1)] = np.nan
    # Rows whose length is off by a float32 rounding may give 1.0000001, which is on the grid as 1: clip takes nothing away.
    out: Floats = (np.rint(score / SCORE_GRID) * SCORE_GRID).clip(-1, 1).astype(np.float32)
    return out
