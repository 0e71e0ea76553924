"""Closed-set identification over gallery images: CMC and rank-k with ties at their expected value.

A probe is identified at rank k if one of the k highest-scoring gallery images shows its person.  Let the best mate
score s; ``above`` non-mates score more, ``tied`` non-mates and ``m`` mates score exactly s.  Under random order of the
tied block (t = tied) the probability that none of its first j = k - above places holds a mate is hypergeometric::

    P(miss at k) = C(t, j) / C(t + m, j) = prod_{l = 0}^{j - 1} (t - l) / (t + m - l),   1 for j <= 0, 0 for j > t

and a hit is 1 - P(miss), a number in [0, 1].  Without ties it is 0 or 1; m / (t + m) at rank 1.  A probe about which
nothing is known (nothing released, or no embedding) ties with the whole gallery and so scores chance: never dropped,
never a miss.  A gallery image without an embedding cannot be matched and ranks behind all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.types import Floats

#: Score matrices are made and judged in tiles of about this many pairs (16 MB of float32).
TILE = 1 << 22


class Standing(NamedTuple):
    """Where the best mate of each probe stands; each int64 (n_probes,).  tied_mates is at least 1 where there are mates."""

    above: npt.NDArray[np.int64]
    tied: npt.NDArray[np.int64]
    tied_mates: npt.NDArray[np.int64]


def standings(
    scores: Floats,
    probe_person: npt.NDArray[np.intp],
    gallery_person: npt.NDArray[np.intp],
    same_image: npt.NDArray[np.intp],
) -> Standing:
    """Counts of gallery images above the best mate and level with it.

    scores: float32 (n_probes, n_gallery), NaN where a probe or gallery row had no embedding.  same_image: (n_probes,)
    column of the probe's own image, which takes no part, -1 for none.
    """
    s = np.asarray(scores, np.float32)
    if np.isnan(s).any():
        return _standings_with_gaps(s, probe_person, gallery_person, same_image)
    n = len(s)
    rows = np.flatnonzero(same_image >= 0)
    columns = same_image[rows]
    # The mates of all probes as (row, column): they are few, so they are looked up, and the others only counted.
    order = np.argsort(gallery_person, kind="stable")
    person = gallery_person[order]
    first, last = np.searchsorted(person, probe_person, "left"), np.searchsorted(person, probe_person, "right")
    count = last - first
    r = np.repeat(np.arange(n), count)
    c = order[np.arange(len(r)) - np.repeat(np.cumsum(count) - count - first, count)]
    keep = c != same_image[r]
    r, c = r[keep], c[keep]
    mate = s[r, c]
    best = np.full(n, -np.inf, np.float32)
    np.maximum.at(best, r, mate)
    tied_mates = np.bincount(r[mate == best[r]], minlength=n).astype(np.int64)
    level = best[:, None]
    above, at_least = (x.view(np.uint8).sum(1, dtype=np.uint32).astype(np.int64) for x in (s > level, s >= level))
    own, best_own = s[rows, columns], best[rows]  # the probe's own image takes no part
    above[rows] -= own > best_own
    at_least[rows] -= own >= best_own
    return Standing(above, at_least - above - tied_mates, tied_mates)


def _standings_with_gaps(
    scores: Floats,
    probe_person: npt.NDArray[np.intp],
    gallery_person: npt.NDArray[np.intp],
    same_image: npt.NDArray[np.intp],
) -> Standing:
    """:func:`standings` where some scores are NaN."""
    s = scores.copy()
    rows = np.flatnonzero(same_image >= 0)
    columns = same_image[rows]
    missing = np.isnan(s)
    s[missing] = -np.inf  # an unusable gallery image ranks last ...
    known = ~missing
    known[rows, columns] = False
    s[~known.any(1)] = 0  # ... and where nothing is known, all tie
    s[rows, columns] = np.nan  # neither above, nor tied
    mate = probe_person[:, None] == gallery_person[None, :]
    mate[rows, columns] = False
    best = np.max(s, axis=1, where=mate, initial=-np.inf)[:, None]
    level = s == best
    tied_mates = np.count_nonzero(level & mate, axis=1)
    return Standing(
        np.count_nonzero(s > best, axis=1).astype(np.int64),
        (np.count_nonzero(level, axis=1) - tied_mates).astype(np.int64),
        tied_mates.astype(np.int64),
    )


def identify(
    scores: Callable[[slice], Floats],
    probe_person: npt.NDArray[np.intp],
    gallery_person: npt.NDArray[np.intp],
    same_image: npt.NDArray[np.intp],
    *,
    tile: int = TILE,
) -> Standing:
    """:func:`standings` in tiles: ``scores(rows)`` gives the score matrix of some probes, at most ``tile`` pairs at once."""
    n = len(probe_person)
    step = max(1, tile // max(1, len(gallery_person)))
    parts = [
        standings(scores(rows), probe_person[rows], gallery_person, same_image[rows])
        for rows in (slice(i, min(i + step, n)) for i in range(0, max(n, 1), step))
    ]
    return Standing(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def hits(above: npt.ArrayLike, tied: npt.ArrayLike, tied_mates: npt.ArrayLike, max_rank: int) -> npt.NDArray[np.float64]:
    """Probability of a hit at ranks 1..max_rank under random order of ties: float64 (n, max_rank) in [0, 1].

    The formula stands at the top of this file.  Raises ValueError for a probe without a mate: it cannot be identified
    and is no probe of this task.
    """
    a, t, m = (np.atleast_1d(np.asarray(x, np.int64)) for x in (above, tied, tied_mates))
    if np.any(m < 1):
        raise ValueError("a probe without a mate in the gallery cannot be identified; leave it out and say so")
    out = (np.arange(1, max_rank + 1) > a[:, None]).astype(np.float64)
    rows = np.flatnonzero(t > 0)
    if len(rows):
        a, t, m = a[rows], t[rows], m[rows]
        miss = np.ones(len(rows))
        for k in range(1, max_rank + 1):
            drawn = k - 1 - a  # places of the block that were filled before rank k
            left = np.maximum(t - drawn, 0)
            miss = np.where(drawn >= 0, miss * left / (left + m), miss)
            out[rows, k - 1] = 1 - miss
            # At rank 1 this is 1 - t / (t + m); m / (t + m) is the same number with one rounding less.
            first = drawn == 0
            out[rows[first], k - 1] = m[first] / (t[first] + m[first])
    return out


def chance(mates: npt.ArrayLike, others: npt.ArrayLike, max_rank: int) -> npt.NDArray[np.float64]:
    """Hit probability at ranks 1..max_rank of guessing: mates / (mates + others) at rank 1, else hypergeometric."""
    return hits(np.zeros_like(np.asarray(mates)), others, mates, max_rank)
