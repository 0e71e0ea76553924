"""Rates of groups of persons, and the largest gap between them.

The largest of several differences is biased upwards: it is above zero even where all groups are alike, and so is its
bootstrap interval.  A gap therefore goes with its permutation null: group labels are shuffled over persons, group sizes
and each person's events and trials stay as they are.

Sources: Good 2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses" (null of a shuffled label);
Phipson & Smyth 2010 (the (1 + b) / (1 + n) p-value).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.stats.intervals import Interval, percentile_interval, rate_interval, ratio_replicates
from deidbench.stats.multiplicity import holm as holm  # was here once, and callers know it under this name

#: A group with fewer persons has a rate, but is not in the gap.
MIN_PERSONS = 10
#: Gaps closer than this are equal: sums of fractional hits differ in their last bits with the order of summation.
_TIE = 1e-9
#: Shuffled labels up to this many bytes are kept for the next caller.
_CACHED_BYTES = 1 << 26


class GroupRate(NamedTuple):
    """Events over trials of one group.  rate: None where the group has no trials."""

    name: str
    rate: float | None
    interval: Interval
    events: float
    trials: float
    persons: int


class Gap(NamedTuple):
    """Largest difference between the rates of two groups.

    value: highest minus lowest rate, in [0, 1]; None where fewer than two groups have enough persons (``reason`` says so).
    highest, lowest: these groups, the first in the alphabet of those that tie.  expected: mean gap under shuffled labels.
    p: share of shuffled gaps that are at least as large, (1 + b) / (1 + n).  groups: that were compared.  persons: in them.
    """

    value: float | None
    interval: Interval
    highest: str = ""
    lowest: str = ""
    expected: float | None = None
    p: float | None = None
    groups: tuple[str, ...] = ()
    persons: int = 0
    trials: float = 0.0
    reason: str = ""


def _checked(
    hits: npt.ArrayLike, trials: npt.ArrayLike, group: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.str_]]:
    h, t, g = np.asarray(hits, np.float64), np.asarray(trials, np.float64), np.asarray(group, np.str_)
    if not h.ndim == 1 or not h.shape == t.shape == g.shape:
        raise ValueError(f"hits {h.shape}, trials {t.shape} and groups {g.shape} are one number or label per person")
    if np.any(h < 0) or np.any(h > t * (1 + 1e-9)):
        raise ValueError("a rate has events between 0 and its trials; is this a percentage?")
    return h, t, g


def group_rates(
    hits: npt.ArrayLike,
    trials: npt.ArrayLike,
    group: npt.ArrayLike,
    draws: npt.NDArray[np.uint8],
    level: float = 0.95,
    *,
    what: str = "",
) -> list[GroupRate]:
    """The rate of every group, in the order of the alphabet; "" is no group.

    hits, trials: (P,) sums over a person's images, 0 <= hits <= trials.  group: (P,) labels.
    draws: (B, P) from :func:`deidbench.stats.intervals.person_draws`, drawn from *all* persons, so that the intervals of all
    groups and methods belong together; how many persons of a group a replicate holds varies with it.
    """
    h, t, g = _checked(hits, trials, group)
    known = t > 0
    out = []
    for name in sorted(set(g.tolist()) - {""}):
        mine = known & (g == name)
        events, tried, persons = float(h[mine].sum()), float(t[mine].sum()), int(mine.sum())
        if not persons:
            out.append(GroupRate(name, None, Interval.none(level, "no trials"), 0.0, 0.0, 0))
            continue
        interval = rate_interval(np.where(mine, h, 0), np.where(mine, t, 0), draws, level, what=what)
        out.append(GroupRate(name, min(events / tried, 1.0), interval, events, tried, persons))
    return out


def _shuffled(code: bytes, permutations: int, seed: int) -> npt.NDArray[np.uint8]:
    """(permutations, P) shuffles of the group numbers ``code``.  Depends on nothing but the arguments."""
    rng = np.random.default_rng(
        [seed & 0xFFFFFFFFFFFFFFFF, int.from_bytes(hashlib.sha256(b"groups" + code).digest()[:16], "big")]
    )
    out = np.tile(np.frombuffer(code, np.uint8), (permutations, 1))
    rng.permuted(out, axis=1, out=out)
    out.flags.writeable = False
    return out


_shuffled_kept = lru_cache(maxsize=8)(_shuffled)


def _gaps(
    h: npt.NDArray[np.float64], t: npt.NDArray[np.float64], labels: npt.NDArray[np.uint8], groups: int
) -> npt.NDArray[np.float64]:
    """Highest minus lowest rate for each row of labels (n, P)."""
    columns = np.column_stack([h, t])
    low, high = np.full(len(labels), np.inf), np.full(len(labels), -np.inf)
    step = max(1, (1 << 22) // max(1, labels.shape[1]))
    for start in range(0, len(labels), step):
        part = labels[start : start + step]
        for k in range(groups):
            sums = (part == k).astype(np.float64) @ columns
            rate = sums[:, 0] / sums[:, 1]
            here = slice(start, start + step)
            low[here], high[here] = np.minimum(low[here], rate), np.maximum(high[here], rate)
    out: npt.NDArray[np.float64] = high - low
    return out


def largest_gap(
    hits: npt.ArrayLike,
    trials: npt.ArrayLike,
    group: npt.ArrayLike,
    draws: npt.NDArray[np.uint8],
    level: float = 0.95,
    *,
    min_persons: int = MIN_PERSONS,
    permutations: int = 10_000,
    seed: int = 0,
    what: str = "person bootstrap of the largest gap",
) -> Gap:
    """The largest gap between groups of at least ``min_persons`` persons with trials, with interval and null.

    Arguments as for :func:`group_rates`.  Persons of other groups and of none ("") take no part in the permutation.
    The gap is taken anew in each replicate.  A gap of exactly 1 (one group always, another never) has no spread to
    resample: its lower bound is that of both groups together, each at half the error.
    """
    h, t, g = _checked(hits, trials, group)
    if min_persons < 1:
        raise ValueError("min_persons is at least 1")
    known = t > 0
    names = [n for n in sorted(set(g.tolist()) - {""}) if np.count_nonzero(known & (g == n)) >= min_persons]
    if len(names) < 2:
        count = f"only {names[0]!r} has" if names else "no group has"
        reason = f"a gap takes two groups, and {count} {min_persons} persons or more"
        return Gap(None, Interval.none(level, reason), groups=tuple(names), reason=reason)
    if len(names) > 255:
        raise ValueError(f"{len(names)} groups of persons: at most 255 can be compared")
    inside = known & np.isin(g, names)
    h, t, g, draws = h[inside], t[inside], g[inside], draws[:, inside]
    code = np.searchsorted(names, g).astype(np.uint8)
    sizes = np.bincount(code)
    rates = np.array([h[code == k].sum() / t[code == k].sum() for k in range(len(names))])
    value = float(rates.max() - rates.min())
    top, bottom = int(np.argmax(rates > rates.max() - _TIE)), int(np.argmax(rates < rates.min() + _TIE))

    make = _shuffled_kept if permutations * len(code) <= _CACHED_BYTES else _shuffled
    null = _gaps(h, t, make(code.tobytes(), permutations, seed), len(names))
    p = (1 + np.count_nonzero(null >= value - _TIE)) / (1 + permutations)

    smallest = int(sizes.min())
    if value >= 1 - _TIE:
        alpha = (1 - level) / 2
        lost = sum(-np.expm1(np.log(alpha) / sizes[k]) for k in (top, bottom))
        interval = Interval(
            max(0.0, float(1 - lost)),
            1.0,
            level,
            f"one group always, another never: one-sided bound over {sizes[top]} and {sizes[bottom]} persons",
        )
    else:
        each = [ratio_replicates(np.where(code == k, h, 0), np.where(code == k, t, 0), draws) for k in range(len(names))]
        replicates = np.max(each, axis=0) - np.min(each, axis=0)  # NaN where a replicate lacks a whole group
        if rates[bottom] < _TIE or rates[top] > 1 - _TIE:
            what += " (too narrow: a group in which nothing, or all, was hit has no spread to resample)"
        interval = percentile_interval(replicates, level, smallest, what)
    return Gap(
        value,
        interval,
        names[top],
        names[bottom],
        float(null.mean()),
        float(p),
        tuple(names),
        len(code),
        float(t.sum()),
    )
