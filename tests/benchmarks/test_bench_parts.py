"""How long the parts of a run take, beside the library that they replace.  `make bench` prints the table."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from deidbench import kinds
from deidbench.executors import limit_threads
from deidbench.faces import FaceFinder
from deidbench.metrics.quality import ssim


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 150, 150, 3), dtype=np.uint8)


@pytest.mark.benchmark(group="--help")
def test_help(benchmark) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-m", "deidbench.cli", "--help"], check=True, capture_output=True), rounds=3
    )


@pytest.mark.benchmark(group="dlib's ResNet, 16 faces")
@pytest.mark.parametrize("engine", ["torch", "dlib"])
def test_dlib(benchmark, noise: np.ndarray, engine: str) -> None:  # type: ignore[no-untyped-def]
    recognizer = kinds.recognizers.create("dlib", engine=engine)
    recognizer.embed(noise[:1])
    benchmark.pedantic(recognizer.embed, (noise,), rounds=3)


@pytest.mark.benchmark(group="SFace, 16 faces")
@pytest.mark.parametrize("engine", ["onnxruntime", "opencv"])
def test_sface(benchmark, noise: np.ndarray, engine: str) -> None:  # type: ignore[no-untyped-def]
    limit_threads(1)  # conftest.py gives ONNX Runtime one thread too
    recognizer = kinds.recognizers.create("sface", engine=engine)
    crops = np.ascontiguousarray(noise[:, :112, :112])
    recognizer.embed(crops[:1])
    benchmark.pedantic(recognizer.embed, (crops,), rounds=3)


@pytest.mark.benchmark(group="SSIM, 256 x 256 colour")
@pytest.mark.parametrize("who", ["deidbench", "scikit-image"])
def test_ssim(benchmark, who: str) -> None:  # type: ignore[no-untyped-def]
    from skimage.metrics import structural_similarity

    a, b = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    if who == "deidbench":
        benchmark(ssim, a, b)
    else:
        benchmark(structural_similarity, a, b, channel_axis=2, data_range=255)


@pytest.mark.benchmark(group="find a face, 92 x 112")
@pytest.mark.parametrize("thorough", [True, False])
def test_find(benchmark, orl_face: np.ndarray, thorough: bool) -> None:  # type: ignore[no-untyped-def]
    finder = FaceFinder()
    assert len(finder.find(orl_face)) == 1
    benchmark(finder.find, orl_face, thorough=thorough)
