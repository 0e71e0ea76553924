"""A network out of a file, ONNX or TorchScript, that turns a face (or a frame) into another of the same size."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deidbench.anonymizers.regions import Area, RegionAnonymizer, check_choice, check_number
from deidbench.errors import InputError, MissingError
from deidbench.kinds import anonymizers
from deidbench.types import Floats, Image
from deidbench.weights import sha256_of

#: What levels 0..255 become for the network, and back: (low, high).
RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}


class ModelFile(RegionAnonymizer):
    """The region's square (or with region "frame" the whole picture) goes through the network and comes back into its place.

    A subclass reads the file and runs it.  Faces go one by one, so that a result depends on nothing else.
    """

    licence = "the model's own"
    incidental = ("path",)
    path: str
    size: int
    range: str
    output_range: str
    channels: str
    device: str
    learnt_from: Sequence[str]

    @property
    def trained_on(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the user says of it."""
        return tuple(self.learnt_from)

    def validate(self) -> None:
        """Raises InputError for a parameter out of its range.  The file is not looked at."""
        super().validate()
        if not isinstance(self.path, str) or not self.path:
            raise InputError(f"{self.name}: path names no file", "params = { path = FILE }, the model")
        check_number(self.name, "size", self.size, 0, 8192)
        check_choice(self.name, "range", self.range, tuple(RANGES))
        check_choice(self.name, "output_range", self.output_range, ("", *RANGES))
        check_choice(self.name, "channels", self.channels, ("rgb", "bgr"))
        check_choice(self.name, "device", self.device, ("auto", "cpu", "cuda"))

    def _file(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise MissingError(f"{self.name}: there is no file {path}", "set path to the model")
        return path

    def weights_sha256(self) -> str:
        """SHA-256 of the file.  Raises MissingError."""
        return sha256_of(self._file())

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    @abstractmethod
    def _open(self, path: Path) -> None:
        """Reads the file.  Raises InputError where it is none, or its inputs do not fit."""

    @abstractmethod
    def _run(self, x: Floats) -> Any:
        """The network's output for float32 (1, 3, h, w)."""

    def _side(self) -> int:
        """Side that the network wants, 0 where any will do."""
        return self.size

    def load(self) -> None:
        """Reads the file and tries it on a grey square.  Raises MissingError, InputError."""
        self.validate()
        self._open(self._file())
        self._ready = True
        side = self._side() or 64
        try:
            self._through(np.full((side, side, 3), 127, np.uint8))
        except Exception as error:
            del self._ready
            raise InputError(
                f"{self.name}: {self._file()} does not turn a picture of {side} x {side} pixels into another: {error}",
                "it takes float32 (1, 3, h, w) and gives the same shape; size = N where it wants one size only",
            ) from error

    def anonymize(self, items: Sequence[Any]) -> list[Any]:
        if not vars(self).get("_ready"):
            self.load()
        return super().anonymize(items)

    def _through(self, patch: Image) -> Image:
        """A picture (h, w, 3) through the network, the same size.  Raises ValueError for an output that is no picture."""
        low, high = RANGES[self.range]
        x = patch.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)
        x = x[..., ::-1] if self.channels == "bgr" else x
        y = np.asarray(self._run(np.ascontiguousarray(x.transpose(2, 0, 1)[None])), np.float64)
        if y.ndim == 4 and y.shape[0] == 1:
            y = y[0]
        if y.ndim == 3 and y.shape[0] == 3 and y.shape[2] != 3:
            y = y.transpose(1, 2, 0)
        if y.shape != patch.shape:
            raise ValueError(f"its output is {y.shape}, not {(3, *patch.shape[:2])}")
        if not np.isfinite(y).all():
            raise ValueError("its output is not finite")
        low, high = RANGES[self.output_range or self.range]
        y = y[..., ::-1] if self.channels == "bgr" else y
        return np.asarray(np.clip(np.rint((y - low) * (255 / (high - low))), 0, 255), np.uint8)

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        import cv2

        window = area.window
        if self.region == "frame":
            frame = image
            if side := self._side():
                frame = cv2.resize(frame, (side, side), interpolation=_interpolation(max(frame.shape[:2]), side))
            made = self._through(np.ascontiguousarray(frame))
            h, w = image.shape[:2]
            return np.asarray(
                made if made.shape == image.shape else cv2.resize(made, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8
            )
        cx, cy = area.box.centre
        across = max(round(max(area.box.width, area.box.height)), 1)
        # Pixels are squares, their centres half a pixel in: the middle of the box goes to the middle of the square.
        shift = np.array([[1, 0, across / 2 - cx], [0, 1, across / 2 - cy]])
        patch = cv2.warpAffine(image, shift, (across, across), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        side = self._side() or across
        if side != across:
            patch = cv2.resize(patch, (side, side), interpolation=_interpolation(across, side))
        made = self._through(patch)
        if side != across:
            made = np.asarray(cv2.resize(made, (across, across), interpolation=_interpolation(side, across)), np.uint8)
        back = np.array([[1, 0, cx - across / 2 - window.x0], [0, 1, cy - across / 2 - window.y0]])
        h, w = window.shape
        return np.asarray(cv2.warpAffine(made, back, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _interpolation(old: float, new: float) -> int:
    import cv2

    return int(cv2.INTER_AREA if new < old else cv2.INTER_LINEAR)


@anonymizers.register("onnx")
class OnnxFile(ModelFile):
    """An image-to-image network out of an ONNX file, in ONNX Runtime.

    path: the file; one input of float32 (1, 3, h, w) or (1, h, w, 3), the first output of the same size.
    size: side of the square that it wants, in pixels (0: as its input says, else whatever the face has).
    range: what levels 0..255 become: "0..1", "-1..1" or "0..255"; output_range: what comes out ("": the same).
    channels: "rgb" or "bgr".  device: "auto", "cpu" or "cuda".
    region, margin, feather: see :mod:`deidbench.anonymizers.regions`; region "frame" squeezes the whole picture into the square.
    learnt_from: data sets that it learnt from; results on them are flagged.
    """

    def __init__(
        self,
        path: str = "",
        size: int = 0,
        range: str = "0..1",
        output_range: str = "",
        channels: str = "rgb",
        region: str = "box",
        margin: float = 1.3,
        feather: float = 0.0,
        device: str = "auto",
        learnt_from: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.size = size
        self.range = range
        self.output_range = output_range
        self.channels = channels
        self.region = region
        self.margin = margin
        self.feather = feather
        self.device = device
        self.learnt_from = learnt_from

    def _open(self, path: Path) -> None:
        import onnxruntime

        _check_external(path, self.name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        wanted = ["CPUExecutionProvider"] if self.device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
        there = onnxruntime.get_available_providers()
        if self.device == "cuda" and wanted[0] not in there:
            raise InputError(f"{self.name}: device = 'cuda', but ONNX Runtime has no CUDA here", "pip install onnxruntime-gpu")
        try:
            usable = [p for p in wanted if p in there]
            # its fallback, where that is from the CPU to the CPU, would print on standard output
            session = onnxruntime.InferenceSession(str(path), options, providers=usable, enable_fallback=int(len(usable) > 1))
            inputs = [(i.name, i.type, list(i.shape)) for i in session.get_inputs()]  # texts that are no UTF-8 raise
        except Exception as error:  # onnxruntime has many error classes; all mean that this is no model it can run
            raise InputError(
                f"{self.name}: {path} is no ONNX model that runs here: {str(error)[:300]}", "check the file"
            ) from error
        if len(inputs) != 1:
            raise InputError(
                f"{self.name}: {path} has {len(inputs)} inputs ({', '.join(name for name, *_ in inputs)}), not one picture",
                "export it with the others fixed",
            )
        [(name, kind, shape)] = inputs
        if len(shape) != 4 or kind != "tensor(float)" or 3 not in (shape[1], shape[3]):
            raise InputError(f"{self.name}: the input of {path} is {kind} {shape}, not float (1, 3, h, w)", "export it so")
        self._last = shape[1] != 3  # channels last
        sides = {s for s in (shape[1:3] if self._last else shape[2:]) if isinstance(s, int)}
        if len(sides) > 1:
            raise InputError(f"{self.name}: the input of {path} is not square: {shape}", "export it for squares")
        self._own_side = sides.pop() if sides else 0
        if self.size and self._own_side and self.size != self._own_side:
            raise InputError(f"{self.name}: size = {self.size}, but {path} takes {self._own_side} alone", "leave size out")
        self._session, self._input = session, name

    def _side(self) -> int:
        return self.size or int(vars(self).get("_own_side", 0))

    def _run(self, x: Floats) -> Any:
        given = x.transpose(0, 2, 3, 1) if self._last else x
        return self._session.run(None, {self._input: np.ascontiguousarray(given)})[0]


def _check_external(path: Path, method: str) -> None:
    """Weights that lie in files of their own must lie beside the model.  Raises InputError."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf has no error class of its own for a broken file
        raise InputError(f"{method}: {path} is not an ONNX model: {str(error)[:200]}", "check the file") from error
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            # protobuf hands over bytes where a text is no UTF-8
            if isinstance(entry.value, bytes) or (part := Path(entry.value)).is_absolute() or ".." in part.parts:
                raise InputError(
                    f"{method}: {path} would read its weights from {entry.value!r}",
                    "a model's weights lie beside it; do not use it",
                )


@anonymizers.register("torchscript")
class TorchScriptFile(ModelFile):
    """An image-to-image network out of a TorchScript file.

    trust: must be true: such a file is a program, and runs with your rights.  ONNX files are data; export to ONNX where you can.
    path: the file; its forward takes float32 (1, 3, h, w) and gives the same shape.  size: side of the square that it wants, in
    pixels (0: whatever the face has).
    range, output_range, channels, region, margin, feather, device, learnt_from: as for ``onnx``.
    """

    def __init__(
        self,
        path: str = "",
        trust: bool = False,
        size: int = 0,
        range: str = "0..1",
        output_range: str = "",
        channels: str = "rgb",
        region: str = "box",
        margin: float = 1.3,
        feather: float = 0.0,
        device: str = "auto",
        learnt_from: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.trust = trust
        self.size = size
        self.range = range
        self.output_range = output_range
        self.channels = channels
        self.region = region
        self.margin = margin
        self.feather = feather
        self.device = device
        self.learnt_from = learnt_from

    def validate(self) -> None:
        """Raises InputError for a parameter out of its range, and without ``trust``."""
        super().validate()
        if self.trust is not True:
            raise InputError(
                f"{self.name}: {self.path} is a program as well as weights, and would run with your rights",
                "trust = true if you know where it comes from; or export it to ONNX, which is data only",
            )

    def _open(self, path: Path) -> None:
        import torch

        wanted = "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and wanted == "cpu":
            raise InputError(f"{self.name}: device = 'cuda', but torch finds no GPU", "device = 'auto' or 'cpu'")
        try:
            self._model = torch.jit.load(str(path), map_location=wanted).eval()  # type: ignore[no-untyped-call]
        except Exception as error:  # a broken archive raises RuntimeError, UnpicklingError and others
            raise InputError(
                f"{self.name}: {path} is no TorchScript file: {str(error).splitlines()[0][:200] if str(error) else error!r}",
                "torch.jit.script(model).save(FILE) makes one",
            ) from error
        self._at = wanted

    def _run(self, x: Floats) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(torch.from_numpy(x).to(self._at)).float().cpu().numpy()
