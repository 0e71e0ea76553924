"""Worker processes suit the machine, and go down with the process that started them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from deidbench import executors

#: Two workers in the middle of tasks that take for ever.
CODE = """
import os, pathlib, sys, time
from deidbench.executors import make_executor

def ready():
    (pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()

def work(task):
    time.sleep(600)

if __name__ == "__main__":
    for _ in make_executor(2, ready, ()).run(work, [1, 2, 3, 4]):
        pass
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(CODE)
    (tmp_path / "pids").mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "pids")], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while len(list((tmp_path / "pids").iterdir())) < 2:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        process.wait(30)
    finally:
        process.kill()
    for name in (tmp_path / "pids").iterdir():
        end = time.monotonic() + 20
        while psutil.pid_exists(int(name.name)) and psutil.Process(int(name.name)).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "a worker is left over"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("on", "gib", "workers", "threads"), [(2, 24, 2, 1), (64, 256, 64, 1), (64, 24, 16, 4), (64, 3, 2, 8), (4, 0.5, 1, 4)]
)
def test_workers_and_threads_suit_the_machine(
    monkeypatch: pytest.MonkeyPatch, on: int, gib: float, workers: int, threads: int
) -> None:
    monkeypatch.setattr(executors, "cores", lambda: on)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * 2**30))
    assert executors.default_workers() == workers
    assert executors.threads_each(workers) == threads
