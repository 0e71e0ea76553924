"""LPIPS, KID and the Frechet distance: against torchmetrics where it is installed, and cases known by construction."""

from __future__ import annotations

import importlib.util
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deidbench.errors import InputError, MissingError
from deidbench.kinds import classifiers, metrics
from deidbench.metrics.base import Protocol, Reading, Table
from deidbench.metrics.models.inception import FILENAME
from deidbench.metrics.perceptual import (
    Lpips,
    Perceptual,
    face_region,
    frechet,
    kernel_sums,
    kid_replicates,
    published_kid,
)
from deidbench.records import Row
from deidbench.types import Box, Face

Array = npt.NDArray[Any]
PROTOCOL = Protocol(replicates=500, curve_replicates=100, seed=3)


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DEIDBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def features(n: int, d: int = 6, seed: int = 0, shift: float = 0.0) -> Array:
    return (np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32)


def each(n: int) -> npt.NDArray[np.intp]:
    return np.arange(n)


# -- Frechet -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (5, 7, 12), (12, 30, 20), (2, 2, 3), (30, 4, 8)])
def test_frechet_is_the_formula(n: int, m: int, d: int) -> None:
    """With scipy's matrix root, which needs help where covariances are singular."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(size=(m, d)) + 1
    sx, sy = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    half = sqrtm(sx + 1e-14 * np.eye(d)).real  # Tr (Sx Sy)^(1/2) = Tr (Sx^(1/2) Sy Sx^(1/2))^(1/2)
    values = np.linalg.eigvalsh(half @ sy @ half).clip(0)
    want = float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx) + np.trace(sy) - 2 * np.sqrt(values).sum())
    assert frechet(x, y) == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert frechet(y, x) == pytest.approx(frechet(x, y), rel=1e-9)


def test_frechet_of_known_gaussians() -> None:
    x = features(50, 8).astype(np.float64)
    scale = float(np.sum(x.var(0)))
    assert frechet(x, x) == pytest.approx(0, abs=1e-10 * scale)
    assert frechet(x, x[::-1]) == pytest.approx(0, abs=1e-10 * scale)
    assert frechet(x, x + 3) == pytest.approx(8 * 9, rel=1e-9)  # a shift alone: its square
    spread = np.trace(np.cov(x.T))
    assert frechet(x, 2 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(spread, rel=1e-9)  # (2 - 1)^2 of the variance
    assert frechet(x, np.zeros((3, 8))) == pytest.approx(spread + (x.mean(0) ** 2).sum(), rel=1e-9)  # one point
    # N(0, a^2) and N(1, b^2) in one dimension: 1 + (a - b)^2
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (200_000, 1)), rng.normal(1, 3, (200_000, 1))
    assert frechet(a, b) == pytest.approx(5, abs=0.1)


def test_frechet_is_torchmetrics() -> None:
    needs("torchmetrics")
    import torch
    from torchmetrics.image.fid import _compute_fid

    x, y = features(300, 20).astype(np.float64), 1.5 * features(200, 20, 1).astype(np.float64) + 0.3
    parts = [t for z in (x, y) for t in (torch.from_numpy(z.mean(0)), torch.from_numpy(np.cov(z.T)))]
    assert frechet(x, y) == pytest.approx(float(_compute_fid(*parts)), rel=1e-8)


# -- KID ---------------------------------------------------------------------------------------------------------------
def kid_by_hand(x: Array, who_x: Array, y: Array, who_y: Array, between: bool) -> float:
    """Loops.  between: pairs of different persons, else of different images (all in the mixed term)."""

    def mean(u: Array, who_u: Array, v: Array, who_v: Array, one_set: bool) -> float:
        found = []
        for i in range(len(u)):
            for j in range(len(v)):
                if who_u[i] == who_v[j] if between else one_set and i == j:
                    continue
                found.append((float(np.dot(u[i].astype(float), v[j].astype(float))) / u.shape[1] + 1) ** 3)
        return float(np.mean(found))

    return mean(x, who_x, x, who_x, True) + mean(y, who_y, y, who_y, True) - 2 * mean(x, who_x, y, who_y, False)


def test_kid_by_hand() -> None:
    x, y = features(11), features(9, seed=1, shift=0.5)
    who_x, who_y = np.arange(11) % 5, np.arange(9) ** 2 % 5
    sums = kernel_sums(x, who_x, y, who_y, 6)  # the sixth has no image
    assert published_kid(sums) == pytest.approx(kid_by_hand(x, who_x, y, who_y, False), rel=1e-10)
    got = kid_replicates(sums, np.ones((1, 6)))[0]
    assert got == pytest.approx(kid_by_hand(x, who_x, y, who_y, True), rel=1e-10)
    # a replicate: persons 0 and 1 twice, 2 once, the others never; a person never meets a copy of itself
    weights = np.array([[2, 2, 1, 0, 0, 1]])
    again = [np.concatenate([np.flatnonzero(w == p) for p in (0, 0, 1, 1, 2)]) for w in (who_x, who_y)]
    want = kid_by_hand(x[again[0]], who_x[again[0]], y[again[1]], who_y[again[1]], True)
    assert kid_replicates(sums, weights)[0] == pytest.approx(want, rel=1e-10)
    assert math.isnan(kid_replicates(sums, np.array([[5, 0, 0, 0, 0, 0]]))[0])


def test_kid_in_pieces_is_kid_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(50), features(40, seed=1)
    who_x, who_y = np.arange(50) % 7, np.arange(40) % 7
    whole = kernel_sums(x, who_x, y, who_y, 7)
    monkeypatch.setattr("deidbench.metrics.perceptual._ROWS", 3)
    for a, b in zip(whole, kernel_sums(x, who_x, y, who_y, 7), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_kid_of_known_sets() -> None:
    x = features(60)
    same = kernel_sums(x, each(60), x, each(60), 60)
    assert kid_replicates(same, np.ones((1, 60)))[0] == pytest.approx(0, abs=1e-12)
    assert published_kid(same) < 0, "each image meets itself in the mixed term"
    # unbiased: of two samples of one distribution 0 on average, though each alone is not
    found = [
        kid_replicates(
            kernel_sums(features(30, seed=2 * s), each(30), features(30, seed=2 * s + 1), each(30), 30), np.ones((1, 30))
        )[0]
        for s in range(200)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(200)
    far = kernel_sums(x, each(60), features(60, seed=1, shift=1), each(60), 60)
    assert kid_replicates(far, np.ones((1, 60)))[0] > 1


def test_published_kid_is_torchmetrics() -> None:
    needs("torchmetrics")
    import torch
    from torchmetrics.image.kid import poly_mmd

    x, y = features(80, 30), features(80, 30, 1, 0.2)
    got = published_kid(kernel_sums(x, each(80), y, each(80), 80))
    want = float(poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double()))
    assert got == pytest.approx(want, rel=1e-9)


def test_the_interval_of_kid_covers() -> None:
    """Truth from a large sample; persons with three images each around a place of their own."""
    d, persons = 4, 25

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array, Array]:
        place = np.repeat(rng.normal(size=(n, d)), 3, axis=0)
        x = place + 0.5 * rng.normal(size=place.shape)
        return x, 0.7 * place + 0.5 * rng.normal(size=place.shape) + 0.6, np.repeat(np.arange(n), 3)

    x, y, who = draw(np.random.default_rng(0), 1500)
    truth = kid_replicates(kernel_sums(x, who, y, who, 1500), np.ones((1, 1500)))[0]
    hits, trials = 0, 150
    for s in range(trials):
        x, y, who = draw(np.random.default_rng(s + 1), persons)
        sums = kernel_sums(x, who, y, who, persons)
        interval = Perceptual._kid_interval(sums, [f"{p:03}" for p in range(persons)], Protocol(replicates=400, seed=s))
        assert interval.lo is not None and interval.hi is not None
        hits += interval.lo <= truth <= interval.hi
    assert hits / trials >= 0.88, hits / trials


# -- rows --------------------------------------------------------------------------------------------------------------
def table(n: int, method: str, found: dict[str, Reading] | None = None, *, persons: int = 5, **more: Any) -> Table:
    empty = np.zeros(n, bool)
    values: dict[str, Any] = {
        "dataset": "toy",
        "method": method,
        "ids": np.array([f"{i:03}" for i in range(n)]),
        "subjects": np.array([f"p{i % persons}" for i in range(n)]),
        "status": np.full(n, "ok"),
        "withheld": empty,
        "fta": empty,
        "readings": found or {},
        **more,
    }
    return Table(**values)


def reading(x: Array, task: str = "features") -> Reading:
    return Reading(task, (), np.zeros((len(x), 0), np.float32), x)


def rows(clear: Table, after: Table, **params: Any) -> dict[tuple[str, str], Row]:
    found = Perceptual(**params).score(clear, after, PROTOCOL)
    assert not found.curves
    assert all(r.metric in {q.name for q in Perceptual.quantities} for r in found.rows)
    return {(r.metric, r.convention): r for r in found.rows}


KID, FRECHET = "perceptual.kid", "perceptual.frechet"


def test_rows_of_sets() -> None:
    x, y = features(40), features(40, seed=1, shift=0.4)
    clear, after = table(40, "clear", {"inception": reading(x)}), table(40, "blur", {"inception": reading(y)})
    got = rows(clear, after)
    who = np.arange(40) % 5
    row = got[KID, "headline"]
    assert row.value == pytest.approx(kid_by_hand(x, who, y, who, True), rel=1e-9)
    assert row.lo is not None and row.hi is not None and row.lo < row.value < row.hi
    assert "500 replicates" in row.ci_method
    assert f"{kid_by_hand(x, who, y, who, False):.6g}" in row.note
    assert (row.recognizer, row.label, row.n_images, row.n_persons) == ("inception", "on inception features", 40, 5)
    row = got[FRECHET, "headline"]
    assert row.value == pytest.approx(frechet(x, y)) and row.lo is None and "biased" in row.ci_reason
    assert "40 anonymised against 40 clear images" in row.note and "prefer KID" in row.note
    assert "not comparable" not in row.note
    assert got[KID, "without_fta"] == replace(got[KID, "headline"], convention="without_fta")
    again = rows(clear, after)
    assert got == again, "same seed, same figures"
    # the order of the images is nobody's business
    order = np.random.default_rng(0).permutation(40)
    for key, row in rows(clear.take(order), after.take(order)).items():
        assert row.value == pytest.approx(got[key].value, rel=1e-9, nan_ok=True) if row.value is not None else True
        if row.lo is not None:
            assert (row.lo, row.hi) == pytest.approx((got[key].lo, got[key].hi), rel=1e-9)


def test_equal_sets_and_rank() -> None:
    x = features(40, 60)
    clear = table(40, "clear", {"inception": reading(x)})
    got = rows(clear, replace(clear, method="original"))
    assert got[KID, "headline"].value == pytest.approx(0, abs=1e-9)
    assert got[KID, "headline"].lo is None and "no variance" in got[KID, "headline"].ci_reason
    assert got[FRECHET, "headline"].value == pytest.approx(0, abs=1e-9)
    assert "rank-deficient" in got[FRECHET, "headline"].note


def test_withheld_and_faceless_images() -> None:
    x, y = features(40), features(40, seed=1, shift=0.4)
    withheld, fta = np.arange(40) < 4, (np.arange(40) >= 4) & (np.arange(40) < 10)
    y[withheld] = np.nan
    clear = table(40, "clear", {"inception": reading(x)}, fta=np.arange(40) == 39)
    after = table(40, "m", {"inception": reading(y)}, withheld=withheld, fta=fta)
    got = rows(clear, after)
    who = np.arange(40) % 5
    assert got[KID, "headline"].value == pytest.approx(kid_by_hand(x, who, y[4:], who[4:], True), rel=1e-9)
    assert (got[KID, "headline"].n_images, got[KID, "headline"].n_failed, got[KID, "headline"].n_fta) == (36, 4, 6)
    assert "4 images are not in the anonymised set" in got[KID, "headline"].note
    assert got[KID, "without_fta"].value == pytest.approx(kid_by_hand(x[:39], who[:39], y[10:], who[10:], True), rel=1e-9)
    assert got[FRECHET, "without_fta"].value == pytest.approx(frechet(x[:39], y[10:]))


def test_nothing_and_nearly_nothing() -> None:
    x = features(6)
    clear = table(6, "clear", {"inception": reading(x)})
    nothing = reading(np.full_like(x, np.nan))
    got = rows(clear, table(6, "m", {"inception": nothing}, withheld=np.ones(6, bool)))
    for row in got.values():
        assert row.value is None and row.reason == "nothing was released" and row.lo is None and row.n_images == 0
    one = x.copy()
    one[1:] = np.nan
    got = rows(clear, table(6, "m", {"inception": reading(one)}, withheld=np.arange(6) > 0))
    assert got[KID, "headline"].value is None and "fewer than two" in got[KID, "headline"].reason
    alone = rows(
        table(6, "clear", {"inception": reading(x)}, persons=1), table(6, "m", {"inception": reading(2 * x)}, persons=1)
    )
    assert alone[KID, "headline"].value is None and "one person" in alone[KID, "headline"].reason
    assert alone[FRECHET, "headline"].value is not None
    two = rows(
        table(2, "clear", {"inception": reading(x[:2])}, persons=2), table(2, "m", {"inception": reading(x[2:4])}, persons=2)
    )
    assert two[KID, "headline"].value is not None


def test_the_source_of_features_is_named() -> None:
    x, y = features(20), features(20, seed=1)
    own = {"own": reading(x, "attributes")}
    clear, after = table(20, "clear", own), table(20, "m", {"own": reading(y, "attributes")})
    got = rows(clear, after)[KID, "headline"]
    assert got.value is None and "inception" in got.reason and FILENAME in got.reason
    got = rows(clear, after, features="other")[KID, "headline"]
    assert got.value is None and "'other'" in got.reason and "own" in got.reason
    got = rows(clear, after, features="own")[FRECHET, "headline"]
    assert got.value == pytest.approx(frechet(x, y)) and got.label == "on own features" and got.recognizer == "own"
    assert "not comparable with published figures" in got.note
    both = table(20, "clear", {**own, "inception": reading(2 * x)})
    assert rows(both, replace(both, method="m"), features="own")[KID, "headline"].recognizer == "inception"
    flat = table(20, "clear", {"own": reading(np.zeros((20, 0), np.float32), "attributes")})
    assert "gives no features" in rows(flat, flat, features="own")[KID, "headline"].reason
    with pytest.raises(InputError, match="same images"):
        Perceptual().score(clear, after.take(np.arange(20)[::-1]), PROTOCOL)


def test_lpips_rows() -> None:
    column = np.array([0.1, 0.2, 0.3, np.nan, 0.5, np.nan])
    withheld = np.arange(6) == 5
    clear = table(6, "clear", persons=3)
    row = rows(clear, table(6, "m", persons=3, measures={"lpips_face": column}, withheld=withheld))["perceptual.lpips", ""]
    assert row.value == pytest.approx(0.275) and row.n_images == 4 and row.n_persons == 3 and row.label == "alex"
    assert "1 images have no face region" in row.note and "1 withheld" in row.note
    assert row.lo is not None and row.hi is not None and row.lo <= row.value <= row.hi
    assert row.higher_is_better is False


def test_lpips_without_weights_says_what_it_needs(orl_face: np.ndarray) -> None:
    metric = metrics.create("perceptual")
    value = metric.measure(orl_face, orl_face, Face(Box(25, 30, 65, 80)))
    assert math.isnan(value["lpips_face"])
    clear = table(3, "clear", measures={"lpips_face": np.full(3, np.nan)})
    row = rows(clear, replace(clear, method="m"))["perceptual.lpips", ""]
    assert row.value is None and row.lo is None
    installed = importlib.util.find_spec("lpips") is not None
    assert ("alexnet-owt-7be5be79.pth" if installed else "pip install lpips") in row.reason
    assert row.reason == metric.missing()  # type: ignore[attr-defined]
    assert "/" not in row.reason.replace("torch.hub", ""), "a result names no folder of this machine"
    assert metric.params()["weights"] == ""
    with pytest.raises(InputError, match="net"):
        metrics.create("perceptual", net="resnet")
    with pytest.raises(InputError, match="size"):
        metrics.create("perceptual", size=8)


SUITE = """\
[suite]
name = "small"
extends = "deidbench-v1"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[protocol]
replicates = 200
curve_replicates = 100

[[recognizers]]
name = "sface"

[throughput]
images = 0

[report]
samples = 0

[[classifiers]]
name = "inception"
params = {{ path = "{inception}" }}

[[metrics]]
name = "perceptual"
params = {{ path = "{alexnet}" }}

[[methods]]
name = "original"
control = true

[[methods]]
name = "blackout"
control = true

[[methods]]
name = "pixelate"
"""


def test_a_whole_run(tmp_path: Path, orl_folder: Path, inception: Path, alexnet: Path) -> None:
    """The order that must hold whatever the networks' weights: the original is nearest, black farthest."""
    import shutil

    from deidbench.records import read_run
    from deidbench.runner import Options, run_suite
    from deidbench.suite import load_suite

    for person in range(1, 5):
        (tmp_path / "people" / f"p{person}").mkdir(parents=True)
        for image in (1, 2):
            shutil.copy(orl_folder / f"s{person}" / f"{image}.pgm", tmp_path / "people" / f"p{person}")
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(root=tmp_path / "people", inception=inception, alexnet=alexnet))
    result = run_suite(load_suite(path), tmp_path / "out", Options(workers=1, cache=tmp_path / "cache", quiet=True))
    assert result.failed == 0
    run = read_run(tmp_path / "out")
    mine = run.rows[run.rows.family == "perceptual"]
    assert len(mine) == 3 * 5
    head = mine[mine.convention != "without_fta"].set_index(["method", "metric"])["value"]
    for metric in ("perceptual.lpips", KID, FRECHET):
        assert head["original", metric] == pytest.approx(0, abs=1e-6)
        assert 1e-6 < head["pixelate", metric] < head["blackout", metric], metric
    conditional = mine[(mine.method == "blackout") & (mine.convention == "without_fta")]
    assert conditional.value.isna().all() and conditional.reason.str.len().gt(0).all()


# -- networks ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of torchvision's file."""
    needs("lpips")
    import torch
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "alexnet.pth"
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    return path


def test_lpips_is_the_librarys(alexnet: Path, orl_face: np.ndarray) -> None:
    import lpips
    import torch

    rng = np.random.default_rng(0)
    noisy = np.clip(orl_face + rng.normal(0, 30, orl_face.shape), 0, 255).astype(np.uint8)
    face = Face(Box(15, 25, 75, 95))
    metric = Perceptual(path=str(alexnet))
    assert metric.missing() == ""
    got = metric.measure(orl_face, noisy, face)["lpips_face"]
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(alexnet, weights_only=True)
    reference.net.load_state_dict({k: state["features." + k.split(".", 1)[1]] for k in reference.net.state_dict()})
    a, b = (face_region(z, face.box.scaled(1.3), 256) for z in (orl_face, noisy))
    assert a is not None and b is not None and max(a.shape) == 256
    with torch.no_grad():
        want = float(reference(lpips.im2tensor(a), lpips.im2tensor(b)))
    assert got == pytest.approx(want, abs=1e-6) and want > 1e-4
    assert metric.measure(orl_face, orl_face, face)["lpips_face"] == 0
    assert math.isnan(metric.measure(orl_face, noisy, None)["lpips_face"])
    assert math.isnan(metric.measure(orl_face, noisy, Face(Box(10, 10, 90, 15)))["lpips_face"]), "too thin"
    assert math.isnan(metric.measure(orl_face, noisy, Face(Box(500, 500, 600, 600)))["lpips_face"])
    assert pickle.loads(pickle.dumps(metric)).measure(orl_face, noisy, face)["lpips_face"] == got
    params = metric.params()
    assert len(params["weights"]) == 64 and params["library"].startswith("lpips") and "path" not in params
    if importlib.util.find_spec("torchmetrics"):
        from torchmetrics.functional.image.lpips import _LPIPS

        other = _LPIPS(net="alex", pnet_rand=True)
        other.net.load_state_dict(reference.net.state_dict())
        with torch.no_grad():  # it keeps zero activations away from 0 in another way
            assert float(other(lpips.im2tensor(a), lpips.im2tensor(b))) == pytest.approx(want, rel=0.02)


def test_lpips_files_that_do_not_fit(alexnet: Path, tmp_path: Path) -> None:
    import torch

    state = torch.load(alexnet, weights_only=True)
    path = tmp_path / "a.pth"
    for change, said in (
        ({"features.0.weight": torch.ones(2)}, "another shape"),
        ({"features.0.bias": torch.full((64,), float("nan"))}, "not finite"),
    ):
        torch.save({**state, **change}, path)
        with pytest.raises(InputError, match=rf"a\.pth.*{said}"):
            Lpips("alex", str(path)).load()
    torch.save({}, path)
    with pytest.raises(InputError, match=r"a\.pth"):
        Lpips("alex", str(path)).load()
    path.write_bytes(b"junk" * 30)
    with pytest.raises(InputError, match=r"a\.pth"):
        Lpips("alex", str(path)).load()
    with pytest.raises(MissingError, match=r"absent\.pth"):
        Lpips("alex", str(tmp_path / "absent.pth")).load()
    # under the published name, another content is found out
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(state, hub / "alexnet-owt-7be5be79.pth")
    assert Lpips().missing() == ""
    with pytest.raises(InputError, match="does not begin with 7be5be79"):
        Lpips().load()


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of torch-fidelity's file."""
    needs("torch_fidelity")
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("x", ["2048"])
    for part in network.modules():  # statistics of nothing would make all pictures look the same
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    network.train()(torch.randint(0, 256, (4, 3, 299, 299), dtype=torch.uint8))
    network.eval()
    path = tmp_path_factory.mktemp("w") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_features_are_the_librarys(inception: Path) -> None:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    c = classifiers.create("inception", path=str(inception))
    assert c.missing() == "" and c.task == "features" and c.labels == ()
    crops = np.random.default_rng(0).integers(0, 256, (3, 299, 299, 3), dtype=np.uint8)
    crops[1] //= 3
    got = c.embed(crops)
    reference = FeatureExtractorInceptionV3("x", ["2048"], str(inception))
    want = reference(torch.from_numpy(crops.transpose(0, 3, 1, 2)))[0].numpy()
    assert got.shape == (3, 2048) and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert np.abs(got[0] - got[1]).max() > 1e-3 * np.abs(want).max()
    np.testing.assert_allclose(c.embed(crops[1:2]), got[1:2], rtol=1e-3, atol=1e-5 * np.abs(want).max())
    assert c.predict(crops[:1]).shape == (1, 0) and c.embed(crops[:0]).shape == (0, 2048)
    assert pickle.loads(pickle.dumps(c))._network is None


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("it was run",)


def test_inception_files_that_do_not_fit(inception: Path, tmp_path: Path) -> None:
    import torch

    state = torch.load(inception, weights_only=True)
    path = tmp_path / "i.pth"
    for content, said in (
        ({k: v for k, v in state.items() if k != "fc.bias"}, "not the Inception network"),
        ({**state, "fc.bias": torch.full_like(state["fc.bias"], float("nan"))}, "not finite"),
        ({**state, "x": _Trap()}, "would have to be executed"),
        ([1], "no state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"(?s)i\.pth.*{said}"):
            classifiers.create("inception", path=str(path)).load()
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(state, hub / FILENAME)
    with pytest.raises(InputError, match="does not begin with 6726825d"):
        classifiers.create("inception").load()


def test_inception_without_weights_says_what_it_needs() -> None:
    c = classifiers.create("inception")
    installed = importlib.util.find_spec("torch_fidelity") is not None
    assert (FILENAME if installed else "pip install torch-fidelity") in c.missing()
    with pytest.raises(MissingError):
        c.load()
    with pytest.raises(InputError, match="template"):
        classifiers.create("inception", template="oval")
