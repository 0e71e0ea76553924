"""Tables of what is left: expression, attributes, geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from deidbench.records import Row
from deidbench.report.tables import (
    Cell,
    Column,
    Line,
    Notes,
    Table,
    caption,
    cell,
    chance_line,
    column,
    general,
    key_name,
    method_marks,
)
from deidbench.report.view import Key, Method, View, parts, plain, unit_sign

#: Families that have tables of their own here.
FAMILIES = ("emotion", "attributes", "geometry")

#: Per family the figures of a method that stand side by side, and those with a line for each class or attribute.
_WHOLE = {
    "emotion": (
        "emotion.uar", "emotion.accuracy", "emotion.macro_f1", "emotion.uar_change", "emotion.kappa", "emotion.mean_delta_p",
        "emotion.retrained_uar", "emotion.retrained_macro_f1",
    ),
    "attributes": (
        "attributes.mean_balanced_accuracy", "attributes.mean_retention", "attributes.mean_removal", "attributes.group_retention",
        "attributes.group_balanced_accuracy",
    ),
}  # fmt: skip
#: Of these the figure over images with a face stands beside the headline.
_CONDITIONAL = ("emotion.uar", "attributes.mean_balanced_accuracy", "attributes.mean_retention")
_EACH = {
    "emotion": ("emotion.recall", "emotion.delta_p"),
    "attributes": ("attributes.retention", "attributes.removal", "attributes.balanced_accuracy"),
}
#: Figures of the clear images, the same for every method: columns before the methods'.
_BEFORE = {
    "attributes.retention": ("attributes.base_rate", "attributes.clear_balanced_accuracy"),
    "attributes.removal": ("attributes.base_rate", "attributes.clear_false_negative_rate"),
    "attributes.balanced_accuracy": ("attributes.base_rate", "attributes.clear_balanced_accuracy"),
}
#: In figures or in rows.csv, not in tables.
_LEFT_OUT = ("emotion.confusion", "emotion.uar_open")
_TITLES = {"emotion": "Expression", "attributes": "Attributes", "geometry": "Geometry"}
_HEADS = {"emotion": "Class", "attributes": "Attribute"}
_SEEN = {"without_fta": "faces found"}
_RULES = {
    "emotion": "An image that was not released, or in which no face is found, counts as wrong; “faces found” leaves it out.",
    "attributes": "An image that was not released, or in which no face is found, counts as wrong, and as removed; “faces found” leaves it out. "
    "Retention: skill above chance after anonymisation over that on the clear images.",
}


def utility_tables(view: View, dataset: str, keys: Sequence[Key]) -> tuple[list[Table], list[Key]]:
    """The tables of utility, and the keys of ``keys`` that are in none of them."""
    tables: list[Table] = []
    taken: set[Key] = set()
    for family in FAMILIES:
        mine = [k for k in keys if k.metric.startswith(f"{family}.")]
        taken |= {k for k in mine if k.metric in _LEFT_OUT}
        headline = [k for k in mine if k.convention in ("", "headline")]
        for name in dict.fromkeys(k.recognizer for k in headline):
            of = [k for k in headline if k.recognizer == name]
            several = len({k.recognizer for k in headline}) > 1
            seen = [k for k in mine if k.recognizer == name and k.convention == "without_fta" and k.metric in _CONDITIONAL]
            whole = [k for m in _WHOLE.get(family, ()) for k in (*of, *seen) if k.metric == m]
            # a group or condition of which no method has a figure takes no column
            whole = [k for k in whole if not k.label or _any(view, dataset, k)]
            if family == "geometry":
                whole = [k for k in of if not k.label]
            if whole:
                tables.append(_whole(view, dataset, family, whole, name if several else ""))
                taken |= set(whole)
            for metric in _EACH.get(family, ()):
                each = [k for k in of if k.metric == metric and k.label]
                taken |= {k for k in of if k.metric == metric}
                for compared in dict.fromkeys(k.comparison for k in each):
                    tables.append(_each(view, dataset, family, [k for k in each if k.comparison == compared], of, name))
            taken |= {k for k in of for before in _BEFORE.values() if k.metric in before}
            taken |= {k for k in of if k.metric in _WHOLE.get(family, ())}
    return tables, [k for k in keys if k not in taken]


def _any(view: View, dataset: str, k: Key) -> bool:
    return any((r := view.row(dataset, m.label, k)) is not None and r.value is not None for m in view.methods)


def _short(comparison: str) -> str:
    """The first word of how a classifier was used: stock, adapted, retrained."""
    return comparison.partition(",")[0]


def _whole(view: View, dataset: str, family: str, keys: Sequence[Key], classifier: str) -> Table:
    notes = Notes()
    subs = [", ".join(p for p in (k.label, _short(k.comparison), _SEEN.get(k.convention, "")) if p) for k in keys]
    # neighbours under one heading all need a second line, or the page's head does not stand over its columns
    subs = [sub or ("all images" if k.metric in _CONDITIONAL else "") for k, sub in zip(keys, subs, strict=True)]
    columns = [column(view, dataset, k, sub, key_name(k)) for k, sub in zip(keys, subs, strict=True)]
    finders: list[tuple[Column, Callable[[str], Row | None]]] = [
        (c, partial(view.row, dataset, key=k)) for c, k in zip(columns, keys, strict=True)
    ]
    lines = [
        Line(m, method_marks(view, dataset, m, notes), tuple(_cell(view.row(dataset, m.label, k), notes) for k in keys))
        for m in view.methods
    ]
    rows = [c.row for line in lines for c in line.cells if c.row is not None]
    readers = sorted({r.recognizer for r in rows if r.recognizer})
    said = [_RULES[family]] if family in _RULES else []
    if readers:
        said.append(f"Read by: {', '.join(plain(r) for r in readers)}.")
    return Table(
        title=_TITLES[family] + (f", {plain(classifier)}" if classifier else "") + _where(view, dataset),
        dataset=dataset,
        columns=tuple(columns),
        lines=tuple(lines),
        chance=chance_line(view, dataset, finders),
        footnotes=notes.all(),
        notes=(*said, *(n for n in general(view, dataset, rows) if not n.startswith("Failures to acquire"))),
        caption=f"{_TITLES[family]} after anonymisation. {caption(view, dataset, lines)}",
        kind=f"utility {family} {classifier}",
    )


def _each(view: View, dataset: str, family: str, keys: Sequence[Key], every: Sequence[Key], classifier: str) -> Table:
    """One line per class or attribute, one column per method."""
    metric, compared = keys[0].metric, keys[0].comparison
    notes = Notes()
    columns, before = [], []
    for other in _BEFORE.get(metric, ()):
        if found := {k.label: k for k in every if k.metric == other}:
            sample = view.sample(dataset, other)
            columns.append(Column(other, other, view.heading(other), "", unit_sign(sample.unit if sample else "")))
            before.append(found)
    sample = view.sample(dataset, metric)
    unit = unit_sign(sample.unit if sample else "")
    columns += [
        Column(f"{m.label}", metric, "Anonymised by", m.label, unit, sample.higher_is_better if sample else None, m.label)
        for m in view.methods
    ]
    lines = []
    by_label = {k.label: k for k in keys}
    for label in dict.fromkeys(k.label for k in keys):
        cells: list[Cell] = []
        for found in before:
            k = found.get(label)
            known = [r for m in view.methods if k and (r := view.row(dataset, m.label, k)) is not None]
            cells.append(replace(_cell(known[0] if known else None, notes), ci=""))
        cells += [_cell(view.row(dataset, m.label, by_label[label]), notes) for m in view.methods]
        lines.append(Line(Method(label.replace("_", " ")), (), tuple(cells)))
    rows = [c.row for line in lines for c in line.cells if c.row is not None]
    heading = view.heading(metric)
    how = f" ({_short(compared)})" if compared else ""
    return Table(
        title=f"{heading}{how}{_where(view, dataset)}",
        dataset=dataset,
        columns=tuple(columns),
        lines=tuple(lines),
        chance=None,
        footnotes=notes.all(),
        notes=tuple(n for n in general(view, dataset, rows) if not n.startswith("Failures to acquire")),
        caption=f"{view.title(metric) or heading}, read by {plain(classifier)}.",
        kind=f"utility {metric} {compared} {classifier}",
        head=_HEADS[family],
        block=f"{_TITLES[family]}: each {_HEADS[family].lower()}",
    )


def _cell(row: Row | None, notes: Notes) -> Cell:
    """Without what differs from cell to cell (rows.csv has it); what casts doubt on a figure stays."""
    if row is None:
        return cell(row, notes)
    if row.value is None:
        reason = row.reason.partition(":")[0] if row.reason.startswith("unmeasurable") else row.reason
        return replace(cell(replace(row, reason=reason), notes), row=row)
    kept = [p for p in parts(row.note) if p.startswith(("contaminated", "untrusted", "not above chance"))]
    return replace(cell(replace(row, note="; ".join(kept)), notes), row=row)


def _where(view: View, dataset: str) -> str:
    return f", {dataset}" if len(view.datasets) > 1 else ""
