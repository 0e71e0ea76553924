"""Many runs at once: the figures are those of the runs, the order is that in which they were made, and SQL reaches nothing else."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deidbench import cli
from deidbench import history as h
from deidbench.errors import InputError, MissingError
from deidbench.gate import load_margins
from deidbench.records import read_run
from deidbench.scored import Question, Scored

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "demo"
OLD_RUNS = Path(__file__).parent / "old_runs"
METHODS = ("original", "mask", "noise")
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed reference with three methods, so that copies are quick."""
    folder = tmp_path_factory.mktemp("base") / "run"
    folder.mkdir()
    for table in ("rows", "images", "curves"):
        frame = pd.read_parquet(REFERENCE / f"{table}.parquet")
        frame[frame.method.isin(METHODS)].reset_index(drop=True).to_parquet(folder / f"{table}.parquet", index=False)
    record = json.loads((REFERENCE / "run.json").read_text())
    record["methods"] = [m for m in record["methods"] if m["label"] in METHODS]
    record["environment"]["git"].pop("committed", None)  # runs are given times and turns of their own here
    record["run"].pop("store", None)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder like the reference: ``make("name", started, factor=..., **entries)``."""

    def made(name: str, started: datetime | str | None = None, factor: float = 1.0, **entries: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for table in ("images", "curves"):
            os.link(base / f"{table}.parquet", folder / f"{table}.parquet")
        rows = pd.read_parquet(base / "rows.parquet")
        rows.assign(value=rows.value * factor).to_parquet(folder / "rows.parquet", index=False)
        record = json.loads((base / "run.json").read_text())
        if started is not None:
            text = started if isinstance(started, str) else started.isoformat(timespec="seconds")
            record["started"] = record["finished"] = text
        for path, value in entries.items():
            place, *names = record, *path.split("__")
            for part in names[:-1]:
                place = place.setdefault(part, {})
            place[names[-1]] = value
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return made


def _store(name: str, turn: int) -> dict[str, Any]:
    return {"run__store": {"store": name, "turn": turn}}


def _names(folders: list[Path], now: datetime = NOW) -> list[str]:
    return [p.name for p in h.read(folders, now)]


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["history", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


# --- the figures


def test_figures_are_those_of_the_runs(make: Callable[..., Path]) -> None:
    """Against the plain way: each run read whole, each row looked at."""
    folders = [make(f"r{i}", NOW - timedelta(days=9 - i), factor=1 + i / 100) for i in range(3)]
    folders += [OLD_RUNS / "2026-11-22", OLD_RUNS / "2026-11-23-v3"]
    past = h.read(folders)
    margins = load_margins()
    with h.Archive(past) as archive:
        guarded = archive.guarded(["mask", "noise"], margins)
        found = {
            (x["run"], x["method"], Question(*(x[f] for f in Question._fields))): x
            for x in archive.lines(["mask", "noise"], guarded)
        }
    expected: dict[Question, float] = {}
    whole = {p.name: Scored(read_run(p.folder), bare=True).entries for p in past}
    for guard in margins.guard:
        for entries in whole.values():
            for method in ("mask", "noise"):
                for q, e in entries.get(method, {}).items():
                    if guard.guards(q) and e.row["value"] is not None:
                        expected.setdefault(q, guard.margin)
    assert guarded == expected and len(guarded) >= 8
    assert len(found) == len(past) * 2 * len(guarded)
    for (run, method, q), line in found.items():
        entry = whole[run].get(method, {}).get(q)
        for name in ("value", "lo", "hi", "n_images", "n_persons", "trusted"):
            mine = None if entry is None else entry.row[name]
            if entry is None and name == "trusted":
                continue
            assert line[name] == mine, (run, method, q, name)
        assert (line["reason"] == "the run has no such figure") == (entry is None)


def test_a_worst_case_is_one_figure_whichever_attack_was_worst(make: Callable[..., Path]) -> None:
    folder = make("one")
    rows = pd.read_parquet(folder / "rows.parquet")
    worst = rows.metric == "reid.worst_rank1"
    assert rows.recognizer[worst].str.startswith("max(").all()
    rows.loc[worst, "recognizer"] = "max(other)"
    rows.to_parquet(folder / "rows.parquet", index=False)
    with h.Archive(h.read([folder, make("two", NOW)])) as archive:
        [q] = archive.matching(["mask"], ["reid.worst_rank1"])
        assert q.recognizer == q.attacker == ""
        assert all(line["value"] is not None for line in archive.lines(["mask"], [q]))


def test_metrics_are_chosen_by_pattern_and_holder(make: Callable[..., Path]) -> None:
    with h.Archive(h.read([make("one")])) as archive:
        assert {q.metric for q in archive.matching(["mask"], ["quality.*"])} == {
            "quality.ssim_face", "quality.ssim_frame", "quality.psnr_face", "quality.psnr_frame",
        }  # fmt: skip
        assert {q.recognizer for q in archive.matching(["mask"], ["reid.rank1/sface"])} == {"sface"}
        some = archive.matching(["mask"], ["reid.rank1"])
        every = archive.matching(["mask"], ["reid.rank1"], everything=True)
        assert {q.convention for q in some} == {"headline"} and {q.convention for q in every} > {"headline"}
        with pytest.raises(InputError, match=r"did you mean .*reid\.rank1"):
            archive.matching(["mask"], ["reid.rank11"])
        with pytest.raises(InputError, match=r"no run has the method 'masc'[\s\S]*they have: mask"):
            archive.questions(["masc"])
        assert archive.methods() == ["mask", "noise"], "controls are no methods"


def test_runs_that_were_read_already_give_the_same(make: Callable[..., Path]) -> None:
    folders = [make("b", NOW), make("a", NOW - timedelta(days=1), factor=0.9)]
    runs = h.ordered([read_run(f) for f in folders])
    assert [r.folder.name for r in runs] == ["a", "b"]
    questions = list(h.guarded(runs, "mask", load_margins()))
    with h.Archive(h.read(folders)) as archive:
        assert h.lines(runs, "mask", questions) == archive.lines(["mask"], questions)


def test_folders_hold_runs(make: Callable[..., Path], tmp_path: Path) -> None:
    one, two = make("results/one"), make("results/deep/er/two")
    (tmp_path / "results" / "README.md").write_text("not a run")
    assert h.find([tmp_path / "results", one]) == [two, one]
    assert h.find([one, one.parent / "one"]) == [one], "the same folder twice is one run"
    for nothing in (tmp_path / "results" / "README.md", tmp_path / "absent", tmp_path / "results" / "one" / "samples"):
        with pytest.raises(MissingError, match="not a finished run"):
            h.find([nothing])


# --- the order


def test_by_time_where_nothing_is_wrong(make: Callable[..., Path]) -> None:
    folders = [make("c", NOW - timedelta(days=1)), make("a", NOW - timedelta(days=3)), make("b", "2026-05-30T12:00:00+02:00")]
    found = h.read([*folders, make("said nothing", "")], NOW)
    assert [p.name for p in found] == ["said nothing", "a", "b", "c"]
    assert all(not p.said for p in found)


def test_runs_of_one_store_are_in_its_order_whatever_the_clock(make: Callable[..., Path]) -> None:
    """The clock is set back an hour between the second and the third run; a run of another machine lies between."""
    day = NOW - timedelta(days=5)
    folders = [
        make("third", day + timedelta(minutes=-30), **_store("s", 3)),
        make("first", day, **_store("s", 1)),
        make("second", day + timedelta(minutes=20), **_store("s", 2)),
        make("fourth", day + timedelta(minutes=40), **_store("s", 9)),
        make("elsewhere", day + timedelta(minutes=10), **_store("t", 1)),
    ]
    found = h.read(folders, NOW)
    assert [p.name for p in found] == ["first", "elsewhere", "second", "third", "fourth"]
    assert {p.name: p.said for p in found if p.said} == {"third": "it was made after second, whose time is later"}


def test_times_that_cannot_be_are_marked_and_not_believed(make: Callable[..., Path]) -> None:
    day = NOW - timedelta(days=5)
    committed = {"environment__git__committed": (day - timedelta(hours=1)).isoformat()}
    folders = [
        make("future", NOW + timedelta(days=400), **committed),
        make("before its commit", day - timedelta(days=3000), **committed),
        make("good", day, **committed),
        make("set", day + timedelta(days=1), run__clock={"elapsed_s": 60, "set_s": -3600.0}),
    ]
    found = h.read(folders, NOW)
    said = {p.name: p.said for p in found}
    assert said["future"] == "its time lies in the future"
    assert said["before its commit"].startswith("its time lies before that of its commit")
    assert said["set"] == "the clock was set back by 1 h while it ran"
    assert said["good"] == ""
    assert [p.name for p in found][-2:] == ["good", "set"], "a wrong clock does not put a run behind those that came later"


def test_a_run_that_ends_before_it_starts(make: Callable[..., Path]) -> None:
    folder = make("odd", NOW - timedelta(days=1))
    record = json.loads((folder / "run.json").read_text())
    record["finished"] = (NOW - timedelta(days=1, hours=1)).isoformat()
    (folder / "run.json").write_text(json.dumps(record))
    [found] = h.read([folder], NOW)
    assert "set back" in found.said


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-40", "9" * 400, "0000-01-01"])
def test_times_that_are_none(make: Callable[..., Path], text: str) -> None:
    assert _names([make("good", NOW), make("odd", text)]) == ["odd", "good"]


def test_since(make: Callable[..., Path]) -> None:
    assert h.since("2026-05-01") == datetime(2026, 5, 1, tzinfo=UTC)
    assert h.since("30d", NOW) == NOW - timedelta(days=30)
    assert h.since("12h", NOW) == NOW - timedelta(hours=12)
    for text in ("soon", "30", "-3d", "30dd"):
        with pytest.raises(InputError, match="--since"):
            h.since(text)
    runs = h.read([make("old", NOW - timedelta(days=90)), make("new", NOW - timedelta(days=1))], NOW)
    assert [p.name for p in h.chosen(runs, after=h.since("30d", NOW))] == ["new"]
    assert [p.name for p in h.chosen(runs, dataset="orl", protocol="deidbench-v3")] == ["old", "new"]
    for wrong, words in (
        ({"dataset": "lfw"}, "they have: orl"),
        ({"protocol": "x"}, "deidbench-v3"),
        ({"after": NOW}, "the last one"),
    ):
        with pytest.raises(InputError, match=words):
            h.chosen(runs, **wrong)  # type: ignore[arg-type]


# --- the command


def test_command_prints_lines_and_files(make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("results/new", NOW - timedelta(days=1), factor=0.5)
    make("results/old", NOW - timedelta(days=2))
    code, out, err = _run(capsys, tmp_path / "results", "--method", "mask", "--metric", "quality.ssim_face")
    assert code == 0
    assert out.index("old") < out.index("new") and "0.02" in out
    assert "in the order in which they were started" in err
    code, out, _ = _run(capsys, tmp_path / "results", "--metric", "quality.ssim_face", "--json")
    lines = json.loads(out)
    assert [(x["run"], x["method"]) for x in lines] == [("old", "mask"), ("old", "noise"), ("new", "mask"), ("new", "noise")]
    assert lines[2]["value"] == pytest.approx(lines[0]["value"] / 2)
    code, out, _ = _run(
        capsys, tmp_path / "results", "--metric", "quality.ssim_face", "--csv", "--parquet", tmp_path / "h.parquet"
    )
    table = list(csv.DictReader(io.StringIO(out)))
    assert [float(r["value"]) for r in table] == [x["value"] for x in lines]
    assert pq.read_table(tmp_path / "h.parquet").column("value").to_pylist() == [x["value"] for x in lines]


def test_command_draws_one_method(make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("results/one", NOW - timedelta(days=1))
    make("results/two", NOW, factor=0.9)
    out_folder = tmp_path / "drawn"
    code, _, _ = _run(capsys, tmp_path / "results", "--method", "mask", "--out", out_folder)
    assert code == 0
    assert {"history.csv", "history.json", "history.pdf", "history.svg", "history.png"} <= {
        p.name for p in out_folder.iterdir()
    }
    code, _, err = _run(capsys, tmp_path / "results", "--out", out_folder)
    assert code == 2 and "--method METHOD, one of: mask, noise" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "masc"], "no run has the method 'masc'"),
        (["--metric", "quality.sim"], "did you mean"),
        (["--all"], "--all goes with --metric"),
        (["--json", "--csv"], "both given"),
        (["--since", "tomorrow"], "no date and no age"),
        (["--dataset", "lfw"], "they have: orl"),
        (["--sql", "SELECT 1", "--method", "mask"], "--sql asks for itself"),
    ],
)
def test_command_says_what_is_wrong(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, _, err = _run(capsys, make("one"), *arguments)
    assert code == 2 and words in err and "->" in err and "Traceback" not in err


def test_upgrade_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD_RUNS, tmp_path / "results")
    code, out, _ = _run(capsys, tmp_path / "results", "--upgrade")
    assert code == 0 and "3 runs, 3 written anew" in out
    code, out, _ = _run(capsys, tmp_path / "results", "--upgrade", "--json")
    assert set(json.loads(out).values()) == {None}


# --- SQL


def test_sql_over_all_tables(make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make("results/one", NOW - timedelta(days=1)), make("results/two", NOW), OLD_RUNS / "2026-11-22"]

    def ask(sql: str) -> list[Mapping[str, Any]]:
        code, out, err = _run(capsys, *folders, "--sql", sql, "--json")
        assert code == 0, err
        found: list[Mapping[str, Any]] = json.loads(out)
        return found

    assert [r["run"] for r in ask("SELECT run FROM runs WHERE made >= '2026-01-01' ORDER BY made")] == [
        "one",
        "two",
        "2026-11-22",
    ]
    assert ask("SELECT run, schema FROM runs ORDER BY run")[0] == {"run": "2026-11-22", "schema": 1}
    assert ask("SELECT count(*) AS n FROM methods WHERE NOT control") == [{"n": 2 * 2 + 2}]
    found = ask("SELECT run, count(*) AS n, sum(fta::int) AS fta FROM images WHERE method = 'mask' GROUP BY run ORDER BY run")
    assert [r["n"] for r in found] == [20, 400, 400]
    old = read_run(folders[2]).images
    assert found[0]["fta"] == int(old[old.method == "mask"].fta.sum())
    joined = ask(
        "SELECT r.run, m.fingerprint, r.value FROM rows r JOIN methods m USING (run, method) JOIN runs USING (run) "
        "WHERE r.metric = 'quality.ssim_face' AND method = 'mask' ORDER BY made"
    )
    assert len(joined) == 3 and all(r["value"] is not None and r["fingerprint"] for r in joined)
    assert ask("SELECT count(*) AS n FROM rows WHERE label IS NULL") == [{"n": 0}], "what an older version lacked is filled in"
    code, out, _ = _run(capsys, *folders, "--sql", "SELECT run, NULL AS x, 'a,b' AS y FROM runs ORDER BY run", "--csv")
    assert code == 0 and out.splitlines() == ["run,x,y", '2026-11-22,,"a,b"', 'one,,"a,b"', 'two,,"a,b"']
    code, _, _ = _run(capsys, *folders, "--sql", "SELECT run, made FROM runs ORDER BY run", "--parquet", tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").column("run").to_pylist() == ["2026-11-22", "one", "two"]
    code, out, _ = _run(capsys, *folders, "--sql", "SELECT run, dirty FROM runs ORDER BY run")
    assert code == 0 and "2026-11-22" in out


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM read_parquet('{other}')",
        "SELECT * FROM parquet_metadata('{other}')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
        "COPY rows TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{own}'",
        "ATTACH '{folder}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_paths = ['{secret}']",
        "CREATE TABLE x AS SELECT 1",
        "DROP TABLE runs",
        "DELETE FROM runs",
        "UPDATE runs SET run = 'x'",
        "INSERT INTO runs SELECT * FROM runs",
        "EXPORT DATABASE '{folder}/d'",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SELECT 1; DROP TABLE runs",
        "SELECT 1; SELECT 2",
        "",
        "SELEC 1",
        "SELECT nothing FROM runs",
        "SELECT * FROM lines",
        "SELECT * FROM secret_frame",
        "SELECT run::INT FROM runs",
    ],
)
def test_sql_reaches_the_runs_and_nothing_else(make: Callable[..., Path], tmp_path: Path, sql: str) -> None:
    folder = make("one")
    (tmp_path / "secret.txt").write_text("secret")
    shutil.copy(folder / "rows.parquet", tmp_path / "other.parquet")
    secret_frame = pd.DataFrame({"a": ["secret"]})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    names = {
        "secret": tmp_path / "secret.txt",
        "other": tmp_path / "other.parquet",
        "folder": tmp_path,
        "own": folder / "rows.parquet",
    }
    with h.Archive(h.read([folder])) as archive:
        with pytest.raises(InputError) as refused:
            archive.table(sql.format(**names))
        assert "tables: runs, methods, rows, images" in refused.value.remedy
        assert "secret" not in str(refused.value).replace(str(tmp_path / "secret.txt"), "").replace("secret_frame", "")
        assert archive.table("SELECT run FROM runs") == (["run"], [("one",)]), "and it goes on"
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert len(secret_frame) == 1


def test_sql_has_a_bound_on_memory(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h, "MEMORY", "64MB")
    with h.Archive(h.read([make("one")])) as archive, pytest.raises(InputError, match="more than 64MB of memory"):
        archive.table("SELECT sum(length(b)) FROM (SELECT string_agg(repeat('x', 1000) || a, '') AS b FROM range(200000) t(a))")


# --- damage


@pytest.mark.parametrize("table", ["rows", "images"])
@pytest.mark.parametrize("how", ["cut", "gone", "text", "column", "middle"])
def test_a_damaged_file_is_named(make: Callable[..., Path], table: str, how: str) -> None:
    good, bad = make("good"), make("bad", NOW)
    file = bad / f"{table}.parquet"
    frame = pd.read_parquet(file)
    data = bytearray(file.read_bytes())
    file.unlink()  # the copies share theirs
    match how:
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "gone":
            pass
        case "text":
            file.write_text("no table")
        case "column":
            frame.drop(columns="method").to_parquet(file, index=False)
        case "middle":
            rng = np.random.default_rng(1)
            for i in rng.integers(100, len(data) // 2, 3000):
                data[i] ^= 0xFF
            file.write_bytes(data)

    def ask() -> None:
        with h.Archive(h.read([good, bad])) as archive:
            if table == "images":
                archive.with_images()
            archive.table(f"SELECT count(DISTINCT COLUMNS(*)) FROM {table}")

    with pytest.raises((InputError, MissingError), match=rf"bad/{table}\.parquet is (damaged|missing)"):
        ask()


def test_columns_of_another_kind_are_damage(make: Callable[..., Path]) -> None:
    folder = make("one")
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(value=rows.value.astype(str)).to_parquet(folder / "rows.parquet", index=False)
    with pytest.raises(InputError, match=r"one/rows\.parquet is damaged: value"):
        h.Archive(h.read([folder]))


def test_tables_in_memory_that_do_not_fit_are_told_in_words(base: Path) -> None:
    """What was read already and changed since: DuckDB's complaint becomes one of ours."""
    run = read_run(base)
    [past] = h._known([run])
    odd = run.rows.assign(value=["no number"] * len(run.rows))
    with (
        pytest.raises(InputError, match=r"do not fit: .*no number"),
        h.Archive([replace(past, tables={"rows": odd})]) as archive,
    ):
        archive.questions(["mask"])


def test_hostile_names_are_names(make: Callable[..., Path]) -> None:
    """Folders, methods and columns are data, never SQL."""
    folder = make("it's; DROP TABLE runs --")
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.loc[rows.method == "noise", "method"] = "'); DROP VIEW rows; --"
    rows.to_parquet(folder / "rows.parquet", index=False)
    images = pd.read_parquet(folder / "images.parquet")
    (folder / "images.parquet").unlink()
    images.assign(**{'a"; DROP TABLE runs; --': 1.0, "line": 3}).to_parquet(folder / "images.parquet", index=False)
    with h.Archive(h.read([folder])).with_images() as archive:
        [q] = archive.matching(["'); DROP VIEW rows; --"], ["quality.ssim_face"])
        [line] = archive.lines(["'); DROP VIEW rows; --"], [q])
        assert line["value"] is not None and line["run"] == folder.name
        names, _ = archive.table("SELECT * FROM images LIMIT 1")
        assert 'a"; DROP TABLE runs; --' in names


# --- hundreds


@pytest.mark.slow
def test_hundreds_of_runs_are_quick(base: Path, tmp_path: Path) -> None:
    """300 copies of the whole reference with figures of their own; pandas took 200 s of processor time for as many."""
    rng = np.random.default_rng(0)
    record = json.loads((REFERENCE / "run.json").read_text())
    record["environment"]["git"].pop("committed", None)
    record["run"].pop("store", None)
    rows = pd.read_parquet(REFERENCE / "rows.parquet")
    for i in range(300):
        folder = tmp_path / f"run{i:03d}"
        folder.mkdir()
        for table in ("images", "curves"):
            (folder / f"{table}.parquet").symlink_to(REFERENCE / f"{table}.parquet")
        record["started"] = (NOW - timedelta(hours=300 - i)).isoformat()
        (folder / "run.json").write_text(json.dumps(record))
        rows.assign(value=rows.value * (1 + 0.01 * rng.standard_normal(len(rows)))).to_parquet(
            folder / "rows.parquet", index=False
        )
    start = time.process_time()
    with h.Archive(h.read(h.find([tmp_path]))) as archive:
        lines = archive.lines(["ganonymization"], archive.guarded(["ganonymization"], load_margins()))
        once = time.process_time() - start
        [(n,)] = archive.with_images().table("SELECT count(*) FROM images WHERE fta")[1]
    said = (
        f"{len(lines)} lines of 300 runs: {once:.1f} s of processor time, with the images {time.process_time() - start:.1f} s"
    )
    print(said)  # noqa: T201
    assert len(lines) == 300 * 10 and n > 0
    assert once < 15
