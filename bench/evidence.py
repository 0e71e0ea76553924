"""Evidence of figures in files: beside a run's rows (``evidence.parquet``), and in the store with a metric's findings.

Rows that share one piece of evidence (a figure under two conventions that are the same) share one entry.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deidbench import record_shape
from deidbench.errors import InputError, MissingError
from deidbench.records import Curve, Row
from deidbench.stats.evidence import DISTRIBUTION, FORMS, REPEATS, Evidence

REMEDY = "run the same deidbench run command again; finished work is reused"
FILE = "evidence.parquet"
#: Of what :func:`pack` makes; part of the store's keys.
VERSION = 1


def _entries(rows: Sequence[Row]) -> tuple[list[Evidence], list[list[int]]]:
    """The different pieces of evidence, and which rows each belongs to."""
    place: dict[int, int] = {}
    found: list[Evidence] = []
    whose: list[list[int]] = []
    for i, row in enumerate(rows):
        if row.evidence is None:
            continue
        if id(row.evidence) not in place:
            place[id(row.evidence)] = len(found)
            found.append(row.evidence)
            whose.append([])
        whose[place[id(row.evidence)]].append(i)
    return found, whose


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Columns: rows (numbers of the lines of ``rows.parquet``), form, persons, names, width, columns (flat, row by row), replicates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, whose = _entries(rows)
    table = pa.table(
        {
            "rows": pa.array(whose, pa.list_(pa.int32())),
            "form": pa.array([e.form for e in found], pa.string()),
            "persons": pa.array([e.persons for e in found], pa.int32()),
            "names": pa.array([list(e.names) for e in found], pa.list_(pa.string())),
            "width": pa.array([e.columns.shape[1] for e in found], pa.int32()),
            "columns": pa.array([e.columns.ravel() for e in found], pa.list_(pa.float64())),
            # differences of replicates are asked to three digits; half the bytes do
            "replicates": pa.array([e.replicates.astype(np.float32) for e in found], pa.list_(pa.float32())),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(  # type: ignore[no-untyped-call]
        table, buffer, compression="zstd", use_dictionary=["form", "columns.list.element"]
    )
    return buffer.getvalue()


def read(folder: Path, rows: int) -> dict[int, Evidence]:
    """Evidence of a run's rows by their line in ``rows.parquet``.

    rows: how many lines that has.  Raises MissingError where the run has no evidence (one of an older version), InputError,
    naming the file, where it is damaged.
    """
    import pyarrow as pa

    path = folder / FILE
    if not path.is_file():
        raise MissingError(f"{path} is missing: figures of this run cannot be compared", REMEDY)
    try:
        record_shape.bounded(path)
        table = _columns(path)
        out: dict[int, Evidence] = {}
        for i, form in enumerate(table["form"]):
            if form not in (*FORMS, DISTRIBUTION, REPEATS):
                raise ValueError(f"unknown form {form!r}")
            width, flat = table["width"][i], np.asarray(table["columns"][i], np.float64)
            if width < 0 or (flat.size and (width < 1 or flat.size % width)):
                raise ValueError(f"{flat.size} numbers do not make rows of {width}")
            evidence = Evidence(
                form,
                flat.reshape(-1, width) if flat.size else np.empty((0, 0)),
                np.asarray(table["replicates"][i], np.float64),
                int(table["persons"][i]),
                tuple(table["names"][i]),
            )
            if fault := evidence.fault():
                raise ValueError(fault)
            for r in table["rows"][i]:
                if not 0 <= r < rows:
                    raise ValueError(f"row {r} of {rows}")
                if r in out:
                    raise ValueError(f"row {r} has two pieces of evidence")
                out[r] = evidence
    except KeyError as error:
        raise InputError(f"{path} is damaged: it has no column {error}", REMEDY) from error
    except (OSError, ValueError, TypeError, IndexError, MemoryError, NotImplementedError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged: {error}", REMEDY) from error
    return out


def _columns(path: Path) -> dict[str, Any]:
    """The file's columns by name, the numbers as arrays: Python floats would take ten times the memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)  # type: ignore[no-untyped-call]
    out: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in ("columns", "replicates"):
            if not pa.types.is_list(column.type):
                raise ValueError(f"{name} are not lists but {column.type}")
            flat, ends = column.flatten().to_numpy(zero_copy_only=False), column.offsets.to_numpy()
            out[name] = [flat[a - ends[0] : b - ends[0]] for a, b in itertools.pairwise(ends)]
        else:
            out[name] = column.to_pylist()
    return out


# --- with a metric's findings, in the store


def pack(rows: Sequence[Row], curves: Sequence[Curve]) -> bytes:
    """Rows with their evidence, and curves, as JSON."""
    found, whose = _entries(rows)
    kept = [
        {
            "rows": which,
            "form": e.form,
            "persons": e.persons,
            "names": e.names,
            "width": e.columns.shape[1],
            "columns": _text(e.columns),
            "replicates": _text(e.replicates),
        }
        for e, which in zip(found, whose, strict=True)
    ]
    return json.dumps(
        {"rows": [r.plain() for r in rows], "curves": [c.plain() for c in curves], "evidence": kept}
    ).encode()  # fmt: skip


def unpack(data: bytes) -> tuple[list[Row], list[Curve]]:
    """What :func:`pack` packed."""
    record = json.loads(data)
    rows: list[dict[str, Any]] = record["rows"]
    for e in record["evidence"]:
        columns = _numbers(e["columns"])
        evidence = Evidence(
            e["form"],
            columns.reshape(-1, e["width"]) if columns.size else np.empty((0, 0)),
            _numbers(e["replicates"]),
            e["persons"],
            tuple(e["names"]),
        )
        for r in e["rows"]:
            rows[r]["evidence"] = evidence
    return [Row(**r) for r in rows], [Curve(**c) for c in record["curves"]]


def _text(x: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(x, "<f8").tobytes(), 1)).decode("ascii")


def _numbers(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f8").astype(np.float64)
