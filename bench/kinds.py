"""The registries, one per kind of part.  Importing this is cheap: nothing is looked up yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deidbench.registry import Registry

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.datasets.base import Dataset
    from deidbench.metrics.base import Metric
    from deidbench.metrics.models.base import Classifier, Recognizer
    from deidbench.metrics.reid.base import Attacker

anonymizers: Registry[Anonymizer] = Registry("anonymizer", "deidbench.anonymizers", "deidbench.anonymizers")
datasets: Registry[Dataset] = Registry("dataset", "deidbench.datasets", "deidbench.datasets")
metrics: Registry[Metric] = Registry("metric", "deidbench.metrics", "deidbench.metrics")
recognizers: Registry[Recognizer] = Registry("recognizer", "deidbench.recognizers", "deidbench.metrics.models")
classifiers: Registry[Classifier] = Registry("classifier", "deidbench.classifiers", "deidbench.metrics.models")
attackers: Registry[Attacker] = Registry("attacker", "deidbench.attackers", "deidbench.metrics.reid")
