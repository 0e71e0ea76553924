"""What the recognisers share: the check of their input, loading once, and the alignment templates of the field."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.metrics.models.base import Recognizer, l2_normalise
from deidbench.types import CropSpec, Floats, Image

#: Five points in the order of the templates below: eye centres, tip of the nose, corners of the mouth.
FIVE_POINTS = ("eye_l", "eye_r", "nose", "mouth_l", "mouth_r")

#: Positions in a 112 x 112 crop that ArcFace, and most recognisers after it, are trained on (Deng et al. 2019; also in
#: OpenCV's FaceRecognizerSF::alignCrop).
ARCFACE_112 = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def arcface_crop(size: int) -> CropSpec:
    """The ArcFace template scaled to ``size`` pixels."""
    return CropSpec(FIVE_POINTS, tuple((x / 112, y / 112) for x, y in ARCFACE_112), size)


def box_crop(size: int) -> CropSpec:
    """What an MTCNN box with facenet-pytorch's margin of 14 pixels in 160 holds, as five points.

    Measured: MTCNN (image_size=160, margin=14) on one image of each of the 40 ORL persons, mean position of the points
    in the crop, made symmetric about the middle.  MTCNN stretches its box to a square and does not turn it; the template
    is what is left of that for a similarity transform.
    """
    return CropSpec(FIVE_POINTS, ((0.290, 0.403), (0.710, 0.403), (0.500, 0.582), (0.317, 0.727), (0.683, 0.727)), size)


def check_crops(crops: npt.NDArray[Any], spec: CropSpec, who: str) -> Image:
    """``crops`` itself when it is uint8 (n, size, size, 3) as ``spec`` cuts it; InputError naming ``who`` otherwise."""
    want = f"uint8 (n, {spec.size}, {spec.size}, 3)"
    if not isinstance(crops, np.ndarray):
        raise InputError(
            f"{who} takes {want} arrays, not {type(crops).__name__}", "cut the crops with deidbench.faces.align and stack them"
        )
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (spec.size, spec.size, 3):
        raise InputError(
            f"{who} takes RGB {want}, not {crops.dtype} {crops.shape}",
            "cut the crops with deidbench.faces.align and this model's crop",
        )
    return crops


class LoadedRecognizer(Recognizer):
    """A recogniser that keeps one loaded model: checks the input, loads on demand, normalises the output.

    A copy that travels to another process leaves the loaded model behind and loads it there.
    """

    _model: Any = None

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of an embedding."""

    @abstractmethod
    def _forward(self, crops: Image) -> npt.NDArray[Any]:
        """Raw embeddings (n, dim) of n > 0 checked crops; :meth:`load` has run."""

    def embed(self, crops: Image) -> Floats:
        """See :meth:`Recognizer.embed`.  Raises InputError for crops of another shape or type, and what :meth:`load` raises."""
        crops = check_crops(crops, self.crop, f"recognizer {self.name!r}")
        self.load()
        if len(crops) == 0:
            return np.zeros((0, self.dim), np.float32)
        return l2_normalise(self._forward(np.ascontiguousarray(crops)))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_model"}
