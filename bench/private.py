"""Texts without the paths of the machine that they come from: what is written into results goes to other people.

Of an absolute path its last part stays, which is enough to know a file by; relative paths, addresses on the web and everything else are
left as they are.  Terminals are told whole paths: they are their owner's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: An absolute path of two parts or more within a sentence; a path on the web follows a colon or a letter.
_PATH = re.compile(
    r"(?<![\w.:/~\\])(?:~|[A-Za-z]:(?=\\))?(?:[/\\][^\s/\\'\"`:;,|<>(){}\[\]]+)+[/\\]([^\s/\\'\"`:;,|<>(){}\[\]]*)"
)


def without_paths(value: Any, known: Sequence[str | Path] = ()) -> Any:
    """``value`` (texts, and lists and tables of them) with every absolute path cut down to its last part.

    known: folders that are cut off wherever they stand, also where their names have blanks.
    """
    folders = sorted({str(k) for k in (*known, Path.home()) if len(Path(str(k)).parts) > 1}, key=len, reverse=True)

    def clean(v: Any) -> Any:
        if isinstance(v, str):
            return _cut(v, folders)
        if isinstance(v, Mapping):
            return {k if not isinstance(k, str) else _cut(k, folders): clean(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [clean(x) for x in v]
        if isinstance(v, Path):
            return _cut(str(v), folders)
        return v

    return clean(value)


def _cut(text: str, folders: Sequence[str]) -> str:
    if "/" not in text and "\\" not in text:
        return text
    for folder in folders:
        if text.rstrip("/") == folder:
            return Path(folder).name
        text = text.replace(folder + "/", "")
    if (text.startswith(("/", "~/")) or re.match(r"[A-Za-z]:\\", text)) and _is_one_path(text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or text
    return _PATH.sub(lambda m: m[1] or re.split(r"[/\\]", m[0].rstrip("/\\"))[-1], text)


def _is_one_path(text: str) -> bool:
    """Whether the whole text is a path, blanks and all, and no sentence or command that begins with one."""
    if not re.search(r"\s", text):
        return True
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
