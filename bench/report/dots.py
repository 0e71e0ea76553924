"""Dots with intervals, method by method: |Δp| of each emotion, and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deidbench.records import Row
from deidbench.report.bars import by_label
from deidbench.report.figures import (
    COLUMN,
    GREY,
    INK,
    MARKERS,
    Drawing,
    _axes,
    _columns,
    _figure,
    _legend,
    _looks,
    _panels,
    _rowwise,
    _shades,
    _spread,
)
from deidbench.report.measure import fitted, inches
from deidbench.report.view import View, counted, listing, number, parts, plain, shorten

DELTA_P = "emotion.delta_p"
SPEED = "throughput.faces_per_s"
LATENCIES = ("throughput.latency_p50", "throughput.latency_p90", "throughput.latency_p99")


def delta_p(view: View, dataset: str, width: float = COLUMN) -> Drawing | str:
    """|Δp| per emotion with intervals: a panel per sweep, methods as dots side by side, the controls as reference."""
    from matplotlib.lines import Line2D

    name, found = by_label(view, dataset, DELTA_P)
    classes = [c for c, by in found.items() if any(r.value is not None for r in by.values())]
    valued = {label for c in classes for label, r in found[c].items() if r.value is not None}
    methods = [m for m in view.methods if m.label in valued]
    if not methods:
        return "no classifier's change of probabilities can be measured on this data set"
    # Without anonymisation nothing changes: a control that is 0 throughout says nothing.
    controls = [m for m in methods if m.control and any((r := found[c].get(m.label)) and r.value for c in classes)]
    panels = _panels(view, {m.label: np.zeros((0, 4)) for m in methods})
    looks = _looks(view)
    wide = width > 5
    ncols = min(4 if wide else 2, len(panels))
    nrows = -(-len(panels) // ncols)
    size = 6.4 if wide else 6.0
    left = 0.12 + inches([shorten(c, 14) for c in classes], size)
    right, between = 0.1, 0.14
    pw = min((width - left - right - between * (ncols - 1)) / ncols, 2.6)
    most = max(len(ms) for _, ms in panels)
    pitch = max(0.15, 0.052 * most + 0.06)
    ph = pitch * len(classes)
    keys = []
    for g, ms in panels:
        names = [m.setting if g in view.sweeps else shorten(m.label, 18 if pw > 1.3 else 14) for m in ms]
        n = max(1, min(len(ms), int(pw / (max(map(len, names), default=1) * 0.6 * 6 / 72 + 0.2))))
        keys.append((names, n))
    # Each line of panels is as high as its own keys need.
    heads = [0.18 + 0.112 * max(-(-len(names) // n) for names, n in keys[i * ncols : (i + 1) * ncols]) for i in range(nrows)]
    below = 0.36 + (0.18 if controls else 0.0)
    height = sum(heads) + nrows * ph + (nrows - 1) * 0.2 + below
    figure = _figure(width if len(panels) > 1 else left + pw + right, height)
    w = float(figure.get_size_inches()[0])
    own = [found[c][m.label] for c in classes for m in methods if not m.control and m.label in found[c]]
    ends = [v for r in own for v in (r.value, r.hi) if v is not None] or [1.0]
    limit = max(ends) * 1.12 or 1.0
    far = [r.value for c in classes for m in controls if (r := found[c].get(m.label)) and r.value is not None]
    if far and max(far) <= 1.4 * limit:
        limit = max(limit, max(far) * 1.06)
    marks = {m.label: "x+*X"[i % 4] for i, m in enumerate(controls)}
    for i, (g, ms) in enumerate(panels):
        row, col = divmod(i, ncols)
        y0 = height - sum(heads[: row + 1]) - (row + 1) * ph - row * 0.2
        ax = figure.add_axes(((left + col * (pw + between)) / w, y0 / height, pw / w, ph / height))
        ax.set_xlim(0, limit)
        ax.set_ylim(len(classes) - 0.5, -0.5)
        ax.set_yticks(range(len(classes)), [shorten(c, 14) for c in classes] if not col else [""] * len(classes))
        ax.tick_params(axis="y", length=0, labelsize=size)
        ax.tick_params(axis="x", labelsize=6, length=2, pad=1.5)
        ax.grid(visible=False, axis="y")
        for j in range(0, len(classes), 2):
            ax.axhspan(j - 0.5, j + 0.5, color="#f5f5f5", lw=0, zorder=0)
        for m in controls:
            points = [(r.value, j) for j, c in enumerate(classes) if (r := found[c].get(m.label)) and r.value is not None]
            near = [(v, j) for v, j in points if v <= limit]
            ax.plot([v for v, _ in near], [j for _, j in near], ls="", marker=marks[m.label], ms=4.0, mew=0.8, color="#8f8f8f",
                    zorder=1.5, clip_on=False)  # fmt: skip
            for v, j in points:
                if v > limit:  # a control must not squeeze the methods
                    ax.annotate(f"{v:.2f} →", (1, j), xycoords=("axes fraction", "data"), xytext=(-1, 0), textcoords="offset points",
                                fontsize=5.6, color="#7a7a7a", ha="right", va="center", zorder=1.5)  # fmt: skip
        shades = _shades(looks[g].colour, len(ms)) if g in view.sweeps else [looks[m.group].colour for m in ms]
        handles = []
        for j, (m, colour) in enumerate(zip(ms, shades, strict=True)):
            marker = MARKERS[j % len(MARKERS)] if g in view.sweeps else looks[m.group].marker
            offset = (j - (len(ms) - 1) / 2) * 0.74 / max(len(ms), 2)
            rows = [
                (c, r)
                for c, by in enumerate(found[name_] for name_ in classes)
                if (r := by.get(m.label)) and r.value is not None
            ]
            values, arms = np.array([r.value for _, r in rows], float), np.array([_spread(r) for _, r in rows]).reshape(-1, 2)
            y = np.array([c + offset for c, _ in rows])
            ax.hlines(y, values - arms[:, 0], values + arms[:, 1], colors=[colour], lw=0.8, zorder=2)
            ax.plot(values, y, ls="", marker=marker, ms=2.8, mfc=colour, mec=colour, mew=0.4, zorder=3, clip_on=False)
            handles.append(Line2D([], [], color=colour, marker=marker, ms=3.2, lw=0.8))
        names, n = keys[i]
        if handles:
            ax.legend(_rowwise(handles, n), _rowwise(names, n), loc="lower left", bbox_to_anchor=(0, 1.0), ncols=n, fontsize=6,
                      handlelength=1.1, handletextpad=0.3, columnspacing=0.7, labelspacing=0.2, borderaxespad=0.15, borderpad=0)  # fmt: skip
        ax.annotate(shorten(g, 24), (0, ph * 72 + 1.5 + 8.0 * -(-len(names) // n)), xycoords="axes points", fontsize=7.2, va="bottom",
                    annotation_clip=False)  # fmt: skip
    centre = (left + (ncols * pw + (ncols - 1) * between) / 2) / w
    figure.text(
        centre, (below - 0.26) / height, "Mean |Δp|  (← more of the expression stays)", ha="center", va="center", fontsize=7.2
    )
    if controls:
        crosses = [Line2D([], [], color="#8f8f8f", marker=marks[m.label], ls="", ms=4, mew=0.8) for m in controls]
        _legend(figure, crosses, [shorten(m.label, 22) for m in controls], centre)
    lost = [plain(m.label) for m in view.methods if m.label not in valued]
    caption = (
        f"Change of the probability of each expression on {plain(dataset)}, read by {plain(name)}: mean |p(anonymised) − p(clear)| over "
        "persons, a panel per sweep. Bars are intervals."
        + (
            f" Grey crosses, for reference: {listing([plain(m.label) for m in controls])} (an arrow: beyond the panel)."
            if controls
            else ""
        )
        + (f" No figure for {listing(lost, 8)}." if lost else "")
    )
    words = [
        f"{plain(m.label)}: "
        + ", ".join(
            f"{plain(c)} {number(r.value, '')}" for c in classes if (r := found[c].get(m.label)) and r.value is not None
        )
        for m in methods
    ]
    return Drawing(figure, caption, f"Dot plots of |Δp| for {counted(len(classes), 'expression')}. {'; '.join(words)}.")


class _Track(NamedTuple):
    metric: str
    name: str
    filled: bool
    marker: str
    down: float = 0.0  # from the method's line, in lines


def _log_axis(ax: Any, low: float, high: float, inches: float) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    ax.set_xscale("log")
    low, high = low / 1.35, high * 1.35
    ax.set_xlim(low, high)
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = [10.0**d for d in decades if low <= 10.0**d <= high]
    if len(ticks) < 2:
        ticks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    ticks = ticks[:: max(1, -(-len(ticks) // max(2, int(inches / 0.36))))]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(
        lambda v, _: f"{v:g}" if 1e-3 <= v < 1e4 else f"{v / 1000:g}k" if 1e4 <= v < 1e6 else f"{v:.0e}".replace("e+0", "e")
    )


def _size(t: _Track) -> float:
    return 4.2 if t.marker == "|" else 2.6 if t.down or not t.filled else 3.4


def throughput(view: View, dataset: str, width: float = COLUMN) -> Drawing | str:
    """Faces per second and, where there are any, single-stream latencies per method, on log axes with intervals."""
    from matplotlib.lines import Line2D

    def row(label: str, metric: str) -> Row | None:
        r = view.headline(dataset, label, metric)
        return r if r is not None and r.value is not None and r.value > 0 and np.isfinite(r.value) else None

    end_to_end = SPEED.replace(".", ".end_to_end_")
    speeds = [_Track(SPEED, "method alone", True, "o"), _Track(end_to_end, "end to end", False, "s")]
    latencies = [
        _Track(LATENCIES[0], "median", True, "o", -0.22),
        _Track(LATENCIES[1], "90\u00a0%", False, "o"),
        _Track(LATENCIES[2], "99\u00a0%", True, "|", 0.22),
        _Track(LATENCIES[0].replace(".", ".end_to_end_"), "median end to end", False, "s"),
    ]
    tracks = [[t for t in ts if any(row(m.label, t.metric) for m in view.methods)] for ts in (speeds, latencies)]
    methods = [m for m in view.methods if any(row(m.label, t.metric) for ts in tracks for t in ts)]
    if not tracks[0] or not methods:
        return "nothing was timed in this run"
    wide = width > 5
    looks = _looks(view)
    size = 6.8 if wide else 6.4
    labels = [fitted(m.label, 1.8 if wide else 0.82, size) for m in methods]
    left = 0.14 + inches(labels, size)
    between, right, top = 0.16, 0.12, 0.06
    panels = [ts for ts in tracks if ts]
    pw = (width - left - right - between * (len(panels) - 1)) / len(panels)
    handles: list[Any] = []
    names: list[str] = []
    for t in (*(tracks[0] if len(tracks[0]) > 1 else ()), *tracks[1]):
        handles.append(
            Line2D([], [], color=GREY, marker=t.marker, ls="", ms=_size(t), mfc=GREY if t.filled else "white", mew=0.8)
        )
        names.append(t.name if t in tracks[0] else f"latency, {t.name}")
    bottom = 0.36 + (0.155 * -(-len(names) // _columns(names, width - 0.1)) if names else 0.0)
    pitch = 0.185 if wide else 0.165
    height = bottom + top + pitch * max(len(methods), 2)
    figure = _figure(width, height)
    for i, ts in enumerate(panels):
        x0 = left + i * (pw + between)
        ax = _axes(figure, x0, bottom, width - x0 - pw, top)
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_yticks(range(len(methods)), labels if i == 0 else [""] * len(methods))
        ax.tick_params(axis="y", length=0, labelsize=size)
        ax.tick_params(axis="x", labelsize=6, length=2, pad=1.5)
        ax.grid(visible=False, axis="y")
        ax.spines["left"].set_visible(False)
        ax.hlines(range(len(methods)), 0, 1, transform=ax.get_yaxis_transform(), colors="#ededed", lw=0.5, zorder=0.5)
        for tick, m in zip(ax.get_yticklabels(), methods, strict=True):
            tick.set_color(GREY if m.control else INK)
        all_rows = [r for m in methods for t in ts if (r := row(m.label, t.metric))]
        ends = [v for r in all_rows for v in (r.value, r.lo, r.hi) if v is not None and v > 0]
        _log_axis(ax, min(ends), max(ends), pw)
        ax.set_xlabel("Faces/s  (faster →)" if ts is tracks[0] else "Latency [ms]  (← faster)", fontsize=7.0, labelpad=2)
        for j, m in enumerate(methods):
            colour = looks[m.group].colour
            for t in ts:
                r = row(m.label, t.metric)
                if r is None:
                    continue
                value = r.value or 0.0
                lo, hi = (v if v is not None and v > 0 else value for v in (r.lo, r.hi))
                ax.hlines([j + t.down], lo, hi, colors=[colour], lw=0.9, zorder=2)
                ax.plot([value], [j + t.down], ls="", marker=t.marker, ms=_size(t), mfc=colour if t.filled else "white",
                        mec=colour, mew=0.8, zorder=3)  # fmt: skip
    if names:
        _legend(figure, handles, names)
    caption = (
        f"Speed of each method on images of {plain(dataset)}, log scale; bars are intervals. {_machine(view, [r for m in methods if (r := row(m.label, tracks[0][0].metric))])}"
        + (
            f" No figure for {listing([plain(m.label) for m in view.methods if m not in methods], 8)}."
            if len(methods) < len(view.methods)
            else ""
        )
    )
    words = []
    for m in methods:
        r, p50 = row(m.label, tracks[0][0].metric), row(m.label, LATENCIES[0])
        said = [f"{number(r.value or 0.0, r.unit)} faces/s"] if r else []
        said += [f"median latency {number(p50.value or 0.0, p50.unit)} ms"] if p50 else []
        words.append(f"{plain(m.label)} {', '.join(said)}")
    return Drawing(figure, caption, f"Dot plot of speed. {'; '.join(words)}.")


def _machine(view: View, rows: Sequence[Row]) -> str:
    """What was timed, and where; settings on which the methods differ are left to the tables."""
    env: Mapping[str, Any] = view.entry("environment")
    common = [p for p in (parts(rows[0].note) if rows else ()) if all(p in parts(r.note) for r in rows)]
    common = [p for p in common if not p.startswith(("threads: ", "batch of ", "outputs compared "))]
    cores = env.get("cores")
    machine = plain(env.get("cpu") or "not recorded") + (f", {counted(int(cores), 'core')}" if isinstance(cores, int) else "")
    gpus = env.get("gpus") or env.get("gpu")
    if gpus:
        machine += f"; {listing([plain(g) for g in ([gpus] if isinstance(gpus, str) else gpus)])}"
    return f"Machine: {machine}." + (f" Timed: {'; '.join(plain(p) for p in common)}." if common else "")
