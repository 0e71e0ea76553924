"""Pairs, thresholds fixed beforehand, realised rates, and the faults of the field that must not be ours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deidbench.metrics.reid import verification as ver


def test_extract_equals_a_loop():
    rng = np.random.default_rng(0)
    who = np.array([0, 0, 1, 1, 1, 2])
    s = rng.random((6, 6)).astype(np.float32)
    pairs = ver.extract(s, who, who, np.arange(6))
    genuine = [(s[i, j], who[i]) for i in range(6) for j in range(6) if i != j and who[i] == who[j]]
    impostor = [(s[i, j], who[i], who[j]) for i in range(6) for j in range(6) if who[i] != who[j]]
    assert list(zip(pairs.genuine, pairs.genuine_person, strict=True)) == genuine
    assert list(zip(pairs.impostor, pairs.impostor_a, pairs.impostor_b, strict=True)) == impostor


def test_failed_comparisons_stay_in_the_denominator():
    s = np.full((4, 4), 0.5, np.float32)
    s[0] = np.nan
    pairs = ver.extract(s, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), np.arange(4))
    assert len(pairs.genuine) == 4
    assert len(pairs.impostor) == 8
    assert (pairs.genuine == -np.inf).sum() == 1
    assert ver.accepted_rate(pairs.genuine, 0.5) == 0.75  # at the threshold counts as accepted
    assert ver.accepted_rate(pairs.impostor, 0.5) == 0.75


grid = st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5, 0.75, 1.0, -np.inf]), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(grid, st.sampled_from([0.0, 0.001, 0.1, 0.29, 0.5, 0.9]))
def test_threshold_is_the_smallest_that_keeps_the_target(impostor, fmr):
    x = np.array(impostor, np.float32)
    t = ver.threshold_at_fmr(x, fmr)
    assert ver.accepted_rate(x, t) <= fmr + 1e-12
    with np.errstate(over="ignore"):  # below the lowest finite float32 lies -inf
        just_below = np.nextafter(np.float32(t), np.float32(-np.inf))
    assert ver.accepted_rate(x, float(just_below)) > fmr


def test_threshold_survives_a_score_of_exactly_one():
    """A fixed histogram over [0, 1) loses it."""
    x = np.array([1.0] * 5 + [0.0] * 95, np.float32)
    t = ver.threshold_at_fmr(x, 0.01)
    assert t > 1
    assert ver.accepted_rate(x, t) == 0
    assert ver.accepted_rate(x, ver.threshold_at_fmr(x, 0.05)) == 0.05


def test_targets_in_floating_point():
    """0.29 * 100 is 28.999999999999996: 29 may be accepted all the same."""
    x = np.arange(100, dtype=np.float32)
    assert ver.accepted_rate(x, ver.threshold_at_fmr(x, 0.29)) == 0.29


def test_threshold_refuses_percent_nan_and_nothing():
    with pytest.raises(ValueError, match="rate in"):
        ver.threshold_at_fmr([0.1], 10)
    with pytest.raises(ValueError, match="NaN"):
        ver.threshold_at_fmr([0.1, np.nan], 0.1)
    with pytest.raises(ValueError, match="no impostor"):
        ver.threshold_at_fmr([], 0.1)
    with pytest.raises(ValueError, match="no scores"):
        ver.accepted_rate([], 0.1)


@pytest.mark.parametrize(
    ("fmr", "pairs", "persons", "supported"),
    [
        (0.1, 300, 5, True),
        (0.1, 299, 5, False),
        (0.1, 300, 4, False),  # 6 pairs of persons
        (0.01, 3000, 15, True),
        (0.01, 3000, 14, False),  # 91 pairs of persons
        (0.001, 30_000, 46, True),  # 1035
        (0.001, 156_000, 40, False),  # 780 pairs of persons, however many images
        (0.001, 29_999, 200, False),
    ],
)
def test_support_rule(fmr, pairs, persons, supported):
    reason = ver.unsupported(fmr, pairs, persons)
    assert (reason == "") is supported
    assert supported or f"FMR {fmr:g}" in reason
