"""The commands about data sets: ``data ls``, ``data prepare``, ``data verify``.  Heavy imports happen inside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial as bound
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deidbench.data_prepare import Preparation

SIGNS = {"ok": ("green", "ok"), "missing": ("yellow", "missing"), "wrong": ("red", "wrong"), "note": ("cyan", "note")}
#: How many files ``verify`` names.
NAMED = 10


@click.group("data")
def data() -> None:
    """Data sets in the layouts in which their authors hand them out.

    \b
    deidbench data ls                                  which there are, which are ready, who may have them
    deidbench data prepare lfw --from ~/Downloads/lfw  check a folder and remember it
    deidbench run deidbench-v3 --dataset lfw           evaluate on it
    deidbench data verify lfw                          are its files still the same?
    """


@data.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def ls(as_json: bool) -> None:
    """List the data sets: ready or not, persons x images, licence."""
    from deidbench.data_prepare import listing
    from deidbench.progress import console

    rows = listing()
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "state", "persons", "images", "licence", "where, or how it is made ready"):
        table.add_column(name, justify="right" if name in ("persons", "images") else "left", overflow="fold")
    for r in rows:
        state = "[green]ready[/green]" if r["ready"] else "[yellow]not ready[/yellow]"
        count = {k: f"{r[k]:,}" if r.get(k) else "-" for k in ("persons", "images")}
        where = escape(r.get("root", "")) if r["ready"] else f"deidbench data prepare {r['name']} --from DIR"
        table.add_row(r["name"], state, count["persons"], count["images"], escape(r.get("licence", "")), where)
    console().print(table)


@data.command("prepare")
@click.argument("name")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), metavar="DIR",
    help="The folder that holds it.  [default: the recorded one, else $DEIDBENCH_DATA/NAME, or data/NAME in the user's data folder]",
)  # fmt: skip
@click.option("--partial", is_flag=True, help="Accept a folder that has only some of the images; they are counted.")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", help="A parameter of the data set; may be repeated.")
@click.option("--unpack", is_flag=True, help="Unpack the official archives that lie in DIR, into DIR.")
@click.option("--download", is_flag=True, help="Fetch into DIR what the authors let anybody fetch (asks first).")
@click.option("--yes", is_flag=True, help="Agree to the download and its terms without being asked.")
@click.option("--quiet", is_flag=True, help="No progress bars, no table.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def prepare(
    name: str, source: Path | None, partial: bool, params: Sequence[str], unpack: bool, download: bool, yes: bool, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Check the folder of the data set NAME, and remember it.

    Compares what is there with what is expected, says what is missing and where it is got, under which terms.  The folder is only
    read (but for --unpack and --download); what is remembered is its place and the SHA-256 of every image.

    \b
    exit 0  ready: deidbench run SUITE --dataset NAME
    exit 3  something is missing
    exit 2  something is there and wrong (cut short, edited, another set)
    """
    from deidbench.cli import _parameter
    from deidbench.data_prepare import download as fetch
    from deidbench.data_prepare import prepare as check
    from deidbench.data_prepare import unpack_all, usual_root
    from deidbench.progress import progress

    bar = bound(progress, quiet=quiet or as_json)
    given = dict(_parameter(p, example="images=wild") for p in params)
    root = (source or usual_root(name)).expanduser()
    if download:
        _agree(name, root, yes)
        fetch(name, root, consent=True, progress=bar)
    if unpack:
        for archive, files in unpack_all(name, root, bar):
            click.echo(f"{archive.name}: {files:,} files unpacked", err=True)
    done = check(name, source, partial=partial, params=given, progress=bar)
    if as_json:
        import json

        click.echo(json.dumps(_plain(done), indent=1))
    elif not quiet:
        _show(done)
    sys.exit(done.exit_code)


def _agree(name: str, root: Path, yes: bool) -> None:
    """Asks for consent to a download.  Raises InputError where nobody can be asked."""
    from deidbench.data_prepare import downloads, official
    from deidbench.errors import InputError

    files = downloads(name)
    of = official(name)
    click.echo(
        f"{of.title}\n  licence: {of.licence}\n  terms: {of.terms}\n  cite: {of.citation}\nto be fetched into {root}:", err=True
    )
    for f in files:
        click.echo(f"  {f['filename']} from {f['url']}", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("a download needs consent, and nobody can be asked here", "read the terms above, then add --yes")
    click.confirm("Fetch these files and agree to the terms?", abort=True, err=True)


def _plain(done: Preparation) -> dict[str, Any]:
    from dataclasses import asdict

    from deidbench.data_prepare import official

    of = official(done.name)
    return {
        "name": done.name, "title": of.title, "root": str(done.root), "ready": done.report.ready, "exit": int(done.exit_code),
        "findings": [asdict(f) for f in done.report.findings], "licence": of.licence, "terms": of.terms, "homepage": of.homepage,
        "citation": of.citation, "record": str(done.record or ""), "prepared": asdict(done.prepared) if done.prepared else None,
    }  # fmt: skip


def _show(done: Preparation) -> None:
    from rich.markup import escape

    from deidbench.data_prepare import official
    from deidbench.progress import console

    of, screen = official(done.name), console()

    def say(text: str) -> None:
        screen.print(text, soft_wrap=True)

    say(f"[bold]{escape(of.title)}[/bold] in {escape(str(done.root))}")
    say(f"  licence: {escape(of.licence)}\n  terms:   {escape(of.terms)}\n  got at:  {escape(of.homepage)}\n")
    for f in done.report.findings:
        colour, word = SIGNS[f.level]
        counts = f"  ({f.found:,} of {f.expected:,})" if f.found is not None and f.expected is not None else ""
        say(f"  [{colour}]{word:<8}[/{colour}] {escape(f.what)}{counts}")
        if f.remedy:
            say(f"           -> {escape(f.remedy)}")
    if not done.report.ready:
        say("\n[yellow]not ready[/yellow]; the folder, as it should be:\n")
        say("\n".join(f"  {line}" for line in escape(of.expected.tree).splitlines()))
        return
    assert done.prepared is not None
    persons = f"{done.prepared.persons:,} persons, " if done.prepared.persons else ""
    say(
        f"\n[green]ready[/green]: {persons}{done.prepared.images:,} images, manifest SHA-256 {done.prepared.manifest_sha256[:16]}"
    )
    say(f"  deidbench run deidbench-v3 --dataset {done.name}")
    extra = {k: v for k, v in done.prepared.params.items() if k != "partial"}
    for key, value in extra.items():
        say(f"    with --set dataset.params.{key}={escape(str(value).lower() if isinstance(value, bool) else str(value))}")


@data.command("verify")
@click.argument("name")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify(name: str, quiet: bool, as_json: bool) -> None:
    """Read every file of the prepared data set NAME again and compare its SHA-256 with the record.

    Exit 0: the same; 2: files differ, or there are new ones; 3: files are gone, or the set was never prepared.
    """
    from deidbench.data_prepare import verify as compare
    from deidbench.progress import progress

    found = compare(name, bound(progress, quiet=quiet or as_json))
    if as_json:
        import json

        click.echo(
            json.dumps(
                {
                    "name": name, "root": str(found.root), "checked": found.checked, "changed": found.changed, "gone": found.gone,
                    "new": found.new, "exit": int(found.exit_code),
                },
                indent=1,
            )
        )  # fmt: skip
    else:
        said = [
            f"{len(files):,} {word}"
            for word, files in (("changed", found.changed), ("gone", found.gone), ("new", found.new))
            if files
        ]
        click.echo(f"{name} in {found.root}: {found.checked:,} files checked, " + (", ".join(said) or "all as they were"))
        for word, files in (("changed", found.changed), ("gone", found.gone), ("new", found.new)):
            for path in files[:NAMED]:
                click.echo(f"  {word}: {path}", err=True)
            if len(files) > NAMED:
                click.echo(f"  {word}: {len(files) - NAMED:,} more", err=True)
        if said:
            click.echo(
                f"  -> restore the files, or record them as they are: deidbench data prepare {name} --from {found.root}",
                err=True,
            )
    sys.exit(found.exit_code)


__all__ = ["data"]
