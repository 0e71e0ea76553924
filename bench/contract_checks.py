"""The contract of an anonymizer: what is checked, and the words that say so.

Each function takes a :class:`deidbench.contract.Trial` and returns what it found.  The order is the order in which they are
tried; a check whose ``needs`` failed is not tried, so that one mistake is told once.
"""

from __future__ import annotations

import inspect
import math
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deidbench.contract import (
    GUARD,
    Broken,
    Finding,
    Trial,
    check,
    described,
    failed,
    passed,
    released,
    skipped,
    span,
    warned,
)
from deidbench.errors import DeidbenchError, InputError
from deidbench.types import Anonymized, Box, Face, FaceResult, Item, Status

if TYPE_CHECKING:
    pass

#: Attributes of an anonymizer that a parameter of the same name would hide.
RESERVED = (
    "name", "version", "citation", "licence", "trained_on", "deterministic", "needs_faces", "needs_gallery", "fingerprint",
    "params", "validate", "load", "fit", "anonymize", "weights_sha256",
)  # fmt: skip
#: A pickled method larger than this (bytes) carries its model with it to every worker.
HEAVY_PICKLE = 50_000_000


# ------------------------------------------------------------------------------------------------ what it says of itself


@check(
    "parameters",
    expected="__init__ stores its parameters under their own names and does nothing else",
    why="a suite, a report and a worker process make the method anew from params(); what is not in them is lost or mistaken",
    mend="def __init__(self, amount: float = 0.5):\n    self.amount = amount",
)
def parameters(trial: Trial) -> Finding:
    """The constructor stores its parameters, and a second instance can be made from them."""
    cls = type(trial.given)
    signature = inspect.signature(cls).parameters
    open_ended = (p for p in signature.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    # An adapter whose parameters are told by a file may take them all, if its own params() gives them back.
    told = "params" in vars(cls)
    if starred := [str(p) for p in open_ended if p.kind is p.VAR_POSITIONAL or not told]:
        return failed(f"{cls.__name__}.__init__ takes {', '.join(starred)}, whose values nobody can tell")
    if hidden := [name for name in signature if name in RESERVED]:
        return failed(
            f"the parameter {hidden[0]!r} hides the attribute of that name, which the suite reads", "give it another name"
        )
    try:
        params = trial.given.params()
    except AttributeError as error:
        return failed(f"params() did not find a parameter on the instance: {error}")
    if list(params) != list(signature) and not told:
        return failed(
            f"params() gives {list(params)}, the signature has {list(signature)}", "leave params() as it is inherited"
        )
    start = time.perf_counter()
    try:
        clone = trial.made()
    except Exception as error:
        return failed(f"{cls.__name__}(**params()) raised {described(error)}", "leave checks of values to validate()")
    seconds = time.perf_counter() - start
    if changed := [name for name, value in clone.params().items() if not _alike(value, params[name])]:
        return failed(
            f"{changed[0]} = {params[changed[0]]!r} became {clone.params()[changed[0]]!r} in an instance made from params()",
            _AS_GIVEN,
        )
    defaults = {p.name: p.default for p in signature.values() if p.default is not p.empty}
    if len(defaults) == len(signature):
        for name, value in cls().params().items():
            if not _alike(value, defaults[name]):
                return failed(
                    f"{name} = {defaults[name]!r} is the default, and {value!r} is what __init__ makes of it", _AS_GIVEN
                )
    if extra := [n for n in vars(clone) if n not in params and not n.startswith("_") and not n.endswith("_")]:
        return warned(
            f"__init__ also sets {', '.join(extra)}, which no parameter of that name stands behind",
            f"work it out where it is used, or call it self._{extra[0]}",
        )
    if seconds > 1:
        return warned(f"making an instance takes {seconds:.1f} s", "move the work into load()")
    return passed(f"{len(params)} parameters, stored and found again" if params else "takes no parameters")


_AS_GIVEN = "self.amount = amount   # as it was given; convert it where it is used"


def _alike(a: object, b: object) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # e.g. arrays, whose == is no single truth
        return repr(a) == repr(b)


def _other_values(value: object) -> Iterator[object]:
    """Values unlike ``value``, the likeliest to be allowed first."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, value * 2 + 1)
    elif isinstance(value, float):
        yield from (value * 0.9 + 0.01, value / 2, value + 1)
    elif isinstance(value, str):
        yield from (f"{value}-other", "other")
    elif isinstance(value, tuple | list) and value:
        yield type(value)([next(_other_values(value[0])), *value[1:]])
    else:
        yield from (1, "other")


@check(
    "fingerprint",
    expected="fingerprint is the same for the same parameters and another one for any other",
    why="results are kept under it: a figure of other parameters would be taken for this one's",
    mend="leave fingerprint and params() as they are inherited; say in weights_sha256() which weights are in use",
    needs=["parameters"],
)
def fingerprint(trial: Trial) -> Finding:
    """The fingerprint changes with every parameter, and with nothing else."""
    first = trial.made().fingerprint
    if not isinstance(first, str) or not first:
        return failed(f"fingerprint is {first!r}, not a text")
    if trial.made().fingerprint != first:
        return failed("two instances with the same parameters have different fingerprints")
    mute, refused = [], []
    for name, value in trial.given.params().items():
        if name in trial.given.incidental:
            continue
        found = None
        for other in _other_values(value):
            try:
                changed = trial.made(**{name: other})
            except Exception:
                # The constructor is choosy; the fingerprint alone is asked for, so the value may be put in afterwards.
                changed = trial.made()
                setattr(changed, name, other)
            try:
                found = changed.fingerprint
                break
            except Exception:  # e.g. a weight file of that name is not there: such a value cannot be mistaken either
                continue
        if found is None:
            refused.append(name)
        elif found == first:
            mute.append(name)
    if mute:
        return failed(f"it does not change with {', '.join(mute)}")
    said = f"; {', '.join(refused)}: other values are refused" if refused else ""
    return passed(f"{first[:8]}..., another one for each of {len(trial.given.params())} parameters{said}")


@check(
    "validation",
    expected="validate() accepts the parameters it has, and raises InputError for numbers that make no sense",
    why="a wrong value in a suite is told at once with its name, not after an hour of computing",
    mend='def validate(self):\n    if not (isinstance(self.amount, int | float) and 0 < self.amount <= 1):\n        raise InputError(f"amount = {self.amount!r}", "amount is a number above 0 up to 1")',
    needs=["parameters"],
)
def validation(trial: Trial) -> Finding:
    """validate() refuses nonsense, and is cheap."""
    start = time.perf_counter()
    try:
        trial.made().validate()
    except InputError as error:
        return failed(f"validate() refuses the parameters that it was made with: {error.message}", error.remedy)
    except DeidbenchError:
        raise
    except Exception as error:
        return failed(f"validate() raised {described(error)}")
    seconds = time.perf_counter() - start
    numbers = [n for n, v in trial.given.params().items() if isinstance(v, int | float) and not isinstance(v, bool)]
    accepted, rough = [], []
    for name in numbers:
        for nonsense in (math.nan, "nonsense"):
            verdict = _refuses(trial, name, nonsense)
            if verdict is None:
                accepted.append(f"{name} = {nonsense!r}")
            elif verdict:
                rough.append(f"{name} = {nonsense!r} ends in {verdict}")
    if rough:
        return warned(f"not with an InputError: {'; '.join(rough)}")
    if accepted:
        return warned(f"it accepts {', '.join(accepted)}")
    if seconds > 1:
        return warned(f"validate() takes {seconds:.1f} s", "leave what is slow to load()")
    return passed(f"nonsense is refused for {', '.join(numbers)}" if numbers else "no numbers among the parameters")


def _refuses(trial: Trial, name: str, value: object) -> str | None:
    """ "" where ``value`` is refused as it should be, the error where it is in another way, None where it is accepted."""
    try:
        made = trial.made(**{name: value})
    except (TypeError, ValueError, InputError):
        return ""  # the registry makes an InputError of these
    except Exception as error:
        return described(error)
    try:
        made.validate()
    except InputError:
        return ""
    except Exception as error:
        return described(error)
    return None


@check(
    "described",
    expected="version, licence, citation and trained_on say what the method is and where it comes from",
    why="reports print them, results are kept under the version, and figures on data that shaped the weights are flagged",
    mend='version = "1"                   # raise it when the output for the same input changes\nlicence = "MIT"\ncitation = "Doe et al.: ..., 2024"\ntrained_on = ("celeba:train",)  # () where nothing was learnt',
)
def describes_itself(trial: Trial) -> Finding:
    """It says what it is, under which terms, and what its weights were learnt from."""
    a, cls = trial.given, type(trial.given)
    wrong = [
        f"{n} is {getattr(a, n)!r}, not a text"
        for n in ("version", "licence", "citation")
        if not isinstance(getattr(a, n), str)
    ]
    if not isinstance(a.trained_on, tuple) or not all(isinstance(t, str) for t in a.trained_on):
        wrong.append(f"trained_on is {a.trained_on!r}, not a tuple of texts; one alone is written (name,)")
    wrong += [
        f"{n} is {getattr(a, n)!r}, not True or False"
        for n in ("deterministic", "needs_faces")
        if not isinstance(getattr(a, n), bool)
    ]
    named = a.strength
    if not isinstance(named, str) or (named and named not in a.params()):
        wrong.append(f"strength names the parameter that a sweep varies; {named!r} is none")
    if wrong:
        return failed("; ".join(wrong))
    empty = [n for n in ("version", "licence", "citation") if not getattr(a, n)]
    if not (inspect.getdoc(cls) or "").strip() or cls.__doc__ is None:
        empty.append("docstring")
    if empty:
        return warned(f"it says nothing about: {', '.join(empty)}")
    return passed(f"version {a.version}, {a.licence}" + (f", learnt from {', '.join(a.trained_on)}" if a.trained_on else ""))


# ----------------------------------------------------------------------------------------------------------- loading


@check(
    "loads",
    expected="load() reads what is needed, may be called again, and changes neither parameters nor fingerprint",
    why="every worker process loads the method once, under the fingerprint that the run has noted",
    mend="def load(self):\n    if self._model is None:\n        self._model = read(self.path)",
    needs=["parameters"],
)
def loads(trial: Trial) -> Finding:
    """load() works, twice in a row."""
    a = trial.made()
    before = (repr(a.params()), a.fingerprint)
    start = time.perf_counter()
    a.load()
    seconds = time.perf_counter() - start
    a.load()
    if (repr(a.params()), a.fingerprint) != before:
        what = "the parameters" if repr(a.params()) != before[0] else "the fingerprint"
        return failed(f"load() changed {what}", "keep what load() makes in attributes of other names, e.g. self._model")
    return passed(f"in {span(seconds)}", {"load_seconds": seconds})


@check(
    "gallery",
    expected="fit(samples, read) learns the same whatever the order of the samples, and the fingerprint changes with what it learnt",
    why="results are kept under the fingerprint: those of another set would be taken for this one's",
    mend='def fitted_sha256(self):\n    return self.fitted_.sha256 if self.fitted_ else ""   # over sorted samples',
    needs=["loads"],
)
def gallery(trial: Trial) -> Finding:
    """A method that is fitted to the set which it de-identifies: order, fingerprint."""
    if not trial.bound:
        return skipped("it is fitted to nothing (needs_gallery is False)")
    bare, one, two = trial.made().fingerprint, trial.ready, trial.loaded(trial.made(), backwards=True)
    if one.fingerprint != two.fingerprint:
        return failed("fitted to the same samples in another order it has another fingerprint")
    words = f"fitted to {len(trial.material.samples)} pictures, one a person"
    if one.fingerprint == bare:
        return warned(f"{words}; its fingerprint is the same as before")
    return passed(words)


@check(
    "pickles",
    expected="an instance can be pickled, before load() and after",
    why="worker processes receive the method by pickling; without that it runs in one process only, or not at all",
    mend='def __getstate__(self):\n    return {**self.__dict__, "_model": None}   # the worker loads its own',
    needs=["loads", "gallery"],
)
def pickles(trial: Trial) -> Finding:
    """It can travel to another process."""
    sizes = []
    for when, a in (("before load()", trial.made()), ("after fit()" if trial.bound else "after load()", trial.ready)):
        try:
            sizes.append(len(pickle.dumps(a)))
        except Exception as error:
            return failed(f"pickling it {when} raised {described(error)}")
    if max(sizes) > HEAVY_PICKLE:
        return warned(f"pickled it is {max(sizes) / 1e6:.0f} MB, which goes to every worker: its model travels with it")
    return passed(f"{max(sizes):,} bytes")


# ----------------------------------------------------------------------------------------------------------- answers


@check(
    "answers",
    expected="anonymize(items) returns a list with one Anonymized per item, in order, each with a status and, but for ok, a reason",
    why="an image whose answer is missing, or another one's, would be scored as somebody else",
    mend="return [Anonymized(item.id, Status.OK, image, faces) for item in items]",
    needs=["loads", "gallery"],
)
def gives_answers(trial: Trial) -> Finding:
    """One answer per picture, in order, with status and reason."""
    items = trial.items()
    results = trial.call(items)
    for result in results:
        sound(result)
    if trial.call([]):
        return failed("an empty list of items gave answers")
    if not released(results):
        first = results[0]
        return failed(
            f"not one of {len(results)} pictures with a face was released: {first.id!r} is {first.status}: {first.reason}",
            "if the method needs something else, raise MissingError in load() and say what",
        )
    if lost := [r for r in results if r.status is not Status.OK]:
        return warned(
            f"{len(lost)} of {len(results)} pictures with a face were withheld: {lost[0].id!r} is {lost[0].status}: {lost[0].reason}",
            "withheld images count against the method's utility; see whether they could be handled",
        )
    return passed(f"{len(results)} pictures, {len(results)} answers")


def sound(result: Anonymized) -> None:
    """Raises Broken for a status that is none, a picture that must not be there, one that is missing, or a lacking reason."""
    if not isinstance(result.status, Status):
        raise Broken(f"the status of {result.id!r} is {result.status!r}", "from deidbench.types import Status; Status.OK")
    if result.status is Status.OK:
        if result.image is None:
            raise Broken(f"{result.id!r} is ok but has no picture", "Anonymized.failed(item.id, reason), or .no_face(item.id)")
    else:
        if result.image is not None:
            raise Broken(
                f"{result.id!r} is {result.status} and yet has a picture: it would be released",
                "Anonymized.failed(item.id, reason): no picture where the method does not stand behind it",
            )
        if not isinstance(result.reason, str) or not result.reason:
            raise Broken(f"{result.id!r} is {result.status} without a reason", "Anonymized.failed(item.id, reason)")


def shaped(result: Anonymized) -> None:
    """Raises Broken for a picture that is not RGB uint8 (H, W, 3)."""
    for picture in (result.image, *result.crops):
        image: Any = picture
        if image is None:
            continue
        if not isinstance(image, np.ndarray):
            raise Broken(
                f"the picture of {result.id!r} is a {type(image).__module__}.{type(image).__name__}, not a numpy array", _RGB
            )
        if image.dtype != np.uint8:
            span = f", values {image.min():.3g} to {image.max():.3g}" if image.size and image.dtype.kind in "fiub" else ""
            raise Broken(f"the picture of {result.id!r} is {image.dtype}{span}, not uint8", _RGB)
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise Broken(f"the picture of {result.id!r} has the shape {image.shape}, not (H, W, 3)", _RGB)


_RGB = "image = np.clip(np.rint(image), 0, 255).astype(np.uint8)   # values 0 to 255, RGB, shape (H, W, 3)"


@check(
    "images",
    expected="pictures are numpy arrays, RGB, uint8, of shape (H, W, 3)",
    why="metrics and recognisers read them as such; anything else is counted as a failure of the method",
    mend=_RGB,
    needs=["answers"],
)
def gives_images(trial: Trial) -> Finding:
    """Pictures are RGB uint8 (H, W, 3)."""
    results, items = trial.first, trial.items()
    for result in results:
        shaped(result)
    pairs = [(i, r) for i, r in zip(items, results, strict=True) if r.image is not None]
    sizes = sum(r.image.shape != i.image.shape for i, r in pairs if r.image is not None)
    words = f"{len(pairs)} pictures" + (f", {sizes} of another size than the input, which is allowed" if sizes else "")
    if loose := sum(not r.image.flags.c_contiguous for _, r in pairs if r.image is not None):
        words += f"; {loose} are views that the suite copies once more"
    return passed(words)


@check(
    "face-entries",
    expected="Anonymized.faces holds a FaceResult per face that was handled, with its status and box (x0 < x1, y0 < y1, pixels)",
    why="where no face is found in the output an attacker cuts out the published box; without one he guesses where it is",
    mend="faces = tuple(FaceResult(Status.OK, face.box) for face in item.faces)",
    needs=["answers"],
)
def face_entries(trial: Trial) -> Finding:
    """It says which faces it handled, and where."""
    lacking = 0
    for item, result in zip(trial.items(), trial.first, strict=True):
        told: Any = result.faces
        if not isinstance(told, tuple):
            return failed(f"faces of {result.id!r} is a {type(told).__name__}, not a tuple")
        for face in told:
            if not isinstance(face, FaceResult) or not isinstance(face.status, Status):
                return failed(f"{result.id!r}: {face!r} is no FaceResult with a Status")
            if face.box is None:
                continue
            box = tuple(round(v, 1) if isinstance(v, float) else v for v in face.box)
            if len(face.box) != 4 or not all(math.isfinite(v) for v in face.box):
                return failed(f"{result.id!r}: the box {box} is not four finite numbers")
            if not (face.box[0] < face.box[2] and face.box[1] < face.box[3]):
                return failed(f"{result.id!r}: the box {box} is empty; it is (x0, y0, x1, y1), not (x, y, width, height)")
        if result.status is Status.OK and trial.given.needs_faces:
            lacking += len(result.faces) != len(item.faces or ())
    if lacking:
        return warned(f"{lacking} of {len(trial.first)} answers do not tell of as many faces as the picture has")
    return passed(
        "a status and a box for each face" if any(r.faces for r in trial.first) else "none told (it asks for no faces)"
    )


@check(
    "input-unchanged",
    expected="anonymize() leaves item.image and the landmarks as they were, and works on arrays that are read-only",
    why="the same arrays go on to the metrics and the next method: their figures would be wrong without a sign",
    mend="out = item.image.copy()   # and work on out",
    needs=["answers"],
)
def input_unchanged(trial: Trial) -> Finding:
    """The pictures that it is given stay as they are."""
    items, before = trial.items(), trial.items()
    trial.call(items)
    for item, was in zip(items, before, strict=True):
        if not np.array_equal(item.image, was.image):
            share = float((item.image != was.image).any(axis=2).mean()) if item.image.shape == was.image.shape else 1.0
            return failed(f"{item.id!r} was changed in place: {share:.1%} of the pixels that it was given are different now")
        for face, old in zip(item.faces or (), was.faces or (), strict=True):
            if face.landmarks is not None and old.landmarks is not None and not np.array_equal(face.landmarks, old.landmarks):
                return failed(f"the landmarks of {item.id!r} were changed in place", "points = face.landmarks.copy()")
    for item in items:
        item.image.flags.writeable = False
        for face in item.faces or ():
            if face.landmarks is not None:
                face.landmarks.flags.writeable = False
    try:
        results = trial.call(items)
    except Broken as broken:
        return failed(f"with read-only arrays: {broken.words}")
    if lost := [r for r, was in zip(results, trial.first, strict=True) if r.status != was.status]:
        return failed(f"with read-only arrays {lost[0].id!r} is {lost[0].status}: {lost[0].reason}")
    return passed(f"{len(items)} pictures, writable and read-only")


@check(
    "own-arrays",
    expected="every returned picture is an array of its own, which later calls leave alone",
    why="the suite keeps pictures while it works on the next ones; a shared buffer would show the next person",
    mend="image = buffer.copy()   # before it is returned",
    needs=["images"],
)
def own_arrays(trial: Trial) -> Finding:
    """Pictures share no memory with the input, with each other, or with the next call."""
    items = trial.items()
    results = trial.call(items)
    pictures = [(r.id, r.image) for r in results if r.image is not None]
    copies = [image.copy() for _, image in pictures]
    for item, result in zip(items, results, strict=True):
        if result.image is not None and np.shares_memory(result.image, item.image):
            return failed(f"the picture of {result.id!r} is the input's array, or a view of it", "out = item.image.copy()")
    for k, (id, image) in enumerate(pictures):
        for other, theirs in pictures[k + 1 :]:
            if np.shares_memory(image, theirs):
                return failed(f"the pictures of {id!r} and {other!r} share memory")
    trial.call([replace(i, image=np.ascontiguousarray(i.image[:, ::-1])) for i in trial.items()])
    for (id, image), copy in zip(pictures, copies, strict=True):
        if not np.array_equal(image, copy):
            return failed(f"the picture of {id!r} was overwritten by the next call")
    return passed(f"{len(pictures)} pictures")


# -------------------------------------------------------------------------------------------------- does it anonymise


@check(
    "changes-the-face",
    expected="what is released is not the input, or nearly (99 % of the face's pixels within 12 of 255 levels)",
    why="a clear face that is called anonymised is a leak; the suite names such a method and does not publish its figures",
    mend="where nothing could be done, withhold it: Anonymized.failed(item.id, reason), or .no_face(item.id)",
    needs=["images"],
)
def changes_the_face(trial: Trial) -> Finding:
    """No picture comes back as it was."""
    from deidbench.contract_faces import largest
    from deidbench.pipeline import passthrough

    if trial.control:
        return skipped("a control row: it may give the face away")
    same = [
        r.id
        for i, r in zip(trial.items(), trial.first, strict=True)
        if r.image is not None and passthrough(i.image, r.image, largest(i))
    ]
    if same:
        return failed(
            f"{len(same)} of {len(trial.first)} pictures came back as they were, or nearly: {', '.join(map(repr, same))}"
        )
    return passed(f"{len(released(trial.first))} faces, all changed")


@check(
    "no-copy",
    expected="no picture shows another image of the data set, or nearly",
    why="it would give away another person; the suite names such a method and does not publish its figures",
    mend="mix or synthesise; never return a picture of the gallery or of the batch",
    needs=["images"],
)
def no_copy(trial: Trial) -> Finding:
    """No picture is another one of the batch or of the gallery."""
    from deidbench.contract_faces import largest
    from deidbench.pipeline import passthrough

    others = [*trial.items(), *(trial.material.others if trial.bound else ())]
    for result in released(trial.first):
        assert result.image is not None
        for other in others:
            if other.id != result.id and passthrough(other.image, result.image, largest(other)):
                return failed(f"the picture of {result.id!r} is that of {other.id!r}, or nearly")
    return passed(f"compared with {len(others) - 1} other pictures")


_BOUND = "withheld: it knows only the pictures that it was fitted to"


@check(
    "every-face",
    expected="where a frame is released, every face in it was changed",
    why="one face that is left clear gives a person away, whatever became of the others",
    mend="for face in item.faces: ...   # and withhold the frame where one of them could not be handled",
    needs=["changes-the-face"],
)
def every_face(trial: Trial) -> Finding:
    """Ten faces in one frame of 1500 x 1000: all are handled."""
    from deidbench.contract_faces import scene
    from deidbench.pipeline import passthrough

    if trial.control:
        return skipped("a control row: it may give the face away")
    material = trial.material.items
    group = scene("ten faces", [material[k % len(material)] for k in range(10)], 1000, 1500, 400, columns=5)
    original = group.image.copy()
    [result] = trial.call([group])
    sound(result)
    shaped(result)
    if result.image is None:
        if trial.bound:
            return passed(_BOUND)
        return warned(
            f"a frame with ten faces was withheld: {result.reason}",
            "a frame with several faces can be released once all are handled",
        )
    if result.image.shape != original.shape:
        return passed(f"the frame became {result.image.shape[1]} x {result.image.shape[0]}: it is not released as a frame")
    clear = [k for k, face in enumerate(group.faces or (), 1) if passthrough(original, result.image, face)]
    if clear:
        return failed(
            f"{len(clear)} of 10 faces are still clear (number {', '.join(map(str, clear))}, the rows from left to right)"
        )
    return passed("ten faces, all changed")


@check(
    "no-face",
    expected="an item with faces=() (looked for, none found) is withheld: no_face, without a picture",
    why="a face that the detector missed would be released as it is",
    mend="if not item.faces:\n    return Anonymized.no_face(item.id)",
    needs=["answers"],
)
def no_face(trial: Trial) -> Finding:
    """Where no face was found nothing is released."""
    [item] = trial.items(1)
    [result] = trial.call([replace(item, faces=())])
    sound(result)
    if not trial.given.needs_faces:
        return passed(f"it asks for no faces; this picture was {result.status}")
    if result.status is Status.OK:
        return failed("a picture in which no face was found was released")
    if result.status is not Status.NO_FACE:
        return warned(f"it was withheld as {result.status} ({result.reason}); reports count no_face apart")
    return passed("withheld")


@check(
    "faces-unknown",
    expected="an item with faces=None (not looked for) is failed with words, or the method looks for itself",
    why="callers who forget the faces must learn it, and must not get a clear picture back",
    mend='if item.faces is None:\n    return Anonymized.failed(item.id, "needs the faces: Item(faces=FaceFinder().find(image))")',
    needs=["images"],
)
def faces_unknown(trial: Trial) -> Finding:
    """Where nobody looked for faces, it says so."""
    from deidbench.contract_faces import largest
    from deidbench.pipeline import passthrough

    [item] = trial.items(1)
    [result] = trial.call([replace(item, faces=None)])
    sound(result)
    shaped(result)
    if result.image is None:
        return passed(f"{result.status}: {result.reason}")
    if not trial.control and passthrough(item.image, result.image, largest(item)):
        return failed("a picture in which nobody had looked for faces was released as it was")
    return passed("handled all the same")


# ---------------------------------------------------------------------------------------------------- bad and odd input


@check(
    "one-bad-item",
    expected="a picture that is none (float, grey, empty) is answered with failed and a reason; the others of the batch go on",
    why="one broken file among thousands must cost itself only",
    mend=GUARD,
    needs=["images"],
)
def one_bad_item(trial: Trial) -> Finding:
    """A broken picture costs itself only."""
    good = trial.items(2)
    kinds: dict[str, Any] = {
        "a float picture": good[0].image.astype(np.float32),
        "a grey picture (H, W)": good[0].image[..., 0].copy(),
        "an empty picture (0, 5, 3)": np.zeros((0, 5, 3), np.uint8),
    }
    for what, image in kinds.items():
        try:
            batch = [good[0], Item("bad", image, good[0].faces), good[1]]
            results = trial.call(batch)
        except Broken as broken:
            return failed(f"{what}: {broken.words}")
        for result in results:
            sound(result)
            shaped(result)
        lost = [r.id for r, was in zip((results[0], results[2]), trial.first, strict=False) if r.status != was.status]
        if lost:
            return failed(f"{what} in the batch changed what became of {lost[0]!r}: {results[0].status}, {results[2].status}")
    return passed(f"{', '.join(kinds)}: the others go on")


def _survives(trial: Trial, items: Sequence[Item], demanding: Sequence[str]) -> Finding:
    """All are answered soundly; those that are named in ``demanding`` should be released."""
    lost, said = [], 0
    for item in items:
        try:
            [result] = trial.call([item])
        except Broken as broken:
            return failed(f"{item.id}: {broken.words}", broken.mend)
        sound(result)
        shaped(result)
        said += result.status is not Status.OK
        if result.status is not Status.OK and item.id in demanding and not trial.bound:
            lost.append(f"{item.id}: {result.status} ({result.reason})")
    if lost:
        return warned(
            f"withheld though there is a whole face: {'; '.join(lost)}", "withheld images count against the method's utility"
        )
    return passed(f"{len(items)} tried, {len(items) - said} released" + (f", {said} withheld with a reason" if said else ""))


@check(
    "odd-shapes",
    expected="any size from 1 x 1 is answered: released, or withheld with a reason",
    why="real data sets hold cut-outs of a few pixels, panoramas and large photographs; an exception there ends as a failure",
    mend=GUARD,
    needs=["images"],
)
def odd_shapes(trial: Trial) -> Finding:
    """Tall, wide, large and tiny pictures."""
    from deidbench.contract_faces import scene, specks

    [first, second] = trial.material.items[:2]
    whole = [
        scene("tall, 120 x 900", [first], 900, 120, 140),
        scene("wide, 900 x 120", [second], 120, 900, 120),
        scene("odd, 301 x 257", [first], 257, 301, 200),
        scene("large, 1500 x 1000", [second], 1000, 1500, 600),
    ]
    bare = [specks(f"{w} x {h}", h, w) for h, w in ((1, 1), (1, 50), (50, 1), (3, 2), (20, 500))]
    return _survives(trial, whole + bare, [i.id for i in whole])


@check(
    "odd-faces",
    expected="faces at the border, of two pixels, without landmarks, or overlapping are answered: released, or withheld with a reason",
    why="detectors give such boxes; an exception there ends as a failure",
    mend=GUARD,
    needs=["images"],
)
def odd_faces(trial: Trial) -> Finding:
    """Faces partly outside, tiny, without landmarks, overlapping."""
    [item] = trial.items(1)
    h, w = item.image.shape[:2]
    face = max(item.faces or (), key=lambda f: f.box.area)
    bare = {
        "over the left upper corner": Box(-0.3 * w, -0.3 * h, 0.2 * w, 0.2 * h),
        "over the right lower corner": Box(0.9 * w, 0.8 * h, 1.5 * w, 1.4 * h),
        "larger than the frame": Box(-0.5 * w, -0.5 * h, 1.5 * w, 1.5 * h),
        "two pixels": Box(0.4 * w, 0.4 * h, 0.4 * w + 2, 0.4 * h + 2),
        "a fraction of a pixel": Box(10.2, 10.2, 10.6, 10.6),
        "outside of the frame": Box(2 * w, 2 * h, 2.5 * w, 2.5 * h),
    }
    given: dict[str, tuple[Face, ...]] = {what: (Face(box),) for what, box in bare.items()}
    given["whole, without landmarks"] = (Face(face.box),)
    given["two that overlap"] = (face, Face(face.box.scaled(1.2), face.score, face.landmarks))
    items = [replace(item, id=what, image=item.image.copy(), faces=faces) for what, faces in given.items()]
    return _survives(trial, items, ["two that overlap"])


@check(
    "colour-order",
    expected="red stays red: pictures go in and come out as RGB",
    why="OpenCV reads and writes BGR; a picture with swapped channels is unlike the original for every metric and recogniser",
    mend="bgr = image[..., ::-1]  ...  rgb = np.ascontiguousarray(bgr[..., ::-1])",
    needs=["images"],
)
def colour_order(trial: Trial) -> Finding:
    """A picture in warm light does not come back in cold light."""
    from deidbench.contract_faces import tinted

    items = [tinted(item) for item in trial.items(2)]
    results = trial.call(items)
    gone, cold = [], []
    for item, result in zip(items, results, strict=True):
        if result.image is None:
            gone.append(result.id)
            continue
        was, now = (float(np.mean(x[..., 0].astype(float) - x[..., 2])) for x in (item.image, result.image))
        if now < -0.3 * was:
            cold.append(f"red minus blue was {was:.0f} levels on average and is {now:.0f}")
    if cold:
        return warned(f"red and blue seem to be swapped: {cold[0]}")
    if len(gone) == len(items):
        if trial.bound:
            return passed(_BOUND)
        return warned("the pictures were withheld in colour, but not in grey")
    return passed("red stays red")
