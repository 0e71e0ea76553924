"""Fuzzes readers for a time (of the processor) or a number of files: ``python tests/fuzz/fuzz_run.py image --seconds 600``.

With atheris (``pip install atheris``, the extra ``fuzz``) the branches that a file takes in our Python code, and in Python code that it is
read with, decide which are kept and changed further; without it files are changed at random, from the seeds and from what was
accepted or refused in a new way.  Either way a child process reads them, so that a crash, a hang or a flood of memory is found too;
what it was reading then lies in the folder ``--out``.  The exit code is 1 where anything but the documented errors came out.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: Seconds for one file, and bytes of memory above what the process had before the first one.
HANG, FLOOD = 60.0, 2 << 30
#: A reader's seconds are of processor time, so that a busy machine is no excuse; by the clock they may take so many times as long.
PATIENCE = 8.0


def scratch() -> Path:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    return Path(
        tempfile.mkdtemp(prefix="deidbench-fuzz-", dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None)
    )


def signature(error: BaseException) -> str:
    """What tells one fault from another: the kind of error and the last place of ours that it went through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzz/" not in f.filename]
    ours = [f for f in frames if any(f"/{room}/" in f.filename for room in ("bench", "datasets", "anonymizers", "metrics"))]
    last = (ours or frames or [None])[-1]
    where = f"{Path(last.filename).name}:{last.name}:{last.lineno}" if last is not None else "harness"
    return f"{type(error).__name__} at {where}"


class Reading:
    """Reads files one after another and keeps count; what is being read lies in ``now`` all the time."""

    def __init__(self, name: str, folder: Path, out: Path) -> None:
        sys.path.insert(0, str(HERE))
        import fuzz_readers

        from deidbench.errors import DeidbenchError

        fuzz_readers.hasten()
        self.documented = DeidbenchError
        self.reader = fuzz_readers.READERS[name]
        self.folder, self.out = folder, out
        self.box = folder / "box"
        self.now, self.tally = folder / "now", folder / "tally.json"
        self.count = self.accepted = 0
        self.faults: dict[str, str] = {}
        self.said = 0.0
        self.slowest = 0.0
        self.before = 0

    def one(self, data: bytes) -> str:
        """How it ended: "" accepted, else the kind of refusal."""
        self.now.write_bytes(data)
        self.box.mkdir(exist_ok=True)
        self.count += 1
        start = time.perf_counter()
        try:
            self.reader.read(data, self.box)
            self.accepted += 1
            return ""
        except self.documented as error:
            return f"{type(error).__name__} {signature(error)}"
        except (Exception, RecursionError, MemoryError) as error:
            mark = signature(error)
            if mark not in self.faults:
                name = f"{self.reader.name}-{hashlib.sha256(mark.encode()).hexdigest()[:10]}"
                self.faults[mark] = name
                (self.out / name).write_bytes(data)
                (self.out / f"{name}.txt").write_text(f"{mark}\n\n{''.join(traceback.format_exception(error)[-30:])}", "utf-8")
            return mark
        finally:
            self.slowest = max(self.slowest, time.perf_counter() - start)
            if time.perf_counter() - self.said > 1:
                self.tell()

    def tell(self) -> None:
        self.said = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        told = {
            "inputs": self.count,
            "accepted": self.accepted,
            "faults": self.faults,
            "slowest_s": round(self.slowest, 3),
            "processor_s": round(time.process_time(), 1),
            "peak": peak,
            "before": self.before,
        }
        temporary = self.tally.with_suffix(".new")
        temporary.write_text(json.dumps(told), "utf-8")
        temporary.replace(self.tally)


def _prepare(folder: Path) -> None:
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):  # a reader never touches the user's own
        os.environ[name] = str(folder / "home" / name.lower())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ["TQDM_DISABLE"] = "1"
    import warnings

    warnings.simplefilter("ignore")
    faulthandler.enable()


def _plain(name: str, folder: Path, out: Path, seconds: float, inputs: int, seed: int) -> None:
    """Changes at random, in this process."""
    _prepare(folder)
    reading = Reading(name, folder, out)
    rng = random.Random(seed)
    corpus = reading.reader.seeds()
    for data in corpus:
        reading.one(data)
    reading.before, reading.slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, 0.0  # imports are behind us
    seen: set[str] = set()
    end, late = time.process_time() + seconds, time.perf_counter() + PATIENCE * seconds
    while time.process_time() < end and time.perf_counter() < late and reading.count < inputs:
        data = reading.reader.damaged(rng.choice(corpus), rng, corpus)
        how = reading.one(data)
        # a new way to be refused is a step further in; those of long files are kept as well
        if how and how not in seen and len(corpus) < 2000 and len(data) < 1 << 18:
            seen.add(how)
            corpus.append(data)
    reading.tell()


def _guided(name: str, folder: Path, out: Path, seconds: float, inputs: int, seed: int) -> None:
    """By atheris, in this process, which ends with it."""
    _prepare(folder)
    with (out / f"{name}.log").open("ab") as log:  # libFuzzer talks much
        os.dup2(log.fileno(), 2)
    import atheris

    sys.path.insert(0, str(HERE))
    import fuzz_readers

    with atheris.instrument_imports(include=list(fuzz_readers.READERS[name].code)):
        reading = Reading(name, folder, out)
        seeds = reading.reader.seeds()
        for data in seeds:  # whatever is imported late is imported now, with its branches counted
            reading.one(data)
    reading.before, reading.slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, 0.0  # imports are behind us
    corpus = folder / "corpus"
    if not corpus.is_dir():
        corpus.mkdir()
        for i, data in enumerate(seeds):
            (corpus / f"seed-{i}").write_bytes(data)

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.4:
            return bytes(atheris.Mutate(data, most))
        return reading.reader.damaged(data, rng, seeds)[:most]

    end = time.process_time() + seconds

    def test(data: bytes) -> None:
        reading.one(data)
        if time.process_time() > end:  # libFuzzer itself goes by the clock
            reading.tell()
            os._exit(0)

    longest = max(map(len, seeds)) * 2 + 4096
    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={max(int(PATIENCE * seconds), 1)}", f"-runs={inputs}", f"-seed={seed}", f"-max_len={longest}", f"-timeout={int(HANG)}",
        f"-rss_limit_mb={(reading.before + FLOOD) >> 20}", f"-artifact_prefix={out}/{name}-", "-verbosity=0", "-print_final_stats=0", "-len_control=0", "-close_fd_mask=0",
    ]  # fmt: skip
    atheris.Setup(arguments, test, custom_mutator=change)
    try:
        atheris.Fuzz()
    finally:
        reading.tell()


def fuzz(name: str, seconds: float, inputs: int, out: Path, *, seed: int = 0, guided: bool | None = None) -> dict[str, Any]:
    """Fuzzes one reader and returns what was found: inputs, seconds, faults (documented errors are none)."""
    if guided is None:
        import importlib.util

        guided = importlib.util.find_spec("atheris") is not None
    out.mkdir(parents=True, exist_ok=True)
    folder = scratch()
    start = time.perf_counter()
    total = accepted = round_ = 0
    used = 0.0
    faults: dict[str, str] = {}
    slowest = peak = 0.0
    try:
        while (left := seconds - used) > 0.5 and time.perf_counter() - start < PATIENCE * seconds and total < inputs:
            arguments = (name, str(folder), str(out), str(left), str(inputs - total), str(seed + round_))
            way = "--guided" if guided else "--blind"
            # a session of its own: at its end libFuzzer sends a signal to all of its group
            child = subprocess.Popen([sys.executable, __file__, way, *arguments], start_new_session=True)
            told: dict[str, Any] = {}
            last, since = -1, time.perf_counter()
            why = ""
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.5)
                with contextlib.suppress(OSError, ValueError):
                    told = json.loads((folder / "tally.json").read_text("utf-8"))
                try:
                    stamp = (folder / "now").stat().st_mtime_ns
                except OSError:
                    stamp = -1
                if stamp != last:
                    last, since = stamp, time.perf_counter()
                elif told and child.poll() is None and time.perf_counter() - since > 3 * HANG:
                    why = f"hang of {3 * HANG:.0f} s"
                    child.kill()
                    child.wait()
                    break
            if not why and child.returncode not in (0, None):
                why = f"the process died: exit code {child.returncode}"
            used += max(told.get("processor_s", 0.0), 1.0)  # a child that dies at once takes its turn too
            if why:
                mark = f"{name}-died-{round_}"
                if (folder / "now").is_file():
                    shutil.copy(folder / "now", out / mark)
                faults[f"{why} ({mark})"] = mark
            total += int(told.get("inputs", 0))
            accepted += int(told.get("accepted", 0))
            faults |= told.get("faults", {})
            slowest, peak = max(slowest, told.get("slowest_s", 0.0)), max(peak, told.get("peak", 0))
            (folder / "tally.json").unlink(missing_ok=True)
            shutil.rmtree(folder / "box", ignore_errors=True)
            round_ += 1
            if not why:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "reader": name, "guided": guided, "inputs": total, "accepted": accepted, "seconds": round(time.perf_counter() - start, 1), "processor_s": round(used, 1), "slowest_s": slowest,
        "peak_mib": int(peak) >> 20, "starts": round_, "faults": faults,
    }  # fmt: skip


def main() -> int:
    if sys.argv[1:2] in (["--guided"], ["--blind"]):  # the child
        name, folder, out, seconds, inputs, seed = sys.argv[2:]
        work = _guided if sys.argv[1] == "--guided" else _plain
        work(name, Path(folder), Path(out), float(seconds), int(inputs), int(seed))
        return 0
    sys.path.insert(0, str(HERE))
    import fuzz_readers

    parser = argparse.ArgumentParser(description="Fuzz deidbench's readers of files.")
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help=f"of {', '.join(fuzz_readers.READERS)}; default: all, one after another"
    )
    parser.add_argument("--seconds", type=float, default=600, help="of processor time, for each reader")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each reader, at most")
    parser.add_argument("--out", type=Path, default=Path("results/fuzz"), help="folder of what was found")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    given = parser.parse_args()
    if wrong := [r for r in given.readers if r not in fuzz_readers.READERS]:
        parser.error(f"no reader {wrong[0]!r}; there are {', '.join(fuzz_readers.READERS)}")
    bad = 0
    for name in given.readers or list(fuzz_readers.READERS):
        found = fuzz(name, given.seconds, given.inputs, given.out, seed=given.seed, guided=False if given.plain else None)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        bad += len(found["faults"])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
