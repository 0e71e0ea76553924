"""Training: pairs of landmark images and faces, LSGAN + 100 L1, resumable to the step.

Everything that a step draws at random (order, mirroring, dropout) follows from the seed and the step's number alone, so a
run that was killed and goes on reaches the same weights as one that was left alone (same machine, same threads).
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.ganonymization.preprocess import Pairs, Preparation
from deidbench.errors import DeidbenchError, InputError
from deidbench.types import Floats, Image

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"
HISTORY_FILE = "history.csv"
#: Interocular distance error that a face counts with on which no landmarks are found again.
LOST = 0.2
COLUMNS = (
    "step", "epoch", "seconds", "loss_generator", "loss_l1", "loss_discriminator", "val_l1", "val_nme", "val_found", "val_score",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How a generator is trained; the defaults are the paper's.

    size: side in pixels, a power of two.  width: channels of the first block.  discriminator_width: of the discriminator's.
    epochs: passes over the training pairs.  batch: pairs per step.  learning_rate, beta1, beta2: of Adam.  l1: weight of the
    L1 loss beside the adversarial one.  dropout: in the deepest blocks.  ema: decay of the running average of the weights
    that is validated and written (0: the weights themselves).  decay_from: share of all steps after which the learning rate
    falls linearly to 0 (1: it never does).  flip: mirror every other face.
    margin, segmentation, landmarks_from: see :class:`Preparation`.  render: side at which landmark dots are drawn (0: size).
    validation: share of the *persons* kept out for validation.  validate_on: at most so many of their images.
    seed: of everything.  precision: "fp32" or "bf16" (mixed, CUDA).
    """

    size: int = 512
    width: int = 64
    discriminator_width: int = 64
    epochs: int = 25
    batch: int = 8
    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    l1: float = 100.0
    dropout: float = 0.5
    ema: float = 0.0
    decay_from: float = 1.0
    flip: bool = False
    margin: float = 1.0
    segmentation: str = "selfie"
    landmarks_from: str = "plain"
    render: int = 0
    validation: float = 0.05
    validate_on: int = 128
    seed: int = 42
    precision: str = "fp32"

    def check(self) -> None:
        """Raises InputError for settings that make no sense."""
        from deidbench.anonymizers.ganonymization.networks import depth_of

        try:
            depth_of(self.size)
        except ValueError as error:
            raise InputError(f"--size: {error}", "e.g. --size 128, 256 or 512") from error
        if self.render and (self.render < self.size or self.render % self.size):
            raise InputError(
                f"render = {self.render} is no multiple of size = {self.size}", "0 draws the dots at the size itself"
            )
        for key, low, high in (
            ("width", 1, 1024), ("discriminator_width", 1, 1024), ("epochs", 1, 100_000), ("batch", 1, 65_536),
            ("learning_rate", 1e-9, 1), ("beta1", 0, 0.9999), ("beta2", 0, 0.999999), ("l1", 0, 1e6), ("dropout", 0, 0.99),
            ("ema", 0, 0.999999), ("decay_from", 0, 1), ("margin", 0.5, 4), ("validation", 0, 0.9), ("validate_on", 1, 1_000_000),
        ):  # fmt: skip
            if not low <= getattr(self, key) <= high:
                raise InputError(f"{key} = {getattr(self, key)!r} is not in {low:g} to {high:g}", f"give a {key} in that range")
        if self.landmarks_from not in ("plain", "segmented"):
            raise InputError(f"landmarks_from = {self.landmarks_from!r} is unknown", 'use "plain" or "segmented"')
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision = {self.precision!r} is unknown", 'use "fp32" or "bf16"')

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.size, self.margin, self.segmentation, self.landmarks_from)


class Split(NamedTuple):
    """Indices of the training and the validation pairs; no person is in both."""

    train: npt.NDArray[np.intp]
    validation: npt.NDArray[np.intp]


def split(pairs: Pairs, settings: Settings) -> Split:
    """Person-disjoint, by a hash of the seed and the person; at least one person on either side where there are two."""
    from deidbench.datasets.base import split_persons

    persons = sorted(set(pairs.subjects))
    if len(persons) < 2 or settings.validation == 0:
        everything = np.arange(len(pairs))
        return Split(everything, everything[: settings.validate_on])
    share = min(max(settings.validation, 1 / len(persons)), 1 - 1 / len(persons))
    roles = split_persons(persons, {"train": 1 - share, "validation": share}, settings.seed)
    held_out = np.array([roles[s] == "validation" for s in pairs.subjects])
    return Split(np.flatnonzero(~held_out), np.flatnonzero(held_out)[: settings.validate_on])


class Batch(NamedTuple):
    """faces uint8 (n, 3, s, s); drawings uint8 (n, s, s), or (n, 3, s, s) for conditions in colour."""

    faces: npt.NDArray[np.uint8]
    drawings: npt.NDArray[np.uint8]


def batch_of(pairs: Pairs, indices: Sequence[int], mirrored: Sequence[bool], settings: Settings) -> Batch:
    """The pairs at ``indices``, each mirrored where ``mirrored`` says so."""
    from deidbench.anonymizers.ganonymization.landmarks import flipped, landmark_images

    faces, points = [], []
    for i, mirror in zip(indices, mirrored, strict=True):
        face = pairs.image(i)
        faces.append(face[:, ::-1] if mirror else face)
        points.append(flipped(pairs.points[i]) if mirror else pairs.points[i])
    drawings = landmark_images(np.stack(points), settings.size, settings.render or settings.size)
    return Batch(np.ascontiguousarray(np.stack(faces).transpose(0, 3, 1, 2)), drawings)


def batches(pairs: Pairs, train: npt.NDArray[np.intp], settings: Settings, start: int, stop: int) -> Iterator[Batch]:
    """The batches of the steps start:stop, made one ahead of their use.  What is in a batch depends on its step alone."""
    per_epoch = steps_per_epoch(len(train), settings)

    def make(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([settings.seed, 1, epoch]).permutation(train)
        indices = order[place * settings.batch : (place + 1) * settings.batch]
        coins = np.random.default_rng([settings.seed, 2, step]).random(len(indices)) < 0.5
        return batch_of(pairs, indices.tolist(), (coins & settings.flip).tolist(), settings)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, start) if start < stop else None
        for step in range(start, stop):
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(make, step + 1) if step + 1 < stop else None
            yield batch


def steps_per_epoch(n: int, settings: Settings) -> int:
    """Whole batches in ``n`` pairs; the rest of an epoch's order is left out (another rest each time), at least one."""
    return max(1, n // settings.batch)


class Trainer:
    """Networks, optimisers and the step's number; :meth:`step` does one step of each network."""

    def __init__(self, settings: Settings, device: str, total_steps: int) -> None:
        import torch

        from deidbench.anonymizers.ganonymization.networks import Discriminator, Generator, Shape, initialise

        self.settings, self.device, self.total_steps = settings, device, total_steps
        self.done = 0
        #: Sums of the losses since the epoch began (generator, L1, discriminator).
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        random = torch.Generator().manual_seed(settings.seed)
        shape = Shape(settings.size, settings.width, settings.dropout)
        self.generator, self.discriminator = Generator(shape), Discriminator(settings.discriminator_width)
        initialise(self.generator, random)
        initialise(self.discriminator, random)
        for module in (self.generator, self.discriminator):
            module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: dict[str, Any] = {k: v.detach().clone() for k, v in self.generator.state_dict().items()}
        self.optimisers = tuple(
            torch.optim.Adam(m.parameters(), settings.learning_rate, (settings.beta1, settings.beta2), fused=True)
            for m in (self.generator, self.discriminator)
        )

    def step(self, batch: Batch) -> None:
        """One step; its losses are added to ``sums`` on the device (reading them would wait for it)."""
        import torch
        from torch.nn import functional

        from deidbench.anonymizers.ganonymization.landmarks import network_input

        s = self.settings
        torch.manual_seed(int(np.random.default_rng([s.seed, 3, self.done]).integers(2**62)))  # dropout of this step
        rate = s.learning_rate * self._decay()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        drawings = network_input(batch.drawings).to(self.device, memory_format=torch.channels_last)
        faces = torch.from_numpy(batch.faces).to(self.device, torch.float32, memory_format=torch.channels_last)
        faces = faces.div_(127.5).sub_(1.0)
        to_g, to_d = self.optimisers
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=s.precision == "bf16"):
            made = self.generator(drawings)
            self.discriminator.requires_grad_(False)
            judged = self.discriminator(made, drawings)
            adversarial = functional.mse_loss(judged.float(), torch.ones_like(judged, dtype=torch.float32))
            l1 = functional.l1_loss(made.float(), faces)
            loss_g = adversarial + s.l1 * l1
        to_g.zero_grad(set_to_none=True)
        loss_g.backward()  # type: ignore[no-untyped-call]
        to_g.step()
        self.discriminator.requires_grad_(True)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=s.precision == "bf16"):
            # in one pass: instance normalisation keeps images apart
            both = self.discriminator(torch.cat((faces, made.detach().to(faces.dtype))), torch.cat((drawings, drawings)))
            real, fake = both.float().chunk(2)
            loss_d = 0.5 * (
                functional.mse_loss(real, torch.ones_like(real)) + functional.mse_loss(fake, torch.zeros_like(fake))
            )
        to_d.zero_grad(set_to_none=True)
        loss_d.backward()  # type: ignore[no-untyped-call]
        to_d.step()
        self.done += 1
        # while it is young the average follows fast: its memory never reaches back beyond the first steps
        decay = min(s.ema, (1 + self.done) / (10 + self.done)) if s.ema else 0.0
        with torch.no_grad():
            for key, value in self.generator.state_dict().items():
                self.average[key].lerp_(value, 1 - decay)
            self.sums += torch.stack([loss_g.detach(), l1.detach(), loss_d.detach()]).double()

    def _decay(self) -> float:
        start = self.settings.decay_from * self.total_steps
        return (
            1.0
            if self.done < start or start >= self.total_steps
            else (self.total_steps - self.done) / (self.total_steps - start)
        )

    # -- keeping ------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        return {
            "step": self.done,
            "sums": self.sums,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average,
            "optimisers": [o.state_dict() for o in self.optimisers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.done = int(state["step"])
        self.sums.copy_(state["sums"])
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)

    def averaged(self) -> Any:
        """A generator with the averaged weights, ready to use."""
        from deidbench.anonymizers.ganonymization.networks import Generator

        made = Generator(self.generator.shape)
        made.load_state_dict(self.average)
        return made.to(self.device).eval()


class Validation(NamedTuple):
    """l1: mean absolute difference, levels of 0 to 1.  nme: mean landmark error by the distance of the outer eye corners, over
    faces that were found again.  found: share of those.  score: mean error with lost faces at 0.2 and none above; lower is
    better.
    """

    l1: float
    nme: float
    found: float
    score: float


def validate(
    generator: Any, pairs: Pairs, indices: npt.NDArray[np.intp], settings: Settings, device: str, finder: Any
) -> tuple[Validation, list[Image]]:
    """Validation on the pairs at ``indices``, and the faces made."""
    import torch

    from deidbench.anonymizers.ganonymization.landmarks import network_input
    from deidbench.anonymizers.ganonymization.synthesis import as_images

    errors: list[float] = []
    l1: list[float] = []
    made: list[Image] = []
    for start in range(0, len(indices), settings.batch):
        chosen = indices[start : start + settings.batch].tolist()
        batch = batch_of(pairs, chosen, [False] * len(chosen), settings)
        with torch.inference_mode():
            out = generator(network_input(batch.drawings).to(device))
        images = as_images(out)
        l1 += np.abs(images.astype(np.float32) - batch.faces.transpose(0, 2, 3, 1)).mean(axis=(1, 2, 3)).tolist()
        for i, image in zip(chosen, images, strict=True):
            made.append(image)
            found = finder.find(image, thorough=False)
            points = found[0].landmarks if found else None
            errors.append(math.nan if points is None else landmark_error(points / settings.size, pairs.points[i]))
    e = np.array(errors)
    lost = np.isnan(e)
    nme = float(e[~lost].mean()) if (~lost).any() else math.nan
    score = float(np.where(lost, LOST, np.minimum(e, LOST)).mean())
    return Validation(float(np.mean(l1)) / 255, nme, float((~lost).mean()), score), made


def landmark_error(found: Floats, true: Floats) -> float:
    """Mean distance of the 468 face points by the distance between the true outer eye corners (NME, interocular)."""
    between = float(np.linalg.norm(true[33] - true[263]))
    return float(np.linalg.norm(found[:468] - true[:468], axis=1).mean()) / max(between, 1e-6)


@dataclass(frozen=True)
class Result:
    """Where a training ended: its folder, steps done, the best validation and the checkpoints."""

    folder: Path
    steps: int
    best: dict[str, float]
    best_checkpoint: Path
    last_checkpoint: Path


def train(
    pairs: Pairs,
    settings: Settings,
    out: Path,
    *,
    about: dict[str, Any],
    device: str = "auto",
    save_every: float = 120.0,
    stop_after: int | None = None,
    quiet: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Result:
    """Trains, or goes on where ``out`` stopped, and returns where it ended.

    about: what the data is (goes into checkpoints and card): "data", "trained_on", "data_sha256", "licence".
    save_every: seconds between two states on disk.  stop_after: end after so many steps in all (as a kill would).
    on_step: called after each step with its number.
    Raises InputError where ``out`` holds a training with other settings or other data.
    """
    from deidbench.anonymizers.ganonymization.checkpoint import resolve_device
    from deidbench.faces import FaceFinder
    from deidbench.images import make_folder
    from deidbench.progress import progress

    settings.check()
    device = resolve_device(device)
    make_folder(out)
    parts = split(pairs, settings)
    per_epoch = steps_per_epoch(len(parts.train), settings)
    total = per_epoch * settings.epochs
    trainer = Trainer(settings, device, total)
    history: list[dict[str, Any]] = []
    identity = {"settings": asdict(settings), "data_sha256": about["data_sha256"], "pairs": len(pairs)}
    kept = out / STATE_FILE
    if kept.is_file():
        history = _resume(kept, trainer, identity)
    finder = FaceFinder()
    before = history[-1]["seconds"] if history else 0.0
    begun = saved = time.monotonic()

    def save() -> None:
        _save_state(kept, trainer, identity, history)

    with progress("train", total, quiet=quiet) as tick:
        tick(trainer.done)
        try:
            for batch in batches(
                pairs, parts.train, settings, trainer.done, total if stop_after is None else min(total, stop_after)
            ):
                trainer.step(batch)
                tick(1)
                if trainer.done % per_epoch == 0:
                    losses = [v / per_epoch for v in trainer.sums.tolist()]
                    trainer.sums.zero_()
                    if not all(math.isfinite(v) for v in losses):
                        raise DeidbenchError(
                            f"training broke down in epoch {trainer.done // per_epoch}: loss {losses}",
                            "go on from the last state with a smaller learning rate in a new folder, or fp32 instead of bf16",
                        )
                    row = _epoch(
                        trainer,
                        pairs,
                        parts,
                        settings,
                        device,
                        finder,
                        out,
                        losses,
                        before + time.monotonic() - begun,
                        per_epoch,
                    )
                    history.append(row)
                    _report(out, history, settings, about, identity, pairs, parts, trainer)
                    save()
                    saved = time.monotonic()
                elif time.monotonic() - saved > save_every:
                    save()
                    saved = time.monotonic()
                if on_step is not None:
                    on_step(trainer.done)
        except KeyboardInterrupt:
            save()
            raise
    save()
    best = min(history, key=lambda r: (r["val_score"], r["step"])) if history else {}
    return Result(out, trainer.done, best, out / "best.safetensors", out / "last.safetensors")


def _resume(kept: Path, trainer: Trainer, identity: dict[str, Any]) -> list[dict[str, Any]]:
    from deidbench.weights import safe_torch_load

    state = safe_torch_load(kept)
    try:
        was = json.loads(state["identity"])
        history: list[dict[str, Any]] = json.loads(state["history"])
        if was != identity:
            flat_was, flat_is = ({**i["settings"], **{k: v for k, v in i.items() if k != "settings"}} for i in (was, identity))
            name = next(k for k in {**flat_is, **flat_was} if flat_was.get(k) != flat_is.get(k))
            raise InputError(
                f"{kept.parent} holds a training with {name} = {flat_was.get(name)!r}, not {flat_is.get(name)!r}",
                "give the same settings to go on, or another --out for a new training",
            )
        trainer.restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{kept} is no state of this training: {type(error).__name__}: {error}", "delete it, or give another --out"
        ) from error
    return history


def _save_state(path: Path, trainer: Trainer, identity: dict[str, Any], history: list[dict[str, Any]]) -> None:
    import torch

    from deidbench.images import atomic_write

    buffer = io.BytesIO()
    torch.save({**trainer.state(), "identity": json.dumps(identity), "history": json.dumps(history)}, buffer)
    atomic_write(path, buffer.getvalue())


def _epoch(
    trainer: Trainer, pairs: Pairs, parts: Split, settings: Settings, device: str, finder: Any, out: Path, losses: list[float],
    seconds: float, per_epoch: int,
) -> dict[str, Any]:  # fmt: skip
    """Validation after an epoch and its sample grid; a row of the history."""
    from deidbench.images import atomic_write, encode_png, make_folder

    result, made = validate(trainer.averaged(), pairs, parts.validation, settings, device, finder)
    epoch = trainer.done // per_epoch
    make_folder(out / "samples")
    atomic_write(out / "samples" / f"epoch-{epoch:04d}.png", encode_png(grid(pairs, parts.validation, made, settings)))
    return {
        "step": trainer.done, "epoch": epoch, "seconds": round(seconds, 1), "loss_generator": losses[0], "loss_l1": losses[1],
        "loss_discriminator": losses[2], "val_l1": result.l1, "val_nme": result.nme, "val_found": result.found,
        "val_score": result.score,
    }  # fmt: skip


def grid(pairs: Pairs, indices: npt.NDArray[np.intp], made: Sequence[Image], settings: Settings, columns: int = 8) -> Image:
    """Faces, their landmark images and what the generator makes of them, in three rows; RGB uint8."""
    from deidbench.anonymizers.ganonymization.landmarks import landmark_images

    # spread over the held-out persons, always the same ones
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(columns, len(indices))).astype(int)).tolist()
    drawn = landmark_images(pairs.points[indices[chosen]], settings.size, settings.render or settings.size)
    rows = (
        [pairs.image(int(indices[c])) for c in chosen],
        [np.repeat(d[:, :, None], 3, axis=2) for d in drawn],
        [made[c] for c in chosen],
    )
    return np.vstack([np.hstack(row) for row in rows])


def _report(
    out: Path, history: list[dict[str, Any]], settings: Settings, about: dict[str, Any], identity: dict[str, Any], pairs: Pairs,
    parts: Split, trainer: Trainer,
) -> None:  # fmt: skip
    """History, curves, checkpoints and the model card."""
    from deidbench.anonymizers.ganonymization.card import losses_figure, model_card
    from deidbench.anonymizers.ganonymization.checkpoint import Description, save_generator
    from deidbench.images import atomic_write

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write(out / HISTORY_FILE, text.getvalue())
    losses_figure(history, out / "losses.png")
    row = history[-1]
    description = Description(
        side=settings.size, width=settings.width, render=settings.render or settings.size, margin=settings.margin,
        trained_on=tuple(about["trained_on"]), licence=about["licence"],
        notes={
            "data": about["data"], "data_sha256": about["data_sha256"], "settings": asdict(settings), "step": trainer.done,
            "training_images": len(parts.train), "validation_images": len(parts.validation),
            "validation": {k: row[k] for k in ("val_l1", "val_nme", "val_found", "val_score")},
        },
    )  # fmt: skip
    save_generator(out / "last.safetensors", trainer.average, description)
    best = min(history, key=lambda r: (r["val_score"], r["step"]))
    if best is row:
        save_generator(out / "best.safetensors", trainer.average, description)
    atomic_write(out / "MODEL_CARD.md", model_card(history, best, settings, about, pairs, parts, trainer.generator))


def settings_from(values: dict[str, Any]) -> Settings:
    """Settings from a recipe's table.  Raises InputError for a key that is none or a value of the wrong kind."""
    import difflib

    known = {f.name: f.type for f in fields(Settings)}
    defaults = Settings()
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f"training has no setting {key!r}", f"did you mean {close[0]!r}?" if close else f"settings: {', '.join(known)}"
            )
        wanted = type(getattr(defaults, key))
        good = isinstance(value, wanted) and not (wanted is not bool and isinstance(value, bool))
        if not good and not (wanted is float and isinstance(value, int) and not isinstance(value, bool)):
            raise InputError(f"training: {key} = {value!r} is no {wanted.__name__}", f"e.g. {key} = {getattr(defaults, key)!r}")
    settings = Settings(**values)
    settings.check()
    return settings


def default_cache() -> Path:
    """Where prepared pairs are kept: ``$DEIDBENCH_CACHE`` or the user's cache folder."""
    import platformdirs

    named = os.environ.get("DEIDBENCH_CACHE")
    return (Path(named).expanduser() if named else Path(platformdirs.user_cache_path("deidbench", appauthor=False))) / "pairs"
