"""Is a candidate no worse than a baseline?  Decisions against a margin that was fixed beforehand.

"Not significantly different" is no pass: with few persons nothing is significant.  A pass is an interval that lies where it
should, and a study too small to tell is INCONCLUSIVE and says roughly how many persons would tell.

Convention throughout: difference = candidate - baseline, **oriented so that positive is worse** (turn the sign where higher
is better).  The bounds are one-sided ones of error alpha each, i.e. the ends of an interval of level 1 - 2 alpha.

Sources: Schuirmann 1987 (two one-sided tests); Wellek 2010, "Testing Statistical Hypotheses of Equivalence and
Noninferiority"; Hesterberg 2015 (expanded percentile bounds); Hanley & Lippman-Hand 1983 (nothing seen).
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.stats.intervals import Interval, percentile_interval, zero_events_bound


class Outcome(StrEnum):
    """What the interval says about the margin."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Decision(NamedTuple):
    """A decision and what it rests on.

    difference, lower, upper: positive is worse; None where it could not be computed.  persons_needed: with an INCONCLUSIVE
    outcome, roughly how many persons like these would decide it (see :func:`persons_needed`); None where none would, or
    nothing is known.  reason: one sentence.
    """

    outcome: Outcome
    difference: float | None
    lower: float | None
    upper: float | None
    margin: float
    persons: int | None
    persons_needed: int | None
    reason: str

    @property
    def passed(self) -> bool:
        """Only a PASS is one."""
        return self.outcome is Outcome.PASS


def one_sided_bounds(
    replicates: npt.ArrayLike,
    persons: int,
    alpha: float = 0.05,
    *,
    what: str = "paired person bootstrap",
    largest: float | None = None,
) -> Interval:
    """Lower and upper one-sided bounds, each wrong with probability alpha, of a paired difference.

    replicates: (B,) of the difference, the same draws for both methods, NaN where a replicate has no figure.  persons: that
    carry information.  The bounds are those of :func:`deidbench.stats.intervals.percentile_interval` at level 1 - 2 alpha,
    with its expanded tails.

    largest: the most by which a person's difference can lie from 0 (1 for a rate).  Where no replicate shows any difference
    at all, the bounds are then those of nothing seen: with probability 1 - alpha fewer than
    ``1 - alpha**(1 / persons)`` of all persons (about 3 / persons) differ, each by no more than ``largest``.  Without it
    there are no bounds, as there is no spread to resample.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is the error of one side, between 0 and 0.5, not {alpha!r}")
    if largest is not None and not largest > 0:
        raise ValueError(f"the largest difference of a person is positive, not {largest!r}")
    values = np.asarray(replicates, np.float64)
    level = 1 - 2 * alpha
    if largest is not None and persons >= 2 and len(values) and bool((np.abs(values) <= 1e-12 * largest).all()):
        bound = largest * zero_events_bound(persons, 1 - alpha)
        return Interval(-bound, bound, level, f"no difference seen: one-sided bounds over {persons} persons")
    return percentile_interval(values, level, persons, what)


def persons_needed(persons: int, half_width: float, distance: float) -> int | None:
    """How many persons shrink ``half_width`` below ``distance``, if it goes with 1 / sqrt(persons) and nothing else moves.

    A rough guide: at that number the expected bound just reaches the margin, so about every second such study decides; twice
    as many is safer.  None where no number does (distance 0), or where the half-width is not known (0 or less: a skewed
    bootstrap distribution that has the estimate outside its own interval).
    """
    if not distance > 0 or not half_width > 0 or persons < 1:
        return None
    ratio = (half_width / distance) ** 2
    return math.floor(persons * ratio * (1 + 1e-12)) + 1


def _checked(
    difference: float | None, lower: float | None, upper: float | None, margin: float
) -> tuple[float, float, float] | None:
    """The three numbers, or None where one is lacking."""
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"a margin is how much worse is still accepted: finite and not negative, not {margin!r}")
    if difference is None or lower is None or upper is None or math.isnan(difference + lower + upper):
        return None
    if lower > upper:
        raise ValueError(f"the lower bound {lower!r} lies above the upper bound {upper!r}")
    return float(difference), float(lower), float(upper)


def _unknown(difference: float | None, margin: float, persons: int | None, reason: str) -> Decision:
    known = None if difference is None or math.isnan(difference) else float(difference)
    reason = reason or ("there is no difference to judge" if known is None else "there is no interval")
    return Decision(Outcome.INCONCLUSIVE, known, None, None, margin, persons, None, reason)


def noninferiority(
    difference: float | None,
    lower: float | None,
    upper: float | None,
    margin: float,
    *,
    persons: int | None = None,
    reason: str = "",
) -> Decision:
    """Is the candidate worse than the baseline by less than the margin?

    difference, lower, upper: estimate and one-sided bounds, positive is worse.  margin: >= 0, in the same unit; 0 asks for
    "better".  persons: on whom the interval rests, for ``persons_needed``.  reason: why there is no interval, if so.

    PASS: upper < margin.  FAIL: lower > margin, the whole interval is beyond.  Else INCONCLUSIVE: with the estimate inside
    the margin it takes persons for the upper bound to come inside too, with the estimate beyond it for the lower bound to
    go beyond; exactly at the margin no number decides.
    """
    numbers = _checked(difference, lower, upper, margin)
    if numbers is None:
        return _unknown(difference, margin, persons, reason)
    d, lo, hi = numbers
    if hi < margin:
        return Decision(
            Outcome.PASS, d, lo, hi, margin, persons, None, f"the upper bound {hi:.4g} is inside the margin {margin:.4g}"
        )
    if lo > margin:
        return Decision(
            Outcome.FAIL, d, lo, hi, margin, persons, None, f"the lower bound {lo:.4g} is beyond the margin {margin:.4g}"
        )
    needed = None
    if persons is not None:
        needed = persons_needed(persons, hi - d if d < margin else d - lo, abs(margin - d))
    said = f"the interval {lo:.4g} to {hi:.4g} has the margin {margin:.4g} in it"
    return Decision(Outcome.INCONCLUSIVE, d, lo, hi, margin, persons, needed, said)


def equivalence(
    difference: float | None,
    lower: float | None,
    upper: float | None,
    margin: float,
    *,
    persons: int | None = None,
    reason: str = "",
) -> Decision:
    """Is the candidate unchanged, i.e. neither worse nor better by the margin or more?  Two one-sided tests (TOST).

    Arguments as for :func:`noninferiority`.  PASS: -margin < lower and upper < margin; both one-sided tests then reject at
    alpha.  FAIL: the whole interval is beyond one of the margins.  Else INCONCLUSIVE.
    """
    numbers = _checked(difference, lower, upper, margin)
    if numbers is None:
        return _unknown(difference, margin, persons, reason)
    d, lo, hi = numbers
    if -margin < lo and hi < margin:
        said = f"the interval {lo:.4g} to {hi:.4g} is inside +-{margin:.4g}"
        return Decision(Outcome.PASS, d, lo, hi, margin, persons, None, said)
    if lo > margin or hi < -margin:
        said = f"the interval {lo:.4g} to {hi:.4g} is outside +-{margin:.4g}"
        return Decision(Outcome.FAIL, d, lo, hi, margin, persons, None, said)
    needed = None
    if persons is not None:
        if abs(d) < margin:  # both bounds have to come inside; one that is there already stays there
            ways = [(hi - d, margin - d)] * (hi >= margin) + [(d - lo, d + margin)] * (lo <= -margin)
            needed = max((n for way in ways if (n := persons_needed(persons, *way)) is not None), default=None)
        else:
            needed = persons_needed(persons, d - lo if d > 0 else hi - d, abs(d) - margin)
    said = f"the interval {lo:.4g} to {hi:.4g} is neither inside nor outside +-{margin:.4g}"
    return Decision(Outcome.INCONCLUSIVE, d, lo, hi, margin, persons, needed, said)
