"""DP-Pix: pixelation whose blocks carry Laplace noise, epsilon-differentially private."""

from __future__ import annotations

import numpy as np

from deidbench.anonymizers.private import Mechanism, Values
from deidbench.anonymizers.regions import block_means, spread
from deidbench.errors import InputError
from deidbench.kinds import anonymizers
from deidbench.types import Image


@anonymizers.register("dp-pix")
class DpPix(Mechanism):
    """Block means with Laplace noise: images that differ in at most m pixels cannot be told apart (epsilon).

    epsilon: the privacy parameter, above 0; larger is weaker.  m: number of pixels by which neighbouring images differ, each by
    as much as it may.  block: side of a block in pixels; larger blocks need less noise and show less.
    channels: "grey" or "rgb".  region: "frame" or "box" (``margin`` scales it); see :mod:`deidbench.anonymizers.private`.

    A mean of n pixels moves by up to 255 / n where one pixel changes, so its noise is Laplace of scale 255 m / (n epsilon).
    That is 255 m / (b^2 epsilon) for a whole block of b x b (Fan 2018).  A block that is cut off at the right or lower edge has
    fewer pixels and gets more noise, for the paper's scale would not keep epsilon there.  With m changed pixels spread
    over blocks, m_i each, the losses add up to sum(epsilon m_i / m) = epsilon.
    "rgb": a pixel may change in all three channels, so each has the noise of epsilon / 3; epsilon is for all of them.
    Pixels are used once: where boxes of two faces overlap, the second works on what the first released.
    """

    citation = "Fan: Image Pixelization with Differential Privacy, DBSec 2018, LNCS 10980, doi 10.1007/978-3-319-95729-6_10"
    licence = "Apache-2.0 (part of deidbench)"

    def __init__(
        self,
        epsilon: float = 0.5,
        m: int = 16,
        block: int = 16,
        channels: str = "grey",
        region: str = "frame",
        margin: float = 1.3,
    ) -> None:
        self.epsilon = epsilon
        self.m = m
        self.block = block
        self.channels = channels
        self.region = region
        self.margin = margin

    def validate(self) -> None:
        super().validate()
        for name, value, high in (("m", self.m, 10**9), ("block", self.block, 10_000)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
                raise InputError(
                    f"{self.name}: {name} = {value!r} is not allowed", f"{name} is a whole number from 1 to {high:,}"
                )

    @property
    def guarantee(self) -> str:
        return (
            f"epsilon-differential privacy, epsilon = {self.epsilon:g}, for images that differ in up to {self.m} pixels "
            f"(Fan 2018), per {self._where}, as long as the seed is secret"
        )

    def noise_scales(self, height: int, width: int) -> Values:
        """Scale of each block's Laplace noise in grey levels, float64 (rows, columns), for ``height`` x ``width`` pixels."""
        rows, columns = (np.diff(np.arange(0, n, self.block), append=n) for n in (height, width))
        channels = 1 if self.channels == "grey" else 3
        return np.asarray(channels * 255.0 * self.m / (np.outer(rows, columns) * self.epsilon))

    def perturbed(self, values: Image, rng: np.random.Generator) -> Values:
        height, width, channels = values.shape
        rows, columns = (np.arange(0, n, self.block, dtype=np.intp) for n in (height, width))
        # one channel at a time: for OpenCV (h, w, 1) is (h, w)
        means = np.stack([block_means(np.ascontiguousarray(values[:, :, c]), rows, columns) for c in range(channels)], axis=2)
        noise = rng.laplace(size=means.shape) * self.noise_scales(height, width)[:, :, None]
        return spread(means + noise, rows, columns, (height, width))
