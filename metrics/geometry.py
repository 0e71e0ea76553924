"""Geometry of the face: is it still found, and do landmarks, head pose, eyes, mouth and gaze stay where they were.

Two landmarkers measure it: FaceMesh, which some anonymizers are built on (they are flattered), and dlib's 68 points behind
dlib's own detector, which none is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.kinds import metrics
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Table
from deidbench.metrics.models.landmarks import MIN_IOU, WEIGHTS, Dlib68
from deidbench.records import Row
from deidbench.stats import intervals
from deidbench.stats.evidence import Evidence
from deidbench.stats.intervals import Interval
from deidbench.types import Face, Image

FAMILY = "geometry"
_Points = npt.NDArray[np.float64]

#: Where the parts are in each landmarker.  Eyes: p1 to p6 of Soukupova & Cech (a corner, two points of the upper lid, the
#: other corner, two of the lower lid).  Mouth: its corners, then pairs across the opening between the lips.
#: outer: the outer corners of the eyes.  rigid: in the order of HEAD.
_PARTS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "dlib": {
        "eye_l": (36, 37, 38, 39, 40, 41),
        "eye_r": (42, 43, 44, 45, 46, 47),
        "mouth": (48, 54, 61, 67, 62, 66, 63, 65),
        "outer": (36, 45),
        "rigid": (36, 39, 42, 45, 27, 28, 30, 31, 32, 33, 34, 35),
    },
    "facemesh": {
        "eye_l": (33, 160, 158, 133, 153, 144),
        "eye_r": (362, 385, 387, 263, 373, 380),
        "mouth": (61, 291, 82, 87, 13, 14, 312, 317),
        "outer": (33, 263),
        "rigid": (33, 133, 362, 263, 168, 197, 4, 75, 97, 2, 326, 305),
    },
}
LANDMARKERS = tuple(_PARTS)

#: Points of the head that neither the jaw nor the lips move: corners of the eyes, ridge, tip and base of the nose.  x to the
#: right and y down as seen by the camera, z away from it; the outer corners of the eyes are one apart.  Measured by us: mean
#: of FaceMesh's points with depth over the 102 neutral front views of the Face Research Lab London Set (DeBruine & Jones
#: 2017, CC BY 4.0, doi 10.6084/m9.figshare.5047666) and their mirror images, after 3D Procrustes alignment.  The mean
#: attitude of these persons is thus the zero of all angles.
HEAD: _Points = np.array(
    [
        (-0.500, 0.000, 0.000), (-0.191, 0.018, -0.061), (0.191, 0.018, -0.061), (0.500, 0.000, 0.000),
        (0.000, -0.055, -0.246), (0.000, 0.102, -0.359), (0.000, 0.350, -0.523),
        (-0.140, 0.462, -0.287), (-0.083, 0.498, -0.314), (0.000, 0.499, -0.332), (0.083, 0.498, -0.314), (0.140, 0.462, -0.287),
    ]
)  # fmt: skip
#: Distance of the camera from the face in distances between the outer corners of the eyes (about 9 cm): one metre.  Pictures
#: do not tell it.
CAMERA = 11.0
#: Eyes less open than this (eye aspect ratio by FaceMesh) hide the iris: no gaze.
CLOSED = 0.12
#: The iris's centre and the corners (in the image: left, right) of each eye, in FaceMesh.
_IRIS = ((468, 33, 133, "eye_l"), (473, 362, 263, "eye_r"))


def eye_aspect_ratio(eye: npt.ArrayLike) -> float:
    """How open an eye is: ``(|p2 - p6| + |p3 - p5|) / (2 |p1 - p4|)`` of points (6, 2); NaN where the corners coincide.

    Soukupova & Cech, Real-time eye blink detection using facial landmarks, CVWW 2016, equation 1.
    """
    p = np.asarray(eye, np.float64)
    width = float(np.linalg.norm(p[0] - p[3]))
    lids = float(np.linalg.norm(p[1] - p[5]) + np.linalg.norm(p[2] - p[4]))
    return lids / (2 * width) if width > 0 else math.nan


def mouth_opening(mouth: npt.ArrayLike) -> float:
    """Mean height between the inner lips over the mouth's width.

    mouth: (2 + 2k, 2), the corners, then pairs of points across the opening.  NaN where the corners coincide.
    """
    p = np.asarray(mouth, np.float64)
    width = float(np.linalg.norm(p[0] - p[1]))
    height = float(np.linalg.norm(p[2::2] - p[3::2], axis=1).mean())
    return height / width if width > 0 else math.nan


def nme(before: npt.ArrayLike, after: npt.ArrayLike, outer: tuple[int, int]) -> float:
    """Normalised mean error: mean distance of points (k, 2) over the distance of the outer eye corners in ``before``.

    The "inter-ocular" normalisation of 300-W (Sagonas et al. 2013).  NaN where the corners coincide.
    """
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    eyes = float(np.linalg.norm(a[outer[0]] - a[outer[1]]))
    return float(np.linalg.norm(a - b, axis=1).mean()) / eyes if eyes > 0 else math.nan


def gaze(landmarks: npt.ArrayLike) -> tuple[float, float]:
    """Where the irises stand in the eyes, from FaceMesh's points (478, 2): (x, y), mean of both eyes.

    x: from the corner on the left of the image (0) to that on the right (1), along the line through them.  y: away from that
    line, downwards positive, in the same unit.  So neither a shift nor a turn nor the size of the picture matters.
    NaN where an eye is closed (CLOSED) or there are no iris points.
    """
    p = np.asarray(landmarks, np.float64)
    if len(p) < 478:
        return math.nan, math.nan
    places = []
    for iris, left, right, name in _IRIS:
        if not eye_aspect_ratio(p[list(_PARTS["facemesh"][name])]) >= CLOSED:
            return math.nan, math.nan
        along = p[right] - p[left]
        d = p[iris] - p[left]
        square = float(along @ along)
        places.append((float(d @ along) / square, float(along[0] * d[1] - along[1] * d[0]) / square))
    x, y = np.mean(places, axis=0)
    return float(x), float(y)


def head_pose(points: npt.ArrayLike) -> _Points | None:
    """The rotation (3, 3) that takes HEAD to what is seen at ``points`` (12, 2); None where they do not tell it.

    Perspective-n-point: SQPnP (Terzakis & Lourakis 2020, the global optimum) refined by Levenberg-Marquardt (OpenCV).  The
    camera looks at the middle of the points from CAMERA, so place and size in the picture have no say.
    """
    import cv2

    p = np.asarray(points, np.float64)
    middle = p.mean(axis=0)
    spread = math.sqrt(float(((p - middle) ** 2).sum(axis=1).mean()))
    if not np.isfinite(spread) or spread <= 0:
        return None
    camera = np.diag([CAMERA, CAMERA, 1.0])
    # A face that looks at the camera has the size of HEAD; distances differ from CAMERA as far as it turns or tilts.
    seen = (p - middle) * (_SPREAD / spread)
    try:
        ok, rotation, shift = cv2.solvePnP(HEAD, seen, camera, None, flags=cv2.SOLVEPNP_SQPNP)
        if not ok:
            return None
        rotation, _ = cv2.solvePnPRefineLM(HEAD, seen, camera, None, rotation, shift)
    except cv2.error:  # points on a line
        return None
    matrix = np.asarray(cv2.Rodrigues(rotation)[0], np.float64)
    return matrix if np.isfinite(matrix).all() else None


_SPREAD = math.sqrt(float(((HEAD[:, :2] - HEAD[:, :2].mean(axis=0)) ** 2).sum(axis=1).mean()))


def pose_angles(rotation: npt.ArrayLike) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees of ``R = Rz(roll) Ry(yaw) Rx(pitch)``: turning the picture changes the roll alone.

    Positive: the face turns to the left of the picture, looks down, is turned clockwise in the picture.
    """
    r = np.asarray(rotation, np.float64)
    yaw = math.asin(min(1.0, max(-1.0, -float(r[2, 0]))))
    return math.degrees(yaw), math.degrees(math.atan2(r[2, 1], r[2, 2])), math.degrees(math.atan2(r[1, 0], r[0, 0]))


def angle_between(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Angle of the rotation that takes one attitude (3, 3) to the other, degrees in [0, 180]; exactly 0 for equal ones.

    From the chordal distance, ``|A - B| = 2 sqrt(2) sin(angle / 2)`` (Huynh 2009): exact where the arc cosine of a trace is not.
    """
    chord = float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
    return 2 * math.degrees(math.asin(min(1.0, chord / (2 * math.sqrt(2)))))


def _turn(before: _Points, after: _Points) -> _Points:
    """Absolute difference of angles in degrees, the short way round."""
    return np.asarray(np.abs((after - before + 180) % 360 - 180), np.float64)


#: What is read off one picture, by either landmarker.
_STATES = ("yaw", "pitch", "roll", "eye_opening", "mouth_opening")
_GAZE = ("gaze_x", "gaze_y")
_PAIRED = (*(f"{s}_{m}" for s in _STATES for m in LANDMARKERS), *_GAZE)


class _Face(NamedTuple):
    """What a landmarker says of one picture.  points: (68, 2) or (478, 2).  rotation: of the head, None where unknown."""

    points: _Points
    rotation: _Points | None
    state: dict[str, float]


def _read(points: _Points, landmarker: str) -> _Face:
    """All that is read off one picture; NaN where something cannot be computed."""
    part = {name: points[list(where)] for name, where in _PARTS[landmarker].items()}
    eyes = (eye_aspect_ratio(part["eye_l"]) + eye_aspect_ratio(part["eye_r"])) / 2
    rotation = head_pose(part["rigid"])
    angles = (math.nan,) * 3 if rotation is None else pose_angles(rotation)
    return _Face(points, rotation, dict(zip(_STATES, (*angles, eyes, mouth_opening(part["mouth"])), strict=True)))


def _compare(before: _Face, after: _Face, landmarker: str) -> dict[str, float]:
    """NME and the angle between the head poses.  FaceMesh's irises are no part of the NME."""
    left, right = _PARTS[landmarker]["outer"]
    k = 468 if landmarker == "facemesh" else 68
    a, b = before.rotation, after.rotation
    return {
        "nme": nme(before.points[:k], after.points[:k], (left, right)),
        "pose": math.nan if a is None or b is None else angle_between(a, b),
    }


def correlation(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Pearson's r of (n,) and (n,); exactly 1 for equal columns, NaN where one of them does not vary."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    if size <= 1e-12:
        return math.nan
    return 1.0 if np.array_equal(x, y) else float(np.clip(a @ b / size, -1, 1))


def correlation_replicates(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], who: npt.NDArray[np.intp], draws: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """Pearson's r in each replicate: (B,), NaN where a column does not vary in it.  who: (n,) person.  draws: (B, P)."""
    persons = draws.shape[1]
    a, b = ((v - v.mean()) / (v.std() or 1.0) for v in (x, y))  # near 0 and 1, so that sums of squares keep their digits
    sums = intervals.per_person(who, np.column_stack([a, b, a * a, b * b, a * b]), persons)
    counts = intervals.per_person(who, np.ones(len(a)), persons)
    ma, mb, maa, mbb, mab = intervals.ratio_replicates(sums, counts, draws).T
    va, vb = maa - ma**2, mbb - mb**2
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where((va > 1e-12) & (vb > 1e-12), (mab - ma * mb) / np.sqrt(va * vb), np.nan)
    return np.asarray(np.clip(r, -1, 1), np.float64)


_EYES = "fraction of the eye distance"
_BY = {"dlib": "dlib's 68 points", "facemesh": "FaceMesh"}


def _quantities() -> tuple[Quantity, ...]:
    def of(name: str, title: str, unit: str, up: bool = False) -> Quantity:
        return Quantity(f"geometry.{name}", title, unit, up, "utility", FAMILY)

    out = [
        of("detected_dlib", "Face found by dlib's detector", "rate", True),
        of("detected_facemesh", "Face found by the suite's finder", "rate", True),
    ]
    for m, by in _BY.items():
        out += [
            of(f"nme_{m}", f"Landmark error (NME), {by}", _EYES),
            of(f"pose_{m}", f"Head-pose error, {by}", "degrees"),
            of(f"yaw_{m}", f"Yaw error, {by}", "degrees"),
            of(f"pitch_{m}", f"Pitch error, {by}", "degrees"),
            of(f"roll_{m}", f"Roll error, {by}", "degrees"),
            of(f"eye_opening_{m}", f"Error of the eyes' opening, {by}", "ratio"),
            of(f"mouth_opening_{m}", f"Error of the mouth's opening, {by}", "ratio"),
        ]
    return (
        *out,
        of("gaze_x", "Gaze error, sideways (iris points)", "fraction of the eye's width"),
        of("gaze_y", "Gaze error, up and down (iris points)", "fraction of the eye's width"),
        of("yaw_r", "Yaw: correlation with the original, dlib's 68 points", "correlation", True),
        of("eye_opening_r", "Eyes' opening: correlation with the original, dlib's 68 points", "correlation", True),
        of("mouth_opening_r", "Mouth's opening: correlation with the original, dlib's 68 points", "correlation", True),
        of("gaze_x_r", "Gaze sideways: correlation with the original (iris points)", "correlation", True),
        of("gaze_y_r", "Gaze up and down: correlation with the original (iris points)", "correlation", True),
    )


#: The two columns behind each correlation.
_CORRELATED = {
    "yaw_r": "yaw_dlib",
    "eye_opening_r": "eye_opening_dlib",
    "mouth_opening_r": "mouth_opening_dlib",
    "gaze_x_r": "gaze_x",
    "gaze_y_r": "gaze_y",
}


@metrics.register("geometry")
class Geometry(Metric):
    """Detection rates, landmark error, head pose, opening of eyes and mouth, gaze: the output against its original.

    Rates: the headline is over all images, and what was withheld is not found; ``without_fta`` is dlib's over the images in
    which the suite's finder found a face.  Errors are means over the images whose face the landmarker finds in both
    pictures: with a low detection rate they speak of the faces that changed least.  A method that gives every face the same
    expression has a small mean error too; the correlations over images tell that.

    Both landmarkers have errors of their own: on the same face at another size with slight noise, dlib's points have an NME
    of about 0.006 (faces of 48 pixels: 0.009), a head pose that is off by 0.6 degrees and an eye opening that is off by 0.01.
    """

    version = "2"
    citation = (
        "NME: Sagonas et al., 300 Faces in-the-Wild Challenge, ICCVW 2013; eye aspect ratio: Soukupova & Cech, Real-time eye "
        "blink detection using facial landmarks, CVWW 2016; " + WEIGHTS.citation
    )
    quantities = _quantities()
    measures = (
        "found_facemesh",
        "found_dlib",
        "found_dlib_before",
        *(f"{d}_{m}" for d in ("nme", "pose") for m in LANDMARKERS),
        *(f"{column}_{when}" for column in _PAIRED for when in ("before", "after")),
    )

    def __init__(self) -> None:
        self._dlib = Dlib68()

    def params(self) -> dict[str, str]:
        return {"dlib": f"{Dlib68.runtime()}, landmarks-{Dlib68.version}, {(WEIGHTS.sha256 or '')[:16]}"}

    def measure(self, original: Image, anonymised: Image, face: Face | None, found: Face | None = None) -> Mapping[str, float]:
        """``X_before`` and ``X_after`` are read off the original and the output; 1 and 0 stand for found and not found.

        dlib looks around the original's face box in both pictures; what it finds must overlap that box (MIN_IOU).  Without
        a face in the original all that dlib has to say is NaN.  Raises MissingError where dlib's weights are not installed.
        """
        values = dict.fromkeys(self.measures, math.nan)
        values["found_facemesh"] = float(found is not None)
        faces: dict[tuple[str, str], _Face] = {}
        for when, f in (("before", face), ("after", found)):
            if f is not None and f.landmarks is not None:
                faces["facemesh", when] = _read(f.landmarks.astype(np.float64), "facemesh")
                values[f"gaze_x_{when}"], values[f"gaze_y_{when}"] = gaze(f.landmarks)
        if face is not None:
            for when, image, column in (("before", original, "found_dlib_before"), ("after", anonymised, "found_dlib")):
                fit = self._dlib.find(image, face.box)
                values[column] = float(fit is not None)
                if fit is not None:
                    faces["dlib", when] = _read(fit.points, "dlib")
        for (landmarker, when), one in faces.items():
            for name, value in one.state.items():
                values[f"{name}_{landmarker}_{when}"] = value
        for landmarker in LANDMARKERS:
            if (landmarker, "before") in faces and (landmarker, "after") in faces:
                compared = _compare(faces[landmarker, "before"], faces[landmarker, "after"], landmarker)
                values.update({f"{name}_{landmarker}": value for name, value in compared.items()})
        return values

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        rows = []
        for quantity in self.quantities:
            name = quantity.name.removeprefix("geometry.")
            if name.startswith("detected_"):
                rows.append(_rate(anonymised, quantity, name.removeprefix("detected_"), "headline", protocol))
                if name == "detected_dlib":
                    rows.append(_rate(anonymised, quantity, "dlib", "without_fta", protocol))
            elif name in _CORRELATED:
                rows.append(_correlation(anonymised, quantity, _CORRELATED[name], protocol))
            else:
                rows.append(_mean(anonymised, quantity, name, protocol))
        return Findings(rows, [])


def _draws(table: Table, protocol: Protocol) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8]]:
    """(n,) person of each image, and the draws over all persons of the table: the same for all methods and figures."""
    persons, who = np.unique(table.subjects, return_inverse=True)
    return who, intervals.person_draws(persons.tolist(), protocol.replicates, protocol.seed)


def _rate(table: Table, quantity: Quantity, detector: str, convention: str, protocol: Protocol) -> Row:
    column = table.measures[f"found_{detector}"]
    use = table.withheld | ~np.isnan(column)
    notes = []
    if unknown := int((~use).sum()):
        notes.append(f"{unknown} images are left out: no face was found in their originals")
    if convention == "without_fta":
        use = use & ~table.withheld & ~table.fta
        reason = "no face was found in any output"
    else:
        reason = "no face was found in any original"
        if table.withheld.any():
            notes.append(f"{int(table.withheld.sum())} withheld images count as not found")
    if detector == "dlib":
        before = table.measures["found_dlib_before"][use & ~table.withheld]
        if len(before):
            notes.append(f"in the originals of released images dlib finds {int(np.nansum(before))} of {len(before)} faces")
        notes.append(f"found: intersection over union >= {MIN_IOU} with the original's box")
    hit = (use & ~table.withheld & (column == 1)).astype(np.float64)
    interval, value, evidence = Interval.none(protocol.confidence, "no value"), None, None
    if use.any():
        who, draws = _draws(table, protocol)
        p = draws.shape[1]
        value = float(hit.sum() / use.sum())
        hits, trials = intervals.per_person(who, hit, p), intervals.per_person(who, use, p)
        interval = intervals.rate_interval(hits, trials, draws, protocol.confidence)
        evidence = Evidence.sums("rate", hits, trials)
    return _row(table, quantity, use, value, "" if use.any() else reason, interval, notes, convention, evidence)


def _mean(table: Table, quantity: Quantity, name: str, protocol: Protocol) -> Row:
    """An error: a column of its own, or the absolute difference of before and after."""
    if name in _PAIRED:
        before, after = table.measures[f"{name}_before"], table.measures[f"{name}_after"]
        column = _turn(before, after) if quantity.unit == "degrees" else np.abs(after - before)
    else:
        column = table.measures[name]
    use = np.isfinite(column) & ~table.withheld
    notes, reason = _absent(table, use, "dlib" if name.endswith("_dlib") else "facemesh")
    interval, value, evidence = Interval.none(protocol.confidence, "no value"), None, None
    if use.any():
        who, draws = _draws(table, protocol)
        p = draws.shape[1]
        value = float(column[use].mean())
        sums, counts = intervals.per_person(who, np.where(use, column, 0.0), p), intervals.per_person(who, use, p)
        interval = intervals.mean_interval(sums, counts, draws, protocol.confidence)
        evidence = Evidence.sums("mean", sums, counts)
    return _row(table, quantity, use, value, "" if use.any() else reason, interval, notes, evidence=evidence)


def _correlation(table: Table, quantity: Quantity, column: str, protocol: Protocol) -> Row:
    before, after = table.measures[f"{column}_before"], table.measures[f"{column}_after"]
    use = np.isfinite(before) & np.isfinite(after) & ~table.withheld
    notes, reason = _absent(table, use, "dlib" if column.endswith("_dlib") else "facemesh")
    interval, value, evidence = Interval.none(protocol.confidence, "no value"), None, None
    if int(use.sum()) >= 3:
        r = correlation(before[use], after[use])
        if math.isnan(r):
            reason = "it does not vary between the images"
        else:
            value, reason = r, ""
            who, draws = _draws(table, protocol)
            replicates = correlation_replicates(before[use], after[use], who[use], draws)
            persons = len(np.unique(table.subjects[use]))
            interval = intervals.percentile_interval(replicates, protocol.confidence, persons, "person bootstrap")
            # In units of the originals, the same for every method: persons can change places between methods.
            there = before[np.isfinite(before)]
            x, y = ((z[use] - there.mean()) / (there.std() or 1.0) for z in (before, after))
            columns = np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y])
            evidence = Evidence.sums("pearson", intervals.per_person(who[use], columns, draws.shape[1]))
    elif use.any():
        reason = "fewer than three images have a value"
    return _row(table, quantity, use, value, reason, interval, notes, evidence=evidence)


def _absent(table: Table, use: npt.NDArray[np.bool_], landmarker: str) -> tuple[list[str], str]:
    """In words, why images have no value; and the reason where none has."""
    gone = ~use & ~table.withheld
    # mouth_opening is there whenever there are landmarks
    first = gone & np.isnan(table.measures[f"mouth_opening_{landmarker}_before"])
    second = gone & ~first & np.isnan(table.measures[f"mouth_opening_{landmarker}_after"])
    counts = {
        "withheld": table.withheld,
        f"without landmarks by {_BY[landmarker]} in the original": first,
        f"without landmarks by {_BY[landmarker]} in the output": second,
        "with a closed eye or degenerate points": gone & ~first & ~second,
    }
    said = [f"{int(c.sum())} {what}" for what, c in counts.items() if c.any()]
    notes = [f"images without a value: {', '.join(said)}"] if said else []
    return notes, "nothing was released" if table.withheld.all() else "no image has a value"


def _row(
    table: Table,
    quantity: Quantity,
    use: npt.NDArray[np.bool_],
    value: float | None,
    reason: str,
    interval: Interval,
    notes: list[str],
    convention: str = "",
    evidence: Evidence | None = None,
) -> Row:
    return Row(
        evidence=evidence,
        dataset=table.dataset,
        method=table.method,
        metric=quantity.name,
        unit=quantity.unit,
        higher_is_better=quantity.higher_is_better,
        value=value,
        reason=reason,
        lo=interval.lo,
        hi=interval.hi,
        ci_level=interval.level,
        ci_method=interval.method,
        ci_reason=interval.reason,
        convention=convention,
        n_images=int(use.sum()),
        n_persons=len(np.unique(table.subjects[use])),
        n_failed=int(table.withheld.sum()),
        n_fta=int(table.fta.sum()),
        family=quantity.family,
        note="; ".join(notes),
    )
