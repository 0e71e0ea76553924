"""GANonymization from the frame to the frame: extraction, the adapter, the detectors, the training pairs.

The generator is a tiny one with random weights: what it paints is noise, where it paints is what is tested here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from deidbench.anonymizers.ganonymization import Ganonymization, detectors, pipeline, preprocess
from deidbench.anonymizers.ganonymization.checkpoint import Description, save_generator
from deidbench.anonymizers.ganonymization.extraction import Cut, cut_face, edge_share, extract, oval_share, paste
from deidbench.anonymizers.ganonymization.networks import Generator, Shape
from deidbench.anonymizers.ganonymization.synthesis import engine
from deidbench.errors import InputError, MissingError
from deidbench.executors import InProcess
from deidbench.faces import FaceFinder, named_points
from deidbench.kinds import anonymizers
from deidbench.types import Anonymized, Box, Face, Item, Sample, Status

_spec = importlib.util.spec_from_file_location("contract", Path(__file__).parent / "contract" / "contract.py")
assert _spec is not None and _spec.loader is not None
contract: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

# ------------------------------------------------------------------------------------------------- faces and frames


@pytest.fixture(scope="session")
def template(orl_face: np.ndarray, finder: FaceFinder) -> np.ndarray:
    """The 478 points of a real face, about the middle of its box, in heights of that box, float64."""
    points = finder.find(orl_face)[0].landmarks
    assert points is not None
    low, high = points[:468].min(axis=0), points[:468].max(axis=0)
    return np.asarray((points.astype(np.float64) - (low + high) / 2) / (high - low)[1])


def rotation(degrees: float) -> np.ndarray:
    """Clockwise on the screen (y points down)."""
    a = math.radians(degrees)
    return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])


def face_at(template: np.ndarray, centre: tuple[float, float], height: float, degrees: float = 0.0) -> Face:
    """A face of the template's shape, turned clockwise."""
    points = ((template * height) @ rotation(degrees).T + centre).astype(np.float32)
    (x0, y0), (x1, y1) = points[:468].min(axis=0), points[:468].max(axis=0)
    return Face(Box(float(x0), float(y0), float(x1), float(y1)), 0.9, points)


def placed(frame: np.ndarray, face: np.ndarray, centre: tuple[float, float], scale: float, degrees: float) -> None:
    """Puts a picture into ``frame``, turned clockwise about its middle, which comes to ``centre``."""
    m = np.empty((2, 3))
    m[:, :2] = rotation(degrees) * scale
    m[:, 2] = np.array(centre) - m[:, :2] @ (face.shape[1] / 2, face.shape[0] / 2)
    m[:, 2] += m[:, :2] @ (0.5, 0.5) - 0.5
    size = frame.shape[1::-1]
    new = cv2.warpAffine(face, m, size, flags=cv2.INTER_CUBIC)
    mask = cv2.warpAffine(np.full(face.shape[:2], 255, np.uint8), m, size, flags=cv2.INTER_LINEAR)
    frame[mask > 250] = new[mask > 250]


@pytest.fixture(scope="session")
def picture(orl_folder: Path) -> Callable[[int], np.ndarray]:
    """Face number n of ORL, coloured, RGB uint8 (112, 92, 3)."""

    def read(subject: int, image: int = 1) -> np.ndarray:
        grey = cv2.imread(str(orl_folder / f"s{subject}" / f"{image}.pgm"), cv2.IMREAD_GRAYSCALE)
        return np.rint(grey[:, :, None] * np.array([1.0, 0.82, 0.7])).astype(np.uint8)

    return read


@pytest.fixture(scope="session")
def trio(picture: Callable[[int], np.ndarray]) -> np.ndarray:
    """Three faces of different sizes in one coloured frame, two of them turned, RGB uint8 (400, 640, 3)."""
    y, x = np.mgrid[:400, :640]
    frame = np.stack([90 + x // 16, 120 + y // 16, 140 - x // 16], axis=2).astype(np.uint8)
    placed(frame, picture(1), (150, 200), 2.4, 12)
    placed(frame, picture(5), (385, 190), 1.8, -20)
    placed(frame, picture(9), (555, 220), 1.4, 0)
    return frame


@pytest.fixture(scope="session")
def trio_item(trio: np.ndarray, finder: FaceFinder) -> Item:
    faces = finder.find(trio)
    assert len(faces) == 3
    assert all(f.landmarks is not None for f in faces)
    return Item("trio", trio, tuple(faces), 1)


def face_item(image: np.ndarray, finder: FaceFinder, id: str = "face") -> Item:
    faces = finder.find(image)
    assert len(faces) == 1
    return Item(id, image, tuple(faces))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Path of a tiny random checkpoint."""
    folder = tmp_path_factory.mktemp("tiny")

    def write(render: int = 128, margin: float = 1.4, seed: int = 1) -> str:
        path = folder / f"{render}-{margin}-{seed}.safetensors"
        if not path.is_file():
            network = Generator(Shape(32, 4, 0.0))
            random = torch.Generator().manual_seed(seed)
            weights = {k: torch.empty(v.shape).normal_(0, 0.1, generator=random) for k, v in network.state_dict().items()}
            save_generator(path, weights, Description(32, 4, render, margin, ("Some:train",)))
        return str(path)

    return write


@pytest.fixture(scope="session")
def make(tiny: Callable[..., str]) -> Callable[..., Ganonymization]:
    def adapter(*, render: int = 128, trained_margin: float = 1.4, seed: int = 1, **params: Any) -> Ganonymization:
        return Ganonymization(checkpoint=tiny(render, trained_margin, seed), device="cpu", **params)

    return adapter


def inside(cut: Cut, shape: tuple[int, ...], slack: float = 0.0) -> np.ndarray:
    """Pixels whose centres lie in the cut's corners, moved outwards by ``slack`` pixels, bool (H, W); by cross products."""
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    result = np.ones(shape[:2], bool)
    for (ax, ay), (bx, by) in zip(cut.corners, np.roll(cut.corners, -1, axis=0), strict=True):
        length = math.hypot(bx - ax, by - ay)
        result &= ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length > -slack
    return result


# --------------------------------------------------------------------------------------------------------- extraction

ANGLES = [0.0, 0.3, 7.0, -15.0, 33.0, -60.0, 90.0, -90.0, 135.0, 180.0]


@pytest.mark.parametrize("degrees", ANGLES)
@pytest.mark.parametrize("side", [32, 512])
def test_the_eyes_lie_level_in_the_crop(template: np.ndarray, degrees: float, side: int) -> None:
    face = face_at(template, (211.3, 180.7), 130, degrees)
    cut = cut_face(face, side, 1.4)
    left, right = cut.to_crop(named_points(face, ("eye_l", "eye_r"))) * side
    assert abs(left[1] - right[1]) < 0.01
    assert right[0] - left[0] > side / 8
    # not mirrored, and stretched by no more than the whole pixels of the content make it
    a = cut.matrix[:, :2]
    assert np.linalg.det(a) > 0
    big, small = np.linalg.svd(a)[1]
    assert big / small < 1 + 1.5 / min(cut.content[2:])
    # the box is the tight one of the turned landmarks, about its centre, times the margin
    level = (
        template
        @ rotation(-math.degrees(math.atan2(*(template[[362, 263]].mean(axis=0) - template[[33, 133]].mean(axis=0))[::-1]))).T
    )
    extent = (level[:468].max(axis=0) - level[:468].min(axis=0)) * 130 * 1.4
    assert cut.size == pytest.approx(tuple(extent), rel=1e-4)
    at = cut.to_crop(face.landmarks[:468])  # type: ignore[index]
    middle = (at.min(axis=0) + at.max(axis=0)) / 2
    left_, top, width, height = cut.content
    assert middle == pytest.approx([(left_ + width / 2) / side, (top + height / 2) / side], abs=1e-4)
    for got, whole in zip(at.max(axis=0) - at.min(axis=0), (width, height), strict=True):
        assert got == pytest.approx(whole / side / 1.4, abs=1e-4)


@pytest.mark.parametrize("degrees", [0.0, 25.0, -75.0, 180.0])
def test_the_pixels_come_to_lie_where_the_cut_says(template: np.ndarray, degrees: float) -> None:
    """Two spots at the eyes: their centroids in the crop are level and where ``to_crop`` puts them, to a tenth of a pixel."""
    face = face_at(template, (260.4, 239.8), 200, degrees)
    eyes = named_points(face, ("eye_l", "eye_r"))
    x, y = np.meshgrid(np.arange(520) + 0.5, np.arange(480) + 0.5)
    cut = cut_face(face, 256, 1.3)
    centroids = []
    for eye in eyes:
        spot = 255 * np.exp(-((x - eye[0]) ** 2 + (y - eye[1]) ** 2) / (2 * 4**2))
        crop = extract(np.repeat(np.rint(spot).astype(np.uint8)[:, :, None], 3, axis=2), cut)[:, :, 0].astype(float)
        v, u = np.mgrid[:256, :256] + 0.5
        centroids.append((float((u * crop).sum() / crop.sum()), float((v * crop).sum() / crop.sum())))
    assert abs(centroids[0][1] - centroids[1][1]) < 0.1
    assert np.abs(np.array(centroids) - cut.to_crop(eyes) * 256).max() < 0.1


def test_a_turned_real_face_is_found_upright_in_its_crop(picture: Callable[[int], np.ndarray], finder: FaceFinder) -> None:
    frame = np.full((420, 420, 3), 110, np.uint8)
    placed(frame, picture(1), (210, 210), 2.6, 28)
    face = finder.find(frame)[0]
    eyes = named_points(face, ("eye_l", "eye_r"))
    assert 20 < math.degrees(math.atan2(*(eyes[1] - eyes[0])[::-1])) < 36  # it does lie askew
    points = finder.mesh(extract(frame, cut_face(face, 512, 1.4)))
    assert points is not None
    left, right = points[[33, 133]].mean(axis=0), points[[362, 263]].mean(axis=0)
    assert abs(math.degrees(math.atan2(*(right - left)[::-1]))) < 3


@pytest.mark.parametrize("side", [32, 128, 512])
@pytest.mark.parametrize(
    "size", [(100, 100), (100, 50), (50, 100), (37, 91), (91, 37), (3, 300), (300, 7), (1, 5000), (512, 511), (640, 480)]
)
def test_the_letterbox_is_the_specifications(size: tuple[int, int], side: int) -> None:
    w, h = size
    cut = cut_face(Face(Box(10, 20, 10 + w, 20 + h)), side)
    ratio = min(side / w, side / h)
    width, height = max(int(w * ratio + 1e-9), 1), max(int(h * ratio + 1e-9), 1)  # the ratio's own last digit aside
    assert cut.content == ((side - width) // 2, (side - height) // 2, width, height)
    assert side in (width, height)
    # the box fills the content
    corners = cut.to_crop(np.array([(10.0, 20.0), (10.0 + w, 20.0 + h)])) * side
    left, top = cut.content[:2]
    assert corners == pytest.approx(np.array([(left, top), (left + width, top + height)]), abs=1e-3)
    assert cut.size == (w, h)


def test_the_margin_scales_the_box_about_its_centre() -> None:
    cut = cut_face(Face(Box(100, 100, 200, 150)), 64, 1.5)
    assert tuple(cut.box) == pytest.approx((75, 87.5, 225, 162.5))
    assert cut.corners == pytest.approx(np.array([(75, 87.5), (225, 87.5), (225, 162.5), (75, 162.5)]))


@pytest.mark.parametrize("degrees", ANGLES)
def test_to_frame_is_the_inverse_of_to_crop(template: np.ndarray, degrees: float) -> None:
    face = face_at(template, (300.5, 20.25), 77, degrees)
    cut = cut_face(face, 128, 1.2)
    points = np.random.default_rng(0).uniform(-50, 500, (100, 2))
    assert np.abs(cut.to_frame(cut.to_crop(points)) - points).max() < 1e-3  # float32 between
    unit = cut.unit[:, :2] @ cut.corners.T + cut.unit[:, 2:]
    assert pytest.approx(np.array([(0, 0), (1, 0), (1, 1), (0, 1)]), abs=1e-9) == unit.T


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), np.uint8)


EYES = {0: (1.0, 0.0), 1: (0.0, 1.0), 2: (-1.0, 0.0), 3: (0.0, -1.0)}


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_quarter_turns_at_full_size_are_exact(quarter: int) -> None:
    frame = noise(120, 150)
    eyes = np.array([(0.0, 0.0), EYES[quarter]]) * 20
    cut = cut_face(Face(Box(40, 30, 104, 94)), 64, eyes=eyes)
    assert cut.content == (0, 0, 64, 64)
    assert np.array_equal(extract(frame, cut), np.rot90(frame[30:94, 40:104], quarter))
    back = np.zeros_like(frame)
    paste(back, extract(frame, cut), cut, edge_share(cut, False, 0.0))
    want = np.zeros_like(frame)
    want[30:94, 40:104] = frame[30:94, 40:104]
    assert np.array_equal(back, want)


def test_the_resize_is_lanczos_centred_on_black() -> None:
    frame = noise(200, 200)
    cut = cut_face(Face(Box(50, 60, 150, 120)), 64)
    assert cut.content == (0, 13, 64, 38)
    want = np.zeros((64, 64, 3), np.uint8)
    want[13:51] = np.asarray(PILImage.fromarray(frame[60:120, 50:150]).resize((64, 38), PILImage.Resampling.LANCZOS))
    assert np.array_equal(extract(frame, cut), want)


def test_beyond_the_frame_is_black() -> None:
    frame = noise(100, 100)
    crop = extract(frame, cut_face(Face(Box(-32, -20, 32, 44)), 64))
    assert not crop[:20].any()
    assert not crop[:, :32].any()
    assert np.array_equal(crop[20:, 32:], frame[:44, :32])
    assert not extract(frame, cut_face(Face(Box(300, 300, 364, 364)), 64)).any()


def test_extract_leaves_the_frame_alone() -> None:
    frame = noise(90, 80)
    before = frame.copy()
    frame.flags.writeable = False
    for view in (frame, frame[::-1], frame[:, ::-1], frame[::2]):
        cut = cut_face(Face(Box(5, 5, 37, 37)), 32)
        assert np.array_equal(extract(view, cut), view[5:37, 5:37])
    assert np.array_equal(frame, before)


@pytest.mark.parametrize("degrees", [0.0, 17.0, -40.0, 90.0, 160.0])
def test_a_crop_comes_back_to_where_it_was(picture: Callable[[int], np.ndarray], template: np.ndarray, degrees: float) -> None:
    """At a high side, extract then paste gives the region again: the turn and the letterbox are undone."""
    frame = np.full((300, 340, 3), 100, np.uint8)
    placed(frame, picture(3), (168.2, 150.9), 2.2, degrees)
    face = face_at(template, (170.2, 149.1), 150, degrees)
    cut = cut_face(face, 1024)
    blank = np.zeros_like(frame)
    paste(blank, extract(frame, cut), cut, edge_share(cut, False, 0.0))
    core = inside(cut, frame.shape, -2)
    assert core.sum() > 10_000
    assert np.abs(blank[core].astype(int) - frame[core]).mean() < 1.0
    assert frame[core].std() > 20  # a shift by a pixel would show:
    assert np.abs(blank[core].astype(int) - np.roll(frame, 1, axis=1)[core]).mean() > 2
    assert np.array_equal(blank[~inside(cut, frame.shape)], np.zeros_like(frame)[~inside(cut, frame.shape)])


@pytest.mark.parametrize("ellipse", [False, True])
@pytest.mark.parametrize("feather", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("degrees", [0.0, 31.0, -118.0])
@pytest.mark.parametrize("height", [9.0, 120.0])
def test_paste_touches_the_cut_alone(
    template: np.ndarray, degrees: float, feather: float, ellipse: bool, height: float
) -> None:
    frame = noise(220, 240)
    frame[frame == 255] = 254
    before = frame.copy()
    cut = cut_face(face_at(template, (120.3, 110.6), height, degrees), 32, 1.1)
    bars = np.zeros((32, 32, 3), np.uint8)  # black bars beside white content: were they to bleed, the rim would be grey
    left, top, width, tall = cut.content
    assert width < 32
    bars[top : top + tall, left : left + width] = 255
    paste(frame, bars, cut, edge_share(cut, ellipse, feather))
    assert np.array_equal(frame[~inside(cut, frame.shape)], before[~inside(cut, frame.shape)])
    u, v = (2 * (a * (np.arange(240) + 0.5)[None, :] + b * (np.arange(220) + 0.5)[:, None] + c) - 1 for a, b, c in cut.unit)
    r = np.hypot(u, v) if ellipse else np.maximum(abs(u), abs(v))
    assert (frame[r < 1 - feather - 1e-9] == 255).all()
    assert np.array_equal(frame[r >= 1], before[r >= 1])
    between = (r > 1 - feather) & (r < 1)
    if feather:
        share = ((1 - r) / feather)[between][:, None]
        assert np.abs(frame[between] - (before[between] * (1 - share) + 255 * share)).max() <= 0.5 + 1e-6
    else:
        assert (frame[r < 1] == 255).all()


@pytest.mark.parametrize("degrees", [0.0, 40.0])
@pytest.mark.parametrize("feather", [0.0, 0.1])
def test_the_oval_covers_the_face_and_stays_in_the_cut(template: np.ndarray, degrees: float, feather: float) -> None:
    face = face_at(template, (150.3, 130.2), 140, degrees)
    cut = cut_face(face, 64, 1.4)
    assert face.landmarks is not None
    frame = noise(260, 300)
    before = frame.copy()
    paste(frame, np.full((64, 64, 3), 255, np.uint8), cut, oval_share(cut, cut.to_crop(face.landmarks), feather))
    assert np.array_equal(frame[~inside(cut, frame.shape)], before[~inside(cut, frame.shape)])
    hull = np.zeros(frame.shape[:2], np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.rint(face.landmarks - 0.5).astype(np.int32)), 1)
    assert (frame[hull > 0] == 255).all()  # every landmark, and all between them, is replaced
    changed = (frame != before).any(axis=2)
    far = cv2.dilate(hull, np.ones((71, 71), np.uint8)) == 0
    assert not (changed & far).any()
    assert 1.05 < changed.sum() / hull.sum() < 1.9


def test_new_pixels_are_shrunk_without_aliasing() -> None:
    """One pixel wide stripes become an even grey on a small face, not a pattern."""
    crop = np.zeros((512, 512, 3), np.uint8)
    crop[:, ::2] = 255
    cut = cut_face(Face(Box(20, 20, 57, 57)), 512)
    frame = np.zeros((80, 80, 3), np.uint8)
    paste(frame, crop, cut, edge_share(cut, False, 0.0))
    assert np.abs(frame[22:55, 22:55].astype(int) - 127).max() < 25


def test_a_crop_of_another_side_fits_its_cut() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    cut = cut_face(Face(Box(10, 10, 90, 50)), 512)
    crop = np.zeros((64, 64, 3), np.uint8)
    crop[16:48, :32], crop[16:48, 32:] = (200, 0, 0), (0, 200, 0)
    paste(frame, crop, cut, edge_share(cut, False, 0.0))
    assert (frame[10:50, 10:46] == (200, 0, 0)).all()
    assert (frame[10:50, 54:90] == (0, 200, 0)).all()


@pytest.mark.parametrize("box", [
    Box(math.nan, 0, 10, 10), Box(0, 0, math.inf, 10), Box(5, 5, 5, 10), Box(5, 5, 10, 5), Box(0, 0, 1e-6, 10),
    Box(10, 10, 0, 0),
])  # fmt: skip
def test_a_box_without_size_cannot_be_cut(box: Box) -> None:
    with pytest.raises(ValueError, match="empty or not finite"):
        cut_face(Face(box), 64)


def test_eyes_in_one_place_leave_the_head_as_it_is() -> None:
    cut = cut_face(Face(Box(10, 10, 42, 42)), 32, eyes=np.zeros((2, 2)))
    assert cut.matrix == pytest.approx(np.array([[1, 0, -10], [0, 1, -10]]))


def test_a_paste_outside_of_the_image_is_refused() -> None:
    frame = np.zeros((50, 50, 3), np.uint8)
    cut = cut_face(Face(Box(60, 60, 90, 90)), 32)
    with pytest.raises(ValueError, match="outside"):
        paste(frame, np.full((32, 32, 3), 255, np.uint8), cut, edge_share(cut, False, 0.0))
    assert not frame.any()


def test_frames_wider_than_opencv_warps() -> None:
    """32767 pixels is where its warping ends."""
    frame = np.zeros((64, 40_000, 3), np.uint8)
    frame[10:42, 39_000:39_032] = noise(32, 32)
    cut = cut_face(Face(Box(39_000, 10, 39_032, 42)), 32)
    crop = extract(frame, cut)
    assert np.array_equal(crop, frame[10:42, 39_000:39_032])
    assert np.array_equal(preprocess.extract_mask(np.ones((64, 40_000), np.float32), cut), np.ones((32, 32)))
    paste(frame, 255 - crop, cut, edge_share(cut, False, 0.0))
    assert np.array_equal(frame[10:42, 39_000:39_032], 255 - crop)


def test_large_faces_are_cut_and_pasted() -> None:
    """Above WORKING pixels the frame is shrunk first: no less in place for it."""
    y, x = np.mgrid[:2600, :2800]
    frame = np.stack([x // 11, y // 11, np.full_like(x, 80)], axis=2).astype(np.uint8)
    cut = cut_face(Face(Box(100, 50, 2700, 2550)), 256)
    crop = extract(frame, cut)
    left, top, width, height = cut.content
    v, u = np.mgrid[:height, :width] + 0.5
    want = np.stack([(u / width * 2600 + 100) / 11, (v / height * 2500 + 50) / 11, np.full_like(u, 80)], axis=2) - 0.5
    assert np.abs(crop[top : top + height, left : left + width] - want)[3:-3, 3:-3].max() < 1.5


# ------------------------------------------------------------------------------------------------------- the adapter


def run(adapter: Ganonymization, *items: Item) -> list[Anonymized]:
    results = adapter.anonymize(list(items))
    contract.well_formed(items, results)
    return results


def test_it_is_registered_and_says_what_it_is(make: Callable[..., Ganonymization], tiny: Callable[..., str]) -> None:
    assert "ganonymization" in anonymizers
    adapter = make()
    assert adapter.trained_on == ("Some:train",)
    assert adapter.weights_sha256() == hashlib.sha256(Path(tiny()).read_bytes()).hexdigest()
    assert adapter.needs_faces
    assert not make(detector="mtcnn").needs_faces
    # whatever changes the output changes the fingerprint
    others = [
        make(seed=2), make(output="crop"), make(landmarks="crop"), make(margin=1.3), make(region="box"), make(feather=0.1),
        make(detector="mtcnn"), make(precision="bf16"), make(size=32),
    ]  # fmt: skip
    assert len({a.fingerprint for a in (adapter, *others)}) == len(others) + 1


@pytest.mark.parametrize("render", [32, 128])
def test_a_crop_is_the_generators_answer_to_the_landmarks(
    render: int, make: Callable[..., Ganonymization], template: np.ndarray, tiny: Callable[..., str]
) -> None:
    """The way from landmarks to drawing is computed here a second time."""
    face = face_at(template, (120.2, 90.9), 90, 20)
    [result] = run(make(render=render, output="crop"), Item("a", noise(200, 240), (face,)))
    assert result.status is Status.OK
    eyes = template[[362, 263]].mean(axis=0) - template[[33, 133]].mean(axis=0)
    level = template @ rotation(-math.degrees(math.atan2(eyes[1], eyes[0]))).T
    low, high = level[:468].min(axis=0), level[:468].max(axis=0)
    extent = (high - low) * 1.4
    whole = np.floor(extent / extent.max() * 32 + 1e-6)
    at = ((level - (low + high) / 2) / extent + 0.5) * whole + np.floor((32 - whole) / 2)
    dots = np.zeros((render, render), np.uint8)
    for x, y in at / 32:
        if 0 <= x <= 1 and 0 <= y <= 1:
            px, py = min(int(x * render), render - 1), min(int(y * render), render - 1)
            for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
                if 0 <= px + dx < render and 0 <= py + dy < render:
                    dots[py + dy, px + dx] = 224
    drawing = np.floor(dots.reshape(32, render // 32, 32, render // 32).mean(axis=(1, 3)) + 0.5).astype(np.uint8)
    want = engine(tiny(render), None, "cpu", "fp32").run(drawing[None])[0]
    assert result.image is not None
    assert want.std() > 20
    # a landmark within a rounding error of a pixel's border may fall on the other side of it
    assert np.abs(result.image.astype(int) - want).mean() < 1
    assert len(result.crops) == 1
    assert np.array_equal(result.crops[0], result.image)


def test_the_pixels_of_the_face_do_not_matter(make: Callable[..., Ganonymization], template: np.ndarray) -> None:
    """The generator sees landmarks and nothing else."""
    face = face_at(template, (100, 80), 90)
    adapter = make(output="crop")
    a, b = (adapter.anonymize([Item("a", noise(160, 200, seed), (face,))])[0] for seed in (1, 2))
    assert np.array_equal(a.image, b.image)
    other = adapter.anonymize([Item("a", noise(160, 200), (face_at(template * (1.1, 1), (100, 80), 90),))])[0]
    assert not np.array_equal(a.image, other.image)


def test_every_face_of_a_frame_is_replaced_and_the_rest_kept(make: Callable[..., Ganonymization], trio_item: Item) -> None:
    assert trio_item.faces is not None
    for region in ("auto", "oval", "ellipse", "box"):
        [result] = run(make(region=region), trio_item)
        assert result.status is Status.OK
        assert result.crops == ()
        assert result.image is not None
        assert result.image.shape == trio_item.image.shape
        cuts = [cut_face(f, 32, 1.4) for f in trio_item.faces]
        assert [f.status for f in result.faces] == [Status.OK] * 3
        for face, cut in zip(result.faces, cuts, strict=True):
            assert face.box is not None
            assert tuple(face.box) == pytest.approx(tuple(cut.box))
        outside = ~np.any([inside(c, trio_item.image.shape) for c in cuts], axis=0)
        assert np.array_equal(result.image[outside], trio_item.image[outside])
        for face in trio_item.faces:
            core = inside(cut_face(face, 32, 0.6), trio_item.image.shape)
            assert (result.image[core] != trio_item.image[core]).any(axis=1).mean() > 0.97


def test_crops_come_one_per_face_the_largest_first_in_line(make: Callable[..., Ganonymization], trio_item: Item) -> None:
    assert trio_item.faces is not None
    faces = (trio_item.faces[2], trio_item.faces[0], trio_item.faces[1])  # the largest in the middle
    [result] = run(make(output="crop"), Item("a", trio_item.image, faces))
    assert len(result.crops) == len(result.faces) == 3
    for crop, face, status in zip(result.crops, faces, result.faces, strict=True):
        assert crop.shape == (32, 32, 3)
        [alone] = make(output="crop").anonymize([Item("b", trio_item.image, (face,))])
        assert np.array_equal(alone.image, crop)
        left, top, width, height = cut_face(face, 32, 1.4).content
        assert status.box == Box(left, top, left + width, top + height)
    assert np.array_equal(result.image, result.crops[1])
    assert not np.array_equal(result.crops[0], result.crops[1])


def test_the_turn_is_undone_in_the_frame(make: Callable[..., Ganonymization], template: np.ndarray) -> None:
    """A face and the same one turned get the same new face, turned."""
    frame = np.full((300, 300, 3), (90, 120, 150), np.uint8)
    adapter = make(region="box", feather=0.0)
    upright, turned = (
        adapter.anonymize([Item("a", frame, (face_at(template, (150, 150), 120, degrees),))])[0].image for degrees in (0, 35)
    )
    assert upright is not None and turned is not None
    m = np.hstack([rotation(-35), np.zeros((2, 1))])
    m[:, 2] = np.array((150, 150)) - m[:, :2] @ (150, 150) + m[:, :2] @ (0.5, 0.5) - 0.5
    back = cv2.warpAffine(turned, m, (300, 300), flags=cv2.INTER_CUBIC)
    core = inside(cut_face(face_at(template, (150, 150), 120), 32, 1.4), frame.shape, -4)
    assert upright[core].std() > 20
    assert np.abs(back[core].astype(int) - upright[core]).mean() < 6
    assert np.abs(turned[core].astype(int) - upright[core]).mean() > 15


@pytest.mark.parametrize("region", ["oval", "box"])
def test_grey_stays_grey_and_colour_is_colour(
    region: str, make: Callable[..., Ganonymization], orl_face: np.ndarray, trio_item: Item, finder: FaceFinder
) -> None:
    item = face_item(orl_face, finder)
    [result] = run(make(region=region), item)
    assert result.image is not None
    assert (result.image == result.image[:, :, :1]).all()
    assert (result.image != item.image).any()
    [result] = run(make(region=region), trio_item)
    assert result.image is not None
    changed = (result.image != trio_item.image).any(axis=2)
    assert (result.image[changed].max(axis=1) - result.image[changed].min(axis=1)).mean() > 10


def test_the_grey_of_a_grey_frame_is_the_luma_of_the_new_face(
    make: Callable[..., Ganonymization], template: np.ndarray
) -> None:
    grey = np.full((200, 200, 3), 77, np.uint8)
    colour = grey.copy()
    colour[0, 0] = (1, 2, 3)  # one coloured pixel, far from the face
    face = face_at(template, (100, 100), 90)
    a, b = (make(region="box", feather=0.0).anonymize([Item("a", f, (face,))])[0].image for f in (grey, colour))
    assert a is not None and b is not None
    core = inside(cut_face(face, 32, 1.4), grey.shape, -2)
    assert np.abs(a[core][:, 0] - b[core] @ np.array([0.299, 0.587, 0.114])).max() < 12  # interpolated before or after
    assert np.abs(a[core][:, 0] - b[core] @ np.array([0.299, 0.587, 0.114])).mean() < 1


def with_box(box: Box) -> Face:
    return Face(box, 0.9)


NAN_POINTS = np.full((478, 2), np.nan, np.float32)
HOSTILE = {
    "NaN box": lambda good: Face(Box(math.nan, 0, 10, 10), 0.9, good.landmarks),
    "infinite box": lambda good: Face(Box(0, 0, math.inf, 10), 0.9, good.landmarks),
    "zero box": lambda good: Face(Box(50, 50, 50, 50)),
    "turned box": lambda good: Face(Box(80, 80, 20, 20)),
    "box outside": lambda good: Face(Box(5000, 5000, 5100, 5100)),
    "landmarks outside": lambda good: Face(Box(5000, 5000, 5100, 5100), 0.9, good.landmarks + np.float32(5000)),
    "box left of the frame": lambda good: Face(Box(-100, 20, -40, 110)),
    "NaN landmarks": lambda good: Face(good.box, 0.9, NAN_POINTS),
    "one NaN landmark": lambda good: Face(good.box, 0.9, np.where(np.arange(956).reshape(478, 2) == 7, np.nan, good.landmarks)),
    "infinite landmarks": lambda good: Face(good.box, 0.9, np.full((478, 2), np.inf, np.float32)),
    "landmarks in one point": lambda good: Face(good.box, 0.9, np.full((478, 2), 50, np.float32)),
    "ten landmarks": lambda good: Face(good.box, 0.9, good.landmarks[:10]),
    "no landmarks at all": lambda good: Face(good.box, 0.9, good.landmarks[:0]),
    "landmarks in space": lambda good: Face(good.box, 0.9, np.zeros((478, 3), np.float32)),
}


@pytest.mark.parametrize("name", list(HOSTILE))
@pytest.mark.parametrize("output", ["frame", "crop"])
def test_one_bad_face_withholds_the_frame(
    name: str, output: str, make: Callable[..., Ganonymization], template: np.ndarray
) -> None:
    good = face_at(template, (100, 80), 70)
    bad = HOSTILE[name](good)
    frame = noise(160, 220)
    for faces in ((bad,), (good, bad), (bad, good)):
        [result] = run(make(output=output), Item("a", frame, faces))
        assert result.status is Status.FAILED
        assert result.image is None
        assert result.crops == ()
        assert len(result.reason) > 15
    # and the items beside it have their own
    before, result, after = run(
        make(output=output), *(Item(n, frame, f) for n, f in (("x", (good,)), ("y", (good, bad)), ("z", (good,))))
    )
    assert (before.status, result.status, after.status) == (Status.OK, Status.FAILED, Status.OK)
    [alone] = run(make(output=output), Item("x", frame, (good,)))
    assert np.array_equal(before.image, alone.image)
    assert np.array_equal(after.image, alone.image)


def test_the_reason_names_the_face(make: Callable[..., Ganonymization], template: np.ndarray) -> None:
    good = face_at(template, (100, 80), 70)
    [result] = run(make(), Item("a", noise(160, 220), (good, HOSTILE["NaN landmarks"](good), good)))
    assert "face 2 of 3" in result.reason
    assert "finite FaceMesh points" in result.reason
    assert [f.status for f in result.faces] == [Status.OK, Status.FAILED, Status.OK]


@pytest.mark.parametrize("landmarks", ["found", "crop"])
def test_a_face_without_landmarks_is_said_to_have_none(landmarks: str, make: Callable[..., Ganonymization]) -> None:
    """A box on noise: FaceMesh finds nothing, and the average face that a black map would give is not made."""
    [result] = run(make(landmarks=landmarks), Item("a", noise(200, 200), (Face(Box(50, 50, 150, 150)),)))
    assert result.status is Status.NO_LANDMARKS
    assert "landmarks" in result.reason
    assert [f.status for f in result.faces] == [Status.NO_LANDMARKS]


def test_a_box_alone_is_enough_where_the_crop_shows_a_face(make: Callable[..., Ganonymization], trio_item: Item) -> None:
    assert trio_item.faces is not None
    [result] = run(make(), Item("a", trio_item.image, (Face(trio_item.faces[0].box),)))
    assert result.status is Status.OK


@pytest.mark.parametrize(("image", "word"), [
    (np.zeros((50, 50, 3), np.float32), "float32"), (np.zeros((50, 50), np.uint8), "(50, 50)"), (np.zeros((50, 50, 4), np.uint8), "4"),
    (np.zeros((0, 50, 3), np.uint8), "(0, 50, 3)"), (None, "NoneType"), ([1, 2], "list"), (np.zeros((5, 5, 3), np.uint16), "uint16"),
])  # fmt: skip
def test_what_is_no_image_fails_with_its_reason(
    image: Any, word: str, make: Callable[..., Ganonymization], template: np.ndarray
) -> None:
    item = Item("a", image, (face_at(template, (25, 25), 20),))
    for params in ({}, {"output": "crop"}):
        [result] = make(**params).anonymize([item])
        assert result.status is Status.FAILED
        assert result.image is None
        assert word in result.reason


def test_faces_that_were_not_looked_for_and_faces_that_are_not_there(make: Callable[..., Ganonymization]) -> None:
    unknown, none = run(make(), Item("a", noise(50, 50), None), Item("b", noise(50, 50), ()))
    assert unknown.status is Status.FAILED
    assert "FaceFinder" in unknown.reason
    assert none.status is Status.NO_FACE
    assert make().anonymize([]) == []


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (1, 40), (40, 1)])
def test_tiny_frames(
    size: tuple[int, int], make: Callable[..., Ganonymization], template: np.ndarray, finder: FaceFinder
) -> None:
    frame = noise(*size)
    h, w = size
    assert run(make(), Item("a", frame, tuple(finder.find(frame))))[0].status is Status.NO_FACE
    face = face_at(template, (w / 2, h / 2), max(size))
    for region in ("box", "ellipse", "oval"):
        [result] = run(make(region=region), Item("a", frame, (face,)))
        assert result.status is Status.OK
        assert result.image is not None
        assert result.image.shape == frame.shape
        assert (result.image != frame).any()
    [result] = run(make(), Item("a", frame, (Face(Box(0, 0, w, h)),)))
    assert result.status is Status.NO_LANDMARKS
    assert run(make(output="crop"), Item("a", frame, (face,)))[0].image.shape == (32, 32, 3)


def test_a_large_frame(make: Callable[..., Ganonymization], template: np.ndarray) -> None:
    frame = np.full((2000, 3000, 3), (60, 90, 120), np.uint8)
    faces = (
        face_at(template, (700, 800), 700, 10),
        face_at(template, (2500.4, 400.2), 60, -30),
        face_at(template, (2950, 1950), 300),
    )
    [result] = run(make(), Item("a", frame, faces))
    assert result.status is Status.OK
    assert result.image is not None
    cuts = [cut_face(f, 32, 1.4) for f in faces]
    outside = ~np.any([inside(c, frame.shape) for c in cuts], axis=0)
    assert np.array_equal(result.image[outside], frame[outside])
    for face in faces:  # the third reaches beyond the frame's corner
        core = inside(cut_face(face, 32, 0.5), frame.shape)
        assert core.sum() > 300
        assert (result.image[core] != frame[core]).any(axis=1).mean() > 0.97


@pytest.mark.slow
def test_the_contract(
    make: Callable[..., Ganonymization], trio_item: Item, orl_face: np.ndarray, finder: FaceFinder, template: np.ndarray
) -> None:
    """Batch, order and process do not matter; the input is left alone; the seed means nothing."""
    items = [
        trio_item, face_item(orl_face, finder, "orl"), Item("none", noise(60, 60), ()), Item("bad", noise(60, 60), (Face(Box(0, 0, 0, 0)),)),
        *(Item(f"n{i}", noise(90, 90, i), (face_at(template, (45, 45), 50, 9.0 * i),)) for i in range(4)),
    ]  # fmt: skip
    for params in ({}, {"output": "crop"}, {"landmarks": "crop"}):
        adapter = make(**params)
        contract.repeatable(adapter, items)
        contract.input_untouched(adapter, items)
        contract.seeds_matter_as_declared(adapter, trio_item)
        statuses = [r.status for r in run(adapter, *items)]
        assert statuses[:4] == [Status.OK, Status.OK, Status.NO_FACE, Status.FAILED]


def test_read_only_and_strided_frames(make: Callable[..., Ganonymization], trio_item: Item, finder: FaceFinder) -> None:
    [want] = run(make(), trio_item)
    locked = trio_item.image.copy()
    locked.flags.writeable = False
    wide = np.zeros((400, 1280, 3), np.uint8)
    wide[:, ::2] = trio_item.image
    for image in (locked, wide[:, ::2], np.asfortranarray(trio_item.image)):
        before = image.copy()
        for landmarks in ("found", "crop"):
            [result] = run(make(landmarks=landmarks), Item("trio", image, trio_item.faces))
            assert result.image is not None
            assert result.image.flags.writeable
            assert np.array_equal(image, before)
            if landmarks == "found":
                assert contract.same(result, want)


def test_a_loaded_adapter_travels_without_its_weights(make: Callable[..., Ganonymization], trio_item: Item) -> None:
    adapter = make(landmarks="crop")
    adapter.load()
    [want] = run(adapter, trio_item)
    packed = pickle.dumps(adapter)
    assert len(packed) < 2000
    assert contract.same(pickle.loads(packed).anonymize([trio_item])[0], want)


def test_bf16_paints_nearly_the_same(make: Callable[..., Ganonymization], template: np.ndarray) -> None:
    item = Item("a", noise(160, 200), (face_at(template, (100, 80), 90),))
    [full], [half] = (run(make(output="crop", precision=p), item) for p in ("fp32", "bf16"))
    assert full.image is not None and half.image is not None
    assert 0 < np.abs(full.image.astype(int) - half.image).mean() < 8


def test_the_margin_is_the_checkpoints_unless_given(make: Callable[..., Ganonymization], template: np.ndarray) -> None:
    item = Item("a", noise(400, 400), (face_at(template, (200, 200), 150),))
    for params, margin in (({}, 1.4), ({"margin": 1.0}, 1.0), ({"margin": 2.0}, 2.0), ({"trained_margin": 1.1}, 1.1)):
        [result] = run(make(**params), item)
        assert result.faces[0].box is not None
        assert tuple(result.faces[0].box) == pytest.approx(tuple(cut_face(item.faces[0], 32, margin).box))  # type: ignore[index]


def test_auto_pastes_the_oval_with_room_and_the_box_without(make: Callable[..., Ganonymization], template: np.ndarray) -> None:
    item = Item("a", noise(300, 300), (face_at(template, (150, 150), 120, 8),))
    for margin, region in ((1.4, "oval"), (1.2, "oval"), (1.1, "box"), (1.0, "box")):
        auto, named = (run(make(margin=margin, region=r), item)[0] for r in ("auto", region))
        assert contract.same(auto, named)
    [oval], [ellipse], [box] = (run(make(region=r), item) for r in ("oval", "ellipse", "box"))
    changed = [(r.image != item.image).any(axis=2).sum() for r in (oval, ellipse, box)]
    assert changed[2] > changed[1]
    assert changed[2] > changed[0]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The points that the adapter has drawn from now on."""
    seen: list[np.ndarray] = []

    def spy(points: np.ndarray, *rest: Any) -> np.ndarray:
        seen.append(np.array(points))
        return original(points, *rest)

    original = pipeline.landmark_images
    monkeypatch.setattr(pipeline, "landmark_images", spy)
    return seen


def test_landmarks_of_the_crop_lie_close_to_those_of_the_frame(
    make: Callable[..., Ganonymization], trio_item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = recorded(monkeypatch)
    run(make(landmarks="found"), trio_item)
    run(make(landmarks="crop"), trio_item)
    found, crop = seen
    assert found.shape == crop.shape == (3, 478, 2)
    distance = np.linalg.norm(found - crop, axis=2).mean(axis=1)
    assert (distance > 1e-4).all()  # FaceMesh has been asked again
    assert (distance < 0.02).all()
    assert np.linalg.norm(found[0] - crop[1], axis=1).mean() > distance.max()


# --------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("params", [
    {"output": "video"}, {"output": None}, {"detector": "haar"}, {"landmarks": "dlib"}, {"region": "frame"}, {"precision": "fp8"},
    {"feather": -0.1}, {"feather": 0.6}, {"feather": math.nan}, {"feather": "0.1"}, {"margin": 0.4}, {"margin": 5}, {"margin": math.nan},
    {"margin": "wide"}, {"size": 100}, {"size": 16}, {"size": -512}, {"size": 2**20}, {"size": 512.0}, {"size": "512"},
], ids=str)  # fmt: skip
def test_wrong_parameters_are_refused(params: dict[str, Any], make: Callable[..., Ganonymization]) -> None:
    adapter = make(**params)
    for call in (adapter.validate, adapter.load, lambda: adapter.anonymize([])):
        with pytest.raises(InputError) as caught:
            call()
        [key] = params
        assert key in caught.value.message
        assert "ganonymization" in caught.value.message
        assert caught.value.remedy


def test_checkpoints_that_are_missing_or_wrong(tmp_path: Path, tiny: Callable[..., str]) -> None:
    with pytest.raises(MissingError, match="nowhere"):
        Ganonymization(checkpoint=str(tmp_path / "nowhere.ckpt")).validate()
    with pytest.raises(MissingError):
        Ganonymization(checkpoint=str(tmp_path)).validate()  # a folder
    with pytest.raises(InputError, match="no path"):
        Ganonymization(checkpoint=5).validate()  # type: ignore[arg-type]
    (tmp_path / "broken.ckpt").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"broken\.ckpt"):
        Ganonymization(checkpoint=str(tmp_path / "broken.ckpt"), device="cpu").load()
    with pytest.raises(InputError, match="32 pixels"):
        Ganonymization(checkpoint=tiny(), size=64, device="cpu").load()
    with pytest.raises(InputError, match="unknown device"):
        Ganonymization(checkpoint=tiny(), device="quantum").load()
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="cuda"):
            Ganonymization(checkpoint=tiny(), device="cuda").load()


# ---------------------------------------------------------------------------------------------------------- detectors


def test_mtcnn_on_a_real_frame(make: Callable[..., Ganonymization], trio_item: Item, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("facenet_pytorch", reason="facenet-pytorch is not installed")
    assert trio_item.faces is not None
    adapter = make(detector="mtcnn")
    seen = recorded(monkeypatch)
    # it looks for itself: what the item says is not asked
    [result] = run(adapter, Item("a", trio_item.image, None))
    assert result.status is Status.OK
    assert len(result.faces) == 3
    for face, known in zip(result.faces, trio_item.faces, strict=True):  # largest first, both
        assert face.box is not None
        assert face.box.iou(known.box.scaled(1.4)) > 0.5
    # the points are those of the face, level: the eyes of each drawing are on one line
    for points in seen[0]:
        left, right = points[[33, 133]].mean(axis=0), points[[362, 263]].mean(axis=0)
        assert right[0] - left[0] > 0.1
        assert abs(math.degrees(math.atan2(*(right - left)[::-1]))) < 6
    _, detector = adapter._ready()
    assert isinstance(detector, detectors.Mtcnn)
    found = detector.find(trio_item.image)
    for one, known in zip(found, trio_item.faces, strict=True):
        assert one.eyes is not None
        eyes = named_points(known, ("eye_l", "eye_r"))
        assert np.abs(one.eyes - eyes).max() < 0.2 * np.linalg.norm(eyes[1] - eyes[0])
        assert detectors.LEAST_SCORE <= one.face.score <= 1
    empty, small = run(adapter, Item("b", np.full((200, 200, 3), 99, np.uint8)), Item("c", noise(5, 400)))
    assert empty.status is small.status is Status.NO_FACE


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(InputError, match="haar"):
        detectors.detector("haar", "cpu")


def test_mtcnn_that_is_not_installed_is_missing_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(MissingError, match="facenet") as caught:
        detectors.detector("mtcnn", "cpu")
    assert "pip install" in caught.value.remedy


@pytest.fixture
def fake_deepface(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.SimpleNamespace:
    """A deepface that answers what ``answers`` says, with its weights in place."""
    state = types.SimpleNamespace(answers=[], calls=[], built=[], weights=tmp_path / ".deepface" / "weights" / "retinaface.pth")

    def extract_faces(image: np.ndarray, **options: Any) -> list[dict[str, Any]]:
        state.calls.append((image, options))
        return state.answers

    package, modules, modeling = (types.ModuleType(n) for n in ("deepface", "deepface.modules", "deepface.modules.modeling"))
    package.DeepFace = types.SimpleNamespace(extract_faces=extract_faces)  # type: ignore[attr-defined]
    package.modules, modules.modeling = modules, modeling  # type: ignore[attr-defined]
    modeling.build_model = lambda **what: state.built.append(what)  # type: ignore[attr-defined]
    for module in (package, modules, modeling):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.setenv("DEEPFACE_BACKEND_ENGINE", "pytorch")
    state.weights.parent.mkdir(parents=True)
    state.weights.write_bytes(b"weights")
    return state


def answer(box: Sequence[int], confidence: float, eyes: Any = None) -> dict[str, Any]:
    """One face as deepface gives it: its left eye is the person's."""
    left, right = eyes or (None, None)
    return {
        "confidence": confidence,
        "facial_area": {**dict(zip("xywh", box, strict=True)), "left_eye": left, "right_eye": right},
    }


def test_retinafaces_boxes_and_eyes_are_converted(fake_deepface: types.SimpleNamespace) -> None:
    fake_deepface.answers = [
        answer((10, 20, 30, 40), 0.95, ((33, 31), (17, 35))),
        answer((100, 50, 60, 80), 1.2),
        answer((0, 0, 9, 9), 0.89, ((1, 1), (2, 2))),
    ]
    image = noise(200, 300)
    faces = detectors.detector("retinaface", "cpu").find(image)
    assert [f.face.box for f in faces] == [Box(100, 50, 160, 130), Box(10, 20, 40, 60)]  # largest first, the doubtful one gone
    assert [f.face.score for f in faces] == [1.0, 0.95]
    assert faces[0].eyes is None
    assert np.array_equal(faces[1].eyes, [(17, 35), (33, 31)])  # left of the image first
    assert fake_deepface.built == [{"task": "face_detector", "model_name": "retinaface"}]
    [(given, options)] = fake_deepface.calls
    assert np.array_equal(given, image[:, :, ::-1])  # BGR
    assert options["detector_backend"] == "retinaface"
    assert options["align"] is False
    assert options["enforce_detection"] is False


def test_a_frame_without_a_face_is_none_with_retinaface(
    fake_deepface: types.SimpleNamespace, make: Callable[..., Ganonymization], trio_item: Item
) -> None:
    fake_deepface.answers = [answer((0, 0, 300, 200), 0.0)]  # its answer there: the whole frame
    [result] = run(make(detector="retinaface"), Item("a", noise(200, 300)))
    assert result.status is Status.NO_FACE
    # and a real face through the whole adapter: turned by its eyes
    assert trio_item.faces is not None
    face = trio_item.faces[0]
    left, right = (tuple(int(v) for v in p) for p in named_points(face, ("eye_l", "eye_r")))
    x0, y0, x1, y1 = (int(v) for v in face.box)
    fake_deepface.answers = [answer((x0, y0, x1 - x0, y1 - y0), 0.99, (right, left))]
    [result] = run(make(detector="retinaface"), Item("a", trio_item.image))
    assert result.status is Status.OK
    assert result.faces[0].box is not None
    assert result.faces[0].box.iou(face.box.scaled(1.4)) > 0.6


@pytest.mark.parametrize("what", ["weights", "engine", "package", "broken"])
def test_retinaface_that_is_not_ready_is_missing_and_nothing_is_downloaded(
    what: str, fake_deepface: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Ganonymization]
) -> None:
    if what == "weights":
        fake_deepface.weights.unlink()
    elif what == "engine":
        monkeypatch.setenv("DEEPFACE_BACKEND_ENGINE", "onnx")  # whose file is another
    elif what == "package":
        for name in ("deepface", "deepface.modules", "deepface.modules.modeling"):
            monkeypatch.setitem(sys.modules, name, None)
    else:

        def fails(**_: Any) -> None:
            raise ValueError("no such engine\nand much more")

        monkeypatch.setattr(sys.modules["deepface.modules.modeling"], "build_model", fails)
    for call in (lambda: detectors.detector("retinaface", "cpu"), make(detector="retinaface").load):
        with pytest.raises(MissingError, match="RetinaFace") as caught:
            call()
        assert "mtcnn" in caught.value.remedy
        assert "pip install" in caught.value.remedy
        assert "much more" not in caught.value.message
        if what in ("weights", "engine"):
            assert str(fake_deepface.weights.parent) in caught.value.message
            assert ("retinaface.pth" if what == "weights" else "retinaface.onnx") in caught.value.remedy
    assert fake_deepface.built == []  # building it is what would download


# ------------------------------------------------------------------------------------------------------ training pairs


def samples_of(folder: Path, subjects: Sequence[int] = (1, 2, 3, 4), images: Sequence[int] = (1, 2, 3)) -> list[Sample]:
    made = []
    for subject in subjects:
        for image in images:
            path = folder / f"s{subject}" / f"{image}.pgm"
            made.append(Sample(f"s{subject}/{image}.pgm", path, f"s{subject}", hashlib.sha256(path.read_bytes()).hexdigest()))
    return made


def prepare(samples: Sequence[Sample], cache: Path, data: str = "data", **settings: Any) -> preprocess.Pairs:
    preparation = preprocess.Preparation(**{"side": 64, "margin": 1.4, "segmentation": "none", **settings})
    return preprocess.prepare(samples, data, preparation, cache, make_pool=InProcess, quiet=True)


@pytest.fixture
def pairs_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the samples that are worked on from now on; shards are of five."""
    monkeypatch.setattr(preprocess, "SHARD", 5)
    made: list[str] = []
    original = preprocess._Maker.pair

    def pair(self: Any, sample: Sample) -> Any:
        made.append(sample.id)
        return original(self, sample)

    monkeypatch.setattr(preprocess._Maker, "pair", pair)
    return made


def test_training_pairs_are_what_the_adapter_will_see(orl_folder: Path, tmp_path: Path, finder: FaceFinder) -> None:
    samples = samples_of(orl_folder, (1, 2))
    pairs = prepare(samples, tmp_path)
    assert pairs.ids == [s.id for s in samples]
    assert pairs.subjects == ["s1"] * 3 + ["s2"] * 3
    assert pairs.left_out == {}
    assert len(pairs) == 6
    assert pairs.points.dtype == np.float32
    assert pairs.points.shape == (6, 478, 2)
    for i, sample in enumerate(samples):
        image = cv2.cvtColor(cv2.imread(str(sample.path)), cv2.COLOR_BGR2RGB)
        face = finder.find(image, thorough=False)[0]
        cut = cut_face(face, 64, 1.4)
        crop, want = pairs.image(i), extract(image, cut)
        differs = (crop != want).any(axis=2)
        assert not crop[differs].any()  # at the frame's own border, where a pixel is less than half in it, and nowhere else
        edge = cut.to_frame((np.argwhere(differs)[:, ::-1] + 0.5) / 64)
        assert (np.minimum(edge, image.shape[1::-1] - edge).min(axis=1) < 1.5 / np.sqrt(np.linalg.det(cut.matrix[:, :2]))).all()
        assert np.array_equal(pairs.points[i], cut.to_crop(face.landmarks))  # type: ignore[arg-type]


def test_pairs_are_kept_and_a_missing_shard_is_made_again(
    orl_folder: Path, tmp_path: Path, pairs_made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(orl_folder)
    ids = [s.id for s in samples]
    first = prepare(samples, tmp_path)
    assert pairs_made == ids
    [folder] = tmp_path.iterdir()
    shards = sorted(folder.iterdir())
    assert [s.name for s in shards] == ["00000.safetensors", "00001.safetensors", "00002.safetensors"]
    contents = [s.read_bytes() for s in shards]

    def no_pool(*_: Any) -> Any:
        raise AssertionError("everything is there: nothing is to be made")

    preparation = preprocess.Preparation(64, 1.4, "none")
    again = preprocess.prepare(samples, "data", preparation, tmp_path, make_pool=no_pool, quiet=True)
    assert pairs_made == ids

    def same(a: preprocess.Pairs, b: preprocess.Pairs) -> bool:
        return (a.crops, a.ids, a.subjects, a.left_out) == (b.crops, b.ids, b.subjects, b.left_out) and np.array_equal(
            a.points, b.points
        )

    assert same(first, again)
    shards[1].unlink()
    pairs_made.clear()
    assert same(first, prepare(samples, tmp_path))
    assert pairs_made == ids[5:10]
    assert [s.read_bytes()[-2000:] for s in shards] == [c[-2000:] for c in contents]
    # other settings and other data have their own folder
    for count, change in enumerate(({"side": 32}, {"margin": 1.2}, {"landmarks_from": "segmented"}, {"data": "other"}), 2):
        pairs_made.clear()
        prepare(samples[:2], tmp_path, **change)
        assert pairs_made == ids[:2]
        assert len(list(tmp_path.iterdir())) == count


def test_what_gives_no_pair_is_counted_with_its_reason(orl_folder: Path, tmp_path: Path, pairs_made: list[str]) -> None:
    good = samples_of(orl_folder, (1,), (1, 2))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((100, 100, 3), 128, np.uint8))
    broken, grey, gone = (
        Sample(
            name,
            tmp_path / name,
            "x",
            hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() if name != "gone.png" else "0" * 64,
        )
        for name in ("broken.png", "grey.png", "gone.png")
    )
    changed = Sample("changed", good[0].path, "s1", "0" * 64)
    elsewhere = Sample("elsewhere", good[0].path, "s1", good[0].sha256, box=Box(0, 0, 3, 3))
    everything = [broken, good[0], grey, gone, changed, good[1], elsewhere]
    pairs = prepare(everything, tmp_path / "cache")
    assert pairs.ids == [s.id for s in good]
    assert list(pairs.left_out) == ["broken.png", "grey.png", "gone.png", "changed", "elsewhere"]
    assert pairs.left_out["grey.png"] == pairs.left_out["elsewhere"] == "no face found"
    assert "broken.png" in pairs.left_out["broken.png"]
    assert "gone.png" in pairs.left_out["gone.png"]
    # and it is remembered, not tried again
    pairs_made.clear()
    assert prepare(everything, tmp_path / "cache").left_out == pairs.left_out
    assert pairs_made == []
    for useless in ([broken, grey], []):
        with pytest.raises(InputError, match="no image gives a training pair") as caught:
            prepare(useless, tmp_path / "useless", data=str(len(useless)))
        assert caught.value.remedy


def test_the_background_becomes_black_and_the_face_stays(orl_folder: Path, tmp_path: Path) -> None:
    samples = samples_of(orl_folder, (1, 2, 3), (1, 2))
    plain, selfie = (prepare(samples, tmp_path, segmentation=s, margin=1.8) for s in ("none", "selfie"))
    assert len(plain) == 6
    assert len(selfie) + len(selfie.left_out) == 6
    assert len(selfie) >= 4
    blackened = []
    for i, id in enumerate(selfie.ids):
        whole, cut_out = plain.image(plain.ids.index(id)), selfie.image(i)
        kept = (cut_out == whole).all(axis=2)
        assert not cut_out[~kept].any()  # each pixel is as it was, or black
        blackened.append((~kept).mean())
        at = (selfie.points[i][:468] * 64).astype(int)
        assert kept[at[:, 1], at[:, 0]].mean() >= preprocess.LEAST_FACE
        assert np.array_equal(selfie.points[i], plain.points[plain.ids.index(id)])
    assert max(blackened) > 0.05


def test_landmarks_are_plain_or_of_the_segmented_crop(orl_folder: Path, tmp_path: Path) -> None:
    samples = samples_of(orl_folder, (1, 5), (1, 2))
    plain, segmented = (
        prepare(samples, tmp_path, landmarks_from=f, segmentation="selfie", side=256) for f in ("plain", "segmented")
    )
    both = [i for i in plain.ids if i in segmented.ids]
    assert len(both) >= 3
    for id in both:
        a, b = plain.points[plain.ids.index(id)], segmented.points[segmented.ids.index(id)]
        assert plain.crops[plain.ids.index(id)] == segmented.crops[segmented.ids.index(id)]
        assert 1e-4 < np.linalg.norm(a - b, axis=1).mean() < 0.03


def test_a_segmenter_of_ones_own_and_one_that_loses_the_face(
    orl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("my_segmenters")

    def half() -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: (np.mgrid[: image.shape[0], : image.shape[1]][1] < image.shape[1] / 2).astype(np.float32)

    def rows() -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: (np.mgrid[: image.shape[0], : image.shape[1]][0] < 108).astype(np.float32)

    module.half, module.rows = half, rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_segmenters", module)
    samples = samples_of(orl_folder, (1,), (1, 2))
    with pytest.raises(InputError, match="segmentation lost the face"):
        prepare(samples, tmp_path, segmentation="my_segmenters:half")
    pairs = prepare(samples, tmp_path, segmentation="my_segmenters:rows", margin=1.6)
    for i in range(len(pairs)):
        crop = pairs.image(i)
        assert crop[:40].any()
        assert not crop[62:].any()
    for name in ("unknown", "my_segmenters:nothing", "no_such_module:f"):
        with pytest.raises(InputError, match="segmenter"):
            prepare(samples, tmp_path, segmentation=name)
