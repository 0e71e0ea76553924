"""Figures of comparisons: paired differences against a reference, and average ranks over many data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deidbench.report.figures import COLOURS, COLUMN, GREY, INK, Drawing, _columns, _figure, _legend
from deidbench.report.measure import fitted, inches
from deidbench.report.view import counted, listing, number, plain, unit_sign

if TYPE_CHECKING:
    from deidbench.stats.many import Ranking

_BETTER, _WORSE = COLOURS[0], COLOURS[1]


# --------------------------------------------------------------------------------------------------------- differences
@dataclass(frozen=True)
class Difference:
    """A paired difference, A minus B (the reference), with its interval in the metric's unit and its adjusted p-value.

    label: what stands in the line (a method, a group).  better: who is, once the test has spoken; None where it shows no
    difference.  reason: why there is no value.
    """

    label: str
    value: float | None
    lo: float | None = None
    hi: float | None = None
    p: float | None = None
    better: Literal["A", "B"] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Compared:
    """The differences in one metric.  margin: how much worse than the reference is still accepted, a positive number."""

    heading: str
    unit: str
    differences: Sequence[Difference]
    higher_is_better: bool | None = None
    margin: float | None = None


def _finite(*values: float | None) -> list[float]:
    return [v for v in values if v is not None and np.isfinite(v)]


def differences(metrics: Sequence[Compared], reference: str, width: float = COLUMN) -> Drawing | str:
    """A forest plot per metric: differences to ``reference`` around a line at zero, the lines shared by all panels."""
    from matplotlib.lines import Line2D

    metrics = [m for m in metrics if any(_finite(d.value) for d in m.differences)]
    if not metrics:
        return "there is no difference to draw"
    labels = list(dict.fromkeys(d.label for m in metrics for d in m.differences))
    wide = width > 5
    size = 6.8 if wide else 6.3
    words = [fitted(x, 1.8 if wide else 0.9, size) for x in labels]
    left = 0.14 + inches(words, size)
    ncols = min(len(metrics), 4 if wide else 2)
    nrows = -(-len(metrics) // ncols)
    right, between, header, foot = 0.12, 0.16, 0.21, 0.38
    pw = min((width - left - right - between * (ncols - 1)) / ncols, 3.4)
    pitch = 0.18 if wide else 0.165
    ph = pitch * len(labels)
    handles = [
        Line2D([], [], color=_BETTER, marker="o", ms=3.4, lw=0.9),
        Line2D([], [], color=_WORSE, marker="D", ms=3.2, lw=0.9),
        Line2D([], [], color=GREY, marker="o", mfc="white", ms=3.4, lw=0.9),
    ]
    # Said in the caption, where the name may be long.
    names = ["better", "worse", "no difference shown"]
    below = 0.2 + 0.155 * -(-len(names) // _columns(names, width - 0.1))
    height = nrows * (header + ph + foot) + below
    figure = _figure(width, height)
    spoken, gone, margins = [], False, False
    for i, metric in enumerate(metrics):
        row, col = divmod(i, ncols)
        x0, y0 = left + col * (pw + between), height - row * (header + ph + foot) - header - ph
        ax = figure.add_axes((x0 / width, y0 / height, pw / width, ph / height))
        scale, unit = (100.0, "pp") if metric.unit == "rate" else (1.0, unit_sign(metric.unit))
        _frame(ax, metric, labels, words if not col else [], size, scale, unit, pw)
        margins |= metric.margin is not None
        done = {}
        for d in metric.differences:
            j = labels.index(d.label)
            if not _finite(d.value):
                gone = True
                ax.annotate(
                    "no value", (0, j), xytext=(3, 0), textcoords="offset points", fontsize=5.6, color=GREY, va="center"
                )
                continue
            assert d.value is not None
            colour = {"A": _BETTER, "B": _WORSE}.get(d.better or "", GREY)
            ends = [(v if v is not None and np.isfinite(v) else d.value) * scale for v in (d.lo, d.hi)]
            ax.hlines([j], ends[0], ends[1], colors=[colour], lw=1.0, zorder=2)
            ax.plot([d.value * scale], [j], ls="", marker="D" if d.better == "B" else "o", ms=3.4, mec=colour, mew=0.8,
                    mfc=colour if d.better else "white", zorder=3)  # fmt: skip
            done[d.label] = f"{plain(d.label)} {number(d.value * scale, '')}" + (
                f" (p {d.p:.3g})" if d.p is not None and np.isfinite(d.p) else ""
            )
        spoken.append(f"{plain(metric.heading)}: {', '.join(done.values())}")
    figure.text(0.5, (below - 0.1) / height, fitted(f"Difference to {plain(reference)}", width - 0.2, 7.2), ha="center", va="center",
                fontsize=7.2)  # fmt: skip
    _legend(figure, handles, names)
    caption = (
        f"Paired differences to {plain(reference)}; right of the line at zero the figure is higher. Bars are intervals; filled where "
        "the test, corrected for their number, shows a difference (blue: better, red: worse)."
        + (" Shaded: worse than the reference, within the margin." if margins else "")
        + (" pp: percentage points." if any(m.unit == "rate" for m in metrics) else "")
        + (" Lines without a value could not be compared; the table says why." if gone else "")
    )
    return Drawing(figure, caption, f"Forest plot of {counted(len(metrics), 'metric')}. {'; '.join(spoken)}.")


def _frame(
    ax: Any, metric: Compared, labels: Sequence[str], words: Sequence[str], size: float, scale: float, unit: str, pw: float
) -> None:
    """Axes, zero line, margin, direction and heading of one metric."""
    from matplotlib.ticker import MaxNLocator

    ends = [v * scale for d in metric.differences for v in _finite(d.value, d.lo, d.hi)]
    margin = metric.margin if metric.margin is not None and np.isfinite(metric.margin) else None
    low, high = min([0.0, *ends]), max([0.0, *ends])
    if margin is not None and metric.higher_is_better is not None:
        edge = (-margin if metric.higher_is_better else margin) * scale
        low, high = min(low, edge), max(high, edge)
        ax.axvspan(min(edge, 0), max(edge, 0), color="#e3e3e3", lw=0, zorder=0.4)
    room = max(high - low, 1e-9) * 0.08
    ax.set_xlim(low - room, high + room)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_yticks(range(len(labels)), words or [""] * len(labels))
    ax.tick_params(axis="y", length=0, labelsize=size)
    ax.tick_params(axis="x", labelsize=5.9, length=2, pad=1.5)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4 if pw < 1.6 else 6, min_n_ticks=3))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:+.4g}".replace("-", "−") if abs(v) > 1e-12 else "0")
    ax.axvline(0, color=INK, lw=0.7, zorder=1)
    title = f"{plain(metric.heading)}{f' [{unit}]' if unit else ''}"
    ax.annotate(fitted(title, pw, 6.6), (0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points",
                fontsize=6.6, va="bottom", annotation_clip=False)  # fmt: skip
    if metric.higher_is_better is not None:
        at, text = ((1, "better →") if metric.higher_is_better else (0, "← better"))  # fmt: skip
        ax.annotate(text, (at, 0), xycoords="axes fraction", xytext=(0, -10.5), textcoords="offset points", fontsize=5.8, color=GREY,
                    ha="right" if at else "left", va="top", annotation_clip=False)  # fmt: skip


# --------------------------------------------------------------------------------------------------- critical difference
def levels(spans: Sequence[tuple[float, float]], gap: float = 0.0) -> list[int]:
    """Level of each span so that those on one level do not touch."""
    out = [0] * len(spans)
    taken: list[list[tuple[float, float]]] = []
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][0], -spans[i][1])):
        low, high = spans[i]
        free = (k for k, there in enumerate(taken) if all(high + gap < a or b + gap < low for a, b in there))
        out[i] = next(free, len(taken))
        if out[i] == len(taken):
            taken.append([])
        taken[out[i]].append((low, high))
    return out


def critical_difference(result: Ranking, width: float = COLUMN, what: str = "") -> Drawing | str:
    """Demsar's diagram (2006): average ranks on a line, methods that no test tells apart joined by a bar.

    The bars are cliques of pairwise tests (Wilcoxon, Holm), not Nemenyi's distance, which hangs on the pool of methods
    (Benavoli, Corani & Mangili 2016).  what: what was ranked, for the caption.
    """
    names, ranks = [str(n) for n in result.names], [float(r) for r in result.ranks]
    if len(names) < 2 or len(ranks) != len(names) or not all(map(np.isfinite, ranks)):
        return result.reason or "ranks take at least two methods that have a figure on every data set"
    wide = width > 5
    size = 7.0 if wide else 6.4
    order = sorted(range(len(names)), key=lambda i: (ranks[i], i))
    half = -(-len(names) // 2)
    words = {i: fitted(names[i], 1.7 if wide else 0.72, size) for i in order}
    number_ = 0.24  # the rank, between name and line
    margin = 0.14 + inches(words.values(), size) + number_
    top, pitch = 0.36, 0.165
    spans = [(min(ranks[i] for i in c), max(ranks[i] for i in c)) for c in result.cliques if len(set(c)) > 1]
    first, last = 1, len(names)

    def across(rank: float) -> float:
        return margin + (width - 2 * margin) * (rank - first) / (last - first)

    at = levels(spans, 0.12 * (last - first) / max(width - 2 * margin, 0.1))
    bars = 0.1 * (max(at, default=-1) + 1)
    height = top + 0.08 + bars + pitch * half + 0.06
    figure = _figure(width, height)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.plot([across(first), across(last)], [top, top], color=INK, lw=0.8)
    step = max(1, -(-(last - first) // max(1, int((width - 2 * margin) / 0.24))))
    for rank in range(first, last + 1):
        marked = (rank - first) % step == 0
        ax.plot([across(rank)] * 2, [top - (0.05 if marked else 0.03), top], color=INK, lw=0.7)
        if marked:
            ax.text(across(rank), top - 0.07, str(rank), fontsize=size - 0.4, ha="center", va="bottom")
    ax.text((across(first) + across(last)) / 2, 0.03, "Average rank  (← better)", fontsize=size, ha="center", va="top")
    for (low, high), level in zip(spans, at, strict=True):
        y = top + 0.09 + 0.1 * level
        ax.plot([across(low) - 0.035, across(high) + 0.035], [y, y], color=COLOURS[0], lw=2.6, solid_capstyle="butt", zorder=3)
    for place, i in enumerate(order):
        on_left = place < half
        line = place if on_left else len(order) - 1 - place
        y = top + 0.08 + bars + pitch * (line + 0.5)
        side = -1 if on_left else 1
        end = margin - 0.06 if on_left else width - margin + 0.06
        ax.plot([across(ranks[i]), across(ranks[i]), end], [top, y, y], color=GREY, lw=0.7, zorder=2)
        ax.plot([across(ranks[i])], [top], marker="o", ms=2.6, color=INK, zorder=4)
        beside = "right" if on_left else "left"
        ax.text(end + 0.025 * side, y, f"{ranks[i]:.2f}", fontsize=size - 1.2, color=GREY, ha=beside, va="center_baseline")
        ax.text(end + (0.025 + number_) * side, y, words[i], fontsize=size, ha=beside, va="center_baseline")
    p = result.p
    if p is None:
        tested = f"There is no test that all are alike: {plain(result.reason)}. " if result.reason else ""
    else:
        tested = f"That all are alike: p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}{f' ({plain(result.method)})' if result.method else ''}. "
    if p is None or p >= result.alpha:
        pairs = "No difference is shown, so that pairs are not compared; the bar joins all."
    elif spans:
        pairs = "Bars join methods that pairwise Wilcoxon tests, corrected by Holm, do not tell apart."
    else:
        pairs = "All pairs are told apart (pairwise Wilcoxon tests, corrected by Holm)."
    caption = (
        f"Average ranks{f' in {plain(what)}' if what else ''} over {counted(result.n, 'data set')}; 1 is best. {tested}{pairs}"
        + (f" {plain(result.note)[:1].upper()}{plain(result.note)[1:]}." if result.note else "")
        + (f" Left out: {listing([plain(x) for x in result.left_out])}." if result.left_out else "")
    )
    said = "; ".join(f"{plain(names[i])} {ranks[i]:.2f}" for i in order)
    joined = "; ".join(
        listing([plain(names[i]) for i in sorted(c, key=lambda i: ranks[i])], 12) for c in result.cliques if len(set(c)) > 1
    )
    return Drawing(figure, caption, f"Critical-difference diagram: {said}." + (f" Not told apart: {joined}." if joined else ""))
