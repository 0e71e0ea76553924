"""What all data sets on disk share: entries, safe paths, reading lists, natural order, roles and limits, hashes."""

from __future__ import annotations

import bisect
import csv
import io
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PureWindowsPath

from deidbench.errors import InputError
from deidbench.types import Box, Sample

#: Lower ends of the age bands in years, and their names.
AGE_FROM = (0, 18, 30, 45, 60)
AGE_BANDS = ("0-17", "18-29", "30-44", "45-59", "60+")
EMOTION_NAMES = {
    "happy": "happiness", "sad": "sadness", "angry": "anger", "surprised": "surprise", "fearful": "fear", "afraid": "fear",
    "disgusted": "disgust", "contemptuous": "contempt",
}  # fmt: skip
SEX_NAMES = {"m": "male", "f": "female", "man": "male", "woman": "female"}
#: How many offenders an error names.
NAMED = 5
#: Where a list may stop being one: the longest official list has 202,599 short lines.
MAX_TEXT = 1 << 30


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One image as a data set's own files list it.

    path: relative to the set's folder, forward slashes.  subject: the person ("" in sets without identities).
    role: split that the set gives it, "" where it gives none.  id: unique and the same on every machine, "" for ``path``.
    box: the face that is meant, in pixels.  sha256: lower-case hex where the set publishes it, else "".
    where: file and line that name it, for errors.
    """

    path: str
    subject: str
    role: str = ""
    emotion: str | None = None
    attributes: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    box: Box | None = None
    id: str = ""
    sha256: str = ""
    where: str = ""

    @property
    def name(self) -> str:
        return self.id or self.path


class Flags(Mapping[str, int]):
    """Name -> 0/1 in a few bytes: CelebA has 40 of them for 202,599 images.

    names: name -> position, shared by all images.  bits: bit i is the value of the name at position i.
    """

    __slots__ = ("bits", "names")

    def __init__(self, names: Mapping[str, int], bits: int) -> None:
        self.names, self.bits = names, bits

    def __getitem__(self, name: str) -> int:
        return self.bits >> self.names[name] & 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return repr(dict(self))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorting key by which "s2" comes before "s10"."""

    def number(digits: str) -> int:
        # int() takes 4300 digits at most, and the time of their square: what has so many is a hash and no number
        return int(digits) if len(digits) <= 1000 else 10**1000

    return [(0, number(p), p) if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]


def age_band(age: float) -> str:
    """The band of an age in years (0 or more)."""
    return AGE_BANDS[bisect.bisect_right(AGE_FROM, age) - 1]


def some(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


# ----------------------------------------------------------------------------------------------------------------- paths


class Inside:
    """Checks that listed paths are ordinary files within a folder: a list may come from anybody."""

    def __init__(self, root: Path) -> None:
        self.root, self.real = root, os.path.realpath(root)
        self._parents: dict[str, bool] = {}

    def checked(self, path: str, where: str) -> str:
        """``path`` in its normal form.  Raises InputError for one that is absolute or climbs.  where: file and line."""
        if not path:
            raise InputError(f"{where}: path is empty", "name the file, or remove the line")
        if "\0" in path or "\\" in path:
            raise InputError(f"{where}: {path!r} is not a portable path", "separate folders by forward slashes")
        if path[0] in "/~" or (":" in path and PureWindowsPath(path).drive):
            raise InputError(f"{where}: {path!r} is an absolute path", f"paths are relative to {self.root}")
        if ".." in path.split("/"):
            raise InputError(f"{where}: {path!r} climbs out with '..'", f"paths are relative to {self.root} and stay within it")
        return posixpath.normpath(path)

    def is_file(self, relative: str, where: str) -> bool:
        """False when there is no such file.  Raises InputError when it lies elsewhere or is something else."""
        parent = relative.rpartition("/")[0]
        if parent not in self._parents:
            self._parents[parent] = self._within(parent)
        full = f"{self.root}{os.sep}{relative}"  # pathlib is slow, and some sets have 200,000 images
        try:
            info = os.lstat(full)
            if not self._parents[parent] or (stat.S_ISLNK(info.st_mode) and not self._within(relative)):
                raise InputError(
                    f"{where}: {relative!r} leads out of the folder by a symbolic link", f"copy the file into {self.root}"
                )
            if stat.S_ISLNK(info.st_mode):
                info = os.stat(full)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise InputError(
                f"{where}: {relative!r} cannot be reached: {error.strerror or error}", "check the name and its permissions"
            ) from error
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{where}: {relative!r} is not a file", "name an image file")
        return True

    def _within(self, relative: str) -> bool:
        real = os.path.realpath(self.root / relative)
        return real == self.real or real.startswith(self.real.rstrip(os.sep) + os.sep)


def images_below(root: Path) -> tuple[list[str], Mapping[str, int]]:
    """Relative paths of all images below ``root`` in natural order, and what else lies there: file ending -> count.

    Links to folders are not followed.  Raises InputError for a folder that cannot be listed.
    """
    from deidbench.images import IMAGE_SUFFIXES

    found: list[str] = []
    skipped: Counter[str] = Counter()

    def broken(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}", "check its permissions") from error

    for folder, folders, files in os.walk(root, onerror=broken):
        for name in folders:
            if (Path(folder) / name).is_symlink():  # not followed: links may form a ring or lead anywhere
                skipped["(link to a folder)"] += 1
        for name in files:
            suffix = posixpath.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("._"):  # "._x.jpg" is what macOS leaves on foreign disks
                found.append((Path(folder) / name).relative_to(root).as_posix())
            else:
                skipped[suffix or name] += 1
    found.sort(key=natural_key)
    return found, dict(skipped)


# ----------------------------------------------------------------------------------------------------------------- lists


def ordinary(path: Path) -> None:
    """Raises InputError unless ``path`` is a file: a pipe, which may lie in anybody's folder, is waited for without end, and a
    device gives bytes without end.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not an ordinary file", "check which file it is")


def read_text(path: Path, save: str = "save it as plain text, UTF-8") -> str:
    """The text of a list file (UTF-8, with or without a byte order mark).  Raises InputError naming file and line."""
    try:
        ordinary(path)
        if path.stat().st_size > MAX_TEXT:
            raise InputError(f"{path} has more than {MAX_TEXT >> 20} MiB: no list", "check which file it is")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", "check the name and its permissions") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is UTF-16", save)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x})", save) from None


def text_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, stripped text) of the lines that are not blank; CRLF and LF.  Raises InputError."""
    return [(n, text) for n, line in enumerate(read_text(path).split("\n"), 1) if (text := line.strip())]


def csv_rows(table: Path, required: Sequence[str], example: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (line number, stripped cells) of a CSV file with a header line.

    required: columns that it must have.  example: how its first line looks.  Raises InputError for whatever is not one.
    """
    save = "save it as CSV, UTF-8, separated by commas"
    text = read_text(table, save)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise InputError(f"{table}, line {reader.line_num}: {error}", save) from error
    if not rows:
        raise InputError(f"{table} is empty", f"its first line must name the columns: {example}")
    header = rows[0][1]
    if lacking := [c for c in required if c not in header]:
        for mark, label in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if any(mark in cell for cell in header):
                raise InputError(f"{table} is separated by {label}", save)
        raise InputError(
            f"{table} has no column {' and '.join(lacking)} (it has: {', '.join(header)})",
            f"its first line must name the columns: {example}",
        )
    if double := [c for c, n in Counter(header).items() if n > 1]:
        raise InputError(f"{table} has the column {double[0]!r} twice", "remove one of them")
    if len(rows) == 1:
        raise InputError(f"{table} lists no image", "add a line per image below the header")
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{table}, line {line}: {len(cells)} cells, the header has {len(header)}",
                "put quotes around cells that hold commas",
            )
    return header, rows[1:]


# ---------------------------------------------------------------------------------------------------------------- choice


def check_limits(name: str, **limits: int | None) -> None:
    """Raises InputError for a limit that is not positive.  name: of the data set."""
    for limit, value in limits.items():
        if value is not None and value < 1:
            raise InputError(f"data set {name!r}: {limit} = {value} is not positive", f"leave {limit} out for no limit")


def choose(
    entries: Iterable[Entry],
    roles: Mapping[str, str],
    role: str | None,
    limit_persons: int | None,
    limit_images: int | None,
    where: str,
) -> list[tuple[Entry, str]]:
    """Entries with their roles: only of ``role``, the first persons of each role in natural order, their first images.

    roles: subject -> role.  where: names the set and its folder.  Raises InputError where nobody has ``role``.
    """
    if role is not None and role not in roles.values():
        raise InputError(f"{where}: no person has role {role!r}", f"roles there: {', '.join(sorted(set(roles.values())))}")
    persons: dict[str, list[str]] = {}
    for subject in sorted(roles, key=natural_key):
        persons.setdefault(roles[subject], []).append(subject)
    wanted = {s for r, names in persons.items() if role in (None, r) for s in names[:limit_persons]}
    taken: Counter[str] = Counter()
    chosen = []
    for entry in entries:
        taken[entry.subject] += 1
        if entry.subject in wanted and (limit_images is None or taken[entry.subject] <= limit_images):
            chosen.append((entry, roles[entry.subject]))
    return chosen


# ---------------------------------------------------------------------------------------------------------------- hashes


def threads() -> int:
    """Workers for hashing; reading and hashing release the GIL."""
    return min(8, (os.cpu_count() or 1) + 2)


def hashed(
    root: Path, chosen: Iterable[tuple[Entry, str]], known: Callable[[Entry], str] = lambda entry: entry.sha256
) -> Iterator[Sample]:
    """Samples of entries, in order; hashes that ``known`` gives as "" are computed on the way, a window at a time."""
    from deidbench.images import sha256_file

    with ThreadPoolExecutor(max_workers=threads()) as pool:
        entries = iter(chosen)
        while window := list(islice(entries, 256)):
            digests = [known(e) for e, _ in window]
            unknown = list(dict.fromkeys(root / e.path for (e, _), d in zip(window, digests, strict=True) if not d))
            computed = dict(zip(unknown, pool.map(sha256_file, unknown), strict=True)) if unknown else {}
            for (entry, role), digest in zip(window, digests, strict=True):
                path = root / entry.path
                yield Sample(
                    id=entry.name, path=path, subject_id=entry.subject, sha256=digest or computed[path], role=role,
                    emotion=entry.emotion, attributes=entry.attributes, groups=entry.groups, box=entry.box,
                )  # fmt: skip
