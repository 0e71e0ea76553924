"""The store: content-addressed artefacts, written atomically, safe for several processes and for being killed.

Small artefacts (faces, embeddings, numbers) live in one SQLite file in WAL mode: a batch is one transaction, so it is
there whole or not at all, even after ``kill -9``.  Large ones (pictures of photographs) are files, written to a
temporary name, synced and renamed, and entered in SQLite afterwards.  Every artefact is kept with the SHA-256 of its
bytes and checked when it is read; a damaged one counts as absent and is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from deidbench.errors import EnvironmentFault

#: Larger artefacts become files.
INLINE_BYTES = 128 * 1024
#: Part of the file name: a store of another layout is never misread, only left alone.
LAYOUT = 1


def key(kind: str, **parts: Any) -> str:
    """Key of an artefact: hex hash over ``kind`` and all that determines it, independent of the order of ``parts``.

    Values must be JSON-serialisable (numbers, strings, lists, mappings); anything else is a TypeError, because a
    silent ``repr`` with a memory address in it would never hit.
    """
    text = json.dumps([kind, parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def default_folder() -> Path:
    """``$DEIDBENCH_CACHE`` or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("DEIDBENCH_CACHE") or platformdirs.user_cache_dir("deidbench"))


class Store:
    """A store in ``folder`` (made on first use).  Not to be shared between threads or pickled; open one per process."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.objects = self.folder / "objects"
        self.path = self.folder / f"store-v{LAYOUT}.sqlite"
        self.damaged = 0
        try:
            self.objects.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=120, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS artefact (key TEXT PRIMARY KEY, sha256 BLOB NOT NULL, size INTEGER NOT NULL, "
                "data BLOB, made REAL NOT NULL)"
            )
        except sqlite3.DatabaseError as error:
            raise self._fault(error) from error
        except OSError as error:
            raise self._fault(error) from error

    def _fault(self, error: BaseException) -> EnvironmentFault:
        text = str(error)
        if "not a database" in text or "malformed" in text:
            return EnvironmentFault(
                f"the store {self.path} is damaged: {text}",
                f"delete it (rm {self.path}*) and run again; it only holds what can be computed anew",
            )
        if "full" in text or getattr(error, "errno", None) == 28:
            return EnvironmentFault(
                f"no space left for the store {self.folder}",
                "free some space, or name another folder with --cache DIR; then run the same command again, nothing is lost",
            )
        return EnvironmentFault(
            f"the store {self.folder} cannot be used: {text}", "name a folder that you can write to with --cache DIR"
        )

    # -- reading -----------------------------------------------------------------------------------------------
    def get(self, key: str) -> bytes | None:
        """The artefact's bytes, or None where there is none (or it is damaged)."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Those of ``keys`` that are there and whole."""
        found: dict[str, bytes] = {}
        for k, digest, data in self._rows(keys, "key, sha256, data"):
            if data is None:
                try:
                    data = self._file(k).read_bytes()
                except OSError:
                    data = b""
            if hashlib.sha256(data).digest() != digest:
                self.damaged += 1
                continue
            found[k] = data
        return found

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that were stored (without reading or checking them)."""
        return {row[0] for row in self._rows(keys, "key")}

    def _rows(self, keys: Iterable[str], columns: str) -> list[tuple[Any, ...]]:
        wanted = list(dict.fromkeys(keys))
        rows: list[tuple[Any, ...]] = []
        try:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                rows += self._db.execute(f"SELECT {columns} FROM artefact WHERE key IN ({marks})", part).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._fault(error) from error
        return rows

    def _file(self, k: str) -> Path:
        return self.objects / k[:2] / k[2:]

    # -- writing -----------------------------------------------------------------------------------------------
    def put(self, key: str, data: bytes) -> None:
        self.put_many({key: data})

    def put_many(self, artefacts: Mapping[str, bytes]) -> None:
        """Stores all of them, or (killed, disk full) none that a reader would see half of.  Overwrites."""
        rows = []
        try:
            for k, data in artefacts.items():
                inline = len(data) <= INLINE_BYTES
                if not inline:
                    self._write_file(self._file(k), data)
                rows.append((k, hashlib.sha256(data).digest(), len(data), data if inline else None, time.time()))
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO artefact VALUES (?, ?, ?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._fault(error) from error

    @staticmethod
    def _write_file(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    # -- housekeeping ------------------------------------------------------------------------------------------
    def info(self) -> dict[str, int]:
        """Number of artefacts, bytes in them, and free bytes on the disk."""
        count, size = self._db.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM artefact").fetchone()
        return {"artefacts": count, "bytes": size, "free": shutil.disk_usage(self.folder).free}

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
