"""What an image costs, measured by a run, and what that makes of many (docs/scale-out.md)::

    python -m deidbench.costs results/demo --images 100000000 --days 7

The run must have computed everything (an empty store), each worker with one thread, on a machine that did nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from deidbench.errors import DeidbenchError, InputError, printable

#: Of a worker's time, what is left for work beside waiting, reading models and stragglers: an allowance, not a measurement.
USEFUL = 0.8


@dataclass(frozen=True)
class Costs:
    """seconds: of one worker, for each stage, for one image under all methods.  sizes: bytes an image by kind of artefact, if known."""

    images: int
    methods: int
    seconds: Mapping[str, float]
    sizes: Mapping[str, float]

    @property
    def per_image(self) -> float:
        return sum(self.seconds.values())

    def cores(self, images: float, days: float) -> float:
        """Workers that are needed for so many images in so many days."""
        return images * self.per_image / (days * 86400 * USEFUL)

    def store(self, images: float) -> float:
        """Bytes in the store, 0 where sizes are not known."""
        return images * sum(self.sizes.values())


def measured(folder: Path, store: Path | None = None) -> Costs:
    """Of the run in ``folder``; its record only is read.  store: one that holds this run and nothing else.

    Raises InputError where the run did not compute everything itself, or its workers had several threads.
    """
    from deidbench.record_shape import read_record

    try:
        record = read_record(folder / "run.json")
        images, methods = int(record["dataset"]["n_images"]), len(record["methods"])
        seconds = {str(k): float(v) for k, v in record["timings"]["per_stage_worker_seconds"].items()}
        computed: Mapping[str, Any] = record["run"]["computed"]
        threads = record["run"]["threads"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no run whose costs are known: {error}", "name the folder of a finished run"
        ) from error
    if not images or not methods or computed.get("anonymize", 0) < images * methods:
        raise InputError(
            f"{folder}: {computed.get('anonymize', 0)} of {images * methods} outputs were computed by the run itself, the others were in the store",
            "run the suite again with --cache and an empty folder",
        )
    if threads != 1:
        raise InputError(f"{folder}: its workers had {threads} threads each", "run the suite again with --workers 0")
    return Costs(images, methods, {k: v / images for k, v in seconds.items()}, _sizes(store, images) if store else {})


def _sizes(folder: Path, images: int) -> dict[str, float]:
    from deidbench.cache import LAYOUT, Store

    if not (folder / f"store-v{LAYOUT}.sqlite").exists():
        raise InputError(f"there is no store in {folder}", "name the run's --cache")
    with Store(folder) as store:
        rows = store.ask("SELECT kind, SUM(size) FROM about JOIN origin ON origin = origin.id GROUP BY kind")
    return {str(kind): size / images for kind, size in rows}


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--cache", type=click.Path(path_type=Path), help="The run's store, if it holds nothing else: for bytes.")
@click.option("--images", type=click.FloatRange(min=1), default=1e8, show_default=True, help="How many are planned.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=7.0, show_default=True, help="In how many days.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def main(folder: Path, cache: Path | None, images: float, days: float, as_json: bool) -> None:
    """What an image cost in the run in FOLDER, and how many cores it takes to do many in some days."""
    try:
        costs = measured(folder, cache)
    except DeidbenchError as error:
        click.echo(f"error: {printable(error)}", err=True)
        raise SystemExit(int(error.exit_code)) from None
    cores, size = costs.cores(images, days), costs.store(images)
    if as_json:
        told = {"images": costs.images, "methods": costs.methods, "seconds_per_image": dict(costs.seconds), "bytes_per_image": dict(costs.sizes),
                "planned_images": images, "days": days, "useful_share": USEFUL, "cores": cores, "store_bytes": size}  # fmt: skip
        click.echo(json.dumps(told))
        return
    click.echo(
        f"measured: {costs.images} images under {costs.methods} methods; milliseconds of a core for an image under all of them"
    )
    for stage, seconds in sorted(costs.seconds.items(), key=lambda kv: -kv[1]):
        click.echo(f"  {printable(stage):<24}{1000 * seconds:10.2f}")
    click.echo(f"  {'all':<24}{1000 * costs.per_image:10.2f}")
    for kind, n in sorted(costs.sizes.items(), key=lambda kv: -kv[1]):
        click.echo(f"  store: {printable(kind):<17}{_bytes(n):>10}")
    click.echo(f"planned: {images:,.0f} images in {days:g} days take {cores:,.0f} cores ({USEFUL:.0%} of their time at work)")
    if size:
        click.echo(f"and a store of {_bytes(size)}")


if __name__ == "__main__":
    main()
