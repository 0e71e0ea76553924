"""Rows to tables: one line per method with intervals, footnotes for everything that a bare number would hide.

:func:`main_table` and those of ``details`` build a :class:`Table`; the writers turn it into terminal output, CSV,
Markdown and LaTeX.  Names that come from suites and plug-ins are escaped by each writer for its own format.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from deidbench import spreadsheet
from deidbench.records import Row
from deidbench.report.view import (
    CONVENTION_WORDS,
    PIXELS,
    RANK1,
    SSIM,
    UAR,
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
    mistrained,
    number,
    percent,
    plain,
    remarks,
    spoken,
    unit_sign,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

#: Quantities of the main table, in order; those before the counts that a run does not have are left out.
MAIN = (
    WORST,
    RANK1,
    "reid.eer",
    "reid.tmr@fmr=0.01",
    "reid.fta",
    "reid.withheld",
    UAR,
    SSIM,
    "throughput.faces_per_s",
)

#: Which columns go first where there is no room: quantities at the end of the tuple are dropped first.
PRIORITY = (
    WORST,
    UAR,
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


#: Quantities that the main table has of the first attacker alone.
_OF_THE_FIRST = (RANK1, "reid.eer", "reid.tmr@fmr=0.01")
_FIRST = "Rank-1, EER and TMR are those of the attacker"
_REALISED = "“at x”: the FMR in % that the fixed threshold really gave."
_WHOSE = "In parentheses: whose figure the worst case is (+ n: so many others tie); an untrusted or mis-trained attack is no candidate."


@dataclass(frozen=True)
class Cell:
    """One cell.  text: the figure or ``-``; ci: its interval; extra: what belongs to it (named recogniser, realised FMR).

    strong: in bold.  tied: not shown to be worse than the best of its column (:mod:`deidbench.report.standing`).
    """

    text: str
    ci: str = ""
    extra: str = ""
    marks: tuple[str, ...] = ()
    value: float | None = None
    row: Row | None = None
    strong: bool = False
    tied: bool = False

    @property
    def figure(self) -> str:
        """The figure, with ≈ where it is not shown to be worse than the best of its column."""
        return f"{self.text}\u00a0≈" if self.tied else self.text

    @property
    def words(self) -> str:
        """The cell in one line, without marks."""
        return " ".join(part for part in (self.figure, self.ci, self.extra) if part)


@dataclass(frozen=True)
class Column:
    """One column.  group: the quantity; sub: which recogniser, attacker, convention; name: for machines (CSV).

    whose: which recogniser a figure is from differs from line to line (CSV says it, and the row's note).
    """

    name: str
    metric: str
    group: str
    sub: str = ""
    unit: str = ""
    better: bool | None = None
    title: str = ""
    whose: bool = False

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
    """Columns, one line per method, the line of chance (None where no row states one) and the notes below.

    kind: what tells the tables of a data set apart.  head: what a line stands for.  block: heading that the page files the
    table under, folded away ("": it stands open).
    """

    title: str
    dataset: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    chance: tuple[str, ...] | None = None
    footnotes: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    caption: str = ""
    kind: str = ""
    head: str = "Method"
    block: str = ""

    def only(self, columns: Sequence[int]) -> Table:
        """The table with some of its columns, and only the footnotes that are still referred to."""
        lines = tuple(Line(line.method, line.marks, tuple(line.cells[i] for i in columns)) for line in self.lines)
        used = {m for line in lines for m in line.marks} | {m for line in lines for c in line.cells for m in c.marks}
        rows = [c.row for line in lines for c in line.cells if c.row is not None]
        fixed, worst = any(r.realised_fmr is not None for r in rows), any(r.metric == WORST for r in rows)
        first = any(self.columns[i].metric in _OF_THE_FIRST for i in columns)
        notes = [
            n for n in self.notes
            if (fixed or n != _REALISED) and (worst or n != _WHOSE) and (first or not n.startswith(_FIRST))
        ]  # fmt: skip
        return replace(
            self,
            columns=tuple(self.columns[i] for i in columns),
            lines=lines,
            chance=tuple(self.chance[i] for i in columns) if self.chance else None,
            footnotes=tuple(f for f in self.footnotes if f[0] in used),
            notes=tuple(notes),
        )


@dataclass
class Notes:
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
def whose(view: View, attacker: str, recognizer: str) -> str:
    """An attack in a few letters: what goes without saying is left out."""
    return ", ".join(
        p for p in ((attacker if len(view.attackers) > 1 else ""), recognizer if recognizer != PIXELS else "") if p
    )


def _who(view: View, row: Row) -> str:
    """Who attained a worst case, for the cell: ``(lda, sface)``, ``(all)``, ``(ignorant, sface + 2)``."""
    pairs = attained(row)
    candidates = {
        (r.attacker, r.recognizer) for a in view.attackers for r in view.attacks(row.dataset, row.method, a)
        if r.value is not None and r.trusted
    }  # fmt: skip
    if len(pairs) > 1 and set(pairs) == candidates:
        return "(all)"
    names = [whose(view, a, r) for a, r in pairs]
    most = 2 if len(view.attackers) < 2 else 1  # the cell stays as narrow as with one attacker
    if len(names) > most:
        return f"({names[0]} + {len(names) - 1})"
    return f"({' = '.join(names)})" if any(names) else ""


def cell(row: Row | None, notes: Notes, extra: str = "", brief: bool = False) -> Cell:
    """A figure as a cell.  extra: what stands behind it.  brief: remarks that do not touch its trust are left out."""
    if row is None:
        return Cell("-", marks=(notes.mark("not reported by this run"),))
    if row.value is None:
        return Cell("-", marks=(notes.mark(row.reason or "no value, and the run does not say why"),), row=row)
    marks: list[str] = []
    if row.realised_fmr is not None:
        extra = f"{extra} at {number(row.realised_fmr, 'rate')}".strip()
    said = remarks(row)
    if mistrained(row):
        marks.append(notes.mark(said.pop(0)))
    elif not row.trusted:
        if said and said[0].startswith("untrusted"):
            marks.append(notes.mark(said.pop(0)))
        else:
            why = "; ".join(said) or "the attacker failed its own sanity check on clear images"
            marks.append(notes.mark(f"untrusted: {why}"))
            said = []
    # What the worst case was attained by stands in the cell, what taking a maximum adds stands below the table.
    if said and not brief:
        marks.append(notes.mark("; ".join(said)))
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


def sub_heading(view: View, k: Key, attacker: bool = True) -> str:
    """What tells a column from the others of its quantity.  attacker: False where the table is about one attacker."""
    parts = [k.label.replace("_", " ")] if k.label else []
    if attacker and k.attacker and len(view.attackers) > 1:
        parts.append(k.attacker)
    if k.recognizer:
        parts.append(k.recognizer)
    if k.convention not in ("", "headline"):
        parts.append(spoken(k.convention))
    if k.comparison and len(view.comparisons) > 1:
        parts.append(k.comparison)
    return ", ".join(parts)


def column(view: View, dataset: str, k: Key, sub: str, name: str, of: str = "") -> Column:
    """The column of a key.  of: whose figures, where the quantity alone does not say it."""
    sample = view.sample(dataset, k.metric)
    return Column(
        name,
        k.metric,
        view.heading(k.metric) + (f", {of}" if of else "") + (" (at realised FMR)" if k.metric in view.fixed else ""),
        sub,
        unit_sign(sample.unit if sample else ""),
        sample.higher_is_better if sample else None,
        view.title(k.metric) or k.metric,
    )


def key_name(k: Key) -> str:
    """A key for machines, e.g. ``reid.rank1[ignorant,sface,leave-one-out]``."""
    parts = [
        p for p in (k.attacker, k.recognizer, k.convention if k.convention != "headline" else "", k.comparison, k.label) if p
    ]
    return f"{k.metric}[{','.join(parts)}]" if parts else k.metric


def pick(view: View, dataset: str) -> tuple[list[Key], list[Key]]:
    """Keys of the main table and the others.  Of several attackers the main table has the first, and the worst case."""
    keys = view.keys(dataset)
    first = view.attackers[0] if view.attackers else ""
    main = [
        k for metric in MAIN for k in keys
        if k.metric == metric and k.convention in ("", "headline") and (metric == WORST or k.attacker in ("", first))
    ]  # fmt: skip
    # One classifier, and the better informed of its two heads; the table of expression has all of them.
    known = [
        k
        for k in main
        if k.metric == UAR and any((r := view.row(dataset, m.label, k)) and r.value is not None for m in view.methods)
    ]
    best = [k for k in known if k.comparison.startswith("adapted")] or known
    main = [k for k in main if k.metric != UAR or k in best[:1]]
    chosen = set(main)
    return main, [k for k in keys if k not in chosen]


def chance_line(
    view: View, dataset: str, columns: Sequence[tuple[Column, Callable[[str], Row | None]]]
) -> tuple[str, ...] | None:
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


def method_marks(view: View, dataset: str, method: Method, notes: Notes) -> tuple[str, ...]:
    """Marks of outputs that are inputs, or other images of the data set; where nothing is published the cells say so."""
    if view.refused(dataset, method.label):
        return ()
    marks = []
    for status, verb, what in (
        ("passthrough", "passed through", "the output is the input, or nearly"),
        ("copy", "gave out another image of the data set for", "the output is that image, or nearly"),
    ):
        same = int(method.counts.get(status, 0))
        if same:
            share = "all images" if same == method.images else f"{same} of {counted(method.images, 'image')}"
            marks.append(notes.mark(f"{verb} {share}" + (" (a control: by design)" if method.control else f": {what}")))
    return tuple(marks)


def general(view: View, dataset: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Notes that belong to the whole table: intervals, conventions, realised FMR, deviations."""
    out = []
    unit = "persons, not images, are" if view.names_persons else "the data set names no persons, images are"
    if any(r.lo is not None or r.hi is not None for r in rows):
        levels = sorted({level(r) for r in rows if level(r)})
        out.append(f"In brackets: {listing(levels)} interval; {unit} the unit of inference.".replace("  ", " "))
    if any(r.convention == "headline" for r in rows):
        out.append(f"Failures to acquire (FTA): {CONVENTION_WORDS['headline']}.")
    if any(r.realised_fmr is not None for r in rows):
        out.append(_REALISED)
    bins = dict.fromkeys(m[1] for r in rows if r.metric == "reid.d_sys" and (m := re.search(r"(\d+) bins, omega = 1", r.note)))
    if bins:
        out.append(f"D_sys: {' or '.join(bins)} bins, omega = 1.")
    if any("rank-1 per seed" in r.note for r in rows):
        out.append("Trained attackers: the seed that did best on held-out persons; rows.csv has what every seed reached.")
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


def caption(view: View, dataset: str, lines: Sequence[Line]) -> str:
    protocol = view.entry("protocol")
    sizes = [view.sizes(dataset, line.method) for line in lines]
    images, persons = max((s[0] for s in sizes), default=0), max((s[1] for s in sizes), default=0)
    used = dict.fromkeys(c.row.ci_method for line in lines for c in line.cells if c.row is not None and c.row.ci_method)
    methods = [m for m in used if "one-sided" not in m]  # those have a footnote where they stand
    title = str(view.entry("dataset").get("title") or dataset) if len(view.datasets) == 1 else dataset
    parts = [
        f"{counted(len(lines), 'method')} on {title}: up to {counted(images, 'image')}"
        + (f" of {counted(persons, 'person')}" if view.names_persons else ""),
        f"protocol {protocol.get('name', 'not stated')}"
        + (f", {protocol['comparison']}" if protocol.get("comparison") else "")
        + (f", seed {protocol['seed']}" if protocol.get("seed") is not None else "")
        + (" (with deviations)" if view.deviations else ""),
    ]
    if methods:
        parts.append(f"intervals: {'; '.join(methods)}")
    return plain(". ".join(p[0].upper() + p[1:] for p in parts) + ".")


def main_table(view: View, dataset: str) -> Table:
    """The wide table: worst case, then of the first attacker rank-1 per recogniser, EER, TMR; FTA, SSIM, speed, counts."""
    notes = Notes()
    picked, _ = pick(view, dataset)
    several = len(view.attackers) > 1
    columns: list[tuple[Column, Callable[[str], Row | None]]] = []
    worst = [k for k in picked if k.metric == WORST]
    if worst:
        # One worst case per method: which attacker and recogniser it was is part of the finding, not of the column.
        columns.append((column(view, dataset, worst[0], "", WORST), partial(view.headline, dataset, metric=WORST)))
    for k in picked:
        if k.metric != WORST:
            of = k.attacker if several else ""
            head = column(view, dataset, k, sub_heading(view, k, attacker=False), key_name(k), of)
            columns.append((head, partial(view.row, dataset, key=k)))
    counts = (
        Column("n_images", "counts", "Images", title="images in the denominator"),
        *((Column("n_persons", "counts", "Persons", title="persons in the denominator"),) if view.names_persons else ()),
        Column("n_failed", "counts", "Not released", better=None, title="images that the method did not release"),
    )
    lines = []
    for method in view.methods:
        sizes = view.sizes(dataset, method)
        marks = method_marks(view, dataset, method, notes)
        cells = []
        for c, find in columns:
            row = find(method.label)
            named = row is not None and row.value is not None and c.metric == WORST
            cells.append(cell(row, notes, _who(view, row) if named and row is not None else ""))
        cells += [Cell(str(n), value=float(n)) for n in (sizes if view.names_persons else (sizes[0], sizes[2]))]
        lines.append(Line(method, marks, tuple(cells)))
    chance = chance_line(view, dataset, columns)
    rows = [c.row for line in lines for c in line.cells if c.row is not None]
    further: tuple[str, ...] = ()
    if several and any(k.attacker for k in picked if k.metric != WORST):
        who = plain(view.attackers[0])
        further = (f"{_FIRST} “{who}”; the table of attackers has the others.",)
    return Table(
        title="Privacy and utility" + (f", {dataset}" if len(view.datasets) > 1 else ""),
        dataset=dataset,
        columns=(*(c for c, _ in columns), *counts),
        lines=tuple(lines),
        chance=(*chance, "", "", "") if chance else None,
        footnotes=notes.all(),
        notes=(*further, *general(view, dataset, rows)),
        caption=caption(view, dataset, lines),
    )


def plus_minus(table: Table) -> Table:
    """The table with ``± half the width`` instead of the interval's ends; one-sided bounds keep their brackets."""

    def cell_of(c: Cell) -> Cell:
        r = c.row
        if r is None or r.lo is None or r.hi is None or bound(r) or not c.ci:
            return c
        return replace(c, ci=f"± {number((r.hi - r.lo) / 2, r.unit)}")

    lines = tuple(Line(line.method, line.marks, tuple(cell_of(c) for c in line.cells)) for line in table.lines)
    notes = [n.replace("In brackets:", "±: half the width of the", 1) for n in table.notes]
    notes = [
        n if not n.startswith("±") else f"{n}  Intervals need not lie evenly about the figure; brackets are one-sided bounds."
        for n in notes
    ]
    return replace(table, lines=lines, notes=tuple(notes))


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
    "\u00a0": " ", "\u202f": " ", "∞": "inf", "≈": "~", **{v: f"({k})" for k, v in _SUPERSCRIPT.items()},
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
    grid.add_column(say(shown.head), no_wrap=True, vertical="bottom")
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
            text = say(cell.figure, "dim" if cell.row is not None and not cell.row.trusted else "bold" if cell.strong else "")
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
    """A text for CSV that no spreadsheet takes for a formula: :func:`deidbench.spreadsheet.guard`."""
    return spreadsheet.guard(str(text))


def csv_wide(tables: Sequence[Table]) -> str:
    """One line per data set and method; per figure its value and bounds in full precision (rates are 0..1).

    Empty cells are values that could not be computed; the last column says why.
    """
    names: list[str] = []
    for table in tables:
        names += [c.name for c in table.columns if c.name not in names]
    bounded = {c.name for t in tables for c in t.columns if c.metric != "counts"}
    various = {c.name for t in tables for c in t.columns if c.whose}
    standing = any(c.tied for t in tables for line in t.lines for c in line.cells)
    head = ["dataset", "method", "family", "strength", "control"]
    for name in names:
        head += [name, f"{name}:lo", f"{name}:hi"] if name in bounded else [name]
        if name in bounded and standing:
            head += [f"{name}:standing"]
        if name == WORST:
            head += [f"{name}:attained_by"]
        if name in various:
            head += [f"{name}:recognizer", f"{name}:note"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([guard(h) for h in [*head, "notes"]])
    for table in tables:
        words = dict(table.footnotes)
        for line in table.lines:
            m = line.method
            cells = dict(zip((c.name for c in table.columns), line.cells, strict=True))
            said = [words[x] for x in line.marks]
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
                if standing:
                    values.append(
                        "" if cell is None else "best" if cell.strong else "not shown to be worse" if cell.tied else ""
                    )
                if name == WORST:
                    known = row is not None and row.value is not None
                    values.append(guard("; ".join(" with ".join(p) for p in attained(row))) if row and known else "")
                if name in various:
                    values += [guard(row.recognizer), guard(row.note)] if row else ["", ""]
                said += [f"{name}: {words[x]}" for x in cell.marks] if cell else []
            first = [guard(table.dataset), guard(m.label), guard(m.family), "" if m.strength is None else repr(m.strength)]
            writer.writerow([*first, str(m.control).lower(), *values, guard("; ".join(said))])
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
        head = [md(table.head), *(md(f"{c.heading}{f', {c.sub}' if c.sub else ''}") for c in table.columns)]
        out += [f"## {md(table.title)}", "", md(table.caption), ""]
        out += [f"| {' | '.join(head)} |", f"|:---|{'---:|' * len(table.columns)}"]
        for line in table.lines:
            cells = [
                (" ".join([f"**{md(c.text)}**", *(md(p) for p in (c.ci, c.extra) if p)]) if c.strong else md(c.words))
                + _sup(c.marks)
                for c in line.cells
            ]
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
    "σ": r"\ensuremath{\sigma}", "≈": r"\ensuremath{\approx}", "\ufffd": "?",
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
            f"\\label{{tab:deidbench-{_label(f'{shown.kind} {shown.dataset}')}}}",
        ]
        out += ["\\resizebox{\\textwidth}{!}{%", f"\\begin{{tabular}}{{@{{}}l{'r' * len(shown.columns)}@{{}}}}", "\\toprule"]
        first = [f"\\multicolumn{{{n}}}{{c}}{{{tex(text)}}}" if n > 1 else f"{{{tex(text)}}}" for text, n in tops]
        out.append(" & ".join([tex(shown.head) if not two else "", *first]) + r" \\")
        if two:
            out.append("".join(f"\\cmidrule(lr){{{i + 2}-{i + n + 1}}}" for i, (_, n) in _starts(tops) if n > 1))
            out.append(" & ".join([tex(shown.head), *(f"{{{tex(c.sub)}}}" for c in shown.columns)]) + r" \\")
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
    text = "--" if cell.text == "-" else f"\\textbf{{{tex(cell.text)}}}" if cell.strong else tex(cell.figure)
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
    more = len(pairs) - 4
    if more > 1:  # a dozen attackers may tie where a method does nothing
        pairs = pairs[:4]
    by_attacker: dict[str, list[str]] = {}
    for attacker, recognizer in pairs:
        by_attacker.setdefault(attacker, []).extend([recognizer] if recognizer else [])
    who = "; ".join(" with ".join(p for p in (a, " or ".join(rs)) if p) for a, rs in by_attacker.items() if a or rs)
    who += f"; and {more} more" if more > 1 else ""
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
    if not view.names_persons:
        return ["The data set names no persons: nobody can be re-identified in it, and intervals are over its images."]
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
    attack = "the worst-case attacker" if len(view.attackers) > 1 else "the same attack"
    for name, words in (("original", "clear images"), ("blackout", "a black frame")):
        m = view.control(name)
        r = view.headline(dataset, m.label, WORST) if m else None
        if r is not None:
            out.append(
                f"With {words} {attack} reaches {percent(r.value)}{_bounds(r)}." if r.value is not None
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
    out = []
    hidden = [m for m in view.methods if view.refused(dataset, m.label)]
    out += [f"{plain(m.label)} is not published: {plain(view.refused(dataset, m.label))}." for m in hidden]
    out += [f"Deviation from the protocol: {d}" for d in view.deviations]
    unread = view.entry("dataset").get("unreadable")
    if isinstance(unread, Mapping) and unread:
        out.append(
            f"{counted(len(unread), 'image')} could not be read and are in no figure: {listing([plain(u) for u in unread])}."
        )
    doubted = [r for r in view.rows if not r.trusted and r.value is not None and r.dataset == dataset and r.metric != WORST]
    readers = {str(c.get("name", "")): bool(c.get("contaminated")) for c in view.entries("classifiers")}
    for c in view.entries("classifiers"):
        if overlap := plain(c.get("overlap") or ""):
            heading = "Contaminated, and not to be trusted" if c.get("contaminated") else "A slight overlap"
            out.append(f"{heading}: {plain(c.get('name', ''))}; {overlap}.")
    weak_readers = list(dict.fromkeys(r.recognizer for r in doubted if r.recognizer in readers and not readers[r.recognizer]))
    if weak_readers:
        out.append(
            f"Untrusted: {listing([plain(n) for n in weak_readers])} reads no better than chance on the clear images; "
            "what it loses says nothing about utility."
        )
    doubted = [r for r in doubted if r.recognizer not in readers]
    names = list(dict.fromkeys(r.recognizer for r in doubted if not mistrained(r)))
    if any(names):
        out.append(
            f"Untrusted: {listing([plain(n) for n in names if n])} failed the attacker's sanity check; "
            "what it cannot recognise says nothing about privacy."
            if view.names_persons
            else f"Untrusted: whether {listing([plain(n) for n in names if n])} can tell persons apart cannot be checked on "
            "images of which nobody says who they are."
        )
    weak: dict[str, dict[str, None]] = {}
    for r in doubted:
        if mistrained(r):
            weak.setdefault(plain(whose(view, r.attacker, r.recognizer)), {})[plain(r.method)] = None
    if weak:
        said = [f"{who} on {listing(list(methods), 4)}" for who, methods in weak.items()]
        out.append(
            f"Mis-trained, weaker than a stock recogniser on the same images, and in no worst case: {'; '.join(said[:6])}"
            + (f"; and {len(said) - 6} more" if len(said) > 6 else "") + "."
        )  # fmt: skip
    out += _left_out(view, dataset)
    for m in view.methods:
        for status, text in (
            ("passthrough", "passed {} through unchanged, or nearly"),
            ("copy", "gave out another image of the data set for {}"),
        ):
            same = int(m.counts.get(status, 0))
            if same and not m.control and m not in hidden:
                out.append(f"{plain(m.label)} {text.format(counted(same, 'image'))}.")
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


def _left_out(view: View, dataset: str) -> list[str]:
    """Attackers that no method was subjected to, by reason: the worst case is one over the others."""
    reasons: dict[str, list[str]] = {}
    for attacker in view.attackers:
        rows = [r for m in view.methods for r in view.attacks(dataset, m.label, attacker)]
        if rows and all(r.value is None for r in rows):
            why = next((r.reason for r in rows if r.reason.startswith("not carried out: ")), "")
            if why:
                reasons.setdefault(plain(why.removeprefix("not carried out: ")), []).append(plain(attacker))
    return [f"Not carried out, and in no worst case: {listing(names, 9)} ({why})." for why, names in reasons.items()]
