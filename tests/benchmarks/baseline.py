"""Sets benchmarks against the saved baseline, as a report; ``make bench-report`` runs it.

    python tests/benchmarks/baseline.py report NOW.json [--baseline FILE] [--out FILE.md]
    python tests/benchmarks/baseline.py save NOW.json [--baseline FILE]

Times of two machines say nothing about the code.  Both files hold the calibration benchmarks, which use nothing of deidbench
(a product of two matrices, a loop in Python): a ratio here is that of the times in units of the machine's own calibration,

    (now / calibration now) / (baseline / calibration of the baseline),

with the geometric mean of the calibration benchmarks (which are run before, between and after the others, for a machine's clock does
not stand still), and the least time of each: what disturbs only makes it longer.  It does away with how quick a machine is, not with
what one does better than another.  So this is a report, never a verdict.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BASELINE = Path(__file__).parent / "baseline" / "hot.json"
CALIBRATION = "calibration"
#: A ratio beyond this, or below its reciprocal, is pointed out.
NOTABLE = 1.5
#: Of the statistics of a benchmark; all else says more of the machine than anybody needs.
KEPT = ("min", "median", "iqr", "rounds", "iterations")


class Line(NamedTuple):
    """One benchmark.  now, then: least seconds of a round, None where that file does not have it.  ratio: calibrated."""

    group: str
    name: str
    now: float | None
    then: float | None
    ratio: float | None

    @property
    def remark(self) -> str:
        if self.now is None:
            return "no longer there"
        if self.then is None:
            return "new"
        assert self.ratio is not None
        return "slower" if self.ratio > NOTABLE else "quicker" if self.ratio < 1 / NOTABLE else ""


def read(path: Path) -> dict[str, Any]:
    """The JSON of pytest-benchmark.  Raises SystemExit, in words, where it is none, or has no calibration."""
    try:
        found = json.loads(path.read_text("utf-8"))
        times = seconds(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no file of pytest-benchmark: {type(error).__name__}: {error}") from error
    if not any(group == CALIBRATION for group, _ in times):
        raise SystemExit(f"{path} has no benchmark of the group {CALIBRATION!r}: without it nothing can be compared")
    return dict(found)


def seconds(found: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """(group, name) -> least seconds of a round."""
    times = {(str(b["group"] or ""), str(b["name"])): float(b["stats"]["min"]) for b in found["benchmarks"]}
    for (_, name), t in times.items():
        if not (math.isfinite(t) and t > 0):
            raise ValueError(f"{name} took {t} seconds")
    return times


def slim(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a baseline keeps: times, and the versions that they were taken with; nothing that tells the machine."""
    return {
        "version": found.get("version", ""),
        "python": found.get("machine_info", {}).get("python_version", found.get("python", "")),
        "benchmarks": [
            {"group": b["group"], "name": b["name"], "stats": {k: b["stats"][k] for k in KEPT if k in b["stats"]}}
            for b in sorted(found["benchmarks"], key=lambda b: (str(b["group"]), str(b["name"])))
        ],
    }


def calibration(now: Mapping[tuple[str, str], float], then: Mapping[tuple[str, str], float]) -> float:
    """How many times as long the calibration takes now: the geometric mean over the benchmarks that both have."""
    both = [k for k in now if k[0] == CALIBRATION and k in then]
    if not both:
        raise SystemExit("the two files have no calibration benchmark in common: save the baseline anew")
    return math.exp(sum(math.log(now[k] / then[k]) for k in both) / len(both))


def compared(now: Mapping[str, Any], then: Mapping[str, Any]) -> tuple[list[Line], float]:
    """Lines, those that got slower first, and how many times as long the calibration takes."""
    a, b = seconds(now), seconds(then)
    machine = calibration(a, b)
    lines = []
    for key in sorted(a.keys() | b.keys()):
        if key[0] == CALIBRATION:
            continue
        x, y = a.get(key), b.get(key)
        lines.append(Line(*key, x, y, None if x is None or y is None else x / y / machine))
    return sorted(lines, key=lambda line: (line.ratio is None, -(line.ratio or 0))), machine


def span(value: float | None) -> str:
    """Seconds for people."""
    if value is None:
        return "–"
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def markdown(lines: Sequence[Line], machine: float) -> str:
    notable = [line for line in lines if line.remark in ("slower", "quicker")]
    out = [
        "# Hot paths against the baseline",
        "",
        f"Least time of a round. The calibration (a matrix product and a loop in Python) takes {machine:.2f} times as long as it did for the "
        f"baseline; ratios are in units of it: 1 is as quick as then, 2 takes twice as long. Ratios between machines are rough, and within "
        f"{NOTABLE:g} nothing is pointed out. {len(notable)} of {len(lines)} are.",
        "",
        "| what | benchmark | now | baseline | ratio | |",
        "|:---|:---|---:|---:|---:|:---|",
    ]
    for x in lines:
        ratio = "–" if x.ratio is None else f"{x.ratio:.2f}"
        group, name = x.group.replace("|", "\\|"), x.name.replace("|", "\\|")
        out.append(f"| {group} | `{name}` | {span(x.now)} | {span(x.then)} | {ratio} | {x.remark} |")
    return "\n".join([*out, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["report", "save"])
    parser.add_argument("now", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--out", type=Path, help="where the report goes, besides the terminal")
    given = parser.parse_args(arguments)
    now = read(given.now)
    if given.command == "save":
        given.baseline.parent.mkdir(parents=True, exist_ok=True)
        given.baseline.write_text(json.dumps(slim(now), indent=1) + "\n", "utf-8")
        return 0
    text = markdown(*compared(now, read(given.baseline)))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, "utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
