"""DP-Pix and metric-privacy SVD: the noise that the formulas ask for, and audits that would notice half of it missing.

An audit is an attack.  Two inputs as far apart as the guarantee allows are put through the mechanism many times; on one half
of the draws a threshold is chosen, on the other it is seen how often each input exceeds it.  With p and q these
probabilities, epsilon >= log(p / q); with Clopper-Pearson bounds on both, at 99.95 % each, that is a lower bound of the true
epsilon at 99.9 % (Jagielski, Ullman, Oprea, NeurIPS 2020).  The claimed epsilon must not be below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import linalg, stats

from deidbench import kinds
from deidbench.anonymizers.dp_pix import DpPix
from deidbench.anonymizers.metric_svd import MetricSvd
from deidbench.errors import InputError
from deidbench.types import Box, Face, Item, Status

CONFIDENCE = 0.999
Draws = np.ndarray[Any, np.dtype[np.float64]]


def lower_bound(here: Draws, there: Draws) -> float:
    """99.9 % lower bound of epsilon from scores that are larger, as a rule, for the first input."""
    half = len(here) // 2
    thresholds = np.unique(np.quantile(np.concatenate([here[:half], there[:half]]), np.linspace(0.02, 0.98, 97)))
    counts = [(int((here[:half] >= t).sum()), int((there[:half] >= t).sum())) for t in thresholds]
    # the threshold that promises most, judged with a margin for its counts
    promise = [math.log((a + 1) / (b + 1)) - 3 * math.sqrt(1 / (a + 1) + 1 / (b + 1)) for a, b in counts]
    t = thresholds[int(np.argmax(promise))]
    n = len(here) - half
    a, b = int((here[half:] >= t).sum()), int((there[half:] >= t).sum())
    tail = (1 - CONFIDENCE) / 2
    p = stats.beta.ppf(tail, a, n - a + 1) if a else 0.0
    q = stats.beta.ppf(1 - tail, b + 1, n - b) if b < n else 1.0
    return math.log(p / q) if p > 0 else -math.inf


def _dp(**params: Any) -> DpPix:
    made = kinds.anonymizers.create("dp-pix", **params)
    assert isinstance(made, DpPix)
    made.load()
    return made


def _svd(**params: Any) -> MetricSvd:
    made = kinds.anonymizers.create("metric-svd", **params)
    assert isinstance(made, MetricSvd)
    made.load()
    return made


def _released(made: DpPix | MetricSvd, image: np.ndarray, seed: int = 0, faces: tuple[Face, ...] | None = None) -> np.ndarray:
    [result] = made.anonymize([Item("x", image, faces, seed)])
    assert result.status is Status.OK, result.reason
    assert result.image is not None
    return result.image


def _image(height: int, width: int, seed: int = 1, grey: bool = True) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.repeat(image[:, :, :1], 3, axis=2)) if grey else image


# ---------------------------------------------------------------------------------------------- DP-Pix, without noise


def _block_means(plane: np.ndarray, block: int) -> np.ndarray:
    """Pixelation by plain loops."""
    height, width = plane.shape
    out = np.empty((height, width))
    for top in range(0, height, block):
        for left in range(0, width, block):
            values = [
                int(plane[y, x]) for y in range(top, min(top + block, height)) for x in range(left, min(left + block, width))
            ]
            out[top : top + block, left : left + block] = sum(values) / len(values)
    return out


@pytest.mark.parametrize(("height", "width"), [(30, 70), (70, 30), (1, 1), (1, 40), (16, 16), (17, 33), (48, 32)])
@pytest.mark.parametrize("block", [1, 5, 16, 100])
def test_blocks_are_those_of_plain_loops_whatever_the_shape(height: int, width: int, block: int) -> None:
    """Not square images above all: all of them is replaced, and each block by its own mean."""
    image = _image(height, width)
    means = _block_means(image[:, :, 0], block)
    released = _released(_dp(block=block, epsilon=1e9, m=1), image)
    assert (released == released[:, :, :1]).all()
    np.testing.assert_allclose(released[:, :, 0], means, atol=0.5 + 1e-3)
    colour = _image(height, width, grey=False)
    released = _released(_dp(block=block, epsilon=1e9, m=1, channels="rgb"), colour)
    for c in range(3):
        np.testing.assert_allclose(released[:, :, c], _block_means(colour[:, :, c], block), atol=0.5 + 1e-3)


def test_colour_becomes_its_luma() -> None:
    colour = _image(32, 48, grey=False)
    luma = np.rint(colour @ [0.299, 0.587, 0.114])
    released = _released(_dp(block=8, epsilon=1e9, m=1), colour)
    assert (released == released[:, :, :1]).all()
    np.testing.assert_allclose(released[:, :, 0], _block_means(luma, 8), atol=1)  # .5 may be rounded either way in the luma


def test_the_noise_scale_is_the_formula() -> None:
    """255 m / (b^2 epsilon), and m / n more where a block is cut off at n pixels; three times as much for three channels."""
    made = _dp(epsilon=0.5, m=16, block=16)
    np.testing.assert_array_equal(made.noise_scales(32, 48), np.full((2, 3), 255 * 16 / (16 * 16 * 0.5)))
    cut = made.noise_scales(30, 70)
    assert cut.shape == (2, 5)
    assert cut[0, 0] == 255 * 16 / (256 * 0.5)
    assert cut[1, 4] == pytest.approx(255 * 16 / (14 * 6 * 0.5))
    assert cut[0, 4] == pytest.approx(255 * 16 / (16 * 6 * 0.5))
    assert made.noise_scales(1, 1)[0, 0] == 255 * 16 / 0.5
    rgb = _dp(epsilon=0.5, m=16, block=16, channels="rgb")
    np.testing.assert_array_equal(rgb.noise_scales(30, 70), 3 * cut)


# ----------------------------------------------------------------------------------------------- DP-Pix, its noise


def _perturbed(made: DpPix, values: np.ndarray, draws: int, seed: int = 0) -> Draws:
    """One value per block, before clipping: (draws, rows, columns, channels)."""
    rng = np.random.default_rng(seed)
    return np.stack([made.perturbed(values, rng)[:: made.block, :: made.block] for _ in range(draws)])


@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_the_noise_is_laplace_of_that_scale(channels: str) -> None:
    made = _dp(epsilon=0.7, m=3, block=8, channels=channels)
    values = _image(20, 27, grey=False)[:, :, : 1 if channels == "grey" else 3]
    found = _perturbed(made, values, 4000)
    means = np.stack([_block_means(values[:, :, c], 8)[::8, ::8] for c in range(values.shape[2])], axis=2)
    scaled = (found - means) / made.noise_scales(20, 27)[:, :, None]
    for place in np.ndindex(*scaled.shape[1:]):
        assert stats.kstest(scaled[(slice(None), *place)], "laplace").pvalue > 1e-4
    assert stats.kstest(scaled.ravel(), "laplace").pvalue > 1e-3
    flat = scaled.reshape(len(scaled), -1)
    correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 0.08, "blocks and channels draw on their own"
    assert stats.kstest(scaled.ravel() * 2, "laplace").pvalue < 1e-9, "the test would notice another scale"


def test_what_is_released_is_the_noisy_mean_clipped_and_rounded() -> None:
    made = _dp(epsilon=0.2, m=8, block=16)
    image = _image(30, 70)
    rng = np.random.default_rng([5, 0])
    expected = np.clip(np.rint(made.perturbed(image[:, :, :1], rng)), 0, 255)
    np.testing.assert_array_equal(_released(made, image, seed=5), np.repeat(expected, 3, axis=2))
    assert {0, 255} <= set(expected.ravel()), "with so much noise both ends are reached"
    assert (_released(made, image, seed=5) != _released(made, image, seed=6)).any()


# ------------------------------------------------------------------------------------------------- DP-Pix, its epsilon


#: Draws that are made at a time.
CHUNK = 20_000


def _audit(
    made: DpPix, places: list[tuple[int, int]], height: int, width: int, draws: int, *, released: bool, seed: int = 0
) -> float:
    """Lower bound of epsilon for two images of ``height`` x ``width`` that differ in ``places``, from black to white.

    height: whole blocks, for the draws are images on top of one another, each block of which has noise of its own.
    The score is the likelihood ratio of the mechanism as it is claimed: no other score tells the two apart better.
    """
    assert height % made.block == 0
    channels = 3 if made.channels == "rgb" else 1
    black = np.zeros((height, width, channels), np.uint8)
    white = black.copy()
    for y, x in places:
        white[y, x] = 255
    scale = kinds.anonymizers.create("dp-pix", **made.params()).noise_scales(height, width)[:, :, None]
    cells = slice(None, None, made.block)
    mean = np.stack([_block_means(white[:, :, c], made.block)[cells, cells] for c in range(channels)], axis=2)
    scores = []
    for side, image in enumerate((white, black)):  # first what the white pixels give
        rng = np.random.default_rng([seed, side])
        ratios = []
        for start in range(0, draws, CHUNK):
            n = min(CHUNK, draws - start)
            out = made.perturbed(np.tile(image, (n, 1, 1)), rng)[cells, cells]
            if released:
                out = np.clip(np.rint(out), 0, 255)
            found = out.reshape(n, *mean.shape)
            ratios.append(((np.abs(found) - np.abs(found - mean)) / scale).sum(axis=(1, 2, 3)))
        scores.append(np.concatenate(ratios))
    return lower_bound(*scores)


class HalfTheNoise(DpPix):
    """A mechanism that is wrong: it claims twice the privacy that it gives."""

    def noise_scales(self, height: int, width: int) -> np.ndarray:
        return super().noise_scales(height, width) / 2


class ThePapersScale(DpPix):
    """255 m / (b^2 epsilon) for every block, cut off or not."""

    def noise_scales(self, height: int, width: int) -> np.ndarray:
        right = super().noise_scales(height, width)
        return np.full_like(right, 255 * self.m / (self.block**2 * self.epsilon))


class NotSplit(DpPix):
    """Each of three channels with the noise of the whole epsilon."""

    def noise_scales(self, height: int, width: int) -> np.ndarray:
        return super().noise_scales(height, width) / (3 if self.channels == "rgb" else 1)


def _corner(n: int, top: int = 0, left: int = 0, width: int = 4) -> list[tuple[int, int]]:
    return [(top + i // width, left + i % width) for i in range(n)]


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.0])
def test_the_empirical_epsilon_is_not_above_the_claimed_one(epsilon: float, released: bool) -> None:
    """m pixels from black to white in one block.  Half the noise is found out by the same audit."""
    params = {"epsilon": epsilon, "m": 16, "block": 8}
    found = _audit(_dp(**params), _corner(16), 8, 8, 20_000, released=released)
    assert found <= epsilon
    broken = _audit(HalfTheNoise(**params), _corner(16), 8, 8, 20_000, released=released)
    assert broken > epsilon
    if not released:
        assert found > 0.7 * epsilon, "the audit is worth something"


@pytest.mark.slow
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 3.0])
def test_the_empirical_epsilon_with_many_draws(epsilon: float, released: bool) -> None:
    """200,000 draws of each image: the bound comes close to the claim and stays below it."""
    made = _dp(epsilon=epsilon, m=16, block=16)
    found = _audit(made, _corner(16), 16, 16, 200_000, released=released)
    assert (0.7 if epsilon < 0.5 else 0.93) * epsilon < found <= epsilon
    assert _audit(HalfTheNoise(**made.params()), _corner(16), 16, 16, 200_000, released=released) > epsilon


def test_a_block_that_is_cut_off_keeps_epsilon_and_with_the_papers_scale_would_not() -> None:
    """The right block of 21 columns is five pixels wide; four of its pixels change."""
    params = {"epsilon": 1.0, "m": 4, "block": 16}
    places = _corner(4, left=16)
    assert 0.7 < _audit(_dp(**params), places, 16, 21, 20_000, released=False) <= 1.0
    assert _audit(ThePapersScale(**params), places, 16, 21, 20_000, released=False) > 1.0


def test_changes_spread_over_blocks_add_up_to_epsilon() -> None:
    """Two pixels in each of four blocks, two of them cut off, m = 8; more than m pixels are not covered."""
    params = {"epsilon": 1.0, "m": 8, "block": 8}
    corners = [(0, 0), (0, 8), (8, 0), (8, 8)]
    places = [p for top, left in corners for p in _corner(2, top, left)]
    found = _audit(_dp(**params), places, 16, 15, 20_000, released=False)
    assert 0.6 < found <= 1.0
    twice = [p for top, left in corners for p in _corner(6, top, left)]
    assert _audit(_dp(**params), twice, 16, 15, 20_000, released=False) > 1.0


def test_epsilon_is_for_all_three_channels() -> None:
    params = {"epsilon": 1.0, "m": 4, "block": 8, "channels": "rgb"}
    assert 0.6 < _audit(_dp(**params), _corner(4), 8, 8, 20_000, released=False) <= 1.0
    assert _audit(NotSplit(**params), _corner(4), 8, 8, 20_000, released=False) > 1.0


# -------------------------------------------------------------------------------------------------------- metric SVD


def test_without_noise_it_is_the_best_approximation_of_that_rank() -> None:
    """Against scipy; the error is the tail of the singular values (Eckart and Young)."""
    for shape in ((30, 70), (70, 30), (25, 25)):
        image = _image(*shape)
        made = _svd(rank=5, epsilon=1e9)
        out = made.perturbed(image[:, :, :1], np.random.default_rng(0))[:, :, 0]
        u, s, vt = linalg.svd(image[:, :, 0].astype(float), full_matrices=False)
        np.testing.assert_allclose(out, (u[:, :5] * s[:5]) @ vt[:5], atol=1e-4)
        assert np.linalg.norm(out - image[:, :, 0]) == pytest.approx(np.linalg.norm(s[5:]), abs=1e-3)
    colour = _image(30, 70, grey=False)
    whole = _svd(rank=30, epsilon=1e9, channels="rgb")
    np.testing.assert_array_equal(_released(whole, colour), colour)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (3, 2)])
def test_images_of_less_rank_than_asked_for(height: int, width: int) -> None:
    image = _image(height, width)
    np.testing.assert_array_equal(_released(_svd(rank=50, epsilon=1e9), image), image)
    assert _released(_svd(rank=50, epsilon=0.1), image).shape == image.shape


@pytest.mark.parametrize(("epsilon", "dimensions"), [(0.5, 4), (2.0, 1), (1.0, 12)])
def test_the_noise_has_a_gamma_radius_and_a_uniform_direction(epsilon: float, dimensions: int) -> None:
    made, rng = _svd(epsilon=epsilon), np.random.default_rng(3)
    z = np.stack([made.noise(dimensions, rng) for _ in range(20_000)])
    radius = np.linalg.norm(z, axis=1)
    assert stats.kstest(radius, stats.gamma(dimensions, scale=1 / epsilon).cdf).pvalue > 1e-3
    assert stats.kstest(radius * 1.1, stats.gamma(dimensions, scale=1 / epsilon).cdf).pvalue < 1e-9
    unit = z / radius[:, None]
    if dimensions == 1:  # the Laplace distribution
        assert abs(np.sign(unit).mean()) < 0.03
        assert stats.kstest(z[:, 0], stats.laplace(scale=1 / epsilon).cdf).pvalue > 1e-3
        return
    # a coordinate of a uniform point on the sphere: (1 + x) / 2 is Beta((i - 1) / 2, (i - 1) / 2)
    for c in range(dimensions):
        half = (dimensions - 1) / 2
        assert stats.kstest((1 + unit[:, c]) / 2, stats.beta(half, half).cdf).pvalue > 1e-4
    np.testing.assert_allclose(unit.T @ unit / len(unit), np.eye(dimensions) / dimensions, atol=0.02)
    assert abs(np.corrcoef(radius, unit[:, 0])[0, 1]) < 0.03


def test_the_density_is_the_one_that_is_stated() -> None:
    """It integrates to 1: the radius' density is its surface integral."""
    for i in (1, 2, 3, 4, 7):
        epsilon, r = 0.8, 1.7
        constant = 0.5 * (epsilon / math.sqrt(math.pi)) ** i * math.gamma(i / 2) / math.gamma(i)
        sphere = 2 * math.pi ** (i / 2) / math.gamma(i / 2) * r ** (i - 1)
        assert constant * math.exp(-epsilon * r) * sphere == pytest.approx(stats.gamma(i, scale=1 / epsilon).pdf(r))


def test_singular_values_are_no_further_apart_than_the_pixels() -> None:
    """Mirsky: what a user who knows pixels only may take for the distance."""
    rng = np.random.default_rng(8)
    for _ in range(50):
        h, w = (int(v) for v in rng.integers(1, 30, 2))
        a, b = rng.random((2, h, w))
        apart = np.linalg.norm(np.linalg.svd(a, compute_uv=False) - np.linalg.svd(b, compute_uv=False))
        assert apart <= np.linalg.norm(a - b) + 1e-12


def _svd_audit(noise: Callable[[np.random.Generator], np.ndarray], epsilon: float, apart: np.ndarray, draws: int) -> float:
    """Lower bound of the loss between singular values 0 and ``apart``, by the likelihood ratio of the claimed density."""
    scores = []
    for side, seed in ((apart, 1), (np.zeros_like(apart), 2)):
        rng = np.random.default_rng(seed)
        found = side + np.stack([noise(rng) for _ in range(draws)])
        scores.append(epsilon * (np.linalg.norm(found, axis=1) - np.linalg.norm(found - apart, axis=1)))
    return lower_bound(*scores)


@pytest.mark.parametrize("dimensions", [1, 4])
def test_the_loss_is_not_above_epsilon_times_the_distance(dimensions: int) -> None:
    epsilon = 0.5
    apart = np.zeros(dimensions)
    apart[0] = 3.0
    made, broken = _svd(epsilon=epsilon), _svd(epsilon=2 * epsilon)  # half the noise is the noise of twice the epsilon
    found = _svd_audit(lambda rng: made.noise(dimensions, rng), epsilon, apart, 40_000)
    assert 0.6 * 1.5 < found <= 1.5
    assert _svd_audit(lambda rng: broken.noise(dimensions, rng), epsilon, apart, 40_000) > 1.5


@pytest.mark.parametrize("released", [False, True])
def test_the_loss_of_a_released_image_is_not_above_epsilon_times_the_distance(released: bool) -> None:
    """Two even images share their singular vectors, so all that tells them apart is the one value that is protected."""
    epsilon, shape, levels = 1.0, (10, 20), (100, 127)
    apart = (levels[1] - levels[0]) / 255 * math.sqrt(shape[0] * shape[1])  # 1.497
    made, broken = _svd(epsilon=epsilon, rank=1), _svd(epsilon=2 * epsilon, rank=1)

    def bound(m: MetricSvd) -> float:
        scores = []
        for level in levels[::-1]:
            rng = np.random.default_rng(level)
            values = np.full((*shape, 1), level, np.uint8)
            out = np.array([m.perturbed(values, rng).mean() for _ in range(8_000)])
            scores.append(np.clip(np.rint(out), 0, 255) if released else out)
        return lower_bound(*scores)

    assert 0.6 * apart < bound(made) <= epsilon * apart
    assert bound(broken) > epsilon * apart


# --------------------------------------------------------------------------------------------------- what both share


@pytest.mark.parametrize("name", ["dp-pix", "metric-svd"])
def test_the_whole_frame_is_replaced_whatever_a_detector_saw(name: str) -> None:
    made = kinds.anonymizers.create(name)
    made.load()
    assert not made.needs_faces
    image = _image(40, 60)
    faces = (Face(Box(5, 5, 20, 25)), Face(Box(30, 5, 50, 25)))
    outputs = [made.anonymize([Item("x", image, f, 3)])[0] for f in (None, (), faces, (Face(Box(500, 500, 600, 600)),))]
    assert all(o.status is Status.OK for o in outputs)
    assert all((o.image == outputs[0].image).all() for o in outputs)
    assert [len(o.faces) for o in outputs] == [0, 0, 2, 1]


@pytest.mark.parametrize("name", ["dp-pix", "metric-svd"])
def test_in_a_box_the_rest_keeps_every_bit_and_faces_draw_on_their_own(name: str) -> None:
    made = kinds.anonymizers.create(name, region="box", margin=1.0, epsilon=0.1)
    made.load()
    assert made.needs_faces
    tile = _image(20, 20)
    image = np.concatenate([tile, np.full((20, 5, 3), 90, np.uint8), tile], axis=1)
    faces = (Face(Box(0, 0, 20, 20)), Face(Box(25, 0, 45, 20)))
    [result] = made.anonymize([Item("x", image, faces, 3)])
    assert result.image is not None
    np.testing.assert_array_equal(result.image[:, 20:25], image[:, 20:25])
    assert (result.image[:, :20] != result.image[:, 25:]).any(), "the same face twice has two noises"
    assert made.anonymize([Item("x", image, (), 3)])[0].status is Status.NO_FACE


def test_parameters_out_of_range_are_refused() -> None:
    for name, params in [
        ("dp-pix", {"epsilon": 0}),
        ("dp-pix", {"epsilon": -1}),
        ("dp-pix", {"epsilon": "much"}),
        ("dp-pix", {"m": 0}),
        ("dp-pix", {"m": 1.5}),
        ("dp-pix", {"block": 0}),
        ("dp-pix", {"block": True}),
        ("dp-pix", {"channels": "cmyk"}),
        ("dp-pix", {"region": "ellipse"}),
        ("metric-svd", {"epsilon": 0}),
        ("metric-svd", {"rank": 0}),
        ("metric-svd", {"rank": 2.0}),
        ("metric-svd", {"region": "oval"}),
        ("metric-svd", {"margin": 0}),
    ]:
        with pytest.raises(InputError, match=next(iter(params))):
            kinds.anonymizers.create(name, **params).validate()


def test_what_is_proved_names_epsilon_and_what_is_left_open() -> None:
    said = _dp(epsilon=0.25, m=9).guarantee
    assert "epsilon = 0.25" in said and "up to 9 pixels" in said and "per image" in said and "seed is secret" in said
    assert "not protected" in _dp(region="box").guarantee
    said = _svd(epsilon=2.0, rank=6).guarantee
    assert "epsilon = 2 per unit of distance between the 6 largest singular values" in said
    assert "singular vectors are not protected" in said
    assert "per channel" in _svd(channels="rgb").guarantee
