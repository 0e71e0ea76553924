"""What the sets of facial expressions share: words for emotions, folders named by class, long CSV files line by line, and an
account of what is left out."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from deidbench.datasets.files import EMOTION_NAMES, Entry, natural_key, ordinary
from deidbench.datasets.official import MISSING, NOTE, OK, WRONG, Finding, OfficialDataset
from deidbench.errors import InputError

logger = logging.getLogger(__name__)

#: The eight classes that deidbench knows, in the order of the alphabet.
EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
SAVE = "copy or download it again; it is CSV, UTF-8, separated by commas"


def emotion_named(word: str) -> str | None:
    """The house's noun for what a folder or a list calls ``word``, whatever its case; None for what is no emotion."""
    w = word.strip().lower()
    w = EMOTION_NAMES.get(w, w)
    return w if w in EMOTIONS else None


def sub_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, in natural order; links are not followed, hidden ones are left out."""
    try:
        with os.scandir(root) as found:
            names = [e.name for e in found if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{root} cannot be listed: {error.strerror or error}", "check its permissions") from error
    return sorted(names, key=natural_key)


def images_in(folder: Path) -> list[str]:
    """Names of the images that lie directly in ``folder``, in natural order.  Raises InputError."""
    from deidbench.images import IMAGE_SUFFIXES

    try:
        names = [p.name for p in folder.iterdir()]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror or error}", "check its permissions") from error
    # "._x.jpg" is what macOS leaves on foreign disks
    return sorted((n for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES and not n.startswith(".")), key=natural_key)


def first_of(root: Path, *names: str) -> Path | None:
    """The first of ``names`` that exists in ``root``."""
    return next((root / name for name in names if (root / name).exists()), None)


def below(root: Path, path: Path) -> str:
    """``path`` relative to ``root``, with forward slashes; "." for ``root`` itself."""
    return path.relative_to(root).as_posix()


def class_folders(root: Path, classes: dict[str, str] | None = None) -> dict[str, str]:
    """Sub-folder -> emotion, of the sub-folders of ``root`` that are named by a class.

    classes: what a set calls its classes in lower case, e.g. numbers, on top of the words.
    """
    out = {}
    for name in sub_folders(root) if root.is_dir() else ():
        emotion = (classes or {}).get(name.strip().lower()) or emotion_named(name)
        if emotion:
            out[name] = emotion
    return out


def csv_lines(table: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> stripped cell) of a CSV file with a header, one line at a time: some have 300 MB.

    Names of columns are stripped: those of icml_face_data.csv begin with a blank.  required: columns that must be there.
    Raises InputError naming file and line.
    """
    number = 1
    try:
        ordinary(table)
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if lacking := [c for c in required if c not in header]:
                has = ", ".join(header)[:200] or "nothing"
                raise InputError(
                    f"{table} has no column {' and '.join(lacking)} (it has: {has})",
                    f"its first line must name the columns: {','.join(required)}",
                )
            number = reader.line_num
            for cells in reader:
                number = reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"{table}, line {number}: {len(cells)} cells, the header has {len(header)}", f"is it cut off?  {SAVE}"
                    )
                yield number, dict(zip(header, (c.strip() for c in cells), strict=True))
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror or error}", "check the name and its permissions") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table}, after line {number}: not UTF-8 ({error.reason})", SAVE) from None
    except csv.Error as error:
        raise InputError(f"{table}, line {number + 1}: {error}", SAVE) from error


def whole_number(text: str, where: str, what: str, low: int, high: int) -> int:
    """``text`` as a whole number within [low, high].  Raises InputError saying ``where`` and ``what`` it is."""
    # int() alone would take 1_0, and digits of other scripts
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or not low <= (value := int(text)) <= high:
        raise InputError(f"{where}: {what} is {text[:40]!r}, not a whole number from {low} to {high}", SAVE)
    return value


class Counted(OfficialDataset):
    """A set that leaves out some of what its lists name, for a reason, and says how much."""

    #: Images of the whole set, as :meth:`size` tells them; the check counts by split (see ``_more``).
    all_images: ClassVar[int]

    def size(self) -> tuple[int | None, int | None]:
        return self.expected.persons, self.all_images

    def holds_classes(self, place: Path | None, classes: Mapping[str, str]) -> bool:
        """Whether ``place`` is what the set's part of this name is: a list, or a folder of labels or classes.

        Many a folder that is read by its manifest has sub-folders called train and test, too.
        """
        return place is not None and (place.is_file() or bool(class_folders(place, dict(classes))))

    def start(self) -> None:
        """Forgets what an earlier reading left out.  To be called first in ``_entries``."""
        self.left_out_: Counter[str] = Counter()

    def leave_out(self, why: str, n: int = 1) -> None:
        """why: in words, in the plural; the number is put before it."""
        self.left_out_[why] += n

    def left_out(self) -> Mapping[str, int]:
        """What the last reading left out: reason -> number."""
        return dict(getattr(self, "left_out_", {}))

    def _chosen(self) -> list[tuple[Entry, str]]:
        chosen = super()._chosen()
        if out := self.left_out():
            logger.warning("data set %r: left out: %s", self.name, "; ".join(f"{n:,} {why}" for why, n in out.items()))
        return chosen

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        """Findings about the entries of a folder that is being checked."""
        for why, n in self.left_out().items():
            yield Finding(NOTE, f"left out: {n:,} {why}", found=n)

    def count(self, what: str, n: int, expected: int, remedy: str = "") -> Finding:
        """A number against that of the whole set."""
        if n == expected:
            return Finding(OK, f"{n:,} {what}", found=n, expected=expected)
        subset = self.partial or self.reads_manifest
        level = NOTE if subset else MISSING if n < expected else WRONG
        get = f"got at {self.homepage}; or --partial for what is there" if n < expected else "take out what is not the set's"
        return Finding(level, f"{n:,} {what}, the whole set has {expected:,}", "" if subset else remedy or get, n, expected)

    def count_splits(
        self, there: Iterable[Entry], expected: Mapping[str, Mapping[str, int]], what: str = "images"
    ) -> Iterator[Finding]:
        """Numbers by official split and emotion against ``expected``; splits of which nothing is there are no fault."""
        found: dict[str, Counter[str]] = {}
        for e in there:
            found.setdefault(e.role, Counter())[e.emotion or ""] += 1
        for split, classes in expected.items():
            if split not in found:
                yield Finding(NOTE, f"nothing of the official split {split!r} is there")
                continue
            mine = found[split]
            yield self.count(f"{what} of {split!r}", sum(mine.values()), sum(classes.values()))
            if wrong := [f"{c} {mine[c]:,} (of {n:,})" for c, n in classes.items() if mine[c] != n and c]:
                yield Finding(NOTE, f"{split!r} by class: {', '.join(wrong)}")
