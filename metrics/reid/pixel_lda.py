"""Linear discriminant analysis over raw pixels: blind to where a pixel is, so no fixed scrambling hinders it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deidbench.kinds import attackers
from deidbench.metrics.base import Table
from deidbench.metrics.reid._learning import Discriminant, best_discriminant, crops_of, enough, unit, who
from deidbench.metrics.reid.base import PIXELS, TrainedAttacker
from deidbench.metrics.reid.training import Training
from deidbench.types import Floats

#: Images are read in pieces of this many: 128 crops of 112 pixels take 19 MB as float32.
_PIECE = 128


def readings(crops: npt.NDArray[np.uint8], colour: bool, evened: bool) -> npt.NDArray[np.float32]:
    """Pixel values as rows: float32 (n, pixels * 3), or (n, pixels) in grey (ITU-R BT.601 luma).

    evened: each image has mean 0 and variance 1 (all its pixels and channels together), which takes brightness and contrast out.
    Otherwise values are in [0, 1].  A permutation of the pixels permutes the columns.
    """
    x = crops.reshape(len(crops), -1, 3).astype(np.float32) / 255
    x = x.reshape(len(x), -1) if colour else x @ np.array([0.299, 0.587, 0.114], np.float32)
    if evened:
        x -= x.mean(1, keepdims=True)
        x /= np.maximum(x.std(1, keepdims=True), 1e-3)
    return x


@dataclass(eq=False)
class Components:
    """Principal components of raw pixels.  mean: float32 (d,).  axes: float32 (d, k).  scale: (k,) standard deviations."""

    colour: bool
    evened: bool
    mean: npt.NDArray[np.float32]
    axes: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]

    def __call__(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 (n, height, width, 3) -> float32 (n, k)."""
        out = np.empty((len(crops), self.axes.shape[1]), np.float32)
        for i in range(0, len(crops), _PIECE):
            part = readings(crops[i : i + _PIECE], self.colour, self.evened) - self.mean
            # Always the same number of rows, so that an image's digits do not depend on how many come with it.
            whole = np.zeros((_PIECE, part.shape[1]), np.float32)
            whole[: len(part)] = part
            out[i : i + _PIECE] = (whole @ self.axes)[: len(part)]
        return out


def principal_components(
    crops: npt.NDArray[np.uint8], colour: bool, evened: bool, count: int, *, at_most: int = 3000, seed: int = 0
) -> Components:
    """Principal components by way of the (n, n) matrix of inner products, which no permutation of pixels changes.

    Found from ``at_most`` images, drawn with ``seed`` where there are more: the components of 3,000 faces hardly change with further
    ones, and memory and time stay bounded.
    """
    if len(crops) > at_most:
        crops = crops[np.sort(np.random.default_rng(seed).permutation(len(crops))[:at_most])]
    x = readings(crops, colour, evened)
    mean = x.mean(0)
    x -= mean
    values, vectors = np.linalg.eigh((x @ x.T).astype(np.float64))
    keep = np.argsort(values)[::-1][: min(count, len(x) - 1)]
    keep = keep[values[keep] > 1e-7 * max(values.max(), 1e-30)]
    if not len(keep):
        keep = np.array([len(values) - 1])
    values, vectors = np.maximum(values[keep], 1e-12), vectors[:, keep]
    axes = x.T @ (vectors / np.sqrt(values)).astype(np.float32)
    return Components(colour, evened, mean, axes, np.sqrt(values / len(x)).astype(np.float32))


@attackers.register("pixel-lda")
class PixelLda(TrainedAttacker):
    """Principal components of raw pixels, then the directions in which anonymised persons differ most.

    No recogniser is involved: what blinds a network that was trained on clear faces does not blind it, and a fixed permutation of the
    pixels changes nothing at all.  Colour or grey, brightness evened or not, number of components, shrinkage and number of directions
    are the ones that rank the held-out persons' mates best.

    components: the most principal components that are kept.
    """

    version = "1"
    knows = (
        "has the anonymizer, and photographs of other persons, anonymised; learns from their raw pixels, without any face recogniser "
        "and without knowing which pixel is where"
    )
    citation = "Belhumeur, Hespanha & Kriegman, Eigenfaces vs. Fisherfaces, IEEE TPAMI 1997"
    reads = "crops"

    def __init__(self, components: int = 600) -> None:
        self.components = components

    def columns(self, recognizers: Sequence[str]) -> list[str]:
        return [PIXELS]

    def fit(self, training: Training, recognizer: str, seed: int) -> None:
        table, others = training.anonymised, training.held_out_anonymised
        learn, judge = enough(who(table, ~table.withheld)), who(others, ~others.withheld)
        crops, unseen = crops_of(table)[learn.rows], crops_of(others)[judge.rows]
        self.persons_ = learn.persons
        found: list[tuple[float, Components, Discriminant]] = []
        for colour in (True, False):
            for evened in (True, False):
                components = principal_components(crops, colour, evened, self.components, seed=seed)
                x, y = components(crops), components(unseen)
                counts = {min(c, x.shape[1]) for c in (self.components, self.components // 2, self.components // 4)}
                for count in sorted(counts, reverse=True):
                    fitted = best_discriminant(x[:, :count], learn.person, y[:, :count], judge.person, dims=(0, 100, 50))
                    narrowed = Components(colour, evened, components.mean, components.axes[:, :count], components.scale[:count])
                    found.append((np.nan_to_num(fitted.score, nan=0.0), narrowed, fitted))
        _, self.components_, self.map_ = max(found, key=lambda f: f[0])

    def represent(self, table: Table, *, enrolled: bool = False) -> Floats:
        return unit(self.map_(self.components_(crops_of(table))), table.withheld)

    @property
    def learnt(self) -> str:
        c = self.components_
        how = f"{'colour' if c.colour else 'grey'}{', evened' if c.evened else ''}"
        return (
            f"{how}, {c.axes.shape[1]} components, {self.map_.axes.shape[1]} directions, shrinkage {self.map_.shrinkage:g}, "
            f"{self.persons_} persons"
        )
