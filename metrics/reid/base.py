"""The interface of an attacker: somebody who holds photographs of known persons and wants to name an anonymised one."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from deidbench.metrics.base import Table
from deidbench.metrics.models._common import arcface_crop
from deidbench.types import Floats

if TYPE_CHECKING:
    from deidbench.metrics.reid.training import Training

#: Grid of similarity scores, 2**-16 (about 1.5e-5).  Recognisers promise embeddings that agree to 1e-5 between batches
#: (``Recognizer.embed``); a smaller difference of scores is noise of the machine, not information of the attacker.  On
#: the grid identical pictures tie exactly, whatever batches they were embedded in, and every score is exact in float32.
SCORE_GRID = 2.0**-16
#: Embeddings are rounded to multiples of 2**-26 before the product.  Products are then multiples of 2**-52 whose partial
#: sums stay below 2 in magnitude (Cauchy-Schwarz, unit rows): they are exact in float64 in any order of summation, so the
#: score of a pair does not depend on tile, batch, thread or BLAS.  The rounding itself moves a score by about 1e-8.
_EMBEDDING_GRID = 2.0**-26


#: The face as attackers on raw pixels see it: the ArcFace template at 112 pixels, which SFace uses as well.
CROP = arcface_crop(112)
#: Stands where other attackers name the recogniser, for those that learn from pixels alone.
PIXELS = "pixels"


class Attacker(ABC):
    """Scores how alike gallery images and probes are; the higher, the more alike.

    An instance serves one recogniser.  A subclass stores parameters in ``__init__`` under their names and nothing else; what
    it learns ends in ``_``.
    """

    #: Set by the registry.
    name: ClassVar[str] = ""
    #: Raise it when a score for the same input changes.
    version: ClassVar[str] = "1"
    #: One sentence: what the attacker has and knows.
    knows: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    #: True where :meth:`scores` is :func:`cosine`: too many pairs for a matrix are then compared in a stream.
    by_cosine: ClassVar[bool] = False
    #: Which images the attacker enrolled: "clear" photographs, or "anonymised" ones made with the same method.
    gallery: ClassVar[Literal["clear", "anonymised"]] = "clear"

    def params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def missing(self) -> str:
        """Empty when the attacker can be carried out on this machine, otherwise why not and what would help."""
        return ""

    def columns(self, recognizers: Sequence[str]) -> list[str]:
        """The recognisers that the attack is carried out with, one after the other, given those of the suite."""
        return list(recognizers)

    @abstractmethod
    def scores(self, gallery: Floats, probes: Floats) -> Floats:
        """gallery: float32 (n_gallery, d), probes: float32 (n_probes, d), rows L2-normalised or NaN.

        Returns float32 (n_probes, n_gallery), NaN where a row of either is NaN, else finite.  The score of a pair
        does not depend on what else is in ``gallery`` and ``probes``.
        """


class TrainedAttacker(Attacker):
    """An attacker that learns from attacker-train persons, none of whom is evaluated.

    :meth:`fit` is called once per seed on a fresh instance, then :meth:`represent`.  The rest (who is held out, which seed
    counts, thresholds, scores) is done for all of them in the same way.
    """

    #: What it learns from: the recognisers' embeddings, or the crops' pixels.
    reads: ClassVar[Literal["embeddings", "crops"]] = "embeddings"
    gallery: ClassVar[Literal["clear", "anonymised"]] = "anonymised"
    by_cosine = True

    @abstractmethod
    def fit(self, training: Training, recognizer: str, seed: int) -> None:
        """Learns.  recognizer: one out of :meth:`columns`.  Everything random follows from ``seed``.

        Raises :class:`deidbench.metrics.reid.training.CannotLearn` with the reason where the data does not allow it.
        """

    @abstractmethod
    def represent(self, table: Table, *, enrolled: bool = False) -> Floats:
        """float32 (n, d), rows L2-normalised, NaN where nothing was released.  A row depends on that image alone.

        Called for the anonymised images, and where ``gallery`` is "clear" also for the clear ones, with ``enrolled``.
        """

    @property
    def learnt(self) -> str:
        """A few words for the results on what was learnt, e.g. "PCA 200, 118 persons"."""
        return ""

    def scores(self, gallery: Floats, probes: Floats) -> Floats:
        return cosine(gallery, probes)


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
