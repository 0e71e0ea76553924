"""The report of benchmarks against their baseline, on files that are made up; and the baseline itself."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("deidbench_baseline", ROOT / "tests" / "benchmarks" / "baseline.py")
assert _spec is not None and _spec.loader is not None
baseline: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(baseline)


def made(path: Path, scale: float = 1.0, **changed: float | None) -> Path:
    """As pytest-benchmark writes it.  scale: how slow the machine is; changed: other seconds, None: left out."""
    times = {"gemm": 0.004, "python": 0.009, "decode": 0.01, "eer": 2.0, "put": 3e-4, **changed}
    marks = [
        {
            "group": "calibration" if n in ("gemm", "python") else f"group {n}", "name": f"test_{n}", "fullname": f"x.py::test_{n}",
            "stats": {"min": t * scale, "median": 1.1 * t * scale, "iqr": 0.0, "rounds": 5, "iterations": 1, "data": [t] * 5},
        }
        for n, t in times.items() if t is not None
    ]  # fmt: skip
    info = {"node": "somebodys-laptop", "python_version": "3.11.9", "cpu": {"brand_raw": "A CPU"}}
    path.write_text(json.dumps({"machine_info": info, "commit_info": {"id": "x"}, "benchmarks": marks, "version": "5.1.0"}))
    return path


def test_a_slower_machine_is_no_slower_code(tmp_path: Path) -> None:
    lines, machine = baseline.compared(baseline.read(made(tmp_path / "a", 3.0)), baseline.read(made(tmp_path / "b")))
    assert machine == pytest.approx(3)
    assert [line.ratio for line in lines] == pytest.approx([1, 1, 1])
    assert not any(line.remark for line in lines)


def test_ratios_by_hand(tmp_path: Path) -> None:
    # calibration: gemm 4 times, python as long: 2 times by the geometric mean; decode 8 times: 4 in units of it
    now = baseline.read(made(tmp_path / "a", gemm=0.016, decode=0.08, eer=2.0, put=None, new=1.0))
    lines, machine = baseline.compared(now, baseline.read(made(tmp_path / "b")))
    assert machine == pytest.approx(2)
    found = {line.name: (line.ratio, line.remark) for line in lines}
    assert found["test_decode"] == (pytest.approx(4), "slower")
    assert found["test_eer"] == (pytest.approx(0.5), "quicker")
    assert found["test_put"] == (None, "no longer there")
    assert found["test_new"] == (None, "new")
    assert lines[0].name == "test_decode", "what got slower comes first"


def test_the_report_is_written_and_never_fails_for_being_slow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now, then, out = made(tmp_path / "a", decode=10.0), made(tmp_path / "b"), tmp_path / "deep" / "report.md"
    assert baseline.main(["report", str(now), "--baseline", str(then), "--out", str(out)]) == 0
    text = out.read_text()
    assert capsys.readouterr().out == text
    assert "| group decode | `test_decode` | 10 s | 10 ms | 1000.00 | slower |" in text
    assert "1.00 times as long" in text and "1 of 3 are" in text


def test_a_saved_baseline_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    assert baseline.main(["save", str(made(tmp_path / "a")), "--baseline", str(tmp_path / "new" / "hot.json")]) == 0
    text = (tmp_path / "new" / "hot.json").read_text()
    for secret in ("laptop", "CPU", "node", "commit", "data", "/"):
        assert secret not in text
    again = baseline.read(tmp_path / "new" / "hot.json")
    assert baseline.seconds(again) == baseline.seconds(baseline.read(tmp_path / "a"))
    assert baseline.slim(again) == again


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"benchmarks": []}', '{"benchmarks": [{"group": "calibration", "name": "x"}]}']
)
def test_what_is_no_file_of_benchmarks_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(SystemExit, match=r"pytest-benchmark|calibration"):
        baseline.main(["report", str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="pytest-benchmark"):
        baseline.main(["report", str(tmp_path / "none")])


def test_the_committed_baseline_has_every_hot_path() -> None:
    kept = baseline.read(baseline.BASELINE)
    assert baseline.BASELINE.stat().st_size < 30_000
    assert not {"machine_info", "commit_info", "datetime"} & kept.keys()
    named = {re.sub(r"\[.*", "", str(b["name"])) for b in kept["benchmarks"]}
    source = (baseline.BASELINE.parent.parent / "test_bench_hot.py").read_text("utf-8")
    assert named == set(re.findall(r"^def (test_\w+)", source, re.MULTILINE))
    assert sum(b["group"] == baseline.CALIBRATION for b in kept["benchmarks"]) == 6  # two, before, between and after the rest
