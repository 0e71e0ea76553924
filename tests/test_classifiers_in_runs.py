"""Classifiers in a run: what they say reaches the metrics once per image, and who learnt from the evaluated is found out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deidbench import kinds
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Table
from deidbench.metrics.models._common import arcface_crop
from deidbench.metrics.models.base import Classifier, Lessons
from deidbench.records import Row, read_run
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite
from deidbench.types import CropSpec, Face, Floats, Image

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
images = 0

[report]
samples = 0

[[classifiers]]
name = "brightness"
params = {{ learnt = {learnt}, persons = {persons} }}

[[metrics]]
name = "spy"

[[methods]]
name = "original"
control = true

[[methods]]
name = "blackout"
control = true

[[methods]]
name = "blur"
"""


class Brightness(Classifier):
    """Two classes by the mean of the crop; the mean itself is the feature."""

    name = "brightness"
    task = "attributes"
    labels = ("Dark", "Bright")

    def __init__(self, learnt: list[str] | None = None, persons: list[str] | None = None) -> None:
        self.learnt, self.persons = learnt or [], persons or []

    @property
    def crop(self) -> CropSpec:
        return arcface_crop(112)

    def load(self) -> None:
        return

    def predict(self, crops: Image) -> Floats:
        bright = crops.reshape(len(crops), -1).mean(1, dtype=np.float64) / 255
        return np.stack([1 - bright, bright], 1).astype(np.float32)

    def embed(self, crops: Image) -> Floats:
        p = self.predict(crops)
        return np.hstack([p, 255 * p[:, 1:]])

    def lessons(self) -> Lessons:
        return Lessons(frozenset(self.learnt), {"people": frozenset(self.persons)})


class Spy(Metric):
    """Hands back what it was given."""

    name = "spy"
    measures = ("found_height",)
    quantities = (
        Quantity("spy.bright", "Bright", "rate", None, "utility", "spy"),
        Quantity("spy.height", "Height of the face found", "1", None, "utility", "spy"),
    )

    def measure(self, original: Image, anonymised: Image, face: Face | None, found: Face | None = None) -> dict[str, float]:
        assert original.shape == anonymised.shape
        return {"found_height": float("nan") if found is None else found.box.height / original.shape[0]}

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        reading = anonymised.readings["brightness"]
        assert reading.task == "attributes" and reading.labels == ("Dark", "Bright")
        np.testing.assert_array_equal(reading.features[:, 0], 255 * reading.probabilities[:, 1])
        assert clear.readings["brightness"].probabilities.shape == (clear.n, 2)
        rows = [
            Row(clear.dataset, anonymised.method, q.name, q.unit, None, float(np.nanmean(v)) if np.isfinite(v).any() else None,
                recognizer="brightness" if q.name == "spy.bright" else "")
            for q, v in zip(self.quantities, (reading.probabilities[:, 1], anonymised.measures["found_height"]), strict=True)
        ]  # fmt: skip
        return Findings(rows, [])


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """Five persons with four images each, one sub-folder per person."""
    root = tmp_path_factory.mktemp("people")
    for person in range(1, 6):
        (root / f"p{person}").mkdir()
        for image in range(1, 5):
            shutil.copy(orl_folder / f"s{person}" / f"{image}.pgm", root / f"p{person}" / f"{image}.pgm")
    return root


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    kinds.classifiers.register("brightness")(Brightness)
    kinds.metrics.register("spy")(Spy)
    yield
    for registry in (kinds.classifiers, kinds.metrics):
        registry._classes.pop("brightness", None)
        registry._classes.pop("spy", None)


def _suite(folder: Path, root: Path, learnt: list[str], persons: list[str]) -> Path:
    path = folder / "suite.toml"
    text = SUITE.format(root=root, learnt=json.dumps(learnt), persons=json.dumps(persons))
    path.write_text(text)
    return path


def _run(tmp_path: Path, root: Path, learnt: list[str] = [], persons: list[str] = []) -> Path:  # noqa: B006
    out = tmp_path / "out"
    suite = load_suite(_suite(tmp_path, root, learnt, persons))
    result = run_suite(suite, out, Options(workers=1, cache=tmp_path / "cache", quiet=True))
    assert result.failed == 0
    return out


def test_readings_and_found_faces_reach_the_metrics(tmp_path: Path, people: Path) -> None:
    out = _run(tmp_path, people)
    run = read_run(out)
    rows = run.rows.set_index(["method", "metric"])["value"]
    assert rows["original", "spy.bright"] > 0.2
    assert rows["blackout", "spy.bright"] == 0
    assert 0.3 < rows["original", "spy.height"] <= 1.2
    assert np.isnan(rows["blackout", "spy.height"])  # no face is found in a black frame
    (known,) = run.record["classifiers"]
    assert known["name"] == "brightness" and known["labels"] == ["Dark", "Bright"] and known["overlap"] == ""
    assert run.rows["trusted"].all()
    assert any("classifiers: brightness is added" in d for d in run.record["protocol"]["deviations"])
    again = run_suite(load_suite(tmp_path / "suite.toml"), out, Options(workers=1, cache=tmp_path / "cache", quiet=True))
    assert not any(again.computed.values()), "everything was in the store"


@pytest.mark.parametrize("how", ["image", "short hash", "person", "stranger"])
def test_a_classifier_that_learnt_from_the_evaluated_is_flagged(tmp_path: Path, people: Path, how: str) -> None:
    person = sorted(p.name for p in people.iterdir() if p.is_dir())[0]
    sha = hashlib.sha256(sorted((people / person).iterdir())[0].read_bytes()).hexdigest()
    root = tmp_path / "people-of-mine"  # a folder is known by its name
    root.symlink_to(people)
    learnt = {"image": [sha], "short hash": [sha[:16]]}.get(how, ["0" * 16])
    persons = {"person": [person], "stranger": ["nobody"]}.get(how, [])
    run = read_run(_run(tmp_path, root, learnt, persons))
    rows = run.rows[run.rows.metric == "spy.bright"]
    others = run.rows[run.rows.recognizer != "brightness"]
    assert others["trusted"].all() and not others["note"].str.contains("contaminated").any()
    if how == "stranger":
        assert rows["trusted"].all() and run.record["classifiers"][0]["overlap"] == ""
        return
    assert not rows["trusted"].any()
    images, persons_seen = (0, 1) if how == "person" else (1, 0)
    want = f"learnt from {images} of the 20 images and {persons_seen} of the 5 persons under evaluation"
    assert rows["note"].str.startswith("contaminated: the classifier " + want).all()
    assert want in run.record["classifiers"][0]["overlap"] and run.record["classifiers"][0]["contaminated"]


def test_an_image_in_a_hundred_is_told_and_changes_no_verdict(
    tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deidbench import runner

    monkeypatch.setattr(runner, "OVERLAP_SHARE", 0.05)  # one of twenty images
    sha = hashlib.sha256((people / "p1" / "1.pgm").read_bytes()).hexdigest()
    run = read_run(_run(tmp_path, people, [sha]))
    rows = run.rows[run.rows.metric == "spy.bright"]
    assert rows["trusted"].all() and rows["note"].str.startswith("overlap: the classifier learnt from 1 of the 20 images").all()
    assert not run.record["classifiers"][0]["contaminated"]
