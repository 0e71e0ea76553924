"""Every hot path of a run once, in a minute: ``make bench-report`` sets them against the saved baseline.

Two fixed pieces of work that use nothing of deidbench say how quick the machine is just now.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deidbench import kinds
from deidbench.cache import Store
from deidbench.executors import limit_threads
from deidbench.faces import FaceFinder, align
from deidbench.images import encode_image, encode_png, read_image_bytes
from deidbench.pipeline import Output, aligned_crop, pixels_sha256
from deidbench.stats import intervals, roc
from deidbench.types import Face, Image, Item, Status

#: Methods that need nothing but the package.  Those that need more are timed by other files, or are programs outside.
METHODS = (
    "original", "blackout", "blur", "pixelate", "noise", "mask", "eye-bar", "scramble", "dp-pix", "metric-svd", "ganonymization",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    limit_threads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def photo(orl_face: Image) -> Image:
    """The size of a picture of CelebA-HQ that was made smaller: RGB uint8 (512, 420, 3)."""
    return np.ascontiguousarray(cv2.resize(orl_face, (420, 512), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="module")
def found(finder: FaceFinder, photo: Image) -> Face:
    [face] = finder.find(photo)
    return face


# ------------------------------------------------------------------------------------------------------------ the machine
def _gemm() -> Any:
    return np.matmul(_SQUARE, _SQUARE)


def _loop() -> int:
    total = 0
    for i in range(100_000):
        total += i & 7
    return total


_SQUARE = np.random.default_rng(0).normal(size=(384, 384))
#: Nothing of ours.  Timed before, between and after the rest: a machine's clock may change within half a minute.
CALIBRATION = {"gemm": _gemm, "python": _loop}


@pytest.mark.benchmark(group="calibration")
@pytest.mark.parametrize("work", CALIBRATION)
def test_calibration_before(benchmark: Any, work: str) -> None:
    benchmark(CALIBRATION[work])


# ------------------------------------------------------------------------------------------------------------ pictures
@pytest.mark.benchmark(group="decode, 420 x 512")
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_decode(benchmark: Any, photo: Image, suffix: str) -> None:
    data = encode_image(photo, suffix)
    assert benchmark(read_image_bytes, data, f"a{suffix}").shape == photo.shape


@pytest.mark.benchmark(group="encode PNG, 420 x 512")
def test_encode_png(benchmark: Any, photo: Image) -> None:
    benchmark(encode_png, photo)


@pytest.mark.benchmark(group="hash of pixels, 420 x 512")
def test_hash(benchmark: Any, photo: Image) -> None:
    benchmark(pixels_sha256, photo)


# --------------------------------------------------------------------------------------------------------------- faces
@pytest.mark.benchmark(group="find faces, 420 x 512")
def test_detect(benchmark: Any, finder: FaceFinder, photo: Image) -> None:
    assert len(benchmark(finder.find, photo)) == 1


@pytest.mark.benchmark(group="align to 112 pixels")
def test_align(benchmark: Any, photo: Image, found: Face) -> None:
    assert benchmark(align, photo, found, aligned_crop()).shape == (112, 112, 3)


@pytest.mark.benchmark(group="embed 8 faces")
@pytest.mark.parametrize("name", ["sface", "dlib"])
def test_embed(benchmark: Any, photo: Image, found: Face, name: str) -> None:
    recognizer = kinds.recognizers.create(name)
    recognizer.load()
    crops = np.stack([align(photo, found, recognizer.crop)] * 8)
    recognizer.embed(crops)
    assert len(benchmark.pedantic(recognizer.embed, (crops,), rounds=5)) == 8


# ------------------------------------------------------------------------------------------------------------- methods
@pytest.mark.benchmark(group="anonymise, 420 x 512")
@pytest.mark.parametrize("name", METHODS)
def test_anonymize(benchmark: Any, photo: Image, found: Face, name: str) -> None:
    method = kinds.anonymizers.create(name)
    method.load()
    items = [Item("a", photo, (found,), 7, "p")]
    [result] = method.anonymize(items)
    assert result.status is Status.OK, result.reason
    benchmark.pedantic(method.anonymize, (items,), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="calibration")
@pytest.mark.parametrize("work", CALIBRATION)
def test_calibration_between(benchmark: Any, work: str) -> None:
    benchmark(CALIBRATION[work])


# --------------------------------------------------------------------------------------------------------------- store
@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.mark.benchmark(group="store, 200 artefacts of 2 kB")
def test_store_put(benchmark: Any, store: Store) -> None:
    number = iter(range(10**6))
    data = np.random.default_rng(0).bytes(2048)

    def put() -> None:
        store.put_many({f"{next(number):064x}": data for _ in range(200)})

    benchmark.pedantic(put, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="store, 200 artefacts of 2 kB")
def test_store_get(benchmark: Any, store: Store) -> None:
    data = np.random.default_rng(0).bytes(2048)
    keys = [f"{i:064x}" for i in range(200)]
    store.put_many(dict.fromkeys(keys, data))
    assert len(benchmark(store.get_many, keys)) == 200


@pytest.mark.benchmark(group="what is known of an output")
def test_output_unpack(benchmark: Any) -> None:
    packed = Output(Status.OK, Status.OK, "", (512, 420), (), thumb=bytes(768), sha256="a" * 64).pack()
    benchmark(Output.unpack, packed)


# -------------------------------------------------------------------------------------------------------------- scores
@pytest.mark.benchmark(group="scores of 1,000 x 1,000 pairs")
def test_pair_scores(benchmark: Any) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 128)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    from deidbench.metrics.reid.base import cosine

    assert benchmark(cosine, x, x).shape == (1000, 1000)


@pytest.mark.benchmark(group="EER of 100k + 100k scores")
def test_eer(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    genuine, impostor = (rng.normal(m, 1, 10**5).astype(np.float32) for m in (2, 0))
    assert benchmark(roc.eer, genuine, impostor).value == pytest.approx(0.159, abs=0.01)


@pytest.mark.benchmark(group="interval of a mean, 100 persons x 10, 10,000 replicates")
def test_bootstrap(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    person, values = np.repeat(np.arange(100), 10), rng.normal(size=1000)
    names = [f"p{i:03d}" for i in range(100)]
    sums, counts = (intervals.per_person(person, v, 100) for v in (values, np.ones(1000)))

    seeds = iter(range(10**6))

    def work() -> Any:
        draws = intervals.person_draws(names, 10_000, next(seeds))  # another seed each: they are kept
        return intervals.percentile_interval(intervals.ratio_replicates(sums, counts, draws), 0.95, 100, "b")

    assert benchmark.pedantic(work, rounds=5, warmup_rounds=1).lo is not None


# -------------------------------------------------------------------------------------------------------------- report
@pytest.mark.benchmark(group="tables of the reference run")
def test_report(benchmark: Any, tmp_path: Path) -> None:
    from deidbench.report import write_report

    reference = Path(__file__).resolve().parents[2] / "results" / "reference" / "demo"
    shutil.copytree(reference, tmp_path / "run")
    work: Callable[[], list[Path]] = lambda: write_report(tmp_path / "run", formats=["csv"], figures=False)  # noqa: E731
    assert benchmark.pedantic(work, rounds=2)


@pytest.mark.benchmark(group="calibration")
@pytest.mark.parametrize("work", CALIBRATION)
def test_calibration_after(benchmark: Any, work: str) -> None:
    benchmark(CALIBRATION[work])
