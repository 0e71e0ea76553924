"""Throughput of an anonymizer: its model resident, warmed up, the device synchronised, repeats of methods interleaved.

Two scopes are timed: the method alone (images decoded, faces given), and end to end, from the bytes of the file to those of a
PNG, the search for faces included where the method needs them.  Each in two ways: offline, at the batch size that a search found
quickest, and single-stream, one image a call.  How it is done is in :mod:`deidbench.metrics._timed`; what is made of it is here.
These figures are wall-clock: they carry the machine they were taken on, and no two runs share them to the digit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deidbench.anonymizers.base import Anonymizer
from deidbench.metrics._meters import synchronise
from deidbench.metrics._timed import Settings, Subject, Timing, measure_methods
from deidbench.metrics.base import Protocol, Quantity
from deidbench.records import Row
from deidbench.stats.evidence import Evidence
from deidbench.types import Item

__all__ = [
    "QUANTITIES",
    "VERSION",
    "Timing",
    "costs",
    "measure",
    "measure_interleaved",
    "median_interval",
    "memory",
    "rows",
    "speedup",
    "synchronise",
]

#: Raise it when the same code would be timed in another way: stored timings carry it in their key.
VERSION = "2"
PREFIX, WHOLE = "throughput.", "throughput.end_to_end_"


def _quantity(name: str, title: str, unit: str, higher_is_better: bool | None = False) -> Quantity:
    return Quantity(PREFIX + name, title, unit, higher_is_better, "speed", "throughput")


QUANTITIES = (
    _quantity("faces_per_s", "Speed", "faces/s", True),
    _quantity("latency_p50", "Latency, median", "ms"),
    _quantity("latency_p90", "Latency, p90", "ms"),
    _quantity("latency_p99", "Latency, p99", "ms"),
    _quantity("end_to_end_faces_per_s", "Speed, end to end", "faces/s", True),
    _quantity("end_to_end_latency_p50", "Latency end to end, median", "ms"),
    _quantity("end_to_end_latency_p90", "Latency end to end, p90", "ms"),
    _quantity("end_to_end_latency_p99", "Latency end to end, p99", "ms"),
    _quantity("speedup", "Speed relative to another method", "ratio", True),
    _quantity("memory", "Memory taken", "MiB"),
    _quantity("peak_memory", "Memory of the process, peak", "MiB", None),
    _quantity("gpu_memory", "GPU memory taken", "MiB"),
    _quantity("seconds_per_1000", "Time per 1,000 images", "s"),
    _quantity("core_seconds_per_1000", "Processor time per 1,000 images", "core-s"),
    _quantity("cost_per_1000", "Price of 1,000 images", "currency"),
)
#: Fewer single calls than this do not support a 99th percentile.
MIN_FOR_P99 = 100


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
    batch: int | None = 0,
    prepare: Callable[[Item], Item] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Times several methods in turn, repeat by repeat, so that a machine that slows down slows all of them.

    methods: (label, anonymizer, items).  Each is loaded and warmed up first.  batch: items per call in the offline
    figure, 0 for all in one call, None to look for the best.  prepare: runs on every item inside the timed section (decoding,
    detection), for end-to-end figures.  clock: seconds, monotonic.
    """
    if not all(items for _, _, items in methods):
        raise ValueError("nothing to time: no items")
    subjects = [
        Subject(label, anonymizer, items) if prepare is None else Subject(label, anonymizer, whole=items, prepare=prepare)
        for label, anonymizer, items in methods
    ]
    found = measure_methods(subjects, Settings(repeats, warmup, batch), clock=clock)
    return [t for timed in found if (t := timed.alone or timed.whole) is not None]


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


def _note(timing: Timing) -> str:
    """What was timed, and how, in parts."""
    said = [
        "end to end: read, decode, find faces if need be, anonymise, encode"
        if timing.end_to_end
        else "method alone, faces given",
        f"{timing.device}, {timing.threads} threads",
    ]
    if timing.libraries:
        said.append(f"threads: {timing.libraries}")
    said.append(f"{timing.images} images, {timing.faces} faces")
    if timing.batch:
        said.append(f"{timing.batch} images a call")
    if timing.withheld:
        said.append(f"{timing.withheld} images withheld: their time counts, their faces do not")
    first = [r for r in timing.remarks if r.startswith("untrusted")]  # where readers of notes look for it
    return "; ".join([*first, *said, *(r for r in timing.remarks if r not in first)])


def _common(timing: Timing, dataset: str) -> dict[str, Any]:
    return {
        "dataset": dataset, "method": timing.label, "n_images": timing.images, "n_failed": timing.withheld, "note": _note(timing),
        "trusted": timing.trusted,
    }  # fmt: skip


def _nothing(timing: Timing) -> str:
    """Why there is no figure at all; "" where there is."""
    return timing.fault or ("nothing was released" if timing.withheld >= timing.images else "")


def rows(timing: Timing, dataset: str, protocol: Protocol) -> list[Row]:
    """Speed and latencies as rows (``timing=True``): the median over the repeats, with its interval.

    A latency is the quantile over the single calls of a repeat; the 99th percentile is taken over all repeats' calls
    together and has no interval.
    """
    prefix = WHOLE if timing.end_to_end else PREFIX
    common, level = _common(timing, dataset), protocol.confidence
    if reason := _nothing(timing):
        names = ("faces_per_s", "latency_p50", "latency_p90", "latency_p99")
        return [_row(prefix + name, None, reason=reason, ci_reason="no value", **common) for name in names]
    if timing.faces == 0:
        first = _row(
            f"{prefix}faces_per_s", None, reason="no face in the images that were released", ci_reason="no value", **common
        )
    else:
        speeds = [timing.faces / seconds for seconds in timing.offline]
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


def memory(timing: Timing, dataset: str) -> list[Row]:
    """Peak memory as rows: one pass at the batch of the offline figure, so without an interval.

    ``throughput.memory`` is what was added to what the process held before the method was loaded, weights and programs that it
    started included; ``throughput.peak_memory`` is all of it.  ``throughput.gpu_memory``, above what torch held before, is there
    where a GPU was used.
    """
    common = _common(timing, dataset)
    if timing.memory_how:
        common["note"] += f"; {timing.memory_how}"
    found = []
    for name, value in (("memory", timing.memory_mib), ("peak_memory", timing.peak_mib), ("gpu_memory", timing.gpu_mib)):
        if name == "gpu_memory" and value is None:  # the device is in every note
            continue
        reason = timing.fault or ("" if value is not None else "no pass under watch")
        value = None if reason else value
        why = "no value" if reason else "one pass"
        found.append(_row(PREFIX + name, value, reason=reason, ci_reason=why, **common))
    return found


def costs(
    timing: Timing, dataset: str, protocol: Protocol, price_per_hour: float | None = None, currency: str = ""
) -> list[Row]:
    """What 1,000 images take, as rows; of an end-to-end timing as a rule.

    With N images and T_r seconds, C_r processor seconds in repeat r: seconds 1000 T_r / N, processor seconds 1000 C_r / N, and
    with a price p of the machine per hour 1000 T_r / N * p / 3600.  Images that were withheld cost as well.
    """
    common, level = _common(timing, dataset), protocol.confidence
    scale = 1000 / timing.images if timing.images else 0.0
    wall, core = [t * scale for t in timing.offline], [c * scale for c in timing.core_seconds]
    lines: list[tuple[str, Sequence[float], str]] = [("seconds_per_1000", wall, ""), ("core_seconds_per_1000", core, "")]
    if price_per_hour is not None:
        lines.append(("cost_per_1000", [t * price_per_hour / 3600 for t in wall], currency))
    found = []
    for name, values, unit in lines:
        if reason := _nothing(timing) or ("" if values else "processor time was not measured"):
            found.append(_row(PREFIX + name, None, reason=reason, ci_reason="no value", **common))
        else:
            found.append(_row(PREFIX + name, float(np.median(values)), **_spread(values, level), **common))
        if unit:
            found[-1] = dataclasses.replace(
                found[-1], unit=unit, note=f"{found[-1].note}; at {price_per_hour:g} {currency} an hour for the machine"
            )
    return found


def speedup(timing: Timing, reference: Timing, dataset: str, protocol: Protocol) -> Row:
    """How many times as fast as ``reference`` in faces/s: the median ratio of interleaved repeats (``comparison`` names it).

    Both come from one :func:`measure_interleaved`; repeat i of one is set against repeat i of the other.  Order statistics
    of the ratios are those of their logarithms, so that which of the two is the reference makes no difference.
    Raises ValueError where the repeats do not pair.
    """
    common = {
        "dataset": dataset, "method": timing.label, "comparison": reference.label, "n_images": timing.images,
        "trusted": timing.trusted and reference.trusted,
    }  # fmt: skip
    said = [r for t in (timing, reference) for r in ([] if t.trusted else [f"{t.label}: {'; '.join(t.remarks)}"])]
    if timing.images != reference.images:
        said.append(f"on {timing.images} and {reference.images} images")
    common["note"] = "; ".join(said)
    for who in (timing, reference):
        if why := _nothing(who):
            return _row("throughput.speedup", None, reason=f"{who.label}: {why}", ci_reason="no value", **common)
    if len(timing.offline) != len(reference.offline):
        raise ValueError(f"{len(timing.offline)} and {len(reference.offline)} repeats do not pair: time both interleaved")
    if timing.faces == 0 or reference.faces == 0:
        who = timing if timing.faces == 0 else reference
        return _row("throughput.speedup", None, reason=f"{who.label} released no face", ci_reason="no value", **common)
    speeds = np.array([timing.faces / s for s in timing.offline]) * np.array(reference.offline) / reference.faces
    value = float(np.exp(np.median(np.log(speeds))))
    return _row("throughput.speedup", value, **_spread(list(speeds), protocol.confidence), **common)
