"""Face Research Lab London Set: 102 adults, neutral and smiling, self-reported age, gender and ethnicity; free to show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deidbench.datasets.files import age_band, csv_rows, images_below, some
from deidbench.datasets.official import Archive, Download, Entry, Layout, OfficialDataset, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets

PERSONS = 102
#: Number of the view in a file's name -> expression; these two are the frontal ones.
FRONTAL = {"03": "neutral", "08": "happiness"}
_FILE = re.compile(r"(?P<person>\d{3})_(?P<view>\d{2})")
_SHARE = "https://ndownloader.figshare.com/files/"


@datasets.register("london")
class London(OfficialDataset):
    """Face Research Lab London Set (DeBruine & Jones 2017): studio photographs of 1350 x 1350 pixels, seen from the front.

    expressions: "both", "neutral" or "smiling".

    A smile is the emotion "happiness" (posed).  Gender, age (in bands) and ethnicity as the persons reported them are groups.
    """

    version = "1"
    title = "Face Research Lab London Set (102 persons, 204 frontal images)"
    citation = "DeBruine & Jones, Face Research Lab London Set, 2017, doi 10.6084/m9.figshare.5047666"
    licence = "CC BY 4.0"
    homepage = "https://doi.org/10.6084/m9.figshare.5047666"
    terms = "anybody may have it, show it and hand it on with credit (CC BY 4.0); the persons consented to research use"
    expected = Layout(
        tree="""neutral_front/001_03.jpg ... 173_03.jpg
smiling_front/001_08.jpg ... 173_08.jpg
london_faces_info.csv               face_id, face_age, face_gender, face_eth""",
        parts=(
            Part("neutral", ("neutral_front", "london_faces/neutral_front"), "102 neutral faces"),
            Part("smiling", ("smiling_front", "london_faces/smiling_front"), "102 smiling faces"),
            Part(
                "info",
                (
                    "london_faces_info.csv",
                    "neutral_front/london_faces_info.csv",
                    "smiling_front/london_faces_info.csv",
                    "london_faces/london_faces_info.csv",
                ),
                "age, gender and ethnicity (groups)",
                lines=1 + PERSONS,
                required=False,
            ),
        ),
        images=2 * PERSONS,
        persons=PERSONS,
        archives=(Archive("neutral_front.zip"), Archive("smiling_front.zip"), Archive("5047666.zip")),
        downloads=(
            Download("neutral_front.zip", f"{_SHARE}8541961", figshare=5047666),
            Download("smiling_front.zip", f"{_SHARE}8541964", figshare=5047666),
            Download("london_faces_info.csv", f"{_SHARE}27397184", figshare=5047666),
        ),
    )

    def __init__(
        self,
        root: str = "",
        expressions: str = "both",
        split: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(root, split, role, shares, split_seed, limit_persons, limit_images, partial)
        self.expressions = expressions

    @property
    def shows_faces(self) -> bool:
        """CC BY 4.0: with credit, which every report gives."""
        return True

    def _wanted(self) -> tuple[str, ...]:
        known = {"both": ("neutral", "smiling"), "neutral": ("neutral",), "smiling": ("smiling",)}
        if self.expressions not in known:
            raise InputError(
                f"data set 'london': expressions = {self.expressions!r} is not known", f"one of {', '.join(map(repr, known))}"
            )
        return known[self.expressions]

    def _parts(self) -> tuple[Part, ...]:
        return tuple(p for p in self.expected.parts if p.key in (*self._wanted(), "info"))

    def _counts(self) -> tuple[int | None, int | None]:
        return PERSONS * len(self._wanted()), PERSONS

    def _entries(self, root: Path) -> Iterator[Entry]:
        info = self.expected.find(root, "info")
        groups = read_info(info) if info is not None else {}
        found: list[tuple[str, str, str]] = []
        for key in self._wanted():
            folder = self.expected.find(root, key)
            if folder is None:
                continue
            prefix = folder.relative_to(root).as_posix()
            paths, _ = images_below(folder)
            for path in paths:
                name = _FILE.fullmatch(Path(path).stem)
                if name is None or FRONTAL.get(name["view"]) is None:
                    raise InputError(
                        f"{folder / path} is no frontal image of the London set by its name",
                        "files are called 001_03.jpg (neutral) or 001_08.jpg (smiling); move others away",
                    )
                found.append((name["person"], name["view"], f"{prefix}/{path}"))
        for person, view, path in sorted(found):
            if groups and person not in groups:
                raise InputError(f"{path}: {info} has no line for person {person}", "take the file from the authors again")
            yield Entry(
                path=path, subject=person, emotion=FRONTAL[view], groups=groups.get(person, {}), id=Path(path).name, where=path
            )

    def _foreign(self, there: Sequence[Entry]) -> str:
        odd = [e.path for e in there if not re.fullmatch(r"\d{3}", e.subject) or not Path(e.path).name.startswith(e.subject)]
        return f"{len(odd):,} of {len(there):,} images are of no person 001 ... 173: {some(odd)}" if odd else ""


def read_info(path: Path) -> dict[str, dict[str, str]]:
    """Person (three digits) -> groups "sex", "age" (a band) and "ethnicity" of ``london_faces_info.csv``; empty cells left out.

    Older releases call the column face_sex, and the persons X001.  Raises InputError naming the line.
    """
    header, rows = csv_rows(path, ("face_id", "face_age"), "face_id,face_age,face_gender,face_eth")
    at = {name: i for i, name in enumerate(header)}
    gender = next((at[c] for c in ("face_gender", "face_sex") if c in at), None)
    found: dict[str, dict[str, str]] = {}
    for line, cells in rows:
        person = cells[at["face_id"]].removeprefix("X").zfill(3)
        if not re.fullmatch(r"\d{3}", person) or person in found:
            raise InputError(
                f"{path}, line {line}: face_id {cells[at['face_id']]!r} is no number, or there twice",
                "take the file from the authors again",
            )
        groups = found[person] = {}
        if gender is not None and cells[gender] and cells[gender] != "NA":
            groups["sex"] = cells[gender].lower()
        if (age := cells[at["face_age"]]) and age != "NA":
            try:
                groups["age"] = age_band(float(age))
            except ValueError:
                raise InputError(
                    f"{path}, line {line}: age {age!r} is no number of years", "correct it, or leave the cell empty"
                ) from None
        if "face_eth" in at and cells[at["face_eth"]] and cells[at["face_eth"]] != "NA":
            groups["ethnicity"] = cells[at["face_eth"]].lower()
    return found
