"""Cllr_min against an exhaustive search, scikit-learn's isotonic regression, analytic values and cases known by construction."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from deidbench.stats import calibration

scores = st.lists(st.sampled_from([-np.inf, -1.0, -0.5, 0.0, 0.25, 0.5, 0.999, 1.0]), min_size=1, max_size=20)


def cllr(genuine_lr, impostor_lr):
    """The definition: mean cost in bits of likelihood ratios, half of it for each kind."""
    with np.errstate(divide="ignore"):
        return (np.log2(1 + 1 / np.asarray(genuine_lr)).mean() + np.log2(1 + np.asarray(impostor_lr)).mean()) / 2


def exhaustive(genuine, impostor):
    """The least Cllr over every cut of the distinct scores into runs whose likelihood ratios do not fall."""
    levels = sorted({*genuine, *impostor})
    best = np.inf
    for cuts in product([False, True], repeat=len(levels) - 1):
        run = dict(zip(levels, np.cumsum([0, *cuts]), strict=True))
        g, i = ([run[x] for x in sample] for sample in (genuine, impostor))
        n = 1 + run[levels[-1]]
        with np.errstate(divide="ignore", invalid="ignore"):
            lr = (np.bincount(g, minlength=n) / len(g)) / (np.bincount(i, minlength=n) / len(i))
        if (lr[1:] >= lr[:-1]).all():
            best = min(best, cllr(lr[g], lr[i]))
    return best


@settings(max_examples=150, deadline=None)
@given(scores, scores)
def test_no_monotone_reading_costs_less(genuine, impostor):
    assert calibration.cllr_min(genuine, impostor) == pytest.approx(exhaustive(genuine, impostor), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [None, 4])
def test_isotonic_regression_score_by_score(dtype, levels):
    """scikit-learn's estimator on single scores, which pools ties itself, then the definition."""
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(3)
    genuine, impostor = rng.normal(1.2, 1, 700), rng.normal(0, 1, 2300)
    if levels:
        genuine, impostor = np.round(genuine * levels) / levels, np.round(impostor * levels) / levels
    genuine, impostor = genuine.astype(dtype), impostor.astype(dtype)
    x, y = np.r_[genuine, impostor], np.r_[np.ones(700), np.zeros(2300)]
    share = IsotonicRegression().fit(x, y).predict(x)
    with np.errstate(divide="ignore"):
        lr = share / (1 - share) * 2300 / 700
    assert calibration.cllr_min(genuine, impostor) == pytest.approx(cllr(lr[:700], lr[700:]), abs=1e-6)


@pytest.mark.parametrize(
    ("genuine", "impostor", "expected"),
    [
        ([1.0, 0.9], [0.1, -1.0, -np.inf], 0.0),  # a threshold separates them
        ([0.3] * 7, [0.3] * 1000, 1.0),  # a constant says nothing
        ([-np.inf] * 3, [-np.inf] * 5, 1.0),  # nothing could be compared
        ([0.0, 0.1], [0.5, 0.6, 0.7], 1.0),  # the wrong way round: the best monotone reading is to ignore the scores
        ([1.0, 3.0], [0.0, 2.0], 0.5),  # 1 and 2 are pooled: half of either sample at LR 1, a cost of one bit each
        ([2.0, 1.0], [1.0, 0.0], 0.5),  # the same through a tie
        # -inf and 0.0 are pooled: half of the genuine and all of the impostor scores at LR 1/2, the rest at LR inf.
        ([1.0, -np.inf], [0.0, -np.inf], (0.5 * np.log2(3) + np.log2(1.5)) / 2),
    ],
)
def test_known_answers(genuine, impostor, expected):
    assert calibration.cllr_min(genuine, impostor) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("d", [0.5, 1.0, 2.0])
def test_two_gaussians_approach_the_integral(d):
    """Equal variances: the likelihood ratio exp(d x - d^2 / 2) is monotone in the score, so its Cllr is the least."""

    def cost(x):
        log_lr = d * x - d * d / 2
        return (stats.norm.pdf(x, d) * np.logaddexp(0, -log_lr) + stats.norm.pdf(x) * np.logaddexp(0, log_lr)) / np.log(4)

    expected = integrate.quad(cost, -12, 14)[0]
    rng = np.random.default_rng(0)
    found = calibration.cllr_min(rng.normal(d, 1, 400_000), rng.normal(0, 1, 400_000))
    assert found == pytest.approx(expected, abs=2e-3)
    # Few scores: the reading is fitted to them, and the figure is too low on average.
    small = [calibration.cllr_min(rng.normal(d, 1, 30), rng.normal(0, 1, 300)) for _ in range(200)]
    assert np.mean(small) < expected - 0.01


def test_it_is_the_cost_of_a_calibrated_score_at_most():
    rng = np.random.default_rng(1)
    genuine, impostor = rng.normal(1, 1, 5000), rng.normal(0, 1, 9000)
    right = cllr(np.exp(genuine - 0.5), np.exp(impostor - 0.5))
    assert calibration.cllr_min(genuine, impostor) < right < calibration.cllr_min(genuine, impostor) + 0.01


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_a_strictly_rising_map_changes_nothing(genuine, impostor):
    g, i = np.array(genuine), np.array(impostor)
    assert calibration.cllr_min(g, i) == calibration.cllr_min(1000 * g - 3, 1000 * i - 3)


def test_counts_of_many_replicates_equal_one_at_a_time():
    rng = np.random.default_rng(2)
    gen = rng.poisson(np.linspace(0, 6, 40), (300, 40)) * rng.integers(0, 2, (300, 40))
    imp = rng.poisson(np.linspace(6, 0, 40), (300, 40))
    gen[5], imp[6] = 0, 0
    gen[7], imp[7] = imp[7], imp[7]  # the same histograms: nothing is said
    found = calibration.cllr_min_from_counts(gen, imp)
    bins = np.arange(40)
    for b in range(300):
        if b in (5, 6):
            assert np.isnan(found[b])
        else:
            assert found[b] == pytest.approx(calibration.cllr_min(np.repeat(bins, gen[b]), np.repeat(bins, imp[b])), abs=1e-12)
    assert found[7] == 1
    assert np.isnan(calibration.cllr_min_from_counts(gen[5:7], imp[5:7])).all()
    assert calibration.cllr_min_from_counts(gen[:0], imp[:0]).shape == (0,)


@pytest.mark.parametrize("bad", [([], [1.0]), ([1.0], [])])
def test_one_class_is_refused(bad):
    with pytest.raises(ValueError, match=r"no (genuine|impostor) scores"):
        calibration.cllr_min(*bad)


def test_nan_is_refused_not_dropped():
    with pytest.raises(ValueError, match="NaN"):
        calibration.cllr_min([0.5, np.nan], [0.1])
