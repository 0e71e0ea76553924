"""Reading and writing generators: our own safetensors, the official Lightning checkpoints, plain state dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deidbench.errors import InputError, MissingError
from deidbench.weights import safe_torch_load, sha256_of

if TYPE_CHECKING:
    from deidbench.anonymizers.ganonymization.networks import Discriminator, Generator

FORMAT = "deidbench-ganonymization-1"
#: Greatest width, far beyond any use: a file may claim a size that no memory holds.
MOST = 1024
#: The checkpoint that ships with the package.
SHIPPED = Path(__file__).with_name("ganonymization-128.safetensors")


@dataclass(frozen=True)
class Description:
    """What a generator has to be told beside its weights, and where it comes from.

    side, width: of the network.  render: side at which the landmark dots are drawn.  margin: factor on the face's box that it
    was trained with.  trained_on: data sets ("name" or "name:split").  notes: anything else, as JSON.
    """

    side: int = 512
    width: int = 64
    render: int = 512
    margin: float = 1.0
    trained_on: tuple[str, ...] = ()
    licence: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> dict[str, str]:
        values = {k: getattr(self, k) for k in ("side", "width", "render", "margin", "licence", "notes")}
        return {"format": FORMAT, "description": json.dumps({**values, "trained_on": list(self.trained_on)}, sort_keys=True)}


class Known(NamedTuple):
    """A released file, recognised by its SHA-256."""

    title: str
    trained_on: tuple[str, ...]


#: The reference's training set adds CelebA's test folder to its train folder, so only "val" is unseen by these.
OFFICIAL = {
    "eba49bd525033b55022a91d6b4398ab088b51339fd6895db7afdd648d776eec9": Known(
        "official, 25 epochs (publication)", ("CelebA:train", "CelebA:test")
    ),
    "34e6698712b50f9325ac36ec3daf8febb5cca6813a1605bc2d7ecb78a896fe62": Known(
        "official, 50 epochs (demo)", ("CelebA:train", "CelebA:test")
    ),
}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A generator that is ready (on the CPU, float32, eval mode) and what is known of it.

    title: what the file is, e.g. "official, 25 epochs (publication)" or "Lightning checkpoint".
    """

    generator: Generator
    description: Description
    sha256: str
    title: str


def resolve_device(device: str) -> str:
    """ "auto" as "cuda" where there is one, else "cpu".  Raises MissingError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError(f"device {device!r} is not there", 'use "cpu", or "auto" for what there is')
    try:
        return str(torch.device(device))
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}", 'use "auto", "cpu" or "cuda"') from error


def save_generator(path: Path, weights: Mapping[str, Any], description: Description, *, half: bool = False) -> None:
    """Writes a generator (keys without prefix) as safetensors; ``half`` in 16 bits."""
    import torch
    from safetensors.torch import save

    from deidbench.images import atomic_write

    kind = torch.float16 if half else torch.float32
    tensors = {f"generator.{k}": v.detach().to("cpu", kind).contiguous() for k, v in weights.items()}
    atomic_write(path, _settled(save(tensors, description.pack())))


def _settled(data: bytes) -> bytes:
    """A safetensors file with its header's keys in order: the library writes metadata in a random one, and the hash counts."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def load_generator(path: str | Path, size: int | None = None) -> Loaded:
    """The generator in ``path``: a Lightning checkpoint, a plain state dict (keys with or without ``generator.``) or safetensors.

    size: side in pixels, for files that do not say it; eight down blocks mean 512, fewer 2 to their number.
    Nothing in the file is executed.  Raises MissingError where there is none; InputError where it is broken, holds other
    keys or shapes than a generator (the first that differs is named), weights that are not finite, or objects.
    """
    from deidbench.anonymizers.ganonymization.networks import DEEPEST, Generator, Shape

    path = Path(path).expanduser()
    weights, said, title = _read(path)
    mine = _of(weights, "generator", "down1", path)
    if said and size and size != said.side:
        raise InputError(f"{path} was trained at {said.side} pixels, not {size}", "leave size out")
    # the deepest block that is there, so that a hole among the others is named and not taken for a smaller network
    blocks = {i: f"down{i}.model.0.weight" in mine or f"up{i - 1}.model.0.weight" in mine for i in range(1, DEEPEST + 1)}
    depth = max((i for i, there in blocks.items() if there), default=1)
    width = _width(mine.get("down1.model.0.weight"))
    side = size or (said.side if said else 512 if depth == DEEPEST else max(2**depth, 32))
    try:
        shape = Shape(side, width)
        wanted = shape.depth
    except ValueError as error:
        raise InputError(f"{path}: {error}", "give the side that it was trained at, e.g. size = 512") from error
    if wanted < depth:
        raise InputError(
            f"{path}: {side} pixels take {wanted} down blocks, the file has {depth}", "give the side that it was trained at"
        )
    generator = _filled(lambda: Generator(shape), mine, path)
    sha = sha256_of(path)
    known = OFFICIAL.get(sha)
    if said is None:
        said = Description(side, width, side, 1.0, known.trained_on if known else ())
    elif said.width != width:
        raise InputError(f"{path}: its description says width {said.width}, its weights have {width}", _REMEDY)
    return Loaded(generator, said, sha, known.title if known else title)


def data_behind(path: Path) -> tuple[str, ...]:
    """The data sets that shaped a checkpoint, as its description or its known hash says; () where nothing is known.

    Quick: the weights are not loaded.  For an ONNX file as for the others.
    """
    if path.suffix.lower() == ".onnx":
        from deidbench.anonymizers.ganonymization.export import description_of

        return description_of(path).trained_on
    if metadata := _metadata(path):
        return unpack_description(metadata, path).trained_on
    known = OFFICIAL.get(sha256_of(path))
    return known.trained_on if known else ()


def load_discriminator(path: str | Path) -> Discriminator:
    """The discriminator of a Lightning checkpoint or state dict (keys ``discriminator.``).  Raises as :func:`load_generator`."""
    from deidbench.anonymizers.ganonymization.networks import Discriminator

    path = Path(path).expanduser()
    weights, _, _ = _read(path)
    mine = _of(weights, "discriminator", "model.0", path)
    made: Discriminator = _filled(lambda: Discriminator(_width(mine.get("model.0.weight"))), mine, path)
    return made


_REMEDY = "give a GANonymization checkpoint (Lightning, state dict or safetensors); deidbench train ganonymization makes one"


def _read(path: Path) -> tuple[dict[str, Any], Description | None, str]:
    """All tensors by key, what the file says of itself, and its kind."""
    import torch

    raw = safe_torch_load(path)
    title, said = "state dict", None
    if isinstance(raw, Mapping) and isinstance(raw.get("state_dict"), Mapping):
        raw, title = raw["state_dict"], "Lightning checkpoint"
    elif isinstance(raw, Mapping) and "optimisers" in raw and "identity" in raw:
        raise InputError(
            f"{path} is the state of a training, not a checkpoint", "give best.safetensors or last.safetensors beside it"
        )
    if not isinstance(raw, Mapping) or not raw:
        raise InputError(f"{path} holds {type(raw).__name__}, no state dict", _REMEDY)
    tensors = {str(k): v for k, v in raw.items() if isinstance(v, torch.Tensor)}
    if metadata := _metadata(path):
        said, title = unpack_description(metadata, path), "deidbench checkpoint"
    return tensors, said, title


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of our own safetensors files; empty for others."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            found = file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
    return found if found.get("format") == FORMAT else {}


def unpack_description(metadata: Mapping[str, str], path: Path) -> Description:
    """The inverse of :meth:`Description.pack`.  Raises InputError for what makes no sense."""
    from deidbench.anonymizers.ganonymization.networks import depth_of

    try:
        d = json.loads(metadata["description"])
        side, width, render, margin = int(d["side"]), int(d["width"]), int(d["render"]), float(d["margin"])
        depth_of(side)
        if not (side <= 4096 and 0 < width <= MOST and side <= render <= 4096 and render % side == 0 and 0.5 <= margin <= 4):
            raise ValueError(f"side {side}, width {width}, render {render}, margin {margin}")
        if not isinstance(d["trained_on"], list):  # a string would fall into letters
            raise TypeError(f"trained_on {d['trained_on']!r}")
        trained = tuple(str(t) for t in d["trained_on"])
        return Description(side, width, render, margin, trained, str(d["licence"]), dict(d["notes"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: its description makes no sense: {error}", _REMEDY) from error


def _width(first: Any) -> int:
    """Channels of the first layer, or the official 64 where they make no sense (its shape is then what differs)."""
    width = int(first.shape[0]) if first is not None and first.ndim == 4 else 0
    return width if 0 < width <= MOST else 64


def _of(weights: Mapping[str, Any], prefix: str, first: str, path: Path) -> dict[str, Any]:
    """The tensors of one network, without prefix."""
    # DataParallel ("module") and compiled modules ("_orig_mod") wrap at any level
    bare: dict[str, Any] = {}
    for key, value in weights.items():
        name = ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))
        if name in bare:
            raise InputError(f"{path} holds {name} twice, once as {key}", _REMEDY)
        bare[name] = value
    for lead in (f"{prefix}.", ""):
        found = {k.removeprefix(lead): v for k, v in bare.items() if k.startswith(lead)}
        if any(k.startswith(f"{first}.") for k in found):
            return found
    some = ", ".join(list(weights)[:3]) or "none"
    raise InputError(f"{path} holds no {prefix}: there is no key {prefix}.{first}.* (its keys: {some} ...)", _REMEDY)


def _filled(make: Any, mine: Mapping[str, Any], path: Path) -> Any:
    """The network with the file's weights, after a look at every key, shape, type and value."""
    import torch

    with torch.device("meta"):
        network = make()
    expected = network.state_dict()
    for key, want in expected.items():
        if key not in mine:
            raise InputError(f"{path} lacks the key {key} (shape {tuple(want.shape)})", _REMEDY)
        if tuple(mine[key].shape) != tuple(want.shape):
            raise InputError(f"{path}: {key} has shape {tuple(mine[key].shape)}, expected {tuple(want.shape)}", _REMEDY)
    for key in mine:
        if key not in expected and not key.startswith(("discriminator.", "generator.")):
            raise InputError(f"{path} holds a key that the network does not have: {key}", _REMEDY)
    ready = {}
    for key in expected:
        value = mine[key]
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise InputError(f"{path}: {key} is no plain array of numbers", _REMEDY)
        if not value.is_floating_point():
            raise InputError(f"{path}: {key} holds {value.dtype}, not floating point numbers", _REMEDY)
        # a copy: the network's memory must not hang on a file that may be replaced
        ready[key] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
        if not bool(torch.isfinite(ready[key]).all()):
            raise InputError(
                f"{path}: {key} holds values that are not finite (NaN or infinity)",
                "its training broke down: use an earlier checkpoint",
            )
    network.load_state_dict(ready, assign=True)
    return network.eval().requires_grad_(False)
