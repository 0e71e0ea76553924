"""Soft biometrics: how well sex, age band and other labelled traits can still be read from the anonymised face."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.kinds import metrics
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Table
from deidbench.metrics.reid.fairness import GROUP_ATTRIBUTES, image_groups
from deidbench.records import Row
from deidbench.stats import intervals
from deidbench.stats.evidence import Evidence
from deidbench.stats.groups import holm
from deidbench.stats.intervals import Interval

FAMILY = "soft"
#: A class with fewer persons, evaluated or to learn from, is left out.
MIN_PERSONS = 10
FOLDS = 5
#: scikit-learn's C (inverse penalty, loss summed over images).  Between 0.001 and 0.1 the mean over 40 attributes changes by
#: at most about 0.02 (600 images; clear, pixelated and blurred), and 0.01 is the best of 0.001, 0.003, 0.01, 0.1 for each.
STRENGTH = 0.01
#: Features that vary less among the training images are noise of the machine (recognisers promise 1e-5), not information.
_CONSTANT = 1e-4
#: Scores closer than this tie: the solver stops there.
_TIE = 1e-5

ATTACKERS = ("ignorant", "informed")


@dataclass(frozen=True, eq=False)
class Target:
    """A trait with classes.  code: (n,) index into ``classes`` per image, -1 where unknown (or of a class left out)."""

    name: str
    classes: tuple[str, ...]
    code: npt.NDArray[np.intp]


def targets(table: Table) -> list[Target]:
    """Groupings ("sex", "age" ...) first, then attributes, both in the order of the alphabet.

    An attribute that says the same as a grouping (``Male`` and "sex") is reported once, under the grouping's name.
    """
    out = []
    groups = image_groups(table)
    for name, labels in groups.items():
        classes = sorted(set(labels.tolist()) - {""})
        out.append(Target(name, tuple(classes), np.where(labels == "", -1, np.searchsorted(classes, labels)).astype(np.intp)))
    for name in sorted(table.attributes):
        value = table.attributes[name]
        code = np.where(value == 1, 1, np.where(value == 0, 0, -1)).astype(np.intp)
        grouping = GROUP_ATTRIBUTES.get(name, ("", "", ""))[0]
        if grouping in groups:
            pairs = set(zip(code[code >= 0].tolist(), groups[grouping][code >= 0].tolist(), strict=True))
            if len({c for c, _ in pairs}) == len({g for _, g in pairs}) == len(pairs) and "" not in {g for _, g in pairs}:
                continue
        out.append(Target(name, ("no", "yes"), code))
    return out


def persons_per_class(target: Target, subjects: npt.NDArray[np.str_]) -> list[int]:
    """Persons with at least one image of the class."""
    return [len(np.unique(subjects[target.code == k])) for k in range(len(target.classes))]


def without(target: Target, classes: Sequence[str]) -> Target:
    """The target with only these of its classes."""
    place = np.array([classes.index(c) if c in classes else -1 for c in target.classes] + [-1], np.intp)
    return Target(target.name, tuple(classes), place[target.code])


@dataclass(frozen=True, eq=False)
class Reader:
    """Linear classifiers of several targets on the same features.

    mean, scale: (d,) of the training features.  weights: (d, K).  bias: (K,).  columns: per target the range of its columns:
    one for two classes (its score is that of class 1), else one per class.
    """

    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    columns: tuple[tuple[int, int], ...]

    def hits(self, features: npt.NDArray[np.float64], codes: Sequence[npt.NDArray[np.intp]]) -> list[npt.NDArray[np.float64]]:
        """Per target (n,): the probability that the class read is the true one; ties are broken at random.

        features: (n, d); a row with NaN is no information, so any class is read with the same probability.  NaN where
        the true class is unknown (-1).
        """
        dark = np.isnan(features).any(1)
        score = (np.where(dark[:, None], self.mean, features) - self.mean) * self.scale @ self.weights + self.bias
        out = []
        for (start, stop), code in zip(self.columns, codes, strict=True):
            z = score[:, start:stop]
            if stop - start == 1:
                z = np.hstack([np.zeros_like(z), z])
            best = z >= z.max(1, keepdims=True) - _TIE
            best[dark] = True
            right = best[np.arange(len(z)), np.where(code < 0, 0, code)] / best.sum(1)
            out.append(np.where(code < 0, np.nan, right))
        return out


def fit(
    features: npt.NDArray[np.float64],
    codes: Sequence[npt.NDArray[np.intp]],
    classes: Sequence[int],
    strength: float = STRENGTH,
) -> Reader:
    """Logistic regression with L2 penalty, balanced class weights and standardised features, of all targets at once.

    features: (n, d) without NaN.  codes: per target (n,), -1 where unknown.  classes: how many each target has.
    More than two classes are read one against the rest.  A class of which there is no image is never read; a target of which
    no two classes are there has equal scores, so that it is guessed.

    Each column is the problem that scikit-learn's ``LogisticRegression(C=strength, class_weight="balanced")`` solves; the
    columns share every matrix product, which is ten times quicker than one problem after the other.
    """
    from scipy.optimize import minimize

    n, d = features.shape
    mean = features.mean(0) if n else np.zeros(d)
    spread = features.std(0) if n else np.zeros(d)
    scale = np.divide(1.0, spread, out=np.zeros(d), where=spread > _CONSTANT)
    x = (features - mean) * scale

    columns: list[tuple[int, int]] = []
    signs: list[npt.NDArray[np.float64]] = []
    weights: list[npt.NDArray[np.float64]] = []
    never: list[bool] = []
    for code, k in zip(codes, classes, strict=True):
        counts = np.bincount(code[code >= 0], minlength=k)
        total = int(counts.sum())
        learnable = np.count_nonzero(counts) >= 2
        first = len(signs)
        for c in (1,) if k == 2 else range(k):
            positive, negative = int(counts[c]), total - int(counts[c])
            use = learnable and positive > 0 and negative > 0
            weight = np.zeros(n)
            if use:
                weight[code >= 0] = total / (2 * negative)
                weight[code == c] = total / (2 * positive)
            signs.append(np.where(code == c, 1.0, -1.0))
            weights.append(weight)
            never.append(learnable and not use and positive == 0)
        columns.append((first, len(signs)))
    many = len(signs)
    w, b = np.zeros((d, many)), np.zeros(many)
    if n and many:
        s = np.column_stack(signs)
        v = np.column_stack(weights) / n
        penalty = 1 / (strength * n)
        # In the axes of the features' covariance, scaled by about the root of the curvature (a logistic loss has at most 1/4),
        # the problem is nearly round, and takes a tenth of the steps.  The solution is the same one.
        _, singular, axes = np.linalg.svd(x, full_matrices=False)
        turn = axes.T / np.sqrt(singular**2 / (4 * n) + penalty)
        x = x @ turn
        ridge = (penalty / (singular**2 / (4 * n) + penalty))[:, None]
        d = len(singular)

        def loss(theta: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            w = theta[: d * many].reshape(d, many)
            margin = s * (x @ w + theta[d * many :])
            small = np.exp(-np.abs(margin))
            value = np.sum(v * (np.log1p(small) + np.maximum(-margin, 0))) + np.sum(ridge * w * w) / 2
            slope = -v * s * np.where(margin > 0, small, 1) / (1 + small)
            return float(value), np.concatenate([(x.T @ slope + ridge * w).ravel(), slope.sum(0)])

        found = minimize(
            loss,
            np.zeros((d + 1) * many),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 5000, "maxfun": 10_000, "ftol": 0, "gtol": 1e-7, "maxcor": 20},
        ).x
        w, b = turn @ found[: d * many].reshape(d, many), found[d * many :]
    b = np.where(never, -np.inf, b)
    return Reader(mean, scale, w, b, tuple(columns))


class _Counts(NamedTuple):
    """Per person and class: expected hits and images, (P, k) each."""

    hits: npt.NDArray[np.float64]
    images: npt.NDArray[np.float64]

    @property
    def value(self) -> float:
        """Mean of the classes' recalls: balanced accuracy, macro recall (UAR) for several classes."""
        return float(np.mean(self.hits.sum(0) / self.images.sum(0)))


def _count(hit: npt.NDArray[np.float64], target: Target, who: npt.NDArray[np.intp], persons: int) -> _Counts:
    k = len(target.classes)
    member = target.code[:, None] == np.arange(k)
    hits = np.where(member, np.nan_to_num(hit)[:, None], 0.0)
    return _Counts(intervals.per_person(who, hits, persons), intervals.per_person(who, member, persons))


def _replicates(counts: Sequence[_Counts], draws: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float64]]:
    """Balanced accuracy in each bootstrap replicate, one (B,) per element; NaN where a replicate lacks a class."""
    if not counts:
        return []
    columns = np.hstack([np.hstack(c) for c in counts])
    sums = intervals.ratio_replicates(columns, np.ones(len(columns)), draws)
    out, at = [], 0
    for c in counts:
        k = c.hits.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            out.append(np.mean(sums[:, at : at + k] / sums[:, at + k : at + 2 * k], 1))
        at += 2 * k
    return out


def _interval(value: float, replicates: npt.NDArray[np.float64], persons: int, level: float) -> Interval:
    """persons: of the smallest class, on which the spread depends most."""
    if value >= 1 - 1e-12:
        return intervals.all_events(persons, level)
    if value <= 1e-12:
        return intervals.zero_events(persons, level)
    return intervals.percentile_interval(replicates, level, persons, "person bootstrap, classifier fixed")


def above_chance(value: float, replicates: npt.NDArray[np.float64], persons: int, chance: float) -> float:
    """One-sided p-value of a figure against ``chance``: bootstrap standard error, Student's t with persons - 1 degrees.

    The tails of a bootstrap of 10,000 end before Holm's level for 40 attributes, so they are not counted but extrapolated.
    """
    from scipy.special import stdtr

    good = replicates[~np.isnan(replicates)]
    if value <= chance or len(good) < 2 or persons < 2:
        return 1.0
    spread = float(good.std(ddof=1)) * (persons / (persons - 1)) ** 0.5
    if spread < 1e-12:
        # Always right, in every person: so seen with probability chance ** persons at least, were it guessed.
        return chance**persons if value >= 1 - 1e-12 else 1.0
    return float(stdtr(persons - 1, -(value - chance) / spread))


def folds(persons: Sequence[str], seed: int, count: int = FOLDS) -> npt.NDArray[np.intp]:
    """(P,) fold of each person: dealt out in the order of a hash of (seed, person), whatever the order of ``persons``."""
    order = sorted(
        range(len(persons)), key=lambda i: hashlib.sha256(f"{seed}|soft biometrics|{persons[i]}".encode()).hexdigest()
    )
    out = np.empty(len(persons), np.intp)
    out[order] = np.arange(len(persons)) % count
    return out


def _features(table: Table, recognizers: Sequence[str]) -> npt.NDArray[np.float64]:
    """All recognisers' embeddings side by side, NaN rows where nothing was released."""
    x = np.hstack([table.embeddings[r] for r in recognizers]).astype(np.float64)
    x[table.withheld] = np.nan
    return x


@dataclass(frozen=True, eq=False)
class _Read:
    """What was read off the evaluated images: per target (n,) expected hits on clear images and by each attacker."""

    clear: list[npt.NDArray[np.float64]]
    ignorant: list[npt.NDArray[np.float64]]
    informed: list[npt.NDArray[np.float64]]


def _learn(x: npt.NDArray[np.float64], codes: Sequence[npt.NDArray[np.intp]], classes: Sequence[int]) -> Reader:
    """Learns from the images of which there is something to see."""
    seen = ~np.isnan(x).any(1)
    return fit(x[seen], [c[seen] for c in codes], classes)


@metrics.register("soft-biometrics")
class SoftBiometrics(Metric):
    """Balanced accuracy of an attacker who reads traits off the face: recognisers' embeddings, then a linear classifier.

    ignorant: learnt on clear images of attacker-train persons.  informed: learnt on anonymised images of the same persons.
    The classifier is logistic regression on the standardised embeddings of all stock recognisers together.  Without
    attacker-train persons it is learnt on the evaluated persons, five-fold, never on the person whose image is read.

    A trait is *unmeasurable* where even the clear images do not give it away (lower bound at Holm's level over all traits
    not above chance), or where fewer than two of its classes have ten persons each to evaluate and to learn from.
    Withheld images, and released ones without an embedding, are no information: each class is read with probability 1/k.
    Images without a face enter through the attacker's fallback crop.  The clear figure stands in the note.
    """

    version = "1"
    citation = "Terhoerst et al., Beyond identity: what information is stored in biometric face templates?, IJCB 2020"
    needs_background = True
    quantities = (
        Quantity(
            "soft.balanced_accuracy", "Balanced accuracy of reading a trait off the face", "rate", False, "privacy", FAMILY
        ),
        Quantity(
            "soft.mean_balanced_accuracy",
            "Balanced accuracy of reading traits off the face, mean over the measurable ones",
            "rate",
            False,
            "privacy",
            FAMILY,
        ),
    )

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not.

        Raises ValueError where a person is in attacker-train and under evaluation.
        """
        given = [(clear, anonymised)]
        if background.clear is not None and background.anonymised is not None:
            given.append((background.clear, background.anonymised))
        for before, after in given:
            if not (np.array_equal(before.ids, after.ids) and np.array_equal(before.subjects, after.subjects)):
                raise InputError(
                    f"{after.method!r} and the clear images of {before.dataset!r} are not the same images in the same order",
                    "run the same deidbench run command again",
                )
        if len(given) > 1 and (both := set(given[1][0].subjects.tolist()) & set(clear.subjects.tolist())):
            raise ValueError(f"person {min(both)!r} is in attacker-train and under evaluation")
        recognizers = sorted(set.intersection(*(set(t.embeddings) for pair in given for t in pair)))
        return Findings(_score(given, recognizers, protocol), [])


def _score(given: Sequence[tuple[Table, Table]], recognizers: Sequence[str], protocol: Protocol) -> list[Row]:
    clear, anonymised = given[0]
    learnt_from = given[-1][0]
    apart = len(given) > 1
    base = Row(
        anonymised.dataset,
        anonymised.method,
        "",
        "rate",
        None,
        None,
        convention="headline",
        comparison="attacker-train" if apart else f"{FOLDS}-fold over the evaluated persons",
        family=FAMILY,
    )
    every = targets(clear)
    known = {t.name: t for t in targets(learnt_from)}
    usable: list[Target] = []
    lesson: list[Target] = []
    refused: dict[str, str] = {}
    remarks: dict[str, str] = {}
    for target in every:
        other = known.get(target.name)
        here = dict(zip(target.classes, persons_per_class(target, clear.subjects), strict=True))
        there = here
        if apart:
            there = {} if other is None else dict(
                zip(other.classes, persons_per_class(other, learnt_from.subjects), strict=True)
            )  # fmt: skip
        kept = [c for c in target.classes if min(here[c], there.get(c, 0)) >= MIN_PERSONS]
        scarce = [
            f"{c} ({here[c]} person{'' if here[c] == 1 else 's'}"
            + (f" evaluated, {there.get(c, 0)} to learn from)" if apart else ")")
            for c in target.classes
            if c not in kept
        ]
        if not recognizers:
            refused[target.name] = "no recogniser has embeddings in all tables"
        elif len(target.classes) < 2:
            refused[target.name] = f"unmeasurable: every image is {target.classes[0]}"
        elif other is None:
            refused[target.name] = "unmeasurable: the attacker-train images are not labelled"
        elif len(kept) < 2:
            refused[target.name] = f"unmeasurable: fewer than {MIN_PERSONS} persons of {', '.join(scarce)}"
        else:
            usable.append(without(target, kept))
            lesson.append(without(other, kept))
            remarks[target.name] = f"left out, fewer than {MIN_PERSONS} persons: {', '.join(scarce)}" if scarce else ""

    read = _read(given, recognizers, usable, lesson, protocol.seed)
    names, who = np.unique(clear.subjects, return_inverse=True)
    persons = len(names)
    draws = intervals.person_draws(names.tolist(), protocol.replicates, protocol.seed)
    # The spread of a mean of recalls is that of the class with the fewest persons.
    smallest = [min(persons_per_class(t, clear.subjects)) for t in usable]
    counts = {
        view: [_count(h, t, who, persons) for h, t in zip(getattr(read, view), usable, strict=True)]
        for view in ("clear", *ATTACKERS)
    }
    found = {view: _replicates(c, draws) for view, c in counts.items()}

    chance = [1 / len(t.classes) for t in usable]
    p = [
        above_chance(c.value, r, m, g)
        for c, r, m, g in zip(counts["clear"], found["clear"], smallest, chance, strict=True)
    ]  # fmt: skip
    readable = holm(p) < 1 - protocol.confidence if p else np.empty(0, np.bool_)

    quantity, mean_quantity = SoftBiometrics.quantities
    dark = np.isnan(_features(anonymised, recognizers)).any(1) if recognizers else np.ones(anonymised.n, np.bool_)
    rows: list[Row] = []
    place = {t.name: i for i, t in enumerate(usable)}
    for attacker in ATTACKERS:
        for target in every:
            i = place.get(target.name)
            code = target.code if i is None else usable[i].code
            row = replace(
                base,
                metric=quantity.name,
                unit=quantity.unit,
                higher_is_better=quantity.higher_is_better,
                attacker=attacker,
                label=target.name,
                **_counted(anonymised, code >= 0),
            )
            if i is None:
                rows.append(_refuse(row, refused[target.name]))
                continue
            plain = counts["clear"][i].value
            interval = _interval(plain, found["clear"][i], smallest[i], protocol.confidence)
            stands = f"clear {plain:.3f}" + ("" if interval.lo is None else f" [{interval.lo:.3f}, {interval.hi:.3f}]")
            row = replace(row, chance=chance[i])
            if not readable[i]:
                rows.append(_refuse(row, f"unmeasurable: {stands} is not above chance {chance[i]:.3f} (Holm over {len(p)})"))
                continue
            guessed = int(np.count_nonzero(dark & (code >= 0)))
            taught = len(np.unique(learnt_from.subjects[lesson[i].code >= 0]))
            row = replace(
                row,
                note="; ".join(
                    part
                    for part in (
                        stands,
                        f"classes {', '.join(usable[i].classes)}" if usable[i].classes != ("no", "yes") else "",
                        f"learnt on {taught} persons" if apart else "",
                        remarks[target.name],
                        f"{guessed} images guessed" if guessed else "",
                    )
                    if part
                ),
            )
            interval = _interval(counts[attacker][i].value, found[attacker][i], smallest[i], protocol.confidence)
            found_out = counts[attacker][i]
            made_of = Evidence.sums("macro", found_out.hits, found_out.images, persons=smallest[i])
            rows.append(_put(row, found_out.value, interval, made_of))

        good = [i for i in range(len(usable)) if readable[i]]
        labelled = np.any([usable[i].code >= 0 for i in good], axis=0) if good else np.zeros(anonymised.n, np.bool_)
        row = replace(
            base,
            metric=mean_quantity.name,
            unit=mean_quantity.unit,
            higher_is_better=mean_quantity.higher_is_better,
            attacker=attacker,
            **_counted(anonymised, labelled),
        )
        if not good:
            said = "the images have no labels of traits" if not every else "no trait can be read off the clear images"
            rows.append(_refuse(row, said))
            continue
        value = float(np.mean([counts[attacker][i].value for i in good]))
        plain = float(np.mean([counts["clear"][i].value for i in good]))
        row = replace(
            row,
            chance=float(np.mean([chance[i] for i in good])),
            note=f"clear {plain:.3f}; {len(good)} of {len(every)} traits are measurable: "
            + ", ".join(usable[i].name for i in good),
        )
        replicates = np.mean([found[attacker][i] for i in good], axis=0)
        interval = _interval(value, replicates, row.n_persons, protocol.confidence)
        # a mean of means over different numbers of classes: no form of its own
        made_of = Evidence.distribution(replicates[: protocol.curve_replicates], row.n_persons)
        rows.append(_put(row, value, interval, made_of))
    return rows


def _read(
    given: Sequence[tuple[Table, Table]],
    recognizers: Sequence[str],
    usable: Sequence[Target],
    lesson: Sequence[Target],
    seed: int,
) -> _Read:
    """Learns and reads; a classifier is never shown a person from whom it learnt."""
    clear, anonymised = given[0]
    if not usable:
        return _Read([], [], [])
    codes, classes = [t.code for t in usable], [len(t.classes) for t in usable]
    x, y = _features(clear, recognizers), _features(anonymised, recognizers)
    if len(given) > 1:
        before, after = given[-1]
        order = np.argsort(before.ids)  # sums in one order: the figures do not depend on that of the images
        taught = [t.code[order] for t in lesson]
        innocent = _learn(_features(before, recognizers)[order], taught, classes)
        informed = _learn(_features(after, recognizers)[order], taught, classes)
        return _Read(innocent.hits(x, codes), innocent.hits(y, codes), informed.hits(y, codes))
    names, who = np.unique(clear.subjects, return_inverse=True)
    fold = folds(names.tolist(), seed)[who]
    out = _Read(*([np.full(clear.n, np.nan) for _ in codes] for _ in range(3)))
    order = np.argsort(clear.ids)
    for k in range(FOLDS):
        learn, test = order[fold[order] != k], np.flatnonzero(fold == k)
        taught, asked = [c[learn] for c in codes], [c[test] for c in codes]
        innocent, informed = _learn(x[learn], taught, classes), _learn(y[learn], taught, classes)
        for into, hits in (
            (out.clear, innocent.hits(x[test], asked)),
            (out.ignorant, innocent.hits(y[test], asked)),
            (out.informed, informed.hits(y[test], asked)),
        ):
            for column, hit in zip(into, hits, strict=True):
                column[test] = hit
    return out


def _counted(table: Table, of: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "n_images": int(of.sum()),
        "n_persons": len(np.unique(table.subjects[of])),
        "n_failed": int((table.withheld & of).sum()),
        "n_fta": int((table.fta & ~table.withheld & of).sum()),
    }


def _put(row: Row, value: float, interval: Interval, evidence: Evidence) -> Row:
    return replace(
        row,
        evidence=evidence,
        value=value,
        lo=interval.lo,
        hi=interval.hi,
        ci_level=interval.level if interval.lo is not None else None,
        ci_method=interval.method,
        ci_reason=interval.reason,
    )


def _refuse(row: Row, reason: str) -> Row:
    return replace(row, reason=reason, ci_reason=reason)
