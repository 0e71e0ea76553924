"""The way of one image through a run: anonymise, find the face again, embed, measure.

:func:`process` does for one method and one batch of samples whatever the store does not hold yet, and writes it in one
transaction.  Artefacts are keyed by what determines them (:func:`keys_for`), so a changed parameter computes anew what
depends on it and nothing else, and a killed run loses the batch in flight at most.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.adapter_calls import embed_in_parts, run_adapter
from deidbench.cache import Artefacts, Store, key
from deidbench.errors import DeidbenchError, InputError
from deidbench.faces import (
    ALIGN_VERSION,
    AVERAGE_FACE,
    FaceFinder,
    align,
    alignment,
    moved,
    pack_faces,
    similarity,
    subject_face,
    unpack_faces,
)
from deidbench.types import Box, CropSpec, Face, FaceResult, Image, Item, Sample, Status

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
    """A batch of samples for method number ``method`` (or CLEAR).

    typical: where faces are in this data set's clear frames (fractions), the fallback of last resort.
    evaluated: False for images that attackers learn from; nothing is measured on those.
    """

    method: int
    samples: tuple[Sample, ...]
    typical: tuple[float, float, float, float] = MIDDLE
    evaluated: bool = True


@dataclass(eq=False)
class Outcome:
    """What a task did: seconds per stage, how many artefacts were computed, which images could not be read.

    damaged: how many artefacts of the store were found damaged, and count as absent.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    computed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unreadable: dict[str, str] = field(default_factory=dict)
    damaged: int = 0


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


def fallback_box(output: Output | None, shape: tuple[int, int], hint: Box | None, typical: Sequence[float]) -> Box:
    """What the attacker cuts out where no face was acquired: the box that the anonymizer published, else a fixed crop.

    shape: (H, W) of the output.  hint: the data set's box of the subject, to choose among several published ones.
    typical: fractions of the frame.
    """
    published = [f.box for f in output.faces if f.box is not None and f.box.area > 0] if output else []
    if published:
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

    def ready(self, part: Any) -> Any:
        """``part`` with its weights read (once per process)."""
        if id(part) not in self._loaded:
            from deidbench.executors import limit_threads

            part.load()
            limit_threads(self.plan.threads)  # torch may have come in just now
            self._loaded.add(id(part))
        return part

    def process(self, task: Task) -> Outcome:
        return _Batch(self, task).run()


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
        _worker.store.close()
        _worker = None


def process(task: Task) -> Outcome:
    """Runs in a worker after :func:`initialise`."""
    assert _worker is not None, "initialise(plan) comes first"
    return _worker.process(task)


class _Batch:
    """One task: computes what is missing and stores it."""

    def __init__(self, worker: Worker, task: Task) -> None:
        self.worker, self.task, self.plan = worker, task, worker.plan
        self.outcome = Outcome()
        self.new: dict[str, bytes] = {}
        self.keys = {s.id: Keys(worker.plan, worker.fingerprints, task.method, s, task.evaluated) for s in task.samples}
        self._frames: dict[str, Image] = {}
        self._frame_faces: dict[str, list[Face]] = {}
        self._clear: dict[str, Image] = {}
        self._pictures: dict[str, Image] = {}
        self._clear_faces: dict[str, list[Face]] = {}

    def run(self) -> Outcome:
        before = self.worker.store.damaged
        samples = self.readable(self.task.samples)
        if self.task.method == CLEAR:
            faces = self.clear_faces(samples)
            self.thumbs(samples)
            self.embed([(s, None, faces[s.id]) for s in samples])
        else:
            outputs = self.anonymise(samples)
            released = [s for s in samples if outputs[s.id].released]
            faces = self.acquire(released, outputs)
            self.embed([(s, outputs[s.id], faces[s.id]) for s in released])
            if self.task.evaluated:
                self.measure(released, faces)
        with _timed(self.outcome, "store"):
            if self.new:
                self.worker.store.put_many(self.new)
        self.outcome.damaged = self.worker.store.damaged - before
        return self.outcome

    # -- images ------------------------------------------------------------------------------------------------
    def readable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those whose faces are known already (so they were read before) or that can be read now."""
        known = self.worker.store.present(self.keys[s.id].clear_faces for s in samples)
        good = []
        for s in samples:
            if self.keys[s.id].clear_faces not in known:
                try:
                    self.clear(s)
                except InputError as error:
                    self.outcome.unreadable[s.id] = str(error)
                    continue
            good.append(s)
        return good

    def frame(self, sample: Sample) -> Image:
        """The image as the data set has it."""
        if sample.id not in self._frames:
            with _timed(self.outcome, "decode"):
                self._frames[sample.id] = load_sample(sample)
        return self._frames[sample.id]

    def clear(self, sample: Sample) -> Image:
        """What is anonymised: the frame, or in the crop-level protocol its subject's aligned face."""
        if self.plan.level == "frame":
            return self.frame(sample)
        if sample.id not in self._clear:
            frame, faces = self.frame(sample), self.frame_faces([sample])[sample.id]
            with _timed(self.outcome, "align"):
                self._clear[sample.id] = self.plan.cut(frame, faces, sample)
        return self._clear[sample.id]

    def thumbs(self, samples: Sequence[Sample]) -> None:
        present = self.worker.store.present(self.keys[s.id].thumb for s in samples)
        for s in samples:
            if self.keys[s.id].thumb not in present:
                self.new[self.keys[s.id].thumb] = thumbnail(self.clear(s))

    def picture(self, sample: Sample) -> Image:
        """The method's output for a sample, from this batch or from the store."""
        from deidbench.images import decode_png

        if self.task.method == CLEAR:
            return self.clear(sample)
        if sample.id not in self._pictures:
            data = self.worker.store.get(self.keys[sample.id].picture)
            if data is not None:
                self._pictures[sample.id] = decode_png(data)
            else:  # damaged, or pruned since: made anew
                self.anonymise([sample])
        if sample.id not in self._pictures:
            raise DeidbenchError(f"the picture of {sample.id} has gone from the store", "run the same command again")
        return self._pictures[sample.id]

    # -- stages ------------------------------------------------------------------------------------------------
    def frame_faces(self, samples: Sequence[Sample]) -> dict[str, list[Face]]:
        """All faces of the images as the data set has them."""
        if missing := [s for s in samples if s.id not in self._frame_faces]:
            stored = self.worker.store.get_many(self.keys[s.id].frame_faces for s in missing)
            for s in missing:
                k = self.keys[s.id].frame_faces
                if k in stored:
                    self._frame_faces[s.id] = unpack_faces(stored[k])
                    continue
                image = self.frame(s)
                with _timed(self.outcome, "detect"):
                    self._frame_faces[s.id] = self.plan.finder.find(image)
                self.outcome.computed["detect"] += 1
                self.new[k] = pack_faces(self._frame_faces[s.id], image.shape)
        return self._frame_faces

    def clear_faces(self, samples: Sequence[Sample]) -> dict[str, list[Face]]:
        """All faces of what is anonymised; the one of an aligned crop is where its alignment put it."""
        if self.plan.level == "frame":
            return self.frame_faces(samples)
        if missing := [s for s in samples if s.id not in self._clear_faces]:
            stored = self.worker.store.get_many(self.keys[s.id].clear_faces for s in missing)
            for s in missing:
                k = self.keys[s.id].clear_faces
                if k in stored:
                    self._clear_faces[s.id] = unpack_faces(stored[k])
                    continue
                face = subject_face(self.frame_faces([s])[s.id], s.box)
                spec = aligned_crop()
                self._clear_faces[s.id] = [] if face is None else [moved(face, alignment(face, spec))]
                self.new[k] = pack_faces(self._clear_faces[s.id], (spec.size, spec.size))
        return self._clear_faces

    def anonymise(self, samples: Sequence[Sample]) -> dict[str, Output]:
        from deidbench.images import encode_png

        wanted = [self.keys[s.id].source for s in samples]
        stored = {k: Output.unpack(v) for k, v in self.worker.store.get_many(wanted).items()}
        pictures = self.worker.store.present(self.keys[s.id].picture for s in samples)
        outputs: dict[str, Output] = {}
        todo = []
        for s in samples:
            k = self.keys[s.id]
            output = stored.get(k.source)
            again = output is not None and self.plan.retry_failed and output.adapter_status is Status.FAILED
            if output is None or again or (output.released and k.picture not in pictures):
                todo.append(s)
            else:
                outputs[s.id] = output
        if not todo:
            return outputs
        anonymizer = self.worker.ready(self.plan.method(self.task.method, self.task.evaluated))
        faces = self.clear_faces(todo)
        items = [
            Item(
                s.id, self.clear(s), tuple(faces[s.id]) if anonymizer.needs_faces else None, self.keys[s.id].seed, s.subject_id
            )
            for s in todo
        ]
        with _timed(self.outcome, "anonymize"):
            results = run_adapter(anonymizer, items)
        self.outcome.computed["anonymize"] += len(items)
        for s, item, result in zip(todo, items, results, strict=True):
            status, identical = result.status, False
            if result.image is not None:
                identical = result.image.shape == item.image.shape and bool((result.image == item.image).all())
                if identical or passthrough(item.image, result.image, subject_face(faces[s.id], self.plan.box(s))):
                    status = Status.PASSTHROUGH
            shape = None if result.image is None else (result.image.shape[0], result.image.shape[1])
            thumb = b"" if result.image is None else thumbnail(result.image)
            digest = "" if result.image is None else pixels_sha256(result.image)
            output = Output(status, result.status, result.reason, shape, result.faces, identical, thumb, digest)
            outputs[s.id] = output
            k = self.keys[s.id]
            self.new[k.source] = output.pack()
            if result.image is not None:
                self._pictures[s.id] = result.image
                with _timed(self.outcome, "store"):
                    self.new[k.picture] = encode_png(result.image)
        return outputs

    def acquire(self, samples: Sequence[Sample], outputs: Mapping[str, Output]) -> dict[str, list[Face]]:
        """Faces found on the output itself, never with the original's landmarks (but in the crop-level protocol)."""
        stored = self.worker.store.get_many(self.keys[s.id].faces for s in samples)
        found: dict[str, list[Face]] = {}
        seen: dict[tuple[tuple[int, ...], bytes], list[Face]] = {}
        for s in samples:
            k = self.keys[s.id].faces
            if k in stored:
                found[s.id] = unpack_faces(stored[k])
                continue
            shape = outputs[s.id].shape
            assert shape is not None, "only released outputs are searched"
            if self.plan.level == "crop":
                side = aligned_crop().size
                m = np.array([[shape[1] / side, 0.0, 0.0], [0.0, shape[0] / side, 0.0]])
                found[s.id] = [moved(face, m) for face in self.clear_faces([s])[s.id]]
            elif outputs[s.id].identical:  # the same pixels: the same faces, no need to look again
                found[s.id] = self.clear_faces([s])[s.id]
            else:
                image = self.picture(s)
                same = (image.shape, image.tobytes())  # black frames, for one, are searched once
                if same not in seen:
                    with _timed(self.outcome, "detect"):
                        seen[same] = self.plan.finder.find(image, thorough=self.plan.box(s) is not None)
                found[s.id] = seen[same]
                self.outcome.computed["detect"] += 1
            self.new[k] = pack_faces(found[s.id], shape)
        return found

    def embed(self, rows: Sequence[tuple[Sample, Output | None, list[Face]]]) -> None:
        for r, recognizer in enumerate(self.plan.recognizers[: None if self.task.evaluated else self.plan.seen]):
            todo: list[tuple[str, Sample, Face]] = []
            copies: list[tuple[str, str]] = []
            wanted = []
            for s, output, faces in rows:
                face = subject_face(faces, self.plan.box(s))
                box: Box | None = None
                if face is None:
                    shape = output.shape if output is not None and output.shape is not None else self.clear(s).shape[:2]
                    typical = self.task.typical if output is not None else middle(self.plan.level)
                    box = fallback_box(output, (shape[0], shape[1]), self.plan.box(s), typical)
                wanted.append((self.keys[s.id].embedding(r, box), s, output, face or Face(box or Box(0, 0, 1, 1)), box))
            present = self.worker.store.present(k for k, *_ in wanted)
            for k, s, output, face, box in wanted:
                if k in present:
                    continue
                if output is not None and output.identical and box is None:
                    copies.append((k, Keys(self.plan, self.worker.fingerprints, CLEAR, s).embedding(r, None)))
                    if copies[-1][1] in self.new or self.worker.store.present([copies[-1][1]]):
                        continue
                    copies.pop()
                todo.append((k, s, face))
            if copies:
                sources = self.worker.store.get_many(c for _, c in copies)
                for k, c in copies:
                    if (data := sources.get(c, self.new.get(c))) is not None:
                        self.new[k] = data
            if not todo:
                continue
            self.worker.ready(recognizer)
            with _timed(self.outcome, "align"):
                crops = [align(self.picture(s), face, recognizer.crop) for _, s, face in todo]
            # Equal crops (black frames, for one) are embedded once: quicker, and their scores tie exactly.
            first: dict[bytes, int] = {}
            where = [first.setdefault(crop.tobytes(), len(first)) for crop in crops]
            distinct = [crops[where.index(i)] for i in range(len(first))]
            with _timed(self.outcome, f"embed {recognizer.name}"):
                embeddings = embed_in_parts(recognizer, distinct)
            if embeddings.shape[0] != len(distinct) or embeddings.dtype != recognizer.dtype:
                raise DeidbenchError(
                    f"recogniser {recognizer.name!r} returned {embeddings.shape} {embeddings.dtype} for {len(distinct)} faces",
                    f"it must return {np.dtype(recognizer.dtype)} (n, d)",
                )
            self.outcome.computed["embed"] += len(todo)
            for (k, _, _), i in zip(todo, where, strict=True):
                self.new[k] = np.ascontiguousarray(embeddings[i]).tobytes()

    def measure(self, samples: Sequence[Sample], faces: Mapping[str, Sequence[Face]]) -> None:
        for m, metric in enumerate(self.plan.metrics):
            if not metric.measures:
                continue
            present = self.worker.store.present(self.keys[s.id].measure(m) for s in samples)
            for s in samples:
                k = self.keys[s.id].measure(m)
                if k in present:
                    continue
                original, output = self.clear(s), self.picture(s)
                found = subject_face(faces[s.id], self.plan.box(s))
                if output.shape != original.shape:
                    (h, w), (to_h, to_w) = output.shape[:2], original.shape[:2]
                    output = resized(output, original.shape)
                    if found is not None:
                        found = moved(found, np.array([[to_w / w, 0.0, 0.0], [0.0, to_h / h, 0.0]]))
                face = subject_face(self.clear_faces([s])[s.id], self.plan.box(s))
                with _timed(self.outcome, f"measure {metric.name}"):
                    values = dict(metric.measure(original, output, face, found))
                self.outcome.computed["measure"] += 1
                if set(values) != set(metric.measures):
                    raise DeidbenchError(
                        f"metric {metric.name!r} measured {sorted(values)}, it declares {sorted(metric.measures)}",
                        "mend the metric",
                    )
                self.new[k] = json.dumps({name: float(v) for name, v in values.items()}).encode()


class _timed:
    """Adds the seconds of a block to an outcome's stage."""

    def __init__(self, outcome: Outcome, stage: str) -> None:
        self.outcome, self.stage = outcome, stage

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.outcome.seconds[self.stage] += time.perf_counter() - self.start


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
