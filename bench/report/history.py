"""A method's guarded figures run after run, with the margin that a gate would grant around the first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deidbench.records import Row, Run
from deidbench.report.figures import COLOURS, COLUMN, GREY, INK, Drawing, _figure, _percent_axis
from deidbench.report.measure import fitted, inches
from deidbench.report.view import WORST, Key, View, arrow, counted, listing, number, plain, shorten, unit_sign

_BEYOND = COLOURS[1]


def _found(view: View, dataset: str, method: str, metric: str | Key) -> Row | None:
    row = view.headline(dataset, method, metric) if isinstance(metric, str) else view.row(dataset, method, metric)
    return row if row is not None and row.value is not None and np.isfinite(row.value) else None


def _weights(view: View, method: str) -> str:
    return next((str(m.info.get("weights_sha256") or "")[:7] for m in view.methods if m.label == method), "")


def _labels(views: Sequence[View], method: str) -> list[str]:
    """Day over commit, and the checkpoint where it is another one than before; the folder's name where there is neither."""
    weights = [_weights(v, method) for v in views]
    out = []
    for i, view in enumerate(views):
        git = view.entry("environment").get("git")
        git = git if isinstance(git, Mapping) else {}
        commit = plain(git.get("commit") or "")[:7]
        lines = [plain(view.record.get("started") or "")[:10], commit + ("*" if commit and git.get("dirty") else "")]
        if len(set(weights)) > 1 and weights[i] and (i == 0 or weights[i] != weights[i - 1]):
            lines[1] = f"{lines[1]} ({weights[i]})".strip()
        out.append("\n".join(x for x in lines if x) or shorten(view.run.folder.name, 20))
    return out


def _terms(view: View) -> tuple[str, ...]:
    """What must be equal for two runs' figures to compare."""
    return (
        str(view.entry("protocol").get("name")),
        str(view.entry("dataset").get("manifest_sha256")),
        str(view.entry("protocol").get("comparison")),
    )


def history(
    runs: Sequence[Run],
    metrics: Sequence[str | Key],
    method: str,
    margins: Mapping[str, float] | None = None,
    width: float = COLUMN,
    dataset: str = "",
    labels: Sequence[str] = (),
) -> Drawing | str:
    """A panel per metric: value and interval of ``method`` in each run, in the order given; the first one is the baseline.

    metrics: a name stands for the method's headline row, a :class:`Key` for that row.  margins: by name, how much worse
    than the baseline is accepted (a positive number, in the metric's unit).  labels: of the runs, else day, commit and
    checkpoint.
    """
    views = [View(r) for r in runs]
    if not views:
        return "there is no run to show"
    dataset = dataset or views[0].datasets[0]
    rows = [[_found(v, dataset, method, metric) for v in views] for metric in metrics]
    shown = [(metric, found) for metric, found in zip(metrics, rows, strict=True) if any(found)]
    if not shown:
        return f"no run has a figure of {plain(method)} in {listing([_name(m) for m in metrics]) or 'no metric'}"
    words = [shorten(x, 30) for x in labels] or _labels(views, method)
    if len(words) != len(views):
        raise ValueError(f"{len(views)} runs, but {len(words)} labels")
    breaks = [i + 0.5 for i, (a, b) in enumerate(pairwise(views)) if _terms(a) != _terms(b)]
    wide = width > 5
    left, right, header = 0.5, 0.12, 0.2
    ph = 0.95 if wide else 0.8
    every = max(1, int(-(-len(views) * 0.22 // (width - left - right))))
    below = 0.18 + inches(words, 5.8) * 0.82 + (0.06 if any("\n" in x for x in words) else 0.0)
    first = inches(words[:1], 5.8) * 0.57 + 0.08  # the first label leans out to the left
    left = max(left, min(first - 0.5 * (width - left - right) / len(views), 0.9))
    height = len(shown) * (header + ph) + below
    figure = _figure(width, height)
    over, spoken, hollow = False, [], False
    for i, (metric, found) in enumerate(shown):
        y0 = height - (i + 1) * (header + ph)
        ax = figure.add_axes((left / width, y0 / height, (width - left - right) / width, ph / height))
        margin = (margins or {}).get(_name(metric))
        beyond = _panel(ax, views[0], metric, found, margin, breaks, len(views))
        over |= bool(beyond)
        hollow |= any(r is not None and not r.trusted for r in found)
        ax.set_xticks(range(0, len(views), every), words[::every] if i == len(shown) - 1 else [""] * len(words[::every]))
        for label in ax.get_xticklabels():
            label.set_rotation(55)
            label.set_rotation_mode("anchor")
            label.set_horizontalalignment("right")
            label.set_fontsize(5.8)
            label.set_linespacing(1.1)
        said = [number(r.value or 0.0, r.unit) if r is not None else "no figure" for r in found]
        spoken.append(
            f"{views[0].heading(_name(metric))}: {', '.join(said)}"
            + (f" ({counted(len(beyond), 'run')} beyond the margin)" if beyond else "")
        )
    idle = [_name(metric) for metric, found in zip(metrics, rows, strict=True) if not any(found)]
    weights = {w for v in views if (w := _weights(v, method))}
    caption = (
        f"{plain(method)} on {plain(dataset)} over {counted(len(views), 'run')}, with intervals."
        + (" Shaded: no worse than the first run by more than the gate's margin." if margins else "")
        + (" Crossed out: beyond it." if over else "")
        + (" Upright dotted: protocol or images changed; figures on its two sides do not compare." if breaks else "")
        + (" Hollow: not trusted." if hollow else "")
        + (" In brackets: another checkpoint from there on." if len(weights) > 1 and not labels else "")
        + (f" All with checkpoint {plain(next(iter(weights)))}." if len(weights) == 1 and not labels else "")
        + (" A star: uncommitted changes." if any("*" in w for w in words) and not labels else "")
        + (f" No figure of {listing(idle)}." if idle else "")
    )  # fmt: skip
    return Drawing(figure, caption, f"Values over {counted(len(views), 'run')}, oldest first. {'; '.join(spoken)}.")


def _name(metric: str | Key) -> str:
    return metric if isinstance(metric, str) else metric.metric


def _panel(
    ax: Any, view: View, metric: str | Key, found: Sequence[Row | None], margin: float | None, breaks: Sequence[float], n: int
) -> list[int]:
    """Draws one metric; the indices of runs that are worse than the baseline by more than the margin."""
    from matplotlib.ticker import MaxNLocator

    known = [(i, r) for i, r in enumerate(found) if r is not None]
    base = known[0][1]
    start, better = base.value or 0.0, base.higher_is_better
    ends = [v for _, r in known for v in (r.value, r.lo, r.hi) if v is not None and np.isfinite(v)]
    beyond = []
    if margin is not None:
        low = start - margin if better is not False else start
        high = start + margin if better is not True else start
        ax.axhspan(low, high, color="#dcebf5", lw=0, zorder=0.4)
        ends += [low, high]
        slack = 1e-12 * max(abs(start), abs(margin), 1e-9)
        beyond = [
            i
            for i, r in known
            if r.value is not None and not low - slack <= r.value <= high + slack and _worse(r.value, start, better)
        ]
    ax.axhline(start, color=GREY, lw=0.7, ls=(0, (4, 2)), zorder=1)
    for x in breaks:
        ax.axvline(x, color=GREY, lw=0.8, ls=(0, (1, 1.5)), zorder=1)
    for (i, a), (j, b) in pairwise(known):
        if j == i + 1 and not any(i < x < j for x in breaks):
            ax.plot([i, j], [a.value, b.value], color="#b5b5b5", lw=0.9, zorder=1.5)
    for i, r in known:
        lo, hi = (v if v is not None and np.isfinite(v) else r.value for v in (r.lo, r.hi))
        colour = _BEYOND if i in beyond else COLOURS[0]
        ax.vlines([i], lo, hi, colors=[colour], lw=0.9, zorder=2)
        ax.plot([i], [r.value], ls="", marker="X" if i in beyond else "o", ms=4.4 if i in beyond else 3.4, mec=colour, mew=0.8,
                mfc=colour if r.trusted else "white", zorder=3, clip_on=False)  # fmt: skip
    low, high = min(ends), max(ends)
    room = max((high - low) * 0.1, 1e-6 * max(abs(high), 1e-3))
    low, high = low - room, high + room
    if base.unit == "rate":  # a margin may reach beyond what a rate can be
        low, high = max(low, -0.02), min(high, 1.02)
    ax.set_ylim(low, high)
    ax.set_xlim(-0.5, n - 0.5)
    ax.grid(visible=False, axis="x")
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    ax.tick_params(axis="y", labelsize=6, length=2, pad=1.5)
    ax.tick_params(axis="x", length=2, pad=1.5)
    if base.unit == "rate":
        _percent_axis(ax.yaxis)
    unit = unit_sign(base.unit)
    about = "" if isinstance(metric, str) else ", ".join(
        plain(p) for p in (metric.attacker, metric.recognizer, metric.label) if p)  # fmt: skip
    title = (
        f"{view.heading(_name(metric))}{f', {about}' if about else ''}{f' [{unit}]' if unit else ''} {arrow(better)}".strip()
    )
    ax.annotate(fitted(title, float(ax.get_window_extent().width / ax.get_figure().dpi), 6.8), (0, 1), xycoords="axes fraction", xytext=(0, 3),
                textcoords="offset points", fontsize=6.8, color=INK, va="bottom", annotation_clip=False)  # fmt: skip
    return beyond


def _worse(value: float, start: float, better: bool | None) -> bool:
    return value < start if better is True else value > start if better is False else True


def show(found: Sequence[Mapping[str, Any]], console: Any) -> None:
    """A line per run under each figure, of each method."""
    from rich.text import Text

    from deidbench.report.tables import to_console
    from deidbench.scored import Question
    from deidbench.words import title

    def say(text: str, style: str = "") -> None:
        console.print(Text(to_console(plain(text) if style else text, console.encoding), style=style), soft_wrap=True)

    methods = list(dict.fromkeys(line["method"] for line in found))
    datasets = {line.get("dataset") for line in found}
    groups: dict[tuple[Question, str], list[Mapping[str, Any]]] = {}
    for line in found:
        groups.setdefault((Question(*(str(line[f]) for f in Question._fields)), str(line["method"])), []).append(line)
    wide = max((len(str(line["run"])) for line in found), default=0)
    for (q, method), lines in sorted(groups.items(), key=lambda g: methods.index(g[0][1])):
        more = [x for x in (q.attacker, q.recognizer, q.label, "" if q.convention == "headline" else q.convention) if x]
        about = ", ".join([title(q.metric), *more]) + (f" - {method}" if len(methods) > 1 else "")
        say(about, "bold")
        for line in lines:
            value = "–" if line["value"] is None else f"{line['value']:.4f}"
            ends = "" if line["lo"] is None or line["hi"] is None else f" [{line['lo']:.4f}, {line['hi']:.4f}]"
            notes = [str(line["reason"] or ""), "" if line["trusted"] else "(not trusted)"]
            notes += [str(line.get("dataset") or "") if len(datasets) > 1 else "", str(line.get("time_note") or "")]
            when = str(line.get("started") or line["finished"])[:16]
            cells = [f"{when:<16}", f"{plain(line['run']):<{min(wide, 40)}}", value + ends, *(plain(n) for n in notes if n)]
            say("  " + "  ".join(cells))


def write(
    runs: Sequence[Run], found: Sequence[Mapping[str, Any]], margins: Mapping[Any, float | None], method: str, folder: Path
) -> list[Path]:
    """history.{csv,json} and the figure in its formats, in one column's width and in two."""
    import pandas as pd

    from deidbench.report.figures import save, style
    from deidbench.report.tables import csv_long
    from deidbench.report.view import write_atomically

    written = [
        write_atomically(folder / "history.json", json.dumps(list(found), indent=1)),
        write_atomically(folder / "history.csv", csv_long(pd.DataFrame(list(found)))),
    ]
    asked: list[str | Key] = [q.metric if q.metric == WORST else Key(*q) for q in margins]
    by_name = {q.metric: m for q, m in margins.items() if m is not None}
    for width, end in ((COLUMN, ""), (2 * COLUMN, "-wide")):
        with style():
            drawing = history(runs, asked, method, by_name, width=width)
            if not isinstance(drawing, str):
                written += save(drawing, folder, f"history{end}")
    return written
