"""The aligned face itself, for attackers that learn from raw pixels; goes through the pipeline like an embedding."""

from __future__ import annotations

import numpy as np

from deidbench.metrics.models._common import arcface_crop, check_crops
from deidbench.metrics.models.base import Recognizer
from deidbench.types import CropSpec, Image


class AlignedPixels(Recognizer):
    """Not a recogniser: hands back the crop's bytes.  Never compared by cosine, and not registered."""

    name = "pixels"
    version = "1"
    dtype = np.uint8

    @property
    def crop(self) -> CropSpec:
        return arcface_crop(112)

    def load(self) -> None:
        return

    def embed(self, crops: Image) -> Image:  # type: ignore[override]
        """uint8 (n, 112 * 112 * 3), row by row, RGB."""
        return check_crops(crops, self.crop, "pixels").reshape(len(crops), -1)
