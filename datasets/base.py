"""The interface of a data set, its manifest and its person-disjoint splits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from deidbench.errors import InputError
from deidbench.types import Sample


class Dataset(ABC):
    """A set of labelled face images.

    Parameters are stored by ``__init__`` and nothing else is done there.  Images are never loaded here:
    a :class:`Sample` carries a path.
    """

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    title: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    #: True when samples carry a person; False for sets without identities (every image is then a person of its own).
    identities: bool = True

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """Every sample, in a fixed order.  Raises MissingError when the data is not there (how to get it: remedy)."""

    @property
    def shows_faces(self) -> bool:
        """Whether the licence allows reports to show these faces; where it is not known to, they are left out."""
        return False

    def missing(self) -> str:
        """Empty when the data is ready, otherwise what is missing and how to get it.  Must be quick."""
        return ""

    def manifest(self) -> list[dict[str, Any]]:
        """One record per image: id, subject_id, sha256, role, emotion, attributes, groups (no machine paths)."""
        return [
            {
                "id": s.id,
                "subject_id": s.subject_id,
                "sha256": s.sha256,
                "role": s.role,
                "emotion": s.emotion,
                "attributes": dict(s.attributes),
                "groups": dict(s.groups),
            }
            for s in self.samples()
        ]


def manifest_sha256(manifest: Iterable[Mapping[str, Any]]) -> str:
    """One hash over ids, persons and image hashes, whatever the order: two runs with the same one saw the same data."""
    lines = sorted(f"{m['id']}\t{m['subject_id']}\t{m['sha256']}" for m in manifest)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_persons(subject_ids: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Person-disjoint roles: subject_id -> role.

    shares: role -> share of the persons; shares sum to 1.  Persons are ordered by a hash of (seed, id), so the
    result depends on nothing but the set of persons, the shares and the seed.
    """
    if not shares or any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise InputError(
            f"shares of a split must be positive and sum to 1, not {dict(shares)}",
            "e.g. {evaluate = 0.5, attacker_train = 0.5}",
        )
    persons = sorted(set(subject_ids), key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).digest())
    roles: dict[str, str] = {}
    taken, total = 0, 0.0
    for role, share in shares.items():
        total += share
        end = round(total * len(persons))
        roles.update(dict.fromkeys(persons[taken:end], role))
        taken = end
    return roles
