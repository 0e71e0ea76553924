"""Looking after the store: what is in it, what may go, whether it is whole (``deidbench cache``).

What goes is always the least recently used first.  An artefact was last used when it was made, or when the last run that asked for it
was done: the store knows of every run which artefacts it asked for, so that reading them costs no writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.cache import IN_USE, LAYOUT, Store, in_use, short
from deidbench.errors import EnvironmentFault, InputError, MissingError
from deidbench.lock import FileLock, file_system, holders

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from deidbench.progress import Ticker

Progress = Callable[[str, int], AbstractContextManager["Ticker"]]

#: What an artefact takes on the disk beside its bytes: 18,000 of the demo's, 114 MB, took 126 MB.
OVERHEAD = 650
#: Seconds for which a file without a line in the database may still belong to somebody who is about to write that line.
IN_FLIGHT = 3600.0
#: Artefacts that are read at a time when all are checked.
PORTION = 200


def there(folder: Path) -> Path:
    """The database of the store in ``folder``.  Raises MissingError where there is none."""
    path = Path(folder) / f"store-v{LAYOUT}.sqlite"
    if not path.is_file():
        raise MissingError(f"there is no store in {folder}", "a run makes one; --cache DIR names another folder")
    return path


# --- sizes and ages in words


def size_of(text: str, option: str = "--max-size") -> int:
    """``500MB``, ``20 GB``, ``1.5TiB`` or a number of bytes.  Raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"{option} {text!r} is no size", f"e.g. {option} 20GB or {option} 500MB")
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def age_of(text: str, option: str = "--older-than") -> float:
    """Seconds: ``30d``, ``12h``, ``4w``, ``90min``.  Raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(min|h|d|w)\s*", text)
    if match is None:
        raise InputError(f"{option} {text!r} is no age", f"e.g. {option} 30d, 12h or 4w")
    return float(match[1]) * {"min": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]


def said(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


# --- what is in it


def overview(folder: Path) -> dict[str, Any]:
    """What ``deidbench cache info`` shows.  Raises MissingError where there is no store."""
    path = there(folder)
    now = time.time()
    with Store(folder) as store:
        [(count, size, in_files)] = store.ask(
            "SELECT COUNT(*), COALESCE(SUM(size), 0), COALESCE(SUM(CASE WHEN data IS NULL THEN size END), 0) FROM artefact"
        )
        lines = store.ask(
            "SELECT o.kind, o.method, COUNT(*), SUM(b.size), MIN(b.made), MAX(b.made), SUM(b.made > ?) FROM about b "
            "JOIN origin o ON o.id = b.origin WHERE EXISTS (SELECT 1 FROM artefact a WHERE a.key = b.key) GROUP BY 1, 2",
            [now + 60],
        )
        [(journal,)] = store.ask("PRAGMA journal_mode")
        [(page,)], [(unused,)] = store.ask("PRAGMA page_size"), store.ask("PRAGMA freelist_count")
        runs = _runs(store)
        keys = _keys(store) if any(r.keys.size for r in runs) else []
        held = short([k for k, *_ in keys]) if keys else None
        using = [int(_among(r.keys, held).sum()) if held is not None and r.keys.size else 0 for r in runs]
    labels: dict[str, set[str]] = {}
    for r in runs:
        for fingerprint, label in r.methods.items():
            labels.setdefault(fingerprint, set()).add(label)
    kinds: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, Any]] = {}
    for kind, method, n, total, oldest, newest, _ in lines:
        of_kind = kinds.setdefault(kind, {"kind": kind, "artefacts": 0, "bytes": 0, "oldest": oldest, "newest": newest})
        of_kind["oldest"], of_kind["newest"] = min(of_kind["oldest"], oldest), max(of_kind["newest"], newest)
        of_method = methods.setdefault(
            method, {"fingerprint": method, "labels": sorted(labels.get(method, ())), "artefacts": 0, "bytes": 0}
        )
        for entry in (of_kind, *([of_method] if method else [])):
            entry["artefacts"] += n
            entry["bytes"] += total
    told = sum(k["artefacts"] for k in kinds.values())
    others = {p.name: _below(p) for p in sorted(Path(folder).iterdir()) if p.is_dir() and p.name != "objects"}
    return {
        "folder": str(folder), "file_system": file_system(folder), "journal": journal, "layout": LAYOUT, "artefacts": count, "bytes": size,
        "disk_bytes": sum(f.stat().st_size for f in Path(folder).glob(f"{path.name}*")) + in_files, "reclaimable_bytes": page * unused,
        "free_bytes": shutil.disk_usage(folder).free, "unknown": max(count - told, 0), "future": sum(x[6] or 0 for x in lines),
        "oldest": min((k["oldest"] for k in kinds.values()), default=None), "newest": max((k["newest"] for k in kinds.values()), default=None),
        "kinds": sorted(kinds.values(), key=lambda k: -k["bytes"]),
        "methods": sorted((m for f, m in methods.items() if f), key=lambda m: -m["bytes"]),
        "runs": [
            {"turn": r.turn, "folder": r.folder, "suite": r.suite, "used": r.used, "artefacts": n, "there": r.there}
            for r, n in zip(runs, using, strict=True)
        ],
        "in_use_by": [p for p in holders(Path(folder) / IN_USE) if p != os.getpid()], "other_folders": others,
    }  # fmt: skip


def _below(folder: Path) -> int:
    """Bytes of the files in a folder tree."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


@dataclass(frozen=True, eq=False)
class _Use:
    """A run as the store knows it."""

    turn: int
    folder: str
    suite: str
    used: float
    methods: dict[str, str]
    keys: npt.NDArray[np.uint64]

    @property
    def there(self) -> bool:
        """Is its result still where it was written?"""
        return (Path(self.folder) / "run.json").is_file()


def _runs(store: Store) -> list[_Use]:
    import numpy as np

    rows = store.ask("SELECT turn, folder, suite, used, methods, keys FROM run ORDER BY turn")
    return [_Use(t, f, s, u, json.loads(m), np.frombuffer(k, ">u8").astype(np.uint64)) for t, f, s, u, m, k in rows]


def _among(these: npt.NDArray[np.uint64], those: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of ``those`` are among ``these`` (both as :func:`~deidbench.cache.short` gives them)."""
    import numpy as np

    return np.isin(those, these)


def _keys(store: Store) -> list[tuple[str, int, float]]:
    """(key, size, time of making) of all artefacts."""
    known = store.ask("SELECT key, size, made FROM about b WHERE EXISTS (SELECT 1 FROM artefact a WHERE a.key = b.key)")
    return known + store.ask("SELECT key, size, made FROM artefact WHERE key NOT IN (SELECT key FROM about)")


# --- what may go


@dataclass(frozen=True)
class Pruning:
    """What is to go.  size: bytes of it.  left: bytes that stay.  kept: bytes that --max-size would have taken but the runs use."""

    keys: list[str]
    size: int
    artefacts_left: int
    left: int
    kept: int = 0


def plan(
    store: Store,
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    unused_by: Sequence[Path] = (),
    now: float | None = None,
) -> Pruning:
    """Which artefacts go.

    older_than: seconds since an artefact was last used.  unused_by: runs; what they use stays in any case.  Where both are given an
    artefact must be both old and unused.  max_size: bytes; of what is left then, the least recently used go until the store is
    no larger.  Raises InputError for a run of which the store does not know what it uses.
    """
    import numpy as np

    now = time.time() if now is None else now
    rows = _keys(store)
    runs = _runs(store)
    if not rows:
        return Pruning([], 0, 0, 0)
    names = [k for k, *_ in rows]
    size = np.array([s + OVERHEAD for _, s, _ in rows], np.int64)
    used = np.array([m for *_, m in rows], np.float64)
    numbers = _numbers(names)
    for run in runs:
        hit = np.isin(numbers, run.keys)
        used[hit] = np.maximum(used[hit], run.used)
    used = np.minimum(used, now)  # a clock that was ahead makes nothing immortal
    protected = np.zeros(len(rows), np.bool_)
    for folder in unused_by:
        protected |= np.isin(numbers, _uses(store, runs, folder).keys)
    goes = np.zeros(len(rows), np.bool_)
    if older_than is not None or unused_by:
        goes = ~protected
        if older_than is not None:
            goes &= now - used > older_than
    kept = 0
    if max_size is not None:
        left = int(size[~goes].sum())
        for i in np.argsort(used, kind="stable"):
            if left <= max_size:
                break
            if goes[i]:
                continue
            if protected[i]:
                kept += int(size[i])
                continue
            goes[i] = True
            left -= int(size[i])
        kept = min(kept, max(left - max_size, 0))
    return Pruning(
        [names[i] for i in np.flatnonzero(goes)], int(size[goes].sum()), int((~goes).sum()), int(size[~goes].sum()), kept
    )


def _numbers(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """:func:`~deidbench.cache.short` of each, in their order."""
    import numpy as np

    return np.array([short([k])[0] for k in keys], np.uint64) if any(len(k) != 64 for k in keys) else _hex(keys)


def _hex(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    import numpy as np

    return np.array([int(k[:10], 16) for k in keys], np.uint64)


def _uses(store: Store, runs: Sequence[_Use], folder: Path) -> _Use:
    """What the run in ``folder`` uses.  Raises InputError where the store does not know."""
    from deidbench.records import read_record

    record = read_record(folder).get("run")
    said = record.get("store") if isinstance(record, dict) else None
    [(identity,)] = store.ask("SELECT id FROM identity LIMIT 1")
    if isinstance(said, dict) and said.get("store") == identity:
        found = [r for r in runs if r.turn == said.get("turn")]
    else:
        found = [r for r in runs if not isinstance(said, dict) and r.folder == str(Path(folder).resolve())]
    if not found or not found[-1].keys.size:
        raise InputError(
            f"this store does not know what {folder} uses: the run was made with another store, or by an older deidbench",
            "run its command again with --out and --cache as they were (nothing is computed anew), then prune; or leave it out",
        )
    return found[-1]


def delete(store: Store, keys: Sequence[str], progress: Progress | None = None) -> int:
    """Deletes artefacts; returns the bytes that the folder takes less.  The store must be open alone."""
    before = _taken(store)
    with _ticker(progress, "delete", len(keys)) as tick:
        for start in range(0, len(keys), 500):
            part = [(k,) for k in keys[start : start + 500]]

            def work(part: list[tuple[str]] = part) -> None:
                store._db.executemany("DELETE FROM artefact WHERE key = ?", part)
                store._db.executemany("DELETE FROM about WHERE key = ?", part)

            store.at_once(work)
            for (k,) in part:
                for file in (store.objects / k[:2]).glob(f"{k[2:]}*"):
                    file.unlink(missing_ok=True)
            tick(len(part))
    _forget(store)
    _shrink(store)
    return max(before - _taken(store), 0)


def _forget(store: Store) -> None:
    """Drops runs whose results are gone and of whose artefacts nothing is left."""
    keys = short([k for k, *_ in _keys(store)] or [""])
    gone = [(r.turn,) for r in _runs(store) if not r.there and not _among(keys, r.keys).any()]
    store.at_once(lambda: store._db.executemany("DELETE FROM run WHERE turn = ?", gone))


def _shrink(store: Store) -> None:
    """Gives the disk back what the database has no use for, where there is room for the copy that this takes."""
    [(page,)], [(unused,)], [(pages,)] = (store.ask(f"PRAGMA {p}") for p in ("page_size", "freelist_count", "page_count"))
    if unused > 0.05 * pages and shutil.disk_usage(store.folder).free > 2.2 * page * (pages - unused):
        store.ask("VACUUM")
    store.ask("PRAGMA wal_checkpoint(TRUNCATE)")


def _taken(store: Store) -> int:
    return _below(store.objects) + sum(f.stat().st_size for f in store.folder.glob(f"{store.path.name}*"))


@contextlib.contextmanager
def _ticker(progress: Progress | None, title: str, total: int) -> Iterator[Callable[[int], None]]:
    if progress is None:
        yield lambda done: None
        return
    with progress(title, total) as tick:
        yield tick


def clear(folder: Path) -> int:
    """Deletes the whole store; returns the bytes that it took.  Raises InputError where somebody has it open."""
    path = there(folder)
    lock = FileLock(Path(folder) / IN_USE)
    if not lock.acquire():
        raise in_use(Path(folder))
    try:
        objects = Path(folder) / "objects"
        files = sorted(Path(folder).glob(f"{path.name}*"))
        size = _below(objects) + sum(f.stat().st_size for f in files)
        for file in files:
            file.unlink()
        shutil.rmtree(objects, ignore_errors=True)
        return size
    except OSError as error:
        raise EnvironmentFault(f"{folder} cannot be cleared: {error}", "check its permissions") from error
    finally:
        lock.release(remove=True)


# --- is it whole?


@dataclass(frozen=True)
class Damage:
    """An artefact that is not what it was.  what: in words."""

    key: str
    kind: str
    method: str
    size: int
    what: str


@dataclass
class Findings:
    """What ``deidbench cache verify`` found.

    structure: what SQLite says of the database, "" where it is whole.  orphans: files of the store that nobody owns.
    saved, lost: artefacts that could, and could not, be taken over from a damaged database (with ``delete``).
    """

    checked: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    structure: str = ""
    deleted: bool = False
    saved: int = 0
    lost: int = 0

    @property
    def whole(self) -> bool:
        return not self.damaged and not self.structure


def verify(folder: Path, *, delete: bool = False, progress: Progress | None = None) -> Findings:
    """Reads every artefact and compares its SHA-256.

    delete: takes out what is damaged, so that it is computed anew, and files that nobody owns; a damaged database is made anew from
    what can be read of it.  Raises MissingError where there is no store, InputError where a damaged database is in use.
    """
    there(folder)
    found = Findings(deleted=delete)
    try:
        with Store(folder) as store:
            [(structure,), *_] = store.ask("PRAGMA integrity_check(1)")
            if structure != "ok":
                raise EnvironmentFault(structure)
            _check(store, found, delete, progress)
            _orphans(store, found, delete)
    except EnvironmentFault as error:
        if not _broken(folder):
            raise
        found.structure = error.message
        if delete:
            found.saved, found.lost = salvage(folder, progress)
            again = verify(folder, delete=True, progress=progress)
            found.checked, found.bytes, found.damaged, found.orphans = again.checked, again.bytes, again.damaged, again.orphans
    return found


def _broken(folder: Path) -> bool:
    """Is it the database itself that is damaged?"""
    try:
        db = sqlite3.connect(there(folder), timeout=60)
        try:
            return bool(db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok")
        finally:
            db.close()
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def _check(store: Store, found: Findings, delete: bool, progress: Progress | None) -> None:
    [(total,)] = store.ask("SELECT COUNT(*) FROM artefact")
    last = 0
    with _ticker(progress, "check the store", total) as tick:
        while rows := store.ask(
            "SELECT rowid, key, sha256, size, data FROM artefact WHERE rowid > ? ORDER BY rowid LIMIT ?", [last, PORTION]
        ):
            for _, k, digest, size, data in rows:
                found.checked += 1
                found.bytes += size
                if store._whole(k, digest, data) is not None:
                    continue
                if store.ask("SELECT sha256 FROM artefact WHERE key = ?", [k]) != [(digest,)]:
                    continue  # replaced, or taken out, by another process meanwhile
                missing = data is None and not store._file(k, digest).exists() and not store._old_file(k).exists()
                kind, method = _origin(store, k)
                found.damaged.append(
                    Damage(k, kind, method, size, "its file is missing" if missing else "its bytes do not have their SHA-256")
                )
                if delete:
                    store._take_out(k, digest)
                    for file in (store._file(k, digest), store._old_file(k)):
                        file.unlink(missing_ok=True)
            last = rows[-1][0]
            tick(len(rows))


def _origin(store: Store, k: str) -> tuple[str, str]:
    rows = store.ask("SELECT o.kind, o.method FROM about b JOIN origin o ON o.id = b.origin WHERE b.key = ?", [k])
    return (str(rows[0][0]), str(rows[0][1])) if rows else ("", "")


def _orphans(store: Store, found: Findings, delete: bool) -> None:
    """Files of the store without a line in the database: of a process that was killed, or replaced since."""
    names = {(k, d[:8].hex()) for k, d in store.ask("SELECT key, sha256 FROM artefact WHERE data IS NULL")}
    known = {k for k, _ in names}
    now = time.time()
    for file in store.objects.glob("*/*"):
        key, _, digest = (file.parent.name + file.name).partition("-")
        if (key, digest) in names or (not digest and key in known):
            continue
        with contextlib.suppress(OSError):
            if now - file.stat().st_mtime < IN_FLIGHT:
                continue
            found.orphans.append(file)
            if delete:
                file.unlink()


def salvage(folder: Path, progress: Progress | None = None) -> tuple[int, int]:
    """Makes a damaged database anew from what can be read of it and is whole.

    Returns how many artefacts were saved, and how many of those that were still to be seen were not.  Raises InputError where
    somebody has the store open.
    """
    path = there(folder)
    lock = FileLock(Path(folder) / IN_USE)
    if not lock.acquire():
        raise in_use(Path(folder))
    fresh = path.with_name(f"salvage-{os.getpid()}")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        saved = lost = 0
        with Store(fresh) as store:
            store.objects.rmdir()
            store.objects = Path(folder) / "objects"  # files stay where they are
            for rows in _readable(path):
                good = [r for r in rows if _sound(store, r)]
                saved, lost = saved + len(good), lost + len(rows) - len(good)

                def write(good: list[tuple[Any, ...]] = good) -> None:
                    store._db.executemany("INSERT OR REPLACE INTO artefact VALUES (?, ?, ?, ?, ?)", good)

                store.at_once(write)
            for table, columns in (("origin", 3), ("about", 4), ("run", 7)):
                with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(_reading(path)) as old:
                    known = old.execute(f"SELECT * FROM {table}").fetchall()
                    insert = f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * columns)})"

                    def copy(insert: str = insert, known: list[tuple[Any, ...]] = known) -> None:
                        store._db.executemany(insert, known)

                    store.at_once(copy)
            with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(_reading(path)) as old:
                [identity] = old.execute("SELECT id FROM identity").fetchall()
                store.at_once(lambda: store._db.execute("UPDATE identity SET id = ?", identity))
            store.at_once(lambda: store._db.execute("DELETE FROM about WHERE key NOT IN (SELECT key FROM artefact)"))
            store.ask("PRAGMA wal_checkpoint(TRUNCATE)")
        for file in path.parent.glob(f"{path.name}-*"):
            file.unlink()
        (fresh / path.name).replace(path)
        return saved, lost
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        lock.release()


def _reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def _readable(path: Path) -> Iterator[list[tuple[Any, ...]]]:
    """Lines of the table ``artefact`` of a damaged database, as far as they can be read."""
    start, stride, end = 1, 1, None
    while end is None or start <= end:
        got: list[tuple[Any, ...]] = []
        try:
            with contextlib.closing(_reading(path)) as db:
                db.text_factory = lambda b: b.decode("utf-8", "replace")
                if end is None:
                    with contextlib.suppress(sqlite3.DatabaseError):
                        end = db.execute("SELECT MAX(rowid) FROM artefact").fetchone()[0]
                    end = 1 << 40 if end is None else end
                rows = db.execute(
                    "SELECT rowid, key, sha256, size, data, made FROM artefact WHERE rowid >= ? ORDER BY rowid", [start]
                )
                for row in rows:
                    got.append(row)
                    if len(got) >= PORTION:
                        start, stride = row[0] + 1, 1
                        yield [r[1:] for r in got]
                        got = []
                if got:
                    yield [r[1:] for r in got]
                return
        except sqlite3.DatabaseError:
            if got:
                start, stride = got[-1][0] + 1, 1
                yield [r[1:] for r in got]
            else:  # nothing to be read from here on: look further
                start, stride = start + stride, stride * 2


def _sound(store: Store, row: tuple[Any, ...]) -> bool:
    key, digest, size, data, made = row
    kinds = isinstance(key, str) and isinstance(digest, bytes) and isinstance(size, int) and isinstance(made, int | float)
    if not kinds or not (data is None or isinstance(data, bytes)):
        return False
    whole = store._whole(key, digest, data) if data is not None else _file_sound(store, key, digest)
    return whole is not None and len(whole) == size


def _file_sound(store: Store, key: str, digest: bytes) -> bytes | None:
    """The file of an artefact whose key, out of a damaged database, may be anything."""
    if re.fullmatch(r"[0-9a-zA-Z]{4,}", key) is None:
        return None
    return store._whole(key, digest, None)


def summary(things: Iterable[Damage]) -> dict[str, int]:
    """How many of which kind."""
    out: dict[str, int] = {}
    for d in things:
        out[d.kind or "unknown"] = out.get(d.kind or "unknown", 0) + 1
    return out


__all__ = [
    "Damage", "Findings", "Pruning", "age_of", "clear", "delete", "overview", "plan", "said", "salvage", "size_of", "summary", "there", "verify",
]  # fmt: skip
