"""What ``deidbench data prepare`` remembers of a data set: its folder, its counts, and every file's hash.

A record is two small files in the user's data folder, ``prepared/NAME.json`` and ``prepared/NAME.parquet`` (path, size,
modification time, SHA-256 of every image).  The data themselves stay where they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from deidbench.errors import InputError

#: Environment variable that names a folder with data sets, one sub-folder of the set's name each.
DATA_ENV = "DEIDBENCH_DATA"
#: Raise it when the record's layout changes; older records are then made anew.
SCHEMA = 1


class Line(NamedTuple):
    """One image: relative path, size in bytes, modification time in nanoseconds, SHA-256."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Prepared:
    """The record of one data set.

    root: absolute folder.  version: of the loader.  params: parameters that the folder was checked with.
    manifest_sha256: see :func:`deidbench.datasets.base.manifest_sha256`.  date: ISO 8601, UTC.
    """

    name: str
    root: str
    version: str
    images: int
    persons: int
    manifest_sha256: str
    date: str
    params: dict[str, Any]
    schema: int = SCHEMA


def user_data() -> Path:
    """The user's data folder of deidbench.  Not created here."""
    import platformdirs

    return Path(platformdirs.user_data_path("deidbench", appauthor=False))


def default_root(name: str) -> Path:
    """Where a data set is looked for that nobody prepared: ``$DEIDBENCH_DATA/NAME``, else in the user's data folder."""
    if named := os.environ.get(DATA_ENV):
        return Path(named).expanduser() / name
    return user_data() / "data" / name


def record_of(name: str) -> Path:
    """The JSON file of a data set's record."""
    return user_data() / "prepared" / f"{name}.json"


def read(name: str) -> Prepared | None:
    """The record of a data set; None where it was never prepared (or by an older deidbench).

    Raises InputError for a record that cannot be read.
    """
    path = record_of(name)
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", f"deidbench data prepare {name} --from DIR writes it anew"
        ) from error
    known = {f.name for f in fields(Prepared)}
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not known <= found.keys():
        return None
    kinds = {"images": int, "persons": int, "schema": int, "params": dict}
    if wrong := sorted(k for k in known if not isinstance(found[k], kinds.get(k, str))):
        raise InputError(f"{path} is damaged: {', '.join(wrong)}", f"deidbench data prepare {name} --from DIR writes it anew")
    return Prepared(**{k: found[k] for k in known})


def read_lines(name: str) -> Mapping[str, Line]:
    """Path -> line of a prepared data set; empty where there is no list."""
    path = record_of(name).with_suffix(".parquet")
    if not path.is_file():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path, columns=list(Line._fields)).to_pydict()  # type: ignore[no-untyped-call]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read: {error}", f"deidbench data prepare {name} --from DIR writes it anew"
        ) from error
    rows = zip(*(columns[field] for field in Line._fields), strict=True)
    return {row[0]: Line(*row) for row in rows}


def write(prepared: Prepared, lines: Sequence[Line]) -> Path:
    """Writes a record, the list first; returns the JSON file.  Raises EnvironmentFault where it cannot be written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deidbench.images import atomic_write, make_folder

    path = record_of(prepared.name)
    make_folder(path.parent)
    sink = pa.BufferOutputStream()
    table = pa.table({f: [line[i] for line in lines] for i, f in enumerate(Line._fields)})
    pq.write_table(table, sink, compression="zstd")  # type: ignore[no-untyped-call]
    atomic_write(path.with_suffix(".parquet"), sink.getvalue().to_pybytes())
    atomic_write(path, json.dumps(asdict(prepared), indent=1) + "\n")
    return path
