"""Faces in one place: detection, 478 landmarks, the subject of a frame, alignment.

Detection and landmarks are MediaPipe's (its wheel carries the models, so nothing is downloaded).  Its detectors look
at 128 or 192 pixels, however large the picture is, and want some room around a face; so frames are padded, and large
frames are searched in overlapping tiles too.  That works from 48 x 48 cut-outs to 20-megapixel photographs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.types import Box, CropSpec, Face, Floats, Image

if TYPE_CHECKING:
    from types import ModuleType

N_LANDMARKS = 478
#: Part of the keys of everything that depends on alignment; raise it when :func:`align` changes its output.
ALIGN_VERSION = "1"

#: Named points that models align to, each the mean of some FaceMesh points.  l and r are the sides of the image.
POINTS: Mapping[str, tuple[int, ...]] = {
    "eye_l": (33, 133),
    "eye_r": (362, 263),
    "nose": (1, 4),
    "mouth_l": (61,),
    "mouth_r": (291,),
    "eye_l_outer": (33,),
    "eye_l_inner": (133,),
    "eye_r_inner": (362,),
    "eye_r_outer": (263,),
    "nose_base": (2,),
}

#: Where the named points lie in the box of an average face (fractions of its width and height): what an attacker
#: assumes where a box is all there is.  Median over the 400 clear ORL faces, made symmetric; `tests/test_faces.py`
#: measures it again.
AVERAGE_FACE: Mapping[str, tuple[float, float]] = {
    "eye_l": (0.273, 0.322),
    "eye_r": (0.727, 0.322),
    "nose": (0.500, 0.543),
    "mouth_l": (0.309, 0.718),
    "mouth_r": (0.691, 0.718),
    "eye_l_outer": (0.176, 0.317),
    "eye_l_inner": (0.372, 0.327),
    "eye_r_inner": (0.628, 0.327),
    "eye_r_outer": (0.824, 0.317),
    "nose_base": (0.500, 0.597),
}


@contextmanager
def quiet_native_stderr() -> Iterator[None]:
    """Keeps what native libraries print on file descriptor 2 away from the user; shows it if the block raises."""
    try:
        fd = sys.__stderr__.fileno() if sys.__stderr__ else 2
        saved = os.dup(fd)
    except (OSError, ValueError):  # no usable stderr: nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), fd)
        try:
            yield
        except BaseException:
            os.dup2(saved, fd)
            sink.seek(0)
            sys.stderr.write(sink.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(saved, fd)
            os.close(saved)


def _mediapipe() -> ModuleType:
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import mediapipe
    except ImportError as error:
        from deidbench.errors import MissingError

        raise MissingError(f"mediapipe cannot be imported: {error}", "pip install 'mediapipe==0.10.21'") from error
    return mediapipe  # type: ignore[no-any-return]


def mediapipe_solutions() -> Any:
    """``mediapipe.solutions``.  Raises MissingError where mediapipe is not installed."""
    return _mediapipe().solutions


class FaceFinder:
    """Finds all faces of an image with their landmarks.

    min_score: least detector confidence, in [0, 1].
    tile_from: frames whose shorter side has at least this many pixels are also searched in tiles.

    The result for an image depends on that image alone (static mode), not on what was seen before.
    """

    version = "1"
    #: Longest side, in pixels, of what a detector is shown: more than they use, little enough to be quick.
    VIEW = 640
    PAD = 0.3

    def __init__(self, min_score: float = 0.5, tile_from: int = 800) -> None:
        self.min_score, self.tile_from = min_score, tile_from
        self._warm = False

    @property
    def fingerprint(self) -> str:
        from importlib.metadata import version

        return f"mediapipe-{version('mediapipe')}/facefinder-{self.version}/{self.min_score}/{self.tile_from}"

    def __getstate__(self) -> dict[str, Any]:  # native graphs do not travel between processes; they are made anew
        return {"min_score": self.min_score, "tile_from": self.tile_from, "_warm": False}

    @cached_property
    def _graphs(self) -> tuple[tuple[Any, ...], Any]:
        with quiet_native_stderr():
            solutions = _mediapipe().solutions
            detectors = tuple(
                solutions.face_detection.FaceDetection(model_selection=m, min_detection_confidence=self.min_score)
                for m in (0, 1)
            )
            mesh = solutions.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.5
            )
            blank = np.zeros((64, 64, 3), np.uint8)  # the first inference is what prints
            for graph in (*detectors, mesh):
                graph.process(blank)
        return detectors, mesh

    def find(self, image: Image, *, thorough: bool = True) -> list[Face]:
        """All faces of an RGB uint8 (H, W, 3) image, largest first; empty when there is none.

        A face whose landmarks cannot be found has ``landmarks=None`` and the detector's box.
        thorough: False ends the search with the first detector and view that finds anything: small faces in the
        background may be missing then, the largest one is not.
        """
        if not self._warm:  # the first real inference of a process still prints a warning that means nothing here
            self._warm = True
            with quiet_native_stderr():
                return self.find(image, thorough=thorough)
        faces: list[Face] = []
        for box, score in self._candidates(image, thorough):
            points = self._mesh(image, box)
            if points is None:
                faces.append(Face(box, score))
            else:
                faces.append(Face(tight_box(points[:, :2]), score, np.ascontiguousarray(points[:, :2]), points[:, 2].copy()))
        # Faces with landmarks first, so that a box that merely overlaps one of them goes.
        order = sorted(faces, key=lambda f: (f.landmarks is None, -f.score, f.box))
        kept = _suppress([(f.box, f) for f in order])
        return sorted(kept, key=lambda f: (-f.box.area, f.box))

    def mesh(self, crop: Image) -> Floats | None:
        """The 478 points of the one face that fills ``crop``, float32 (478, 2) as fractions of its sides; None where there is none.

        FaceMesh as the programs of the field call it: static mode, one face, refined irises, confidence 0.5, on the crop as it is.
        """
        if not self._warm:
            self._warm = True
            with quiet_native_stderr():
                return self.mesh(crop)
        found = self._graphs[1].process(crop).multi_face_landmarks
        return np.array([(p.x, p.y) for p in found[0].landmark], np.float32) if found else None

    def _candidates(self, image: Image, thorough: bool) -> list[tuple[Box, float]]:
        """Boxes and scores of both detectors over all views, overlapping ones merged; or of the first that finds any."""
        detectors, _ = self._graphs
        found: list[tuple[Box, float]] = []
        for patch, x0, y0, scale in self._views(image):
            h, w = patch.shape[:2]
            for detector in detectors:
                for d in detector.process(patch).detections or ():
                    b = d.location_data.relative_bounding_box
                    box = Box(
                        x0 + b.xmin * w / scale,
                        y0 + b.ymin * h / scale,
                        x0 + (b.xmin + b.width) * w / scale,
                        y0 + (b.ymin + b.height) * h / scale,
                    )
                    if box.area >= 4:
                        found.append((box, min(float(d.score[0]), 1.0)))
                if found and not thorough:
                    break
            if found and not thorough:
                break
        found.sort(key=lambda c: (-c[1], c[0]))
        return _suppress([(box, (box, score)) for box, score in found])

    def _views(self, image: Image) -> Iterator[tuple[Image, float, float, float]]:
        """(patch, x0, y0, scale): the padded frame, then overlapping tiles of large frames, none above VIEW pixels.

        A point (x, y) of a patch is (x0 + x / scale, y0 + y / scale) of the image.
        """
        import cv2

        h, w = image.shape[:2]
        scale = min(1.0, self.VIEW / max(h, w))
        small = _resize(image, scale)
        pad = int(np.ceil(self.PAD * max(small.shape[:2])))
        padded = cv2.copyMakeBorder(small, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        yield padded, -pad / scale, -pad / scale, scale
        parts = 2
        while min(h, w) * 2 / (parts + 1) >= self.tile_from and parts <= 4:
            th, tw = h * 2 / (parts + 1), w * 2 / (parts + 1)  # neighbouring tiles share half of their side
            scale = min(1.0, self.VIEW / max(th, tw))
            small = _resize(image, scale)
            for i in range(parts):
                for j in range(parts):
                    y, x = int(i * th / 2 * scale), int(j * tw / 2 * scale)
                    tile = np.ascontiguousarray(small[y : y + int(th * scale), x : x + int(tw * scale)])
                    yield tile, x / scale, y / scale, scale
            parts *= 2

    def _mesh(self, image: Image, box: Box) -> Floats | None:
        """FaceMesh on a square around ``box``; (478, 3) x, y, depth in pixels of the image, or None."""
        _, mesh = self._graphs
        side = max(box.width, box.height)
        for factor in (2.0, 1.5, 3.0):
            patch, x0, y0, scale = square_patch(image, box.centre, side * factor, 320)
            found = mesh.process(patch).multi_face_landmarks
            if not found:
                continue
            h, w = patch.shape[:2]
            # MediaPipe scales depth like x.
            points = np.array([(p.x * w, p.y * h, p.z * w) for p in found[0].landmark], np.float64) / scale
            points[:, :2] += (x0, y0)
            if tight_box(points[:, :2].astype(np.float32)).iou(box) > 0.1:  # not a neighbour's face
                return points.astype(np.float32)
        return None


def _suppress(candidates: Sequence[tuple[Box, Any]]) -> list[Any]:
    """Greedy non-maximum suppression in the given order: drops what overlaps or lies inside something kept."""
    kept: list[tuple[Box, Any]] = []
    for box, payload in candidates:
        for other, _ in kept:
            w = min(box.x1, other.x1) - max(box.x0, other.x0)
            h = min(box.y1, other.y1) - max(box.y0, other.y0)
            inter = max(w, 0.0) * max(h, 0.0)
            if box.iou(other) > 0.3 or inter > 0.6 * min(box.area, other.area):
                break
        else:
            kept.append((box, payload))
    return [payload for _, payload in kept]


def _resize(image: Image, scale: float) -> Image:
    """Scaled by ``scale`` (area averaging when shrinking, cubic when growing); 1.0 returns the image itself."""
    import cv2

    if scale == 1.0:
        return image
    h, w = image.shape[:2]
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    out: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return out


def square_patch(image: Image, centre: tuple[float, float], side: float, size: int) -> tuple[Image, float, float, float]:
    """A square of ``side`` pixels about ``centre``, edges replicated beyond the frame, scaled to ``size`` pixels.

    Returns (patch, x0, y0, scale); a point (x, y) of the patch is (x0 + x / scale, y0 + y / scale) of the image.
    """
    import cv2

    h, w = image.shape[:2]
    side = float(min(max(side, 2.0), 4.0 * max(h, w)))
    x0, y0 = centre[0] - side / 2, centre[1] - side / 2
    scale = size / side
    # Only the pixels inside are touched, shrunk by area averaging before the exact sub-pixel cut.
    left, top = int(np.clip(np.floor(x0) - 2, 0, w - 1)), int(np.clip(np.floor(y0) - 2, 0, h - 1))
    right, bottom = int(np.clip(np.ceil(x0 + side) + 2, left + 1, w)), int(np.clip(np.ceil(y0 + side) + 2, top + 1, h))
    part, shrink = image[top:bottom, left:right], 1.0
    if scale < 0.5:
        shrink = scale * 2
        part = _resize(np.ascontiguousarray(part), shrink)
    m = _pixel_matrix(scale / shrink, (left - x0) * scale, (top - y0) * scale)
    patch: Image = cv2.warpAffine(part, m, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return patch, x0, y0, scale


def _pixel_matrix(scale: float, dx: float, dy: float) -> npt.NDArray[np.float64]:
    """Scale and shift as cv2 wants them: our coordinates put pixel centres at +0.5, cv2's at 0."""
    return np.array([[scale, 0, dx + 0.5 * scale - 0.5], [0, scale, dy + 0.5 * scale - 0.5]], np.float64)


def tight_box(landmarks: Floats) -> Box:
    """The box around the 468 face points (irises left out), float32 (478, 2) in pixels."""
    x0, y0 = landmarks[:468].min(axis=0)
    x1, y1 = landmarks[:468].max(axis=0)
    return Box(float(x0), float(y0), float(x1), float(y1))


def subject_face(faces: Sequence[Face], box: Box | None = None) -> Face | None:
    """The face that a frame is about: the one that ``box`` (from the data set) names, else the largest; None if none.

    With a box, faces that hardly touch it (intersection over union <= 0.1) are not the subject.
    """
    if box is not None:
        best = max(faces, key=lambda f: f.box.iou(box), default=None)
        return best if best is not None and best.box.iou(box) > 0.1 else None
    return max(faces, key=lambda f: f.box.area, default=None)


def named_points(face: Face, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """(len(names), 2) pixel positions of named points; an average face in the box where there are no landmarks."""
    if face.landmarks is not None:
        return np.array([face.landmarks[list(POINTS[n])].mean(axis=0) for n in names], np.float64)
    b = face.box
    return np.array([(b.x0 + AVERAGE_FACE[n][0] * b.width, b.y0 + AVERAGE_FACE[n][1] * b.height) for n in names], np.float64)


def similarity(source: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Least-squares similarity (2, 3) that takes points ``source`` (n, 2) to ``target``, reflections excluded.

    Closed form of Umeyama, IEEE TPAMI 13(4), 1991.  Coinciding source points give a matrix that takes them to the
    target's centroid at a scale of 1.
    """
    if len(source) != len(target) or len(source) < 2:
        raise ValueError("a similarity needs at least two pairs of points")
    ms, mt = source.mean(axis=0), target.mean(axis=0)
    s, t = source - ms, target - mt
    var = (s**2).sum()
    if var < 1e-12:
        return np.array([[1.0, 0.0, mt[0] - ms[0]], [0.0, 1.0, mt[1] - ms[1]]])
    # In the plane the optimum is one complex number: a = sum(conj(s) t) / sum(|s|^2).
    a = (s * t).sum() / var
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / var
    linear = np.array([[a, -b], [b, a]])
    return np.hstack([linear, (mt - linear @ ms)[:, None]])


def alignment(face: Face, spec: CropSpec) -> npt.NDArray[np.float64]:
    """The similarity (2, 3) that takes points of the image (pixels) to points of the crop that ``spec`` cuts."""
    return similarity(named_points(face, spec.points), np.array(spec.template, np.float64) * spec.size)


def moved(face: Face, m: npt.NDArray[np.float64]) -> Face:
    """``face`` where the similarity ``m`` (2, 3) takes it; without landmarks the box keeps its sides' proportion."""
    scale = float(np.hypot(m[0, 0], m[1, 0]))
    if face.landmarks is None:
        cx, cy = m[:, :2] @ face.box.centre + m[:, 2]
        w, h = face.box.width * scale / 2, face.box.height * scale / 2
        return Face(Box(float(cx - w), float(cy - h), float(cx + w), float(cy + h)), face.score)
    points = (face.landmarks.astype(np.float64) @ m[:, :2].T + m[:, 2]).astype(np.float32)
    depth = None if face.depth is None else (face.depth * np.float32(scale)).astype(np.float32)
    return Face(tight_box(points), face.score, points, depth)


def align(image: Image, face: Face, spec: CropSpec) -> Image:
    """The face cut out as ``spec`` wants it: RGB uint8 (size, size, 3); black beyond the frame."""
    import cv2

    m = alignment(face, spec)
    scale = float(np.hypot(m[0, 0], m[1, 0]))
    part = image
    if scale < 0.5:  # bilinear sampling would alias: shrink by area first
        shrink = max(scale * 2, 1.0 / max(image.shape[:2]))
        part = _resize(image, shrink)
        fx, fy = part.shape[1] / image.shape[1], part.shape[0] / image.shape[0]
        m = m @ np.array([[1 / fx, 0, 0], [0, 1 / fy, 0], [0, 0, 1]])
    m[:, 2] += m[:, :2] @ (0.5, 0.5) - 0.5  # pixel centres, see _pixel_matrix
    out: Image = cv2.warpAffine(
        part, m, (spec.size, spec.size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return out


def pack_faces(faces: Sequence[Face], shape: tuple[int, ...]) -> bytes:
    """Faces and the (H, W) of their image as bytes (safetensors), for the store."""
    from safetensors.numpy import save

    n = len(faces)
    points = np.full((n, N_LANDMARKS, 3), np.nan, np.float32)
    for i, f in enumerate(faces):
        if f.landmarks is not None:
            points[i, :, :2] = f.landmarks
            points[i, :, 2] = 0 if f.depth is None else f.depth
    boxes = np.array([f.box for f in faces], np.float64).reshape(n, 4)
    scores = np.array([f.score for f in faces], np.float64)
    return save({"boxes": boxes, "scores": scores, "points": points, "shape": np.array(shape[:2], np.int64)})


def unpack_faces(data: bytes) -> list[Face]:
    """The inverse of :func:`pack_faces`."""
    from safetensors.numpy import load

    t = load(data)
    faces = []
    for box, score, points in zip(t["boxes"], t["scores"], t["points"], strict=True):
        where = Box(*(float(v) for v in box))
        if np.isnan(points[0, 0]):
            faces.append(Face(where, float(score)))
        else:
            faces.append(Face(where, float(score), np.ascontiguousarray(points[:, :2]), points[:, 2].copy()))
    return faces


def unpack_shape(data: bytes) -> tuple[int, int]:
    """The (H, W) that :func:`pack_faces` stored."""
    from safetensors.numpy import load

    h, w = load(data)["shape"]
    return int(h), int(w)
