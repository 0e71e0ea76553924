"""A pytest plug-in: a team's test suite asserts that a checkpoint is no worse.

Installed with deidbench; nothing to import::

    def test_checkpoint_is_no_worse(deidbench_gate):
        deidbench_gate("results/candidate", baseline="results/baseline", margins="margins.toml")

``--deidbench-baseline DIR``, ``--deidbench-candidate DIR`` and ``--deidbench-margins FILE`` (or the ini options of the same names with
underscores) are the defaults of the arguments, so that CI can name the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from deidbench.gate import Gate

_OPTIONS = {
    "baseline": "run folder that deidbench_gate holds candidates against",
    "candidate": "run folder that deidbench_gate judges",
    "margins": "margins file of deidbench_gate (default: the bundled one)",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deidbench", "regression gate of face anonymizers")
    for name, what in _OPTIONS.items():
        group.addoption(f"--deidbench-{name}", metavar="PATH", help=what)
        parser.addini(f"deidbench_{name}", what)


class AssertNoWorse(Protocol):
    """What the fixture ``deidbench_gate`` gives."""

    def __call__(
        self,
        candidate: str | Path | None = None,
        *,
        baseline: str | Path | None = None,
        margins: str | Path | None = None,
        methods: Sequence[str] = (),
        undecided: str = "fail",
        force: bool = False,
    ) -> Gate: ...


@pytest.fixture
def deidbench_gate(request: pytest.FixtureRequest) -> AssertNoWorse:
    """A function that fails the test unless the run ``candidate`` is no worse than the run ``baseline``.

    Arguments as for ``deidbench gate``; undecided: "fail" (as the exit code 2 is no pass), or "skip" where too few persons shall
    not break the build.  Returns the :class:`deidbench.gate.Gate`.
    """

    def given(name: str, value: str | Path | None) -> Path | None:
        said = value or request.config.getoption(f"--deidbench-{name}") or request.config.getini(f"deidbench_{name}")
        return Path(request.config.rootpath, said) if said else None

    def no_worse(
        candidate: str | Path | None = None,
        *,
        baseline: str | Path | None = None,
        margins: str | Path | None = None,
        methods: Sequence[str] = (),
        undecided: str = "fail",
        force: bool = False,
    ) -> Gate:
        from deidbench.errors import DeidbenchError
        from deidbench.gate import gate, load_margins
        from deidbench.records import read_run

        if undecided not in ("fail", "skip"):
            raise ValueError(f'undecided is "fail" or "skip", not {undecided!r}')
        new, old = given("candidate", candidate), given("baseline", baseline)
        if new is None or old is None:
            pytest.fail(
                f"deidbench_gate: no {'candidate' if new is None else 'baseline'}; name it, or --deidbench-{'candidate' if new is None else 'baseline'} DIR",
                pytrace=False,
            )
        try:
            found = gate(read_run(old), read_run(new), load_margins(given("margins", margins)), methods=methods, force=force)
        except DeidbenchError as error:
            pytest.fail(f"deidbench_gate: {error}", pytrace=False)
        if found.exit_code:
            lines = [f"  {v.method}: {v.name}: {v.outcome}: {v.words}" for v in found.verdicts if v.outcome != "pass"]
            text = "\n".join([f"deidbench gate {found.sentence}", *lines])
            if found.exit_code == 2 and undecided == "skip":
                pytest.skip(text)
            pytest.fail(text, pytrace=False)
        return found

    return no_worse
