"""Re-identification: how often an attacker still names the person in an anonymised image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deidbench.errors import InputError, SuiteError
from deidbench.kinds import attackers as registry
from deidbench.kinds import metrics
from deidbench.metrics.base import (
    NO_BACKGROUND,
    NO_PERSONS,
    Background,
    Findings,
    Metric,
    PlannedAttack,
    Protocol,
    Quantity,
    Table,
)
from deidbench.metrics.reid import fairness
from deidbench.metrics.reid.attack import Probes, View, attack, embeddings, rates, view
from deidbench.metrics.reid.base import PIXELS, Attacker, TrainedAttacker
from deidbench.metrics.reid.comparison import lay_out
from deidbench.metrics.reid.figures import (
    CMC_RANKS,
    NO_MATES,
    Figures,
    Thresholds,
    acquisition_rows,
    attack_curves,
    attack_rows,
    blind_spots,
    notes,
    refuse,
    thresholds,
    worst_case,
)
from deidbench.metrics.reid.training import Attempt
from deidbench.records import CONVENTIONS, Curve, Row
from deidbench.stats import intervals
from deidbench.types import Floats

if TYPE_CHECKING:
    from deidbench.datasets.base import Dataset

FAMILY = "reid"


def _quantities(ranks: Sequence[int], targets: Sequence[float], searches: Sequence[float]) -> tuple[Quantity, ...]:
    """higher_is_better from the side of somebody who chooses an anonymizer: the attacker should fail."""

    def q(name: str, title: str, better: bool | None, unit: str = "rate") -> Quantity:
        return Quantity(f"reid.{name}", title, unit, better, "privacy", FAMILY)

    beforehand = "fixed beforehand"
    return (
        *(q(f"rank{k}", f"Re-identification rate at rank {k}", False) for k in ranks),
        q("worst_rank1", "Re-identification rate at rank 1, worst case over attackers and recognisers", False),
        q("eer", "Equal error rate of the attacker", True),
        q("auc", "Area under the attacker's ROC curve", False),
        q("cllr_min", "Minimum log-likelihood-ratio cost of the attacker's scores (1: they say nothing)", True, "bit"),
        q("d_sys", "Linkability D_sys (0: scores of mates and strangers look alike, 1: fully linkable)", False, "index"),
        *(q(f"tmr@fmr={x:g}", f"True match rate at the threshold {beforehand} for FMR {x:g}", False) for x in targets),
        *(q(f"fnmr@fmr={x:g}", f"False non-match rate at the threshold {beforehand} for FMR {x:g}", True) for x in targets),
        *(q(f"fmr@fmr={x:g}", f"False match rate realised at the threshold {beforehand} for FMR {x:g}", None) for x in targets),
        *(
            q(
                f"fnir@fpir={x:g}",
                f"Open set: false negative identification rate at the threshold {beforehand} for FPIR {x:g}",
                True,
            )
            for x in searches
        ),
        *(
            q(
                f"fpir@fpir={x:g}",
                f"Open set: false positive identification rate realised at the threshold for FPIR {x:g}",
                None,
            )
            for x in searches
        ),
        *fairness.QUANTITIES,
        q("fta", "Released images in which no face was found (failure to acquire)", None),
        q("withheld", "Images of which nothing was released", None),
    )


class _Entry(NamedTuple):
    """An attacker of the suite.  label: unique in the metric."""

    label: str
    attacker: Attacker


#: Checks and thresholds of recognisers on clear images that were made lately: (hash, shape, protocol) -> what was found.
_CLEAR: dict[tuple[str, tuple[int, ...], Protocol], tuple[_Check, Thresholds]] = {}
_MOST_CLEAR = 16


class _Check(NamedTuple):
    """The attacker's sanity check on clear images."""

    trusted: bool
    note: str


@dataclass(frozen=True, eq=False)
class _Attack:
    """One attack, carried out and judged.  whose: (attacker, recogniser)."""

    whose: tuple[str, str]
    probes: Probes
    enrolled: Floats
    check: _Check
    thresholds: Thresholds
    note: str = ""


@metrics.register("reid")
class ReIdentification(Metric):
    """Identification and verification rates of attackers, per recogniser and failure convention, with person intervals.

    attackers: names of registered attackers, or tables ``{name = "...", params = {...}, label = "..."}``.
    """

    version = "3"
    citation = (
        "ISO/IEC 19795-1:2021; Grother & Phillips 2004 (identification); Fogliato et al. 2024, arXiv 2306.01198 (intervals); "
        "Brümmer & du Preez 2006 (Cllr); Gomez-Barrero et al. 2018 (D_sys)"
    )
    quantities = _quantities(Protocol.ranks, Protocol.fmr, Protocol.fpir)

    def __init__(self, attackers: Sequence[str | Mapping[str, Any]] = ("ignorant",)) -> None:
        self.attackers = tuple(attackers)

    def _entries(self) -> list[_Entry]:
        entries: list[_Entry] = []
        for given in self.attackers:
            table: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
            if not isinstance(table.get("name"), str) or table.keys() - {"name", "params", "label"}:
                raise SuiteError(
                    f"an attacker is a name or a table with name, params and label, not {given!r}",
                    'e.g. attackers = ["ignorant", { name = "pixel-cnn", params = { steps = 4000 } }]',
                )
            label = str(table.get("label", table["name"]))
            if label in {e.label for e in entries}:
                raise SuiteError(f"two attackers are called {label!r}", 'give one of them a label = "..."')
            params: Any = table.get("params", {})
            entries.append(_Entry(label, registry.create(table["name"], **params)))
        return entries

    def bind(self, dataset: Dataset) -> None:
        """Of a data set without identities only the acquisition is told: two images may be of one person or not."""
        self.persons_ = dataset.identities

    @property
    def _persons(self) -> bool:
        return getattr(self, "persons_", True)

    @property
    def needs_background(self) -> bool:  # type: ignore[override]
        return self._persons and any(
            isinstance(e.attacker, TrainedAttacker) or e.attacker.gallery == "anonymised" for e in self._entries()
        )

    def attacks(self, recognizers: Sequence[str]) -> list[PlannedAttack]:
        return [
            PlannedAttack(e.label, e.attacker, column)
            for e in (self._entries() if self._persons else ())
            if isinstance(e.attacker, TrainedAttacker) and not e.attacker.missing()
            for column in e.attacker.columns(recognizers)
        ]

    def params(self) -> dict[str, Any]:
        known = {"attackers": {e.label: [e.attacker.name, e.attacker.version, e.attacker.params()] for e in self._entries()}}
        return known if self._persons else {**known, "persons": False}

    def record(self) -> list[dict[str, Any]]:
        """What each attacker knows, for the run record."""
        return [
            {
                "label": e.label,
                "name": e.attacker.name,
                "version": e.attacker.version,
                "params": e.attacker.params(),
                "knows": e.attacker.knows,
                "gallery": e.attacker.gallery,
                "trained": isinstance(e.attacker, TrainedAttacker),
                "citation": e.attacker.citation,
                "missing": e.attacker.missing(),
            }
            for e in self._entries()
        ]

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not."""
        if not (np.array_equal(clear.ids, anonymised.ids) and np.array_equal(clear.subjects, anonymised.subjects)):
            raise InputError(
                f"{anonymised.method!r} and the clear images of {clear.dataset!r} are not the same images in the same order",
                "run the same deidbench run command again",
            )
        ladder = _Ladder(self._entries(), clear, anonymised, protocol, background)
        return ladder.climb() if self._persons else ladder.refuse_all(NO_PERSONS)


class _Ladder:
    """All attackers on one method."""

    def __init__(
        self, entries: Sequence[_Entry], clear: Table, anonymised: Table, protocol: Protocol, background: Background
    ) -> None:
        self.entries, self.clear, self.anonymised = entries, clear, anonymised
        self.protocol, self.background = protocol, background
        self.layout = lay_out(clear.ids, clear.subjects, protocol)
        self.figures = Figures(protocol, self.layout.persons)
        self.quantity = {q.name: q for q in _quantities(protocol.ranks, protocol.fmr, protocol.fpir)}
        self.recognizers = sorted(clear.embeddings.keys() & anonymised.embeddings.keys())
        self.blank = Row(anonymised.dataset, anonymised.method, "", "rate", None, None, family=FAMILY)
        self._clear: dict[str, tuple[_Check, Thresholds]] = {}

    def named(self, row: Row, name: str, **fields: Any) -> Row:
        q = self.quantity[f"reid.{name}"]
        return replace(row, metric=q.name, unit=q.unit, higher_is_better=q.higher_is_better, **fields)

    def climb(self) -> Findings:
        rows = acquisition_rows(self.anonymised, self.figures, partial(self.named, self.blank))
        curves: list[Curve] = []
        contenders: list[tuple[str, str, View]] = []
        suspects: list[str] = []
        stock: dict[tuple[str, str], View] = {}
        text = ""
        for entry in self.entries:
            for column in entry.attacker.columns(self.recognizers):
                done = self._carry_out(entry, column)
                if isinstance(done, str):
                    base = replace(self.blank, recognizer=column, attacker=entry.label, comparison=self.layout.text)
                    rows += [
                        refuse(self.named(base, f"rank{k}", convention="headline"), f"not carried out: {done}")
                        for k in self.protocol.ranks
                    ]
                    continue
                text = done.probes.layout.text
                found, drawn, headline, check = self._judge(done, stock)
                rows += found
                curves += drawn
                if not isinstance(entry.attacker, TrainedAttacker):
                    stock[entry.attacker.gallery, column] = headline
                if check.trusted:
                    contenders.append((entry.label, column, headline))
                else:
                    suspects.append(f"{entry.label} with {column}")
        named = partial(self.named, replace(self.blank, comparison=text or self.layout.text, convention="headline"))
        rows.append(worst_case(contenders, suspects, self.anonymised, self.layout, self.figures, named))
        rows += self._groups(contenders, rows[-1])
        return Findings(rows, curves)

    def refuse_all(self, why: str) -> Findings:
        """Nothing but the acquisition, and every attack refused.  why: the reason."""
        rows = acquisition_rows(self.anonymised, self.figures, partial(self.named, self.blank))
        for entry in self.entries:
            for column in entry.attacker.columns(self.recognizers):
                base = replace(self.blank, recognizer=column, attacker=entry.label, convention="headline")
                rows += [refuse(self.named(base, f"rank{k}"), f"not carried out: {why}") for k in self.protocol.ranks]
        rows.append(refuse(self.named(self.blank, "worst_rank1", convention="headline"), why))
        return Findings(rows, [])

    # -- one attack --------------------------------------------------------------------------------------------
    def _carry_out(self, entry: _Entry, column: str) -> _Attack | str:
        """The attack, or why it could not be carried out."""
        attacker, protocol = entry.attacker, self.protocol
        if isinstance(attacker, TrainedAttacker):
            return self._trained(entry.label, attacker, column)
        check, thresholds_ = self._stock(column)
        if attacker.gallery == "clear":
            enrolled = embeddings(self.clear, column)
        else:
            enrolled = embeddings(self.anonymised, column)
            # Clear impostors say nothing about scores between anonymised images: these are of the attacker's own condition.
            table = self.background.anonymised
            if table is None:
                thresholds_ = Thresholds.none(
                    protocol, f"no impostors in the attacker's own condition: {self.background.reason}"
                )
            else:
                own = lay_out(table.ids, table.subjects, protocol)
                x = embeddings(table, column)
                thresholds_ = thresholds(attack(attacker, x, x, table, own, protocol.templates), protocol)
        probes = attack(
            attacker, enrolled, embeddings(self.anonymised, column), self.anonymised, self.layout, protocol.templates
        )
        return _Attack((entry.label, column), probes, enrolled, check, thresholds_)

    def _trained(self, label: str, attacker: TrainedAttacker, column: str) -> _Attack | str:
        if problem := attacker.missing():
            return problem
        attempts = self.background.attempts.get((label, column), ())
        carried_out = [a for a in attempts if not a.failure]
        if not carried_out:
            return next((a.failure for a in attempts), self.background.reason or "no attempt was made")
        rank1 = [_held_out_rank1(attacker, a, self.protocol) for a in carried_out]
        best = int(np.argmax([-1.0 if np.isnan(r) else r for r in rank1]))
        results = [
            attack(attacker, a.gallery, a.probes, self.anonymised, self.layout, self.protocol.templates) for a in carried_out
        ]
        chosen, probes = carried_out[best], results[best]
        if attacker.gallery == "clear":
            own = attack(attacker, chosen.gallery, chosen.gallery, self.clear, self.layout, self.protocol.templates)
        else:
            table = _bare(chosen)
            layout = lay_out(table.ids, table.subjects, self.protocol)
            own = attack(attacker, chosen.held_out_gallery, chosen.held_out_probes, table, layout, self.protocol.templates)
        evaluated = [_rank1(view(p, "headline", 1)) for p in results]
        spread = ", ".join(f"{v:.3f} ({h:.3f} held out)" for v, h in zip(evaluated, rank1, strict=True))
        failed = len(attempts) - len(carried_out)
        note = notes(
            f"seed {best + 1} of {len(carried_out)} chosen on held-out persons" if len(carried_out) > 1 else "",
            f"rank-1 per seed {spread}",
            f"{failed} seeds failed: {next(a.failure for a in attempts if a.failure)}" if failed else "",
            f"learnt: {chosen.learnt}" if chosen.learnt else "",
        )
        return _Attack((label, column), probes, chosen.gallery, self._trust(column), thresholds(own, self.protocol), note)

    def _trust(self, column: str) -> _Check:
        """Of a trained attacker: its recogniser must pass, one of them where several are joined; pixels have no recogniser."""
        parts = [p for p in column.split("+") if p in self.recognizers]
        checks = [self._stock(p)[0] for p in parts]
        if not checks or any(c.trusted for c in checks):
            return _Check(True, "")
        return checks[0]

    def _stock(self, recognizer: str) -> tuple[_Check, Thresholds]:
        """Sanity check of a recogniser, and thresholds of clear impostors: both on clear images alone."""
        if recognizer not in self._clear:
            protocol = self.protocol
            x = embeddings(self.clear, recognizer)
            # The same for every method of a run: a worker that scores several makes it once.
            at = hashlib.sha256(x.tobytes())
            for part in (self.clear.ids, self.clear.subjects):
                at.update(np.ascontiguousarray(part).tobytes())
            known = (at.hexdigest(), x.shape, protocol)
            if known not in _CLEAR:
                clear = attack(registry.create("ignorant"), x, x, self.clear, self.layout, protocol.templates)
                seen = view(clear, "headline", 1)
                while len(_CLEAR) >= _MOST_CLEAR:
                    del _CLEAR[next(iter(_CLEAR))]
                _CLEAR[known] = _sanity(seen, self.figures), thresholds(clear, protocol, seen)
            self._clear[recognizer] = _CLEAR[known]
        return self._clear[recognizer]

    def _judge(self, done: _Attack, stock: Mapping[tuple[str, str], View]) -> tuple[list[Row], list[Curve], View, _Check]:
        probes, label, column = done.probes, *done.whose
        ranks = max(CMC_RANKS, *self.protocol.ranks)
        headline = view(probes, "headline", ranks)
        check = self._mistrained(done, headline, stock)
        known = [column] if column in self.anonymised.embeddings else []
        base = replace(
            self.blank,
            recognizer=column,
            attacker=label,
            comparison=probes.layout.text,
            n_failed=int(probes.withheld.sum()),
            n_fta=int(probes.fta.sum()),
            trusted=check.trusted,
            note=notes(
                check.note,
                *(blind_spots(self.anonymised, r, self.layout, done.enrolled[self.layout.gallery]) for r in known),
                done.note,
            ),
        )
        rows: list[Row] = []
        made: dict[str, list[Row]] = {}
        for convention in CONVENTIONS:
            # Without failures the conventions are one and the same figure; it is computed once.
            same = not probes.fta.any() and not (convention == "without_fta" and probes.withheld.any())
            if convention != "headline" and same:
                made[convention] = [replace(row, convention=convention) for row in made["headline"]]
            else:
                seen = headline if convention == "headline" else view(probes, convention, ranks)
                made[convention] = attack_rows(
                    seen,
                    probes.layout,
                    self.figures,
                    done.thresholds,
                    partial(self.named, replace(base, convention=convention)),
                )
            rows += made[convention]
        drawn = attack_curves(headline, probes.layout, self.figures, replace(base, convention="headline"))
        return rows, drawn, headline, check

    def _mistrained(self, done: _Attack, headline: View, stock: Mapping[tuple[str, str], View]) -> _Check:
        """A trained attacker that is beaten by the stock one on the same images (one-sided 97.5 %, paired) has not learnt."""
        label, column = done.whose
        attacker = next(e.attacker for e in self.entries if e.label == label)
        if not isinstance(attacker, TrainedAttacker) or headline.chance is None or not done.check.trusted:
            return done.check
        parts = self.recognizers if column == PIXELS else column.split("+")
        rivals = [(p, stock[attacker.gallery, p]) for p in parts if (attacker.gallery, p) in stock]
        if not rivals:
            return done.check
        name, rival = max(rivals, key=lambda r: _rank1(r[1]))
        both = np.column_stack([headline.hits[:, 0], rival.hits[:, 0]])
        replicates = intervals.ratio_replicates(both, headline.tried, self.figures.draws)
        difference = replicates[:, 0] - replicates[:, 1]
        known = difference[~np.isnan(difference)]
        if not len(known) or np.quantile(known, 0.975) >= 0:
            return done.check
        said = f"mis-trained: weaker than the stock recogniser {name} on the same images"
        return _Check(False, f"{said} ({_rank1(headline):.3f} against {_rank1(rival):.3f})")

    # -- groups ------------------------------------------------------------------------------------------------
    def _groups(self, contenders: list[tuple[str, str, View]], worst: Row) -> list[Row]:
        """Rates per group of persons under the strongest attack."""
        mated = [c for c in contenders if c[2].chance is not None]
        if not mated:
            return []
        label, column, strongest = max(mated, key=lambda c: _rank1(c[2]))
        base = replace(
            self.blank,
            attacker=label,
            recognizer=column,
            convention="headline",
            comparison=worst.comparison,
            n_failed=worst.n_failed,
            n_fta=worst.n_fta,
        )
        layout, groups = self.layout, fairness.person_groups(self.clear, self.layout.persons)
        withheld = self.anonymised.withheld[layout.probes]
        return fairness.rows(
            base,
            strongest.hits[:, 0],
            strongest.tried,
            self.layout.persons,
            groups,
            self.protocol,
            guesses=strongest.guesses,
            failed=intervals.per_person(layout.probe_person, withheld, len(layout.persons)),
            fta=intervals.per_person(layout.probe_person, self.anonymised.fta[layout.probes] & ~withheld, len(layout.persons)),
        )


def _rank1(seen: View) -> float:
    return float(rates(seen.hits, seen.tried)[0]) if seen.chance is not None else float("nan")


def _bare(attempt: Attempt) -> Table:
    """The held-out persons' images as a table without columns."""
    n = len(attempt.held_out_ids)
    known = np.zeros(n, np.bool_)
    return Table("held out", "", attempt.held_out_ids, attempt.held_out_subjects, np.full(n, "ok"), withheld=known, fta=known)


def _held_out_rank1(attacker: TrainedAttacker, attempt: Attempt, protocol: Protocol) -> float:
    """Rank-1 among the held-out persons, on whom nothing was learnt; NaN where none of them has two images."""
    table = _bare(attempt)
    layout = lay_out(table.ids, table.subjects, replace(protocol, comparison="leave-one-out"))
    return _rank1(view(attack(attacker, attempt.held_out_gallery, attempt.held_out_probes, table, layout), "headline", 1))


def _sanity(seen: View, figures: Figures) -> _Check:
    """seen: the headline view of the recogniser's attack on clear images."""
    from deidbench.metrics.reid import verification

    protocol = figures.protocol
    failed = []
    if seen.chance is None:
        failed.append(NO_MATES)
    else:
        rank1, guess = _rank1(seen), float(seen.chance[0])
        interval = figures.rates(seen.hits[:, :1], seen.tried, "")[0]
        if rank1 < protocol.min_clear_rank1:
            failed.append(f"clear rank-1 {rank1:.3f} is below {protocol.min_clear_rank1:g}")
        if interval.lo is None:
            failed.append(f"clear rank-1 cannot be told from chance ({interval.reason})")
        elif interval.lo <= guess:
            failed.append(f"clear rank-1 {rank1:.3f} [{interval.lo:.3f}, {interval.hi:.3f}] is not above chance {guess:.3f}")
    streamed, pairs = seen.streamed, seen.pairs
    if pairs is not None and len(pairs.genuine) and len(pairs.impostor):
        errors = [verification.eer(pairs.genuine, pairs.impostor).value]
    elif pairs is None and streamed is not None and streamed.genuine.total and streamed.impostor.total:
        errors = [streamed.eer().value]
    else:
        errors = []
        failed.append("clear EER needs genuine and impostor pairs")
    for error in errors:
        if error > protocol.max_clear_eer:
            failed.append(f"clear EER {error:.3f} is above {protocol.max_clear_eer:g}")
    return _Check(not failed, f"untrusted, attacker sanity check failed: {', '.join(failed)}" if failed else "")
