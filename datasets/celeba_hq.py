"""CelebA-HQ: 30,000 of CelebA's photographs in high quality, as CelebAMask-HQ hands them out or with files named as in CelebA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from deidbench.data_index import read
from deidbench.datasets.celeba import REMEDY_PERSONS, SEX, SPLITS, column, flags
from deidbench.datasets.files import Flags, images_below, some, text_lines
from deidbench.datasets.official import Archive, Entry, Finding, Layout, OfficialDataset, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets

IMAGES = 30_000
#: Digits of a file that is named by its number in CelebA (000004.jpg); fewer are the number in CelebA-HQ (4.jpg, 00004.jpg).
CELEBA_DIGITS = 6
LISTS = ("", "Anno/", "celeba/", "CelebA/", "CelebA/Anno/", "Eval/", "CelebA/Eval/")


@datasets.register("celeba-hq")
class CelebAHQ(OfficialDataset):
    """CelebA-HQ (Karras et al. 2018), 1024 pixels or any smaller release, with CelebA's persons, split and 40 attributes.

    celeba: folder of CelebA, for identity_CelebA.txt and list_eval_partition.txt.  "" looks into the set's own folder, then
        into the one that was prepared as ``celeba``.

    Files are named by their number in CelebA-HQ (``0.jpg`` ... ``29999.jpg``, of up to five digits) or in CelebA (six digits).
    Roles as in ``celeba``: the official test persons are evaluated, the train persons are the attacker's.
    """

    version = "1"
    title = "CelebA-HQ (6,217 persons, 30,000 images, 40 attributes)"
    citation = (
        "Karras, Aila, Laine & Lehtinen, Progressive Growing of GANs, ICLR 2018; Lee, Liu, Wu & Luo, MaskGAN, CVPR 2020 "
        "(CelebAMask-HQ); Liu et al., ICCV 2015 (CelebA)"
    )
    licence = "non-commercial research only; no redistribution (CelebA's agreement)"
    homepage = "https://github.com/switchablenorms/CelebAMask-HQ"
    terms = "for non-commercial research and education, under CelebA's agreement; no part of it may be handed on"
    split_roles: ClassVar[Mapping[str, str]] = {"test": "evaluate", "train": "attacker_train"}
    expected = Layout(
        tree="""CelebAMask-HQ/
  CelebA-HQ-img/0.jpg ... 29999.jpg       (or celeba_hq_256/, celeba_hq/; files of six digits are CelebA's own numbers)
  CelebA-HQ-to-CelebA-mapping.txt         which image of CelebA each of them is
  CelebAMask-HQ-attribute-anno.txt        40 attributes, -1 or 1
  identity_CelebA.txt                     of CelebA: file and person
  list_eval_partition.txt                 of CelebA: 0 train, 1 valid, 2 test""",
        parts=(
            Part(
                "images",
                (
                    "CelebA-HQ-img",
                    "CelebAMask-HQ/CelebA-HQ-img",
                    "celeba_hq_256",
                    "celeba_hq",
                    "celeba-hq",
                    "data256x256",
                    "data1024x1024",
                ),
                "folder of the images",
            ),
            Part(
                "mapping",
                ("CelebA-HQ-to-CelebA-mapping.txt", "CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt"),
                "which image of CelebA each of them is",
                lines=IMAGES + 1,
            ),
            Part(
                "attributes",
                (
                    "CelebAMask-HQ-attribute-anno.txt",
                    "CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt",
                    *(f"{at}list_attr_celeba{end}" for at in LISTS for end in (".txt", ".csv")),
                ),
                "40 attributes",
            ),
            Part(
                "identity",
                tuple(f"{at}identity_CelebA.txt" for at in LISTS),
                "CelebA's list of who is in which image",
                remedy=REMEDY_PERSONS.split(";")[0] + "; put it into this folder, or name CelebA's: --param celeba=DIR",
            ),
            Part(
                "partition",
                tuple(f"{at}list_eval_partition{end}" for at in LISTS for end in (".txt", ".csv")),
                "CelebA's official split (without it persons are split by shares)",
                required=False,
            ),
        ),
        images=IMAGES,
        persons=6_217,
        archives=(Archive("CelebAMask-HQ.zip"), Archive("archive.zip")),
    )

    def __init__(
        self,
        root: str = "",
        celeba: str = "",
        split: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(root, split, role, shares, split_seed, limit_persons, limit_images, partial)
        self.celeba = celeba

    def _lists(self) -> Path | None:
        """The folder of CelebA outside the set's own, where one is known."""
        if self.celeba:
            return Path(self.celeba).expanduser()
        record = read("celeba")
        return Path(record.root) if record is not None else None

    def _parts(self) -> tuple[Part, ...]:
        lists = self._lists()
        named = self._named_as_celeba(self.folder())
        elsewhere = {p.key for p in self.expected.parts if lists is not None and p.find(lists) is not None}
        own = {p.key for p in self.expected.parts if p.find(self.folder()) is not None}
        leave: set[str] = {k for k in ("identity", "partition") if k in elsewhere and k not in own}
        leave |= {"mapping"} if named else set()
        return tuple(p for p in self.expected.parts if p.key not in leave)

    def _recognised(self, root: Path) -> bool:
        return any(self.expected.find(root, key) is not None for key in ("images", "mapping"))

    def _named_as_celeba(self, root: Path) -> bool:
        """Whether the files have CelebA's numbers, judged by the first one."""
        folder = self.expected.find(root, "images")
        if folder is None or not folder.is_dir():
            return False
        first = next((p.stem for p in folder.rglob("*.*") if p.stem.isdecimal()), "")
        return len(first) == CELEBA_DIGITS

    def _list(self, root: Path, key: str) -> Path | None:
        lists = self._lists()
        return self.expected.find(root, key) or (self.expected.find(lists, key) if lists is not None else None)

    def _entries(self, root: Path) -> Iterator[Entry]:
        folder = self.expected.find(root, "images")
        identity, attributes = self._list(root, "identity"), self._list(root, "attributes")
        if folder is None or identity is None or attributes is None:
            lacking = next(
                self.expected.part(k)
                for k, f in (("images", folder), ("identity", identity), ("attributes", attributes))
                if f is None
            )
            raise InputError(f"data set 'celeba-hq': {root} lacks {lacking.name}", lacking.remedy or f"got at {self.homepage}")
        partition = self._list(root, "partition")
        mapping = self.expected.find(root, "mapping")
        original = read_mapping(mapping) if mapping is not None else {}
        persons, splits = column(identity), column(partition) if partition is not None else {}
        names, bits = flags(attributes)
        sex = names.get("Male")
        by_hq = "CelebAMask" in attributes.name  # named by the number in CelebA-HQ, else by the file in CelebA
        numbers = {number: file for number, (_, file) in original.items()}
        backwards = {file: number for number, file in numbers.items()}
        prefix = folder.relative_to(root).as_posix()
        for number, file, path in _pictures(folder, numbers, backwards):
            where = f"{prefix}/{path}"
            if file is None:
                raise InputError(
                    f"{where}: {number}.jpg is not in {self.expected.part('mapping').name}",
                    "take the file from the authors again; images are named by their number",
                )
            known = f"{number}.jpg" if by_hq else file
            if file not in persons or known not in bits:
                lacking_list = identity if file not in persons else attributes
                raise InputError(
                    f"{where} ({file} in CelebA) is not in {lacking_list}",
                    "that list is cut short: take it from the authors again",
                )
            role = ""
            if splits:
                line, said = splits.get(file, (0, ""))
                if said not in SPLITS:
                    raise InputError(
                        f"{partition}, line {line}: {file} has no split 0, 1 or 2", "take the file from the authors again"
                    )
                role = SPLITS[said]
            yield Entry(
                path=where,
                subject=persons[file][1],
                role=role,
                attributes=Flags(names, bits[known]),
                groups=SEX[str(bits[known] >> sex & 1)] if sex is not None else {},
                id=file,
                where=where,
            )

    def _foreign(self, there: Sequence[Entry]) -> str:
        odd = [e.path for e in there if not Path(e.path).stem.isdecimal() or not e.subject.isdecimal()]
        return f"{len(odd):,} of {len(there):,} images or persons are no numbers: {some(odd)}" if odd else ""

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        if self.reads_manifest:
            return
        lists = self._lists()
        outside = lists is not None and self.expected.find(self.folder(), "identity") is None
        if outside:
            yield Finding("note", f"persons and split are read from {lists}")


def _pictures(folder: Path, numbers: Mapping[int, str], backwards: Mapping[str, int]) -> Iterator[tuple[int, str | None, str]]:
    """(number in CelebA-HQ, file in CelebA, path below ``folder``) of every image, in natural order of the paths.

    Where the folder is flat and there is a mapping, all of its images are given, there or not, so that gaps are found.
    """
    paths, _ = images_below(folder)
    seen: set[int] = set()
    digits = 0
    ending = ".jpg"
    for path in paths:
        stem = Path(path).stem
        if not re.fullmatch(r"\d{1,6}", stem):
            raise InputError(
                f"{folder / path} is no image of CelebA-HQ by its name",
                "files are called 0.jpg ... 29999.jpg, or by CelebA's six digits; move others away",
            )
        if len(stem) == CELEBA_DIGITS:
            yield backwards.get(f"{stem}.jpg", -1), f"{stem}.jpg", path
            continue
        number = int(stem)
        seen.add(number)
        digits = max(digits, len(stem)) if stem.startswith("0") and len(stem) > 1 else digits
        ending = Path(path).suffix
        yield number, numbers.get(number), path
    if seen:
        for number in sorted(numbers.keys() - seen):
            yield number, numbers[number], f"{number:0{digits}d}{ending}" if digits else f"{number}{ending}"


def read_mapping(path: Path) -> dict[int, tuple[int, str]]:
    """Number in CelebA-HQ -> (line, file in CelebA) of CelebA-HQ-to-CelebA-mapping.txt (columns idx, orig_idx, orig_file).

    Raises InputError naming the line.
    """
    found: dict[int, tuple[int, str]] = {}
    again = "take the file from the authors again"
    for n, text in text_lines(path):
        cells = text.split()
        if n == 1 and cells[:1] == ["idx"]:
            continue
        if len(cells) != 3 or not cells[0].isdecimal() or not re.fullmatch(r"\d{6}\.jpg", cells[2]):
            raise InputError(f"{path}, line {n}: {text[:60]!r} is not a number, a number and a file of six digits", again)
        if int(cells[0]) in found:
            raise InputError(f"{path}, line {n}: number {cells[0]} is there twice", again)
        found[int(cells[0])] = n, cells[2]
    return found
