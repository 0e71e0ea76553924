"""The store: content-addressed artefacts, written atomically, safe for several processes and for being killed.

Small artefacts (faces, embeddings, numbers) live in one SQLite file in WAL mode: a batch is one transaction, so it is
there whole or not at all, even after ``kill -9``.  Large ones (pictures of photographs) are files, written to a
temporary name, synced and renamed, and entered in SQLite afterwards.  Every artefact is kept with the SHA-256 of its
bytes and checked when it is read; a damaged one is taken out, counts as absent, and is computed again.

Beside the artefacts the file holds what is known of them: of which kind they are and by which method (table ``about``), and
which runs asked for them (table ``run``).  Nothing but ``deidbench cache`` reads that (:mod:`deidbench.housekeeping`).  It is in
tables of its own, so that an older deidbench goes on using the same store.

On a network drive, where WAL does not work between machines, SQLite's rollback journal is used instead.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from deidbench.errors import EnvironmentFault, InputError
from deidbench.lock import FileLock, holders, on_network

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")

#: Larger artefacts become files.
INLINE_BYTES = 128 * 1024
#: Part of the file name: a store of another layout is never misread, only left alone.
LAYOUT = 1
#: Of the tables beside ``artefact``; made where they are missing.
TABLES = 1
#: Seconds for which a database that another process holds is waited for.
PATIENCE = 180.0
#: Held, shared, by every open store; whoever deletes takes it alone.
IN_USE = "in-use.lock"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS artefact (key TEXT PRIMARY KEY, sha256 BLOB NOT NULL, size INTEGER NOT NULL, "
    "data BLOB, made REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS origin (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, method TEXT NOT NULL, "
    "UNIQUE (kind, method))",
    # size and time once more: beside the artefact they lie behind its bytes, and all of those would have to be read
    "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, origin INTEGER NOT NULL, size INTEGER NOT NULL, made REAL NOT NULL) "
    "WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS run (turn INTEGER PRIMARY KEY AUTOINCREMENT, folder TEXT NOT NULL, suite TEXT NOT NULL, "
    "started REAL NOT NULL, used REAL NOT NULL, methods TEXT NOT NULL, keys BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL)",
    f"PRAGMA user_version = {TABLES}",
)


class Key(str):
    """The key of an artefact, with what it says of it.

    kind: of artefact.  method: fingerprint of the method that it comes from, "" where it comes from none.
    """

    __slots__ = ("kind", "method")

    kind: str
    method: str

    def __new__(cls, text: str, kind: str = "", method: str = "") -> Key:
        self = super().__new__(cls, text)
        self.kind, self.method = kind, method
        return self

    def by(self, method: str) -> Key:
        """The same key of an artefact that comes from ``method`` (a fingerprint)."""
        return Key(self, self.kind, method)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return (Key, (str(self), self.kind, self.method))


def key(kind: str, **parts: Any) -> Key:
    """Key of an artefact: hex hash over ``kind`` and all that determines it, independent of the order of ``parts``.

    Values must be JSON-serialisable (numbers, strings, lists, mappings); anything else is a TypeError, because a
    silent ``repr`` with a memory address in it would never hit.  The method is the part of that name, or that of an
    artefact among the parts.
    """
    text = json.dumps([kind, parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    method = parts.get("method")
    if not isinstance(method, str):
        method = next((p.method for p in parts.values() if isinstance(p, Key) and p.method), "")
    return Key(hashlib.sha256(text.encode()).hexdigest(), kind, method)


def default_folder() -> Path:
    """``$DEIDBENCH_CACHE`` or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("DEIDBENCH_CACHE") or platformdirs.user_cache_dir("deidbench"))


def short(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The first 40 bits of every key, sorted, each once.

    That two of a million keys share them has a chance of one in two; then one artefact too many is kept, never one too few.
    """
    import numpy as np

    try:
        data = bytes.fromhex("".join([k[:10] for k in keys]))
        if len(data) != 5 * len(keys):
            raise ValueError
    except ValueError:  # keys that are no hashes
        data = b"".join(hashlib.sha256(k.encode()).digest()[:5] for k in keys)
    wide = np.zeros((len(keys), 8), np.uint8)
    wide[:, 3:] = np.frombuffer(data, np.uint8).reshape(-1, 5)
    numbers: npt.NDArray[np.uint64] = np.unique(wide.view(">u8").astype(np.uint64).ravel())
    return numbers


class Turn(NamedTuple):
    """A run as the store knows it.  store: identity of the store.  turn: counts its runs, whatever the clock says."""

    store: str
    turn: int


class Artefacts(Protocol):
    """What workers ask of whatever holds the artefacts: a :class:`Store`, or one on another machine.

    damaged: artefacts that were found damaged through this object, and count as absent.
    """

    damaged: int

    def get(self, key: str) -> bytes | None: ...

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]: ...

    def present(self, keys: Iterable[str]) -> set[str]: ...

    def put_many(self, artefacts: Mapping[str, bytes]) -> None: ...

    def close(self) -> None: ...


class Store:
    """A store in ``folder`` (made on first use).  Not to be shared between threads or pickled; open one per process.

    remember: note which keys are asked for, for :meth:`finish_run`.  alone: nobody else may have it open; raises InputError
    where somebody has.
    """

    def __init__(self, folder: Path, *, remember: bool = False, alone: bool = False) -> None:
        self.folder = Path(folder)
        self.objects = self.folder / "objects"
        self.path = self.folder / f"store-v{LAYOUT}.sqlite"
        #: Artefacts that were found damaged, and taken out.
        self.damaged = 0
        self._asked: list[list[str]] | None = [] if remember else None
        self._origins: dict[tuple[str, str], int] = {}
        self._lock = FileLock(self.folder / IN_USE)
        try:
            self.objects.mkdir(parents=True, exist_ok=True)
            if not alone:
                self._wait(lambda: self._lock.acquire(shared=True) or None)
            elif not self._lock.acquire():
                raise in_use(self.folder)
            self._db = self._patiently(self._open)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, sqlite3.DatabaseError | OSError):
                raise self._fault(error) from error
            raise

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=PATIENCE / 3, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema=OFF")
            if on_network(self.folder):
                with contextlib.suppress(
                    sqlite3.OperationalError
                ):  # one that is in use keeps its mode until nobody has it open
                    db.execute("PRAGMA journal_mode=DELETE")
            else:
                db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            if db.execute("PRAGMA user_version").fetchone()[0] < TABLES:
                db.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute("INSERT INTO identity SELECT lower(hex(randomblob(8))) WHERE NOT EXISTS (SELECT 1 FROM identity)")
                db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _wait(self, take: Callable[[], T | None]) -> T:
        """What ``take`` gives once it gives something: somebody may be pruning.  Raises EnvironmentFault after a while."""
        end = time.monotonic() + PATIENCE
        while (got := take()) is None:
            if time.monotonic() > end:
                raise EnvironmentFault(
                    f"the store {self.folder} is being pruned or cleared by another process",
                    "wait until it is done, or name another folder with --cache DIR",
                )
            time.sleep(0.1)
        return got

    @staticmethod
    def _patiently(work: Callable[[], T]) -> T:
        """``work()``, tried again while another process holds the database.

        SQLite itself waits in most places, but not where it sees a deadlock coming or recovers after a crash.
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if not _busy(error) or time.monotonic() > end:
                    raise
            time.sleep(random.uniform(0.01, 0.1))

    def _fault(self, error: BaseException) -> EnvironmentFault:
        text = str(error)
        if "not a database" in text or "malformed" in text:
            return EnvironmentFault(
                f"the store {self.path} is damaged: {text}",
                f"deidbench cache verify --delete --cache {self.folder} saves what can be read; or start anew with "
                f"rm {self.path}*: it only holds what can be computed again",
            )
        if isinstance(error, sqlite3.OperationalError) and _busy(error):
            return EnvironmentFault(
                f"the store {self.folder} is locked: another process has held it for {PATIENCE:.0f} s",
                "wait for the other run and try again, nothing is lost.  On a network drive the lock of a machine that died "
                "can stay behind: see that no run is left, have the drive's lock service restarted, or move to a local folder "
                "with --cache DIR",
            )
        number = getattr(error, "errno", None)
        if isinstance(error, sqlite3.DatabaseError) and "full" not in text and "I/O" in text:
            number, text = self._refusal(text)  # SQLite says no more than that of a quota, or of a limit on files
        if "full" in text or number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return EnvironmentFault(
                f"no space left for the store {self.folder}" + (f" ({text})" if number else ""),
                "free some space (deidbench cache prune), or name another folder with --cache DIR; then run the same command "
                "again, nothing is lost",
            )
        return EnvironmentFault(
            f"the store {self.folder} cannot be used: {text}",
            "name a folder that you can write to with --cache DIR, or make this one writable; what is in it is not touched",
        )

    def _refusal(self, text: str) -> tuple[int | None, str]:
        """What the operating system says to a write as large as the database's next one would be, else ``text``."""
        probe = self.folder / f".tmp-probe-{os.getpid()}"
        try:
            size = max(p.stat().st_size for p in self.folder.glob(f"{self.path.name}*")) if self.path.exists() else 0
            with probe.open("wb", buffering=0) as file:
                file.seek(size)
                file.write(bytes(1 << 16))
                os.fsync(file.fileno())
        except OSError as error:
            return error.errno, f"{text}: {error.strerror}"
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        return None, text

    # -- reading -----------------------------------------------------------------------------------------------
    def get(self, key: str) -> bytes | None:
        """The artefact's bytes, or None where there is none (or it is damaged)."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str], *, note: bool = True) -> dict[str, bytes]:
        """Those of ``keys`` that are there and whole.  note: they count as asked for."""
        found: dict[str, bytes] = {}
        wrong: dict[str, bytes] = {}
        for k, digest, data in self._rows(keys, "key, sha256, data", note=note):
            if (whole := self._whole(k, digest, data)) is None:
                wrong[k] = digest
            else:
                found[k] = whole
        # Another process may have replaced an artefact between our looking at its row and reading its file.
        for k, digest, data in self._rows(wrong, "key, sha256, data", note=False) if wrong else ():
            if digest != wrong[k] and (whole := self._whole(k, digest, data)) is not None:
                found[k] = whole
                continue
            self.damaged += 1
            self._take_out(k, digest)
        return found

    def check_asked(self) -> None:
        """Looks at everything that was asked for so far (of a store that remembers), and takes out what is damaged."""
        for part in list(self._asked or ()):
            for start in range(0, len(part), 100):  # pictures may be large
                self.get_many(part[start : start + 100], note=False)

    def _whole(self, k: str, digest: bytes, data: bytes | None) -> bytes | None:
        """An artefact's bytes, None unless they have the hash."""
        if data is not None:
            return data if hashlib.sha256(data).digest() == digest else None
        for path in (self._file(k, digest), self._old_file(k)):
            try:
                data = path.read_bytes()
            except OSError:
                continue
            if hashlib.sha256(data).digest() == digest:
                return data
        return None

    def _take_out(self, k: str, digest: bytes) -> None:
        """A damaged artefact must not be counted as present, or it would never be made anew."""

        def delete() -> None:
            if self._db.execute("DELETE FROM artefact WHERE key = ? AND sha256 = ?", (str(k), digest)).rowcount:
                self._db.execute("DELETE FROM about WHERE key = ?", (str(k),))

        with contextlib.suppress(sqlite3.OperationalError):  # it counts as absent either way
            self.at_once(delete)

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that were stored (without reading or checking them)."""
        return {row[0] for row in self._rows(keys, "key")}

    def _rows(self, keys: Iterable[str], columns: str, *, note: bool = True) -> list[tuple[Any, ...]]:
        wanted = list(dict.fromkeys(keys))
        if note and self._asked is not None:
            self._asked.append(wanted)
        rows: list[tuple[Any, ...]] = []
        try:
            for start in range(0, len(wanted), 500):
                part = [str(k) for k in wanted[start : start + 500]]
                marks = ",".join("?" * len(part))
                question = f"SELECT {columns} FROM artefact WHERE key IN ({marks})"
                rows += self._patiently(lambda q=question, p=part: self._db.execute(q, p).fetchall())  # type: ignore[misc]
        except sqlite3.DatabaseError as error:
            raise self._fault(error) from error
        return rows

    def _file(self, k: str, digest: bytes) -> Path:
        # Named after what is in it too: two processes that write other bytes under one key do not mix theirs.
        return self.objects / k[:2] / f"{k[2:]}-{digest[:8].hex()}"

    def _old_file(self, k: str) -> Path:
        """Where older versions put it."""
        return self.objects / k[:2] / k[2:]

    # -- writing -----------------------------------------------------------------------------------------------
    def put(self, key: str, data: bytes) -> None:
        self.put_many({key: data})

    def put_many(self, artefacts: Mapping[str, bytes]) -> None:
        """Stores all of them, or (killed, disk full) none that a reader would see half of.  Overwrites."""
        rows = []
        try:
            for k, data in artefacts.items():
                digest = hashlib.sha256(data).digest()
                inline = len(data) <= INLINE_BYTES
                if not inline:
                    self._write_file(self._file(k, digest), data)
                rows.append((str(k), digest, len(data), data if inline else None, time.time()))
            known = [(k, r[2], r[4]) for k, r in zip(artefacts, rows, strict=True) if isinstance(k, Key) and k.kind]

            def write() -> None:
                self._db.executemany("INSERT OR REPLACE INTO artefact VALUES (?, ?, ?, ?, ?)", rows)
                self._tell(known)

            self.at_once(write)
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._fault(error) from error

    def ask(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Lines of the database.  Raises EnvironmentFault."""
        try:
            return self._patiently(lambda: self._db.execute(sql, parameters).fetchall())
        except sqlite3.DatabaseError as error:
            raise self._fault(error) from error

    def at_once(self, work: Callable[[], T]) -> T:
        """``work()`` as one transaction."""

        def whole() -> T:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                done = work()
                self._db.execute("COMMIT")
            except BaseException:
                self._origins.clear()  # may name lines that are not there
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return done

        return self._patiently(whole)

    def _tell(self, artefacts: Sequence[tuple[Key, int, float]]) -> None:
        """Notes kind, method, size and time of artefacts, within a transaction."""
        for origin in {(k.kind, k.method) for k, _, _ in artefacts} - self._origins.keys():
            self._db.execute("INSERT OR IGNORE INTO origin (kind, method) VALUES (?, ?)", origin)
            [(number,)] = self._db.execute("SELECT id FROM origin WHERE kind = ? AND method = ?", origin)
            self._origins[origin] = number
        self._db.executemany(
            "INSERT OR REPLACE INTO about VALUES (?, ?, ?, ?)",
            [(str(k), self._origins[k.kind, k.method], size, made) for k, size, made in artefacts],
        )

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

    # -- which run uses what -----------------------------------------------------------------------------------
    def begin_run(self, folder: Path, suite: str) -> Turn:
        """Notes that a run into ``folder`` starts; its turn tells the order of runs whatever the clock says."""
        now = time.time()

        def write() -> Turn:
            turn = self._db.execute(
                "INSERT INTO run (folder, suite, started, used, methods, keys) VALUES (?, ?, ?, ?, '{}', ?)",
                (str(Path(folder).resolve()), suite, now, now, b""),
            ).lastrowid
            [(identity,)] = self._db.execute("SELECT id FROM identity LIMIT 1")
            return Turn(str(identity), int(turn or 0))

        try:
            with tempfile.TemporaryFile(dir=self.objects):  # told now, and not when the first large picture is there
                pass
            return self.at_once(write)
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._fault(error) from error

    def finish_run(self, turn: Turn, methods: Mapping[str, str], replaces: Turn | None = None) -> None:
        """Notes which artefacts the run asked for so far (of a store that remembers).

        methods: fingerprint -> label.  replaces: the run that was in the same folder before.
        """
        asked = list(dict.fromkeys(k for part in self._asked or () for k in part))
        keys = short(asked).astype(">u8").tobytes() if asked else b""
        try:
            [(told, there)] = self.ask("SELECT (SELECT COUNT(*) FROM about), (SELECT COUNT(*) FROM artefact)")
            # of artefacts of an older version it is known now what they are
            untold = self._untold(asked) if told < there else []

            def write() -> None:
                self._tell(untold)
                self._db.execute(
                    "UPDATE run SET used = ?, methods = ?, keys = ? WHERE turn = ?",
                    (time.time(), json.dumps(dict(methods)), keys, turn.turn),
                )
                # one that was killed on the way left nothing but its line
                self._db.execute(
                    "DELETE FROM run WHERE keys = x'' AND turn < ? AND folder = (SELECT folder FROM run WHERE turn = ?)",
                    (turn.turn, turn.turn),
                )
                if replaces is not None and replaces.store == turn.store:
                    self._db.execute("DELETE FROM run WHERE turn = ? AND turn < ?", (replaces.turn, turn.turn))

            self.at_once(write)
        except sqlite3.DatabaseError as error:
            raise self._fault(error) from error

    def _untold(self, asked: Sequence[str]) -> list[tuple[Key, int, float]]:
        """Artefacts of which nothing was noted yet: key, size, time."""
        known = {str(k): k for k in asked if isinstance(k, Key) and k.kind}
        out = []
        keys = list(known)
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            out += self.ask(
                f"SELECT key, size, made FROM artefact WHERE key IN ({marks}) AND key NOT IN (SELECT key FROM about)", part
            )
        return [(known[k], size, made) for k, size, made in out]

    # -- housekeeping ------------------------------------------------------------------------------------------
    def info(self) -> dict[str, int]:
        """Number of artefacts, bytes in them, and free bytes on the disk."""
        import shutil

        [(count, size)] = self.ask("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM artefact")
        return {"artefacts": count, "bytes": size, "free": shutil.disk_usage(self.folder).free}

    def close(self) -> None:
        self._db.close()
        self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def in_use(folder: Path) -> InputError:
    """The error for a store that is to be changed by one who must be alone, and is not."""
    others = ", ".join(map(str, holders(folder / IN_USE)))
    return InputError(
        f"the store {folder} is in use{f' (process {others})' if others else ''}",
        "wait until the runs that use it are done; nothing was changed",
    )


def _busy(error: sqlite3.Error) -> bool:
    """Is it only that another process is at it?"""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")) or "locked" in str(error)
