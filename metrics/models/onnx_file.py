"""Any recogniser in an ONNX file, ArcFace-style by default: InsightFace, AdaFace, own trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import recognizers
from deidbench.metrics.models._common import LoadedRecognizer, arcface_crop, box_crop
from deidbench.types import CropSpec, Image
from deidbench.weights import WeightFile, package_folder, sha256_of

_TEMPLATES = {"arcface": arcface_crop, "mtcnn": box_crop}
#: Fewer outputs than this are classes or scores, not an embedding.
_MIN_DIM = 16
#: Channels -> how many the input has.
CHANNELS = {"rgb": 3, "bgr": 3, "grey": 1}


class ImageInput(NamedTuple):
    """The one input of an ONNX file that takes images.  batch: size that the file fixes, None where any will do."""

    name: str
    nchw: bool
    batch: int | None
    dtype: type[np.floating[Any]]


def check_preparation(
    who: str, size: int, threads: int, mean: float | Sequence[float], std: float | Sequence[float], depth: int = 3
) -> None:
    """Raises InputError, on behalf of ``who``, for numbers with which no crop can be prepared."""
    if size < 8 or threads < 1:
        raise InputError(f"{who}: size {size} and threads {threads} must be at least 8 and 1", "e.g. size = 112, threads = 1")
    for label, value in (("mean", mean), ("std", std)):
        if (
            np.size(value) not in (1, depth)
            or not np.all(np.isfinite(value))
            or (label == "std" and np.any(np.asarray(value) <= 0))
        ):
            many = "one number or three" if depth == 3 else "one number"
            raise InputError(f"{who}: {label} is {value!r}", f"{many}, e.g. {label} = 127.5")


def prepared(
    crops: Image, channels: str, mean: float | Sequence[float], std: float | Sequence[float]
) -> npt.NDArray[np.float32]:
    """(pixel - mean) / std of RGB uint8 crops (n, s, s, 3): float32 (n, s, s, 3), or (n, s, s, 1) for "grey" (ITU-R BT.601)."""
    x: npt.NDArray[Any] = crops
    if channels == "bgr":
        x = crops[..., ::-1]
    elif channels == "grey":
        import cv2

        n, height, width = crops.shape[:3]
        grey = cv2.cvtColor(np.ascontiguousarray(crops).reshape(n * height, width, 3), cv2.COLOR_RGB2GRAY)
        x = np.asarray(grey).reshape(n, height, width, 1)
    out: npt.NDArray[np.float32] = (x.astype(np.float32) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return out


def open_file(model: Path | bytes, path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU for ``model``, which came from ``path``.  Raises MissingError, InputError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError(f"onnxruntime cannot be imported: {error}", "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # exporters leave harmless warnings by the dozen
    source = model if isinstance(model, bytes) else str(model)
    try:
        # its fallback, from the CPU to the CPU, would print on standard output
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        for end in (
            *session.get_inputs(),
            *session.get_outputs(),
        ):  # texts that are no UTF-8 raise here, not where they are used
            _ = end.name, end.type, end.shape
        return session
    except Exception as error:  # onnxruntime's error classes are not public; all mean an unusable file
        raise InputError(
            f"{path} is no ONNX model that can be run: {str(error)[:300]}", "check the file; export it again"
        ) from error


def image_input(session: Any, path: Path, size: int, depth: int = 3) -> ImageInput:
    """What the file's input looks like; InputError where it does not take images of ``size`` with ``depth`` channels."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InputError(
            f"{path} has {len(inputs)} inputs ({', '.join(i.name for i in inputs[:4])}, ...), not one image",
            "export it with its weights inside",
        )
    name, shape = inputs[0].name, list(inputs[0].shape)
    dtypes: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    if inputs[0].type not in dtypes:
        raise InputError(f"{path}: input {name!r} is {inputs[0].type}, not float", "export it with float input")
    if len(shape) != 4 or (shape[1] != depth) == (shape[3] != depth):
        raise InputError(
            f"{path}: input {name!r} has shape {shape}: neither (n, {depth}, height, width) nor (n, height, width, {depth})",
            "it must take RGB or BGR images" if depth == 3 else "it does not take grey images; set channels",
        )
    nchw = shape[1] == depth
    sides = shape[2:] if nchw else shape[1:3]
    if any(isinstance(s, int) and s != size for s in sides):
        raise InputError(
            f"{path}: input {name!r} takes {sides[1]} x {sides[0]} images, not {size} x {size}", f"set size = {sides[0]}"
        )
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
    return ImageInput(name, nchw, batch, dtypes[inputs[0].type])


def run_session(session: Any, image: ImageInput, x: npt.NDArray[np.float32]) -> list[npt.NDArray[Any]]:
    """All outputs for one batch of what :func:`prepared` gives."""
    if image.nchw:
        x = x.transpose(0, 3, 1, 2)
    return list(session.run(None, {image.name: np.ascontiguousarray(x, image.dtype)}))


def batches(crops: Image, batch: int | None) -> Iterator[tuple[Image, int]]:
    """Crops in parts of at most 32, or of the size that the file fixes, with how many of a part count (the rest fills it up)."""
    step = batch or 32
    for i in range(0, len(crops), step):
        part = crops[i : i + step]
        n = len(part)
        yield (np.concatenate([part, np.repeat(part[-1:], step - n, axis=0)]) if batch and n < step else part), n


class _Loaded(NamedTuple):
    session: Any
    input: ImageInput
    dim: int


@recognizers.register("onnx")
class OnnxFile(LoadedRecognizer):
    """Embeddings from a user's ONNX file (first output, one row a face).

    path: the file (required).  size: side of the crop in pixels.  mean, std: the input is (pixel - mean) / std with
    pixels 0..255; one number or one per channel in the file's channel order.  channels: "rgb" or "bgr".
    template: "arcface" (the standard 112 positions, scaled) or "mtcnn" (a loose box, as for FaceNet).
    threads: of ONNX Runtime within one call.  NCHW or NHWC and a fixed batch size are read from the file.
    citation, licence and trained_on are the user's to know: nothing in the file says.
    """

    licence = "unknown (user's file)"

    def __init__(
        self,
        path: str = "",
        size: int = 112,
        mean: float | Sequence[float] = 127.5,
        std: float | Sequence[float] = 127.5,
        channels: str = "rgb",
        template: str = "arcface",
        threads: int = 1,
    ) -> None:
        if channels not in ("rgb", "bgr"):
            raise InputError(f"recognizer 'onnx': channels is {channels!r}", "use 'rgb' or 'bgr'")
        if template not in _TEMPLATES:
            raise InputError(f"recognizer 'onnx': template is {template!r}", f"use one of {', '.join(_TEMPLATES)}")
        check_preparation("recognizer 'onnx'", size, threads, mean, std)
        self.path, self.size, self.mean, self.std = path, size, mean, std
        self.channels, self.template, self.threads = channels, template, threads

    @property
    def _weights(self) -> WeightFile:
        if not self.path:
            raise MissingError("recognizer 'onnx' needs a model file", 'give its path: path = "model.onnx"')
        return WeightFile(name="onnx", filename=Path(self.path).name)

    @property
    def crop(self) -> CropSpec:
        return _TEMPLATES[self.template](self.size)

    @property
    def dim(self) -> int:
        self.load()
        return int(self._model.dim)

    def missing(self) -> str:
        if package_folder("onnxruntime") is None:
            return "onnxruntime is not installed\n  -> pip install onnxruntime"
        try:
            return self._weights.missing(self.path)
        except MissingError as error:
            return str(error)

    def weights_sha256(self) -> str:
        return sha256_of(self._weights.locate(self.path))

    def runtime(self) -> str:
        return onnx_runtime()

    def load(self) -> None:
        """Also runs the model once, so that a wrong file or size is found here.  Raises MissingError, InputError."""
        if self._model is not None:
            return
        path = self._weights.locate(self.path)
        self._model = self._probe(open_file(path, path, self.threads), path)

    def _probe(self, session: Any, path: Path) -> _Loaded:
        """What the file's input looks like and how long its embeddings are; InputError where it does not fit."""
        model = _Loaded(session, image_input(session, path, self.size), 0)
        n = model.input.batch or 2
        gray = np.full((n, self.size, self.size, 3), 127, np.uint8)
        try:
            out = self._run(model, gray)
        except Exception as error:  # as above
            raise InputError(
                f"{path} does not run on {self.size} x {self.size} images: {str(error)[:300]}", "check size"
            ) from error
        if out.ndim < 2 or out.shape[0] != n or out[0].size != max(out.shape[1:]) or not np.issubdtype(out.dtype, np.floating):
            raise InputError(
                f"{path} is no embedding model: {n} faces give {out.dtype} {out.shape}, not ({n}, d)",
                "its first output must be the embeddings",
            )
        if out[0].size < _MIN_DIM:
            raise InputError(
                f"{path} is no embedding model: {out[0].size} numbers a face look like a classifier", "cut the classifier off"
            )
        return model._replace(dim=int(out[0].size))

    def _run(self, model: _Loaded, crops: Image) -> npt.NDArray[Any]:
        return run_session(model.session, model.input, prepared(crops, self.channels, self.mean, self.std))[0]

    def _forward(self, crops: Image) -> npt.NDArray[Any]:
        parts = batches(crops, self._model.input.batch)
        return np.concatenate([self._run(self._model, part)[:n].reshape(n, -1) for part, n in parts])


def onnx_runtime() -> str:
    """As :meth:`deidbench.metrics.models.base._Model.runtime` of what runs in ONNX Runtime; empty without it."""
    try:
        return f"onnxruntime {version('onnxruntime')} cpu"
    except PackageNotFoundError:
        return ""
