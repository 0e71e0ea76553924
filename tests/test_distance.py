"""The paper's cosine distance with a calibrated threshold: against scikit-learn and brute force, and on known cases."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import roc_curve
from sklearn.metrics.pairwise import paired_cosine_distances

from deidbench.errors import InputError
from deidbench.kinds import metrics
from deidbench.metrics import distance
from deidbench.metrics.base import Protocol, Table
from deidbench.metrics.distance import CONVENTIONS, Distance, calibrate, paired
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid.base import SCORE_GRID, cosine
from deidbench.stats import intervals

QUICK = Protocol(replicates=400)
PERSONS, IMAGES = 20, 5
SUBJECTS = np.repeat([f"p{i:03d}" for i in range(PERSONS)], IMAGES)


def faces(noise, seed, d=32):
    """Person effect (the same for every call) plus noise."""
    centre = np.random.default_rng(99).normal(size=(PERSONS, d)).repeat(IMAGES, 0)
    return l2_normalise(centre + noise * np.random.default_rng(seed).normal(size=centre.shape))


def table(embeddings, method="m", fta=(), withheld=(), subjects=SUBJECTS):
    n = len(subjects)
    gone, lost = np.zeros(n, bool), np.zeros(n, bool)
    gone[list(withheld)] = True
    lost[list(fta)] = True
    out = {name: np.array(e, np.float32) for name, e in embeddings.items()}
    for e in out.values():
        e[gone] = np.nan
    return Table(
        "synthetic", method, np.array([f"i{i:04d}" for i in range(n)]), np.array(subjects),
        np.where(gone, "no_face", "ok"), gone, lost, embeddings=out,
    )  # fmt: skip


CLEAR = table({"r": faces(0.6, 0)}, method="original")


def score(anonymised, clear=CLEAR, protocol=QUICK):
    return Distance().score(clear, anonymised, protocol).rows


def find(rows, name, convention="headline", recognizer="r"):
    (row,) = [r for r in rows if (r.metric, r.convention, r.recognizer) == (f"distance.{name}", convention, recognizer)]
    return row


def clear_pairs(table, recognizer="r"):
    """All scores of different images, one by one."""
    e = table.embeddings[recognizer].astype(float)
    genuine, impostor = [], []
    for i in range(len(e)):
        for j in range(i):
            s = float(np.rint(e[i] @ e[j] / SCORE_GRID) * SCORE_GRID)
            (genuine if table.subjects[i] == table.subjects[j] else impostor).append(s)
    return np.array(genuine), np.array(impostor)


def test_registered_and_declared():
    assert metrics.get("distance") is Distance
    declared = {q.name: q for q in Distance.quantities}
    rows = score(table({"r": faces(2, 1), "q": faces(2, 3)}, fta=[3, 4], withheld=[7]),
                 table({"r": faces(0.6, 0), "q": faces(5, 2)}))  # fmt: skip
    for row in rows:
        q = declared[row.metric]
        assert (row.unit, row.higher_is_better, q.axis, q.family) == (q.unit, True, "privacy", "distance")
        assert (row.value is None) == bool(row.reason)
        assert (row.lo is None) == (row.hi is None) == bool(row.ci_reason)
        assert row.lo is None or (row.lo <= row.value <= row.hi and row.ci_method and row.ci_level == 0.95)
        json.dumps(row.plain(), allow_nan=False)
    assert {(r.metric, r.recognizer, r.convention) for r in rows} == {
        (m, r, c) for m in declared for r in "qr" for c in CONVENTIONS
    }
    assert len(rows) == 12
    assert [find(rows, "cosine", recognizer=r).trusted for r in "qr"] == [False, True]


# --- against references


def test_mean_equals_scikit_learn():
    other = table({"r": faces(2, 1)})
    reference = paired_cosine_distances(CLEAR.embeddings["r"].astype(float), other.embeddings["r"].astype(float))
    assert 1 - paired(CLEAR.embeddings["r"], other.embeddings["r"]) == pytest.approx(reference, abs=SCORE_GRID)
    assert find(score(other), "cosine").value == pytest.approx(reference.mean(), abs=SCORE_GRID)


def test_paired_is_the_diagonal_of_all_scores():
    a, b = faces(0.6, 0), faces(1, 5)
    a[3] = np.nan
    b[4] = np.nan
    assert np.array_equal(paired(a, b), np.diagonal(cosine(a, b)).astype(float), equal_nan=True)
    assert paired(a[:0], b[:0]).shape == (0,)
    with pytest.raises(ValueError, match="not of the same images"):
        paired(a, b[:5])


def test_threshold_is_where_the_clear_errors_meet():
    genuine, impostor = clear_pairs(CLEAR)
    row = find(score(table({"r": faces(2, 1)})), "beyond")
    t = 1 - row.threshold
    fmr, fnmr = np.mean(impostor >= t), np.mean(genuine < t)
    # The ROC curve of scikit-learn, operating point nearest to equal errors.
    y = np.concatenate([np.ones(len(genuine)), np.zeros(len(impostor))])
    x, hit, _ = roc_curve(y, np.concatenate([genuine, impostor]), drop_intermediate=False)
    best = np.min(np.maximum(x, 1 - hit))
    assert 0 < best < 0.15
    assert abs(fmr - fnmr) <= 1 / len(genuine) + 1 / len(impostor)
    assert max(fmr, fnmr) <= best + 1 / len(genuine)
    # Chance: what somebody else's clear image would give.
    assert row.chance == pytest.approx(np.mean(impostor < t))
    assert find(score(table({"r": faces(2, 1)})), "cosine").chance == pytest.approx(1 - impostor.mean(), abs=1e-7)
    assert f"{1 - genuine.mean():.3f} of one person ({len(genuine)} pairs)" in row.note


def test_share_beyond_equals_brute_force():
    other = table({"r": faces(2, 1)})
    row = find(score(other), "beyond")
    a, b = CLEAR.embeddings["r"].astype(float), other.embeddings["r"].astype(float)
    far = [1 - np.rint(x @ y / SCORE_GRID) * SCORE_GRID > row.threshold for x, y in zip(a, b, strict=True)]
    assert row.value == np.mean(far)
    assert 0.1 < row.value < 0.9
    own = intervals.rate_interval(np.reshape(far, (PERSONS, IMAGES)).sum(1), np.full(PERSONS, IMAGES))
    assert (row.lo, row.hi) == pytest.approx(own[:2], abs=1e-12)


# --- known answers


def test_the_original_is_at_distance_zero():
    rows = score(dataclasses.replace(CLEAR))
    assert find(rows, "cosine").value == 0
    assert find(rows, "beyond").value == 0
    assert find(rows, "beyond").hi == pytest.approx(intervals.zero_events_bound(PERSONS, 0.95))


def test_the_opposite_is_at_distance_two():
    rows = score(table({"r": -CLEAR.embeddings["r"]}))
    assert find(rows, "cosine").value == 2
    assert find(rows, "beyond").value == 1
    assert find(rows, "beyond").lo == pytest.approx(1 - intervals.zero_events_bound(PERSONS, 0.95))


def test_somebody_elses_face_is_at_chance():
    moved = np.roll(CLEAR.embeddings["r"], 3 * IMAGES, 0)
    rows = score(table({"r": moved}))
    for name in ("cosine", "beyond"):
        row = find(rows, name)
        assert row.lo - 0.02 <= row.chance <= row.hi + 0.02


def test_threshold_of_separate_samples_is_in_their_middle():
    clear = table({"r": faces(0.05, 0)})
    genuine, impostor = clear_pairs(clear)
    assert impostor.max() < genuine.min()
    found = calibrate(clear.embeddings["r"], SUBJECTS, 0)
    assert found.threshold == pytest.approx((impostor.max() + genuine.min()) / 2, abs=1e-7)
    assert (found.eer, found.beyond) == (0, 1)


# --- images that were not released, or in which no face is found


def test_withholding_lifts_no_figure():
    """A method that leaves every image as it is gains nothing by releasing only half of them."""
    half = range(0, 100, 2)
    rows = score(table({"r": CLEAR.embeddings["r"]}, withheld=half))
    for convention in CONVENTIONS:
        assert find(rows, "cosine", convention).value == 0
        assert find(rows, "beyond", convention).value == 0
        assert find(rows, "cosine", convention).n_failed == 50
    assert find(rows, "cosine").n_images == 50
    assert find(rows, "cosine", "withheld_as_unchanged").n_images == 100
    assert "50 withheld images are not in the figure" in find(rows, "beyond").note
    # Nor does one that withholds what it would have left unchanged.
    far = -CLEAR.embeddings["r"]
    rows = score(table({"r": far}, withheld=half))
    assert find(rows, "cosine").value == 2
    assert find(rows, "cosine", "withheld_as_unchanged").value == 1
    assert find(rows, "beyond", "withheld_as_unchanged").value == 0.5
    assert find(rows, "beyond").threshold == find(rows, "beyond", "withheld_as_unchanged").threshold


def test_nothing_was_released():
    rows = score(table({"r": faces(2, 1)}, withheld=range(100)))
    for convention in ("headline", "without_fta"):
        for name in ("cosine", "beyond"):
            row = find(rows, name, convention)
            assert (row.value, row.reason, row.n_images, row.n_failed) == (None, "nothing was released", 0, 100)
    assert find(rows, "cosine", "withheld_as_unchanged").value == 0


def test_images_without_a_face_are_in_the_headline():
    far = np.array(CLEAR.embeddings["r"])
    far[:10] *= -1
    rows = score(table({"r": far}, fta=range(10)))
    assert find(rows, "cosine").value == pytest.approx(0.2)
    assert find(rows, "beyond").value == pytest.approx(0.1)
    assert find(rows, "cosine", "without_fta").value == 0
    assert find(rows, "cosine", "without_fta").n_images == 90
    assert {r.n_fta for r in rows} == {10}
    assert find(score(table({"r": far}, fta=range(100))), "cosine", "without_fta").reason == (
        "no face was found in any released image"
    )


def test_released_without_an_embedding():
    lost = np.array(-CLEAR.embeddings["r"])
    lost[:5] = np.nan
    rows = score(table({"r": lost}))
    assert find(rows, "cosine").value == 2
    assert find(rows, "cosine").n_images == 95
    assert "5 released images without an embedding" in find(rows, "cosine").note
    assert find(rows, "cosine", "withheld_as_unchanged").value == pytest.approx(1.9)
    nothing = score(table({"r": np.full_like(lost, np.nan)}))
    assert find(nothing, "cosine").reason == "no image has an embedding"


# --- a threshold that cannot be had


@pytest.mark.parametrize(
    ("subjects", "lacking"), [(np.array(["one"] * 100), "impostor"), (np.array([f"p{i}" for i in range(100)]), "genuine")]
)
def test_no_pairs_no_threshold(subjects, lacking):
    rows = score(table({"r": faces(2, 1)}, subjects=subjects), table({"r": faces(0.6, 0)}, subjects=subjects))
    beyond, mean = find(rows, "beyond"), find(rows, "cosine")
    assert beyond.value is None and beyond.threshold is None
    assert beyond.reason == f"no threshold can be calibrated: the clear images have no {lacking} pairs"
    assert mean.value is not None
    assert not mean.trusted and "untrusted" in mean.note
    if lacking == "impostor":
        assert mean.lo is None and "one person" in mean.ci_reason and mean.chance is None


def test_a_recogniser_that_knows_nobody_is_not_trusted():
    same = np.tile(CLEAR.embeddings["r"][:1], (100, 1))
    for e in (same, l2_normalise(np.random.default_rng(0).normal(size=(100, 32)))):
        rows = score(table({"r": e}), table({"r": e}))
        assert not any(r.trusted for r in rows)
        assert all("clear EER" in r.note and "is above 0.15" in r.note for r in rows)
    assert all(r.trusted for r in score(table({"r": faces(2, 1)})))


def test_no_images_and_no_recogniser():
    none = table({"r": np.empty((0, 4))}, subjects=np.empty(0, "U1"))
    assert {r.reason for r in score(none, none) if r.metric == "distance.cosine"} == {"no images"}
    assert score(table({"q": faces(1, 1)})) == []


# --- the same figures whatever the order, the tiles and the size


def test_order_of_images_changes_nothing(monkeypatch):
    other = table({"r": faces(2, 1)}, fta=[1, 2, 50], withheld=[3, 99])
    order = np.random.default_rng(0).permutation(100)
    before = score(other)
    monkeypatch.setattr(distance, "_TILE", 7)
    after = score(other.take(order), CLEAR.take(order))
    for a, b in zip(before, after, strict=True):
        assert (a.metric, a.convention, a.threshold, a.n_images, a.note) == (
            b.metric,
            b.convention,
            b.threshold,
            b.n_images,
            b.note,
        )
        assert (a.value, a.lo, a.hi, a.chance) == pytest.approx((b.value, b.lo, b.hi, b.chance), abs=1e-12)


def test_large_data_sets_are_calibrated_on_whole_persons(monkeypatch):
    monkeypatch.setattr(distance, "CALIBRATION_IMAGES", 33)
    found = calibrate(CLEAR.embeddings["r"], SUBJECTS, 0)
    assert (found.images, found.genuine, found.impostor) == (30, 6 * 10, 15 * 25)
    order = np.random.default_rng(0).permutation(100)
    again = calibrate(CLEAR.embeddings["r"][order], SUBJECTS[order], 0)
    assert (again.threshold, again.eer) == (found.threshold, found.eer)
    assert calibrate(CLEAR.embeddings["r"], SUBJECTS, 1).genuine_mean != found.genuine_mean
    assert "threshold calibrated on 30 of 100 images" in find(score(table({"r": faces(2, 1)})), "beyond").note


def test_other_images_are_refused():
    with pytest.raises(InputError, match="not the same images"):
        score(CLEAR.take(np.arange(100)[::-1]))
