"""What was published beside what was measured: one line per published figure, as Markdown, CSV, JSON, LaTeX and on a terminal.

A line without a figure of ours says why there is none.  In words stand how the two differ in kind: another classifier, another
checkpoint, another recogniser, weights that learnt from the data under evaluation.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.errors import DeidbenchError
from deidbench.records import Row
from deidbench.report.tables import Notes, guard, md, tex, to_console
from deidbench.report.view import View, counted, interval, number, parts, plain, write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from deidbench.collection import Collection, DataTable, Experiment, Part, PublishedTable

#: Raised when a field of ``paper.json`` or a column of ``paper.csv`` changes its meaning or goes.
SCHEMA_VERSION = 1
FILES = ("paper.md", "paper.csv", "paper.json", "paper.tex")
HEAD = ("What", "Method", "Read by", "Published", "Measured here", "Chance", "Images", "Persons")


@dataclass(frozen=True)
class Line:
    """A published figure, and ours.

    published: the figure, None where it is none; published_text: it, its bound or its words, "" where there is none.
    state: "measured"; "no figure" where the run could not compute it; "not run".  reason: why, for the latter two.
    contaminated: weights learnt from this data set, or a classifier from these images or persons.
    about_published, remarks: what must be known about either figure.
    """

    experiment: str
    data: str
    title: str
    metric: str
    unit: str
    label: str
    method: str
    recognizer: str
    comparison: str
    convention: str
    published: float | None
    published_text: str
    where: str
    state: str
    reason: str = ""
    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    ci_level: float | None = None
    ci_method: str = ""
    ci_reason: str = ""
    chance: float | None = None
    n_images: int = 0
    n_persons: int = 0
    n_failed: int = 0
    n_fta: int = 0
    trusted: bool = True
    contaminated: bool = False
    about_published: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        return f"{self.title}{f': {self.label.replace(chr(95), chr(32))}' if self.label else ''}"

    @property
    def ours(self) -> str:
        """``61.5 % [55.0, 68.1]``; "not run", "no figure"."""
        if self.value is None:
            return self.state
        row = Row("", "", "", self.unit, None, self.value, self.lo, self.hi, self.ci_level, self.ci_method)
        ci = interval(row)
        doubt = " (untrusted)" if not self.trusted else ""
        return f"{_signed(number(self.value, self.unit), self.unit)}{f' {ci}' if ci else ''}{doubt}"


@dataclass(frozen=True)
class Section:
    """An experiment in the table.  differs: in words, how ours differs in kind.  state, why: as in the collection's part."""

    name: str
    title: str
    data: str
    state: str
    why: str
    lines: tuple[Line, ...]
    differs: tuple[str, ...]
    about: tuple[str, ...]
    folder: str
    changes: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------------------- build
@cache
def _quantities() -> Mapping[str, tuple[str, str]]:
    """Name -> (unit, title) of every quantity that metrics announce."""
    from deidbench import kinds

    found = {}
    for name in kinds.metrics:
        try:
            found.update({q.name: (q.unit, q.title) for q in kinds.metrics.get(name).quantities})
        except DeidbenchError:  # an outside package that is broken is none of ours
            continue
    return found


def _signed(text: str, unit: str) -> str:
    return f"{text}\u00a0%" if unit == "rate" else text


def _as_published(value: float, unit: str) -> str:
    """With the digits that the publication gives: 0.047 of a rate is ``4.7 %``."""
    return _signed(f"{100 * value:.6g}" if unit == "rate" else f"{value:.6g}", unit)


def _text(published: PublishedTable, unit: str) -> str:
    if published.value is not None:
        return _as_published(published.value, unit)
    if published.either:
        return " or ".join(_as_published(v, unit) for v in published.either)
    if published.more_than is not None:
        return f"> {_as_published(published.more_than, unit)}"
    if published.less_than is not None:
        return f"< {_as_published(published.less_than, unit)}"
    return published.words


def sections(collection: Collection, parts_: Mapping[str, Part]) -> list[Section]:
    """The whole table, from the runs in the folders of the parts."""
    return [_section(collection, e, parts_[e.name]) for e in collection.experiments]


def _section(collection: Collection, experiment: Experiment, part: Part) -> Section:
    from deidbench.records import read_run

    view, why = None, part.why
    if part.there:
        try:
            view = View(read_run(part.folder))
        except DeidbenchError as error:
            why = str(error)
    lines = [
        _line(experiment, part, view, why, published, label)
        for published in experiment.published
        for label in (published.labels or [published.label])
    ]
    about, differs = [], []
    if view is not None:
        dataset = view.entry("dataset")
        images, persons = int(dataset.get("n_images", 0)), int(dataset.get("n_persons", 0))
        whose = (
            f"of {counted(persons, 'person')} (by the folder's own word)"
            if view.names_persons
            else "of a set that names no persons"
        )
        about.append(
            f"{counted(images, 'image')} {whose}, read as {dataset.get('name')}, manifest {str(dataset.get('manifest_sha256'))[:12]}"
        )
        if part.state == "earlier":
            about.append(f"measured in an earlier call, finished {view.record.get('finished', '?')}")
        differs = [w for m in view.entries("methods") if (w := _checkpoint(m, experiment.data))]
    if view is not None and part.changes:
        about.append(f"changed by {' '.join(part.changes)}")
    state = part.state if view is not None or not part.there else "failed"
    return Section(
        experiment.name,
        experiment.title,
        experiment.data.key,
        state,
        why,
        tuple(lines),
        (*differs, *experiment.differs),
        tuple(about),
        part.folder.name,
        part.changes,
        part.skipped,
    )


def _learnt_from(method: Mapping[str, Any], data: DataTable) -> list[str]:
    """The data sets behind a method's weights that are this one, or a part of it."""
    trained = method.get("trained_on") or ()
    return [str(t) for t in trained if any(str(t).startswith(known) for known in data.known_as)]


def _checkpoint(method: Mapping[str, Any], data: DataTable) -> str:
    """Which weights made a method's outputs, and whether they learnt from the data under evaluation."""
    said = []
    if method.get("name") == "ganonymization":
        given = str((method.get("params") or {}).get("checkpoint") or "")
        trained = [str(t) for t in method.get("trained_on") or ()]
        if not given:
            said.append(
                f"{method.get('label')}: the checkpoint that ships with deidbench (128 px), not the paper's (512 px), which "
                "--set methods.ganonymization.checkpoint=FILE takes"
            )
        elif trained == ["CelebA:train", "CelebA:test"]:
            said.append(f"{method.get('label')}: an official checkpoint of the paper's authors")
        else:
            sha = str(method.get("weights_sha256") or "")
            said.append(f"{method.get('label')}: a checkpoint of the user's (SHA-256 {sha[:12]}...), not the paper's")
    if learnt := _learnt_from(method, data):
        said.append(
            f"its weights were trained on {' and '.join(learnt)}: contaminated wherever the folder holds those images or persons"
            if said
            else f"{method.get('label')}: its weights were trained on {' and '.join(learnt)}: contaminated wherever the folder "
            "holds those images or persons"
        )
    return "; ".join(said)


def _line(experiment: Experiment, part: Part, view: View | None, why: str, published: PublishedTable, label: str) -> Line:
    unit, title = _quantities().get(published.metric, ("", published.metric))
    told = []
    if published.where:
        told.append(f"in the paper: {published.where}" + (f"; {published.note}" if published.note else ""))
    if published.instead_of:
        told.append(f"published with {published.instead_of}: no published figure stands beside this one")
    if published.unknown:
        told.append(published.unknown)
    remarks: list[str] = []
    blank = Line(
        experiment.name,
        experiment.data.key,
        published.title or title,
        published.metric,
        unit,
        label,
        published.method,
        published.recognizer,
        published.comparison,
        published.convention,
        published.value,
        _text(published, unit),
        published.where,
        "not run",
        about_published=tuple(told),
    )
    skipped = [part.skipped[name] for name in (published.method, published.recognizer) if name in part.skipped]
    if view is None:
        return replace(blank, reason=why or "not run")
    found = [
        r
        for r in view.rows
        if (r.metric, r.method, r.label, r.convention) == (published.metric, published.method, label, published.convention)
        and r.comparison.startswith(published.comparison)
        and published.recognizer in ("", r.recognizer)
    ]
    if not found:
        return replace(blank, reason=_absent(view, published, label, skipped))
    row = found[0]
    if others := [r.recognizer for r in found[1:]]:
        remarks.append(f"read by {row.recognizer}; the run also has {', '.join(others)}")
    remarks += parts(row.note)
    if row.n_failed or row.n_fta:
        remarks.append(f"{row.n_failed} images withheld, {row.n_fta} without a face that is found")
    if row.value is not None and row.lo is None and row.hi is None and row.ci_reason:
        remarks.append(f"no interval: {row.ci_reason}")
    method = next((m for m in view.entries("methods") if m.get("label") == row.method), {})
    copied = {
        f: getattr(row, f)
        for f in (
            "unit", "recognizer", "comparison", "value", "lo", "hi", "ci_level", "ci_method", "ci_reason", "chance",
            "n_images", "n_persons", "n_failed", "n_fta", "trusted",
        )
    }  # fmt: skip
    if not view.names_persons:
        copied["n_persons"] = 0
    return replace(
        blank,
        **copied,
        state="measured" if row.value is not None else "no figure",
        reason=row.reason if row.value is None else "",
        contaminated="contaminated" in row.note or bool(_learnt_from(method, experiment.data)),
        remarks=tuple(remarks),
    )


def _absent(view: View, published: PublishedTable, label: str, skipped: Sequence[str]) -> str:
    """Why a run has no such row."""
    methods = {m.label for m in view.methods}
    readers = {str(r.get("name")) for kind in ("recognizers", "classifiers") for r in view.entries(kind)}
    lacking = [n for n, there in ((published.method, methods), (published.recognizer, readers)) if n and n not in there]
    if lacking:
        return "; ".join(skipped) or f"this run is without {' and '.join(lacking)}"
    if label:
        return f"the data or the classifier know no {label.replace('_', ' ')}"
    return "the run has no such figure"


# --------------------------------------------------------------------------------------------------------------- write
def write_paper(collection: Collection, out: Path, parts_: Mapping[str, Part]) -> list[Path]:
    """Writes ``paper.md``, ``.csv``, ``.json`` and ``.tex`` into ``out``; each whole or not at all."""
    made = sections(collection, parts_)
    texts = (markdown(collection, made), as_csv(made), as_json(collection, made), latex(collection, made))
    return [write_atomically(out / name, text) for name, text in zip(FILES, texts, strict=True)]


def _remedy(text: str) -> str:
    """``message\\n  -> remedy`` on one line."""
    return plain(text.replace("\n  ->", ";"))


def _cells(line: Line, notes: Notes) -> tuple[list[str], list[tuple[str, ...]]]:
    """The cells of a line in the order of HEAD, and the marks of each."""
    marks: list[tuple[str, ...]] = [()] * len(HEAD)
    marks[3] = tuple(sorted(notes.mark(r) for r in line.about_published))
    marks[4] = tuple(sorted(notes.mark(r) for r in [*([_remedy(line.reason)] if line.reason else []), *line.remarks]))
    known = line.n_images > 0
    cells = [
        line.what,
        line.method,
        line.recognizer or "-",
        line.published_text or "-",
        line.ours,
        _signed(number(line.chance, line.unit), line.unit) if line.chance is not None else "",
        f"{line.n_images}" if known else "",
        f"{line.n_persons}" if known and line.n_persons else "",
    ]
    return cells, marks


def _kept(section: Section) -> list[int]:
    """Columns that say something in this experiment."""
    cells = [_cells(line, Notes())[0] for line in section.lines]
    return [i for i in range(len(HEAD)) if i < 5 or any(c[i] for c in cells)]


def _brief(section: Section) -> Section:
    """A section that nothing was run of: the published figures alone, with the reason once."""
    if section.about:
        return section
    lines = [replace(line, reason="", remarks=()) for line in section.lines if line.published_text]
    return replace(section, lines=tuple(lines), differs=())


def _introduction(collection: Collection, made: Sequence[Section]) -> list[str]:
    head = collection.file.collection
    lines = [line for s in made for line in s.lines]
    published = [line for line in lines if line.published_text]
    beside = sum(line.value is not None for line in published)
    further = sum(line.value is not None for line in lines) - beside
    out = [
        f"{beside} of {counted(len(published), 'published figure')} stand{'s' * (beside == 1)} beside one that was measured here"
        + (f"; {further} more were measured" if further else "")
        + ". In brackets: intervals over persons, over images where a data set names none."
    ]
    return [*out, *([head.source] if head.source else []), *head.differs]


def _lacking(collection: Collection, made: Sequence[Section]) -> list[DataTable]:
    """Data that some experiment waits for."""
    return [d for d in collection.file.data if any(s.data == d.key and s.state == "absent" for s in made)]


def _how_to_get(data: DataTable) -> str:
    return f"{data.title} ({data.citation}). From {data.get}; {data.licence}. Layout: {data.layout}."


LAYOUT = (
    "Nothing is downloaded. Each is read in the layout in which its authors hand it out (deidbench data prepare NAME --from DIR "
    "says what is missing), or by a manifest.csv beside the images; pictures of known persons also in one sub-folder each."
)


def markdown(collection: Collection, made: Sequence[Section]) -> str:
    head = collection.file.collection
    out = [f"# {md(head.title or head.name)}", "", md(head.citation), ""]
    out += [f"- {md(t)}" for t in _introduction(collection, made)]
    out.append("")
    for section in map(_brief, made):
        out += [f"## {md(section.title)}", ""]
        if section.about:
            out += [md("; ".join(section.about)) + f". The whole run: [{section.folder}]({section.folder}/report.html).", ""]
        elif section.why:
            out += [f"**{md(_state(section))}**", ""]
        notes, kept = Notes(), _kept(section)
        out.append(f"| {' | '.join(HEAD[i] for i in kept)} |")
        out.append(f"|{'|'.join(':---' if i < 3 else '---:' for i in kept)}|")
        for line in section.lines:
            cells, marks = _cells(line, notes)
            out.append(f"| {' | '.join(md(cells[i]) + _sup(marks[i]) for i in kept)} |")
        out.append("")
        out += [f"- <sup>{mark}</sup> {md(text)}" for mark, text in notes.all()]
        out += [f"- {md(text)}" for text in section.differs]
        out.append("")
    if lacking := _lacking(collection, made):
        out += ["## Data that were not given", "", md(LAYOUT), ""]
        out += [f"- `--data {d.key}=FOLDER`: {md(_how_to_get(d))}" for d in lacking]
        out.append("")
    return "\n".join(out)


def _sup(marks: Sequence[str]) -> str:
    return f"<sup>{','.join(marks)}</sup>" if marks else ""


def _state(section: Section) -> str:
    words = {"absent": "Not run", "failed": "Stopped", "asked": "Not run"}.get(section.state, "Not run")
    return f"{words}: {_remedy(section.why)}"


def as_csv(made: Sequence[Section]) -> str:
    """One line per line of the table, figures in full precision (rates are 0..1)."""
    columns = [
        "experiment", "data", "metric", "label", "unit", "method", "recognizer", "comparison", "convention", "published",
        "published_text", "where", "state", "reason", "value", "lo", "hi", "ci_level", "ci_method", "chance", "n_images",
        "n_persons", "n_failed", "n_fta", "trusted", "contaminated", "about_published", "remarks",
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for section in made:
        for line in section.lines:
            entry = {**asdict(line), "reason": _remedy(line.reason)}
            entry.update({k: "; ".join(entry[k]) for k in ("about_published", "remarks")})
            writer.writerow(["" if (v := entry[c]) is None else guard(v) if isinstance(v, str) else v for c in columns])
    return out.getvalue()


def as_json(collection: Collection, made: Sequence[Section]) -> str:
    from deidbench import __version__

    head = collection.file.collection
    table = {
        "schema": SCHEMA_VERSION,
        "deidbench": __version__,
        "collection": {"name": head.name, "title": head.title, "citation": head.citation, "source": head.source, "base": head.base},
        "differs": list(head.differs),
        "experiments": [
            {
                "name": s.name, "title": s.title, "data": s.data, "state": s.state, "why": s.why, "folder": s.folder,
                "changes": list(s.changes), "skipped": dict(s.skipped), "about": list(s.about), "differs": list(s.differs),
            }
            for s in made
        ],
        "data": [d.model_dump() for d in collection.file.data],
        "lines": [asdict(line) for s in made for line in s.lines],
    }  # fmt: skip
    return json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def latex(collection: Collection, made: Sequence[Section]) -> str:
    """A booktabs table per experiment."""
    from deidbench.report.view import slug

    head = collection.file.collection
    out = ["% Made by deidbench.  Needs: \\usepackage[T1]{fontenc} \\usepackage{textcomp,booktabs,graphicx}"]
    out += [f"% {plain(t)}" for t in _introduction(collection, made)]
    for section in map(_brief, made):
        notes, kept = Notes(), _kept(section)
        about = ". ".join([section.title, *section.about]) if section.about else f"{section.title}. {_state(section)}"
        out += [
            "\\begin{table*}[t]",
            "\\centering",
            f"\\caption{{{_tex(about)}. Published figures: {_tex(head.citation)}}}",
            f"\\label{{tab:{slug(head.name)}-{slug(section.name)}}}",
            "\\resizebox{\\textwidth}{!}{%",
            f"\\begin{{tabular}}{{@{{}}{''.join('l' if i < 3 else 'r' for i in kept)}@{{}}}}",
            "\\toprule",
            " & ".join(HEAD[i] for i in kept) + r" \\",
            "\\midrule",
        ]
        for line in section.lines:
            cells, marks = _cells(line, notes)
            out.append(
                " & ".join(_tex(cells[i]) + (f"\\textsuperscript{{{','.join(marks[i])}}}" if marks[i] else "") for i in kept)
                + r" \\"
            )
        out += ["\\bottomrule", "\\end{tabular}}", "\\par\\smallskip", "\\begin{minipage}{\\textwidth}\\footnotesize"]
        said = [f"\\textsuperscript{{{mark}}}{_tex(text)}." for mark, text in notes.all()]
        said += [_tex(text) for text in section.differs]
        out += [*(said or ["~"]), "\\end{minipage}", "\\end{table*}", ""]
    return "\n".join(out)


def _tex(text: str) -> str:
    return tex(text).replace("Δ", r"\ensuremath{\Delta}")


# ------------------------------------------------------------------------------------------------------------ terminal
def print_paper(collection: Collection, parts_: Mapping[str, Part], console: Console) -> None:
    """The table on a terminal: what was measured, then what is waiting for data, and where those are got."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    def say(text: str, style: str = "") -> Text:
        return Text(to_console(text, console.encoding), style=style)  # Text: names are never read as markup

    made = sections(collection, parts_)
    for section in map(_brief, made):
        waiting = not section.about
        title = f"{section.title} ({_state(section)})" if waiting and section.why else section.title
        grid = Grid(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=say(title), title_justify="left", title_style="bold"
        )
        readers = {line.recognizer for line in section.lines}
        chances = any(line.chance is not None for line in section.lines)
        heads = [HEAD[0], HEAD[1], HEAD[3]]
        if not waiting:
            heads += [HEAD[4], *([HEAD[5]] if chances else []), "Images, persons"]
        for i, head in enumerate(heads):
            grid.add_column(say(head), justify="left" if i < 2 else "right", overflow="fold", no_wrap=i == 1)
        notes = Notes()
        for line in section.lines:
            cells, marks = _cells(line, notes)
            who = f" ({line.recognizer})" if len(readers) > 1 and line.recognizer else ""
            row = [say(cells[0] + who), say(cells[1]), say(cells[3])]
            if not waiting:
                row[2].append(f" ({','.join(marks[3])})" if marks[3] else "", "dim")
                ours = say(cells[4], "dim" if line.value is None else "bold" if line.trusted else "")
                ours.append(f" ({','.join(marks[4])})" if marks[4] else "", "dim")
                row += [ours, *([say(cells[5])] if chances else []), say(", ".join(c for c in cells[6:] if c))]
            grid.add_row(*row)
        console.print(grid)
        if not waiting:
            for mark, text in notes.all():
                console.print(say(f"({mark}) {text}", "dim"))
            for text in (*section.about, *section.differs):
                console.print(say(f"- {text}", "dim"))
        console.print()
    for text in _introduction(collection, made):
        console.print(say(text))
    if lacking := _lacking(collection, made):
        console.print(say(f"\nData that were not given. {LAYOUT}", "bold"))
        for d in lacking:
            console.print(say(f"  --data {d.key}=FOLDER   {_how_to_get(d)}"))
