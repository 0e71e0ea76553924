"""Worker processes go down with the process that started them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

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
