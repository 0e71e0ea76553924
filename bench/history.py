"""Many runs at once: how a method fared from run to run, and whatever else is asked of them in SQL.

Runs are read by DuckDB where they lie: of each ``rows.parquet`` (and ``images.parquet``) only the columns and lines that a question
needs.  Runs of older versions are read as the present one would have written them (:mod:`deidbench.migrations`).

The order of runs is that in which they were made.  It goes by the time at which a run was started and, since a clock may be wrong,
by what no clock can upset: a store counts the runs that use it, and no run is older than the commit that it ran.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench import record_shape
from deidbench.errors import InputError, MissingError
from deidbench.gate import Margins
from deidbench.records import Row, Run, columns_of, read_record
from deidbench.scored import Question

if TYPE_CHECKING:
    import pandas as pd

REMEDY = "run the same deidbench run command again; finished work is reused"
#: By how much two machines' clocks may differ before a time counts as one that lies in the future.
SLACK = timedelta(minutes=5)
#: What orders runs, in words.
ORDER = (
    "in the order in which they were started; runs of one store in the order in which the store saw them, "
    "whatever their clocks said"
)
#: Of a question in SQL.
MEMORY = "2GB"
THREADS = 2
#: How deep below a folder runs are looked for.
DEPTH = 4

#: Columns without which a table is none of ours.
_NEEDED = {
    "rows": ("method", "metric", "value", "unit", "higher_is_better", "attacker", "recognizer", "convention", "trusted"),
    "images": ("method", "id", "subject_id"),
}
_SQL = {"str": "VARCHAR", "float": "DOUBLE", "int": "BIGINT", "bool": "BOOLEAN"}
#: Columns of the table ``rows`` -> their type.
_ROWS = {f.name: _SQL[str(f.type).removesuffix(" | None")] for f in columns_of(Row)}


# --- which runs, and in which order


@dataclass(frozen=True)
class Past:
    """A run as far as its record goes.

    name: unique among those that were read.  schema: that its files have.  record: as the present version would have written it.
    when: the time by which it is ordered, None where nothing is known.  said: what is odd about its time, "" where nothing is.
    rows, images: tables that are in memory already.
    """

    folder: Path
    name: str
    schema: int
    record: Mapping[str, Any]
    when: datetime | None = None
    said: str = ""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def part(self, *names: str) -> Any:
        """An entry of the record, None where it is not there (or not of the kind that has such entries)."""
        found: Any = self.record
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @property
    def methods(self) -> list[Mapping[str, Any]]:
        listed = self.record.get("methods")
        return [m for m in listed if isinstance(m, Mapping)] if isinstance(listed, list) else []


def find(paths: Sequence[Path]) -> list[Path]:
    """Run folders among ``paths`` and below them, each once, in the order given and by name.

    Raises MissingError for one that neither is a run nor holds any.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        here = [path] if (path / "run.json").exists() else sorted(_below(path, DEPTH))
        if not here:
            read_record(path)  # says what is the matter with it
            raise MissingError(
                f"{path} is not a finished run and holds none", "deidbench run SUITE.toml --out FOLDER makes one"
            )
        for folder in here:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if depth and folder.is_dir() and not folder.is_symlink():
        for child in folder.iterdir():
            if (child / "run.json").is_file():
                yield child
            elif not child.name.startswith("."):
                yield from _below(child, depth - 1)


def read(folders: Sequence[Path], now: datetime | None = None) -> list[Past]:
    """The runs in ``folders``, in the order in which they were made.

    Raises MissingError where one is none, InputError where one is damaged or of a newer version.
    """
    from deidbench.migrations import migrate_record
    from deidbench.scored import _folder_names

    runs = []
    for folder, name in zip(folders, _folder_names(folders), strict=True):
        record = read_record(folder)
        if odd := record_shape.faults(record):
            raise InputError(f"{folder / 'run.json'} is damaged: {'; '.join(odd[:3])}", REMEDY)
        runs.append(Past(Path(folder), name, record["schema"], migrate_record(record, in_place=True)))
    return chronological(runs, now)


def time_of(text: Any) -> datetime | None:
    """A time as records write it (ISO; UTC where it does not say), None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _turn(run: Past) -> tuple[str, int] | None:
    """(store, turn) of a run, None where it does not say."""
    store, turn = run.part("run", "store", "store"), run.part("run", "store", "turn")
    return (store, turn) if isinstance(store, str) and isinstance(turn, int) else None


def chronological(runs: Sequence[Past], now: datetime | None = None) -> list[Past]:
    """``runs`` in the order in which they were made, each with what is odd about its time.

    Runs of one store are in the order of their turns.  Between stores the time of the start decides; one that lies in the future, or
    before the commit that the run ran, is not believed.  Runs that say nothing come first, in the order given.
    """
    from dataclasses import replace

    now = now or datetime.now(UTC)
    believed: list[datetime | None] = []
    said: list[list[str]] = []
    for run in runs:
        start, end = time_of(run.part("started")), time_of(run.part("finished"))
        start = start or end
        committed = time_of(run.part("environment", "git", "committed"))
        remarks = []
        when = start
        if start is not None and start > now + SLACK:
            remarks.append("its time lies in the future")
            when = committed or now
        if start is not None and committed is not None and start < committed - SLACK:
            remarks.append(f"its time lies before that of its commit ({committed:%Y-%m-%d %H:%M})")
            when = committed
        moved = run.part("run", "clock", "set_s")
        if isinstance(moved, int | float) and moved:
            remarks.append(f"the clock was set {'back' if moved < 0 else 'forward'} by {_span(abs(moved))} while it ran")
        elif start is not None and end is not None and end < start:
            remarks.append("it ends before it starts: the clock was set back while it ran")
        believed.append(when)
        said.append(remarks)
    turns = {i: t for i, run in enumerate(runs) if (t := _turn(run)) is not None}
    order = sorted(turns, key=lambda i: (turns[i][0], turns[i][1], i))
    for before, i in itertools.pairwise(order):
        earlier, mine = believed[before], believed[i]
        if turns[before][0] != turns[i][0] or earlier is None:
            continue
        if mine is None or mine < earlier:
            if mine is not None and mine < earlier - SLACK:
                said[i].append(f"it was made after {runs[before].name}, whose time is later")
            believed[i] = earlier
    never = datetime.min.replace(tzinfo=UTC)
    place = sorted(range(len(runs)), key=lambda i: (believed[i] or never, turns[i][1] if i in turns else 0, i))
    return [replace(runs[i], when=believed[i], said="; ".join(said[i])) for i in place]


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def since(text: str, now: datetime | None = None) -> datetime:
    """``2026-11-01``, ``2026-11-01T12:00`` or an age like ``30d`` or ``12h``.  Raises InputError for anything else."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw])", text.strip()):
        hours = float(match[1]) * {"h": 1, "d": 24, "w": 168}[match[2]]
        try:
            return (now or datetime.now(UTC)) - timedelta(hours=hours)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    found = time_of(text.strip())
    if found is None:
        raise InputError(f"--since {text!r} is no date and no age", "e.g. --since 2026-11-01, or 30d for the last thirty days")
    return found


def chosen(runs: Sequence[Past], *, dataset: str = "", protocol: str = "", after: datetime | None = None) -> list[Past]:
    """Those on a data set, under a protocol, made at or after a time.  Raises InputError, with what there is, where none is left."""

    def known(*names: str) -> str:
        return ", ".join(sorted({str(r.part(*names)) for r in runs if r.part(*names)})) or "none"

    kept = list(runs)
    for value, names, word in ((dataset, ("dataset", "name"), "data set"), (protocol, ("protocol", "name"), "protocol")):
        if value:
            kept = [r for r in kept if r.part(*names) == value]
            if not kept:
                raise InputError(f"no run with the {word} {value!r}", f"they have: {known(*names)}")
    if after is not None:
        kept = [r for r in kept if r.when is not None and r.when >= after]
        if not kept:
            last = max((r.when for r in runs if r.when is not None), default=None)
            raise InputError(
                f"no run since {after:%Y-%m-%d %H:%M}",
                f"the last one is of {last:%Y-%m-%d %H:%M}" if last else "none says when",
            )
    return kept


# --- their tables


class Archive:
    """Runs as the tables of a database in memory; to be closed.

    Views: ``runs`` (a line per run), ``methods`` (a line per run and method), ``rows`` (the figures) and, once :meth:`with_images`
    was called, ``images``.  Each has the column ``run``, by which they are joined.  Nothing but the runs' own files can be
    reached through it, and nothing can be written.
    """

    def __init__(self, runs: Sequence[Past]) -> None:
        import duckdb

        self.runs = list(runs)
        if not runs:
            raise InputError("there is no run to look at", "deidbench run SUITE.toml --out FOLDER makes one")
        files = [str(self._file(r, table)) for r in runs for table in _NEEDED if table not in r.tables]
        self._db = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": "false", "autoload_known_extensions": "false", "threads": str(THREADS),
                "memory_limit": MEMORY, "temp_directory": "", "python_enable_replacements": "false",
            },
        )  # fmt: skip
        self._db.execute(f"SET allowed_paths = {_list(files)}")
        self._db.execute("SET enable_external_access = false")
        self._db.execute("SET lock_configuration = true")
        try:
            self._tables()
            with self._damage():
                self._view("rows", _ROWS)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @staticmethod
    def _file(run: Past, table: str) -> Path:
        return (run.folder / f"{table}.parquet").resolve()

    def _tables(self) -> None:
        """``runs`` and ``methods``, from the records."""
        runs: list[dict[str, Any]] = []
        methods: list[dict[str, Any]] = []
        for n, r in enumerate(self.runs):
            dirty, seed = r.part("environment", "git", "dirty"), r.part("protocol", "seed")
            runs.append(
                {
                    "nth": n, "run": r.name, "folder": str(r.folder), "made": _stamp(r.when), "started": _stamp(time_of(r.part("started"))),
                    "finished": _stamp(time_of(r.part("finished"))), "seconds": _number(r.part("run", "clock", "elapsed_s")),
                    "time_note": r.said, "suite": _text(r.part("suite", "name")), "suite_sha256": _text(r.part("suite", "sha256")),
                    "protocol": _text(r.part("protocol", "name")), "seed": _whole(seed),
                    "deviations": "; ".join(map(str, r.part("protocol", "deviations") or [])), "dataset": _text(r.part("dataset", "name")),
                    "manifest_sha256": _text(r.part("dataset", "manifest_sha256")), "images": _whole(r.part("dataset", "n_images")),
                    "persons": _whole(r.part("dataset", "n_persons")), "deidbench": _text(r.part("deidbench")),
                    "commit": _text(r.part("environment", "git", "commit")), "dirty": dirty if isinstance(dirty, bool) else None,
                    "python": _text(r.part("environment", "python")), "cpu": _text(r.part("environment", "cpu")),
                    "cores": _whole(r.part("environment", "cores")), "ci": bool(r.part("environment", "ci")), "schema": r.schema,
                }
            )  # fmt: skip
            for m in r.methods:
                counts = m.get("counts")
                count = counts if isinstance(counts, Mapping) else {}
                methods.append(
                    {
                        "run": r.name, "method": _text(m.get("label")), "name": _text(m.get("name")), "family": _text(m.get("family")),
                        "strength": _number(m.get("strength")), "control": bool(m.get("control")), "version": _text(m.get("version")),
                        "fingerprint": _text(m.get("fingerprint")), "weights_sha256": _text(m.get("weights_sha256")),
                        "params": json.dumps(m.get("params"), default=str), "licence": _text(m.get("licence")),
                        **{k: _whole(count.get(k)) for k in _COUNTS},
                    }
                )  # fmt: skip
        for name, lines, kinds in (("runs", runs, _RUNS), ("methods", methods, _METHODS)):
            columns = ", ".join(f"unnest(?::{kind}[]) AS {_name(c)}" for c, kind in kinds.items())
            values = [[line[c] for line in lines] for c in kinds]
            self._db.execute(f"CREATE TABLE {name} AS SELECT {columns}", values)
        self._db.execute("CREATE TABLE _files (run VARCHAR, nth BIGINT, file VARCHAR)")

    def _view(self, name: str, columns: Mapping[str, str] | None) -> None:
        """The view of a table of all runs.  columns: name -> type; None: all that there are."""
        from deidbench.migrations import columns as added
        from deidbench.migrations import migrate_table, plain

        # (run, its number, file or name of a registered table, columns that it has, what it holds in those that it lacks)
        sources: list[tuple[Past, int, str, bool, dict[str, str], dict[str, Any]]] = []
        for n, run in enumerate(self.runs):
            if name not in run.tables and plain(run.schema, name):
                file = self._file(run, name)
                sources.append((run, n, str(file), True, _columns(run.folder, file, name), added(run.schema, name)))
                continue
            table = run.tables[name] if name in run.tables else migrate_table(run.schema, name, _frame(self._file(run, name)))
            held = f"_{name}_{n}"
            self._db.register(held, table)
            described = self._db.execute(f"DESCRIBE {held}").fetchall()
            sources.append((run, n, held, False, {str(d[0]): _kind(str(d[1])) for d in described}, {}))
        if columns is None:
            kinds: dict[str, set[str]] = {}
            for *_, has, defaults in sources:
                for c, kind in has.items():
                    kinds.setdefault(c, set()).add(kind)
                for c in defaults:
                    kinds.setdefault(c, set())
            columns = {c: _common(k) for c, k in kinds.items() if c not in ("run", "line", "file_row_number", "filename")}
        self._db.execute(
            "INSERT INTO _files SELECT unnest(?::VARCHAR[]), unnest(?::BIGINT[]), unnest(?::VARCHAR[])",
            [[r.name for r, *_ in sources], [n for _, n, *_ in sources], [f for _, _, f, *_ in sources]],
        )
        parts = []
        groups: dict[str, tuple[bool, list[str]]] = {}
        for run, n, where, is_file, has, defaults in sources:
            picked = ", ".join(
                f"{_expression(c, kind, has.get(c), defaults.get(c, _NOTHING))} AS {_name(c)}" for c, kind in columns.items()
            )
            if is_file:
                groups.setdefault(picked, (True, []))[1].append(where)
            else:
                parts.append(
                    f"SELECT {_literal(run.name)} AS run, {n}::BIGINT AS nth, (row_number() OVER ()) - 1 AS line, {picked} FROM {where}"
                )
        for picked, (_, files) in groups.items():
            parts.append(
                f"SELECT f.run, f.nth, t.file_row_number AS line, {picked} "
                f"FROM read_parquet({_list(files)}, filename = true, file_row_number = true) t JOIN _files f ON f.file = t.filename"
            )
        self._db.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(parts)}")

    def with_images(self) -> Archive:
        """Adds the view ``images``: a line per run, method and image."""
        with self._damage():
            self._view("images", None)
        return self

    def ask(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The lines of an answer."""
        with self._damage():
            found: list[tuple[Any, ...]] = self._db.execute(sql, list(parameters)).fetchall()
        return found

    def table(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The answer to somebody's SELECT: names of the columns, and lines.

        Raises InputError for anything else than one SELECT, and with DuckDB's words where it cannot be answered.
        """
        import duckdb

        try:
            statements = self._db.extract_statements(sql)
        except duckdb.Error as error:
            raise InputError(f"--sql: {_first(error)}", TABLES) from error
        allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
        if len(statements) != 1 or statements[0].type not in allowed:
            raise InputError("--sql takes one SELECT, and nothing that writes or changes anything", TABLES)
        try:
            answer = self._db.execute(statements[0])
            return [str(d[0]) for d in answer.description or ()], answer.fetchall()
        except duckdb.PermissionException as error:
            raise InputError(f"--sql may read the runs that were named, and nothing else: {_first(error)}", TABLES) from error
        except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
            raise InputError(f"--sql: {_first(error)}", TABLES) from error
        except duckdb.OutOfMemoryException as error:
            raise InputError(
                f"--sql: the answer needs more than {MEMORY} of memory",
                "ask for fewer columns, or narrow it with WHERE or LIMIT",
            ) from error
        except duckdb.Error as error:
            self._culprit(error)
            raise InputError(f"--sql: {_first(error)}", TABLES) from error

    @contextmanager
    def _damage(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            self._culprit(error)
            names = ", ".join(r.name for r in self.runs[:3])
            raise InputError(
                f"the tables of these runs ({names}{', ...' if len(self.runs) > 3 else ''}) do not fit: {_first(error)}", REMEDY
            ) from error

    def _culprit(self, error: Exception) -> None:
        """Raises InputError naming a file that cannot be read, if there is one."""
        for run in self.runs:
            for table in _NEEDED:
                file = self._file(run, table)
                if table in run.tables or not file.is_file():
                    continue
                try:
                    _frame(file)
                except InputError as found:
                    raise found from error

    # -- how a method fared ------------------------------------------------------------------------------------
    def methods(self) -> list[str]:
        """Labels of the methods that are no controls, in the order of the runs."""
        labels = (str(m.get("label")) for r in self.runs for m in r.methods if not m.get("control"))
        return list(dict.fromkeys(labels))

    def questions(self, methods: Sequence[str]) -> list[Question]:
        """The figures of which some run has a value for one of ``methods``, in the order in which they are met.

        Raises InputError for a method that no run has.
        """
        fields = ", ".join(Question._fields)
        found = self.ask(
            f"SELECT {fields}, bool_or(value IS NOT NULL AND NOT isnan(value)) FROM ({_ENTRIES}) "
            f"WHERE method IN ({_marks(methods)}) GROUP BY ALL ORDER BY min(nth * 1000000000 + line)",
            methods,
        )
        there = {m for (m,) in self.ask(f"SELECT DISTINCT method FROM rows WHERE method IN ({_marks(methods)})", methods)}
        for method in methods:
            if method not in there:
                known = sorted({str(m.get("label")) for r in self.runs for m in r.methods})
                raise InputError(f"no run has the method {method!r}", f"they have: {', '.join(known) or 'none'}")
        return [Question(*q) for *q, value in found if value]

    def guarded(self, methods: Sequence[str], margins: Margins) -> dict[Question, float]:
        """The figures that the margins guard and that a run has, with their margins."""
        known = self.questions(methods)
        out: dict[Question, float] = {}
        for guard in margins.guard:
            for q in known:
                if q not in out and guard.guards(q):
                    out[q] = guard.margin
        return out

    def matching(self, methods: Sequence[str], patterns: Sequence[str], *, everything: bool = False) -> list[Question]:
        """The figures that ``patterns`` name: NAME or NAME/WHO, where * matches anything; WHO is an attacker, recogniser or label.

        everything: every convention, not the headline alone.  Raises InputError for a pattern that nothing matches.
        """
        known = self.questions(methods)
        out: dict[Question, None] = {}
        for pattern in patterns:
            name, _, who = pattern.partition("/")
            found = [
                q
                for q in known
                if fnmatchcase(q.metric, name)
                and (everything or q.convention in ("", "headline"))
                and (not who or who in (q.attacker, q.recognizer, q.label))
            ]
            if not found:
                import difflib

                names = sorted({q.metric for q in known})
                close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
                raise InputError(
                    f"no figure {pattern!r} of {', '.join(methods)}",
                    f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(names[:12]) or 'none'}",
                )
            out |= dict.fromkeys(found)
        return list(out)

    def lines(self, methods: Sequence[str], questions: Iterable[Question]) -> list[dict[str, Any]]:
        """One record per run, method and figure: folder, time, commit, weights, value, interval."""
        asked = list(questions)
        fields = ", ".join(Question._fields)
        values = ("value", "lo", "hi", "n_images", "n_persons", "trusted", "reason", "dataset")
        found: dict[tuple[int, str, Question], tuple[Any, ...]] = {}
        if asked:
            metrics = sorted({q.metric for q in asked})
            rows = self.ask(
                f"SELECT nth, method, {fields}, {', '.join(values)} FROM ({_ENTRIES}) "
                f"WHERE method IN ({_marks(methods)}) AND metric IN ({_marks(metrics)}) ORDER BY nth, line",
                [*methods, *metrics],
            )
            many = len(Question._fields)
            found = {(r[0], r[1], Question(*r[2 : 2 + many])): r[2 + many :] for r in rows}
        out = []
        for n, run in enumerate(self.runs):
            for method in methods:
                entry: Mapping[str, Any] = next((m for m in run.methods if m.get("label") == method), {})
                for q in asked:
                    row = dict(zip(values, found.get((n, method, q), ()), strict=False))
                    value, lo, hi = (_number(row.get(k)) for k in ("value", "lo", "hi"))
                    out.append(
                        {
                            "run": run.name, "started": run.part("started") or "", "finished": run.part("finished") or "",
                            "time_note": run.said, "dataset": row.get("dataset") or _text(run.part("dataset", "name")),
                            "protocol": _text(run.part("protocol", "name")), "method": method,
                            "commit": _text(run.part("environment", "git", "commit")), "weights_sha256": entry.get("weights_sha256"),
                            "fingerprint": entry.get("fingerprint"), **q._asdict(), "value": value, "lo": lo, "hi": hi,
                            "n_images": row.get("n_images"), "n_persons": row.get("n_persons"),
                            "trusted": True if row.get("trusted") is None else bool(row["trusted"]),
                            "reason": row.get("reason") or ("" if row else "the run has no such figure"),
                        }
                    )  # fmt: skip
        return out

    def light(self, method: str) -> list[Run]:
        """The runs with the figures of one method and nothing else: enough to draw them."""
        import pandas as pd

        columns = list(_ROWS)
        lines = self.ask(
            f"SELECT nth, {', '.join(map(_name, columns))} FROM rows WHERE method = ? ORDER BY nth, line", [method]
        )
        by_run: dict[int, list[tuple[Any, ...]]] = {}
        for nth, *rest in lines:
            by_run.setdefault(nth, []).append(tuple(rest))
        nothing = pd.DataFrame()
        return [
            Run(r.folder, r.record, pd.DataFrame(by_run.get(n, []), columns=columns), nothing, nothing)
            for n, r in enumerate(self.runs)
        ]


TABLES = (
    "tables: runs, methods, rows, images; joined by the column run, e.g. "
    "\"SELECT run, value FROM rows JOIN runs USING (run) WHERE metric = 'reid.worst_rank1' ORDER BY made\""
)

#: A worst case is one figure, whichever attacks were trusted in it (:func:`deidbench.scored.question_of`).
_ENTRIES = (
    "SELECT * REPLACE (CASE WHEN starts_with(recognizer, 'max(') THEN '' ELSE attacker END AS attacker, "
    "CASE WHEN starts_with(recognizer, 'max(') THEN '' ELSE recognizer END AS recognizer) FROM "
    "(SELECT * REPLACE (coalesce(metric, '') AS metric, coalesce(attacker, '') AS attacker, coalesce(recognizer, '') AS recognizer, "
    "coalesce(convention, '') AS convention, coalesce(comparison, '') AS comparison, coalesce(label, '') AS label) FROM rows)"
)
_COUNTS = ("images", "ok", "no_face", "no_landmarks", "failed", "passthrough", "copy", "fta")
#: Columns of the tables made from records -> their types.  Times are UTC and do not say so: SQL compares them with plain dates.
_RUNS = {
    "nth": "BIGINT", "run": "VARCHAR", "folder": "VARCHAR", "made": "TIMESTAMP", "started": "TIMESTAMP", "finished": "TIMESTAMP",
    "seconds": "DOUBLE", "time_note": "VARCHAR", "suite": "VARCHAR", "suite_sha256": "VARCHAR", "protocol": "VARCHAR", "seed": "BIGINT",
    "deviations": "VARCHAR", "dataset": "VARCHAR", "manifest_sha256": "VARCHAR", "images": "BIGINT", "persons": "BIGINT",
    "deidbench": "VARCHAR", "commit": "VARCHAR", "dirty": "BOOLEAN", "python": "VARCHAR", "cpu": "VARCHAR", "cores": "BIGINT", "ci": "BOOLEAN",
    "schema": "BIGINT",
}  # fmt: skip
_METHODS = {
    "run": "VARCHAR", "method": "VARCHAR", "name": "VARCHAR", "family": "VARCHAR", "strength": "DOUBLE", "control": "BOOLEAN",
    "version": "VARCHAR", "fingerprint": "VARCHAR", "weights_sha256": "VARCHAR", "params": "VARCHAR", "licence": "VARCHAR",
    **dict.fromkeys(_COUNTS, "BIGINT"),
}  # fmt: skip
_NOTHING = object()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _number(value: Any) -> float | None:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return None if number is None or number != number else number


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return repr(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"


def _list(values: Iterable[str]) -> str:
    return "[" + ", ".join(_literal(v) for v in values) + "]::VARCHAR[]"


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values)) or "NULL"


def _stamp(when: datetime | None) -> datetime | None:
    return None if when is None else when.replace(tzinfo=None)


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _expression(column: str, kind: str, has: str | None, default: Any) -> str:
    """A column of one file in the type that it has in all of them."""
    if has is None:
        return f"CAST({'NULL' if default is _NOTHING else _literal(default)} AS {kind})"
    return f"CAST({_name(column)} AS {kind})"


def _kind(told: str) -> str:
    """DuckDB's type in four kinds, and text for all others."""
    if told.startswith(("VARCHAR", "ENUM")):
        return "VARCHAR"
    if told == "BOOLEAN":
        return "BOOLEAN"
    if told in ("DOUBLE", "FLOAT", "REAL") or told.startswith("DECIMAL"):
        return "DOUBLE"
    return "BIGINT" if "INT" in told else "NULL" if told == '"NULL"' else "VARCHAR"


def _common(kinds: set[str]) -> str:
    kinds = kinds - {"NULL"}
    if len(kinds) == 1:
        return next(iter(kinds))
    return "DOUBLE" if kinds == {"DOUBLE", "BIGINT"} else "VARCHAR"


def _columns(folder: Path, file: Path, table: str) -> dict[str, str]:
    """Columns of a file and their kinds, from its end alone.

    Raises MissingError where there is no file, InputError where it is damaged or none of ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = folder / file.name
    if not file.is_file():
        raise MissingError(f"{shown} is missing", REMEDY)
    try:
        record_shape.bounded(file)
        schema = pq.read_schema(file)  # type: ignore[no-untyped-call]
    except Exception as error:  # pyarrow raises many kinds; all mean the same to the user
        raise InputError(f"{shown} is damaged: {error}", REMEDY) from error
    if lacking := [c for c in _NEEDED[table] if c not in schema.names]:
        raise InputError(f"{shown} is damaged: it has no column {', '.join(lacking)}", REMEDY)
    out = {}
    for f in schema:
        kind = f.type.value_type if pa.types.is_dictionary(f.type) else f.type
        tests: tuple[tuple[Callable[[Any], bool], str], ...] = (
            (pa.types.is_null, "NULL"), (pa.types.is_boolean, "BOOLEAN"), (pa.types.is_integer, "BIGINT"),
            (pa.types.is_floating, "DOUBLE"), (pa.types.is_decimal, "DOUBLE"),
        )  # fmt: skip
        out[f.name] = next((name for test, name in tests if test(kind)), "VARCHAR")
    if table == "rows":
        odd = [
            c
            for c, kind in _ROWS.items()
            if out.get(c, kind) not in (kind, "NULL") and not (kind == "DOUBLE" and out[c] == "BIGINT")
        ]
        # whole numbers become fractions where pandas had no value for one of them
        odd = [c for c in odd if not (_ROWS[c] == "BIGINT" and out[c] == "DOUBLE")]
        if odd:
            raise InputError(f"{shown} is damaged: {', '.join(odd)}", REMEDY)
    return out


def _frame(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(file)
    except FileNotFoundError as error:
        raise MissingError(f"{file} is missing", REMEDY) from error
    except Exception as error:  # pyarrow raises many kinds; all mean the same to the user
        raise InputError(f"{file} is damaged: {error}", REMEDY) from error


# --- runs that were read already


def _known(runs: Sequence[Run]) -> list[Past]:
    from deidbench.comparable import sound
    from deidbench.records import SCHEMA_VERSION
    from deidbench.scored import _folder_names

    for run in runs:
        sound(run)
    return [
        Past(r.folder, name, SCHEMA_VERSION, r.record, tables={"rows": r.rows, "images": r.images})
        for r, name in zip(runs, _folder_names([r.folder for r in runs]), strict=True)
    ]


def ordered(runs: Sequence[Run], now: datetime | None = None) -> list[Run]:
    """In the order in which they were made (:func:`chronological`)."""
    known = _known(runs)
    place = {p.name: run for p, run in zip(known, runs, strict=True)}
    return [place[p.name] for p in chronological(known, now)]


def guarded(runs: Sequence[Run], method: str, margins: Margins) -> dict[Question, float]:
    """The figures that the margins guard and a run has, with their margins.

    Raises InputError where no run has the method.
    """
    with Archive(_known(runs)) as archive:
        return archive.guarded([method], margins)


def lines(runs: Sequence[Run], method: str, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """One record per run and figure: folder, time, commit, weights, value, interval."""
    with Archive(_known(runs)) as archive:
        return archive.lines([method], questions)
