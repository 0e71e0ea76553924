"""Open-set identification against a search written out in plain Python, and against known answers."""

from __future__ import annotations

import numpy as np
import pytest

from deidbench.metrics.reid import identification, openset


def layout(persons, images, seed, levels=None, own=True):
    """Scores of all images against all, mates higher; ``levels`` makes ties."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(persons), images)
    s = rng.normal(size=(len(who), len(who))) + 1.5 * (who[:, None] == who)
    if levels:
        s = np.round(s * levels) / levels
    return s.astype(np.float32), who, who, np.arange(len(who)) if own else np.full(len(who), -1)


def written_out(scores, probe_person, gallery_person, same_image, threshold):
    """Each search by itself: (false positive, expected miss) per probe; the miss is None without a mate."""
    out = []
    for p, row in enumerate(scores):
        mates, others = [], []
        for g, score in enumerate(row):
            if g != same_image[p]:
                (mates if gallery_person[g] == probe_person[p] else others).append(-np.inf if np.isnan(score) else score)
        alarm = any(x >= np.float32(threshold) for x in others)
        miss = None
        if mates:
            top = max(mates + others)
            first = [m for m in mates if m == top]
            hit = len(first) / (len(first) + others.count(top))
            miss = 1 - hit * (max(mates) >= np.float32(threshold))
        out.append((alarm, miss))
    return out


@pytest.mark.parametrize(
    ("persons", "images", "levels", "own"),
    [(5, 4, None, True), (5, 4, 1, True), (8, 2, 2, True), (6, 1, 1, True), (4, 3, 1, False)],
)
@pytest.mark.parametrize("threshold", [-1e9, 0.0, 1.0, 2.0, 99.0, np.inf])
def test_rates_equal_searches_written_out(persons, images, levels, own, threshold):
    scores, probe, gallery, same = layout(persons, images, persons, levels, own)
    scores[1] = np.nan  # a probe about which nothing is known
    scores[:, 2] = np.nan  # a gallery image without an embedding
    found = openset.outcomes(scores, probe, gallery, same)
    expected = written_out(scores, probe, gallery, same, threshold)
    np.testing.assert_array_equal(openset.fpir(found, threshold), [alarm for alarm, _ in expected])
    if images == 1:
        assert not found.tied_mates.any()
        with pytest.raises(ValueError, match="without a mate"):
            openset.fnir(found, threshold)
    else:
        np.testing.assert_allclose(openset.fnir(found, threshold), [miss for _, miss in expected], atol=1e-15)


@pytest.mark.parametrize("levels", [None, 1, 2])
def test_hits_are_rank_1_of_closed_set_identification(levels):
    scores, probe, gallery, same = layout(7, 3, 1, levels)
    scores[4] = np.nan
    scores[:, [0, 1, 2]] = np.nan  # all that is enrolled of person 0
    found = openset.outcomes(scores, probe, gallery, same)
    rank1 = identification.hits(*identification.standings(scores, probe, gallery, same), 1)[:, 0]
    np.testing.assert_array_equal(openset.hits(found), rank1)


def test_rows_do_not_depend_on_the_tile():
    scores, probe, gallery, same = layout(6, 3, 2, 2)
    whole = openset.outcomes(scores, probe, gallery, same)
    parts = [openset.outcomes(scores[r], probe[r], gallery, same[r]) for r in (slice(0, 5), slice(5, 6), slice(6, 18))]
    for column, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.concatenate(pieces))


def test_the_scores_are_not_changed():
    scores, *rest = layout(3, 2, 0)
    scores[0, 3] = np.nan
    before = scores.copy()
    openset.outcomes(scores, *rest)
    np.testing.assert_array_equal(scores, before)


def test_types_and_missing_sides():
    scores, probe, gallery, same = layout(1, 3, 0)  # one person: no strangers
    found = openset.outcomes(scores, probe, gallery, same)
    assert [x.dtype for x in found] == [np.float32, np.float32, np.int64, np.int64]
    assert (found.best_other == -np.inf).all()
    assert (openset.hits(found) == 1).all()
    assert not openset.fpir(found, -np.inf).any()  # nobody to take a probe for, even if everything is accepted
    np.testing.assert_array_equal(openset.fnir(found, -10.0), 0)
    empty = openset.outcomes(np.empty((2, 0), np.float32), np.array([0, 1]), np.array([], int), np.array([-1, -1]))
    assert not openset.hits(empty).any()


def test_a_constant_embedding_is_at_chance_or_misses():
    scores, probe, gallery, same = layout(10, 4, 0)
    scores[:] = 0.25
    found = openset.outcomes(scores, probe, gallery, same)
    np.testing.assert_allclose(openset.fnir(found, 0.25), 1 - 3 / 39)
    assert (openset.fpir(found, 0.25) == 1).all()
    assert (openset.fnir(found, 0.26) == 1).all()
    assert not openset.fpir(found, 0.26).any()


def test_unknown_probes_never_accuse_and_always_miss():
    scores, probe, gallery, same = layout(5, 3, 0)
    scores[:] = np.nan
    found = openset.outcomes(scores, probe, gallery, same)
    lowest = float(np.finfo(np.float32).min)
    assert not openset.fpir(found, lowest).any()
    assert (openset.fnir(found, lowest) == 1).all()
    assert openset.threshold_at_fpir(found.best_other, 0.0) >= lowest  # finite: unknown probes stay unaccepted


@pytest.mark.parametrize("target", [0.0, 0.01, 0.1, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("levels", [None, 2])
def test_threshold_is_the_smallest_that_keeps_the_target(target, levels):
    scores, probe, gallery, same = layout(12, 4, 5, levels)
    found = openset.outcomes(scores, probe, gallery, same)
    threshold = openset.threshold_at_fpir(found.best_other, target)
    assert openset.fpir(found, threshold).mean() <= target
    lower = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
    assert openset.fpir(found, lower).mean() > target


def test_unsupported():
    assert openset.unsupported(0.1, 300, 10) == ""
    assert "299 searches do not support FPIR 0.1: that takes 300" in openset.unsupported(0.1, 299, 10)
    assert "9 persons do not support FPIR 0.1: that takes 10" in openset.unsupported(0.1, 300, 9)
    assert openset.unsupported(0.01, 3000, 100) == ""
    assert openset.unsupported(0.01, 2999, 100)
    assert "infinitely many" in openset.unsupported(0.0, 10**9, 10**9)


@pytest.mark.parametrize("bad", [-0.1, 1.0, 10.0, np.nan])
def test_a_target_is_a_rate(bad):
    with pytest.raises(ValueError, match="rate"):
        openset.threshold_at_fpir([0.1], bad)


def test_no_searches_and_nan_are_refused():
    with pytest.raises(ValueError, match="no searches"):
        openset.threshold_at_fpir([], 0.1)
    with pytest.raises(ValueError, match="NaN"):
        openset.threshold_at_fpir([0.1, np.nan], 0.1)
