"""Progress with an ETA: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds between two lines where there is no terminal.
LOG_EVERY = 10.0


def console(stderr: bool = False) -> Console:
    """A terminal (or a file) that shows text as it is, without guessing what to colour in it."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


class Ticker(Protocol):
    def __call__(self, done: int = 1) -> None: ...


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Ticker]:
    """``with progress("embed", 400) as tick: tick(16)``; writes to stderr, nothing when ``quiet`` or total is 0."""
    if quiet or total <= 0:
        yield lambda done=1: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<32.32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done=1: bar.advance(task, done)
        return
    start = last = time.monotonic()
    count = 0

    def tick(done: int = 1) -> None:
        nonlocal last, count
        count += done
        now = time.monotonic()
        if now - last >= LOG_EVERY and count < total:
            last = now
            eta = (now - start) / count * (total - count) if count else float("nan")
            sys.stderr.write(f"{title}: {count}/{total}, {now - start:.0f} s, ETA {eta:.0f} s\n")
            sys.stderr.flush()

    yield tick
    sys.stderr.write(f"{title}: {count}/{total} in {time.monotonic() - start:.1f} s\n")
    sys.stderr.flush()
