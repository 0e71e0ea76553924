"""The built-in methods do what their parameters say, pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from deidbench import kinds
from deidbench.anonymizers.blur import blurred, gaussian_weights
from deidbench.anonymizers.eye_bar import bar
from deidbench.anonymizers.regions import FACE_OVAL, Window, area_of, box_mask, ellipse_mask, oval, polygon_mask, window_of
from deidbench.errors import InputError
from deidbench.faces import FaceFinder
from deidbench.metrics.quality import Quality
from deidbench.types import Anonymized, Box, Face, Item, Status

REGION_METHODS = ("mask", "blur", "pixelate", "noise")


def _one(name: str, image: np.ndarray, faces: tuple[Face, ...], seed: int = 7, **params: Any) -> Anonymized:
    anonymizer = kinds.anonymizers.create(name, **params)
    anonymizer.validate()
    anonymizer.load()
    return anonymizer.anonymize([Item("x", image, faces, seed)])[0]


@pytest.fixture(scope="module")
def face(orl_face: np.ndarray, finder: FaceFinder) -> Face:
    [found] = finder.find(orl_face)
    return found


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Colour, not square, with structure everywhere."""
    return np.random.default_rng(5).integers(0, 256, (90, 140, 3), dtype=np.uint8)


# -- regions -------------------------------------------------------------------------------------------------------


def test_the_oval_is_mediapipes() -> None:
    from mediapipe.python.solutions.face_mesh_connections import FACEMESH_FACE_OVAL

    edges = {frozenset(e) for e in FACEMESH_FACE_OVAL}
    closed = {frozenset((FACE_OVAL[i], FACE_OVAL[(i + 1) % len(FACE_OVAL)])) for i in range(len(FACE_OVAL))}
    assert closed == edges


def test_masks_cover_every_pixel_that_the_region_touches() -> None:
    box = Box(10.3, 5.8, 41.2, 30.1)
    window = window_of(box, 60, 50)
    assert window is not None
    mask, round_mask = box_mask(box, window), ellipse_mask(box, window)
    cx, cy = box.centre
    for y in range(window.y0, window.y1):
        for x in range(window.x0, window.x1):
            touches = x + 1 > box.x0 and x < box.x1 and y + 1 > box.y0 and y < box.y1
            assert mask[y - window.y0, x - window.x0] == touches
            grid = [(x + a / 20, y + b / 20) for a in range(21) for b in range(21)]
            inside = any(((px - cx) / (box.width / 2)) ** 2 + ((py - cy) / (box.height / 2)) ** 2 < 1 for px, py in grid)
            if inside:  # the grid can miss what the exact mask finds, never the other way round
                assert round_mask[y - window.y0, x - window.x0]
    assert round_mask.sum() == pytest.approx(math.pi / 4 * box.area, rel=0.12)


def test_polygon_masks_agree_with_matplotlib() -> None:
    from matplotlib.path import Path as Polygon

    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    polygon = np.stack([40 + 25 * np.cos(angles), 30 + 17 * np.sin(angles)], axis=1)
    window = window_of(Box(10, 10, 70, 50), 80, 60)
    assert window is not None
    mask = polygon_mask(polygon, window)
    y, x = np.mgrid[window.y0 : window.y1, window.x0 : window.x1]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)
    inside = Polygon(polygon).contains_points(centres).reshape(mask.shape)
    assert mask[inside].all()
    # ... and no more than the rim besides
    assert (mask & ~inside).sum() <= 2 * (np.diff(inside.astype(int), axis=0) != 0).sum() + 2 * inside.shape[0]


def test_oval_scales_about_its_centre(face: Face) -> None:
    assert face.landmarks is not None
    small, large = oval(face.landmarks, 1.0), oval(face.landmarks, 1.5)
    np.testing.assert_allclose(large - large.mean(0), 1.5 * (small - small.mean(0)), atol=1e-6)


@pytest.mark.parametrize("region", ["box", "ellipse", "oval"])
@pytest.mark.parametrize("name", REGION_METHODS)
def test_outside_the_region_every_bit_stays(name: str, region: str, orl_face: np.ndarray, face: Face) -> None:
    result = _one(name, orl_face, (face,), region=region, margin=1.0)
    area = area_of(face, region, 1.0, 92, 112)
    outside = np.ones((112, 92), bool)
    outside[area.window.slices] = ~np.asarray(area.mask, bool)
    assert result.image is not None
    assert (result.image[outside] == orl_face[outside]).all()
    assert (result.image[~outside] != orl_face[~outside]).mean() > 0.5


def test_oval_needs_landmarks(orl_face: np.ndarray, face: Face) -> None:
    result = _one("mask", orl_face, (Face(face.box),), region="oval")
    assert result.status is Status.NO_LANDMARKS
    assert result.image is None


# -- methods -------------------------------------------------------------------------------------------------------


def test_controls(picture: np.ndarray) -> None:
    assert (_one("original", picture, ()).image == picture).all()
    black = _one("blackout", picture, ()).image
    assert black is not None
    assert black.shape == picture.shape
    assert black.max() == 0


def test_mask_fills_with_its_colour(picture: np.ndarray) -> None:
    result = _one("mask", picture, (Face(Box(20, 10, 60, 70)),), region="box", margin=1.0, colour=(255, 0, 128))
    assert result.image is not None
    assert (result.image[10:70, 20:60] == (255, 0, 128)).all()


@pytest.mark.parametrize(
    "box", [Box(30, 20, 90, 70), Box(-20, -10, 40, 45), Box(100, 60, 170, 120), Box(-10, -10, 150, 100), Box(70, 40, 72, 42)]
)
def test_blur_is_the_gaussian_of_the_whole_picture(picture: np.ndarray, box: Box) -> None:
    """Worked on around the face only, it equals the filter of the whole frame to the bit, at its borders too."""
    result = _one("blur", picture, (Face(box),), region="box", margin=1.0, sigma=0.1)
    sigma = 0.1 * box.size
    reference = gaussian_filter(picture.astype(np.float64), (sigma, sigma, 0), mode="reflect")
    inside = box.clipped(140, 90)
    inner = (slice(int(inside.y0), int(inside.y1)), slice(int(inside.x0), int(inside.x1)))
    assert result.image is not None
    np.testing.assert_array_equal(result.image[inner], np.rint(reference[inner]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 7), (33, 20)])
@pytest.mark.parametrize("sigma", [0.4, 3.0, 15.5])
def test_blur_of_pictures_smaller_than_its_kernel(shape: tuple[int, int], sigma: float) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    reference = gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="reflect")
    np.testing.assert_array_equal(blurred(image, Window(0, shape[0], 0, shape[1]), sigma), np.rint(reference))


@pytest.mark.parametrize("sigma", [16, 23.7, 60, 300])
def test_wide_blur_stays_within_a_grey_level_and_knows_no_windows(sigma: float) -> None:
    """Above 16 pixels blocks are averaged first; noise and an edge are the worst that can come."""
    image = np.random.default_rng(3).integers(0, 256, (230, 310, 3), dtype=np.uint8)
    image[:, 150:] = 255
    whole = blurred(image, Window(0, 230, 0, 310), sigma)
    reference = gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="reflect")
    assert np.abs(whole - reference).max() < 1
    part = Window(41, 203, 77, 222)
    np.testing.assert_array_equal(blurred(image, part, sigma), whole[part.slices])


def test_a_light_blur_does_not_undo_a_heavy_one(picture: np.ndarray) -> None:
    """Where a small face lies in a large one, in whatever order, the small one's clearer pixels must not come back."""
    large, small = Face(Box(20, 5, 120, 85)), Face(Box(60, 40, 70, 50))
    for faces in ((large, small), (small, large)):
        result = _one("blur", picture, faces, region="box", margin=1.0, sigma=0.05)
        assert result.image is not None  # sigma is 4.5 and 0.5 pixels
        assert result.image[40:50, 60:70].astype(float).std() < 0.2 * picture[40:50, 60:70].std()


@pytest.mark.parametrize(("sigma", "block"), [(15.0, 1), (16.0, 2), (24.0, 3), (80.0, 10)])
def test_blur_weights_have_the_variance_asked_for(sigma: float, block: int) -> None:
    """Block means widen the picture by (block**2 - 1) / 12; what is left for the weights makes up sigma**2."""
    n = 3000 // block * block
    [weights] = gaussian_weights(1500, 1501, 0, n, n, sigma, block)
    centres = np.arange(0, n, block) + (block - 1) / 2
    assert weights.sum() == pytest.approx(1)
    mean = (weights * centres).sum()
    assert mean == pytest.approx(1500, abs=0.01)
    variance = (weights * (centres - mean) ** 2).sum() + (block**2 - 1) / 12
    # cut off at four sigmas a Gaussian has 0.9989 of its variance
    assert variance == pytest.approx(0.9989 * sigma**2, rel=3e-4)


def test_blur_scales_with_the_face(orl_face: np.ndarray, face: Face) -> None:
    """The same picture at four times the size comes out the same, only larger."""
    big = cv2.resize(orl_face, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    assert face.landmarks is not None
    wide = Face(Box(*(4 * v for v in face.box)), 1.0, face.landmarks * 4)
    for name, params in (("blur", {"sigma": 0.1}), ("pixelate", {"block": 0.15}), ("mask", {}), ("eye-bar", {})):
        small, large = _one(name, orl_face, (face,), **params).image, _one(name, big, (wide,), **params).image
        assert small is not None
        assert large is not None
        back = cv2.resize(large, (92, 112), interpolation=cv2.INTER_AREA)
        assert np.abs(back.astype(float) - small).mean() < 6, name


@pytest.mark.parametrize("block", [0.01, 0.1, 0.37, 2.0])
@pytest.mark.parametrize(
    "box", [Box(13, 7, 121, 79), Box(-30.5, 20.25, 60.5, 130), Box(100, -20, 190, 30), Box(70, 40, 71, 41)]
)
def test_pixelate_equals_brute_force_on_a_region_that_is_not_square(picture: np.ndarray, box: Box, block: float) -> None:
    """Blocks start at the box's corner, even outside the frame, and average only what lies in the frame."""
    result = _one("pixelate", picture, (Face(box),), region="box", margin=1.0, block=block)
    assert result.image is not None
    side = max(block * box.size, 2)
    inside = box.clipped(140, 90)
    xs = np.arange(math.floor(inside.x0), math.ceil(inside.x1))
    ys = np.arange(math.floor(inside.y0), math.ceil(inside.y1))
    column, row = np.floor((xs + 0.5 - box.x0) / side), np.floor((ys + 0.5 - box.y0) / side)
    for r in np.unique(row):
        for c in np.unique(column):
            cell = np.ix_(ys[row == r], xs[column == c])
            mean = picture[cell].reshape(-1, 3).astype(int).sum(axis=0) / picture[cell][..., 0].size
            assert (result.image[cell] == np.floor(mean + 0.5)).all()


def test_noise_has_its_sigma_and_its_grain(orl_face: np.ndarray) -> None:
    grey = np.full((400, 400, 3), 128, np.uint8)
    result = _one("noise", grey, (Face(Box(0, 0, 400, 400)),), region="frame", sigma=0.1, grain=0.05)
    assert result.image is not None
    noise = result.image[..., 0].astype(float) - 128
    assert noise.std() == pytest.approx(25.5, rel=0.15)
    assert abs(noise.mean()) < 5
    cells = noise[5::20, 5::20]
    assert abs(np.corrcoef(cells[:, :-1].ravel(), cells[:, 1:].ravel())[0, 1]) < 0.2, "neighbouring grains are independent"
    blocks = noise.reshape(20, 20, 20, 20)
    assert (blocks == blocks[:, :1, :, :1]).all(), "within a grain the noise is one value"
    assert (result.image[..., 0] == result.image[..., 2]).all()
    free = _one("noise", grey, (Face(Box(0, 0, 400, 400)),), region="frame", channels="independent").image
    assert free is not None
    assert (free[..., 0] != free[..., 2]).any()


@pytest.mark.parametrize("angle", [-35.0, 0.0, 20.0, 80.0])
def test_the_bar_is_a_rectangle_of_its_height_and_length(face: Face, angle: float) -> None:
    assert face.landmarks is not None
    turn = np.radians(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = face.landmarks @ rotation.T.astype(np.float32)
    corners = bar(Face(face.box, 1.0, points), height=10.0, length=1.5)
    sides = np.roll(corners, -1, axis=0) - corners
    level = bar(face, height=10.0, length=1.5)
    np.testing.assert_allclose(corners, level @ rotation.T, atol=1e-3, err_msg="the bar turns with the face")
    assert np.hypot(*sides[1]) == pytest.approx(10)
    assert sides[0] @ sides[1] == pytest.approx(0, abs=1e-6)
    along = sides[0] / np.hypot(*sides[0])
    outline = points[list(FACE_OVAL)] @ along
    assert np.hypot(*sides[0]) == pytest.approx(1.5 * np.ptp(outline), rel=1e-4)
    eyes = points[[33, 133, 362, 263]].mean(axis=0)
    assert (eyes - corners.mean(axis=0)) @ sides[1] == pytest.approx(0, abs=1e-2), "the eyes lie on its middle line"


def test_without_landmarks_the_bar_is_level_and_still_over_the_eyes(orl_face: np.ndarray, face: Face) -> None:
    result = _one("eye-bar", orl_face, (Face(face.box),), colour=(255, 0, 0))
    assert result.status is Status.OK
    assert result.image is not None
    assert face.landmarks is not None
    red = (result.image == (255, 0, 0)).all(axis=2)
    for index in (33, 133, 263, 362, 468, 473):
        x, y = face.landmarks[index]
        assert red[int(y), int(x)]


def test_the_bar_lies_over_the_eyes_along_their_line(orl_face: np.ndarray, finder: FaceFinder) -> None:
    turn = cv2.getRotationMatrix2D((46, 56), 20, 0.8)
    turned = cv2.warpAffine(orl_face, turn, (92, 112), borderMode=cv2.BORDER_REPLICATE)
    [found] = finder.find(turned)
    result = _one("eye-bar", turned, (found,), colour=(255, 0, 0))
    assert result.image is not None
    assert found.landmarks is not None
    red = (result.image == (255, 0, 0)).all(axis=2)
    for index in (33, 133, 159, 145, 263, 362, 386, 374, 468, 473):
        x, y = found.landmarks[index]
        assert red[int(y), int(x)], f"landmark {index} of the eyes is covered"
    y, x = np.argwhere(red).T
    slope = np.polyfit(x, y, 1)[0]
    left, right = found.landmarks[468], found.landmarks[473]
    assert math.degrees(math.atan(slope)) == pytest.approx(
        math.degrees(math.atan2(right[1] - left[1], right[0] - left[0])), abs=5
    )
    mouth = found.landmarks[13]
    assert not red[int(mouth[1]), int(mouth[0])]


@pytest.mark.parametrize("name", ["blur", "pixelate", "noise"])
def test_similarity_falls_as_the_strength_grows(name: str, orl_face: np.ndarray, face: Face) -> None:
    strength = kinds.anonymizers.get(name).strength
    values = []
    for s in (0.03, 0.06, 0.12, 0.24):
        image = _one(name, orl_face, (face,), **{strength: s}).image
        assert image is not None
        values.append(Quality().measure(orl_face, image, face)["ssim_face"])
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 0.1


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("blur", {"sigma": 0}),
        ("blur", {"sigma": "big"}),
        ("blur", {"sigma": float("nan")}),
        ("pixelate", {"block": -1}),
        ("pixelate", {"margin": 0}),
        ("mask", {"region": "circle"}),
        ("mask", {"colour": (0, 0, 300)}),
        ("mask", {"colour": "red"}),
        ("noise", {"sigma": -0.1}),
        ("noise", {"channels": "two"}),
        ("eye-bar", {"height": 0}),
        ("blur", {"feather": True}),
    ],
)
def test_senseless_parameters_are_refused_before_any_work(name: str, params: dict[str, Any]) -> None:
    anonymizer = kinds.anonymizers.create(name, **params)
    with pytest.raises(InputError, match=next(iter(params))):
        anonymizer.validate()


def test_a_soft_rim_fades_outwards(orl_face: np.ndarray, face: Face) -> None:
    hard = _one("mask", orl_face, (face,), margin=0.8).image
    soft = _one("mask", orl_face, (face,), margin=0.8, feather=0.1).image
    assert hard is not None
    assert soft is not None
    assert (soft[(hard == 0).all(axis=2)] == 0).all(), "what the hard mask covers stays covered"
    assert (soft < hard).sum() > 100
