"""The streaming comparison and the search give what the full score matrix gives, whatever the tiles and parts."""

from __future__ import annotations

import numpy as np
import pytest

from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import identification, search, streaming, verification
from deidbench.metrics.reid.base import SCORE_GRID, cosine
from deidbench.stats import roc

KINDS = ("random", "ties", "constant", "opposite", "coarse", "long")


def embeddings(kind: str, n: int, d: int, lost: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of one kind, a share ``lost`` of them NaN."""
    x = rng.normal(size=(n, d))
    if kind == "ties":
        x = x[rng.integers(0, max(1, n // 3), n)]
    if kind == "constant":
        x[:] = 1
    if kind == "opposite":  # scores are 1 and -1
        x = np.outer(np.where(np.arange(n) % 2, 1, -1), np.arange(1, d + 1))
    if kind in ("coarse", "long"):
        x = np.sign(x)
    x = l2_normalise(x)
    if kind == "long":  # unit to the tolerance only: products beyond 1 and -1, which tie with them
        x = (np.outer(np.sign(x[:, 0]), x[0]) * rng.uniform(1 - 4e-4, 1 + 4e-4, (n, 1))).astype(np.float32)
    x[rng.random(n) < lost] = np.nan
    return x


def task(kind: str, mode: str, n: int, d: int, persons: int, lost: float) -> tuple[np.ndarray, ...]:
    """gallery, probes, probe_person, gallery_person, same_image."""
    rng = np.random.default_rng([n, d, KINDS.index(kind)])
    person = rng.integers(0, persons, n)
    if mode == "leave-one-out":  # the gallery is clear, the probes are not
        return embeddings(kind, n, d, lost, rng), embeddings(kind, n, d, lost, rng), person, person, np.arange(n)
    x = embeddings(kind, n, d, lost, rng)
    enrolled = rng.random(n) < 0.5
    return x[enrolled], x[~enrolled], person[~enrolled], person[enrolled], np.full(int((~enrolled).sum()), -1)


SIZES = [(150, 24, 25), (110, 8, 2), (9, 4, 3), (40, 16, 40), (1, 8, 1), (2, 8, 1)]


@pytest.mark.parametrize("lost", [0, 0.1, 0.95, 1])
@pytest.mark.parametrize("mode", ["leave-one-out", "split"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_full_matrix(kind, mode, lost):
    for n, d, persons in SIZES:
        gallery, probes, pp, gp, own = data = task(kind, mode, n, d, persons, lost)
        scores = cosine(gallery, probes)
        standing = identification.identify(lambda rows, s=scores: s[rows], pp, gp, own)
        pairs = verification.extract(scores, pp, gp, own)
        group = np.random.default_rng(1).integers(0, 3, persons)
        tile = (40, 64) if n > 50 else (3, 7)
        for got in (streaming.compare_all(*data), streaming.compare_all(*data, tile=tile, threads=2, group=group)):
            for a, b in zip(got.standing, standing, strict=True):
                np.testing.assert_array_equal(a, b)
            assert (got.genuine.total, got.impostor.total) == (len(pairs.genuine), len(pairs.impostor))
            assert (got.genuine.total, got.impostor.total) == (got.mates.sum(), got.others.sum())
            for levels, sample in ((got.genuine, pairs.genuine), (got.impostor, pairs.impostor)):
                finite = np.rint(sample[np.isfinite(sample)] / SCORE_GRID).astype(int) + streaming.LEVELS // 2
                np.testing.assert_array_equal(levels.counts, np.bincount(finite, minlength=streaming.LEVELS))
            assert got.genuine_by_group.sum() == len(pairs.genuine)
            assert got.impostor_by_group.sum() == len(pairs.impostor) and got.impostor_by_group.min(initial=0) >= 0
            if len(gallery):
                known = np.nan_to_num(scores, nan=-np.inf)
                mate = (pp[:, None] == gp) & (own[:, None] != np.arange(len(gp)))
                np.testing.assert_array_equal(got.best_mate, np.where(mate, known, -np.inf).max(1))
                np.testing.assert_array_equal(got.best_other, np.where(pp[:, None] != gp, known, -np.inf).max(1))


@pytest.mark.parametrize("lost", [0, 0.3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_figures_equal_those_of_the_scores(kind, lost):
    for n, d, persons in SIZES[:3]:
        gallery, probes, pp, gp, own = data = task(kind, "leave-one-out", n, d, persons, lost)
        pairs = verification.extract(cosine(gallery, probes), pp, gp, own)
        got = streaming.compare_all(*data)
        assert got.eer() == roc.eer(pairs.genuine, pairs.impostor)
        assert got.auc() == roc.auc(pairs.genuine, pairs.impostor)
        for a, b in zip(got.roc(), roc.roc(pairs.genuine, pairs.impostor), strict=True):
            np.testing.assert_array_equal(a, b)
        for fmr in (0, 0.001, 0.01, 0.1, 0.29, 0.5, 0.999):
            threshold = got.impostor.threshold_at_fmr(fmr)
            assert threshold == verification.threshold_at_fmr(pairs.impostor, fmr)
            for levels, sample in ((got.genuine, pairs.genuine), (got.impostor, pairs.impostor)):
                assert levels.rate(threshold) == verification.accepted_rate(sample, threshold)
        for threshold in (-np.inf, -1.0, 0.0, 0.123456, 1.0, 1.5):
            assert got.impostor.rate(threshold) == verification.accepted_rate(pairs.impostor, threshold)


def test_auc_of_more_pairs_than_64_bits_count():
    genuine, impostor = (np.zeros(streaming.LEVELS, np.int64) for _ in range(2))
    genuine[[10, 20]] = 3 * 10**9
    impostor[[10, 15]] = 10**12
    # Ties at 10 (half), below 15, above both: (0.5 * 1 + 0 + 1 + 1) / 4.
    assert streaming.auc(streaming.Levels(genuine), streaming.Levels(impostor)) == 0.625


def test_one_class_sets():
    gallery, probes, pp, gp, own = task("random", "leave-one-out", 9, 4, 1, 0)
    alone = streaming.compare_all(gallery, probes, pp, gp, own)
    with pytest.raises(ValueError, match="no impostor"):
        alone.eer()
    with pytest.raises(ValueError, match="no impostor"):
        alone.impostor.threshold_at_fmr(0.1)
    with pytest.raises(ValueError, match="no scores"):
        alone.impostor.rate(0.5)
    strangers = streaming.compare_all(gallery, probes, np.arange(9), np.arange(9), own)
    with pytest.raises(ValueError, match="no genuine"):
        strangers.auc()
    assert strangers.standing.tied_mates.max() == 0


def test_states_of_parts_add_up():
    """Parts of the probes and of the gallery, merged in another order, with other tiles, threads and memory."""
    data = task("ties", "leave-one-out", 240, 16, 30, 0.1)
    group = streaming.person_groups([str(i) for i in range(30)], 4, 0)
    whole = streaming.compare_all(*data, group=group)
    t = streaming.Task.of(*data, group)
    parts = [(p, g) for p in (slice(0, 100), slice(100, 240)) for g in (slice(0, 7), slice(7, 150), slice(150, 240))]
    mates = streaming.Mates.empty(t)
    for p, g in parts[::-1]:
        mates = mates.merge(streaming.compare_mates(t, probes=p, gallery=g, threads=2))
    others = streaming.Others.empty(t)
    for i, (p, g) in enumerate(parts):
        some = streaming.compare_others(t, mates.best, probes=p, gallery=g, memory=100_000 << i, threads=1 + i % 2)
        others = some.merge(others)
    got = streaming.conclude(t, mates, others)
    for a, b in zip(got, whole, strict=True):
        for c, d in zip(*((x if isinstance(x, tuple) else (x,)) for x in (a, b)), strict=True):
            np.testing.assert_array_equal(c, d)


def test_groups_hold_the_pairs_of_their_persons():
    gallery, probes, pp, gp, _ = data = task("random", "leave-one-out", 150, 24, 25, 0.1)
    group = streaming.person_groups([str(i) for i in range(25)], 3, 0)
    got = streaming.compare_all(*data, group=group)
    scores = np.nan_to_num(cosine(gallery, probes), nan=-2)
    for g in range(3):
        for h in range(3):
            pair = (group[pp][:, None] == g) & (group[gp][None, :] == h) & (pp[:, None] != gp)
            level = np.rint(scores[pair] / SCORE_GRID).astype(int) + streaming.LEVELS // 2
            place = np.where(level < 0, 0, 1 + level // streaming.COARSE)
            expected = np.bincount(place, minlength=1 + streaming.COARSE_LEVELS)
            np.testing.assert_array_equal(got.impostor_by_group[g, h], expected)


def test_group_bootstrap():
    """Weights of 1 give the figure itself; a group drawn twice weighs its pairs as the definition says."""
    data = task("random", "leave-one-out", 200, 4, 40, 0)
    group = streaming.person_groups([str(i) for i in range(40)], 5, 0)
    got = streaming.compare_all(*data, group=group)
    draws = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1], [5, 0, 0, 0, 0]])
    replicates = streaming.group_replicates(got, draws)
    assert replicates.eer[0] == pytest.approx(got.eer().value, abs=1e-12)
    assert replicates.auc[0] == pytest.approx(got.auc(), abs=1e-12)
    gallery, probes, pp, gp, own = data
    pairs = verification.extract(cosine(gallery, probes), pp, gp, own)
    g_of, a, b = (group[x] for x in (pairs.genuine_person, pairs.impostor_a, pairs.impostor_b))
    for w, eer, auc in zip(draws, *replicates, strict=True):
        genuine = np.repeat(pairs.genuine, w[g_of])
        impostor = np.repeat(pairs.impostor, w[a] * w[b])
        assert eer == pytest.approx(roc.eer(genuine, impostor).value, abs=2e-3)
        assert auc == pytest.approx(roc.auc(genuine, impostor), abs=1e-4)
    nobody = streaming.group_replicates(got, np.zeros((1, 5), int))
    assert np.isnan(nobody.eer).all() and np.isnan(nobody.auc).all()


def test_person_groups_do_not_depend_on_the_others():
    names = [f"p{i}" for i in range(1000)]
    group = streaming.person_groups(names, 8, 0)
    np.testing.assert_array_equal(streaming.person_groups(names[::-1], 8, 0)[::-1], group)
    assert (streaming.person_groups(names, 8, 1) != group).any()
    assert np.bincount(group, minlength=8).min() > 80


def test_memory_maps_and_progress(tmp_path):
    gallery, probes, pp, gp, own = data = task("random", "leave-one-out", 150, 24, 25, 0.1)
    np.save(tmp_path / "g.npy", gallery)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    done: list[int] = []
    got = streaming.compare_all(mapped, probes, pp, gp, own, threads=2, tile=(16, 24), tick=done.append)
    np.testing.assert_array_equal(got.impostor.counts, streaming.compare_all(*data).impostor.counts)
    usable = [int(np.isfinite(x).all(1).sum()) for x in (gallery, probes)]
    assert sum(done) == usable[0] * usable[1]
    np.testing.assert_array_equal(search.search(mapped, probes, 3).column, search.search(gallery, probes, 3).column)


def test_an_error_in_a_thread_ends_the_work():
    data = task("random", "leave-one-out", 150, 24, 25, 0)

    def tick(pairs):
        raise RuntimeError("enough")

    for call in (
        lambda: streaming.compare_all(*data, threads=2, tile=(16, 24), tick=tick),
        lambda: search.search(data[0], data[1], 3, threads=2, tile=(16, 64), tick=tick),
    ):
        with pytest.raises(RuntimeError, match="enough"):
            call()


def test_threads_leave_torch_as_it_was():
    import torch

    before = torch.get_num_threads()
    streaming.compare_all(*task("random", "split", 40, 8, 10, 0), threads=2)
    assert torch.get_num_threads() == before


def test_refusals():
    gallery, probes, pp, gp, own = task("random", "leave-one-out", 9, 4, 3, 0)
    with pytest.raises(ValueError, match="same number of columns"):
        streaming.compare_all(gallery[:, :3], probes, pp, gp, own)
    with pytest.raises(ValueError, match="L2-normalised"):
        streaming.compare_all(2 * gallery, probes, pp, gp, own)
    with pytest.raises(ValueError, match="needs a person"):
        streaming.compare_all(gallery, probes, pp[1:], gp, own)
    with pytest.raises(ValueError, match="another person"):
        streaming.compare_all(gallery, probes, pp, (gp + 1) % 3, own)
    with pytest.raises(ValueError, match="a group each"):
        streaming.compare_all(gallery, probes, pp, gp, own, group=np.zeros(1, np.intp))
    with pytest.raises(ValueError, match="no tile of scores"):
        streaming.compare_all(gallery, probes, pp, gp, own, memory=100)
    with pytest.raises(ValueError, match="at least one thread"):
        streaming.compare_all(gallery, probes, pp, gp, own, threads=0)
    with pytest.raises(ValueError, match="at least one gallery image"):
        search.search(gallery, probes, 0)
    with pytest.raises(ValueError, match="L2-normalised"):
        search.search(gallery, 2 * probes, 1)


def best_by_sorting(scores: np.ndarray, k: int, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = np.nan_to_num(scores, nan=-np.inf)
    rows = np.flatnonzero(own >= 0)
    s[rows, own[rows]] = -np.inf
    s = np.pad(s, ((0, 0), (0, k)), constant_values=-np.inf)
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    value = np.take_along_axis(s, order, 1)
    return np.where(np.isneginf(value), -1, order), value


@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_sorting(kind):
    rng = np.random.default_rng(0)
    for n, m, d in ((40, 500, 64), (37, 1, 8), (5, 129, 512), (30, 700, 16)):
        gallery, probes = embeddings(kind, m, d, 0.05, rng), embeddings(kind, n, d, 0.05, rng)
        own = rng.integers(-1, m, n)
        scores = cosine(gallery, probes)
        for k in (1, 10, 200):
            expected = best_by_sorting(scores, k, own)
            for options in ({}, {"tile": (16, 64), "threads": 2}, {"memory": 8 << 20}):
                got = search.search(gallery, probes, k, same_image=own, **options)
                np.testing.assert_array_equal(got.column, expected[0])
                np.testing.assert_array_equal(got.score, expected[1])


@pytest.mark.parametrize("constant", [False, True])
def test_search_takes_float64_only_where_many_tie(monkeypatch, constant):
    used: list[int] = []
    exact = search._Block._in_float64
    monkeypatch.setattr(search._Block, "_in_float64", lambda self, p, own: used.append(len(p)) or exact(self, p, own))
    rng = np.random.default_rng(0)
    gallery = embeddings("constant" if constant else "random", 5000, 16, 0, rng)
    got = search.search(gallery, gallery[:50], 4)
    assert bool(used) == constant
    expected = np.tile(np.arange(4), (50, 1)) if constant else np.arange(50)[:, None]
    np.testing.assert_array_equal(got.column[:, : expected.shape[1]], expected)


def test_product_error_bounds_float32_products():
    rng = np.random.default_rng(0)
    for d in (8, 128, 512):
        # All of one sign: sums of the size of the score, where rounding is worst.
        x, y = (l2_normalise(np.abs(rng.normal(size=(300, d)))) for _ in range(2))
        error = np.abs(x @ y.T - search.on_grid(x) @ search.on_grid(y).T * SCORE_GRID).max()
        assert 0 < error <= search.product_error(d)
