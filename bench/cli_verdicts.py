"""The commands that decide: ``compare`` and ``gate``.  Heavy imports happen inside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

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
@click.option("--method", required=True, help="The method (its label in the runs).")
@click.option(
    "--margins", type=click.Path(path_type=Path), help="TOML file of the guarded figures.  [default: the bundled one]"
)
@click.option("--out", type=click.Path(path_type=Path), help="Write figure and table into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as JSON.")
def history(runs: Sequence[Path], method: str, margins: Path | None, out: Path | None, as_json: bool) -> None:
    """How did a method fare from run to run?

    The guarded figures of several runs, oldest first, with their intervals and the margin around the first one.

    \b
    deidbench history results/2026-* --method ganonymization --out history
    """
    import json

    from deidbench.gate import load_margins
    from deidbench.history import guarded, lines, ordered
    from deidbench.progress import console
    from deidbench.report.history import show, write
    from deidbench.scored import load

    loaded = ordered(load(runs))
    margin_of = guarded(loaded, method, load_margins(margins))
    found = lines(loaded, method, list(margin_of))
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        show(found, console())
    if out is not None:
        _written(write(loaded, found, margin_of, method, out), quiet=as_json)


def _written(paths: Sequence[Path], *, quiet: bool) -> None:
    page = next((p for p in paths if p.suffix == ".html"), None)
    if paths:
        said = f"{len(paths)} files in {paths[0].parent}" + (f"; the page: {page}" if page else "")
        click.echo(said, err=quiet)


__all__ = ["compare", "gate", "history"]
