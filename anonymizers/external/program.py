"""Runs somebody else's program: its environment, an exchange folder, a process that is watched, one answer per image.

The parts, from the bottom up; a new adapter takes what it needs:

* :class:`Environment` - the interpreter or container image that the user named, and how to start something in it.
* :func:`run_command` - one command to its end, with a time-out that takes its children along.
* :class:`Exchange` - a private temporary folder for pictures under neutral names; what is read back is checked.
* :class:`Resident` - a process that stays up and answers requests, a line of JSON each, over its pipes.
* :class:`ExternalAnonymizer` - the adapter around a resident process: crashes, time-outs, restarts, verdicts.

Neither the ids of the images nor the names of people reach the program.
"""

from __future__ import annotations

import json
import os
import queue
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, isfinite, nan
from pathlib import Path
from typing import IO, Any

from deidbench.anonymizers.base import Anonymizer
from deidbench.anonymizers.regions import image_fault
from deidbench.errors import DeidbenchError, EnvironmentFault, ImageError, InputError, MissingError
from deidbench.types import Anonymized, Box, FaceResult, Image, Item, Status

#: What drivers import to talk to us, and what watches over a command.  Both run in other interpreters than ours.
CHANNEL = Path(__file__).with_name("drivers") / "deidbench_channel.py"
GUARD = Path(__file__).with_name("drivers") / "guard.py"
#: Begins every line of a driver's answers; anything else on its standard output is noise.
MARK = "@deidbench "
#: Longest line that is read from a program at a time, in bytes.
_LINE = 1 << 20
#: How much of a program's last words is kept for reports.
_TAIL_LINES, _TAIL_CHARS = 12, 1500
#: Variables that steer *our* interpreter and would lead another one astray.
_OURS = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONUSERBASE", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
_CONTAINERS = ("docker", "podman")
#: Where things lie inside a container.
_INSIDE = {"program": "/program", "exchange": "/exchange", "driver": "/driver"}


def user_data() -> Path:
    """deidbench's folder among the user's data.  Not created here."""
    import platformdirs

    return Path(platformdirs.user_data_path("deidbench", appauthor=False))


def tail(text: str, lines: int = _TAIL_LINES, chars: int = _TAIL_CHARS) -> str:
    """The last lines of ``text``, at most ``chars`` characters, fit for a report.

    Empty lines, what carriage returns hid (progress bars) and what does not print (colours, binary) are left out.
    """
    kept = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.rstrip().rsplit("\r", 1)[-1]) for line in text.split("\n")]
    kept = ["".join(c for c in line.replace("\t", " ") if c.isprintable()).rstrip() for line in kept]
    return "\n".join([line for line in kept if line][-lines:])[-chars:]


def tidy(text: str, exchange: Path) -> str:
    """``text`` without the exchange folder, which is another one every time, and without the user's home."""
    home = str(Path.home())
    text = text.replace(str(exchange), "(exchange)")
    return text.replace(home, "~") if len(home) > 1 else text


# ------------------------------------------------------------------------------------------------------ environment


@dataclass(frozen=True)
class Launch:
    """How to start a process.

    command: program and arguments.  folder: working directory (on this machine).  variables: the whole environment.
    end: a command that ends what killing the process cannot reach (a container), () where there is none.
    """

    command: tuple[str, ...]
    folder: Path
    variables: Mapping[str, str]
    end: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """Where an outside program can run.

    kind: "python" (an interpreter on this machine), "docker" or "podman".
    python: the interpreter, for the first kind.  image: name of the image, for the others.
    """

    kind: str
    python: Path | None = None
    image: str = ""

    @staticmethod
    def check(method: str, python: str, environment: str) -> None:
        """Cheap look at what the user wrote.  Raises InputError."""
        if python and environment:
            raise InputError(
                f"{method}: python = {python!r} and environment = {environment!r} name two environments", "keep one of them"
            )
        kind, _, name = environment.partition(":")
        if environment and (kind not in ("conda", "uv", *_CONTAINERS) or not name or name.startswith("-")):
            raise InputError(
                f"{method}: environment = {environment!r} is not understood",
                'write "conda:NAME", "uv:FOLDER" (a virtual environment), "docker:IMAGE" or "podman:IMAGE"',
            )

    @classmethod
    def resolve(cls, method: str, python: str, environment: str, default: Path, recipe: str) -> Environment:
        """The environment that the user named; without a name the virtual environment ``default``, if it is there.

        recipe: what to type to make one.  Raises InputError (see :meth:`check`) and MissingError.
        """
        cls.check(method, python, environment)
        if python:
            found = shutil.which(Path(python).expanduser())
            if found is None:
                raise MissingError(f"{method}: there is no interpreter {python}", recipe)
            return cls("python", Path(found).absolute())
        kind, _, name = environment.partition(":")
        if kind in _CONTAINERS:
            if shutil.which(kind) is None:
                raise MissingError(f"{method}: {kind} is not installed, which environment = {environment!r} needs", recipe)
            return cls(kind, image=name)
        if kind == "conda":
            return cls("python", _interpreter(_conda_prefix(method, name, recipe), method, recipe))
        return cls("python", _interpreter(Path(name).expanduser() if name else default, method, recipe))

    def identity(self) -> str:
        """What is installed in it, in words that are the same on every machine; for fingerprints.

        Python version and the version of every package, or the id of the container image.  Raises MissingError.
        """
        if self.python is not None:
            return _installed(str(self.python))
        return _image_id(self.kind, self.image)

    def launch(
        self,
        driver: Path,
        arguments: Sequence[str],
        *,
        program: Path | None,
        exchange: Path,
        variables: Mapping[str, str],
        mounts: Mapping[Path, str] | None = None,
        gpu: bool = False,
    ) -> Launch:
        """Starts ``driver`` (a Python file) in the folder ``program``; the rest as for :meth:`start`."""
        inside = f"{_INSIDE['driver']}/{driver.name}"
        words = ["{python}", str(driver) if self.python else inside, *arguments]
        variables = {"PYTHONPATH": "{exchange}", **variables}  # where the driver finds deidbench_channel
        mounts = {driver.parent: _INSIDE["driver"], **(mounts or {})}
        return self.start(words, program=program, exchange=exchange, variables=variables, mounts=mounts, gpu=gpu)

    def start(
        self,
        words: Sequence[str],
        *,
        program: Path | None,
        exchange: Path,
        variables: Mapping[str, str],
        mounts: Mapping[Path, str] | None = None,
        gpu: bool = False,
    ) -> Launch:
        """Starts the program ``words[0]`` with the rest as arguments, in the folder ``program`` (None: the exchange folder).

        In words and variables ``{exchange}``, ``{program}`` and ``{python}`` become what they are for the process.
        mounts: further folders for containers, host path -> path inside, read only.  gpu: hand the GPUs to a container.
        """
        if self.python is not None:
            given = {k: v for k, v in os.environ.items() if k not in _OURS}
            given["PATH"] = os.pathsep.join([str(self.python.parent), given.get("PATH", os.defpath)])
            # The program must see this environment alone, and must not leave compiled files in the user's checkout.
            given |= {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
            folder = program or exchange
            places = {"{exchange}": str(exchange), "{program}": str(folder), "{python}": str(self.python)}
            given |= {k: _put(v, places) for k, v in variables.items()}
            return Launch(tuple(_put(w, places) for w in words), folder, given)
        name = f"deidbench-{uuid.uuid4().hex[:12]}"
        folder_inside = _INSIDE["program"] if program else _INSIDE["exchange"]
        places = {"{exchange}": _INSIDE["exchange"], "{program}": folder_inside, "{python}": "python3"}
        made = [self.kind, "run", "--rm", "-i", "--name", name, "--network", "none", "--workdir", folder_inside]
        if self.kind == "podman":
            made += ["--userns", "keep-id"]
        elif hasattr(os, "getuid"):  # what it writes must be ours to delete
            made += ["--user", f"{os.getuid()}:{os.getgid()}"]
        if gpu:
            made += ["--device", "nvidia.com/gpu=all"] if self.kind == "podman" else ["--gpus", "all"]
        if program:
            made += ["-v", f"{program}:{_INSIDE['program']}:ro"]
        made += ["-v", f"{exchange}:{_INSIDE['exchange']}"]
        for outside, inside in (mounts or {}).items():
            made += ["-v", f"{outside}:{inside}:ro"]
        inner = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "HOME": "{exchange}", **variables}
        for key, value in inner.items():
            made += ["-e", f"{key}={_put(value, places)}"]
        first, *rest = (_put(w, places) for w in words)
        made += ["--entrypoint", first, self.image, *rest]
        return Launch(tuple(made), program or exchange, dict(os.environ), (self.kind, "kill", name))


def _put(text: str, places: Mapping[str, str]) -> str:
    """``text`` with every key of ``places`` replaced, in one pass: what was put in is not looked at again."""
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


def _interpreter(prefix: Path, method: str, recipe: str) -> Path:
    """The interpreter of a virtual or conda environment (not resolved: a link there knows its environment)."""
    for inside in ("bin/python", "bin/python3", "Scripts/python.exe", "python.exe"):
        if (prefix / inside).is_file():
            return (prefix / inside).absolute()
    raise MissingError(f"{method}: there is no Python environment in {prefix}", recipe)


def _conda_prefix(method: str, name: str, recipe: str) -> Path:
    """Folder of the conda environment ``name`` (a path is taken as it is)."""
    if os.sep in name:
        return Path(name).expanduser()
    conda = next((c for c in (os.environ.get("CONDA_EXE", ""), "conda", "mamba", "micromamba") if c and shutil.which(c)), None)
    if conda is None:
        raise MissingError(f"{method}: conda is not installed, which environment = 'conda:{name}' needs", recipe)
    done = run_command([conda, "env", "list", "--json"], timeout=60)
    try:
        folders = [Path(p) for p in json.loads(done.output)["envs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault(
            f"{method}: conda does not say which environments it has: {tail(done.errors) or done.why}",
            f"environment = 'conda:FOLDER' with the folder of {name} needs no conda",
        ) from error
    for folder in folders:
        if folder.name == name:
            return folder
    raise MissingError(f"{method}: conda has no environment {name!r} (it has: {', '.join(f.name for f in folders)})", recipe)


_ASK_INSTALLED = """
import sys
from importlib.metadata import distributions
names = {(d.metadata["Name"] or "").lower() + "==" + (d.version or "") for d in distributions()}
print("python==" + ".".join(map(str, sys.version_info[:3])), *sorted(names), sep="\\n")
"""


@lru_cache(maxsize=16)
def _installed(python: str) -> str:
    variables = {k: v for k, v in os.environ.items() if k not in _OURS}
    done = run_command([python, "-I", "-c", _ASK_INSTALLED], timeout=120, variables=variables)
    if done.code != 0:
        raise MissingError(
            f"{python} does not run as a Python 3.8 or later: {tail(done.errors) or done.why}", "name another interpreter"
        )
    return done.output.strip()


@lru_cache(maxsize=16)
def _image_id(engine: str, image: str) -> str:
    done = run_command([engine, "image", "inspect", "--format", "{{.Id}}", image], timeout=120)
    if done.code != 0:
        raise MissingError(
            f"{engine} does not have the image {image}: {tail(done.errors) or done.why}", f"{engine} pull {image}, or build it"
        )
    return done.output.strip()


# -------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end.  code: exit status, None after a time-out.  why: the end in words."""

    code: int | None
    output: str
    errors: str
    why: str


def run_command(
    command: Sequence[str],
    *,
    timeout: float,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    guard: Path | None = None,
    end: Sequence[str] = (),
) -> Finished:
    """Runs one command to its end; after ``timeout`` seconds it is killed with its children.  Raises MissingError.

    guard: an exchange folder: where deidbench itself is killed, the command goes with it, and so do the pictures in there.
    end: a command that ends what killing the process cannot reach (a container).
    """
    guarded = guard is not None and os.name == "posix"
    if guarded:
        # sys.executable, not the environment's interpreter: the guard is ours
        command = [sys.executable, "-I", "-S", str(GUARD), str(guard), *command]
    process = _spawn(command, folder, variables, stdin=subprocess.PIPE if guarded else subprocess.DEVNULL)
    threads = [_Reader(stream) for stream in (process.stdout, process.stderr) if stream is not None]
    try:
        try:
            code: int | None = process.wait(timeout)
            why = in_words(code)
        except subprocess.TimeoutExpired:
            code, why = None, f"no end after {timeout:g} s; killed"
            if end:
                with suppress(DeidbenchError):
                    run_command(end, timeout=30)
    finally:  # after its end too: what it started and left behind may not go on with the pictures
        kill_group(process)
        process.wait()
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
    output, errors = (thread.text() for thread in threads)
    return Finished(code, output, errors, why)


class _Reader(threading.Thread):
    """Reads a pipe to its end, and keeps the beginning and the end of what comes."""

    def __init__(self, stream: IO[bytes], keep: int = 1 << 20) -> None:
        super().__init__(daemon=True)
        self._stream, self._keep, self._head, self._tail = stream, keep, b"", b""
        self.start()

    def run(self) -> None:
        with suppress(OSError, ValueError):
            while data := os.read(self._stream.fileno(), 1 << 16):
                room = self._keep - len(self._head)
                self._head += data[:room]
                self._tail = (self._tail + data[room:])[-self._keep :] if room < len(data) else self._tail

    def text(self) -> str:
        self.join(5)
        if not self.is_alive():
            self._stream.close()
        return (self._head + self._tail).decode(errors="replace")


def _spawn(
    command: Sequence[str], folder: Path | None, variables: Mapping[str, str] | None, stdin: int
) -> subprocess.Popen[bytes]:
    try:
        # A session of its own: a Ctrl-C at the keyboard reaches us alone, and we decide what becomes of the program.
        return subprocess.Popen(
            list(command),
            cwd=folder,
            env=None if variables is None else dict(variables),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=os.name == "posix",
        )
    except FileNotFoundError as error:
        raise MissingError(f"{command[0]} cannot be started: {error}", "check the path") from error
    except OSError as error:
        raise EnvironmentFault(f"{command[0]} cannot be started: {error}", "check its permissions") from error


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and everything it started, whether it still runs itself or not."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
    else:
        with suppress(OSError):
            process.kill()


def in_words(code: int | None) -> str:
    """An exit status in words: "exit code 1", "signal SIGSEGV"."""
    if code is None:
        return "it still runs"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def run_steps(
    steps: Sequence[Sequence[str]], *, what: str, consent: bool, show: Callable[[str], None], folder: Path | None, undo: str
) -> None:
    """Runs the commands that make an environment, in order.

    what: they do, for the question.  consent: given by the user.  show: is told every command before it runs.
    folder: working directory.  undo: what to do before a second try.  Raises InputError (no consent), EnvironmentFault.
    """
    if not consent:
        raise InputError(
            f"{what}; this needs your consent",
            "say --download, or type these yourself:\n  " + "\n  ".join(shlex.join(step) for step in steps),
        )
    for step in steps:
        show(shlex.join(step))
        done = run_command(
            step, timeout=3600, folder=folder, variables={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        )
        if done.code != 0:
            raise EnvironmentFault(
                f"{shlex.join(step[:6])} ... failed ({done.why}): {tail(done.errors or done.output)}",
                f"mend that, {undo} and start again",
            )


class ProgramFailure(Exception):
    """The program died, or did not answer in time.  The text is fit for a report."""


class Resident:
    """A process that answers requests.

    Both ways a line is one JSON object; answers begin with :data:`MARK` and repeat the ``id`` of their request.  Other
    lines are kept with its standard error, whose last lines are in :meth:`last_words`.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._words: deque[str] = deque(maxlen=4 * _TAIL_LINES)
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._asked = 0
        self._stopped = False
        self._process = _spawn(launch.command, launch.folder, launch.variables, stdin=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin: IO[bytes] = self._process.stdin
        self._threads = [
            threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._collect, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return not self._stopped and self._process.poll() is None

    def _listen(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while line := stream.readline(_LINE):
                text = line.decode(errors="replace")
                answer = None
                if text.startswith(MARK):
                    with suppress(ValueError):
                        answer = json.loads(text[len(MARK) :])
                if isinstance(answer, dict):
                    self._answers.put(answer)
                else:
                    self._words.append(text[:_TAIL_CHARS])
        self._answers.put(None)

    def _collect(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while line := stream.readline(_LINE):
                self._words.append(line.decode(errors="replace")[-_TAIL_CHARS:])

    def _settle(self, patience: float = 0.5) -> None:
        """Waits until what it has written to standard error is read: an answer may overtake the words that belong to it."""
        stream = self._process.stderr
        assert stream is not None
        quiet, end = 0, time.monotonic() + patience
        while quiet < 2 and time.monotonic() < end:
            before = len(self._words)
            time.sleep(0.001)
            with suppress(OSError, ValueError):  # no select on pipes there
                if select.select([stream], [], [], 0)[0] or len(self._words) != before:
                    quiet = 0
                    continue
            quiet += 1

    def last_words(self) -> str:
        """The tail of what it wrote."""
        return tail("".join(list(self._words)))

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to ``request``.  Raises ProgramFailure; the process is then gone, with all that it started."""
        self._asked += 1
        line = json.dumps({**request, "id": self._asked}) + "\n"
        if self.runs:
            self._settle()
            self._words.clear()  # the last words in a report are those about this request
        try:
            self._stdin.write(line.encode())
            self._stdin.flush()
        except (OSError, ValueError):
            raise self._died() from None
        return self.answer(self._asked, timeout)

    def answer(self, number: int, timeout: float) -> dict[str, Any]:
        """The answer with that ``id`` (0: the greeting).  Raises ProgramFailure as :meth:`ask` does."""
        end = time.monotonic() + timeout
        while True:
            gone = self._process.poll() is not None
            left = end - time.monotonic()
            if left <= -1:  # it goes on answering what nobody asked
                raise self._late(timeout)
            try:
                # In small steps: where a child of its own holds the pipe open, its death shows in no other way.
                answer = self._answers.get(timeout=0.2 if gone else max(min(left, 0.5), 0.001))
            except queue.Empty:
                if gone:
                    raise self._died() from None
                if left > 0:
                    continue
                raise self._late(timeout) from None
            if answer is None:
                raise self._died()
            if answer.get("id") == number:
                return answer

    def _late(self, timeout: float) -> ProgramFailure:
        self.stop()
        return ProgramFailure(self._report(f"no answer within {timeout:g} s; the program was killed"))

    def _died(self) -> ProgramFailure:
        with suppress(subprocess.TimeoutExpired):  # its pipe closes a moment before it is gone
            self._process.wait(5)
        code = self._process.poll()
        self.stop()
        what = "closed its output and went on; it was killed" if code is None else f"ended unexpectedly ({in_words(code)})"
        return ProgramFailure(self._report(f"the program {what}"))

    def _report(self, what: str) -> str:
        self._threads[1].join(2)  # so that the last words are in
        words = self.last_words()
        return f"{what}; its last words:\n{words}" if words else f"{what}; it said nothing"

    def stop(self, grace: float = 0.0) -> None:
        """Ends the process and what it started; ``grace`` seconds to go by itself.  Can be called twice."""
        if self._stopped:
            return
        self._stopped = True
        try:
            with suppress(OSError, ValueError):
                self._stdin.close()
            if grace > 0:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(grace)
            if self._launch.end and self._process.poll() is None:
                with suppress(DeidbenchError):
                    run_command(self._launch.end, timeout=30)
        finally:  # whatever comes in between, a second Ctrl-C above all
            kill_group(self._process)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None and not any(t.is_alive() for t in self._threads):
                stream.close()


# --------------------------------------------------------------------------------------------------------- exchange


#: What to do where the temporary folder is full.
_ROOM = (
    "free some space (df -h), or set $TMPDIR to a folder on another disk; then run the same command again: what was computed is kept, and "
    "no image counts as failed because of this"
)


class OutputFault(Exception):
    """Why what a program left behind is no usable output."""


class NoOutput(OutputFault):
    """There is none at all."""


class Exchange:
    """A temporary folder, readable by the user alone, with ``in`` and ``out`` for pictures, and ``work`` for the program."""

    def __init__(self) -> None:
        from deidbench.images import make_folder

        try:
            self.folder = Path(tempfile.mkdtemp(prefix="deidbench-"))
        except OSError as error:
            raise EnvironmentFault(f"no temporary folder: {error}", _ROOM) from error
        try:
            for name in ("in", "out", "work"):
                make_folder(self.folder / name)
            shutil.copyfile(CHANNEL, self.folder / CHANNEL.name)  # for drivers, which see this folder and none of ours
        except (OSError, EnvironmentFault) as error:
            self.close()
            raise EnvironmentFault(f"the temporary folder {self.folder} cannot be filled: {error}", _ROOM) from error

    def put(self, index: int, image: Image, suffix: str = ".png") -> str:
        """Writes ``in/NNNNNN.png`` and makes sure that no old output has that name; returns the name."""
        from deidbench.images import encode_image, encode_png

        name = f"{index:06d}{suffix}"
        try:
            (self.folder / "out" / name).unlink(missing_ok=True)
            data = encode_png(image) if suffix == ".png" else encode_image(image, suffix, quality=100)
            (self.folder / "in" / name).write_bytes(data)
        except OSError as error:
            self.drop(name)
            raise EnvironmentFault(f"{self.folder} cannot be written: {error}", _ROOM) from error
        return name

    def check_room(self, image: Image) -> None:
        """Asked when an output is missing or torn: was there room for it?  Raises EnvironmentFault where there was none.

        A program that finds the disk full need not say so, and the image is not to blame.
        """
        probe = self.folder / "room"
        try:
            with probe.open("wb", buffering=0) as file:
                left = memoryview(bytes(image.nbytes + (1 << 16)))
                while left:
                    left = left[file.write(left) :]
        except OSError as error:
            raise EnvironmentFault(f"no room for pictures in the temporary folder {self.folder}: {error}", _ROOM) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def get(self, path: str | Path, image: Image, same_size: bool = True) -> Image:
        """The output for the input ``image``, RGB uint8, of the same size where ``same_size``.  Raises OutputFault.

        path: of the file; a bare name lies in ``out``.
        """
        from deidbench.images import read_image

        path = self.folder / "out" / path
        if not path.is_file():
            raise NoOutput("left no output file")
        try:
            found = read_image(path)
        except ImageError as error:
            raise OutputFault(f"left an unreadable output: {error.message.replace(str(path), 'the file')}") from error
        if same_size and found.shape != image.shape:
            raise OutputFault(
                f"gave a picture of {found.shape[1]} x {found.shape[0]} pixels for one of {image.shape[1]} x {image.shape[0]}"
            )
        return found

    def drop(self, name: str) -> None:
        """Deletes a pair: pictures of people stay on the disk no longer than they must."""
        for part in ("in", "out"):
            with suppress(OSError):
                (self.folder / part / name).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def judge(item: Item, output: Image, boxes: Sequence[Box], method: str) -> Anonymized:
    """The verdict on a picture that the program claims to have anonymised.

    boxes: faces that it says it worked on, in pixels.  A face whose pixels are all the input's was not worked on,
    whatever the program says; one such face withholds the image.
    """
    if (output == item.image).all():
        return Anonymized.failed(
            item.id, f"{method} claims to have found {len(boxes)} face(s) but returned its input unchanged"
        )
    height, width = item.image.shape[:2]
    faces = []
    for box in boxes:
        inside = box.clipped(width, height)
        part = slice(floor(inside.y0), ceil(inside.y1)), slice(floor(inside.x0), ceil(inside.x1))
        if inside.area <= 0:
            faces.append(FaceResult(Status.FAILED, box, "the face lies outside the image"))
        elif (output[part] == item.image[part]).all():
            faces.append(FaceResult(Status.FAILED, box, "its pixels are the input's, unchanged"))
        else:
            faces.append(FaceResult(Status.OK, box))
    if bad := [f"face {i} of {len(faces)}: {f.reason}" for i, f in enumerate(faces, 1) if f.status is not Status.OK]:
        return Anonymized(item.id, Status.FAILED, None, tuple(faces), "image withheld; " + "; ".join(bad))
    return Anonymized(item.id, Status.OK, output, tuple(faces))


# ---------------------------------------------------------------------------------------------------------- adapter


@dataclass(frozen=True)
class _Live:
    """A running program, where pictures are exchanged with it, and what ends both."""

    resident: Resident
    exchange: Exchange
    greeting: Mapping[str, Any]
    owner: int
    end: weakref.finalize[Any, Any]


def _finish(resident: Resident, exchange: Exchange, owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the object, not the program
        resident.stop(grace=1.0)
        exchange.close()


class ExternalAnonymizer(Anonymizer):
    """An anonymizer that is a resident process of its own.

    The process starts in :meth:`load` and stays up over the batches.  Images go one by one, so that a crash or a
    time-out is that image's and nobody else's; the process is then started again for the next one.  It is killed, with
    everything it started, when this object goes, at exit and on Ctrl-C.  Pickling carries the parameters alone.

    A subclass has the parameters ``timeout`` (seconds for one image) and ``startup`` (seconds until the program is
    ready), says in :meth:`_launch` how it is started and in :meth:`_request` what is asked for an image.  The driver
    greets with ``{"id": 0}``, or with ``{"id": 0, "fatal": reason, "missing": bool}``; it answers a request with
    ``{"id", "status": "ok" | "no_face" | "failed", "boxes": [[x0, y0, x1, y1], ...], "reason"}``.
    """

    own_process = True
    timeout: float
    startup: float
    #: Whether it says which faces it worked on; one that does and names none found none.
    says_boxes: bool = True
    #: Whether an output must have the size of its input.
    same_size: bool = True
    #: What to type when the program does not start, for messages.
    recipe: str = ""
    _live: _Live | None = None

    @abstractmethod
    def _launch(self, exchange: Path) -> Launch:
        """How the driver is started.  Raises MissingError, InputError."""

    @abstractmethod
    def _request(self, item: Item) -> dict[str, Any] | Anonymized:
        """What is asked for an image besides its ``name`` and ``seed``; or the result, where nothing need be asked."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def load(self) -> None:
        """Starts the program.  Raises MissingError, InputError; EnvironmentFault where it does not come up."""
        self.validate()
        self._ready()

    def close(self) -> None:
        """Ends the program.  It comes up again when it is needed."""
        live, self._live = self._live, None
        if live is not None:
            live.end()

    def greeting(self) -> dict[str, Any]:
        """What the program said about itself when it came up (versions, device)."""
        return {k: v for k, v in self._ready().greeting.items() if k != "id"}

    def _ready(self) -> _Live:
        if self._live is not None and self._live.owner != os.getpid():
            self._live = None
        if self._live is not None and not self._live.resident.runs:
            self.close()  # killed while it had nothing to do: no image is to blame
        if self._live is not None:
            return self._live
        exchange = Exchange()
        try:
            resident = Resident(self._launch(exchange.folder))
        except BaseException:
            exchange.close()
            raise
        end = weakref.finalize(self, _finish, resident, exchange, os.getpid())
        try:
            greeting = resident.answer(0, self.startup)
        except ProgramFailure as failure:
            end()
            raise EnvironmentFault(f"{self.name} does not start: {self._tidy(str(failure), exchange)}", self.recipe) from None
        except BaseException:
            end()
            raise
        if fatal := greeting.get("fatal"):
            resident.stop(grace=1.0)
            words = resident.last_words()
            end()
            text = f"{self.name} does not start: {fatal}" + (f"; its last words:\n{words}" if words else "")
            kind = MissingError if greeting.get("missing") else EnvironmentFault
            raise kind(self._tidy(text, exchange), self.recipe)
        self._live = _Live(resident, exchange, greeting, os.getpid(), end)
        return self._live

    def _tidy(self, text: str, exchange: Exchange) -> str:
        """``text`` without the exchange folder, which is another one every time, and without the user's home."""
        return tidy(text, exchange.folder)

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        """One result per item, in order.

        An image that crashes the program or takes longer than ``timeout`` is ``failed`` with the tail of what the
        program wrote; the others are worked on by a fresh process.  Raises as :meth:`load` does, also where the program does not
        come up again in the midst of a batch: of images that were not tried nothing is known.
        """
        self.validate()
        results: list[Anonymized] = []
        asked = 0
        try:
            for index, item in enumerate(items):
                if fault := image_fault(item.image):
                    results.append(Anonymized.failed(item.id, fault))
                    continue
                request = self._request(item)
                if isinstance(request, Anonymized):
                    results.append(request)
                    continue
                try:
                    live = self._ready()
                except DeidbenchError as error:
                    if not asked:
                        raise
                    before = next((r.reason for r in reversed(results) if r.status is Status.FAILED), "")
                    raise EnvironmentFault(
                        f"{self.name} did not come up again after it failed: {error.message}; before that: {before}",
                        "see that it starts, then run the same command again: what was computed is kept, and images that were not tried "
                        "do not count as failed",
                    ) from error
                asked += 1
                results.append(self._ask(live, index, item, request))
        except BaseException:  # Ctrl-C above all: nothing of ours may go on working
            if self._live is not None:
                self._live.resident.stop()  # at once: a second Ctrl-C must not find it alive
            self.close()
            raise
        return results

    def _ask(self, live: _Live, index: int, item: Item, request: Mapping[str, Any]) -> Anonymized:
        name = live.exchange.put(index, item.image)
        try:
            answer = live.resident.ask({**request, "name": name, "seed": item.seed}, self.timeout)
            return self._verdict(live, name, item, answer)
        except ProgramFailure as failure:
            self.close()
            return Anonymized.failed(item.id, self._tidy(str(failure), live.exchange))
        except OutputFault as fault:
            live.exchange.check_room(item.image)
            return Anonymized.failed(item.id, f"{self.name} {fault}")
        finally:
            live.exchange.drop(name)

    def _verdict(self, live: _Live, name: str, item: Item, answer: Mapping[str, Any]) -> Anonymized:
        if answer.get("fatal"):  # it answered, but is not fit to go on (a GPU error spoils the whole process)
            self.close()  # its picture goes too: such an answer is never "ok"
            return Anonymized.failed(item.id, self._tidy(f"{self.name}: {answer.get('reason')}", live.exchange))
        status = answer.get("status")
        try:
            boxes = [Box(*map(float, box)) for box in answer.get("boxes", ())]
        except (TypeError, ValueError):
            boxes = [Box(nan, nan, nan, nan)]
        if not all(isfinite(v) for box in boxes for v in box):
            return Anonymized.failed(item.id, f"{self.name} answered with boxes that are none: {answer.get('boxes')!r:.200}")
        if status == "no_face" or (status == "ok" and not boxes and self.says_boxes):
            return Anonymized.no_face(item.id, f"{self.name} found no face (it returns its input then); image withheld")
        if status != "ok":
            reason = str(answer.get("reason") or f"answered {status!r}")
            return Anonymized.failed(item.id, self._tidy(f"{self.name}: {reason}", live.exchange))
        output = live.exchange.get(name, item.image, self.same_size)
        return judge(item, output, boxes, self.name) if boxes else Anonymized(item.id, Status.OK, output)
