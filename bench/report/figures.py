"""The figures of a run: privacy-utility plane, forest of rank-1, ladder of attackers, CMC, DET.  Pictures: :mod:`.samples`.

Each function returns a :class:`Drawing`, or a sentence that says why there is nothing to draw.  Widths are in inches:
3.4 is one column of a paper, 7.0 the page.  Files are the same to the byte for the same run and matplotlib: no dates,
fixed ids.  Colours are those of Okabe and Ito (2008), told apart by colour-blind readers; markers and line styles repeat
what colour says.  matplotlib is driven without pyplot, so that nothing global is left behind.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.records import Row
from deidbench.report.view import (
    RANK1,
    WORST,
    Method,
    View,
    attained,
    interval,
    listing,
    number,
    pareto,
    percent,
    plain,
    shorten,
    unit_sign,
    write_atomically,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

COLUMN, PAGE = 3.4, 7.0
KINDS = ("pdf", "svg", "png")

#: Okabe-Ito without black (controls) and yellow (too pale for lines on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F5AA8")
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (4, 1, 1, 1)), (0, (6, 2)), (0, (2, 2)))
INK, GREY, PALE = "#1a1a1a", "#6b6b6b", "#d9d9d9"

_STYLE: Mapping[str, Any] = {
    "font.size": 7.0,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold dollar signs
    "svg.hashsalt": "deidbench",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "figure.dpi": 100,
    "savefig.dpi": 200,
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with its caption and a text for those who cannot see it."""

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Saved:
    """A figure on disk: name -> files per width.  ``why`` is set where there was nothing to draw."""

    name: str
    title: str
    caption: str = ""
    alt: str = ""
    narrow: tuple[Path, ...] = ()
    wide: tuple[Path, ...] = ()
    why: str = ""


#: Signs that the light font keeps (others come from the full one): Latin, Greek, punctuation, arrows, comparisons.
_RANGES = ((0x20, 0x17F), (0x391, 0x3C9), (0x2010, 0x203A), (0x2190, 0x2193), (0x2260, 0x2265))
_LIGHT = "deidbench sans"


@lru_cache(maxsize=1)
def _light_font() -> bytes:
    """DejaVu Sans, without what figures have no use for.

    Each PDF embeds what it needs of its fonts; finding that out costs half a second in the full font (6 000 glyphs,
    layout tables for dozens of scripts) and a twentieth of that in this one.
    """
    from fontTools import subset
    from fontTools.ttLib import TTFont
    from matplotlib import font_manager

    font = TTFont(font_manager.findfont("DejaVu Sans"), recalcTimestamp=False)
    options = subset.Options(layout_features=[], legacy_kern=True, notdef_outline=True, recalc_timestamp=False, name_IDs=["*"])
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "FFTM"]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[c for low, high in _RANGES for c in range(low, high + 1)])
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 16):
            record.string = _LIGHT.title()
    buffer = io.BytesIO()
    font.save(buffer)
    return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """matplotlib with our settings and font, the caller's own put back afterwards."""
    import tempfile

    import matplotlib as mpl
    from matplotlib import font_manager

    manager = font_manager.fontManager
    # Further scripts only where a font for them is there: asking for an absent one is reported for each text.
    there = set(manager.get_font_names())
    further = [f for f in ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "Noto Emoji") if f in there]
    before = list(manager.ttflist)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        path = Path(folder) / "light.ttf"
        path.write_bytes(_light_font())
        manager.addfont(path)
        mpl.rcParams.update({**_STYLE, "font.family": [_LIGHT.title(), "DejaVu Sans", *further]})
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")  # drawn as a box; tables hold the name
        try:
            yield
        finally:
            manager.ttflist[:] = before


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose axes are invisible and count inches, (0, 0) in the upper left corner."""
    figure = _figure(width, height)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    return figure, ax


def _axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with these margins in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, (w - left - right) / w, (h - bottom - top) / h))


def _columns(labels: Sequence[str], width: float, size: float = 6.5) -> int:
    """How many legend columns fit ``width`` inches (0.6 em per character is wide for DejaVu Sans)."""
    widest = max((len(x) for x in labels), default=1) * 0.6 * size / 72 + 0.42
    return max(1, min(len(labels), int(width / widest)))


def _rowwise(items: Sequence[Any], columns: int) -> list[Any]:
    """In the order in which a legend with so many columns, filled column by column, reads row by row."""
    return [item for i in range(columns) for item in items[i::columns]]


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], x: float = 0.5) -> None:
    """A legend below everything, as many columns as fit, read row by row.  x: its centre, 0..1."""
    n = _columns(names, float(figure.get_size_inches()[0]) - 0.1)
    figure.legend(
        _rowwise(handles, n), _rowwise(names, n), loc="lower center", bbox_to_anchor=(x, 0.0), ncols=n, borderaxespad=0.2,
        columnspacing=1.1, handlelength=1.7, handletextpad=0.45, labelspacing=0.35,
    )  # fmt: skip


def save(drawing: Drawing, folder: Path, name: str) -> tuple[Path, ...]:
    """PDF, SVG and PNG (200 dpi) of a drawing, atomically and without dates."""
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    out = []
    for kind in KINDS:
        buffer = io.BytesIO()
        more: dict[str, Any] = {"pil_kwargs": {"compress_level": 4}} if kind == "png" else {}
        drawing.figure.savefig(buffer, format=kind, metadata=undated[kind], **more)
        out.append(write_atomically(folder / f"{name}.{kind}", buffer.getvalue()))
    return tuple(out)


# ---------------------------------------------------------------------------------------------------------------- looks
@dataclass(frozen=True)
class _Look:
    colour: str
    marker: str
    size: float = 4.5


_CONTROLS = {"original": _Look(INK, "*", 8.0), "blackout": _Look(INK, "X", 6.0)}


def _looks(view: View) -> dict[str, _Look]:
    """Group -> colour and marker.  Controls are dark; the others take colours and markers in turn."""
    looks: dict[str, _Look] = {}
    n = controls = 0
    for m in view.methods:
        if m.group in looks:
            continue
        if m.control:
            name = str(m.info.get("name", m.label))
            looks[m.group] = _CONTROLS.get(name, _Look(GREY, "+*xX"[controls % 4], 6.0))
            controls += name not in _CONTROLS
        else:
            # The marker shifts by one with each round of colours: 7 x 8 looks before one repeats.
            looks[m.group] = _Look(COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)])
            n += 1
    return looks


def _spread(row: Row) -> tuple[float, float]:
    """Lengths of the interval's arms; 0 on a side without a bound."""
    v = row.value or 0.0
    return max(v - row.lo, 0.0) if row.lo is not None else 0.0, max(row.hi - v, 0.0) if row.hi is not None else 0.0


class _Placer:
    """Puts small labels beside points, where they cover the least.  Coordinates are pixels of the figure."""

    def __init__(self, box: tuple[float, float, float, float]) -> None:
        self.box = box
        self.taken: list[tuple[float, float, float, float, float]] = []
        self.dots: list[tuple[float, float]] = []

    def block(self, x0: float, y0: float, x1: float, y1: float, cost: float) -> None:
        self.taken.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1), cost))

    def line(self, a: tuple[float, float], b: tuple[float, float]) -> None:
        n = max(int(np.hypot(b[0] - a[0], b[1] - a[1]) / 2), 1)
        self.dots += [(a[0] + (b[0] - a[0]) * i / n, a[1] + (b[1] - a[1]) * i / n) for i in range(n + 1)]

    def place(self, x: float, y: float, w: float, h: float, gap: float) -> tuple[float, float]:
        """Lower left corner for a label of size w x h near (x, y); the place is taken afterwards."""
        best, found = np.inf, (x + gap, y + gap)
        dots = np.array(self.dots) if self.dots else np.zeros((0, 2))
        for reach in (1.0, 1.8, 2.8, 4.0):
            g = gap * reach
            for i, (cx, cy) in enumerate(
                (
                    (g, g * 0.6),
                    (-w - g, g * 0.6),
                    (g, -h - g * 0.6),
                    (-w - g, -h - g * 0.6),
                    (-w / 2, g),
                    (-w / 2, -h - g),
                    (g, -h / 2),
                    (-w - g, -h / 2),
                )
            ):
                x0, y0 = x + cx, y + cy
                cost = 0.15 * i + 2.0 * (reach - 1.0)
                for a0, b0, a1, b1, weight in self.taken:
                    dx, dy = min(x0 + w, a1) - max(x0, a0), min(y0 + h, b1) - max(y0, b0)
                    if dx > 0 and dy > 0:
                        cost += weight * (0.3 + dx * dy / (w * h))
                inside = (dots[:, 0] > x0 - 1) & (dots[:, 0] < x0 + w + 1) & (dots[:, 1] > y0 - 1) & (dots[:, 1] < y0 + h + 1)
                cost += 0.6 * int(inside.sum())
                out = (
                    max(self.box[0] - x0, 0)
                    + max(self.box[1] - y0, 0)
                    + max(x0 + w - self.box[2], 0)
                    + max(y0 + h - self.box[3], 0)
                )
                cost += 3.0 * out
                if cost < best:
                    best, found = cost, (x0, y0)
        self.block(found[0], found[1], found[0] + w, found[1] + h, 30.0)
        return found


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))


# ------------------------------------------------------------------------------------------------- privacy-utility plane
def privacy_utility(view: View, dataset: str, width: float = COLUMN, y: str = "", x: str = WORST) -> Drawing | str:
    """Worst-case re-identification (x, better left) against a utility (y, any quantity), one curve per sweep.

    y: "" for the one that stands for utility in this run.
    """
    from matplotlib.lines import Line2D

    y = y or view.utility(dataset)
    points: list[tuple[Method, Row, Row]] = []
    missing = []
    for m in view.methods:
        a, b = view.headline(dataset, m.label, x), view.headline(dataset, m.label, y)
        if a is None or b is None or a.value is None or b.value is None:
            missing.append(m.label)
        else:
            points.append((m, a, b))
    if not points:
        return f"no method has both {view.heading(x)} and {view.heading(y)}"
    looks = _looks(view)
    wide = width > 5
    groups = list(dict.fromkeys(m.group for m, _, _ in points))
    strengths = {m.label: m.setting for m, _, _ in points if not m.control}
    labels = [shorten(g, 26) for g in groups]
    left, right, top, bottom = 0.5, 0.12, 0.12, 0.42
    ncols = _columns(["Pareto front", *labels], width - 0.1)
    legend_rows = -(-(len(labels) + 1) // ncols)
    height = (3.7 if wide else 2.55) + bottom + top + 0.155 * legend_rows
    figure = _figure(width, height)
    ax = _axes(figure, left, bottom + 0.155 * legend_rows + 0.03, right, top)

    values = np.array([[float(a.value or 0), float(b.value or 0)] for _, a, b in points])
    rate_x, rate_y = points[0][1].unit == "rate", points[0][2].unit == "rate"
    unit_y = unit_sign(points[0][2].unit)
    higher = points[0][2].higher_is_better is not False
    lows = [b.lo if b.lo is not None else float(b.value or 0) for _, _, b in points]
    highs = [b.hi if b.hi is not None else float(b.value or 0) for _, _, b in points]
    if rate_x:
        ax.set_xlim(-0.035, 1.035)
        _percent_axis(ax.xaxis)
    if (unit_y == "" or rate_y) and min(lows) >= 0 and max(highs) <= 1:
        ax.set_ylim(-0.035, 1.06)
        ax.set_yticks(np.linspace(0, 1, 6))
    if rate_y:
        _percent_axis(ax.yaxis)
    sign = " [%]" if rate_x else ""
    ax.set_xlabel(f"{view.heading(x)}{sign}   (← more private)" if x == WORST else f"{view.heading(x)}{sign}")
    ax.set_ylabel(
        f"{view.heading(y)}{f' [{unit_y}]' if unit_y else ''}   ({'more' if higher else 'less'} →)".replace(
            "(more", "(more useful" if higher else "(more"
        )
    )

    chance = view.chance(dataset, x)
    if chance:
        level = (chance[0] + chance[1]) / 2
        ax.axvline(level, color=GREY, lw=0.8, ls=(0, (1, 1.5)), zorder=1)

    real = [i for i, (m, _, _) in enumerate(points) if not m.control]
    front = [real[i] for i in pareto([(values[j, 0], values[j, 1] if higher else -values[j, 1]) for j in real])]
    if len(front) > 1:
        ax.step(
            values[front, 0],
            values[front, 1],
            where="post",
            color="#b5b5b5",
            lw=3.2,
            alpha=0.55,
            zorder=1.5,
            solid_capstyle="round",
        )
    arms_x = np.array([_spread(a) for _, a, _ in points]).T
    arms_y = np.array([_spread(b) for _, _, b in points]).T
    for g in groups:
        look = looks[g]
        mine = [i for i, (m, _, _) in enumerate(points) if m.group == g]
        if g in view.sweeps:
            mine.sort(key=lambda i: points[i][0].strength or 0.0)
            ax.plot(values[mine, 0], values[mine, 1], color=look.colour, lw=1.1, zorder=2)
        at_x, at_y = values[mine, 0], values[mine, 1]
        bars: dict[str, Any] = {"colors": look.colour, "lw": 0.7, "alpha": 0.6, "zorder": 2.2}
        ax.hlines(at_y, at_x - arms_x[0, mine], at_x + arms_x[1, mine], **bars)
        ax.vlines(at_x, at_y - arms_y[0, mine], at_y + arms_y[1, mine], **bars)
        for trusted in (True, False):
            some = [i for i in mine if points[i][1].trusted is trusted]
            if some:
                edge = "white" if trusted and look.marker not in "+x" else look.colour
                ax.plot(
                    values[some, 0], values[some, 1], ls="", marker=look.marker, ms=look.size, zorder=3,
                    mew=0.8, mfc=look.colour if trusted else "white", mec=edge,
                )  # fmt: skip

    # Strengths at the points of a sweep, placed where they cover nothing.
    transform = ax.transData.transform

    def pixel(x: float, y: float) -> tuple[float, float]:
        px, py = transform((x, y))
        return float(px), float(py)

    size = 6.5 if wide else 6.0
    scale = figure.dpi / 72  # pixels per point; labels are anchored in points, so that they hold at any resolution
    box = ax.get_window_extent()
    placer = _Placer((box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1))
    for i, (m, _, _) in enumerate(points):
        (px, py), r = pixel(*values[i]), (looks[m.group].size / 2 + 0.8) * scale
        placer.block(px - r, py - r, px + r, py + r, 20.0)
        vx, vy = values[i]
        placer.line(pixel(vx - arms_x[0, i], vy), pixel(vx + arms_x[1, i], vy))
        placer.line(pixel(vx, vy - arms_y[0, i]), pixel(vx, vy + arms_y[1, i]))
    for g in view.sweeps:
        chain = [i for _, i in sorted((m.strength or 0.0, i) for i, (m, _, _) in enumerate(points) if m.group == g)]
        for i, j in pairwise(chain):
            placer.line(pixel(*values[i]), pixel(*values[j]))
    if chance:
        low = ax.get_ylim()[0]
        foot = pixel((chance[0] + chance[1]) / 2, low)
        w, h = 6 * 0.58 * size * scale, size * scale
        # Written along the line, to its right, where no point is near.
        spots = [box.y0 + (box.y1 - box.y0) * f for f in (0.8, 0.6, 0.4, 0.2, 0.9, 0.05)]
        at = min(
            spots,
            key=lambda y0: sum(foot[0] - 6 < p[0] < foot[0] + h + 12 and y0 - 9 < p[1] < y0 + w + 9 for p in transform(values)),
        )
        ax.annotate(
            "chance", ((chance[0] + chance[1]) / 2, low), xytext=(2, (at - foot[1]) / scale), textcoords="offset points",
            fontsize=size, color=GREY, rotation=90, va="bottom", ha="left",
        )  # fmt: skip
        placer.block(foot[0], at, foot[0] + h, at + w, 30.0)
        placer.line(foot, (foot[0], box.y1))
    for i, (m, _, _) in enumerate(points):
        text = strengths.get(m.label, "")
        if text:
            px, py = pixel(*values[i])
            w, h = len(text) * 0.6 * size * scale, 0.8 * size * scale
            at_x0, at_y0 = placer.place(px, py, w, h, (looks[m.group].size / 2 + 1.2) * scale)
            ax.annotate(
                text, (values[i, 0], values[i, 1]), xytext=((at_x0 - px) / scale, (at_y0 - py) / scale), textcoords="offset points",
                fontsize=size, color=looks[m.group].colour, va="baseline", annotation_clip=False,
            )  # fmt: skip

    handles: list[Any] = [
        Line2D(
            [], [], color=looks[g].colour, marker=looks[g].marker, ms=looks[g].size * 0.85, lw=1.1 if g in view.sweeps else 0
        )
        for g in groups
    ]
    names = list(labels)
    if len(front) > 1:
        handles.append(Line2D([], [], color="#b5b5b5", lw=3.2, alpha=0.55))
        names.append("Pareto front")
    _legend(figure, handles, names)
    swept = [f"{plain(g)} ({', '.join(m.setting for m in ms)})" for g, ms in view.sweeps.items() if g in groups]
    caption = (
        f"Privacy and utility on {plain(dataset)}: {view.heading(x)} against {view.heading(y)}. Bars are intervals"
        + (f", numbers along a curve its strength: {'; '.join(swept)}" if swept else "")
        + ". The grey band joins the methods that no other beats in both (controls aside)."
        + (" Hollow markers: the attacker failed its sanity check." if any(not a.trusted for _, a, _ in points) else "")
        + (f" Not shown, for want of a value: {listing([plain(m) for m in missing], 8)}." if missing else "")
    )
    alt = "Scatter plot. " + " ".join(
        f"{plain(m.label)}: {number(float(a.value or 0), a.unit)}{' %' if rate_x else ''}, "
        f"{view.heading(y)} {number(float(b.value or 0), b.unit)}{(' ' + unit_y) if unit_y else ''};"
        for m, a, b in points
    )
    return Drawing(figure, caption, alt.rstrip(";") + ".")


# ---------------------------------------------------------------------------------------------------------- CMC and DET
_PROBIT = NormalDist()
_DET_TICKS = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)


def _probit(p: Array, low: float) -> Array:
    """Normal deviates of probabilities, kept within [low, 1 - low] (0 and 1 have none)."""
    return np.array([_PROBIT.inv_cdf(v) for v in np.clip(p, low, 1 - low)])


def _lines(view: View, dataset: str, curve: str, attacker: str, recognizer: str) -> dict[str, Array]:
    """Method -> points (x, y, lo, hi) sorted by x, of the headline convention and one attack."""
    c = view.run.curves
    if not len(c) or "curve" not in c.columns:
        return {}

    def text(name: str) -> Any:
        return c[name].fillna("").astype(str) if name in c.columns else None

    keep = (text("curve") == curve) & (text("dataset") == dataset)
    if "recognizer" in c.columns:
        keep &= text("recognizer") == recognizer
    if "attacker" in c.columns:
        keep &= text("attacker") == attacker
    if "convention" in c.columns:
        keep &= text("convention").isin(["", "headline"])
    chosen = c[keep]
    out = {}
    for method, part in chosen.groupby("method", sort=False):
        columns = [
            part[n].to_numpy(float, na_value=np.nan) if n in part.columns else np.full(len(part), np.nan)
            for n in ("x", "y", "lo", "hi")
        ]
        points = np.stack(columns, axis=1)
        points = points[np.isfinite(points[:, 0]) & np.isfinite(points[:, 1])]
        if len(points):
            out[str(method)] = (
                points[np.lexsort((points[:, 1], points[:, 0]))]
                if curve == "cmc"
                else points[np.lexsort((-points[:, 1], points[:, 0]))]
            )
    return out


def worst_attack(view: View, dataset: str, curve: str) -> tuple[str, str]:
    """(attacker, recogniser) that is the worst case of most methods, among those that have this curve ("" where none has).

    Where several tie for a method, each has a share of its vote; equal votes go to the first in the order of the tables.
    """
    c = view.run.curves
    if not len(c) or not {"curve", "dataset"} <= set(c.columns):
        return "", ""
    mine = c[(c["curve"] == curve) & (c["dataset"] == dataset)]
    named = [mine[n].fillna("").astype(str) if n in mine.columns else [""] * len(mine) for n in ("attacker", "recognizer")]
    have = list(dict.fromkeys(zip(*named, strict=True)))
    votes = dict.fromkeys(have, 0.0)
    for m in view.methods:
        row = view.headline(dataset, m.label, WORST)
        pairs = [p for p in attained(row) if p in votes] if row is not None and not m.control else []
        for pair in pairs:
            votes[pair] += 1 / len(pairs)

    def place(names: Sequence[str], name: str) -> int:
        return names.index(name) if name in names else len(names)

    have.sort(key=lambda p: (place(view.attackers, p[0]), place(view.recognizers, p[1])))
    return max(have, key=lambda p: round(votes[p], 9)) if have else ("", "")


def _panels(view: View, lines: Mapping[str, Array]) -> list[tuple[str, list[Method]]]:
    """Sweeps have a panel each; the methods without one share panels of at most five."""
    out = [(g, [m for m in ms if m.label in lines]) for g, ms in view.sweeps.items()]
    swept = {m.label for ms in view.sweeps.values() for m in ms}
    single = [m for m in view.methods if not m.control and m.label not in swept and m.label in lines]
    for i in range(0, len(single), 5):
        out.append(("single settings" if len(single) <= 5 else f"single settings {i // 5 + 1}", single[i : i + 5]))
    return [(g, ms) for g, ms in out if ms] or [("controls", [])]


def _shades(colour: str, n: int) -> list[Any]:
    """n shades of a colour from light to dark: the order of the strengths shows without colour, too."""
    from matplotlib.colors import to_rgb

    base = np.array(to_rgb(colour))
    mixes = np.linspace(-0.42, 0.45, n) if n > 1 else np.zeros(1)
    out = []
    for t in mixes:
        c = base + (1 - base) * -t if t < 0 else base * (1 - t)
        out.append((float(c[0]), float(c[1]), float(c[2])))
    return out


def _multiples(
    view: View,
    lines: Mapping[str, Array],
    width: float,
    xlabel: str,
    ylabel: str,
    prepare: Callable[[Array], Array],
    dress: Callable[[Axes], None],
    square: bool,
) -> Figure:
    """Small multiples: a panel per sweep, the controls repeated in each for reference."""
    from matplotlib.lines import Line2D

    looks = _looks(view)
    panels = _panels(view, lines)
    wide = width > 5
    most = 4 if wide else 2
    ncols = min(most, len(panels))
    nrows = -(-len(panels) // ncols)
    left, right, gap = 0.48, 0.1, 0.16
    pw = min((width - left - right - gap * (ncols - 1)) / ncols, 3.2)
    ph = pw if square else pw * 0.85
    size = 6.0

    def key_columns(ms: Sequence[Method], names: Sequence[str]) -> int:
        return max(1, min(len(ms), int(pw / (max(map(len, names), default=1) * 0.6 * size / 72 + 0.24))))

    keys = []
    for g, ms in panels:
        names = [m.setting if g in view.sweeps else shorten(m.label, 18 if pw > 1.4 else 14) for m in ms]
        keys.append((names, key_columns(ms, names)))
    # Each line of panels is as high as its own keys need.
    heads = [0.18 + 0.115 * max(-(-len(names) // n) for names, n in keys[i * ncols : (i + 1) * ncols]) for i in range(nrows)]
    controls = [m for m in view.methods if m.control and m.label in lines]
    below = 0.34 + (0.19 if controls else 0.0)
    height = sum(heads) + nrows * ph + (nrows - 1) * 0.14 + below + 0.04
    figure = _figure(width if len(panels) > 1 else left + pw + right, height)
    w = float(figure.get_size_inches()[0])
    control_styles = {m.label: (INK if i == 0 else GREY, DASHES[1 + i % 5]) for i, m in enumerate(controls)}

    def draw(ax: Axes, points: Array, colour: Any, dash: Any, lw: float, z: float, band: bool) -> None:
        p = prepare(points)
        ax.plot(p[:, 0], p[:, 1], color=colour, ls=dash, lw=lw, zorder=z)
        if band and np.isfinite(p[:, 2:]).any():
            low, high = np.where(np.isfinite(p[:, 2]), p[:, 2], p[:, 1]), np.where(np.isfinite(p[:, 3]), p[:, 3], p[:, 1])
            ax.fill_between(p[:, 0], low, high, color=colour, alpha=0.16, lw=0, zorder=z - 1)

    for i, (g, ms) in enumerate(panels):
        row, col = divmod(i, ncols)
        x0 = left + col * (pw + gap)
        y0 = height - sum(heads[: row + 1]) - (row + 1) * ph - row * 0.14
        ax = figure.add_axes((x0 / w, y0 / height, pw / w, ph / height))
        dress(ax)
        # Two collections instead of a line object per tick: small multiples spend most of their time on ticks.
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.vlines(ax.get_xticks(), 0, 1, transform=ax.get_xaxis_transform(), colors="#e8e8e8", lw=0.5, zorder=0.5)
        ax.hlines(ax.get_yticks(), 0, 1, transform=ax.get_yaxis_transform(), colors="#e8e8e8", lw=0.5, zorder=0.5)
        for m in controls:
            colour, dash = control_styles[m.label]
            draw(ax, lines[m.label], colour, dash, 0.9, 2.0, False)
        shades = _shades(looks[g].colour, len(ms)) if g in view.sweeps else [looks[m.group].colour for m in ms]
        handles = []
        for j, (m, colour) in enumerate(zip(ms, shades, strict=True)):
            dash = DASHES[j % len(DASHES)] if g not in view.sweeps else "-"
            draw(ax, lines[m.label], colour, dash, 1.2, 3.0, True)
            handles.append(Line2D([], [], color=colour, ls=dash, lw=1.4))
        names, n = keys[i]
        rows = -(-len(names) // n) if names else 0
        if handles:
            ax.legend(
                _rowwise(handles, n), _rowwise(names, n), loc="lower left", bbox_to_anchor=(0, 1.0), ncols=n, fontsize=size, handlelength=1.1, handletextpad=0.3,
                columnspacing=0.7, labelspacing=0.2, borderaxespad=0.15, borderpad=0,
            )  # fmt: skip
        ax.annotate(
            shorten(g, 24), (0, ph * 72 + 1.5 + 8.1 * rows), xycoords="axes points", fontsize=7.5, va="bottom",
            annotation_clip=False,
        )  # fmt: skip
        if col:
            ax.tick_params(labelleft=False)
        if i + ncols < len(panels):
            ax.tick_params(labelbottom=False)
    centre = (left + (ncols * pw + (ncols - 1) * gap) / 2) / w
    figure.text(centre, (below - 0.27) / height, xlabel, ha="center", va="center", fontsize=7.5)
    figure.text(
        0.04 / w,
        (height - (height - below) / 2 - heads[0] / 2) / height,
        ylabel,
        rotation=90,
        va="center",
        ha="left",
        fontsize=7.5,
    )
    if controls:
        lines_ = [Line2D([], [], color=control_styles[m.label][0], ls=control_styles[m.label][1], lw=1.0) for m in controls]
        _legend(figure, lines_, [shorten(m.label, 22) for m in controls], centre)
    return figure


def _curve_caption(
    view: View, dataset: str, what: str, attack: tuple[str, str], lines: Mapping[str, Array], bands: bool
) -> str:
    lost = [plain(m.label) for m in view.methods if m.label not in lines]
    attacker, recognizer = attack
    many = len(view.attackers) > 1
    others = [r for r in view.recognizers if r != recognizer] + [a for a in view.attackers if a != attacker]
    return (
        f"{what} on {plain(dataset)}, "
        + (f"attacker {plain(attacker)}, " if many else "")
        + f"recogniser {plain(recognizer) or 'not named'}"
        + (" (the worst case of most methods)" if others else "")
        + f", a panel per sweep, controls repeated for reference.{' Bands are intervals.' if bands else ''}"
        + (f" No curve for {listing(lost, 8)}." if lost else "")
        + (
            (" Curves of the other attacks are in curves.parquet." if many
             else f" Curves of {listing([plain(o) for o in others])} are in curves.parquet.") if others else ""
        )
    )  # fmt: skip


def cmc(view: View, dataset: str, width: float = COLUMN, attack: tuple[str, str] | None = None) -> Drawing | str:
    """Cumulative match characteristics: the share of probes whose person is among the best k matches.

    attack: (attacker, recogniser), that of :func:`worst_attack` where it is not given.
    """
    attack = worst_attack(view, dataset, "cmc") if attack is None else attack
    lines = _lines(view, dataset, "cmc", *attack)
    if not lines:
        return "this run has no CMC curves"
    last = max(float(p[-1, 0]) for p in lines.values())

    def dress(ax: Axes) -> None:
        from matplotlib.ticker import FixedLocator, NullLocator

        ax.set_xscale("log")
        ax.set_xlim(0.93, max(last, 2) * 1.08)
        ax.set_ylim(-0.03, 1.04)
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if t <= last]
        ax.xaxis.set_major_locator(FixedLocator(ticks[:: 1 if len(ticks) < 7 else 2]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.set_yticks(np.linspace(0, 1, 5))
        _percent_axis(ax.yaxis)

    figure = _multiples(
        view, lines, width, "Rank k", "Identified at rank k or better [%]", lambda p: p, dress, square=False
    )  # fmt: skip
    bands = any(np.isfinite(p[:, 2:]).any() for p in lines.values())
    caption = _curve_caption(view, dataset, "Cumulative match characteristics (lower is more private)", attack, lines, bands)
    ends = [f"{plain(m.label)} {percent(float(lines[m.label][0, 1]))}" for m in view.methods if m.label in lines]
    return Drawing(
        figure, caption, f"Line plots of the identification rate over rank 1 to {last:g}. At the first rank: {', '.join(ends)}."
    )


def det(view: View, dataset: str, width: float = COLUMN, attack: tuple[str, str] | None = None) -> Drawing | str:
    """Detection error trade-off on normal-deviate axes (Martin et al. 1997): the further from the origin, the more private."""
    attack = worst_attack(view, dataset, "det") if attack is None else attack
    lines = _lines(view, dataset, "det", *attack)
    if not lines:
        return "this run has no DET curves"
    low = 0.001
    edge = _PROBIT.inv_cdf(low)

    def prepare(p: Array) -> Array:
        # Beyond the panel on purpose: a curve with no errors left runs out of it instead of along its frame.
        out = [_probit(p[:, k], low / 20) for k in (0, 1)]
        out += [np.where(np.isfinite(p[:, k]), _probit(np.nan_to_num(p[:, k], nan=0.5), low / 20), np.nan) for k in (2, 3)]
        return np.stack(out, axis=1)

    def dress(ax: Axes) -> None:
        ax.set_xlim(edge, -edge)
        ax.set_ylim(edge, -edge)
        at = [_PROBIT.inv_cdf(t) for t in _DET_TICKS]
        words = [f"{100 * t:g}" for t in _DET_TICKS]
        ax.set_xticks(at, words)
        ax.set_yticks(at, words)
        for label in ax.get_xticklabels():
            label.set_fontsize(5.8)
        ax.plot([edge, -edge], [edge, -edge], color=PALE, lw=0.7, zorder=1)
        # A scorer that cannot tell persons apart lies on FNMR = 1 - FMR.
        ax.plot([edge, -edge], [-edge, edge], color=GREY, lw=0.7, ls=(0, (1, 1.5)), zorder=1)

    figure = _multiples(view, lines, width, "False match rate [%]", "False non-match rate [%]", prepare, dress, square=True)
    bands = any(np.isfinite(p[:, 2:]).any() for p in lines.values())
    caption = _curve_caption(
        view,
        dataset,
        f"Detection error trade-off (further out is more private; dotted: chance; rates below {percent(low)} lie outside)",
        attack,
        lines,
        bands,
    )
    crossing = []
    for m in view.methods:
        if m.label in lines:
            p = lines[m.label]
            i = int(np.argmin(np.abs(p[:, 0] - p[:, 1])))
            crossing.append(f"{plain(m.label)} {percent(float(p[i, 0] + p[i, 1]) / 2)}")
    return Drawing(figure, caption, f"Line plots of FNMR over FMR. Error where both are about equal: {', '.join(crossing)}.")


# ------------------------------------------------------------------------------------------------------------- forest
#: Colours of the forest's tracks: one more, so that eight attackers are told apart.
_TRACKS = (*COLOURS, "#8a8a8a")
_TRACK_MARKERS = ("o", "s", "^", "D", "v", "p", "<", "h")  # a hollow plus would look like a full one


def _readable(view: View, dataset: str) -> list[str]:
    """The attackers that a forest can show: at most eight of those with figures, by how often they are the worst case."""
    wins = dict.fromkeys(view.attackers, 0)
    shown = set()
    for m in view.methods:
        row = view.headline(dataset, m.label, WORST)
        for attacker in {a for a, _ in attained(row)} if row is not None and row.value is not None else ():
            wins[attacker] = wins.get(attacker, 0) + 1
        for a in view.attackers:
            r = view.strongest(dataset, m.label, a)
            if r is not None and r.value is not None:
                shown.add(a)
    best = sorted((a for a in view.attackers if a in shown), key=lambda a: -wins[a])[: len(_TRACKS)]
    return [a for a in view.attackers if a in best]


def forest(view: View, dataset: str, width: float = COLUMN) -> Drawing | str:
    """Rank-1 of every attacker (of every recogniser, where there is one attacker) and the worst case, with intervals and chance."""
    from matplotlib.lines import Line2D

    several = len(view.attackers) > 1
    tracks_: list[tuple[str, Callable[[str], Row | None]]] = []
    left_out: list[str] = []
    if several:
        for a in _readable(view, dataset):
            tracks_.append((a, lambda label, a=a: view.strongest(dataset, label, a)))  # type: ignore[misc]
        left_out = [plain(a) for a in view.attackers if a not in {name for name, _ in tracks_}]
    else:
        keys = [k for k in view.keys(dataset) if k.metric == RANK1 and k.convention in ("", "headline")]
        tracks_ = [(k.recognizer or "rank-1", lambda label, k=k: view.of(dataset, label).get(k)) for k in keys]  # type: ignore[misc]
    names = [name for name, _ in tracks_]
    has_worst = any(view.headline(dataset, m.label, WORST) for m in view.methods)
    if not tracks_ and not has_worst:
        return "this run has no rank-1 figures"
    wide = width > 5
    methods = view.methods
    labels = [shorten(m.label, 30 if wide else 20) for m in methods]
    tracks = len(tracks_) + has_worst
    pitch = max(0.19, 0.055 * tracks + 0.075)
    left = 0.16 + max(map(len, labels)) * 0.56 * 6.8 / 72
    right = 1.25 if wide and has_worst else 0.12
    legend_names = [shorten(n, 24) for n in names] + (["worst case"] if has_worst else [])
    ncols = _columns(legend_names, width - 0.1)
    legend_rows = -(-len(legend_names) // ncols)
    bottom = 0.42 + 0.155 * legend_rows
    height = bottom + 0.2 + pitch * len(methods)
    figure = _figure(width, height)
    ax = _axes(figure, left, bottom, right, 0.2)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    _percent_axis(ax.xaxis)
    ax.set_xlabel("Rank-1 re-identification [%]  (← more private)")
    ax.set_yticks(range(len(methods)), labels)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    for tick, m in zip(ax.get_yticklabels(), methods, strict=True):
        tick.set_fontsize(6.8)
        if m.control:
            tick.set_color(GREY)  # not italic: each face of a font costs a PDF 0.3 s
    shaded, seen = False, None
    for i, m in enumerate(methods):  # one band per sweep, so that its members read as one
        if m.group != seen:
            shaded, seen = not shaded, m.group
        if shaded:
            ax.axhspan(i - 0.5, i + 0.5, color="#f5f5f5", lw=0, zorder=0)
    chance = view.chance(dataset, RANK1) or view.chance(dataset, WORST)
    if chance:
        at = (chance[0] + chance[1]) / 2
        ax.axvline(at, color=GREY, lw=0.8, ls=(0, (1, 1.5)), zorder=1)
        ax.annotate("chance", (at, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points", fontsize=6, color=GREY, ha="left" if at < 0.2 else "center", va="bottom", annotation_clip=False)  # fmt: skip
    offsets = (np.arange(tracks) - (tracks - 1) / 2) * 0.74 / max(tracks, 1)
    hollow = gone = False
    for t in range(tracks):
        is_worst = t == len(tracks_)
        colour = INK if is_worst else _TRACKS[t % len(_TRACKS)]
        marker = "D" if is_worst else _TRACK_MARKERS[t % len(_TRACK_MARKERS)]
        shown: list[tuple[float, float, Row]] = []
        for i, m in enumerate(methods):
            row = view.headline(dataset, m.label, WORST) if is_worst else tracks_[t][1](m.label)
            if row is None or row.value is None:
                gone = True
                if is_worst or not has_worst:
                    ax.annotate(
                        "no value", (0.0, i + offsets[t]), xytext=(3, 0), textcoords="offset points", fontsize=5.5, color=GREY,
                        va="center", bbox={"fc": "#ffffff", "ec": "none", "pad": 0.6}, zorder=4,
                    )  # fmt: skip
                continue
            shown.append((row.value, i + offsets[t], row))
            if is_worst and wide:
                ax.annotate(
                    f"{number(row.value, row.unit)} {interval(row)}", (1.0, i), xycoords=("axes fraction", "data"), xytext=(6, 0),
                    textcoords="offset points", fontsize=6.3, va="center", annotation_clip=False,
                )  # fmt: skip
        if shown:
            arms = np.array([_spread(row) for *_, row in shown])
            at_x, at_y = np.array([v for v, *_ in shown]), np.array([y for _, y, _ in shown])
            ax.hlines(at_y, at_x - arms[:, 0], at_x + arms[:, 1], colors=colour, lw=0.9, zorder=2)
        for trusted in (True, False):
            some = [(v, y) for v, y, row in shown if row.trusted is trusted]
            if some:
                hollow |= not trusted
                ax.plot(
                    [v for v, _ in some], [y for _, y in some], ls="", marker=marker, ms=3.6 if is_worst else 3.2,
                    mfc=colour if trusted else "white", mec=colour, mew=0.7, zorder=3,
                )  # fmt: skip
    if has_worst and wide:
        ax.annotate("worst case", (1.0, 1.0), xycoords="axes fraction", xytext=(6, 2), textcoords="offset points", fontsize=6, color=GREY, va="bottom", annotation_clip=False)  # fmt: skip
    handles = [
        Line2D([], [], color=_TRACKS[t % len(_TRACKS)], marker=_TRACK_MARKERS[t % len(_TRACK_MARKERS)], ms=3.2, lw=0.8)
        for t in range(len(tracks_))
    ]
    if has_worst:
        handles.append(Line2D([], [], color=INK, marker="D", ms=3.6, lw=0.8))
    _legend(figure, handles, legend_names)
    caption = (
        f"Rank-1 re-identification on {plain(dataset)} per method and {'attacker (its strongest recogniser)' if several else 'recogniser'}. Bars are intervals; the dotted line is chance."
        + (f" Hollow markers: the attacker failed its sanity check{' or is mis-trained' if several else ''}." if hollow else "")
        + (f" Not shown: {listing(left_out, 9)}; the ladder and the tables have all attackers." if left_out else "")
        + (" Methods without a value have no marker; the table says why." if gone else "")
    )
    words = []
    for m in methods:
        row = view.headline(dataset, m.label, WORST) or view.headline(dataset, m.label, RANK1)
        if row is not None:
            words.append(f"{plain(m.label)} {number(row.value, row.unit) + ' %' if row.value is not None else 'no value'}")
    return Drawing(figure, caption, f"Dot plot with intervals. Worst case: {', '.join(words)}.")


# ------------------------------------------------------------------------------------------------------------- ladder
def ladder(view: View, dataset: str, width: float = COLUMN) -> Drawing | str:
    """Heat map of methods by attackers: rank-1 of each attacker's strongest recogniser, written into the cells."""
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    from deidbench.report.details import best_attacks

    attackers = view.attackers
    found = {(m.label, a): view.strongest(dataset, m.label, a) for m in view.methods for a in attackers}
    if len(attackers) < 2:
        return "this run has one attacker only"
    shown = [a for a in attackers if any((r := found[m.label, a]) is not None and r.value is not None for m in view.methods)]
    if not shown:
        return "no attacker has a rank-1 figure"
    # Who could not attack anything (nobody to learn from) is named below and takes no room.
    idle = [a for a in attackers if a not in shown] if len(shown) > 1 else []
    attackers = [a for a in attackers if a not in idle]
    wide = width > 5
    methods = view.methods
    labels = [shorten(m.label, 30 if wide else 18) for m in methods]
    heads = [shorten(a, 24 if wide else 16) for a in attackers]
    size = 6.8 if wide else 6.2
    left = 0.12 + max(map(len, labels)) * 0.58 * size / 72
    gap = 0.08  # between attackers that learn nothing and those that do
    learns = {k.label: bool(k.trained) for k in view.knowledge}
    split = next((i for i, a in enumerate(attackers) if learns.get(a)), 0)
    cw = min((width - left - 0.1 - (gap if split else 0)) / len(attackers), 0.75 if wide else 0.62)
    ch = 0.235 if wide else 0.2
    # Headings lie flat where they fit, else they lean.
    flat = max(map(len, heads)) * 0.58 * size / 72 < cw
    top = (0.2 if flat else 0.1 + max(map(len, heads)) * 0.58 * size / 72 * 0.71 + 0.1) + (0.17 if split else 0.0)
    right = 0.1 if flat else max(0.1, max(map(len, heads)) * 0.58 * size / 72 * 0.71 - cw / 2)
    cw = min(cw, (width - left - right - (gap if split else 0)) / len(attackers))
    below = 0.52
    height = top + ch * len(methods) + below
    figure = _figure(width, height)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    colours = mpl.colormaps["YlGnBu"]

    def across(j: int) -> float:
        return left + j * cw + (gap if split and j >= split else 0.0)

    for j, head in enumerate(heads):
        x = across(j) + cw / 2
        if flat:
            ax.text(x, top - 0.05, head, fontsize=size, ha="center", va="bottom")
        else:
            ax.text(x - 0.04, top - 0.04, head, fontsize=size, ha="left", va="bottom", rotation=45, rotation_mode="anchor")
    if split:
        for start, stop, text in ((0, split, "learn nothing"), (split, len(attackers), "learn from other persons")):
            x0, x1 = across(start), across(stop - 1) + cw
            room = int((x1 - x0) / (0.56 * (size - 0.6) / 72))
            text = text if len(text) <= room else {"learn nothing": "untrained"}.get(text, "trained")
            ax.plot([x0 + 0.01, x1 - 0.01], [0.16, 0.16], color=GREY, lw=0.6)
            ax.text((x0 + x1) / 2, 0.13, text, fontsize=size - 0.6, color=GREY, ha="center", va="bottom")
    doubted = absent = False
    words = []
    digits = 1 if cw > 5.4 * 0.6 * size / 72 else 0
    for i, m in enumerate(methods):
        y = top + i * ch
        ax.text(left - 0.06, y + ch / 2, labels[i], fontsize=size, ha="right", va="center", color=GREY if m.control else INK)
        best = best_attacks(view, dataset, m.label)
        said = []
        for j, a in enumerate(attackers):
            row, x = found[m.label, a], across(j)
            if row is None or row.value is None:
                absent = True
                ax.add_patch(Rectangle((x, y), cw, ch, fc="#ececec", ec="#b0b0b0", hatch="//////", lw=0))
                ax.add_patch(Rectangle((x, y), cw, ch, fc="none", ec="white", lw=0.9))
                continue
            colour = colours(0.04 + 0.92 * row.value)
            red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour[:3])
            light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
            ax.add_patch(Rectangle((x, y), cw, ch, fc=colour, ec="white", lw=0.9))
            text = f"{100 * row.value:.{digits}f}"
            doubted |= not row.trusted
            ax.text(
                x + cw / 2, y + ch / 2, text if row.trusted else f"({text})", fontsize=size, ha="center", va="center_baseline",
                color="white" if light < 0.3 else INK, fontweight="normal",
            )  # fmt: skip
            if a in best and len(best) < len(attackers):
                inset = 0.014
                ax.add_patch(
                    Rectangle(
                        (x + inset, y + inset), cw - 2 * inset, ch - 2 * inset, fc="none", ec=INK if light >= 0.3 else "white",
                        lw=0.9, zorder=3,
                    )
                )  # fmt: skip
            said.append(f"{plain(a)} {percent(row.value)}{'' if row.trusted else ' (not trusted)'}")
        if said:
            words.append(f"{plain(m.label)}: {', '.join(said)}")
    chance = view.chance(dataset, RANK1)
    # The scale, with chance on it.
    x0, x1 = across(0), across(len(attackers) - 1) + cw
    y = top + ch * len(methods) + 0.13
    ramp = np.linspace(0, 1, 256)[None]
    ax.imshow(
        ramp,
        extent=(x0, x1, y + 0.08, y),
        aspect="auto",
        cmap=mpl.colors.ListedColormap(colours(0.04 + 0.92 * ramp[0])),
        zorder=1,
    )
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    for v in (0, 0.25, 0.5, 0.75, 1):
        ax.text(x0 + (x1 - x0) * v, y + 0.1, f"{100 * v:g}", fontsize=size - 0.7, color=INK, ha="center", va="top")
    if chance:
        at = x0 + (x1 - x0) * (chance[0] + chance[1]) / 2
        ax.plot([at, at], [y - 0.025, y + 0.105], color=COLOURS[1], lw=1.1, zorder=3)
        ax.text(
            at, y - 0.03, "chance", fontsize=size - 0.9, color=COLOURS[1], ha="left" if at < x0 + 0.2 else "center", va="bottom"
        )
    ax.text(
        (x0 + x1) / 2, y + 0.23, "Rank-1 re-identification [%]  (lower is more private)", fontsize=size, ha="center", va="top"
    )
    guess = ""
    if chance:
        low, high = percent(chance[0]), percent(chance[1])
        guess = f" Chance is {low if low == high else f'{low} to {high}'}."
    caption = (
        f"What each attacker reaches on {plain(dataset)}: rank-1 re-identification in % with its strongest recogniser. "
        f"Framed: the strongest attack on a method.{guess}"
        + (" In brackets: the attacker is mis-trained or failed its sanity check." if doubted else "")
        + (" Hatched: not carried out, or no figure; the table of attackers says why." if absent else "")
        + (f" Not carried out at all: {listing([plain(a) for a in idle], 9)}." if idle else "")
    )
    return Drawing(
        figure, caption, f"Heat map of {len(methods)} methods by {len(attackers)} attackers. {'; '.join(words)}.{guess}"
    )


# ----------------------------------------------------------------------------------------------------------------- all
def draw_all(view: View, folder: Path, y: str = "", say: Callable[[str], None] | None = None, hidden: str = "") -> list[Saved]:
    """Every figure in both widths and three formats into ``folder``.  What cannot be drawn is listed with its reason.

    hidden: why figures that show faces are left out, "" where they are not.
    """
    from deidbench.report import samples
    from deidbench.report.heatmaps import attributes_map, confusions, has
    from deidbench.report.jobs import further
    from deidbench.report.view import slug

    out: list[Saved] = []
    jobs: list[tuple[str, str, Callable[[float], Drawing | str]]] = []
    for dataset in view.datasets:
        suffix = f"-{slug(dataset)}" if len(view.datasets) > 1 else ""
        where = f" on {plain(dataset)}" if suffix else ""
        jobs += [
            (f"plane{suffix}", f"Privacy and utility{where}", lambda w, d=dataset: privacy_utility(view, d, w, y)),  # type: ignore[misc]
            (f"forest{suffix}", f"Re-identification per method{where}", lambda w, d=dataset: forest(view, d, w)),  # type: ignore[misc]
            *(
                [(f"ladder{suffix}", f"Attackers of rising knowledge{where}", lambda w, d=dataset: ladder(view, d, w))]
                if len(view.attackers) > 1
                else []
            ),
            (f"cmc{suffix}", f"Identification (CMC){where}", lambda w, d=dataset: cmc(view, d, w)),  # type: ignore[misc]
            (f"det{suffix}", f"Verification (DET){where}", lambda w, d=dataset: det(view, d, w)),  # type: ignore[misc]
            *(
                [(f"attributes{suffix}", f"Attributes that stay{where}", lambda w, d=dataset: attributes_map(view, d, w))]
                if has(view, dataset, "attributes.retention")
                else []
            ),
            *(
                [(f"emotions{suffix}", f"Expressions, true and read{where}", lambda w, d=dataset: confusions(view, d, w))]
                if has(view, dataset, "emotion.confusion")
                else []
            ),
            *further(view, dataset, suffix, where),
        ]
    for name, draw_faces in (("samples", samples.sample_grid), ("cases", samples.cases)):
        jobs.append((name, samples.FIGURES[name], lambda w, f=draw_faces: hidden or f(view, w)))  # type: ignore[misc]
    with style():
        for name, title, draw in jobs:
            if say is not None:
                say(f"figure {name}")
            first = draw(COLUMN)
            if isinstance(first, str):
                out.append(Saved(name, title, why=first))
                continue
            narrow = save(first, folder, name)
            second = draw(PAGE)
            assert not isinstance(second, str)
            out.append(Saved(name, title, second.caption, second.alt, narrow, save(second, folder, f"{name}-wide")))
    return out
