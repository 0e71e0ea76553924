"""Runs of older versions: real ones of earlier commits are read, reported and compared as far as they go, and never changed unasked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deidbench import cli, migrations, records
from deidbench.comparable import differences, sound
from deidbench.compare import compare
from deidbench.errors import InputError, MissingError
from deidbench.gate import gate, load_margins
from deidbench.migrations import STEPS, Step, interrupted, kept, migrate_record, migrate_table, upgrade
from deidbench.records import SCHEMA_VERSION, Row, columns_of, read_record, read_run
from deidbench.report.view import View
from deidbench.scored import check

OLD_RUNS = Path(__file__).parent / "old_runs"
OLD = sorted(p for p in OLD_RUNS.iterdir() if p.is_dir())
REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "demo"


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(params=OLD, ids=lambda p: p.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run of an older version."""
    folder = tmp_path / request.param.name
    shutil.copytree(request.param, folder)
    return folder


def test_every_schema_has_a_step() -> None:
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))
    assert {read_record(p)["schema"] for p in OLD} == {1}, "the runs here are really old"


def test_it_reads_like_one_of_today(old: Path) -> None:
    before = _hashes(old)
    run = read_run(old)
    assert run.record["schema"] == SCHEMA_VERSION
    assert [c.name for c in columns_of(Row) if c.name not in run.rows] == []
    assert run.rows.label.notna().all()
    assert {"copy_of", "output_sha256"} <= set(run.images)
    assert len(run.rows) == len(pd.read_parquet(old / "rows.parquet")), "evidence goes by the numbers of the lines"
    assert {"attackers", "classifiers", "recognizers", "metrics"} <= run.record.keys()
    assert {"level", "templates", "seeds", "fpir"} <= run.record["protocol"].keys()
    assert all("weights_sha256" in m and "guarantee" in m for m in run.record["methods"])
    assert all("contaminated" in c for c in run.record["classifiers"])
    assert run.record["run"]["store"] is None and run.record["run"]["clock"] is None, "what nobody knows is not made up"
    sound(run)
    assert _hashes(old) == before, "reading changes no file"


def test_an_overlap_cast_doubt_in_those_days() -> None:
    record = read_record(OLD_RUNS / "2026-11-23-v3")
    assert "contaminated" not in record["classifiers"][0]
    record["classifiers"][0]["overlap"] = "the classifier learnt from 1 of the 400 images"
    first, second = migrate_record(record)["classifiers"]
    assert first["contaminated"] is True and second["contaminated"] is False


def test_nothing_is_filled_in_that_was_said() -> None:
    record = {
        "schema": 1,
        "protocol": {"level": "crop"},
        "dataset": {"shows_faces": True},
        "methods": [{"weights_sha256": "x"}],
    }
    found = migrate_record(record)
    assert found["protocol"]["level"] == "crop" and found["dataset"]["shows_faces"] is True
    assert found["methods"][0]["weights_sha256"] == "x"
    assert record["methods"] == [{"weights_sha256": "x"}], "the record that was given is not touched"


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"methods": 3},
        {"methods": [1, None]},
        {"protocol": []},
        {"attackers": "x"},
        {"classifiers": {"a": 1}},
        {"run": None},
    ],
)
def test_entries_of_the_wrong_kind_are_left_to_those_who_complain(odd: dict[str, Any]) -> None:
    found = migrate_record({"schema": 1, **odd})
    assert found["schema"] == SCHEMA_VERSION
    for name, value in odd.items():
        assert found[name] == value


def test_report_compare_and_gate(old: Path, tmp_path: Path) -> None:
    from deidbench.report import write_report

    run = read_run(old)
    view = View(run)
    row = view.headline("orl", "ganonymization", "reid.worst_rank1")
    assert row is not None and row.value is not None and 0 < row.value < 1
    before = {name: _hashes(old)[name] for name in ("run.json", "rows.parquet", "images.parquet", "curves.parquet")}
    written = write_report(old, formats=("csv", "md", "html"), figures=False)
    assert old / "report.html" in written and "ganonymization" in (old / "report.html").read_text("utf-8")
    assert {name: _hashes(old)[name] for name in before} == before
    # figures of those days keep nothing by which they could be compared, and that is said
    for compared in (lambda: compare([run]), lambda: gate(run, read_run(REFERENCE), load_margins())):
        with pytest.raises((InputError, MissingError)) as stopped:
            compared()
        assert "evidence" in str(stopped.value) or "differ" in str(stopped.value)


def test_protocols_of_older_runs_compare() -> None:
    """What the older program did without saying so is no difference."""
    first, second = (read_run(OLD_RUNS / name) for name in ("2026-11-22", "2026-11-23"))
    found = differences(first, second)
    assert not [
        d for d in found.refuse if d.startswith(("protocol.level", "protocol.templates", "protocol.seeds", "protocol.fpir"))
    ]
    assert not [d for d in found.refuse if d.startswith("attacker-train data")]
    assert [d for d in found.refuse if d.startswith("protocol.name")], "another protocol is another protocol"
    with pytest.raises(InputError, match=r"differ in protocol\.name"):
        check([first, second], across=True)


def test_a_newer_run_is_refused_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    shutil.copytree(OLD[0], folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "schema": SCHEMA_VERSION + 1, "deidbench": "9.0"}))
    with pytest.raises(InputError, match=r"newer deidbench \(9\.0\)[\s\S]*pip install --upgrade deidbench"):
        read_run(folder)
    for command in (
        ["report", str(folder)],
        ["history", str(folder)],
        ["compare", str(folder)],
        ["gate", str(folder), str(folder)],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        assert stopped.value.code == 2, command
        assert "pip install --upgrade deidbench" in capsys.readouterr().err


@pytest.mark.parametrize("schema", [0, -1, None, "2", 1.0, True, [1]])
def test_a_schema_that_is_none_is_damage(tmp_path: Path, schema: Any) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(OLD[0], folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "schema": schema}))
    with pytest.raises(InputError, match="damaged"):
        read_run(folder)


# --- a chain of several steps, as there will be


@pytest.fixture
def future(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more schemas: 3 renames an entry, 4 counts a rate in other units."""

    def renamed(record: dict[str, Any]) -> None:
        record["tool"] = record.pop("deidbench", "")

    def percent(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(value=rows.value.where(rows.unit != "rate", rows.value * 100))

    monkeypatch.setattr(
        migrations,
        "STEPS",
        {**STEPS, 2: Step(renamed), 3: Step(lambda r: None, columns={"rows": {"added": "x"}}, tables={"rows": percent})},
    )
    for module in (migrations, records):
        monkeypatch.setattr(module, "SCHEMA_VERSION", 4)


def test_steps_are_taken_one_after_the_other(future: None) -> None:
    raw = pd.read_parquet(OLD[0] / "rows.parquet")
    run = read_run(OLD[0])
    assert run.record["schema"] == 4 and run.record["tool"] == "0.1.0" and "deidbench" not in run.record
    assert (run.rows.added == "x").all() and (run.rows.label == "").all()
    rate = (raw.unit == "rate") & raw.value.notna()
    pd.testing.assert_series_equal(run.rows.value[rate], raw.value[rate] * 100)
    half = migrate_table(3, "rows", raw)
    assert "added" in half and "label" not in half, "only the steps that are left"


def test_a_table_that_is_changed_is_changed_for_history_too(future: None) -> None:
    from deidbench.history import Archive, read

    raw = pd.read_parquet(OLD[0] / "rows.parquet")
    mine = raw[(raw.metric == "quality.ssim_face") & (raw.method == "mask")]
    with Archive(read([OLD[0], REFERENCE])) as archive:
        found = dict(archive.ask("SELECT run, value FROM rows WHERE metric = 'reid.fta' AND method = 'mask'"))
        assert found[OLD[0].name] == pytest.approx(100 * raw[(raw.metric == "reid.fta") & (raw.method == "mask")].value.iloc[0])
        [(ssim,)] = archive.ask(
            "SELECT value FROM rows WHERE metric = 'quality.ssim_face' AND method = 'mask' AND run = ?", [OLD[0].name]
        )
        assert ssim == pytest.approx(mine.value.iloc[0]), "no rate"


# --- in the folder itself


def test_upgrade_writes_the_present_form_and_keeps_the_originals(old: Path) -> None:
    before = read_run(old)
    originals = _hashes(old)
    assert upgrade(old) == 1
    record = json.loads((old / "run.json").read_text())
    assert record["schema"] == SCHEMA_VERSION and record["upgraded_from"] == 1
    after = read_run(old)
    for table in ("rows", "curves", "images"):
        pd.testing.assert_frame_equal(getattr(after, table), getattr(before, table))
    assert _hashes(kept(old, 1)) == originals
    assert upgrade(old) is None, "once is enough"
    assert not (old / "run.lock").exists()


@pytest.mark.parametrize("stop", ["schema-1/rows.parquet", "schema-1/run.json", "rows.parquet", "images.parquet", "run.json"])
def test_killed_on_the_way_it_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(OLD[1], folder)
    before = read_run(folder)
    from deidbench import images

    real: Callable[..., None] = images.atomic_write

    def dies(path: Path, data: bytes | str) -> None:
        if str(Path(path).relative_to(folder)) == stop:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(images, "atomic_write", dies)
    with pytest.raises(KeyboardInterrupt):
        upgrade(folder)
    monkeypatch.undo()
    if interrupted(folder) is not None:
        with pytest.raises(InputError, match=r"was interrupted[\s\S]*--upgrade finishes it"):
            read_run(folder)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["history", str(folder), "--upgrade", "--json"])
    assert stopped.value.code == 0
    after = read_run(folder)
    assert read_record(folder)["schema"] == SCHEMA_VERSION
    pd.testing.assert_frame_equal(after.rows, before.rows)
    pd.testing.assert_frame_equal(after.images, before.images)


def test_a_run_that_is_being_written_is_not_upgraded(tmp_path: Path) -> None:
    import threading

    from deidbench.lock import run_lock

    folder = tmp_path / "run"
    shutil.copytree(OLD[0], folder)
    caught: list[BaseException] = []

    def other() -> None:
        try:
            upgrade(folder)
        except InputError as error:
            caught.append(error)

    with run_lock(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(caught) == 1 and "another deidbench run" in str(caught[0])
    assert read_record(folder)["schema"] == 1
