"""What the trained attackers share: usable rows, the score they choose by, discriminant analysis, the ArcFace loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.metrics.base import Table
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid.training import CannotLearn
from deidbench.types import Floats

if TYPE_CHECKING:
    import torch

#: Joins the names of recognisers whose embeddings are joined.
JOIN = "+"
Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]


def joined_columns(recognizers: Sequence[str]) -> list[str]:
    """Each recogniser, and all of them joined ("dlib+sface") where there are several."""
    names = list(recognizers)
    return [*names, JOIN.join(names)] if len(names) > 1 else names


def embeddings(table: Table, recognizer: str) -> Floats:
    """float32 (n, d): a recogniser's embeddings, or several joined by "+" end to end; NaN rows where one is missing."""
    names = [recognizer] if recognizer in table.embeddings else recognizer.split(JOIN)
    if absent := [name for name in names if name not in table.embeddings]:
        raise CannotLearn(f"the images were not embedded by {', '.join(absent)}")
    out: Floats = np.concatenate([table.embeddings[name] for name in names], axis=1).astype(np.float32)
    out[table.withheld | ~np.isfinite(out).all(1)] = np.nan
    return out


def crops_of(table: Table) -> npt.NDArray[np.uint8]:
    """uint8 (n, height, width, 3).  Raises CannotLearn where the table has none."""
    if table.crops is None:
        raise CannotLearn("there are no crops of the images, so nothing can be learnt from pixels")
    return table.crops


class Class(NamedTuple):
    """Rows to learn from and who they show.  rows: indices into the table.  person: (len(rows),), 0..persons-1."""

    rows: npt.NDArray[np.intp]
    person: Labels

    @property
    def persons(self) -> int:
        return int(self.person.max()) + 1 if len(self.person) else 0


def who(table: Table, usable: npt.NDArray[np.bool_]) -> Class:
    """The usable rows of a table; persons are numbered in the order of their names."""
    rows = np.flatnonzero(usable)
    return Class(rows, np.unique(table.subjects[rows], return_inverse=True)[1].reshape(-1).astype(np.intp))


def enough(learn: Class) -> Class:
    """``learn`` itself.  Raises CannotLearn with fewer than two persons with two usable images each: nothing tells persons apart."""
    several = int(np.sum(np.bincount(learn.person, minlength=1) >= 2))
    if several < 2:
        raise CannotLearn(
            f"{several} attacker-train person(s) with two usable images; at least 2 are needed to learn to tell persons apart"
        )
    return learn


def reciprocal_rank(features: npt.NDArray[Any], person: Labels) -> float:
    """Mean of 1 / rank of the nearest mate, each image against all others; NaN where nobody has a mate.

    features: (n, d), rows of unit length.  Chosen by in place of the hit rate at rank 1, which is coarse with few held-out persons: it
    tells rank 2 from rank 50.  A tied block counts with its middle place, so constant features score low.
    """
    x = np.asarray(features, np.float32)
    total, probes = 0.0, 0
    for start in range(0, len(x), 1024):
        rows = np.arange(start, min(start + 1024, len(x)))
        s = x[rows] @ x.T
        s[np.arange(len(rows)), rows] = np.nan
        mate = person[rows, None] == person[None]
        mate[np.arange(len(rows)), rows] = False
        has = mate.any(1)
        best = np.max(s, axis=1, where=mate, initial=-np.inf)[:, None] - 1e-6  # grid of float32 products: ties are ties
        other = ~mate
        above = np.sum((s > best + 2e-6) & other, axis=1)
        level = np.sum((s >= best) & (s <= best + 2e-6) & other, axis=1)
        total += float(np.sum(1 / (1 + above + level / 2), where=has))
        probes += int(has.sum())
    return total / probes if probes else float("nan")


def unit(features: npt.NDArray[Any], withheld: npt.NDArray[np.bool_]) -> Floats:
    """float32 rows of unit length; NaN where withheld, zero or not finite."""
    out = l2_normalise(features)
    out[withheld] = np.nan
    return out


# --- Linear discriminant analysis --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Discriminant:
    """Directions that tell persons apart; :meth:`best` chooses among shrinkages, numbers of directions and weightings.

    The within-person covariance is shrunk, (1 - g) S + g tr(S)/d I, so that few images per person do not make it singular (Friedman
    1989); features are whitened by it and turned to the principal axes of the persons' means (Fisher 1936; Rao 1948).  With
    ``weighted`` each axis is scaled by sqrt(b / (b + 1)), b the between-person variance there, freed of the noise of the means: the
    share of a difference that speaks for persons (two-covariance model, Ioffe 2006).  Then rows are scaled to unit length.
    """

    mean: Doubles = field(default_factory=lambda: np.zeros(0))
    axes: Doubles = field(default_factory=lambda: np.zeros((0, 0)))
    shrinkage: float = 0.0
    weighted: bool = False
    score: float = float("nan")

    def __call__(self, x: npt.NDArray[Any]) -> Doubles:
        """(n, d) -> float64 (n, k), not yet of unit length."""
        out: Doubles = (np.asarray(x, np.float64) - self.mean) @ self.axes
        return out


SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 0.95)


def discriminant(x: npt.NDArray[Any], person: Labels, shrinkage: float, weighted: bool = False, dims: int = 0) -> Discriminant:
    """One :class:`Discriminant`.  x: (n, d) finite.  person: (n,) 0..p-1.  dims: 0 for all with between-person variance."""
    return next(iter(_discriminants(x, person, (shrinkage,), (weighted,), (dims,))))


def best_discriminant(
    x: npt.NDArray[Any],
    person: Labels,
    held_out: npt.NDArray[Any],
    held_out_person: Labels,
    shrinkages: Sequence[float] = SHRINKAGES,
    dims: Sequence[int] = (0, 200, 100, 50, 25),
) -> Discriminant:
    """The one whose unit-length projections rank held-out mates best; shrinkage 0.1 and weighted where nobody held out has a mate."""
    if len(held_out_person) == 0 or np.bincount(held_out_person).max() < 2:
        return discriminant(x, person, 0.1, True)
    best = Discriminant()
    for candidate in _discriminants(x, person, shrinkages, (True, False), dims):
        candidate.score = reciprocal_rank(np.nan_to_num(l2_normalise(candidate(held_out))), held_out_person)
        if not best.score >= candidate.score:  # True while best.score is NaN
            best = candidate
    return best


def _discriminants(
    x: npt.NDArray[Any], person: Labels, shrinkages: Sequence[float], weightings: Sequence[bool], dims: Sequence[int]
) -> Iterator[Discriminant]:
    data = np.asarray(x, np.float64)
    n, d = data.shape
    mean = data.mean(0)
    data = data - mean
    count = np.bincount(person).astype(np.float64)
    persons = len(count)
    means = np.zeros((persons, d))
    np.add.at(means, person, data)
    means /= count[:, None]
    within = data - means[person]
    # A person with one image says nothing about the variance within a person, nor uses up a degree of freedom.
    scatter = within.T @ within / max(1.0, n - persons)
    variances, turn = np.linalg.eigh(scatter)
    variances = np.maximum(variances, 0)
    average = variances.mean() or 1.0
    turned = (means * np.sqrt(count / n)[:, None]) @ turn
    noise = persons / n  # variance that whitened means have from averaging few images
    for shrinkage in shrinkages:
        whiten = 1 / np.sqrt(np.maximum((1 - shrinkage) * variances + shrinkage * average, 1e-12 * average))
        # The persons' means span fewer directions than there are features, often: the smaller Gram matrix is enough.
        white = turned * whiten
        if persons < d:
            between, left = np.linalg.eigh(white @ white.T)
            axes = white.T @ left / np.sqrt(np.maximum(between, 1e-300))
        else:
            between, axes = np.linalg.eigh(white.T @ white)
        order = np.argsort(between)[::-1]
        order = order[between[order] > 1e-9 * max(between.max(), 1e-300)][: persons - 1]
        if not len(order):  # nobody differs from anybody: one axis of zeros, and features that say nothing
            between, axes, order = np.zeros(1), np.zeros((d, 1)), np.zeros(1, np.intp)
        between, axes = between[order], axes[:, order]
        signal = np.maximum(between - noise * (1 - shrinkage), 0)
        axes = turn @ (whiten[:, None] * axes)
        seen = set()
        for k in dims:
            keep = min(k or len(order), len(order))
            if keep in seen:
                continue
            seen.add(keep)
            for weighted in weightings:
                scale = np.sqrt(signal / (signal + 1)) if weighted and signal[:keep].any() else np.ones(len(signal))
                yield Discriminant(mean, axes[:, :keep] * scale[:keep], shrinkage, weighted)


# --- PyTorch -----------------------------------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int, threads: int = 1) -> Iterator[None]:
    """PyTorch's generator from ``seed`` on, a fixed number of threads, deterministic algorithms; all as before afterwards.

    Sums are taken in another order with another number of threads, and a long training amplifies the last digit.
    """
    import torch

    state, deterministic, before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    try:
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(state)


def running_mean(net: torch.nn.Module) -> torch.optim.swa_utils.AveragedModel:
    """A copy of ``net`` that keeps the exponential mean of its weights and batch statistics over about the last 50 updates."""
    import torch

    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)  # type: ignore[no-untyped-call]
    return torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=True)


def arcface(cosine: torch.Tensor, person: torch.Tensor, scale: float, margin: float) -> torch.Tensor:
    """Additive angular margin loss (Deng et al., ArcFace, CVPR 2019, eq. 3): mean over a batch.

    cosine: (n, persons) of unit features and unit class weights.  The margin is added to the angle of the own person; beyond pi it
    would wrap round, there the cosine is lowered by sin(pi - margin) * margin instead (as the authors do).
    """
    import math

    import torch

    own = cosine.gather(1, person[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    moved = torch.where(
        own > math.cos(math.pi - margin), torch.cos(torch.acos(own) + margin), own - math.sin(math.pi - margin) * margin
    )
    return torch.nn.functional.cross_entropy(scale * cosine.scatter(1, person[:, None], moved), person)
