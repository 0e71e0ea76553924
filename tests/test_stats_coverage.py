"""Do the intervals cover?  Simulation under embedding = person effect + noise, 100 persons x 5 images."""

from __future__ import annotations

import numpy as np
import pytest

from deidbench.metrics.base import Protocol
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import identification, verification
from deidbench.metrics.reid.base import cosine
from deidbench.metrics.reid.comparison import lay_out
from deidbench.stats import intervals, pairs

SIMULATIONS = 300


def simulate(persons: int, images: int, noise: float, rng: np.random.Generator, draws: np.ndarray, few: np.ndarray):
    """One data set: (rank-1, its interval), (EER, its interval).  Persons differ in how noisy their images are."""
    d = 24
    centre = rng.normal(size=(persons, d)).repeat(images, 0)
    spread = noise * np.exp(0.25 * rng.normal(size=(persons, 1))).repeat(images, 0)
    clear = l2_normalise(centre + 0.5 * rng.normal(size=centre.shape))
    hidden = l2_normalise(centre + spread * rng.normal(size=centre.shape))
    n = persons * images
    ids = np.array([f"{i:05d}" for i in range(n)])
    layout = lay_out(ids, np.repeat([f"{i:04d}" for i in range(persons)], images), Protocol())
    scores = cosine(clear, hidden)
    who = layout.probe_person
    hits = identification.hits(*identification.standings(scores, who, who, layout.same_image), 1)[:, 0]
    per = intervals.per_person(who, hits, persons)
    rank = intervals.rate_interval(per, np.full(persons, float(images)), draws)
    found = verification.extract(scores, who, who, layout.same_image)
    eer = verification.eer(found.genuine, found.impostor).value
    error = intervals.percentile_interval(pairs.bootstrap_eer(found, few), 0.95, persons, "")
    return (hits.mean(), rank), (eer, error)


def coverage(persons: int, images: int, noise: float, seed: int) -> tuple[str, float, float]:
    """Covered share of the mean over all simulations, for rank-1 and EER.

    Rank-1 intervals are conditional on the gallery, whose persons are new in each simulation here; with leave-one-out
    the spread between galleries adds to what the interval is asked to cover, so this is the harder question.
    """
    rng = np.random.default_rng(seed)
    names = [f"{i:04d}" for i in range(persons)]
    draws, few = intervals.person_draws(names, 4000, 0), intervals.person_draws(names, 1000, 0)
    runs = [simulate(persons, images, noise, rng, draws, few) for _ in range(SIMULATIONS)]
    shares, text = [], []
    for k, name in enumerate(("rank-1", "EER")):
        truth = np.mean([run[k][0] for run in runs])
        lo, hi = (np.array([run[k][1][side] for run in runs], float) for side in (0, 1))
        inside = (lo <= truth) & (truth <= hi)
        shares.append(inside.mean())
        text.append(
            f"{name} {truth:.4f}: covered {inside.mean():.3f}, missed below {np.mean(hi < truth):.3f}, "
            f"above {np.mean(lo > truth):.3f}, mean width {np.mean(hi - lo):.4f}"
        )
    return f"{persons} persons x {images}, noise {noise}: " + "; ".join(text), shares[0], shares[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("persons", "images", "noise", "low", "high"),
    [(100, 5, 2.0, 0.90, 0.985), (40, 10, 2.0, 0.90, 0.99), (40, 10, 3.5, 0.90, 0.99)],
)
def test_person_intervals_cover(persons, images, noise, low, high):
    text, rank, eer = coverage(persons, images, noise, 1)
    assert low <= rank <= high, text
    assert low <= eer <= high, text


@pytest.mark.slow
def test_an_image_bootstrap_would_not_cover():
    """The control: with each image taken for its own unit, the interval of a clustered rate is too narrow."""
    rng = np.random.default_rng(0)
    persons, images = 100, 5
    units = [f"{i:04d}" for i in range(persons * images)]
    by_image = intervals.person_draws(units, 1000, 0)
    by_person = intervals.person_draws(units[:persons], 1000, 0)
    covered = np.zeros(2)
    for _ in range(SIMULATIONS):
        hits = (rng.random((persons, images)) < rng.beta(0.6, 0.4, (persons, 1))).astype(float)
        wrong = intervals.rate_interval(hits.ravel(), np.ones(persons * images), by_image)
        right = intervals.rate_interval(hits.sum(1), np.full(persons, 5.0), by_person)
        covered += [wrong.lo <= 0.6 <= wrong.hi, right.lo <= 0.6 <= right.hi]
    wrong_share, right_share = covered / SIMULATIONS
    assert wrong_share < 0.85 < 0.91 < right_share < 0.985, (wrong_share, right_share)
