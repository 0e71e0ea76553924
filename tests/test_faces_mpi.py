"""FACES of the Max Planck Institute: what the names say, and folders that are not as they should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from deidbench.datasets.faces_mpi import Faces, parse_name
from deidbench.errors import InputError, MissingError
from deidbench.images import read_image, write_image

Put = Callable[[Path], None]
PERSONS = {"004": "o_m", "066": "y_m", "079": "m_f"}


@pytest.fixture
def put(orl_folder: Path) -> Put:
    taken = iter(range(400))

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        person, picture = divmod(next(taken), 10)
        write_image(path, read_image(orl_folder / f"s{person + 1}" / f"{picture + 1}.pgm"))

    return write


@pytest.fixture
def folder(tmp_path: Path, put: Put) -> Path:
    """Three persons with all their pictures, in two folders."""
    for (person, about), emotion, which in product(PERSONS.items(), "adfhns", "ab"):
        put(tmp_path / "pictures" / ("one" if which == "a" else "two") / f"{person}_{about}_{emotion}_{which}.jpg")
    (tmp_path / "readme.txt").write_text("terms of use")
    return tmp_path


def test_names_say_everything(folder: Path) -> None:
    samples = list(Faces(str(folder)).samples())
    assert len(samples) == 36
    assert Counter(s.emotion for s in samples) == dict.fromkeys(
        ("anger", "disgust", "fear", "happiness", "neutral", "sadness"), 6
    )
    assert {s.subject_id: dict(s.groups) for s in samples} == {
        "004": {"sex": "male", "age": "older (69-80)"},
        "066": {"sex": "male", "age": "young (19-31)"},
        "079": {"sex": "female", "age": "middle-aged (39-55)"},
    }
    first = next(s for s in samples if s.path.name == "004_o_m_a_a.jpg")
    assert (first.id, first.emotion) == ("pictures/one/004_o_m_a_a.jpg", "anger")


def test_one_of_the_two_sets(folder: Path) -> None:
    assert {s.path.stem[-1] for s in Faces(str(folder), picture_set="b").samples()} == {"b"}
    with pytest.raises(InputError, match="unknown picture_set 'c'"):
        list(Faces(str(folder), picture_set="c").samples())


@pytest.mark.parametrize(
    "stem", ["004_x_m_a_a", "004_o_x_a_a", "004_o_m_x_a", "004_o_m_a_c", "004_o_m_a", "0044_o_m_a_a", "o_m_a_a", ""]
)
def test_other_names_are_none(stem: str) -> None:
    assert parse_name(stem) is None


def test_case_and_leading_zeros_make_no_new_person() -> None:
    assert parse_name("4_O_M_A_A") == parse_name("004_o_m_a_a")


def test_pictures_with_other_names_are_counted(folder: Path, put: Put) -> None:
    put(folder / "cover.jpg")
    data = Faces(str(folder))
    assert len(list(data.samples())) == 36
    assert data.left_out() == {"pictures with another name than 004_o_m_a_a": 1}


def test_a_person_cannot_change(folder: Path, put: Put) -> None:
    put(folder / "pictures/004_o_f_a_a.jpg")
    with pytest.raises(InputError, match=r"person 004 is older \(69-80\), female in .* and older \(69-80\), male in "):
        list(Faces(str(folder)).samples())


def test_two_sizes_of_one_picture_are_refused(folder: Path, put: Put) -> None:
    put(folder / "small/004_o_m_a_a.jpg")
    with pytest.raises(InputError, match="are the same picture, in two sizes perhaps"):
        list(Faces(str(folder)).samples())


def test_the_check_counts(folder: Path) -> None:
    report = Faces().check(folder)
    said = {f.what: f.level for f in report.findings}
    assert not report.ready and said["36 pictures, the whole set has 2,052"] == "missing"
    assert said["1 persons young (19-31), the whole set has 58"] == "missing"
    assert Faces(partial=True).check(folder).ready
    half = [f for f in Faces(picture_set="a", partial=True).check(folder).findings if "pictures" in f.what and f.expected]
    assert [(f.found, f.expected) for f in half] == [(18, 1026)]


def test_the_whole_set_passes(tmp_path: Path) -> None:
    """Names alone are checked, so that empty files will do."""
    numbers = iter(range(1, 180))
    for age, n in (("y", 58), ("m", 56), ("o", 57)):
        for i in range(n):
            person = f"{next(numbers):03d}_{age}_{'mf'[i % 2]}"
            for emotion, which in product("adfhns", "ab"):
                (tmp_path / f"{person}_{emotion}_{which}.jpg").touch()
    report = Faces().check(tmp_path)
    assert report.ready, report.findings
    assert {f.found for f in report.findings if f.expected} == {2052, 171, 58, 56, 57}
    (tmp_path / "200_y_f_a_a.jpg").touch()
    assert Faces().check(tmp_path).level == "wrong"


def test_the_open_part_is_recognised(tmp_path: Path) -> None:
    for person, emotion, which in product(("004_o_m", "066_y_m", "079_m_f", "116_m_m", "140_y_f", "168_o_f"), "adfhns", "ab"):
        (tmp_path / f"{person}_{emotion}_{which}.jpg").touch()
    assert any("without registration" in f.what for f in Faces(partial=True).check(tmp_path).findings)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="lacks"):
        list(Faces(str(tmp_path)).samples())
