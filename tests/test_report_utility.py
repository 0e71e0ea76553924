"""Tables and heat maps of utility, on the committed result of the demo: nothing is lost, nothing is invented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from deidbench.records import read_run
from deidbench.report.details import detail_tables
from deidbench.report.figures import COLUMN, PAGE, style
from deidbench.report.heatmaps import attributes_map, confusions
from deidbench.report.tables import groups, main_table, warnings
from deidbench.report.utility import FAMILIES, utility_tables
from deidbench.report.view import SSIM, UAR, View, key

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "demo"


@pytest.fixture(scope="module")
def view() -> View:
    return View(read_run(REFERENCE))


def _texts(drawing: object) -> list[str]:
    (ax,) = drawing.figure.axes  # type: ignore[attr-defined]
    return [t.get_text() for t in ax.texts]


def test_every_figure_of_utility_is_in_a_table_or_handed_on(view: View) -> None:
    dataset = view.datasets[0]
    keys = [k for k in view.keys(dataset) if k.metric.startswith(tuple(f"{f}." for f in FAMILIES))]
    tables, rest = utility_tables(view, dataset, keys)
    assert {t.title for t in tables} >= {"Expression", "Attributes", "Geometry", "Retention of each attribute"}
    shown = {(c.row.method, key(c.row)) for t in tables for line in t.lines for c in line.cells if c.row is not None}
    only_there = ("emotion.confusion", "emotion.uar_open")  # in a figure, and in rows.csv
    clear = ("attributes.base_rate", "attributes.clear_")  # the same for every method: one column
    for m in view.methods:
        for k in keys:
            row = view.row(dataset, m.label, k)
            if row is None or row.value is None or k.metric in only_there or k.metric.startswith(clear):
                continue
            assert ((m.label, k) in shown) != (k in rest), (m.label, k)


def test_columns_under_one_heading_all_have_a_second_line(view: View) -> None:
    """The page stretches a heading without one over both lines: a mixture would shift every column to its right."""
    dataset = view.datasets[0]
    tables, _ = utility_tables(view, dataset, view.keys(dataset))
    for table in tables:
        at = 0
        for heading, n in groups(table.columns):
            subs = [c.sub for c in table.columns[at : at + n]]
            assert n == 1 or all(subs), (table.title, heading, subs)
            at += n


def test_the_main_table_has_one_expression_column_of_the_fitted_head(view: View) -> None:
    table = main_table(view, view.datasets[0])
    columns = [c for c in table.columns if c.metric == UAR]
    assert len(columns) == 1 and "adapted" in columns[0].name
    at = table.columns.index(columns[0])
    for line in table.lines:
        row = view.headline(view.datasets[0], line.method.label, UAR)
        assert row is not None and line.cells[at].value == row.value
        assert row.note.startswith("clear "), "what differs from line to line is in the note ..."
    assert not any("clear 0." in text for _, text in table.footnotes), "... and makes no footnote of its own"


def test_the_plane_shows_expression_where_there_is_any(view: View) -> None:
    dataset = view.datasets[0]
    assert view.utility(dataset) == UAR
    rows = view.run.rows[~view.run.rows.metric.str.startswith(("emotion.", "attributes."))]
    assert View(replace(view.run, rows=rows)).utility(dataset) == SSIM


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_heat_maps_write_what_the_rows_say(view: View, width: float) -> None:
    dataset = view.datasets[0]
    with style():
        retention, read = attributes_map(view, dataset, width), confusions(view, dataset, width)
    assert not isinstance(retention, str) and not isinstance(read, str)
    measured = {
        k.label: row.value
        for k, row in view.of(dataset, "ganonymization").items()
        if k.metric == "attributes.retention" and k.convention == "headline" and row.value is not None
    }
    words = _texts(retention)
    for label, value in measured.items():
        assert label.replace("_", " ") in words
        if width == PAGE:
            assert f"{100 * value:.0f}".replace("-", "−") in words
    gone = {
        k.label for k, r in view.of(dataset, "ganonymization").items() if k.metric == "attributes.retention" and r.value is None
    }
    assert gone and all(g.replace("_", " ") not in words for g in gone)
    assert all(g.replace("_", " ") in retention.caption for g in gone), "what is left out is named"
    for m in view.methods:
        shares: dict[str, float] = {}
        for k, row in view.of(dataset, m.label).items():
            if k.metric == "emotion.confusion" and row.value is not None:
                truth = k.label.partition(" -> ")[0]
                shares[truth] = shares.get(truth, 0.0) + row.value
        np.testing.assert_allclose(list(shares.values()), 1, atol=1e-9)
    assert {m.label for m in view.methods} <= set(_texts(read))
    plt.close("all")


def test_without_utility_there_is_a_reason_and_no_table(view: View) -> None:
    rows = view.run.rows[~view.run.rows.metric.str.startswith(("emotion.", "attributes.", "geometry."))]
    bare = View(replace(view.run, rows=rows))
    dataset = view.datasets[0]
    assert isinstance(attributes_map(bare, dataset), str) and isinstance(confusions(bare, dataset), str)
    assert not {t.title for t in detail_tables(bare, dataset)} & {"Expression", "Attributes", "Geometry"}


def test_a_contaminated_classifier_is_a_warning_of_its_own(view: View) -> None:
    record = dict(view.record)
    record["classifiers"] = [
        {**c, "overlap": "the classifier learnt from 3 images", "contaminated": c["name"] == "emotion-cnn"}
        for c in record["classifiers"]
    ]
    rows = view.run.rows.copy()
    rows.loc[rows.recognizer == "emotion-cnn", "trusted"] = False
    said = " ".join(warnings(View(replace(view.run, record=record, rows=rows)), view.datasets[0]))
    assert "Contaminated, and not to be trusted: emotion-cnn; the classifier learnt from 3 images." in said
    assert "A slight overlap: attributes-cnn; the classifier learnt from 3 images." in said
    assert "sanity check" not in said, "it is no recogniser"
    assert "Contaminated" not in " ".join(warnings(view, view.datasets[0]))
