"""The ladder of attackers on made-up features with known answers: seeds, thresholds, marks, templates, open set, chance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deidbench.kinds import attackers
from deidbench.metrics.base import Background, Protocol, Table
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import ReIdentification, identification
from deidbench.metrics.reid.attack import attack, fused, view
from deidbench.metrics.reid.base import TrainedAttacker, cosine
from deidbench.metrics.reid.comparison import lay_out
from deidbench.metrics.reid.training import Attempt, CannotLearn, carry_out

QUICK = Protocol(replicates=400, curve_replicates=100, fmr=(0.1,), fpir=(0.5,))
P, K, D = 20, 5, 32


def table(e, persons=P, images=K, name="p", method="m", **more):
    n = persons * images
    x = np.array(e, np.float32)
    gone = np.isnan(x).any(1)
    return Table(
        "synthetic",
        method,
        ids=np.array([f"{name}{i:04d}" for i in range(n)]),
        subjects=np.repeat([f"{name}{i:03d}" for i in range(persons)], images),
        status=np.where(gone, "no_face", "ok"),
        withheld=gone,
        fta=np.zeros(n, bool),
        embeddings={"r": x},
        **more,
    )


def faces(noise, seed, persons=P, images=K, centres=99):
    centre = np.random.default_rng(centres).normal(size=(persons, D)).repeat(images, 0)
    return l2_normalise(centre + noise * np.random.default_rng(seed).normal(size=centre.shape))


@attackers.register("test-learner")
class Learner(TrainedAttacker):
    """Learns nothing: its attempts are made by hand."""

    knows = "nothing"

    def fit(self, training, recognizer, seed):
        self.who_ = set(training.clear.subjects.tolist()), set(training.held_out_clear.subjects.tolist())
        if training.clear.n < 10:
            raise CannotLearn("too few images")

    def represent(self, table, *, enrolled=False):
        return table.embeddings["r"]


CLEAR, LEARN = table(faces(0.1, 0)), table(faces(0.1, 7, centres=5), name="q")
HIDDEN = table(faces(30, 1))


def attempt(seed, probes, held):
    return Attempt(seed, probes, probes, held, held, LEARN.subjects, LEARN.ids, "by hand")


def rows(background, anonymised=HIDDEN, protocol=QUICK, ladder=("ignorant", "lazy-informed", "test-learner")):
    return ReIdentification(ladder).score(CLEAR, anonymised, protocol, background).rows


def pick(found, metric, attacker, convention="headline"):
    (row,) = [r for r in found if r.metric == f"reid.{metric}" and r.attacker == attacker and r.convention == convention]
    return row


def given(*attempts, hidden=LEARN):
    return Background(LEARN, hidden, {("test-learner", "r"): attempts}, "")


def test_the_seed_is_chosen_on_held_out_persons_not_on_those_evaluated():
    good, bad = faces(0.1, 3), faces(30, 4)
    held_good, held_bad = faces(0.1, 5, centres=5), faces(30, 6, centres=5)
    found = rows(given(attempt(0, good, held_bad), attempt(1, bad, held_good)))
    row = pick(found, "rank1", "test-learner")
    assert row.value < 0.3
    assert "seed 2 of 2 chosen on held-out persons" in row.note
    assert "rank-1 per seed 1.000" in row.note, "the spread is told, the better one included"
    assert pick(rows(given(attempt(0, good, held_good), attempt(1, bad, held_bad))), "rank1", "test-learner").value == 1


def test_the_worst_case_is_the_learner_where_only_that_succeeds():
    found = rows(given(attempt(0, faces(0.1, 3), faces(0.1, 5, centres=5))))
    worst = next(r for r in found if r.metric == "reid.worst_rank1")
    assert worst.value == 1
    assert worst.note.startswith("attained by test-learner with r")
    assert pick(found, "rank1", "ignorant").value < 0.3


def test_a_learner_that_is_beaten_by_the_stock_recogniser_is_marked():
    found = rows(given(attempt(0, faces(30, 4), faces(0.1, 5, centres=5))), anonymised=CLEAR)
    row = pick(found, "rank1", "test-learner")
    assert not row.trusted
    assert row.note.startswith("mis-trained: weaker than the stock recogniser r")
    worst = next(r for r in found if r.metric == "reid.worst_rank1")
    assert "test-learner with r" in worst.note.split("left out")[1]
    assert worst.value == 1
    assert pick(rows(given(attempt(0, faces(30, 1), faces(0.1, 5, centres=5)))), "rank1", "test-learner").trusted, (
        "as weak as the stock one is no mark"
    )


def test_failed_seeds_and_missing_attempts_are_told():
    none = np.empty((0, 1), np.float32)
    failed = Attempt(2, none, none, none, none, np.empty(0, str), np.empty(0, str), failure="too few persons")
    row = pick(rows(given(failed)), "rank1", "test-learner")
    assert (row.value, row.reason) == (None, "not carried out: too few persons")
    note = pick(rows(given(attempt(0, faces(1, 3), faces(1, 5)), failed)), "rank1", "test-learner").note
    assert "1 seeds failed: too few persons" in note
    row = pick(rows(Background(reason="nobody there")), "rank1", "test-learner")
    assert row.reason == "not carried out: nobody there"


def test_thresholds_of_the_informed_are_fixed_on_attacker_train_impostors():
    """Anonymised faces that all look alike: a clear threshold would accept everybody."""
    alike = np.ones((P * K, D)) * 3 + np.random.default_rng(0).normal(size=(P * K, D))
    more = np.ones((P * K, D)) * 3 + np.random.default_rng(1).normal(size=(P * K, D))
    found = rows(given(attempt(0, l2_normalise(alike), l2_normalise(more)), hidden=table(l2_normalise(more), name="q")), anonymised=table(l2_normalise(alike)))  # fmt: skip
    for attacker in ("lazy-informed", "test-learner"):
        row = pick(found, "fmr@fmr=0.1", attacker)
        own = cosine(l2_normalise(more), l2_normalise(more))
        other = LEARN.subjects[:, None] != LEARN.subjects
        assert row.threshold == pytest.approx(np.quantile(own[other], 0.9), abs=1e-3)
        assert row.value == pytest.approx(0.1, abs=0.05)
        assert pick(found, "fpir@fpir=0.5", attacker).value == pytest.approx(0.5, abs=0.2)
    assert pick(found, "fmr@fmr=0.1", "ignorant").threshold < row.threshold
    without = pick(rows(Background(reason="nobody there")), "tmr@fmr=0.1", "lazy-informed")
    assert without.value is None and "own condition: nobody there" in without.reason


@pytest.mark.parametrize("noise", [0.1, 2.0, 4.0, 30.0])
def test_open_set_by_brute_force(noise):
    hidden = table(faces(noise, 1))
    found = ReIdentification().score(CLEAR, hidden, QUICK).rows
    clear, scores = (cosine(CLEAR.embeddings["r"], x.embeddings["r"]) for x in (CLEAR, hidden))
    same = CLEAR.subjects[:, None] == CLEAR.subjects
    allowed = ~np.eye(P * K, dtype=bool)
    alarms = np.where(same, -9, clear).max(1)
    row = pick(found, "fnir@fpir=0.5", "ignorant")
    assert np.mean(alarms >= row.threshold) <= 0.5 < np.mean(alarms >= np.sort(alarms)[-51])
    best = np.where(same & allowed, scores, -9).max(1)
    strangers = np.where(same, -9, scores).max(1)
    assert row.value == pytest.approx(1 - np.mean((best > strangers) & (best >= row.threshold)))
    assert pick(found, "fpir@fpir=0.5", "ignorant").value == pytest.approx(np.mean(strangers >= row.threshold))


def test_a_withheld_probe_is_a_miss_and_no_alarm_in_the_open_set():
    e = faces(0.1, 1)
    e[:50] = np.nan
    found = ReIdentification().score(CLEAR, table(e), QUICK).rows
    assert pick(found, "fnir@fpir=0.5", "ignorant").value == pytest.approx(0.5, abs=0.1)
    assert pick(found, "fpir@fpir=0.5", "ignorant").value <= 0.5 * 0.8


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("protocol", [QUICK, dataclasses.replace(QUICK, comparison="split", enrolled=3)])
def test_templates_by_brute_force(how, protocol):
    hidden = table(faces(3, 1))
    layout = lay_out(CLEAR.ids, CLEAR.subjects, protocol)
    e = hidden.embeddings["r"].copy()
    e[layout.gallery[3]] = np.nan
    scores = cosine(CLEAR.embeddings["r"][layout.gallery], hidden.embeddings["r"][layout.probes])
    scores[:, 3] = np.nan
    got, own = fused(scores, layout, how)
    want = np.full((len(layout.probes), P), np.nan)
    for i in range(len(layout.probes)):
        for p in range(P):
            columns = [
                j
                for j in np.flatnonzero(layout.gallery_person == p)
                if j != layout.same_image[i] and not np.isnan(scores[i, j])
            ]
            if columns:
                want[i, p] = getattr(np, how)(scores[i, columns].astype(float))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (own.mates == 1).all() and (own.others == P - 1).all() and own.size == P
    assert how in own.text
    rank = identification.hits(*identification.standings(got, own.probe_person, own.gallery_person, own.same_image), 1)
    best = np.array([np.nanargmax(row) for row in want])
    assert rank.mean() == pytest.approx(np.mean(best == layout.probe_person), abs=0.02)


def test_template_figures_through_the_metric():
    found = {how: pick(ReIdentification().score(CLEAR, table(faces(3, 1)), dataclasses.replace(QUICK, templates=how)).rows, "rank1", "ignorant") for how in ("image", "mean", "max")}  # fmt: skip
    assert found["max"].value == found["image"].value, "the best image of all is the best person"
    assert found["mean"].value > found["image"].value, "an average of clear images is a better template"
    assert (found["mean"].chance, found["image"].chance) == (1 / P, (K - 1) / (P * K - 1))
    assert "mean of the templates" in found["mean"].comparison


def test_a_person_with_one_image_is_no_template_for_itself():
    subjects = np.array(["a", "b", "b", "c", "c"])
    layout = lay_out(np.array(list("vwxyz")), subjects, QUICK)
    scores = np.zeros((5, 5), np.float32)
    got, own = fused(scores, layout, "mean")
    assert np.isnan(got[0, 0]) and not np.isnan(got[1:]).any()
    assert own.mates.tolist() == [0, 1, 1, 1, 1]
    assert own.others.tolist() == [2, 2, 2, 2, 2]


# --- chance


def permutation_p(scores, layout, seed, n=2000):
    """One-sided p of the rank-1 rate under shuffled probe persons (persons keep their images together)."""
    rng = np.random.default_rng(seed)
    best = np.where(np.arange(scores.shape[1]) == layout.same_image[:, None], -9, scores).argmax(1)
    found = layout.gallery_person[best]
    seen = np.mean(found == layout.probe_person)
    shuffled = [np.mean(found == rng.permutation(P)[layout.probe_person]) for _ in range(n)]
    return (1 + np.sum(np.array(shuffled) >= seen)) / (1 + n)


def test_random_images_are_at_chance_for_every_attacker():
    """Exact permutation tests, Holm over attackers; on clear images the same tests reject at once."""
    layout = lay_out(CLEAR.ids, CLEAR.subjects, QUICK)
    for hidden, expected in ((l2_normalise(np.random.default_rng(8).normal(size=(P * K, D))), False), (faces(1, 2), True)):
        after = table(l2_normalise(np.random.default_rng(9).normal(size=(P * K, D))), name="q") if not expected else LEARN
        p = []
        for name in ("ignorant", "lazy-informed", "lda", "arcface"):
            attacker = attackers.create(name)
            if isinstance(attacker, TrainedAttacker):
                made = carry_out(attacker, "r", 0, (LEARN, after), (CLEAR, table(hidden)), {})
                assert not made.failure
                gallery, probes = made.gallery, made.probes
            else:
                probes = hidden
                gallery = CLEAR.embeddings["r"] if attacker.gallery == "clear" else hidden
            p.append(permutation_p(cosine(gallery, probes), layout, 1))
        holm = np.sort(p) * np.arange(len(p), 0, -1)
        assert (holm.min() < 0.05) == expected, p


def test_a_constant_embedding_is_at_chance_for_stock_attackers():
    constant = np.tile(l2_normalise(np.ones((1, D))), (P * K, 1))
    for name in ("ignorant", "lazy-informed"):
        row = pick(rows(given(attempt(0, constant, constant)), anonymised=table(constant)), "rank1", name)
        if name == "lazy-informed":
            assert row.value == pytest.approx(row.chance)
        else:  # a constant probe ranks the clear images in one order: at most one person is hit more often
            assert row.value < 0.1


def test_learners_never_meet_who_is_evaluated():
    learner = Learner()
    made = carry_out(learner, "r", 0, (LEARN, LEARN), (CLEAR, HIDDEN), {})
    assert not hasattr(learner, "who_"), "the instance that was given stays as it was"
    assert set(made.held_out_subjects) < set(LEARN.subjects)
    with pytest.raises(ValueError, match="is in attacker-train and under evaluation"):
        carry_out(Learner(), "r", 0, (CLEAR, CLEAR), (CLEAR, HIDDEN), {})
    few = table(faces(1, 1, persons=2, images=2), persons=2, images=2, name="q")
    assert carry_out(Learner(), "r", 0, (few, few), (CLEAR, HIDDEN), {}).failure == "too few images"


def test_view_conventions_hold_for_learners_too():
    """A failure to acquire counts in the headline with the fallback's features, and as a miss in the other view."""
    e = faces(0.1, 3)
    hidden = dataclasses.replace(HIDDEN, fta=np.arange(P * K) < 50)
    layout = lay_out(CLEAR.ids, CLEAR.subjects, QUICK)
    probes = attack(Learner(), e, e, hidden, layout)
    rank = {c: view(probes, c, 1).hits[:, 0].sum() for c in ("headline", "without_fta", "fta_as_miss")}
    assert rank == {"headline": 100, "without_fta": 50, "fta_as_miss": 50}


# --- more pairs than are kept


def test_a_stream_of_pairs_gives_the_figures_of_the_matrix(monkeypatch):
    from deidbench.metrics.reid import attack as module

    e = faces(2, 3)
    e[7] = np.nan
    hidden = dataclasses.replace(table(e), fta=np.arange(P * K) % 10 == 1)
    background = given(attempt(0, faces(2, 4), faces(0.1, 5, centres=5)))
    matrix = rows(background, anonymised=hidden)
    monkeypatch.setattr(module, "MAX_PAIRS", 1000)
    stream = rows(background, anonymised=hidden)
    assert [(r.metric, r.attacker, r.convention) for r in matrix] == [(r.metric, r.attacker, r.convention) for r in stream]
    compared = 0
    for a, b in zip(matrix, stream, strict=True):
        if b.reason.startswith("more than"):
            assert b.convention != "headline"
            continue
        if a.metric == "reid.d_sys":
            continue  # bins of whole levels, and 100 of them
        assert b.value == pytest.approx(a.value, abs=1e-9), a.metric
        assert b.threshold == pytest.approx(a.threshold), a.metric
        compared += a.value is not None
    assert compared > 60
    intervals = {r.metric: r for r in stream if r.attacker == "ignorant" and r.convention == "headline"}
    assert intervals["reid.eer"].lo < intervals["reid.eer"].value < intervals["reid.eer"].hi
    assert "groups of persons" in intervals["reid.eer"].ci_method
    assert intervals["reid.cllr_min"].lo is None and "counted, not kept" in intervals["reid.cllr_min"].ci_reason
