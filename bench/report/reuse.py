"""Figures that are there already and would come out the same are not drawn again: drawing is most of a report's time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deidbench.report.view import write_atomically

if TYPE_CHECKING:
    from deidbench.report.figures import Saved
    from deidbench.report.view import View

NOTE = "drawn.json"
#: Parts of the run record that change from call to call and are in no figure.
_PASSING = ("run", "timings", "started", "finished", "environment")


def figures(view: View, folder: Path, say: Callable[[str], None] | None = None, hidden: str = "") -> list[Saved]:
    """:func:`deidbench.report.figures.draw_all`, or what it left in ``folder`` for the same run and the same code."""
    from deidbench.report.figures import Saved, draw_all

    digest = _digest(view, hidden)
    try:
        note = json.loads((folder / NOTE).read_text("utf-8"))
        shown = {name for f in note["figures"] for name in (*f["narrow"], *f["wide"])}
        # a note may come from anybody: only files of this folder, and no links, go into the page
        own = shown <= set(note["files"]) and not any("/" in name or (folder / name).is_symlink() for name in shown)
        if own and note["digest"] == digest and all(_sha256(folder / name) == sha for name, sha in note["files"].items()):
            return [
                Saved(
                    f["name"],
                    f["title"],
                    f["caption"],
                    f["alt"],
                    _paths(folder, f["narrow"]),
                    _paths(folder, f["wide"]),
                    f["why"],
                )
                for f in note["figures"]
            ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # no note, or not one of ours: they are drawn
    drawn = draw_all(view, folder, say=say, hidden=hidden)
    files = [path for saved in drawn for path in (*saved.narrow, *saved.wide)]
    note = {
        "digest": digest,
        "files": {path.name: _sha256(path) for path in files},
        "figures": [
            {
                "name": s.name, "title": s.title, "caption": s.caption, "alt": s.alt, "why": s.why,
                "narrow": [p.name for p in s.narrow], "wide": [p.name for p in s.wide],
            }
            for s in drawn
        ],
    }  # fmt: skip
    if files:
        write_atomically(folder / NOTE, json.dumps(note, indent=1))
    return drawn


def _paths(folder: Path, names: list[str]) -> tuple[Path, ...]:
    return tuple(folder / name for name in names)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(view: View, hidden: str) -> str:
    """Hash over all that a figure depends on: the tables, the lasting part of the record, the samples, and this code."""
    import matplotlib

    h = hashlib.sha256(f"{matplotlib.__version__}|{hidden}|".encode())
    record = {k: v for k, v in view.record.items() if k not in _PASSING}
    h.update(json.dumps(record, sort_keys=True, default=str).encode())
    folder = view.run.folder
    code = sorted(Path(__file__).parent.glob("*.py"))
    samples = sorted(p for p in (folder / "samples").rglob("*") if p.is_file())
    for path in (*code, folder / "rows.parquet", folder / "curves.parquet", *samples):
        h.update(path.name.encode())
        h.update(path.read_bytes())
    return h.hexdigest()
