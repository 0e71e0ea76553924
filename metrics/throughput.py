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

import numpy as np

from deidbench.anonymizers.base import Anonymizer
from deidbench.metrics.base import Protocol, Quantity
from deidbench.records import Row
from deidbench.types import Item

QUANTITIES = (
    Quantity("throughput.faces_per_s", "Speed", "faces/s", True, "speed", "throughput"),
    Quantity("throughput.latency_p50", "Latency, median", "ms", False, "speed", "throughput"),
    Quantity("throughput.latency_p90", "Latency, p90", "ms", False, "speed", "throughput"),
    Quantity("throughput.latency_p99", "Latency, p99", "ms", False, "speed", "throughput"),
)
#: Fewer single calls than this do not support a 99th percentile.
MIN_FOR_P99 = 100


@dataclass(frozen=True)
class Timing:
    """What was measured for one method.

    faces, images: handled per repeat (a method that takes no faces counts one per image).  offline: seconds per repeat
    of one call with all items.  single: seconds of each call with one item, over all repeats.
    """

    label: str
    faces: int
    images: int
    offline: tuple[float, ...]
    single: tuple[float, ...]
    device: str
    threads: int


def synchronise() -> None:
    """Waits for the accelerator, where torch is in use and has one; CPU work is done when a call returns."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_interleaved(
    methods: Sequence[tuple[str, Anonymizer, Sequence[Item]]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    prepare: Callable[[Item], Item] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Times several methods in turn, repeat by repeat, so that a machine that slows down slows all of them.

    methods: (label, anonymizer, items).  Each is loaded and warmed up first.  prepare: runs on every item inside the
    timed section (decoding, detection), for end-to-end figures.  clock: seconds, monotonic.
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
    for _ in range(repeats):
        for i, (_, anonymizer, items) in enumerate(methods):
            start = clock()
            anonymizer.anonymize(ready(items))
            synchronise()
            offline[i].append(clock() - start)
            for item in items:
                start = clock()
                anonymizer.anonymize(ready([item]))
                synchronise()
                single[i].append(clock() - start)
    device, threads = _device(), _threads()
    return [
        Timing(
            label,
            sum(len(item.faces) if item.faces is not None else 1 for item in items),
            len(items),
            tuple(offline[i]),
            tuple(single[i]),
            device,
            threads,
        )
        for i, (label, _, items) in enumerate(methods)
    ]


def _device() -> str:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"


def _threads() -> int:
    import cv2

    return int(cv2.getNumThreads())


def median_interval(values: Sequence[float], level: float) -> tuple[float | None, float | None, str, str]:
    """(lo, hi, method, reason) of the median of repeats: order statistics, no assumption on their distribution.

    The coverage of [x(k), x(n+1-k)] is 1 - 2 P(Bin(n, 1/2) < k); with few repeats even the full range falls short of
    ``level``, and then the range is given and its true coverage stated.  (David & Nagaraja, Order Statistics, 7.1.)
    """
    from scipy.stats import binom

    x, n = np.sort(values), len(values)
    if n < 2:
        return None, None, "", "one repeat"
    k = 1
    while k + 1 <= (n + 1) // 2 and 1 - 2 * binom.cdf(k, n, 0.5) >= level:
        k += 1
    coverage = 1 - 2 * binom.cdf(k - 1, n, 0.5)
    return float(x[k - 1]), float(x[n - k]), f"order statistics of {n} repeats, coverage {coverage:.3f}", ""


def rows(timing: Timing, dataset: str, protocol: Protocol) -> list[Row]:
    """The timing as rows (``timing=True``)."""
    note = f"method alone, faces given; {timing.device}, {timing.threads} threads; {timing.images} images, {timing.faces} faces"
    speeds = [timing.faces / seconds for seconds in timing.offline]
    lo, hi, how, why = median_interval(speeds, protocol.confidence)
    common = {"dataset": dataset, "method": timing.label, "timing": True, "family": "throughput", "n_images": timing.images}
    by_name = {q.name: q for q in QUANTITIES}

    def row(name: str, value: float | None, **more: object) -> Row:
        q = by_name[name]
        return Row(metric=name, unit=q.unit, higher_is_better=q.higher_is_better, value=value, note=note, **common, **more)  # type: ignore[arg-type]

    if timing.faces == 0:
        first = row("throughput.faces_per_s", None, reason="no face in the timed images", ci_reason="no value")
    else:
        first = row(
            "throughput.faces_per_s",
            float(np.median(speeds)),
            lo=lo,
            hi=hi,
            ci_level=protocol.confidence,
            ci_method=how,
            ci_reason=why,
        )
    found = [first]
    for name, share in (("latency_p50", 50), ("latency_p90", 90), ("latency_p99", 99)):
        few = share == 99 and len(timing.single) < MIN_FOR_P99
        value = None if few else float(np.percentile(timing.single, share) * 1000)
        found.append(
            row(
                f"throughput.{name}",
                value,
                reason=f"{len(timing.single)} calls are too few for a 99th percentile" if few else "",
                ci_reason="quantiles of single calls carry no interval",
            )
        )
    return found
