"""The package's own tests: the contract of deidbench, and what is particular to the method."""

from __future__ import annotations

import numpy as np
import pytest
from deidbench_swirl.method import Swirl, quantised
from deidbench_swirl.recognizer import Palette

from deidbench.contract import Check, parametrize_with_checks
from deidbench.errors import InputError
from deidbench.types import Box, Face, Item


@parametrize_with_checks([Swirl(), Swirl(amount=1.5, colours=3)], quick=True)
def test_contract(anonymizer: Swirl, check: Check) -> None:
    check(anonymizer)


def test_few_colours_are_left() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert len(np.unique(quantised(image, 5).reshape(-1, 3), axis=0)) == 5


def test_nothing_outside_of_the_ellipse_is_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    [result] = Swirl(margin=1.0).anonymize([Item("x", image, (Face(Box(30, 20, 70, 80)),))])
    assert result.image is not None
    changed = (result.image != image).any(axis=2)
    y, x = np.nonzero(changed)
    assert changed.sum() > 1500
    assert (((x + 0.5 - 50) / 20) ** 2 + ((y + 0.5 - 50) / 30) ** 2 < 1).all()


def test_a_wrong_parameter_is_named() -> None:
    with pytest.raises(InputError, match="amount = 7"):
        Swirl(amount=7).validate()


def test_equal_colours_are_equal_faces() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    faces[1] //= 4
    faces[2] = faces[0][::-1]
    vectors = Palette().embed(faces)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[2] == pytest.approx(1, abs=1e-6)
    assert vectors[0] @ vectors[1] < 0.95
    assert Palette().embed(faces[:0]).shape == (0, 512)
