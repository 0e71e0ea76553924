"""A recogniser: who wears which colours."""

from __future__ import annotations

import numpy as np

from deidbench.metrics.models.base import Recognizer, l2_normalise
from deidbench.types import CropSpec, Floats, Image


class Palette(Recognizer):
    """The histogram of a face's colours: what a method leaves to an attacker who sees nothing but the palette.

    levels: bins per channel.  The similarity of two faces is Bhattacharyya's coefficient of their histograms (square roots of
    shares have unit length, and deidbench compares by the dot product).
    """

    version = "1"
    citation = "Swain and Ballard: Color indexing, IJCV 7(1), 1991"
    licence = "Apache-2.0"

    def __init__(self, levels: int = 8) -> None:
        self.levels = levels

    @property
    def crop(self) -> CropSpec:
        """The eyes lie level at 40 % of the height; 64 pixels are enough for colours."""
        return CropSpec(("eye_l", "eye_r"), ((0.35, 0.4), (0.65, 0.4)), 64)

    def load(self) -> None:
        """Nothing to read."""

    def embed(self, crops: Image) -> Floats:
        """crops: RGB uint8 (n, 64, 64, 3).  Returns float32 (n, levels ** 3), L2-normalised."""
        level = crops.astype(np.int64) * self.levels // 256
        bins = (level[..., 0] * self.levels + level[..., 1]) * self.levels + level[..., 2]
        counts = np.array([np.bincount(b.ravel(), minlength=self.levels**3) for b in bins], np.float64)
        return l2_normalise(np.sqrt(counts.reshape(len(crops), self.levels**3)))
