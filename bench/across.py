"""Many methods on many data sets: runs of one suite, a data set each, ranked by :mod:`deidbench.stats.many`.

The data set is the unit here; that persons within one differ is in each run's own intervals.  Fewer than five data sets are
refused, as ranks then say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deidbench.compare import ALPHA
from deidbench.errors import InputError
from deidbench.records import Run
from deidbench.scored import Question, Scored, asked, check, contestants
from deidbench.stats.many import MIN_DATASETS, Ranking, friedman


@dataclass(frozen=True)
class Ranked:
    """One figure over all data sets.

    scores: value by data set and method, None where there is none.  untrusted: data sets with a figure that is not trusted.
    """

    question: Question
    unit: str
    higher_is_better: bool
    scores: tuple[tuple[float | None, ...], ...]
    ranking: Ranking
    untrusted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Across:
    """What was found.  methods: columns of the scores; datasets: their rows."""

    ranked: tuple[Ranked, ...]
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    forced: tuple[str, ...]
    remarks: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1, "datasets": list(self.datasets), "methods": list(self.methods), "forced": list(self.forced),
            "remarks": list(self.remarks),
            "ranked": [
                {
                    **r.question._asdict(), "unit": r.unit, "higher_is_better": r.higher_is_better,
                    "scores": [list(s) for s in r.scores], "reason": r.ranking.reason, "method": r.ranking.method,
                    "note": r.ranking.note, "untrusted": list(r.untrusted), "left_out": list(r.ranking.left_out), "p": r.ranking.p,
                    "chi2": r.ranking.chi2, "iman_davenport_f": r.ranking.f, "iman_davenport_p": r.ranking.f_p,
                    "average_ranks": dict(zip(r.ranking.names, r.ranking.ranks, strict=False)),
                    "cliques": [[r.ranking.names[i] for i in c] for c in r.ranking.cliques],
                    "pairs": [
                        {"a": p.first, "b": p.second, "p": p.test.p, "p_holm": p.adjusted, "different": p.different}
                        for p in r.ranking.pairs
                    ],
                }
                for r in self.ranked
            ],
        }  # fmt: skip


def across(
    runs: Sequence[Run],
    *,
    only: Sequence[str] = (),
    metrics: Sequence[str] = (),
    controls: bool = False,
    alpha: float = ALPHA,
    force: bool = False,
) -> Across:
    """Ranks the methods that all runs have.

    metrics: see :func:`deidbench.compare.asked`.  Raises InputError for fewer than five runs, two runs on one data set, and runs
    that differ in protocol, recognisers, classifiers or metrics.
    """
    if len(runs) < MIN_DATASETS:
        raise InputError(
            f"{len(runs)} run{'s' * (len(runs) != 1)}: ranks over data sets take {MIN_DATASETS} at least",
            "run the suite on more data sets (deidbench run SUITE --data FOLDER --out FOLDER), or compare without --across",
        )
    manifests: dict[str, str] = {}
    for run in runs:
        sha = str(run.record.get("dataset", {}).get("manifest_sha256"))
        if sha in manifests:
            raise InputError(f"{manifests[sha]} and {run.folder} are of the same images", "name a run per data set")
        manifests[sha] = str(run.folder)
    differ, remarks = check(runs, force=force, across=True)
    each = [{c.label for c in contestants([run], only) if controls or only or not c.control} for run in runs]
    order = [c.label for c in contestants([runs[0]])]
    methods = [m for m in order if all(m in e for e in each)]
    if len(methods) < 2:
        raise InputError("fewer than two methods are in every run", "run the same suite on every data set")
    if alone := sorted(set().union(*each) - set(methods)):
        remarks.append(f"not in every run, and not ranked: {', '.join(alone)}")
    names = _names(runs)
    entries = [Scored(run, bare=True).entries for run in runs]
    questions = asked([e[m] for e in entries for m in methods], metrics)
    ranked = []
    for q in questions:
        rows = [[e[m].get(q) for m in methods] for e in entries]
        first = next(x for line in rows for x in line if x is not None)
        better = first.row.get("higher_is_better")
        if better is None:
            remarks.append(f"{q.text} is not ranked: neither direction is better")
            continue
        scores = [
            tuple(None if x is None or x.row.get("value") is None else float(x.row["value"]) for x in line) for line in rows
        ]
        table = np.array([[np.nan if v is None else v for v in line] for line in scores])
        there = ~np.isnan(table).all(1)
        if there.sum() < MIN_DATASETS or not bool((~np.isnan(table[there])).all(0).sum() > 1):
            remarks.append(f"{q.text} is not ranked: fewer than two methods have it on {MIN_DATASETS} data sets")
            continue
        found = friedman(
            table[there],
            methods,
            [n for n, t in zip(names, there, strict=True) if t],
            higher_is_better=bool(better),
            alpha=alpha,
        )
        doubted = tuple(
            n
            for n, line in zip(names, rows, strict=True)
            if any(x is not None and not x.row.get("trusted", True) for x in line)
        )
        ranked.append(Ranked(q, str(first.row.get("unit") or ""), bool(better), tuple(scores), found, doubted))
    if not ranked:
        raise InputError("no figure is there on five data sets for two methods", "--metric NAME asks for another one")
    return Across(tuple(ranked), tuple(methods), tuple(names), tuple(differ), tuple(remarks))


def _names(runs: Sequence[Run]) -> list[str]:
    names = [str(r.record.get("dataset", {}).get("name", r.folder.name)) for r in runs]
    return [n if names.count(n) == 1 else r.folder.name for n, r in zip(names, runs, strict=True)]
