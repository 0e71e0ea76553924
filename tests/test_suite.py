"""Suites: validated with the line that is wrong, extended, overridden, swept."""

from __future__ import annotations

from pathlib import Path

import pytest

from deidbench.errors import SuiteError
from deidbench.suite import bundled, load_suite
from deidbench.toml_errors import line_of

GOOD = """\
[suite]
name = "mine"
extends = "deidbench-v1"

[[methods]]
name = "mask"
label = "white"
params = { colour = [255, 255, 255] }
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def test_bundled_suites_load_without_deviation() -> None:
    assert "deidbench-v1" in bundled()
    for name in bundled():
        assert load_suite(name).name == name
    suite = load_suite("deidbench-v1")
    assert suite.deviations == ()
    assert {m.name for m in suite.methods if m.control} == {"original", "blackout"}
    for family in ("blur", "pixelate", "noise"):
        strengths = [m.strength for m in suite.methods if m.family == family]
        assert len(strengths) >= 3
        assert strengths == sorted(strengths)


def test_extends_adds_methods_and_keeps_the_rest(tmp_path: Path) -> None:
    base, mine = load_suite("deidbench-v1"), load_suite(_write(tmp_path, GOOD))
    assert [m.label for m in mine.methods] == [*(m.label for m in base.methods), "white"]
    assert mine.file.protocol == base.file.protocol
    assert mine.deviations == ()
    alone = load_suite(
        _write(tmp_path, GOOD.replace('extends = "deidbench-v1"', 'extends = "deidbench-v1"\ninherit_methods = false'))
    )
    assert [m.label for m in alone.methods] == ["white"]
    assert "the control row 'original' is missing" in alone.deviations


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD + "[protocol]\nseed = 3\nsede = 4\n", 11, "unknown key 'protocol.sede'"),
        (GOOD + "[protocl]\nseed = 3\n", 9, "unknown key 'protocl'"),
        (GOOD + '[[methods]]\nname = "blur"\nstrenght = 3\n', 11, "unknown key 'methods.strenght'"),
        (GOOD + "[protocol]\nseed = -3\n", 10, "greater than or equal to 0"),
        (GOOD + '[protocol]\n\ncomparison = "all"\n', 11, "protocol.comparison"),
        (GOOD.replace("extends", "extend"), 3, "unknown key 'suite.extend'"),
        (GOOD.replace('"mine"', '"a b"'), 2, "suite.name"),
        (GOOD + '[[methods]]\nname = "blur"\nsweep = { strength = [], region = ["box"] }\n', 11, "one parameter is swept"),
        (GOOD + '[[methods]]\nname = "blur"\nsweep = { strength = [] }\n', 11, "at least one value"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(SuiteError) as error:
        load_suite(path)
    assert words in str(error.value)
    assert f"mine.toml:{line}:" in str(error.value)


def test_line_of_follows_arrays_of_tables() -> None:
    text = '[suite]\nname = "x"\n\n[[methods]]\nname = "a"\n[[methods]]\nname = "b"\nsweep = {x = [1]}\n[methods.params]\nsize = 3\n'
    assert line_of(text, ("suite", "name")) == 2
    assert line_of(text, ("methods", 0, "name")) == 5
    assert line_of(text, ("methods", 1, "name")) == 7
    assert line_of(text, ("methods", 1, "sweep", "x")) == 8
    assert line_of(text, ("methods", 1, "params", "size")) == 10
    assert line_of(text, ("methods", 1, "label")) == 6
    assert line_of(text, ("absent",)) == 1


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    """Found by fuzzing ``extends``."""
    (tmp_path / "a.toml").write_text(f'[suite]\nname = "a"\nextends = "{"x" * 5000}"\n')
    for source in (tmp_path / "a.toml", "x" * 5000):
        with pytest.raises(SuiteError, match="neither a file nor a bundled suite"):
            load_suite(source)


def test_not_toml_not_there_and_circles(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="not valid TOML"):
        load_suite(_write(tmp_path, "[suite\n"))
    with pytest.raises(SuiteError, match=r"did you mean .deidbench-v[123]."):
        load_suite("deidbench-v7")
    with pytest.raises(SuiteError, match="circle"):
        load_suite(_write(tmp_path, '[suite]\nname = "mine"\nextends = "mine.toml"\n'))
    with pytest.raises(SuiteError, match="unknown protocol"):
        load_suite(_write(tmp_path, GOOD.replace('name = "mine"', 'name = "mine"\nprotocol = "v9"')))


def test_overrides_and_deviations() -> None:
    suite = load_suite("deidbench-v1", ["protocol.seed=7", "protocol.comparison=split", "protocol.enrolled=5"])
    assert suite.file.protocol.seed == 7
    assert len(suite.deviations) == 3
    assert any("protocol.seed is 7, deidbench-v1 has 20231" in d for d in suite.deviations)
    other = load_suite("deidbench-v1", ["dataset.name=folder", 'dataset.params.root="x"'])
    assert other.file.dataset.params == {"root": "x"}
    assert other.deviations == ()
    assert load_suite("deidbench-v1", ["dataset.params.persons=5"]).deviations
    for bad in ("protocol.seed", "=3", "methods.name=3"):
        with pytest.raises(SuiteError):
            load_suite("deidbench-v1", [bad])


def test_only_chooses_methods() -> None:
    assert [m.label for m in load_suite("deidbench-v1", only=["blur", "original"]).methods][:2] == ["original", "blur 0.03"]
    assert [m.label for m in load_suite("deidbench-v1", only=["blur 0.06"]).methods] == ["blur 0.06"]
    with pytest.raises(SuiteError, match="has no such method"):
        load_suite("deidbench-v1", only=["sharpen"])


def test_labels_are_unique(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="two methods are called 'mask'"):
        load_suite(_write(tmp_path, GOOD.replace('label = "white"\n', "")))


def test_slugs_are_unique_and_safe(tmp_path: Path) -> None:
    text = GOOD + '[[methods]]\nname = "mask"\nlabel = "white!"\n[[methods]]\nname = "mask"\nlabel = "../../x"\n'
    slugs = [m.slug for m in load_suite(_write(tmp_path, text)).methods]
    assert len(set(slugs)) == len(slugs)
    assert all("/" not in s and not s.startswith(".") for s in slugs)
