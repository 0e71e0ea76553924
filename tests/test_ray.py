"""Runs on Ray: the figures of a local run, on several nodes, with workers and nodes that are killed on the way.

The cluster is real: a head without cores and two nodes of one core each, every one a Ray node with its own processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner

from deidbench import kinds, ray_executor
from deidbench.anonymizers.base import Anonymizer
from deidbench.cache import Store, key
from deidbench.cli import cli
from deidbench.errors import EnvironmentFault, InputError, MissingError
from deidbench.executors import make_executor
from deidbench.ray_executor import Session
from deidbench.records import read_run
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite
from deidbench.types import Anonymized, Item, Status

ray = pytest.importorskip("ray", reason="Ray is not installed")
cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

#: Bytes of shared memory for each node; Ray takes no less.
OBJECTS = 100 << 20
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECTS}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": OBJECTS, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.add_node(**NODE)
        made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def session(cluster: Any) -> Iterator[Session]:
    """Without a store: for tasks that are no part of a run."""
    with Session(cluster.address) as made:
        yield made


def ready() -> None:
    """What a worker of plain tasks needs."""


# ------------------------------------------------------------------------------------------------------------ whole runs

SUITE = """\
[suite]
name = "scaled"
extends = "SMALL"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[[methods]]
name = "original"
control = true

[[methods]]
name = "test-hazard"
params = {{ folder = "{folder}" }}
""".replace("SMALL", Path(__file__).with_name("small.toml").as_posix())


class _Hazard(Anonymizer):
    """Blurs by one pixel to the right, notes what it was given, and kills its process once where a file asks it to."""

    needs_faces = False

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        with (Path(self.folder) / "log").open("a") as log:  # one write, so that lines of several processes do not mix
            log.write(json.dumps([os.getpid(), [i.id for i in items]]) + "\n")
        armed = Path(self.folder) / "armed"
        if armed.exists():
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return [Anonymized(i.id, Status.OK, np.ascontiguousarray(255 - i.image // 2)) for i in items]


kinds.anonymizers.register("test-hazard")(_Hazard)


class Local(NamedTuple):
    suite: Path
    folder: Path


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Local:
    """An undisturbed run of three persons with four images each, in this process."""
    folder = tmp_path_factory.mktemp("local")
    for p in (1, 7, 14):
        (folder / "data" / f"p{p}").mkdir(parents=True)
        for i in (1, 3, 5, 8):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", folder / "data" / f"p{p}" / f"{i}.pgm")
    suite = folder / "suite.toml"
    suite.write_text(SUITE.format(root=folder / "data", folder=folder))
    run_suite(load_suite(suite), folder / "run", Options(workers=1, cache=folder / "cache", quiet=True))
    (folder / "log").unlink()
    return Local(suite, folder)


def _same(a: Path, b: Path) -> None:
    one, other = read_run(a), read_run(b)
    for name in ("rows", "curves"):
        x, y = getattr(one, name), getattr(other, name)
        assert len(x)
        pd.testing.assert_frame_equal(x, y, check_exact=True)
    pd.testing.assert_frame_equal(
        pd.read_parquet(a / "images.parquet"), pd.read_parquet(b / "images.parquet"), check_exact=True
    )


def test_a_run_on_several_nodes_survives_a_kill_and_equals_the_local_one(cluster: Any, local: Local, tmp_path: Path) -> None:
    """One worker is killed in the midst of a batch: the batch is done again, nothing else is, and every figure is the same."""
    (local.folder / "armed").touch()
    options = Options(workers=2, batch=2, cache=tmp_path / "cache", quiet=True, executor="ray", address=cluster.address)
    done = run_suite(load_suite(local.suite), tmp_path / "run", options)
    assert not (local.folder / "armed").exists(), "a worker was killed"
    _same(local.folder / "run", tmp_path / "run")
    ran = json.loads((tmp_path / "run" / "run.json").read_text())["run"]["executor"]
    assert ran["name"] == "ray" and ran["joined"] and ran["workers"] == 2 and ran["lost_workers"] == 1
    assert ran["nodes"] == 2, "both nodes worked"
    batches = [json.loads(line) for line in (local.folder / "log").read_text().splitlines()]
    assert len({pid for pid, _ in batches}) >= 2
    times = Counter(i for _, ids in batches for i in ids)
    assert len(times) == 12
    twice = {i for i, n in times.items() if n > 1}
    assert twice == set(batches[0][1]), "the batch that was at work is done again, and no other"
    assert max(times.values()) == 2
    assert done.computed["anonymize"] == 12 + 12, "what a dead worker did not say is not counted"
    # nothing is left to do, so that no worker is asked
    again = run_suite(load_suite(local.suite), tmp_path / "run", options)
    assert not again.computed
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run"]["executor"]["workers"] == 0


@pytest.mark.slow
def test_the_command_starts_ray_here_and_ends_it(local: Local, tmp_path: Path, orl_folder: Path) -> None:
    text = (
        local.suite.read_text()
        .replace('name = "test-hazard"', 'name = "noise"')
        .replace(f'params = {{ folder = "{local.folder}" }}', "")
    )
    suite = tmp_path / "suite.toml"
    suite.write_text(text)
    run_suite(load_suite(suite), tmp_path / "here", Options(workers=1, cache=tmp_path / "a", quiet=True))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "deidbench.cli", "run", str(suite), "--executor", "ray", "--workers", "2", "--batch", "3"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "there"), "--cache", str(tmp_path / "b"), "--no-report", "--quiet"],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip() or "ray" not in done.stderr.lower(), "Ray keeps quiet"
    _same(tmp_path / "here", tmp_path / "there")
    assert json.loads((tmp_path / "there" / "run.json").read_text())["run"]["executor"]["joined"] is False


# ------------------------------------------------------------------------------------------------------------ plain tasks


def where(task: Any) -> tuple[int, str, int]:
    """Works for a moment and says where: (number, node, process)."""
    time.sleep(0.1)
    return task, ray.get_runtime_context().get_node_id(), os.getpid()


@pytest.mark.slow
def test_a_killed_worker_costs_its_task_only(session: Session) -> None:
    executor = session.executor(2, ready, ())
    before, pids = session.lost, set()
    try:
        answers = {}
        for i, (number, node, pid) in executor.run(where, list(range(40))):
            assert i == number and i not in answers
            answers[i] = node
            pids.add(pid)
            if len(answers) == 10:
                os.kill(pid, signal.SIGKILL)
        assert sorted(answers) == list(range(40))
        assert len(set(answers.values())) == 2, "tasks ran on both nodes"
        assert session.lost == before + 1
        end = time.monotonic() + 60
        while len(pids) < 3:
            assert time.monotonic() < end, "no fresh one comes"
            pids |= {pid for _, (_, _, pid) in executor.run(where, [0, 1, 2])}
    finally:
        executor.close()
    end = time.monotonic() + 30
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
        assert time.monotonic() < end, "a worker is left over"
        time.sleep(0.1)


def change(task: np.ndarray) -> np.ndarray:
    task[0] = 7  # what Ray itself hands over could not be written to
    return task


def trouble(task: str) -> None:
    if task == "user":
        raise InputError("that is wrong", "type this")
    if task == "own":
        raise ZeroDivisionError("a mistake of ours")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_what_tasks_raise_comes_back_and_deadly_ones_are_given_up(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "STRIKES", 2)
    executor = session.executor(1, ready, ())
    try:
        [(_, changed)] = executor.run(change, [np.zeros(1 << 18)])
        assert changed[0] == 7 and not changed[1:].any()
        with pytest.raises(InputError, match="that is wrong") as told:
            list(executor.run(trouble, ["user"]))
        assert told.value.remedy == "type this"
        with pytest.raises(ZeroDivisionError) as own:
            list(executor.run(trouble, ["own"]))
        assert "in trouble" in "".join(own.value.__notes__), "where it was"
        with pytest.raises(EnvironmentFault, match="task 0 ended its worker 2 times"):
            list(executor.run(trouble, ["deadly"]))
    finally:
        executor.close()


class _Sample(NamedTuple):
    id: str
    sha256: str
    path: Path


class _Batch(NamedTuple):
    samples: tuple[_Sample, ...]


def count(task: _Batch) -> int:
    return len(task.samples)


@pytest.mark.slow
def test_a_machine_without_the_data_is_named(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there when the run looks, and has gone when the worker does: to the worker it never was."""
    task = _Batch((_Sample("a", "00", tmp_path / "a.png"),))
    executor = session.executor(1, ready, ())
    try:
        monkeypatch.setattr(os, "access", lambda path, mode: True)
        with pytest.raises(EnvironmentFault, match=r"cannot read the data.*a\.png") as told:
            list(executor.run(count, [task]))
        assert "same path" in told.value.remedy
        monkeypatch.undo()
        (tmp_path / "a.png").touch()
        assert list(executor.run(count, [task])) == [(0, 1)]
    finally:
        executor.close()


def test_the_store_is_served_by_its_own_machine(session: Session, tmp_path: Path) -> None:
    """Workers write and read through the keeper; what is there is a store like any other, kinds of artefacts included."""
    from deidbench.remote_store import Keeper, RemoteStore

    session.connect()
    keeper = ray.remote(num_cpus=0)(Keeper).remote(str(tmp_path / "store"))
    remote = RemoteStore(keeper)
    small, large = key("clear", image="1"), key("picture", source="2").by("blur")
    remote.put_many({small: b"abc", large: bytes(300_000)})
    assert remote.present([small, large, "x"]) == {small, large}
    assert remote.get_many([small, "x"]) == {small: b"abc"} and remote.get("x") is None
    with Store(tmp_path / "store") as store:
        assert store.get(large) == bytes(300_000)
        assert sorted(store.ask("SELECT kind, method FROM origin")) == [("clear", ""), ("picture", "blur")]
        [file] = [p for p in store.objects.rglob("*") if p.is_file()]
    file.write_bytes(b"damaged")
    assert remote.get(large) is None and remote.damaged == 1
    ray.kill(keeper)
    (tmp_path / "no folder").write_text("")
    other = ray.remote(num_cpus=0)(Keeper).remote(str(tmp_path / "no folder"))
    with pytest.raises(EnvironmentFault, match="no folder"):
        RemoteStore(other).present(["x"])
    ray.kill(other)


@pytest.mark.slow
def test_a_comparison_in_parts_equals_the_whole(session: Session, tmp_path: Path) -> None:
    """The exact figures of a single process, although a worker is killed in the midst."""
    from deidbench.metrics.models.base import l2_normalise
    from deidbench.metrics.reid import sharded, streaming

    rng = np.random.default_rng(0)
    person = rng.integers(0, 200, 1500)
    x = l2_normalise(rng.normal(size=(200, 32))[person] + 0.9 * rng.normal(size=(1500, 32)))
    data = (x, x, person, person, np.arange(1500))
    sharded.lay_out(tmp_path, *data)
    executor = session.executor(2, ready, ())

    class Killing:
        """Kills a worker after the third part."""

        workers = 2

        def run(self, function: Any, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            for n, result in enumerate(executor.run(function, tasks)):
                yield result
                if n == 2:
                    os.kill(executor.pids[0], signal.SIGKILL)

        def close(self) -> None:
            executor.close()

    before = session.lost
    try:
        state = sharded.compare(Killing(), sharded.parts(tmp_path, 12))
    finally:
        executor.close()
    whole = streaming.compare_all(*data)
    assert session.lost > before
    np.testing.assert_array_equal(state.genuine.counts, whole.genuine.counts)
    np.testing.assert_array_equal(state.impostor.counts, whole.impostor.counts)
    assert (state.eer(), state.auc()) == (whole.eer(), whole.auc())
    assert state.hits == sharded.state_of(whole, person).hits and 0.2 < state.rank(1) < 1


@pytest.mark.slow
def test_a_node_that_is_lost_costs_what_it_was_at(cluster: Any, session: Session) -> None:
    """Last in this file, for it takes a node away."""
    executor = session.executor(2, ready, ())
    try:
        answers: dict[int, str] = {}
        victim = ""
        for i, (number, node, _) in executor.run(where, list(range(40))):
            assert i == number and i not in answers
            answers[i] = node
            if len(set(answers.values())) == 2 and not victim:
                victim = node
                [lost] = [n for n in cluster.list_all_nodes() if n.node_id == victim]
                cluster.remove_node(lost, allow_graceful=False)
        assert sorted(answers) == list(range(40))
        assert victim and answers[max(answers)] != victim
    finally:
        executor.close()


#: Two workers of a Ray of their own, in the midst of tasks that take for ever.
ALONE = """
import os, pathlib, sys, time
from deidbench.ray_executor import Session

FOLDER = pathlib.Path(sys.argv[1])

def ready():
    (FOLDER / str(os.getpid())).touch()

def work(task):
    time.sleep(600)

if __name__ == "__main__":
    with Session() as session:
        for _ in session.executor(2, ready, ()).run(work, [1, 2, 3, 4]):
            pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_run(tmp_path: Path, how: signal.Signals) -> None:
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(ALONE)
    pids.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen([sys.executable, str(script), str(pids)], stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 120
        while len(list(pids.iterdir())) < 2:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        children = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(how)
        process.wait(60)
    finally:
        process.kill()
    workers = {int(p.name) for p in pids.iterdir()}
    for some, patience in ((workers, 30), (set(children) - workers, 180)):  # Ray's own helpers take their time after SIGKILL
        end = time.monotonic() + patience
        for pid in some:
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < end, f"{psutil.Process(pid).cmdline()[0]} is left over"
                time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------ without a cluster


def test_without_ray_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a))
    result = CliRunner().invoke(cli, ["run", "demo", "--executor", "ray", "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, MissingError)
    assert result.exception.remedy == "pip install 'deidbench[ray]'"


def test_addresses_that_are_of_no_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ray://somewhere") as told:
        Session("ray://somewhere:10001")
    assert "--ray-address auto" in told.value.remedy
    result = CliRunner().invoke(cli, ["run", "demo", "--ray-address", "auto", "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, InputError) and "--executor ray" in result.exception.remedy


def test_nothing_is_started_for_nothing() -> None:
    executor = make_executor(2, ready, (), Session())
    assert list(executor.run(where, [])) == []
    executor.close()
    assert executor.workers == 2
