"""Ranks over many data sets on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from deidbench.across import Across, Ranked
from deidbench.report.tables import csv_long, md, to_console
from deidbench.report.view import number, plain, slug, write_atomically
from deidbench.words import p_text, title

if TYPE_CHECKING:
    from rich.console import Console


def heading(r: Ranked) -> str:
    q = r.question
    more = [x for x in (q.attacker, q.recognizer, q.label) if x]
    return plain(title(q.metric) + (f", {', '.join(more)}" if more else "") + (" ↑" if r.higher_is_better else " ↓"))


def sentence(r: Ranked) -> str:
    """The finding in words."""
    k = r.ranking
    doubt = f"; not trusted on {', '.join(r.untrusted)}" if r.untrusted else ""
    if k.reason:
        return k.reason + doubt
    order = sorted(range(len(k.names)), key=lambda i: k.ranks[i])
    ranks = ", ".join(f"{k.names[i]} {k.ranks[i]:.2f}" for i in order)
    pairs = [f"{p.first} and {p.second}" for p in k.pairs if p.different]
    told = f"told apart: {'; '.join(pairs)}" if pairs else "no two methods are told apart"
    notes = [k.note] if k.note else []
    notes += [f"left out: {', '.join(k.left_out)}"] if k.left_out else []
    return (
        f"average ranks over {k.n} data sets: {ranks}; p {p_text(k.p)} ({k.method}); {told}"
        + "".join(f"; {n}" for n in notes)
        + doubt
    )


def show(found: Across, console: Console) -> None:
    from rich.text import Text

    for d in found.forced:
        console.print(Text(to_console(f"! ranked although {plain(d)}", console.encoding), style="yellow"))
    for r in found.ranked:
        console.print(Text(to_console(heading(r), console.encoding), style="bold"))
        console.print(Text(to_console(f"  {plain(sentence(r))}", console.encoding)))
    for remark in found.remarks:
        console.print(Text(to_console(f"note: {plain(remark)}", console.encoding), style="dim"))


def markdown(found: Across) -> str:
    out = [f"# {len(found.methods)} methods on {len(found.datasets)} data sets", ""]
    out += [f"> **Ranked although {md(d)}** (`--force`)" for d in found.forced]
    for r in found.ranked:
        out += ["", f"## {md(heading(r))}", "", "| data set | " + " | ".join(md(m) for m in found.methods) + " |"]
        out.append("|:---|" + "---:|" * len(found.methods))
        for name, line in zip(found.datasets, r.scores, strict=True):
            cells = ["–" if v is None else number(v, r.unit) for v in line]
            out.append(f"| {md(name)} | {' | '.join(cells)} |")
        ranks = dict(zip(r.ranking.names, r.ranking.ranks, strict=False))
        out.append("| *average rank* | " + " | ".join(f"{ranks[m]:.2f}" if m in ranks else "–" for m in found.methods) + " |")
        out += ["", md(sentence(r)) + "."]
    out += ["", *(f"- Remark: {md(r)}." for r in found.remarks)] if found.remarks else []
    return "\n".join(out) + "\n"


def write(found: Across, folder: Path) -> list[Path]:
    """across.{json,md,csv} and a critical-difference diagram per figure."""
    import pandas as pd

    from deidbench.report.figures import save, style
    from deidbench.report.many import critical_difference

    lines = [
        {**r.question._asdict(), "dataset": d, "method": m, "value": v}
        for r in found.ranked
        for d, line in zip(found.datasets, r.scores, strict=True)
        for m, v in zip(found.methods, line, strict=True)
    ]
    written = [
        write_atomically(folder / "across.json", json.dumps(found.record(), indent=1)),
        write_atomically(folder / "across.md", markdown(found)),
        write_atomically(folder / "across.csv", csv_long(pd.DataFrame(lines))),
    ]
    with style():
        for r in found.ranked:
            drawing = critical_difference(r.ranking, what=heading(r).rstrip(" ↑↓"))
            if not isinstance(drawing, str):
                name = "-".join(
                    x
                    for x in (
                        "ranks",
                        slug(r.question.metric),
                        *(slug(x) for x in (r.question.attacker, r.question.recognizer, r.question.label) if x),
                    )
                )
                written += save(drawing, folder / "figures", name)
    return written
