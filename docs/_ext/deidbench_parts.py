"""Directives that are filled from the code when the pages are built, so that they cannot go stale.

``parts KIND``         every built-in part of a kind, a section each: what it is, its parameters, licence, citation
``quantity PATTERN``   the figures that a formula above it belongs to, with what must be said of them
``quantities [METRIC]``  the list of all figures
``keys CLASS``         the fields of a pydantic model or a dataclass, with their defaults
``recipes``            the bundled recipes for other people's programs
``suites``             the bundled suites
``exit-codes``         the exit codes of the command line
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import described
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

_INLINE = re.compile(
    r"``(?P<code>.+?)``|:\w+(?::\w+)?:`(?P<role>.+?)`|(?:(?<=\s)|(?<=^))\*(?P<em>[^\s*][^*\n]*?[^\s*]|[^\s*])\*(?![\w*])|`(?P<tick>[^`]+)`"
    r"|(?P<doi>\bdoi[: ]\s?(?P<doi_at>10\.\d{4,9}/[^\s,;)]+[^\s,;).]))|(?P<arxiv>\barXiv[: ]\s?(?P<arxiv_at>\d{4}\.\d{4,5}))"
    r"|(?P<url>https?://[^\s,;)\"]+[^\s,;).\"])",
    re.IGNORECASE,
)


def inline(text: str) -> list[nodes.Node]:
    """Docstring text as nodes: literals, emphasis, roles by their last name, links of DOIs, arXiv numbers and addresses."""
    out: list[nodes.Node] = []
    at = 0
    for m in _INLINE.finditer(text):
        if m.start() > at:
            out.append(nodes.Text(text[at : m.start()]))
        at = m.end()
        if m["code"] or m["tick"]:
            out.append(nodes.literal("", m["code"] or m["tick"]))
        elif m["role"]:
            out.append(nodes.literal("", m["role"].removeprefix("~")))
        elif m["em"]:
            out.append(nodes.emphasis("", m["em"]))
        else:
            where = f"https://doi.org/{m['doi_at']}" if m["doi"] else f"https://arxiv.org/abs/{m['arxiv_at']}"
            out.append(nodes.reference("", m.group(0), refuri=m["url"] or where, internal=False))
    if at < len(text):
        out.append(nodes.Text(text[at:]))
    return out


def paragraph(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", *inline(" ".join(text.split())))


def prose(text: str) -> list[nodes.Node]:
    return [paragraph(p) for p in re.split(r"\n\s*\n", text) if p.strip()]


def code(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.literal("", text))


Cell = str | nodes.Node


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], widths: Sequence[int], kind: str = "") -> nodes.table:
    """A table; text of a cell is taken for docstring text."""
    group = nodes.tgroup("", cols=len(head))
    group += [nodes.colspec("", colwidth=w) for w in widths]

    def line(cells: Sequence[Cell]) -> nodes.row:
        entries = [nodes.entry("", paragraph(c) if isinstance(c, str) else c) for c in cells]
        return nodes.row("", *entries)

    group += nodes.thead("", line(head))
    group += nodes.tbody("", *[line(r) for r in rows])
    return nodes.table("", group, classes=[c for c in ("made", kind) if c])


def fields(pairs: Iterable[tuple[str, Cell]]) -> nodes.field_list:
    out = nodes.field_list()
    for name, body in pairs:
        content = paragraph(body) if isinstance(body, str) else body
        out += nodes.field("", nodes.field_name("", name), nodes.field_body("", content))
    return out


def default_text(value: Any) -> Cell:
    if value is inspect.Parameter.empty:
        return "must be given"
    if isinstance(value, tuple):
        value = list(value)
    return code('""' if value == "" else repr(value).replace("'", '"') if isinstance(value, str | list) else str(value))


class Parts(SphinxDirective):
    """``parts KIND``, KIND of anonymizers, datasets, recognizers, classifiers, attackers."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        parts = described.built_in(kind)
        if not parts:
            raise self.error(f"no parts of kind {kind}")
        overview = table(
            ("name", "what it is"),
            [(_here(_id(kind, name), name), _first(cls)) for name, cls in parts.items()],
            (20, 80),
        )
        return [overview, *(self._section(kind, name, cls) for name, cls in parts.items())]

    def _section(self, kind: str, name: str, cls: Any) -> nodes.section:
        out = nodes.section(ids=[_id(kind, name)], names=[])
        out += nodes.title("", "", nodes.literal("", name))
        known = described.parameters(cls)
        text, told = described.told_parameters(cls)
        out += prose(text)
        if known:
            rows = [(code(p), default_text(d), told.get(p) or "see above") for p, d in known.items()]
            out += table(("parameter", "default", "what it is"), rows, (18, 18, 64), "params")
        said: list[tuple[str, Cell]] = []
        if knows := getattr(cls, "knows", ""):
            said.append(("Knows", knows))
        if strength := getattr(cls, "strength", ""):
            said.append(("Swept by", code(strength)))
        if getattr(cls, "title", "") and kind == "datasets":
            said.append(("Title", cls.title))
        if layout := getattr(cls, "expected", None):
            size = [f"{n:,} {what}" for n, what in ((layout.images, "images"), (layout.persons, "persons")) if n]
            said += [("Size", ", ".join(size))] if size else []
        if kind == "datasets" and not cls.identities:
            said.append(("Persons", "not named: nothing about re-identification can be computed"))
        if licence := _told(cls, "licence"):
            said.append(("Licence", licence))
        if terms := getattr(cls, "terms", ""):
            said.append(("Terms", terms))
        if homepage := getattr(cls, "homepage", ""):
            said.append(("Got from", homepage))
        if trained := _told(cls, "trained_on"):
            said.append(("Trained on", ", ".join(trained)))
        if kind == "anonymizers" and _told(cls, "deterministic") is False:
            said.append(("Random", "the output depends on the seed"))
        if citation := _told(cls, "citation"):
            said.append(("Source", citation))
        said.append(("Version", cls.version))
        out += fields(said)
        if layout := getattr(cls, "expected", None):
            out += nodes.paragraph("", "The layout that is accepted:")
            out += nodes.literal_block(layout.tree, layout.tree, language="text")
        return out


def _first(cls: type) -> str:
    from deidbench.listing import first_line

    return first_line(cls)


def _told(cls: Any, name: str) -> Any:
    """An attribute of a part.  Of some it depends on the parameters: it is then that of the default ones, "" where these do not do."""
    from deidbench.errors import DeidbenchError

    value = getattr(cls, name, "")
    if not isinstance(value, property):
        return value
    try:
        return getattr(cls(), name)
    except (DeidbenchError, TypeError):
        return ""


def _id(kind: str, name: str) -> str:
    return nodes.make_id(f"{kind.rstrip('s')} {name}")


class Quantity(SphinxDirective):
    """``quantity PATTERN [PATTERN ...]``: the figures that the formula of this section is of, and what is said of them."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = dict.fromkeys(described.FIELDS, directives.unchanged_required)

    def run(self) -> list[nodes.Node]:
        patterns = self.arguments[0].split()
        found = [
            q for qs in described.quantities().values() for q in qs if any(described.fnmatchcase(q.name, p) for p in patterns)
        ]
        if not found:
            raise self.error(f"no quantity is called {' or '.join(patterns)}")
        if lacking := [f for f in described.FIELDS if not self.options.get(f)]:
            raise self.error(f"a quantity block says nothing of: {', '.join(lacking)}")
        rows = []
        for q in found:
            target = nodes.target("", "", ids=[nodes.make_id(q.name)], names=[f"quantity {q.name.lower()}"])
            self.state.document.note_explicit_target(target)
            rows.append((nodes.paragraph("", "", target, nodes.literal("", q.name)), q.title, q.unit, _better(q)))
        out = nodes.container(classes=["quantity"])
        out += table(("figure", "what it is", "unit", "better"), rows, (30, 46, 12, 12))
        pairs = []
        for name in described.FIELDS:
            body = nodes.paragraph()
            body += self.parse_inline(self.options[name], lineno=self.lineno)[0]
            pairs.append((name.capitalize(), body))
        out += fields(pairs)
        return [out]


def _better(q: Any) -> str:
    return {True: "higher", False: "lower", None: "neither"}[q.higher_is_better]


class Quantities(SphinxDirective):
    """``quantities``: the list of all figures by metric, each with a link to its formula."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = []
        for metric, qs in described.quantities().items():
            if self.arguments and metric != self.arguments[0]:
                continue
            for q in qs:
                ref = addnodes.pending_xref(
                    "", nodes.literal("", q.name), refdomain="std", reftype="ref", reftarget=f"quantity {q.name.lower()}",
                    refexplicit=True, refwarn=True, refdoc=self.env.docname,
                )  # fmt: skip
                rows.append((nodes.paragraph("", "", ref), q.title, q.unit, _better(q), q.axis))
        return [table(("figure", "what it is", "unit", "better", "speaks for"), rows, (28, 40, 11, 10, 11))]


class Keys(SphinxDirective):
    """``keys MODULE:CLASS``: the fields of a pydantic model, a dataclass or an enum.

    :in: the table of a file that they stand in, e.g. ``protocol``.
    """

    required_arguments = 1
    option_spec: ClassVar = {"leave-out": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        cls = getattr(importlib.import_module(module), name)
        said = described.fields_of(cls)
        left_out = self.options.get("leave-out", "").split()
        if silent := [n for n in said if not said[n] and n not in left_out]:
            raise self.error(f"{name} says nothing of: {', '.join(silent)}")
        table_of_columns = not hasattr(cls, "model_fields")  # a dataclass: columns of a file, which have no defaults
        rows = []
        for field in said:
            if field not in left_out:
                kind, default = _type_and_default(cls, field)
                rows.append((code(field), code(kind), *(() if table_of_columns else (default,)), said[field]))
        if table_of_columns:
            return [table(("column", "type", "what it is"), rows, (20, 16, 64), "params")]
        return [table(("key", "type", "default", "what it is"), rows, (18, 16, 16, 50), "params")]


def _type_and_default(cls: Any, field: str) -> tuple[str, Cell]:
    import dataclasses

    if hasattr(cls, "model_fields"):
        info = cls.model_fields[field]
        allowed = [m.pattern for m in info.metadata if getattr(m, "pattern", None)]
        words = re.fullmatch(r"\^\(([\w|-]+?)\|?\)\$", allowed[0]) if allowed else None
        kind = " or ".join(f'"{w}"' for w in words[1].split("|")) if words else _type(info.annotation)
        limits = [
            f"{sign} {getattr(m, a)}" for m in info.metadata for a, sign in _LIMITS.items() if getattr(m, a, None) is not None
        ]
        if limits and not words and "list" not in kind and "str" not in kind:
            kind += ", " + ", ".join(limits)
        if info.is_required():
            return kind, "must be given"
        value = info.get_default(call_default_factory=True)
        return kind, "its keys' own" if hasattr(value, "model_fields") else default_text(value) if value != {} else code("{}")
    (one,) = (f for f in dataclasses.fields(cls) if f.name == field)
    return _type(one.type), ""


_LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("Table", " table")


class Recipes(SphinxDirective):
    """``recipes``: the bundled recipes for other people's programs, a section each."""

    def run(self) -> list[nodes.Node]:
        from deidbench.anonymizers.external.recipe import bundled, load

        found = {name: load(name)[0] for name in bundled()}
        rows = [
            (_here(f"recipe {n}", n), r.recipe.title, r.recipe.tried or "not by us", r.recipe.licence) for n, r in found.items()
        ]
        overview = table(("recipe", "what it is", "run for real", "licence"), rows, (16, 40, 22, 22))
        return [overview, *(self._section(name, recipe) for name, recipe in found.items())]

    def _section(self, name: str, recipe: Any) -> nodes.section:
        about = recipe.recipe
        out = nodes.section(ids=[nodes.make_id(f"recipe {name}")], names=[])
        out += nodes.title("", "", nodes.literal("", f"command:{name}"))
        out += paragraph(f"{about.title}.")
        out += prose(about.notes)
        if recipe.options:
            rows = []
            for option, o in recipe.options.items():
                bounds = " to ".join(f"{x:g}" for x in (o.low, o.high) if x is not None)
                allowed = ", ".join(map(str, o.choices)) or bounds
                rows.append((code(option), default_text(o.default), allowed, o.what))
            out += table(("option", "default", "allowed", "what it is"), rows, (18, 16, 20, 46), "params")
        said: list[tuple[str, Cell]] = [("Run for real", about.tried or "not by us")]
        if recipe.program is not None:
            source = recipe.program.source
            said.append(("Program", source + (f", commit `{recipe.program.commit[:12]}`" if recipe.program.commit else "")))
        for weight in recipe.weights:
            digest = weight.sha256 or weight.md5
            kind = "SHA-256" if weight.sha256 else "MD5"
            said.append(
                ("Weights", f"{weight.what}: ``{weight.file}``, {weight.url or 'see the home page'}" + (f", {kind} ``{digest}``" if digest else ""))
            )  # fmt: skip
        said += [
            (title, text)
            for title, text in (
                ("Licence", about.licence),
                ("Trained on", ", ".join(about.trained_on)),
                ("Home page", about.homepage),
                ("Source", about.citation),
            )
            if text
        ]
        out += fields(said)
        return out


def _here(target: str, text: str) -> nodes.paragraph:
    """A link to a place on the same page."""
    return nodes.paragraph("", "", nodes.reference("", "", nodes.literal("", text), refid=nodes.make_id(target), internal=True))


class Suites(SphinxDirective):
    """``suites``: the bundled suites as ``deidbench ls suites`` lists them."""

    def run(self) -> list[nodes.Node]:
        from deidbench.listing import listing

        rows = [(code(r["name"]), r["title"], str(r["methods"]), r["dataset"]) for r in listing("suites")]
        return [table(("suite", "title", "methods", "data"), rows, (24, 40, 10, 26))]


class ExitCodes(SphinxDirective):
    """``exit-codes``: from :class:`deidbench.errors.ExitCode`."""

    def run(self) -> list[nodes.Node]:
        from deidbench.errors import ExitCode

        said = {"OK": "Done.", **{n: t for n, t in described.comments(ExitCode).items() if t}}
        if silent := [c.name for c in ExitCode if c.name not in said]:
            raise self.error(f"nothing is said of the exit codes {', '.join(silent)}")
        rows = [(code(str(int(c))), said[c.name]) for c in ExitCode]
        return [table(("code", "meaning"), rows, (10, 90))]


def _house_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """``a, b: text.  c: text`` in a docstring becomes a list, and a bar an absolute value, never a substitution."""
    if what in ("class", "function", "method", "exception"):
        names = [*getattr(thing, "__dataclass_fields__", ()), *getattr(thing, "_fields", ())]
        with contextlib.suppress(TypeError, ValueError):  # of a built-in there is no signature
            names += [p for p in inspect.signature(thing).parameters if p != "self"]
        prose, told = described.entries("\n".join(lines), dict.fromkeys(names))
        together: dict[str, list[str]] = {}
        for entry, text in told.items():
            together.setdefault(text, []).append(entry)
        if together and not any(line.endswith("::") for line in lines):  # what a block belongs to stays before it
            lines[:] = [*prose.splitlines(), "", *(f"- **{', '.join(e)}**: {text}" for text, e in together.items()), ""]
    for i, line in enumerate(lines):
        parts = line.split("``")
        lines[i] = "``".join(part.replace("|", "\\|") if k % 2 == 0 else part for k, part in enumerate(parts))


def _readable_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """A default that is made anew each time is no expression, and Sphinx would give up on the whole line."""
    return (signature.replace("<factory>", "..."), returns) if signature and "<factory>" in signature else None


def _shown_as_typed(app: Sphinx, context: Any, lines: list[str]) -> None:
    """Blocks that a command's help keeps as they are (examples) stay so here; sphinx-click joins their spaces."""
    out: list[str] = []
    for line in lines:
        if line.startswith("| "):
            if not (out and out[-1].startswith("   ")):
                out += ["", ".. code-block:: text", ""]
            out.append(f"   {line[2:]}")
        else:
            out.append(line)
    lines[:] = out


def _whole_metavars(app: Sphinx, context: Any, lines: list[str]) -> None:
    """sphinx-click strips brackets off their ends: ``NAME[/WHO]`` would end in the middle."""
    for parameter in context.command.params:
        word = getattr(parameter, "metavar", None)
        if word and (bare := word.strip("<[{()}]>")) != word:
            lines[:] = [line.replace(f"<{bare}>", f"<{word}>") for line in lines]


def _no_leftovers(app: Sphinx, tree: nodes.document) -> None:
    """A formula that the parser took for text (a line of it began with a dash, say) would stand on the page in LaTeX."""
    for text in tree.findall(nodes.Text):
        if isinstance(text.parent, nodes.paragraph) and re.search(r"\$(?![A-Z]{2})|\\[a-z]{2,}", text.astext()):
            logger.warning("a formula was not recognised: %s", text.astext()[:80], location=text.parent)


def setup(app: Sphinx) -> dict[str, Any]:
    for name, directive in (
        ("parts", Parts),
        ("quantity", Quantity),
        ("quantities", Quantities),
        ("keys", Keys),
        ("recipes", Recipes),
        ("suites", Suites),
        ("exit-codes", ExitCodes),
    ):
        app.add_directive(name, directive)
    app.connect("autodoc-process-docstring", _house_docstring)
    app.connect("autodoc-process-signature", _readable_signature)
    app.connect("sphinx-click-process-description", _shown_as_typed)
    app.connect("sphinx-click-process-epilog", _shown_as_typed)
    app.connect("sphinx-click-process-options", _whole_metavars)
    app.connect("doctree-read", _no_leftovers)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
