"""Timing, with a clock of our own: what is counted, in which order, and how the spread is stated."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from deidbench.anonymizers.base import Anonymizer
from deidbench.metrics.base import Protocol
from deidbench.metrics.throughput import QUANTITIES, Timing, measure, measure_interleaved, median_interval, rows, speedup
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


class _Withholds(_Slow):
    """Releases every second image only."""

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        return [r if int(r.id) % 2 else Anonymized.failed(r.id, "odd ones only") for r in super().anonymize(items)]


def test_what_is_withheld_earns_no_faces() -> None:
    """Otherwise a method that gives up at once would be the fastest of all."""
    clock = _Clock()
    timing = measure(_Withholds(clock, [], "a"), _items(5, 2), repeats=2, clock=clock)
    assert (timing.faces, timing.images, timing.withheld) == (4, 5, 3)
    speed = rows(timing, "d", Protocol())[0]
    assert speed.value == pytest.approx(4 / 1.5)
    assert speed.n_failed == 3
    assert "3 images withheld" in speed.note
    nothing = measure(_Withholds(clock, [], "a"), _items(1), repeats=2, clock=clock)
    assert rows(nothing, "d", Protocol())[0].reason == "nothing was released"


def test_batches_are_timed_as_they_come() -> None:
    clock, log = _Clock(), []
    timing = measure(_Slow(clock, log, "a"), _items(5), repeats=2, warmup=0, batch=2, clock=clock)
    assert timing.offline == pytest.approx([3.5] * 2), "three calls and five images"
    assert timing.faces == 5
    assert len(log) == 2 * (3 + 5)
    assert "2 images a call" in rows(timing, "d", Protocol())[0].note


def test_end_to_end_figures_have_names_of_their_own() -> None:
    clock = _Clock()
    alone = measure(_Slow(clock, [], "a"), _items(2), repeats=2, clock=clock)
    whole = measure(_Slow(clock, [], "a"), _items(2), repeats=2, clock=clock, prepare=lambda item: item)
    names = {q.name for q in QUANTITIES}
    assert not {r.metric for r in rows(alone, "d", Protocol())} & {r.metric for r in rows(whole, "d", Protocol())}
    for timing, said in ((alone, "method alone"), (whole, "end to end")):
        for row in rows(timing, "d", Protocol()):
            assert row.metric in names
            assert row.note.startswith(said)


def test_prepared_faces_are_the_ones_that_count() -> None:
    clock = _Clock()
    found = (Face(Box(0, 0, 2, 2)), Face(Box(1, 1, 3, 3)), Face(Box(0, 1, 2, 3)))
    timing = measure(
        _Slow(clock, [], "a"), _items(2, None), repeats=2, clock=clock, prepare=lambda i: dataclasses.replace(i, faces=found)
    )
    assert timing.faces == 6


def test_latencies_are_quantiles_of_a_repeat_and_their_spread_that_of_repeats() -> None:
    calls = np.random.default_rng(0).gamma(2, 1, (7, 20))
    timing = Timing("A", 20, 20, (1.0,) * 7, tuple(calls.ravel()), "cpu", 1)
    _, p50, p90, p99 = rows(timing, "d", Protocol())
    assert p50.value == pytest.approx(1000 * np.median([np.median(c) for c in calls]))
    assert p90.value == pytest.approx(1000 * np.median([np.percentile(c, 90) for c in calls]))
    assert p90.lo is not None
    assert p90.hi is not None
    assert p90.lo < p90.value < p90.hi
    assert p99.value == pytest.approx(1000 * np.percentile(calls, 99))
    assert p99.lo is None
    assert p99.ci_reason


@pytest.mark.parametrize(("repeats", "level"), [(5, 0.9375), (6, 0.95), (9, 0.95)])
def test_five_repeats_do_not_claim_95_percent(repeats: int, level: float) -> None:
    timing = Timing("A", 1, 1, tuple(1.0 + i for i in range(repeats)), (1.0,) * repeats, "cpu", 1)
    assert rows(timing, "d", Protocol())[0].ci_level == pytest.approx(level)


def test_the_interval_of_the_median_covers_as_stated() -> None:
    """2000 experiments with a known median: the share of intervals that hold it is the stated coverage."""
    draws = np.random.default_rng(1).lognormal(0, 0.5, (2000, 6))
    held = 0
    for x in draws:
        lo, hi, method, _ = median_interval(list(x), 0.95)
        assert lo is not None
        assert hi is not None
        held += lo <= 1 <= hi
        assert "coverage 0.969" in method
    assert held / 2000 == pytest.approx(0.969, abs=0.015)


def test_speedup_pairs_repeats_and_is_the_same_from_either_side() -> None:
    drift = np.array([1, 1.5, 2, 4, 3, 8.0])  # the machine gets slower: both suffer alike
    fast = Timing("fast", 10, 10, tuple(drift), (0.1,) * 60, "cpu", 1)
    slow = Timing("slow", 10, 10, tuple(drift * (2, 2.1, 1.9, 2, 2.2, 1.8)), (0.2,) * 60, "cpu", 1)
    row, back = speedup(fast, slow, "d", Protocol()), speedup(slow, fast, "d", Protocol())
    assert row.value == pytest.approx(2)
    assert (row.lo, row.hi) == pytest.approx((1.8, 2.2))
    assert row.comparison == "slow"
    assert back.value == pytest.approx(1 / row.value)
    assert (back.lo, back.hi) == pytest.approx((1 / 2.2, 1 / 1.8))
    none = speedup(dataclasses.replace(fast, faces=0), slow, "d", Protocol())
    assert none.value is None
    assert "fast released no face" in none.reason
    with pytest.raises(ValueError, match="do not pair"):
        speedup(fast, dataclasses.replace(slow, offline=(1.0, 2.0)), "d", Protocol())


def test_the_gpu_is_waited_for_and_named_for_those_who_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for torch: work is handed out at once and done only when synchronised."""
    clock = _Clock()
    state = {"pending": 0.0, "held": 100 << 20, "peak": 0}

    def synchronise() -> None:
        clock.now += state["pending"]
        state["pending"] = 0.0

    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        synchronize=synchronise,
        reset_peak_memory_stats=lambda: state.update(peak=state["held"]),
        memory_allocated=lambda: state["held"],
        max_memory_allocated=lambda: state["peak"],
        get_device_name=lambda: "Some GPU",
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]

    class OnGpu(_Slow):
        def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
            state["pending"] += 5
            state["peak"] = max(state["peak"], 300 << 20)
            return super().anonymize(items)

    methods: list[tuple[str, Anonymizer, Sequence[Item]]] = [
        ("gpu", OnGpu(clock, [], "g"), _items(2)),
        ("cpu", _Slow(clock, [], "c"), _items(2)),
    ]
    gpu, cpu = measure_interleaved(methods, repeats=2, clock=clock)
    assert gpu.offline == pytest.approx([6.2] * 2)
    assert gpu.single == pytest.approx([6.1] * 4)
    assert (gpu.device, gpu.gpu_mib) == ("Some GPU", 200), "above what was held before"
    assert (cpu.device, cpu.gpu_mib) == ("cpu", None), "a neighbour's model on the GPU is not this method's"
    assert cpu.offline == pytest.approx([1.2] * 2)
    assert "Some GPU" in rows(gpu, "d", Protocol())[0].note
