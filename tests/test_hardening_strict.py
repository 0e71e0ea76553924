"""--strict: what counts as a fault of a run for somebody whom nobody watches, and what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from deidbench.cli import cli
from deidbench.records import read_run
from deidbench.strict import concerns

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "demo"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(REFERENCE, tmp_path / "run")
    return tmp_path / "run"


def _record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "run.json").read_text("utf-8"))
    change(record)
    (folder / "run.json").write_text(json.dumps(record), "utf-8")


def _method(record: dict[str, Any], label: str) -> dict[str, Any]:
    return next(m for m in record["methods"] if m["label"] == label)


def test_a_good_run_has_none(run: Path) -> None:
    """Also with faces that were not found, and attackers that this machine could not carry out."""
    assert concerns(run) == []
    done = CliRunner().invoke(cli, ["report", str(run), "--no-figures", "--format", "csv", "--quiet", "--strict"])
    assert done.exit_code == 0, done.output


CASES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a deviation": (lambda r: r["protocol"].update(deviations=["protocol.seed is 3"]), "deviation from the protocol: protocol.seed is 3"),
    "images that could not be read": (lambda r: r["dataset"].update(unreadable={"a.png": "x"}), "1 image could not be read and are in no figure: a.png"),
    "failures": (lambda r: _method(r, "mask")["counts"].update(failed=3), "mask failed on 3 images"),
    "inputs given out": (lambda r: _method(r, "mask")["counts"].update(passthrough=2), "mask let 2 images pass unchanged, or nearly"),
    "copies given out": (lambda r: _method(r, "mask")["counts"].update(copy=2), "mask gave out another image of the data set for 2 images"),
    "a method that knows the data": (lambda r: _method(r, "mask").update(trained_on=["ORL"]), "mask learnt from the data under evaluation (ORL)"),
    "a classifier that knows the data": (
        lambda r: r["classifiers"][0].update(contaminated=True, overlap="it learnt from 9 of the 400 images"),
        "it learnt from 9 of the 400 images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_each_is_told(run: Path, name: str) -> None:
    change, words = CASES[name]
    _record(run, change)
    (said,) = concerns(run)
    assert words in said
    done = CliRunner().invoke(cli, ["report", str(run), "--no-figures", "--format", "csv", "--quiet", "--strict"])
    assert done.exit_code == 1 and f"strict: {said}" in done.output
    assert CliRunner().invoke(cli, ["report", str(run), "--no-figures", "--format", "csv", "--quiet"]).exit_code == 0


def test_controls_may_pass_images_through(run: Path) -> None:
    assert _method(read_run(run).record, "original")["counts"]["passthrough"] == 400  # type: ignore[arg-type]
    assert concerns(run) == []


def test_untrusted_and_mistrained(run: Path) -> None:
    rows = pd.read_parquet(run / "rows.parquet")
    of = (rows["metric"] == "reid.rank1") & (rows["recognizer"] == "sface")
    rows.loc[of & (rows["attacker"] == "ignorant"), "trusted"] = False
    lazy = of & (rows["attacker"] == "lazy-informed")
    rows.loc[lazy, "trusted"] = False
    rows.loc[lazy, "note"] = "mis-trained: rank-1 0.1, a stock recogniser 0.2"
    rows.to_parquet(run / "rows.parquet", index=False)
    assert concerns(run) == [
        "not trusted: sface failed its own check",
        "mis-trained: lazy-informed, sface, weaker than a stock recogniser",
    ]


def test_figures_that_could_not_be_drawn(run: Path) -> None:
    """But not pictures of faces, which are left out for the persons' sake."""
    (run / "figures").mkdir()
    entry = {"title": "", "caption": "", "alt": "", "narrow": [], "wide": []}
    drawn = [
        {**entry, "name": "cmc", "why": "this run has no CMC curves"},
        {**entry, "name": "samples", "why": "faces"},
        {**entry, "name": "det", "why": ""},
    ]
    (run / "figures" / "drawn.json").write_text(json.dumps({"digest": "", "files": {}, "figures": drawn}))
    assert concerns(run) == ["figure cmc was not drawn: this run has no CMC curves"]


def test_help_says_what_counts() -> None:
    for command in ("run", "report"):
        said = " ".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
        assert "--strict" in said and "deviations from the protocol" in said and "exit 1" in said
    assert "--strict" in CliRunner().invoke(cli, ["--help"]).output
