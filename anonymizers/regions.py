"""Regions of a face as masks, and the base of the methods that repaint such a region.

A region is "box" (the face box scaled by ``margin``), "ellipse" (inscribed in that box), "oval" (the outline of the
face from FaceMesh landmarks, scaled about its centroid) or "frame" (the whole image).  A mask covers every pixel that
the region *touches*, so that a face of a fraction of a pixel is still covered.

The defaults (ellipse, margin 1.3) follow the field's practice of an ellipse around the face with some room: the tight
box of the landmarks ends at the forehead, and 1.3 takes in hairline, chin and ears.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import ceil, floor, isfinite
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.base import Anonymizer
from deidbench.errors import InputError
from deidbench.types import Anonymized, Box, Face, FaceResult, Floats, Image, Item, Status

Scalar = TypeVar("Scalar", bound=np.generic)

REGIONS = ("box", "ellipse", "oval", "frame")

#: The face outline of MediaPipe FaceMesh (``FACEMESH_FACE_OVAL``) as a closed polygon, clockwise from the forehead.
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)


class Window(NamedTuple):
    """Rows ``y0:y1`` and columns ``x0:x1`` of an image; never empty and never beyond it."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0


class Area(NamedTuple):
    """Where a face is repainted.

    box: the region's box, not clipped (pixels).  window: the part of the image that it touches.
    mask: over the window, bool (hard) or float32 in [0, 1] (the share of the new pixel).
    """

    box: Box
    window: Window
    mask: npt.NDArray[np.bool_] | Floats


class FaceProblem(Exception):
    """Why one face cannot be worked on; becomes its :class:`FaceResult`."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


# --------------------------------------------------------------------------------------------------------- geometry


def window_of(box: Box, width: int, height: int, pad: int = 0) -> Window | None:
    """The pixels that ``box`` touches, plus ``pad`` on each side, clipped to the image; None where there are none."""
    inside = box.clipped(width, height)
    if not (inside.x0 < inside.x1 and inside.y0 < inside.y1):
        return None
    return Window(
        max(floor(inside.y0) - pad, 0),
        min(ceil(inside.y1) + pad, height),
        max(floor(inside.x0) - pad, 0),
        min(ceil(inside.x1) + pad, width),
    )


def bounds(points: npt.NDArray[np.float64]) -> Box:
    """Tight box of points (n, 2)."""
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return Box(float(x0), float(y0), float(x1), float(y1))


def centroid(polygon: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centre of mass of a simple polygon (n, 2) by the shoelace formula; the vertices' mean where it has no area."""
    origin = polygon.mean(axis=0)
    p = polygon - origin  # about the origin the cross products keep their digits
    q = np.roll(p, -1, axis=0)
    cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
    area = cross.sum() / 2
    if abs(area) < 1e-9:
        return np.asarray(origin)
    return np.asarray(origin + ((p + q) * cross[:, None]).sum(axis=0) / (6 * area))


def oval(landmarks: npt.NDArray[np.float32] | npt.NDArray[np.float64], margin: float = 1.0) -> npt.NDArray[np.float64]:
    """The face outline as a polygon, float64 (36, 2), scaled by ``margin`` about its centroid.

    landmarks: FaceMesh points (468 or more, 2) in pixels.
    """
    polygon = np.asarray(landmarks, np.float64)[list(FACE_OVAL), :2]
    centre = centroid(polygon)
    return np.asarray(centre + (polygon - centre) * margin)


def box_mask(box: Box, window: Window) -> npt.NDArray[np.bool_]:
    """Pixels of ``window`` that ``box`` touches."""
    x, y = np.arange(window.x0, window.x1), np.arange(window.y0, window.y1)
    across = (x + 1 > box.x0) & (x < box.x1)
    down = (y + 1 > box.y0) & (y < box.y1)
    return np.asarray(down[:, None] & across[None, :])


def ellipse_mask(box: Box, window: Window) -> npt.NDArray[np.bool_]:
    """Pixels of ``window`` that the ellipse inscribed in ``box`` touches (exact: the nearest point of each pixel's square)."""
    cx, cy = box.centre
    x, y = np.arange(window.x0, window.x1), np.arange(window.y0, window.y1)
    dx = (np.clip(cx, x, x + 1) - cx) / (box.width / 2)
    dy = (np.clip(cy, y, y + 1) - cy) / (box.height / 2)
    return np.asarray(dx[None, :] ** 2 + dy[:, None] ** 2 < 1)


def polygon_mask(polygon: npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.bool_]:
    """Pixels of ``window`` whose centre lies in the polygon (n, 2), and those that its outline runs through."""
    import cv2

    shift = 8
    # for OpenCV the integers are the centres of the pixels, for us the corners
    fixed = np.rint((polygon - 0.5 - (window.x0, window.y0)) * (1 << shift))
    if not np.all(np.abs(fixed) < 2**30):
        raise FaceProblem(Status.FAILED, "face outline is millions of pixels away from the image")
    canvas = np.zeros(window.shape, np.uint8)
    cv2.fillPoly(canvas, [fixed.astype(np.int32)], 1, shift=shift)
    return np.asarray(canvas.astype(np.bool_))


def soften(mask: npt.NDArray[np.bool_], feather: float) -> Floats:
    """A mask that falls linearly from 1 at the region's edge to 0 at ``feather`` pixels *outside* of it, float32 in [0, 1].

    Fading outwards keeps the whole region covered: fading inwards would let the rim of the face through.
    """
    import cv2

    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.clip(1 - distance / feather, 0, 1), np.float32)


def check_face(face: Face) -> None:
    """Raises FaceProblem where the face's box is no box."""
    if not all(isfinite(v) for v in face.box) or face.box.width <= 0 or face.box.height <= 0:
        raise FaceProblem(Status.FAILED, f"face box {tuple(face.box)} is empty or not finite")


def check_landmarks(face: Face) -> npt.NDArray[np.float64]:
    """The face's FaceMesh points as float64 (n, 2).  Raises FaceProblem where there are none or they are unusable."""
    if face.landmarks is None:
        raise FaceProblem(Status.NO_LANDMARKS, "this face has a box but no landmarks")
    points = np.asarray(face.landmarks, np.float64)
    if points.ndim != 2 or points.shape[0] < 468 or points.shape[1] < 2 or not np.isfinite(points).all():
        raise FaceProblem(Status.FAILED, f"landmarks of shape {points.shape} are not 478 finite FaceMesh points")
    return points[:, :2]


def area_of(face: Face, region: str, margin: float, width: int, height: int, feather: float = 0.0) -> Area:
    """The region of one face on a ``width`` x ``height`` image.

    feather: width of the soft rim in pixels (0: a hard mask).
    Raises FaceProblem where the face has no usable box or landmarks, or the region lies outside the image.
    """
    check_face(face)
    if region == "frame":
        box = Box(0.0, 0.0, float(width), float(height))
        return Area(box, Window(0, height, 0, width), np.ones((height, width), np.bool_))
    polygon = None
    if region == "oval":
        polygon = oval(check_landmarks(face), margin)
        box = bounds(polygon)
    else:
        box = face.box.scaled(margin)
    window = window_of(box, width, height, pad=ceil(feather))
    if window is None:
        raise FaceProblem(
            Status.FAILED, f"face lies outside the image ({tuple(round(v, 1) for v in box)}, image {width} x {height})"
        )
    if polygon is not None:
        mask = polygon_mask(polygon, window)
    else:
        mask = ellipse_mask(box, window) if region == "ellipse" else box_mask(box, window)
    return Area(box, window, soften(mask, feather) if feather > 0 else mask)


def paint(image: Image, area: Area, new: Image) -> None:
    """Puts ``new`` (of the window's size) into ``image`` where the mask says so; other pixels keep every bit."""
    old = image[area.window.slices]
    alpha = area.mask[:, :, None]
    if alpha.dtype == np.bool_:
        np.copyto(old, new, where=alpha.astype(np.bool_, copy=False))
        return
    old[...] = np.rint(old + (new.astype(np.float32) - old) * alpha).astype(np.uint8)


def release(id: str, image: Image, faces: Sequence[FaceResult], crops: Sequence[Image] = ()) -> Anonymized:
    """The result of an image: released only where *every* face in it was handled; one face left clear withholds it."""
    bad = [(index, r) for index, r in enumerate(faces) if r.status is not Status.OK]
    if not bad:
        return Anonymized(id, Status.OK, image, tuple(faces), crops=tuple(crops))
    statuses = {r.status for _, r in bad}
    status = bad[0][1].status if len(statuses) == 1 else Status.FAILED
    reason = "image withheld; " + "; ".join(f"face {index + 1} of {len(faces)}: {r.reason}" for index, r in bad)
    return Anonymized(id, status, None, tuple(faces), reason)


def luma(image: Image) -> Image:
    """Grey levels of an RGB image by ITU-R BT.601, uint8 (H, W); a grey image keeps its own."""
    return np.asarray(np.rint(image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)), np.uint8)


# ----------------------------------------------------------------------------------------------------------- blocks


def cell_starts(origin: float, side: float, start: int, stop: int) -> npt.NDArray[np.intp]:
    """First pixel of each cell, relative to ``start``, when cells of ``side`` pixels are laid from ``origin`` over start:stop.

    A pixel belongs to the cell in which its centre lies, so cells of a fractional side differ by at most one pixel.
    """
    cell = np.floor((np.arange(start, stop) + 0.5 - origin) / side)
    return np.concatenate(([0], np.flatnonzero(np.diff(cell)) + 1)).astype(np.intp)


def spread(
    cells: npt.NDArray[Scalar], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], shape: tuple[int, int]
) -> npt.NDArray[Scalar]:
    """Cells (r, c, ...) as constant blocks on an array of ``shape``; rows and columns are the cells' starts."""
    down = np.repeat(cells, np.diff(rows, append=shape[0]), axis=0)
    return np.repeat(down, np.diff(columns, append=shape[1]), axis=1)


def block_means(
    patch: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Mean of each block of a uint8 patch (h, w) or (h, w, 3), float64 (rows, columns[, 3]); starts as of :func:`cell_starts`.

    By summed areas, whose float64 sums of integers are exact: the cost does not depend on the size of the blocks.
    """
    import cv2

    height, width = patch.shape[:2]
    sums = cv2.integral(np.ascontiguousarray(patch), sdepth=cv2.CV_64F)
    corners = sums[np.append(rows, height)][:, np.append(columns, width)]
    totals = np.diff(np.diff(corners, axis=0), axis=1)
    counts = np.diff(rows, append=height)[:, None] * np.diff(columns, append=width)
    return np.asarray(totals / counts.reshape(*counts.shape, *[1] * (patch.ndim - 2)), np.float64)


# ------------------------------------------------------------------------------------------------------- validation


def check_number(method: str, key: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises InputError unless ``value`` is a number in [low, high] (``open_low``: above low)."""
    good = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not (good and (low < value if open_low else low <= value) and value <= high):  # type: ignore[operator]
        raise InputError(
            f"{method}: {key} = {value!r} is not allowed",
            f"{key} is a number {'above' if open_low else 'from'} {low:g} up to {high:g}",
        )


#: What a strength that is a length is measured in: the face's size, or pixels (for aligned crops and reproductions).
UNITS = ("face", "pixel")


def check_length(method: str, key: str, value: object, unit: str) -> None:
    """Raises InputError unless ``value`` is above 0 up to 2 face sizes or 1,000 pixels."""
    check_choice(method, "unit", unit, UNITS)
    check_number(method, key, value, 0, 2 if unit == "face" else 1000, open_low=True)


def check_choice(method: str, key: str, value: object, choices: Sequence[str]) -> None:
    """Raises InputError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{method}: {key} = {value!r} is not allowed", f"{key} is one of {', '.join(choices)}")


def check_colour(method: str, key: str, value: object) -> None:
    """Raises InputError unless ``value`` is three integers in 0..255 (R, G, B)."""
    good = isinstance(value, (tuple, list)) and len(value) == 3
    if not good or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in value):  # type: ignore[attr-defined]
        raise InputError(
            f"{method}: {key} = {value!r} is not a colour", f"{key} is three integers from 0 to 255, e.g. [0, 0, 0] for black"
        )


def image_fault(image: object) -> str:
    """Why ``image`` is not an RGB uint8 image of at least one pixel; "" where it is."""
    if not isinstance(image, np.ndarray):
        return f"image is a {type(image).__name__}, not an array"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        return f"image is {image.dtype} {image.shape}, not RGB uint8 (H, W, 3)"
    return ""


# ------------------------------------------------------------------------------------------------------------- base


class RegionAnonymizer(Anonymizer):
    """Repaints a region around every face.

    A subclass names its parameters in ``__init__`` and says in :meth:`_new_pixels` what comes into the region.
    An image is released only when *every* face in it was handled: a frame with one face left clear is withheld.
    Faces are worked on one after another on the same output, so where two overlap both are applied.  With the region
    "frame" the work is done once, with the size of the largest face.
    """

    region: str = "ellipse"
    margin: float = 1.3
    #: Width of a soft rim outside the region, as a fraction of the face size; 0 is a hard edge.
    feather: float = 0.0

    def validate(self) -> None:
        """Raises InputError for a parameter out of its range."""
        check_choice(self.name, "region", self.region, REGIONS)
        check_number(self.name, "margin", self.margin, 0.1, 10)
        check_number(self.name, "feather", self.feather, 0, 1)

    def load(self) -> None:
        self.validate()

    @abstractmethod
    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        """What comes into ``area.window``: RGB uint8 (h, w, 3) of the window's size (the mask is applied afterwards).

        image: the whole frame as far as it is done; it must not be changed.  size: of the face, in pixels.
        """

    def _area(self, face: Face, width: int, height: int) -> Area:
        return area_of(face, self.region, self.margin, width, height, self.feather * face.box.size)

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        self.validate()
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Anonymized:
        if fault := image_fault(item.image):
            return Anonymized.failed(item.id, fault)
        if item.faces is None:
            return Anonymized.failed(item.id, f"{self.name} needs to know the faces: pass Item(faces=FaceFinder().find(image))")
        if not item.faces:
            return Anonymized.no_face(item.id)
        try:
            return self._repaint(item, item.faces)
        except Exception as error:  # one bad item must not take the batch with it; the reason is kept with the item
            return Anonymized.failed(item.id, f"{type(error).__name__}: {error}")

    def _repaint(self, item: Item, faces: tuple[Face, ...]) -> Anonymized:
        out = item.image.copy()
        height, width = out.shape[:2]
        results: list[FaceResult] = []
        for index, face in enumerate(faces):
            try:
                area = self._area(face, width, height)
            except FaceProblem as problem:
                results.append(FaceResult(problem.status, reason=problem.reason))
                continue
            results.append(FaceResult(Status.OK, area.box))
            size = face.box.size
            if self.region == "frame":
                if index != len(faces) - 1:
                    continue
                size = max(f.box.size for f in faces)
            rng = np.random.default_rng([item.seed % 2**64, index])
            paint(out, area, self._new_pixels(out, area, size, rng))
        return release(item.id, out, results)
