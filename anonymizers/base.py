"""The interface of an anonymizer."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from deidbench.types import Anonymized, Item, Sample

#: Gives a sample as :meth:`Anonymizer.anonymize` will be given it: its image and its faces.  Raises InputError for an unreadable one.
Reader = Callable[[Sample], Item]


def person_of(name: str) -> str:
    """Who is in an image of a folder, by its relative name: its first sub-folder, else the image is a person of its own."""
    head, slash, _ = name.partition("/")
    return head + slash if slash else name


class Anonymizer(ABC):
    """Turns images into anonymised images.

    A subclass stores its parameters in ``__init__`` (under their own names, and does nothing else there),
    reads weights in :meth:`load`, and works in :meth:`anonymize`.  It is registered by decorator or entry
    point, travels to worker processes by pickling, and is told nothing about who is in a picture unless it
    asks for :meth:`fit`.
    """

    #: Set by the registry.
    name: ClassVar[str] = ""
    #: Raise it when the output for the same input and parameters changes: it is part of every cache key.
    version: ClassVar[str] = "1"
    citation: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    #: Data sets (name, or name:split) that shaped the weights; results on them are flagged as contaminated.
    trained_on: ClassVar[tuple[str, ...]] = ()
    #: False when the output depends on the item's seed.
    deterministic: ClassVar[bool] = True
    #: True when ``Item.faces`` is used; the suite then detects faces once and shares them.
    needs_faces: ClassVar[bool] = True
    #: Name of the parameter that a sweep varies, or "" when the method has no strength.
    strength: ClassVar[str] = ""
    #: Parameters that do not change the output, such as where a file lies (its content counts); not in the fingerprint.
    incidental: ClassVar[tuple[str, ...]] = ()
    #: True when :meth:`fit` must be given the very set that is to be de-identified before any of it is.
    needs_gallery: ClassVar[bool] = False
    #: True when the work is done in a process of the method's own, which is started anew after it failed.
    own_process: ClassVar[bool] = False

    def params(self) -> dict[str, Any]:
        """The parameters of ``__init__`` with their values, in order of declaration."""
        names = [p.name for p in inspect.signature(type(self)).parameters.values() if p.kind is not p.VAR_KEYWORD]
        return {name: getattr(self, name) for name in names}

    def weights_sha256(self) -> str:
        """SHA-256 of the weights in use, "" where there are none.  Part of the fingerprint."""
        return ""

    def fitted_sha256(self) -> str:
        """SHA-256 of what :meth:`fit` made of its samples, "" where nothing was fitted.  Part of the fingerprint."""
        return ""

    @property
    def guarantee(self) -> str:
        """What is proved of the output, in words and with its conditions; "" where nothing is.  Reports print it."""
        return ""

    @property
    def fingerprint(self) -> str:
        """Hex hash of all that determines the output besides image, faces and seed."""
        params = {k: v for k, v in self.params().items() if k not in self.incidental}
        what = [type(self).__module__, type(self).__qualname__, self.name, self.version, params, self.weights_sha256()]
        if fitted := self.fitted_sha256():
            what.append(fitted)
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def validate(self) -> None:  # noqa: B027 - most parameters have no wrong values
        """Raises InputError for parameters that make no sense.  Called before anything is computed; cheap."""

    def load(self) -> None:  # noqa: B027 - most methods have nothing to load
        """Reads weights; called once per process before the first :meth:`anonymize`.  May raise MissingError."""

    def fit(self, samples: Iterable[Sample], read: Reader | None = None) -> None:  # noqa: B027 - optional
        """For methods that need the set that they de-identify (``needs_gallery``); called once, after :meth:`load`.

        What it learns must not depend on the order of ``samples``, and travels to workers by pickling.
        read: gives image and faces of a sample; None: the file as it is, faces looked for.
        Raises InputError where the set will not do (too few persons, labels that are missing).
        """

    @abstractmethod
    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        """One result per item, in order.  Never changes ``item.image`` in place; never raises for one bad item
        (that item's status is ``failed`` with the reason).
        """

    def __repr__(self) -> str:
        return f"{self.name or type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.params().items())})"
