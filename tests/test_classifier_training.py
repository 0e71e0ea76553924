"""Training of classifiers: targets, changes of the pictures, exact resumption, the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deidbench.errors import InputError
from deidbench.metrics.models import classifier_training as ct
from deidbench.metrics.models.labels import ATTRIBUTES, EMOTIONS
from deidbench.metrics.models.network import load_classifier

SMALL = ct.Settings(side=16, stem=4, widths=(4, 8), strides=(1, 2), epochs=4, batch=16, learning_rate=0.01, ema=0.9, seed=3)


def faces(settings: ct.Settings, n: int = 96, seed: int = 0) -> ct.Faces:
    """Pictures whose upper half is bright or dark by class, of n / 3 persons."""
    rng = np.random.default_rng(seed)
    channels = 1 if settings.grey else 3
    pixels = rng.integers(60, 140, (n, settings.side, settings.side, channels)).astype(np.uint8)
    kind = rng.integers(0, 2, n)
    pixels[kind == 1, : settings.side // 2] += 80
    subjects = [f"p{i // 3}" for i in range(n)]
    sha = [f"{i:064x}" for i in range(1, n + 1)]
    if settings.task == "emotion":
        names, targets = EMOTIONS, ct.one_hot(["happiness" if k else "neutral" for k in kind])
    else:
        names, targets = ATTRIBUTES, np.full((n, 40), np.nan, np.float32)
        targets[:, ATTRIBUTES.index("Smiling")] = kind
        targets[:, ATTRIBUTES.index("Bald")] = 0  # never there: cannot be learnt
        targets[:, ATTRIBUTES.index("Male")] = 1 - kind
        targets[::7, ATTRIBUTES.index("Male")] = np.nan
    return ct.assemble(pixels, targets, names, subjects, sha, settings)


def test_votes_become_shares() -> None:
    names = ["neutral", "happiness", "surprise", "unknown", "NF"]
    votes = np.array(
        [[6, 4, 0, 0, 0], [9, 1, 0, 0, 0], [3, 0, 0, 7, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [2, 2, 2, 1, 3], [5, 0, 0, 5, 0]]
    )
    got = ct.emotion_targets(votes, names, 2)
    n, h, s = (EMOTIONS.index(w) for w in ("neutral", "happiness", "surprise"))
    want = np.zeros((2, 8))
    want[0, [n, h]], want[1, n] = (0.6, 0.4), 1  # one vote alone does not count
    np.testing.assert_allclose(got[:2], want, atol=1e-6)
    assert np.isnan(got[2:]).all()  # most say unknown; nobody twice; nobody; most say no face; as many say unknown
    np.testing.assert_allclose(ct.emotion_targets(votes[3:4], names, 1)[0, [n, h, s]], 1 / 3, atol=1e-6)


def test_words_for_emotions() -> None:
    got = ct.one_hot(["Happy", "anger", None, "", "bored"])
    assert got[0, EMOTIONS.index("happiness")] == 1 and got[1, EMOTIONS.index("anger")] == 1
    assert (got[:2].sum(1) == 1).all() and np.isnan(got[2:]).all()


def test_held_out_persons_are_never_learnt_from() -> None:
    subjects = [f"p{i % 50}" for i in range(500)]
    out = ct.hold_out(subjects, 0.1, 1)
    inside, outside = ({s for s, h in zip(subjects, out, strict=True) if h == part} for part in (False, True))
    assert not inside & outside and 1 <= len(outside) <= 12
    assert (ct.hold_out(subjects, 0.1, 1) == out).all() and (ct.hold_out(subjects, 0.1, 2) != out).any()
    assert ct.hold_out(["a", "a", "b"], 0.01, 0).sum() in (1, 2)  # one person at least
    assert not ct.hold_out(["a", "a"], 0.5, 0).any() and not ct.hold_out(subjects, 0, 0).any()


def test_assembling_keeps_what_can_be_learnt() -> None:
    got = faces(SMALL)
    assert got.labels == ("happiness", "neutral") and got.targets.shape == (96, 2)
    attributes = replace(SMALL, task="attributes", grey=False)
    got = faces(attributes)
    assert got.labels == ("Male", "Smiling") and np.isnan(got.targets[:, 0]).sum() == 14
    with pytest.raises(InputError, match="too few classes"):
        ct.assemble(got.pixels, np.full((96, 1), 1.0, np.float32), ("Bald",), got.subjects, got.sha256, attributes)
    # rows without any label go, with what belongs to them
    targets = ct.one_hot(["neutral", None, "fear"] * 32)
    less = ct.assemble(got.pixels, targets, EMOTIONS, got.subjects, got.sha256, SMALL)
    assert len(less.pixels) == len(less.subjects) == len(less.sha256) == len(less.held_out) == len(less.targets) == 64
    assert less.labels == ("fear", "neutral") and less.sha256[1] == got.sha256[2]
    np.testing.assert_array_equal(less.pixels[1], got.pixels[2])


@pytest.mark.parametrize("task", ["emotion", "attributes"])
def test_class_weights(task: str) -> None:
    s = replace(SMALL, task=task, balance=1.0)
    if task == "emotion":
        t = np.eye(3, dtype=np.float32)[[0] * 6 + [1] * 3 + [2]]
        w = ct.class_weights(t, s)
        np.testing.assert_allclose(w * t.mean(0), 1 / 3, atol=1e-6)  # every class weighs the same in all
        np.testing.assert_allclose(ct.class_weights(t, replace(s, balance=0.0)), 1)
        half = ct.class_weights(t, replace(s, balance=0.5))
        np.testing.assert_allclose(half[2] / half[0], math.sqrt(6), rtol=1e-5)
    else:
        t = np.array([[1, 0], [0, 0], [0, 0], [0, np.nan]], np.float32)
        w = ct.class_weights(t, s)
        np.testing.assert_allclose(w[:, 0], [0.5 / 0.75, 0.5 / 0.25], rtol=1e-5)
        np.testing.assert_allclose(w[1, 1], 0.5 / 0.03, rtol=1e-5)  # the greatest weight there is


def test_the_loss_is_what_its_formula_says() -> None:
    import torch

    s = replace(SMALL, task="attributes", grey=False, balance=1.0, smoothing=0.1)
    trainer = ct.Trainer(faces(s), s)
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.0]])
    targets = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    total = 0.0
    for i, k in ((0, 0), (1, 0), (1, 1)):
        t, p = float(targets[i, k]), 1 / (1 + math.exp(-float(logits[i, k])))
        smooth = t * 0.8 + 0.1
        total -= float(trainer.weights[int(t), k]) * (smooth * math.log(p) + (1 - smooth) * math.log(1 - p))
    assert float(trainer.loss(logits, targets)) == pytest.approx(total / 3, rel=1e-5)

    s = replace(SMALL, smoothing=0.2)
    trainer = ct.Trainer(faces(s), s)
    p = np.exp([0.3, -1.2]) / np.exp([0.3, -1.2]).sum()
    w = trainer.weights.numpy()
    want = -(0.9 * w[0] * math.log(p[0]) + 0.1 * w[1] * math.log(p[1]))
    assert float(trainer.loss(logits[:1], torch.tensor([[1.0, 0.0]]))) == pytest.approx(want, rel=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [ct.learning_rate(i, 100, SMALL) for i in range(100)]
    assert np.argmax(rates) == 20 and rates[20] == pytest.approx(0.01) and rates[0] == pytest.approx(0.0004)
    assert (np.diff(rates[:21]) > 0).all() and (np.diff(rates[20:]) < 0).all() and 0 < rates[-1] < 1e-5
    assert ct.learning_rate(0, 1, replace(SMALL, warmup=0.0)) == pytest.approx(0.01)


def test_changes_follow_from_the_draws_alone() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    draws = rng.random((12, 24))
    s = replace(SMALL, grey=False, colour=0.1, coarsen=0.5, erase=0.5)
    got = ct.augmented(pixels, draws, s).numpy()
    assert got.shape == (12, 3, 16, 16) and np.isfinite(got).all()
    for i in (0, 5, 11):
        np.testing.assert_allclose(ct.augmented(pixels[i : i + 1], draws[i : i + 1], s).numpy()[0], got[i], atol=1e-5)
    still = replace(
        s,
        rotate=0.0,
        scale=0.0,
        shift=0.0,
        stretch=0.0,
        contrast=0.0,
        brightness=0.0,
        colour=0.0,
        erase=0.0,
        coarsen=0.0,
        flip=False,
    )
    np.testing.assert_allclose(ct.augmented(pixels, draws, still).numpy(), pixels.transpose(0, 3, 1, 2) / 255, atol=1e-5)
    mirrored = ct.augmented(pixels, draws, replace(still, flip=True)).numpy()
    for i in range(12):
        want = pixels[i].transpose(2, 0, 1) / 255
        np.testing.assert_allclose(mirrored[i], want[:, :, ::-1] if draws[i, 3] < 0.5 else want, atol=1e-5)


def test_thresholds_are_where_balanced_accuracy_is_best() -> None:
    rng = np.random.default_rng(1)
    t = (rng.random((4000, 3)) < (0.5, 0.1, 0.001)).astype(np.float32)
    logits = (rng.normal(size=t.shape) + 2 * t + (1.0, -3.0, 0.0)).astype(np.float32)
    got = ct.balanced_thresholds(logits, t)
    # two normal distributions two apart: best in the middle, whatever their shares
    assert got[0] == pytest.approx(2, abs=0.3) and got[1] == pytest.approx(-2, abs=0.4)
    assert got[2] == 0  # too few
    from sklearn.metrics import balanced_accuracy_score

    best = max(balanced_accuracy_score(t[:, 1], logits[:, 1] > c) for c in np.linspace(-4, 1, 200))
    assert balanced_accuracy_score(t[:, 1], logits[:, 1] > got[1]) > best - 0.02


def test_figures_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    rng = np.random.default_rng(2)
    t = rng.integers(0, 4, 300)
    logits = rng.normal(size=(300, 5)) + 2 * np.eye(5)[t]
    got = ct.figures(logits, np.eye(5)[t], tuple("abcde"), "emotion")
    assert got["accuracy"] == pytest.approx(accuracy_score(t, logits.argmax(1))) and list(got["per class"]) == list("abcd")
    per = [(logits.argmax(1)[t == k] == k).mean() for k in range(4)]
    assert got["uar"] == pytest.approx(np.mean(per))
    yes = rng.integers(0, 2, (300, 3)).astype(np.float32)
    yes[:, 2] = 0
    yes[:5, 0] = np.nan
    z = rng.normal(size=(300, 3)) + yes
    z[:5, 0] = 0
    got = ct.figures(z, yes, tuple("abc"), "attributes")
    assert list(got["per class"]) == ["a", "b"]
    assert got["per class"]["a"] == pytest.approx(balanced_accuracy_score(yes[5:, 0], z[5:, 0] > 0))
    assert ct.figures(z[:0], yes[:0], tuple("abc"), "attributes") == {}


@pytest.mark.parametrize("task", ["emotion", "attributes"])
def test_a_killed_training_reaches_the_same_weights(task: str, tmp_path: Path) -> None:
    s = replace(SMALL, task=task, grey=task == "emotion", widths=(4, 8), validation=0.3, epochs=4)
    data = faces(s)
    about = ct.About("made up", ("nowhere",), "free", "nobody", "celeba" if task == "attributes" else "", "deidbench train")
    whole = ct.train(data, s, tmp_path / "whole", about=about, threads=1, quiet=True)
    assert whole is not None and whole.epochs == 4
    for stop in (1, 3):
        assert ct.train(data, s, tmp_path / "parts", about=about, threads=1, stop_after=stop, quiet=True) is None
    parts = ct.train(data, s, tmp_path / "parts", about=about, threads=1, quiet=True)
    assert parts is not None
    assert parts.weights.read_bytes() == whole.weights.read_bytes() and parts.held_out == whole.held_out
    again = ct.train(data, s, tmp_path / "parts", about=about, threads=1, quiet=True)  # nothing left to do
    assert again is not None and again.weights.read_bytes() == whole.weights.read_bytes()

    loaded = load_classifier(whole.weights)
    assert loaded.description.labels == data.labels and loaded.images.tolist() == list(
        range(0, 1)
    )  # 16 digits of small numbers
    assert loaded.description.persons == ({"celeba": tuple(sorted(set(data.subjects)))} if task == "attributes" else {})
    text = (tmp_path / "whole" / ct.CARD_FILE).read_text()
    for words in ("made up", "free", "nobody", "deidbench train", *data.labels, "Limits"):
        assert words in text
    # what was learnt: the upper half is bright
    held = data.held_out
    score = ct.figures(ct.logits_of(loaded, data.pixels[held]), data.targets[held], data.labels, task)
    assert score == whole.held_out and score["uar" if task == "emotion" else "balanced accuracy"] > 0.85

    with pytest.raises(InputError, match="learning_rate"):
        ct.train(data, replace(s, learning_rate=0.02), tmp_path / "parts", about=about, quiet=True)
    with pytest.raises(InputError, match="other data"):
        ct.train(faces(s, seed=5), s, tmp_path / "parts", about=about, quiet=True)
    (tmp_path / "parts" / ct.STATE_FILE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=ct.STATE_FILE):
        ct.train(data, s, tmp_path / "parts", about=about, quiet=True)


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    s = replace(SMALL, epochs=1)
    data = faces(s)
    a, b = (
        ct.train(data, replace(s, seed=seed), tmp_path / str(seed), about=ct.About(), threads=1, quiet=True) for seed in (1, 2)
    )
    assert a is not None and b is not None and a.weights.read_bytes() != b.weights.read_bytes()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": "many"}, "is no int"),
        ({"epochs": 0}, "epochs = 0"),
        ({"epochs": True}, "is no int"),
        ({"widths": [8, "x"]}, "is no tuple"),
        ({"widths": [8]}, "that is no network"),
        ({"task": "age"}, "task = 'age'"),
        ({"dropout": float("nan")}, "dropout"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ct.settings_from(values)
    assert ct.settings_from({"dropout": 0, "widths": [8, 16], "strides": [2, 2]}).widths == (8, 16)


def test_bundled_recipes_are_valid(tmp_path: Path) -> None:
    from deidbench.training_classifiers import bundled_recipes, load_recipe

    assert set(bundled_recipes()) == {"attributes", "emotion"}
    for name in bundled_recipes():
        recipe = load_recipe(name)
        settings = ct.settings_from({**recipe.settings, "task": recipe.task})
        assert settings.task == name and recipe.trained_on and recipe.licence and recipe.citation
    bad = tmp_path / "bad.toml"
    for text, words in (("x = 1", "not allowed"), ("task = ", "correct the TOML"), ("settings = 3", "no table")):
        bad.write_text(text)
        with pytest.raises(InputError, match=words):
            load_recipe(str(bad))
    with pytest.raises(InputError, match="attributes, emotion"):
        load_recipe("nothing")


def folder(root: Path, orl_folder: Path, columns: list[str], cells) -> Path:
    """Four images each of eight ORL persons with a manifest."""
    import shutil

    root.mkdir()
    lines = [",".join(["path", "subject_id", *columns])]
    for s in range(1, 9):
        for k in range(1, 5):
            shutil.copy(orl_folder / f"s{s}" / f"{k}.pgm", root / f"s{s}-{k}.pgm")
            lines.append(",".join([f"s{s}-{k}.pgm", f"s{s}", *map(str, cells(s, k))]))
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


QUICK = [
    "--epochs", "2", "--batch", "8", "--workers", "1", "--threads", "1", "--set", "widths=[4, 6]", "--set", "strides=[2, 2]", "--set", "stem=4",
]  # fmt: skip


def run(data: Path, recipe: str, out: Path, *more: str):
    from deidbench.cli import cli

    words = [
        "train",
        "classifier",
        "--data",
        str(data),
        "--recipe",
        recipe,
        "--out",
        str(out),
        "--cache",
        str(out.parent / "cache"),
    ]
    return CliRunner().invoke(cli, [*words, *QUICK, *more], catch_exceptions=True)


def test_the_command_from_pictures_to_a_classifier(orl_folder: Path, tmp_path: Path) -> None:
    from deidbench import kinds
    from deidbench.images import sha256_file

    data = folder(tmp_path / "data", orl_folder, ["role", "Smiling", "Male"], lambda s, k: ("train_classifier", k % 2, s % 2))
    done = run(data, "attributes", tmp_path / "out", "--set", "grid=2")
    assert done.exit_code == 0, done.output + str(done.exception)
    assert "mean balanced accuracy" in done.output and "attributes-cnn" in done.output
    path = tmp_path / "out" / ct.WEIGHTS_FILE
    mine = kinds.classifiers.create("attributes-cnn", path=str(path))
    assert mine.labels == ("Male", "Smiling")
    lessons = mine.lessons()
    assert lessons.persons["celeba"] <= {f"s{i}" for i in range(1, 9)}
    files = {sha256_file(p)[:16] for p in data.glob("*.pgm")}
    assert lessons.images <= files and len(lessons.images) >= 28
    assert mine.embed(np.zeros((1, 128, 128, 3), np.uint8)).shape == (1, 2 + 6 + 4 * 4)
    # faces are not looked for again, and the same command changes nothing
    before = path.read_bytes(), [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")]
    assert before[1] and run(data, "attributes", tmp_path / "out", "--set", "grid=2").exit_code == 0
    assert before == (path.read_bytes(), [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")])
    state = json.loads((tmp_path / "out" / ct.HISTORY_FILE).read_text())
    assert [row["epoch"] for row in state] == [1, 2]


def test_the_command_learns_from_votes(orl_folder: Path, tmp_path: Path) -> None:
    columns = ["role", "votes_neutral", "votes_happiness", "votes_NF"]
    cells = lambda s, k: ("validation" if s > 6 else "train", 5 * (k % 2), 5 * (k % 2 == 0), 9 * (k == 4))  # noqa: E731
    data = folder(tmp_path / "data", orl_folder, columns, cells)
    done = run(data, "emotion", tmp_path / "out")
    assert done.exit_code == 0, done.output + str(done.exception)
    loaded = load_classifier(tmp_path / "out" / ct.WEIGHTS_FILE)
    assert loaded.description.labels == ("happiness", "neutral") and 20 <= len(loaded.images) <= 24  # k = 4 shows no face
    text = (tmp_path / "out" / ct.CARD_FILE).read_text()
    assert "of 6 subjects" in text and "of 2" in text


def test_the_command_says_what_is_wrong(orl_folder: Path, tmp_path: Path) -> None:
    plain = folder(tmp_path / "plain", orl_folder, ["role", "colour"], lambda s, k: ("train", "red"))
    for recipe, more, words in (
        ("attributes", ["--role", "nobody"], "has the role 'nobody'"),
        ("emotion", [], "has a label for task emotion"),
        ("emotion", ["--set", "epoch=3"], "did you mean 'epochs'"),
        ("elation", [], "attributes, emotion"),
    ):
        done = run(plain, recipe, tmp_path / "out", *more)
        assert isinstance(done.exception, InputError) and words in str(done.exception), (done.output, done.exception)
    bad = folder(tmp_path / "bad", orl_folder, ["role", "votes_fear"], lambda s, k: ("train", "many"))
    done = run(bad, "emotion", tmp_path / "out")
    assert isinstance(done.exception, InputError) and "line 2" in str(done.exception)
