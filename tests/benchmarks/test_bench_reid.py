"""Speed of the re-identification core.  ``pytest tests/benchmarks -m slow --benchmark-only`` runs all of it."""

from __future__ import annotations

import numpy as np
import pytest

from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import identification, verification
from deidbench.metrics.reid.base import cosine
from deidbench.stats import intervals, pairs, roc


@pytest.fixture(scope="module")
def million():
    rng = np.random.default_rng(0)
    return rng.normal(2, 1, 10**6).astype(np.float32), rng.normal(0, 1, 10**6).astype(np.float32)


@pytest.mark.slow
@pytest.mark.benchmark(group="EER of 1M + 1M scores")
def test_eer_ours(benchmark, million):
    assert benchmark(roc.eer, *million).value == pytest.approx(0.15866, abs=1e-3)  # Phi(-1)


@pytest.mark.slow
@pytest.mark.benchmark(group="EER of 1M + 1M scores")
def test_eer_scikit_learn(benchmark, million):
    from sklearn.metrics import roc_curve

    genuine, impostor = million

    def theirs():
        fpr, tpr, _ = roc_curve(np.r_[np.ones(10**6), np.zeros(10**6)], np.r_[genuine, impostor], drop_intermediate=False)
        k = np.argmax(fpr >= 1 - tpr)
        return (fpr[k] + 1 - tpr[k]) / 2

    assert benchmark(theirs) == pytest.approx(roc.eer(genuine, impostor).value, abs=2e-6)


@pytest.mark.slow
@pytest.mark.benchmark(group="ROC of 1M + 1M scores")
def test_roc(benchmark, million):
    assert benchmark(roc.roc, *million).fmr[0] == 1


@pytest.mark.benchmark(group="CMC 500 x 2000")
def test_cmc(benchmark):
    rng = np.random.default_rng(0)
    gallery_person = np.arange(2000) // 4
    probe_person = np.arange(500)
    scores = rng.normal(size=(500, 2000)).astype(np.float32)
    none = np.full(500, -1)

    def cmc():
        return identification.hits(*identification.standings(scores, probe_person, gallery_person, none), 50).mean(0)

    got = benchmark(cmc)
    # The reference: place of the best mate in the sorted list.
    order = np.argsort(-scores, axis=1)
    first = (gallery_person[order] == probe_person[:, None]).argmax(1)
    np.testing.assert_allclose(got, [(first < k).mean() for k in range(1, 51)])


@pytest.mark.benchmark(group="scores 500 x 2000 x 512")
def test_cosine(benchmark):
    rng = np.random.default_rng(0)
    g, p = l2_normalise(rng.normal(size=(2000, 512))), l2_normalise(rng.normal(size=(500, 512)))
    assert benchmark(cosine, g, p).shape == (500, 2000)


@pytest.mark.slow
@pytest.mark.benchmark(group="person bootstrap, 10k replicates, 20k probes")
@pytest.mark.parametrize("persons", [2000, 20_000])
def test_person_bootstrap(benchmark, persons):
    names = [f"{i:05d}" for i in range(persons)]
    trials = np.full(persons, 20_000 / persons)
    hits = np.random.default_rng(0).binomial(20_000 // persons, 0.3, persons).astype(float)

    def interval():
        intervals._multinomial_kept.cache_clear()  # draws included
        return intervals.rate_interval(hits, trials, intervals.person_draws(names, 10_000, 0))

    got = benchmark.pedantic(interval, rounds=2)
    assert got.lo < 0.3 < got.hi


@pytest.fixture(scope="module")
def orl_sized():
    """400 x 399 pairs, 40 persons."""
    rng = np.random.default_rng(0)
    who = np.arange(400) // 10
    scores = (rng.normal(size=(400, 400)) + 2 * (who[:, None] == who)).astype(np.float32)
    return verification.extract(scores, who, who, np.arange(400)), intervals.person_draws(
        [f"{i:02d}" for i in range(40)], 1000, 0
    )


@pytest.mark.benchmark(group="pair bootstrap, 1k replicates, 400 x 399 pairs")
def test_bootstrap_eer(benchmark, orl_sized):
    assert benchmark.pedantic(pairs.bootstrap_eer, orl_sized, rounds=3).std() > 0


@pytest.mark.benchmark(group="pair bootstrap, 1k replicates, 400 x 399 pairs")
def test_bootstrap_auc(benchmark, orl_sized):
    assert benchmark.pedantic(pairs.bootstrap_auc, orl_sized, rounds=3).std() > 0
