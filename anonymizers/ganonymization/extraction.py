"""Cutting a face out (eyes level, letterboxed) and putting another one in its place.

A :class:`Cut` is a similarity between a frame and a square crop: the face's box, scaled by a margin, in a frame turned so
that the eyes are level, fitted into the square with its ratio kept and centred on black.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.regions import Window, oval, polygon_mask, soften
from deidbench.faces import named_points
from deidbench.types import Box, Face, Floats, Image

Matrix = npt.NDArray[np.float64]

#: Crops larger than this many pixels a side are shrunk while they are cut: nothing sees more than 512 of them.
WORKING = 2048


@dataclass(frozen=True, eq=False)
class Cut:
    """Where a face lies in its frame and where it comes to lie in the crop.

    side: of the square crop in pixels.  content: x, y, width, height of the face's part of the crop (integers), the rest
    is black.  matrix: (2, 3), takes frame pixels to crop pixels (pixel (0, 0) covers [0, 1) x [0, 1)).
    unit: (2, 3), takes frame pixels to the upright box, [0, 1] x [0, 1].  size: width and height of that box in the frame.
    """

    side: int
    content: tuple[int, int, int, int]
    matrix: Matrix
    unit: Matrix
    size: tuple[float, float]

    def to_crop(self, points: npt.NDArray[np.floating[Any]]) -> Floats:
        """Frame pixels (n, 2) as fractions of the crop's side, float32 (n, 2)."""
        return np.asarray((points @ self.matrix[:, :2].T + self.matrix[:, 2]) / self.side, np.float32)

    def to_frame(self, points: npt.NDArray[np.floating[Any]]) -> Matrix:
        """The inverse: fractions of the crop's side as frame pixels, float64 (n, 2)."""
        at = np.asarray(points, np.float64) * self.side - self.matrix[:, 2]
        return np.asarray(np.linalg.solve(self.matrix[:, :2], at.T).T)

    @property
    def corners(self) -> Matrix:
        """The corners of the cut in the frame, clockwise from the top left, float64 (4, 2)."""
        at = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]) - self.unit[:, 2]
        return np.asarray(np.linalg.solve(self.unit[:, :2], at.T).T)

    @property
    def box(self) -> Box:
        """The axis-parallel box around the cut, pixels of the frame."""
        (x0, y0), (x1, y1) = self.corners.min(axis=0), self.corners.max(axis=0)
        return Box(float(x0), float(y0), float(x1), float(y1))


def cut_face(face: Face, side: int, margin: float = 1.0, eyes: Matrix | None = None) -> Cut:
    """How ``face`` is cut out into a square of ``side`` pixels.

    margin: factor on the face's box.  With landmarks the box is the tight one around them in the levelled frame, otherwise
    the detector's box.  eyes: (2, 2) left and right eye (of the image) in pixels, for a detector that knows them and no
    landmarks; without either the head is not turned.
    Raises ValueError for a box without size or positions that are not finite.
    """
    if face.landmarks is not None:
        eyes = named_points(face, ("eye_l", "eye_r"))
    dx, dy = (1.0, 0.0) if eyes is None else (float(v) for v in eyes[1] - eyes[0])
    length = float(np.hypot(dx, dy))
    cos, sin = (1.0, 0.0) if length < 1e-6 else (dx / length, dy / length)
    turn = np.array([[cos, sin], [-sin, cos]])  # takes the line between the eyes to the horizontal
    if face.landmarks is not None:
        level = np.asarray(face.landmarks[:468], np.float64) @ turn.T
        (x0, y0), (x1, y1) = level.min(axis=0), level.max(axis=0)
    else:
        cx, cy = turn @ np.array(face.box.centre)
        x0, y0 = cx - face.box.width / 2, cy - face.box.height / 2
        x1, y1 = cx + face.box.width / 2, cy + face.box.height / 2
    box = Box(float(x0), float(y0), float(x1), float(y1)).scaled(margin)
    if not np.isfinite(box).all() or box.width < 1e-3 or box.height < 1e-3:
        raise ValueError(f"face box {tuple(round(v, 2) for v in face.box)} is empty or not finite")
    scale = min(side / box.width, side / box.height)
    # int(), as the specification has it; the tiny number keeps a quotient such as 0.999... * side from losing a pixel
    width, height = (max(1, min(side, int(v * scale + 1e-6))) for v in (box.width, box.height))
    left, top = (side - width) // 2, (side - height) // 2
    unit = np.empty((2, 3))
    unit[:, :2] = turn / np.array([[box.width], [box.height]])
    unit[:, 2] = (-box.x0 / box.width, -box.y0 / box.height)
    matrix = unit * np.array([[width], [height]])
    matrix[:, 2] += (left, top)
    return Cut(side, (left, top, width, height), matrix, unit, (box.width, box.height))


def extract(image: Image, cut: Cut) -> Image:
    """The crop, RGB uint8 (side, side, 3): turned first, then resized by LANCZOS; black beyond the frame and in the bars."""
    import cv2
    from PIL import Image as PIL

    left, top, width, height = cut.content
    # the upright box at the frame's own scale (or WORKING pixels), so that LANCZOS sees the frame's pixels
    scale = min(1.0, WORKING / max(cut.size))
    w, h = (max(1, round(v * scale)) for v in cut.size)
    part, m = around(image, cut, cut.unit * np.array([[w], [h]]))
    if scale < 1:
        shrunk = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
        m = m @ np.diag([part.shape[1] / shrunk[0], part.shape[0] / shrunk[1], 1.0])
        part = cv2.resize(part, shrunk, interpolation=cv2.INTER_AREA)
    upright = cv2.warpAffine(part, _centres(m), (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    crop = np.zeros((cut.side, cut.side, 3), np.uint8)
    face = PIL.fromarray(upright).resize((width, height), PIL.Resampling.LANCZOS)
    crop[top : top + height, left : left + width] = np.asarray(face)
    return crop


def around(image: npt.NDArray[Any], cut: Cut, matrix: Matrix) -> tuple[npt.NDArray[Any], Matrix]:
    """The part of a frame that a cut needs, with room for interpolation, and ``matrix`` (2, 3) from the part's pixels.

    OpenCV does not warp pictures of 32767 pixels a side and more, and needs no more than this part.
    """
    reach = 4 * max(1.0, max(cut.size) / WORKING)
    (x0, x1), (y0, y1) = (
        (int(np.clip(np.floor(low - reach), 0, n - 1)), int(np.clip(np.ceil(high + reach), 1, n)))
        for low, high, n in zip(cut.box[:2], cut.box[2:], image.shape[1::-1], strict=True)
    )
    out = matrix.copy()
    out[:, 2] += out[:, :2] @ (x0, y0)
    return image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)], out


#: The pasted oval is the outline of the landmarks times this: FaceMesh's outline runs inside of the visible edge of a face.
OVAL = 1.1

#: Share of the new face (0 to 1, float64) at the pixels of a window of the frame.
Share = Callable[[Window], Matrix]


def _in_cut(cut: Cut, window: Window) -> tuple[Matrix, Matrix]:
    """Where the centres of the window's pixels lie in the cut: [-1, 1] in both directions inside of it."""
    x, y = np.meshgrid(np.arange(window.x0, window.x1) + 0.5, np.arange(window.y0, window.y1) + 0.5)
    u, v = (2 * (a * x + b * y + c) - 1 for a, b, c in cut.unit)
    return u, v


def edge_share(cut: Cut, ellipse: bool, feather: float) -> Share:
    """All of the cut, or the ellipse inscribed in it, fading out *inwards* from its edge over ``feather`` of its half sides."""

    def share(window: Window) -> Matrix:
        u, v = _in_cut(cut, window)
        r = np.sqrt(u * u + v * v) if ellipse else np.maximum(np.abs(u), np.abs(v))
        return np.clip((1 - r) / feather, 0, 1) if feather > 0 else (r < 1).astype(np.float64)

    return share


def oval_share(cut: Cut, points: Floats, feather: float) -> Share:
    """The outline of the landmarks times OVAL, fading out *outwards* over ``feather`` of the face's size; nothing beyond the cut.

    points: (478, 2) as fractions of the crop.
    """
    outline = oval(cut.to_frame(points), OVAL)
    reach = feather * float(np.sqrt(np.prod(outline.max(axis=0) - outline.min(axis=0))))

    def share(window: Window) -> Matrix:
        u, v = _in_cut(cut, window)
        mask = polygon_mask(outline, window)
        soft = soften(mask, reach) if reach > 0 else mask
        return np.where((np.abs(u) < 1) & (np.abs(v) < 1), soft, 0.0).astype(np.float64)

    return share


def paste(image: Image, crop: Image, cut: Cut, share: Share) -> None:
    """Puts ``crop`` (RGB uint8, its side may differ from the cut's) back into ``image``, in place; the turn is undone.

    share: how much of the new face a pixel takes; pixels where it is 0 keep every bit.
    Raises ValueError for a face outside of the image.
    """
    import cv2

    x0, y0 = (int(max(np.floor(v), 0)) for v in cut.corners.min(axis=0))
    x1, y1 = (int(min(np.ceil(v), n)) for v, n in zip(cut.corners.max(axis=0), image.shape[1::-1], strict=True))
    if x0 >= x1 or y0 >= y1:
        raise ValueError("the face lies outside of the image")
    alpha = share(Window(y0, y1, x0, x1))
    # from the content alone, edges replicated: the black bars must not bleed in
    left, top, width, height = (round(c * crop.shape[0] / cut.side) for c in cut.content)
    face = np.ascontiguousarray(crop[top : top + max(height, 1), left : left + max(width, 1)])
    shrink = max(cut.size[0] / face.shape[1], cut.size[1] / face.shape[0])
    if shrink < 0.5:  # bilinear sampling would alias: shrink by area first
        size = (max(1, round(2 * cut.size[0])), max(1, round(2 * cut.size[1])))
        face = cv2.resize(face, size, interpolation=cv2.INTER_AREA)
    m = cut.unit * np.array([[face.shape[1]], [face.shape[0]]])
    back = cv2.invertAffineTransform(m)
    back[:, 2] -= (x0, y0)
    new = cv2.warpAffine(face, _centres(back), (x1 - x0, y1 - y0), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    old = image[y0:y1, x0:x1]
    mixed = np.rint(old + (new.astype(np.float64) - old) * alpha[:, :, None])
    old[...] = np.where(alpha[:, :, None] > 0, mixed, old).astype(np.uint8)


def _centres(m: Matrix) -> Matrix:
    """``m`` as OpenCV wants it: its integers are the centres of the pixels, ours the corners."""
    out = np.array(m, np.float64)
    out[:, 2] += out[:, :2] @ (0.5, 0.5) - 0.5
    return out
