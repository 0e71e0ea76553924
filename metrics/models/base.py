"""The interfaces of recognisers and classifiers: aligned faces in, embeddings or probabilities out."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.types import CropSpec, Floats, Image


class _Model(ABC):
    """What recognisers and classifiers share.  ``__init__`` stores parameters under their names, nothing else."""

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    citation: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    trained_on: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def crop(self) -> CropSpec:
        """How faces are cut out for this model.  May depend on the parameters, not on loaded weights."""

    def params(self) -> dict[str, Any]:
        names = [p.name for p in inspect.signature(type(self)).parameters.values() if p.kind is not p.VAR_KEYWORD]
        return {name: getattr(self, name) for name in names}

    def missing(self) -> str:
        """Empty when the model can be loaded, otherwise what is missing and how to get it.  Quick: no loading."""
        return ""

    def weights_sha256(self) -> str:
        """SHA-256 of the weight file(s)."""
        return ""

    @property
    def fingerprint(self) -> str:
        """Hex hash of all that determines the output besides the crop's pixels (includes runtime and device)."""
        what = [
            type(self).__module__,
            type(self).__qualname__,
            self.name,
            self.version,
            self.params(),
            self.crop,
            self.weights_sha256(),
            self.runtime(),
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def runtime(self) -> str:
        """Library version and device that compute, e.g. "dlib 20.0.1 cpu"."""
        return ""

    @abstractmethod
    def load(self) -> None:
        """Loads weights once per process; idempotent.  Raises MissingError naming the file and where to put it."""


class Recognizer(_Model):
    """Maps aligned faces to embeddings; similarity of two is their dot product, in [-1, 1]."""

    #: Of what :meth:`embed` returns and the store holds.
    dtype: ClassVar[type[np.generic]] = np.float32

    @abstractmethod
    def embed(self, crops: Image) -> Floats:
        """crops: RGB uint8 (n, size, size, 3) cut by ``self.crop``.  Returns float32 (n, d), L2-normalised.

        The result for a crop does not depend on which others share the batch (to 1e-5).  n = 0 gives (0, d).
        """


class Lessons(NamedTuple):
    """What a classifier learnt from, for the check that it is not asked about the same persons or images.

    images: SHA-256 (hex, or its first 16 digits) of the files it learnt from.  persons: data set -> the persons' ids there;
    the data set is called by the word that its loader or folder carries, in lower case.
    """

    images: frozenset[str] = frozenset()
    persons: Mapping[str, frozenset[str]] = {}


class Classifier(_Model):
    """Maps aligned faces to class probabilities, and to the features that they were read off.

    task: "emotion" (classes exclude one another, probabilities sum to 1) or "attributes" (one probability per label).
    labels: in the order of the probabilities; emotions by the names of :data:`deidbench.metrics.models.labels.EMOTIONS`, attributes by
    CelebA's.
    """

    task: str = ""
    labels: tuple[str, ...] = ()
    #: Of what :meth:`embed` returns and the store holds.
    dtype: ClassVar[type[np.generic]] = np.float32

    @property
    def multilabel(self) -> bool:
        """True: independent probabilities per label."""
        return self.task == "attributes"

    @abstractmethod
    def predict(self, crops: Image) -> Floats:
        """crops as in :meth:`Recognizer.embed`.  Returns float32 (n, len(labels)) in [0, 1]."""

    def embed(self, crops: Image) -> Floats:
        """Probabilities, then features, in one forward pass: float32 (n, len(labels) + d), d >= 0, the same d in every call.

        Features are what a linear classifier for other labels may be learnt from (the layer before the last one).  The result
        for a crop does not depend on which others share the batch (to 1e-5).
        """
        return self.predict(crops)

    def lessons(self) -> Lessons:
        """What it learnt from.  Nothing known: no overlap is found, and the report says that nobody looked."""
        return Lessons()


def l2_normalise(embeddings: npt.NDArray[Any]) -> Floats:
    """Rows scaled to unit length, float32.  A zero or non-finite row becomes NaN (nothing was recognised)."""
    x = np.asarray(embeddings, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        out = np.where(np.isfinite(norm) & (norm > 0), x / norm, np.nan)
    return out.astype(np.float32)
