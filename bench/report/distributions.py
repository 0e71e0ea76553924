"""Score distributions: how far the scores of one person's images lie from those of two persons', method by method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from deidbench.report.figures import (
    COLOURS,
    COLUMN,
    GREY,
    INK,
    Array,
    Drawing,
    _figure,
    _legend,
    _lines,
    worst_attack,
)
from deidbench.report.measure import fitted, inches
from deidbench.report.view import WORST, Method, View, attained, counted, listing, number, percent, plain

KINDS = ("scores_genuine", "scores_impostor")
#: More panels than this are no small multiples any more; the caption names what is left out.
MOST = 36
_GENUINE, _IMPOSTOR = COLOURS[0], COLOURS[1]
_DASHES: tuple[Any, ...] = ((0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1, 1, 1)), "-")


class Scores(NamedTuple):
    """Both histograms of an attack on a method.  edges: n + 1 bin edges; genuine, impostor: densities (n,)."""

    attack: tuple[str, str]
    edges: Array
    genuine: Array
    impostor: Array


def histogram(genuine: Array, impostor: Array) -> tuple[Array, Array, Array] | None:
    """Edges and densities of two histograms over bins of equal width, given as points (lower edge, share, ...).

    Bins that a side leaves out are empty there.  None where there are no two bins to tell the width by.
    """
    lower = np.unique(np.concatenate([genuine[:, 0], impostor[:, 0]]))
    steps = np.diff(lower)
    if not len(steps):
        return None
    width = float(steps.min())
    n = round(float(lower[-1] - lower[0]) / width) + 1
    if n > 100_000 or width <= 0:
        return None
    edges = lower[0] + width * np.arange(n + 1)
    out = []
    for points in (genuine, impostor):
        density = np.zeros(n)
        np.add.at(density, np.round((points[:, 0] - lower[0]) / width).astype(int), np.maximum(points[:, 1], 0.0) / width)
        out.append(density)
    return np.asarray(edges), out[0], out[1]


def distributions(view: View, dataset: str) -> dict[str, Scores]:
    """Method -> its histograms under its own worst case, else under the attack that is most methods' worst case."""
    common = worst_attack(view, dataset, KINDS[0])
    cache: dict[tuple[str, str], tuple[Mapping[str, Array], Mapping[str, Array]]] = {}
    out: dict[str, Scores] = {}
    for m in view.methods:
        row = view.headline(dataset, m.label, WORST)
        own = attained(row) if row is not None else []
        for attack in dict.fromkeys([*own, common]):
            if attack not in cache:
                cache[attack] = _lines(view, dataset, KINDS[0], *attack), _lines(view, dataset, KINDS[1], *attack)
            genuine, impostor = cache[attack]
            if m.label in genuine and m.label in impostor:
                found = histogram(genuine[m.label], impostor[m.label])
                if found is not None:
                    out[m.label] = Scores(attack, *found)
                    break
    return out


def thresholds(view: View, dataset: str, method: str, attack: tuple[str, str]) -> dict[float, float]:
    """FMR that a threshold was set for -> the threshold, of one attack in the headline convention."""
    out = {}
    for k, row in view.of(dataset, method).items():
        name, _, at = k.metric.partition("@fmr=")
        mine = (k.attacker, k.recognizer) == attack and k.convention in ("", "headline")
        if at and name == "reid.tmr" and mine and row.threshold is not None and np.isfinite(row.threshold):
            out[float(at)] = row.threshold
    return dict(sorted(out.items(), reverse=True))


def _eer(view: View, dataset: str, method: str, attack: tuple[str, str]) -> float | None:
    rows = [
        r for k, r in view.of(dataset, method).items()
        if k.metric == "reid.eer" and (k.attacker, k.recognizer) == attack and k.convention in ("", "headline") and not k.label
    ]  # fmt: skip
    return next((r.value for r in rows if r.value is not None), None)


def scores(view: View, dataset: str, width: float = COLUMN) -> Drawing | str:
    """A panel per method: densities of genuine and impostor scores, the thresholds fixed beforehand, the EER."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found = distributions(view, dataset)
    methods = [m for m in view.methods if m.label in found]
    if not methods:
        return "this run keeps no score distributions"
    beyond, methods = methods[MOST:], methods[:MOST]
    wide = width > 5
    most = (4 if len(methods) <= 12 else 6) if wide else (2 if len(methods) <= 8 else 3)
    ncols = min(most, len(methods))
    nrows = -(-len(methods) // ncols)
    attacks = list(dict.fromkeys(found[m.label].attack for m in methods))
    named = len(attacks) > 1  # else the caption names the one
    left, right, gap, down = 0.1, 0.1, 0.12, 0.2
    pw = min((width - left - right - gap * (ncols - 1)) / ncols, 3.2)
    ph = min(0.62 * pw, 0.8)
    header = 0.17 + (0.1 if named else 0.0)
    fixed = {m.label: thresholds(view, dataset, m.label, found[m.label].attack) for m in methods}
    levels = sorted({at for by in fixed.values() for at in by}, reverse=True)
    names = ["same person", "two persons", *(f"threshold for FMR {100 * at:g}\u00a0%" for at in levels)]
    handles: list[Any] = [
        Patch(fc=_GENUINE, alpha=0.45, ec=_GENUINE),
        Line2D([], [], color=_IMPOSTOR, lw=1.1),
        *(Line2D([], [], color=INK, lw=0.8, ls=_DASHES[i % len(_DASHES)]) for i in range(len(levels))),
    ]
    longest = inches(names, 6.5) + 0.42
    below = 0.2 + 0.155 * -(-len(names) // max(1, min(len(names), int((width - 0.1) / longest))))
    height = nrows * (header + ph + down) + below + 0.02
    figure = _figure(width, height)
    ranges = _ranges(found, fixed)
    spoken, outside = [], False
    for i, m in enumerate(methods):
        row, col = divmod(i, ncols)
        x0 = left + col * (pw + gap)
        y0 = height - (row + 1) * (header + ph) - row * down
        ax = figure.add_axes((x0 / width, y0 / height, pw / width, ph / height))
        limits = ranges[found[m.label].attack]
        outside |= any(not limits[0] <= t <= limits[1] for t in fixed[m.label].values())
        spoken.append(_panel(ax, view, dataset, m, found[m.label], fixed[m.label], levels, limits, pw, named))
    figure.text(0.5, (below - 0.08) / height, "Similarity score  (right: more alike)", ha="center", va="center", fontsize=7.0)
    _legend(figure, handles, names)
    lost = [plain(m.label) for m in view.methods if m.label not in found]
    attacker, recognizer = attacks[0]
    caption = (
        f"Scores of pairs of images of the same person and of two persons on {plain(dataset)}, "
        + ("each method under its own worst-case attack (below its name)" if named else
           f"attacker {plain(attacker) or 'not named'}, recogniser {plain(recognizer) or 'not named'}")
        + ". Densities, each panel to its own height; the more they overlap, the more private."
        + (" Upright lines: thresholds fixed beforehand." if levels else "")
        + (" An arrow at the edge: a threshold beyond the panel." if outside else "")
        + (f" Not shown: {listing([plain(m.label) for m in beyond], 8)}." if beyond else "")
        + (f" No scores of {listing(lost, 8)}." if lost else "")
    )  # fmt: skip
    alt = f"{counted(len(methods), 'panel')} with two densities each. {'; '.join(spoken)}."
    return Drawing(figure, caption, alt)


def _ranges(
    found: Mapping[str, Scores], fixed: Mapping[str, Mapping[float, float]]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Attack -> where any method has scores, with a margin: panels of the same attack can be compared.

    Thresholds are in it, unless they are so far off that they would squeeze the scores.
    """
    out: dict[tuple[str, str], tuple[float, float]] = {}
    for attack in dict.fromkeys(found[label].attack for label in fixed):
        mine = [label for label in fixed if found[label].attack == attack]
        ends = []
        for s in (found[label] for label in mine):
            used = np.flatnonzero((s.genuine > 0) | (s.impostor > 0))
            ends += [s.edges[used[0]], s.edges[used[-1] + 1]] if len(used) else [s.edges[0], s.edges[-1]]
        low, high = float(min(ends)), float(max(ends))
        near = [
            t for label in mine for t in fixed[label].values() if low - 0.5 * (high - low) <= t <= high + 0.5 * (high - low)
        ]
        low, high = min([low, *near]), max([high, *near])
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):  # all scores alike, but for rounding
            low, high = low - 0.5, high + 0.5
        out[attack] = low - 0.04 * (high - low), high + 0.04 * (high - low)
    return out


def _panel(
    ax: Any, view: View, dataset: str, m: Method, s: Scores, fixed: Mapping[float, float], levels: list[float],
    limits: tuple[float, float], pw: float, named: bool,
) -> str:  # fmt: skip
    """Draws one method, and says it in words."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits
    top = float(max(s.genuine.max(), s.impostor.max(), 1e-12))
    ax.stairs(s.genuine, s.edges, fill=True, color=_GENUINE, alpha=0.45, lw=0, zorder=2)
    ax.stairs(s.genuine, s.edges, color=_GENUINE, lw=0.7, zorder=2.5)
    ax.stairs(s.impostor, s.edges, color=_IMPOSTOR, lw=1.1, zorder=3)
    ax.set_xlim(low, high)
    ax.set_ylim(0, 1.3 * top)
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    inner = MaxNLocator(nbins=4 if pw > 1.3 else 3, min_n_ticks=2).tick_values(low, high)
    edge = 0.06 * (high - low)  # labels at the very ends would run into the next panel
    ax.set_xticks([t for t in inner if low + edge <= t <= high - edge])
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.6g}".replace("-", "−"))
    ax.tick_params(axis="x", labelsize=5.8, pad=1.5, length=2)
    for at, t in fixed.items():
        if low <= t <= high:
            ax.plot([t, t], [0, 1.13 * top], color=INK, lw=0.8, ls=_DASHES[levels.index(at) % len(_DASHES)], zorder=3.5)
        else:
            end, tip = (low, "<") if t < low else (high, ">")
            ax.plot([end], [0.08 * top], marker=tip, ms=3.2, color=INK, clip_on=False, zorder=4)
    colour = GREY if m.control else INK
    ax.annotate(fitted(m.label, pw, 7.0), (0, 1), xycoords="axes fraction", xytext=(0, 9.5 if named else 2), textcoords="offset points",
                fontsize=7.0, color=colour, va="bottom", annotation_clip=False)  # fmt: skip
    attack = f"{plain(s.attack[0])}, {plain(s.attack[1])}" if all(s.attack) else plain(s.attack[0] or s.attack[1])
    if named:
        ax.annotate(fitted(attack, pw, 5.8), (0, 1), xycoords="axes fraction", xytext=(0, 2),
                    textcoords="offset points", fontsize=5.8, color=GREY, va="bottom", annotation_clip=False)  # fmt: skip
    eer = _eer(view, dataset, m.label, s.attack)
    said = f"EER {number(eer, 'rate')}\u00a0%" if eer is not None else "no EER"
    # In the upper corner above the lower half of the densities.
    middle = (s.edges[:-1] + s.edges[1:]) / 2
    tall = np.maximum(s.genuine, s.impostor)
    split = low + (high - low) * 0.42
    right = tall[middle > high - (split - low)].max(initial=0) < tall[middle < split].max(initial=0)
    ax.annotate(said, (1 if right else 0, 1), xycoords="axes fraction", xytext=(-1 if right else 1, -1), textcoords="offset points",
                fontsize=6.0, color=INK, ha="right" if right else "left", va="top", zorder=5,
                bbox={"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.8})  # fmt: skip
    return f"{plain(m.label)} ({attack}): {'EER ' + percent(eer) if eer is not None else 'no EER'}"
