"""How a method fared from run to run: the guarded figures of several runs, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deidbench.errors import InputError
from deidbench.gate import Margins
from deidbench.records import Run
from deidbench.scored import Question, Scored


def ordered(runs: Sequence[Run]) -> list[Run]:
    """By the time at which they were finished; runs that do not say come first, in the order given."""
    return sorted(runs, key=lambda r: str(r.record.get("finished", "")))


def guarded(runs: Sequence[Run], method: str, margins: Margins) -> dict[Question, float]:
    """The figures that the margins guard and the first run has, with their margins.

    Raises InputError where no run has the method.
    """
    entries = [Scored(run, bare=True).entries.get(method, {}) for run in runs]
    if not any(entries):
        known = sorted({str(m["label"]) for run in runs for m in run.record.get("methods", [])})
        raise InputError(f"no run has the method {method!r}", f"they have: {', '.join(known) or 'none'}")
    out: dict[Question, float] = {}
    for guard in margins.guard:
        for q in dict.fromkeys(q for e in entries for q in e):
            if q not in out and guard.guards(q) and any((x := e.get(q)) and x.row.get("value") is not None for e in entries):
                out[q] = guard.margin
    return out


def lines(runs: Sequence[Run], method: str, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """One record per run and figure: folder, time, commit, weights, value, interval."""
    out = []
    for run in runs:
        entries = Scored(run, bare=True).entries.get(method, {})
        record: dict[str, Any] = next((m for m in run.record.get("methods", []) if m["label"] == method), {})
        environment = run.record.get("environment", {})
        for q in questions:
            entry = entries.get(q)
            row = entry.row if entry else {}
            out.append(
                {
                    "run": Path(run.folder).name, "finished": run.record.get("finished", ""), "method": method,
                    "commit": (environment.get("git") or {}).get("commit", ""), "weights_sha256": record.get("weights_sha256"),
                    "fingerprint": record.get("fingerprint"), **q._asdict(),
                    **{k: row.get(k) for k in ("value", "lo", "hi", "n_images", "n_persons")},
                    "trusted": bool(row.get("trusted", True)),
                    "reason": row.get("reason") or ("" if entry else "the run has no such figure"),
                }
            )  # fmt: skip
    return out
