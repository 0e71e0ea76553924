"""Training: a kill changes nothing, people are held out, and what is written can be used."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deidbench.anonymizers.ganonymization.checkpoint import load_generator
from deidbench.anonymizers.ganonymization.preprocess import Pairs, prepare
from deidbench.anonymizers.ganonymization.train import (
    LOST,
    Settings,
    batch_of,
    batches,
    landmark_error,
    settings_from,
    split,
    steps_per_epoch,
    train,
)
from deidbench.datasets.folder import Folder
from deidbench.errors import DeidbenchError, InputError
from deidbench.executors import make_executor
from deidbench.training import bundled_recipes, load_recipe
from deidbench.weights import safe_torch_load

SMALL = Settings(
    size=32, width=4, discriminator_width=4, epochs=3, batch=4, margin=1.4, render=64, segmentation="none", flip=True, ema=0.9,
    decay_from=0.5, validation=0.2, validate_on=4, seed=7,
)  # fmt: skip
ABOUT: dict[str, Any] = {"data": "ORL, 8 persons", "trained_on": ["ORL"], "licence": "research", "data_sha256": "0" * 64}


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """Eight persons of ORL, three pictures each, as PNG in one sub-folder per person."""
    from deidbench.images import read_image, write_image

    root = tmp_path_factory.mktemp("faces")
    for person in range(1, 9):
        (root / f"p{person}").mkdir()
        for n in range(1, 4):
            write_image(root / f"p{person}" / f"{n}.png", read_image(orl_folder / f"s{person}" / f"{n}.pgm"))
    return root


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Pairs:
    made = prepare(
        list(Folder(faces).samples()), "d" * 64, SMALL.preparation, tmp_path_factory.mktemp("pairs"), quiet=True,
        make_pool=lambda initialise, arguments: make_executor(1, initialise, arguments),
    )  # fmt: skip
    assert len(made) == 24
    return made


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in load_generator(folder / "last.safetensors").generator.state_dict().items()}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def run(pairs: Pairs, out: Path, settings: Settings = SMALL, **more: Any) -> Any:
    return train(pairs, settings, out, about=ABOUT, device="cpu", quiet=True, **more)


@pytest.fixture(scope="module")
def undisturbed(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    result = run(pairs, out)
    assert result.steps == 3 * steps_per_epoch(len(split(pairs, SMALL).train), SMALL)
    return out


def test_people_are_held_out(pairs: Pairs) -> None:
    parts = split(pairs, SMALL)
    trained, held = ({pairs.subjects[i] for i in part} for part in parts)
    assert trained
    assert held
    assert not trained & held


def test_a_damaged_shard_is_made_again(faces: Path, tmp_path: Path) -> None:
    def make() -> Pairs:
        return prepare(
            list(Folder(faces, limit_persons=1).samples()), "e" * 64, SMALL.preparation, tmp_path, quiet=True,
            make_pool=lambda initialise, arguments: make_executor(1, initialise, arguments),
        )  # fmt: skip

    first = make()
    [shard] = tmp_path.rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    again = make()
    assert again.crops == first.crops
    assert (again.points == first.points).all()


def test_everything_that_a_user_looks_at_is_written(pairs: Pairs, undisturbed: Path) -> None:
    from deidbench.images import read_image

    with (undisturbed / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [int(r["epoch"]) for r in history] == [1, 2, 3]
    assert all(0 <= float(r["val_found"]) <= 1 and float(r["val_score"]) <= LOST for r in history)
    for epoch in (1, 2, 3):
        assert read_image(undisturbed / "samples" / f"epoch-{epoch:04d}.png").shape[0] == 3 * 32
    assert read_image(undisturbed / "losses.png").shape[1] > 500
    card = (undisturbed / "MODEL_CARD.md").read_text()
    for needed in ("0" * 64, "ORL, 8 persons", "learning_rate = 0.0002", f"| {len(split(pairs, SMALL).train)} /"):
        assert needed in card
    loaded = load_generator(undisturbed / "best.safetensors")
    best = min(history, key=lambda r: (float(r["val_score"]), int(r["step"])))
    assert loaded.description.notes["step"] == int(best["step"])
    assert (loaded.description.side, loaded.description.render, loaded.description.margin) == (32, 64, 1.4)
    assert loaded.description.trained_on == ("ORL",)


def test_the_loss_falls(undisturbed: Path, pairs: Pairs, tmp_path: Path) -> None:
    from dataclasses import replace

    longer = run(pairs, tmp_path, replace(SMALL, epochs=8, decay_from=1.0, learning_rate=2e-3))
    with (longer.folder / "history.csv").open() as file:
        losses = [float(r["loss_l1"]) for r in csv.DictReader(file)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow)])
def test_a_stopped_training_goes_on_to_the_same_weights(pairs: Pairs, undisturbed: Path, tmp_path: Path, stop: int) -> None:
    """In the middle of an epoch and at its end."""
    assert run(pairs, tmp_path, stop_after=stop).steps == stop
    assert run(pairs, tmp_path).steps > stop
    assert equal(weights(tmp_path), weights(undisturbed))
    a, b = ((p / "history.csv").read_text().splitlines() for p in (tmp_path, undisturbed))
    drop = [r.split(",")[:2] + r.split(",")[3:] for r in a], [r.split(",")[:2] + r.split(",")[3:] for r in b]
    assert drop[0] == drop[1]  # all but the seconds


def test_ctrl_c_keeps_the_step(pairs: Pairs, undisturbed: Path, tmp_path: Path) -> None:
    def interrupt(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pairs, tmp_path, on_step=interrupt)
    assert safe_torch_load(tmp_path / "state.pt")["step"] == 5
    run(pairs, tmp_path)
    assert equal(weights(tmp_path), weights(undisturbed))


@pytest.mark.slow
def test_the_command_survives_a_kill(faces: Path, tmp_path: Path) -> None:
    """The real command, killed without warning after its first state, then run again; and once undisturbed."""
    sets = ["width=4", "discriminator_width=4", "segmentation=none", "render=64", "margin=1.4", "validate_on=2"]
    options = [o for s in sets for o in ("--set", s)]

    def command(out: Path) -> list[str]:
        base = [sys.executable, "-m", "deidbench.cli", "train", "ganonymization", "--data", str(faces), "--out", str(out)]
        return [
            *base,
            "--cache",
            str(tmp_path / "cache"),
            "--workers",
            "1",
            "--size",
            "32",
            "--epochs",
            "6",
            "--batch",
            "4",
            *options,
        ]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(tmp_path / "a"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "a" / "state.pt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = safe_torch_load(tmp_path / "a" / "state.pt")["step"]
    for out in ("a", "b"):
        done = subprocess.run(command(tmp_path / out), env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "landmark error" in done.stdout
        assert "best.safetensors" in done.stdout
    steps = safe_torch_load(tmp_path / "a" / "state.pt")["step"]
    assert killed_at < steps
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    # what was trained is a method at once
    done = subprocess.run(
        [sys.executable, "-m", "deidbench.cli", "anonymize", str(faces / "p1"), str(tmp_path / "out"), "--method", "ganonymization",
         "--param", f"checkpoint={tmp_path / 'a' / 'best.safetensors'}"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_another_training_in_the_folder_is_refused(pairs: Pairs, undisturbed: Path) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match=r"l1 = 100\.0, not 50\.0"):
        run(pairs, undisturbed, replace(SMALL, l1=50.0))
    with pytest.raises(InputError, match="data_sha256"):
        train(pairs, SMALL, undisturbed, about={**ABOUT, "data_sha256": "1" * 64}, device="cpu", quiet=True)


def test_a_broken_state_is_refused_with_its_name(pairs: Pairs, undisturbed: Path, tmp_path: Path) -> None:
    import torch

    whole = (undisturbed / "state.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no state at all"):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"state\.pt"):
            run(pairs, tmp_path)
    torch.save({"identity": "{}"}, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt"):
        run(pairs, tmp_path)


def test_a_training_that_breaks_down_says_so(pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deidbench.anonymizers.ganonymization.train import Trainer

    step = Trainer.step

    def poisoned(self: Trainer, batch: Any) -> None:
        if self.done == 2:
            next(iter(self.generator.parameters())).data[0, 0, 0, 0] = float("nan")
        step(self, batch)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(DeidbenchError, match="broke down in epoch 1"):
        run(pairs, tmp_path)
    assert not (tmp_path / "best.safetensors").exists()


def test_batches_depend_on_their_step_alone(pairs: Pairs) -> None:
    train_part = split(pairs, SMALL).train
    all_at_once = list(batches(pairs, train_part, SMALL, 0, 10))
    later = list(batches(pairs, train_part, SMALL, 6, 10))
    for a, b in zip(all_at_once[6:], later, strict=True):
        assert (a.faces == b.faces).all()
        assert (a.drawings == b.drawings).all()
    # every epoch shows whole batches of different faces
    per_epoch = steps_per_epoch(len(train_part), SMALL)
    shown = np.concatenate([b.faces.sum(axis=(1, 2, 3)) for b in all_at_once[:per_epoch]])
    assert len(shown) == per_epoch * SMALL.batch


def test_mirroring_turns_face_and_drawing_together(pairs: Pairs) -> None:
    plain, mirrored = (batch_of(pairs, [0], [m], SMALL) for m in (False, True))
    assert (plain.faces[..., ::-1] == mirrored.faces).all()
    # the dots may fall one pixel aside where a point lies on an edge between pixels
    assert np.abs(plain.drawings[..., ::-1].astype(int) - mirrored.drawings).mean() < 8
    assert np.abs(plain.drawings.astype(int) - mirrored.drawings).mean() > 10


def test_landmark_error() -> None:
    true = np.zeros((478, 2), np.float32)
    true[263] = (0.5, 0)
    assert landmark_error(true, true) == 0
    assert landmark_error(true + np.float32([0.03, 0.04]), true) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sise": 128}, "did you mean 'size'"),
        ({"size": 100}, "power of two"),
        ({"size": "128"}, "no int"),
        ({"size": True}, "no int"),
        ({"flip": 1}, "no bool"),
        ({"size": 128, "render": 200}, "no multiple"),
        ({"batch": 0}, "batch"),
        ({"precision": "fp8"}, "precision"),
        ({"landmarks_from": "x"}, "landmarks_from"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        settings_from(values)
    assert says in str(error.value)


def test_recipes(tmp_path: Path) -> None:
    for name in bundled_recipes():
        settings_from(load_recipe(name).settings)
    shipped = load_recipe("celeba-hq-128")
    assert shipped.role == "train_generator"
    for text, says in (("x = [", "TOML"), ("author = 'me'", "author"), ("settings = 3", "settings")):
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(InputError, match=says):
            load_recipe(str(tmp_path / "r.toml"))
    with pytest.raises(InputError, match="celeba-hq-128"):
        load_recipe("no-such-recipe")


def test_the_shipped_checkpoint_is_what_its_recipe_and_card_say() -> None:
    from dataclasses import asdict

    from deidbench.anonymizers.ganonymization.checkpoint import SHIPPED
    from deidbench.weights import sha256_of

    loaded = load_generator(SHIPPED)
    recipe = load_recipe("celeba-hq-128")
    assert loaded.description.notes["settings"] == asdict(settings_from(recipe.settings))
    assert loaded.description.trained_on == recipe.trained_on
    assert loaded.description.licence == recipe.licence
    assert SHIPPED.stat().st_size < 30e6
    card = (SHIPPED.parent / "MODEL_CARD.md").read_text()
    assert sha256_of(SHIPPED) in card
    assert loaded.description.notes["data_sha256"] in card
    assert f"{json.dumps(loaded.description.notes['step'])}" in card.replace(",", "")
