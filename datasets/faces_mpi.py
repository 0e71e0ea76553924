"""FACES of the Max Planck Institute for Human Development: six posed expressions of young, middle-aged and older persons.

The pictures carry all labels in their names; how the folders lie does not matter::

    004_o_m_a_a.jpg     person 004, older, male, anger, first of two pictures
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from deidbench.datasets.classes import Counted
from deidbench.datasets.files import Entry, images_below
from deidbench.datasets.official import Archive, Finding, Layout, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets

NAME = re.compile(r"([0-9]{1,3})_([a-z])_([a-z])_([a-z])_([a-z])", re.IGNORECASE)
EMOTIONS: Mapping[str, str] = {
    "a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "n": "neutral", "s": "sadness",
}  # fmt: skip
#: Age groups with the range of their ages in years (Ebner et al. 2010).
AGES: Mapping[str, str] = {"y": "young (19-31)", "m": "middle-aged (39-55)", "o": "older (69-80)"}
SEXES: Mapping[str, str] = {"f": "female", "m": "male"}
SETS = ("a", "b")
PERSONS, IMAGES = 171, 2052
#: Persons of each age group (Ebner et al. 2010).
BY_AGE: Mapping[str, int] = {AGES["y"]: 58, AGES["m"]: 56, AGES["o"]: 57}
#: Six persons may be seen without registration.
OPEN_PERSONS, OPEN_IMAGES = 6, 72


class Name(NamedTuple):
    """What the name of a picture says."""

    person: str
    age: str
    sex: str
    emotion: str
    set: str


def parse_name(stem: str) -> Name | None:
    """``004_o_m_a_a`` in words; None for a name that is not made so, or has a letter that means nothing."""
    found = NAME.fullmatch(stem)
    if found is None:
        return None
    person, age, sex, emotion, which = (g.lower() for g in found.groups())
    if age not in AGES or sex not in SEXES or emotion not in EMOTIONS or which not in SETS:
        return None
    return Name(person.zfill(3), AGES[age], SEXES[sex], EMOTIONS[emotion], which)


@datasets.register("faces")
class Faces(Counted):
    """171 persons x 6 expressions x 2 pictures.

    picture_set: "a" or "b" for one of the two pictures of each expression, "" for both.
    """

    title = "FACES (171 persons of three age groups x 6 posed expressions x 2)"
    citation = (
        "N. C. Ebner, M. Riediger and U. Lindenberger, FACES - A database of facial expressions in young, middle-aged, and older "
        "women and men: Development and validation, Behavior Research Methods 42, 2010, doi 10.3758/BRM.42.1.351"
    )
    licence = "scientific research, after registration; not to be passed on"
    homepage = "https://faces.mpdl.mpg.de"
    terms = "registration, case by case; 72 pictures of six persons may be seen without it"
    all_images = IMAGES
    expected: ClassVar[Layout] = Layout(
        tree="DIR/.../004_o_m_a_a.jpg   (person_age_sex_expression_set, in any folders)",
        parts=(
            Part(
                "images",
                tuple(f"{depth}[0-9]*_[ymoYMO]_[fmFM]_[a-zA-Z]_[abAB].*" for depth in ("", "*/", "*/*/", "*/*/*/")),
                "the pictures",
                called="004_o_m_a_a.jpg",
            ),
        ),
        persons=PERSONS,
        archives=(Archive("*.zip"), Archive("*.tar"), Archive("*.tar.gz")),
    )

    def __init__(
        self,
        root: str = "",
        picture_set: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(
            root, role=role, shares=shares, split_seed=split_seed, limit_persons=limit_persons, limit_images=limit_images, partial=partial
        )  # fmt: skip
        self.picture_set = picture_set

    def _entries(self, root: Path) -> Iterator[Entry]:
        """In natural order of the paths.  Raises InputError where a person changes age group or sex, or a picture is there twice."""
        self.start()
        if self.picture_set not in ("", *SETS):
            raise InputError(f"data set 'faces': unknown picture_set {self.picture_set!r}", 'use "a", "b" or "" for both')
        found, _ = images_below(root)
        groups: dict[str, tuple[str, str, str]] = {}
        seen: dict[Name, str] = {}
        for path in found:
            name = parse_name(Path(path).stem)
            if name is None:
                self.leave_out("pictures with another name than 004_o_m_a_a")
                continue
            if self.picture_set not in ("", name.set):
                continue
            age, sex, first = groups.setdefault(name.person, (name.age, name.sex, path))
            if (age, sex) != (name.age, name.sex):
                raise InputError(
                    f"data set 'faces': person {name.person} is {age}, {sex} in {first} and {name.age}, {name.sex} in {path}",
                    "rename the wrong one",
                )
            if name in seen:
                raise InputError(
                    f"data set 'faces': {seen[name]} and {path} are the same picture, in two sizes perhaps",
                    "name the folder of one size",
                )
            seen[name] = path
            yield Entry(path=path, subject=name.person, emotion=name.emotion, groups={"sex": name.sex, "age": name.age})

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        yield from super()._more(there)
        yield self.count("pictures", len(there), IMAGES // 2 if self.picture_set else IMAGES)
        persons = {e.subject: e.groups.get("age", "") for e in there}
        ages = Counter(persons.values())
        if len(persons) == OPEN_PERSONS and len(there) == OPEN_IMAGES:
            yield Finding("note", "six persons x 12: the part that may be seen without registration", found=OPEN_IMAGES)
        for age, n in BY_AGE.items():
            if ages:
                yield self.count(f"persons {age}", ages[age], n)
