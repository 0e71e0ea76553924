"""Ranks over many data sets, against published examples and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from deidbench.stats.many import cliques, friedman, ranks_per_dataset

# Demsar 2006, table 6: AUC of C4.5 and three variants (m, cf, m + cf) on 14 data sets.  The paper prints .975 twice for the
# last but one, and ranks the first of them before the second.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)
VARIANTS = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]


def test_the_example_of_demsar():
    """Average ranks 3.143, 2.000, 2.893, 1.964; chi-square 9.28 and F 3.69 without a correction for ties."""
    found = friedman(DEMSAR, VARIANTS, higher_is_better=True)
    assert [round(r, 3) for r in found.ranks] == [3.143, 2.000, 2.893, 1.964]
    plain = 12 * 14 / (4 * 5) * (np.sum(np.square(found.ranks)) - 4 * 25 / 4)
    assert round(plain, 2) == 9.28 and round(13 * plain / (14 * 3 - plain), 2) == 3.69
    # Corrected: the variance of the ranks as they are, instead of that of ranks without ties.
    ranks = ranks_per_dataset(DEMSAR, True)
    corrected = 14**2 * np.sum((np.array(found.ranks) - 2.5) ** 2) / (np.sum((ranks - 2.5) ** 2) / 3)
    assert found.chi2 == pytest.approx(corrected, rel=1e-12)
    assert found.chi2_p == pytest.approx(stats.chi2.sf(corrected, 3), rel=1e-9)
    assert found.f == pytest.approx(13 * corrected / (14 * 3 - corrected))
    assert found.f_p == pytest.approx(stats.f.sf(found.f, 3, 39), rel=1e-9)
    assert 0.001 < found.f_p < found.chi2_p < 0.05
    assert found.p == pytest.approx(found.f_p, abs=0.01) and "10000 random orders" in found.method
    assert found.n == 14 and found.names == tuple(VARIANTS) and not found.left_out and not found.reason


def test_friedman_of_r():
    """R's friedman.test of Demsar's table, and of one with many ties."""
    found = friedman(DEMSAR, VARIANTS, higher_is_better=True)
    assert (found.chi2, found.chi2_p) == pytest.approx((10.2283464566929, 0.0167215803284414), rel=1e-10)
    tied = np.array(
        [
            [4, 3, 5, 3, 5, 3, 2, 5, 4, 4, 4, 3],
            [2, 2, 1, 2, 3, 1, 2, 3, 2, 1, 1, 3],
            [2, 4, 3, 3, 4, 3, 3, 4, 4, 1, 2, 1],
            [3, 5, 4, 3, 4, 4, 3, 3, 3, 4, 4, 4],
        ]
    ).T
    for higher in (True, False):
        found = friedman(tied, list("abcd"), higher_is_better=higher)
        assert (found.chi2, found.chi2_p) == pytest.approx((18.9428571428571, 0.000280938375189499), rel=1e-10)
    assert found.ranks[1] == min(found.ranks)  # lower is better


@pytest.mark.parametrize("tied", [False, True])
def test_p_is_that_of_all_orders_of_a_small_table(tied):
    x = np.random.default_rng(3).normal([0.8, 0, 0], 1, (5, 3))
    if tied:
        x = np.rint(x)
    found = friedman(x, list("abc"), higher_is_better=True)
    ranks = ranks_per_dataset(x, True)
    seen, null = stats.friedmanchisquare(*ranks.T)[0], []
    for orders in itertools.product(itertools.permutations(range(3)), repeat=4):
        shuffled = [ranks[0], *(row[list(order)] for row, order in zip(ranks[1:], orders, strict=True))]
        null.append(np.sum(np.sum(shuffled, 0) ** 2))
    assert found.p == np.mean(np.array(null) >= np.sum(ranks.sum(0) ** 2) - 1e-9)
    assert found.chi2 == pytest.approx(seen) and 0.01 < found.p < 0.6
    assert found.method == "Friedman, exact over all orders within 5 data sets"
    drawn = friedman(x, list("abc"), higher_is_better=True, permutations=1200)
    assert "1200 random" in drawn.method and drawn.p == pytest.approx(found.p, abs=4 * np.sqrt(found.p / 1200))


def test_complete_agreement_beyond_enumeration_has_the_smallest_p_there_is():
    found = friedman(np.arange(9)[:, None] + np.arange(5) / 10, list("abcde"), higher_is_better=True, permutations=200)
    assert found.p == 1 / 201 and found.f is None


def test_p_depends_on_seed_and_names_only():
    rng = np.random.default_rng(0)
    x, sets = rng.integers(0, 4, (9, 4)), [f"set{i}" for i in range(9)]  # with ties: data sets have different ranks to shuffle
    found = friedman(x, list("abcd"), sets, higher_is_better=True)
    order, turn = rng.permutation(9), [2, 0, 3, 1]
    again = friedman(x[order][:, turn], [*"cadb"], [sets[i] for i in order], higher_is_better=True)
    assert found.p == again.p and found.ranks == pytest.approx(tuple(again.ranks[turn.index(i)] for i in range(4)))
    assert found.p != friedman(x, list("abcd"), sets, higher_is_better=True, seed=1).p
    assert found.p != friedman(x, list("abcd"), [s + "x" for s in sets], higher_is_better=True).p


def test_ranks_share_ties_and_know_which_end_is_good():
    assert ranks_per_dataset([[0.1, 0.3, 0.2]], True).tolist() == [[3, 1, 2]]
    assert ranks_per_dataset([[0.1, 0.3, 0.2]], False).tolist() == [[1, 3, 2]]
    assert ranks_per_dataset([[0.3, 0.1 + 0.2, 0.2]], True).tolist() == [[1.5, 1.5, 3]]
    assert ranks_per_dataset([[0, 0, 0]], True).tolist() == [[2, 2, 2]]
    with pytest.raises(ValueError, match="finite"):
        ranks_per_dataset([[np.nan, 1]], True)


def test_pairs_are_wilcoxon_and_holm():
    rng = np.random.default_rng(2)
    x = rng.normal([0, 0.2, 2, 4], 1, (12, 4))
    found = friedman(x, list("abcd"), higher_is_better=True)
    plain = [stats.wilcoxon(x[:, i], x[:, j], method="exact").pvalue for i, j in itertools.combinations(range(4), 2)]
    assert [pair.test.p for pair in found.pairs] == pytest.approx(plain, rel=1e-9)
    assert [pair.adjusted for pair in found.pairs] == pytest.approx(multipletests(plain, method="holm")[1], rel=1e-9)
    assert [(pair.first, pair.second) for pair in found.pairs] == list(itertools.combinations("abcd", 2))
    assert [pair.different for pair in found.pairs] == [pair.adjusted < 0.05 for pair in found.pairs]
    assert {pair.different for pair in found.pairs} == {True, False}
    assert [sorted(c) for c in found.cliques] == [[0, 1]] and found.names[3] == "d" and found.ranks[3] == min(found.ranks)


def test_other_methods_do_not_change_what_two_are_told():
    """As they do with mean ranks (Benavoli et al. 2016)."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (12, 6)) + np.arange(6)
    few, many = (friedman(x[:, :k], list("abcdef")[:k], higher_is_better=True) for k in (3, 6))
    assert few.pairs[0].test == many.pairs[0].test


def test_pairs_wait_for_friedman():
    """A pair that Wilcoxon tells apart, in a table in which Friedman sees nothing."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        x = rng.normal([0, 0, 0.6], 1, (10, 3))
        found = friedman(x, list("abc"), higher_is_better=True)
        if found.p >= 0.05 and any(pair.adjusted < 0.05 for pair in found.pairs):
            break
    else:
        pytest.fail("no such table")
    assert not any(pair.different for pair in found.pairs)
    assert [sorted(c) for c in found.cliques] == [[0, 1, 2]]


def test_level_of_friedman_and_of_any_pair():
    rng = np.random.default_rng(5)
    found = [friedman(rng.normal(0, 1, (10, 4)), list("abcd"), higher_is_better=True, permutations=499) for _ in range(300)]
    assert 0.02 < np.mean([f.p < 0.05 for f in found]) < 0.085
    assert np.mean([any(pair.different for pair in f.pairs) for f in found]) < 0.05


def apart(k, *pairs):
    out = np.zeros((k, k), bool)
    for i, j in pairs:
        out[i, j] = True
    return out


@pytest.mark.parametrize(
    ("ranks", "pairs", "expected"),
    [
        ([1, 2, 3], [], [(0, 1, 2)]),
        ([1, 2, 3], [(0, 1), (0, 2), (1, 2)], []),
        ([1, 2, 3], [(0, 2)], [(0, 1), (1, 2)]),  # overlap
        ([3, 1, 2], [(0, 1)], [(1, 2), (2, 0)]),
        ([1, 2, 3, 4], [(0, 3)], [(0, 1, 2), (1, 2, 3)]),
        ([1, 2, 3, 4], [(0, 2), (0, 3), (1, 3)], [(0, 1), (1, 2), (2, 3)]),
        ([1, 2, 3, 4], [(0, 1), (0, 2), (0, 3)], [(1, 2, 3)]),
        ([1, 2, 3, 4], [(1, 2)], [(0, 1), (2, 3)]),  # the first and the last are alike, but no neighbours
        ([1], [], []),
    ],
)
def test_cliques(ranks, pairs, expected):
    assert cliques(ranks, apart(len(ranks), *pairs)) == tuple(expected)


@pytest.mark.parametrize("seed", range(20))
def test_cliques_equal_all_runs_that_qualify(seed):
    rng = np.random.default_rng(seed)
    k = 7
    ranks, table = rng.permutation(k) + 1.0, np.triu(rng.random((k, k)) < 0.15, 1)
    order = np.argsort(ranks)
    both = table | table.T
    runs = [tuple(order[i:j]) for i in range(k) for j in range(i + 2, k + 1)]
    good = [r for r in runs if not both[np.ix_(r, r)].any()]
    largest = [r for r in good if not any(set(r) < set(other) for other in good)]
    assert cliques(ranks, table) == tuple(largest)


def test_cliques_refuse_another_table():
    with pytest.raises(ValueError, match="3 methods"):
        cliques([1, 2, 3], np.zeros((2, 2), bool))


def test_fewer_than_five_data_sets_are_refused():
    found = friedman(DEMSAR[:4], VARIANTS, higher_is_better=True)
    assert found.p is None and not found.ranks and not found.pairs and not found.cliques
    assert found.reason == "4 data sets: ranks take at least 5" and found.n == 4


def test_five_data_sets_cannot_tell_two_methods_apart_and_say_so():
    x = np.arange(5)[:, None] + [0.0, 0.1, 0.2] + np.random.default_rng(0).normal(0, 0.01, (5, 3))
    found = friedman(x, list("abc"), higher_is_better=True)
    assert found.ranks == (3, 2, 1)
    assert found.f is None and found.f_p is None and found.chi2 == pytest.approx(10)
    assert found.p == 1 / 6**4  # four data sets agree with the first, which has one of six orders
    assert "no pair of 3 can come below 0.188" in found.note
    assert not any(pair.different for pair in found.pairs) and found.cliques == ((2, 1, 0),)


def test_a_method_without_a_figure_somewhere_is_left_out_and_named():
    x = np.column_stack([DEMSAR, DEMSAR[:, 0] + 0.1])
    x[[2, 5], 4] = np.nan
    sets = [f"set{i}" for i in range(14)]
    found = friedman(x, [*VARIANTS, "new"], sets, higher_is_better=True)
    assert found.left_out == ("new (no figure on set2, set5)",) and found.names == tuple(VARIANTS)
    plain = friedman(DEMSAR, VARIANTS, sets, higher_is_better=True)
    assert (found.p, found.ranks, found.pairs) == (plain.p, plain.ranks, plain.pairs)
    x[0, :4] = np.nan
    none = friedman(x, [*VARIANTS, "new"], higher_is_better=True)
    assert none.p is None and len(none.left_out) == 5 and "no method has" in none.reason
    assert none.left_out[0] == "C4.5 (no figure on 1)"


def test_methods_that_are_all_alike():
    found = friedman(np.ones((6, 3)), list("abc"), higher_is_better=True)
    assert found.p is None and found.f is None and "do not differ" in found.reason
    assert found.ranks == (2, 2, 2) and found.cliques == ((0, 1, 2),)
    assert all(pair.test.p is None and pair.adjusted is None and not pair.different for pair in found.pairs)


def test_two_methods_are_wilcoxon_alone():
    x = np.random.default_rng(0).normal([0, 3], 1, (10, 2))
    found = friedman(x, ["a", "b"], higher_is_better=True)
    assert found.chi2 is None and found.p == found.pairs[0].test.p == found.pairs[0].adjusted < 0.01
    assert found.pairs[0].different and found.cliques == () and found.ranks == (2, 1)


def test_nonsense_is_refused():
    for scores, names, more, words in [
        (DEMSAR, VARIANTS[:3], {}, "one column"),
        (DEMSAR, ["a", "a", "b", "c"], {}, "same name"),
        (DEMSAR, VARIANTS, {"datasets": ["one"]}, "1 different names for 14"),
        (DEMSAR, VARIANTS, {"datasets": ["one"] * 14}, "1 different names for 14"),
        (DEMSAR, VARIANTS, {"permutations": 0}, "one permutation"),
        (DEMSAR, VARIANTS, {"alpha": 5}, "alpha"),
        (DEMSAR * np.inf, VARIANTS, {}, "infinite"),
    ]:
        with pytest.raises(ValueError, match=words):
            friedman(scores, names, higher_is_better=True, **more)
