"""A run that is killed at any moment loses nothing: random kills over a suite, and the figures of an undisturbed run.

A "life" begins with an empty store.  Its run is started, killed, started again, until it ends; then the finished run is started
once more over what it left, or the next life begins.  After every kill the store and the output folder are looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import pytest

from deidbench import housekeeping
from deidbench.cache import LAYOUT
from deidbench.errors import ExitCode
from deidbench.records import read_run

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")

SUITE = """\
[suite]
name = "killed"
extends = "SMALL"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[report]
samples = 1

[[methods]]
name = "original"
control = true

[[methods]]
name = "blackout"
control = true

[[methods]]
name = "blur"
params = {{ sigma = 0.12 }}

[[methods]]
name = "pixelate"
params = {{ block = 0.15 }}

[[methods]]
name = "noise"
""".replace("SMALL", Path(__file__).with_name("small.toml").as_posix())

#: Forks runs that need not import everything again.  A run says in a file in which stage it is; one with a "seam" kills itself at
#: its n-th write: in the midst of it (half of the bytes), before it is synced, before and after it is renamed, before and after
#: the store's commit.
_NURSERY = """
import json, os, signal, sys, warnings
import cv2, pandas, pyarrow.parquet

KNOWN = {"deidbench", "scipy", "sklearn", "skimage", "matplotlib", "pandas", "numpy", "jinja2", "PIL", "tomlkit", "pydantic", "rich"}
cv2.setNumThreads(1)
import deidbench.cli, deidbench.cache, deidbench.executors, deidbench.pipeline, deidbench.runner, deidbench.report
from deidbench.suite import load_suite

def watch(stage, seam):
    kind = deidbench.runner._Stage
    enter, leave = kind.__enter__, kind.__exit__
    def say(text):
        with open(stage, "w") as file:
            file.write(text)
    def entered(self):
        say(self.name)
        return enter(self)
    def left(self, *error):
        say("report" if self.name == "record" else "after " + self.name)
        return leave(self, *error)
    kind.__enter__, kind.__exit__ = entered, left
    say("start")
    if not seam:
        return
    count = 0
    def point(before=None):
        nonlocal count
        count += 1
        if count == seam:
            if before:
                before()
            os.kill(os.getpid(), signal.SIGKILL)
    write, fsync, replace = os.write, os.fsync, os.replace
    def torn(handle, data):
        point(lambda: write(handle, bytes(data)[: len(data) // 2]))
        return write(handle, data)
    def synced(handle):
        point()
        return fsync(handle)
    def replaced(*paths):
        point()
        replace(*paths)
        point()
    os.write, os.fsync, os.replace = torn, synced, replaced
    at_once = deidbench.cache.Store.at_once
    def commit(self, work):
        def whole():
            done = work()
            point()
            return done
        done = at_once(self, whole)
        point()
        return done
    deidbench.cache.Store.at_once = commit

for line in sys.stdin:
    order = json.loads(line)
    warnings.simplefilter("ignore")
    if os.path.exists(order["imports"]):  # what the first run needed; those after it find it there
        with open(order["imports"]) as file:
            for name in json.load(file):
                if name not in sys.modules:
                    try:
                        __import__(name)
                    except Exception:
                        pass
        os.unlink(order["imports"])
    pid = os.fork()
    if pid == 0:
        os.setsid()
        out = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0); os.dup2(out, 1); os.dup2(out, 2)
        code = 1
        try:
            watch(order["stage"], order["seam"])
            deidbench.cli.main(order["words"])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            if order["first"]:
                with open(order["imports"], "w") as file:
                    json.dump([n for n in list(sys.modules) if n.split(".")[0] in KNOWN], file)
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Nursery:
    """A process that forks runs, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._first = folder, True
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, words: list[str], seam: int = 0) -> int:
        """The process id of a new run, which leads a session of its own."""
        assert self._process.stdin and self._process.stdout
        (self.folder / "stage").write_text("start")
        files = {name: str(self.folder / name) for name in ("stage", "log", "imports")}
        order = {"words": words, "seam": seam, "first": self._first, **files}
        self._first = False
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> int:
        """Waits for the run; its exit code, -9 where it was killed."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    @property
    def stage(self) -> str:
        return (self.folder / "stage").read_text() or "start"

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


def _session(leader: int) -> list[tuple[int, int]]:
    """(process, parent) of all living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found.append((int(entry.name), int(parent)))
    return found


def _workers(leader: int) -> list[int]:
    found = []
    for process, parent in _session(leader):
        with contextlib.suppress(OSError):
            if parent == leader and b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def _all_gone(leader: int) -> bool:
    """Is nobody of the session left, a moment after its leader's end?"""
    end = time.monotonic() + 20
    while _session(leader):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _artefacts(cache: Path) -> dict[str, bytes]:
    """key -> SHA-256 of all that is stored."""
    path = cache / f"store-v{LAYOUT}.sqlite"
    if not path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(path)) as db:
        try:
            return dict(db.execute("SELECT key, sha256 FROM artefact").fetchall())
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return {}  # killed before it had a table


#: What a run leaves that does not say when, or how long, it was.
FIGURES = ("rows.parquet", "curves.parquet", "images.parquet", "evidence.parquet", "rows.json", "manifest.csv")


def _figures(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FIGURES}


def _torn(folder: Path) -> list[str]:
    """Files of an output folder that are not whole."""
    bad = []
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith(".deidbench-") or path.name == "run.lock":
            continue
        try:
            match path.suffix:
                case ".json":
                    json.loads(path.read_text("utf-8"))
                case ".parquet":
                    pd.read_parquet(path)
                case ".html":
                    assert path.read_text("utf-8").rstrip().endswith("</html>")
                case ".png":
                    assert cv2.imread(str(path)) is not None
                case _:
                    assert path.stat().st_size > 0
        except Exception as error:
            bad.append(f"{path}: {error!r}")
    return bad


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    lives: int = 1
    #: Starts that ended before their kill came.
    spared: int = 0
    records: int = 0

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def plain(self) -> dict[str, Any]:
        return {
            "kills": dict(self.kills), "total": self.total, "stages": dict(self.stages), "finished": self.finished,
            "lives": self.lives, "complete records met after a kill": self.records,
        }  # fmt: skip


class Killer:
    """Kills runs of one suite, and looks at what they leave."""

    #: shared: the part of starts that have two workers.  silent: the part without a report.
    def __init__(self, suite: Path, folder: Path, nursery: Nursery, seed: int, shared: float, silent: float) -> None:
        self.suite, self.folder, self.nursery = suite, folder, nursery
        self.rng, self.shared, self.silent = random.Random(seed), shared, silent
        self.tally = Tally()
        self.known: dict[str, bytes] = {}
        begun = time.monotonic()
        assert self._run(folder / "undisturbed", folder / "undisturbed-store") == ExitCode.OK, nursery.said
        #: Seconds that a whole run takes.
        self.whole = time.monotonic() - begun
        self.figures = _figures(folder / "undisturbed")
        self.everything = _artefacts(folder / "undisturbed-store")

    def words(self, out: Path, cache: Path, workers: int = 1) -> list[str]:
        more = ["--out", str(out), "--cache", str(cache), "--workers", str(workers), "--batch", "2", "--quiet"]
        return ["run", str(self.suite), *more]

    def _run(self, out: Path, cache: Path) -> int:
        """A run that nobody disturbs; its exit code."""
        self.nursery.start(self.words(out, cache) + ["--no-report"] * (self.silent == 1.0))
        return self.nursery.end()

    @property
    def out(self) -> Path:
        return self.folder / f"run{self.tally.lives}"

    @property
    def cache(self) -> Path:
        return self.folder / f"store{self.tally.lives}"

    def strike(self) -> None:
        """One start, and one kill unless it ends before."""
        rng = self.rng
        workers = 2 if rng.random() < self.shared else 1
        seam = rng.randint(1, 60) if workers == 1 and rng.random() < 0.3 else 0
        how = "at a write" if seam else "group"
        if workers == 2:
            how = rng.choice(["group", "run alone", "worker"])
        # early ones hit the start, late ones let the run come to its scores and tables
        moment = rng.choices(
            [rng.uniform(0, 1.5), rng.uniform(0, 0.4 * self.whole), rng.uniform(0, 1.2 * self.whole)], [3, 6, 1]
        )[0]
        words = self.words(self.out, self.cache, workers) + ["--no-report"] * (rng.random() < self.silent)
        leader = self.nursery.start(words, seam)
        end = time.monotonic() + (120 if seam else moment)
        victims: list[int] = []
        # one worker: from that moment on as soon as there is one; a run that has nothing for them ends by itself
        while Path(f"/proc/{leader}").exists() and (time.monotonic() < end or (how == "worker" and not victims)):
            if how == "worker" and time.monotonic() >= end:
                victims = _workers(leader)
            time.sleep(0.01)
        stage = self.nursery.stage
        with contextlib.suppress(ProcessLookupError):
            if how == "group":
                os.killpg(leader, signal.SIGKILL)
            elif how == "run alone":
                os.kill(leader, signal.SIGKILL)
            elif how == "worker" and victims:
                os.kill(rng.choice(victims), signal.SIGKILL)
        code = self.nursery.end()
        stage = self.nursery.stage if seam else stage
        assert _all_gone(leader), f"processes outlive their run, which was killed ({how}) in {stage}: {_session(leader)}"
        if how == "worker" and victims and code == ExitCode.ENVIRONMENT:
            assert "run the same command again: what was computed is kept" in self.nursery.said
        else:
            assert code in (-signal.SIGKILL, ExitCode.OK), f"{how} in {stage}: {self.nursery.said}"
        if code == ExitCode.OK:
            self.tally.spared += 1
            self.finish()
            return
        self.tally.kills[how] += 1
        self.tally.stages[stage] += 1
        self.look(f"kill {self.tally.total} ({how}, {workers} workers) in {stage}")

    def look(self, when: str) -> None:
        """Nothing may be lost, damaged or torn.  Half of the time at a copy: the next run finds the store as the kill left it."""
        cache = self.cache
        if copied := self.rng.random() < 0.5 and cache.exists():
            cache = self.folder / "copy"
            shutil.copytree(self.cache, cache)
        now = _artefacts(cache)
        lost = self.known.keys() - now.keys()
        assert not lost, f"{when}: {len(lost)} of {len(self.known)} artefacts are lost"
        assert not [k for k, digest in self.known.items() if now[k] != digest], f"{when}: artefacts were changed"
        odd = [k for k, digest in now.items() if self.everything.get(k) != digest]
        assert not odd, f"{when}: {len(odd)} artefacts are not those of an undisturbed run"
        self.known = now
        if (cache / f"store-v{LAYOUT}.sqlite").exists():
            found = housekeeping.verify(cache)  # reads every artefact; PRAGMA integrity_check
            assert not found.structure and not found.damaged, f"{when}: {found}"
            assert found.checked == len(now)
        if copied:
            shutil.rmtree(cache)
        if self.out.exists():
            assert not (torn := _torn(self.out)), f"{when}: {torn}"
            if (self.out / "run.json").exists():
                self.tally.records += 1
                read_run(self.out)
                assert _figures(self.out) == self.figures, f"{when}: a record beside tables that are not its own"

    def finish(self) -> None:
        """The run has ended: it must have what an undisturbed one has."""
        self.tally.finished += 1
        read_run(self.out)
        assert _figures(self.out) == self.figures
        assert not _torn(self.out)
        now = _artefacts(self.cache)
        assert now == self.everything
        self.known = now
        if self.rng.random() < 0.6:  # else: again, over what is there; the record is what is left to be hit
            for path in (self.out, self.cache):
                shutil.rmtree(path)
            self.known = {}
            self.tally.lives += 1

    def settle(self) -> None:
        """Undisturbed to the end."""
        assert self._run(self.out, self.cache) == ExitCode.OK, self.nursery.said
        self.finish()


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    (tmp_path / "nursery").mkdir()
    nursery = Nursery(tmp_path / "nursery")
    yield nursery
    nursery.close()


def _suite(folder: Path, orl: Path, persons: int, images: int) -> Path:
    """``persons`` with ``images`` each; the last person's are large, so that the store keeps their noise as files."""
    root = folder / "people"
    for p in range(1, persons + 1):
        (root / f"p{p:02d}").mkdir(parents=True)
        for i in range(1, images + 1):
            picture = cv2.imread(str(orl / f"s{p}" / f"{i}.pgm"))
            if p == persons:
                picture = cv2.resize(picture, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / f"p{p:02d}" / f"{i}.png"), picture)
    path = folder / "killed.toml"
    path.write_text(SUITE.format(root=root))
    return path


def test_a_few_kills(tmp_path: Path, orl_folder: Path, nursery: Nursery) -> None:
    killer = Killer(_suite(tmp_path, orl_folder, 3, 2), tmp_path, nursery, seed=1, shared=0.0, silent=1.0)
    while killer.tally.total < 4:
        killer.strike()
    killer.settle()
    assert killer.tally.finished >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path: Path, orl_folder: Path, nursery: Nursery) -> None:
    """40 images, five methods, 200 kills: of the whole group, of the run alone, of one worker, at a write."""
    killer = Killer(_suite(tmp_path, orl_folder, 10, 4), tmp_path, nursery, seed=20261129, shared=0.25, silent=0.3)
    wanted = int(os.environ.get("DEIDBENCH_KILLS", "200"))
    while killer.tally.total < wanted:
        killer.strike()
        with contextlib.suppress(OSError):
            (tmp_path / "tally.json").write_text(json.dumps(killer.tally.plain()))
    killer.settle()
    tally = killer.tally
    sys.stdout.write(json.dumps(tally.plain(), indent=1) + "\n")
    if wanted >= 200:
        assert tally.finished >= 3
        assert set(tally.kills) == {"group", "run alone", "worker", "at a write"}
        assert {"start", "clear images", "methods", "scores", "record", "report"} <= set(tally.stages)
