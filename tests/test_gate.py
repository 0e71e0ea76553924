"""The regression gate on a real run (the committed reference), and its plug-in for pytest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from deidbench import gate as g
from deidbench.cli import main
from deidbench.errors import InputError
from deidbench.records import read_run
from deidbench.report import gate as report
from deidbench.stats import intervals
from deidbench.stats.noninferiority import Outcome

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "demo"
pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def run():
    return read_run(REFERENCE)


def margins(*guards: dict, **gate) -> g.Margins:
    return g.Margins.model_validate({"gate": gate, "guard": list(guards)})


def held(run, first: str, second: str, *guards: dict, **more) -> g.Gate:
    return g.gate(run, run, margins(*guards, **more.pop("table", {})), methods=[f"{first}={second}"], **more)


def copy(folder: Path, change=lambda record: None) -> Path:
    shutil.copytree(REFERENCE, folder, ignore=shutil.ignore_patterns("*.png"))
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


SSIM = {"metric": "quality.ssim_face", "margin": 0.02}
RANK1 = {"metric": "reid.rank1", "attacker": "ignorant", "recognizer": "sface", "margin": 0.05}


def test_the_same_checkpoint_twice_passes_by_identity(tmp_path, run):
    found = g.gate(run, read_run(copy(tmp_path / "again")), g.load_margins())
    assert found.exit_code == 0
    assert found.outcome is Outcome.PASS
    assert {v.method for v in found.verdicts} == {"ganonymization", "mask", "eye-bar", "blur 0.03", "blur 0.06", "blur 0.12", "pixelate 0.05", "pixelate 0.1", "pixelate 0.15", "noise"}  # fmt: skip
    known = [v for v in found.verdicts if v.baseline is not None]
    assert len(known) > 80
    assert all(v.identical == "all 400 outputs are the same pictures" and v.difference == 0 for v in known)


def test_identity_takes_the_same_pictures_or_the_same_numbers(tmp_path, run):
    """Equal rates of different pictures are no identity: nothing was seen to differ, and that has a bound."""
    folder = copy(tmp_path / "other")
    images = pd.read_parquet(folder / "images.parquet")
    images["output_sha256"] = [h[::-1] for h in images.output_sha256]
    images.to_parquet(folder / "images.parquet", index=False)
    other = read_run(folder)
    guard = {"metric": "reid.fta", "worse": "higher", "margin": 0.02}
    (v,) = g.gate(run, other, margins(guard), methods=["ganonymization"]).verdicts
    bound = intervals.zero_events_bound(40, 0.95)
    assert (v.outcome, v.identical) == ("inconclusive", "")
    assert (v.difference, v.upper) == (0, pytest.approx(bound))
    assert v.persons_needed is not None
    assert 40 < v.persons_needed < 1000
    (v,) = g.gate(run, other, margins({**guard, "margin": 0.08}), methods=["ganonymization"]).verdicts
    assert v.outcome == "pass"
    (v,) = g.gate(run, other, margins(SSIM), methods=["ganonymization"]).verdicts
    assert v.identical == "the same numbers for every person"


def test_worse_fails_better_passes_and_little_is_undecided(run):
    worse = held(run, "blur 0.03", "blur 0.06", SSIM)
    assert (worse.exit_code, worse.verdicts[0].outcome) == (1, "fail")
    assert worse.verdicts[0].lower > 0.02
    better = held(run, "blur 0.06", "blur 0.03", SSIM)
    assert (better.exit_code, better.verdicts[0].outcome) == (0, "pass")
    v = worse.verdicts[0]
    undecided = held(run, "blur 0.03", "blur 0.06", {**SSIM, "margin": v.difference})
    assert (undecided.exit_code, undecided.verdicts[0].outcome) == (2, "inconclusive")
    # privacy is worse where more are named
    assert held(run, "blur 0.12", "blur 0.06", RANK1).exit_code == 1
    assert held(run, "blur 0.06", "blur 0.12", RANK1).exit_code == 0


def test_bounds_are_one_sided_paired_bootstrap_bounds(run):
    """Written out: resample persons, candidate minus baseline, turned so that positive is worse."""
    (v,) = held(run, "pixelate 0.05", "blur 0.03", SSIM).verdicts
    images, protocol = run.images, run.record["protocol"]
    sums = images.groupby(["method", "subject_id"])["ssim_face"].agg(["sum", "count"])
    old, new = (sums.loc[m].sort_index().to_numpy() for m in ("pixelate 0.05", "blur 0.03"))
    draws = intervals.person_draws(sorted(images.subject_id.unique()), protocol["replicates"], protocol["seed"]).astype(float)
    moved = (draws @ old)[:, 0] / (draws @ old)[:, 1] - (draws @ new)[:, 0] / (draws @ new)[:, 1]
    tail = intervals.expanded_tail(0.9, 40)
    assert (v.lower, v.upper) == pytest.approx(tuple(np.quantile(moved, [tail, 1 - tail])), abs=1e-12)


def test_unchanged_asks_for_both_sides(run):
    better = held(run, "blur 0.06", "blur 0.03", {**SSIM, "unchanged": True})
    assert better.exit_code == 1  # it got better by more than the margin


def test_few_persons_pass_or_fail_nothing(run):
    found = held(run, "blur 0.03", "blur 0.12", SSIM, table={"min_persons": 41})
    (v,) = found.verdicts
    assert found.exit_code == 2
    assert v.reason == "40 persons, at least 41 are asked for"
    assert v.persons_needed >= 41


def test_a_figure_that_is_not_there_is_undecided_or_with_strict_failed(run):
    guard = {"metric": "reid.nothing", "margin": 0.1}
    assert held(run, "mask", "mask", guard).exit_code == 2
    assert held(run, "mask", "mask", guard, strict=True).exit_code == 1
    assert held(run, "mask", "mask", {**guard, "optional": True}, SSIM).exit_code == 0
    # the candidate lost a figure that the baseline has
    lost = held(run, "ganonymization", "mask", {"metric": "geometry.nme_facemesh", "margin": 0.01})
    assert lost.exit_code == 2
    assert "the candidate has no such figure" in lost.verdicts[0].reason


def test_a_metric_without_a_better_side_wants_one(run):
    (v,) = held(run, "blur 0.03", "blur 0.12", {"metric": "reid.fta", "margin": 0.1}).verdicts
    assert v.outcome == "inconclusive"
    assert 'worse = "higher"' in v.reason
    assert held(run, "blur 0.03", "blur 0.12", {"metric": "reid.fta", "margin": 0.1, "worse": "higher"}).exit_code == 1
    assert held(run, "blur 0.03", "blur 0.12", {"metric": "reid.fta", "margin": 0.1, "worse": "lower"}).exit_code == 0


def test_speed_is_a_share_of_the_baseline_and_takes_one_machine(tmp_path, run):
    guard = {"metric": "throughput.faces_per_s", "margin": 0.5}
    slow = held(run, "mask", "ganonymization", guard)
    assert slow.exit_code == 1
    assert 0.9 < slow.verdicts[0].difference < 1
    assert held(run, "ganonymization", "mask", guard).exit_code == 0
    other = read_run(copy(tmp_path / "other", lambda r: r["environment"].update(cpu="another")))
    (v,) = g.gate(run, other, margins(guard), methods=["mask"]).verdicts
    assert v.reason == "timed on different machines"


def test_runs_that_differ_are_refused(tmp_path, run):
    other = read_run(copy(tmp_path / "other", lambda r: r["protocol"].update(seed=5)))
    with pytest.raises(InputError, match=r"protocol\.seed"):
        g.gate(run, other, margins(SSIM))
    assert g.gate(run, other, margins(SSIM), force=True).forced


def test_methods_that_are_nowhere_are_named(run):
    with pytest.raises(InputError, match="the candidate has no method 'nobody'"):
        g.gate(run, run, margins(SSIM), methods=["mask=nobody"])


def test_names_with_an_equals_sign(run):
    record = json.loads(json.dumps(run.record))
    labels = {"mask": "a=b", "noise": "a"}
    for m in record["methods"]:
        m["label"] = labels.get(m["label"], m["label"])
    rows, images = (t.assign(method=t.method.replace(labels)) for t in (run.rows, run.images))
    odd = replace(run, record=record, rows=rows, images=images)
    for text, method in [("a=b", "a=b"), ("a=b=a", "a=b → a"), ("a=a=b", "a → a=b"), ("a=a", "a"), ("a", "a")]:
        found = g.gate(odd, odd, margins(SSIM), methods=[text, text])
        assert [v.method for v in found.verdicts] == [method]
    with pytest.raises(InputError, match="the candidate has no method 'c'"):
        g.gate(odd, odd, margins(SSIM), methods=["a=c"])


def test_a_pass_takes_a_candidate_as_trusted_as_the_baseline(run):
    rows = run.rows.copy()
    rows.loc[(rows.method == "blur 0.12") & (rows.metric == "reid.rank1"), "trusted"] = False
    doubted = replace(run, rows=rows)
    for old, new, outcome in [(run, doubted, "inconclusive"), (doubted, doubted, "pass"), (run, run, "pass")]:
        first = "blur 0.06" if old is run else "blur 0.12"
        (v,) = g.gate(old, new, margins(RANK1), methods=[f"{first}=blur 0.12"]).verdicts
        assert v.outcome == outcome
        assert ("not trusted" in v.words) is (new is doubted)


def test_what_is_in_one_run_only_is_told(run):
    record = {**run.record, "methods": [m for m in run.record["methods"] if m["label"] != "mask"]}
    found = g.gate(run, replace(run, record=record), margins(SSIM))
    assert "only in the baseline, and not gated: mask" in found.remarks


def test_an_error_of_ours_is_not_worse(monkeypatch, capsys):
    monkeypatch.setattr(g, "gate", lambda *a, **k: 1 // 0)
    with pytest.raises(SystemExit) as done:
        main(["gate", str(REFERENCE), str(REFERENCE)])
    assert done.value.code == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_one_figure_under_two_guards_has_two_cases(run):
    found = held(run, "blur 0.06", "blur 0.03", SSIM, {**SSIM, "metric": "quality.ssim_*", "margin": 0.5})
    names = [case.get("name") for case in ElementTree.fromstring(report.junit(found)).iter("testcase")]
    assert len(names) == len(set(names)) == 3
    both = held(run, "blur 0.06", "blur 0.03", {"metric": "emotion.uar", "margin": 0.5})
    assert len({v.name for v in both.verdicts}) == len(both.verdicts) == 2


# --- margins


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "guard: Field required"),
        ("[[guard]]\nmetric = 'a'\nmargin = -1\n", "m.toml:3: guard.margin"),
        ("[[guard]]\nmetric = 'a'\nmargin = inf\n", "m.toml:3: guard.margin"),
        ("[[guard]]\nmetric = 'a'\nmargn = 1\n", "did you mean 'margin'"),
        ("[gate]\nalpha = 0.7\n[[guard]]\nmetric = 'a'\nmargin = 1\n", "m.toml:2: gate.alpha"),
        ("[[guard]]\nmetric = 'a'\nmargin = 1\nworse = 'up'\n", "m.toml:4: guard.worse"),
        ("guard = 3 =", "not valid TOML"),
    ],
)
def test_a_wrong_margins_file_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(InputError) as error:
        g.load_margins(tmp_path / "m.toml")
    assert said in str(error.value)


def test_the_bundled_margins_name_figures_that_there_are(run):
    known = set(run.rows.metric)
    for guard in g.load_margins().guard:
        assert guard.metric in known
    with pytest.raises(InputError, match="cannot read the margins"):
        g.load_margins(Path("nowhere.toml"))


# --- how it is told


def test_junit_markdown_json_and_exit_code_agree(tmp_path, capsys):
    files = [tmp_path / n for n in ("gate.xml", "gate.md", "gate.json")]
    (tmp_path / "m.toml").write_text(
        "[[guard]]\nmetric = 'quality.ssim_face'\nmargin = 0.02\n"
        "[[guard]]\nmetric = 'reid.worst_rank1'\nmargin = 0.05\n"
        "[[guard]]\nmetric = 'reid.withheld'\nworse = 'higher'\nmargin = 0.01\n"
    )
    arguments = [
        "gate",
        str(REFERENCE),
        str(REFERENCE),
        "--margins",
        str(tmp_path / "m.toml"),
        "--method",
        "blur 0.03=blur 0.06",
    ]
    arguments += ["--junit", str(files[0]), "--markdown", str(files[1]), "--json", str(files[2])]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "failed" in printed
    assert "quality.ssim_face" in printed
    root = ElementTree.parse(files[0]).getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "1")
    cases = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert cases == {"quality.ssim_face": ["failure"], "reid.worst_rank1": ["system-out"], "reid.withheld": ["error"]}
    record = json.loads(files[2].read_text())
    assert (record["outcome"], record["exit_code"]) == ("fail", 1)
    assert {v["name"]: v["outcome"] for v in record["verdicts"]} == {
        "quality.ssim_face": "fail", "reid.worst_rank1": "pass", "reid.withheld": "inconclusive",
    }  # fmt: skip
    text = files[1].read_text()
    assert text.index("quality.ssim\\_face") < text.index("reid.withheld") < text.index("reid.worst\\_rank1")  # worst first
    with pytest.raises(SystemExit) as done:
        main([*arguments[:5], "--method", "blur 0.06=blur 0.03", "--quiet"])
    assert done.value.code == 2
    assert capsys.readouterr().out == ""


def test_names_cannot_break_the_xml(run):
    found = held(run, "blur 0.03", "blur 0.06", SSIM)
    odd = [v.__class__(**{**v.__dict__, "method": "<a>&\x07\"'"}) for v in found.verdicts]
    text = report.junit(g.Gate("b", "c", tuple(odd), 0.05, (), ()))
    assert ElementTree.fromstring(text).find("testsuite").get("name").startswith("<a>&")


# --- in a team's own tests


def test_plugin(pytester):
    pytester.makepyfile(
        f"""
        REFERENCE = {str(REFERENCE)!r}

        def test_same(deidbench_gate):
            found = deidbench_gate(REFERENCE, baseline=REFERENCE)
            assert found.exit_code == 0

        def test_worse(deidbench_gate):
            deidbench_gate(REFERENCE, baseline=REFERENCE, methods=["blur 0.03=blur 0.06"])

        def test_undecided(deidbench_gate):
            deidbench_gate(REFERENCE, baseline=REFERENCE, margins="few.toml", methods=["mask=noise"], undecided="skip")

        def test_one_name_is_a_method(deidbench_gate):
            assert deidbench_gate(REFERENCE, baseline=REFERENCE, methods="mask", strict=True).verdicts

        def test_nowhere(deidbench_gate):
            deidbench_gate("nowhere", baseline=REFERENCE)

        def test_from_the_options(deidbench_gate):
            assert deidbench_gate().verdicts
        """
    )
    pytester.path.joinpath("few.toml").write_text(
        "[gate]\nmin_persons = 41\n[[guard]]\nmetric = 'quality.ssim_face'\nmargin = 0.5\n"
    )
    done = pytester.runpytest_subprocess(f"--deidbench-baseline={REFERENCE}", f"--deidbench-candidate={REFERENCE}", "-rs")
    done.assert_outcomes(passed=3, failed=2, skipped=1)
    assert "During handling" not in done.stdout.str()
    done.stdout.fnmatch_lines(["*deidbench gate failed: *", "*quality.ssim_face: fail: *worse*"])
    lonely = pytester.runpytest_subprocess("-k", "options")
    lonely.assert_outcomes(failed=1)
    lonely.stdout.fnmatch_lines(["*name it, or --deidbench-candidate DIR*"])
