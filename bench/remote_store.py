"""The store of a run on several machines: one process, on the machine that has the file, reads and writes it for all workers.

SQLite is for the machine that its file is on.  Hence workers elsewhere ask a :class:`Keeper`, over Ray, for what they would ask the file:
no shared drive is needed for the store, and a batch is one transaction as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deidbench.cache import Store
from deidbench.errors import DeidbenchError


class Keeper:
    """A Ray actor that has the store open.  Answers are (value, None), or (None, error): Ray would wrap what is raised."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._store: Store | None = None

    def ask(self, what: str, *arguments: Any) -> tuple[Any, DeidbenchError | None]:
        try:
            if self._store is None:
                self._store = Store(self._folder)
            before = self._store.damaged
            value = getattr(self._store, what)(*arguments)
            return (value, self._store.damaged - before), None
        except DeidbenchError as error:
            return None, error


class RemoteStore:
    """A store as a worker sees it, through a keeper (:class:`deidbench.cache.Artefacts`).  Raises what the store raises."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper
        self.damaged = 0

    def _ask(self, what: str, *arguments: Any) -> Any:
        import ray

        answer, error = ray.get(self._keeper.ask.remote(what, *arguments))
        if error is not None:
            raise error
        value, damaged = answer
        self.damaged += damaged
        return value

    def get(self, key: str) -> bytes | None:
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = list(keys)
        found: dict[str, bytes] = self._ask("get_many", wanted) if wanted else {}
        return found

    def present(self, keys: Iterable[str]) -> set[str]:
        wanted = list(keys)
        found: set[str] = self._ask("present", wanted) if wanted else set()
        return found

    def put_many(self, artefacts: Mapping[str, bytes]) -> None:
        if artefacts:
            self._ask("put_many", dict(artefacts))

    def close(self) -> None:
        """Nothing: the keeper goes with the executor."""
