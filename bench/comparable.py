"""May figures of two runs be set against each other?

Only where the same attackers looked at the same images in the same way: otherwise a difference of the figures is not one of
the methods.  What differs is named in words; what cannot change a figure beyond rounding (versions of libraries, the machine)
is a remark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deidbench.records import Run


class Differences(NamedTuple):
    """refuse: what makes figures incomparable.  remarks: what should be known."""

    refuse: list[str]
    remarks: list[str]


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
        runtimes = [{p.get("name"): p.get("runtime") for p in r.get(kind, [])} for r in (x, y)]
        out += [
            f"{n} ran on {runtimes[0][n]} against {runtimes[1][n]}"
            for n in sorted(runtimes[0].keys() & runtimes[1].keys())
            if runtimes[0][n] != runtimes[1][n]
        ]
    return out
