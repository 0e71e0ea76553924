"""The emotion metric's table over 20,000 images, beside a loop over scikit-learn.  `make bench` prints the table."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from deidbench.metrics._emotion_figures import shares, tally
from deidbench.stats import intervals

N, PERSONS, K, REPLICATES = 20_000, 500, 7, 10_000
#: The loop does so many; its time is in proportion.
FEW = 10

RNG = np.random.default_rng(0)
CODE = RNG.integers(0, K, N)
P = RNG.dirichlet(np.ones(K), N)
P[np.arange(N), CODE] += 0.3
WHO = np.arange(N) % PERSONS
UNREAD = RNG.random(N) < 0.05
NAMES = [f"p{i:04d}" for i in range(PERSONS)]
RATES = ("accuracy", "macro_f1", "uar")


def ours() -> list[float]:
    """Three figures, seven recalls and their intervals, with 10,000 replicates."""
    draws = intervals.person_draws(NAMES, REPLICATES, 0)
    (got,) = tally([(CODE, shares(P, UNREAD))], WHO, draws)
    found = [got.figure(name) for name in RATES] + [got.share(c, c) for c in range(K)]
    for figure in found:
        figure.interval(0.95)
    return [f.value for f in found]


def loop() -> list[float]:
    """The same figures, with a thousandth of the replicates."""
    said = np.where(UNREAD, K, P.argmax(1))
    draws = intervals.person_draws(NAMES, FEW, 0)
    rows = [np.arange(N), *(np.repeat(np.arange(N), d[WHO]) for d in draws)]
    out = []
    for r in rows:
        y, z = CODE[r], said[r]
        m = confusion_matrix(y, z, labels=range(K + 1))[:K]
        out.append(
            [
                accuracy_score(y, z),
                f1_score(y, z, average="macro", labels=range(K)),
                recall_score(y, z, average="macro", labels=range(K)),
                *(np.diag(m) / m.sum(1)),
            ]
        )
    return [float(v) for v in out[0]]


@pytest.mark.benchmark(group="emotion, 20,000 images: 10 figures; ours with 10,000 replicates, scikit-learn with 10")
@pytest.mark.parametrize("how", [ours, loop], ids=["deidbench", "scikit-learn"])
def test_table(benchmark, how) -> None:  # type: ignore[no-untyped-def]
    ours()  # the draws are kept between methods, so they are not part of the time
    got = benchmark.pedantic(how, rounds=3)
    assert got == pytest.approx(loop() if how is ours else ours())
