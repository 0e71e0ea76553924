"""What is wrong with a finished run for somebody whom nobody watches: ``deidbench run --strict`` fails by it.

Counted as such: deviations from the protocol; images that could not be read or on which a method failed; outputs that are inputs, or
other images of the data set; recognisers, classifiers and trained attackers that failed their own check; models that learnt from the
data under evaluation; figures that could not be drawn.  Not counted: what a machine or a data set does not offer (an attacker that was
not carried out), faces that a method did not find, pictures of faces that are left out for the persons' sake.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from deidbench.records import Row, read_run
from deidbench.report.samples import FIGURES as FACES
from deidbench.report.tables import whose
from deidbench.report.view import WORST, View, counted, listing, mistrained, plain


def concerns(folder: Path) -> list[str]:
    """One sentence each; empty where there is nothing to say.  Raises MissingError, InputError as :func:`read_run` does."""
    view = View(read_run(Path(folder)))
    out = [f"deviation from the protocol: {d}" for d in view.deviations]
    if unread := view.entry("dataset").get("unreadable"):
        names = listing([plain(u) for u in unread], 4)
        out.append(f"{counted(len(unread), 'image')} could not be read and are in no figure: {names}")
    for m in view.methods:
        for status, words in (
            ("failed", "failed on {}"),
            ("passthrough", "let {} pass unchanged, or nearly"),
            ("copy", "gave out another image of the data set for {}"),
        ):
            if not m.control and (n := int(m.counts.get(status, 0))):
                out.append(f"{plain(m.label)} {words.format(counted(n, 'image'))}")
        if known := _learnt_from(view, m.info.get("trained_on") or ()):
            out.append(f"{plain(m.label)} learnt from the data under evaluation ({known})")
    return [*out, *_untrusted(view), *_undrawn(Path(folder))]


def _learnt_from(view: View, sets: Iterable[str]) -> str:
    """Which of the data sets is the one under evaluation."""
    name = str(view.entry("dataset").get("name", "")).lower().replace("-", "_")
    # "CelebA:train" is not the part that the protocol evaluates
    return ", ".join(plain(s) for s in sets if s.lower().replace("-", "_") == name)


def _untrusted(view: View) -> list[str]:
    doubted = [r for r in view.rows if not r.trusted and r.value is not None and r.metric != WORST]
    found: dict[str, None] = {}
    classifiers = {str(c.get("name", "")): c for c in view.entries("classifiers")}
    for c in classifiers.values():
        if c.get("contaminated"):
            said = plain(c.get("overlap") or "it learnt from the data under evaluation")
            found[f"contaminated: {plain(c.get('name', ''))}; {said}"] = None
    for r in doubted:
        if r.recognizer in classifiers and classifiers[r.recognizer].get("contaminated"):
            continue
        found[_why(view, r)] = None
    return list(found)


def _why(view: View, r: Row) -> str:
    if mistrained(r):
        return f"mis-trained: {plain(whose(view, r.attacker, r.recognizer))}, weaker than a stock recogniser"
    return f"not trusted: {plain(r.recognizer) or plain(r.metric)} failed its own check"


def _undrawn(folder: Path) -> list[str]:
    """Figures of the last report that could not be drawn."""
    try:
        note = json.loads((folder / "figures" / "drawn.json").read_text("utf-8"))
        return [
            f"figure {f['name']} was not drawn: {plain(f['why'])}"
            for f in note["figures"]
            if f["why"] and f["name"] not in FACES
        ]
    except (OSError, ValueError, KeyError, TypeError):  # no figures were asked for
        return []
