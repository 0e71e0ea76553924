"""A run, end to end, on a few real faces: resume, invariance, failures, bad data."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from deidbench import kinds
from deidbench.adapter_calls import run_adapter
from deidbench.anonymizers.base import Anonymizer
from deidbench.cache import LAYOUT
from deidbench.errors import ExitCode, InputError
from deidbench.faces import FaceFinder
from deidbench.pipeline import fallback_box, item_seed, passthrough, typical_box
from deidbench.records import read_run
from deidbench.runner import Options, _Run, run_suite
from deidbench.suite import load_suite
from deidbench.types import Anonymized, Box, FaceResult, Item, Status

SUITE = """\
[suite]
name = "small"
extends = "deidbench-v1"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[protocol]
replicates = 500
curve_replicates = 100

[[recognizers]]
name = "sface"

[throughput]
images = {timed}
repeats = 2

[report]
samples = 2

"""
METHODS = """\
[[methods]]
name = "original"
control = true

[[methods]]
name = "blackout"
control = true

[[methods]]
name = "pixelate"
sweep = { block = [0.1, 0.3] }

[[methods]]
name = "noise"
"""


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """Five persons with four images each, one sub-folder per person."""
    root = tmp_path_factory.mktemp("people")
    for p in (1, 7, 14, 22, 35):
        (root / f"p{p}").mkdir()
        for i in (1, 3, 5, 8):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"p{p}" / f"{i}.pgm")
    return root


def _suite(folder: Path, root: Path, methods: str = METHODS, timed: int = 0) -> Path:
    path = folder / "small.toml"
    path.write_text(SUITE.format(root=root, timed=timed) + methods)
    return path


def _figures(folder: Path) -> pd.DataFrame:
    """Everything that is reported, but for wall-clock figures."""
    rows = read_run(folder).rows
    return rows[~rows.timing].reset_index(drop=True)


def _embeddings(suite: Path, folder: Path, cache: Path) -> dict[str, np.ndarray]:
    """Method -> embeddings (n, d) as the store holds them; everything must be there already."""
    run = _Run(load_suite(suite), folder, Options(workers=1, cache=cache, quiet=True))
    assert run.run().computed == {}
    return {table.method: table.embeddings["sface"] for table in run.tables}


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, people: Path) -> tuple[Path, Path, Path]:
    """(suite, run folder, store) of an undisturbed run: one process, batches of 16."""
    folder = tmp_path_factory.mktemp("reference")
    suite = _suite(folder, people, timed=4)
    run_suite(load_suite(suite), folder / "run", Options(workers=1, cache=folder / "cache", quiet=True))
    return suite, folder / "run", folder / "cache"


def test_what_a_run_leaves_behind(reference: tuple[Path, Path, Path]) -> None:
    run = read_run(reference[1])
    record = run.record
    assert [m["label"] for m in record["methods"]] == ["original", "blackout", "pixelate 0.1", "pixelate 0.3", "noise"]
    assert record["dataset"]["n_images"] == 20
    assert record["dataset"]["n_persons"] == 5
    assert len(run.images) == 5 * 20
    assert len(record["protocol"]["deviations"]) == 3  # two numbers, and dlib left out
    counts = {m["label"]: m["counts"] for m in record["methods"]}
    assert counts["original"]["passthrough"] == 20, "the suite finds out that nothing was done"
    assert counts["blackout"]["fta"] == 20
    assert counts["pixelate 0.1"]["ok"] == 20
    value = run.rows.set_index(["method", "metric", "recognizer", "convention"]).value
    assert value["original", "reid.rank1", "sface", "headline"] == 1.0
    assert value["blackout", "reid.rank1", "sface", "headline"] == pytest.approx(3 / 19, abs=0.05)
    assert value["pixelate 0.3", "reid.rank1", "sface", "headline"] <= value["pixelate 0.1", "reid.rank1", "sface", "headline"]
    assert (run.rows.lo.isna() | (run.rows.lo <= run.rows.value + 1e-12)).all()
    assert (run.rows.hi.isna() | (run.rows.hi >= run.rows.value - 1e-12)).all()
    assert set(run.rows.dataset) == {"folder"}
    index = json.loads((reference[1] / "samples" / "index.json").read_text())
    assert len(index["columns"]) == 2
    for row in index["rows"]:
        if row["label"] == "original":
            assert row["files"] == [None, None], "nothing says that these faces may be shown"
            continue
        for file in row["files"]:
            assert cv2.imread(str(reference[1] / "samples" / file)) is not None
    timing = run.rows[run.rows.timing]
    assert set(timing.method) == set(counts)
    assert (timing.value.dropna() > 0).all()
    assert timing.value[~timing.metric.str.endswith("latency_p99")].notna().all()
    text = (reference[1] / "run.json").read_text()
    assert str(Path.home()) not in text, "no personal paths in a record"


def test_running_again_computes_nothing(reference: tuple[Path, Path, Path], tmp_path: Path) -> None:
    suite, folder, cache = reference
    result = run_suite(load_suite(suite), tmp_path / "again", Options(workers=1, cache=cache, quiet=True))
    assert result.computed == {}
    pd.testing.assert_frame_equal(read_run(tmp_path / "again").rows, read_run(folder).rows)


def test_a_changed_parameter_recomputes_what_depends_on_it(
    reference: tuple[Path, Path, Path], tmp_path: Path, people: Path
) -> None:
    shutil.copytree(reference[2], tmp_path / "cache")
    suite = _suite(tmp_path, people, METHODS.replace("[0.1, 0.3]", "[0.1, 0.25]"), timed=0)
    result = run_suite(load_suite(suite), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True))
    assert result.computed["anonymize"] == 20
    assert result.computed["embed"] == 20
    assert result.computed["detect"] == 20
    again = run_suite(
        load_suite(suite, ["protocol.seed=5"]), tmp_path / "run2", Options(workers=1, cache=tmp_path / "cache", quiet=True)
    )
    assert again.computed["anonymize"] == 20, "a new seed concerns the method that draws at random, and no other"


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 32)])
def test_batches_and_workers_change_nothing(
    reference: tuple[Path, Path, Path], tmp_path: Path, workers: int, batch: int
) -> None:
    suite, folder, cache = reference
    run_suite(load_suite(suite), tmp_path / "run", Options(workers=workers, batch=batch, cache=tmp_path / "cache", quiet=True))
    a, b = _figures(folder), _figures(tmp_path / "run")
    one, other = _embeddings(suite, tmp_path / "1", cache), _embeddings(suite, tmp_path / "2", tmp_path / "cache")
    assert one.keys() == other.keys()
    assert all(e.shape == (20, 128) and np.isfinite(e).all() for e in one.values())
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)
    pd.testing.assert_frame_equal(a, b, check_exact=False, rtol=0, atol=1e-6)


def _command(suite: Path, out: Path, cache: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "deidbench.cli",
        "run",
        str(suite),
        "--out",
        str(out),
        "--cache",
        str(cache),
        "--no-report",
        "--quiet",
        *more,
    ]


def _killed(command: Sequence[str], number: int, ready: Callable[[], bool]) -> int:
    """Starts the command in its own group and signals it (SIGKILL: all of the group) once ``ready``; its exit code."""
    process = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background would pass on "ignore"
    )  # fmt: skip
    while process.poll() is None and not ready():
        time.sleep(0.05)
    if process.poll() is None:
        if number == signal.SIGINT:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)
    process.communicate(timeout=120)
    return process.returncode


def _artefacts(cache: Path) -> int:
    """How many artefacts a run has stored so far."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{cache / f'store-v{LAYOUT}.sqlite'}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT COUNT(*) FROM artefact").fetchone()[0])
    except sqlite3.Error:
        return 0


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_goes_on(reference: tuple[Path, Path, Path], tmp_path: Path, number: int) -> None:
    suite, folder, _ = reference
    command = _command(suite, tmp_path / "run", tmp_path / "cache", "--workers", "1", "--batch", "1")
    # 20 clear images give 40 artefacts, the five methods some 400 more: in the midst of them, however fast the machine.
    code = _killed(command, number, lambda: _artefacts(tmp_path / "cache") >= 100)
    assert code == (ExitCode.INTERRUPTED if number == signal.SIGINT else -signal.SIGKILL), "it must hit a running benchmark"
    subprocess.run(command, check=True)
    pd.testing.assert_frame_equal(_figures(folder), _figures(tmp_path / "run"), check_exact=False, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_killed_at_five_random_moments(reference: tuple[Path, Path, Path], tmp_path: Path) -> None:
    suite, folder, _ = reference
    rng = random.Random(20261122)
    for workers in (1, 2):
        cache, out = tmp_path / f"cache{workers}", tmp_path / f"run{workers}"
        command = _command(suite, out, cache, "--workers", str(workers), "--batch", "2")
        moments = [rng.uniform(2, 12) for _ in range(5)]
        codes = [_killed(command, signal.SIGKILL, _after(moment)) for moment in moments]
        assert -signal.SIGKILL in codes, f"at least one kill must hit a running benchmark: {codes}"
        subprocess.run(command, check=True)
        pd.testing.assert_frame_equal(_figures(folder), _figures(out), check_exact=False, rtol=0, atol=1e-6)


# -- adapters that misbehave ---------------------------------------------------------------------------------------


class _Broken(Anonymizer):
    """Fails in a way that depends on the image."""

    needs_faces = False

    def __init__(self, how: str = "raise") -> None:
        self.how = how

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        results = []
        for item in items:
            if item.id.startswith("p1/"):
                match self.how:
                    case "raise":
                        raise RuntimeError("cannot do this person")
                    case "float":
                        results.append(Anonymized(item.id, Status.OK, item.image.astype(np.float32)))  # type: ignore[arg-type]
                    case "none":
                        results.append(Anonymized(item.id, Status.OK, None))
                    case "other id":
                        results.append(Anonymized("someone else", Status.OK, item.image))
                    case "memory" if len(items) > 1:
                        raise MemoryError("too many")
                    case "no face":
                        results.append(Anonymized.no_face(item.id))
                    case _:
                        results.append(Anonymized(item.id, Status.OK, 255 - item.image))
            else:
                results.append(Anonymized(item.id, Status.OK, 255 - item.image))
        return results


kinds.anonymizers.register("test-broken")(_Broken)


def _items(n: int) -> list[Item]:
    rng = np.random.default_rng(0)
    return [Item(f"p{i}/x", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for i in range(n)]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "RuntimeError: cannot do this person"),
        ("float", "float32"),
        ("none", "no image"),
        ("other id", "answered for"),
    ],
)
def test_one_bad_item_costs_itself_only(how: str, reason: str) -> None:
    results = run_adapter(_Broken(how), _items(4))
    assert [r.status for r in results] == [Status.OK, Status.FAILED, Status.OK, Status.OK]
    assert reason in results[1].reason
    assert results[1].image is None


def test_out_of_memory_halves_the_batch() -> None:
    assert [r.status for r in run_adapter(_Broken("memory"), _items(4))] == [Status.OK] * 4


@pytest.mark.parametrize("how", ["raise", "no face"])
def test_failures_are_counted_and_cost_no_denominator(tmp_path: Path, people: Path, how: str) -> None:
    suite = _suite(tmp_path, people, f'[[methods]]\nname = "test-broken"\nparams = {{ how = "{how}" }}\n')
    result = run_suite(load_suite(suite), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True))
    assert result.failed == (4 if how == "raise" else 0)
    run = read_run(tmp_path / "run")
    counts = run.record["methods"][0]["counts"]
    assert counts["failed" if how == "raise" else "no_face"] == 4
    headline = run.rows[(run.rows.metric == "reid.rank1") & (run.rows.convention == "headline")].iloc[0]
    assert headline.n_images == 20, "what was not released stays in the denominator, at chance"
    assert headline.n_failed == 4
    reasons = run.images[run.images.withheld].reason.unique()
    assert len(reasons) == 1
    assert reasons[0]
    if how == "raise":  # the failed ones, and they alone, are tried again when asked to
        again = run_suite(
            load_suite(suite), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True, retry_failed=True)
        )
        assert again.computed["anonymize"] == 4


# -- pass-through, fallback, seeds ---------------------------------------------------------------------------------


def test_pass_through_is_caught_also_as_a_copy(orl_face: np.ndarray, finder: FaceFinder) -> None:
    [face] = finder.find(orl_face)
    big = cv2.resize(orl_face, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", orl_face, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)
    faint = np.clip(orl_face + np.random.default_rng(0).normal(0, 2, orl_face.shape), 0, 255).astype(np.uint8)
    for copy in (orl_face.copy(), jpeg, big, faint):
        assert passthrough(orl_face, copy, face)
        assert passthrough(orl_face, copy, None)
    anonymizers = [("blur", {"sigma": 0.06}), ("pixelate", {"block": 0.1}), ("mask", {}), ("eye-bar", {}), ("noise", {})]
    for name, params in anonymizers:
        anonymizer = kinds.anonymizers.create(name, **params)
        anonymizer.load()
        [result] = anonymizer.anonymize([Item("x", orl_face, (face,), 1)])
        assert result.image is not None
        assert not passthrough(orl_face, result.image, face), name
    changed_outside = orl_face.copy()
    changed_outside[:10] = 0
    assert passthrough(orl_face, changed_outside, face), "a face that is untouched was passed through"


def test_fallback_prefers_the_published_box() -> None:
    from deidbench.pipeline import Output

    box, other = Box(5, 5, 25, 35), Box(60, 60, 100, 110)
    faces = (FaceResult(Status.OK, box), FaceResult(Status.OK, other))
    output = Output(Status.OK, Status.OK, "", (120, 100), faces)
    assert fallback_box(output, (120, 100), None, (0, 0, 1, 1)) == other
    assert fallback_box(output, (120, 100), Box(6, 6, 24, 30), (0, 0, 1, 1)) == box
    silent = Output(Status.OK, Status.OK, "", (120, 100), ())
    assert fallback_box(silent, (120, 100), None, (0.1, 0.2, 0.8, 0.9)) == pytest.approx((10, 24, 80, 108))


def test_typical_box_is_the_median() -> None:
    boxes = [(Box(10, 20, 50, 80), (100, 100)), (Box(20, 40, 100, 160), (200, 200)), (Box(0, 0, 10, 10), (10, 10))]
    assert typical_box(boxes) == (0.1, 0.2, 0.5, 0.8)


def test_seeds_depend_on_nothing_but_the_sample() -> None:
    seeds = {item_seed(1, "anonymize", f"s{i}") for i in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
    assert item_seed(1, "anonymize", "a") == item_seed(1, "anonymize", "a") != item_seed(2, "anonymize", "a")


# -- bad data ------------------------------------------------------------------------------------------------------


def test_unreadable_images_are_named_and_the_rest_goes_on(tmp_path: Path, people: Path) -> None:
    root = tmp_path / "people"
    shutil.copytree(people, root)
    victim = root / "p7" / "3.pgm"
    victim.write_bytes(victim.read_bytes()[:2000])
    suite = _suite(tmp_path, root, '[[methods]]\nname = "original"\n')
    command = _command(suite, tmp_path / "run", tmp_path / "cache", "--workers", "1")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.PARTIAL
    run = read_run(tmp_path / "run")
    assert list(run.record["dataset"]["unreadable"]) == ["p7/3.pgm"]
    assert "3.pgm" in run.record["dataset"]["unreadable"]["p7/3.pgm"]
    assert run.record["dataset"]["n_images"] == 19


def test_no_image_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d" / "a").mkdir(parents=True)
    for i in range(2):
        (tmp_path / "d" / "a" / f"{i}.png").write_bytes(b"no picture")
    suite = _suite(tmp_path, tmp_path / "d", '[[methods]]\nname = "original"\n')
    with pytest.raises(InputError, match="none of the 2 images can be read"):
        run_suite(load_suite(suite), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True))


def test_frames_with_several_faces_score_the_subject(tmp_path: Path, people: Path, finder: FaceFinder) -> None:
    """Two faces in a frame: the larger one is the subject, and its embedding is that of the face alone."""
    one, two = (cv2.imread(str(people / p / "1.pgm")) for p in ("p1", "p35"))
    frame = np.full((300, 400, 3), 120, np.uint8)
    large = cv2.resize(one, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    frame[30 : 30 + large.shape[0], 20 : 20 + large.shape[1]] = large
    frame[100 : 100 + two.shape[0], 280 : 280 + two.shape[1]] = two
    faces = finder.find(np.ascontiguousarray(frame[..., ::-1]))
    assert len(faces) == 2
    assert faces[0].box.area > faces[1].box.area
    mask = kinds.anonymizers.create("mask")
    mask.load()
    [result] = mask.anonymize([Item("x", np.ascontiguousarray(frame[..., ::-1]), tuple(faces), 0)])
    assert len(result.faces) == 2
    assert all(f.status is Status.OK for f in result.faces), "every face of a frame is anonymised, not the subject alone"
    assert finder.find(result.image) == []  # type: ignore[arg-type]
