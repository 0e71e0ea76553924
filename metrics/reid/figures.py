"""Figures of attacks with their intervals, as rows and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.metrics.base import Protocol, Table
from deidbench.metrics.reid import openset, verification
from deidbench.metrics.reid.attack import MAX_PAIRS, Probes, Searches, View, rates, view
from deidbench.metrics.reid.comparison import Comparison
from deidbench.records import Curve, Row
from deidbench.stats import calibration, intervals, linkability, roc
from deidbench.stats.evidence import Evidence
from deidbench.stats.intervals import Interval
from deidbench.stats.pairs import AUC_BINS, EXACT_AUC_PERSONS, Pairs, bootstrap_all, recentred
from deidbench.types import Floats

if TYPE_CHECKING:
    from deidbench.metrics.reid.streaming import Streamed

#: Longest rank of a CMC curve.
CMC_RANKS = 50
#: Bins of the score distributions that are kept for the report.
SCORE_BINS = 60
NO_MATES = "no probe has another image of its person in the gallery"


class Target(NamedTuple):
    """A threshold fixed beforehand for an FMR or an FPIR, or the reason why there is none."""

    rate: float
    threshold: float | None
    reason: str


class Thresholds(NamedTuple):
    """Thresholds fixed beforehand on impostors: for verification (fmr) and for open-set identification (fpir)."""

    fmr: list[Target]
    fpir: list[Target]

    @classmethod
    def none(cls, protocol: Protocol, reason: str) -> Thresholds:
        return cls([Target(x, None, reason) for x in protocol.fmr], [Target(x, None, reason) for x in protocol.fpir])


def thresholds(own: Probes, protocol: Protocol, seen: View | None = None) -> Thresholds:
    """Thresholds of an attacker's own comparisons, none of which is under evaluation in the attacker's condition.

    seen: the headline view of ``own``, where it is known.
    """
    seen = seen or view(own, "headline", 1)
    persons = len(own.layout.persons)
    fmr = []
    for x in protocol.fmr:
        if seen.pairs is not None:
            reason = verification.unsupported(x, len(seen.pairs.impostor), persons)
            fmr.append(Target(x, None if reason else verification.threshold_at_fmr(seen.pairs.impostor, x), reason))
        else:
            assert seen.streamed is not None, "the headline leaves nothing out"
            reason = verification.unsupported(x, seen.streamed.impostor.total, persons)
            fmr.append(Target(x, None if reason else seen.streamed.impostor.threshold_at_fmr(x), reason))
    fpir = []
    for x in protocol.fpir:
        reason = openset.unsupported(x, len(seen.searches.best_other), seen.probe_persons)
        fpir.append(Target(x, None if reason else openset.threshold_at_fpir(seen.searches.best_other, x), reason))
    return Thresholds(fmr, fpir)


@dataclass(frozen=True, eq=False)
class Figures:
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
        return [intervals.rate_interval(column, trials, level=self.level, what=what) for column in events.T]

    def _read_off(self, value: float, replicates: npt.NDArray[np.float64], persons: int, what: str) -> Interval:
        """Interval from replicates of a figure in [0, 1] whose extremes mean that no event, or nothing else, was seen."""
        if persons >= 2 and value == 0:
            return intervals.zero_events(persons, self.level)
        if persons >= 2 and value == 1:
            return intervals.all_events(persons, self.level)
        return intervals.percentile_interval(replicates, self.level, persons, what)

    def whole(self, pairs: Pairs, rows: Mapping[str, Row], kept: dict[str, Any]) -> list[Row]:
        """EER, AUC, Cllr_min and D_sys, read off the whole score distributions.  rows: blank ones by name.

        kept: gets the DET curve with its band ("det"), which comes from the same replicates.
        """
        persons = len(np.unique(pairs.genuine_person))
        linked = linkability.d_sys(pairs.genuine, pairs.impostor)
        levels = roc.levels(pairs.genuine, pairs.impostor)  # the sorting is what takes time
        values = {
            "eer": verification.eer(pairs.genuine, pairs.impostor).value,
            "auc": levels.auc(),
            "cllr_min": float(calibration.cllr_min_from_counts(levels.genuine[None], levels.impostor[None])[0]),
            "d_sys": linked.value,
        }
        det = verification.thin(levels.roc())
        replicates = bootstrap_all(pairs, self.pair_draws, det.fmr, levels)._asdict()
        kept["det"] = det, self._band(replicates["fnmr"], persons)
        binned = f", {AUC_BINS} score bins" if len(self.persons) > EXACT_AUC_PERSONS else ""
        how = {
            "eer": "person bootstrap of pairs, threshold recomputed",
            "auc": f"person bootstrap of pairs{binned}",
            "cllr_min": f"person bootstrap of pairs about the figure itself, {AUC_BINS} score bins",
            "d_sys": f"person bootstrap of pairs about the figure itself, {linked.bins} bins, omega 1",
        }
        for name in ("cllr_min", "d_sys"):
            replicates[name] = recentred(replicates[name], values[name])
        out = []
        for name, row in rows.items():
            if name == "d_sys":
                row = replace(row, note=notes(row.note, f"{linked.bins} bins, omega = 1"))
            interval = self._read_off(values[name], replicates[name], persons, how[name])
            out.append(put(row, values[name], interval, Evidence.distribution(replicates[name], persons)))
        return out

    def _band(self, fnmr: npt.NDArray[np.float64], persons: int) -> npt.NDArray[np.float64] | None:
        """Pointwise bounds (2, f) of FNMR at fixed FMRs from its replicates (B, f); None with fewer than two persons."""
        if persons < 2 or np.isnan(fnmr).any(0).all():
            return None
        tail = intervals.expanded_tail(self.level, persons)
        return np.asarray(np.nanquantile(fnmr, [tail, 1 - tail], axis=0))

    def false_matches(self, pairs: Pairs, threshold: float) -> Interval:
        accepted = pairs.impostor >= np.float32(threshold)
        return intervals.false_match_interval(
            accepted, pairs.impostor_a, pairs.impostor_b, len(self.persons), self.level, what="threshold fixed"
        )

    def worst(self, hits: npt.NDArray[np.float64], trials: npt.NDArray[np.float64]) -> tuple[float, Interval, float]:
        """Largest of several rates on the same probes.  hits: (P, k).  Returns value, interval and bootstrap optimism.

        The optimism is what taking the maximum adds, by a bootstrap in which it is taken anew from the same draws for all columns.
        """
        value = float(rates(hits, trials).max())
        replicates = intervals.ratio_replicates(hits, trials, self.draws).max(1)
        interval = intervals.largest_interval(hits, trials, self.level, what="gallery fixed")
        known = replicates[~np.isnan(replicates)]
        return value, interval, float(known.mean() - value) if len(known) else 0.0


def notes(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def put(row: Row, value: float, interval: Interval, evidence: Evidence | None = None) -> Row:
    return replace(
        row,
        evidence=evidence,
        value=float(value),
        lo=interval.lo,
        hi=interval.hi,
        ci_level=interval.level if interval.lo is not None else None,
        ci_method=interval.method,
        ci_reason=interval.reason,
    )


def refuse(row: Row, reason: str) -> Row:
    return replace(row, value=None, reason=reason, ci_reason=reason)


def blind_spots(table: Table, recognizer: str, layout: Comparison, enrolled: Floats) -> str:
    """Images that count although nothing is known about them, and images that cannot count."""
    dark = int((np.isnan(table.embeddings[recognizer][layout.probes]).any(1) & ~table.withheld[layout.probes]).sum())
    void = int(np.isnan(enrolled).any(1).sum())
    alone = int((layout.mates == 0).sum())
    return notes(
        f"{dark} released probes without an embedding, counted as no information" if dark else "",
        f"{void} gallery images without an embedding, ranked last" if void else "",
        f"{alone} probes without another image of their person, in no identification rate" if alone else "",
    )


def acquisition_rows(table: Table, figures: Figures, named: Any) -> list[Row]:
    """Rates of withheld images, and of images without a face among the released ones."""
    names, person = np.unique(table.subjects, return_inverse=True)
    fta = table.fta & ~table.withheld
    counts = {"n_failed": int(table.withheld.sum()), "n_fta": int(fta.sum())}
    rows = []
    for name, event, of in (("fta", fta, ~table.withheld), ("withheld", table.withheld, np.ones(table.n, np.bool_))):
        events, trials = (intervals.per_person(person, x, len(names)) for x in (event, of))
        row: Row = named(name, n_images=int(of.sum()), n_persons=int(np.count_nonzero(trials)), **counts)
        if not of.any():
            rows.append(refuse(row, "no image was released" if table.n else "no images"))
        else:
            interval = figures.rates(events[:, None], trials, "")[0]
            rows.append(put(row, events.sum() / trials.sum(), interval, Evidence.sums("rate", events, trials)))
    return rows


def attack_rows(view: View, layout: Comparison, figures: Figures, fixed_at: Thresholds, named: Any) -> list[Row]:
    rows = []
    ranks = figures.protocol.ranks
    tried = {"n_images": int(view.tried.sum()), "n_persons": int(np.count_nonzero(view.tried))}
    rank_rows = [named(f"rank{k}", **tried) for k in ranks]
    if view.chance is None:
        rows += [refuse(row, NO_MATES if view.probes else "no probes under this convention") for row in rank_rows]
    else:
        columns = [k - 1 for k in ranks]
        values = rates(view.hits, view.tried)
        found = figures.rates(view.hits[:, columns], view.tried, "gallery fixed")
        for k, row, interval in zip(ranks, rank_rows, found, strict=True):
            if k > layout.size:
                rows.append(refuse(row, f"rank {k} is beyond the {layout.size} gallery images"))
            else:
                row = replace(row, chance=float(view.chance[k - 1]))
                rows.append(put(row, values[k - 1], interval, Evidence.sums("rate", view.hits[:, k - 1], view.tried)))

    pairs = view.pairs
    seen = {"n_images": view.probes, "n_persons": view.probe_persons}
    # What an attacker at chance gets: D_sys of finite samples is above 0, so it has none.
    guess = {"eer": 0.5, "auc": 0.5, "cllr_min": 1.0, "d_sys": None}
    whole = {name: named(name, chance=chance, **seen) for name, chance in guess.items()}
    if pairs is None:
        made = _streamed_rows(view.streamed, whole, figures, fixed_at, partial(named, **seen))
        return rows + made + _open_set(view.searches, figures, fixed_at.fpir, named, len(layout.persons))
    missing = "no genuine pairs" if not len(pairs.genuine) else "" if len(pairs.impostor) else "one person: no impostor pairs"
    if missing:
        rows += [refuse(row, missing) for row in whole.values()]
    else:
        rows += figures.whole(pairs, whole, view.kept)

    for x, threshold, reason in fixed_at.fmr:
        names = (f"tmr@fmr={x:g}", f"fnmr@fmr={x:g}", f"fmr@fmr={x:g}")
        if threshold is None or missing:
            rows += [refuse(named(name, **seen), reason or missing) for name in names]
            continue
        fmr = verification.accepted_rate(pairs.impostor, threshold)
        fixed = {"threshold": threshold, "realised_fmr": fmr, **seen}
        trials = np.bincount(pairs.genuine_person, minlength=len(layout.persons)).astype(np.float64)
        accepted = intervals.per_person(pairs.genuine_person, pairs.genuine >= np.float32(threshold), len(layout.persons))
        events = np.column_stack([accepted, trials - accepted])
        tmr, fnmr = figures.rates(events, trials, "threshold fixed")
        # An attacker who knows nothing accepts genuine pairs as often as impostors.
        matched, missed = (Evidence.sums("rate", column, trials) for column in events.T)
        rows.append(put(named(names[0], chance=fmr, **fixed), accepted.sum() / trials.sum(), tmr, matched))
        rows.append(put(named(names[1], chance=1 - fmr, **fixed), events[:, 1].sum() / trials.sum(), fnmr, missed))
        rows.append(put(named(names[2], **fixed), fmr, figures.false_matches(pairs, threshold)))
    return rows + _open_set(view.searches, figures, fixed_at.fpir, named, len(layout.persons))


def _streamed_rows(
    found: Streamed | None, whole: Mapping[str, Row], figures: Figures, fixed_at: Thresholds, named: Any
) -> list[Row]:
    """Figures of score distributions that were only counted, with intervals over groups of persons."""
    from deidbench.metrics.reid import streaming

    names = [(f"tmr@fmr={t.rate:g}", f"fnmr@fmr={t.rate:g}", f"fmr@fmr={t.rate:g}") for t in fixed_at.fmr]
    if found is None or not found.genuine.total or not found.impostor.total:
        reason = f"more than {MAX_PAIRS} pairs are counted for the headline only" if found is None else "no pairs of one kind"
        return [refuse(row, reason) for row in (*whole.values(), *(named(n) for three in names for n in three))]
    groups = len(found.genuine_by_group)
    draws = intervals.person_draws(
        [f"{g:04d}" for g in range(groups)], figures.protocol.curve_replicates, figures.protocol.seed
    )
    replicates = streaming.group_replicates(found, draws)
    how = f"bootstrap of {groups} groups of persons, pairs counted"
    counts = [np.concatenate([[x.none], x.counts]) for x in (found.genuine, found.impostor)]
    linked = _gathered(counts, linkability.MAX_BINS)
    values = {
        "eer": (found.eer().value, replicates.eer),
        "auc": (found.auc(), replicates.auc),
        "cllr_min": (float(calibration.cllr_min_from_counts(counts[0][None], counts[1][None])[0]), None),
        "d_sys": (float(linkability.d_sys_from_counts(linked[0][None], linked[1][None])[0]), None),
    }
    unknown = f"no interval: more than {MAX_PAIRS} pairs are counted, not kept"
    rows = []
    for name, row in whole.items():
        value, drawn = values[name]
        interval = (
            Interval.none(figures.level, unknown)
            if drawn is None
            else intervals.percentile_interval(drawn, figures.level, groups, how)
        )
        kept = None if drawn is None else Evidence.distribution(drawn, groups)
        rows.append(put(row, value, interval, kept))
    for target, three in zip(fixed_at.fmr, names, strict=True):
        if target.threshold is None:
            rows += [refuse(named(n), target.reason) for n in three]
            continue
        fmr, tmr = found.impostor.rate(target.threshold), found.genuine.rate(target.threshold)
        fixed = {"threshold": target.threshold, "realised_fmr": fmr}
        for n, value, chance in zip(three, (tmr, 1 - tmr, fmr), (fmr, 1 - fmr, None), strict=True):
            rows.append(put(named(n, **fixed, chance=chance), value, Interval.none(figures.level, unknown)))
    return rows


def _gathered(counts: Sequence[npt.NDArray[np.int64]], bins: int) -> list[npt.NDArray[np.int64]]:
    """Counts per level, the first of comparisons that were not made, in ``bins`` of equal width from the lowest to the highest
    score of all, and one for those.
    """
    seen = np.flatnonzero(sum(c[1:] for c in counts))
    if not len(seen):
        return [c[:1] for c in counts]
    first, width = int(seen[0]), int(seen[-1] - seen[0]) + 1
    starts = np.unique(first + (np.arange(bins) * width) // bins)
    return [np.concatenate([c[:1], np.add.reduceat(c[1:], starts)]) for c in counts]


def _open_set(searches: Searches, figures: Figures, targets: list[Target], named: Any, persons: int) -> list[Row]:
    """FNIR and the realised FPIR; the searched-for person is taken out of the gallery for the latter."""
    rows = []
    person, mated = searches.person, searches.mated
    trials = np.bincount(person, minlength=persons).astype(np.float64)
    tried = np.bincount(person[mated], minlength=persons).astype(np.float64)
    for x, threshold, reason in targets:
        fnir = named(f"fnir@fpir={x:g}", n_images=int(tried.sum()), n_persons=int(np.count_nonzero(tried)))
        fpir = named(f"fpir@fpir={x:g}", n_images=int(trials.sum()), n_persons=int(np.count_nonzero(trials)))
        reason = reason or ("" if trials.any() else "no probes under this convention")
        if threshold is None or reason:
            rows += [refuse(fnir, reason), refuse(fpir, reason)]
            continue
        fnir, fpir = replace(fnir, threshold=threshold), replace(fpir, threshold=threshold)
        alarms = intervals.per_person(person, searches.best_other >= np.float32(threshold), persons)
        if tried.any():
            found = searches.hit * (searches.best_mate >= np.float32(threshold))
            missed = tried - intervals.per_person(person[mated], found[mated], persons)
            what = "gallery and threshold fixed"
            interval = figures.rates(missed[:, None], tried, what)[0]
            rows.append(put(fnir, missed.sum() / tried.sum(), interval, Evidence.sums("rate", missed, tried)))
        else:
            rows.append(refuse(fnir, NO_MATES))
        interval = figures.rates(alarms[:, None], trials, "gallery and threshold fixed")[0]
        rows.append(put(fpir, alarms.sum() / trials.sum(), interval, Evidence.sums("rate", alarms, trials)))
    return rows


def attack_curves(view: View, layout: Comparison, figures: Figures, base: Row) -> list[Curve]:
    """CMC and thinned DET curve with pointwise bands, and the distributions of the scores."""
    point = partial(
        Curve, base.dataset, base.method, recognizer=base.recognizer, attacker=base.attacker, convention=base.convention
    )
    curves: list[Curve] = []
    if view.chance is not None:
        ranks = min(CMC_RANKS, layout.size)
        bands = figures.rates(view.hits[:, :ranks], view.tried, "gallery fixed")
        rate = rates(view.hits, view.tried)
        curves += [point(curve="cmc", x=float(k + 1), y=float(rate[k]), lo=bands[k].lo, hi=bands[k].hi) for k in range(ranks)]
    both = view.pairs is not None and len(view.pairs.genuine) and len(view.pairs.impostor)
    if view.streamed is not None or both:
        band = None
        if "det" in view.kept:
            det, band = view.kept["det"]
        elif view.pairs is not None:
            det = verification.thin(verification.roc(view.pairs.genuine, view.pairs.impostor))
        else:
            assert view.streamed is not None
            det = verification.thin(view.streamed.roc())
        for i, (x, y) in enumerate(zip(det.fmr, det.fnmr, strict=True)):
            # everything accepted, or nothing: no figure of the data
            lo, hi = (None, None) if band is None or x in (0, 1) else band[:, i].tolist()
            curves.append(point(curve="det", x=float(x), y=float(y), lo=lo, hi=hi))
    if view.pairs is not None and both:
        curves += _distributions(view.pairs, point)
    return curves


def _distributions(pairs: Pairs, point: Any) -> list[Curve]:
    """Shares of genuine and impostor pairs per bin of the score; comparisons that could not be made are in no bin."""
    finite = [x[np.isfinite(x)] for x in (pairs.genuine, pairs.impostor)]
    ends = [f(x) for x in finite if len(x) for f in (np.min, np.max)]
    if not ends or min(ends) == max(ends):
        return []
    edges = np.linspace(min(ends), max(ends), SCORE_BINS + 1)
    curves = []
    for kind, x, of in zip(("genuine", "impostor"), finite, (pairs.genuine, pairs.impostor), strict=True):
        share = np.histogram(x, edges)[0] / len(of)
        curves += [point(curve=f"scores_{kind}", x=float(e), y=float(s)) for e, s in zip(edges, share, strict=False)]
    return curves


def worst_case(
    contenders: list[tuple[str, str, View]],
    suspects: list[str],
    table: Table,
    layout: Comparison,
    figures: Figures,
    named: Any,
) -> Row:
    """The headline: rank-1 of the most successful trusted attack; the maximum itself is bootstrapped."""
    left_out = f"not trusted and left out: {', '.join(suspects)}" if suspects else ""
    withheld = table.withheld[layout.probes]
    counts = {"n_failed": int(withheld.sum()), "n_fta": int((table.fta[layout.probes] & ~withheld).sum())}
    mated = [c for c in contenders if c[2].chance is not None]
    if not mated:
        reason = (
            NO_MATES if contenders else "no trusted recogniser" if suspects else "no recogniser has embeddings in both tables"
        )
        return refuse(named("worst_rank1", recognizer="max()", trusted=False, note=left_out, **counts), reason)
    view = mated[0][2]
    assert view.chance is not None
    value, interval, optimism = figures.worst(np.column_stack([v.hits[:, 0] for _, _, v in mated]), view.tried)
    shares = rates(np.column_stack([v.hits[:, 0] for _, _, v in mated]), view.tried).tolist()
    best = [f"{a} with {r}" for (a, r, _), share in zip(mated, shares, strict=True) if share == max(shares)]
    several = len(mated) > 1
    row: Row = named(
        "worst_rank1",
        recognizer=f"max({', '.join(dict.fromkeys(r for _, r, _ in mated))})",
        attacker=", ".join(dict.fromkeys(a for a, _, _ in mated)),
        chance=float(view.chance[0]),
        n_images=int(view.tried.sum()),
        n_persons=int(np.count_nonzero(view.tried)),
        note=notes(
            f"attained by {' and '.join(best)}",
            f"taking the largest of {len(mated)} adds about {optimism:.4f} (bootstrap estimate)" if several else "",
            left_out,
        ),
        **counts,
    )
    names = [f"{a} with {r}" for a, r, _ in mated]
    return put(row, value, interval, Evidence.sums("largest", *(v.hits[:, 0] for _, _, v in mated), view.tried, names=names))
