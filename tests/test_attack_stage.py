"""Trained attacks in a run: who learns, what is kept, the crop-level protocol, copies and pass-throughs."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deidbench import attacks, kinds
from deidbench.anonymizers.base import Anonymizer
from deidbench.errors import InputError, SuiteError
from deidbench.faces import FaceFinder, align, alignment, moved, named_points, subject_face
from deidbench.images import read_image
from deidbench.metrics.reid import ReIdentification
from deidbench.metrics.reid.base import CROP
from deidbench.metrics.reid.training import Attempt, held_out
from deidbench.pipeline import middle
from deidbench.records import read_run
from deidbench.runner import Options, Result, run_suite
from deidbench.suite import load_suite
from deidbench.types import Anonymized, Box, Face, Item, Status

LEARNERS, TARGETS = range(1, 13), range(13, 21)

SUITE = """\
[suite]
name = "small"
extends = "deidbench-v2"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}" }}

[protocol]
level = "{level}"
replicates = 200
curve_replicates = 100
seeds = 2

[[recognizers]]
name = "sface"

[throughput]
images = 0

[report]
samples = 0

[[metrics]]
name = "reid"
params = {{ attackers = {attackers} }}

"""


@pytest.fixture(scope="session")
def folk(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """Twelve persons to learn from and eight to find, three images each, with a manifest."""
    root = tmp_path_factory.mktemp("folk")
    with (root / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "subject_id", "role"])
        for p in (*LEARNERS, *TARGETS):
            for i in (1, 4, 7):
                shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"{p}-{i}.pgm")
                table.writerow([f"{p}-{i}.pgm", f"s{p}", "attacker_train" if p in LEARNERS else "evaluate"])
    return root


def run(folder: Path, root: Path, methods: str, cache: Path, *, level: str = "crop", attackers: str = '["ignorant", "lazy-informed", "lda"]', workers: int = 1) -> tuple[Result, pd.DataFrame]:  # fmt: skip
    folder.mkdir(exist_ok=True)
    suite = folder / "small.toml"
    suite.write_text(SUITE.format(root=root, level=level, attackers=attackers) + methods)
    result = run_suite(load_suite(suite), folder / "run", Options(workers=workers, cache=cache, quiet=True))
    return result, read_run(folder / "run").rows


def rank1(rows: pd.DataFrame, attacker: str, method: str, recognizer: str = "sface") -> float:
    r = rows[(rows.metric == "reid.rank1") & (rows.attacker == attacker) & (rows.method == method)]
    return float(r[(r.recognizer == recognizer) & (r.convention == "headline")].value.item())


ORIGINAL = '[[methods]]\nname = "original"\ncontrol = true\n'
SCRAMBLE = '[[methods]]\nname = "scramble"\nparams = { region = "frame" }\n'


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, folk: Path) -> tuple[Path, Result, pd.DataFrame]:
    """A run at crop level of a stock attacker and of learners, one process."""
    folder = tmp_path_factory.mktemp("ladder")
    found = run(
        folder, folk, ORIGINAL + SCRAMBLE, folder / "cache", attackers='["ignorant", "lazy-informed", "lda", "pixel-lda"]'
    )
    return folder, *found


def test_the_ladder_on_a_permutation(done: tuple[Path, Result, pd.DataFrame]) -> None:
    """Scrambled pixels blind the stock recogniser and not who learns from pixels."""
    _, _, rows = done
    assert rank1(rows, "ignorant", "original") == 1
    assert rank1(rows, "ignorant", "scramble") < 0.4
    assert rank1(rows, "pixel-lda", "scramble", "pixels") > 0.7
    worst = rows[(rows.metric == "reid.worst_rank1") & (rows.method == "scramble")]
    assert "pixel-lda with pixels" in worst.note.item()
    assert worst.value.item() == rank1(rows, "pixel-lda", "scramble", "pixels")


def test_what_is_kept_and_said(done: tuple[Path, Result, pd.DataFrame]) -> None:
    folder, result, rows = done
    record = read_run(folder / "run").record
    assert record["attackers"]["n_persons"] == len(LEARNERS)
    assert record["dataset"]["n_persons"] == len(TARGETS)
    assert record["protocol"]["level"] == "crop"
    assert {a["label"]: a["trained"] for a in record["attackers"]["attackers"]}["lda"]
    assert result.computed["attack"] == 2 * 2 * 2  # methods, learners, seeds
    note = rows[(rows.attacker == "lda") & (rows.metric == "reid.rank1")].note.iloc[0]
    assert "of 2 chosen on held-out persons" in note and "rank-1 per seed" in note
    images = read_run(folder / "run").images
    assert set(images.id) == {f"{p}-{i}.pgm" for p in TARGETS for i in (1, 4, 7)}, "learners are not evaluated"


def test_thresholds_of_the_informed_come_from_their_own_condition(done: tuple[Path, Result, pd.DataFrame]) -> None:
    _, _, rows = done
    r = rows[(rows.metric == "reid.fmr@fmr=0.1") & (rows.method == "scramble") & (rows.convention == "headline")]
    threshold = r.set_index(["attacker", "recognizer"]).threshold
    assert threshold["lazy-informed", "sface"] > threshold["ignorant", "sface"] + 0.1, "scrambled faces all look alike"
    realised = r.set_index(["attacker", "recognizer"]).value
    assert realised["lazy-informed", "sface"] < 0.4


@pytest.mark.slow
def test_a_second_run_learns_nothing_anew_and_two_workers_find_the_same(
    done: tuple[Path, Result, pd.DataFrame], folk: Path, tmp_path: Path
) -> None:
    folder, _, rows = done
    attackers = '["ignorant", "lazy-informed", "lda", "pixel-lda"]'
    again, same = run(tmp_path, folk, ORIGINAL + SCRAMBLE, folder / "cache", attackers=attackers)
    assert again.computed == {}
    pd.testing.assert_frame_equal(rows, same)
    _, anew = run(tmp_path / "two", folk, ORIGINAL + SCRAMBLE, tmp_path / "cache", attackers=attackers, workers=2)
    pd.testing.assert_frame_equal(rows, anew)


def test_without_persons_to_learn_from_it_says_so(people_only: Path, tmp_path: Path) -> None:
    _, rows = run(tmp_path, people_only, ORIGINAL, tmp_path / "cache", level="frame")
    r = rows[(rows.attacker == "lda") & (rows.metric == "reid.rank1")]
    assert r.value.isna().all() and r.reason.str.contains("no persons of role attacker_train").all()
    lazy = rows[(rows.attacker == "lazy-informed") & (rows.metric == "reid.tmr@fmr=0.1") & (rows.convention == "headline")]
    assert lazy.value.isna().all() and lazy.reason.str.contains("own condition").all()
    assert rank1(rows, "lazy-informed", "original") == 1


@pytest.fixture(scope="session")
def people_only(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("people-only")
    for p in range(1, 6):
        (root / f"p{p}").mkdir()
        for i in (2, 5):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"p{p}" / f"{i}.pgm")
    return root


def test_attackers_may_learn_elsewhere_but_not_from_what_is_evaluated(folk: Path, people_only: Path, tmp_path: Path) -> None:
    elsewhere = '[attackers]\nname = "folder"\nparams = {{ root = "{root}" }}\nroles = ["{role}"]\n'
    _, rows = run(
        tmp_path, people_only, ORIGINAL + elsewhere.format(root=folk, role="evaluate"), tmp_path / "cache", level="frame"
    )
    assert not np.isnan(rank1(rows, "lda", "original"))
    assert read_run(tmp_path / "run").record["attackers"]["n_persons"] == len(TARGETS)
    with pytest.raises(InputError, match="learn from an image that is evaluated"):
        run(tmp_path / "b", people_only, ORIGINAL + elsewhere.format(root=people_only, role="evaluate"), tmp_path / "cache")
    with pytest.raises(InputError, match="both evaluated and learnt from"):
        run(tmp_path / "c", folk, ORIGINAL + '[attackers]\nroles = ["evaluate"]\n', tmp_path / "cache")


# --- crop level


def test_the_crop_is_the_aligned_face_and_its_landmarks_go_along(orl_folder: Path) -> None:
    image = read_image(orl_folder / "s1" / "1.pgm")
    face = subject_face(FaceFinder().find(image))
    assert face is not None
    inside = moved(face, alignment(face, CROP))
    target = np.array(CROP.template) * CROP.size
    assert np.abs(named_points(inside, CROP.points) - target).max() < 6  # a similarity fits five points, not one by one
    again = align(align(image, face, CROP), inside, CROP)
    assert np.abs(again.astype(int) - align(image, face, CROP)).mean() < 1, "aligning what is aligned changes nothing"


def test_the_middle_of_a_crop_is_where_an_average_face_is() -> None:
    box = Box(*(v * CROP.size for v in middle("crop")))
    points = named_points(Face(box), CROP.points)
    assert np.abs(points - np.array(CROP.template) * CROP.size).max() < 6
    assert middle("frame") == (0.2, 0.15, 0.8, 0.9)


def test_crop_level_has_no_failures_to_acquire(done: tuple[Path, Result, pd.DataFrame]) -> None:
    folder, _, rows = done
    assert (rows[rows.metric == "reid.fta"].value == 0).all(), "the alignment is known to everybody"
    assert any("level" in d for d in read_run(folder / "run").record["protocol"]["deviations"])


# --- copies


class _NextOne(Anonymizer):
    """Releases, as its output, the picture of another person."""

    licence, citation, needs_faces = "", "", False

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        pictures = [items[(i + 3) % len(items)].image for i in range(len(items))]
        return [Anonymized(item.id, Status.OK, picture) for item, picture in zip(items, pictures, strict=True)]


class _Nothing(_NextOne):
    """Returns its input with the faintest of changes, and calls it anonymised."""

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        return [Anonymized(i.id, Status.OK, (i.image ^ 1).astype(np.uint8)) for i in items]


kinds.anonymizers.register("test-next-one")(_NextOne)
kinds.anonymizers.register("test-nothing")(_Nothing)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [("test-next-one", "copy", "another image of the data set"), ("test-nothing", "passthrough", "are the input")],
)
def test_a_method_that_gives_real_faces_away_is_named_and_not_published(
    folk: Path, tmp_path: Path, name: str, status: str, words: str
) -> None:
    _, rows = run(tmp_path, folk, f'[[methods]]\nname = "{name}"\n' + ORIGINAL, tmp_path / "cache", level="frame", attackers='["ignorant"]')  # fmt: skip
    record = read_run(tmp_path / "run")
    assert record.record["methods"][0]["counts"][status] == len(TARGETS) * 3
    mine = rows[rows.method == name]
    assert mine.value.isna().all() and mine.reason.str.contains("not published").all() and mine.reason.str.contains(words).all()
    assert not len(record.curves[record.curves.method == name])
    assert rows[(rows.method == "original") & (rows.metric == "reid.rank1")].value.notna().any(), "a control row is what it is"
    if status == "copy":
        images = record.images[record.images.method == name]
        assert (images.copy_of != images.id).all() and set(images.copy_of) <= set(images.id)


def test_honest_methods_are_no_copies(folk: Path, tmp_path: Path) -> None:
    methods = '[[methods]]\nname = "blur"\n[[methods]]\nname = "blackout"\ncontrol = true\n'
    run(tmp_path, folk, methods, tmp_path / "cache", level="frame", attackers='["ignorant"]')
    assert [m["counts"]["copy"] for m in read_run(tmp_path / "run").record["methods"]] == [0, 0]


# --- small parts


def test_an_attempt_survives_the_store() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    for gallery in (a, a + 1):
        attempt = Attempt(3, a, gallery, b, b, np.array(["é", "q"]), np.array(["1", "2"]), "words", "")
        back = attacks.unpack(attacks.pack(attempt))
        assert (back.seed, back.learnt) == (3, "words")
        for name in ("probes", "gallery", "held_out_probes", "held_out_gallery", "held_out_subjects", "held_out_ids"):
            np.testing.assert_array_equal(getattr(back, name), getattr(attempt, name))


def test_held_out_persons_are_whole_and_do_not_depend_on_order() -> None:
    subjects = np.repeat([f"p{i}" for i in range(20)], 3)
    out = held_out(subjects, 1)
    assert out.sum() == 12
    assert all(len(set(out[subjects == p])) == 1 for p in set(subjects))
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(held_out(subjects[order], 1), out[order])
    assert (held_out(subjects, 2) != out).any()
    assert held_out(np.array(["a", "b"]), 0).sum() == 1 and held_out(np.array(["a", "a"]), 0).sum() == 0


def test_attackers_are_named_in_the_suite() -> None:
    metric = ReIdentification(["ignorant", {"name": "ignorant", "label": "twin"}])
    assert list(metric.params()["attackers"]) == ["ignorant", "twin"]
    assert not metric.needs_background
    assert ReIdentification(["lazy-informed"]).needs_background
    with pytest.raises(SuiteError, match="two attackers are called"):
        ReIdentification(["ignorant", "ignorant"]).params()
    with pytest.raises(SuiteError, match="an attacker is a name or a table"):
        ReIdentification([{"name": "ignorant", "paramz": {}}]).params()
