"""Which pictures a run keeps and a report shows: clear faces only where they may be seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deidbench import pictures
from deidbench.datasets.folder import Folder
from deidbench.datasets.orl import Orl
from deidbench.images import decode_png, encode_png
from deidbench.metrics.base import Table
from deidbench.pictures import Case, Kept, extremes, scale, similarities

PERSONS = 4


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def table_of(label: str, embeddings: dict[str, np.ndarray], **columns: np.ndarray) -> Table:
    n = len(next(iter(embeddings.values())))
    base = {
        "status": np.array(["ok"] * n), "withheld": np.zeros(n, np.bool_), "fta": np.zeros(n, np.bool_),
    }  # fmt: skip
    return Table(
        dataset="faces",
        method=label,
        ids=np.array([f"p{i // 3}/{i}.png" for i in range(n)]),
        subjects=np.array([f"p{i // 3}" for i in range(n)]),
        embeddings=embeddings,
        **{**base, **columns},
    )


@pytest.fixture
def clear() -> Table:
    """Four persons with three images; "good" knows them apart, "poor" hardly."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(PERSONS, 16)), 3, axis=0)
    good = unit(centres + 0.1 * rng.normal(size=centres.shape))
    poor = unit(centres + 3 * rng.normal(size=centres.shape))
    return table_of("clear", {"poor": poor, "good": good})


def test_scale_agrees_with_all_pairs(clear: Table) -> None:
    e = clear.embeddings["good"].astype(float)
    same, other = [], []
    for i in range(len(e)):
        for j in range(i):
            (same if clear.subjects[i] == clear.subjects[j] else other).append(e[i] @ e[j])
    found = scale(clear, "good")
    assert found.same == pytest.approx(np.median(same))
    assert found.other == pytest.approx(np.median(other))
    assert found.d_prime == pytest.approx((np.mean(same) - np.mean(other)) / np.sqrt((np.var(same) + np.var(other)) / 2))
    assert found.d_prime > scale(clear, "poor").d_prime
    alone = clear.take(np.array([0, 3, 6]))
    assert np.isnan(scale(alone, "good").same)
    assert np.isnan(scale(alone, "good").d_prime)


def test_worst_is_the_most_alike_of_all_best_the_least_of_those_with_a_face(clear: Table) -> None:
    similarity = np.array([0.5, 0.9, 0.1, 0.2, np.nan, 0.95] + [0.4] * 6)
    n = len(similarity)
    withheld, fta = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    withheld[4] = True
    fta[[2, 5]] = True
    table = table_of("m", dict(clear.embeddings), withheld=withheld, fta=fta)
    assert extremes(table, similarity) == (Case(5, 0.95), Case(3, 0.2))
    worst, best = extremes(table_of("m", dict(clear.embeddings), fta=np.ones(n, np.bool_)), similarity)
    assert worst == Case(5, 0.95)
    assert (best.at, best.why) == (-1, "no face found in any output")
    none = extremes(table_of("m", dict(clear.embeddings), withheld=np.ones(n, np.bool_)), np.full(n, np.nan))
    assert {c.why for c in none} == {"nothing was released"}


def test_a_method_that_releases_nothing_has_no_similarity(clear: Table) -> None:
    empty = table_of("m", {name: np.full((clear.n, 1), np.nan, np.float32) for name in clear.embeddings})
    assert np.isnan(similarities(clear, empty, "good")).all()
    assert similarities(clear, clear, "good") == pytest.approx(np.ones(clear.n))


def image(level: int, side: int = 40) -> np.ndarray:
    return np.full((side, side - 4, 3), level, np.uint8)


@pytest.fixture
def kept(clear: Table) -> list[Kept]:
    """The untouched control, and a method that passes image 0 through, gives out another image for 3 and withholds 6."""
    n = clear.n
    status = np.array(["ok"] * n, dtype="<U12")
    status[0], status[3], status[6] = "passthrough", "copy", "no_face"
    withheld = status == "no_face"
    rng = np.random.default_rng(1)
    moved = {k: unit(v + 0.8 * rng.normal(size=v.shape)) for k, v in clear.embeddings.items()}
    moved["good"][0] = clear.embeddings["good"][0]
    moved["good"][6] = np.nan
    return [
        Kept("original", "original", True, table_of("original", dict(clear.embeddings), status=np.array(["passthrough"] * n)),
             lambda i: encode_png(image(10 + i))),
        Kept("blur", "blur", False, table_of("blur", moved, status=status, withheld=withheld),
             lambda i: None if i == 6 else encode_png(image(100 + i))),
    ]  # fmt: skip


def test_with_leave_everything_is_kept(tmp_path: Path, clear: Table, kept: list[Kept]) -> None:
    pictures.write(tmp_path / "samples", [0, 3, 6, 9], clear, kept, lambda i: image(10 + i, 1200))
    index = json.loads((tmp_path / "samples" / "index.json").read_text())
    assert index["faces"] is True
    assert [r["files"] for r in index["rows"]] == [
        [f"original/{j}.png" for j in range(4)], ["blur/0.png", "blur/1.png", None, "blur/3.png"],
    ]  # fmt: skip
    cases = index["cases"]
    assert cases["recognizer"] == "good", "the recogniser that knows clear faces apart best"
    assert [r["label"] for r in cases["rows"]] == ["blur"], "controls aside"
    worst = cases["rows"][0]["worst"]
    assert (worst["id"], worst["status"]) == ("p0/0.png", "passthrough")
    assert worst["similarity"] == pytest.approx(1)
    clear_picture = decode_png((tmp_path / "samples" / worst["original"]).read_bytes())
    assert clear_picture.shape == (512, 510, 3), "scaled down"
    assert clear_picture[0, 0, 0] == 10
    best = cases["rows"][0]["best"]
    assert best["similarity"] == pytest.approx(np.nanmin(similarities(clear, kept[1].table, "good")))
    assert decode_png((tmp_path / "samples" / best["output"]).read_bytes())[0, 0, 0] >= 100


def test_without_leave_no_clear_face_is_written(tmp_path: Path, clear: Table, kept: list[Kept]) -> None:
    pictures.write(tmp_path / "samples", [0, 3, 6, 9], clear, kept, None)
    index = json.loads((tmp_path / "samples" / "index.json").read_text())
    assert index["faces"] is False
    assert [r["files"] for r in index["rows"]] == [[None] * 4, [None, None, None, "blur/3.png"]]
    assert [p.name for p in (tmp_path / "samples").rglob("*.png")] == ["3.png"]
    assert "not kept" in index["cases"]["why"]


def test_data_sets_say_whether_their_faces_may_be_shown(tmp_path: Path) -> None:
    assert Orl().shows_faces is True
    assert Folder(tmp_path).shows_faces is False
    assert Folder(tmp_path, publishable=True).shows_faces is True


# ------------------------------------------------------------------------------------------------------- whole way through
SUITE = """\
[suite]
name = "tiny"
extends = "deidbench-v1"
inherit_methods = false
[dataset]
name = "folder"
params = {{ root = "{root}" }}
[protocol]
replicates = 100
curve_replicates = 100
[[recognizers]]
name = "sface"
[throughput]
images = 0
[report]
samples = 2
[[methods]]
name = "original"
control = true
[[methods]]
name = "pixelate"
params = {{ block = 0.1 }}
"""


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Callable[..., Path]:
    """Runs a tiny suite with further arguments and gives its folder; the first call computes, the others reuse."""
    import shutil

    from deidbench.runner import Options, run_suite
    from deidbench.suite import load_suite

    folder = tmp_path_factory.mktemp("faces")
    for p in (1, 7):
        (folder / "data" / f"p{p}").mkdir(parents=True)
        for i in (1, 3):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", folder / "data" / f"p{p}")
    (folder / "tiny.toml").write_text(SUITE.format(root=folder / "data"))

    def call(faces: bool | None, *changes: str) -> Path:
        options = Options(workers=1, cache=folder / "cache", quiet=True, faces=faces)
        run_suite(load_suite(str(folder / "tiny.toml"), list(changes)), folder / "run", options)
        return folder / "run"

    return call


def names(folder: Path, pattern: str) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob(pattern))


def test_a_folders_faces_are_left_out_until_somebody_asks(again: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from deidbench.report import figures, write_report

    monkeypatch.setattr(figures, "KINDS", ("png", "svg"))
    run = again(None)
    write_report(run, formats=("html",))
    text = (run / "report.html").read_text()
    assert "Pictures of faces are left out: nothing on record says" in text
    assert "deidbench report FOLDER --faces" in text
    assert names(run / "samples", "*.png") == ["pixelate/0.png", "pixelate/1.png"]
    assert not names(run / "figures", "samples*") and not names(run / "figures", "cases*")
    assert 'class="photo"' not in text

    write_report(run, formats=("html",), faces=True)
    text = (run / "report.html").read_text()
    assert text.count('class="photo"') == 1
    assert "a clear face, which this run does not keep (2 images)" in text
    assert "clear images are not kept in this run folder" in text
    assert len(names(run / "figures", "samples*")) == 4
    write_report(run, formats=("html",), figures=False)  # what an earlier report left goes, whatever else is asked for
    assert names(run / "figures", "samples*") == []

    run = again(True)
    record = json.loads((run / "run.json").read_text())
    assert (record["run"]["faces"], record["dataset"]["shows_faces"]) == (True, False)
    assert len(names(run / "samples", "*.png")) == 2 * 2 + 4
    write_report(run, formats=("html",))
    text = (run / "report.html").read_text()
    assert text.count('class="photo"') == 2
    assert "by sface" in text
    write_report(run, formats=("html",), faces=False)
    text = (run / "report.html").read_text()
    assert "left out, as asked (--no-faces). deidbench report FOLDER --faces draws them." in text
    assert not names(run / "figures", "cases*")

    run = again(False, "dataset.params.publishable=true")
    assert not (run / "samples").exists()
    write_report(run, formats=("html",))
    assert (
        "the same deidbench run command with --faces (finished work is reused) draws them." in (run / "report.html").read_text()
    )

    run = again(None, "dataset.params.publishable=true")
    assert json.loads((run / "run.json").read_text())["dataset"]["shows_faces"] is True
    assert len(names(run / "samples", "*.png")) == 8


def test_the_command_takes_the_switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from deidbench import report
    from deidbench.cli import cli

    asked: list[object] = []
    monkeypatch.setattr(report, "write_report", lambda folder, **options: asked.append(options["faces"]) or [])
    for arguments in ([], ["--faces"], ["--no-faces"]):
        assert CliRunner().invoke(cli, ["report", str(tmp_path), "--quiet", *arguments]).exit_code == 0
    assert asked == [None, True, False]
