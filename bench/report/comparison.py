"""A comparison on paper: one table per figure, a long table with everything, verdicts, for people and for machines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deidbench.compare import Comparison, Result
from deidbench.report.many import Compared, Difference
from deidbench.report.tables import csv_long, md, tex, to_console
from deidbench.report.view import listing, number, plain, slug, unit_sign, write_atomically
from deidbench.scored import Question
from deidbench.words import amount, p_text, short, spoken, title, whose

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

#: Figures of which differences are drawn, and of how many methods at the most.
DRAWN = (
    "reid.worst_rank1",
    "emotion.uar",
    "attributes.mean_balanced_accuracy",
    "attributes.mean_retention",
    "geometry.nme_facemesh",
    "quality.ssim_face",
    "distance.cosine",
)
MOST_SHEETS = 4
#: With fewer persons a bootstrap draws too little of what there could be.
FEW = 10
HEAD = ("A", "B", "A's", "B's", "A − B", "CI", "p", "p_Holm", "effect", "better")


def heading(r: Result) -> str:
    """What a table of one figure is called."""
    said = title(r.metric)
    convention = r.convention.replace("_", " ") if r.convention not in ("", "headline") else ""
    more = [x for x in (whose(r), r.comparison if r.metric.startswith("emotion.") else "", r.label, convention) if x]
    sign = unit_sign(r.unit)
    arrow = {True: " ↑", False: " ↓", None: ""}[r.higher_is_better]
    return plain(said + (f", {', '.join(more)}" if more else "") + (f" [{sign}]" if sign else "") + arrow)


def doubt(r: Result) -> str:
    """A dagger where one of the two figures is not trusted."""
    return "" if r.trusted else "†"


def cells(r: Result) -> tuple[str, ...]:
    """The line of one pair, in the order of :data:`HEAD`."""
    values = ["–" if v is None else number(v, r.unit) for v in (r.value_a, r.value_b)]
    if r.reason:
        return (r.a, r.b, *values, "–", "", "", "", "", r.reason + ("" if r.trusted else " (not trusted)"))
    if r.ratio is not None:
        difference = f"×{r.ratio:.2f}"
        ends = "" if r.lo is None or r.hi is None else f"[{math.exp(r.lo):.2f}, {math.exp(r.hi):.2f}]"
    else:
        difference = "=" if r.identical else amount(r.difference or 0.0, r.unit, signed=True)
        ends = "" if r.lo is None or r.hi is None else f"[{amount(r.lo, r.unit)}, {amount(r.hi, r.unit)}]"
    effect = "" if r.effect is None or r.ratio is not None else f"{r.effect:+.2f}".replace("-", "−")
    better = {"a": r.a, "b": r.b}.get(r.better, "identical" if r.identical else "")
    ps = ["" if p is None else p_text(p).removeprefix("= ") for p in (r.p, r.p_holm)]
    better += " most persons differ the other way" if r.opposed else ""
    return (r.a, r.b, *values, difference, ends, *ps, effect, (better + ("" if r.trusted else " (not trusted)")).strip())


def frame(comparison: Comparison) -> pd.DataFrame:
    """All results, one line each, every column of :class:`~deidbench.compare.Result`."""
    import pandas as pd

    return pd.DataFrame([asdict(r) for r in comparison.results], columns=list(Result.__dataclass_fields__))


def by_question(comparison: Comparison) -> list[tuple[Question, list[Result]]]:
    """Results of each figure, in the order in which figures were asked for."""
    groups: dict[Question, list[Result]] = {q: [] for q in comparison.questions}
    for r in comparison.results:
        if r.question in groups:
            groups[r.question].append(r)
    return [(q, rs) for q, rs in groups.items() if rs]


def wide(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """One line per pair, one column per figure: the difference, with * where p_Holm is below alpha."""
    questions = by_question(comparison)
    pairs = list(dict.fromkeys((r.a, r.b) for r in comparison.results))
    at = {(q, r.a, r.b): r for q, rs in questions for r in rs}
    lines = []
    for a, b in pairs:
        line = [a, b]
        for q, _ in questions:
            r = at.get((q, a, b))
            line.append("" if r is None else cells(r)[4] + "*" * r.shown(comparison.alpha) + doubt(r))
        lines.append(line)
    return ["A", "B", *(heading(rs[0]) for _, rs in questions)], lines


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of the tables."""
    level = f"{100 * comparison.level:g} %"
    tests = sorted({f"{r.test.split(' over ')[0]}" for r in comparison.results if r.test})
    out = [
        f"A − B with its paired {level} interval over persons (not adjusted for how many there are); rates in points.  p_Holm: "
        "adjusted for all tests of the same metric in this comparison; “better” where it is below "
        f"{comparison.alpha:g}.  No difference shown does not mean that there is none: deidbench gate tests for that.",
        f"Tests: {'; '.join(tests)}." if tests else "No test was made.",
        "Effect: Cohen's h for rates on images, rank-biserial r of the persons for means.",
    ]
    if not all(r.trusted for r in comparison.results):
        out.append(
            "† or “not trusted”: the attacker, recogniser or classifier failed its own check in one of the two; such a pair counts for nobody "
            "in what is summed up."
        )
    few = sorted({r.persons for r in comparison.results if 0 < r.persons < FEW and r.lo is not None})
    if few:
        out.append(
            f"Some figures rest on {few[0]} persons only: intervals over fewer than {FEW} are too narrow, read them as a hint."
        )
    if any(r.opposed for r in comparison.results):
        out.append("Where most persons differ the one way and the mean over images the other, nobody is called better.")
    if comparison.left_out:
        n = len(comparison.left_out)
        out.append(f"{n} pair{'s' * (n != 1)} could not be compared in a figure; the first: {comparison.left_out[0]}.")
    return [*out, *(f"Remark: {r}." for r in comparison.remarks)]


def markdown(comparison: Comparison) -> str:
    """Verdicts and tables as GitHub-flavoured Markdown."""
    out = [f"# Comparison of {md(', '.join(comparison.runs))}", ""]
    if comparison.forced:
        out += ["> **These runs differ, and were compared all the same (`--force`):**", ">"]
        out += [f"> - {md(d)}" for d in comparison.forced] + [""]
    for _, results in by_question(comparison):
        out += [
            f"## {md(heading(results[0]))}",
            "",
            "| " + " | ".join(md(h) for h in HEAD) + " |",
            "|:---|:---|" + "---:|" * 7 + ":---|",
        ]
        for r in results:
            line = [md(c) for c in cells(r)]
            if r.better:
                line[-1] = f"**{line[-1]}**"
            out.append("| " + " | ".join(line) + " |")
        out += ["", *(f"- {md(r.verdict)}" for r in results if r.better or r.identical), ""]
    out += [f"- {md(n)}" for n in notes(comparison)]
    return "\n".join(out) + "\n"


def latex(comparison: Comparison) -> str:
    """A booktabs table per figure; the better method's name in bold."""
    out = ["% Made by deidbench.  Needs: \\usepackage[T1]{fontenc} \\usepackage{textcomp,booktabs}"]
    for _, results in by_question(comparison):
        q = results[0]
        out += [
            "\\begin{table}[t]", "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
            f"\\caption{{{tex(heading(q))}: paired differences.  {tex(notes(comparison)[0])}"
            + ("" if all(r.trusted for r in results) else "  $^\\dagger$ Not trusted: a check of the attacker or classifier failed.")
            + "}",
            "\\begin{tabular}{@{}llrrrrr@{}}", "\\toprule",
            "A & B & A & B & A $-$ B & \\multicolumn{1}{c}{CI} & $p_\\mathrm{Holm}$ \\\\", "\\midrule",
        ]  # fmt: skip
        for r in results:
            c = cells(r)
            names = [f"\\textbf{{{tex(n)}}}" if side == r.better else tex(n) for side, n in (("a", r.a), ("b", r.b))]
            p = tex(c[7]).replace("\\textless{}", "$<$")
            dagger = "" if r.trusted else "$^\\dagger$"
            start = "{}" if names[0].startswith(("[", "*")) else ""  # or the line break before it takes them for its own
            out.append(start + " & ".join([*names, *(tex(x) for x in c[2:4]), tex(c[4]) + dagger, tex(c[5]), p]) + r" \\")
        out += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(out)


def drawings(comparison: Comparison) -> list[tuple[str, list[Compared], str]]:
    """What is drawn: (name, figures, reference).  One sheet against the reference, else one per method, the others against it."""
    names = [comparison.reference] if comparison.reference else [c.name for c in comparison.contestants]
    if len(names) > MOST_SHEETS:
        return []
    out = []
    variants = Counter(q.metric for q, _ in by_question(comparison))
    taken: set[str] = set()
    for name in names:
        file = "differences" if comparison.reference else f"differences-{slug(name)}"
        while file in taken:  # names that differ in nothing that a file name keeps
            file += "-2"
        taken.add(file)
        metrics = []
        for _, results in by_question(comparison):
            r0 = results[0]
            found = [d for r in results if name in (r.a, r.b) and r.ratio is None and (d := _against(r, name)) is not None]
            if found and r0.metric in DRAWN:
                who = r0.recognizer if variants[r0.metric] > 1 else ""
                unit = r0.unit if len(r0.unit) < 10 else ""
                metrics.append(Compared(short(r0.metric, who, r0.label), unit, found, r0.higher_is_better))
        if metrics:
            out.append((file, metrics, name))
    return out


def _against(r: Result, name: str) -> Difference | None:
    """The result seen from the other method: it minus ``name``."""
    turned = r.b != name
    sign, label = (-1.0, r.b) if turned else (1.0, r.a)
    better = {"": None, "a": "B" if turned else "A", "b": "A" if turned else "B"}[r.better if r.trusted else ""]
    if r.reason or r.difference is None:
        return Difference(label, None, reason=r.reason)
    lo, hi = (r.lo, r.hi) if not turned or r.lo is None or r.hi is None else (-r.hi, -r.lo)
    return Difference(label, sign * r.difference, lo, hi, r.p_holm, better)  # type: ignore[arg-type]


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """comparison.{json,csv,parquet,md,tex,html}, comparison-wide.csv and figures in ``folder``, each whole or not at all."""
    import io

    import pandas as pd

    table = frame(comparison)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    head, lines = wide(comparison)
    written = [
        write_atomically(folder / "comparison.json", json.dumps(comparison.record(), indent=1)),
        write_atomically(folder / "comparison.csv", csv_long(table)),
        write_atomically(folder / "comparison-wide.csv", csv_long(pd.DataFrame(lines, columns=head))),
        write_atomically(folder / "comparison.parquet", buffer.getvalue()),
        write_atomically(folder / "comparison.md", markdown(comparison)),
        write_atomically(folder / "comparison.tex", latex(comparison)),
    ]
    from deidbench.report.figures import COLUMN, save, style
    from deidbench.report.many import differences

    pictures = []
    for name, metrics, reference in drawings(comparison):
        for width, end in ((COLUMN, ""), (2 * COLUMN, "-wide")):
            with style():
                drawing = differences(metrics, reference, width=width)
                if isinstance(drawing, str):
                    continue
                files = save(drawing, folder / "figures", name + end)
            written += files
            if end:
                drawn = [r for r in comparison.results if r.metric in DRAWN and reference in (r.a, r.b)]
                hollow = "" if all(r.trusted for r in drawn) else " Hollow too: what is not trusted."
                pictures.append((reference, drawing.caption + hollow, drawing.alt, files))
    from deidbench.report.comparison_page import page

    written.append(write_atomically(folder / "comparison.html", page(comparison, pictures)))
    return written


def show(comparison: Comparison, console: Console, *, whole: bool = False, most: int = 12) -> None:
    """Verdicts on the terminal, grouped by figure; a long group shows what is significant first.

    whole: also those of which there are several (an attacker and recogniser each); they are counted otherwise.
    """
    from rich.text import Text

    def say(text: str, style: str = "") -> None:
        console.print(Text(to_console(plain(text), console.encoding), style=style), soft_wrap=False)

    for d in comparison.forced:
        say(f"! compared although {d}", "yellow")
    groups = by_question(comparison)
    many = len(comparison.contestants) > 3 and not comparison.reference
    variants = Counter(q.metric for q, _ in groups)
    folded: dict[str, list[Result]] = {}
    for q, results in groups:
        if variants[q.metric] > 1 and not whole:
            folded.setdefault(q.metric, []).extend(results)
            continue
        say(heading(results[0]), "bold")
        if many and not whole:
            best = unbeaten(results, [c.name for c in comparison.contestants])
            differ = sum(bool(r.better) for r in results)
            said = f"no other is shown to be better than {listing(best, 4)}" if best else "no difference is shown"
            if doubted := sum(not r.trusted for r in results):
                said += f"; {doubted} pairs are not trusted"
            say(f"  {said}; {differ} of {len(results)} pairs differ (--metric {results[0].metric} shows them)")
            continue
        ordered = sorted(results, key=lambda r: (not r.better, bool(r.reason)))
        for r in ordered[:most]:
            sign = "=" if r.identical else "?" if r.reason else "●" if r.better else "○"
            say(f"  {sign} {r.verdict}", "" if r.better else "dim")
        if len(ordered) > most:
            left = len(ordered) - most
            say(f"  ... and {left} more pair{'s' * (left != 1)} (--out FOLDER writes all)", "dim")
    for metric, results in folded.items():
        shown = sum(bool(r.better) for r in results)
        say(
            f"{title(metric)}: {variants[metric]} variants, {shown} of {len(results)} pairs differ (--metric {metric} shows them)",
            "dim",
        )
    for remark in comparison.remarks:
        if not remark.startswith("compared although"):
            say(f"note: {remark}", "dim")


def unbeaten(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    """Methods than which no other is shown to be better, by figures that are trusted; empty where no pair differs."""
    results = [r for r in results if r.trusted]
    losers = {r.b if r.better == "a" else r.a for r in results if r.better}
    there = {n for r in results if not r.reason for n in (r.a, r.b)}
    return [n for n in names if n in there - losers] if losers else []


def matrix(results: Sequence[Result], names: Sequence[str]) -> list[list[str]]:
    """Who beats whom in one figure: "better", "worse", "=" (identical), "" (nothing shown) of the line's over the column's method.

    A dagger follows where one of the two is not trusted.
    """
    at = {(r.a, r.b): r for r in results}
    out = []
    for x in names:
        line = []
        for y in names:
            r, turned = (at[x, y], False) if (x, y) in at else (at.get((y, x)), True)
            if r is None or r.reason:
                line.append("")
            elif r.identical:
                line.append("=" + doubt(r))
            else:
                said = {"": "", "a": "worse" if turned else "better", "b": "better" if turned else "worse"}[r.better]
                line.append(said + doubt(r))
        out.append(line)
    return out


__all__ = [
    "by_question",
    "cells",
    "frame",
    "heading",
    "latex",
    "markdown",
    "matrix",
    "notes",
    "show",
    "spoken",
    "wide",
    "write",
]
