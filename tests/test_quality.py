"""SSIM and PSNR against scikit-image, and the rows that come of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from deidbench.metrics.base import Protocol, Table
from deidbench.metrics.quality import Quality, psnr, ssim
from deidbench.types import Box, Face

PROTOCOL = Protocol(replicates=500, seed=3)


def _pairs(face: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    noisy = np.clip(face + rng.normal(0, 25, face.shape), 0, 255).astype(np.uint8)
    colour = rng.integers(0, 256, (40, 31, 3), dtype=np.uint8)
    return [
        (face, noisy),
        (face, np.zeros_like(face)),
        (colour, 255 - colour),
        (colour[:7, :7], colour[7:14, 7:14]),
        (face, face[::-1]),
    ]


def test_equal_to_scikit_image(orl_face: np.ndarray) -> None:
    for a, b in _pairs(orl_face):
        assert ssim(a, b) == pytest.approx(structural_similarity(a, b, channel_axis=2, data_range=255), abs=1e-9)
        assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)


def test_known_answers(orl_face: np.ndarray) -> None:
    assert ssim(orl_face, orl_face) == 1.0
    assert psnr(orl_face, orl_face) == math.inf
    assert math.isnan(ssim(orl_face[:6], orl_face[1:7]))
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) == 0.0
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert ssim(tiny, tiny) == 1.0


def test_the_face_is_measured_on_the_originals_face(orl_face: np.ndarray) -> None:
    """What changes outside the face shows in the frame's figure alone."""
    face = Face(Box(25, 30, 65, 80))
    changed = orl_face.copy()
    changed[:10] = 0
    values = Quality().measure(orl_face, changed, face)
    assert values["ssim_face"] == 1.0
    assert values["ssim_frame"] < 0.97
    without = Quality().measure(orl_face, changed, None)
    assert math.isnan(without["ssim_face"])
    assert without["ssim_frame"] == values["ssim_frame"]
    beyond = Quality().measure(orl_face, changed, Face(Box(500, 500, 600, 600)))
    assert math.isnan(beyond["psnr_face"])


def test_large_frames_are_compared_at_a_bounded_size() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    values = Quality().measure(a, 255 - a, Face(Box(0, 0, 2000, 1500)))
    assert -1 <= values["ssim_frame"] <= 1


def _table(column: list[float], withheld: list[bool] | None = None, persons: int = 4) -> Table:
    n = len(column)
    values = np.array(column)
    return Table(
        dataset="d",
        method="m",
        ids=np.array([str(i) for i in range(n)]),
        subjects=np.array([f"p{i % persons}" for i in range(n)]),
        status=np.array(["ok"] * n),
        withheld=np.array(withheld or [False] * n),
        fta=np.zeros(n, bool),
        measures=dict.fromkeys(Quality.measures, values),
    )


def _row(table: Table, name: str = "quality.psnr_face"):  # type: ignore[no-untyped-def]
    return next(r for r in Quality().score(table, table, PROTOCOL).rows if r.metric == name)


def test_rows_count_what_is_left_out() -> None:
    inf, nan = math.inf, math.nan
    row = _row(_table([10, 20, 30, 40, inf, nan, nan, 50], [False] * 6 + [True, False]))
    assert row.value == 30
    assert row.n_images == 5
    assert row.n_failed == 1
    assert row.lo is not None
    assert row.lo < 30 < row.hi
    assert "1 images equal their original" in row.note
    assert "1 images have no region" in row.note
    assert "1 withheld" in row.note


def test_no_value_has_a_reason() -> None:
    assert "infinite" in _row(_table([math.inf] * 4)).reason
    assert "nothing was released" in _row(_table([math.nan] * 4, [True] * 4)).reason
    assert "has a region" in _row(_table([math.nan] * 4)).reason
    for column in ([math.inf] * 4, [math.nan] * 4):
        row = _row(_table(column))
        assert row.value is None
        assert row.lo is None
        assert row.ci_reason
    one = _row(_table([10.0, 20.0], persons=1))
    assert one.value == 15
    assert one.lo is None
    assert "one person" in one.ci_reason
