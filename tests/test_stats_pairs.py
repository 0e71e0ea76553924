"""The pair bootstrap against resamples written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from deidbench.stats import calibration, intervals, linkability, pairs, roc


def make(persons, images, seed, levels=None):
    """Scores of all ordered pairs of different images: higher within a person; ``levels`` makes ties."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(persons), images)
    a, b = np.nonzero(~np.eye(len(who), dtype=bool))
    same = who[a] == who[b]
    s = rng.normal(0, 1, len(a)) + 1.5 * same + 0.5 * rng.normal(size=persons)[who[a]]
    if levels:
        s = np.round(s * levels) / levels
    s = s.astype(np.float32)
    return pairs.Pairs(s[same], who[a][same], s[~same], who[a][~same], who[b][~same])


def written_out(p, weights):
    """Genuine scores repeated w_i times, impostor scores w_i * w_j times."""
    return (
        np.repeat(p.genuine, weights[p.genuine_person].astype(int)),
        np.repeat(p.impostor, weights[p.impostor_a].astype(int) * weights[p.impostor_b].astype(int)),
    )


def names(n):
    return [f"{i:04d}" for i in range(n)]


@pytest.mark.parametrize(
    ("persons", "images", "levels"), [(6, 4, None), (6, 4, 2), (3, 2, 1), (12, 5, 8), (25, 3, None), (40, 4, 50)]
)
def test_eer_and_auc_equal_the_resample_written_out(persons, images, levels):
    p = make(persons, images, persons, levels)
    draws = intervals.person_draws(names(persons), 60, 0)
    eer, auc = pairs.bootstrap_eer(p, draws), pairs.bootstrap_auc(p, draws)
    for b, row in enumerate(draws.astype(float)):
        genuine, impostor = written_out(p, row)
        if not len(impostor):
            assert np.isnan(eer[b])
            assert np.isnan(auc[b])
        else:
            assert eer[b] == pytest.approx(roc.eer(genuine, impostor).value, abs=1e-12)
            assert auc[b] == pytest.approx(roc.auc(genuine, impostor), abs=1e-12)


def test_extremes_and_infinities():
    p = make(8, 3, 1)
    p.genuine[:7] = -np.inf  # comparisons that could not be made
    p.impostor[::3] = -np.inf
    p.genuine[-3:] = 1.0
    draws = intervals.person_draws(names(8), 40, 0)
    eer, auc = pairs.bootstrap_eer(p, draws), pairs.bootstrap_auc(p, draws)
    for b, row in enumerate(draws.astype(float)):
        g, i = written_out(p, row)
        assert eer[b] == pytest.approx(roc.eer(g, i).value, abs=1e-12)
        assert auc[b] == pytest.approx(roc.auc(g, i), abs=1e-12)


@pytest.mark.parametrize("value", [-np.inf, -1.0, 0.0, 1.0])
def test_constant_scores_are_at_chance_in_every_replicate(value):
    p = make(8, 3, 1)
    p.genuine[:] = value
    p.impostor[:] = value
    draws = intervals.person_draws(names(8), 200, 0)
    assert set(pairs.bootstrap_eer(p, draws)) == {0.5}
    assert set(pairs.bootstrap_auc(p, draws)) == {0.5}


def test_separated_scores():
    p = make(8, 3, 1)
    p.genuine[:] = 1
    p.impostor[:] = -1
    draws = intervals.person_draws(names(8), 200, 0)
    assert set(pairs.bootstrap_eer(p, draws)) == {0}
    assert set(pairs.bootstrap_auc(p, draws)) == {1}


def test_replicates_do_not_depend_on_the_order_of_pairs():
    p = make(10, 4, 2, levels=4)
    rng = np.random.default_rng(0)
    g, i = rng.permutation(len(p.genuine)), rng.permutation(len(p.impostor))
    q = pairs.Pairs(p.genuine[g], p.genuine_person[g], p.impostor[i], p.impostor_a[i], p.impostor_b[i])
    draws = intervals.person_draws(names(10), 300, 0)
    np.testing.assert_array_equal(pairs.bootstrap_eer(p, draws), pairs.bootstrap_eer(q, draws))
    np.testing.assert_allclose(pairs.bootstrap_auc(p, draws), pairs.bootstrap_auc(q, draws), atol=1e-14)


def test_binned_auc_is_near_the_exact_one(monkeypatch):
    p = make(60, 5, 7)
    draws = intervals.person_draws(names(60), 300, 0)
    exact = pairs.bootstrap_auc(p, draws)
    monkeypatch.setattr(pairs, "EXACT_AUC_PERSONS", 10)
    binned = pairs.bootstrap_auc(p, draws)
    assert not np.array_equal(exact, binned)  # else this tests nothing
    assert np.abs(exact - binned).max() < 5e-4
    ends = np.quantile(exact, [0.025, 0.975])
    assert np.abs(ends - np.quantile(binned, [0.025, 0.975])).max() < 1e-4 < np.ptp(ends) / 50


def test_pair_rate_equals_a_loop():
    p = make(7, 3, 3)
    accepted = p.impostor >= 0.8
    weights = intervals.double_or_nothing_draws(names(7), 80, 0)
    found = pairs.bootstrap_pair_rate(accepted, p.impostor_a, p.impostor_b, weights)
    for b, row in enumerate(weights.astype(float)):
        w = row[p.impostor_a] * row[p.impostor_b]
        if w.sum() == 0:
            assert np.isnan(found[b])
        else:
            assert found[b] == pytest.approx((w * accepted).sum() / w.sum(), abs=1e-12)


def test_double_or_nothing_sees_the_dependence_that_a_pair_bootstrap_misses():
    """Two 'wolves' cause all false matches: the interval must be far wider than binomial."""
    p = make(30, 3, 3)
    accepted = (p.impostor_a < 2) | (p.impostor_b < 2)
    weights = intervals.double_or_nothing_draws(names(30), 3000, 0)
    spread = np.nanstd(pairs.bootstrap_pair_rate(accepted, p.impostor_a, p.impostor_b, weights))
    rate = accepted.mean()
    assert spread > 10 * np.sqrt(rate * (1 - rate) / len(accepted))


def test_empty_pairs_give_nan():
    p = make(4, 2, 0)
    none = pairs.Pairs(p.genuine[:0], p.genuine_person[:0], p.impostor, p.impostor_a, p.impostor_b)
    draws = intervals.person_draws(names(4), 10, 0)
    assert np.isnan(pairs.bootstrap_eer(none, draws)).all()
    assert np.isnan(pairs.bootstrap_auc(none, draws)).all()


@pytest.mark.parametrize("share", [0.9, 0.97, 1.0])
def test_nearly_all_failed_is_exact_too(share):
    """Failures scored -inf tie by the thousand; the crossing then lies within a handful of levels."""
    p = make(16, 6, 3, 4)
    rng = np.random.default_rng(1)
    p.genuine[rng.random(len(p.genuine)) < share] = -np.inf
    p.impostor[rng.random(len(p.impostor)) < share] = -np.inf
    draws = intervals.person_draws(names(16), 40, 0)
    eer = pairs.bootstrap_eer(p, draws)
    for b, row in enumerate(draws.astype(float)):
        assert eer[b] == pytest.approx(roc.eer(*written_out(p, row)).value, abs=1e-12)


SHAPES = [(6, 4, None), (6, 4, 2), (3, 2, 1), (12, 5, 8), (25, 3, None)]


@pytest.mark.parametrize(("persons", "images", "levels"), SHAPES)
def test_histograms_equal_the_resample_written_out(persons, images, levels):
    p = make(persons, images, persons, levels)
    p.genuine[:3] = -np.inf
    p.impostor[::7] = -np.inf
    edges = np.r_[np.unique(p.genuine[3:40:4]).astype(float), 90.0]  # on scores, and beyond all
    draws = intervals.person_draws(names(persons), 30, 0)
    found = pairs.bootstrap_binned(p, draws, edges)
    assert found.genuine.shape == found.impostor.shape == (30, len(edges) + 1)
    for b, row in enumerate(draws.astype(float)):
        for counts, scores in zip(found, written_out(p, row), strict=True):
            under = [(scores < edge).sum() for edge in edges]
            expected = np.diff([0, *under, len(scores)])
            np.testing.assert_array_equal(counts[b], expected)


def test_edges_between_two_float32_are_not_rounded_down():
    p = make(4, 2, 0)
    edge = float(np.sort(p.impostor)[20]) + 1e-12  # rounds to the median itself
    found = pairs.bootstrap_binned(p, np.ones((1, 4), np.uint8), [edge])
    assert found.impostor[0, 1] == (p.impostor.astype(float) >= edge).sum() < (p.impostor >= np.float32(edge)).sum()


@pytest.mark.parametrize("cells", [0, 1 << 26])
@pytest.mark.parametrize(("columns", "block", "exact32"), [(1, 1 << 24, 1 << 24), (20, 50, 1 << 24), (40, 1 << 24, 100)])
def test_blocks_and_precision_change_nothing(monkeypatch, columns, block, exact32, cells):
    p = make(13, 4, 2)
    draws = intervals.person_draws(names(13), 40, 0)
    whole = pairs.bootstrap_all(p, draws)
    monkeypatch.setattr(pairs, "_COLUMNS", columns)
    monkeypatch.setattr(pairs, "_BLOCK", block)
    monkeypatch.setattr(pairs, "_EXACT32", exact32)
    monkeypatch.setattr(pairs, "_CELLS", cells)
    assert len(list(pairs._blocks(13))) > 1
    for a, b in zip(whole, pairs.bootstrap_all(p, draws), strict=True):
        np.testing.assert_array_equal(a, b)


def test_blocks_number_the_pairs_of_persons():
    found = [(i, j) for i in range(13) for j in range(i + 1, 13)]
    at = 0
    for block in pairs._blocks(13):
        for k in range(block.columns):
            i, j = found[at + k]
            assert block.start <= i < block.stop
            assert block.column(i) + j == k
        at += block.columns
    assert at == len(found)


@pytest.mark.parametrize(("persons", "images", "levels"), SHAPES)
def test_d_sys_equals_the_resample_written_out(persons, images, levels):
    p = make(persons, images, persons, levels)
    p.impostor[::7] = -np.inf
    draws = intervals.person_draws(names(persons), 40, 0)
    bins, omega = 9, 0.5
    found = pairs.bootstrap_d_sys(p, draws, bins, omega)
    finite = np.r_[p.genuine, p.impostor][np.r_[p.genuine, p.impostor] > -np.inf].astype(float)
    lower = np.linspace(finite.min(), finite.max(), bins + 1)[:-1]  # of the sample, not of the replicate
    for b, row in enumerate(draws.astype(float)):
        genuine, impostor = written_out(p, row)
        if not len(impostor):
            assert np.isnan(found[b])
            continue
        share = [np.bincount((x[:, None] >= lower).sum(1), minlength=bins + 1) / len(x) for x in (genuine, impostor)]
        expected = sum(g * max(omega * g - i, 0) / (omega * g + i) for g, i in zip(*share, strict=True) if g)
        assert found[b] == pytest.approx(expected, abs=1e-12)


def test_cllr_min_is_near_the_resample_written_out():
    """Exact where the bins hold one score each, within 2e-3 in each replicate and 5e-4 in the ends of an interval else."""
    for p, tolerance in ((make(12, 5, 3, levels=8), 1e-12), (make(30, 6, 3), 3e-3)):
        persons = p.genuine_person.max() + 1
        draws = intervals.person_draws(names(persons), 200, 0)
        found = pairs.bootstrap_cllr_min(p, draws)
        exact = np.array([calibration.cllr_min(*written_out(p, row)) for row in draws.astype(float)])
        assert np.abs(found - exact).max() < tolerance
        ends = np.quantile(exact, [0.025, 0.975])
        assert np.abs(ends - np.quantile(found, [0.025, 0.975])).max() < 1e-3 < np.ptp(ends) / 20


@pytest.mark.parametrize(("persons", "images", "levels"), [(12, 5, 8), (25, 3, None), (110, 3, None)])
def test_all_figures_together_equal_each_alone(persons, images, levels):
    p = make(persons, images, 1, levels)
    p.impostor[::50] = -np.inf
    draws = intervals.person_draws(names(persons), 50, 0)
    whole = pairs.bootstrap_all(p, draws)
    np.testing.assert_array_equal(whole.eer, pairs.bootstrap_eer(p, draws))
    np.testing.assert_array_equal(whole.auc, pairs.bootstrap_auc(p, draws))
    np.testing.assert_array_equal(whole.cllr_min, pairs.bootstrap_cllr_min(p, draws))
    np.testing.assert_array_equal(whole.d_sys, pairs.bootstrap_d_sys(p, draws))
    # One draw of everybody is the sample.
    one = pairs.bootstrap_all(p, np.ones((1, persons), np.uint8))
    assert one.eer[0] == roc.eer(p.genuine, p.impostor).value
    assert one.auc[0] == pytest.approx(roc.auc(p.genuine, p.impostor), abs=1e-12)
    assert one.cllr_min[0] == pytest.approx(calibration.cllr_min(p.genuine, p.impostor), abs=1e-12)
    assert one.d_sys[0] == pytest.approx(linkability.d_sys(p.genuine, p.impostor).value, abs=1e-12)


def test_all_figures_of_constant_separated_and_empty_samples():
    draws = intervals.person_draws(names(8), 100, 0)
    for values, expected in (((0.5, 0.5), (0.5, 0.5, 1, 0)), ((-np.inf, -np.inf), (0.5, 0.5, 1, 0)), ((1, -1), (0, 1, 0, 1))):
        p = make(8, 3, 1)
        p.genuine[:], p.impostor[:] = values
        for replicates, value in zip(pairs.bootstrap_all(p, draws)[:4], expected, strict=True):
            assert set(replicates) == {value}
    none = p._replace(genuine=p.genuine[:0], genuine_person=p.genuine_person[:0])
    for replicates in pairs.bootstrap_all(none, draws)[:4]:
        assert replicates.shape == (100,)
        assert np.isnan(replicates).all()
    det = pairs.bootstrap_all(none, draws, [0.1, 0.2]).fnmr
    assert det.shape == (100, 2)
    assert np.isnan(det).all()


@pytest.mark.parametrize(("persons", "images"), [(12, 5), (40, 4), (130, 3)])
def test_det_replicates_are_near_the_resample_written_out(persons, images):
    p = make(persons, images, persons)
    draws = intervals.person_draws(names(persons), 40, 0)
    fmr = np.array([0.001, 0.01, 0.05, 0.1, 0.3, 0.6, 0.9])
    found = pairs.bootstrap_all(p, draws, fmr).fnmr

    def exact(genuine, impostor):
        curve = roc.roc(genuine, impostor)
        return np.interp(fmr, curve.fmr[::-1], curve.fnmr[::-1])

    expected = np.array([exact(*written_out(p, row.astype(float))) for row in draws])
    # a tenth of the spread of the replicates: adds about a hundredth to the width of the band
    assert np.abs(found - expected).max() < 0.5 * expected.std(0).max()
    assert np.abs(found - expected).mean() < 0.15 * expected.std(0).mean()
    one = pairs.bootstrap_all(p, np.ones((1, persons), np.uint8), fmr).fnmr[0]
    np.testing.assert_allclose(one, exact(p.genuine, p.impostor), atol=1e-12)


def test_a_full_bin_is_divided_further(monkeypatch):
    """Few persons with many images each: the crossing's bin holds more pairs than are worth looking at one by one."""
    p = make(4, 60, 0)
    draws = intervals.person_draws(names(4), 25, 0)
    monkeypatch.setattr(pairs, "AUC_BINS", 8)
    sizes, crossings = [], pairs._crossings
    monkeypatch.setattr(pairs, "_crossings", lambda *args: sizes.append(len(args[0].impostor)) or crossings(*args))
    eer = pairs.bootstrap_eer(p, draws)
    assert len(sizes) > 1
    for b, row in enumerate(draws.astype(float)):
        genuine, impostor = written_out(p, row)
        if len(impostor):
            assert eer[b] == pytest.approx(roc.eer(genuine, impostor).value, abs=1e-12)


def test_recentred_replicates_lie_about_the_figure():
    p = make(40, 5, 0)
    p.genuine[:] = np.random.default_rng(1).normal(size=len(p.genuine))  # no identity
    p.impostor[:] = np.random.default_rng(2).normal(size=len(p.impostor))
    draws = intervals.person_draws(names(40), 300, 0)
    value = linkability.d_sys(p.genuine, p.impostor).value
    found = pairs.bootstrap_d_sys(p, draws)
    assert np.quantile(found, 0.1) > value  # why it is needed
    moved = pairs.recentred(found, value)
    assert moved.mean() == pytest.approx(value)
    assert moved.std() == pytest.approx(found.std())
    np.testing.assert_allclose(pairs.recentred(np.array([0.1, np.nan, 0.3]), 0.9), [0.8, np.nan, 1.0])
    assert np.isnan(pairs.recentred(np.full(3, np.nan), 0.5)).all()


@pytest.mark.parametrize("persons", [1000, 3001])
def test_draws_of_many_persons_are_multinomial(persons):
    """The stream for many persons (a table of Poisson counts, filled up) against the distribution and its moments."""
    draws = intervals.person_draws(names(persons), 3000, 0)
    assert draws.shape == (3000, persons)
    assert (draws.sum(1) == persons).all()
    counts = np.bincount(draws.ravel(), minlength=8)
    expected = stats.binom.pmf(np.arange(7), persons, 1 / persons)
    expected = draws.size * np.append(expected, 1 - expected.sum())
    observed = np.append(counts[:7], counts[7:].sum())
    # The counts of a row depend on each other, which makes chi-square smaller, never larger.
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # Covariance of two persons: -1 / P; seen in the variance of the count of a group of them, k (P - k) / P.
    k = persons // 3
    groups = draws[:, : 3 * k].reshape(3000, 3, k).sum(2)
    np.testing.assert_allclose(groups.mean(0), k, atol=5 * np.sqrt(k / 3000))
    np.testing.assert_allclose(groups.var(0), k * (persons - k) / persons, rtol=0.15)
    # Every place of a row is drawn alike, the last ones too.
    assert abs(draws[:, -9:].mean() - 1) < 5 / np.sqrt(27_000)


def test_draws_of_many_persons_depend_on_seed_and_persons_only(monkeypatch):
    draws = intervals._multinomial(tuple(names(1500)), 700, 3)
    np.testing.assert_array_equal(draws, intervals._multinomial(tuple(names(1500)), 3000, 3)[:700])  # 3000 rows: in threads
    monkeypatch.setattr(intervals, "_threads", lambda: 1)
    np.testing.assert_array_equal(draws, intervals._multinomial(tuple(names(1500)), 3000, 3)[:700])
    assert not np.array_equal(draws, intervals._multinomial(tuple(names(1500)), 700, 4))
    assert not np.array_equal(draws, intervals._multinomial(tuple(names(1501))[1:], 700, 3))
    assert not np.array_equal(draws[:32], draws[32:64])  # each chunk has a seed of its own


def test_draws_of_few_persons_are_those_of_the_published_results():
    """The reference results were computed with this stream: chunks of 256 rows of picks from one generator."""
    persons = names(40)
    entropy = intervals._entropy(persons, 7, "multinomial")
    picks = np.random.default_rng(entropy).integers(0, 40, size=(256, 40), dtype=np.uint16)
    expected = [np.bincount(row, minlength=40) for row in picks]
    np.testing.assert_array_equal(intervals.person_draws(persons, 256, 7), expected)


def test_poisson_counts_follow_the_distribution_to_the_last_digit():
    """Bytes that decide a count lie within its interval of the distribution function; all others are decided by 53 more bits."""
    distribution = intervals._poisson_distribution(0.9)
    np.testing.assert_allclose(distribution, stats.poisson.cdf(np.arange(30), 0.9), atol=1e-15)
    table = intervals._poisson_table(distribution).view(np.uint8).reshape(256, 256, 2)
    one = table[0, :, 0]
    np.testing.assert_array_equal(table[..., 0], np.broadcast_to(one, (256, 256)))
    np.testing.assert_array_equal(table[..., 1], np.broadcast_to(one[:, None], (256, 256)))
    lower = np.append(0, distribution)
    for byte, count in enumerate(one):
        inside = [k for k in range(30) if lower[k] < (byte + 1) / 256 and distribution[k] > byte / 256]
        assert inside == [count] if count != 255 else len(inside) > 1


def test_whole_numbers_in_float32_change_nothing():
    rng = np.random.default_rng(0)
    draws = intervals.person_draws(names(1200), 500, 0)
    hits, trials = rng.integers(0, 9, 1200).astype(float), np.full(1200, 9.0)
    found = intervals.ratio_replicates(hits, trials, draws)
    np.testing.assert_array_equal(found, (draws.astype(np.int64) @ hits) / (draws.astype(np.int64) @ trials))
    big = hits * 2.0**20 + 1  # beyond float32
    exact = (draws.astype(np.int64) @ big.astype(np.int64)) / (draws.astype(np.int64) @ trials.astype(np.int64))
    np.testing.assert_array_equal(intervals.ratio_replicates(big, trials, draws), exact)
