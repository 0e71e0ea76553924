"""What the mechanisms with a privacy parameter share: where they act, on which channels, and that they draw at random.

The whole frame is the honest default: nothing of the image is left as it was, and nothing that happens depends on what a
face detector saw, so a guarantee on images is one on what is released.  With ``region = "box"`` the mechanism acts on the
rectangle around each face; its place and size, and all that lies around it, are released as they are and not protected.

A guarantee holds for one release of one image, and against whoever does not know the noise.  Here the noise follows from a
seed, so that a run can be repeated: for pictures that are really released choose one at random (``--seed``), and keep it
and the status file, which names each image's, to yourself.
Noise is floating-point (Mironov, CCS 2012, on what that can give away); what is released is clipped to 0..255 and rounded,
which cannot weaken a guarantee (post-processing).  The size of an image counts as public.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.regions import Area, RegionAnonymizer, Window, check_choice, check_number, image_fault, luma
from deidbench.types import Anonymized, Box, FaceResult, Image, Item, Status

Values = npt.NDArray[np.float64]


class Mechanism(RegionAnonymizer):
    """A randomised mechanism on the grey levels, or on the three channels, of the whole frame or of each face's box.

    channels: "grey" releases the luma (one channel, whatever the image is: that it was grey is not given away), "rgb" all
    three.  region: "frame" or "box" (the face's box times ``margin``).
    """

    deterministic = False
    strength = "epsilon"

    epsilon: float
    channels: str
    region: str = "frame"
    margin: float = 1.3

    @property
    def needs_faces(self) -> bool:  # type: ignore[override]
        """False where the whole frame is replaced: what happens to an image must not depend on a detector."""
        return self.region != "frame"

    def validate(self) -> None:
        check_choice(self.name, "region", self.region, ("frame", "box"))
        check_choice(self.name, "channels", self.channels, ("grey", "rgb"))
        check_number(self.name, "margin", self.margin, 0.1, 10)
        check_number(self.name, "epsilon", self.epsilon, 0, 1e9, open_low=True)

    @abstractmethod
    def perturbed(self, values: Image, rng: np.random.Generator) -> Values:
        """The mechanism's output before it is clipped and rounded, float64 like ``values``: uint8 (h, w, channels)."""

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        patch = image[area.window.slices]
        values = luma(patch)[:, :, None] if self.channels == "grey" else patch
        new = np.clip(np.rint(self.perturbed(values, rng)), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(new, patch.shape))

    def _one(self, item: Item) -> Anonymized:
        if self.needs_faces:
            return super()._one(item)
        if fault := image_fault(item.image):
            return Anonymized.failed(item.id, fault)
        height, width = item.image.shape[:2]
        box = Box(0.0, 0.0, float(width), float(height))
        area = Area(box, Window(0, height, 0, width), np.ones((height, width), np.bool_))
        try:
            new = self._new_pixels(item.image, area, box.size, np.random.default_rng([item.seed % 2**64, 0]))
        except Exception as error:  # one bad item must not take the batch with it; the reason is kept with the item
            return Anonymized.failed(item.id, f"{type(error).__name__}: {error}")
        return Anonymized(item.id, Status.OK, new, tuple(FaceResult(Status.OK, box) for _ in item.faces or ()))

    @property
    def _where(self) -> str:
        """What the guarantee covers, for :attr:`guarantee`."""
        return "image" if self.region == "frame" else "face box (its place and what surrounds it are not protected)"
