"""D_sys against a re-implementation of its definition, analytic values and cases known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from deidbench.stats import linkability

scores = st.lists(st.sampled_from([-np.inf, -1.0, -0.5, 0.0, 0.25, 0.26, 0.5, 0.999, 1.0]), min_size=1, max_size=60)


def by_definition(genuine, impostor, bins, omega):
    """Bin by bin, score by score: D(s) = 2 w LR / (1 + w LR) - 1, averaged over the genuine scores."""
    finite = [s for s in (*genuine, *impostor) if s > -np.inf]
    lo, hi = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def bin_of(s):
        if s == -np.inf:
            return -1
        return 0 if hi == lo else min(int(np.floor(bins * (s - lo) / (hi - lo))), bins - 1)

    total = 0.0
    for s in genuine:
        mated = sum(bin_of(x) == bin_of(s) for x in genuine) / len(genuine)
        non_mated = sum(bin_of(x) == bin_of(s) for x in impostor) / len(impostor)
        if non_mated == 0:
            d = 1.0
        else:
            ratio = omega * mated / non_mated
            d = 2 * ratio / (1 + ratio) - 1 if ratio > 1 else 0.0
        total += d
    return total / len(genuine)


@settings(max_examples=200, deadline=None)
@given(scores, scores, st.sampled_from([1, 2, 4, 8]), st.sampled_from([0.1, 0.5, 1.0, 3.0]))
def test_it_is_the_definition(genuine, impostor, bins, omega):
    found = linkability.d_sys(genuine, impostor, bins, omega)
    assert found.value == pytest.approx(by_definition(genuine, impostor, bins, omega), abs=1e-12)
    assert 0 <= found.value <= 1


@settings(max_examples=100, deadline=None)
@given(scores)
def test_equal_samples_are_unlinkable_and_more_of_the_same_too(sample):
    assert linkability.d_sys(sample, sample).value == 0
    assert linkability.d_sys(sample, sample * 3).value == 0


@pytest.mark.parametrize(
    ("genuine", "impostor", "expected"),
    [
        ([0.9, 1.0], [-1.0, -0.5, -0.1], 1.0),  # disjoint: fully linkable
        ([-1.0, -0.9], [0.5, 1.0, 0.6], 1.0),  # from whichever side
        ([0.3] * 7, [0.3] * 90, 0.0),
        ([-np.inf] * 3, [-np.inf] * 5, 0.0),  # nothing could be compared
        ([0.5] * 4, [-np.inf] * 4, 1.0),  # strangers always fail, mates never
        ([1.0] * 10 + [0.0] * 10, [0.0] * 20, 0.5),  # exactly 1.0, the right edge, is inside
        ([0.0] * 10 + [1.0] * 10, [0.0] * 5 + [1.0] * 15, 0.5 * (0.5 - 0.25) / (0.5 + 0.25)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_known_answers(genuine, impostor, expected, dtype):
    found = linkability.d_sys(np.array(genuine, dtype), np.array(impostor, dtype))
    assert found.value == pytest.approx(expected, abs=1e-15)


def test_failed_comparisons_are_apart_from_the_lowest_score():
    """Mates all at the lowest finite score, half of the strangers there, half failed: -inf must not fall into that bin."""
    found = linkability.d_sys([0.0] * 20, [0.0] * 10 + [-np.inf] * 10)
    assert found.value == pytest.approx((1 - 0.5) / (1 + 0.5))
    assert found.failed
    assert not linkability.d_sys([0.0], [1.0]).failed


@pytest.mark.parametrize(("shift", "bins"), [(0.25, 5), (0.5, 6), (0.75, 7)])
def test_shifted_uniform_distributions(shift, bins):
    """Densities are equal where they overlap, and mates are alone elsewhere: D_sys is the shift, if a bin ends there."""
    step = shift / 500
    impostor = np.arange(0, 1, step) + step / 2
    genuine = impostor + shift
    assert linkability.d_sys(genuine, impostor, bins).value == pytest.approx(shift, abs=5e-3)


def test_triangle_against_uniform():
    """p(s | mated) = 2 s, p(s | non-mated) = 1 on [0, 1]: the integral of 2 s (2 s - 1) / (2 s + 1) from 1/2 is ln 1.5 - 1/4."""
    u = (np.arange(200_000) + 0.5) / 200_000
    found = linkability.d_sys(np.sqrt(u), u)
    assert found.bins == 100
    assert found.value == pytest.approx(np.log(1.5) - 0.25, abs=1e-4)


@pytest.mark.parametrize("omega", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("d", [0.5, 1.5, 3.0])
def test_two_gaussians_approach_the_integral(d, omega):
    def linked(x):
        a, b = omega * stats.norm.pdf(x, d), stats.norm.pdf(x)
        return stats.norm.pdf(x, d) * max(a - b, 0) / (a + b)

    rng = np.random.default_rng(0)
    found = linkability.d_sys(rng.normal(d, 1, 300_000), rng.normal(0, 1, 300_000), omega=omega)
    cross = d / 2 - np.log(omega) / d  # D is 0 to the left of it
    assert found.value == pytest.approx(integrate.quad(linked, cross, d + 9)[0], abs=6e-3)


@pytest.mark.parametrize(("n", "bins"), [(5, 2), (29, 2), (30, 3), (999, 99), (1000, 100), (5000, 100)])
def test_number_of_bins(n, bins):
    found = linkability.d_sys(np.linspace(0, 1, n), [0.0, 2.0])
    assert found.bins == bins
    assert (found.lo, found.hi) == (0, 2)


def test_bins_of_constant_and_of_no_finite_scores():
    assert linkability.d_sys([0.5] * 50, [0.5] * 50).bins == 1
    none = linkability.d_sys([-np.inf] * 50, [-np.inf] * 50)
    assert none.bins == 0
    assert np.isnan(none.lo)


def test_few_scores_are_biased_upwards_as_documented():
    """Equal distributions, where D_sys ought to be 0: about sqrt(k / (8 pi n)) + k / (8 n)."""
    rng = np.random.default_rng(0)
    for n in (1000, 8000):
        values = [linkability.d_sys(rng.random(n), rng.random(500_000)).value for _ in range(30)]
        assert np.mean(values) == pytest.approx(np.sqrt(100 / (8 * np.pi * n)) + 100 / (8 * n), rel=0.06)


def test_counts_of_many_replicates_equal_one_at_a_time():
    rng = np.random.default_rng(2)
    gen, imp = rng.poisson(1.0, (200, 12)), rng.poisson(2.0, (200, 12))
    gen[5], imp[6] = 0, 0
    gen[:, 0] = imp[:, 0] = 0  # a bin without scores
    found = linkability.d_sys_from_counts(gen, imp, 0.7)
    assert np.isnan(found[[5, 6]]).all()
    for b in {*range(200)} - {5, 6}:
        genuine, impostor = (np.repeat(np.arange(12.0), x[b]) for x in (gen, imp))
        # Bins as wide as the distance of neighbouring values, centred on them.
        rest = linkability.counts(genuine, np.arange(12) - 0.5)[1:], linkability.counts(impostor, np.arange(12) - 0.5)[1:]
        assert np.array_equal(rest[0], gen[b])
        local = linkability.local(*rest, 0.7)
        assert found[b] == pytest.approx(np.nansum(local * gen[b]) / gen[b].sum(), abs=1e-12)
    assert np.isnan(linkability.local([0, 1], [0, 1])[0])


@pytest.mark.parametrize("bad", [([], [1.0]), ([1.0], [])])
def test_one_class_is_refused(bad):
    with pytest.raises(ValueError, match=r"no (genuine|impostor) scores"):
        linkability.d_sys(*bad)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        linkability.d_sys([0.5, np.nan], [0.1])
    with pytest.raises(ValueError, match="inf"):
        linkability.d_sys([0.5, np.inf], [0.1])
    with pytest.raises(ValueError, match="bin"):
        linkability.d_sys([0.5], [0.1], 0)
    for omega in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="omega"):
            linkability.d_sys([0.5], [0.1], omega=omega)
    with pytest.raises(ValueError, match="genuine"):
        linkability.local([0, 0], [1, 1])
