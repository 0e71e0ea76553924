"""Is a run's record, and are its tables, of the shape that everything which reads them takes for granted?

A run folder may come from anybody.  What is looked at here is types and sizes; whether figures make sense is for others to ask
(:mod:`deidbench.comparable`).  What is absent is no fault: a run of an older version has fewer entries.
"""

from __future__ import annotations

import functools
import glob
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Bytes of a record and storeys of values within values; those of the largest data sets come nowhere near.
LARGEST, DEEPEST = 1 << 28, 40
#: Whole numbers beyond this are none of ours, and libraries that count in 64 bits fall over them.
MOST = 2**63
#: Values in a table (of lists: in all lists together) beyond a number that any file may have, for each byte of the file.  Columns
#: that repeat one value take next to nothing, so that a small file can fill any memory.
FREE_VALUES, VALUES_PER_BYTE = 20_000_000, 200
#: Bytes of a column, unpacked, for each byte of the file, and as many as any file may have.
FREE_BYTES, BYTES_PER_BYTE = 1 << 28, 1000

_TEXT, _NUMBER, _WHOLE, _FLAG = "text", "number", "whole number", "true or false"
#: Any number of entries of one kind, under any name.
_ANY = "*"
_PART: Mapping[str, Any] = {
    "name": _TEXT,
    "params": {},
    "trained_on": [_TEXT],
    "weights_sha256": _TEXT,
    "runtime": _TEXT,
    "fingerprint": _TEXT,
}
#: Kinds of the entries: a name, a table of entries, or a list of one kind.  Others may hold what they like.
SHAPE: Mapping[str, Any] = {
    "deidbench": _TEXT, "started": _TEXT, "finished": _TEXT, "finder": _TEXT,
    "suite": {"name": _TEXT, "title": _TEXT, "file": _TEXT, "sha256": _TEXT},
    "protocol": {
        "name": _TEXT, "comparison": _TEXT, "level": _TEXT, "seed": _WHOLE, "enrolled": _WHOLE, "seeds": _WHOLE, "replicates": _WHOLE,
        "curve_replicates": _WHOLE, "confidence": _NUMBER, "min_clear_rank1": _NUMBER, "max_clear_eer": _NUMBER, "ranks": [_WHOLE], "fmr": [_NUMBER],
        "fpir": [_NUMBER],
    },
    "dataset": {
        "name": _TEXT, "title": _TEXT, "version": _TEXT, "n_images": _WHOLE, "n_persons": _WHOLE, "manifest_sha256": _TEXT, "roles": [_TEXT],
        "all_roles": {_ANY: _WHOLE}, "typical_box": [_NUMBER], "unreadable": {_ANY: _TEXT}, "clear_fta": _WHOLE,
    },
    "attackers": {
        "dataset": _TEXT, "roles": [_TEXT], "n_images": _WHOLE, "n_persons": _WHOLE, "manifest_sha256": _TEXT,
        "attackers": [{"label": _TEXT, "name": _TEXT, "knows": _TEXT, "gallery": _TEXT, "params": {}}],
    },
    "methods": [{**_PART, "label": _TEXT, "slug": _TEXT, "family": _TEXT, "strength": _NUMBER, "control": _FLAG, "counts": {_ANY: _WHOLE}, "version": _TEXT}],
    "recognizers": [_PART],
    "classifiers": [{**_PART, "labels": [_TEXT], "overlap": _TEXT, "contaminated": _FLAG}],
    "metrics": [{"name": _TEXT, "params": {}}],
    "environment": {"packages": {_ANY: _TEXT}, "git": {"commit": _TEXT, "dirty": _FLAG}, "cores": _WHOLE, "cpu": _TEXT},
    "run": {},
    "timings": {},
}  # fmt: skip

_CASE: Mapping[str, Any] = {
    "original": _TEXT,
    "output": _TEXT,
    "similarity": _NUMBER,
    "status": _TEXT,
    "fta": _FLAG,
    "why": _TEXT,
}
#: The same of samples/index.json.
SAMPLES: Mapping[str, Any] = {
    "columns": [_TEXT], "faces": _FLAG, "rows": [{"label": _TEXT, "files": [_TEXT], "statuses": [_TEXT]}],
    "cases": {"why": _TEXT, "rows": [{"label": _TEXT, "worst": _CASE, "best": _CASE}]},
}  # fmt: skip


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.  Raises ValueError, in words, for anything else: NaN, numbers that nobody counts to, too many
    storeys, more bytes than a record has.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{size:,} bytes are too many")

    def whole(digits: str) -> int:
        if len(digits) > 20 or abs(value := int(digits)) >= MOST:
            raise ValueError(f"the number {digits[:12]}... of {len(digits)} digits")
        return value

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:20]} is no number of a record")
        return value

    try:
        found = json.loads(path.read_text("utf-8"), parse_int=whole, parse_float=real, parse_constant=real)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    storey: list[Any] = [found]
    for _ in range(DEEPEST):
        storey = [
            v for node in storey for v in (node.values() if isinstance(node, dict) else node) if isinstance(v, dict | list)
        ]
        if not storey:
            return found
    raise ValueError("nested too deeply")


def faults(record: Mapping[str, Any], shape: Mapping[str, Any] = SHAPE) -> list[str]:
    """The entries of a record that are of another kind than everybody expects, in words; empty where all is well."""
    out: list[str] = []
    _compare(record, shape, "", out)
    return out


def _compare(value: Any, kind: Any, where: str, out: list[str]) -> None:
    if value is None:
        return
    if isinstance(kind, Mapping):
        if not isinstance(value, Mapping):
            out.append(f"{where} is no table of entries")
            return
        for name, inner in kind.items():
            for key in value if name == _ANY else (name,):
                if key in value:
                    _compare(value[key], inner, f"{where}.{key}".lstrip("."), out)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            out.append(f"{where} is no list")
            return
        for i, entry in enumerate(value):
            if entry is None and isinstance(kind[0], Mapping):
                out.append(f"{where}[{i}] is no table of entries")
            _compare(entry, kind[0], f"{where}[{i}]", out)
    elif not _is(value, kind):
        out.append(f"{where} is no {kind}")


def _is(value: Any, kind: str) -> bool:
    if kind == _TEXT:
        return isinstance(value, str)
    if kind == _FLAG:
        return isinstance(value, bool)
    return isinstance(value, int if kind == _WHOLE else int | float) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------------------------------ tables


@functools.cache
def _footers() -> Any:
    """What reads the ends of Parquet files, kept: it takes a tenth of a second to start.

    pyarrow's bindings end the process at a column's damaged metadata (they let a C++ exception pass); DuckDB, which does not use it,
    reads them or raises.  What pyarrow then reads the columns with raises, too.
    """
    import duckdb

    quiet: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return duckdb.connect(":memory:", config=quiet)


def bounded(path: Path) -> None:
    """Raises ValueError for a Parquet file that says of itself that it holds much more than its bytes could be of use for, or whose
    end is damaged."""
    import duckdb
    import pyarrow.parquet as pq

    size = path.stat().st_size
    with pq.ParquetFile(path) as file:  # type: ignore[no-untyped-call]
        cells = file.metadata.num_rows * file.metadata.num_columns
    try:
        with _footers().cursor() as reader:
            of_columns = (
                "SELECT coalesce(sum(num_values), 0), coalesce(sum(total_uncompressed_size), 0) FROM parquet_metadata(?)"
            )
            values, unpacked = reader.execute(of_columns, [glob.escape(str(path))]).fetchone()
    except duckdb.Error as error:
        raise ValueError(str(error).splitlines()[0]) from error
    values = max(int(values), cells)
    if values > FREE_VALUES + VALUES_PER_BYTE * size:
        raise ValueError(f"{values:,} values in {size:,} bytes: that many are not read")
    if unpacked > FREE_BYTES + BYTES_PER_BYTE * size:
        raise ValueError(f"{unpacked:,} bytes, packed into {size:,}: that many are not read")


def table_faults(table: pd.DataFrame, texts: Sequence[str], numbers: Sequence[str], wholes: Sequence[str], flags: Sequence[str]) -> list[str]:  # fmt: skip
    """Columns that are there twice or hold other things than their kind, in words.  Empty cells are no fault."""
    import numpy as np
    import pyarrow as pa
    from pandas.api.types import infer_dtype

    names = list(table.columns)
    if not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        return ["columns must have names, each its own"]
    out = []
    for kind, columns in ((_TEXT, texts), (_NUMBER, numbers), (_WHOLE, wholes), (_FLAG, flags)):
        fits = {
            _TEXT: ("string", "empty"), _FLAG: ("boolean", "empty"),
            _NUMBER: ("floating", "integer", "mixed-integer-float", "empty"), _WHOLE: ("floating", "integer", "mixed-integer-float", "empty"),
        }[kind]  # fmt: skip
        for name in columns:
            if name not in table:
                continue
            if kind == _TEXT and table[name].dtype != object:
                try:
                    pa.array(table[name]).validate(full=True)
                except (pa.ArrowException, ValueError):  # bytes that are no UTF-8 would come to light anywhere
                    out.append(f"{name} holds other things than texts")
                    continue
            column = table[name].dropna()
            if len(column) and infer_dtype(column, skipna=True) not in fits:
                out.append(
                    f"{name} holds other things than {'texts' if kind == _TEXT else 'numbers' if kind != _FLAG else 'true and false'}"
                )
            elif kind == _WHOLE and len(column) and not (np.abs(column.astype(np.float64)) < 2**53).all():
                out.append(f"{name} holds numbers that nobody counts to")
    return out
