"""Reports: every writer on a small synthetic run, with the things that go wrong in real ones."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deidbench.errors import EnvironmentFault, InputError, MissingError
from deidbench.records import SCHEMA_VERSION, Curve, Row, frame, read_run
from deidbench.report import details, figures, print_summary, tables, view, write_report
from deidbench.report import samples as pictures
from deidbench.report.view import View

HOSTILE = (
    "</script><script>alert(1)</script>",
    "\\input{x}",
    "=cmd()",
    "a|b",
    "$\\frac{1}{",
    "Ünïcode 脸 🙂",
    "\x1b[31mred\u202e",
)


def entry(label: str, **fields: Any) -> dict[str, Any]:
    counts = {"ok": 19, "no_face": 0, "no_landmarks": 0, "failed": 1, "passthrough": 0, "fta": 3, "images": 20}
    base = {
        "label": label, "slug": view.slug(label), "name": label.split()[0] if label.split() else label, "params": {}, "family": label,
        "strength": None, "version": "1", "fingerprint": "f" * 32, "citation": f"cite {label}", "licence": "MIT", "control": False,
        "counts": counts,
    }  # fmt: skip
    return {**base, **fields}


def rows_of(label: str, value: float | None, **fields: Any) -> list[Row]:
    """What reid, quality and throughput report for one method and the recognisers alpha and beta."""
    base = Row(
        "faces", label, "", "rate", None, None, ci_level=0.95, convention="headline", comparison="leave-one-out", n_images=20,
        n_persons=5, n_failed=1, n_fta=3, family="reid",
    )  # fmt: skip
    why = {} if value is not None else {"reason": "nothing was released", "ci_reason": "nothing was released", "ci_level": None}

    def put(metric: str, v: float | None, better: bool | None = False, **more: Any) -> Row:
        bounds = (
            {}
            if v is None
            else {"lo": max(v - 0.05, 0.0), "hi": min(v + 0.05, 1.0), "ci_method": "person bootstrap, 100 replicates"}
        )
        return replace(base, metric=metric, value=v, higher_is_better=better, **{**bounds, **why, **more})

    out = []
    for i, name in enumerate(("alpha", "beta")):
        who = {"recognizer": name, "attacker": "ignorant"}
        v = None if value is None else max(value - 0.1 * i, 0.0)
        for metric in ("reid.rank1", "reid.rank5"):
            for convention in ("headline", "without_fta", "fta_as_miss"):
                out.append(put(metric, v, chance=0.04, **who, convention=convention))
        out.append(put("reid.eer", v, True, chance=0.5, **who))
        out.append(
            put("reid.tmr@fmr=0.01", v, False, threshold=0.4, realised_fmr=None if v is None else 0.013, chance=0.013, **who)
        )
    out.append(
        put(
            "reid.worst_rank1", value, chance=0.04, recognizer="max(alpha, beta)", attacker="ignorant",
            note="attained by ignorant with alpha; taking the largest of 2 adds about 0.0123 (bootstrap estimate)",
        )
    )  # fmt: skip
    out.append(put("reid.fta", 0.15, None, convention="", comparison=""))
    plain = replace(base, convention="", comparison="", family="")
    out.append(
        replace(plain, metric="quality.ssim_face", unit="ssim", higher_is_better=True, value=value, lo=None, hi=None, ci_level=None,
                ci_reason="no variance between persons", reason="" if value is not None else "nothing was released")
    )  # fmt: skip
    out.append(replace(plain, metric="throughput.faces_per_s", unit="faces/s", higher_is_better=True, value=123.4, lo=120.0, hi=130.0,
                       ci_method="bootstrap over repeats", timing=True))  # fmt: skip
    out.append(replace(plain, metric="aura.purple_glow", unit="lux", higher_is_better=True, value=7.25, ci_level=None))
    return [replace(r, **fields) for r in out]


def curves_of(label: str, at: float) -> list[Curve]:
    out = []
    for name in ("alpha", "beta"):
        for k in range(1, 11):
            y = min(at + 0.05 * k, 1.0)
            out.append(Curve("faces", label, "cmc", name, "ignorant", "headline", k, y, max(y - 0.05, 0), min(y + 0.05, 1)))
        out += [
            Curve("faces", label, "det", name, "ignorant", "headline", x, (1 - x) * (1 - at)) for x in np.linspace(0, 1, 21)
        ]
    return out


def record_of(methods: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    record = {
        "schema": SCHEMA_VERSION,
        "deidbench": "0.1.0",
        "suite": {"name": "tiny", "title": "A tiny suite"},
        "protocol": {"name": "deidbench-v1", "comparison": "leave-one-out", "seed": 3, "confidence": 0.95, "deviations": []},
        "dataset": {"name": "faces", "title": "Faces", "citation": "cite data", "licence": "CC0", "shows_faces": True, "n_images": 20, "n_persons": 5,
                    "manifest_sha256": "ab" * 32},
        "methods": methods,
        "recognizers": [{"name": n, "fingerprint": "e" * 32, "citation": "cite", "licence": "CC0"} for n in ("alpha", "beta")],
        "environment": {"python": "3.11", "cpu": "a CPU", "cores": 2, "packages": {"numpy": "1.26"}, "git": {"commit": "c" * 40, "dirty": True}},
        "timings": {"methods": 12.5, "per_stage_worker_seconds": {"embed": 3.0}},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
    }  # fmt: skip
    return {**record, **fields}


def write(folder: Path, record: dict[str, Any], rows: list[Row], curves: list[Curve], images: Any = None) -> Path:
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    frame(rows, Row).to_parquet(folder / "rows.parquet")
    frame(curves, Curve).to_parquet(folder / "curves.parquet")
    if images is None:
        images = pd.DataFrame(
            {"method": [m["label"] for m in record["methods"]], "status": "failed", "reason": "model broke", "fta": False}
        )
    images.to_parquet(folder / "images.parquet")
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return folder


def samples(folder: Path, labels: list[str]) -> None:
    from PIL import Image

    rows = []
    for i, label in enumerate(labels):
        picture = f"{i}.png"
        (folder / "samples").mkdir(exist_ok=True)
        Image.fromarray(np.full((24, 20, 3), 40 * (i % 6), np.uint8)).save(folder / "samples" / picture)
        rows.append(
            {
                "label": label,
                "slug": str(i),
                "files": [picture, None],
                "statuses": ["passthrough" if i == 0 else "ok", "no_face"],
            }
        )
    case = {"id": "s1/1.png", "similarity": 0.91234, "status": "ok", "fta": False, "original": "0.png", "output": "1.png"}
    none = {"why": "no face found in any output"}
    ends = [{"label": x, "slug": str(i), "worst": case, "best": none if i == 1 else case} for i, x in enumerate(labels)]
    found = {"recognizer": "alpha", "n_images": 20, "same_person": 0.95, "two_persons": 0.8, "rows": ends[1:] or ends}
    index = {"faces": True, "columns": ["s1/1.png", "s2/1.png"], "rows": rows, "cases": found}
    (folder / "samples" / "index.json").write_text(json.dumps(index), "utf-8")


METHODS = [
    entry("original", control=True, counts={"ok": 0, "passthrough": 20, "fta": 0, "images": 20}),
    entry("blur 0.1", family="blur", strength=0.1),
    entry("mask"),
    entry("blur 0.2", family="blur", strength=0.2),
]
VALUES = {"original": 1.0, "blur 0.1": 0.6, "mask": 0.3, "blur 0.2": 0.38}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [r for label, v in VALUES.items() for r in rows_of(label, v)]
    curves = [c for label, v in VALUES.items() for c in curves_of(label, v)]
    folder = write(tmp_path / "run", record_of(METHODS), rows, curves)
    samples(folder, list(VALUES))
    return folder


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    names = list(HOSTILE)
    rows = [
        replace(r, note=names[0], recognizer=r.recognizer and names[1])
        for n in names
        for r in rows_of(n, 0.5)
        if "beta" not in r.recognizer[:4]
    ]
    rows += [r for n in names for r in rows_of(n, None) if r.metric == "quality.ssim_face" and n == names[2]]
    record = record_of([entry(n, citation=n, licence=n) for n in names])
    record["protocol"]["deviations"] = names
    record["dataset"]["title"] = names[0]
    record["suite"]["title"] = names[0]
    folder = write(tmp_path / "hostile", record, rows, [c for n in names for c in curves_of(n, 0.5)])
    samples(folder, names)
    return folder


def table_of(folder: Path) -> tables.Table:
    return tables.main_table(View(read_run(folder)), "faces")


def cell(table: tables.Table, method: str, name: str) -> tables.Cell:
    line = next(x for x in table.lines if x.method.label == method)
    return line.cells[[c.name for c in table.columns].index(name)]


# ------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0851, "rate", "8.5"), (1.0, "rate", "100.0"), (0.0, "rate", "0.0"), (-0.00001, "rate", "0.0"), (-0.031, "rate", "−3.1"),
        (0.41249, "ssim", "0.412"), (23.456, "dB", "23.5"), (123.4, "faces/s", "123"), (4.567, "ms", "4.57"), (0.01234, "s", "0.0123"),
        (400.0, "images", "400"), (float("inf"), "dB", "∞"), (1.5e9, "bytes", "1.50e+09"), (0, "ms", "0"),
    ],
)  # fmt: skip
def test_numbers(value: float, unit: str, text: str) -> None:
    assert view.number(value, unit) == text


def test_intervals_say_which_side_is_known() -> None:
    row = Row("d", "m", "x", "rate", False, 0.1, 0.05, 0.2)
    assert view.interval(row) == "[5.0, 20.0]"
    assert view.interval(replace(row, lo=None)) == "[≤ 20.0]"
    assert view.interval(replace(row, hi=None)) == "[≥ 5.0]"
    assert view.interval(replace(row, lo=None, hi=None)) == ""
    zero = replace(row, value=0.0, lo=0.0, hi=0.07, ci_method="no event seen: one-sided bound over 40 persons")
    assert view.interval(zero) == "[≤ 7.0]"
    assert view.interval(replace(zero, value=1.0, lo=0.93, hi=1.0)) == "[≥ 93.0]"


def test_pareto_front_keeps_what_nothing_beats() -> None:
    points = [(0.5, 0.5), (0.2, 0.2), (0.3, 0.1), (0.9, 0.9), (0.5, 0.4), (0.2, 0.2)]
    brute = [
        i for i, (x, y) in enumerate(points)
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]  # fmt: skip
    assert sorted(view.pareto(points)) == brute
    assert view.pareto([]) == []


# -------------------------------------------------------------------------------------------------------------- tables
def test_sweeps_stand_together_in_suite_order(run: Path) -> None:
    assert [line.method.label for line in table_of(run).lines] == ["original", "blur 0.1", "blur 0.2", "mask"]


def test_main_table_has_the_named_columns(run: Path) -> None:
    table = table_of(run)
    assert [c.metric for c in table.columns] == [
        "reid.worst_rank1", "reid.rank1", "reid.rank1", "reid.eer", "reid.eer", "reid.tmr@fmr=0.01", "reid.tmr@fmr=0.01", "reid.fta",
        "quality.ssim_face", "throughput.faces_per_s", "counts", "counts", "counts",
    ]  # fmt: skip
    worst = cell(table, "mask", "reid.worst_rank1")
    assert (worst.text, worst.ci, worst.extra) == ("30.0", "[25.0, 35.0]", "(alpha)")
    assert cell(table, "mask", "reid.tmr@fmr=0.01[ignorant,alpha,leave-one-out]").extra == "at 1.3"
    assert [cell(table, "mask", n).text for n in ("n_images", "n_persons", "n_failed")] == ["20", "5", "1"]
    heads = {c.metric: c.heading for c in table.columns}
    assert heads["reid.worst_rank1"].endswith("[%] ↓")
    assert heads["reid.eer"].endswith("↑")
    assert table.chance is not None
    assert table.chance[:4] == ("4.0", "4.0", "4.0", "50.0")
    assert any("1.23 percentage points" in n for n in table.notes)


def test_passthrough_and_missing_intervals_have_footnotes(run: Path) -> None:
    table = table_of(run)
    words = dict(table.footnotes)
    original = next(line for line in table.lines if line.method.label == "original")
    assert [words[m] for m in original.marks] == ["passed through all images (a control: by design)"]
    assert [words[m] for m in cell(table, "mask", "quality.ssim_face").marks] == ["no interval: no variance between persons"]


def test_a_missing_value_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    folder = write(tmp_path, record_of([entry("wall")]), rows_of("wall", None), [])
    table = table_of(folder)
    worst = cell(table, "wall", "reid.worst_rank1")
    assert worst.text == "-"
    assert [dict(table.footnotes)[m] for m in worst.marks] == ["nothing was released"]


def test_untrusted_rows_are_marked(tmp_path: Path) -> None:
    rows = [
        replace(r, trusted=r.recognizer != "beta", note="clear EER 0.3" if r.recognizer == "beta" else "")
        for r in rows_of("mask", 0.3)
    ]
    folder = write(tmp_path, record_of([entry("mask")]), rows, [])
    table = table_of(folder)
    marked = cell(table, "mask", "reid.rank1[ignorant,beta,leave-one-out]")
    assert [dict(table.footnotes)[m] for m in marked.marks] == ["untrusted: clear EER 0.3"]
    assert cell(table, "mask", "reid.rank1[ignorant,alpha,leave-one-out]").marks == ()
    assert any(w.startswith("Untrusted: beta") for w in tables.warnings(View(read_run(folder)), "faces"))


def test_unknown_quantities_do_not_vanish(run: Path) -> None:
    seen = View(read_run(run))
    further = details.detail_tables(seen, "faces")
    shown = {c.metric for t in [tables.main_table(seen, "faces"), *further] for c in t.columns}
    assert {r.metric for r in seen.rows} <= shown
    aura = next(t for t in further if "aura" in t.title)
    assert {line.cells[0].text for line in aura.lines} == {"7.25"}
    write_report(run, figures=False)
    assert "aura.purple_glow" in (run / "report.html").read_text("utf-8")


def test_every_row_is_in_exactly_one_table(run: Path) -> None:
    seen = View(read_run(run))
    cells = [
        c.row
        for t in [tables.main_table(seen, "faces"), *details.detail_tables(seen, "faces")]
        for x in t.lines
        for c in x.cells
        if c.row
    ]
    assert len(cells) == len(seen.rows)
    assert set(map(id, cells)) == set(map(id, seen.rows))


def test_two_data_sets_do_not_mix(tmp_path: Path) -> None:
    rows = rows_of("mask", 0.3) + [replace(r, dataset="others") for r in rows_of("mask", 0.9)]
    folder = write(tmp_path, record_of([entry("mask")]), rows, curves_of("mask", 0.3))
    seen = View(read_run(folder))
    assert seen.datasets == ["faces", "others"]
    assert [cell(tables.main_table(seen, d), "mask", "reid.worst_rank1").text for d in seen.datasets] == ["30.0", "90.0"]
    write_report(folder, figures=False)
    wide = list(csv.DictReader((folder / "tables" / "main.csv").open(encoding="utf-8")))
    assert [(r["dataset"], r["reid.worst_rank1"]) for r in wide] == [("faces", "0.3"), ("others", "0.9")]


# ----------------------------------------------------------------------------------------------------------------- CSV
def test_wide_csv_has_full_precision_and_reasons(run: Path) -> None:
    write_report(run, formats=("csv",), figures=False)
    lines = {r["method"]: r for r in csv.DictReader((run / "tables" / "main.csv").open(encoding="utf-8"))}
    assert list(lines) == ["original", "blur 0.1", "blur 0.2", "mask"]
    mask = lines["mask"]
    assert float(mask["reid.worst_rank1"]) == VALUES["mask"]
    assert float(mask["reid.worst_rank1:hi"]) == VALUES["mask"] + 0.05
    assert mask["reid.worst_rank1:attained_by"] == "ignorant with alpha"
    assert mask["quality.ssim_face:lo"] == ""
    assert "quality.ssim_face: no interval: no variance between persons" in mask["notes"]
    assert (mask["strength"], lines["blur 0.2"]["strength"]) == ("", "0.2")


def test_long_csv_is_the_rows(run: Path) -> None:
    import pandas as pd

    write_report(run, formats=("csv",), figures=False)
    back = pd.read_csv(run / "tables" / "rows.csv", keep_default_na=False, na_values=[""], float_precision="round_trip")
    rows = read_run(run).rows
    assert list(back.columns) == list(rows.columns)
    assert back["value"].tolist() == rows["value"].tolist()
    assert back["metric"].tolist() == rows["metric"].tolist()


def test_csv_texts_cannot_become_formulas(hostile: Path) -> None:
    write_report(hostile, formats=("csv",), figures=False)
    for name in ("main.csv", "rows.csv"):
        for line in csv.reader((hostile / "tables" / name).open(encoding="utf-8")):
            for text in line:
                assert not re.match(r"[=+@\t\r]", text), (name, text)
                if text.startswith("-"):
                    float(text)
    methods = [r["method"] for r in csv.DictReader((hostile / "tables" / "main.csv").open(encoding="utf-8"))]
    assert "'=cmd()" in methods


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r\n=1"])
def test_guard(text: str) -> None:
    assert tables.guard(text) == f"'{text}"
    assert tables.guard(f"a{text}") == f"a{text}"


def test_negative_numbers_stay_numbers(tmp_path: Path) -> None:
    row = Row("faces", "mask", "delta.rank", "points", True, -2.5, -3.0, -1.0, 0.95, "bootstrap")
    folder = write(tmp_path, record_of([entry("mask")]), [row], [])
    write_report(folder, formats=("csv",), figures=False)
    assert ",-2.5,-3.0,-1.0," in (folder / "tables" / "rows.csv").read_text("utf-8")


# ------------------------------------------------------------------------------------------------------------ Markdown
def test_markdown_rows_have_as_many_cells_as_the_head(hostile: Path) -> None:
    write_report(hostile, formats=("md",), figures=False)
    for name in ("main.md", "details.md"):
        text = (hostile / "tables" / name).read_text("utf-8")
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block
        assert "<script" not in text
        assert "\x1b" not in text


# --------------------------------------------------------------------------------------------------------------- LaTeX
def balanced(text: str) -> bool:
    """Braces pair up, leaving out escaped ones and comments."""
    depth = 0
    for line in text.splitlines():
        for brace in re.findall(r"\\.|[{}]|%.*", line):
            depth += {"{": 1, "}": -1}.get(brace, 0)
            if depth < 0:
                return False
    return depth == 0


def test_latex_is_whole_and_escaped(run: Path, hostile: Path) -> None:
    for folder in (run, hostile):
        write_report(folder, formats=("tex",), figures=False)
        text = (folder / "tables" / "main.tex").read_text("utf-8")
        assert balanced(text)
        assert "\\toprule" in text
        assert text.count("\\begin{") == text.count("\\end{")
        body = text[text.index("\\midrule") : text.index("\\bottomrule")]
        widths = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")}
        assert len(widths) == 1
    assert "\\input" not in text
    assert "\\textbackslash{}input\\{x\\}" in text
    assert "$" not in text.replace("\\$", "")
    caption = re.search(r"\\caption\{(.*)\}", (run / "tables" / "main.tex").read_text("utf-8"))
    assert caption is not None
    for part in ("20 images", "5 persons", "deidbench-v1", "leave-one-out", "person bootstrap, 100 replicates"):
        assert part in caption[1]


@pytest.mark.parametrize("char", list('\\&%$#_{}~^<>|"'))
def test_every_special_character_is_escaped(char: str) -> None:
    text = tables.tex(f"a{char}b")
    assert text != f"a{char}b"
    assert balanced(text)
    assert len(re.findall(r"(?<!\\)[&%$#_~^<>|\"]", text)) == 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(run: Path, tmp_path: Path) -> None:
    write_report(run, formats=("tex",), figures=False)
    body = (run / "tables" / "main.tex").read_text("utf-8")
    document = f"\\documentclass{{article}}\\usepackage[T1]{{fontenc}}\\usepackage{{textcomp,booktabs,graphicx}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "t.tex").write_text(document, "utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]


# ------------------------------------------------------------------------------------------------------------ terminal
def printed(folder: Path, width: int, encoding: str = "utf-8") -> str:
    from rich.console import Console

    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    print_summary(read_run(folder), Console(file=file, width=width, force_terminal=False, color_system=None))
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [60, 100, 160, 300])
def test_terminal_fits_every_width(run: Path, width: int) -> None:
    text = printed(run, width)
    assert max(map(len, text.splitlines())) <= width
    assert "30.0 [25.0, 35.0] (alpha)" in text
    assert ("Left out at this width" in text) == (width < 300)
    words = " ".join(text.replace("\u00a0", " ").split())
    assert (
        "mask lets the worst-case attacker (ignorant with alpha) re-identify 30.0 % (95 % CI 25.0 to 35.0) of 20 images"
        in words
    )


def test_terminal_takes_no_orders_from_names(hostile: Path) -> None:
    text = printed(hostile, 160)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "=cmd()" in text


def test_terminal_without_unicode(run: Path) -> None:
    assert "30.0 [25.0, 35.0] (alpha)" in printed(run, 120, "ascii")


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    folder = write(tmp_path, record_of([entry("[bold]x[/nope]")]), rows_of("[bold]x[/nope]", 0.5), [])
    assert "[bold]x[/nope]" in printed(folder, 120)


# ----------------------------------------------------------------------------------------------------------- sentences
def test_headlines_name_best_worst_controls_and_chance(run: Path) -> None:
    seen = View(read_run(run))
    text = " ".join(tables.headlines(seen, "faces")).replace("\u00a0", " ")
    assert (
        "mask lets the worst-case attacker (ignorant with alpha) re-identify 30.0 % (95 % CI 25.0 to 35.0) of 20 images of 5 persons."
        in text
    )
    assert "That is the least of the 3 methods compared; the intervals of blur 0.2 reach into its own." in text
    assert "blur 0.1 lets the worst-case attacker (ignorant with alpha) re-identify 60.0 %" in text
    assert "With clear images the same attack reaches 100.0 %" in text
    assert "Guessing would reach 4.0 %." in text


def test_equal_methods_are_not_ranked(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    folder = write(tmp_path, record_of([entry(n) for n in names]), [r for n in names for r in rows_of(n, 1.0)], [])
    text = " ".join(tables.headlines(View(read_run(folder)), "faces"))
    assert "the most of them" not in text
    assert "the intervals of b and c reach into its own" in text


# ---------------------------------------------------------------------------------------------------------------- page
class Page(html.parser.HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1] == tag, (self.open, tag)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_self_contained_and_well_formed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KINDS", ("svg",))
    write_report(run)
    text = (run / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "srcset"):
            if name in attributes:
                assert str(attributes[name]).startswith("data:image/"), tag
        if "href" in attributes:
            target = str(attributes["href"])
            assert target.startswith("#") or (run / target).is_file(), target
    assert not re.search(r"url\((?!data:)|@import", text)
    images = [a for t, a in page.tags if t == "img"]
    assert len(images) == len(list((run / "figures").glob("*-wide.svg"))) > 5
    assert all(len(str(a.get("alt"))) > 40 for a in images)
    scripts = [t for t, _ in page.tags if t == "script"]
    assert len(scripts) == 1
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    shown = " ".join(" ".join(page.words).split())
    for part in (
        "A tiny suite",
        "model broke (1)",
        "with local changes",
        "cite data",
        "no variance between persons",
        "What each attacker knows",
        "does not know that",
    ):
        assert part in shown
    assert "ab" * 32 in shown


def test_content_policy_allows_only_our_script(run: Path) -> None:
    import base64
    import hashlib

    write_report(run, formats=("html",), figures=False)
    text = (run / "report.html").read_text("utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script is not None
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()}'" in text.replace(
        "&#39;", "'"
    )


def test_deviations_are_prominent(run: Path) -> None:
    record = json.loads((run / "run.json").read_text("utf-8"))
    record["protocol"]["deviations"] = ["protocol.seed is 3"]
    (run / "run.json").write_text(json.dumps(record))
    write_report(run, formats=("html", "md", "tex"), figures=False)
    text = (run / "report.html").read_text("utf-8")
    assert 0 < text.index("protocol.seed is 3") < text.index('id="table"')
    assert "DEVIATION from the protocol: protocol.seed is 3" in (run / "tables" / "main.md").read_text("utf-8")
    assert "DEVIATION" in (run / "tables" / "main.tex").read_text("utf-8")
    assert "DEVIATION" in printed(run, 100)


def test_hostile_names_stay_text_on_the_page(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KINDS", ("svg",))
    write_report(hostile)
    text = (hostile / "report.html").read_text("utf-8")
    assert "<script>alert" not in text
    page = Page(text)
    assert [t for t, _ in page.tags].count("script") == 1
    assert any("</script><script>alert(1)</script>" in w for w in page.words)
    assert "\x1b" not in text
    assert "Ünïcode 脸 🙂" in text
    assert len(list((hostile / "figures").glob("*.svg"))) >= 12


# -------------------------------------------------------------------------------------------------------------- figures
def test_figures_exist_in_every_format_and_repeat_to_the_byte(run: Path) -> None:
    first = write_report(run, formats=())
    names = {p.name for p in first}
    for figure in ("plane", "forest", "cmc", "det", "samples", "cases"):
        for suffix in ("pdf", "svg", "png"):
            assert {f"{figure}.{suffix}", f"{figure}-wide.{suffix}"} <= names
    before = {p: p.read_bytes() for p in first}
    assert all(len(b) > 2000 for b in before.values())
    (run / "figures" / "drawn.json").unlink()  # so that they are drawn again
    assert all(p.read_bytes() == before[p] for p in write_report(run, formats=()))
    for path, data in before.items():
        if path.suffix == ".svg":
            assert b"<dc:date>" not in data
        if path.suffix == ".pdf":
            assert b"CreationDate" not in data
            assert b"/Type3" not in data


def test_figures_leave_matplotlib_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KINDS", ("svg",))
    import matplotlib as mpl
    from matplotlib import font_manager

    before, fonts = dict(mpl.rcParams), list(font_manager.fontManager.ttflist)
    with mpl.rc_context({"font.size": 33.0}):
        write_report(run, formats=())
        assert mpl.rcParams["font.size"] == 33.0
    assert dict(mpl.rcParams) == before
    assert font_manager.fontManager.ttflist == fonts


def test_plane_takes_another_utility(run: Path) -> None:

    with figures.style():
        drawing = figures.privacy_utility(View(read_run(run)), "faces", y="throughput.faces_per_s")
        assert isinstance(drawing, figures.Drawing)
        assert "Speed" in drawing.figure.axes[0].get_ylabel()
        assert "faces/s" in drawing.figure.axes[0].get_ylabel()
        assert "123" in drawing.alt
        assert (
            figures.privacy_utility(View(read_run(run)), "faces", y="no.such")
            == "no method has both Worst-case rank-1 and no.such"
        )


def test_plane_draws_every_method_where_it_belongs(run: Path) -> None:

    with figures.style():
        drawing = figures.privacy_utility(View(read_run(run)), "faces")
        assert isinstance(drawing, figures.Drawing)
        points = {
            (float(x), float(y))
            for line in drawing.figure.axes[0].lines if line.get_marker() not in ("None", "", None)
            for x, y in np.asarray(line.get_xydata())
        }  # fmt: skip
    assert points == {(v, v) for v in VALUES.values()}


def test_pictures_outside_the_run_are_not_read(run: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(run.parent / "secret.png")
    index = json.loads((run / "samples" / "index.json").read_text("utf-8"))
    index["rows"][0]["files"][0] = "../../secret.png"
    index["rows"][1]["files"][0] = "absent.png"
    (run / "samples" / "index.json").write_text(json.dumps(index))
    with figures.style():
        drawing = pictures.sample_grid(View(read_run(run)))
    assert isinstance(drawing, figures.Drawing)
    assert "2 pictures could not be read" in drawing.caption
    assert "4 images" in drawing.caption  # withheld ones


def test_damaged_sample_index_is_named(run: Path) -> None:
    (run / "samples" / "index.json").write_text('{"columns": 3}')
    with figures.style(), pytest.raises(InputError, match=r"index\.json is damaged"):
        pictures.sample_grid(View(read_run(run)))


def without_curves(folder: Path) -> None:
    frame([], Curve).to_parquet(folder / "curves.parquet")


def without_samples(folder: Path) -> None:
    shutil.rmtree(folder / "samples")


def only_one(folder: Path) -> None:
    write(folder, record_of([entry("mask")]), rows_of("mask", 0.3), curves_of("mask", 0.3))


def all_withheld(folder: Path) -> None:
    write(folder, record_of([entry(n) for n in ("wall", "void")]), [r for n in ("wall", "void") for r in rows_of(n, None)], [])


def no_rows(folder: Path) -> None:
    write(folder, record_of(METHODS), [], [])


def bare_record(folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps({"schema": SCHEMA_VERSION}))


def few_columns(folder: Path) -> None:
    import pandas as pd

    rows = pd.read_parquet(folder / "rows.parquet")
    rows[["dataset", "method", "metric", "unit", "value", "recognizer"]].assign(novel=1).to_parquet(folder / "rows.parquet")
    pd.DataFrame({"method": ["mask"]}).to_parquet(folder / "images.parquet")
    pd.read_parquet(folder / "curves.parquet")[["dataset", "method", "curve", "recognizer", "x", "y"]].to_parquet(
        folder / "curves.parquet"
    )


# -------------------------------------------------------------------------------------------------- several attackers
WHO = {
    "ignorant": ("alpha", "beta"),
    "lazy-informed": ("alpha", "beta"),
    "lda": ("alpha", "beta", "alpha+beta"),
    "pixel-lda": ("pixels",),
    "arcface": ("alpha",),
}
NO_LESSON = "the data set 'faces' has no persons of role attacker_train for attackers to learn from"
REACH = {
    "original": {"ignorant": (1.0, 0.9), "lazy-informed": (1.0, 1.0), "lda": (1.0, 0.98, 1.0), "pixel-lda": (0.7,)},
    "blur 0.1": {"ignorant": (0.1, 0.2), "lazy-informed": (0.3, 0.2), "lda": (0.3, 0.4, 0.5), "pixel-lda": (0.45,)},
    "mask": {"ignorant": (0.05, 0.06), "lazy-informed": (0.1, 0.1), "lda": (0.2, 0.1, 0.2), "pixel-lda": (0.2,)},
    "blur 0.2": {"ignorant": (0.1, 0.2), "lazy-informed": (0.1, 0.1), "lda": (0.1, 0.1, 0.1), "pixel-lda": (0.65,)},
}
SEEDS = "seed 2 of 3 chosen on held-out persons; rank-1 per seed {0:.3f} (0.990 held out), 0.1 (0.2 held out); learnt: {1} steps (a; b)"


def ladder_rows(label: str) -> list[Row]:
    """What reid reports with five attackers, one of which could not be carried out; pixel-lda is mis-trained on "original"."""
    pattern = [r for r in rows_of(label, 0.5) if r.recognizer == "alpha"]
    out = [r for r in rows_of(label, 0.5) if not r.recognizer]
    attacks = {}
    for a, recognizers in WHO.items():
        for i, name in enumerate(recognizers):
            who = {"recognizer": name, "attacker": a}
            if a == "arcface":
                out += [
                    replace(r, value=None, lo=None, hi=None, chance=None, reason=f"not carried out: {NO_LESSON}", **who)
                    for r in pattern if r.metric in ("reid.rank1", "reid.rank5") and r.convention == "headline"
                ]  # fmt: skip
                continue
            v = REACH[label][a][i]
            weak = (label, a) == ("original", "pixel-lda")
            note = SEEDS.format(v, len(out)) if a in ("lda", "pixel-lda") else ""
            if weak:
                note = f"mis-trained: weaker than the stock recogniser alpha on the same images (0.700 against 1.000); {note}"
            else:
                attacks[a, name] = v
            for r in pattern:
                known = {"value": v, "lo": v / 2, "hi": (1 + v) / 2} if r.metric == "reid.rank1" else {}
                out.append(replace(r, trusted=not weak, note=note, **known, **who))
            d_sys = replace(pattern[0], metric="reid.d_sys", note="; ".join(p for p in (note, "10 bins, omega = 1") if p))
            out.append(replace(d_sys, trusted=not weak, **who))
            out.append(
                replace(
                    pattern[0], metric="reid.cllr_min", unit="bit", higher_is_better=True, value=0.5, trusted=not weak, **who
                )
            )
            out.append(replace(pattern[0], metric="reid.fnir@fpir=0.01", higher_is_better=True, trusted=not weak, **who))
    top = max(attacks.values())
    best = [f"{a} with {r}" for (a, r), v in attacks.items() if v == top]
    note = f"attained by {' and '.join(best)}; taking the largest of 8 adds about 0.01 (bootstrap estimate)"
    if label == "original":
        note += "; not trusted and left out: pixel-lda with pixels"
    worst = replace(pattern[0], metric="reid.worst_rank1", value=top, lo=top / 2, hi=1.0, note=note)
    out.append(replace(worst, attacker=", ".join(WHO), recognizer="max(alpha, beta, alpha+beta, pixels)"))
    strongest = max(attacks, key=lambda k: attacks[k])
    group = replace(pattern[0], metric="reid.group_rank1", attacker=strongest[0], recognizer=strongest[1])
    out += [replace(group, label=f"sex: {s}", value=v) for s, v in (("female", 0.2), ("male", 0.3))]
    said = f"male over female; shuffled group labels give 0.0{len(label)} on average, p = 0.0{len(label)}, 0.5 by Holm over 2 groupings"
    out.append(replace(group, metric="reid.group_gap", label="sex", value=0.1, note=said))
    for convention in ("headline", "withheld_as_unchanged"):
        out.append(
            replace(
                pattern[0],
                metric="distance.cosine",
                unit="distance",
                attacker="",
                comparison="",
                convention=convention,
                value=0.61234,
            )
        )
    return out


def soft_rows(label: str, traits: int) -> list[Row]:
    out = []
    base = replace(
        rows_of(label, 0.5)[0], recognizer="", comparison="5-fold over the evaluated persons", family="soft", chance=0.5
    )
    for reader in ("ignorant", "informed"):
        mine = replace(base, attacker=reader)
        out.append(
            replace(
                mine, metric="soft.mean_balanced_accuracy", value=0.6, note="clear 0.801; 2 of 3 traits are measurable: a, b"
            )
        )
        for i in range(traits):
            row = replace(mine, metric="soft.balanced_accuracy", label=f"Trait_{i}")
            if i == 1:
                reason = f"unmeasurable: clear 0.5{len(label)}2 [0.480, 0.530] is not above chance 0.500 (Holm over 3)"
                out.append(replace(row, value=None, lo=None, hi=None, reason=reason))
            else:
                out.append(
                    replace(row, value=0.7, note=f"clear 0.{80 + i} [0.7, 0.9]; learnt on {i} persons; {i} images guessed")
                )
    return out


def attackers_record(**fields: Any) -> dict[str, Any]:
    listed = [
        {"label": a, "name": a, "version": "1", "params": {"steps": 7} if a == "lda" else {}, "knows": f"{a} knows this",
         "gallery": "clear" if a == "ignorant" else "anonymised", "trained": a not in ("ignorant", "lazy-informed"),
         "citation": f"cite {a}", "missing": ""}
        for a in WHO
    ]  # fmt: skip
    return {
        "dataset": "others", "roles": ["attacker_train"], "n_images": 90, "n_persons": 9, "reason": "", "attackers": listed, **fields,
    }  # fmt: skip


@pytest.fixture
def climbed(tmp_path: Path) -> Path:
    rows = [r for label in VALUES for r in (*ladder_rows(label), *soft_rows(label, 3))]
    curves = [
        replace(c, attacker=a, recognizer=r) for label, v in VALUES.items() for a, rs in WHO.items() if a != "arcface" for r in rs
        for c in curves_of(label, v) if c.recognizer == "alpha"
    ]  # fmt: skip
    folder = write(tmp_path / "climbed", record_of(METHODS, attackers=attackers_record()), rows, curves)
    samples(folder, list(VALUES))
    return folder


def test_notes_are_split_outside_brackets() -> None:
    assert view.parts("a; b (c; d [e; f]); g;") == ("a", "b (c; d [e; f])", "g")
    assert view.parts("") == ()
    assert view.parts("a) ; b") == ("a)", "b")
    row = Row(
        "d",
        "m",
        "reid.rank1",
        "rate",
        False,
        0.5,
        note=f"3 probes without an embedding; {SEEDS.format(0.5, 9)}; 10 bins, omega = 1",
    )
    assert view.remarks(row) == ["3 probes without an embedding"]


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("reid.fnir@fpir=0.01", "FNIR at FPIR 1\u00a0%"), ("reid.fpir@fpir=0.1", "Realised FPIR, set for 10\u00a0%"),
        ("reid.fmr@fmr=0.001", "Realised FMR, set for 0.1\u00a0%"), ("reid.d_sys", "D_sys"), ("reid.cllr_min", "Cllr min"),
        ("reid.group_gap", "Largest gap between groups"), ("distance.cosine", "Cosine distance to the original"),
    ],
)  # fmt: skip
def test_headings_of_the_ladder(run: Path, metric: str, text: str) -> None:
    assert View(read_run(run)).heading(metric) == text


def test_bits_and_distances_have_three_digits() -> None:
    assert (view.number(0.41249, "bit"), view.unit_sign("bit")) == ("0.412", "bit")
    assert (view.number(0.61234, "distance"), view.unit_sign("distance")) == ("0.612", "")


def test_main_table_has_the_first_attacker_only(run: Path, climbed: Path) -> None:
    table, single = table_of(climbed), table_of(run)
    assert [c.metric for c in table.columns] == [c.metric for c in single.columns]  # as wide as with one attacker
    assert [c.group for c in table.columns[1:3]] == ["Rank-1, ignorant"] * 2
    assert [c.sub for c in table.columns[1:3]] == ["alpha", "beta"]
    extra = {line.method.label: line.cells[0].extra for line in table.lines}
    assert extra == {
        "original": "(ignorant, alpha + 4)",
        "blur 0.1": "(lda, alpha+beta)",
        "mask": "(lda, alpha + 2)",
        "blur 0.2": "(pixel-lda)",
    }
    assert any("attacker “ignorant”" in n for n in table.notes)
    assert not any("attacker “ignorant”" in n for n in table.only([0, 9]).notes)


def test_attackers_table_shows_the_strongest_recogniser(climbed: Path) -> None:
    table = details.attackers_table(View(read_run(climbed)), "faces")
    assert table is not None
    assert [c.sub for c in table.columns] == list(WHO)
    cells = {line.method.label: dict(zip(WHO, line.cells, strict=True)) for line in table.lines}
    assert [(c.text, c.extra) for c in cells["blur 0.1"].values()] == [
        ("20.0", "(beta)"), ("30.0", "(alpha)"), ("50.0", "(alpha+beta)"), ("45.0", ""), ("-", ""),
    ]  # fmt: skip
    assert cells["blur 0.1"]["lda"].ci == "[25.0, 75.0]"
    bold = {label: [a for a, c in line.items() if c.strong] for label, line in cells.items()}
    assert bold == {
        "original": ["ignorant", "lazy-informed", "lda"], "blur 0.1": ["lda"], "mask": ["lda", "pixel-lda"], "blur 0.2": ["pixel-lda"],
    }  # fmt: skip
    words = dict(table.footnotes)
    assert [words[m] for m in cells["original"]["pixel-lda"].marks] == [
        "mis-trained: weaker than the stock recogniser alpha on the same images"
    ]
    assert {words[m] for line in cells.values() for m in line["arcface"].marks} == {f"not carried out: {NO_LESSON}"}
    assert len(words) == 3  # and that the control passes everything through: no footnote per cell
    assert table.chance == ("4.0", "4.0", "4.0", "4.0", "")
    assert any("rows.csv has what every seed reached" in n for n in table.notes)


def test_an_untrusted_figure_never_stands_for_an_attacker_that_has_a_trusted_one(climbed: Path) -> None:
    rows = View(read_run(climbed)).rows
    doubted = [
        replace(r, trusted=False, value=0.99, note="untrusted, x")
        if (r.attacker, r.recognizer, r.metric) == ("ignorant", "beta", "reid.rank1")
        else r
        for r in rows
    ]
    frame(doubted, Row).to_parquet(climbed / "rows.parquet")
    seen = View(read_run(climbed))
    row = seen.strongest("faces", "mask", "ignorant")
    assert row is not None
    assert (row.recognizer, row.value) == ("alpha", 0.05)
    assert details.best_attacks(seen, "faces", "mask") == {"lda", "pixel-lda"}


def test_reasons_that_differ_in_numbers_share_a_footnote() -> None:
    alike = details._alike(["3 persons", "4 persons", "no GPU"])
    assert alike["3 persons"] == alike["4 persons"] == "3 persons (for other cells with other numbers)"
    assert alike["no GPU"] == "no GPU"


def test_attackers_have_files_of_their_own(run: Path, climbed: Path) -> None:
    names = {p.name for p in write_report(climbed, figures=False)}
    assert {"attackers.csv", "attackers.md", "attackers.tex"} <= names
    assert not any("attackers" in p.name for p in write_report(run, figures=False))
    lines = {r["method"]: r for r in csv.DictReader((climbed / "tables" / "attackers.csv").open(encoding="utf-8"))}
    blur = lines["blur 0.1"]
    assert (float(blur["reid.rank1[lda]"]), blur["reid.rank1[lda]:recognizer"]) == (0.5, "alpha+beta")
    assert "rank-1 per seed 0.500 (0.990 held out)" in blur["reid.rank1[lda]:note"]
    assert f"not carried out: {NO_LESSON}" in blur["notes"]
    text = (climbed / "tables" / "attackers.md").read_text("utf-8")
    assert "per seed" not in text
    assert "| **50.0** \\[25.0, 75.0\\] (alpha+beta) |" in text
    text = (climbed / "tables" / "attackers.tex").read_text("utf-8")
    assert balanced(text)
    assert "\\textbf{50.0}" in text
    labels = re.findall(r"\\label\{(.*?)\}", text + (climbed / "tables" / "main.tex").read_text("utf-8"))
    assert len(set(labels)) == 2
    assert (
        len(list(csv.reader((climbed / "tables" / "rows.csv").open(encoding="utf-8")))) == len(View(read_run(climbed)).rows) + 1
    )


@pytest.mark.parametrize("traits", [3, 12])
def test_every_row_of_a_ladder_is_in_exactly_one_table(climbed: Path, traits: int) -> None:
    rows = [r for label in VALUES for r in (*ladder_rows(label), *soft_rows(label, traits))]
    frame(rows, Row).to_parquet(climbed / "rows.parquet")
    seen = View(read_run(climbed))
    made = [tables.main_table(seen, "faces"), *details.detail_tables(seen, "faces")]
    found = [c.row for t in made for x in t.lines for c in x.cells if c.row]
    assert len(found) == len(rows) == len(set(map(id, found)))
    assert set(map(id, found)) == set(map(id, seen.rows))
    for t in made:
        assert not any("per seed" in text or "learnt" in text for _, text in t.footnotes)
        assert len(t.footnotes) < 9, t.title
    titles = [t.title for t in made]
    assert titles.index("Further figures: reid, lda") < titles.index("Further figures: reid, lda, FTA as miss")
    lda = next(t for t in made if t.title == "Further figures: reid, lda")
    assert {c.sub for c in lda.columns} == {"alpha", "beta", "alpha+beta"}
    assert "D_sys: 10 bins, omega = 1." in lda.notes


def test_groups_have_a_line_per_method(climbed: Path) -> None:
    table = next(t for t in details.detail_tables(View(read_run(climbed)), "faces") if t.title == "Groups")
    assert [(c.group, c.sub) for c in table.columns] == [
        ("Strongest attack", ""), ("Rank-1 by sex", "female"), ("Rank-1 by sex", "male"), ("Rank-1 by sex", "largest gap"),
    ]  # fmt: skip
    lines = {line.method.label: line.cells for line in table.lines}
    assert [c.words for c in lines["blur 0.2"][:1]] == ["pixel-lda"]
    assert (lines["mask"][3].text, lines["mask"][3].extra) == ("10.0", "male over female, p = 0.5")
    assert any("Holm" in n for n in table.notes)


def test_soft_biometrics_turn_when_there_are_many_traits(climbed: Path) -> None:
    few = [t for t in details.detail_tables(View(read_run(climbed)), "faces") if t.title.startswith("Soft")]
    assert [t.title for t in few] == ["Soft biometrics"]
    assert [(c.group, c.sub) for c in few[0].columns[:4]] == [
        ("mean of the measurable traits", "ignorant"), ("mean of the measurable traits", "informed"), ("Trait 0", "ignorant"), ("Trait 0", "informed"),
    ]  # fmt: skip
    assert any("Trait 0 80.0, Trait 1 5" in n for n in few[0].notes)
    assert [text for _, text in few[0].footnotes][1:] == ["unmeasurable: not above chance on the clear images"]

    frame([r for label in VALUES for r in soft_rows(label, 40)], Row).to_parquet(climbed / "rows.parquet")
    many = [t for t in details.detail_tables(View(read_run(climbed)), "faces") if t.title.startswith("Soft")]
    assert [(t.title, t.head, len(t.lines)) for t in many] == [
        ("Soft biometrics, attacker ignorant", "Trait", 41), ("Soft biometrics, attacker informed", "Trait", 41),
    ]  # fmt: skip
    assert [c.sub or c.group for c in many[0].columns] == ["Clear images", "Chance", "original", "blur 0.1", "blur 0.2", "mask"]
    assert [c.text for c in many[0].lines[1].cells] == ["80.0", "50.0", *["70.0"] * 4]


def test_ladder_writes_every_figure_into_its_cell(climbed: Path, run: Path) -> None:
    seen = View(read_run(climbed))
    with figures.style():
        for width in (figures.COLUMN, figures.PAGE):
            drawing = figures.ladder(seen, "faces", width)
            assert isinstance(drawing, figures.Drawing)
            ax = drawing.figure.axes[0]
            shown = [t.get_text() for t in ax.texts if re.fullmatch(r"\(?[0-9.]+\)?", t.get_text())][:16]
            expected = []
            for m in seen.methods:
                for a in WHO:
                    row = seen.strongest("faces", m.label, a)
                    if row is not None and row.value is not None:
                        expected.append(f"{100 * row.value:.1f}" if row.trusted else f"({100 * row.value:.1f})")
            assert shown == expected
            assert not any(p.get_hatch() for p in ax.patches)
            assert "Chance is 4.0" in drawing.caption
            assert "arcface" not in [t.get_text() for t in ax.texts], "it attacked nothing and takes no room ..."
            assert "Not carried out at all: arcface" in drawing.caption, "... but is named"
        assert figures.ladder(View(read_run(run)), "faces") == "this run has one attacker only"


def test_forest_has_a_track_per_attacker(climbed: Path) -> None:
    with figures.style():
        drawing = figures.forest(View(read_run(climbed)), "faces")
    assert isinstance(drawing, figures.Drawing)
    names = {t.get_text() for t in drawing.figure.legends[0].get_texts()}
    assert names == {"ignorant", "lazy-informed", "lda", "pixel-lda", "worst case"}
    assert "Not shown: arcface" in drawing.caption
    assert "mis-trained" in drawing.caption


def test_forest_shows_no_more_than_eyes_can_tell_apart(tmp_path: Path) -> None:
    rows = [replace(r, attacker=f"a{i}") for i in range(12) for r in rows_of("mask", 0.3) if r.recognizer == "alpha"]
    folder = write(tmp_path, record_of([entry("mask")]), rows, [])
    with figures.style():
        drawing = figures.forest(View(read_run(folder)), "faces")
    assert isinstance(drawing, figures.Drawing)
    assert len(drawing.figure.legends[0].get_texts()) == 8
    assert "Not shown: a8, a9, a10 and a11" in drawing.caption


def test_curves_are_those_of_the_attack_that_is_mostly_the_worst(climbed: Path) -> None:
    seen = View(read_run(climbed))
    # Votes: blur 0.1 lda with both; mask a third each of lda with alpha, lda with both, pixel-lda; blur 0.2 pixel-lda.
    assert figures.worst_attack(seen, "faces", "cmc") == ("lda", "alpha+beta")
    with figures.style():
        drawing = figures.cmc(seen, "faces")
    assert isinstance(drawing, figures.Drawing)
    assert "attacker lda, recogniser alpha+beta (the worst case of most methods)" in drawing.caption
    assert figures.worst_attack(seen, "faces", "roc") == ("", "")


def test_page_says_what_attackers_know(climbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KINDS", ("svg",))
    write_report(climbed)
    text = (climbed / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert len([a for t, a in page.tags if t == "img"]) == len(list((climbed / "figures").glob("*-wide.svg"))) > 6
    words = " ".join(" ".join(page.words).split()).replace("\u00a0", " ")
    assert "90 images of 9 persons of others (role attacker_train)" in words
    assert words.count("lazy-informed knows this") == 1
    assert "steps 7" in words
    assert f"Not carried out, and in no worst case: arcface ({NO_LESSON})." in words
    assert "in no worst case: pixel-lda on original." in words
    assert "With clear images the worst-case attacker reaches 100.0 %" in words
    assert (
        text.index('id="attackers"')
        < text.index("Groups")
        < text.index("Further figures: reid, ignorant")
        < text.index('id="figures"')
    )
    write(
        climbed,
        record_of(METHODS, attackers=attackers_record(n_images=0, n_persons=0, reason=NO_LESSON)),
        View(read_run(climbed)).rows,
        [],
    )
    write_report(climbed, formats=("html",), figures=False)
    assert f"No attacker could learn: {NO_LESSON}." in html_text(climbed)


def html_text(folder: Path) -> str:
    return " ".join(" ".join(Page((folder / "report.html").read_text("utf-8")).words).split())


def test_methods_that_give_out_inputs_or_copies_are_named_first(tmp_path: Path) -> None:
    why = "19 of 20 outputs are another image of the data set (or nearly)"
    hidden = [
        replace(r, value=None, lo=None, hi=None, trusted=False, reason=f"not published: {why}") for r in rows_of("thief", 0.1)
    ]
    some = rows_of("mask", 0.3)
    some = [
        replace(r, note="; ".join(p for p in (r.note, "2 of 20 outputs are another image of the data set (or nearly)") if p))
        for r in some
    ]
    counts = {"ok": 1, "copy": 19, "fta": 0, "images": 20}
    methods = [entry("thief", counts=counts), entry("mask", counts={"ok": 18, "copy": 2, "images": 20})]
    folder = write(tmp_path, record_of(methods), [*hidden, *some], [])
    seen = View(read_run(folder))
    said = tables.warnings(seen, "faces")
    assert said[0] == f"thief is not published: {why}."
    assert not any(w.startswith("Untrusted") for w in said)
    assert "mask gave out another image of the data set for 2 images." in said
    table = tables.main_table(seen, "faces")
    notes = dict(table.footnotes)
    assert {notes[m] for m in cell(table, "thief", "reid.worst_rank1").marks} == {f"not published: {why}"}
    assert cell(table, "mask", "reid.rank1[ignorant,alpha,leave-one-out]").marks == ()  # the method's own mark says it
    assert [notes[m] for m in table.lines[1].marks] == [
        "gave out another image of the data set for 2 of 20 images: the output is that image, or nearly"
    ]
    assert seen.methods[1].released == 20
    write_report(folder, figures=False)
    words = html_text(folder)
    assert 0 < words.index("thief is not published") < words.index("Privacy and utility")
    assert "Pass-through Copy No face" in words
    assert "thief is not published" in " ".join(printed(folder, 100).split())


@pytest.mark.parametrize("change", [without_curves, without_samples, only_one, all_withheld, no_rows, bare_record, few_columns])
def test_poor_runs_still_have_a_whole_report(
    run: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(run)
    monkeypatch.setattr(figures, "KINDS", ("svg",))  # PDF is tested above; it costs most of the time
    paths = write_report(run)
    assert all(p.is_file() and p.stat().st_size > 0 for p in paths)
    page = Page((run / "report.html").read_text("utf-8"))
    text = " ".join(" ".join(page.words).split())
    drawn = {p.stem for p in paths if p.suffix == ".svg" and "wide" not in p.stem}
    missing = {"plane", "forest", "cmc", "det", "samples", "cases"} - drawn
    if change is bare_record:  # it does not say that these faces may be shown
        assert {"samples", "cases"} <= missing
        assert "Pictures of faces are left out" in text
        missing -= {"samples", "cases"}
    assert text.count("not drawn,") >= len(missing)
    if change is without_curves:
        assert missing == {"cmc", "det"}
        assert "this run has no CMC curves" in text
    if change is all_withheld:
        assert "nothing was released" in text
        assert "plane" in missing
    printed(run, 100)


def test_figures_can_be_left_out(run: Path) -> None:
    paths = write_report(run, figures=False)
    assert not (run / "figures").exists()
    assert {p.name for p in paths} == {"main.csv", "rows.csv", "main.md", "details.md", "main.tex", "report.html"}
    assert "Figures were switched off" in (run / "report.html").read_text("utf-8")


def test_nothing_temporary_is_left_and_failures_are_named(run: Path) -> None:
    write_report(run, figures=False)
    assert list(run.rglob("*.tmp")) == []
    shutil.rmtree(run / "tables")
    (run / "tables").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"tables cannot be made"):
        write_report(run, figures=False)


def test_bad_calls(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="unknown report format 'docx'"):
        write_report(run, formats=("docx",))
    with pytest.raises(MissingError, match="not a finished run"):
        write_report(tmp_path / "nowhere")


def test_import_is_cheap() -> None:
    code = "import sys, deidbench.report; print([m for m in ('matplotlib', 'pandas', 'jinja2', 'numpy', 'seaborn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_rows_survive_the_way_through_parquet(run: Path) -> None:
    expected = [r.plain() for label, v in VALUES.items() for r in rows_of(label, v)]
    assert [r.plain() for r in View(read_run(run)).rows] == expected


def test_figures_are_drawn_again_only_when_something_changed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deidbench.report import figures

    drawn: list[int] = []

    def draw(view: View, folder: Path, say: object = None, hidden: str = "") -> list[figures.Saved]:
        drawn.append(1)
        folder.mkdir(exist_ok=True)
        (folder / "x.png").write_bytes(b"x" * len(drawn))
        return [figures.Saved("x", "X", "caption", "alt", (folder / "x.png",), ()), figures.Saved("y", "Y", why="no points")]

    monkeypatch.setattr(figures, "draw_all", draw)
    first = write_report(run, formats=())
    assert write_report(run, formats=()) == first
    assert len(drawn) == 1
    record = json.loads((run / "run.json").read_text())
    for change in ({"finished": "later", "timings": {"all": 3}}, {"run": {"workers": 7}}):
        (run / "run.json").write_text(json.dumps({**record, **change}))
        write_report(run, formats=())
    assert len(drawn) == 1, "how long a run took is in no figure"
    (run / "figures" / "x.png").write_bytes(b"damaged")
    write_report(run, formats=())
    assert len(drawn) == 2
    (run / "run.json").write_text(json.dumps({**record, "methods": record["methods"][:1]}))
    write_report(run, formats=())
    assert len(drawn) == 3
    next((run / "samples").rglob("*.png")).write_bytes(b"another picture")
    write_report(run, formats=())
    assert len(drawn) == 4
    (run / "figures" / "drawn.json").write_text("[]")
    write_report(run, formats=())
    assert len(drawn) == 5
