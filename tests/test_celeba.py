"""CelebA and CelebA-HQ: small folders in the exact official layout, the forms in which people have them, lists that lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deidbench import kinds
from deidbench.data_index import Prepared, write
from deidbench.datasets.celeba import CelebA, column, flags, read_boxes
from deidbench.datasets.celeba_hq import CelebAHQ, read_mapping
from deidbench.datasets.official import OfficialDataset
from deidbench.errors import InputError, MissingError
from deidbench.images import read_image
from deidbench.types import Box

NAMES = (  # noqa: SIM905 - as the list itself has them
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry "
    "Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns "
    "Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"
).split()
#: Twelve images of six persons: (person, split); persons are numbered as in CelebA, anything but in a row.
IMAGES = [(2880, 0), (2880, 0), (7, 0), (7, 0), (10, 1), (10, 1), (9915, 1), (9915, 1), (33, 2), (33, 2), (4, 2), (4, 2)]


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEIDBENCH_DATA", raising=False)


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> list[Path]:
    """Faces as JPEGs of 178 x 218, as CelebA's aligned ones are."""
    import cv2

    folder = tmp_path_factory.mktemp("jpegs")
    out = []
    for k in range(len(IMAGES)):
        face = cv2.imread(str(orl_folder / f"s{k // 2 + 1}" / f"{k % 2 + 1}.pgm"))
        out.append(folder / f"{k}.jpg")
        cv2.imwrite(str(out[-1]), cv2.resize(face, (178, 218)))
    return out


def values(k: int) -> list[int]:
    """Attributes of image k: -1 or 1, another pattern for each; Male where the person's number is even."""
    male = IMAGES[k][0] % 2 == 0
    return [(1 if male else -1) if name == "Male" else (1 if (k * 7 + i) % 3 == 0 else -1) for i, name in enumerate(NAMES)]


def file(k: int) -> str:
    return f"{k + 1:06d}.jpg"


def lists(root: Path) -> None:
    """Anno and Eval as the authors' share has them."""
    (root / "Anno").mkdir(parents=True)
    (root / "Eval").mkdir()
    rows = [f"{file(k)} " + " ".join(f"{v:2d}" for v in values(k)) for k in range(len(IMAGES))]
    (root / "Anno" / "list_attr_celeba.txt").write_text("\n".join([str(len(IMAGES)), " ".join(NAMES) + " ", *rows]) + "\n")
    (root / "Anno" / "identity_CelebA.txt").write_text("".join(f"{file(k)} {p}\n" for k, (p, _) in enumerate(IMAGES)))
    (root / "Eval" / "list_eval_partition.txt").write_text("".join(f"{file(k)} {s}\n" for k, (_, s) in enumerate(IMAGES)))
    boxes = "".join(f"{file(k)}    {10 + k}  20  30   40\n" for k in range(len(IMAGES)))
    (root / "Anno" / "list_bbox_celeba.txt").write_text(f"{len(IMAGES)}\nimage_id x_1 y_1 width height\n{boxes}")


@pytest.fixture
def celeba(tmp_path: Path, jpegs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "CelebA"
    lists(root)
    folder = root / "Img" / "img_align_celeba"
    folder.mkdir(parents=True)
    for k, path in enumerate(jpegs):
        shutil.copy(path, folder / file(k))
    shrink(CelebA, monkeypatch, 12, 6, {"identity": 12, "partition": {".txt": 12, ".csv": 13}, "attributes": {".txt": 14, ".csv": 13}, "boxes": {".txt": 14, ".csv": 13}})  # fmt: skip
    return root


def shrink(cls: type[OfficialDataset], patch: pytest.MonkeyPatch, images: int, persons: int, lines: dict) -> None:
    """The layout as it is, for a set of this size."""
    parts = tuple(replace(p, lines=lines.get(p.key, p.lines), md5="") for p in cls.expected.parts)
    patch.setattr(cls, "expected", replace(cls.expected, images=images, persons=persons, parts=parts))


def test_the_official_layout(celeba: Path) -> None:
    report = CelebA().check(celeba)
    assert report.ready, report
    samples = list(CelebA(str(celeba)).samples())
    assert [s.id for s in samples] == [file(k) for k in range(12)]
    assert [int(s.subject_id) for s in samples] == [p for p, _ in IMAGES]
    assert [s.role for s in samples] == [{0: "attacker_train", 1: "valid", 2: "evaluate"}[split] for _, split in IMAGES]
    for k, s in enumerate(samples):
        assert [s.attributes[name] for name in NAMES] == [(v + 1) // 2 for v in values(k)], "-1/1 become 0/1"
        assert s.groups == {"sex": "male" if IMAGES[k][0] % 2 == 0 else "female"} and s.box is None
        assert read_image(s.path, sha256=s.sha256).shape == (218, 178, 3)
    assert [s.id for s in CelebA(str(celeba), split="test").samples()] == [file(k) for k in range(8, 12)]
    assert not CelebA().shows_faces


def test_as_kaggle_has_it(celeba: Path, tmp_path: Path) -> None:
    """Lists as .csv, images a folder deeper, nobody's identity."""
    root = tmp_path / "archive"
    (root / "img_align_celeba").mkdir(parents=True)
    shutil.copytree(celeba / "Img" / "img_align_celeba", root / "img_align_celeba" / "img_align_celeba")
    rows = [",".join([file(k), *map(str, values(k))]) for k in range(12)]
    (root / "list_attr_celeba.csv").write_text("\n".join([",".join(["image_id", *NAMES]), *rows]) + "\n")
    (root / "list_eval_partition.csv").write_text("image_id,partition\n" + "".join(f"{file(k)},{s}\n" for k, (_, s) in enumerate(IMAGES)))  # fmt: skip
    report = CelebA().check(root)
    missing = [f for f in report.findings if f.level == "missing"]
    assert [f.what.split()[0] for f in missing] == ["identity_CelebA.txt"]
    assert "Anno" in missing[0].remedy and "identities=false" in missing[0].remedy
    with pytest.raises(MissingError, match=r"lacks identity_CelebA\.txt"):
        list(CelebA(str(root)).samples())
    alone = CelebA(str(root), identities=False)
    assert alone.identities is False and CelebA(identities=False).check(root).ready
    samples = list(alone.samples())
    assert [s.subject_id for s in samples] == [s.id for s in samples] and samples[0].path.parent.name == "img_align_celeba"
    assert [dict(s.attributes) for s in samples] == [dict(s.attributes) for s in CelebA(str(celeba)).samples()]
    shutil.copy(celeba / "Anno" / "identity_CelebA.txt", root)
    assert [s.subject_id for s in CelebA(str(root)).samples()] == [str(p) for p, _ in IMAGES]


def test_as_torchvision_has_it(celeba: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "celeba").mkdir(parents=True)
    shutil.copytree(celeba / "Img" / "img_align_celeba", root / "celeba" / "img_align_celeba")
    for name in ("Anno/identity_CelebA.txt", "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"):
        shutil.copy(celeba / name, root / "celeba")
    assert CelebA().check(root).ready and CelebA().check(root / "celeba").ready
    assert [s.id for s in CelebA(str(root)).samples()] == [s.id for s in CelebA(str(root / "celeba")).samples()], (
        "same ids anywhere"
    )


def test_photographs_as_they_were(celeba: Path) -> None:
    """images = "wild": another folder, with the authors' boxes; an empty box is none."""
    shutil.copytree(celeba / "Img" / "img_align_celeba", celeba / "Img" / "img_celeba")
    path = celeba / "Anno" / "list_bbox_celeba.txt"
    path.write_text(path.read_text().replace(f"{file(1)}    11  20  30   40", f"{file(1)}    0  0  0   0"))
    samples = list(CelebA(str(celeba), images="wild").samples())
    assert samples[0].box == Box(10, 20, 40, 60) and samples[1].box is None and samples[0].path.parent.name == "img_celeba"
    assert "lacks img_align_celeba_png" in CelebA(str(celeba), images="aligned-png").missing()
    with pytest.raises(InputError, match="images = 'small' is not known"):
        list(CelebA(str(celeba), images="small").samples())


def test_still_packed(celeba: Path) -> None:
    shutil.rmtree(celeba / "Img" / "img_align_celeba")
    (celeba / "Img" / "img_align_celeba.zip").write_bytes(b"")
    report = CelebA().check(celeba)
    assert report.level == "missing"
    assert any(f.remedy == f"unzip -q {celeba}/Img/img_align_celeba.zip -d {celeba}/Img" for f in report.findings)


# --------------------------------------------------------------------------------------------------------- lists that lie


def broken(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / name
        path.write_text(change(path.read_text()))

    return apply


ATTR, WHO, SPLIT = "Anno/list_attr_celeba.txt", "Anno/identity_CelebA.txt", "Eval/list_eval_partition.txt"
LIES = {
    "cut short": (broken(ATTR, lambda t: "".join(t.splitlines(keepends=True)[:-2])), "line 1 says 12 images, 10 follow"),
    "wrong count in the first line": (broken(ATTR, lambda t: t.replace("12\n", "13\n", 1)), "line 1 says 13 images, 12 follow"),
    "no count": (broken(ATTR, lambda t: t.split("\n", 1)[1]), "line 1: .*not the number of images"),
    "no names": (broken(ATTR, lambda t: t.replace("Male", "Mal", 1)), "line 2: this is no line of attribute names"),
    "-1 and 0": (
        broken(ATTR, lambda t: t[:-3] + " 0\n" if t[-3:] == "-1\n" else t[:-4] + "  0\n"),
        "line 14: 0 for Young.*not both",
    ),
    "a value too few": (broken(ATTR, lambda t: t.rstrip()[:-2] + "\n"), "line 14: 39 values, 40 attributes"),
    "neither -1 nor 1": (broken(ATTR, lambda t: t[:-3] + " 7\n"), "line 14: Young is '7'"),
    "an image twice": (broken(ATTR, lambda t: t.replace(file(11), file(10))), "line 14: 000011.jpg is listed twice"),
    "a person's image twice": (broken(WHO, lambda t: t.replace(file(11), file(10))), "line 12: 000011.jpg is listed twice"),
    "an image nobody knows": (
        broken(WHO, lambda t: t.replace(file(11), "999999.jpg")),
        "line 12: 000012.jpg is not in identity",
    ),
    "a line too many": (broken(WHO, lambda t: t.replace(" 33", " 33 x", 1)), "line 9: 3 cells"),
    "a fourth split": (
        broken(SPLIT, lambda t: t.replace("000012.jpg 2", "000012.jpg 3")),
        "line 12: split '3' is not 0, 1 or 2",
    ),
    "a person in two splits": (
        broken(SPLIT, lambda t: t.replace("000012.jpg 2", "000012.jpg 0")),
        "person '4' is in the roles",
    ),
    "a path": (
        broken(SPLIT, lambda t: t.replace("000012.jpg", "../../../000012.jpg")),
        "000012.jpg is not in list_attr_celeba",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lists_that_lie_are_named_with_their_line(celeba: Path, lie: str) -> None:
    damage, message = LIES[lie]
    damage(celeba)
    with pytest.raises(InputError, match=message):
        list(CelebA(str(celeba)).samples())
    assert CelebA().check(celeba).level == "wrong"


def test_a_path_in_every_list_is_refused(celeba: Path) -> None:
    (celeba.parent / "000099.jpg").write_bytes(b"secret")
    for name in (ATTR, WHO, SPLIT):
        path = celeba / name
        path.write_text(path.read_text().replace(file(11), "../../../000099.jpg"))
    with pytest.raises(InputError, match=r"list_eval_partition\.txt, line 12: .*climbs out"):
        list(CelebA(str(celeba)).samples())


def test_line_ends_of_windows_and_zeros_for_minus_ones(celeba: Path) -> None:
    want = [(s.id, s.subject_id, dict(s.attributes)) for s in CelebA(str(celeba)).samples()]
    for name in (ATTR, WHO, SPLIT):
        path = celeba / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    path = celeba / ATTR
    path.write_text(path.read_text().replace("-1", "0"))
    assert [(s.id, s.subject_id, dict(s.attributes)) for s in CelebA(str(celeba)).samples()] == want


def test_boxes_must_be_numbers(tmp_path: Path) -> None:
    path = tmp_path / "list_bbox_celeba.txt"
    path.write_text("1\nimage_id x_1 y_1 width height\n000001.jpg 1 2 3\n")
    with pytest.raises(InputError, match="line 3: a file and four numbers"):
        read_boxes(path)


def test_the_lists_speak_for_themselves(celeba: Path) -> None:
    names, bits = flags(celeba / ATTR)
    assert list(names) == NAMES and len(bits) == 12
    assert column(celeba / WHO)[file(0)] == (1, "2880")


# -------------------------------------------------------------------------------------------------------------- CelebA-HQ


#: Number in CelebA-HQ -> place in IMAGES.
PICKED = {0: 10, 1: 3, 2: 0, 3: 8}


@pytest.fixture
def mask_hq(tmp_path: Path, celeba: Path, jpegs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "CelebAMask-HQ"
    (root / "CelebA-HQ-img").mkdir(parents=True)
    for number, k in PICKED.items():
        shutil.copy(jpegs[k], root / "CelebA-HQ-img" / f"{number}.jpg")
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx\torig_idx\torig_file\n" + "".join(f"{n}\t{k}\t{file(k)}\n" for n, k in PICKED.items())
    )
    rows = [f"{n}.jpg  " + " ".join(f"{v:2d}" for v in values(k)) for n, k in PICKED.items()]
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join([str(len(PICKED)), " ".join(NAMES), *rows]) + "\n")
    shrink(CelebAHQ, monkeypatch, 4, 4, {"mapping": 5})
    return root


def expected_of(samples: list) -> None:
    assert {s.id: s.subject_id for s in samples} == {file(k): str(IMAGES[k][0]) for k in PICKED.values()}
    places = {s.id: k for s in samples for k in PICKED.values() if s.id == file(k)}
    for s in samples:
        assert [s.attributes[n] for n in NAMES] == [(v + 1) // 2 for v in values(places[s.id])]
        assert s.role == {0: "attacker_train", 2: "evaluate"}[IMAGES[places[s.id]][1]]


def test_celebamask_hq_with_the_lists_of_celeba_beside(mask_hq: Path, celeba: Path) -> None:
    report = CelebAHQ().check(mask_hq)
    assert report.level == "missing" and any(
        "identity_CelebA.txt" in f.what and "celeba=DIR" in f.remedy for f in report.findings
    )
    for name in (WHO, SPLIT):
        shutil.copy(celeba / name, mask_hq)
    assert CelebAHQ().check(mask_hq).ready
    expected_of(list(CelebAHQ(str(mask_hq)).samples()))


def test_celeba_may_lie_elsewhere(mask_hq: Path, celeba: Path) -> None:
    """Named, or the folder that was prepared as celeba."""
    expected_of(list(CelebAHQ(str(mask_hq), celeba=str(celeba)).samples()))
    assert CelebAHQ(celeba=str(celeba)).check(mask_hq).ready
    write(Prepared("celeba", str(celeba), "1", 12, 6, "0" * 64, "2026-01-01T00:00:00+00:00", {"partial": False}), [])
    expected_of(list(CelebAHQ(str(mask_hq)).samples()))
    assert any(str(celeba) in f.what for f in CelebAHQ().check(mask_hq).findings)


def test_smaller_releases_and_files_with_celebas_numbers(mask_hq: Path, celeba: Path) -> None:
    five = mask_hq.parent / "five"
    (five / "celeba_hq_256").mkdir(parents=True)
    six = mask_hq.parent / "six"
    (six / "celeba_hq" / "val" / "female").mkdir(parents=True)
    for number, k in PICKED.items():
        shutil.copy(mask_hq / "CelebA-HQ-img" / f"{number}.jpg", five / "celeba_hq_256" / f"{number:05d}.jpg")
        shutil.copy(mask_hq / "CelebA-HQ-img" / f"{number}.jpg", six / "celeba_hq" / "val" / "female" / file(k))
    for name in ("CelebA-HQ-to-CelebA-mapping.txt", "CelebAMask-HQ-attribute-anno.txt"):
        shutil.copy(mask_hq / name, five)
    expected_of(list(CelebAHQ(str(five), celeba=str(celeba)).samples()))
    shutil.copy(celeba / ATTR, six)
    assert CelebAHQ(celeba=str(celeba)).check(six).ready, "no mapping is needed"
    expected_of(list(CelebAHQ(str(six), celeba=str(celeba)).samples()))


def test_gaps_and_strangers_in_celeba_hq(mask_hq: Path, celeba: Path) -> None:
    data = CelebAHQ(str(mask_hq), celeba=str(celeba))
    (mask_hq / "CelebA-HQ-img" / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 4 listed images: CelebA-HQ-img/2\.jpg"):
        list(data.samples())
    (mask_hq / "CelebA-HQ-img" / "2.jpg").write_bytes(b"x")
    (mask_hq / "CelebA-HQ-img" / "4.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"4\.jpg: 4\.jpg is not in"):
        list(data.samples())
    (mask_hq / "CelebA-HQ-img" / "4.jpg").rename(mask_hq / "CelebA-HQ-img" / "me.jpg")
    with pytest.raises(InputError, match="is no image of CelebA-HQ by its name"):
        list(data.samples())


def test_a_mapping_that_lies_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    for text, message in (("idx orig_idx orig_file\n0 5 ../000005.jpg\n", "line 2"), ("0 5 000005.jpg\n0 6 000006.jpg\n", "line 2: number 0 is there twice")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_mapping(path)


# --------------------------------------------------------------------------------------------------------------- the real


def test_the_real_celeba_hq(shared_data: Path) -> None:
    data = CelebAHQ(str(shared_data / "celeba_hq"))
    assert not data.missing() and CelebAHQ().check(shared_data / "celeba_hq").ready
    samples = list(data.samples())
    assert len(samples) == 2500 and len({s.subject_id for s in samples if s.role == "evaluate"}) == 150
    assert sorted(samples[0].attributes) == sorted(NAMES)
    assert CelebA().check(shared_data / "lfw").level == "wrong", "LFW is not CelebA"


def test_models_that_learnt_from_celeba_know_these_persons(shared_data: Path) -> None:
    """Attribute classifiers name persons by CelebA's numbers, and a run finds them out by the data set's name."""
    learnt = kinds.classifiers.create("attributes-cnn").lessons().persons
    assert learnt and all(d.name.replace("-", "_").startswith(name) for d in (CelebA, CelebAHQ) for name in learnt)
    there = {s.subject_id for s in CelebAHQ(str(shared_data / "celeba_hq")).samples()}
    assert there & set().union(*learnt.values()), "numbered in the same way"
