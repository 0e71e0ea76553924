"""AffectNet as files of numpy, as lists and as folders named by class: generated folders, the traps, and hostile files."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deidbench.datasets.affectnet import AffectNet, parse_face, read_label
from deidbench.errors import InputError, MissingError
from deidbench.images import read_image, write_image
from deidbench.types import Box

Put = Callable[[Path], None]
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"


@pytest.fixture
def put(orl_folder: Path) -> Put:
    taken = iter(range(400))

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        person, picture = divmod(next(taken), 10)
        write_image(path, read_image(orl_folder / f"s{person + 1}" / f"{picture + 1}.pgm"))

    return write


def npy(value: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value))
    return buffer.getvalue()


@pytest.fixture
def numpies(tmp_path: Path, put: Put) -> Path:
    """val_set with 9 pictures, train_set with 2; labels as the release stores them: strings without dimensions."""
    for part, labels in (("val_set", [0, 1, 2, 3, 4, 5, 6, 7, 1]), ("train_set", [6, 0])):
        for n, code in enumerate(labels):
            put(tmp_path / part / "images" / f"{n}.jpg")
            (tmp_path / part / "annotations").mkdir(exist_ok=True)
            for kind, value in (("exp", str(code)), ("val", "-0.25"), ("aro", "0.5"), ("lnd", np.zeros(136))):
                (tmp_path / part / "annotations" / f"{n}_{kind}.npy").write_bytes(npy(value))
    return tmp_path


def test_files_of_numpy(numpies: Path) -> None:
    samples = list(AffectNet(str(numpies)).samples())
    assert [(s.id, s.role, s.emotion) for s in samples] == [
        ("val_set/images/0.jpg", "evaluate", "neutral"),
        ("val_set/images/1.jpg", "evaluate", "happiness"),
        ("val_set/images/2.jpg", "evaluate", "sadness"),
        ("val_set/images/3.jpg", "evaluate", "surprise"),
        ("val_set/images/4.jpg", "evaluate", "fear"),
        ("val_set/images/5.jpg", "evaluate", "disgust"),
        ("val_set/images/6.jpg", "evaluate", "anger"),
        ("val_set/images/7.jpg", "evaluate", "contempt"),
        ("val_set/images/8.jpg", "evaluate", "happiness"),
        ("train_set/images/0.jpg", "train", "anger"),
        ("train_set/images/1.jpg", "train", "neutral"),
    ]
    assert len({s.subject_id for s in samples}) == len(samples) and not AffectNet.identities
    assert [s.emotion for s in AffectNet(str(numpies), split="train").samples()] == ["anger", "neutral"]
    inside = list(AffectNet(str(numpies / "val_set")).samples())
    assert len(inside) == 9 and inside[0].id == "images/0.jpg" and inside[0].role == "evaluate"
    with pytest.raises(InputError, match="no official split 'test'") as caught:
        list(AffectNet(str(numpies), split="test").samples())
    assert "train, val" in caught.value.remedy


def test_labels_of_the_other_part_are_not_even_opened(numpies: Path) -> None:
    (numpies / "train_set/annotations/0_exp.npy").write_bytes(b"broken")
    assert len(list(AffectNet(str(numpies), split="val").samples())) == 9
    with pytest.raises(InputError, match=r"0_exp.npy is no file of numpy"):
        list(AffectNet(str(numpies)).samples())


@pytest.mark.parametrize("value", ["3", b"3", 3, 3.0, "3.0", [3], [["3"]], np.int64(3)])
def test_a_label_may_be_stored_in_many_ways(value: object) -> None:
    assert read_label(npy(value), "x") == 3


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_nothing_is_ever_unpickled(numpies: Path, tmp_path: Path) -> None:
    victim = tmp_path / "was-run"
    bomb = Bomb(victim)
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(bomb)):
        (numpies / "val_set/annotations/4_exp.npy").write_bytes(data)
        with pytest.raises(
            InputError,
            match=r"4_exp.npy (holds an array of objects, which is|is no file of numpy .pickles are) never unpickled",
        ):
            list(AffectNet(str(numpies)).samples())
        assert not victim.exists()


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY", npy("3")[:-4], npy([3, 3]), npy([]), npy("happy"), npy(11), npy(-1), npy(2.5), npy(np.nan)]
)
def test_damaged_labels_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^here"):
        read_label(data, "here")


def test_a_label_of_gigabytes_is_not_read(numpies: Path) -> None:
    with (numpies / "val_set/annotations/2_exp.npy").open("wb") as file:
        file.truncate(3 << 30)  # sparse
    with pytest.raises(InputError, match="3,221,225,472 bytes, more than a label"):
        list(AffectNet(str(numpies)).samples())


def test_pictures_without_a_label_are_counted(numpies: Path) -> None:
    (numpies / "val_set/annotations/3_exp.npy").unlink()
    (numpies / "val_set/annotations/5_exp.npy").write_bytes(npy("9"))
    data = AffectNet(str(numpies), split="val")
    assert len(list(data.samples())) == 7
    assert data.left_out() == {"pictures of val_set without a label": 1, "pictures labelled 'uncertain'": 1}
    said = {f.what: f.level for f in AffectNet().check(numpies).findings}
    assert said["left out: 1 pictures labelled 'uncertain'"] == "note"
    assert said["7 pictures of 'val', the whole set has 3,500"] == "missing"
    assert AffectNet(partial=True).check(numpies).ready


@pytest.fixture
def lists(tmp_path: Path, put: Put) -> Path:
    table = tmp_path / "Manually_Annotated_file_lists" / "validation.csv"
    table.parent.mkdir()
    rows = [
        ("689/737db2.jpg", 10, 12, 60, 61, 1, 0.5, 0.2),
        ("2/c4f3.JPG", 5, 5, 40, 40, 7, -0.6, 0.1),
        ("2/aa.jpg", 5, 5, 40, 40, 8, -0.1, 0.1),
        ("2/ab.jpg", 5, 5, 40, 40, 9, -2, -2),
        ("3/ac.jpg", "NULL", "NULL", "NULL", "NULL", 10, -2, -2),
        ("3/ad.jpg", "NULL", "NULL", "NULL", "NULL", 0, 0, 0),
    ]
    table.write_text(
        HEADER + "\n" + "".join(f"{p},{x},{y},{w},{h},{'1;2;' * 68},{e},{v},{a}\n" for p, x, y, w, h, e, v, a in rows)
    )
    for row in rows:
        put(tmp_path / "Manually_Annotated_Images" / str(row[0]))
    return tmp_path


def test_the_older_lists(lists: Path) -> None:
    data = AffectNet(str(lists))
    samples = list(data.samples())
    assert [(Path(s.id).name, s.role, s.emotion, s.box) for s in samples] == [
        ("737db2.jpg", "evaluate", "happiness", Box(10, 12, 70, 73)),
        ("c4f3.JPG", "evaluate", "contempt", Box(5, 5, 45, 45)),
        ("ad.jpg", "evaluate", "neutral", None),
    ]
    assert data.left_out() == {
        "pictures labelled 'none of the emotions'": 1, "pictures labelled 'uncertain'": 1, "pictures labelled 'no face'": 1,
    }  # fmt: skip
    said = [f.what for f in AffectNet(partial=True).check(lists).findings]
    assert "3 pictures of 'val' with an emotion, the whole set has 4,000" in said


@pytest.mark.parametrize("path", ["../../outside.jpg", "/etc/passwd", "C:\\x.jpg", "~/x.jpg", "a/../../../x.jpg"])
def test_paths_out_of_the_folder_are_refused(lists: Path, path: str) -> None:
    (lists / "outside.jpg").write_bytes((lists / "Manually_Annotated_Images/2/aa.jpg").read_bytes())
    table = lists / "Manually_Annotated_file_lists/validation.csv"
    table.write_text(f"{HEADER}\n{path},1,1,9,9,,1,0,0\n")
    with pytest.raises(InputError, match=r"validation.csv, line 2: .*(climbs out|portable|absolute)|lacks 1 of 1 listed"):
        list(AffectNet(str(lists)).samples())


def test_damaged_lists_name_their_line(lists: Path) -> None:
    table = lists / "Manually_Annotated_file_lists/validation.csv"
    good = table.read_text()
    for text, said in (
        (good[:-20], "line 7: 6 cells, the header has 9.*"),
        (good.replace(",7,-0.6", ",11,-0.6"), "line 3: the expression is '11', not a whole number from 0 to 10"),
        (good.replace(",7,-0.6", ",seven,-0.6"), "line 3: the expression is 'seven'"),
        (good.replace("5,5,40,40,1;2;", "5,5,-40,40,1;2;", 1), "line 3: '5, 5, -40, 40' is no box"),
        (good.replace("expression", "emotion"), "no column expression"),
        ("", "no column subDirectory_filePath"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=said):
            list(AffectNet(str(lists)).samples())
    table.write_bytes(good.encode()[:150] + b"\xff" + good.encode()[150:])
    with pytest.raises(InputError, match="not UTF-8"):
        list(AffectNet(str(lists)).samples())


def test_listed_pictures_that_are_not_there(lists: Path) -> None:
    (lists / "Manually_Annotated_Images/2/c4f3.JPG").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 3 listed images: .*c4f3.JPG"):
        list(AffectNet(str(lists)).samples())
    assert len(list(AffectNet(str(lists), partial=True).samples())) == 2


def test_boxes() -> None:
    cells = {"face_x": "1", "face_y": "2.5", "face_width": "3", "face_height": "4"}
    assert parse_face(cells, "x") == Box(1, 2.5, 4, 6.5)
    for wrong in ("0", "nan", "inf", "x"):
        with pytest.raises(InputError, match="is no box"):
            parse_face({**cells, "face_width": wrong}, "x")


@pytest.mark.parametrize(("folder", "names"), [("Test", ("Anger", "Happy", "Contempt")), ("val", ("6", "1", "7"))])
def test_folders_named_by_class(tmp_path: Path, put: Put, folder: str, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path / folder / name / "image0000006.jpg")
    put(tmp_path / folder / "Other" / "x.jpg")
    put(tmp_path / "Train" / names[0] / "y.jpg")
    samples = list(AffectNet(str(tmp_path)).samples())
    assert {s.emotion for s in samples if s.role == "evaluate"} == {"anger", "happiness", "contempt"}
    assert [s.emotion for s in samples if s.role == "train"] == ["anger"] and len(samples) == 4


def test_a_copy_with_parts_to_validate_and_to_test(tmp_path: Path, put: Put) -> None:
    for part in ("train", "val", "test"):
        put(tmp_path / part / "anger" / "x.jpg")
    assert [s.role for s in AffectNet(str(tmp_path)).samples()] == ["evaluate", "validation", "train"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="lacks val_set/annotations") as caught:
        list(AffectNet(str(tmp_path)).samples())
    assert AffectNet.homepage in caught.value.remedy
    assert AffectNet().check(tmp_path).level == "missing"


def test_a_manifest_whose_pictures_lie_in_a_folder_train(tmp_path: Path, put: Put) -> None:
    put(tmp_path / "train/a.png")
    (tmp_path / "manifest.csv").write_text("path,subject_id,emotion\ntrain/a.png,a,happy\n")
    data = AffectNet(str(tmp_path))
    assert data.reads_manifest and [s.emotion for s in data.samples()] == ["happiness"]
