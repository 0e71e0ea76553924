"""The way of a batch of images through the methods: decode, find, anonymise, find the face again, embed, measure, store.

An image is decoded once for all methods of a task, by threads that run a few images ahead of who needs them and wait when they are
that far ahead; outputs are encoded by the same threads while faces are looked for and embedded.  What a method gave is written in one
transaction before the next method begins.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from deidbench.adapter_calls import embed_in_parts, run_adapter
from deidbench.errors import DeidbenchError, InputError
from deidbench.faces import align, alignment, moved, pack_faces, subject_face, unpack_faces
from deidbench.pipeline import (
    CLEAR,
    Keys,
    Outcome,
    Output,
    Task,
    Worker,
    aligned_crop,
    fallback_box,
    load_sample,
    middle,
    passthrough,
    pixels_sha256,
    published_boxes,
    resized,
    thumbnail,
)
from deidbench.types import Box, Face, Image, Item, Sample, Status

if TYPE_CHECKING:
    from deidbench.cache import Key

#: How many images are decoded ahead of who needs them.
AHEAD = 4


def run_task(worker: Worker, task: Task) -> Outcome:
    """What the store lacks of a task.  Each method's artefacts are there, all of them or none, before the next method begins."""
    outcome = Outcome()
    before = worker.store.damaged
    clear = _Clear(worker, task.samples, outcome)
    samples = clear.readable(task.samples)
    for method in task.methods:
        _Batch(worker, task, method, clear, outcome).run(samples)
    outcome.damaged = worker.store.damaged - before
    return outcome


def _read(sample: Sample) -> tuple[Image, float]:
    """The pixels, and the seconds that it took."""
    start = time.perf_counter()
    return load_sample(sample), time.perf_counter() - start


def _encoded(image: Image) -> tuple[bytes, float]:
    """An output as it is stored, and the seconds that it took."""
    from deidbench.images import encode_png

    start = time.perf_counter()
    return encode_png(image), time.perf_counter() - start


class _Clear:
    """What all methods of a task begin with: its images as they are, and the faces in them."""

    def __init__(self, worker: Worker, samples: Sequence[Sample], outcome: Outcome) -> None:
        self.worker, self.plan, self.outcome = worker, worker.plan, outcome
        self.keys = {s.id: Keys(worker.plan, worker.fingerprints, CLEAR, s) for s in samples}
        #: Of faces that were found, until somebody stores them.
        self.new: dict[str, bytes] = {}
        self._frames: dict[str, Image] = {}
        self._frame_faces: dict[str, list[Face]] = {}
        self._cut: dict[str, Image] = {}
        self._faces: dict[str, list[Face]] = {}
        self._coming: deque[Sample] = deque()
        self._decoding: dict[str, Future[tuple[Image, float]]] = {}

    def readable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those whose faces are known already (so they were read before) or that can be read now."""
        known = self.worker.store.present(self.keys[s.id].clear_faces for s in samples)
        unknown = [s for s in samples if self.keys[s.id].clear_faces not in known]
        self.expect(unknown)
        for s in unknown:
            try:
                self.image(s)
                self.faces([s])  # while the next ones are being decoded
            except InputError as error:
                self.outcome.unreadable[s.id] = str(error)
        return [s for s in samples if s.id not in self.outcome.unreadable]

    def expect(self, samples: Sequence[Sample]) -> None:
        """These images will be asked for soon, in this order."""
        self._coming.extend(s for s in samples if s.id not in self._frames and s.id not in self._decoding)
        self._ahead()

    def _ahead(self) -> None:
        while self._coming and len(self._decoding) < AHEAD:
            sample = self._coming.popleft()
            if sample.id not in self._frames and sample.id not in self._decoding:
                self._decoding[sample.id] = self.worker.hands.submit(_read, sample)

    def frame(self, sample: Sample) -> Image:
        """The image as the data set has it."""
        if sample.id not in self._frames:
            waiting = self._decoding.pop(sample.id, None)
            try:
                self._frames[sample.id], seconds = _read(sample) if waiting is None else waiting.result()
            finally:
                self._ahead()
            self.outcome.seconds["decode"] += seconds
        return self._frames[sample.id]

    def image(self, sample: Sample) -> Image:
        """What is anonymised: the frame, or in the crop-level protocol its subject's aligned face."""
        if self.plan.level == "frame":
            return self.frame(sample)
        if sample.id not in self._cut:
            frame, faces = self.frame(sample), self.frame_faces([sample])[sample.id]
            with _timed(self.outcome, "align"):
                self._cut[sample.id] = self.plan.cut(frame, faces, sample)
        return self._cut[sample.id]

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

    def faces(self, samples: Sequence[Sample]) -> dict[str, list[Face]]:
        """All faces of what is anonymised; the one of an aligned crop is where its alignment put it."""
        if self.plan.level == "frame":
            return self.frame_faces(samples)
        if missing := [s for s in samples if s.id not in self._faces]:
            stored = self.worker.store.get_many(self.keys[s.id].clear_faces for s in missing)
            for s in missing:
                k = self.keys[s.id].clear_faces
                if k in stored:
                    self._faces[s.id] = unpack_faces(stored[k])
                    continue
                face = subject_face(self.frame_faces([s])[s.id], s.box)
                spec = aligned_crop()
                self._faces[s.id] = [] if face is None else [moved(face, alignment(face, spec))]
                self.new[k] = pack_faces(self._faces[s.id], (spec.size, spec.size))
        return self._faces


class _Batch:
    """One method on the images of a task: computes what is missing and stores it."""

    def __init__(self, worker: Worker, task: Task, method: int, clear: _Clear, outcome: Outcome) -> None:
        self.worker, self.task, self.plan = worker, task, worker.plan
        self.method, self.clear, self.outcome = method, clear, outcome
        self.new: dict[str, bytes] = {}
        self.keys = (
            clear.keys
            if method == CLEAR
            else {s.id: Keys(worker.plan, worker.fingerprints, method, s, task.evaluated) for s in task.samples}
        )
        self._pictures: dict[str, Image] = {}
        self._encoding: dict[Key, Future[tuple[bytes, float]]] = {}

    def run(self, samples: Sequence[Sample]) -> None:
        if self.method == CLEAR:
            faces = self.clear.faces(samples)
            self.thumbs(samples)
            self.embed([(s, None, faces[s.id]) for s in samples])
        else:
            outputs = self.anonymise(samples)
            released = [s for s in samples if outputs[s.id].released]
            faces = self.acquire(released, outputs)
            self.embed([(s, outputs[s.id], faces[s.id]) for s in released])
            if self.task.evaluated:
                self.measure(released, faces)
        for k, encoding in self._encoding.items():
            self.new[k], seconds = encoding.result()
            self.outcome.seconds["encode"] += seconds
        with _timed(self.outcome, "store"):
            if new := {**self.clear.new, **self.new}:
                self.worker.store.put_many(new)
                self.clear.new.clear()

    # -- images ------------------------------------------------------------------------------------------------
    def thumbs(self, samples: Sequence[Sample]) -> None:
        present = self.worker.store.present(self.keys[s.id].thumb for s in samples)
        for s in samples:
            if self.keys[s.id].thumb not in present:
                self.new[self.keys[s.id].thumb] = thumbnail(self.clear.image(s))

    def picture(self, sample: Sample) -> Image:
        """The method's output for a sample, from this batch or from the store."""
        from deidbench.images import decode_png

        if self.method == CLEAR:
            return self.clear.image(sample)
        if sample.id not in self._pictures:
            data = self.worker.store.get(self.keys[sample.id].picture)
            if data is not None:
                with _timed(self.outcome, "decode"):
                    self._pictures[sample.id] = decode_png(data)
            else:  # damaged, or pruned since: made anew
                self.anonymise([sample])
        if sample.id not in self._pictures:
            raise DeidbenchError(f"the picture of {sample.id} has gone from the store", "run the same command again")
        return self._pictures[sample.id]

    # -- stages ------------------------------------------------------------------------------------------------
    def anonymise(self, samples: Sequence[Sample]) -> dict[str, Output]:
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
        anonymizer = self.worker.ready(self.plan.method(self.method, self.task.evaluated))
        self.clear.expect(todo)
        faces = self.clear.faces(todo)
        items = [
            Item(
                s.id,
                self.clear.image(s),
                tuple(faces[s.id]) if anonymizer.needs_faces else None,
                self.keys[s.id].seed,
                s.subject_id,
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
                self._encoding[k.picture] = self.worker.hands.submit(_encoded, result.image)
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
                found[s.id] = [moved(face, m) for face in self.clear.faces([s])[s.id]]
            elif outputs[s.id].identical:  # the same pixels: the same faces, no need to look again
                found[s.id] = self.clear.faces([s])[s.id]
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
                    shape = output.shape if output is not None and output.shape is not None else self.clear.image(s).shape[:2]
                    typical = self.task.typical if output is not None else middle(self.plan.level)
                    if typical is None:
                        if not published_boxes(output):  # comes when it is known where faces are
                            continue
                        typical = middle(self.plan.level)  # of no consequence
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
            if self.method == CLEAR:
                self.clear.expect([s for _, s, _ in todo])
            pictures = [self.picture(s) for _, s, _ in todo]
            with _timed(self.outcome, "align"):
                crops = [align(picture, face, recognizer.crop) for picture, (_, _, face) in zip(pictures, todo, strict=True)]
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
            todo = [s for s in samples if self.keys[s.id].measure(m) not in present]
            self.clear.expect(todo)
            for s in todo:
                k = self.keys[s.id].measure(m)
                original, output = self.clear.image(s), self.picture(s)
                found = subject_face(faces[s.id], self.plan.box(s))
                if output.shape != original.shape:
                    (h, w), (to_h, to_w) = output.shape[:2], original.shape[:2]
                    output = resized(output, original.shape)
                    if found is not None:
                        found = moved(found, np.array([[to_w / w, 0.0, 0.0], [0.0, to_h / h, 0.0]]))
                face = subject_face(self.clear.faces([s])[s.id], self.plan.box(s))
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
