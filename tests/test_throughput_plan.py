"""How methods are timed: the search for a batch, what is cut for time, memory and processor time, what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deidbench import timing as stage
from deidbench.anonymizers.base import Anonymizer
from deidbench.errors import SuiteError
from deidbench.kinds import anonymizers
from deidbench.metrics import _meters as meters
from deidbench.metrics import throughput
from deidbench.metrics._timed import FAILED, Settings, Subject, Timing, Verdict, affordable, best_batch, measure_methods
from deidbench.metrics.base import Protocol
from deidbench.pipeline import Output, pixels_sha256
from deidbench.records import read_run
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite
from deidbench.types import Anonymized, Box, Face, Item, Status

IMAGE = np.zeros((4, 4, 3), np.uint8)


def items(n: int) -> list[Item]:
    return [Item(str(i), IMAGE, (Face(Box(0, 0, 2, 2)),)) for i in range(n)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Costly(Anonymizer):
    """``call`` seconds a call and ``each`` an image on a clock of the test's; writes down how many images each call had."""

    def __init__(self, clock: Clock, call: float = 0.0, each: float = 1.0, most: int = 10**9) -> None:
        self.clock, self.call, self.each, self.most = clock, call, each, most
        self.calls: list[int] = []

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        self.calls.append(len(items))
        if len(items) > self.most:
            raise MemoryError
        self.clock.now += self.call + self.each * len(items)
        return [Anonymized(i.id, Status.OK, i.image) for i in items]


# ------------------------------------------------------------------------------------------------------ batch search
def rate_of(seconds: Any, released: Any = lambda b: 32) -> Any:
    return lambda b: (b / seconds(b), released(b))


def test_the_batch_with_the_highest_rate_is_found() -> None:
    found = best_batch(rate_of(lambda b: 1 + 0.1 * b + 0.01 * b * b), 64)  # b / (1 + b/10 + b^2/100) is highest at 10
    assert found.batch == 8
    assert list(found.tried) == [1, 2, 4, 8, 16, 32], "two sizes in a row gained nothing"
    assert found.words == "batch of 8, the quickest of 1, 2, 4, 8, 16, 32"


def test_a_tie_goes_to_the_smaller_and_ends_the_search() -> None:
    assert best_batch(rate_of(lambda b: 1.0 * b), 64)[:2] == (1, {1: 1.0, 2: 1.0, 4: 1.0})
    assert best_batch(rate_of(lambda b: 1.0 * b * (0.95 if b > 1 else 1)), 64).batch == 1, "5 % is noise"
    falls = best_batch(rate_of(lambda b: 1.0 * b**1.5), 64)
    assert list(falls.tried) == [1, 2]
    assert best_batch(rate_of(lambda b: 1.0), 1).words == "batch of 1"
    assert best_batch(rate_of(lambda b: 1.0), 5).batch == 4, "no more than there are images"


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("CUDA"), RuntimeError("CUDA out of memory. Tried")])
def test_memory_that_fails_ends_the_search(error: Exception) -> None:
    def rate(b: int) -> tuple[float, int]:
        if b > 4:
            raise error
        return float(b), 32

    found = best_batch(rate, 64)
    assert found.batch == 4
    assert "out of memory at 8" in found.words


def test_a_batch_that_loses_images_is_none() -> None:
    found = best_batch(rate_of(lambda b: 1.0, lambda b: 32 if b < 4 else 0), 64)
    assert (found.batch, found.stopped) == (2, "fewer images released at 4")


def test_the_chosen_batch_is_what_is_timed() -> None:
    clock = Clock()
    method = Costly(clock, call=1.0, each=0.1, most=8)
    [timed] = measure_methods([Subject("m", method, items(32))], Settings(repeats=2), clock=clock)
    t = timed.alone
    assert t is not None and t.batch == 8
    assert t.offline == pytest.approx([4 * 1.8] * 2)
    assert t.single == pytest.approx([1.1] * 64)
    note = throughput.rows(t, "d", Protocol())[0].note
    assert "8 images a call" in note and "out of memory at 16" in note


# -------------------------------------------------------------------------------------------------------- both scopes
def test_both_scopes_are_interleaved_and_single_calls_serve_both() -> None:
    clock, log = Clock(), []

    class Logged(Costly):
        def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
            log.append(f"{who[id(self)]}{len(items)}")
            return super().anonymize(items)

    def prepare(item: Item) -> Item:
        clock.now += 10
        log.append("read")
        return item

    def finish(result: Anonymized) -> None:
        clock.now += 5
        log.append("write")

    a, b = Logged(clock), Logged(clock)
    who = {id(a): "a", id(b): "b"}
    subjects = [Subject(n, m, items(2), items(1), prepare, finish) for n, m in (("A", a), ("B", b))]
    first, _ = measure_methods(subjects, Settings(repeats=2), clock=clock)
    assert log[-20:] == ["a1", "a1", "read", "a1", "write", "b1", "b1", "read", "b1", "write"] * 2
    assert first.alone is not None and first.whole is not None
    assert (first.alone.offline, first.alone.single) == ((2.0, 2.0), (1.0,) * 4), "a batch of one: the same calls"
    assert first.whole.single == pytest.approx([16.0] * 2)
    assert first.whole.end_to_end and not first.alone.end_to_end


# -------------------------------------------------------------------------------------------------------------- budget
def test_images_are_cut_first_then_repeats_and_never_below_two() -> None:
    assert affordable([32, 8], [0.001, 0.03], 6, 60) == ([32, 8], 6)
    sizes, repeats = affordable([32, 8], [1.0, 1.0], 6, 60)
    assert repeats == 6 and 4 <= sizes[0] < 32 and sizes[1] == -(-8 * sizes[0] // 32)
    assert sizes[0] * 10 + sizes[1] * 7 <= 60 < (sizes[0] + 1) * 10 + sizes[1] * 7 + 7
    assert affordable([32, 8], [4.0, 4.0], 6, 80) == ([4, 1], 3) or affordable([32, 8], [4.0, 4.0], 6, 80)[1] in (2, 3)
    assert affordable([32, 8], [1000.0, 1000.0], 6, 60) == ([1, 1], 2)
    assert affordable([2], [1000.0], 6, 60) == ([1], 2)


@pytest.mark.parametrize("each", [0.001, 1.0, 100.0])
def test_a_slow_method_is_timed_on_less_and_says_so(each: float) -> None:
    clock = Clock()
    subject = Subject("m", Costly(clock, each=each), items(32), items(8), lambda i: i)
    [timed] = measure_methods([subject], Settings(repeats=6, max_seconds=60), clock=clock)
    assert timed.alone is not None and timed.whole is not None
    speed, _, _, p99 = throughput.rows(timed.alone, "d", Protocol())
    assert speed.value == pytest.approx(1 / each)
    assert len(timed.alone.offline) >= 2
    if each == 0.001:
        assert (timed.alone.images, len(timed.alone.offline), timed.whole.images) == (32, 6, 8)
        assert "cut" not in speed.note
        assert p99.value == pytest.approx(1.0)
    else:
        assert timed.alone.images < 32
        assert f"cut to {timed.alone.images} and {timed.whole.images} of 32 and 8 images" in speed.note
        assert p99.value is None and "too few" in p99.reason
        assert clock.now <= 70 or each == 100.0
    if each == 100.0:
        assert (timed.alone.images, len(timed.alone.offline)) == (1, 2)


def test_a_method_that_gets_slower_is_stopped() -> None:
    clock = Clock()

    class Tired(Costly):
        def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
            if len(self.calls) > 20:
                self.clock.now += 50
            return super().anonymize(items)

    [timed] = measure_methods([Subject("m", Tired(clock, each=0.1), items(4))], Settings(6, max_seconds=60), clock=clock)
    assert timed.alone is not None and len(timed.alone.offline) == 3, "then 251 s had gone by"
    assert any("3 of 6 repeats" in r for r in timed.alone.remarks)


# ---------------------------------------------------------------------------------------------------- what goes wrong
class Raises(Costly):
    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        raise RuntimeError("no such layer\nand a trace")


class Hangs(Costly):
    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        self.calls.append(len(items))
        self.clock.now += 120 * len(items)
        return [Anonymized.failed(i.id, "took longer than 120 s") for i in items]


class Withholds(Costly):
    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        return [Anonymized.no_face(r.id) for r in super().anonymize(items)]


def all_rows(timed: Any) -> list[Any]:
    p = Protocol()
    return [
        *throughput.rows(timed.alone, "d", p), *throughput.memory(timed.alone, "d"), *throughput.rows(timed.whole, "d", p),
        *throughput.costs(timed.whole, "d", p, 1.0, "EUR"),
    ]  # fmt: skip


def test_what_goes_wrong_with_one_leaves_the_others_alone() -> None:
    clock = Clock()
    hangs = Hangs(clock)
    methods = {"raises": Raises(clock), "hangs": hangs, "withholds": Withholds(clock), "fine": Costly(clock, each=0.1)}
    subjects = [Subject(n, m, items(4), items(2), lambda i: i) for n, m in methods.items()]
    raises, hung, withholds, fine = measure_methods(subjects, Settings(2, max_seconds=60), clock=clock)
    for timed, why in ((raises, f"{FAILED}: RuntimeError: no such layer"), (hung, "the first image took 120 s of the 60 s")):
        for row in all_rows(timed):
            assert row.value is None and row.reason.startswith(why) and row.ci_reason, row.metric
    assert hangs.calls == [1], "not a second time"
    for row in all_rows(withholds):
        assert (row.value is None and row.reason == "nothing was released") or "memory" in row.metric, row.metric
    assert all(row.value is not None or "p99" in row.metric for row in all_rows(fine))
    row = throughput.speedup(fine.alone, raises.alone, "d", Protocol())  # type: ignore[arg-type]
    assert row.value is None and row.reason.startswith("raises: timing failed")


# -------------------------------------------------------------------------------------------------------------- meters
class Holds(Anonymizer):
    """Weights of 100 MiB, and 200 MiB while it works."""

    def load(self) -> None:
        self.weights = np.ones(100 * 2**20, np.uint8)

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        held = np.ones(200 * 2**20, np.uint8)
        return [Anonymized(i.id, Status.OK, i.image + np.uint8(held[0] - 1)) for i in items]


def memory_of(method: Anonymizer) -> tuple[Any, Any]:
    [timed] = measure_methods([Subject("m", method, items(1))], Settings(2))
    assert timed.alone is not None
    taken, peak = throughput.memory(timed.alone, "d")
    return taken, peak


def test_memory_at_its_peak_is_seen() -> None:
    taken, peak = memory_of(Holds())
    assert (taken.metric, taken.unit, taken.higher_is_better) == ("throughput.memory", "MiB", False)
    assert taken.value == pytest.approx(300, abs=20)
    assert peak.value > taken.value
    assert taken.lo is None and taken.ci_reason == "one pass"
    nothing, _ = memory_of(Costly(Clock()))
    assert nothing.value < 20, "what the one before took is not counted again"


def test_without_a_high_water_mark_a_thread_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_reset_high_water", lambda: False)
    base = meters.settled()
    with meters.Watch() as watch:
        held = np.ones(200 * 2**20, np.uint8)
        meters.time.sleep(0.2)  # type: ignore[attr-defined]
        del held
    assert (watch.peak - base) / 2**20 == pytest.approx(200, abs=20)
    assert "sampled" in watch.how


class Starts(Anonymizer):
    """Starts a program for each image that takes 150 MiB and half a second of a processor."""

    CODE = "import time; a = bytearray(150 * 2**20); a[::4096] = b'x' * len(a[::4096])\nwhile time.process_time() < 0.5: pass"

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        import subprocess

        for _ in items:
            subprocess.run([sys.executable, "-I", "-S", "-c", self.CODE], check=True)
        return [Anonymized(i.id, Status.OK, i.image) for i in items]


def test_programs_that_a_method_starts_are_counted() -> None:
    [timed] = measure_methods([Subject("m", Starts(), whole=items(1), prepare=lambda i: i)], Settings(2))
    t = timed.whole
    assert t is not None and t.memory_mib == pytest.approx(158, abs=25)
    assert "its programs sampled" in t.memory_how
    wall, core = throughput.costs(t, "d", Protocol())
    assert core.value == pytest.approx(500, rel=0.25)
    assert wall.value is not None and wall.value >= 500


def test_processor_seconds_of_a_running_child_are_seen() -> None:
    import subprocess

    before = meters.cpu_seconds(programs=True)
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"])
    try:
        for _ in range(200):
            meters.time.sleep(0.05)  # type: ignore[attr-defined]
            if (seen := meters.cpu_seconds(programs=True) - before) > 0.3:
                break
    finally:
        child.kill()
        child.wait()
    assert seen > 0.3
    assert meters.cpu_seconds() - before >= 0.5 * seen, (
        "it is not lost when the child ends (a kernel counts in ticks, and a busy one late)"
    )


# --------------------------------------------------------------------------------------------------------------- price
def test_costs_by_hand() -> None:
    t = Timing("m", 4, 4, (1.0, 2.0, 3.0), (0.5,) * 12, "cpu", 2, end_to_end=True, core_seconds=(2.0, 4.0, 5.0))
    wall, core, price = throughput.costs(t, "d", Protocol(), 3.6, "EUR")
    assert (wall.value, wall.unit) == (pytest.approx(500), "s")  # 2 s for 4 images
    assert (core.value, core.unit) == (pytest.approx(1000), "core-s")
    assert (price.value, price.unit) == (pytest.approx(0.5), "EUR")  # 500 s at 3.6 an hour
    assert (price.lo, price.hi) == (pytest.approx(0.25), pytest.approx(0.75))
    assert price.ci_level == pytest.approx(0.75)
    assert "3.6 EUR an hour" in price.note
    assert len(throughput.costs(t, "d", Protocol())) == 2, "no price, no cost"
    assert {r.metric for r in (wall, core, price)} <= {q.name for q in throughput.QUANTITIES}


def test_a_price_needs_a_currency_and_a_reference_must_be_there() -> None:
    with pytest.raises(SuiteError, match="currency"):
        load_suite("demo", ["throughput.price_per_hour=2.5"])
    suite = load_suite("demo", ["throughput.price_per_hour=2.5", "throughput.currency=EUR", "throughput.reference=mask"])
    assert suite.methods[stage.reference(suite) or 0].label == "mask"
    with pytest.raises(SuiteError, match=r"throughput\.reference.*no method 'masc'"):
        load_suite("demo", ["throughput.reference=masc"])
    plain = load_suite("demo")
    assert not plain.methods[stage.reference(plain) or 0].control, "the first that is no control"
    assert stage.reference(load_suite("demo", only=["original"])) is None
    assert stage.reference(load_suite("demo", ["throughput.reference=mask"], only=["blur"])) is None


# ------------------------------------------------------------------------------------- what is timed is what was judged
def test_outputs_are_compared_with_those_that_were_judged() -> None:
    def output(image: np.ndarray | None) -> Output:
        shape = None if image is None else (image.shape[0], image.shape[1])
        return Output(Status.OK, Status.OK, "", shape, (), sha256="" if image is None else pixels_sha256(image))

    from deidbench.images import encode_png

    other = IMAGE.copy()
    other[0, 0, 0] = 3
    job: Any = SimpleNamespace(
        outputs=[{"0": output(IMAGE), "1": output(None)}],
        samples=[SimpleNamespace(id="0"), SimpleNamespace(id="1")],
        fetch=lambda keys: dict.fromkeys(keys, encode_png(IMAGE)),
    )
    monkey = pytest.MonkeyPatch()
    monkey.setattr(stage, "Keys", lambda *_: SimpleNamespace(picture="p"))
    job.plan = job.fingerprints = None
    try:
        given = items(2)
        same = [Anonymized("0", Status.OK, IMAGE), Anonymized.no_face("1")]
        assert stage.compare(job, 0, given, same).good
        near = stage.compare(job, 0, given, [Anonymized("0", Status.OK, other), same[1]])
        assert near == Verdict(False, "untrusted: 1 of 2 outputs are not those that were judged, by up to 3 of 255 levels")
        more = stage.compare(job, 0, given, [same[0], Anonymized("1", Status.OK, IMAGE)])
        assert more == Verdict(False, "untrusted: 1 of 2 outputs are not those that were judged")
    finally:
        monkey.undo()


class _Quick(Anonymizer):
    """Does less where it is timed than where it is judged: from the 21st image on that this process sees."""

    needs_faces = False
    seen = 0

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        out = []
        for item in items:
            _Quick.seen += 1
            out.append(Anonymized(item.id, Status.OK, np.full_like(item.image, 0 if _Quick.seen <= JUDGED else 1)))
        return out


JUDGED = 6
anonymizers.register("test-quick")(_Quick)

SUITE = """\
[suite]
name = "timed"
extends = "deidbench-v1"
inherit_methods = false
[dataset]
name = "folder"
params = { root = "%s" }
[protocol]
replicates = 200
curve_replicates = 100
[[recognizers]]
name = "sface"
[throughput]
images = 3
end_to_end_images = 2
repeats = 2
price_per_hour = 7.2
currency = "EUR"
[report]
samples = 0
[[methods]]
name = "original"
control = true
[[methods]]
name = "pixelate"
[[methods]]
name = "mask"
[[methods]]
name = "test-quick"
"""


def test_a_run_reports_both_scopes_and_catches_a_method_that_is_timed_on_other_work(tmp_path: Path, orl_folder: Path) -> None:
    import shutil

    for p in (1, 7, 14):
        (tmp_path / "faces" / f"p{p}").mkdir(parents=True)
        for i in (1, 3):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", tmp_path / "faces" / f"p{p}" / f"{i}.pgm")
    suite = tmp_path / "timed.toml"
    suite.write_text(SUITE % (tmp_path / "faces"))
    _Quick.seen = 0
    options = Options(workers=1, cache=tmp_path / "cache", quiet=True)
    result = run_suite(load_suite(str(suite)), tmp_path / "run", options)
    assert result.computed["timing"] == 4
    rows = read_run(tmp_path / "run").rows
    rows = rows[rows.timing]
    by = rows.set_index(["method", "metric"])
    for method in ("original", "pixelate", "mask"):
        alone, whole = by.value[method, "throughput.latency_p50"], by.value[method, "throughput.end_to_end_latency_p50"]
        assert 0 < alone < whole, "reading takes time"
        assert by.value[method, "throughput.seconds_per_1000"] > 0
        per_hour = by.value[method, "throughput.cost_per_1000"] * 3600 / 7.2
        assert per_hour == pytest.approx(by.value[method, "throughput.seconds_per_1000"])
        assert by.unit[method, "throughput.cost_per_1000"] == "EUR"
        assert by.trusted[method].all()
        assert "the same" in by.note[method, "throughput.faces_per_s"]
    others = rows[rows.metric == "throughput.speedup"]
    assert sorted(others.method) == ["mask", "original", "test-quick"]
    assert set(others.comparison) == {"pixelate"}
    quick = rows[rows.method == "test-quick"]
    assert not quick.trusted.any()
    assert quick.note.str.contains("3 of 3 outputs are not those that were judged, by up to 1 of 255 levels").all()
    again = run_suite(load_suite(str(suite)), tmp_path / "again", options)
    assert again.computed == {}
    kept = read_run(tmp_path / "again").rows
    assert not kept[(kept.method == "test-quick") & kept.timing].trusted.any(), "stored timings keep the verdict"


@pytest.mark.slow
def test_crops_are_timed_as_they_are_judged(tmp_path: Path, orl_folder: Path) -> None:
    """At crop level a method is given the aligned face: timing must not give it the frame."""
    import shutil

    for p in (1, 7):
        (tmp_path / "faces" / f"p{p}").mkdir(parents=True)
        for i in (1, 3):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", tmp_path / "faces" / f"p{p}" / f"{i}.pgm")
    suite = tmp_path / "timed.toml"
    text = (SUITE % (tmp_path / "faces")).replace("[protocol]\n", '[protocol]\nlevel = "crop"\n')
    suite.write_text(text.replace('[[methods]]\nname = "test-quick"\n', ""))
    run_suite(load_suite(str(suite)), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True))
    rows = read_run(tmp_path / "run").rows
    rows = rows[rows.timing]
    assert rows.trusted.all() and rows.note[rows.metric == "throughput.faces_per_s"].str.contains("the same").all()
