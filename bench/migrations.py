"""Runs of older versions, read as the present version would have written them.

A run folder says in ``run.json`` which schema it has (:data:`deidbench.records.SCHEMA_VERSION`).  For every schema but the present
one there is a :class:`Step` to the next; :func:`migrate` takes them one after the other, on what was loaded.  No file is changed, but
by :func:`upgrade`, which keeps the originals.

=======  =============================================================================================================
schema   what is new
=======  =============================================================================================================
1        The first.  While it was in force entries and columns were added without a word: attackers, classifiers, the
         protocol's level, templates, seeds and FPIR, hashes of weights and of outputs, labels of rows.  Whether something was
         absent because the run was older or because it was damaged could not be told.
2        All of these are there in every run.  ``run`` also holds ``store`` (identity, turn: the order of runs that no clock can
         upset), ``clock`` (seconds that passed, by how many the clock was set meanwhile) and ``changed_files``; in a run that was
         schema 1 they say that it is not known.
=======  =============================================================================================================
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.errors import InputError, MissingError
from deidbench.records import SCHEMA_VERSION, Run

if TYPE_CHECKING:
    import pandas as pd

#: Tables of a run folder that steps may change.
TABLES = ("rows", "curves", "images")


@dataclass(frozen=True)
class Step:
    """From one schema to the next.

    record: changes the run record in place; must bear entries of the wrong kind, which others complain of.
    columns: table -> column -> what it holds where a run has no such column.
    tables: table -> what else becomes of it; gives as many lines in the same order, since evidence goes by their numbers.
    """

    record: Callable[[dict[str, Any]], None]
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = field(default_factory=dict)


def _fill(target: Any, entries: Mapping[str, Any]) -> None:
    """Adds those of ``entries`` that ``target`` lacks."""
    if isinstance(target, dict):
        for name, value in entries.items():
            target.setdefault(name, copy.deepcopy(value))


def _each(record: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    listed = record.get(name)
    yield from (e for e in (listed if isinstance(listed, list) else []) if isinstance(e, dict))


def _complete(record: dict[str, Any]) -> None:
    """Schema 1 -> 2: what was added to schema 1 over time, as the older program had it."""
    _fill(
        record, {"suite": {}, "protocol": {}, "dataset": {}, "methods": [], "recognizers": [], "classifiers": [], "metrics": []}
    )
    _fill(record, {"environment": {}, "run": {}, "timings": {}, "started": "", "finished": "", "finder": ""})
    learners = {
        "dataset": "", "roles": [], "reason": "a run of an older version, whose attackers learnt nothing", "n_images": 0,
        "n_persons": 0, "manifest_sha256": hashlib.sha256(b"").hexdigest(), "attackers": [],
    }  # fmt: skip
    _fill(record, {"attackers": learners})
    _fill(record["attackers"], learners)
    if isinstance(record["protocol"], dict) and record["protocol"]:
        # whole frames and single images are all that there was; of attackers that learn, and of open sets, there were no figures
        _fill(record["protocol"], {"fpir": [0.1, 0.01], "level": "frame", "templates": "image", "seeds": 3})
    if isinstance(record["dataset"], dict) and record["dataset"]:
        # pictures were kept of every data set, and whether they may be shown was not asked
        _fill(record["dataset"], {"shows_faces": None, "identities": True})
    for method in _each(record, "methods"):
        _fill(method, {"weights_sha256": "", "guarantee": "", "trained_on": [], "deterministic": None})
    for classifier in _each(record, "classifiers"):
        # any overlap cast doubt on a classifier's figures, however slight
        _fill(classifier, {"overlap": "", "lessons": {}})
        _fill(classifier, {"contaminated": bool(classifier["overlap"])})
    _fill(
        record["run"],
        {"faces": None, "damaged_artefacts": 0, "computed": {}, "store": None, "clock": None, "changed_files": {}},
    )


#: Schema -> the step to the next one.
STEPS: Mapping[int, Step] = {
    1: Step(
        _complete,
        columns={
            "rows": {"label": "", "reason": "", "ci_reason": "", "family": "", "note": "", "trusted": True, "timing": False},
            "images": {"copy_of": "", "output_sha256": ""},
        },
    ),
}


def steps(schema: int) -> list[Step]:
    """The steps from ``schema`` to the present one."""
    return [STEPS[n] for n in range(schema, SCHEMA_VERSION)]


def migrate_record(record: Mapping[str, Any], *, in_place: bool = False) -> dict[str, Any]:
    """The record of a run of whatever schema, as the present version would have written it.

    in_place: ``record`` is a dict that nobody else has, and may be changed.
    """
    found: dict[str, Any] = record if in_place and isinstance(record, dict) else copy.deepcopy(dict(record))
    for step in steps(found["schema"]):
        step.record(found)
    found["schema"] = SCHEMA_VERSION
    return found


def columns(schema: int, table: str) -> dict[str, Any]:
    """Columns that a table of ``schema`` may lack -> what they hold then."""
    return {name: value for step in steps(schema) for name, value in step.columns.get(table, {}).items()}


def plain(schema: int, table: str) -> bool:
    """Does nothing but :func:`columns` become of a table?  Then it can be read where it lies."""
    return not any(table in step.tables for step in steps(schema))


def migrate_table(schema: int, name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table of ``schema`` as the present version would have written it; as many lines in the same order."""
    lines = len(table)
    for step in steps(schema):
        if missing := {c: v for c, v in step.columns.get(name, {}).items() if c not in table}:
            table = table.assign(**missing)
        if change := step.tables.get(name):
            table = change(table)
    assert len(table) == lines, "evidence goes by the numbers of the lines"
    return table


def migrate(run: Run) -> Run:
    """A run of whatever schema as the present version would have written it; no file is changed."""
    schema = run.record["schema"]
    if schema == SCHEMA_VERSION:
        return run
    rows, curves, images = (migrate_table(schema, name, getattr(run, name)) for name in TABLES)
    return replace(run, record=migrate_record(run.record), rows=rows, curves=curves, images=images)


# --- in the folder itself, where somebody asks for it


def kept(folder: Path, schema: int) -> Path:
    """Where :func:`upgrade` keeps the originals."""
    return Path(folder) / f"schema-{schema}"


def upgrade(folder: Path) -> int | None:
    """Writes a run folder of an older version anew in the present schema; the originals are kept in ``schema-N/``.

    Returns the schema that it had, None where there was nothing to do.  Killed on the way it leaves the originals and no record;
    the same call finishes it.  Raises what :func:`~deidbench.records.read_run` raises, and InputError where a run is writing.
    """

    from deidbench.images import atomic_write, make_folder
    from deidbench.lock import run_lock
    from deidbench.records import read_record, read_run

    folder = Path(folder)
    if not folder.is_dir():
        raise MissingError(f"{folder} is not a run folder", "deidbench run SUITE.toml --out FOLDER makes one")
    with run_lock(folder):
        if (half := interrupted(folder)) is not None:  # go back to the beginning
            for original in sorted(half.iterdir()):
                if original.name != "run.json":
                    atomic_write(folder / original.name, original.read_bytes())
            atomic_write(folder / "run.json", (half / "run.json").read_bytes())
        record = read_record(folder)
        schema = int(record["schema"])
        if schema == SCHEMA_VERSION:
            return None
        run = read_run(folder)
        there = kept(folder, schema)
        make_folder(there)
        names = [n for n in (*(f"{t}.parquet" for t in TABLES), "rows.json", "run.json") if (folder / n).is_file()]
        for name in names:  # the record last: with it the originals are complete
            atomic_write(there / name, (folder / name).read_bytes())
        (folder / "run.json").unlink()
        for table in TABLES:
            frame: pd.DataFrame = getattr(run, table)
            atomic_write(folder / f"{table}.parquet", frame.to_parquet(index=False))
        if "rows.json" in names:
            atomic_write(folder / "rows.json", run.rows.to_json(orient="records", indent=1, double_precision=15))
        atomic_write(folder / "run.json", json.dumps({**run.record, "upgraded_from": schema}, indent=1, default=str))
        return schema


def interrupted(folder: Path) -> Path | None:
    """Where the originals are, if an :func:`upgrade` of ``folder`` was stopped on the way."""
    if (Path(folder) / "run.json").exists():
        return None
    return next((f for n in range(SCHEMA_VERSION, 0, -1) if ((f := kept(folder, n)) / "run.json").is_file()), None)


def refuse_half(folder: Path) -> None:
    """Raises InputError where an upgrade of ``folder`` was stopped on the way."""
    if (half := interrupted(folder)) is not None:
        raise InputError(
            f"the upgrade of {folder} was interrupted; its originals are in {half}",
            f"deidbench history {folder} --upgrade finishes it",
        )
