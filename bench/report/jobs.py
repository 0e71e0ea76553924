"""Which of the further figures a run has anything for, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable

from deidbench.report.bars import REMOVAL, removal
from deidbench.report.distributions import scores
from deidbench.report.dots import DELTA_P, SPEED, delta_p, throughput
from deidbench.report.figures import Drawing
from deidbench.report.heatmaps import has
from deidbench.report.view import View

Job = tuple[str, str, Callable[[float], Drawing | str]]


def further(view: View, dataset: str, suffix: str = "", where: str = "") -> list[Job]:
    """(name, title, function of the width) of each figure.  What a run did not measure is not asked for at all.

    suffix, where: what names and titles end in where a run has several data sets.
    """
    jobs: list[Job] = [(f"scores{suffix}", f"Scores of pairs{where}", lambda w: scores(view, dataset, w))]
    if has(view, dataset, REMOVAL):
        jobs.append((f"removal{suffix}", f"Attributes removed{where}", lambda w: removal(view, dataset, w)))
    if has(view, dataset, DELTA_P):
        jobs.append((f"delta-p{suffix}", f"Change of each expression{where}", lambda w: delta_p(view, dataset, w)))
    if has(view, dataset, SPEED):
        jobs.append((f"throughput{suffix}", f"Speed{where}", lambda w: throughput(view, dataset, w)))
    return jobs
