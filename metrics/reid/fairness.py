"""Re-identification per group of persons, and the largest gap between groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from deidbench.metrics.base import Protocol, Quantity, Table
from deidbench.records import Row
from deidbench.stats import intervals
from deidbench.stats.evidence import Evidence
from deidbench.stats.groups import MIN_PERSONS, group_rates, holm, largest_gap
from deidbench.stats.intervals import Interval

#: To be reported by the metric that calls :func:`rows`.
QUANTITIES = (
    Quantity("reid.group_rank1", "Re-identification rate at rank 1 of a group of persons", "rate", False, "privacy", "reid"),
    Quantity("reid.group_gap", "Largest gap between groups in the re-identification rate", "rate", False, "privacy", "reid"),
)

#: Attributes that name a group of persons: attribute -> (grouping, name of 0, name of 1).  Others say something about an
#: image (Smiling, Wearing_Hat), not about who is in it.
GROUP_ATTRIBUTES: Mapping[str, tuple[str, str, str]] = {
    "Male": ("sex", "female", "male"),
    "Young": ("age", "not young", "young"),
}


def image_groups(table: Table) -> dict[str, npt.NDArray[np.str_]]:
    """Every grouping of the table's images: name -> (n,) of labels, "" where unknown; sorted by name.

    The table's own groups, and those of :data:`GROUP_ATTRIBUTES` that it does not have.
    """
    out = {name: np.asarray(column, np.str_) for name, column in table.groups.items()}
    for attribute, (name, zero, one) in GROUP_ATTRIBUTES.items():
        if attribute in table.attributes and name not in out:
            value = table.attributes[attribute]
            out[name] = np.where(value == 1, one, np.where(value == 0, zero, ""))
    return {name: out[name] for name in sorted(out) if (out[name] != "").any()}


def person_groups(table: Table, persons: Sequence[str]) -> dict[str, npt.NDArray[np.str_]]:
    """Every grouping of ``persons`` (sorted, unique): name -> (P,) of labels, "" where unknown.

    Where a person's images disagree (somebody was photographed young and old), the label of most of them counts; where
    the most frequent ones tie, the person belongs to no group.  Images without a label have no say.
    """
    names = np.asarray(persons, np.str_)
    who = np.searchsorted(names, table.subjects)
    who = np.where(who < len(names), who, 0) if len(names) else who
    found = names[who] == table.subjects if len(names) else np.zeros(table.n, np.bool_)
    out = {}
    for grouping, labels in image_groups(table).items():
        levels, code = np.unique(labels, return_inverse=True)
        votes = np.zeros((len(names), len(levels)), np.intp)
        np.add.at(votes, (who[found], code[found]), 1)
        votes[:, levels == ""] = 0
        most = votes.max(1, initial=0)
        clear = (most > 0) & ((votes == most[:, None]).sum(1) == 1)
        out[grouping] = np.where(clear, levels[votes.argmax(1)], "").astype(np.str_)
    return out


def rows(
    base: Row,
    hits: npt.NDArray[np.float64],
    trials: npt.NDArray[np.float64],
    persons: Sequence[str],
    groups: Mapping[str, npt.NDArray[np.str_]],
    protocol: Protocol,
    *,
    guesses: npt.NDArray[np.float64] | None = None,
    failed: npt.NDArray[np.float64] | None = None,
    fta: npt.NDArray[np.float64] | None = None,
    min_persons: int = MIN_PERSONS,
    permutations: int = 10_000,
) -> list[Row]:
    """A row per group and one per grouping for its largest gap; [] where there are no groups.

    base: a row of the attack with everything that stays the same (method, attacker, recogniser, convention, note ...).
    hits: (P,) expected hits at rank 1, summed over a person's probes.  trials: (P,) probes.  persons: (P,) names, sorted.
    groups: grouping -> (P,) labels, as from :func:`person_groups`.  guesses: (P,) expected hits of guessing; without it
    each group's chance is that of ``base``.  failed, fta: (P,) probes that were withheld, and released ones without a face;
    counted as 0 where they are not given.

    label: "sex: female" and "sex".  The chance of a gap is what shuffled group labels give, which is not 0; p-values are
    corrected by Holm over the groupings that can be compared.  Intervals use the draws of all persons.
    """
    draws = intervals.person_draws(persons, protocol.replicates, protocol.seed)
    rate, gap = QUANTITIES
    out: list[Row] = []
    base = replace(base, evidence=None, value=None, lo=None, hi=None, ci_level=None, ci_method="", ci_reason="", reason="", threshold=None,
                   realised_fmr=None)  # fmt: skip
    none = np.zeros(len(trials))
    lost = {"n_failed": none if failed is None else failed, "n_fta": none if fta is None else fta}
    gaps = {
        name: largest_gap(
            hits, trials, labels, draws, protocol.confidence, min_persons=min_persons, permutations=permutations,
            seed=protocol.seed, what="person bootstrap of the largest gap, gallery fixed",
        )
        for name, labels in sorted(groups.items())
    }  # fmt: skip
    tested = [name for name, found in gaps.items() if found.p is not None]
    corrected = dict(zip(tested, holm([gaps[name].p or 0.0 for name in tested]).tolist(), strict=True))
    for name, found in gaps.items():
        labels = groups[name]
        what = "gallery fixed"
        for one in group_rates(hits, trials, labels, draws, protocol.confidence, what=what):
            chance = base.chance
            if guesses is not None and one.trials:
                chance = float(guesses[labels == one.name].sum() / one.trials)
            small = "" if one.persons >= min_persons else f"fewer than {min_persons} persons: not in the gap"
            row = replace(
                base,
                metric=rate.name,
                unit=rate.unit,
                higher_is_better=rate.higher_is_better,
                label=f"{name}: {one.name}",
                chance=chance,
                n_images=round(one.trials),
                n_persons=one.persons,
                **{count: round(x[labels == one.name].sum()) for count, x in lost.items()},
                note=_joined(base.note, small),
            )
            mine = labels == one.name
            kept = Evidence.sums("rate", np.where(mine, hits, 0), np.where(mine, trials, 0)) if one.trials else None
            out.append(replace(_put(row, one.rate, one.interval, "no trials"), evidence=kept))
        row = replace(
            base,
            metric=gap.name,
            unit=gap.unit,
            higher_is_better=gap.higher_is_better,
            label=name,
            chance=found.expected,
            n_images=round(found.trials),
            n_persons=found.persons,
            **{count: round(x[np.isin(labels, found.groups)].sum()) for count, x in lost.items()},
        )
        unknown = int(np.count_nonzero((labels == "") & (trials > 0)))
        said = [f"{unknown} {'person is' if unknown == 1 else 'persons are'} in no group of {name}"] if unknown else []
        if found.p is not None:
            family = f", {corrected[name]:.3g} by Holm over {len(tested)} groupings" if len(tested) > 1 else ""
            said = [
                f"{found.highest} over {found.lowest}" if found.value else "no gap",
                f"shuffled group labels give {found.expected:.4f} on average, p = {found.p:.3g}{family}",
                *said,
            ]
        out.append(_put(replace(row, note=_joined(base.note, *said)), found.value, found.interval, found.reason))
    return out


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _put(row: Row, value: float | None, interval: Interval, reason: str) -> Row:
    return replace(
        row,
        value=value,
        reason=reason if value is None else "",
        lo=interval.lo,
        hi=interval.hi,
        ci_level=interval.level if interval.lo is not None else None,
        ci_method=interval.method,
        ci_reason=interval.reason if value is not None else reason,
    )
