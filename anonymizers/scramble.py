"""Scrambling: the pixels of the face in another, secret order."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.regions import Area, RegionAnonymizer, check_number
from deidbench.kinds import anonymizers
from deidbench.types import Image


@lru_cache(maxsize=64)
def _order(key: int, pixels: int) -> npt.NDArray[np.intp]:
    return np.random.default_rng([key, pixels]).permutation(pixels)


@anonymizers.register("scramble")
class Scramble(RegionAnonymizer):
    """The region's pixels in an order that follows from a key: the same for every face of as many pixels.

    Nothing is lost, all is out of place: it blinds a recogniser that knows faces only, and whoever learns from scrambled
    pictures, or has pairs to recover the order from, sees through it.  Its row shows whether a ladder of attackers works.
    Where faces are of different sizes, so are the orders; aligned crops (``level = "crop"``) share one.

    key: of the order.  Colours stay together.  region, margin, feather: see :mod:`deidbench.anonymizers.regions`.
    """

    citation = "a fixed permutation of pixels; PROTOCOL: the attackers that it blinds, and those that it does not"
    licence = "Apache-2.0 (part of deidbench)"

    def __init__(self, key: int = 1, region: str = "ellipse", margin: float = 1.3, feather: float = 0.0) -> None:
        self.key = key
        self.region = region
        self.margin = margin
        self.feather = feather

    def validate(self) -> None:
        super().validate()
        check_number(self.name, "key", self.key, 0, 2**63 - 1)

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        patch = image[area.window.slices].copy()
        inside = area.mask.astype(np.float32) > 0
        pixels = patch[inside]
        patch[inside] = pixels[_order(int(self.key), len(pixels))]
        return patch
