"""Tests of paired methods, against published examples, independent implementations and brute force."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from deidbench.stats import intervals, paired

PERSONS = [f"p{i:02d}" for i in range(20)]

# Obuchowski 1998: glands of 21 patients that PET and SPECT rightly found free of disease, and how many there were.
PET = [0, 2, 3, 1, 2, 4, 3, 2, 2, 1, 2, 2, 3, 2, 0, 2, 2, 2, 2, 1, 2]
SPECT = [2, 3, 3, 1, 3, 4, 3, 2, 1, 1, 2, 2, 3, 2, 2, 2, 2, 3, 2, 1, 2]
GLANDS = [3, 3, 3, 1, 3, 4, 3, 2, 2, 1, 3, 2, 3, 2, 2, 3, 3, 3, 2, 1, 2]
# Donner & Petryshen 1989: items that only the patient, or only the psychiatrist, named; 29 psychiatrists, 135 patients.
PATIENT = [0, 1, 1, 1, 0, 3, 3, 3, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0]
PSYCHIATRIST = [4, 2, 3, 2, 1, 3, 0, 2, 2, 4, 2, 4, 3, 2, 1, 3, 1, 2, 0, 0, 0, 2, 1, 2, 2, 0, 0, 1, 1]
PATIENTS = [7, 6, 7, 6, 4, 6, 5, 8, 4, 7, 3, 6, 7, 6, 5, 4, 6, 5, 4, 3, 5, 4, 4, 2, 3, 2, 2, 3, 1]
# Hollander & Wolfe: depression factor of nine patients before and after, the example of R's wilcox.test.
BEFORE = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
AFTER = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def uar(sums):
    """Mean of three recalls, from hits and trials of each class."""
    cells = sums.reshape(*sums.shape[:-1], 3, 2)
    return np.mean(cells[..., 0] / cells[..., 1], axis=-1)


def rates(seed, fractional=False):
    """Hits and trials of two methods on the same images."""
    rng = np.random.default_rng(seed)
    trials = rng.integers(1, 6, len(PERSONS))
    hits = [rng.binomial(trials, q) / (3 if fractional else 1) for q in (0.6, 0.4)]
    return [np.column_stack([h, trials]).astype(float) for h in hits]


# --- McNemar


@pytest.mark.parametrize(
    ("a", "b", "trials", "modified", "published"),
    [
        (PET, SPECT, GLANDS, False, 2.86),  # Durkalski et al. 2003
        (PET, SPECT, GLANDS, True, 3.13),  # Yang et al. 2010
        (PATIENT, PSYCHIATRIST, PATIENTS, False, 7.19),
        (PATIENT, PSYCHIATRIST, PATIENTS, True, 8.43),
    ],
)
def test_clustered_mcnemar_gives_the_published_statistics(a, b, trials, modified, published):
    found = paired.clustered_mcnemar(a, b, trials, modified=modified)
    assert round(found.statistic, 2) == published
    assert found.p == pytest.approx(stats.chi2.sf(found.statistic, 1), rel=1e-10)
    assert found.persons == np.count_nonzero(np.array(a) != np.array(b))


def test_clustered_mcnemar_equals_the_long_form_of_obuchowski():
    """Variances and covariance of the two proportions under the pooled one, written out."""
    a, b, n = (np.array(x, float) for x in (PET, SPECT, GLANDS))
    k, pooled = len(n), (a.sum() + b.sum()) / (2 * n.sum())
    scale = k / (k - 1) / n.sum() ** 2
    u, v = a - n * pooled, b - n * pooled
    variance = scale * (np.sum(u * u) + np.sum(v * v) - 2 * np.sum(u * v))
    expected = ((a.sum() - b.sum()) / n.sum()) ** 2 / variance
    assert paired.clustered_mcnemar(a, b, n).statistic == pytest.approx(expected, rel=1e-12)


def test_clustered_mcnemar_with_one_image_a_person_is_nearly_mcnemar():
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, 300)) < [[0.5], [0.6]]).astype(float)
    table = [[np.sum((a == i) & (b == j)) for j in (1, 0)] for i in (1, 0)]
    reference = statsmodels_mcnemar(table, exact=False, correction=False)
    found = paired.clustered_mcnemar(a, b, np.ones(300))
    assert found.statistic == pytest.approx(reference.statistic * 299 / 300, rel=1e-12)
    assert found.p == pytest.approx(reference.pvalue, rel=0.02)


def test_images_that_are_copies_of_each_other_add_nothing():
    """Which a test that takes images for independent ones does not know."""
    rng = np.random.default_rng(3)
    a, b = (rng.random((2, 60)) < [[0.4], [0.6]]).astype(float)
    once, often = (paired.clustered_mcnemar(k * a, k * b, np.full(60, k)) for k in (1, 25))
    assert once.p == pytest.approx(often.p, rel=1e-12)
    naive = paired.exact_mcnemar(25 * int(np.sum(b > a)), 25 * int(np.sum(a > b)))
    assert naive.p < once.p / 1000


def test_persons_without_trials_are_no_clusters():
    a, b, n = ([*x, 0.0, 0.0] for x in (PET, SPECT, GLANDS))
    assert paired.clustered_mcnemar(a, b, n) == paired.clustered_mcnemar(PET, SPECT, GLANDS)


def test_clustered_mcnemar_that_cannot_be_made():
    same = paired.clustered_mcnemar([1, 2], [1, 2], [3, 3])
    assert same.p is None and same.persons == 0 and "same hits" in same.reason
    assert paired.clustered_mcnemar([0.1 + 0.2, 1], [0.3, 1], [3, 3]).p is None  # the same but for the last bit
    one = paired.clustered_mcnemar([1, 0], [0, 0], [3, 0])
    assert one.p is None and "one person" in one.reason
    with pytest.raises(ValueError, match="percentage"):
        paired.clustered_mcnemar([50.0, 1], [1, 1], [3, 3])
    with pytest.raises(ValueError, match="NaN"):
        paired.clustered_mcnemar([np.nan, 1], [1, 1], [3, 3])
    with pytest.raises(ValueError, match="per person"):
        paired.clustered_mcnemar([1, 1, 1], [1, 1], [3, 3])


def test_clustered_mcnemar_takes_expected_hits():
    a, b = np.array([0.5, 1.25, 2, 0]), np.array([1, 0.25, 2, 1.5])
    d = a - b
    assert paired.clustered_mcnemar(a, b, [2, 2, 2, 2]).statistic == pytest.approx(3 / 4 * d.sum() ** 2 / np.sum(d**2))


@pytest.mark.parametrize(("b01", "b10"), [(1, 7), (7, 1), (3, 3), (0, 5), (12, 40), (0, 1), (100, 130)])
def test_exact_mcnemar_equals_statsmodels(b01, b10):
    found = paired.exact_mcnemar(b01, b10)
    reference = statsmodels_mcnemar([[9, b10], [b01, 9]], exact=True)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-12)
    assert found.statistic == reference.statistic and found.persons == b01 + b10


def test_mid_p_of_the_published_example_and_of_the_definition():
    """Fagerland et al. 2013: stem cells and airways, 1 and 7 discordant children; exact .0703, mid-p .0391."""
    assert round(paired.exact_mcnemar(1, 7).p, 4) == 0.0703
    assert round(paired.exact_mcnemar(1, 7, mid_p=True).p, 4) == 0.0391
    for b01, b10 in [(1, 7), (4, 4), (0, 3), (9, 2)]:
        x = np.arange(b01 + b10 + 1)
        chance = stats.binom.pmf(x, b01 + b10, 0.5)
        far, seen = np.abs(x - (b01 + b10) / 2), abs(b01 - b10) / 2
        expected = chance[far > seen].sum() + chance[far == seen].sum() / 2
        assert paired.exact_mcnemar(b01, b10, mid_p=True).p == pytest.approx(expected, rel=1e-10)


def test_exact_mcnemar_that_cannot_be_made():
    assert paired.exact_mcnemar(0, 0).p is None
    for wrong in ((-1, 2), (0.5, 2)):
        with pytest.raises(ValueError, match="counted"):
            paired.exact_mcnemar(*wrong)


def test_mcnemar_is_exact_with_one_whole_image_a_person_only():
    a, b, one = np.array([1.0, 1, 0, 1, 0, 1]), np.array([0.0, 1, 1, 0, 0, 0]), np.ones(6)
    assert paired.mcnemar(a, b, one) == paired.exact_mcnemar(1, 3)
    assert "clustered" in paired.mcnemar(a / 2, b, one).method
    assert "clustered" in paired.mcnemar(a, b, one + 1).method


def test_level_of_clustered_mcnemar_where_images_of_a_person_depend():
    """Persons differ in which method suits them, so a test over images rejects far too often, and this one does not."""
    rng = np.random.default_rng(4)
    clustered, naive = [], []
    for _ in range(400):
        leaning = rng.normal(0, 0.3, 60)
        hits = [rng.binomial(10, np.clip(0.5 + sign * leaning, 0, 1)) for sign in (1, -1)]
        clustered.append(paired.clustered_mcnemar(*hits, np.full(60, 10)).p < 0.05)
        # discordant images, at the least that these sums allow
        more = np.clip(hits[0] - hits[1], 0, None).sum(), np.clip(hits[1] - hits[0], 0, None).sum()
        naive.append(paired.exact_mcnemar(int(more[1]), int(more[0])).p < 0.05)
    assert 0.02 < np.mean(clustered) < 0.085
    assert np.mean(naive) > 0.2


# --- swaps


def test_swaps_depend_on_seed_and_persons_only():
    signs = paired.swap_signs(PERSONS, 2000, 3)
    assert signs.shape == (2000, 20) and set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 0.03
    assert np.abs(np.corrcoef(signs.T.astype(float)) - np.eye(20)).max() < 0.1
    np.testing.assert_array_equal(signs, paired.swap_signs(tuple(PERSONS), 2000, 3))
    np.testing.assert_array_equal(signs[:777], paired.swap_signs(PERSONS, 777, 3))
    assert not np.array_equal(signs, paired.swap_signs(PERSONS, 2000, 4))
    assert not np.array_equal(signs, paired.swap_signs([p + "x" for p in PERSONS], 2000, 3))
    with pytest.raises(ValueError, match="sorted and unique"):
        paired.swap_signs(["b", "a"], 3, 0)


@pytest.mark.parametrize("fractional", [False, True])
def test_swap_test_equals_a_loop(fractional):
    a, b = rates(0, fractional=fractional)
    found = paired.swap_test(a, b, ratio, PERSONS, permutations=500, seed=7)
    count, observed = 0, abs(a[:, 0].sum() / a[:, 1].sum() - b[:, 0].sum() / b[:, 1].sum())
    for signs in paired.swap_signs(PERSONS, 500, 7):
        x = np.where(signs[:, None] > 0, a, b).sum(0)
        y = np.where(signs[:, None] > 0, b, a).sum(0)
        count += abs(x[0] / x[1] - y[0] / y[1]) >= observed - 1e-12
    assert 1 < count < 500
    assert found.p == (1 + count) / 501
    assert found.statistic == pytest.approx(a[:, 0].sum() / a[:, 1].sum() - b[:, 0].sum() / b[:, 1].sum())
    assert found.persons == np.count_nonzero(a[:, 0] != b[:, 0]) and "500 draws" in found.method


def test_few_persons_are_swapped_in_all_ways():
    rng = np.random.default_rng(1)
    persons = PERSONS[:7]
    a, b = rng.integers(1, 6, (2, 7, 6)).astype(float)
    b[3] = a[3]  # tells nothing
    found = paired.swap_test(a, b, uar, persons)
    different = [0, 1, 2, 4, 5, 6]
    far = []
    for choice in itertools.product([False, True], repeat=6):
        swapped = np.zeros(7, bool)
        swapped[different] = choice
        x, y = np.where(swapped[:, None], b, a).sum(0), np.where(swapped[:, None], a, b).sum(0)
        far.append(abs(uar(x) - uar(y)))
    assert found.p == np.mean(np.array(far) >= far[0] - 1e-12)
    assert 2 / 64 < found.p < 1
    assert found.persons == 6 and found.method == "exact person swap permutation over 6 persons, all 64"


def test_enumeration_and_draws_agree():
    rng = np.random.default_rng(5)
    a, b = (np.column_stack([rng.random(12) + shift, np.ones(12)]) for shift in (0.2, 0))
    exact = paired.swap_test(a, b, ratio, PERSONS[:12])
    drawn = paired.swap_test(a, b, ratio, PERSONS[:12], permutations=4000)
    assert exact.persons == 12 and "all 4096" in exact.method and "4000 draws" in drawn.method
    assert 0.01 < exact.p < 0.5
    assert exact.p == pytest.approx(drawn.p, abs=4 * np.sqrt(exact.p / 4000))


def test_sides_can_be_exchanged():
    a, b = rates(6)
    there, back = (paired.swap_test(*x, ratio, PERSONS, permutations=999) for x in ((a, b), (b, a)))
    assert there.p == back.p and there.statistic == -back.statistic


def test_all_persons_differ_the_same_way():
    a = np.column_stack([np.ones(10), np.ones(10)])
    b = np.column_stack([np.zeros(10), np.ones(10)])
    found = paired.swap_test(a, b, ratio, PERSONS[:10])
    assert found.p == 2 / 2**10 and found.statistic == 1


def test_one_person_who_differs_is_no_evidence():
    a, b = rates(0)
    b = a.copy()
    b[4, 0] += 1
    found = paired.swap_test(a, b, ratio, PERSONS)
    assert found.p == 1 and found.persons == 1


def test_swap_tests_that_cannot_be_made():
    a, b = rates(0)
    same = paired.swap_test(a, a, ratio, PERSONS)
    assert same.p is None and same.statistic == 0 and "do not differ" in same.reason
    one = paired.swap_test(a[:1], b[:1] + 1, ratio, PERSONS[:1])
    assert one.p is None and "one person" in one.reason
    nothing = paired.swap_test(a * [1, 0], b * [1, 0], ratio, PERSONS)
    assert nothing.p is None and "one of the methods has no figure" in nothing.reason
    with pytest.raises(ValueError, match="one row for each of 20 persons"):
        paired.swap_test(a[:5], b[:5], ratio, PERSONS)
    with pytest.raises(ValueError, match="finite"):
        paired.swap_test(a * np.nan, b, ratio, PERSONS)
    with pytest.raises(ValueError, match="one permutation"):
        paired.swap_test(a, b, ratio, PERSONS, permutations=0)


def test_permutations_without_a_figure_count_as_extreme():
    """A retention that has no value unless the first eight persons are not all on one side."""
    rng = np.random.default_rng(0)
    a = np.column_stack([rng.random(20), np.zeros(20)])
    b = np.column_stack([rng.random(20), np.zeros(20)])
    a[:3, 1], b[3:6, 1] = 1, 1
    mean = rng.normal(0, 1, 20)
    a[:, 0], b[:, 0] = mean + 0.1, mean

    def figure(sums):
        return np.where(sums[..., 1] > 0, sums[..., 0], np.nan)

    found = paired.swap_test(a, b, figure, PERSONS, permutations=2000, seed=1)
    count = empty = 0
    for signs in paired.swap_signs(PERSONS, 2000, 1):
        x, y = np.where(signs[:, None] > 0, a, b).sum(0), np.where(signs[:, None] > 0, b, a).sum(0)
        if min(x[1], y[1]) <= 0:
            empty += 1
        else:
            count += abs(x[0] - y[0]) >= 20 * 0.1 - 1e-9
    assert 0 < empty < 100
    assert found.p == (1 + count + empty) / 2001 and f"{empty} without a figure" in found.method
    a[1:3, 1], b[4:6, 1] = 0, 0  # now in half of them
    found = paired.swap_test(a, b, figure, PERSONS, permutations=2000, seed=1)
    assert found.p is None and "no figure" in found.reason and found.statistic == pytest.approx(2)


def test_many_pairs_at_once_are_the_same_as_one_by_one():
    rng = np.random.default_rng(8)
    confusion = [rng.integers(1, 5, (20, 6)).astype(float) for _ in range(3)]
    whole, parts = rates(1), rates(2, fractional=True)
    few = [x.copy() for x in whole]
    few[1][5:] = few[0][5:]
    pairs = [
        paired.Pair(*whole, ratio),
        paired.Pair(*parts, ratio),
        (confusion[0], confusion[1], uar),
        paired.Pair(*few, ratio),
        (confusion[0], confusion[0], uar),
        (confusion[1], confusion[2], uar),
    ]
    found = paired.swap_tests(pairs, PERSONS, permutations=700, seed=3)
    assert found == [paired.swap_test(*pair, PERSONS, permutations=700, seed=3) for pair in pairs]
    assert found[4].p is None and "exact" in found[3].method
    assert len({test.p for test in found}) == 6
    assert paired.swap_tests([], PERSONS) == []


def test_blocks_do_not_show(monkeypatch):
    pairs = [(*rates(seed, fractional=seed % 2 == 1), ratio) for seed in range(6)]
    few = [(a[:9], b[:9], ratio) for a, b, _ in pairs]
    plain = paired.swap_tests(pairs, PERSONS, permutations=300), paired.swap_tests(few, PERSONS[:9])
    monkeypatch.setattr(paired, "_BLOCK", 400)
    monkeypatch.setattr(paired, "_COLUMNS", 3)
    assert plain == (paired.swap_tests(pairs, PERSONS, permutations=300), paired.swap_tests(few, PERSONS[:9]))


def test_a_comparison_of_ten_methods_takes_seconds():
    rng = np.random.default_rng(0)
    persons = [f"p{i:04d}" for i in range(500)]
    trials = rng.integers(1, 10, 500)
    methods = [np.column_stack([rng.binomial(trials, 0.5), trials]).astype(float) for _ in range(10)]
    pairs = [(a, b, ratio) for a, b in itertools.combinations(methods, 2)] * 12
    start = time.perf_counter()
    found = paired.swap_tests(pairs, persons)
    assert time.perf_counter() - start < 60  # about three on two idle cores
    assert len(found) == 540 and found[:45] == found[45:90]


def test_level_of_the_swap_test_where_images_of_a_person_depend():
    rng = np.random.default_rng(9)
    persons, small = PERSONS[:15], []
    for _ in range(400):
        leaning = np.clip(0.5 + np.outer([1, -1], rng.normal(0, 0.3, 15)), 0, 1)
        trials = rng.integers(1, 30, 15)
        hits = rng.binomial(trials, leaning)
        test = paired.swap_test(*(np.column_stack([h, trials]) for h in hits), ratio, persons, permutations=199)
        small.append(test.p <= 0.1)
    assert 0.065 < np.mean(small) < 0.135


# --- sign flips


def test_sign_flips_of_few_persons_equal_all_of_them():
    rng = np.random.default_rng(0)
    d = rng.normal(0.4, 1, 9)
    w = rng.integers(1, 5, 9).astype(float)
    found = paired.sign_flip(d, PERSONS[:9], w)
    far = [abs(np.sum(w * d * s)) for s in itertools.product([1, -1], repeat=9)]
    assert found.p == np.mean(np.array(far) >= far[0] - 1e-12)
    assert 2 / 2**9 < found.p < 1
    assert found.statistic == pytest.approx(np.average(d, weights=w))
    assert found.method == "exact sign-flip permutation over 9 persons, all 512"


def test_sign_flip_equals_scipy():
    d = np.random.default_rng(3).normal(0.6, 1, 10)
    reference = stats.permutation_test((d, np.zeros(10)), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert paired.sign_flip(d, PERSONS[:10]).p == pytest.approx(reference.pvalue, rel=1e-9)


def test_sign_flip_is_a_swap_of_the_two_figures():
    a, b = rates(0)
    weights = a[:, 1]
    flipped = paired.sign_flip((a[:, 0] - b[:, 0]) / weights, PERSONS, weights, permutations=999)
    swapped = paired.swap_test(a, b, ratio, PERSONS, permutations=999)
    assert flipped.p == swapped.p and flipped.statistic == pytest.approx(swapped.statistic)
    assert flipped.method == f"sign-flip permutation over {flipped.persons} persons, 999 draws"


def test_persons_without_a_difference_do_not_change_a_sign_flip():
    d = np.random.default_rng(1).normal(0.3, 1, 8)
    lacking = np.concatenate([d, [np.nan, np.nan]])
    found = paired.sign_flip(lacking, PERSONS[:10])
    assert found.p == paired.sign_flip(d, PERSONS[:8]).p
    assert found.statistic == pytest.approx(d.mean()) and "2 persons without a figure left out" in found.method
    assert paired.sign_flip([0.0, 0, 0], PERSONS[:3]).p is None
    assert "one person" in paired.sign_flip([0.5, np.nan], PERSONS[:2]).reason
    with pytest.raises(ValueError, match="negative"):
        paired.sign_flip([1.0, 2], PERSONS[:2], [1, -1])
    with pytest.raises(ValueError, match="each of 3 persons"):
        paired.sign_flip([1.0, 2], PERSONS[:3])


# --- Wilcoxon, Hodges-Lehmann


def test_the_example_of_hollander_and_wolfe():
    """R: V = 40, p = 0.0390625, (pseudo)median 0.46, 95 % interval 0.010 to 0.786 (96.1 % reached)."""
    found = paired.wilcoxon_persons(BEFORE, AFTER)
    assert found.test.statistic == 40 and found.test.p == pytest.approx(0.0390625, abs=1e-12)
    assert found.shift == pytest.approx(0.46) and found.persons == 9
    assert found.interval.lo == pytest.approx(0.010) and found.interval.hi == pytest.approx(0.786)
    assert "96.1 % reached" in found.interval.method
    assert found.rank_biserial == pytest.approx((40 - 5) / 45)
    back = paired.wilcoxon_persons(AFTER, BEFORE)
    assert back.test.p == found.test.p and back.shift == -found.shift and back.rank_biserial == -found.rank_biserial


def test_the_example_of_demsar_with_a_tie_and_two_zeros():
    """Demsar 2006, table 2: C4.5 with and without m; both rules for zeros by scipy, the exact p by all sign changes."""
    plain = [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957]
    tuned = [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978]
    found = paired.wilcoxon_persons(tuned, plain)
    d = np.round(np.subtract(tuned, plain), 10)
    ranks = stats.rankdata(np.abs(d))
    signs = np.array(list(itertools.product([0, 1], repeat=12)))
    null = signs @ ranks[d != 0]
    plus, half = ranks[d > 0].sum(), ranks[d != 0].sum() / 2
    assert found.zeros == 2 and found.test.persons == 12 and found.test.statistic == plus
    assert found.test.p == pytest.approx(np.mean(np.abs(null - half) >= abs(plus - half) - 1e-9), rel=1e-12)
    assert found.test.p == pytest.approx(stats.wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue, abs=0.005)
    assert found.rank_biserial == pytest.approx((plus - ranks[d < 0].sum()) / (14 * 15 / 2))


@pytest.mark.parametrize("n", [4, 9, 20, 50])
def test_signed_ranks_equal_scipys_exact_ones(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.2, 1, n), rng.normal(0, 1, n)
    assert paired.signed_rank(a, b).p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_many_signed_ranks_equal_scipys_normal_approximation(seed):
    """With ties and zeros."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 9, 120) / 8, rng.integers(0, 8, 120) / 8
    found = paired.signed_rank(a, b)
    assert found.p == pytest.approx(stats.wilcoxon(a, b, zero_method="pratt", method="asymptotic").pvalue, rel=1e-9)
    assert "zeros ranked" in found.method and "normal" in found.method


def test_normal_approximation_takes_over_without_a_step(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.7, 1, 50), rng.normal(0, 1, 50)
    exact = paired.wilcoxon_persons(a, b)
    monkeypatch.setattr(paired, "_EXACT_RANKS", 49)
    normal = paired.wilcoxon_persons(a, b)
    assert "exact" in exact.test.method and "normal" in normal.test.method
    assert 0.001 < exact.test.p < 0.1
    assert normal.test.p == pytest.approx(exact.test.p, abs=0.003)
    assert normal.interval.lo == pytest.approx(exact.interval.lo, abs=0.01)
    assert normal.interval.hi == pytest.approx(exact.interval.hi, abs=0.01)


def test_rounding_breaks_no_tie_and_makes_no_rank_of_a_zero():
    a, b = np.array([0.3, 0.1 + 0.2, 0.7, 1.0]), np.array([0.2, 0.3, 0.6, 0.4])
    found = paired.wilcoxon_persons(a, b)  # 0.1 twice but for the last bit, 0 but for the last bit, 0.6
    assert found.zeros == 1 and found.test.statistic == 2.5 + 2.5 + 4
    assert found.test.p == pytest.approx(0.25) and paired.signed_rank(a, b) == found.test


@pytest.mark.parametrize("n", [2, 7, 8, 30, 101])
def test_shift_is_the_median_of_all_walsh_averages(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(1, 2, n), rng.exponential(1, n)
    d = a - b
    averages = [(d[i] + d[j]) / 2 for i in range(n) for j in range(i, n)]
    assert paired.wilcoxon_persons(a, b).shift == pytest.approx(np.median(averages), abs=1e-12)


@pytest.mark.parametrize("kind", ["normal", "heavy", "tied", "outlier"])
def test_selection_among_walsh_averages_equals_sorting_them(kind):
    rng = np.random.default_rng(0)
    n = 1500
    x = {
        "normal": rng.normal(0.3, 1, n),
        "heavy": rng.standard_cauchy(n),
        "tied": rng.integers(-3, 9, n) / 7,
        "outlier": np.where(np.arange(n) == 3, 1e12, rng.normal(0, 1e-6, n)),
    }[kind]
    sums = np.sort(np.add.outer(x, x)[np.triu_indices(n)]) / 2
    wanted = [0, 1, len(sums) // 7, len(sums) // 2, len(sums) - 2, len(sums) - 1]
    assert paired._walsh(x, wanted) == pytest.approx(sums[wanted], rel=1e-12, abs=1e-15)


def test_five_thousand_persons_are_fine():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, (2, 5000)) * [[1], [0.9]]
    start = time.perf_counter()
    found = paired.wilcoxon_persons(a, b)
    assert time.perf_counter() - start < 10  # a tenth of a second
    assert found.interval.lo < found.shift < found.interval.hi
    assert found.shift == pytest.approx(np.mean(a - b), abs=0.02)


def test_shift_interval_covers_and_says_no_more_than_it_can():
    rng = np.random.default_rng(7)
    for n, least in ((12, 0.92), (70, 0.92)):
        inside = []
        for _ in range(300):
            d = rng.laplace(0.5, 1, n)
            lo, hi = paired.wilcoxon_persons(d, np.zeros(n)).interval[:2]
            inside.append(lo <= 0.5 <= hi)
        assert least < np.mean(inside) < 0.99
    five = paired.wilcoxon_persons(np.arange(1.0, 6), np.zeros(5))
    assert five.interval.lo is None and "93.8 %" in five.interval.reason and five.shift == 3
    assert five.test.p == 2 / 32
    six = paired.wilcoxon_persons(np.arange(1.0, 7), np.zeros(6)).interval
    assert (six.lo, six.hi) == (1, 6) and "96.9 %" in six.method
    assert paired.wilcoxon_persons(np.arange(1.0, 6), np.zeros(5), level=0.9).interval.lo == 1


def test_interval_and_test_agree():
    rng = np.random.default_rng(11)
    both = set()
    for _ in range(200):
        found = paired.wilcoxon_persons(rng.normal(0.5, 1, 15), np.zeros(15))
        excludes = found.interval.lo > 0 or found.interval.hi < 0
        assert excludes == (found.test.p < 0.05)
        both.add(excludes)
    assert both == {True, False}


def test_nan_persons_are_dropped_from_both():
    a, b = np.append(BEFORE, [np.nan, 1, np.nan]), np.append(AFTER, [1, np.nan, np.nan])
    found, whole = paired.wilcoxon_persons(a, b), paired.wilcoxon_persons(BEFORE, AFTER)
    assert found.dropped == 3 and found.persons == 9
    assert (found.test.p, found.shift, found.interval[:2]) == (whole.test.p, whole.shift, whole.interval[:2])
    assert "3 persons without a figure left out" in found.test.method


def test_wilcoxon_that_cannot_be_made():
    same = paired.wilcoxon_persons(BEFORE, BEFORE)
    assert same.test.p is None and "do not differ" in same.test.reason
    assert same.shift == 0 and same.interval.lo is None and same.rank_biserial is None and same.zeros == 9
    alike = paired.wilcoxon_persons(np.arange(12) / 10 + 0.7, np.arange(12) / 10)  # by 0.7, but for the last bits
    assert alike.test.p == 2 / 2**12 and alike.shift == pytest.approx(0.7) and alike.rank_biserial == 1
    assert alike.interval.lo is None and alike.interval.reason == "no variance between persons"
    mostly = paired.wilcoxon_persons(np.append(np.arange(30.0), 99), np.append(np.arange(30.0), 98))
    assert mostly.shift == 0 and mostly.interval.lo is None and mostly.test.p == 1
    one = paired.wilcoxon_persons([1.0], [2.0])
    assert one.test.p is None and one.interval.lo is None and one.shift == -1 and "one person" in one.test.reason
    none = paired.wilcoxon_persons([np.nan], [2.0])
    assert none.test.p is None and none.shift is None and none.dropped == 1
    with pytest.raises(ValueError, match="infinite"):
        paired.wilcoxon_persons([np.inf, 1], [1, 2])
    with pytest.raises(ValueError, match="shapes"):
        paired.wilcoxon_persons([1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="level"):
        paired.wilcoxon_persons([1, 1], [1, 2], level=95)


# --- replicates


def test_bootstrap_test_of_a_mean_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    d = rng.normal(0.6, 1, 20)
    draws = intervals.person_draws(PERSONS, 20_000, 0)
    found = paired.bootstrap_test(d.mean(), draws @ d / 20, 20)
    reference = stats.ttest_1samp(d, 0)
    assert found.statistic == pytest.approx(reference.statistic, rel=0.02)
    assert found.p == pytest.approx(reference.pvalue, rel=0.1)
    assert 0.01 < found.p < 0.5
    assert "19 degrees of freedom" in found.method


def test_bootstrap_test_is_what_it_says():
    replicates = np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.3])
    t = 0.2 / (np.std(replicates, ddof=1) * np.sqrt(10 / 9))
    found = paired.bootstrap_test(0.2, replicates, 10)
    assert found.statistic == pytest.approx(t) and found.p == pytest.approx(2 * stats.t.sf(t, 9))


def test_bootstrap_tests_that_cannot_be_made():
    good = np.linspace(0, 1, 100)
    assert "one person" in paired.bootstrap_test(0.5, good, 1).reason
    assert "no variance" in paired.bootstrap_test(0.0, np.zeros(100), 10).reason
    assert "no figure" in paired.bootstrap_test(None, good, 10).reason
    assert "no figure" in paired.bootstrap_test(float("nan"), good, 10).reason
    few = good.copy()
    few[:5] = np.nan
    found = paired.bootstrap_test(0.5, few, 10)
    assert found.p is not None and "5 empty ones left out" in found.method
    few[:6] = np.nan
    lost = paired.bootstrap_test(0.5, few, 10)
    assert lost.p is None and "6 of 100" in lost.reason and lost.statistic == 0.5


# --- speed


def test_log_ratio_of_one_that_is_twice_as_slow():
    rng = np.random.default_rng(0)
    machine = rng.lognormal(0, 1, 15)  # slows both down
    a, b = 2 * machine * rng.lognormal(0, 0.05, 15), machine * rng.lognormal(0, 0.05, 15)
    found = paired.log_ratio(a, b)
    assert found.ratio == pytest.approx(2, rel=0.05) and found.repeats == 15
    assert np.exp(found.interval.lo) < 2 < np.exp(found.interval.hi)
    assert found.interval.hi - found.interval.lo < 0.2
    logs = np.sort(np.log(a / b))
    assert (found.value, found.interval.lo, found.interval.hi) == pytest.approx((logs[7], logs[3], logs[11]))
    assert found.p == 2 / 2**15
    back = paired.log_ratio(b, a)
    assert back.value == pytest.approx(-found.value) and back.interval.lo == pytest.approx(-found.interval.hi)


@pytest.mark.parametrize("n", [6, 9, 15, 40, 101])
def test_order_statistics_reach_the_level_and_no_narrower_ones_do(n):
    a = np.exp(np.arange(n) + 1.0)
    interval = paired.log_ratio(a, np.ones(n)).interval
    low = round(interval.lo)  # a[low - 1] is the lower end
    assert round(interval.hi) == n + 1 - low

    def coverage(k):
        return 1 - 2 * stats.binom.cdf(k - 1, n, 0.5)

    assert coverage(low) >= 0.95 > coverage(low + 1)


def test_log_ratio_that_cannot_be_given():
    five = paired.log_ratio([1.0, 2, 3, 4, 5], [1.0] * 5)
    assert five.value == pytest.approx(np.log(3)) and five.interval.lo is None and five.p is None
    assert five.reason == "5 repeats: a distribution-free interval of the median takes 6"
    assert paired.log_ratio([1.0, 2, 3, 4, 5, 6], [1.0] * 6).interval.lo == 0
    assert "takes 8" in paired.log_ratio([1.0], [1.0], level=0.99).reason
    assert paired.log_ratio([np.nan], [1.0]).ratio is None
    assert "no variance" in paired.log_ratio([2.0] * 9, [1.0] * 9).reason
    with pytest.raises(ValueError, match="positive"):
        paired.log_ratio([0.0, 1], [1.0, 1])
    with pytest.raises(ValueError, match="pairs"):
        paired.log_ratio([1.0, 1], [1.0])
    with pytest.raises(ValueError, match="level"):
        paired.log_ratio([1.0, 1], [1.0, 1], level=1.0)
