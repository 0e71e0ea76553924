"""What the contract checks try an anonymizer on: real faces with their landmarks, and scenes put together from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deidbench.errors import InputError
from deidbench.types import Box, Face, Image, Item, Sample

if TYPE_CHECKING:
    from deidbench.datasets.base import Dataset

#: How many persons, one picture each.
PERSONS = 6
#: Persons of the bundled faces whose pictures are tried: with and without glasses, beards, smiles, dark and light.
BUNDLED = ("s1/1", "s4/2", "s8/3", "s14/5", "s22/9", "s35/10")
#: At most so many persons of a folder are looked at.
LOOKED_AT = 24
#: Room around a face that is cut out for a scene, as a factor on its box.
ROOM = 1.7


@dataclass(frozen=True, eq=False)
class Material:
    """What the checks use.

    source: where it comes from, in words.  items: one picture per person, faces found, each with its seed.
    others: pictures of other persons, one each; with ``items`` they are the set that a method with a gallery is fitted to.
        Empty where no gallery was asked for.
    samples: of all these pictures, by id.
    """

    source: str
    items: tuple[Item, ...]
    others: tuple[Item, ...]
    samples: Mapping[str, Sample]


def bundled(gallery: bool = False) -> Material:
    """The ORL faces that come with the package.  Raises MissingError where they are not installed."""
    from deidbench.datasets.orl import Orl

    return _material("the bundled ORL faces", Orl(), BUNDLED, gallery)


def from_folder(root: Path, gallery: bool = False) -> Material:
    """Faces of a folder (manifest.csv, or one sub-folder per person): the first picture with a face of some persons.

    Raises InputError where there are not two persons with a face that is found.
    """
    from deidbench.datasets.folder import Folder

    return _material(str(root), Folder(root=str(root), limit_persons=LOOKED_AT), (), gallery)


def _material(source: str, dataset: Dataset, wanted: Sequence[str], gallery: bool) -> Material:
    from deidbench.faces import FaceFinder
    from deidbench.images import read_image
    from deidbench.pipeline import item_seed

    finder = FaceFinder()
    samples = {s.id: s for s in dataset.samples()}
    found: dict[str, Item] = {}
    tried: Counter[str] = Counter()
    for sample in [*(samples[i] for i in wanted), *samples.values()]:
        if len(found) == PERSONS and not gallery:
            break
        if sample.subject_id in found or tried[sample.subject_id] == 3:
            continue
        tried[sample.subject_id] += 1
        image = read_image(sample.path)
        if faces := finder.find(image):
            seed = item_seed(0, "contract", sample.id)
            found[sample.subject_id] = Item(sample.id, image, tuple(faces), seed, sample.subject_id)
    items = list(found.values())
    if len(items) < 2:
        raise InputError(
            f"{source}: faces of {len(items)} persons were found in {tried.total()} pictures; the checks need two",
            "name another folder, or leave --data out: the bundled faces are taken then",
        )
    return Material(source, tuple(items[:PERSONS]), tuple(items[PERSONS:]), {i.id: samples[i.id] for i in items})


def fresh(item: Item) -> Item:
    """``item`` with arrays of its own, so that nobody's changes reach the next check."""
    faces = None if item.faces is None else tuple(_own(face) for face in item.faces)
    return replace(item, image=item.image.copy(), faces=faces)


def _own(face: Face) -> Face:
    points = None if face.landmarks is None else face.landmarks.copy()
    depth = None if face.depth is None else face.depth.copy()
    return replace(face, landmarks=points, depth=depth)


def largest(item: Item) -> Face:
    """The face that the picture is about."""
    return max(item.faces or (), key=lambda face: face.box.area)


def cutout(item: Item, height: int) -> tuple[Image, Face]:
    """The largest face with some room around it, ``height`` pixels high, and where the face is in it."""
    import cv2

    from deidbench.faces import moved

    face = largest(item)
    h, w = item.image.shape[:2]
    b = face.box.scaled(ROOM).clipped(w, h)
    x0, y0, x1, y1 = int(b.x0), int(b.y0), max(int(b.x1), int(b.x0) + 1), max(int(b.y1), int(b.y0) + 1)
    part = np.ascontiguousarray(item.image[y0:y1, x0:x1])
    scale = height / part.shape[0]
    size = (max(1, round(part.shape[1] * scale)), height)
    picture: Image = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return picture, moved(face, np.array([[scale, 0.0, -x0 * scale], [0.0, scale, -y0 * scale]]))


def scene(id: str, items: Sequence[Item], height: int, width: int, face_height: int, columns: int = 1) -> Item:
    """A ``height`` x ``width`` frame with a face of every item on it, in rows of ``columns``; the ground is a soft ramp."""
    from deidbench.faces import moved

    ramp = np.linspace(96, 160, width)[None, :] + np.linspace(-20, 20, height)[:, None]
    frame = np.repeat(ramp.astype(np.uint8)[:, :, None], 3, axis=2)
    rows = -(-len(items) // columns)
    faces: list[Face] = []
    for k, item in enumerate(items):
        picture, face = cutout(item, face_height)
        ph, pw = picture.shape[:2]
        y = max(0, round((k // columns + 0.5) * height / rows - ph / 2))
        x = max(0, round((k % columns + 0.5) * width / columns - pw / 2))
        picture = picture[: height - y, : width - x]
        frame[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        faces.append(moved(face, np.array([[1.0, 0.0, x], [0.0, 1.0, y]])))
    return Item(id, frame, tuple(faces), items[0].seed, items[0].subject_id)


def tinted(item: Item) -> Item:
    """The picture in colours as of warm light: red kept, green and blue taken back (the bundled faces are grey)."""
    warm = np.rint(item.image * np.array([1.0, 0.7, 0.4])).astype(np.uint8)
    return replace(item, id=f"{item.id}, in warm light", image=warm)


def specks(id: str, height: int, width: int) -> Item:
    """A picture of noise whose whole frame is said to be a face without landmarks: what is left when a crop goes wrong."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Item(id, image, (Face(Box(0, 0, width, height)),), 1)
