"""Wilson score bounds over persons, against independent references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deidbench.stats import intervals as iv
from deidbench.stats import wilson

PERSONS = 12


def counts(rng: np.random.Generator, persons: int = PERSONS, rate: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Events and trials per person, of unequal sizes and with dependence."""
    trials = rng.integers(1, 9, persons)
    events = rng.binomial(trials, rng.beta(rate, 1 - rate, persons))
    return events.astype(float), trials.astype(float)


def impostors(rng: np.random.Generator, persons: int = 9, images: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of all comparisons of images of different persons, once each, with the persons; some persons are wolves."""
    who = np.repeat(np.arange(persons), images)
    a, b = np.triu_indices(len(who), 1)
    keep = who[a] != who[b]
    a, b = who[a[keep]], who[b[keep]]
    wolf = rng.normal(size=persons)
    return wolf[a] + wolf[b] + rng.normal(size=len(a)), a, b


@pytest.mark.parametrize(("events", "trials"), [(0, 10), (1, 10), (7, 20), (499, 500), (10, 10)])
def test_score_bounds_are_wilsons(events, trials):
    from scipy import stats

    found = wilson.score_bounds(events / trials, trials, stats.norm.ppf(0.975))
    known = stats.binomtest(events, trials).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(found, (known.low, known.high), atol=1e-12)


def test_rate_variance_is_the_cluster_robust_one_of_a_regression_on_a_constant():
    import statsmodels.api as sm

    events, trials = counts(np.random.default_rng(0))
    person = np.repeat(np.arange(PERSONS), trials.astype(int))
    y = np.concatenate([np.arange(m) < e for e, m in zip(events, trials, strict=True)]).astype(float)
    fit = sm.OLS(y, np.ones(len(y))).fit(cov_type="cluster", cov_kwds={"groups": person, "use_correction": False})
    assert wilson.rate_variance(events, trials) == pytest.approx(fit.bse[0] ** 2 * PERSONS / (PERSONS - 1), rel=1e-10)


def test_variance_of_pairs_is_the_sum_over_pairs_of_pairs_that_share_a_person():
    rng = np.random.default_rng(1)
    score, a, b = impostors(rng, 6, 2)
    error = score > 1
    p = error.mean()
    total = sum(
        (error[i] - p) * (error[j] - p)
        for i in range(len(a))
        for j in range(len(a))
        if {int(a[i]), int(b[i])} & {int(a[j]), int(b[j])}
    )
    events, trials = np.zeros((6, 6)), np.zeros((6, 6))
    np.add.at(events, (a, b), error)
    np.add.at(trials, (a, b), 1)
    assert total > 0
    assert wilson.pair_rate_variance(events, trials) == pytest.approx(total / len(a) ** 2, rel=1e-12)
    # Which of the two persons is the probe does not matter.
    assert wilson.pair_rate_variance(events.T, trials.T) == pytest.approx(total / len(a) ** 2, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 1.5, 2.5])
def test_variances_and_bounds_agree_with_the_authors_package(seed, threshold):
    """cimat is the code of Fogliato, Patil & Perona 2024.  It takes the variance of a rate with P, not P - 1."""
    cimat = pytest.importorskip("cimat", reason="cimat is not installed (make install has it in the test extra)")
    from scipy import stats

    rng = np.random.default_rng(seed)
    score, a, b = impostors(rng)
    persons = int(b.max()) + 1
    genuine = [rng.normal(1 + rng.normal(), 1, rng.integers(1, 6)) for _ in range(persons)]
    scores: dict[int, dict[int, list[float]]] = {i: {i: genuine[i].tolist()} for i in range(persons)}
    for i in range(persons):
        for j in range(persons):
            if i != j:
                scores[i][j] = score[(a == min(i, j)) & (b == max(i, j))].tolist()
    theirs = cimat.UncertaintyEstimator(scores)
    var_fnr, var_fpr = theirs.compute_variance(threshold=threshold)
    z = stats.norm.ppf(0.975)
    fnmr_ci, fmr_ci = theirs.get_binerror_ci(threshold=threshold, alpha=0.05)

    rejected = np.array([(g < threshold).sum() for g in genuine], float)
    tried = np.array([len(g) for g in genuine], float)
    assert wilson.rate_variance(rejected, tried) * (persons - 1) / persons == pytest.approx(var_fnr, rel=1e-9)
    fnmr = rejected.sum() / tried.sum()
    ours = wilson.score_bounds(fnmr, fnmr * (1 - fnmr) / var_fnr, z)
    np.testing.assert_allclose(ours, fnmr_ci, rtol=1e-9)

    events, trials = np.zeros((persons, persons)), np.zeros((persons, persons))
    np.add.at(events, (a, b), score > threshold)
    np.add.at(trials, (a, b), 1)
    found = wilson.pair_rate_variance(events, trials)
    assert found == pytest.approx(var_fpr, rel=1e-9)
    fmr = events.sum() / trials.sum()
    np.testing.assert_allclose(wilson.score_bounds(fmr, fmr * (1 - fmr) / found, z), fmr_ci, rtol=1e-9)


def test_one_image_per_person_is_the_plain_wilson_interval_but_for_t():
    """Without dependence the design effect is 1 and nothing is left to correct."""
    from scipy import stats

    hits = (np.arange(400) < 120).astype(float)
    interval = iv.rate_interval(hits, np.ones(400))
    t = stats.t.ppf(0.975, 399)
    np.testing.assert_allclose(interval[:2], wilson.score_bounds(0.3, 400, t), rtol=2e-3)


def test_support_counts_the_persons_on_whom_the_variance_stands():
    assert wilson.supporting([1, 1, 1, 1, 1, 0, 0]) == pytest.approx(5)
    assert wilson.supporting([5, 1, 1, 1, 1]) < 2
    assert wilson.supporting(np.full((3, 3), 2.0)) == pytest.approx(9)


def test_effective_size_goes_from_the_worst_case_to_the_estimate():
    rate, variance, trials = 0.1, 0.1 * 0.9 / 300, 500.0
    sizes = [wilson.effective_size(rate, variance, trials, 5.0, k) for k in (0, 1, 5, 50, 1e6)]
    assert sizes[0] == pytest.approx(100)  # one trial a person
    assert sizes[-1] == pytest.approx(300)  # the estimate
    assert sizes == sorted(sizes)


def test_more_dependence_is_a_wider_interval():
    trials = np.full(40, 10.0)
    spread = np.full(40, 3.0) + np.tile([1.0, -1.0], 20)
    bunched = np.where(np.arange(40) < 12, 10.0, 0.0)
    assert spread.sum() == bunched.sum() == 120
    narrow, wide = (np.diff(iv.rate_interval(x, trials)[:2])[0] for x in (spread, bunched))
    assert wide > 2 * narrow


def test_fewer_events_never_raise_the_upper_bound():
    trials = np.full(50, 4.0)
    none = iv.rate_interval(np.zeros(50), trials)
    highs = [none.hi]
    for events in range(1, 30):
        numerator = np.zeros(50)
        numerator[:events] = 1
        one = iv.rate_interval(numerator, trials)
        other = iv.rate_interval(trials - numerator, trials)
        np.testing.assert_allclose((1 - other.hi, 1 - other.lo), one[:2], atol=1e-12)  # no side is favoured
        highs.append(one.hi)
    assert np.all(np.diff(highs) >= 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=9))
def test_difference_interval_is_sane_for_any_counts(rows):
    a, m, b, n = (
        np.array(x, float)
        for x in ([min(r[0], r[2]) for r in rows], [r[2] for r in rows], [min(r[1], r[3]) for r in rows], [r[3] for r in rows])
    )
    interval = iv.difference_interval(a, m, b, n)
    back = iv.difference_interval(b, n, a, m)
    if interval.lo is None:
        assert interval.reason
        assert back.lo is None
        return
    difference = a.sum() / m.sum() - b.sum() / n.sum()
    assert -1 <= interval.lo <= difference + 1e-12
    assert difference - 1e-12 <= interval.hi <= 1
    assert interval.lo < interval.hi
    np.testing.assert_allclose((-back.hi, -back.lo), interval[:2], atol=1e-12)


def test_difference_without_dependence_is_newcombes():
    """One image a person and no correlation: the score interval of Newcombe 1998 (method 10), here statsmodels' for
    independent samples, whose bounds are of the same two Wilson intervals."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    n = 2000
    a = np.tile([1.0, 0, 0, 0], n // 4)  # rate 1/4; b is 1/2 among hits and misses of a alike: uncorrelated
    b = np.concatenate([np.tile([1.0, 0, 0, 0], n // 8), np.tile([0, 1.0, 1.0, 1.0], n // 8)])
    b[: n // 2], b[n // 2 :] = np.tile([1.0, 1, 0, 0], n // 8), np.tile([0, 0, 1.0, 1], n // 8)
    assert abs(np.corrcoef(a, b)[0, 1]) < 1e-12
    found = iv.difference_interval(a, np.ones(n), b, np.ones(n))
    known = confint_proportions_2indep(int(a.sum()), n, int(b.sum()), n, method="newcomb")
    np.testing.assert_allclose(found[:2], known, rtol=3e-3)


def test_pairing_makes_the_difference_narrower():
    rng = np.random.default_rng(4)
    trials = np.full(60, 5.0)
    ease = rng.beta(0.5, 0.5, 60)
    a, b = (rng.binomial(5, ease).astype(float) for _ in range(2))
    paired = np.diff(iv.difference_interval(a, trials, b, trials)[:2])[0]
    unpaired = np.diff(iv.difference_interval(a, trials, b[rng.permutation(60)], trials)[:2])[0]
    assert paired < 0.75 * unpaired


def test_a_method_without_any_information_is_known_exactly():
    """A constant embedding is at chance, 4 in 99, for every person: only the other method's bounds are left."""
    trials = np.full(20, 5.0)
    chance = np.full(20, 5.0 * 4 / 99)
    hits = np.random.default_rng(5).binomial(5, 0.5, 20).astype(float)
    found = iv.difference_interval(hits, trials, chance, trials)
    own = iv.rate_interval(hits, trials)
    np.testing.assert_allclose(found[:2], np.array(own[:2]) - 4 / 99, atol=1e-9)
    nobody = iv.difference_interval(np.zeros(20), trials, chance, trials)
    assert nobody.hi == pytest.approx(iv.zero_events_bound(20, 0.95) - 4 / 99)
    assert iv.difference_interval(chance, trials, 2 * chance, trials).reason == iv.NO_VARIANCE


def test_no_difference_seen_is_bounded_and_never_zero_width():
    hits, trials = np.array([1.0, 2, 0, 5] * 10), np.full(40, 5.0)
    bound = iv.zero_events_bound(40, 0.95)
    assert iv.difference_interval(hits, trials, hits, trials)[:2] == (-bound, bound)
    assert "no person differs" in iv.difference_interval(hits, trials, hits, trials).method
    none, every = np.zeros(40), trials
    assert iv.difference_interval(none, trials, none, trials)[:2] == (-bound, bound)
    far = iv.difference_interval(every, trials, none, trials)
    assert far.hi == 1
    assert far.lo == pytest.approx(1 - np.sqrt(2) * bound)


def test_differences_that_cannot_be_told():
    one = iv.difference_interval([1.0, 0.0], [5.0, 0.0], [2.0, 0.0], [5.0, 0.0])
    assert one.lo is None
    assert "one person" in one.reason
    shifted = iv.difference_interval([1.0, 2.0, 3.0], [5.0] * 3, [2.0, 3.0, 4.0], [5.0] * 3)
    assert shifted.reason == iv.NO_VARIANCE
    with pytest.raises(ValueError, match="same ones"):
        iv.difference_interval([1.0], [1.0], [1.0, 0.0], [1.0, 1.0])


def test_the_largest_of_one_is_that_one_and_of_many_is_not_the_luckiest():
    rng = np.random.default_rng(6)
    trials = np.full(80, 5.0)
    hits = rng.binomial(5, 0.2, (80, 6)).astype(float)
    np.testing.assert_allclose(iv.largest_interval(hits[:, :1], trials)[:2], iv.rate_interval(hits[:, 0], trials)[:2])
    best = int(hits.sum(0).argmax())
    alone, found = iv.rate_interval(hits[:, best], trials), iv.largest_interval(hits, trials)
    assert found.lo < alone.lo
    assert found.hi == pytest.approx(alone.hi, abs=0.01)
    none = iv.largest_interval(np.zeros((80, 3)), trials)
    assert none[:2] == (0.0, iv.zero_events_bound(80, 0.95))
    assert iv.largest_interval(np.full((80, 3), 0.2), trials).reason == iv.NO_VARIANCE
    assert "one person" in iv.largest_interval([[1.0, 2.0]], [5.0]).reason
    with pytest.raises(ValueError, match="attackers"):
        iv.largest_interval(np.ones(80), trials)


def test_false_match_interval_at_its_ends():
    a, b = (x.astype(np.intp) for x in np.triu_indices(10, 1))
    none, every = np.zeros(len(a), bool), np.ones(len(a), bool)
    assert iv.false_match_interval(none, a, b, 10)[:2] == (0.0, iv.zero_events_bound(10, 0.95))
    assert iv.false_match_interval(every, a, b, 10)[:2] == (1 - iv.zero_events_bound(10, 0.95), 1.0)
    one = none.copy()
    one[0] = True
    found = iv.false_match_interval(one, a, b, 10)
    assert 0 < found.lo < 1 / len(a) < found.hi < 1
    assert "share persons" in found.method
    empty = np.empty(0, np.intp)
    assert "no person" in iv.false_match_interval(np.empty(0, bool), empty, empty, 3).reason
    two = iv.false_match_interval(np.array([True, False]), np.zeros(2, np.intp), np.ones(2, np.intp), 2)
    assert two.lo is None
    assert "two persons" in two.reason


def test_wolves_make_the_false_match_interval_wider():
    """As many false matches, but all of one person with others."""
    a, b = (x.astype(np.intp) for x in np.triu_indices(40, 1))
    wolf = (a == 0) & (b <= 20)
    spread = np.zeros(len(a), bool)
    spread[np.flatnonzero((a + 1 == b) & (a % 2 == 0))] = True  # 20 disjoint pairs
    assert wolf.sum() == spread.sum() == 20
    wide, narrow = (np.diff(iv.false_match_interval(x, a, b, 40)[:2])[0] for x in (wolf, spread))
    assert wide > 2 * narrow


@pytest.mark.parametrize("call", [lambda: wilson.score_bounds(1.1, 10, 2), lambda: wilson.score_bounds(0.5, 0, 2)])
def test_impossible_rates_and_sizes_are_refused(call):
    with pytest.raises(ValueError, match="positive number of trials"):
        call()


def test_formulas_say_what_they_cannot_do():
    with pytest.raises(ValueError, match="two of them"):
        wilson.rate_variance([1.0], [2.0])
    with pytest.raises(ValueError, match="no trials"):
        wilson.rate_variance([0.0, 0.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="itself"):
        wilson.pair_rate_variance(np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="strictly between"):
        wilson.effective_size(0.0, 0.1, 10, 1, 1)
