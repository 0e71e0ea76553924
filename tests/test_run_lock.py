"""Faults of a run's surroundings: two runs on one folder, a run that is killed, data that change under it, a clock that is set."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from deidbench import lock
from deidbench.errors import EnvironmentFault, ExitCode, InputError
from deidbench.lock import RUN_LOCK, FileLock, Holder, file_system, holders, on_network, run_lock
from deidbench.records import Clock, read_run
from deidbench.runner import Options, Result, _Run, run_suite
from deidbench.suite import load_suite

SUITE = """\
[suite]
name = "tiny"
extends = "deidbench-v1"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[protocol]
replicates = 200
curve_replicates = 100

[[recognizers]]
name = "sface"

[throughput]
images = 0

[report]
samples = 1

[[methods]]
name = "pixelate"
params = {{ block = 0.15 }}

[[methods]]
name = "noise"
"""


@pytest.fixture
def people(tmp_path: Path, orl_folder: Path) -> Path:
    """Two persons with two images each, of which a test may do what it likes."""
    root = tmp_path / "people"
    for p in (1, 7):
        (root / f"p{p}").mkdir(parents=True)
        for i in (1, 3):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"p{p}" / f"{i}.pgm")
    return root


@pytest.fixture
def suite(tmp_path: Path, people: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE.format(root=people))
    return path


def _options(tmp_path: Path) -> Options:
    return Options(workers=1, cache=tmp_path / "cache", quiet=True)


def _figures(folder: Path) -> pd.DataFrame:
    rows = read_run(folder).rows
    return rows[~rows.timing].reset_index(drop=True)


# --- the lock

_HOLD = """
import pathlib, sys, time
from deidbench.lock import run_lock
with run_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder ``out``."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_one_at_a_time(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError) as refused, run_lock(out):
        pass
    assert f"another deidbench run is writing {out}" in refused.value.message
    assert f"process {holder.pid} on " in refused.value.message and "since 20" in refused.value.message
    assert "--out" in refused.value.remedy
    assert holders(out / RUN_LOCK) == [holder.pid]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    out = tmp_path / "out"
    assert (out / RUN_LOCK).is_file(), "it had no time to tidy up"
    with run_lock(out) as died:
        assert died is not None and died.pid == holder.pid and died.here
        assert Holder.read(out / RUN_LOCK) == Holder.me() or Holder.read(out / RUN_LOCK).pid == os.getpid()  # type: ignore[union-attr]
    assert not (out / RUN_LOCK).exists()
    with run_lock(out) as died:
        assert died is None


def test_a_thread_may_take_its_own_again_and_no_other(tmp_path: Path) -> None:
    caught: list[InputError] = []

    def other() -> None:
        try:
            with run_lock(tmp_path / "out"):
                pass
        except InputError as error:
            caught.append(error)

    with run_lock(tmp_path / "out"):
        with run_lock(tmp_path / "out") as died:
            assert died is None
        assert (tmp_path / "out" / RUN_LOCK).exists(), "the inner one does not give it back"
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(caught) == 1
    other()
    assert len(caught) == 1, "free again"


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"pid": "x"}', '{"pid": 1}', "\x00" * 100])
def test_whatever_the_file_says(tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RUN_LOCK).write_text(text)
    with run_lock(out) as died:
        assert died is None


def test_on_a_network_drive_another_machine_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RUN_LOCK).write_text(json.dumps({"pid": 4711, "host": "elsewhere", "boot": "other", "since": "2026-01-01T00:00:00"}))
    monkeypatch.setattr(lock, "on_network", lambda folder: True)
    with pytest.raises(InputError, match=rf"process 4711 on elsewhere[\s\S]*rm {out / RUN_LOCK}"), run_lock(out):
        pass
    assert (out / RUN_LOCK).exists(), "it is not ours to remove"
    monkeypatch.setattr(lock, "on_network", lambda folder: False)
    with run_lock(out) as died:  # on a local disk the kernel knows: a machine that was started anew, or a container
        assert died is not None and died.host == "elsewhere" and not died.here


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with run_lock(tmp_path / "out") as died:
        assert died is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="cannot be made"), run_lock(tmp_path / "file" / "out"):
        pass
    (tmp_path / "out" / RUN_LOCK).mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match="cannot be written"), run_lock(tmp_path / "out"):
        pass


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path: Path) -> None:
    """Who waits with the old file in hand must not take it for the new one."""
    first, second = FileLock(tmp_path / "x"), FileLock(tmp_path / "x")
    assert first.acquire()
    (tmp_path / "x").unlink()  # somebody forced it
    assert second.acquire(), "a new file, a new lock"
    first.release()
    third = FileLock(tmp_path / "x")
    assert not third.acquire()
    second.release(remove=True)
    assert third.acquire()
    third.release()


def test_shared_locks(tmp_path: Path) -> None:
    one, two, alone = (FileLock(tmp_path / "x") for _ in range(3))
    assert one.acquire(shared=True) and two.acquire(shared=True)
    assert not alone.acquire()
    one.release()
    assert not alone.acquire()
    two.release()
    assert alone.acquire() and not one.acquire(shared=True)
    alone.release()


def test_file_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not on_network(tmp_path)
    mounts = "x / ext4 rw 0 0\nhost:/a /mnt/a\\040b nfs4 rw 0 0\nproc /proc proc rw 0 0\nhost:/a /mnt/a\\040b/c tmpfs rw 0 0\n"
    real = Path.read_text

    def read(self: Path, *a: object, **k: object) -> str:
        return mounts if str(self) == "/proc/self/mounts" else real(self, *a, **k)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read)
    assert file_system(Path("/mnt/a b/x")) == "nfs4" and on_network(Path("/mnt/a b/x"))
    assert file_system(Path("/mnt/a b/c/x")) == "tmpfs" and file_system(Path("/mnt/a bc")) == "ext4"


# --- real runs


def test_two_runs_on_one_folder_and_one_that_is_killed(tmp_path: Path, suite: Path) -> None:
    """The second is refused while the first is alive; once it was killed, the third goes on from what it left."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "deidbench.cli", "run", str(suite), "--out", str(out), "--cache", str(tmp_path / "cache")]
    command += ["--workers", "1", "--batch", "1", "--no-report", "--quiet"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        while first.poll() is None and not (out / "manifest.csv").exists():
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGSTOP)  # alive and at work, however fast it is
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == ExitCode.USAGE
        assert f"another deidbench run is writing {out} (process {first.pid} on " in second.stderr
        assert "Traceback" not in second.stderr and not (out / "run.json").exists()
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert f"an earlier run into {out} had died (process {first.pid} on " in third.stderr
    assert not (out / RUN_LOCK).exists()
    assert len(read_run(out).images) == 8


def test_the_folder_is_kept_until_the_report_is_written(tmp_path: Path, suite: Path) -> None:
    out = tmp_path / "run"
    seen = []

    def then(folder: Path) -> None:
        seen.append((folder, (folder / "run.json").exists(), Holder.read(folder / RUN_LOCK)))

    run_suite(load_suite(str(suite)), out, _options(tmp_path), then)
    [(folder, finished, held)] = seen
    assert folder == out and finished and held is not None and held.pid == os.getpid()


def test_a_record_belongs_to_its_tables(tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped while it writes over an older result leaves no record beside tables of another run."""
    from deidbench import images

    out = tmp_path / "run"
    run_suite(load_suite(str(suite)), out, _options(tmp_path))
    real: Callable[..., None] = images.atomic_write

    def dies(path: Path, data: bytes | str) -> None:
        if Path(path).name == "images.parquet":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(images, "atomic_write", dies)
    with pytest.raises(KeyboardInterrupt):
        run_suite(load_suite(str(suite), ["protocol.replicates=300"]), out, _options(tmp_path))
    monkeypatch.undo()
    assert not (out / "run.json").exists() and not (out / RUN_LOCK).exists()
    run_suite(load_suite(str(suite), ["protocol.replicates=300"]), out, _options(tmp_path))
    assert read_run(out).record["protocol"]["replicates"] == 300


# --- data that change under the run


def _meanwhile(monkeypatch: pytest.MonkeyPatch, stage: str, change: Callable[[], None]) -> None:
    """Changes something just before a stage of the next run."""
    real = getattr(_Run, stage)

    def first(self: _Run, *arguments: object, **named: object) -> object:
        change()
        return real(self, *arguments, **named)

    monkeypatch.setattr(_Run, stage, first)


def _replace(people: Path) -> None:
    shutil.copy(people / "p7" / "3.pgm", people / "p1" / "3.pgm")


def test_a_file_replaced_before_it_was_read_is_left_out_and_named(
    tmp_path: Path, suite: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _meanwhile(monkeypatch, "_clear", lambda: _replace(people))
    result = run_suite(load_suite(str(suite)), tmp_path / "run", _options(tmp_path))
    assert result.unreadable == 1 and dict(result.changed) == {"p1/3.pgm": "changed"}
    record = read_run(tmp_path / "run").record
    assert record["dataset"]["unreadable"]["p1/3.pgm"].startswith("changed while the run was going on: ")
    assert record["dataset"]["n_images"] == 3 and record["run"]["changed_files"] == {"p1/3.pgm": "changed"}
    [told] = result.remarks()
    assert "p1/3.pgm (changed)" in told


@pytest.mark.parametrize("what", ["changed", "gone", pytest.param("cut short", marks=pytest.mark.slow)])
def test_a_file_changed_between_stages_stops_the_run_and_is_named(
    tmp_path: Path, suite: Path, people: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    file = people / "p1" / "3.pgm"
    before = file.read_bytes()
    changes: dict[str, Callable[[], object]] = {
        "changed": lambda: _replace(people), "gone": file.unlink, "cut short": lambda: file.write_bytes(before[:500]),
    }  # fmt: skip
    _meanwhile(monkeypatch, "_methods", lambda: changes[what]())  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError) as stopped:
        run_suite(load_suite(str(suite)), tmp_path / "run", _options(tmp_path))
    said = "gone" if what == "gone" else "changed"
    assert f"the data changed while the run was going on: p1/3.pgm ({said})" in stopped.value.message
    assert "run the same command again" in stopped.value.remedy
    assert not (tmp_path / "run" / "run.json").exists()
    monkeypatch.undo()
    file.write_bytes(before)  # put back: what was computed before is still there
    result = run_suite(load_suite(str(suite)), tmp_path / "run", _options(tmp_path))
    assert "detect" in result.computed and result.computed["anonymize"] == 8
    assert result.computed["detect"] == 8, "the clear images were searched before"


def test_a_file_changed_after_its_last_use_is_told_and_the_figures_stand(
    tmp_path: Path, suite: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_suite(load_suite(str(suite)), tmp_path / "good", _options(tmp_path))
    _meanwhile(monkeypatch, "_write", lambda: _replace(people))
    result = run_suite(load_suite(str(suite)), tmp_path / "run", _options(tmp_path))
    assert result.computed == {} and dict(result.changed) == {"p1/3.pgm": "changed"} and result.unreadable == 0
    assert "the figures are of the files as" in result.remarks()[0]
    pd.testing.assert_frame_equal(_figures(tmp_path / "run"), _figures(tmp_path / "good"))
    monkeypatch.undo()
    again = run_suite(load_suite(str(suite)), tmp_path / "run", _options(tmp_path))
    assert dict(again.changed) == {}, "the next run takes the files as they are"


def test_a_new_date_is_no_change(tmp_path: Path, suite: Path, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch() -> None:
        for file in people.rglob("*.pgm"):
            data = file.read_bytes()
            file.unlink()
            file.write_bytes(data)
            os.utime(file, (1e9, 1e9))

    _meanwhile(monkeypatch, "_methods", touch)
    result = run_suite(load_suite(str(suite)), tmp_path / "run", _options(tmp_path))
    assert dict(result.changed) == {} and result.remarks() == []


# --- a clock that is set


def _run_with(monkeypatch: pytest.MonkeyPatch, suite: Path, out: Path, options: Options, seconds: float) -> Result:
    """A run in whose midst the clock is set by ``seconds``."""
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])

    def jump() -> None:
        shift[0] = seconds

    _meanwhile(monkeypatch, "_methods", jump)
    result = run_suite(load_suite(str(suite)), out, options)
    monkeypatch.undo()
    return result


@pytest.mark.parametrize("hours", [-1, pytest.param(24 * 365, marks=pytest.mark.slow)])
def test_a_clock_that_is_set_does_no_harm_and_is_told(
    tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    from deidbench.history import read

    run_suite(load_suite(str(suite)), tmp_path / "good", Options(workers=1, cache=tmp_path / "other", quiet=True))
    _run_with(monkeypatch, suite, tmp_path / "run", _options(tmp_path), 3600.0 * hours)
    record = read_run(tmp_path / "run").record
    clock = record["run"]["clock"]
    assert clock["set_s"] == pytest.approx(3600 * hours, abs=2)
    assert 0 < clock["elapsed_s"] < 600
    stages = {k: v for k, v in record["timings"].items() if k != "per_stage_worker_seconds"}
    assert all(0 <= v < 600 for v in (*stages.values(), *record["timings"]["per_stage_worker_seconds"].values()))
    assert sum(stages.values()) <= clock["elapsed_s"] + 1
    pd.testing.assert_frame_equal(_figures(tmp_path / "run"), _figures(tmp_path / "good"))
    [past] = read([tmp_path / "run"])
    assert ("set back by 1 h" if hours < 0 else "set forward by 365 days") in past.said
    # the store: nothing is computed anew, and the next run has the next turn
    again = run_suite(load_suite(str(suite)), tmp_path / "again", _options(tmp_path))
    assert again.computed == {}
    found = read([tmp_path / "again", tmp_path / "run"])
    assert [p.name for p in found] == ["run", "again"], "in the order of the store, whatever the clock said"


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    assert clock.record()["set_s"] == 0.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)
    assert clock.record()["set_s"] == pytest.approx(-7200, abs=1) and clock.record()["elapsed_s"] >= 0
    monkeypatch.setattr(time, "time", lambda: real() + 1)
    assert clock.record()["set_s"] == 0.0, "clocks are corrected by a little all the time"
