"""The pictures that a run keeps in ``samples/``: a few persons under every method, and each method's worst and best case.

Clear faces are written where the data set's licence lets them be shown, or where the user asked (``--faces``); without
either, outputs are kept but for those that are an input or another image of the data set.  ``--no-faces`` keeps nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.types import Image, Status

if TYPE_CHECKING:
    from deidbench.metrics.base import Table

#: Longest side of the pictures of cases, in pixels: what a figure across a page has a use for.
LONGEST = 512
#: So many persons, with so many images each, tell how well a recogniser knows clear faces apart.
PERSONS, IMAGES = 150, 6
#: Outputs that are an input, or another image of the data set: clear faces.
CLEAR = (Status.PASSTHROUGH.value, Status.COPY.value)

Floats = npt.NDArray[np.float64]


class Scale(NamedTuple):
    """Similarities of clear images: medians over pairs of one person and of two (NaN where there are none), and their d'."""

    same: float
    other: float
    d_prime: float


def scale(clear: Table, recognizer: str) -> Scale:
    """How similar clear images are, from at most PERSONS x IMAGES of them, spread evenly over the persons."""
    of: dict[str, list[int]] = {}
    for i, person in enumerate(clear.subjects):
        of.setdefault(str(person), []).append(i)
    people = list(of.values())
    chosen = np.unique(np.linspace(0, len(people) - 1, min(PERSONS, len(people))).round().astype(int))
    rows = np.array([i for p in chosen for i in people[p][:IMAGES]])
    vectors = clear.embeddings[recognizer][rows].astype(np.float64)
    known = np.isfinite(vectors).all(axis=1)
    vectors, subjects = vectors[known], clear.subjects[rows][known]
    similarity = vectors @ vectors.T
    mates = subjects[:, None] == subjects
    upper = np.triu(np.ones_like(mates), 1)
    same, other = similarity[mates & upper], similarity[~mates & upper]
    if not len(same) or not len(other):
        return Scale(_median(same), _median(other), np.nan)
    spread = np.sqrt((same.var() + other.var()) / 2)
    return Scale(_median(same), _median(other), float((same.mean() - other.mean()) / spread) if spread else np.inf)


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else np.nan


def similarities(clear: Table, table: Table, recognizer: str) -> Floats:
    """Cosine similarity of each clear image and what became of it; NaN where nothing was released."""
    from deidbench.metrics.distance import paired

    a, b = clear.embeddings[recognizer], table.embeddings[recognizer]
    return paired(a, b) if a.shape == b.shape else np.full(table.n, np.nan)  # a method that released nothing at all


class Case(NamedTuple):
    """An image (its place in the table) and how similar its output is to it; ``why`` where there is none."""

    at: int
    similarity: float
    why: str = ""


def extremes(table: Table, similarity: Floats) -> tuple[Case, Case]:
    """The image hidden worst, of all that were released, and the one hidden best, of those with a face found.

    An output without a face is no better hidden because a recogniser makes nothing of the attacker's fallback crop.
    """
    known = np.isfinite(similarity) & ~table.withheld
    found = known & ~table.fta
    if not known.any():
        none = Case(-1, np.nan, "nothing was released")
        return none, none
    worst = int(np.argmax(np.where(known, similarity, -np.inf)))
    best = int(np.argmin(np.where(found, similarity, np.inf)))
    return (
        Case(worst, float(similarity[worst])),
        Case(best, float(similarity[best])) if found.any() else Case(-1, np.nan, "no face found in any output"),
    )


@dataclass(frozen=True, eq=False)
class Kept:
    """What the run has of one method.  picture: PNG bytes of what was released for an image, None where nothing was."""

    label: str
    slug: str
    control: bool
    table: Table
    picture: Callable[[int], bytes | None] = field(repr=False)


def write(
    folder: Path,
    columns: Sequence[int],
    clear: Table,
    methods: Sequence[Kept],
    original: Callable[[int], Image] | None,
) -> None:
    """Fills an empty ``folder`` (``samples/``): pictures, and ``index.json`` that says what they are.

    columns: indices of the images that are shown under every method.  original: reads the clear image; None where clear
    faces may not be kept.
    """
    from deidbench.images import atomic_write, make_folder

    rows = []
    for m in methods:
        files: list[str | None] = []
        statuses = []
        for j, i in enumerate(columns):
            status = str(m.table.status[i])
            data = None if original is None and status in CLEAR else m.picture(i)
            files.append(None if data is None else _put(folder, f"{m.slug}/{j}.png", data))
            statuses.append(status)
        rows.append({"label": m.label, "slug": m.slug, "files": files, "statuses": statuses})
    index = {
        "faces": original is not None,
        "columns": [str(clear.ids[i]) for i in columns],
        "rows": rows,
        "cases": _cases(folder, clear, methods, original),
    }
    if rows:
        make_folder(folder)
        atomic_write(folder / "index.json", json.dumps(index, indent=1))


def _cases(folder: Path, clear: Table, methods: Sequence[Kept], original: Callable[[int], Image] | None) -> Mapping[str, Any]:
    if original is None:
        return {"why": "clear images are not kept in this run folder"}
    compared = [m for m in methods if not m.control]
    if not compared:
        return {"why": "all methods are controls"}
    scales = {name: scale(clear, name) for name in clear.embeddings}
    # the recogniser that knows clear faces apart best; the suite's first where that cannot be told
    recognizer = max(scales, key=lambda name: np.nan_to_num(scales[name].d_prime, nan=-1.0, posinf=1e9))
    rows = []
    for m in compared:
        worst, best = extremes(m.table, similarities(clear, m.table, recognizer))
        rows.append(
            {
                "label": m.label,
                "slug": m.slug,
                "worst": _case(folder, f"cases/{m.slug}-worst", clear, m, worst, original),
                "best": _case(folder, f"cases/{m.slug}-best", clear, m, best, original),
            }
        )
    said = scales[recognizer]
    return {
        "recognizer": recognizer,
        "n_images": clear.n,
        "same_person": None if np.isnan(said.same) else said.same,
        "two_persons": None if np.isnan(said.other) else said.other,
        "rows": rows,
    }


def _case(
    folder: Path, stem: str, clear: Table, method: Kept, case: Case, original: Callable[[int], Image]
) -> Mapping[str, Any]:
    from deidbench.images import decode_png

    data = None if case.at < 0 else method.picture(case.at)
    if data is None:
        return {"why": case.why or "nothing was released"}
    return {
        "id": str(clear.ids[case.at]),
        "similarity": case.similarity,
        "status": str(method.table.status[case.at]),
        "fta": bool(method.table.fta[case.at]),
        "original": _put(folder, f"{stem}-original.png", _small(original(case.at))),
        "output": _put(folder, f"{stem}-output.png", _small(decode_png(data))),
    }


def _small(image: Image) -> bytes:
    """PNG of an image, scaled down where it is longer than LONGEST."""
    import cv2

    from deidbench.images import encode_png

    h, w = image.shape[:2]
    if max(h, w) > LONGEST:
        by = LONGEST / max(h, w)
        size = (max(round(w * by), 1), max(round(h * by), 1))
        image = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_png(image)


def _put(folder: Path, name: str, data: bytes) -> str:
    from deidbench.images import atomic_write, make_folder

    path = folder / name
    make_folder(path.parent)
    atomic_write(path, data)
    return name
