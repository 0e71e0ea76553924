"""The page of a comparison: one file, nothing fetched, with the look and the script of a run's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.report.html import render, uri
from deidbench.report.view import counted, listing, plain, slug

if TYPE_CHECKING:
    from deidbench.compare import Comparison, Result
    from deidbench.scored import Question

#: More methods than this have no table of who beats whom.
_MATRIX = 16
#: Findings at the top of the page.
_FINDINGS = 6


def page(comparison: Comparison, pictures: Sequence[tuple[str, str, str, Sequence[Path]]]) -> str:
    """pictures: (reference, caption, alternative text, files) of each figure."""
    from deidbench import __version__
    from deidbench.report.comparison import by_question, notes

    groups = by_question(comparison)
    variants = Counter(q.metric for q, _ in groups)
    names = [c.name for c in comparison.contestants]
    sections = [_section(i, q, results, names, comparison) for i, (q, results) in enumerate(groups)]
    main = [s for s, (q, _) in zip(sections, groups, strict=True) if variants[q.metric] == 1]
    shown = [r for r in comparison.results if r.better]
    if comparison.reference:
        title = f"{counted(len(names) - 1, 'method')} against {comparison.reference}"
    else:
        title = listing(names, 4) if len(names) <= 4 else f"{counted(len(names), 'method')} against one another"
    return render(
        "comparison.html.j2",
        version=__version__,
        title=plain(title),
        lede=f"Runs: {plain(', '.join(comparison.runs))}. Paired over the same persons; p-values adjusted by Holm within each metric.",
        contestants=[
            {
                "name": plain(c.name), "run": plain(c.run.folder.name), "fingerprint": plain(c.record.get("fingerprint") or "–")[:16],
                "weights": plain(c.record.get("weights_sha256") or "–")[:16],
            }
            for c in comparison.contestants
        ],
        questions=sections,
        main=main or sections,
        more=[s for s in sections if s not in main] if main else [],
        n_results=len(comparison.results),
        n_shown=len(shown),
        persons=max((r.persons for r in comparison.results), default=0),
        forced=[plain(d) for d in comparison.forced],
        findings=[plain(f) for f in _findings(comparison, [q for q, _ in groups if variants[q.metric] == 1])],
        pictures=[
            {"reference": plain(reference), "caption": caption, "alt": alt, "uri": uri(next(f for f in files if f.suffix == ".svg"))}
            for reference, caption, alt, files in pictures
        ],
        notes=[plain(n) for n in notes(comparison)],
        level=f"{100 * comparison.level:g} % interval",
    )  # fmt: skip


def _findings(comparison: Comparison, single: Sequence[Question]) -> list[str]:
    """With few pairs their verdicts; with many who is never beaten in which figure."""
    results = [r for r in comparison.results if r.question in single]
    if comparison.reference and len(comparison.contestants) > 3:
        return _against(comparison, single)
    if len(comparison.contestants) <= 3:
        first = [r for r in results if r.better or r.identical] or results
        return [f"{r.verdict[0].upper()}{r.verdict[1:]}." for r in first[:_FINDINGS]]
    from deidbench.report.comparison import unbeaten
    from deidbench.words import short

    out = []
    for q in single:
        mine = [r for r in results if r.question == q]
        if best := unbeaten(mine, [c.name for c in comparison.contestants]):
            out.append(f"{short(q.metric)}: no other is shown to be better than {listing(best, 5)}.")
    return out[:_FINDINGS]


def _against(comparison: Comparison, single: Sequence[Question]) -> list[str]:
    """Per figure, than whom the reference is better, and than whom worse."""
    from deidbench.words import short

    out = []
    for q in single:
        there = [r for r in comparison.results if r.question == q and not r.reason]
        mine = [r for r in there if r.trusted]
        won: list[str] = []
        lost: list[str] = []
        for r in mine:  # the reference is always the first of a pair
            if r.better:
                (won if r.better == "a" else lost).append(r.b)
        doubted = f"; {counted(len(there) - len(mine), 'pair')} not trusted" if len(there) > len(mine) else ""
        said = [f"better than {listing(won, 5)}"] if won else []
        said += [f"worse than {listing(lost, 5)}"] if lost else []
        rest = len(mine) - len(won) - len(lost)
        if not mine:
            out.append(f"{short(q.metric)}: nothing that is trusted can be compared.")
            continue
        if not said:
            out.append(f"{short(q.metric)}: no difference between {comparison.reference} and any other is shown{doubted}.")
            continue
        more = f"; no difference shown to {rest} other{'s' * (rest > 1)}" if rest else ""
        out.append(f"{short(q.metric)}: {comparison.reference} is {' and '.join(said)}{more}{doubted}.")
    return out[:_FINDINGS]


def _section(i: int, q: Question, results: Sequence[Result], names: Sequence[str], comparison: Comparison) -> dict[str, Any]:
    from deidbench.report.comparison import cells, doubt, heading, matrix
    from deidbench.words import short

    there = [n for n in names if any(n in (r.a, r.b) for r in results)]
    table = matrix(results, there) if 3 < len(there) <= _MATRIX and not comparison.reference else []

    def number(value: float | None) -> str:
        return "" if value is None else repr(float(value))

    return {
        "id": f"q{i}-{slug(q.metric)}",
        "short": short(q.metric),
        "heading": heading(results[0]),
        "names": [plain(n) for n in there],
        "open": not table,
        "shown": sum(bool(r.better) for r in results),
        "matrix": [{"name": plain(n), "at": k, "cells": line} for k, (n, line) in enumerate(zip(there, table, strict=False))] if table else [],
        "lines": [
            {
                "a": plain(r.a), "b": plain(r.b), "better": r.better, "cells": [plain(c) for c in cells(r)], "test": plain(r.test),
                "value_a": number(r.value_a), "value_b": number(r.value_b), "difference": number(r.difference), "p": number(r.p_holm),
                "doubt": doubt(r), "effect": number(r.effect), "effect_name": plain(r.effect_name), "verdict": plain(r.verdict),
            }
            for r in results
        ],
    }  # fmt: skip
