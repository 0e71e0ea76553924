"""Figures of distributions, removal, |Δp|, speed and comparisons: what is drawn is what the rows say, and nothing breaks them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deidbench.metrics.models.labels import ATTRIBUTES
from deidbench.records import SCHEMA_VERSION, Curve, Row, Run, frame
from deidbench.report import bars, distributions, dots, figures, jobs, many
from deidbench.report.figures import COLUMN, PAGE, Drawing, save, style
from deidbench.report.history import history
from deidbench.report.view import Key, View, number, percent
from deidbench.stats.many import Ranking, friedman

EMOTIONS = ("anger", "fear", "happiness", "neutral")
HOSTILE = ("<b>&amp;</b>", "$\\frac{1}{", "100 % of #1_{a}^~", "Ünïcode 脸", "x" * 120, "\x1b[31mred\u202e", "-")
Draw = Callable[[View, str, float], Drawing | str]
PER_RUN: tuple[Draw, ...] = (distributions.scores, bars.removal, dots.delta_p, dots.throughput)
BINS = np.linspace(-0.2, 1.0, 25)


@pytest.fixture(autouse=True)
def house() -> Iterator[None]:
    with style():
        yield


def entry(label: str, **fields: Any) -> dict[str, Any]:
    return {"label": label, "name": label, "family": label, "strength": None, "control": False, "counts": {"ok": 20}, **fields}


def _bounded(value: float | None, arm: float, **fields: Any) -> dict[str, Any]:
    return {
        "value": value,
        "lo": None if value is None else value - arm,
        "hi": None if value is None else value + arm,
        **fields,
    }


def rows_of(label: str, at: float, attributes: Sequence[str] = ATTRIBUTES) -> list[Row]:
    """at: 0..1, from which all values of the method come."""
    attack = {"attacker": "lazy", "recognizer": "alpha", "convention": "headline"}
    rows = [
        Row("faces", label, "reid.worst_rank1", "rate", False, **_bounded(at, 0.05), convention="headline", recognizer="max(alpha, beta)",
            attacker="lazy", note="attained by lazy with alpha"),
        Row("faces", label, "reid.eer", "rate", True, **_bounded(0.5 * (1 - at), 0.02), **attack),
        Row("faces", label, "reid.tmr@fmr=0.01", "rate", False, 0.3, threshold=0.5 + 0.1 * at, realised_fmr=0.02, **attack),
        Row("faces", label, "reid.tmr@fmr=0.001", "rate", False, None, reason="too few", **attack),
    ]  # fmt: skip
    reader = {"recognizer": "reader", "convention": "headline"}
    for i, a in enumerate(attributes):
        value = None if a in ("Bald", "Wearing_Necktie") else (at + i / 40) % 1
        rows.append(Row("faces", label, bars.REMOVAL, "rate", None, **_bounded(value, 0.03), **reader, label=a))
        rows.append(replace(rows[-1], convention="without_fta", value=0.123))
        rows.append(Row("faces", label, bars.MISSED, "rate", None, 0.01 * i, 0.0, 0.5, **reader, label=a))
    for i, e in enumerate(EMOTIONS):
        rows.append(
            Row("faces", label, dots.DELTA_P, "probability", False, **_bounded(0.1 * at + 0.02 * i, 0.01), **reader, label=e)
        )
    timed = {"timing": True, "note": "method alone, faces given; cpu, 2 threads"}
    rows.append(Row("faces", label, dots.SPEED, "faces/s", True, **_bounded(10 ** (1 + 3 * at), 2.0), **timed))
    for name, ms in zip(dots.LATENCIES, (1.0, 2.0, 5.0), strict=True):
        rows.append(Row("faces", label, name, "ms", False, ms * (2 - at), **timed))
    return rows


def curves_of(label: str, at: float, attack: tuple[str, str] = ("lazy", "alpha")) -> list[Curve]:
    out = []
    middle = (BINS[:-1] + BINS[1:]) / 2
    for kind, centre in (("scores_genuine", 0.1 + 0.6 * at), ("scores_impostor", 0.1)):
        share = np.exp(-(((middle - centre) / 0.1) ** 2))
        share /= share.sum()
        out += [
            Curve("faces", label, kind, attack[1], attack[0], "headline", float(x), float(y))
            for x, y in zip(BINS, share, strict=False)
        ]
    for x in np.linspace(0.01, 0.99, 30):
        y = (1 - x) * (1 - at)
        out.append(
            Curve("faces", label, "det", attack[1], attack[0], "headline", float(x), y, max(y - 0.05, 0), min(y + 0.05, 1))
        )
    return out


def run_of(methods: Sequence[dict[str, Any]], rows: Sequence[Row], curves: Sequence[Curve], **record: Any) -> Run:
    base = {
        "schema": SCHEMA_VERSION, "methods": list(methods), "protocol": {"name": "deidbench-v3"}, "dataset": {"name": "faces"},
        "environment": {"cpu": "a <fast> CPU", "cores": 2, "git": {"commit": "c" * 40, "dirty": False}}, "started": "2026-01-02T03:04",
    }  # fmt: skip
    return Run(Path("nowhere"), {**base, **record}, frame(rows, Row), frame(curves, Curve), pd.DataFrame())


METHODS = [
    entry("original", control=True),
    entry("blur 1", family="blur", strength=1.0),
    entry("blur 2", family="blur", strength=2.0),
    entry("blur 3", family="blur", strength=3.0),
    entry("mask"),
    entry("gan"),
]
AT = {"original": 0.99, "blur 1": 0.8, "blur 2": 0.6, "blur 3": 0.5, "mask": 0.3, "gan": 0.2}


def usual(**record: Any) -> View:
    rows = [r for label, at in AT.items() for r in rows_of(label, at)]
    return View(run_of(METHODS, rows, [c for label, at in AT.items() for c in curves_of(label, at)], **record))


def drawn(found: Drawing | str) -> Drawing:
    assert isinstance(found, Drawing), found
    assert found.caption.endswith(".") and found.alt.endswith(".")
    assert "nan" not in found.caption.lower().split() and "None" not in found.caption
    return found


def texts(drawing: Drawing) -> list[str]:
    return [t.get_text() for ax in drawing.figure.axes for t in ax.texts] + [t.get_text() for t in drawing.figure.texts]


def inside(drawing: Drawing) -> None:
    """No text hangs out of the figure, but for the bearing of a glyph."""
    figure = drawing.figure
    figure.canvas.draw()
    w, h = figure.get_size_inches() * figure.dpi
    labels = [t for ax in figure.axes for t in (*ax.texts, ax.xaxis.label, ax.yaxis.label)]
    for ax in figure.axes:
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            if ax.axison:
                labels += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for text in (*labels, *figure.texts, *(t for legend in figure.legends for t in legend.get_texts())):
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 > -2 and box.y0 > -2 and box.x1 < w + 2 and box.y1 < h + 2, (text.get_text(), box, w, h)


# --------------------------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("draw", PER_RUN)
def test_three_formats_in_both_widths(draw: Draw, tmp_path: Path) -> None:
    view = usual()
    for width in (COLUMN, PAGE):
        drawing = drawn(draw(view, "faces", width))
        assert drawing.figure.get_size_inches()[0] <= width + 1e-9
        inside(drawing)
        files = save(drawing, tmp_path, f"f{width:.0f}")
        assert [p.suffix for p in files] == [".pdf", ".svg", ".png"] and all(p.stat().st_size > 2000 for p in files)
    first = [p.read_bytes() for p in files]
    again = save(drawn(draw(usual(), "faces", PAGE)), tmp_path, "again")
    assert [p.read_bytes() for p in again] == first, "the same run gives the same bytes"


@pytest.mark.parametrize("draw", PER_RUN)
def test_without_data_there_is_a_reason(draw: Draw) -> None:
    reason = draw(View(run_of([], [], [])), "faces", COLUMN)
    assert isinstance(reason, str) and reason
    bare = [replace(r, value=None, lo=None, hi=None, reason="broken") for r in rows_of("mask", 0.3)]
    reason = draw(View(run_of([entry("mask")], bare, [])), "faces", COLUMN)
    assert isinstance(reason, str) and reason


@pytest.mark.parametrize("draw", PER_RUN)
def test_one_method_alone(draw: Draw) -> None:
    for control in (False, True):
        view = View(run_of([entry("only", control=control)], rows_of("only", 0.4), curves_of("only", 0.4)))
        for width in (COLUMN, PAGE):
            inside(drawn(draw(view, "faces", width)))


@pytest.mark.parametrize("draw", PER_RUN)
def test_thirty_methods_with_unkind_names(draw: Draw) -> None:
    names = [*HOSTILE, *(f"method number {i:02d}" for i in range(23))]
    rows = [r for i, n in enumerate(names) for r in rows_of(n, i / 31)]
    view = View(run_of([entry(n) for n in names], rows, [c for i, n in enumerate(names) for c in curves_of(n, i / 31)]))
    for width in (COLUMN, PAGE):
        drawing = drawn(draw(view, "faces", width))
        inside(drawing)
        assert not any("\x1b" in t or "\u202e" in t for t in (*texts(drawing), drawing.caption, drawing.alt))


@pytest.mark.parametrize("draw", PER_RUN)
def test_holes_in_the_data(draw: Draw) -> None:
    """Missing bounds, missing values, NaN in curves and a method without any curve."""
    rows = [r for label, at in AT.items() for r in rows_of(label, at)]
    holed = [
        replace(r, lo=None, hi=None) if i % 3 == 0 else replace(r, value=None) if i % 5 == 0 else r for i, r in enumerate(rows)
    ]
    holed = [replace(r, lo=float("nan")) if i % 7 == 0 else r for i, r in enumerate(holed)]
    curves = [c for label, at in AT.items() for c in curves_of(label, at) if label != "mask"]
    curves = [replace(c, y=float("nan")) if i % 11 == 0 else c for i, c in enumerate(curves)]
    for width in (COLUMN, PAGE):
        inside(drawn(draw(View(run_of(METHODS, holed, curves)), "faces", width)))


def test_a_report_asks_for_what_the_run_has() -> None:
    assert [name for name, _, _ in jobs.further(usual(), "faces")] == ["scores", "removal", "delta-p", "throughput"]
    named = jobs.further(usual(), "faces", "-faces", " on faces")
    assert all(name.endswith("-faces") and title.endswith(" on faces") for name, title, _ in named)
    assert all(isinstance(draw(COLUMN), Drawing) for _, _, draw in named)
    only = [r for r in rows_of("mask", 0.3) if r.metric.startswith("reid.")]
    (job,) = jobs.further(View(run_of([entry("mask")], only, [])), "faces")
    assert job[0] == "scores" and job[2](COLUMN) == "this run keeps no score distributions"


def test_draw_all_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KINDS", ("svg",))
    saved = {s.name: s for s in figures.draw_all(usual(), tmp_path)}
    for name in ("scores", "removal", "delta-p", "throughput"):
        assert not saved[name].why and len(saved[name].narrow) == len(saved[name].wide) == 1


# -------------------------------------------------------------------------------------------------------------- scores
def test_histograms_are_densities_over_equal_bins() -> None:
    points = np.array([[0.0, 0.25, 0, 0], [0.1, 0.5, 0, 0], [0.4, 0.25, 0, 0]])
    edges, genuine, impostor = distributions.histogram(points, points[:2]) or pytest.fail("no histogram")
    np.testing.assert_allclose(edges, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_allclose(genuine, [2.5, 5, 0, 0, 2.5], err_msg="a bin that is left out is empty")
    np.testing.assert_allclose(impostor * 0.1, [0.25, 0.5, 0, 0, 0])
    assert distributions.histogram(points[:1], points[:1]) is None


def test_scores_draw_the_shares_thresholds_and_eer() -> None:
    view = usual()
    drawing = drawn(distributions.scores(view, "faces"))
    panels = dict(zip([m.label for m in view.methods], drawing.figure.axes, strict=True))
    for label, ax in panels.items():
        heights = [p.get_data().values for p in ax.patches if hasattr(p, "get_data")]
        given = [np.array([c.y for c in curves_of(label, AT[label]) if c.curve == kind]) for kind in distributions.KINDS]
        np.testing.assert_allclose(heights[0] * 0.05, given[0], atol=1e-12)
        np.testing.assert_allclose(heights[-1] * 0.05, given[1], atol=1e-12)
        (line,) = [x for x in ax.lines if len(x.get_xdata()) == 2]
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), 0.5 + 0.1 * AT[label])
        assert f"EER {number(0.5 * (1 - AT[label]), 'rate')}\u00a0%" in [t.get_text() for t in ax.texts]
    assert len({ax.get_xlim() for ax in panels.values()}) == 1, "panels of one attack share their axis"
    keys = {t.get_text() for t in drawing.figure.legends[0].get_texts()}
    assert keys == {"same person", "two persons", "threshold for FMR 1\u00a0%"}
    assert "attacker lazy, recogniser alpha" in drawing.caption


def test_each_method_has_the_scores_of_its_own_worst_case() -> None:
    rows = [r for label in ("mask", "gan") for r in rows_of(label, AT[label])]
    rows = [
        replace(r, note="attained by naive with beta") if r.method == "gan" and r.metric == "reid.worst_rank1" else r
        for r in rows
    ]
    curves = [
        c for label in ("mask", "gan") for a in (("lazy", "alpha"), ("naive", "beta")) for c in curves_of(label, AT[label], a)
    ]
    found = distributions.distributions(View(run_of(METHODS[4:], rows, curves)), "faces")
    assert {k: v.attack for k, v in found.items()} == {"mask": ("lazy", "alpha"), "gan": ("naive", "beta")}
    drawing = drawn(distributions.scores(View(run_of(METHODS[4:], rows, curves)), "faces"))
    assert {"lazy, alpha", "naive, beta"} <= set(texts(drawing)) and "own worst-case" in drawing.caption


def test_thresholds_far_off_are_an_arrow_and_lost_methods_are_named() -> None:
    rows = [replace(r, threshold=50.0) if r.threshold is not None else r for r in rows_of("mask", 0.3)]
    view = View(run_of(METHODS[3:5], [*rows, *rows_of("blur 3", 0.5)], curves_of("mask", 0.3)))
    drawing = drawn(distributions.scores(view, "faces"))
    (ax,) = drawing.figure.axes
    assert ax.get_xlim()[1] < 2 and [x.get_marker() for x in ax.lines] == [">"]
    assert "beyond the panel" in drawing.caption and "No scores of blur 3" in drawing.caption


def test_more_panels_than_fit_are_named() -> None:
    names = [f"m{i}" for i in range(distributions.MOST + 2)]
    view = View(run_of([entry(n) for n in names], [], [c for n in names for c in curves_of(n, 0.5)]))
    drawing = drawn(distributions.scores(view, "faces", PAGE))
    assert len(drawing.figure.axes) == distributions.MOST and "Not shown: m36 and m37." in drawing.caption


def test_scores_that_are_all_alike_make_a_panel() -> None:
    same = [Curve("faces", "mask", kind, "alpha", "lazy", "headline", x, y) for kind in distributions.KINDS
            for x, y in ((0.3, 1.0), (0.3 + 1e-12, 0.0))]  # fmt: skip
    inside(drawn(distributions.scores(View(run_of([entry("mask")], [], same)), "faces")))


# ------------------------------------------------------------------------------------------------------------- removal
@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_removal_draws_the_rows(width: float) -> None:
    view = usual()
    drawing = drawn(bars.removal(view, "faces", width))
    shown = ["blur 2", "mask", "gan"]
    assert [m.label for m in bars.chosen(view, list(AT))] == shown, "the middle of a sweep, no control"
    assert "in the tables only: blur 1 and blur 3" in drawing.caption
    assert "Not measurable (grey, dotted): Bald and Wearing Necktie" in drawing.caption
    for label, ax in zip(shown, drawing.figure.axes, strict=True):
        rows = [
            r
            for r in rows_of(label, AT[label])
            if r.metric == bars.REMOVAL and r.convention == "headline" and r.value is not None
        ]
        assert sorted(p.get_width() for p in ax.patches) == pytest.approx(sorted(r.value or 0 for r in rows))
        ends = np.sort(np.concatenate([c.get_segments() for c in ax.collections])[:, :, 0], axis=0)
        np.testing.assert_allclose(ends, np.sort([[r.lo, r.hi] for r in rows], axis=0))
        (ticks,) = [x for x in ax.lines if x.get_marker() == "|"]
        missed = [
            r for r in rows_of(label, AT[label]) if r.metric == bars.MISSED and r.label not in ("Bald", "Wearing_Necktie")
        ]
        assert sorted(np.asarray(ticks.get_xdata())) == pytest.approx(sorted(r.value or 0 for r in missed))
        by_place = {round(p.get_y() + p.get_height() / 2, 6): p.get_width() for p in ax.patches}
        assert len(by_place) == 38, "a line each"
    words = texts(drawing)
    assert all(a.replace("_", " ") in words for a in ATTRIBUTES), "what cannot be measured is greyed, not gone"
    greys = {t.get_text() for t in drawing.figure.texts if t.get_color() == "#9a9a9a"}
    assert greys == {"Bald", "Wearing Necktie"}


def test_removal_of_named_methods_and_unknown_attributes() -> None:
    view = View(run_of(METHODS, [r for m, at in AT.items() for r in rows_of(m, at, ("Smiling", "is_<tall>_$x$"))], []))
    drawing = drawn(bars.removal(view, "faces", COLUMN, ["blur 1", "blur 3"]))
    assert len(drawing.figure.axes) == 2 and "is <tall> $x$" in texts(drawing)
    assert drawing.alt.startswith("Bars of 2 attributes") and percent(AT["blur 1"] % 1) in drawing.alt


# ------------------------------------------------------------------------------------------------------------ |delta p|
def test_delta_p_draws_every_method_but_a_control_that_changes_nothing() -> None:
    rows = [r for label, at in AT.items() for r in rows_of(label, at)]
    rows = [replace(r, value=0.0, lo=None, hi=None) if r.method == "original" and r.metric == dots.DELTA_P else r for r in rows]
    drawing = drawn(dots.delta_p(View(run_of(METHODS, rows, [])), "faces", PAGE))
    points = sorted(float(x) for ax in drawing.figure.axes for line in ax.lines for x in np.asarray(line.get_xdata()))
    assert points == pytest.approx(sorted(r.value or 0 for r in rows if r.metric == dots.DELTA_P and r.method != "original"))
    arms = np.sort(np.concatenate([c.get_segments() for ax in drawing.figure.axes for c in ax.collections])[:, :, 0], axis=0)
    given = [[r.lo, r.hi] for r in rows if r.metric == dots.DELTA_P and r.lo is not None]
    np.testing.assert_allclose(arms, np.sort(given, axis=0))
    assert not drawing.figure.legends, "no cross of a control that says nothing"


def test_a_control_far_off_does_not_squeeze_the_methods() -> None:
    rows = [r for label, at in AT.items() for r in rows_of(label, at)]
    rows = [replace(r, value=0.93) if (r.method, r.label) == ("original", "anger") else r for r in rows]
    drawing = drawn(dots.delta_p(View(run_of(METHODS, rows, [])), "faces"))
    assert all(ax.get_xlim()[1] < 0.3 for ax in drawing.figure.axes)
    assert sum("0.93 →" in t for t in texts(drawing)) == len(drawing.figure.axes)


# --------------------------------------------------------------------------------------------------------------- speed
def test_throughput_draws_speed_and_latencies_and_names_the_machine() -> None:
    view = usual()
    drawing = drawn(dots.throughput(view, "faces"))
    speed, latency = drawing.figure.axes
    assert speed.get_xscale() == latency.get_xscale() == "log"
    assert sorted(float(line.get_xdata()[0]) for line in speed.lines) == pytest.approx(
        sorted(10 ** (1 + 3 * at) for at in AT.values())
    )
    expected = sorted(ms * (2 - at) for at in AT.values() for ms in (1.0, 2.0, 5.0))
    assert sorted(float(line.get_xdata()[0]) for line in latency.lines) == pytest.approx(expected)
    assert "Machine: a <fast> CPU, 2 cores. Timed: method alone, faces given; cpu, 2 threads." in drawing.caption
    assert [t.get_text() for t in speed.get_yticklabels()] == [m.label for m in view.methods]


def test_throughput_without_latencies_and_with_end_to_end() -> None:
    rows = [r for label, at in AT.items() for r in rows_of(label, at) if r.metric == dots.SPEED]
    rows += [
        replace(r, metric="throughput.end_to_end_faces_per_s", value=(r.value or 0) / 2) for r in rows if r.method != "gan"
    ]
    rows.append(replace(rows[0], method="mask", metric=dots.LATENCIES[0], value=0.0, unit="ms"))
    drawing = drawn(dots.throughput(View(run_of(METHODS, rows, [])), "faces"))
    (ax,) = drawing.figure.axes
    assert len(ax.lines) == 11
    assert [t.get_text() for t in drawing.figure.legends[0].get_texts()] == ["method alone", "end to end"]


# ----------------------------------------------------------------------------------------------------------- DET bands
@pytest.mark.parametrize("draw", [figures.det])
def test_det_draws_its_bands(draw: Any) -> None:
    drawing = drawn(draw(usual(), "faces"))
    assert "Bands are intervals" in drawing.caption
    bands = [
        c
        for ax in drawing.figure.axes
        for c in ax.collections
        if type(c).__name__ in ("PolyCollection", "FillBetweenPolyCollection")
    ]
    assert len(bands) == 5, "one for each method that is no control"
    curves = [replace(c, lo=None, hi=None) for label, at in AT.items() for c in curves_of(label, at)]
    without = drawn(draw(View(run_of(METHODS, [], curves)), "faces"))
    assert "Bands" not in without.caption


# -------------------------------------------------------------------------------------------------------- comparisons
def ranking(
    names: Sequence[str], ranks: Sequence[float], cliques: Sequence[Sequence[int]], p: float | None = 0.004, **more: Any
) -> Ranking:
    return Ranking(tuple(names), tuple(ranks), 6, p, None, None, None, None, "", (), tuple(map(tuple, cliques)), 0.05, **more)


@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("k", [2, 5, 30])
def test_critical_difference(k: int, width: float, tmp_path: Path) -> None:
    names = [*HOSTILE, *(f"method {i}" for i in range(30))][:k]
    ranks = list(np.linspace(1.2, k - 0.1, k))
    cliques = [[0, 1], *([[1, 2, 3], [4]] if k > 4 else [])]
    drawing = drawn(many.critical_difference(ranking(names, ranks, cliques), width, "rank-1"))
    inside(drawing)
    assert all(f"{r:.2f}" in texts(drawing) for r in ranks)
    (ax,) = drawing.figure.axes
    drawn_bars = [np.asarray(x.get_xdata(), float) for x in ax.lines if x.get_linewidth() > 2]
    assert len(drawn_bars) == len([c for c in cliques if len(c) > 1]), "a clique of one is no bar"
    dots_at = sorted(float(x.get_xdata()[0]) for x in ax.lines if x.get_marker() == "o")
    assert drawn_bars[0][0] < dots_at[0] and drawn_bars[0][1] > dots_at[1]
    assert np.allclose(np.diff(dots_at), np.diff(dots_at)[0]), "places are linear in the ranks"
    assert "over 6 data sets" in drawing.caption and "p = 0.004" in drawing.caption
    assert len(save(drawing, tmp_path, "cd")) == 3


def test_critical_difference_says_when_it_cannot() -> None:
    scores = np.arange(8.0).reshape(4, 2)
    few = many.critical_difference(friedman(scores, ["a", "b"], higher_is_better=True))
    assert few == "4 data sets: ranks take at least 5"
    assert isinstance(many.critical_difference(ranking(["a"], [1.0], [])), str)
    assert isinstance(many.critical_difference(ranking(["a", "b"], [1.0, float("nan")], [])), str)


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_critical_difference_of_scores(width: float) -> None:
    """From figures on ten data sets to the diagram: what is told apart, what is not, and what is left out."""
    rng = np.random.default_rng(4)
    scores = np.array([0.9, 0.5, 0.5, 0.1]) + 0.05 * rng.standard_normal((10, 4))
    names = ["best", "middle", "centre", "worst"]
    found = friedman(np.hstack([scores, np.full((10, 1), np.nan)]), [*names, "gone"], higher_is_better=True)
    drawing = drawn(many.critical_difference(found, width))
    inside(drawing)
    (ax,) = drawing.figure.axes
    (bar,) = [np.asarray(x.get_xdata(), float) for x in ax.lines if x.get_linewidth() > 2]
    order = sorted(names, key=lambda n: found.ranks[names.index(n)])
    at = dict(zip(order, sorted(float(x.get_xdata()[0]) for x in ax.lines if x.get_marker() == "o"), strict=True))
    assert at["best"] < bar[0] < min(at["middle"], at["centre"]) and max(at["middle"], at["centre"]) < bar[1] < at["worst"]
    assert "Left out: gone" in drawing.caption and "Bars join" in drawing.caption and "p < 0.001" in drawing.caption
    alike = drawn(many.critical_difference(friedman(rng.standard_normal((6, 4)), names, higher_is_better=True), width))
    assert "No difference is shown" in alike.caption
    same = drawn(many.critical_difference(friedman(np.ones((6, 4)), names, higher_is_better=True), width))
    assert "the methods do not differ on any data set" in same.caption
    assert "All pairs are told apart" in drawn(many.critical_difference(ranking(["a", "b"], [1.0, 2.0], []))).caption


def test_levels_keep_bars_apart() -> None:
    spans = [(1.0, 3.0), (2.0, 4.0), (3.5, 5.0), (6.0, 7.0)]
    assert many.levels(spans) == [0, 1, 0, 0]
    assert many.levels(spans, 0.6) == [0, 1, 2, 0]
    assert many.levels([]) == []


def forest(n: int = 4) -> list[many.Compared]:
    lines = [
        many.Difference(name, v, v - 0.05, v + 0.05, p, better)
        for name, v, p, better in (("a", 0.2, 0.01, "B"), ("b", -0.1, 0.02, "A"), ("c", 0.01, 0.7, None))
    ]  # type: ignore[arg-type]
    lines += [
        many.Difference("d", None, reason="no persons in common"),
        many.Difference("e", 0.0, None, float("nan"), None, None),
    ]
    return [
        many.Compared(f"Metric {i}", "rate" if i % 2 == 0 else "faces/s", lines, i % 2 == 1, 0.02 if i == 0 else None)
        for i in range(n)
    ]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_differences(n: int, width: float, tmp_path: Path) -> None:
    drawing = drawn(many.differences(forest(n), "the <reference>", width))
    inside(drawing)
    assert len(drawing.figure.axes) == n
    for i, ax in enumerate(drawing.figure.axes):
        scale = 100 if i % 2 == 0 else 1
        points = {float(x.get_xdata()[0]): x for x in ax.lines if x.get_marker() != "None"}
        assert sorted(points) == pytest.approx([-0.1 * scale, 0.0, 0.01 * scale, 0.2 * scale])
        filled = [v for v, x in points.items() if x.get_markerfacecolor() != "white"]
        assert sorted(filled) == pytest.approx([-0.1 * scale, 0.2 * scale])
        assert ax.get_xlim()[0] < 0 < ax.get_xlim()[1] and "no value" in [t.get_text() for t in ax.texts]
    assert "within the margin" in drawing.caption and "the <reference>" in drawing.caption and "p 0.01" in drawing.alt
    assert len(save(drawing, tmp_path, "d")) == 3


def test_differences_without_any() -> None:
    assert isinstance(many.differences([], "b"), str)
    assert isinstance(many.differences([many.Compared("x", "rate", [many.Difference("a", None)])], "b"), str)
    names = [many.Difference(n, 0.1 * i, -1, 1, 0.5) for i, n in enumerate((*HOSTILE, *(f"m{i}" for i in range(23))))]
    inside(drawn(many.differences([many.Compared("x" * 80, "rate", names)], "y" * 200)))


def _series(values: Sequence[float | None], **fields: Any) -> list[Run]:
    out = []
    for i, v in enumerate(values):
        rows = [r for r in rows_of("gan", 0.2) if r.metric not in ("reid.worst_rank1",)]
        if v is not None:
            rows.append(Row("faces", "gan", "reid.worst_rank1", "rate", False, **_bounded(v, 0.04), convention="headline"))
        methods = [entry("gan", weights_sha256=("a" if i < 2 else "b") * 64)]
        record = {
            "started": f"2026-01-{i + 1:02d}T00:00",
            "environment": {"git": {"commit": f"{i}" * 40, "dirty": i == 1}},
        }  # fmt: skip
        out.append(run_of(methods, rows, [], **{**record, **fields}))
    return out


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_history(width: float, tmp_path: Path) -> None:
    values = [0.30, 0.31, None, 0.33, 0.20]
    eer = Key("reid.eer", "lazy", "alpha", "headline")
    metrics = ["reid.worst_rank1", eer, "no.such"]
    drawing = drawn(history(_series(values), metrics, "gan", {"reid.worst_rank1": 0.02, "reid.eer": 0.01}, width))
    inside(drawing)
    first, second = drawing.figure.axes
    points = {int(x.get_xdata()[0]): x for x in first.lines if x.get_marker() in ("o", "X")}
    assert {i: float(x.get_ydata()[0]) for i, x in points.items()} == pytest.approx(
        {i: v for i, v in enumerate(values) if v is not None}
    )
    assert {i for i, x in points.items() if x.get_marker() == "X"} == {3}, "better than the band is not beyond it"
    (band,) = first.patches
    heights = (
        np.asarray(band.get_path().vertices)[:, 1]
        if not hasattr(band, "get_height")
        else [band.get_y(), band.get_y() + band.get_height()]
    )
    assert (min(heights), max(heights)) == pytest.approx((0.30, 0.32)), "the worse side of a figure that is better low"
    (band,) = second.patches
    assert band.get_y() + band.get_height() == pytest.approx(0.4), "and of one that is better high"
    words = [t.get_text() for t in second.get_xticklabels()]
    assert words[0] == "2026-01-01\n0000000 (aaaaaaa)" and words[1] == "2026-01-02\n1111111*" and words[2].endswith("(bbbbbbb)")
    assert "No figure of no.such." in drawing.caption and "A star: uncommitted changes." in drawing.caption
    assert len(save(drawing, tmp_path, "h")) == 3


def test_history_marks_where_runs_stop_to_compare() -> None:
    runs = [*_series([0.3, 0.3]), *_series([0.3], protocol={"name": "deidbench-v4"})]
    drawing = drawn(history(runs, ["reid.worst_rank1"], "gan"))
    (ax,) = drawing.figure.axes
    upright = [float(x.get_xdata()[0]) for x in ax.lines if list(x.get_xdata()) == [1.5, 1.5]]
    assert upright == [1.5] and "protocol or images changed" in drawing.caption
    joined = [list(x.get_xdata()) for x in ax.lines if len(x.get_xdata()) == 2 and x.get_marker() == "None"]
    assert [0, 1] in joined and [1, 2] not in joined, "no line across the break"


def test_history_of_many_runs_of_one_and_of_none() -> None:
    for n in (1, 60):
        for width in (COLUMN, PAGE):
            inside(drawn(history(_series(list(np.linspace(0.1, 0.9, n))), ["reid.worst_rank1", dots.SPEED], "gan", {}, width)))
    assert isinstance(history([], ["reid.worst_rank1"], "gan"), str)
    assert isinstance(history(_series([None]), ["reid.worst_rank1"], "gan"), str)
    assert isinstance(history(_series([0.3]), ["reid.worst_rank1"], "another"), str)
    assert isinstance(history(_series([0.3]), [], "gan"), str)
    labelled = drawn(history(_series([0.3, 0.4]), ["reid.worst_rank1"], "gan", labels=["<one>", "x" * 90]))
    inside(labelled)
    with pytest.raises(ValueError, match="2 runs, but 1 labels"):
        history(_series([0.3, 0.4]), ["reid.worst_rank1"], "gan", labels=["one"])


def test_no_host_or_folder_is_in_a_caption() -> None:
    for draw in PER_RUN:
        assert not re.search(r"/(home|root|tmp|work)/", drawn(draw(usual(), "faces", COLUMN)).caption)
