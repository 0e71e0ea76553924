"""The interface of a metric and the columns that it reads."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.records import Curve, Row
from deidbench.types import Face, Image


@dataclass(frozen=True)
class Quantity:
    """A figure that a metric reports: its unit, direction, the axis it speaks for and its family for corrections.

    axis: "privacy" (of the anonymised person), "utility" or "speed".  higher_is_better is from the point of view of
    somebody who chooses an anonymizer: a re-identification rate is better when lower.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    axis: str
    family: str


@dataclass(frozen=True)
class Protocol:
    """The numbers of the evaluation protocol that metrics need (suite table ``[protocol]``).

    comparison: "leave-one-out" or "split" (``enrolled`` seeded gallery images per person, the rest are probes).
    """

    name: str = "deidbench-v1"
    comparison: str = "leave-one-out"
    enrolled: int = 1
    seed: int = 0
    ranks: tuple[int, ...] = (1, 5, 10)
    fmr: tuple[float, ...] = (0.1, 0.01, 0.001)
    confidence: float = 0.95
    replicates: int = 10_000
    curve_replicates: int = 1_000
    #: Floors of the attacker's sanity check on clear images.
    min_clear_rank1: float = 0.5
    max_clear_eer: float = 0.15


@dataclass(frozen=True, eq=False)
class Table:
    """Per-image columns of one method on one data set, in the order of the samples; arrays share length n.

    status: anonymizer status per image (``Status`` values).  withheld: nothing was released.
    fta: released, but no face was found in it; the embedding is then that of the attacker's fallback crop.
    embeddings: recognizer -> float32 (n, d), L2-normalised; a row is NaN where there is nothing to embed (withheld).
    measures: per-image numbers, float64 (n,), NaN where there is none.
    attributes: label -> float64 (n,) of 0/1/NaN.  emotion: (n,) of class names, "" where unknown.
    """

    dataset: str
    method: str
    ids: npt.NDArray[np.str_]
    subjects: npt.NDArray[np.str_]
    status: npt.NDArray[np.str_]
    withheld: npt.NDArray[np.bool_]
    fta: npt.NDArray[np.bool_]
    embeddings: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    measures: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    attributes: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    emotion: npt.NDArray[np.str_] | None = None

    @property
    def n(self) -> int:
        return len(self.ids)


class Findings(NamedTuple):
    """What a metric found: rows, and the points of its curves."""

    rows: list[Row]
    curves: list[Curve]


class Metric(ABC):
    """A metric measures images one at a time (:meth:`measure`), or scores columns (:meth:`score`), or both."""

    name: ClassVar[str] = ""
    #: Raise it when a figure for the same input changes.
    version: ClassVar[str] = "1"
    citation: ClassVar[str] = ""
    #: Every figure this metric may report.
    quantities: ClassVar[tuple[Quantity, ...]] = ()
    #: Names of the per-image columns that :meth:`measure` returns; empty when it has none.
    measures: ClassVar[tuple[str, ...]] = ()

    def params(self) -> dict[str, Any]:
        """Parameters that change the figures (part of the cache keys)."""
        return {}

    def measure(self, original: Image, anonymised: Image, face: Face | None) -> Mapping[str, float]:
        """Per-image numbers, one per name in ``measures``; NaN where one cannot be computed.

        original, anonymised: RGB uint8 of the same shape (the suite resizes an output of another size).
        face: the subject's face in the original, None where none was found.
        """
        raise NotImplementedError

    def score(self, clear: Table, anonymised: Table, protocol: Protocol) -> Findings:
        """Rows and curves for one method.  Pure: no files, no global state, randomness from ``protocol.seed`` only."""
        raise NotImplementedError


def quantities(metrics: Sequence[type[Metric]]) -> dict[str, Quantity]:
    """All quantities of ``metrics`` by name."""
    return {q.name: q for metric in metrics for q in metric.quantities}
