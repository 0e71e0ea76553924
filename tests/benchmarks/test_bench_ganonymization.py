"""GANonymization beside the reference's way of working, and its generator beside its convolutions.  ``make bench`` runs it.

The reference's way: a Lightning file of 687 MB in the official layout (random weights, optimiser states and all), read anew
for each face, 512 px, one face at a time.  Both ways find faces with the same FaceFinder, so that the figures do not compare
detectors; the file is in the page cache.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from deidbench.anonymizers.ganonymization.checkpoint import SHIPPED, Description, save_generator
from deidbench.anonymizers.ganonymization.landmarks import landmark_images
from deidbench.anonymizers.ganonymization.networks import Discriminator, Generator, Inference, Shape, initialise
from deidbench.anonymizers.ganonymization.pipeline import Ganonymization
from deidbench.faces import FaceFinder, subject_face
from deidbench.types import Item, Status

pytestmark = pytest.mark.slow

OFFICIAL = Shape(512, 64, 0.5)
SMALL = Shape(128, 32, 0.0)
BATCH = 8


def made(shape: Shape) -> Generator:
    generator = Generator(shape)
    initialise(generator, torch.Generator().manual_seed(0))
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the official layout and size: 26 tensors, and Adam's two moments of each of them."""
    generator, discriminator = made(OFFICIAL), Discriminator()
    initialise(discriminator, torch.Generator().manual_seed(1))

    def adam(module: torch.nn.Module) -> dict[str, object]:
        parameters = list(module.parameters())
        state = {
            i: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for i, p in enumerate(parameters)
        }
        group = {"lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-8, "weight_decay": 0, "params": list(range(len(parameters)))}
        return {"state": state, "param_groups": [group]}

    named = {"generator": generator, "discriminator": discriminator}
    path = tmp_path_factory.mktemp("reference") / "lightning.ckpt"
    torch.save(
        {
            "epoch": 25,
            "global_step": 1,
            "pytorch-lightning_version": "1.9.0",
            "state_dict": {f"{name}.{k}": v for name, module in named.items() for k, v in module.state_dict().items()},
            "optimizer_states": [adam(module) for module in named.values()],
            "lr_schedulers": [],
            "hyper_parameters": {"img_size": 512},
        },
        path,
    )
    assert abs(path.stat().st_size / 687_127_579 - 1) < 0.01
    return path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our model; random weights of its shape where the checkout has none."""
    if SHIPPED.is_file():
        return SHIPPED
    path = tmp_path_factory.mktemp("ours") / "random.safetensors"
    save_generator(path, made(SMALL).state_dict(), Description(SMALL.side, SMALL.width, render=512, margin=1.3), half=True)
    return path


@pytest.fixture(scope="module")
def frames(orl_folder: Path) -> list[np.ndarray]:
    """Faces of as many persons as a batch has, RGB uint8 (448, 368, 3)."""
    import cv2

    paths = [orl_folder / f"s{i}" / "1.pgm" for i in range(1, 41)]
    finder, found = FaceFinder(), []
    for path in paths:
        image = np.ascontiguousarray(cv2.resize(cv2.imread(str(path)), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC))
        if len(finder.find(image)) == 1:
            found.append(image)
        if len(found) == BATCH:
            return found
    raise AssertionError("too few faces found")


class Reference:
    """One face as the reference's program makes it: the model is not kept from one face to the next.

    Our own short version of its steps.  It leaves out levelling the eyes and writing the file, and keeps the FaceFinder, all of
    which is to its advantage.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finder = FaceFinder()
        self.seconds: dict[str, float] = {}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        import cv2
        from PIL import Image as PIL

        face = subject_face(self.finder.find(image))
        assert face is not None
        x0, y0, x1, y1 = (round(v) for v in face.box.clipped(image.shape[1], image.shape[0]))
        scale = min(512 / (x1 - x0), 512 / (y1 - y0))
        size = int((x1 - x0) * scale), int((y1 - y0) * scale)
        crop = PIL.new("RGB", (512, 512))
        crop.paste(
            PIL.fromarray(image[y0:y1, x0:x1]).resize(size, PIL.Resampling.LANCZOS),
            ((512 - size[0]) // 2, (512 - size[1]) // 2),
        )
        points = self.finder.mesh(np.asarray(crop))
        drawing = np.zeros((512, 512, 3), np.uint8)
        for x, y in points if points is not None else ():
            if 0 <= x <= 1 and 0 <= y <= 1:
                at = min(int(x * 512), 511), min(int(y * 512), 511)
                cv2.drawMarker(drawing, at, (224, 224, 224), cv2.MARKER_CROSS, 3)
        start = time.perf_counter()
        everything = torch.load(self.path, map_location="cpu", weights_only=True)
        generator = Generator(OFFICIAL)
        weights = {k.removeprefix("generator."): v for k, v in everything["state_dict"].items() if k.startswith("generator.")}
        generator.load_state_dict(weights)
        generator.eval()
        self.seconds["reading the model"] = time.perf_counter() - start
        x = torch.from_numpy(drawing).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            out = generator((x - 0.5) / 0.5)
        self.seconds["reading and generating"] = time.perf_counter() - start
        return np.asarray(((out[0] + 1) / 2 * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def show(capsys: pytest.CaptureFixture[str], *lines: str) -> None:
    """Past pytest's capture, so that the table stands beside the timings."""
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def least(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Seconds of the quickest round of each; rounds take turns, so that a busy machine disturbs all alike."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            gc.collect()
            start = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@pytest.mark.benchmark(group="GANonymization, faces per second against the reference")
def test_end_to_end(benchmark, lightning: Path, shipped: Path, frames: list[np.ndarray], capsys) -> None:  # type: ignore[no-untyped-def]
    reference, finder = Reference(lightning), FaceFinder()

    def ours(path: Path) -> Callable[[], None]:
        adapter = Ganonymization(checkpoint=str(path), device="cpu")
        adapter.load()

        def work() -> None:
            items = [Item(f"{i}", image, faces=tuple(finder.find(image))) for i, image in enumerate(frames)]
            assert all(result.status is Status.OK for result in adapter.anonymize(items))

        return work

    start = time.perf_counter()
    same = ours(lightning)
    load = time.perf_counter() - start
    small = ours(shipped)
    picked = iter(range(1000))

    def theirs() -> None:
        reference(frames[next(picked) % len(frames)])

    theirs(), same(), small()
    seconds, batch, small_batch = least(3, theirs, same, small)
    benchmark.pedantic(small, rounds=1)
    rates = {"reference": 1 / seconds, "ours, 512 px": BATCH / batch, "ours, 128 px": BATCH / small_batch}
    ratios = {name: rate / rates["reference"] for name, rate in rates.items()}
    benchmark.extra_info |= {"faces_per_second": rates, "ratios": ratios, "load_512_s": load}
    benchmark.extra_info["model"] = "shipped" if shipped == SHIPPED else "random weights"
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in reference.seconds.items())
    show(
        capsys,
        f"{'':16}{'faces/s':>9}{'ratio':>8}",
        *(f"{name:16}{rate:9.2f}{ratios[name]:8.1f}" for name, rate in rates.items()),
        f"reference, last face: {parts}; ours reads the same file once, in {load:.2f} s",
    )
    assert ratios["ours, 512 px"] >= 3
    assert ratios["ours, 128 px"] >= 10


def convolutions(shape: Shape, n: int) -> Callable[[], None]:
    """The generator's convolutions with its shapes, channels last, on ready inputs, and nothing else."""
    g = made(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calls: list[Callable[[], torch.Tensor]] = []

    def add(name: str, channels: int, side: int) -> None:
        layer = g.get_submodule(name)
        x = torch.randn(n, channels, side, side).to(memory_format=torch.channels_last)
        if isinstance(layer, torch.nn.ConvTranspose2d):
            calls.append(lambda: functional.conv_transpose2d(x, layer.weight, None, 2, 1))
        else:
            calls.append(lambda: functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding))  # type: ignore[arg-type]

    out, depth = shape.channels(), shape.depth
    for i in range(depth):
        add(f"down{i + 1}.model.0", 3 if i == 0 else out[i - 1], shape.side >> i)
    for i in range(depth - 1):
        add(f"up{i + 1}.model.0", out[-1] if i == 0 else 2 * out[depth - 1 - i], shape.side >> (depth - i))
    add("final.2", 2 * out[0], shape.side + 1)

    def work() -> None:
        with torch.inference_mode():
            for call in calls:
                call()

    return work


@pytest.mark.benchmark(group="GANonymization's generator against its convolutions alone")
@pytest.mark.parametrize(("shape", "n"), [(OFFICIAL, 1), (OFFICIAL, 4), (SMALL, 16)], ids=["512-1", "512-4", "128-16"])
def test_generator(benchmark, shape: Shape, n: int, capsys) -> None:  # type: ignore[no-untyped-def]
    plain = made(shape)
    quick, alone = Inference(plain), convolutions(shape, n)
    points = np.random.default_rng(0).random((n, 478, 2))
    x = torch.from_numpy(landmark_images(points, shape.side, 512)).float().div(127.5).sub(1)[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        torch.testing.assert_close(quick(x), plain(x), rtol=0, atol=1e-5)
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    y = x.contiguous(memory_format=torch.channels_last)

    def modules() -> None:
        with torch.inference_mode():
            plain(y)

    modules(), alone()
    ours, bound, before = least(5, lambda: quick(y), alone, modules)
    benchmark.pedantic(quick, (y,), rounds=1)
    benchmark.extra_info |= {"ratio": ours / bound, "ratio_of_modules": before / bound, "faces_per_second": n / ours}
    show(
        capsys,
        f"{shape.side} px, width {shape.width}, batch {n}: generator {ours * 1e3 / n:.1f} ms a face, "
        f"its convolutions alone {bound * 1e3 / n:.1f}, ratio {ours / bound:.2f} (plain modules {before / bound:.2f})",
    )
    assert ours <= 1.3 * bound
