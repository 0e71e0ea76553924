"""The commands that decide: ``compare`` and ``gate``.  Heavy imports happen inside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

RUNS = click.Path(path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RUNS, metavar="RUN [RUN ...]")
@click.option("--reference", metavar="METHOD", help="Compare every method with this one instead of all pairs.")
@click.option("--only", multiple=True, metavar="METHOD", help="Only these methods (label or sweep name); may be repeated.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME[/WHO]",
    help="Only these figures, * matches anything, e.g. 'reid.*/sface' or 'attributes.removal'; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="Every figure, every convention.")
@click.option("--controls", is_flag=True, help="With the control rows (original, blackout).")
@click.option("--alpha", default=0.05, show_default=True, help="Level of the tests after Holm's correction.")
@click.option(
    "--across", is_flag=True, help="Runs of one suite on several data sets: Friedman test and critical-difference diagram."
)
@click.option("--force", is_flag=True, help="Compare runs that differ in data, protocol or recognisers, and mark the result.")
@click.option("--out", type=click.Path(path_type=Path), help="Write tables, figures and a page into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def compare(
    runs: Sequence[Path], reference: str | None, only: Sequence[str], metrics: Sequence[str], everything: bool, controls: bool,
    alpha: float, across: bool, force: bool, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Which method is better, beyond chance?

    Compares the methods of one run, or of several runs on the same data: difference, interval over persons, test, p-value
    adjusted by Holm, effect size, and a verdict in words.  Runs whose data, protocol or recognisers differ are refused.

    \b
    deidbench compare results/demo                                       all pairs of its methods
    deidbench compare results/demo --reference ganonymization --out cmp  all against one; tables, figures, page
    deidbench compare results/old results/new --only ganonymization      the same method in two runs
    deidbench compare results/* --across                                 one suite on five data sets or more
    """
    import json

    from deidbench.compare import compare as work
    from deidbench.progress import console
    from deidbench.scored import load

    loaded = load(runs)
    if across:
        from deidbench.across import across as many
        from deidbench.report.across import show as show_across
        from deidbench.report.across import write as write_across

        found = many(loaded, only=only, metrics=metrics, controls=controls, alpha=alpha, force=force)
        if as_json:
            click.echo(json.dumps(found.record(), indent=1))
        else:
            show_across(found, console())
        if out is not None:
            _written(write_across(found, out), quiet=as_json)
        return
    from deidbench.report import comparison as report

    result = work(
        loaded, only=only, reference=reference or "", metrics=metrics, everything=everything, controls=controls, force=force,
        alpha=alpha,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(result.record(), indent=1))
    else:
        report.show(result, console(), whole=bool(metrics) or everything)
    if out is not None:
        _written(report.write(result, out), quiet=as_json)


@click.command()
@click.argument("baseline", type=RUNS)
@click.argument("candidate", type=RUNS)
@click.option("--margins", type=click.Path(path_type=Path), help="TOML file of the margins.  [default: the bundled ones]")
@click.option(
    "--method", "methods", multiple=True, metavar="METHOD[=METHOD]",
    help="Only this method; BASELINE=CANDIDATE where the two runs call it differently; may be repeated.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Gate runs that differ in data, protocol or recognisers, and mark the result.")
@click.option("--strict", is_flag=True, help="A figure of the margins file that a run lacks is a failure, not undecided.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a summary in Markdown here (for a pull request).")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write everything as JSON here; - for standard output."
)
@click.option("--quiet", is_flag=True, help="Print nothing; the exit code says it.")
def gate(
    baseline: Path, candidate: Path, margins: Path | None, methods: Sequence[str], force: bool, strict: bool, junit: Path | None,
    markdown: Path | None, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Is the run CANDIDATE no worse than the run BASELINE?

    Each guarded figure may get worse by its margin, fixed beforehand in a file, and by no more: the one-sided bound of the paired
    difference over persons decides (non-inferiority).  "Not significant" is no pass.

    \b
    exit 0  every bound lies within its margin (or the outputs are identical)
    exit 1  some interval lies beyond its margin as a whole: it got worse
    exit 2  undecided: an interval straddles its margin (it says how many persons would do), or the runs cannot be compared

    \b
    deidbench gate results/reference/demo results/demo --method ganonymization
    deidbench gate old new --margins margins.toml --junit gate.xml --markdown summary.md
    """
    import json
    import traceback

    from deidbench import gate as g
    from deidbench.errors import DeidbenchError, ExitCode
    from deidbench.progress import console
    from deidbench.records import read_run
    from deidbench.report import gate as report
    from deidbench.report.view import write_atomically

    try:
        found = g.gate(
            read_run(baseline), read_run(candidate), g.load_margins(margins), methods=methods, force=force, strict=strict
        )
    except (DeidbenchError, OSError):
        raise
    except Exception:  # an error of ours is no "got worse", which Python's own exit code 1 would say
        traceback.print_exc()
        click.echo("error: the gate itself failed, which decides nothing; please report the lines above", err=True)
        sys.exit(ExitCode.USAGE)
    for path, text in (
        (junit, report.junit(found) if junit else ""),
        (markdown, report.markdown(found) if markdown else ""),
        (json_file, json.dumps(found.record(), indent=1) if json_file else ""),
    ):
        if path is not None and str(path) != "-":
            write_atomically(path, text)
    if str(json_file) == "-":
        click.echo(json.dumps(found.record(), indent=1))
    elif not quiet:
        report.show(found, console())
    sys.exit(found.exit_code)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RUNS, metavar="RUN [RUN ...]")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="Only this method (its label in the runs); may be repeated.  [default: all but the controls]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME[/WHO]",
    help="These figures instead of the guarded ones, * matches anything, e.g. 'reid.rank1/sface'; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="With --metric: every convention, not the headline alone.")
@click.option("--dataset", default="", metavar="NAME", help="Only runs on this data set.")
@click.option("--protocol", default="", metavar="NAME", help="Only runs under this protocol.")
@click.option(
    "--since", default="", metavar="WHEN", help="Only runs since this day or time (2026-11-01), or of the last 30d, 12h, 4w."
)
@click.option(
    "--margins", type=click.Path(path_type=Path), help="TOML file of the guarded figures.  [default: the bundled one]"
)
@click.option("--sql", metavar="SELECT", help="Ask the tables runs, methods, rows and images, which share the column run.")
@click.option("--out", type=click.Path(path_type=Path), help="Write figure and table into this folder (of one method).")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the lines as CSV.")
@click.option("--parquet", type=click.Path(path_type=Path), metavar="FILE", help="Write the lines into this file.")
@click.option(
    "--upgrade", is_flag=True, help="Write runs of older versions anew in the present form; the originals are kept beside."
)
def history(
    runs: Sequence[Path], methods: Sequence[str], metrics: Sequence[str], everything: bool, dataset: str, protocol: str, since: str,
    margins: Path | None, sql: str | None, out: Path | None, as_json: bool, as_csv: bool, parquet: Path | None, upgrade: bool,
) -> None:  # fmt: skip
    """How did a method fare from run to run?

    The guarded figures of several runs, oldest first, with their intervals and the margin around the first one.  A folder stands for
    all runs below it.  Runs of one store are in the order in which the store saw them, others by the time at which they were
    started; a time that cannot be right is marked.  Runs of older versions are read as they are, and not changed.

    \b
    deidbench history results/2026-* --method ganonymization --out history
    deidbench history results --method ganonymization --metric reid.eer/sface --since 30d
    deidbench history results --sql "SELECT run, method, value FROM rows WHERE metric = 'reid.worst_rank1'" --csv
    deidbench history results --upgrade
    """
    from deidbench import history as h
    from deidbench.errors import InputError
    from deidbench.progress import console

    if upgrade:
        _upgrade(runs, as_json)
        return
    if as_json and as_csv:
        raise InputError("--json and --csv are both given", "one of them; --parquet FILE goes with either")
    past = h.read(h.find(runs))
    past = h.chosen(past, dataset=dataset, protocol=protocol, after=h.since(since) if since else None)
    with h.Archive(past) as archive:
        if sql is not None:
            if methods or metrics or out is not None:
                raise InputError("--sql asks for itself: --method, --metric and --out do not go with it", h.TABLES)
            if "images" in sql.lower():
                archive.with_images()
            names, lines = archive.table(sql)
            if parquet is not None:
                _parquet(names, lines, parquet, quiet=as_json or as_csv)
            if as_json or as_csv or parquet is None:
                _print_table(names, lines, as_json, as_csv)
            return
        if everything and not metrics:
            raise InputError("--all goes with --metric", "e.g. --metric 'reid.*' --all")
        chosen = list(dict.fromkeys(methods)) or archive.methods()
        if out is not None and len(chosen) != 1:
            raise InputError(
                f"--out draws one method, and there are {len(chosen)}",
                f"--method METHOD, one of: {', '.join(chosen) or 'none'}",
            )
        from deidbench.gate import load_margins

        limits = archive.guarded(chosen, load_margins(margins))
        margin_of: dict[Any, float | None] = dict(limits)
        if metrics:
            margin_of = {q: limits.get(q) for q in archive.matching(chosen, metrics, everything=everything)}
        found = archive.lines(chosen, margin_of)
        light = archive.light(chosen[0]) if out is not None else []
    if parquet is not None:
        _parquet(list(found[0]) if found else [], [tuple(x.values()) for x in found], parquet, quiet=as_json or as_csv)
    if as_json:
        import json

        click.echo(json.dumps(found, indent=1))
    elif as_csv:
        _print_csv(list(found[0]) if found else [], [tuple(x.values()) for x in found])
    elif parquet is None:
        from deidbench.report.history import show

        show(found, console())
        screen = console(stderr=True)
        screen.print(f"{len(past)} runs, {h.ORDER}", soft_wrap=True)
    if out is not None:
        from deidbench.report.history import write

        _written(write(light, found, margin_of, chosen[0], out), quiet=as_json or as_csv)


def _upgrade(runs: Sequence[Path], as_json: bool) -> None:
    from deidbench.history import find
    from deidbench.migrations import interrupted, kept
    from deidbench.migrations import upgrade as work

    half = [r for r in runs if interrupted(r) is not None]
    done = {str(folder): work(folder) for folder in [*half, *find([r for r in runs if r not in half])]}
    if as_json:
        import json

        click.echo(json.dumps(done))
        return
    for folder, schema in done.items():
        if schema is not None:
            click.echo(f"{folder}: schema {schema} -> the present one; the originals are in {kept(Path(folder), schema)}")
    click.echo(f"{len(done)} runs, {sum(s is not None for s in done.values())} written anew")


Lines = Sequence[tuple[Any, ...]]


def _parquet(names: Sequence[str], lines: Lines, path: Path, *, quiet: bool) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from deidbench.errors import InputError
    from deidbench.images import atomic_write, make_folder

    if len(set(names)) < len(names):
        raise InputError("--parquet: two columns have the same name", "give each a name of its own with AS")
    buffer = io.BytesIO()
    columns = {name: [line[i] for line in lines] for i, name in enumerate(names)}
    pq.write_table(pa.table(columns), buffer)  # type: ignore[no-untyped-call]
    make_folder(path.parent)
    atomic_write(path, buffer.getvalue())
    click.echo(f"{len(lines)} lines: {path}", err=quiet)


def _print_csv(names: Sequence[str], lines: Lines) -> None:
    import csv
    import io

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    table.writerows(lines)
    click.echo(text.getvalue(), nl=False)


def _print_table(names: Sequence[str], lines: Lines, as_json: bool, as_csv: bool) -> None:
    """An answer in lines."""
    if as_csv:
        _print_csv(names, lines)
        return
    if as_json:
        import json

        # JSON knows no NaN, and times and decimals are texts there
        clean = [
            {n: None if isinstance(v, float) and v != v else v for n, v in zip(names, line, strict=True)} for line in lines
        ]
        click.echo(json.dumps(clean, indent=1, default=str))
        return
    from rich.table import Table
    from rich.text import Text

    from deidbench.progress import console
    from deidbench.report.tables import to_console
    from deidbench.report.view import plain

    screen = console()
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        shown.add_column(Text(to_console(plain(name), screen.encoding)), overflow="fold")
    for line in lines:
        cells = ["–" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for v in line]
        shown.add_row(*(Text(to_console(plain(c), screen.encoding)) for c in cells))
    screen.print(shown)


def _written(paths: Sequence[Path], *, quiet: bool) -> None:
    page = next((p for p in paths if p.suffix == ".html"), None)
    if paths:
        said = f"{len(paths)} files in {paths[0].parent}" + (f"; the page: {page}" if page else "")
        click.echo(said, err=quiet)


__all__ = ["compare", "gate", "history"]
