"""Faces: found from 48 pixels to 20 megapixels, the subject chosen, alignment exact."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.transform import SimilarityTransform

from deidbench.faces import (
    AVERAGE_FACE,
    POINTS,
    FaceFinder,
    align,
    named_points,
    pack_faces,
    similarity,
    square_patch,
    subject_face,
    tight_box,
    unpack_faces,
    unpack_shape,
)
from deidbench.types import Box, CropSpec, Face

SPEC = CropSpec(("eye_l", "eye_r", "nose"), ((0.3, 0.35), (0.7, 0.35), (0.5, 0.6)), 96)


def _orl_images(folder: Path, persons: range, images: range) -> list[np.ndarray]:
    return [np.ascontiguousarray(cv2.imread(str(folder / f"s{p}" / f"{i}.pgm"))[..., ::-1]) for p in persons for i in images]


def test_small_grey_faces_with_landmarks(orl_folder: Path, finder: FaceFinder) -> None:
    for image in _orl_images(orl_folder, range(1, 41, 4), range(1, 3)):
        faces = finder.find(image)
        assert len(faces) == 1
        face = faces[0]
        assert face.landmarks is not None
        assert face.landmarks.shape == (478, 2)
        assert face.landmarks.dtype == np.float32
        assert face.depth is not None
        assert face.box == tight_box(face.landmarks)
        eye_l, eye_r, nose, mouth_l, mouth_r = named_points(face, ["eye_l", "eye_r", "nose", "mouth_l", "mouth_r"])
        assert eye_l[0] < eye_r[0]
        assert mouth_l[0] < mouth_r[0]
        assert max(eye_l[1], eye_r[1]) < nose[1] < max(mouth_l[1], mouth_r[1])


@pytest.mark.slow
def test_all_400_orl_faces_and_the_average_face(orl_folder: Path, finder: FaceFinder) -> None:
    relative = []
    for image in _orl_images(orl_folder, range(1, 41), range(1, 11)):
        faces = finder.find(image)
        assert len(faces) == 1
        assert faces[0].landmarks is not None
        b = faces[0].box
        relative.append((named_points(faces[0], list(POINTS)) - (b.x0, b.y0)) / (b.width, b.height))
    median = np.median(relative, axis=0)
    mirrored = {"eye_l": "eye_r", "mouth_l": "mouth_r", "eye_l_outer": "eye_r_outer", "eye_l_inner": "eye_r_inner"}
    mirrored |= {v: k for k, v in mirrored.items()}
    names = list(POINTS)
    for i, name in enumerate(names):
        j = names.index(mirrored.get(name, name))
        x, y = (median[i, 0] + 1 - median[j, 0]) / 2, (median[i, 1] + median[j, 1]) / 2
        assert AVERAGE_FACE[name] == pytest.approx((x, y), abs=0.002)


def test_twenty_megapixels_and_ten_faces(orl_folder: Path, finder: FaceFinder) -> None:
    """Ten faces of 300 to 700 pixels on a 5184 x 3888 frame: all are found where they were put."""
    frame = np.full((3888, 5184, 3), 127, np.uint8)
    rng = np.random.default_rng(0)
    truth = []
    for k, image in enumerate(_orl_images(orl_folder, range(1, 11), range(1, 2))):
        scale = rng.uniform(4, 8)
        big = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        y, x = 200 + (k // 5) * 1800 + int(rng.integers(0, 300)), 60 + (k % 5) * 1000 + int(rng.integers(0, 150))
        frame[y : y + big.shape[0], x : x + big.shape[1]] = big
        [small] = finder.find(image)
        truth.append(Box(*(v * scale + o for v, o in zip(small.box, (x, y, x, y), strict=True))))
    faces = finder.find(frame)
    assert len(faces) == 10
    for box in truth:
        best = max(faces, key=lambda f: f.box.iou(box))
        assert best.box.iou(box) > 0.7
        assert best.landmarks is not None
    assert [f.box.area for f in faces] == sorted((f.box.area for f in faces), reverse=True)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((2, 300, 3), np.uint8),
        np.zeros((112, 92, 3), np.uint8),
        np.full((400, 3, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8),
    ],
    ids=["1x1", "2x300", "black", "400x3", "noise"],
)
def test_no_face_is_an_empty_list(finder: FaceFinder, image: np.ndarray) -> None:
    assert finder.find(image) == []


def test_the_same_whatever_came_before(orl_folder: Path, finder: FaceFinder) -> None:
    images = _orl_images(orl_folder, range(1, 5), range(1, 3))
    first = [finder.find(i) for i in images]
    again = [finder.find(i) for i in reversed(images)][::-1]
    fresh = pickle.loads(pickle.dumps(finder))  # as it travels to a worker
    third = [fresh.find(i) for i in images]
    for a, b, c in zip(first, again, third, strict=True):
        np.testing.assert_array_equal(a[0].landmarks, b[0].landmarks)
        np.testing.assert_array_equal(a[0].landmarks, c[0].landmarks)


def test_subject_is_the_named_face_else_the_largest() -> None:
    small, large = Face(Box(0, 0, 10, 10)), Face(Box(50, 50, 90, 90))
    assert subject_face([large, small]) is large
    assert subject_face([large, small], Box(1, 1, 11, 11)) is small
    assert subject_face([large, small], Box(200, 200, 220, 220)) is None
    assert subject_face([]) is None
    assert subject_face([], Box(0, 0, 1, 1)) is None


def test_similarity_equals_an_independent_one() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        source, target = rng.normal(size=(5, 2)) * 30, rng.normal(size=(5, 2)) * 20
        if np.linalg.det((source - source.mean(0)).T @ (target - target.mean(0))) <= 0:
            continue  # there the reference reflects, which a face never is
        reference = SimilarityTransform.from_estimate(source, target)
        np.testing.assert_allclose(similarity(source, target), reference.params[:2], atol=1e-9)
    angle, scale, shift = 0.3, 1.7, np.array([4.0, -3.0])
    rotation = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    source = rng.normal(size=(5, 2))
    np.testing.assert_allclose(
        similarity(source, source @ rotation.T + shift), np.hstack([rotation, shift[:, None]]), atol=1e-12
    )
    flat = similarity(np.zeros((3, 2)), np.ones((3, 2)))
    np.testing.assert_allclose(flat, [[1, 0, 1], [0, 1, 1]])
    with pytest.raises(ValueError, match="two pairs"):
        similarity(np.zeros((1, 2)), np.zeros((1, 2)))


def test_aligned_landmarks_lie_on_the_template(orl_face: np.ndarray, finder: FaceFinder) -> None:
    """Found again on the aligned crop, the points are where the template wants them, to a pixel or two."""
    spec = CropSpec(
        ("eye_l", "eye_r", "nose", "mouth_l", "mouth_r"),
        ((0.34, 0.46), (0.66, 0.46), (0.5, 0.64), (0.37, 0.82), (0.63, 0.82)),
        224,
    )
    [face] = finder.find(orl_face)
    crop = align(orl_face, face, spec)
    assert crop.shape == (224, 224, 3)
    assert crop.dtype == np.uint8
    [found] = finder.find(crop)
    error = np.linalg.norm(named_points(found, spec.points) - np.array(spec.template) * 224, axis=1)
    assert error.mean() < 6


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0, 16.0])
def test_alignment_does_not_depend_on_resolution(orl_face: np.ndarray, finder: FaceFinder, scale: float) -> None:
    """The same face photographed larger gives the same crop (up to resampling): nothing aliases, nothing shifts."""
    [face] = finder.find(orl_face)
    base = cv2.resize(orl_face, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    image = cv2.resize(base, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    assert face.landmarks is not None

    def scaled(f: float) -> Face:
        points = (face.landmarks * np.float32(f)).astype(np.float32)
        return Face(tight_box(points), 1.0, points)

    reference = align(base, scaled(4), SPEC).astype(float)
    crop = align(image, scaled(4 * scale), SPEC).astype(float)
    assert np.abs(reference - crop).mean() < (4 if scale < 1 else 2)


def test_box_only_faces_are_cut_by_the_average_face(orl_face: np.ndarray) -> None:
    face = Face(Box(10, 20, 80, 100))
    points = named_points(face, ["eye_l", "nose"])
    np.testing.assert_allclose(points, [[10 + 70 * 0.273, 20 + 80 * 0.322], [10 + 35, 20 + 80 * 0.543]])
    assert align(orl_face, face, SPEC).shape == (96, 96, 3)
    assert align(orl_face, Face(Box(500, 500, 600, 600)), SPEC).max() == 0  # all beyond the frame: black


def test_square_patch_maps_points_back(orl_face: np.ndarray) -> None:
    marked = np.zeros((200, 300, 3), np.uint8)
    marked[60:64, 250:254] = 255
    patch, x0, y0, scale = square_patch(marked, (260, 70), 100, 200)
    y, x = np.argwhere(patch[..., 0] > 128).mean(axis=0) + 0.5
    assert (x0 + x / scale, y0 + y / scale) == pytest.approx((252, 62), abs=0.6)


def test_pack_and_unpack(orl_face: np.ndarray, finder: FaceFinder) -> None:
    faces = [*finder.find(orl_face), Face(Box(1, 2, 3, 4), 0.7)]
    data = pack_faces(faces, orl_face.shape)
    back = unpack_faces(data)
    assert unpack_shape(data) == (112, 92)
    assert [f.box for f in back] == [f.box for f in faces]
    assert [f.score for f in back] == [f.score for f in faces]
    np.testing.assert_array_equal(back[0].landmarks, faces[0].landmarks)
    np.testing.assert_array_equal(back[0].depth, faces[0].depth)
    assert back[1].landmarks is None
    assert unpack_faces(pack_faces([], (5, 6))) == []


def test_a_quick_look_finds_the_same_subject(orl_folder: Path, finder: FaceFinder) -> None:
    for image in _orl_images(orl_folder, range(2, 41, 6), range(4, 6)):
        quick, full = finder.find(image, thorough=False), finder.find(image)
        assert len(quick) == 1
        np.testing.assert_array_equal(quick[0].landmarks, full[0].landmarks)
    assert finder.find(np.zeros((100, 80, 3), np.uint8), thorough=False) == []
