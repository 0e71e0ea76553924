"""Faults of the disk: full, read-only, a temporary folder without room.  What is there stays whole, and a run with room finishes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deidbench import cache as store_module
from deidbench import housekeeping, images, kinds
from deidbench.anonymizers.external.program import Exchange
from deidbench.cache import INLINE_BYTES, Store
from deidbench.errors import DeidbenchError, EnvironmentFault
from deidbench.lock import RUN_LOCK, STALE, run_lock
from deidbench.records import read_run
from deidbench.runner import Options, Result, _Run, run_suite
from deidbench.suite import load_suite
from deidbench.types import Item

SUITE = """\
[suite]
name = "disk"
extends = "SMALL"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[report]
samples = 1

[[methods]]
name = "pixelate"
params = {{ block = 0.15 }}

[[methods]]
name = "noise"
""".replace("SMALL", Path(__file__).with_name("small.toml").as_posix())
FIGURES = ("rows.parquet", "curves.parquet", "images.parquet", "evidence.parquet", "rows.json", "manifest.csv")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """Two persons with two images each; one of them is large, so that the store keeps it as a file."""
    import cv2

    folder = tmp_path_factory.mktemp("suite")
    for p in (1, 7):
        (folder / "people" / f"p{p}").mkdir(parents=True)
        for i in (1, 3):
            picture = cv2.imread(str(orl_folder / f"s{p}" / f"{i}.pgm"))
            if (p, i) == (7, 3):
                picture = cv2.resize(picture, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / "people" / f"p{p}" / f"{i}.png"), picture)
    path = folder / "disk.toml"
    path.write_text(SUITE.format(root=folder / "people"))
    return path


def _run(suite: Path, folder: Path) -> Result:
    return run_suite(load_suite(suite), folder / "run", Options(workers=1, batch=2, cache=folder / "store", quiet=True))


def _figures(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FIGURES}


def _artefacts(folder: Path) -> dict[str, bytes]:
    with Store(folder) as store:
        return dict(store.ask("SELECT key, sha256 FROM artefact"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, suite: Path) -> tuple[dict[str, str], dict[str, bytes], dict[str, int]]:
    """Figures, artefacts and what was computed of a run on a disk with room."""
    folder = tmp_path_factory.mktemp("reference")
    result = _run(suite, folder)
    assert len(read_run(folder / "run").images) == 8
    assert [p for p in (folder / "store" / "objects").rglob("*") if p.is_file()], "one picture is kept as a file"
    return _figures(folder / "run"), _artefacts(folder / "store"), dict(result.computed)


@contextlib.contextmanager
def _no_file_beyond(size: int) -> Iterator[None]:
    """The kernel lets no file of this process, and of those it starts, grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5000, INLINE_BYTES + 5000])
def test_a_store_that_is_really_full(tmp_path: Path, size: int) -> None:
    def data(i: int, j: int) -> bytes:
        return hashlib.sha256(f"{i} {j}".encode()).digest() * (size // 32)

    with Store(tmp_path) as store:
        store.put("first", b"whole")
        stored: list[int] = []

        def fill() -> None:
            for i in range(1000):
                store.put_many({f"{i}-{j}": data(i, j) for j in range(4)})
                stored.append(i)

        with _no_file_beyond(100_000), pytest.raises(EnvironmentFault, match="no space left for the store") as caught:
            fill()
        assert str(tmp_path) in caught.value.message
        assert "nothing is lost" in caught.value.remedy
        assert (len(stored) > 0) == (size < INLINE_BYTES)
        failed = len(stored)
        assert store.get("first") == b"whole"
        assert all(store.get(f"{i}-{j}") == data(i, j) for i in stored for j in range(4))
        assert store.present(f"{failed}-{j}" for j in range(4)) == set(), "all of a batch, or nothing"
        store.put_many({f"{failed}-{j}": data(failed, j) for j in range(4)})  # there is room again
    found = housekeeping.verify(tmp_path)
    assert not found.damaged
    assert not found.structure
    assert found.checked == 1 + 4 * (failed + 1)
    assert not list(tmp_path.rglob(".tmp-*")), "nothing half is left behind"


def test_a_full_database_by_its_own_limit(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put("first", b"whole")
        [(pages,)] = store.ask("PRAGMA page_count")
        store.ask(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(EnvironmentFault, match="no space left"):
            store.put_many({str(i): bytes(4000) for i in range(20)})
        assert store.get("first") == b"whole"
        assert store.present(str(i) for i in range(20)) == set()
        store.ask("PRAGMA max_page_count = 1000000")
        store.put_many({str(i): bytes(4000) for i in range(20)})
        assert len(store.get_many(str(i) for i in range(20))) == 20


# -- any write of a run --------------------------------------------------------------------------------------------------


class _Disk:
    """Refuses the n-th write from now on (and all after it), wherever a run writes: files, their sync and name, the database.

    only: what is refused first, "" for anything.
    """

    def __init__(self, patch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        self.left, self.number, self.refused, self.only = -1, number, "", ""
        write, fsync, replace, mkstemp, at_once = os.write, os.fsync, os.replace, tempfile.mkstemp, Store.at_once

        def torn(handle: int, data: Any) -> int:
            if self._full("write"):
                write(handle, bytes(data)[: len(data) // 2])
                raise self._error()
            return write(handle, data)

        def checked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **more: Any) -> Any:
                if self._full(name):
                    raise self._error()
                return real(*args, **more)

            return call

        def committed(store: Store, work: Callable[[], Any]) -> Any:
            def whole() -> Any:
                done = work()
                if self._full("commit"):
                    raise sqlite3.OperationalError("database or disk is full")
                return done

            return at_once(store, whole)

        patch.setattr(images.os, "write", torn)
        patch.setattr(images.os, "fsync", checked("fsync", fsync))
        patch.setattr(images.os, "replace", checked("replace", replace))
        patch.setattr(store_module.tempfile, "mkstemp", checked("mkstemp", mkstemp))
        patch.setattr(Store, "at_once", committed)

    def _full(self, what: str) -> bool:
        if self.left < 0 or (self.only and not self.refused and what != self.only):
            return False
        if self.left:
            self.left -= 1
            return False
        self.refused = self.refused or what
        return True

    def _error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))


def _half_files(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.name.startswith((".deidbench-", ".tmp-"))]


def _full_again_and_again(
    tmp_path: Path, suite: Path, reference: tuple[dict[str, str], dict[str, bytes], dict[str, int]], seed: int, times: int
) -> set[str]:
    """A run whose disk is full at random writes, until it has been so ``times`` times and then has room; what was refused."""
    figures, artefacts, computed = reference
    rng, refused, full, known = random.Random(seed), set[str](), 0, dict[str, bytes]()
    while full < times:
        with pytest.MonkeyPatch.context() as patch:
            disk = _Disk(patch, rng.choice([errno.ENOSPC, errno.EDQUOT]))
            disk.left = rng.randint(0, 40)
            if not known and rng.random() < 0.5:  # rare, and an end of its own: the file of a large picture
                disk.left, disk.only = 0, "mkstemp"
            fault = None
            try:
                _run(suite, tmp_path)
            except EnvironmentFault as caught:
                fault = caught
        if fault is not None:
            assert disk.refused, fault
            assert "full" in str(fault) or "space" in str(fault)
            assert str(tmp_path) in fault.message, "it names the path"
            assert "again" in fault.remedy, fault
            full += 1
            refused.add(disk.refused)
        now = _artefacts(tmp_path / "store") if (tmp_path / "store").exists() else {}
        assert known.items() <= now.items(), "nothing is lost"
        assert now.items() <= artefacts.items(), "nothing else is there"
        known = now
        assert not _half_files(tmp_path)
        if (tmp_path / "run" / "run.json").exists():
            assert _figures(tmp_path / "run") == figures, "a record belongs to its tables"
            if rng.random() < 0.5:  # else: full while a finished run is written again
                shutil.rmtree(tmp_path / "store")
                shutil.rmtree(tmp_path / "run")
                known = {}
    before = len(known)
    result = _run(suite, tmp_path)
    assert _figures(tmp_path / "run") == figures
    assert _artefacts(tmp_path / "store") == artefacts
    assert not housekeeping.verify(tmp_path / "store").damaged
    assert all(n <= computed[stage] for stage, n in result.computed.items())
    if before == len(artefacts):
        assert result.computed == {}, "what was stored is not computed again"
    return refused


def test_a_disk_that_is_full_at_some_writes(
    tmp_path: Path, suite: Path, reference: tuple[dict[str, str], dict[str, bytes], dict[str, int]]
) -> None:
    _full_again_and_again(tmp_path, suite, reference, seed=3, times=6)


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_hundred_writes(
    tmp_path: Path, suite: Path, reference: tuple[dict[str, str], dict[str, bytes], dict[str, int]]
) -> None:
    refused = _full_again_and_again(tmp_path, suite, reference, seed=4, times=100)
    assert refused == {"write", "fsync", "replace", "mkstemp", "commit"}


_SMALL_DISK = """
set -u
mount -t tmpfs -o size=$1 none "$2"
shift
disk=$1; shift
"$@"; echo "first: $?"
mount -o remount,size=64m "$disk"
"$@"; echo "second: $?"
cp -r "$disk/run" "$disk/../kept"
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["200k", "500k", "900k"])
def test_a_real_small_disk(
    tmp_path: Path, suite: Path, reference: tuple[dict[str, str], dict[str, bytes], dict[str, int]], size: str
) -> None:
    """Store and output on a file system of its own, that is full; and then larger."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here (unshare -rm); the other tests of this file need none")
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [
        sys.executable,
        "-m",
        "deidbench.cli",
        "run",
        str(suite),
        "--out",
        str(disk / "run"),
        "--cache",
        str(disk / "store"),
    ]
    words += ["--workers", "1", "--batch", "2", "--quiet", "--no-report"]
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", _SMALL_DISK, "sh", size, str(disk), *words], capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert "first: 5" in done.stdout, done.stdout + done.stderr
    assert "full" in done.stderr or "space" in done.stderr
    assert "second: 0" in done.stdout, done.stderr
    assert _figures(tmp_path / "kept") == reference[0]


# -- read-only ------------------------------------------------------------------------------------------------------------

#: Goes on as a user who is not root, for whom permissions count.  Every case must be told before any image is looked at.
_READ_ONLY = """
import os, pathlib, shutil, sys, tempfile
import deidbench.images
from deidbench.cache import Store
from deidbench.errors import EnvironmentFault
from deidbench.lock import run_lock
from deidbench.runner import Options, _Run
from deidbench.suite import load_suite

def began(self):
    raise SystemExit("work began before the folder was looked at")
_Run._read_data = began
suite = load_suite(sys.argv[1])
base = pathlib.Path(sys.argv[2])
cases = []

def case(name, closed, word):
    home = base / name.replace(" ", "-")
    for sub in ("parent/out/samples", "parent/out/tables", "store/objects"):
        (home / sub).mkdir(parents=True)
    out = home / "parent" / ("new" if closed == "parent" else "out")
    Store(home / "store").close()
    for path in [home / closed] if closed != "store" else [home / "store", *(home / "store").iterdir()]:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    cases.append((name, word, _Run(suite, out, Options(workers=1, cache=home / "store", quiet=True))))

case("output", "parent/out", "out")
case("a folder in the output", "parent/out/samples", "samples")
case("parent of the output", "parent", "new")
case("store", "store", "store")
case("pictures of the store", "store/objects", "store")
# what is imported late must be there: this user need not be able to read the installation
with run_lock(base / "warm"), Store(base / "warm" / "store") as store:
    store.begin_run(base, "warm")
if os.geteuid() == 0:
    for path in [base, *base.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for name, word, run in cases:
    try:
        run.run()
    except EnvironmentFault as fault:
        assert word in fault.message and fault.remedy, str(fault)
        print(name, "ok", flush=True)
    else:
        raise SystemExit(name + ": no error")
"""


def test_what_is_read_only_is_told_before_the_work_begins(suite: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="deidbench-read-only-"))
    folder.chmod(0o755)  # its way must be open to a user who is not root, which pytest's own folders are not
    try:
        done = subprocess.run(
            [sys.executable, "-c", _READ_ONLY, str(suite), str(folder)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(" ok") == 5
    finally:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o777)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("where", ["output", "store"])
def test_a_read_only_file_system_is_told_before_the_work_begins(
    tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As the kernel says it to root as well: EROFS for whatever would be written there."""
    closed = {"output": tmp_path / "run", "store": tmp_path / "store"}[where]
    closed.mkdir()
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).startswith(str(closed)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *more, **named)

    def began(self: _Run) -> None:
        raise AssertionError("work began before the folder was looked at")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(_Run, "_read_data", began)
    with pytest.raises(EnvironmentFault, match="Read-only file system") as caught:
        _run(suite, tmp_path)
    assert str(closed) in caught.value.message
    assert {"output": "--out", "store": "--cache"}[where] in caught.value.remedy


def test_halves_of_killed_runs_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    old, young = [out / f".deidbench-{i}.tmp" for i in "ab"]
    inside, other = out / "tables" / ".deidbench-c.tmp", out / "mine.tmp"
    for path in (old, young, inside, other):
        path.write_bytes(b"half")
    for path in (old, inside, other):
        os.utime(path, (1e9, 1e9))
    os.utime(young, (young.stat().st_mtime - STALE / 2,) * 2)
    with run_lock(out):
        assert not old.exists()
        assert not inside.exists()
        assert young.exists(), "a report may be writing it"
        assert other.exists()
    assert not (out / RUN_LOCK).exists()


# -- the temporary folder of external programs -------------------------------------------------------------------------------

_PROGRAM = """
import sys
import numpy as np
from PIL import Image
source, target, how = sys.argv[1:]
picture = np.asarray(Image.open(source).convert("RGB"))
noise = np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8)
try:
    Image.fromarray(noise).save(target)
except OSError:
    import os
    if how != "torn" and os.path.exists(target):
        os.unlink(target)
    sys.exit(1 if how == "dies" else 0)
"""


@pytest.mark.parametrize("how", ["silent", *(pytest.param(how, marks=pytest.mark.slow) for how in ("dies", "torn"))])
def test_no_room_for_a_programs_output_is_no_images_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The input is small as a file, the output is not; the program says nothing of the full disk."""
    (tmp_path / "program.py").write_text(_PROGRAM)
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    method = kinds.anonymizers.create("command", command=f"python program.py {{in}} {{out}} {how}", timeout=60)
    method.load()
    items = [Item(f"{i}", np.full((120, 100, 3), 9 + i, np.uint8)) for i in range(2)]
    assert [r.status.value for r in method.anonymize(items)] == ["ok", "ok"]
    with _no_file_beyond(20_000), pytest.raises(EnvironmentFault, match="no room for pictures") as caught:
        method.anonymize(items)
    assert str(tmp_path / "tmp") in caught.value.message
    assert "TMPDIR" in caught.value.remedy
    assert list((tmp_path / "tmp").iterdir()) == [], "no picture stays"
    assert [r.status.value for r in method.anonymize(items)] == ["ok", "ok"]


def test_no_room_for_an_exchange_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with _no_file_beyond(100), pytest.raises(DeidbenchError, match="cannot be filled") as caught:
        Exchange()
    assert isinstance(caught.value, EnvironmentFault)
    assert "TMPDIR" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    exchange = Exchange()
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    with _no_file_beyond(100), pytest.raises(EnvironmentFault, match="cannot be written"):
        exchange.put(0, noise)
    assert list((exchange.folder / "in").iterdir()) == [], "no half of a picture"
    exchange.close()
