"""Every built-in anonymizer keeps the contract, on real faces and on what is left of a picture when things go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deidbench import kinds
from deidbench.anonymizers.base import Anonymizer
from deidbench.anonymizers.external.program import ExternalAnonymizer
from deidbench.contract import Trial, Verdict, checks, faces_of, run_check
from deidbench.contract_faces import Material
from deidbench.faces import FaceFinder
from deidbench.types import Box, Face, Item, Sample, Status

#: They work with something of the user's (a program, files), and are put through the contract by tests of their own.
WITH_FILES = {"command", "folder", "onnx", "torchscript"}
NAMES = [
    n
    for n in kinds.anonymizers.names()
    if not n.startswith("test-") and n not in WITH_FILES and not issubclass(kinds.anonymizers.get(n), ExternalAnonymizer)
]
#: Methods that cannot work on a face without landmarks, and say so.
NEED_LANDMARKS = {"ganonymization", "k-same-eigen", "k-same-furthest", "k-same-pixel", "k-same-select"}
#: ... one of which looks for them itself where a face comes without.
FINDS_LANDMARKS = {"ganonymization"}
#: Persons of the set that is de-identified, for methods that average faces: two groups of labels with at least five each.
GALLERY = (1, 2, 3, 4, 8, 9, 14, 15, 22, 30, 34, 35)
#: Methods that change nothing, or everything, whatever is in the picture.
CONTROLS = {"original", "blackout"}


@pytest.fixture(params=NAMES)
def anonymizer(request: pytest.FixtureRequest, items: list[Item], gallery: dict[str, Item]) -> Anonymizer:
    made = kinds.anonymizers.create(request.param)
    made.validate()
    made.load()
    if made.needs_gallery:
        samples = [
            Sample(i, Path(i), i.partition("/")[0], "", emotion=("neutral", "happiness")[n % 2]) for n, i in enumerate(gallery)
        ]
        made.fit(samples, lambda sample: gallery[sample.id])
    return made


@pytest.fixture(scope="module")
def items(orl_folder: Path, finder: FaceFinder) -> list[Item]:
    return [
        _item(orl_folder, finder, p, i, 1000 + n)
        for n, (p, i) in enumerate([(1, 1), (4, 2), (8, 3), (14, 5), (22, 9), (35, 10)])
    ]


@pytest.fixture(scope="module")
def gallery(items: list[Item], orl_folder: Path, finder: FaceFinder) -> dict[str, Item]:
    """The items, and an image each of other persons, by id."""
    mine = {i.subject_id for i in items}
    others = [_item(orl_folder, finder, p, 1, 0) for p in GALLERY if f"s{p}" not in mine]
    return {i.id: i for i in (*items, *others)}


def _item(folder: Path, finder: FaceFinder, person: int, image: int, seed: int) -> Item:
    import cv2

    pixels = np.ascontiguousarray(cv2.imread(str(folder / f"s{person}" / f"{image}.pgm"))[..., ::-1])
    return Item(f"s{person}/{image}", pixels, tuple(finder.find(pixels)), seed=seed, subject_id=f"s{person}")


@pytest.fixture(scope="module")
def trials(material: Material) -> dict[str, Trial]:
    return {name: Trial(kinds.anonymizers.create(name), material, quick=True) for name in NAMES}


@pytest.fixture(scope="module")
def material() -> Material:
    return faces_of(gallery=True)


@pytest.mark.parametrize("check", [n for n in checks() if n not in ("memory", "speed")])
@pytest.mark.parametrize("name", NAMES)
def test_contract(trials: dict[str, Trial], name: str, check: str) -> None:
    """What is asked of a plug-in is asked of our own methods, and none is even warned."""
    result = run_check(checks()[check], trials[name])
    if result.verdict is Verdict.SKIPPED:
        pytest.skip(result.found)
    assert result.verdict is Verdict.PASSED, result.text()


def test_every_picture_of_a_face_is_released(anonymizer: Anonymizer, items: list[Item]) -> None:
    for item, result in zip(items, anonymizer.anonymize(items), strict=True):
        assert result.status is Status.OK
        assert result.image is not None
        assert result.image.shape == item.image.shape
        if anonymizer.needs_faces:
            assert len(result.faces) == len(item.faces or ())
            assert all(f.status is Status.OK and f.box is not None for f in result.faces)


def test_grey_stays_grey(anonymizer: Anonymizer, items: list[Item]) -> None:
    for result in anonymizer.anonymize(items):
        assert (result.image[..., :1] == result.image).all()  # type: ignore[index]


def test_faces_not_looked_for_is_a_failure_with_words(anonymizer: Anonymizer, orl_face: np.ndarray) -> None:
    [result] = anonymizer.anonymize([Item("x", orl_face, None)])
    if anonymizer.needs_faces:
        assert result.status is Status.FAILED
        assert "faces" in result.reason
    else:
        assert result.status is Status.OK


def test_what_is_no_picture_is_failed(anonymizer: Anonymizer, items: list[Item]) -> None:
    for image in (items[0].image.astype(np.float32), items[0].image[..., 0], np.zeros((0, 5, 3), np.uint8)):
        [result] = anonymizer.anonymize([Item("x", image, items[0].faces)])  # type: ignore[arg-type]
        assert result.status is Status.FAILED


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (20, 500)])
def test_small_and_odd_shapes(anonymizer: Anonymizer, shape: tuple[int, int]) -> None:
    h, w = shape
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    face = Face(Box(0, 0, w, h))
    [result] = anonymizer.anonymize([Item("x", image, (face,))])
    if anonymizer.name in NEED_LANDMARKS:
        assert result.status is Status.NO_LANDMARKS
        return
    assert result.status is Status.OK
    assert result.image.shape == image.shape  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "box", [Box(-30, -30, 20, 25), Box(80, 90, 140, 150), Box(-50, -50, 200, 200), Box(40.2, 50.4, 42.1, 52.3)]
)
def test_faces_partly_outside_and_tiny_ones(anonymizer: Anonymizer, orl_face: np.ndarray, box: Box) -> None:
    [result] = anonymizer.anonymize([Item("x", orl_face, (Face(box),))])
    if anonymizer.name in NEED_LANDMARKS:  # of a frame with a whole face in it, they are found in the box that holds it
        whole = box.size > 200 and anonymizer.name in FINDS_LANDMARKS
        assert result.status is (Status.OK if whole else Status.NO_LANDMARKS)
    elif anonymizer.name not in CONTROLS and anonymizer.name != "eye-bar":  # the eyes may lie outside
        assert result.status is Status.OK
        if box.size > 10:  # the blur of a face of two pixels rounds to nothing; the suite calls that a pass-through
            assert (result.image != orl_face).any()


def test_a_face_that_is_nowhere_withholds_the_image(anonymizer: Anonymizer, items: list[Item]) -> None:
    """A frame with one face that could not be handled is not released half done."""
    if not anonymizer.needs_faces:
        pytest.skip("needs no faces")
    assert items[0].faces is not None
    [result] = anonymizer.anonymize([Item("x", items[0].image, (*items[0].faces, Face(Box(900, 900, 950, 950))))])
    assert result.status is Status.FAILED
    assert result.image is None
    assert [f.status for f in result.faces] == [Status.OK, Status.FAILED]


def test_ten_faces(anonymizer: Anonymizer, items: list[Item]) -> None:
    """All faces of a frame are handled, each as if it were alone."""
    tiles = [items[i % len(items)] for i in range(10)]
    frame = np.concatenate([np.concatenate([t.image for t in tiles[r * 5 : r * 5 + 5]], axis=1) for r in range(2)])
    faces = []
    for k, tile in enumerate(tiles):
        [face] = tile.faces  # type: ignore[misc]
        dx, dy = 92 * (k % 5), 112 * (k // 5)
        assert face.landmarks is not None
        points = face.landmarks + np.array([dx, dy], np.float32)
        faces.append(Face(Box(face.box.x0 + dx, face.box.y0 + dy, face.box.x1 + dx, face.box.y1 + dy), 1.0, points))
    [result] = anonymizer.anonymize([Item("x", frame, tuple(faces))])
    assert result.status is Status.OK
    assert result.image is not None
    if anonymizer.name in CONTROLS:
        return
    assert len(result.faces) == 10
    for face in faces:
        x0, y0, x1, y1 = (round(v) for v in face.box)
        part = slice(max(y0, 0), y1), slice(max(x0, 0), x1)
        changed = (result.image[part] != frame[part]).any(axis=2).mean()
        assert changed > (0.1 if anonymizer.name == "eye-bar" else 0.6)


def test_fingerprint_changes_with_every_parameter_and_with_nothing_else(anonymizer: Anonymizer, tmp_path: Path) -> None:
    params = anonymizer.params()
    again = kinds.anonymizers.create(anonymizer.name, **params)
    assert (again.fingerprint == anonymizer.fingerprint) is not anonymizer.needs_gallery  # what it was fitted to counts too
    other: dict[str, Any] = {
        "region": "box", "channels": "independent", "colour": (9, 9, 9), "checkpoint": str(tmp_path / "other.safetensors"),
        "output": "crop", "detector": "mtcnn", "landmarks": "crop", "size": 64, "device": "cpu", "precision": "bf16",
        "unit": "pixel", "images": "each", "utility": "Smiling", "gallery": str(tmp_path),
    }  # fmt: skip
    (tmp_path / "other.safetensors").write_bytes(b"another file")
    for key, value in params.items():
        changed = other.get(key, value + 0.01 if isinstance(value, int | float) else 1.5 if value is None else value)
        assert changed != value, f"{key} needs another value in this test"
        assert kinds.anonymizers.create(anonymizer.name, **{**params, key: changed}).fingerprint != again.fingerprint
