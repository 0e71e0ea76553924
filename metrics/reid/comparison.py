"""Who is compared with whom: gallery, probes, and the pairs that are never made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deidbench.errors import SuiteError
from deidbench.metrics.base import Protocol


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison protocol laid out on one data set; images are numbered in the order of the table.

    text: for the results.  persons: (P,) sorted names.  probes, gallery: image numbers.  probe_person, gallery_person:
    numbers into ``persons``.  same_image: per probe the gallery column of the same image, -1 where it is not enrolled.
    mates: per probe the gallery images of its person, without the same image.  others: those of different persons.
    """

    text: str
    persons: tuple[str, ...]
    probes: npt.NDArray[np.intp]
    gallery: npt.NDArray[np.intp]
    probe_person: npt.NDArray[np.intp]
    gallery_person: npt.NDArray[np.intp]
    same_image: npt.NDArray[np.intp]
    mates: npt.NDArray[np.intp]
    others: npt.NDArray[np.intp]

    @property
    def size(self) -> int:
        """Gallery images that a probe is compared with (the same number for all)."""
        return len(self.gallery) - (1 if len(self.same_image) and self.same_image[0] >= 0 else 0)


def lay_out(ids: npt.NDArray[np.str_], subjects: npt.NDArray[np.str_], protocol: Protocol) -> Comparison:
    """The comparison that ``protocol`` asks for.

    leave-one-out: every image is a probe against all images but itself.  split: ``enrolled`` images per person, the
    first in the order of a hash of (seed, id), are the gallery, and all others the probes; a person with no more
    images than that is enrolled and never probed.  Neither depends on the order of the images.
    """
    if len(set(ids.tolist())) != len(ids):
        raise ValueError("image ids are not unique")
    names, person = np.unique(subjects, return_inverse=True)
    person = person.astype(np.intp)
    n = len(ids)
    if protocol.comparison == "leave-one-out":
        text = "leave-one-out"
        gallery = probes = same = np.arange(n, dtype=np.intp)
    elif protocol.comparison == "split":
        if protocol.enrolled < 1:
            raise SuiteError(
                f"a split enrols at least one image a person, not {protocol.enrolled}", "set enrolled = 1 in [protocol]"
            )
        text = f"split, {protocol.enrolled} enrolled"
        digest = np.array([hashlib.sha256(f"{protocol.seed}:{i}".encode()).hexdigest() for i in ids.tolist()])
        order = np.lexsort((digest, person))
        first = np.searchsorted(person[order], np.arange(len(names)))
        rank = np.empty(n, np.intp)
        rank[order] = np.arange(n) - first[person[order]]
        gallery, probes = np.flatnonzero(rank < protocol.enrolled), np.flatnonzero(rank >= protocol.enrolled)
        same = np.full(len(probes), -1, np.intp)
    else:
        raise SuiteError(f"unknown comparison {protocol.comparison!r}", 'use "leave-one-out" or "split" in [protocol]')
    enrolled = np.bincount(person[gallery], minlength=len(names))
    own = (same >= 0).astype(np.intp)
    mates = enrolled[person[probes]] - own
    return Comparison(
        text=text,
        persons=tuple(names.tolist()),
        probes=probes,
        gallery=gallery,
        probe_person=person[probes],
        gallery_person=person[gallery],
        same_image=same,
        mates=mates,
        others=len(gallery) - own - mates,
    )
