"""The store: whole or absent, checked on reading, shared by processes, clear words when the machine fails."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deidbench import cache
from deidbench.cache import INLINE_BYTES, Store, key
from deidbench.errors import EnvironmentFault

SIZES = [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 3_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    with Store(tmp_path) as store:
        assert store.get("k") is None
        store.put("k", data)
        assert store.get("k") == data
        store.put("k", data + b"x")
        assert store.get("k") == data + b"x"
    with Store(tmp_path) as store:  # and after opening it again
        assert store.get_many(["k", "absent"]) == {"k": data + b"x"}
        assert store.present(["k", "absent"]) == {"k"}
        assert store.info()["artefacts"] == 1


def test_many_keys(tmp_path: Path) -> None:
    """More keys than SQLite takes in one statement."""
    items = {key("x", i=i): str(i).encode() for i in range(2500)}
    with Store(tmp_path) as store:
        store.put_many(items)
        assert store.get_many(items) == items


def test_key_depends_on_values_only() -> None:
    assert key("a", x=1, y="2") == key("a", y="2", x=1)
    assert len({key("a", x=1), key("b", x=1), key("a", x=2), key("a", x="1"), key("a", y=1), key("a", x=None)}) == 6
    with pytest.raises(TypeError):
        key("a", x=object())
    with pytest.raises(ValueError):
        key("a", x=float("nan"))


@pytest.mark.parametrize("size", [100, INLINE_BYTES + 1])
def test_damage_is_found_and_counts_as_absent(tmp_path: Path, size: int) -> None:
    with Store(tmp_path) as store:
        store.put("k" * 64, b"a" * size)
    if size > INLINE_BYTES:
        file = next(p for p in (tmp_path / "objects").rglob("*") if p.is_file())
        file.write_bytes(b"a" * (size - 1) + b"b")
    else:
        db = sqlite3.connect(next(tmp_path.glob("*.sqlite")))
        db.execute("UPDATE artefact SET data = ?", (b"a" * (size - 1) + b"b",))
        db.commit()
        db.close()
    with Store(tmp_path) as store:
        assert store.get("k" * 64) is None
        assert store.damaged == 1
        store.put("k" * 64, b"a" * size)
        assert store.get("k" * 64) == b"a" * size


def test_a_store_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / f"store-v{cache.LAYOUT}.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(EnvironmentFault, match=r"is damaged[\s\S]*rm "):
        Store(tmp_path)


def test_disk_full_says_so_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.put("before", b"1")

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cache.os, "fsync", full)
        with pytest.raises(EnvironmentFault, match="no space left"):
            store.put_many({"small": b"2", "large": b"3" * (INLINE_BYTES + 1)})
        monkeypatch.undo()
        assert store.get_many(["before", "small", "large"]) == {"before": b"1"}
        assert not [p for p in (tmp_path / "objects").rglob("*") if p.is_file()], "no torn file stays behind"


def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="cannot be used"):
        Store(tmp_path / "file" / "store")


_WRITE = """
import sys, pathlib
from deidbench.cache import Store, key
who = int(sys.argv[2])
with Store(pathlib.Path(sys.argv[1])) as store:
    for batch in range(20):
        store.put_many({key("w", who=who, batch=batch, i=i): bytes([who]) * 5000 for i in range(8)})
        store.put(key("shared", batch=batch), b"same")
"""


def test_several_processes_share_it(tmp_path: Path) -> None:
    # started by name of the interpreter alone: a package that installs its own "tests" would hide this module from a spawned worker
    workers = [subprocess.Popen([sys.executable, "-c", _WRITE, str(tmp_path), str(who)]) for who in range(2)]
    for w in workers:
        assert w.wait(60) == 0
    with Store(tmp_path) as store:
        for who in range(2):
            for batch in range(20):
                keys = [key("w", who=who, batch=batch, i=i) for i in range(8)]
                assert set(store.get_many(keys).values()) == {bytes([who]) * 5000}
        assert store.info()["artefacts"] == 2 * 20 * 8 + 20


def test_killed_while_writing_a_batch_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from deidbench.cache import Store, key\n"
        "s = Store(pathlib.Path(sys.argv[1])); print('up', flush=True)\n"
        "for b in range(10**6): s.put_many({key('k', b=b, i=i): bytes([b % 256]) * 9000 for i in range(16)})"
    )
    for delay in (0.05, 0.2, 0.35):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Store(tmp_path) as store:
            batch = 0
            while found := store.get_many(key("k", b=batch, i=i) for i in range(16)):
                assert len(found) == 16
                assert set(found.values()) == {bytes([batch % 256]) * 9000}
                batch += 1
            assert store.damaged == 0
            assert batch > 0
