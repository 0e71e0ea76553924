"""Data sets in the layouts in which their authors hand them out: the frame that each of them fills in.

A subclass says what its folder holds (:attr:`OfficialDataset.expected`) and reads it (:meth:`OfficialDataset._entries`).
The frame finds the folder, keeps paths inside it, gives roles, applies limits, hashes, and says in words what is missing and
where it is got.  Nothing is ever downloaded here.

The folder of a set may also hold ``manifest.csv`` instead, as the data set ``folder`` reads it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from deidbench.data_index import Line, Prepared, default_root, read, read_lines
from deidbench.datasets.base import Dataset, split_persons
from deidbench.datasets.files import Entry, Inside, check_limits, choose, hashed, some, text_lines
from deidbench.errors import InputError, MissingError
from deidbench.types import Sample
from deidbench.weights import md5_of

__all__ = ["Archive", "Download", "Entry", "Finding", "Layout", "OfficialDataset", "Part", "Report"]

#: ``progress(title, total)``: a bar, within which a call says how many more are done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
#: A folder with this file is read as the data set ``folder`` reads it.
MANIFEST = "manifest.csv"
OK, MISSING, WRONG, NOTE = "ok", "missing", "wrong", "note"


@dataclass(frozen=True)
class Part:
    """A file or folder of a layout.

    key: its name in the code.  paths: where people have it, relative, the official place first; may hold ``*`` and ``?``.
    what: in words.  lines: number of lines that are not blank, per file ending where the forms differ; None where not fixed.
    required: False for what only adds labels.  remedy: where it is got, "" for the set's home page.
    called: the place to name in messages, where the shortest one says little.
    md5: of the published file, lower-case hex, "" where none is known; the check says where a file has it.
    """

    key: str
    paths: tuple[str, ...]
    what: str
    lines: int | Mapping[str, int] | None = None
    required: bool = True
    remedy: str = ""
    md5: str = ""
    called: str = ""

    @property
    def name(self) -> str:
        """``called``, or the plainest of its places, for messages."""
        return self.called or min(self.paths, key=len)

    def find(self, root: Path) -> Path | None:
        """The first of its places that exists."""
        for path in self.paths:
            if any(mark in path for mark in "*?["):
                if (found := next(iter(sorted(root.glob(path))), None)) is not None:
                    return found
            elif (root / path).exists():
                return root / path
        return None


@dataclass(frozen=True)
class Archive:
    """An archive as it is handed out.  name: may hold ``*``.  into: folder in which it is unpacked, relative."""

    name: str
    into: str = "."


@dataclass(frozen=True)
class Download:
    """A file that its authors let anybody fetch over https.

    sha256: lower-case hex; "" where none is published.  figshare: number of the article on figshare that holds the file; size
    and MD5 are then taken from the article's own record at the time of the download.
    """

    filename: str
    url: str
    sha256: str = ""
    figshare: int | None = None


@dataclass(frozen=True)
class Layout:
    """What the folder of a set holds.

    tree: a drawing for people.  parts: files and folders.  images, persons: of the whole set, None where not fixed.
    archives: what may lie there still packed.  downloads: what ``--download`` may fetch (only where the terms allow it).
    """

    tree: str
    parts: tuple[Part, ...]
    images: int | None = None
    persons: int | None = None
    archives: tuple[Archive, ...] = ()
    downloads: tuple[Download, ...] = ()

    def part(self, key: str) -> Part:
        return next(p for p in self.parts if p.key == key)

    def find(self, root: Path, key: str) -> Path | None:
        return self.part(key).find(root)


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    level: "ok", "missing", "wrong" (there, but not usable or not what it should be) or "note".
    what: in words.  remedy: what to do.  found, expected: counts where it is about one.
    """

    level: str
    what: str
    remedy: str = ""
    found: int | None = None
    expected: int | None = None


@dataclass(frozen=True)
class Report:
    """What a check found."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        return not any(f.level in (MISSING, WRONG) for f in self.findings)

    @property
    def level(self) -> str:
        """The worst: "wrong", "missing" or "ok"."""
        levels = {f.level for f in self.findings}
        return next((level for level in (WRONG, MISSING) if level in levels), OK)

    def plus(self, *findings: Finding) -> Report:
        return replace(self, findings=(*self.findings, *findings))


class OfficialDataset(Dataset):
    """The parameters that these sets share.

    root: folder of the set; "" is the one that ``deidbench data prepare`` recorded, else ``$DEIDBENCH_DATA/NAME``, else
        ``data/NAME`` in the user's data folder.
    split: only images of this official split (e.g. "test"); "" for all.
    role: only samples of this role.
    shares, split_seed: role -> share of the persons.  Where the set has an official split, that gives the roles (see
        ``split_roles`` of the class) unless shares are given.
    limit_persons: only the first so many persons of each role, in natural order.  limit_images: the first so many images of each.
    partial: True reads a folder from which some of the listed images are absent; they are counted, never made up.
    """

    #: Where it is got, and who may have it.
    homepage: ClassVar[str] = ""
    terms: ClassVar[str] = ""
    expected: ClassVar[Layout]
    #: Official split -> role; a split that is not named keeps its own name.
    split_roles: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        root: str = "",
        split: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        self.root = root
        self.split = split
        self.role = role
        self.shares = shares
        self.split_seed = split_seed
        self.limit_persons = limit_persons
        self.limit_images = limit_images
        self.partial = partial

    # -- what a subclass writes ---------------------------------------------------------------------------------
    def _entries(self, root: Path) -> Iterator[Entry]:
        """Every image of the official layout, in a fixed order.  ``role`` is the official split, "" where there is none.

        Paths need not exist and need not be safe: the frame sees to both.  Raises InputError naming file and line.
        """
        raise NotImplementedError

    def _recognised(self, root: Path) -> bool:
        """Whether ``root`` holds the official layout, whole or not.  Quick."""
        return any(part.find(root) is not None for part in self._parts() if part.required)

    def recognises(self, root: Path) -> bool:
        """Whether ``root`` holds the official layout, whole or not, rather than another one.  Quick."""
        return not _no_folder(root) and self._recognised(root)

    def _parts(self) -> tuple[Part, ...]:
        """The parts of the layout that matter with these parameters."""
        return self.expected.parts

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        """Further findings about the entries of a folder that is checked, e.g. counts by split and what was left out."""
        return iter(())

    def _completed(self, entry: Entry) -> Entry:
        """An entry of a folder with ``manifest.csv``, with what is known of every image of this set."""
        return entry

    def _foreign(self, there: Sequence[Entry]) -> str:
        """Why a folder with ``manifest.csv`` cannot be this set, "" where it may be."""
        return ""

    def _counts(self) -> tuple[int | None, int | None]:
        """(images, persons) of the whole set with these parameters, None where not fixed."""
        return self.expected.images, self.expected.persons

    def size(self) -> tuple[int | None, int | None]:
        """(persons, images) of the whole set, for a list of the sets; None where there is no such number."""
        return self.expected.persons, self.expected.images

    def materialise(self, root: Path, progress: Progress | None = None) -> Path:
        """The folder to check and to record for ``root``: another one where the set hands out its pictures as numbers in a
        table, which this writes as picture files first (once, into the user's data folder).
        progress: as :func:`deidbench.progress.progress`.
        """
        return root

    # -- where it is --------------------------------------------------------------------------------------------
    @cached_property
    def prepared(self) -> Prepared | None:
        """The record of ``deidbench data prepare``, where it is about this folder."""
        record = read(self.name)
        if record is None or (self.root and Path(self.root).expanduser().resolve() != Path(record.root)):
            return None
        return record

    def folder(self) -> Path:
        """The folder that is read."""
        if self.root:
            return Path(self.root).expanduser()
        return Path(self.prepared.root) if self.prepared is not None else default_root(self.name)

    @property
    def reads_manifest(self) -> bool:
        """Whether the folder is read by its ``manifest.csv``."""
        root = self.folder()
        return (root / MANIFEST).is_file() and not self._recognised(root)

    @property
    def allows_partial(self) -> bool:
        """``partial``, or the folder was prepared so."""
        return self.partial or (self.prepared is not None and bool(self.prepared.params.get("partial")))

    def missing(self) -> str:
        root = self.folder()
        how = f"deidbench data prepare {self.name} --from DIR; it is got at {self.homepage}"
        if trouble := _no_folder(root):
            return f"{trouble}: {how}"
        if self.reads_manifest:
            return ""
        absent = [part for part in self._parts() if part.required and part.find(root) is None]
        return f"{root} lacks {some([p.name for p in absent])}: {how}" if absent else ""

    # -- what a caller sees -------------------------------------------------------------------------------------
    def samples(self) -> Iterator[Sample]:
        """In the order of the set's own list, or natural order.  Hashes that no list has are computed on the way.

        Raises MissingError where the data is not there, InputError for lists that are not usable.
        """
        if trouble := self.missing():
            what, _, how = trouble.partition(": ")
            raise MissingError(f"data set {self.name!r}: {what}", how)
        chosen = self._chosen()
        root = self.folder()
        lines = read_lines(self.name) if self.prepared is not None else {}

        def known(entry: Entry) -> str:
            """The published hash, or the recorded one where size and time say that the file is still the same."""
            if entry.sha256 or (line := lines.get(entry.path)) is None:
                return entry.sha256
            return line.sha256 if unchanged(root, line) else ""

        yield from hashed(root, chosen, known)

    def entries(self) -> tuple[list[Entry], list[Entry]]:
        """(images that are there, images that are listed and are not), checked and with their official split.

        Raises InputError for a path that leaves the folder, an image or id listed twice, a person in two splits.
        """
        root = self.folder()
        inside = Inside(root)
        there: list[Entry] = []
        absent: list[Entry] = []
        paths: dict[str, str] = {}
        ids: set[str] = set()
        for entry in self._listed(root):
            where = entry.where or f"data set {self.name!r}"
            path = inside.checked(entry.path, where)
            key = f"{path}|{tuple(entry.box)}" if entry.box else path
            if key in paths:
                raise InputError(f"{where}: {path} is listed twice (also {paths[key]})", "remove one of the lines")
            paths[key] = where
            if entry.name in ids:
                raise InputError(f"{where}: two images are called {entry.name!r}", "ids must be unique: rename one of them")
            ids.add(entry.name)
            if not entry.subject:
                if self.identities:
                    raise InputError(f"{where}: {path} has no person", "name the person, or remove the line")
                entry = replace(entry, subject=entry.name)
            if path != entry.path:
                entry = replace(entry, path=path, id=entry.name)
            (there if inside.is_file(path, where) else absent).append(entry)
        return there, absent

    def _listed(self, root: Path) -> Iterable[Entry]:
        if self.reads_manifest:
            from deidbench.datasets.folder import read_manifest

            return map(self._completed, read_manifest(root, root / MANIFEST).entries)
        return self._entries(root)

    def _chosen(self) -> list[tuple[Entry, str]]:
        """Entries with their roles, after ``split``, ``role`` and the limits."""
        check_limits(self.name, limit_persons=self.limit_persons, limit_images=self.limit_images)
        root, where = self.folder(), f"data set {self.name!r}: {self.folder()}"
        entries, absent = self.entries()
        if absent and not self.allows_partial:
            raise InputError(
                f"{where} lacks {len(absent):,} of {len(entries) + len(absent):,} listed images: {some([e.path for e in absent])}",
                "put them there, or set partial = true to go on with those that are there",
            )
        if not entries:
            raise InputError(
                f"{where} holds no image", f"deidbench data prepare {self.name} --from {root} says what is missing"
            )
        if self.split:
            splits = sorted({e.role for e in entries} - {""})
            if self.split not in splits:
                raise InputError(
                    f"{where}: there is no official split {self.split!r}", f"splits: {', '.join(splits) or 'none; use shares'}"
                )
            entries = [e for e in entries if e.role == self.split]
        roles = self._roles(entries)
        return choose(entries, roles, self.role, self.limit_persons, self.limit_images, where)

    def _roles(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Subject -> role."""
        if self.shares or not any(e.role for e in entries):
            return split_persons((e.subject for e in entries), self.shares or {"evaluate": 1.0}, self.split_seed)
        roles: dict[str, str] = {}
        for entry in entries:
            role = self.split_roles.get(entry.role, entry.role) or "evaluate"
            if (other := roles.setdefault(entry.subject, role)) != role:
                raise InputError(
                    f"data set {self.name!r}: person {entry.subject!r} is in the roles {other!r} and {role!r}",
                    "splits must be person-disjoint: give shares instead, or one split",
                )
        return roles

    # -- the check ----------------------------------------------------------------------------------------------
    def check(self, root: Path) -> Report:
        """Compares ``root`` with what is expected: files, lines, images, persons.  Reads lists, never images.

        A subclass adds findings of its own with ``super().check(root).plus(...)``.
        """
        this = type(self)(**{**self._params(), "root": str(root)})
        get = f"got at {self.homepage}; {self.terms}"
        if trouble := _no_folder(root):
            return Report((Finding(MISSING, trouble, f"name the folder that holds it; it is {get}"),))
        findings = []
        if this.reads_manifest:
            findings.append(Finding(NOTE, f"{MANIFEST} is read (the layout of the data set 'folder'), not the official files"))
        else:
            findings += [self._check_part(part, root, get) for part in this._parts()]
        if any(f.level == MISSING for f in findings):
            return Report((*findings, *self._packed(root)))
        return Report((*findings, *this._check_entries(get)))

    def _params(self) -> dict[str, Any]:
        import inspect

        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def _check_part(self, part: Part, root: Path, get: str) -> Finding:
        found = part.find(root)
        if found is None:
            others = sorted({*part.paths} - {part.name}, key=len)
            other = f" (or {some(others)})" if others else ""
            level, without = (MISSING, "") if part.required else (NOTE, " (optional)")
            return Finding(level, f"{part.name}{other} is not there: {part.what}{without}", part.remedy or get)
        name = found.relative_to(root).as_posix()
        expected = part.lines.get(found.suffix) if isinstance(part.lines, Mapping) else part.lines
        if expected is None:
            return Finding(OK, f"{name}: {part.what}")
        try:
            n = len(text_lines(found))
        except InputError as error:
            return Finding(WRONG, error.message, error.remedy)
        if n == expected:
            same = part.md5 and md5_of(found) == part.md5
            return Finding(OK, f"{name}: {part.what}" + (", the published file" if same else ""), found=n, expected=expected)
        short = "cut short" if n < expected else "too long"
        level = NOTE if self.partial else WRONG
        return Finding(level, f"{name} is {short}: {n:,} lines, {expected:,} expected", part.remedy or get, n, expected)

    def _check_entries(self, get: str) -> Iterator[Finding]:
        try:
            there, absent = self.entries()
        except (InputError, MissingError) as error:
            yield Finding(WRONG, error.message, error.remedy)
            return
        total = len(there) + len(absent)
        if absent:
            named = some([e.path for e in absent])
            yield Finding(
                NOTE if self.partial else MISSING, f"{len(absent):,} of {total:,} listed images are not there: {named}",
                "they are left out" if self.partial else f"{get}; or --partial for those that are there", len(there), total,
            )  # fmt: skip
        if self.reads_manifest and (why := self._foreign(there)):
            yield Finding(
                WRONG, f"this is not {self.title}: {why}", "name the right folder, or use --data FOLDER without --dataset"
            )
            return
        persons = len({e.subject for e in there})
        all_images, all_persons = (None, None) if absent else self._counts()
        subset = self.partial or self.reads_manifest
        wanted = [("images", len(there), all_images)]
        if self.identities:
            wanted.append(("persons", persons, all_persons))
        for what, n, expected in wanted:
            if n == 0:
                yield Finding(MISSING, f"no {what}", get, 0, expected)
            elif expected is None or n == expected:
                yield Finding(OK, f"{n:,} {what}", found=n, expected=expected)
            else:
                level = NOTE if subset else MISSING if n < expected else WRONG
                remedy = (
                    ""
                    if subset
                    else f"{get}; or --partial for what is there"
                    if n < expected
                    else "take out what is not the set's"
                )
                yield Finding(level, f"{n:,} {what}, the whole set has {expected:,}", remedy, n, expected)
        if not self.shares and any(e.role for e in there):
            counts = Counter(self.split_roles.get(e.role, e.role) for e in there)
            try:
                self._roles(there)
            except InputError as error:
                yield Finding(WRONG, error.message, error.remedy)
            yield Finding(NOTE, "roles: " + ", ".join(f"{role} {n:,}" for role, n in sorted(counts.items())))
        yield from self._more(there)

    def _packed(self, root: Path) -> Iterator[Finding]:
        """Archives that lie there, with the command that unpacks each."""
        import shlex

        for archive in self.expected.archives:
            for path in sorted(root.glob(archive.name)):
                into = root / archive.into
                tool = (
                    f"unzip -q {shlex.quote(str(path))} -d" if path.suffix == ".zip" else f"tar -xf {shlex.quote(str(path))} -C"
                )
                yield Finding(NOTE, f"{path.name} is there, still packed", f"{tool} {shlex.quote(str(into))}")


def _no_folder(root: Path) -> str:
    """Why ``root`` is no folder that can be read, in words; "" where it is one.  A name that no file can have is no folder either."""
    try:
        return "" if root.is_dir() else f"{root} is not a folder"
    except OSError as error:
        return f"{str(root)[:200]} is not a folder that can be read ({error.strerror})"


def unchanged(root: Path, line: Line) -> bool:
    """Whether size and modification time of a recorded file are what they were."""
    try:
        info = os.stat(f"{root}{os.sep}{line.path}")  # noqa: PTH116 - pathlib is slow, and some sets have 200,000 images
    except OSError:
        return False
    return info.st_size == line.size and info.st_mtime_ns == line.mtime_ns
