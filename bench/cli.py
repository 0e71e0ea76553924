"""The command line.  Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deidbench import __version__
from deidbench.cli_cache import cache
from deidbench.cli_check import check
from deidbench.cli_data import data as data_sets
from deidbench.cli_recipes import recipe
from deidbench.cli_verdicts import compare, gate, history
from deidbench.errors import DeidbenchError, ExitCode, InputError, printable
from deidbench.progress import console

EXIT_CODES = """\b
Exit codes
  0    done
  1    the answer is no (doctor found something broken, gate something worse, check a broken rule, --strict a warning that matters)
  2    bad usage or bad input, nothing was computed; gate: undecided
  3    a package, weight file or data set is missing
  4    done, but some images failed; the result names them
  5    the machine failed (disk full, no permission, a worker died); run again, nothing is lost
  130  interrupted; the same command goes on from there
"""

FACES = "Keep pictures of clear faces and show them"
FACES_DEFAULT = "[default: where the data set's licence allows it]"
#: What ``--strict`` of ``run`` and ``report`` takes for a fault (:mod:`deidbench.strict`).
STRICT = (
    "For CI: exit 1, with the list, where a figure should not be quoted as it is: deviations from the protocol, images that failed or "
    "could not be read, outputs that are inputs, recognisers and classifiers that are not trusted, contaminated data, figures that could not be drawn."
)

KINDS = ("anonymizers", "recipes", "datasets", "recognizers", "classifiers", "metrics", "attackers", "suites")


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="deidbench")
def cli() -> None:
    """How private and how useful is a face anonymizer, compared with the others?

    \b
    deidbench run demo                            compare built-in methods on the bundled faces
    deidbench run deidbench-v3 --data FOLDER      the same on your own images (one sub-folder per person)
    deidbench report results/demo                 write its tables, figures and page again
    deidbench compare results/demo                which method is better, beyond chance?
    deidbench gate BASELINE CANDIDATE             is a new checkpoint no worse?  exit 0, 1 or 2
    deidbench anonymize IN OUT --method blur      anonymise files or folders
    deidbench check my-method                     does a plug-in keep the contract?
    deidbench train ganonymization --data FOLDER  train a generator of your own
    deidbench doctor                              what is installed, what is ready, how to get the rest
    """


@cli.command()
@click.argument("suite", default="demo")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the result.  [default: results/SUITE]")
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="[KEY=]FOLDER",
    help="Evaluate on this folder of images instead (manifest.csv, or one sub-folder per person).  "
    "With KEY=, repeated: for a suite of several experiments, whose data have names.",
)
@click.option(
    "--dataset",
    metavar="NAME",
    help="Evaluate on this data set (deidbench data ls), where deidbench data prepare found it; with --data FOLDER, on that folder "
    "read as this data set.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Override a value of the suite (also methods.NAME.PARAMETER=VALUE); may be repeated.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="METHOD",
    help="Run only these methods (label or sweep name), or experiments; may be repeated.",
)
@click.option("--workers", default=0, show_default="one per core", help="Worker processes.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the work is done: worker processes here, or Ray (this machine's cores, or a cluster).",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="A Ray cluster that runs already (auto: found on this machine).  [default: $RAY_ADDRESS]",
)
@click.option("--batch", default=16, show_default=True, help="Images per task.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of the store.  [default: $DEIDBENCH_CACHE or the user's cache folder]",
)
@click.option("--retry-failed", is_flag=True, help="Try images again on which a method failed.")
@click.option("--no-report", is_flag=True, help="Leave tables, figures and the page out.")
@click.option("--faces/--no-faces", default=None, help=f"{FACES}; --no-faces keeps none at all.  {FACES_DEFAULT}")
@click.option("--strict", is_flag=True, help=STRICT)
@click.option("--quiet", is_flag=True, help="No progress bars, no summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's folder and counts as JSON instead of the summary.")
def run(
    suite: str, out: Path | None, data: Sequence[str], dataset: str | None, overrides: Sequence[str], only: Sequence[str], workers: int, executor: str,
    ray_address: str | None, batch: int, cache: Path | None, retry_failed: bool, no_report: bool, faces: bool | None, strict: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run SUITE: a bundled suite's name or a TOML file.

    Finished work is kept in the store: running the same command again does what is left and nothing else.

    \b
    deidbench run ganonymization-paper                      lists the paper's experiments, and where their data are got
    deidbench run ganonymization-paper --data ck+=FOLDER    runs those whose data are given, and prints what the
                                                            paper reports beside (codes: 3 no data given; 2 or 3
                                                            where an experiment stopped, the others went on)
    """
    from deidbench.collection import is_collection
    from deidbench.runner import Options, run_suite
    from deidbench.suite import load_suite

    if is_collection(suite):
        if dataset is not None:
            raise InputError(
                f"{suite} has experiments on data of their own: --dataset does not go with it",
                "--data KEY=FOLDER, for each of them",
            )
        options = Options(workers, batch, cache, quiet or as_json, retry_failed, faces, executor, ray_address)
        _run_collection(suite, out, data, overrides, only, options, not no_report, quiet, as_json, strict)
        return
    chosen = [f"dataset.name={_toml_string(dataset or 'folder')}"] if dataset is not None or data else []
    if len(data) > 1:
        raise InputError("--data is given twice", f"{suite} is one suite and takes one folder")
    if data:
        root = Path(data[0])
        if not root.exists():
            raise InputError(
                f"--data {root}: no such folder", "name a folder that holds manifest.csv or one sub-folder per person"
            )
        chosen.append(f"dataset.params.root={_toml_string(str(root.resolve()))}")
    loaded = load_suite(suite, [*chosen, *overrides], only=only)
    folder = out or Path("results") / loaded.name
    written: list[Path] = []

    def make_report(folder: Path) -> None:
        from deidbench.report import write_report

        written.extend(write_report(folder))

    options = Options(workers, batch, cache, quiet or as_json, retry_failed, faces, executor, ray_address)
    result = run_suite(loaded, folder, options, None if no_report else make_report)
    found = _concerns(folder) if strict else []
    if as_json:
        import json

        click.echo(
            json.dumps(
                {
                    **({"concerns": found} if strict else {}),
                    "folder": str(folder),
                    "failed": result.failed,
                    "unreadable": result.unreadable,
                    "computed": dict(result.computed),
                    "damaged": result.damaged,
                    "changed": dict(result.changed),
                }
            )
        )
    elif not quiet:
        _summary(folder, written)
    if not as_json:
        for line in result.remarks():
            click.echo(printable(line), err=True)
    _fail_strictly(found)
    if result.failed or result.unreadable:
        if not as_json:
            click.echo(
                f"{result.failed} outputs failed and {result.unreadable} images could not be read: {folder}/images.parquet and run.json name them",
                err=True,
            )
        sys.exit(ExitCode.PARTIAL)


def _concerns(folder: Path, name: str = "") -> list[str]:
    from deidbench.strict import concerns

    return [f"{name}: {c}" if name else c for c in concerns(folder)]


def _fail_strictly(found: Sequence[str]) -> None:
    """Ends the command with exit code 1 where there is a concern."""
    from deidbench.report.view import plain

    for concern in found:
        click.echo(f"strict: {plain(concern)}", err=True)
    if found:
        sys.exit(ExitCode.NEGATIVE)


def _summary(folder: Path, written: Sequence[Path]) -> None:
    from deidbench.records import read_run
    from deidbench.report import print_summary

    screen = console()
    print_summary(read_run(folder), screen)
    page = folder / "report.html"
    if page in written or page.exists():
        screen.print(f"\nThe whole result: {page}", soft_wrap=True)


def _run_collection(
    source: str, out: Path | None, data: Sequence[str], overrides: Sequence[str], only: Sequence[str], options: Any,
    with_report: bool, quiet: bool, as_json: bool, strict: bool = False,
) -> None:  # fmt: skip
    """``run`` for a file that holds several experiments."""
    from deidbench.collection import given_data, load_collection, run_collection
    from deidbench.report.paper import print_paper

    def make_report(run: Path) -> None:
        from deidbench.report import write_report

        write_report(run)

    collection = load_collection(source)
    folder = out or Path("results") / collection.name
    parts = run_collection(
        collection, given_data(collection, data), folder, options, overrides, only,
        report=make_report if with_report else None,
        say=lambda text: None if options.quiet else click.echo(text, err=True),
    )  # fmt: skip
    there = any(p.there for p in parts.values())
    if as_json:
        import json

        done = {
            name: {
                "state": p.state, "why": p.why, "folder": str(p.folder), "failed": p.failed, "unreadable": p.unreadable,
                "computed": dict(p.computed), "skipped": dict(p.skipped),
            }
            for name, p in parts.items()
        }  # fmt: skip
        click.echo(
            json.dumps({"folder": str(folder), "table": str(folder / "paper.json") if there else "", "experiments": done})
        )
    elif not quiet:
        print_paper(collection, parts, console())
        if there:
            click.echo(f"\nThe whole comparison: {folder / 'paper.md'} (also .csv, .json, .tex)")
    errors = [(name, p.error) for name, p in parts.items() if p.error is not None]
    for name, error in errors:
        click.echo(printable(f"error: {name} stopped: {error}"), err=True)
    if errors:
        sys.exit(errors[0][1].exit_code)
    if not there:
        keys = ", ".join(collection.data)
        click.echo(f"nothing was run: no data given\n  -> --data KEY=FOLDER, KEY one of {keys}", err=True)
        sys.exit(ExitCode.MISSING)
    if strict:
        ran = [(name, p) for name, p in parts.items() if p.state == "done"]
        left_out = [f"{name}: {part} was left out: {why}" for name, p in ran for part, why in p.skipped.items()]
        _fail_strictly([*(c for name, p in ran for c in _concerns(p.folder, name)), *left_out])
    if failed := [name for name, p in parts.items() if p.failed or p.unreadable]:
        click.echo(f"some images failed: run.json and images.parquet name them in {', '.join(failed)}", err=True)
        sys.exit(ExitCode.PARTIAL)


def _toml_string(text: str) -> str:
    import json

    return json.dumps(text)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["csv", "md", "tex", "html"]),
    help="Only these; may be repeated.  [default: all]",
)
@click.option(
    "--ci",
    type=click.Choice(["brackets", "plusminus"]),
    default="brackets",
    show_default=True,
    help="How intervals are printed.",
)
@click.option("--no-figures", is_flag=True, help="Leave the figures as they are.")
@click.option("--faces/--no-faces", default=None, help=f"Show pictures of faces.  {FACES_DEFAULT}")
@click.option("--strict", is_flag=True, help=STRICT)
@click.option("--quiet", is_flag=True, help="Do not print the summary.")
def report(
    folder: Path, formats: Sequence[str], ci: str, no_figures: bool, faces: bool | None, strict: bool, quiet: bool
) -> None:  # fmt: skip
    """Write tables, figures and the page of the run in FOLDER again, and print its summary.

    Nothing is computed anew.  Of FORMAT: csv, Markdown and LaTeX tables are in FOLDER/tables, the page is FOLDER/report.html.

    \b
    deidbench report results/demo                              all of it
    deidbench report results/demo --format tex --no-figures    the LaTeX tables only
    deidbench report results/demo --ci plusminus               12.0 ± 2.4 instead of 12.0 [9.7, 14.5]
    """
    from deidbench.report import write_report

    written = write_report(
        folder, formats=tuple(formats) or ("csv", "md", "tex", "html"), figures=not no_figures, faces=faces, plusminus=ci == "plusminus"
    )  # fmt: skip
    if not quiet:
        _summary(folder, written)
    if strict:
        _fail_strictly(_concerns(folder))


@cli.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--method", required=True, help="An anonymizer (deidbench ls anonymizers).")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the method; may be repeated.")
@click.option("--seed", default=0, show_default=True, help="Seed of methods that draw at random.")
@click.option("--overwrite", is_flag=True, help="Make outputs anew that exist already.")
@click.option("--batch", default=16, show_default=True, help="Images per batch.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def anonymize(
    source: Path, target: Path, method: str, params: Sequence[str], seed: int, overwrite: bool, batch: int, quiet: bool
) -> None:
    """Anonymise a file or a folder tree.

    Inputs are never overwritten.  Where no face is found nothing is written; deidbench-status.csv says so.
    Running the same command again does what is left.

    \b
    deidbench anonymize photo.jpg out.jpg --method blur --param sigma=0.2     one file; strength in face sizes
    deidbench anonymize photos/ out/ --method ganonymization                  a folder tree
    deidbench anonymize photos/ out/ --method command:deface                  another program, by its recipe
    """
    from deidbench import kinds
    from deidbench.convert import anonymize_tree
    from deidbench.faces import FaceFinder
    from deidbench.progress import progress

    anonymizer = kinds.anonymizers.create(method, **dict(_parameter(p) for p in params))
    anonymizer.validate()
    summary = anonymize_tree(
        source,
        target,
        anonymizer,
        finder=FaceFinder() if anonymizer.needs_faces else None,
        batch=batch,
        overwrite=overwrite,
        seed=seed,
        progress=None if quiet else progress,
    )
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.counts.items()))
    click.echo(f"{summary.total} images: {counts}; {summary.written} written, {summary.skipped} were there already")
    for line in summary.problems[:10]:
        click.echo(printable(f"  {line.path}: {line.status}: {line.reason}"), err=True)
    if len(summary.problems) > 10:
        click.echo(f"  ... and {len(summary.problems) - 10} more: {summary.status_file}", err=True)
    for ending, n in sorted(summary.ignored.items()):
        click.echo(printable(f"  not images, left alone: {n} {ending or 'without ending'}"), err=True)
    for link in summary.links:
        click.echo(printable(f"  not followed, it is a link to a folder: {link}"), err=True)
    sys.exit(summary.exit_code)


def _parameter(text: str, option: str = "--param", example: str = "strength=0.2") -> tuple[str, Any]:
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"{option} {text!r} is not of the form NAME=VALUE", f"e.g. {option} {example}")
    try:
        return name, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return name, value


@cli.group()
def train() -> None:
    """Train a model that deidbench can run.

    \b
    deidbench train ganonymization --data FOLDER --size 128 --out my-model    a generator
    deidbench train classifier --data FOLDER --recipe emotion                 a classifier of emotions or attributes
    """


@train.command("ganonymization")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of images (manifest.csv, or one sub-folder per person).",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the training.  [default: results/ganonymization-SIZE]")
@click.option("--recipe", help="A bundled recipe (celeba-hq-128, paper-512) or a TOML file; options below go over it.")
@click.option("--role", help="Only persons of this role of the manifest.")
@click.option("--size", type=int, help="Side of the faces in pixels: 32, 64, 128, 256 or 512.")
@click.option("--width", type=int, help="Channels of the first block (official: 64).")
@click.option("--epochs", type=int, help="Passes over the data.")
@click.option("--batch", type=int, help="Faces per step.")
@click.option("--seed", type=int, help="Seed of everything.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="bf16: mixed precision, on a GPU.")
@click.option("--segmentation", help="selfie, none, or module:function of your own.")
@click.option(
    "--landmarks-from",
    type=click.Choice(["plain", "segmented"]),
    help="segmented: as the reference does (a mismatch with its use).",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting (see the recipe files); may be repeated."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--workers", default=0, show_default="one per core", help="Processes that prepare the faces.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of prepared faces.  [default: $DEIDBENCH_CACHE or the user's cache folder]",
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def train_ganonymization(
    data: Path, out: Path | None, recipe: str | None, role: str | None, overrides: Sequence[str], device: str, workers: int,
    cache: Path | None, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Train a GANonymization generator on your own faces.

    Faces are cut out, segmented and measured once and kept.  The training can be stopped at any time: the same command goes
    on from there, to the same weights.  While it runs, OUT holds sample grids, loss curves, the history, the model card and
    best.safetensors, which the method takes:  --method ganonymization --param checkpoint=OUT/best.safetensors

    \b
    deidbench train ganonymization --data FOLDER --size 256 --out my-model
    deidbench train ganonymization --data FOLDER --recipe celeba-hq-128        how the shipped checkpoint was made
    """
    from deidbench.training import Recipe, load_recipe
    from deidbench.training import train_ganonymization as work

    chosen = load_recipe(recipe) if recipe else Recipe()
    changes = {
        **{k: v for k, v in given.items() if v is not None},
        **dict(_parameter(o, "--set", "flip=true") for o in overrides),
    }
    folder = out or Path("results") / f"ganonymization-{changes.get('size', chosen.settings.get('size', 512))}"
    result = work(data, folder, chosen, changes, role=role, device=device, workers=workers, cache=cache, quiet=quiet)
    if not quiet:
        best = result.best
        if best:
            click.echo(
                f"{result.steps} steps; best after epoch {best['epoch']}: landmark error {100 * best['val_nme']:.2f} %, "
                f"faces found again {100 * best['val_found']:.1f} % (held-out persons)"
            )
        click.echo(f"card, curves, samples: {result.folder}")
        click.echo(f"use it: deidbench anonymize IN OUT --method ganonymization --param checkpoint={result.best_checkpoint}")


@train.command("classifier")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of labelled images with a manifest.csv.")
@click.option(
    "--recipe", required=True, help="A bundled recipe (emotion, attributes) or a TOML file; options below go over it."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the training.  [default: results/classifier-TASK]")
@click.option("--role", help='Only persons of this role of the manifest; "" for all, a share of whom is held out.')
@click.option("--epochs", type=int, help="Passes over the data.")
@click.option("--batch", type=int, help="Faces per step.")
@click.option("--seed", type=int, help="Seed of everything.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting (see the recipe files); may be repeated."
)
@click.option("--workers", default=0, show_default="one per core", help="Processes that prepare the faces.")
@click.option("--threads", default=0, show_default="torch's own number", help="Threads of the training.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of prepared faces.  [default: $DEIDBENCH_CACHE or the user's cache folder]",
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def train_classifier_command(
    data: Path, recipe: str, out: Path | None, role: str | None, overrides: Sequence[str], workers: int, threads: int,
    cache: Path | None, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Train a classifier of emotions or attributes on your own faces.

    The manifest has the columns path and subject_id, and emotion or votes_CLASS (how many people saw that class), or
    attributes named as CelebA's.  The training can be stopped at any time: the same command goes on from the last epoch, to the
    same weights.  OUT then holds classifier.safetensors, which a run takes as emotion-cnn or attributes-cnn with path=FILE, and
    a card with the figures on the held-out persons.

    \b
    deidbench train classifier --data FOLDER --recipe emotion --out my-emotions
    deidbench train classifier --data FOLDER --recipe attributes --role classifier_train --set flip=true
    """
    from dataclasses import replace

    from deidbench.training_classifiers import load_recipe, train_classifier

    chosen = load_recipe(recipe)
    if role is not None:
        chosen = replace(chosen, role=role, validation_role="")
    changes = {
        **{k: v for k, v in given.items() if v is not None},
        **dict(_parameter(o, "--set", "flip=true") for o in overrides),
    }
    folder = out or Path("results") / f"classifier-{chosen.task}"
    words = [f"--recipe {recipe}", "--data FOLDER", *(f"--role {role!r}" for _ in [0] if role is not None)]
    words += [f"--set {k}={v}" for k, v in changes.items()]
    result = train_classifier(
        data,
        folder,
        chosen,
        changes,
        workers=workers,
        threads=threads,
        cache=cache,
        quiet=quiet,
        command=" ".join(["deidbench train classifier", *words]),
    )
    if not quiet:
        measured = result.held_out
        if measured:
            what = "UAR" if "uar" in measured else "mean balanced accuracy"
            value = measured.get("uar", measured.get("balanced accuracy"))
            click.echo(f"{result.epochs} epochs; {what} {value:.3f} on {measured['images']:,} held-out images")
        click.echo(f"card, history: {folder}")
        click.echo(
            f"use it: {chosen.task if chosen.task == 'attributes' else 'emotion'}-cnn with path = {str(result.weights)!r}"
        )


@cli.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.onnx", type=click.Path(path_type=Path))
@click.option("--size", type=int, help="Side in pixels, for files that do not say it.")
def export_command(checkpoint: Path, target: Path, size: int | None) -> None:
    """Write a GANonymization generator as ONNX ("" or "shipped" is the one in the package).

    The method runs it as it runs the checkpoint itself: --param checkpoint=OUT.onnx

    \b
    deidbench export my-model/best.safetensors my-model.onnx
    deidbench export shipped ganonymization-128.onnx
    """
    from deidbench.anonymizers.ganonymization.export import export_onnx
    from deidbench.anonymizers.ganonymization.synthesis import checkpoint_path

    if target.suffix.lower() != ".onnx":
        raise InputError(f"{target} does not end in .onnx", f"name it {target.with_suffix('.onnx')}")
    written = export_onnx(checkpoint_path("" if str(checkpoint) in ("", ".", "shipped") else str(checkpoint)), target, size)
    click.echo(f"{written}: {written.stat().st_size / 1e6:.1f} MB")


@cli.command("ls")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_parts(kind: str | None, as_json: bool) -> None:
    """List what there is: anonymizers, data sets, recognisers, metrics, suites, with their parameters.

    \b
    deidbench ls                         everything
    deidbench ls anonymizers             methods, with their parameters and defaults
    deidbench ls suites --json           for a script
    """
    from deidbench.listing import listing

    tables = {k: listing(k) for k in ([kind] if kind else KINDS)}
    if as_json:
        import json

        click.echo(json.dumps(tables[kind] if kind else tables, indent=1, default=str))
        return
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    for name, rows in tables.items():
        if not rows and not kind:
            continue
        table = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in rows[0] if rows else ["name"]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(v)) for v in row.values()))
        screen.print(table)
        screen.print()


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Show versions, devices, which models and data sets are ready, and how to get the others.

    Exit 1 where something that deidbench needs is broken; what is merely not there is no fault.

    \b
    deidbench doctor
    deidbench doctor --json              for a bug report
    """
    from deidbench.doctor import examine, show

    findings = examine()
    if as_json:
        import json

        click.echo(json.dumps(findings, indent=1, default=str))
    else:
        show(findings, console())
    sys.exit(ExitCode.OK if findings["healthy"] else ExitCode.NEGATIVE)


for _command in (cache, check, compare, data_sets, gate, history, recipe):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: turns errors into messages and exit codes."""
    try:
        code = cli.main(args=arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        _interrupted()
    except KeyboardInterrupt:
        _interrupted()
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except DeidbenchError as error:
        click.echo(f"error: {printable(error)}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.exit(0)
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            click.echo(
                f"error: no space left on the disk ({error.filename or 'while writing'})\n  -> free some space and run the same command again: nothing is lost",
                err=True,
            )
            sys.exit(ExitCode.ENVIRONMENT)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            click.echo(
                f"error: no permission: {error.filename or error}\n  -> name another folder with --out or --cache", err=True
            )
            sys.exit(ExitCode.ENVIRONMENT)
        if error.errno == errno.ENAMETOOLONG:
            name = printable(str(error.filename or error))
            click.echo(
                f"error: no file can have so long a name: {name[:200]} ...\n  -> check the names on the command line", err=True
            )
            sys.exit(ExitCode.USAGE)
        raise


def _interrupted() -> None:
    click.echo("\ninterrupted; what was computed is kept, the same command goes on from there", err=True)
    sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
