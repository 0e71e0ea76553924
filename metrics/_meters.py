"""What a method takes besides time: resident memory at its peak, and processor seconds, its own and its programs'.

Memory is that of this process and of the processes that it started.  On Linux the kernel keeps the high-water mark of a
process (``VmHWM`` in proc_pid_status(5)); writing 5 to ``/proc/self/clear_refs`` sets it back to what is resident now
(proc_pid_clear_refs(5)).  Where that is not permitted, and for other processes, a thread looks every few milliseconds: what
comes and goes between two looks is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

MIB = 2**20
#: Seconds between two looks.
EVERY = 0.02
_HIGH_WATER = "high-water mark"
_SAMPLED = f"sampled every {1000 * EVERY:.0f} ms"


def settled() -> int:
    """Resident bytes of this process after what is free was handed back, so that what a method takes next is seen as growth."""
    import psutil

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def children() -> list[Any]:
    """The processes (psutil) that this one started, and theirs."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def _alive(found: list[Any]) -> Iterator[tuple[int, Any]]:
    import psutil

    for process in found:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            yield process.pid, process


def cpu_seconds(programs: bool = False) -> float:
    """Processor seconds, user and system, of all threads of this process and of children that have ended.

    programs: those of children that are running too; looking at them takes milliseconds, so ask for it only where there are any.
    """
    import psutil

    live = 0.0
    for _, process in _alive(children() if programs else []):
        with contextlib.suppress(psutil.Error):
            t = process.cpu_times()
            # a child's own children count once they have ended; those that run are in the list themselves
            live += t.user + t.system + getattr(t, "children_user", 0.0) + getattr(t, "children_system", 0.0)
    times = os.times()
    return time.process_time() + times.children_user + times.children_system + live


class Watch:
    """Peak memory of a block.  known: pids of children that belong to somebody else.

    peak: bytes, that of this process plus that of its children at their highest.  programs: children were seen.
    how: in words.
    """

    def __init__(self, known: frozenset[int] = frozenset()) -> None:
        self.known = known
        self.peak = 0
        self.programs = False
        self.how = ""
        self._own = self._others = 0
        self._stop = threading.Event()

    def __enter__(self) -> Watch:
        self._reset = _reset_high_water()
        self._look()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._look()
        self._stop.set()
        self._thread.join()
        marked = _high_water() if self._reset else None
        self.peak = (self._own if marked is None else marked) + self._others
        self.how = _SAMPLED if marked is None else _HIGH_WATER
        if self.programs and marked is not None:
            self.how += f", its programs {_SAMPLED}"

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            self._look()

    def _look(self) -> None:
        import psutil

        others = 0
        for pid, process in _alive(children()):
            if pid in self.known:
                continue
            with contextlib.suppress(psutil.Error):
                others += int(process.memory_info().rss)
                self.programs = True
        self._others = max(self._others, others)
        self._own = max(self._own, int(psutil.Process().memory_info().rss))


def _reset_high_water() -> bool:
    """Whether the high-water mark of this process starts anew from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> int | None:
    """The high-water mark in bytes, None where the system keeps none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


# --- the accelerator


def _cuda() -> Any:
    """``torch.cuda`` where torch is in use on a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def synchronise() -> None:
    """Waits for the accelerator, where torch is in use on one; CPU work is done when a call returns."""
    if (cuda := _cuda()) is not None:
        cuda.synchronize()


def gpu_held() -> int:
    """Bytes that torch holds on the GPU; its high-water mark starts anew from here."""
    if (cuda := _cuda()) is None:
        return 0
    cuda.reset_peak_memory_stats()
    return int(cuda.memory_allocated())


def gpu_used(held: int) -> float | None:
    """MiB by which the high-water mark rose above ``held`` bytes; None where it did not: whoever computes there allocates."""
    if (cuda := _cuda()) is None:
        return None
    peak = int(cuda.max_memory_allocated())
    return (peak - held) / MIB if peak > held else None


def gpu_name() -> str:
    return str(sys.modules["torch"].cuda.get_device_name())


def threads() -> tuple[int, str]:
    """(threads of OpenCV, those of all libraries in words)."""
    import cv2

    count = int(cv2.getNumThreads())
    said = [f"OpenCV {count}"]
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_num_threads"):
        said.append(f"torch {int(torch.get_num_threads())}")
    if "onnxruntime" in sys.modules:  # our sessions take what this variable says, else a thread per core
        said.append(f"ONNX Runtime {os.environ.get('OMP_NUM_THREADS') or 'one per core'}")
    return count, ", ".join(said)
