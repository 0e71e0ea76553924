"""Ours against loops over DeepFace, the same network in both, in one run: ``pytest tests/benchmarks/test_bench_deepface.py -m slow -s``.

What is given is a folder of originals and one of anonymised images.  Ours is ``deidbench run`` from a cold start: it reads both, looks for
the faces, aligns and embeds them, and leaves rank-1 and EER with their intervals.  The loop calls ``DeepFace.verify`` for every pair of
anonymised images, as scripts do; it is spared what it would cost it most: crops are given, so nothing is searched or aligned, models stay
loaded, and it works out no figure.  Its time is pairs x median seconds a pair (of pairs drawn at random, after one to warm up).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PERSONS, EACH = 20, 5
TIMED_PAIRS = 40
#: Our recogniser -> DeepFace's name of the same network.
NETWORKS = {"dlib": "Dlib", "sface": "SFace"}


@pytest.fixture(scope="module")
def deepface(tmp_path_factory: pytest.TempPathFactory):
    """DeepFace with the weight files that we use."""
    from deidbench.metrics.models import _onnx, dlib_resnet, sface

    home = tmp_path_factory.mktemp("deepface")
    folder = home / ".deepface" / "weights"
    folder.mkdir(parents=True)
    (folder / dlib_resnet.WEIGHTS.filename).symlink_to(dlib_resnet.WEIGHTS.open())
    # the block-quantised weights as plain numbers: the same file as ours, made readable for DeepFace's session
    (folder / sface.FP32.filename).write_bytes(_onnx.folded(sface.INT8.open(), "data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFACE_HOME", str(home))
        patch.setenv("DEEPFACE_BACKEND_ENGINE", "onnx")
        patch.setenv("DEEPFACE_LOG_LEVEL", "40")
        from deepface import DeepFace

        yield DeepFace


def originals(name: str, orl_folder: Path) -> dict[str, list[Path]]:
    """Images of PERSONS persons."""
    if name == "orl":
        return {f"s{p}": [orl_folder / f"s{p}" / f"{i}.pgm" for i in range(1, EACH + 1)] for p in range(1, PERSONS + 1)}
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "lfw"
    if not root.is_dir():
        pytest.skip("the LFW images of ../shared/data are not here")
    persons: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.jpg")):
        persons.setdefault(path.name.rsplit("_", 1)[0], []).append(path)
    taken: dict[str, list[Path]] = {}
    for person, files in sorted(persons.items(), key=lambda kv: -len(kv[1])):  # few persons have five
        if left := PERSONS * EACH - sum(map(len, taken.values())):
            taken[person] = files[: min(EACH, left)]
    assert sum(map(len, taken.values())) == PERSONS * EACH
    return taken


@pytest.fixture(scope="module", params=["orl", "lfw"])
def folders(request: pytest.FixtureRequest, orl_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """(name, originals, anonymised)."""
    from deidbench import kinds
    from deidbench.faces import FaceFinder
    from deidbench.images import read_image, write_image
    from deidbench.types import Item

    base = tmp_path_factory.mktemp(request.param)
    method, finder = kinds.anonymizers.create("pixelate", block=0.05), FaceFinder()
    for person, files in originals(request.param, orl_folder).items():
        for where in ("clear", "anonymised"):
            (base / where / person).mkdir(parents=True)
        for path in files:
            shutil.copy(path, base / "clear" / person / path.name)
            image = read_image(path)
            [out] = method.anonymize([Item(path.name, image, tuple(finder.find(image)), 0)])
            assert out.image is not None
            write_image(base / "anonymised" / person / f"{path.stem}.png", out.image)
    return request.param, base / "clear", base / "anonymised"


def crops_of(folder: Path, recognizer) -> list[np.ndarray]:
    """What the recogniser sees of the images of a folder, RGB; an image without a face is left out."""
    from deidbench.faces import FaceFinder, align
    from deidbench.images import read_image

    finder, out = FaceFinder(), []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        image = read_image(path)
        if faces := finder.find(image, thorough=False):
            out.append(align(image, faces[0], recognizer.crop))
    return out


def suite_of(recognizer: str, clear: Path, anonymised: Path, path: Path) -> Path:
    text = f"""
classifiers = []
[suite]
name = "deepface-loop"
protocol = "deidbench-v3"
extends = "deidbench-v3"
inherit_methods = false
[dataset]
name = "folder"
params = {{ root = {json.dumps(str(clear))} }}
[[methods]]
name = "folder"
params = {{ root = {json.dumps(str(anonymised))} }}
[[recognizers]]
name = "{recognizer}"
[[metrics]]
name = "reid"
params = {{ attackers = ["ignorant", "lazy-informed"] }}
[throughput]
images = 0
[report]
samples = 0
"""
    path.write_text(text, "utf-8")
    return path


def plain_environment(**more: str) -> dict[str, str]:
    """As a user's: every library may take the threads that it likes."""
    held = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**{k: v for k, v in os.environ.items() if k not in held}, **more}


@pytest.mark.parametrize("network", NETWORKS)
def test_evaluation_is_10_times_as_fast_as_a_loop_over_pairs(folders, network, deepface, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    import pandas as pd

    from deidbench import kinds

    name, clear, anonymised = folders
    suite = suite_of(network, clear, anonymised, tmp_path / "suite.toml")
    command = [
        sys.executable,
        "-m",
        "deidbench.cli",
        "run",
        str(suite),
        "--out",
        str(tmp_path / "run"),
        "--no-report",
        "--quiet",
    ]
    seconds = []
    for _ in ("cold", "warm"):
        start = time.perf_counter()
        subprocess.run([*command, "--cache", str(tmp_path / "cache")], check=True, env=plain_environment())
        seconds.append(time.perf_counter() - start)
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert record["run"]["computed"] == {}, "the warm run computed something"
    rows = pd.read_parquet(tmp_path / "run" / "rows.parquet")
    lazy = rows[rows.attacker == "lazy-informed"]
    figures = {m: lazy[lazy.metric == m].iloc[0] for m in ("reid.rank1", "reid.eer")}
    for m, row in figures.items():
        assert row.lo <= row.value <= row.hi, m

    recognizer = kinds.recognizers.create(network)
    crops = [np.ascontiguousarray(c[..., ::-1]) for c in crops_of(anonymised, recognizer)]  # DeepFace takes BGR
    rng = np.random.default_rng(0)
    drawn = [rng.choice(len(crops), 2, replace=False) for _ in range(TIMED_PAIRS + 1)]
    times = []
    for i, j in drawn:
        start = time.perf_counter()
        said = deepface.verify(
            crops[i], crops[j], model_name=NETWORKS[network], detector_backend="skip", enforce_detection=False, align=False
        )
        times.append(time.perf_counter() - start)
        assert np.isfinite(said["distance"])
    n = PERSONS * EACH
    pairs = n * (n - 1) // 2
    loop = pairs * float(np.median(times[1:]))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{name}, {network}: {n} images; deidbench run {seconds[0]:.1f} s (again, nothing to compute: {seconds[1]:.1f} s), "
            f"rank-1 {figures['reid.rank1'].value:.3f}, EER {figures['reid.eer'].value:.4f}; "
            f"DeepFace.verify {np.median(times[1:]) * 1000:.1f} ms a pair, {pairs} pairs {loop:.0f} s: {loop / seconds[0]:.1f} x\n"
        )
    assert loop >= 10 * seconds[0]


def test_embedding_is_3_times_as_fast_as_a_loop_over_represent(folders, deepface, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """dlib's network, which DeepFace has dlib compute; that of SFace, which both have ONNX Runtime compute, is timed beside it."""
    from deidbench import kinds
    from deidbench.executors import cores, limit_threads
    from deidbench.metrics.models.base import l2_normalise

    name, clear, _ = folders
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # conftest.py's; DeepFace's sessions take all cores
    limit_threads(cores())
    ratios = {}
    for network, theirs in NETWORKS.items():
        recognizer = kinds.recognizers.create(network)
        recognizer.load()
        crops = np.stack(crops_of(clear, recognizer)[:64])
        bgr = np.ascontiguousarray(crops[..., ::-1])

        def loop(bgr=bgr, theirs=theirs):  # type: ignore[no-untyped-def]
            return [
                deepface.represent(c, model_name=theirs, detector_backend="skip", enforce_detection=False, align=False)[0][
                    "embedding"
                ]
                for c in bgr
            ]

        ours_said, theirs_said = recognizer.embed(crops), l2_normalise(np.array(loop()[:8]))
        # their crops are resized and cut to 8 bits on the way; the network is the same
        assert (np.einsum("ij,ij->i", ours_said[:8], theirs_said) > 0.999).all()
        taken = {"ours": [], "loop": []}  # type: ignore[var-annotated]
        for _ in range(3):  # in turn, so that a machine that slows down slows both
            for who, work in (("ours", lambda r=recognizer, c=crops: r.embed(c)), ("loop", loop)):
                start = time.perf_counter()
                work()
                taken[who].append((time.perf_counter() - start) / len(crops))
        ratios[network] = float(np.median(np.array(taken["loop"]) / np.array(taken["ours"])))
        with capsys.disabled():
            sys.stdout.write(
                f"\n{name}, {network}: embed {1 / np.median(taken['ours']):.1f} faces/s, "
                f"DeepFace.represent {1 / np.median(taken['loop']):.1f} faces/s: {ratios[network]:.1f} x\n"
            )
    assert ratios["dlib"] >= 3
