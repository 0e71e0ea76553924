"""CK+ in its official folders, as CK+48, and by manifest: generated folders, and the real CK+48 where it is."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from deidbench import kinds
from deidbench.datasets.ckplus import CODES, SEQUENCES, CKPlus, parse_emotion, parse_name
from deidbench.errors import InputError, MissingError
from deidbench.images import read_image, write_image

Put = Callable[[Path], None]


@pytest.fixture
def put(orl_folder: Path) -> Put:
    """Writes another face under each name that is asked for."""
    taken = iter(range(400))

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        person, picture = divmod(next(taken), 10)
        write_image(path, read_image(orl_folder / f"s{person + 1}" / f"{picture + 1}.pgm"))

    return write


@pytest.fixture
def official(tmp_path: Path, put: Put) -> Path:
    """Three sequences of two persons, one without a label, with what macOS and the archives leave beside."""
    root = tmp_path / "CK+"
    images, labels = root / "cohn-kanade-images", root / "Emotion"
    for person, sequence, frames in (("S005", "001", range(1, 12)), ("S010", "002", range(1, 5)), ("S010", "010", (3, 9, 10))):
        for n in frames:
            put(images / person / sequence / f"{person}_{sequence}_{n:08d}.png")
        (labels / person / sequence).mkdir(parents=True)
    (labels / "S005/001/S005_001_00000011_emotion.txt").write_text("   3.0000000e+00\n")
    (labels / "S010/010/S010_010_00000010_emotion.txt").write_text("   7.0000000e+00\n")
    (images / "S010/.DS_Store").write_bytes(b"\0")
    (images / "S010/002/._S010_002_00000004.png").write_bytes(b"\0")
    (root / "FACS/S005/001").mkdir(parents=True)
    (root / "Landmarks").mkdir()
    return root


def test_the_last_frame_of_each_labelled_sequence(official: Path) -> None:
    data = CKPlus(str(official))
    samples = list(data.samples())
    assert [(s.id, s.subject_id, s.emotion) for s in samples] == [
        ("cohn-kanade-images/S005/001/S005_001_00000011.png", "S005", "disgust"),
        ("cohn-kanade-images/S010/010/S010_010_00000010.png", "S010", "surprise"),
    ]
    assert data.left_out() == {"sequences without an emotion (unlabelled = true takes them, for identity)": 1}
    assert all(read_image(s.path, sha256=s.sha256).shape == (112, 92, 3) for s in samples)
    assert not data.shows_faces and data.identities


def test_frames_and_unlabelled_sequences(official: Path) -> None:
    both = [(Path(s.id).stem[-2:], s.emotion) for s in CKPlus(str(official), frames="peak+neutral").samples()]
    assert both == [("01", "neutral"), ("11", "disgust"), ("03", "neutral"), ("10", "surprise")]
    last = [Path(s.id).stem[-2:] for s in CKPlus(str(official), frames="last3").samples()]
    assert last == ["09", "10", "11", "03", "09", "10"]
    every = [(s.subject_id, s.emotion) for s in CKPlus(str(official), unlabelled=True).samples()]
    assert every == [("S005", "disgust"), ("S010", None), ("S010", "surprise")]
    with pytest.raises(InputError, match="unknown frames 'first'"):
        list(CKPlus(str(official), frames="first").samples())


@pytest.mark.parametrize("images", ["extended-cohn-kanade-images/cohn-kanade-images", "extended-cohn-kanade-images"])
@pytest.mark.parametrize("labels", ["Emotion_labels/Emotion", "Emotion_labels"])
def test_folders_as_the_archives_unpack(official: Path, images: str, labels: str) -> None:
    for now, then in ((official / "cohn-kanade-images", official / images), (official / "Emotion", official / labels)):
        then.parent.mkdir(exist_ok=True)
        now.rename(then)
    assert [s.emotion for s in CKPlus(str(official)).samples()] == ["disgust", "surprise"]


def test_codes_are_those_of_the_read_me() -> None:
    assert [CODES[i] for i in range(8)] == [
        "neutral",
        "anger",
        "contempt",
        "disgust",
        "fear",
        "happiness",
        "sadness",
        "surprise",
    ]
    assert parse_emotion("   5.0000000e+00\n", "x") == "happiness"
    for wrong in ("", "8.0", "2.5", "nan", "1 2", "happy", "-1"):
        with pytest.raises(InputError, match=r"x: .* is not one of the codes 0 to 7"):
            parse_emotion(wrong, "x")
    assert parse_name("S005_001_00000011.png") == ("S005", "S005_001", 11)
    assert [parse_name(n) for n in ("S5_001_00000011.png", "S005_001.png", "S005_001_0000001a.png", "S005_001_1.txt")] == [
        None
    ] * 4


def test_the_check_says_how_many_are_missing(official: Path) -> None:
    report = CKPlus().check(official)
    assert report.level == "missing" and not report.ready
    said = [f.what for f in report.findings]
    assert "2 labelled sequences, the whole set has 327" in said
    assert any("disgust 1 (of 59)" in s and "surprise 1 (of 83)" in s for s in said)
    partial = CKPlus(partial=True).check(official)
    assert partial.ready and "left out: 1 sequences without an emotion (unlabelled = true takes them, for identity)" in [
        f.what for f in partial.findings
    ]


def test_what_is_not_there_is_named(official: Path, tmp_path: Path) -> None:
    shutil.rmtree(official / "Emotion")
    with pytest.raises(InputError, match="no folder Emotion") as caught:
        list(CKPlus(str(official)).samples())
    assert "Emotion_labels.zip" in caught.value.remedy
    assert len(list(CKPlus(str(official), unlabelled=True).samples())) == 3
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "extended-cohn-kanade-images.zip").write_bytes(b"PK")
    assert any("still packed" in f.what and "unzip" in f.remedy for f in CKPlus().check(tmp_path / "empty").findings)
    with pytest.raises(MissingError, match="lacks cohn-kanade-images"):
        list(CKPlus(str(tmp_path / "empty")).samples())


def test_damaged_labels_are_refused(official: Path) -> None:
    label = official / "Emotion/S005/001/S005_001_00000011_emotion.txt"
    label.write_text("   9.0000000e+00\n")
    with pytest.raises(InputError, match=r"S005_001_00000011_emotion.txt: '9.0000000e\+00' is not one"):
        list(CKPlus(str(official)).samples())
    label.write_text("3" * 2000)
    with pytest.raises(InputError, match="2,000 bytes"):
        list(CKPlus(str(official)).samples())
    label.write_text("3.0")
    (official / "cohn-kanade-images/S005/001/S005_001_00000011.png").unlink()
    with pytest.raises(InputError, match="about frame 11, the last frame of S005_001 that is there is 10"):
        list(CKPlus(str(official)).samples())
    label.rename(label.with_name("S006_001_00000011_emotion.txt"))
    with pytest.raises(InputError, match="no label of sequence S005_001"):
        list(CKPlus(str(official)).samples())


def test_a_frame_in_another_persons_folder_is_refused(official: Path, put: Put) -> None:
    put(official / "cohn-kanade-images/S005/001/S010_002_00000099.png")
    with pytest.raises(InputError, match="its name says sequence S010_002, its folder S005_001"):
        list(CKPlus(str(official)).samples())


def test_links_out_of_the_folder_are_refused(official: Path, tmp_path: Path) -> None:
    peak = official / "cohn-kanade-images/S005/001/S005_001_00000011.png"
    peak.rename(tmp_path / "elsewhere.png")
    peak.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match="symbolic link"):
        list(CKPlus(str(official)).samples())


@pytest.fixture
def cut(tmp_path: Path, put: Put) -> Path:
    """CK+48: three frames each of a happy and an angry sequence."""
    root = tmp_path / "data"
    for emotion, sequence, first in (("anger", "S010_004", 17), ("happy", "S011_006", 11), ("contempt", "S138_008", 7)):
        for n in range(first, first + 3):
            put(root / "CK+48" / emotion / f"{sequence}_{n:08d}.png")
    return root


def test_ck48(cut: Path) -> None:
    samples = list(CKPlus(str(cut)).samples())
    assert [(Path(s.id).name, s.subject_id, s.emotion) for s in samples] == [
        ("S010_004_00000019.png", "S010", "anger"),
        ("S011_006_00000013.png", "S011", "happiness"),
        ("S138_008_00000009.png", "S138", "contempt"),
    ]
    inside = list(CKPlus(str(cut / "CK+48"), frames="last3").samples())
    assert len(inside) == 9 and inside[0].id == "anger/S010_004_00000017.png"
    with pytest.raises(InputError, match=r"CK.48, which has no neutral frames"):
        list(CKPlus(str(cut), frames="peak+neutral").samples())


def test_a_sequence_under_two_emotions_is_refused(cut: Path) -> None:
    picture = cut / "CK+48/anger/S010_004_00000019.png"
    picture.rename(cut / "CK+48/happy/S010_004_00000019.png")
    with pytest.raises(InputError, match="sequence S010_004 is in the folders of anger and of happiness"):
        list(CKPlus(str(cut)).samples())


def test_a_manifest_with_names_of_its_own_is_taken_as_it_is(tmp_path: Path, put: Put) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    (tmp_path / "manifest.csv").write_text("path,subject_id,emotion\na.png,anna,happy\nb.png,anna,sad\n")
    assert [s.emotion for s in CKPlus(str(tmp_path)).samples()] == ["happiness", "sadness"]


def test_the_real_ck48(shared_data: Path) -> None:
    root = shared_data / "ck48"
    if not (root / "manifest.csv").is_file():
        pytest.skip("the trial data ck48 is not here")
    data = kinds.datasets.create("ck+", root=str(root))
    samples = list(data.samples())
    assert Counter(s.emotion for s in samples) == SEQUENCES
    assert (len(samples), len({s.subject_id for s in samples})) == (327, 118)
    assert len(list(CKPlus(str(root), frames="last3").samples())) == 981
    report = data.check(root)
    assert report.ready and ["327 labelled sequences" in f.what for f in report.findings].count(True) == 1


def test_the_real_pictures_in_the_folders_of_ck48(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "ck48"
    if not (source / "manifest.csv").is_file():
        pytest.skip("the trial data ck48 is not here")
    words = {"happiness": "happy"}
    for line in (source / "manifest.csv").read_text("utf-8").splitlines()[1:]:
        path, _, _, emotion, _ = line.split(",")
        folder = tmp_path / "CK+48" / words.get(emotion, emotion)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, folder / Path(path).name)
    report = CKPlus(frames="last3").check(tmp_path)
    assert report.ready, report.findings
    mine = {(Path(s.id).name, s.subject_id, s.emotion, s.sha256) for s in CKPlus(str(tmp_path)).samples()}
    assert mine == {(Path(s.id).name, s.subject_id, s.emotion, s.sha256) for s in CKPlus(str(source)).samples()}
