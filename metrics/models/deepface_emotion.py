"""The emotion model of the deepface library, without its downloads."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import classifiers
from deidbench.metrics.models.classifier_files import ClassifierFile, template_crop
from deidbench.metrics.models.deepface_models import DeepFaceModel
from deidbench.types import CropSpec, Image
from deidbench.weights import WeightFile, sha256_of

#: In the order of the model's outputs (deepface 0.0.103, models/demography/DemographyUtils.py).
WORDS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_STEM = "facial_expression_model_weights"
_SUFFIX = {"tensorflow": ".h5", "pytorch": ".pth", "onnx": ".onnx"}
_BACKEND_ENV = "DEEPFACE_BACKEND_ENGINE"
_INSTALL = "pip install 'deepface>=0.0.103' werkzeug"
#: deepface brings a face to this side before the model makes a grey picture of 48 pixels out of it.
_SIDE = 224


class _Files(DeepFaceModel):
    """Which backend runs and where its file is, by the same rules as for deepface's recognisers."""

    def weights(self, backend: str) -> WeightFile:
        return WeightFile(
            name="deepface's emotion model",
            filename=_STEM + _SUFFIX[backend],
            licence=DeepFaceEmotion.licence,
            citation=DeepFaceEmotion.citation,
            trained_on=DeepFaceEmotion.trained_on,
            install="DeepFace.build_model('Emotion', task='facial_attribute') of deepface downloads it to its own folder",
        )


class _Loaded(NamedTuple):
    client: Any
    #: Last layer, whose input is what is kept as features; None where the backend does not show it.
    last: Any
    dim: int


@classifiers.register("deepface-emotion")
class DeepFaceEmotion(ClassifierFile):
    """Seven emotions as ``DeepFace.analyze`` reads them, but for detection and alignment, which are the suite's.

    backend: "tensorflow", "pytorch" or "onnx"; empty: chosen as for the recognisers of deepface.  deepface would download what
    is missing; here the file must be in place.  Features (of the layer before the last one) with PyTorch only.
    """

    citation = "Serengil & Ozpinar (2021): HyperExtended LightFace, ICEET; github.com/serengil/deepface"
    licence = "MIT"
    trained_on = ("FER2013",)

    def __init__(self, backend: str = "") -> None:
        self.backend = backend
        self._name("emotion", WORDS)
        self._files = _Files(backend=backend)

    @property
    def crop(self) -> CropSpec:
        return template_crop("emotion", _SIDE)

    @property
    def _activation(self) -> str:
        return "none"

    @property
    def _dim(self) -> int:
        return int(self._model.dim)

    @property
    def _source(self) -> str:
        return _STEM

    def _path(self) -> Path:
        return self._files._file()

    def missing(self) -> str:
        return self._files.missing()

    def weights_sha256(self) -> str:
        return sha256_of(self._path())

    def runtime(self) -> str:
        return self._files.runtime()

    def load(self) -> None:
        """Raises MissingError without deepface or the file, InputError for a file that holds something else."""
        if self._model is not None:
            return
        if why := self.missing():
            message, _, remedy = why.partition("\n  -> ")
            raise MissingError(message, remedy)
        path, backend = self._path(), self._files._backend()
        # Read when deepface picks its engine; without it a machine with TensorFlow would import that too.
        os.environ.setdefault(_BACKEND_ENV, backend)
        os.environ.setdefault("DEEPFACE_LOG_LEVEL", "40")  # it prints its log on stdout
        try:
            modeling = importlib.import_module("deepface.modules.modeling")
            sources = modeling.AVAILABLE_MODELS["facial_attribute"]["Emotion"]
            module, _, name = str(sources[backend]).rpartition(".")
            client = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, KeyError, TypeError) as error:
            raise MissingError(
                f"deepface's emotion model cannot be imported: {type(error).__name__}: {error}", _INSTALL
            ) from error
        try:
            model = client()
        except ImportError as error:
            raise MissingError(f"deepface's emotion model needs more: {error}", _INSTALL) from error
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(
                f"{path} is broken or not deepface's emotion model: {str(error)[:300]}", "get the file again"
            ) from error
        last = getattr(getattr(model, "model", None), "fc_3", None) if backend == "pytorch" else None
        loaded = _Loaded(model, last, 0 if last is None else int(last.in_features))
        blank = np.full((2, _SIDE, _SIDE, 3), 127, np.uint8)
        try:
            said, _ = self._ask(loaded, blank)
        except Exception as error:  # each backend has errors of its own
            raise InputError(f"{path} does not run: {str(error)[:300]}", "get the file again") from error
        if said.shape != (2, len(WORDS)) or not np.isfinite(said).all():
            raise InputError(f"{path} is not deepface's emotion model: two faces give {said.shape}", "get the file again")
        self._model = loaded

    @staticmethod
    def _ask(model: _Loaded, crops: Image) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """As analyze() does: BGR, 0..1; the client makes them grey and small."""
        seen: list[npt.NDArray[Any]] = []
        hook = None
        if model.last is not None:
            hook = model.last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().cpu().numpy()))
        try:
            bgr = [np.ascontiguousarray(crop[..., ::-1].astype(np.float32) / 255) for crop in crops]
            said = np.asarray(model.client.predict(bgr), np.float64).reshape(len(crops), -1)
        finally:
            if hook is not None:
                hook.remove()
        return said, seen[0] if seen else np.zeros((len(crops), 0), np.float32)

    def _forward(self, crops: Image) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        parts = [self._ask(self._model, crops[i : i + 32]) for i in range(0, len(crops), 32)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
