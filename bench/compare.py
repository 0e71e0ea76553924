"""Is one method better than another, beyond chance?  Figures of runs are set against each other, person by person.

A *contestant* is a method of a run, a *question* a figure (metric, attacker, recogniser, convention, label).  For each question
and pair of contestants: difference, interval, test, p-value adjusted by Holm over all pairs and variants of that metric, effect
size, a verdict in words.

===================================  ========================================  ======================================
figure                               interval of the difference                test
===================================  ========================================  ======================================
rate over the same images            square-and-add of person-clustered        clustered McNemar (exact with an image a
                                     Wilson scores, correlation of persons     person); person swap permutation beside it,
                                                                               and instead with fewer than 20 persons
mean (distance, |dp|, SSIM, NME)     paired person bootstrap                   Wilcoxon on person means, with the
                                                                               Hodges-Lehmann shift, rank-biserial r
mean over classes, F1, kappa, worst  paired person bootstrap                   person swap permutation
case, retention, correlation
EER, AUC, D_sys, Cllr_min            paired person bootstrap of pairs          t test on the bootstrap standard error
faces per second                     order statistics of the interleaved       t test on the repeats' log ratios
                                     repeats' log ratio
===================================  ========================================  ======================================

All contestants of a question are drawn and swapped with the same draws.  Two methods differ by exactly 0 where they released the
very same pictures, or where the figure rests on the very same real numbers of every person; equal counts are no such proof.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.records import Run
from deidbench.scored import Contestant, Entry, Question, Scored, asked, called, check, contestants, figure, identical, mismatch
from deidbench.stats import intervals, paired
from deidbench.stats.evidence import DISTRIBUTION, FORMS, RATES, REPEATS, Evidence
from deidbench.stats.intervals import Interval
from deidbench.stats.multiplicity import holm, permutations_needed

#: Permutations of a test, unless the family is so large that none of its p-values could ever be small.
PERMUTATIONS = 10_000
MOST_PERMUTATIONS = 100_000
ALPHA = 0.05
#: With fewer persons rates are tested by permutation, which is exact, instead of McNemar's approximation.
FEW_PERSONS = 20


@dataclass(frozen=True)
class Result:
    """One figure of two contestants.

    difference: value_a - value_b.  lo, hi: its interval (``ci_reason`` where there is none).  p: two-sided; p_holm: adjusted within
    ``family`` (metric, and how many tests).  second_p: for rates on the same images that of ``second_test``, on which nothing rests.
    effect: see ``effect_name``.  better: "a", "b", or "" where no difference is shown or none is better by nature.
    identical: beyond doubt, see :func:`identical`.  persons, images: that carry the figure.  verdict: in words.
    ratio: for speed, a / b; difference and interval are then of the natural logarithm of the ratio.
    """

    metric: str
    attacker: str
    recognizer: str
    convention: str
    comparison: str
    label: str
    unit: str
    higher_is_better: bool | None
    a: str
    b: str
    value_a: float | None
    value_b: float | None
    difference: float | None = None
    lo: float | None = None
    hi: float | None = None
    level: float = 0.95
    ci_method: str = ""
    ci_reason: str = ""
    test: str = ""
    p: float | None = None
    p_reason: str = ""
    p_holm: float | None = None
    family: str = ""
    second_p: float | None = None
    second_test: str = ""
    effect: float | None = None
    effect_name: str = ""
    shift: float | None = None
    shift_lo: float | None = None
    shift_hi: float | None = None
    ratio: float | None = None
    better: str = ""
    identical: bool = False
    trusted: bool = True
    persons: int = 0
    images: int = 0
    reason: str = ""
    verdict: str = ""

    @property
    def opposed(self) -> bool:
        """Do most persons differ the one way, but the mean over images the other?  Then the test does not speak for the mean."""
        return self.shift is not None and self.difference is not None and self.shift * self.difference < 0

    def shown(self, alpha: float) -> bool:
        """Does the test show the difference?"""
        return self.p_holm is not None and self.p_holm < alpha and not self.opposed

    @property
    def question(self) -> Question:
        return Question(self.metric, self.attacker, self.recognizer, self.convention, self.comparison, self.label)


@dataclass(frozen=True)
class Comparison:
    """All results, and what should be known about them.

    forced: the runs differ in these ways, and were compared all the same.  left_out: pairs that could not be compared in a
    figure, with the reason.
    """

    results: tuple[Result, ...]
    contestants: tuple[Contestant, ...]
    questions: tuple[Question, ...]
    alpha: float
    forced: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    reference: str = ""
    level: float = 0.95
    runs: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "runs": list(self.runs),
            "contestants": [
                {"name": c.name, "run": str(c.run.folder.name), "method": c.label, "control": c.control,
                 "fingerprint": c.record.get("fingerprint"), "weights_sha256": c.record.get("weights_sha256")}
                for c in self.contestants
            ],
            "reference": self.reference, "alpha": self.alpha, "level": self.level,
            "forced": list(self.forced), "remarks": list(self.remarks), "left_out": list(self.left_out),
            "results": [asdict(r) for r in self.results],
        }  # fmt: skip


def compare(
    runs: Sequence[Run],
    *,
    only: Sequence[str] = (),
    reference: str = "",
    metrics: Sequence[str] = (),
    everything: bool = False,
    controls: bool = False,
    force: bool = False,
    alpha: float = ALPHA,
) -> Comparison:
    """Compares all pairs of methods, or all with ``reference``.

    only: methods to take.  metrics: see :func:`asked`.  controls: with the control rows (a control that is the reference, or
    named in ``only``, always takes part).  Raises InputError where the runs cannot be compared (:func:`check`), where there are
    fewer than two methods, and for names that are nowhere.
    """
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha is a probability below one half, not {alpha!r}", "--alpha 0.05")
    differ, remarks = check(runs, force=force)
    everybody = contestants(runs)
    chosen = contestants(runs, only) if only else [c for c in everybody if controls or not c.control]
    first: Contestant | None = None
    if reference:
        contestants(runs, [reference])  # says what there is, if it is nowhere
        named = [c for c in everybody if c.name == reference] or [c for c in everybody if reference in called(c)]
        if len(named) > 1:
            raise InputError(f"{reference!r} is several methods", f"one of: {', '.join(repr(c.name) for c in named)}")
        first = named[0]
        chosen = [first, *(c for c in chosen if c.name != first.name)]
    if len(chosen) < 2:
        raise InputError(
            "a comparison takes two methods at least",
            f"chosen: {', '.join(c.name for c in chosen) or 'none'}; there are: {', '.join(c.name for c in everybody) or 'none'}; "
            "name another run (a folder named twice is one), or --controls",
        )
    readers = {id(run): Scored(run) for run in runs}
    scored = [readers[id(c.run)].entries.get(c.label, {}) for c in chosen]
    questions = asked(scored, metrics, everything)
    pairs = [(0, j) for j in range(1, len(chosen))] if first else list(combinations(range(len(chosen)), 2))
    engine = Engine(readers[id(runs[0])], alpha, readers=readers)
    found: list[Result] = []
    left_out: list[str] = []
    for q in questions:
        entries = [s.get(q) for s in scored]
        done, lacking = engine.answer(q, chosen, entries, pairs)
        found += done
        left_out += lacking
    found = engine.tested(found)
    found = adjusted(found, alpha)
    if differ:
        remarks = ["compared although they differ (--force): " + "; ".join(differ), *remarks]
    from deidbench.words import verdict

    answered = {r.question for r in found}
    return Comparison(
        tuple(replace(r, verdict=verdict(r, alpha)) for r in found),
        tuple(chosen),
        tuple(q for q in questions if q in answered),
        alpha,
        tuple(differ),
        tuple(remarks),
        tuple(left_out),
        first.name if first else "",
        engine.level,
        tuple(r.folder.name for r in runs),
    )


@dataclass(eq=False)
class Engine:
    """Differences and tests of figures of one set of persons."""

    of: Scored
    alpha: float = ALPHA
    permutations: int = PERMUTATIONS
    readers: dict[int, Scored] = field(default_factory=dict)
    _waiting: list[tuple[int, Evidence, Evidence]] = field(default_factory=list)
    _at: int = 0

    @property
    def level(self) -> float:
        return float(self.of.protocol("confidence", 0.95))

    @property
    def seed(self) -> int:
        return int(self.of.protocol("seed", 0))

    @cached_property
    def draws(self) -> npt.NDArray[np.uint8]:
        return intervals.person_draws(self.of.persons, int(self.of.protocol("replicates", 10_000)), self.seed)

    def reader(self, who: Contestant) -> Scored:
        """Of his run: one of ``readers``, by the run's id."""
        if who.run is self.of.run:
            return self.of
        return self.readers.setdefault(id(who.run), Scored(who.run))

    def answer(
        self, q: Question, who: Sequence[Contestant], entries: Sequence[Entry | None], pairs: Sequence[tuple[int, int]]
    ) -> tuple[list[Result], list[str]]:
        """Results of one question without permutation tests (:meth:`tested` does those of all questions together)."""
        drawn: dict[int, npt.NDArray[np.float64]] = {}
        out: list[Result] = []
        lacking: list[str] = []
        for i, j in pairs:
            a, b = entries[i], entries[j]
            if a is None or b is None:
                lacks = [w.name for w, e in ((who[i], a), (who[j], b)) if e is None]
                lacking.append(f"{q.text}, {who[i].name} against {who[j].name}: {' and '.join(lacks)} without this figure")
                continue
            blank = _blank(q, who[i], who[j], a, b, self.level)
            if why := self._refused(a, b, who[i], who[j]):
                out.append(replace(blank, reason=why, ci_reason=why, p_reason=why))
                lacking.append(f"{q.text}, {who[i].name} against {who[j].name}: {why}")
                self._at += 1
                continue
            assert a.evidence is not None and b.evidence is not None
            same = ""
            if a.evidence.same(b.evidence):
                same = identical(a, b, self.reader(who[i]).same_outputs(who[i].label, self.reader(who[j]), who[j].label))
            out.append(self._result(blank, a.evidence, b.evidence, who[i].run is who[j].run, same, drawn, i, j))
            self._at += 1
        return out, lacking

    def _refused(self, a: Entry, b: Entry, first: Contestant, second: Contestant) -> str:
        for e, who in ((a, first), (b, second)):
            if figure(e) is None:
                return f"{who.name} has no figure ({e.row.get('reason') or 'no reason given'})"
        ours = self.reader(first)
        if ours.persons != self.of.persons and a.evidence is not None and a.evidence.form != REPEATS:
            return "the figures are of other persons than the first run's"
        return mismatch(a, b, ours, self.reader(second))

    def _result(
        self, blank: Result, a: Evidence, b: Evidence, one_run: bool, same: str, drawn: dict[int, npt.NDArray[np.float64]],
        i: int, j: int,
    ) -> Result:  # fmt: skip
        persons = min(a.persons, b.persons)
        blank = replace(blank, persons=persons)
        if a.form == REPEATS:
            return _timed(blank, a, b, one_run)
        assert blank.value_a is not None and blank.value_b is not None
        difference = blank.value_a - blank.value_b
        if same:
            said = f"identical ({same}): the difference is exactly 0"
            return replace(blank, difference=0.0, identical=True, ci_reason=said, p_reason="identical", effect=None)
        for k, e in ((i, a), (j, b)):
            if k not in drawn:
                drawn[k] = e.draw(self.draws)
        n = min(len(drawn[i]), len(drawn[j]))
        moved = drawn[i][:n] - drawn[j][:n]
        interval = difference_interval(a, b, moved, self.level, persons)
        out = replace(
            blank, difference=difference, lo=interval.lo, hi=interval.hi, ci_method=interval.method, ci_reason=interval.reason
        )
        if a.form == DISTRIBUTION:
            test = paired.bootstrap_test(difference, moved, persons)
            return replace(out, test=test.method, p=test.p, p_reason=test.reason)
        if a.form == "mean":
            x, y = a.means(), b.means()
            shift = paired.wilcoxon_persons(x, y, self.level)
            return replace(
                out, test=shift.test.method, p=shift.test.p, p_reason=shift.test.reason, effect=shift.rank_biserial,
                effect_name="rank-biserial r", shift=shift.shift, shift_lo=shift.interval.lo, shift_hi=shift.interval.hi,
            )  # fmt: skip
        if a.form == "rate":
            h = 2 * (math.asin(math.sqrt(_unit(blank.value_a))) - math.asin(math.sqrt(_unit(blank.value_b))))
            out = replace(out, effect=h, effect_name="Cohen's h")
            if np.array_equal(a.columns[:, 1], b.columns[:, 1]):
                test = paired.mcnemar(a.columns[:, 0], b.columns[:, 0], a.columns[:, 1])
                out = replace(out, test=test.method, p=test.p, p_reason=test.reason)
        if a.columns.shape != b.columns.shape or a.names != b.names:
            # another set of attacks was trusted: persons cannot change places, their replicates still pair
            test = paired.bootstrap_test(difference, moved, persons)
            return replace(out, test=test.method, p=test.p, p_reason=test.reason)
        self._waiting.append((self._at, a, b))
        return out

    def tested(self, found: Sequence[Result]) -> list[Result]:
        """With the permutation tests, all in one go: they share the swaps, and the matrix products."""
        out = list(found)
        # Of a large family none could ever be significant after Holm with 10,000 permutations: it gets more of them.
        sizes: dict[str, int] = defaultdict(int)
        for r in found:
            sizes[r.metric] += not r.reason and not r.identical
        groups: dict[int, list[tuple[int, Evidence, Evidence]]] = defaultdict(list)
        for job in self._waiting:
            needed = permutations_needed(sizes[found[job[0]].metric], self.alpha)
            groups[max(self.permutations, min(MOST_PERMUTATIONS, -(-needed // PERMUTATIONS) * PERMUTATIONS))].append(job)
        for permutations, jobs in groups.items():
            tests = paired.swap_tests(
                [(a.columns, b.columns, FORMS[a.form]) for _, a, b in jobs],
                self.of.persons,
                permutations=permutations,
                seed=self.seed,
            )
            for (at, _, _), test in zip(jobs, tests, strict=True):
                first = out[at]
                if first.test and first.persons >= FEW_PERSONS:
                    # It holds its level where swaps, which count ties in full, are too careful (tests/test_stats_level.py).
                    out[at] = replace(first, second_test=test.method, second_p=test.p)
                else:
                    out[at] = replace(
                        first, test=test.method, p=test.p, p_reason=test.reason, second_test=first.test, second_p=first.p
                    )
        self._waiting.clear()
        return out


def _unit(x: float) -> float:
    return min(max(x, 0.0), 1.0)


def difference_interval(a: Evidence, b: Evidence, replicates: npt.NDArray[np.float64], level: float, persons: int) -> Interval:
    """Interval of the paired difference of two figures.

    replicates: (B,) of the difference, drawn with the same draws.  Rates have a closed form that holds near 0 and 1 too
    (:func:`deidbench.stats.intervals.difference_interval`).  Other figures made of events that show none (or nothing else) in
    both methods bound each other: the difference lies within the one-sided bounds.
    """
    if a.form == "rate":
        return intervals.difference_interval(a.columns[:, 0], a.columns[:, 1], b.columns[:, 0], b.columns[:, 1], level)
    what = "paired person bootstrap"
    interval = intervals.percentile_interval(replicates, level, persons, what)
    if interval.lo is not None or persons < 2 or a.form not in RATES:
        return interval
    x, y = a.value(), b.value()
    if {x, y} <= {0.0, 1.0} or bool((np.abs(replicates) <= 1e-12).all()):
        bound = intervals.zero_events_bound(persons, 1 - (1 - level) / 2)
        return Interval(
            max(-1.0, x - y - bound), min(1.0, x - y + bound), level, f"no event seen to differ: bounds over {persons} persons"
        )
    return interval


def _timed(blank: Result, a: Evidence, b: Evidence, interleaved: bool) -> Result:
    """Speeds: the ratio of repeats; interleaved ones only where both were timed in one run."""
    x, y = a.columns[:, 0], b.columns[:, 0]
    n = min(len(x), len(y))
    found = paired.log_ratio(x[:n], y[:n], blank.level)
    p, why = _t_test(np.log(x[:n]) - np.log(y[:n]))
    said = found.interval.method if interleaved else f"{found.interval.method}; not interleaved: timed in two runs"
    return replace(
        blank, difference=found.value, lo=found.interval.lo, hi=found.interval.hi, ci_method=said, ci_reason=found.interval.reason,
        test=f"t test on the logarithms of {n} repeats' ratios", p=p, p_reason=why, ratio=found.ratio,
        effect=found.ratio, effect_name="ratio", identical=a.same(b),
    )  # fmt: skip


def _t_test(logs: npt.NDArray[np.float64]) -> tuple[float | None, str]:
    """Two-sided p of a mean log ratio of 0: a sign test of six repeats could never survive a correction for many pairs."""
    from scipy.stats import ttest_1samp

    if len(logs) < 3 or np.ptp(logs) <= 1e-12:
        return None, f"{len(logs)} repeats" if len(logs) < 3 else "no variance between repeats"
    return float(ttest_1samp(logs, 0.0).pvalue), ""


def _blank(q: Question, first: Contestant, second: Contestant, a: Entry, b: Entry, level: float) -> Result:
    row = a.row
    return Result(
        *q,
        unit=str(row.get("unit") or ""),
        higher_is_better=None if row.get("higher_is_better") is None else bool(row["higher_is_better"]),
        a=first.name,
        b=second.name,
        value_a=figure(a),
        value_b=figure(b),
        level=level,
        trusted=bool(a.row.get("trusted", True)) and bool(b.row.get("trusted", True)),
        images=int(min(a.row.get("n_images") or 0, b.row.get("n_images") or 0)),
    )


def adjusted(found: Sequence[Result], alpha: float = ALPHA) -> list[Result]:
    """With Holm's p-values within each family, a family being all tests of one metric in this comparison, and who is better."""
    families: dict[str, list[int]] = defaultdict(list)
    for i, r in enumerate(found):
        if r.p is not None:
            families[r.metric].append(i)
    out = list(found)
    for metric, members in families.items():
        ps = holm([found[i].p or 0.0 for i in members])
        size = f"{metric}, {len(members)} test{'s' * (len(members) != 1)}"
        for i, p in zip(members, ps.tolist(), strict=True):
            r = replace(out[i], p_holm=p, family=size)
            if r.shown(alpha) and r.difference and r.higher_is_better is not None:
                r = replace(r, better="a" if (r.difference > 0) == r.higher_is_better else "b")
            out[i] = r
    return out
