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

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from deidbench.datasets.base import Dataset, manifest_sha256, split_persons
from deidbench.datasets.files import (
    EMOTION_NAMES,
    SEX_NAMES,
    Entry,
    Inside,
    age_band,
    check_limits,
    choose,
    csv_rows,
    hashed,
    images_below,
    natural_key,
    some,
    threads,
)
from deidbench.errors import InputError, MissingError
from deidbench.kinds import datasets
from deidbench.types import Sample

__all__ = ["Folder", "age_band", "natural_key", "read_manifest"]

logger = logging.getLogger(__name__)

#: Columns that are never attributes.
RESERVED = ("path", "subject_id", "role", "emotion", "sha256", "age", "sex", "ethnicity")
#: Cells (lower case) of label columns that say as much as an empty one.
UNKNOWN = frozenset({"na", "n/a", "nan", "null", "unknown", "?"})


@dataclass(frozen=True)
class Index:
    """What a folder holds, before roles and limits."""

    entries: list[Entry]
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

        def known(entry: Entry) -> str:
            return entry.sha256 if self.check_sha256 else ""

        yield from hashed(self._root(), self._chosen(), known)

    def verify(self) -> str:
        """Reads every file, compares it with the manifest's hash, and returns the hash of the whole set.

        Raises InputError naming the first files that differ, with their number.
        """
        from deidbench.images import sha256_file

        samples = list(self.samples())
        with ThreadPoolExecutor(max_workers=threads()) as pool:
            found = list(pool.map(lambda s: sha256_file(s.path), samples))
        wrong = [s.id for s, digest in zip(samples, found, strict=True) if s.sha256 != digest]
        if wrong:
            raise InputError(
                f"data set 'folder': {len(wrong)} of {len(samples)} files in {self._root()} are not those of the manifest "
                f"(SHA-256 differs): {some(wrong)}",
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

    def _index(self) -> Index:
        root = self._root()
        if not root.is_dir():
            raise MissingError(
                f"data set 'folder': {root} is not a folder", "set its parameter root to the folder with the images"
            )
        table = root / self.manifest_file
        if self.subject_from == "manifest" or (self.subject_from == "auto" and table.exists()):
            return read_manifest(root, table)
        if self.subject_from in ("auto", "folder"):
            return _walk(root, None)
        if self.subject_from.startswith("re:"):
            return _walk(root, _compiled(self.subject_from[3:]))
        raise InputError(
            f"data set 'folder': unknown subject_from {self.subject_from!r}", 'use "auto", "manifest", "folder" or "re:PATTERN"'
        )

    def _chosen(self) -> list[tuple[Entry, str]]:
        """Entries with their roles, after ``role`` and the limits."""
        check_limits("folder", limit_persons=self.limit_persons, limit_images=self.limit_images)
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
        where = f"data set 'folder': {self._root()}"
        return choose(index.entries, roles, self.role, self.limit_persons, self.limit_images, where)


# ------------------------------------------------------------------------------------------------- layout 1: manifest


def _attribute_values(cells: Iterable[str]) -> dict[str, int] | None:
    """cell -> 0/1 where the column holds only 0/1 or only -1/1 (and empty cells), else None."""
    values = set(cells) - {""}
    if values and values <= {"0", "1"}:
        return {"0": 0, "1": 1}
    if values and values <= {"-1", "1"}:
        return {"-1": 0, "1": 1}
    return None


def read_manifest(root: Path, table: Path) -> Index:
    """The images that ``table`` lists, as the head of this module describes it.  Raises InputError naming the line."""
    header, rows = csv_rows(table, ("path", "subject_id"), "path,subject_id,...")
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
    inside = Inside(root)
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    missing: list[str] = []
    roles: dict[str, tuple[str, int]] = {}
    for line, cells in rows:

        def cell(name: str, cells: list[str] = cells) -> str:
            return cells[column[name]] if name in column else ""

        relative = inside.checked(cell("path"), f"{table}, line {line}")
        if relative in seen:
            raise InputError(
                f"{table}, lines {seen[relative]} and {line}: {relative} is listed twice", "remove one of the lines"
            )
        seen[relative] = line
        if not inside.is_file(relative, f"{table}, line {line}"):
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
            Entry(
                path=relative,
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
            f"{table} lists {len(missing)} of {len(rows)} files that are not there: {some(missing)}",
            f"put them into {root}, or take their lines out of the manifest",
        )
    return Index(entries, "role" in column, tuple(ignored))


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


def _walk(root: Path, pattern: re.Pattern[str] | None) -> Index:
    found, skipped = images_below(root)
    inside = Inside(root)
    for path in found:  # a link may lead out of the folder, and a pipe called x.png would be waited for without end
        inside.is_file(path, str(root))
    if not found:
        raise InputError(
            f"{root} holds neither a manifest nor images ({sum(skipped.values())} other files)",
            "point root at the folder with the images",
        )
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
        raise InputError(f"{root}: {len(unnamed)} of {len(found)} images {rule}: {some(unnamed)}", remedy)
    return Index([Entry(path=path, subject=subjects[path]) for path in found], skipped=skipped)
