"""The network of deidbench's own classifiers, and its files: safetensors with a description; only numbers are ever loaded.

A small residual network (He et al., CVPR 2016: basic blocks; the shortcut averages before its 1 x 1 convolution, He et al.,
CVPR 2019, "bag of tricks").  Files hold each batch normalisation folded into the convolution before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.metrics.models._common import FIVE_POINTS
from deidbench.types import CropSpec, Floats, Image

FORMAT = "deidbench-classifier-1"
TASKS = ("emotion", "attributes")
#: The face fills the crop, as in FER2013.
EMOTION_CROP = CropSpec(FIVE_POINTS, ((0.32, 0.36), (0.68, 0.36), (0.5, 0.566), (0.351, 0.776), (0.649, 0.776)), 64)
#: Hair, ears and neck are in it.
ATTRIBUTES_CROP = CropSpec(FIVE_POINTS, ((0.38, 0.46), (0.62, 0.46), (0.5, 0.597), (0.401, 0.737), (0.599, 0.737)), 128)
CROPS: Mapping[str, CropSpec] = {"emotion": EMOTION_CROP, "attributes": ATTRIBUTES_CROP}

#: Crops per pass through the network; bounds the memory.
_AT_ONCE = 64
#: Added to the standard deviation of an image's pixels (of 1), so that a plain area stays plain.
_CONTRAST_FLOOR = 0.05
_REMEDY = "give a file that deidbench train classifier wrote (safetensors), or leave path out for the shipped weights"


@dataclass(frozen=True)
class Layout:
    """What determines the shapes.

    grey: one channel (mean of RGB, rounded) standardised per image; otherwise RGB, (pixel - 0.5) / 0.25 with pixels 0..1.
    side: to which crops are averaged down first.  stem: channels of the first convolution (3 x 3, stride 2).
    widths, strides: channels and stride (1 or 2) of each block.  outputs: classes.
    grid: the features also hold the maps of the last block but one, averaged to grid x grid places (0: they do not): what a
    linear classifier for other labels needs to know of where in the face something is.
    """

    grey: bool
    side: int
    stem: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    outputs: int
    grid: int = 0

    def check(self) -> None:
        """Raises ValueError for a layout that makes no sense (or that no memory holds)."""
        good = (
            16 <= self.side <= 512
            and 1 <= self.stem <= 1024
            and 1 <= len(self.widths) <= 8
            and len(self.strides) == len(self.widths)
            and all(1 <= w <= 1024 for w in self.widths)
            and all(s in (1, 2) for s in self.strides)
            and 1 <= self.outputs <= 1000
            and 0 <= self.grid <= 8
            and (self.grid == 0 or len(self.widths) > 1)
        )
        if not good:
            raise ValueError(f"{self}")

    @property
    def features(self) -> int:
        """How many there are."""
        return self.widths[-1] + (self.grid**2 * self.widths[-2] if self.grid else 0)

    def inputs(self) -> list[int]:
        """Input channels of each block."""
        return [self.stem, *self.widths[:-1]]

    def shortcut(self, i: int) -> bool:
        """Has block ``i`` a convolution in its shortcut?"""
        return self.strides[i] == 2 or self.inputs()[i] != self.widths[i]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape of every tensor in a file."""
        out: dict[str, tuple[int, ...]] = {"stem.weight": (self.stem, 1 if self.grey else 3, 3, 3), "stem.bias": (self.stem,)}
        for i, (inside, width) in enumerate(zip(self.inputs(), self.widths, strict=True)):
            out |= {f"block{i}.a.weight": (width, inside, 3, 3), f"block{i}.a.bias": (width,)}
            out |= {f"block{i}.b.weight": (width, width, 3, 3), f"block{i}.b.bias": (width,)}
            if self.shortcut(i):
                out |= {f"block{i}.d.weight": (width, inside, 1, 1), f"block{i}.d.bias": (width,)}
        return out | {"head.weight": (self.outputs, self.widths[-1]), "head.bias": (self.outputs,)}


@dataclass(frozen=True)
class Description:
    """What a file says of itself.

    task: one of :data:`TASKS`.  labels: names of the outputs.  trained_on: data sets ("name" or "name:split").
    persons: data set -> ids of the persons learnt from.  notes: anything else, as JSON.
    """

    task: str
    labels: tuple[str, ...]
    layout: Layout
    trained_on: tuple[str, ...] = ()
    licence: str = ""
    persons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def pack(self) -> dict[str, str]:
        """Metadata of the file."""
        lay = self.layout
        crop = CROPS[self.task]
        values = {
            "task": self.task,
            "labels": list(self.labels),
            "grey": lay.grey,
            "side": lay.side,
            "stem": lay.stem,
            "widths": list(lay.widths),
            "strides": list(lay.strides),
            "grid": lay.grid,
            "crop": [list(crop.points), [list(p) for p in crop.template], crop.size],
            "trained_on": list(self.trained_on),
            "licence": self.licence,
            "persons": {k: list(v) for k, v in self.persons.items()},
            "notes": dict(self.notes),
        }
        return {"format": FORMAT, "description": json.dumps(values, sort_keys=True)}


class Loaded(NamedTuple):
    """A file: weights float32 by key, and the first 64 bits of the SHA-256 of each image learnt from, uint64, sorted."""

    description: Description
    weights: dict[str, npt.NDArray[np.float32]]
    images: npt.NDArray[np.uint64]


def save_classifier(
    path: Path, weights: Mapping[str, npt.NDArray[Any]], description: Description, images: npt.NDArray[np.uint64]
) -> None:
    """Writes folded weights: convolutions in 16 bits, biases in 32; ``images`` as in :class:`Loaded`.  Same content, same bytes."""
    from safetensors.numpy import save

    from deidbench.images import atomic_write

    description.layout.check()
    tensors: dict[str, npt.NDArray[Any]] = {"lessons.images": np.unique(np.asarray(images, np.uint64))}
    for key in description.layout.shapes():
        kind = np.float16 if key.endswith("weight") else np.float32
        tensors[key] = np.ascontiguousarray(weights[key], kind)
    data: bytes = save(tensors, description.pack())
    # The library writes metadata in a random order, and the hash of the file counts.
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    atomic_write(path, len(header).to_bytes(8, "little") + header + data[8 + length :])


def read_description(path: str | Path) -> Description:
    """What the file says of itself.  Quick: the weights are not read.  Raises MissingError, InputError naming the file."""
    path = Path(path).expanduser()
    with _opened(path) as file:
        return _unpack(file.metadata() or {}, path)


def load_classifier(path: str | Path) -> Loaded:
    """The classifier in ``path``.

    Nothing in the file is executed.  Raises MissingError where there is none; InputError, naming the file, where it is
    broken, says nothing sensible of itself, lacks a tensor or has one too many, or where one has another shape or type than
    its layout asks for or values that are not finite.
    """
    from safetensors import SafetensorError

    path = Path(path).expanduser()
    with _opened(path) as file:
        description = _unpack(file.metadata() or {}, path)
        expected = description.layout.shapes()
        keys = set(file.keys())
        for key in sorted({*expected, "lessons.images"} - keys):
            raise InputError(f"{path} lacks the tensor {key}", _REMEDY)
        for key in sorted(keys - {*expected, "lessons.images"}):
            raise InputError(f"{path} holds a tensor that the network does not have: {key}", _REMEDY)
        weights = {}
        try:
            for key, shape in expected.items():
                part = file.get_slice(key)
                # before a byte is read: a file may claim any size
                if tuple(part.get_shape()) != shape:
                    raise InputError(f"{path}: {key} has shape {tuple(part.get_shape())}, expected {shape}", _REMEDY)
                if part.get_dtype() not in ("F16", "F32"):
                    raise InputError(f"{path}: {key} holds {part.get_dtype()}, not floating point numbers", _REMEDY)
                # a copy: the network's memory must not hang on a file that may be replaced
                weights[key] = file.get_tensor(key).astype(np.float32, copy=True)
                if not np.isfinite(weights[key]).all():
                    raise InputError(f"{path}: {key} holds values that are not finite (NaN or infinity)", _REMEDY)
            part = file.get_slice("lessons.images")
            if part.get_dtype() != "U64" or len(part.get_shape()) != 1:
                raise InputError(
                    f"{path}: lessons.images is {part.get_dtype()} {part.get_shape()}, expected a row of U64", _REMEDY
                )
            images = file.get_tensor("lessons.images").copy()
        except (SafetensorError, TypeError, ValueError) as error:
            raise InputError(f"{path} is broken: {error}", _REMEDY) from error
    return Loaded(description, weights, images)


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"there is no classifier {path}", _REMEDY)
    try:
        return safe_open(str(path), framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is no safetensors file, or broken or cut short: {error}", _REMEDY) from error


def _unpack(metadata: Mapping[str, str], path: Path) -> Description:
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no classifier of deidbench: its format is {metadata.get('format')!r}", _REMEDY)
    try:
        d = json.loads(metadata["description"])
        for key in ("labels", "trained_on", "widths", "strides"):  # a string would fall into letters
            if not isinstance(d[key], list):
                raise TypeError(f"{key} {d[key]!r}")
        for key in ("side", "stem", "grid"):
            if not isinstance(d[key], int):
                raise TypeError(f"{key} {d[key]!r}")
        if not all(isinstance(v, int) for v in [*d["widths"], *d["strides"]]) or not isinstance(d["grey"], bool):
            raise TypeError("widths, strides or grey")
        task, labels = d["task"], tuple(d["labels"])
        if task not in TASKS or not all(isinstance(name, str) and name for name in labels) or len(set(labels)) < len(labels):
            raise ValueError(f"task {task!r} with labels {str(labels)[:100]}")
        crop = CropSpec(tuple(d["crop"][0]), tuple((float(x), float(y)) for x, y in d["crop"][1]), int(d["crop"][2]))
        if crop != CROPS[task]:
            raise ValueError(f"its faces are cut otherwise than those of task {task!r}")
        layout = Layout(d["grey"], d["side"], d["stem"], tuple(d["widths"]), tuple(d["strides"]), len(labels), d["grid"])
        layout.check()
        persons = {str(k).lower(): tuple(str(p) for p in v) for k, v in d["persons"].items() if isinstance(v, list)}
        return Description(
            task, labels, layout, tuple(str(t) for t in d["trained_on"]), str(d["licence"]), persons, dict(d["notes"])
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise InputError(f"{path}: its description makes no sense: {type(error).__name__}: {error}", _REMEDY) from error


def digest_numbers(sha256: Any) -> npt.NDArray[np.uint64]:
    """The first 16 hex digits of each hash as a number, uint64, sorted, each once."""
    return np.unique(np.array([int(s[:16], 16) for s in sha256], np.uint64))


# -- running -----------------------------------------------------------------------------------------------------------
def shrink(crops: Image, layout: Layout) -> Any:
    """Crops uint8 (n, s, s, 3) as float32 tensor (n, 1 or 3, side, side), 0 to 1, averaged down."""
    import torch
    from torch.nn import functional

    x = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).to(torch.float32)
    if layout.grey:
        x = x.mean(1, keepdim=True).round_()
    x = x.div_(255.0)
    return x if x.shape[-1] == layout.side else functional.interpolate(x, (layout.side, layout.side), mode="area")


def standardise(x: Any, grey: bool) -> Any:
    """Pixels 0..1 -> the network's input: grey images each to mean 0 and about unit spread, colours by fixed numbers."""
    if not grey:
        return (x - 0.5) / 0.25
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) / (x.std((1, 2, 3), keepdim=True) + _CONTRAST_FLOOR)


class Inference:
    """A loaded classifier that runs forward on the CPU in float32."""

    def __init__(self, loaded: Loaded) -> None:
        import torch

        self.layout = loaded.description.layout
        self._w: dict[str, Any] = {}
        for key, value in loaded.weights.items():
            tensor = torch.from_numpy(value)
            self._w[key] = tensor.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else tensor

    def __call__(self, crops: Image) -> tuple[Floats, Floats]:
        """Crops uint8 (n, s, s, 3) -> logits (n, outputs), features (n, layout.features), float32.

        Both are means over the crop and its mirror image.  The features begin with the layer before the last (widths[-1]
        numbers); the grid follows, row by row of each channel, that of the mirror image mirrored back.
        """
        import torch

        head, base = self._w["head.weight"], self._w["head.bias"]
        logits, features = [], []
        with torch.inference_mode():
            for start in range(0, len(crops), _AT_ONCE):
                x = standardise(shrink(crops[start : start + _AT_ONCE], self.layout), self.layout.grey)
                (z, places), (z2, places2) = self._forward(x), self._forward(x.flip(3))
                z = (z + z2) / 2
                places = (places + places2.flip(3)) / 2
                logits.append((z @ head.T + base).numpy())
                features.append(torch.cat((z, places.flatten(1)), 1).numpy())
        if not logits:
            return np.zeros((0, self.layout.outputs), np.float32), np.zeros((0, self.layout.features), np.float32)
        return np.concatenate(logits), np.concatenate(features)

    def _forward(self, x: Any) -> tuple[Any, Any]:
        """The last layer's input (n, widths[-1]), and the grid (n, widths[-2] or 0, grid, grid)."""
        import torch
        from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d, relu_

        def conv(y: Any, name: str, stride: int = 1, padding: int = 1) -> Any:
            return conv2d(y, self._w[f"{name}.weight"], self._w[f"{name}.bias"], stride, padding)

        grid = torch.zeros((len(x), 0, 1, 1))
        x = relu_(conv(x.contiguous(memory_format=torch.channels_last), "stem", 2))
        for i, stride in enumerate(self.layout.strides):
            y = conv(relu_(conv(x, f"block{i}.a", stride)), f"block{i}.b")
            if self.layout.shortcut(i):
                if stride == 2:
                    x = avg_pool2d(x, 2, ceil_mode=True)
                x = conv(x, f"block{i}.d", padding=0)
            x = relu_(y + x)
            if self.layout.grid and i == len(self.layout.widths) - 2:
                grid = adaptive_avg_pool2d(x, self.layout.grid)
        return x.mean((2, 3)), grid


# -- training ----------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def _modules() -> Any:
    """The class of the network in training, made on the first use: this module must not import torch by itself."""
    from torch import Tensor, nn, relu

    class Block(nn.Module):
        def __init__(self, inside: int, out: int, stride: int, shortcut: bool) -> None:
            super().__init__()
            self.a, self.a_norm = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
            self.b, self.b_norm = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
            self.shortcut = shortcut
            if shortcut:
                self.d, self.d_norm = nn.Conv2d(inside, out, 1, bias=False), nn.BatchNorm2d(out)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b_norm(self.b(relu(self.a_norm(self.a(x)))))
            return relu(y + (self.d_norm(self.d(self.pool(x))) if self.shortcut else x))

    class Trainable(nn.Module):
        def __init__(self, layout: Layout, dropout: float) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1 if layout.grey else 3, layout.stem, 3, 2, 1, bias=False)
            self.stem_norm = nn.BatchNorm2d(layout.stem)
            for i, (inside, width) in enumerate(zip(layout.inputs(), layout.widths, strict=True)):
                self.add_module(f"block{i}", Block(inside, width, layout.strides[i], layout.shortcut(i)))
            self.blocks = len(layout.widths)
            self.drop = nn.Dropout(dropout)
            self.head = nn.Linear(layout.widths[-1], layout.outputs)

        def forward(self, x: Tensor) -> Tensor:
            x = relu(self.stem_norm(self.stem(x)))
            for i in range(self.blocks):
                x = self.get_submodule(f"block{i}")(x)
            out: Tensor = self.head(self.drop(x.mean((2, 3))))
            return out

    return Trainable


def trainable(layout: Layout, dropout: float, seed: int) -> Any:
    """A torch module with fresh weights that follow from ``seed``; input as :func:`standardise` gives it, output logits."""
    import torch

    layout.check()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _modules()(layout, dropout).to(memory_format=torch.channels_last)


def fold(state: Mapping[str, Any], layout: Layout, eps: float = 1e-5) -> dict[str, npt.NDArray[np.float32]]:
    """The state dict of a :func:`trainable` network as a file's weights: normalisations go into the convolutions before them."""
    flat = {k: v.detach().double().numpy() for k, v in state.items() if v.dtype.is_floating_point}
    out: dict[str, npt.NDArray[np.float32]] = {}
    for key in layout.shapes():
        name, _, kind = key.rpartition(".")
        if name == "head":
            out[key] = flat[key].astype(np.float32)
            continue
        gain = flat[f"{name}_norm.weight"] / np.sqrt(flat[f"{name}_norm.running_var"] + eps)
        if kind == "weight":
            out[key] = (flat[key] * gain[:, None, None, None]).astype(np.float32)
        else:
            out[key] = (flat[f"{name}_norm.bias"] - flat[f"{name}_norm.running_mean"] * gain).astype(np.float32)
    return out


def shifted(loaded: Loaded, thresholds: npt.NDArray[np.floating[Any]]) -> Loaded:
    """The classifier whose logit 0 lies where ``thresholds`` (outputs,) lay."""
    bias = (loaded.weights["head.bias"] - thresholds).astype(np.float32)
    return loaded._replace(weights={**loaded.weights, "head.bias": bias})
