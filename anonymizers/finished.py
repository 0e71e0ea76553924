"""Pictures that were anonymised elsewhere: a folder of finished images, matched to the originals by name."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from deidbench.anonymizers.base import Anonymizer, Reader
from deidbench.anonymizers.regions import check_choice, image_fault
from deidbench.errors import DeidbenchError, InputError, MissingError
from deidbench.kinds import anonymizers
from deidbench.spreadsheet import exact
from deidbench.types import Anonymized, Item, Sample, Status

#: Endings of pictures; of two that differ in nothing else the first is taken.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
#: What ``deidbench anonymize`` leaves beside its outputs.
STATUS_FILE = "deidbench-status.csv"
NAMED = 5


@anonymizers.register("folder")
class FinishedFolder(Anonymizer):
    """Finished images out of a folder: whatever made them, wherever.

    root: the folder.  match: "path": the picture of ``anna/1.jpg`` is ``root/anna/1.png`` (any ending); "name": it is the one
        called ``1``, wherever it lies in the folder, which needs names that are unique.
    same_size: False takes pictures of another size than their originals (crops, other resolutions) as they are.
    learnt_from: data sets that the method learnt from; results on them are flagged.

    An original without a picture is ``failed`` and counts; a status file of ``deidbench anonymize`` in the folder says why.
    A folder in which no original has a picture is refused.
    """

    licence = "of whatever made the pictures"
    needs_faces = False
    needs_gallery = True
    incidental = ("root",)

    def __init__(self, root: str = "", match: str = "path", same_size: bool = True, learnt_from: Sequence[str] = ()) -> None:
        self.root = root
        self.match = match
        self.same_size = same_size
        self.learnt_from = learnt_from

    @property
    def trained_on(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the user says of it."""
        return tuple(self.learnt_from)

    def validate(self) -> None:
        """Raises InputError for a parameter that makes no sense."""
        if not isinstance(self.root, str) or not self.root:
            raise InputError(
                f"{self.name}: root names no folder", "params = { root = FOLDER }, the one with the finished images"
            )
        check_choice(self.name, "match", self.match, ("path", "name"))

    def load(self) -> None:
        """Raises MissingError where the folder is not there."""
        self.validate()
        if not self._root().is_dir():
            raise MissingError(
                f"{self.name}: {self._root()} is not a folder", "set root to the folder with the finished images"
            )

    def _root(self) -> Path:
        return Path(self.root).expanduser()

    def fitted_sha256(self) -> str:
        """SHA-256 over all pictures that belong to an original, and over what is said of the others."""
        found: dict[str, Any] | None = getattr(self, "_found", None)
        return "" if found is None else hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def fit(self, samples: Iterable[Sample], read: Reader | None = None) -> None:
        """Looks up the picture of every original; no original is read.

        Raises InputError where none has one, or where one picture would stand for two originals.
        """
        from deidbench.images import sha256_file

        self.load()
        ids = sorted(s.id for s in samples)
        pictures = self._pictures()
        chosen: dict[str, str] = {}
        for id in ids:
            if (relative := pictures.get(self._key(id))) is not None:
                chosen[id] = relative
        if ids and not chosen:
            some = ", ".join(sorted(pictures.values())[:NAMED]) or "none"
            raise InputError(
                f"{self.name}: no original has a picture in {self._root()}: {ids[0]} was looked for, pictures there: {some}",
                "match = 'name' where only the names agree; else name the files as the originals"
                if self.match == "path"
                else "name the files as the originals",
            )
        owners: dict[str, str] = {}
        for id, relative in chosen.items():
            other = owners.setdefault(relative, id)
            if other != id:
                raise InputError(
                    f"{self.name}: {relative} in {self._root()} would stand for {other} and for {id}",
                    "match = 'path', with the finished images in folders as the originals",
                )
        words = self._statuses()
        self._found: dict[str, list[str]] = {}
        for id in ids:
            if id in chosen:
                self._found[id] = ["ok", chosen[id], sha256_file(self._root() / chosen[id])]
            elif (said := words.get(self._key(id))) is not None:
                self._found[id] = list(said)
            else:
                self._found[id] = ["failed", f"there is no finished picture of {id}", ""]

    def _key(self, name: str) -> str:
        """By what a picture and its original are matched."""
        path = PurePosixPath(name.replace("\\", "/"))
        stem = path.with_suffix("") if path.suffix.lower() in ENDINGS else path
        return stem.name if self.match == "name" else stem.as_posix()

    def _pictures(self) -> dict[str, str]:
        """Key -> path within the folder.  Raises InputError for two pictures of one name."""
        from deidbench.datasets.files import Inside

        root = self._root()
        inside = Inside(root)
        found: dict[str, str] = {}
        for folder, _, names in os.walk(root):  # links to folders are not followed
            for name in names:
                path = Path(folder) / name
                if path.suffix.lower() not in ENDINGS:
                    continue
                relative = path.relative_to(root).as_posix()
                if not inside.is_file(relative, f"{self.name}: {root}"):  # raises for a link that leads out of the folder
                    continue
                other = found.get(self._key(relative))
                if other is not None and PurePosixPath(other).with_suffix("") != PurePosixPath(relative).with_suffix(""):
                    raise InputError(
                        f"{self.name}: {other} and {relative} in {root} have the same name", "match = 'path', or other names"
                    )
                if other is None or _rank(relative) < _rank(other):
                    found[self._key(relative)] = relative
        return found

    def _statuses(self) -> dict[str, tuple[str, str, str]]:
        """What the status file says of originals that have no picture: key -> (status, reason, "")."""
        path = self._root() / STATUS_FILE
        if not path.is_file():
            return {}
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error):
            return {}
        known = {s.value for s in Status} - {Status.OK.value}
        return {
            self._key(exact(r["path"])): (r["status"], r.get("reason") or "the status file says so", "")
            for r in rows
            if r.get("path") and r.get("status") in known
        }

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        """One result per item, in order; the pictures are those that :meth:`fit` found."""
        if getattr(self, "_found", None) is None:
            self.fit(Sample(item.id, Path(), "", "") for item in items)
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Anonymized:
        from deidbench.images import read_image

        if fault := image_fault(item.image):
            return Anonymized.failed(item.id, fault)
        status, what, digest = self._found.get(item.id) or ("failed", f"{item.id} was not among the originals", "")
        if status != "ok":
            return Anonymized(item.id, Status(status), None, (), what)
        try:
            picture = read_image(self._root() / what, sha256=digest)
        except DeidbenchError as error:
            return Anonymized.failed(
                item.id, f"the finished picture {what}: {error.message.replace(str(self._root()), '(root)')}"
            )
        if self.same_size and picture.shape != item.image.shape:
            (h, w), (H, W) = picture.shape[:2], item.image.shape[:2]
            return Anonymized.failed(
                item.id,
                f"the finished picture {what} has {w} x {h} pixels, its original {W} x {H} (same_size = false takes it)",
            )
        return Anonymized(item.id, Status.OK, picture)


def _rank(name: str) -> tuple[int, str]:
    return ENDINGS.index(PurePosixPath(name).suffix.lower()), name
