"""The commands about the store: ``cache info``, ``cache prune``, ``cache verify``, ``cache clear``.  Heavy imports happen inside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial as bound
from pathlib import Path
from typing import Any

import click

FOLDER = click.option(
    "--cache",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the store.  [default: $DEIDBENCH_CACHE or the user's cache folder]",
)
#: How many of a list are shown.
SHOWN = 20


@click.group("cache")
def cache() -> None:
    """The store of what was computed: how large it is, what may go, whether it is whole.

    \b
    deidbench cache info                      how much there is, of which kind, which runs use it
    deidbench cache prune --older-than 30d    delete what no run has used for thirty days
    deidbench cache prune --max-size 20GB     delete the least recently used until 20 GB are left
    deidbench cache verify                    read everything, and compare its SHA-256
    """


def _folder(given: Path | None) -> Path:
    from deidbench.cache import default_folder

    return given if given is not None else default_folder()


@cache.command("info")
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def info(folder: Path | None, as_json: bool) -> None:
    """Show how large the store is, what is in it, and which runs use it.

    Nothing is changed.  Artefacts of older versions of deidbench count as "unknown" until a run asks for them again.

    \b
    deidbench cache info
    deidbench cache info --json               for a script
    """
    from deidbench.housekeeping import overview

    found = overview(_folder(folder))
    if as_json:
        import json

        click.echo(json.dumps(found, indent=1))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deidbench.housekeeping import said
    from deidbench.progress import console

    screen = console()

    def say(text: str) -> None:
        screen.print(text, soft_wrap=True)

    where = f" ({found['file_system']})" if found["file_system"] else ""
    say(f"[bold]{escape(found['folder'])}[/bold]{where}")
    say(
        f"  {found['artefacts']:,} artefacts, {said(found['bytes'])}; {said(found['disk_bytes'])} on disk"
        + (f", {said(found['reclaimable_bytes'])} of it to be used again" if found["reclaimable_bytes"] > 1_000_000 else "")
        + f"; {said(found['free_bytes'])} free"
    )
    if found["oldest"] is not None:
        say(f"  made between {_day(found['oldest'])} and {_day(found['newest'])}")
    if found["unknown"]:
        say(f"  of {found['unknown']:,} it is not known what they are: an older deidbench made them")
    if found["future"]:
        say(f"  [yellow]{found['future']:,} have a time that lies in the future: a clock was wrong[/yellow]")
    if found["in_use_by"]:
        say(f"  in use by process {', '.join(map(str, found['in_use_by']))}")
    for name, size in found["other_folders"].items():
        say(f"  beside it: {escape(name)}, {said(size)} (of trainings; no command here touches it)")

    def show(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> None:
        if not rows:
            return
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
        for name, side in columns:
            table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
        for row in rows[:SHOWN]:
            table.add_row(*(escape(c) for c in row))
        screen.print()
        screen.print(table)
        if len(rows) > SHOWN:
            say(f"... and {len(rows) - SHOWN} more: --json has them")

    numbers = (("artefacts", "right"), ("size", "right"))
    show(
        "by kind", (("kind", "left"), *numbers, ("made", "left")),
        [(k["kind"], f"{k['artefacts']:,}", said(k["bytes"]), f"{_day(k['oldest'])} to {_day(k['newest'])}") for k in found["kinds"]],
    )  # fmt: skip
    show(
        "by method", (("fingerprint", "left"), ("called", "left"), *numbers),
        [(m["fingerprint"][:16], ", ".join(m["labels"]) or "-", f"{m['artefacts']:,}", said(m["bytes"])) for m in found["methods"]],
    )  # fmt: skip
    show(
        "runs that used it", (("run", "left"), ("suite", "left"), ("artefacts", "right"), ("last used", "left")),
        [(r["folder"] + ("" if r["there"] else " (gone)"), r["suite"], f"{r['artefacts']:,}", _day(r["used"])) for r in reversed(found["runs"])],
    )  # fmt: skip


def _day(seconds: float) -> str:
    from datetime import UTC, datetime

    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return "an impossible time"


@cache.command("prune")
@click.option("--older-than", metavar="AGE", help="What was last used longer ago than this: 30d, 12h, 4w.")
@click.option(
    "--max-size", metavar="SIZE", help="The least recently used, until the store is no larger than this: 20GB, 500MB."
)
@click.option(
    "--unused-by", "runs", multiple=True, type=click.Path(path_type=Path), metavar="RUN",
    help="What these runs do not use (folders of runs, or folders that hold runs); what they use stays in any case.  May be repeated.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@FOLDER
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print what went (or would go) as JSON.")
def prune(
    older_than: str | None, max_size: str | None, runs: Sequence[Path], dry_run: bool, yes: bool, folder: Path | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Delete from the store what is not needed; it says what, and asks, before anything goes.

    What goes is computed again when a run needs it: no result is lost, only time.  With --older-than and --unused-by both,
    an artefact must be both.  --max-size comes after them.  A store that a run has open is left alone.

    \b
    deidbench cache prune --older-than 30d --dry-run       what would go
    deidbench cache prune --unused-by results --yes        keep what the runs in results/ use, and nothing else
    deidbench cache prune --max-size 20GB --yes            for a nightly job
    """
    from deidbench.cache import Store
    from deidbench.errors import InputError
    from deidbench.history import find
    from deidbench.housekeeping import age_of, delete, plan, said, size_of, there
    from deidbench.progress import progress

    if older_than is None and max_size is None and not runs:
        raise InputError(
            "prune what?", "--older-than 30d, --max-size 20GB or --unused-by RUN; deidbench cache clear deletes everything"
        )
    age = None if older_than is None else age_of(older_than)
    limit = None if max_size is None else size_of(max_size)
    used = find(runs) if runs else []
    where = _folder(folder)
    there(where)
    with Store(where) as store:
        chosen = plan(store, older_than=age, max_size=limit, unused_by=used)
    what = f"{len(chosen.keys):,} artefacts ({said(chosen.size)}); {chosen.artefacts_left:,} stay ({said(chosen.left)})"
    if not as_json:
        click.echo(f"{where}: {'would delete' if dry_run else 'to delete'}: {what}")
        if chosen.kept:
            click.echo(f"  {said(chosen.kept)} more than {max_size}: the runs of --unused-by use them")
    gone, freed = False, 0
    if chosen.keys and not dry_run:
        _ask(yes, "Delete them?", "add --yes, or --dry-run to look only")
        with Store(where, alone=True) as store:  # not while the question waits for its answer
            chosen = plan(store, older_than=age, max_size=limit, unused_by=used)
            freed = delete(store, chosen.keys, bound(progress, quiet=quiet or as_json))
        gone = True
    if as_json:
        import json

        click.echo(
            json.dumps(
                {
                    "folder": str(where), "artefacts": len(chosen.keys), "bytes": chosen.size, "deleted": gone, "freed_bytes": freed,
                    "artefacts_left": chosen.artefacts_left, "bytes_left": chosen.left, "bytes_over": chosen.kept,
                },
                indent=1,
            )
        )  # fmt: skip
    elif gone:
        click.echo(f"deleted; the folder takes {said(freed)} less")


def _ask(yes: bool, question: str, remedy: str) -> None:
    """Asks for consent.  Raises InputError where nobody can be asked."""
    from deidbench.errors import InputError

    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("nothing was deleted: that needs consent, and nobody can be asked here", remedy)
    click.confirm(question, abort=True, err=True)


@cache.command("verify")
@click.option(
    "--delete", is_flag=True, help="Take out what is damaged, so that it is computed anew, and files without an owner."
)
@FOLDER
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify(delete: bool, folder: Path | None, quiet: bool, as_json: bool) -> None:
    """Read every artefact of the store and compare its SHA-256.

    Runs do so with what they read; this looks at everything.  A database that is damaged itself is, with --delete, made anew from
    what can be read of it.

    \b
    exit 0  all is whole, or was made so with --delete
    exit 1  something is damaged: --delete takes it out
    """
    from dataclasses import asdict

    from deidbench.errors import ExitCode
    from deidbench.housekeeping import said, summary
    from deidbench.housekeeping import verify as work
    from deidbench.progress import progress

    where = _folder(folder)
    found = work(where, delete=delete, progress=bound(progress, quiet=quiet or as_json))
    if as_json:
        import json

        click.echo(json.dumps({"folder": str(where), **asdict(found), "whole": found.whole}, indent=1, default=str))
    else:
        click.echo(f"{where}: {found.checked:,} artefacts checked, {said(found.bytes)}")
        if found.structure:
            click.echo(f"  the database is damaged: {found.structure}", err=True)
            if delete:
                click.echo(
                    f"  made anew: {found.saved:,} artefacts saved, {found.lost:,} that could be seen were damaged", err=True
                )
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(summary(found.damaged).items()))
        if found.damaged:
            click.echo(f"  {len(found.damaged):,} damaged ({kinds}){': taken out' if delete else ''}", err=True)
        for d in found.damaged[:SHOWN]:
            click.echo(f"    {d.key[:16]}  {d.kind or 'unknown'}  {said(d.size)}  {d.what}", err=True)
        if len(found.damaged) > SHOWN:
            click.echo(f"    ... and {len(found.damaged) - SHOWN:,} more: --json has them", err=True)
        if found.orphans:
            click.echo(
                f"  {len(found.orphans):,} files without an owner{': deleted' if delete else ' (--delete removes them)'}",
                err=True,
            )
        if not found.whole:
            click.echo(
                "  what was taken out is computed anew by the next run that needs it" if delete
                else "  -> deidbench cache verify --delete takes it out; the next run that needs it computes it anew", err=True,
            )  # fmt: skip
    sys.exit(ExitCode.OK if found.whole or delete else ExitCode.NEGATIVE)


@cache.command("clear")
@click.option("--yes", is_flag=True, help="Do not ask.")
@FOLDER
def clear(yes: bool, folder: Path | None) -> None:
    """Delete the whole store.

    Results of runs stay; a run after that computes everything anew.  A store that a run has open is left alone.

    \b
    deidbench cache clear
    """
    from deidbench.errors import EnvironmentFault
    from deidbench.housekeeping import clear as work
    from deidbench.housekeeping import overview, said, there

    where = _folder(folder)
    there(where)
    try:
        found = overview(where)
        what = f"{found['artefacts']:,} artefacts, {said(found['disk_bytes'])}"
    except EnvironmentFault:  # a damaged one goes as well
        what = "a damaged store"
    click.echo(f"{where}: {what}")
    _ask(yes, "Delete all of it?", "add --yes")
    click.echo(f"deleted: {said(work(where))}")


__all__ = ["cache"]
