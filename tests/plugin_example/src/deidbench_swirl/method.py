"""The anonymizer: few colours, and a twist."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deidbench.anonymizers.base import Anonymizer
from deidbench.errors import InputError
from deidbench.types import Anonymized, Box, FaceResult, Image, Item, Status


class Swirl(Anonymizer):
    """Each face in a few colours (k-means), twisted about a point near its middle.

    amount: the twist at the middle, in turns, above 0 up to 3; it dies away towards the border of an ellipse around the face.
    colours: how many are left, 2 to 64.  margin: size of the ellipse, as a factor on the face's box, 0.5 to 4.
    The seed of the picture chooses the direction, 75 to 125 % of the amount, and the middle.
    """

    version = "1"
    citation = "an example of a plug-in"
    licence = "Apache-2.0"
    trained_on = ()
    deterministic = False  # the picture depends on item.seed
    needs_faces = True
    strength = "amount"

    def __init__(self, amount: float = 0.5, colours: int = 6, margin: float = 1.4) -> None:
        self.amount = amount
        self.colours = colours
        self.margin = margin

    def validate(self) -> None:
        """Raises InputError for parameters that make no sense, before anything is computed."""
        for name, value, low, high in (("amount", self.amount, 0, 3), ("margin", self.margin, 0.5, 4)):
            if not isinstance(value, int | float) or not low < value <= high:
                raise InputError(f"swirl: {name} = {value!r}", f"{name} is a number above {low} up to {high}")
        if not isinstance(self.colours, int) or not 2 <= self.colours <= 64:
            raise InputError(f"swirl: colours = {self.colours!r}", "colours is a whole number from 2 to 64")

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        return [self._guarded(item) for item in items]

    def _guarded(self, item: Item) -> Anonymized:
        try:
            return self._one(item)
        except Exception as error:  # one bad picture costs itself only
            return Anonymized.failed(item.id, f"{type(error).__name__}: {error}")

    def _one(self, item: Item) -> Anonymized:
        if item.image.dtype != np.uint8 or item.image.ndim != 3 or item.image.size == 0:
            return Anonymized.failed(item.id, f"the picture is {item.image.dtype} {item.image.shape}, not RGB uint8 (H, W, 3)")
        if item.faces is None:
            return Anonymized.failed(item.id, "swirl needs the faces: Item(faces=FaceFinder().find(image))")
        if not item.faces:
            return Anonymized.no_face(item.id)  # never release a picture in which a face may have been missed
        out = item.image.copy()  # the input belongs to others
        height, width = out.shape[:2]
        rng = np.random.default_rng(item.seed)  # the only source of chance
        done = []
        for face in item.faces:
            ellipse = face.box.scaled(self.margin)
            part = ellipse.clipped(width, height)
            if not (part.x0 < part.x1 and part.y0 < part.y1):
                return Anonymized.failed(item.id, "a face lies outside of the picture")
            self._twist(out, ellipse, part, rng)
            done.append(FaceResult(Status.OK, ellipse))
        return Anonymized(item.id, Status.OK, out, tuple(done))

    def _twist(self, out: Image, ellipse: Box, part: Box, rng: np.random.Generator) -> None:
        """Works on the pixels of ``out`` in ``part``, the piece of the ellipse's box that lies in the picture."""
        import cv2  # what is heavy is imported where it is used

        rows = slice(math.floor(part.y0), math.ceil(part.y1))
        columns = slice(math.floor(part.x0), math.ceil(part.x1))
        window = out[rows, columns]
        few = quantised(window, self.colours)

        # Coordinates in which the ellipse is the unit circle, its middle moved by up to a tenth of its size.
        shift = rng.uniform(-0.2, 0.2, 2)
        x = (np.arange(columns.start, columns.stop) + 0.5 - ellipse.centre[0]) / (ellipse.width / 2)
        y = (np.arange(rows.start, rows.stop) + 0.5 - ellipse.centre[1]) / (ellipse.height / 2)
        inside = x[None, :] ** 2 + y[:, None] ** 2
        dx, dy = np.meshgrid(x - shift[0], y - shift[1])
        fade = np.clip(1 - inside, 0, 1) ** 2  # 1 at the middle, 0 with no slope at the border: no seam
        angle = rng.choice((-1.0, 1.0)) * rng.uniform(0.75, 1.25) * self.amount * 2 * np.pi * fade
        from_x = (dx * np.cos(angle) - dy * np.sin(angle) + shift[0]) * ellipse.width / 2 + ellipse.centre[0]
        from_y = (dx * np.sin(angle) + dy * np.cos(angle) + shift[1]) * ellipse.height / 2 + ellipse.centre[1]
        twisted = cv2.remap(
            few,
            (from_x - columns.start - 0.5).astype(np.float32),
            (from_y - rows.start - 0.5).astype(np.float32),
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REFLECT,
        )
        np.copyto(window, twisted, where=(inside < 1)[:, :, None])


def quantised(image: Image, colours: int) -> Image:
    """``image`` in its ``colours`` k-means colours.

    Lloyd's algorithm from quantiles of brightness, ten rounds: no chance in it.  (OpenCV's kmeans draws from a global generator.)
    """
    pixels = image.reshape(-1, 3).astype(np.float32)
    sample = pixels[:: max(1, len(pixels) // 4096)]
    ordered = sample[np.argsort(sample.sum(axis=1), kind="stable")]
    centres = ordered[((np.arange(colours) + 0.5) * len(ordered) / colours).astype(int)]
    for _ in range(10):
        nearest = _nearest(sample, centres)
        for k in range(colours):
            if (nearest == k).any():
                centres[k] = sample[nearest == k].mean(axis=0)
    few = np.rint(centres).astype(np.uint8)[_nearest(pixels, centres)]
    return np.ascontiguousarray(few.reshape(image.shape))


def _nearest(pixels: npt.NDArray[np.float32], centres: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Index of the nearest centre of each pixel, (n,)."""
    distances = np.stack([((pixels - centre) ** 2).sum(axis=1) for centre in centres])
    return np.asarray(distances.argmin(axis=0))
