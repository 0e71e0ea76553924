"""Features of the Inception network that FID and KID are defined on; a classifier without classes."""

from __future__ import annotations

import io
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from deidbench.errors import InputError, MissingError
from deidbench.kinds import classifiers
from deidbench.metrics.models._common import check_crops
from deidbench.metrics.models.base import Classifier
from deidbench.metrics.models.classifier_files import TEMPLATES, template_crop
from deidbench.types import CropSpec, Floats, Image
from deidbench.weights import WeightFile, package_folder, safe_torch_load, sha256_of

FILENAME = "weights-inception-2015-12-05-6726825d.pth"
INSTALL = "pip install torch-fidelity"
DIM = 2048
#: Side of the network's input in pixels.
_SIDE = 299
_AT_ONCE = 16


def hub_folder() -> Path:
    """Where torch.hub keeps downloaded weights; torch is not imported to find out."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("TORCH_HOME") or Path(cache) / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def check_suffix(path: Path) -> None:
    """Raises InputError where the SHA-256 of ``path`` does not begin as its name says (``name-<first digits>.pth``)."""
    said = path.stem.rpartition("-")[2]
    if not sha256_of(path).startswith(said):
        raise InputError(
            f"{path} is not the file of that name: its SHA-256 does not begin with {said}", "delete it and get it again"
        )


def weights_record() -> WeightFile:
    return WeightFile(
        name="the Inception network of FID",
        filename=FILENAME,
        licence="Apache-2.0",
        citation=InceptionFeatures.citation,
        trained_on=InceptionFeatures.trained_on,
        install=f"{INSTALL}; python -c \"from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as F; F('', ['2048'])\" downloads it",
        folders=(hub_folder(),),
    )


@classifiers.register("inception")
class InceptionFeatures(Classifier):
    """No classes, 2048 features a face: what the metric ``perceptual`` computes KID and FID from.

    path: the weights, as torch-fidelity publishes them (a state dict; nothing in the file is executed); empty: looked for in
    torch.hub's folder and in deidbench's folder of weights.  template: how the face is cut out, as for ``onnx-classifier``.
    The input is 299 x 299 already, so the question how to shrink pictures (on which published FIDs differ) does not arise;
    but these are aligned faces, and figures on whole pictures are no measure for them.
    """

    task = "features"
    labels = ()
    citation = "Szegedy et al., Rethinking the Inception architecture, CVPR 2016; Heusel et al., GANs trained by a two time-scale update rule, NIPS 2017; through torch-fidelity, Obukhov et al. 2020"
    licence = "Apache-2.0"
    trained_on = ("ImageNet",)
    _network: Any = None

    def __init__(self, path: str = "", template: str = "attributes") -> None:
        if template not in TEMPLATES:
            raise InputError(f"classifier 'inception': template is {template!r}", f"use one of {', '.join(TEMPLATES)}")
        self.path, self.template = path, template

    @property
    def crop(self) -> CropSpec:
        return template_crop(self.template, _SIDE)

    def missing(self) -> str:
        if package_folder("torch_fidelity") is None:
            return f"torch-fidelity is not installed\n  -> {INSTALL}"
        return weights_record().missing(self.path)

    def weights_sha256(self) -> str:
        return sha256_of(weights_record().locate(self.path))

    def runtime(self) -> str:
        try:
            return f"torch-fidelity {version('torch-fidelity')} torch {version('torch')} cpu"
        except PackageNotFoundError:
            return ""

    def load(self) -> None:
        """Raises MissingError; InputError, naming the file, where it is broken or holds something else."""
        if self._network is not None:
            return
        if why := self.missing():
            message, _, remedy = why.partition("\n  -> ")
            raise MissingError(message, remedy)
        path = weights_record().locate(self.path)
        if not self.path:
            check_suffix(path)
        state = safe_torch_load(path)
        import torch

        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingError(f"torch-fidelity cannot be imported: {error}", INSTALL) from error
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise InputError(f"{path} holds no state dict", f"get it again: {weights_record().install}")
        if bad := next((k for k, v in state.items() if not bool(torch.isfinite(v.float()).all())), ""):
            raise InputError(f"{path}: {bad} has values that are not finite", f"get it again: {weights_record().install}")
        # The library would unpickle the file itself, with whatever is in it; it gets our copy of its numbers.
        numbers = io.BytesIO()
        torch.save(dict(state), numbers)
        numbers.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):
                network = FeatureExtractorInceptionV3("inception", [str(DIM)], feature_extractor_weights_path=numbers)
        except RuntimeError as error:  # of load_state_dict
            raise InputError(
                f"{path} is not the Inception network of FID: {str(error)[:200]}", f"get it again: {weights_record().install}"
            ) from error
        self._network = network

    def predict(self, crops: Image) -> Floats:
        return self.embed(crops)[:, :0]

    def embed(self, crops: Image) -> Floats:
        """float32 (n, 2048), all features."""
        crops = check_crops(crops, self.crop, f"classifier {self.name!r}")
        self.load()
        if len(crops) == 0:
            return np.zeros((0, DIM), np.float32)
        import torch

        out = []
        with torch.inference_mode():
            for i in range(0, len(crops), _AT_ONCE):
                x = torch.from_numpy(np.ascontiguousarray(crops[i : i + _AT_ONCE].transpose(0, 3, 1, 2)))
                out.append(self._network(x)[0].reshape(len(x), -1).numpy())
        features: Floats = np.concatenate(out).astype(np.float32)
        return features

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_network"}
