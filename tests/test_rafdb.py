"""RAF-DB: the official folders with attributes and boxes, the copy with class folders, and damaged lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deidbench.datasets.rafdb import CODES, COUNTS, RafDb, parse_attributes, parse_box
from deidbench.errors import InputError, MissingError
from deidbench.images import read_image, write_image
from deidbench.types import Box

Put = Callable[[Path], None]
LIST = "train_00001.jpg 5\ntrain_00002.jpg 4\ntest_0001.jpg 7\ntest_0002.jpg 1\n"
POINTS = "".join(f"{x}.5\t{x}.25\n" for x in (30, 60, 45, 35, 55))


@pytest.fixture
def put(orl_folder: Path) -> Put:
    taken = iter(range(400))

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        person, picture = divmod(next(taken), 10)
        write_image(path, read_image(orl_folder / f"s{person + 1}" / f"{picture + 1}.pgm"))

    return write


@pytest.fixture
def basic(tmp_path: Path, put: Put) -> Path:
    root = tmp_path / "basic"
    (root / "EmoLabel").mkdir(parents=True)
    (root / "EmoLabel/list_patition_label.txt").write_text(LIST)
    for folder in ("manual", "boundingbox"):
        (root / "Annotation" / folder).mkdir(parents=True)
    for name, codes in (
        ("train_00001", "0\n0\n2"),
        ("train_00002", "1\n1\n0"),
        ("test_0001", "2\n2\n4"),
        ("test_0002", "1\n0\n3"),
    ):
        put(root / "Image/aligned" / f"{name}_aligned.jpg")
        put(root / "Image/original" / f"{name}.jpg")
        (root / "Annotation/manual" / f"{name}_manu_attri.txt").write_text(f"{POINTS}{codes}\n")
        (root / "Annotation/boundingbox" / f"{name}_boundingbox.txt").write_text("10.5 12.0 80.25 100.0 \n")
    return root


def test_the_official_folders(basic: Path) -> None:
    samples = list(RafDb(str(basic)).samples())
    assert [(s.id, s.role, s.emotion, dict(s.groups)) for s in samples] == [
        ("train_00001_aligned.jpg", "train", "sadness", {"sex": "male", "ethnicity": "caucasian", "age": "20-39"}),
        ("train_00002_aligned.jpg", "train", "happiness", {"sex": "female", "ethnicity": "african-american", "age": "0-3"}),
        ("test_0001_aligned.jpg", "evaluate", "neutral", {"ethnicity": "asian", "age": "70+"}),
        ("test_0002_aligned.jpg", "evaluate", "surprise", {"sex": "female", "ethnicity": "caucasian", "age": "40-69"}),
    ]
    assert all(s.box is None for s in samples) and not RafDb.identities
    assert [s.id for s in RafDb(str(basic.parent)).samples()] == [s.id for s in samples]
    assert [s.emotion for s in RafDb(str(basic), split="test").samples()] == ["neutral", "surprise"]


def test_original_pictures_come_with_their_box(basic: Path) -> None:
    samples = list(RafDb(str(basic), pictures="original").samples())
    assert samples[0].id == "train_00001.jpg" and samples[0].path.parent.name == "original"
    assert {s.box for s in samples} == {Box(10.5, 12.0, 80.25, 100.0)}
    with pytest.raises(InputError, match="unknown pictures 'small'"):
        list(RafDb(str(basic), pictures="small").samples())


def test_a_folder_within_the_folder_of_its_name(basic: Path) -> None:
    (basic / "Image/aligned").rename(basic / "Image/x")
    (basic / "Image/aligned").mkdir()
    (basic / "Image/x").rename(basic / "Image/aligned/aligned")
    assert all("aligned/aligned" in s.path.as_posix() for s in RafDb(str(basic)).samples())


def test_what_is_missing_is_counted_or_named(basic: Path) -> None:
    (basic / "Annotation/manual/test_0002_manu_attri.txt").unlink()
    data = RafDb(str(basic))
    assert list(data.samples())[-1].groups == {}
    assert data.left_out() == {"files of attributes that are not there": 1}
    (basic / "Image/aligned/test_0001_aligned.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 4 listed images: Image/aligned/test_0001_aligned.jpg"):
        list(RafDb(str(basic)).samples())
    (basic / "Image/aligned").rename(basic / "Image/unpacked")
    with pytest.raises(InputError, match="has no folder Image/aligned") as caught:
        list(RafDb(str(basic)).samples())
    assert 'pictures = "original", which is there' in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train_00001.jpg 8", "line 1: the class is '8', not a whole number from 1 to 7"),
        ("train_00001.jpg 0", "line 1: the class is '0'"),
        ("train_00001.jpg", "line 1: 'train_00001.jpg' is no picture and its class"),
        ("../../secret.jpg 3", "line 1: .* is no picture and its class"),
        ("/etc/passwd 3", "line 1: .* is no picture and its class"),
        ("train_00002.jpg 5", "listed twice"),
    ],
)
def test_damaged_lists_name_their_line(basic: Path, line: str, said: str) -> None:
    table = basic / "EmoLabel/list_patition_label.txt"
    table.write_text(LIST.replace("train_00001.jpg 5", line))
    with pytest.raises(InputError, match=said):
        list(RafDb(str(basic)).samples())


@pytest.mark.parametrize("codes", ["0\n0", "0\n0\n5", "0\n3\n0", "3\n0\n0", "x\n0\n0", "0\n0\n0\n0"])
def test_damaged_attributes_are_refused(codes: str) -> None:
    with pytest.raises(InputError, match=r"^there"):
        parse_attributes(POINTS + codes, "there")


@pytest.mark.parametrize("text", ["", "1 2 3", "1 2 3 nan", "5 5 5 9", "9 9 1 1", "1 2 3 inf", "a b c d"])
def test_damaged_boxes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"there: .* is no box"):
        parse_box(text, "there")


def test_a_file_of_attributes_of_megabytes_is_not_read(basic: Path) -> None:
    (basic / "Annotation/manual/test_0001_manu_attri.txt").write_text("0\n" * 500_000)
    with pytest.raises(InputError, match="1,000,000 bytes, more than a few numbers"):
        list(RafDb(str(basic)).samples())


@pytest.fixture
def copy(tmp_path: Path, put: Put) -> Path:
    """DATASET with class folders and the lists beside."""
    pictures = [("train", 5, "train_00001"), ("train", 4, "train_00002"), ("test", 7, "test_0001"), ("test", 1, "test_0002")]
    for part, code, name in pictures:
        put(tmp_path / "DATASET" / part / str(code) / f"{name}_aligned.jpg")
    for part in ("train", "test"):
        lines = [f"{name}_aligned.jpg,{code}" for p, code, name in pictures if p == part]
        (tmp_path / f"{part}_labels.csv").write_text("\n".join(["image,label", *lines, ""]))
    return tmp_path


def test_the_copy_gives_the_same_labels(basic: Path, copy: Path) -> None:
    official = {s.id: (s.role, s.emotion) for s in RafDb(str(basic)).samples()}
    for root in (copy, copy / "DATASET"):
        assert {s.id: (s.role, s.emotion) for s in RafDb(str(root)).samples()} == official


def test_a_picture_in_the_wrong_class_folder_is_refused(copy: Path) -> None:
    picture = copy / "DATASET/test/1/test_0002_aligned.jpg"
    (copy / "DATASET/test/2").mkdir()
    picture.rename(copy / "DATASET/test/2/test_0002_aligned.jpg")
    with pytest.raises(InputError, match=r"lies in the folder of fear, test_labels.csv says surprise"):
        list(RafDb(str(copy)).samples())


def test_the_copy_has_no_originals(copy: Path) -> None:
    with pytest.raises(InputError, match="holds aligned pictures only"):
        list(RafDb(str(copy), pictures="original").samples())


def test_counts_of_the_whole_set() -> None:
    assert {split: sum(classes.values()) for split, classes in COUNTS.items()} == {"train": 12_271, "test": 3_068}
    assert set(COUNTS["test"]) == set(CODES.values())


def test_the_check_counts_by_part_and_class(basic: Path) -> None:
    said = {f.what: f.level for f in RafDb().check(basic).findings}
    assert said["2 images of 'test', the whole set has 3,068"] == "missing"
    assert any(s.startswith("'test' by class: ") and "surprise 1 (of 329)" in s for s in said)
    assert RafDb(partial=True).check(basic).ready


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"lacks EmoLabel/list_patition_label.txt"):
        list(RafDb(str(tmp_path)).samples())


def test_a_manifest_whose_pictures_lie_in_a_folder_train(tmp_path: Path, put: Put) -> None:
    put(tmp_path / "train/a.png")
    (tmp_path / "manifest.csv").write_text("path,subject_id,emotion\ntrain/a.png,a,happy\n")
    data = RafDb(str(tmp_path))
    assert data.reads_manifest and [s.emotion for s in data.samples()] == ["happiness"]
