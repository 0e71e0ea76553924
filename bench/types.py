"""The words that all rooms share: samples, faces, what an anonymizer receives and returns.

Images are RGB ``uint8`` arrays of shape (H, W, 3) everywhere inside deidbench, whatever the file held.
Coordinates are pixels, x to the right, y down; pixel (0, 0) covers [0, 1) x [0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: RGB uint8, H x W x 3.
Image = npt.NDArray[np.uint8]
#: Float32 array.
Floats = npt.NDArray[np.float32]


class Status(StrEnum):
    """What became of an image (or of one face of it) in an anonymizer."""

    OK = "ok"
    #: No face was found, so nothing was anonymised and nothing is released.
    NO_FACE = "no_face"
    #: A face was found but no landmarks, for methods that need them.
    NO_LANDMARKS = "no_landmarks"
    #: The method broke on this image; the reason stands beside it.
    FAILED = "failed"
    #: The output is the input, or nearly.  Set by the suite, never believed from an adapter.
    PASSTHROUGH = "passthrough"
    #: The output is another image of the data set, or nearly.  Set by the suite.
    COPY = "copy"

    def __str__(self) -> str:
        return self.value


class Box(NamedTuple):
    """An axis-parallel box in pixels, ``x0 < x1`` and ``y0 < y1``; may reach beyond the image."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        return max(self.width, 0.0) * max(self.height, 0.0)

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def size(self) -> float:
        """Side of the square with the same area, in pixels: the face size that strengths scale with."""
        return float(np.sqrt(self.area))

    def scaled(self, factor: float) -> Box:
        """The box with both sides multiplied by ``factor`` about its centre."""
        cx, cy = self.centre
        w, h = self.width * factor / 2, self.height * factor / 2
        return Box(cx - w, cy - h, cx + w, cy + h)

    def clipped(self, width: int, height: int) -> Box:
        """The part inside a ``width`` x ``height`` image (may be empty: ``area`` is then 0)."""
        return Box(max(self.x0, 0.0), max(self.y0, 0.0), min(self.x1, float(width)), min(self.y1, float(height)))

    def iou(self, other: Box) -> float:
        """Intersection over union, in [0, 1]."""
        w = min(self.x1, other.x1) - max(self.x0, other.x0)
        h = min(self.y1, other.y1) - max(self.y0, other.y0)
        inter = max(w, 0.0) * max(h, 0.0)
        union = self.area + other.area - inter
        return inter / union if union > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face.

    box: bounding box of the face oval (from landmarks), in pixels of the image.
    score: detector confidence in [0, 1].
    landmarks: the 478 FaceMesh points, float32 (478, 2) in pixels of the image, or None (box only).
    depth: FaceMesh's relative depth of the same points, float32 (478,), in pixels, negative towards the camera.
    """

    box: Box
    score: float = 1.0
    landmarks: Floats | None = None
    depth: Floats | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a data set, not yet loaded.

    id: unique within the data set, stable between runs and machines (a relative path as a rule).
    sha256: of the file's bytes.
    role: split it belongs to, e.g. ``evaluate`` or ``attacker_train``; persons never cross roles.
    emotion: class name or None.  attributes: name -> 0/1.  groups: e.g. ``{"sex": "female"}``.
    box: the face that the data set means, where a frame may hold several.
    """

    id: str
    path: Path
    subject_id: str
    sha256: str
    role: str = "evaluate"
    emotion: str | None = None
    attributes: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Item:
    """What an anonymizer receives: one image, the faces found in it (None: not looked for), its own seed."""

    id: str
    image: Image
    faces: tuple[Face, ...] | None = None
    seed: int = 0
    subject_id: str | None = None


@dataclass(frozen=True)
class FaceResult:
    """What became of one face: its status and the box that was worked on (pixels of the *output* image)."""

    status: Status
    box: Box | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Anonymized:
    """What an anonymizer returns for one item.

    image: RGB uint8, H x W x 3, or None where nothing may be released (``no_face``, ``failed``).
    faces: one entry per face that was handled.  reason: why, for anything but ``ok``.
    crops: one picture per face, in the order of ``faces``, of methods whose output is the face alone; ``image`` is then the
    largest face's.
    """

    id: str
    status: Status
    image: Image | None
    faces: tuple[FaceResult, ...] = ()
    reason: str = ""
    crops: tuple[Image, ...] = ()

    @classmethod
    def failed(cls, id: str, reason: str) -> Anonymized:
        return cls(id=id, status=Status.FAILED, image=None, reason=reason)

    @classmethod
    def no_face(cls, id: str, reason: str = "no face found; image withheld") -> Anonymized:
        return cls(id=id, status=Status.NO_FACE, image=None, reason=reason)


@dataclass(frozen=True)
class CropSpec:
    """How a model wants its face cut out: a similarity transform that takes named landmarks to a template.

    points: names out of :data:`deidbench.faces.POINTS` (each an average of FaceMesh points).
    template: one (x, y) per point, as fractions of the crop's side, in [0, 1] for points inside it.
    size: side of the square crop in pixels.
    """

    points: tuple[str, ...]
    template: tuple[tuple[float, float], ...]
    size: int

    def __post_init__(self) -> None:
        if len(self.points) != len(self.template) or len(self.points) < 2:
            raise ValueError("a CropSpec needs at least two points and as many template positions")
