"""Decisions against a margin, against statsmodels' two one-sided tests and on cases known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from deidbench.stats import intervals
from deidbench.stats.noninferiority import Outcome, equivalence, noninferiority, one_sided_bounds, persons_needed

PERSONS = [f"p{i:02d}" for i in range(40)]


def t_bounds(d, alpha=0.05):
    """Mean and its one-sided t bounds."""
    half = stats.t.ppf(1 - alpha, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean(), d.mean() - half, d.mean() + half


@pytest.mark.parametrize(
    ("difference", "lower", "upper", "margin", "expected"),
    [
        (0.00, -0.01, 0.01, 0.02, "pass"),
        (0.015, 0.011, 0.019, 0.02, "pass"),  # worse beyond chance, and yet inside the margin
        (-0.30, -0.40, -0.20, 0.02, "pass"),
        (0.05, 0.03, 0.07, 0.02, "fail"),
        (0.00, -0.03, 0.03, 0.02, "inconclusive"),  # "not significant" is no pass
        (0.03, 0.01, 0.05, 0.02, "inconclusive"),
        (0.00, -0.02, 0.02, 0.02, "inconclusive"),  # exactly at the margin is not inside
        (0.04, 0.02, 0.06, 0.02, "inconclusive"),
        (-0.1, -0.2, -0.01, 0.0, "pass"),
        (0.01, -0.01, 0.03, 0.0, "inconclusive"),
    ],
)
def test_noninferiority_says_where_the_interval_lies(difference, lower, upper, margin, expected):
    found = noninferiority(difference, lower, upper, margin, persons=50)
    assert found.outcome == expected and found.passed == (expected == "pass")
    assert (found.persons_needed is not None) == (expected == "inconclusive")
    assert (found.difference, found.lower, found.upper, found.margin) == (difference, lower, upper, margin)


@pytest.mark.parametrize(
    ("difference", "lower", "upper", "margin", "expected"),
    [
        (0.00, -0.01, 0.01, 0.02, "pass"),
        (0.05, 0.03, 0.07, 0.02, "fail"),
        (-0.05, -0.07, -0.03, 0.02, "fail"),  # better, but not unchanged
        (0.00, -0.03, 0.01, 0.02, "inconclusive"),
        (0.00, -0.01, 0.03, 0.02, "inconclusive"),
        (0.00, -0.03, 0.03, 0.02, "inconclusive"),
        (0.00, -0.02, 0.01, 0.02, "inconclusive"),
        (-0.04, -0.06, -0.02, 0.02, "inconclusive"),
    ],
)
def test_equivalence_says_where_the_interval_lies(difference, lower, upper, margin, expected):
    found = equivalence(difference, lower, upper, margin, persons=50)
    assert found.outcome == expected
    mirrored = equivalence(-difference, -upper, -lower, margin, persons=50)
    assert mirrored.outcome == expected and mirrored.persons_needed == found.persons_needed


def test_decisions_agree_with_the_p_values_of_statsmodels():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        x, y = rng.normal(rng.normal(0, 0.4), 1, 25), rng.normal(0, 1, 25)
        margin = rng.uniform(0.2, 1.2)
        p, above, below = ttost_paired(x, y, -margin, margin)
        bounds = t_bounds(x - y)
        both, worse = equivalence(*bounds, margin), noninferiority(*bounds, margin)
        assert (both.outcome == Outcome.PASS) == (p < 0.05)
        assert (worse.outcome == Outcome.PASS) == (below[1] < 0.05)
        assert (worse.outcome == Outcome.FAIL) == (1 - below[1] < 0.05)
        assert (both.outcome == Outcome.FAIL) == (1 - below[1] < 0.05 or 1 - above[1] < 0.05)
        seen |= {("both", both.outcome), ("worse", worse.outcome)}
    assert len(seen) == 6


def test_persons_needed_go_with_the_square_of_the_half_width():
    inside = noninferiority(0.0, -0.04, 0.04, 0.02, persons=100)
    assert inside.persons_needed == 401  # at 400 the bound is at the margin, and not inside it
    assert noninferiority(0.01, -0.03, 0.05, 0.02, persons=100).persons_needed == 1601
    beyond = noninferiority(0.03, 0.0, 0.06, 0.02, persons=100)
    assert beyond.persons_needed == 901  # for the lower bound to go beyond the margin
    assert noninferiority(0.02, 0.0, 0.04, 0.02, persons=100).persons_needed is None
    assert noninferiority(0.0, -0.04, 0.04, 0.02).persons_needed is None
    assert noninferiority(0.0, -0.02, 0.02, 0.02, persons=100).persons_needed == 101
    # a skewed interval: only the side that is in question counts
    assert noninferiority(0.0, -0.5, 0.03, 0.02, persons=100).persons_needed == 226
    assert noninferiority(0.03, 0.0, 0.5, 0.02, persons=100).persons_needed == 901


def test_persons_needed_for_equivalence_are_those_of_the_worse_side():
    assert equivalence(0.0, -0.04, 0.04, 0.02, persons=100).persons_needed == 401
    assert equivalence(0.01, -0.03, 0.05, 0.02, persons=100).persons_needed == 1601
    assert equivalence(0.0, -0.01, 0.03, 0.02, persons=100).persons_needed == 226
    assert equivalence(-0.03, -0.06, 0.0, 0.02, persons=100).persons_needed == 901
    assert equivalence(-0.03, -0.5, 0.0, 0.02, persons=100).persons_needed == 901
    assert equivalence(0.03, 0.0, 0.5, 0.02, persons=100).persons_needed == 901
    assert equivalence(0.02, -0.01, 0.05, 0.02, persons=100).persons_needed is None


def test_with_the_persons_needed_about_every_second_study_decides():
    rng = np.random.default_rng(1)
    first = rng.normal(0.0, 1, 30)
    mean, lower, upper = t_bounds(first - first.mean())
    needed = noninferiority(mean, lower, upper, 0.15, persons=30).persons_needed
    assert 80 < needed < 200
    passed = [noninferiority(*t_bounds(rng.normal(0, first.std(ddof=1), needed)), 0.15).passed for _ in range(300)]
    assert 0.35 < np.mean(passed) < 0.65
    more = [noninferiority(*t_bounds(rng.normal(0, first.std(ddof=1), 2 * needed)), 0.15).passed for _ in range(300)]
    assert np.mean(more) > np.mean(passed) + 0.1


def test_persons_needed_that_nobody_knows():
    assert persons_needed(100, 0.0, 0.1) is None
    assert persons_needed(100, -0.1, 0.1) is None
    assert persons_needed(100, 0.1, 0.0) is None
    assert persons_needed(0, 0.1, 0.1) is None
    assert persons_needed(100, 0.1, 0.2) == 26  # more than there need be
    # the estimate outside of its own interval
    assert equivalence(0.0, -0.05, -0.01, 0.02, persons=100).outcome == Outcome.INCONCLUSIVE
    assert noninferiority(0.05, 0.06, 0.07, 0.08, persons=100).outcome == Outcome.PASS
    assert noninferiority(0.05, 0.06, 0.09, 0.03, persons=100).outcome == Outcome.FAIL
    assert noninferiority(0.05, 0.06, 0.09, 0.08, persons=100).persons_needed == 178


@pytest.mark.parametrize("decide", [noninferiority, equivalence])
def test_without_an_interval_nothing_is_decided(decide):
    for numbers in ((None, None, None), (0.1, None, None), (float("nan"), 0.0, 0.1), (0.1, 0.0, float("nan"))):
        found = decide(*numbers, 0.02, persons=10)
        assert found.outcome == Outcome.INCONCLUSIVE and found.persons_needed is None and found.reason
    assert decide(0.1, None, None, 0.02, reason="one person").reason == "one person"
    for margin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="margin"):
            decide(0.0, -0.1, 0.1, margin)
    with pytest.raises(ValueError, match="above the upper"):
        decide(0.0, 0.1, -0.1, 0.02)


def test_bounds_are_the_ends_of_an_expanded_interval_of_twice_the_error():
    replicates = np.random.default_rng(0).normal(0, 1, 4000)
    found = one_sided_bounds(replicates, 12, 0.05)
    assert found == intervals.percentile_interval(replicates, 0.9, 12, "paired person bootstrap")
    # normal replicates of standard error 1 with 11 degrees of freedom
    assert found.hi == pytest.approx(stats.t.ppf(0.95, 11) * np.sqrt(12 / 11), abs=0.1)
    assert one_sided_bounds(replicates, 12, 0.01).hi > found.hi
    assert one_sided_bounds(replicates, 1).lo is None
    for alpha in (0.0, 0.5, 95):
        with pytest.raises(ValueError, match="alpha"):
            one_sided_bounds(replicates, 12, alpha)


def test_a_candidate_that_changes_nothing_passes_with_enough_persons():
    nothing = np.zeros(500)
    assert one_sided_bounds(nothing, 100).lo is None
    bounds = one_sided_bounds(nothing, 100, largest=1)
    assert bounds.hi == pytest.approx(1 - 0.05 ** (1 / 100)) and bounds.lo == -bounds.hi
    assert one_sided_bounds(nothing, 100, largest=0.5).hi == pytest.approx(bounds.hi / 2)
    assert noninferiority(0.0, bounds.lo, bounds.hi, 0.03).passed and equivalence(0.0, bounds.lo, bounds.hi, 0.03).passed
    few = one_sided_bounds(nothing, 10, largest=1)
    assert noninferiority(0.0, few.lo, few.hi, 0.03).outcome == Outcome.INCONCLUSIVE
    assert one_sided_bounds(nothing + 0.2, 100, largest=1).lo is None  # all alike, but not nothing
    assert one_sided_bounds(nothing, 1, largest=1).lo is None
    assert one_sided_bounds(np.full(5, np.nan), 10, largest=1).lo is None
    with pytest.raises(ValueError, match="largest"):
        one_sided_bounds(nothing, 100, largest=0)


def test_level_at_the_margin():
    """A candidate that is worse by the margin itself passes in no more than about 5 % of all studies."""
    rng = np.random.default_rng(3)
    draws = intervals.person_draws(PERSONS, 1000, 0)
    weights = draws / 40
    passed, failed = [], []
    for _ in range(400):
        d = rng.normal(0.1, 0.2, 40)
        bounds = one_sided_bounds(weights @ d, 40)
        outcome = noninferiority(d.mean(), bounds.lo, bounds.hi, 0.1).outcome
        passed.append(outcome == Outcome.PASS)
        failed.append(outcome == Outcome.FAIL)
    assert 0.02 < np.mean(passed) < 0.085 and 0.02 < np.mean(failed) < 0.085
