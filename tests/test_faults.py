"""Faults of memory and of the GPU: whose they are, what is tried, what is stored, and what the run after them finds."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from deidbench import kinds
from deidbench.adapter_calls import Blame, blame, blame_of, blamed, embed_in_parts, run_adapter, take_halvings
from deidbench.anonymizers.base import Anonymizer
from deidbench.cache import LAYOUT
from deidbench.errors import EnvironmentFault, ExitCode, ImageError, InputError
from deidbench.records import read_run
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite
from deidbench.types import Anonymized, Item, Status

SUITE = """\
[suite]
name = "faults"
extends = "SMALL"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[[methods]]
name = "{method}"
""".replace("SMALL", Path(__file__).with_name("small.toml").as_posix())

# -- whose fault it is ---------------------------------------------------------------------------------------------

#: As the libraries word them.
MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 1.06 MiB is free.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes.",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9663676416 bytes.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. bfc_arena.cc:376 "
    "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 4096",
    "[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:342 Available memory of 1048576 is smaller than requested bytes of 4194304",
    "OpenCV(4.11.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 13194265362732 bytes",
    "Error while calling cudaMalloc(&data, n*sizeof(float)) in file gpu_data.cpp:218. code: 2, reason: out of memory",
    "std::bad_alloc",
    "Unable to allocate 71.1 PiB for an array with shape (10000000000000000,) and data type float64",
]
DEVICE = [
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: no CUDA-capable device is detected",
    "CUDA error: driver shutting down",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA-capable device(s) is/are busy or unavailable",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=x",
    "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=x",
    "Error while calling cudaGetDevice(&the_device_id) in file gpu_data.cpp:201. code: 100, reason: no CUDA-capable device",
    "HIP error: unspecified launch failure",
    "NVML: GPU is lost",
]
MACHINE = [
    "[Errno 28] No space left on device: '/tmp/x'",
    "can't start new thread",
    "[Errno 24] Too many open files: 'a.png'",
    "[Errno 30] Read-only file system",
]
IMAGES = [
    "cannot do this person",
    "CUDA error: invalid configuration argument",
    "Calculated padded input size per channel: (1 x 1). Kernel size: (3 x 3). Kernel size can't be greater",
    "index 3 is out of bounds for axis 0 with size 3",
    "the face lies outside the image",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
]


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        *((t, Blame.MEMORY) for t in MEMORY), *((t, Blame.DEVICE) for t in DEVICE), *((t, Blame.MACHINE) for t in MACHINE),
        *((t, None) for t in IMAGES),
    ],
)  # fmt: skip
def test_words_say_whose_fault_it_is(text: str, whose: Blame | None) -> None:
    assert blame_of(text) is whose
    assert blame(RuntimeError(text)) is whose
    hidden = ValueError("something went wrong")
    hidden.__cause__ = RuntimeError(text)
    assert blame(hidden) is whose, "an adapter may wrap it"


def _numpy() -> None:
    np.empty(10**16)


def _opencv() -> None:
    cv2.copyMakeBorder(np.zeros((10, 10, 3), np.uint8), *[2**20] * 4, cv2.BORDER_CONSTANT)


def _torch() -> None:
    pytest.importorskip("torch", reason="torch is not installed").empty(10**16)


@pytest.mark.parametrize("work", [_numpy, _opencv, _torch])
def test_the_libraries_own_errors(work: Callable[[], None]) -> None:
    with pytest.raises(Exception) as caught:
        work()
    assert blame(caught.value) is Blame.MEMORY


def test_classes_say_it_too() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    class AcceleratorError(RuntimeError):
        pass

    assert blame(OutOfMemoryError()) is Blame.MEMORY
    assert blame(AcceleratorError("something new")) is Blame.DEVICE
    assert blame(MemoryError()) is Blame.MEMORY
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
        assert blame(OSError(number, os.strerror(number))) is Blame.MACHINE
    for number in (errno.ENOENT, errno.EPIPE, errno.EINVAL):
        assert blame(OSError(number, os.strerror(number))) is None, "the image's, or the adapter's"


def test_a_block_is_blamed() -> None:
    with pytest.raises(EnvironmentFault, match="finder: out of memory") as caught, blamed("finder"):
        _opencv()
    assert "--batch" in caught.value.remedy
    with pytest.raises(EnvironmentFault, match="the GPU is gone"), blamed("x"):
        raise RuntimeError(DEVICE[0])
    taken_for_a_broken_file = InputError("the file is no model", "name another")
    taken_for_a_broken_file.__cause__ = RuntimeError(DEVICE[0])
    with pytest.raises(EnvironmentFault, match="GPU is gone"), blamed("x"):
        raise taken_for_a_broken_file
    with pytest.raises(ImageError, match=r"a\.png"), blamed("x"):
        raise ImageError("a.png has more pixels than fit: not enough memory is allowed for it", "")
    with pytest.raises(ValueError, match="mine"), blamed("x"):
        raise ValueError("mine")


# -- memory ----------------------------------------------------------------------------------------------------------


def _items(n: int, side: int = 8) -> list[Item]:
    rng = np.random.default_rng(0)
    return [Item(f"p{i}/x", rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for i in range(n)]


class _Small(Anonymizer):
    """Has memory for ``room`` images at a time, and for none whose first pixel is 7, 7, 7."""

    needs_faces = False

    def __init__(self, room: int = 3, how: str = "numpy") -> None:
        self.room, self.how = room, how

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        vars(self).setdefault("_tried", []).append(len(items))
        if len(items) > self.room or any((i.image[0, 0] == 7).all() for i in items):
            if self.how == "held":  # what the frames of an error hold is memory too
                held = _Held()
                vars(self)["_held"] = weakref.ref(held)
            error = {"numpy": MemoryError("too many"), "torch": RuntimeError(MEMORY[0])}.get(self.how, MemoryError())
            raise error
        if "_held" in vars(self):
            gc.collect()
            assert vars(self)["_held"]() is None, "the failed try is still in memory"
        return [Anonymized(i.id, Status.OK, 255 - i.image) for i in items]


class _Held:
    pass


class _Tells(_Small):
    """Catches what it meets, as many adapters do, and tells it as the reason."""

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        try:
            return super().anonymize(items)
        except Exception as error:
            return [Anonymized.failed(i.id, f"{type(error).__name__}: {error}") for i in items]


kinds.anonymizers.register("test-small")(_Small)


@pytest.mark.parametrize("how", ["numpy", "torch", "held"])
def test_a_batch_that_does_not_fit_is_halved_and_the_smaller_one_remembered(how: str) -> None:
    take_halvings()
    small, items = _Small(how=how), _items(8)
    results = run_adapter(small, items)
    assert [r.id for r in results] == [i.id for i in items]
    assert all(r.status is Status.OK and (r.image == 255 - i.image).all() for r, i in zip(results, items, strict=True))
    assert small._tried == [8, 4, 2, 2, 2, 2]  # type: ignore[attr-defined]
    assert take_halvings() == {"test-small": 2}
    run_adapter(small, items)
    assert small._tried[6:] == [2] * 4, "the large one is not tried again"  # type: ignore[attr-defined]
    assert take_halvings() == {}
    other = _Small(how=how)
    run_adapter(other, items[:3])
    assert other._tried == [3], "another instance starts anew"  # type: ignore[attr-defined]


def test_an_image_that_does_not_fit_costs_itself_only() -> None:
    small, items = _Small(room=8), _items(8)
    items[5].image[0, 0] = 7
    results = run_adapter(small, items)
    assert [r.status for r in results] == [Status.OK] * 5 + [Status.FAILED] + [Status.OK] * 2
    assert "out of memory with this image alone (MemoryError: too many)" in results[5].reason
    assert "--retry-failed" in results[5].reason
    run_adapter(small, _items(8))
    assert small._tried[-1] == 8, "it was the image, not the batch"  # type: ignore[attr-defined]


def test_what_an_adapter_tells_counts_as_well() -> None:
    tells = _Tells(room=1)
    tells.name = "tells"  # type: ignore[misc]
    results = run_adapter(tells, _items(3))
    assert [r.status for r in results] == [Status.OK] * 3
    assert tells._tried == [3, 1, 1, 1]  # type: ignore[attr-defined]
    [result] = run_adapter(_Tells(room=0), _items(1))
    assert result.status is Status.FAILED
    assert "with this image alone" in result.reason


class _Recognizer:
    """Of :class:`deidbench.metrics.models.base.Recognizer` what is used here."""

    name = "test-recognizer"

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.tried = room, error, list[int]()

    def embed(self, crops: np.ndarray) -> np.ndarray:
        self.tried.append(len(crops))
        if len(crops) > self.room:
            raise self.error
        return crops.reshape(len(crops), -1).astype(np.float32)[:, :5]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(MEMORY[0]), RuntimeError(MEMORY[5])])
def test_recognisers_too(error: Exception) -> None:
    take_halvings()
    crops = [i.image for i in _items(7)]
    small = _Recognizer(2, error)
    np.testing.assert_array_equal(embed_in_parts(small, crops), embed_in_parts(_Recognizer(99, error), crops))  # type: ignore[arg-type]
    assert small.tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert take_halvings() == {"test-recognizer": 2}
    with pytest.raises(EnvironmentFault, match="not even one face of 8 x 8 pixels fits into memory") as caught:
        embed_in_parts(_Recognizer(0, error), crops)  # type: ignore[arg-type]
    assert "what was computed is kept" in caught.value.remedy
    with pytest.raises(EnvironmentFault, match="the GPU is gone"):
        embed_in_parts(_Recognizer(0, RuntimeError(DEVICE[1])), crops)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a bug"):
        embed_in_parts(_Recognizer(0, ValueError("a bug")), crops)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """Four persons with two images each."""
    root = tmp_path_factory.mktemp("people")
    for p in (1, 7, 14, 22):
        (root / f"p{p}").mkdir()
        for i in (1, 3):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"p{p}" / f"{i}.pgm")
    return root


def _suite(folder: Path, people: Path, method: str) -> Path:
    path = folder / "faults.toml"
    path.write_text(SUITE.format(root=people, method=method))
    return path


def _figures(folder: Path) -> pd.DataFrame:
    rows = read_run(folder).rows
    return rows[~rows.timing].reset_index(drop=True)


@pytest.mark.slow
def test_halving_changes_no_figure(tmp_path: Path, people: Path) -> None:
    take_halvings()  # of other tests
    suite = _suite(tmp_path, people, "test-small")
    loaded = [load_suite(str(suite), [f"methods=[{{name='test-small',params={{room={n}}}}}]"]) for n in (2, 99)]
    results = [
        run_suite(one, tmp_path / f"run{i}", Options(workers=1, batch=8, cache=tmp_path / f"c{i}", quiet=True))
        for i, one in enumerate(loaded)
    ]
    assert results[0].halved == {"test-small": 2}
    assert "batches were halved (test-small 2 times)" in results[0].remarks()[0]
    assert read_run(tmp_path / "run0").record["run"]["halved_batches"] == {"test-small": 2}
    assert results[1].halved == {}
    assert results[1].remarks() == []
    a, b = (_figures(tmp_path / f"run{i}").drop(columns=["method"]) for i in (0, 1))
    pd.testing.assert_frame_equal(a, b)
    hashes = [list(read_run(tmp_path / f"run{i}").images.output_sha256) for i in (0, 1)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 8


class _Unloadable(_Small):
    """Whose weights do not get onto the GPU."""

    def load(self) -> None:
        raise RuntimeError(DEVICE[3])


kinds.anonymizers.register("test-unloadable")(_Unloadable)


def test_weights_that_do_not_get_onto_the_gpu(tmp_path: Path, people: Path) -> None:
    suite = load_suite(str(_suite(tmp_path, people, "test-unloadable")))
    with pytest.raises(EnvironmentFault, match="test-unloadable: the GPU is gone"):
        run_suite(suite, tmp_path / "run", Options(workers=1, batch=8, cache=tmp_path / "cache", quiet=True))


# -- a GPU that goes away --------------------------------------------------------------------------------------------

_PLUGIN = """
import os
from pathlib import Path
from deidbench import kinds
from deidbench.anonymizers.base import Anonymizer
from deidbench.types import Anonymized, Status

class AcceleratorError(RuntimeError):
    pass

@kinds.anonymizers.register("test-gpu")
class Gpu(Anonymizer):
    '''Works until the machine has done some images; then its GPU is gone, for every process.'''
    needs_faces = False

    def __init__(self, how="raise"):
        self.how = how

    def anonymize(self, items):
        folder = Path(os.environ["GPU"])
        out = []
        for item in items:
            if len(list(folder.iterdir())) >= int(os.environ["GPU_IMAGES"]):
                error = AcceleratorError("CUDA error: unspecified launch failure")
                if self.how == "raise":
                    raise error
                out.append(Anonymized.failed(item.id, f"AcceleratorError: {error}"))
                continue
            (folder / item.id.replace("/", "_")).touch()
            out.append(Anonymized(item.id, Status.OK, 255 - item.image))
        return out
"""
_MAIN = "import sys, gpu_plugin; from deidbench.cli import main; main(sys.argv[1:])"


def _stored(cache: Path) -> list[dict[str, Any]]:
    """What the store says of the method's outputs."""
    with closing(sqlite3.connect(cache / f"store-v{LAYOUT}.sqlite")) as db:
        rows = db.execute(
            "SELECT a.data FROM artefact a JOIN about b ON a.key = b.key JOIN origin o ON o.id = b.origin WHERE o.kind = 'anonymised'"
        ).fetchall()
    return [json.loads(data) for (data,) in rows]


@pytest.mark.parametrize(("workers", "how"), [pytest.param(2, "raise", marks=pytest.mark.slow), (1, "tell")])
def test_a_gpu_that_goes_away_is_no_images_failure(tmp_path: Path, people: Path, workers: int, how: str) -> None:
    (tmp_path / "gpu_plugin.py").write_text(_PLUGIN)
    (tmp_path / "gpu").mkdir()
    suite = _suite(tmp_path, people, f'test-gpu"\nparams = {{ how = "{how}" }}\n#"')
    words = ["run", str(suite), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--no-report", "--json"]
    words += ["--workers", str(workers), "--batch", "1"]
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path), "GPU": str(tmp_path / "gpu")}

    def run(images: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _MAIN, *words], env={**surroundings, "GPU_IMAGES": str(images)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    broken = run(3)
    assert broken.returncode == ExitCode.ENVIRONMENT, broken.stderr
    assert "test-gpu: the GPU is gone" in broken.stderr
    assert "unspecified launch failure" in broken.stderr
    assert "run the same command again" in broken.stderr
    assert 'device = "cpu"' in broken.stderr
    assert "Traceback" not in broken.stderr
    assert not (tmp_path / "run" / "run.json").exists()
    before = _stored(tmp_path / "cache")
    assert {o["status"] for o in before} <= {"ok"}, "a failure of the machine is not stored as one of an image"
    mended = run(99)
    assert mended.returncode == ExitCode.OK, mended.stderr
    told = json.loads(mended.stdout)
    assert told["failed"] == 0
    assert told["computed"]["anonymize"] == 8 - len(before), "what was stored is not computed again"
    assert len(_stored(tmp_path / "cache")) == 8
    assert list(read_run(tmp_path / "run").images.status) == ["ok"] * 8


class _Fails(Anonymizer):
    needs_faces = False

    def __init__(self, number: int = errno.ENOSPC, tell: bool = False) -> None:
        self.number, self.tell = number, tell

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        error = OSError(self.number, os.strerror(self.number))
        if self.tell:
            return [Anonymized.failed(i.id, f"OSError: {error}") for i in items]
        raise error


@pytest.mark.parametrize("tell", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
def test_a_full_disk_is_no_images_failure(number: int, tell: bool) -> None:
    with pytest.raises(EnvironmentFault, match="the machine failed, not the image") as caught:
        run_adapter(_Fails(number, tell), _items(2))
    assert "run the same command again" in caught.value.remedy
    results = run_adapter(_Fails(errno.ENOENT, tell), _items(2))
    assert [r.status for r in results] == [Status.FAILED] * 2


class _Elsewhere(_Fails):
    """Its work is done by a process that is started anew after it failed."""

    own_process = True

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        return [Anonymized.failed(i.id, self.reason) for i in items]


@pytest.mark.parametrize("text", ["CUDA error: no CUDA-capable device is detected", "[Errno 28] No space left on device"])
def test_a_program_whose_gpu_is_gone(text: str) -> None:
    with pytest.raises(EnvironmentFault):
        run_adapter(_Elsewhere(f"it said: {text}"), _items(2))


@pytest.mark.parametrize("text", ["CUDA error: an illegal memory access was encountered", "CUDA out of memory."])
def test_a_program_that_is_started_anew_fails_for_its_image(text: str) -> None:
    assert [r.reason for r in run_adapter(_Elsewhere(text), _items(2))] == [text] * 2
