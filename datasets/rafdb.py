"""RAF-DB, Real-world Affective Faces: pictures from the web with one of seven basic emotions each (its part "basic").

Two layouts are read.  The official one (``basic``; the list's name is misspelt by its authors)::

    EmoLabel/list_patition_label.txt                "train_00001.jpg 5", one line per picture
    Image/aligned/train_00001_aligned.jpg           100 x 100 pixels; Image/original/train_00001.jpg as found
    Annotation/manual/train_00001_manu_attri.txt    five landmarks, then sex, race and age group
    Annotation/boundingbox/train_00001_boundingbox.txt    the face in the original picture

and the copy that is handed round, ``DATASET/train/1/train_00001_aligned.jpg`` with ``train_labels.csv`` beside, which has no
attributes.  The part "compound" is not read: its eleven classes are none that deidbench knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from deidbench.datasets.classes import Counted, below, class_folders, csv_lines, first_of, images_in, whole_number
from deidbench.datasets.files import Entry, text_lines
from deidbench.datasets.official import Archive, Finding, Layout, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets
from deidbench.types import Box

#: Codes of the list, from the set's read-me.
CODES: Mapping[int, str] = {
    1: "surprise", 2: "fear", 3: "disgust", 4: "happiness", 5: "sadness", 6: "anger", 7: "neutral",
}  # fmt: skip
CLASSES = {str(code): word for code, word in CODES.items()}
#: Lines 6, 7 and 8 of a file of attributes; a code of sex that says "unsure" gives no group.
SEX: Mapping[int, str] = {0: "male", 1: "female", 2: ""}
RACE: Mapping[int, str] = {0: "caucasian", 1: "african-american", 2: "asian"}
AGE: Mapping[int, str] = {0: "0-3", 1: "4-19", 2: "20-39", 3: "40-69", 4: "70+"}
LANDMARKS = 5
#: Pictures of each class (Li et al. 2017, basic part): 12,271 and 3,068.
COUNTS: Mapping[str, Mapping[str, int]] = {
    "train": {"surprise": 1290, "fear": 281, "disgust": 717, "happiness": 4772, "sadness": 1982, "anger": 705, "neutral": 2524},
    "test": {"surprise": 329, "fear": 74, "disgust": 160, "happiness": 1185, "sadness": 478, "anger": 162, "neutral": 680},
}
NAME = re.compile(r"((train|test)_[0-9]{1,6})(?:_aligned)?\.(?:jpg|jpeg|png)")
VERSIONS = ("aligned", "original")
#: Where each folder may lie: some programs unpack an archive into a folder of its name, and people put parts side by side.
PLACES: Mapping[str, tuple[str, ...]] = {
    "aligned": ("Image/aligned/aligned", "Image/aligned", "aligned"),
    "original": ("Image/original/original", "Image/original", "original"),
    "manual": ("Annotation/manual/manual", "Annotation/manual", "manual"),
    "boundingbox": ("Annotation/boundingbox/boundingbox", "Annotation/boundingbox", "boundingbox"),
}
LISTS = tuple(
    f"{base}{folder}{name}"
    for base in ("", "basic/")
    for folder in ("EmoLabel/", "")
    for name in ("list_patition_label.txt", "list_partition_label.txt")
)


def parse_list(lines: Sequence[tuple[int, str]], table: str) -> Iterator[tuple[str, str, str, str]]:
    """(name without ending, split, emotion, where) of the lines of the list.  Raises InputError naming the line."""
    for n, text in lines:
        where = f"{table}, line {n}"
        words = text.split()
        found = NAME.fullmatch(words[0]) if words else None
        if found is None or len(words) != 2:
            raise InputError(f"{where}: {text[:60]!r} is no picture and its class", 'a line reads "train_00001.jpg 5"')
        yield found[1], found[2], CODES[whole_number(words[1], where, "the class", 1, 7)], where


def parse_attributes(text: str, where: str) -> dict[str, str]:
    """Groups of a file of attributes.  Raises InputError where it is not five landmarks and three codes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != LANDMARKS + 3:
        raise InputError(f"{where} has {len(lines)} lines, not {LANDMARKS + 3}", "copy it again from the set's archive")
    codes = [
        whole_number(word, where, what, 0, top)
        for word, what, top in zip(lines[LANDMARKS:], ("sex", "race", "age group"), (2, 2, 4), strict=True)
    ]
    groups = {"sex": SEX[codes[0]], "ethnicity": RACE[codes[1]], "age": AGE[codes[2]]}
    return {name: value for name, value in groups.items() if value}


def parse_box(text: str, where: str) -> Box:
    """``x0 y0 x1 y1`` in pixels of the original picture.  Raises InputError."""
    try:
        x0, y0, x1, y1 = (float(word) for word in text.split())
    except ValueError:
        x0 = y0 = x1 = y1 = 0.0
    if not (0 <= x1 - x0 < 1e6 and 0 <= y1 - y0 < 1e6) or x0 == x1 or y0 == y1:
        raise InputError(f"{where}: {text.strip()[:60]!r} is no box", "four numbers: left, top, right, bottom")
    return Box(x0, y0, x1, y1)


@datasets.register("raf-db")
class RafDb(Counted):
    """15,339 pictures (12,271 to train, 3,068 to test) of one of seven emotions, the voice of about 40 people each; no identities.

    pictures: "aligned" (100 x 100 pixels, by the authors) or "original" (as found on the web, with the box of the face).

    Roles: the official test part is evaluated.  Sex, race and age group are what the authors' annotators saw in the picture.
    """

    title = "RAF-DB, basic emotions (15,339 pictures from the web)"
    citation = (
        "S. Li, W. Deng and J. Du, Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the "
        "Wild, CVPR 2017, doi 10.1109/CVPR.2017.277"
    )
    licence = "non-commercial research; not to be passed on; the pictures come from the web"
    homepage = "http://www.whdeng.cn/RAF/model1.html"
    terms = "asked for by e-mail from a university or company, for non-commercial research"
    identities = False
    all_images = sum(sum(classes.values()) for classes in COUNTS.values())
    split_roles: ClassVar[Mapping[str, str]] = {"test": "evaluate"}
    expected: ClassVar[Layout] = Layout(
        tree="""\
DIR/EmoLabel/list_patition_label.txt
DIR/Image/aligned/train_00001_aligned.jpg ...   (or Image/original/train_00001.jpg)
DIR/Annotation/manual/train_00001_manu_attri.txt   (optional: sex, race, age)
or  DIR/DATASET/{train,test}/{1..7}/train_00001_aligned.jpg""",
        parts=(Part("labels", (*LISTS, "DATASET/test", "DATASET/train", "test", "train"), "the list of classes, or a folder for each", called=LISTS[0]),),
        archives=(Archive("basic*.zip"), Archive("Image/*.zip", "Image"), Archive("Annotation/*.zip", "Annotation")),
    )  # fmt: skip

    def __init__(
        self,
        root: str = "",
        pictures: str = "aligned",
        split: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(root, split, role, shares, split_seed, limit_persons, limit_images, partial)
        self.pictures = pictures

    def _recognised(self, root: Path) -> bool:
        return self.holds_classes(self.expected.find(root, "labels"), CLASSES)

    def _entries(self, root: Path) -> Iterator[Entry]:
        """In the list's order; of class folders in the order of split, class and name."""
        self.start()
        if self.pictures not in VERSIONS:
            raise InputError(f"data set 'raf-db': unknown pictures {self.pictures!r}", 'use "aligned" or "original"')
        labels = self.expected.find(root, "labels")
        if labels is None:
            return
        if labels.is_dir():
            yield from self._folders(root, labels.parent)
        else:
            base = labels.parent.parent if labels.parent.name == "EmoLabel" else labels.parent
            yield from self._official(root, base, labels)

    def _official(self, root: Path, base: Path, table: Path) -> Iterator[Entry]:
        folder = first_of(base, *PLACES[self.pictures])
        if folder is None:
            other = next(v for v in VERSIONS if v != self.pictures)
            hint = f'; or pictures = "{other}", which is there' if first_of(base, *PLACES[other]) is not None else ""
            raise InputError(f"data set 'raf-db': {base} has no folder {PLACES[self.pictures][1]}", f"unpack it there{hint}")
        manual, boxes = first_of(base, *PLACES["manual"]), first_of(base, *PLACES["boundingbox"])
        prefix, ending = below(root, folder), "_aligned.jpg" if self.pictures == "aligned" else ".jpg"
        for name, split, emotion, where in parse_list(text_lines(table), str(table)):
            yield Entry(
                path=f"{prefix}/{name}{ending}" if prefix != "." else f"{name}{ending}",
                subject="",
                role=split,
                emotion=emotion,
                groups=self._attributes(manual, name),
                box=self._box(boxes, name) if self.pictures == "original" else None,
                id=f"{name}{ending}",
                where=where,
            )

    def _attributes(self, folder: Path | None, name: str) -> dict[str, str]:
        if folder is None:
            return {}
        path = folder / f"{name}_manu_attri.txt"
        text = _small(path)
        if text is None:
            self.leave_out("files of attributes that are not there")
            return {}
        return parse_attributes(text, str(path))

    def _box(self, folder: Path | None, name: str) -> Box | None:
        """The face that is meant; None where the set's boxes are not there (the largest face is then taken)."""
        path = folder / f"{name}_boundingbox.txt" if folder is not None else None
        text = _small(path) if path is not None else None
        if text is None:
            self.leave_out("boxes of faces, which are not there (the largest face is taken)")
            return None
        return parse_box(text, str(path))

    def _folders(self, root: Path, base: Path) -> Iterator[Entry]:
        """Folders train and test with sub-folders 1 to 7."""
        if self.pictures != "aligned":
            raise InputError(f"data set 'raf-db': {base} holds aligned pictures only", 'leave pictures = "original" out')
        for split in ("train", "test"):
            listed = self._listed_classes(base, split)
            for name, emotion in class_folders(base / split, CLASSES).items():
                for picture in images_in(base / split / name):
                    found = NAME.fullmatch(picture)
                    if found is None or found[2] != split:
                        self.leave_out(f"pictures in {split} with another name than {split}_00001_aligned.jpg")
                        continue
                    where = below(root, base / split / name / picture)
                    if (said := listed.get(picture, emotion)) != emotion:
                        raise InputError(
                            f"{where} lies in the folder of {emotion}, {split}_labels.csv says {said}", "put it into its own"
                        )
                    yield Entry(path=where, subject="", role=split, emotion=emotion, id=picture)

    @staticmethod
    def _listed_classes(base: Path, split: str) -> dict[str, str]:
        """Picture -> emotion of ``train_labels.csv``; empty where it is not there."""
        table = next((p for p in (base / f"{split}_labels.csv", base.parent / f"{split}_labels.csv") if p.is_file()), None)
        if table is None:
            return {}
        return {
            row["image"]: CODES[whole_number(row["label"], f"{table}, line {n}", "the class", 1, 7)]
            for n, row in csv_lines(table, ("image", "label"))
        }

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        yield from super()._more(there)
        yield from self.count_splits(there, COUNTS)


def _small(path: Path) -> str | None:
    """The text of a file of a few lines; None where there is none.  Raises InputError for one that is no such file."""
    try:
        if path.stat().st_size > 10_000:
            raise InputError(
                f"{path} holds {path.stat().st_size:,} bytes, more than a few numbers", "copy it again from the set's archive"
            )
        return path.read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "copy it again from the set's archive") from error
