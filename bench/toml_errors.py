"""What is wrong in a TOML file that a user wrote, in words, with its line and the nearest right key."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

#: Characters and storeys of tables within tables that no file of ours comes near; parsers and validators fall over more.
LONGEST, DEEPEST = 10_000_000, 40


def loads(text: str) -> dict[str, Any]:
    """As ``tomllib.loads``, whose errors for files that are nested too deeply, or hold a number of thousands of digits, are no
    TOMLDecodeError.  Raises that and nothing else, whatever the text is.
    """
    if len(text) > LONGEST:
        raise tomllib.TOMLDecodeError(f"{len(text):,} characters are too many")
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise tomllib.TOMLDecodeError("nested too deeply") from None
    except ValueError as error:  # a whole number of more than 4300 digits
        raise tomllib.TOMLDecodeError(str(error)) from None
    storey: list[Any] = [found]
    for _ in range(DEEPEST):
        storey = [
            v for node in storey for v in (node.values() if isinstance(node, dict) else node) if isinstance(v, dict | list)
        ]
        if not storey:
            return found
    raise tomllib.TOMLDecodeError(f"nested too deeply: more than {DEEPEST} tables or lists within one another")


def complaint(error: ValidationError, model: type[BaseModel], text: str, origin: str, inherited: int = 0) -> tuple[str, str]:
    """(message with file and line, remedy) of what a model does not accept; a misspelt key before one that is missing.

    inherited: how many of the file's ``methods`` stand in another file that it extends.
    """
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = tuple(p - inherited if isinstance(p, int) and first["loc"][0] == "methods" else p for p in first["loc"])
    where = f"{origin}:{line_of(text, loc)}"
    name = ".".join(str(p) for p in loc if isinstance(p, str)) or "the file"  # the line says which of several
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = known_keys(model, loc)
        close = difflib.get_close_matches(str(loc[-1]), known, n=1)
        return (
            f"{where}: unknown key {name!r}{more}",
            f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}",
        )
    return f"{where}: {name}: {first['msg'].removeprefix('Value error, ')}{more}", "correct that line"


def known_keys(model: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that ``model`` takes where ``loc`` points."""
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))[0]
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def line_of(text: str, loc: Sequence[str | int]) -> int:
    """Line (from 1) in TOML ``text`` of ``loc``, e.g. ``("experiments", 1, "published", 0, "value")``, or of what it is in.

    TOML parsers for Python give no positions, so headers and keys are followed here by hand.
    """
    wanted, best, depth = tuple(loc), 1, 0
    path: tuple[str | int, ...] = ()
    counts: dict[tuple[str | int, ...], int] = {}

    def into(names: Sequence[str], many: bool) -> tuple[str | int, ...]:
        at: tuple[str | int, ...] = ()
        for i, name in enumerate(names):
            at = (*at, name)
            if many and i == len(names) - 1:
                counts[at] = counts.get(at, -1) + 1
            if at in counts:
                at = (*at, counts[at])
        return at

    for number, line in enumerate(text.splitlines(), start=1):
        # not \s* on both sides of the name: lines of blanks alone would take a pattern hours
        header = re.match(r"\s*\[(\[)?([^\[\]]+)\]", line)
        assignment = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
        if header:
            path = into([p.strip(" \t\"'") for p in header.group(2).split(".")], bool(header.group(1)))
            here = path
        elif assignment:
            here = (*path, *(p.strip("\"'") for p in assignment.group(1).split(".")))
        else:
            continue
        if len(here) > depth and wanted[: len(here)] == here:
            best, depth = number, len(here)
    return best
