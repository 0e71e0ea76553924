"""Training of deidbench's own classifiers on labelled faces, resumable to the same weights.

Whatever is drawn at random (order, changes of the pictures, dropout) follows from the seed, the epoch and the image's place in
the data alone, and the state is kept after every epoch: a training that was killed and goes on reaches the same weights as one
that was left alone (same machine, same number of threads).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import DeidbenchError, InputError
from deidbench.metrics.models.labels import EMOTIONS
from deidbench.metrics.models.network import CROPS, TASKS, Description, Layout, Loaded, digest_numbers
from deidbench.types import Floats, Image, Sample

STATE_FILE = "state.pt"
WEIGHTS_FILE = "classifier.safetensors"
CARD_FILE = "MODEL_CARD.md"
HISTORY_FILE = "history.json"
#: Raise it when the same images give other crops.
VERSION = "1"
SHARD = 256
#: Random numbers per image and epoch; see :func:`augmented`.
_DRAWS = 24
#: A class of an attribute with fewer held-out images leaves the threshold where training put it.
_MIN_IMAGES = 10
#: Rarer classes of an attribute weigh as if they had this share.
_RAREST = 0.03


@dataclass(frozen=True)
class Settings:
    """How a classifier is trained.

    task: "emotion" or "attributes".  grey, side, stem, widths, strides, grid: see :class:`Layout`.
    epochs, batch, learning_rate (its peak), warmup (share of the steps until then), weight_decay, dropout: AdamW, cosine.
    ema: decay of the running average of the weights, which is what is validated and written.
    balance: classes weigh by their frequency to the power of minus this (1: all weigh the same).  smoothing: of the targets.
    least_votes: fewer votes for an emotion count as none.
    rotate (degrees), scale, shift (of the side), stretch, contrast, brightness, colour: greatest random change of a picture.
    erase, coarsen: probability that a rectangle is covered, and that the picture loses resolution.  flip: mirror every other.
    validation: share of the *persons* kept out.  seed: of everything.
    """

    task: str = "emotion"
    grey: bool = True
    side: int = 48
    stem: int = 32
    widths: tuple[int, ...] = (32, 64, 128, 256)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    grid: int = 0
    epochs: int = 12
    batch: int = 128
    learning_rate: float = 3e-3
    warmup: float = 0.2
    weight_decay: float = 0.05
    dropout: float = 0.2
    ema: float = 0.998
    balance: float = 0.5
    smoothing: float = 0.0
    least_votes: int = 2
    rotate: float = 12.0
    scale: float = 0.12
    shift: float = 0.06
    stretch: float = 0.05
    contrast: float = 0.25
    brightness: float = 0.15
    colour: float = 0.0
    erase: float = 0.3
    coarsen: float = 0.2
    flip: bool = True
    validation: float = 0.1
    seed: int = 42

    def layout(self, outputs: int) -> Layout:
        return Layout(self.grey, self.side, self.stem, self.widths, self.strides, outputs, self.grid)

    def check(self) -> None:
        """Raises InputError for settings that make no sense."""
        if self.task not in TASKS:
            raise InputError(f"task = {self.task!r} is unknown", f"use one of {', '.join(TASKS)}")
        try:
            self.layout(1).check()
        except (ValueError, TypeError) as error:
            raise InputError(
                f"that is no network: {error}", "e.g. side = 48, stem = 32, widths = [32, 64], strides = [1, 2]"
            ) from error
        for key, low, high in (
            ("epochs", 1, 100_000), ("batch", 2, 65_536), ("learning_rate", 1e-9, 1), ("warmup", 0, 0.9), ("weight_decay", 0, 10),
            ("dropout", 0, 0.95), ("ema", 0, 0.999999), ("balance", 0, 1), ("smoothing", 0, 0.45), ("least_votes", 1, 100),
            ("rotate", 0, 90), ("scale", 0, 0.5), ("shift", 0, 0.5), ("stretch", 0, 0.5), ("contrast", 0, 0.95),
            ("brightness", 0, 0.9), ("colour", 0, 0.9), ("erase", 0, 1), ("coarsen", 0, 1), ("validation", 0, 0.9),
            ("seed", 0, 2**32),
        ):  # fmt: skip
            if not low <= getattr(self, key) <= high:
                raise InputError(f"{key} = {getattr(self, key)!r} is not in {low:g} to {high:g}", f"give a {key} in that range")


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from a recipe's table.  Raises InputError for a key that is none or a value of the wrong kind."""
    import difflib

    known = {f.name: getattr(Settings(), f.name) for f in fields(Settings)}
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f"training has no setting {key!r}", f"did you mean {close[0]!r}?" if close else f"settings: {', '.join(known)}"
            )
        default = known[key]
        if isinstance(default, tuple) and isinstance(value, list | tuple) and all(type(v) is int for v in value):
            out[key] = tuple(value)
        elif type(value) is type(default) or (type(default) is float and type(value) is int):
            out[key] = value
        else:
            raise InputError(f"training: {key} = {value!r} is no {type(default).__name__}", f"e.g. {key} = {default!r}")
    settings = Settings(**out)
    settings.check()
    return settings


@dataclass(frozen=True, eq=False)
class Faces:
    """What is learnt from, and what is held out.

    pixels: uint8 (n, side, side, 1 or 3), crops averaged down to the network's side.
    targets: float32 (n, K): emotions as shares that sum to 1, attributes as 0 or 1, NaN where unknown.
    subjects, sha256: per image.  held_out: bool (n,), for validation.  labels: names of the K classes.
    """

    pixels: Image
    targets: Floats
    subjects: Sequence[str]
    sha256: Sequence[str]
    held_out: npt.NDArray[np.bool_]
    labels: tuple[str, ...]

    def hash(self) -> str:
        """SHA-256 over everything that a training depends on."""
        h = hashlib.sha256(json.dumps([list(self.labels), list(self.subjects), list(self.sha256)]).encode())
        for array in (self.pixels, self.targets, self.held_out):
            h.update(np.ascontiguousarray(array).data)
        return h.hexdigest()


# -- from images to faces ------------------------------------------------------------------------------------------------
def emotion_targets(votes: npt.NDArray[np.integer[Any]], names: Sequence[str], least: int) -> Floats:
    """Votes (n, k) for the classes ``names`` as shares over :data:`EMOTIONS`, float32 (n, 8).

    As Barsoum et al. (2016) treat FER+: an image whose most votes go to none of the emotions (unknown, no face), and one
    without an emotion of at least ``least`` votes, is left out: its row is NaN.
    """
    from deidbench.metrics.models.labels import emotion

    v = np.asarray(votes, np.float32)
    mine = np.zeros((len(v), len(EMOTIONS)), np.float32)
    other = np.zeros(len(v), np.float32)
    for column, name in zip(v.T, names, strict=True):
        known = emotion(name)
        if known is None:
            other = np.maximum(other, column)
        else:
            mine[:, EMOTIONS.index(known)] += column
    best = mine.max(1, initial=0)
    mine[mine < least] = 0
    total = mine.sum(1)
    good = (total > 0) & (best > other)
    return np.where(good[:, None], mine / np.maximum(total, 1)[:, None], np.nan).astype(np.float32)


def one_hot(names: Sequence[str | None]) -> Floats:
    """Names of emotions as float32 (n, 8); rows of NaN for None and words that are none."""
    from deidbench.metrics.models.labels import emotion

    out = np.full((len(names), len(EMOTIONS)), np.nan, np.float32)
    for row, name in zip(out, names, strict=True):
        known = emotion(name) if name else None
        if known is not None:
            row[:] = 0
            row[EMOTIONS.index(known)] = 1
    return out


def hold_out(subjects: Sequence[str], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which images belong to held-out persons; at least one person on either side where there are two."""
    from deidbench.datasets.base import split_persons

    persons = sorted(set(subjects))
    if len(persons) < 2 or share == 0:
        return np.zeros(len(subjects), np.bool_)
    share = min(max(share, 1 / len(persons)), 1 - 1 / len(persons))
    roles = split_persons(persons, {"train": 1 - share, "validation": share}, seed)
    return np.array([roles[s] == "validation" for s in subjects], np.bool_)


def assemble(
    pixels: Image,
    targets: Floats,
    names: Sequence[str],
    subjects: Sequence[str],
    sha256: Sequence[str],
    settings: Settings,
    held_out: npt.NDArray[np.bool_] | None = None,
) -> Faces:
    """Faces with a label, and the classes that can be learnt from them.

    targets: (n, K) for ``names``, NaN where unknown.  held_out: instead of a share of the persons.
    Raises InputError where fewer than two classes (or no attribute with both) are left.
    """
    keep = np.isfinite(targets).any(1)
    chosen = np.flatnonzero(keep)
    who, hashes = [subjects[i] for i in chosen], [sha256[i] for i in chosen]
    out = hold_out(who, settings.validation, settings.seed) if held_out is None else held_out[keep]
    t = targets[keep]
    learn = t[~out]
    if settings.task == "emotion":
        there = np.nan_to_num(learn).sum(0) > 0
        enough = np.count_nonzero(there) >= 2
        usable = np.nan_to_num(t)[:, there].sum(1) > 0
    else:
        there = (learn == 1).any(0) & (learn == 0).any(0)
        enough = bool(there.any())
        usable = np.isfinite(t[:, there]).any(1)
    if not enough:
        raise InputError(
            f"{len(learn)} training faces have too few classes to learn {settings.task} from",
            "an emotion or votes_CLASS column with two classes, or columns named as CelebA's attributes with both 0 and 1",
        )
    t = t[:, there]
    if settings.task == "emotion":
        t = t / np.maximum(t.sum(1, keepdims=True), 1e-9)
    places = np.flatnonzero(usable)
    return Faces(
        pixels[chosen[places]],
        t[places].astype(np.float32),
        [who[i] for i in places],
        [hashes[i] for i in places],
        out[places],
        tuple(n for n, yes in zip(names, there, strict=True) if yes),
    )


def shrunk(crops: Image, layout: Layout) -> Image:
    """Crops uint8 (n, s, s, 3) averaged down to the network's side, uint8 (n, side, side, 1 or 3)."""
    from deidbench.metrics.models.network import shrink

    parts = [
        (shrink(crops[i : i + SHARD], layout) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
        for i in range(0, len(crops), SHARD)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, layout.side, layout.side, 1 if layout.grey else 3), np.uint8)


_finder: Any = None
_cut: Any = None


def _initialise(task: str, layout: Layout) -> None:
    import cv2

    from deidbench.faces import FaceFinder

    global _finder, _cut
    _finder, _cut = FaceFinder(), (task, layout)
    cv2.setNumThreads(1)


def _shard(task: tuple[Path, tuple[Sample, ...]]) -> int:
    """Cuts out one shard's faces; returns how many samples it stands for."""
    from safetensors.numpy import save

    from deidbench.faces import align, subject_face
    from deidbench.images import atomic_write, read_image

    path, samples = task
    crops, kept = [], []
    left_out: dict[str, str] = {}
    for sample in samples:
        try:
            image = read_image(sample.path, sha256=sample.sha256)
        except DeidbenchError as error:
            left_out[sample.id] = error.message
            continue
        face = subject_face(_finder.find(image, thorough=sample.box is not None), sample.box)
        if face is None:
            left_out[sample.id] = "no face found"
            continue
        crops.append(align(image, face, CROPS[_cut[0]]))
        kept.append(sample.id)
    size = CROPS[_cut[0]].size
    pixels = shrunk(np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8), _cut[1])
    atomic_write(path, save({"pixels": pixels}, {"ids": json.dumps(kept), "left_out": json.dumps(left_out)}))
    return len(samples)


class Cut(NamedTuple):
    """pixels: uint8 (n, side, side, 1 or 3).  ids: of the samples they come from.  left_out: id -> why there is no face."""

    pixels: Image
    ids: list[str]
    left_out: dict[str, str]


def prepare(
    samples: Sequence[Sample],
    settings: Settings,
    cache: Path,
    *,
    make_pool: Callable[[Callable[..., None], tuple[Any, ...]], Any],
    quiet: bool = False,
) -> Cut:
    """The faces of ``samples``, cut out by a pool of workers or read from ``cache``; an interrupted preparation goes on.

    make_pool: a pool (:mod:`deidbench.executors`) from its workers' initialiser and the initialiser's arguments.
    Raises InputError where no sample has a face.
    """
    from safetensors import safe_open

    from deidbench.faces import FaceFinder
    from deidbench.images import make_folder
    from deidbench.progress import progress

    layout = settings.layout(1)
    what = [
        VERSION, FaceFinder().fingerprint, str(CROPS[settings.task]), layout.grey, layout.side,
        [[s.id, s.sha256, str(s.box)] for s in samples],
    ]  # fmt: skip
    folder = cache / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    make_folder(folder)
    tasks = [(folder / f"{i // SHARD:05d}.safetensors", tuple(samples[i : i + SHARD])) for i in range(0, len(samples), SHARD)]
    todo = [t for t in tasks if not _whole(t[0])]
    if todo:
        pool = make_pool(_initialise, (settings.task, layout))
        try:
            with progress("prepare faces", sum(len(s) for _, s in todo), quiet=quiet) as tick:
                for _, done in pool.run(_shard, todo):
                    tick(done)
        finally:
            pool.close()
    pixels, ids = [], []
    left_out: dict[str, str] = {}
    for path, _ in tasks:
        with safe_open(str(path), framework="np") as shard:
            pixels.append(shard.get_tensor("pixels"))
            ids += json.loads(shard.metadata()["ids"])
            left_out |= json.loads(shard.metadata()["left_out"])
    if not ids:
        why = next(iter(left_out.values()), "there are no images")
        raise InputError(f"no image has a face to learn from ({why})", "check --data and the roles in its manifest")
    return Cut(np.concatenate(pixels), ids, left_out)


def _whole(path: Path) -> bool:
    """Is this shard there and readable?  A damaged one is made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as shard:
            return {"ids", "left_out"} <= (shard.metadata() or {}).keys() and "pixels" in set(shard.keys())
    except (SafetensorError, OSError):
        return False


# -- learning ------------------------------------------------------------------------------------------------------------
def augmented(pixels: Image, draws: npt.NDArray[np.float64], s: Settings) -> Any:
    """Changed copies of the pictures: float32 tensor (n, 1 or 3, side, side), 0..1 and a little beyond.

    pixels: uint8 (n, side, side, 1 or 3).  draws: uniform (n, 24), which alone determine the changes.
    """
    import torch
    from torch.nn import functional

    n, side = len(pixels), s.side
    u = torch.from_numpy(draws.astype(np.float32))

    def spread(i: int, most: float) -> Any:
        return (2 * u[:, i] - 1) * most

    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    angle = spread(0, s.rotate * math.pi / 180)
    zoom = 1 + spread(1, s.scale)
    wide, high = zoom * (1 + spread(2, s.stretch)), zoom * (1 - spread(2, s.stretch))
    mirror = torch.where((u[:, 3] < 0.5) & s.flip, -1.0, 1.0)
    m = torch.zeros(n, 2, 3)
    m[:, 0, 0], m[:, 0, 1] = torch.cos(angle) * wide * mirror, -torch.sin(angle) * high
    m[:, 1, 0], m[:, 1, 1] = torch.sin(angle) * wide * mirror, torch.cos(angle) * high
    m[:, 0, 2], m[:, 1, 2] = spread(4, 2 * s.shift), spread(5, 2 * s.shift)
    grid = functional.affine_grid(m, list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)

    column = (slice(None), None, None, None)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + spread(6, s.contrast))[column] + mean + spread(7, s.brightness)[column]
    if s.colour and x.shape[1] == 3:
        x = x + ((2 * u[:, 8:11] - 1) * s.colour)[:, :, None, None]
    coarse = torch.nonzero(u[:, 11] < s.coarsen).flatten()
    if len(coarse):
        # between a third and all of the resolution, in four steps so that they go through together
        steps = (u[:, 12] * 4).long().clamp(max=3)
        for k in range(4):
            chosen = coarse[steps[coarse] == k]
            if len(chosen):
                few = round(side * (0.33 + 0.17 * k))
                down = functional.interpolate(x[chosen], (few, few), mode="area")
                x[chosen] = functional.interpolate(down, (side, side), mode="bilinear", align_corners=False)
    for k in torch.nonzero(u[:, 13] < s.erase).flatten().tolist():
        a, b, c, d = u[k, 14:18].tolist()
        height, width = (max(1, int(side * (0.125 + 0.2 * v))) for v in (a, b))
        top, left = int(c * (side - height)), int(d * (side - width))
        x[k, :, top : top + height, left : left + width] = 0.5
    return x


def learning_rate(step: int, total: int, s: Settings) -> float:
    """Half a cosine up to the peak, from 1/25 of it, in the first ``warmup`` of the steps; half a cosine down to nothing."""
    rise = s.warmup * total
    if step < rise:
        return s.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2)
    return s.learning_rate * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1))) / 2


def class_weights(targets: Floats, s: Settings) -> Floats:
    """Emotion: (K,), mean 1 over the images.  Attributes: (2, K), of "no" and "yes", mean 1 over both classes."""
    w: npt.NDArray[Any]
    if s.task == "emotion":
        share = targets.mean(0)
        w = np.maximum(share, 1e-4) ** -s.balance
        w = w / (w * share).sum()
    else:
        yes = np.nanmean(targets, 0)
        w = (np.maximum(np.stack([1 - yes, yes]), _RAREST) * 2) ** -s.balance
    return w.astype(np.float32)


class Trainer:
    """Network, running average, optimiser; :meth:`epoch` goes through the training faces once."""

    def __init__(self, faces: Faces, settings: Settings) -> None:
        import torch

        from deidbench.metrics.models.network import trainable

        self.faces, self.settings = faces, settings
        self.layout = settings.layout(len(faces.labels))
        self.train = np.flatnonzero(~faces.held_out)
        self.network = trainable(self.layout, settings.dropout, settings.seed)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.weights = torch.from_numpy(class_weights(faces.targets[self.train], settings))
        self.done = 0
        self.history: list[dict[str, float]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the rest of an epoch's order is left out (another rest each time)."""
        return max(1, len(self.train) // self.settings.batch)

    def loss(self, logits: Any, targets: Any) -> Any:
        """Weighted cross entropy; targets as in :class:`Faces`."""
        import torch
        from torch.nn import functional

        smooth = self.settings.smoothing
        if self.settings.task == "emotion":
            t = targets * (1 - smooth) + smooth / targets.shape[1]
            return -(t * self.weights * functional.log_softmax(logits, 1)).sum(1).mean()
        known = torch.isfinite(targets)
        t = torch.where(known, targets, 0.0)
        weight = torch.where(t > 0.5, self.weights[1], self.weights[0]) * known
        each = functional.binary_cross_entropy_with_logits(logits, t * (1 - 2 * smooth) + smooth, reduction="none")
        return (weight * each).sum() / known.sum().clamp(min=1)

    def epoch(self, tick: Callable[[int], None]) -> None:
        """One pass.  ``tick`` is called with the number of steps done."""
        import torch

        from deidbench.metrics.models.network import standardise

        s, epoch = self.settings, len(self.history)
        total = self.steps_per_epoch * s.epochs
        order = np.random.default_rng([s.seed, 1, epoch]).permutation(self.train)
        draws = np.random.default_rng([s.seed, 2, epoch]).random((len(self.faces.pixels), _DRAWS))
        begun, losses = time.monotonic(), 0.0
        self.network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([s.seed, 3, epoch]).integers(2**62)))  # dropout
            for place in range(self.steps_per_epoch):
                chosen = order[place * s.batch : (place + 1) * s.batch]
                x = standardise(augmented(self.faces.pixels[chosen], draws[chosen], s), s.grey)
                for group in self.optimiser.param_groups:
                    group["lr"] = learning_rate(self.done, total, s)
                loss = self.loss(
                    self.network(x.contiguous(memory_format=torch.channels_last)), torch.from_numpy(self.faces.targets[chosen])
                )
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self.optimiser.step()
                losses += loss.item()
                self.done += 1
                # while it is young the average follows fast: its memory never reaches back beyond the first steps
                decay = min(s.ema, (1 + self.done) / (10 + self.done))
                with torch.no_grad():
                    for key, value in self.network.state_dict().items():
                        if value.dtype.is_floating_point:
                            self.average[key].lerp_(value, 1 - decay)
                        else:
                            self.average[key].copy_(value)
                tick(1)
        mean = losses / self.steps_per_epoch
        if not math.isfinite(mean):
            raise DeidbenchError(
                f"training broke down in epoch {epoch + 1}: loss {mean}", "use a smaller learning_rate in a new folder"
            )
        self.history.append({"epoch": epoch + 1, "loss": mean, "seconds": round(time.monotonic() - begun, 1)})

    def state(self) -> dict[str, Any]:
        return {
            "step": self.done,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.done = int(state["step"])
        self.network.load_state_dict(state["network"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])


def logits_of(loaded: Loaded, pixels: Image) -> Floats:
    """Logits float32 (n, K) of pictures that are averaged down already, uint8 (n, side, side, 1 or 3)."""
    from deidbench.metrics.models.network import Inference

    run = Inference(loaded)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=3)
    return run(pixels)[0]


def balanced_thresholds(logits: Floats, targets: Floats) -> npt.NDArray[np.float64]:
    """Per attribute the logit above which "yes" is said, for the best balanced accuracy; (K,).

    The accuracy as a function of the threshold is noisy where a class is rare, so it is averaged over neighbours: the 97 per
    cent quantiles from 0.02 to 0.98, nine at a time.  0 where a class has fewer than 10 images.
    """
    out = np.zeros(logits.shape[1])
    window = np.ones(9)
    for k in range(logits.shape[1]):
        t = targets[:, k]
        yes, no = np.sort(logits[t == 1, k]), np.sort(logits[t == 0, k])
        if min(len(yes), len(no)) < _MIN_IMAGES:
            continue
        cuts = np.quantile(np.concatenate([yes, no]), np.linspace(0.02, 0.98, 97))
        right = (1 - np.searchsorted(yes, cuts, "right") / len(yes) + np.searchsorted(no, cuts, "right") / len(no)) / 2
        smooth = np.convolve(right, window, "same") / np.convolve(np.ones(97), window, "same")
        out[k] = cuts[smooth.argmax()]
    return out


def figures(logits: Floats, targets: Floats, labels: Sequence[str], task: str) -> dict[str, Any]:
    """How well the held-out faces are read: recall per emotion, accuracy and UAR; balanced accuracy per attribute and their mean.

    An emotion's truth is the class with the most votes.  Classes that are not there are left out.
    """
    if not len(logits):
        return {}
    if task == "emotion":
        truth, said = targets.argmax(1), logits.argmax(1)
        each = {name: float((said[truth == k] == k).mean()) for k, name in enumerate(labels) if (truth == k).any()}
        return {
            "images": len(logits),
            "accuracy": float((truth == said).mean()),
            "uar": float(np.mean(list(each.values()))),
            "per class": each,
        }
    each = {}
    for k, name in enumerate(labels):
        t, yes = targets[:, k], logits[:, k] > 0
        if (t == 1).any() and (t == 0).any():
            each[name] = float((yes[t == 1].mean() + (~yes[t == 0]).mean()) / 2)
    return {
        "images": len(logits),
        "balanced accuracy": float(np.mean(list(each.values()))) if each else math.nan,
        "per class": each,
    }


@dataclass(frozen=True)
class About:
    """What the data is; goes into file and card.  persons_of: word of the data set whose ids the subjects are, "" for none."""

    data: str = ""
    trained_on: tuple[str, ...] = ()
    licence: str = "not stated"
    citation: str = ""
    persons_of: str = ""
    command: str = ""


@dataclass(frozen=True)
class Result:
    """Where a training ended: its weights, epochs done, figures on the held-out persons."""

    weights: Path
    epochs: int
    held_out: dict[str, Any]


def train(
    faces: Faces,
    settings: Settings,
    out: Path,
    *,
    about: About,
    threads: int = 0,
    stop_after: int | None = None,
    quiet: bool = False,
) -> Result | None:
    """Trains, or goes on where ``out`` stopped; writes weights, lessons, history and card.

    threads: of torch, 0 for what is set.  stop_after: end after so many epochs in all (as a kill would; then None comes back).
    Raises InputError where ``out`` holds a training with other settings or other data.
    """
    import torch

    from deidbench.images import atomic_write, make_folder
    from deidbench.progress import progress

    settings.check()
    make_folder(out)
    if threads:
        torch.set_num_threads(threads)
    trainer = Trainer(faces, settings)
    identity = {"settings": json.loads(json.dumps(asdict(settings))), "data": faces.hash()}
    kept = out / STATE_FILE
    if kept.is_file():
        _resume(kept, trainer, identity)
    with progress("train", trainer.steps_per_epoch * settings.epochs, quiet=quiet) as tick:
        tick(trainer.done)
        while len(trainer.history) < settings.epochs:
            if stop_after is not None and len(trainer.history) >= stop_after:
                return None
            trainer.epoch(tick)
            buffer = io.BytesIO()
            torch.save({**trainer.state(), "identity": json.dumps(identity), "history": json.dumps(trainer.history)}, buffer)
            atomic_write(kept, buffer.getvalue())
            atomic_write(out / HISTORY_FILE, json.dumps(trainer.history, indent=1))
    return _finish(trainer, about, out)


def _resume(kept: Path, trainer: Trainer, identity: Mapping[str, Any]) -> None:
    from deidbench.weights import safe_torch_load

    state = safe_torch_load(kept)
    try:
        was = json.loads(state["identity"])
        for key, value in identity["settings"].items():
            if was["settings"].get(key) != value:
                raise InputError(
                    f"{kept.parent} holds a training with {key} = {was['settings'].get(key)!r}, not {value!r}",
                    "give the same settings to go on, or another --out for a new training",
                )
        if was["data"] != identity["data"]:
            raise InputError(f"{kept.parent} holds a training on other data", "give another --out for a new training")
        trainer.restore(state)
        trainer.history = json.loads(state["history"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{kept} is no state of this training: {type(error).__name__}: {error}", "delete it, or give another --out"
        ) from error


def _finish(trainer: Trainer, about: About, out: Path) -> Result:
    """Weights with thresholds from the held-out persons, figures, card."""
    from deidbench.images import atomic_write
    from deidbench.metrics.models.network import fold, load_classifier, save_classifier, shifted

    faces, settings = trainer.faces, trainer.settings
    persons = {about.persons_of: tuple(sorted(set(faces.subjects)))} if about.persons_of else {}
    description = Description(
        settings.task, faces.labels, trainer.layout, about.trained_on, about.licence, persons,
        {"data": about.data, "citation": about.citation, "settings": asdict(settings)},
    )  # fmt: skip
    images = digest_numbers(faces.sha256)
    target = out / WEIGHTS_FILE
    save_classifier(target, fold(trainer.average, trainer.layout), description, images)
    # what is measured is the file itself, with its rounded weights
    loaded = load_classifier(target)
    held = np.flatnonzero(faces.held_out)
    logits = logits_of(loaded, faces.pixels[held])
    if settings.task == "attributes" and len(held):
        thresholds = balanced_thresholds(logits, faces.targets[held])
        loaded, logits = shifted(loaded, thresholds), (logits - thresholds).astype(np.float32)
        save_classifier(target, loaded.weights, description, images)
    measured = figures(logits, faces.targets[held], faces.labels, settings.task)
    atomic_write(out / CARD_FILE, model_card(faces, settings, about, measured, trainer.history))
    return Result(target, len(trainer.history), measured)


def model_card(
    faces: Faces, settings: Settings, about: About, measured: Mapping[str, Any], history: Sequence[Mapping[str, float]]
) -> str:
    """Data, licence, recipe, command, figures and limits, as Markdown."""
    out = faces.held_out
    persons = [len({s for s, h in zip(faces.subjects, out, strict=True) if h == part}) for part in (False, True)]
    parameters = sum(math.prod(shape) for shape in settings.layout(len(faces.labels)).shapes().values())
    changed = {k: v for k, v in asdict(settings).items() if v != getattr(Settings(), k)}
    lines = [
        f"# Classifier: faces to {'emotions' if settings.task == 'emotion' else 'attributes'}",
        "",
        f"- Data: {about.data or 'not stated'}",
        f"- Learnt from {int((~out).sum()):,} images of {persons[0]:,} subjects; held out {int(out.sum()):,} of {persons[1]:,}.",
        f"- Licence: {about.licence}",
        *([f"- Cite: {about.citation}"] if about.citation else []),
        f"- Network: {parameters:,} numbers; input {settings.side} x {settings.side} {'grey' if settings.grey else 'RGB'}; blocks "
        f"of {', '.join(map(str, settings.widths))} channels; {len(faces.labels)} classes.",
        f"- Training: {len(history)} epochs, {sum(h['seconds'] for h in history) / 60:.0f} minutes; last loss {history[-1]['loss']:.4f}."
        if history
        else "- Training: none",
        *([f"- Command: `{about.command}`"] if about.command else []),
        f"- Settings beside the defaults: `{json.dumps(changed)}`",
        "",
        "## Held-out subjects",
        "",
    ]
    if measured:
        unit = "recall" if settings.task == "emotion" else "balanced accuracy"
        head = (
            f"accuracy {measured['accuracy']:.3f}, UAR {measured['uar']:.3f}"
            if settings.task == "emotion"
            else f"mean balanced accuracy {measured['balanced accuracy']:.3f} (thresholds were chosen on these images)"
        )
        lines += [f"{measured['images']:,} images: {head}.", "", f"| class | {unit} |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in measured["per class"].items()]
    else:
        lines.append("Nothing was held out, so nothing was measured.")
    lines += [
        "",
        "## Limits",
        "",
        "What the labels say is what people saw in pictures, not what the persons felt or are. The figures hold for pictures like",
        "those it learnt from; who is in them (age, sex, skin, country, celebrities or not; posed or not) carries over to the errors.",
        "The classifier is a yardstick for anonymisation, not a means to judge people.",
        "",
    ]
    return "\n".join(lines)
