"""How methods are timed: plan, warm-up, batch search, interleaved repeats.  What is made of it: :mod:`deidbench.metrics.throughput`.

For each method in turn: load, warm up, see how long an image takes, cut what does not fit into the time that a method may
take, look for the batch size that is quickest, and go once through all images under a watch on memory.  Then all methods
together, repeat by repeat, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from deidbench.adapter_calls import Blame, blame, relieve
from deidbench.metrics import _meters as meters
from deidbench.metrics._meters import MIB, synchronise
from deidbench.types import Anonymized, Item, Status

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer

#: A larger batch is chosen where it is quicker by more than this share; less is noise, and a tie goes to the smaller.
GAIN = 0.1
#: A pass of the batch search that takes less is repeated, and the quickest counts: what disturbs only makes it longer.
SHORT_S, PASSES = 0.1, 3
#: Images are cut down to this many before repeats are cut.
FEW = 4
#: Repeats are ended where a method has taken so many times what it may take.
OVERDRAFT = 1.5
#: Begins the fault of a method that raised.
FAILED = "timing failed"

Call = Callable[["Anonymizer", Sequence[Item]], Sequence[Anonymized]]


def _plain(anonymizer: Anonymizer, items: Sequence[Item]) -> Sequence[Anonymized]:
    return anonymizer.anonymize(items)


class Verdict(NamedTuple):
    """Whether outputs are what they should be, and what a reader is told of it."""

    good: bool
    words: str


@dataclass(frozen=True, eq=False)
class Subject:
    """A method to be timed.

    items: for the method alone, decoded and with faces.  whole: end to end; ``prepare`` makes of each what the method is given
    (reads, decodes, finds faces) and ``finish`` takes what it released (encodes); both are inside the timed section.
    check: outside of it, is shown items and results of the method alone, and says whether they are what was judged.
    """

    label: str
    anonymizer: Anonymizer
    items: Sequence[Item] = ()
    whole: Sequence[Item] = ()
    prepare: Callable[[Item], Item] | None = None
    finish: Callable[[Anonymized], object] | None = None
    check: Callable[[Sequence[Item], Sequence[Anonymized]], Verdict] | None = None


@dataclass(frozen=True)
class Settings:
    """repeats: two or more.  warmup: passes over all images before anything counts.  batch: images a call, 0 for all in one call,
    None to look for the best.  max_seconds: that one method may take, loading left out; None: no bound."""

    repeats: int = 6
    warmup: int = 1
    batch: int | None = None
    max_seconds: float | None = None


@dataclass(frozen=True)
class Timing:
    """What was measured for one method.

    faces: in the images that were released, per repeat (a method that takes no faces counts one per image); an image
    that is withheld costs time and earns nothing.  images: handed in per repeat.  offline: seconds per repeat for all
    items.  single: seconds of each call with one item, repeat after repeat.  withheld: images not released per repeat.
    batch: items per call in ``offline``, 0 for all in one call.  end_to_end: preparing and finishing are in the timed section.
    gpu_mib: GPU memory of torch above what it held before the method was loaded, at its peak; None where none was used.
    memory_mib: resident memory above that before the method was loaded, at its peak.  peak_mib: all of it.  Both in one pass
    at the batch of ``offline``, this process and those that it started.
    core_seconds: processor seconds of each repeat of ``offline``, all processes.
    libraries: threads of each library.  remarks: what a reader must know.  fault: why there is no figure; "" where there is one.
    trusted: False where what was timed is not what was judged (a remark says so).
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
    gpu_mib: float | None = None
    memory_mib: float | None = None
    peak_mib: float | None = None
    core_seconds: tuple[float, ...] = ()
    libraries: str = ""
    remarks: tuple[str, ...] = ()
    fault: str = ""
    trusted: bool = True
    memory_how: str = ""


class Timed(NamedTuple):
    """alone, whole: the method alone, and end to end; None where the subject has no items for it."""

    alone: Timing | None
    whole: Timing | None


class _Pass(NamedTuple):
    """seconds: of each call.  core: processor seconds.  given, results: item by item."""

    seconds: list[float]
    core: float
    given: list[Item]
    results: list[Anonymized]

    @property
    def withheld(self) -> int:
        return sum(r.status is not Status.OK for r in self.results)

    @property
    def faces(self) -> int:
        return sum(
            len(i.faces) if i.faces is not None else 1
            for i, r in zip(self.given, self.results, strict=True)
            if r.status is Status.OK
        )


@dataclass(eq=False)
class _Course:
    """One method in one scope."""

    subject: Subject
    items: list[Item]
    end_to_end: bool
    batch: int = 0
    offline: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)
    faces: int = 0
    withheld: int = 0

    @property
    def step(self) -> int:
        return self.batch or len(self.items)

    def go(self, tools: _Tools, step: int, items: Sequence[Item] | None = None, call: Call | None = None) -> _Pass:
        """Once through the items, ``step`` at a time."""
        s, call = self.subject, call or tools.call
        prepare, finish = (s.prepare, s.finish) if self.end_to_end else (None, None)
        items = self.items if items is None else items
        seconds: list[float] = []
        given: list[Item] = []
        results: list[Anonymized] = []
        core = tools.cpu()
        for at in range(0, len(items), step):
            start = tools.clock()
            part = [prepare(i) for i in items[at : at + step]] if prepare else list(items[at : at + step])
            found = list(call(s.anonymizer, part))
            synchronise()
            if finish:
                for r in found:
                    finish(r)
            seconds.append(tools.clock() - start)
            given += part
            results += found
        return _Pass(seconds, tools.cpu() - core, given, results)

    def repeat(self, tools: _Tools) -> None:
        """Offline, then single-stream.  Where the batch is one image both are the same calls, which are made once."""
        done = self.go(tools, self.step)
        self.offline.append(sum(done.seconds))
        self.core.append(done.core)
        if len(self.offline) == 1:
            self.faces, self.withheld = done.faces, done.withheld
        self.single += done.seconds if self.step == 1 else self.go(tools, 1).seconds


@dataclass(eq=False)
class _Tools:
    clock: Callable[[], float]
    call: Call
    cpu: Callable[[], float]


@dataclass(eq=False)
class _Method:
    """A subject while it is being timed."""

    subject: Subject
    tools: _Tools
    settings: Settings
    courses: list[_Course] = field(default_factory=list)
    repeats: int = 0
    spent: float = 0.0
    remarks: list[str] = field(default_factory=list)
    fault: str = ""
    trusted: bool = True
    memory: float | None = None
    peak: float | None = None
    memory_how: str = ""
    gpu: float | None = None

    @property
    def main(self) -> _Course:
        return self.courses[0]

    # -- before the repeats ----------------------------------------------------------------------------------------
    def get_ready(self, loaded: Callable[[], object]) -> None:
        s, settings = self.subject, self.settings
        known = frozenset(p.pid for p in meters.children())
        before = meters.settled()
        held = meters.gpu_held()
        s.anonymizer.load()
        loaded()
        start = self.tools.clock()
        if s.items:
            self.courses.append(_Course(s, list(s.items), False))
        if s.whole:
            self.courses.append(_Course(s, list(s.whole), True))
        if not self.courses:
            raise ValueError("nothing to time: no items")
        self.repeats = settings.repeats
        if settings.batch is not None:
            for course in self.courses:
                course.batch = settings.batch
        else:
            self._fit_in()
            if self.fault:
                return
            self._search()
        for n in range(settings.warmup):
            self.main.go(self.tools, 1, self.main.items[:1])
            if n:
                self.main.go(self.tools, self.main.step)
                continue
            meters.settled()  # what larger batches left behind is not this one's
            meters.gpu_held()
            with meters.Watch(known) as watch:
                done = self.main.go(self.tools, self.main.step)
            if watch.programs:  # what they compute is to be counted
                self.tools = _Tools(self.tools.clock, self.tools.call, _with_programs(self.tools.cpu))
            self.peak, self.memory, self.memory_how = watch.peak / MIB, max(0, watch.peak - before) / MIB, watch.how
            self.gpu = meters.gpu_used(held)
            if s.check is not None and not self.main.end_to_end:
                self.trusted, words = s.check(done.given, done.results)
                self.remarks += [words] if words else []
            if settings.max_seconds is not None:
                self._fit_repeats(self.tools.clock() - start, sum(done.seconds))
        synchronise()

    def _first(self, course: _Course) -> float:
        """Seconds of the second call with one image: the first one still makes things."""
        first = course.go(self.tools, 1, course.items[:1])
        seconds, most = sum(first.seconds), self.settings.max_seconds
        if most is not None and seconds > most and first.withheld:
            why = first.results[0].reason or first.results[0].status.value
            self.fault = f"the first image took {seconds:.0f} s of the {most:g} s for all, and was not released: {why}"
            return seconds
        return sum(course.go(self.tools, 1, course.items[:1]).seconds)

    def _fit_in(self) -> None:
        """Fewer images, and at last fewer repeats, where the method would take longer than it may."""
        times = []
        for course in self.courses:
            times.append(self._first(course))
            if self.fault:
                return
        most = self.settings.max_seconds
        if most is None:
            return
        sizes, self.repeats = affordable([len(c.items) for c in self.courses], times, self.settings.repeats, most)
        for course, n in zip(self.courses, sizes, strict=True):
            if n < len(course.items):
                course.items = course.items[:n]
        self._say_cut()

    def _fit_repeats(self, spent: float, offline: float) -> None:
        """Fewer repeats, now that it is known what one takes.  spent: so far.  offline: seconds of a pass of the first course."""
        most = self.settings.max_seconds
        assert most is not None
        each = offline if self.main.step == 1 else 2 * offline  # calls with one image take as long, or a bit longer
        if len(self.courses) > 1:
            each *= 1 + len(self.courses[1].items) / max(1, len(self.main.items))
        if each > 0:
            self.repeats = max(2, min(self.repeats, int((most - spent) / each)))
        self._say_cut()

    def _say_cut(self) -> None:
        s = self.subject
        asked = [len(x) for x in (s.items, s.whole) if x]
        now = [len(c.items) for c in self.courses]
        cut = []
        if now != asked:
            cut.append(f"{' and '.join(map(str, now))} of {' and '.join(map(str, asked))} images")
        if self.repeats < self.settings.repeats:
            cut.append(f"{self.repeats} of {self.settings.repeats} repeats")
        said = f"cut to {', '.join(cut)}: more would take over {self.settings.max_seconds:g} s" if cut else ""
        self.remarks = [r for r in self.remarks if not r.startswith("cut to ")] + ([said] if said else [])

    def _search(self) -> None:
        found = best_batch(self._rate, len(self.main.items))
        for course in self.courses:
            course.batch = min(found.batch, len(course.items))
        self.remarks.append(found.words)

    def _rate(self, batch: int) -> tuple[float, int]:
        """(images per second, images released) at ``batch`` images a call.  Whatever the method raises is let through."""
        best, taken = math.inf, 0.0
        for _ in range(PASSES):
            done = self.main.go(self.tools, batch, call=_plain if batch > 1 else None)
            best, taken = min(best, sum(done.seconds)), taken + sum(done.seconds)
            if taken >= SHORT_S:
                break
        released = len(done.results) - done.withheld
        return (len(self.main.items) / best if best > 0 else math.inf), released

    # -- afterwards ------------------------------------------------------------------------------------------------
    def timing(self, end_to_end: bool) -> Timing | None:
        items = self.subject.whole if end_to_end else self.subject.items
        if not items:
            return None
        course = next((c for c in self.courses if c.end_to_end is end_to_end), None)
        count, said = meters.threads()
        name = "cpu" if self.gpu is None else meters.gpu_name()
        if course is None or self.fault:
            return Timing(
                self.subject.label, 0, len(items), (), (), name, count, end_to_end=end_to_end, libraries=said,
                fault=self.fault or "it was not timed", remarks=tuple(self.remarks),
            )  # fmt: skip
        return Timing(
            self.subject.label,
            faces=course.faces,
            images=len(course.items),
            offline=tuple(course.offline),
            single=tuple(course.single),
            device=name,
            threads=count,
            withheld=course.withheld,
            batch=course.batch,
            end_to_end=end_to_end,
            gpu_mib=self.gpu,
            memory_mib=self.memory,
            peak_mib=self.peak,
            core_seconds=tuple(course.core),
            libraries=said,
            remarks=tuple(self.remarks),
            trusted=self.trusted,
            memory_how=self.memory_how,
        )


def _with_programs(cpu: Callable[[], float]) -> Callable[[], float]:
    """The same meter, children that run included; a meter of somebody else's is left alone."""
    return (lambda: meters.cpu_seconds(programs=True)) if cpu is meters.cpu_seconds else cpu


def _failed(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{FAILED}: {type(error).__name__}" + (f": {said[0]}" if said else "")


def measure_methods(
    subjects: Sequence[Subject],
    settings: Settings = Settings(),
    *,
    clock: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = meters.cpu_seconds,
    call: Call = _plain,
    loaded: Callable[[], object] = lambda: None,
    tick: Callable[[], object] = lambda: None,
) -> list[Timed]:
    """Times several methods; what goes wrong with one is its ``fault`` and leaves the others alone.

    clock, cpu: seconds, monotonic; processor seconds.  call: runs a method on items.  loaded: called when a method has been
    loaded (libraries that came in with it may want to be told how many threads to take).  tick: called ``1 + repeats`` times
    for each method.
    Raises ValueError for fewer than two repeats.
    """
    if settings.repeats < 2:
        raise ValueError("at least two repeats: one says nothing about the spread")
    tools = _Tools(clock, call, cpu)
    methods = [_Method(s, tools, settings) for s in subjects]
    for m in methods:
        try:
            m.get_ready(loaded)
        except Exception as error:  # a method may raise anything; it is told in its rows
            m.fault = _failed(error)
        tick()
    for repeat in range(settings.repeats):
        for m in methods:
            tick()
            if m.fault or repeat >= m.repeats:
                continue
            start = clock()
            try:
                for course in m.courses:
                    course.repeat(m.tools)
            except Exception as error:
                m.fault = _failed(error)
            m.spent += clock() - start
            most = settings.max_seconds
            if most is not None and m.spent > OVERDRAFT * most and 2 <= repeat + 1 < m.repeats:
                m.repeats = repeat + 1
                m._say_cut()
    return [Timed(m.timing(False), m.timing(True)) for m in methods]


# --- the plan, in numbers


def affordable(sizes: Sequence[int], seconds: Sequence[float], repeats: int, most: float) -> tuple[list[int], int]:
    """How many images of each scope, and how many repeats, fit into ``most`` seconds.

    sizes: images of the method alone, and end to end (or one of them).  seconds: of one image, in each.  Images are cut first, in
    proportion, to :data:`FEW`; then repeats, to two; then images to one.  Never less, whatever it takes.
    """

    def takes(share: float, r: int) -> float:
        now = [_part(n, share) for n in sizes]
        search = (2 + 1) if now[0] > 1 else 0  # batches of 1 and 2, and 4 or the pass under watch
        return now[0] * seconds[0] * search + sum(n * s * (1 + r) for n, s in zip(now, seconds, strict=True))

    largest = sizes[0]
    for n in range(largest, 0, -1):
        if n < min(FEW, largest):
            break
        if takes(n / largest, repeats) <= most:
            return [_part(k, n / largest) for k in sizes], repeats
    few = min(FEW, largest)
    for r in range(repeats, 1, -1):
        if takes(few / largest, r) <= most:
            return [_part(k, few / largest) for k in sizes], r
    for n in range(few, 1, -1):
        if takes(n / largest, 2) <= most:
            return [_part(k, n / largest) for k in sizes], 2
    return [1 for _ in sizes], 2


def _part(n: int, share: float) -> int:
    return max(1, math.ceil(n * share - 1e-9))


class Batch(NamedTuple):
    """batch: images a call.  tried: batch -> images per second.  stopped: why the search ended."""

    batch: int
    tried: dict[int, float]
    stopped: str

    @property
    def words(self) -> str:
        sizes = ", ".join(map(str, self.tried))
        said = f"batch of {self.batch}, the quickest of {sizes}" if len(self.tried) > 1 else f"batch of {self.batch}"
        return said + (f" ({self.stopped})" if self.stopped else "")


def best_batch(rate: Callable[[int], tuple[float, int]], most: int) -> Batch:
    """The batch size with the highest rate among 1, 2, 4, ... up to ``most``; a gain of less than :data:`GAIN` is none.

    rate: (images per second, images released) at a batch size; it may raise.  The search ends where the rate falls, where two
    sizes in a row gain nothing, where memory is short, or where fewer images come back than one by one.
    """
    tried: dict[int, float] = {}
    best, idle, batch, whole = 1, 0, 1, 0
    while batch <= most:
        try:
            speed, released = rate(batch)
        except Exception as error:
            if batch == 1:
                raise
            relieve()
            return Batch(best, tried, f"{'out of memory' if blame(error) is Blame.MEMORY else type(error).__name__} at {batch}")
        if batch == 1:
            whole = released
        elif released < whole:
            return Batch(best, tried, f"fewer images released at {batch}")
        tried[batch] = speed
        if batch > 1:
            if speed > tried[best] * (1 + GAIN):
                best, idle = batch, 0
            else:
                idle += 1
                if speed < tried[best] * (1 - GAIN) or idle == 2:
                    break
        batch *= 2
    return Batch(best, tried, "")
