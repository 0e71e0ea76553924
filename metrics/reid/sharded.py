"""Verification and identification of sets that one machine is too small or too slow for: the comparison in parts, on an executor.

A part is some of the probes against the whole gallery (:mod:`deidbench.metrics.reid.streaming`, so in bounded memory).  It leaves a
:class:`State`: whole-number counts of scores, and exact sums of hits by person.  States merge in any order and any grouping to the same
state, bit for bit, and so to the figures of :func:`deidbench.metrics.reid.streaming.compare_all`; a part that is lost with its worker is
done again, and costs itself.  Nothing in a state grows with the number of images; the sums grow with the number of persons.

Embeddings are read from a folder (:func:`lay_out`), memory-mapped, which every machine of a cluster must see under the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.metrics.reid import identification, streaming
from deidbench.metrics.reid.search import MEMORY
from deidbench.metrics.reid.streaming import Counts, Levels, Task
from deidbench.metrics.sums import Sums
from deidbench.stats.intervals import Interval, rate_interval
from deidbench.stats.roc import Eer, Roc

if TYPE_CHECKING:
    from deidbench.types import Floats

_NAMES = ("gallery", "probes", "probe_person", "gallery_person", "same_image", "group")


class Runs(Protocol):
    """Runs a function on every task, in any order (the executors of a run do): pairs of a task's number and its result."""

    def run(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]: ...


@dataclass(frozen=True, eq=False)
class State:
    """What some of the probes, compared with the whole gallery, gave.

    genuine, impostor, genuine_by_group, impostor_by_group: as in :class:`deidbench.metrics.reid.streaming.Streamed`.
    hits: for each rank the sum, by person, of the probabilities that a probe is identified at that rank or before; of probes with
    a mate.  no_mate: probes without one, which cannot be identified.  ranges: (start, stop) of the probes, ascending, none twice.
    """

    genuine: Levels
    impostor: Levels
    genuine_by_group: Counts
    impostor_by_group: Counts
    hits: dict[int, Sums[int]]
    no_mate: int
    ranges: tuple[tuple[int, int], ...]

    def merge(self, other: State) -> State:
        """Of both.  Raises ValueError where a probe is in both: it would count twice."""
        ranges = sorted((*self.ranges, *other.ranges))
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                raise ValueError(f"probe {start} is in both parts")
        if self.hits.keys() != other.hits.keys():
            raise ValueError(f"ranks {sorted(self.hits)} and {sorted(other.hits)} are not the same")

        def both(a: Levels, b: Levels) -> Levels:
            return Levels(a.counts + b.counts, a.none + b.none)

        return State(
            both(self.genuine, other.genuine),
            both(self.impostor, other.impostor),
            self.genuine_by_group + other.genuine_by_group,
            self.impostor_by_group + other.impostor_by_group,
            {k: self.hits[k].merge(other.hits[k]) for k in self.hits},
            self.no_mate + other.no_mate,
            tuple(ranges),
        )

    def eer(self) -> Eer:
        return streaming.eer(self.genuine, self.impostor)

    def auc(self) -> float:
        return streaming.auc(self.genuine, self.impostor)

    def roc(self) -> Roc:
        return streaming.roc(self.genuine, self.impostor)

    def rank(self, k: int) -> float:
        """Share of probes with a mate that are identified at rank ``k`` or before, ties at their expected value."""
        return self.hits[k].mean()

    def rank_interval(self, k: int, level: float = 0.95) -> Interval:
        """Over persons, with the gallery fixed (:func:`deidbench.stats.intervals.rate_interval`)."""
        return rate_interval(*self.hits[k].columns(), level=level)


def lay_out(
    folder: Path,
    gallery: Floats,
    probes: Floats,
    probe_person: npt.NDArray[np.intp],
    gallery_person: npt.NDArray[np.intp],
    same_image: npt.NDArray[np.intp],
    group: npt.NDArray[np.intp] | None = None,
) -> None:
    """Writes what :class:`deidbench.metrics.reid.streaming.Task` takes into ``folder``, a file each; the embeddings may be memory maps."""
    folder.mkdir(parents=True, exist_ok=True)
    Task.of(gallery, probes, probe_person, gallery_person, same_image, group)  # complains here, not on many machines
    for name, array in zip(_NAMES, (gallery, probes, probe_person, gallery_person, same_image, group), strict=True):
        if array is not None:
            np.save(folder / f"{name}.npy", array)


@lru_cache(maxsize=1)
def _opened(folder: str, _version: tuple[int, ...]) -> Task:
    """Once in each process: all rows are looked at."""
    found = {n: np.load(p, mmap_mode="r") for n in _NAMES if (p := Path(folder) / f"{n}.npy").exists()}
    gallery, probes, *numbers = (found.get(n) for n in _NAMES)
    probe_person, gallery_person, same_image, group = (None if a is None else np.asarray(a) for a in numbers)
    if gallery is None or probes is None or probe_person is None or gallery_person is None or same_image is None:
        raise FileNotFoundError(f"not all of {', '.join(_NAMES[:5])} are there")
    return Task.of(gallery, probes, probe_person, gallery_person, same_image, group)


def _open(folder: str) -> Task:
    try:
        return _opened(folder, tuple((Path(folder) / f"{n}.npy").stat().st_mtime_ns for n in _NAMES[:5]))
    except OSError as error:
        raise InputError(
            f"the embeddings in {folder} cannot be read: {error}", "every machine needs that folder under the same path"
        ) from error


@dataclass(frozen=True)
class Part:
    """Probes start to stop of the comparison in ``folder``.  ranks: at which hits are counted.  memory: bytes for tiles."""

    folder: str
    start: int
    stop: int
    ranks: tuple[int, ...] = (1, 5, 10)
    memory: int = MEMORY


def compare_part(part: Part) -> State:
    """Runs in a worker, in one thread."""
    task = _open(part.folder)
    some = slice(part.start, part.stop)
    mine = replace(
        task,
        probes=task.probes[some],
        probe_person=task.probe_person[some],
        same_image=task.same_image[some],
        known=task.known[some],
    )
    mates = streaming.compare_mates(mine, threads=1)
    others = streaming.compare_others(mine, mates.best, memory=part.memory, threads=1)
    return state_of(streaming.conclude(mine, mates, others), mine.probe_person, part.start, part.ranks)


def state_of(
    streamed: streaming.Streamed, probe_person: npt.NDArray[np.intp], start: int = 0, ranks: tuple[int, ...] = (1, 5, 10)
) -> State:
    """The state of probes that were compared with the whole gallery; the first is number ``start``."""
    found = streamed.mates > 0
    persons = probe_person[found].tolist()
    above, tied, tied_mates = streamed.standing
    top = identification.hits(above[found], tied[found], tied_mates[found], max(ranks))
    return State(
        streamed.genuine,
        streamed.impostor,
        streamed.genuine_by_group,
        streamed.impostor_by_group,
        {k: Sums.of(persons, top[:, k - 1]) for k in ranks},
        int(len(found) - np.count_nonzero(found)),
        ((start, start + len(found)),),
    )


def parts(folder: Path, count: int, ranks: tuple[int, ...] = (1, 5, 10), memory: int = MEMORY) -> list[Part]:
    """The comparison in ``folder`` cut into at most ``count`` parts of nearly equal size."""
    n = len(np.load(folder / "probes.npy", mmap_mode="r"))
    edges = np.linspace(0, n, min(count, n) + 1).astype(int).tolist()
    return [Part(str(folder.resolve()), a, b, ranks, memory) for a, b in pairwise(edges)]


def compare(executor: Runs, work: list[Part]) -> State:
    """All parts on the executor, merged as they come.  Raises ValueError where there are none."""

    def states() -> Iterator[State]:
        for _, state in executor.run(compare_part, work):
            yield state

    if not work:
        raise ValueError("there are no probes")
    return reduce(State.merge, states())
