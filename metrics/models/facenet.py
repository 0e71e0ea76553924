"""FaceNet (Inception-ResNet v1) by facenet-pytorch, with weights that the user puts in place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import recognizers
from deidbench.metrics.models._common import LoadedRecognizer, box_crop
from deidbench.types import CropSpec, Image
from deidbench.weights import WeightFile, package_folder, safe_torch_load, sha256_of

_CITATION = (
    "Schroff, F., Kalenichenko, D., Philbin, J. (2015): FaceNet: A Unified Embedding for Face Recognition and Clustering, "
    "CVPR; weights: D. Sandberg, github.com/davidsandberg/facenet, ported by T. Esler, github.com/timesler/facenet-pytorch"
)
_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
_INSTALL = "pip install --no-deps facenet-pytorch"


def _torch_cache() -> tuple[Path, ...]:
    """Where facenet-pytorch itself would have put a file (a copy from an earlier use is welcome)."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return (Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser() / "checkpoints",)  # noqa: PTH118


def _record(variant: str) -> WeightFile:
    if variant == "vggface2":
        return WeightFile(
            name="facenet-vggface2",
            filename="20180402-114759-vggface2.pt",
            sha256="281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
            size=111_898_327,
            licence="MIT",
            citation=_CITATION,
            trained_on=("VGGFace2",),
            url=_RELEASE + "20180402-114759-vggface2.pt",
            folders=_torch_cache(),
        )
    return WeightFile(
        name="facenet-casia-webface",
        filename="20180408-102900-casia-webface.pt",
        licence="MIT",
        citation=_CITATION,
        trained_on=("CASIA-WebFace",),
        url=_RELEASE + "20180408-102900-casia-webface.pt",
        folders=_torch_cache(),
    )


@recognizers.register("facenet")
class FaceNet(LoadedRecognizer):
    """512 numbers a face; LFW 99.65 % (vggface2) and 99.05 % (casia-webface) by its authors.

    variant: "vggface2" or "casia-webface".  path: weight file or its folder, where it is not in one of the usual places
    (a state dict in the same layout of one's own training works too).

    The network was trained on MTCNN boxes with a margin; see :func:`deidbench.metrics.models._common.box_crop`.
    """

    citation = _CITATION
    licence = "MIT"
    trained_on: ClassVar[tuple[str, ...]] = ("VGGFace2", "CASIA-WebFace")

    def __init__(self, variant: str = "vggface2", path: str = "") -> None:
        if variant not in ("vggface2", "casia-webface"):
            raise InputError(f"recognizer 'facenet' has no variant {variant!r}", "use 'vggface2' or 'casia-webface'")
        self.variant, self.path = variant, path
        self.trained_on = ("VGGFace2",) if variant == "vggface2" else ("CASIA-WebFace",)  # type: ignore[misc]

    @property
    def weights(self) -> WeightFile:
        return _record(self.variant)

    @property
    def crop(self) -> CropSpec:
        return box_crop(160)

    @property
    def dim(self) -> int:
        return 512

    def missing(self) -> str:
        if package_folder("facenet_pytorch") is None:
            return f"facenet-pytorch is not installed\n  -> {_INSTALL}"
        return self.weights.missing(self.path)

    def weights_sha256(self) -> str:
        return sha256_of(self.weights.locate(self.path))

    def runtime(self) -> str:
        try:
            return f"facenet-pytorch {version('facenet-pytorch')} torch {version('torch')} cpu"
        except PackageNotFoundError:
            return ""

    def load(self) -> None:
        if self._model is not None:
            return
        if package_folder("facenet_pytorch") is None:
            raise MissingError("facenet-pytorch is not installed", _INSTALL)
        path = self.weights.locate(self.path) if self.path else self.weights.open()
        state = safe_torch_load(path)
        import torch

        if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise InputError(f"{path} is no state dict of tensors", f"use {self.weights.filename}")
        try:
            from facenet_pytorch import InceptionResnetV1
        except ImportError as error:
            raise MissingError(f"facenet-pytorch cannot be imported: {error}", _INSTALL) from error
        # pretrained=None: with a name the class would go to the network by itself.
        model = InceptionResnetV1(pretrained=None, classify=False)
        # The classifier over the training persons is in the file and of no use here.
        own = {k: v for k, v in state.items() if not k.startswith("logits.")}
        try:
            model.load_state_dict(own)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise InputError(
                f"{path} is no Inception-ResNet v1: {' '.join(lines[:2])[:300]}", f"use {self.weights.filename}"
            ) from error
        self._model = model.eval().requires_grad_(False)

    def _forward(self, crops: Image) -> npt.NDArray[Any]:
        import torch

        out = []
        with torch.inference_mode():
            for i in range(0, len(crops), 32):
                x = torch.from_numpy(crops[i : i + 32]).permute(0, 3, 1, 2).float()
                out.append(self._model((x - 127.5) / 128).numpy())  # fixed_image_standardization
        return np.concatenate(out)
