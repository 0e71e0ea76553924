"""Finished images out of a folder, matched to their originals by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deidbench import kinds
from deidbench.errors import InputError, MissingError
from deidbench.types import Item, Sample, Status


def picture(n: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n, name in enumerate(["anna/1.png", "anna/2.png", "ben/1.png"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), picture(n)[..., ::-1])
    return tmp_path


def samples(*ids: str) -> list[Sample]:
    return [Sample(i, Path("never-read"), i.partition("/")[0], "") for i in ids]


def make(root: Path, *ids: str, **params: Any) -> Any:
    made = kinds.anonymizers.create("folder", root=str(root), **params)
    made.load()
    made.fit(samples(*ids))
    return made


def test_by_path_whatever_the_ending(root: Path) -> None:
    ids = ("anna/1.jpg", "anna/2.jpg", "ben/1.jpg")
    made = make(root, *ids)
    for n, result in enumerate(made.anonymize([Item(i, picture(9)) for i in ids])):
        assert result.status is Status.OK
        assert (result.image == picture(n)).all()


def test_missing_ones_are_counted(root: Path) -> None:
    made = make(root, "anna/1.jpg", "anna/3.jpg")
    [there, gone, stranger] = made.anonymize([Item(i, picture(9)) for i in ("anna/1.jpg", "anna/3.jpg", "ben/1.jpg")])
    assert there.status is Status.OK
    assert (gone.status, gone.reason) == (Status.FAILED, "there is no finished picture of anna/3.jpg")
    assert "not among the originals" in stranger.reason


def test_the_status_file_says_why(root: Path) -> None:
    (root / "deidbench-status.csv").write_text(
        "path,status,faces,reason\nanna/3.jpg,no_face,0,nobody there\nanna/4.jpg,ok,1,\nben/9.jpg,strange,,\n"
    )
    made = make(root, "anna/1.jpg", "anna/3.jpg", "anna/4.jpg", "ben/9.jpg")
    results = made.anonymize([Item(i, picture(9)) for i in ("anna/3.jpg", "anna/4.jpg", "ben/9.jpg")])
    assert [r.status.value for r in results] == ["no_face", "failed", "failed"]
    assert results[0].reason == "nobody there"


def test_a_folder_in_which_nothing_fits_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match="no original has a picture") as caught:
        make(root, "images/anna-1.jpg")
    assert "anna/1.png" in caught.value.message
    assert "match = 'name'" in caught.value.remedy


def test_by_name(root: Path) -> None:
    (root / "ben" / "1.png").rename(root / "ben" / "7.png")
    made = make(root, "x/7.jpg", "x/2.jpg", match="name")
    assert (made.anonymize([Item("x/7.jpg", picture(9))])[0].image == picture(2)).all()
    with pytest.raises(InputError, match=r"would stand for x/7\.jpg and for y/7\.jpg"):
        make(root, "x/7.jpg", "y/7.jpg", match="name")
    (root / "7.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="have the same name"):
        make(root, "x/7.jpg", match="name")


def test_of_two_endings_the_lossless_one(root: Path) -> None:
    cv2.imwrite(str(root / "anna" / "1.jpg"), picture(50))
    assert (make(root, "anna/1").anonymize([Item("anna/1", picture(9))])[0].image == picture(0)).all()


def test_sizes(root: Path) -> None:
    item = Item("anna/1.jpg", picture(9, (40, 40)))
    [result] = make(root, "anna/1.jpg").anonymize([item])
    assert result.status is Status.FAILED
    assert "30 x 20 pixels, its original 40 x 40" in result.reason
    [result] = make(root, "anna/1.jpg", same_size=False).anonymize([item])
    assert result.image.shape == (20, 30, 3)


@pytest.mark.parametrize("harm", ["changed", "torn", "gone"])
def test_a_picture_that_changes_under_the_run(root: Path, harm: str) -> None:
    made = make(root, "anna/1.jpg", "anna/2.jpg")
    path = root / "anna" / "1.png"
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60] if harm == "torn" else (root / "anna" / "2.png").read_bytes())
    results = made.anonymize([Item(i, picture(9)) for i in ("anna/1.jpg", "anna/2.jpg")])
    assert [r.status.value for r in results] == ["failed", "ok"]
    assert "anna/1.png" in results[0].reason
    assert str(root) not in results[0].reason


def test_fingerprint_follows_the_pictures_and_nothing_else(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    ids = ("anna/1.jpg", "ben/1.jpg")
    first = make(root, *ids).fingerprint
    assert make(root, *reversed(ids)).fingerprint == first
    cv2.imwrite(str(root / "anna" / "2.png"), picture(77))
    assert make(root, *ids).fingerprint == first, "a picture that belongs to no original"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("anna", "ben"):
        (root / name).rename(elsewhere / name)
    assert make(elsewhere, *ids).fingerprint == first
    cv2.imwrite(str(elsewhere / "anna" / "1.png"), picture(77))
    assert make(elsewhere, *ids).fingerprint != first


def test_travels_to_workers(root: Path) -> None:
    made = make(root, "anna/1.jpg")
    other = pickle.loads(pickle.dumps(made))
    assert other.fingerprint == made.fingerprint
    assert (other.anonymize([Item("anna/1.jpg", picture(9))])[0].image == picture(0)).all()


def test_bad_parameters(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no folder"):
        kinds.anonymizers.create("folder").validate()
    with pytest.raises(InputError, match="match"):
        kinds.anonymizers.create("folder", root="x", match="stem").validate()
    with pytest.raises(MissingError, match="is not a folder"):
        kinds.anonymizers.create("folder", root=str(tmp_path / "gone")).load()
