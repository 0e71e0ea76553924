"""The recognisers of the deepface library, ``deepface:<Model>``, without its downloads."""

from __future__ import annotations

import difflib
import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import recognizers
from deidbench.metrics.models._common import LoadedRecognizer, arcface_crop, box_crop
from deidbench.metrics.models.dlib_resnet import WEIGHTS as DLIB_WEIGHTS
from deidbench.metrics.models.dlib_resnet import DlibResNet
from deidbench.metrics.models.sface import FP32 as SFACE_WEIGHTS
from deidbench.types import CropSpec, Image
from deidbench.weights import WeightFile, package_folder, sha256_of

_INSTALL = "pip install 'deepface>=0.0.103' werkzeug"
_BACKEND_ENV = "DEEPFACE_BACKEND_ENGINE"
#: Package that each backend needs, in deepface's own order of precedence.
_BACKENDS = {"tensorflow": "tensorflow", "pytorch": "torch", "onnx": "onnxruntime"}
_SUFFIX = {"tensorflow": ".h5", "pytorch": ".pth", "onnx": ".onnx"}
_MODELS_RELEASE = "https://github.com/serengil/deepface_models/releases/download/v1.0/"


class _Model(NamedTuple):
    """input: width and height that the network takes.  file: weight file without suffix (one per backend), or with
    suffix for a model that runs the same way on every backend.  crop: "arcface", "mtcnn" or "dlib".
    """

    input: tuple[int, int]
    dim: int
    file: str
    crop: str
    licence: str
    trained_on: tuple[str, ...]
    citation: str


#: deepface 0.0.103, modules/modeling.py and models/facial_recognition; licences of the weights as its README gives them.
MODELS: dict[str, _Model] = {
    "VGG-Face": _Model(
        (224, 224),
        4096,
        "vgg_face_weights",
        "mtcnn",
        "CC-BY-NC-4.0",
        ("VGGFace",),
        "Parkhi et al. (2015): Deep Face Recognition, BMVC",
    ),
    "Facenet": _Model(
        (160, 160), 128, "facenet_weights", "mtcnn", "MIT", ("MS-Celeb-1M",), "Schroff et al. (2015): FaceNet, CVPR"
    ),
    "Facenet512": _Model(
        (160, 160), 512, "facenet512_weights", "mtcnn", "MIT", ("VGGFace2",), "Schroff et al. (2015): FaceNet, CVPR"
    ),
    "OpenFace": _Model(
        (96, 96),
        128,
        "openface_weights",
        "mtcnn",
        "Apache-2.0",
        ("CASIA-WebFace", "FaceScrub"),
        "Amos et al. (2016): OpenFace, CMU-CS-16-118",
    ),
    "DeepFace": _Model(
        (152, 152),
        4096,
        "VGGFace2_DeepFace_weights_val-0.9034",
        "mtcnn",
        "MIT",
        ("VGGFace2",),
        "Taigman et al. (2014): DeepFace, CVPR",
    ),
    "DeepID": _Model(
        (47, 55),
        160,
        "deepid_weights",
        "mtcnn",
        "MIT",
        ("YouTube Faces",),
        "Sun et al. (2014): Deep Learning Face Representation from Predicting 10,000 Classes, CVPR",
    ),
    "Dlib": _Model(
        (150, 150),
        128,
        "dlib_face_recognition_resnet_model_v1.dat",
        "dlib",
        DLIB_WEIGHTS.licence,
        DLIB_WEIGHTS.trained_on,
        DLIB_WEIGHTS.citation,
    ),
    "ArcFace": _Model(
        (112, 112), 512, "arcface_weights", "arcface", "MIT", ("MS-Celeb-1M",), "Deng et al. (2019): ArcFace, CVPR"
    ),
    "SFace": _Model(
        (112, 112),
        128,
        "face_recognition_sface_2021dec.onnx",
        "arcface",
        SFACE_WEIGHTS.licence,
        SFACE_WEIGHTS.trained_on,
        SFACE_WEIGHTS.citation,
    ),
    "GhostFaceNet": _Model(
        (112, 112),
        512,
        "ghostfacenet_v1",
        "arcface",
        "MIT",
        ("MS-Celeb-1M",),
        "Alansari et al. (2023): GhostFaceNets, IEEE Access 11",
    ),
    "Buffalo_L": _Model(
        (112, 112),
        512,
        "buffalo_l/webface_r50.onnx",
        "arcface",
        "non-commercial research",
        ("WebFace600K",),
        "InsightFace, github.com/deepinsight/insightface",
    ),
}
#: Files whose name does not follow the rule above.
_OTHER_NAMES = {("DeepID", "tensorflow"): "deepid_keras_weights.h5"}
#: deepface's names for scaling pixels; "base" (0..1) is its default and what its thresholds were found with.
NORMALIZATIONS = ("base", "raw", "Facenet", "Facenet2018", "VGGFace", "VGGFace2", "ArcFace")


def deepface_weights_folder() -> Path:
    """Where deepface looks for weights: ``$DEEPFACE_HOME/.deepface/weights``, by default below the home folder."""
    return Path(os.environ.get("DEEPFACE_HOME", "") or Path.home()) / ".deepface" / "weights"


@recognizers.register("deepface")
class DeepFaceModel(LoadedRecognizer):
    """A recogniser of deepface, used as deepface uses it but for detection and alignment, which are the suite's.

    variant: the model's name in deepface, ``deepface:ArcFace``.  normalization: deepface's name for the pixel scaling.
    backend: "tensorflow", "pytorch" or "onnx"; empty: ``$DEEPFACE_BACKEND_ENGINE``, else the first of these that is
    installed and whose weight file is there, else the first that is installed.

    deepface would download what is missing; here the file must be in place before deepface is asked for anything.
    """

    def __init__(self, variant: str = "ArcFace", normalization: str = "base", backend: str = "") -> None:
        if variant not in MODELS:
            close = difflib.get_close_matches(variant, MODELS, n=2, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(MODELS)}"
            raise InputError(f"recognizer 'deepface' has no model {variant!r}", hint)
        if normalization not in NORMALIZATIONS:
            raise InputError(
                f"recognizer 'deepface': normalization is {normalization!r}", f"use one of {', '.join(NORMALIZATIONS)}"
            )
        if backend and backend not in _BACKENDS:
            raise InputError(f"recognizer 'deepface': backend is {backend!r}", f"use one of {', '.join(_BACKENDS)}")
        self.variant, self.normalization, self.backend = variant, normalization, backend
        model = MODELS[variant]
        self.citation = f"{model.citation}; through deepface, Serengil & Ozpinar (2020), github.com/serengil/deepface"  # type: ignore[misc]
        self.licence = model.licence  # type: ignore[misc]
        self.trained_on = model.trained_on  # type: ignore[misc]

    @property
    def _spec(self) -> _Model:
        return MODELS[self.variant]

    @property
    def crop(self) -> CropSpec:
        if self._spec.crop == "dlib":
            return DlibResNet().crop
        size = max(self._spec.input)
        return arcface_crop(size) if self._spec.crop == "arcface" else box_crop(size)

    @property
    def dim(self) -> int:
        return self._spec.dim

    def weights(self, backend: str) -> WeightFile:
        """Record of the file that deepface reads on ``backend``."""
        spec = self._spec
        name = _OTHER_NAMES.get((self.variant, backend), "")
        if not name:
            name = spec.file if spec.file.endswith((".dat", ".onnx")) else spec.file + _SUFFIX[backend]
        known = {DLIB_WEIGHTS.filename: DLIB_WEIGHTS, SFACE_WEIGHTS.filename: SFACE_WEIGHTS}.get(name)
        return WeightFile(
            name=f"deepface:{self.variant}",
            filename=name,
            sha256=known.sha256 if known else None,
            size=known.size if known else None,
            licence=spec.licence,
            citation=spec.citation,
            trained_on=spec.trained_on,
            url=(known.url if known else "")
            or ("" if "/" in name or known or backend == "tensorflow" else _MODELS_RELEASE + name),
        )

    def _backend(self) -> str:
        """The backend in use; see the class."""
        named = self.backend or os.environ.get(_BACKEND_ENV, "").strip().lower()
        if named:
            if named not in _BACKENDS:
                raise InputError(f"${_BACKEND_ENV} is {named!r}", f"use one of {', '.join(_BACKENDS)}")
            if package_folder(_BACKENDS[named]) is None:
                raise MissingError(f"deepface's backend {named} needs {_BACKENDS[named]}", f"pip install {_BACKENDS[named]}")
            return named
        installed = [b for b, package in _BACKENDS.items() if package_folder(package) is not None]
        if not installed:
            raise MissingError("deepface needs torch, onnxruntime or tensorflow", "pip install onnxruntime")
        folder = deepface_weights_folder()
        return next((b for b in installed if (folder / self.weights(b).filename).is_file()), installed[0])

    def _file(self) -> Path:
        """The weight file; MissingError naming every file that would do, and the one folder where deepface looks."""
        backend = self._backend()
        record, folder = self.weights(backend), deepface_weights_folder()
        path = folder / record.filename
        if path.is_file():
            return path
        error = record._absent([path])
        others = [
            b for b, package in _BACKENDS.items() if b != backend and not self.backend and package_folder(package) is not None
        ]
        names = sorted({self.weights(b).filename for b in others} - {record.filename})
        more = f" (or {', '.join(names)} in the same folder)" if names and not os.environ.get(_BACKEND_ENV) else ""
        raise MissingError(error.message, error.remedy + more)

    def missing(self) -> str:
        if package_folder("deepface") is None:
            return f"deepface is not installed\n  -> {_INSTALL}"
        if self.variant == "Buffalo_L" and package_folder("insightface") is None:
            return "deepface's Buffalo_L needs insightface\n  -> pip install insightface"
        try:
            self._file()
        except MissingError as error:
            return str(error)
        return ""

    def weights_sha256(self) -> str:
        return sha256_of(self._file())

    def runtime(self) -> str:
        backend = self._backend()
        parts = []
        for name in ("deepface", _BACKENDS[backend]):
            try:
                parts.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                parts.append(name)
        return " ".join(parts) + f" {backend}"

    def load(self) -> None:
        if self._model is not None:
            return
        if why := self.missing():
            message, _, remedy = why.partition("\n  -> ")
            raise MissingError(message, remedy)
        backend = self._backend()
        self.weights(backend).verify(self._file())
        # Read when deepface picks its engine; without it a machine with TensorFlow would import that too.
        os.environ.setdefault(_BACKEND_ENV, backend)
        os.environ.setdefault("DEEPFACE_LOG_LEVEL", "40")  # it prints its log on stdout
        try:
            modeling = importlib.import_module("deepface.modules.modeling")
            # Not build_model(): that keeps one engine and one copy per process, whatever this object asks for.
            sources = modeling.AVAILABLE_MODELS["facial_recognition"][self.variant]
            module, _, name = str(sources.get(backend) or sources["any"]).rpartition(".")
            client = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, KeyError, TypeError) as error:
            raise MissingError(
                f"deepface {self.variant} cannot be imported: {type(error).__name__}: {error}", _INSTALL
            ) from error
        try:
            model = client()
        except ImportError as error:
            raise MissingError(f"deepface {self.variant} needs more: {error}", _INSTALL) from error
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"{self._file()} is broken or no {self.variant} model: {str(error)[:300]}", "get the file again"
            ) from error
        if tuple(model.input_shape) != self._spec.input:
            raise InputError(f"this deepface's {self.variant} takes {model.input_shape}, not {self._spec.input}", _INSTALL)
        self._model = model

    def _forward(self, crops: Image) -> npt.NDArray[Any]:
        from deepface.modules import preprocessing

        width, height = self._spec.input
        batch = []
        for crop in crops:
            # As deepface.represent() does: BGR, letterboxed (only DeepID is not square), 0..1, then one image at a time
            # through its scaling, which changes its argument.
            bgr = crop[..., ::-1].astype(np.float32) / 255
            image = preprocessing.resize_image(img=bgr, target_size=(height, width))
            batch.append(preprocessing.normalize_input(img=image, normalization=self.normalization))
        out = []
        for i in range(0, len(batch), 32):
            part = np.concatenate(batch[i : i + 32])
            raw = np.asarray(self._model.forward(part), np.float64)
            out.append(raw.reshape(len(part), -1))  # a single face comes back flat
        return np.concatenate(out)
