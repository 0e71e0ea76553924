"""What a run leaves behind, with schema versions: rows, curves, the run record, and how to read them.

A run folder holds

====================  ==========================================================================================
``run.json``          the run record: protocol, suite, versions, commit, seeds, hashes, hardware, timings, counts
``rows.parquet``      one :class:`Row` per figure (also ``rows.json``)
``curves.parquet``    one :class:`Curve` point per line
``evidence.parquet``  what the figures are made of, per person: two runs are compared by it (:mod:`deidbench.evidence`)
``images.parquet``    one line per (method, image): status, FTA, per-image measures, artefact keys
``samples/``          the pictures of the sample grid
``tables/`` ``figures/`` ``report.html``   made from the above by ``deidbench report``
====================  ==========================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.errors import InputError, MissingError

if TYPE_CHECKING:
    import pandas as pd

    from deidbench.stats.evidence import Evidence

#: Raised by one when a column changes its meaning or goes; added columns do not raise it.
SCHEMA_VERSION = 1

#: How failures to acquire enter a figure (PROTOCOL: the headline includes the attacker's fallback crop).
CONVENTIONS = ("headline", "without_fta", "fta_as_miss")


@dataclass(frozen=True)
class Row:
    """One figure with its counts and interval.

    dataset, method: which data set and which configured method (the method's unique label in the suite).
    metric: name of the quantity, e.g. ``reid.rank1``.  unit: ``rate`` (0..1), ``faces/s``, ...
    higher_is_better: for somebody who chooses an anonymizer; None where neither direction is.
    value: the figure, None where it cannot be computed (``reason`` says why).
    reason: why there is no figure, empty where there is one.
    lo, hi: interval bounds, each None where it cannot be computed (``ci_reason`` says why, never 0 +- 0).
    ci_reason: why there is no interval, empty where there is one.
    ci_level, ci_method: e.g. 0.95 and "person bootstrap, 10000 replicates, gallery fixed".
    recognizer, attacker, convention, comparison: empty where they do not apply.
    label: what the figure is about where one metric speaks of several things (an attribute, a group of persons).
    n_images, n_persons: in the figure's denominator.  n_failed: images the method did not release.
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
    schema: int = SCHEMA_VERSION
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
    schema: int = SCHEMA_VERSION

    def plain(self) -> dict[str, Any]:
        """All columns of the table by name."""
        return asdict(self)


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


def read_run(folder: Path) -> Run:
    """Reads a run folder.  Raises MissingError where it is none, InputError where it is damaged or newer than us."""
    import pandas as pd

    folder = Path(folder)
    path = folder / "run.json"
    if not path.is_file():
        raise MissingError(
            f"{folder} is not a finished run (it has no run.json)", "deidbench run SUITE.toml --out FOLDER makes one"
        )
    try:
        record = json.loads(path.read_text("utf-8"))
        schema = record["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged: {error}", "run the same deidbench run command again; finished work is reused"
        ) from error
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema {schema!r}, this deidbench reads up to {SCHEMA_VERSION}", "pip install --upgrade deidbench"
        )
    tables = {}
    for name in ("rows", "curves", "images"):
        file = folder / f"{name}.parquet"
        try:
            tables[name] = pd.read_parquet(file)
        except FileNotFoundError as error:
            raise MissingError(
                f"{file} is missing", "run the same deidbench run command again; finished work is reused"
            ) from error
        except Exception as error:  # pyarrow raises many kinds; all mean the same to the user
            raise InputError(
                f"{file} is damaged: {error}", "run the same deidbench run command again; finished work is reused"
            ) from error
    return Run(folder, record, **tables)
