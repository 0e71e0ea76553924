"""Reading traits off anonymised faces: against scikit-learn, and on synthetic embeddings with known answers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deidbench.errors import InputError
from deidbench.kinds import metrics
from deidbench.metrics.base import Background, Protocol, Table
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.soft_biometrics import (
    ATTACKERS,
    FOLDS,
    STRENGTH,
    SoftBiometrics,
    Target,
    above_chance,
    fit,
    folds,
    targets,
    without,
)
from deidbench.stats import intervals

QUICK = Protocol(replicates=400)
D = 24


def label_of(seed, persons=60, images=4):
    """Traits: sex (of the person), age (three bands, of the person), Smiling (of the image)."""
    rng = np.random.default_rng([seed, 1])
    sex = rng.permutation(np.arange(persons) % 2).repeat(images)
    age = rng.permutation(np.arange(persons) % 3).repeat(images)
    return sex, age, rng.integers(0, 2, persons * images)


def people(seed, persons=60, images=4, signal=0.5, method="original", who="p", withheld=(), fta=(), move=None):
    """Faces of persons with a person effect, in which three traits show along fixed directions."""
    sex, age, smile = label_of(seed, persons, images)
    rng = np.random.default_rng([seed, 2])
    x = rng.normal(size=(persons, D)).repeat(images, 0) + 0.5 * rng.normal(size=(persons * images, D))
    way = np.random.default_rng(99).normal(size=(5, D))
    x += signal * ((2 * sex - 1)[:, None] * way[0] + way[1:4][age] + (2 * smile - 1)[:, None] * way[4])
    e = l2_normalise(x)
    if move is not None:
        e = e[:, move]
    n = persons * images
    gone, lost = np.zeros(n, bool), np.zeros(n, bool)
    gone[list(withheld)], lost[list(fta)] = True, True
    e[gone] = np.nan
    return Table(
        "synthetic", method, np.array([f"{who}{i:05d}" for i in range(n)]),
        np.repeat([f"{who}{i:04d}" for i in range(persons)], images), np.where(gone, "no_face", "ok"), gone, lost,
        embeddings={"a": e[:, : D // 2], "b": e[:, D // 2 :]},
        attributes={"Smiling": smile.astype(float)},
        groups={"sex": np.where(sex == 1, "male", "female"), "age": np.array(["child", "adult", "old"])[age]},
    )  # fmt: skip


CLEAR, TAUGHT = people(1), people(2, who="t")


def score(anonymised, background=Background(), clear=CLEAR, protocol=QUICK):  # noqa: B008 - frozen
    return SoftBiometrics().score(clear, anonymised, protocol, background).rows


def find(rows, label, attacker="informed"):
    (row,) = [r for r in rows if (r.label, r.attacker) == (label, attacker)]
    return row


def joined(table):
    return np.hstack([table.embeddings[r] for r in sorted(table.embeddings)]).astype(float)


def sklearn_reader(classes=2):
    one = LogisticRegression(C=STRENGTH, class_weight="balanced", tol=1e-10, max_iter=10_000)
    if classes == 2:
        return make_pipeline(StandardScaler(), one)
    from sklearn.multiclass import OneVsRestClassifier

    return make_pipeline(StandardScaler(), OneVsRestClassifier(one))


def everything_is_well_formed(rows, labels=("sex", "age", "Smiling", "")):
    declared = {q.name: q for q in SoftBiometrics.quantities}
    for row in rows:
        q = declared[row.metric]
        assert (row.unit, row.higher_is_better, q.axis, row.family) == (q.unit, False, "privacy", "soft")
        assert (row.value is None) == bool(row.reason)
        assert (row.lo is None) == (row.hi is None) == bool(row.ci_reason)
        assert row.lo is None or (row.lo <= row.value <= row.hi and row.ci_method and row.ci_level == 0.95)
        assert row.value is None or (0 <= row.value <= 1 and 0 < row.chance < 1)
        json.dumps(row.plain(), allow_nan=False)
    assert sorted((r.label, r.attacker) for r in rows) == sorted((x, a) for x in labels for a in ATTACKERS)
    assert {r.metric for r in rows if not r.label} == {"soft.mean_balanced_accuracy"}


def test_registered():
    assert metrics.get("soft-biometrics") is SoftBiometrics
    assert SoftBiometrics.needs_background


# --- the classifier against scikit-learn


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(200, 10), (40, 60)])
def test_weights_equal_scikit_learn(seed, shape):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1])) + rng.normal(size=shape[1])
    binary = (x[:, 0] + rng.normal(size=len(x)) > np.quantile(x[:, 0], 0.8)).astype(int)
    some = np.where(rng.random(len(x)) < 0.3, -1, (x[:, 1] > x[:, 1].mean()).astype(int))
    three = np.digitize(x[:, 2] + rng.normal(size=len(x)), np.quantile(x[:, 2], [0.3, 0.8]))
    got = fit(x, [binary, some, three], [2, 2, 3], strength=0.1)
    assert got.columns == ((0, 1), (1, 2), (2, 5))
    z = StandardScaler().fit_transform(x)
    y = np.column_stack([binary, some, three == 0, three == 1, three == 2])
    for k in range(5):
        use = np.ones(len(x), bool) if k != 1 else some >= 0
        ref = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-12, max_iter=50_000).fit(z[use], y[use, k])
        assert got.weights[:, k] == pytest.approx(ref.coef_[0], abs=2e-5)
        assert got.bias[k] == pytest.approx(ref.intercept_[0], abs=2e-5)


def test_hits_equal_scikit_learn():
    new = joined(people(3))
    sex, age, smile = label_of(2)
    reader = fit(joined(TAUGHT), [sex, age, smile], [2, 3, 2])
    new_sex, new_age, new_smile = label_of(3)
    for hit, k, y, truth in zip(
        reader.hits(new, [new_sex, new_age, new_smile]),
        (2, 3, 2),
        (sex, age, smile),
        (new_sex, new_age, new_smile),
        strict=True,
    ):
        said = sklearn_reader(k).fit(joined(TAUGHT), y).predict(new)
        assert hit.tolist() == (said == truth).tolist()
        assert 0.6 < hit.mean() < 1


def test_ties_are_guessed():
    sex, age, _ = label_of(2)
    constant = np.tile(joined(TAUGHT)[:1], (240, 1))
    noise = 1e-6 * np.random.default_rng(0).normal(size=constant.shape)  # the same picture in another batch
    for x in (constant, constant + noise):
        two, three = fit(x, [sex, age], [2, 3]).hits(x, [sex, age])
        assert two == pytest.approx(1 / 2)
        assert three == pytest.approx(1 / 3)


def test_no_information_is_guessed():
    sex, age, _ = label_of(2)
    x = joined(TAUGHT)
    reader = fit(x, [sex, age], [2, 3])
    x[5] = np.nan
    sex, age = sex.copy(), age.copy()
    sex[6] = -1
    two, three = reader.hits(x, [sex, age])
    assert (two[5], three[5]) == (1 / 2, pytest.approx(1 / 3))
    assert np.isnan(two[6]) and not np.isnan(three[6])


def test_classes_that_were_never_seen():
    x = joined(TAUGHT)
    _, age, _ = label_of(2)
    one = fit(x, [np.zeros(240, int), np.full(240, 1)], [2, 3])
    assert all((h == pytest.approx(1 / k)) for h, k in zip(one.hits(x, [age * 0, age]), (2, 3), strict=True))
    seen = np.where(age == 2, -1, age)
    (hit,) = fit(x, [seen], [3]).hits(x, [age])
    assert not hit[age == 2].any()
    assert hit[age < 2].mean() > 0.8
    (nothing,) = fit(x[:0], [age[:0]], [3]).hits(x, [age])
    assert nothing == pytest.approx(1 / 3)


# --- the metric against scikit-learn


def test_figures_equal_scikit_learn_with_attacker_train():
    move = np.random.default_rng(5).permutation(D)
    hidden, lesson = people(1, move=move, method="m"), people(2, who="t", move=move)
    hidden.embeddings["a"][:] += 0.05 * np.random.default_rng(6).normal(size=hidden.embeddings["a"].shape)
    rows = score(hidden, Background(TAUGHT, lesson))
    everything_is_well_formed(rows)
    for name, k in (("sex", 2), ("age", 3)):
        y, truth = TAUGHT.groups[name], CLEAR.groups[name]
        ignorant = sklearn_reader(k).fit(joined(TAUGHT), y)
        informed = sklearn_reader(k).fit(joined(lesson), y)
        said = {"ignorant": ignorant.predict(joined(hidden)), "informed": informed.predict(joined(hidden))}
        for attacker in ATTACKERS:
            row = find(rows, name, attacker)
            assert row.value == pytest.approx(recall_score(truth, said[attacker], average="macro"), abs=1e-12)
            assert row.value == pytest.approx(balanced_accuracy_score(truth, said[attacker]), abs=1e-12)
            assert row.chance == 1 / k
            assert (row.comparison, row.n_images, row.n_persons) == ("attacker-train", 240, 60)
            plain = balanced_accuracy_score(truth, ignorant.predict(joined(CLEAR)))
            assert row.note.startswith(f"clear {plain:.3f} [")
            assert "learnt on 60 persons" in row.note


def test_figures_equal_scikit_learn_with_folds():
    hidden = people(1, move=np.arange(D)[::-1], method="m")
    rows = score(hidden)
    everything_is_well_formed(rows)
    fold = folds(sorted(set(CLEAR.subjects)), QUICK.seed)[np.unique(CLEAR.subjects, return_inverse=True)[1]]
    truth = CLEAR.groups["sex"]
    said = {a: np.empty(240, "U6") for a in ATTACKERS}
    for k in range(FOLDS):
        for attacker, x in (("ignorant", joined(CLEAR)), ("informed", joined(hidden))):
            reader = sklearn_reader().fit(x[fold != k], truth[fold != k])
            said[attacker][fold == k] = reader.predict(joined(hidden)[fold == k])
    for attacker in ATTACKERS:
        row = find(rows, "sex", attacker)
        assert row.value == pytest.approx(balanced_accuracy_score(truth, said[attacker]), abs=1e-12)
        assert row.comparison == "5-fold over the evaluated persons"


def test_folds_are_of_persons():
    names = [f"p{i}" for i in range(23)]
    fold = folds(names, 3)
    assert sorted(np.bincount(fold).tolist()) == [4, 4, 5, 5, 5]
    assert folds(names[::-1], 3).tolist() == fold[::-1].tolist()
    assert folds(names, 4).tolist() != fold.tolist()


def test_interval_equals_a_loop():
    rows = score(CLEAR)
    row = find(rows, "sex")
    fold = folds(sorted(set(CLEAR.subjects)), 0)[np.unique(CLEAR.subjects, return_inverse=True)[1]]
    truth, x = CLEAR.groups["sex"], joined(CLEAR)
    right = np.empty(240)
    for k in range(FOLDS):
        reader = sklearn_reader().fit(x[fold != k], truth[fold != k])
        right[fold == k] = reader.predict(x[fold == k]) == truth[fold == k]
    loop = []
    for w in intervals.person_draws(sorted(set(CLEAR.subjects)), 400, 0).astype(float):
        v = w.repeat(4)
        loop.append(np.mean([(v * right)[truth == s].sum() / v[truth == s].sum() for s in ("female", "male")]))
    tail = intervals.expanded_tail(0.95, 30)
    assert (row.lo, row.hi) == pytest.approx(tuple(np.quantile(loop, [tail, 1 - tail])), abs=1e-12)


# --- known answers


def test_a_fixed_permutation_blinds_the_ignorant_attacker_only():
    move = np.random.default_rng(5).permutation(D)
    rows = score(people(1, move=move, method="m"), Background(TAUGHT, people(2, who="t", move=move)))
    plain = score(CLEAR, Background(TAUGHT, TAUGHT))
    for name, k in (("sex", 2), ("age", 3), ("Smiling", 2)):
        assert find(rows, name).value == pytest.approx(find(plain, name).value)
        assert find(plain, name).value > 1 / k + 0.25
        assert find(rows, name, "ignorant").value < find(rows, name).value - 0.2


def test_random_faces_are_at_chance():
    rng = np.random.default_rng(3)

    def scrambled(table):
        e = {r: l2_normalise(rng.normal(size=x.shape)) for r, x in table.embeddings.items()}
        return dataclasses.replace(table, embeddings=e, method="random")

    rows = score(scrambled(CLEAR), Background(TAUGHT, scrambled(TAUGHT)), protocol=dataclasses.replace(QUICK, confidence=0.999))
    for row in rows:
        assert row.lo <= row.chance <= row.hi


def test_a_constant_embedding_is_exactly_at_chance():
    def blank(table):
        e = {r: np.tile(x[:1], (len(x), 1)) for r, x in table.embeddings.items()}
        return dataclasses.replace(table, embeddings=e, method="blank")

    for background in (Background(), Background(TAUGHT, blank(TAUGHT))):
        rows = score(blank(CLEAR), background)
        for row in rows:
            if row.attacker == "informed":
                assert row.value == pytest.approx(row.chance)
                assert row.lo is None and "no variance" in row.ci_reason


def test_withheld_images_are_guessed():
    half = range(0, 240, 2)
    rows = score(people(1, withheld=half), Background(TAUGHT, people(2, who="t")))
    plain = score(people(1), Background(TAUGHT, people(2, who="t")))
    row = find(rows, "sex")
    seen = np.arange(1, 240, 2)
    said = sklearn_reader().fit(joined(TAUGHT), TAUGHT.groups["sex"]).predict(joined(CLEAR)[seen])
    truth = CLEAR.groups["sex"]
    recall = [(np.sum(said[truth[seen] == s] == s) + 0.5 * np.sum(truth[::2] == s)) / np.sum(truth == s) for s in set(truth)]
    assert row.value == pytest.approx(np.mean(recall))
    assert 0.5 < row.value < find(plain, "sex").value
    assert (row.n_images, row.n_failed) == (240, 120)
    assert "120 images guessed" in row.note


@pytest.mark.parametrize("trained", [True, False])
def test_nothing_was_released(trained):
    gone = people(1, withheld=range(240))
    rows = score(gone, Background(TAUGHT, people(2, who="t", withheld=range(240))) if trained else Background())
    assert [r.value for r in rows] == pytest.approx([r.chance for r in rows])
    assert {r.n_failed for r in rows} == {240}
    # Nothing to learn from, but something to look at: the informed attacker guesses, the ignorant one reads.
    if trained:
        rows = score(people(1), Background(TAUGHT, people(2, who="t", withheld=range(240))))
        assert find(rows, "sex").value == 0.5
        assert find(rows, "sex", "ignorant").value > 0.8


def test_images_without_a_face_count():
    row = find(score(people(1, fta=range(7)), Background(TAUGHT, TAUGHT)), "sex")
    assert (row.n_fta, row.n_images) == (7, 240)


# --- what cannot be measured


def with_labels(table, **attributes):
    return dataclasses.replace(table, attributes={**table.attributes, **attributes})


def random_labels(table, seed, k=40):
    """Labels of persons that have nothing to do with their faces."""
    who = np.unique(table.subjects, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    return with_labels(table, **{f"x{i:02d}": rng.integers(0, 2, who.max() + 1)[who].astype(float) for i in range(k)})


def test_traits_that_do_not_show_are_unmeasurable():
    """40 labels of persons at random: images of a person agree, so a test over images would find many of them."""
    clear, taught = random_labels(CLEAR, 0), random_labels(TAUGHT, 1)
    rows = score(clear, Background(taught, taught), clear=clear)
    false = [r for r in rows if r.label.startswith("x") and r.value is not None]
    assert not false
    for r in rows:
        if r.label.startswith("x"):
            assert "unmeasurable: clear 0." in r.reason
            assert r.reason.endswith("is not above chance 0.500 (Holm over 43)")
    assert all(find(rows, name).value > 0.6 for name in ("sex", "age", "Smiling"))
    mean = find(rows, "")
    assert "3 of 43 traits are measurable: age, sex, Smiling" in mean.note
    # The verdict is that of the clear images, whatever the method.
    blind = people(1, signal=0, method="m")
    other = score(random_labels(blind, 0), Background(taught, taught), clear=clear)
    assert [r.value is None for r in other] == [r.value is None for r in rows]


def test_mean_is_that_of_the_measurable_traits():
    rows = score(CLEAR, Background(TAUGHT, TAUGHT))
    for attacker in ATTACKERS:
        mean = find(rows, "", attacker)
        assert mean.value == pytest.approx(np.mean([find(rows, x, attacker).value for x in ("sex", "age", "Smiling")]))
        assert mean.chance == pytest.approx((0.5 + 0.5 + 1 / 3) / 3)
        assert mean.lo < mean.value < mean.hi
        assert mean.hi - mean.lo < find(rows, "sex", attacker).hi - find(rows, "sex", attacker).lo + 0.05


def test_rare_classes():
    who = np.unique(CLEAR.subjects, return_inverse=True)[1]
    clear = with_labels(CLEAR, Rare=(who < 9).astype(float), Always=np.ones(240), Enough=(who < 10).astype(float))
    clear = dataclasses.replace(clear, groups={**clear.groups, "age": np.where(who == 0, "ancient", clear.groups["age"])})
    rows = score(clear, clear=clear)
    assert find(rows, "Rare").reason == "unmeasurable: fewer than 10 persons of yes (9 persons)"
    assert find(rows, "Always").reason == "unmeasurable: fewer than 10 persons of no (0 persons)"
    assert "Holm" in find(rows, "Enough").reason  # enough persons; but the first ten persons look like all others
    age = find(rows, "age")
    assert age.chance == pytest.approx(1 / 3)
    assert (age.n_images, age.n_persons) == (236, 59)
    assert "left out, fewer than 10 persons: ancient (1 person)" in age.note


def test_rare_classes_to_learn_from():
    who = np.unique(TAUGHT.subjects, return_inverse=True)[1]
    few = TAUGHT.take(np.flatnonzero((TAUGHT.groups["sex"] == "male") | (who < 6)))
    rows = score(CLEAR, Background(few, few))
    female = len(set(few.subjects[few.groups["sex"] == "female"]))
    assert find(rows, "sex").reason == (
        f"unmeasurable: fewer than 10 persons of female (30 persons evaluated, {female} to learn from)"
    )
    bare = dataclasses.replace(TAUGHT, groups={}, attributes={})
    rows = score(CLEAR, Background(bare, bare))
    assert {r.reason for r in rows if r.label} == {"unmeasurable: the attacker-train images are not labelled"}
    assert find(rows, "").reason == "no trait can be read off the clear images"


def test_nothing_is_labelled():
    bare = dataclasses.replace(CLEAR, groups={}, attributes={})
    rows = score(bare, clear=bare)
    assert {r.reason for r in rows} == {"the images have no labels of traits"}
    everything_is_well_formed(rows, labels=("",))


def test_no_recogniser():
    dark = dataclasses.replace(CLEAR, embeddings={})
    rows = score(dark)
    everything_is_well_formed(rows)
    assert {r.reason for r in rows if r.label} == {"no recogniser has embeddings in all tables"}


def test_one_grouping_only_and_unknown_labels():
    table = with_labels(CLEAR, Smiling=np.where(np.arange(240) < 40, np.nan, CLEAR.attributes["Smiling"]))
    table = dataclasses.replace(table, groups={"sex": np.where(np.arange(240) < 40, "", "male")})
    rows = score(table, clear=table)
    assert find(rows, "sex").reason == "unmeasurable: every image is male"
    assert find(rows, "Smiling").n_images == 200


# --- details


def test_targets():
    table = with_labels(CLEAR, Male=(CLEAR.groups["sex"] == "male").astype(float), Young=CLEAR.attributes["Smiling"])
    assert [t.name for t in targets(table)] == ["age", "sex", "Smiling", "Young"]  # Male is sex; Young is not these bands
    assert [t.classes for t in targets(table)] == [("adult", "child", "old"), ("female", "male"), ("no", "yes"), ("no", "yes")]
    alone = dataclasses.replace(table, groups={})
    assert [(t.name, t.classes) for t in targets(alone)] == [
        ("age", ("not young", "young")), ("sex", ("female", "male")), ("Smiling", ("no", "yes")),
    ]  # fmt: skip
    other = dataclasses.replace(table, attributes={"Male": table.attributes["Smiling"]})
    assert [t.name for t in targets(other)] == ["age", "sex", "Male"]  # says something else than the grouping
    kept = without(Target("t", ("a", "b", "c"), np.array([0, 1, 2, -1])), ("a", "c"))
    assert (kept.classes, kept.code.tolist()) == (("a", "c"), [0, -1, 1, -1])


def test_p_value():
    rng = np.random.default_rng(0)
    x = rng.normal(0.6, 0.3, 40)  # one figure per person: the mean's t test
    replicates = intervals.ratio_replicates(x, np.ones(40), intervals.person_draws([f"{i:02d}" for i in range(40)], 20_000, 0))
    p = above_chance(float(x.mean()), replicates, 40, 0.5)
    assert p == pytest.approx(ttest_1samp(x, 0.5, alternative="greater").pvalue, rel=0.1)
    assert above_chance(0.5, replicates, 40, 0.5) == 1
    assert above_chance(1.0, np.ones(100), 12, 0.5) == 0.5**12
    assert above_chance(0.75, np.full(100, 0.75), 12, 0.5) == 1


def test_perfect_reading_has_a_one_sided_bound():
    clear, taught = people(1, signal=20), people(2, signal=20, who="t")
    row = find(score(clear, Background(taught, taught), clear=clear), "sex")
    assert (row.value, row.hi) == (1, 1)
    assert row.lo == pytest.approx(0.05 ** (1 / 30))


def test_order_and_company_change_nothing():
    hidden = people(1, move=np.arange(D)[::-1], method="m")
    lesson = people(2, move=np.arange(D)[::-1], who="t")
    a, b = (np.random.default_rng(i).permutation(240) for i in range(2))
    for back, moved in (
        (Background(TAUGHT, lesson), Background(TAUGHT.take(b), lesson.take(b))),
        (Background(), Background()),
    ):
        one, two = score(hidden, back), score(hidden.take(a), moved, clear=CLEAR.take(a))
        for x, y in zip(one, two, strict=True):
            assert x == dataclasses.replace(y, value=x.value, lo=x.lo, hi=x.hi)
            assert (x.value, x.lo, x.hi) == pytest.approx((y.value, y.lo, y.hi), abs=1e-12)
    # Other traits are learnt at the same time; they have no say.
    full = score(random_labels(hidden, 4, 5), Background(random_labels(TAUGHT, 3, 5), lesson), clear=random_labels(CLEAR, 4, 5))
    for attacker in ATTACKERS:
        assert find(full, "sex", attacker).value == find(score(hidden, Background(TAUGHT, lesson)), "sex", attacker).value


def test_wrong_tables_are_refused():
    with pytest.raises(InputError, match="not the same images"):
        score(CLEAR.take(np.arange(240)[::-1]))
    with pytest.raises(InputError, match="not the same images"):
        score(CLEAR, Background(TAUGHT, TAUGHT.take(np.arange(240)[::-1])))
    with pytest.raises(ValueError, match="'p0000' is in attacker-train and under evaluation"):
        score(CLEAR, Background(CLEAR, CLEAR))
