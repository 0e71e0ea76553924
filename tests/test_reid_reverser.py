"""The reverser: shuffles are undone to the bit, regression equals scikit-learn's, and nobody held out is learnt from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deidbench.errors import InputError
from deidbench.faces import AVERAGE_FACE, FaceFinder, align, alignment, named_points, subject_face
from deidbench.images import read_image
from deidbench.kinds import attackers, datasets, recognizers
from deidbench.metrics.base import Table
from deidbench.metrics.models.base import Recognizer, l2_normalise
from deidbench.metrics.reid import _reverser_linear, _reverser_unet, identification, reverser
from deidbench.metrics.reid._reverser_columns import learn_columns, matches
from deidbench.metrics.reid._reverser_linear import PENALTIES, learn_linear
from deidbench.metrics.reid._reverser_recut import ASPECT, points_within, recut
from deidbench.metrics.reid._reverser_unet import framed, learn_unet
from deidbench.metrics.reid.base import CROP, cosine
from deidbench.metrics.reid.reverser import Reverser
from deidbench.metrics.reid.training import Training, carry_out, held_out
from deidbench.types import CropSpec, Floats, Image

Array = npt.NDArray[Any]
SIDE = 32
DLIB = recognizers.create("dlib").crop


class Thumbnails(Recognizer):
    """Not a good recogniser, but a quick one: what 8 x 8 cells differ by from their mean."""

    name = "thumbnails"

    @property
    def crop(self) -> CropSpec:
        return CROP

    def load(self) -> None:
        self.loaded = True

    def embed(self, crops: Image) -> Floats:
        assert self.loaded
        n, side = crops.shape[:2]
        cells = crops.reshape(n, 8, side // 8, 8, side // 8, 3).mean(axis=(2, 4, 5)).reshape(n, 64)
        return l2_normalise(cells - cells.mean(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def faces() -> tuple[Array, Array]:
    """The 400 ORL faces as pictures of 32 x 32 in three different colours, uint8 (400, 32, 32, 3), and whom they show."""
    import cv2

    crops, subjects = [], []
    random = np.random.default_rng(0)
    for sample in datasets.create("orl").samples():
        grey = cv2.resize(read_image(sample.path)[:, :, 0], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        # the light of every picture has a colour of its own: otherwise the channels could not be told apart
        crops.append(np.clip(grey[:, :, None] * random.uniform(0.7, 1.0, 3) + random.uniform(0, 25, 3), 0, 255))
        subjects.append(sample.subject_id)
    return np.rint(np.stack(crops)).astype(np.uint8), np.array(subjects)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """A U-Net that an earlier test trained must not answer for a later one."""
    Reverser._trained.clear()
    yield
    Reverser._trained.clear()


def shuffled(crops: Array, *, together: bool = True, seed: int = 1) -> Array:
    n, flat = len(crops), crops.reshape(len(crops), -1, 3) if together else crops.reshape(len(crops), -1)
    return flat[:, np.random.default_rng(seed).permutation(flat.shape[1])].reshape(n, *crops.shape[1:])


def pixelated(crops: Array) -> Array:
    n, side = crops.shape[:2]
    cells = np.rint(crops.reshape(n, side // 4, 4, side // 4, 4, 3).mean(axis=(2, 4))).astype(np.uint8)
    return cells.repeat(4, axis=1).repeat(4, axis=2)


def table(crops: Array, subjects: Array, *, withheld: Array | None = None) -> Table:
    n = len(crops)
    gone = np.zeros(n, bool) if withheld is None else withheld
    return Table(
        "orl", "method", np.array([f"{s}/{i}" for i, s in enumerate(subjects)]), subjects, np.full(n, "ok"), gone,
        np.zeros(n, bool), crops=np.where(gone[:, None, None, None], 0, crops).astype(np.uint8),
    )  # fmt: skip


def training(crops: Array, anonymised: Array, subjects: Array, seed: int = 0, **more: Any) -> Training:
    out = held_out(subjects, seed)
    clear, made = table(crops, subjects), table(anonymised, subjects, **more)
    learn, held = np.flatnonzero(~out), np.flatnonzero(out)
    return Training(clear.take(learn), made.take(learn), clear.take(held), made.take(held), {"thumbnails": Thumbnails()})


def leave_one_out(gallery: Array, probes: Array, subjects: Array) -> float:
    """Rank-1 by brute force; a tie counts its share."""
    hits = []
    for i, row in enumerate(cosine(gallery, probes)):
        others = np.arange(len(subjects)) != i
        best = others & (row == row[others].max())
        hits.append((subjects[best] == subjects[i]).mean())
    return float(np.mean(hits))


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_permutation_is_undone_to_the_bit(faces: tuple[Array, Array], together: bool, inverted: bool) -> None:
    """Of pixels and of single values, on persons that were not learnt from."""
    clear, _ = faces
    hidden = shuffled(255 - clear if inverted else clear, together=together)
    assert (hidden != clear).mean() > 0.9
    found = learn_columns(hidden[:200], clear[:200])
    assert found is not None
    assert found.together == together
    assert (found.restore(hidden[200:]) == clear[200:]).all()


def test_inversion_of_every_other_pixel_and_contrast_are_undone(faces: tuple[Array, Array]) -> None:
    clear, _ = faces
    random = np.random.default_rng(3)
    gain = random.choice([-1.0, -0.5, 0.5, 1.0], clear.shape[1:])
    hidden = shuffled(np.rint(np.where(gain < 0, 255, 0) + gain * clear).astype(np.uint8))
    found = learn_columns(hidden[:200], clear[:200])
    assert found is not None
    restored = found.restore(hidden[200:]).astype(int)
    assert np.abs(restored - clear[200:]).max() <= 2  # half the contrast is half the levels
    whole = np.abs(gain) == 1
    assert (restored[:, whole] == clear[200:][:, whole]).mean() > 0.999


def test_a_noisy_permutation_is_found(faces: tuple[Array, Array]) -> None:
    clear, _ = faces
    hidden = shuffled(clear) + np.random.default_rng(2).normal(0, 10, clear.shape)
    found = learn_columns(np.rint(hidden.clip(0, 255)).astype(np.uint8)[:200], clear[:200])
    assert found is not None
    right = np.random.default_rng(1).permutation(SIDE * SIDE).argsort()
    assert (found.source.reshape(-1, 3)[:, 0] // 3 == right).mean() > 0.95


def test_no_shuffle_is_seen_where_there_is_none(faces: tuple[Array, Array]) -> None:
    clear, _ = faces
    random = np.random.default_rng(4)
    anew = np.stack([shuffled(c[None], seed=i)[0] for i, c in enumerate(clear)])  # another permutation for every picture
    for hidden in (pixelated(clear), random.integers(0, 256, clear.shape).astype(np.uint8), anew, np.full_like(clear, 9)):
        assert learn_columns(hidden[:200], clear[:200]) is None


def test_matches_equal_brute_force() -> None:
    """Against numpy.corrcoef, with an anti-correlated column, one that is constant and two that are alike."""
    random = np.random.default_rng(5)
    y = random.normal(size=(1, 30, 12))
    x = y[:, :, random.permutation(12)] + random.normal(0, 0.3, (1, 30, 12))
    x[0, :, 3] *= -1
    x[0, :, 5] = 7
    x[0, :, 9] = x[0, :, 8]

    def standard(a: Array) -> Array:
        b = a - a.mean(axis=1, keepdims=True)
        return (b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.abs(np.nan_to_num(np.corrcoef(y[0].T, x[0].T)[:12, 12:]))
    which = np.array([0, 2, 3, 7, 11])
    found = matches(standard(x), standard(y), which)
    assert (found.best == r[which].argmax(axis=1)).all()
    assert found.mutual == np.mean([r[i, j] >= r[:, j].max() for i, j in zip(which, found.best, strict=True)])
    assert 9 not in matches(standard(x), standard(y), np.arange(12), both_ways=False).best


def test_a_pixel_that_never_changes_is_its_mean(faces: tuple[Array, Array]) -> None:
    clear = faces[0].copy()
    clear[:, 0, 0] = (1, 2, 3)
    found = learn_columns(shuffled(clear)[:50], clear[:50])
    assert found is not None
    assert (found.restore(shuffled(clear)[50:])[:, 0, 0] == (1, 2, 3)).all()


# --- regression ------------------------------------------------------------------------------------------------------


def test_regression_equals_scikit_learn(faces: tuple[Array, Array]) -> None:
    """The chosen penalty has the least error of all of them, and its pictures are Ridge's."""
    from sklearn.linear_model import Ridge

    clear, _ = faces
    clear = np.ascontiguousarray(clear[::4, ::4, ::4])
    hidden = np.stack([np.roll(c, 3, axis=0) for c in pixelated(clear)])
    found = learn_linear(hidden[:60], clear[:60], hidden[60:], clear[60:])
    assert found is not None
    x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (hidden, clear))
    centred = x[:60] - x[:60].mean(axis=0)
    mean = np.maximum(np.linalg.eigvalsh(centred @ centred.T), 0).mean()
    errors = {}
    for penalty in PENALTIES:
        made = Ridge(alpha=penalty * mean).fit(x[:60], y[:60]).predict(x[60:])
        errors[penalty] = float(((made - y[60:]) ** 2).mean())
        if penalty == found.penalty:
            assert np.abs(found.restore(hidden[60:]).reshape(40, -1).astype(float) - made.clip(0, 255)).max() <= 0.5 + 1e-6
    assert min(errors, key=lambda p: errors[p]) == found.penalty
    assert found.error == pytest.approx(errors[found.penalty], rel=1e-6)


def test_regression_undoes_what_can_be_undone() -> None:
    """Faces out of five pictures are known by five pixels; a picture that never changes says nothing."""
    random = np.random.default_rng(6)
    basis = random.integers(0, 51, (5, 16, 16, 3))
    clear = np.rint(np.einsum("nk,kyxc->nyxc", random.random((80, 5)), basis)).astype(np.uint8)
    found = learn_linear(pixelated(clear)[:60], clear[:60], pixelated(clear)[60:], clear[60:])
    assert found is not None
    assert np.abs(found.restore(pixelated(clear)[60:]).astype(int) - clear[60:]).mean() < 1
    flat = np.full_like(clear, 3)
    assert learn_linear(flat[:60], clear[:60], flat[60:], clear[60:]) is None


def test_regression_learns_from_so_many_and_no_more(faces: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    clear, _ = faces
    monkeypatch.setattr(_reverser_linear, "MOST", 50)
    found = learn_linear(pixelated(clear)[:300], clear[:300], pixelated(clear)[300:], clear[300:])
    assert found is not None
    assert found.inverse.shape == (50, 50)
    assert (found.clear == clear[np.linspace(0, 299, 50).round().astype(int)]).all()


# --- network ---------------------------------------------------------------------------------------------------------


def test_the_network_learns_and_repeats_itself(faces: tuple[Array, Array]) -> None:
    clear, _ = faces
    hidden = pixelated(clear)

    def train(steps: int, seed: int = 0) -> Array:
        made = learn_unet(hidden[:200], clear[:200], steps=steps, width=8, batch=2, seed=seed, device="cpu")
        out = made.restore(hidden[200:220])
        assert (made.restore(hidden[217:220]) == out[17:]).all()  # whatever it is restored with
        return out

    def error(made: Array) -> float:
        return float(np.abs(made.astype(int) - clear[200:220]).mean())

    short, long = train(3), train(60)
    assert error(long) < 0.5 * error(short)
    assert (train(3) == short).all()
    assert (train(3, seed=1) != short).any()


@pytest.mark.parametrize("side", [32, 33, 112])
def test_the_frame_resamples_nothing(side: int) -> None:
    """What goes into the network and is cut out again is the same picture, in RGB."""
    import torch

    crops = np.random.default_rng(7).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    wide = framed(crops, _reverser_unet.settings_for(side, 1, 8, 1, 0).size)
    assert wide.shape[2] in (32, 64, 128)
    assert wide.shape[1:] == (3, wide.shape[2], wide.shape[2])
    unchanged = _reverser_unet.UNet(lambda x: x, wide.shape[2], "cpu")
    assert (unchanged.restore(crops) == crops).all()
    assert torch.is_inference_mode_enabled() is False


# --- cutting again ---------------------------------------------------------------------------------------------------


def test_the_same_cut_is_left_alone() -> None:
    crops = np.random.default_rng(8).integers(0, 256, (2, 112, 112, 3)).astype(np.uint8)
    assert recut(crops, CROP, CROP) is crops
    assert recut(crops[:0], CROP, DLIB).shape == (0, 150, 150, 3)


@pytest.mark.parametrize("name", sorted(AVERAGE_FACE))
def test_points_arrive_where_the_average_face_has_them(name: str) -> None:
    """A white spot on a point in the ArcFace crop is on the same point of dlib's."""
    x, y = points_within(CROP)[name]
    at = np.arange(112) + 0.5
    spot = 255 * np.exp(-((at[None] - x) ** 2 + (at[:, None] - y) ** 2) / 8)
    [made] = recut(np.repeat(np.rint(spot).astype(np.uint8)[None, :, :, None], 3, axis=3), CROP, DLIB)
    weight = made[:, :, 0].astype(float)
    at = np.arange(150) + 0.5
    found = (weight.sum(axis=0) @ at / weight.sum(), weight.sum(axis=1) @ at / weight.sum())
    assert found == pytest.approx(points_within(DLIB)[name], abs=0.3)


def test_beyond_the_crop_it_is_black() -> None:
    """A crop that shows twice as much of the head has the given one in its middle and nothing around it."""
    wide = CropSpec(CROP.points, tuple((0.25 + x / 2, 0.25 + y / 2) for x, y in CROP.template), 112)
    [made] = recut(np.full((1, 112, 112, 3), 200, np.uint8), CROP, wide)
    assert (made[30:82, 30:82] == 200).all()
    made[26:86, 26:86] = 0
    assert not made.any()


def test_the_average_face_is_where_real_ones_are(finder: FaceFinder, orl_folder: Path) -> None:
    """The proportion of its box, its points in a crop, and a crop cut again beside the one cut out of the photograph."""
    proportions, points, apart = [], [], []
    for person in range(1, 41):
        image = read_image(orl_folder / f"s{person}" / "1.pgm")
        face = subject_face(finder.find(image, thorough=False))
        assert face is not None
        assert face.landmarks is not None
        proportions.append(face.box.width / face.box.height)
        m = alignment(face, CROP)
        points.append(named_points(face, tuple(AVERAGE_FACE)) @ m[:, :2].T + m[:, 2])
        if person <= 10:
            direct = align(image, face, DLIB)
            [again] = recut(align(image, face, CROP)[None], CROP, DLIB)
            inside = (again > 0) & (direct > 0)
            apart.append(np.corrcoef(again[inside], direct[inside])[0, 1])
    assert np.median(proportions) == pytest.approx(ASPECT, abs=0.02)
    mean = np.array(list(points_within(CROP).values()))
    assert np.abs(np.median(points, axis=0) - mean).max() < 1.5  # of 112 pixels
    assert np.median(apart) > 0.9


# --- the attacker ----------------------------------------------------------------------------------------------------


def fitted(data: Training, seed: int = 0, **params: Any) -> Reverser:
    attacker = Reverser(**params)
    attacker.fit(data, "thumbnails", seed)
    return attacker


def test_it_is_registered_and_says_what_it_knows() -> None:
    made = attackers.create("reverser", steps=3)
    assert isinstance(made, Reverser)
    assert (made.gallery, made.reads, made.columns(["a", "b"])) == ("clear", "crops", ["a", "b"])
    assert made.params() == {"steps": 3, "width": 16, "batch": 1, "device": "cpu"}
    assert made.learnt == ""
    for wrong in ({"steps": -1}, {"width": 0}, {"batch": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            attackers.create("reverser", **wrong)


def test_the_ladder_on_a_permutation(faces: tuple[Array, Array]) -> None:
    """Chance for who only looks, the recogniser's clear figure for who reverses, on persons that nobody learnt from."""
    clear, subjects = faces
    hidden = shuffled(clear)
    mine = np.isin(subjects, [f"s{n}" for n in range(1, 26)])
    attempt = carry_out(
        Reverser(),
        "thumbnails",
        0,
        (table(clear[mine], subjects[mine]), table(hidden[mine], subjects[mine])),
        (table(clear[~mine], subjects[~mine]), table(hidden[~mine], subjects[~mine])),
        {"thumbnails": Thumbnails()},
    )
    stock = Thumbnails()
    stock.load()
    plain = stock.embed(clear[~mine])
    assert attempt.failure == ""
    assert "column matching (100% of pixels" in attempt.learnt
    assert (attempt.probes == plain).all()
    assert (attempt.gallery == plain).all()
    reversed_ = leave_one_out(attempt.gallery, attempt.probes, subjects[~mine])
    assert reversed_ >= 0.9
    assert leave_one_out(plain, stock.embed(hidden[~mine]), subjects[~mine]) < 0.3
    assert attempt.held_out_probes.shape == (50, 64)


def test_a_clear_picture_stays_as_it_is(faces: tuple[Array, Array]) -> None:
    clear, subjects = faces
    attacker = fitted(training(clear, clear, subjects))
    assert attacker.learnt.startswith("as it is, held-out rank-1")
    assert len(attacker.tried_) == 1  # nothing else was learnt
    given = table(clear, subjects)
    assert (attacker.represent(given) == attacker.represent(given, enrolled=True)).all()


def test_nothing_is_learnt_from_one_picture(faces: tuple[Array, Array]) -> None:
    """All probes are the same then, and so is what they name."""
    clear, subjects = faces
    attacker = fitted(training(clear, np.full_like(clear, 77), subjects))
    assert "nothing to learn" in attacker.learnt
    probes = attacker.represent(table(np.full_like(clear, 77), subjects))
    assert (probes == probes[0]).all()
    gallery = attacker.represent(table(clear, subjects), enrolled=True)
    # one image is named by all probes (its own probe names the next): at most the ten probes of two persons in 400
    assert leave_one_out(gallery, probes, subjects) <= 10 / 400


def test_the_best_on_held_out_persons_is_used(faces: tuple[Array, Array]) -> None:
    """Against brute force, and every way back is among those tried."""
    clear, subjects = faces
    data = training(clear, pixelated(shuffled(clear)), subjects)
    attacker = fitted(data, steps=10, width=4, batch=2)
    titles = [c.title for c in attacker.tried_]
    assert titles == ["as it is", "ridge regression", "U-Net (10 steps)"]
    held = data.held_out_anonymised
    assert held.crops is not None
    gallery = attacker.represent(data.held_out_clear, enrolled=True)
    for candidate in attacker.tried_:
        attacker.best_, kept = candidate, attacker.best_
        assert candidate.rank1 == pytest.approx(leave_one_out(gallery, attacker.represent(held), held.subjects))
        attacker.best_ = kept
    assert attacker.best_.rank1 == max(c.rank1 for c in attacker.tried_)
    assert attacker.learnt.startswith(f"{attacker.best_.title}, held-out rank-1 {attacker.best_.rank1:.2f} (")
    assert [c.title for c in fitted(data, steps=0).tried_] == titles[:2]


def test_the_network_gets_pixels_in_their_order(faces: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    """A noisy shuffle is put in order first."""
    clear, subjects = faces
    noise = np.random.default_rng(2).normal(0, 10, clear.shape)
    hidden = np.rint((shuffled(clear) + noise).clip(0, 255)).astype(np.uint8)
    seen: list[Array] = []

    def spy(anonymised: Array, clear: Array, **more: Any) -> Any:
        seen.append(anonymised)
        return reverser.AsItIs()

    monkeypatch.setattr(reverser, "learn_unet", spy)
    data = training(clear, hidden, subjects)
    attacker = fitted(data)
    assert attacker.tried_[-1].title == "column matching, then U-Net (400 steps)"
    assert data.clear.crops is not None
    assert np.abs(seen[0].astype(int) - data.clear.crops).mean() < 15


def test_nobody_held_out_is_learnt_from(faces: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    """No held-out picture, clear or not, is among those that anything is fitted to, nor one that was withheld."""
    clear, subjects = faces
    hidden = pixelated(clear)
    gone = np.arange(len(clear)) % 7 == 0
    data = training(clear, hidden, subjects, withheld=gone)
    fit_to: dict[str, list[Array]] = {}

    def spying(name: str) -> None:
        real = getattr(reverser, name)

        def spy(*crops: Array, **more: Any) -> Any:
            fit_to[name] = list(crops[:2])
            return real(*crops, **more)

        monkeypatch.setattr(reverser, name, spy)

    for name in ("learn_columns", "learn_linear", "learn_unet"):
        spying(name)
    fitted(data, steps=2, width=4)
    assert set(fit_to) == {"learn_columns", "learn_linear", "learn_unet"}
    out = held_out(subjects, 0)
    allowed = ({c.tobytes() for c in hidden[~out & ~gone]}, {c.tobytes() for c in clear[~out & ~gone]})
    for pairs in fit_to.values():
        for crops, good in zip(pairs, allowed, strict=True):
            assert {c.tobytes() for c in crops} == good
    forbidden = {c.tobytes() for c in clear[out | gone]}
    assert not forbidden & allowed[1]  # the check above could fail


def test_the_same_seed_gives_the_same_figures(faces: tuple[Array, Array]) -> None:
    """A fresh process and one that has the network already; a row does not depend on the others."""
    clear, subjects = faces[0][:80], faces[1][:80]
    data = training(clear, pixelated(clear), subjects)
    given = table(pixelated(clear), subjects)

    def unet(attacker: Reverser) -> Array:
        attacker.best_ = attacker.tried_[-1]
        assert "U-Net" in attacker.best_.title
        return attacker.represent(given)

    first = fitted(data, steps=5, width=4)
    rows = unet(first)
    assert len(Reverser._trained) == 1
    assert (unet(fitted(data, steps=5, width=4)) == rows).all()
    assert len(Reverser._trained) == 1  # was not trained again
    Reverser._trained.clear()
    assert (unet(fitted(data, steps=5, width=4)) == rows).all()
    assert (unet(fitted(data, seed=1, steps=5, width=4)) != rows).any()
    for candidate in first.tried_:
        first.best_ = candidate
        whole = first.represent(given)
        some = np.array([79, 3, 40])
        assert (first.represent(given.take(some)) == whole[some]).all()


def test_withheld_images_are_nan(faces: tuple[Array, Array]) -> None:
    clear, subjects = faces
    attacker = fitted(training(clear, shuffled(clear), subjects), steps=0)
    gone = np.arange(len(clear)) % 3 == 0
    rows = attacker.represent(table(shuffled(clear), subjects, withheld=gone))
    assert np.isnan(rows[gone]).all()
    assert np.isfinite(rows[~gone]).all()
    nothing = attacker.represent(table(clear, subjects, withheld=np.ones(len(clear), bool)))
    assert nothing.shape == (len(clear), 64)
    assert np.isnan(nothing).all()


def test_too_few_pairs_are_a_reason(faces: tuple[Array, Array]) -> None:
    clear, subjects = faces
    both = table(clear, subjects)
    for images, text in (
        (20, "10 pairs of released images to learn from and 10 held out"),
        (10, "10 pairs of released images"),
    ):
        few = both.take(np.arange(images))  # of two persons, and of one
        attempt = carry_out(
            Reverser(), "thumbnails", 0, (few, few), (both.take(np.arange(200, 220)),) * 2, {"thumbnails": Thumbnails()}
        )
        assert text in attempt.failure
        assert attempt.probes.shape == (0, 1)


def test_without_mates_the_pictures_are_compared(faces: tuple[Array, Array]) -> None:
    """One image a person: there is no rank-1 among the held-out persons."""
    clear, subjects = faces
    alone = slice(None, None, 10)
    attacker = fitted(training(clear[alone], pixelated(clear[alone]), subjects[alone]), steps=0)
    assert "levels" in attacker.learnt
    assert attacker.best_.error == min(c.error for c in attacker.tried_)


def test_wrong_calls_are_named(faces: tuple[Array, Array]) -> None:
    from dataclasses import replace

    clear, subjects = faces
    data = training(clear, clear, subjects)
    with pytest.raises(ValueError, match="'sface' was not given"):
        Reverser().fit(data, "sface", 0)
    with pytest.raises(ValueError, match="crops"):
        Reverser().fit(replace(data, clear=replace(data.clear, crops=None)), "thumbnails", 0)


# --- real faces ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hq(shared_data: Path) -> dict[str, tuple[Array, Array]]:
    """role -> aligned crops uint8 (750, 112, 112, 3) and persons of CelebA-HQ's evaluate and attacker_train."""
    from deidbench.datasets.folder import Folder

    finder, out = FaceFinder(), {}
    for role in ("evaluate", "attacker_train"):
        crops, subjects = [], []
        for sample in Folder(shared_data / "celeba_hq", role=role).samples():
            image = read_image(sample.path)
            face = subject_face(finder.find(image, thorough=False))
            if face is not None:
                crops.append(align(image, face, CROP))
                subjects.append(sample.subject_id)
        out[role] = np.stack(crops), np.array(subjects)
    return out


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("method", "steps", "least"), [("permutation", 0, 0.9), ("pixelation", 400, 0.25)])
def test_celeba_hq_at_crop_level(hq: dict[str, tuple[Array, Array]], method: str, steps: int, least: float) -> None:
    """150 x 5 faces, leave-one-out, learnt from 150 other persons: the floors of the ladder's proof."""

    def anonymise(crops: Array) -> Array:
        if method == "permutation":
            return shuffled(crops)
        n = len(crops)
        return np.rint(crops.reshape(n, 14, 8, 14, 8, 3).mean(axis=(2, 4))).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)

    tables = {role: (table(crops, subjects), table(anonymise(crops), subjects)) for role, (crops, subjects) in hq.items()}
    sface = recognizers.create("sface")
    if why := sface.missing():
        pytest.skip(why)
    attempt = carry_out(Reverser(steps=steps), "sface", 0, tables["attacker_train"], tables["evaluate"], {"sface": sface})
    subjects = tables["evaluate"][0].subjects
    person = np.unique(subjects, return_inverse=True)[1]
    scores = cosine(attempt.gallery, attempt.probes)
    standing = identification.identify(lambda rows: scores[rows], person, person, np.arange(len(person)))
    assert identification.hits(*standing, 1).mean() >= least
