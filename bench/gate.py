"""The regression gate: is a new checkpoint no worse than the old one, within margins that were fixed beforehand?

For each guarded figure the paired difference candidate - baseline over the same persons is bounded (one-sided, person bootstrap),
turned so that positive is worse, and held against its margin (:mod:`deidbench.stats.noninferiority`):

* the upper bound lies inside the margin: passed;
* the whole interval lies beyond it: failed;
* it straddles the margin, or there is no interval: undecided, which is no pass; nor is what the candidate's own attackers or
  classifiers, other than the baseline's, failed their check in.

A gate that takes all of its figures to pass needs no correction for their number (intersection-union test, Berger 1982).  Where the
outputs of both runs are the same pictures, or the figure rests on the very same numbers throughout, the difference is exactly 0 and
passes by identity, however few persons there are.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deidbench.errors import InputError
from deidbench.records import Run
from deidbench.scored import Contestant, Entry, Question, Scored, check, contestants, figure, identical, mismatch
from deidbench.stats import intervals
from deidbench.stats.evidence import RATES, REPEATS, Evidence
from deidbench.stats.noninferiority import Decision, Outcome, equivalence, noninferiority, one_sided_bounds
from deidbench.toml_errors import complaint, loads
from deidbench.words import amount, unit_word


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Guard(_Strict):
    """One line of a margins file.

    metric: name of the figure, * matches anything.  margin: in the unit of the figure; for faces per second a share of the baseline (0.1: a tenth slower).  worse: where the metric
    has no better side.  unchanged: must not get better by the margin either.  optional: may be absent from both runs.
    attacker, recognizer, label, convention, comparison: patterns; "" is the headline for a convention, and any for the others.
    """

    metric: str = Field(min_length=1)
    margin: float = Field(ge=0, allow_inf_nan=False)
    worse: str = Field(default="", pattern="^(higher|lower|)$")
    unchanged: bool = False
    optional: bool = False
    attacker: str = ""
    recognizer: str = ""
    label: str = ""
    convention: str = ""
    comparison: str = ""

    def guards(self, q: Question) -> bool:
        wanted = {f: getattr(self, f) for f in ("attacker", "recognizer", "label", "comparison")}
        return (
            fnmatch.fnmatchcase(q.metric, self.metric)
            and (fnmatch.fnmatchcase(q.convention, self.convention) if self.convention else q.convention in ("", "headline"))
            and all(not pattern or fnmatch.fnmatchcase(getattr(q, f), pattern) for f, pattern in wanted.items())
        )


class GateTable(_Strict):
    """alpha: error of each one-sided bound.  min_persons: with fewer nothing but identity passes or fails."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    min_persons: int = Field(default=10, ge=2)


class Margins(_Strict):
    """A margins file."""

    gate: GateTable = GateTable()
    guard: list[Guard] = Field(min_length=1)


@dataclass(frozen=True)
class Verdict:
    """One guarded figure of one method.

    difference, lower, upper: candidate minus baseline, turned so that positive is worse; for faces per second the share by which
    the candidate is slower.  outcome: "pass", "fail" or "inconclusive".  identical: why it passed without an interval.
    """

    method: str
    metric: str
    attacker: str
    recognizer: str
    label: str
    convention: str
    unit: str
    baseline: float | None
    candidate: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    margin: float
    unchanged: bool
    outcome: str
    persons: int
    persons_needed: int | None
    identical: str
    trusted: bool
    reason: str
    comparison: str = ""

    @property
    def name(self) -> str:
        """The figure: metric, and whose."""
        convention = self.convention if self.convention != "headline" else ""
        comparison = self.comparison if self.metric.startswith("emotion.") else ""
        more = [x for x in (self.attacker, self.recognizer, comparison, self.label, convention) if x]
        return self.metric + (f" ({', '.join(more)})" if more else "")

    @property
    def words(self) -> str:
        """One line."""
        trust = "" if self.trusted else "; not trusted"
        if self.identical:
            return f"unchanged ({self.identical}){trust}"
        if self.difference is None:
            return self.reason + trust
        if self.unit == "faces/s":
            size = f"{100 * abs(self.difference):.1f} % {'slower' if self.difference > 0 else 'faster'}"
            bounds = (
                "" if self.lower is None or self.upper is None else f" [{100 * self.lower:+.1f}, {100 * self.upper:+.1f} %]"
            )
            limit = f"{100 * self.margin:g} %"
        else:
            side = "worse" if self.difference > 0 else "better" if self.difference < 0 else "the same"
            size = f"{amount(abs(self.difference), self.unit)}{unit_word(self.unit)} {side}"
            bounds = (
                ""
                if self.lower is None or self.upper is None
                else f" [{amount(self.lower, self.unit, signed=True)}, {amount(self.upper, self.unit, signed=True)}]"
            )
            limit = f"{amount(self.margin, self.unit)}{unit_word(self.unit)}"
        said = f"{size}{bounds}, margin {'±' if self.unchanged else ''}{limit}"
        if self.outcome == Outcome.INCONCLUSIVE:
            need = f"about {self.persons_needed} persons would decide" if self.persons_needed else self.reason
            said += f"; {need} ({self.persons} here)"
        return said + trust


@dataclass(frozen=True)
class Gate:
    """The answer.  exit_code: 0 passed, 1 something got worse, 2 undecided."""

    baseline: str
    candidate: str
    verdicts: tuple[Verdict, ...]
    alpha: float
    forced: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        outcomes = {v.outcome for v in self.verdicts}
        return (
            Outcome.FAIL if Outcome.FAIL in outcomes else Outcome.INCONCLUSIVE
            if Outcome.INCONCLUSIVE in outcomes or not outcomes else Outcome.PASS
        )  # fmt: skip

    @property
    def exit_code(self) -> int:
        return {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 2}[self.outcome]

    def of(self, outcome: str) -> list[Verdict]:
        return [v for v in self.verdicts if v.outcome == outcome]

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        n = len(self.verdicts)
        if self.outcome is Outcome.PASS:
            return f"passed: {self.candidate} is no worse than {self.baseline} in all {n} guarded figures"
        worse, open_ = self.of(Outcome.FAIL), self.of(Outcome.INCONCLUSIVE)
        if worse:
            return f"failed: {self.candidate} is worse than {self.baseline} in {_listed([v.name for v in worse])}"
        if not n:
            return "undecided: nothing was guarded"
        return f"undecided: {len(open_)} of {n} guarded figures, {_listed([v.name for v in open_])}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1, "outcome": str(self.outcome), "exit_code": self.exit_code, "sentence": self.sentence,
            "baseline": self.baseline, "candidate": self.candidate, "alpha": self.alpha,
            "forced": list(self.forced), "remarks": list(self.remarks),
            "verdicts": [{**asdict(v), "name": v.name, "words": v.words} for v in self.verdicts],
        }  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def load_margins(path: Path | None = None) -> Margins:
    """Reads a margins file; None: the bundled ones.  Raises InputError naming file and line."""
    if path is None:
        text, origin = resources.files("deidbench.margins").joinpath("default.toml").read_text("utf-8"), "default.toml"
    else:
        origin = str(path)
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read the margins {path}: {error}", "--margins FILE takes a TOML file; see bench/margins/default.toml"
            ) from error
    try:
        return Margins.model_validate(loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{origin}: not valid TOML: {error}", "see https://toml.io for the format") from error
    except ValidationError as error:
        raise InputError(*complaint(error, Margins, text, origin)) from None


def gate(
    baseline: Run,
    candidate: Run,
    margins: Margins,
    *,
    methods: Sequence[str] = (),
    force: bool = False,
    strict: bool = False,
) -> Gate:
    """Holds the candidate's figures against the baseline's.

    methods: to gate, "NAME" or "BASELINE=CANDIDATE"; by default all that both runs have under one name, controls left out.
    force: although the runs differ in data, protocol or recognisers.  strict: a figure that a run lacks fails.
    Raises InputError where the runs cannot be compared, and for methods that are nowhere.
    """
    differ, remarks = check([baseline, candidate], force=force)
    old, new = Scored(baseline), Scored(candidate)
    pairs = _pairs(contestants([baseline]), contestants([candidate]), methods)
    if not methods:
        for one, other, which in ((old, new, "baseline"), (new, old, "candidate")):
            names = [{m["label"] for m in s.run.record.get("methods", []) if not m.get("control")} for s in (one, other)]
            if alone := sorted(names[0] - names[1]):
                remarks.append(f"only in the {which}, and not gated: {', '.join(alone)}")
    judge = _Judge(old, new, margins.gate)
    verdicts: list[Verdict] = []
    for first, second in pairs:
        x, y = old.entries.get(first.label, {}), new.entries.get(second.label, {})
        name = first.label if first.label == second.label else f"{first.label} → {second.label}"
        same = old.same_outputs(first.label, new, second.label)
        for guard in margins.guard:
            # what neither run has a figure of (an attacker without persons to learn from) guards nothing
            found = [
                q for q in dict.fromkeys([*x, *y])
                if guard.guards(q) and any(e is not None and e.row.get("value") is not None for e in (x.get(q), y.get(q)))
            ]  # fmt: skip
            if not found and not guard.optional:
                verdicts.append(_absent(name, guard, "neither run has this figure", strict))
            verdicts += [judge.verdict(name, q, guard, x.get(q), y.get(q), same, strict) for q in found]
    folders = _said(baseline.folder), _said(candidate.folder)
    return Gate(*folders, tuple(verdicts), margins.gate.alpha, tuple(differ), tuple(remarks))


def _said(folder: Path) -> str:
    """A run's folder as it was given; of an absolute path the name alone, since the answer goes into pull requests."""
    return folder.name if folder.is_absolute() else str(folder)


def _pairs(old: Sequence[Contestant], new: Sequence[Contestant], wanted: Sequence[str]) -> list[tuple[Contestant, Contestant]]:
    ours, theirs = ({c.label: c for c in cs} for cs in (old, new))
    if not wanted:
        both = [(c, theirs[c.label]) for c in old if not c.control and c.label in theirs]
        if not both:
            raise InputError(
                f"the runs have no method in common: {', '.join(ours) or 'none'} against {', '.join(theirs) or 'none'}",
                "--method BASELINE=CANDIDATE names two that belong together",
            )
        return both
    out = []
    for text in wanted:
        # a name may have = in it: whole first, then cut at each of them
        cuts = [i for i, x in enumerate(text) if x == "="]
        ways = [(text, text), *((text[:i], text[i + 1 :]) for i in cuts)]
        found = next((w for w in ways if w[0] in ours and w[1] in theirs), None)
        if found is None:
            first, second = ways[-1] if len(cuts) == 1 else ways[0]
            name, known, which = (second, theirs, "candidate") if first in ours else (first, ours, "baseline")
            raise InputError(f"--method {text}: the {which} has no method {name!r}", f"it has: {', '.join(known)}")
        out.append((ours[found[0]], theirs[found[1]]))
    return list(dict.fromkeys(out))


def _absent(method: str, guard: Guard, reason: str, strict: bool) -> Verdict:
    outcome = Outcome.FAIL if strict else Outcome.INCONCLUSIVE
    return Verdict(
        method, guard.metric, guard.attacker, guard.recognizer, guard.label, guard.convention, "", None, None, None, None, None,
        guard.margin, guard.unchanged, str(outcome), 0, None, "", True, reason, guard.comparison,
    )  # fmt: skip


def _trusted(entry: Entry | None) -> bool:
    return entry is None or bool(entry.row.get("trusted", True))


@dataclass(eq=False)
class _Judge:
    old: Scored
    new: Scored
    table: GateTable

    def verdict(
        self, method: str, q: Question, guard: Guard, a: Entry | None, b: Entry | None, same: str, strict: bool
    ) -> Verdict:
        row: Mapping[str, Any] = (a or b).row if a or b else {}  # type: ignore[union-attr]
        unit, better = str(row.get("unit") or ""), row.get("higher_is_better")
        before, after = (None if e is None else figure(e) for e in (a, b))
        trusted = _trusted(a) and _trusted(b)

        def said(d: Decision, persons: int, identical: str = "") -> Verdict:
            if d.outcome is Outcome.PASS and not identical and _trusted(a) and not _trusted(b):
                # an attacker that has failed names nobody: that is no privacy
                why = "the candidate's figure is not trusted, the baseline's is"
                d = d._replace(outcome=Outcome.INCONCLUSIVE, persons_needed=None, reason=why)
            return Verdict(
                method, q.metric, q.attacker, q.recognizer, q.label, q.convention, unit, before, after, d.difference, d.lower,
                d.upper, guard.margin, guard.unchanged, str(d.outcome), persons, d.persons_needed, identical, trusted, d.reason,
                q.comparison,
            )  # fmt: skip

        def lacking(reason: str) -> Verdict:
            outcome = Outcome.FAIL if strict else Outcome.INCONCLUSIVE
            return said(Decision(outcome, None, None, None, guard.margin, None, None, reason), 0)

        if guard.worse:
            sign = 1.0 if guard.worse == "higher" else -1.0
        elif better is None:
            return lacking(f'neither direction of {q.metric} is worse by nature; say worse = "higher" or "lower"')
        else:
            sign = -1.0 if better else 1.0
        for e, value, which in ((a, before, "baseline"), (b, after, "candidate")):
            if value is None:
                why = f": {e.row['reason']}" if e is not None and e.row.get("reason") else ""
                return lacking(f"the {which} has no such figure{why}")
        assert a is not None and b is not None
        if why := mismatch(a, b, self.old, self.new):
            return lacking(why)
        x, y = a.evidence, b.evidence
        assert x is not None and y is not None and before is not None and after is not None
        if x.form == REPEATS:
            return self._speed(said, lacking, x, y, sign, guard)
        persons = min(x.persons, y.persons)
        # without the same pictures few persons prove nothing, whatever their numbers
        if (why := identical(a, b, same)) and (same or persons >= self.table.min_persons):
            return said(Decision(Outcome.PASS, 0.0, 0.0, 0.0, guard.margin, persons, None, why), persons, why)
        difference = sign * (after - before)
        if persons < self.table.min_persons:
            few = f"{persons} person{'s' * (persons != 1)}, at least {self.table.min_persons} are asked for"
            found = self._decide(x, y, sign, difference, persons, guard)
            needed = None if found.lower is None else max(self.table.min_persons, persons + 1, found.persons_needed or 0)
            return said(found._replace(outcome=Outcome.INCONCLUSIVE, persons_needed=needed, reason=few), persons)
        return said(self._decide(x, y, sign, difference, persons, guard), persons)

    def _decide(self, x: Evidence, y: Evidence, sign: float, difference: float, persons: int, guard: Guard) -> Decision:
        if x.form == "rate":
            (p, of_p), (q, of_q) = (e.columns.T for e in ((y, x) if sign > 0 else (x, y)))
            # Where nothing, or nothing else, was seen the bound is one-sided as it stands.
            sides = 1 if {x.value(), y.value()} & {0.0, 1.0} or np.array_equal(x.columns, y.columns) else 2
            found = intervals.difference_interval(p, of_p, q, of_q, 1 - sides * self.table.alpha)
        else:
            before, after = (e.draw(self._draws(e)) for e in (x, y))
            n = min(len(before), len(after))
            largest = 1.0 if x.form in RATES else None
            found = one_sided_bounds(sign * (after[:n] - before[:n]), persons, self.table.alpha, largest=largest)
        rule = equivalence if guard.unchanged else noninferiority
        return rule(difference, found.lo, found.hi, guard.margin, persons=persons, reason=found.reason)

    def _draws(self, evidence: Evidence) -> npt.NDArray[np.uint8]:
        if not evidence.summed:
            return np.empty((0, 0), np.uint8)
        replicates = int(self.old.protocol("replicates", 10_000))
        return intervals.person_draws(self.old.persons, replicates, int(self.old.protocol("seed", 0)))

    def _speed(self, said: Any, lacking: Any, x: Evidence, y: Evidence, sign: float, guard: Guard) -> Verdict:
        """Faces per second: medians of the repeats of two runs, which are not interleaved; the margin is a share."""
        a, b = (e.columns.ravel() for e in (x, y))
        if min(len(a), len(b)) < 6:
            return lacking(f"{min(len(a), len(b))} repeats are too few for an interval")  # type: ignore[no-any-return]
        rng = np.random.default_rng([int(self.old.protocol("seed", 0)), len(a), len(b)])
        drawn = [np.median(v[rng.integers(0, len(v), (2000, len(v)))], axis=1) for v in (a, b)]
        change = sign * (drawn[1] / drawn[0] - 1)
        value = float(sign * (np.median(b) / np.median(a) - 1))
        lo, hi = np.quantile(change, [self.table.alpha, 1 - self.table.alpha])
        rule = equivalence if guard.unchanged else noninferiority
        return said(rule(value, float(lo), float(hi), guard.margin), 0)  # type: ignore[no-any-return]


__all__ = ["Gate", "Guard", "Margins", "Verdict", "gate", "load_margins"]
