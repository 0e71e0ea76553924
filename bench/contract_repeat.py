"""The contract of an anonymizer, second part: repeatability, seeds, other processes, time and memory."""

from __future__ import annotations

import gc
import itertools
import math
import os
import pickle
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deidbench import contract_checks as _first  # noqa: F401 - its checks stand before these
from deidbench.contract import (
    Finding,
    Trial,
    Verdict,
    check,
    compared,
    failed,
    is_ours,
    judged,
    passed,
    settings,
    skipped,
    span,
    warned,
)
from deidbench.contract_target import answers_elsewhere

if TYPE_CHECKING:
    pass

#: A leak: memory grows by at least this share of a picture's bytes with every picture ...
LEAK_SHARE = 0.25
#: ... and by this many bytes in all, so that no allocator's habits are taken for one.
LEAK_BYTES = 4 << 20


# ------------------------------------------------------------------------------------------------------- repeatability


@check(
    "again",
    expected="the same items with the same seeds give the same pictures, call after call",
    why="a result that nobody can repeat is no result; kept results and new ones would be mixed",
    mend="rng = np.random.default_rng(item.seed)   # draw from it and from nothing else, with deterministic = False",
    needs=["images"],
)
def again(trial: Trial) -> Finding:
    """The same call gives the same answer, also after load() was called again."""
    found = compared(trial.first, trial.call(trial.items()))
    if found is not None and not found.noise:
        with _global_seeds(1):
            one = trial.call(trial.items())
        with _global_seeds(1):
            two = trial.call(trial.items())
        drawn = compared(one, two) is None
        said = (
            "; it draws from a global generator (numpy.random, random or torch), with that seeded it repeats itself"
            if drawn
            else ""
        )
        return failed(f"the second call gave another answer: {found.words}{said}")
    if found is not None:
        return warned(
            f"the second call is the same but for floating-point noise: {found.words}",
            "ask the library for deterministic kernels, e.g. torch.use_deterministic_algorithms(True)",
        )
    trial.ready.load()
    found = compared(trial.first, trial.call(trial.items()))
    if found is not None and not found.noise:
        return failed(
            f"after load() was called once more the answer is another one: {found.words}",
            "let load() do nothing where all is loaded",
        )
    return passed(f"{len(trial.first)} pictures, three times")


@check(
    "order",
    expected="the answer for a picture does not depend on the order of the batch",
    why="workers and resumed runs take the pictures in another order; the figures would be others",
    mend="keep nothing from one picture to the next; draw from np.random.default_rng(item.seed)",
    needs=["again"],
)
def order(trial: Trial) -> Finding:
    """Backwards gives the same pictures."""
    backwards = trial.call(trial.items()[::-1])[::-1]
    return judged(
        compared(trial.first, backwards), f"{len(backwards)} pictures backwards", "backwards the answer is another one"
    )


@check(
    "batch",
    expected="the answer for a picture does not depend on what else is in the batch",
    why="--batch and the number of workers must not change a figure",
    mend="work on each picture alone, or with the statistics of training (model.eval()), never of the batch",
    needs=["again"],
)
def batch(trial: Trial) -> Finding:
    """One by one gives the same pictures as all at once."""
    single = [trial.call([item])[0] for item in trial.items()]
    finding = judged(
        compared(trial.first, single), f"{len(single)} pictures one by one", "one by one the answer is another one"
    )
    if finding.verdict is Verdict.FAILED:
        return finding
    mirrored = [replace(i, id=f"{i.id}, mirrored", image=np.ascontiguousarray(i.image[:, ::-1])) for i in trial.items()]
    found = compared(trial.first, trial.call([*trial.items(), *mirrored])[: trial.n])
    if found is not None and not found.noise:
        return failed(f"in a batch with {trial.n} other pictures the answer is another one: {found.words}")
    return finding


@check(
    "names",
    expected="the answer does not depend on item.id or item.subject_id",
    why="a method is told nothing about who is in a picture, and results are kept under the picture, not under its name",
    mend="use item.image, item.faces and item.seed only",
    needs=["again"],
)
def names(trial: Trial) -> Finding:
    """Under other names the pictures are the same."""
    renamed = trial.call([replace(item, id=f"x{k}", subject_id=None) for k, item in enumerate(trial.items())])
    back = [replace(r, id=was.id) for r, was in zip(renamed, trial.first, strict=True)]
    return judged(compared(trial.first, back), "ids and persons changed", "under another id the answer is another one")


@check(
    "seeds",
    expected="deterministic = True: the seed changes nothing; deterministic = False: another seed gives another picture",
    why="results of a deterministic method are kept without the seed; attackers who know the method draw their own",
    mend="deterministic = False   # as a class attribute, where rng = np.random.default_rng(item.seed) is used",
    needs=["again"],
)
def seeds(trial: Trial) -> Finding:
    """The seed has the effect that is declared."""
    found = [
        compared(trial.first, trial.call([replace(item, seed=item.seed + extra) for item in trial.items()]))
        for extra in (1, 2**40)
    ]
    differs = [f for f in found if f is not None and not f.noise]
    if trial.given.deterministic:
        if differs:
            return failed(f"declared deterministic, but with another seed {differs[0].words}")
        return passed("deterministic, whatever the seed")
    if not differs:
        return failed(
            "declared as not deterministic, but other seeds give the same pictures",
            "use the seed: rng = np.random.default_rng(item.seed); or deterministic = True, which saves space and time",
        )
    return passed("another seed, another picture")


def _torch() -> Any:
    """torch, where the plug-in has imported it."""
    return sys.modules.get("torch")


def _global_state() -> list[bytes]:
    states = [pickle.dumps(random.getstate()), pickle.dumps(np.random.get_state())]  # noqa: NPY002 - it is what is looked at
    if (torch := _torch()) is not None:
        states.append(torch.get_rng_state().numpy().tobytes())
    return states


@contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    """The global generators seeded; afterwards they go on from where they were."""
    torch = _torch()
    kept = random.getstate(), np.random.get_state(), None if torch is None else torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if torch is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        if torch is not None and kept[2] is not None:
            torch.set_rng_state(kept[2])


@check(
    "global-random",
    expected="the global generators (random, numpy.random, torch) are neither used nor seeded",
    why="what other parts draw would depend on this method, and its pictures on them",
    mend="rng = np.random.default_rng(item.seed), or torch.Generator().manual_seed(item.seed); never np.random.seed(...)",
    needs=["again"],
)
def global_random(trial: Trial) -> Finding:
    """The global random generators play no part."""
    answers = []
    touched = False
    for seed in (1, 2):
        with _global_seeds(seed):
            before = _global_state()
            answers.append(trial.call(trial.items()))
            after = _global_state()
            touched |= after[: len(before)] != before
    found = compared(*answers)
    if found is not None and not found.noise:
        return failed(f"with the global generators seeded otherwise {found.words}")
    if touched:
        return warned("it leaves the global generators in another state than it found them in (seeded, or drawn from)")
    return passed("neither used nor changed")


# ----------------------------------------------------------------------------------------------------- other processes


@check(
    "other-process",
    expected="pickled into a fresh process and loaded there it has the same fingerprint and gives the same pictures",
    why="that is what worker processes do, and machines; a figure must not depend on where it was computed",
    mend="keep all that matters in the parameters; nothing in globals, and no hash() of a text (it differs from process to process)",
    needs=["again", "pickles"],
)
def other_process(trial: Trial) -> Finding:
    """A worker process gives the same pictures."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    a = trial.ready if trial.bound else trial.made()  # as in a run: what was fitted travels along
    arguments = (trial.target, list(sys.path), pickle.dumps(a), a.name, trial.items())
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    hurry = False
    try:
        mark, results = pool.submit(answers_elsewhere, *arguments).result(
            timeout=None if trial.limit is None else 0.8 * trial.limit
        )
    except BrokenProcessPool:
        return failed("the other process died")
    except ModuleNotFoundError as error:
        return failed(
            f"the other process cannot import its class: {error}",
            "put the class into a module that can be imported, not into a test or a script",
        )
    except TimeoutError:
        hurry = True
        return failed(f"the other process did not answer within {0.8 * (trial.limit or 0):g} s")
    except Exception as error:
        return failed(f"the other process raised {type(error).__name__}: {error}")
    finally:
        if hurry:
            for process in multiprocessing.active_children():
                process.kill()
        pool.shutdown(wait=not hurry, cancel_futures=True)
    if mark != a.fingerprint:
        return failed(f"its fingerprint there is {mark[:8]}..., here {a.fingerprint[:8]}...")
    return judged(
        compared(trial.first, results),
        f"{len(results)} pictures in a fresh process",
        "in another process the answer is another one",
    )


# ------------------------------------------------------------------------------------------------------ time and memory


@check(
    "speed",
    expected="time grows no faster than the number of pictures, and loading is done in load()",
    why="the suite times the method on batches; something that grows with the batch, or with every call, spoils the figure",
    mend="look for work that is repeated for every picture, and for lists that are searched",
    needs=["images"],
)
def speed(trial: Trial) -> Finding:
    """Pictures per second, and how time grows with the batch."""
    from deidbench.metrics.throughput import synchronise

    def seconds(n: int) -> float:
        items = [item for _ in range(n) for item in trial.items()]
        start = time.perf_counter()
        trial.call(items)
        synchronise()
        return time.perf_counter() - start

    repeats = 1 if trial.slow else 3 if trial.quick else 5
    single, double = (min(seconds(n) for _ in range(repeats)) for n in (1, 2))  # what disturbs only makes it longer
    rate = trial.n / single if single > 0 else math.inf
    figures: dict[str, float] = {
        "images_per_s": rate,
        "first_call_s": trial.first_seconds,
        "load_s": trial.load_seconds,
        "batch": float(trial.n),
    }
    words = (
        f"{rate:.3g} images/s in a batch of {trial.n}; first call {span(trial.first_seconds)}, load {span(trial.load_seconds)}"
    )
    if double > 3.2 * single and double - 2 * single > 0.05:
        return warned(f"{words}; twice as many pictures take {double / single:.1f} times as long", figures=figures)
    if trial.first_seconds > 1 and trial.first_seconds > 20 * single / trial.n:
        return warned(
            f"{words}; the first picture takes as long as {trial.first_seconds * trial.n / single:.0f} later ones",
            "read weights and build models in load()",
            figures=figures,
        )
    return passed(words, figures)


@check(
    "memory",
    expected="memory does not grow with the number of pictures that were handled",
    why="a run over a hundred thousand pictures would end for want of memory",
    mend="keep no lists of pictures or results; with torch, with torch.inference_mode(): and nothing that holds the graph",
    needs=["images"],
)
def memory(trial: Trial) -> Finding:
    """Nothing is kept from call to call."""
    import psutil

    from deidbench.contract_faces import scene

    process = psutil.Process()
    material = trial.material.items
    shape = (480, 400)
    made = [scene(f"picture {k}", [material[k % len(material)]], *shape, 400) for k in range(4)]
    if trial.bound:
        made = trial.items()
    per_picture = sum(i.image.nbytes for i in made) / len(made)
    budget = 1.0 if trial.quick else 5.0
    if trial.limit is not None:
        budget = min(budget, trial.limit / 4)

    def call() -> None:
        trial.call([replace(i, image=i.image.copy()) for i in made])

    def used() -> int:
        gc.collect()
        torch = _torch()
        gpu = torch.cuda.memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
        return int(process.memory_info().rss + gpu)

    start = time.perf_counter()
    for _ in range(3):  # what is made once is made now
        call()
    pace = (time.perf_counter() - start) / 3
    quarter = int(min(10, budget / 4 / max(pace, 1e-4)))
    if quarter < 2:
        if 8 * pace > (60.0 if trial.limit is None else trial.limit) / 2:
            return skipped(
                f"four pictures take {pace:.1f} s: too slow to see a leak (--only memory --timeout 600 looks all the same)"
            )
        quarter = 2
    levels = [used()]
    for _ in range(4):
        for _ in range(quarter):
            call()
        levels.append(used())
    # The first quarter may still fill caches; a leak goes on.
    grown = levels[-1] - levels[1]
    steps = [b - a for a, b in itertools.pairwise(levels[1:])]
    pictures = 3 * quarter * len(made)
    figures: dict[str, float] = {"peak_rss_mib": levels[-1] / 2**20, "grown_mib": grown / 2**20, "pictures": float(pictures)}
    if grown > max(LEAK_BYTES, LEAK_SHARE * per_picture * pictures) and min(steps) > 0.4 * grown / 3:
        return failed(
            f"it grew by {grown / 2**20:.0f} MiB over {pictures} pictures of {per_picture / 2**20:.1f} MiB, steadily: "
            f"{grown / pictures / 2**20:.2f} MiB for each, {10_000 * grown / pictures / 2**30:.1f} GiB for 10,000"
            + _holder(call),
            figures=figures,
        )
    return passed(f"{pictures} pictures, {grown / 2**20:+.1f} MiB; {levels[-1] / 2**20:.0f} MiB in all", figures)


def _holder(call: Any) -> str:
    """Where the memory that is kept was asked for, as far as Python knows."""
    import tracemalloc

    tracemalloc.start(12)
    try:
        call()
        before = tracemalloc.take_snapshot()
        for _ in range(3):
            call()
        grown = tracemalloc.take_snapshot().compare_to(before, "traceback")
    finally:
        tracemalloc.stop()
    for statistic in grown[:3]:
        for frame in reversed(statistic.traceback):
            if (
                statistic.size_diff > 0
                and not is_ours(frame.filename)
                and "site-packages" not in frame.filename
                and "lib/python" not in frame.filename
            ):
                return f"; what is kept was made in {Path(frame.filename).name}, line {frame.lineno}"
    return ""


@check(
    "surroundings",
    expected="working folder, environment, threads and the settings of numpy, OpenCV and torch are left as they were",
    why="other methods and the metrics run in the same process and would be changed, or slowed down",
    mend="set it back in a finally, or use the context managers of the library (np.errstate, torch.inference_mode)",
    needs=["images"],
)
def surroundings(trial: Trial) -> Finding:
    """The process is left as it was."""
    assert trial.ready is not None, "loading notes how things are before"
    # What is imported at the first call sets variables of its own; what changes with every call is meant here.
    threads, environment = threading.active_count(), dict(os.environ)
    for _ in range(3):
        trial.call(trial.items())
    more = threading.active_count() - threads
    after = settings()
    changed = [f"{k} was {v!r} and is {after[k]!r}" for k, v in trial.settings.items() if after.get(k, v) != v]
    if names := sorted({k for k in {*environment, *os.environ} if environment.get(k) != os.environ.get(k)}):
        changed.append(f"environment variables were changed: {', '.join(names)}")
    if more >= 3:
        changed.append(f"{more} more threads after three calls")
    return warned("; ".join(changed)) if changed else passed("as they were")


@check(
    "quiet",
    expected="load() and anonymize() print nothing and give no warnings",
    why="with thousands of pictures the lines hide what matters, and standard output is read by programs",
    mend="use logging.getLogger(__name__); mend what the warnings are about",
    needs=["answers"],
)
def quiet(trial: Trial) -> Finding:
    """It prints nothing and warns of nothing."""
    with warnings.catch_warnings(record=True) as caught, _printed() as said:
        warnings.simplefilter("always")
        a = trial.loaded(trial.made())
        trial.call(trial.items(2), a)
        trial.call(trial.items(1), a)
    told = [f"{w.category.__name__}: {w.message} ({Path(w.filename).name}, line {w.lineno})" for w in caught]
    lines = [line for line in "".join(said).splitlines() if line.strip()]
    if lines:
        told.append(f"{len(lines)} lines were printed, e.g. {lines[0].strip()[:120]!r}")
    if told:
        return warned("; ".join(dict.fromkeys(told)))
    return passed("not a word")


@contextmanager
def _printed() -> Iterator[list[str]]:
    """What goes to standard output and error meanwhile, from Python and from native libraries; it is in the list afterwards."""
    said: list[str] = []
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with tempfile.TemporaryFile() as sink:
        kept = {}
        for fd in (1, 2):
            try:
                kept[fd] = os.dup(fd)
                os.dup2(sink.fileno(), fd)
            except OSError:  # closed: nothing is printed there
                continue
        writer = os.fdopen(os.dup(sink.fileno()), "w", buffering=1, errors="replace")
        old = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = writer  # under pytest they do not lead to 1 and 2
        try:
            yield said
        finally:
            writer.flush()
            sys.stdout, sys.stderr = old
            writer.close()
            for fd, saved in kept.items():
                os.dup2(saved, fd)
                os.close(saved)
            sink.seek(0)
            said.append(sink.read().decode(errors="replace"))
