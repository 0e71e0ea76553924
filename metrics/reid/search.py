"""Exact search for the most similar gallery images, in tiles of bounded memory.

Scores are those of :func:`deidbench.metrics.reid.base.cosine`, bit for bit, whatever the size of tiles, the number of
threads or the BLAS.  The work is nevertheless done by float32 matrix products: with the error bound of a float32 dot
product (:func:`product_error`) a tile tells which pairs can still be among the best k of a probe, and those few are scored
again on the exact grid.  Where a float32 product cannot tell (many images that tie), the probes concerned are searched in
float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.metrics.reid.base import _EMBEDDING_GRID, SCORE_GRID
from deidbench.types import Floats

if TYPE_CHECKING:
    import torch

#: Working memory in bytes besides the embeddings and the results, for all threads together.
MEMORY = 512 << 20
#: The score 1 in steps of the grid.
TOP = round(1 / SCORE_GRID)
#: Probes by gallery images of a float32 tile: 8 MiB, which a shared L3 of some 30 MiB holds for each of two threads.
TILE = (1024, 2048)
#: Columns that one maximum stands for when a tile is looked through; tiles are a multiple of it wide.
_STRIP = 64
#: Score of what takes no part, below all others.
_OUT = -4.0
_INDEX_BITS = 31


class Found(NamedTuple):
    """The k best gallery images per probe, best first, equal scores in gallery order.

    column: intp (n_probes, k) gallery rows, -1 where there are no more.  score: float32 (n_probes, k), -inf there.
    """

    column: npt.NDArray[np.intp]
    score: Floats


def product_error(columns: int) -> float:
    """How far a float32 dot product of unit rows may lie from the score before it is put on the score grid.

    gamma_n = n u / (1 - n u) with u = 2**-24 bounds any order of summation, with or without fused multiply-add (Higham 2002,
    Accuracy and Stability of Numerical Algorithms, section 3.1), times the sum of |products|, at most 1.001 for rows that
    are unit to 1e-3.  Rounding both rows to the embedding grid moves a score by no more than half a step times the sum of
    either row's magnitudes, at most sqrt(n) each.
    """
    nu = (columns + 1) * 2.0**-24
    return 1.001 * nu / (1 - nu) + 1.01 * math.sqrt(columns) * _EMBEDDING_GRID


def usable_rows(x: Floats, *, chunk: int = 1 << 22) -> npt.NDArray[np.bool_]:
    """Rows without NaN: bool (n,).  Read in chunks.  Raises ValueError for a row of another length than 1 (1e-3)."""
    out = np.empty(len(x), np.bool_)
    step = max(1, chunk // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        y = np.asarray(x[start : start + step], np.float32)
        squared = np.einsum("ij,ij->i", y, y)
        if np.any(np.abs(squared - 1) > 1e-3):  # False for NaN
            raise ValueError("embeddings must be L2-normalised (or NaN): use l2_normalise")
        out[start : start + step] = ~np.isnan(squared)
    return out


def check_matrices(gallery: Floats, probes: Floats) -> None:
    if gallery.ndim != 2 or probes.ndim != 2 or gallery.shape[1] != probes.shape[1]:
        raise ValueError(f"gallery {gallery.shape} and probes {probes.shape} must be matrices with the same number of columns")


def on_grid(x: Floats) -> npt.NDArray[np.float64]:
    """Rows on the embedding grid, scaled so that a product of two is a score in steps of the score grid.  NaN becomes 0."""
    y = np.nan_to_num(x.astype(np.float64), copy=False, nan=0.0)
    y *= 1 / _EMBEDDING_GRID
    np.rint(y, out=y)
    y *= _EMBEDDING_GRID * math.sqrt(1 / SCORE_GRID)  # a power of 2: exact
    return y


def pair_levels(
    probes: Floats,
    gallery: Floats,
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    *,
    chunk: int = 1 << 18,
) -> npt.NDArray[np.int64]:
    """Scores of the pairs (probes[rows], gallery[columns]) in steps of the score grid: int64 (n,) in [-TOP, TOP]."""
    out = np.empty(len(rows), np.int64)
    step = max(1, chunk // max(1, gallery.shape[1]))
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        product = np.einsum("ij,ij->i", on_grid(probes[rows[some]]), on_grid(gallery[columns[some]]))
        out[some] = np.rint(product).clip(-TOP, TOP)
    return out


def workers(threads: int | None) -> int:
    """Number of threads to use: as many as torch would, unless told."""
    if threads is None:
        import torch

        return torch.get_num_threads()
    if threads < 1:
        raise ValueError(f"at least one thread is needed, not {threads}")
    return threads


class Progress:
    """Calls ``tick`` with the number of pairs compared since the last call; one thread at a time."""

    def __init__(self, tick: Callable[[int], None] | None) -> None:
        self._tick = tick
        self._lock = threading.Lock()

    def __call__(self, pairs: int) -> None:
        if self._tick is not None:
            with self._lock:
                self._tick(pairs)


def in_threads(threads: int, make: Callable[[], Callable[[Any], None]], tasks: Iterable[Any]) -> None:
    """Carries out all tasks.  ``make`` is called once in each thread and returns what carries out a task there.

    A thread takes one task after the other and computes with one thread itself: products and all that comes after them run
    side by side, which torch's own threads would only do for the products.  The first exception ends the work.
    """
    import torch

    waiting, lock, before = iter(tasks), threading.Lock(), torch.get_num_threads()
    broken = threading.Event()

    def work() -> None:
        torch.set_num_threads(1)
        try:
            carry_out = make()
            while not broken.is_set():
                with lock:
                    task = next(waiting, None)
                if task is None:
                    return
                carry_out(task)
        except BaseException:
            broken.set()
            raise

    try:
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(work) for _ in range(threads)]
            try:
                for one in running:
                    one.result()
            except BaseException:
                broken.set()
                raise
    finally:
        torch.set_num_threads(before)  # set_num_threads(1) is also what threads started later would begin with


class _Undecided(Exception):
    """Float32 leaves more candidates than are worth looking at one by one."""


def search(
    gallery: Floats,
    probes: Floats,
    k: int,
    *,
    same_image: npt.NDArray[np.intp] | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    tile: tuple[int, int] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Found:
    """The k gallery images most similar to each probe, by :func:`deidbench.metrics.reid.base.cosine`, exactly.

    gallery: float32 (n_gallery, d), probes: float32 (n_probes, d), rows L2-normalised or NaN (never found, and finds
    nothing); either may be a memory map.  same_image: (n_probes,) gallery row that a probe is never compared with, -1 for none.
    memory: bytes for tiles and candidates; tiles are ``TILE`` or as much smaller as it takes.  tile: probes and gallery images
    of a tile, instead.  tick: called with numbers of pairs.  The result depends on none of them, nor on ``threads``.
    """
    check_matrices(gallery, probes)
    if k < 1:
        raise ValueError(f"at least one gallery image must be asked for, not {k}")
    if len(gallery) >= 1 << _INDEX_BITS:
        raise ValueError(f"a gallery holds at most {(1 << _INDEX_BITS) - 1} images, not {len(gallery)}")
    index = np.full((len(probes), k), -1, np.intp)
    score = np.full((len(probes), k), -np.inf, np.float32)
    known, usable = usable_rows(probes), usable_rows(gallery)
    own = np.full(len(probes), -1, np.intp) if same_image is None else same_image
    if not usable.any():
        return Found(index, score)
    count = workers(threads)
    height, width = tile or fit(TILE, memory // count, gallery.shape[1], per_pair=12, held=24 * (256 + 16 * k))
    width = max(_STRIP, width // _STRIP * _STRIP)
    # Blocks of equal height, a multiple of the threads in number.
    blocks = max(1, math.ceil(len(probes) / (height * count))) * count
    edges = np.linspace(0, len(probes), blocks + 1).astype(int)
    progress = Progress(tick)

    def make() -> Callable[[slice], None]:
        block = _Block(gallery, usable, k, height, width)

        def carry_out(rows: slice) -> None:
            seen = np.flatnonzero(known[rows]) + rows.start
            if len(seen):
                index[seen], score[seen] = block.search(np.asarray(probes[seen], np.float32), own[seen])
            progress((rows.stop - rows.start) * len(gallery))

        return carry_out

    in_threads(count, make, [slice(a, b) for a, b in pairwise(edges) if b > a])
    return Found(index, score)


def fit(tile: tuple[int, int], memory: int, columns: int, *, per_pair: int, held: int, least: int = 16) -> tuple[int, int]:
    """The tile, halved until it fits: ``per_pair`` bytes a pair, 16 bytes a value of its rows, ``held`` bytes a probe.

    Raises ValueError where not even the smallest fits.
    """

    def need(height: int, width: int) -> int:
        return height * width * per_pair + 16 * columns * (height + width) + held * height

    height, width = tile
    while need(height, width) > memory:
        if max(height, width) <= least:
            raise ValueError(f"{memory} bytes a thread hold no tile of scores: allow at least {need(least, least)}")
        if height > width:
            height //= 2
        else:
            width //= 2
    return height, width


class _Block:
    """Searches the whole gallery for a block of probes; holds the buffers of one thread."""

    def __init__(self, gallery: Floats, usable: npt.NDArray[np.bool_], k: int, height: int, width: int) -> None:
        import torch

        self.gallery, self.usable, self.k, self.width = gallery, usable, k, width
        self.height = height
        self.scores = torch.empty(height * width)
        self.copy = np.empty((width, gallery.shape[1]), np.float32)
        # A row-major writable array is used as it lies; torch takes no read-only memory.
        self.as_it_is = gallery.flags.writeable and gallery.flags.c_contiguous and gallery.dtype == np.float32
        # The k-th best is known to within the error, and so is any candidate; scores on the grid move by half a step each.
        self.margin = 2 * product_error(gallery.shape[1]) + SCORE_GRID

    def search(self, probes: Floats, own: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], Floats]:
        """Columns and scores, (n, k) each.  probes: (n, d) without NaN, n at most the height of a tile."""
        try:
            rows, columns = self._candidates(probes, own)
        except _Undecided:
            return self._in_float64(probes, own)
        level = pair_levels(probes, self.gallery, rows, columns)
        order = np.lexsort((columns, -level, rows))
        rows, columns, level = rows[order], columns[order], level[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        best = place < self.k
        index = np.full((len(probes), self.k), -1, np.intp)
        score = np.full((len(probes), self.k), -np.inf, np.float32)
        index[rows[best], place[best]] = columns[best]
        score[rows[best], place[best]] = level[best] * SCORE_GRID
        return index, score

    def _columns(self, start: int, stop: int) -> torch.Tensor:
        """Gallery rows as a tensor, filled up with zeros to a multiple of ``_STRIP``; zero where unusable."""
        import torch

        n = stop - start
        bad = np.flatnonzero(~self.usable[start:stop])
        if self.as_it_is and n % _STRIP == 0 and not len(bad):
            return torch.from_numpy(self.gallery[start:stop])
        padded = -(-n // _STRIP) * _STRIP
        np.copyto(self.copy[:n], self.gallery[start:stop])
        self.copy[n:padded] = 0
        self.copy[bad] = 0
        return torch.from_numpy(self.copy[:padded])

    def _tiles(self, own: npt.NDArray[np.intp]) -> Iterable[tuple[int, int, npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """Start and stop of each tile, its columns that take no part, and the probes whose own image it holds."""
        for start in range(0, len(self.gallery), self.width):
            stop = min(start + self.width, len(self.gallery))
            mine = np.flatnonzero((own >= start) & (own < stop))
            yield start, stop, np.flatnonzero(~self.usable[start:stop]), mine

    def _least(self, bound: torch.Tensor) -> torch.Tensor:
        """The float32 scores that may still belong to the best, given that of k images.

        Rows are of length 1 to 1e-3, so products exceed 1 a little, where all of them are 1 on the grid; likewise -1.
        """
        least = bound.clamp(max=1) - self.margin
        return least.masked_fill_(least <= -1, _OUT / 2)

    def _candidates(self, probes: Floats, own: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Pairs (row, column) of which the best k of each row are a part."""
        import torch

        a, k = len(probes), self.k
        left = torch.from_numpy(np.ascontiguousarray(probes))
        best = torch.full((a, k), _OUT)  # each row holds the scores of k different images, if not the very best
        bound = torch.full((a,), _OUT)
        kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        held, most = 0, a * (256 + 16 * k)  # of the memory that search() reckons with

        def sift() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            r, c, s = (torch.cat([part[i] for part in kept]) for i in range(3))
            good = s >= self._least(bound)[r]
            return r[good], c[good], s[good]

        for start, stop, bad, mine in self._tiles(own):
            right = self._columns(start, stop)
            b = len(right)
            scores = self.scores[: a * b].view(a, b)
            torch.mm(left, right.T, out=scores)
            if len(bad):
                scores[:, bad] = _OUT
            scores[:, stop - start :] = _OUT
            if len(mine):
                scores[mine, own[mine] - start] = _OUT
            strips = scores.view(a, b // _STRIP, _STRIP)
            top = torch.amax(strips, 2)
            if start == 0 or b // _STRIP < k:
                news = torch.topk(torch.cat([best, scores], 1), k).values
                best, bound = news, news[:, -1].contiguous()
            else:
                better = (torch.amax(top, 1) > bound).nonzero().ravel()
                if len(better):
                    news = torch.topk(torch.cat([best[better], top[better]], 1), k).values
                    best[better], bound[better] = news, news[:, -1]
            least = self._least(bound)
            row, strip = (top >= least[:, None]).nonzero(as_tuple=True)
            values = strips[row, strip]
            there = (values >= least[row, None]).logical_and_(values > _OUT)
            if int(torch.count_nonzero(there)) > most:
                raise _Undecided
            hit, place = there.nonzero(as_tuple=True)
            kept.append((row[hit], strip[hit] * _STRIP + place + start, values[hit, place]))
            held += len(hit)
            if held > most:
                kept = [sift()]
                held = len(kept[0][0])
                if held > most // 2:
                    raise _Undecided
        row, column, _ = sift()
        return row.numpy().astype(np.intp), column.numpy().astype(np.intp)

    def _in_float64(self, probes: Floats, own: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], Floats]:
        """The same by exact products of all pairs: slower, and never undecided."""
        import torch

        mask = (1 << _INDEX_BITS) - 1
        low = -(TOP + 1) << _INDEX_BITS
        step = max(1, self.height // 8)
        parts = []
        for first in range(0, len(probes), step):
            rows = slice(first, min(first + step, len(probes)))
            left = torch.from_numpy(on_grid(probes[rows]))
            # Score and column in one number: the larger, the better, and lower columns first.
            best = torch.full((len(left), self.k), low, dtype=torch.int64)
            for start, stop, bad, mine in self._tiles(own[rows]):
                right = torch.from_numpy(on_grid(np.asarray(self.gallery[start:stop])))
                key = torch.mm(left, right.T).round_().clamp_(-TOP, TOP).to(torch.int64)
                key.mul_(1 << _INDEX_BITS).add_(mask - torch.arange(start, stop))
                key[:, bad] = low
                key[mine, own[rows][mine] - start] = low
                best = torch.topk(torch.cat([best, key], 1), self.k).values
            parts.append(best.numpy())
        best_keys = np.concatenate(parts)
        none = best_keys < (-TOP << _INDEX_BITS)
        index = np.where(none, -1, mask - (best_keys & mask)).astype(np.intp)
        score = np.where(none, -np.inf, (best_keys >> _INDEX_BITS) * SCORE_GRID).astype(np.float32)
        return index, score
