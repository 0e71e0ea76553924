"""The emotion metric: against scikit-learn, brute-force resampling, and answers known by construction."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    recall_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deidbench.errors import InputError
from deidbench.kinds import metrics
from deidbench.metrics._emotion_figures import STRENGTH, heads, kappa, learn_head, shares, tally
from deidbench.metrics.base import Protocol, Reading, Table
from deidbench.metrics.emotion import ADAPTED, CONVENTIONS, RETRAINED, STOCK, UNREAD, Emotion
from deidbench.metrics.models.labels import EMOTIONS
from deidbench.metrics.soft_biometrics import FOLDS, folds
from deidbench.stats import intervals

QUICK = Protocol(replicates=400)
D = 12
RATES = ("accuracy", "macro_f1", "uar")


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def people(
    seed=0, persons=40, images=6, classes=4, noise=0.5, signal=1.0, method="original", withheld=(), fta=(), labels=EMOTIONS
):
    """Persons with a person effect who show emotions along fixed directions; ``noise`` is what the method adds."""
    n = persons * images
    rng = np.random.default_rng([seed, 1])
    code = rng.integers(0, classes, n)
    x = signal * np.random.default_rng(99).normal(size=(len(EMOTIONS), D))[code]
    x += rng.normal(size=(persons, D)).repeat(images, 0)
    x += noise * np.random.default_rng([seed, 2, int(1000 * noise)]).normal(size=(n, D))
    p = softmax(x @ np.random.default_rng(99).normal(size=(len(EMOTIONS), D)).T)
    p = p[:, [EMOTIONS.index(e) for e in labels]]
    gone, lost = np.zeros(n, bool), np.zeros(n, bool)
    gone[list(withheld)], lost[list(fta)] = True, True
    lost &= ~gone
    p[gone], x[gone] = np.nan, np.nan
    reading = Reading("emotion", tuple(labels), p.astype(np.float32), x.astype(np.float32))
    return Table(
        "synthetic", method, np.array([f"i{i:05d}" for i in range(n)]), np.repeat([f"p{i:04d}" for i in range(persons)], images),
        np.where(gone, "failed", "ok"), gone, lost, emotion=np.array(EMOTIONS)[code], readings={"net": reading},
    )  # fmt: skip


def with_reading(table, probabilities=None, features=None, labels=None, task="emotion"):
    old = table.readings["net"]
    new = Reading(
        task,
        labels or old.labels,
        old.probabilities if probabilities is None else np.asarray(probabilities, np.float32),
        old.features if features is None else np.asarray(features, np.float32),
    )
    return dataclasses.replace(table, readings={"net": new})


CLEAR = people()
BLURRED = people(noise=2.0, method="blur")
MIXED = people(noise=2.0, method="mixed", withheld=range(0, 240, 11), fta=range(3, 240, 13))


def score(anonymised, clear=CLEAR, protocol=QUICK):
    rows = Emotion().score(clear, anonymised, protocol).rows
    well_formed(rows)
    return rows


def find(rows, name, convention="headline", comparison=STOCK, label=""):
    (row,) = [
        r for r in rows if (r.metric, r.convention, r.comparison, r.label) == (f"emotion.{name}", convention, comparison, label)
    ]
    return row


def well_formed(rows):
    declared = {q.name: q for q in Emotion.quantities}
    for row in rows:
        q = declared[row.metric]
        assert (row.unit, row.higher_is_better, q.axis, row.family) == (q.unit, q.higher_is_better, "utility", "emotion")
        assert (row.value is None) == bool(row.reason)
        assert (row.lo is None) == (row.hi is None) == bool(row.ci_reason) == (row.ci_level is None)
        assert row.lo is None or (row.lo - 1e-12 <= row.value <= row.hi + 1e-12 and row.ci_method)
        if row.value is not None and not row.metric.endswith(("change", "kappa")):
            assert 0 <= row.value <= 1
        assert row.trusted == ("untrusted" not in row.note)
        json.dumps(row.plain(), allow_nan=False)
    keys = [(r.metric, r.recognizer, r.convention, r.comparison, r.label) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {r.metric for r in rows} == set(declared)


def answers(table, classes, name="net"):
    """The stock answers as words, "-" where nothing was read; no ties."""
    reading = table.readings[name]
    at = [reading.labels.index(c) for c in classes]
    p = np.nan_to_num(reading.probabilities[:, at])
    return np.where(table.withheld | table.fta, "-", np.array(classes)[p.argmax(1)])


def quiet(f, *args, **kwargs):
    """scikit-learn warns of classes that were predicted and are not there: withheld."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*args, **kwargs)


def test_registered():
    assert metrics.get("emotion") is Emotion
    assert not Emotion.needs_background
    assert {q.name for q in Emotion.quantities if q.higher_is_better is False} == {"emotion.delta_p", "emotion.mean_delta_p"}
    assert {q.name for q in Emotion.quantities if q.higher_is_better is None} == {"emotion.confusion"}


# --- counts against scikit-learn


@pytest.mark.parametrize("seed", range(40))
def test_counts_equal_scikit_learn(seed):
    """Random and degenerate: few images, classes never predicted, nothing read, one person."""
    rng = np.random.default_rng(seed)
    k, persons, n = int(rng.integers(2, 9)), int(rng.integers(1, 7)), int(rng.integers(1, 60))
    code = rng.integers(-1, k, n)
    said = rng.integers(0, rng.integers(1, k + 1), n)
    unread = rng.random(n) < rng.choice([0, 0.3, 1])
    who = rng.integers(0, persons, n)
    draws = intervals.person_draws([f"{i}" for i in range(persons)], 50, 0)
    (got,) = tally([(code, shares(np.eye(k)[said], unread))], who, draws)
    use = code >= 0
    word = np.where(unread, k, said)
    assert got.counts.sum() == use.sum()
    if not use.any():
        assert all(np.isnan(got.figure(n, c).value) for n in RATES for c in (False, True))
        return
    assert np.array_equal(got.table, confusion_matrix(code[use], word[use], labels=range(k + 1))[:k])
    assert got.persons().tolist() == [len(set(who[code == c])) for c in range(k)]
    for conditional in (False, True):
        of = use & ~unread if conditional else use
        y, z = code[of], word[of]
        expected = {"accuracy": np.nan, "macro_f1": np.nan, "uar": np.nan}
        if of.any():
            expected["accuracy"] = accuracy_score(y, z)
        if len(set(y)) == k:
            expected["macro_f1"] = f1_score(y, z, average="macro", labels=range(k), zero_division=0)
            expected["uar"] = recall_score(y, z, average="macro", labels=range(k), zero_division=0)
            assert expected["uar"] == pytest.approx(quiet(balanced_accuracy_score, y, z), abs=1e-12)
        for name, value in expected.items():
            assert got.figure(name, conditional).value == pytest.approx(value, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(8))
def test_replicates_equal_brute_force(seed):
    """Each replicate is scikit-learn's figure of the persons drawn, with their images repeated."""
    rng = np.random.default_rng(seed)
    k, persons, n = 3, 6, 40
    code, said, who = rng.integers(0, k, n), rng.integers(0, k, n), rng.integers(0, persons, n)
    unread = rng.random(n) < 0.2
    draws = intervals.person_draws([f"{i}" for i in range(persons)], 25, seed)
    (got,) = tally([(code, shares(np.eye(k)[said], unread))], who, draws)
    word = np.where(unread, k, said)
    other = rng.integers(0, k, n)
    agree = kappa(np.eye(k + 1)[word], np.eye(k + 1)[other], who, draws)
    for b, drawn in enumerate(draws):
        rows = np.repeat(np.arange(n), drawn[who])
        y, z = code[rows], word[rows]
        full = len(set(y)) == k
        f1 = f1_score(y, z, average="macro", labels=range(k), zero_division=0) if full else np.nan
        uar = recall_score(y, z, average="macro", labels=range(k), zero_division=0) if full else np.nan
        assert got.figure("accuracy").replicates[b] == pytest.approx(accuracy_score(y, z) if len(y) else np.nan, nan_ok=True)
        assert got.figure("macro_f1").replicates[b] == pytest.approx(f1, nan_ok=True)
        assert got.figure("uar").replicates[b] == pytest.approx(uar, nan_ok=True)
        assert got.share(1, k).replicates[b] == pytest.approx(np.mean(z[y == 1] == k) if 1 in y else np.nan, nan_ok=True)
        assert agree.replicates[b] == pytest.approx(quiet(cohen_kappa_score, z, other[rows]), nan_ok=True)
        present = [np.mean(z[y == c] == c) for c in range(k) if c in y]
        assert got.present().replicates[b] == pytest.approx(np.mean(present))


@pytest.mark.parametrize("seed", range(30))
def test_kappa_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    c, n = int(rng.integers(1, 6)), int(rng.integers(1, 50))
    a = rng.integers(0, c, n)
    b = np.where(rng.random(n) < 0.5, a, rng.integers(0, c, n))
    draws = intervals.person_draws(["x", "y"], 10, 0)
    got = kappa(np.eye(c)[a], np.eye(c)[b], np.arange(n) % min(2, n), draws)
    assert got.value == pytest.approx(quiet(cohen_kappa_score, a, b), nan_ok=True)


def test_kappa_worked_example():
    """Cohen's kappa of the textbook table 20, 5 / 10, 15: observed 0.7, by chance 0.5, so 0.4."""
    a = np.repeat([0, 0, 1, 1], [20, 5, 10, 15])
    b = np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
    draws = intervals.person_draws(["x"], 10, 0)
    assert kappa(np.eye(2)[a], np.eye(2)[b], np.zeros(50, int), draws).value == pytest.approx(0.4)


# --- ties


def test_ties_share_the_answer():
    score_ = np.array([[0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [np.nan] * 3])
    got = shares(score_, np.array([False, False, False, True, True]))
    assert got == pytest.approx(np.array([[0.5, 0.5, 0, 0], [1 / 3] * 3 + [0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]))


def test_a_constant_answer_is_at_chance_and_agrees_with_itself():
    flat = with_reading(CLEAR, np.full((240, 8), 1 / 8))
    rows = score(flat, flat)
    for name in ("accuracy", "uar"):
        assert find(rows, name).value == pytest.approx(1 / 4)
    assert find(rows, "uar_open").value == pytest.approx(1 / 8)
    assert find(rows, "kappa").value == 1
    assert not find(rows, "uar").trusted  # exactly chance on clear images
    # The expected accuracy of ties is that of many random choices.
    rng = np.random.default_rng(0)
    p = rng.integers(0, 3, (240, 8)) / 10  # many ties
    got = find(score(with_reading(CLEAR, p)), "accuracy").value
    chosen = [
        np.mean(np.array(EMOTIONS[:4])[(p[:, :4] + 1e-6 * rng.random((240, 4))).argmax(1)] == CLEAR.emotion) for _ in range(400)
    ]
    assert got == pytest.approx(np.mean(chosen), abs=4 * np.std(chosen) / 20)


# --- the metric against scikit-learn


@pytest.mark.parametrize("table", [BLURRED, MIXED], ids=["blurred", "mixed"])
def test_stock_figures_equal_scikit_learn(table):
    rows = score(table)
    classes = list(EMOTIONS[:4])
    y, clear = CLEAR.emotion, answers(CLEAR, classes)
    z = answers(table, classes)
    read = z != "-"
    for convention, of in (("headline", np.ones(240, bool)), ("without_fta", read)):
        expected = {
            "accuracy": accuracy_score(y[of], z[of]),
            "macro_f1": f1_score(y[of], z[of], average="macro", labels=classes),
            "uar": recall_score(y[of], z[of], average="macro", labels=classes),
        }
        for name, value in expected.items():
            row = find(rows, name, convention)
            assert row.value == pytest.approx(value, abs=1e-12)
            assert (row.n_images, row.n_failed, row.n_fta) == (of.sum(), table.withheld.sum(), table.fta.sum())
            assert row.recognizer == "net" and row.attacker == ""
            assert "classes anger, contempt, disgust, fear (4 of the classifier's 8 occur)" in row.note
        assert find(rows, "uar", convention).chance == 1 / 4
        share = max(np.mean(y[of] == c) for c in classes)
        assert find(rows, "accuracy", convention).chance == pytest.approx(share)
    assert find(rows, "accuracy").note.startswith(f"clear {accuracy_score(y, clear):.3f} [")
    assert find(rows, "accuracy_change").value == pytest.approx(accuracy_score(y, z) - accuracy_score(y, clear))
    assert find(rows, "uar_change").value == pytest.approx(
        recall_score(y, z, average="macro", labels=classes) - recall_score(y, clear, average="macro", labels=classes)
    )
    matrix = confusion_matrix(y, z, labels=[*classes, "-"], normalize="true")
    for c, true in enumerate(classes):
        row = find(rows, "recall", label=true)
        assert row.value == pytest.approx(matrix[c, c])
        assert (row.n_images, row.n_failed) == ((y == true).sum(), table.withheld[y == true].sum())
        cells = [find(rows, "confusion", label=f"{true} -> {p}") for p in (*classes, UNREAD)]
        assert [r.value for r in cells] == pytest.approx(matrix[c].tolist())
        assert sum(r.value for r in cells) == pytest.approx(1)
    # All classes of the classifier as answers.
    p = np.nan_to_num(table.readings["net"].probabilities)
    free = np.where(read, np.array(EMOTIONS)[p.argmax(1)], "-")
    assert find(rows, "uar_open").value == pytest.approx(recall_score(y, free, average="macro", labels=classes))
    assert find(rows, "uar_open").value < find(rows, "uar").value  # four classes that do not occur draw answers
    # Agreement and change of probabilities over all classes.
    plain = answers(CLEAR, EMOTIONS)
    assert find(rows, "kappa").value == pytest.approx(cohen_kappa_score(plain, free))
    assert find(rows, "kappa", "without_fta").value == pytest.approx(cohen_kappa_score(plain[read], free[read]))
    moved = np.abs(table.readings["net"].probabilities.astype(float) - CLEAR.readings["net"].probabilities)
    for convention, of in (("headline", ~table.withheld), ("without_fta", read)):
        for c, label in enumerate(EMOTIONS):
            row = find(rows, "delta_p", convention, label=label)
            assert row.value == pytest.approx(moved[of, c].mean())
            assert row.n_images == of.sum()
        assert find(rows, "mean_delta_p", convention).value == pytest.approx(moved[of].mean())


def head():
    return make_pipeline(
        StandardScaler(),
        LogisticRegression(C=STRENGTH, class_weight="balanced", solver="newton-cholesky", tol=1e-5, max_iter=100),
    )


def test_a_head_is_at_the_minimum():
    """The gradient of the loss, written out, is zero: softmax, class weights n / (k n_c), sum over images, penalty |w|^2 / 2C."""
    rng = np.random.default_rng(0)
    code = rng.choice(4, 150, p=[0.5, 0.3, 0.15, 0.05])
    x = 3 + 2 * rng.normal(size=(150, 6)) + np.eye(6)[code]
    got = learn_head(x, code, 4, strength=0.02)
    assert got.mean == pytest.approx(x.mean(0)) and got.scale == pytest.approx(1 / x.std(0))
    z = (x - x.mean(0)) / x.std(0)
    weight = 150 / (4 * np.bincount(code))[code]
    slope = weight[:, None] * (softmax(z @ got.weights + got.bias) - np.eye(4)[code])
    assert np.abs(0.02 * z.T @ slope + got.weights).max() < 1e-4
    assert np.abs(slope.sum(0)).max() < 1e-3


def test_heads_without_something_to_learn():
    x = CLEAR.readings["net"].features.astype(float)
    code = np.array([EMOTIONS.index(e) for e in CLEAR.emotion])
    seen = np.zeros(240, bool)
    for few, k in ((code[:0], 4), (np.full(5, 2), 4)):  # nothing, one class: guessed
        got = learn_head(x[: len(few)], few, k).shares(x, seen)
        assert got == pytest.approx(np.tile([0.25] * 4 + [0], (240, 1)))
    for left in ((0, 3), (0, 1, 3)):  # a class that was never seen is never the answer
        use = np.isin(code, left)
        got = learn_head(x[use], code[use], 4).shares(x, seen)
        assert not got[:, 2].any() and got.sum(1) == pytest.approx(1)
        assert np.mean(got[use, code[use]]) > 0.8
    flat = np.tile(x[:1], (240, 1)) + 1e-7 * np.random.default_rng(0).normal(size=x.shape)
    assert learn_head(flat, code, 4).shares(flat, seen)[:, :4] == pytest.approx(0.25)


@pytest.mark.parametrize("classes", [2, 4])
def test_heads_equal_scikit_learn(classes):
    clear = people(classes=classes)
    table = people(classes=classes, noise=2.0, method="m", withheld=range(0, 240, 11), fta=range(3, 240, 13))
    rows = score(table, clear)
    x, y, truth = clear.readings["net"].features, table.readings["net"].features, clear.emotion
    read = ~table.withheld & ~table.fta
    names, who = np.unique(clear.subjects, return_inverse=True)
    fold = folds(names.tolist(), QUICK.seed)[who]
    said = {k: np.full(240, "-", "U12") for k in ("clear", "anonymised", "retrained")}
    for f in range(FOLDS):
        learn, test = fold != f, fold == f
        plain = head().fit(x[learn], truth[learn])
        other = head().fit(y[learn & read], truth[learn & read])
        said["clear"][test] = plain.predict(x[test])
        said["anonymised"][test & read] = plain.predict(y[test & read])
        said["retrained"][test] = other.predict(x[test])
    names = list(EMOTIONS[:classes])
    for convention, of in (("headline", np.ones(240, bool)), ("without_fta", read)):
        t, z = truth[of], said["anonymised"][of]
        assert find(rows, "accuracy", convention, ADAPTED).value == pytest.approx(accuracy_score(t, z))
        assert find(rows, "macro_f1", convention, ADAPTED).value == pytest.approx(f1_score(t, z, average="macro", labels=names))
        assert find(rows, "uar", convention, ADAPTED).value == pytest.approx(recall_score(t, z, average="macro", labels=names))
    plain = recall_score(truth, said["clear"], average="macro")
    assert find(rows, "uar", "headline", ADAPTED).note.startswith(f"clear {plain:.3f} [")
    again = find(rows, "retrained_uar", comparison=RETRAINED)
    assert again.value == pytest.approx(recall_score(truth, said["retrained"], average="macro"))
    assert again.note.startswith(f"learnt on clear {plain:.3f} [")
    assert f"{(~read).sum()} of 240 images could not be learnt from" in again.note
    assert find(rows, "retrained_macro_f1", comparison=RETRAINED).value == pytest.approx(
        f1_score(truth, said["retrained"], average="macro")
    )


# --- intervals


def test_intervals_equal_brute_force():
    few = dataclasses.replace(QUICK, replicates=100)
    rows = score(MIXED, protocol=few)
    classes = list(EMOTIONS[:4])
    y, z, plain = CLEAR.emotion, answers(MIXED, classes), answers(CLEAR, classes)
    names, who = np.unique(CLEAR.subjects, return_inverse=True)
    found = {n: [] for n in (*RATES, "uar_change", "accuracy_change", "kappa", "anger", "mean_delta_p")}
    free, free_plain = answers(MIXED, EMOTIONS), answers(CLEAR, EMOTIONS)
    moved = np.abs(MIXED.readings["net"].probabilities.astype(float) - CLEAR.readings["net"].probabilities).mean(1)
    for drawn in intervals.person_draws(names.tolist(), few.replicates, few.seed):
        r = np.repeat(np.arange(240), drawn[who])
        uar = [recall_score(y[r], s[r], average="macro", labels=classes, zero_division=0) for s in (z, plain)]
        found["uar"].append(uar[0])
        found["uar_change"].append(uar[0] - uar[1])
        found["accuracy"].append(np.mean(y[r] == z[r]))
        found["accuracy_change"].append(np.mean(y[r] == z[r]) - np.mean(y[r] == plain[r]))
        found["macro_f1"].append(f1_score(y[r], z[r], average="macro", labels=classes, zero_division=0))
        found["kappa"].append(cohen_kappa_score(free[r], free_plain[r]))
        found["anger"].append(np.mean(z[r][y[r] == "anger"] == "anger"))
        found["mean_delta_p"].append(np.nanmean(moved[r]))
    of_class = [len(set(CLEAR.subjects[y == c])) for c in classes]
    # Rates have a closed form (tests/test_stats_wilson.py): of these events, and of these images.
    people = len(names)
    right, clear = (np.bincount(who, y == s, people) for s in (z, plain))
    images = np.bincount(who, minlength=people)
    angry = np.bincount(who, (y == "anger") & (z == "anger"), people), np.bincount(who, y == "anger", people)
    closed = {
        "accuracy": intervals.rate_interval(right, images),
        "anger": intervals.rate_interval(*angry),
        "accuracy_change": intervals.difference_interval(right, images, clear, images),
    }
    for name, values in found.items():
        if name in closed:
            row = find(rows, "recall", label="anger") if name == "anger" else find(rows, name)
            assert (row.lo, row.hi) == pytest.approx(closed[name][:2], abs=1e-12), name
            # near what the bootstrap says, which is right far from 0 and 1
            assert np.quantile(values, [0.05, 0.95]) == pytest.approx([row.lo, row.hi], abs=0.05), name
            continue
        row = find(rows, "recall", label="anger") if name == "anger" else find(rows, name)
        persons = {"uar": min(of_class), "macro_f1": min(of_class), "uar_change": min(of_class), "anger": of_class[0]}
        tail = intervals.expanded_tail(0.95, persons.get(name, 40))
        assert (row.lo, row.hi) == pytest.approx(tuple(np.quantile(values, [tail, 1 - tail])), abs=1e-12), name


def test_draws_are_those_of_all_methods():
    """The change of a method is the difference of the replicates, so a harmless method has a narrow interval."""
    nearly = CLEAR.readings["net"].probabilities.copy()
    nearly[::60] = np.roll(nearly[::60], 1, axis=1)  # an image of each of four persons
    row = find(score(with_reading(CLEAR, nearly)), "accuracy_change")
    plain = find(score(CLEAR), "accuracy")
    assert row.hi - row.lo < (plain.hi - plain.lo) / 2


# --- known answers


def test_pass_through():
    same = dataclasses.replace(CLEAR, method="original")
    rows = score(same)
    for name in ("accuracy_change", "uar_change", "mean_delta_p"):
        row = find(rows, name)
        assert row.value == 0
        if name == "accuracy_change":  # no person differs, of 40: that has a bound
            assert (row.lo, row.hi) == pytest.approx(
                (-intervals.zero_events_bound(40, 0.95), intervals.zero_events_bound(40, 0.95))
            )
        else:
            assert row.lo is None and row.ci_reason == "no variance between persons"
    assert all(r.value == 0 for r in rows if r.metric == "emotion.delta_p")
    for convention in CONVENTIONS:
        assert find(rows, "kappa", convention).value == 1
    for comparison, name in itertools.product((STOCK, ADAPTED), RATES):
        row = find(rows, name, comparison=comparison)
        assert f"clear {row.value:.3f} [{row.lo:.3f}, {row.hi:.3f}]" in row.note
    assert (
        find(rows, "retrained_uar", comparison=RETRAINED).value == find(rows, "uar", comparison=ADAPTED).value
    )  # learnt from the same images


def test_blackout():
    """A face is found nowhere: the fallback crop is read all the same, and does not count."""
    rows = score(dataclasses.replace(CLEAR, method="blackout", fta=np.ones(240, bool)))
    everywhere = [find(rows, n, comparison=c) for c in (STOCK, ADAPTED) for n in RATES]
    everywhere += [find(rows, "uar_open"), *(r for r in rows if r.metric == "emotion.recall")]
    for row in everywhere:
        assert (row.value, row.lo, row.n_fta > 0) == (0, 0, True)
        assert 0 < row.hi < 0.2 and "no event seen" in row.ci_method
    for comparison, name in itertools.product((STOCK, ADAPTED), RATES):
        row = find(rows, name, "without_fta", comparison)
        assert (row.value, row.n_images) == (None, 0)
        assert row.reason == "no face was found in any released image"
    assert find(rows, "kappa", "without_fta").reason == "no face was found in any released image"
    assert find(rows, "kappa").value == 0
    assert find(rows, "mean_delta_p").value == 0  # here the fallback crop shows what there was
    assert find(rows, "mean_delta_p", "without_fta").value is None
    for true in EMOTIONS[:4]:
        row = find(rows, "confusion", label=f"{true} -> {UNREAD}")
        assert (row.value, row.hi) == (1, 1) and row.lo > 0.8
    plain = find(score(CLEAR), "accuracy")
    row = find(rows, "accuracy_change")
    assert row.value == pytest.approx(-plain.value)
    # nothing was right: that has a bound of its own, beside the spread of the clear figure
    assert row.lo == pytest.approx(-plain.hi, abs=0.01) and -plain.lo < row.hi < 0
    for name in ("retrained_uar", "retrained_macro_f1"):
        assert find(rows, name, comparison=RETRAINED).reason == (
            "nothing to learn from: no face was found in any released image"
        )


def test_nothing_was_released():
    """Then nobody knows how many features the classifier has."""
    gone = people(method="failing", withheld=range(240))
    gone = with_reading(gone, features=np.empty((240, 0)))
    rows = score(gone)
    for comparison, name in itertools.product((STOCK, ADAPTED), RATES):
        assert find(rows, name, comparison=comparison).value == 0
        assert find(rows, name, "without_fta", comparison).reason == "nothing was released"
    assert find(rows, "accuracy").n_failed == 240
    assert find(rows, "mean_delta_p").reason == "nothing was released"
    assert find(rows, "kappa").value == 0
    with pytest.raises(InputError, match="features"):
        score(with_reading(BLURRED, features=np.zeros((240, 3))))


def test_more_noise_reads_worse():
    by = [score(people(noise=s, method=f"noise {s}")) for s in (0.5, 2.0, 6.0)]
    for name, comparison in (
        ("accuracy", STOCK), ("uar", STOCK), ("macro_f1", STOCK), ("uar", ADAPTED), ("kappa", STOCK), ("uar_change", STOCK),
    ):  # fmt: skip
        values = [find(rows, name, comparison=comparison).value for rows in by]
        assert values == sorted(values, reverse=True) and values[0] > values[2] + 0.1, name
    assert find(by[0], "mean_delta_p").value < find(by[1], "mean_delta_p").value < find(by[2], "mean_delta_p").value


def test_a_classifier_that_guesses_is_not_trusted():
    noise = softmax(np.random.default_rng(1).normal(size=(240, 8)))
    blind = with_reading(CLEAR, noise, np.random.default_rng(2).normal(size=(240, D)))
    for row in score(blind, blind):
        if row.value is not None:
            assert not row.trusted
            assert "untrusted: the classifier is not shown to be above chance (0.250) on clear images (UAR 0." in row.note
    assert all(r.trusted for r in score(BLURRED))
    # It is the clear images that count: one that is lost on blurred ones only is trusted.
    assert find(score(with_reading(BLURRED, noise)), "uar").trusted
    # Each use is judged on its own: the classifier may be lost while its features are not.
    rows = score(with_reading(CLEAR, noise), with_reading(CLEAR, noise))
    assert not find(rows, "uar").trusted and not find(rows, "kappa").trusted
    assert find(rows, "uar", comparison=ADAPTED).trusted


def test_a_rare_class_costs_the_interval_not_the_trust():
    odd = CLEAR.emotion.copy()
    odd[0] = "surprise"
    clear = dataclasses.replace(CLEAR, emotion=odd)
    rows = score(dataclasses.replace(BLURRED, emotion=odd), clear)
    row = find(rows, "uar")
    assert row.value is not None and row.trusted and row.lo is None
    assert row.ci_reason.startswith("one person")
    assert find(rows, "accuracy").lo is not None
    row = find(rows, "uar", comparison=ADAPTED)
    assert "left out, fewer than 10 persons: surprise (1 person)" in row.note
    assert (row.n_images, row.chance) == (239, 1 / 4)


# --- persons are apart


def test_folds_do_not_share_persons():
    """Features that tell the person and nothing else, each with one emotion: whoever saw the person knows the answer."""
    persons, images = 60, 4
    who = np.repeat(np.arange(persons), images)
    emotion = np.array(EMOTIONS[:3])[np.random.default_rng(0).integers(0, 3, persons)][who]
    x = np.eye(persons)[who] + 0.01 * np.random.default_rng(1).normal(size=(240, persons))
    table = with_reading(dataclasses.replace(people(persons=persons, images=images), emotion=emotion), features=x)
    rows = score(table, table)
    known = LogisticRegression(C=STRENGTH, class_weight="balanced").fit(x[::2], emotion[::2])
    assert np.mean(known.predict(x[1::2]) == emotion[1::2]) > 0.95  # what sharing persons would give
    for name, comparison in (("uar", ADAPTED), ("retrained_uar", RETRAINED)):
        row = find(rows, name, comparison=comparison)
        assert row.value < 1 / 3 + 0.12
        assert not row.trusted  # and it is said that nothing was learnt


def test_folds_are_shared_by_both_heads():
    """Learnt from clear or from equal anonymised images, the answers to the clear images are the same ones."""
    x = CLEAR.readings["net"].features.astype(float)
    code = np.array([EMOTIONS.index(e) for e in CLEAR.emotion])
    said = heads(x, x, code, 4, CLEAR.subjects, CLEAR.ids, 3)
    assert np.array_equal(said.clear, said.retrained) and np.array_equal(said.clear, said.anonymised)
    # Nobody outside a fold has a say in what its persons look like when read: only in what is learnt.
    names, who = np.unique(CLEAR.subjects, return_inverse=True)
    fold = folds(names.tolist(), 3)[who]
    other = x.copy()
    other[fold == 0] += 100
    again = heads(other, x, code, 4, CLEAR.subjects, CLEAR.ids, 3)
    assert np.array_equal(again.anonymised[fold == 0], said.anonymised[fold == 0])
    assert not np.array_equal(again.anonymised[fold == 1], said.anonymised[fold == 1])


# --- what cannot be computed


def test_no_classifier():
    for table in (dataclasses.replace(CLEAR, readings={}), with_reading(CLEAR, task="attributes")):
        rows = score(table, table)
        assert [r.metric for r in rows] == [q.name for q in Emotion.quantities]
        assert {r.reason for r in rows} == {"the suite has no emotion classifier"}


@pytest.mark.parametrize("emotion", [None, np.full(240, "")], ids=["none", "empty"])
def test_no_labels(emotion):
    clear, table = (dataclasses.replace(t, emotion=emotion) for t in (CLEAR, MIXED))
    rows = score(table, clear)
    label_free = ("emotion.kappa", "emotion.delta_p", "emotion.mean_delta_p")
    with_labels = score(MIXED)
    for row in rows:
        if row.metric in label_free:
            name = row.metric.removeprefix("emotion.")
            assert row.value == find(with_labels, name, row.convention, label=row.label).value
            assert "how good the classifier is on these images is unknown: the images have no labels" in row.note
        else:
            assert row.reason == "the images have no labels of emotions"


def test_words():
    """Other words for the classes are the classes; words that are none of ours are left out and counted."""
    words = {"anger": "Angry", "contempt": "contemptuous", "disgust": "disgusted ", "fear": "SCARED"}
    other = dataclasses.replace(CLEAR, emotion=np.array([words[e] for e in CLEAR.emotion]))
    for a, b in zip(score(BLURRED), score(BLURRED, other), strict=True):
        assert a == b
    strange = CLEAR.emotion.astype("U20")
    strange[:3], strange[3:5], strange[5] = "boredom", "awe", ""
    rows = score(BLURRED, dataclasses.replace(CLEAR, emotion=strange))
    for comparison in (STOCK, ADAPTED):
        row = find(rows, "uar", comparison=comparison)
        assert "unknown words left out: awe (2), boredom (3)" in row.note
        assert row.n_images == 234
    rows = score(BLURRED, dataclasses.replace(CLEAR, emotion=np.full(240, "boredom")))
    assert find(rows, "uar").reason == (
        "the images have no labels of emotions that are known (unknown words left out: boredom (240))"
    )


def test_classes_that_the_classifier_does_not_know():
    labels = ("fear", "anger", "happiness", "disgust")  # not contempt, and in another order
    clear, table = people(labels=labels), people(noise=2.0, labels=labels, method="m")
    rows = score(table, clear)
    left = int((clear.emotion == "contempt").sum())
    row = find(rows, "uar")
    assert f"left out, unknown to the classifier: contempt ({left})" in row.note
    assert row.n_images == 240 - left
    use = clear.emotion != "contempt"
    assert row.value == pytest.approx(
        balanced_accuracy_score(clear.emotion[use], answers(table, ["anger", "disgust", "fear"])[use])
    )
    # The head learns it all the same.
    assert find(rows, "uar", comparison=ADAPTED).n_images == 240
    strangers = with_reading(people(labels=("happiness", "sadness", "neutral")))
    rows = score(strangers, strangers)
    assert find(rows, "uar").reason == (
        "the classifier knows none of the classes of the images (anger, contempt, disgust, fear)"
    )
    assert find(rows, "uar", comparison=ADAPTED).value > 0.5


def test_other_names_of_the_classifier():
    """Names of other programs are mapped; two names of one class are one class."""
    named = with_reading(
        BLURRED, labels=("angry", "contemptuous", "disgusted", "scared", "happy", "neutral", "sad", "surprised")
    )
    plain = with_reading(CLEAR, labels=named.readings["net"].labels)
    assert score(named, plain) == score(BLURRED)
    p = np.hstack([CLEAR.readings["net"].probabilities] * 2) / 2
    twice = with_reading(CLEAR, p, labels=EMOTIONS + named.readings["net"].labels)
    assert find(score(twice, twice), "uar").value == find(score(CLEAR), "uar").value


def test_one_class():
    one = np.full(240, "happiness")
    rows = score(dataclasses.replace(BLURRED, emotion=one), dataclasses.replace(CLEAR, emotion=one))
    for row in rows:
        if row.metric in ("emotion.kappa", "emotion.delta_p", "emotion.mean_delta_p"):
            assert row.value is not None
        else:
            assert row.reason == "every labelled image is happiness"


def test_one_person():
    clear = dataclasses.replace(CLEAR, subjects=np.full(240, "p"))
    rows = score(dataclasses.replace(MIXED, subjects=clear.subjects), clear)
    for row in rows:
        if row.comparison != STOCK:
            assert row.reason.startswith("fewer than two classes have 10 persons; too few: anger (1 person), ")
        elif row.value is not None:
            assert row.lo is None and row.ci_reason.startswith("one person")
    assert find(rows, "uar").value == find(score(MIXED), "uar").value
    assert not find(rows, "uar").trusted  # one person shows nothing


def test_one_image():
    rows = score(BLURRED.take(np.array([3])), CLEAR.take(np.array([3])))
    assert find(rows, "uar").reason.startswith("every labelled image is ")
    assert find(rows, "mean_delta_p").value is not None


def test_no_image():
    none = np.array([], np.intp)
    rows = score(BLURRED.take(none), CLEAR.take(none))
    assert {r.reason for r in rows} == {"there are no images"}


def test_no_features():
    bare = with_reading(BLURRED, features=np.empty((240, 0)))
    rows = score(bare, with_reading(CLEAR, features=np.empty((240, 0))))
    assert find(rows, "uar").value is not None
    for name, comparison in (("uar", ADAPTED), ("retrained_uar", RETRAINED)):
        assert find(rows, name, comparison=comparison).reason == "the classifier gives no features to learn from"


def test_a_class_without_a_face():
    """Its recall is 0; what is left of the others is not averaged as if that class had never been."""
    lost = np.flatnonzero(CLEAR.emotion == "fear")
    rows = score(people(noise=2.0, method="m", fta=lost))
    assert find(rows, "recall", label="fear").value == 0
    assert find(rows, "uar").value > 0
    assert find(rows, "accuracy", "without_fta").value > 0
    for name in ("uar", "macro_f1"):
        assert find(rows, name, "without_fta").reason == "no face was found in any image of fear"
    # Not one image of fear to learn from: the head never says it.
    assert find(rows, "retrained_uar", comparison=RETRAINED).value <= 3 / 4


def test_clear_images_without_a_face_count_as_wrong():
    clear = people(fta=range(0, 240, 4))
    rows = score(clear, clear)
    plain = score(CLEAR)
    assert find(rows, "accuracy").value < find(plain, "accuracy").value - 0.1
    assert find(rows, "accuracy_change").value == 0
    assert find(rows, "kappa").value == 1
    assert find(rows, "kappa", "without_fta").n_images == 180


# --- order, company


def test_order_and_company_change_nothing():
    move = np.random.default_rng(0).permutation(240)
    one, two = score(MIXED), score(MIXED.take(move), CLEAR.take(move))
    for a, b in zip(one, two, strict=True):
        assert a == dataclasses.replace(b, value=a.value, lo=a.lo, hi=a.hi)
        assert [b.value, b.lo, b.hi] == pytest.approx([a.value, a.lo, a.hi], abs=1e-12)
    pair = [
        dataclasses.replace(t, readings={"a-other": people(seed=5, labels=EMOTIONS[:5]).readings["net"], **t.readings})
        for t in (CLEAR, MIXED)
    ]
    rows = score(pair[1], pair[0])
    assert [r for r in rows if r.recognizer == "net"] == one
    assert {r.recognizer for r in rows} == {"a-other", "net"}


def test_duplicates_change_nothing():
    """Every image twice: rates and their intervals stay (the heads learn from more, and are not asked here)."""
    twice = np.repeat(np.arange(240), 2)
    one, two = score(MIXED), score(MIXED.take(twice), CLEAR.take(twice))
    for a, b in zip(one, two, strict=True):
        if a.comparison == STOCK:
            assert [b.value, b.lo, b.hi] == pytest.approx([a.value, a.lo, a.hi], abs=1e-9)
            assert b.n_images == 2 * a.n_images and b.n_persons == a.n_persons


def test_same_seed_same_figures():
    assert score(MIXED) == score(MIXED)
    other = score(MIXED, protocol=dataclasses.replace(QUICK, seed=8))
    assert find(other, "uar").value == find(score(MIXED), "uar").value
    assert find(other, "uar").lo != find(score(MIXED), "uar").lo


def test_wrong_tables_are_refused():
    with pytest.raises(InputError, match="not the same images"):
        score(CLEAR.take(np.arange(240)[::-1]))
    with pytest.raises(InputError, match="other classes"):
        score(with_reading(BLURRED, labels=EMOTIONS[::-1]))


# --- real faces


@pytest.fixture(scope="module")
def london(shared_data: Path, finder):
    """Neutral and smiling faces of 30 persons: clear, pixelated, blacked out.

    The classifier's answer is the width of the mouth against the distance of the eyes, a rule of thumb; its features are the
    landmarks in a frame of eyes and mouth.
    """
    import cv2

    from deidbench.faces import named_points, subject_face
    from deidbench.images import read_image

    root = shared_data / "london"
    rows = list(csv.DictReader((root / "manifest.csv").open()))
    some = sorted({r["subject_id"] for r in rows})[:25]
    rows = [r for r in rows if r["subject_id"] in some]
    pictures = [read_image(root / r["path"]) for r in rows]
    tables = {}
    for method, block in (("original", 0), ("pixelated", 20), ("blackout", -1)):
        p, x = np.full((len(rows), 2), 0.5, np.float32), np.zeros((len(rows), 956), np.float32)
        lost = np.zeros(len(rows), bool)
        for i, picture in enumerate(pictures):
            if block > 0:
                h, w = picture.shape[:2]
                small = cv2.resize(picture, (w // block, h // block), interpolation=cv2.INTER_AREA)
                picture = cv2.resize(small, (w, h), interpolation=cv2.INTER_NEAREST)
            face = None if block < 0 else subject_face(finder.find(picture, thorough=False))
            if face is None or face.landmarks is None:
                lost[i] = True
                continue
            right, left, a, b = named_points(face, ["eye_r", "eye_l", "mouth_r", "mouth_l"])
            wide = np.linalg.norm(a - b) / np.linalg.norm(right - left)
            p[i, 0] = 1 / (1 + np.exp(-20 * (wide - 0.87)))
            p[i, 1] = 1 - p[i, 0]
            x[i] = ((face.landmarks - (right + left) / 2) / np.linalg.norm(right - left)).ravel()
        reading = Reading("emotion", ("happy", "neutral"), p, x)
        tables[method] = Table(
            "london", method, np.array([r["path"] for r in rows]), np.array([r["subject_id"] for r in rows]),
            np.full(len(rows), "ok"), np.zeros(len(rows), bool), lost,
            emotion=np.array([r["emotion"] for r in rows]), readings={"mouth": reading},
        )  # fmt: skip
    return tables


def test_real_faces(london):
    rows = {m: score(t, london["original"]) for m, t in london.items()}
    plain = {(n, c): find(rows["original"], n, comparison=c) for n in RATES for c in (STOCK, ADAPTED)}
    assert plain["uar", STOCK].value > 0.75 and plain["uar", STOCK].trusted
    assert plain["uar", ADAPTED].value > 0.75 and plain["uar", ADAPTED].trusted
    assert "classes happiness, neutral (2 of the classifier's 2 occur)" in plain["uar", STOCK].note
    for comparison in (STOCK, ADAPTED):
        assert find(rows["pixelated"], "uar", comparison=comparison).value < plain["uar", comparison].value - 0.1
        assert find(rows["blackout"], "uar", comparison=comparison).value == 0
        assert find(rows["blackout"], "uar", "without_fta", comparison).value is None
    assert find(rows["original"], "kappa").value == 1
    assert find(rows["pixelated"], "kappa").value < 0.7
