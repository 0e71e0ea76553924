"""From a data set to training pairs: extraction, segmentation, landmarks; in parallel, and kept.

Pairs live in shards of a folder, one safetensors file each with the crops as PNG and the landmarks as fractions of the
crop.  A shard is written whole or not at all, so an interrupted preparation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deidbench.errors import DeidbenchError, InputError
from deidbench.types import Floats, Image, Sample

#: Raise it when the same settings give other pairs.
VERSION = "1"
SHARD = 128
#: A training face is left out where less than this share of its landmarks lies on the segmented person.
LEAST_FACE = 0.9


@dataclass(frozen=True)
class Preparation:
    """What determines the training pairs.

    side: of the crop in pixels.  margin: factor on the face's box.  segmentation: "selfie", "none" or module:function; the
    background (less than half person) becomes black.  landmarks_from: "plain" (what the generator sees later) or
    "segmented" (as the reference does: landmarks of the crop without background).
    """

    side: int = 512
    margin: float = 1.0
    segmentation: str = "selfie"
    landmarks_from: str = "plain"

    def fingerprint(self, data: str, finder: str) -> str:
        what = [VERSION, asdict(self), data, finder]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Training pairs: ``crops`` as PNG bytes, ``points`` float32 (n, 478, 2) fractions, who and which; what was left out."""

    crops: list[bytes]
    points: Floats
    ids: list[str]
    subjects: list[str]
    left_out: dict[str, str]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, i: int) -> Image:
        """Crop ``i``, RGB uint8 (side, side, 3)."""
        from deidbench.images import decode_png

        return decode_png(self.crops[i])


class _Maker:
    """Makes one sample's pair; resident in a worker process."""

    def __init__(self, preparation: Preparation) -> None:
        from deidbench.anonymizers.ganonymization.segmentation import segmenter
        from deidbench.faces import FaceFinder

        self.preparation = preparation
        self.finder = FaceFinder()
        self.segment = segmenter(preparation.segmentation)

    def pair(self, sample: Sample) -> tuple[Image, Floats] | str:
        """The crop and its landmarks, or why there are none."""
        from deidbench.anonymizers.ganonymization.extraction import cut_face, extract
        from deidbench.faces import subject_face
        from deidbench.images import read_image

        p = self.preparation
        try:
            image = read_image(sample.path, sha256=sample.sha256)
        except DeidbenchError as error:
            return error.message
        face = subject_face(self.finder.find(image, thorough=sample.box is not None), sample.box)
        if face is None:
            return "no face found"
        if face.landmarks is None:
            return "no landmarks found"
        try:
            cut = cut_face(face, p.side, p.margin)
        except ValueError as error:
            return str(error)
        crop = extract(image, cut)
        # on the whole frame: the model was made for head and shoulders, and the crop's pixels follow from the frame's
        person = extract_mask(self.segment(image), cut) >= 0.5
        points = cut.to_crop(face.landmarks)
        inside = points[(points >= 0).all(axis=1) & (points < 1).all(axis=1)]
        at = (inside * p.side).astype(np.intp)
        if not len(at) or person[at[:, 1], at[:, 0]].mean() < LEAST_FACE:
            return "segmentation lost the face"
        crop = np.where(person[:, :, None], crop, 0).astype(np.uint8)
        if p.landmarks_from == "segmented":
            again = self.finder.mesh(crop)
            if again is None:
                return "no landmarks found without the background"
            points = again
        return crop, points


def extract_mask(mask: Floats, cut: Any) -> Floats:
    """A mask float32 (H, W) in the crop's place, float32 (side, side); 0 beyond the frame and in the bars."""
    import cv2

    from deidbench.anonymizers.ganonymization.extraction import around

    part, m = around(mask, cut, cut.matrix)
    m[:, 2] += m[:, :2] @ (0.5, 0.5) - 0.5
    out: Floats = cv2.warpAffine(part, m, (cut.side, cut.side), flags=cv2.INTER_LINEAR, borderValue=0)
    left, top, width, height = cut.content
    bars = np.zeros_like(out)
    bars[top : top + height, left : left + width] = 1
    return out * bars


_maker: _Maker | None = None


def _initialise(preparation: Preparation) -> None:
    global _maker
    _maker = _Maker(preparation)


def _shard(task: tuple[Path, tuple[Sample, ...]]) -> int:
    """Makes one shard; returns how many samples it stands for."""
    from safetensors.numpy import save

    from deidbench.images import atomic_write, encode_png

    assert _maker is not None
    path, samples = task
    crops, points, kept = [], [], []
    left_out: dict[str, str] = {}
    for sample in samples:
        made = _maker.pair(sample)
        if isinstance(made, str):
            left_out[sample.id] = made
            continue
        crops.append(encode_png(made[0]))
        points.append(made[1])
        kept.append(sample)
    tensors: dict[str, npt.NDArray[Any]] = {
        "png": np.frombuffer(b"".join(crops), np.uint8) if crops else np.zeros(0, np.uint8),
        "ends": np.cumsum([len(c) for c in crops]).astype(np.int64) if crops else np.zeros(0, np.int64),
        "points": np.stack(points).astype(np.float32) if points else np.zeros((0, 478, 2), np.float32),
    }
    meta = {
        "ids": json.dumps([s.id for s in kept]),
        "subjects": json.dumps([s.subject_id for s in kept]),
        "left_out": json.dumps(left_out),
    }
    atomic_write(path, save(tensors, meta))
    return len(samples)


class Pool(Protocol):
    """Runs a function for every task, e.g. :class:`deidbench.executors.Processes`."""

    def run(self, function: Callable[[Any], int], tasks: Sequence[Any]) -> Iterator[tuple[int, int]]: ...

    def close(self) -> None: ...


def prepare(
    samples: Sequence[Sample],
    data_sha256: str,
    preparation: Preparation,
    cache: Path,
    *,
    make_pool: Callable[[Callable[..., None], tuple[Any, ...]], Pool],
    quiet: bool = False,
) -> Pairs:
    """The training pairs of ``samples``, made by a pool of workers or read from ``cache``.

    data_sha256: hash over the samples (ids and image hashes), part of the folder's name.
    make_pool: a pool from its workers' initialiser and the initialiser's arguments.
    Raises InputError where no sample gives a pair.
    """
    from deidbench.faces import FaceFinder
    from deidbench.images import make_folder
    from deidbench.progress import progress

    folder = cache / preparation.fingerprint(data_sha256, FaceFinder().fingerprint)
    make_folder(folder)
    tasks = [(folder / f"{i // SHARD:05d}.safetensors", tuple(samples[i : i + SHARD])) for i in range(0, len(samples), SHARD)]
    todo = [t for t in tasks if not _whole(t[0])]
    if todo:
        pool = make_pool(_initialise, (preparation,))
        try:
            with progress("prepare faces", sum(len(s) for _, s in todo), quiet=quiet) as tick:
                for _, done in pool.run(_shard, todo):
                    tick(done)
        finally:
            pool.close()
    pairs = _read([path for path, _ in tasks])
    if not len(pairs):
        why = next(iter(pairs.left_out.values()), "there are no images")
        raise InputError(
            f"no image gives a training pair ({why})", "check --data; deidbench run --data FOLDER shows what is found"
        )
    return pairs


def _whole(path: Path) -> bool:
    """Is this shard there and readable?  A damaged one is made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as shard:
            meta = shard.metadata() or {}
            return {"ids", "subjects", "left_out"} <= meta.keys() and {"png", "ends", "points"} <= set(shard.keys())
    except (SafetensorError, OSError):
        return False


def _read(paths: Sequence[Path]) -> Pairs:
    from safetensors import safe_open

    crops: list[bytes] = []
    points: list[npt.NDArray[np.float32]] = []
    ids: list[str] = []
    subjects: list[str] = []
    left_out: dict[str, str] = {}
    for path in paths:
        with safe_open(str(path), framework="np") as shard:
            meta = shard.metadata()
            data = shard.get_tensor("png").tobytes()
            start = 0
            for end in shard.get_tensor("ends").tolist():
                crops.append(data[start:end])
                start = end
            points.append(shard.get_tensor("points"))
        ids += json.loads(meta["ids"])
        subjects += json.loads(meta["subjects"])
        left_out |= json.loads(meta["left_out"])
    return Pairs(crops, np.concatenate(points or [np.zeros((0, 478, 2), np.float32)]), ids, subjects, left_out)
