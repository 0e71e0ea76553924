"""Do the intervals cover?  Simulations, under models that are stated here; the truth is the mean over all of them.

Faces: 100 persons with 5 images each (other numbers where a case says so).  An embedding is c_i + s e_ij, L2-normalised, with
c_i (the person) and e_ij (the image) standard normal in 32 dimensions and s such that the EER of clear images is 3 %.
An anonymizer adds noise: c_i + s e_ij + a h_i n_ij, where a is its strength and h_i = exp(0.4 z_i) says how well person i
hides, the same for all anonymizers.  All of it is new in each simulation, the gallery too.  The attacker is ignorant
(gallery clear, probes anonymised, cosine score, leave-one-out).

Answers of a classifier: P(right) = logistic(b_class + sigma u_i), u_i standard normal, the same for all methods up to a
correlation.

A truth that is a mean over N simulations errs by 1 / sqrt(N) of a standard deviation of the figure, which moves the covered
share by less than 0.001 for N = 1000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from deidbench.metrics.base import Protocol
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import identification, verification
from deidbench.metrics.reid.base import cosine
from deidbench.metrics.reid.comparison import lay_out
from deidbench.stats import evidence, intervals, pairs, roc, wilson

LEVEL = 0.95
DIMENSIONS = 32
#: s: the EER of clear images is 3 % (tested below).
CLEAR = 0.835
HIDING = 0.4
#: Replicates of cheap figures, and of the EER.
DRAWS, FEW = 1000, 500


class Said(NamedTuple):
    """What one simulation says of one figure: its value and an interval."""

    value: float
    interval: intervals.Interval


class Covered(NamedTuple):
    """share: of the simulations whose interval holds the truth.  below, above: intervals that lie there.  width: mean."""

    truth: float
    share: float
    below: float
    above: float
    width: float

    def __str__(self) -> str:
        return (
            f"truth {self.truth:.4f}, covered {self.share:.4f} (below {self.below:.4f}, above {self.above:.4f}), "
            f"mean width {self.width:.4f}"
        )


def covered(simulate: Callable[[np.random.Generator], dict[str, Said]], simulations: int, seed: int) -> dict[str, Covered]:
    """The table of one model.  An interval that does not exist counts as one that misses."""
    rng = np.random.default_rng(seed)
    runs = [simulate(rng) for _ in range(simulations)]
    out = {}
    for name in runs[0]:
        values = np.array([run[name].value for run in runs])
        lo, hi = (np.array([run[name].interval[side] for run in runs], float) for side in (0, 1))
        truth = float(values.mean())
        inside = (lo <= truth) & (truth <= hi)
        out[name] = Covered(
            truth, float(inside.mean()), float((hi < truth).mean()), float((lo > truth).mean()), float(np.nanmean(hi - lo))
        )
    return out


def table(found: dict[str, Covered]) -> str:
    return "\n" + "\n".join(f"{name}: {what}" for name, what in found.items())


class Faces:
    """Persons, images, and who is compared with whom."""

    def __init__(self, persons: int, images: int) -> None:
        self.persons, self.images, self.n = persons, images, persons * images
        self.names = [f"{i:04d}" for i in range(persons)]
        ids = np.array([f"{i:05d}" for i in range(self.n)])
        self.layout = lay_out(ids, np.repeat(self.names, images), Protocol())
        self.who = self.layout.probe_person
        self.trials = np.full(persons, float(images))
        self.draws = intervals.person_draws(self.names, DRAWS, 0)
        self.few = intervals.person_draws(self.names, FEW, 0)

    def clear(self, rng: np.random.Generator) -> np.ndarray:
        shape = (self.persons, self.images, DIMENSIONS)
        return rng.normal(size=(self.persons, 1, DIMENSIONS)) + CLEAR * rng.normal(size=shape)

    def hiding(self, rng: np.random.Generator) -> np.ndarray:
        return np.exp(HIDING * rng.normal(size=(self.persons, 1, 1)))

    def embed(self, x: np.ndarray) -> np.ndarray:
        return l2_normalise(x.reshape(self.n, DIMENSIONS).astype(np.float32))

    def scores(self, rng: np.random.Generator, strengths: tuple[float, ...]) -> list[np.ndarray]:
        """Score matrices of anonymizers of these strengths, on the same persons and images."""
        x, h = self.clear(rng), self.hiding(rng)
        gallery = self.embed(x)
        return [cosine(gallery, self.embed(x + a * h * rng.normal(size=x.shape))) for a in strengths]

    def hits(self, scores: np.ndarray) -> np.ndarray:
        """Expected rank-1 hits of each image: (n,)."""
        standing = identification.standings(scores, self.who, self.who, self.layout.same_image)
        return identification.hits(*standing, 1)[:, 0]

    def pairs(self, scores: np.ndarray) -> pairs.Pairs:
        return verification.extract(scores, self.who, self.who, self.layout.same_image)

    def per_person(self, values: np.ndarray) -> np.ndarray:
        return intervals.per_person(self.who, values, self.persons)


def bootstrap(numerator: np.ndarray, denominator: np.ndarray, draws: np.ndarray) -> intervals.Interval:
    """Percentile interval of a rate with expanded tails, once the suite's; the bound for no event as it is."""
    persons = len(numerator)
    if not numerator.any():
        return intervals.zero_events(persons, LEVEL)
    return intervals.percentile_interval(intervals.ratio_replicates(numerator, denominator, draws), LEVEL, persons, "")


def by_image(hits: np.ndarray) -> intervals.Interval:
    """The naive one: Wilson over images that are taken for independent."""
    rate, n = float(hits.mean()), len(hits)
    return intervals.Interval(*wilson.score_bounds(rate, n, 1.959964), LEVEL, "")


def rank1(faces: Faces, strengths: tuple[float, float]) -> Callable[[np.random.Generator], dict[str, Said]]:
    def simulate(rng: np.random.Generator) -> dict[str, Said]:
        return said_of_rates(faces, [faces.hits(s) for s in faces.scores(rng, strengths)])

    return simulate


def said_of_rates(faces: Faces, hits: list[np.ndarray]) -> dict[str, Said]:
    """Rate of A, and of A - B: the suite's intervals, the person bootstrap's, and naive ones."""
    a, b = (faces.per_person(h) for h in hits)
    m = faces.trials
    value, difference = float(hits[0].mean()), float(hits[0].mean() - hits[1].mean())
    replicates = intervals.ratio_replicates(a - b, m, faces.draws)
    gap = hits[0] - hits[1]
    arm = 1.959964 * float(gap.std()) / np.sqrt(faces.n)
    return {
        "rate": Said(value, intervals.rate_interval(a, m, faces.draws, LEVEL)),
        "rate, person bootstrap": Said(value, bootstrap(a, m, faces.draws)),
        "rate, images independent": Said(value, by_image(hits[0])),
        "difference": Said(difference, intervals.difference_interval(a, m, b, m, LEVEL)),
        "difference, person bootstrap": Said(difference, intervals.percentile_interval(replicates, LEVEL, faces.persons, "")),
        "difference, images independent": Said(difference, intervals.Interval(difference - arm, difference + arm, LEVEL, "")),
    }


class Leak(NamedTuple):
    """An anonymizer that hides everybody well (strength 60: rank-1 near chance) but for a share of persons, at strength 1."""

    share: float


def leaky(faces: Faces, leaks: tuple[Leak, Leak]) -> Callable[[np.random.Generator], dict[str, Said]]:
    """Nearly all hits are those of a few persons, the same ones in A and B where both leak: events in bunches."""

    def simulate(rng: np.random.Generator) -> dict[str, Said]:
        x, luck = faces.clear(rng), rng.random((faces.persons, 1, 1))
        gallery = faces.embed(x)
        hits = []
        for leak in leaks:
            a = np.where(luck < leak.share, 1.0, 60.0)
            hits.append(faces.hits(cosine(gallery, faces.embed(x + a * rng.normal(size=x.shape)))))
        return said_of_rates(faces, hits)

    return simulate


def threshold(fmr: float) -> float:
    """Fixed beforehand on clear impostors of other persons."""
    faces, rng = Faces(200, 5), np.random.default_rng(7)
    gallery = faces.embed(faces.clear(rng))
    return verification.threshold_at_fmr(faces.pairs(cosine(gallery, gallery)).impostor, fmr)


def verified(faces: Faces, strengths: tuple[float, float], at: float, naive: int = 0) -> Callable[..., dict[str, Said]]:
    """EER, TMR and FMR at a threshold, and differences.  naive: replicates of the bootstrap of independent pairs, 0 for none."""

    def simulate(rng: np.random.Generator) -> dict[str, Said]:
        found = [faces.pairs(s) for s in faces.scores(rng, strengths)]
        a = found[0]
        eers = [verification.eer(p.genuine, p.impostor).value for p in found]
        replicates = [pairs.bootstrap_eer(p, faces.few) for p in found]
        m = np.bincount(a.genuine_person, minlength=faces.persons).astype(np.float64)
        good = [intervals.per_person(p.genuine_person, p.genuine >= np.float32(at), faces.persons) for p in found]
        tmr = [float(g.sum() / m.sum()) for g in good]
        accepted = a.impostor >= np.float32(at)
        fmr = float(accepted.mean())
        weights = intervals.double_or_nothing_draws(faces.names, DRAWS, 0)
        double = pairs.bootstrap_pair_rate(accepted, a.impostor_a, a.impostor_b, weights)
        out = {
            "EER": Said(eers[0], intervals.percentile_interval(replicates[0], LEVEL, faces.persons, "")),
            "EER difference": Said(
                eers[0] - eers[1],
                intervals.percentile_interval(replicates[0] - replicates[1], LEVEL, faces.persons, ""),
            ),
            "TMR": Said(tmr[0], intervals.rate_interval(good[0], m, faces.draws, LEVEL)),
            "TMR, person bootstrap": Said(tmr[0], bootstrap(good[0], m, faces.draws)),
            "TMR, pairs independent": Said(tmr[0], by_image(a.genuine >= np.float32(at))),
            "TMR difference": Said(tmr[0] - tmr[1], intervals.difference_interval(good[0], m, good[1], m, LEVEL)),
            "FMR": Said(fmr, intervals.false_match_interval(accepted, a.impostor_a, a.impostor_b, faces.persons, LEVEL)),
            "FMR, double-or-nothing": Said(fmr, intervals.percentile_interval(double, LEVEL, faces.persons, "", expand=False)),
            "FMR, pairs independent": Said(fmr, by_image(accepted)),
        }
        if naive:
            out["EER, pairs independent"] = Said(eers[0], independent_pairs(a, naive, rng))
        return out

    return simulate


def independent_pairs(p: pairs.Pairs, replicates: int, rng: np.random.Generator) -> intervals.Interval:
    """The naive one for the EER: scores drawn as if each were independent of all others, counted in 1,000 bins."""
    edges = np.quantile(p.genuine, np.linspace(0, 1, 1000))
    counts = [np.bincount(np.searchsorted(edges, x, "right"), minlength=1001) for x in (p.genuine, p.impostor)]
    drawn = [rng.multinomial(c.sum(), c / c.sum(), replicates) for c in counts]
    fnmr, reject = (np.cumsum(d, 1) / d.sum(1, keepdims=True) for d in drawn)
    fmr, row = 1 - reject, np.arange(replicates)
    at = np.argmax(fnmr >= fmr, 1)
    before = np.maximum(at - 1, 0)
    eers = roc.crossing(fmr[row, before], fnmr[row, before], fmr[row, at], fnmr[row, at])
    return intervals.percentile_interval(eers, LEVEL, 10**6, "", expand=False)


class Answers(NamedTuple):
    """classes: share of each.  skill: b_class of A, and of B.  sigma: of the person effect.  shared: its correlation between
    A and B.  by_person: is the class a person's (sex) or an image's (emotion)?"""

    classes: tuple[float, ...]
    skill: tuple[float, float]
    sigma: float
    shared: float
    by_person: bool


def classified(model: Answers, persons: int, images: int) -> Callable[[np.random.Generator], dict[str, Said]]:
    """Balanced accuracy and macro F1, as the suite makes them of per-person sums; a wrong answer is any other class."""
    draws = intervals.person_draws([f"{i:04d}" for i in range(persons)], DRAWS, 0)
    by_images = intervals.person_draws([f"{i:05d}" for i in range(persons * images)], DRAWS, 0)
    k = len(model.classes)

    def simulate(rng: np.random.Generator) -> dict[str, Said]:
        of = rng.choice(k, size=(persons, 1 if model.by_person else images), p=model.classes)
        of = np.broadcast_to(of, (persons, images))
        common = rng.normal(size=(persons, 1))
        sums: dict[str, list[evidence.Evidence]] = {"macro": [], "macro-f1": []}
        naive = []
        one = np.eye(k)
        for skill in model.skill:
            u = np.sqrt(model.shared) * common + np.sqrt(1 - model.shared) * rng.normal(size=(persons, 1))
            right = rng.random((persons, images)) < 1 / (1 + np.exp(-(skill + model.sigma * u)))
            said = np.where(right, of, (of + rng.integers(1, k, size=of.shape)) % k)
            hit, truth, answer = one[of] * right[..., None], one[of], one[said]
            sums["macro"].append(evidence.Evidence.sums("macro", hit.sum(1), truth.sum(1)))
            sums["macro-f1"].append(evidence.Evidence.sums("macro-f1", hit.sum(1), truth.sum(1), answer.sum(1)))
            naive.append(evidence.Evidence.sums("macro", hit.reshape(-1, k), truth.reshape(-1, k)))
        out = {}
        for form, (a, b) in sums.items():
            out[form] = Said(a.value(), evidence.interval(a, draws, LEVEL))
            out[f"{form} difference"] = Said(
                a.value() - b.value(),
                intervals.percentile_interval(a.draw(draws) - b.draw(draws), LEVEL, min(a.persons, b.persons), ""),
            )
        out["macro, images independent"] = Said(naive[0].value(), evidence.interval(naive[0], by_images, LEVEL))
        return out

    return simulate


def wolves(persons: int, images: int, threshold: float) -> Callable[[np.random.Generator], dict[str, Said]]:
    """Impostor scores with a person effect: who matches one stranger matches many.  Each comparison once."""
    who = np.repeat(np.arange(persons), images)
    a, b = (x.astype(np.intp) for x in np.triu_indices(len(who), 1))
    keep = who[a] != who[b]
    image_a, image_b = a[keep], b[keep]
    a, b = who[image_a], who[image_b]

    def simulate(rng: np.random.Generator) -> dict[str, Said]:
        wolf, image = 0.5 * rng.normal(size=persons), 0.3 * rng.normal(size=len(who))
        effect = wolf[who] + image
        accepted = effect[image_a] + effect[image_b] + rng.normal(size=len(a)) > threshold
        value = float(accepted.mean())
        return {
            "FMR": Said(value, intervals.false_match_interval(accepted, a, b, persons, LEVEL)),
            "FMR, pairs independent": Said(value, by_image(accepted)),
        }

    return simulate


def attackers(skills: tuple[float, ...], persons: int, images: int) -> Callable[[np.random.Generator], dict[str, Said]]:
    """Several attackers on the same probes: P(hit) = logistic(b_k + u_i + v_ik), u and v each of variance one half.

    The truth is the largest of the true rates.  To have it as the mean of what is said, the value is one of an attacker
    who has the largest (the first).
    """
    draws, trials = intervals.person_draws([f"{i:04d}" for i in range(persons)], DRAWS, 0), np.full(persons, float(images))

    def simulate(rng: np.random.Generator) -> dict[str, Said]:
        u, v = rng.normal(size=(persons, 1)), rng.normal(size=(persons, len(skills)))
        chance = 1 / (1 + np.exp(-(np.array(skills) + np.sqrt(0.5) * (u + v))))
        hits = rng.binomial(images, chance).astype(float)
        value, best = float(hits[:, 0].sum() / trials.sum()), intervals.ratio_replicates(hits, trials, draws).max(1)
        return {
            "largest": Said(value, intervals.largest_interval(hits, trials, LEVEL)),
            "largest, bootstrap of the maximum": Said(value, intervals.percentile_interval(best, LEVEL, persons, "")),
        }

    return simulate


def check(found: dict[str, Covered], *, low: float = 0.93, high: float = 0.97, **over: float) -> None:
    """The suite's intervals hold their level.  over: higher upper limits, by the name's first word, where events are few."""
    print(table(found))  # noqa: T201 - pytest -rP shows what was measured
    for name, what in found.items():
        if "," not in name:
            limit = over.get(name.replace(" ", "_").replace("-", "_"), high)
            assert low <= what.share <= limit, f"{name} of {table(found)}"


def test_a_small_simulation():
    """Everything below, at a size that says only that it runs and that nothing is far off."""
    faces = Faces(30, 3)
    answers = Answers((0.6, 0.4), (1.0, 0.8), 1.0, 0.8, False)
    for simulate in (
        rank1(faces, (1.5, 1.8)),
        leaky(faces, (Leak(0.1), Leak(0.2))),
        verified(faces, (1.5, 1.8), 0.4, naive=50),
        classified(answers, 30, 3),
        wolves(30, 2, 1.5),
        attackers((0.0, 0.0, -1.0), 30, 3),
    ):
        check(covered(simulate, 20, 0), low=0.7, high=1)


def test_clear_images_have_an_eer_of_three_percent():
    faces, rng = Faces(400, 5), np.random.default_rng(0)
    gallery = faces.embed(faces.clear(rng))
    found = faces.pairs(cosine(gallery, gallery))
    assert verification.eer(found.genuine, found.impostor).value == pytest.approx(0.03, abs=0.002)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("persons", "images", "strengths", "rate", "naive", "over"),
    [
        (100, 5, (1.5, 1.8), 0.478, 0.86, {}),
        (100, 5, (6.0, 8.0), 0.058, 1, {}),
        (100, 5, (30.0, 30.0), 0.0128, 1, {"rate": 0.985, "difference": 1}),
        (100, 5, (30.0, 8.0), 0.0128, 1, {"rate": 0.985, "difference": 0.985}),
        (40, 10, (3.0, 4.0), 0.309, 0.86, {}),
    ],
)
def test_rank1_and_its_differences_are_covered(persons, images, strengths, rate, naive, over):
    found = covered(rank1(Faces(persons, images), strengths), 2000, 1)
    assert found["rate"].truth == pytest.approx(rate, rel=0.05)
    check(found, **over)
    assert found["rate, images independent"].share <= naive, table(found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("persons", "images", "leaks", "over"),
    [
        (100, 5, (Leak(0.02), Leak(0.02)), {"rate": 0.985, "difference": 1}),
        (100, 5, (Leak(0.01), Leak(0.005)), {"rate": 0.99, "difference": 1}),
        (40, 10, (Leak(0.03), Leak(0.1)), {"rate": 0.99, "difference": 0.985}),
    ],
)
def test_a_few_persons_whom_nothing_hides(persons, images, leaks, over):
    """Where the percentile bootstrap fails: persons who make up the rate are not in every sample."""
    found = covered(leaky(Faces(persons, images), leaks), 2000, 1)
    check(found, **over)
    assert found["rate, person bootstrap"].share < 0.9, table(found)
    assert found["rate, images independent"].share < 0.88, table(found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("strengths", "fmr", "over"),
    [((1.5, 1.8), 0.01, {"FMR": 0.985}), ((30.0, 8.0), 0.1, {"FMR": 0.985})],
)
def test_verification_is_covered(strengths, fmr, over):
    found = covered(verified(Faces(100, 5), strengths, threshold(fmr), naive=200), 1000, 1)
    check(found, **over)
    for name in ("TMR", "FMR", "EER"):
        assert found[f"{name}, pairs independent"].share < 0.9, table(found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("persons", "images", "threshold"), [(100, 2, 2.5), (40, 3, 3.0)])
def test_false_matches_of_wolves_are_covered(persons, images, threshold):
    found = covered(wolves(persons, images, threshold), 2000, 1)
    check(found, FMR=0.98)
    assert found["FMR, pairs independent"].share < 0.7, table(found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("model", "persons", "images"),
    [
        (Answers((0.6, 0.4), (1.0, 0.8), 1.0, 0.8, True), 100, 5),
        (Answers((0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1), (0.5, 0.0), 1.0, 0.8, False), 100, 5),
        (Answers((0.6, 0.4), (4.0, 3.0), 1.5, 0.8, False), 100, 5),
        (Answers((0.6, 0.4), (1.0, 0.8), 1.0, 0.8, False), 40, 10),
    ],
)
def test_balanced_accuracy_and_macro_f1_are_covered(model, persons, images):
    found = covered(classified(model, persons, images), 2000, 1)
    check(found)
    assert found["macro, images independent"].share < 0.92, table(found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("skill", [-4.9, -3.0, 0.0])
def test_the_largest_of_six_equal_rates_is_covered(skill):
    """The hardest case for the bootstrap: the largest of the six has been lucky."""
    found = covered(attackers((skill,) * 6, 100, 5), 2000, 1)
    check(found, largest=1)
    assert found["largest, bootstrap of the maximum"].share < 0.7, table(found)
