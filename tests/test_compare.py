"""Comparisons on a real run: the committed reference of the demo (400 faces of 40 persons under 12 methods)."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from deidbench import compare as c
from deidbench import evidence
from deidbench.cli import main
from deidbench.errors import InputError, MissingError
from deidbench.records import read_run
from deidbench.report import comparison as report
from deidbench.stats import intervals
from deidbench.stats.evidence import interval as of_evidence
from deidbench.words import amount, p_text, title, verdict

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "demo"


@pytest.fixture(scope="module")
def run():
    return read_run(REFERENCE)


@pytest.fixture(scope="module")
def everything(run):
    """All pairs of the methods in the default figures."""
    return c.compare([run])


def result(comparison, metric, a, b, **more):
    (found,) = [
        r for r in comparison.results
        if (r.metric, r.a, r.b) == (metric, a, b) and all(getattr(r, k) == v for k, v in more.items())
    ]  # fmt: skip
    return found


def changed(folder: Path, change) -> Path:
    """A copy of the reference whose record was changed."""
    shutil.copytree(REFERENCE, folder, ignore=shutil.ignore_patterns("*.png"))
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_evidence_gives_every_figure_again(run):
    """Of the real run: each figure is what its evidence says, and its interval what the evidence's draws give."""
    known = evidence.read(REFERENCE, len(run.rows))
    protocol = run.record["protocol"]
    persons = sorted(run.images.subject_id.unique())
    draws = intervals.person_draws(persons, protocol["replicates"], protocol["seed"])
    rows = run.rows.to_dict("records")
    assert len(known) > 3000
    forms = set()
    for i, e in known.items():
        if e.summed:
            forms.add(e.form)
            assert e.value() == pytest.approx(rows[i]["value"], abs=1e-9), rows[i]
    assert forms == {"rate", "mean", "macro", "macro-f1", "largest", "kappa", "skill", "pearson"}
    seen = set()
    some = [*list(known)[:: len(known) // 60], *(i for i, e in known.items() if e.form == "largest")]
    for i in some:
        e, row = known[i], rows[i]
        if not e.summed or e.persons < 20 or np.isnan(row["lo"] or np.nan) or "one-sided" in row["ci_method"]:
            continue
        if e.form in ("rate", "largest"):  # of which there is a closed form
            found = of_evidence(e, draws, protocol["confidence"])
            assert (row["lo"], row["hi"]) == pytest.approx(found[:2], abs=1e-9), row
        elif "bootstrap" in row["ci_method"]:
            low, high = np.nanquantile(e.draw(draws), [0.025, 0.975])
            width = max(row["hi"] - row["lo"], 1e-9)
            assert abs(low - row["lo"]) < 0.25 * width, row
            assert abs(high - row["hi"]) < 0.25 * width, row
        seen.add(e.form)
    assert {"rate", "largest", "mean", "macro"} <= seen


def test_evidence_survives_both_files(tmp_path, run):
    from deidbench.records import Curve
    from deidbench.report.view import View

    known = evidence.read(REFERENCE, len(run.rows))
    rows = [r.__class__(**{**r.plain(), "evidence": known.get(i)}) for i, r in enumerate(View(run).rows)][:500]
    curves = [Curve("d", "m", "cmc", "r", "a", "headline", 1.0, 0.5)]
    again, lines = evidence.unpack(evidence.pack(rows, curves))
    assert [r.plain() for r in again] == [r.plain() for r in rows]
    assert lines == curves
    (tmp_path / evidence.FILE).write_bytes(evidence.to_parquet(again))
    back = evidence.read(tmp_path, len(again))
    for i, row in enumerate(again):
        first = rows[i].evidence
        assert (row.evidence is None) == (first is None) == (i not in back)
        if first is not None:
            assert row.evidence.same(first)
            assert back[i].same(first) or back[i].form == "distribution"  # kept in float32


@pytest.mark.parametrize("bad", [b"", b"PAR1", b"not parquet at all" * 99])
def test_damaged_evidence_is_named(tmp_path, bad):
    (tmp_path / evidence.FILE).write_bytes(bad)
    with pytest.raises(InputError, match=r"evidence\.parquet is damaged"):
        evidence.read(tmp_path, 5)


def test_evidence_that_cannot_be_right_is_named(tmp_path):
    """A crash would end the gate with 1, which CI takes for "got worse"."""
    from deidbench.stats.evidence import Evidence

    two, three = np.ones((4, 2)), np.ones((4, 3))
    for form, columns, persons, said in [
        ("rate", three, 4, "a rate does not have 3 columns"),
        ("macro", three, 4, "a macro does not have 3 columns"),
        ("macro-f1", two, 4, "a macro-f1 does not have 2 columns"),
        ("skill", three, 4, "a skill does not have 3 columns"),
        ("pearson", two, 4, "a pearson does not have 2 columns"),
        ("repeats", two, 0, "a repeats does not have 2 columns"),
        ("repeats", -two[:, :1], 0, "positive"),
        ("rate", two * [[2, 1]], 4, "more events than trials"),
        ("largest", three * [[0, 2, 1]], 4, "more events than trials"),
        ("mean", two * np.nan, 4, "not finite"),
        ("rate", two, 5, "5 persons of 4"),
        ("rate", two, -1, "-1 persons"),
        ("distribution", two, 4, "a distribution with columns"),
    ]:
        assert said in Evidence(form, columns, np.empty(0), persons).fault()
    rows = [r.__class__(**{**r.plain(), "evidence": Evidence("macro", three, np.empty(0), 4)}) for r in some_rows()]
    (tmp_path / evidence.FILE).write_bytes(evidence.to_parquet(rows))
    with pytest.raises(InputError, match="is damaged: a macro does not have 3 columns"):
        evidence.read(tmp_path, len(rows))
    table = pd.read_parquet(tmp_path / evidence.FILE)
    for damage, said in [
        ({"width": 2, "form": "mean"}, "row 0 has two pieces"),
        ({"columns": 1.0}, "columns are not lists"),
    ]:
        pd.concat([table, table]).assign(**damage).to_parquet(tmp_path / evidence.FILE)
        with pytest.raises(InputError, match=said):
            evidence.read(tmp_path, len(rows))
    table.drop(columns="form").to_parquet(tmp_path / evidence.FILE)
    with pytest.raises(InputError, match="no column 'form'"):
        evidence.read(tmp_path, len(rows))


def some_rows():
    from deidbench.records import Row

    return [Row("d", "m", "reid.rank1", "rate", False, 0.5)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(protocol=[1]), "run.json is damaged: protocol"),
        (lambda r: r.update(methods="x"), "run.json is damaged: methods"),
        (lambda r: r["methods"][0].pop("label"), "every label a text of its own"),
        (lambda r: r["methods"][0].update(label="mask"), "every label a text of its own"),
        (lambda r: r["protocol"].update(confidence="x", replicates=-1), r"protocol\.confidence, protocol\.replicates"),
        (lambda r: r["environment"].update(git="abc"), r"environment\.git"),
    ],
)
def test_a_damaged_record_is_named(run, change, said):
    record = json.loads(json.dumps(run.record))
    change(record)
    with pytest.raises(InputError, match=said):
        c.compare([replace(run, record=record)])


def test_damaged_tables_are_named(run):
    for name, change, said in [
        ("rows", lambda t: t.drop(columns="method"), r"rows\.parquet is damaged: it has no column method"),
        ("images", lambda t: t.drop(columns="subject_id"), r"images\.parquet is damaged: it has no column subject_id"),
        ("rows", lambda t: t.assign(value="x"), r"rows\.parquet is damaged: value"),
        ("rows", lambda t: t.assign(trusted="no"), r"rows\.parquet is damaged: trusted"),
    ]:
        with pytest.raises(InputError, match=said):
            c.compare([replace(run, **{name: change(getattr(run, name))})])


def test_evidence_of_another_value_or_other_persons_is_not_compared(run):
    wanted = {"only": ["mask", "noise"], "metrics": ["quality.ssim_face", "reid.eer/sface"]}
    rows = run.rows.assign(value=np.where(run.rows.metric == "quality.ssim_face", run.rows.value + 0.1, run.rows.value))
    found = c.compare([replace(run, rows=rows)], **wanted)
    assert {bool(r.reason) for r in found.results if r.metric == "reid.eer"} == {False}
    assert ["the evidence gives another value" in r.reason for r in found.results if r.metric == "quality.ssim_face"] == [True]
    # as many persons, but others: neither sums nor replicates are pairs
    other = replace(
        run,
        folder=run.folder.parent / ".." / "reference" / "demo",
        images=run.images.assign(subject_id="x" + run.images.subject_id),
    )
    found = c.compare([run, other], force=True, **{**wanted, "only": ["mask"]})
    assert {r.reason for r in found.results} == {"the figures are of other persons"}
    assert len(found.left_out) == len(found.results) == 3
    # nor are two methods of the second run drawn with the first one's persons
    found = c.compare([run, other], force=True, only=["mask", "noise"], metrics=["quality.ssim_face"])
    assert sum(not r.reason for r in found.results) == 1
    assert "the figures are of other persons than the first run's" in {r.reason for r in found.results}


def test_a_run_without_evidence_says_what_to_do(tmp_path):
    folder = changed(tmp_path / "old", lambda r: None)
    (folder / evidence.FILE).unlink()
    with pytest.raises(MissingError, match="run the same deidbench run command again"):
        c.compare([read_run(folder)])


def test_means_agree_with_scipy_on_the_images(run, everything):
    """Wilcoxon on person means, computed here from the per-image table, which the comparison does not read."""
    images = run.images
    means = images.groupby(["method", "subject_id"])["ssim_face"].mean().unstack(0)
    overall = images.groupby("method")["ssim_face"].mean()
    pairs = [r for r in everything.results if r.metric == "quality.ssim_face"]
    assert len(pairs) == 45
    for r in pairs:
        assert r.difference == pytest.approx(overall[r.a] - overall[r.b], abs=1e-12)
        d = (means[r.a] - means[r.b]).to_numpy()
        assert r.p == pytest.approx(stats.wilcoxon(d, method="exact", zero_method="pratt").pvalue, rel=1e-9)
        walsh = [(x + y) / 2 for x, y in itertools.combinations_with_replacement(d, 2)]
        assert r.shift == pytest.approx(float(np.median(walsh)), abs=1e-12)


def test_intervals_are_paired_bootstraps_over_persons(run, everything):
    """Written out for one pair: resample persons, take both means anew, subtract."""
    r = result(everything, "quality.ssim_face", "ganonymization", "blur 0.06")
    images = run.images
    sums = images.groupby(["method", "subject_id"])["ssim_face"].agg(["sum", "count"]).sort_index()
    a, b = sums.loc["ganonymization"].to_numpy(), sums.loc["blur 0.06"].to_numpy()
    protocol = run.record["protocol"]
    draws = intervals.person_draws(sorted(images.subject_id.unique()), protocol["replicates"], protocol["seed"])
    written_out = []
    for w in draws.astype(float):
        x, y = w @ a, w @ b
        written_out.append(x[0] / x[1] - y[0] / y[1])
    tail = intervals.expanded_tail(0.95, 40)
    assert (r.lo, r.hi) == pytest.approx(tuple(np.quantile(written_out, [tail, 1 - tail])), abs=1e-12)
    assert r.lo < r.difference < r.hi


def test_holm_is_statsmodels_within_each_metric(everything):
    families = {}
    for r in everything.results:
        if r.p is not None:
            families.setdefault(r.metric, []).append(r)
    assert len(families) > 8
    for metric, members in families.items():
        expected = multipletests([r.p for r in members], method="holm")[1]
        np.testing.assert_allclose([r.p_holm for r in members], expected, atol=1e-12)
        assert {r.family for r in members} == {f"{metric}, {len(members)} tests"}


def test_better_is_the_better_side_only_where_it_is_shown(everything):
    seen = set()
    for r in everything.results:
        if r.better:
            assert r.p_holm < 0.05
            values = {"a": r.value_a, "b": r.value_b}
            other = "b" if r.better == "a" else "a"
            assert (values[r.better] > values[other]) is r.higher_is_better
            seen.add(r.metric)
        elif r.p_holm is not None and r.difference:
            assert r.p_holm >= 0.05 or r.higher_is_better is None
    assert {"reid.worst_rank1", "reid.eer", "emotion.uar", "quality.ssim_face", "throughput.faces_per_s"} <= seen


def test_turning_a_pair_around_turns_the_signs(run):
    methods = ("pixelate 0.1", "ganonymization")
    one, two = (c.compare([run], only=methods, reference=m) for m in methods)
    assert len(one.results) == len(two.results) > 10
    for x, y in zip(one.results, two.results, strict=True):
        assert (x.a, x.b) == (y.b, y.a)
        for name in ("difference", "shift", "effect"):
            if getattr(x, name) is not None and x.ratio is None:
                assert getattr(x, name) == pytest.approx(-getattr(y, name), abs=1e-12)
        for name in ("p", "p_holm"):
            if getattr(x, name) is not None:
                assert getattr(x, name) == pytest.approx(getattr(y, name), rel=1e-9)
        if x.lo is not None:
            assert (x.lo, x.hi) == pytest.approx((-y.hi, -y.lo), abs=1e-9)
        assert {"a": "b", "b": "a", "": ""}[x.better] == y.better


def test_the_order_of_methods_changes_nothing_but_the_order(run, everything):
    some = c.compare([run], only=["noise", "mask", "ganonymization"], metrics=["quality.*", "reid.worst_rank1"])
    for r in some.results:
        twin = result(everything, r.metric, r.a, r.b) if r.metric in ("quality.ssim_face", "reid.worst_rank1") else None
        if twin is not None:
            assert (r.difference, r.lo, r.hi, r.p) == (twin.difference, twin.lo, twin.hi, twin.p)


def test_the_same_method_twice_is_identical(tmp_path, run):
    twin = read_run(changed(tmp_path / "twin", lambda r: None))
    found = c.compare([run, twin], only=["ganonymization"])
    assert {x.name for x in found.contestants} == {"ganonymization (demo)", "ganonymization (twin)"}
    for r in found.results:
        if r.ratio is None:
            assert r.identical
            assert r.difference == 0
            assert r.p is None
            assert "identical" in r.verdict
    assert not [r for r in found.results if r.better]


def test_equal_counts_of_different_pictures_are_not_identical(run):
    """Nothing is withheld by either: nothing was seen to differ, which 40 persons bound."""
    found = c.compare([run], only=["mask", "noise"], metrics=["reid.withheld"])
    (r,) = found.results
    assert (r.difference, r.identical, r.p) == (0, False, None)
    assert r.hi == -r.lo == pytest.approx(intervals.zero_events_bound(40, 0.95))
    assert "no test: " in r.verdict
    assert r.p_reason


def test_a_method_that_lacks_a_figure_is_told(run):
    rows = run.rows.copy()
    rows.loc[(rows.method == "mask") & (rows.metric == "quality.ssim_face"), "metric"] = "quality.other"
    found = c.compare([replace(run, rows=rows)], only=["mask", "noise", "blur 0.03"], metrics=["quality.ssim_face"])
    assert len(found.results) == 1
    assert found.left_out == (
        "quality.ssim_face, mask against blur 0.03: mask without this figure",
        "quality.ssim_face, mask against noise: mask without this figure",
    )


def test_zero_events_in_both_bound_each_other(run):
    """Nobody withholds anything: no difference is seen, but with 40 persons one of several points could be there."""
    found = c.compare([run], only=["blur 0.03", "pixelate 0.05"], metrics=["reid.worst_rank1"])
    (r,) = found.results
    assert (r.value_a, r.value_b, r.difference) == (1, 1, 0)
    assert not r.identical  # the weaker attacks differ
    bound = intervals.zero_events_bound(40, 0.975)
    assert (r.lo, r.hi) == pytest.approx((-bound, bound))


def test_speed_is_a_ratio(run, everything):
    r = result(everything, "throughput.faces_per_s", "ganonymization", "mask")
    assert r.ratio == pytest.approx(math.exp(r.difference))
    assert r.ratio < 1
    assert r.better == "b"
    assert "times as fast as ganonymization" in r.verdict


def test_mcnemar_stands_beside_the_permutation(everything):
    rates = [r for r in everything.results if r.metric == "reid.rank1" and r.second_p is not None]
    assert len(rates) > 100
    # two tests of one hypothesis: they agree on what is far from the line
    for r in rates:
        if r.p > 0.3:
            assert r.second_p > 0.1
        if r.second_p < 1e-4:
            assert r.p < 0.01


def test_a_mean_whose_persons_differ_the_other_way_is_no_verdict(run):
    """Most persons a little higher, three far lower: the ranks say one thing, the mean another."""
    from deidbench.stats.evidence import Evidence

    (r,) = c.compare([run], only=["mask", "noise"], metrics=["quality.ssim_face"]).results
    assert not r.opposed
    n = np.full(40, 10.0)
    d = np.r_[np.full(37, 0.01), np.full(3, -0.9)] + np.linspace(0, 1e-3, 40)
    base = np.linspace(0.1, 0.2, 40) + 0.7
    x, y = (Evidence.sums("mean", v * n, n) for v in (base + d, base))
    engine = c.Engine(c.Scored(run))
    blank = replace(r, value_a=x.value(), value_b=y.value(), p=None, p_holm=None, better="")
    (odd,) = c.adjusted([engine._result(blank, x, y, True, "", {}, 0, 1)])
    assert odd.difference < 0 < odd.shift
    assert odd.p_holm < 0.01
    assert (odd.opposed, odd.shown(0.05), odd.better) == (True, False, "")
    assert "most persons differ the other way" in verdict(odd, 0.05)


def test_what_is_not_trusted_is_marked_everywhere(tmp_path, run):
    rows = run.rows.copy()
    rows.loc[(rows.method == "mask") & (rows.metric == "quality.ssim_face"), "trusted"] = False
    found = c.compare(
        [replace(run, rows=rows)], only=["mask", "noise", "blur 0.03", "blur 0.06"], metrics=["quality.ssim_face"]
    )
    doubted = [r for r in found.results if not r.trusted]
    assert len(doubted) == 3
    assert all("not trusted" in r.verdict and "not trusted" in report.cells(r)[-1] for r in doubted)
    assert report.markdown(found).count("(not trusted)") >= 6
    assert report.latex(found).count("$^\\dagger$") == 4
    _, lines = report.wide(found)
    assert sum("†" in line[2] for line in lines) == 3
    assert "mask" not in report.unbeaten(found.results, [x.name for x in found.contestants])
    assert sum("†" in x for line in report.matrix(found.results, [x.name for x in found.contestants]) for x in line) == 6
    report.write(found, tmp_path)
    assert "†" in (tmp_path / "comparison.html").read_text()


def test_names_that_are_one_file_name_keep_their_figures(run):
    record = json.loads(json.dumps(run.record))
    labels = {"mask": "A!", "noise": "a?"}
    for m in record["methods"]:
        m["label"] = labels.get(m["label"], m["label"])
    odd = replace(run, record=record, rows=run.rows.assign(method=run.rows.method.replace(labels)))
    found = c.compare([odd], only=["A!", "a?"], metrics=["quality.ssim_face"])
    assert [name for name, _, _ in report.drawings(found)] == ["differences-a", "differences-a-2"]


# --- what may not be compared


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["dataset"].update(manifest_sha256="0" * 64), "data: orl"),
        (lambda r: r["protocol"].update(name="deidbench-v9"), "protocol.name: deidbench-v3 against deidbench-v9"),
        (lambda r: r["protocol"].update(seed=1), "protocol.seed"),
        (lambda r: r["recognizers"].pop(), "recogniser sface: only in the first run"),
        (lambda r: r["recognizers"][0].update(weights_sha256="1" * 64), "recogniser dlib: weights_sha256"),
        (lambda r: r["classifiers"][0].update(weights_sha256="1" * 64), "classifier emotion-cnn: weights_sha256"),
        (lambda r: r["metrics"][0].update(version="99"), "metric reid: version"),
        (lambda r: r["attackers"].update(manifest_sha256="2" * 64), "attacker-train data"),
        (lambda r: r.update(finder="another"), "face finder"),
    ],
)
def test_runs_that_differ_are_refused_by_name(tmp_path, run, change, said):
    other = read_run(changed(tmp_path / "other", change))
    with pytest.raises(InputError, match="cannot be compared") as error:
        c.compare([run, other], only=["mask"])
    assert said in str(error.value)
    assert "--force" in str(error.value)
    forced = c.compare([run, other], only=["mask"], metrics=["quality.ssim_face"], force=True)
    assert any(said in d for d in forced.forced)
    assert "although" in report.markdown(forced) or "--force" in report.markdown(forced)


def test_another_machine_is_a_remark(tmp_path, run):
    other = read_run(changed(tmp_path / "other", lambda r: r["environment"].update(cpu="another")))
    found = c.compare([run, other], only=["mask"])
    assert any("other machines" in r for r in found.remarks)
    assert [r for r in found.results if r.reason == "timed on different machines"]


def test_names_that_are_nowhere_get_a_suggestion(run):
    with pytest.raises(InputError, match="did you mean 'ganonymization'"):
        c.compare([run], only=["ganonymisation"])
    with pytest.raises(InputError, match=r"did you mean reid\.worst_rank1|did you mean"):
        c.compare([run], metrics=["reid.worst_rank"])
    with pytest.raises(InputError, match="two methods at least"):
        c.compare([run], only=["mask"])
    with pytest.raises(InputError, match="alpha"):
        c.compare([run], alpha=0.9)


def test_unpublished_figures_are_not_compared(tmp_path):
    """A row without a value gives no result but a reason."""
    folder = changed(tmp_path / "lost", lambda r: None)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.loc[(rows.method == "mask") & (rows.metric == "quality.ssim_face"), ["value", "reason"]] = [np.nan, "not published"]
    rows.to_parquet(folder / "rows.parquet", index=False)
    found = c.compare([read_run(folder)], only=["mask", "noise", "ganonymization"], metrics=["quality.ssim_face"])
    lost = [r for r in found.results if r.reason]
    assert len(lost) == 2
    assert all("mask has no figure (not published)" in r.reason for r in lost)
    assert len(found.left_out) == 2


# --- on paper


def test_every_format_says_the_same(tmp_path, everything):
    written = report.write(everything, tmp_path)
    assert {p.name for p in written} >= {
        "comparison.json",
        "comparison.csv",
        "comparison.md",
        "comparison.tex",
        "comparison.html",
    }
    record = json.loads((tmp_path / "comparison.json").read_text())
    table = pd.read_parquet(tmp_path / "comparison.parquet")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert len(record["results"]) == len(table) == len(lines) == len(everything.results)
    for r, j, line in zip(everything.results, record["results"], lines, strict=True):
        assert j["difference"] == r.difference
        assert line["verdict"] == r.verdict
        assert (line["p_holm"] == "") == (r.p_holm is None)
    wide = list(csv.reader(io.StringIO((tmp_path / "comparison-wide.csv").read_text())))
    assert len(wide) == 46
    tex = (tmp_path / "comparison.tex").read_text()
    assert tex.count("\\toprule") == tex.count("\\bottomrule") == len(report.by_question(everything))
    r = result(everything, "reid.worst_rank1", "ganonymization", "pixelate 0.1")
    assert amount(r.difference, "rate", signed=True) in (tmp_path / "comparison.md").read_text()


def test_matrix_is_antisymmetric(everything):
    names = [x.name for x in everything.contestants]
    for _, results in report.by_question(everything):
        table = report.matrix(results, names)
        turned = {"better": "worse", "worse": "better", "": "", "=": "="}
        for i, j in itertools.combinations(range(len(names)), 2):
            assert turned[table[i][j]] == table[j][i]
        assert all(table[i][i] == "" for i in range(len(names)))


def test_p_values_and_amounts_in_words():
    assert (p_text(0.0004), p_text(0.0314), p_text(0.31), p_text(None)) == ("< 0.001", "= 0.031", "= 0.31", "–")
    assert (amount(0.124, "rate"), amount(-0.124, "rate", signed=True), amount(0.0123, "")) == ("12.4", "−12.4", "0.012")
    assert title("reid.eer") == "Equal error rate of the attacker"
    assert title("reid.tmr@fmr=0.05").endswith("FMR 0.05")
    assert title("nobody.knows") == "nobody.knows"


def test_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(
            ["compare", str(REFERENCE), "--reference", "ganonymization", "--metric", "reid.worst_rank1", "--out", str(tmp_path)]
        )
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "points fewer of the faces re-identified in the worst case than blur 0.03" in " ".join(out.split())
    assert (tmp_path / "comparison.html").is_file()
    with pytest.raises(SystemExit) as done:
        main(["compare", str(REFERENCE), "--only", "nobody"])
    assert done.value.code == 2
    with pytest.raises(SystemExit) as done:
        main(["compare", str(tmp_path / "nowhere")])
    assert done.value.code == 3
