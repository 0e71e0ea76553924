"""Ranks with ties at their expected value, against every permutation written out."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deidbench.errors import SuiteError
from deidbench.metrics.base import Protocol
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import identification as ident
from deidbench.metrics.reid.base import SCORE_GRID, cosine
from deidbench.metrics.reid.comparison import lay_out


def by_permutation(scores, mate, k):
    """Share of all orders of the gallery, sorted stably by score, in which a mate is among the first k."""
    found = total = 0
    for order in permutations(range(len(scores))):
        ranked = sorted(order, key=lambda j: -scores[j])
        found += any(mate[j] for j in ranked[:k])
        total += 1
    return Fraction(found, total)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=6).filter(
        lambda x: any(m for _, m in x)
    )
)
def test_hits_equal_the_average_over_all_orders(gallery):
    scores, mate = [s for s, _ in gallery], [m for _, m in gallery]
    person = np.where(mate, 0, np.arange(1, len(mate) + 1))
    standing = ident.standings(np.array([scores], np.float32), np.array([0]), person, np.array([-1]))
    hits = ident.hits(*standing, len(gallery))
    for k in range(1, len(gallery) + 1):
        assert hits[0, k - 1] == pytest.approx(float(by_permutation(scores, mate, k)), abs=1e-12)


@pytest.mark.parametrize(("tied", "mates"), [(0, 1), (5, 1), (5, 3), (390, 9), (1, 7)])
def test_chance_is_hypergeometric(tied, mates):
    n = tied + mates
    got = ident.chance([mates], [tied], n + 3)[0]
    for k in range(1, n + 1):
        assert got[k - 1] == pytest.approx(1 - comb(tied, k) / comb(n, k), abs=1e-12)
    assert (got[n:] == 1).all()
    assert got[0] == mates / n


def test_ties_below_the_best_mate_do_not_matter_and_above_count_one_each():
    assert ident.hits(2, 0, 1, 4).tolist() == [[0, 0, 1, 1]]
    assert ident.hits(1, 1, 1, 3).tolist() == [[0, 0.5, 1]]
    assert ident.hits(0, 1, 2, 2).tolist() == [[2 / 3, 1]]


def test_a_probe_without_mate_is_refused():
    with pytest.raises(ValueError, match="without a mate"):
        ident.hits([0], [3], [0], 2)


def test_scores_of_exactly_plus_and_minus_one():
    s = np.array([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]], np.float32)
    got = ident.standings(s, np.array([0, 0]), np.array([0, 1, 1]), np.array([-1, -1]))
    assert [column.tolist() for column in got] == [[0, 0], [1, 2], [1, 1]]


def test_the_same_image_takes_no_part():
    s = np.array([[1.0, 0.2, 0.5]], np.float32)  # column 0 is the probe itself
    got = ident.standings(s, np.array([0]), np.array([0, 0, 1]), np.array([0]))
    assert (got.above[0], got.tied[0], got.tied_mates[0]) == (1, 0, 1)


def test_no_information_ties_with_everything_and_a_dark_gallery_image_ranks_last():
    nan = np.nan
    s = np.array([[nan] * 4, [0.1, nan, 0.3, -1.0], [nan, nan, nan, 0.5]], np.float32)
    # The last probe is the very image of column 3: all that it may be compared with is dark.
    got = ident.standings(s, np.array([0, 0, 1]), np.array([0, 0, 1, 1]), np.array([-1, 0, 3]))
    assert got.above.tolist() == [0, 2, 0]
    assert got.tied.tolist() == [2, 0, 2]
    assert got.tied_mates.tolist() == [2, 1, 1]


@pytest.mark.parametrize("tile", [1, 7, 64, 10**9])
def test_tiles_do_not_change_anything(tile):
    rng = np.random.default_rng(0)
    e = l2_normalise(rng.integers(-1, 2, (60, 4)) + 1e-9)
    who = np.arange(60) // 4
    same = np.arange(60)
    whole = ident.standings(cosine(e, e), who, who, same)
    tiled = ident.identify(lambda rows: cosine(e, e[rows]), who, who, same, tile=tile)
    for a, b in zip(whole, tiled, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_probes():
    got = ident.identify(lambda rows: np.zeros((0, 3), np.float32), *np.zeros((3, 0), int)[:1], np.arange(3), np.zeros(0, int))
    assert [len(x) for x in got] == [0, 0, 0]


# --- scores


def test_cosine_is_bit_identical_whatever_the_company():
    rng = np.random.default_rng(1)
    g, p = l2_normalise(rng.normal(size=(403, 512))), l2_normalise(rng.normal(size=(97, 512)))
    whole = cosine(g, p)
    np.testing.assert_array_equal(whole[5:6], cosine(g, p[5:6]))
    np.testing.assert_array_equal(whole[:, 17:18], cosine(g[17:18], p))
    np.testing.assert_array_equal(whole, cosine(p, g).T)
    np.testing.assert_allclose(whole, p.astype(float) @ g.astype(float).T, atol=SCORE_GRID)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole / SCORE_GRID, np.rint(whole / SCORE_GRID))


def test_identical_embeddings_tie_exactly_even_with_batch_noise():
    rng = np.random.default_rng(2)
    one = l2_normalise(rng.normal(size=(1, 128)))
    noisy = l2_normalise(np.repeat(one, 300, 0) + rng.normal(0, 1e-7, (300, 128)))
    assert len(np.unique(noisy, axis=0)) > 250  # they do differ
    assert np.unique(cosine(noisy, noisy)).tolist() == [1.0]


def test_cosine_extremes_and_nan():
    e = np.array([[1, 0], [-1, 0], [np.nan, np.nan], [0.6, 0.8]], np.float32)
    s = cosine(e, e)
    assert s[0, 0] == 1
    assert s[0, 1] == -1
    assert np.isnan(s[2]).all()
    assert np.isnan(s[:, 2]).all()
    assert np.isfinite(np.delete(np.delete(s, 2, 0), 2, 1)).all()


def test_unnormalised_embeddings_are_refused():
    with pytest.raises(ValueError, match="L2-normalised"):
        cosine(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="columns"):
        cosine(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))


# --- comparisons


def ids(n):
    return np.array([f"{i:03d}" for i in range(n)])


def test_leave_one_out_counts():
    layout = lay_out(ids(6), np.array(list("aaabbc")), Protocol())
    assert layout.text == "leave-one-out"
    assert layout.mates.tolist() == [2, 2, 2, 1, 1, 0]
    assert layout.others.tolist() == [3, 3, 3, 4, 4, 5]
    assert layout.size == 5


@pytest.mark.parametrize("enrolled", [1, 2, 3])
def test_split_never_has_an_image_on_both_sides(enrolled):
    subjects = np.array(list("aaaabbbbccd"))
    layout = lay_out(ids(11), subjects, Protocol(comparison="split", enrolled=enrolled, seed=5))
    assert layout.text == f"split, {enrolled} enrolled"
    assert not set(layout.probes) & set(layout.gallery)
    assert sorted([*layout.probes, *layout.gallery]) == list(range(11))
    for person in "abcd":
        n = (subjects == person).sum()
        assert (subjects[layout.gallery] == person).sum() == min(enrolled, n)
    assert (layout.mates == enrolled).all()
    assert layout.size == len(layout.gallery)


def test_split_depends_on_seed_and_not_on_order():
    subjects = np.repeat(np.array(list("abcdefgh")), 5)
    protocol = Protocol(comparison="split", enrolled=2, seed=1)
    chosen = set(ids(40)[lay_out(ids(40), subjects, protocol).gallery])
    shuffled = np.random.default_rng(0).permutation(40)
    again = lay_out(ids(40)[shuffled], subjects[shuffled], protocol)
    assert set(ids(40)[shuffled][again.gallery]) == chosen
    other = lay_out(ids(40), subjects, Protocol(comparison="split", enrolled=2, seed=2))
    assert set(ids(40)[other.gallery]) != chosen


def test_bad_comparisons_are_refused():
    with pytest.raises(SuiteError, match="unknown comparison"):
        lay_out(ids(2), ids(2), Protocol(comparison="leave-two-out"))
    with pytest.raises(SuiteError, match="at least one"):
        lay_out(ids(2), ids(2), Protocol(comparison="split", enrolled=0))
    with pytest.raises(ValueError, match="unique"):
        lay_out(np.array(["x", "x"]), ids(2), Protocol())
