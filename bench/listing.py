"""What ``deidbench ls`` shows."""

from __future__ import annotations

import inspect
from typing import Any

from deidbench import kinds
from deidbench.errors import DeidbenchError
from deidbench.registry import Registry

REGISTRIES: dict[str, Registry[Any]] = {
    "anonymizers": kinds.anonymizers,
    "datasets": kinds.datasets,
    "recognizers": kinds.recognizers,
    "classifiers": kinds.classifiers,
    "metrics": kinds.metrics,
    "attackers": kinds.attackers,
}


def signature(cls: type) -> str:
    """``strength=0.1, region='oval'``: the parameters with their defaults."""
    parts = []
    for p in inspect.signature(cls).parameters.values():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        parts.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    return ", ".join(parts)


def first_line(cls: type) -> str:
    text = (inspect.getdoc(cls) or "").strip().split("\n\n")[0]
    return " ".join(text.split())


def _licence(cls: type) -> str:
    """The class's licence; of one whose parts each have their own (a recipe's), that."""
    licence = getattr(cls, "licence", "")
    return licence if isinstance(licence, str) else "each its own"


def listing(kind: str) -> list[dict[str, Any]]:
    """One record per registered part of ``kind`` ("suites": per bundled suite)."""
    if kind == "suites":
        from deidbench.collection import load_collection
        from deidbench.suite import bundled, load_suite

        return [
            {
                "name": name,
                "title": (s := load_suite(name)).file.suite.title,
                "methods": len(s.methods),
                "dataset": s.file.dataset.name,
            }
            for name in sorted(bundled())
        ] + [
            {
                "name": name,
                "title": (c := load_collection(name)).file.collection.title,
                "methods": len(c.file.methods),
                "dataset": f"yours: {', '.join(c.data)} ({len(c.experiments)} experiments)",
            }
            for name in sorted(bundled(collections=True))
        ]
    if kind == "recipes":
        from deidbench.anonymizers.external.recipe import bundled as recipes
        from deidbench.anonymizers.external.recipe import load

        return [
            {
                "name": f"command:{name}",
                "what": (r := load(name)[0]).recipe.title,
                "options": ", ".join(f"{k}={o.default!r}" for k, o in r.options.items()),
                "licence": r.recipe.licence,
            }
            for name in recipes()
        ]
    rows = []
    for name in REGISTRIES[kind]:
        try:
            cls = REGISTRIES[kind].get(name)
        except DeidbenchError as error:  # an outside package that is broken is shown, not hidden
            rows.append({"name": name, "what": f"cannot be used: {error.message}", "parameters": "", "licence": ""})
            continue
        rows.append({"name": name, "what": first_line(cls), "parameters": signature(cls), "licence": _licence(cls)})
    return rows
