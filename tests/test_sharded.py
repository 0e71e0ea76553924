"""States that merge: any parts, merged in any order, give the figures of the whole, bit for bit."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deidbench.executors import make_executor
from deidbench.metrics.models.base import l2_normalise
from deidbench.metrics.reid import identification, sharded, streaming
from deidbench.metrics.sums import Sums
from deidbench.shards import PLACES, Queues, by_place, place, shard_of

# ------------------------------------------------------------------------------------------------------------------- sums

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.lists(st.tuples(st.integers(0, 4), finite), max_size=30)


def _sums(rows: list[tuple[int, float]]) -> Sums[int]:
    return Sums.of([p for p, _ in rows], [v for _, v in rows])


@given(values, values, values)
def test_sums_merge_in_any_order(a: list, b: list, c: list) -> None:
    x, y, z = map(_sums, (a, b, c))
    whole = _sums([*b, *c, *a])
    assert x.merge(y) == y.merge(x)
    assert x.merge(y).merge(z) == x.merge(y.merge(z)) == whole
    assert x.merge(Sums()) == x
    assert whole.n == len(a) + len(b) + len(c)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-1e300, 1e300)), min_size=1, max_size=30))
def test_sums_are_those_of_exact_arithmetic(rows: list[tuple[int, float]]) -> None:
    sums, counts = _sums(rows).columns()
    for p, s, n in zip(_sums(rows).persons, sums, counts, strict=True):
        mine = [v for q, v in rows if q == p]
        assert (s, n) == (float(sum(map(Fraction, mine))), len(mine))
        assert s == math.fsum(mine)
    assert _sums(rows).mean() == float(sum(Fraction(v) for _, v in rows) / len(rows))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_cannot_be_added_up_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="p1"):
        Sums.of(["p1"], [wrong])
    with pytest.raises(ValueError, match="no values"):
        Sums().mean()


# ----------------------------------------------------------------------------------------------------------- the comparison


def _data(seed: int, n: int = 60, persons: int = 12, lost: float = 0.1) -> tuple[np.ndarray, ...]:
    """gallery, probes, probe_person, gallery_person, same_image, group: with ties, lost faces and persons without a mate."""
    rng = np.random.default_rng(seed)
    x = l2_normalise(rng.normal(size=(n, 8)))[rng.integers(0, n // 2, n)]
    x[rng.random(n) < lost] = np.nan
    person = rng.integers(0, persons, n)
    person[0] = persons
    return x, x[::-1].copy(), person[::-1].copy(), person, np.arange(n)[::-1].copy(), rng.integers(0, 3, persons + 1)


def _equal(a: sharded.State, b: sharded.State) -> None:
    for x, y in ((a.genuine, b.genuine), (a.impostor, b.impostor)):
        np.testing.assert_array_equal(x.counts, y.counts)
        assert x.none == y.none
    np.testing.assert_array_equal(a.genuine_by_group, b.genuine_by_group)
    np.testing.assert_array_equal(a.impostor_by_group, b.impostor_by_group)
    assert (a.hits, a.no_mate) == (b.hits, b.no_mate)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 5), cuts=st.sets(st.integers(1, 59), max_size=6), order=st.randoms(use_true_random=False))
def test_any_parts_in_any_order_give_the_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cuts: set[int], order: random.Random
) -> None:
    data = _data(seed)
    folder = tmp_path_factory.mktemp("parts")
    sharded.lay_out(folder, *data)
    edges = [0, *sorted(cuts), 60]
    states = [sharded.compare_part(sharded.Part(str(folder), a, b)) for a, b in pairwise(edges)]
    streamed = streaming.compare_all(*data[:5], group=data[5])
    whole = sharded.state_of(streamed, data[2])
    while len(states) > 1:  # any two of them, until one is left: any tree of merges
        a, b = (states.pop(order.randrange(len(states))) for _ in range(2))
        states.append(a.merge(b))
    _equal(states[0], whole)
    assert states[0].eer() == streamed.eer() and states[0].auc() == streamed.auc()
    mates = streamed.mates > 0
    hits = identification.hits(*(x[mates] for x in streamed.standing), 10)
    for k in (1, 5, 10):
        assert states[0].rank(k) == float(sum(map(Fraction, hits[:, k - 1].tolist())) / len(hits))
        low, high = (states[0].rank_interval(k).lo, states[0].rank_interval(k).hi)
        assert low is not None and high is not None and low <= states[0].rank(k) <= high
    assert states[0].no_mate == int((~mates).sum()) > 0


def test_a_part_does_not_count_twice(tmp_path: Path) -> None:
    sharded.lay_out(tmp_path, *_data(0))
    one, other = (sharded.compare_part(sharded.Part(str(tmp_path), *ends)) for ends in ((0, 30), (29, 60)))
    with pytest.raises(ValueError, match="probe 29 is in both"):
        one.merge(other)
    with pytest.raises(ValueError, match="ranks"):
        one.merge(sharded.compare_part(sharded.Part(str(tmp_path), 30, 60, ranks=(1,))))


def test_on_an_executor(tmp_path: Path) -> None:
    data = _data(3)
    sharded.lay_out(tmp_path, *data)
    executor = make_executor(1, int, ())
    work = sharded.parts(tmp_path, 7)
    assert [work[0].start, work[-1].stop, len(work)] == [0, 60, 7]
    _equal(sharded.compare(executor, work), sharded.state_of(streaming.compare_all(*data[:5], group=data[5]), data[2]))


# ------------------------------------------------------------------------------------------------------------------ shards

names = st.text(min_size=1, max_size=8)


def _sample(name: str) -> SimpleNamespace:
    return SimpleNamespace(id=name, sha256="AB" * 32)


def test_shards_are_the_same_everywhere() -> None:
    """Numbers that were worked out once, by sha256sum: another machine must come to the same."""
    assert shard_of(_sample("s1/1"), 7) == 6
    assert place(_sample("s1/1")) == place(SimpleNamespace(id="s1/1", sha256="ab" * 32))


@given(st.lists(names, min_size=1, max_size=40, unique=True), st.integers(1, 9), st.randoms(use_true_random=False))
def test_each_sample_has_one_shard_whatever_the_order(ids: list[str], n: int, order: random.Random) -> None:
    samples = [_sample(i) for i in ids]
    shards = [shard_of(s, n) for s in by_place(samples)]
    assert shards == sorted(shards) and shards[0] >= 0 and shards[-1] < n
    assert all(0 <= place(s) < PLACES for s in samples)
    mixed = samples[:]
    order.shuffle(mixed)
    assert by_place(mixed) == by_place(samples)


def test_shards_are_of_equal_size() -> None:
    counts = np.bincount([shard_of(_sample(f"s{i}"), 4) for i in range(4000)], minlength=4)
    assert counts.min() > 900 and counts.max() < 1100  # 1000 each, within 3.6 standard deviations


@given(
    st.lists(st.integers(0, 99), max_size=30, unique=True),
    st.integers(0, 5),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_every_task_is_taken_once(ids: list[int], others: int, n: int, order: random.Random) -> None:
    tasks = [SimpleNamespace(samples=(_sample(f"s{i}"),)) for i in ids] + [object()] * others
    queues = Queues(tasks, n)
    taken = []
    while queues:
        worker = order.randrange(n)
        i = queues.take(worker)
        assert i is not None
        if order.random() < 0.2:
            queues.give_back(worker, i)
        else:
            taken.append(i)
    assert sorted(taken) == list(range(len(tasks)))
    assert all(queues.take(w) is None for w in range(n))


def test_own_tasks_come_first() -> None:
    tasks = [SimpleNamespace(samples=(_sample(f"s{i}"),)) for i in range(40)]
    queues = Queues(tasks, 4)
    homes = {w: [i for i, t in enumerate(tasks) if shard_of(t.samples[0], 4) == w] for w in range(4)}
    mine = [queues.take(2) for _ in homes[2]]
    assert mine == homes[2]
    left = max((homes[w] for w in (0, 1, 3)), key=len)
    assert queues.take(2) == left[-1], "then the last of whoever has most left"
