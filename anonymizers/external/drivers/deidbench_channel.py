"""The channel between deidbench and a program that it keeps running (a driver).  Plain Python 3.8, nothing else.

A driver runs in the program's own environment::

    from deidbench_channel import drive

    def load():
        return ...                                             # the model, once

    def work(model, source, target, request):
        model.run(str(source), str(target), seed=request["seed"])    # for every image

    drive(load, work)

source is a PNG (RGB), target the PNG that is to be written, of the same size.  ``work`` may return a dict: ``{"status": "no_face"}``,
``{"status": "failed", "reason": "..."}``, ``{"boxes": [[x0, y0, x1, y1], ...]}`` (the faces that were worked on); what it raises is
that image's failure.  ``request`` has ``seed`` and ``options``, those of the recipe.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = "@deidbench "


class Channel:
    """The pipes to deidbench, taken away from everything else that may read standard input or write standard output."""

    def __init__(self, exchange: Path) -> None:
        self._exchange = exchange
        self._in = os.fdopen(os.dup(0), "r", encoding="utf-8")
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ending = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._in:
            self.requests.put(json.loads(line))
        self.end()

    def end(self) -> None:
        """Nobody waits for answers any more: deidbench is done, or was killed and could not clean up."""
        self._ending.acquire()  # never let go: who comes second waits for the end
        for part in ("in", "out"):
            shutil.rmtree(str(self._exchange / part), ignore_errors=True)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():  # started as a group of its own: with its children
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(0)

    def answer(self, number: int, **what: Any) -> None:
        self._out.write(MARK + json.dumps(dict(what, id=number)) + "\n")
        self._out.flush()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self.requests.get()

    def source(self, request: dict[str, Any]) -> Path:
        return self._exchange / "in" / str(request["name"])

    def target(self, request: dict[str, Any]) -> Path:
        return self._exchange / "out" / str(request["name"])


def drive(
    load: Callable[[], Any],
    work: Callable[[Any, Path, Path, dict[str, Any]], dict[str, Any] | None],
    exchange: Path | None = None,
) -> None:
    """Answers requests until deidbench is gone.  exchange: its folder (default: ``--exchange FOLDER`` of the command line)."""
    channel = Channel(exchange or Path(sys.argv[sys.argv.index("--exchange") + 1]))
    try:
        _serve(channel, load, work)
    except BrokenPipeError:  # a word to nobody: without this the process might be gone before the listener has cleaned up
        channel.end()


def _serve(channel: Channel, load: Any, work: Any) -> None:
    try:
        model = load()
        about = model.about() if hasattr(model, "about") else {}
    except BaseException as error:
        traceback.print_exc()
        channel.answer(0, fatal=words(error), missing=isinstance(error, ImportError))
        raise SystemExit(1) from error
    channel.answer(0, **about)
    for request in channel:
        fatal = False
        try:
            answer = {"status": "ok", **(work(model, channel.source(request), channel.target(request), request) or {})}
        except Exception as error:
            traceback.print_exc()
            text = words(error)
            # After an error on the GPU every later call fails too, but for running out of memory.
            fatal = "CUDA error" in text
            answer = {"status": "failed", "reason": text}
        channel.answer(request["id"], fatal=fatal, **answer)


def words(error: BaseException) -> str:
    """An exception in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:500]}{place}"
