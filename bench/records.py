"""What a run leaves behind, with schema versions: rows, curves, the run record, and how to read them.

A run folder holds

====================  ==========================================================================================
``run.json``          the run record: protocol, suite, versions, commit, seeds, hashes, hardware, timings, counts
``rows.parquet``      one :class:`Row` per figure (also ``rows.json``)
``curves.parquet``    one :class:`Curve` point per line
``evidence.parquet``  what the figures are made of, per person: two runs are compared by it (:mod:`deidbench.evidence`)
``images.parquet``    one line per (method, image): status, FTA, per-image measures, artefact keys
``samples/``          the pictures of the sample grid
``run.lock``          while a run writes the folder (:mod:`deidbench.lock`)
``schema-N/``         the originals, after ``deidbench history --upgrade`` (:mod:`deidbench.migrations`)
``tables/`` ``figures/`` ``report.html``   made from the above by ``deidbench report``
====================  ==========================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench import record_shape
from deidbench.errors import InputError, MissingError

if TYPE_CHECKING:
    import pandas as pd

    from deidbench.stats.evidence import Evidence

#: Of the run folder.  Raised by one when an entry or column changes its meaning or goes, or when all runs may be relied on to have one
#: that was added before; each raise comes with a step in :mod:`deidbench.migrations`, which reads older folders.
SCHEMA_VERSION = 2
#: Of the columns of :class:`Row` and :class:`Curve`; part of the store's keys of findings.
ROWS_VERSION = 1

#: How failures to acquire enter a figure (PROTOCOL: the headline includes the attacker's fallback crop).
CONVENTIONS = ("headline", "without_fta", "fta_as_miss")


@dataclass(frozen=True)
class Row:
    """One figure with its counts and interval.

    dataset: name of the data set.  method: the configured method's label, unique in the suite.
    metric: name of the quantity, e.g. ``reid.rank1``.  unit: ``rate`` (0..1), ``faces/s``, ...
    higher_is_better: for somebody who chooses an anonymizer; None where neither direction is.
    value: the figure, None where it cannot be computed (``reason`` says why).
    reason: why there is no figure, empty where there is one.
    lo, hi: bounds of the interval, each None where it cannot be computed (``ci_reason`` says why, never 0 +- 0).
    ci_reason: why there is no interval, empty where there is one.
    ci_level: level of the interval, e.g. 0.95.  ci_method: how it was made, e.g. "person bootstrap, 10000 replicates".
    recognizer: the recogniser, or classifier, that looked.  attacker: who attacked.  convention: what failures count as.
    comparison: who was compared with whom, or what a classifier learnt from.  Each of the four is empty where it does not apply.
    label: what the figure is about where one metric speaks of several things (an attribute, a group of persons).
    n_images: images in the figure's denominator.  n_persons: persons in it.  n_failed: images the method did not release.
    n_fta: released images in which no face was found.
    threshold: similarity at or above which two images are taken for one person, for figures at a fixed threshold.
    realised_fmr: for figures at a fixed threshold, the FMR that the threshold really gave.
    chance: what guessing gives, None where that has no meaning.  family: the metric that reports it.
    trusted: False when the attacker's own sanity check failed (``note`` says which).
    timing: True for wall-clock figures, which no two runs share to the digit.
    note: remarks that belong to the figure, separated by semicolons.  schema: version of these columns.
    evidence: what the figure is made of; not a column of the table (:mod:`deidbench.evidence` keeps it), None where nothing
    can be compared.
    """

    dataset: str
    method: str
    metric: str
    unit: str
    higher_is_better: bool | None
    value: float | None
    lo: float | None = None
    hi: float | None = None
    ci_level: float | None = None
    ci_method: str = ""
    ci_reason: str = ""
    reason: str = ""
    recognizer: str = ""
    attacker: str = ""
    convention: str = ""
    comparison: str = ""
    n_images: int = 0
    n_persons: int = 0
    n_failed: int = 0
    n_fta: int = 0
    threshold: float | None = None
    realised_fmr: float | None = None
    chance: float | None = None
    family: str = ""
    trusted: bool = True
    timing: bool = False
    note: str = ""
    label: str = ""
    schema: int = ROWS_VERSION
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    def plain(self) -> dict[str, Any]:
        """All columns of the table by name."""
        return {f.name: getattr(self, f.name) for f in columns_of(Row)}


@dataclass(frozen=True)
class Curve:
    """One point of a curve.

    dataset, method, recognizer, attacker, convention: whose curve, as in :class:`Row`.  x, y: the point.  lo, hi: bounds of y.
    schema: version of these columns.
    curve: ``cmc`` (x rank, y identification rate), ``det`` (x FMR, y FNMR), ``scores_genuine`` or ``scores_impostor`` (x lower edge
    of a bin, y share of the pairs in it; both kinds have the same bins of equal width).  Bounds as in :class:`Row`, pointwise.
    """

    dataset: str
    method: str
    curve: str
    recognizer: str
    attacker: str
    convention: str
    x: float
    y: float
    lo: float | None = None
    hi: float | None = None
    schema: int = ROWS_VERSION

    def plain(self) -> dict[str, Any]:
        """All columns of the table by name."""
        return asdict(self)


class Clock:
    """When something started, and how long it has taken; a clock that is set meanwhile does no harm and is told."""

    #: Seconds by which the clock may drift from the time that passed before it counts as set.
    TOLERANCE_S = 5.0

    def __init__(self) -> None:
        self.started = self.now()
        self._start = _passed()

    @staticmethod
    def now() -> datetime:
        """What the machine takes for the time (UTC)."""
        return datetime.fromtimestamp(time.time(), UTC)

    def record(self) -> dict[str, float]:
        """elapsed_s: seconds that passed since, whatever the clock says.  set_s: by how many the clock was set meanwhile
        (negative: back), 0 where it was not."""
        elapsed = _passed() - self._start
        off = (self.now() - self.started).total_seconds() - elapsed
        return {"elapsed_s": round(elapsed, 3), "set_s": round(off, 1) if abs(off) > self.TOLERANCE_S else 0.0}


def _passed() -> float:
    """Seconds of a clock that nobody sets; it goes on while the machine sleeps, where the system has such a one."""
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if kind is None else time.clock_gettime(kind)


def columns_of(kind: type[Row] | type[Curve]) -> list[Any]:
    """The fields that are columns of the table."""
    return [f for f in fields(kind) if f.name != "evidence"]


def frame(records: Iterable[Row] | Iterable[Curve], kind: type[Row] | type[Curve]) -> pd.DataFrame:
    """Records as a table with one column per field, in the order of the fields; empty lists keep the columns."""
    import pandas as pd

    return pd.DataFrame([r.plain() for r in records], columns=[f.name for f in columns_of(kind)])


@dataclass(frozen=True, eq=False)
class Run:
    """A run read back from its folder: the record and its tables (rows, curves, images as pandas frames)."""

    folder: Path
    record: Mapping[str, Any]
    rows: pd.DataFrame
    curves: pd.DataFrame
    images: pd.DataFrame


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run as its version wrote it.

    Raises MissingError where there is none, InputError where it is damaged or newer than this deidbench.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        from deidbench.migrations import refuse_half

        refuse_half(Path(folder))
        raise MissingError(
            f"{folder} is not a finished run (it has no run.json)", "deidbench run SUITE.toml --out FOLDER makes one"
        )
    try:
        record = record_shape.read_record(path)
        schema = record["schema"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is damaged: {error}", "run the same deidbench run command again; finished work is reused"
        ) from error
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise InputError(
            f"{path} is damaged: its schema is {schema!r}", "run the same deidbench run command again; finished work is reused"
        )
    if schema > SCHEMA_VERSION:
        made = record.get("deidbench")
        raise InputError(
            f"{path} was written by a newer deidbench{f' ({made})' if made else ''}: its schema is {schema}, this one reads up to {SCHEMA_VERSION}",
            "pip install --upgrade deidbench",
        )
    return record


def _kinds(kind: type[Row] | type[Curve]) -> tuple[list[str], ...]:
    """Columns that hold texts, numbers, whole numbers, and true or false."""
    of = {f.name: str(f.type).removesuffix(" | None") for f in columns_of(kind)}
    return tuple([n for n, t in of.items() if t == wanted] for wanted in ("str", "float", "int", "bool"))


_KINDS = {
    "rows": _kinds(Row),
    "curves": _kinds(Curve),
    "images": (["method", "id", "subject_id", "role", "status", "reason", "output_sha256"], [], [], ["withheld", "fta"]),
}


def read_run(folder: Path) -> Run:
    """Reads a run folder; one of an older version as the present version would have written it (:mod:`deidbench.migrations`).

    No file is changed.  Raises MissingError where it is none, InputError where it is damaged or newer than us.
    """
    import pandas as pd

    from deidbench.migrations import migrate

    folder = Path(folder)
    record = read_record(folder)
    if odd := record_shape.faults(record):
        more = f" (and {len(odd) - 3} more)" if len(odd) > 3 else ""
        raise InputError(
            f"{folder / 'run.json'} is damaged: {'; '.join(odd[:3])}{more}",
            "run the same deidbench run command again; finished work is reused",
        )
    tables = {}
    for name, kinds in _KINDS.items():
        file = folder / f"{name}.parquet"
        if not file.is_file():  # a pipe would be waited for without end
            raise MissingError(f"{file} is missing", "run the same deidbench run command again; finished work is reused")
        try:
            record_shape.bounded(file)
            tables[name] = pd.read_parquet(file)
            if odd := record_shape.table_faults(tables[name], *kinds):
                raise ValueError("; ".join(odd[:3]))
        except Exception as error:  # pyarrow raises many kinds; all mean the same to the user
            raise InputError(
                f"{file} is damaged: {error}", "run the same deidbench run command again; finished work is reused"
            ) from error
    return migrate(Run(folder, record, **tables))
