"""FER2013 as a table of numbers, as folders and with FER+'s votes: what is written, read, counted and refused."""

from __future__ import annotations

import hashlib
import io
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from deidbench.datasets import fer2013
from deidbench.datasets.fer2013 import CODES, COUNTS, VOTES, Fer2013, grey_png, parse_pixels, parse_votes
from deidbench.errors import EnvironmentFault, InputError, MissingError
from deidbench.images import read_image, write_image

USAGES = ["Training"] * 3 + ["PublicTest"] * 2 + ["PrivateTest"] * 3
EMOTIONS = [0, 1, 2, 3, 4, 5, 6, 0]


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))


@pytest.fixture
def greys(orl_folder: Path) -> list[np.ndarray]:
    """Eight faces as the set has them: uint8 (48, 48)."""
    return [cv2.resize(cv2.imread(str(orl_folder / f"s{i}" / "1.pgm"), cv2.IMREAD_GRAYSCALE), (48, 48)) for i in range(1, 9)]


def rows(greys: list[np.ndarray]) -> list[str]:
    return [f"{e},{' '.join(map(str, grey.ravel()))},{usage}" for e, grey, usage in zip(EMOTIONS, greys, USAGES, strict=True)]


@pytest.fixture
def table(tmp_path: Path, greys: list[np.ndarray]) -> Path:
    root = tmp_path / "download"
    root.mkdir()
    (root / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows(greys), ""]))
    return root


def prepared(root: Path, **params: object) -> Fer2013:
    return Fer2013(str(Fer2013().materialise(root)), **params)  # type: ignore[arg-type]


def test_the_pictures_are_the_numbers_of_the_table(table: Path, greys: list[np.ndarray], tmp_path: Path) -> None:
    assert "deidbench data prepare fer2013" in Fer2013(str(table)).missing()
    with pytest.raises(MissingError, match="still numbers in a table"):
        list(Fer2013(str(table)).samples())
    data = prepared(table)
    assert data.folder().is_relative_to(tmp_path / "user") and not list(table.glob("*.png"))
    samples = list(data.samples())
    assert [(s.id, s.role, s.emotion) for s in samples] == [
        ("fer0000000.png", "train", "anger"),
        ("fer0000001.png", "train", "disgust"),
        ("fer0000002.png", "train", "fear"),
        ("fer0000003.png", "validation", "happiness"),
        ("fer0000004.png", "validation", "sadness"),
        ("fer0000005.png", "evaluate", "surprise"),
        ("fer0000006.png", "evaluate", "neutral"),
        ("fer0000007.png", "evaluate", "anger"),
    ]
    for sample, grey in zip(samples, greys, strict=True):
        picture = read_image(sample.path, sha256=sample.sha256)
        assert picture.shape == (48, 48, 3) and all(np.array_equal(picture[..., c], grey) for c in range(3))
    assert data.missing() == "" and not Fer2013.identities


def test_the_bytes_are_the_same_on_every_machine() -> None:
    """No compressor: fixed bytes, which two other readers take for the same picture."""
    from PIL import Image as pil

    grey = (np.arange(48 * 48) % 251).astype(np.uint8).reshape(48, 48)
    data = grey_png(grey)
    assert hashlib.sha256(data).hexdigest() == "5f39fa46b75840c20f5667dac0afdc3b90fb0f2ba09cfaacd7ad263a98813278"
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), grey)
    with pil.open(io.BytesIO(data)) as picture:
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), grey)
    assert zlib.decompress(data[41:-16])[0] == 0


def test_a_second_time_nothing_is_written_and_what_was_lost_comes_back(table: Path) -> None:
    target = Fer2013().materialise(table)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in target.rglob("*") if p.is_file()}
    assert len(before) == 8 + 2
    assert Fer2013().materialise(table) == target
    assert {p: p.stat().st_mtime_ns for p in before} == {p: t for p, (t, _) in before.items()}
    (target / "train/fer0000001.png").unlink()
    (target / "test/fer0000006.png").write_bytes(b"torn")
    assert Fer2013().materialise(table) == target
    assert {p: p.read_bytes() for p in before} == {p: data for p, (_, data) in before.items()}
    assert (target / "train/fer0000000.png").stat().st_mtime_ns == before[target / "train/fer0000000.png"][0]


def test_a_torn_run_is_finished(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = fer2013._write, iter(range(100))

    def full(path: Path, data: bytes) -> None:
        if next(calls) == 4:
            raise EnvironmentFault("disk full", "")
        real(path, data)

    monkeypatch.setattr(fer2013, "_write", full)
    with pytest.raises(EnvironmentFault, match="disk full"):
        Fer2013().materialise(table)
    monkeypatch.setattr(fer2013, "_write", real)
    assert len(list(prepared(table).samples())) == 8


def test_another_table_gets_another_folder(table: Path, greys: list[np.ndarray]) -> None:
    first = Fer2013().materialise(table)
    (table / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows(greys)[:5]]))
    second = Fer2013().materialise(table)
    assert second != first and len(list(Fer2013(str(first)).samples())) == 8
    assert len(list(Fer2013(str(second)).samples())) == 5


def test_the_table_with_blanks_in_its_header(table: Path, greys: list[np.ndarray]) -> None:
    plain = [(s.id, s.emotion, s.role, s.sha256) for s in prepared(table).samples()]
    (table / "fer2013.csv").unlink()
    swapped = [",".join((r.split(",")[0], r.split(",")[2], r.split(",")[1])) for r in rows(greys)]
    (table / "icml_face_data.csv").write_text("\n".join(["emotion, Usage, pixels", *swapped]))
    assert [(s.id, s.emotion, s.role, s.sha256) for s in prepared(table).samples()] == plain


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[:-5000], r"line \d: .*(cells, the header has 3|pixels, not 2,304)"),
        (lambda t: t.replace("0,", "0,7 ", 1), "line 2: 2,305 pixels, not 2,304"),
        (lambda t: t.replace(" ", "", 1), "line 2: 2,303 pixels, not 2,304"),
        (lambda t: t.replace("\n1,", "\n7,", 1), "line 3: the emotion is '7', not a whole number from 0 to 6"),
        (lambda t: t.replace("\n1,", "\nanger,", 1), "line 3: the emotion is 'anger'"),
        (lambda t: t.replace("PublicTest", "Public", 1), "line 5: unknown Usage 'Public'"),
        (lambda t: t.replace("pixels", "values"), "no column pixels"),
        (lambda t: "", "no column emotion and pixels and Usage"),
    ],
)
def test_damaged_tables_name_their_line(table: Path, change: Callable[[str], str], said: str) -> None:
    path = table / "fer2013.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=said):
        Fer2013().materialise(table)


@pytest.mark.parametrize("value", ["256", "-1", "1e2", "0x1", "1.0", "nan", "٣", "99999"])
def test_what_is_no_grey_value_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=f"here: '{value}' is no grey value|here: '99999' is no"):
        parse_pixels(" ".join(["0"] * 2303 + [value]), "here")


# -- FER+ ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "emotion"),
    [
        ([6, 0, 0, 2, 0, 0, 0, 0, 0, 0], "neutral"),
        ([0, 10, 0, 0, 0, 0, 0, 0, 0, 0], "happiness"),
        ([4, 0, 0, 1, 3, 2, 0, 0, 0, 0], None),  # four of nine
        ([4, 1, 1, 1, 1, 1, 1, 0, 0, 0], "neutral"),  # single votes are dropped
        ([5, 0, 0, 5, 0, 0, 0, 0, 0, 0], None),  # a tie
        ([0, 0, 0, 0, 0, 0, 0, 6, 4, 0], "contempt"),
        ([2, 0, 0, 0, 0, 0, 0, 0, 8, 0], None),  # unknown
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], None),  # no face
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None),
    ],
)
def test_majority_of_the_votes(votes: list[int], emotion: str | None) -> None:
    assert parse_votes(votes) == emotion


def votes_file(root: Path, names: list[str]) -> None:
    happy = [0, 9, 0, 0, 0, 0, 0, 0, 1, 0]
    lines = [
        f"{u},{n},{','.join(map(str, happy if i != 6 else [5, 5] + [0] * 8))}"
        for i, (u, n) in enumerate(zip(USAGES, names, strict=True))
    ]
    (root / "fer2013new.csv").write_text("\n".join([f"Usage,Image name,{','.join(VOTES)}", *lines, ""]))


def test_votes_beside_the_table(table: Path) -> None:
    with pytest.raises(MissingError, match=r"no fer2013new.csv"):
        list(prepared(table, labels="fer+").samples())
    names = [f"fer{i:07d}.png" for i in range(8)]
    names[2] = ""  # FER+ took it out
    votes_file(table, names)
    data = prepared(table, labels="fer+")
    samples = list(data.samples())
    assert [s.id for s in samples] == [f"fer{i:07d}.png" for i in (0, 1, 3, 4, 5, 7)]
    assert {s.emotion for s in samples} == {"happiness"}
    assert data.left_out() == {"pictures that FER+ took out (no face)": 1, "pictures without a majority for an emotion": 1}
    assert len(list(prepared(table).samples())) == 8
    with pytest.raises(InputError, match="unknown labels 'ferplus'"):
        list(prepared(table, labels="ferplus").samples())


def test_votes_that_come_later_are_taken_up(table: Path) -> None:
    first = Fer2013().materialise(table)
    votes_file(table, [f"fer{i:07d}.png" for i in range(8)])
    assert Fer2013().materialise(table) == first
    assert len(list(Fer2013(str(first), labels="fer+").samples())) == 7


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0,9,0", "0,x,0", "line 2: the number of votes for happiness is 'x'"),
        ("fer0000001.png", "fer0000000.png", "line 3: 'fer0000000.png' is there twice"),
        ("Training", "Learning", "line 2: unknown Usage 'Learning'"),
        ("contempt", "scorn", "no column contempt"),
    ],
)
def test_damaged_votes_name_their_line(table: Path, old: str, new: str, said: str) -> None:
    votes_file(table, [f"fer{i:07d}.png" for i in range(8)])
    path = table / "fer2013new.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=said):
        list(prepared(table, labels="fer+").samples())


def test_the_pictures_of_ferplus(tmp_path: Path, greys: list[np.ndarray]) -> None:
    root = tmp_path / "plus"
    folders = ["FER2013Train"] * 3 + ["FER2013Valid"] * 2 + ["FER2013Test"] * 3
    for i, (folder, grey) in enumerate(zip(folders, greys, strict=True)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"fer{i:07d}.png").write_bytes(grey_png(grey))
    votes_file(root, [f"fer{i:07d}.png" for i in range(8)])
    assert [(s.id, s.role) for s in Fer2013(str(root), labels="fer+").samples()][:4] == [
        ("fer0000000.png", "train"), ("fer0000001.png", "train"), ("fer0000002.png", "train"), ("fer0000003.png", "validation"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="without the labels of FER2013"):
        list(Fer2013(str(root)).samples())


# -- folders -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, greys: list[np.ndarray]) -> Path:
    root = tmp_path / "archive"
    names = [
        "train/angry/Training_3908.jpg",
        "train/happy/Training_1.jpg",
        "test/sad/PublicTest_2.jpg",
        "test/neutral/PrivateTest_3.jpg",
    ]
    for name, grey in zip(names, greys, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / name, np.repeat(grey[..., None], 3, 2))
    return root


def test_folders_named_by_class(folders: Path) -> None:
    assert Fer2013().materialise(folders) == folders
    assert [(s.id, s.role, s.emotion) for s in Fer2013(str(folders)).samples()] == [
        ("train/angry/Training_3908.jpg", "train", "anger"),
        ("train/happy/Training_1.jpg", "train", "happiness"),
        ("test/neutral/PrivateTest_3.jpg", "evaluate", "neutral"),
        ("test/sad/PublicTest_2.jpg", "validation", "sadness"),
    ]
    with pytest.raises(InputError, match="do not tell which votes"):
        list(Fer2013(str(folders), labels="fer+").samples())
    shutil.move(folders / "train/happy/Training_1.jpg", folders / "test/sad/Training_1.jpg")
    with pytest.raises(InputError, match="lies in test: its name says train"):
        list(Fer2013(str(folders)).samples())


def test_counts_of_the_whole_set() -> None:
    assert {split: sum(classes.values()) for split, classes in COUNTS.items()} == {"train": 28_709, "val": 3_589, "test": 3_589}
    assert all(set(classes) == set(CODES.values()) for classes in COUNTS.values())


def test_the_check_counts(table: Path) -> None:
    target = Fer2013().materialise(table)
    said = {f.what: f.level for f in Fer2013().check(target).findings}
    assert said["3 images of 'test', the whole set has 3,589"] == "missing"
    assert Fer2013(partial=True).check(target).ready


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="lacks"):
        list(Fer2013(str(tmp_path / "empty")).samples())


def test_a_manifest_whose_pictures_lie_in_a_folder_train(tmp_path: Path, greys: list[np.ndarray]) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").write_bytes(grey_png(greys[0]))
    (tmp_path / "manifest.csv").write_text("path,subject_id,emotion\ntrain/a.png,a,happy\n")
    data = Fer2013(str(tmp_path))
    assert data.reads_manifest and [s.emotion for s in data.samples()] == ["happiness"]
