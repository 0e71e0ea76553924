"""Names that want to be something else: markup, formulas, commands of LaTeX and of terminals.  Outputs are parsed, not only searched."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from deidbench.records import read_run
from deidbench.report.view import plain
from deidbench.spreadsheet import exact, guard, guard_exactly

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "demo"
HOSTILE = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)", "</style><script>alert(1)</script>", "</title><h1>x", "<!--", "]]>",
    "javascript:alert(1)", "{{ 7 * 7 }}{% raw %}", "\\input{/etc/passwd}", "\\write18{touch x}", "$\\frac{1}{", "a & b % c # d _ e ^ f ~ g", "{\\bf x", "=HYPERLINK(\"http://x\",\"y\")",
    "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r\n=1+1", " =1+1", "\uff1d1+1", "a|b|c", "`x` **y** _z_ [l](http://x) ![i](http://x)", "# head", "- item\n- item",
    "line\nbreak", "\u202eevil\u202c", "a\u2066b\u061cc\u200fd", "\x1b[31mred\x1b]0;title\x07", "\x00\x01\x9b31m", "\ufffe\uffff", "[bold red]markup[/] [link=http://x]y[/link]", "%s {0} %n",
    "脸 🙂 é",
)  # fmt: skip
CONTROLS = [chr(c) for c in range(32) if chr(c) not in "\n"] + [chr(c) for c in range(127, 160)]
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference run with every name in it exchanged for a hostile one, methods and recognisers, data, labels, notes, reasons."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(REFERENCE, folder)
    record = json.loads((folder / "run.json").read_text("utf-8"))
    labels = [m["label"] for m in record["methods"]]
    assert len(labels) <= len(HOSTILE)
    new = {old: HOSTILE[i] for i, old in enumerate(labels)}
    third = {name: HOSTILE[-1 - i] for i, name in enumerate([r["name"] for r in record["recognizers"]])}
    for m in record["methods"]:
        m |= {
            "label": new[m["label"]],
            "family": HOSTILE[14],
            "citation": HOSTILE[0],
            "licence": HOSTILE[23],
            "guarantee": HOSTILE[1],
            "slug": "../x",
            "trained_on": [HOSTILE[5]],
        }
        m["params"] = {HOSTILE[2]: HOSTILE[3], "nested": {"x": [HOSTILE[9]]}}
    for r in record["recognizers"]:
        r |= {"name": third[r["name"]], "citation": HOSTILE[7], "licence": HOSTILE[28]}
    record["dataset"] |= {
        "title": HOSTILE[3],
        "name": HOSTILE[1],
        "citation": HOSTILE[9],
        "licence": HOSTILE[11],
        "unreadable": {HOSTILE[0]: HOSTILE[1], HOSTILE[14]: "x"},
    }
    record["suite"] |= {"title": HOSTILE[4], "name": HOSTILE[0], "file": HOSTILE[29]}
    record["protocol"] |= {"name": HOSTILE[22], "deviations": list(HOSTILE), "comparison": HOSTILE[9]}
    record["environment"] |= {"cpu": HOSTILE[3], "packages": {HOSTILE[0]: HOSTILE[1]}}
    record["environment"]["git"] = {"commit": HOSTILE[2], "dirty": True}
    record["attackers"]["reason"] = HOSTILE[0]
    for i, a in enumerate(record["attackers"]["attackers"]):
        a |= {"knows": HOSTILE[i % len(HOSTILE)], "citation": HOSTILE[0], "params": {HOSTILE[3]: HOSTILE[9]}}
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    rows = pd.read_parquet(folder / "rows.parquet")
    n = len(rows)
    cycle = [HOSTILE[i % len(HOSTILE)] for i in range(n)]
    for name in ("rows", "images", "curves"):
        table = rows if name == "rows" else pd.read_parquet(folder / f"{name}.parquet")
        table["method"] = table["method"].map(new)
        if "dataset" in table:
            table["dataset"] = HOSTILE[1]
        if "recognizer" in table:
            table["recognizer"] = table["recognizer"].map(lambda x: third.get(x, x))
        if name == "images":
            table["reason"] = [HOSTILE[i % len(HOSTILE)] for i in range(len(table))]
        if name == "rows":
            table["label"] = table["label"].map(lambda x: f"{x}{HOSTILE[len(x) % len(HOSTILE)]}" if x else "")
            table["note"] = [f"{a}; {b}" if a else b for a, b in zip(table["note"], cycle, strict=True)]
            table["ci_method"], table["ci_reason"] = cycle, cycle
            table["unit"] = table["unit"].map(lambda x: "<b>u" if x == "faces/s" else x)
            table.loc[table.index % 7 == 0, "reason"] = table.loc[table.index % 7 == 0].index.map(lambda i: cycle[i])
        table.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def out(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is written of that run: report, comparison, gate, history."""
    from deidbench import compare, gate, history
    from deidbench.report import comparison, figures, write_report
    from deidbench.report import gate as gate_report
    from deidbench.report import history as history_report

    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "KINDS", ("svg", "png"))
        write_report(hostile)
        run = read_run(hostile)
        names = [m["label"] for m in run.record["methods"] if not m["control"]]
        found = compare.compare(
            [run], reference=names[0], only=names[:3], metrics=["reid.worst_rank1", "quality.ssim_face", "distance.cosine"]
        )
        comparison.write(found, folder / "compared")
        answer = gate.gate(run, run, gate.load_margins(), methods=names[:4])
        (folder / "gate.xml").write_text(gate_report.junit(answer), "utf-8")
        (folder / "gate.md").write_text(gate_report.markdown(answer), "utf-8")
        margins = history.guarded([run], names[1], gate.load_margins())
        history_report.write([run], history.lines([run], names[1], list(margins)), margins, names[1], folder / "history")
    return folder


def _files(hostile: Path, out: Path, suffix: str) -> list[Path]:
    own = [
        *hostile.glob(f"*{suffix}"),
        *(hostile / "tables").glob(f"*{suffix}"),
        *(hostile / "figures").glob(f"*{suffix}"),
        *out.rglob(f"*{suffix}"),
    ]
    return [p for p in own if p.name != "manifest.csv"]


# ------------------------------------------------------------------------------------------------------------------- HTML
class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.within: list[str] = []
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br", "link", "input"):
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.within:
            while self.within and self.within.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not self.within or self.within[-1] not in ("script", "style"):
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


#: All that the templates use.
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "footer", "main", "nav", "section", "article", "p", "h1", "h2", "h3", "h4", "ul", "ol", "li", "b", "em", "strong", "a", "div", "span",
    "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "sup", "sub", "dl", "dt", "dd", "details", "summary", "figure", "figcaption", "picture", "source", "img", "code", "script", "br",
}  # fmt: skip


def test_pages_hold_nothing_but_what_templates_put_there(hostile: Path, out: Path) -> None:
    pages = _files(hostile, out, ".html")
    assert len(pages) == 2
    for path in pages:
        page = _Page()
        page.feed(path.read_text("utf-8"))
        assert {tag for tag, _ in page.tags} <= TAGS and not page.comments
        assert [tag for tag, _ in page.tags].count("script") == 1 and [tag for tag, _ in page.tags].count("style") == 1
        for tag, attributes in page.tags:
            assert not [a for a in attributes if a.startswith("on") or a in ("srcdoc", "formaction", "xlink:href")], (
                tag,
                attributes,
            )
            for name in ("src", "href", "srcset"):
                link = attributes.get(name)
                assert link is None or link.startswith(("data:image/", "#")) or re.fullmatch(r"[A-Za-z0-9_./%-]+", link), (
                    tag,
                    link,
                )
                assert link is None or not link.startswith(("/", "..")), link
        said = " ".join(page.text)
        assert "alert(1)" in said  # as text
        if path.name == "report.html":
            assert "<script>alert(1)</script>" in said and "{{ 7 * 7 }}{% raw %}" in said
        assert not [c for c in CONTROLS if c in said.replace("\t", "").replace("\r", "")] and not [
            c for c in TURNING if c in said
        ]


def test_policy_of_pages_forbids_the_network(hostile: Path, out: Path) -> None:
    import base64
    import hashlib

    for path in _files(hostile, out, ".html"):
        text = path.read_text("utf-8")
        page = _Page()
        page.feed(text)
        (policy,) = [
            a["content"] or "" for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
        ]
        rules = {r.split()[0]: r.split()[1:] for r in policy.split(";")}
        assert (
            rules["default-src"] == ["'none'"]
            and rules["img-src"] == ["data:"]
            and rules["base-uri"] == ["'none'"]
            and rules["form-action"] == ["'none'"]
        )
        assert set(rules) == {"default-src", "img-src", "style-src", "script-src", "base-uri", "form-action"}
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        assert rules["script-src"] == [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"]
        # the policy comes before anything that could load or act
        assert text.index("Content-Security-Policy") < min(text.index(t) for t in ("<title", "<style", "<body"))


CHROMIUM, DRIVER = (
    next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None),
    shutil.which("chromedriver"),
)


@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no headless browser: apt-get install chromium chromium-driver")
def test_a_browser_runs_nothing_and_asks_for_nothing(hostile: Path, out: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra test has it)")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        for path in _files(hostile, out, ".html"):
            driver.get(path.as_uri())
            with pytest.raises(Exception, match="no such alert"):
                _ = driver.switch_to.alert.text
            events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
            asked = {
                e["params"]["request"]["url"].partition(":")[0] for e in events if e["method"] == "Network.requestWillBeSent"
            }
            assert asked <= {"file", "data"} and "file" in asked
            assert not [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
            assert (
                driver.execute_script(
                    "return document.querySelectorAll('[onerror],[onmouseover],iframe,object,embed,h1 h1').length"
                )
                == 0
            )
    finally:
        driver.quit()


# ------------------------------------------------------------------------------------------------------------- CSV, JSON
def test_no_cell_of_a_csv_is_a_formula(hostile: Path, out: Path) -> None:
    """Texts are guarded; what is a number is one, in every cell of its column."""
    files = _files(hostile, out, ".csv")
    assert len(files) >= 6
    guarded = 0
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = list(csv.reader(file, strict=True))
        for line in lines:
            assert len(line) == len(head)
            for cell in line:
                if cell.lstrip(" \u00a0")[:1] in ("=", "+", "@", "\uff1d") or cell[:1] in ("\t", "\r", "\n") or cell[:1] == "-":
                    float(cell)
                guarded += cell.startswith("'")
        if "value" in head:
            values = [line[head.index("value")] for line in lines]
            assert all(v == "" or float(v) == float(v) for v in values)
    assert guarded > 20


@pytest.mark.parametrize("text", [*HOSTILE, "", "'", "''", "'=", "-5", "1e3", "a=b"])
def test_guarded_cells_come_back(text: str) -> None:
    assert exact(guard_exactly(text)) == text
    assert guard(text) in (text, f"'{text}")
    assert guard("5") == "5" and guard("a=1") == "a=1" and guard("-1") == "'-1"


def test_json_and_parquet_keep_names_to_the_letter(hostile: Path, out: Path) -> None:
    import pandas as pd

    table = pd.read_parquet(out / "compared" / "comparison.parquet")
    names = {m["label"] for m in json.loads((hostile / "run.json").read_text("utf-8"))["methods"]}
    assert set(table["a"]) | set(table["b"]) <= names
    said = json.loads((out / "compared" / "comparison.json").read_text("utf-8"))
    assert {c["method"] for c in said["contestants"]} <= names


def test_status_files_are_guarded_and_read_back(tmp_path: Path) -> None:
    from deidbench.convert import STATUS_FILE, Line, _csv, _read_status

    lines = [Line(name, "failed", "1", reason=name, seed="5", method=name) for name in HOSTILE]
    (tmp_path / STATUS_FILE).write_text("path,status,faces,reason,seed,method\n" + _csv(lines), "utf-8", newline="")
    assert list(_read_status(tmp_path).values()) == lines
    for cells in csv.reader((tmp_path / STATUS_FILE).open(encoding="utf-8", newline="")):
        assert not [c for c in cells if c.lstrip(" ")[:1] in ("=", "+", "-", "@")]


# --------------------------------------------------------------------------------------------------------------- Markdown
def test_markdown_is_tables_and_text_alone(hostile: Path, out: Path) -> None:
    from markdown_it import MarkdownIt

    files = _files(hostile, out, ".md")
    assert len(files) >= 4
    for path in files:
        tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(path.read_text("utf-8"))
        flat = [t for token in tokens for t in (token, *(token.children or ()))]
        kinds = {t.type for t in flat}
        assert not kinds & {"link_open", "image", "code_inline", "fence", "code_block", "html_block", "hr", "s_open"}, (
            path.name,
            kinds,
        )
        assert {t.content for t in flat if t.type == "html_inline"} <= {"<sup>", "</sup>", "<sub>", "</sub>"}
        columns, width = 0, 0
        for t in tokens:
            if t.type == "thead_open":
                width = 0
            elif t.type == "th_open":
                width += 1
            elif t.type == "tr_open":
                columns = 0
            elif t.type == "td_open":
                columns += 1
            elif t.type == "tr_close" and columns:
                assert columns == width
        text = "".join(t.content for t in flat if t.type == "text")
        assert "alert(1)" in text or "HYPERLINK" in text or path.name == "attackers.md" or len(text) > 50


# ------------------------------------------------------------------------------------------------------------------ LaTeX
#: All commands that our tables use.
COMMANDS = {
    "usepackage", "begin", "end", "centering", "caption", "label", "resizebox", "textwidth", "toprule", "midrule", "bottomrule", "cmidrule", "multicolumn", "addlinespace", "emph", "textbf",
    "textsuperscript", "par", "smallskip", "footnotesize", "scriptsize", "small", "setlength", "tabcolsep", "mathrm", "dagger", "ensuremath", "leq", "geq", "uparrow", "downarrow", "infty", "ldots",
    "times", "pm", "sigma", "approx", "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl", "Delta",
}  # fmt: skip


def test_latex_runs_our_commands_alone(hostile: Path, out: Path) -> None:
    files = _files(hostile, out, ".tex")
    assert len(files) >= 2
    for path in files:
        text = re.sub(r"(?m)^%.*$", "", path.read_text("utf-8"))
        assert set(re.findall(r"\\([A-Za-z]+)", text)) <= COMMANDS
        bare = re.sub(r"\\[^A-Za-z]", "", text)
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"(?m)(?<!\\)(?:#|%(?!$))", text)  # one at the end of a line of ours joins it to the next
        assert not [c for c in CONTROLS if c in text.replace("\t", "")]


def test_latex_compiles_where_there_is_one(out: Path, tmp_path: Path) -> None:
    engine = shutil.which("xelatex") or shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no LaTeX here: apt-get install texlive-latex-extra")
    text = (out / "compared" / "comparison.tex").read_text("utf-8")
    (tmp_path / "x.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{textcomp,booktabs,graphicx}\\begin{document}\n"
        + text
        + "\n\\end{document}\n",
        "utf-8",
    )
    done = subprocess.run(
        [engine, "-interaction=nonstopmode", "-no-shell-escape", "x.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (tmp_path / "x.pdf").is_file(), done.stdout[-2000:]


# -------------------------------------------------------------------------------------------------- XML: JUnit and figures
def test_junit_is_read_back(hostile: Path, out: Path) -> None:
    root = ElementTree.parse(out / "gate.xml").getroot()
    names = {plain(m["label"]) for m in json.loads((hostile / "run.json").read_text("utf-8"))["methods"]}
    suites = [s.get("name") for s in root.iter("testsuite")]
    assert len(suites) == 4 and set(suites) <= names
    assert {e.tag for e in root.iter()} <= {
        "testsuites",
        "testsuite",
        "testcase",
        "properties",
        "property",
        "failure",
        "error",
        "system-out",
    }


def test_figures_are_drawings_alone(hostile: Path, out: Path) -> None:
    files = _files(hostile, out, ".svg")
    assert len(files) >= 4
    for path in files:
        for element in ElementTree.parse(path).iter():
            tag = element.tag.rpartition("}")[2]
            assert tag not in ("script", "foreignObject", "a", "iframe", "animate", "set"), (path.name, tag)
            for name, value in element.attrib.items():
                assert not name.lower().rpartition("}")[2].startswith("on")
                assert not name.endswith("href") or value.startswith(("#", "data:image/png")), (path.name, value)


@pytest.mark.parametrize("text", HOSTILE)
def test_any_name_can_be_drawn(text: str) -> None:
    """Also one that would be a formula to matplotlib."""
    from deidbench.report.figures import canvas, style

    with style():
        figure, ax = canvas(2, 1)
        ax.text(0.5, 0.5, plain(text))
        figure.savefig(io.BytesIO(), format="svg")


# --------------------------------------------------------------------------------------------------------------- terminal
def _screen(show: Callable[[Any], object], **options: Any) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    show(Console(file=buffer, width=120, **options))
    return buffer.getvalue()


def test_terminals_take_no_orders(hostile: Path) -> None:
    from deidbench import compare, gate
    from deidbench.report import comparison, print_summary
    from deidbench.report import gate as gate_report

    run = read_run(hostile)
    names = [m["label"] for m in run.record["methods"] if not m["control"]]
    found = compare.compare([run], only=names[:3], metrics=["quality.ssim_face"])
    answer = gate.gate(run, run, gate.load_margins(), methods=names[:4])
    for show in (
        lambda c: print_summary(run, c),
        lambda c: comparison.show(found, c, whole=True),
        lambda c: gate_report.show(answer, c),
    ):
        text = _screen(show)
        assert "\x1b" not in text and not [c for c in (*CONTROLS, *TURNING) if c in text]
        # with colours: those of ours alone, no titles, links or anything else than "select graphic rendition"
        coloured = _screen(show, force_terminal=True, color_system="truecolor")
        assert not re.sub(r"\x1b\[[0-9;]*m", "", coloured).count("\x1b")
    assert "[bold red]" not in HOSTILE[0]


def test_errors_take_no_orders_either(tmp_path: Path) -> None:
    import sys

    data = tmp_path / "data"
    data.mkdir()
    (data / "manifest.csv").write_text("path,subject_id\nx\x1b]0;owned\x07\u202e.png,anna\n", "utf-8")
    done = subprocess.run([sys.executable, "-m", "deidbench.cli", "run", "demo", "--data", str(data), "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2 and "not there" in done.stderr
    assert not [c for c in (*CONTROLS, *TURNING) if c in done.stderr + done.stdout]


@pytest.mark.parametrize("text", HOSTILE)
def test_plain(text: str) -> None:
    said = plain(text)
    assert "\n" not in said and plain(said) == said
    assert not [
        c for c in said if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in TURNING or ord(c) & 0xFFFE == 0xFFFE
    ]
    ElementTree.fromstring(ElementTree.tostring(ElementTree.Element("x", name=said), "unicode"))
