"""Heat maps of utility: retention of each attribute, and which emotion is read as which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deidbench.metrics.models.labels import ATTRIBUTE_GROUPS
from deidbench.records import Row
from deidbench.report.figures import COLUMN, GREY, INK, Drawing, _figure
from deidbench.report.view import Key, View, percent, plain, shorten

_ABSENT = "//////"


def _ink(colour: Sequence[float]) -> str:
    """White on dark cells, ink on light ones, by relative luminance."""
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour[:3])
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.3 else INK


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    figure = _figure(width, height)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    return figure, ax


def _scale(ax: Any, colours: Any, x0: float, x1: float, y: float, size: float, title: str, ticks: Sequence[tuple[float, str]]) -> None:  # fmt: skip
    """A colour bar from 0 to 1 with its title below."""
    from matplotlib.patches import Rectangle

    steps = 64
    for i in range(steps):
        ax.add_patch(
            Rectangle(
                (x0 + (x1 - x0) * i / steps, y), (x1 - x0) / steps * 1.05, 0.08, fc=colours(_shade(i / (steps - 1))), lw=0
            )
        )
    for v, text in ticks:
        ax.text(x0 + (x1 - x0) * v, y + 0.1, text, fontsize=size - 0.7, color=INK, ha="center", va="top")
    ax.text((x0 + x1) / 2, y + 0.23, title, fontsize=size, ha="center", va="top")


def _shade(value: float) -> float:
    return 0.04 + 0.92 * min(max(value, 0.0), 1.0)


def _rows(view: View, dataset: str, metric: str) -> dict[str, dict[str, dict[str, Row]]]:
    """Classifier -> label -> method -> headline row of ``metric``."""
    out: dict[str, dict[str, dict[str, Row]]] = {}
    for m in view.methods:
        for k, row in view.of(dataset, m.label).items():
            if k.metric == metric and k.convention in ("", "headline"):
                out.setdefault(k.recognizer, {}).setdefault(k.label, {})[m.label] = row
    return out


def attributes_map(view: View, dataset: str, width: float = COLUMN) -> Drawing | str:
    """Retention of each attribute (lines, by group) under each method (columns); one classifier, the suite's first."""
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    every = _rows(view, dataset, "attributes.retention")
    name, found = next(iter(every.items()), ("", {}))
    methods = [m for m in view.methods if any(m.label in by for by in found.values())]
    blocks = [
        (group, [a for a in names if any(r.value is not None for r in found.get(a, {}).values())])
        for group, names in {
            **ATTRIBUTE_GROUPS,
            "": tuple(a for a in found if a not in sum(ATTRIBUTE_GROUPS.values(), ())),
        }.items()
    ]
    blocks = [(g, names) for g, names in blocks if names]
    if not blocks or not methods:
        return "no attribute can be measured on this data set"
    lines = sum(len(names) for _, names in blocks)
    wide = width > 5
    size = 6.6 if wide else 5.8
    heads = [shorten(m.label, 22) for m in methods]
    left = 0.3 + max(len(a) for _, names in blocks for a in names) * 0.55 * size / 72
    lean = max(map(len, heads)) * 0.56 * size / 72 * 0.71
    cw = min((width - left - max(0.1, lean * 0.8)) / len(methods), 0.55)
    ch, gap, top, below = (0.155 if wide else 0.135), 0.07, lean + 0.12, 0.55
    height = top + lines * ch + (len(blocks) - 1) * gap + below
    figure, ax = _canvas(width, height)
    colours = mpl.colormaps["YlGnBu"]
    for j, head in enumerate(heads):
        ax.text(left + (j + 0.5) * cw - 0.03, top - 0.04, head, fontsize=size, ha="left", va="bottom", rotation=45,
                rotation_mode="anchor", color=GREY if methods[j].control else INK)  # fmt: skip
    y, absent = top, False
    written = cw > 0.26
    for group, names in blocks:
        if group:
            ax.text(0.06, y + len(names) * ch / 2, group if len(names) * ch > len(group) * 0.5 * size / 72 else "", fontsize=size - 0.6,
                    color=GREY, rotation=90, ha="left", va="center")  # fmt: skip
            ax.plot([0.2, 0.2], [y + 0.01, y + len(names) * ch - 0.01], color="#b0b0b0", lw=0.6)
        for a in names:
            ax.text(left - 0.05, y + ch / 2, a.replace("_", " "), fontsize=size, ha="right", va="center_baseline")
            for j, m in enumerate(methods):
                row, x = found[a].get(m.label), left + j * cw
                if row is None or row.value is None:
                    absent = True
                    ax.add_patch(Rectangle((x, y), cw, ch, fc="#ececec", ec="#b0b0b0", hatch=_ABSENT, lw=0))
                    continue
                colour = colours(_shade(row.value))
                ax.add_patch(Rectangle((x, y), cw, ch, fc=colour, ec="white", lw=0.6))
                if written:
                    ax.text(x + cw / 2, y + ch / 2, f"{100 * row.value:.0f}".replace("-", "−"), fontsize=size - 1, ha="center",
                            va="center_baseline", color=_ink(colour))  # fmt: skip
            y += ch
        y += gap
    _scale(ax, colours, left, left + len(methods) * cw, y + 0.02, size, "Retention of above-chance skill [%]",
           [(v, f"{100 * v:g}") for v in (0, 0.25, 0.5, 0.75, 1)])  # fmt: skip
    hidden = [a for a in found if a not in {n for _, names in blocks for n in names}]
    caption = (
        f"Retention of attributes on {plain(dataset)}, read by {plain(name)}: skill above chance on anonymised images over that on the "
        "clear ones. An image that was not released or in which no face is found counts as wrong, so that values can be negative "
        "(coloured like 0)."
        + (f" Unmeasurable, and left out: {', '.join(plain(a).replace('_', ' ') for a in hidden)}." if hidden else "")
        + (" Hatched: no figure." if absent else "")
    )
    words = []
    for m in methods:
        best = sorted(
            (-(r.value or 0.0), a) for _, ns in blocks for a in ns if (r := found[a].get(m.label)) and r.value is not None
        )
        if best:
            words.append(
                f"{plain(m.label)}: most {plain(best[0][1])} {percent(-best[0][0])}, least {plain(best[-1][1])} {percent(-best[-1][0])}"
            )
    return Drawing(figure, caption, f"Heat map of {lines} attributes by {len(methods)} methods. {'; '.join(words)}.")


def confusions(view: View, dataset: str, width: float = COLUMN) -> Drawing | str:
    """One matrix per method: true class (lines) by what the classifier reads (columns), shares of the true class."""
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    every = _rows(view, dataset, "emotion.confusion")
    name, found = next(iter(every.items()), ("", {}))
    pairs: Mapping[tuple[str, str], Mapping[str, Row]] = {
        (label.partition(" -> ")[0], label.partition(" -> ")[2]): by for label, by in found.items() if " -> " in label
    }
    truth = list(dict.fromkeys(t for t, _ in pairs))
    read = [*truth, *(p for p in dict.fromkeys(p for _, p in pairs) if p not in truth)]
    methods = [m for m in view.methods if any(m.label in by and by[m.label].value is not None for by in pairs.values())]
    if len(truth) < 2 or not methods:
        return "fewer than two emotions are labelled, or no classifier reads them"
    wide = width > 5
    size = 6.2 if wide else 5.6
    short = {c: (c[:4] if c in truth else "none") for c in read}
    names = max(len(short[c]) for c in read) * 0.58 * size / 72 + 0.06
    per_row = min(len(methods), max(1, int((width - 0.1) / (names + 0.12 + (0.22 if wide else 0.19) * len(read)))), 6)
    panel = (width - 0.1) / per_row
    cell = min((panel - names - 0.1) / len(read), 0.3)
    head, foot = 0.2, names + 0.08
    down = head + cell * len(truth) + foot
    rows = -(-len(methods) // per_row)
    figure, ax = _canvas(width, rows * down + 0.5)
    colours = mpl.colormaps["YlGnBu"]
    for i, m in enumerate(methods):
        x0, y0 = 0.05 + (i % per_row) * panel + names, (i // per_row) * down + head
        ax.text(x0, y0 - 0.05, shorten(m.label, int(panel / (0.58 * size / 72))), fontsize=size + 0.4, va="bottom",
                color=GREY if m.control else INK)  # fmt: skip
        for line, t in enumerate(truth):
            ax.text(x0 - 0.03, y0 + (line + 0.5) * cell, short[t], fontsize=size, ha="right", va="center_baseline")
            for c, p in enumerate(read):
                row = pairs.get((t, p), {}).get(m.label)
                value = row.value if row is not None else None
                x, y = x0 + c * cell, y0 + line * cell
                if value is None:
                    ax.add_patch(Rectangle((x, y), cell, cell, fc="#ececec", ec="#b0b0b0", hatch=_ABSENT, lw=0))
                    continue
                colour = colours(_shade(value))
                ax.add_patch(Rectangle((x, y), cell, cell, fc=colour, ec="white", lw=0.5))
                if cell > 0.15 and value >= 0.005:
                    ax.text(x + cell / 2, y + cell / 2, f"{100 * value:.0f}", fontsize=size - 1, ha="center",
                            va="center_baseline", color=_ink(colour))  # fmt: skip
        for c, p in enumerate(read):
            ax.text(
                x0 + (c + 0.5) * cell,
                y0 + cell * len(truth) + 0.03,
                short[p],
                fontsize=size,
                ha="center",
                va="top",
                rotation=90,
            )
    _scale(ax, colours, 0.05 + names, min(width - 0.1, 0.05 + names + 2.6), rows * down + 0.04, size,
           "Share of the true class [%]", [(v, f"{100 * v:g}") for v in (0, 0.25, 0.5, 0.75, 1)])  # fmt: skip
    caption = (
        f"What {plain(name)} reads off each true expression on {plain(dataset)} (lines: truth, columns: answer; shares of the true "
        "class in %). “none”: the image was not released, or no face is found in it."
    )
    words = [
        f"{plain(m.label)}: "
        + ", ".join(
            f"{t} {percent(r.value)}" for t in truth if (r := pairs.get((t, t), {}).get(m.label)) and r.value is not None
        )
        for m in methods
    ]
    return Drawing(figure, caption, f"Confusion matrices of {len(methods)} methods; correctly read: {'; '.join(words)}.")


def has(view: View, dataset: str, metric: str) -> bool:
    """Whether any row of ``metric`` has a value."""
    keys: Sequence[Key] = [k for k in view.keys(dataset) if k.metric == metric]
    return any((r := view.row(dataset, m.label, k)) is not None and r.value is not None for m in view.methods for k in keys)
