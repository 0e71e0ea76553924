"""The committed reference: what the protocol expects of it, and that a fresh run gives the same figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from deidbench import kinds
from deidbench.datasets.base import manifest_sha256
from deidbench.records import read_run
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "demo"
KEY = ["method", "metric", "recognizer", "attacker", "convention", "label"]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return read_run(REFERENCE).rows


def _value(rows: pd.DataFrame, method: str, metric: str, recognizer: str, attacker: str = "ignorant") -> pd.Series:
    mine = rows[(rows.method == method) & (rows.metric == metric) & (rows.attacker == attacker)]
    chosen = mine[(mine.recognizer == recognizer) & (mine.convention == "headline")]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_it_is_of_this_suite_and_of_this_data() -> None:
    record = read_run(REFERENCE).record
    suite = load_suite("demo")
    assert record["suite"]["sha256"] == suite.sha256, "the demo changed: run it and commit its result as the reference"
    assert [m["label"] for m in record["methods"]] == [m.label for m in suite.methods]
    orl = kinds.datasets.create("orl")
    assert record["dataset"]["manifest_sha256"] == manifest_sha256(orl.manifest())
    assert record["protocol"]["deviations"] == []


@pytest.mark.parametrize("recognizer", ["dlib", "sface"])
def test_clear_images_are_recognised_and_black_ones_are_not(rows: pd.DataFrame, recognizer: str) -> None:
    assert _value(rows, "original", "reid.rank1", recognizer).value >= 0.99
    assert _value(rows, "original", "reid.eer", recognizer).value <= 0.01
    black = _value(rows, "blackout", "reid.rank1", recognizer)
    assert black.lo <= black.chance <= black.hi
    assert abs(black.value - 9 / 399) < 0.01


@pytest.mark.parametrize("family", ["blur", "pixelate"])
@pytest.mark.parametrize("recognizer", ["dlib", "sface"])
def test_re_identification_falls_as_the_strength_grows(rows: pd.DataFrame, family: str, recognizer: str) -> None:
    labels = [m.label for m in load_suite("demo").methods if m.family == family]
    assert len(labels) >= 3
    rank1 = [_value(rows, m, "reid.rank1", recognizer).value for m in labels]
    ssim = [rows[(rows.method == m) & (rows.metric == "quality.ssim_face")].value.iloc[0] for m in labels]
    assert rank1 == sorted(rank1, reverse=True)
    assert ssim == sorted(ssim, reverse=True)
    assert rank1[0] - rank1[-1] > 0.5


def test_a_face_that_no_detector_finds_is_still_attacked(rows: pd.DataFrame) -> None:
    """The trap of the field: counting what a detector misses as private."""
    headline = _value(rows, "blur 0.12", "reid.rank1", "sface")
    miss = rows[
        (rows.method == "blur 0.12")
        & (rows.metric == "reid.rank1")
        & (rows.recognizer == "sface")
        & (rows.attacker == "ignorant")
        & (rows.convention == "fta_as_miss")
    ].iloc[0]
    assert headline.n_fta / headline.n_images > 0.9
    assert miss.value < headline.value / 3
    assert headline.n_images == miss.n_images == 400


@pytest.mark.parametrize("method", ["ganonymization", "mask", "blur 0.12", "pixelate 0.15", "noise"])
def test_who_anonymises_his_gallery_sees_more(rows: pd.DataFrame, method: str) -> None:
    """What blinds a stock recogniser with clear photographs does not blind one with anonymised photographs."""
    ignorant, lazy = (_value(rows, method, "reid.rank1", "sface", a) for a in ("ignorant", "lazy-informed"))
    assert lazy.lo > ignorant.hi
    worst = rows[(rows.method == method) & (rows.metric == "reid.worst_rank1")].iloc[0]
    assert worst.value >= lazy.value
    assert "lazy-informed" in worst.note


def test_what_could_not_be_attacked_is_said(rows: pd.DataFrame) -> None:
    learners = rows[(rows.attacker == "pixel-cnn") & (rows.metric == "reid.rank1")]
    assert len(learners) and learners.value.isna().all()
    assert learners.reason.str.contains("no persons of role attacker_train").all()


@pytest.mark.slow
def test_a_fresh_run_gives_the_same_figures(tmp_path: Path, rows: pd.DataFrame) -> None:
    """Recognisers compute in floating point, so another processor may turn a decision or two; no figure moves further."""
    run_suite(load_suite("demo"), tmp_path / "run", Options(cache=tmp_path / "cache", quiet=True))
    new = read_run(tmp_path / "run").rows
    old, new = (r[~r.timing].set_index(KEY).sort_index() for r in (rows, new))
    assert list(old.index) == list(new.index)
    pd.testing.assert_series_equal(old.value, new.value, atol=0.01, rtol=0.01)
    pd.testing.assert_frame_equal(
        old[["n_images", "n_persons", "n_failed", "ci_reason"]], new[["n_images", "n_persons", "n_failed", "ci_reason"]]
    )


def test_pictures_in_the_readme_are_there() -> None:
    text = (REFERENCE.parents[2] / "README.md").read_text("utf-8")
    for name in ("forest.png", "plane.png", "samples.png"):
        assert f"results/reference/demo/{name}" in text
        assert (REFERENCE / name).read_bytes().startswith(b"\x89PNG")


def test_the_best_of_a_column_is_marked_unless_it_is_a_time() -> None:
    """Times are tested in few columns: marks there would say of the others that they were shown to be worse."""
    from deidbench.report.details import detail_tables
    from deidbench.report.standing import Standings
    from deidbench.report.tables import main_table
    from deidbench.report.view import View

    run = read_run(REFERENCE)
    view, standings = View(run), Standings(run)
    tables = [standings.mark(t) for t in (main_table(view, "orl"), *detail_tables(view, "orl"))]
    cells = [c for t in tables for line in t.lines for c in line.cells if c.row is not None]
    timed = [c for c in cells if c.row.timing]
    assert len(timed) > 100 and not any(c.strong or c.tied for c in timed)
    assert any(c.strong for c in cells if c.row.metric == "reid.rank1")
    assert any(c.tied for c in cells if c.row.metric == "reid.rank1")
