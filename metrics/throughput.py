"""Throughput of an anonymizer: its model resident, warmed up, the device synchronised, repeats of methods interleaved.

What is timed is the method itself, faces given; decoding and detection are the same for all methods and are not in it
(``prepare`` puts them in).  These figures are wall-clock: they carry the machine they were taken on, and no two runs
share them to the digit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deidbench.anonymizers.base import Anonymizer
from deidbench.metrics.base import Protocol, Quantity
from deidbench.records import Row
from deidbench.stats.evidence import Evidence
from deidbench.types import Item, Status

#: Raise it when the same code would be timed in another way: stored timings carry it in their key.
VERSION = "1"
QUANTITIES = (
    Quantity("throughput.faces_per_s", "Speed", "faces/s", True, "speed", "throughput"),
    Quantity("throughput.latency_p50", "Latency, median", "ms", False, "speed", "throughput"),
    Quantity("throughput.latency_p90", "Latency, p90", "ms", False, "speed", "throughput"),
    Quantity("throughput.latency_p99", "Latency, p99", "ms", False, "speed", "throughput"),
    Quantity("throughput.end_to_end_faces_per_s", "Speed, end to end", "faces/s", True, "speed", "throughput"),
    Quantity("throughput.end_to_end_latency_p50", "Latency end to end, median", "ms", False, "speed", "throughput"),
    Quantity("throughput.end_to_end_latency_p90", "Latency end to end, p90", "ms", False, "speed", "throughput"),
    Quantity("throughput.end_to_end_latency_p99", "Latency end to end, p99", "ms", False, "speed", "throughput"),
    Quantity("throughput.speedup", "Speed relative to another method", "ratio", True, "speed", "throughput"),
)
#: Fewer single calls than this do not support a 99th percentile.
MIN_FOR_P99 = 100


@dataclass(frozen=True)
class Timing:
    """What was measured for one method.

    faces: in the images that were released, per repeat (a method that takes no faces counts one per image); an image
    that is withheld costs time and earns nothing.  images: handed in per repeat.  offline: seconds per repeat for all
    items.  single: seconds of each call with one item, repeat after repeat.  withheld: images not released per repeat.
    batch: items per call in ``offline``, 0 for all in one call.  end_to_end: ``prepare`` ran inside the timed section.
    peak_gpu_mib: most GPU memory that torch held in the method's first repeat; None where it used none.
    """

    label: str
    faces: int
    images: int
    offline: tuple[float, ...]
    single: tuple[float, ...]
    device: str
    threads: int
    withheld: int = 0
    batch: int = 0
    end_to_end: bool = False
    peak_gpu_mib: float | None = None


def synchronise() -> None:
    """Waits for the accelerator, where torch is in use on one; CPU work is done when a call returns."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure(
    anonymizer: Anonymizer,
    items: Sequence[Item],
    *,
    label: str = "",
    repeats: int = 5,
    warmup: int = 1,
    batch: int = 0,
    prepare: Callable[[Item], Item] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times one method: :func:`measure_interleaved` with nothing beside it."""
    methods = [(label or anonymizer.name, anonymizer, items)]
    return measure_interleaved(methods, repeats=repeats, warmup=warmup, batch=batch, prepare=prepare, clock=clock)[0]


def measure_interleaved(
    methods: Sequence[tuple[str, Anonymizer, Sequence[Item]]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    batch: int = 0,
    prepare: Callable[[Item], Item] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Times several methods in turn, repeat by repeat, so that a machine that slows down slows all of them.

    methods: (label, anonymizer, items).  Each is loaded and warmed up first.  batch: items per call in the offline
    figure, 0 for all in one call.  prepare: runs on every item inside the timed section (decoding, detection), for
    end-to-end figures.  clock: seconds, monotonic.
    """
    if repeats < 2:
        raise ValueError("at least two repeats: one says nothing about the spread")

    def ready(items: Sequence[Item]) -> list[Item]:
        return list(items) if prepare is None else [prepare(item) for item in items]

    for _, anonymizer, items in methods:
        if not items:
            raise ValueError("nothing to time: no items")
        anonymizer.load()
        for _ in range(warmup):
            anonymizer.anonymize(ready(items[:1]))
            anonymizer.anonymize(ready(items))
        synchronise()
    offline: list[list[float]] = [[] for _ in methods]
    single: list[list[float]] = [[] for _ in methods]
    counts: list[tuple[int, int]] = []
    memory: list[float | None] = []
    for repeat in range(repeats):
        for i, (_, anonymizer, items) in enumerate(methods):
            held = _gpu_memory_before() if repeat == 0 else 0
            step = batch or len(items)
            seconds, faces, withheld = 0.0, 0, 0
            for at in range(0, len(items), step):
                start = clock()
                given = ready(items[at : at + step])
                results = anonymizer.anonymize(given)
                synchronise()
                seconds += clock() - start
                for item, result in zip(given, results, strict=True):
                    if result.status is Status.OK:
                        faces += len(item.faces) if item.faces is not None else 1
                    else:
                        withheld += 1
            offline[i].append(seconds)
            if repeat == 0:
                counts.append((faces, withheld))
                memory.append(_gpu_memory_used(held))
            for item in items:
                start = clock()
                anonymizer.anonymize(ready([item]))
                synchronise()
                single[i].append(clock() - start)
    threads = _threads()
    return [
        Timing(
            label,
            faces=counts[i][0],
            images=len(items),
            offline=tuple(offline[i]),
            single=tuple(single[i]),
            device="cpu" if memory[i] is None else _gpu_name(),
            threads=threads,
            withheld=counts[i][1],
            batch=batch,
            end_to_end=prepare is not None,
            peak_gpu_mib=memory[i],
        )
        for i, (label, _, items) in enumerate(methods)
    ]


def _gpu_memory_before() -> int:
    """Bytes that torch holds on the GPU; its high-water mark starts anew from here."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def _gpu_memory_used(held: int) -> float | None:
    """The high-water mark in MiB if it rose above ``held`` bytes, else None: whoever computes there allocates."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    peak = int(torch.cuda.max_memory_allocated())
    return peak / 2**20 if peak > held else None


def _gpu_name() -> str:
    return str(sys.modules["torch"].cuda.get_device_name())


def _threads() -> int:
    import cv2

    return int(cv2.getNumThreads())


def median_interval(values: Sequence[float], level: float) -> tuple[float | None, float | None, str, str]:
    """(lo, hi, method, reason) of the median of repeats: order statistics, no assumption on their distribution.

    The coverage of [x(k), x(n+1-k)] is 1 - 2 P(Bin(n, 1/2) < k); with few repeats even the full range falls short of
    ``level``, and then the range is given and its true coverage stated.  (David & Nagaraja, Order Statistics, 7.1.)
    It speaks for repeats in one process on one machine, not for other machines.
    """
    x, n = np.sort(values), len(values)
    if n < 2:
        return None, None, "", "one repeat"
    k, coverage = _order(n, level)
    return float(x[k - 1]), float(x[n - k]), f"order statistics of {n} repeats, coverage {coverage:.3f}", ""


def _order(n: int, level: float) -> tuple[int, float]:
    """The largest k for which [x(k), x(n+1-k)] covers the median with ``level`` (1 where none does), and its coverage."""
    from scipy.stats import binom

    k = 1
    while k + 1 <= (n + 1) // 2 and 1 - 2 * binom.cdf(k, n, 0.5) >= level:
        k += 1
    return k, float(1 - 2 * binom.cdf(k - 1, n, 0.5))


def _row(name: str, value: float | None, **more: Any) -> Row:
    q = next(q for q in QUANTITIES if q.name == name)
    return Row(metric=name, unit=q.unit, higher_is_better=q.higher_is_better, value=value, timing=True, family=q.family, **more)


def _spread(repeats: Sequence[float], level: float) -> dict[str, Any]:
    """The interval's fields of a row; the level is the true one where few repeats do not reach the one asked for."""
    lo, hi, how, why = median_interval(repeats, level)
    true = None if lo is None else min(level, _order(len(repeats), level)[1])
    return {"lo": lo, "hi": hi, "ci_level": true, "ci_method": how, "ci_reason": why}


def rows(timing: Timing, dataset: str, protocol: Protocol) -> list[Row]:
    """The timing as rows (``timing=True``): the median over the repeats, with its interval.

    A latency is the quantile over the single calls of a repeat; the 99th percentile is taken over all repeats' calls
    together and has no interval.
    """
    scope = "end to end, preparation included" if timing.end_to_end else "method alone, faces given"
    note = f"{scope}; {timing.device}, {timing.threads} threads; {timing.images} images, {timing.faces} faces"
    if timing.batch:
        note += f"; {timing.batch} images a call"
    if timing.withheld:
        note += f"; {timing.withheld} images withheld: their time counts, their faces do not"
    if timing.peak_gpu_mib is not None:
        note += f"; peak GPU memory {timing.peak_gpu_mib:.0f} MiB"
    prefix = "throughput.end_to_end_" if timing.end_to_end else "throughput."
    common = {
        "dataset": dataset,
        "method": timing.label,
        "n_images": timing.images,
        "n_failed": timing.withheld,
        "note": note,
    }
    level = protocol.confidence
    speeds = [timing.faces / seconds for seconds in timing.offline]
    if timing.faces == 0:
        reason = "nothing was released" if timing.withheld else "no face in the timed images"
        first = _row(f"{prefix}faces_per_s", None, reason=reason, ci_reason="no value", **common)
    else:
        kept = Evidence.repeats(speeds)
        first = _row(f"{prefix}faces_per_s", float(np.median(speeds)), **_spread(speeds, level), **common, evidence=kept)
    found = [first]
    calls = np.reshape(timing.single, (len(timing.offline), -1)) * 1000
    for share in (50, 90):
        quantiles = np.percentile(calls, share, axis=1)
        found.append(
            _row(f"{prefix}latency_p{share}", float(np.median(quantiles)), **_spread(list(quantiles), level), **common)
        )
    few = calls.size < MIN_FOR_P99
    found.append(
        _row(
            f"{prefix}latency_p99",
            None if few else float(np.percentile(calls, 99)),
            reason=f"{calls.size} calls are too few for a 99th percentile" if few else "",
            ci_reason="no value" if few else "a 99th percentile over all repeats together carries no interval",
            **common,
        )
    )
    return found


def speedup(timing: Timing, reference: Timing, dataset: str, protocol: Protocol) -> Row:
    """How many times as fast as ``reference`` in faces/s: the median ratio of interleaved repeats (``comparison`` names it).

    Both come from one :func:`measure_interleaved`; repeat i of one is set against repeat i of the other.  Order statistics
    of the ratios are those of their logarithms, so that which of the two is the reference makes no difference.
    Raises ValueError where the repeats do not pair.
    """
    if len(timing.offline) != len(reference.offline):
        raise ValueError(f"{len(timing.offline)} and {len(reference.offline)} repeats do not pair: time both interleaved")
    common = {"dataset": dataset, "method": timing.label, "comparison": reference.label, "n_images": timing.images}
    if timing.faces == 0 or reference.faces == 0:
        who = timing if timing.faces == 0 else reference
        return _row("throughput.speedup", None, reason=f"{who.label} released no face", ci_reason="no value", **common)
    speeds = np.array([timing.faces / s for s in timing.offline]) * np.array(reference.offline) / reference.faces
    value = float(np.exp(np.median(np.log(speeds))))
    return _row("throughput.speedup", value, **_spread(list(speeds), protocol.confidence), **common)
