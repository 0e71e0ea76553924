"""EER, AUC and ROC against scikit-learn, scipy and brute force, ties and extremes included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from deidbench.stats import roc as ours


def reference_eer(genuine, impostor):
    """scikit-learn's ROC, then FNMR - FMR = 0 by linear interpolation along the polyline."""
    y = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))]
    fpr, tpr, _ = roc_curve(y, np.r_[genuine, impostor], drop_intermediate=False)
    gap = fpr - (1 - tpr)  # rises from -1 to 1
    k = int(np.argmax(gap >= 0))
    if gap[k] == 0:
        return fpr[k]
    share = -gap[k - 1] / (gap[k] - gap[k - 1])
    return fpr[k - 1] + share * (fpr[k] - fpr[k - 1])


scores = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.26, 0.5, 0.999, 1.0]), min_size=1, max_size=25)


@settings(max_examples=300, deadline=None)
@given(scores, scores)
def test_eer_and_auc_with_many_ties(genuine, impostor):
    y = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))]
    assert ours.eer(genuine, impostor).value == pytest.approx(reference_eer(genuine, impostor), abs=1e-12)
    assert ours.auc(genuine, impostor) == pytest.approx(roc_auc_score(y, np.r_[genuine, impostor]), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_ties_take_their_expected_value_under_random_order(genuine, impostor):
    """AUC: the mean over random tie-breaking is the half-tie value, exactly, by enumeration over pairs."""
    wins = [(g > i) + 0.5 * (g == i) for g in genuine for i in impostor]
    assert ours.auc(genuine, impostor) == pytest.approx(np.mean(wins), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 2.0, 20.0])
def test_continuous_scores(dtype, shift):
    rng = np.random.default_rng(5)
    genuine, impostor = rng.normal(shift, 1, 3001).astype(dtype), rng.normal(0, 1, 7001).astype(dtype)
    assert ours.eer(genuine, impostor).value == pytest.approx(reference_eer(genuine, impostor), abs=1e-12)
    u = stats.mannwhitneyu(genuine.astype(float), impostor.astype(float)).statistic
    assert ours.auc(genuine, impostor) == pytest.approx(u / (3001 * 7001), abs=1e-12)


@pytest.mark.parametrize(
    ("genuine", "impostor", "eer", "auc"),
    [
        ([1.0, 1.0], [-1.0], 0.0, 1.0),  # exactly the ends of the range
        ([-1.0], [1.0, 1.0], 1.0, 0.0),  # wrong way round is worse than chance, never folded to 0
        ([0.3], [0.3], 0.5, 0.5),
        ([0.3] * 7, [0.3] * 1000, 0.5, 0.5),
        ([-np.inf] * 3, [-np.inf] * 5, 0.5, 0.5),  # nothing could be compared
        ([1.0, 0.0], [1.0, 0.0], 0.5, 0.5),
        ([1.0, -np.inf], [0.0, -np.inf], 0.5, 0.625),
        ([5.0, 4.0], [-3.0, -100.0], 0.0, 1.0),  # scores are never squashed or clipped
    ],
)
def test_known_answers(genuine, impostor, eer, auc):
    assert ours.eer(genuine, impostor).value == pytest.approx(eer, abs=1e-15)
    assert ours.auc(genuine, impostor) == pytest.approx(auc, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(scores, scores)
def test_eer_does_not_change_under_a_strictly_rising_map(genuine, impostor):
    """Ranks alone decide; a sigmoid that does not lose digits changes nothing."""
    g, i = np.array(genuine), np.array(impostor)
    assert ours.eer(g, i).value == ours.eer(1000 * g - 3, 1000 * i - 3).value
    assert ours.auc(g, i) == ours.auc(1000 * g - 3, 1000 * i - 3)


@settings(max_examples=100, deadline=None)
@given(scores, scores)
def test_exchanging_the_classes_mirrors(genuine, impostor):
    assert ours.eer(genuine, impostor).value + ours.eer(impostor, genuine).value == pytest.approx(1, abs=1e-12)
    assert ours.auc(genuine, impostor) + ours.auc(impostor, genuine) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("bad", [([], [1.0]), ([1.0], [])])
def test_one_class_is_refused(bad):
    for figure in (ours.eer, ours.auc, ours.roc):
        with pytest.raises(ValueError, match=r"no (genuine|impostor) scores"):
            figure(*bad)


def test_nan_is_refused_not_dropped():
    for figure in (ours.eer, ours.auc, ours.roc):
        with pytest.raises(ValueError, match="NaN"):
            figure([0.5, np.nan], [0.1])


def test_roc_points_equal_counting():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.integers(-3, 9, 50) / 8, rng.integers(-8, 5, 80) / 8
    curve = ours.roc(genuine, impostor)
    for t, fmr, fnmr in zip(*curve, strict=True):
        assert fmr == pytest.approx((impostor >= t).mean())
        assert fnmr == pytest.approx((genuine < t).mean())
    assert (curve.fmr[0], curve.fnmr[0]) == (1, 0)
    assert (curve.fmr[-1], curve.fnmr[-1]) == (0, 1)
    fpr, tpr, _ = roc_curve(np.r_[np.ones(50), np.zeros(80)], np.r_[genuine, impostor], drop_intermediate=False)
    np.testing.assert_allclose(curve.fmr[::-1], fpr)
    np.testing.assert_allclose(1 - curve.fnmr[::-1], tpr)


def large(case):
    """More scores than are sorted whole."""
    rng = np.random.default_rng(7)
    genuine, impostor = rng.normal(1.5, 1, 60_000).astype(np.float32), rng.normal(0, 1, 90_001).astype(np.float32)
    if case == "ties":
        return np.round(genuine * 4) / 4, np.round(impostor * 4) / 4
    if case == "failed":
        genuine[::3], impostor[::2] = -np.inf, -np.inf
    if case == "mostly failed":
        genuine[:59_000], impostor[:89_990] = -np.inf, -np.inf
    if case == "constant":
        genuine[:], impostor[:] = 0.5, 0.5
    if case == "separated":
        genuine += 20
    if case == "reversed":
        genuine -= 20
    if case == "sorted":
        genuine.sort()
        impostor[::-1].sort()
    if case == "float64":
        return genuine.astype(np.float64), impostor
    if case == "few genuine":
        genuine = genuine[:3]
    if case == "periodic":  # every member that the bracket is looked for with is untypical
        genuine[:: max(1, len(genuine) // ours._PROBE)] = 50
        impostor[:: max(1, len(impostor) // ours._PROBE)] = 40
    if case == "zeros":
        genuine[::2], impostor[::2] = 0.0, -0.0
    return genuine, impostor


CASES = [
    *("plain", "ties", "failed", "mostly failed", "constant", "separated", "reversed", "sorted", "float64", "few genuine"),
    *("periodic", "zeros"),
]


@pytest.mark.parametrize("case", CASES)
def test_large_samples(case):
    genuine, impostor = large(case)
    assert len(genuine) + len(impostor) > ours._MANY
    g, i = (np.where(np.isinf(x), np.float32(-1e30), x).astype(float) for x in (genuine, impostor))  # scikit-learn: finite
    found = ours.eer(genuine, impostor)
    assert found.value == pytest.approx(reference_eer(g, i), abs=1e-12)
    assert (impostor >= found.threshold).mean() >= (genuine < found.threshold).mean()
    y = np.r_[np.ones(len(g)), np.zeros(len(i))]
    assert ours.auc(genuine, impostor) == pytest.approx(roc_auc_score(y, np.r_[g, i]), abs=1e-12)
    fpr, tpr, thresholds = roc_curve(y, np.r_[g, i], drop_intermediate=False)
    curve = ours.roc(genuine, impostor)
    np.testing.assert_allclose(curve.fmr[::-1], fpr, atol=1e-15)
    np.testing.assert_allclose(1 - curve.fnmr[::-1], tpr, atol=1e-15)
    np.testing.assert_array_equal(
        curve.threshold[::-1][1:], np.where(thresholds[1:] == np.float32(-1e30), -np.inf, thresholds[1:])
    )


def test_the_bracket_is_found_and_a_wrong_one_is_noticed():
    genuine, impostor = large("plain")
    gen, gen_below, imp, _ = ours._bracketed(genuine, impostor)
    assert 0 < len(gen) < len(genuine) / 4
    assert 0 < len(imp) < len(impostor) / 4
    assert gen_below == (genuine < gen.min()).sum()
    gen, gen_below, imp, imp_below = ours._bracketed(*large("periodic"))
    assert (len(gen), gen_below, len(imp), imp_below) == (60_000, 0, 90_001, 0)


@settings(max_examples=100, deadline=None)
@given(scores, scores, st.booleans())
def test_levels_equal_counting(genuine, impostor, short):
    g, i = (np.array(x, np.float32 if short else np.float64) for x in (genuine, impostor))
    g[0], i[-1] = -np.inf, -np.inf
    found = ours.levels(g, i)
    assert found.score.tolist() == sorted({*g.tolist(), *i.tolist()})
    for k, score in enumerate(found.score):
        expected = [(g == score).sum(), (i == score).sum(), (g < score).sum(), (i < score).sum()]
        assert [column[k] for column in found[1:]] == expected


def test_thin_keeps_ends_and_points():
    rng = np.random.default_rng(0)
    curve = ours.roc(rng.normal(2, 1, 3000), rng.normal(0, 1, 30000))
    thin = ours.thin(curve, 200)
    assert 100 <= len(thin.fmr) <= 200
    assert (thin.fmr[0], thin.fnmr[0], thin.fmr[-1], thin.fnmr[-1]) == (1, 0, 0, 1)
    assert set(thin.threshold) <= set(curve.threshold)
    assert (np.diff(thin.fmr) <= 0).all()
    assert ours.thin(thin, 500) is thin
    # Low error rates are kept, not only the middle.
    assert (thin.fmr[thin.fmr > 0].min()) < 1e-3
