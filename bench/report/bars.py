"""Bars of removal: of each attribute, how often it is no longer read off the anonymised image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deidbench.metrics.models.labels import ATTRIBUTE_GROUPS
from deidbench.records import Row
from deidbench.report.figures import COLOURS, COLUMN, GREY, INK, PALE, Drawing, _figure, _legend, _percent_axis, _spread
from deidbench.report.measure import inches
from deidbench.report.view import Method, View, counted, listing, percent, plain, shorten

REMOVAL, MISSED = "attributes.removal", "attributes.clear_false_negative_rate"
#: Panels of :func:`removal`.
PANELS = 4
_FILL = "#7fb3d5"


def by_label(view: View, dataset: str, metric: str) -> tuple[str, dict[str, dict[str, Row]]]:
    """(classifier, label -> method -> headline row) of a quantity that has a row per label; the suite's first classifier."""
    reader = ""
    found: dict[str, dict[str, Row]] = {}
    for m in view.methods:
        for k, row in view.of(dataset, m.label).items():
            if k.metric != metric or k.convention not in ("", "headline") or not k.label:
                continue
            reader = reader or k.recognizer
            if k.recognizer == reader:
                found.setdefault(k.label, {}).setdefault(m.label, row)
    return reader, found


def chosen(view: View, labels: Sequence[str], most: int = PANELS) -> list[Method]:
    """At most so many methods in suite order, controls aside: of a sweep the middle strength stands for all."""
    have = set(labels)
    out = []
    for group in dict.fromkeys(m.group for m in view.methods if not m.control):
        members = [m for m in view.sweeps.get(group, [m for m in view.methods if m.group == group]) if m.label in have]
        if members:
            out.append(members[len(members) // 2] if group in view.sweeps else members[0])
    return out[:most] or [m for m in view.methods if m.label in have][:most]


def _spaced(attribute: str) -> str:
    return shorten(plain(attribute).replace("_", " "), 28)


def _grouped(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Attributes in the groups in which the paper tells its results; what is none of CelebA's comes last."""
    known = {a for group in ATTRIBUTE_GROUPS.values() for a in group}
    blocks = [(group, [a for a in of if a in names]) for group, of in ATTRIBUTE_GROUPS.items()]
    return [(g, a) for g, a in (*blocks, ("", [n for n in names if n not in known])) if a]


def removal(view: View, dataset: str, width: float = COLUMN, methods: Sequence[str] = ()) -> Drawing | str:
    """Bars of each attribute's removal with intervals, what the classifier misses on clear images marked beside.

    A panel per method: those of ``methods``, else of :func:`chosen`.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    name, found = by_label(view, dataset, REMOVAL)
    _, missed = by_label(view, dataset, MISSED)
    valued = [label for by in found.values() for label, row in by.items() if row.value is not None]
    shown = [m for m in view.methods if m.label in methods and m.label in valued] if methods else chosen(view, valued)
    if not shown:
        return "no attribute's removal can be measured on this data set"
    blocks = _grouped(list(found))
    wide = width > 5
    size, pitch, gap = (6.6, 0.15, 0.06) if wide else (5.8, 0.128, 0.05)
    left = 0.26 + inches([_spaced(a) for _, names in blocks for a in names], size)
    right, between, below = 0.1, 0.1, 0.6
    pw = min((width - left - right - between * (len(shown) - 1)) / len(shown), 2.6)
    # Names lie flat where they fit, else they lean.
    heads = [shorten(m.label, 26) for m in shown]
    lean = inches(heads, 6.4) > pw
    if lean:
        right = max(right, inches(heads[-1:], 6.4) * 0.83 + 0.06 - 0.88 * pw)
        pw = (width - left - right - between * (len(shown) - 1)) / len(shown)
    top = 0.15 + (inches(heads, 6.4) * 0.56 if lean else 0.05)
    lines = sum(len(names) for _, names in blocks)
    height = top + lines * pitch + (len(blocks) - 1) * gap + below
    figure = _figure(width, height)
    at: dict[str, float] = {}
    y = 0.0
    for group, names in blocks:
        start = y
        for a in names:
            at[a] = y + pitch / 2
            y += pitch
        if group and y - start + 0.2 > len(group) * 0.5 * (size - 0.6) / 72:  # it may stand out a little
            figure.text(0.05 / width, 1 - (top + (start + y) / 2) / height, group, fontsize=size - 0.6, color=GREY, rotation=90,
                        ha="left", va="center")  # fmt: skip
        if group:
            x = 0.19 / width
            figure.add_artist(
                Line2D([x, x], [1 - (top + start + 0.015) / height, 1 - (top + y - 0.015) / height], color="#b0b0b0", lw=0.6)
            )
        y += gap
    total = y - gap
    gone: dict[str, list[str]] = {}
    spoken = []
    for i, m in enumerate(shown):
        x0 = left + i * (pw + between)
        ax = figure.add_axes((x0 / width, below / height, pw / width, total / height))
        ax.set_ylim(total, 0)
        ax.set_xlim(0, 1.0)
        ax.set_xticks([0, 0.5, 1.0] if pw < 1.2 else [0, 0.25, 0.5, 0.75, 1.0])
        ax.tick_params(axis="x", labelsize=size - 0.5, length=2, pad=1.5)
        _percent_axis(ax.xaxis)
        ends = ax.get_xticklabels()
        ends[0].set_horizontalalignment("left")  # the neighbours' labels are close
        ends[-1].set_horizontalalignment("right")
        ax.grid(visible=False, axis="y")
        ax.set_yticks([])
        ax.annotate(heads[i], (0.12 if lean else 0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", fontsize=6.4,
                    rotation=34 if lean else 0, rotation_mode="anchor", va="bottom", annotation_clip=False)  # fmt: skip
        rows = {a: found[a].get(m.label) for a in at}
        known = {a: r for a, r in rows.items() if r is not None and r.value is not None}
        ax.barh(
            [at[a] for a in known], [r.value or 0.0 for r in known.values()], height=pitch * 0.72, color=_FILL, lw=0, zorder=2
        )
        arms = np.array([_spread(r) for r in known.values()]).reshape(-1, 2)
        values = np.array([r.value or 0.0 for r in known.values()])
        ax.hlines([at[a] for a in known], values - arms[:, 0], values + arms[:, 1], colors=INK, lw=0.7, zorder=3)
        clear = {a: r.value for a in known if (r := missed.get(a, {}).get(m.label)) is not None and r.value is not None}
        ax.plot(list(clear.values()), [at[a] for a in clear], ls="", marker="|", ms=pitch * 72 * 0.8, mew=1.3, color=COLOURS[1],
                zorder=4, clip_on=False)  # fmt: skip
        for a, row in rows.items():
            if row is None or row.value is None:
                gone.setdefault(a, []).append(m.label)
                ax.plot([0, 1], [at[a], at[a]], color=PALE, lw=0.7, ls=(0, (1.5, 1.5)), zorder=1)
        order = sorted(known, key=lambda a: known[a].value or 0.0)
        spoken.append(
            f"{plain(m.label)}: most {plain(order[-1])} {percent(known[order[-1]].value or 0.0)}, "
            f"least {plain(order[0])} {percent(known[order[0]].value or 0.0)}"
        )
    never = [a for a in at if len(gone.get(a, ())) == len(shown)]
    for a, where in at.items():
        figure.text((left - 0.05) / width, 1 - (top + where) / height, _spaced(a), fontsize=size, ha="right",
                    va="center_baseline", color="#9a9a9a" if a in never else INK)  # fmt: skip
    centre = (left + (len(shown) * pw + (len(shown) - 1) * between) / 2) / width
    figure.text(
        centre, (below - 0.25) / height, "Removal [%]  (more is more removed →)", ha="center", va="center", fontsize=7.0
    )
    handles = [
        Patch(fc=_FILL),
        Line2D([], [], color=INK, lw=0.7),
        Line2D([], [], color=COLOURS[1], marker="|", ls="", ms=7, mew=1.3),
    ]
    _legend(figure, handles, ["removed", "interval", "missed on clear images"])
    rest = [m for m in view.methods if not m.control and m.label in valued and m not in shown]
    some = [a for a in gone if a not in never]
    caption = (
        f"Removal of each attribute on {plain(dataset)}, read by {plain(name)}: of the images read as having it when clear, the share "
        "that is no longer. Beside it the share of bearers that the classifier misses on clear images already. Intervals are over "
        "persons."
        + (f" Not measurable (grey, dotted): {listing([plain(a).replace('_', ' ') for a in never], 12)}." if never else "")
        + (f" Dotted, no figure for that method: {listing([plain(a).replace('_', ' ') for a in some], 8)}." if some else "")
        + (
            f" One setting stands for each sweep; in the tables only: {listing([plain(m.label) for m in rest], 9)}."
            if rest and any(m.group in view.sweeps for m in rest)
            else f" In the tables only: {listing([plain(m.label) for m in rest], 9)}." if rest else ""
        )
    )  # fmt: skip
    return Drawing(figure, caption, f"Bars of {counted(lines, 'attribute')}, a panel per method. {'; '.join(spoken)}.")
