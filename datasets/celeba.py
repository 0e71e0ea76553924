"""CelebA: 202,599 photographs of 10,177 persons with 40 attributes, in the official folders or as Kaggle hands it out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from deidbench.datasets.files import Flags, read_text, some
from deidbench.datasets.official import Archive, Entry, Finding, Layout, OfficialDataset, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets
from deidbench.types import Box

IMAGES = 202_599
#: Number in list_eval_partition -> official split.
SPLITS = {"0": "train", "1": "valid", "2": "test"}
#: The same two for all images: 200,000 dictionaries of one word weigh as much as the list itself.
SEX: Mapping[str, Mapping[str, str]] = {"1": {"sex": "male"}, "0": {"sex": "female"}}
#: What the parameter ``images`` may say: folder, file ending.
PICTURES = {"aligned": ("aligned", ".jpg"), "aligned-png": ("png", ".png"), "wild": ("wild", ".jpg")}

REMEDY_PERSONS = (
    "it is in the folder Anno of the authors' own share (the copy on Kaggle leaves it out), in front of which stands their "
    "agreement; without it set identities = false (--param identities=false): attributes only, nobody is re-identified"
)


@datasets.register("celeba")
class CelebA(OfficialDataset):
    """CelebA (Liu et al. 2015): aligned faces (178 x 218) or the photographs as they were, 40 attributes, official split.

    images: "aligned" (img_align_celeba/*.jpg), "aligned-png" (img_align_celeba_png/*.png), or "wild" (img_celeba/*.jpg, with
        the authors' face boxes).
    identities: False reads a copy without identity_CelebA.txt: every image is then a person of its own, and nothing about
        re-identification can be computed.

    The official test persons are evaluated, the train persons are the attacker's (roles ``evaluate`` and ``attacker_train``),
    the valid ones keep the role ``valid``; no person is in two of them.  Attributes -1/1 become 0/1, ``Male`` also gives "sex".
    """

    version = "1"
    title = "CelebA (10,177 persons, 202,599 images, 40 attributes)"
    citation = "Liu, Luo, Wang & Tang, Deep Learning Face Attributes in the Wild, ICCV 2015, arXiv 1411.7766"
    licence = "non-commercial research only; no redistribution"
    homepage = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    terms = "for non-commercial research and education, under the authors' agreement; no part of it may be handed on"
    split_roles: ClassVar[Mapping[str, str]] = {"test": "evaluate", "train": "attacker_train"}
    expected = Layout(
        tree="""CelebA/
  Anno/identity_CelebA.txt        file and person, one line per image
  Anno/list_attr_celeba.txt       40 attributes, -1 or 1
  Anno/list_bbox_celeba.txt       only for images = "wild"
  Eval/list_eval_partition.txt    0 train, 1 valid, 2 test
  Img/img_align_celeba/000001.jpg ... 202599.jpg
(the sub-folders Anno, Eval and Img may be left out; .csv files as on Kaggle are read too)""",
        parts=(
            Part(
                "aligned",
                (
                    "Img/img_align_celeba/img_align_celeba",
                    "img_align_celeba/img_align_celeba",
                    "Img/img_align_celeba",
                    "img_align_celeba",
                    "celeba/img_align_celeba",
                ),
                "folder of the aligned faces",
            ),
            Part("png", ("Img/img_align_celeba_png", "img_align_celeba_png"), "folder of the aligned faces"),
            Part("wild", ("Img/img_celeba", "img_celeba"), "folder of the photographs as they were"),
            Part(
                "identity",
                ("Anno/identity_CelebA.txt", "identity_CelebA.txt", "celeba/identity_CelebA.txt"),
                "who is in which image",
                lines=IMAGES,
                remedy=REMEDY_PERSONS,
                md5="32bd1bd63d3c78cd57e08160ec5ed1e2",
            ),
            Part(
                "attributes",
                (
                    "Anno/list_attr_celeba.txt",
                    "list_attr_celeba.txt",
                    "celeba/list_attr_celeba.txt",
                    "list_attr_celeba.csv",
                    "Anno/list_attr_celeba.csv",
                ),
                "40 attributes",
                lines={".txt": IMAGES + 2, ".csv": IMAGES + 1},
                md5="75e246fa4810816ffd6ee81facbd244c",
            ),
            Part(
                "partition",
                (
                    "Eval/list_eval_partition.txt",
                    "list_eval_partition.txt",
                    "celeba/list_eval_partition.txt",
                    "Anno/list_eval_partition.txt",
                    "list_eval_partition.csv",
                    "Eval/list_eval_partition.csv",
                ),
                "official split",
                lines={".txt": IMAGES, ".csv": IMAGES + 1},
                md5="d32c9cbf5e040fd4025c592c306e6668",
            ),
            Part(
                "boxes",
                (
                    "Anno/list_bbox_celeba.txt",
                    "list_bbox_celeba.txt",
                    "celeba/list_bbox_celeba.txt",
                    "list_bbox_celeba.csv",
                    "Anno/list_bbox_celeba.csv",
                ),
                "boxes of the faces in the photographs as they were",
                lines={".txt": IMAGES + 2, ".csv": IMAGES + 1},
                md5="00566efa6fedff7a56946cd1c10f1c16",
            ),
        ),
        images=IMAGES,
        persons=10_177,
        archives=(
            Archive("img_align_celeba.zip"),
            Archive("Img/img_align_celeba.zip", "Img"),
            Archive("archive.zip"),
            Archive("Img/img_align_celeba_png.7z/*.7z.001", "Img"),
            Archive("Img/img_celeba.7z/*.7z.001", "Img"),
        ),
    )

    def __init__(
        self,
        root: str = "",
        images: str = "aligned",
        identities: bool = True,
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
        self.identities = identities

    def _parts(self) -> tuple[Part, ...]:
        if self.images not in PICTURES:
            raise InputError(
                f"data set 'celeba': images = {self.images!r} is not known", f"one of {', '.join(map(repr, PICTURES))}"
            )
        wanted = {PICTURES[self.images][0], "attributes", "partition"}
        wanted |= {"identity"} if self.identities else set()
        wanted |= {"boxes"} if self.images == "wild" else set()
        return tuple(p for p in self.expected.parts if p.key in wanted)

    def _entries(self, root: Path) -> Iterator[Entry]:
        key, ending = PICTURES[self.images]
        folder = self._part(root, key).relative_to(root).as_posix()
        partition = column(self._part(root, "partition"))
        persons = column(self._part(root, "identity")) if self.identities else {}
        names, attributes = flags(self._part(root, "attributes"))
        boxes = read_boxes(self._part(root, "boxes")) if self.images == "wild" else {}
        where = self._part(root, "partition")
        sex = names.get("Male")
        for file, (line, number) in partition.items():
            at = f"{where}, line {line}"
            if number not in SPLITS:
                raise InputError(f"{at}: split {number!r} is not 0, 1 or 2", "restore the file: take it from the authors again")
            if file not in attributes or (self.identities and file not in persons):
                lacking = "list_attr_celeba" if file not in attributes else "identity_CelebA"
                raise InputError(
                    f"{at}: {file} is not in {lacking}: that list is cut short, or of another release",
                    "take all lists from one place",
                )
            bits = attributes[file]
            yield Entry(
                path=f"{folder}/{file.removesuffix('.jpg')}{ending}",
                subject=persons[file][1] if self.identities else "",
                role=SPLITS[number],
                attributes=Flags(names, bits),
                groups=SEX[str(bits >> sex & 1)] if sex is not None else {},
                box=boxes.get(file),
                id=file,
                where=at,
            )

    def _part(self, root: Path, key: str) -> Path:
        found = self.expected.find(root, key)
        if found is None:
            part = self.expected.part(key)
            raise InputError(f"data set {self.name!r}: {root} lacks {part.name}", part.remedy or f"got at {self.homepage}")
        return found

    def _foreign(self, there: Sequence[Entry]) -> str:
        odd = [e.path for e in there if not Path(e.path).stem.isdecimal() or not e.subject.isdecimal()]
        return f"{len(odd):,} of {len(there):,} images or persons are no numbers: {some(odd)}" if odd else ""

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        if not self.identities:
            yield Finding("note", "identities = false: no person is known, so nothing about re-identification can be computed")


# -------------------------------------------------------------------------------------------- the lists, shared with CelebA-HQ


def rows(path: Path, header: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a list: blanks between the cells (.txt) or commas (.csv), blank lines left out.

    header: lines of the .txt before the first image.  Of an attribute or box list the first is the number of images, which is
    compared with what follows, the second (in a .csv the only one) names the columns and is given as it stands.
    Raises InputError where fewer or more images follow than the first line says.
    """
    comma = path.suffix.lower() == ".csv"
    told: tuple[int, int] | None = None
    count = 0
    for n, text in enumerate(read_text(path).split("\n"), 1):
        cells = [c.strip() for c in text.split(",")] if comma else text.split()
        if not any(cells):
            continue
        if header == 2 and not comma and told is None:
            if len(cells) != 1 or not re.fullmatch(r"[0-9]{1,9}", cells[0]):
                raise InputError(
                    f"{path}, line {n}: the first line is {text.strip()[:40]!r}, not the number of images",
                    "take the file from the authors again",
                )
            told = n, int(cells[0])
            continue
        count += 1
        yield n, cells
    if told is not None and count - 1 != told[1]:
        raise InputError(
            f"{path}: line {told[0]} says {told[1]:,} images, {count - 1:,} follow: the file is cut short or was edited",
            "take the file from the authors again, or correct the number if the shorter list is meant",
        )


def column(path: Path) -> dict[str, tuple[int, str]]:
    """File -> (line, value) of a list with one value per image (persons, split); a .csv has a header line."""
    found: dict[str, tuple[int, str]] = {}
    lines = rows(path, 0)
    if path.suffix.lower() == ".csv":
        next(lines, None)
    for n, cells in lines:
        if len(cells) != 2:
            raise InputError(
                f"{path}, line {n}: {len(cells)} cells, a file and a value are expected", "take the file from the authors again"
            )
        _once(found, cells[0], n, path)
        found[cells[0]] = n, cells[1]
    return found


def flags(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(attribute -> position, file -> bits) of an attribute list; -1/1 or 0/1, never both in one file.

    Raises InputError naming the line of anything else.
    """
    lines = rows(path, 2)
    line, head = next(lines, (1, []))
    names = head[1:] if path.suffix.lower() == ".csv" else head
    if len(set(names)) != len(names) or not names or "Male" not in names:
        raise InputError(
            f"{path}, line {line}: this is no line of attribute names ({', '.join(names[:3])} ...)",
            "take the file from the authors again",
        )
    bits: dict[str, int] = {}
    at: dict[str, int] = {}
    low = ""
    for n, cells in lines:
        values = cells[1:]
        if len(values) != len(names):
            raise InputError(
                f"{path}, line {n}: {len(values)} values, {len(names)} attributes are named",
                "take the file from the authors again",
            )
        _once(at, cells[0], n, path)
        at[cells[0]] = n
        number = 0
        for i, value in enumerate(values):
            if value == "1":
                number |= 1 << i
            elif value in ("-1", "0"):
                low = low or value
                if value != low:
                    raise InputError(
                        f"{path}, line {n}: {value} for {names[i]}, while other lines say {low}: no is either -1 or 0, not both",
                        "mend the file: it was put together from two",
                    )
            else:
                raise InputError(f"{path}, line {n}: {names[i]} is {value!r}, not -1, 0 or 1", "mend the file")
        bits[cells[0]] = number
    return {name: i for i, name in enumerate(names)}, bits


def read_boxes(path: Path) -> dict[str, Box]:
    """File -> box in pixels (the list has left, top, width, height); files whose box is empty are left out."""
    found: dict[str, Box] = {}
    lines = rows(path, 2)
    next(lines, None)
    for n, cells in lines:
        try:
            x, y, w, h = map(float, cells[1:])
        except ValueError:
            x = y = w = h = math.nan
        if not all(abs(v) < 1e6 for v in (x, y, w, h)):  # NaN and infinity are none
            raise InputError(f"{path}, line {n}: a file and four numbers are expected", "take the file from the authors again")
        if w > 0 and h > 0:
            found[cells[0]] = Box(x, y, x + w, y + h)
    return found


def _once(found: Mapping[str, object], name: str, line: int, path: Path) -> None:
    if name in found:
        raise InputError(f"{path}, line {line}: {name} is listed twice", "remove one of the lines")
