"""The landmark image: all that the generator ever sees of a face.

478 FaceMesh points as dots on black: each a filled plus of five pixels with value 224, no mesh edges (Hellmann et al.,
arXiv 2305.02143, and the public configuration of their program).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.faces import N_LANDMARKS

if TYPE_CHECKING:
    import torch

#: Grey level of a dot.
DOT = 224
#: (dy, dx) of the pixels of a dot.
PLUS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


def landmark_images(points: npt.NDArray[np.floating[Any]], side: int, render: int | None = None) -> npt.NDArray[np.uint8]:
    """Landmark images, uint8 (n, side, side), values 0 and 224.

    points: (n, k, 2) x and y as fractions of the crop's side; those outside of [0, 1] (or not finite) are dropped.
    A point lies in pixel ``min(floor(x * side), side - 1)``; its dot is cut off at the border.
    render: the side at which the dots are drawn, a multiple of ``side``; the drawing is then averaged over blocks, so that
    dots keep their distance on a small image (values between 0 and 224 appear, rounded to the nearest level).
    """
    points = np.asarray(points)
    if points.ndim != 3 or points.shape[2] != 2:
        raise ValueError(f"points of shape {points.shape}, expected (n, k, 2)")
    drawn = side if render is None else render
    if side < 1 or drawn % side:
        raise ValueError(f"dots cannot be drawn at {drawn} pixels for an image of {side}: it is no multiple")
    inside = np.isfinite(points).all(axis=2) & (points >= 0).all(axis=2) & (points <= 1).all(axis=2)
    # the product in double precision whatever comes in: the pixel of a point must not depend on the array's type
    at = np.minimum(np.floor(np.where(inside[:, :, None], points, 0).astype(np.float64) * drawn), drawn - 1).astype(np.intp)
    canvas = np.zeros((len(points), drawn + 2, drawn + 2), np.uint8)  # a rim takes what the dots put beyond the border
    n = np.broadcast_to(np.arange(len(points))[:, None], inside.shape)[inside]
    x, y = at[..., 0][inside] + 1, at[..., 1][inside] + 1
    for dy, dx in PLUS:
        canvas[n, y + dy, x + dx] = DOT
    image = canvas[:, 1:-1, 1:-1]
    if drawn == side:
        return np.ascontiguousarray(image)
    block = drawn // side
    # sums of at most block ** 2 * 224; half up, as in cv2's area averaging of integers
    sums = image.reshape(len(points), side, block, side, block).sum(axis=(2, 4), dtype=np.uint32)
    return np.asarray((2 * sums + block**2) // (2 * block**2), np.uint8)


def network_input(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Landmark images uint8 (n, s, s) as the generator wants them: float32 (n, 3, s, s) in [-1, 1] (mean 0.5, std 0.5).

    Pictures in colour, uint8 (n, 3, s, s), keep their channels: the condition of a generator that repaints pictures.
    """
    import torch

    x = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32).div_(127.5).sub_(1.0)
    return x if x.ndim == 4 else x[:, None].expand(-1, 3, -1, -1)


def flipped(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The points of the mirror image (fractions); which point is which does not matter to a drawing of dots."""
    out = points.copy()
    out[..., 0] = 1 - out[..., 0]
    return out


__all__ = ["DOT", "N_LANDMARKS", "PLUS", "flipped", "landmark_images", "network_input"]
