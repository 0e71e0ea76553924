"""Metric privacy on an image's singular values."""

from __future__ import annotations

import numpy as np

from deidbench.anonymizers.private import Mechanism, Values
from deidbench.errors import InputError
from deidbench.kinds import anonymizers
from deidbench.types import Image


@anonymizers.register("metric-svd")
class MetricSvd(Mechanism):
    """An image made anew from its largest singular values, to which noise was added: metric privacy (epsilon times distance).

    epsilon: loss per unit of distance, above 0; larger is weaker.  The distance of two images is the Euclidean one of their
    ``rank`` largest singular values, grey levels taken as 0..1.  It is never more than that of their pixels as vectors
    (Mirsky 1960): two images that differ in m pixels, as much as pixels may, are at most sqrt(m) apart.
    rank: how many singular values are kept; the rest are dropped, which is most of the loss of detail.
    channels: "grey" or "rgb" (then the singular values of all three are one vector of 3 ``rank``, and so is the noise).
    region: "frame" or "box" (``margin`` scales it); see :mod:`deidbench.anonymizers.private`.

    The noise z has the density (1/2) (epsilon / sqrt(pi))^i Gamma(i/2) / Gamma(i) exp(-epsilon |z|) in i dimensions: a
    radius from Gamma(i, 1 / epsilon) and a direction uniform on the sphere.  For values at distance d the densities of an
    output differ by no more than exp(epsilon d).  (Fan 2019; Chatzikokolakis et al., PETS 2013, for the definition.)

    As in the paper the *singular vectors* are the image's own and are released as they are.  The guarantee is about the
    singular values alone: two images with the same values and other vectors are at distance 0, and anybody can tell them apart.
    The time grows with the cube of the shorter side; frames of many megapixels take minutes.
    """

    citation = "Fan: Practical Image Obfuscation with Provable Privacy, ICME 2019, pp. 784-789, doi 10.1109/ICME.2019.00140"
    licence = "Apache-2.0 (part of deidbench)"

    def __init__(
        self,
        epsilon: float = 0.5,
        rank: int = 4,
        channels: str = "grey",
        region: str = "frame",
        margin: float = 1.3,
    ) -> None:
        self.epsilon = epsilon
        self.rank = rank
        self.channels = channels
        self.region = region
        self.margin = margin

    def validate(self) -> None:
        super().validate()
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or not 1 <= self.rank <= 10_000:
            raise InputError(f"{self.name}: rank = {self.rank!r} is not allowed", "rank is a whole number from 1 to 10,000")

    @property
    def guarantee(self) -> str:
        return (
            f"metric privacy, epsilon = {self.epsilon:g} per unit of distance between the {self.rank} largest singular values "
            f"{'' if self.channels == 'grey' else 'per channel '}of two images with the same singular vectors, grey levels as 0..1 "
            f"(Fan 2019), per {self._where}, as long as the seed is secret; the singular vectors are not protected"
        )

    def noise(self, dimensions: int, rng: np.random.Generator) -> Values:
        """Noise on ``dimensions`` singular values, float64 (dimensions,), grey levels as 0..1."""
        direction = rng.standard_normal(dimensions)
        radius = rng.gamma(dimensions, 1 / self.epsilon)
        return np.asarray(radius * direction / np.linalg.norm(direction))

    def perturbed(self, values: Image, rng: np.random.Generator) -> Values:
        planes = np.moveaxis(values, 2, 0) / 255.0
        left, singular, right = np.linalg.svd(planes, full_matrices=False)
        rank = min(self.rank, singular.shape[1])
        kept = singular[:, :rank]
        noisy = kept + self.noise(kept.size, rng).reshape(kept.shape)
        made = (left[:, :, :rank] * noisy[:, None, :]) @ right[:, :rank]
        return np.moveaxis(made, 0, 2) * 255.0
