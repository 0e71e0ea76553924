"""The store: whole or absent, checked on reading, shared by processes, clear words when the machine fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from deidbench import cache
from deidbench.cache import INLINE_BYTES, Store, key, short
from deidbench.errors import EnvironmentFault
from deidbench.housekeeping import salvage, verify
from deidbench.records import read_run
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite

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


# --- keys


def test_a_key_is_its_text_and_knows_what_it_is_of() -> None:
    """The text is what it was before keys knew anything: stores of older versions go on being used."""
    plain = hashlib.sha256(b'["anonymised",{"clear":"c","method":"m"}]').hexdigest()
    k = key("anonymised", clear="c", method="m")
    assert k == plain and hash(k) == hash(plain) and json.dumps([k]) == json.dumps([plain])
    assert (k.kind, k.method) == ("anonymised", "m")
    assert key("faces", source=k) == key("faces", source=plain)
    assert key("faces", source=k, finder="f").method == "m", "what is made of it comes from the same method"
    assert key("faces", source=plain).method == "" and key("findings", table="t").by("m").method == "m"
    again = pickle.loads(pickle.dumps({k: 1}))
    [only] = again
    assert again == {plain: 1} and (only.kind, only.method) == ("anonymised", "m")


def test_short_keys() -> None:
    keys = [key("x", i=i) for i in range(1000)]
    assert len(short(keys)) == 1000 and (short(keys) == short(list(reversed(keys)) + keys)).all()
    assert int(short(keys[:1])[0]) == int(keys[0][:10], 16)
    assert len(short(["a", "b", "a"])) == 2, "keys that are no hashes too"
    assert len(short([])) == 0


# --- damage


@pytest.mark.parametrize("size", [100, INLINE_BYTES + 1])
def test_what_is_damaged_is_no_longer_there(tmp_path: Path, size: int) -> None:
    """Otherwise it would count as present, and never be made anew."""
    with Store(tmp_path) as store:
        store.put(k := key("x", i=1), b"a" * size)
        _damage(tmp_path, k)
        assert store.present([k]) == {k}, "nobody has looked yet"
        assert store.get(k) is None
        assert store.present([k]) == set() and store.ask("SELECT COUNT(*) FROM about") == [(0,)]
        store.put(k, b"b" * size)
        assert store.get(k) == b"b" * size and store.damaged == 1


def _damage(folder: Path, k: str) -> None:
    """Flips a bit of an artefact."""
    with contextlib.closing(sqlite3.connect(folder / f"store-v{cache.LAYOUT}.sqlite")) as db:
        [(data,)] = db.execute("SELECT data FROM artefact WHERE key = ?", (str(k),)).fetchall()
        if data is not None:
            db.execute("UPDATE artefact SET data = ? WHERE key = ?", (_flipped(data), str(k)))
            db.commit()
            return
    [file] = (folder / "objects" / k[:2]).glob(f"{k[2:]}*")
    file.write_bytes(_flipped(file.read_bytes()))


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def test_a_file_that_is_gone_counts_as_absent(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put(k := key("x"), os.urandom(INLINE_BYTES + 1))
        shutil.rmtree(tmp_path / "objects")
        assert store.get(k) is None and store.present([k]) == set()
        store.put(k, data := os.urandom(INLINE_BYTES + 1))
        assert store.get(k) == data


SUITE = """\
[suite]
name = "tiny"
extends = "deidbench-v1"
inherit_methods = false
[dataset]
name = "folder"
params = {{ root = "{root}" }}
[protocol]
replicates = 200
curve_replicates = 100
[[recognizers]]
name = "sface"
[throughput]
images = 2
repeats = 2
[report]
samples = 1
[[methods]]
name = "original"
control = true
[[methods]]
name = "pixelate"
params = {{ block = 0.15 }}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """A folder with a suite (``tiny.toml``), a finished run of it (``run``) and its store (``cache``)."""
    folder = tmp_path_factory.mktemp("tiny")
    for p in (1, 7):
        (folder / "people" / f"p{p}").mkdir(parents=True)
        for i in (1, 3):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", folder / "people" / f"p{p}" / f"{i}.pgm")
    (folder / "tiny.toml").write_text(SUITE.format(root=folder / "people"))
    run_suite(load_suite(str(folder / "tiny.toml")), folder / "run", Options(workers=1, cache=folder / "cache", quiet=True))
    return folder


def _rows(folder: Path) -> pd.DataFrame:
    rows = read_run(folder).rows
    return rows[~rows.timing].reset_index(drop=True)


def test_a_run_makes_anew_what_is_damaged_and_tells_it(run: Path, tmp_path: Path) -> None:
    """One artefact of every kind has a flipped bit; another run makes them anew and gives the same figures."""
    shutil.copytree(run / "cache", tmp_path / "cache")
    with Store(tmp_path / "cache") as store:
        one_each = dict(store.ask("SELECT o.kind, MIN(b.key) FROM about b JOIN origin o ON o.id = b.origin GROUP BY 1"))
    kinds = {"picture", "findings", "faces", "anonymised", "embedding", "timing", "thumb", "measure"}
    assert set(one_each) == kinds
    for k in one_each.values():
        _damage(tmp_path / "cache", k)
    result = run_suite(
        load_suite(str(run / "tiny.toml")), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True)
    )
    assert result.damaged >= len(kinds) - 1, "but a picture that nobody needs is not looked at"
    assert result.computed["score"] == 1 and result.computed["embed"] >= 1 and result.computed["timing"] == 1
    assert "were damaged and were computed anew" in result.remarks()[0]
    assert read_run(tmp_path / "run").record["run"]["damaged_artefacts"] == result.damaged
    pd.testing.assert_frame_equal(_rows(tmp_path / "run"), _rows(run / "run"), check_exact=False, rtol=0, atol=1e-9)
    assert {d.kind for d in verify(tmp_path / "cache", delete=True).damaged} <= {"picture"}
    again = run_suite(
        load_suite(str(run / "tiny.toml")), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True)
    )
    assert set(again.computed) <= {"anonymize"} and again.damaged == 0


def test_a_damaged_picture_that_is_needed_is_made_anew(run: Path, tmp_path: Path) -> None:
    """A worker that looks for faces in it, embeds and measures it."""
    shutil.copytree(run / "cache", tmp_path / "cache")
    with Store(tmp_path / "cache") as store:
        pictures = store.ask("SELECT b.key FROM about b JOIN origin o ON o.id = b.origin WHERE o.kind = 'picture'")
        store.at_once(
            lambda: store._db.execute(
                "DELETE FROM artefact WHERE key IN (SELECT b.key FROM about b JOIN origin o ON o.id = b.origin "
                "WHERE o.kind IN ('faces', 'embedding', 'measure') AND o.method != '')"
            )
        )
    for (k,) in pictures:
        _damage(tmp_path / "cache", k)
    result = run_suite(
        load_suite(str(run / "tiny.toml")), tmp_path / "run", Options(workers=1, cache=tmp_path / "cache", quiet=True)
    )
    assert result.computed["anonymize"] == len(pictures) == result.damaged == 8
    pd.testing.assert_frame_equal(_rows(tmp_path / "run"), _rows(run / "run"), check_exact=False, rtol=0, atol=1e-9)


# --- the database itself


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(i, marks=pytest.mark.slow) for i in range(4, 100))])
def test_flipped_bits_in_the_database_never_give_wrong_bytes(tmp_path: Path, seed: int) -> None:
    """Wherever they hit: what is read is right or absent, and ``verify --delete`` makes a whole store of the rest."""
    rng = random.Random(seed)
    items = {key("x", i=i): rng.randbytes(rng.choice((10, 700, 9000))) for i in range(400)}
    large = {key("large", i=i): rng.randbytes(INLINE_BYTES + 1) for i in range(2)}
    with Store(tmp_path) as store:
        for start in range(0, 400, 40):
            store.put_many(dict(list(items.items())[start : start + 40]))
        store.put_many(large)
        store.ask("PRAGMA wal_checkpoint(TRUNCATE)")
    file = tmp_path / f"store-v{cache.LAYOUT}.sqlite"
    data = bytearray(file.read_bytes())
    for _ in range(3):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    right = {**items, **large}
    with contextlib.suppress(EnvironmentFault), Store(tmp_path) as store:
        for k, found in store.get_many(right).items():
            assert found == right[k]
    verify(tmp_path, delete=True)
    assert verify(tmp_path).whole
    with Store(tmp_path) as store:
        found = store.get_many(right)
        assert all(found[k] == right[k] for k in found)
        assert len(found) >= 0.9 * len(right), "the rest of the store is saved"
        store.put_many(right)
        assert store.get_many(right) == right


def test_a_store_that_is_rubbish_is_begun_anew(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put(key("large"), data := os.urandom(INLINE_BYTES + 1))
    (tmp_path / f"store-v{cache.LAYOUT}.sqlite").write_bytes(os.urandom(50_000))
    found = verify(tmp_path)
    assert not found.whole and "not a database" in found.structure
    assert verify(tmp_path, delete=True).saved == 0
    with Store(tmp_path) as store:
        assert store.info()["artefacts"] == 0
        store.put(key("large"), data)
        assert store.get(key("large")) == data


def test_saving_is_not_done_under_somebody(tmp_path: Path) -> None:
    from deidbench.errors import InputError

    with Store(tmp_path) as store:
        store.put("k", b"1")
        with pytest.raises(InputError, match=rf"in use \(process {os.getpid()}\)"):
            salvage(tmp_path)
    assert salvage(tmp_path) == (1, 0)
    with Store(tmp_path) as store:
        assert store.get("k") == b"1"


# --- other versions, other file systems

_OLD = (
    "CREATE TABLE artefact (key TEXT PRIMARY KEY, sha256 BLOB NOT NULL, size INTEGER NOT NULL, data BLOB, made REAL NOT NULL)"
)


def test_a_store_of_an_older_version(tmp_path: Path) -> None:
    """It goes on being used, by this version and by the older one, at the same time."""
    small, large = key("faces", i=1), key("picture", i=2)
    blob = os.urandom(INLINE_BYTES + 1)
    (tmp_path / "objects" / large[:2]).mkdir(parents=True)
    (tmp_path / "objects" / large[:2] / large[2:]).write_bytes(blob)  # where the older version put it
    old = sqlite3.connect(tmp_path / f"store-v{cache.LAYOUT}.sqlite", isolation_level=None)
    old.execute("PRAGMA journal_mode=WAL")
    old.execute(_OLD)
    for k, data in ((small, b"faces"), (large, blob)):
        row = (k, hashlib.sha256(data).digest(), len(data), None if k == large else data, time.time())
        old.execute("INSERT OR REPLACE INTO artefact VALUES (?, ?, ?, ?, ?)", [str(row[0]), *row[1:]])
    with Store(tmp_path, remember=True) as store:
        assert store.get_many([small, large]) == {small: b"faces", large: blob}
        assert store.ask("SELECT COUNT(*) FROM about") == [(0,)]
        turn = store.begin_run(tmp_path / "out", "s")
        store.finish_run(turn, {})
        told = dict(store.ask("SELECT b.key, o.kind FROM about b JOIN origin o ON o.id = b.origin"))
        assert told == {small: "faces", large: "picture"}, "what they are is known once a run has asked for them"
        data = b"by the older version"
        old.execute(
            "INSERT OR REPLACE INTO artefact VALUES (?, ?, ?, ?, ?)", ("k", hashlib.sha256(data).digest(), len(data), data, 1.0)
        )
        assert store.get("k") == data
    old.close()


def test_on_a_network_drive_there_is_no_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "on_network", lambda folder: True)
    with Store(tmp_path / "new") as store:
        assert store.ask("PRAGMA journal_mode") == [("delete",)]
        store.put("k", b"1")
        with Store(tmp_path / "new") as other:
            assert other.get("k") == b"1"
    monkeypatch.undo()
    with Store(tmp_path / "local") as store:
        assert store.ask("PRAGMA journal_mode") == [("wal",)]


# --- several processes


def test_a_lock_is_waited_for_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PATIENCE", 1.0)
    with Store(tmp_path) as store:
        store.put("before", b"1")
        holder = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(EnvironmentFault, match=r"is locked: another process has held it[\s\S]*network drive"):
            store.put("k", b"2")
        threading.Timer(0.4, lambda: holder.execute("ROLLBACK")).start()
        store.put("k", b"2")
        holder.close()
        assert store.get_many(["before", "k"]) == {"before": b"1", "k": b"2"}


def test_two_that_write_other_bytes_under_one_key_do_not_mix_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes its file between the first one's file and the first one's line in the database."""
    one, two = b"1" * (INLINE_BYTES + 1), b"2" * (INLINE_BYTES + 1)
    with Store(tmp_path) as first, Store(tmp_path) as second:
        write = Store._write_file

        def interrupted(path: Path, data: bytes) -> None:
            write(path, data)
            if data == one:
                second.put("k" * 64, two)

        monkeypatch.setattr(Store, "_write_file", staticmethod(interrupted))
        first.put("k" * 64, one)
        monkeypatch.undo()
        assert first.get("k" * 64) == second.get("k" * 64) == one
        assert first.damaged == second.damaged == 0


_STRESS = """
import hashlib, pathlib, random, sys, time
from deidbench.cache import Store, key
folder, seed, end = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
rng = random.Random(seed)
def content(i):
    return hashlib.sha256(str(i).encode()).digest() * (6000 if i % 40 == 0 else 20)
done = 0
with Store(folder) as store:
    while time.time() < end:
        numbers = [rng.randrange(400) for _ in range(8)]
        keys = {key("x", i=i, method=str(i % 3)): content(i) for i in numbers}
        if rng.random() < 0.5:
            store.put_many(keys)
        found = store.get_many(keys)
        assert all(found[k] == keys[k] for k in found), "torn"
        assert store.damaged == 0, "damaged"
        done += 1
print(done)
"""


def _stress(tmp_path: Path, seconds: float, kills: int) -> None:
    end = time.time() + seconds
    rng = random.Random(8)
    running = [_stressed(tmp_path, seed, end) for seed in range(8)]
    killed = 0
    while time.time() < end - 0.5 and killed < kills:
        time.sleep((seconds - 1) / (kills + 1) * rng.uniform(0.5, 1))
        victim = rng.choice([p for p in running if p.poll() is None])
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        running.remove(victim)
        running.append(_stressed(tmp_path, 100 + killed, end))
        killed += 1
    assert killed == kills
    rounds = 0
    for process in running:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert "locked" not in err
        rounds += int(out)
    assert rounds > 8
    found = verify(tmp_path)
    assert found.whole and found.checked > 100
    with Store(tmp_path) as store:
        assert store.ask("PRAGMA integrity_check") == [("ok",)]
        keys = {
            key("x", i=i, method=str(i % 3)): hashlib.sha256(str(i).encode()).digest() * (6000 if i % 40 == 0 else 20)
            for i in range(400)
        }
        whole = store.get_many(keys)
        assert all(whole[k] == keys[k] for k in whole)
        assert store.present(keys) == set(whole), "nothing is there by half"


def _stressed(folder: Path, seed: int, end: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _STRESS, str(folder), str(seed), str(end)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_eight_processes_and_one_that_is_killed(tmp_path: Path) -> None:
    _stress(tmp_path, 6, kills=1)


@pytest.mark.slow
def test_eight_processes_and_many_that_are_killed(tmp_path: Path) -> None:
    _stress(tmp_path, 60, kills=25)


def test_many_open_a_new_store_at_once(tmp_path: Path) -> None:
    """Who comes first makes the tables; nobody is told that the database is locked."""
    code = "import pathlib, sys; from deidbench.cache import Store\nfor i in range(5):\n  s = Store(pathlib.Path(sys.argv[1])); s.put(sys.argv[2], b'1'); s.close()"
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "new"), f"{i}"], stderr=subprocess.PIPE, text=True)
        for i in range(8)
    ]
    for w in workers:
        _, err = w.communicate(timeout=120)
        assert w.returncode == 0, err
    with Store(tmp_path / "new") as store:
        assert store.info()["artefacts"] == 8
        assert store.ask("SELECT COUNT(*) FROM identity") == [(1,)], "one identity"


# --- which run uses what


def test_turns_count_runs_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "cache", remember=True) as store:
        first = store.begin_run(tmp_path / "a", "s")
        store.put_many({key("x", i=i): b"1" for i in range(3)})
        assert store.present([key("x", i=0), key("x", i=1), key("absent")]) == {key("x", i=0), key("x", i=1)}
        store.finish_run(first, {"f": "mask"})
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 10_000)
    with Store(tmp_path / "cache", remember=True) as store:
        second = store.begin_run(tmp_path / "b", "s")
        assert second.store == first.store and second.turn > first.turn
        store.finish_run(second, {}, replaces=first)
        assert [t for (t,) in store.ask("SELECT turn FROM run")] == [second.turn]
        third = store.begin_run(tmp_path / "b", "s")
        assert third.turn > second.turn
    with Store(tmp_path / "cache", remember=True) as store:  # the third was killed
        fourth = store.begin_run(tmp_path / "b", "s")
        store.finish_run(fourth, {})
        assert third.turn not in [t for (t,) in store.ask("SELECT turn FROM run")]
