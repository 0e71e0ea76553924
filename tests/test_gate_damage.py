"""The gate on checkpoints that were damaged on purpose: real runs of GANonymization on the bundled faces.

``pytest -m slow tests/test_gate_damage.py -s`` prints what was found.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from deidbench import gate as g
from deidbench.records import read_run
from deidbench.runner import Options, run_suite
from deidbench.suite import load_suite

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "anonymizers" / "ganonymization" / "ganonymization-128.safetensors"
MARGINS = ROOT / "results" / "reference" / "margins.toml"
SUITE = """\
[suite]
name = "candidate"
extends = "demo"
inherit_methods = false

[throughput]
images = 0

[[methods]]
name = "original"
control = true

[[methods]]
name = "blackout"
control = true

[[methods]]
name = "ganonymization"
params = {{ checkpoint = "{checkpoint}" }}
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, store: Path):
    """A run of the bundled faces (or of ``data``) with a checkpoint."""

    def run(checkpoint: Path | str = "", data: Path | None = None):
        folder = tmp_path_factory.mktemp("run")
        (folder / "candidate.toml").write_text(SUITE.format(checkpoint=checkpoint))
        changes = ["dataset.name=folder", f"dataset.params.root={str(data)!r}"] if data else []
        suite = load_suite(folder / "candidate.toml", changes)
        run_suite(suite, folder / "out", Options(cache=store, quiet=True))
        return read_run(folder / "out")

    return run


@pytest.fixture(scope="module")
def baseline(run_of):
    return run_of()


def noisy(path: Path, dose: float) -> Path:
    """The shipped checkpoint with Gaussian noise on every weight, ``dose`` standard deviations of its layer."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    with safe_open(SHIPPED, "np") as file:
        weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for k, w in weights.items():
        if w.ndim > 1:
            x = w.astype(np.float32)
            weights[k] = (x + dose * x.std() * rng.standard_normal(x.shape).astype(np.float32)).astype(w.dtype)
    save_file(weights, path, metadata=metadata)
    return path


def told(name: str, found: g.Gate) -> g.Gate:
    print(f"{name}: exit {found.exit_code}, {found.sentence}")  # noqa: T201
    for v in found.of("fail"):
        print(f"    {v.name}: {v.words}")  # noqa: T201
    return found


def test_the_same_checkpoint_passes(baseline, run_of, tmp_path):
    """Under another name on disk: the outputs are the same pictures."""
    twin = run_of(shutil.copy(SHIPPED, tmp_path / "twin.safetensors"))
    found = told("the same", g.gate(baseline, twin, g.load_margins(MARGINS), methods=["ganonymization"]))
    assert found.exit_code == 0
    assert all(v.identical for v in found.verdicts)


def test_noise_fails_from_some_dose_on_and_the_metric_is_named(baseline, run_of, tmp_path):
    codes, failed = [], []
    for dose in (0.05, 0.2, 0.5, 1.0):
        candidate = run_of(noisy(tmp_path / f"noise-{dose}.safetensors", dose))
        found = told(f"noise {dose}", g.gate(baseline, candidate, g.load_margins(MARGINS), methods=["ganonymization"]))
        codes.append(found.exit_code)
        failed.append({v.metric for v in found.of("fail")})
    assert codes[0] == 0
    assert codes[-2:] == [1, 1]
    assert codes == sorted(codes)
    assert "quality.ssim_face" in failed[-1]
    assert "geometry.nme_facemesh" in failed[-1]
    assert failed[-1] >= failed[-2]


def test_a_fiftieth_of_the_training_fails(baseline, run_of, tmp_path, orl_folder):
    """About 2 % of the shipped checkpoint's 5,397 steps."""
    from deidbench.training import load_recipe, train_ganonymization

    result = train_ganonymization(
        orl_folder, tmp_path / "training", load_recipe("celeba-hq-128"), {"epochs": 1}, role="", quiet=True,
        cache=tmp_path / "faces",
    )  # fmt: skip
    assert 80 <= result.steps <= 120
    candidate = run_of(result.best_checkpoint)
    found = told(f"{result.steps} steps", g.gate(baseline, candidate, g.load_margins(MARGINS), methods=["ganonymization"]))
    assert found.exit_code == 1
    assert {"quality.ssim_face", "geometry.nme_facemesh"} & {v.metric for v in found.of("fail")}


def test_five_persons_decide_nothing(run_of, tmp_path, orl_folder):
    for p in (1, 7, 14, 22, 35):
        shutil.copytree(orl_folder / f"s{p}", tmp_path / "five" / f"p{p}")
    old, new = run_of(data=tmp_path / "five"), run_of(noisy(tmp_path / "n.safetensors", 0.2), data=tmp_path / "five")
    found = told("five persons", g.gate(old, new, g.load_margins(MARGINS), methods=["ganonymization"]))
    assert found.exit_code == 2
    assert all(v.persons_needed >= 20 for v in found.verdicts if v.difference is not None)
    assert all(v.outcome == "inconclusive" for v in found.verdicts)
    # but a checkpoint is no worse than itself, however few look at it
    assert g.gate(old, run_of(data=tmp_path / "five"), g.load_margins(MARGINS), methods=["ganonymization"]).exit_code == 0
