"""The DeepPrivacy2 adapter, through real processes: against a small program laid out like the real one, and, where
``$DEIDBENCH_DEEPPRIVACY2`` names a checkout and ``$DEIDBENCH_DEEPPRIVACY2_PYTHON`` an interpreter for it, the real one.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deidbench import kinds
from deidbench.anonymizers.external import deepprivacy2 as adapter
from deidbench.anonymizers.external import program
from deidbench.errors import DeidbenchError, EnvironmentFault, InputError, MissingError
from deidbench.types import Anonymized, Box, Face, Item, Status

_spec = importlib.util.spec_from_file_location("contract", Path(__file__).parent / "contract" / "contract.py")
assert _spec is not None and _spec.loader is not None
contract: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

posix = pytest.mark.skipif(os.name != "posix", reason="process groups")

# --------------------------------------------------------------------------------------------- a program like it

#: What the stand-in does with a picture is written in its first pixel (red).
NORMAL, NOBODY, CLAIMS, CRASH, HANG, GARBAGE, SIZE, RAISES, FLOATS, CUDA, HALF, SEGFAULT, GARBLED_CRASH = range(13)

FILES = {
    # A torch of a few lines, found before any other because the checkout comes first on the path.
    "torch/__init__.py": """
        import numpy as np
        class _Tensor:
            def __init__(self, array): self.array = np.asarray(array)
            def detach(self): return self
            def cpu(self): return self
            def numpy(self): return self.array
            def clone(self): return _Tensor(self.array.copy())
            def __iter__(self): return iter(self.array)
        class _NoGrad:
            def __enter__(self): return self
            def __exit__(self, *error): return False
        class _Flags: pass
        class backends: cudnn = _Flags()
        class cuda:
            @staticmethod
            def is_available(): return False
        __version__ = "0-stand-in"
        _state = {}
        def no_grad(): return _NoGrad()
        def manual_seed(seed): _state["seed"] = seed
        def from_numpy(array): return _Tensor(array)
        def LongTensor(values): return _Tensor(np.array(values, dtype=np.int64).reshape(-1, 4))
    """,
    "tops/__init__.py": """
        def to_cuda(tensor): return tensor
        def get_device(): return "cpu"
    """,
    "tops/config.py": """
        def instantiate(cfg, **more): return cfg.build(**more)
    """,
    "dp2/__init__.py": "",
    "dp2/utils.py": """
        import runpy
        def load_config(path):
            print("Saving outputs to: nowhere")            # the real one talks on standard output, too
            return runpy.run_path(path)["cfg"]
    """,
    "dp2/detection/__init__.py": "",
    "dp2/detection/structures.py": """
        class FaceDetection:
            def __init__(self, boxes, target_imsize, fdf128_expand):
                self.boxes, self.target_imsize = boxes, target_imsize
    """,
    "dp2/anonymizer.py": """
        import os, subprocess, sys, time
        import numpy as np
        import torch
        from dp2.detection.structures import FaceDetection

        class Detector:
            def __init__(self):
                os.makedirs(os.path.join(os.environ["BASE_OUTPUT_DIR"], "cache"))
                name = os.path.join(os.environ["TORCH_HOME"], "hub", "checkpoints", "dsfd")
                if not os.path.exists(name):
                    from urllib.request import urlopen
                    urlopen("https://example.invalid/contents/dsfd")
            def __call__(self, image):
                code = image.array[0, 0, 0]
                if code == 1:
                    return [FaceDetection(torch.LongTensor([]), (256, 256), False)]
                height, width = image.array.shape[1:]
                return [FaceDetection(torch.LongTensor([[2, 2, width - 2, height - 2]]), (256, 256), False)]

        class Parameter:
            def numel(self): return 7
        class Generator:
            def __init__(self, learnt): self.learnt = learnt
            def parameters(self): return [Parameter()] if self.learnt else []

        class Anonymizer:
            def __init__(self, detector, cfg, learnt):
                self.detector = detector
                self.generators = {FaceDetection: Generator(learnt)}
                self.generator_cfgs = {FaceDetection: cfg}
            def __call__(self, image, detections, track, amp, multi_modal_truncation, truncation_value):
                out = image.array.copy()
                code = int(out[0, 0, 0])
                if code == 2: return image
                if code == 3:
                    print("the stand-in dies here", file=sys.stderr, flush=True)
                    os._exit(7)
                if code == 4:
                    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                    if "STAND_IN_PIDS" in os.environ:
                        with open(os.environ["STAND_IN_PIDS"] + ".part", "w") as file:
                            file.write("%d %d" % (os.getpid(), child.pid))
                        os.replace(os.environ["STAND_IN_PIDS"] + ".part", os.environ["STAND_IN_PIDS"])
                    print("about to sleep", file=sys.stderr, flush=True)
                    while "STAND_IN_TALKS" in os.environ: print("still here", file=sys.stderr, flush=True)
                    time.sleep(600)
                if code in (5, 12):
                    print("@deidbench not json", flush=True)
                    os.write(1, b'@deidbench {"id": 1, "status": "no_face"}\\n' + bytes(range(256)) + b"\\n\\x1b[31mcoloured\\x1b[0m\\n")
                if code == 12: os._exit(7)
                if code == 6: out = np.concatenate([out, out], axis=2)
                if code == 7: raise ValueError("odd picture")
                if code == 8: return torch.from_numpy(out.astype(np.float32))
                if code == 9: raise RuntimeError("CUDA error: device-side assert triggered")
                if code == 11: os.kill(os.getpid(), 11)
                latent = np.random.randint(0, 256) if truncation_value else 128
                boxes = [b for d in detections for b in d.boxes]
                for x0, y0, x1, y1 in boxes[: 1 if code == 10 else None]:
                    out[:, y0:y1, x0:x1] = 255 - latent // 2 - out[:, y0:y1, x0:x1] // 2
                return torch.from_numpy(out)
    """,
    "configs/anonymizers/face.py": """
        import types
        from dp2.anonymizer import Anonymizer, Detector
        face_G_cfg = "configs/fdf/stylegan.py"
        generator = types.SimpleNamespace(common={"model_url": "x"}, checkpoint_dir="nowhere")
        class Lazy:
            detector = Detector
            def build(self, load_cache): return Anonymizer(self.detector and self.detector(), generator, True)
        cfg = types.SimpleNamespace(
            anonymizer=Lazy(), detector=types.SimpleNamespace(face_post_process_cfg=dict(target_imsize=(256, 256), fdf128_expand=False))
        )
    """,
    "configs/fdf/stylegan.py": """
        common.model_url = "https://example.invalid/contents/links/generator"
        common.model_md5sum = "MD5"
    """,
    "configs/anonymizers/traditional/face/maskout.py": """
        import runpy
        face_G_cfg = "configs/generators/dummy/maskout.py"
        cfg = runpy.run_path("configs/anonymizers/face.py")["cfg"]
    """,
    "configs/generators/dummy/maskout.py": "",
    "configs/anonymizers/untrained.py": """
        import runpy
        face_G_cfg = "configs/generators/dummy/maskout.py"
        module = runpy.run_path("configs/anonymizers/face.py")
        module["generator"].common.clear()
        cfg = module["cfg"]
    """,
    "configs/anonymizers/lacking.py": """
        face_G_cfg = "configs/generators/dummy/maskout.py"
        import a_package_that_nobody_has
    """,
    "configs/anonymizers/slow.py": """
        face_G_cfg = "configs/generators/dummy/maskout.py"
        import sys, time
        print("still loading", file=sys.stderr, flush=True)
        time.sleep(600)
    """,
    "configs/anonymizers/dying.py": """
        face_G_cfg = "configs/generators/dummy/maskout.py"
        import os, sys
        print("no luck today", file=sys.stderr, flush=True)
        os._exit(3)
    """,
    "configs/anonymizers/once.py": """
        face_G_cfg = "configs/generators/dummy/maskout.py"
        import os, runpy, sys
        if os.path.exists("started"):
            sys.exit("not a second time")
        open("started", "w").close()
        cfg = runpy.run_path("configs/anonymizers/face.py")["cfg"]
    """,
    "configs/anonymizers/FB_cse.py": "person_G_cfg = 'configs/fdh/styleganL.py'",
}
CHECKPOINT = b"a generator of few parameters"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, laid out like a checkout of the real one, and beside it a folder ``weights``."""
    home = tmp_path_factory.mktemp("stand-in")
    for name, text in FILES.items():
        path = home / "repo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).replace("MD5", hashlib.md5(CHECKPOINT).hexdigest()))
    (home / "weights").mkdir()
    (home / "weights" / "generator").write_bytes(CHECKPOINT)
    (home / "weights" / "dsfd").write_bytes(b"detector")
    (home / "weights" / adapter.DSFD.file).write_bytes(b"detector")
    return home / "repo"


@pytest.fixture
def make(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., adapter.DeepPrivacy2]]:
    """Makes adapters on the stand-in; what they started is ended after the test, and their folders must then be gone."""
    made: list[adapter.DeepPrivacy2] = []
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def one(**params: Any) -> adapter.DeepPrivacy2:
        given = {
            "repo": str(checkout), "python": sys.executable, "weights": str(checkout.parent / "weights"),
            "device": "cpu", "timeout": 20.0, "startup": 60.0,
        }  # fmt: skip
        found = kinds.anonymizers.create("deepprivacy2", **(given | params))
        assert isinstance(found, adapter.DeepPrivacy2)
        made.append(found)
        return found

    yield one
    for anonymizer in made:
        anonymizer.close()
    assert list(temporary.glob("deidbench-*")) == []


def picture(code: int = NORMAL, seed: int = 0, height: int = 24, width: int = 20) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)
    image[0, 0] = (code, 0, 0)
    return image


def items(*codes: int) -> list[Item]:
    return [Item(f"person/{k}", picture(code, k), seed=k) for k, code in enumerate(codes)]


def statuses(results: list[Anonymized]) -> list[str]:
    return [str(r.status) for r in results]


# ---------------------------------------------------------------------------------------------------- one image each


def test_a_normal_run(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    anonymizer = make()
    anonymizer.load()
    assert anonymizer.greeting()["torch"] == "0-stand-in"
    given = items(NORMAL, NORMAL, NORMAL)
    results = anonymizer.anonymize(given)
    contract.well_formed(given, results)
    for item, result in zip(given, results, strict=True):
        assert result.status is Status.OK, result.reason
        inside = item.image[2:-2, 2:-2]
        assert (result.image[2:-2, 2:-2] == 191 - inside // 2).all()  # type: ignore[index]
        assert (result.image[:2] == item.image[:2]).all()  # type: ignore[index]
        assert [f.box for f in result.faces] == [Box(2, 2, 18, 22)]
    assert anonymizer.anonymize([]) == []


def test_the_process_stays_up_over_batches(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    anonymizer = make()
    anonymizer.anonymize(items(NORMAL))
    assert anonymizer._live is not None
    pid = anonymizer._live.resident.pid
    anonymizer.anonymize(items(NORMAL, RAISES, SIZE, NOBODY))
    assert anonymizer._live.resident.pid == pid
    assert [p for part in ("in", "out") for p in (anonymizer._live.exchange.folder / part).iterdir()] == []
    assert stat.S_IMODE(anonymizer._live.exchange.folder.stat().st_mode) == 0o700


def test_running_it_leaves_nothing_in_the_checkout(
    make: Callable[..., adapter.DeepPrivacy2], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    before = sorted(checkout.rglob("*"))
    assert statuses(make().anonymize(items(NORMAL))) == ["ok"]
    assert sorted(checkout.rglob("*")) == before


def test_no_detection_is_no_face_and_withheld(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    [result] = make().anonymize(items(NOBODY))
    assert result.status is Status.NO_FACE
    assert result.image is None
    assert "found no face" in result.reason


def test_a_claim_without_a_change_is_caught(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    [result] = make().anonymize(items(CLAIMS))
    assert result.status is Status.FAILED
    assert result.image is None
    assert "returned its input unchanged" in result.reason


def test_one_face_left_clear_withholds_the_image(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    faces = (Face(Box(2, 2, 8, 8)), Face(Box(10, 10, 18, 18)))
    [result] = make(detections="suite").anonymize([Item("x", picture(HALF), faces)])
    assert result.status is Status.FAILED and result.image is None
    assert [str(f.status) for f in result.faces] == ["ok", "failed"]
    assert "face 2 of 2: its pixels are the input's, unchanged" in result.reason


def test_a_crash_costs_its_image_only(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    anonymizer = make()
    results = anonymizer.anonymize(items(NORMAL, NORMAL, CRASH, NORMAL, SEGFAULT, NORMAL))
    assert statuses(results) == ["ok", "ok", "failed", "ok", "failed", "ok"]
    assert "exit code 7" in results[2].reason
    assert "the stand-in dies here" in results[2].reason
    assert "signal SIGSEGV" in results[4].reason
    assert contract.same(results[3], anonymizer.anonymize(items(NORMAL, NORMAL, NORMAL, NORMAL))[3])


@posix
def test_killed_while_idle_is_no_images_fault(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    anonymizer = make()
    anonymizer.load()
    assert anonymizer._live is not None
    pid = anonymizer._live.resident.pid
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while anonymizer._live.resident.runs and time.monotonic() < end:
        time.sleep(0.02)
    assert statuses(anonymizer.anonymize(items(NORMAL, NORMAL))) == ["ok", "ok"]
    assert anonymizer._live.resident.pid != pid


def test_last_words_are_about_the_image_that_failed(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    results = make().anonymize(items(RAISES, CRASH))
    assert "the stand-in dies here" in results[1].reason and "odd picture" not in results[1].reason


def test_where_a_program_does_not_come_up_again_no_image_counts_as_failed(
    make: Callable[..., adapter.DeepPrivacy2], checkout: Path
) -> None:
    (checkout / "started").unlink(missing_ok=True)
    anonymizer = make(config="once.py")
    with pytest.raises(EnvironmentFault, match=r"did not come up again[\s\S]*not a second time[\s\S]*the stand-in dies here"):
        anonymizer.anonymize(items(NORMAL, CRASH, NORMAL, NORMAL))
    with pytest.raises(EnvironmentFault, match="not a second time"):
        anonymizer.anonymize(items(NORMAL))


@posix
def test_a_hang_is_ended_with_its_children(
    make: Callable[..., adapter.DeepPrivacy2], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    anonymizer = make(timeout=1.0)
    start = time.monotonic()
    results = anonymizer.anonymize(items(NORMAL, HANG, NORMAL))
    assert time.monotonic() - start < 15
    assert statuses(results) == ["ok", "failed", "ok"]
    assert "no answer within 1 s" in results[1].reason
    assert "about to sleep" in results[1].reason
    _gone(map(int, (tmp_path / "pids").read_text().split()))


def test_garbage_on_standard_output_is_no_answer(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    """Nor is it lost: it stands with the last words, without what does not print."""
    results = make().anonymize(items(GARBAGE, GARBAGE, GARBLED_CRASH, NORMAL))
    assert statuses(results) == ["ok", "ok", "failed", "ok"]
    assert "@deidbench not json" in results[2].reason and "coloured" in results[2].reason
    assert all(c.isprintable() or c == "\n" for c in results[2].reason)


@posix
def test_noise_before_and_between_answers(make: Callable[..., adapter.DeepPrivacy2], tmp_path: Path) -> None:
    """What a wrapper around the interpreter writes goes over the pipe itself."""
    wrapper = _script(
        tmp_path / "python",
        f"""
        import subprocess, sys
        print("welcome"); print("@deidbench [1, 2"); print("@deidbench 5"); print('@deidbench {{"id": 77}}', flush=True)
        if "--exchange" not in sys.argv:
            sys.exit("not the driver")
        process = subprocess.Popen([{sys.executable!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
        for line in process.stdout:
            sys.stdout.buffer.write(b"\\xff\\x00\\n" + line)
            sys.stdout.flush()
        """,
    )
    assert statuses(make(python=str(wrapper)).anonymize(items(NORMAL, NOBODY, NORMAL))) == ["ok", "no_face", "ok"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (SIZE, "gave a picture of 40 x 24 pixels for one of 20 x 24"),
        (RAISES, "ValueError: odd picture (anonymizer.py, line"),
        (FLOATS, "returned float32 (3, 24, 20), not uint8"),
        (CUDA, "CUDA error: device-side assert triggered"),
    ],
)
def test_what_goes_wrong_is_said(make: Callable[..., adapter.DeepPrivacy2], code: int, reason: str) -> None:
    given = items(NORMAL, code, NORMAL)
    results = make().anonymize(given)
    contract.well_formed(given, results)
    assert statuses(results) == ["ok", "failed", "ok"]
    assert reason in results[1].reason


@pytest.mark.parametrize("boxes", [[[1, 2, 3]], [["a", 1, 2, 3]], [[float("nan"), 1, 2, 3]], 5, [[0, 0, float("inf"), 1]]])
def test_boxes_that_are_none(make: Callable[..., adapter.DeepPrivacy2], monkeypatch: pytest.MonkeyPatch, boxes: object) -> None:
    anonymizer = make()
    anonymizer.load()
    monkeypatch.setattr(program.Resident, "ask", lambda *_: {"status": "ok", "boxes": boxes})
    [result] = anonymizer.anonymize(items(NORMAL))
    assert result.status is Status.FAILED and "boxes that are none" in result.reason


def test_a_spoilt_gpu_process_is_replaced(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    anonymizer = make()
    anonymizer.anonymize(items(CUDA))
    assert anonymizer._live is None
    assert statuses(anonymizer.anonymize(items(NORMAL))) == ["ok"]


def test_neutral_names_and_one_picture_at_a_time(
    make: Callable[..., adapter.DeepPrivacy2], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids never reach the program; of the pictures only the one that is worked on lies in the folder."""
    asked: list[dict[str, Any]] = []
    real = program.Resident.ask

    def ask(self: program.Resident, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert anonymizer._live is not None
        asked.append({**request, "there": sorted(p.name for p in (anonymizer._live.exchange.folder / "in").iterdir())})
        return real(self, request, timeout)

    monkeypatch.setattr(program.Resident, "ask", ask)
    anonymizer = make()
    anonymizer.anonymize(items(NORMAL, NORMAL))
    assert [a["name"] for a in asked] == ["000000.png", "000001.png"]
    assert [a["there"] for a in asked] == [["000000.png"], ["000001.png"]]
    assert "person" not in json.dumps(asked)


def test_an_output_that_is_missing_or_broken(tmp_path: Path) -> None:
    exchange = program.Exchange()
    try:
        name = exchange.put(3, picture())
        with pytest.raises(program.OutputFault, match="left no output file"):
            exchange.get(name, picture())
        (exchange.folder / "out" / name).write_bytes((exchange.folder / "in" / name).read_bytes()[:-30])
        with pytest.raises(program.OutputFault, match="unreadable output"):
            exchange.get(name, picture())
        shutil.copy(exchange.folder / "in" / name, exchange.folder / "out" / name)
        assert (exchange.get(name, picture()) == picture()).all()
        exchange.put(3, picture())  # an output of an earlier image is not taken for this one's
        with pytest.raises(program.OutputFault, match="left no output file"):
            exchange.get(name, picture())
    finally:
        exchange.close()
    assert not exchange.folder.exists()


# --------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("params", [{}, {"truncation_value": 0.7}], ids=["mean latent", "random latent"])
def test_contract(make: Callable[..., adapter.DeepPrivacy2], params: dict[str, Any]) -> None:
    anonymizer = make(**params)
    anonymizer.load()
    given = items(NORMAL, NORMAL, NOBODY, NORMAL)
    contract.input_untouched(anonymizer, given)
    contract.repeatable(anonymizer, given)
    contract.seeds_matter_as_declared(anonymizer, given[0])
    assert anonymizer.deterministic == (not params)


def test_contract_bad_items(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    good = picture()
    given = [
        Item("float", good.astype(np.float32)),  # type: ignore[arg-type]
        Item("grey", good[..., 0]),
        Item("empty", good[:0]),
        Item("fine", good),
    ]
    results = make().anonymize(given)
    contract.well_formed(given, results)
    assert statuses(results) == ["failed", "failed", "failed", "ok"]


def test_faces_of_the_suite(make: Callable[..., adapter.DeepPrivacy2], checkout: Path) -> None:
    """Boxes go to the program as whole pixels within the image; its own detector is not even built."""
    anonymizer = make(detections="suite", weights=str(checkout.parent / "no-dsfd"))
    (checkout.parent / "no-dsfd").mkdir(exist_ok=True)
    (checkout.parent / "no-dsfd" / "generator").write_bytes(CHECKPOINT)
    assert anonymizer.needs_faces and not make().needs_faces
    image = picture()
    given = [
        Item("two", image, (Face(Box(1.4, 2.6, 7.6, 8.4)), Face(Box(10, 10, 40, 17)))),
        Item("none", image, ()),
        Item("not looked for", image, None),
        Item("outside", image, (Face(Box(2, 2, 8, 8)), Face(Box(90, 90, 95, 95)))),
        Item("no size", image, (Face(Box(2, 2, 2.2, 8)),)),
        Item("not finite", image, (Face(Box(float("nan"), 2, 2.2, 8)),)),
    ]
    results = anonymizer.anonymize(given)
    contract.well_formed(given, results)
    assert statuses(results) == ["ok", "no_face", "failed", "failed", "failed", "failed"]
    assert [f.box for f in results[0].faces] == [Box(1, 3, 8, 8), Box(10, 10, 20, 17)]
    changed = (results[0].image != image).any(axis=2)  # type: ignore[union-attr]
    expected = np.zeros_like(changed)
    expected[3:8, 1:8] = expected[10:17, 10:20] = True
    assert (changed <= expected).all() and changed.sum() > 0.9 * expected.sum()
    assert "faces" in results[2].reason
    assert "face 2 of 2" in results[3].reason


def test_pickles_without_its_process(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    anonymizer = make()
    [first] = anonymizer.anonymize(items(NORMAL))
    other = pickle.loads(pickle.dumps(anonymizer))
    assert other._live is None and other.params() == anonymizer.params()
    assert contract.same(first, other.anonymize(items(NORMAL))[0])
    other.close()


def test_in_worker_processes(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    """A worker that is done leaves neither process nor folder behind."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    anonymizer = make()
    given = items(NORMAL, NORMAL)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = pool.submit(anonymizer.anonymize, given).result(60)
    assert all(contract.same(a, b) for a, b in zip(results, anonymizer.anonymize(given), strict=True))


def test_goes_with_its_object(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    other = pickle.loads(pickle.dumps(make()))
    other.load()
    pid, folder = other._live.resident.pid, other._live.exchange.folder
    del other
    gc.collect()
    _gone([pid])
    assert not folder.exists()


def _gone(pids: Any, within: float = 5.0) -> None:
    """None of ``pids`` runs any more (a zombie that nobody waits for does not run)."""
    end = time.monotonic() + within
    for pid in pids:
        while psutil.pid_exists(pid) and _runs(pid):
            assert time.monotonic() < end, f"process {pid} still runs"
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


@posix
@pytest.mark.parametrize("talks", [False, True], ids=["quiet", "talks"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_we_are_ended_nothing_of_it_stays(checkout: Path, tmp_path: Path, how: signal.Signals, talks: bool) -> None:
    """Ctrl-C in the middle of an image; and the ends that no code of ours sees, where the driver cleans up by itself.

    A program that talks just then breaks its pipe: it must not be gone before it has cleaned up.
    """
    code = f"""
        import numpy as np
        from deidbench import kinds
        from deidbench.types import Item
        image = np.zeros((24, 20, 3), np.uint8)
        image[0, 0, 0] = {HANG}
        a = kinds.anonymizers.create("deepprivacy2", repo={str(checkout)!r}, python={sys.executable!r}, device="cpu",
                                     weights={str(checkout.parent / "weights")!r}, timeout=500)
        a.anonymize([Item("x", image)])
    """
    (tmp_path / "tmp").mkdir()
    variables = {**os.environ, "STAND_IN_PIDS": str(tmp_path / "pids"), "TMPDIR": str(tmp_path / "tmp")}
    if talks:
        variables["STAND_IN_TALKS"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=variables, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background would pass on "ignore"
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "pids").exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        driver, child = map(int, (tmp_path / "pids").read_text().split())
        assert list((tmp_path / "tmp").glob("deidbench-*/in/*.png"))
        process.send_signal(how)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    _gone([driver, child])
    assert list((tmp_path / "tmp").glob("deidbench-*/in/*.png")) == []
    if how is signal.SIGINT:
        assert "KeyboardInterrupt" in errors
        assert list((tmp_path / "tmp").glob("deidbench-*")) == []


# ------------------------------------------------------------------------------------------------ what is not there


def test_missing_checkout_names_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(adapter.REPO_ENV, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for repo in ("", str(tmp_path / "elsewhere")):
        made = kinds.anonymizers.create("deepprivacy2", repo=repo)
        made.validate()
        with pytest.raises(MissingError, match="the program is not here") as caught:
            made.load()
        assert "git clone https://github.com/hukkelas/deep_privacy2 " in caught.value.remedy
        assert "python -m deidbench.anonymizers.external deepprivacy2 --create " in caught.value.remedy
        with pytest.raises(MissingError):
            _ = made.fingerprint
    monkeypatch.setenv(adapter.REPO_ENV, str(tmp_path / "named"))
    with pytest.raises(MissingError, match="named does not exist"):
        kinds.anonymizers.create("deepprivacy2").load()


def test_missing_weights_name_the_mirror(make: Callable[..., adapter.DeepPrivacy2], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="weights are missing") as caught:
        make(weights=str(tmp_path)).load()
    text = str(caught.value)
    assert hashlib.md5(CHECKPOINT).hexdigest() in text and adapter.DSFD.file in text and str(tmp_path) in text
    assert "api.loke.aws.unit.no" in text and "haakohu/deep_privacy2_face" in text and "torch_home/hub/checkpoints" in text


def test_wrong_weights_are_refused_unread(
    make: Callable[..., adapter.DeepPrivacy2], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkout.parent / "weights", tmp_path / "w")
    (tmp_path / "w" / "generator").write_bytes(CHECKPOINT + b"!")
    monkeypatch.setattr(program.Environment, "launch", lambda *_, **__: pytest.fail("the program was started"))
    with pytest.raises(InputError, match=r"its MD5 is .*, expected .*nothing of it was read"):
        make(weights=str(tmp_path / "w")).load()
    (tmp_path / "w" / "generator").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match="Git LFS pointer"):
        make(weights=str(tmp_path / "w")).load()


def test_weights_by_torch_home_and_a_config_without_any(
    make: Callable[..., adapter.DeepPrivacy2], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingError, match=str(tmp_path / "hub" / "checkpoints")):
        make(weights="").verify()
    bare = make(weights="", config="traditional/face/maskout.py", detections="suite")
    assert bare.weights_sha256() == ""
    [result] = bare.anonymize([Item("x", picture(), (Face(Box(3, 3, 9, 9)),))])
    assert result.status is Status.OK
    shutil.copytree(checkout.parent / "weights", tmp_path / "hub" / "checkpoints")
    assert len(make(weights="").verify()) == 2


def test_nothing_is_downloaded_behind_the_users_back(make: Callable[..., adapter.DeepPrivacy2], tmp_path: Path) -> None:
    """A file of a config that the adapter does not know: the program would fetch it when it starts."""
    with pytest.raises(EnvironmentFault, match=r"would download from https://example\.invalid/contents/dsfd"):
        make(config="configs/anonymizers/untrained.py", weights=str(tmp_path)).load()


def test_random_weights_are_no_anonymizer(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    with pytest.raises(EnvironmentFault, match="7 parameters and no checkpoint"):
        make(config="untrained.py").load()


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ("lacking.py", MissingError, "a_package_that_nobody_has"),
        ("dying.py", EnvironmentFault, r"(?s)exit code 3.*no luck today"),
        ("slow.py", EnvironmentFault, r"(?s)no answer within 8 s.*still loading"),
        ("FB_cse.py", InputError, "names no face generator"),
        ("nothing.py", InputError, "has no configs/anonymizers/nothing.py"),
    ],
)
def test_a_program_that_does_not_start(
    make: Callable[..., adapter.DeepPrivacy2], config: str, error: type[DeidbenchError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        make(config=config, startup=8.0 if config == "slow.py" else 60.0).load()
    assert caught.value.remedy


def test_device_cuda_where_there_is_none(make: Callable[..., adapter.DeepPrivacy2]) -> None:
    with pytest.raises(EnvironmentFault, match="no GPU"):
        make(device="cuda").load()


@pytest.mark.parametrize(
    "params",
    [
        {"config": "../face.py"}, {"config": "/etc/face.py"}, {"config": "configs/anonymizers/../../x.py"}, {"config": "face.toml"},
        {"truncation_value": 1.5}, {"truncation_value": "0"}, {"detections": "mine"}, {"device": "gpu"}, {"timeout": 0},
        {"startup": -1}, {"environment": "venv:x"}, {"environment": "docker:"}, {"environment": "docker:--privileged"},
        {"python": "a", "environment": "uv:b"}, {"repo": 3}, {"config": "deep_privacy1.py", "detections": "suite"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_parameters(params: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        kinds.anonymizers.create("deepprivacy2", **params).validate()
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("config", "truncation", "trained_on", "deterministic"),
    [
        ("configs/anonymizers/face.py", 0, ("FDF256",), True),
        ("face.py", 0.1, ("FDF256",), False),
        ("face_fdf128.py", 0, ("FDF128",), True),
        ("deep_privacy1.py", 0, ("FDF128",), False),
        ("traditional/face/gaussian.py", 0.5, (), True),
        ("my_own.py", 0, (), False),
    ],
)
def test_what_it_declares(config: str, truncation: float, trained_on: tuple[str, ...], deterministic: bool) -> None:
    made = kinds.anonymizers.create("deepprivacy2", config=config, truncation_value=truncation)
    assert (made.trained_on, made.deterministic) == (trained_on, deterministic)
    assert "Apache-2.0" in made.licence and "2023" in made.citation


def test_fingerprint_counts_what_matters(
    make: Callable[..., adapter.DeepPrivacy2], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkout, tmp_path / "repo")
    shutil.copytree(checkout.parent / "weights", tmp_path / "weights")
    here = {"repo": str(tmp_path / "repo"), "weights": str(tmp_path / "weights")}
    first = make().fingerprint
    assert make(**here, timeout=5, startup=5).fingerprint == first  # where it lies and how long it may take do not count
    assert make(config="configs/anonymizers/face.py").fingerprint == first
    seen = {first}
    for params in (
        {"truncation_value": 0.5},
        {"detections": "suite"},
        {"device": "auto"},
        {"config": "traditional/face/maskout.py"},
    ):
        seen.add(make(**params).fingerprint)
    (tmp_path / "weights" / adapter.DSFD.file).write_bytes(b"another detector")
    seen.add(make(**here).fingerprint)
    (tmp_path / "repo" / "dp2" / "utils.py").write_text("# changed and not committed\n")
    seen.add(make(**here).fingerprint)
    monkeypatch.setattr(program.Environment, "identity", lambda _: "python==3.9.0\ntorch==9")
    seen.add(make().fingerprint)
    assert len(seen) == 8


# ---------------------------------------------------------------------------------------------------- environments


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return path


@posix
def test_environments_by_name(
    make: Callable[..., adapter.DeepPrivacy2], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("prefix", "dp2"):
        _script(
            tmp_path / "envs" / kind / "bin" / "python",
            f"import os, sys; os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])",
        )
    conda = _script(tmp_path / "bin" / "conda", f'print(\'{{"envs": ["{tmp_path / "envs" / "dp2"}"]}}\')')
    monkeypatch.setenv("CONDA_EXE", str(conda))
    found = {e: make(python="", environment=e)._where() for e in (f"uv:{tmp_path / 'envs' / 'prefix'}", "conda:dp2")}
    assert [e.python for e in found.values()] == [tmp_path / "envs" / n / "bin" / "python" for n in ("prefix", "dp2")]
    assert statuses(make(python="", environment="conda:dp2").anonymize(items(NORMAL))) == ["ok"]
    with pytest.raises(MissingError, match=r"no environment 'other' \(it has: dp2\)"):
        make(python="", environment="conda:other").load()
    with pytest.raises(MissingError, match="no Python environment in"):
        make(python="", environment=f"uv:{tmp_path}").load()
    with pytest.raises(MissingError, match="no interpreter"):
        make(python=str(tmp_path / "python")).load()
    monkeypatch.setenv(adapter.PYTHON_ENV, sys.executable)
    assert make(python="")._where().python == Path(sys.executable)


#: Does what the engine would do, without a container: paths inside become paths outside.
ENGINE = """
    import os, subprocess, sys
    log, words = os.environ["ENGINE_LOG"], sys.argv[1:]
    with open(log, "a") as file:
        print(*words, sep="\\x1f", file=file)
    if words[0] == "kill" or words[:2] == ["image", "inspect"]:
        if "nowhere" in words: sys.exit("No such image: nowhere")
        print("sha256:0123")
        sys.exit()
    image = words.index("the/image:1")
    options, inner = words[1:image], words[image + 1 :]
    mounts = dict(reversed(o.split(":")[:2]) for flag, o in zip(options, options[1:]) if flag == "-v")
    def outside(text):
        for inside in sorted(mounts, key=len, reverse=True):
            text = text.replace(inside, mounts[inside])
        return text
    variables = dict(o.split("=", 1) for flag, o in zip(options, options[1:]) if flag == "-e")
    os.chdir(mounts["/program"])
    # TORCH_HOME holds a mount point; stand in for it by a folder with a link
    home = os.path.join(mounts["/exchange"], "torch")
    os.makedirs(os.path.join(home, "hub"))
    os.symlink(mounts["/torch_home/hub/checkpoints"], os.path.join(home, "hub", "checkpoints"))
    variables = {**{k: outside(v) for k, v in variables.items()}, "TORCH_HOME": home, "PATH": os.environ["PATH"]}
    os.execve(sys.executable, [sys.executable, *map(outside, inner)], variables)
"""


@posix
@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_containers(
    make: Callable[..., adapter.DeepPrivacy2], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    _script(tmp_path / "bin" / engine, ENGINE)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ENGINE_LOG", str(tmp_path / "log"))
    program._image_id.cache_clear()
    anonymizer = make(python="", environment=f"{engine}:the/image:1", timeout=1.0)
    assert statuses(anonymizer.anonymize(items(NORMAL, HANG))) == ["ok", "failed"]
    assert anonymizer.fingerprint != make().fingerprint
    calls = [line.split("\x1f") for line in (tmp_path / "log").read_text().splitlines()]
    start = calls[0]
    assert start[:5] == ["run", "--rm", "-i", "--name", start[4]]
    for option in (["--network", "none"], ["-v", f"{checkout}:/program:ro"], ["--entrypoint", "python3"]):
        assert any(start[i : i + 2] == option for i in range(len(start))), option
    assert ["kill", start[4]] in calls  # killing the client would leave the container at work
    assert "--gpus" not in start and "nvidia.com/gpu=all" not in start
    with pytest.raises(MissingError, match="does not have the image nowhere"):
        _ = make(python="", environment=f"{engine}:nowhere").fingerprint
    launch = make(python="", environment=f"{engine}:the/image:1", device="cuda")._launch(tmp_path)
    assert ("--gpus" if engine == "docker" else "nvidia.com/gpu=all") in launch.command


def test_containers_without_an_engine(
    make: Callable[..., adapter.DeepPrivacy2], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="podman is not installed"):
        make(python="", environment="podman:x").load()


def test_our_interpreter_does_not_lead_theirs_astray(
    make: Callable[..., adapter.DeepPrivacy2], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('the wrong torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert statuses(make().anonymize(items(NORMAL))) == ["ok"]


# ---------------------------------------------------------------------------------------------- making one


def test_commands_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter.shutil, "which", lambda name: str(name) if "python" in str(name) else None)
    commands = adapter.environment_commands(tmp_path / "env", sources={"tops": tmp_path / "t"})
    assert commands[0] == ("python3.9", "-m", "venv", str(tmp_path / "env"))
    words = {w for c in commands for w in c}
    assert {*adapter.TORCH, "scipy==1.7.1", "setuptools==59.5.0", str(tmp_path / "t")} <= words
    assert (
        "git+https://github.com/facebookresearch/detectron2@96c752ce821a3340e27edd51c28a00665dd32a30"
        "#subdirectory=projects/DensePose"
    ) in words
    monkeypatch.setattr(adapter.shutil, "which", lambda name: "/opt/uv" if name == "uv" else None)
    assert adapter.environment_commands(tmp_path, "3.8")[0][:5] == ("/opt/uv", "venv", "--seed", "--python", "3.8")
    monkeypatch.setattr(adapter.shutil, "which", lambda name: None)
    with pytest.raises(MissingError, match=r"no Python 3\.9"):
        adapter.environment_commands(tmp_path)
    with pytest.raises(InputError, match="no such source: topz"):
        adapter.environment_commands(tmp_path, sources={"topz": tmp_path})


def test_making_an_environment(checkout: Path, tmp_path: Path) -> None:
    """The steps themselves are real commands; here few and quick ones."""
    folder, shown = tmp_path / "env", []
    steps = [
        (sys.executable, "-m", "venv", "--without-pip", str(folder)),
        (str(folder / "bin" / "python"), "-c", "import this"),
    ]
    with pytest.raises(InputError, match="needs your consent") as caught:
        adapter.create_environment(folder, checkout, consent=False, commands=steps)
    assert "-m venv" in caught.value.remedy and not folder.exists()
    python = adapter.create_environment(folder, checkout, consent=True, commands=steps, show=shown.append)
    assert python.is_file() and len(shown) == 2
    with pytest.raises(InputError, match="already there"):
        adapter.create_environment(folder, checkout, consent=True, commands=steps)
    broken = [(sys.executable, "-c", "import sys; sys.exit('the index is down')")]
    with pytest.raises(EnvironmentFault, match=r"exit code 1.*the index is down"):
        adapter.create_environment(tmp_path / "other", checkout, consent=True, commands=broken)
    with pytest.raises(MissingError, match="no checkout"):
        adapter.create_environment(tmp_path / "other", tmp_path, consent=True, commands=steps)


def test_command_line(checkout: Path, tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deidbench.anonymizers.external", *words], capture_output=True, text=True, check=False
        )

    done = call("deepprivacy2", "--create", str(tmp_path / "e"), "--repo", str(checkout), "--python", sys.executable)
    assert done.returncode == 2 and "--download" in done.stderr and adapter.TORCH[0] in done.stderr
    assert not (tmp_path / "e").exists()
    assert call("deepprivacy3").returncode == 2
    done = call("deepprivacy2", "--create", str(tmp_path / "e"), "--repo", str(tmp_path))
    assert done.returncode == 3 and "git clone" in done.stderr


# ------------------------------------------------------------------------------------------------- the real program


@pytest.fixture(scope="module")
def real() -> dict[str, str]:
    """Parameters for the real checkout in its real environment."""
    if adapter.REPO_ENV not in os.environ or adapter.PYTHON_ENV not in os.environ:
        pytest.skip(
            f"the real DeepPrivacy2 is not here: ${adapter.REPO_ENV} names a checkout, ${adapter.PYTHON_ENV} its interpreter"
        )
    return {"repo": os.environ[adapter.REPO_ENV], "python": os.environ[adapter.PYTHON_ENV], "device": "cpu"}


@pytest.fixture(scope="module")
def portraits(orl_folder: Path) -> list[Item]:
    import cv2

    images = [np.ascontiguousarray(cv2.imread(str(orl_folder / f"s{p}" / "1.pgm"))[..., ::-1]) for p in (1, 2, 3)]
    return [Item(f"s{k}", image, (Face(Box(12.3, 20.7, 80.1, 105.2)),), seed=k) for k, image in enumerate(images)]


@pytest.mark.parametrize("method", ["gaussian", "maskout"])
def test_real_traditional_configs(real: dict[str, str], portraits: list[Item], tmp_path: Path, method: str) -> None:
    """The real program end to end but for its detector: no weights are needed."""
    made = kinds.anonymizers.create(
        "deepprivacy2", **real, config=f"traditional/face/{method}.py", detections="suite", weights=str(tmp_path)
    )
    made.load()
    results = made.anonymize(portraits)
    contract.well_formed(portraits, results)
    for item, result in zip(portraits, results, strict=True):
        assert result.status is Status.OK, result.reason
        changed = (result.image != item.image).any(axis=2)
        box = changed[21:105, 12:80]
        assert box.mean() > 0.9 and box.sum() == changed.sum()  # the box and nothing but the box
        if method == "maskout":
            assert np.ptp(result.image[23:103, 14:78]) <= 1  # its crop is resized: the rim may carry a level
    contract.repeatable(made, portraits[:2])
    contract.seeds_matter_as_declared(made, portraits[0])
    made.close()


@pytest.mark.slow
def test_real_generator_with_random_weights(real: dict[str, str], portraits: list[Item], tmp_path: Path) -> None:
    """The real 256 px generator (43 million parameters), its checkpoint loading and MD5 check; only the values are random."""
    shutil.copytree(real["repo"], tmp_path / "repo", ignore=shutil.ignore_patterns(".git", "media"))
    (tmp_path / "weights").mkdir()
    code = f"""
        import hashlib, pathlib, re, sys
        sys.path.insert(0, "")
        import torch
        from dp2 import utils
        from tops.config import instantiate
        path = pathlib.Path("configs/fdf/stylegan.py")
        torch.manual_seed(0)
        generator = instantiate(utils.load_config(path).generator)
        text = path.read_text()
        file = pathlib.Path({str(tmp_path / "weights")!r}, re.search('model_url = "(.*)"', text)[1].rsplit("/", 1)[1])
        torch.save({{"EMA_generator": generator.state_dict()}}, file)
        path.write_text(re.sub("[0-9a-f]{{32}}\\"$", hashlib.md5(file.read_bytes()).hexdigest() + '"', text.rstrip()))
    """
    subprocess.run(
        [real["python"], "-c", textwrap.dedent(code)],
        cwd=tmp_path / "repo",
        check=True,
        env={**os.environ, "BASE_OUTPUT_DIR": str(tmp_path)},
    )
    params = {**real, "repo": str(tmp_path / "repo"), "weights": str(tmp_path / "weights"), "detections": "suite"}
    for truncation in (0.0, 0.7):
        made = kinds.anonymizers.create("deepprivacy2", **params, truncation_value=truncation)
        made.load()
        results = made.anonymize(portraits[:2])
        contract.well_formed(portraits[:2], results)
        for item, result in zip(portraits, results, strict=False):
            assert result.status is Status.OK, result.reason
            changed = (result.image != item.image).any(axis=2)
            assert changed[21:105, 12:80].mean() > 0.9 and changed[21:105, 12:80].sum() == changed.sum()
        contract.seeds_matter_as_declared(made, portraits[0])
        made.close()
