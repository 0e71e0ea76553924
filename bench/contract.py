"""The contract of an anonymizer, as checks that anybody can put a method through.

On the command line ``deidbench check my-method`` tries everything, each check with a time limit in a process of its own.
In a test suite, in the manner of scikit-learn::

    from deidbench.contract import parametrize_with_checks
    from my_package import MyMethod

    @parametrize_with_checks([MyMethod(), MyMethod(amount=0.2)])
    def test_contract(anonymizer, check):
        check(anonymizer)

A check looks at an instance and real faces, and says what it found; the checks themselves are in
:mod:`deidbench.contract_checks` and :mod:`deidbench.contract_repeat`.  Heavy imports happen when a check runs.
"""

from __future__ import annotations

import inspect
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deidbench.contract_faces import fresh
from deidbench.errors import InputError, MissingError
from deidbench.types import Anonymized, Item, Status

if TYPE_CHECKING:
    import pytest

    from deidbench.anonymizers.base import Anonymizer
    from deidbench.contract_faces import Material

__all__ = [
    "Check",
    "ContractWarning",
    "Finding",
    "Result",
    "Trial",
    "Verdict",
    "parametrize_with_checks",
    "run_check",
]

#: A picture that takes longer than this (seconds) is slow: fewer are tried, so that a check ends before its time is up.
SLOW = 2.0
#: Results that differ by no more than this many of 255 levels ...
NOISE_LEVELS = 2
#: ... on no more than this share of the pixels differ by floating-point noise only.
NOISE_SHARE = 0.02


class Verdict(StrEnum):
    """What a check ends with."""

    PASSED = "passed"
    #: Allowed, but worth a look.
    WARNED = "warned"
    FAILED = "failed"
    #: Does not apply to this method; the words say why.
    SKIPPED = "skipped"
    #: Could not be tried, because a check that it builds on did not pass.
    UNTRIED = "untried"


class ContractWarning(UserWarning):
    """What a check found that is allowed but worth a look."""


@dataclass(frozen=True)
class Finding:
    """What a check function found.

    words: what came, in a sentence.  mend: how to mend it, where that is more than what the check says for all methods.
    figures: numbers for machines.
    """

    verdict: Verdict
    words: str
    mend: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


#: Where there is nothing to count.
NO_FIGURES: Mapping[str, float] = {}


def passed(words: str, figures: Mapping[str, float] = NO_FIGURES) -> Finding:
    return Finding(Verdict.PASSED, words, figures=figures)


def warned(words: str, mend: str = "", figures: Mapping[str, float] = NO_FIGURES) -> Finding:
    return Finding(Verdict.WARNED, words, mend, figures)


def failed(words: str, mend: str = "", figures: Mapping[str, float] = NO_FIGURES) -> Finding:
    return Finding(Verdict.FAILED, words, mend, figures)


def skipped(words: str) -> Finding:
    return Finding(Verdict.SKIPPED, words)


@dataclass(frozen=True)
class Result:
    """A check's outcome with all its words.

    found: what came.  expected, why, mend: what should have come, why it matters in a benchmark, how to mend it.
    missing: something that the method needs is not installed, which is nobody's failure.
    """

    check: str
    verdict: Verdict
    found: str
    expected: str = ""
    why: str = ""
    mend: str = ""
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    missing: bool = False

    @property
    def good(self) -> bool:
        return self.verdict in (Verdict.PASSED, Verdict.WARNED, Verdict.SKIPPED)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.check, "verdict": self.verdict.value, "found": self.found, "expected": self.expected,
            "why": self.why, "mend": self.mend, "seconds": round(self.seconds, 3), "figures": dict(self.figures),
            "missing": self.missing,
        }  # fmt: skip

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Result:
        return cls(**{**record, "verdict": Verdict(record["verdict"])})

    def text(self) -> str:
        """Several lines for a person: what came, what was expected, why it matters, how to mend it."""
        lines = [f"{self.check}: {self.found}"]
        for title, words in (("expected", self.expected), ("why", self.why), ("mend", self.mend)):
            if words:
                first, *rest = words.split("\n")
                lines += [f"  {title:<9} {first}", *(f"  {'':<9} {line}" for line in rest)]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Check:
    """One question to an anonymizer.  Called with an instance it is a test: it raises, skips or warns.

    expected: the rule, in words.  why: what goes wrong in a benchmark where it is broken.  mend: code that keeps it.
    needs: checks that must not have failed before this one says anything.
    """

    name: str
    expected: str
    why: str
    mend: str
    needs: tuple[str, ...]
    function: Callable[[Trial], Finding]

    @property
    def title(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n")[0].rstrip(".")

    def __repr__(self) -> str:
        return self.name

    def __call__(self, anonymizer: Anonymizer) -> None:
        """Raises AssertionError with the whole story where the check fails; skips or warns through pytest."""
        import pytest

        result = run_check(self, trial_of(anonymizer))
        if result.verdict is Verdict.FAILED:
            raise AssertionError(result.text())
        if result.verdict in (Verdict.SKIPPED, Verdict.UNTRIED):
            pytest.skip(f"{self.name}: {result.found}")
        if result.verdict is Verdict.WARNED:
            warnings.warn(ContractWarning(result.text()), stacklevel=2)


def check(
    name: str, *, expected: str, why: str, mend: str = "", needs: Sequence[str] = ()
) -> Callable[[Callable[[Trial], Finding]], Callable[[Trial], Finding]]:
    """Enters a function among the checks; those that it needs stand before it."""

    def enter(function: Callable[[Trial], Finding]) -> Callable[[Trial], Finding]:
        if lacking := [n for n in needs if n not in _ENTERED]:
            raise ValueError(f"check {name!r} needs {lacking}, which must come before it")
        _ENTERED[name] = Check(name, expected, why, mend, tuple(needs), function)
        return function

    return enter


_ENTERED: dict[str, Check] = {}


def checks() -> Mapping[str, Check]:
    """All checks by name, in the order in which they are tried."""
    from deidbench import contract_checks, contract_repeat  # noqa: F401 - enters them

    return _ENTERED


def chosen(names: Sequence[str]) -> list[Check]:
    """These checks and what they need, in order; all of them where none is named.  Raises InputError for unknown names."""
    import difflib

    known = checks()
    wanted: set[str] = set()
    queue = list(names or known)
    while queue:
        name = queue.pop()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"there is no check {name!r}", f"did you mean {close[0]!r}?" if close else f"the checks: {', '.join(known)}"
            )
        if name not in wanted:
            wanted.add(name)
            queue += known[name].needs
    return [c for n, c in known.items() if n in wanted]


# ------------------------------------------------------------------------------------------------------------ trials


class Broken(Exception):
    """The plug-in did something that ends a check at once; becomes its failure."""

    def __init__(self, words: str, mend: str = "") -> None:
        super().__init__(words)
        self.words, self.mend = words, mend


#: How a method keeps going when one picture is bad.
GUARD = """\
def anonymize(self, items):
    return [self._guarded(item) for item in items]

def _guarded(self, item):
    try:
        return self._one(item)
    except Exception as error:
        return Anonymized.failed(item.id, f"{type(error).__name__}: {error}")"""


class Trial:
    """One instance on trial, with the faces and what is known of it so far.

    given: the instance.  quick: fewer pictures and repeats.  control: a row that may give the face away (``original``).
    limit: seconds that a check may take, None for no limit.  target: what the class is loaded from in another process
    where pickle alone does not find it (a file's path).  material, or data: the faces, or the folder that they are read from
    when they are needed; the bundled ones where neither is given.
    """

    def __init__(
        self,
        anonymizer: Anonymizer,
        material: Material | None = None,
        *,
        quick: bool = False,
        control: bool | None = None,
        limit: float | None = None,
        target: str = "",
        data: Path | None = None,
    ) -> None:
        self.given = anonymizer
        self._material = material
        self._data = data
        self.quick = quick
        self.control = anonymizer.name == "original" if control is None else control
        self.limit = limit
        self.target = target
        #: Seconds that one picture takes a method that is warm; None before it was tried.
        self.pace: float | None = None
        #: Told what is being handed to the plug-in, so that it is known when the process dies.
        self.note: Callable[[str], None] = lambda words: None
        #: Settings of this process before load().
        self.settings: dict[str, Any] = {}
        #: Seconds that loading and the first call took.
        self.load_seconds = self.first_seconds = 0.0
        self.results: dict[str, Result] = {}
        self._ready: Anonymizer | None = None
        self._first: list[Anonymized] | None = None

    @property
    def material(self) -> Material:
        if self._material is None:
            self._material = faces_of(self._data, self.bound)
        return self._material

    def made(self, **changes: Any) -> Anonymizer:
        """A new instance with the same parameters but for ``changes``, not loaded."""
        return type(self.given)(**{**self.given.params(), **changes})

    @property
    def bound(self) -> bool:
        """Does the method know one set of pictures only, which it was fitted to?  It withholds all others."""
        return bool(self.given.needs_gallery)

    def loaded(self, anonymizer: Anonymizer, *, backwards: bool = False) -> Anonymizer:
        """``anonymizer`` with weights read, and fitted where it wants a gallery."""
        doing = "load()"
        try:
            anonymizer.load()
            if self.bound:
                doing = "fit()"
                known = {i.id: i for i in (*self.material.items, *self.material.others)}
                samples = list(self.material.samples.values())
                anonymizer.fit(samples[::-1] if backwards else samples, lambda sample: fresh(known[sample.id]))
        except MissingError:
            raise
        except Exception as error:
            raise Broken(f"{doing} raised {described(error)}") from error
        return anonymizer

    @property
    def ready(self) -> Anonymizer:
        """The instance that most checks use, loaded once."""
        if self._ready is None:
            assert self.material is not None, "looking for faces changes settings, too; it comes first"
            self.settings = settings()
            start = time.perf_counter()
            self._ready = self.loaded(self.made())
            self.load_seconds = time.perf_counter() - start
        return self._ready

    @property
    def slow(self) -> bool:
        """Does a picture take long?  Found out by two calls, of which the first warms up."""
        if self.pace is None:
            for _ in range(2):
                start = time.perf_counter()
                self.call(self.items(1))
                self.pace = time.perf_counter() - start
                self.first_seconds = self.first_seconds or self.pace
        assert self.pace is not None
        return self.pace > SLOW

    @property
    def n(self) -> int:
        """How many pictures a check uses; the same number throughout."""
        return 2 if self.slow else 3 if self.quick else len(self.material.items)

    def items(self, n: int | None = None) -> list[Item]:
        """The first ``n`` pictures, with arrays of their own."""
        return [fresh(item) for item in self.material.items[: n or self.n]]

    def call(self, items: Sequence[Item], anonymizer: Anonymizer | None = None) -> list[Anonymized]:
        """What ``anonymize`` answers: one ``Anonymized`` per item, or Broken."""
        method = anonymizer or self.ready
        self.note(_named(items))
        try:
            results = method.anonymize(items)
        except Exception as error:
            raise Broken(f"anonymize() raised {described(error)} on {_named(items)}", GUARD) from error
        return answers(items, results)

    @property
    def first(self) -> list[Anonymized]:
        """The answers to :meth:`items`, asked for once."""
        if self._first is None:
            self._first = self.call(self.items())
        return self._first


def answers(items: Sequence[Item], results: Any) -> list[Anonymized]:
    """``results`` where they are one Anonymized per item in order; else raises Broken."""
    return_list = "return [Anonymized(item.id, Status.OK, image, faces) for item in items]   # one per item, in order"
    if not isinstance(results, list | tuple):
        raise Broken(f"anonymize() returned {_kind(results)}, not a list", return_list)
    for item, result in zip(items, results, strict=False):
        if not isinstance(result, Anonymized):
            raise Broken(f"for {item.id!r} it returned {_kind(result)}, not an Anonymized", return_list)
    if len(results) != len(items):
        raise Broken(f"anonymize() returned {len(results)} results for {len(items)} items", return_list)
    if wrong := [(i.id, r.id) for i, r in zip(items, results, strict=True) if i.id != r.id]:
        raise Broken(f"where {wrong[0][0]!r} was asked it answered for {wrong[0][1]!r}", return_list)
    return list(results)


def _kind(value: object) -> str:
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _named(items: Sequence[Item]) -> str:
    return "an empty list" if not items else repr(items[0].id) if len(items) == 1 else f"{len(items)} pictures"


def settings() -> dict[str, Any]:
    """What a plug-in could change for everybody in this process, by the words that name it."""
    found: dict[str, Any] = {"the working folder": str(Path.cwd())}
    found |= {f"np.geterr()[{kind!r}]": what for kind, what in np.geterr().items()}
    cv2, torch = sys.modules.get("cv2"), sys.modules.get("torch")
    if cv2 is not None:
        found["cv2.getNumThreads()"] = cv2.getNumThreads()
    # Without torch these are what it begins with.
    found["torch.is_grad_enabled()"] = True if torch is None else torch.is_grad_enabled()
    found["torch.get_default_dtype()"] = "torch.float32" if torch is None else str(torch.get_default_dtype())
    if torch is not None:
        found["torch.get_num_threads()"] = torch.get_num_threads()
    return found


def span(seconds: float) -> str:
    """``12 ms``, ``3.4 s``."""
    return "under 1 ms" if seconds < 0.001 else f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def described(error: BaseException) -> str:
    """``ValueError: no face (my_method.py, line 31, in anonymize)``: what was raised, and the last place outside of deidbench."""
    from deidbench.errors import DeidbenchError

    words = error.message if isinstance(error, DeidbenchError) else str(error)
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_ours(f.filename)]
    # Where the plug-in calls a library that raises, the plug-in's own line says more than the library's.
    own = [f for f in frames if "site-packages" not in f.filename and "lib/python" not in f.filename] or frames
    return f"{text} ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else text


def is_ours(file: str) -> bool:
    """Is it a file of the checks themselves (not of a built-in method, which is on trial like any other)?"""
    return Path(file).name.startswith("contract") and Path(file).parent == Path(__file__).parent


# ------------------------------------------------------------------------------------------------------- comparisons


class Difference(NamedTuple):
    """How two answers differ, in words; noise: by no more than floating-point noise."""

    words: str
    noise: bool


def difference(a: Anonymized, b: Anonymized) -> Difference | None:
    """None where ``a`` and ``b`` are equal in status, reason, faces and every pixel."""
    if a.status != b.status:
        return Difference(f"{a.id!r} is {a.status} once and {b.status} ({b.reason or 'no reason'}) then", False)
    if a.reason != b.reason:
        return Difference(f"{a.id!r} has the reason {a.reason!r} once and {b.reason!r} then", False)
    pictures = [(a.image, b.image), *zip(a.crops, b.crops, strict=False)]
    if len(a.crops) != len(b.crops) or any((x is None) != (y is None) for x, y in pictures):
        return Difference(f"{a.id!r} has a picture once and none then", False)
    noise = None
    for x, y in pictures:
        if x is None or y is None:
            continue
        if x.shape != y.shape:
            return Difference(f"{a.id!r} is {x.shape} once and {y.shape} then", False)
        levels = np.abs(x.astype(np.int16) - y).max(axis=2)
        if levels.any():
            share, most = float((levels > 0).mean()), int(levels.max())
            words = f"{a.id!r} differs in {share:.2%} of its pixels, by up to {most} of 255 levels"
            if most > NOISE_LEVELS or share > NOISE_SHARE:
                return Difference(words, False)
            noise = Difference(words, True)
    if [f.status for f in a.faces] != [f.status for f in b.faces] or not _boxes_close(a, b):
        return Difference(f"the faces of {a.id!r} are {a.faces} once and {b.faces} then", False)
    return noise


def _boxes_close(a: Anonymized, b: Anonymized) -> bool:
    """Published boxes may differ by a hundredth of a pixel, as detectors' floating-point noise does."""
    for x, y in zip(a.faces, b.faces, strict=True):
        if (x.box is None) != (y.box is None):
            return False
        if x.box is not None and y.box is not None and not np.allclose(x.box, y.box, rtol=0, atol=0.01):
            return False
    return True


def compared(first: Sequence[Anonymized], second: Sequence[Anonymized]) -> Difference | None:
    """The worst difference between two lists of answers, None where they are equal."""
    found = [d for a, b in zip(first, second, strict=True) if (d := difference(a, b)) is not None]
    return min(found, key=lambda d: d.noise, default=None)


def judged(found: Difference | None, good: str, bad: str, mend: str = "") -> Finding:
    """A finding of a comparison: equal or nearly is passed."""
    if found is None:
        return passed(good)
    if found.noise:
        return passed(f"{good}, but for floating-point noise: {found.words}")
    return failed(f"{bad}: {found.words}", mend)


# ------------------------------------------------------------------------------------------------------ running them


def run_check(check: Check, trial: Trial) -> Result:
    """One check, after those that it needs; each is run once per trial."""
    if check.name in trial.results:
        return trial.results[check.name]
    for name in check.needs:
        if not run_check(checks()[name], trial).good:
            result = untried(check, name)
            break
    else:
        result = run_alone(check, trial)
    trial.results[check.name] = result
    return result


def untried(check: Check, name: str) -> Result:
    return Result(check.name, Verdict.UNTRIED, f"not tried: {name!r} has to pass first")


def run_alone(check: Check, trial: Trial) -> Result:
    """One check, whatever became of those that it needs.  Whatever the plug-in raises becomes a failure."""
    start = time.perf_counter()
    missing = False
    try:
        finding = check.function(trial)
    except Broken as broken:
        finding = failed(broken.words, broken.mend)
    except MissingError as error:
        missing = True
        finding = failed(f"it needs something that is not here: {error.message}", error.remedy)
    except Exception as error:
        finding = failed(f"it raised {described(error)}")
    except SystemExit as error:
        finding = failed(
            f"it called sys.exit({error.code!r}) ({described(error)})", "raise an exception, or return Anonymized.failed(...)"
        )
    seconds = time.perf_counter() - start
    words = Result(check.name, finding.verdict, finding.words, seconds=seconds, figures=finding.figures, missing=missing)
    if finding.verdict in (Verdict.PASSED, Verdict.SKIPPED):
        return words
    if missing:
        return replace(words, mend=finding.mend)
    return replace(words, expected=check.expected, why=check.why, mend=finding.mend or check.mend)


# ------------------------------------------------------------------------------------------------------------ pytest

#: Trials by the id of the instance; each holds its instance, so an id is not used twice.
_TRIALS: dict[int, Trial] = {}


@lru_cache(maxsize=4)
def faces_of(data: Path | None = None, gallery: bool = False) -> Material:
    """The bundled faces, or those of a folder; read once.  gallery: with further persons, for methods that are fitted."""
    from deidbench.contract_faces import bundled, from_folder

    return bundled(gallery) if data is None else from_folder(data, gallery)


def trial_of(given: Any, **options: Any) -> Trial:
    """The trial of this instance, begun when it is first asked for."""
    from deidbench.anonymizers.base import Anonymizer

    if not isinstance(given, Anonymizer):
        what = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
        raise TypeError(f"{what} is no instance of an Anonymizer; write e.g. MyMethod()")
    found = _TRIALS.get(id(given))
    if found is None:
        found = _TRIALS[id(given)] = Trial(given, **options)
    return found


def parametrize_with_checks(
    anonymizers: Sequence[Anonymizer | str],
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    data: str | Path | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """A decorator for ``def test_contract(anonymizer, check): check(anonymizer)``: a test for every instance and check.

    anonymizers: instances, or names as ``deidbench ls anonymizers`` lists them.  only: names of checks (with what they need).
    quick: fewer pictures and repeats.  data: a folder of faces to try it on instead of the bundled ones.
    expected_failures: check -> reason, for what is known to fail; a test that passes after all is then an error.

    The checks run in the test's own process: a crash of a native library ends it, as it would any test.  ``deidbench
    check`` and the fixture ``deidbench_check`` run them apart.
    """
    import pytest

    from deidbench import kinds

    if isinstance(anonymizers, str) or not anonymizers:
        raise TypeError("parametrize_with_checks wants a list of instances, e.g. [MyMethod(), MyMethod(amount=0.2)]")
    known = chosen(only)
    expected = dict(expected_failures or {})
    if stray := sorted(set(expected) - {c.name for c in known}):
        raise InputError(f"expected_failures: there is no check {stray[0]!r}", f"the checks: {', '.join(checks())}")
    folder = None if data is None else Path(data)
    cases = []
    for given in anonymizers:
        anonymizer = kinds.anonymizers.create(given) if isinstance(given, str) else given
        trial_of(anonymizer, data=folder, quick=quick)
        for c in known:
            marks = [pytest.mark.xfail(reason=expected[c.name], strict=True)] if c.name in expected else []
            cases.append(pytest.param(anonymizer, c, marks=marks, id=f"{_label(anonymizer)}-{c.name}"))
    return pytest.mark.parametrize(("anonymizer", "check"), cases)


def _label(anonymizer: Anonymizer) -> str:
    """``MyMethod(amount=0.2)``: the class with the parameters that are not the defaults."""
    defaults = {p.name: p.default for p in inspect.signature(type(anonymizer)).parameters.values()}
    try:
        changed = {k: v for k, v in anonymizer.params().items() if repr(v) != repr(defaults.get(k))}
    except AttributeError:  # it does not store its parameters; the check 'parameters' says so
        changed = {}
    return f"{type(anonymizer).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"


def released(results: Sequence[Anonymized]) -> list[Anonymized]:
    """Those with a picture."""
    return [r for r in results if r.status is Status.OK and r.image is not None]
