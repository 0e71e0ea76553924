"""Every reader on damaged files, a few hundred each, the same ones in every run; ``make fuzz`` goes on for as long as one likes."""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deidbench.errors import DeidbenchError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fuzz_mutate
import fuzz_readers
import fuzz_run

#: Files per reader: so many as take a few seconds.
MANY = 300
HEAVY = {
    "run-json": 12,
    "tables": 12,
    "suite": 60,
    "torch": 60,
    "safetensors": 60,
    "onnx": 60,
    "manifest": 100,
    "archive": 80,
    "prepared": 80,
}
_SEEDS: dict[str, list[bytes]] = {}


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def _seeds(name: str) -> list[bytes]:
    if name not in _SEEDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _SEEDS[name] = fuzz_readers.READERS[name].seeds()
    return _SEEDS[name]


def _read(name: str, data: bytes, folder: Path) -> str:
    """The error with which a file is refused, "" where it is taken; whatever is no documented error comes through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fuzz_readers.READERS[name].read(data, folder)
    except DeidbenchError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""


@pytest.mark.parametrize("name", list(fuzz_readers.READERS))
def test_good_files_are_read(name: str, tmp_path: Path) -> None:
    taken = [_read(name, data, tmp_path) == "" for data in _seeds(name)]
    assert sum(taken) >= max(1, 0.6 * len(taken))


@pytest.mark.parametrize("name", list(fuzz_readers.READERS))
def test_damaged_files_raise_nothing_but_documented_errors(name: str) -> None:
    reader, seeds = fuzz_readers.READERS[name], _seeds(name)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:

        @settings(
            max_examples=HEAVY.get(name, MANY),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.one_of(st.tuples(st.integers(0, len(seeds) - 1), st.binary(min_size=1, max_size=12)), st.binary(max_size=200))
        )
        @example(b"")
        @example(b"\0")
        def check(drawn: tuple[int, bytes] | bytes) -> None:
            if isinstance(drawn, tuple):
                data = reader.damaged(seeds[drawn[0]], random.Random(drawn[1]), seeds)
            else:
                data = drawn
            said = _read(name, data, Path(folder))
            assert said == "" or len(said.partition(": ")[2]) > 10  # in words

        check()


def test_damage_is_damage() -> None:
    """The same generator gives the same file, and nearly always another one than it got."""
    data = b"a,b\n1,2\n" * 10
    found = [fuzz_mutate.damaged(data, random.Random(i), [b"other"]) for i in range(200)]
    assert found == [fuzz_mutate.damaged(data, random.Random(i), [b"other"]) for i in range(200)]
    assert sum(f != data for f in found) > 190 and len(set(found)) > 150
    tree = b'{"a": [1, {"b": "c"}], "d": null}'
    assert len({fuzz_mutate.json_damaged(tree, random.Random(i)) for i in range(100)}) > 60


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
def test_the_fuzzer_runs(guided: bool, tmp_path: Path) -> None:
    """A child process reads, counts and tells."""
    if guided:
        pytest.importorskip("atheris")
    found = fuzz_run.fuzz("npy", 5, 3000, tmp_path, guided=guided)
    assert found["inputs"] > 100 and not found["faults"], found


def test_a_fault_is_kept_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes, folder: Path) -> None:
        if data[:1] == b"!":
            raise KeyError("planted")

    monkeypatch.setitem(fuzz_readers.READERS, "planted", fuzz_readers.Reader("planted", read, lambda: [b"?"]))
    monkeypatch.setattr(fuzz_readers, "hasten", lambda: None)
    (tmp_path / "scratch").mkdir()
    reading = fuzz_run.Reading("planted", tmp_path / "scratch", tmp_path)
    assert [reading.one(b"?"), reading.one(b"!1"), reading.one(b"!2")][0] == ""
    assert len(reading.faults) == 1 and reading.count == 3 and reading.accepted == 1
    (kept,) = [p for p in tmp_path.iterdir() if p.suffix == "" and p.is_file()]
    assert kept.read_bytes() == b"!1" and "planted" in kept.with_name(kept.name + ".txt").read_text("utf-8")
