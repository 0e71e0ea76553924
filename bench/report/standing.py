"""Which method is best in a column, and which are not shown to be worse: marks in the tables.

Best is the best value among the trusted ones (controls take no part).  Every other method is tested against it, paired over the
persons, with Holm's correction over the column (:mod:`deidbench.compare`).  The best was picked by looking, so that chance
favours it; a method that is not marked was shown to be worse, one that is marked was not.  Times are not marked: most of them are
not tested, and no mark would then say that they were shown to be worse.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deidbench.compare import ALPHA, Engine, Result, adjusted
from deidbench.errors import DeidbenchError
from deidbench.report.tables import Cell, Line, Table
from deidbench.scored import Contestant, Entry, Question, Scored, question_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deidbench.records import Run

NOTE = (
    "Bold: the best of the column, controls left out.  ≈: not shown to be worse than it (paired test over the same persons, "
    f"p ≥ {ALPHA:g} after Holm's correction over the column)."
)


class Standings:
    """Marks the tables of one run; evidence is read and drawn once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.scored: Scored | None = None
        self.methods: dict[str, Mapping[str, Any]] = {}
        self.entries: dict[str, dict[Question, Entry]] = {}
        self.why = ""  # nothing can be marked
        self._done: dict[tuple[str, str, str], Table] = {}
        try:
            self.scored = Scored(run)
            self.entries = self.scored.entries
            self.methods = {str(m["label"]): m for m in run.record.get("methods", [])}
        except DeidbenchError as error:
            self.why = error.message

    def mark(self, table: Table) -> Table:
        """The table with its best cells in bold, and those that are not shown to be worse marked."""
        if self.scored is None or not self.entries:
            return table
        at = (table.dataset, table.block, table.title)
        if at not in self._done:
            self._done[at] = self._mark(table, Engine(self.scored, ALPHA))
        return self._done[at]

    def _mark(self, table: Table, engine: Engine) -> Table:
        plans: list[tuple[int, list[int], int]] = []
        found: list[Result] = []
        spans: list[tuple[int, int]] = []
        for i, column in enumerate(table.columns):
            if column.better is None or column.metric == "counts":
                continue
            running = [
                n for n, line in enumerate(table.lines)
                if not line.method.control and (r := line.cells[i].row) is not None and r.value is not None and r.trusted
            ]  # fmt: skip
            if len(running) < 2 or ((r := table.lines[running[0]].cells[i].row) is not None and r.timing):
                continue
            values = {n: float(table.lines[n].cells[i].value or 0.0) for n in running}
            top = max(values.values()) if column.better else min(values.values())
            best = next(n for n in running if values[n] == top)
            q, who, entries = self._contest(table, i, running)
            if len(entries) < len(running):
                continue
            at = running.index(best)
            results, _ = engine.answer(q, who, entries, [(at, j) for j in range(len(running)) if j != at])
            spans.append((len(found), len(found) + len(results)))
            found += results
            plans.append((i, running, best))
        found = engine.tested(found)
        cells = [list(line.cells) for line in table.lines]
        for (i, running, best), (start, end) in zip(plans, spans, strict=True):
            cells[best][i] = replace(cells[best][i], strong=True)
            others = [n for n in running if n != best]
            for n, result in zip(others, adjusted(found[start:end]), strict=True):
                cells[n][i] = _marked(cells[n][i], cells[best][i], result)
        if not plans:
            return table
        lines = tuple(Line(line.method, line.marks, tuple(c)) for line, c in zip(table.lines, cells, strict=True))
        return replace(table, lines=lines, notes=(*table.notes, NOTE))

    def _contest(self, table: Table, i: int, running: list[int]) -> tuple[Question, list[Contestant], list[Entry | None]]:
        q = Question(table.columns[i].metric)
        who: list[Contestant] = []
        entries: list[Entry | None] = []
        for n in running:
            label, row = table.lines[n].method.label, table.lines[n].cells[i].row
            assert row is not None
            q = question_of(row.plain())
            if (entry := self.entries.get(label, {}).get(q)) is not None:
                who.append(Contestant(label, self.run, label, False, self.methods.get(label, {})))
                entries.append(entry)
        return q, who, entries


def _marked(cell: Cell, best: Cell, r: Result) -> Cell:
    if r.identical or cell.value == best.value:
        return replace(cell, strong=cell.value == best.value, tied=cell.value != best.value)
    return replace(cell, tied=not r.shown(ALPHA) and not r.reason)
