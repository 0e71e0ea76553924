"""Person bootstrap and its bounds, against brute force and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deidbench.stats import intervals as iv

PERSONS = [f"p{i:02d}" for i in range(12)]


def test_draws_are_multinomial_and_depend_on_seed_and_persons_only():
    draws = iv.person_draws(PERSONS, 1000, 3)
    assert draws.shape == (1000, 12)
    assert (draws.sum(1) == 12).all()
    np.testing.assert_array_equal(draws, iv.person_draws(tuple(PERSONS), 1000, 3))
    assert not np.array_equal(draws, iv.person_draws(PERSONS, 1000, 4))
    assert not np.array_equal(draws, iv.person_draws([p + "x" for p in PERSONS], 1000, 3))
    # A binomial(12, 1/12) count: variance 11/12.
    assert abs(draws.var() - 11 / 12) < 0.05


def test_fewer_replicates_are_a_prefix_of_more():
    np.testing.assert_array_equal(iv.person_draws(PERSONS, 777, 0), iv.person_draws(PERSONS, 10_000, 0)[:777])
    np.testing.assert_array_equal(
        iv.double_or_nothing_draws(PERSONS, 300, 0), iv.double_or_nothing_draws(PERSONS, 999, 0)[:300]
    )


def test_draws_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        iv.person_draws(PERSONS, 10, 0)[0, 0] = 9


def test_draws_refuse_unsorted_or_repeated_persons():
    for bad in (["b", "a"], ["a", "a"]):
        with pytest.raises(ValueError, match="sorted and unique"):
            iv.person_draws(bad, 10, 0)


def test_names_are_told_apart_from_their_concatenation():
    assert not np.array_equal(iv.person_draws(["a", "bc"], 64, 0), iv.person_draws(["ab", "c"], 64, 0))


def test_double_or_nothing_weights():
    weights = iv.double_or_nothing_draws(PERSONS, 4000, 1)
    assert set(np.unique(weights)) == {0, 2}
    assert abs(weights.mean() - 1) < 0.02


def test_ratio_replicates_equal_a_loop():
    rng = np.random.default_rng(0)
    num, den = rng.random((12, 3)), rng.integers(0, 4, 12).astype(float)
    draws = iv.person_draws(PERSONS, 50, 0)
    found = iv.ratio_replicates(num, den, draws)
    for b in range(50):
        who = np.repeat(np.arange(12), draws[b])  # the resample, written out
        np.testing.assert_allclose(found[b], num[who].sum(0) / den[who].sum(), rtol=1e-12)


def test_mean_interval_is_the_quantile_of_the_resampled_means():
    rng = np.random.default_rng(1)
    den = np.full(12, 5.0)
    num = rng.binomial(5, 0.6, 12).astype(float)
    draws = iv.person_draws(PERSONS, 2000, 0)
    interval = iv.mean_interval(num, den, draws, 0.9)
    means = [num[np.repeat(np.arange(12), row)].sum() / 60 for row in draws]
    tail = iv.expanded_tail(0.9, 12)
    np.testing.assert_allclose(interval[:2], np.quantile(means, [tail, 1 - tail]))
    assert interval.level == 0.9
    assert "2000 replicates" in interval.method


def test_rate_interval_is_the_bootstraps_far_from_0_and_1():
    rng = np.random.default_rng(1)
    names = [f"{i:03d}" for i in range(300)]
    den = np.full(300, 5.0)
    num = rng.binomial(5, rng.beta(1, 1, 300)).astype(float)
    draws = iv.person_draws(names, 20_000, 0)
    interval = iv.rate_interval(num, den, draws, 0.9)
    np.testing.assert_allclose(interval[:2], iv.mean_interval(num, den, draws, 0.9)[:2], atol=2e-3)
    assert interval.level == 0.9
    assert "Wilson" in interval.method


def test_expanded_tail_is_wider_and_meets_the_normal_with_many_persons():
    from scipy import stats

    assert iv.expanded_tail(0.95, 10**7) == pytest.approx(0.025, abs=1e-6)
    t = stats.t.ppf(0.975, 39)
    assert iv.expanded_tail(0.95, 40) == pytest.approx(stats.norm.cdf(-np.sqrt(40 / 39) * t))
    assert iv.expanded_tail(0.95, 5) < iv.expanded_tail(0.95, 40) < 0.025


@pytest.mark.parametrize("persons", [2, 40, 1000])
def test_zero_events_never_give_zero_width(persons):
    from scipy import stats

    names = [f"{i:05d}" for i in range(persons)]
    draws = iv.person_draws(names, 100, 0)
    none = iv.rate_interval(np.zeros(persons), np.full(persons, 10.0), draws)
    assert none.lo == 0
    # The exact (Clopper-Pearson) one-sided bound is the reference.
    assert none.hi == pytest.approx(stats.binomtest(0, persons, alternative="less").proportion_ci(0.95, "exact").high, rel=1e-9)
    assert "no event seen" in none.method
    every = iv.rate_interval(np.full(persons, 10.0), np.full(persons, 10.0), draws)
    assert every.hi == 1
    assert every.lo == pytest.approx(1 - none.hi)


def test_no_interval_for_one_person_or_none_and_the_reason_is_said():
    for den, word in (([5.0], "one person"), ([0.0], "no person")):
        interval = iv.rate_interval([den[0] / 2], den, iv.person_draws(["a"], 100, 0))
        assert interval.lo is None
        assert interval.hi is None
        assert word in interval.reason
    # One person with all hits is one person all the same: no bound.
    assert iv.rate_interval([5.0], [5.0], iv.person_draws(["a"], 100, 0)).lo is None


def test_no_interval_without_variance():
    interval = iv.rate_interval(np.full(12, 0.5), np.full(12, 5.0), iv.person_draws(PERSONS, 200, 0))
    assert interval.lo is None
    assert interval.reason == "no variance between persons"


def test_no_interval_where_replicates_run_empty():
    den = np.zeros(12)
    den[:2] = 5
    interval = iv.mean_interval([1.0, 4.0] + [0.0] * 10, den, iv.person_draws(PERSONS, 500, 0))
    assert interval.lo is None
    assert "empty denominator" in interval.reason


def test_two_persons_say_next_to_nothing_about_a_rate():
    den = np.zeros(12)
    den[:2] = 5
    interval = iv.rate_interval([1.0, 4.0] + [0.0] * 10, den, iv.person_draws(PERSONS, 500, 0))
    assert interval.lo < 0.01
    assert interval.hi > 0.99


def test_draws_of_other_persons_are_refused():
    with pytest.raises(ValueError, match="do not fit the persons"):
        iv.rate_interval([1.0, 4.0], [5.0, 5.0], iv.person_draws(PERSONS, 500, 0))


def test_percent_where_a_rate_belongs_is_refused():
    with pytest.raises(ValueError, match="percentage"):
        iv.rate_interval([97.0] * 12, [1.0] * 12, iv.person_draws(PERSONS, 10, 0))


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_level_must_be_a_share(level):
    with pytest.raises(ValueError, match="confidence level"):
        iv.percentile_interval([0.1, 0.2], level, 5, "")


def test_mean_interval_takes_any_values():
    rng = np.random.default_rng(2)
    sums = rng.normal(-300, 10, 12)
    interval = iv.mean_interval(sums, np.full(12, 3.0), iv.person_draws(PERSONS, 3000, 0))
    assert interval.lo < sums.sum() / 36 < interval.hi < 0


def test_same_draws_make_differences_paired():
    """Two methods with a constant per-person difference: the difference has no spread at all."""
    rng = np.random.default_rng(3)
    a = rng.integers(0, 4, 12).astype(float)
    draws, den = iv.person_draws(PERSONS, 500, 0), np.full(12, 5.0)
    gap = iv.ratio_replicates(a + 1, den, draws) - iv.ratio_replicates(a, den, draws)
    np.testing.assert_allclose(gap, 0.2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12).filter(
        lambda pairs: sum(max(p) for p in pairs) > 0
    )
)
def test_rate_interval_is_sane_for_any_counts(pairs):
    num, den = np.array([min(p) for p in pairs], float), np.array([max(p) for p in pairs], float)
    interval = iv.rate_interval(num, den, iv.person_draws(PERSONS[: len(pairs)], 200, 0))
    if interval.lo is None:
        assert interval.hi is None
        assert interval.reason
    else:
        assert 0 <= interval.lo < interval.hi <= 1
        assert interval.method


def test_per_person_sums():
    person = np.array([2, 0, 2, 2])
    np.testing.assert_array_equal(iv.per_person(person, [1, 2, 3, 4], 4), [2, 0, 8, 0])
    np.testing.assert_array_equal(iv.per_person(person, np.eye(4), 3), [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
