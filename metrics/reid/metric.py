"""Re-identification: how often an attacker still names the person in an anonymised image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.kinds import attackers as registry
from deidbench.kinds import metrics
from deidbench.metrics.base import Findings, Metric, Protocol, Quantity, Table
from deidbench.metrics.reid import identification, verification
from deidbench.metrics.reid.base import Attacker
from deidbench.metrics.reid.comparison import Comparison, lay_out
from deidbench.records import CONVENTIONS, Curve, Row
from deidbench.stats import intervals
from deidbench.stats.intervals import Interval
from deidbench.stats.pairs import AUC_BINS, EXACT_AUC_PERSONS, Pairs, bootstrap_auc, bootstrap_eer, bootstrap_pair_rate
from deidbench.types import Floats

#: Longest rank of a CMC curve.
CMC_RANKS = 50
FAMILY = "reid"
_NO_MATES = "no probe has another image of its person in the gallery"


def _quantities(ranks: Sequence[int], targets: Sequence[float]) -> tuple[Quantity, ...]:
    """higher_is_better from the side of somebody who chooses an anonymizer: the attacker should fail."""

    def q(name: str, title: str, better: bool | None) -> Quantity:
        return Quantity(f"reid.{name}", title, "rate", better, "privacy", FAMILY)

    return (
        *(q(f"rank{k}", f"Re-identification rate at rank {k}", False) for k in ranks),
        q("worst_rank1", "Re-identification rate at rank 1, worst case over attackers and recognisers", False),
        q("eer", "Equal error rate of the attacker", True),
        q("auc", "Area under the attacker's ROC curve", False),
        *(
            q(f"tmr@fmr={x:g}", f"True match rate at the threshold set for FMR {x:g} on clear impostors", False)
            for x in targets
        ),
        *(
            q(f"fnmr@fmr={x:g}", f"False non-match rate at the threshold set for FMR {x:g} on clear impostors", True)
            for x in targets
        ),
        *(
            q(f"fmr@fmr={x:g}", f"False match rate realised at the threshold set for FMR {x:g} on clear impostors", None)
            for x in targets
        ),
        q("fta", "Released images in which no face was found (failure to acquire)", None),
        q("withheld", "Images of which nothing was released", None),
    )


class _Target(NamedTuple):
    """A threshold fixed on clear impostors for an FMR, or the reason why there is none."""

    fmr: float
    threshold: float | None
    reason: str


class _Check(NamedTuple):
    """The attacker's sanity check on clear images."""

    trusted: bool
    note: str


@dataclass(frozen=True, eq=False)
class _View:
    """Everything that one convention's rows are made of.

    hits: (P, K) expected hits per person at ranks 1..K.  tried: (P,) probes with a mate.  chance: (K,) of guessing, None where
    no probe has a mate.
    """

    hits: npt.NDArray[np.float64]
    tried: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64] | None
    pairs: Pairs
    probes: int
    probe_persons: int


@dataclass(frozen=True, eq=False)
class _Probes:
    """The probes of one attack.  scores: (n_probes, n_gallery), NaN where nothing is known; the rest bool (n_probes,)."""

    scores: Floats
    standing: identification.Standing
    fta: npt.NDArray[np.bool_]
    withheld: npt.NDArray[np.bool_]


def _matrix(attacker: Attacker, gallery: Floats, probes: Floats) -> Floats:
    """All scores, asked for in tiles."""
    out = np.empty((len(probes), len(gallery)), np.float32)
    step = max(1, identification.TILE // max(1, len(gallery)))
    for start in range(0, len(probes), step):
        out[start : start + step] = attacker.scores(gallery, probes[start : start + step])
    return out


def _embeddings(table: Table, recognizer: str, which: npt.NDArray[np.intp]) -> Floats:
    x = np.array(table.embeddings[recognizer][which], np.float32)
    x[table.withheld[which]] = np.nan  # what is not released cannot be embedded
    return x


def _attack(attacker: Attacker, gallery: Floats, table: Table, recognizer: str, layout: Comparison) -> _Probes:
    scores = _matrix(attacker, gallery, _embeddings(table, recognizer, layout.probes))
    withheld = table.withheld[layout.probes]
    standing = identification.identify(lambda rows: scores[rows], layout.probe_person, layout.gallery_person, layout.same_image)
    return _Probes(scores, standing, table.fta[layout.probes] & ~withheld, withheld)


def _rates(events: npt.NDArray[np.float64], trials: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rate per column of events (P, k) over trials (P,).  Column by column: equal columns give equal bits."""
    sums: npt.NDArray[np.float64] = np.array([np.ascontiguousarray(column).sum() for column in events.T])
    out: npt.NDArray[np.float64] = sums / trials.sum()
    return out


def _view(probes: _Probes, layout: Comparison, convention: str, ranks: int) -> _View:
    """One convention's counts (PROTOCOL, samples and failures).

    headline: all probes, those without a face through the fallback crop.  without_fta: only probes in which a face was
    found.  fta_as_miss: all probes, those without a face never identified and never accepted.  Withheld probes are no
    information (chance) in headline and fta_as_miss.
    """
    persons = len(layout.persons)
    take = np.ones(len(layout.probes), np.bool_)
    miss = np.zeros(len(layout.probes), np.bool_)
    if convention == "without_fta":
        take = ~probes.fta & ~probes.withheld
    elif convention == "fta_as_miss":
        miss = probes.fta
    mated = np.flatnonzero(take & (layout.mates > 0))
    standing = probes.standing
    hit = identification.hits(standing.above[mated], standing.tied[mated], standing.tied_mates[mated], ranks)
    hit[miss[mated]] = 0
    person = layout.probe_person[mated]
    # Summed in the same way as the hits, so that an attacker at chance shows the very same figure.
    tried = np.bincount(person, minlength=persons).astype(np.float64)
    guess = intervals.per_person(person, identification.chance(layout.mates[mated], layout.others[mated], ranks), persons)
    rows = np.flatnonzero(take)
    scores = probes.scores[rows]
    scores[miss[rows]] = -np.inf
    return _View(
        hits=intervals.per_person(person, hit, persons),
        tried=tried,
        chance=_rates(guess, tried) if len(mated) else None,
        pairs=verification.extract(scores, layout.probe_person[rows], layout.gallery_person, layout.same_image[rows]),
        probes=len(rows),
        probe_persons=len(np.unique(layout.probe_person[rows])),
    )


@dataclass(frozen=True, eq=False)
class _Figures:
    """Makes intervals for one set of persons; holds what all rows of a call share."""

    protocol: Protocol
    persons: tuple[str, ...]

    @property
    def level(self) -> float:
        return self.protocol.confidence

    @property
    def draws(self) -> npt.NDArray[np.uint8]:
        return intervals.person_draws(self.persons, self.protocol.replicates, self.protocol.seed)

    @property
    def pair_draws(self) -> npt.NDArray[np.uint8]:
        return intervals.person_draws(self.persons, self.protocol.curve_replicates, self.protocol.seed)

    def rates(self, events: npt.NDArray[np.float64], trials: npt.NDArray[np.float64], what: str) -> list[Interval]:
        """One interval per column of events (P, k)."""
        persons = int(np.count_nonzero(trials > 0))
        replicates = intervals.ratio_replicates(events, trials, self.draws)
        return [self._rate(value, replicates[:, k], persons, what) for k, value in enumerate(_rates(events, trials))]

    def _rate(
        self, value: float, replicates: npt.NDArray[np.float64], persons: int, what: str, *, expand: bool = True
    ) -> Interval:
        """Interval from replicates of a figure in [0, 1] whose extremes mean that no event, or nothing else, was seen."""
        if persons >= 2 and value == 0:
            return intervals.zero_events(persons, self.level)
        if persons >= 2 and value == 1:
            return intervals.all_events(persons, self.level)
        return intervals.percentile_interval(replicates, self.level, persons, what, expand=expand)

    def equal_error(self, pairs: Pairs, value: float) -> Interval:
        persons = len(np.unique(pairs.genuine_person))
        return self._rate(
            value, bootstrap_eer(pairs, self.pair_draws), persons, "person bootstrap of pairs, threshold recomputed"
        )

    def area(self, pairs: Pairs, value: float) -> Interval:
        persons = len(np.unique(pairs.genuine_person))
        binned = f", {AUC_BINS} score bins" if len(self.persons) > EXACT_AUC_PERSONS else ""
        what = f"person bootstrap of pairs{binned}"
        return self._rate(value, bootstrap_auc(pairs, self.pair_draws), persons, what)

    def false_matches(self, pairs: Pairs, threshold: float, value: float) -> Interval:
        persons = len(np.unique(np.concatenate([pairs.impostor_a, pairs.impostor_b])))
        weights = intervals.double_or_nothing_draws(self.persons, self.protocol.replicates, self.protocol.seed)
        accepted = pairs.impostor >= np.float32(threshold)
        replicates = bootstrap_pair_rate(accepted, pairs.impostor_a, pairs.impostor_b, weights)
        return self._rate(value, replicates, persons, "double-or-nothing identity bootstrap", expand=False)

    def worst(self, hits: npt.NDArray[np.float64], trials: npt.NDArray[np.float64]) -> tuple[float, Interval, float]:
        """Largest of several rates on the same probes.  hits: (P, k).  Returns value, interval and bootstrap optimism.

        The maximum is taken anew in each replicate, from the same draws for all columns.
        """
        persons = int(np.count_nonzero(trials > 0))
        value = float(_rates(hits, trials).max())
        replicates = intervals.ratio_replicates(hits, trials, self.draws).max(1)
        interval = self._rate(value, replicates, persons, "person bootstrap of the maximum, gallery fixed")
        known = replicates[~np.isnan(replicates)]
        return value, interval, float(known.mean() - value) if len(known) else 0.0


def _notes(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _put(row: Row, value: float, interval: Interval) -> Row:
    return replace(
        row,
        value=float(value),
        lo=interval.lo,
        hi=interval.hi,
        ci_level=interval.level if interval.lo is not None else None,
        ci_method=interval.method,
        ci_reason=interval.reason,
    )


def _refuse(row: Row, reason: str) -> Row:
    return replace(row, value=None, reason=reason, ci_reason=reason)


@metrics.register("reid")
class ReIdentification(Metric):
    """Identification and verification rates of attackers, per recogniser and failure convention, with person intervals.

    attackers: names of registered attackers.
    """

    version = "1"
    citation = (
        "ISO/IEC 19795-1:2021; Grother & Phillips 2004 (identification); Fogliato et al. 2024, arXiv 2306.01198 (intervals)"
    )
    quantities = _quantities(Protocol.ranks, Protocol.fmr)

    def __init__(self, attackers: Sequence[str] = ("ignorant",)) -> None:
        self.attackers = tuple(attackers)

    def params(self) -> dict[str, Any]:
        return {"attackers": {name: registry.get(name).version for name in self.attackers}}

    def score(self, clear: Table, anonymised: Table, protocol: Protocol) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not."""
        if not (np.array_equal(clear.ids, anonymised.ids) and np.array_equal(clear.subjects, anonymised.subjects)):
            raise InputError(
                f"{anonymised.method!r} and the clear images of {clear.dataset!r} are not the same images in the same order",
                "run the same deidbench run command again",
            )
        layout = lay_out(clear.ids, clear.subjects, protocol)
        figures = _Figures(protocol, layout.persons)
        quantity = {q.name: q for q in _quantities(protocol.ranks, protocol.fmr)}
        blank = Row(anonymised.dataset, anonymised.method, "", "rate", None, None, family=FAMILY, comparison=layout.text)

        def named(row: Row, name: str, **fields: Any) -> Row:
            q = quantity[f"reid.{name}"]
            return replace(row, metric=q.name, unit=q.unit, higher_is_better=q.higher_is_better, **fields)

        rows = _acquisition(anonymised, figures, partial(named, replace(blank, comparison="")))
        curves: list[Curve] = []
        contenders: list[tuple[str, str, _View]] = []
        suspects: list[str] = []
        recognizers = sorted(clear.embeddings.keys() & anonymised.embeddings.keys())
        for attacker_name in self.attackers:
            for recognizer in recognizers:
                attacker = registry.create(attacker_name)
                attacker.fit(None, None, protocol.seed)
                enrolled = _embeddings(clear if attacker.gallery == "clear" else anonymised, recognizer, layout.gallery)
                check, targets = self._calibrate(attacker, clear, recognizer, layout, figures)
                probes = _attack(attacker, enrolled, anonymised, recognizer, layout)
                base = replace(
                    blank,
                    recognizer=recognizer,
                    attacker=attacker_name,
                    n_failed=int(probes.withheld.sum()),
                    n_fta=int(probes.fta.sum()),
                    trusted=check.trusted,
                    note=_notes(check.note, _blind_spots(anonymised, recognizer, layout, enrolled)),
                )
                views: dict[str, _View] = {}
                made: dict[str, list[Row]] = {}
                for convention in CONVENTIONS:
                    # Without failures the conventions are one and the same figure; it is computed once.
                    same = not probes.fta.any() and not (convention == "without_fta" and probes.withheld.any())
                    if convention != "headline" and same:
                        made[convention] = [replace(row, convention=convention) for row in made["headline"]]
                    else:
                        view = views[convention] = _view(probes, layout, convention, max(CMC_RANKS, *protocol.ranks))
                        made[convention] = _rows(
                            view, layout, figures, targets, partial(named, replace(base, convention=convention))
                        )
                    rows += made[convention]
                curves += _curves(views["headline"], layout, figures, replace(base, convention="headline"))
                if check.trusted:
                    contenders.append((attacker_name, recognizer, views["headline"]))
                else:
                    suspects.append(f"{attacker_name} with {recognizer}")
        rows.append(
            _worst(contenders, suspects, anonymised, layout, figures, partial(named, replace(blank, convention="headline")))
        )
        return Findings(rows, curves)

    @staticmethod
    def _calibrate(
        attacker: Attacker, clear: Table, recognizer: str, layout: Comparison, figures: _Figures
    ) -> tuple[_Check, list[_Target]]:
        """Sanity check and thresholds, both on clear images alone."""
        protocol = figures.protocol
        clear_probes = _attack(attacker, _embeddings(clear, recognizer, layout.gallery), clear, recognizer, layout)
        view = _view(clear_probes, layout, "headline", 1)
        targets = []
        for x in protocol.fmr:
            reason = verification.unsupported(x, len(view.pairs.impostor), len(layout.persons))
            if attacker.gallery != "clear":
                reason = "a threshold of clear impostors means nothing to an attacker with an anonymised gallery"
            targets.append(_Target(x, None if reason else verification.threshold_at_fmr(view.pairs.impostor, x), reason))
        failed = []
        if view.chance is None:
            failed.append(_NO_MATES)
        else:
            rank1 = float(_rates(view.hits, view.tried)[0])
            guess = float(view.chance[0])
            interval = figures.rates(view.hits, view.tried, "person bootstrap")[0]
            if rank1 < protocol.min_clear_rank1:
                failed.append(f"clear rank-1 {rank1:.3f} is below {protocol.min_clear_rank1:g}")
            if interval.lo is None:
                failed.append(f"clear rank-1 cannot be told from chance ({interval.reason})")
            elif interval.lo <= guess:
                failed.append(
                    f"clear rank-1 {rank1:.3f} [{interval.lo:.3f}, {interval.hi:.3f}] is not above chance {guess:.3f}"
                )
        if len(view.pairs.genuine) and len(view.pairs.impostor):
            error = verification.eer(view.pairs.genuine, view.pairs.impostor).value
            if error > protocol.max_clear_eer:
                failed.append(f"clear EER {error:.3f} is above {protocol.max_clear_eer:g}")
        else:
            failed.append("clear EER needs genuine and impostor pairs")
        return _Check(not failed, f"untrusted, attacker sanity check failed: {', '.join(failed)}" if failed else ""), targets


def _blind_spots(table: Table, recognizer: str, layout: Comparison, enrolled: Floats) -> str:
    """Images that count although nothing is known about them, and images that cannot count."""
    dark = int((np.isnan(table.embeddings[recognizer][layout.probes]).any(1) & ~table.withheld[layout.probes]).sum())
    void = int(np.isnan(enrolled).any(1).sum())
    alone = int((layout.mates == 0).sum())
    return _notes(
        f"{dark} released probes without an embedding, counted as no information" if dark else "",
        f"{void} gallery images without an embedding, ranked last" if void else "",
        f"{alone} probes without another image of their person, in no identification rate" if alone else "",
    )


def _acquisition(table: Table, figures: _Figures, named: Any) -> list[Row]:
    """Rates of withheld images, and of images without a face among the released ones."""
    names, person = np.unique(table.subjects, return_inverse=True)
    fta = table.fta & ~table.withheld
    counts = {"n_failed": int(table.withheld.sum()), "n_fta": int(fta.sum())}
    rows = []
    for name, event, of in (("fta", fta, ~table.withheld), ("withheld", table.withheld, np.ones(table.n, np.bool_))):
        events, trials = (intervals.per_person(person, x, len(names)) for x in (event, of))
        row: Row = named(name, n_images=int(of.sum()), n_persons=int(np.count_nonzero(trials)), **counts)
        if not of.any():
            rows.append(_refuse(row, "no image was released" if table.n else "no images"))
        else:
            rows.append(_put(row, events.sum() / trials.sum(), figures.rates(events[:, None], trials, "person bootstrap")[0]))
    return rows


def _rows(view: _View, layout: Comparison, figures: _Figures, targets: list[_Target], named: Any) -> list[Row]:
    rows = []
    ranks = figures.protocol.ranks
    tried = {"n_images": int(view.tried.sum()), "n_persons": int(np.count_nonzero(view.tried))}
    rank_rows = [named(f"rank{k}", **tried) for k in ranks]
    if view.chance is None:
        rows += [_refuse(row, _NO_MATES if view.probes else "no probes under this convention") for row in rank_rows]
    else:
        columns = [k - 1 for k in ranks]
        values = _rates(view.hits, view.tried)
        found = figures.rates(view.hits[:, columns], view.tried, "person bootstrap, gallery fixed")
        for k, row, interval in zip(ranks, rank_rows, found, strict=True):
            if k > layout.size:
                rows.append(_refuse(row, f"rank {k} is beyond the {layout.size} gallery images"))
            else:
                row = replace(row, chance=float(view.chance[k - 1]))
                rows.append(_put(row, values[k - 1], interval))

    pairs = view.pairs
    seen = {"n_images": view.probes, "n_persons": view.probe_persons}
    eer_row, auc_row = named("eer", chance=0.5, **seen), named("auc", chance=0.5, **seen)
    missing = "no genuine pairs" if not len(pairs.genuine) else "" if len(pairs.impostor) else "one person: no impostor pairs"
    if missing:
        rows += [_refuse(eer_row, missing), _refuse(auc_row, missing)]
    else:
        value = verification.eer(pairs.genuine, pairs.impostor).value
        rows.append(_put(eer_row, value, figures.equal_error(pairs, value)))
        value = verification.auc(pairs.genuine, pairs.impostor)
        rows.append(_put(auc_row, value, figures.area(pairs, value)))

    for x, threshold, reason in targets:
        names = (f"tmr@fmr={x:g}", f"fnmr@fmr={x:g}", f"fmr@fmr={x:g}")
        if threshold is None or missing:
            rows += [_refuse(named(name, **seen), reason or missing) for name in names]
            continue
        fmr = verification.accepted_rate(pairs.impostor, threshold)
        fixed = {"threshold": threshold, "realised_fmr": fmr, **seen}
        trials = np.bincount(pairs.genuine_person, minlength=len(layout.persons)).astype(np.float64)
        accepted = intervals.per_person(pairs.genuine_person, pairs.genuine >= np.float32(threshold), len(layout.persons))
        events = np.column_stack([accepted, trials - accepted])
        tmr, fnmr = figures.rates(events, trials, "person bootstrap, threshold fixed")
        # An attacker who knows nothing accepts genuine pairs as often as impostors.
        rows.append(_put(named(names[0], chance=fmr, **fixed), accepted.sum() / trials.sum(), tmr))
        rows.append(_put(named(names[1], chance=1 - fmr, **fixed), events[:, 1].sum() / trials.sum(), fnmr))
        rows.append(_put(named(names[2], **fixed), fmr, figures.false_matches(pairs, threshold, fmr)))
    return rows


def _curves(view: _View, layout: Comparison, figures: _Figures, base: Row) -> list[Curve]:
    """CMC with pointwise bands, and a thinned DET curve."""
    point = partial(
        Curve, base.dataset, base.method, recognizer=base.recognizer, attacker=base.attacker, convention=base.convention
    )
    curves: list[Curve] = []
    if view.chance is not None:
        ranks = min(CMC_RANKS, layout.size)
        bands = figures.rates(view.hits[:, :ranks], view.tried, "person bootstrap, gallery fixed")
        rate = _rates(view.hits, view.tried)
        curves += [point(curve="cmc", x=float(k + 1), y=float(rate[k]), lo=bands[k].lo, hi=bands[k].hi) for k in range(ranks)]
    if len(view.pairs.genuine) and len(view.pairs.impostor):
        det = verification.thin(verification.roc(view.pairs.genuine, view.pairs.impostor))
        curves += [point(curve="det", x=float(x), y=float(y)) for x, y in zip(det.fmr, det.fnmr, strict=True)]
    return curves


def _worst(
    contenders: list[tuple[str, str, _View]],
    suspects: list[str],
    table: Table,
    layout: Comparison,
    figures: _Figures,
    named: Any,
) -> Row:
    """The headline: rank-1 of the most successful trusted attack; the maximum itself is bootstrapped."""
    left_out = f"not trusted and left out: {', '.join(suspects)}" if suspects else ""
    withheld = table.withheld[layout.probes]
    counts = {"n_failed": int(withheld.sum()), "n_fta": int((table.fta[layout.probes] & ~withheld).sum())}
    mated = [c for c in contenders if c[2].chance is not None]
    if not mated:
        reason = (
            _NO_MATES if contenders else "no trusted recogniser" if suspects else "no recogniser has embeddings in both tables"
        )
        return _refuse(named("worst_rank1", recognizer="max()", trusted=False, note=left_out, **counts), reason)
    view = mated[0][2]
    assert view.chance is not None
    value, interval, optimism = figures.worst(np.column_stack([v.hits[:, 0] for _, _, v in mated]), view.tried)
    rates = _rates(np.column_stack([v.hits[:, 0] for _, _, v in mated]), view.tried).tolist()
    best = [f"{a} with {r}" for (a, r, _), rate in zip(mated, rates, strict=True) if rate == max(rates)]
    several = len(mated) > 1
    row: Row = named(
        "worst_rank1",
        recognizer=f"max({', '.join(dict.fromkeys(r for _, r, _ in mated))})",
        attacker=", ".join(dict.fromkeys(a for a, _, _ in mated)),
        chance=float(view.chance[0]),
        n_images=int(view.tried.sum()),
        n_persons=int(np.count_nonzero(view.tried)),
        note=_notes(
            f"attained by {' and '.join(best)}",
            f"taking the largest of {len(mated)} adds about {optimism:.4f} (bootstrap estimate)" if several else "",
            left_out,
        ),
        **counts,
    )
    return _put(row, value, interval)
