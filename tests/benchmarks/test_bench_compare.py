"""Speed of a full comparison: 10 methods, 12 metrics, 5,000 images of 500 persons, from columns to the table of all pairs.

``pytest tests/benchmarks/test_bench_compare.py -m slow -s`` runs it.  Ten thousand replicates for what is a mean over images
(rank-k, accuracy, F1, balanced accuracy, means), a thousand for what is read off a score distribution (EER, AUC, D_sys,
Cllr_min), ten thousand permutations a test or more.  Two processes of one thread each, as on a machine with two cores.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest

from deidbench import compare, evidence, kinds
from deidbench.metrics.base import Background, Protocol, Reading, Table
from deidbench.metrics.models.labels import ATTRIBUTES, EMOTIONS
from deidbench.records import Curve, Row, frame, read_run

PERSONS, IMAGES, METHODS = 500, 10, 10
NAMES = (
    "reid.rank1", "reid.rank5", "reid.eer", "reid.auc", "reid.d_sys", "reid.tmr@fmr=0.01", "distance.cosine", "emotion.accuracy",
    "emotion.macro_f1", "emotion.uar", "attributes.mean_balanced_accuracy", "quality.ssim_face",
)  # fmt: skip


def columns(method: int | None) -> Table:
    """A person effect and image noise; a method adds noise of its own, and its classifiers err the more."""
    rng, n = np.random.default_rng(0), PERSONS * IMAGES
    who = np.repeat(np.arange(PERSONS), IMAGES)
    person, image = rng.normal(size=(PERSONS, 128))[who], rng.normal(size=(n, 128))
    emotion = np.array(EMOTIONS)[rng.integers(0, 7, n)]
    attributes = {a: (rng.random(n) < 0.3).astype(float) for a in ATTRIBUTES}
    strength = 0.0 if method is None else 0.6 + 0.15 * method
    own = np.random.default_rng(1 if method is None else 100 + method)
    x = person + 0.8 * image + strength * own.normal(size=(n, 128))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    certain = 2.0 / (1 + strength)
    logits = certain * (emotion[:, None] == np.array(EMOTIONS)) + own.normal(size=(n, len(EMOTIONS)))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.stack([attributes[a] for a in ATTRIBUTES], 1)
    q = np.clip(0.5 + 0.2 * certain * (truth - 0.5) + own.normal(0, 0.25, truth.shape), 0, 1)
    nothing = np.zeros(n, np.bool_)
    return Table(
        "simulated", "clear" if method is None else f"method {method}",
        ids=np.array([f"{i:05d}" for i in range(n)]), subjects=np.array([f"{w:03d}" for w in who]), status=np.full(n, "ok"),
        withheld=nothing, fta=nothing, embeddings={"r": x},
        measures={f"{k}_{w}": own.uniform(0.3, 0.9, n) for k in ("ssim", "psnr") for w in ("face", "frame")},
        attributes=attributes, emotion=emotion,
        readings={
            "e": Reading("emotion", EMOTIONS, p.astype(np.float32), np.empty((n, 0), np.float32)),
            "a": Reading("attributes", ATTRIBUTES, q.astype(np.float32), np.empty((n, 0), np.float32)),
        },
    )  # fmt: skip


def score(task: tuple[str, Table, Table, Protocol]) -> tuple[list[Row], list[Curve], float]:
    import torch

    torch.set_num_threads(1)
    name, clear, table, protocol = task
    start = time.perf_counter()
    found = kinds.metrics.create(name).score(clear, table, protocol, Background())
    return found.rows, found.curves, time.perf_counter() - start


def whole(folder) -> dict[str, float]:
    """Scores, evidence on disk, comparison of all pairs; seconds of each."""
    protocol = Protocol(replicates=10_000, curve_replicates=1_000)
    clear, tables = columns(None), [columns(m) for m in range(METHODS)]
    metrics = ("reid", "distance", "emotion", "attributes", "quality")
    start = time.perf_counter()
    tasks = [(name, clear, table, protocol) for table in tables for name in metrics]
    spent: dict[str, float] = dict.fromkeys(metrics, 0.0)
    rows: list[Row] = []
    with ProcessPoolExecutor(2) as pool:
        for task, (found, _, seconds) in zip(tasks, pool.map(score, tasks), strict=True):
            rows += found
            spent[task[0]] += seconds
    scored = time.perf_counter()
    frame(rows, Row).to_parquet(folder / "rows.parquet", index=False)
    frame([], Curve).to_parquet(folder / "curves.parquet", index=False)
    (folder / evidence.FILE).write_bytes(evidence.to_parquet(rows))
    import pandas as pd

    pd.DataFrame({"subject_id": clear.subjects, "id": clear.ids, "method": "clear"}).to_parquet(folder / "images.parquet")
    record = {
        "schema": 1, "protocol": asdict(protocol), "dataset": {"name": "simulated", "manifest_sha256": "x"},
        "methods": [{"label": t.method, "control": False, "fingerprint": t.method} for t in tables],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    written = time.perf_counter()
    result = compare.compare([read_run(folder)], metrics=NAMES)
    done = time.perf_counter()
    pairs = METHODS * (METHODS - 1) // 2
    assert {r.metric for r in result.results} == set(NAMES)
    assert len(result.results) >= len(NAMES) * pairs
    assert all(r.lo is not None and r.p is not None for r in result.results if r.difference)
    size = (folder / evidence.FILE).stat().st_size / 1e6
    return {
        "score": scored - start, "write": written - scored, "compare": done - written, "all": done - start, "evidence MB": size,
        **{f"cpu {k}": v for k, v in spent.items()},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.benchmark(group="comparison of 10 methods, 12 metrics, 5,000 images of 500 persons")
def test_full_comparison(benchmark, tmp_path):
    found = benchmark.pedantic(whole, args=(tmp_path,), rounds=1)
    benchmark.extra_info.update(found)
    print({k: round(v, 1) for k, v in found.items()})  # noqa: T201
