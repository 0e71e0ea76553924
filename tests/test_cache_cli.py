"""deidbench cache: what is in the store, what goes and what stays, whether it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deidbench import cli
from deidbench import housekeeping as keeping
from deidbench.cache import INLINE_BYTES, LAYOUT, Store, Turn, key
from deidbench.errors import InputError, MissingError
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite

DAY = 86400.0


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["cache", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def _result(folder: Path, turn: Turn | None) -> Path:
    """What a run leaves of which nothing but the record is looked at."""
    folder.mkdir(parents=True)
    run = {"store": None if turn is None else turn._asdict()}
    (folder / "run.json").write_text(json.dumps({"schema": 2, "run": run}))
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A store with artefacts of two methods, made 100 (old), 10 (middle) and 0 days ago; runs ``a`` and ``b`` share some.

    Run a was done 50 days ago and asked for old 0-4; run b now, and asked for old 3-4 and new 0-1.
    """
    folder = tmp_path / "cache"
    with Store(folder) as store:
        for name, method in (("old", "m1"), ("middle", "m1"), ("new", "m2")):
            store.put_many({key("embedding", name=name, i=i, method=method): f"{name}{i}".encode() * 100 for i in range(10)})
        store.put(key("picture", name="new", method="m2"), os.urandom(INLINE_BYTES + 1))
        for name, days in (("old", 100), ("middle", 10)):
            for i in range(10):
                k = str(key("embedding", name=name, i=i, method="m1"))
                store.at_once(
                    lambda k=k, d=days: store._db.execute("UPDATE about SET made = made - ? WHERE key = ?", (d * DAY, k))
                )  # type: ignore[misc]
    for name, asked, days in (("a", [("old", i, "m1") for i in range(5)], 50), ("b", [("old", 3, "m1"), ("old", 4, "m1"), ("new", 0, "m2"), ("new", 1, "m2")], 0)):  # fmt: skip
        with Store(folder, remember=True) as store:
            turn = store.begin_run(tmp_path / name, "suite")
            store.present([key("embedding", name=n, i=i, method=m) for n, i, m in asked])
            store.finish_run(turn, {"m1": "mask 0.5"})
            store.at_once(
                lambda d=days, t=turn: store._db.execute("UPDATE run SET used = used - ? WHERE turn = ?", (d * DAY, t.turn))
            )  # type: ignore[misc]
        _result(tmp_path / name, turn)
    return folder


def _left(folder: Path) -> dict[str, list[int]]:
    """Which artefacts are there, by name."""
    out: dict[str, list[int]] = {}
    with Store(folder) as store:
        for name, method in (("old", "m1"), ("middle", "m1"), ("new", "m2")):
            keys = {key("embedding", name=name, i=i, method=method): i for i in range(10)}
            out[name] = sorted(keys[k] for k in store.get_many(keys))  # type: ignore[index]
        out["picture"] = [0] if store.get(key("picture", name="new", method="m2")) is not None else []
        assert store.damaged == 0
    return out


ALL = {"old": list(range(10)), "middle": list(range(10)), "new": list(range(10)), "picture": [0]}


# --- info


def test_info(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "info", "--cache", stored, "--json")
    found = json.loads(out)
    assert code == 0 and found["artefacts"] == 31 and found["unknown"] == 0 and found["layout"] == LAYOUT
    kinds = {k["kind"]: k["artefacts"] for k in found["kinds"]}
    assert kinds == {"embedding": 30, "picture": 1}
    methods = {m["fingerprint"]: (m["artefacts"], m["labels"]) for m in found["methods"]}
    assert methods == {"m1": (20, ["mask 0.5"]), "m2": (11, [])}
    assert [(Path(r["folder"]).name, r["artefacts"], r["there"]) for r in found["runs"]] == [("a", 5, True), ("b", 4, True)]
    assert found["bytes"] > INLINE_BYTES and found["disk_bytes"] >= found["bytes"] and found["free_bytes"] > 0
    assert found["newest"] - found["oldest"] == pytest.approx(100 * DAY, abs=60)
    shutil.rmtree(stored.parent / "a")
    (stored / "pairs").mkdir()
    (stored / "pairs" / "x").write_bytes(b"1" * 1000)
    code, out, _ = _run(capsys, "info", "--cache", stored)
    assert code == 0
    for words in ("31 artefacts", "embedding", "picture", "mask 0.5", "(gone)", "pairs, 1.0 kB"):
        assert words in " ".join(out.split()) or words in out.replace("\n", ""), words


def test_info_of_older_and_of_future_artefacts(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(stored) as store:
        store.put("made by an older version", b"1")
        store.at_once(
            lambda: store._db.execute(
                "UPDATE about SET made = ? WHERE key = ?", (time.time() + 9 * DAY, str(key("picture", name="new", method="m2")))
            )
        )
    _, out, _ = _run(capsys, "info", "--cache", stored)
    assert "of 1 it is not known what they are" in out and "1 have a time that lies in the future" in out


@pytest.mark.parametrize("command", [["info"], ["verify"], ["clear", "--yes"], ["prune", "--older-than", "1d", "--yes"]])
def test_there_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    code, _, err = _run(capsys, *command, "--cache", tmp_path / "none")
    assert code == 3 and "there is no store in" in err
    assert not (tmp_path / "none").exists(), "looking for one makes none"


# --- prune


def _plan(folder: Path, **how: Any) -> keeping.Pruning:
    with Store(folder) as store:
        return keeping.plan(store, **how)


def test_what_no_run_has_used_for_long(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Use by a run counts, not the making alone."""
    code, out, _ = _run(capsys, "prune", "--older-than", "30d", "--cache", stored, "--dry-run")
    assert code == 0 and "would delete: 8 artefacts" in out
    assert _left(stored) == ALL, "nothing was deleted"
    code, out, _ = _run(capsys, "prune", "--older-than", "30d", "--cache", stored, "--yes", "--quiet")
    assert code == 0 and "deleted" in out
    assert _left(stored) == {**ALL, "old": [3, 4]}
    code, out, _ = _run(capsys, "prune", "--older-than", "1h", "--cache", stored, "--yes", "--json")
    assert json.loads(out)["deleted"] and json.loads(out)["artefacts"] == 10
    assert _left(stored) == {**ALL, "old": [3, 4], "middle": []}


def test_what_these_runs_do_not_use(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _run(
        capsys, "prune", "--unused-by", tmp_path / "a", "--unused-by", tmp_path / "b", "--cache", stored, "--yes", "--quiet"
    )
    assert code == 0, err
    assert _left(stored) == {"old": [0, 1, 2, 3, 4], "middle": [], "new": [0, 1], "picture": []}
    assert not list((stored / "objects").rglob("*-*")), "its file went with it"
    code, _, _ = _run(capsys, "prune", "--unused-by", tmp_path / "b", "--cache", stored, "--yes", "--quiet")
    assert _left(stored) == {"old": [3, 4], "middle": [], "new": [0, 1], "picture": []}


def test_a_folder_of_runs_and_one_that_was_moved(stored: Path, tmp_path: Path) -> None:
    """Runs are known by their number, wherever they are now."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / f"moved-{name}")
    from deidbench.history import find

    assert len(_plan(stored, unused_by=find([tmp_path / "elsewhere"])).keys) == 31 - 7


def test_old_and_unused_must_both_hold(stored: Path, tmp_path: Path) -> None:
    plan = _plan(stored, older_than=30 * DAY, unused_by=[tmp_path / "a"])
    assert len(plan.keys) == 5, "old 5-9: old 0-4 are used by a, the others are young"


def test_the_least_recently_used_go_until_the_store_is_small_enough(stored: Path, tmp_path: Path) -> None:
    rest = _plan(stored).left
    one = 400 + keeping.OVERHEAD  # "old0" * 100
    plan = _plan(stored, max_size=rest - 6 * one)
    names = {str(key("embedding", name="old", i=i, method="m1")): i for i in range(10)}
    # never used: 100 days; used by a, not by b: 50 days
    gone = {names[k] for k in plan.keys}
    assert len(gone) == 6 and gone >= {5, 6, 7, 8, 9} and gone - {5, 6, 7, 8, 9} <= {0, 1, 2}
    assert plan.left <= rest - 6 * one
    assert _plan(stored, max_size=rest).keys == []
    assert len(_plan(stored, max_size=0).keys) == 31
    kept = _plan(stored, max_size=0, unused_by=[tmp_path / "a", tmp_path / "b"])
    assert len(kept.keys) == 31 - 7 and kept.kept == kept.left > 0, "what they use stays, and that is said"


def test_a_clock_that_was_ahead_makes_nothing_immortal(stored: Path) -> None:
    with Store(stored) as store:
        store.at_once(lambda: store._db.execute("UPDATE about SET made = ?", (time.time() + 1000 * DAY,)))
        later = keeping.plan(store, older_than=DAY, now=time.time() + 2 * DAY)
        assert later.keys == [], "of an unknown age: as if it were made now"
        assert len(keeping.plan(store, max_size=0).keys) == 31


def test_a_run_that_the_store_does_not_know(stored: Path, tmp_path: Path) -> None:
    for name, turn in (("old version", None), ("other store", Turn("x", 1)), ("other turn", Turn("x", 99))):
        folder = _result(tmp_path / name, turn)
        with pytest.raises(InputError, match=r"does not know what .* uses[\s\S]*run its command again"):
            _plan(stored, unused_by=[folder])
    with pytest.raises(MissingError):
        _plan(stored, unused_by=[tmp_path])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "prune what?"),
        (["--older-than", "soon"], "--older-than 'soon' is no age"),
        (["--older-than", "-3d"], "is no age"),
        (["--max-size", "big"], "--max-size 'big' is no size"),
        (["--older-than", "1d"], "nothing was deleted: that needs consent"),
        (["--unused-by", "/no/such/run", "--yes"], "not a finished run"),
    ],
)
def test_prune_says_what_is_wrong(stored: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, _, err = _run(capsys, "prune", *arguments, "--cache", stored)
    assert code in (2, 3) and words in err and "->" in err
    assert _left(stored) == ALL


def test_a_store_in_use_is_left_alone(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import pathlib, sys; from deidbench.cache import Store; s = Store(pathlib.Path(sys.argv[1])); print('up', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(stored)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "up\n"
        for command in (["prune", "--older-than", "1d", "--yes"], ["clear", "--yes"]):
            status, _, err = _run(capsys, *command, "--cache", stored)
            assert status == 2 and f"is in use (process {other.pid})" in err, err
        status, out, _ = _run(capsys, "prune", "--older-than", "1d", "--dry-run", "--cache", stored)
        assert status == 0 and "would delete" in out, "looking is no harm"
        assert _run(capsys, "info", "--cache", stored)[0] == 0
        assert _left(stored) == ALL
    finally:
        other.kill()
        other.communicate()
    assert _run(capsys, "clear", "--yes", "--cache", stored)[0] == 0, "killed, it holds nothing any more"


def test_space_is_given_back(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for start in range(5):
            store.put_many({key("x", i=i, start=start): os.urandom(50_000) for i in range(20)})
        store.ask("PRAGMA wal_checkpoint(TRUNCATE)")
    before = store.path.stat().st_size
    with Store(tmp_path, alone=True) as store:
        freed = keeping.delete(store, keeping.plan(store, max_size=0).keys)
        assert store.info()["artefacts"] == 0
    assert before > 5_000_000 and freed > 0.9 * before and store.path.stat().st_size < 200_000


# --- verify, clear


def test_verify(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "verify", "--cache", stored)
    assert code == 0 and "31 artefacts checked" in out
    bad = str(key("embedding", name="old", i=0, method="m1"))
    with contextlib.closing(sqlite3.connect(stored / f"store-v{LAYOUT}.sqlite")) as db:
        db.execute("UPDATE artefact SET data = ? WHERE key = ?", (b"x" * 400, bad))
        db.commit()
    picture = key("picture", name="new", method="m2")
    [file] = (stored / "objects" / picture[:2]).iterdir()
    file.unlink()
    (stored / "objects" / "ab").mkdir(exist_ok=True)
    for name, age in (("orphan-00", 2 * 3600), (".tmp-killed", 2 * 3600), ("in-flight", 0)):
        (stored / "objects" / "ab" / name).write_bytes(b"1")
        os.utime(stored / "objects" / "ab" / name, (time.time() - age,) * 2)
    code, out, err = _run(capsys, "verify", "--cache", stored, "--quiet")
    assert code == 1 and "2 damaged (1 embedding, 1 picture)" in err and bad[:16] in err and "--delete" in err
    assert "its file is missing" in err and "2 files without an owner" in err
    code, out, _ = _run(capsys, "verify", "--cache", stored, "--json")
    found = json.loads(out)
    assert code == 1 and not found["whole"] and {d["key"] for d in found["damaged"]} == {bad, picture}
    assert {d["method"] for d in found["damaged"]} == {"m1", "m2"}
    code, _, _ = _run(capsys, "verify", "--cache", stored, "--delete", "--quiet")
    assert code == 0
    assert _left(stored) == {**ALL, "old": list(range(1, 10)), "picture": []}
    assert {p.name for p in (stored / "objects" / "ab").iterdir()} == {"in-flight"}, "somebody may be about to enter it"
    code, _, _ = _run(capsys, "verify", "--cache", stored)
    assert code == 0


def test_verify_of_a_damaged_database(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = stored / f"store-v{LAYOUT}.sqlite"
    data = bytearray(file.read_bytes())
    data[4096 * 2 : 4096 * 3] = os.urandom(4096)
    file.write_bytes(data)
    code, _, err = _run(capsys, "verify", "--cache", stored, "--quiet")
    assert code == 1 and "the database is damaged" in err
    code, _, err = _run(capsys, "verify", "--cache", stored, "--delete", "--quiet")
    assert code == 0 and "made anew" in err
    code, _, _ = _run(capsys, "verify", "--cache", stored, "--quiet")
    assert code == 0


def test_clear_asks(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _run(capsys, "clear", "--cache", stored)
    assert code == 2 and "needs consent" in err and _left(stored) == ALL
    (stored / "pairs").mkdir()
    code, out, _ = _run(capsys, "clear", "--cache", stored, "--yes")
    assert code == 0 and "31 artefacts" in out
    assert [p.name for p in stored.iterdir()] == ["pairs"], "what is not the store's stays"
    assert (tmp_path / "a" / "run.json").exists()


def test_clear_takes_a_damaged_store_too(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stored / f"store-v{LAYOUT}.sqlite").write_bytes(b"rubbish" * 1000)
    code, out, _ = _run(capsys, "clear", "--cache", stored, "--yes")
    assert code == 0 and "a damaged store" in out and list(stored.iterdir()) == []


def test_sizes_and_ages() -> None:
    assert [keeping.size_of(t) for t in ("0", "500", "1kB", "1.5 GB", "2GiB", "3t")] == [
        0,
        500,
        1000,
        1_500_000_000,
        2 << 30,
        3 * 10**12,
    ]
    assert [keeping.age_of(t) for t in ("90min", "12h", "1.5d", "4w")] == [5400, 43200, 129600, 2419200]
    assert [keeping.said(n) for n in (0, 999, 1000, 123456, 5e9, 7e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "123 kB",
        "5.0 GB",
        "7000 TB",
    ]
    for text in ("", "x", "1e5", "1 PB", "-1"):
        with pytest.raises(InputError):
            keeping.size_of(text)


# --- with real runs

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
images = 0
[report]
samples = 0
[[methods]]
name = "pixelate"
params = {{ block = 0.15 }}
[[methods]]
name = "noise"
"""


def test_pruned_by_one_run_another_computes_its_own_anew(tmp_path: Path, orl_folder: Path) -> None:
    for p in (1, 7):
        (tmp_path / "people" / f"p{p}").mkdir(parents=True)
        for i in (1, 3):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", tmp_path / "people" / f"p{p}" / f"{i}.pgm")
    (tmp_path / "tiny.toml").write_text(SUITE.format(root=tmp_path / "people"))
    options = Options(workers=1, cache=tmp_path / "cache", quiet=True)

    def run(method: str) -> dict[str, int]:
        suite = load_suite(str(tmp_path / "tiny.toml"), only=[method])
        return dict(run_suite(suite, tmp_path / method, options).computed)

    assert run("pixelate")["anonymize"] == 4
    assert run("noise") == {"anonymize": 4, "detect": 4, "embed": 4, "measure": 4, "score": 2}, "clear images are shared"
    with Store(tmp_path / "cache", alone=True) as store:
        plan = keeping.plan(store, unused_by=[tmp_path / "noise"])
        freed = keeping.delete(store, plan.keys)
    assert plan.keys and freed > 0
    assert run("noise") == {}, "what it uses is all there"
    assert run("pixelate") == {"anonymize": 4, "detect": 4, "embed": 4, "measure": 4, "score": 2}, (
        "and the other makes its own anew"
    )
    assert len(_plan(tmp_path / "cache", unused_by=[tmp_path / "noise", tmp_path / "pixelate"]).keys) == 0
