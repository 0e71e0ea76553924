"""How much quicker two workers of Ray are than one, a thread each: the embedding stage alone, and the stages of a whole run.

``pytest tests/benchmarks/test_bench_ray.py -m slow -s`` prints the numbers; alone on a machine with two cores or more, or they are
those of its neighbours.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from deidbench import kinds
from deidbench.executors import cores, limit_threads
from deidbench.ray_executor import Session
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite

pytest.importorskip("ray", reason="Ray is not installed")
cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(cores() < 2, reason="two workers need two cores"),
]

#: Times as fast as one worker, at least.
LEAST = 1.6
ROUNDS, TASKS, FACES = 3, 16, 16
STATE = "state of the benchmark"


@pytest.fixture
def others() -> float:
    """Share of the machine's cores that others use before we begin."""
    import psutil

    return psutil.cpu_percent(interval=3) / 100


def loaded(name: str) -> None:
    """A recogniser in this process, one thread."""
    recognizer = kinds.recognizers.create(name)
    recognizer.load()
    limit_threads(1)
    sys.modules[STATE] = recognizer  # functions of a test module travel by value, each with a module of its own


def embed(crops: np.ndarray) -> tuple[int, float]:
    """Number of faces, seconds in the network."""
    start = time.perf_counter()
    found = sys.modules[STATE].embed(crops)
    assert len(found) == len(crops)
    return len(found), time.perf_counter() - start


@pytest.mark.parametrize("name", ["dlib", "sface"])
def test_the_embedding_stage_scales(name: str, orl_face: np.ndarray, others: float) -> None:
    import cv2

    spec = kinds.recognizers.create(name).crop
    face = cv2.resize(orl_face, (spec.size, spec.size))
    rng = np.random.default_rng(0)
    batches = [np.clip(face[None] + rng.integers(-20, 21, (FACES, *face.shape)), 0, 255).astype(np.uint8) for _ in range(TASKS)]
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    seconds: dict[int, list[float]] = {1: [], 2: []}
    inside: dict[int, list[float]] = {1: [], 2: []}
    with Session() as session:
        session.connect(3)
        executors = {n: session.executor(n, loaded, (name,)) for n in (1, 2)}
        for n, executor in executors.items():  # started and warm before anything is timed
            for _ in range(2):
                list(executor.run(embed, batches[: 4 * n]))
        for _ in range(ROUNDS):
            for n, executor in executors.items():  # in turn, so that a slow minute meets both
                start = time.perf_counter()
                answers = list(executor.run(embed, batches))
                seconds[n].append(time.perf_counter() - start)
                inside[n].append(sum(s for _, (_, s) in answers))
        for executor in executors.values():
            executor.close()
    rate = {n: TASKS * FACES / float(np.median(s)) for n, s in seconds.items()}
    busy = {n: float(np.median(inside[n])) / (n * float(np.median(seconds[n]))) for n in (1, 2)}
    ratios = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    click.echo(
        f"\n{name}: {rate[1]:.1f} faces/s with one worker, {rate[2]:.1f} with two: {rate[2] / rate[1]:.2f} times "
        f"(rounds {', '.join(f'{r:.2f}' for r in ratios)}); share of a worker's time in the network: {busy[1]:.2f}, {busy[2]:.2f}"
    )
    if others > 0.1:
        pytest.skip(f"others had {others:.0%} of the cores: {rate[2] / rate[1]:.2f} says nothing about two cores")
    assert rate[2] / rate[1] >= LEAST


SUITE = """\
[suite]
name = "scaling"
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

[[recognizers]]
name = "dlib"

[throughput]
images = 0

[report]
samples = 0

[[methods]]
name = "pixelate"
sweep = {{ block = [0.1, 0.2, 0.3, 0.4] }}
"""


def test_a_run_scales(orl_folder: Path, tmp_path: Path) -> None:
    """Printed, not asserted: starting workers and reading models is a large part of so short a run."""
    for p in range(1, 21):
        (tmp_path / "data" / f"p{p}").mkdir(parents=True)
        for i in range(1, 6):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", tmp_path / "data" / f"p{p}" / f"{i}.pgm")
    (tmp_path / "suite.toml").write_text(SUITE.format(root=tmp_path / "data"))
    timings: dict[int, Any] = {}
    rows = {}
    for n in (1, 2):
        out = tmp_path / f"run{n}"
        options = Options(workers=n, cache=tmp_path / f"cache{n}", quiet=True, executor="ray")
        run_suite(load_suite(tmp_path / "suite.toml"), out, options)
        timings[n] = json.loads((out / "run.json").read_text())["timings"]
        rows[n] = (out / "rows.json").read_bytes()
    assert rows[1] == rows[2]
    for stage in ("clear images", "methods", "scores"):
        a, b = timings[1][stage], timings[2][stage]
        click.echo(f"{stage}: {a:.1f} s with one worker, {b:.1f} s with two: {a / b:.2f} times")
    for n in (1, 2):
        click.echo(f"seconds of {n} worker(s): {timings[n]['per_stage_worker_seconds']}")
