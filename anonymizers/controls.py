"""The control rows of every comparison: no anonymization at all, and nothing left to see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deidbench.anonymizers.base import Anonymizer
from deidbench.anonymizers.regions import image_fault
from deidbench.kinds import anonymizers
from deidbench.types import Anonymized, FaceResult, Image, Item, Status


class _Control(Anonymizer):
    licence = "Apache-2.0 (part of deidbench)"
    needs_faces = False

    def _frame(self, image: Image) -> Image:
        raise NotImplementedError

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Anonymized:
        if fault := image_fault(item.image):
            return Anonymized.failed(item.id, fault)
        faces = tuple(FaceResult(Status.OK, face.box) for face in item.faces or ())
        return Anonymized(item.id, Status.OK, self._frame(item.image), faces)


@anonymizers.register("original")
class Original(_Control):
    """The input, unchanged: the ceiling of utility and the floor of privacy.

    It reports ``ok`` like an anonymizer that does nothing would; finding out that this is a pass-through is the
    suite's business.
    """

    citation = "control row: no anonymization"

    def _frame(self, image: Image) -> Image:
        return image.copy()


@anonymizers.register("blackout")
class Blackout(_Control):
    """The whole frame black: the floor of utility.  Needs no faces, so it never withholds an image."""

    citation = "control row: nothing is left of the image"

    def _frame(self, image: Image) -> Image:
        return np.zeros_like(image)
