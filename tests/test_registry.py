"""The registry: decorators, entry points, variants, and words that help."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from deidbench import kinds
from deidbench.errors import InputError, MissingError
from deidbench.registry import Registry


class Thing:
    name = ""


def _registry() -> Registry[Thing]:
    return Registry("thing", "deidbench.tests.none", "deidbench.suites")


def test_decorator_enters_and_names() -> None:
    registry = _registry()

    @registry.register("one")
    class One(Thing): ...

    assert registry.names() == ["one"]
    assert registry.get("one") is One
    assert One.name == "one"
    assert "one" in registry
    assert "two" not in registry


def test_a_name_is_taken_once() -> None:
    registry = _registry()
    registry.register("one")(type("A", (Thing,), {}))
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("one")(type("B", (Thing,), {}))


def test_unknown_name_suggests() -> None:
    with pytest.raises(InputError, match="did you mean 'pixelate'"):
        kinds.anonymizers.get("pixellate")
    with pytest.raises(InputError, match="known: "):
        kinds.anonymizers.get("zzz")


def test_variant_and_parameters() -> None:
    registry = _registry()

    @registry.register("v")
    class V(Thing):
        def __init__(self, variant: str = "", size: int = 1) -> None:
            self.variant, self.size = variant, size

    @registry.register("plain")
    class Plain(Thing):
        def __init__(self, size: int = 1) -> None:
            if size < 0:
                raise ValueError("size must not be negative")
            self.size = size

    assert registry.create("v:big", size=3).variant == "big"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="did you mean 'size'"):
        registry.create("v", sizes=3)
    with pytest.raises(InputError, match="has no variants"):
        registry.create("plain:x")
    with pytest.raises(InputError, match="size must not be negative"):
        registry.create("plain", size=-1)


def test_entry_points_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that was installed beside us is found by its metadata alone, and imported when it is asked for."""
    (tmp_path / "outsider_a.py").write_text("class Good:\n    name = ''\n")
    (tmp_path / "outsider_b.py").write_text("import no_such_package_here\n")
    info = tmp_path / "outsider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""
        [deidbench.tests.outside]
        good = outsider_a:Good
        bad = outsider_b:Bad
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[Thing] = Registry("thing", "deidbench.tests.outside", "deidbench.suites")
    assert registry.names() == ["bad", "good"]
    assert "outsider_a" not in sys.modules
    assert registry.get("good").name == "good"
    with pytest.raises(MissingError, match="from outsider cannot be imported: ModuleNotFoundError"):
        registry.get("bad")


@pytest.mark.parametrize("kind", ["anonymizers", "datasets", "metrics", "recognizers", "attackers"])
def test_every_room_has_something(kind: str) -> None:
    registry: Registry[object] = getattr(kinds, kind)
    assert registry.names()
    for name in registry:
        assert registry.get(name).__doc__, f"{name} says what it is"
