"""Who works on which images: shards by a hash of the sample, the same on every machine and in every order.

A sample has a place in [0, 2**64), the first 8 bytes of the SHA-256 of its id and of its image's hash.  ``n`` workers share that range in
equal parts.  A batch is cut from samples in the order of their places (:func:`by_place`), so that all of it, but for the few that lie
across a border, belongs to one worker: it then sees the same images in every stage, and its machine has their files at hand.
Nothing in a result depends on it: a worker that has nothing left takes from the others (:class:`Queues`).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

#: Places are below this.
PLACES = 1 << 64


class Named(Protocol):
    """What a place is made of: a :class:`deidbench.types.Sample`, or a face of one."""

    @property
    def id(self) -> str: ...

    @property
    def sha256(self) -> str: ...


S = TypeVar("S", bound=Named)


def place(sample: Named) -> int:
    """Where a sample is in [0, 2**64)."""
    text = f"{sample.id}\0{sample.sha256.lower()}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def shard_of(sample: Named, n: int) -> int:
    """The shard of a sample among ``n``: a number in [0, n).  Raises ValueError where there is none."""
    if n < 1:
        raise ValueError(f"at least one shard is needed, not {n}")
    return place(sample) * n // PLACES


def by_place(samples: Sequence[S]) -> list[S]:
    """The samples in the order of their places (of their ids, where two share one)."""
    return sorted(samples, key=lambda s: (place(s), s.id))


class Queues:
    """The tasks that wait, by number: a queue for each of ``n`` workers and one for tasks that belong to nobody.

    A task belongs to the shard of the first of its ``samples``; one that has none belongs to nobody.
    """

    def __init__(self, tasks: Sequence[Any], n: int) -> None:
        self._home: list[deque[int]] = [deque() for _ in range(n)]
        self._common: deque[int] = deque()
        self._left = len(tasks)
        for i, task in enumerate(tasks):
            samples = getattr(task, "samples", None)
            (self._home[shard_of(samples[0], n)] if samples else self._common).append(i)

    def __len__(self) -> int:
        return self._left

    def take(self, worker: int) -> int | None:
        """The next task for a worker: its own, one that belongs to nobody, or the last of whoever has most left; None when all are taken."""
        queue = self._home[worker] or self._common
        if queue:
            self._left -= 1
            return queue.popleft()
        longest = max(self._home, key=len)
        if not longest:
            return None
        self._left -= 1
        return longest.pop()

    def give_back(self, worker: int, task: int) -> None:
        """A task that was taken and not done: it comes first."""
        self._home[worker].appendleft(task)
        self._left += 1
