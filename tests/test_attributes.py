"""Attributes: against scikit-learn, and on readings with known answers."""

from __future__ import annotations

import csv
import dataclasses
import json
import warnings

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

from deidbench.errors import InputError
from deidbench.kinds import classifiers, metrics
from deidbench.metrics.attributes import MIN_PERSONS, Attributes, table_of
from deidbench.metrics.base import Protocol, Reading, Table
from deidbench.metrics.models.labels import ATTRIBUTE_GROUPS, ATTRIBUTES
from deidbench.stats import intervals
from deidbench.stats.multiplicity import holm

QUICK = Protocol(replicates=400)
NAMES = ("Male", "Smiling", "Eyeglasses", "Bangs", "Tattoo")  # the last is nobody's: in no group
CLEAR_ONLY = ("base_rate", "clear_balanced_accuracy", "clear_false_negative_rate")
OF_EACH = ("balanced_accuracy", "retention", "removal", "appearance")
MEANS = ("balanced_accuracy", "retention", "removal")
BOTH = ("headline", "without_fta")


def truth_of(seed=0, persons=60, images=4, names=NAMES):
    """Half of each label is the person's, half the image's."""
    rng = np.random.default_rng([seed, 1])
    n = persons * images
    mine = rng.random((persons, len(names))).repeat(images, 0)
    return (0.5 * mine + 0.5 * rng.random((n, len(names))) < 0.4).astype(float)


def faces(
    wrong=0.1, seed=0, read_seed=0, method="original", withheld=(), fta=(), truth=None, names=NAMES, images=4, labels=None
):
    """A table whose classifier is wrong in a share of the answers."""
    t = truth_of(seed, names=names, images=images) if truth is None else np.asarray(truth, float)
    n = len(t)
    rng = np.random.default_rng([seed, read_seed, 2])
    said = np.where(rng.random(t.shape) < wrong, 1 - np.nan_to_num(t, nan=1.0), np.nan_to_num(t, nan=0.0))
    p = (0.5 + (said - 0.5) * rng.uniform(0.1, 0.9, t.shape)).astype(np.float32)
    gone, lost = np.zeros(n, bool), np.zeros(n, bool)
    gone[list(withheld)], lost[list(fta)] = True, True
    lost &= ~gone
    p[gone] = np.nan
    return Table(
        "synthetic", method, np.array([f"i{i:05d}" for i in range(n)]), np.array([f"p{i // images:04d}" for i in range(n)]),
        np.where(gone, "failed", "ok"), gone, lost, attributes={a: t[:, j] for j, a in enumerate(names)},
        readings={"net": Reading("attributes", tuple(labels or names), p, np.zeros((n, 0), np.float32))},
    )  # fmt: skip


def saying(table, probabilities, **changes):
    """The same faces, read otherwise."""
    reading = dataclasses.replace(table.readings["net"], probabilities=np.asarray(probabilities, np.float32))
    return dataclasses.replace(table, readings={"net": reading}, **changes)


CLEAR = faces()
MIXED = faces(0.25, read_seed=1, method="mixed", withheld=range(0, 240, 11), fta=range(3, 240, 13))


def score(anonymised, clear=CLEAR, protocol=QUICK):
    rows = Attributes().score(clear, anonymised, protocol).rows
    well_formed(rows)
    return rows


def find(rows, name, label="", convention=None):
    """convention: the headline, or none for a figure that has none."""
    convention = ("" if name == "base_rate" else "headline") if convention is None else convention
    (row,) = [r for r in rows if (r.metric, r.label, r.convention) == (f"attributes.{name}", label, convention)]
    return row


def well_formed(rows):
    declared = {q.name: q for q in Attributes.quantities}
    for row in rows:
        q = declared[row.metric]
        assert (row.unit, row.higher_is_better, q.axis, row.family) == (q.unit, q.higher_is_better, "utility", "attributes")
        assert (row.value is None) == bool(row.reason)
        assert (row.lo is None) == (row.hi is None) == bool(row.ci_reason) == (row.ci_level is None)
        assert row.lo is None or (row.lo < row.hi and row.lo - 1e-12 <= row.value <= row.hi + 1e-12 and row.ci_method)
        if row.value is not None and row.unit == "rate":
            assert 0 <= row.value <= 1
        json.dumps(row.plain(), allow_nan=False)
    keys = [(r.metric, r.recognizer, r.convention, r.label) for r in rows]
    assert len(set(keys)) == len(keys)


def answers(table):
    """(n, L): 1, 0, or -1 where nothing was read."""
    p = table.readings["net"].probabilities
    said = np.where(np.nan_to_num(p) >= 0.5, 1, 0)
    said[table.withheld | table.fta | np.isnan(p).any(1)] = -1
    return said


def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*args, **kwargs)


def test_registered():
    assert metrics.get("attributes") is Attributes
    assert not Attributes.needs_background
    better = {q.name.removeprefix("attributes.") for q in Attributes.quantities if q.higher_is_better}
    assert better == {f"{p}{n}" for p in ("", "mean_", "group_") for n in ("balanced_accuracy", "retention")}
    assert not [q for q in Attributes.quantities if q.higher_is_better is False]
    assert {q.unit for q in Attributes.quantities if q.name.endswith("retention")} == {"ratio"}


# --- the table against scikit-learn


def reference(t, c, a):
    """One attribute.  t: truth, NaN unknown.  c, a: 1, 0, -1.  By scikit-learn; a figure that does not exist is NaN."""

    def accuracy(y, said):
        if len(set(y)) < 2:
            return np.nan
        lost = np.where(said == -1, 1 - y, said)  # wrong, whichever it is
        return balanced_accuracy_score(y, lost)

    def skills(after, before):
        return (after - 0.5) / (before - 0.5) if before > 0.5 + 1e-12 else np.nan

    known = np.isin(t, [0, 1])
    y, cy, ay = t[known].astype(int), c[known], a[known]
    before, after = accuracy(y, cy), accuracy(y, ay)
    both = (cy >= 0) & (ay >= 0)
    m = confusion_matrix(c, a, labels=[-1, 0, 1])
    with np.errstate(all="ignore"):
        return {
            "base_rate": y.mean() if len(y) else np.nan,
            "clear_balanced_accuracy": before,
            "clear_false_negative_rate": 1 - recall_score(y, cy == 1) if y.any() else np.nan,
            "balanced_accuracy": after,
            "balanced_accuracy_without_fta": accuracy(y[ay >= 0], ay[ay >= 0]),
            "retention": skills(after, before),
            "retention_without_fta": skills(accuracy(y[both], ay[both]), accuracy(y[both], cy[both])),
            "removal": 1 - m[2, 2] / m[2].sum(),
            "removal_without_fta": m[2, 1] / m[2, 1:].sum(),
            "appearance": m[1, 2] / m[1].sum(),
            "appearance_without_fta": m[1, 2] / m[1, 1:].sum(),
        }


def random_case(seed):
    """Random and degenerate: unknown labels, a class absent, constant answers, ties, nothing read, few images."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    t = rng.integers(0, 2, (n, 9)).astype(float)
    t[rng.random(t.shape) < 0.2] = np.nan
    t[:, 0], t[:, 1], t[:, 2] = 0, 1, np.nan
    c, a = (rng.choice([0, 0.2, 0.49999, 0.5, 0.7, 1], t.shape).astype(np.float32) for _ in "ca")
    c[:, 3], a[:, 4] = 0, 1
    c[:, 5], a[:, 5] = np.nan_to_num(t[:, 5]), 1 - np.nan_to_num(t[:, 5])
    a[:, 6] = c[:, 6]
    c[rng.random(t.shape) < 0.05], a[rng.random(t.shape) < 0.05] = np.nan, np.nan
    share = rng.choice([0, 0.1, 0.9, 1])
    return t, c, a, rng.random(n) < share / 4, rng.random(n) < share


def read(p, lost):
    return np.where(np.isnan(p) | lost[:, None], -1, p >= 0.5)


@pytest.mark.parametrize("seed", range(60))
def test_table_equals_scikit_learn(seed):
    t, c, a, dark, lost = random_case(seed)
    got = table_of(t, c, a, [f"x{j}" for j in range(9)], dark, lost)
    for j in range(9):
        want = quiet(reference, t[:, j], read(c, dark)[:, j], read(a, lost)[:, j])
        assert list(got.columns) == list(want)
        assert got.loc[f"x{j}"].to_numpy() == pytest.approx(list(want.values()), abs=1e-12, nan_ok=True)


def test_table_without_losses_is_the_same_in_both_conventions():
    t, c, a, _, _ = random_case(3)
    got = table_of(t, np.nan_to_num(c), np.nan_to_num(a), list("abcdefghi"))
    for name in OF_EACH:
        assert got[name].to_numpy() == pytest.approx(got[f"{name}_without_fta"].to_numpy(), nan_ok=True)


def test_table_refuses_other_shapes():
    t = np.zeros((4, 2))
    for bad in ((t, t[:3], t, "ab"), (t, t, t, "abc"), (t[:, :1], t, t, "ab")):
        with pytest.raises(ValueError, match="labels"):
            table_of(*bad)


def test_one_half_is_yes():
    t = np.array([[1.0], [0.0]])
    got = table_of(t, np.full((2, 1), 0.5), np.full((2, 1), np.nextafter(np.float32(0.5), np.float32(0))), ["x"]).loc["x"]
    assert (got.clear_balanced_accuracy, got.clear_false_negative_rate, got.balanced_accuracy) == (0.5, 0, 0.5)
    assert (got.removal, got.base_rate) == (1, 0.5)
    assert np.isnan(got.retention) and np.isnan(got.appearance)


def test_no_images():
    got = table_of(*[np.zeros((0, 2))] * 3, ["x", "y"])
    assert got.shape == (2, 11) and got.isna().all(axis=None)


# --- the rows


@pytest.mark.parametrize("clear", [CLEAR, faces(fta=range(5, 240, 17), withheld=[7])], ids=["clear", "clear with losses"])
def test_rows_equal_the_table_and_scikit_learn(clear):
    rows = score(MIXED, clear)
    t = np.column_stack([clear.attributes[a] for a in NAMES])
    c, a = answers(clear), answers(MIXED)
    for j, label in enumerate(NAMES):
        want = reference(t[:, j], c[:, j], a[:, j])
        for key, value in want.items():
            name, convention = (key.removesuffix("_without_fta"), "without_fta") if key.endswith("fta") else (key, None)
            row = find(rows, name, label, convention)
            assert row.value == pytest.approx(value, abs=1e-12)
            assert row.recognizer == "net"
            assert row.lo < row.value < row.hi
        yes = c[:, j] == 1
        row = find(rows, "balanced_accuracy", label)
        assert (row.n_images, row.n_persons, row.n_failed, row.n_fta) == (240, 60, MIXED.withheld.sum(), MIXED.fta.sum())
        row = find(rows, "balanced_accuracy", label, "without_fta")
        assert row.n_images == (a[:, j] >= 0).sum() and row.n_failed == MIXED.withheld.sum()
        row = find(rows, "removal", label)
        assert (row.n_images, row.n_persons) == (yes.sum(), len(set(clear.subjects[yes])))
        assert (row.n_failed, row.n_fta) == ((yes & MIXED.withheld).sum(), (yes & MIXED.fta).sum())
        assert find(rows, "removal", label, "without_fta").n_images == (yes & (a[:, j] >= 0)).sum()
        row = find(rows, "clear_balanced_accuracy", label)
        assert (row.n_failed, row.n_fta) == (clear.withheld.sum(), clear.fta.sum())
        row = find(rows, "clear_false_negative_rate", label)
        assert (row.n_images, row.n_fta) == ((t[:, j] == 1).sum(), (clear.fta & (t[:, j] == 1)).sum())
        assert find(rows, "retention", label, "without_fta").n_images == ((c[:, j] >= 0) & (a[:, j] >= 0)).sum()


def test_figures_beside_it_are_in_the_note():
    rows = score(MIXED)
    plain, missed = find(rows, "clear_balanced_accuracy", "Male"), find(rows, "clear_false_negative_rate", "Male")
    said = f"{plain.value:.3f} [{plain.lo:.3f}, {plain.hi:.3f}]"
    assert find(rows, "balanced_accuracy", "Male").note == f"clear {said}"
    assert find(rows, "removal", "Male").note == f"missed on clear images {missed.value:.3f} [{missed.lo:.3f}, {missed.hi:.3f}]"
    after = find(rows, "balanced_accuracy", "Male").value
    assert find(rows, "retention", "Male").note == f"balanced accuracy {plain.value:.3f} clear, {after:.3f} anonymised"


def test_every_row():
    rows = score(MIXED)
    want = {(n, x, "" if n == "base_rate" else "headline") for n in CLEAR_ONLY for x in NAMES}
    want |= {(n, x, c) for n in OF_EACH for x in NAMES for c in BOTH}
    want |= {(f"mean_{n}", "", c) for n in MEANS for c in BOTH}
    groups = ("age and sex", "expression", "accessories", "hair")
    want |= {(f"group_{n}", g, c) for n in MEANS for g in groups for c in BOTH}
    assert {(r.metric.removeprefix("attributes."), r.label, r.convention) for r in rows} == want
    assert {r.metric for r in rows} == {q.name for q in Attributes.quantities}
    # CelebA's attributes in CelebA's order, then others.
    assert [r.label for r in rows if r.metric == "attributes.base_rate"] == ["Bangs", "Eyeglasses", "Male", "Smiling", "Tattoo"]


@pytest.mark.parametrize("convention", BOTH)
def test_means(convention):
    rows = score(MIXED)
    end = "" if convention == "headline" else "_without_fta"
    t = np.column_stack([CLEAR.attributes[a] for a in NAMES])
    c, a = answers(CLEAR), answers(MIXED)
    each = [reference(t[:, j], c[:, j], a[:, j]) for j in range(5)]
    if end:
        c = np.where(a < 0, -1, c)
    before = [balanced_accuracy_score(t[c[:, j] >= 0, j], c[c[:, j] >= 0, j]) for j in range(5)]
    for name in ("balanced_accuracy", "removal"):
        assert find(rows, f"mean_{name}", "", convention).value == pytest.approx(np.mean([e[name + end] for e in each]))
    want = (np.mean([e["balanced_accuracy" + end] for e in each]) - 0.5) / (np.mean(before) - 0.5)
    row = find(rows, "mean_retention", "", convention)
    assert row.value == pytest.approx(want)
    assert row.note.startswith("ratio of mean skills above chance") and row.note.endswith("5 of 5 attributes measurable")
    assert row.lo < row.value < row.hi
    assert row.hi - row.lo < find(rows, "retention", "Male", convention).hi - find(rows, "retention", "Male", convention).lo
    for name in MEANS:  # a group of one is its attribute
        mine, one = find(rows, f"group_{name}", "age and sex", convention), find(rows, name, "Male", convention)
        assert mine.value == pytest.approx(one.value)
        assert (mine.n_images, mine.n_persons, mine.n_failed, mine.n_fta, mine.unit, mine.chance) == (
            one.n_images, one.n_persons, one.n_failed, one.n_fta, one.unit, one.chance,
        )  # fmt: skip
    assert find(rows, "group_removal", "hair", convention).note.endswith("; 1 of 1 attribute measurable")


def test_groups_hold_their_attributes():
    names = ("Bald", "Bangs", "Goatee", "Male", "Young")
    clear = faces(names=names)
    rows = score(faces(0.3, read_seed=4, names=names), clear)
    for group in ("hair", "age and sex"):
        mine = [find(rows, "removal", a).value for a in names if a in ATTRIBUTE_GROUPS[group]]
        assert find(rows, "group_removal", group).value == pytest.approx(np.mean(mine))
    assert len(mine) == 2
    assert not [r for r in rows if r.label in ("makeup", "other")]


# --- intervals


def test_intervals_equal_a_loop():
    """Images resampled with their persons, one replicate after the other, figures by scikit-learn."""
    protocol = Protocol(replicates=60)
    clear = faces(fta=range(5, 240, 17))
    rows = score(MIXED, clear, protocol)
    t = np.column_stack([clear.attributes[a] for a in NAMES])
    c, a = answers(clear), answers(MIXED)
    people = np.unique(clear.subjects)
    found = []
    for w in intervals.person_draws(people.tolist(), 60, 0):
        which = np.concatenate([np.flatnonzero(clear.subjects == s) for s, k in zip(people, w, strict=True) for _ in range(k)])
        found.append([reference(t[which, j], c[which, j], a[which, j]) for j in range(5)])
    for j, label in enumerate(NAMES):
        y = t[:, j] == 1
        seen, both = a[:, j] >= 0, (a[:, j] >= 0) & (c[:, j] >= 0)
        on = {"": [y, ~y], "seen": [y & seen, ~y & seen], "both": [y & both, ~y & both]}
        persons = {k: min(len(set(clear.subjects[m])) for m in v) for k, v in on.items()}
        removed = [len(set(clear.subjects[m])) for m in (c[:, j] == 1, (c[:, j] == 1) & seen)]
        for key, name, convention, n in (
            ("base_rate", "base_rate", "", 60),
            ("clear_balanced_accuracy", "clear_balanced_accuracy", "headline", persons[""]),
            ("balanced_accuracy", "balanced_accuracy", "headline", persons[""]),
            ("balanced_accuracy_without_fta", "balanced_accuracy", "without_fta", persons["seen"]),
            ("retention", "retention", "headline", persons[""]),
            ("retention_without_fta", "retention", "without_fta", persons["both"]),
            ("removal", "removal", "headline", removed[0]),
            ("removal_without_fta", "removal", "without_fta", removed[1]),
            ("clear_false_negative_rate", "clear_false_negative_rate", "headline", len(set(clear.subjects[y]))),
        ):
            tail = intervals.expanded_tail(0.95, n)
            row = find(rows, name, label, convention)
            want = np.quantile([f[j][key] for f in found], [tail, 1 - tail])
            rate = {
                "base_rate": (y, t[:, j] >= 0),
                "removal": ((c[:, j] == 1) & (a[:, j] != 1), c[:, j] == 1),
                "removal_without_fta": ((c[:, j] == 1) & (a[:, j] == 0), (c[:, j] == 1) & seen),
                "clear_false_negative_rate": (y & (c[:, j] != 1), y),
            }.get(key)
            if rate is not None:  # of which there is a closed form
                who = np.unique(clear.subjects, return_inverse=True)[1]
                want = intervals.rate_interval(*(np.bincount(who, m, len(people)) for m in rate))[:2]
            assert (row.lo, row.hi) == pytest.approx(tuple(want), abs=1e-12)
    tail = intervals.expanded_tail(0.95, 60)
    mean = {
        k: np.array([np.mean([e[k] for e in f]) for f in found])
        for k in ("balanced_accuracy", "clear_balanced_accuracy", "removal")
    }
    for name, values in (
        ("mean_removal", mean["removal"]),
        ("mean_retention", (mean["balanced_accuracy"] - 0.5) / (mean["clear_balanced_accuracy"] - 0.5)),
    ):
        row = find(rows, name)
        assert (row.lo, row.hi) == pytest.approx(tuple(np.quantile(values, [tail, 1 - tail])), abs=1e-12)


def test_labels_in_blocks_are_the_same(monkeypatch):
    from deidbench.metrics import attributes

    rows = score(MIXED)
    monkeypatch.setattr(attributes, "_BLOCK", 1)
    assert score(MIXED) == rows


def test_order_of_images_does_not_matter():
    order = np.random.default_rng(0).permutation(240)
    assert score(MIXED.take(order), CLEAR.take(order)) == score(MIXED)


def test_order_of_labels_does_not_matter():
    def turned(table):
        old = table.readings["net"]
        reading = dataclasses.replace(old, labels=old.labels[::-1], probabilities=old.probabilities[:, ::-1])
        attributes = dict(reversed(list(table.attributes.items())))
        return dataclasses.replace(table, readings={"net": reading}, attributes=attributes)

    assert score(turned(MIXED), turned(CLEAR)) == score(MIXED)


# --- known answers


def test_original_retains_all():
    rows = score(CLEAR)
    for label in NAMES:
        for convention in BOTH:
            row = find(rows, "retention", label, convention)
            assert row.value == 1 and row.lo is None and row.ci_reason == "no variance between persons"
            row = find(rows, "removal", label, convention)
            assert row.value == 0 and row.lo == 0 < row.hi < 0.1 and row.ci_method.startswith("no event seen")
            assert find(rows, "appearance", label, convention).value == 0
            assert (
                find(rows, "balanced_accuracy", label, convention).value == find(rows, "clear_balanced_accuracy", label).value
            )
    for row in rows:
        if row.metric.endswith(("mean_retention", "group_retention")):
            assert row.value == 1
        if row.metric.endswith(("mean_removal", "group_removal")):
            assert row.value == 0 and row.hi > 0


@pytest.mark.parametrize("kind", ["fta", "withheld"])
def test_nothing_can_be_read(kind):
    rows = score(faces(method="blackout", **{kind: range(240)}))
    gone = "nothing was released" if kind == "withheld" else "no face was found in any released image"
    for label in NAMES:
        row = find(rows, "balanced_accuracy", label)
        assert row.value == 0 and row.lo == 0 < row.hi < 0.2
        plain = find(rows, "clear_balanced_accuracy", label).value
        row = find(rows, "retention", label)
        assert row.value == pytest.approx(-0.5 / (plain - 0.5)) and row.value < -1
        row = find(rows, "removal", label)
        assert row.value == 1 and row.hi == 1 > row.lo
        assert (row.n_failed, row.n_fta)[kind == "fta"] == row.n_images
        assert find(rows, "appearance", label).value == 0
        for name in OF_EACH:
            row = find(rows, name, label, "without_fta")
            assert (row.value, row.reason, row.n_images) == (None, gone, 0)
    for prefix, label in (("mean", ""), ("group", "hair")):
        assert [find(rows, f"{prefix}_{n}", label).value for n in ("balanced_accuracy", "removal")] == [0, 1]
        assert {find(rows, f"{prefix}_{n}", label, "without_fta").reason for n in MEANS} == {gone}


def test_opposite_answers():
    rows = score(saying(CLEAR, 1 - CLEAR.readings["net"].probabilities, method="liar"))
    for label in NAMES:
        plain = find(rows, "clear_balanced_accuracy", label).value
        assert find(rows, "balanced_accuracy", label).value == pytest.approx(1 - plain)
        assert find(rows, "retention", label).value == pytest.approx(-1)
        assert (find(rows, "removal", label).value, find(rows, "appearance", label).value) == (1, 1)
    assert find(rows, "mean_retention").value == pytest.approx(-1)


def test_better_than_before_is_not_clipped():
    t = np.column_stack([CLEAR.attributes[a] for a in NAMES])
    rows = score(saying(CLEAR, t, method="caricature"))
    row = find(rows, "balanced_accuracy", "Male")
    assert (row.value, row.hi) == (1, 1) and row.lo < 1
    assert find(rows, "retention", "Male").value == pytest.approx(
        0.5 / (find(rows, "clear_balanced_accuracy", "Male").value - 0.5)
    )
    assert find(rows, "retention", "Male").value > 1 and find(rows, "mean_retention").value > 1


def test_a_constant_answer_retains_nothing():
    rows = score(saying(CLEAR, np.ones((240, 5)), method="mask"))
    assert find(rows, "balanced_accuracy", "Male").value == 0.5
    assert find(rows, "retention", "Male").value == pytest.approx(0, abs=1e-12)
    assert (find(rows, "removal", "Male").value, find(rows, "appearance", "Male").value) == (0, 1)
    row = find(rows, "retention", "Male")
    assert row.lo is None and row.ci_reason == "no variance between persons"


def test_part_of_it_is_lost():
    """The faces that are found read as before: everything by hand."""
    half = saying(CLEAR, CLEAR.readings["net"].probabilities, method="half", fta=np.arange(240) % 4 == 0)
    rows = score(half)
    for j, label in enumerate(NAMES):
        assert find(rows, "retention", label, "without_fta").value == 1
        assert find(rows, "removal", label, "without_fta").value == 0
        yes = answers(CLEAR)[:, j] == 1
        assert find(rows, "removal", label).value == pytest.approx((yes & half.fta).sum() / yes.sum())
        assert find(rows, "retention", label).value < 1
    # A face that was not found on the clear image is no part of the comparison.
    dark = dataclasses.replace(CLEAR, fta=np.arange(240) % 4 == 1)
    rows = score(CLEAR, dark)
    assert find(rows, "retention", "Male").value > 1
    row = find(rows, "retention", "Male", "without_fta")
    assert (row.value, row.n_images) == (1, 180)


# --- unmeasurable


def test_guessing_is_unmeasurable():
    """40 random labels and answers: images of a person agree, so that a test over images would pass some."""
    names = ATTRIBUTES
    rng = np.random.default_rng(0)
    t = rng.integers(0, 2, (60, 40)).repeat(4, 0)
    clear = saying(faces(truth=t, names=names), rng.random((60, 40)).repeat(4, 0))
    rows = score(clear, clear)
    for label in names:
        for name in OF_EACH:
            for convention in BOTH:
                row = find(rows, name, label, convention)
                assert row.value is None and row.reason.startswith("unmeasurable: clear 0.")
                assert row.reason.endswith("is not above chance 0.500 (Holm over 40)")
        assert find(rows, "base_rate", label).value == pytest.approx(t[:, names.index(label)].mean())
        row = find(rows, "clear_balanced_accuracy", label)
        assert row.value is not None and row.lo < row.value < row.hi and row.note.startswith("unmeasurable: clear ")
        assert find(rows, "clear_false_negative_rate", label).value is not None
    for name in MEANS:
        assert find(rows, f"mean_{name}").reason == "unmeasurable: none of 40 attributes can be read off the clear images"
        assert find(rows, f"group_{name}", "age and sex").reason == (
            "unmeasurable: none of 2 attributes can be read off the clear images"
        )


def test_one_that_is_readable_among_many_that_are_not():
    names = ATTRIBUTES
    rng = np.random.default_rng(1)
    t = rng.integers(0, 2, (60, 40)).repeat(4, 0)
    p = rng.random((60, 40)).repeat(4, 0)
    at = names.index("Male")
    p[:, at] = np.abs(t[:, at] - (rng.random(240) < 0.1))
    clear = saying(faces(truth=t, names=names), p)
    rows = score(saying(clear, 1 - p, method="liar"), clear)
    assert [
        r.label for r in rows if r.metric == "attributes.retention" and r.convention == "headline" and r.value is not None
    ] == ["Male"]
    mean = find(rows, "mean_retention")
    assert mean.value == pytest.approx(find(rows, "retention", "Male").value) == pytest.approx(-1)
    assert mean.note.endswith("1 of 40 attributes measurable: Male")
    assert find(rows, "group_retention", "age and sex").note.endswith("1 of 2 attributes measurable: Male")
    assert find(rows, "group_retention", "hair").value is None


def test_holm_decides():
    """p-values by a t-test over persons with one image each, adjusted by Holm: the same verdict as the rows."""
    names = ATTRIBUTES[:12]
    rng = np.random.default_rng(3)
    n = 400
    t = np.tile(np.arange(n)[:, None] % 2, (1, 12)).astype(float)
    p = np.abs(t - (rng.random((n, 12)) < np.linspace(0.38, 0.5, 12)))
    clear = saying(faces(truth=t, names=names, images=1), p)
    rows = score(clear, clear, Protocol(replicates=4000))
    right = (p == t).astype(float)
    # Classes of equal size: balanced accuracy is accuracy, and its spread that of the mean.
    plain = np.array([ttest_1samp(right[:, j], 0.5, alternative="greater").pvalue for j in range(12)])
    adjusted = holm(plain)
    clear_cut = (adjusted < 0.03) | (adjusted > 0.08)  # the bootstrap's error is random: the borderline is not tested
    said = {a: find(rows, "retention", a).value is not None for a in names}
    assert [said[a] for a, use in zip(names, clear_cut, strict=True) if use] == (adjusted[clear_cut] < 0.05).tolist()
    # The test would fail without the adjustment, and with a test that accepts or refuses everything.
    assert ((plain < 0.05) & (adjusted > 0.08)).any() and 0 < sum(said.values()) < 12


def test_verdict_is_that_of_the_clear_images():
    names = ATTRIBUTES
    t = truth_of(5, names=names)
    rng = np.random.default_rng(2)
    p = np.abs(t - (rng.random(t.shape) < np.linspace(0.1, 0.5, 40)))
    clear = saying(faces(truth=t, names=names), p)
    one, two = score(clear, clear), score(saying(clear, np.zeros_like(p), method="m", fta=np.arange(240) % 3 == 0), clear)
    which = [[r.label for r in rows if r.metric == "attributes.removal" and r.value is None] for rows in (one, two)]
    assert which[0] == which[1] and 0 < len(which[0]) < 60
    good = 40 - len(which[0]) // 2
    left_out = sorted(set(which[0]), key=names.index)
    assert find(one, "mean_removal").note.endswith(f"{good} of 40 attributes measurable, not: {', '.join(left_out)}")


def test_rare_classes():
    who = np.arange(240) // 4
    extra = {"Bald": who < MIN_PERSONS - 1, "Young": np.ones(240), "Chubby": who >= 1, "Goatee": who < MIN_PERSONS}
    extra = {k: np.asarray(v, float) for k, v in extra.items()}
    extra["Blurry"] = np.full(240, np.nan)
    names = (*NAMES, *extra)
    t = np.column_stack([*(CLEAR.attributes[a] for a in NAMES), *extra.values()])
    clear = saying(faces(truth=t, names=names), np.nan_to_num(t))
    rows = score(clear, clear)
    refused = {a: {find(rows, n, a, c).reason for n in OF_EACH for c in BOTH} for a in extra}
    assert refused == {
        "Bald": {"unmeasurable: fewer than 10 persons of yes (9 persons)"},
        "Young": {"unmeasurable: fewer than 10 persons of no (0 persons)"},
        "Chubby": {"unmeasurable: fewer than 10 persons of no (1 person)"},
        "Goatee": {""},
        "Blurry": {"unmeasurable: no image is labelled"},
    }
    assert find(rows, "base_rate", "Bald").value == pytest.approx(36 / 240)
    assert find(rows, "clear_balanced_accuracy", "Bald").value == 1
    row = find(rows, "clear_balanced_accuracy", "Chubby")  # always right, over one person: no interval
    assert row.value == 1 and row.lo is None and row.ci_reason.startswith("one person")
    row = find(rows, "base_rate", "Young")
    assert (row.value, row.hi) == (1, 1) and row.lo < 1
    assert find(rows, "clear_balanced_accuracy", "Young").reason == "every labelled image is yes"
    assert find(rows, "clear_false_negative_rate", "Young").value == 0
    for name in CLEAR_ONLY:
        assert find(rows, name, "Blurry").reason == "no image is labelled"
    assert find(rows, "mean_removal").note.endswith("6 of 10 attributes measurable, not: Bald, Blurry, Chubby, Young")


def test_unknown_labels_are_left_out():
    t = np.column_stack([CLEAR.attributes[a] for a in NAMES])
    t[:40, 0] = np.nan
    t[40:50, 0] = -1  # neither 0 nor 1: nobody knows what it says
    p = CLEAR.readings["net"].probabilities
    clear = saying(faces(truth=t), p)
    rows = score(clear, clear)
    row = find(rows, "balanced_accuracy", "Male")
    assert (row.n_images, row.n_persons) == (190, 48)
    assert row.value == pytest.approx(balanced_accuracy_score(t[50:, 0], p[50:, 0] >= 0.5))
    # Removal needs no truth.
    assert find(rows, "removal", "Male").n_images == (p[:, 0] >= 0.5).sum()


def test_a_class_without_a_face():
    lost = CLEAR.attributes["Male"] == 1
    rows = score(saying(CLEAR, CLEAR.readings["net"].probabilities, method="m", fta=lost))
    said = "no face was found in any image whose label is yes"
    assert find(rows, "balanced_accuracy", "Male", "without_fta").reason == said
    assert find(rows, "retention", "Male", "without_fta").reason == said
    assert find(rows, "balanced_accuracy", "Smiling", "without_fta").value is not None
    assert find(rows, "removal", "Male", "without_fta").value == 0
    for name in ("mean_balanced_accuracy", "mean_retention"):
        row = find(rows, name, "", "without_fta")
        assert row.reason == "no face was found in any image that this takes of Male"
    assert find(rows, "group_retention", "age and sex", "without_fta").reason == said
    assert find(rows, "mean_balanced_accuracy").value is not None


def test_no_skill_is_left_where_faces_were_found():
    """The classifier is right, but for the images in which a face is found afterwards: nothing to retain there."""
    t = np.column_stack([CLEAR.attributes[a] for a in NAMES])
    found = np.arange(240) % 4 == 0
    p = np.where(found[:, None], 1 - t, t)
    clear = saying(CLEAR, p)
    rows = score(saying(clear, p, method="m", fta=~found), clear)
    why = "the classifier has no skill above chance on the clear images of the faces that were found"
    for name, label in (("retention", "Male"), ("mean_retention", ""), ("group_retention", "hair")):
        row = find(rows, name, label, "without_fta")
        assert (row.value, row.reason) == (None, why)
    assert find(rows, "balanced_accuracy", "Male", "without_fta").value == 0


# --- nothing to report


REFUSED = {f"attributes.mean_{n}" for n in MEANS}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"readings": {}}, "the suite has no attribute classifier"),
        ({"attributes": {}}, "the images have no labels of attributes"),
        ({"attributes": {"Wings": np.ones(240)}}, "the classifier knows none of the attributes of the images"),
    ],
)
def test_refusals(change, reason):
    table = dataclasses.replace(CLEAR, **change)
    rows = score(table, table)
    assert {r.metric for r in rows} == REFUSED and {r.convention for r in rows} == set(BOTH)
    assert {(r.value, r.reason, r.label) for r in rows} == {(None, reason, "")}


def test_classifiers_of_emotions_are_none():
    reading = dataclasses.replace(CLEAR.readings["net"], task="emotion")
    table = dataclasses.replace(CLEAR, readings={"net": reading})
    assert {r.reason for r in score(table, table)} == {"the suite has no attribute classifier"}


def test_no_images_at_all():
    none = CLEAR.take(np.arange(0))
    assert {r.reason for r in score(none, none)} == {"there are no images"}


def test_one_person():
    who = np.flatnonzero(CLEAR.subjects == "p0003")
    rows = score(MIXED.take(who), CLEAR.take(who))
    for row in rows:
        if row.metric.endswith((".base_rate", ".clear_false_negative_rate", ".clear_balanced_accuracy")):
            assert row.lo is None
            assert row.ci_reason.startswith(("one person", "no person", "every labelled"))
        else:
            assert row.value is None and row.reason.startswith("unmeasurable: ")


def test_two_classifiers():
    def both(table, wrong):
        other = faces(wrong, read_seed=9, names=("Male",), truth=truth_of()[:, :1]).readings["net"]
        return dataclasses.replace(table, readings={**table.readings, "another": other})

    rows = score(both(MIXED, 0.3), both(CLEAR, 0.2))
    assert [r for r in rows if r.recognizer == "net"] == score(MIXED)
    mine = [r for r in rows if r.recognizer == "another"]
    assert {r.label for r in mine} == {"Male", "", "age and sex"}


def test_other_images_are_refused():
    for other in (CLEAR.take(np.arange(239)), CLEAR.take(np.arange(240)[::-1])):
        with pytest.raises(InputError, match="not the same images"):
            Attributes().score(CLEAR, other, QUICK)
    with pytest.raises(InputError, match="other attributes"):
        Attributes().score(CLEAR, faces(labels=NAMES[::-1]), QUICK)


def test_a_seed_is_enough():
    assert score(MIXED) == score(MIXED)
    other = score(MIXED, protocol=dataclasses.replace(QUICK, seed=1))
    assert find(other, "retention", "Male").value == find(score(MIXED), "retention", "Male").value
    assert find(other, "retention", "Male").lo != find(score(MIXED), "retention", "Male").lo


# --- real faces


@pytest.fixture(scope="module")
def celeba(shared_data, finder):
    """Two images each of 75 persons of CelebA-HQ (role evaluate): clear, pixelated, blackout; found faces or None."""
    import cv2

    from deidbench.faces import subject_face
    from deidbench.images import read_image

    root = shared_data / "celeba_hq"
    if not (root / "manifest.csv").is_file():
        pytest.skip("CelebA-HQ is not among the shared data")
    rows, seen = [], {}
    for r in csv.DictReader((root / "manifest.csv").open()):
        seen[r["subject_id"]] = seen.get(r["subject_id"], 0) + (r["role"] == "evaluate")
        if r["role"] == "evaluate" and seen[r["subject_id"]] <= 2 and len(rows) < 150:
            rows.append(r)

    def pixelated(picture, block=24):
        h, w = picture.shape[:2]
        small = cv2.resize(picture, (w // block, h // block), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (w, h), interpolation=cv2.INTER_NEAREST)

    clear = [read_image(root / r["path"]) for r in rows]
    pictures = {"original": clear, "pixelated": [pixelated(p) for p in clear], "blackout": [np.zeros_like(p) for p in clear]}
    return rows, {m: [(p, None if m == "blackout" else subject_face(finder.find(p))) for p in of] for m, of in pictures.items()}


def test_real_faces(celeba):
    from deidbench.faces import align

    classifier = classifiers.create("attributes-cnn")
    if why := classifier.missing():
        pytest.skip(why)
    classifier.load()
    rows, pictures = celeba
    n, size = len(rows), classifier.crop.size
    tables = {}
    for method, of in pictures.items():
        blank = np.zeros((size, size, 3), np.uint8)
        crops = [blank if face is None else align(picture, face, classifier.crop) for picture, face in of]
        reading = Reading(
            classifier.task, tuple(classifier.labels), classifier.predict(np.stack(crops)), np.zeros((n, 0), np.float32)
        )
        tables[method] = Table(
            "celeba_hq", method, np.array([r["path"] for r in rows]), np.array([r["subject_id"] for r in rows]),
            np.full(n, "ok"), np.zeros(n, bool), np.array([face is None for _, face in of]),
            attributes={a: np.array([float(r[a]) for r in rows]) for a in ATTRIBUTES}, readings={"attributes-cnn": reading},
        )  # fmt: skip
    found = {m: score(t, tables["original"]) for m, t in tables.items()}
    plain = found["original"]
    assert find(plain, "clear_balanced_accuracy", "Male").value > 0.9
    assert find(plain, "clear_balanced_accuracy", "Smiling").value > 0.85
    assert {r.value for r in plain if "retention" in r.metric and r.value is not None} == {1.0}
    assert find(plain, "mean_balanced_accuracy").value > 0.7
    pixel = find(found["pixelated"], "mean_retention")
    assert pixel.value < 0.7 and pixel.hi < 1
    assert find(found["pixelated"], "removal", "Smiling").value > 0.2
    black = found["blackout"]
    assert find(black, "mean_balanced_accuracy").value == 0 and find(black, "mean_removal").value == 1
    assert find(black, "mean_retention").value < 0
    assert find(black, "mean_retention", "", "without_fta").value is None
