"""The generator at work: landmark images in, faces out; resident, in batches, by PyTorch or ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.ganonymization.checkpoint import SHIPPED, Description, load_generator, resolve_device
from deidbench.errors import InputError, MissingError

#: Pixels of output that one pass makes at most: bounds the memory (a 512 px face takes about 150 MB on its way).
PIXELS_A_PASS = {"cpu": 1 << 20, "cuda": 1 << 24}


class Engine(Protocol):
    """What runs a generator."""

    description: Description
    title: str

    def run(self, drawings: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Landmark images uint8 (n, s, s) -> faces RGB uint8 (n, s, s, 3)."""


class TorchEngine:
    """A checkpoint in PyTorch."""

    def __init__(self, path: Path, size: int | None, device: str, precision: str) -> None:
        import torch

        from deidbench.anonymizers.ganonymization.networks import Inference

        loaded = load_generator(path, size)
        self.description, self.title = loaded.description, loaded.title
        self.device, self.precision = resolve_device(device), precision
        # on a CPU in full precision the quick way, and the modules' weights are let go
        self.quick = Inference(loaded.generator) if self.device == "cpu" and precision == "fp32" else None
        self.generator = None if self.quick else loaded.generator.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.at_once = max(1, PIXELS_A_PASS["cuda" if self.device.startswith("cuda") else "cpu"] // self.description.side**2)

    def run(self, drawings: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        import torch

        from deidbench.anonymizers.ganonymization.landmarks import network_input

        made = []
        for start in range(0, len(drawings), self.at_once):
            x = network_input(drawings[start : start + self.at_once])
            if self.quick:
                made.append(as_images(self.quick(x)))
                continue
            x = x.to(self.device, memory_format=torch.channels_last)
            with (
                torch.inference_mode(),
                torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"),
            ):
                made.append(as_images(self.generator(x)))  # type: ignore[misc]
        return np.concatenate(made) if made else np.zeros((0, *[self.description.side] * 2, 3), np.uint8)


class OnnxEngine:
    """An exported generator (:func:`deidbench.anonymizers.ganonymization.export.export_onnx`) in ONNX Runtime."""

    def __init__(self, path: Path, device: str) -> None:
        import onnxruntime

        from deidbench.anonymizers.ganonymization.export import description_of

        self.description, self.title = description_of(path), "ONNX"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        wanted = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self._input = self._session.get_inputs()[0].name
        self.at_once = max(1, PIXELS_A_PASS["cpu"] // self.description.side**2)

    def run(self, drawings: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        made = []
        for start in range(0, len(drawings), self.at_once):
            x = drawings[start : start + self.at_once].astype(np.float32) / np.float32(127.5) - 1
            [out] = self._session.run(None, {self._input: np.repeat(x[:, None], 3, axis=1)})
            levels = np.clip(np.rint((out + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)
            made.append(np.ascontiguousarray(levels.transpose(0, 2, 3, 1)))
        return np.concatenate(made) if made else np.zeros((0, *[self.description.side] * 2, 3), np.uint8)


def as_images(out: Any) -> npt.NDArray[np.uint8]:
    """Network output (n, 3, s, s) in [-1, 1] as images uint8 (n, s, s, 3): ``(tanh + 1) / 2``, rounded."""
    import torch

    levels = out.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).cpu().numpy())


def checkpoint_path(checkpoint: str) -> Path:
    """The file behind the parameter ``checkpoint`` ("" is the one that ships).  Raises MissingError where it is not there."""
    path = Path(checkpoint).expanduser() if checkpoint else SHIPPED
    if not path.is_file():
        what = "no such checkpoint" if checkpoint else "the checkpoint that ships with the package is missing; install it again"
        raise MissingError(
            f"ganonymization: {path}: {what}", 'checkpoint = "" is ours; deidbench train ganonymization makes another'
        )
    return path


def engine(checkpoint: str, size: int | None, device: str, precision: str) -> Engine:
    """The engine for a checkpoint file, by its ending.  Raises InputError, MissingError as the loaders do."""
    path = checkpoint_path(checkpoint)
    if path.suffix.lower() == ".onnx":
        if precision != "fp32":
            raise InputError(
                f"{path} runs in ONNX Runtime, which takes fp32 only", 'precision = "fp32", or give the checkpoint itself'
            )
        return OnnxEngine(path, device)
    return TorchEngine(path, size, device, precision)
