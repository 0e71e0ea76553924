"""Timing, with a clock of our own: what is counted, in which order, and how the spread is stated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom

from deidbench.anonymizers.base import Anonymizer
from deidbench.metrics.base import Protocol
from deidbench.metrics.throughput import Timing, measure_interleaved, median_interval, rows
from deidbench.types import Anonymized, Box, Face, Item, Status


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Slow(Anonymizer):
    """Takes a second per call and a tenth per item, on a clock of the test's."""

    def __init__(self, clock: _Clock, log: list[str], who: str) -> None:
        self.clock, self.log, self.who, self.loaded = clock, log, who, 0

    def load(self) -> None:
        self.loaded += 1

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        self.clock.now += 1 + 0.1 * len(items)
        self.log.append(self.who)
        return [Anonymized(i.id, Status.OK, i.image) for i in items]


def _items(n: int, faces: int | None = 1) -> list[Item]:
    image = np.zeros((4, 4, 3), np.uint8)
    found = None if faces is None else tuple(Face(Box(0, 0, 2, 2)) for _ in range(faces))
    return [Item(str(i), image, found) for i in range(n)]


def test_counts_seconds_and_interleaving() -> None:
    clock, log = _Clock(), []
    a, b = _Slow(clock, log, "a"), _Slow(clock, log, "b")
    timings = measure_interleaved([("A", a, _items(5, 2)), ("B", b, _items(5, None))], repeats=3, clock=clock)
    assert a.loaded == 1
    assert [t.label for t in timings] == ["A", "B"]
    assert timings[0].offline == pytest.approx([1.5] * 3)
    assert timings[0].single == pytest.approx([1.1] * 15)
    assert (timings[0].faces, timings[1].faces) == (10, 5)
    timed = "".join(log[4:])  # two warm-up calls each come first
    assert timed == ("a" * 6 + "b" * 6) * 3, "repeat by repeat, not method by method"
    speed, p50, p90, p99 = rows(timings[0], "d", Protocol())
    assert speed.value == pytest.approx(10 / 1.5)
    assert speed.unit == "faces/s"
    assert speed.timing
    assert p50.value == pytest.approx(1100)
    assert p90.value == pytest.approx(1100)
    assert p99.value is None
    assert "too few" in p99.reason


def test_preparation_is_timed_when_asked_for() -> None:
    clock = _Clock()

    def prepare(item: Item) -> Item:
        clock.now += 10
        return item

    [timing] = measure_interleaved([("A", _Slow(clock, [], "a"), _items(2))], repeats=2, clock=clock, prepare=prepare)
    assert timing.offline == pytest.approx([21.2] * 2)


def test_no_faces_is_no_rate() -> None:
    timing = Timing("A", 0, 3, (1.0, 1.0), (0.3,) * 6, "cpu", 1)
    speed = rows(timing, "d", Protocol())[0]
    assert speed.value is None
    assert "no face" in speed.reason
    many = dataclasses.replace(timing, faces=3, single=(0.3,) * 200)
    assert rows(many, "d", Protocol())[3].value == pytest.approx(300)


@pytest.mark.parametrize("n", [2, 5, 6, 9, 20, 50])
def test_median_interval_is_the_order_statistic_one(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    lo, hi, method, reason = median_interval(list(x), 0.95)
    assert not reason
    k = int(np.searchsorted(np.sort(x), lo)) + 1
    assert hi == np.sort(x)[n - k]
    coverage = 1 - 2 * binom.cdf(k - 1, n, 0.5)
    assert f"{coverage:.3f}" in method
    narrower = 1 - 2 * binom.cdf(k, n, 0.5)
    assert k == 1 or coverage >= 0.95
    assert narrower < 0.95 or k + 1 > (n + 1) // 2


def test_one_repeat_or_no_item_is_refused() -> None:
    clock = _Clock()
    with pytest.raises(ValueError, match="two repeats"):
        measure_interleaved([("A", _Slow(clock, [], "a"), _items(1))], repeats=1, clock=clock)
    with pytest.raises(ValueError, match="no items"):
        measure_interleaved([("A", _Slow(clock, [], "a"), [])], repeats=2, clock=clock)
    assert median_interval([1.0], 0.95)[3] == "one repeat"
