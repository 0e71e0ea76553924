"""Labeled Faces in the Wild: 13,233 photographs of 5,749 persons, one folder each, and the official pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from deidbench.datasets.files import images_below, some, text_lines
from deidbench.datasets.official import Archive, Download, Entry, Finding, Layout, OfficialDataset, Part
from deidbench.errors import InputError, MissingError
from deidbench.kinds import datasets
from deidbench.types import Box

IMAGES, PERSONS = 13_233, 5_749
#: View 2: folds, and genuine pairs per fold (as many impostor pairs follow them).
FOLDS, PAIRS = 10, 300
#: The face that is meant: every image was cut 2.2 times as wide and high as the face that a detector found, then brought to 250
#: pixels (Huang et al. 2007); it may show other people beside, and larger ones.
SIDE, EXPANSION = 250, 2.2
FACE = Box(*(SIDE / 2 * (1 + sign / EXPANSION) for sign in (-1, -1, 1, 1)))
_FILE = re.compile(r"(?P<person>.+)_(?P<number>\d{4})")
_SHARE = "https://ndownloader.figshare.com/files/"
FORMS = {
    "original": ("lfw", "lfw/lfw", "lfw_home/lfw", "lfw-py/lfw"),
    "funneled": ("lfw_funneled", "lfw_funneled/lfw_funneled", "lfw-funneled", "lfw_home/lfw_funneled", "lfw-py/lfw_funneled"),
    "deepfunneled": ("lfw-deepfunneled/lfw-deepfunneled", "lfw-deepfunneled", "lfw_deepfunneled", "lfw-py/lfw-deepfunneled"),
}


class ImagePair(NamedTuple):
    """A pair of the official lists: names of images as ``Name_0001``, fold from 0, and where the list has it."""

    fold: int
    first: str
    second: str
    same: bool
    where: str = ""


@datasets.register("lfw")
class LFW(OfficialDataset):
    """LFW (Huang et al. 2007): faces of public figures as they were found, 250 x 250 pixels, and View 2's ten folds of pairs.

    images: "original" (folder lfw), "funneled" (lfw_funneled), "deepfunneled" (lfw-deepfunneled), or "auto": the first of
        deepfunneled, funneled, original that is there, or person folders straight in the root.
    view1: True takes the official development split (peopleDevTrain.txt, peopleDevTest.txt) as roles: its test persons are
        evaluated, its train persons are the attacker's.  Else persons are split by shares.

    centred: the person is in the middle of the image, whoever else is there; False for images that were cut otherwise.

    ``male_names.txt`` and ``female_names.txt`` (lists of images or persons, one a line) beside the images give the sex, where
    they are.  The metric ``lfw-pairs`` takes ``pairs.txt`` from the folder.
    """

    version = "1"
    title = "Labeled Faces in the Wild (5,749 persons, 13,233 images)"
    citation = (
        "Huang, Ramesh, Berg & Learned-Miller, Labeled Faces in the Wild: A Database for Studying Face Recognition in "
        "Unconstrained Environments, Univ. of Massachusetts Amherst, TR 07-49, 2007"
    )
    licence = "research use; photographs belong to their owners"
    homepage = "http://vis-www.cs.umass.edu/lfw/"
    terms = "anybody may have it for research; the photographs come from news and belong to their owners: do not publish them"
    split_roles: ClassVar[Mapping[str, str]] = {"test": "evaluate", "train": "attacker_train"}
    expected = Layout(
        tree="""lfw/ (or lfw_funneled/, lfw-deepfunneled/)
  Aaron_Eckhart/Aaron_Eckhart_0001.jpg
  ...
pairs.txt                     View 2: ten folds of 300 genuine and 300 impostor pairs
peopleDevTrain.txt, peopleDevTest.txt   only for view1 = true""",
        parts=(
            Part("original", FORMS["original"], "folder with a sub-folder per person"),
            Part("funneled", FORMS["funneled"], "folder with a sub-folder per person"),
            Part("deepfunneled", FORMS["deepfunneled"], "folder with a sub-folder per person"),
            Part(
                "pairs",
                ("pairs.txt", "lfw_home/pairs.txt", "lfw-py/pairs.txt", "lfw/pairs.txt"),
                "View 2, for the metric lfw-pairs",
                lines=1 + FOLDS * 2 * PAIRS,
                required=False,
                remedy="it is got at http://vis-www.cs.umass.edu/lfw/#views, or with --download",
                md5="9f1ba174e4e1c508ff7cdf10ac338a7d",
            ),
            Part(
                "train",
                ("peopleDevTrain.txt", "lfw-py/peopleDevTrain.txt"),
                "View 1, persons to develop with",
                lines=1 + 4038,
                md5="54eaac34beb6d042ed3a7d883e247a21",
            ),
            Part(
                "test",
                ("peopleDevTest.txt", "lfw-py/peopleDevTest.txt"),
                "View 1, persons to test with",
                lines=1 + 1711,
                md5="e4bf5be0a43b5dcd9dc5ccfcb8fb19c5",
            ),
            Part("male", ("male_names.txt",), "images or names of men", required=False),
            Part("female", ("female_names.txt",), "images or names of women", required=False),
        ),
        images=IMAGES,
        persons=PERSONS,
        archives=(
            Archive("lfw.tgz"),
            Archive("lfw-funneled.tgz"),
            Archive("lfw-deepfunneled.tgz"),
            Archive("archive.zip"),
        ),
        downloads=(
            Download("lfw.tgz", f"{_SHARE}5976018", sha256="055f7d9c632d7370e6fb4afc7468d40f970c34a80d4c6f50ffec63f5a8d536c0"),
            Download(
                "pairs.txt", f"{_SHARE}5976006", sha256="ea42330c62c92989f9d7c03237ed5d591365e89b3e649747777b70e692dc1592"
            ),
        ),
    )

    def __init__(
        self,
        root: str = "",
        images: str = "auto",
        view1: bool = False,
        centred: bool = True,
        split: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(root, split, role, shares, split_seed, limit_persons, limit_images, partial)
        self.images = images
        self.view1 = view1
        self.centred = centred

    def _folder(self, root: Path) -> Path | None:
        """The folder with a sub-folder per person."""
        if self.images not in (*FORMS, "auto"):
            raise InputError(f"data set 'lfw': images = {self.images!r} is not known", f'"auto", {", ".join(map(repr, FORMS))}')
        for form in ("deepfunneled", "funneled", "original") if self.images == "auto" else (self.images,):
            for name in FORMS[form]:
                if _holds_persons(root / name):
                    return root / name
        return root if self.images == "auto" and _holds_persons(root) else None

    def _recognised(self, root: Path) -> bool:
        return self._folder(root) is not None

    def _parts(self) -> tuple[Part, ...]:
        # Any one of the three forms will do; where there is none, the first that would be taken is named.
        folder = self._folder(self.folder())
        forms: tuple[str, ...] = ()
        if folder is None:
            forms = ("deepfunneled",) if self.images == "auto" else (self.images,)
        elif folder != self.folder():
            name = folder.relative_to(self.folder()).as_posix()
            forms = tuple(form for form, names in FORMS.items() if name in names)[:1]
        wanted = {*forms, "pairs", "male", "female", *(("train", "test") if self.view1 else ())}
        parts = (p for p in self.expected.parts if p.key in wanted)
        # lists of sex are somebody else's work: nobody misses them
        return tuple(p for p in parts if p.key not in ("male", "female") or p.find(self.folder()) is not None)

    def _entries(self, root: Path) -> Iterator[Entry]:
        folder = self._folder(root)
        if folder is None:
            raise InputError(f"data set 'lfw': {root} holds no folders of persons", f"got at {self.homepage}")
        prefix = "" if folder == root else folder.relative_to(root).as_posix() + "/"
        splits = self._view1(root) if self.view1 else {}
        sexes = self._sexes(root)
        paths, _ = images_below(folder)
        strangers: list[str] = []
        for path in paths:
            person, _, file = path.partition("/")
            name = _FILE.fullmatch(Path(file).stem)
            if "/" in file or name is None or name["person"] != person:
                strangers.append(path)
                continue
            sex = sexes.get(Path(file).stem) or sexes.get(person)
            yield Entry(
                path=prefix + path,
                subject=person,
                role=splits.get(person, "other" if splits else ""),
                groups={"sex": sex} if sex else {},
                box=FACE if self.centred else None,
                id=path,
                where=prefix + path,
            )
        if strangers:
            raise InputError(
                f"{folder}: {len(strangers):,} images are not called PERSON/PERSON_0001.jpg: {some(strangers)}",
                "move away what is not the set's, or read it as a generic folder: --data FOLDER without --dataset",
            )

    def _view1(self, root: Path) -> dict[str, str]:
        """Person -> "train" or "test"."""
        found: dict[str, str] = {}
        for split in ("train", "test"):
            path = self.expected.find(root, split)
            if path is None:
                raise InputError(f"data set 'lfw': {root} lacks {self.expected.part(split).name}", f"got at {self.homepage}")
            for person, line in read_people(path).items():
                if found.setdefault(person, split) != split:
                    raise InputError(
                        f"{path}, line {line}: {person} is in both splits", "take the files from the authors again"
                    )
        return found

    def _sexes(self, root: Path) -> dict[str, str]:
        """Image or person -> sex, of the lists that are there."""
        found: dict[str, str] = {}
        for key in ("male", "female"):
            if (path := self.expected.find(root, key)) is not None:
                for n, text in text_lines(path):
                    name = text.removesuffix(".jpg")
                    if found.setdefault(name, key) != key:
                        raise InputError(f"{path}, line {n}: {name} is in both lists", "take one of the lines out")
        return found

    def pairs(self) -> list[ImagePair]:
        """View 2 of the folder's ``pairs.txt``.  Raises MissingError where there is none."""
        part = self.expected.part("pairs")
        path = part.find(self.folder())
        if path is None:
            raise MissingError(
                f"{self.folder()} lacks {part.name}: {part.what}",
                f"{part.remedy}; put it into that folder, or name it: pairs = FILE of the metric lfw-pairs",
            )
        return read_pairs(path)

    def _completed(self, entry: Entry) -> Entry:
        return replace(entry, box=FACE) if self.centred else entry

    def _foreign(self, there: Sequence[Entry]) -> str:
        odd = [e.path for e in there if (m := _FILE.fullmatch(Path(e.path).stem)) is None or m["person"] != e.subject]
        return f"{len(odd):,} of {len(there):,} images are not called PERSON_0001.jpg: {some(odd)}" if odd else ""

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        path = self.expected.find(self.folder(), "pairs")
        if path is None:
            return
        try:
            pairs = read_pairs(path)
        except InputError as error:
            yield Finding("wrong", error.message, error.remedy)
            return
        names = {Path(e.path).stem for e in there}
        usable = sum(p.first in names and p.second in names for p in pairs)
        whole = usable == len(pairs)
        yield Finding("ok" if whole else "note", f"{path.name}: both images are there of {usable:,} of {len(pairs):,} pairs",
                      found=usable, expected=len(pairs))  # fmt: skip


def _holds_persons(folder: Path) -> bool:
    """Whether the folder has a sub-folder with an image that is called after it.  Looks at a few sub-folders only."""
    if not folder.is_dir():
        return False
    looked = 0
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            if next(child.glob(f"{_literal(child.name)}_[0-9][0-9][0-9][0-9].*"), None) is not None:
                return True
            looked += 1
            if looked == 20:
                break
    return False


def _literal(name: str) -> str:
    import glob

    return glob.escape(name)


def _is_count(text: str) -> bool:
    """Whether ``text`` is a whole number that a list of ours could have: int() takes other scripts, and not thousands of digits."""
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def read_people(path: Path) -> dict[str, int]:
    """Person -> line of a list of people: a count, then name and number of images.  Raises InputError naming the line."""
    lines = text_lines(path)
    again = "take the file from the authors again"
    if not lines or not _is_count(lines[0][1]):
        raise InputError(f"{path}, line 1: the number of persons is expected", again)
    told, found = int(lines[0][1]), {}
    for n, text in lines[1:]:
        name, _, number = text.rpartition("\t") if "\t" in text else text.rpartition(" ")
        if not name or not _is_count(number.strip()):
            raise InputError(f"{path}, line {n}: {text[:60]!r} is not a name and a number", again)
        if name.strip() in found:
            raise InputError(f"{path}, line {n}: {name.strip()} is listed twice", again)
        found[name.strip()] = n
    if len(found) != told:
        raise InputError(
            f"{path}: line 1 says {told:,} persons, {len(found):,} follow: the file is cut short or was edited", again
        )
    return found


def read_pairs(path: Path) -> list[ImagePair]:
    """The pairs of ``pairs.txt`` (View 2) or ``pairsDevTrain.txt`` and ``pairsDevTest.txt`` (one fold).

    The first line has the number of folds and of genuine pairs per fold (of the development lists: the latter alone).  Each
    fold has that many genuine pairs (``name n1 n2``), then as many impostor pairs (``name1 n1 name2 n2``), separated by tabs.
    Raises InputError naming the line of whatever is not so: a list that is cut short would give another figure.
    """
    again = "take the file from the authors again"
    lines = text_lines(path)
    head = lines[0][1].split() if lines else []
    if len(head) not in (1, 2) or not all(map(_is_count, head)) or not int(head[-1]):
        raise InputError(
            f"{path}, line 1: {lines[0][1][:60] if lines else ''!r} is not the number of folds and of pairs per fold",
            f"{again}; the official first line is {FOLDS}, a tab and {PAIRS}",
        )
    folds, each = (int(head[0]), int(head[1])) if len(head) == 2 else (1, int(head[0]))
    if len(lines) - 1 != folds * each * 2:
        raise InputError(
            f"{path}: line 1 says {folds} folds of 2 x {each} pairs, {len(lines) - 1:,} lines follow: cut short or edited",
            again,
        )
    pairs: list[ImagePair] = []
    for i, (n, text) in enumerate(lines[1:]):
        cells = text.split("\t") if "\t" in text else text.split()
        cells = [c.strip() for c in cells]
        same = i // each % 2 == 0
        if len(cells) != (3 if same else 4) or not all(map(_is_count, (cells[1], cells[2]) if same else cells[1::2])):
            want = "a name and two numbers" if same else "a name and a number, twice"
            raise InputError(f"{path}, line {n}: {text[:80]!r} is not {want}", again)
        a, b = (cells[0], cells[0]) if same else (cells[0], cells[2])
        first, second = f"{a}_{int(cells[1]):04d}", f"{b}_{int(cells[-1]):04d}"
        if (a == b) != same or first == second:
            raise InputError(f"{path}, line {n}: {text[:80]!r} is no pair of {'one person' if same else 'two persons'}", again)
        pairs.append(ImagePair(i // (2 * each), first, second, same, f"{path.name}, line {n}"))
    return pairs
