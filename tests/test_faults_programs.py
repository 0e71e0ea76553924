"""External programs that hang: at their start, at an image, deaf to signals, without an output, or talking without end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deidbench import kinds
from deidbench.adapter_calls import run_adapter
from deidbench.anonymizers.external.command import Command
from deidbench.errors import EnvironmentFault
from deidbench.types import Item, Status

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX's")

#: Deaf to whatever can be ignored; says who it is.
_DEAF = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
with open(os.environ["PIDS"], "a") as file:
    file.write(f"{os.getpid()}\\n")
"""
_PROGRAM = _DEAF + "time.sleep(600)\n"
_DRIVER = (
    _DEAF
    + """
from deidbench_channel import drive
from PIL import Image

def load():
    if HOW == "load": time.sleep(600)
    return {}

def work(model, source, target, request):
    picture = Image.open(source).convert("RGB")
    if picture.getpixel((0, 0)) == (0, 0, 0):
        if HOW == "image": time.sleep(600)
        if HOW == "closed":
            os.closerange(0, 64)
            time.sleep(600)
        if HOW == "talks":
            while True:
                os.write(1, b'@deidbench {"id": 999999}\\n')
                time.sleep(0.001)
        if HOW == "line":
            while True: os.write(1, b"x" * 4096)
    picture.transpose(Image.Transpose.ROTATE_180).save(target)

drive(load, work)
"""
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def resident(home: Path) -> Callable[[str], Command]:
    def made(how: str) -> Command:
        (home / "driver.py").write_text(f"HOW = {how!r}\n{_DRIVER}")
        startup = 3 if how == "load" else 60
        (home / "stays.toml").write_text(
            f'[recipe]\ntitle = "stays up"\n[call]\nper = "resident"\ndriver = "driver.py"\nstartup = {startup}\n'
        )
        return kinds.anonymizers.create(f"command:{home / 'stays.toml'}", timeout=1.5)  # type: ignore[return-value]

    return made


def _items() -> list[Item]:
    rng = np.random.default_rng(0)
    items = [Item(f"{i}", rng.integers(1, 256, (24, 20, 3), dtype=np.uint8)) for i in range(3)]
    items[1].image[0, 0] = 0  # the one that it hangs at
    return items


def _gone(home: Path) -> None:
    end = time.monotonic() + 10
    for pid in map(int, (home / "pids").read_text().split()):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, f"process {pid} still runs"
            time.sleep(0.05)


@pytest.mark.parametrize("per", ["image", pytest.param("folder", marks=pytest.mark.slow)])
def test_a_deaf_command_is_ended(home: Path, per: str) -> None:
    (home / "program.py").write_text(_PROGRAM)
    (home / "once.toml").write_text(
        '[recipe]\ntitle = "hangs"\n[call]\n'
        f'per = "{per}"\ncommand = ["{{python}}", "{home / "program.py"}", "{{in}}", "{{out}}"]\nstartup = 2\n'
    )
    method = kinds.anonymizers.create(f"command:{home / 'once.toml'}", timeout=1.0)
    begun = time.monotonic()
    results = run_adapter(method, _items()[:2])
    assert [r.status for r in results] == [Status.FAILED] * 2
    assert all("no end after" in r.reason and "killed" in r.reason for r in results)
    assert time.monotonic() - begun < 120
    _gone(home)


_HOW = [
    ("image", "no answer within 1.5 s; the program was killed"),
    ("closed", "closed its output and went on; it was killed"),
    ("talks", "no answer within 1.5 s; the program was killed"),
    pytest.param("line", "no answer within 1.5 s; the program was killed", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("how", "words"), _HOW)
def test_a_resident_program_that_hangs_costs_one_image(
    home: Path, resident: Callable[[str], Command], how: str, words: str
) -> None:
    method, items = resident(how), _items()
    begun = time.monotonic()
    results = run_adapter(method, items)
    assert [r.status for r in results] == [Status.OK, Status.FAILED, Status.OK]
    assert words in results[1].reason
    for i in (0, 2):
        image: Any = results[i].image
        assert (image == items[i].image[::-1, ::-1]).all()
    assert time.monotonic() - begun < 120
    method.close()
    _gone(home)
    assert len((home / "pids").read_text().split()) == 2, "started anew, once"


def test_a_program_that_hangs_at_its_start_fails_no_image(home: Path, resident: Callable[[str], Command]) -> None:
    with pytest.raises(EnvironmentFault, match="does not start: no answer within 3 s"):
        run_adapter(resident("load"), _items())
    _gone(home)
