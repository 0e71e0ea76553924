"""Images on their way through the methods: decoded once, ahead of who needs them, and not at all when nothing is left to do."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deidbench import batch, pipeline
from deidbench.batch import AHEAD, _Clear
from deidbench.errors import InputError
from deidbench.pipeline import Outcome, Worker
from deidbench.records import read_run
from deidbench.runner import TASKS, Options, run_suite
from deidbench.suite import load_suite
from deidbench.types import Sample

SUITE = """\
classifiers = []
[suite]
name = "batches"
extends = "SMALL"
inherit_methods = false
[dataset]
name = "folder"
params = {{ root = {root} }}
[[metrics]]
name = "reid"
params = {{ attackers = ["ignorant", "lazy-informed"] }}
[[metrics]]
name = "quality"
[[methods]]
name = "original"
control = true
[[methods]]
name = "blackout"
control = true
[[methods]]
name = "pixelate"
sweep = {{ block = [0.05, 0.4] }}
""".replace("SMALL", Path(__file__).with_name("small.toml").as_posix())
IMAGES = 12
#: So few that a batch of three makes enough tasks for one worker.
BATCH = 3


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("people")
    for p in (1, 7, 14):
        (root / f"p{p}").mkdir()
        for i in (1, 3, 5, 8):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"p{p}" / f"{i}.pgm")
    path = root.parent / "small.toml"
    path.write_text(SUITE.format(root=json.dumps(str(root))), "utf-8")
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image was decoded."""
    count: Counter[str] = Counter()

    def counting(sample: Sample):  # type: ignore[no-untyped-def]
        count[sample.id] += 1
        return pipeline.load_sample(sample)

    monkeypatch.setattr(batch, "load_sample", counting)
    return count


def test_an_image_is_decoded_once_for_all_methods(suite: Path, tmp_path: Path, decoded: Counter[str]) -> None:
    assert IMAGES >= TASKS * BATCH, "else faces are found first, and methods come later"
    result = run_suite(
        load_suite(suite), tmp_path / "run", Options(workers=1, batch=BATCH, cache=tmp_path / "cache", quiet=True)
    )
    assert len(decoded) == IMAGES
    assert set(decoded.values()) == {1}, "black frames have no face, and are cut out in a second pass: from what is stored"
    assert result.computed["anonymize"] == 4 * IMAGES
    images = read_run(tmp_path / "run").images
    assert images[images.method == "blackout"].fta.all()
    assert images.similarity_sface.notna().all(), "every released picture was embedded in the end"


@pytest.mark.slow
def test_whether_methods_come_with_the_faces_or_after_them_changes_nothing(suite: Path, tmp_path: Path) -> None:
    runs = []
    for size in (BATCH, IMAGES):
        out = tmp_path / str(size)
        run_suite(load_suite(suite), out, Options(workers=1, batch=size, cache=tmp_path / f"cache{size}", quiet=True))
        runs.append(read_run(out))
    assert runs[0].rows.equals(runs[1].rows)
    assert runs[0].images.equals(runs[1].images)


def test_a_second_run_uses_no_model_and_decodes_nothing(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter[str]
) -> None:
    from deidbench.anonymizers.controls import Blackout, Original
    from deidbench.anonymizers.pixelate import Pixelate
    from deidbench.faces import FaceFinder
    from deidbench.metrics.models.sface import SFace
    from deidbench.metrics.quality import Quality

    options = Options(workers=1, batch=BATCH, cache=tmp_path / "cache", quiet=True)
    run_suite(load_suite(suite), tmp_path / "run", options)
    decoded.clear()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a warm run asked a model")

    for part, names in {
        FaceFinder: ("find", "mesh"), SFace: ("load", "embed"), Original: ("load", "anonymize"), Blackout: ("load", "anonymize"),
        Pixelate: ("load", "anonymize"), Quality: ("measure", "score"),
    }.items():  # fmt: skip
        for name in names:
            monkeypatch.setattr(part, name, never)
    again = run_suite(load_suite(suite), tmp_path / "again", options)
    assert again.computed == {}
    assert not decoded
    assert read_run(tmp_path / "again").rows.equals(read_run(tmp_path / "run").rows)


class Waiting:
    """Images that are decoded when they are let go."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.gate = threading.Semaphore(0)

    def __call__(self, sample: Sample) -> np.ndarray:
        self.started.append(sample.id)
        assert self.gate.acquire(timeout=30)
        if sample.id == "broken":
            raise InputError("broken is no image")
        return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What decodes ahead, with as many threads as it likes."""
    from concurrent.futures import ThreadPoolExecutor

    waiting = Waiting()
    monkeypatch.setattr(batch, "load_sample", waiting)
    with ThreadPoolExecutor(16) as hands:
        plan = SimpleNamespace(level="frame", method=None, seed=0)
        worker = SimpleNamespace(plan=plan, fingerprints=SimpleNamespace(finder=""), hands=hands, store=None)
        yield waiting, worker
        for _ in range(100):
            waiting.gate.release()


def samples(*names: str) -> list[Sample]:
    return [Sample(n, n, Path(n), "0" * 64) for n in names]


def settled(waiting: Waiting, n: int) -> list[str]:
    """What was begun, once ``n`` were or should have been, and a moment to see that it stays at that."""
    end = threading.Event()
    for _ in range(200):
        if len(waiting.started) >= n:
            break
        end.wait(0.01)
    end.wait(0.05)
    return waiting.started


def test_decoding_runs_a_few_images_ahead_and_waits(ahead) -> None:  # type: ignore[no-untyped-def]
    waiting, worker = ahead
    many = samples(*(f"i{n}" for n in range(20)))
    clear = _Clear(worker, many, Outcome())
    clear.expect(many)
    assert settled(waiting, AHEAD) == [f"i{n}" for n in range(AHEAD)]
    waiting.gate.release()
    clear.frame(many[0])
    assert len(settled(waiting, AHEAD + 1)) == AHEAD + 1, "one was taken, one is begun"
    waiting.gate.release(100)
    for s in many:
        clear.frame(s)
    assert sorted(waiting.started) == sorted(s.id for s in many), "each once"


def test_what_cannot_be_decoded_is_told_to_who_asks_for_it(ahead) -> None:  # type: ignore[no-untyped-def]
    waiting, worker = ahead
    waiting.gate.release(100)
    many = samples("good", "broken", "fine")
    clear = _Clear(worker, many, Outcome())
    clear.expect(many)
    assert clear.frame(many[0]).shape == (8, 8, 3)
    with pytest.raises(InputError, match="broken"):
        clear.frame(many[1])
    assert clear.frame(many[2]).shape == (8, 8, 3), "the next ones come all the same"


def test_a_worker_that_is_closed_leaves_no_threads(tmp_path: Path) -> None:
    plan = pipeline.Plan((), (), (), pipeline.FaceFinder(), 0, tmp_path / "store", 2)
    worker = Worker(plan)
    worker.hands.submit(int).result()
    assert any(t.name.startswith("pictures") for t in threading.enumerate())
    worker.close()
    assert not any(t.name.startswith("pictures") for t in threading.enumerate())
