"""Carrying out a trained attack: who learns, who is held out, and what is kept of it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deidbench.errors import DeidbenchError
from deidbench.metrics.base import Table
from deidbench.metrics.models.base import Recognizer
from deidbench.metrics.reid.base import TrainedAttacker
from deidbench.types import Floats

#: Raise it when an attempt on the same input changes for a reason that is not an attacker's own.
VERSION = "1"
#: Share of the attacker-train persons on whom the strongest seed is chosen and thresholds are set.
HELD_OUT = 0.2


class CannotLearn(DeidbenchError):
    """The attacker-train images do not allow this attack (too few persons, say); the message is the reason."""


@dataclass(frozen=True, eq=False)
class Training:
    """What a trained attacker learns from.

    clear, anonymised: the same images of the persons to learn from, before and after the method.
    held_out_clear, held_out_anonymised: those of the validation persons; to stop early or to choose by, never to learn from.
    recognizers: the suite's stock recognisers by name, for attackers that embed pictures of their own making.
    """

    clear: Table
    anonymised: Table
    held_out_clear: Table
    held_out_anonymised: Table
    recognizers: Mapping[str, Recognizer] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A trained attack with one seed, carried out.

    probes, gallery: float32 (n, d), the evaluated images as probes and as enrolled.  held_out_probes, held_out_gallery:
    (m, d) those of the validation persons.  held_out_subjects, held_out_ids: (m,).  learnt: words for the results.
    failure: why the attack could not be carried out, "" where it was; the arrays are then empty.
    """

    seed: int
    probes: Floats
    gallery: Floats
    held_out_probes: Floats
    held_out_gallery: Floats
    held_out_subjects: npt.NDArray[np.str_]
    held_out_ids: npt.NDArray[np.str_]
    learnt: str = ""
    failure: str = ""


def held_out(subjects: npt.NDArray[np.str_], seed: int, share: float = HELD_OUT) -> npt.NDArray[np.bool_]:
    """(n,) whether an image's person is a validation person: the first in the order of a hash of (seed, person).

    At least one person on either side where there are two; nobody is held out of one person.
    """
    persons = sorted(set(subjects.tolist()), key=lambda p: hashlib.sha256(f"{seed}|held out|{p}".encode()).hexdigest())
    count = min(max(1, round(share * len(persons))), len(persons) - 1)
    return np.isin(subjects, persons[:count])


def carry_out(
    attacker: TrainedAttacker,
    recognizer: str,
    seed: int,
    background: tuple[Table, Table],
    evaluated: tuple[Table, Table],
    recognizers: Mapping[str, Recognizer],
) -> Attempt:
    """Fits a fresh ``attacker`` and represents the evaluated images.

    background: (clear, anonymised) attacker-train tables.  evaluated: (clear, anonymised) tables of the evaluated images.
    Raises ValueError where a person is in both.
    """
    if both := set(background[0].subjects.tolist()) & set(evaluated[0].subjects.tolist()):
        raise ValueError(f"person {min(both)!r} is in attacker-train and under evaluation")
    out = held_out(background[0].subjects, seed)
    learn, validate = np.flatnonzero(~out), np.flatnonzero(out)
    training = Training(
        background[0].take(learn),
        background[1].take(learn),
        background[0].take(validate),
        background[1].take(validate),
        recognizers,
    )
    attacker = copy.deepcopy(attacker)  # a fresh one, whoever else is given the same
    try:
        attacker.fit(training, recognizer, seed)
    except CannotLearn as reason:
        none = np.empty((0, 1), np.float32)
        empty = np.empty(0, np.str_)
        return Attempt(seed, none, none, none, none, empty, empty, failure=str(reason))
    probes = attacker.represent(evaluated[1])
    held_probes = attacker.represent(training.held_out_anonymised)
    clear = attacker.gallery == "clear"
    return Attempt(
        seed,
        probes,
        attacker.represent(evaluated[0], enrolled=True) if clear else probes,
        held_probes,
        attacker.represent(training.held_out_clear, enrolled=True) if clear else held_probes,
        training.held_out_clear.subjects,
        training.held_out_clear.ids,
        attacker.learnt,
    )
