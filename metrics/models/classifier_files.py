"""Anybody's classifier in a file: ONNX (``onnx-classifier``), or weights of an architecture of timm (``timm-classifier``)."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import classifiers
from deidbench.metrics.models._common import arcface_crop, box_crop, check_crops
from deidbench.metrics.models.base import Classifier
from deidbench.metrics.models.labels import ATTRIBUTES, EMOTION_WORDS, EMOTIONS, emotion
from deidbench.metrics.models.network import ATTRIBUTES_CROP, EMOTION_CROP
from deidbench.metrics.models.onnx_file import (
    CHANNELS,
    ImageInput,
    batches,
    check_preparation,
    image_input,
    onnx_runtime,
    open_file,
    prepared,
    run_session,
)
from deidbench.types import CropSpec, Floats, Image
from deidbench.weights import WeightFile, package_folder, safe_torch_load, sha256_of

TASKS = ("emotion", "attributes")
#: arcface: forehead to chin.  mtcnn: a loose box.  emotion: the face fills the crop.  attributes: hair and neck are in it.
TEMPLATES = ("arcface", "mtcnn", "emotion", "attributes")
#: How outputs become probabilities; "auto" finds out.
ACTIVATIONS = ("auto", "softmax", "sigmoid", "none")
#: Words for an output that is none of our classes.
IGNORED = ("", "-")
#: Mean and standard deviation of ImageNet's pixels (0..255, RGB), what most networks are trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

#: Outputs that are said to be probabilities may miss [0, 1], and their sum may miss 1, by this much (half precision).
_SLACK = 2e-3
#: Operators between a layer and the output that change no number, or only its type.
_PASSING = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")
#: What may stand between a layer and its stored weights.
_STORING = ("Constant", "DequantizeLinear", "Transpose", "Identity", "Cast")
#: A protobuf cannot be longer.
_LARGEST = 2_000_000_000
#: Keys under which training programs put the state dict.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def template_crop(template: str, size: int) -> CropSpec:
    """The crop of one of :data:`TEMPLATES`, ``size`` pixels a side."""
    if template in ("arcface", "mtcnn"):
        return (arcface_crop if template == "arcface" else box_crop)(size)
    return replace(EMOTION_CROP if template == "emotion" else ATTRIBUTES_CROP, size=size)


def class_name(word: str, task: str) -> str | None:
    """Our name of the class that a file calls ``word``, whatever its case; None where it is none of ours."""
    if task == "emotion":
        return emotion(word)
    plain = word.strip().lower().replace(" ", "_").replace("-", "_")
    return next((a for a in ATTRIBUTES if a.lower() == plain), None)


def class_names(words: Sequence[str], task: str, who: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Our names of the outputs that are used, and where they are among all outputs, both in the file's order.

    words: one per output; "" or "-" leaves the output out.  Raises InputError, on behalf of ``who``, for words that are not
    known, for two outputs of one meaning, and where fewer than two emotions or no attribute are left.
    """
    if isinstance(words, str) or not all(isinstance(w, str) for w in words):
        raise InputError(f"{who}: labels is {words!r}", 'a list of words, one per output, e.g. labels = ["happy", "sad"]')
    names: list[str] = []
    places: list[int] = []
    for i, word in enumerate(words):
        if word.strip() in IGNORED:
            continue
        name = class_name(word, task)
        if name is None:
            known = (*EMOTIONS, *EMOTION_WORDS) if task == "emotion" else ATTRIBUTES
            close = difflib.get_close_matches(word.strip(), known, n=2, cutoff=0.6)
            hint = f"did you mean {' or '.join(map(repr, close))}?  " if close else ""
            raise InputError(
                f"{who}: {word!r} (output {i}) is no {'emotion' if task == 'emotion' else 'attribute of CelebA'} that deidbench knows",
                f'{hint}allowed: {", ".join(known)}; "-" leaves an output out',
            )
        if name in names:
            raise InputError(
                f"{who}: outputs {places[names.index(name)]} and {i} both mean {name!r}",
                'leave one out: write "-" in its place',
            )
        names.append(name)
        places.append(i)
    least = 2 if task == "emotion" else 1
    if words and len(names) < least:
        raise InputError(f"{who}: labels leaves {len(names)} classes", f"at least {least} of the outputs must be of use")
    return tuple(names), tuple(places)


def probabilities(raw: npt.NDArray[Any], kept: Sequence[int], task: str, activation: str, source: str) -> Floats:
    """Outputs (n, m) -> probabilities float32 (n, len(kept)) of the kept ones.

    activation: "softmax" (of the kept outputs alone), "sigmoid" of each, or "none" where they are probabilities.
    Emotions exclude one another: what the outputs that are left out had is shared out in proportion, so that rows sum to 1;
    where the kept ones are all 0, each gets the same.  Raises InputError, naming ``source``, for outputs that are not finite
    or, with "none", not in [0, 1].
    """
    x = np.asarray(raw, np.float64)[:, list(kept)]
    if not np.isfinite(x).all():
        raise InputError(f"{source} gives numbers that are not finite", "the file, or its input (mean, std, size), is broken")
    if activation == "softmax":
        x = np.exp(x - x.max(1, keepdims=True, initial=-np.inf))
    elif activation == "sigmoid":
        from scipy.special import expit

        x = expit(x)
    else:
        if x.size and (x.min() < -_SLACK or x.max() > 1 + _SLACK):
            raise InputError(
                f"{source} gives {x.min():.3g} to {x.max():.3g}, which are no probabilities",
                f'set activation = "{"softmax" if task == "emotion" else "sigmoid"}"',
            )
        x = x.clip(0, 1)
    if task == "emotion":
        total = x.sum(1, keepdims=True)
        x = np.where(total > 0, np.divide(x, total, out=np.zeros_like(x), where=total > 0), 1 / max(1, x.shape[1]))
    return x.astype(np.float32)


class ClassifierFile(Classifier):
    """A classifier with named outputs that keeps one loaded model: checks its input, loads on demand, names its classes.

    A copy that travels to another process leaves the loaded model behind and loads it there.
    """

    words: tuple[str, ...] = ()
    #: Places of the outputs in use.
    kept: tuple[int, ...] = ()
    _model: Any = None

    @property
    def _who(self) -> str:
        return f"classifier {self.name!r}"

    def _name(self, task: str, words: Sequence[str]) -> None:
        """Sets task and labels.  Raises InputError."""
        if task not in TASKS:
            raise InputError(f"{self._who}: task is {task!r}", f"use one of {', '.join(TASKS)}")
        self.task = task
        self.labels, self.kept = class_names(words, task, self._who)
        self.words = tuple(words)

    def params(self) -> dict[str, Any]:
        found = super().params()
        if "labels" in found:  # as they were given: the attribute holds our names of the outputs in use
            found["labels"] = list(self.words)
        return found

    @property
    @abstractmethod
    def _activation(self) -> str:
        """Of :data:`ACTIVATIONS` but "auto"; :meth:`load` has run."""

    @property
    @abstractmethod
    def _source(self) -> str:
        """What to call the file in messages."""

    @property
    @abstractmethod
    def _dim(self) -> int:
        """How many features; :meth:`load` has run."""

    @abstractmethod
    def _forward(self, crops: Image) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Outputs (n, len(words)) and features (n, dim) of n > 0 checked crops; :meth:`load` has run."""

    def predict(self, crops: Image) -> Floats:
        return self.embed(crops)[:, : len(self.labels)]

    def embed(self, crops: Image) -> Floats:
        """See :meth:`Classifier.embed`.  Raises InputError for wrong crops or outputs, and what :meth:`load` raises."""
        crops = check_crops(crops, self.crop, self._who)
        self.load()
        if len(crops) == 0:
            return np.zeros((0, len(self.labels) + self._dim), np.float32)
        raw, features = self._forward(np.ascontiguousarray(crops))
        said = probabilities(raw, self.kept, self.task, self._activation, self._source)
        return np.hstack([said, features.astype(np.float32)])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_model"}


class _UserFile(ClassifierFile):
    """What classifiers in a user's file share: how crops are prepared, and where the file is."""

    licence = "unknown (user's file)"
    path: str
    size: int
    template: str

    def _prepare(
        self,
        path: str,
        task: str,
        labels: Sequence[str],
        size: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        channels: str,
        template: str,
        threads: int = 1,
    ) -> None:
        """Stores the parameters.  Raises InputError."""
        self._name(task, labels)
        if channels not in CHANNELS:
            raise InputError(f"{self._who}: channels is {channels!r}", f"use one of {', '.join(CHANNELS)}")
        if template not in TEMPLATES:
            raise InputError(f"{self._who}: template is {template!r}", f"use one of {', '.join(TEMPLATES)}")
        check_preparation(self._who, size, threads, mean, std, CHANNELS[channels])
        self.path, self.size, self.mean, self.std = path, size, mean, std
        self.channels, self.template, self.threads = channels, template, threads

    @property
    def crop(self) -> CropSpec:
        return template_crop(self.template, self.size)

    def _file(self) -> Path:
        """The file.  Raises MissingError where it is not there or nobody said which, or what its outputs mean."""
        if not self.path:
            raise MissingError(f"{self._who} needs a model file", 'give its path: path = "model..."')
        if not self.words:
            raise MissingError(
                f"{self._who} needs to know what the outputs of {self.path} mean",
                'give a word per output, in order: labels = ["happy", "sad", ...]; "-" leaves one out',
            )
        return WeightFile(name=self.name, filename=Path(self.path).name).locate(self.path)

    @property
    def _source(self) -> str:
        return self.path

    def missing(self) -> str:
        try:
            self._file()
        except MissingError as error:
            return str(error)
        return ""

    def weights_sha256(self) -> str:
        return sha256_of(self._file())


# -- ONNX --------------------------------------------------------------------------------------------------------------
class _Tail(NamedTuple):
    """What a graph does last.  activation: "softmax", "sigmoid" or "".  features: tensor that the last linear layer reads."""

    activation: str
    features: str


def _tail(graph: Any) -> _Tail:
    """Walks back from the first output of an ONNX graph."""
    made = {name: node for node in graph.node for name in node.output}
    stored = {i.name for i in graph.initializer}

    def back(name: str) -> Any:
        seen = 0
        node = made.get(name)
        while node is not None and node.op_type in _PASSING and node.input and seen < len(graph.node):
            node, seen = made.get(node.input[0]), seen + 1
        return node

    def is_stored(name: str) -> bool:
        return name in stored or (name in made and made[name].op_type in _STORING)

    node = back(graph.output[0].name)
    activation = ""
    if node is not None and node.op_type in ("Softmax", "Sigmoid", "LogSoftmax"):
        # log-probabilities are logits like any others
        activation = "" if node.op_type == "LogSoftmax" else node.op_type.lower()
        node = back(node.input[0])
    if node is not None and node.op_type == "Add":  # a bias of its own
        data = [name for name in node.input if not is_stored(name)]
        node = back(data[0]) if len(data) == 1 else None
    if node is None or node.op_type not in ("Gemm", "MatMul") or not is_stored(node.input[1]) or is_stored(node.input[0]):
        return _Tail(activation, "")
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return _Tail(activation, "" if turned else node.input[0])


class _OnnxModel(NamedTuple):
    """features: place among the session's outputs, -1 for none.  dim: how many."""

    session: Any
    input: ImageInput
    activation: str
    features: int
    dim: int


@classifiers.register("onnx-classifier")
class OnnxClassifier(_UserFile):
    """Class probabilities from a user's ONNX file (first output, one row a face).

    path: the file (required).  task: "emotion" or "attributes".  labels: what the outputs mean, in the file's order; words of
    other programs are known ("happy", "Angry"), CelebA's for attributes; "-" leaves an output out.  Of emotions, those left
    out lose their probability to the others.
    size: side of the crop in pixels.  mean, std: the input is (pixel - mean) / std with pixels 0..255; one number or one per
    channel in the file's channel order.  channels: "rgb", "bgr" or "grey".  template: "emotion" (the face fills the crop),
    "attributes" (with hair and neck), "arcface" or "mtcnn".  threads: of ONNX Runtime within one call.
    activation: "softmax", "sigmoid", or "none" where outputs are probabilities; "auto": none where the graph ends with one of
    them, or where the outputs for an emotion sum to 1; else softmax for emotions, sigmoid for attributes.
    features: "auto" takes what the last linear layer reads, where there is one; "none" takes nothing.
    NCHW or NHWC and a fixed batch size are read from the file.
    """

    def __init__(
        self,
        path: str = "",
        task: str = "emotion",
        labels: Sequence[str] = (),
        size: int = 224,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        channels: str = "rgb",
        template: str = "emotion",
        activation: str = "auto",
        features: str = "auto",
        threads: int = 1,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise InputError(f"{self._who}: activation is {activation!r}", f"use one of {', '.join(ACTIVATIONS)}")
        if features not in ("auto", "none"):
            raise InputError(f"{self._who}: features is {features!r}", "use 'auto' or 'none'")
        if task == "emotion" and activation == "sigmoid":
            raise InputError(f"{self._who}: emotions exclude one another", "activation is 'softmax', 'none' or 'auto'")
        if task == "attributes" and activation == "softmax":
            raise InputError(f"{self._who}: attributes do not exclude one another", "activation is 'sigmoid', 'none' or 'auto'")
        self._prepare(path, task, labels, size, mean, std, channels, template, threads)
        self.activation, self.features = activation, features

    @property
    def _activation(self) -> str:
        return str(self._model.activation)

    @property
    def _dim(self) -> int:
        return int(self._model.dim)

    def missing(self) -> str:
        if package_folder("onnxruntime") is None:
            return "onnxruntime is not installed\n  -> pip install onnxruntime"
        return super().missing()

    def runtime(self) -> str:
        return onnx_runtime()

    def load(self) -> None:
        """Also runs the model once, so that a wrong file, size or list of labels is found here.

        Raises MissingError, InputError naming the file.
        """
        if self._model is not None:
            return
        path = self._file()
        session = open_file(path, path, self.threads)
        image = image_input(session, path, self.size, CHANNELS[self.channels])
        tail, extended = self._look(path)
        place = -1
        if tail.features and self.features == "auto":
            names = [o.name for o in session.get_outputs()]
            if tail.features not in names and extended is not None:
                session = open_file(extended, path, self.threads)
                names = [o.name for o in session.get_outputs()]
            place = names.index(tail.features) if tail.features in names else -1
        self._model = self._probe(_OnnxModel(session, image, "", place, 0), tail, path)

    def _look(self, path: Path) -> tuple[_Tail, bytes | None]:
        """How the graph ends, and the file with the features as one more output (None where that cannot be)."""
        try:
            import onnx
        except ImportError as error:
            raise MissingError(f"onnx cannot be imported: {error}", "pip install onnx") from error
        try:
            model = onnx.load(str(path), load_external_data=False)
            tail = _tail(model.graph)
        except Exception as error:  # ONNX Runtime reads formats that onnx does not (ORT's own)
            if self.activation == "auto":
                raise InputError(f"{path}: its graph cannot be read: {str(error)[:200]}", "set activation") from error
            return _Tail("", ""), None
        outside = any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer)
        if not tail.features or outside or model.ByteSize() > _LARGEST:
            return tail, None
        model.graph.output.append(onnx.ValueInfoProto(name=tail.features))
        return tail, model.SerializeToString()

    def _probe(self, model: _OnnxModel, tail: _Tail, path: Path) -> _OnnxModel:
        n = model.input.batch or 2
        pixels = np.random.default_rng(0).integers(0, 256, (n, self.size, self.size, 3), dtype=np.uint8)
        pixels[0] = 127
        try:
            found = self._run(model, pixels)
        except Exception as error:  # onnxruntime's error classes are not public
            raise InputError(
                f"{path} does not run on {self.size} x {self.size} images: {str(error)[:300]}", "check size and channels"
            ) from error
        out = found[0]
        if out.ndim < 2 or out.shape[0] != n or out[0].size != max(out.shape[1:]) or not np.issubdtype(out.dtype, np.floating):
            raise InputError(
                f"{path} is no classifier: {n} faces give {out.dtype} {out.shape}, not ({n}, classes)",
                "its first output must be the classes",
            )
        out = out.reshape(n, -1)
        if out.shape[1] != len(self.words):
            raise InputError(
                f"{path} gives {out.shape[1]} numbers a face, labels has {len(self.words)} words",
                'one word per output, in order; "-" leaves one out',
            )
        activation = self.activation
        if activation == "auto":
            sums = self.task == "emotion" and out.min() >= 0 and np.abs(out.sum(1, dtype=np.float64) - 1).max() <= _SLACK
            activation = "none" if tail.activation or sums else "softmax" if self.task == "emotion" else "sigmoid"
        probabilities(out, self.kept, self.task, activation, str(path))
        features, dim = model.features, 0
        if features >= 0:
            shape = found[features].shape
            good = len(shape) >= 2 and shape[0] == n and max(shape[1:]) == found[features][0].size
            features, dim = (features, found[features][0].size) if good else (-1, 0)
        return model._replace(activation=activation, features=features, dim=dim)

    def _run(self, model: _OnnxModel, crops: Image) -> list[npt.NDArray[Any]]:
        return run_session(model.session, model.input, prepared(crops, self.channels, self.mean, self.std))

    def _forward(self, crops: Image) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        raw, features = [], []
        for part, n in batches(crops, self._model.input.batch):
            found = self._run(self._model, part)
            raw.append(found[0][:n].reshape(n, -1))
            place = self._model.features
            features.append(np.zeros((n, 0), np.float32) if place < 0 else found[place][:n].reshape(n, -1))
        return np.concatenate(raw), np.concatenate(features)


# -- timm --------------------------------------------------------------------------------------------------------------
class _TimmModel(NamedTuple):
    network: Any
    dim: int


@classifiers.register("timm-classifier")
class TimmClassifier(_UserFile):
    """Class probabilities from an architecture of timm with a user's weights (softmax for emotions, sigmoid for attributes).

    architecture: its name in timm (required).  path: the weights (required), safetensors or a PyTorch state dict; nothing in
    the file is executed.  The other parameters are those of ``onnx-classifier``.  Features are what timm calls pre-logits.
    """

    def __init__(
        self,
        architecture: str = "",
        path: str = "",
        task: str = "emotion",
        labels: Sequence[str] = (),
        size: int = 224,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        channels: str = "rgb",
        template: str = "emotion",
    ) -> None:
        if ":" in architecture or "/" in architecture:  # timm would look for these elsewhere, on the network too
            raise InputError(
                f"{self._who}: {architecture!r} is no plain name of an architecture", "e.g. architecture = 'resnet18'"
            )
        self._prepare(path, task, labels, size, mean, std, channels, template)
        self.architecture = architecture

    @property
    def _activation(self) -> str:
        return "softmax" if self.task == "emotion" else "sigmoid"

    @property
    def _dim(self) -> int:
        return int(self._model.dim)

    def missing(self) -> str:
        if package_folder("timm") is None:
            return "timm is not installed\n  -> pip install timm"
        if not self.architecture:
            return f"{self._who} needs the name of an architecture\n  -> e.g. architecture = 'resnet18'"
        return super().missing()

    def runtime(self) -> str:
        try:
            return f"timm {version('timm')} torch {version('torch')} cpu"
        except PackageNotFoundError:
            return ""

    def load(self) -> None:
        """Also runs the network once.  Raises MissingError, InputError naming the file."""
        if self._model is not None:
            return
        if why := self.missing():
            message, _, remedy = why.partition("\n  -> ")
            raise MissingError(message, remedy)
        path = self._file()
        try:
            import timm
            import torch
        except ImportError as error:
            raise MissingError(f"timm cannot be imported: {error}", "pip install timm torch torchvision") from error
        if not timm.is_model(self.architecture):
            close = difflib.get_close_matches(self.architecture, timm.list_models(), n=3, cutoff=0.5)
            raise InputError(
                f"{self._who}: timm {timm.__version__} has no architecture {self.architecture!r}",
                f"did you mean {' or '.join(close)}?" if close else "timm.list_models() names them",
            )
        with torch.random.fork_rng(devices=[]):  # fresh weights would take from everybody's random numbers
            try:
                network: Any = timm.create_model(
                    self.architecture, pretrained=False, num_classes=len(self.words), in_chans=CHANNELS[self.channels]
                )
            except Exception as error:  # architectures check their arguments each in its own way
                raise InputError(f"{self._who}: timm cannot make {self.architecture}: {error}", "use another one") from error
        fill(network, safe_torch_load(path), path, f"{self.architecture} with {len(self.words)} outputs")
        network.eval().requires_grad_(False)
        blank = np.full((1, self.size, self.size, 3), 127, np.uint8)
        try:
            logits, features = self._run(network, blank)
        except Exception as error:  # as above
            raise InputError(
                f"{self.architecture} does not run on {self.size} x {self.size} images: {str(error)[:200]}",
                f"set size = {network.default_cfg.get('input_size', ('', '?'))[-1]}",
            ) from error
        if logits.shape != (1, len(self.words)):
            raise InputError(f"{self.architecture} is no classifier: one face gives {logits.shape}", "use another one")
        probabilities(logits, self.kept, self.task, self._activation, str(path))
        self._model = _TimmModel(network, features.shape[1])

    def _run(self, network: Any, crops: Image) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        import torch

        x = prepared(crops, self.channels, self.mean, self.std).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            seen = network.forward_features(torch.from_numpy(np.ascontiguousarray(x)))
            return network.forward_head(seen).numpy(), network.forward_head(seen, pre_logits=True).flatten(1).numpy()

    def _forward(self, crops: Image) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        parts = [self._run(self._model.network, part) for part, _ in batches(crops, None)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def fill(network: Any, state: Any, path: Path, what: str, prefixes: Sequence[str] = ("module.",)) -> None:
    """Puts the tensors of ``state``, which was read from ``path``, into a torch module.

    what: the network, for messages.  prefixes: stripped off keys where all have it.  Raises InputError, naming the file, where
    a tensor is absent, unknown, of another shape or kind, or not finite; the network is then as it was.
    """
    import torch

    remedy = f"the file must hold the weights of {what}"
    while isinstance(state, Mapping) and (inner := next((k for k in _WRAPPERS if isinstance(state.get(k), Mapping)), None)):
        state = state[inner]
    if not isinstance(state, Mapping) or not state or not all(isinstance(k, str) for k in state):
        raise InputError(f"{path} holds no state dict", "save it with torch.save(model.state_dict(), ...) or as safetensors")
    for prefix in prefixes:
        if all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    wanted = network.state_dict()
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}  # of training alone
    for key in sorted(set(wanted) - set(state) - counters):
        raise InputError(f"{path} lacks the tensor {key}", remedy)
    for key in sorted(set(state) - set(wanted)):
        raise InputError(f"{path} holds a tensor that the network does not have: {key}", remedy)
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.is_floating_point() != wanted[key].is_floating_point():
            raise InputError(f"{path}: {key} is no tensor of {wanted[key].dtype}", remedy)
        if value.shape != wanted[key].shape:
            raise InputError(f"{path}: {key} has shape {tuple(value.shape)}, not {tuple(wanted[key].shape)}", remedy)
        if not bool(torch.isfinite(value.float()).all()):
            raise InputError(f"{path}: {key} has values that are not finite", "get the file again, or train it anew")
    network.load_state_dict(dict(state), strict=False)
