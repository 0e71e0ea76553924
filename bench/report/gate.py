"""The gate's answer for a terminal, a pull request, and a CI server."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from deidbench.gate import Gate, Verdict
from deidbench.report.tables import md, to_console
from deidbench.report.view import number, plain

if TYPE_CHECKING:
    from rich.console import Console

_SIGNS = {"pass": "✔", "fail": "✘", "inconclusive": "?"}
_WORDS = {"pass": "passed", "fail": "**failed**", "inconclusive": "undecided"}
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def _values(v: Verdict) -> tuple[str, str]:
    return tuple("–" if x is None else number(x, v.unit) for x in (v.baseline, v.candidate))  # type: ignore[return-value]


def show(gate: Gate, console: Console) -> None:
    """A line per guarded figure, then the answer."""
    from rich.text import Text

    def say(text: str, style: str = "") -> None:
        console.print(Text(to_console(plain(text), console.encoding), style=style))

    for d in gate.forced:
        say(f"! gated although {d}", "yellow")
    wide = max((len(v.name) for v in gate.verdicts), default=0)
    for method in dict.fromkeys(v.method for v in gate.verdicts):
        say(method, "bold")
        for v in gate.verdicts:
            if v.method == method:
                old, new = _values(v)
                say(f"{_SIGNS[v.outcome]} {v.name:<{wide}}  {old} → {new}  {v.words}", _STYLES[v.outcome])
    for r in gate.remarks:
        say(f"note: {r}", "dim")
    say(gate.sentence, _STYLES[str(gate.outcome)])


def markdown(gate: Gate) -> str:
    """A summary for a pull request: what is not passed first."""
    out = [f"### deidbench gate: {_WORDS[str(gate.outcome)].strip('*')}", "", f"{md(gate.sentence)}.", ""]
    if gate.forced:
        out += [f"> **Gated although {md(d)}** (`--force`)" for d in gate.forced] + [""]
    out += ["| | method | figure | baseline | candidate | change | |", "|:-:|:---|:---|---:|---:|:---|:---|"]
    order = ("fail", "inconclusive", "pass")
    for v in sorted(gate.verdicts, key=lambda v: order.index(v.outcome)):
        old, new = _values(v)
        out.append(
            f"| {_SIGNS[v.outcome]} | {md(v.method)} | {md(v.name)} | {old} | {new} | {md(v.words)} | {_WORDS[v.outcome]} |"
        )
    out += [
        "",
        f"<sub>Paired differences over the same persons, turned so that positive is worse; one-sided bounds at {100 * (1 - gate.alpha):g} % "
        "against margins that were fixed beforehand. Undecided is no pass.</sub>",
        *(f"<sub>Note: {md(r)}</sub>" for r in gate.remarks),
    ]
    return "\n".join(out) + "\n"


def junit(gate: Gate) -> str:
    """JUnit XML: a suite per method, a case per figure; worse is a failure, undecided an error."""
    root = ElementTree.Element("testsuites", name="deidbench gate", tests=str(len(gate.verdicts)))
    root.set("failures", str(len(gate.of("fail"))))
    root.set("errors", str(len(gate.of("inconclusive"))))
    for method in dict.fromkeys(v.method for v in gate.verdicts):
        mine = [v for v in gate.verdicts if v.method == method]
        suite = ElementTree.SubElement(root, "testsuite", name=plain(method), tests=str(len(mine)))
        suite.set("failures", str(sum(v.outcome == "fail" for v in mine)))
        suite.set("errors", str(sum(v.outcome == "inconclusive" for v in mine)))
        suite.set("skipped", "0")
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (
            ("baseline", gate.baseline),
            ("candidate", gate.candidate),
            ("alpha", f"{gate.alpha:g}"),
            *(("forced", d) for d in gate.forced),
        ):
            ElementTree.SubElement(properties, "property", name=name, value=plain(value))
        times = Counter(v.name for v in mine)
        for v in mine:
            name = v.name if times[v.name] == 1 else f"{v.name}, margin {'±' if v.unchanged else ''}{v.margin:g}"
            case = ElementTree.SubElement(suite, "testcase", classname=f"deidbench.{plain(method)}", name=plain(name), time="0")
            if v.outcome != "pass":
                kind = "failure" if v.outcome == "fail" else "error"
                problem = ElementTree.SubElement(case, kind, message=plain(v.words), type=v.outcome)
                problem.text = plain(f"{v.reason}; baseline {v.baseline}, candidate {v.candidate}")
            else:
                ElementTree.SubElement(case, "system-out").text = plain(v.words)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"
