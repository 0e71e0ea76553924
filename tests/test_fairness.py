"""Rates per group and the largest gap, against brute force, enumeration and scipy, and on cases known by construction."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy.stats import permutation_test

from deidbench.metrics.base import Protocol, Table, quantities
from deidbench.metrics.reid import fairness
from deidbench.records import Row
from deidbench.stats import intervals
from deidbench.stats.groups import MIN_PERSONS, group_rates, largest_gap
from deidbench.stats.multiplicity import holm

QUICK = Protocol(replicates=400)


def people(n):
    return [f"p{i:04d}" for i in range(n)]


def draws(n, replicates=400, seed=0):
    return intervals.person_draws(people(n), replicates, seed)


def some(seed, sizes=(25, 15, 12), images=6, rates=(0.5, 0.5, 0.5)):
    """hits, trials and labels of persons in groups a, b, c ... in random order."""
    rng = np.random.default_rng(seed)
    label = np.repeat(list("abcdefg")[: len(sizes)], sizes)
    rate = np.repeat(rates[: len(sizes)], sizes)
    trials = rng.integers(1, images + 1, len(label))
    # Images of a person go together: beta-binomial.
    hits = rng.binomial(trials, rng.beta(2 * rate + 1e-9, 2 * (1 - rate) + 1e-9))
    order = rng.permutation(len(label))
    return hits[order].astype(float), trials[order].astype(float), label[order]


def gap_of(hits, trials, label):
    rate = [hits[label == g].sum() / trials[label == g].sum() for g in np.unique(label)]
    return max(rate) - min(rate)


# --- rates per group


def test_rates_and_intervals_equal_a_loop():
    hits, trials, label = some(1)
    w = draws(len(hits))
    got = group_rates(hits, trials, label, w)
    assert [g.name for g in got] == ["a", "b", "c"]
    for g in got:
        mine = label == g.name
        assert g.rate == hits[mine].sum() / trials[mine].sum()
        assert (g.persons, g.trials) == (mine.sum(), trials[mine].sum())
        assert g.interval[:2] == pytest.approx(intervals.rate_interval(hits[mine], trials[mine])[:2], abs=1e-12)
        loop = [(r[mine] @ hits[mine]) / (r[mine] @ trials[mine]) for r in w.astype(float)]
        assert np.quantile(loop, [0.25, 0.75])[0] > g.interval.lo
        assert np.quantile(loop, [0.25, 0.75])[1] < g.interval.hi


def test_rates_of_extreme_and_tiny_groups():
    hits = np.array([2.0, 2, 0, 0, 0, 1, 0])
    trials = np.array([2.0, 2, 2, 2, 2, 2, 0])
    label = np.array(["all", "all", "none", "none", "none", "one", "empty"])
    by = {g.name: g for g in group_rates(hits, trials, label, draws(7))}
    assert by["all"].interval.hi == 1
    assert by["all"].interval.lo == pytest.approx(0.05**0.5)
    assert by["none"].interval.lo == 0
    assert by["none"].interval.hi == pytest.approx(1 - 0.05 ** (1 / 3))
    assert by["one"].rate == 0.5
    assert by["one"].interval.lo is None
    assert "one person" in by["one"].interval.reason
    assert by["empty"].rate is None
    assert by["empty"].interval.reason == "no trials"


def test_no_label_is_no_group():
    assert group_rates([1.0, 0.0], [1.0, 1.0], ["", ""], draws(2)) == []


@pytest.mark.parametrize(
    ("hits", "trials", "group"), [([1, 2], [1, 1], ["a", "b"]), ([-1], [1], ["a"]), ([1], [1, 1], ["a", "b"])]
)
def test_nonsense_is_refused(hits, trials, group):
    for call in (group_rates, largest_gap):
        with pytest.raises(ValueError, match=r"percentage|per person"):
            call(hits, trials, group, draws(len(group)))


# --- the gap


@pytest.mark.parametrize("seed", range(3))
def test_gap_and_its_interval_equal_a_loop(seed):
    hits, trials, label = some(seed, rates=(0.7, 0.4, 0.5))
    w = draws(len(hits))
    got = largest_gap(hits, trials, label, w, permutations=200)
    assert got.value == pytest.approx(gap_of(hits, trials, label), abs=1e-15)
    loop = []
    for r in w.astype(float):
        rate = [(r[label == g] @ hits[label == g]) / (r[label == g] @ trials[label == g]) for g in "abc"]
        loop.append(max(rate) - min(rate))
    tail = intervals.expanded_tail(0.95, 12)
    assert got.interval[:2] == pytest.approx(np.quantile(loop, [tail, 1 - tail]), abs=1e-12)
    rate = {g: hits[label == g].sum() / trials[label == g].sum() for g in "abc"}
    assert (got.highest, got.lowest) == (max(rate, key=rate.get), min(rate, key=rate.get))
    assert (got.groups, got.persons, got.trials) == (("a", "b", "c"), 52, trials.sum())


def test_null_equals_the_enumeration_of_all_labellings():
    rng = np.random.default_rng(5)
    trials = np.array([3.0, 2, 4, 1, 3, 2, 2])
    hits = rng.binomial(trials.astype(int), 0.5) + np.array([0.25, 0, 0, 0, 0, 0, 0])
    hits = np.minimum(hits, trials)
    label = np.array(list("aabbbcc"))
    exact = np.array([gap_of(hits, trials, np.array(p)) for p in set(itertools.permutations(label.tolist()))])
    n = 20_000
    got = largest_gap(hits, trials, label, draws(7), min_persons=2, permutations=n)
    share = np.mean(exact >= got.value - 1e-9)
    assert got.p == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n) + 1e-4)
    assert got.expected == pytest.approx(exact.mean(), abs=4 * exact.std() / np.sqrt(n))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_p_equals_scipy(seed):
    hits, trials, label = some(seed, sizes=(14, 12), rates=(0.65, 0.4))
    n = 9_999

    def gap(one, other):
        return abs(hits[one].sum() / trials[one].sum() - hits[other].sum() / trials[other].sum())

    persons = (np.flatnonzero(label == "a"), np.flatnonzero(label == "b"))
    ref = permutation_test(
        persons, gap, permutation_type="independent", n_resamples=n, alternative="greater", vectorized=False, random_state=0
    )
    got = largest_gap(hits, trials, label, draws(26), permutations=n)
    assert ref.statistic == pytest.approx(got.value)
    assert got.p == pytest.approx(ref.pvalue, abs=4 * np.sqrt(2 * ref.pvalue * (1 - ref.pvalue) / n) + 1e-3)
    assert got.expected == pytest.approx(ref.null_distribution.mean(), rel=0.05)


def test_alike_groups_have_a_gap_that_is_not_significant():
    """Under the null p is uniform at most; the plain gap is never 0, which is why it goes with its null."""
    found = [
        largest_gap(*some(s, sizes=(20, 20, 20, 20), rates=(0.5,) * 4), draws(80, 50), permutations=400) for s in range(200)
    ]
    p = np.array([g.p for g in found])
    assert np.mean(p <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.13)
    assert min(g.value for g in found) > 0
    assert np.mean([g.expected for g in found]) == pytest.approx(np.mean([g.value for g in found]), rel=0.1)


def test_one_group_always_and_another_never():
    label = np.repeat(["a", "b", "c"], [12, 20, 15])
    hits = np.where(label == "a", 5.0, np.where(label == "b", 0.0, 2.0))
    got = largest_gap(hits, np.full(47, 5.0), label, draws(47), permutations=2000)
    assert got.value == 1
    assert (got.highest, got.lowest) == ("a", "b")
    assert got.interval.hi == 1
    assert got.interval.lo == pytest.approx(1 - (1 - 0.025 ** (1 / 12)) - (1 - 0.025 ** (1 / 20)))
    assert got.p == 1 / 2001
    assert got.expected < 0.6


def test_an_interval_that_one_group_does_not_widen_says_so():
    label = np.repeat(["a", "b"], 15)
    hits = np.where(label == "a", 0.0, np.arange(30) % 3)
    assert "too narrow" in largest_gap(hits, np.full(30, 3.0), label, draws(30), permutations=10).interval.method
    assert "too narrow" not in largest_gap(hits + 1, np.full(30, 4.0), label, draws(30), permutations=10).interval.method


def test_ties():
    """Nobody is named, or everybody: no gap, and every shuffle is as large."""
    label = np.repeat(["a", "b"], 11)
    for rate in (0.0, 1.0, 1 / 3):
        got = largest_gap(np.full(22, 3 * rate), np.full(22, 3.0), label, draws(22), permutations=100)
        assert got.value == pytest.approx(0, abs=1e-12)
        assert (got.p, got.highest, got.lowest) == (1, "a", "a")
        assert got.expected == pytest.approx(0, abs=1e-12)
        assert got.interval.lo is None
        assert "no variance" in got.interval.reason


def test_small_groups_are_not_in_the_gap():
    hits, trials, label = some(3, sizes=(20, 15, 9), rates=(0.4, 0.5, 1.0))
    got = largest_gap(hits, trials, label, draws(44), permutations=500)
    assert MIN_PERSONS == 10
    assert got.groups == ("a", "b")
    assert got.persons == 35
    inside = label != "c"
    assert got.value == gap_of(hits[inside], trials[inside], label[inside])
    # Whatever the left-out persons do, the null is the same.
    other = hits.copy()
    other[~inside] = 0
    again = largest_gap(other, trials, label, draws(44), permutations=500)
    assert (again.p, again.expected) == (got.p, got.expected)
    # Neither do persons without a probe count towards the ten.
    trials[np.flatnonzero(label == "b")[:6]] = 0
    lost = largest_gap(np.minimum(hits, trials), trials, label, draws(44))
    assert lost.value is None
    assert lost.reason == "a gap takes two groups, and only 'a' has 10 persons or more"


@pytest.mark.parametrize("label", [["a"] * 30, [""] * 30, ["a", "b", "c"] * 10, ["a"] * 21 + ["b"] * 9])
def test_one_group_only(label):
    label = np.array(label)
    sizes = [np.sum(label == g) for g in set(label.tolist()) - {""}]
    got = largest_gap(np.ones(30), np.full(30, 2.0), label, draws(30), permutations=10)
    if sum(s >= 10 for s in sizes) > 1:
        assert got.value == 0
    else:
        assert got.value is None and got.p is None and got.expected is None
        assert got.interval.lo is None and got.interval.reason == got.reason
        assert "takes two groups" in got.reason


def test_same_seed_same_figures():
    hits, trials, label = some(4)
    one, two = (largest_gap(hits, trials, label, draws(52), permutations=300, seed=s) for s in (7, 7))
    assert one == two
    assert largest_gap(hits, trials, label, draws(52), permutations=300, seed=8).expected != one.expected


# --- groups of persons


def images(subjects, groups=None, attributes=None):
    n = len(subjects)
    none = np.zeros(n, bool)
    return Table(
        "d", "m", np.array([f"i{i}" for i in range(n)]), np.array(subjects), np.full(n, "ok"), none, none,
        groups={k: np.array(v) for k, v in (groups or {}).items()},
        attributes={k: np.array(v, float) for k, v in (attributes or {}).items()},
    )  # fmt: skip


def test_groups_of_persons():
    table = images(
        ["c", "a", "a", "a", "b", "b", "d", "x"],
        groups={"sex": ["male", "female", "female", "male", "male", "female", "", "male"]},
        attributes={"Young": [1, 0, np.nan, np.nan, 1, 1, np.nan, 0], "Male": [0] * 8, "Smiling": [1] * 8},
    )
    got = fairness.person_groups(table, ["a", "b", "c", "d", "e"])
    assert {k: v.tolist() for k, v in got.items()} == {
        "age": ["not young", "young", "young", "", ""],  # images without a label have no say
        "sex": ["female", "", "male", "", ""],  # most images; b's tie; the table's own groups before the attribute
    }


def test_attributes_with_a_reading():
    got = fairness.person_groups(images(["a", "b", "b"], attributes={"Male": [0, 1, 1], "Young": [np.nan] * 3}), ["a", "b"])
    assert {k: v.tolist() for k, v in got.items()} == {"sex": ["female", "male"]}
    assert fairness.person_groups(images(["a"]), ["a"]) == {}
    assert fairness.person_groups(images([]), []) == {}


# --- rows

BASE = Row(
    "d", "m", "reid.rank1", "rate", False, 0.5, lo=0.4, hi=0.6, recognizer="r", attacker="ignorant", convention="headline",
    comparison="leave-one-out", chance=0.01, family="reid", trusted=False, note="untrusted: why", n_failed=9, n_fta=8,
)  # fmt: skip


def rows(seed=0, **options):
    hits, trials, label = some(seed, sizes=(20, 15, 5), rates=(0.8, 0.2, 0.5))
    sex = np.where(np.arange(40) % 2 == 0, "female", "male")
    sex[:4] = ""
    options = {"permutations": 500, **options}
    return hits, trials, label, sex, fairness.rows(BASE, hits, trials, people(40), {"sex": sex, "age": label}, QUICK, **options)


def test_every_row_is_declared_and_explains_what_it_lacks():
    *_, got = rows()
    declared = {q.name: q for q in fairness.QUANTITIES}
    for row in got:
        q = declared[row.metric]
        assert (row.unit, row.higher_is_better, q.axis) == (q.unit, q.higher_is_better, "privacy")
        assert (row.value is None) == bool(row.reason)
        assert (row.lo is None) == (row.hi is None) == bool(row.ci_reason)
        assert row.lo is None or (row.lo <= row.value <= row.hi and row.ci_method and row.ci_level == 0.95)
        assert (row.recognizer, row.attacker, row.convention, row.comparison, row.trusted) == (
            "r", "ignorant", "headline", "leave-one-out", False,
        )  # fmt: skip
        assert row.note.startswith("untrusted: why")
        json.dumps(row.plain(), allow_nan=False)
    assert {q.metric for q in got} == set(declared)
    assert quantities([type("M", (), {"quantities": fairness.QUANTITIES})]) == declared


def test_rows_say_what_the_functions_found():
    hits, trials, label, sex, got = rows()
    assert [r.label for r in got] == ["age: a", "age: b", "age: c", "age", "sex: female", "sex: male", "sex"]
    by = {r.label: r for r in got}
    for name, column in (("age", label), ("sex", sex)):
        for g in set(column.tolist()) - {""}:
            row = by[f"{name}: {g}"]
            assert row.value == hits[column == g].sum() / trials[column == g].sum()
            assert (row.n_persons, row.n_images, row.chance) == (np.sum(column == g), trials[column == g].sum(), 0.01)
            assert (row.n_failed, row.n_fta) == (0, 0)
    w = intervals.person_draws(people(40), 400, 0)
    age, sexes = (largest_gap(hits, trials, c, w, permutations=500) for c in (label, sex))
    assert by["age"].value == age.value
    assert by["age"].chance == age.expected
    assert by["age"].n_persons == 35
    adjusted = holm([age.p, sexes.p])
    assert "a over b" in by["age"].note
    assert f"p = {age.p:.3g}, {adjusted[0]:.3g} by Holm over 2 groupings" in by["age"].note
    assert f"p = {sexes.p:.3g}, {adjusted[1]:.3g} by Holm over 2 groupings" in by["sex"].note
    assert "4 persons are in no group of sex" in by["sex"].note
    assert "fewer than 10 persons: not in the gap" in by["age: c"].note
    assert age.p < 0.01 < 0.05 < sexes.p


def test_counts_and_chance_of_each_group():
    guesses, failed = np.linspace(0, 0.4, 40), np.arange(40.0)
    _, trials, label, sex, got = rows(guesses=guesses, failed=failed, fta=failed[::-1])
    by = {r.label: r for r in got}
    assert by["age: b"].chance == pytest.approx(guesses[label == "b"].sum() / trials[label == "b"].sum())
    assert by["age: b"].n_failed == failed[label == "b"].sum()
    assert by["age"].n_failed == failed[label != "c"].sum()
    assert by["sex"].n_fta == failed[::-1][sex != ""].sum()


def test_a_gap_that_cannot_be_told():
    got = fairness.rows(BASE, np.ones(12), np.full(12, 2.0), people(12), {"sex": np.array(["male"] * 11 + ["female"])}, QUICK)
    gap = got[-1]
    assert (gap.label, gap.value) == ("sex", None)
    assert gap.reason == gap.ci_reason == "a gap takes two groups, and only 'male' has 10 persons or more"
    assert "Holm" not in gap.note
    assert fairness.rows(BASE, np.ones(2), np.ones(2), people(2), {}, QUICK) == []
