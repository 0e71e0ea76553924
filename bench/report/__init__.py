"""What a run looks like to people: tables, figures, a page and a summary for the terminal.

Importing this is cheap; pandas, matplotlib and Jinja are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deidbench.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from deidbench.records import Run
    from deidbench.report.tables import Table

FORMATS = ("csv", "md", "tex", "html")

__all__ = ["FORMATS", "print_summary", "write_report"]


def write_report(
    folder: Path,
    *,
    formats: Sequence[str] = FORMATS,
    figures: bool = True,
    faces: bool | None = None,
    plusminus: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Reads the run in ``folder`` and writes ``tables/``, ``figures/`` and ``report.html`` into it.

    formats: of :data:`FORMATS`.  figures: draw them, unless they are there already and would come out the same.  faces: show pictures of
    faces; None: where the run was asked to, or the data set's licence allows it.  plusminus: ± half the width instead of the ends
    of intervals.  console: told what is under way.
    Every file is written whole or not at all.  Returns the paths, in the order in which they were written.
    Raises MissingError or InputError where the folder is no readable run, EnvironmentFault where it cannot be written.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InputError(f"unknown report format {unknown[0]!r}", f"choose from: {', '.join(FORMATS)}")

    from deidbench.records import read_run
    from deidbench.report import samples, tables
    from deidbench.report.details import attackers_table, detail_tables
    from deidbench.report.view import View, write_atomically

    folder = Path(folder)
    view = View(read_run(folder))
    for name in ("tables", "figures"):  # of a stranger's folder: nothing is written, or taken away, where a link leads
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{folder / name} leads out of the run's folder by a symbolic link", "remove the link")
    written: list[Path] = []

    def say(text: str) -> None:
        if console is not None:
            console.print(f"report: {text}", style="dim", markup=False, highlight=False)

    from deidbench.report.standing import Standings

    standings = Standings(view.run)
    if standings.why:
        say(f"the best of each column is not marked: {standings.why}")

    def mark(table: Table) -> Table:
        marked = standings.mark(table)
        return tables.plus_minus(marked) if plusminus else marked

    main = [mark(tables.main_table(view, d)) for d in view.datasets]
    ladder = [t for d in view.datasets if (t := attackers_table(view, d)) is not None]
    if plusminus:
        ladder = [tables.plus_minus(t) for t in ladder]
    if "csv" in formats:
        written.append(write_atomically(folder / "tables" / "main.csv", tables.csv_wide(main)))
        if ladder:
            written.append(write_atomically(folder / "tables" / "attackers.csv", tables.csv_wide(ladder)))
        written.append(write_atomically(folder / "tables" / "rows.csv", tables.csv_long(view.run.rows)))
    if "md" in formats:
        written.append(write_atomically(folder / "tables" / "main.md", tables.markdown(main)))
        if ladder:
            written.append(write_atomically(folder / "tables" / "attackers.md", tables.markdown(ladder)))
        details = [mark(t) for d in view.datasets for t in detail_tables(view, d)]
        if details:
            written.append(write_atomically(folder / "tables" / "details.md", tables.markdown(details)))
    if "tex" in formats:
        written.append(write_atomically(folder / "tables" / "main.tex", tables.latex(main)))
        if ladder:
            written.append(write_atomically(folder / "tables" / "attackers.tex", tables.latex(ladder)))
    drawn = []
    hidden = samples.hidden(view, faces)
    if hidden:
        say(hidden)
        samples.remove(folder / "figures")  # whatever else is asked for: none of an earlier report stays
    if figures:
        from deidbench.report.reuse import figures as draw

        drawn = draw(view, folder / "figures", say=say, hidden=hidden)
        for saved in drawn:
            written += [*saved.narrow, *saved.wide]
            if saved.why and saved.why != hidden:
                say(f"figure {saved.name} is not drawn: {saved.why}")
    if "html" in formats:
        from deidbench.report.html import page

        say("report.html")
        written.append(
            write_atomically(folder / "report.html", page(view, drawn, written, drawn=figures, hidden=hidden, mark=mark))
        )
    return written


def print_summary(run: Run, console: Console) -> None:
    """The findings in words and the main table, in the columns that the terminal has room for."""
    from rich.text import Text

    from deidbench.report import tables
    from deidbench.report.standing import Standings
    from deidbench.report.view import View

    view, standings = View(run), Standings(run)
    for dataset in view.datasets:
        tables.print_table(standings.mark(tables.main_table(view, dataset)), console)
        console.print()
        for text in tables.headlines(view, dataset):
            console.print(Text(tables.to_console(text, console.encoding)))
        for text in tables.warnings(view, dataset):
            console.print(Text(tables.to_console(f"! {text}", console.encoding), style="yellow"))
