"""What a run asks of its workers: the plan, tasks and what they leave in the store.

:func:`process` does for a batch of samples and some methods whatever the store does not hold yet (:mod:`deidbench.batch`), and writes
it in one transaction per method.  Artefacts are keyed by what determines them (:class:`Keys`), so a changed parameter computes anew what
depends on it and nothing else, and a killed run loses the batch in flight at most.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.adapter_calls import blamed, take_halvings
from deidbench.cache import Artefacts, Store, key
from deidbench.faces import (
    ALIGN_VERSION,
    AVERAGE_FACE,
    FaceFinder,
    align,
    similarity,
    subject_face,
)
from deidbench.types import Box, CropSpec, Face, FaceResult, Image, Sample, Status

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.metrics.base import Metric
    from deidbench.metrics.models.base import Classifier, Recognizer

#: Part of every key; raise it when reading an image gives other pixels than before.
DECODE_VERSION = "1"
#: Part of the keys of outputs; raise it when the pass-through rule changes.
PASSTHROUGH_VERSION = "2"
#: An output is a pass-through when 99 % of the face's pixels differ by no more than this many of 255 levels (as far as
#: a JPEG copy of decent quality goes) in every channel.
PASSTHROUGH_LEVELS = 12
#: Where the attacker looks in a clear frame without a detected face (fractions of the frame): the middle.
MIDDLE = (0.2, 0.15, 0.8, 0.9)
#: Side of the thumbnails by which copies of other images are looked for, in pixels.
THUMB = 16
#: Threads of a worker for decoding and encoding, at most: pictures come faster than models want them from few.
HANDS = 4
#: Index of the pseudo-method "clear": the images as they are, the gallery of the ignorant attacker.
CLEAR = -1


@dataclass(frozen=True, eq=False)
class Plan:
    """All that a worker needs; picklable, nothing in it is loaded yet.

    recognizers: whatever turns an aligned face into a vector: recognisers first, then the raw pixels, then classifiers.
    seen: how many of them attackers see; images that are not evaluated go through no others (None: all).
    background: the methods for images that are not evaluated, where those are other instances (fitted to another set).
    """

    methods: tuple[Anonymizer, ...]
    recognizers: tuple[Recognizer | Classifier, ...]
    metrics: tuple[Metric, ...]
    finder: FaceFinder
    seed: int
    store: Path
    threads: int
    retry_failed: bool = False
    #: "frame": the whole image is anonymised and the face looked for in the output.  "crop": the clear face is aligned to
    #: 112 pixels first, the crop is anonymised, and its alignment is known to everybody.
    level: str = "frame"
    seen: int | None = None
    background: tuple[Anonymizer, ...] = ()

    def method(self, number: int, evaluated: bool) -> Anonymizer:
        """What anonymises the evaluated images, or those that attackers learn from."""
        return (self.methods if evaluated or not self.background else self.background)[number]

    def box(self, sample: Sample) -> Box | None:
        """The data set's box of the subject, in the picture that is anonymised."""
        return sample.box if self.level == "frame" else None

    def cut(self, frame: Image, faces: Sequence[Face], sample: Sample) -> Image:
        """The subject's face aligned for the crop-level protocol; where none was found, what an attacker would cut out."""
        h, w = frame.shape[:2]
        face = subject_face(faces, sample.box) or Face(fallback_box(None, (h, w), sample.box, MIDDLE), 0.0)
        return align(frame, face, aligned_crop())


@dataclass(frozen=True, eq=False)
class Task:
    """A batch of samples for some methods, by number, one after the other; CLEAR, where it is among them, comes first.

    typical: where faces are in this data set's clear frames (fractions), the fallback of last resort.  None: not known yet; what
    would have to be cut out there is left for another task.
    evaluated: False for images that attackers learn from; nothing is measured on those.
    """

    methods: tuple[int, ...]
    samples: tuple[Sample, ...]
    typical: tuple[float, float, float, float] | None = MIDDLE
    evaluated: bool = True


@dataclass(eq=False)
class Outcome:
    """What a task did: seconds per stage, how many artefacts were computed, which images could not be read.

    damaged: how many artefacts of the store were found damaged, and count as absent.
    halved: how often a batch did not fit into memory and was halved, per part.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    computed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unreadable: dict[str, str] = field(default_factory=dict)
    damaged: int = 0
    halved: dict[str, int] = field(default_factory=dict)


def item_seed(seed: int, stage: str, sample_id: str) -> int:
    """The 63-bit seed of one sample in one stage: depends on nothing else, so neither order nor batches matter."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{stage}|{sample_id}".encode()).digest()[:8], "big") >> 1


class Keys:
    """The keys of one (method, sample) pair's artefacts.  evaluated: False for an image that attackers learn from."""

    def __init__(self, plan: Plan, fingerprints: Fingerprints, method: int, sample: Sample, evaluated: bool = True) -> None:
        self._f = fingerprints
        box = None if sample.box is None else [float(v) for v in sample.box]
        self.frame = self.clear = key("clear", image=sample.sha256, decode=DECODE_VERSION)
        self.frame_faces = self.clear_faces = self._faces(self.frame)
        given = plan.level == "crop"
        if given:
            self.clear = key("crop", faces=self.frame_faces, align=ALIGN_VERSION, box=box)
            self.clear_faces = key("faces of the crop", crop=self.clear)
            box = None
        self._box = box
        self.thumb = key("thumb", source=self.clear, side=THUMB)
        if method == CLEAR:
            self.source, self.seed = self.clear, 0
        else:
            anonymizer = plan.method(method, evaluated)
            self.seed = item_seed(plan.seed, "anonymize", sample.id)
            self.source = key(
                "anonymised",
                clear=self.clear,
                method=(fingerprints.methods if evaluated else fingerprints.background)[method],
                seed=None if anonymizer.deterministic else self.seed,
                faces=fingerprints.finder if anonymizer.needs_faces else None,
                judged=[PASSTHROUGH_VERSION, fingerprints.finder, self._box],
            )
        self.picture = key("picture", source=self.source)
        # Where the data set names a face, all of them are looked for; else the largest is enough.
        if method == CLEAR:
            self.faces = self.clear_faces
        elif given:
            self.faces = key("faces given", source=self.source, faces=self.clear_faces)
        else:
            self.faces = self._faces(self.source, thorough=self._box is not None)

    def _faces(self, source: str, thorough: bool = True) -> str:
        return key("faces", source=source, finder=self._f.finder, thorough=thorough)

    def embedding(self, recognizer: int, fallback: Sequence[float] | None) -> str:
        """``fallback``: the box that is cut out where no face was acquired (pixels), None where one was."""
        return key(
            "embedding",
            source=self.source,
            finder=self._f.finder,
            recognizer=self._f.recognizers[recognizer],
            align=ALIGN_VERSION,
            fallback=None if fallback is None else [float(v) for v in fallback],
            box=self._box,
        )

    def measure(self, metric: int) -> str:
        return key(
            "measure",
            source=self.source,
            faces=self.faces,
            clear=self.clear_faces,
            metric=self._f.metrics[metric],
            box=self._box,
        )


class Fingerprints:
    """Fingerprints of a plan's parts, each computed once per process (they may hash weight files)."""

    def __init__(self, plan: Plan) -> None:
        self.methods = tuple(m.fingerprint for m in plan.methods)
        self.background = tuple(m.fingerprint for m in plan.background) or self.methods
        self.recognizers = tuple(r.fingerprint for r in plan.recognizers)
        self.metrics = tuple(json.dumps([m.name, m.version, m.params()], sort_keys=True) for m in plan.metrics)
        self.finder = plan.finder.fingerprint


@dataclass(frozen=True, eq=False)
class Output:
    """What is known of a method's output for one sample without its pixels (the stored ``anonymised`` artefact)."""

    status: Status
    adapter_status: Status
    reason: str
    shape: tuple[int, int] | None
    faces: tuple[FaceResult, ...]
    identical: bool = False
    thumb: bytes = b""
    #: Of the output's pixels and shape; "" where nothing was released, or of an older store.
    sha256: str = ""

    @property
    def released(self) -> bool:
        return self.shape is not None

    def pack(self) -> bytes:
        faces = [
            {"status": f.status, "box": None if f.box is None else [float(v) for v in f.box], "reason": f.reason}
            for f in self.faces
        ]
        record = {
            "status": self.status, "adapter_status": self.adapter_status, "reason": self.reason, "shape": self.shape,
            "faces": faces, "identical": self.identical, "thumb": self.thumb.hex(), "sha256": self.sha256,
        }  # fmt: skip
        return json.dumps(record).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Output:
        r = json.loads(data)
        faces = tuple(
            FaceResult(Status(f["status"]), None if f["box"] is None else Box(*f["box"]), f["reason"]) for f in r["faces"]
        )
        shape = None if r["shape"] is None else (r["shape"][0], r["shape"][1])
        thumb = bytes.fromhex(r["thumb"])
        digest = r.get("sha256", "")
        return cls(Status(r["status"]), Status(r["adapter_status"]), r["reason"], shape, faces, r["identical"], thumb, digest)


def published_boxes(output: Output | None) -> list[Box]:
    """Where the anonymizer says that it worked."""
    return [f.box for f in output.faces if f.box is not None and f.box.area > 0] if output else []


def fallback_box(output: Output | None, shape: tuple[int, int], hint: Box | None, typical: Sequence[float]) -> Box:
    """What the attacker cuts out where no face was acquired: the box that the anonymizer published, else a fixed crop.

    shape: (H, W) of the output.  hint: the data set's box of the subject, to choose among several published ones.
    typical: fractions of the frame.
    """
    if published := published_boxes(output):
        chosen = subject_face([Face(b) for b in published], hint) or Face(max(published, key=lambda b: b.area))
        return chosen.box
    h, w = shape
    return Box(typical[0] * w, typical[1] * h, typical[2] * w, typical[3] * h)


def passthrough(original: Image, output: Image, face: Face | None) -> bool:
    """Is the output the input, or nearly?  Judged on the subject's face, on the whole frame where there is none."""
    if output.shape != original.shape:
        output = resized(output, original.shape)
    h, w = original.shape[:2]
    box = face.box.clipped(w, h) if face is not None else Box(0, 0, w, h)
    if box.width < 1 or box.height < 1:
        box = Box(0, 0, w, h)
    rows, columns = slice(int(box.y0), int(np.ceil(box.y1))), slice(int(box.x0), int(np.ceil(box.x1)))
    difference = np.abs(original[rows, columns].astype(np.int16) - output[rows, columns]).max(axis=2)
    return bool(np.percentile(difference, 99) <= PASSTHROUGH_LEVELS)


def pixels_sha256(image: Image) -> str:
    """Hash of a picture's shape and pixels, whatever file they came from."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def thumbnail(image: Image) -> bytes:
    """The whole picture as 16 x 16 means of its pixels: RGB uint8, 768 bytes."""
    import cv2

    return cv2.resize(image, (THUMB, THUMB), interpolation=cv2.INTER_AREA).tobytes()  # type: ignore[no-any-return]


def aligned_crop() -> CropSpec:
    """What the crop-level protocol cuts out: the crop of the attackers on raw pixels."""
    from deidbench.metrics.models.pixels import AlignedPixels

    return AlignedPixels().crop


def middle(level: str) -> tuple[float, float, float, float]:
    """Where a face is in a picture in which none was found, as fractions; an average face's place in an aligned crop."""
    if level == "frame":
        return MIDDLE
    spec = aligned_crop()
    m = similarity(np.array([AVERAGE_FACE[p] for p in spec.points], np.float64), np.array(spec.template, np.float64))
    (x0, y0), (x1, y1) = m[:, 2], m[:, :2] @ (1, 1) + m[:, 2]
    return round(float(x0), 3), round(float(y0), 3), round(float(x1), 3), round(float(y1), 3)


def resized(image: Image, shape: tuple[int, ...]) -> Image:
    """``image`` at the height and width of ``shape``."""
    import cv2

    h, w = shape[:2]
    shrink = h * w < image.shape[0] * image.shape[1]
    out: Image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
    return out


def load_sample(sample: Sample) -> Image:
    """The sample's pixels, read once and checked against its SHA-256.  Raises InputError naming the file."""
    from deidbench.images import read_image

    return read_image(sample.path, sha256=sample.sha256)


class Worker:
    """The models of one process and its connection to the store (its own, where none is given)."""

    def __init__(self, plan: Plan, store: Artefacts | None = None) -> None:
        from deidbench.executors import limit_threads

        limit_threads(plan.threads)
        self.plan, self.fingerprints = plan, Fingerprints(plan)
        self.store: Artefacts = Store(plan.store) if store is None else store
        self._loaded: set[int] = set()
        #: Threads that decode and encode pictures while others compute.
        self.hands = ThreadPoolExecutor(min(HANDS, plan.threads), "pictures")

    def ready(self, part: Any) -> Any:
        """``part`` with its weights read (once per process)."""
        if id(part) not in self._loaded:
            from deidbench.executors import limit_threads

            with blamed(part.name):
                part.load()
            limit_threads(self.plan.threads)  # torch may have come in just now
            self._loaded.add(id(part))
        return part

    def process(self, task: Task) -> Outcome:
        from deidbench.batch import run_task

        with blamed("a worker"):
            outcome = run_task(self, task)
        outcome.halved = take_halvings()
        return outcome

    def close(self) -> None:
        self.hands.shutdown(wait=True, cancel_futures=True)
        self.store.close()


_worker: Worker | None = None


def initialise(plan: Plan, store: Artefacts | None = None) -> None:
    """Sets up this process (once) to work for ``plan``.  store: what holds the artefacts, where it is not ``plan.store`` itself."""
    import signal

    global _worker
    import multiprocessing

    if multiprocessing.parent_process() is not None:  # Ctrl-C is the parent's to handle
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Worker(plan, store)


def dismiss() -> None:
    """Gives back what :func:`initialise` opened in this process."""
    global _worker
    if _worker is not None:
        _worker.close()
        _worker = None


def process(task: Task) -> Outcome:
    """Runs in a worker after :func:`initialise`."""
    assert _worker is not None, "initialise(plan) comes first"
    return _worker.process(task)


def typical_box(boxes: Sequence[tuple[Box, tuple[int, int]]]) -> tuple[float, float, float, float]:
    """Where faces are in the frames of a data set: median over clear images of (box, (H, W)), as fractions.

    Rounded to 1/1000, so that a few images more or less do not change every key.
    """
    if not boxes:
        return MIDDLE
    relative = np.array([(b.x0 / w, b.y0 / h, b.x1 / w, b.y1 / h) for b, (h, w) in boxes])
    x0, y0, x1, y1 = (round(float(v), 3) for v in np.median(relative, axis=0))
    return x0, y0, x1, y1


def unpack_embedding(data: bytes, dtype: type[np.generic] = np.float32) -> npt.NDArray[Any]:
    return np.frombuffer(data, dtype)
