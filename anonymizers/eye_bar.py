"""The bar over the eyes, as newspapers print it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.regions import (
    FACE_OVAL,
    Area,
    FaceProblem,
    RegionAnonymizer,
    bounds,
    check_colour,
    check_face,
    check_landmarks,
    check_number,
    polygon_mask,
    window_of,
)
from deidbench.faces import AVERAGE_FACE, POINTS
from deidbench.kinds import anonymizers
from deidbench.types import Face, Image, Status

#: Height of the eyes in the tight box of the landmarks, as a share from its top (0.27 to 0.36 on the ORL faces).
EYE_HEIGHT = AVERAGE_FACE["eye_l"][1]


@anonymizers.register("eye-bar")
class EyeBar(RegionAnonymizer):
    """A bar of one colour over both eyes.

    height: of the bar as a fraction of the face size, above 0 up to 2.
    length: of the bar in widths of the face, 0.1 up to 10; 1 reaches from one edge of the face outline to the other.
    colour: R, G, B in 0..255.

    With landmarks the bar lies along the line through the centres of the eyes, and the width is that of the face
    outline along this line.  A face with a box only gets a level bar of the box's width at the share ``EYE_HEIGHT`` of
    the box's height from its top, where the eyes of an upright face are.
    """

    citation = (
        "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (ad hoc methods)"
    )
    licence = "Apache-2.0 (part of deidbench)"
    strength = "height"

    def __init__(self, height: float = 0.25, length: float = 1.0, colour: Sequence[int] = (0, 0, 0)) -> None:
        self.height = height
        self.length = length
        self.colour = colour

    def validate(self) -> None:
        super().validate()
        check_number(self.name, "height", self.height, 0, 2, open_low=True)
        check_number(self.name, "length", self.length, 0.1, 10)
        check_colour(self.name, "colour", self.colour)

    def _area(self, face: Face, width: int, height: int) -> Area:
        check_face(face)
        corners = bar(face, self.height * face.box.size, self.length)
        box = bounds(corners)
        window = window_of(box, width, height, pad=1)
        if window is None:
            raise FaceProblem(Status.FAILED, f"the eyes lie outside the image ({width} x {height})")
        return Area(box, window, polygon_mask(corners, window))

    def _new_pixels(self, image: Image, area: Area, size: float, rng: np.random.Generator) -> Image:
        return np.broadcast_to(np.array(self.colour, np.uint8), (*area.window.shape, 3))


def bar(face: Face, height: float, length: float) -> npt.NDArray[np.float64]:
    """Corners of the bar, float64 (4, 2), in pixels: ``height`` pixels high, ``length`` face widths long."""
    if face.landmarks is None:
        centre = np.array([face.box.centre[0], face.box.y0 + EYE_HEIGHT * face.box.height])
        along, left, right = np.array([1.0, 0.0]), -face.box.width / 2, face.box.width / 2
    else:
        points = check_landmarks(face)
        eyes = np.array([points[list(POINTS[eye])].mean(axis=0) for eye in ("eye_l", "eye_r")])
        centre = eyes.mean(axis=0)
        distance = float(np.hypot(*(eyes[1] - eyes[0])))
        if distance == 0:
            raise FaceProblem(Status.FAILED, "both eyes are at the same place")
        along = (eyes[1] - eyes[0]) / distance
        reach = (points[list(FACE_OVAL)] - centre) @ along
        left, right = float(reach.min()), float(reach.max())
    middle, half = (left + right) / 2, (right - left) / 2 * length
    across = np.array([-along[1], along[0]]) * height / 2
    start, end = centre + (middle - half) * along, centre + (middle + half) * along
    return np.array([start - across, end - across, end + across, start + across])
