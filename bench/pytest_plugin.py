"""A pytest plug-in: a team's test suite asserts that a checkpoint is no worse, and that a method keeps the contract.

Installed with deidbench; nothing to import::

    def test_checkpoint_is_no_worse(deidbench_gate):
        deidbench_gate("results/candidate", baseline="results/baseline", margins="margins.toml")

    def test_contract(deidbench_check):
        deidbench_check("my-method", amount=0.5)

(One test per check, in the test's own process: :func:`deidbench.contract.parametrize_with_checks`.)
``--deidbench-baseline DIR``, ``--deidbench-candidate DIR`` and ``--deidbench-margins FILE`` (or the ini options of the same names with
underscores) are the defaults of the arguments, so that CI can name the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.contract import Result
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


class AssertNoWorse:
    """What the fixture :func:`deidbench_gate` gives."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def _given(self, name: str, value: str | Path | None) -> Path | None:
        said = value or self._config.getoption(f"--deidbench-{name}") or self._config.getini(f"deidbench_{name}")
        return Path(self._config.rootpath, said) if said else None

    def __call__(
        self,
        candidate: str | Path | None = None,
        *,
        baseline: str | Path | None = None,
        margins: str | Path | None = None,
        methods: str | Sequence[str] = (),
        undecided: str = "fail",
        force: bool = False,
        strict: bool = False,
    ) -> Gate:
        """Fails the test unless the run ``candidate`` is no worse than the run ``baseline``.

        Arguments as for ``deidbench gate``; undecided: "fail" (as the exit code 2 is no pass), or "skip" where too few persons
        shall not break the build.
        """
        from deidbench.errors import DeidbenchError
        from deidbench.gate import gate, load_margins
        from deidbench.records import read_run

        if undecided not in ("fail", "skip"):
            raise ValueError(f'undecided is "fail" or "skip", not {undecided!r}')
        new, old = self._given("candidate", candidate), self._given("baseline", baseline)
        if new is None or old is None:
            lacking = "candidate" if new is None else "baseline"
            pytest.fail(f"deidbench_gate: no {lacking}; name it, or --deidbench-{lacking} DIR", pytrace=False)
        wanted = [methods] if isinstance(methods, str) else methods
        problem = ""
        try:
            limits = load_margins(self._given("margins", margins))
            found = gate(read_run(old), read_run(new), limits, methods=wanted, force=force, strict=strict)
        except DeidbenchError as error:
            problem = f"deidbench_gate: {error}"
        if problem:  # out here, or pytest would print the error a second time, as the cause
            pytest.fail(problem, pytrace=False)
        if found.exit_code:
            lines = [f"  {v.method}: {v.name}: {v.outcome}: {v.words}" for v in found.verdicts if v.outcome != "pass"]
            text = "\n".join([f"deidbench gate {found.sentence}", *lines])
            if found.exit_code == 2 and undecided == "skip":
                pytest.skip(text)
            pytest.fail(text, pytrace=False)
        return found


@pytest.fixture
def deidbench_gate(request: pytest.FixtureRequest) -> AssertNoWorse:
    """A function that fails the test unless a run is no worse than another one; it returns the :class:`deidbench.gate.Gate`."""
    return AssertNoWorse(request.config)


class AssertContract:
    """What the fixture :func:`deidbench_check` gives."""

    def __call__(
        self,
        method: str | Anonymizer,
        *,
        only: Sequence[str] = (),
        data: str | Path | None = None,
        quick: bool = False,
        timeout: float = 60.0,
        strict: bool = False,
        **params: Any,
    ) -> list[Result]:
        """Fails the test unless ``method`` passes all contract checks; what failed is told with the way to mend it.

        method: as for ``deidbench check`` (a registered name, ``module:Class`` or a file), with ``params``; or an instance of a
        class that other processes can import.  Other arguments as the command's options: every check runs in a process apart.
        """
        from deidbench.contract import Verdict
        from deidbench.contract_child import Request, check_apart
        from deidbench.errors import DeidbenchError

        if not isinstance(method, str):
            params = {**method.params(), **params}
            method = f"{type(method).__module__}:{type(method).__qualname__}"
        problem = ""
        results: list[Result] = []
        try:
            folder = None if data is None else Path(data)
            _, results = check_apart(Request(method, params, timeout, quick), only, folder)
        except DeidbenchError as error:
            problem = f"deidbench_check: {error}"
        if problem:  # out here, or pytest would print the error a second time, as the cause
            pytest.fail(problem, pytrace=False)
        bad = [r for r in results if r.verdict is Verdict.FAILED or (strict and r.verdict is Verdict.WARNED)]
        if bad:
            pytest.fail("\n\n".join([f"deidbench check {method}: {len(bad)} failed", *(r.text() for r in bad)]), pytrace=False)
        return results


@pytest.fixture
def deidbench_check() -> AssertContract:
    """A function that fails the test unless an anonymizer keeps the contract; it returns the results of all checks."""
    return AssertContract()
