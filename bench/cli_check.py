"""The command ``check``: does a plug-in keep the contract?  Heavy imports happen inside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from deidbench.contract import Result
    from deidbench.contract_child import About

MARKS = {
    "passed": ("✓", "green"),
    "warned": ("!", "yellow"),
    "failed": ("✗", "bold red"),
    "skipped": ("-", "dim"),
    "untried": ("·", "dim"),
}


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from deidbench.contract import checks

    for check in checks().values():
        click.echo(f"{check.name:<17} {check.title}")
    context.exit()


@click.command()
@click.argument("target", metavar="NAME | MODULE:CLASS | FILE.py[:CLASS]")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the method; may be repeated.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Try it on faces of this folder.  [default: the bundled ORL faces]"
)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check, and what it builds on; may be repeated.")
@click.option("--quick", is_flag=True, help="Fewer pictures and repeats.")
@click.option("--timeout", default=60.0, show_default=True, metavar="S", help="Seconds that one check may take.")
@click.option("--strict", is_flag=True, help="Warnings count as failures.")
@click.option("--control", is_flag=True, help="It is a control row, which may give the face away.")
@click.option("--badge", "badge_file", type=click.Path(path_type=Path), help="Write a badge (SVG) here.")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the checks, and what each asks for."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(
    target: str, params: Sequence[str], data: Path | None, only: Sequence[str], quick: bool,
    timeout: float, strict: bool, control: bool, badge_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Does an anonymizer keep the contract?

    Tries it on real faces: shapes and types, statuses, repeatability, seeds, batches, another process, faces that come back
    clear, time and memory.  Every check runs in a process apart and has a time limit, so that a plug-in that hangs or
    crashes fails that check and no other.

    \b
    deidbench check my-method                      a registered name (deidbench ls anonymizers)
    deidbench check my_package.method:MyMethod     a class that can be imported from here
    deidbench check my_method.py                   a file, whose code is run
    deidbench check my-method --only batch --param amount=0.2
    deidbench check my-method --badge contract.svg

    \b
    exit 0  all checks passed
    exit 1  a check failed (with --strict: or warned)
    exit 2  bad usage: no such name, parameter or check
    exit 3  it cannot be imported, or something that it needs is not installed
    """
    import json

    from deidbench.cli import _parameter
    from deidbench.contract import chosen, faces_of
    from deidbench.contract_child import Apart, Request
    from deidbench.contract_target import is_file
    from deidbench.errors import ExitCode, InputError
    from deidbench.progress import console

    if not timeout > 0:
        raise InputError(f"--timeout {timeout:g} is no time", "--timeout 60")
    wanted = chosen(only)
    if data is not None and not data.exists():
        raise InputError(f"--data {data}: no such folder", "name a folder that holds manifest.csv or one sub-folder per person")
    request = Request(target, dict(_parameter(p) for p in params), timeout, quick, True if control else None)
    source = "the bundled ORL faces" if data is None else f"faces of {data}"
    screen = console()
    results: list[Result] = []

    def tell(result: Result) -> None:
        results.append(result)
        if not as_json and result.verdict != "untried":
            _row(screen, result)

    with Apart(request) as apart:
        if not as_json:
            said = f"deidbench check {target}" + (", whose code is run" if is_file(target) else "")
            screen.print(f"{said}, on {source}", style="bold", markup=False, soft_wrap=True)
        tell(apart.begin())
        if apart.about is not None:
            for result in apart.run(wanted, faces_of(data, apart.about.gallery)):
                tell(result)
    about = apart.about
    words, colour = summary(about, target, results)
    if as_json:
        click.echo(json.dumps(record(about, target, source, results, words, apart.printed), indent=1, default=repr))
    else:
        _left_out(screen, results)
        _stories(screen, results)
        screen.print()
        screen.print(words, style=f"bold {'default' if colour == 'grey' else colour}", markup=False, soft_wrap=True)
    if badge_file is not None:
        from deidbench.badge import badge
        from deidbench.report.view import write_atomically

        label, _, message = words.partition(" - ")[0].rpartition(" contract ")
        write_atomically(badge_file, badge(f"{label} contract", message, colour))
        click.echo(f"badge: {badge_file}", err=as_json)
    failed = [r for r in results if not r.good or (strict and r.verdict == "warned")]
    if any(r.missing for r in results):
        sys.exit(ExitCode.MISSING)
    sys.exit(ExitCode.NEGATIVE if failed else ExitCode.OK)


def counts(results: Sequence[Result]) -> tuple[int, int]:
    """Checks that passed (or warned), and all that apply to the method."""
    applying = [r for r in results if r.verdict != "skipped"]
    return sum(r.good for r in applying), len(applying)


def summary(about: About | None, target: str, results: Sequence[Result]) -> tuple[str, str]:
    """The line at the end, and its colour."""
    good, total = counts(results)
    if any(r.missing for r in results):
        return f"deidbench contract not tried - {target} - something that it needs is not here", "grey"
    warned = sum(r.verdict == "warned" for r in results)
    name = f"{about.name} {about.version}" if about else target
    parts = [
        f"deidbench contract {good}/{total} passed" + (f", {warned} with a warning" if warned and good == total else ""),
        name,
    ]
    if about and about.params:
        parts[-1] += f" ({', '.join(f'{k}={v!r}' for k, v in about.params.items())})" if len(about.params) <= 3 else ""
    if about:
        parts.append("deterministic" if about.deterministic else "seeded")
    rate = next((r.figures["images_per_s"] for r in results if "images_per_s" in r.figures), None)
    if rate is not None:
        parts.append(f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s")
    return " - ".join(parts), "red" if good < total else "yellow" if warned else "green"


def record(
    about: About | None, target: str, source: str, results: Sequence[Result], words: str, printed: str
) -> dict[str, Any]:
    """All of it, for a script."""
    from deidbench import __version__

    good, total = counts(results)
    return {
        "format": 1,
        "deidbench": __version__,
        "target": target,
        "method": None if about is None else vars(about),
        "data": source,
        "summary": words,
        "passed": good,
        "applying": total,
        "figures": {k: v for r in results for k, v in r.figures.items()},
        "checks": [r.record() for r in results],
        "printed": printed,
    }


def _row(screen: Console, result: Result) -> None:
    from rich.table import Table
    from rich.text import Text

    mark, style = MARKS[result.verdict.value]
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(width=17)
    table.add_column(ratio=1, overflow="fold")
    table.expand = True
    dim = "dim" if result.verdict in ("skipped", "untried") else ""
    table.add_row(Text(mark, style), Text(result.check, dim), Text(result.found, dim))
    screen.print(table)


def _left_out(screen: Console, results: Sequence[Result]) -> None:
    """What was not tried, in one line: the checks that stopped it come first in the reader's work."""
    left = [r.check for r in results if r.verdict == "untried"]
    if not left:
        return
    failed = [r.check for r in results if r.verdict == "failed"]
    words = f"{len(left)} not tried until {' and '.join(failed)} {'passes' if len(failed) == 1 else 'pass'}: {', '.join(left)}"
    screen.print(f"· {words}", style="dim", markup=False)


def _stories(screen: Console, results: Sequence[Result]) -> None:
    """For all that failed or warned: what was expected, why it matters, how to mend it."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for result in results:
        if result.verdict not in ("failed", "warned"):
            continue
        mark, style = MARKS[result.verdict.value]
        screen.print()
        screen.print(Text.assemble((f"{mark} {result.check}", style), f"  {result.found}"))
        table = Table.grid(padding=(0, 2))
        table.add_column(width=8, style="dim")
        table.add_column(ratio=1, overflow="fold")
        table.expand = True
        for title, words in (("expected", result.expected), ("why", result.why), ("mend", result.mend)):
            if words:
                table.add_row(title, Text(words))
        screen.print(Padding(table, (0, 0, 0, 2)))
