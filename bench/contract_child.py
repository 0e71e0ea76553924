"""Contract checks in a process of their own: a plug-in that hangs, crashes or leaves costs one check.

The parent (:class:`Apart`) starts ``python -m deidbench.contract_child``, hands it what to try as a pickle on standard
input, and asks for one check after another; answers come back as lines of JSON over a pipe of their own, so that nothing
the plug-in prints can be mistaken for one.  When an answer does not come in time the child is killed with all its
children, and the next check gets a new one.  Pictures travel over the pipe: none is written to disk.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deidbench.contract import Check, Result, Verdict, chosen, faces_of, is_ours, run_alone, untried
from deidbench.errors import DeidbenchError, ExitCode, InputError, MissingError

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.contract_faces import Material

#: Seconds for a new child to import deidbench, beside the time that it has for the plug-in.
START = 60.0
#: How much of what the plug-in printed last is kept, in characters.
TAIL = 2000


@dataclass(frozen=True, eq=False)
class Request:
    """What is tried.  target: see :mod:`deidbench.contract_target`.  limit: seconds per check.  path: where modules are found."""

    target: str
    params: Mapping[str, Any]
    limit: float
    quick: bool = False
    control: bool | None = None
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))


@dataclass(frozen=True)
class About:
    """What the plug-in says of itself, as the child saw it."""

    name: str
    version: str
    deterministic: bool
    gallery: bool
    params: Mapping[str, Any]
    module: str


class Gone(Exception):
    """The child did not answer.  words: what became of it; where: the plug-in's line that it was in, "" where unknown."""

    def __init__(self, words: str, where: str = "") -> None:
        super().__init__(words)
        self.words, self.where = words, where


class Apart:
    """Runs checks in child processes::

        with Apart(request) as apart:
            first = apart.begin()  # a wrong name, or a plug-in that cannot be imported, is told before any face is looked for
            for result in apart.run(checks, material): ...

    about: what the plug-in says of itself, once a child has made an instance.  printed: what children printed, the last of it.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.about: About | None = None
        self._material: Material | None = None
        self.printed = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._answers: int | None = None
        self._buffer = b""

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def begin(self) -> Result:
        """The first row: can the plug-in be imported and made?  Raises InputError for a wrong name or parameter.

        A plug-in that cannot be imported, crashes or hangs there is a failed result.
        """
        start = time.perf_counter()
        try:
            about = self._start()
        except Gone as gone:
            words = f"importing it and making an instance {gone.words}{gone.where and f' ({gone.where})'}"
        except MissingError as error:
            words, mend = error.message, error.remedy
            return Result(
                "imports", Verdict.FAILED, words, _IMPORTS[0], _IMPORTS[1], mend, time.perf_counter() - start, missing=True
            )
        else:
            return Result("imports", Verdict.PASSED, f"from {about.module}", seconds=time.perf_counter() - start)
        return Result("imports", Verdict.FAILED, words, *_IMPORTS, seconds=time.perf_counter() - start, missing=True)

    def run(self, wanted: Sequence[Check], material: Material) -> Iterator[Result]:
        """Results of ``wanted`` (which hold all that they need) as they come."""
        self._material = material
        self._send(pickle.dumps(material))
        bad: set[str] = set()
        missing = ""
        for check in wanted:
            broken = missing or next((name for name in check.needs if name in bad), None)
            result = untried(check, broken) if broken else self._one(check)
            if not result.good:
                bad.add(check.name)
            if result.missing:  # what is not installed is told once
                missing = check.name
            yield result

    def _one(self, check: Check) -> Result:
        start = time.perf_counter()
        try:
            if self._process is None:
                self._start()
                self._send(pickle.dumps(self._material))
            return Result.of(self._ask(check.name, self.request.limit))
        except Gone as gone:
            words = gone.words + (f"; it was in {gone.where}" if gone.where else "")
        except DeidbenchError as error:
            words = error.message
        mend = "see what the line does with this input; a slow method needs --timeout" if "within" in words else _CRASH
        seconds = time.perf_counter() - start
        return Result(check.name, Verdict.FAILED, words, check.expected, _APART, mend, seconds)

    # -- the child -----------------------------------------------------------------------------------------------
    def _start(self) -> About:
        """A new child with the plug-in imported and an instance made."""
        self._folder = tempfile.TemporaryDirectory(prefix="deidbench-check-")
        reading, writing = os.pipe()
        # -P: the current folder is not searched for modules, as it is not by the command `deidbench`.
        command = [sys.executable, "-P", "-m", "deidbench.contract_child", str(writing), self._folder.name]
        with Path(self._folder.name, "printed").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[writing], start_new_session=True
            )
        os.close(writing)
        self._answers, self._buffer = reading, b""
        self._send(pickle.dumps(self.request))
        self._answer(START)  # the child is there, nothing of the plug-in yet
        answer = self._answer(self.request.limit)
        if "error" in answer:
            self._end()
            kind = {ExitCode.MISSING: MissingError}.get(answer["code"], InputError)
            raise kind(answer["error"], answer["remedy"])
        self.about = About(**answer)
        return self.about

    def _send(self, data: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None, "the child was started"
        with contextlib.suppress(BrokenPipeError):  # it died: the answer that does not come says so
            self._process.stdin.write(struct.pack("!Q", len(data)) + data)
            self._process.stdin.flush()

    def _ask(self, name: str, limit: float) -> dict[str, Any]:
        self._send(pickle.dumps(name))
        return self._answer(limit)

    def _answer(self, limit: float) -> dict[str, Any]:
        """The next line of the child.  Raises Gone where there is none within ``limit`` seconds."""
        assert self._process is not None and self._answers is not None, "the child was started"
        end = time.monotonic() + limit
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            ready = select.select([self._answers], [], [], max(left, 0.0))[0]
            data = os.read(self._answers, 1 << 16) if ready else b""
            if data:
                self._buffer += data
                continue
            if ready:  # the pipe is closed
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(5)
                words = _death(self._process.returncode)
            else:
                words = f"did not end within {limit:g} s"
            where, doing = self._where(), self._read("doing")
            self._end(kill=True)
            last = _last_words(self.printed)
            words += f" on {doing}" if doing else ""
            raise Gone(words + (f"; the last line printed: {last!r}" if ready and last else ""), where)
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _where(self) -> str:
        """The plug-in's line that the child was in, from the stack that faulthandler wrote."""
        frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', self._read("stack"))
        theirs = [f for f in frames if not is_ours(f[0]) and "lib/python" not in f[0] and not f[0].startswith("<")]
        return f"{Path(theirs[0][0]).name}, line {theirs[0][1]}, in {theirs[0][2]}" if theirs else ""

    def _read(self, file: str) -> str:
        """What the child wrote into a file of its folder."""
        assert self._folder is not None, "the child was started"
        try:
            return Path(self._folder.name, file).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def _end(self, *, kill: bool = False) -> None:
        """Ends the child and all that it started, and keeps what was printed."""
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()  # that is how it is told to go
            if not kill:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._answers is not None:
            os.close(self._answers)
            self._answers = None
        if self._folder is not None:
            self.printed = (self.printed + self._read("printed"))[-TAIL:]
            self._folder.cleanup()
            self._folder = None


_IMPORTS = (
    "the plug-in can be imported and an instance made, within the time limit",
    "a plug-in that cannot be imported is not in the comparison at all",
    "",
)
_APART = "in a run it would take the worker process with it"
_CRASH = "run the method on one picture under a debugger: python -X faulthandler"


def _death(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "closed its pipe and hangs"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"ended the process by {signal.Signals(-code).name}"
        return f"ended the process by signal {-code}"
    return f"ended the process with exit code {code}"


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip().isprintable()]
    return lines[-1][:200] if lines else ""


def check_apart(request: Request, names: Sequence[str] = (), data: Path | None = None) -> tuple[About | None, list[Result]]:
    """All results of ``names`` (and what they need; all checks where none is named), without a word on the screen.

    data: a folder of faces instead of the bundled ones.  Raises InputError for a wrong target, parameter or name of a check.
    """
    wanted = chosen(names)
    with Apart(request) as apart:
        first = apart.begin()
        if apart.about is None:
            return None, [first, *(untried(c, "imports") for c in wanted)]
        return apart.about, [first, *apart.run(wanted, faces_of(data, apart.about.gallery))]


# ------------------------------------------------------------------------------------------------------ in the child


def _read(pipe: BinaryIO) -> Any:
    head = pipe.read(8)
    return pickle.loads(pipe.read(struct.unpack("!Q", head)[0])) if len(head) == 8 else None


def _accepted(anonymizer: Anonymizer) -> None:
    """Raises InputError for parameters that the method itself refuses; anything else that it raises is for the checks."""
    try:
        anonymizer.validate()
    except DeidbenchError:
        raise
    except Exception:
        return


def _own_input() -> BinaryIO:
    """The parent's pipe on a descriptor of its own; a plug-in that reads standard input finds it empty."""
    pipe = os.fdopen(os.dup(0), "rb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return pipe


def main(answers: int, folder: Path) -> None:
    """Imports the plug-in, makes an instance, and answers for one check after another until standard input ends."""
    from deidbench.contract import Trial, checks
    from deidbench.contract_target import create, is_file

    os.set_inheritable(answers, False)
    out = os.fdopen(answers, "w", buffering=1)

    def say(record: Mapping[str, Any]) -> None:
        out.write(json.dumps(record, default=repr) + "\n")

    stack = (folder / "stack").open("w")
    faulthandler.enable(stack)
    pipe = _own_input()
    request: Request = _read(pipe)
    sys.path[:] = request.path
    known = checks()
    say({})

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        """Shortly before the time is up the stack is written down, so that the parent can say where it hangs."""
        stack.seek(0)
        stack.truncate()
        faulthandler.dump_traceback_later(max(0.9 * request.limit, request.limit - 2), file=stack)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    try:
        with watched():
            anonymizer = create(request.target, dict(request.params))
            with contextlib.suppress(MissingError):  # the check 'loads' says so
                _accepted(anonymizer)
            params = {}
            with contextlib.suppress(AttributeError):  # the check 'parameters' says so
                params = anonymizer.params()
            cls = type(anonymizer)
            module = getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__
            about = About(
                anonymizer.name,
                str(anonymizer.version),
                bool(anonymizer.deterministic),
                bool(anonymizer.needs_gallery),
                params,
                f"{module}, {cls.__qualname__}",
            )
    except DeidbenchError as error:
        say({"error": error.message, "remedy": error.remedy, "code": int(error.exit_code)})
        return
    except (Exception, SystemExit) as error:
        from deidbench.contract import described

        say({"error": f"it cannot be made: {described(error)}", "remedy": "see its __init__", "code": int(ExitCode.MISSING)})
        return
    say(vars(about))
    target = request.target if is_file(request.target) else ""
    trial = Trial(anonymizer, _read(pipe), quick=request.quick, control=request.control, limit=request.limit, target=target)
    doing = (folder / "doing").open("w")

    def note(words: str) -> None:
        doing.seek(0)
        doing.truncate()
        doing.write(words)
        doing.flush()

    trial.note = note
    while (name := _read(pipe)) is not None:
        note("")
        with watched():
            result = run_alone(known[name], trial)
        say(replace(result, figures={k: float(v) for k, v in result.figures.items()}).record())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
