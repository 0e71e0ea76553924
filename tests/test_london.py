"""The Face Research Lab London Set: its folders, its table of persons, what may be shown."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deidbench.datasets.london import London, read_info
from deidbench.errors import InputError
from deidbench.images import read_image

INFO = "face_id,face_age,face_gender,face_eth\n001,24,female,white\n005,28,male,east_asian\n031,,male,white\n036,21,male,east_asian/white\n"
PEOPLE = ("001", "005", "031", "036")


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEIDBENCH_DATA", raising=False)


@pytest.fixture
def london(tmp_path: Path, orl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import cv2

    root = tmp_path / "london"
    for folder, view, picture in (("neutral_front", "03", 1), ("smiling_front", "08", 2)):
        (root / folder).mkdir(parents=True)
        for k, person in enumerate(PEOPLE):
            face = cv2.imread(str(orl_folder / f"s{k + 1}" / f"{picture}.pgm"))
            cv2.imwrite(str(root / folder / f"{person}_{view}.jpg"), face)
            (root / folder / f"{person}_{view}.tem").write_text("189\n")  # the authors' landmarks lie beside
    (root / "london_faces_info.csv").write_text(INFO)
    parts = tuple(replace(p, lines=5 if p.key == "info" else None) for p in London.expected.parts)
    monkeypatch.setattr(London, "expected", replace(London.expected, images=8, persons=4, parts=parts))
    monkeypatch.setattr("deidbench.datasets.london.PERSONS", 4)
    return root


def test_the_official_layout(london: Path) -> None:
    assert London().check(london).ready
    samples = list(London(str(london)).samples())
    assert [s.id for s in samples] == [f"{p}_{v}.jpg" for p in PEOPLE for v in ("03", "08")]
    assert [s.emotion for s in samples] == ["neutral", "happiness"] * 4 and {s.role for s in samples} == {"evaluate"}
    assert samples[0].groups == {"sex": "female", "age": "18-29", "ethnicity": "white"}
    assert samples[4].groups == {"sex": "male", "ethnicity": "white"}, "an empty age is unknown"
    assert samples[6].groups["ethnicity"] == "east_asian/white"
    assert all(read_image(s.path, sha256=s.sha256).shape == (112, 92, 3) for s in samples)
    assert London().shows_faces, "CC BY 4.0"


@pytest.mark.parametrize(("expressions", "views"), [("neutral", {"03"}), ("smiling", {"08"})])
def test_one_expression(london: Path, expressions: str, views: set[str]) -> None:
    shutil.rmtree(london / ("smiling_front" if expressions == "neutral" else "neutral_front"))
    data = London(str(london), expressions=expressions)
    assert {s.id[4:6] for s in data.samples()} == views and London(expressions=expressions).check(london).ready
    assert "lacks" in London(str(london)).missing()
    with pytest.raises(InputError, match="expressions = 'sad' is not known"):
        London(str(london), expressions="sad").missing()


def test_without_the_table_there_are_no_groups(london: Path) -> None:
    (london / "london_faces_info.csv").unlink()
    report = London().check(london)
    assert report.ready and any(f.level == "note" and "london_faces_info.csv" in f.what for f in report.findings)
    assert all(s.groups == {} for s in London(str(london)).samples())


def test_the_table_as_older_releases_have_it(tmp_path: Path) -> None:
    path = tmp_path / "london_faces_info.csv"
    path.write_bytes(b"\xef\xbb\xbfface_id,face_age,face_sex,face_eth\r\nX001,24,female,white\r\nX031,NA,male,NA\r\n")
    assert read_info(path) == {"001": {"sex": "female", "age": "18-29", "ethnicity": "white"}, "031": {"sex": "male"}}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("005,28", "001,28", "line 3: face_id '001' is no number, or there twice"),
        ("005,28", "five,28", "line 3: face_id 'five'"),
        ("005,28", "005,old", "line 3: age 'old' is no number of years"),
        ("005,28,male", "005,28", "line 3: 3 cells, the header has 4"),
        ("face_id", "id", "no column face_id"),
    ],
)
def test_a_table_that_lies_is_named_with_its_line(london: Path, old: str, new: str, message: str) -> None:
    (london / "london_faces_info.csv").write_text(INFO.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        list(London(str(london)).samples())
    assert London().check(london).level == "wrong"


def test_a_person_without_a_line_and_a_stranger_are_named(london: Path) -> None:
    (london / "london_faces_info.csv").write_text(INFO.replace("005,28,male,east_asian\n", ""))
    with pytest.raises(InputError, match="has no line for person 005"):
        list(London(str(london)).samples())
    (london / "london_faces_info.csv").write_text(INFO)
    (london / "neutral_front" / "001_01.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"001_01\.jpg is no frontal image"):
        list(London(str(london)).samples())


def test_missing_images_are_missing(london: Path) -> None:
    (london / "smiling_front" / "005_08.jpg").unlink()
    report = London().check(london)
    assert report.level == "missing" and any(f.what == "7 images, the whole set has 8" for f in report.findings)


def test_the_real_london_set(shared_data: Path) -> None:
    root = shared_data / "london"
    assert not London(str(root)).missing() and London().check(root).ready
    samples = list(London(str(root)).samples())
    assert len(samples) == 204 and len({s.subject_id for s in samples}) == 102
    assert {s.emotion for s in samples} == {"neutral", "happiness"}
    assert London().check(shared_data / "celeba_hq").level == "wrong", "CelebA-HQ is not the London set"
