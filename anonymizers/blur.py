"""Gaussian blur whose width scales with the face."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.regions import Area, RegionAnonymizer, Window, block_means, check_length
from deidbench.kinds import anonymizers
from deidbench.types import Image

#: Weights end at this many sigmas, as in scipy.ndimage.gaussian_filter.
TRUNCATE = 4.0
#: Above this many pixels of sigma the frame is first averaged over blocks of sigma / COARSE pixels.
COARSE = 8
#: Smallest side of the tiles that a large window is worked through in.
TILE = 128


def gaussian_weights(start: int, stop: int, low: int, high: int, n: int, sigma: float, block: int) -> npt.NDArray[np.float64]:
    """Weights that blur a line of ``n`` pixels at the positions start:stop, float64 (stop - start, number of blocks).

    The line is known as means over blocks of ``block`` pixels that cover low:high (low is a multiple of ``block``; the
    last block may be shorter) and goes on as its mirror image on both ends (d c b a | a b c d | d c b a).
    With blocks of one pixel this is the sampled Gaussian cut off at ``TRUNCATE`` sigmas.  Averaging over a block widens
    the signal by the variance (block**2 - 1) / 12, which is taken off the kernel's.
    """
    edges = np.append(np.arange(low, high, block), high)
    centres, counts = (edges[:-1] + edges[1:] - 1) / 2, np.diff(edges)
    radius = int(TRUNCATE * sigma + 0.5)
    variance = sigma**2 - (block**2 - 1) / 12
    at = np.arange(start, stop, dtype=np.float64)[:, None]
    weights = np.zeros((stop - start, len(counts)))
    for period in range(-(radius // (2 * n)) - 1, radius // (2 * n) + 2):
        for image in (2 * n * period + centres, 2 * n * period - 1 - centres):
            if image.max() < start - radius or image.min() > stop + radius:
                continue
            distance = at - image
            weights += np.where(np.abs(distance) <= radius, np.exp(-(distance**2) / (2 * variance)), 0.0)
    weights *= counts
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def blurred(image: Image, window: Window, sigma: float) -> Image:
    """The pixels of ``window`` in ``image`` blurred by a Gaussian of ``sigma`` pixels, as if the whole frame had been blurred.

    RGB uint8 (h, w, 3).  Only what lies within the kernel's reach is read.  Up to 16 pixels of sigma the result is
    that of ``scipy.ndimage.gaussian_filter`` (mode "reflect"), rounded; above, within one grey level of it, at a cost
    that no longer grows with sigma.
    """
    block = max(1, int(sigma / COARSE))
    reach = int(TRUNCATE * sigma + 0.5)
    side = max(TILE, 2 * reach)  # in tiles: the weights of a whole frame would be a matrix of its side squared
    out = np.empty((*window.shape, 3), np.uint8)
    for y in range(window.y0, window.y1, side):
        for x in range(window.x0, window.x1, side):
            tile = Window(y, min(y + side, window.y1), x, min(x + side, window.x1))
            put = Window(tile.y0 - window.y0, tile.y1 - window.y0, tile.x0 - window.x0, tile.x1 - window.x0)
            out[put.slices] = _blurred_tile(image, tile, sigma, block, reach)
    return out


def _blurred_tile(image: Image, tile: Window, sigma: float, block: int, reach: int) -> Image:
    height, width = image.shape[:2]

    def line(start: int, stop: int, n: int) -> tuple[int, int, npt.NDArray[np.float64]]:
        # blocks lie on a grid of the frame, so that a pixel comes out the same whatever window it is asked for in
        low, high = max(start - reach, 0) // block * block, min(n, -(-(stop + reach) // block) * block)
        return low, high, gaussian_weights(start, stop, low, high, n, sigma, block)

    y0, y1, down = line(tile.y0, tile.y1, height)
    x0, x1, across = line(tile.x0, tile.x1, width)
    patch = image[y0:y1, x0:x1]
    rows, columns = np.arange(0, y1 - y0, block), np.arange(0, x1 - x0, block)
    out = np.empty((*tile.shape, 3), np.uint8)
    for channel in range(3):
        plane = patch[:, :, channel]
        if channel and np.array_equal(plane, patch[:, :, 0]):
            out[:, :, channel] = out[:, :, 0]  # grey stays grey, and costs a third
            continue
        means = plane.astype(np.float64) if block == 1 else block_means(plane, rows, columns)
        out[:, :, channel] = np.clip(np.rint(down @ means @ across.T), 0, 255)
    return out


@anonymizers.register("blur")
class Blur(RegionAnonymizer):
    """Gaussian blur.

    sigma: standard deviation as a fraction of the face size, above 0 up to 2 (0.15 is about the box blur of half the face's
    width that the tool deface applies); with unit="pixel" in pixels, above 0 up to 1,000.  region, margin, feather: see :mod:`deidbench.anonymizers.regions`.
    """

    citation = (
        "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (ad hoc methods)"
    )
    licence = "Apache-2.0 (part of deidbench)"
    strength = "sigma"

    def __init__(
        self,
        sigma: float = 0.15,
        region: str = "ellipse",
        margin: float = 1.3,
        feather: float = 0.0,
        unit: str = "face",
    ) -> None:
        self.sigma = sigma
        self.unit = unit
        self.region = region
        self.margin = margin
        self.feather = feather

    def validate(self) -> None:
        super().validate()
        check_length(self.name, "sigma", self.sigma, self.unit)

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        return blurred(image, area.window, self.sigma * (size if self.unit == "face" else 1))
