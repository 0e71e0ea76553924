"""The timing stage of a run: which methods have to be timed, on what, and whether what was timed is what was judged.

Timings are kept in the store, keyed by all that they depend on, and read from there the next time.  How a method is timed is
in :mod:`deidbench.metrics._timed`.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deidbench import evidence
from deidbench.adapter_calls import run_adapter
from deidbench.cache import Key, key
from deidbench.executors import cores, limit_threads
from deidbench.faces import subject_face, unpack_faces
from deidbench.metrics import throughput
from deidbench.metrics._timed import FAILED, Settings, Subject, Timed, Timing, Verdict, measure_methods
from deidbench.pipeline import CLEAR, Keys, aligned_crop, load_sample, pixels_sha256
from deidbench.progress import progress
from deidbench.records import ROWS_VERSION, Row
from deidbench.types import Anonymized, Face, Image, Item, Sample

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.cache import Store
    from deidbench.metrics.base import Protocol
    from deidbench.pipeline import Fingerprints, Output, Plan
    from deidbench.suite import Suite


@dataclass(frozen=True, eq=False)
class Job:
    """What a run hands over.

    outputs: of each method, sample -> what the run found of its output.  fetch: artefacts by key, raising where one has gone.
    workers: processes that judged the outputs.
    """

    suite: Suite
    plan: Plan
    fingerprints: Fingerprints
    samples: Sequence[Sample]
    outputs: Sequence[Mapping[str, Output | None]]
    dataset: str
    protocol: Protocol
    store: Store
    fetch: Callable[[Iterable[str]], dict[str, bytes]]
    workers: int
    quiet: bool = False


def reference(suite: Suite) -> int | None:
    """Number of the method that others are compared with in speed; None where this run has none."""
    named = suite.file.throughput.reference
    found = [i for i, m in enumerate(suite.methods) if (m.label == named if named else not m.control)]
    return found[0] if found else None


def rows(job: Job) -> tuple[list[Row], int]:
    """The rows of all methods, and how many methods were timed just now rather than read from the store."""
    table = job.suite.file.throughput
    if table.images == 0:
        return [], 0
    timed = list(job.samples[: table.images])
    against = reference(job.suite)
    keys = [_key(job, m, timed, against) for m in range(len(job.suite.methods))]
    stored = {k: evidence.unpack(v)[0] for k, v in job.store.get_many(keys).items()}
    todo = [m for m, k in enumerate(keys) if k not in stored]
    if todo:
        for m, found in _measure(job, todo, timed, against).items():
            stored[keys[m]] = found
            if not any(r.reason.startswith(FAILED) for r in found):  # what broke this time may work the next
                job.store.put(keys[m], evidence.pack(found, []))
    said = _otherwise(job)
    found_rows = [row for k in keys for row in stored[k]]
    if said:
        found_rows = [dataclasses.replace(r, note="; ".join(p for p in (r.note, said) if p)) for r in found_rows]
    return found_rows, len(todo)


def _key(job: Job, m: int, samples: Sequence[Sample], against: int | None) -> Key:
    from deidbench.environment import cpu_name, versions

    spec, f = job.suite.methods[m], job.fingerprints.methods
    return key(
        "timing",
        version=throughput.VERSION,
        method=f[m],
        machine=[cpu_name(), cores(), versions()],
        images=[str(Keys(job.plan, job.fingerprints, m, s).source) for s in samples],
        outputs=[o.sha256 if (o := job.outputs[m].get(s.id)) is not None else "" for s in samples],
        settings=job.suite.file.throughput.model_dump(),
        reference=None if against is None or against == m else [f[against], job.suite.methods[against].label],
        label=spec.label,
        schema=ROWS_VERSION,
        packed=evidence.VERSION,
        dataset=job.dataset,
        level=job.protocol.confidence,
    ).by(f[m])


def _measure(job: Job, todo: Sequence[int], samples: Sequence[Sample], against: int | None) -> dict[int, list[Row]]:
    """Times the methods ``todo``, beside the one that they are compared with: ratios are of interleaved repeats."""
    table = job.suite.file.throughput
    threads = cores()
    limit_threads(threads)
    chosen = [*todo] if against is None or against in todo else [against, *todo]
    pictures = _Pictures(job, samples)
    settings = Settings(table.repeats, batch=None, max_seconds=table.max_seconds)
    with progress("throughput", len(chosen) * (1 + table.repeats), quiet=job.quiet) as tick:
        timed = measure_methods(
            [_subject(job, m, samples[: table.end_to_end_images], pictures) for m in chosen],
            settings,
            call=run_adapter,
            loaded=lambda: limit_threads(threads),  # torch may have come in just now
            tick=tick,
        )
    found = {m: Timed(*both) for m, both in zip(chosen, timed, strict=True)}
    return {m: _rows(job, found[m], None if against in (None, m) else found[against]) for m in todo}


def _otherwise(job: Job) -> str:
    """What was other when the outputs were judged: of this run, and so no part of what is stored."""
    if job.plan.threads == cores():
        return ""
    each = f"{job.plan.threads} thread" + ("s" if job.plan.threads > 1 else "")
    return f"judged by {job.workers} processes of {each} each, timed in one process of {cores()}"


def _rows(job: Job, timed: Timed, other: Timed | None) -> list[Row]:
    table = job.suite.file.throughput
    alone, whole = timed
    assert alone is not None, "images to be timed are there"
    found = throughput.rows(alone, job.dataset, job.protocol)
    if other is not None and other.alone is not None:
        found.append(throughput.speedup(*_paired(alone, other.alone), job.dataset, job.protocol))
    found += throughput.memory(alone, job.dataset)
    if whole is not None:
        found += throughput.rows(whole, job.dataset, job.protocol)
        found += throughput.costs(whole, job.dataset, job.protocol, table.price_per_hour, table.currency)
    return found


def _paired(a: Timing, b: Timing) -> tuple[Timing, Timing]:
    """Both with the repeats that they have in common, which are the first ones."""
    n = min(len(a.offline), len(b.offline))
    return dataclasses.replace(a, offline=a.offline[:n]), dataclasses.replace(b, offline=b.offline[:n])


class _Pictures:
    """What methods are given: decoded, faces found."""

    def __init__(self, job: Job, samples: Sequence[Sample]) -> None:
        self.samples = {s.id: s for s in samples}
        keys = [Keys(job.plan, job.fingerprints, CLEAR, s) for s in samples]
        stored = job.fetch(k for each in keys for k in (each.frame_faces, each.clear_faces))
        self.images: dict[str, Image] = {}
        self.faces: dict[str, tuple[Face, ...]] = {}
        for s, k in zip(samples, keys, strict=True):
            frame = load_sample(s)
            self.images[s.id] = (
                frame if job.plan.level == "frame" else job.plan.cut(frame, unpack_faces(stored[k.frame_faces]), s)
            )
            self.faces[s.id] = tuple(unpack_faces(stored[k.clear_faces]))


def _subject(job: Job, m: int, whole: Sequence[Sample], pictures: _Pictures) -> Subject:
    from deidbench.images import encode_png

    spec, original = job.suite.methods[m], job.plan.methods[m]
    anonymizer = _fresh(original)
    items = []
    for s in pictures.samples.values():
        seed = Keys(job.plan, job.fingerprints, m, s).seed
        items.append(
            Item(s.id, pictures.images[s.id], pictures.faces[s.id] if anonymizer.needs_faces else None, seed, s.subject_id)
        )
    blank = np.zeros((1, 1, 3), np.uint8)
    bare = {i.id: dataclasses.replace(i, image=blank, faces=None) for i in items}

    def prepare(item: Item) -> Item:
        return _from_file(job.plan, pictures.samples[item.id], item, anonymizer.needs_faces)

    def finish(result: Anonymized) -> None:
        if result.image is not None:
            encode_png(result.image)

    return Subject(
        spec.label, anonymizer, items, [bare[s.id] for s in whole], prepare, finish,
        lambda given, results: compare(job, m, given, results),
    )  # fmt: skip


def _fresh(method: Anonymizer) -> Anonymizer:
    """A copy without weights, as worker processes get it: what loading takes is seen.  Where that fails, the method itself."""
    try:
        copy: Anonymizer = pickle.loads(pickle.dumps(method))
    except Exception:  # a plug-in that runs in one process only
        return method
    return copy


def _from_file(plan: Plan, sample: Sample, item: Item, needs_faces: bool) -> Item:
    """What a method is given of a file, from its bytes on: decoded, and with the faces where it wants them."""
    from deidbench.images import read_image

    image = read_image(sample.path)
    if plan.level == "frame":
        return dataclasses.replace(item, image=image, faces=tuple(plan.finder.find(image)) if needs_faces else None)
    from deidbench.faces import alignment, moved

    faces = plan.finder.find(image)
    face = subject_face(faces, sample.box)
    inside = () if face is None else (moved(face, alignment(face, aligned_crop())),)
    return dataclasses.replace(item, image=plan.cut(image, faces, sample), faces=inside if needs_faces else None)


def compare(job: Job, m: int, items: Sequence[Item], results: Sequence[Anonymized]) -> Verdict:
    """Whether what is timed released the very pictures that the run judged."""
    others, most = 0, 0
    shape = False
    for item, result in zip(items, results, strict=True):
        judged = job.outputs[m].get(item.id)
        known = "" if judged is None or not judged.released else judged.sha256
        digest = "" if result.image is None else pixels_sha256(result.image)
        if judged is not None and judged.released and not known:  # of a store that did not keep hashes
            known = pixels_sha256(_stored(job, m, item.id))
        if digest == known:
            continue
        others += 1
        if not digest or not known:
            shape = True
            continue
        stored = _stored(job, m, item.id)
        if result.image is None or stored.shape != result.image.shape:
            shape = True
        else:
            most = max(most, int(np.abs(stored.astype(np.int16) - result.image).max()))
    if not others:
        return Verdict(True, "outputs compared with those that were judged: the same")
    far = "" if shape else f", by up to {most} of 255 levels"
    return Verdict(False, f"untrusted: {others} of {len(items)} outputs are not those that were judged{far}")


def _stored(job: Job, m: int, name: str) -> Image:
    from deidbench.images import decode_png

    sample = next(s for s in job.samples if s.id == name)
    k = Keys(job.plan, job.fingerprints, m, sample).picture
    return decode_png(job.fetch([k])[k])
