"""The classifiers that ship: their network, their files, and how well they read the shared faces."""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deidbench import kinds
from deidbench.errors import InputError, MissingError
from deidbench.metrics.models import network
from deidbench.metrics.models.labels import ATTRIBUTES, EMOTIONS
from deidbench.metrics.models.network import Description, Inference, Layout, fold, load_classifier, save_classifier, trainable
from deidbench.metrics.models.own import WEIGHTS, AttributesCnn, EmotionCnn

GREY = Layout(True, 24, 4, (4, 6), (1, 2), 3)
COLOUR = Layout(False, 27, 4, (6, 6, 8), (2, 1, 2), 2, grid=2)


def crops(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    return np.ascontiguousarray(small.repeat(size // 8, 1).repeat(size // 8, 2))


def state(layout: Layout, seed: int = 1):
    """A network after a few batches, so that its normalisations have statistics."""
    import torch

    net = trainable(layout, 0.2, seed)
    x = torch.randn(16, 1 if layout.grey else 3, layout.side, layout.side, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        for _ in range(5):
            net(x * 2 + 0.5)
    return net.eval()


def written(
    path: Path, task: str = "emotion", labels: tuple[str, ...] = ("anger", "fear", "neutral"), layout: Layout = GREY
) -> Path:
    description = Description(task, labels, layout, ("somewhere",), "free", {"celeba": ("12", "7")}, {"data": "none"})
    save_classifier(path, fold(state(layout).state_dict(), layout), description, np.array([3, 2**64 - 1, 3], np.uint64))
    return path


@pytest.mark.parametrize("layout", [GREY, COLOUR])
def test_the_folded_network_says_what_the_trained_one_says(layout: Layout, tmp_path: Path) -> None:
    import torch

    net = state(layout)
    weights = fold(net.state_dict(), layout)
    assert {k: v.shape for k, v in weights.items()} == layout.shapes()
    x = crops(5, 64)
    task = "emotion"
    loaded = network.Loaded(Description(task, tuple("abcdefgh"[: layout.outputs]), layout), weights, np.zeros(0, np.uint64))
    logits, features = Inference(loaded)(x)
    with torch.no_grad():
        t = network.standardise(network.shrink(x, layout), layout.grey)
        expected = (net(t) + net(t.flip(3))) / 2
    np.testing.assert_allclose(logits, expected.numpy(), atol=2e-5)
    assert features.shape == (5, layout.features)
    np.testing.assert_allclose(
        features[:, : layout.widths[-1]] @ weights["head.weight"].T + weights["head.bias"], logits, atol=1e-5
    )


def test_the_grid_says_where_in_the_face(tmp_path: Path) -> None:
    import torch

    net = state(COLOUR)
    loaded = network.Loaded(Description("emotion", ("a", "b"), COLOUR), fold(net.state_dict(), COLOUR), np.zeros(0, np.uint64))
    x = crops(3, 64)
    with torch.no_grad():
        maps = []
        for flip in (False, True):
            t = network.standardise(network.shrink(x, COLOUR), False)
            y = torch.relu(net.stem_norm(net.stem(t.flip(3) if flip else t)))
            y = net.block1(net.block0(y))
            maps.append(y.flip(3) if flip else y)
        mean = ((maps[0] + maps[1]) / 2).numpy()
    half = (mean.shape[2] + 1) // 2  # an odd side: the middle counts on both sides
    want = np.stack(
        [[m[:, a : a + half, b : b + half].mean((1, 2)) for a in (0, half - 1) for b in (0, half - 1)] for m in mean]
    )
    np.testing.assert_allclose(Inference(loaded)(x)[1][:, 8:].reshape(3, 6, 4), want.transpose(0, 2, 1), atol=2e-5)


def test_grey_input_is_the_rounded_mean_and_does_not_know_brightness_or_colour() -> None:
    layout = replace(GREY, side=64)
    x = crops(3, 64)
    got = network.shrink(x, layout)
    np.testing.assert_array_equal((got[:, 0] * 255).round().numpy(), np.round(x.astype(np.float64).mean(-1)))
    standard = network.standardise(got, True)
    np.testing.assert_allclose(standard.mean((1, 2, 3)).numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(network.standardise(got * 0.5 + 0.2, True).numpy(), standard.numpy(), atol=0.5)
    # averaging down is an average
    np.testing.assert_allclose(network.shrink(x, GREY).mean((1, 2, 3)).numpy(), got.mean((1, 2, 3)).numpy(), atol=1e-5)


def test_round_trip(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors")
    loaded = load_classifier(path)
    assert loaded.description.labels == ("anger", "fear", "neutral") and loaded.description.layout == GREY
    assert loaded.description.trained_on == ("somewhere",) and loaded.description.persons == {"celeba": ("12", "7")}
    assert loaded.images.tolist() == [3, 2**64 - 1]
    net = fold(state(GREY).state_dict(), GREY)
    for key, value in loaded.weights.items():
        np.testing.assert_allclose(value, net[key], rtol=1e-3, atol=1e-6)
    again = tmp_path / "b.safetensors"
    save_classifier(again, loaded.weights, loaded.description, loaded.images)
    assert again.read_bytes() == path.read_bytes()  # same content, same bytes
    assert network.read_description(path) == loaded.description


def test_a_threshold_becomes_the_zero(tmp_path: Path) -> None:
    loaded = load_classifier(written(tmp_path / "a.safetensors"))
    moved = network.shifted(loaded, np.array([0.5, -1.0, 0.0]))
    x = crops(2, 64)
    np.testing.assert_allclose(Inference(moved)(x)[0], Inference(loaded)(x)[0] - [0.5, -1.0, 0.0], atol=1e-5)


def rewritten(path: Path, metadata: dict[str, str] | None = None, **tensors: np.ndarray | None) -> Path:
    """The file with other tensors (None: without) or metadata."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(str(path), framework="np") as f:
        meta = f.metadata() if metadata is None else metadata
        all_ = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    for key, value in tensors.items():
        name = key.replace("__", ".")
        all_.pop(name, None)
        if value is not None:
            all_[name] = value
    save_file(all_, str(path), meta)
    return path


def _nan() -> np.ndarray:
    w = np.zeros((3, 6), np.float16)
    w[1, 2] = np.nan
    return w


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"head__weight": _nan()}, "not finite"),
        ({"head__weight": None}, "lacks the tensor head.weight"),
        ({"head__weight": np.zeros((6, 3), np.float16)}, "expected"),
        ({"head__bias": np.zeros(3, np.int32)}, "not floating point"),
        ({"head__extra": np.zeros(3, np.float32)}, "does not have: head.extra"),
        ({"lessons__images": np.zeros((2, 2), np.uint64)}, "a row of U64"),
        ({"lessons__images": np.zeros(2, np.float32)}, "a row of U64"),
        ({"lessons__images": None}, "lacks the tensor lessons.images"),
    ],
)
def test_wrong_tensors_are_named(tensors: dict[str, np.ndarray | None], words: str, tmp_path: Path) -> None:
    path = rewritten(written(tmp_path / "hostile.safetensors"), **tensors)
    with pytest.raises(InputError, match=words) as caught:
        load_classifier(path)
    assert "hostile.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"task": "age"},
        {"task": "attributes"},  # its faces are cut otherwise
        {"labels": ["anger", "anger", "fear"]},
        {"labels": "abc"},
        {"labels": [1, 2, 3]},
        {"widths": [10**9, 6]},
        {"widths": [4.0, 6]},
        {"strides": [1, 3]},
        {"side": "big"},
        {"side": 10**6},
        {"grey": 1},
        {"grid": 100},
        {"crop": [["eye_l"], [[0.5, 0.5]], 64]},
        {"crop": None},
        {"persons": ["celeba"]},
    ],
)
def test_descriptions_that_make_no_sense(change: dict[str, object], tmp_path: Path) -> None:
    path = written(tmp_path / "hostile.safetensors")
    meta = Description("emotion", ("anger", "fear", "neutral"), GREY).pack()
    meta["description"] = json.dumps({**json.loads(meta["description"]), **change})
    rewritten(path, meta)
    for read in (load_classifier, network.read_description):
        with pytest.raises(InputError, match=r"hostile.safetensors.*makes no sense"):
            read(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.safetensors").read_bytes()
    for content in (
        b"",
        b"x" * 100,
        whole[:50],
        whole[:-10],
        (2**62).to_bytes(8, "little") + whole[8:],
        pickle.dumps({"a": 1}),
    ):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            load_classifier(path)
    with pytest.raises(MissingError, match="nowhere"):
        load_classifier(tmp_path / "nowhere.safetensors")
    for meta in ({}, {"format": "other"}, {"format": network.FORMAT}, {"format": network.FORMAT, "description": "["}):
        path = rewritten(written(tmp_path / "b.safetensors"), meta)
        with pytest.raises(InputError, match=r"b\.safetensors"):
            load_classifier(path)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.safetensors")
    mine = kinds.classifiers.create("emotion-cnn", path=str(path))
    assert mine.labels == ("anger", "fear", "neutral") and mine.trained_on == ("somewhere",) and mine.licence == "free"
    assert mine.embed(crops(2, 64)).shape == (2, 3 + 6)
    assert mine.lessons().images == {"0000000000000003", "f" * 16} and mine.lessons().persons == {
        "celeba": frozenset({"12", "7"})
    }
    assert mine.fingerprint != EmotionCnn().fingerprint
    wrong = kinds.classifiers.create("attributes-cnn", path=str(path))
    with pytest.raises(InputError, match="reads emotion, not attributes"):
        wrong.load()
    absent = EmotionCnn(path=str(tmp_path / "no.safetensors"))
    assert "no.safetensors" in absent.missing() and absent.weights_sha256() == ""
    with pytest.raises(MissingError):
        absent.load()


# -- the shipped ones ----------------------------------------------------------------------------------------------------
@pytest.fixture(params=[EmotionCnn, AttributesCnn])
def shipped(request: pytest.FixtureRequest):
    return request.param()


def test_shipped_says_what_its_file_says(shipped) -> None:
    assert shipped.missing() == ""
    said = shipped.description()
    assert said.labels == shipped.labels == type(shipped).labels
    assert said.trained_on == shipped.trained_on == type(shipped).trained_on
    assert said.licence == shipped.licence and shipped.citation
    assert said.labels == (EMOTIONS if shipped.task == "emotion" else ATTRIBUTES)
    assert (WEIGHTS / shipped.shipped).with_suffix(".md").is_file()


def test_shipped_weights_are_small() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 12e6


def test_probabilities_and_features(shipped) -> None:
    x = crops(7, shipped.crop.size)
    p, both = shipped.predict(x), shipped.embed(x)
    k = len(shipped.labels)
    assert p.dtype == both.dtype == np.float32 and p.shape == (7, k) and both.shape[1] > k
    np.testing.assert_array_equal(both[:, :k], p)
    assert ((p >= 0) & (p <= 1)).all()
    if not shipped.multilabel:
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert shipped.embed(x[:0]).shape == (0, both.shape[1]) and shipped.predict(x[:0]).shape == (0, k)
    for bad in (x.astype(np.float32), x[:, :-1], x[0], list(x)):
        with pytest.raises(InputError, match=shipped.name):
            shipped.embed(bad)


def test_a_face_is_read_the_same_in_any_batch(shipped) -> None:
    x = crops(70, shipped.crop.size, seed=3)
    together = shipped.embed(x)
    for i in (0, 33, 69):
        np.testing.assert_allclose(shipped.embed(x[i : i + 1])[0], together[i], atol=1e-5)
    np.testing.assert_allclose(shipped.embed(x[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_array_equal(shipped.embed(x), together)
    # both are averaged with their mirror image
    lay = shipped.description().layout
    plain = len(shipped.labels) + lay.widths[-1]
    mirrored = shipped.embed(x[:5, :, ::-1])
    np.testing.assert_allclose(mirrored[:, :plain], together[:5, :plain], atol=1e-5)
    # the grid knows left from right: that of the mirror image is mirrored
    places = mirrored[:, plain:].reshape(5, -1, lay.grid or 1, lay.grid or 1)[..., ::-1].reshape(5, -1)
    np.testing.assert_allclose(places, together[:5, plain:], atol=1e-5)


def test_a_copy_travels_without_the_weights(shipped) -> None:
    x = crops(2, shipped.crop.size)
    before = shipped.embed(x)
    sent = pickle.dumps(shipped)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).embed(x), before)


def test_lessons_of_the_shipped() -> None:
    emotion, attributes = EmotionCnn().lessons(), AttributesCnn().lessons()
    assert len(emotion.images) > 30_000 and emotion.persons == {}
    assert len(attributes.images) == 10_358  # of 10,363 files; five are there twice
    assert len(attributes.persons["celeba"]) == 2_656
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in [*emotion.images, *attributes.images])


def test_nothing_that_is_evaluated_on_was_learnt(shared_data: Path) -> None:
    import hashlib

    from deidbench.images import sha256_file

    images = EmotionCnn().lessons().images | AttributesCnn().lessons().images
    for name in ("ck48", "london", "lfw"):
        files = sorted(p for p in (shared_data / name).rglob("*") if p.suffix.lower() in (".png", ".jpg"))[:200]
        assert files and not images & {sha256_file(p)[:16] for p in files}
    persons = AttributesCnn().lessons().persons["celeba"]
    with (shared_data / "celeba_hq" / "manifest.csv").open() as f:
        rows = [r for r in csv.DictReader(f) if r["role"] in ("evaluate", "attacker_train")]
    assert rows and not persons & {r["subject_id"] for r in rows}
    root = shared_data / "celeba_hq"
    assert not images & {hashlib.sha256((root / r["path"]).read_bytes()).hexdigest()[:16] for r in rows[:200]}


# -- how well they read --------------------------------------------------------------------------------------------------
def read(root: Path, classifier, finder, want, role: str | None = None):
    """Embeddings, rows of the manifest and whether a face was found, of the rows that ``want`` takes."""
    from deidbench.faces import align, subject_face
    from deidbench.images import read_image

    with (root / "manifest.csv").open() as f:
        rows = [r for r in csv.DictReader(f) if role in (None, r.get("role"))]
    rows = [r for i, r in enumerate(rows) if want(i, r)]
    cut, kept = [], []
    for row in rows:
        image = read_image(root / row["path"])
        face = subject_face(finder.find(image, thorough=False))
        if face is not None:
            cut.append(align(image, face, classifier.crop))
            kept.append(row)
    return classifier.embed(np.stack(cut)), kept, len(rows) - len(kept)


def recalls(truth: np.ndarray, said: np.ndarray) -> float:
    return float(np.mean([(said[truth == c] == c).mean() for c in np.unique(truth)]))


def folded_accuracy(features: np.ndarray, truth: np.ndarray, persons: list[str], folds: int = 10) -> np.ndarray:
    """What person-disjoint logistic regression says of each."""
    from deidbench.metrics.soft_biometrics import fit

    who = np.unique(persons, return_inverse=True)[1]
    fold_of = np.random.default_rng(0).permutation(who.max() + 1) % folds
    classes = int(truth.max()) + 1
    out = np.empty(len(truth), int)
    for k in range(folds):
        test = fold_of[who] == k
        reader = fit(features[~test], [truth[~test]], [classes])
        z = (features[test] - reader.mean) * reader.scale @ reader.weights + reader.bias
        out[test] = z.argmax(1) if classes > 2 else (z[:, 0] > 0).astype(int)
    return out


def test_attributes_on_some_of_celeba(shared_data: Path, finder) -> None:
    classifier = AttributesCnn()
    got, rows, lost = read(shared_data / "celeba_hq", classifier, finder, lambda i, r: i % 10 == 0, "evaluate")
    assert lost <= 2 and len(rows) >= 70
    for name, least in (("Male", 0.9), ("Smiling", 0.85), ("Eyeglasses", 0.9)):
        truth = np.array([int(r[name]) for r in rows])
        assert recalls(truth, (got[:, ATTRIBUTES.index(name)] > 0.5).astype(int)) >= least, name


def test_emotions_on_some_of_ck(shared_data: Path, finder) -> None:
    classifier = EmotionCnn()
    got, rows, _ = read(shared_data / "ck48", classifier, finder, lambda i, r: i % 6 == 0)
    truth = np.array([EMOTIONS.index(r["emotion"]) for r in rows])
    there = np.unique(truth)
    assert recalls(truth, there[got[:, there].argmax(1)]) > 0.5  # chance: 1/7


@pytest.mark.slow
def test_all_of_celeba(shared_data: Path, finder) -> None:
    got, rows, _ = read(shared_data / "celeba_hq", AttributesCnn(), finder, lambda i, r: True, "evaluate")
    each = {}
    for k, name in enumerate(ATTRIBUTES):
        truth = np.array([int(r[name]) for r in rows])
        if 0 < truth.sum() < len(truth):
            each[name] = recalls(truth, (got[:, k] > 0.5).astype(int))
    print(json.dumps({k: round(v, 3) for k, v in each.items()}))  # noqa: T201
    assert np.mean(list(each.values())) >= 0.82
    assert each["Male"] >= 0.94 and each["Smiling"] >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stock", "probe"), [("ck48", 0.55, 0.82), ("london", 0.75, 0.85), ("lfw", 0.3, 0.35)])
def test_all_of_the_labelled_sets(shared_data: Path, finder, name: str, stock: float, probe: float) -> None:
    classifier = EmotionCnn()
    got, rows, lost = read(shared_data / name, classifier, finder, lambda i, r: bool(r.get("emotion")))
    classes = sorted({r["emotion"] for r in rows})
    columns = [EMOTIONS.index(c) for c in classes]
    truth = np.array([classes.index(r["emotion"]) for r in rows])
    head = recalls(truth, got[:, columns].argmax(1))
    said = folded_accuracy(got[:, len(EMOTIONS) :].astype(np.float64), truth, [r["subject_id"] for r in rows])
    print(name, len(rows), "lost", lost, "stock", round(head, 4), "probe UAR", round(recalls(truth, said), 4))  # noqa: T201
    assert head >= stock and recalls(truth, said) >= probe
