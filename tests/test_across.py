"""Ranks over many data sets: the reference's persons dealt out to several, each with figures of its own persons."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deidbench import across as a
from deidbench import evidence
from deidbench.cli import main
from deidbench.errors import InputError
from deidbench.records import read_run
from deidbench.report import across as report
from deidbench.stats.evidence import FORMS

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "demo"
METRICS = ["quality.ssim_face", "reid.rank1/sface", "distance.cosine"]
SOME = ["ganonymization", "mask", "blur 0.06", "pixelate 0.05"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """Eight runs of five persons each: every figure taken anew from what the reference keeps of these persons."""
    root = tmp_path_factory.mktemp("many")
    rows = pd.read_parquet(REFERENCE / "rows.parquet")
    known = evidence.read(REFERENCE, len(rows))
    out = []
    for d in range(8):
        folder = root / f"set{d}"
        folder.mkdir()
        for name in ("curves.parquet", "images.parquet", "evidence.parquet"):
            shutil.copy(REFERENCE / name, folder / name)
        record = json.loads((REFERENCE / "run.json").read_text())
        record["dataset"].update(manifest_sha256=f"{d}" * 64, name=f"set{d}")
        (folder / "run.json").write_text(json.dumps(record))
        own = rows.copy()
        persons = np.arange(d, 40, 8)
        for i, e in known.items():
            if e.form in ("rate", "mean"):
                own.loc[i, "value"] = float(FORMS[e.form](e.columns[persons].sum(0)))
        own.to_parquet(folder / "rows.parquet", index=False)
        out.append(read_run(folder))
    return out


def test_ranks_are_those_of_scipy(runs):
    found = a.across(runs, metrics=METRICS, only=SOME)
    assert found.methods == tuple(SOME)
    assert len(found.ranked) >= 4
    for r in found.ranked:
        table = np.array(r.scores, float)
        assert table.shape == (8, 4)
        ranks = np.array([stats.rankdata(-line if r.higher_is_better else line) for line in table]).mean(0)
        assert r.ranking.ranks == pytest.approx(ranks)
        assert r.ranking.chi2 == pytest.approx(stats.friedmanchisquare(*table.T).statistic)
    (ssim,) = [r for r in found.ranked if r.question.metric == "quality.ssim_face"]
    order = sorted(zip(ssim.ranking.ranks, ssim.ranking.names, strict=True))
    assert [n for _, n in order][-1] == "mask"
    assert ssim.ranking.p < 0.05


def test_fewer_than_five_are_refused(runs):
    with pytest.raises(InputError, match="4 runs: ranks over data sets take 5"):
        a.across(runs[:4])


def test_one_data_set_twice_is_refused(runs):
    with pytest.raises(InputError, match="are of the same images"):
        a.across([*runs[:5], runs[0]])


def test_another_recogniser_is_refused(runs, tmp_path):
    shutil.copytree(runs[5].folder, tmp_path / "odd")
    record = json.loads((tmp_path / "odd" / "run.json").read_text())
    record["recognizers"][0]["weights_sha256"] = "1" * 64
    (tmp_path / "odd" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="recogniser dlib"):
        a.across([*runs[:4], read_run(tmp_path / "odd")])


def test_paper_and_diagrams(runs, tmp_path):
    found = a.across(runs, metrics=METRICS, only=SOME)
    written = report.write(found, tmp_path)
    names = {p.name for p in written}
    assert {"across.json", "across.md", "across.csv", "ranks-quality-ssim-face.pdf"} <= names
    record = json.loads((tmp_path / "across.json").read_text())
    assert record["methods"] == SOME
    text = (tmp_path / "across.md").read_text()
    assert "average rank" in text and "set7" in text
    table = pd.read_csv(tmp_path / "across.csv")
    assert len(table) == len(found.ranked) * 8 * 4


def test_command_line(runs, capsys):
    folders = [str(r.folder) for r in runs]
    with pytest.raises(SystemExit) as done:
        main(["compare", *folders, "--across", "--metric", "quality.ssim_face"])
    assert done.value.code == 0
    assert "average ranks over 8 data sets" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["compare", *folders[:3], "--across"])
    assert done.value.code == 2


def without(run, **change):
    return replace(run, rows=run.rows.assign(**change))


def test_what_is_left_out_or_not_trusted_is_told(runs):
    doubted = without(runs[2], trusted=runs[2].rows.method != "mask")
    lonely = replace(
        runs[3], record={**runs[3].record, "methods": [m for m in runs[3].record["methods"] if m["label"] != "noise"]}
    )
    found = a.across([*runs[:2], doubted, lonely, *runs[4:]], metrics=["quality.ssim_face", "reid.fta"])
    assert found.ranked[0].untrusted == ("set2",)
    assert "not in every run, and not ranked: noise" in found.remarks
    assert "reid.fta is not ranked: neither direction is better" in found.remarks
    for said in ("not trusted on set2", "not ranked: noise"):
        assert said in report.markdown(found)
    assert found.record()["ranked"][0]["untrusted"] == ["set2"]


def test_default_figures_may_be_absent_and_evidence_is_not_asked_for(runs, tmp_path):
    """Data sets without labels have no expression figures; runs of older versions keep no evidence."""
    bare = [
        replace(r, folder=tmp_path / f"set{i}", rows=r.rows[~r.rows.metric.str.startswith("emotion.")])
        for i, r in enumerate(runs)
    ]
    found = a.across(bare, only=SOME)
    assert {r.question.metric for r in found.ranked} >= {"reid.worst_rank1", "quality.ssim_face"}


def test_history_is_of_values_alone(runs, tmp_path):
    from deidbench.gate import load_margins
    from deidbench.history import guarded, lines

    old, new = replace(runs[0], folder=tmp_path / "old"), without(runs[1], trusted=False)
    found = lines([old, new], "mask", list(guarded([old, new], "mask", load_margins())))
    assert {(x["run"], x["trusted"]) for x in found} == {("old", True), (new.folder.name, False)}
    assert all(x["value"] is not None for x in found if x["metric"] == "quality.ssim_face")
