"""GANonymization's landmark image, networks and checkpoints against the specification, evaluated here a second time.

Nothing in the reference code below uses ours: the landmark image is drawn by loops, the networks are evaluated in float64
with numpy from the table of layers.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import shutil
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deidbench.anonymizers.ganonymization import checkpoint, synthesis
from deidbench.anonymizers.ganonymization.checkpoint import (
    Description,
    Known,
    data_behind,
    load_discriminator,
    load_generator,
    save_generator,
)
from deidbench.anonymizers.ganonymization.landmarks import flipped, landmark_images, network_input
from deidbench.anonymizers.ganonymization.networks import Discriminator, Generator, Shape, depth_of, initialise
from deidbench.errors import DeidbenchError, InputError, MissingError

# ------------------------------------------------------------------------------------------------- the specification

#: Official layout: key -> shape.
OFFICIAL_GENERATOR = {
    "down1.model.0.weight": (64, 3, 4, 4),
    "down2.model.0.weight": (128, 64, 4, 4),
    "down3.model.0.weight": (256, 128, 4, 4),
    "down4.model.0.weight": (512, 256, 4, 4),
    "down5.model.0.weight": (512, 512, 4, 4),
    "down6.model.0.weight": (512, 512, 4, 4),
    "down7.model.0.weight": (512, 512, 4, 4),
    "down8.model.0.weight": (512, 512, 4, 4),
    "up1.model.0.weight": (512, 512, 4, 4),
    "up2.model.0.weight": (1024, 512, 4, 4),
    "up3.model.0.weight": (1024, 512, 4, 4),
    "up4.model.0.weight": (1024, 512, 4, 4),
    "up5.model.0.weight": (1024, 256, 4, 4),
    "up6.model.0.weight": (512, 128, 4, 4),
    "up7.model.0.weight": (256, 64, 4, 4),
    "final.2.weight": (3, 128, 4, 4),
    "final.2.bias": (3,),
}
OFFICIAL_DISCRIMINATOR = {
    "model.0.weight": (64, 6, 4, 4),
    "model.0.bias": (64,),
    "model.2.weight": (128, 64, 4, 4),
    "model.2.bias": (128,),
    "model.5.weight": (256, 128, 4, 4),
    "model.5.bias": (256,),
    "model.8.weight": (512, 256, 4, 4),
    "model.8.bias": (512,),
    "model.12.weight": (1, 512, 4, 4),
}
#: Blocks with dropout 0.5 in the official layout.
DROPOUT = {"down4", "down5", "down6", "down7", "down8", "up1", "up2", "up3", "up4"}


def layout(depth: int, width: int) -> dict[str, tuple[int, ...]]:
    """The same table for ``depth`` down blocks and another width: 1, 2, 4 and from then on 8 times the width."""
    out = [width * min(2**i, 8) for i in range(depth)]
    table: dict[str, tuple[int, ...]] = {}
    for i, o in enumerate(out):
        table[f"down{i + 1}.model.0.weight"] = (o, 3 if i == 0 else out[i - 1], 4, 4)
    for i in range(1, depth):  # up block i gives as many channels as the down block that its skip comes from
        inside = out[-1] if i == 1 else 2 * out[depth - i]
        table[f"up{i}.model.0.weight"] = (inside, out[depth - 1 - i], 4, 4)
    return {**table, "final.2.weight": (3, 2 * width, 4, 4), "final.2.bias": (3,)}


def discriminator_layout(width: int) -> dict[str, tuple[int, ...]]:
    scale = width / 64
    return {
        k: tuple(int(n * scale) if n >= 64 else n for n in shape) if k != "model.12.weight" else (1, 8 * width, 4, 4)
        for k, shape in OFFICIAL_DISCRIMINATOR.items()
    }


def random_weights(table: dict[str, tuple[int, ...]], seed: int, scale: float = 0.05) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {k: torch.empty(shape).normal_(0, scale, generator=random) for k, shape in table.items()}


# ---- the networks in float64, one image (c, h, w) at a time


def conv(x: np.ndarray, w: np.ndarray, stride: int, pad: tuple[int, int, int, int]) -> np.ndarray:
    """Cross-correlation; w (out, in, 4, 4); pad: left, right, top, bottom."""
    left, right, top, bottom = pad
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    h, v = (x.shape[1] - 4) // stride + 1, (x.shape[2] - 4) // stride + 1
    out = np.zeros((w.shape[0], h, v))
    for i in range(4):
        for j in range(4):
            if stride == 1:  # the product first: no copy of the many channels
                out += np.tensordot(w[:, :, i, j], x, 1)[:, i : i + h, j : j + v]
            else:
                out += np.tensordot(w[:, :, i, j], x[:, i : i + stride * h : stride, j : j + stride * v : stride], 1)
    return out


def conv_transposed(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Stride 2, padding 1; w (in, out, 4, 4): every input pixel adds its kernel to the output, one pixel of which is cut off."""
    _, h, v = x.shape
    out = np.zeros((w.shape[1], 2 * h + 2, 2 * v + 2))
    for i in range(4):
        for j in range(4):
            out[:, i : i + 2 * h : 2, j : j + 2 * v : 2] += np.tensordot(w[:, :, i, j].T, x, 1)
    return out[:, 1:-1, 1:-1]


def normed(x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=(1, 2), keepdims=True) + 1e-5)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)


def generate(x: np.ndarray, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """x (3, s, s) in [-1, 1] -> (3, s, s) in [-1, 1], straight from the table."""
    w = {k: v.double().numpy() for k, v in weights.items()}
    depth = sum(k.startswith("down") for k in w)
    skips = []
    x = x.astype(np.float64)
    for i in range(1, depth + 1):
        x = conv(x, w[f"down{i}.model.0.weight"], 2, (1, 1, 1, 1))
        if i not in (1, depth):
            x = normed(x)
        x = leaky(x)
        skips.append(x)
    for i in range(1, depth):
        x = np.maximum(normed(conv_transposed(x, w[f"up{i}.model.0.weight"])), 0)
        x = np.concatenate((x, skips[depth - 1 - i]))
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    x = conv(x, w["final.2.weight"], 1, (2, 1, 2, 1))  # zero pad (1, 0, 1, 0) and the convolution's own 1 on each side
    return np.asarray(np.tanh(x + w["final.2.bias"][:, None, None]))


def judge(x: np.ndarray, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """x (6, s, s), face and landmark image -> scores (1, s / 16, s / 16)."""
    w = {k: v.double().numpy() for k, v in weights.items()}
    x = x.astype(np.float64)
    for i in (0, 2, 5, 8):
        x = conv(x, w[f"model.{i}.weight"], 2, (1, 1, 1, 1)) + w[f"model.{i}.bias"][:, None, None]
        x = leaky(normed(x) if i else x)
    return conv(x, w["model.12.weight"], 1, (2, 1, 2, 1))


def test_the_reference_primitives_agree_with_torch() -> None:
    """The evaluation above is trusted because its two convolutions are checked against a third party."""
    r = np.random.default_rng(0)
    x, w, wt = r.normal(size=(3, 8, 8)), r.normal(size=(5, 3, 4, 4)), r.normal(size=(3, 5, 4, 4))
    x_, w_, wt_ = (torch.from_numpy(a) for a in (x, w, wt))
    assert np.abs(torch.conv2d(x_[None], w_, stride=2, padding=1)[0].numpy() - conv(x, w, 2, (1, 1, 1, 1))).max() < 1e-12
    assert np.abs(torch.conv2d(x_[None], w_, stride=1, padding=2)[0].numpy() - conv(x, w, 1, (2, 2, 2, 2))).max() < 1e-12
    assert np.abs(torch.conv_transpose2d(x_[None], wt_, stride=2, padding=1)[0].numpy() - conv_transposed(x, wt)).max() < 1e-12
    assert (
        np.abs(torch.instance_norm(x_[None], None, None, None, None, True, 0, 1e-5, False)[0].numpy() - normed(x)).max() < 1e-12
    )


# --------------------------------------------------------------------------------------------------- landmark image


def drawn(points: np.ndarray, side: int) -> np.ndarray:
    """The landmark image of one face, by loops."""
    image = np.zeros((side, side), np.int64)
    for x, y in points.tolist():  # Python floats: double precision
        if not (0 <= x <= 1 and 0 <= y <= 1):  # NaN is not in there either
            continue
        px, py = min(math.floor(x * side), side - 1), min(math.floor(y * side), side - 1)
        for qx, qy in ((px, py), (px - 1, py), (px + 1, py), (px, py - 1), (px, py + 1)):
            if 0 <= qx < side and 0 <= qy < side:
                image[qy, qx] = 224
    return image


def averaged(image: np.ndarray, side: int) -> np.ndarray:
    """Block means, rounded to the nearest level, half up."""
    block = len(image) // side
    out = np.zeros((side, side), np.int64)
    for y in range(side):
        for x in range(side):
            mean = Fraction(int(image[y * block : (y + 1) * block, x * block : (x + 1) * block].sum()), block * block)
            out[y, x] = math.floor(mean + Fraction(1, 2))
    return out


def hostile_points(side: int, seed: int, kind: type) -> np.ndarray:
    """478 points: random ones, and all that lie awkwardly."""
    r = np.random.default_rng(seed)
    points = r.uniform(-0.1, 1.1, (478, 2)).astype(kind)
    one, zero = kind(1), kind(0)
    awkward = [
        zero, one, np.nextafter(one, kind(2)), np.nextafter(zero, kind(-1)), kind(-0.0), kind(np.nan), kind(np.inf), kind(-np.inf),
        np.nextafter(one, zero), kind(1e-30), kind(0.5),
    ]  # fmt: skip
    grid = [(x, y) for x in awkward for y in awkward]
    points[: len(grid)] = grid
    edges = (np.arange(60) % side / side).astype(kind)  # exactly on the borders between pixels, and just beside them
    points[130:190, 0] = edges
    points[190:250, 1] = np.nextafter(edges, zero)
    points[250:310] = points[310:370]  # duplicates
    return points


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("side", [32, 33, 64, 96, 100, 128, 256, 512])
def test_the_landmark_image_is_the_specification_pixel_by_pixel(side: int, kind: type) -> None:
    points = np.stack([hostile_points(side, seed, kind) for seed in range(3)])
    images = landmark_images(points, side)
    assert images.dtype == np.uint8
    assert images.shape == (3, side, side)
    assert images.flags.c_contiguous
    for image, p in zip(images, points, strict=True):
        assert np.array_equal(image, drawn(p, side))
    assert set(np.unique(images)) == {0, 224}


def test_the_pixel_of_a_point_does_not_depend_on_the_arrays_type() -> None:
    """Single precision would round the product up to the next pixel: 0.29 lies just below 29 / 100 there."""
    found = 0
    for side in (33, 96, 100):
        for k in range(1, side):
            x = np.float32(k / side)
            x = np.nextafter(x, np.float32(0)) if float(x) * side >= k else x
            if np.float32(x * np.float32(side)) >= k:  # what a product in single precision makes of it
                found += 1
            [image] = landmark_images(np.array([[[x, 0.5]]], np.float32), side)
            assert np.array_equal(image, drawn(np.array([[x, np.float32(0.5)]]), side))
    assert found > 10  # the case does occur


@pytest.mark.parametrize(("points", "lit"), [
    ([(0.0, 0.0)], [(0, 0), (1, 0), (0, 1)]),
    ([(1.0, 1.0)], [(31, 31), (30, 31), (31, 30)]),
    ([(1.0, 0.0)], [(31, 0), (30, 0), (31, 1)]),
    ([(0.5, 0.5)], [(16, 16), (15, 16), (17, 16), (16, 15), (16, 17)]),
    ([(0.0, 0.5)], [(0, 16), (1, 16), (0, 15), (0, 17)]),
    ([(1.0000001, 0.5), (-1e-9, 0.5), (0.5, math.nan), (math.inf, 0.5)], []),
    ([(0.5, 0.5)] * 3, [(16, 16), (15, 16), (17, 16), (16, 15), (16, 17)]),
])  # fmt: skip
def test_dots_by_hand(points: list[tuple[float, float]], lit: list[tuple[int, int]]) -> None:
    """``lit`` are (x, y) of a 32 pixel image."""
    [image] = landmark_images(np.array([points], np.float64), 32)
    assert sorted((int(x), int(y)) for y, x in np.argwhere(image == 224)) == sorted(lit)
    assert not image[image != 224].any()


@pytest.mark.parametrize(("side", "render"), [(32, 64), (32, 96), (32, 512), (64, 128), (64, 256), (128, 256), (128, 512)])
def test_dots_drawn_larger_are_averaged_over_blocks(side: int, render: int) -> None:
    points = np.stack([hostile_points(render, seed, np.float32) for seed in range(2)])
    images = landmark_images(points, side, render)
    assert images.shape == (2, side, side)
    assert images.dtype == np.uint8
    for image, p in zip(images, points, strict=True):
        assert np.array_equal(image, averaged(drawn(p, render), side))
    assert len(np.unique(images)) > 3  # there are levels between


def test_halves_are_rounded_up() -> None:
    """Two lit pixels of a 4 x 4 block: 28; one of 8 x 8: 3.5, so 4."""
    [image] = landmark_images(np.array([[(0.0, 0.0), (1 / 32, 0.0)]]), 32, 32 * 8)
    # the dot at pixel (8, 0) of 256 puts one pixel, (7, 0), into block (0, 0), beside three of the dot at (0, 0)
    assert image[0, 0] == 224 * 4 // 64
    [image] = landmark_images(np.array([[(1 / 32, 0.0)]]), 32, 32 * 8)
    assert image[0, 0] == 4
    assert image[0, 1] == math.floor(Fraction(3 * 224, 64) + Fraction(1, 2)) == 11  # 10.5


def test_landmark_images_of_nobody_and_of_points_that_are_all_out() -> None:
    assert landmark_images(np.zeros((0, 478, 2), np.float32), 64).shape == (0, 64, 64)
    assert landmark_images(np.zeros((0, 478, 2), np.float32), 64, 128).shape == (0, 64, 64)
    assert not landmark_images(np.full((2, 478, 2), np.nan, np.float32), 64, 128).any()
    assert not landmark_images(np.full((2, 478, 2), 1.5, np.float32), 64).any()
    assert not landmark_images(np.full((2, 0, 2), 0.5, np.float32), 64).any()


def test_landmark_images_leave_the_points_alone_and_refuse_other_shapes() -> None:
    points = hostile_points(64, 1, np.float32)[None]
    before = points.copy()
    landmark_images(points, 64)
    landmark_images(points, 64, 128)
    assert np.array_equal(points, before, equal_nan=True)
    for wrong in (np.zeros((478, 2)), np.zeros((1, 478, 3)), np.zeros(4)):
        with pytest.raises(ValueError, match="expected"):
            landmark_images(wrong, 64)
    for side, render in ((64, 100), (64, 32), (0, None)):
        with pytest.raises(ValueError, match="multiple"):
            landmark_images(np.zeros((1, 478, 2)), side, render)


def test_mirrored_points_draw_the_mirror_image() -> None:
    """But for points on the border between two pixels, which belong to the right one in both."""
    points = np.random.default_rng(3).uniform(0.01, 0.99, (1, 478, 2)).astype(np.float32)
    before = points.copy()
    assert np.array_equal(landmark_images(flipped(points), 128)[0], landmark_images(points, 128)[0][:, ::-1])
    assert np.array_equal(points, before)


def test_the_network_sees_levels_with_mean_and_deviation_one_half() -> None:
    images = np.array([[[0, 224], [255, 128]]], np.uint8)
    x = network_input(images)
    assert x.shape == (1, 3, 2, 2)
    assert x.dtype == torch.float32
    want = (images.astype(np.float64) / 255 - 0.5) / 0.5
    assert np.abs(x.numpy() - want[:, None]).max() < 1e-6
    assert np.array_equal(images, [[[0, 224], [255, 128]]])


# -------------------------------------------------------------------------------------------------- layout and counts


def shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


def test_keys_shapes_and_counts_are_the_official_ones() -> None:
    with torch.device("meta"):
        generator, discriminator = Generator(Shape()), Discriminator()
    assert shapes(generator) == OFFICIAL_GENERATOR
    assert shapes(discriminator) == OFFICIAL_DISCRIMINATOR
    assert len(OFFICIAL_GENERATOR) + len(OFFICIAL_DISCRIMINATOR) == 26
    assert sum(p.numel() for p in generator.parameters()) == 54_404_099
    assert sum(p.numel() for p in discriminator.parameters()) == 2_767_808
    assert sum(math.prod(s) for s in OFFICIAL_GENERATOR.values()) == 54_404_099
    assert sum(math.prod(s) for s in OFFICIAL_DISCRIMINATOR.values()) == 2_767_808
    assert layout(8, 64) == OFFICIAL_GENERATOR
    assert discriminator_layout(64) == OFFICIAL_DISCRIMINATOR


@pytest.mark.parametrize(("side", "depth"), [(32, 5), (64, 6), (128, 7), (256, 8), (512, 8), (1024, 8), (4096, 8)])
def test_smaller_networks_differ_in_depth_and_width_alone(side: int, depth: int) -> None:
    assert depth_of(side) == depth
    for width in (2, 4, 16, 64):
        with torch.device("meta"):
            assert shapes(Generator(Shape(side, width))) == layout(depth, width)


@pytest.mark.parametrize("side", [0, -32, 1, 16, 31, 33, 48, 100, 500, 513])
def test_other_sides_are_refused(side: int) -> None:
    with pytest.raises(ValueError, match=f"{side} is no power of two"):
        Shape(side).channels()


def test_dropout_is_where_the_table_has_it() -> None:
    with torch.device("meta"):
        generator = Generator(Shape())
    dropped = {n.split(".")[0]: m.p for n, m in generator.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert dropped == dict.fromkeys(DROPOUT, 0.5)
    with torch.device("meta"):
        assert not [m for m in Generator(Shape(dropout=0.0)).modules() if isinstance(m, torch.nn.Dropout)]


def test_dropout_works_in_training_and_rests_in_evaluation() -> None:
    network = Generator(Shape(32, 4, 0.5))
    network.load_state_dict(random_weights(layout(5, 4), 5))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        network.train()
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_fresh_weights_are_normal_with_deviation_002_and_follow_from_the_seed() -> None:
    made = []
    for seed in (1, 1, 2):
        network = Discriminator(16)
        initialise(network, torch.Generator().manual_seed(seed))
        made.append(network.state_dict())
    for key, value in made[0].items():
        if key.endswith("bias"):
            assert not value.any()
        else:
            assert abs(float(value.mean())) < 0.02 * 5 / math.sqrt(value.numel())
            assert float(value.std()) == pytest.approx(0.02, rel=5 / math.sqrt(2 * value.numel()))
        assert torch.equal(value, made[1][key])
    assert not torch.equal(made[0]["model.2.weight"], made[2]["model.2.weight"])


# ------------------------------------------------------------------------------------------------ files in all layouts


def lightning(
    path: Path, generator: dict[str, torch.Tensor], discriminator: dict[str, torch.Tensor] | None = None, **more: Any
) -> Path:
    """A checkpoint laid out as PyTorch Lightning writes it."""
    discriminator = random_weights(discriminator_layout(4), 9) if discriminator is None else discriminator
    tensors = {f"generator.{k}": v for k, v in generator.items()} | {f"discriminator.{k}": v for k, v in discriminator.items()}
    moments = {
        i: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)} for i in range(len(tensors))
    }
    group = {"lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-8, "weight_decay": 0, "params": list(moments)}
    document = {
        "epoch": 25, "global_step": 254_350, "pytorch-lightning_version": "1.8.4", "state_dict": tensors, "loops": {},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None, "dirpath": "lightning_logs"}},
        "optimizer_states": [{"state": moments, "param_groups": [group]}] * 2, "lr_schedulers": [], "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 2e-4, "n_cpu": 2, "img_size": 512, "device": 0},
    } | more  # fmt: skip
    torch.save(document, path)
    return path


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    """A generator for 32 pixels and width 4."""
    return random_weights(layout(5, 4), 1)


def drawing(n: int, side: int, seed: int = 0) -> np.ndarray:
    """Network input (n, 3, s, s) of a landmark image of random points, drawn here; channels differ, so that none can be mixed up."""
    r = np.random.default_rng(seed)
    maps = np.stack([[drawn(r.uniform(0, 1, (478, 2)), side) for _ in range(3)] for _ in range(n)])
    return (maps / 127.5 - 1).astype(np.float32)


def compare(generator: Any, weights: dict[str, torch.Tensor], x: np.ndarray, tolerance: float = 1e-5) -> None:
    """Our output is the specification's to ``tolerance``, and says something."""
    with torch.inference_mode():
        got = generator(torch.from_numpy(x)).numpy()
    want = np.stack([generate(one, weights) for one in x])
    assert got.shape == want.shape == x.shape
    assert want.std() > 0.1  # neither dead nor saturated: a difference would show
    assert (np.abs(want) > 0.999).mean() < 0.2
    assert np.abs(got - want).max() < tolerance


@pytest.mark.parametrize(("side", "width"), [(32, 4), (32, 1), (64, 8), (128, 4), (256, 2), (512, 1)])
def test_the_output_is_the_specifications(side: int, width: int, tmp_path: Path) -> None:
    weights = random_weights(layout(depth_of(side), width), side + width, 0.25 / math.sqrt(width))
    path = lightning(tmp_path / "any.ckpt", weights)
    loaded = load_generator(path, side if side < 512 else None)
    compare(loaded.generator, weights, drawing(2, side))


def test_the_official_layout_at_512_pixels_gives_the_specifications_output(tmp_path: Path) -> None:
    weights = random_weights(OFFICIAL_GENERATOR, 64, 0.02)
    path = lightning(tmp_path / "publication.ckpt", weights, random_weights(OFFICIAL_DISCRIMINATOR, 65, 0.02))
    loaded = load_generator(path)
    assert loaded.title == "Lightning checkpoint"
    assert loaded.description == Description(512, 64, 512, 1.0)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shapes(loaded.generator) == OFFICIAL_GENERATOR
    compare(loaded.generator, weights, drawing(1, 512))
    assert shapes(load_discriminator(path)) == OFFICIAL_DISCRIMINATOR


def test_the_discriminators_output_is_the_specifications(tmp_path: Path) -> None:
    weights = random_weights(discriminator_layout(8), 3)
    path = lightning(tmp_path / "any.ckpt", random_weights(layout(5, 4), 1), weights)
    network = load_discriminator(path)
    faces, maps = np.random.default_rng(1).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32), drawing(2, 64)
    with torch.inference_mode():
        got = network(torch.from_numpy(faces), torch.from_numpy(maps)).numpy()
    want = np.stack([judge(np.concatenate((f, m)), weights) for f, m in zip(faces, maps, strict=True)])
    assert got.shape == want.shape == (2, 1, 4, 4)
    assert want.std() > 0.1
    assert np.abs(got - want).max() < 1e-5


def test_a_loaded_generator_is_ready_and_stands_on_its_own_memory(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    path = lightning(tmp_path / "a.ckpt", {k: v.half() for k, v in small.items()})
    generator = load_generator(path, 32).generator
    assert not generator.training
    for parameter in generator.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"
        assert not parameter.requires_grad
    path.write_bytes(b"\0" * path.stat().st_size)  # what lies in the file afterwards does not matter
    compare(generator, {k: v.half().float() for k, v in small.items()}, drawing(1, 32))


def test_images_out_of_the_engine_are_the_specifications_levels(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    """``(tanh + 1) / 2`` in 0 to 255, RGB, channels last; in passes of any size."""
    save_generator(tmp_path / "a.safetensors", small, Description(32, 4, 32))
    engine = synthesis.engine(str(tmp_path / "a.safetensors"), None, "cpu", "fp32")
    points = np.random.default_rng(2).uniform(0, 1, (5, 478, 2))
    maps = landmark_images(points, 32)
    images = engine.run(maps)
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    for image, one in zip(images, maps, strict=True):
        want = (generate(np.repeat(one[None] / 127.5 - 1, 3, axis=0), small) + 1) / 2 * 255
        assert np.abs(image.transpose(2, 0, 1) - want).max() < 0.501
    engine.at_once = 2  # type: ignore[attr-defined]
    assert np.array_equal(engine.run(maps), images)
    assert engine.run(maps[:0]).shape == (0, 32, 32, 3)


def plain(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, str(path))
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pth", ".safetensors"])
@pytest.mark.parametrize("lead", [
    "", "generator.", "module.", "module.generator.", "_orig_mod.", "_orig_mod.generator.", "generator._orig_mod.",
    "generator.module.", "module._orig_mod.generator.",
])  # fmt: skip
def test_state_dicts_are_read_whatever_the_networks_were_wrapped_in(
    lead: str, suffix: str, tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    path = plain({lead + k: v for k, v in small.items()}, tmp_path / f"plain{suffix}")
    loaded = load_generator(path)
    assert loaded.description == Description(32, 4, 32, 1.0)  # five down blocks: 32 pixels
    assert loaded.title == "state dict"
    for key, value in loaded.generator.state_dict().items():
        assert torch.equal(value, small[key])


def test_both_networks_in_one_plain_file_are_told_apart(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    other = random_weights(discriminator_layout(4), 8)
    both = {f"discriminator.{k}": v for k, v in other.items()} | {f"generator.{k}": v for k, v in small.items()}
    path = plain(both, tmp_path / "both.safetensors")
    assert torch.equal(load_generator(path).generator.state_dict()["final.2.bias"], small["final.2.bias"])
    assert torch.equal(load_discriminator(path).state_dict()["model.12.weight"], other["model.12.weight"])


@pytest.mark.parametrize("lead", ["", "discriminator.", "module.discriminator.", "module."])
def test_a_discriminator_is_read_alone(lead: str, tmp_path: Path) -> None:
    weights = random_weights(discriminator_layout(8), 4)
    network = load_discriminator(plain({lead + k: v for k, v in weights.items()}, tmp_path / "d.pt"))
    assert not network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(kind: torch.dtype, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    narrow = {k: v.to(kind) for k, v in small.items()}
    loaded = load_generator(plain(narrow, tmp_path / "a.safetensors"))
    for key, value in loaded.generator.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, narrow[key].float())


def test_the_side_is_said_by_the_file_given_or_follows_from_the_blocks(tmp_path: Path) -> None:
    eight = plain(random_weights(layout(8, 1), 1), tmp_path / "eight.pt")
    assert load_generator(eight).description.side == 512  # as GANonymization's
    for size in (256, 512, 1024):
        loaded = load_generator(eight, size)
        assert (loaded.description.side, loaded.description.render) == (size, size)
        assert loaded.generator.shape.side == size
    seven = plain(random_weights(layout(7, 1), 1), tmp_path / "seven.pt")
    assert load_generator(seven).description.side == 128
    assert load_generator(seven, 128).description.side == 128


# ----------------------------------------------------------------------------------------------------------- refusals


def refused(path: Path, *words: str, size: int | None = None, loader: Callable[..., Any] = load_generator) -> str:
    """The file is refused as input; the message names it and all of ``words``, and there is a remedy.  Returns the message."""
    with pytest.raises(InputError) as caught:
        loader(path, size) if loader is load_generator else loader(path)
    assert str(path) in caught.value.message
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert caught.value.remedy
    assert len(caught.value.message) < 600 + len(str(path))
    return caught.value.message


class Opens:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "raw pickle", "hyper_parameters", "a tensor's place", "optimizer_states"])
def test_code_in_a_file_is_never_run(form: str, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    target, path = tmp_path / "created", tmp_path / "evil.ckpt"
    evil = Opens(target)
    pickle.loads(pickle.dumps(evil)).close()
    assert target.exists()  # the payload does work where it is run
    target.unlink()
    if form == "hyper_parameters":
        lightning(path, small, hyper_parameters={"lr": evil})
    elif form == "optimizer_states":
        lightning(path, small, optimizer_states=[evil])
    elif form == "a tensor's place":
        lightning(path, {**small, "down1.model.0.weight": evil})  # type: ignore[dict-item]
    elif form == "raw pickle":
        path.write_bytes(pickle.dumps({"state_dict": {**small, "x": evil}}))
    else:
        torch.save({"state_dict": small, "x": evil}, path, _use_new_zipfile_serialization=form == "zip")
    for loader in (load_generator, load_discriminator):
        refused(path, "executed", loader=loader)
    assert not target.exists()
    assert data_behind(path) == ()
    assert not target.exists()


@pytest.mark.parametrize("key", list(layout(5, 4)))
def test_a_missing_key_is_named(key: str, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    rest = {k: v for k, v in small.items() if k != key}
    for path in (lightning(tmp_path / "a.ckpt", rest), plain(rest, tmp_path / "a.safetensors")):
        for size in (None, 32):
            refused(path, key if key != "down1.model.0.weight" else "no key generator.down1.*", size=size)


def test_the_first_of_several_differences_is_named(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    broken = {k: v for k, v in small.items() if k not in ("up2.model.0.weight", "final.2.bias")}
    message = refused(lightning(tmp_path / "a.ckpt", broken), "up2.model.0.weight", "(64, 16, 4, 4)")
    assert "final.2.bias" not in message
    broken = {**small, "up3.model.0.weight": small["up3.model.0.weight"][:5], "final.2.weight": torch.zeros(1)}
    message = refused(lightning(tmp_path / "b.ckpt", broken), "up3.model.0.weight", "(5, 8, 4, 4)", "(32, 8, 4, 4)")
    assert "final.2" not in message


def test_a_hole_among_the_official_blocks_is_named(tmp_path: Path) -> None:
    """Of an official layout without down5 that key is named, not some other size guessed."""
    weights = random_weights(layout(8, 1), 1)
    del weights["down5.model.0.weight"]
    refused(lightning(tmp_path / "a.ckpt", weights), "down5.model.0.weight")
    refused(lightning(tmp_path / "b.ckpt", weights), "down5.model.0.weight", size=512)


def test_a_first_block_without_its_weight_is_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    broken = {("down1.model.0.bias" if k == "down1.model.0.weight" else k): v for k, v in small.items()}
    refused(plain(broken, tmp_path / "a.pt"), "down1.model.0.weight")
    broken = {("model.0.x" if k == "model.0.weight" else k): v for k, v in random_weights(discriminator_layout(4), 1).items()}
    refused(plain(broken, tmp_path / "d.pt"), "model.0.weight", loader=load_discriminator)


@pytest.mark.parametrize(
    "extra", ["down6.model.0.bias", "up9.model.0.weight", "final.2.running_mean", "x", "down2.model.0.weight2"]
)
def test_a_key_too_many_is_named(extra: str, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    more = {**small, extra: torch.zeros(3)}
    refused(lightning(tmp_path / "a.ckpt", more), extra)
    refused(plain(more, tmp_path / "a.safetensors"), extra)


def test_the_same_weight_twice_is_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    twice = {**small, "_orig_mod.final.2.bias": torch.ones(3)}
    refused(plain(twice, tmp_path / "a.pt"), "final.2.bias")


@pytest.mark.parametrize(("key", "shape"), [
    ("down1.model.0.weight", (4, 1, 4, 4)), ("down1.model.0.weight", (4, 3, 3, 3)), ("down1.model.0.weight", (4, 3)),
    ("down1.model.0.weight", ()), ("down1.model.0.weight", (0, 3, 4, 4)), ("down3.model.0.weight", (16, 8, 4)),
    ("up1.model.0.weight", (32, 32, 4, 5)), ("final.2.bias", (4,)), ("final.2.weight", (8, 3, 4, 4)),
])  # fmt: skip
def test_a_wrong_shape_is_named(key: str, shape: tuple[int, ...], tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    broken = {**small, key: torch.zeros(shape)}
    refused(lightning(tmp_path / "a.ckpt", broken), key, str(shape))
    refused(plain(broken, tmp_path / "a.safetensors"), key, str(shape))


@pytest.mark.parametrize("width", [3000, 2**31, 2**58])
def test_a_width_out_of_all_proportion_is_refused_before_memory_is_asked_for(
    width: int, tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    """One number repeated without end takes four bytes in a file."""
    broken = {**small, "down1.model.0.weight": torch.zeros(1).expand(width, 1, 1, 1)}
    refused(lightning(tmp_path / "a.ckpt", broken), "down1.model.0.weight", str(width))
    broken = {**random_weights(discriminator_layout(4), 1), "model.0.weight": torch.zeros(1).expand(width, 1, 1, 1)}
    refused(plain(broken, tmp_path / "d.pt"), "model.0.weight", str(width), loader=load_discriminator)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["down1.model.0.weight", "up4.model.0.weight", "final.2.bias"])
def test_weights_that_are_not_finite_are_refused(
    key: str, value: float, tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    broken = {k: v.clone() for k, v in small.items()}
    broken[key].view(-1)[-1] = value
    refused(lightning(tmp_path / "a.ckpt", broken), key, "not finite")
    refused(plain({k: v.half() for k, v in broken.items()}, tmp_path / "a.safetensors"), key, "not finite")


def test_numbers_beyond_float32_are_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    broken = {k: v.double() for k, v in small.items()}
    broken["up1.model.0.weight"][0, 0, 0, 0] = 1e300
    refused(plain(broken, tmp_path / "a.pt"), "up1.model.0.weight", "not finite")


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_refused(kind: torch.dtype, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    broken = {**small, "up2.model.0.weight": torch.ones(small["up2.model.0.weight"].shape).to(kind)}
    refused(lightning(tmp_path / "a.ckpt", broken), "up2.model.0.weight", str(kind))


def test_sparse_and_meta_weights_are_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    for name, value in {"sparse": small["final.2.bias"].to_sparse(), "meta": torch.empty(3, device="meta")}.items():
        refused(lightning(tmp_path / f"{name}.ckpt", {**small, "final.2.bias": value}), "final.2.bias")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.2, 0.6, 0.999])
def test_a_file_cut_short_is_refused(share: float, suffix: str, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    path = tmp_path / f"a{suffix}"
    lightning(path, small) if suffix == ".ckpt" else save_generator(path, small, Description(32, 4, 32))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    for loader in (load_generator, load_discriminator):
        message = refused(path, loader=loader)
        assert ("empty" in message) == (share == 0)


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "folder.ckpt").mkdir()
    kinds: dict[str, type[DeidbenchError]] = {"nothing.ckpt": MissingError, "folder.ckpt": InputError}
    for name, kind in kinds.items():
        for loader in (load_generator, load_discriminator):
            with pytest.raises(kind) as caught:
                loader(tmp_path / name)
            assert str(tmp_path / name) in caught.value.message
            assert caught.value.remedy


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_git_lfs_pointer_is_called_one(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 687127579\n")
    refused(path, "Git LFS")


def test_files_of_other_kinds_are_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    import cv2

    from deidbench.anonymizers.ganonymization import train

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in (".png", ".jpg"):
        cv2.imwrite(str(tmp_path / f"face{suffix}"), noise)
        refused(tmp_path / f"face{suffix}")
        refused(Path(shutil.copy(tmp_path / f"face{suffix}", tmp_path / "face.ckpt")))
        refused(Path(shutil.copy(tmp_path / f"face{suffix}", tmp_path / "face.safetensors")))
    with zipfile.ZipFile(tmp_path / "some.ckpt", "w") as archive:
        archive.writestr("a.txt", "b")
    refused(tmp_path / "some.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint at all\n" * 100)
    refused(tmp_path / "text.ckpt")
    for number, content in enumerate((torch.zeros(3), [1, 2], {}, {"state_dict": {}}, {"state_dict": []}, {"a": 1}, 5, "x")):
        torch.save(content, tmp_path / f"{number}.ckpt")
        refused(tmp_path / f"{number}.ckpt")
    # the state of a training, as the trainer writes it: there is a checkpoint beside it, so it says which
    trainer = train.Trainer(train.Settings(size=32, width=2, discriminator_width=2), "cpu", 10)
    train._save_state(tmp_path / "state.pt", trainer, {"settings": {}}, [])
    refused(tmp_path / "state.pt", "state of a training")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    resnet = {
        "conv1.weight": torch.zeros(64, 3, 7, 7),
        "bn1.running_mean": torch.zeros(64),
        "layer1.0.conv1.weight": torch.zeros(3),
    }
    for suffix in (".pt", ".safetensors"):
        path = plain(resnet, tmp_path / f"resnet{suffix}")
        refused(path, "generator", "conv1.weight")
        refused(path, "discriminator", "conv1.weight", loader=load_discriminator)
    # a generator alone has no discriminator, and the other way round
    refused(plain(small, tmp_path / "g.pt"), "discriminator", loader=load_discriminator)
    refused(plain(random_weights(discriminator_layout(4), 1), tmp_path / "d.pt"), "generator")


def metadata_of(**changes: Any) -> dict[str, str]:
    packed = Description(32, 4, 32, 1.4, ("A", "B:train"), "CC", {"n": 1}).pack()
    said = json.loads(packed["description"]) | changes
    return {**packed, "description": json.dumps({k: v for k, v in said.items() if v != "DROP"})}


def with_metadata(path: Path, weights: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    from safetensors.torch import save_file

    save_file({f"generator.{k}": v for k, v in weights.items()}, str(path), metadata)
    return path


@pytest.mark.parametrize("changes", [
    {"side": 2**40}, {"side": 8192}, {"side": -32}, {"side": 0}, {"side": 48}, {"side": "x"}, {"side": None}, {"side": math.nan},
    {"side": math.inf}, {"side": [32]}, {"side": "DROP"}, {"width": 0}, {"width": -4}, {"width": 10**9}, {"width": 8},
    {"render": 33}, {"render": 16}, {"render": 2**40}, {"render": 0}, {"margin": math.nan}, {"margin": math.inf}, {"margin": -1},
    {"margin": 0}, {"margin": 1e9}, {"margin": "wide"}, {"trained_on": 5}, {"trained_on": None}, {"trained_on": "CelebA"},
    {"trained_on": "DROP"}, {"notes": "abc"}, {"notes": 3}, {"licence": "DROP"},
], ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))  # fmt: skip
def test_a_description_that_makes_no_sense_is_refused(
    changes: dict[str, Any], tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    assert load_generator(with_metadata(tmp_path / "good.safetensors", small, metadata_of())).description.side == 32
    refused(with_metadata(tmp_path / "a.safetensors", small, metadata_of(**changes)))


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "null", "5", '"x"', "{", "[" * 50_000, '{"side": ' + "9" * 5000 + "}"])
def test_a_description_that_is_no_json_object_is_refused(text: str, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    metadata = {**metadata_of(), "description": text}
    path = with_metadata(tmp_path / "a.safetensors", small, metadata)
    refused(path, "description")
    with pytest.raises(InputError):
        data_behind(path)
    del metadata["description"]
    refused(with_metadata(tmp_path / "b.safetensors", small, metadata), "description")


def test_a_size_against_what_the_file_says_is_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_generator(path, small, Description(32, 4, 128))
    assert load_generator(path, 32).description.side == 32
    for size in (64, 512):
        refused(path, "32", str(size), size=size)
    eight = random_weights(layout(8, 1), 1)
    save_generator(path, eight, Description(256, 1, 512))
    assert load_generator(path).generator.shape.side == 256
    refused(path, "trained at 256 pixels, not 512", size=512)
    # a description that its own weights contradict
    save_generator(path, eight, Description(128, 1, 128))
    refused(path, "128 pixels take 7 down blocks, the file has 8")
    save_generator(path, small, Description(64, 4, 64))
    refused(path, "down6.model.0.weight")


@pytest.mark.parametrize("size", [-1, 1, 31, 33, 100])
def test_a_size_that_is_no_power_of_two_is_refused(size: int, tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    refused(plain(small, tmp_path / "a.pt"), "power of two", size=size)


def test_a_size_that_the_blocks_contradict_is_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    refused(plain(small, tmp_path / "a.pt"), "down6.model.0.weight", size=64)
    seven = random_weights(layout(7, 1), 1)
    refused(plain(seven, tmp_path / "b.pt"), "64 pixels take 6 down blocks, the file has 7", size=64)


# -------------------------------------------------------------------------------------------- what a file says of itself


def test_the_official_files_are_recognised_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, torch.Tensor]
) -> None:
    assert set(checkpoint.OFFICIAL) == {
        "eba49bd525033b55022a91d6b4398ab088b51339fd6895db7afdd648d776eec9",
        "34e6698712b50f9325ac36ec3daf8febb5cca6813a1605bc2d7ecb78a896fe62",
    }
    for known in checkpoint.OFFICIAL.values():
        # the released weights have seen CelebA's test images too: only its val split is clean
        assert known.trained_on == ("CelebA:train", "CelebA:test")
    path = lightning(tmp_path / "renamed.bin", small)
    assert load_generator(path, 32).title == "Lightning checkpoint"
    assert load_generator(path, 32).description.trained_on == ()
    assert data_behind(path) == ()
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(checkpoint.OFFICIAL, sha, Known("official, 25 epochs (publication)", ("CelebA:train", "CelebA:test")))
    loaded = load_generator(path, 32)
    assert loaded.title == "official, 25 epochs (publication)"
    assert loaded.description.trained_on == ("CelebA:train", "CelebA:test")
    assert loaded.sha256 == sha
    assert data_behind(path) == ("CelebA:train", "CelebA:test")
    other = lightning(tmp_path / "other.bin", {**small, "final.2.bias": small["final.2.bias"] + 1})
    assert load_generator(other, 32).title == "Lightning checkpoint"
    assert data_behind(other) == ()


def test_contamination_reaches_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, torch.Tensor]
) -> None:
    from deidbench.anonymizers.ganonymization import Ganonymization

    path = lightning(tmp_path / "a.ckpt", small)
    adapter = Ganonymization(checkpoint=str(path), size=32, device="cpu")
    assert adapter.trained_on == ()
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert adapter.weights_sha256() == sha
    monkeypatch.setitem(checkpoint.OFFICIAL, sha, Known("official", ("CelebA:train", "CelebA:test")))
    assert adapter.trained_on == ("CelebA:train", "CelebA:test")


@pytest.mark.parametrize("half", [False, True])
def test_a_written_generator_comes_back_whole(half: bool, tmp_path: Path) -> None:
    weights = random_weights(layout(6, 2), 3)
    said = Description(
        64, 2, 512, 1.4, ("CelebA-HQ", "FFHQ:train"), "CC BY-NC 4.0 – only \U0001f642", {"steps": 7, "a": [1, {"b": None}]}
    )
    path = tmp_path / "ä b.safetensors"
    save_generator(path, weights, said, half=half)
    loaded = load_generator(str(path))
    assert loaded.description == said
    assert loaded.title == "deidbench checkpoint"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.generator.shape.side == 64
    assert loaded.generator.shape.width == 2
    for key, value in loaded.generator.state_dict().items():
        assert torch.equal(value, weights[key].half().float() if half else weights[key])
    assert data_behind(path) == said.trained_on
    size = sum(v.numel() for v in weights.values()) * (2 if half else 4)
    assert size < path.stat().st_size < size + 4096
    again = tmp_path / "again.safetensors"
    save_generator(again, weights, said, half=half)
    assert again.read_bytes() == path.read_bytes()  # the same in, the same out


def test_our_file_is_read_as_a_foreign_one_without_its_metadata(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    """What other programs put into the metadata is not taken for a description."""
    path = with_metadata(tmp_path / "a.safetensors", small, {"format": "pt", "description": "a nice model"})
    loaded = load_generator(path)
    assert loaded.title == "state dict"
    assert loaded.description == Description(32, 4, 32, 1.0)


def test_safetensors_under_another_name_is_read_all_the_same(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    save_generator(tmp_path / "a.safetensors", small, Description(32, 4, 128, 1.4))
    path = (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert load_generator(path).description == Description(32, 4, 128, 1.4)


def test_no_error_but_ours_leaves_the_loader_for_a_damaged_file(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    """Bytes changed at random: refused, or (where a weight's digits were hit) read with all the checks passed."""
    r = np.random.default_rng(0)
    buffer = io.BytesIO()
    torch.save({"state_dict": small}, buffer)
    save_generator(tmp_path / "a.safetensors", small, Description(32, 4, 32))
    outcomes = {"refused": 0, "read": 0}
    for suffix, data in ((".ckpt", buffer.getvalue()), (".safetensors", (tmp_path / "a.safetensors").read_bytes())):
        for i in range(25):
            broken = np.frombuffer(data, np.uint8).copy()
            head = min(len(broken), 3000)
            at = np.concatenate((r.integers(0, head, 3), r.integers(0, len(broken), 3)))
            broken[at] = r.integers(0, 256, len(at))
            path = tmp_path / f"{i}{suffix}"
            path.write_bytes(broken.tobytes())
            try:
                loaded = load_generator(path)
            except DeidbenchError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                assert all(bool(torch.isfinite(p).all()) for p in loaded.generator.parameters())
    assert outcomes["refused"] > 10
