"""Corrections for having tested more than once.

The family is what the caller says it is (one attacker's groups, forty attributes, all pairs of methods on one metric): a
p-value here means nothing without the name of its family beside it.

Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def holm(p: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's adjusted p-values of one family (Holm 1979), in the order given: float64 (m,), at most 1.

    Raises ValueError for anything outside [0, 1], NaN included.
    """
    x = np.asarray(p, np.float64)
    if np.isnan(x).any() or (x < 0).any() or (x > 1).any():
        raise ValueError("p-values lie in [0, 1]")
    order = np.argsort(x, kind="stable")
    out = np.empty(len(x))
    out[order] = np.minimum(1, np.maximum.accumulate(x[order] * np.arange(len(x), 0, -1)))
    return out


def holm_known(p: Sequence[float | None]) -> list[float | None]:
    """:func:`holm` where some comparisons gave no p-value: these stay None and do not count in the family.

    None means here that nothing could be tested (two methods with the same figures on every person), whatever the rest
    of the family looks like; a test that was made and told nothing has p = 1, and counts.
    """
    tested = iter(holm([x for x in p if x is not None]).tolist())
    return [None if x is None else next(tested) for x in p]


def permutations_needed(family: int, alpha: float = 0.05) -> int:
    """How many random permutations a family of tests takes, for its smallest adjusted p-value to be able to reach alpha.

    The smallest p of n random permutations is 1 / (n + 1), and Holm multiplies it by the size of the family.  This is
    ten times the bare minimum, so that the p-value that decides does not hang on one draw.
    """
    if family < 1 or not 0 < alpha < 1:
        raise ValueError(f"a family of {family} tests at alpha {alpha!r}: at least one test, and alpha between 0 and 1")
    return int(np.ceil(10 * family / alpha))
