"""Pixelation (mosaic) whose blocks scale with the face."""

from __future__ import annotations

import numpy as np

from deidbench.anonymizers.regions import Area, RegionAnonymizer, block_means, cell_starts, check_length, spread
from deidbench.kinds import anonymizers
from deidbench.types import Image


@anonymizers.register("pixelate")
class Pixelate(RegionAnonymizer):
    """Blocks of one colour, each the mean of the pixels that it covers.

    block: side of a block as a fraction of the face size, above 0 up to 2; 1 / block is the number of cells across the
    face (0.125: 8 cells); with unit="pixel" in pixels, above 0 up to 1,000.  A block is never smaller than 2 pixels: smaller ones would change nothing.
    Blocks are laid from the upper left corner of the region's box and cut off where the box or the image ends; a mean
    never takes in anything beyond the image.  Sides that are no whole number of pixels are kept on average: a pixel
    belongs to the block in which its centre lies.
    region, margin, feather: see :mod:`deidbench.anonymizers.regions`.
    """

    citation = (
        "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (ad hoc methods)"
    )
    licence = "Apache-2.0 (part of deidbench)"
    strength = "block"

    def __init__(
        self,
        block: float = 0.125,
        region: str = "ellipse",
        margin: float = 1.3,
        feather: float = 0.0,
        unit: str = "face",
    ) -> None:
        self.block = block
        self.unit = unit
        self.region = region
        self.margin = margin
        self.feather = feather

    def validate(self) -> None:
        super().validate()
        check_length(self.name, "block", self.block, self.unit)

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        side = max(self.block * (size if self.unit == "face" else 1), 2.0)
        window = area.window
        patch = image[window.slices]
        rows = cell_starts(area.box.y0, side, window.y0, window.y1)
        columns = cell_starts(area.box.x0, side, window.x0, window.x1)
        means = np.floor(block_means(patch, rows, columns) + 0.5).astype(np.uint8)  # halves rounded up
        return spread(means, rows, columns, window.shape)
