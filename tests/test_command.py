"""Any program as an anonymizer: commands written into a suite, recipes, drivers; and what goes wrong with them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from deidbench import kinds
from deidbench.anonymizers.external import recipe as recipes
from deidbench.anonymizers.external.command import Command
from deidbench.errors import InputError, MissingError
from deidbench.types import Anonymized, Item, Status

posix = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")

#: A program that turns pictures round by 180 degrees; what it does besides is in its last argument.
PROGRAM = """
import os, pathlib, sys, time
from PIL import Image

def turn(source, target):
    with Image.open(source) as picture:
        picture.convert("RGB").transpose(Image.Transpose.ROTATE_180).save(target)

source, target, how = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
with open(os.environ["CALLS"], "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
sources = sorted(source.iterdir()) if source.is_dir() else [source]
for one in sources:
    dark = Image.open(one).convert("L").getpixel((0, 0)) == 0  # the picture that it cannot bear
    out = target / one.name if source.is_dir() else target
    if how == "crash" and dark:
        print("this one is too dark", file=sys.stderr)
        sys.exit(3)
    if how == "skip" and dark: continue
    if how == "hang" and dark: time.sleep(600)
    turn(one, out)
    if how == "torn": out.write_bytes(out.read_bytes()[:200])
    if how == "small": Image.new("RGB", (8, 8)).save(out)
    if how == "late": sys.exit(5)
    if how == "flood": sys.stderr.write("x" * 50_000_000 + "\\nthe end\\n")
    if how == "signal": os.kill(os.getpid(), 11)
    if how == "leave":
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(os.environ["PIDS"]).write_text(str(child.pid))
"""

RECIPE = """
[recipe]
title = "turns pictures round"
licence = "MIT"
citation = "nobody"
trained_on = ["WIDER FACE"]
strength = "amount"
[call]
per = "{per}"
command = ["{{python}}", "turn.py", "{{in}}", "{{out}}", "{{how}}", "{{amount}}", "{{loud}}"]
timeout = 30
startup = 30
{more}
[options.how]
default = "well"
[options.amount]
default = 0.5
low = 0.0
high = 1.0
[options.loud]
default = false
words = ["--loud", "{{how}}"]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "turn.py").write_text(PROGRAM)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def make(home: Path) -> Callable[..., Command]:
    def made(per: str = "image", more: str = "", **params: Any) -> Command:
        path = home / "turning.toml"
        path.write_text(RECIPE.format(per=per, more=more))
        return kinds.anonymizers.create(f"command:{path}", **params)  # type: ignore[return-value]

    return made


@pytest.fixture(scope="module")
def items(orl_folder: Path) -> list[Item]:
    pictures = [np.ascontiguousarray(cv2.imread(str(orl_folder / f"s{p}" / "1.pgm"))[..., ::-1]) for p in (1, 2, 3, 4)]
    pictures[2] = pictures[2].copy()
    pictures[2][0, 0] = 0
    return [Item(f"secret-name-{i}", p, None, seed=i, subject_id="secret") for i, p in enumerate(pictures)]


def turned(item: Item) -> np.ndarray:
    return item.image[::-1, ::-1]


def check(results: list[Anonymized], items: list[Item], bad: tuple[int, ...] = ()) -> None:
    assert [r.id for r in results] == [i.id for i in items]
    for i, (result, item) in enumerate(zip(results, items, strict=True)):
        if i in bad:
            assert result.status is Status.FAILED
            assert result.image is None
        else:
            assert result.status is Status.OK, result.reason
            assert result.image is not None
            assert (result.image == turned(item)).all()


def calls(home: Path) -> list[str]:
    return (home / "calls").read_text().splitlines()


# --------------------------------------------------------------------------------------------------------- it works


@pytest.mark.parametrize("per", ["image", "folder"])
def test_a_recipe_of_ones_own(make: Callable[..., Command], items: list[Item], home: Path, per: str) -> None:
    anonymizer = make(per)
    anonymizer.load()
    check(anonymizer.anonymize(items), items)
    assert len(calls(home)) == (4 if per == "image" else 1)
    assert not any("secret" in line for line in calls(home)), "the program is told nobody's name"
    assert all(line.endswith("well 0.5") for line in calls(home))
    assert anonymizer.anonymize([]) == []
    assert (anonymizer.licence, anonymizer.citation, anonymizer.trained_on) == ("MIT", "nobody", ("WIDER FACE",))
    assert anonymizer.strength == "amount"


def test_nothing_of_it_stays(
    make: Callable[..., Command], items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for how in ("well", "late", "hang"):
        make("image", how=how, timeout=0.5 if how == "hang" else 30).anonymize(items[2:3]) if how != "hang" else None
    assert list((tmp_path / "tmp").iterdir()) == []


def test_options_become_words(make: Callable[..., Command], items: list[Item], home: Path) -> None:
    make(amount=1, loud=True).anonymize(items[:1])
    make(amount=0.1).anonymize(items[:1])
    assert [line.split(maxsplit=2)[2] for line in calls(home)] == ["well 1 --loud well", "well 0.1"]


def test_a_command_in_a_suite(items: list[Item], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    anonymizer = kinds.anonymizers.create("command", command="python turn.py {in} {out} 'well done'")
    anonymizer.load()
    check(anonymizer.anonymize(items), items)
    assert calls(home)[0].endswith("well done")
    assert anonymizer.deterministic
    folder = kinds.anonymizers.create("command", command="python turn.py {in} {out} well", per="folder")
    check(folder.anonymize(items), items)
    assert len(calls(home)) == 5


def test_seeds_reach_the_program(items: list[Item], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    anonymizer = kinds.anonymizers.create("command", command="python turn.py {in} {out} {seed}")
    anonymizer.anonymize(items)
    assert [line.split()[-1] for line in calls(home)] == ["0", "1", "2", "3"]
    assert not anonymizer.deterministic


def test_where_the_program_leaves_its_picture(items: list[Item], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some write beside their input, under a name of their own."""
    monkeypatch.chdir(home)
    code = (
        "import pathlib, sys; from PIL import Image\n"
        "for p in list(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    Image.open(p).transpose(3).save(p.with_name(p.stem + '_done.png'))"
    )
    (home / "beside.py").write_text(code)
    anonymizer = kinds.anonymizers.create(
        "command", command="python beside.py {in}", output="{in}/{stem}_done.png", per="folder"
    )
    check(anonymizer.anonymize(items), items)


def test_formats_and_fillers(make: Callable[..., Command], items: list[Item], home: Path) -> None:
    jpg = make("folder", 'format = "jpg"')
    [result] = jpg.anonymize(items[:1])
    assert result.image is not None
    difference = np.abs(result.image.astype(int) - turned(items[0]))
    assert 0 < difference.mean() < 3
    filled = make("folder", "at_least = 3", how="count")
    check(filled.anonymize(items[:1]), items[:1])
    made = home / "seen"
    (home / "turn.py").write_text(PROGRAM + f"\nopen({str(made)!r}, 'w').write(str(len(sources)))")
    check(filled.anonymize(items[:1]), items[:1])
    assert made.read_text() == "3"


def test_in_batches(make: Callable[..., Command], items: list[Item], home: Path) -> None:
    check(make("folder", "batch = 3").anonymize(items), items)
    assert len(calls(home)) == 2


def test_travels_to_workers(make: Callable[..., Command], items: list[Item]) -> None:
    anonymizer = make("folder", amount=0.25)
    other = pickle.loads(pickle.dumps(anonymizer))
    assert other.params() == anonymizer.params()
    assert other.fingerprint == anonymizer.fingerprint
    check(other.anonymize(items), items)


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("per", ["image", "folder"])
def test_a_crash_costs_one_image(make: Callable[..., Command], items: list[Item], home: Path, per: str) -> None:
    results = make(per, how="crash").anonymize(items)
    check(results, items, bad=(2,))
    assert "exit code 3" in results[2].reason
    assert "this one is too dark" in results[2].reason
    assert len(calls(home)) == (4 if per == "image" else 5)


def test_a_hang_costs_one_image(make: Callable[..., Command], items: list[Item]) -> None:
    start = time.monotonic()
    anonymizer = make("folder", how="hang", timeout=1.5)
    path = Path(anonymizer.variant)
    path.write_text(path.read_text().replace("startup = 30", "startup = 2"))
    results = anonymizer.anonymize(items)
    check(results, items, bad=(2,))
    assert "no end after 3.5 s" in results[2].reason
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("torn", "unreadable"), ("small", "8 x 8 pixels for one of 92 x 112"), ("late", "exit code 5"), ("signal", "SIGSEGV"),
    ],
)  # fmt: skip
def test_bad_output_is_a_failure_with_words(make: Callable[..., Command], items: list[Item], how: str, words: str) -> None:
    [result] = make(how=how).anonymize(items[:1])
    assert result.status is Status.FAILED
    assert words in result.reason
    assert "/tmp" not in result.reason


def test_no_picture_means_what_the_recipe_says(make: Callable[..., Command], items: list[Item]) -> None:
    assert make("folder", how="skip").anonymize(items)[2].status is Status.FAILED
    silent = make("folder", 'no_output = "no_face"', how="skip").anonymize(items)
    assert [r.status.value for r in silent] == ["ok", "ok", "no_face", "ok"]


def test_another_size_where_the_recipe_allows_it(make: Callable[..., Command], items: list[Item]) -> None:
    [result] = make(more="same_size = false", how="small").anonymize(items[:1])
    assert result.status is Status.OK
    assert result.image is not None
    assert result.image.shape == (8, 8, 3)


def test_a_flood_of_words_neither_hangs_nor_fills_the_memory(make: Callable[..., Command], items: list[Item]) -> None:
    before = psutil.Process().memory_info().rss
    check(make(how="flood").anonymize(items[:1]), items[:1])
    assert psutil.Process().memory_info().rss - before < 40e6


@posix
def test_what_it_leaves_running_is_ended(make: Callable[..., Command], items: list[Item], home: Path) -> None:
    start = time.monotonic()
    check(make(how="leave").anonymize(items[:1]), items[:1])
    assert time.monotonic() - start < 20
    _gone([int((home / "pids").read_text())])


def _gone(pids: list[int], within: float = 10.0) -> None:
    end = time.monotonic() + within
    for pid in pids:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, f"process {pid} still runs"
            time.sleep(0.05)


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_when_we_are_ended_the_program_and_the_pictures_go(home: Path, how: signal.Signals) -> None:
    (home / "sleep.py").write_text(
        f"import os, time; open({str(home / 'pids')!r} + '.part', 'w').write(str(os.getpid()));"
        f" os.replace({str(home / 'pids')!r} + '.part', {str(home / 'pids')!r}); time.sleep(600)"
    )
    code = """
        import numpy as np
        from deidbench import kinds
        from deidbench.types import Item
        a = kinds.anonymizers.create("command", command="python sleep.py {in} {out}", timeout=500)
        a.anonymize([Item("x", np.full((24, 20, 3), 9, np.uint8))])
    """
    (home / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "TMPDIR": str(home / "tmp")}, cwd=home,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not (home / "pids").exists():
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        assert list((home / "tmp").glob("deidbench-*/in/*.png"))
        process.send_signal(how)
        process.wait(30)
    finally:
        process.kill()
    _gone([int((home / "pids").read_text())])
    assert list((home / "tmp").glob("deidbench-*/in/*.png")) == []


def test_one_bad_item_costs_itself_only(make: Callable[..., Command], items: list[Item]) -> None:
    bad = Item("float", items[0].image.astype(np.float32))  # type: ignore[arg-type]
    results = make("folder").anonymize([items[0], bad, items[1]])
    assert [r.status.value for r in results] == ["ok", "failed", "ok"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "no program is named"),
        ({"comand": "x"}, "no parameter 'comand'"),
        ({"command": "python {in}"}, "not where its input and output are"),
        ({"command": "python '{in} {out}"}, "not understood"),
        ({"command": "python {in} {out} {sead}"}, "did you mean {seed}"),
        ({"command": "python {in} {out} {seed}", "per": "folder"}, "seeds of their own"),
        ({"command": "python {in} {out}", "per": "batch"}, "per"),
        ({"command": "python {in} {out}", "output": "{where}/x"}, "output may not hold {where}"),
        ({"command": "python {in} {out}", "timeout": -1.0}, "timeout"),
        ({"command": "python {in} {out}", "python": 3}, "is not text"),
        ({"variant": "deface", "command": "python {in} {out}"}, "a recipe and a command"),
        ({"variant": "defase"}, "did you mean"),
        ({"variant": "deface", "mosaic": 3}, "did you mean 'mosaicsize'"),
        ({"variant": "deface", "thresh": 2.0}, "from 0 up to 1"),
        ({"variant": "deface", "thresh": float("nan")}, "finite"),
        ({"variant": "deface", "thresh": "high"}, "is not a number"),
        ({"variant": "deface", "boxes": 1}, "is not true or false"),
        ({"variant": "deface", "replacewith": "img"}, "one of blur, solid, mosaic"),
        ({"variant": "deface", "scale": "--output=/etc/passwd"}, "taken for an option"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(params: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        kinds.anonymizers.create("command", **params).validate()
    assert words in f"{caught.value.message} {caught.value.remedy}"


def test_a_program_that_is_not_there(home: Path, items: list[Item]) -> None:
    anonymizer = kinds.anonymizers.create("command", command="no-such-program {in} {out}")
    anonymizer.validate()
    with pytest.raises(MissingError, match="no program 'no-such-program'"):
        anonymizer.load()


# ------------------------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_follows_whatever_changes_the_output(make: Callable[..., Command], home: Path) -> None:
    first = make().fingerprint
    assert make(amount=0.5).fingerprint == first, "the default, written out"
    assert make(timeout=7).fingerprint == first
    assert make(amount=0.6).fingerprint != first
    assert make(device="cpu").fingerprint != first
    assert make("folder").fingerprint != first
    assert make(more="same_size = false").fingerprint != first
    (home / "turn.py").write_text(PROGRAM + "\n# another version")
    second = make().fingerprint
    assert second != first


def test_fingerprint_of_weights(make: Callable[..., Command], home: Path) -> None:
    def with_weights(**more: Any) -> Command:
        anonymizer = make(**more)
        path = Path(anonymizer.variant)
        path.write_text(path.read_text() + '\n[[weights]]\nwhat = "net"\nfile = "net.pth"\nsha256 = "9f86d081"\n')
        return anonymizer

    anonymizer = with_weights(weights=str(home / "w"))
    with pytest.raises(MissingError, match=r"weights are missing in .*net.pth"):
        anonymizer.load()
    (home / "w").mkdir()
    (home / "w" / "net.pth").write_text("another file")
    with pytest.raises(InputError, match="is not the net"):
        anonymizer.load()
    (home / "w" / "net.pth").write_text("test")
    anonymizer.load()
    assert anonymizer.fingerprint == anonymizer.fingerprint
    (home / "v").mkdir()
    (home / "v" / "net.pth").write_text("test")
    assert with_weights(weights=str(home / "v")).fingerprint == anonymizer.fingerprint


# ------------------------------------------------------------------------------------------------------- resident

DRIVER = """
import os, sys
from deidbench_channel import drive
from PIL import Image

def load():
    print("noise on standard output")
    return {"n": 0}

def work(model, source, target, request):
    model["n"] += 1
    options = request["options"]
    picture = Image.open(source).convert("RGB")
    if options["how"] == "crash" and picture.getpixel((0, 0)) == (0, 0, 0): os._exit(9)
    if options["how"] == "raise" and picture.getpixel((0, 0)) == (0, 0, 0): raise ValueError("too dark")
    if options["how"] == "none": return {"status": "no_face"}
    picture.transpose(Image.Transpose.ROTATE_180).save(target)
    if options["how"] == "boxes": return {"boxes": [[10, 10, 60, 60]]}

drive(load, work)
"""


@pytest.fixture
def resident(home: Path) -> Callable[..., Command]:
    (home / "driver.py").write_text(DRIVER)
    (home / "staying.toml").write_text(
        '[recipe]\ntitle = "stays up"\n[call]\nper = "resident"\ndriver = "driver.py"\n[options.how]\ndefault = "well"\n'
    )
    return lambda **params: kinds.anonymizers.create(f"command:{home / 'staying.toml'}", **params)  # type: ignore[return-value]


def test_a_driver_of_ones_own(resident: Callable[..., Command], items: list[Item]) -> None:
    anonymizer = resident()
    anonymizer.load()
    check(anonymizer.anonymize(items), items)
    pid = anonymizer._resident()._live.resident.pid  # type: ignore[union-attr]
    check(anonymizer.anonymize(items), items)
    assert anonymizer._resident()._live.resident.pid == pid  # type: ignore[union-attr]
    anonymizer.close()
    _gone([pid])
    other = resident(how="crash")
    check(other.anonymize(items), items, bad=(2,))
    results = resident(how="raise").anonymize(items)
    check(results, items, bad=(2,))
    assert "ValueError: too dark" in results[2].reason
    assert resident(how="none").anonymize(items[:1])[0].status is Status.NO_FACE
    [boxed] = resident(how="boxes").anonymize(items[:1])
    assert boxed.status is Status.OK
    assert [tuple(f.box) for f in boxed.faces] == [(10, 10, 60, 60)]  # type: ignore[arg-type]
    assert resident(how="none").fingerprint != other.fingerprint


# -------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "turns', 'tile = "turns', "unknown key 'recipe.tile'"),
        ("default = 0.5", "defualt = 0.5", "defualt"),
        ("{in}", "{inn}", "nothing is called {inn}; did you mean {in}?"),
        ('"{amount}", ', "", "the option 'amount' is used nowhere"),
        ('strength = "amount"', 'strength = "power"', "strength names the option 'power'"),
        ("[options.how]", "[options.seed]", "an option cannot be called 'seed'"),
        ('per = "image"', 'per = "video"', "per"),
        ('per = "image"', 'per = "resident"', "takes a driver and no command"),
        ("timeout = 30", "timeout = 0", "greater than 0"),
        ('"{out}"', '"{out!r}"', "braces hold a name"),
        ('"{out}"', '"{"', "'{'"),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_and_reason(make: Callable[..., Command], old: str, new: str, words: str) -> None:
    path = Path(make().variant)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        recipes.load(str(path))
    assert str(path) in caught.value.message
    assert words in f"{caught.value.message} {caught.value.remedy}"


def test_not_toml_and_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[recipe")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    for name, words in (("a", "not valid TOML"), ("b", "cannot read")):
        with pytest.raises(InputError, match=words):
            recipes.load(str(tmp_path / f"{name}.toml"))
