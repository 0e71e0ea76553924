"""Speed of the table of attributes.  ``pytest tests/benchmarks/test_bench_attributes.py -m slow`` runs it.

Ours and a loop over attributes with scikit-learn, timed in turn in the same run on the same input.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from deidbench.metrics.attributes import Attributes, table_of
from deidbench.metrics.base import Protocol, Reading, Table
from deidbench.metrics.models.labels import ATTRIBUTES
from deidbench.stats import intervals

COLUMNS = [
    "base_rate", "clear_balanced_accuracy", "clear_false_negative_rate", "balanced_accuracy", "retention", "removal",
]  # fmt: skip


@pytest.fixture(scope="module")
def readings():
    """20,000 images, 40 attributes: truth, and probabilities off clear and anonymised images."""
    rng = np.random.default_rng(0)
    truth = (rng.random((20_000, 40)) < rng.uniform(0.05, 0.6, 40)).astype(float)
    clear, anonymised = (
        np.clip(0.5 + (truth - 0.5) * s + rng.normal(0, 0.4, truth.shape), 0, 1).astype(np.float32) for s in (0.8, 0.3)
    )
    return truth, clear, anonymised


def ours(readings):
    return table_of(*readings, ATTRIBUTES)[COLUMNS].to_numpy()


def by_scikit_learn(readings):
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

    # Integers, one attribute after the other in memory: what it is quickest with.
    truth, clear, anonymised = (np.ascontiguousarray((x >= 0.5).T).astype(np.intp) for x in readings)
    out = []
    for y, c, a in zip(truth, clear, anonymised, strict=True):
        before, after = balanced_accuracy_score(y, c), balanced_accuracy_score(y, a)
        m = confusion_matrix(c, a)
        out.append([y.mean(), before, 1 - recall_score(y, c), after, (after - 0.5) / (before - 0.5), m[1, 0] / m[1].sum()])
    return np.array(out)


@pytest.mark.slow
@pytest.mark.benchmark(group="40 attributes of 20,000 images")
def test_table_ours(benchmark, readings):
    assert benchmark(ours, readings).shape == (40, 6)


@pytest.mark.slow
@pytest.mark.benchmark(group="40 attributes of 20,000 images")
def test_table_scikit_learn(benchmark, readings):
    np.testing.assert_allclose(benchmark(by_scikit_learn, readings), ours(readings), atol=1e-12)


@pytest.mark.slow
def test_table_is_20_times_as_fast(readings):
    taken = {ours: [], by_scikit_learn: []}
    for _ in range(3):
        for work, rounds in ((ours, 3), (by_scikit_learn, 1)):
            for _ in range(rounds):
                start = time.perf_counter()
                work(readings)
                taken[work].append(time.perf_counter() - start)
    ratio = min(taken[by_scikit_learn]) / min(taken[ours])
    said = f"ours {1e3 * min(taken[ours]):.1f} ms, scikit-learn {1e3 * min(taken[by_scikit_learn]):.0f} ms: {ratio:.0f} times as fast"
    assert ratio >= 20, said


@pytest.mark.slow
@pytest.mark.benchmark(group="all rows of 40 attributes, 500 persons x 4 images, 10,000 replicates")
def test_rows_with_intervals(benchmark):
    rng = np.random.default_rng(0)
    n, persons = 2000, 500
    truth = (rng.random((n, 40)) < 0.3).astype(float)

    def table(method, wrong):
        p = np.abs(truth - (rng.random(truth.shape) < wrong)).astype(np.float32)
        lost = rng.random(n) < wrong / 4
        subjects = np.repeat([f"p{i:04d}" for i in range(persons)], n // persons)
        return Table(
            "synthetic", method, np.array([f"i{i:05d}" for i in range(n)]), subjects, np.full(n, "ok"), np.zeros(n, bool), lost,
            attributes=dict(zip(ATTRIBUTES, truth.T, strict=True)),
            readings={"net": Reading("attributes", ATTRIBUTES, p, np.zeros((n, 0), np.float32))},
        )  # fmt: skip

    protocol, clear, anonymised = Protocol(), table("original", 0.1), table("blur", 0.3)
    intervals.person_draws(np.unique(clear.subjects).tolist(), protocol.replicates, protocol.seed)  # shared by all metrics
    rows = benchmark.pedantic(Attributes().score, (clear, anonymised, protocol), rounds=3, warmup_rounds=1).rows
    assert all(row.value is not None and row.lo is not None for row in rows)
