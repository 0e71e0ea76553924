"""WIDER FACE: the list with its traps, which faces count, and that a picture may be several samples."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deidbench.datasets.wider import Wider, parse_list
from deidbench.errors import InputError, MissingError
from deidbench.images import read_image, write_image
from deidbench.types import Box

#: Three faces of one picture: small, large, invalid and larger; a picture without faces; one with a box without area.
LIST = """\
0--Parade/0_Parade_marchingband_1_20.jpg
3
10 12 30 38 0 0 0 0 0 0
120 10 92 112 0 0 0 0 1 0 \n\
10 130 100 120 2 0 1 1 2 1 \n\
0--Parade/0_Parade_Parade_0_452.jpg
0
0 0 0 0 0 0 0 0 0 0 \n\
39--Ice_Skating/39_Ice_Skating_iceskiing_39_583.jpg
3
5 5 0 23 2 0 0 0 2 0
150 20 80 95 1 0 0 0 0 0
20 140 85 100 1 1 0 0 0 1
46--Jockey/46_Jockey_Jockey_46_1.jpg
1
9 9 8 8 0 0 0 0 0 0
"""
#: Where the pictures hold a face: left, top, side of the ORL picture pasted there.
PLACES = {
    "0--Parade/0_Parade_marchingband_1_20.jpg": ((120, 10), (10, 130)),
    "0--Parade/0_Parade_Parade_0_452.jpg": (),
    "39--Ice_Skating/39_Ice_Skating_iceskiing_39_583.jpg": ((150, 20), (20, 140)),
    "46--Jockey/46_Jockey_Jockey_46_1.jpg": (),
}


def lines(text: str) -> list[tuple[int, str]]:
    return [(n, t.strip()) for n, t in enumerate(text.split("\n"), 1) if t.strip()]


@pytest.fixture
def folder(tmp_path: Path, orl_folder: Path) -> Path:
    person = iter(range(1, 41))
    for name, places in PLACES.items():
        canvas = np.full((260, 260, 3), 127, np.uint8)
        for x, y in places:
            face = read_image(orl_folder / f"s{next(person)}" / "1.pgm")
            part = canvas[y : y + 112, x : x + 92]
            part[:] = cv2.resize(face, part.shape[1::-1])
        path = tmp_path / "WIDER_val/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, canvas)
    (tmp_path / "wider_face_split").mkdir()
    (tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt").write_text(LIST)
    return tmp_path


def test_the_list_with_a_picture_without_faces() -> None:
    pictures = list(parse_list(lines(LIST), "list"))
    assert [len(p.faces) for p in pictures] == [3, 0, 3, 1]
    face = pictures[0].faces[1]
    assert face.box == Box(120, 10, 212, 122) and (face.occlusion, face.invalid) == (1, 0)
    assert pictures[1].where == "list, line 6" and pictures[3].path.startswith("46--")
    mended = LIST.replace("0 0 0 0 0 0 0 0 0 0 \n", "")
    assert [(p.path, p.faces) for p in parse_list(lines(mended), "list")] == [(p.path, p.faces) for p in pictures]
    windows = LIST.replace("\n", "\r\n")
    assert [p.faces for p in parse_list(lines(windows), "list")] == [p.faces for p in pictures]


def test_the_largest_face_that_is_fit_to_use(folder: Path) -> None:
    data = Wider(str(folder))
    samples = list(data.samples())
    assert [(s.id, s.box, s.role, s.emotion) for s in samples] == [
        ("WIDER_val/images/0--Parade/0_Parade_marchingband_1_20.jpg", Box(120, 10, 212, 122), "evaluate", None),
        ("WIDER_val/images/39--Ice_Skating/39_Ice_Skating_iceskiing_39_583.jpg", Box(20, 140, 105, 240), "evaluate", None),
    ]
    assert data.left_out() == {
        "faces smaller than 40 pixels": 2,
        "faces marked invalid": 1,
        "pictures without a face": 1,
        "faces whose box has no area": 1,
        "pictures without a face that is fit to use": 1,
    }


def test_every_face_is_a_sample_and_the_picture_its_cluster(folder: Path) -> None:
    samples = list(Wider(str(folder), faces="every", min_face=30).samples())
    assert [s.id.rsplit("/", 1)[1] for s in samples] == [
        "0_Parade_marchingband_1_20.jpg#0",
        "0_Parade_marchingband_1_20.jpg#1",
        "39_Ice_Skating_iceskiing_39_583.jpg#1",
        "39_Ice_Skating_iceskiing_39_583.jpg#2",
    ]
    assert len({s.subject_id for s in samples}) == 2 and len({s.sha256 for s in samples}) == 2
    assert len({s.box for s in samples}) == 4 and all(s.path.is_file() for s in samples)


def test_faces_that_are_listed_twice_count_once(folder: Path) -> None:
    table = folder / "wider_face_split/wider_face_val_bbx_gt.txt"
    table.write_text(LIST.replace("150 20 80 95 1 0 0 0 0 0", "20 140 85 100 1 0 0 0 2 0"))
    data = Wider(str(folder), faces="every")
    assert len(list(data.samples())) == 2
    assert data.left_out()["faces that are listed twice"] == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "46_Jockey_Jockey_46_1.jpg\n1\n9 9 8 8 0 0 0 0 0 0\n",
            "46_Jockey_Jockey_46_1.jpg\n",
            "line 14: no number of faces follows",
        ),
        ("9 9 8 8 0 0 0 0 0 0\n", "", "line 14: 0 faces of 1 follow"),
        ("9 9 8 8 0 0 0 0 0 0\n", "9 9 8", "line 16: '9 9 8' is no face, 1 of 46--Jockey"),
        ("iceskiing_39_583.jpg\n3", "iceskiing_39_583.jpg\n2", "line 13: '20 140 85 100 1 1 0 0 0 1' is no picture"),
        ("iceskiing_39_583.jpg\n3", "iceskiing_39_583.jpg\n4", "line 14: '46--Jockey/46_Jockey_Jockey_46_1.jpg' is no face"),
        ("iceskiing_39_583.jpg\n3", "iceskiing_39_583.jpg\n-1", "line 10: the number of faces is '-1'"),
        ("iceskiing_39_583.jpg\n3", "iceskiing_39_583.jpg\n999999999", "line 10: the number of faces is '999999999'"),
        ("150 20 80 95 1", "150 20 80 x 1", "line 12: a number of a face is 'x'"),
        ("150 20 80 95 1", "150 20 80 1e9 1", "line 12: a number of a face is '1e9'"),
    ],
)
def test_damaged_lists_name_their_line(folder: Path, old: str, new: str, said: str) -> None:
    assert old in LIST
    (folder / "wider_face_split/wider_face_val_bbx_gt.txt").write_text(LIST.replace(old, new))
    with pytest.raises(InputError, match=f"wider_face_val_bbx_gt.txt, {said}"):
        list(Wider(str(folder)).samples())


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.sampled_from([t for _, t in lines(LIST)]), st.text(max_size=30)), max_size=12))
def test_no_list_whatever_makes_it_crash_or_hang(rows: list[str]) -> None:
    said = "list, line"
    try:
        assert all("/" in picture.path for picture in parse_list(lines("\n".join(rows)), "list"))
    except InputError as error:
        said = error.message
    assert "list, line" in said


@pytest.mark.parametrize("path", ["../../../secret/x.jpg", "/etc/x.jpg", "0--Parade/../../../../x.jpg"])
def test_paths_out_of_the_folder_are_refused(folder: Path, path: str) -> None:
    write_image(folder.parent / "x.jpg", np.zeros((8, 8, 3), np.uint8))
    table = folder / "wider_face_split/wider_face_val_bbx_gt.txt"
    table.write_text(f"{path}\n1\n1 1 90 90 0 0 0 0 0 0\n")
    with pytest.raises(InputError, match=r"line 1: .*climbs out|lacks 1 of 1 listed"):
        list(Wider(str(folder)).samples())


def test_parameters_and_parts(folder: Path, tmp_path: Path) -> None:
    for wrong, said in (({"faces": "two"}, "unknown faces 'two'"), ({"min_face": 0}, "min_face = 0 is not positive")):
        with pytest.raises(InputError, match=said):
            list(Wider(str(folder), **wrong).samples())
    (folder / "wider_face_split").rename(tmp_path / "gone")
    with pytest.raises(MissingError, match=r"lacks wider_face_split/wider_face_val_bbx_gt.txt"):
        list(Wider(str(folder)).samples())


def test_train_and_validation(folder: Path) -> None:
    (folder / "WIDER_train/images").mkdir(parents=True)
    (folder / "WIDER_val/images/0--Parade").rename(folder / "WIDER_train/images/0--Parade")
    cut = LIST.index("39--Ice")
    (folder / "wider_face_split/wider_face_train_bbx_gt.txt").write_text(LIST[:cut])
    (folder / "wider_face_split/wider_face_val_bbx_gt.txt").write_text(LIST[cut:])
    assert [s.role for s in Wider(str(folder)).samples()] == ["evaluate", "train"]
    assert [s.role for s in Wider(str(folder), split="train").samples()] == ["train"]


def test_the_check_counts_pictures_and_what_is_left_out(folder: Path) -> None:
    report = Wider().check(folder)
    said = {f.what: f.level for f in report.findings}
    assert said["4 pictures in the lists, the whole set has 3,226"] == "missing"
    assert said["left out: 2 faces smaller than 40 pixels"] == "note"
    assert Wider(partial=True).check(folder).ready
