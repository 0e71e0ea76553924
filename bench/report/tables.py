"""Rows to tables: one line per method with intervals, footnotes for everything that a bare number would hide.

:func:`main_table` and :func:`detail_tables` build a :class:`Table`; the writers turn it into terminal output, CSV,
Markdown and LaTeX.  Names that come from suites and plug-ins are escaped by each writer for its own format.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from deidbench.records import Row
from deidbench.report.view import (
    CONVENTION_WORDS,
    RANK1,
    SSIM,
    WORST,
    Key,
    Method,
    View,
    arrow,
    attained,
    bound,
    counted,
    interval,
    level,
    listing,
    number,
    percent,
    plain,
    spoken,
    unit_sign,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

#: Quantities of the main table, in order; those before the counts that a run does not have are left out.
MAIN = (WORST, RANK1, "reid.eer", "reid.tmr@fmr=0.01", "reid.fta", "reid.withheld", SSIM, "throughput.faces_per_s")

#: Which columns go first where there is no room: quantities at the end of the tuple are dropped first.
PRIORITY = (
    WORST,
    SSIM,
    "reid.fta",
    RANK1,
    "counts",
    "throughput.faces_per_s",
    "reid.eer",
    "reid.withheld",
    "reid.tmr@fmr=0.01",
)

_SUPERSCRIPT = dict(zip("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))


_REALISED = "“at x”: the FMR in % that the fixed threshold really gave."
_WHOSE = "In parentheses: whose figure the worst case is; an untrusted recogniser is no candidate."


@dataclass(frozen=True)
class Cell:
    """One cell.  text: the figure or ``-``; ci: its interval; extra: what belongs to it (named recogniser, realised FMR)."""

    text: str
    ci: str = ""
    extra: str = ""
    marks: tuple[str, ...] = ()
    value: float | None = None
    row: Row | None = None

    @property
    def words(self) -> str:
        """The cell in one line, without marks."""
        return " ".join(part for part in (self.text, self.ci, self.extra) if part)


@dataclass(frozen=True)
class Column:
    """One column.  group: the quantity; sub: which recogniser, attacker, convention; name: for machines (CSV)."""

    name: str
    metric: str
    group: str
    sub: str = ""
    unit: str = ""
    better: bool | None = None
    title: str = ""

    @property
    def heading(self) -> str:
        """Quantity, unit and the arrow to the better side: ``Rank-1 [%] ↓``."""
        sign = f" [{self.unit}]" if self.unit else ""
        return f"{self.group}{sign}{' ' + arrow(self.better) if self.better is not None else ''}"


@dataclass(frozen=True)
class Line:
    method: Method
    marks: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Columns, one line per method, the line of chance (None where no row states one) and the notes below."""

    title: str
    dataset: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    chance: tuple[str, ...] | None = None
    footnotes: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    caption: str = ""

    def only(self, columns: Sequence[int]) -> Table:
        """The table with some of its columns, and only the footnotes that are still referred to."""
        lines = tuple(Line(line.method, line.marks, tuple(line.cells[i] for i in columns)) for line in self.lines)
        used = {m for line in lines for m in line.marks} | {m for line in lines for c in line.cells for m in c.marks}
        rows = [c.row for line in lines for c in line.cells if c.row is not None]
        fixed, worst = any(r.realised_fmr is not None for r in rows), any(r.metric == WORST for r in rows)
        notes = [n for n in self.notes if (fixed or n != _REALISED) and (worst or n != _WHOSE)]
        return Table(
            self.title,
            self.dataset,
            tuple(self.columns[i] for i in columns),
            lines,
            tuple(self.chance[i] for i in columns) if self.chance else None,
            tuple(f for f in self.footnotes if f[0] in used),
            tuple(notes),
            self.caption,
        )


@dataclass
class _Notes:
    """Footnotes in order of first use; the same text keeps its letter."""

    letters: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        text = plain(text)
        if text not in self.letters:
            n, alphabet = len(self.letters), "abcdefghijklmnoprstuvwxyz"  # no q: it has no superscript
            self.letters[text] = (alphabet[n // len(alphabet) - 1] if n >= len(alphabet) else "") + alphabet[n % len(alphabet)]
        return self.letters[text]

    def all(self) -> tuple[tuple[str, str], ...]:
        return tuple((mark, text) for text, mark in self.letters.items())


# --------------------------------------------------------------------------------------------------------------- build
def _cell(row: Row | None, notes: _Notes, named: bool, attackers: int, recognizers: Sequence[str]) -> Cell:
    """A figure as a cell.  named: say whose figure it is, out of so many attackers and these recognisers."""
    if row is None:
        return Cell("-", marks=(notes.mark("not reported by this run"),))
    marks: list[str] = []
    extra = ""
    if named and row.value is not None:
        pairs = attained(row)
        names = [", ".join(p for p in ((a if attackers > 1 else ""), r) if p) for a, r in pairs]
        every = (
            len(pairs) > 1 and {r for _, r in pairs} == set(recognizers) and len(pairs) == len(recognizers) * max(attackers, 1)
        )
        extra = "(all)" if every else f"({' = '.join(names)})" if any(names) else ""
    if row.realised_fmr is not None:
        extra = f"{extra} at {number(row.realised_fmr, 'rate')}".strip()
    if not row.trusted:
        why = row.note or "the attacker failed its own sanity check on clear images"
        marks.append(notes.mark(why if why.startswith("untrusted") else f"untrusted: {why}"))
    else:
        # What the worst case was attained by stands in the cell, what taking a maximum adds stands below the table.
        said = "; ".join(p for p in row.note.split("; ") if p and not p.startswith(("attained by", "taking the largest")))
        if said:
            marks.append(notes.mark(said))
    if row.value is None:
        marks.insert(0, notes.mark(row.reason or "no value, and the run does not say why"))
        return Cell("-", marks=tuple(marks), row=row)
    if row.lo is None and row.hi is None:
        if row.ci_reason:
            marks.append(notes.mark(f"no interval: {row.ci_reason}"))
    elif side := bound(row):
        why = row.ci_reason or row.ci_method
        sided = f"one-sided {level(row)} bound".replace("  ", " ")
        text = (
            why.replace("one-sided bound", sided)
            if "one-sided bound" in why
            else f"{sided} ({side}){': ' + why if why else ''}"
        )
        marks.append(notes.mark(text))
    return Cell(number(row.value, row.unit), interval(row), extra, tuple(marks), row.value, row)


def _sub(view: View, k: Key) -> str:
    parts = []
    if k.attacker and len(view.attackers) > 1:
        parts.append(k.attacker)
    if k.recognizer:
        parts.append(k.recognizer)
    if k.convention not in ("", "headline"):
        parts.append(spoken(k.convention))
    if k.comparison and len(view.comparisons) > 1:
        parts.append(k.comparison)
    return ", ".join(parts)


def _column(view: View, dataset: str, k: Key, sub: str, name: str) -> Column:
    sample = next((r for r in view.rows if r.dataset == dataset and r.metric == k.metric), None)
    unit = sample.unit if sample else ""
    group = view.heading(k.metric)
    if sample is not None and any(r.realised_fmr is not None for r in view.rows if r.metric == k.metric):
        group += " (at realised FMR)"
    return Column(
        name,
        k.metric,
        group,
        sub,
        unit_sign(unit),
        sample.higher_is_better if sample else None,
        view.title(k.metric) or k.metric,
    )


def _name(k: Key) -> str:
    parts = [p for p in (k.attacker, k.recognizer, k.convention if k.convention != "headline" else "", k.comparison) if p]
    return f"{k.metric}[{','.join(parts)}]" if parts else k.metric


def _pick(view: View, dataset: str) -> tuple[list[Key], list[Key]]:
    """Keys of the main table and the others."""
    keys = view.keys(dataset)
    main = [k for metric in MAIN for k in keys if k.metric == metric and k.convention in ("", "headline")]
    return main, [k for k in keys if k not in main]


def _chance(view: View, dataset: str, columns: Sequence[tuple[Column, Callable[[str], Row | None]]]) -> tuple[str, ...] | None:
    cells = []
    for _, find in columns:
        rows = [r for m in view.methods if (r := find(m.label)) is not None and r.chance is not None]
        # At a fixed threshold chance is the realised FMR, another one for each method: it stands in the cell.
        rows = [r for r in rows if r.realised_fmr is None]
        low = min((r.chance for r in rows if r.chance is not None), default=None)
        high = max((r.chance for r in rows if r.chance is not None), default=None)
        if low is None or high is None:
            cells.append("")
            continue
        a, b = number(low, rows[0].unit), number(high, rows[0].unit)
        cells.append(a if a == b else f"{a} to {b}")
    return tuple(cells) if any(cells) else None


def _method_marks(view: View, method: Method, images: int, notes: _Notes) -> tuple[str, ...]:
    marks = []
    same = int(method.counts.get("passthrough", 0))
    if same:
        total = method.images
        by_design = " (a control: by design)" if method.control else ": the output is the input, or nearly"
        share = "all images" if same == total else f"{same} of {counted(total, 'image')}"
        marks.append(notes.mark(f"passed through {share}{by_design}"))
    return tuple(marks)


def _general(view: View, dataset: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Notes that belong to the whole table: intervals, conventions, realised FMR, deviations."""
    out = []
    if any(r.lo is not None or r.hi is not None for r in rows):
        levels = sorted({level(r) for r in rows if level(r)})
        out.append(
            f"In brackets: {listing(levels)} interval; persons, not images, are the unit of inference.".replace("  ", " ")
        )
    if any(r.convention == "headline" for r in rows):
        out.append(f"Failures to acquire (FTA): {CONVENTION_WORDS['headline']}.")
    if any(r.realised_fmr is not None for r in rows):
        out.append(_REALISED)
    worst = [r for r in rows if r.metric == WORST and r.value is not None]
    if worst:
        out.append(_WHOSE)
        added = [float(m[2]) for r in worst if (m := re.search(r"taking the largest of (\d+) adds about (-?[0-9.]+)", r.note))]
        if added:
            out.append(
                f"Taking the largest of several adds up to {100 * max(added):.2f} percentage points (bootstrap estimate)."
            )
    out.extend(f"DEVIATION from the protocol: {d}" for d in view.deviations)
    return tuple(out)


def _caption(view: View, dataset: str, lines: Sequence[Line]) -> str:
    protocol = view.entry("protocol")
    sizes = [view.sizes(dataset, line.method) for line in lines]
    images, persons = max((s[0] for s in sizes), default=0), max((s[1] for s in sizes), default=0)
    used = dict.fromkeys(c.row.ci_method for line in lines for c in line.cells if c.row is not None and c.row.ci_method)
    methods = [m for m in used if "one-sided" not in m]  # those have a footnote where they stand
    title = str(view.entry("dataset").get("title") or dataset) if len(view.datasets) == 1 else dataset
    parts = [
        f"{counted(len(lines), 'method')} on {title}: up to {counted(images, 'image')} of {counted(persons, 'person')}",
        f"protocol {protocol.get('name', 'not stated')}"
        + (f", {protocol['comparison']}" if protocol.get("comparison") else "")
        + (f", seed {protocol['seed']}" if protocol.get("seed") is not None else "")
        + (" (with deviations)" if view.deviations else ""),
    ]
    if methods:
        parts.append(f"intervals: {'; '.join(methods)}")
    return plain(". ".join(p[0].upper() + p[1:] for p in parts) + ".")


def main_table(view: View, dataset: str) -> Table:
    """The wide table: worst case, rank-1 per recogniser, EER, TMR, FTA, withheld, SSIM, speed and counts."""
    notes = _Notes()
    picked, _ = _pick(view, dataset)
    columns: list[tuple[Column, Callable[[str], Row | None]]] = []
    worst = [k for k in picked if k.metric == WORST]
    if worst:
        # One worst case per method: which attacker and recogniser it was is part of the finding, not of the column.
        column = _column(view, dataset, worst[0], "", WORST)
        columns.append((column, partial(view.headline, dataset, metric=WORST)))
    for k in picked:
        if k.metric != WORST:
            columns.append((_column(view, dataset, k, _sub(view, k), _name(k)), partial(view.row, dataset, key=k)))
    counts = (
        Column("n_images", "counts", "Images", title="images in the denominator"),
        Column("n_persons", "counts", "Persons", title="persons in the denominator"),
        Column("n_failed", "counts", "Not released", better=None, title="images that the method did not release"),
    )
    lines = []
    for method in view.methods:
        sizes = view.sizes(dataset, method)
        marks = _method_marks(view, method, sizes[0], notes)
        cells = [
            _cell(find(method.label), notes, c.metric == WORST, len(view.attackers), view.recognizers) for c, find in columns
        ]
        cells += [Cell(str(n), value=float(n)) for n in sizes]
        lines.append(Line(method, marks, tuple(cells)))
    chance = _chance(view, dataset, columns)
    rows = [c.row for line in lines for c in line.cells if c.row is not None]
    return Table(
        title="Privacy and utility" + (f", {dataset}" if len(view.datasets) > 1 else ""),
        dataset=dataset,
        columns=(*(c for c, _ in columns), *counts),
        lines=tuple(lines),
        chance=(*chance, "", "", "") if chance else None,
        footnotes=notes.all(),
        notes=_general(view, dataset, rows),
        caption=_caption(view, dataset, lines),
    )


def detail_tables(view: View, dataset: str) -> list[Table]:
    """Everything that the main table leaves out, one table per metric family and convention: nothing that was measured vanishes."""
    _, rest = _pick(view, dataset)
    families: dict[str, list[Key]] = {}
    for k in rest:
        family = k.metric.partition(".")[0] or "other"
        if k.convention not in ("", "headline"):
            family += f", {spoken(k.convention)}"
        families.setdefault(family, []).append(k)
    tables = []
    for family, keys in sorted(families.items(), key=lambda f: "," in f[0]):  # the headline convention first
        notes = _Notes()
        columns = [_column(view, dataset, k, _sub(view, k), _name(k)) for k in keys]
        lines = []
        for method in view.methods:
            cells = tuple(
                _cell(view.of(dataset, method.label).get(k), notes, False, len(view.attackers), view.recognizers) for k in keys
            )
            lines.append(Line(method, (), cells))
        finders = [(c, partial(view.row, dataset, key=k)) for c, k in zip(columns, keys, strict=True)]
        rows = [c.row for line in lines for c in line.cells if c.row is not None]
        tables.append(
            Table(
                title=f"Further figures: {family}" + (f", {dataset}" if len(view.datasets) > 1 else ""),
                dataset=dataset,
                columns=tuple(columns),
                lines=tuple(lines),
                chance=_chance(view, dataset, finders),
                footnotes=notes.all(),
                notes=_general(view, dataset, rows),
                caption=_caption(view, dataset, lines),
            )
        )
    return tables


def groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Neighbouring columns with the same heading: (heading, how many), for a two-level head."""
    out: list[tuple[str, int]] = []
    for c in columns:
        if out and out[-1][0] == c.heading and c.sub:
            out[-1] = (c.heading, out[-1][1] + 1)
        else:
            out.append((c.heading, 1))
    return out


# ------------------------------------------------------------------------------------------------------------ terminal
_ASCII = {
    "↑": "^", "↓": "v", "≤": "<=", "≥": ">=", "−": "-", "–": "-", "—": "-", "…": "...", "“": '"', "”": '"', "’": "'",
    "\u00a0": " ", "\u202f": " ", "∞": "inf", **{v: f"({k})" for k, v in _SUPERSCRIPT.items()},
}  # fmt: skip


def to_console(text: str, encoding: str) -> str:
    """``text`` as a terminal with ``encoding`` can show it."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        text = "".join(_ASCII.get(c, c) for c in text).encode("ascii", "replace").decode()
    return text


def _raised(marks: Sequence[str]) -> str:
    return "⁺".join("".join(_SUPERSCRIPT[c] for c in m) for m in marks) if marks else ""


def fit(table: Table, width: int) -> list[int]:
    """Indices of the columns that fit ``width`` characters, the most important ones kept (at least one)."""

    def size(i: int) -> int:
        c = table.columns[i]
        head = max(len(w) for w in [*_wrap(c.heading), *_wrap(c.sub)] or [""])
        return max(head, *(len(line.cells[i].words) + sum(map(len, line.cells[i].marks)) for line in table.lines), 0) + 3

    def rank(i: int) -> int:
        metric = table.columns[i].metric
        return PRIORITY.index(metric) if metric in PRIORITY else len(PRIORITY)

    if not table.lines:
        return list(range(len(table.columns)))
    left = width - 4 - max(min(len(plain(line.method.label)), _name_width(width)) + len(line.marks) for line in table.lines)
    kept: list[int] = []
    for i in sorted(range(len(table.columns)), key=lambda i: (rank(i), i)):
        if size(i) <= left or not kept:
            kept.append(i)
            left -= size(i)
    return sorted(kept)


def _name_width(width: int) -> int:
    return max(14, min(32, width // 4))


def _wrap(text: str) -> list[str]:
    """A heading in lines of at most about 14 characters."""
    import textwrap

    return textwrap.wrap(text, 14, break_long_words=False, break_on_hyphens=False)


def print_table(table: Table, console: Console) -> None:
    """The table on a terminal, with the columns that its width allows; which were left out is said below."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    from deidbench.report.view import shorten

    def say(text: str, style: str = "") -> Text:
        return Text(to_console(text, console.encoding), style=style)  # Text: names are never read as markup

    kept = fit(table, console.width)
    shown = table.only(kept)
    grid = Grid(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=say(shown.title), title_justify="left", title_style="bold"
    )
    grid.add_column(say("Method"), no_wrap=True, vertical="bottom")
    for c in shown.columns:
        lines = [*_wrap(c.heading), *_wrap(c.sub)]
        grid.add_column(say("\n".join(lines)), justify="right", no_wrap=True)
    seen: str | None = None
    for line in shown.lines:
        if (
            seen is not None
            and line.method.group != seen
            and (line.method.group in _sweeping(shown) or seen in _sweeping(shown))
        ):
            grid.add_section()
        seen = line.method.group
        cells = []
        for cell in line.cells:
            text = say(cell.text, "dim" if cell.row is not None and not cell.row.trusted else "")
            for part in (cell.ci, cell.extra):
                if part:
                    text.append(to_console(f" {part}", console.encoding), "dim")
            text.append(to_console(_raised(cell.marks), console.encoding))
            cells.append(text)
        name = shorten(line.method.label, _name_width(console.width)) + _raised(line.marks)
        grid.add_row(say(name, "italic" if line.method.control else ""), *cells)
    if shown.chance and any(shown.chance):
        grid.add_section()
        grid.add_row(say("chance", "italic"), *(say(c, "italic") for c in shown.chance))
    console.print(grid)
    for mark, why in shown.footnotes:
        console.print(say(f"{_raised((mark,))} {why}", "dim"))
    for note in shown.notes:
        console.print(say(note, "bold yellow" if note.startswith("DEVIATION") else "dim"))
    left = [f"{c.group}{f' ({c.sub})' if c.sub else ''}" for i, c in enumerate(table.columns) if i not in kept]
    if left:
        console.print(say(f"Left out at this width: {', '.join(left)} (all are in tables/ and report.html).", "dim"))


def _sweeping(table: Table) -> set[str]:
    names = [line.method.group for line in table.lines]
    return {n for n in names if names.count(n) > 1}


# ----------------------------------------------------------------------------------------------------------------- CSV
def guard(text: object) -> str:
    """A text for CSV that no spreadsheet takes for a formula (OWASP: CSV injection): a leading apostrophe."""
    s = str(text)
    return f"'{s}" if s.lstrip(" \u00a0")[:1] in ("=", "+", "-", "@") or s[:1] in ("\t", "\r", "\n") else s


def csv_wide(tables: Sequence[Table]) -> str:
    """One line per data set and method; per figure its value and bounds in full precision (rates are 0..1).

    Empty cells are values that could not be computed; the last column says why.
    """
    names: list[str] = []
    for table in tables:
        names += [c.name for c in table.columns if c.name not in names]
    bounded = {c.name for t in tables for c in t.columns if c.metric != "counts"}
    head = ["dataset", "method", "family", "strength", "control"]
    for name in names:
        head += [name, f"{name}:lo", f"{name}:hi"] if name in bounded else [name]
        if name == WORST:
            head += [f"{name}:attained_by"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([guard(h) for h in [*head, "notes"]])
    for table in tables:
        words = dict(table.footnotes)
        for line in table.lines:
            m = line.method
            cells = dict(zip((c.name for c in table.columns), line.cells, strict=True))
            remarks = [words[x] for x in line.marks]
            values: list[str] = []
            for name in names:
                cell = cells.get(name)
                row = cell.row if cell else None
                if name not in bounded:
                    values.append(str(int(cell.value)) if cell and cell.value is not None else "")
                    continue
                values += [
                    repr(v) if v is not None else "" for v in ((row.value, row.lo, row.hi) if row else (None, None, None))
                ]
                if name == WORST:
                    known = row is not None and row.value is not None
                    values.append(guard("; ".join(" with ".join(p) for p in attained(row))) if row and known else "")
                remarks += [f"{name}: {words[x]}" for x in cell.marks] if cell else []
            first = [guard(table.dataset), guard(m.label), guard(m.family), "" if m.strength is None else repr(m.strength)]
            writer.writerow([*first, str(m.control).lower(), *values, guard("; ".join(remarks))])
    return out.getvalue()


def csv_long(rows: pd.DataFrame) -> str:
    """The rows as they are, every column; texts are guarded against formulas, numbers are untouched."""
    safe = rows.copy()
    for name in safe.columns:
        safe[name] = [guard(v) if isinstance(v, str) else v for v in safe[name]]
    safe.columns = [guard(c) for c in safe.columns]
    text: str = safe.to_csv(index=False, lineterminator="\n")
    return text


# ------------------------------------------------------------------------------------------------------------ Markdown
def md(text: object) -> str:
    """``text`` for a Markdown table cell: no pipes, no HTML, no emphasis or links out of a name."""
    s = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#!$])", r"\\\1", s)


def markdown(tables: Sequence[Table]) -> str:
    """GitHub-flavoured Markdown, one section per table."""
    out = []
    for table in tables:
        head = ["Method", *(md(f"{c.heading}{f', {c.sub}' if c.sub else ''}") for c in table.columns)]
        out += [f"## {md(table.title)}", "", md(table.caption), ""]
        out += [f"| {' | '.join(head)} |", f"|:---|{'---:|' * len(table.columns)}"]
        for line in table.lines:
            cells = [md(c.words) + _sup(c.marks) for c in line.cells]
            out.append(f"| {md(line.method.label)}{_sup(line.marks)} | {' | '.join(cells)} |")
        if table.chance:
            out.append(f"| *chance* | {' | '.join(md(c) for c in table.chance)} |")
        out.append("")
        out += [f"- <sup>{mark}</sup> {md(text)}" for mark, text in table.footnotes]
        out += [f"- {'**' + md(text) + '**' if text.startswith('DEVIATION') else md(text)}" for text in table.notes]
        out.append("")
    return "\n".join(out)


def _sup(marks: Sequence[str]) -> str:
    return f"<sup>{','.join(marks)}</sup>" if marks else ""


# --------------------------------------------------------------------------------------------------------------- LaTeX
_TEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "\u00a0": "~", "\u202f": r"\,", "≤": r"\ensuremath{\leq}", "≥": r"\ensuremath{\geq}",
    "↑": r"\ensuremath{\uparrow}", "↓": r"\ensuremath{\downarrow}", "−": r"\ensuremath{-}", "∞": r"\ensuremath{\infty}",
    "…": r"\ldots{}", "–": "--", "—": "---", "“": "``", "”": "''", "×": r"\ensuremath{\times}", "±": r"\ensuremath{\pm}",
    "σ": r"\ensuremath{\sigma}", "\ufffd": "?",
}  # fmt: skip


def tex(text: object) -> str:
    """``text`` with every character that LaTeX would act on written out (also what would start a ligature)."""
    return (
        "".join(_TEX.get(c, c) for c in plain(text)).replace("--", "-{}-")
        if "--" in plain(text)
        else "".join(_TEX.get(c, c) for c in plain(text))
    )


def latex(tables: Sequence[Table]) -> str:
    """A booktabs table per data set.  Needs the packages booktabs, graphicx and (pdfLaTeX) textcomp with T1 fonts."""
    out = [
        "% Made by deidbench.  Needs: \\usepackage[T1]{fontenc} \\usepackage{textcomp,booktabs,graphicx}",
        "% Names in scripts that pdfLaTeX has no fonts for need XeLaTeX or LuaLaTeX.",
    ]
    for table in tables:
        # Counts that are the same for all methods are in the caption.
        kept = [
            i for i, c in enumerate(table.columns)
            if c.metric != "counts" or len({line.cells[i].text for line in table.lines}) > 1
        ]  # fmt: skip
        shown = table.only(kept)
        tops = groups(shown.columns)
        two = any(n > 1 or shown.columns[i].sub for i, (_, n) in _starts(tops))
        out += [
            "\\begin{table*}[t]",
            "\\centering",
            f"\\caption{{{tex(shown.caption)}}}",
            f"\\label{{tab:deidbench-{_label(shown.dataset)}}}",
        ]
        out += ["\\resizebox{\\textwidth}{!}{%", f"\\begin{{tabular}}{{@{{}}l{'r' * len(shown.columns)}@{{}}}}", "\\toprule"]
        first = [f"\\multicolumn{{{n}}}{{c}}{{{tex(text)}}}" if n > 1 else f"{{{tex(text)}}}" for text, n in tops]
        out.append(" & ".join(["Method" if not two else "", *first]) + r" \\")
        if two:
            out.append("".join(f"\\cmidrule(lr){{{i + 2}-{i + n + 1}}}" for i, (_, n) in _starts(tops) if n > 1))
            out.append(" & ".join(["Method", *(f"{{{tex(c.sub)}}}" for c in shown.columns)]) + r" \\")
        out.append("\\midrule")
        seen: str | None = None
        for line in shown.lines:
            if seen is not None and seen != line.method.group and {seen, line.method.group} & _sweeping(shown):
                out.append("\\addlinespace")
            seen = line.method.group
            cells = [_tex_cell(c) for c in line.cells]
            out.append(" & ".join([tex(line.method.label) + _tex_sup(line.marks), *cells]) + r" \\")
        if shown.chance:
            out.append("\\midrule")
            out.append(" & ".join(["\\emph{chance}", *(tex(c) for c in shown.chance)]) + r" \\")
        out += ["\\bottomrule", "\\end{tabular}}"]
        notes = [f"{_tex_sup((mark,))}{tex(text)}." for mark, text in shown.footnotes]
        notes += [f"\\textbf{{{tex(t)}}}" if t.startswith("DEVIATION") else tex(t) for t in shown.notes]
        if notes:
            out += ["\\par\\smallskip", "\\begin{minipage}{\\textwidth}\\footnotesize", "\n".join(notes), "\\end{minipage}"]
        out += ["\\end{table*}", ""]
    return "\n".join(out)


def _starts(tops: Sequence[tuple[str, int]]) -> list[tuple[int, tuple[str, int]]]:
    """Each group with the index of its first column."""
    out, at = [], 0
    for top in tops:
        out.append((at, top))
        at += top[1]
    return out


def _tex_cell(cell: Cell) -> str:
    small = " ".join(tex(p) for p in (cell.ci, cell.extra) if p)
    text = "--" if cell.text == "-" else tex(cell.text)
    return text + (f" {{\\scriptsize {small}}}" if small else "") + _tex_sup(cell.marks)


def _tex_sup(marks: Sequence[str]) -> str:
    return f"\\textsuperscript{{{','.join(marks)}}}" if marks else ""


def _label(text: str) -> str:
    from deidbench.report.view import slug

    return slug(text)


# --------------------------------------------------------------------------------------------------------------- words
def sentence(view: View, dataset: str, method: Method) -> str:
    """The worst case of one method in words, with its interval and counts."""
    row = view.headline(dataset, method.label, WORST) or view.headline(dataset, method.label, RANK1)
    name = plain(method.label)
    if row is None:
        return f"{name}: the run reports no re-identification figure."
    if row.value is None:
        return f"{name}: no re-identification figure ({row.reason or 'the run does not say why'})."
    pairs = attained(row)
    by_attacker: dict[str, list[str]] = {}
    for attacker, recognizer in pairs:
        by_attacker.setdefault(attacker, []).extend([recognizer] if recognizer else [])
    who = "; ".join(" with ".join(p for p in (a, " or ".join(rs)) if p) for a, rs in by_attacker.items() if a or rs)
    return plain(
        f"{name} lets the worst-case attacker{f' ({who})' if who else ''} re-identify {percent(row.value)}{_bounds(row)} "
        f"of {counted(row.n_images, 'image')} of {counted(row.n_persons, 'person')}"
        f"{'' if row.trusted else ' (untrusted)'}."
    )


def _bounds(row: Row) -> str:
    """`` (95 % CI 5.1 to 12.3)``, with a leading blank; empty without an interval."""
    side = bound(row)
    if row.lo is None and row.hi is None:
        return ""
    if side == "upper" or row.lo is None:
        return f" ({level(row)} upper bound {number(row.hi or 0.0, row.unit)})"
    if side == "lower" or row.hi is None:
        return f" ({level(row)} lower bound {number(row.lo or 0.0, row.unit)})"
    return f" ({level(row)} CI {number(row.lo, row.unit)} to {number(row.hi, row.unit)})"


def headlines(view: View, dataset: str) -> list[str]:
    """What the run says, in a few sentences: the least and the most leaking method, the controls, what to beware of."""
    out: list[str] = []
    known = [(m, r) for m in view.methods if (r := view.headline(dataset, m.label, WORST)) is not None and r.value is not None]
    real = [(m, r) for m, r in known if not m.control]

    def value(r: Row) -> float:
        return r.value if r.value is not None else 0.0

    if real:
        best, row = min(real, key=lambda mr: value(mr[1]))
        others = len(view.methods) - len([m for m in view.methods if m.control])
        text = sentence(view, dataset, best)
        if others > 1:
            ties = [m.label for m, r in real if m is not best and row.hi is not None and r.lo is not None and r.lo <= row.hi]
            text += f" That is the least of the {others} methods compared"
            text += f"; the intervals of {listing([plain(t) for t in ties], 4)} reach into its own." if ties else "."
        out.append(text)
        if others > 1:
            most, top = max(real, key=lambda mr: value(mr[1]))
            if value(top) > value(row):
                same = [plain(m.label) for m, r in real if m is not most and value(r) == value(top)]
                text = sentence(view, dataset, most)[:-1]
                also = f", and so {'does' if len(same) == 1 else 'do'} {listing(same, 8)}" if same else ""
                out.append(f"{text}{also}: the most of them.")
    elif known:
        out.append("Only control methods have a re-identification figure in this run.")
    else:
        out.append("This run has no worst-case re-identification figure.")
    for name, words in (("original", "clear images"), ("blackout", "a black frame")):
        m = view.control(name)
        r = view.headline(dataset, m.label, WORST) if m else None
        if r is not None:
            out.append(
                f"With {words} the same attack reaches {percent(r.value)}{_bounds(r)}." if r.value is not None
                else f"With {words} there is no figure: {plain(r.reason) or 'the run does not say why'}."
            )  # fmt: skip
    chance = view.chance(dataset, WORST) or view.chance(dataset, RANK1)
    if chance:
        low, high = percent(chance[0]), percent(chance[1])
        out.append(
            f"Guessing would reach {low}." if low == high else f"Guessing would reach {low} to {high}, depending on the method."
        )
    return out


def warnings(view: View, dataset: str) -> list[str]:
    """What a reader must know before quoting a figure of this run."""
    out = [f"Deviation from the protocol: {d}" for d in view.deviations]
    unread = view.entry("dataset").get("unreadable")
    if isinstance(unread, Mapping) and unread:
        out.append(
            f"{counted(len(unread), 'image')} could not be read and are in no figure: {listing([plain(u) for u in unread])}."
        )
    names = list(dict.fromkeys(r.recognizer for r in view.rows if not r.trusted and r.dataset == dataset and r.metric != WORST))
    if any(names):
        out.append(
            f"Untrusted: {listing([plain(n) for n in names if n])} failed the attacker's sanity check; "
            "what it cannot recognise says nothing about privacy."
        )
    for m in view.methods:
        same = int(m.counts.get("passthrough", 0))
        if same and not m.control:
            out.append(f"{plain(m.label)} passed {counted(same, 'image')} through unchanged, or nearly.")
    for m in view.methods:
        trained = [plain(t) for t in m.info.get("trained_on") or ()]
        if trained:
            out.append(
                f"{plain(m.label)}: its weights were trained on {listing(trained)}; figures on those images or persons would be contaminated."
            )
    gone = []
    for m in view.methods:
        _, _, failed = view.sizes(dataset, m)
        if failed and not m.control:
            gone.append(f"{plain(m.label)} ({failed}{f' of {m.images}' if m.images else ''})")
    if gone:
        out.append(f"Images not released, each counted as no information to the attacker: {listing(gone, 8)}.")
    return out
