"""Anonymising folder trees: what is written, what is withheld, and what is left of an interrupted run."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil

from deidbench import convert, images
from deidbench.anonymizers.base import Anonymizer
from deidbench.convert import JOURNAL_FILE, STATUS_FILE, Summary, anonymize_tree, image_seed
from deidbench.errors import EnvironmentFault, ExitCode, InputError
from deidbench.images import read_image, write_image
from deidbench.progress import Ticker
from deidbench.types import Anonymized, Box, Face, FaceResult, Image, Item, Status


class Noise(Anonymizer):
    """Replaces every face by noise from the item's seed; no face, no image."""

    name = "noise-for-tests"
    deterministic = False

    def __init__(self, levels: int = 256) -> None:
        self.levels = levels

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Anonymized:
        if not item.faces:
            return Anonymized.no_face(item.id)
        out = item.image.copy()
        for i, face in enumerate(item.faces):
            x0, y0, x1, y1 = (int(v) for v in face.box)
            out[y0:y1, x0:x1] = np.random.default_rng([item.seed, i]).integers(0, self.levels, (y1 - y0, x1 - x0, 3))
        return Anonymized(item.id, Status.OK, out, tuple(FaceResult(Status.OK, face.box) for face in item.faces))


class Bright:
    """Finds one face per bright square of 8 x 8 pixels on a dark ground."""

    def find(self, image: Image) -> list[Face]:
        rows, columns = np.nonzero(image[::8, ::8].min(axis=2) > 128)
        return [Face(Box(8.0 * x, 8.0 * y, 8.0 * x + 8, 8.0 * y + 8)) for y, x in zip(rows, columns, strict=True)]


def scene(faces: int, colour: int = 0) -> Image:
    image = np.full((32, 48, 3), 40 + colour, np.uint8)
    for n in range(faces):
        image[8:16, 16 * n : 16 * n + 8] = 200
    return image


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five pictures in three folders: one without a face, one with two."""
    root = tmp_path / "in"
    (root / "a" / "deep").mkdir(parents=True)
    (root / "b").mkdir()
    for n, name in enumerate(["a/1.png", "a/deep/2.jpg", "b/3.bmp", "two.png", "empty.png"]):
        write_image(root / name, scene({"two.png": 2, "empty.png": 0}.get(name, 1), n))
    return root


def run(source: Path, target: Path, anonymizer: Anonymizer | None = None, **options: object) -> Summary:
    return anonymize_tree(source, target, anonymizer or Noise(), **{"finder": Bright(), **options})  # type: ignore[arg-type]


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def status(target: Path) -> dict[str, dict[str, str]]:
    with (target / STATUS_FILE).open(newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def pictures(target: Path) -> set[str]:
    return {name for name in tree(target) if not name.endswith(".csv")}


# -------------------------------------------------------------------------------------------------- what is written


def test_the_tree_is_kept_and_the_input_untouched(source: Path, tmp_path: Path) -> None:
    before, target = tree(source), tmp_path / "out"
    summary = run(source, target)
    assert tree(source) == before
    assert pictures(target) == {"a/1.png", "a/deep/2.jpg", "b/3.bmp", "two.png"}
    assert summary.counts == {"ok": 4, "no_face": 1}
    assert (summary.total, summary.written, summary.skipped, summary.exit_code) == (5, 4, 0, ExitCode.PARTIAL)
    assert [line.path for line in summary.problems] == ["empty.png"]
    assert summary.status_file == target / STATUS_FILE
    lines = status(target)
    assert list(lines) == sorted(before)
    assert (lines["two.png"]["status"], lines["two.png"]["faces"]) == ("ok", "2")
    assert (lines["empty.png"]["status"], lines["empty.png"]["faces"]) == ("no_face", "0")
    assert "no face" in lines["empty.png"]["reason"]
    assert lines["a/1.png"]["seed"] == str(image_seed(0, "a/1.png"))
    out = read_image(target / "a" / "1.png")
    assert (out[16:] == scene(1)[16:]).all()
    assert (out[8:16, :8] != 200).mean() > 0.9
    with pil.open(target / "b" / "3.bmp") as picture:
        assert picture.format == "BMP"


def test_all_released_is_ok(source: Path, tmp_path: Path) -> None:
    (source / "empty.png").unlink()
    assert run(source, tmp_path / "out").exit_code == ExitCode.OK


def test_batches_and_order_change_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, tmp_path / "1", batch=1)
    run(source, tmp_path / "16", batch=16)
    monkeypatch.setattr(convert, "BATCH_PIXELS", 2000)
    run(source, tmp_path / "pixels", batch=16)
    assert tree(tmp_path / "1") == tree(tmp_path / "16") == tree(tmp_path / "pixels")
    run(source, tmp_path / "seed", seed=1)
    assert tree(tmp_path / "seed")["a/1.png"] != tree(tmp_path / "1")["a/1.png"]


def test_memory_is_bounded(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting(Noise):
        def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
            sizes.append(len(items))
            return super().anonymize(items)

    run(source, tmp_path / "a", Counting(), batch=2)
    assert sizes == [2, 2, 1]
    sizes.clear()
    monkeypatch.setattr(convert, "BATCH_PIXELS", 32 * 48 + 1)
    run(source, tmp_path / "b", Counting(), batch=16)
    assert sizes == [2, 2, 1]


def test_no_metadata_and_upright(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    exif = pil.Exif()
    exif[0x0112], exif[0x010E] = 6, "Jane at home"
    exif.get_ifd(0x8825)[1] = "N"
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        stored = np.ascontiguousarray(np.rot90(scene(1)))
        pil.fromarray(stored).save(tmp_path / "in" / name, exif=exif, **({"comment": b"Jane"} if name == "a.jpg" else {}))
    run(tmp_path / "in", tmp_path / "out")
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        with pil.open(tmp_path / "out" / name) as picture:
            assert picture.size == (48, 32), name
            private = {0x0112, 0x010E, 0x8825} & set(picture.getexif())
            assert private <= ({0x0112} if name == "a.tif" else set())
            assert picture.getexif().get(0x0112, 1) == 1
            assert "exif" not in picture.info
            assert "comment" not in picture.info
        assert b"Jane" not in (tmp_path / "out" / name).read_bytes()


def test_formats_that_cannot_be_written_become_png(source: Path, tmp_path: Path) -> None:
    pil.fromarray(scene(1)).save(source / "x.gif")
    run(source, tmp_path / "out")
    assert "x.gif.png" in pictures(tmp_path / "out")
    with pil.open(tmp_path / "out" / "x.gif.png") as picture:
        assert picture.format == "PNG"
    run(source, tmp_path / "jpg", suffix=".jpg")
    assert pictures(tmp_path / "jpg") == {"a/1.jpg", "a/deep/2.jpg", "b/3.jpg", "two.jpg", "x.jpg"}
    with pytest.raises(InputError, match=r"'\.gif'"):
        run(source, tmp_path / "gif", suffix=".gif")


def test_too_long_for_jpeg_is_one_failure(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = np.full((8, 65_544, 3), 40, np.uint8)
    image[:, :8] = 200
    write_image(tmp_path / "in" / "long.png", image)
    write_image(tmp_path / "in" / "short.png", scene(1))
    summary = run(tmp_path / "in", tmp_path / "out", suffix=".jpg")
    assert summary.counts == {"failed": 1, "ok": 1}
    assert "65535" in summary.problems[0].reason
    assert pictures(tmp_path / "out") == {"short.jpg"}


# ------------------------------------------------------------------------------------------------- what is withheld


def test_bad_files_are_counted_and_the_rest_goes_on(source: Path, tmp_path: Path) -> None:
    (source / "text.jpg").write_text("not an image")
    (source / "nothing.png").touch()
    (source / "half.png").write_bytes((source / "two.png").read_bytes()[:60])
    (source / "dangling.png").symlink_to("nowhere")
    (source / "dir.png").mkdir()
    for name in ("notes.txt", "film.mp4", "film2.MP4", "Makefile", "._two.png"):
        (source / name).write_text("x")
    (source / "ring").symlink_to(source)
    target = tmp_path / "out"
    summary = run(source, target)
    assert summary.counts == {"ok": 4, "no_face": 1, "unreadable": 4}
    assert summary.ignored == {".txt": 1, ".mp4": 2, "Makefile": 1, ".png": 1}
    assert summary.links == ["ring"]
    lines = status(target)
    assert "not an image" in lines["text.jpg"]["reason"]
    assert "empty" in lines["nothing.png"]["reason"]
    assert "half.png is truncated" in lines["half.png"]["reason"]
    assert "nothing" in lines["dangling.png"]["reason"]
    assert pictures(target) == {"a/1.png", "a/deep/2.jpg", "b/3.bmp", "two.png"}
    assert not any(str(tmp_path) in line["reason"] for line in lines.values())


class Wrong(Noise):
    """Misbehaves on ``two.png`` in one of several ways."""

    def __init__(self, way: str) -> None:
        self.way = way

    levels = 256

    def _one(self, item: Item) -> Anonymized:
        good = super()._one(item)
        if item.id != "two.png" or good.image is None:
            return good
        half = np.where(np.arange(48)[None, :, None] < 12, good.image, item.image)  # the second face as it was
        faces = (FaceResult(Status.OK), FaceResult(Status.NO_LANDMARKS, reason="in profile"))
        answers = {
            "copy": Anonymized(item.id, Status.OK, item.image.copy()),
            "nearly": Anonymized(item.id, Status.OK, item.image + 1),
            "one of two": Anonymized(item.id, Status.OK, half),
            "says so": Anonymized(item.id, Status.OK, good.image, faces),
            "not ok": Anonymized(item.id, Status.FAILED, good.image, reason="ran out of luck"),
            "passthrough": Anonymized(item.id, Status.PASSTHROUGH, good.image),
            "no image": Anonymized(item.id, Status.OK, None),
            "float": Anonymized(item.id, Status.OK, good.image / 255),  # type: ignore[arg-type]
            "other id": Anonymized("a/1.png", Status.OK, good.image),
        }
        if self.way == "raises":
            raise RuntimeError("ran out of luck")
        return answers[self.way]


@pytest.mark.parametrize(
    ("way", "expected", "words"),
    [
        ("copy", "passthrough", "face 1 of 2"), ("nearly", "passthrough", "face 1 of 2"),
        ("one of two", "passthrough", "face 2 of 2"),
        ("says so", "failed", "face 2 of 2: in profile"), ("not ok", "failed", "ran out of luck"),
        ("passthrough", "passthrough", "withheld"), ("no image", "failed", "no image"), ("float", "failed", "RGB uint8"),
        ("other id", "failed", "a/1.png"), ("raises", "failed", "RuntimeError: ran out of luck"),
    ],
)  # fmt: skip
def test_nothing_doubtful_is_released(way: str, expected: str, words: str, source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "out", Wrong(way))
    assert summary.counts == {"ok": 3, "no_face": 1, expected: 1}
    line = next(line for line in summary.problems if line.path == "two.png")
    assert line.status == expected
    assert words in line.reason
    assert pictures(tmp_path / "out") == {"a/1.png", "a/deep/2.jpg", "b/3.bmp"}


def test_finder_that_breaks_costs_one_image(source: Path, tmp_path: Path) -> None:
    class Fragile(Bright):
        def find(self, image: Image) -> list[Face]:
            if image[0, 0, 0] == 40:
                raise RuntimeError("graph is gone")
            return super().find(image)

    summary = run(source, tmp_path / "out", finder=Fragile())
    assert summary.counts == {"ok": 3, "no_face": 1, "failed": 1}
    assert "graph is gone" in status(tmp_path / "out")["a/1.png"]["reason"]


def test_methods_without_faces(source: Path, tmp_path: Path) -> None:
    class Black(Noise):
        needs_faces = False

        def _one(self, item: Item) -> Anonymized:
            assert item.faces is None
            return Anonymized(item.id, Status.OK, np.zeros_like(item.image))

    summary = run(source, tmp_path / "out", Black(), finder=None)
    assert summary.counts == {"ok": 5}
    assert {line["faces"] for line in status(tmp_path / "out").values()} == {""}
    with pytest.raises(ValueError, match="needs a finder"):
        run(source, tmp_path / "out2", Noise(), finder=None)


def test_the_projects_own_methods(source: Path, tmp_path: Path) -> None:
    from deidbench import kinds

    if not {"blur", "original"} <= set(kinds.anonymizers.names()):
        pytest.skip("the methods are not there yet")
    assert run(source, tmp_path / "original", kinds.anonymizers.create("original")).counts == {"passthrough": 5}
    assert pictures(tmp_path / "original") == set()
    summary = run(source, tmp_path / "blur", kinds.anonymizers.create("blur"))
    assert summary.counts == {"ok": 4, "no_face": 1}


# ----------------------------------------------------------------------------------------------- what is refused


def test_folders_within_each_other_are_refused(source: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    (tmp_path / "alias").symlink_to(source)
    (tmp_path / "alias-of-deep").symlink_to(source / "a")
    for target, words in {
        source: "same folder",
        source / "out": "lies within",
        tmp_path: "lies within",
        tmp_path / "alias": "same folder",
        tmp_path / "alias" / "new" / "out": "lies within",
        tmp_path / "alias-of-deep": "lies within",
        tmp_path / "x" / ".." / "in": "same folder",
    }.items():
        with pytest.raises(InputError, match=words):
            run(source, target)
    with pytest.raises(InputError, match="same folder"):
        run(tmp_path / "alias", source)
    assert tree(tmp_path) == before


def test_link_in_the_target_back_to_the_source(source: Path, tmp_path: Path) -> None:
    before = tree(source)
    target = tmp_path / "out"
    target.mkdir()
    (target / "b").symlink_to(source / "b")
    for overwrite in (False, True):
        (source / "b" / "9.png").write_bytes((source / "two.png").read_bytes())
        with pytest.raises(InputError, match="symbolic link"):
            run(source, target, overwrite=True) if overwrite else run(source, target, suffix=".tif")
        (source / "b" / "9.png").unlink()
        assert tree(source) == before
    (target / "b").unlink()
    (target / "b").mkdir()
    (target / "b" / "3.bmp").symlink_to(source / "b" / "3.bmp")
    os.link(source / "two.png", target / "two.png")
    run(source, target, overwrite=True)
    assert tree(source) == before
    assert not (target / "b" / "3.bmp").is_symlink()


def test_what_is_no_input(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "gone", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.txt").touch()
    with pytest.raises(InputError, match=r"holds no image \(1 other"):
        run(tmp_path / "bare", tmp_path / "out")
    with pytest.raises(InputError, match="is not a folder"):
        run(source, source / "two.png")
    with pytest.raises(InputError, match="batch"):
        run(source, tmp_path / "out", batch=0)
    write_image(source / "two.bmp", scene(1))
    with pytest.raises(InputError, match=r"two\.bmp and two\.png would both become two\.png"):
        run(source, tmp_path / "out", suffix=".png")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ one file


def test_one_file(source: Path, tmp_path: Path) -> None:
    before = tree(source)
    summary = run(source / "two.png", tmp_path / "new.jpg")
    assert (summary.counts, summary.status_file) == ({"ok": 1}, None)
    with pil.open(tmp_path / "new.jpg") as picture:
        assert picture.format == "JPEG"
    with pytest.raises(InputError, match="already there"):
        run(source / "two.png", tmp_path / "new.jpg")
    assert run(source / "two.png", tmp_path / "new.jpg", overwrite=True).written == 1
    assert run(source / "two.png", tmp_path / "folder").written == 1
    assert pictures(tmp_path / "folder") == {"two.png"}
    assert status(tmp_path / "folder")["two.png"]["status"] == "ok"
    assert run(source / "empty.png", tmp_path / "none.png").counts == {"no_face": 1}
    assert not (tmp_path / "none.png").exists()
    (tmp_path / "link.png").symlink_to(source / "two.png")
    for target in (source / "two.png", source, tmp_path / "link.png"):
        with pytest.raises(InputError, match="the input itself"):
            run(source / "two.png", target, overwrite=True)
    assert tree(source) == before


# ------------------------------------------------------------------------------------------------------ resuming


def test_second_run_only_does_the_rest(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(source, target)
    whole = tree(target)
    (target / "two.png").unlink()
    (target / "a" / "deep" / "2.jpg").unlink()
    inode = (target / "a" / "1.png").stat().st_ino
    summary = run(source, target)
    assert (summary.written, summary.skipped, summary.counts) == (2, 2, {"ok": 4, "no_face": 1})
    assert tree(target) == whole
    assert (target / "a" / "1.png").stat().st_ino == inode
    again = run(source, target, overwrite=True)
    assert (again.written, again.skipped) == (4, 0)
    assert tree(target) == whole


class Interrupting(Noise):
    def __init__(self, after: int) -> None:
        self.after = after

    levels = 256

    @property
    def fingerprint(self) -> str:
        return Noise().fingerprint

    def __repr__(self) -> str:
        return repr(Noise())

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super().anonymize(items)


def test_ctrl_c_leaves_finished_images_and_the_status(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(source, target, Interrupting(2), batch=1)
    assert pictures(target) == {"two.png"}
    assert {path: line["status"] for path, line in status(target).items()} == {"empty.png": "no_face", "two.png": "ok"}
    assert not (target / JOURNAL_FILE).exists()
    assert (run(source, target).written, pictures(target)) == (3, {"a/1.png", "a/deep/2.jpg", "b/3.bmp", "two.png"})
    run(source, tmp_path / "at once")
    assert tree(target) == tree(tmp_path / "at once")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_any_moment_is_good_for_an_end(
    call: str, stop: BaseException, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full or Ctrl-C at the n-th system call, for every n: pictures and status agree, and the rest can be finished."""
    run(source, tmp_path / "whole", batch=2)
    real = getattr(os, call)
    for n in range(1, 40):
        target, count = tmp_path / f"{call}{n}", 0

        def failing(*args: object, n: int = n) -> object:
            nonlocal count
            count += 1
            if count == n:
                if isinstance(stop, KeyboardInterrupt):
                    real(*args)  # the signal comes just after
                raise stop
            return real(*args)

        monkeypatch.setattr(images.os, call, failing)
        try:
            run(source, target, batch=2)
        except (EnvironmentFault, KeyboardInterrupt):
            ended = False
        else:
            ended = count < n
        monkeypatch.undo()
        if ended:
            break
        assert not any(".tmp" in name for name in tree(target))
        if (target / STATUS_FILE).exists() and not (target / JOURNAL_FILE).exists():
            assert {p for p, line in status(target).items() if line["status"] == "ok"} == pictures(target), n
        summary = run(source, target, batch=2)
        assert summary.counts == {"ok": 4, "no_face": 1}, n
        assert tree(target) == tree(tmp_path / "whole"), n
    assert n > 4


def test_killed_run_is_finished_by_the_same_command(source: Path, tmp_path: Path) -> None:
    """kill -9 while it works: no picture is torn, and none is unaccounted for."""
    target = tmp_path / "out"
    for n in range(60):
        write_image(source / f"x{n:02}.png", scene(1, n % 40))
    code = f"""
        import importlib.util, sys, time
        spec = importlib.util.spec_from_file_location({Noise.__module__!r}, {str(Path(__file__))!r})
        t = importlib.util.module_from_spec(spec); sys.modules[spec.name] = t; spec.loader.exec_module(t)
        class Slow(t.Bright):
            def find(self, image):
                time.sleep(0.02); return super().find(image)
        t.anonymize_tree({str(source)!r}, {str(target)!r}, t.Noise(), finder=Slow(), batch=4)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    deadline = time.monotonic() + 60
    while len(list(target.rglob("*.png"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for name in pictures(target):
        if not name.endswith(".tmp"):
            read_image(target / name)
    assert (target / JOURNAL_FILE).exists()
    with (target / JOURNAL_FILE).open("ab") as file:
        file.write(b"x99.png,ok,1")  # a line that the kill tore
    summary = run(source, target)
    assert summary.counts == {"ok": 64, "no_face": 1}
    assert 0 < summary.skipped < 64
    assert "x99.png" not in status(target)
    run(source, tmp_path / "whole")
    assert {k: v for k, v in tree(target).items() if not k.endswith(".tmp")} == tree(tmp_path / "whole")


def test_methods_and_seeds_are_not_mixed(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(source, target)
    whole = tree(target)
    with pytest.raises(InputError, match=r"made with noise-for-tests\(levels=256\)|made with Noise\(levels=256\)"):
        run(source, target, Noise(levels=9))
    with pytest.raises(InputError, match="another seed"):
        run(source, target, seed=5)
    assert tree(target) == whole
    run(source, target, Noise(levels=9), overwrite=True)
    assert tree(target) != whole
    run(source, target, Noise(levels=9))


def test_strange_files_in_the_target_are_reported_not_trusted(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "two.png").write_bytes((source / "two.png").read_bytes())  # a clear picture where an output belongs
    summary = run(source, target)
    assert summary.counts == {"ok": 3, "exists": 1, "no_face": 1}
    assert summary.exit_code == ExitCode.PARTIAL
    assert {line.path for line in summary.problems} == {"two.png", "empty.png"}
    assert run(source, target).counts == summary.counts
    assert run(source, target, overwrite=True).counts == {"ok": 4, "no_face": 1}
    (target / STATUS_FILE).write_text("something else\n")
    with pytest.raises(InputError, match="not a status file"):
        run(source, target)


def test_overwrite_takes_back_what_is_withheld_now(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(source, target)
    (source / "two.png").write_text("damaged since")
    run(source, target, Wrong("copy"), overwrite=True)
    assert pictures(target) == {"a/1.png", "a/deep/2.jpg", "b/3.bmp"}
    assert status(target)["two.png"]["status"] == "unreadable"


def test_target_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="cannot be made"):
        run(source, tmp_path / "file" / "out")


def test_odd_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ['a,"b".png', "Zoë ☃.png", " lead.png", "new\nline.png", os.fsdecode(b"latin\xe9.png")]
    for name in names:
        write_image(tmp_path / "in" / name, scene(1))
    for _ in range(2):
        assert run(tmp_path / "in", tmp_path / "out").counts == {"ok": 5}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names, STATUS_FILE}


def test_progress(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    ticks: list[int] = []

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Ticker]:
        seen.append((title, total))
        yield lambda done=1: ticks.append(done)

    run(source, tmp_path / "out", progress=bar, batch=2)
    assert seen == [("anonymize", 5)]
    assert ticks == [2, 2, 1]


class Alone(Noise):
    """Gives each face alone, as noise of its own size."""

    name = "alone-for-tests"

    def _one(self, item: Item) -> Anonymized:
        made = super()._one(item)
        if made.image is None:
            return made
        crops = tuple(
            np.ascontiguousarray(made.image[int(f.box.y0) : int(f.box.y1), int(f.box.x0) : int(f.box.x1)])
            for f in item.faces or ()
        )
        return Anonymized(item.id, Status.OK, crops[0], made.faces, crops=crops)


def test_every_face_of_a_method_that_gives_faces_alone_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.png", scene(3))
    write_image(tmp_path / "in" / "b.png", scene(1))
    out = tmp_path / "out"
    summary = anonymize_tree(tmp_path / "in", out, Alone(), finder=Bright())
    assert sorted(p.name for p in out.glob("*.png")) == ["a.face2.png", "a.face3.png", "a.png", "b.png"]
    assert summary.counts == {"ok": 2}
    faces = [read_image(out / n) for n in ("a.png", "a.face2.png", "a.face3.png")]
    assert all(f.shape == (8, 8, 3) for f in faces)
    assert not (faces[0] == faces[1]).all()
    # fewer faces the next time: none of the old ones stays
    write_image(tmp_path / "in" / "a.png", scene(1))
    anonymize_tree(tmp_path / "in", out, Alone(), finder=Bright(), overwrite=True)
    assert sorted(p.name for p in out.glob("*.png")) == ["a.png", "b.png"]


def test_a_further_face_never_takes_another_pictures_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.png", scene(2))
    write_image(tmp_path / "in" / "a.face2.png", scene(1))
    for overwrite in (False, True):
        summary = anonymize_tree(tmp_path / "in", tmp_path / "out", Alone(), finder=Bright(), overwrite=overwrite)
        assert summary.counts == {"ok": 1, "failed": 1}
        [line] = summary.problems
        assert "a.face2.png" in line.reason
        assert [p.name for p in (tmp_path / "out").glob("*.png")] == ["a.face2.png"]
