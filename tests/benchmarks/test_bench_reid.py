"""Speed of the re-identification core.  ``pytest tests/benchmarks -m slow --benchmark-only`` runs all of it.

Each group holds ours and theirs, timed in the same run on the same input.  The ratios that are promised are asserted by the
tests named ``..._times_as_fast`` (``-m slow``), with the best of several rounds of either side.
"""

from __future__ import annotations

import operator
import time

import numpy as np
import pytest

from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import identification, verification
from deidbench.metrics.reid.base import cosine
from deidbench.stats import intervals, pairs, roc


def seconds(work, rounds):
    """Least time of several rounds."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.fixture(scope="module")
def million():
    rng = np.random.default_rng(0)
    return rng.normal(2, 1, 10**6).astype(np.float32), rng.normal(0, 1, 10**6).astype(np.float32)


def roc_by_scikit_learn(genuine, impostor):
    from sklearn.metrics import roc_curve

    y = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))]
    return roc_curve(y, np.r_[genuine, impostor], drop_intermediate=False)


def eer_by_scikit_learn(genuine, impostor):
    fpr, tpr, _ = roc_by_scikit_learn(genuine, impostor)
    k = np.argmax(fpr >= 1 - tpr)
    return (fpr[k] + 1 - tpr[k]) / 2


@pytest.mark.slow
@pytest.mark.benchmark(group="EER of 1M + 1M scores")
def test_eer_ours(benchmark, million):
    assert benchmark(roc.eer, *million).value == pytest.approx(0.15866, abs=1e-3)  # Phi(-1)


@pytest.mark.slow
@pytest.mark.benchmark(group="EER of 1M + 1M scores")
def test_eer_scikit_learn(benchmark, million):
    assert benchmark(eer_by_scikit_learn, *million) == pytest.approx(roc.eer(*million).value, abs=2e-6)


@pytest.mark.slow
def test_eer_is_25_times_as_fast(million):
    ours, theirs = seconds(lambda: roc.eer(*million), 9), seconds(lambda: eer_by_scikit_learn(*million), 3)
    assert theirs / ours >= 25


@pytest.mark.slow
@pytest.mark.benchmark(group="ROC of 1M + 1M scores")
def test_roc_ours(benchmark, million):
    curve = benchmark(roc.roc, *million)
    assert (curve.fmr[0], curve.fnmr[-1]) == (1, 1)


@pytest.mark.slow
@pytest.mark.benchmark(group="ROC of 1M + 1M scores")
def test_roc_scikit_learn(benchmark, million):
    fpr, tpr, _ = benchmark(roc_by_scikit_learn, *million)
    curve = roc.roc(*million)
    np.testing.assert_allclose(curve.fmr[::-1], fpr, atol=1e-12)
    np.testing.assert_allclose(1 - curve.fnmr[::-1], tpr, atol=1e-12)


@pytest.fixture(scope="module")
def searches():
    """500 probes against 2000 gallery images, four of each person: scores, probe persons, gallery persons."""
    rng = np.random.default_rng(0)
    gallery_person, probe_person = np.arange(2000) // 4, np.arange(500)
    scores = rng.normal(size=(500, 2000)) + (gallery_person == probe_person[:, None])
    return scores.astype(np.float32), probe_person, gallery_person


def cmc_ours(scores, probe_person, gallery_person):
    none = np.full(len(scores), -1)
    return identification.hits(*identification.standings(scores, probe_person, gallery_person, none), 50).mean(0)


def cmc_by_pyeer(scores, probe_person, gallery_person):
    """pyeer's curve where it is installed, else the same way written out.

    pyeer takes a sorted list of (template, score) for each probe and looks, rank by rank and probe by probe, whether the
    candidate there is one of the probe's templates, in Python.  It counts every mate, ours the first: with several mates its
    curve is another one, at the same cost, so each probe is given its best mate only.  The lists are sorted as its own reader
    sorts them; reading them from text files, which it does as well, is not counted.
    """
    names = [str(j) for j in range(len(gallery_person))]
    best = np.where(gallery_person == probe_person[:, None], scores, -np.inf).argmax(1)
    matches = {}
    for k, row in enumerate(scores.tolist()):
        candidates = list(zip(names, row, strict=True))
        candidates.sort(key=operator.itemgetter(1), reverse=True)
        matches[k] = ([names[best[k]]], candidates)
    try:
        from pyeer.cmc_stats import get_cmc_curve
    except ImportError:
        found = [sum(candidates[r][0] in mates for mates, candidates in matches.values()) for r in range(50)]
        return np.cumsum(found) / len(matches)
    return get_cmc_curve(matches, 50)


@pytest.mark.benchmark(group="CMC 500 x 2000")
def test_cmc_ours(benchmark, searches):
    np.testing.assert_allclose(benchmark(cmc_ours, *searches), cmc_by_pyeer(*searches))


@pytest.mark.slow
@pytest.mark.benchmark(group="CMC 500 x 2000")
def test_cmc_pyeer(benchmark, searches):
    assert len(benchmark.pedantic(cmc_by_pyeer, searches, rounds=3)) == 50


@pytest.mark.slow
def test_cmc_is_100_times_as_fast(searches):
    assert seconds(lambda: cmc_by_pyeer(*searches), 2) / seconds(lambda: cmc_ours(*searches), 15) >= 100


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
        return intervals.mean_interval(hits, trials, intervals.person_draws(names, 10_000, 0))

    got = benchmark.pedantic(interval, rounds=2)
    assert got.lo < 0.3 < got.hi


@pytest.fixture(scope="module", params=[(40, 10), (150, 5)], ids=["40 persons x 10", "150 persons x 5"])
def left_out(request):
    """Leave-one-out pairs (156,000 and 558,750 impostor pairs) and 1000 draws."""
    persons, images = request.param
    rng = np.random.default_rng(0)
    who = np.arange(persons * images) // images
    scores = (rng.normal(size=(len(who), len(who))) + 2 * (who[:, None] == who)).astype(np.float32)
    draws = intervals.person_draws([f"{i:03d}" for i in range(persons)], 1000, 0)
    return verification.extract(scores, who, who, np.arange(len(who))), draws


@pytest.mark.benchmark(group="pair bootstrap, 1k replicates")
@pytest.mark.parametrize("figure", ["eer", "auc", "cllr_min", "d_sys", "all"])
def test_pair_bootstrap(benchmark, left_out, figure):
    found = benchmark.pedantic(getattr(pairs, f"bootstrap_{figure}"), left_out, rounds=3, warmup_rounds=1)
    assert np.std(found[:4] if figure == "all" else found, axis=-1).min() > 0
