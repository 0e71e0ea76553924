"""The contract of an anonymizer, as checks that take an instance.  Every adapter of ours is put through them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np

from deidbench.anonymizers.base import Anonymizer
from deidbench.types import Anonymized, Item, Status


def same(a: Anonymized, b: Anonymized) -> bool:
    """Equal in id, status, faces and every pixel."""
    if (a.id, a.status, a.faces, a.reason) != (b.id, b.status, b.faces, b.reason):
        return False
    if a.image is None or b.image is None:
        return a.image is b.image
    return a.image.shape == b.image.shape and bool((a.image == b.image).all())


def well_formed(items: Sequence[Item], results: Sequence[Anonymized]) -> None:
    """One result per item, in order; pictures where the status is ok, none with a reason elsewhere."""
    assert [r.id for r in results] == [i.id for i in items]
    for result in results:
        assert isinstance(result.status, Status)
        if result.status is Status.OK:
            assert result.image is not None
            assert result.image.dtype == np.uint8
            assert result.image.ndim == 3
            assert result.image.shape[2] == 3
        else:
            assert result.image is None
            assert result.reason
        for face in result.faces:
            assert isinstance(face.status, Status)


def input_untouched(anonymizer: Anonymizer, items: Sequence[Item]) -> None:
    before = [i.image.copy() for i in items]
    results = anonymizer.anonymize(items)
    for item, result, image in zip(items, results, before, strict=True):
        assert (item.image == image).all()
        if result.image is not None:
            assert not np.shares_memory(result.image, item.image)


def repeatable(anonymizer: Anonymizer, items: Sequence[Item]) -> None:
    """The same items give the same results: again, in reverse, one by one, and in another process (pickled)."""
    first = anonymizer.anonymize(items)
    reverse = anonymizer.anonymize(list(reversed(items)))[::-1]
    single = [anonymizer.anonymize([item])[0] for item in items]
    other: Anonymizer = pickle.loads(pickle.dumps(anonymizer))
    other.load()
    travelled = other.anonymize(items)
    assert other.fingerprint == anonymizer.fingerprint
    for group in (reverse, single, travelled):
        assert all(same(a, b) for a, b in zip(first, group, strict=True))


def seeds_matter_as_declared(anonymizer: Anonymizer, item: Item) -> None:
    results = [anonymizer.anonymize([Item(item.id, item.image, item.faces, seed)])[0] for seed in range(3)]
    assert all(same(results[0], r) for r in results) == anonymizer.deterministic
