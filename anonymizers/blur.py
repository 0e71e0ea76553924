"""Gaussian blur whose width scales with the face."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.regions import Area, RegionAnonymizer, Window, check_number
from deidbench.kinds import anonymizers
from deidbench.types import Image

#: Weights end at this many sigmas, as in scipy.ndimage.gaussian_filter.
TRUNCATE = 4.0
#: Above this many pixels of sigma the frame is first averaged over blocks of sigma / COARSE pixels.
COARSE = 8


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
    height, width = image.shape[:2]
    block = max(1, int(sigma / COARSE))
    reach = int(TRUNCATE * sigma + 0.5)

    def line(start: int, stop: int, n: int) -> tuple[int, int, npt.NDArray[np.float64]]:
        low, high = max(start - reach, 0) // block * block, min(n, -(-(stop + reach) // block) * block)
        return low, high, gaussian_weights(start, stop, low, high, n, sigma, block)

    y0, y1, down = line(window.y0, window.y1, height)
    x0, x1, across = line(window.x0, window.x1, width)
    patch = image[y0:y1, x0:x1]
    out = np.empty((*window.shape, 3), np.uint8)
    for channel in range(3):
        if channel and np.array_equal(patch[:, :, channel], patch[:, :, 0]):
            out[:, :, channel] = out[:, :, 0]  # grey stays grey, and costs a third
            continue
        smooth = down @ block_means(patch[:, :, channel], block) @ across.T
        out[:, :, channel] = np.clip(np.rint(smooth), 0, 255)
    return out


def block_means(plane: npt.NDArray[np.uint8], block: int) -> npt.NDArray[np.float64]:
    """Means over blocks of ``block`` x ``block`` pixels from the upper left, float64; blocks at the far ends may be smaller."""
    if block == 1:
        return plane.astype(np.float64)
    rows, columns = np.arange(0, plane.shape[0], block), np.arange(0, plane.shape[1], block)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0, dtype=np.int64), columns, axis=1)
    counts = np.diff(rows, append=plane.shape[0])[:, None] * np.diff(columns, append=plane.shape[1])
    return np.asarray(sums / counts)


@anonymizers.register("blur")
class Blur(RegionAnonymizer):
    """Gaussian blur.

    sigma: standard deviation as a fraction of the face size, above 0 up to 2 (0.15 is about the box blur of half the face's
    width that the tool deface applies).  region, margin, feather: see :mod:`deidbench.anonymizers.regions`.
    """

    citation = (
        "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (ad hoc methods)"
    )
    licence = "Apache-2.0 (part of deidbench)"
    strength = "sigma"

    def __init__(self, sigma: float = 0.15, region: str = "ellipse", margin: float = 1.3, feather: float = 0.0) -> None:
        self.sigma = sigma
        self.region = region
        self.margin = margin
        self.feather = feather

    def validate(self) -> None:
        super().validate()
        check_number(self.name, "sigma", self.sigma, 0, 2, open_low=True)

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        return blurred(image, area.window, self.sigma * size)
