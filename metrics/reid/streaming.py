"""Exact all-against-all comparison in bounded memory: identification and verification without the score matrix.

Every pair of a probe and a gallery image is scored once, in tiles, and a tile leaves nothing but counts:

- per probe how many images of other persons score more than its best mate, and how many exactly as much
  (:class:`deidbench.metrics.reid.identification.Standing`: rank-k and CMC), and the best score of another person;
- how many genuine and impostor scores lie on each of the 2**17 + 1 levels of the score grid (:class:`Levels`: EER, AUC,
  thresholds, ROC), and how many comparisons could not be made.

Scores are those of :func:`deidbench.metrics.reid.base.cosine`, bit for bit: embeddings on a grid of 2**-26, whose float64
products and partial sums are exact in any order, rounded to the score grid.  Hence nothing depends on tiles, threads, BLAS
or on how the work was cut into parts, and every figure equals the one that the full matrix gives.  Float32 products would
take half the time, but leave a score on the neighbouring level now and then, differently on every
machine.  Embeddings on a grid of 2**-11 would make float32 products exact, but move scores by some 2e-4 (0.29 * 2**-11 from either row), thirteen levels.

States add up (:meth:`Mates.merge`, :meth:`Others.merge`): parts of the probes and of the gallery may be done at different
times and places.  All mates come first, because the best mate decides what is counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.metrics.reid import search
from deidbench.metrics.reid.base import SCORE_GRID
from deidbench.metrics.reid.identification import Standing
from deidbench.metrics.reid.search import MEMORY, TOP, Progress, check_matrices, in_threads, on_grid, usable_rows, workers
from deidbench.stats.roc import Eer, Roc, crossing
from deidbench.types import Floats

#: Levels of the score grid from -1 to 1.
LEVELS = 2 * TOP + 1
#: Levels that share a bin of the person groups' histograms: 2**-10 of score.
COARSE = 64
COARSE_LEVELS = (LEVELS - 1) // COARSE + 1
#: Probes by gallery images of a tile.  255 * 8 columns: eight counts of one byte each are added up in one word.
#: 8 MiB in float64, which a shared L3 of some 30 MiB holds for each of two threads.
TILE = (512, 2040)
#: Probes and gallery images of consecutive persons that are scored together to find mates.
_MATES = 128
#: Level of "no such comparison"; below all others.
NONE = -(1 << 20)
#: In a tile a level is shifted by this, so that it is positive although rows are of length 1 to 1e-3 only; 0 is a pair that
#: takes no part.
_SHIFT = TOP + 128
#: Added to a float64 below 2**51 it leaves the rounded number, shifted, in the low 32 bits (ties to even, as rint).
_MAGIC = 2.0**52 + _SHIFT

Counts = npt.NDArray[np.int64]


class Levels(NamedTuple):
    """How many scores lie on each level of the grid, from -1 to 1: int64 (LEVELS,), and comparisons that were not made."""

    counts: Counts
    none: int = 0

    @property
    def total(self) -> int:
        return int(self.counts.sum()) + self.none

    def at_least(self) -> Counts:
        """Scores at or above each level."""
        out: Counts = np.cumsum(self.counts[::-1])[::-1]
        return out

    def rate(self, threshold: float) -> float:
        """Share at or above the threshold: TMR of genuine scores, FMR of impostor scores.  Raises ValueError without scores."""
        if not self.total:
            raise ValueError("no scores")
        if threshold == -np.inf:
            return 1.0
        first = np.searchsorted(_values(), np.float32(threshold), "left")
        return int(self.counts[first:].sum()) / self.total

    def threshold_at_fmr(self, fmr: float) -> float:
        """As :func:`deidbench.metrics.reid.verification.threshold_at_fmr`, of impostor scores."""
        n = self.total
        if not n:
            raise ValueError("no impostor scores")
        if not 0 <= fmr < 1:
            raise ValueError(f"an FMR target is a rate in [0, 1), not {fmr!r}")
        allowed = int(np.floor(fmr * n + 1e-9))
        # The highest level with more than ``allowed`` scores at or above it.
        over = np.flatnonzero(self.at_least() > allowed)
        score = _values()[over[-1]] if len(over) else np.float32(-np.inf)
        return float(np.nextafter(score, np.float32(np.inf)))


def _values() -> Floats:
    """Score of each level."""
    return (np.arange(-TOP, TOP + 1) * SCORE_GRID).astype(np.float32)


class _Points(NamedTuple):
    """Operating points of all distinct scores, ascending: scores, impostors and genuine at or above."""

    score: npt.NDArray[np.float64]
    impostor: Counts
    genuine: Counts


def _points(genuine: Levels, impostor: Levels) -> _Points:
    for kind, sample in (("genuine", genuine), ("impostor", impostor)):
        if not sample.total:
            raise ValueError(f"no {kind} scores")
    there = np.flatnonzero((genuine.counts > 0) | (impostor.counts > 0))
    score, i, g = _values()[there].astype(np.float64), impostor.at_least()[there], genuine.at_least()[there]
    if genuine.none or impostor.none:
        score = np.append(-np.inf, score)
        i, g = np.append(impostor.total, i), np.append(genuine.total, g)
    return _Points(score, i, g)


def roc(genuine: Levels, impostor: Levels) -> Roc:
    """As :func:`deidbench.stats.roc.roc`: all operating points, one per distinct score, then (0, 1) at +inf."""
    p = _points(genuine, impostor)
    fmr = np.append(p.impostor / impostor.total, 0.0)
    fnmr = np.append((genuine.total - p.genuine) / genuine.total, 1.0)
    return Roc(np.append(p.score, np.inf), fmr, fnmr)


def eer(genuine: Levels, impostor: Levels) -> Eer:
    """As :func:`deidbench.stats.roc.eer`."""
    curve = roc(genuine, impostor)
    here = int(np.count_nonzero(curve.fmr >= curve.fnmr)) - 1
    value = crossing(curve.fmr[here], curve.fnmr[here], curve.fmr[here + 1], curve.fnmr[here + 1])
    return Eer(float(value), float(curve.threshold[here]))


def auc(genuine: Levels, impostor: Levels) -> float:
    """As :func:`deidbench.stats.roc.auc`: ties half."""
    p = _points(genuine, impostor)
    over_i = np.append(p.impostor[1:], 0)
    over_g = np.append(p.genuine[1:], 0)
    # Pairs of pairs exceed 2**63: Python's integers.
    both = 2 * impostor.total
    twice = 0
    for g, i, j in zip((p.genuine - over_g).tolist(), p.impostor.tolist(), over_i.tolist(), strict=True):
        twice += g * (both - i - j)
    return float(twice / (both * genuine.total))


@dataclass(frozen=True, eq=False)
class Task:
    """Who is compared with whom (see :class:`deidbench.metrics.reid.comparison.Comparison`).

    gallery: float32 (n_gallery, d), probes: float32 (n_probes, d), rows L2-normalised or NaN (nothing known); memory maps
    will do.  probe_person, gallery_person: numbers from 0.  same_image: per probe the gallery row never compared, of the same
    person, -1 for none.  group: (P,) a group for each person, see :func:`person_groups`; all in one by default.
    known, usable: bool, probes and gallery images with an embedding.  rank: (P,) place of each person in the order of
    (group, person).
    """

    gallery: Floats
    probes: Floats
    probe_person: npt.NDArray[np.intp]
    gallery_person: npt.NDArray[np.intp]
    same_image: npt.NDArray[np.intp]
    group: npt.NDArray[np.intp]
    known: npt.NDArray[np.bool_]
    usable: npt.NDArray[np.bool_]
    rank: npt.NDArray[np.intp]

    @classmethod
    def of(
        cls,
        gallery: Floats,
        probes: Floats,
        probe_person: npt.NDArray[np.intp],
        gallery_person: npt.NDArray[np.intp],
        same_image: npt.NDArray[np.intp],
        group: npt.NDArray[np.intp] | None = None,
    ) -> Task:
        """Checks its input and looks for rows without an embedding.  Raises ValueError for what does not fit together."""
        check_matrices(gallery, probes)
        if len(gallery) != len(gallery_person) or not len(probes) == len(probe_person) == len(same_image):
            raise ValueError("each embedding needs a person, and each probe its own image or -1")
        own = np.flatnonzero(same_image >= 0)
        if np.any(gallery_person[same_image[own]] != probe_person[own]):
            raise ValueError("a probe's own image shows another person")
        persons = 1 + max((int(x.max()) for x in (probe_person, gallery_person) if len(x)), default=-1)
        if group is None:
            group = np.zeros(persons, np.intp)
        if len(group) < persons or (len(group) and group.min() < 0):
            raise ValueError(f"{persons} persons need a group each, numbered from 0")
        rank = np.empty(len(group), np.intp)
        rank[np.lexsort((np.arange(len(group)), group))] = np.arange(len(group))
        same = usable_rows(gallery)
        known = same if probes is gallery else usable_rows(probes)
        return cls(gallery, probes, probe_person, gallery_person, same_image, group, known, same, rank)

    @property
    def groups(self) -> int:
        return 1 + int(self.group.max(initial=0))


def person_groups(names: Sequence[str], groups: int, seed: int) -> npt.NDArray[np.intp]:
    """Puts persons into groups by a hash of (seed, name): intp (P,) in [0, groups).  A person's group is its own affair."""
    digests = (hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names)
    return np.array([int.from_bytes(d[:8], "big") % groups for d in digests], np.intp)


@dataclass(frozen=True, eq=False)
class Mates:
    """What the genuine pairs of some probes and some of the gallery gave.

    best: int32 (n_probes,) level of the best mate, ``NONE`` without one.  tied: int64 (n_probes,) mates on that level.
    genuine: int64 (LEVELS,).  by_group: int64 (G, COARSE_LEVELS).
    """

    best: npt.NDArray[np.int32]
    tied: Counts
    genuine: Counts
    by_group: Counts

    @classmethod
    def empty(cls, task: Task) -> Mates:
        n = len(task.probes)
        return cls(
            np.full(n, NONE, np.int32),
            np.zeros(n, np.int64),
            np.zeros(LEVELS, np.int64),
            np.zeros((task.groups, COARSE_LEVELS), np.int64),
        )

    def merge(self, other: Mates) -> Mates:
        """The state of both parts; no pair may be in both."""
        best = np.maximum(self.best, other.best)
        tied = np.where(self.best == best, self.tied, 0) + np.where(other.best == best, other.tied, 0)
        return Mates(best, tied, self.genuine + other.genuine, self.by_group + other.by_group)


@dataclass(frozen=True, eq=False)
class Others:
    """What the pairs of different persons gave, of some probes and some of the gallery.

    above, tied: int64 (n_probes,) pairs above the best mate, and level with it.  best: int32 (n_probes,) highest level,
    ``NONE`` without one.  impostor: int64 (LEVELS,).  by_group: int64 (G, G, COARSE_LEVELS), the probe's group first.
    """

    above: Counts
    tied: Counts
    best: npt.NDArray[np.int32]
    impostor: Counts
    by_group: Counts

    @classmethod
    def empty(cls, task: Task) -> Others:
        n = len(task.probes)
        return cls(
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.full(n, NONE, np.int32),
            np.zeros(LEVELS, np.int64),
            np.zeros((task.groups, task.groups, COARSE_LEVELS), np.int64),
        )

    def merge(self, other: Others) -> Others:
        """The state of both parts; no pair may be in both, and both must have been counted against the same mates."""
        return Others(
            self.above + other.above,
            self.tied + other.tied,
            np.maximum(self.best, other.best),
            self.impostor + other.impostor,
            self.by_group + other.by_group,
        )


class _Side(NamedTuple):
    """Images with an embedding out of a part, sorted by (group, person).  row: in the matrix.  rank: of the person."""

    row: npt.NDArray[np.intp]
    rank: npt.NDArray[np.intp]


def _side(task: Task, there: npt.NDArray[np.bool_], person: npt.NDArray[np.intp], part: slice) -> _Side:
    row = np.arange(len(person))[part]
    row = row[there[part]]
    rank = task.rank[person[row]]
    order = np.argsort(rank, kind="stable")
    return _Side(row[order], rank[order])


def _sides(task: Task, probes: slice, gallery: slice) -> tuple[_Side, _Side]:
    return (
        _side(task, task.known, task.probe_person, probes),
        _side(task, task.usable, task.gallery_person, gallery),
    )


def _coarse(counts: Counts) -> Counts:
    out: Counts = np.add.reduceat(counts, np.arange(0, LEVELS, COARSE))
    return out


def _pieces(start: int, stop: int, step: int) -> list[slice]:
    """Slices of nearly equal length, none longer than ``step``."""
    edges = np.linspace(start, stop, -(-(stop - start) // step) + 1).astype(int).tolist() if stop > start else []
    return [slice(a, b) for a, b in pairwise(edges)]


def compare_mates(
    task: Task,
    *,
    probes: slice = slice(None),
    gallery: slice = slice(None),
    threads: int | None = None,
) -> Mates:
    """Scores the genuine pairs of a part of the probes and a part of the gallery.

    Consecutive persons are scored together in blocks of about 128 x 128, so that this is cheap however many persons there
    are; takes a few MB a thread.
    """
    left, right = _sides(task, probes, gallery)
    persons = len(task.group)
    p, g = (np.searchsorted(side.rank, np.arange(persons + 1)) for side in (left, right))
    blocks: list[tuple[slice, slice]] = []
    first = 0
    while first < persons:
        last = min(np.searchsorted(p, p[first] + _MATES, "right"), np.searchsorted(g, g[first] + _MATES, "right")) - 1
        last = max(int(last), first + 1)
        blocks += [(a, b) for a in _pieces(p[first], p[last], 4 * _MATES) for b in _pieces(g[first], g[last], 4 * _MATES)]
        first = last
    made: list[Mates] = []
    group = np.sort(task.group)  # by rank

    def make() -> Callable[[Any], None]:
        import torch

        state = Mates.empty(task)
        made.append(state)

        def carry_out(block: tuple[slice, slice]) -> None:
            a, b = block
            mate = left.rank[a, None] == right.rank[None, b]
            mate &= task.same_image[left.row[a], None] != right.row[None, b]
            if not mate.any():
                return
            x, y = on_grid(task.probes[left.row[a]]), on_grid(task.gallery[right.row[b]])
            product = torch.mm(torch.from_numpy(x), torch.from_numpy(y).T).numpy()
            level = np.rint(product, out=product).clip(-TOP, TOP).astype(np.int32)
            i, j = np.nonzero(mate)
            scores = level[i, j] + TOP
            state.genuine[:] += np.bincount(scores, minlength=LEVELS)
            np.add.at(state.by_group, (group[left.rank[a][i]], scores // COARSE), 1)
            best = np.where(mate, level, NONE).max(1)
            tied = np.count_nonzero((level == best[:, None]) & mate, axis=1)
            rows = left.row[a]
            old = state.best[rows]
            state.tied[rows] = np.where(old >= best, state.tied[rows], 0) + np.where(best >= old, tied, 0)
            state.best[rows] = np.maximum(old, best)

        return carry_out

    in_threads(workers(threads), make, blocks)
    return reduce(Mates.merge, made, Mates.empty(task))


def compare_others(
    task: Task,
    best_mate: npt.NDArray[np.int32],
    *,
    probes: slice = slice(None),
    gallery: slice = slice(None),
    memory: int = MEMORY,
    threads: int | None = None,
    tile: tuple[int, int] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Others:
    """Scores the pairs of different persons of a part of the probes and a part of the gallery.

    best_mate: (n_probes,) ``Mates.best`` over the whole gallery.  memory: bytes for tiles and embeddings on the grid: half
    of it holds as many probes as it can, past which the gallery is streamed; the other half holds a tile a thread.
    tile: probes and gallery images of a tile, instead of ``TILE``.  tick: called with numbers of pairs.
    """
    left, right = _sides(task, probes, gallery)
    count = workers(threads)
    d = task.probes.shape[1]
    height, width = tile or search.fit(TILE, memory // 2 // count, d, per_pair=13, held=64)
    group = np.sort(task.group)  # by rank
    edges = np.arange(task.groups + 1)
    g_cut = np.searchsorted(group[right.rank], edges)
    tiles = [piece for g in range(task.groups) for piece in _pieces(g_cut[g], g_cut[g + 1], width)]
    progress = Progress(tick)
    made: list[Others] = []
    # Whole tiles: probes that are held together.
    hold = max(height, memory // 2 // (8 * d) // height * height)
    for some in _pieces(0, len(left.row), hold):
        held = np.empty((some.stop - some.start, d))
        mine = _Side(left.row[some], left.rank[some])
        p_cut = np.searchsorted(group[mine.rank], edges)
        blocks = [(g, piece) for g in range(task.groups) for piece in _pieces(p_cut[g], p_cut[g + 1], height)]

        def fill(held: npt.NDArray[np.float64] = held, mine: _Side = mine) -> Callable[[Any], None]:
            def carry_out(a: slice) -> None:
                held[a] = on_grid(task.probes[mine.row[a]])

            return carry_out

        in_threads(count, fill, [piece for _, piece in blocks])

        def make(held: Any = held, mine: _Side = mine, blocks: Any = blocks) -> Callable[[Any], None]:
            state = Others.empty(task)
            made.append(state)
            counter = _Counter(held, mine, best_mate[mine.row], blocks, height, width)

            def carry_out(b: slice) -> None:
                counter.compare(on_grid(task.gallery[right.row[b]]), right.rank[b], int(group[right.rank[b.start]]), state)
                progress((b.stop - b.start) * len(mine.row))

            return carry_out

        in_threads(count, make, tiles)
        made[:] = [reduce(Others.merge, made)]
    return reduce(Others.merge, made, Others.empty(task))


class _Counter:
    """Compares gallery images with the probes at hand; holds the buffers of one thread."""

    def __init__(
        self,
        held: npt.NDArray[np.float64],
        probes: _Side,
        best_mate: npt.NDArray[np.int32],
        blocks: Sequence[tuple[int, slice]],
        height: int,
        width: int,
    ) -> None:
        import torch

        self.held, self.probes, self.blocks = torch.from_numpy(held), probes, blocks
        # A probe without a mate has nothing to stand above.
        mate = np.where(best_mate == NONE, 1 << 30, best_mate + _SHIFT)
        self.mate = torch.from_numpy(mate.astype(np.int32))
        self.lowest = np.array([mate[a].min() for _, a in blocks])
        self.product = torch.empty(height * width, dtype=torch.float64)
        self.level = torch.empty(height * width, dtype=torch.int32)
        self.flag = torch.zeros(height * (-(-width // 8) * 8), dtype=torch.bool)

    def compare(self, gallery: npt.NDArray[np.float64], rank: npt.NDArray[np.intp], group: int, state: Others) -> None:
        """gallery: (b, d) on the grid, of one group.  rank: (b,) ascending."""
        import torch

        right = torch.from_numpy(gallery).T
        b = len(gallery)
        # Rows of about this many pairs stay in L2 from the product to the level.
        step = max(1, (1 << 17) // b)
        for (probe_group, a), lowest in zip(self.blocks, self.lowest, strict=True):
            n = a.stop - a.start
            product, level = self.product[: n * b].view(n, b), self.level[: n * b].view(n, b)
            torch.mm(self.held[a], right, out=product)
            for start in range(0, n, step):
                rows = slice(start, start + step)
                level[rows].copy_(product[rows].add_(_MAGIC).view(torch.int64))  # the low 32 bits
            ranks = self.probes.rank[a]
            mates = ranks[0] <= rank[-1] and rank[0] <= ranks[-1]
            top = torch.amax(level, 1)
            if mates or lowest <= _SHIFT - TOP or int(top.max()) > _SHIFT + TOP:
                level.clamp_(_SHIFT - TOP, _SHIFT + TOP)
                if mates:
                    # Mates, and with them the probe's own image, lie side by side: both sides are sorted.
                    level.masked_fill_(torch.from_numpy(ranks[:, None] == rank[None, :]), 0)
                top = torch.amax(level, 1)
            self._stand(level, top, a, state)
            counts = torch.bincount(level.view(-1), minlength=2 * _SHIFT + 1).numpy()
            inside = counts[_SHIFT - TOP : _SHIFT + TOP + 1].copy()
            inside[0] += counts[1 : _SHIFT - TOP].sum()  # below -1 by rounding only; 0 takes no part
            state.impostor[:] += inside
            if len(state.by_group) > 1:
                state.by_group[probe_group, group] += _coarse(inside)

    def _stand(self, level: Any, top: Any, a: slice, state: Others) -> None:
        """Counts the pairs of a tile above the best mate and level with it.  level: (n, b), top: (n,) its row maxima."""
        import torch

        rows = self.probes.row[a]
        highest = top.numpy()
        new = np.where(highest > 0, np.maximum(highest - _SHIFT, -TOP), NONE)
        state.best[rows] = np.maximum(state.best[rows], new)
        mate = self.mate[a]
        some = (top >= mate).nonzero().ravel()
        if not len(some):
            return
        if len(some) < len(top):  # as a rule few rows of a tile hold anything as high
            level, mate, rows = level[some], mate[some], rows[some.numpy()]
        n, b = level.shape
        words = -(-b // 8)
        flag = self.flag[: n * words * 8].view(n, words * 8)
        flag[:, b:] = False

        def count(compare: Any) -> Counts:
            compare(level, mate[:, None], out=flag[:, :b])
            total = np.zeros(n, np.int64)
            for start in range(0, words, 255):  # a byte holds up to 255
                lanes = flag.view(torch.int64)[:, start : start + 255].sum(1).numpy()
                total += lanes.view(np.uint8).reshape(n, 8).sum(1, dtype=np.int64)
            return total

        above = count(torch.gt)
        state.above[rows] += above
        state.tied[rows] += count(torch.ge) - above


class Streamed(NamedTuple):
    """The outcome of a comparison.

    standing: for :func:`deidbench.metrics.reid.identification.hits`.  best_mate, best_other: float32 (n_probes,) highest
    score of a gallery image of the probe's person, and of another person (open-set search); -inf without one.
    mates, others: int64 (n_probes,) gallery images that a probe is compared with, for
    :func:`deidbench.metrics.reid.identification.chance`.
    genuine, impostor: all scores.  genuine_by_group: int64 (G, 1 + COARSE_LEVELS), impostor_by_group: int64
    (G, G, 1 + COARSE_LEVELS), the probe's group first; element 0 counts the comparisons that could not be made.
    """

    standing: Standing
    best_mate: Floats
    best_other: Floats
    mates: Counts
    others: Counts
    genuine: Levels
    impostor: Levels
    genuine_by_group: Counts
    impostor_by_group: Counts

    def eer(self) -> Eer:
        return eer(self.genuine, self.impostor)

    def auc(self) -> float:
        return auc(self.genuine, self.impostor)

    def roc(self) -> Roc:
        return roc(self.genuine, self.impostor)


def conclude(task: Task, mates: Mates, others: Others) -> Streamed:
    """The outcome, from the states of the whole comparison.

    What has no embedding takes part without having been compared: a gallery image without one ranks behind all others, a
    probe about which nothing is known ties with the whole gallery, and in verification such pairs score -inf.
    """
    persons, pp, gp = len(task.group), task.probe_person, task.gallery_person
    own = task.same_image >= 0
    own_usable = np.zeros(len(pp), np.bool_)
    own_usable[own] = task.usable[task.same_image[own]]
    n_mates = np.bincount(gp, minlength=persons)[pp] - own
    n_others = len(gp) - own - n_mates
    usable_mates = np.bincount(gp[task.usable], minlength=persons)[pp] - own_usable
    usable_others = np.count_nonzero(task.usable) - own_usable - usable_mates
    unknown = ~task.known | (usable_mates + usable_others == 0)
    lost = ~unknown & (usable_mates == 0)  # the best mate ranks last, with all that cannot be used
    tied = np.where(lost, n_others - usable_others, others.tied)
    standing = Standing(
        np.where(unknown, np.where(n_mates > 0, 0, n_others), np.where(lost, usable_others, others.above)),
        np.where(unknown, np.where(n_mates > 0, n_others, 0), tied),
        np.where(unknown | lost, n_mates, mates.tied),
    )
    groups = task.groups
    by_g = np.bincount(task.group[pp], weights=n_mates, minlength=groups).astype(np.int64)
    in_group = [np.bincount(task.group[x], minlength=groups).astype(np.int64) for x in (pp, gp)]
    same_person = np.bincount(task.group[pp], weights=n_mates + own, minlength=groups).astype(np.int64)
    by_gh = np.outer(*in_group) - np.diag(same_person)
    impostor_groups = others.by_group
    if groups == 1:  # not kept tile by tile
        impostor_groups = _coarse(others.impostor)[None, None]
    return Streamed(
        standing=standing,
        best_mate=_scores(mates.best),
        best_other=_scores(others.best),
        mates=n_mates.astype(np.int64),
        others=n_others.astype(np.int64),
        genuine=Levels(mates.genuine, int(n_mates.sum() - mates.genuine.sum())),
        impostor=Levels(others.impostor, int(n_others.sum() - others.impostor.sum())),
        genuine_by_group=np.concatenate([(by_g - mates.by_group.sum(-1))[..., None], mates.by_group], -1),
        impostor_by_group=np.concatenate([(by_gh - impostor_groups.sum(-1))[..., None], impostor_groups], -1),
    )


def _scores(level: npt.NDArray[np.int32]) -> Floats:
    out: Floats = np.where(level == NONE, -np.inf, level * SCORE_GRID).astype(np.float32)
    return out


class Replicates(NamedTuple):
    """Figures in bootstrap replicates: float64 (B,), NaN where one has no pairs."""

    eer: npt.NDArray[np.float64]
    auc: npt.NDArray[np.float64]


def group_replicates(streamed: Streamed, draws: npt.NDArray[Any]) -> Replicates:
    """EER and AUC in replicates that draw group g of persons draws[:, g] times; draws: whole numbers (B, G).

    A genuine pair of group g weighs w_g, an impostor pair of groups g and h weighs w_g * w_h (as
    :mod:`deidbench.stats.pairs`, with groups in the place of persons; a person's duplicates are never compared).  Scores
    count by bins of 2**-10, those of a bin as ties, and what that changes in the figure itself is taken off every replicate.
    Read intervals with ``percentile_interval(..., persons=G)``: there are no more independent units than groups, so take 30
    or more.
    """
    groups = len(streamed.genuine_by_group)
    if draws.ndim != 2 or draws.shape[1] != groups:
        raise ValueError(f"draws {draws.shape} must have a column for each of the {groups} groups")
    pairs = streamed.impostor_by_group.reshape(groups * groups, -1).astype(np.float64)
    single = streamed.genuine_by_group.astype(np.float64)

    def figures(w: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        impostor = (w[:, :, None] * w[:, None, :]).reshape(len(w), -1) @ pairs
        return _binned(w @ single, impostor)

    plain = figures(np.ones((1, groups)))[:, 0]
    shift = np.array([streamed.eer().value, streamed.auc()]) - plain
    step = max(1, (1 << 22) // (groups * groups + COARSE_LEVELS))
    parts = [figures(draws[i : i + step].astype(np.float64)) for i in range(0, len(draws), step)]
    values = np.concatenate([np.empty((2, 0)), *parts], 1) + shift[:, None]
    return Replicates(*values.clip(0, 1))


def _binned(genuine: npt.NDArray[np.float64], impostor: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """EER and AUC, (2, B), of weights per bin, (B, bins) ascending, those of a bin tied; NaN where there are no pairs."""
    with np.errstate(invalid="ignore", divide="ignore"):
        g, i = (x / x.sum(1, keepdims=True) for x in (genuine, impostor))
    below = np.cumsum(i, 1) - i
    area = (g * (below + i / 2)).sum(1)
    zero = np.zeros((len(g), 1))
    fnmr = np.hstack([zero, np.cumsum(g, 1)])
    fmr = 1 - np.hstack([zero, np.cumsum(i, 1)])
    ok = ~np.isnan(area)
    out = np.full((2, len(g)), np.nan)
    out[1] = area
    rows = np.flatnonzero(ok)
    here = np.count_nonzero(fmr[rows] >= fnmr[rows], axis=1) - 1
    here = here.clip(0, fmr.shape[1] - 2)
    ends = fmr[rows, here], fnmr[rows, here], fmr[rows, here + 1], fnmr[rows, here + 1]
    out[0, rows] = crossing(*ends)
    return out


def compare_all(
    gallery: Floats,
    probes: Floats,
    probe_person: npt.NDArray[np.intp],
    gallery_person: npt.NDArray[np.intp],
    same_image: npt.NDArray[np.intp],
    *,
    group: npt.NDArray[np.intp] | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    tile: tuple[int, int] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Streamed:
    """Compares all probes with the whole gallery; arguments as in :class:`Task` and :func:`compare_others`."""
    task = Task.of(gallery, probes, probe_person, gallery_person, same_image, group)
    mates = compare_mates(task, threads=threads)
    return conclude(task, mates, compare_others(task, mates.best, memory=memory, threads=threads, tile=tile, tick=tick))
