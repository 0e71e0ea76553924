"""The contract checks of the package, for tests that bring an instance and pictures of their own."""

from __future__ import annotations

from collections.abc import Sequence

from deidbench.anonymizers.base import Anonymizer
from deidbench.contract import Trial, Verdict, answers, checks, difference, run_check
from deidbench.contract_checks import shaped, sound
from deidbench.contract_faces import Material
from deidbench.types import Anonymized, Item


def same(a: Anonymized, b: Anonymized) -> bool:
    """Equal in status, reason, faces and every pixel."""
    return a.id == b.id and a.faces == b.faces and difference(a, b) is None


def well_formed(items: Sequence[Item], results: Sequence[Anonymized]) -> None:
    """One result per item, in order; pictures where the status is ok, none with a reason elsewhere."""
    for result in answers(items, results):
        sound(result)
        shaped(result)


def input_untouched(anonymizer: Anonymizer, items: Sequence[Item]) -> None:
    _keeps(anonymizer, items, "input-unchanged", "own-arrays")


def repeatable(anonymizer: Anonymizer, items: Sequence[Item]) -> None:
    """The same items give the same results: again, in reverse, one by one, and in another process (pickled)."""
    _keeps(anonymizer, items, "again", "order", "batch", "pickles", "other-process")


def seeds_matter_as_declared(anonymizer: Anonymizer, item: Item) -> None:
    _keeps(anonymizer, [item], "seeds")


def _keeps(anonymizer: Anonymizer, items: Sequence[Item], *names: str) -> None:
    trial = Trial(anonymizer, Material("the test's own", tuple(items), (), {}))
    for name in names:
        result = run_check(checks()[name], trial)
        assert result.verdict is Verdict.PASSED, result.text()
        assert "noise" not in result.found, result.text()
