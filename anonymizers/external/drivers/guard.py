"""Runs a command for deidbench and goes down with it: ``guard.py EXCHANGE COMMAND...``.

Standard input is a pipe that deidbench holds open.  Where it closes (deidbench was killed) the pictures in the exchange
folder are deleted, and the command is killed with all that it started.  The exit code is the command's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading


def watch(exchange: str) -> None:
    while os.read(0, 1 << 16):
        pass
    for part in ("in", "out", "work"):
        shutil.rmtree(os.path.join(exchange, part), ignore_errors=True)  # noqa: PTH118
    if os.getpgrp() == os.getpid():  # started as a group of its own: with its children
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main(exchange: str, command: list[str]) -> None:
    threading.Thread(target=watch, args=(exchange,), daemon=True).start()
    try:
        code = subprocess.call(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        os.write(2, "{} cannot be started: {}\n".format(command[0], error).encode())  # noqa: UP032
        os._exit(127)
    if code < 0:  # die as it died, so that who reads our status sees its signal
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
