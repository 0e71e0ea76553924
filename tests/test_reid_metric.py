"""The re-identification metric on synthetic embeddings with known answers, and the faults that must not be ours."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from deidbench.errors import InputError
from deidbench.kinds import attackers, metrics
from deidbench.metrics.base import Protocol, Table, quantities
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import ReIdentification
from deidbench.records import CONVENTIONS
from deidbench.stats import intervals

QUICK = Protocol(replicates=400, curve_replicates=100)


def table(embeddings, persons=20, images=5, method="m", fta=(), withheld=(), subjects=None):
    """A table around embeddings {recogniser: (n, d)}; withheld rows become NaN."""
    n = persons * images
    gone, lost = np.zeros(n, bool), np.zeros(n, bool)
    gone[list(withheld)] = True
    lost[list(fta)] = True
    out = {}
    for name, e in embeddings.items():
        out[name] = np.array(e, np.float32)
        out[name][gone] = np.nan
    return Table(
        dataset="synthetic",
        method=method,
        ids=np.array([f"i{i:04d}" for i in range(n)]),
        subjects=np.repeat([f"p{i:03d}" for i in range(persons)], images) if subjects is None else np.array(subjects),
        status=np.where(gone, "no_face", "ok"),
        withheld=gone,
        fta=lost,
        embeddings=out,
    )


def faces(noise, seed, persons=20, images=5, d=32):
    """Person effect (the same for every call) plus noise."""
    centre = np.random.default_rng(99).normal(size=(persons, d)).repeat(images, 0)
    return l2_normalise(centre + noise * np.random.default_rng(seed).normal(size=centre.shape))


CLEAR = table({"r": faces(0.1, 0)}, method="original")


def find(findings, metric, convention="headline", recognizer="r"):
    rows = [
        r
        for r in findings.rows
        if r.metric == f"reid.{metric}" and (r.convention, r.recognizer) in ((convention, recognizer), ("", ""))
    ]
    assert len(rows) == 1, rows
    return rows[0]


def worst(findings):
    return next(r for r in findings.rows if r.metric == "reid.worst_rank1")


def score(anonymised, clear=CLEAR, protocol=QUICK):
    return ReIdentification().score(clear, anonymised, protocol)


# --- registered, and shaped as promised


def test_registered():
    assert metrics.get("reid") is ReIdentification
    assert "ignorant" in attackers
    assert attackers.get("ignorant").gallery == "clear"
    assert json.dumps(metrics.create("reid").params())


def test_every_row_is_declared_and_explains_what_it_lacks():
    got = score(
        table({"r": faces(1.5, 1), "q": faces(1, 2)}, fta=[1, 2], withheld=[3]),
        dataclasses.replace(table({"r": faces(0.1, 0), "q": faces(0.1, 3)}), groups={"sex": np.repeat(["female", "male"], 50)}),
    )
    declared = quantities([ReIdentification])
    for row in got.rows:
        q = declared[row.metric]
        assert (row.unit, row.higher_is_better) == (q.unit, q.higher_is_better)
        assert q.axis == "privacy"
        assert (row.value is None) == bool(row.reason)
        assert (row.lo is None) == (row.hi is None) == bool(row.ci_reason)
        assert row.lo is None or (row.lo <= row.value <= row.hi and row.ci_method and row.ci_level == 0.95), row
        assert row.value is None or 0 <= row.value <= 1
        json.dumps(row.plain(), allow_nan=False)
    assert {r.metric for r in got.rows} == set(declared)
    keys = [(r.metric, r.recognizer, r.attacker, r.convention, r.label) for r in got.rows]
    assert len(keys) == len(set(keys))
    assert {r.comparison for r in got.rows if r.attacker} == {"leave-one-out"}


# --- known answers


def test_clear_images_are_found_again():
    got = score(dataclasses.replace(CLEAR))
    for k in (1, 5, 10):
        row = find(got, f"rank{k}")
        assert row.value == 1
        assert row.lo == pytest.approx(0.05 ** (1 / 20))
        assert "all events" in row.ci_method
    assert find(got, "eer").value == 0
    assert find(got, "eer").hi == pytest.approx(intervals.zero_events_bound(20, 0.95))
    assert find(got, "auc").value == 1
    assert worst(got).value == 1
    assert all(r.trusted for r in got.rows)


@pytest.mark.parametrize("protocol", [QUICK, dataclasses.replace(QUICK, comparison="split", enrolled=2)])
def test_constant_embedding_is_exactly_at_chance(protocol):
    constant = np.repeat(faces(1, 5)[:1], 100, 0)
    # A gallery that ties too: with a clear gallery, one picture finds the same few persons at every probe.
    tied = score(table({"r": constant}), table({"r": constant}), protocol)
    size, mates = (99, 4) if protocol.comparison == "leave-one-out" else (40, 2)
    for k in (1, 5, 10):
        row = find(tied, f"rank{k}")
        assert row.chance == pytest.approx(1 - math.comb(size - mates, k) / math.comb(size, k), abs=1e-12)
        assert row.value == row.chance
        assert row.lo is None
        assert row.ci_reason == "no variance between persons"
    assert find(tied, "eer").value == 0.5
    assert find(tied, "auc").value == 0.5
    assert not find(tied, "rank1").trusted  # this recogniser is blind on clear images


def test_withheld_images_are_chance_neither_dropped_nor_missed():
    got = score(table({"r": faces(0.1, 1)}, withheld=range(100)))
    for convention in ("headline", "fta_as_miss"):
        for k in (1, 5, 10):
            row = find(got, f"rank{k}", convention)
            assert row.value == pytest.approx(row.chance, abs=1e-12)
            assert (row.n_images, row.n_persons, row.n_failed) == (100, 20, 100)
        assert find(got, "eer", convention).value == 0.5
        assert find(got, "auc", convention).value == 0.5
        assert find(got, "tmr@fmr=0.1", convention).value == 0
        assert find(got, "tmr@fmr=0.1", convention).realised_fmr == 0
    none = find(got, "rank1", "without_fta")
    assert none.value is None
    assert none.reason
    assert none.n_images == 0
    assert find(got, "withheld").value == 1
    assert find(got, "fta").value is None
    assert find(got, "fta").reason == "no image was released"
    assert worst(got).value == pytest.approx(4 / 99)


def test_some_withheld_average_hits_and_chance():
    got = score(table({"r": faces(0.1, 1)}, withheld=range(0, 100, 4)))
    assert find(got, "rank1").value == pytest.approx(0.75 + 0.25 * 4 / 99)
    assert find(got, "rank1", "without_fta").value == 1
    assert find(got, "rank1", "without_fta").n_images == 75
    assert find(got, "withheld").value == 0.25
    assert find(got, "tmr@fmr=0.1").value == pytest.approx(0.75)  # never accepted, still counted


def test_random_embeddings_are_near_chance():
    """In the gallery too: in a gallery of tight clusters the first ten places hold few persons, which is below chance."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(20):
        a, b = (table({"r": l2_normalise(rng.normal(size=(100, 32)))}) for _ in range(2))
        got = score(a, b, dataclasses.replace(QUICK, replicates=50, curve_replicates=10))
        found.append([find(got, name).value - find(got, name).chance for name in ("rank1", "rank5", "rank10", "eer", "auc")])
    mean, error = np.mean(found, 0), np.std(found, 0, ddof=1) / np.sqrt(20)
    assert (np.abs(mean) < 4 * error).all(), (mean, error)
    assert error.max() < 0.02


def test_failure_to_acquire_in_three_views():
    """FTA probes whose fallback crop still shows the person: the attacker does not give up."""
    lost = range(0, 100, 2)
    got = score(table({"r": faces(0.1, 1)}, fta=lost))
    assert find(got, "fta").value == 0.5
    assert [find(got, "rank1", c).value for c in CONVENTIONS] == [1, 1, 0.5]
    assert [find(got, "rank1", c).n_images for c in CONVENTIONS] == [100, 50, 100]
    assert {find(got, "rank1", c).n_fta for c in CONVENTIONS} == {50}
    assert find(got, "tmr@fmr=0.1", "fta_as_miss").value == pytest.approx(0.5)
    assert find(got, "fnmr@fmr=0.1", "fta_as_miss").value == pytest.approx(0.5)
    assert find(got, "eer").value == 0
    assert find(got, "eer", "fta_as_miss").value > 0.2
    assert find(got, "rank10", "fta_as_miss").value == pytest.approx(0.5)  # a miss at every rank
    assert worst(got).value == 1  # the headline of headlines includes the fallback


def test_without_failures_the_conventions_agree():
    got = score(table({"r": faces(2, 1)}))
    for name in ("rank1", "eer", "auc", "tmr@fmr=0.1", "fmr@fmr=0.1"):
        rows = [dataclasses.replace(find(got, name, c), convention="") for c in CONVENTIONS]
        assert rows[0] == rows[1] == rows[2]


def test_a_released_image_without_embedding_counts_as_no_information():
    e = faces(0.1, 1)
    e[:10] = np.nan
    got = score(table({"r": e}))
    row = find(got, "rank1")
    assert row.value == pytest.approx(0.9 + 0.1 * 4 / 99)
    assert row.n_images == 100
    assert row.n_failed == 0
    assert "10 released probes without an embedding" in row.note


def test_a_dark_gallery_image_is_noted_and_ranks_last():
    e = faces(0.1, 0)
    e[0] = np.nan
    got = score(table({"r": faces(0.1, 1)}), table({"r": e}))
    assert "1 gallery images without an embedding" in find(got, "rank1").note
    assert find(got, "rank1").value == 1  # other mates are enrolled


# --- against independent references


def test_figures_equal_loops_and_scikit_learn():
    anonymised = table({"r": faces(2.5, 1)})
    got = score(anonymised)
    g, p = CLEAR.embeddings["r"].astype(float), anonymised.embeddings["r"].astype(float)
    s, who = p @ g.T, np.arange(100) // 5
    hits = {1: 0, 5: 0, 10: 0}
    genuine, impostor = [], []
    for i in range(100):
        others = [j for j in range(100) if j != i]
        ranked = sorted(others, key=lambda j: -s[i, j])
        for k in hits:
            hits[k] += any(who[j] == who[i] for j in ranked[:k])
        genuine += [s[i, j] for j in others if who[i] == who[j]]
        impostor += [s[i, j] for j in others if who[i] != who[j]]
    for k, n in hits.items():
        assert find(got, f"rank{k}").value == pytest.approx(n / 100, abs=0.011)  # at most one near-tie within the grid
    y = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))]
    assert find(got, "auc").value == pytest.approx(roc_auc_score(y, np.r_[genuine, impostor]), abs=1e-4)
    # The threshold comes from the clear impostors and from nothing else.
    clear = g @ g.T
    clear_impostors = np.sort(clear[who[:, None] != who[None, :]])[::-1]
    row = find(got, "tmr@fmr=0.1")
    assert row.threshold == pytest.approx(clear_impostors[950], abs=1e-4)
    assert row.value == pytest.approx((np.array(genuine) >= row.threshold).mean(), abs=0.006)
    assert row.realised_fmr == pytest.approx((np.array(impostor) >= row.threshold).mean(), abs=1e-3)
    assert row.chance == row.realised_fmr
    assert find(got, "fnmr@fmr=0.1").value == pytest.approx(1 - row.value)
    assert find(got, "fmr@fmr=0.1").value == row.realised_fmr
    assert "pairs that share persons" in find(got, "fmr@fmr=0.1").ci_method


def test_threshold_does_not_move_with_the_anonymised_images():
    rows = [find(score(table({"r": faces(noise, 1)})), "tmr@fmr=0.1") for noise in (2, 4, 8)]
    assert len({row.threshold for row in rows}) == 1
    assert rows[0].value > rows[1].value > rows[2].value  # not 0.5 by construction


def test_realised_fmr_shows_a_meaningless_threshold():
    """All anonymised faces look like one average face: far too many are accepted, and the row says so."""
    clear = faces(0.1, 0)
    mean = l2_normalise(clear.sum(0, keepdims=True))
    row = find(score(table({"r": l2_normalise(np.repeat(mean, 100, 0))})), "tmr@fmr=0.1")
    assert row.realised_fmr > 0.3
    assert row.chance == row.realised_fmr


def test_unsupported_fmr_says_why():
    got = score(table({"r": faces(2, 1)}))
    assert find(got, "tmr@fmr=0.1").value is not None
    assert find(got, "tmr@fmr=0.01").value is not None  # 9500 impostor pairs, 190 pairs of persons
    for name in ("tmr@fmr=0.001", "fnmr@fmr=0.001", "fmr@fmr=0.001"):
        row = find(got, name)
        assert row.value is None
        assert "do not support FMR 0.001" in row.reason


# --- trust, and the worst case


def test_a_blind_recogniser_is_not_trusted_and_not_in_the_worst_case():
    rng = np.random.default_rng(0)
    blind = l2_normalise(rng.normal(size=(100, 32)))
    got = score(
        table({"r": faces(2, 1), "blind": blind}),
        table({"r": faces(0.1, 0), "blind": l2_normalise(rng.normal(size=(100, 32)))}),
    )
    assert not find(got, "rank1", recognizer="blind").trusted
    assert "clear rank-1" in find(got, "eer", recognizer="blind").note
    assert "clear EER" in find(got, "eer", recognizer="blind").note
    assert all(r.trusted for r in got.rows if r.recognizer == "r")
    assert worst(got).recognizer == "max(r)"
    assert worst(got).trusted
    assert "left out: ignorant with blind" in worst(got).note


def test_no_trusted_recogniser_no_worst_case():
    rng = np.random.default_rng(0)
    blind = l2_normalise(rng.normal(size=(100, 32)))
    row = worst(score(table({"r": faces(2, 1)}), table({"r": blind})))
    assert row.value is None
    assert not row.trusted
    assert row.reason == "no trusted recogniser"
    row = worst(score(table({}), table({"r": blind})))
    assert row.reason == "no recogniser has embeddings in both tables"


def test_floors_of_the_protocol_are_used():
    strict = dataclasses.replace(QUICK, max_clear_eer=-1.0)
    assert not find(score(table({"r": faces(2, 1)}), protocol=strict), "rank1").trusted


def test_the_worst_case_has_an_interval_of_its_own():
    clear = table({k: faces(0.1, i) for i, k in enumerate("abc")})
    anonymised = table({k: faces(3, i + 10) for i, k in enumerate("abc")})
    got = score(anonymised, clear)
    singles = [find(got, "rank1", recognizer=k) for k in "abc"]
    row = worst(got)
    assert row.value == max(r.value for r in singles)
    assert row.recognizer == "max(a, b, c)"
    best = max(singles, key=lambda r: r.value).recognizer
    assert f"attained by ignorant with {best}" in row.note
    assert "taking the largest of 3 adds about" in row.note
    # The largest seen had luck: its lower end is the largest of those that hold together, its upper end that of the single rates.
    assert min(r.lo for r in singles) < row.lo < max(r.lo for r in singles)
    assert row.hi == max(r.hi for r in singles)


# --- determinism


def test_same_input_same_rows_in_any_order():
    first, second = table({"r": faces(2, 1)}, method="a"), table({"r": faces(3, 2)}, method="b", fta=[3], withheld=[7])
    forward = [score(first), score(second)]
    intervals._multinomial_kept.cache_clear()
    intervals._double_or_nothing_kept.cache_clear()
    backward = [score(second), score(first)]
    assert forward[0] == backward[1]
    assert forward[1] == backward[0]


def test_figures_do_not_change_with_the_order_of_images():
    anonymised = table({"r": faces(2, 1)}, fta=[1, 50], withheld=[60])
    order = np.random.default_rng(0).permutation(100)

    def shuffled(t):
        return dataclasses.replace(
            t,
            **{name: getattr(t, name)[order] for name in ("ids", "subjects", "status", "withheld", "fta")},
            embeddings={k: v[order] for k, v in t.embeddings.items()},
        )

    for comparison in ("leave-one-out", "split"):
        protocol = dataclasses.replace(QUICK, comparison=comparison, enrolled=2)
        a, b = score(anonymised, protocol=protocol), score(shuffled(anonymised), shuffled(CLEAR), protocol)
        for x, y in zip(a.rows, b.rows, strict=True):
            for name in ("value", "lo", "hi", "chance", "threshold", "realised_fmr"):
                assert getattr(x, name) == pytest.approx(getattr(y, name), abs=1e-12), (name, x, y)


def test_batch_noise_does_not_reach_the_figures():
    """Embeddings of another batch size differ by 1e-7 or so."""
    e = faces(2, 1)
    noisy = l2_normalise(e + np.random.default_rng(0).normal(0, 3e-8, e.shape))
    assert not np.array_equal(e, noisy)
    a, b = score(table({"r": e})), score(table({"r": noisy}))
    for name in ("rank1", "rank5", "rank10"):
        assert find(a, name) == find(b, name)
    for name in ("eer", "auc", "tmr@fmr=0.1"):
        assert find(a, name).value == pytest.approx(find(b, name).value, abs=1e-5)


def test_the_seed_is_used():
    a = table({"r": faces(3, 1)})
    x, y = (find(score(a, protocol=dataclasses.replace(QUICK, seed=seed)), "eer") for seed in (0, 1))
    assert x.value == y.value
    assert (x.lo, x.hi) != (y.lo, y.hi)


# --- small and odd sets


def test_one_person_has_values_without_intervals():
    clear, anonymised = (table({"r": faces(n, 1, 1, 5)}, 1, 5) for n in (0.1, 0.5))
    got = score(anonymised, clear)
    row = find(got, "rank1")
    assert row.value == row.chance == 1
    assert row.lo is None
    assert "one person" in row.ci_reason
    assert find(got, "eer").value is None
    assert find(got, "eer").reason == "one person: no impostor pairs"
    assert not row.trusted
    assert find(got, "rank5").value is None
    assert "beyond the 4 gallery images" in find(got, "rank5").reason


def test_one_image_a_person_has_no_mates():
    clear, anonymised = (table({"r": faces(n, 1, 5, 1)}, 5, 1) for n in (0.1, 0.5))
    got = score(anonymised, clear)
    assert find(got, "rank1").value is None
    assert "no probe has another image" in find(got, "rank1").reason
    assert find(got, "eer").reason == "no genuine pairs"
    assert worst(got).value is None


def test_a_lone_image_is_a_distractor_and_is_counted_in_the_note():
    subjects = [f"p{i // 5:03d}" for i in range(99)] + ["x"]
    clear = table({"r": faces(0.1, 0)}, subjects=subjects)
    got = score(table({"r": faces(0.1, 1)}, subjects=subjects), clear)
    assert find(got, "rank1").n_images == 99
    assert find(got, "rank1").n_persons == 20
    assert "1 probes without another image of their person" in find(got, "rank1").note


def test_no_images_at_all():
    empty = table({"r": np.zeros((0, 32))}, 0, 5)
    got = score(empty, empty)
    assert all(row.value is None and row.reason and row.lo is None for row in got.rows)
    assert not got.curves


def test_other_images_are_refused():
    with pytest.raises(InputError, match="not the same images"):
        score(table({"r": faces(1, 1, 20, 4)}, 20, 4))


def test_other_ranks_and_targets_of_the_protocol():
    protocol = dataclasses.replace(QUICK, ranks=(2, 60), fmr=(0.05,))
    got = score(table({"r": faces(2, 1)}), protocol=protocol)
    assert find(got, "rank2").value <= find(got, "rank60").value
    assert find(got, "tmr@fmr=0.05").realised_fmr is not None


# --- curves


def test_curves():
    got = score(table({"r": faces(2.5, 1)}, fta=[0, 1]))
    cmc = [c for c in got.curves if c.curve == "cmc"]
    assert [c.x for c in cmc] == list(range(1, 51))
    assert (np.diff([c.y for c in cmc]) >= 0).all()
    for k in (1, 5, 10):
        row = find(got, f"rank{k}")
        assert (cmc[k - 1].y, cmc[k - 1].lo, cmc[k - 1].hi) == (row.value, row.lo, row.hi)
    det = [c for c in got.curves if c.curve == "det"]
    assert 10 < len(det) <= 200
    assert (det[0].x, det[0].y, det[-1].x, det[-1].y) == (1, 0, 0, 1)
    assert {c.convention for c in got.curves} == {"headline"}


def test_cmc_ends_with_the_gallery():
    clear, anonymised = (table({"r": faces(n, 1, 4, 3)}, 4, 3) for n in (0.1, 1))
    cmc = [c for c in score(anonymised, clear).curves if c.curve == "cmc"]
    assert len(cmc) == 11
    assert cmc[-1].y == 1
