"""A collection: several experiments in one file, each on data that the user names, beside what somebody published of them.

``deidbench run NAME --data KEY=FOLDER`` makes an ordinary suite out of every experiment whose data are given and runs it into
``OUT/EXPERIMENT``; the others are listed with what is missing.  The comparison is :mod:`deidbench.report.paper`'s.

The file holds ``[collection]``, ``[[data]]`` (what a user may name, its terms and where it is got), ``[[methods]]``,
``[[experiments]]`` and ``[[kinds]]`` (what several experiments have in common).  A part that is ``optional`` runs where it is
ready; where it is not, the lines that need it say why, and nothing stands in for it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deidbench.errors import DeidbenchError, InputError, MissingError, SuiteError
from deidbench.suite import MethodTable, PartTable, ThroughputTable, bundled, holds_several, suite_of
from deidbench.toml_errors import complaint, line_of, loads

if TYPE_CHECKING:
    from deidbench.runner import Options
    from deidbench.suite import Suite

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CollectionTable(_Strict):
    """base: bundled suite whose protocol the experiments take.  source: where the published figures were read.

    differs: in words, how all experiments differ in kind from the published ones.
    """

    name: str = Field(min_length=1, max_length=40, pattern=_NAME)
    title: str = ""
    citation: str = ""
    base: str = "deidbench-v3"
    source: str = ""
    differs: list[str] = []


class DataTable(_Strict):
    """What a user may name.  get: where it is got.  layout: how its folder must look.

    dataset, params: the registered data set that reads it in the layout in which its authors hand it out, and its parameters;
    "" for none, the folder is then read by the generic one.
    known_as: beginnings of the names that it has in the ``trained_on`` of weights.
    """

    key: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9+-]*$")
    title: str
    citation: str = ""
    licence: str
    get: str
    layout: str
    dataset: str = ""
    params: dict[str, Any] = {}
    known_as: list[str] = []


class OptionalPart(PartTable):
    optional: bool = False


class OptionalMethod(MethodTable):
    optional: bool = False


class PublishedTable(_Strict):
    """A published figure, and which of our rows is to stand beside it.

    metric, label (labels: a line for each), convention, recognizer (also a classifier), method: as in a run's rows; comparison:
    how it begins.  title: the quantity in a few words.
    Of the following at most one: value; either: one of several, the source does not say which; more_than, less_than: a bound;
    words; instead_of: what was published is about something else, which is named; unknown: why no figure is given.
    where: the place in the publication.  note: what must be known about the figure.
    """

    metric: str = Field(min_length=1)
    title: str = ""
    method: str = Field(min_length=1)
    label: str = ""
    labels: list[str] = []
    convention: str = "headline"
    recognizer: str = ""
    comparison: str = ""
    value: float | None = None
    either: list[float] = []
    more_than: float | None = None
    less_than: float | None = None
    words: str = ""
    instead_of: str = ""
    unknown: str = ""
    where: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _one(self) -> PublishedTable:
        told = [k for k in ("value", "either", "more_than", "less_than", "words", "instead_of", "unknown") if self._has(k)]
        if len(told) != 1:
            raise ValueError(
                f"says {' and '.join(told) or 'nothing'} of what was published; exactly one of value, either, more_than, "
                "less_than, words, instead_of and unknown"
            )
        if self.label and self.labels:
            raise ValueError("label and labels: only one of them")
        if told[0] not in ("instead_of", "unknown") and not self.where:
            raise ValueError('where = "..." is missing: the place in the publication')
        return self

    def _has(self, name: str) -> bool:
        return getattr(self, name) not in (None, "", [])

    @property
    def given(self) -> bool:
        """Whether it is about a published figure that is known."""
        return not self.instead_of and not self.unknown


class _Parts(_Strict):
    metrics: list[PartTable] = []
    recognizers: list[OptionalPart] = []
    classifiers: list[OptionalPart] = []
    published: list[PublishedTable] = []
    differs: list[str] = []


class KindTable(_Parts):
    """What the experiments that ``use`` it have in common; their own parts come after these."""

    name: str = Field(min_length=1, pattern=_NAME)


class ExperimentTable(_Parts):
    name: str = Field(min_length=1, max_length=60, pattern=_NAME)
    title: str = ""
    data: str
    use: str = ""
    methods: list[OptionalMethod] = []


class CollectionFile(_Strict):
    collection: CollectionTable
    data: list[DataTable] = Field(min_length=1)
    methods: list[OptionalMethod] = []
    kinds: list[KindTable] = []
    experiments: list[ExperimentTable] = Field(min_length=1)
    #: Nothing is timed unless it is asked for.
    throughput: ThroughputTable = ThroughputTable(images=0)


@dataclass(frozen=True)
class Experiment:
    """An experiment with what it has in common with others laid in.  differs: without those of the whole collection."""

    name: str
    title: str
    data: DataTable
    metrics: tuple[PartTable, ...]
    recognizers: tuple[OptionalPart, ...]
    classifiers: tuple[OptionalPart, ...]
    methods: tuple[OptionalMethod, ...]
    published: tuple[PublishedTable, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    file: CollectionFile
    origin: str
    experiments: tuple[Experiment, ...]

    @property
    def name(self) -> str:
        return self.file.collection.name

    @cached_property
    def data(self) -> dict[str, DataTable]:
        return {d.key: d for d in self.file.data}


#: done: in this call.  earlier: in an earlier call with the same folder.  absent: its data were not given.  failed: see ``why``.
#: asked: left out, because others were asked for with ``--only``.
State = Literal["done", "earlier", "absent", "failed", "asked"]


@dataclass(frozen=True)
class Part:
    """How an experiment fared.

    skipped: optional part ("deepface:Facenet512") -> why it did not run.  changes: what ``--set`` and ``--only`` changed.
    """

    state: State
    folder: Path
    why: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    failed: int = 0
    unreadable: int = 0
    computed: Mapping[str, int] = field(default_factory=dict)
    error: DeidbenchError | None = None

    @property
    def there(self) -> bool:
        return self.state in ("done", "earlier")


# ------------------------------------------------------------------------------------------------------------- reading
def is_collection(source: str) -> bool:
    """Whether ``source`` names a bundled collection or a file that holds one."""
    if source in bundled():
        return False
    if source in bundled(collections=True):
        return True
    path = Path(source)
    try:
        return path.is_file() and holds_several(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):  # load_suite says what is wrong with it
        return False


def load_collection(source: str | Path) -> Collection:
    """Reads a collection: the name of a bundled one, or a file.  Raises SuiteError naming file and line."""
    text = bundled(collections=True).get(str(source))
    origin = f"{source}.toml" if text is not None else str(source)
    if text is None:
        try:
            text = Path(source).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"cannot read the collection {source}: {error}", "it is a UTF-8 TOML file") from error
    try:
        raw = loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{origin}: not valid TOML: {error}", "see https://toml.io for the format") from error
    file = _validate(raw, text, origin)
    return Collection(file, Path(origin).name, _experiments(file, text, origin))


def _validate(raw: Mapping[str, Any], text: str, origin: str) -> CollectionFile:
    try:
        return CollectionFile.model_validate(raw)
    except ValidationError as error:
        raise SuiteError(*complaint(error, CollectionFile, text, origin)) from None


def _experiments(file: CollectionFile, text: str, origin: str) -> tuple[Experiment, ...]:
    """Kinds laid in, and everything that names something else checked."""

    from deidbench.kinds import datasets

    def refuse(loc: Sequence[str | int], message: str, remedy: str) -> SuiteError:
        return SuiteError(f"{origin}:{line_of(text, loc)}: {message}", remedy)

    def pick(wanted: str, known: Sequence[str], what: str, loc: Sequence[str | int]) -> None:
        if wanted not in known:
            close = difflib.get_close_matches(wanted, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(known) or 'none'}"
            raise refuse(loc, f"no {what} {wanted!r}", hint)

    data = {d.key: d for d in file.data}
    for i, d in enumerate(file.data):
        if d.dataset:
            pick(d.dataset, datasets.names(), "data set", ("data", i, "dataset"))
    kinds = {k.name: k for k in file.kinds}
    for name, entries in (
        ("data", [d.key for d in file.data]),
        ("kinds", [k.name for k in file.kinds]),
        ("experiments", [e.name for e in file.experiments]),
    ):
        for i, entry in enumerate(entries):
            if entry in entries[:i]:
                raise refuse((name, i), f"{name} has {entry!r} twice", "give one of them another name")
    out = []
    for i, e in enumerate(file.experiments):
        pick(e.data, list(data), "[[data]] with the key", ("experiments", i, "data"))
        if e.use:
            pick(e.use, list(kinds), "[[kinds]] with the name", ("experiments", i, "use"))
        common = kinds.get(e.use, KindTable(name="none"))
        k = next((j for j, kind in enumerate(file.kinds) if kind.name == e.use), -1)
        found = Experiment(
            e.name,
            e.title or e.name,
            data[e.data],
            (*common.metrics, *e.metrics),
            (*common.recognizers, *e.recognizers),
            (*common.classifiers, *e.classifiers),
            (*file.methods, *e.methods),
            (*e.published, *common.published),
            (*e.differs, *common.differs),
        )
        for name in ("metrics", "recognizers", "methods"):
            if not getattr(found, name):
                raise refuse(
                    ("experiments", i), f"experiment {e.name!r} has no {name}", f"add them, or use = KIND that has {name}"
                )
        places: list[tuple[str | int, ...]] = [("experiments", i, "published", j) for j in range(len(e.published))]
        places += [("kinds", k, "published", j) for j in range(len(common.published))]
        for published, loc in zip(found.published, places, strict=True):
            _check(found, published, loc, pick)
        out.append(found)
    return tuple(out)


def part_name(part: PartTable) -> str:
    """What a recogniser or classifier is called in a run's rows."""
    return part.name + (f":{part.params['variant']}" if "variant" in part.params else "")


def _check(
    experiment: Experiment,
    published: PublishedTable,
    loc: tuple[str | int, ...],
    pick: Callable[[str, Sequence[str], str, Sequence[str | int]], None],
) -> None:
    from deidbench import kinds

    known = [q.name for m in experiment.metrics for q in kinds.metrics.get(m.name).quantities]
    if "@" not in published.metric:  # those are named by the protocol's numbers
        pick(published.metric, known, f"quantity of this experiment's metrics ({experiment.name})", (*loc, "metric"))
    pick(published.method, [m.label or m.name for m in experiment.methods], "method", (*loc, "method"))
    if published.recognizer:
        readers = [part_name(p) for p in (*experiment.recognizers, *experiment.classifiers)]
        pick(published.recognizer, readers, "recogniser or classifier", (*loc, "recognizer"))


# ------------------------------------------------------------------------------------------------------------- running
def given_data(collection: Collection, arguments: Sequence[str]) -> dict[str, Path]:
    """``--data KEY=FOLDER`` arguments as key -> folder.  Raises InputError for what is none."""
    known = list(collection.data)
    out: dict[str, Path] = {}
    for argument in arguments:
        key, equals, folder = argument.partition("=")
        if not equals or not folder or (key not in known and Path(argument).exists()):
            raise InputError(
                f"--data {argument}: {collection.name} must know which data that is",
                f"--data KEY=FOLDER with KEY one of {', '.join(known)}",
            )
        if key not in known:
            close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
            hint = f"did you mean --data {close[0]}={folder}?" if close else f"it knows: {', '.join(known)}"
            raise InputError(f"--data {argument}: {collection.name} has no data called {key!r}", hint)
        if key in out:
            raise InputError(f"--data {key}=... is given twice", "one folder for each")
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise InputError(
                f"--data {argument}: no such folder",
                f"a folder: {collection.data[key].layout}",
            )
        out[key] = path
    return out


def ready(experiment: Experiment) -> dict[str, str]:
    """Optional parts that are not ready: name -> why, with the remedy on a line of its own."""
    from deidbench import kinds

    out: dict[str, str] = {}
    for registry, parts in ((kinds.recognizers, experiment.recognizers), (kinds.classifiers, experiment.classifiers)):
        for part in parts:
            if part.optional:
                try:
                    problem = registry.create(part.name, **part.params).missing()
                except DeidbenchError as error:
                    problem = str(error)
                if problem:
                    out[part_name(part)] = problem
    for method in experiment.methods:
        if method.optional:
            try:
                anonymizer = kinds.anonymizers.create(method.name, **method.params)
                anonymizer.validate()
                _ = anonymizer.fingerprint  # of a program of its own: looks whether all of it is there
            except DeidbenchError as error:
                out[method.label or method.name] = str(error)
    # No personal paths in what is written.
    return {name: why.replace(str(Path.home()), "~") for name, why in out.items()}


def dataset_for(data: DataTable, folder: Path) -> dict[str, Any]:
    """The suite's table ``[dataset]`` that reads ``folder``.

    The official layout by the set's own loader; else ``manifest.csv``, or one sub-folder per person, by the generic data set.  A
    set that names no persons is never read by the generic one, which would take its sub-folders, or a column, for persons.
    """
    from deidbench import kinds
    from deidbench.datasets.official import OfficialDataset

    root = str(folder.resolve())
    generic = {"name": "folder", "params": {"root": root}}
    if not data.dataset:
        return generic
    params = {**data.params, "root": root}
    reader = kinds.datasets.create(data.dataset, **params)
    if isinstance(reader, OfficialDataset) and reader.identities and not reader.recognises(folder):
        return generic
    return {"name": data.dataset, "params": params}


def suite_for(
    collection: Collection,
    experiment: Experiment,
    folder: Path,
    without: Mapping[str, str] = {},
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Suite:
    """The ordinary suite of an experiment on ``folder``.  without: parts that are left out."""

    def tables(parts: Sequence[BaseModel]) -> list[dict[str, Any]]:
        return [p.model_dump(exclude={"optional"}, exclude_defaults=True) for p in parts]

    raw = {
        "suite": {
            "name": f"{collection.name}.{experiment.name}",
            "title": experiment.title,
            "protocol": collection.file.collection.base,
            "extends": collection.file.collection.base,
            "inherit_methods": False,
        },
        "dataset": dataset_for(experiment.data, folder),
        "metrics": tables(experiment.metrics),
        "recognizers": tables([r for r in experiment.recognizers if part_name(r) not in without]),
        "classifiers": tables([c for c in experiment.classifiers if part_name(c) not in without]),
        "methods": tables([m for m in experiment.methods if (m.label or m.name) not in without]),
        "throughput": collection.file.throughput.model_dump(),
    }
    return suite_of(raw, f"{collection.origin} ({experiment.name})", overrides, only)


def run_collection(
    collection: Collection,
    data: Mapping[str, Path],
    out: Path,
    options: Options,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    report: Callable[[Path], object] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Part]:
    """Runs every experiment whose data are given, and writes ``OUT/paper.*`` after each.

    only: names of experiments, and of methods.  report: called with the folder of each run.  An experiment that its data or a
    missing part stops does not stop the others; what the machine does wrong (disk full) stops all.
    Returns how each experiment fared, in the collection's order.
    """
    from deidbench.report.paper import write_paper
    from deidbench.runner import run_suite

    names = [e.name for e in collection.experiments]
    chosen, methods = [n for n in only if n in names], [n for n in only if n not in names]
    changes = (*(f"--set {o}" for o in overrides), *(f"--only {m}" for m in methods))
    parts: dict[str, Part] = {}
    suites: dict[str, Suite] = {}
    for e in collection.experiments:
        folder = out / e.name
        earlier = (folder / "run.json").is_file()
        wanted = e.data.key in data and (not chosen or e.name in chosen)
        skipped = ready(e) if wanted or not earlier else {}
        if wanted:
            for method in methods:
                if method in skipped:
                    raise MissingError(f"--only {method}: not ready: {skipped[method]}", "leave it out of --only")
            # All of them before anything is computed: a mistake in --set costs no hour.
            suites[e.name] = suite_for(collection, e, data[e.data.key], skipped, overrides, methods)
            parts[e.name] = Part("asked", folder, "it did not come to it", skipped, changes)
        elif earlier:
            parts[e.name] = Part("earlier", folder, skipped=ready(e))
        elif e.data.key in data:
            parts[e.name] = Part("asked", folder, "left out with --only", skipped)
        else:
            parts[e.name] = Part("absent", folder, f"no data: --data {e.data.key}=FOLDER", skipped)
    if suites or any(p.there for p in parts.values()):
        write_paper(collection, out, parts)
    for name, suite in suites.items():
        say(f"{name}: {suite.file.suite.title}")
        before = parts[name]
        try:
            result = run_suite(suite, before.folder, options)
            if report is not None:
                report(before.folder)
        except (InputError, MissingError) as error:
            parts[name] = Part(
                "failed", before.folder, str(error).replace(str(Path.home()), "~"), before.skipped, changes, error=error
            )
        else:
            parts[name] = Part(
                "done", before.folder, "", before.skipped, changes, result.failed, result.unreadable, result.computed
            )
        write_paper(collection, out, parts)
    return parts
