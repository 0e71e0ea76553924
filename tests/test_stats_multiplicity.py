"""Holm's correction, against an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from deidbench.stats import groups
from deidbench.stats.multiplicity import holm, holm_known, permutations_needed


@pytest.mark.parametrize("seed", range(5))
def test_holm_equals_statsmodels(seed):
    p = np.random.default_rng(seed).random(12) ** 3
    p[3] = p[5]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-15)


def test_holm_of_few_and_of_nonsense():
    assert holm([]).shape == (0,)
    assert holm([0.03]).tolist() == [0.03]
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    for wrong in ([-0.1], [1.1], [np.nan]):
        with pytest.raises(ValueError, match="p-values"):
            holm(wrong)


def test_holm_is_still_where_callers_look_for_it():
    assert groups.holm is holm


def test_what_was_not_tested_is_not_in_the_family():
    assert holm_known([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
    assert holm_known([None, None]) == [None, None]
    assert holm_known([]) == []
    assert holm_known([0.01, 1.0, 0.04]) == pytest.approx([0.03, 1.0, 0.08])  # a test that told nothing is


def test_a_family_can_reach_alpha_with_the_permutations_needed():
    n = permutations_needed(540)
    assert 540 / (n + 1) < 0.05 / 9
    assert 540 / (10_000 + 1) > 0.05  # which the usual ten thousand cannot
    for wrong in ((0, 0.05), (3, 0.0), (3, 1.0)):
        with pytest.raises(ValueError, match="at least one test"):
            permutations_needed(*wrong)
