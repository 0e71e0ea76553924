"""A run in stages: data, clear images, every method, scores, throughput, record.

Every stage reads the store and writes the store, so running the same command again does what is left and nothing else.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deidbench import __version__, evidence, kinds
from deidbench.cache import Key, Store, Turn, default_folder, key
from deidbench.errors import DeidbenchError, EnvironmentFault, InputError, MissingError
from deidbench.executors import default_workers, make_executor, threads_each
from deidbench.faces import FaceFinder, subject_face, unpack_faces, unpack_shape
from deidbench.lock import Holder, run_lock
from deidbench.pipeline import (
    CLEAR,
    Fingerprints,
    Keys,
    Outcome,
    Output,
    Plan,
    Task,
    dismiss,
    fallback_box,
    initialise,
    item_seed,
    load_sample,
    middle,
    passthrough,
    process,
    typical_box,
    unpack_embedding,
)
from deidbench.private import without_paths
from deidbench.progress import progress
from deidbench.records import ROWS_VERSION, SCHEMA_VERSION, Clock, Curve, Row, frame
from deidbench.shards import by_place
from deidbench.spreadsheet import guard
from deidbench.suite import Suite
from deidbench.types import Face, Image, Item, Sample, Status

if TYPE_CHECKING:
    import pandas as pd

    from deidbench.datasets.base import Dataset
    from deidbench.executors import Executor
    from deidbench.metrics.base import Background, Findings, Metric, PlannedAttack, Protocol, Table
    from deidbench.metrics.models.base import Classifier, Recognizer
    from deidbench.metrics.reid.training import Attempt
    from deidbench.ray_executor import Session
    from deidbench.suite import PartTable


#: Root mean square difference of two thumbnails, in levels of 255, up to which two pictures are looked at closely.
COPY_LEVELS = 8.0
#: Share of outputs that are inputs, or other images of the data set, from which on a method's figures are not published.
REFUSED_SHARE = 0.5
#: Share of the evaluated images, or persons, from which on a classifier that learnt from them is not to be trusted about them.
OVERLAP_SHARE = 0.01
#: How often a run makes anew what it finds damaged in the store, before it gives up.
HEALINGS = 3
#: Tasks that every worker should have at least, so that none waits long for the others at the end.
TASKS = 4
#: What workers do with an image, in the words of the progress bar.
ALL_STEPS = "anonymise, find, embed, measure"


@dataclass(frozen=True)
class Options:
    """How to run; nothing here changes a number.

    workers: processes, 0 for one per core (fewer where memory is short).  batch: images per task.  cache: the store's folder (None: the default).
    faces: keep and show pictures of faces; None: where the data set's licence allows it.
    executor: "local", or "ray" (:mod:`deidbench.ray_executor`); address: of the Ray cluster, None for ``$RAY_ADDRESS`` or one of
    this machine's own.
    """

    workers: int = 0
    batch: int = 16
    cache: Path | None = None
    quiet: bool = False
    retry_failed: bool = False
    faces: bool | None = None
    executor: str = "local"
    address: str | None = None


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, and what a caller should know.

    computed: artefacts computed in this call, per stage (all zero when everything was in the store).
    damaged: artefacts that were found damaged in the store and computed anew.
    changed: files of the data that were changed, or removed, while the run went on: sample -> "changed" or "gone".
    died: an earlier run into the same folder that was killed, if any.
    halved: how often a batch did not fit into memory and was halved, per part; that changes no figure.
    """

    folder: Path
    failed: int
    unreadable: int
    computed: Mapping[str, int]
    damaged: int = 0
    changed: Mapping[str, str] = field(default_factory=dict)
    died: Holder | None = None
    halved: Mapping[str, int] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """What whoever started the run should be told, a line each."""
        out = []
        if self.died is not None:
            out.append(f"note: an earlier run into {self.folder} had died ({self.died}); this one went on from what it left")
        if self.damaged:
            out.append(
                f"note: {self.damaged} artefacts in the store were damaged and were computed anew; deidbench cache verify looks at "
                "the others"
            )
        if self.halved:
            said = ", ".join(f"{name} {times} times" for name, times in self.halved.items())
            out.append(f"note: memory was short, and batches were halved ({said}); a smaller --batch is quicker then")
        if self.changed:
            out.append(
                f"note: files of the data changed while the run went on: {_some(self.changed)}; the figures are of the files as "
                f"{self.folder / 'manifest.csv'} lists them"
            )
        return out


def run_suite(suite: Suite, out: Path, options: Options = Options(), then: Callable[[Path], object] | None = None) -> Result:
    """Runs ``suite`` and leaves the run in ``out`` (see :mod:`deidbench.records`).

    then: called with the finished folder while no other run may write it (a report, for one).
    Raises InputError where another run is writing ``out``, or where the data changed under this one.
    """
    return _Run(suite, Path(out), options).run(then)


def protocol_of(suite: Suite) -> Protocol:
    from deidbench.metrics.base import Protocol

    table = suite.file.protocol
    values = {f.name: getattr(table, f.name) for f in fields(Protocol) if f.name != "name"}
    for name in ("ranks", "fmr", "fpir"):
        values[name] = tuple(values[name])
    return Protocol(name=suite.file.suite.protocol, **values)


class _Run:
    def __init__(self, suite: Suite, out: Path, options: Options) -> None:
        if options.batch < 1:
            raise InputError(f"--batch must be at least 1, got {options.batch}", "--batch 16")
        self.suite, self.out, self.options = suite, out, options
        self.cluster = _cluster(options)
        self.protocol = protocol_of(suite)
        self.clock = Clock()
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = defaultdict(float)
        self.computed: Counter[str] = Counter()
        self.unreadable: dict[str, str] = {}
        self.changed: dict[str, str] = {}
        self.halved: Counter[str] = Counter()
        #: Damaged artefacts that workers met.
        self._damaged = 0
        #: The files of the data as they were when the run began: path -> (a sample in it, size, time and number of the file).
        self._files: dict[Path, tuple[Sample, tuple[int, int, int] | None]] = {}
        #: With ``retry_failed``: failed outputs count as absent until the method stage has been through them.
        self._tried = False
        self._build()

    def _build(self) -> None:
        """Parts from the suite, checked before anything is computed."""
        from deidbench.metrics.models.pixels import AlignedPixels

        file = self.suite.file
        self.dataset = kinds.datasets.create(file.dataset.name, **file.dataset.params)
        methods = tuple(kinds.anonymizers.create(m.name, **m.params) for m in self.suite.methods)
        self.recognizers = recognizers = tuple(kinds.recognizers.create(r.name, **r.params) for r in file.recognizers)
        metrics = tuple(kinds.metrics.create(m.name, **m.params) for m in file.metrics)
        self.classifiers = tuple(kinds.classifiers.create(c.name, **c.params) for c in file.classifiers)
        parts: tuple[Dataset | Recognizer | Classifier, ...] = (self.dataset, *recognizers, *self.classifiers)
        for part in parts:
            if problem := part.missing():
                raise MissingError(f"{part.name} is not ready: {problem}", "deidbench doctor shows what is ready")
        for metric in metrics:
            metric.bind(self.dataset)
        self.metrics = metrics
        self.recognizer_names = _names(file.recognizers)
        self.classifier_names = _names(file.classifiers)
        for method in methods:
            method.validate()
        attacks = [a for metric in metrics for a in metric.attacks(self.recognizer_names)]
        self.pixels = any(a.attacker.reads == "crops" for a in attacks)
        self.learning: Dataset | None = None
        if (table := file.attackers).name:
            self.learning = kinds.datasets.create(table.name, **table.params)
            if problem := self.learning.missing():
                raise MissingError(f"{table.name} is not ready: {problem}", "deidbench doctor shows what is ready")
        self.workers = self.options.workers or default_workers()
        self.plan = Plan(
            methods=methods,
            recognizers=(*recognizers, *((AlignedPixels(),) if self.pixels else ()), *self.classifiers),
            metrics=metrics,
            finder=FaceFinder(file.faces.min_score, file.faces.tile_from),
            seed=file.protocol.seed,
            store=self.options.cache or default_folder(),
            threads=1 if self.options.executor == "ray" else threads_each(self.workers),
            retry_failed=self.options.retry_failed,
            level=file.protocol.level,
            seen=len(recognizers) + int(self.pixels),
        )
        self.fingerprints = Fingerprints(self.plan)
        #: How many vectors of an image attackers see; what classifiers say comes after them.
        self.seen = self.plan.seen or 0

    # -- the stages --------------------------------------------------------------------------------------------
    def run(self, then: Callable[[Path], object] | None = None) -> Result:
        from deidbench.images import atomic_write

        with (
            run_lock(self.out) as died,
            Store(self.plan.store, remember=True) as self.store,
            self.cluster or contextlib.nullcontext(),
        ):
            replaces = _turn(self.out)
            self.turn = self.store.begin_run(self.out, self.suite.name)
            try:
                atomic_write(
                    self.out / "suite.json", json.dumps(self._private(self.suite.file.model_dump(mode="json")), indent=1)
                )
                with self._stage("data"):
                    self._read_data()
                failed = self._healing()
            except BaseException as error:
                with contextlib.suppress(EnvironmentFault):  # what stopped the run is to be told, not this
                    self._remember(None)
                if isinstance(error, InputError):
                    raise self._explained(error) from error
                raise
            self._remember(replaces)
            if then is not None:
                then(self.out)
        return Result(
            self.out,
            failed,
            len(self.unreadable),
            dict(self.computed),
            self._all_damaged,
            self.changed,
            died,
            dict(self.halved),
        )

    def _healing(self) -> int:
        """The stages; once more where artefacts turn out to be damaged or gone that were there a moment ago."""
        for left in reversed(range(HEALINGS)):
            try:
                return self._stages()
            except _Gone as gone:
                if not left:
                    raise DeidbenchError(
                        f"{gone}",
                        "run the same command again; if it stays, the disk is failing, or the store is being pruned "
                        "by somebody else: deidbench cache verify",
                    ) from gone
                self.store.check_asked()  # where one is damaged others may be: all of them are made anew at once
        raise AssertionError("unreachable")

    def _stages(self) -> int:
        executor = make_executor(self.options.workers if self.cluster else self.workers, initialise, (self.plan,), self.cluster)
        try:
            with self._stage("images"):
                self._clear(executor)
            if any(m.needs_gallery for m in self.plan.methods):
                with self._stage("galleries"):
                    self._fit()
                executor.close()  # workers start anew, with what was fitted
                executor = make_executor(
                    self.options.workers if self.cluster else self.workers, initialise, (self.plan,), self.cluster
                )
            with self._stage("methods"):
                self._methods(executor)
            with self._stage("scores"):
                findings = self._scores(executor)
        finally:
            executor.close()
            dismiss()
        with self._stage("throughput"):
            timing = self._throughput()
        with self._stage("record"):
            return self._write(findings, timing)

    def _remember(self, replaces: Turn | None) -> None:
        """Tells the store what this run uses."""
        labels: dict[str, str] = {}
        for names in (self.fingerprints.methods, self.fingerprints.background):
            labels |= {f: spec.label for f, spec in zip(names, self.suite.methods, strict=True)}
        self.store.finish_run(self.turn, labels, replaces)

    @property
    def _all_damaged(self) -> int:
        return self._damaged + self.store.damaged

    def _whole(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Artefacts that the store said it has.  Raises _Gone where one is damaged, or was pruned since."""
        wanted = list(dict.fromkeys(keys))
        found = self.store.get_many(wanted)
        if len(found) < len(wanted):
            raise _Gone(f"{len(wanted) - len(found)} artefacts of {len(wanted)} have gone from the store, or are damaged")
        return found

    # -- data that change under the run --------------------------------------------------------------------------
    def _changes(self) -> dict[str, str]:
        """Samples whose files are not what they were when the run began: "changed" or "gone"."""
        from deidbench.images import sha256_file

        out = {}
        for path, (sample, before) in self._files.items():
            now = _stat(path)
            if now is None:
                out[sample.id] = "gone"
            elif now != before:  # a new date alone is no change
                with contextlib.suppress(InputError):
                    if sha256_file(path) == sample.sha256.lower():
                        continue
                out[sample.id] = "changed"
        return out

    def _explained(self, error: InputError) -> InputError:
        """``error``, or that the data changed under the run where that is behind it."""
        changed = self._changes()
        if not changed:
            return error
        return InputError(
            f"the data changed while the run was going on: {_some(changed)}; {error.message}",
            "leave the files alone while a run goes on, then run the same command again: it takes them as they are then, and what was "
            "computed of the others is reused",
        )

    def _stage(self, name: str) -> _Stage:
        return _Stage(self.wall, name)

    def _read_data(self) -> None:
        everything = list(self.dataset.samples())
        ids = [s.id for s in everything]
        if len(set(ids)) != len(ids):
            double = next(i for i, n in Counter(ids).items() if n > 1)
            raise InputError(f"data set {self.dataset.name!r} yields the sample id {double!r} twice", "ids must be unique")
        roles = self.suite.file.dataset.roles
        self.samples = [s for s in everything if s.role in roles]
        self._read_attackers_data(everything)
        self.roles = Counter(s.role for s in everything)
        persons: dict[str, set[str]] = defaultdict(set)
        for s in everything:
            persons[s.subject_id].add(s.role)
        if both := [p for p, r in persons.items() if len(r) > 1]:
            raise InputError(
                f"person {both[0]!r} is in several roles ({', '.join(sorted(persons[both[0]]))})",
                "splits must be person-disjoint; mend the manifest",
            )
        if not self.samples:
            raise InputError(
                f"data set {self.dataset.name!r} has no sample with role {' or '.join(roles)} (it has: {dict(self.roles)})",
                'set roles = ["..."] under [dataset]',
            )
        for s in (*everything, *self.background):
            if s.path not in self._files:
                self._files[s.path] = (s, _stat(s.path))
        self._write_manifest(everything)

    def _read_attackers_data(self, everything: Sequence[Sample]) -> None:
        """The images that attackers learn from, if any metric asks for them; ``no_background`` says why there are none."""
        self.background: list[Sample] = []
        self.no_background = "no metric of this suite asks for attacker-train persons"
        if not any(m.needs_background for m in self.metrics):
            return
        roles = self.suite.file.attackers.roles
        if self.learning is None:
            if both := set(roles) & set(self.suite.file.dataset.roles):
                raise InputError(
                    f"role {min(both)!r} is both evaluated and learnt from",
                    "person-disjoint roles in [dataset] and [attackers]",
                )
            self.background = [s for s in everything if s.role in roles]
        else:
            name = self.learning.name
            self.background = [
                replace(s, id=f"{name}:{s.id}", subject_id=f"{name}:{s.subject_id}")
                for s in self.learning.samples()
                if s.role in roles
            ]
            known = {s.sha256: s.id for s in self.samples}
            if double := [s for s in self.background if s.sha256 in known]:
                raise InputError(
                    f"attackers would learn from an image that is evaluated: {double[0].id} is {known[double[0].sha256]}",
                    "take it out of the roles in [attackers]",
                )
        if not self.background:
            whose = (self.learning or self.dataset).name
            self.no_background = (
                f"the data set {whose!r} has no persons of role {' or '.join(roles)} for attackers to learn from"
            )

    def _private(self, value: Any) -> Any:
        """``value`` as it may be handed on: without the paths of this machine."""
        roots = [str(Path(str(root)).expanduser()) for d in (self.dataset, self.learning) if (root := getattr(d, "root", ""))]
        return without_paths(value, [*roots, self.plan.store, Path.cwd()])

    def _write_manifest(self, samples: Iterable[Sample]) -> None:
        """The data as it was used: ids, persons, roles and hashes, so that the split can be repeated elsewhere."""
        from deidbench.images import atomic_write

        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["id", "subject_id", "role", "sha256"])
        table.writerows((guard(s.id), guard(s.subject_id), guard(s.role), s.sha256) for s in samples)
        atomic_write(self.out / "manifest.csv", text.getvalue())

    def _batches(self, samples: Sequence[Sample]) -> list[tuple[Sample, ...]]:
        n = self.options.batch
        if self.cluster is not None:  # so that what lies together belongs to one worker
            samples = by_place(samples)
        return [tuple(samples[i : i + n]) for i in range(0, len(samples), n)]

    def _execute(self, executor: Any, title: str, tasks: Sequence[Task]) -> None:
        with progress(title, sum(len(t.samples) * len(t.methods) for t in tasks), quiet=self.options.quiet) as tick:
            for i, outcome in executor.run(process, tasks):
                self._note(outcome)
                tick(len(tasks[i].samples) * len(tasks[i].methods))

    def _tasks(self, lacking: Mapping[int, Sequence[Sample]], typical: Any, evaluated: bool, executor: Executor) -> list[Task]:
        """Batches of samples, each with all the methods that it lacks, so that an image is decoded once for all of them.

        lacking: method -> samples.  Where there are few images the methods are shared out too: every worker is to have some tasks.
        """
        methods: dict[str, list[int]] = defaultdict(list)
        samples: dict[str, Sample] = {}
        for m, todo in lacking.items():
            for s in todo:
                methods[s.id].append(m)
                samples[s.id] = s
        if not samples:
            return []
        workers = executor.workers
        groups: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
        for name, those in methods.items():
            groups[tuple(those)].append(samples[name])
        tasks = []
        for wanted, group in groups.items():
            batches = self._batches(group)
            parts = min(len(wanted), -(-TASKS * workers // len(batches)))
            size = -(-len(wanted) // parts)
            tasks += [
                Task(wanted[at : at + size], batch, typical, evaluated)
                for batch in batches
                for at in range(0, len(wanted), size)
            ]
        return tasks

    def _note(self, outcome: Outcome) -> None:
        for stage, seconds in outcome.seconds.items():
            self.cpu[stage] += seconds
        self.computed.update(outcome.computed)
        self.unreadable.update(outcome.unreadable)
        self._damaged += outcome.damaged
        self.halved.update(outcome.halved)

    def _clear(self, executor: Executor) -> None:
        everything = [*self.samples, *self.background]
        self.evaluated = {s.id for s in self.samples}
        keys = {s.id: Keys(self.plan, self.fingerprints, CLEAR, s) for s in everything}
        centre = middle(self.plan.level)
        state = self._state(CLEAR, everything, keys, centre)
        tasks: list[Task] = []
        title = "clear images"
        # What needs no gallery is done while the image is at hand; where a face is not found is told when all of them are known.
        # Where there are few images the methods are shared out among the workers, once all faces are known.
        at_once = [] if self.options.retry_failed else [m for m, part in enumerate(self.plan.methods) if not part.needs_gallery]
        for samples, evaluated in ((self.samples, True), (self.background, False)):
            todo = [s for s in samples if not state[s.id].complete]
            if at_once and todo and len(todo) >= TASKS * executor.workers * self.options.batch:
                title = ALL_STEPS
                typical = centre if self.plan.level == "crop" else None
                tasks += [Task((CLEAR, *at_once), batch, typical, evaluated) for batch in self._batches(todo)]
            else:
                tasks += [Task((CLEAR,), batch, evaluated=evaluated) for batch in self._batches(todo)]
        self._execute(executor, title, tasks)
        if self.unreadable:
            for name in self._changes().keys() & self.unreadable.keys():
                self.unreadable[name] = f"changed while the run was going on: {self.unreadable[name]}"
        # An image that cannot be read can be neither gallery nor probe: it is left out, counted and named.
        self.samples = [s for s in self.samples if s.id not in self.unreadable]
        self.background = [s for s in self.background if s.id not in self.unreadable]
        if not self.samples:
            name, why = next(iter(self.unreadable.items()))
            raise InputError(
                f"none of the {len(self.unreadable)} images can be read; the first, {name}: {why}",
                "mend the files or the manifest",
            )
        self.clear_keys = keys
        self.clear_state = self._state(CLEAR, [*self.samples, *self.background], keys, centre)
        states = [self.clear_state[s.id] for s in self.samples]
        boxes = [(st.face.box, st.shape) for st in states if st.face is not None and st.shape is not None]
        self.typical = typical_box(boxes) if self.plan.level == "frame" else centre

    def _fit(self) -> None:
        """Gives methods that ask for it the set that they de-identify.

        Attackers' persons are a set of their own, de-identified by other instances: an average over both would carry evaluated
        persons into what attackers learn from.
        """

        def read(sample: Sample) -> Item:
            keys, frame = self.clear_keys[sample.id], load_sample(sample)
            stored = self._whole([keys.frame_faces, keys.clear_faces])
            image = (
                frame if self.plan.level == "frame" else self.plan.cut(frame, unpack_faces(stored[keys.frame_faces]), sample)
            )
            return Item(sample.id, image, tuple(unpack_faces(stored[keys.clear_faces])), 0, sample.subject_id)

        background = []
        with progress("galleries", len(self.plan.methods), quiet=self.options.quiet) as tick:
            for spec, method in zip(self.suite.methods, self.plan.methods, strict=True):
                other = method
                if method.needs_gallery:
                    method.load()
                    method.fit([replace(s, box=self.plan.box(s)) for s in self.samples], read)
                    if self.background:
                        other = kinds.anonymizers.create(spec.name, **spec.params)
                        other.load()
                        try:
                            other.fit([replace(s, box=self.plan.box(s)) for s in self.background], read)
                        except InputError as error:
                            raise InputError(f"persons that attackers learn from: {error.message}", error.remedy) from error
                background.append(other)
                tick()
        self.plan = replace(self.plan, background=tuple(background))
        self.fingerprints = Fingerprints(self.plan)

    def _methods(self, executor: Executor) -> None:
        self.method_keys = []
        everything = [*self.samples, *self.background]
        self.evaluated = {s.id for s in self.samples}
        lacking: dict[bool, dict[int, list[Sample]]] = {True: {}, False: {}}
        for m in range(len(self.plan.methods)):
            keys = {s.id: Keys(self.plan, self.fingerprints, m, s, s.id in self.evaluated) for s in everything}
            self.method_keys.append(keys)
            state = self._state(m, everything, keys, self.typical)
            for samples, evaluated in ((self.samples, True), (self.background, False)):
                lacking[evaluated][m] = [s for s in samples if not state[s.id].complete]
        tasks = [t for evaluated, todo in lacking.items() for t in self._tasks(todo, self.typical, evaluated, executor)]
        self._execute(executor, ALL_STEPS, tasks)
        self._tried = True
        self.states = [self._state(m, everything, self.method_keys[m], self.typical) for m in range(len(self.plan.methods))]
        for m in range(len(self.plan.methods)):
            self._mark_copies(m)
        for m, state in enumerate(self.states):
            if incomplete := [i for i, st in state.items() if not st.complete]:
                raise _Gone(
                    f"{self.suite.methods[m].label}: {len(incomplete)} images did not make it into the store, the first is {incomplete[0]}"
                )

    # -- reading the store -------------------------------------------------------------------------------------
    def _state(
        self, method: int, samples: Sequence[Sample], keys: Mapping[str, Keys], typical: Sequence[float]
    ) -> dict[str, _State]:
        """What the store knows of each sample under ``method``."""
        outputs: dict[str, Output | None] = {}
        if method == CLEAR:
            outputs = {s.id: None for s in samples}
            live = list(samples)
        else:
            stored = self.store.get_many(keys[s.id].source for s in samples)
            pictures = self.store.present(keys[s.id].picture for s in samples)
            live = []
            for s in samples:
                if (data := stored.get(keys[s.id].source)) is None:
                    continue
                output = Output.unpack(data)
                if self.options.retry_failed and output.adapter_status is Status.FAILED and not self._tried:
                    continue
                if output.released and keys[s.id].picture not in pictures:
                    continue
                outputs[s.id] = output
                if output.released:
                    live.append(s)
        faces = self.store.get_many(keys[s.id].faces for s in live)
        states: dict[str, _State] = {}
        wanted: list[str] = []
        for s in live:
            if (data := faces.get(keys[s.id].faces)) is None:
                continue
            shape = unpack_shape(data)
            hint = self.plan.box(s)
            face = subject_face(unpack_faces(data), hint)
            box = None if face is not None else fallback_box(outputs[s.id], shape, hint, typical)
            many = len(self.plan.recognizers) if s.id in self.evaluated else self.seen
            embeddings = [keys[s.id].embedding(r, box) for r in range(many)]
            measures: list[str] = []
            if method == CLEAR:
                wanted.append(keys[s.id].thumb)
            elif s.id in self.evaluated:
                measures = [keys[s.id].measure(i) for i, m in enumerate(self.plan.metrics) if m.measures]
            wanted += [*embeddings, *measures]
            states[s.id] = _State(outputs[s.id], face, shape, embeddings, measures)
        present = self.store.present(wanted)
        result = {}
        for s in samples:
            st = states.get(s.id)
            if st is not None:
                thumb = [keys[s.id].thumb] if method == CLEAR else []
                st.complete = all(k in present for k in (*st.embeddings, *st.measures, *thumb))
            elif s.id in outputs and (o := outputs[s.id]) is not None and not o.released:
                st = _State(o, None, None, [], [], complete=True)
            else:
                st = _State(None, None, None, [], [])
            result[s.id] = st
        return result

    def _mark_copies(self, method: int) -> None:
        """Outputs that are another image of the data set, or nearly: found by thumbnail, proved by pixels."""
        from deidbench.images import decode_png

        states, keys = self.states[method], self.method_keys[method]
        thumbs = self._whole(self.clear_keys[s.id].thumb for s in self.samples)
        clear = np.array([np.frombuffer(thumbs[self.clear_keys[s.id].thumb], np.uint8) for s in self.samples], np.float32)
        looked_at = [
            (s, st.output)
            for s in self.samples
            if (st := states[s.id]).output is not None and st.output.released and st.output.status is Status.OK
        ]
        for start in range(0, len(looked_at), 512):  # squared distances by a matrix product; whole numbers, exact enough
            part = looked_at[start : start + 512]
            mine = np.array([np.frombuffer(output.thumb, np.uint8) for _, output in part], np.float32)
            squared = (mine**2).sum(1)[:, None] + (clear**2).sum(1) - 2 * (mine @ clear.T)
            for (s, _), near in zip(part, squared <= COPY_LEVELS**2 * clear.shape[1], strict=True):
                # a picture with several faces is several samples of one file
                others = [o for i in np.flatnonzero(near) if (o := self.samples[i]).id != s.id and o.sha256 != s.sha256]
                if not others:
                    continue
                [data] = self._whole([keys[s.id].picture]).values()
                picture = decode_png(data)
                for other in others:
                    if passthrough(self._clear_picture(other), picture, self.clear_state[other.id].face):
                        states[s.id].copy_of = other.id
                        break

    def _clear_picture(self, sample: Sample) -> Image:
        """What is anonymised of a sample, read anew."""
        frame = load_sample(sample)
        return frame if self.plan.level == "frame" else self.plan.cut(frame, self.plan.finder.find(frame), sample)

    def _table(self, label: str, state: Mapping[str, _State], samples: Sequence[Sample], *, pixels: bool = False) -> Table:
        """Columns of one method (or of the clear images) for some samples.  pixels: with the aligned crops."""
        from deidbench.metrics.base import Reading, Table
        from deidbench.metrics.reid.base import CROP

        n = len(samples)
        states = [state[s.id] for s in samples]
        stock = len(self.recognizer_names)
        data = self._whole(k for st in states for k in (*st.embeddings[:stock], *st.embeddings[self.seen :], *st.measures))
        embeddings: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}

        def column(r: int, least: int) -> np.ndarray[Any, np.dtype[np.float32]]:
            vectors = {i: unpack_embedding(data[st.embeddings[r]]) for i, st in enumerate(states) if len(st.embeddings) > r}
            dim = len(next(iter(vectors.values()))) if vectors else least
            out = np.full((n, dim), np.nan, np.float32)
            for i, v in vectors.items():
                out[i] = v
            return out

        for r, name in enumerate(self.recognizer_names):
            embeddings[name] = column(r, 1)
        readings = {}
        for c, (name, classifier) in enumerate(zip(self.classifier_names, self.classifiers, strict=True)):
            many = len(classifier.labels)
            said = column(self.seen + c, many)
            readings[name] = Reading(classifier.task, tuple(classifier.labels), said[:, :many], said[:, many:])
        crops = None
        if pixels:
            crops = np.zeros((n, CROP.size, CROP.size, 3), np.uint8)
            rows = {st.embeddings[stock]: i for i, st in enumerate(states) if st.embeddings}
            where = [(i, st.embeddings[stock]) for i, st in enumerate(states) if st.embeddings]
            found = self._whole(rows)
            for i, k in where:
                crops[i] = unpack_embedding(found[k], np.uint8).reshape(crops.shape[1:])
        names = [m for metric in self.plan.metrics for m in metric.measures]
        measures = {name: np.full(n, np.nan) for name in names}
        for i, st in enumerate(states):
            for k in st.measures:
                for name, value in json.loads(data[k]).items():
                    measures[name][i] = value
        labels = sorted({name for s in samples for name in s.attributes})
        groups = sorted({name for s in samples for name in s.groups})
        status = [
            Status.OK.value if st.output is None else Status.COPY.value if st.copy_of else st.output.status.value
            for st in states
        ]
        return Table(
            dataset=self.dataset.name,
            method=label,
            ids=np.array([s.id for s in samples], np.str_),
            subjects=np.array([s.subject_id for s in samples], np.str_),
            status=np.array(status, np.str_),
            withheld=np.array([st.output is not None and not st.output.released for st in states], np.bool_),
            fta=np.array([st.shape is not None and st.face is None for st in states], np.bool_),
            embeddings=embeddings,
            measures=measures,
            attributes={a: np.array([s.attributes.get(a, np.nan) for s in samples], np.float64) for a in labels},
            emotion=np.array([s.emotion or "" for s in samples], np.str_),
            groups={g: np.array([s.groups.get(g, "") for s in samples], np.str_) for g in groups},
            crops=crops,
            copies=np.array([st.copy_of for st in states], np.str_),
            readings=readings,
        )

    # -- scores ------------------------------------------------------------------------------------------------
    def _scores(self, executor: Any) -> list[Findings]:
        from deidbench.metrics.base import Background, Findings

        self.clear_table = clear = self._table("clear", self.clear_state, self.samples)
        self.tables = [
            self._table(spec.label, state, self.samples) for spec, state in zip(self.suite.methods, self.states, strict=True)
        ]
        backgrounds = self._backgrounds(executor)
        learnt = [_digest(b.clear) if b.clear is not None else "" for b in backgrounds]
        digest = _digest(clear)
        tasks, keys = [], []
        for m, table in enumerate(self.tables):
            background = backgrounds[m]
            for i, metric in enumerate(self.plan.metrics):
                # a metric that asks for nothing more is not scored anew because of what others ask for
                asked = metric.needs_background
                keys.append(
                    key(
                        "findings",
                        version=__version__,
                        schema=ROWS_VERSION,
                        packed=evidence.VERSION,
                        metric=self.fingerprints.metrics[i],
                        protocol=asdict(self.protocol),
                        clear=digest,
                        table=_digest(table),
                        background=[learnt[m], _digest(background.anonymised), background.reason, self.attempt_keys[m]]
                        if asked and background.anonymised is not None
                        else [background.reason]
                        if asked
                        else [],
                    ).by(self.fingerprints.methods[m])
                )
                tasks.append((metric, clear, table, self.protocol, background if asked else Background()))
        stored = self.store.get_many(keys)
        todo = [i for i, k in enumerate(keys) if k not in stored]
        with progress("attack and score", len(todo), quiet=self.options.quiet) as tick:
            for i, findings in executor.run(_score, [tasks[i] for i in todo]):
                stored[keys[todo[i]]] = data = evidence.pack(findings.rows, findings.curves)
                self.store.put(keys[todo[i]], data)
                self.computed["score"] += 1
                tick()
        found = [Findings(*evidence.unpack(stored[k])) for k in keys]
        overlaps = {
            name: o for name, c in zip(self.classifier_names, self.classifiers, strict=True) if (o := self._overlap(c))[0]
        }
        self.overlaps = overlaps
        return [_flagged(self._judged(f, self.tables[i // len(self.plan.metrics)]), overlaps) for i, f in enumerate(found)]

    def _overlap(self, classifier: Classifier) -> tuple[str, bool]:
        """In words, which of the evaluated images and persons a classifier learnt from, and whether they are many.

        Empty where none are known.  CelebA has a few pictures twice, under two names: so few are told and change no verdict.
        """
        lessons = classifier.lessons()
        images = sum(s.sha256 in lessons.images or s.sha256[:16] in lessons.images for s in self.samples)
        # a folder is known by its own name; whoever renames it is still found out by the images' hashes
        called = [self.dataset.name, Path(str(getattr(self.dataset, "root", ""))).name]
        data = [c.lower().replace("-", "_") for c in called]
        learnt = {p for name, persons in lessons.persons.items() if any(d.startswith(name) for d in data) for p in persons}
        persons = len({s.subject_id for s in self.samples} & learnt)
        if not images and not persons:
            return "", False
        total = len({s.subject_id for s in self.samples})
        said = f"the classifier learnt from {images} of the {len(self.samples)} images and {persons} of the {total} persons under evaluation"
        return said, max(images / len(self.samples), persons / total) > OVERLAP_SHARE

    def _judged(self, findings: Findings, table: Table) -> Findings:
        """A method whose outputs are its inputs, or other images of the data set, is named; its figures are not published."""
        from deidbench.metrics.base import Findings

        spec = next(s for s in self.suite.methods if s.label == table.method)
        same = int((table.status == Status.PASSTHROUGH.value).sum())
        copies = int((table.status == Status.COPY.value).sum())
        if spec.control or not same + copies:
            return findings
        said = [f"{same} of {table.n} outputs are the input (or nearly)"] if same else []
        said += [f"{copies} of {table.n} outputs are another image of the data set (or nearly)"] if copies else []
        why = " and ".join(said)
        if same + copies < REFUSED_SHARE * table.n:
            return Findings([replace(r, note="; ".join(p for p in (r.note, why) if p)) for r in findings.rows], findings.curves)
        return Findings(
            [
                replace(
                    r,
                    value=None,
                    lo=None,
                    hi=None,
                    trusted=False,
                    reason=f"not published: {why}",
                    ci_reason="not published",
                    evidence=None,
                )
                for r in findings.rows
            ],
            [],
        )

    # -- trained attacks ---------------------------------------------------------------------------------------
    def _backgrounds(self, executor: Any) -> list[Background]:
        """What attackers were given, per method; attacks that the store does not hold yet are carried out."""
        from deidbench import attacks
        from deidbench.metrics.base import Background
        from deidbench.metrics.reid import training

        planned = [a for metric in self.metrics for a in metric.attacks(self.recognizer_names)]
        stock = dict(zip(self.recognizer_names, self.recognizers, strict=True))
        self.attempt_keys: list[list[str]] = [[] for _ in self.plan.methods]
        if not self.background:
            return [Background(reason=self.no_background) for _ in self.plan.methods]
        jobs: list[list[tuple[PlannedAttack, int, Key]]] = []
        clear = [self._identity(self.clear_state, samples) for samples in (self.background, self.samples)]
        for m in range(len(self.plan.methods)):
            tables = [self._identity(self.states[m], samples) for samples in (self.background, self.samples)]
            jobs.append([])
            for a in planned:
                for number in range(self.protocol.seeds):
                    k = key(
                        "attempt",
                        version=training.VERSION,
                        attacker=[a.attacker.name, a.attacker.version, a.attacker.params()],
                        recognizer=a.recognizer,
                        recognizers=self.fingerprints.recognizers[: self.seen],
                        seed=[self.protocol.seed, number],
                        tables=[*clear, *tables],
                    ).by(self.fingerprints.methods[m])
                    jobs[m].append((a, number, k))
            self.attempt_keys[m] = [k for _, _, k in jobs[m]]
        present = self.store.present(k for keys in self.attempt_keys for k in keys)
        missing = sum(k not in present for keys in self.attempt_keys for k in keys)
        if missing:
            both = (self.background, self.samples)
            clear_sides = [self._table("clear", self.clear_state, side, pixels=self.pixels) for side in both]
        with progress("train and attack", missing, quiet=self.options.quiet) as tick:
            for m, spec in enumerate(self.suite.methods):
                todo = [job for job in jobs[m] if job[2] not in present]
                if not todo:
                    continue
                sides = [self._table(spec.label, self.states[m], side, pixels=self.pixels) for side in both]
                tasks = [
                    attacks.AttackTask(
                        a.attacker,
                        a.recognizer,
                        item_seed(self.protocol.seed, "attempt", str(number)) % 2**31,
                        (clear_sides[0], sides[0]),
                        (clear_sides[1], sides[1]),
                        stock,
                    )
                    for a, number, _ in todo
                ]
                for i, data in executor.run(attacks.carry_out, tasks):
                    self.store.put(todo[i][2], data)
                    self.computed["attack"] += 1
                    tick()
        backgrounds = []
        before = self._table("clear", self.clear_state, self.background)
        for m, spec in enumerate(self.suite.methods):
            stored = self._whole(self.attempt_keys[m])
            attempts: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
            for a, _, k in jobs[m]:
                attempts[a.label, a.recognizer].append(attacks.unpack(stored[k]))
            after = self._table(spec.label, self.states[m], self.background)
            backgrounds.append(Background(before, after, dict(attempts), ""))
        return backgrounds

    def _identity(self, state: Mapping[str, _State], samples: Sequence[Sample]) -> str:
        """Hash of all that attackers see of some samples, without reading any of it."""
        lines = [[s.id, s.subject_id, *state[s.id].embeddings[: self.seen]] for s in samples]
        return hashlib.sha256(json.dumps(lines).encode()).hexdigest()

    # -- throughput --------------------------------------------------------------------------------------------
    def _throughput(self) -> list[Row]:
        """Wall-clock rows (:mod:`deidbench.timing`)."""
        from deidbench import timing

        outputs = [{s.id: state[s.id].output for s in self.samples} for state in self.states]
        rows, computed = timing.rows(
            timing.Job(
                self.suite, self.plan, self.fingerprints, self.samples, outputs, self.dataset.name, self.protocol, self.store,
                self._whole, self.workers, self.options.quiet,
            )
        )  # fmt: skip
        if computed:
            self.computed["timing"] += computed
        return rows

    # -- the record --------------------------------------------------------------------------------------------
    def _write(self, findings: Sequence[Findings], timing: Sequence[Row]) -> int:
        from deidbench.datasets.base import manifest_sha256
        from deidbench.environment import environment
        from deidbench.images import atomic_write

        rows = [r for f in findings for r in f.rows] + list(timing)
        curves = [c for f in findings for c in f.curves]
        failed = sum(int((t.status == Status.FAILED.value).sum()) for t in self.tables)
        self.changed = self._changes()
        self._write_samples()
        # an older result goes first: a folder with a record holds the tables that belong to it
        rows = [replace(r, **self._private({n: getattr(r, n) for n in ("reason", "ci_reason", "note")})) for r in rows]
        (self.out / "run.json").unlink(missing_ok=True)
        tables = {"rows": frame(rows, Row), "curves": frame(curves, Curve), "images": self._images()}
        for name, table in tables.items():
            atomic_write(self.out / f"{name}.parquet", _parquet(table))
        atomic_write(self.out / evidence.FILE, evidence.to_parquet(rows))
        atomic_write(self.out / "rows.json", json.dumps([r.plain() for r in rows], indent=1))
        file = self.suite.file
        methods = []
        for spec, part, fingerprint, t in zip(
            self.suite.methods, self.plan.methods, self.fingerprints.methods, self.tables, strict=True
        ):
            counts = {s.value: int((t.status == s.value).sum()) for s in Status}
            methods.append(
                {
                    "label": spec.label, "slug": spec.slug, "name": spec.name, "params": part.params(), "family": spec.family,
                    "strength": spec.strength, "control": spec.control, "version": part.version, "fingerprint": fingerprint,
                    "citation": part.citation, "licence": part.licence, "trained_on": list(part.trained_on),
                    "guarantee": part.guarantee, "weights_sha256": part.weights_sha256(), "deterministic": part.deterministic, "counts": {**counts, "fta": int(t.fta.sum()), "images": t.n},
                }
            )  # fmt: skip
        persons = {s.subject_id for s in self.samples}
        record = {
            "schema": SCHEMA_VERSION,
            "deidbench": __version__,
            "suite": {"name": self.suite.name, "title": file.suite.title, "file": self.suite.origin, "sha256": self.suite.sha256},
            "protocol": {**asdict(self.protocol), "deviations": list(self.suite.deviations)},
            "dataset": {
                "name": self.dataset.name, "title": self.dataset.title, "version": self.dataset.version,
                "citation": self.dataset.citation, "licence": self.dataset.licence, "shows_faces": self.dataset.shows_faces, "identities": self.dataset.identities,
                "roles": file.dataset.roles,
                "all_roles": dict(self.roles), "n_images": len(self.samples), "n_persons": len(persons),
                "manifest_sha256": manifest_sha256([{"id": s.id, "subject_id": s.subject_id, "sha256": s.sha256} for s in self.samples]),
                "typical_box": list(self.typical), "unreadable": self.unreadable,
                "clear_fta": sum(self.clear_state[s.id].face is None for s in self.samples),
            },
            "attackers": self._attackers_record(),
            "methods": methods,
            "recognizers": [
                {"name": name, "fingerprint": f, "weights_sha256": r.weights_sha256(), "runtime": r.runtime(), "citation": r.citation,
                 "licence": r.licence, "trained_on": list(r.trained_on), "params": r.params()}
                for name, r, f in zip(self.recognizer_names, self.plan.recognizers, self.fingerprints.recognizers, strict=False)
            ],
            "classifiers": [
                {"name": name, "task": c.task, "labels": list(c.labels), "fingerprint": f, "weights_sha256": c.weights_sha256(), "runtime": c.runtime(),
                 "citation": c.citation, "licence": c.licence, "trained_on": list(c.trained_on), "params": c.params(),
                 "overlap": self.overlaps.get(name, ("", False))[0], "contaminated": self.overlaps.get(name, ("", False))[1], "lessons": {"images": len(c.lessons().images), "persons": {k: len(v) for k, v in c.lessons().persons.items()}}}
                for name, c, f in zip(self.classifier_names, self.classifiers, self.fingerprints.recognizers[self.seen :], strict=True)
            ],
            "metrics": [{"name": m.name, "version": m.version, "params": m.params(), "citation": m.citation} for m in self.plan.metrics],
            "finder": self.fingerprints.finder,
            "environment": environment(),
            "run": {
                "executor": self.cluster.record() if self.cluster is not None else {"name": "local", "workers": self.workers},
                "workers": self.workers, "batch": self.options.batch, "threads": self.plan.threads,
                "faces": self.options.faces, "computed": dict(self.computed), "damaged_artefacts": self._all_damaged, "halved_batches": dict(self.halved),
                "store": self.turn._asdict(), "clock": self.clock.record(), "changed_files": self.changed,
            },
            "timings": {**{k: round(v, 3) for k, v in self.wall.items()}, "per_stage_worker_seconds": {k: round(v, 3) for k, v in self.cpu.items()}},
            "started": self.clock.started.isoformat(timespec="seconds"),
            "finished": self.clock.now().isoformat(timespec="seconds"),
        }  # fmt: skip
        whole = json.dumps(self._private(record), indent=1, default=str)
        atomic_write(self.out / "run.json", whole)  # last: its presence means complete
        return failed

    def _attackers_record(self) -> dict[str, Any]:
        """Whom attackers learnt from, and what each attacker knows."""
        from deidbench.datasets.base import manifest_sha256
        from deidbench.metrics.reid.metric import ReIdentification

        source = self.learning or self.dataset
        known = [a for metric in self.metrics if isinstance(metric, ReIdentification) for a in metric.record()]
        return {
            "dataset": source.name if self.background else "", "roles": self.suite.file.attackers.roles, "reason": self.no_background if not self.background else "",
            "n_images": len(self.background), "n_persons": len({s.subject_id for s in self.background}),
            "manifest_sha256": manifest_sha256([{"id": s.id, "subject_id": s.subject_id, "sha256": s.sha256} for s in self.background]),
            "attackers": known,
        }  # fmt: skip

    def _images(self) -> pd.DataFrame:
        """One line per (method, image)."""
        import pandas as pd

        parts = []
        for spec, table, state, keys in zip(self.suite.methods, self.tables, self.states, self.method_keys, strict=True):
            outputs = [state[s.id].output for s in self.samples]
            parts.append(
                pd.DataFrame(
                    {
                        "method": spec.label, "id": table.ids, "subject_id": table.subjects,
                        "role": [s.role for s in self.samples], "status": table.status,
                        "adapter_status": [o.adapter_status.value if o else "" for o in outputs],
                        "reason": self._private([o.reason if o else "" for o in outputs]),
                        "copy_of": table.copies,
                        "withheld": table.withheld, "fta": table.fta, **table.measures, **self._similarity(table),
                        "output_sha256": [self._output_sha256(o, keys[s.id].picture) for s, o in zip(self.samples, outputs, strict=True)],
                        "seed": [keys[s.id].seed for s in self.samples], "artefact": [str(keys[s.id].source) for s in self.samples],
                    }
                )
            )  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def _output_sha256(self, output: Output | None, picture: str) -> str:
        """Hash of what was released; an older store does not hold it beside the picture."""
        from deidbench.images import decode_png
        from deidbench.pipeline import pixels_sha256

        if output is None or not output.released or output.sha256:
            return output.sha256 if output else ""
        data = self.store.get(picture)
        return "" if data is None else pixels_sha256(decode_png(data))

    def _similarity(self, table: Table) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Cosine similarity of each output's embedding with its original's, per recogniser; NaN where there is none."""
        from deidbench.metrics.distance import paired

        return {
            f"similarity_{name}": paired(self.clear_table.embeddings[name], table.embeddings[name])
            if table.embeddings[name].shape == self.clear_table.embeddings[name].shape
            else np.full(table.n, np.nan)  # nothing was released
            for name in self.recognizer_names
        }

    def _write_samples(self) -> None:
        """Pictures of a few persons under every method, evenly spread over the persons, the first image of each; and of the
        worst and the best case of each method (:mod:`deidbench.pictures` says what of it is kept)."""
        import shutil

        from deidbench import pictures

        folder = self.out / "samples"
        shutil.rmtree(folder, ignore_errors=True)
        count = self.suite.file.report.samples
        if count == 0 or self.options.faces is False:
            return
        first: dict[str, int] = {}
        for i, s in enumerate(self.samples):
            first.setdefault(s.subject_id, i)
        people = list(first.values())
        columns = [people[i] for i in np.unique(np.linspace(0, len(people) - 1, min(count, len(people))).round().astype(int))]

        def released(keys: Mapping[str, Keys], states: Mapping[str, _State]) -> Callable[[int], bytes | None]:
            def picture(i: int) -> bytes | None:
                k, output = keys[self.samples[i].id].picture, states[self.samples[i].id].output
                return self._whole([k])[k] if output is not None and output.released else None

            return picture

        methods = [
            pictures.Kept(spec.label, spec.slug, spec.control, table, released(keys, states))
            for spec, table, keys, states in zip(self.suite.methods, self.tables, self.method_keys, self.states, strict=True)
        ]
        shown = self.options.faces or self.dataset.shows_faces
        original = (lambda i: self._clear_picture(self.samples[i])) if shown else None
        pictures.write(folder, columns, self.clear_table, methods, original)


@dataclass(eq=False)
class _State:
    """What the store holds for one (method, sample): keys of embeddings and measures, and whether all are there."""

    output: Output | None
    face: Face | None
    shape: tuple[int, int] | None
    embeddings: list[str]
    measures: list[str]
    complete: bool = False
    copy_of: str = ""


def _cluster(options: Options) -> Session | None:
    """Ray, not yet connected, where the run is to use it."""
    if options.executor not in ("local", "ray"):
        raise InputError(f"there is no executor {options.executor!r}", "--executor local, or --executor ray")
    if options.executor == "local":
        if options.address is not None:
            raise InputError(f"the Ray address {options.address} is of no use to the local executor", "add --executor ray")
        return None
    from deidbench.ray_executor import Session

    return Session(options.address, options.cache or default_folder())


class _Stage:
    """Wall-clock seconds of a block."""

    def __init__(self, wall: dict[str, float], name: str) -> None:
        self.wall, self.name = wall, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.wall[self.name] = self.wall.get(self.name, 0.0) + time.perf_counter() - self.start


class _Gone(Exception):
    """Artefacts were in the store a moment ago, and are not, or not whole: they are to be made anew."""


def _stat(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does: size, time, number; None where there is none."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_size, info.st_mtime_ns, info.st_ino


def _some(changed: Mapping[str, str], most: int = 5) -> str:
    """Samples and what became of them, in words."""
    named = ", ".join(f"{name} ({what})" for name, what in list(changed.items())[:most])
    return named + (f" and {len(changed) - most} more" if len(changed) > most else "")


def _turn(folder: Path) -> Turn | None:
    """Which run of which store is in ``folder``, where its record says so."""
    try:
        said = json.loads((folder / "run.json").read_text("utf-8"))["run"]["store"]
        return Turn(str(said["store"]), int(said["turn"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flagged(findings: Findings, overlaps: Mapping[str, tuple[str, bool]]) -> Findings:
    """Figures of a classifier that is asked about what it learnt from say so, and are not to be trusted where that is much."""
    from deidbench.metrics.base import Findings

    def flagged(r: Row) -> Row:
        if r.recognizer not in overlaps:
            return r
        said, many = overlaps[r.recognizer]
        note = "; ".join(p for p in (f"{'contaminated' if many else 'overlap'}: {said}", r.note) if p)
        return replace(r, trusted=r.trusted and not many, note=note)

    return Findings([flagged(r) for r in findings.rows], findings.curves)


def _names(parts: Sequence[PartTable]) -> list[str]:
    """What the parts of a suite are called in its results: unique."""
    names = [p.name + (f":{p.params['variant']}" if "variant" in p.params else "") for p in parts]
    return [n if names.count(n) == 1 else f"{n}#{i}" for i, n in enumerate(names)]


def _score(task: tuple[Metric, Table, Table, Protocol, Background]) -> Findings:
    metric, clear, table, protocol, background = task
    return metric.score(clear, table, protocol, background)


def _digest(table: Table) -> str:
    """Hash over all columns of a table."""
    h = hashlib.sha256()

    def add(name: str, array: np.ndarray[Any, Any]) -> None:
        a = np.ascontiguousarray(array)
        h.update(f"{name}|{a.dtype.str}|{a.shape}|".encode())
        h.update(a.tobytes())

    h.update(f"{table.dataset}|{table.method}|".encode())
    for name in ("ids", "subjects", "status", "withheld", "fta"):
        add(name, getattr(table, name))
    for group in ("embeddings", "measures", "attributes", "groups"):
        for name, column in sorted(getattr(table, group).items()):
            add(f"{group}.{name}", column)
    for name, reading in sorted(table.readings.items()):
        h.update(f"{name}|{reading.task}|{reading.labels}|".encode())
        add("probabilities", reading.probabilities)
        add("features", reading.features)
    if table.emotion is not None:
        add("emotion", table.emotion)
    return h.hexdigest()


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()
