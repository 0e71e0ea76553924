"""Calls of adapters: what they return is checked, and what they raise is sorted into whose fault it is.

An image that an adapter cannot do is ``failed``, with the reason.  A batch that does not fit into memory is halved, and the rest of
the run goes on with the smaller one.  What the machine is to blame for (a GPU that is gone, a full disk) says nothing about the image,
and must not be stored as if it did: it ends the run with :class:`EnvironmentFault`, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from deidbench.errors import DeidbenchError, EnvironmentFault
from deidbench.types import Anonymized, Image, Item, Status

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.metrics.models.base import Classifier, Recognizer

T = TypeVar("T")
R = TypeVar("R")


class Blame(Enum):
    """Whose fault an error is, where it is not the image's."""

    MEMORY = "memory"
    DEVICE = "device"
    MACHINE = "machine"


#: Of the operating system, about the machine and never about an image.
_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EFBIG}
)
_MACHINE_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|too many open files|can't start new thread"
    r"|input/output error",
    re.IGNORECASE,
)
#: numpy and Python have a class of their own; torch (CPU, GPU, cuBLAS, cuDNN), ONNX Runtime, OpenCV, dlib and C++ say it in words.
_MEMORY_WORDS = re.compile(
    r"out of memory|not enough memory|insufficient memory|can(?:'|no)t allocate memory|failed to allocate|unable to allocate"
    r"|std::bad_alloc|bad allocation|memoryerror|OutOfMemoryError|cudaErrorMemoryAllocation|STATUS_ALLOC_FAILED"
    r"|RESOURCE_EXHAUSTED|smaller than requested bytes",
    re.IGNORECASE,
)
#: The device is not there, or not any more; a new process does not get it back either.
_GONE_WORDS = re.compile(
    r"no cuda-capable device|no cuda gpus are available|found no nvidia driver|driver shutting down|device (?:is )?lost"
    r"|gpu is lost|fallen off the bus|devices?(?:\(s\))? (?:is|are|is/are) busy or unavailable|device(?:s|\(s\))? unavailable"
    r"|driver version is insufficient|system driver mismatch|system not yet initialized|invalid device ordinal"
    r"|uncorrectable ecc|not compiled with cuda|no kernel image is available",
    re.IGNORECASE,
)
#: Any error of CUDA (or HIP): after it every later call of the process fails too ...
_DEVICE_WORDS = re.compile(
    r"\b(?:cuda|hip|cudnn|cublas|cufft|cusolver|cusparse|curand) (?:error|failure)|\b(?:cuda|hip)Error[A-Z]|\bCUDA_ERROR_[A-Z]"
    r"|\bCU(?:BLAS|DNN|FFT|SOLVER|SPARSE|RAND)_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED|MAPPING_ERROR|ARCH_MISMATCH)"
    r"|error while calling cuda\w+\(",
    re.IGNORECASE,
)
#: ... but for those about how a kernel was called, which an image of odd size can cause.
_CALL_WORDS = re.compile(
    r"invalid configuration argument|invalid argument|invalid value|too many resources requested"
    r"|cudaErrorInvalid(?:Value|Configuration)|operation not supported|NOT_SUPPORTED|BAD_PARAM",
    re.IGNORECASE,
)


def blame_of(text: str) -> Blame | None:
    """What an error's words put the blame on; None: the image, or the adapter."""
    if _MACHINE_WORDS.search(text):
        return Blame.MACHINE
    if _MEMORY_WORDS.search(text):
        return Blame.MEMORY
    if _GONE_WORDS.search(text) or (_DEVICE_WORDS.search(text) and not _CALL_WORDS.search(text)):
        return Blame.DEVICE
    return None


def blame(error: BaseException) -> Blame | None:
    """What an error, or the one behind it, puts the blame on; None: the image, or the adapter."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError):
            return Blame.MEMORY
        if isinstance(current, OSError) and current.errno in _MACHINE:
            return Blame.MACHINE
        # the names too: torch.OutOfMemoryError may carry no words, torch.AcceleratorError is always about the device
        names = {c.__name__ for c in type(current).__mro__}
        if "OutOfMemoryError" in names:
            return Blame.MEMORY
        if found := blame_of(str(current)):
            return found
        if "AcceleratorError" in names and not _CALL_WORDS.search(str(current)):
            return Blame.DEVICE
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return None


#: How often a batch of a part was halved in this process since :func:`take_halvings`.
_halvings: Counter[str] = Counter()
#: Part -> the largest batch that is tried with it, in this process.
_fits: dict[int, tuple[weakref.ref[Any], int]] = {}


def take_halvings() -> dict[str, int]:
    """How often a batch was halved since the last call, per part."""
    told = dict(_halvings)
    _halvings.clear()
    return told


def _most(part: object) -> int:
    """Images that ``part`` is given at a time."""
    ref, most = _fits.get(id(part), (None, sys.maxsize))
    return most if ref is not None and ref() is part else sys.maxsize


def _set_most(part: object, most: int) -> None:
    number = id(part)
    _fits[number] = (weakref.ref(part, lambda _: _fits.pop(number, None)), most)


def relieve() -> None:
    """Gives back what memory can be given back, of the GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    with contextlib.suppress(Exception):  # a broken device shows itself at the next call
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _in_parts(
    part: Any, work: Callable[[Sequence[T]], R], things: Sequence[T], alone: Callable[[T, str], R]
) -> Iterator[tuple[int, R]]:
    """``work`` on ``things``, all at once or in smaller and smaller parts: (how many, result).

    alone: what a single thing that does not fit comes to, told the reason.
    """
    start, before = 0, _most(part)
    while start < len(things):
        chunk = things[start : start + _most(part)]
        reason = ""
        try:
            result = work(chunk)
        except DeidbenchError:
            raise
        except Exception as error:
            if blame(error) is not Blame.MEMORY:
                raise
            reason = f"{type(error).__name__}: {error}"
        # Only here is the error, with all that its frames hold, gone.
        if reason:
            relieve()
            if len(chunk) > 1:
                _set_most(part, len(chunk) // 2)
                _halvings[part.name] += 1
                continue
            _set_most(part, before)  # it was this one, not the batch
            result = alone(chunk[0], reason)
        yield len(chunk), result
        start += len(chunk)


def run_adapter(anonymizer: Anonymizer, items: Sequence[Item]) -> list[Anonymized]:
    """``anonymizer`` on ``items``, its answers checked; what breaks the contract or raises is ``failed`` with the reason.

    When a batch raises, its items are tried one by one, so that one bad item costs itself only; when it does not fit into memory, it is
    halved.  Raises EnvironmentFault where the machine is to blame: its GPU is gone, its disk is full.
    """

    def work(some: Sequence[Item]) -> list[Anonymized]:
        results = list(anonymizer.anonymize(some))
        if len(results) != len(some):
            raise ValueError(f"returned {len(results)} results for {len(some)} items")
        return results

    def alone(item: Item, reason: str) -> list[Anonymized]:
        return [Anonymized.failed(item.id, _too_large(reason))]

    out: list[Anonymized] = []
    try:
        for _, results in _in_parts(anonymizer, work, items, alone):
            out += results
    except DeidbenchError:
        raise
    except Exception as error:  # an adapter may raise anything; the reason is kept and the other items go on
        if fault := machine_fault(anonymizer.name, error):
            raise fault from error
        if len(items) == 1:
            return [Anonymized.failed(items[0].id, f"{type(error).__name__}: {error}")]
        return [result for item in items for result in run_adapter(anonymizer, [item])]
    checked = [_checked(item, result) for item, result in zip(items, out, strict=True)]
    return [_judged(anonymizer, item, result, len(items) > 1) for item, result in zip(items, checked, strict=True)]


def _too_large(reason: str) -> str:
    return f"out of memory with this image alone ({reason}); --workers 1 leaves more memory for it, and --retry-failed tries it again"


def _judged(anonymizer: Anonymizer, item: Item, result: Anonymized, among_others: bool) -> Anonymized:
    """A ``failed`` result whose reason is the machine's fault is no result: many adapters catch what they meet, and tell it so."""
    if result.status is not Status.FAILED:
        return result
    if anonymizer.own_process:
        # It had memory and a device context of its own, and is started anew; a GPU that is gone, or a full disk, is so for all.
        if _GONE_WORDS.search(result.reason) or _MACHINE_WORDS.search(result.reason):
            raise _machine_fault(anonymizer.name, blame_of(result.reason) or Blame.DEVICE, result.reason)
        return result
    match blame_of(result.reason):
        case None:
            return result
        case Blame.MEMORY:
            if not among_others:
                return Anonymized(result.id, result.status, None, result.faces, _too_large(result.reason))
            relieve()
            _halvings[anonymizer.name] += 1
            return run_adapter(anonymizer, [item])[0]
        case whose:
            raise _machine_fault(anonymizer.name, whose, result.reason)


def machine_fault(name: str, error: BaseException) -> EnvironmentFault | None:
    """The error to end a run with, where ``error`` is the fault of the machine or of its GPU.  name: of the part that met it."""
    whose = blame(error)
    if whose is None or whose is Blame.MEMORY:
        return None
    return _machine_fault(name, whose, f"{type(error).__name__}: {error}")


def _machine_fault(name: str, whose: Blame, reason: str) -> EnvironmentFault:
    if whose is Blame.DEVICE:
        return EnvironmentFault(
            f"{name}: the GPU is gone, or cannot be used any more by this process: {reason}",
            "look whether it is there (nvidia-smi), then run the same command again: what was computed is kept, and no image counts as "
            'failed because of this.  Where it happens at the same images again: device = "cpu" among the params, where it has that (its '
            "results are then computed anew), or CUDA_VISIBLE_DEVICES= before the command",
        )
    return EnvironmentFault(
        f"{name}: the machine failed, not the image: {reason}",
        "free some space (df -h), or whatever it lacks, then run the same command again: what was computed is kept, and no image counts as "
        "failed because of this",
    )


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
    """The vectors (n, d) of ``crops``, RGB uint8, all of one size; a batch that does not fit into memory is halved.

    Raises EnvironmentFault where a single one does not fit, or the machine fails: no face may be silently without a vector.
    """

    def alone(crop: Image, reason: str) -> npt.NDArray[Any]:
        h, w = crop.shape[:2]
        raise EnvironmentFault(
            f"{recognizer.name}: not even one face of {w} x {h} pixels fits into memory ({reason})",
            "close what else takes memory (of the GPU: nvidia-smi), or take --workers 1; then run the same command again: what was "
            "computed is kept",
        )

    try:
        parts = [v for _, v in _in_parts(recognizer, lambda some: recognizer.embed(np.stack(some)), crops, alone)]
    except DeidbenchError:
        raise
    except Exception as error:
        if fault := machine_fault(recognizer.name, error):
            raise fault from error
        raise
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@contextlib.contextmanager
def blamed(name: str) -> Iterator[None]:
    """What the machine is to blame for within the block is an EnvironmentFault, memory as well.  name: of what is at work."""
    try:
        yield
    except EnvironmentFault:
        raise
    except Exception as error:
        # Ours say it in their own words, unless they took the machine's fault for one of a file.
        behind = error.__cause__ if isinstance(error, DeidbenchError) else error
        whose = blame(behind) if behind is not None else None
        if whose is None or (behind is not error and whose is Blame.MACHINE):
            raise
        if whose is Blame.MEMORY:
            raise EnvironmentFault(
                f"{name}: out of memory ({type(error).__name__}: {error})",
                "--workers 1 or a smaller --batch needs less; what was computed is kept",
            ) from error
        raise _machine_fault(name, whose, f"{type(error).__name__}: {error}") from error
