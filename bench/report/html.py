"""The page of a run: one file, nothing fetched from anywhere, readable on paper, on a phone and in the dark.

Every name is escaped by Jinja; figures are data URIs, so that nothing inside them can act; a content security policy
lets only the page's own script (report.js: sorting, filtering) run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deidbench.records import CONVENTIONS
from deidbench.report.details import attackers_table, detail_tables
from deidbench.report.figures import Saved
from deidbench.report.samples import FIGURES as FACES
from deidbench.report.tables import Table, groups, headlines, main_table, sentence, warnings
from deidbench.report.view import CONVENTION_WORDS, View, arrow, counted, listing, percent, plain, spoken

#: Makes tables sort and filter.  No library.
_SCRIPT = Path(__file__).with_name("report.js").read_text("utf-8")

#: Parts of the run record that have a place of their own on the page; the others are listed under provenance.
_PLACED = (
    "schema",
    "protocol",
    "dataset",
    "attackers",
    "methods",
    "recognizers",
    "classifiers",
    "metrics",
    "environment",
    "timings",
    "suite",
)

_STATUSES = ("ok", "passthrough", "copy", "no_face", "no_landmarks", "failed")
_STATUS_WORDS = {
    "ok": "Anonymised",
    "passthrough": "Pass-through",
    "copy": "Copy",
    "no_face": "No face",
    "no_landmarks": "No landmarks",
    "failed": "Failed",
}


#: Parts of an interval's method that are a cell's own: rows.csv has them.
_VARYING = re.compile(r" \(\d+ empty ones left out\)| over \d+ persons|, \d+ bins(?=, omega)")

#: Reasons for missing intervals that the page lists one by one.
_REASONS = 12


@dataclass(frozen=True)
class _Picture:
    saved: Saved
    narrow: str
    wide: str


def uri(path: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _picture(saved: Saved) -> _Picture:
    """Photographs inline as PNG, everything else as SVG; the narrow version is for phones."""
    kinds = (".png", ".svg") if saved.name in FACES else (".svg", ".png")
    kind = next(k for k in kinds if any(p.suffix == k for p in saved.wide))
    narrow = next(p for p in saved.narrow if p.suffix == kind)
    wide = next(p for p in saved.wide if p.suffix == kind)
    return _Picture(saved, uri(narrow), uri(wide))


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as (dotted name, text) pairs; empty lists and tables are said to be empty."""
    if isinstance(value, Mapping):
        if not value:
            return [(prefix, "none")]
        return [pair for k, v in value.items() for pair in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(not isinstance(v, Mapping | list | tuple) for v in value):
            return [(prefix, ", ".join(_text(v) for v in value) or "none")]
        return [pair for i, v in enumerate(value) for pair in flat(v, f"{prefix}.{i}")]
    return [(prefix, _text(value))]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return plain(value) or "–"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def _failures(view: View) -> list[dict[str, Any]]:
    """Statuses per method: from the record, else counted from the images; with the most frequent reasons."""
    images = view.run.images
    statuses: dict[str, Counter[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    if len(images) and "method" in images.columns:
        for method, part in images.groupby("method", sort=False):
            if "status" in part.columns:
                statuses[str(method)] = Counter(str(s) for s in part["status"].dropna())
            if "reason" in part.columns:
                reasons[str(method)] = Counter(str(r) for r in part["reason"].dropna() if r)
            if "fta" in part.columns:
                statuses.setdefault(str(method), Counter())["fta"] = int(part["fta"].fillna(value=False).astype(bool).sum())
    out = []
    for m in view.methods:
        counts = dict(m.counts) or dict(statuses.get(m.label, {}))
        others = {k: v for k, v in counts.items() if k not in (*_STATUSES, "fta", "images") and v}
        top = reasons.get(m.label, Counter()).most_common(3)
        more = len(reasons.get(m.label, {})) - len(top)
        said = [f"{plain(r)} ({n})" for r, n in top] + ([f"{counted(more, 'further reason')}"] if more > 0 else [])
        known = bool(counts)
        out.append(
            {
                "method": plain(m.label),
                "control": m.control,
                "cells": [int(counts.get(s, 0)) if known else None for s in _STATUSES],
                "fta": counts.get("fta"),
                "others": ", ".join(f"{plain(k)} {v}" for k, v in others.items()),
                "reasons": "; ".join(said),
            }
        )
    return out


def _interval_methods(view: View) -> list[tuple[str, str]]:
    """Heading of a quantity -> how its intervals were made, without the numbers that differ from cell to cell."""
    found: dict[str, dict[str, None]] = {}
    for row in view.rows:
        if row.ci_method and (row.lo is not None or row.hi is not None):
            said = _VARYING.sub("", plain(row.ci_method))
            found.setdefault(view.heading(row.metric), {})[said] = None
    return [(name, "; ".join(methods)) for name, methods in found.items()]


def _missing_intervals(view: View) -> list[tuple[str, int]]:
    said = Counter(plain(r.ci_reason) for r in view.rows if r.ci_reason and r.lo is None and r.hi is None)
    most = said.most_common(_REASONS)
    rest = said.total() - sum(n for _, n in most)
    return [*most, *([(f"{counted(len(said) - _REASONS, 'further reason')} (rows.csv has them)", rest)] if rest else [])]


def _protocol(view: View, dataset: str) -> list[tuple[str, str]]:
    protocol = dict(view.entry("protocol"))
    protocol.pop("deviations", None)
    out: list[tuple[str, str]] = []
    out += [("Comparison", plain(c)) for c in view.comparisons or [str(protocol.get("comparison", "not stated"))]]
    used = {r.convention for r in view.rows if r.convention}
    out += [(f"Convention: {spoken(c)}", CONVENTION_WORDS[c]) for c in CONVENTIONS if c in used]
    if any(r.threshold is not None for r in view.rows):
        own = any(k.gallery == "anonymised" for k in view.knowledge)
        on = "clear impostors" + (
            " (of attackers who enrol anonymised images: on impostors of attacker-train persons in the same condition)"
            if own
            else ""
        )
        out.append(
            (
                "Thresholds",
                f"fixed beforehand on {on} for each stated rate; the rate that they really gave stands with each figure",
            )
        )
    floor = (
        [f"rank-1 at least {percent(protocol['min_clear_rank1'], 0)}"] if _is_number(protocol.get("min_clear_rank1")) else []
    )
    floor += [f"EER at most {percent(protocol['max_clear_eer'], 0)}"] if _is_number(protocol.get("max_clear_eer")) else []
    if floor:
        out.append(
            ("Sanity check", f"on clear images each recogniser must reach {' and '.join(floor)}, or its figures are untrusted")
        )
    placed = ("comparison", "min_clear_rank1", "max_clear_eer")
    out += [(spoken(k)[:1].upper() + spoken(k)[1:], v) for k, v in flat({k: v for k, v in protocol.items() if k not in placed})]
    return out


def _attackers(view: View) -> list[dict[str, Any]]:
    """What each attacker has, knows and learns, in the order of the tables."""
    out = []
    for k in view.knowledge:
        settings = [f"{plain(name)} {text}" for name, text in flat(k.params) if name]
        out.append(
            {
                "label": plain(k.label) + (f" ({plain(k.name)})" if k.name and k.name != k.label else ""),
                "knows": plain(k.knows),
                "gallery": plain(k.gallery) or "–",
                "learns": {True: "yes", False: "no", None: "–"}[k.trained],
                "settings": ", ".join(settings) if k.params else "–",
                "citation": plain(k.citation) or "–",
                "missing": plain(k.missing),
            }
        )
    return out


def _learnt_from(view: View) -> str:
    """Whose images the attackers learnt from, or why there were none; "" where no attacker learns."""
    entry = view.entry("attackers")
    if not any(k.trained or k.gallery == "anonymised" for k in view.knowledge):
        return ""
    images, persons = entry.get("n_images"), entry.get("n_persons")
    if isinstance(images, int) and isinstance(persons, int) and images:
        roles = entry.get("roles")
        named = [plain(r) for r in roles] if isinstance(roles, list | tuple) else []
        return (
            "To learn, and to set thresholds in their own condition, attackers had "
            f"{counted(images, 'image')} of {counted(persons, 'person')} of {plain(entry.get('dataset') or view.datasets[0])}"
            f"{f' (role {listing(named)})' if named else ''}. None of these persons is evaluated."
        )
    why = plain(entry.get("reason") or "")
    return f"No attacker could learn: {why or 'the run does not say why'}."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cited(view: View) -> list[dict[str, Any]]:
    """Data, methods, recognisers and metrics with licence and citation; the members of a sweep in one line."""
    out = []
    data = view.entry("dataset")
    if data:
        out.append(_citation("Data", str(data.get("title") or data.get("name") or ""), data))
    seen: set[tuple[str, str, str]] = set()
    for m in view.methods:
        mark = (str(m.info.get("name", m.group)), str(m.info.get("citation", "")), str(m.info.get("licence", "")))
        if m.info and mark not in seen:
            seen.add(mark)
            out.append(_citation("Control" if m.control else "Method", m.group, m.info))
    out += [_citation("Recogniser", str(r.get("name", "")), r) for r in view.entries("recognizers")]
    out += [_citation("Classifier", str(r.get("name", "")), r) for r in view.entries("classifiers")]
    out += [_citation("Attacker", k.label, {"citation": k.citation}) for k in view.knowledge if k.citation]
    out += [_citation("Metric", str(r.get("name", "")), r) for r in view.entries("metrics")]
    return out


def _citation(kind: str, name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    trained = info.get("trained_on")
    return {
        "kind": kind,
        "name": plain(name),
        "licence": plain(info.get("licence") or "") or ("" if kind in ("Metric", "Attacker") else "not stated"),
        "citation": plain(info.get("citation") or "") or "not stated",
        "trained": ", ".join(plain(t) for t in trained) if isinstance(trained, list | tuple) else "",
    }


def _guarantees(view: View) -> list[tuple[str, str]]:
    """(method, what is proved of its outputs) where a method says so."""
    return [(plain(m.label), plain(said)) for m in view.methods if (said := m.info.get("guarantee"))]


def _identities(view: View) -> list[tuple[str, str, str]]:
    """(kind, name, everything that fixes it) of methods and recognisers."""
    out = []
    for m in view.methods:
        skip = ("label", "slug", "counts", "citation", "licence", "family", "control", "strength", "trained_on", "guarantee")
        text = "; ".join(f"{k} {v}" for k, v in flat({k: v for k, v in m.info.items() if k not in skip}) if v != "none")
        out.append(("Method", plain(m.label), text))
    for kind, entries in (("Recogniser", view.entries("recognizers")), ("Classifier", view.entries("classifiers"))):
        told = ("name", "citation", "licence", "trained_on", "labels", "overlap", "contaminated", "lessons")
        for r in entries:
            text = "; ".join(
                f"{k} {v}" for k, v in flat({k: v for k, v in r.items() if k not in told}) if v not in ("none", "–")
            )
            out.append((kind, plain(r.get("name", "")), text))
    return [o for o in out if o[2]]


def _table(table: Table) -> dict[str, Any]:
    """What the template needs of a table."""
    tops, at = [], 0
    for _, n in groups(table.columns):
        column = table.columns[at]
        tops.append(
            {
                "text": column.group.replace("-", "\u2011"),
                "unit": column.unit,
                "arrow": arrow(column.better),
                "better": column.better,
                "span": n,
                "title": column.title,
            }
        )
        at += n
    words = dict(table.footnotes)
    caption, _, intervals = table.caption.partition(" Intervals: ")  # long where quantities differ
    notes = [n for n in table.notes if not n.startswith("DEVIATION")] + ([f"Intervals: {intervals}"] if intervals else [])
    previous = None
    lines = []
    for line in table.lines:
        lines.append(
            {
                "label": plain(line.method.label),
                "control": line.method.control,
                "starts": previous is not None and previous != line.method.group,
                "marks": line.marks,
                "why": "; ".join(words[m] for m in line.marks),
                "cells": [
                    {
                        "text": c.figure if c.text != "-" else "–",
                        "ci": c.ci,
                        "extra": c.extra.replace("-", "\u2011"),  # it may break at a blank, never inside a name
                        "marks": c.marks,
                        "value": "" if c.value is None else repr(float(c.value)),
                        "title": "; ".join(words[m] for m in c.marks),
                        "untrusted": c.row is not None and not c.row.trusted,
                        "strong": c.strong,
                    }
                    for c in line.cells
                ],
            }
        )
        previous = line.method.group
    return {
        "title": table.title, "head": table.head, "figures": sum(c.row is not None for x in table.lines for c in x.cells), "caption": caption, "tops": tops, "columns": table.columns, "lines": lines, "chance": table.chance,
        "footnotes": table.footnotes, "notes": notes, "two": any(c.sub for c in table.columns),
    }  # fmt: skip


def _blocks(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Neighbouring tables that are filed under one heading; those without a heading stand open, each for itself."""
    out: list[dict[str, Any]] = []
    for table in tables:
        if not table.block or not out or out[-1]["block"] != table.block:
            out.append({"block": table.block, "tables": []})
        shown = _table(table)
        # Within a block only what differs need be said: ", FTA as miss".
        shown["within"] = table.title.removeprefix(table.block).strip(", ") or "headline"
        out[-1]["tables"].append(shown)
    return out


def _downloads(folder: Path, files: Sequence[Path]) -> list[tuple[str, str, str]]:
    """(relative link, name, size) of what was written and of the run's own files."""
    own = [
        folder / n
        for n in ("run.json", "rows.parquet", "rows.json", "curves.parquet", "images.parquet", "manifest.csv", "suite.json")
    ]
    out = []
    for path in [*files, *own]:
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            size = path.stat().st_size
            out.append((quote(relative), relative, f"{size / 1024:.0f} KB" if size >= 1024 else f"{size} B"))
    return out


def render(template: str, **values: Any) -> str:
    """A page out of a template of this folder, with the script that sorts and filters and its hash for the policy."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("deidbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return environment.get_template(template).render(script=Markup(_SCRIPT), script_hash=Markup(f"sha256-{digest}"), **values)


def page(
    view: View,
    figures: Sequence[Saved],
    files: Sequence[Path],
    drawn: bool = True,
    hidden: str = "",
    mark: Callable[[Table], Table] = lambda table: table,
) -> str:
    """The whole page.  figures: as :func:`deidbench.report.figures.draw_all` returned them; files: for the downloads;
    hidden: why pictures of faces are left out; mark: marks the best of each column (:mod:`deidbench.report.standing`)."""
    data, suite, machine, git = view.entry("dataset"), view.entry("suite"), dict(view.entry("environment")), {}
    if isinstance(machine.get("git"), Mapping):
        git = dict(machine.pop("git"))
    packages = machine.pop("packages", {})
    timings = view.entry("timings")
    parts = []
    for dataset in view.datasets:
        parts.append(
            {
                "dataset": plain(dataset),
                "headlines": headlines(view, dataset),
                "warnings": [w for w in warnings(view, dataset) if not w.startswith("Deviation")],
                "main": _table(mark(main_table(view, dataset))),
                "ladder": _table(ladder) if (ladder := attackers_table(view, dataset)) is not None else None,
                "blocks": _blocks([mark(t) for t in detail_tables(view, dataset)]),
                "sentences": [sentence(view, dataset, m) for m in view.methods],
            }
        )
    title = plain(suite.get("title") or suite.get("name") or "Face anonymisation benchmark")
    record = {k: v for k, v in view.record.items() if k not in _PLACED}
    finished = plain(view.record.get("finished", ""))
    version = plain(view.record.get("deidbench", ""))
    commit = plain(git.get("commit", ""))
    return render(
        "report.html.j2",
        title=title,
        dataset_title=plain(data.get("title") or data.get("name") or view.datasets[0]),
        n_images=data.get("n_images"),
        n_persons=data.get("n_persons") if view.names_persons else None,
        protocol_name=plain(view.entry("protocol").get("name", "")),
        suite_name=plain(suite.get("name", "")),
        n_methods=sum(not m.control for m in view.methods),
        n_controls=sum(m.control for m in view.methods),
        recognizers=[plain(r) for r in view.stock],
        classifiers=[plain(c.get("name", "")) for c in view.entries("classifiers")],
        made=_made_with(view),
        attackers=_attackers(view),
        learnt_from=_learnt_from(view),
        finished=finished,
        version=version,
        commit=commit,
        dirty=git.get("dirty"),
        deviations=view.deviations,
        parts=parts,
        several=len(parts) > 1,
        pictures=[_picture(s) for s in figures if not s.why],
        absent=[s for s in figures if s.why and s.why != hidden],
        hidden=hidden,
        photos=list(FACES),
        drawn=drawn,
        failures=_failures(view),
        statuses=[_STATUS_WORDS[s] for s in _STATUSES],
        protocol=_protocol(view, view.datasets[0]),
        intervals=_interval_methods(view),
        no_intervals=_missing_intervals(view),
        data=[(k, v) for k, v in flat({k: v for k, v in data.items() if k not in ("citation", "licence")})],
        suite=flat(suite),
        machine=flat(machine) if machine else [],
        packages=[(k, v) for k, v in flat(packages)] if packages else [],
        timings=[(plain(k), _seconds(float(v))) for k, v in timings.items() if _is_number(v)],
        worker_timings=[
            (plain(k), _seconds(float(v)))
            for key, t in timings.items()
            if isinstance(t, Mapping)
            for k, v in t.items()
            if _is_number(v)
        ],
        record=flat(record) if record else [],
        identities=_identities(view),
        guarantees=_guarantees(view),
        cited=_cited(view),
        cite=_how_to_cite(view, version, commit, bool(git.get("dirty"))),
        downloads=_downloads(view.run.folder, files),
    )


def _made_with(view: View) -> list[str]:
    """Suite, seed and machine in a few words; provenance has all of it."""
    suite, machine = view.entry("suite"), view.entry("environment")
    seed, cores = view.entry("protocol").get("seed"), machine.get("cores")
    said = [f"suite {suite['name']}"] if suite.get("name") else []
    said += [f"seed {seed}"] if seed is not None else []
    cpu = str(machine.get("cpu") or "")
    said += [f"{cpu}{f' ({cores} cores)' if cores else ''}"] if cpu else []
    return [plain(s) for s in said]


def _how_to_cite(view: View, version: str, commit: str, dirty: bool) -> str:
    protocol = view.entry("protocol")
    parts = [f"deidbench{' ' + version if version else ''}", f"protocol {plain(protocol.get('name', 'not stated'))}"]
    if view.deviations:
        parts[-1] += " with deviations"
    if protocol.get("seed") is not None:
        parts.append(f"seed {protocol['seed']}")
    digest = str(view.entry("dataset").get("manifest_sha256", ""))
    if digest:
        parts.append(f"data manifest {digest[:12]}")
    if commit:
        parts.append(f"commit {commit[:12]}{' with local changes' if dirty else ''}")
    return ", ".join(parts)
