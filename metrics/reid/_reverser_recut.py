"""Cutting a crop for another recogniser out of a crop, where the picture it came from is gone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deidbench.faces import AVERAGE_FACE, N_LANDMARKS, POINTS, align, named_points, similarity
from deidbench.types import Box, CropSpec, Face, Image

#: Width by height of the box of an average face, the unit in which :data:`deidbench.faces.AVERAGE_FACE` is drawn.  Median over
#: the clear ORL faces; `tests/test_reid_reverser.py` measures it again.
ASPECT = 0.895


def points_within(spec: CropSpec) -> dict[str, tuple[float, float]]:
    """Where an average face has each named point in a crop cut by ``spec``: pixels, name -> (x, y).

    The average face is taken to the crop by the same least-squares similarity as a real one (:func:`deidbench.faces.align`), so
    these are not the template's own positions, which no face of another shape meets.
    """
    face = Face(Box(0.0, 0.0, ASPECT, 1.0))
    m = similarity(named_points(face, spec.points), np.array(spec.template, np.float64) * spec.size)
    names = tuple(AVERAGE_FACE)
    at = named_points(face, names) @ m[:, :2].T + m[:, 2]
    return {name: (float(x), float(y)) for name, (x, y) in zip(names, at, strict=True)}


def recut(crops: npt.NDArray[np.uint8], source: CropSpec, target: CropSpec) -> Image:
    """Crops cut by ``source``, uint8 RGB (n, s, s, 3), as ``target`` would have cut them: (n, t, t, 3).

    Every face is taken for an average one.  What lies beyond the crop is black.  The same spec gives the crops back as they are.
    """
    if source == target:
        return crops
    where = points_within(source)
    landmarks = np.zeros((N_LANDMARKS, 2), np.float32)
    # points that are means of others come first: the others then set what they are means of
    for name in sorted(POINTS, key=lambda n: -len(POINTS[n])):
        landmarks[list(POINTS[name])] = where[name]
    face = Face(Box(0.0, 0.0, float(source.size), float(source.size)), landmarks=landmarks)
    cut = [align(crop, face, target) for crop in crops]
    return np.stack(cut) if cut else np.zeros((0, target.size, target.size, 3), np.uint8)
