"""Sets that name no persons in a run: what can be measured is, what cannot be says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from deidbench import cli
from deidbench.datasets.base import Dataset
from deidbench.images import read_image, write_image
from deidbench.metrics.base import NO_PERSONS, Protocol, Table
from deidbench.metrics.distance import Distance
from deidbench.metrics.reid import ReIdentification
from deidbench.types import Sample

SUITE = """\
[suite]
name = "pictures"
extends = "deidbench-v3"
inherit_methods = false
[protocol]
replicates = 200
curve_replicates = 100
[throughput]
images = 0
[[recognizers]]
name = "sface"
[[classifiers]]
name = "emotion-cnn"
[[metrics]]
name = "reid"
params = { attackers = ["ignorant", "lazy-informed", "lda"] }
[[metrics]]
name = "distance"
[[metrics]]
name = "emotion"
[[methods]]
name = "pixelate"
params = { block = 0.1 }
"""


class Nameless(Dataset):
    """Its images have subjects, as those of WIDER FACE do, which are no persons."""

    identities = False

    def samples(self) -> Iterator[Sample]:
        return iter(())


class Named(Nameless):
    identities = True


def tables(rng: np.random.Generator) -> tuple[Table, Table]:
    """Twelve images of six pictures, two faces each."""
    n = 12

    def table(method: str, x: np.ndarray[Any, Any]) -> Table:
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        none = np.zeros(n, np.bool_)
        return Table(
            dataset="d", method=method, ids=np.array([f"i{i:02d}" for i in range(n)]),
            subjects=np.array([f"p{i // 2}" for i in range(n)]), status=np.array(["ok"] * n), withheld=none, fta=none,
            embeddings={"net": x},
        )  # fmt: skip

    x = rng.normal(size=(n, 16))
    return table("clear", x), table("m", x + 0.3 * rng.normal(size=(n, 16)))


def test_no_attack_is_carried_out_on_images_without_persons() -> None:
    clear, anonymised = tables(np.random.default_rng(0))
    metric = ReIdentification(["ignorant", "lazy-informed", "lda"])
    metric.bind(Nameless())
    assert not metric.needs_background and not metric.attacks(["net"]) and metric.params()["persons"] is False
    rows = metric.score(clear, anonymised, Protocol(replicates=100, curve_replicates=50)).rows
    refused = [r for r in rows if r.metric.startswith("reid.rank") or r.metric == "reid.worst_rank1"]
    assert len(refused) == 3 * 3 + 1 and all(r.value is None and NO_PERSONS in r.reason for r in refused)
    assert {r.metric for r in rows if r.value is not None} == {"reid.fta", "reid.withheld"}


def test_a_metric_that_is_bound_to_persons_is_what_it_was() -> None:
    clear, anonymised = tables(np.random.default_rng(0))
    protocol = Protocol(replicates=100, curve_replicates=50)
    for cls in (ReIdentification, Distance):
        bound, free = cls(), cls()
        bound.bind(Named())
        assert bound.params() == free.params()
        mine, other = (m.score(clear, anonymised, protocol).rows for m in (bound, free))
        assert [(r.metric, r.value, r.lo, r.hi) for r in mine] == [(r.metric, r.value, r.lo, r.hi) for r in other]


def test_the_distance_has_no_threshold_where_nobody_is_named() -> None:
    """Two faces of one picture are no pair of one person: chance is over all pairs of images."""
    clear, anonymised = tables(np.random.default_rng(1))
    metric = Distance()
    metric.bind(Nameless())
    rows = {r.metric: r for r in metric.score(clear, anonymised, Protocol(replicates=100)).rows if r.convention == "headline"}
    assert NO_PERSONS in rows["distance.beyond"].reason
    mean = rows["distance.cosine"]
    x, y = clear.embeddings["net"], anonymised.embeddings["net"]
    assert mean.value == pytest.approx(1 - (x * y).sum(1).mean(), abs=1e-5)
    between = (x @ x.T)[np.triu_indices(len(x), 1)]
    assert mean.chance == pytest.approx(1 - between.mean(), abs=1e-5)
    assert not mean.trusted and NO_PERSONS in mean.note
    assert (mean.n_images, mean.n_persons) == (12, 6)  # the interval is over pictures


def test_a_run_on_pictures_with_two_faces_each(
    tmp_path: Path, orl_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    lines = []
    for i in range(3):
        canvas = np.full((260, 420, 3), 120, np.uint8)
        boxes = []
        for k, (x, y) in enumerate(((10, 10), (210, 20))):
            face = cv2.resize(read_image(orl_folder / f"s{2 * i + k + 1}" / "1.pgm"), None, fx=2, fy=2)
            canvas[y : y + 224, x : x + 184] = face
            boxes.append(f"{x + 20} {y + 20} 144 184 0 0 0 0 0 0 ")
        name = f"0--Parade/0_Parade_{i}.jpg"
        path = tmp_path / "wider/WIDER_val/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, canvas)
        lines += [name, "2", *boxes]
    split = tmp_path / "wider/wider_face_split"
    split.mkdir()
    (split / "wider_face_val_bbx_gt.txt").write_text("\n".join([*lines, ""]))
    suite = tmp_path / "pictures.toml"
    suite.write_text(SUITE)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(arguments))
        return int(stopped.value.code or 0)

    assert (
        run("data", "prepare", "wider", "--from", str(tmp_path / "wider"), "--partial", "--param", "faces=every", "--quiet")
        == 0
    )
    out = tmp_path / "out"
    every = ("--set", 'dataset.params.faces="every"', "--workers", "1", "--cache", str(tmp_path / "cache"))
    assert run("run", str(suite), "--dataset", "wider", "--out", str(out), *every) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The data set names no persons: nobody can be re-identified in it, and intervals are over its images." in said
    assert "persons, not images" not in said
    record = json.loads((out / "run.json").read_text())
    assert record["dataset"]["identities"] is False and record["dataset"]["n_images"] == 6
    images = pd.read_parquet(out / "images.parquet")
    assert len(images) == 6 and set(images["status"]) == {"ok"} and images["subject_id"].nunique() == 3
    rows = pd.read_parquet(out / "rows.parquet")
    mean = rows[(rows.metric == "emotion.mean_delta_p") & (rows.convention == "headline")].iloc[0]
    assert mean["value"] > 0 and (mean["n_images"], mean["n_persons"]) == (6, 3)
    assert (out / "report.html").is_file()
