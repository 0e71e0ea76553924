"""Linear discriminant analysis over stock embeddings of anonymised images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deidbench.kinds import attackers
from deidbench.metrics.base import Table
from deidbench.metrics.reid._learning import (
    Discriminant,
    best_discriminant,
    embeddings,
    enough,
    joined_columns,
    unit,
    who,
)
from deidbench.metrics.reid.base import TrainedAttacker
from deidbench.metrics.reid.training import Training
from deidbench.types import Floats


@attackers.register("lda")
class Lda(TrainedAttacker):
    """Directions of a stock recogniser's embedding in which anonymised persons differ more than images of one person.

    Shrinkage, number of directions and their weighting are the ones that rank the held-out persons' mates best.  Quick (seconds), and
    hard to beat with few persons.
    """

    version = "1"
    knows = (
        "has the anonymizer, and photographs of other persons, anonymised; a stock recogniser's embeddings of them, on which a linear "
        "discriminant is learnt"
    )
    citation = "Fisher, The Use of Multiple Measurements in Taxonomic Problems, 1936; Friedman, Regularized Discriminant Analysis, 1989"
    reads = "embeddings"

    def columns(self, recognizers: Sequence[str]) -> list[str]:
        return joined_columns(recognizers)

    def fit(self, training: Training, recognizer: str, seed: int) -> None:
        x, y = embeddings(training.anonymised, recognizer), embeddings(training.held_out_anonymised, recognizer)
        learn = enough(who(training.anonymised, np.isfinite(x).all(1)))
        judge = who(training.held_out_anonymised, np.isfinite(y).all(1))
        self.recognizer_ = recognizer
        self.persons_ = learn.persons
        self.map_: Discriminant = best_discriminant(x[learn.rows], learn.person, y[judge.rows], judge.person)

    def represent(self, table: Table, *, enrolled: bool = False) -> Floats:
        return unit(self.map_(embeddings(table, self.recognizer_)), table.withheld)

    @property
    def learnt(self) -> str:
        weighted = ", weighted" if self.map_.weighted else ""
        return f"{self.map_.axes.shape[1]} directions{weighted}, shrinkage {self.map_.shrinkage:g}, {self.persons_} persons"
