"""What the code says of itself, for pages that are made from it and for the tests that hold the pages to it.

Nothing here needs Sphinx.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent


# --- parts


def built_in(kind: str) -> dict[str, type]:
    """Registered classes of deidbench itself, by name; what outside packages add is not documented here.

    kind: "anonymizers", "datasets", "recognizers", "classifiers", "metrics" or "attackers".
    """
    from deidbench.listing import REGISTRIES

    registry = REGISTRIES[kind]
    found = {name: registry.get(name) for name in registry}
    return {name: cls for name, cls in found.items() if cls.__module__.startswith("deidbench.")}


def parameters(cls: type) -> dict[str, Any]:
    """Parameters of ``cls`` with their defaults (``inspect.Parameter.empty`` where there is none)."""
    every = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in every if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def entries(text: str, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The prose of a docstring, and what it says of ``names`` in the house's way: ``a, b: text.  c: text.``

    An entry starts a line or follows a sentence, and ends where the next one starts or with the paragraph.
    """
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    if not one:
        return text, {}
    start = re.compile(rf"(?:^|(?<=\n)|(?<=[.;)]\s\s)|(?<=[.;)]\s))[ ]*((?:{one})(?:, (?:{one}))*):\s", re.MULTILINE)
    prose, found = [], {}
    for paragraph in re.split(r"\n\s*\n", text):
        places = list(start.finditer(paragraph))
        if not places:
            prose.append(paragraph)
            continue
        if before := paragraph[: places[0].start()].strip():
            prose.append(before)
        ends = [p.start() for p in places[1:]] + [len(paragraph)]
        for place, end in zip(places, ends, strict=True):
            said = " ".join(paragraph[place.end() : end].split())
            for name in place.group(1).split(", "):
                found[name] = said
    return "\n\n".join(prose), found


@cache
def comments(cls: type) -> dict[str, str]:
    """What stands in ``#:`` comments above (or behind) the fields of a class: field -> text."""
    lines, _ = inspect.getsourcelines(cls)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    node = tree.body[0]
    assert isinstance(node, ast.ClassDef)
    out = {}
    for field in node.body:
        target = (
            field.target if isinstance(field, ast.AnnAssign) else field.targets[0] if isinstance(field, ast.Assign) else None
        )
        if not isinstance(target, ast.Name):
            continue
        said: list[str] = []
        at = field.lineno - 2
        while at >= 0 and lines[at].strip().startswith("#:"):
            said.insert(0, lines[at].strip().removeprefix("#:").strip())
            at -= 1
        if said:
            out[target.id] = " ".join(said)
    return out


def fields_of(cls: type) -> dict[str, str]:
    """field -> text, of a dataclass, an enum or a pydantic model: its descriptions, ``#:`` comments, or docstring, and its bases'."""
    names = [*getattr(cls, "model_fields", ()), *getattr(cls, "__dataclass_fields__", ()), *getattr(cls, "__members__", ())]
    said = {n: info.description for n, info in getattr(cls, "model_fields", {}).items() if info.description}
    for base in cls.__mro__:
        if not base.__module__.startswith("deidbench."):
            continue
        _, told = entries(inspect.getdoc(base) or "", names)
        said = {**told, **comments(base), **said}
    return {n: said.get(n, "") for n in names}


def told_parameters(cls: type) -> tuple[str, dict[str, str]]:
    """The prose of a part's docstring, and what it and its bases say of its parameters."""
    known = parameters(cls)
    prose, told = entries(inspect.getdoc(cls) or "", known)
    for base in cls.__mro__[1:]:
        if base.__module__.startswith("deidbench.") and base.__doc__:
            told = {**entries(inspect.cleandoc(base.__doc__), known)[1], **told}
    return prose, told


# --- quantities


def quantities() -> dict[str, list[Any]]:
    """Every quantity that deidbench may report, by metric (throughput, which is no registered metric, comes last)."""
    from deidbench.metrics import throughput

    out = {name: list(cls.quantities) for name, cls in built_in("metrics").items()}  # type: ignore[attr-defined]
    out["throughput"] = list(throughput.QUANTITIES)
    return out


@dataclass(frozen=True)
class Described:
    """One ``{quantity}`` block of a page.  patterns: names of quantities, * matches anything.  options: its fields."""

    page: Path
    line: int
    patterns: tuple[str, ...]
    options: Mapping[str, str]
    #: of the section that it stands in
    formulas: int

    def describes(self, name: str) -> bool:
        return any(fnmatchcase(name, p) for p in self.patterns)


#: What every block says of its quantities.
FIELDS = ("range", "chance", "failures", "interval", "test", "source")


def described(folder: Path = DOCS) -> list[Described]:
    """All ``{quantity}`` blocks of the pages in ``folder``."""
    out = []
    for page in sorted(folder.rglob("*.md")):
        if "_build" in page.parts:
            continue
        lines = page.read_text("utf-8").splitlines()
        headings = [i for i, line in enumerate(lines) if re.match(r"#{1,6} ", line)]
        for i, line in enumerate(lines):
            if not (m := re.match(r"(`{3,}|:{3,})\{quantity\}\s*(.*)$", line)):
                continue
            body = lines[i + 1 : next(j for j in range(i + 1, len(lines)) if lines[j].startswith(m.group(1)))]
            options: dict[str, str] = {}
            last = ""
            for text in body:
                if o := re.match(r":(\w+):\s*(.*)$", text):
                    last = o.group(1)
                    options[last] = o.group(2).strip()
                elif last and text.strip():
                    options[last] += " " + text.strip()
            begin = max((h for h in headings if h < i), default=0)
            end = next((h for h in headings if h > i), len(lines))
            section = "\n".join(lines[begin:end])
            formulas = len(re.findall(r"^(?:`{3,}|:{3,})\{math\}|^\$\$", section, re.MULTILINE))
            out.append(Described(page, i + 1, tuple(m.group(2).split()), options, formulas))
    return out


# --- code in pages


@dataclass(frozen=True)
class Block:
    """A fenced block of code.  language: its first word, in lower case."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced code blocks of a Markdown page, those in lists and directives included."""
    from markdown_it import MarkdownIt

    out: list[Block] = []

    def take(text: str, shift: int) -> None:
        for token in MarkdownIt("commonmark").parse(text):
            if token.type != "fence" or token.map is None:
                continue
            word = token.info.strip().split(" ")[0].lower() if token.info.strip() else ""
            at = shift + token.map[0] + 1
            if word.startswith("{"):  # a directive: what it holds may be Markdown
                if word not in ("{math}", "{eval-rst}"):
                    take(token.content, at)
            else:
                out.append(Block(page, at, word, token.content))

    take(page.read_text("utf-8"), 0)
    return out


def commands(text: str) -> list[str]:
    """The ``deidbench ...`` command lines of a shell block, without comments, prompts and what follows a pipe."""
    joined = re.sub(r"\\\n\s*", " ", text)
    out = []
    for line in joined.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line.removeprefix("$ ")).strip()
        for part in re.split(r"\s*(?:\|\||&&|;|\|)\s*", line):
            part = re.sub(r"^(?:time\s+|\w+=\S*\s+)*", "", part)
            part = re.sub(r"\s*(?:[0-9]?>{1,2}|<)\s*\S+\s*$", "", part)
            if re.match(r"(?:\.venv/bin/)?deidbench(\s|$)", part):
                out.append(part.removeprefix(".venv/bin/"))
    return out


def toml_kind(text: str) -> tuple[str, dict[str, Any]]:
    """What a TOML block is ("suite", "collection", "margins", "recipe", "entry points", "other") and what it holds."""
    raw = tomllib.loads(text)
    if "collection" in raw:
        return "collection", raw
    if "guard" in raw:
        return "margins", raw
    if "project" in raw:
        return "entry points", raw
    if "suite" in raw or raw.keys() & {"methods", "dataset", "protocol", "recognizers", "classifiers", "metrics", "attackers"}:
        return "suite", raw
    if "recipe" in raw:
        return "recipe", raw
    return "other", raw


def whole_suite(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A suite out of a part of one: laid over deidbench-v3 where it does not say over what."""
    out = dict(raw)
    out["suite"] = {"name": "example", "extends": "deidbench-v3", **raw.get("suite", {})}
    return out


def pages() -> Sequence[Path]:
    """README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]
