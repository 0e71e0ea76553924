"""A method of one's own without packaging: a recipe, a folder of finished images, a model file; all in one comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageFilter

pytestmark = pytest.mark.slow

SUITE = """
[suite]
name = "ways"
title = "three ways"
protocol = "deidbench-v1"
extends = "deidbench-v1"
inherit_methods = false
[dataset]
name = "orl"
params = {{ persons = 3 }}
[throughput]
images = 0
[[methods]]
name = "original"
control = true
[[methods]]
name = "blur"
params = {{ sigma = 0.15 }}
[[methods]]
name = "command:{recipe}"
label = "by recipe"
[[methods]]
name = "command"
label = "by command"
params = {{ command = "python {program} {{in}} {{out}} 9" }}
[[methods]]
name = "folder"
label = "finished"
params = {{ root = "{finished}" }}
[[methods]]
name = "onnx"
label = "by model"
params = {{ path = "{model}" }}
"""
PROGRAM = """
import sys
from PIL import Image, ImageFilter
source, target, radius = sys.argv[1:]
Image.open(source).convert("RGB").filter(ImageFilter.GaussianBlur(float(radius))).save(target)
"""
RECIPE = """
[recipe]
title = "blurs the whole frame"
[call]
command = ["{python}", "soften.py", "{in}", "{out}", "{radius}"]
[options.radius]
default = 9.0
low = 0.1
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "deidbench.cli", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    home = tmp_path_factory.mktemp("ways")
    (home / "soften.py").write_text(PROGRAM)
    (home / "soften.toml").write_text(RECIPE)
    # As somebody else's tool would leave them: the finished pictures of persons 1 to 3, but one that it lost.
    originals = home / "originals"
    originals.mkdir()
    for n in range(1, 4):
        (originals / f"s{n}").symlink_to(orl_folder / f"s{n}")
    finished = home / "finished"
    for path in originals.glob("s*/*.pgm"):
        target = finished / path.relative_to(originals)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.convert("RGB").filter(ImageFilter.GaussianBlur(9)).save(target.with_suffix(".png"))
    (finished / "s3" / "7.png").unlink()
    import torch

    pool = torch.nn.AvgPool2d(15, stride=1, padding=7, count_include_pad=False)
    torch.onnx.export(
        pool, (torch.zeros(1, 3, 112, 112),), str(home / "pool.onnx"), input_names=["x"], dynamic_axes={"x": {2: "h", 3: "w"}}, dynamo=False
    )  # fmt: skip
    suite = home / "ways.toml"
    suite.write_text(
        SUITE.format(recipe=home / "soften.toml", program=home / "soften.py", finished=finished, model=home / "pool.onnx")
    )
    done = subprocess.run(
        [sys.executable, "-m", "deidbench.cli", "run", str(suite), "--out", str(home / "out"), "--cache", str(home / "cache"), "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr  # one image of one method is missing, and that is told
    return home / "out"


def test_every_way_is_in_the_table(result: Path) -> None:
    rows = pd.read_parquet(result / "rows.parquet")
    rank = rows[(rows.metric == "reid.rank1") & (rows.attacker == "ignorant") & (rows.recognizer == "sface")]
    values = dict(zip(rank.method, rank.value, strict=False))
    assert {"original", "blur", "by recipe", "by command", "finished", "by model"} <= set(values), values


def test_one_program_three_ways_gives_one_picture(result: Path) -> None:
    images = pd.read_parquet(result / "images.parquet")
    wide = images.pivot(index="id", columns="method", values="output_sha256")
    assert (wide["by recipe"] == wide["by command"]).all()
    there = wide.index != "s3/7"
    assert (wide["by recipe"][there] == wide["finished"][there]).all()
    assert (wide["by recipe"] != wide["by model"]).all()


def test_the_lost_one_counts(result: Path) -> None:
    images = pd.read_parquet(result / "images.parquet")
    lost = images[(images.method == "finished") & (images.id == "s3/7")].iloc[0]
    assert lost.status == "failed"
    assert "no finished picture" in lost.reason
    record = json.loads((result / "run.json").read_text())
    assert "finished" in {m["label"] for m in record["methods"]}


def test_compared_with_one_another(result: Path) -> None:
    out = run("compare", str(result), "--reference", "blur")
    assert "by model" in out
    assert "finished" in out
