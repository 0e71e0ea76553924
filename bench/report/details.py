"""The tables beside the main one: attackers, groups of persons, soft biometrics, and everything else that was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from deidbench.records import Row
from deidbench.report.dots import SPEED
from deidbench.report.speed import speed_tables
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
    pick,
    sub_heading,
    whose,
)
from deidbench.report.utility import FAMILIES, utility_tables
from deidbench.report.view import (
    CONVENTION_WORDS,
    PIXELS,
    RANK1,
    Key,
    Method,
    View,
    counted,
    listing,
    number,
    parts,
    plain,
    spoken,
)

GROUP, GAP = "reid.group_rank1", "reid.group_gap"
SOFT, SOFT_MEAN = "soft.balanced_accuracy", "soft.mean_balanced_accuracy"

#: More traits than this stand in lines instead of columns.
MOST_COLUMNS = 8

_READERS = {"ignorant": "learnt on clear images", "informed": "learnt on anonymised images"}


def _where(view: View, dataset: str) -> str:
    return f", {dataset}" if len(view.datasets) > 1 else ""


# ----------------------------------------------------------------------------------------------------------- attackers
def best_attacks(view: View, dataset: str, method: str) -> set[str]:
    """The attackers that name most persons (of those that are trusted); several where they tie."""
    rows = {a: r for a in view.attackers if (r := view.strongest(dataset, method, a)) is not None}
    values = {a: r.value for a, r in rows.items() if r.value is not None and r.trusted}
    return {a for a, v in values.items() if v == max(values.values())}


def attackers_table(view: View, dataset: str) -> Table | None:
    """Rank-1 of each attacker with its strongest recogniser.  None where there are fewer than two attackers."""
    if len(view.attackers) < 2:
        return None
    notes = Notes()
    found = {(m.label, a): view.strongest(dataset, m.label, a) for m in view.methods for a in view.attackers}
    alike = _alike([r.reason for r in found.values() if r is not None and r.value is None and r.reason])
    trained = {k.label: k.trained for k in view.knowledge}
    sample = view.sample(dataset, RANK1)
    columns, finders = [], []
    for attacker in view.attackers:
        how = {True: "Rank-1, learns from other persons", False: "Rank-1, learns nothing", None: "Rank-1"}[
            trained.get(attacker)
        ]
        name = f"{RANK1}[{attacker}]"
        knows = next((k.knows for k in view.knowledge if k.label == attacker), "")
        columns.append(
            Column(name, RANK1, how, attacker, "%", sample.higher_is_better if sample else False, f"{attacker}: {knows}", True)
        )
        finders.append((columns[-1], lambda label, a=attacker: found[label, a]))
    several = {
        a for a in view.attackers
        if len({r.recognizer for m in view.methods for r in view.attacks(dataset, m.label, a)} - {PIXELS}) > 1
    }  # fmt: skip
    lines = []
    for m in view.methods:
        best = best_attacks(view, dataset, m.label)
        marks = method_marks(view, dataset, m, notes)
        cells = []
        for attacker in view.attackers:
            row = found[m.label, attacker]
            if row is not None and row.value is None:
                why = alike.get(row.reason, "no value, and the run does not say why")
                cells.append(Cell("-", marks=(notes.mark(why),), row=row))
                continue
            extra = f"({row.recognizer})" if row is not None and attacker in several else ""
            cells.append(replace(cell(row, notes, extra, brief=True), strong=attacker in best))
        lines.append(Line(m, marks, tuple(cells)))
    rows = [r for r in found.values() if r is not None]
    said = ["In bold: the strongest attack on the method." + (" In parentheses: its recogniser." if several else "")]
    return Table(
        title="Attackers" + _where(view, dataset),
        dataset=dataset,
        columns=tuple(columns),
        lines=tuple(lines),
        chance=chance_line(view, dataset, finders),
        footnotes=notes.all(),
        notes=(*said, *general(view, dataset, rows)),
        caption=f"Persons named at rank 1 in %, by each attacker with its strongest recogniser. {caption(view, dataset, lines)}",
        kind="attackers",
    )


def _alike(reasons: Sequence[str]) -> dict[str, str]:
    """Reason -> what its footnote says: reasons that differ in their numbers alone share one."""
    groups: dict[str, list[str]] = {}
    for reason in dict.fromkeys(reasons):
        groups.setdefault(re.sub(r"\d[\d.]*", "#", reason), []).append(reason)
    return {
        r: same[0] if len(same) == 1 else f"{same[0]} (for other cells with other numbers)"
        for same in groups.values()
        for r in same
    }


# -------------------------------------------------------------------------------------------------------------- groups
def _once(view: View, dataset: str, keys: Sequence[Key]) -> bool:
    """Whether no method has two rows for the same quantity and label."""
    return all(len({(k.metric, k.label) for k in mine}) == len(mine) for mine in _per_method(view, dataset, keys))


def _per_method(view: View, dataset: str, keys: Sequence[Key]) -> list[list[Key]]:
    return [[k for k in keys if k in view.of(dataset, m.label)] for m in view.methods]


def groups_table(view: View, dataset: str, keys: Sequence[Key]) -> Table | None:
    """Rank-1 per group of persons under the strongest attack, which is another one for each method."""
    if not keys or not _once(view, dataset, keys):
        return None
    names = list(dict.fromkeys(k.label.partition(": ")[0] for k in keys))
    things = [
        (k.metric, k.label)
        for name in names
        for metric in (GROUP, GAP)
        for k in sorted(keys, key=lambda k: k.label)
        if k.metric == metric and k.label.partition(": ")[0] == name
    ]
    things = list(dict.fromkeys(things))
    place = {
        (m.label, k.metric, k.label): k
        for m, mine in zip(view.methods, _per_method(view, dataset, keys), strict=True) for k in mine
    }  # fmt: skip

    def find(method: str, thing: tuple[str, str]) -> Row | None:
        k = place.get((method, *thing))
        return view.row(dataset, method, k) if k else None

    columns = [Column("attack", "attack", "Strongest attack")]
    for metric, label in things:
        grouping, _, group = label.partition(": ")
        sample = view.sample(dataset, metric)
        columns.append(
            Column(
                f"{metric}[{label}]", metric, f"Rank-1 by {grouping}", group if metric == GROUP else "largest gap", "%",
                sample.higher_is_better if sample else False, view.title(metric) or metric,
            )
        )  # fmt: skip
    notes = Notes()
    lines, rows = [], []
    for m in view.methods:
        mine = [find(m.label, t) for t in things]
        marks = method_marks(view, dataset, m, notes)
        rows += [r for r in mine if r is not None]
        attack = next((whose(view, r.attacker, r.recognizer) for r in mine if r is not None and r.value is not None), "")
        cells = [
            Cell(attack or "-"),
            *(_gap_cell(r, notes) if t[0] == GAP else cell(r, notes) for t, r in zip(things, mine, strict=True)),
        ]
        lines.append(Line(m, marks, tuple(cells)))
    finders: list[tuple[Column, Callable[[str], Row | None]]] = [
        (c, partial(find, thing=t)) for c, t in zip(columns[1:], things, strict=True)
    ]
    chance = chance_line(view, dataset, finders)
    tested = any(r.metric == GAP and "p = " in r.note for r in rows)
    said = [
        "Chance of a gap: what shuffled group labels give on average; p: how often they give one as large"
        + (", corrected over the groupings (Holm)." if any("by Holm" in r.note for r in rows) else ".")
    ] if tested else []  # fmt: skip
    return Table(
        title="Groups" + _where(view, dataset),
        dataset=dataset,
        columns=tuple(columns),
        lines=tuple(lines),
        chance=("", *chance) if chance else None,
        footnotes=notes.all(),
        notes=(*said, *general(view, dataset, rows)),
        caption=f"Re-identification per group of persons, by the strongest attack on each method. {caption(view, dataset, lines)}",
        kind="groups",
    )


def _gap_cell(row: Row | None, notes: Notes) -> Cell:
    """A gap with who is ahead and its p-value behind it."""
    if row is None or row.value is None:
        return cell(row, notes)
    extra, rest = [], []
    for part in parts(row.note):
        p = re.search(r"p = ([0-9.e-]+)(?:, ([0-9.e-]+) by Holm)?", part)
        if p:
            extra.append(f"p = {p[2] or p[1]}")
        elif " over " in part:
            extra.insert(0, part)
        elif part != "no gap":
            rest.append(part)
    return replace(cell(replace(row, note="; ".join(rest)), notes, ", ".join(extra)), row=row)


# ----------------------------------------------------------------------------------------------------- soft biometrics
def soft_tables(view: View, dataset: str, keys: Sequence[Key]) -> list[Table]:
    """What can still be read: methods by traits, or traits by methods where there are many."""
    readers = list(dict.fromkeys(k.attacker for k in keys))
    for mine in _per_method(view, dataset, keys):
        if len({(k.metric, k.label, k.attacker) for k in mine}) != len(mine):
            return []
    traits = list(dict.fromkeys((k.metric, k.label) for k in keys))
    traits.sort(key=lambda t: t[0] != SOFT_MEAN)  # the mean first
    place = {
        (m.label, k.metric, k.label, k.attacker): k
        for m, mine in zip(view.methods, _per_method(view, dataset, keys), strict=True) for k in mine
    }  # fmt: skip

    def find(method: str, trait: tuple[str, str], reader: str) -> Row | None:
        k = place.get((method, *trait, reader))
        return view.row(dataset, method, k) if k else None

    clear = {t: _clear([r for m in view.methods for a in readers if (r := find(m.label, t, a)) is not None]) for t in traits}
    compared = list(dict.fromkeys(k.comparison for k in keys if k.comparison))
    said = [f"Attackers: {listing([f'{a} ({_READERS[a]})' if a in _READERS else plain(a) for a in readers])}."]
    if compared:
        said.append(f"Learnt from: {listing([plain(c) for c in compared])}.")

    def finish(title: str, columns: Sequence[Column], lines: Sequence[Line], notes: Notes, chance: tuple[str, ...] | None,
               more: Sequence[str] = (), head: str = "Method") -> Table:  # fmt: skip
        rows = [c.row for line in lines for c in line.cells if c.row is not None]
        sizes = max(((r.n_images, r.n_persons) for r in rows), default=(0, 0))
        return Table(
            title=title + _where(view, dataset),
            dataset=dataset,
            columns=tuple(columns),
            lines=tuple(lines),
            chance=chance,
            footnotes=notes.all(),
            notes=(*said, *more, *general(view, dataset, rows)),
            caption=f"How well traits can still be read off {counted(sizes[0], 'image')} of {counted(sizes[1], 'person')}: "
            "balanced accuracy in %, guessing is 100 % over the number of classes.",
            kind=f"soft {title}",
            head=head,
            block="Soft biometrics" if head != "Method" else "",
        )

    if len(traits) <= MOST_COLUMNS:
        notes = Notes()
        columns, finders = [], []
        for t in traits:
            for a in readers:
                sample = view.sample(dataset, t[0])
                columns.append(
                    Column(f"{t[0]}[{a},{t[1]}]" if t[1] else f"{t[0]}[{a}]", t[0], _trait(t), a, "%",
                           sample.higher_is_better if sample else False, view.title(t[0]) or t[0])
                )  # fmt: skip
                finders.append((columns[-1], partial(find, trait=t, reader=a)))
        lines = [
            Line(m, method_marks(view, dataset, m, notes), tuple(_soft_cell(f(m.label), notes) for _, f in finders))
            for m in view.methods
        ]
        seen = [f"{_trait(t)} {text}" for t in traits if (text := clear[t])]
        more = [f"Read off the clear images: {', '.join(seen)}."] if seen else []
        return [finish("Soft biometrics", columns, lines, notes, chance_line(view, dataset, finders), more)]

    tables = []
    for a in readers:
        notes = Notes()
        columns = [Column("clear", "clear", "Clear images", "", "%"), Column("chance", "chance", "Chance", "", "%")]
        columns += [Column(f"{m.label}[{a}]", SOFT, "Anonymised by", m.label, "%", False, m.label) for m in view.methods]
        lines = []
        for t in traits:
            read = [find(m.label, t, a) for m in view.methods]
            levels = [r.chance for r in read if r is not None and r.chance is not None]
            first = [Cell(clear[t] or "-", value=_float(clear[t])), Cell(number(levels[0], "rate") if levels else "-")]
            lines.append(Line(Method(_trait(t)), (), (*first, *(_soft_cell(r, notes) for r in read))))
        title = f"Soft biometrics, attacker {a}"
        tables.append(finish(title, columns, lines, notes, None, head="Trait"))
    return tables


def _trait(trait: tuple[str, str]) -> str:
    return trait[1].replace("_", " ") if trait[1] else "mean of the measurable traits"


def _float(text: str) -> float | None:
    return float(text) if text else None


def _clear(rows: Sequence[Row]) -> str:
    """What the notes say was read off the clear images, in %; "" where they do not say it."""
    for row in rows:
        if said := re.search(r"\bclear ([0-9.]*[0-9])", f"{row.note}; {row.reason}"):
            return number(float(said[1]), "rate")
    return ""


def _soft_cell(row: Row | None, notes: Notes) -> Cell:
    """Without the remarks that differ from trait to trait: the clear figure has its column, rows.csv has the rest."""
    if row is None:
        return cell(row, notes)
    if row.value is None:
        reason = row.reason
        if re.match(r"unmeasurable: clear .* is not above chance", reason):
            reason = "unmeasurable: not above chance on the clear images"
        elif few := re.match(r"unmeasurable: fewer than \d+ persons of ", reason):
            reason = f"{few[0]}a class"
        return replace(cell(replace(row, reason=reason), notes), row=row)
    kept = [p for p in parts(row.note) if p.startswith("untrusted")]
    return replace(cell(replace(row, note="; ".join(kept)), notes), row=row)


# ----------------------------------------------------------------------------------------------------- everything else
def detail_tables(view: View, dataset: str) -> list[Table]:
    """Everything that the main table leaves out: nothing that was measured vanishes.

    Groups and soft biometrics have tables of their own; the rest has one per attacker (else metric family) and convention.
    """
    main, rest = pick(view, dataset)
    tables = []
    grouped = [k for k in rest if k.metric in (GROUP, GAP)]
    soft = [k for k in rest if k.metric in (SOFT, SOFT_MEAN)]
    groups = groups_table(view, dataset, grouped)
    if groups is not None:
        tables.append(groups)
        rest = [k for k in rest if k not in set(grouped)]
    read = soft_tables(view, dataset, soft) if soft else []
    if read:
        tables += read
        rest = [k for k in rest if k not in set(soft)]

    # what the main table has of expression stands beside the other figures of it once more
    shown = [k for k in main if k.metric.startswith(tuple(f"{f}." for f in FAMILIES))]
    left, rest = utility_tables(view, dataset, [*shown, *rest])
    tables += left

    timed, rest = speed_tables(view, dataset, rest, [k for k in main if k.metric == SPEED])

    several = len(view.attackers) > 1
    blocks: dict[tuple[str, str], list[Key]] = {}
    for k in rest:
        family = k.metric.partition(".")[0] or "other"
        if several and k.attacker in view.attackers and family == "reid":
            family += f", {k.attacker}"
        blocks.setdefault((family, "" if k.convention == "headline" else k.convention), []).append(k)
    families = list(dict.fromkeys(f for f, _ in blocks))
    order = [f"reid, {a}" for a in view.attackers]
    families.sort(key=lambda f: order.index(f) if f in order else -1 if f == "reid" else len(order))
    for family in families:
        mine = sorted((c for f, c in blocks if f == family), key=bool)  # the headline convention first
        tables += [_block(view, dataset, family, convention, blocks[family, convention]) for convention in mine]
    return tables + timed


def _block(view: View, dataset: str, family: str, convention: str, keys: Sequence[Key]) -> Table:
    notes = Notes()
    alone = family.startswith("reid, ")
    bare = [replace(k, convention="") for k in keys]  # the title has it
    columns = [
        column(view, dataset, k, sub_heading(view, b, attacker=not alone), key_name(k)) for k, b in zip(keys, bare, strict=True)
    ]
    lines = [
        Line(m, (), tuple(cell(view.of(dataset, m.label).get(k), notes) for k in keys)) for m in view.methods
    ]  # fmt: skip
    finders = [(c, partial(view.row, dataset, key=k)) for c, k in zip(columns, keys, strict=True)]
    rows = [c.row for line in lines for c in line.cells if c.row is not None]
    where = _where(view, dataset)
    said = [f"{spoken(convention)}: {CONVENTION_WORDS[convention]}."] if convention in CONVENTION_WORDS else []
    return Table(
        title=f"Further figures: {family}{f', {spoken(convention)}' if convention else ''}{where}",
        dataset=dataset,
        columns=tuple(columns),
        lines=tuple(lines),
        chance=chance_line(view, dataset, finders),
        footnotes=notes.all(),
        notes=(*said, *general(view, dataset, rows)),
        caption=caption(view, dataset, lines),
        kind=f"{family} {convention}",
        block=f"Further figures: {family}",
    )
