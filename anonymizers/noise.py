"""Gaussian noise whose grain scales with the face."""

from __future__ import annotations

import numpy as np

from deidbench.anonymizers.regions import Area, RegionAnonymizer, cell_starts, check_choice, check_number, spread
from deidbench.kinds import anonymizers
from deidbench.types import Image


@anonymizers.register("noise")
class Noise(RegionAnonymizer):
    """Gaussian noise added to the pixels, clipped to 0..255.

    sigma: standard deviation as a fraction of the full range (1 is 255 grey levels), above 0 up to 10.
    grain: side of the noise's square cells as a fraction of the face size, 0 (one pixel) up to 1; never below a pixel.
    Noise per pixel would be averaged away by a recogniser that scales a large face down to its input size; with a
    grain in proportion to the face, a small and a large picture of the same face are disturbed alike.
    channels: "shared" adds the same noise to R, G and B (grey stays grey), "independent" draws for each.
    region, margin, feather: see :mod:`deidbench.anonymizers.regions`.  The noise depends on the item's seed and on the
    number of the face in the image, and on nothing else.
    """

    citation = (
        "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (ad hoc methods)"
    )
    licence = "Apache-2.0 (part of deidbench)"
    deterministic = False
    strength = "sigma"

    def __init__(
        self,
        sigma: float = 0.5,
        grain: float = 0.03,
        channels: str = "shared",
        region: str = "ellipse",
        margin: float = 1.3,
        feather: float = 0.0,
    ) -> None:
        self.sigma = sigma
        self.grain = grain
        self.channels = channels
        self.region = region
        self.margin = margin
        self.feather = feather

    def validate(self) -> None:
        super().validate()
        check_number(self.name, "sigma", self.sigma, 0, 10, open_low=True)
        check_number(self.name, "grain", self.grain, 0, 1)
        check_choice(self.name, "channels", self.channels, ("shared", "independent"))

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        side = max(self.grain * size, 1.0)
        window = area.window
        rows = cell_starts(area.box.y0, side, window.y0, window.y1)
        columns = cell_starts(area.box.x0, side, window.x0, window.x1)
        layers = 1 if self.channels == "shared" else 3
        cells = rng.standard_normal((len(rows), len(columns), layers), np.float32) * np.float32(self.sigma * 255)
        noise = spread(cells, rows, columns, window.shape)
        return np.asarray(np.clip(np.rint(image[window.slices] + noise), 0, 255), np.uint8)
