"""deidbench's own classifiers: emotions and CelebA's attributes, on a CPU, out of the box.

Their weights are in the package (folder ``weights``, with a card each) and were made by ``deidbench train classifier``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deidbench.errors import InputError
from deidbench.kinds import classifiers
from deidbench.metrics.models._common import check_crops
from deidbench.metrics.models.base import Classifier, Lessons
from deidbench.metrics.models.labels import ATTRIBUTES, EMOTIONS
from deidbench.metrics.models.network import CROPS, Description, Inference, Loaded, load_classifier, read_description
from deidbench.types import CropSpec, Floats, Image
from deidbench.weights import sha256_of

#: Where the shipped weights and their cards are.
WEIGHTS = Path(__file__).with_name("weights")


class _Said:
    """A class attribute of the shipped classifier; on one with a file of its own, what that file says (quickly read)."""

    def __init__(self, name: str, shipped: Any) -> None:
        self.name, self.shipped = name, shipped

    def __get__(self, instance: _Own | None, owner: type) -> Any:
        if instance is None or not instance.path or not instance.file.is_file():
            return self.shipped
        return getattr(instance.description(), self.name)


class _Ready:
    """What is loaded."""

    def __init__(self, loaded: Loaded) -> None:
        self.description, self.images = loaded.description, loaded.images
        self.run = Inference(loaded)


class _Own(Classifier):
    shipped: ClassVar[str] = ""
    _ready: _Ready | None = None

    def __init__(self, path: str = "") -> None:
        self.path = path

    @property
    def file(self) -> Path:
        """The weights' file."""
        return Path(self.path).expanduser() if self.path else WEIGHTS / self.shipped

    @property
    def crop(self) -> CropSpec:
        return CROPS[self.task]

    def missing(self) -> str:
        if self.file.is_file():
            return ""
        how = "give the path of a file that deidbench train classifier wrote" if self.path else "install deidbench again"
        return f"classifier {self.name!r}: there is no file {self.file}; {how}"

    def weights_sha256(self) -> str:
        return sha256_of(self.file) if self.file.is_file() else ""

    def runtime(self) -> str:
        from importlib.metadata import version

        return f"torch {version('torch')} cpu"

    def description(self) -> Description:
        """What the file says of itself.  Quick."""
        return self._ready.description if self._ready else self._of_task(read_description(self.file))

    def load(self) -> None:
        """See :meth:`Classifier.load`.  Raises MissingError, and InputError for a file that is broken or of another task."""
        if self._ready is None:
            loaded = load_classifier(self.file)
            self._of_task(loaded.description)
            self._ready = _Ready(loaded)

    def _of_task(self, description: Description) -> Description:
        if description.task != self.task:
            raise InputError(
                f"{self.file} reads {description.task}, not {self.task}",
                "use emotion-cnn for emotions, attributes-cnn for attributes",
            )
        return description

    def predict(self, crops: Image) -> Floats:
        """See :meth:`Classifier.predict`.  Raises InputError for crops of another shape or type, and what :meth:`load` raises."""
        return self._both(crops)[0]

    def embed(self, crops: Image) -> Floats:
        """See :meth:`Classifier.embed`; the features are those that the last layer sees, averaged over crop and mirror image."""
        return np.hstack(self._both(crops))

    def _both(self, crops: Image) -> tuple[Floats, Floats]:
        crops = check_crops(crops, self.crop, f"classifier {self.name!r}")
        self.load()
        assert self._ready is not None
        logits, features = self._ready.run(crops)
        if self.multilabel:
            # without overflow on either side
            p = np.where(logits >= 0, 1.0, np.exp(np.minimum(logits, 0))) / (1 + np.exp(-np.abs(logits)))
        else:
            e = np.exp(logits - logits.max(1, keepdims=True)) if len(logits) else logits
            p = e / e.sum(1, keepdims=True)
        return p.astype(np.float32), features

    def lessons(self) -> Lessons:
        """The images (first 16 hex digits) and persons that the file names.  Raises what :meth:`load` raises."""
        self.load()
        assert self._ready is not None
        persons = {name: frozenset(ids) for name, ids in self._ready.description.persons.items()}
        return Lessons(frozenset(f"{v:016x}" for v in self._ready.images.tolist()), persons)

    def __getstate__(self) -> dict[str, Any]:
        """A copy that travels to another process loads the weights there."""
        return {k: v for k, v in self.__dict__.items() if k != "_ready"}


@classifiers.register("emotion-cnn")
class EmotionCnn(_Own):
    """Eight emotions from a grey face of 48 pixels; learnt from FER+, none of whose pictures deidbench evaluates on.

    path: a file of ``deidbench train classifier`` instead of the shipped one.
    """

    version = "1"
    task = "emotion"
    shipped = "emotion.safetensors"
    labels = _Said("labels", EMOTIONS)
    trained_on = _Said("trained_on", ("FER2013", "FER+"))
    licence = _Said(
        "licence", "weights: research use; FER2013's pictures come from the web, FER+'s labels are under the MIT licence"
    )
    citation = (
        "Goodfellow et al. (2013): Challenges in Representation Learning, ICONIP, arXiv:1307.0414; Barsoum et al. (2016): Training "
        "Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution, ICMI, arXiv:1608.01041"
    )


@classifiers.register("attributes-cnn")
class AttributesCnn(_Own):
    """CelebA's 40 attributes from a face with hair and neck, 96 pixels; 0.5 is the threshold with the best balanced accuracy.

    path: a file of ``deidbench train classifier`` instead of the shipped one.
    """

    version = "1"
    task = "attributes"
    shipped = "attributes.safetensors"
    labels = _Said("labels", ATTRIBUTES)
    trained_on = _Said("trained_on", ("CelebA-HQ:train_classifier",))
    licence = _Said("licence", "weights: research use, as CelebA's terms (non-commercial research) ask")
    citation = "Liu et al. (2015): Deep Learning Face Attributes in the Wild, ICCV; Karras et al. (2018): Progressive Growing of GANs, ICLR"
