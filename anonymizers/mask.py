"""The face filled with one colour.  What lies around the region (hair, clothes, background) stays and still leaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deidbench.anonymizers.regions import Area, RegionAnonymizer, check_colour
from deidbench.kinds import anonymizers
from deidbench.types import Image


@anonymizers.register("mask")
class Mask(RegionAnonymizer):
    """The region filled with ``colour``.

    colour: R, G, B in 0..255.  region, margin, feather: see :mod:`deidbench.anonymizers.regions`.  What can be made
    stronger here is how far the mask reaches: the sweep varies ``margin``.
    """

    citation = (
        "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (ad hoc methods)"
    )
    licence = "Apache-2.0 (part of deidbench)"
    strength = "margin"

    def __init__(
        self, colour: Sequence[int] = (0, 0, 0), region: str = "ellipse", margin: float = 1.3, feather: float = 0.0
    ) -> None:
        self.colour = colour
        self.region = region
        self.margin = margin
        self.feather = feather

    def validate(self) -> None:
        super().validate()
        check_colour(self.name, "colour", self.colour)

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        return np.broadcast_to(np.array(self.colour, np.uint8), (*area.window.shape, 3))
