"""Your own pictures: a folder with a manifest, or one sub-folder per person.

Layout 1, ``manifest.csv`` (UTF-8, commas, a header line) beside the images::

    path,subject_id,role,emotion,age,sex,ethnicity,sha256,Smiling,Eyeglasses
    images/0001.jpg,anna,evaluate,neutral,34,female,white,9f86d0...,0,1

``path`` (relative, forward slashes, within the folder) and ``subject_id`` are required, the rest is optional:

* ``sha256``: the file must have it.
* ``role``: the split that the person belongs to; a person may not be in two.  Without it persons are split by ``shares``.
* ``emotion``: class name; the common adjectives (happy, sad, ...) become the nouns that deidbench uses.
* ``sex``, ``ethnicity``, ``age``: groups for the fairness figures; age in years becomes a band.
* any further column whose cells are all 0/1 or all -1/1 (CelebA's style): an attribute.  An attribute ``Male`` also gives
  the group "sex" where there is no column for it.
* other columns are ignored, and listed in :attr:`Folder.ignored_columns`.

Empty cells mean "unknown", and so do NA, N/A, NaN, null, unknown and ? in the label columns.

Layout 2: ``person/anything.jpg``; the first folder's name is the person.
"""

from __future__ import annotations

import bisect
import csv
import io
import logging
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PureWindowsPath

from deidbench.datasets.base import Dataset, manifest_sha256, split_persons
from deidbench.errors import InputError, MissingError
from deidbench.kinds import datasets
from deidbench.types import Sample

logger = logging.getLogger(__name__)

#: Lower ends of the age bands in years, and their names.
AGE_FROM = (0, 18, 30, 45, 60)
AGE_BANDS = ("0-17", "18-29", "30-44", "45-59", "60+")
#: Columns that are never attributes.
RESERVED = ("path", "subject_id", "role", "emotion", "sha256", "age", "sex", "ethnicity")
EMOTION_NAMES = {
    "happy": "happiness", "sad": "sadness", "angry": "anger", "surprised": "surprise", "fearful": "fear", "afraid": "fear",
    "disgusted": "disgust", "contemptuous": "contempt",
}  # fmt: skip
SEX_NAMES = {"m": "male", "f": "female", "man": "male", "woman": "female"}
#: Cells (lower case) of label columns that say as much as an empty one.
UNKNOWN = frozenset({"na", "n/a", "nan", "null", "unknown", "?"})
#: How many offenders an error names.
NAMED = 5


@dataclass(frozen=True)
class _Entry:
    path: Path
    id: str
    subject: str
    sha256: str = ""
    role: str = ""
    emotion: str | None = None
    attributes: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Index:
    """What the folder holds, before roles and limits."""

    entries: list[_Entry]
    has_roles: bool = False
    ignored_columns: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


@datasets.register("folder")
class Folder(Dataset):
    """Images in a folder, with a manifest or one sub-folder per person.

    root: the folder.  manifest_file: name of the manifest in it, which may be absent.
    subject_from: who is in a picture.  "auto": the manifest where there is one, else the first sub-folder; "manifest" or
        "folder" insist on one of them; "re:PATTERN" searches the regular expression in the relative path and takes its
        first group, e.g. ``re:([^/]+)_\\d+\\.jpg$`` for ``images/Abdullah_Gul_0002.jpg`` (no manifest is read then).
    role: only samples of this role.
    shares, split_seed: role -> share of the persons, where the manifest has no column ``role`` (default: all ``evaluate``).
    limit_persons: only the first so many persons *of each role*, in natural order (a person's role never depends on it).
    limit_images: only the first so many images of each person.
    check_sha256: False ignores the manifest's hashes (for files that were changed on purpose); hashes are then computed.
    publishable: True where these faces may be shown, so that reports do; without it they leave faces out.

    A sample's ``sha256`` is the manifest's where it has one; whoever reads the image compares
    (``read_image(path, sha256=...)``), and :meth:`verify` compares all at once.
    """

    title = "images in a folder, with a manifest or one sub-folder per person"

    def __init__(
        self,
        root: str | os.PathLike[str],
        manifest_file: str = "manifest.csv",
        subject_from: str = "auto",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        check_sha256: bool = True,
        publishable: bool = False,
    ) -> None:
        self.root = root
        self.manifest_file = manifest_file
        self.subject_from = subject_from
        self.role = role
        self.shares = shares
        self.split_seed = split_seed
        self.limit_persons = limit_persons
        self.limit_images = limit_images
        self.check_sha256 = check_sha256
        self.publishable = publishable

    # -- what a caller sees ------------------------------------------------------------------------------------
    @property
    def shows_faces(self) -> bool:
        return self.publishable

    def missing(self) -> str:
        root = self._root()
        return "" if root.is_dir() else f"{root} is not a folder: set its parameter root to the folder with the images"

    def samples(self) -> Iterator[Sample]:
        """In the manifest's order, or natural order of the paths.  Hashes that the manifest lacks are computed on the way.

        Raises MissingError where there is no such folder, InputError for a manifest or folder that is not usable.
        """
        from deidbench.images import sha256_file

        chosen = self._chosen()
        with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 2)) as pool:  # hashing and reading release the GIL
            entries = iter(chosen)
            while window := list(islice(entries, 256)):
                unknown = [e.path for e, _ in window if not (e.sha256 and self.check_sha256)]
                computed = dict(zip(unknown, pool.map(sha256_file, unknown), strict=True)) if unknown else {}
                for entry, role in window:
                    yield Sample(
                        id=entry.id, path=entry.path, subject_id=entry.subject, sha256=computed.get(entry.path) or entry.sha256, role=role,
                        emotion=entry.emotion, attributes=entry.attributes, groups=entry.groups,
                    )  # fmt: skip

    def verify(self) -> str:
        """Reads every file, compares it with the manifest's hash, and returns the hash of the whole set.

        Raises InputError naming the first files that differ, with their number.
        """
        from deidbench.images import sha256_file

        samples = list(self.samples())
        with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 2)) as pool:
            found = list(pool.map(lambda s: sha256_file(s.path), samples))
        wrong = [s.id for s, digest in zip(samples, found, strict=True) if s.sha256 != digest]
        if wrong:
            raise InputError(
                f"data set 'folder': {len(wrong)} of {len(samples)} files in {self._root()} are not those of the manifest "
                f"(SHA-256 differs): {_some(wrong)}",
                "restore the files, correct the manifest's sha256, or set check_sha256 = false",
            )
        return manifest_sha256(
            {"id": s.id, "subject_id": s.subject_id, "sha256": d} for s, d in zip(samples, found, strict=True)
        )

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Columns of the manifest that are not used."""
        return self._index().ignored_columns

    @property
    def skipped(self) -> Mapping[str, int]:
        """What lies in the person folders and is no image: file ending -> count."""
        return self._index().skipped

    # -- how it is found out -----------------------------------------------------------------------------------
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    def _index(self) -> _Index:
        root = self._root()
        if not root.is_dir():
            raise MissingError(
                f"data set 'folder': {root} is not a folder", "set its parameter root to the folder with the images"
            )
        table = root / self.manifest_file
        if self.subject_from == "manifest" or (self.subject_from == "auto" and table.exists()):
            return _read_manifest(root, table)
        if self.subject_from in ("auto", "folder"):
            return _walk(root, None)
        if self.subject_from.startswith("re:"):
            return _walk(root, _compiled(self.subject_from[3:]))
        raise InputError(
            f"data set 'folder': unknown subject_from {self.subject_from!r}", 'use "auto", "manifest", "folder" or "re:PATTERN"'
        )

    def _chosen(self) -> list[tuple[_Entry, str]]:
        """Entries with their roles, after ``role`` and the limits."""
        for name in ("limit_persons", "limit_images"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise InputError(f"data set 'folder': {name} = {limit} is not positive", f"leave {name} out for no limit")
        index = self._index()
        if index.ignored_columns:
            logger.info("%s: columns not used: %s", self._root() / self.manifest_file, ", ".join(index.ignored_columns))
        if index.skipped:
            logger.warning("%s: %d files are not images: %s", self._root(), sum(index.skipped.values()), dict(index.skipped))
        if index.has_roles:
            if self.shares:
                raise InputError(
                    "data set 'folder': the manifest has a column role, so shares would change a stored split",
                    "leave shares out, or take the column out of the manifest",
                )
            roles = {e.subject: e.role for e in index.entries}
        else:
            roles = split_persons((e.subject for e in index.entries), self.shares or {"evaluate": 1.0}, self.split_seed)
        if self.role is not None and self.role not in roles.values():
            raise InputError(
                f"data set 'folder': no person in {self._root()} has role {self.role!r}",
                f"roles there: {', '.join(sorted(set(roles.values())))}",
            )
        persons: dict[str, list[str]] = {}
        for subject in sorted(roles, key=natural_key):
            persons.setdefault(roles[subject], []).append(subject)
        wanted = {s for role, names in persons.items() if self.role in (None, role) for s in names[: self.limit_persons]}
        taken: Counter[str] = Counter()
        chosen = []
        for entry in index.entries:
            taken[entry.subject] += 1
            if entry.subject in wanted and (self.limit_images is None or taken[entry.subject] <= self.limit_images):
                chosen.append((entry, roles[entry.subject]))
        return chosen


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorting key by which "s2" comes before "s10"."""
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]


def age_band(age: float) -> str:
    """The band of an age in years (0 or more)."""
    return AGE_BANDS[bisect.bisect_right(AGE_FROM, age) - 1]


def _some(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------------------------------- layout 1: manifest


def _rows(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (line number, cells) of a CSV file.  Raises InputError for whatever is not one."""
    try:
        data = table.read_bytes()
    except OSError as error:
        raise InputError(
            f"{table} cannot be read: {error.strerror or error}", "check the name (manifest_file) and its permissions"
        ) from error
    save = "save it as CSV, UTF-8, separated by commas"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{table} is UTF-16", save)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{table}, line {line}: not UTF-8 (byte {data[error.start]:#04x})", save) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise InputError(f"{table}, line {reader.line_num}: {error}", save) from error
    if not rows:
        raise InputError(f"{table} is empty", "its first line must name the columns: path,subject_id,...")
    header = rows[0][1]
    if lacking := [c for c in ("path", "subject_id") if c not in header]:
        for mark, label in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if any(mark in cell for cell in header):
                raise InputError(f"{table} is separated by {label}", save)
        raise InputError(
            f"{table} has no column {' and '.join(lacking)} (it has: {', '.join(header)})",
            "its first line must name the columns: path,subject_id,...",
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


def _attribute_values(cells: Iterable[str]) -> dict[str, int] | None:
    """cell -> 0/1 where the column holds only 0/1 or only -1/1 (and empty cells), else None."""
    values = set(cells) - {""}
    if values and values <= {"0", "1"}:
        return {"0": 0, "1": 1}
    if values and values <= {"-1", "1"}:
        return {"-1": 0, "1": 1}
    return None


def _read_manifest(root: Path, table: Path) -> _Index:
    header, rows = _rows(table)
    column = {name: i for i, name in enumerate(header)}
    labels = [i for name, i in column.items() if name not in ("path", "subject_id", "role")]
    for i in labels:
        for odd in [value for value in {cells[i] for _, cells in rows} if value.lower() in UNKNOWN]:
            for _, cells in rows:
                cells[i] = "" if cells[i] == odd else cells[i]
    attributes: dict[str, dict[str, int]] = {}
    ignored = []
    for name, i in column.items():
        if name in RESERVED:
            continue
        values = _attribute_values(cells[i] for _, cells in rows) if name else None
        if values is None:
            ignored.append(name)
        else:
            attributes[name] = values

    attribute_columns = [(name, column[name], values) for name, values in attributes.items()]
    inside = _Inside(root, table)
    entries: list[_Entry] = []
    seen: dict[str, int] = {}
    missing: list[str] = []
    roles: dict[str, tuple[str, int]] = {}
    for line, cells in rows:

        def cell(name: str, cells: list[str] = cells) -> str:
            return cells[column[name]] if name in column else ""

        relative = inside.checked(cell("path"), line)
        if relative in seen:
            raise InputError(
                f"{table}, lines {seen[relative]} and {line}: {relative} is listed twice", "remove one of the lines"
            )
        seen[relative] = line
        if not inside.is_file(relative, line):
            missing.append(f"{relative} (line {line})")
            continue
        subject, role = cell("subject_id"), cell("role")
        if not subject:
            raise InputError(f"{table}, line {line}: subject_id is empty", "name the person, or remove the line")
        if "role" in column:
            if not role:
                raise InputError(
                    f"{table}, line {line}: role is empty", "fill it in, or remove the column to have persons split by shares"
                )
            other, first = roles.setdefault(subject, (role, line))
            if other != role:
                raise InputError(
                    f"{table}, lines {first} and {line}: person {subject!r} is in the roles {other!r} and {role!r}",
                    "splits must be person-disjoint: give all images of a person the same role",
                )
        digest = cell("sha256").lower()
        if digest and not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise InputError(
                f"{table}, line {line}: sha256 is not 64 hexadecimal digits", "correct it, or leave the cell empty"
            )
        entries.append(
            _Entry(
                path=root / relative,
                id=relative,
                subject=subject,
                sha256=digest,
                role=role,
                emotion=EMOTION_NAMES.get(cell("emotion").lower(), cell("emotion").lower()) or None,
                attributes={n: values[cells[i]] for n, i, values in attribute_columns if cells[i]},
                groups=_groups(
                    cell("sex"),
                    cell("age"),
                    cell("ethnicity"),
                    "" if "sex" in column else cell("Male"),
                    f"{table}, line {line}",
                ),
            )
        )
    if missing:
        raise InputError(
            f"{table} lists {len(missing)} of {len(rows)} files that are not there: {_some(missing)}",
            f"put them into {root}, or take their lines out of the manifest",
        )
    return _Index(entries, "role" in column, tuple(ignored))


def _groups(sex: str, age: str, ethnicity: str, male: str, where: str) -> dict[str, str]:
    groups = {}
    if sex:
        groups["sex"] = SEX_NAMES.get(sex.lower(), sex.lower())
    elif male in ("-1", "0", "1"):
        groups["sex"] = "male" if male == "1" else "female"
    if age:
        try:
            years = float(age)
        except ValueError:
            years = -1.0
        if not 0 <= years <= 150:
            raise InputError(f"{where}: age {age!r} is not a number of years", "correct it, or leave the cell empty")
        groups["age"] = age_band(years)
    if ethnicity:
        groups["ethnicity"] = ethnicity.lower()
    return groups


class _Inside:
    """Checks that the paths of a manifest are ordinary files within its folder: a manifest may come from anybody."""

    def __init__(self, root: Path, table: Path) -> None:
        self.root, self.table, self.real = root, table, os.path.realpath(root)
        self._parents: dict[str, bool] = {}

    def checked(self, path: str, line: int) -> str:
        """``path`` in its normal form.  Raises InputError for one that is absolute or climbs."""
        where = f"{self.table}, line {line}"
        if not path:
            raise InputError(f"{where}: path is empty", "name the file, or remove the line")
        if "\0" in path or "\\" in path:
            raise InputError(f"{where}: {path!r} is not a portable path", "separate folders by forward slashes")
        if path.startswith("/") or PureWindowsPath(path).drive or path.startswith("~"):
            raise InputError(f"{where}: {path!r} is an absolute path", f"paths are relative to {self.root}")
        if ".." in path.split("/"):
            raise InputError(f"{where}: {path!r} climbs out with '..'", f"paths are relative to {self.root} and stay within it")
        return posixpath.normpath(path)

    def is_file(self, relative: str, line: int) -> bool:
        """False when there is no such file.  Raises InputError when it lies elsewhere or is something else."""
        where = f"{self.table}, line {line}"
        parent = posixpath.dirname(relative)
        if parent not in self._parents:
            self._parents[parent] = self._within(parent)
        full = self.root / relative
        try:
            info = full.lstat()
            if not self._parents[parent] or (stat.S_ISLNK(info.st_mode) and not self._within(relative)):
                raise InputError(
                    f"{where}: {relative!r} leads out of the folder by a symbolic link", f"copy the file into {self.root}"
                )
            if stat.S_ISLNK(info.st_mode):
                info = full.stat()
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


# ------------------------------------------------------------------------------------------- layout 2: person folders


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"data set 'folder': subject_from is not a regular expression: {error}", r"e.g. re:([^/]+)_\d+\.jpg$"
        ) from error
    if compiled.groups < 1:
        raise InputError(
            "data set 'folder': the pattern in subject_from has no group",
            r"put the person in parentheses: re:([^/]+)_\d+\.jpg$",
        )
    return compiled


def _walk(root: Path, pattern: re.Pattern[str] | None) -> _Index:
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
    if not found:
        raise InputError(
            f"{root} holds neither a manifest nor images ({sum(skipped.values())} other files)",
            "point root at the folder with the images",
        )
    found.sort(key=natural_key)
    if pattern is not None:
        matches = {path: pattern.search(path) for path in found}
        unnamed = [path for path, match in matches.items() if match is None or not match.group(1)]
        subjects = {path: match.group(1) for path, match in matches.items() if match is not None}
        rule, remedy = f"do not match {pattern.pattern!r}", "widen the pattern, or move them away"
    else:
        unnamed = [path for path in found if "/" not in path]
        subjects = {path: path.split("/", 1)[0] for path in found}
        rule, remedy = (
            "lie in no person's folder",
            "put each person's images into a sub-folder, or write a manifest.csv (path,subject_id)",
        )
    if unnamed:
        raise InputError(f"{root}: {len(unnamed)} of {len(found)} images {rule}: {_some(unnamed)}", remedy)
    return _Index([_Entry(path=root / path, id=path, subject=subjects[path]) for path in found], skipped=dict(skipped))
