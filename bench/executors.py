"""Where tasks run: in this process, in worker processes, or on a Ray cluster (:mod:`deidbench.ray_executor`).  A task is a picklable call that returns a value."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from deidbench.errors import EnvironmentFault, InputError

if TYPE_CHECKING:
    from deidbench.ray_executor import Session

R = TypeVar("R")

#: Read by the libraries when they are first imported, so they must be set before a worker starts.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
#: What a worker with the models of the demo suite holds, and a little more.
WORKER_BYTES = 1536 << 20
#: A choice: small networks on batches of sixteen crops have little work for more threads.
MOST_THREADS = 8


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_workers() -> int:
    """One worker a core, or fewer where memory would not do for as many."""
    import psutil

    return max(1, min(cores(), int(psutil.virtual_memory().available // WORKER_BYTES)))


def threads_each(workers: int) -> int:
    """Threads of each worker's libraries: its share of the cores, up to :data:`MOST_THREADS`."""
    return max(1, min(MOST_THREADS, cores() // workers))


def limit_threads(threads: int) -> None:
    """Threads of the libraries that are asked at run time (OpenCV now, torch when it is already loaded)."""
    import sys

    import cv2

    cv2.setNumThreads(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


class Executor(Protocol):
    """Runs ``function(task)`` for every task; results come in any order, each with its task's index."""

    @property
    def workers(self) -> int: ...

    def run(self, function: Callable[[Any], R], tasks: Sequence[Any]) -> Iterator[tuple[int, R]]: ...

    def close(self) -> None: ...


class InProcess:
    """One after the other, here."""

    workers = 1

    def __init__(self, initialise: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._initialise, self._arguments, self._ready = initialise, arguments, False

    def run(self, function: Callable[[Any], R], tasks: Sequence[Any]) -> Iterator[tuple[int, R]]:
        if not self._ready:
            self._initialise(*self._arguments)
            self._ready = True
        for i, task in enumerate(tasks):
            yield i, function(task)

    def close(self) -> None:
        return


class Processes:
    """Worker processes, started fresh (spawn), each with its share of the cores as threads."""

    def __init__(self, workers: int, initialise: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.workers = workers
        self._initialise, self._arguments = initialise, arguments
        self._pool: Any = None

    def _start(self) -> Any:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self._initialise, self._arguments),
            )
        return self._pool

    def run(self, function: Callable[[Any], R], tasks: Sequence[Any]) -> Iterator[tuple[int, R]]:
        from concurrent.futures import FIRST_COMPLETED, Future, wait
        from concurrent.futures.process import BrokenProcessPool

        threads = str(threads_each(self.workers))
        waiting: dict[Future[R], int] = {}
        queue = iter(enumerate(tasks))
        try:
            with _environment(dict.fromkeys(THREAD_VARIABLES, threads)):
                pool = self._start()
                # Bounded: what waits to run stays small however many tasks there are.
                while True:
                    for i, task in queue:
                        waiting[pool.submit(function, task)] = i
                        if len(waiting) >= 2 * self.workers:
                            break
                    if not waiting:
                        return
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            self._pool = None
            raise EnvironmentFault(
                "a worker process died (killed, out of memory, or a native library crashed)",
                "run the same command again: what was computed is kept; --workers 1 or a smaller --batch needs less memory",
            ) from error
        except BaseException:
            for future in waiting:
                future.cancel()
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _begin(initialise: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """The first thing in a worker: it goes down with the process that started it, and is then made ready.

    A worker waits for tasks on a pipe whose other end its brothers hold too, so it would wait for ever, with all its models.
    """
    import multiprocessing
    import threading
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch(sentinel: int = parent.sentinel) -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    initialise(*arguments)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the children that start inside the block; those that the user set win."""
    added = {k: v for k, v in values.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for k in added:
            os.environ.pop(k, None)


def make_executor(
    workers: int, initialise: Callable[..., None], arguments: tuple[Any, ...], cluster: Session | None = None
) -> Executor:
    """``workers`` = 0 means :func:`default_workers`.  cluster: Ray, where it is to run there."""
    if workers < 0:
        raise InputError(f"--workers must not be negative, got {workers}", "--workers 2, or 0 for one per core")
    if cluster is not None:
        return cluster.executor(workers, initialise, arguments)
    workers = workers or default_workers()
    return InProcess(initialise, arguments) if workers == 1 else Processes(workers, initialise, arguments)
