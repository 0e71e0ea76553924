"""Errors that a user can act on, and the exit codes of the command line.

Every error that deidbench raises on purpose is a :class:`DeidbenchError`.  It says what was wrong, with
what, and, in ``remedy``, what to type next.  Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import unicodedata
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``deidbench`` (also listed in ``deidbench --help``)."""

    OK = 0
    #: The command ran and its answer is "no": a gate that failed, a doctor that found something broken.
    NEGATIVE = 1
    #: Bad usage or bad input: unknown option, invalid suite, unreadable file.  Nothing was computed.
    USAGE = 2
    #: Something that is needed is not there: a package, a weight file, a data set.
    MISSING = 3
    #: The command finished, but some images failed; the results say which and why.
    PARTIAL = 4
    #: The machine failed us: disk full, folder not writable, out of memory.
    ENVIRONMENT = 5
    #: Interrupted (Ctrl-C).  What was computed is kept; the same command goes on from there.
    INTERRUPTED = 130


def printable(text: object) -> str:
    """``text`` without characters that a terminal acts on: names of files and parts come from anybody.  Line ends stay."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") or c in "\u200c\u200d" else "\ufffd"
        for c in str(text)
    )


class DeidbenchError(Exception):
    """An error with a remedy.

    Parameters
    ----------
    message: what was wrong, naming the file or value.
    remedy: what the user can type or change to mend it (empty when there is nothing to say).
    """

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # travels between worker processes whole
        return (type(self), (self.message, self.remedy))


class InputError(DeidbenchError):
    """A file or value that the user gave is not usable."""


class ImageError(InputError):
    """An image that cannot be read or used; the message names the file."""


class SuiteError(InputError):
    """A suite file that does not validate; the message names file and line."""


class MissingError(DeidbenchError):
    """A package, weight file or data set that is needed is absent."""

    exit_code = ExitCode.MISSING


class EnvironmentFault(DeidbenchError):
    """The machine failed us: disk full, no permission, out of memory."""

    exit_code = ExitCode.ENVIRONMENT
