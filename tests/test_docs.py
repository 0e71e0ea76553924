"""The README and the pages hold what they promise: links lead somewhere, commands and suites in them are accepted, and every figure
that a run may report has its formula."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def _described() -> ModuleType:
    """The pages' own helpers, which need no Sphinx."""
    spec = importlib.util.spec_from_file_location("described", DOCS / "_ext" / "described.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["described"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


described = _described()
PAGES: list[Path] = list(described.pages())
BLOCKS = [b for page in PAGES for b in described.blocks(page)]


def _where(block: Any) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def test_there_are_pages() -> None:
    assert {"index.md", "quickstart.md", "protocol.md", "faq.md"} <= {p.name for p in PAGES}
    assert len(BLOCKS) > 30


# --- links


def _slug(heading: str) -> str:
    """The anchor that GitHub and MyST make of a heading."""
    text = re.sub(r"`([^`]*)`|\[([^\]]*)\]\([^)]*\)", lambda m: m.group(1) or m.group(2) or "", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1\s*$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    count: Counter[str] = Counter()
    out = set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", text, re.MULTILINE):
        slug = _slug(heading)
        out.add(f"{slug}-{count[slug]}" if count[slug] else slug)
        count[slug] += 1
    return out


def _links(page: Path) -> list[str]:
    from markdown_it import MarkdownIt

    out: list[str] = []

    def walk(tokens: Any) -> None:
        for token in tokens:
            out.extend(str(v) for k, v in token.attrs.items() if k in ("href", "src"))
            walk(token.children or ())

    walk(MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8")))
    # fields of directives hold links too
    out += re.findall(r"^:\w+:.*?\]\(([^)\s]+)\)", page.read_text("utf-8"), re.MULTILINE)
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_and_anchors_exist(page: Path) -> None:
    dead = []
    for link in _links(page):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or ROOT not in (target, *target.parents):
            dead.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in _anchors(target):
            dead.append(f"{link}: no such heading (it has: {', '.join(sorted(_anchors(target)))})")
    assert not dead, "\n".join(dead)


def test_what_pages_link_to_is_in_the_repository() -> None:
    """A picture that git ignores would be missing in everybody else's copy."""
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    known = {str((ROOT / line).resolve()) for line in listed.stdout.splitlines()}
    for page in PAGES:
        for link in _links(page):
            if not re.match(r"[a-z][a-z0-9+.-]*:|#", link):
                target = (page.parent / link.partition("#")[0]).resolve()
                assert target.is_dir() or str(target) in known, f"{page.name}: {link}"


# --- commands


def _own(page: Path) -> set[str]:
    """Parts that a page registers itself, by the entry points that it shows."""
    out: set[str] = set()
    for block in BLOCKS:
        if block.page == page and block.language == "toml":
            groups = described.toml_kind(block.text)[1].get("project", {}).get("entry-points", {})
            out |= {name for group in groups.values() for name in group}
    return out


def _elsewhere(page: Path, name: str) -> bool:
    """A part of the reader's own: registered on the page, or called my-..., or a file."""
    return name in _own(page) or name.startswith("my-") or "./" in name


COMMANDS = [(b, c) for b in BLOCKS if b.language in ("sh", "bash", "console", "shell") for c in described.commands(b.text)]


def test_there_are_commands() -> None:
    assert len({c for _, c in COMMANDS}) > 40


def _parse(words: list[str]) -> None:
    """As the command line would, without doing anything.  Raises ClickException."""
    from deidbench.cli import cli

    command: click.Command = cli
    context: click.Context | None = None
    name, rest = "deidbench", words
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not isinstance(command, click.Group):
            return
        rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        found, inner, rest = command.resolve_command(context, list(rest))
        assert found is not None and inner is not None
        name, command = found, inner


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=lambda x: x[:60] if isinstance(x, str) else _where(x))
def test_commands_are_accepted(block: Any, line: str) -> None:
    words = [w for w in shlex.split(line)[1:] if w not in ("...", "[...]")]
    if not words:
        return
    try:
        _parse(words)
    except click.exceptions.Exit:
        pass  # --help, --version, --list
    except click.ClickException as error:
        pytest.fail(f"{_where(block)}: {line}: {error.format_message()}")


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=lambda x: x[:60] if isinstance(x, str) else _where(x))
def test_names_in_commands_exist(block: Any, line: str) -> None:
    """Suites and methods that a command names are there, unless they are the reader's own (my-...), and their parameters too."""
    from deidbench import kinds
    from deidbench.suite import bundled

    words = shlex.split(line)[1:]
    if words[:1] == ["run"] and len(words) > 1 and re.fullmatch(r"[a-z][\w.-]*", words[1]) and not words[1].endswith(".toml"):
        assert words[1] in {*bundled(), *bundled(collections=True)}, f"{_where(block)}: {line}"
    if words[:1] == ["anonymize"]:
        method = words[words.index("--method") + 1]
        if _elsewhere(block.page, method):
            return
        params = [words[i + 1].partition("=")[0] for i, w in enumerate(words) if w == "--param"]
        cls = kinds.anonymizers.get(method)
        known = described.parameters(cls)
        if method.startswith("command"):
            from deidbench.anonymizers.external import recipe

            known = {**known, **(recipe.load(method.partition(":")[2])[0].options if ":" in method else {})}
        assert not set(params) - set(known), f"{_where(block)}: {line}"


# --- files in pages


TOML = [b for b in BLOCKS if b.language == "toml"]


@pytest.mark.parametrize("block", TOML, ids=_where)
def test_toml_is_accepted(block: Any, tmp_path: Path) -> None:
    from deidbench import kinds
    from deidbench.suite import suite_of

    kind, raw = described.toml_kind(block.text)
    if kind == "suite":
        suite = suite_of(described.whole_suite(raw), _where(block))
        for registry, parts in (
            (kinds.anonymizers, suite.methods),
            (kinds.recognizers, suite.file.recognizers),
            (kinds.classifiers, suite.file.classifiers),
            (kinds.metrics, suite.file.metrics),
            (kinds.datasets, [suite.file.dataset]),
        ):
            for part in parts:
                if not _elsewhere(block.page, part.name):
                    made = registry.create(part.name, **part.params)
                    if registry is kinds.anonymizers and part.name.startswith("command:"):
                        unknown = set(part.params) - set(described.parameters(type(made))) - set(made.recipe.options)
                        assert not unknown, f"{_where(block)}: {part.name} has no {unknown}"
                    if registry is kinds.metrics:
                        made.attacks([r.name for r in suite.file.recognizers])
    elif kind == "margins":
        from deidbench.gate import load_margins

        file = tmp_path / "margins.toml"
        file.write_text(block.text, "utf-8")
        load_margins(file)
        names = [q.name for qs in described.quantities().values() for q in qs]
        for guard in raw["guard"]:
            assert any(described.fnmatchcase(n, guard["metric"]) for n in names), f"{_where(block)}: {guard['metric']}"
    elif kind == "recipe":
        from deidbench.anonymizers.external import recipe

        file = tmp_path / "recipe.toml"
        file.write_text(block.text, "utf-8")
        recipe.load(str(file))
    elif kind == "entry points":
        groups = {f"deidbench.{k}" for k in ("anonymizers", "datasets", "metrics", "recognizers", "classifiers", "attackers")}
        assert set(raw["project"].get("entry-points", {})) <= groups | {"pytest11"}, _where(block)
    else:
        pytest.fail(f"{_where(block)}: a TOML block that nothing here knows")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("python", "py")], ids=_where)
def test_python_compiles_and_its_imports_exist(block: Any) -> None:
    import ast

    tree = ast.parse(block.text, _where(block))
    compile(tree, _where(block), "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deidbench":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


# --- every figure has its formula


def test_every_quantity_is_described_once() -> None:
    found = described.described()
    for metric, quantities in described.quantities().items():
        for q in quantities:
            where = [d for d in found if d.describes(q.name)]
            assert where, f"{q.name} ({metric}) has no {{quantity}} block in docs/metrics"
            assert len(where) == 1, f"{q.name} is described in {[f'{d.page.name}:{d.line}' for d in where]}"


@pytest.mark.parametrize("block", described.described(), ids=lambda d: f"{d.page.name}:{d.line}")
def test_a_description_is_whole(block: Any) -> None:
    names = [q.name for qs in described.quantities().values() for q in qs]
    for pattern in block.patterns:
        assert any(described.fnmatchcase(n, pattern) for n in names), f"{pattern} matches no figure"
    assert not [f for f in described.FIELDS if not block.options.get(f)]
    assert block.formulas >= 1, "no formula in this section"


def test_a_new_metric_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    from deidbench.metrics.base import Quantity

    real = described.quantities()
    new = Quantity("novel.figure", "New", "rate", True, "utility", "novel")
    monkeypatch.setattr(described, "quantities", lambda: {**real, "novel": [new]})
    with pytest.raises(AssertionError, match=r"novel\.figure"):
        test_every_quantity_is_described_once()


def test_every_metric_has_a_page() -> None:
    listed = (DOCS / "metrics" / "index.md").read_text("utf-8")
    for name in described.quantities():
        assert (DOCS / "metrics" / f"{name}.md").is_file(), name
        assert re.search(rf"^{name}$", listed, re.MULTILINE), f"{name} is not in the list of docs/metrics/index.md"


# --- pages that say what a run's files hold


def test_the_page_of_results_names_every_column_and_entry() -> None:
    import pyarrow.parquet as pq

    page = (DOCS / "results.md").read_text("utf-8")
    folder = ROOT / "results" / "reference" / "demo"
    measured = {m for cls in described.built_in("metrics").values() for m in cls.measures}  # type: ignore[attr-defined]
    for name in ("images", "evidence"):
        for column in pq.read_schema(folder / f"{name}.parquet").names:
            assert f"`{column}`" in page or column in measured or column.startswith("similarity_"), f"{name}: {column}"
    for entry in json.loads((folder / "run.json").read_text("utf-8")):
        assert f"`{entry}`" in page, f"run.json: {entry}"


def test_every_key_of_files_is_told() -> None:
    """What ``{keys}`` makes a table of has a word on each field."""
    found = 0
    for page in PAGES:
        for module, name, rest in re.findall(r"\{keys\} ([\w.]+):(\w+)\n((?::.*\n)*)", page.read_text("utf-8")):
            cls = getattr(importlib.import_module(module), name)
            left = re.findall(r":leave-out: (.*)", rest)
            silent = [f for f, text in described.fields_of(cls).items() if not text and f not in " ".join(left).split()]
            assert not silent, f"{name}: {silent}"
            found += 1
    assert found > 10


# --- the command line's own help


def _every_command(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    out = [(path, command)]
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            out += _every_command(inner, (*path, name))
    return out


def _cli() -> click.Group:
    from deidbench.cli import cli

    return cli


@pytest.mark.parametrize(("path", "command"), _every_command(_cli()), ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_help_says_what_every_option_is(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help and command.help.strip(), "no text"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.opts}: no text"
            # a number or a word that is used unless somebody gives another
            if isinstance(parameter.default, int | float | str) and parameter.default != "" and not parameter.is_flag:
                shown = parameter.show_default or "default" in parameter.help
                assert shown, f"{' '.join(path)} {parameter.opts}: its default {parameter.default!r} is not shown"


@pytest.mark.parametrize(("path", "command"), _every_command(_cli()), ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_help_has_an_example(path: tuple[str, ...], command: click.Command) -> None:
    """In its own help, or in that of its group."""
    words = " ".join(("deidbench", *path))
    group: click.Command = _cli()
    for name in path[:-1]:
        assert isinstance(group, click.Group)
        group = group.commands[name]
    texts = [command.help or "", (group.help or "") if len(path) > 1 else ""]
    if isinstance(command, click.Group) and path:
        words += " "  # of one of its commands
    assert any(re.search(rf"^\s+{re.escape(words)}", t, re.MULTILINE) for t in texts), f"{words}: no example in its help"
