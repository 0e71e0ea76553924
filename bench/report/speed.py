"""The tables of speed: the method alone, end to end, and what it takes of memory, processors and money."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from deidbench.records import Row
from deidbench.report.tables import Cell, Column, Line, Notes, Table, caption, cell, general, key_name, method_marks
from deidbench.report.view import Key, View, parts, plain, unit_sign

PREFIX, WHOLE = "throughput.", "throughput.end_to_end_"
ALONE = (
    ("faces_per_s", "Speed"), ("speedup", "Times as fast"), ("latency_p50", "Latency"), ("latency_p90", "Latency"),
    ("latency_p99", "Latency"),
)  # fmt: skip
TAKEN = (
    ("seconds_per_1000", "Time"), ("core_seconds_per_1000", "Processors"), ("cost_per_1000", "Price"), ("memory", "Memory"),
    ("peak_memory", "Process"), ("gpu_memory", "GPU memory"),
)  # fmt: skip
_SUBS = {
    "latency_p50": "median", "latency_p90": "90\u00a0%", "latency_p99": "99\u00a0%", "seconds_per_1000": "of 1,000 images",
    "core_seconds_per_1000": "of 1,000 images", "cost_per_1000": "of 1,000 images", "memory": "taken", "peak_memory": "peak",
    "gpu_memory": "taken",
}  # fmt: skip
_BATCH = re.compile(r"(\d+) images a call$")
#: Has a column, or is told of every method.
_TOLD = re.compile(r"\d+ images a call$|batch of \d+(, the quickest of [\d, ]+)?$")


def speed_tables(view: View, dataset: str, keys: Sequence[Key], shown: Sequence[Key]) -> tuple[list[Table], list[Key]]:
    """The tables, and the keys that are in none of them.  shown: what the main table has, which stands here once more."""
    place = {k.metric: k for k in (*keys, *shown) if k.metric.startswith(PREFIX) and not k.label}
    blocks = [
        ("method alone", [(PREFIX + n, head, n) for n, head in ALONE], True),
        ("end to end", [(WHOLE + n, head, n) for n, head in ALONE], True),
        ("what it takes", [(PREFIX + n, head, n) for n, head in TAKEN], False),
    ]
    tables, used = [], set()
    for title, wanted, batch in blocks:
        mine = [(place[m], head, _SUBS.get(n, "")) for m, head, n in wanted if m in place]
        if any(k not in shown for k, _, _ in mine):
            tables.append(_table(view, dataset, title, mine, batch, shown))
            used |= {k for k, _, _ in mine}
    return tables, [k for k in keys if k not in used]


def _table(
    view: View, dataset: str, title: str, columns: Sequence[tuple[Key, str, str]], batch: bool, again: Sequence[Key]
) -> Table:
    found = {(m.label, k): view.row(dataset, m.label, k) for m in view.methods for k, _, _ in columns}
    rows = [r for r in found.values() if r is not None]
    notes = Notes()
    # of the price, the memory and the ratio other things are said than of the rest: what all figures of a column have in common
    shared: dict[Key, set[str]] = {}
    for k, _, _ in columns:
        said = [set(parts(r.note)) for m in view.methods if (r := found[m.label, k]) is not None and r.value is not None]
        shared[k] = set.intersection(*said) if said else set()
    heads = []
    for k, head, sub in columns:
        sample = view.sample(dataset, k.metric)
        sub = f"as {plain(k.comparison)}" if k.comparison else sub
        heads.append(
            Column(
                key_name(k), k.metric, head, sub, unit_sign(sample.unit) if sample and sample.unit != "ratio" else "",
                sample.higher_is_better if sample else None, view.title(k.metric) or k.metric,
            )
        )  # fmt: skip
    if batch:
        heads.append(Column("batch", "batch", "Batch", "images a call", title="the batch size of the speed, found by a search"))
    lines = []
    for m in view.methods:
        mine = [(k, found[m.label, k]) for k, _, _ in columns]
        cells = [_cell(k, r, shared[k], notes) for k, r in mine]
        cells = [replace(c, row=None) if k in again else c for c, (k, _) in zip(cells, mine, strict=True)]  # it has its place
        if batch:
            sizes = [s[1] for _, r in mine if r is not None for p in parts(r.note) if (s := _BATCH.match(p))]
            cells.append(Cell(sizes[0], value=float(sizes[0])) if sizes else Cell("-"))
        lines.append(Line(m, method_marks(view, dataset, m, notes), tuple(cells)))
    told = list(
        dict.fromkeys(p for k, _, _ in columns for r in rows for p in parts(r.note) if p in shared[k] and not _TOLD.match(p))
    )
    timed = [f"Timed: {'; '.join(plain(p) for p in told)}."] if told else []
    where = f", {dataset}" if len(view.datasets) > 1 else ""
    return Table(
        title=f"Speed: {title}{where}",
        dataset=dataset,
        columns=tuple(heads),
        lines=tuple(lines),
        footnotes=notes.all(),
        notes=(*timed, *(n for n in general(view, dataset, rows) if "unit of inference" not in n), *_brackets(rows)),
        caption=caption(view, dataset, lines),
        kind=f"speed {title}",
        block="Speed, memory and cost",
    )


def _cell(k: Key, row: Row | None, shared: set[str], notes: Notes) -> Cell:
    """What all methods have in common, and what has a column, is no footnote."""
    if row is None:
        if k.comparison:  # the one that the others are compared with
            return Cell("1", value=1.0)
        return cell(row, notes)
    kept = [p for p in parts(row.note) if p not in shared and not _TOLD.match(p)]
    reason = (
        ""
        if row.ci_reason in ("one pass", "a 99th percentile over all repeats together carries no interval")
        else row.ci_reason
    )
    return replace(cell(replace(row, note="; ".join(kept), ci_reason=reason), notes), row=row)


def _brackets(rows: Sequence[Row]) -> list[str]:
    if not any(r.lo is not None for r in rows):
        return []
    levels = sorted({r.ci_level for r in rows if r.ci_level})
    said = " and ".join(f"{100 * x:.3g}\u00a0%" for x in levels)
    return [
        f"In brackets: {said} interval of the median of the repeats, in this process on this machine; other machines differ by more."
    ]
