"""What ``deidbench data`` does: tells what is there, checks a folder, records it, and compares its files again later."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deidbench import kinds
from deidbench.data_fetch import fetch, unpack
from deidbench.data_index import Line, Prepared, default_root, read, read_lines, write
from deidbench.datasets.base import Dataset, manifest_sha256
from deidbench.datasets.files import Entry, threads
from deidbench.datasets.official import OfficialDataset, Report, unchanged
from deidbench.errors import DeidbenchError, ExitCode, InputError, MissingError

#: ``progress(title, total)`` as :func:`deidbench.progress.progress` gives it.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
#: Level of a report -> exit code.
EXIT = {"ok": ExitCode.OK, "missing": ExitCode.MISSING, "wrong": ExitCode.USAGE}


@dataclass(frozen=True)
class Preparation:
    """What ``prepare`` found and did.  record: the file that was written, None where the folder is not ready."""

    name: str
    root: Path
    report: Report
    prepared: Prepared | None = None
    record: Path | None = None

    @property
    def exit_code(self) -> ExitCode:
        return EXIT[self.report.level]


@dataclass(frozen=True)
class Verification:
    """Files of a prepared set against its record: ids of files that differ, are gone, or are new."""

    name: str
    root: Path
    checked: int
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.USAGE if self.changed or self.new else ExitCode.MISSING if self.gone else ExitCode.OK


def official(name: str, **params: Any) -> OfficialDataset:
    """The data set ``name``.  Raises InputError for one that has nothing to prepare, or for wrong parameters."""
    cls = kinds.datasets.get(name)
    if not issubclass(cls, OfficialDataset):
        known = ", ".join(n for n in kinds.datasets if issubclass(kinds.datasets.get(n), OfficialDataset))
        raise InputError(
            f"the data set {name!r} needs no preparation",
            f"deidbench run SUITE --set dataset.name={name}; to be prepared: {known}",
        )
    made = kinds.datasets.create(name, **params)
    assert isinstance(made, OfficialDataset)
    return made


def listing() -> list[dict[str, Any]]:
    """One record per registered data set that needs no parameters: is it ready, where, what terms, how large."""
    found = []
    for name in kinds.datasets:
        try:
            cls = kinds.datasets.get(name)
        except DeidbenchError as error:  # an outside package that is broken is shown, not hidden
            found.append({"name": name, "ready": False, "problem": error.message})
            continue
        if any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values()):
            continue
        found.append(_state(name, cls()))
    return found


def _state(name: str, data: Dataset) -> dict[str, Any]:
    state: dict[str, Any] = {
        "name": name, "title": data.title, "ready": False, "licence": data.licence, "identities": data.identities,
        "persons": None, "images": None, "root": "", "prepared": "", "problem": "",
    }  # fmt: skip
    try:
        state["problem"] = data.missing()
        if isinstance(data, OfficialDataset):
            record = data.prepared
            persons, images = data.size()
            state |= {
                "images": record.images if record else images,
                "persons": record.persons if record else persons,
                "root": str(data.folder()),
                "prepared": record.date if record else "",
                "homepage": data.homepage,
                "terms": data.terms,
                "citation": data.citation,
            }
    except DeidbenchError as error:
        state["problem"] = str(error)
    state["ready"] = not state["problem"]
    return state


# --------------------------------------------------------------------------------------------------------------- prepare


def usual_root(name: str) -> Path:
    """The folder that is meant where none is named: the recorded one, else the set's own place."""
    record = read(name)
    return Path(record.root) if record is not None else default_root(name)


def prepare(
    name: str,
    root: Path | None = None,
    *,
    partial: bool = False,
    params: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Preparation:
    """Checks the folder ``root`` (default: :func:`usual_root`) and, where it is ready, hashes its files and records it.

    partial: accept a folder from which some images are absent.  params: further parameters of the data set.
    The folder is only read.  Raises InputError for unknown names and parameters.
    """
    given = dict(params or {})
    if "root" in given or "partial" in given:
        raise InputError("root and partial are no --param", "--from DIR and --partial say them")
    data = official(name, **given, partial=partial)
    folder = (root.expanduser() if root is not None else usual_root(name)).resolve()
    if folder.is_dir():
        folder = data.materialise(folder, progress).resolve()
    report = data.check(folder)
    if not report.ready:
        return Preparation(name, folder, report)
    here = official(name, **given, partial=partial, root=str(folder))
    entries, _ = here.entries()
    lines = _hashed(name, folder, entries, progress)
    sha256 = manifest_sha256(
        {"id": e.name, "subject_id": e.subject, "sha256": line.sha256} for e, line in zip(entries, lines, strict=True)
    )
    persons = len({e.subject for e in entries}) if here.identities else 0
    prepared = Prepared(
        name, str(folder), here.version, len(entries), persons, sha256, datetime.now(UTC).isoformat(timespec="seconds"),
        {**given, "partial": partial},
    )  # fmt: skip
    once = {line.path: line for line in lines}  # a picture with several faces is one file
    return Preparation(name, folder, report, prepared, write(prepared, list(once.values())))


def _hashed(name: str, root: Path, entries: Sequence[Entry], progress: Progress | None) -> list[Line]:
    """One line per entry; hashes of an earlier record hold where size and time are the same, others are computed."""
    record = read(name)
    known = read_lines(name) if record is not None and record.root == str(root) else {}

    def line(entry: Entry) -> Line:
        old = known.get(entry.path)
        return old if old is not None and unchanged(root, old) else _line(root, entry.path)

    return _each(line, entries, f"hash {name}", progress)


def _line(root: Path, path: str) -> Line:
    from deidbench.images import sha256_file

    info = (root / path).stat()
    return Line(path, info.st_size, info.st_mtime_ns, sha256_file(root / path))


def _each(work: Callable[[Any], Any], items: Sequence[Any], title: str, progress: Progress | None) -> list[Any]:
    """``work`` on every item by threads, in order, with progress."""
    found = []
    with ThreadPoolExecutor(max_workers=threads()) as pool:
        if progress is None:
            return list(pool.map(work, items))
        with progress(title, len(items)) as tick:
            for start in range(0, len(items), 1024):  # in windows: a queue of 200,000 futures is slow to fill
                part = items[start : start + 1024]
                found += list(pool.map(work, part))
                tick(len(part))
    return found


# ---------------------------------------------------------------------------------------------------- downloads, archives


def downloads(name: str) -> list[dict[str, Any]]:
    """What ``--download`` would fetch.  Raises InputError where the terms do not allow it."""
    data = official(name)
    if not data.expected.downloads:
        raise InputError(
            f"{data.title} may not be downloaded automatically: {data.terms}",
            f"get it by hand at {data.homepage}, then --from DIR",
        )
    return [asdict(d) for d in data.expected.downloads]


def download(name: str, folder: Path, *, consent: bool, progress: Progress | None = None) -> list[Path]:
    """Fetches the files of a set that may be fetched into ``folder``.  Raises InputError without consent."""
    downloads(name)
    data = official(name)
    fetched = []
    for what in data.expected.downloads:
        if progress is None:
            fetched.append(fetch(what, folder, consent=consent))
            continue
        with _bytes(progress, what.filename) as told:
            fetched.append(fetch(what, folder, consent=consent, progress=told))
    return fetched


class _bytes:
    """A bar of MiB, which begins when the size is known."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title
        self.bar: AbstractContextManager[Callable[[int], None]] | None = None
        self.done = 0

    def __enter__(self) -> Callable[[int, int], None]:
        return self.told

    def told(self, got: int, total: int) -> None:
        if self.bar is None:
            self.bar = self.progress(f"{self.title} (MiB)", max(1, total >> 20))
            self.tick = self.bar.__enter__()
        if (step := (got >> 20) - self.done) > 0:
            self.done += step
            self.tick(step)

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(*error)


def unpack_all(name: str, root: Path, progress: Progress | None = None) -> list[tuple[Path, int]]:
    """Unpacks the official archives that lie in ``root``, into it: (archive, number of files) of each.

    Raises InputError where there is none.
    """
    data = official(name)
    found = [(path, root / archive.into) for archive in data.expected.archives for path in sorted(root.glob(archive.name))]
    if not found:
        names = ", ".join(a.name for a in data.expected.archives) or "none"
        raise InputError(f"{root} holds no archive of {data.title}", f"its archives are called: {names}")
    done = []
    for path, into in found:
        if path.suffix in (".001", ".7z"):
            raise InputError(f"{path} is a 7-Zip archive, which is not unpacked here", f"7z x {path} -o{into}")
        if progress is None:
            done.append((path, unpack(path, into)))
        else:
            with progress(f"unpack {path.name}", _size(path)) as tick:
                done.append((path, unpack(path, into, tick)))
    return done


def _size(path: Path) -> int:
    """Members of a zip archive; a tar archive tells its number only at its end."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as file:
            return len(file.infolist())
    except (OSError, zipfile.BadZipFile):
        return 0


# ---------------------------------------------------------------------------------------------------------------- verify


def verify(name: str, progress: Progress | None = None) -> Verification:
    """Reads every file of a prepared set again and compares it with the record.  Raises MissingError for a set without one."""
    official(name)  # names the nearest data set where there is none of that name
    record = read(name)
    if record is None:
        raise MissingError(f"the data set {name!r} is not prepared", f"deidbench data prepare {name} --from DIR")
    root = Path(record.root)
    if not root.is_dir():
        raise MissingError(f"{root}, where {name} was prepared, is not there", f"deidbench data prepare {name} --from DIR")
    lines = read_lines(name)
    here = official(name, **record.params, root=record.root)

    def look(line: Line) -> str:
        if not (root / line.path).is_file():
            return "gone"
        return "" if _line(root, line.path).sha256 == line.sha256 else "changed"

    found = _each(look, list(lines.values()), f"verify {name}", progress)
    by = {kind: tuple(p for p, k in zip(lines, found, strict=True) if k == kind) for kind in ("changed", "gone")}
    there = _paths(here)
    return Verification(name, root, len(lines), by["changed"], by["gone"], tuple(p for p in there if p not in lines))


def _paths(data: OfficialDataset) -> Iterable[str]:
    """Images that the folder has now, by its lists; none where they cannot be read any more (the caller says what is gone)."""
    if data.missing():
        return ()
    return [e.path for e in data.entries()[0]]
