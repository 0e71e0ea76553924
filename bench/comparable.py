"""May figures of two runs be set against each other?

Only where the same attackers looked at the same images in the same way: otherwise a difference of the figures is not one of
the methods.  What differs is named in words; what cannot change a figure beyond rounding (versions of libraries, the machine)
is a remark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from deidbench.errors import InputError
from deidbench.evidence import REMEDY
from deidbench.records import Run


class Differences(NamedTuple):
    """refuse: what makes figures incomparable.  remarks: what should be known."""

    refuse: list[str]
    remarks: list[str]


#: What the record of a run says under these names, where it says it.
_MAPPINGS = ("dataset", "attackers", "protocol", "environment")
_LISTS = ("methods", "recognizers", "classifiers", "metrics")
#: Columns that comparisons cannot do without, and those of them that are numbers.
_ROWS = ("method", "metric", "value", "unit", "higher_is_better", "attacker", "recognizer", "convention", "trusted")
_IMAGES = ("method", "id", "subject_id")
_NUMBERS = ("value", "lo", "hi", "n_images", "n_persons")
#: Draws of a bootstrap, one byte each.
MOST_DRAWS = 4_000_000_000
_PROTOCOL: dict[str, Callable[[Any], bool]] = {
    "confidence": lambda v: 0 < v < 1,
    "replicates": lambda v: isinstance(v, int) and 0 < v <= 1_000_000,
    "seed": lambda v: isinstance(v, int) and v >= 0,
}


def sound(run: Run) -> None:
    """Raises InputError, naming the file, for a run whose record or tables are not of the kind that is compared.

    What is absent altogether is left to those who ask for it: a run of an older version has fewer entries.
    """
    record, file = run.record, run.folder / "run.json"
    bad = [name for name in _MAPPINGS if not isinstance(record.get(name, {}), Mapping)]
    bad += [n for n in _LISTS if not _mappings(record.get(n, []))]
    if not bad:
        environment = record.get("environment", {})
        bad = [f"environment.{n}" for n in ("packages", "git") if not isinstance(environment.get(n) or {}, Mapping)]
        protocol = record.get("protocol", {})
        bad += [f"protocol.{n}" for n, fits in _PROTOCOL.items() if n in protocol and not _fits(fits, protocol[n])]
        labels = [m.get("label") for m in record.get("methods", [])]
        if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
            bad.append("methods (every label a text of its own)")
    if bad:
        raise InputError(f"{file} is damaged: {', '.join(bad)}", REMEDY)
    for table, columns, name in ((run.rows, _ROWS, "rows"), (run.images, _IMAGES, "images")):
        if lacking := [c for c in columns if c not in table]:
            raise InputError(f"{run.folder / name}.parquet is damaged: it has no column {', '.join(lacking)}", REMEDY)
    odd = [c for c in _NUMBERS if c in run.rows and not _fits(lambda v: v.dropna().astype(float), run.rows[c])]
    odd += [c for c in ("trusted", "higher_is_better") if not run.rows[c].dropna().isin([True, False]).all()]
    if odd:
        raise InputError(f"{run.folder / 'rows.parquet'} is damaged: {', '.join(odd)}", REMEDY)
    persons, replicates = run.images["subject_id"].nunique(), record.get("protocol", {}).get("replicates", 1)
    if persons * replicates > MOST_DRAWS:
        raise InputError(f"{file} is damaged: {replicates:,} replicates of {persons:,} persons fit into no memory", REMEDY)


def _mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, Mapping) for v in value)


def _fits(test: Callable[[Any], Any], value: Any) -> bool:
    try:
        return test(value) is not False
    except (TypeError, ValueError):
        return False


def differences(a: Run, b: Run, *, across: bool = False) -> Differences:
    """What differs between two runs.  across: the data may differ (many data sets), nothing else."""
    x, y = a.record, b.record
    refuse: list[str] = []
    if not across:
        refuse += _data("data", x.get("dataset", {}), y.get("dataset", {}))
        refuse += _data("attacker-train data", x.get("attackers", {}), y.get("attackers", {}))
    ours, theirs = (dict(r.get("protocol", {})) for r in (x, y))
    for name in sorted((ours.keys() | theirs.keys()) - {"deviations"}):
        if ours.get(name) != theirs.get(name):
            refuse.append(f"protocol.{name}: {_said(ours.get(name))} against {_said(theirs.get(name))}")
    if x.get("finder") != y.get("finder"):
        refuse.append(f"face finder: {_said(x.get('finder'))} against {_said(y.get('finder'))}")
    for kind, one in (("recognizers", "recogniser"), ("classifiers", "classifier")):
        refuse += _parts(one, x.get(kind, []), y.get(kind, []), ("weights_sha256", "params"))
    refuse += _parts("metric", x.get("metrics", []), y.get("metrics", []), ("version", "params"))
    return Differences(refuse, _remarks(x, y))


def _data(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    if a.get("manifest_sha256") == b.get("manifest_sha256"):
        return []

    def said(d: Mapping[str, Any]) -> str:
        name = d.get("name") or d.get("dataset") or "none"
        return (
            f"{name}, {d.get('n_images')} images of {d.get('n_persons')} persons, manifest {str(d.get('manifest_sha256'))[:12]}"
        )

    return [f"{what}: {said(a)} against {said(b)}"]


def _parts(what: str, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[str]:
    ours, theirs = ({str(p.get("name")): p for p in parts} for parts in (a, b))
    out = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            out.append(f"{what} {name}: only in the {'first' if name in ours else 'second'} run")
            continue
        for field in fields:
            if ours[name].get(field) != theirs[name].get(field):
                out.append(f"{what} {name}: {field} {_said(ours[name].get(field))} against {_said(theirs[name].get(field))}")
    return out


def _said(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def same_machine(a: Run, b: Run) -> bool:
    """Were both timed on the same kind of processor with as many cores?"""
    x, y = (r.record.get("environment", {}) for r in (a, b))
    return bool(x.get("cpu")) and all(x.get(k) == y.get(k) for k in ("cpu", "cores"))


def _remarks(x: Mapping[str, Any], y: Mapping[str, Any]) -> list[str]:
    out = []
    if x.get("deidbench") != y.get("deidbench"):
        out.append(f"deidbench {x.get('deidbench')} against {y.get('deidbench')}")
    ours, theirs = (r.get("environment", {}) for r in (x, y))
    packages = [e.get("packages") or {} for e in (ours, theirs)]
    changed = [
        f"{n} {packages[0].get(n)} against {packages[1].get(n)}"
        for n in sorted(packages[0].keys() | packages[1].keys())
        if n != "deidbench" and packages[0].get(n) != packages[1].get(n)
    ]
    if changed:
        out.append(f"other versions: {', '.join(changed)}")
    if ours.get("cpu") != theirs.get("cpu"):
        out.append(f"other machines: {ours.get('cpu')} against {theirs.get('cpu')}")
    for kind in ("recognizers", "classifiers"):
        runtimes = [{p["name"]: p.get("runtime") for p in r.get(kind, []) if p.get("name")} for r in (x, y)]
        out += [
            f"{n} ran on {runtimes[0][n]} against {runtimes[1][n]}"
            for n in sorted(runtimes[0].keys() & runtimes[1].keys())
            if runtimes[0][n] != runtimes[1][n]
        ]
    return out
