"""The stage of trained attacks: one task per (method, attacker, recogniser, seed), each kept in the store once carried out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from deidbench.metrics.base import Table
    from deidbench.metrics.models.base import Recognizer
    from deidbench.metrics.reid.base import TrainedAttacker
    from deidbench.metrics.reid.training import Attempt


#: Sums of float32 depend on how many threads share them, and what is learnt on the sums: always one, so that the number of
#: workers changes no figure.  Attacks run beside each other instead.
THREADS = 1


@dataclass(frozen=True, eq=False)
class AttackTask:
    """A trained attack to carry out.  background, evaluated: (clear, anonymised) tables."""

    attacker: TrainedAttacker
    recognizer: str
    seed: int
    background: tuple[Table, Table]
    evaluated: tuple[Table, Table]
    recognizers: Mapping[str, Recognizer]


def carry_out(task: AttackTask) -> bytes:
    """Runs in a worker.  Returns the attempt as :func:`pack` writes it."""
    import torch

    from deidbench.metrics.reid.training import carry_out as attack

    torch.set_num_threads(THREADS)
    return pack(attack(task.attacker, task.recognizer, task.seed, task.background, task.evaluated, task.recognizers))


def pack(attempt: Attempt) -> bytes:
    """An attempt as bytes (safetensors; words as UTF-8 JSON), for the store."""
    from safetensors.numpy import save

    arrays, words = {}, {}
    for f in fields(attempt):
        value = getattr(attempt, f.name)
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            arrays[f.name] = np.ascontiguousarray(value)
        else:
            words[f.name] = value.tolist() if isinstance(value, np.ndarray) else value
    same = attempt.gallery is attempt.probes
    if same:  # as a rule: like is compared with like
        del arrays["gallery"]
        if attempt.held_out_gallery is attempt.held_out_probes:
            del arrays["held_out_gallery"]
    return save({**arrays, "words": np.frombuffer(json.dumps(words).encode(), np.uint8)})


def unpack(data: bytes) -> Attempt:
    """The inverse of :func:`pack`."""
    from safetensors.numpy import load

    from deidbench.metrics.reid.training import Attempt

    arrays: dict[str, Any] = load(data)
    words: dict[str, Any] = json.loads(arrays.pop("words").tobytes())
    for name in ("held_out_subjects", "held_out_ids"):
        words[name] = np.array(words[name], np.str_)
    arrays.setdefault("gallery", arrays["probes"])
    arrays.setdefault("held_out_gallery", arrays["held_out_probes"])
    return Attempt(**arrays, **words)
