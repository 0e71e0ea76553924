"""The interface of a metric and the columns that it reads."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.records import Curve, Row
from deidbench.types import Face, Image

if TYPE_CHECKING:
    from deidbench.datasets.base import Dataset
    from deidbench.metrics.reid.base import TrainedAttacker
    from deidbench.metrics.reid.training import Attempt


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
    fpir: false positive identification rates of open-set identification.
    level: "frame", or "crop" (see :class:`deidbench.pipeline.Plan`).
    templates: what a probe is compared with: each enrolled "image", or each person by the "mean" or the "max" of the scores
    of the person's enrolled images.
    seeds: of trained attackers; the strongest on validation persons counts.
    """

    name: str = "deidbench-v1"
    comparison: str = "leave-one-out"
    enrolled: int = 1
    seed: int = 0
    ranks: tuple[int, ...] = (1, 5, 10)
    fmr: tuple[float, ...] = (0.1, 0.01, 0.001)
    fpir: tuple[float, ...] = (0.1, 0.01)
    level: str = "frame"
    templates: str = "image"
    seeds: int = 3
    confidence: float = 0.95
    replicates: int = 10_000
    curve_replicates: int = 1_000
    #: Floors of the attacker's sanity check on clear images.
    min_clear_rank1: float = 0.5
    max_clear_eer: float = 0.15


@dataclass(frozen=True, eq=False)
class Reading:
    """What a classifier read off each of n images; rows are NaN where there was nothing to read (withheld).

    task, labels: see :class:`deidbench.metrics.models.base.Classifier`.  probabilities: float32 (n, len(labels)).
    features: float32 (n, d), d >= 0.
    """

    task: str
    labels: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    def take(self, which: npt.NDArray[np.intp]) -> Reading:
        return replace(self, probabilities=self.probabilities[which], features=self.features[which])


@dataclass(frozen=True, eq=False)
class Table:
    """Per-image columns of one method on one data set, in the order of the samples; arrays share length n.

    status: anonymizer status per image (``Status`` values).  withheld: nothing was released.
    fta: released, but no face was found in it; the embedding is then that of the attacker's fallback crop.
    embeddings: recognizer -> float32 (n, d), L2-normalised; a row is NaN where there is nothing to embed (withheld).
    measures: per-image numbers, float64 (n,), NaN where there is none.
    attributes: label -> float64 (n,) of 0/1/NaN.  emotion: (n,) of class names, "" where unknown.
    groups: e.g. "sex" -> (n,) of "female", "male", "" where unknown.
    crops: uint8 RGB (n, 112, 112, 3), the faces as attackers on raw pixels see them (:data:`deidbench.metrics.reid.base.CROP`),
    0 where nothing was released; None where no attacker asked for pixels.
    readings: classifier -> what it read off the face that was found in the output (the fallback crop where none was).
    copies: (n,) the id of another image that the output is a copy of, "" as a rule.
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
    groups: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    crops: npt.NDArray[np.uint8] | None = None
    copies: npt.NDArray[np.str_] | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.ids)

    def take(self, which: npt.NDArray[np.intp]) -> Table:
        """The table of some of its images, in the order of ``which``."""

        def all_of(columns: Mapping[str, Any]) -> dict[str, Any]:
            return {name: column[which] for name, column in columns.items()}

        return replace(
            self,
            ids=self.ids[which],
            subjects=self.subjects[which],
            status=self.status[which],
            withheld=self.withheld[which],
            fta=self.fta[which],
            embeddings=all_of(self.embeddings),
            measures=all_of(self.measures),
            attributes=all_of(self.attributes),
            groups=all_of(self.groups),
            emotion=None if self.emotion is None else self.emotion[which],
            crops=None if self.crops is None else self.crops[which],
            copies=None if self.copies is None else self.copies[which],
            readings={name: reading.take(which) for name, reading in self.readings.items()},
        )


@dataclass(frozen=True, eq=False)
class Background:
    """What attackers were given besides the images under evaluation; none of these persons is evaluated.

    clear, anonymised: the attacker-train images before and after the method, in the same order.  None where the data set has
    no such persons (``reason`` says so) or no metric asked for them.
    attempts: of trained attackers, by (attacker, recogniser): one :class:`deidbench.metrics.reid.training.Attempt` per seed.
    """

    clear: Table | None = None
    anonymised: Table | None = None
    attempts: Mapping[tuple[str, str], Sequence[Attempt]] = field(default_factory=dict)
    reason: str = "no attacker-train persons were given"


#: Why nobody can be re-identified in a data set without identities.
NO_PERSONS = "the data set names no persons"
#: What a metric gets that asks for none.
NO_BACKGROUND = Background()


class Findings(NamedTuple):
    """What a metric found: rows, and the points of its curves."""

    rows: list[Row]
    curves: list[Curve]


class PlannedAttack(NamedTuple):
    """A trained attack that a metric wants carried out.  label: of the attacker, unique in the metric."""

    label: str
    attacker: TrainedAttacker
    recognizer: str


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

    #: True for a metric whose :meth:`score` reads the attacker-train tables of :class:`Background`.
    needs_background: bool = False

    def params(self) -> dict[str, Any]:
        """Parameters that change the figures (part of the cache keys)."""
        return {}

    def bind(self, dataset: Dataset) -> None:  # noqa: B027 - most metrics ask for nothing
        """Takes from the data set of a run what its images do not say (a list of pairs).  Called once, before anything is computed.

        Learnt state ends in an underscore.  Raises MissingError or InputError where the metric cannot be computed on this data set.
        """

    def attacks(self, recognizers: Sequence[str]) -> Sequence[PlannedAttack]:
        """Trained attacks whose attempts :meth:`score` finds in :class:`Background`.  recognizers: the suite's, by name."""
        return ()

    def measure(self, original: Image, anonymised: Image, face: Face | None, found: Face | None = None) -> Mapping[str, float]:
        """Per-image numbers, one per name in ``measures``; NaN where one cannot be computed.

        original, anonymised: RGB uint8 of the same shape (the suite resizes an output of another size).
        face: the subject's face in the original, None where none was found.
        found: the subject's face as it was found in ``anonymised`` (pixels of that image), None where none was.
        """
        raise NotImplementedError

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """Rows and curves for one method.  Pure: no files, no global state, randomness from ``protocol.seed`` only."""
        raise NotImplementedError


def quantities(metrics: Sequence[type[Metric]]) -> dict[str, Quantity]:
    """All quantities of ``metrics`` by name."""
    return {q.name: q for metric in metrics for q in metric.quantities}
