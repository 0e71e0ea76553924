"""Confidence intervals that respect that images of one person are dependent.

Everything here resamples *persons*.  Draws depend on nothing but the seed and the set of persons, so two methods that
are scored on the same persons get the same draws and their differences are paired, in whatever order they are scored.

Sources: Field & Welsh 2007 (cluster bootstrap); Hesterberg 2015, "What teachers should know about the bootstrap"
(expanded percentile interval); Owen & Eckles 2012 and Fogliato et al. 2024, arXiv 2306.01198 (double-or-nothing
identity bootstrap); Hanley & Lippman-Hand 1983 (zero events).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.stats import wilson

#: Replicates in which a figure cannot be computed (an empty denominator) are left out; above this share, no interval.
MAX_EMPTY = 0.05
#: Draws up to this many bytes are kept for the next caller.
_CACHED_BYTES = 1 << 26
#: Rows drawn at once.  Part of the stream's definition: another value gives other draws.
_CHUNK = 256
#: From this many persons on, draws come from another stream, in less than half the time.
_LARGE = 1000
#: Rows of that stream drawn at once, each chunk from a seed of its own.  Part of its definition as well.
_LARGE_CHUNK = 32


class Interval(NamedTuple):
    """A confidence interval.  ``lo`` and ``hi`` are None where it cannot be computed, and ``reason`` says why."""

    lo: float | None
    hi: float | None
    level: float
    method: str
    reason: str = ""

    @classmethod
    def none(cls, level: float, reason: str) -> Interval:
        """No interval, because of ``reason``."""
        return cls(None, None, level, "", reason)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level!r}")


def _entropy(persons: Sequence[str], seed: int, purpose: str) -> list[int]:
    listed = list(persons)
    if listed != sorted(set(listed)):
        raise ValueError("persons must be sorted and unique: they are the columns of the draws")
    digest = hashlib.sha256("\0".join([purpose, *listed]).encode()).digest()
    return [seed & 0xFFFFFFFFFFFFFFFF, int.from_bytes(digest[:16], "big")]


def _multinomial(persons: tuple[str, ...], replicates: int, seed: int) -> npt.NDArray[np.uint8]:
    entropy = _entropy(persons, seed, "multinomial")
    p = len(persons)
    if p >= _LARGE:
        return _multinomial_of_many(p, replicates, entropy)
    rng = np.random.default_rng(entropy)
    # With p < 256 a count cannot exceed 255; with more persons (mean 1 each) it will not in the age of the universe.
    out = np.empty((replicates, p), np.uint8)
    for start in range(0, replicates, _CHUNK):
        picked = rng.integers(0, p, size=(_CHUNK, p), dtype=np.uint16)  # whole chunks: fewer replicates are a prefix of more
        for row, who in zip(out[start : start + _CHUNK], picked, strict=False):  # row by row: the counts stay in the cache
            row[:] = np.bincount(who, minlength=p)
    out.flags.writeable = False
    return out


def _multinomial_of_many(p: int, replicates: int, entropy: list[int]) -> npt.NDArray[np.uint8]:
    """The same distribution, through Poisson counts, which can be read off a table.

    Independent Poisson counts are multinomial once their sum is given, whatever the sum.  So a row of Poisson counts with
    a mean of somewhat less than one (rows whose sum exceeds p are drawn again, a decision about the sum alone), filled up
    to p by single picks, is an exact multinomial draw of p.
    """
    mean = 1 - 3 / np.sqrt(p)  # the sum exceeds p in one row of 740
    distribution = _poisson_distribution(mean)
    table = _poisson_table(distribution)
    out = np.empty((replicates, p), np.uint8)

    def draw(start: int) -> None:
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy, spawn_key=(start,))))
        counts = _poisson(rng, _LARGE_CHUNK * p, table, distribution).reshape(_LARGE_CHUNK, p)
        lacking = p - counts.sum(1, dtype=np.uint32).astype(np.int64)
        while (over := np.flatnonzero(lacking < 0)).size:
            counts[over] = _poisson(rng, len(over) * p, table, distribution).reshape(-1, p)
            lacking[over] = p - counts[over].sum(1, dtype=np.int64)
        row = np.repeat(np.arange(_LARGE_CHUNK) * p, lacking)
        np.add.at(counts.reshape(-1), row + rng.integers(0, p, size=len(row)), np.uint8(1))
        out[start : start + _LARGE_CHUNK] = counts[: replicates - start]

    starts = range(0, replicates, _LARGE_CHUNK)
    if out.size < 1 << 22:
        for start in starts:
            draw(start)
    else:
        with ThreadPoolExecutor(_threads()) as pool:
            list(pool.map(draw, starts))
    out.flags.writeable = False
    return out


def _threads() -> int:
    """As many as BLAS would use: OMP_NUM_THREADS, else the processors that this process may run on."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


#: In the table, of a byte that does not decide the count.
_UNDECIDED = 255


def _poisson_distribution(mean: float) -> npt.NDArray[np.float64]:
    """P(count <= k) for k = 0, 1, ... until it is 1 in float64."""
    k = np.arange(1, 30)
    terms = np.exp(-mean) * np.concatenate([[1.0], np.cumprod(mean / k)])
    below: npt.NDArray[np.float64] = np.minimum(np.cumsum(terms), 1.0)
    return below


def _poisson_table(distribution: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Counts of two uniform bytes at once: the first 8 bits of a uniform number decide its count, or nearly always do."""
    ends = np.arange(257) / 256
    first = np.searchsorted(distribution, ends[:-1], "right")
    last = np.searchsorted(distribution, np.nextafter(ends[1:], 0), "right")
    one = np.where(first == last, first, _UNDECIDED).astype(np.uint8)
    both = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    return one[both].view(np.uint16)


def _poisson(
    rng: np.random.Generator, n: int, table: npt.NDArray[np.uint16], distribution: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """n independent Poisson counts by inversion of uniform numbers of 8 + 53 bits."""
    words = rng.integers(0, (1 << 64) - 1, size=-(-n // 8), dtype=np.uint64, endpoint=True)
    bits = words.astype("<u8", copy=False).view(np.uint16)
    counts = np.take(table, bits, mode="wrap").view(np.uint8)
    undecided = np.flatnonzero(counts == _UNDECIDED)
    uniform = (bits.view(np.uint8)[undecided] + rng.random(len(undecided))) / 256
    counts[undecided] = np.searchsorted(distribution, uniform, "right")
    return counts[:n]


def _double_or_nothing(persons: tuple[str, ...], replicates: int, seed: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(_entropy(persons, seed, "double-or-nothing"))
    out = np.empty((replicates, len(persons)), np.uint8)
    for start in range(0, replicates, _CHUNK):
        out[start : start + _CHUNK] = 2 * rng.integers(0, 2, size=(_CHUNK, len(persons)), dtype=np.int64)[: replicates - start]
    out.flags.writeable = False
    return out


_multinomial_kept = lru_cache(maxsize=4)(_multinomial)
_double_or_nothing_kept = lru_cache(maxsize=2)(_double_or_nothing)


def person_draws(persons: Sequence[str], replicates: int, seed: int) -> npt.NDArray[np.uint8]:
    """How often each person is drawn in each bootstrap replicate.

    persons: sorted, unique.  Returns read-only uint8 (replicates, len(persons)); every row sums to len(persons).
    The first rows are the same whatever ``replicates``.  Raises ValueError for unsorted or repeated persons.
    """
    make = _multinomial_kept if replicates * len(persons) <= _CACHED_BYTES else _multinomial
    return make(tuple(persons), replicates, seed)


def double_or_nothing_draws(persons: Sequence[str], replicates: int, seed: int) -> npt.NDArray[np.uint8]:
    """Weights 0 or 2 with probability one half per person: read-only uint8 (replicates, len(persons))."""
    make = _double_or_nothing_kept if replicates * len(persons) <= _CACHED_BYTES else _double_or_nothing
    return make(tuple(persons), replicates, seed)


def zero_events_bound(persons: int, level: float) -> float:
    """Upper bound for a rate of which no event was seen in ``persons`` independent persons.

    The p at which seeing none still has probability 1 - level: ``1 - (1 - level)**(1 / persons)``, about 3 / persons
    at 95 % (the rule of three; one-sided).
    """
    _check_level(level)
    if persons < 1:
        raise ValueError("no persons")
    return float(-np.expm1(np.log(1 - level) / persons))


def zero_events(persons: int, level: float) -> Interval:
    """[0, bound] where no event was seen."""
    return Interval(0.0, zero_events_bound(persons, level), level, f"no event seen: one-sided bound over {persons} persons")


def all_events(persons: int, level: float) -> Interval:
    """[bound, 1] where nothing but events was seen."""
    return Interval(
        1 - zero_events_bound(persons, level), 1.0, level, f"all events seen: one-sided bound over {persons} persons"
    )


def expanded_tail(level: float, persons: int) -> float:
    """Tail probability of the expanded percentile interval (Hesterberg 2015, section 4.2).

    A percentile interval is too narrow with few units: it has normal instead of t quantiles, and a variance with n
    instead of n - 1.  Reading the bootstrap distribution at Phi(-sqrt(n / (n - 1)) t_{n-1}) mends both to first order.
    """
    from scipy.special import ndtr, stdtrit

    _check_level(level)
    t = stdtrit(persons - 1, (1 + level) / 2)
    return float(ndtr(-np.sqrt(persons / (persons - 1)) * t))


def percentile_interval(replicates: npt.ArrayLike, level: float, persons: int, method: str, *, expand: bool = True) -> Interval:
    """Interval from bootstrap replicates of one figure.

    replicates: (B,), NaN where the figure could not be computed in a replicate.  persons: that carry information.
    expand: read at the expanded tails (:func:`expanded_tail`).  No interval with fewer than two persons, with more than
    5 % NaN, or when all replicates agree.
    """
    _check_level(level)
    values = np.asarray(replicates, np.float64)
    if persons < 2:
        return Interval.none(level, _few(persons))
    good = values[~np.isnan(values)]
    empty = len(values) - len(good)
    if len(good) == 0 or empty > MAX_EMPTY * len(values):
        return Interval.none(level, f"too few persons: {empty} of {len(values)} bootstrap replicates have an empty denominator")
    if np.ptp(good) <= 1e-12 * max(1.0, float(np.abs(good).max())):
        return Interval.none(level, NO_VARIANCE)
    tail = expanded_tail(level, persons) if expand else (1 - level) / 2
    lo, hi = np.quantile(good, [tail, 1 - tail])
    said = f"{method}, {len(values)} replicates"
    if empty:
        said += f" ({empty} empty ones left out)"
    return Interval(float(lo), float(hi), level, said)


def ratio_replicates(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, draws: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """Bootstrap replicates of ``sum(numerator) / sum(denominator)`` over persons: a weight-matrix product.

    numerator: (P,) or (P, k) per-person sums.  denominator: (P,).  draws: (B, P).
    Returns float64 (B,) or (B, k), NaN where a replicate has no denominator.
    """
    num = np.asarray(numerator, np.float64)
    den = np.asarray(denominator, np.float64)
    if den.shape != (draws.shape[1],) or num.shape[:1] != den.shape:
        raise ValueError(f"per-person sums of shape {num.shape} and {den.shape} do not fit draws over {draws.shape[1]} persons")
    columns = np.column_stack([num.reshape(len(den), -1), den])
    out = np.empty((len(draws), columns.shape[1]))
    # Sums of whole numbers that stay below 2**24 are exact in float32 too, in half the time.
    size = np.abs(columns).sum(0).max(initial=0)
    whole = size < 1 << 24 and bool((columns == np.rint(columns)).all())
    short = columns.astype(np.float32) if whole else None
    step = max(1, (1 << 20) // max(1, draws.shape[1]))  # 8 MB of float64 weights at a time
    for start in range(0, len(draws), step):
        rows = draws[start : start + step]
        if short is not None and size * int(rows.max(initial=0)) < 1 << 24:
            out[start : start + step] = rows.astype(np.float32) @ short
        else:
            out[start : start + step] = rows.astype(np.float64) @ columns
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(out[:, -1:] > 0, out[:, :-1] / out[:, -1:], np.nan)
    return ratio.reshape(len(draws), *num.shape[1:])


def rate_interval(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    draws: npt.NDArray[np.uint8] | None = None,
    level: float = 0.95,
    *,
    what: str = "",
) -> Interval:
    """Interval of a rate: events over trials, both summed per person.  Wilson's, with the variance between persons.

    numerator: (P,) expected or counted events, 0 <= numerator <= denominator.  denominator: (P,) trials; a person
    without any carries no information.  draws: not needed; that they are of as many persons is checked.  what: said of the
    method, e.g. "gallery fixed".
    No events, or nothing but events: a one-sided bound over persons, as an estimate would say 0 +- 0.

    The percentile interval of the person bootstrap holds its level far from 0 and 1 only: where a few of 100 persons make up
    a rate of 0.02, 95 % of it covered 86 % (tests/test_stats_coverage.py).
    """
    _check_level(level)
    num, den = _per_person_sums(numerator, denominator, draws)
    persons = int(np.count_nonzero(den > 0))
    if persons < 2:
        return Interval.none(level, _few(persons))
    if not num.any():
        return zero_events(persons, level)
    if np.array_equal(num, den):
        return all_events(persons, level)
    if _constant(wilson.residuals(num, den)):
        return Interval.none(level, NO_VARIANCE)
    bounds = _wilson(num, den, level)
    # Of a kind of person of which there was none, nothing was seen either: fewer events never give a higher bound.
    unseen = zero_events_bound(persons, level)
    lo, hi = min(bounds.lo, 1 - unseen), max(bounds.hi, unseen)
    return Interval(lo, hi, level, _said("Wilson score, variance between persons", what))


def _wilson(num: npt.NDArray[np.float64], den: npt.NDArray[np.float64], level: float) -> wilson.Bounds:
    critical = wilson.critical_value(level, wilson.equal_persons(den))
    return wilson.score_bounds(float(num.sum() / den.sum()), wilson.clustered_size(num, den), critical)


def largest_interval(numerators: npt.ArrayLike, denominator: npt.ArrayLike, level: float = 0.95, *, what: str = "") -> Interval:
    """Interval of the largest of several true rates on the same trials, as of the worst case over attackers.

    numerators: (P, k) events per person and attacker.  denominator: (P,) trials.
    The largest rate seen is likely to be one that had luck, so it lies too high, and so do its bootstrap replicates: of six
    attackers who are equally good, their percentile interval holds the common rate every second time or less
    (tests/test_stats_coverage.py).  So the lower end is the largest of lower ends that hold together (Bonferroni, one k-th
    of the error each); the upper end is the largest of plain upper ends, as that of the truly worst attacker is among them.
    """
    _check_level(level)
    events, trials = np.asarray(numerators, np.float64), np.asarray(denominator, np.float64)
    if events.ndim != 2 or not events.shape[1] or len(events) != len(trials):
        raise ValueError(f"events of shape {events.shape} are not (persons, attackers) for {len(trials)} persons")
    k = events.shape[1]
    plain, strict = ([rate_interval(x, trials, level=y) for x in events.T] for y in (level, 1 - (1 - level) / k))
    if all(one.lo is None for one in plain):
        return plain[0]
    # A rate without variance between persons is as good as known.
    rates = [float(x.sum() / trials.sum()) for x in events.T]
    lo = max(rate if one.lo is None else one.lo for one, rate in zip(strict, rates, strict=True))
    hi = max(rate if one.hi is None else one.hi for one, rate in zip(plain, rates, strict=True))
    return Interval(lo, hi, level, _said(f"Wilson scores of {k}, lower end for the largest of them (Bonferroni)", what))


def difference_interval(
    numerator_a: npt.ArrayLike,
    denominator_a: npt.ArrayLike,
    numerator_b: npt.ArrayLike,
    denominator_b: npt.ArrayLike,
    level: float = 0.95,
    *,
    what: str = "",
) -> Interval:
    """Interval of rate A - rate B on the same persons, each as in :func:`rate_interval`; person i is row i of all four.

    Square-and-add of the two rates' Wilson bounds, with the correlation of what each person adds to the two
    (:func:`deidbench.stats.wilson.difference_bounds`); so a person's hardness counts once.  Where every person has the
    same two rates there is no difference at all, and its bound is that of :func:`zero_events`, to both sides.
    """
    _check_level(level)
    a, b = _per_person_sums(numerator_a, denominator_a), _per_person_sums(numerator_b, denominator_b)
    if len(a[0]) != len(b[0]):
        raise ValueError(f"{len(a[0])} and {len(b[0])} persons: a paired difference takes the same ones")
    persons = int(np.count_nonzero((a[1] > 0) & (b[1] > 0)))
    if persons < 2:
        return Interval.none(level, _few(persons))
    if np.array_equal(a, b):
        bound = zero_events_bound(persons, level)
        return Interval(-bound, bound, level, f"no person differs: one-sided bounds over {persons} persons")
    parts = [wilson.residuals(*x) for x in (a, b)]
    spread = float(np.sqrt((parts[0] @ parts[0]) * (parts[1] @ parts[1])))
    if spread > 0 and _constant(parts[0] - parts[1]):
        return Interval.none(level, NO_VARIANCE)
    rates, bounds = [float(x.sum() / n.sum()) for x, n in (a, b)], []
    for rate, (num, den) in zip(rates, (a, b), strict=True):
        own = int(np.count_nonzero(den > 0))
        if rate == 0:
            bounds.append(wilson.Bounds(0.0, zero_events_bound(own, level)))
        elif rate == 1:
            bounds.append(wilson.Bounds(1 - zero_events_bound(own, level), 1.0))
        elif not _constant(wilson.residuals(num, den)):
            bounds.append(_wilson(num, den, level))
        elif (num != np.rint(num)).any():
            # Expected events of tied scores, the same for all: the rate is known, as of an embedding that says nothing.
            bounds.append(wilson.Bounds(rate, rate))
        else:
            return Interval.none(level, NO_VARIANCE)
    if all(one.lo == one.hi for one in bounds):
        return Interval.none(level, NO_VARIANCE)
    correlation = float(np.clip(parts[0] @ parts[1] / spread, -1, 1)) if spread > 0 else 0.0
    found = wilson.difference_bounds(rates[0], bounds[0], rates[1], bounds[1], correlation)
    return Interval(*found, level, _said("square-and-add of Wilson scores, paired persons", what))


def false_match_interval(
    accepted: npt.NDArray[np.bool_],
    person_a: npt.NDArray[np.intp],
    person_b: npt.NDArray[np.intp],
    persons: int,
    level: float = 0.95,
    *,
    what: str = "",
) -> Interval:
    """Interval of an FMR: Wilson's, with a variance that knows which impostor pairs share a person (Fogliato et al. 2024).

    accepted: (m,), whether each impostor pair was accepted.  person_a, person_b: (m,) integers in [0, persons), never equal.
    No false match, or nothing else: a one-sided bound over persons.

    The authors read their variance with a normal quantile.  The t quantile of as many degrees of freedom as persons stand
    behind the variance is wider where a few persons make most of the false matches: with 40 persons and such wolves, 95 %
    intervals covered 88 % with the former and 94 % with the latter (tests/test_stats_coverage.py).
    """
    _check_level(level)
    code, cells = person_a * persons + person_b, persons * persons
    trials = np.bincount(code, minlength=cells).astype(np.float64).reshape(persons, persons)
    events = np.bincount(code[accepted], minlength=cells).astype(np.float64).reshape(persons, persons)
    known = int(np.count_nonzero(trials.any(0) | trials.any(1)))
    if known < 2:
        return Interval.none(level, _few(known))
    if not events.any():
        return zero_events(known, level)
    if np.array_equal(events, trials):
        return all_events(known, level)
    if known < 3:
        return Interval.none(level, "two persons: nothing is known about the spread between pairs of persons")
    if not wilson.pair_rate_variance(events, trials) > 0:
        return Interval.none(level, NO_VARIANCE)
    # Below four persons the t quantile grows without any more coverage (measured): these samples are saved by Wilson's form.
    support = max(wilson.supporting(wilson.pair_residuals(events, trials).sum(1)), min(known, 4))
    critical = wilson.critical_value(level, support)
    bounds = wilson.score_bounds(float(events.sum() / trials.sum()), wilson.pair_size(events, trials), critical)
    return Interval(*bounds, level, _said("Wilson score, pairs that share persons", what))


#: Reason of an interval that does not exist.
NO_VARIANCE = "no variance between persons"


def _few(persons: int) -> str:
    return f"{'one person' if persons == 1 else 'no person'}: nothing is known about the spread between persons"


def _said(method: str, what: str) -> str:
    return f"{method}, {what}" if what else method


def _constant(values: npt.NDArray[np.float64]) -> bool:
    """Do all agree, up to rounding?"""
    return float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max()))


def _per_person_sums(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, draws: npt.NDArray[np.uint8] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    num, den = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if num.shape != den.shape or num.ndim != 1 or (draws is not None and draws.shape[1] != len(num)):
        raise ValueError(f"per-person sums of shape {num.shape} and {den.shape} do not fit the persons")
    if np.any(num < 0) or np.any(num > den * (1 + 1e-9)):
        raise ValueError("a rate has events between 0 and its trials; is this a percentage?")
    return np.where(num > den * (1 - 1e-9), den, num), den  # sums of expected events are rounded


def mean_interval(
    sums: npt.ArrayLike,
    counts: npt.ArrayLike,
    draws: npt.NDArray[np.uint8],
    level: float = 0.95,
    *,
    what: str = "person bootstrap",
) -> Interval:
    """Interval of a mean over images: per-person sums (P,) over per-person counts (P,).  Any real values."""
    persons = int(np.count_nonzero(np.asarray(counts) > 0))
    return percentile_interval(ratio_replicates(sums, counts, draws), level, persons, what)


def per_person(person: npt.NDArray[np.intp], values: npt.ArrayLike, persons: int) -> npt.NDArray[np.float64]:
    """Sums of ``values`` (n,) or (n, k) per person: float64 (persons,) or (persons, k).  person: (n,) in [0, persons)."""
    x: npt.NDArray[Any] = np.asarray(values, np.float64)
    if x.ndim == 1:
        return np.bincount(person, weights=x, minlength=persons).astype(np.float64)
    return np.column_stack([np.bincount(person, weights=column, minlength=persons) for column in x.T]).astype(np.float64)
