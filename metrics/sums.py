"""Sums by person that can be made in parts: exact, so that it does not matter who adds what to what, and when.

A float64 is a whole number of steps of 2**-1074.  Sums are kept as such whole numbers (Python's, of any length), and rounded once, when
they are read: every way of cutting the values into parts and of merging the parts gives the same sum, bit for bit.  Persons are the unit
of all intervals (:mod:`deidbench.stats.intervals`), so sums and numbers of values by person are all that rates and means need.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

P = TypeVar("P", bound=Hashable)

#: Steps in 1; all finite float64 are whole numbers of them.
_ONE = 1 << 1074


class Sums(Generic[P]):
    """How many values each person has, and their sum."""

    def __init__(self) -> None:
        self._of: dict[P, tuple[int, int]] = {}

    @classmethod
    def of(cls, persons: Iterable[P], values: npt.ArrayLike) -> Sums[P]:
        """persons: one for each of the values (n,).  Raises ValueError for a value that is not finite."""
        out: Sums[P] = cls()
        for person, value in zip(persons, np.asarray(values, np.float64).tolist(), strict=True):
            try:
                top, bottom = value.as_integer_ratio()
            except (OverflowError, ValueError):
                raise ValueError(f"{value} of {person!r} cannot be added up") from None
            n, total = out._of.get(person, (0, 0))
            out._of[person] = n + 1, total + top * (_ONE // bottom)
        return out

    def merge(self, other: Sums[P]) -> Sums[P]:
        """Of both parts; a person may be in both."""
        out: Sums[P] = Sums()
        out._of = dict(self._of)
        for person, (n, total) in other._of.items():
            m, before = out._of.get(person, (0, 0))
            out._of[person] = m + n, before + total
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sums) and self._of == other._of

    __hash__ = None  # type: ignore[assignment]

    @property
    def persons(self) -> list[P]:
        """In the order of their names."""
        return sorted(self._of)  # type: ignore[type-var]

    @property
    def n(self) -> int:
        return sum(n for n, _ in self._of.values())

    def columns(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Sum (rounded once) and number of values of each of :attr:`persons`: float64 (P,), int64 (P,)."""
        both = [self._of[p] for p in self.persons]
        return np.array([total / _ONE for _, total in both], np.float64), np.array([n for n, _ in both], np.int64)

    def mean(self) -> float:
        """Over all values, rounded once.  Raises ValueError without values."""
        if not self.n:
            raise ValueError("there are no values")
        return sum(total for _, total in self._of.values()) / (_ONE * self.n)
