"""Calls of adapters: what they return is checked, and what they raise is sorted into whose fault it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import DeidbenchError
from deidbench.types import Anonymized, Image, Item, Status

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.metrics.models.base import Classifier, Recognizer


def run_adapter(anonymizer: Anonymizer, items: Sequence[Item]) -> list[Anonymized]:
    """``anonymizer`` on ``items``, its answers checked; what breaks the contract or raises is ``failed`` with the reason.

    When a batch raises, its items are tried one by one, so that one bad item costs itself only.
    """
    try:
        results = list(anonymizer.anonymize(items))
        if len(results) != len(items):
            raise ValueError(f"returned {len(results)} results for {len(items)} items")
    except DeidbenchError:
        raise
    except MemoryError as error:
        if len(items) == 1:
            return [Anonymized.failed(items[0].id, f"out of memory: {error}")]
        half = len(items) // 2
        return run_adapter(anonymizer, items[:half]) + run_adapter(anonymizer, items[half:])
    except Exception as error:  # an adapter may raise anything; the reason is kept and the other items go on
        if len(items) == 1:
            return [Anonymized.failed(items[0].id, f"{type(error).__name__}: {error}")]
        return [result for item in items for result in run_adapter(anonymizer, [item])]
    return [_checked(item, result) for item, result in zip(items, results, strict=True)]


def _checked(item: Item, result: Any) -> Anonymized:
    if not isinstance(result, Anonymized):
        return Anonymized.failed(item.id, f"the adapter returned {type(result).__name__}, not Anonymized")
    if result.id != item.id:
        return Anonymized.failed(item.id, f"the adapter answered for {result.id!r} where {item.id!r} was asked")
    image: Any = result.image
    if image is None:
        if result.status is Status.OK:
            return Anonymized.failed(item.id, "the adapter says ok but returned no image")
        return result
    if result.status not in (Status.OK, Status.PASSTHROUGH):
        # A picture that the method itself does not stand behind is not released.
        return Anonymized(result.id, result.status, None, result.faces, result.reason)
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or 0 in image.shape
    ):
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        return Anonymized.failed(item.id, f"the adapter returned {what}; images are RGB uint8 (H, W, 3)")
    return result


def embed_in_parts(recognizer: Recognizer | Classifier, crops: Sequence[Image]) -> npt.NDArray[Any]:
    """The vectors (n, d) of ``crops``, RGB uint8, all of one size."""
    return recognizer.embed(np.stack(crops))
