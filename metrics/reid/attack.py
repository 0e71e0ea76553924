"""One attack carried out: score matrix, ranks, and what the conventions for failures make of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.metrics.base import Table
from deidbench.metrics.reid import identification, openset, verification
from deidbench.metrics.reid.base import SCORE_GRID, Attacker
from deidbench.metrics.reid.comparison import Comparison
from deidbench.stats import intervals
from deidbench.stats.pairs import Pairs
from deidbench.types import Floats

if TYPE_CHECKING:
    from deidbench.metrics.reid.streaming import Streamed


#: Comparisons whose scores are kept one by one, with who was compared; 0.7 GB.  More are counted in a stream.
MAX_PAIRS = 1 << 25
#: Groups of persons that stand for persons where pairs are only counted.
GROUPS = 64


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


class Searches(NamedTuple):
    """Open-set identification, one entry per probe (n,).

    person: number of the probe's person.  mated: whether its person is enrolled by another image.  hit: probability that a mate
    ranks first.  best_mate, best_other: highest score of a mate and of a stranger, -inf where nothing is known.
    """

    person: npt.NDArray[np.intp]
    mated: npt.NDArray[np.bool_]
    hit: npt.NDArray[np.float64]
    best_mate: Floats
    best_other: Floats


@dataclass(frozen=True, eq=False)
class View:
    """Everything that one convention's rows are made of.

    hits: (P, K) expected hits per person at ranks 1..K.  tried: (P,) probes with a mate.  chance: (K,) of guessing, None where
    no probe has a mate.  pairs: None where there were too many of them to be kept; streamed: what is known of them then (None
    under a convention that leaves some out).
    """

    hits: npt.NDArray[np.float64]
    tried: npt.NDArray[np.float64]
    guesses: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64] | None
    searches: Searches
    pairs: Pairs | None
    probes: int
    probe_persons: int
    streamed: Streamed | None = None
    #: What was computed on the way and is wanted again: "det".
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Probes:
    """The probes of one attack against what it compares them with.

    layout: who is compared with whom (persons where templates are fused).  scores: (n_probes, n_gallery), NaN where nothing is
    known, None where there are more than ``MAX_PAIRS`` pairs; streamed: what is known of them then.  The rest bool (n_probes,).
    """

    layout: Comparison
    scores: Floats | None
    standing: identification.Standing
    outcomes: openset.Outcomes
    fta: npt.NDArray[np.bool_]
    withheld: npt.NDArray[np.bool_]
    streamed: Streamed | None = None


def matrix(attacker: Attacker, gallery: Floats, probes: Floats) -> Floats:
    """All scores, asked for in tiles."""
    out = np.empty((len(probes), len(gallery)), np.float32)
    step = max(1, identification.TILE // max(1, len(gallery)))
    for start in range(0, len(probes), step):
        out[start : start + step] = attacker.scores(gallery, probes[start : start + step])
    return out


def embeddings(table: Table, recognizer: str) -> Floats:
    """The recogniser's column; what is not released cannot be embedded."""
    x = np.array(table.embeddings[recognizer], np.float32)
    x[table.withheld] = np.nan
    return x


def attack(
    attacker: Attacker, enrolled: Floats, probing: Floats, table: Table, layout: Comparison, templates: str = "image"
) -> Probes:
    """enrolled, probing: float32 (n, d), one row per image of ``table``, of which ``layout`` takes gallery and probes."""
    probing = np.array(probing, np.float32)
    probing[table.withheld] = np.nan
    withheld = table.withheld[layout.probes]
    if len(layout.probes) * len(layout.gallery) > MAX_PAIRS and attacker.by_cosine and templates == "image":
        from deidbench.metrics.reid import streaming

        group = streaming.person_groups(layout.persons, GROUPS, 0)
        found = streaming.compare_all(
            enrolled[layout.gallery],
            probing[layout.probes],
            layout.probe_person,
            layout.gallery_person,
            layout.same_image,
            group=group,
            threads=torch_threads(),
        )
        one = (found.mates > 0).astype(np.int64)
        outcomes = openset.Outcomes(found.best_mate, found.best_other, one, (found.others > 0).astype(np.int64))
        return Probes(layout, None, found.standing, outcomes, table.fta[layout.probes] & ~withheld, withheld, found)
    scores = matrix(attacker, enrolled[layout.gallery], probing[layout.probes])
    scores, layout = fused(scores, layout, templates)
    standing = identification.identify(lambda rows: scores[rows], layout.probe_person, layout.gallery_person, layout.same_image)
    outcomes = openset.outcomes(scores, layout.probe_person, layout.gallery_person, layout.same_image)
    return Probes(layout, scores, standing, outcomes, table.fta[layout.probes] & ~withheld, withheld)


def fused(scores: Floats, layout: Comparison, templates: str) -> tuple[Floats, Comparison]:
    """Multi-template galleries: the scores of a person's enrolled images become one, by their "mean" or their "max".

    A probe's own image takes no part, nor does an image without an embedding.  "image" leaves all as it is.
    """
    if templates == "image":
        return scores, layout
    persons = len(layout.persons)
    s = scores.astype(np.float64)
    own = np.flatnonzero(layout.same_image >= 0)
    s[own, layout.same_image[own]] = np.nan
    known = ~np.isnan(s)
    member = layout.gallery_person[:, None] == np.arange(persons)
    count = known.astype(np.float64) @ member
    out = np.full((len(s), persons), np.nan)
    if templates == "mean":
        np.divide(np.where(known, s, 0) @ member, count, out=out, where=count > 0)
        out = np.rint(out / SCORE_GRID) * SCORE_GRID  # sums in another order must not break ties
    elif templates == "max":
        s[~known] = -np.inf
        order = np.argsort(layout.gallery_person, kind="stable")
        sorted_person = layout.gallery_person[order]
        present, first = np.unique(sorted_person, return_index=True)
        if len(present):
            out[:, present] = np.maximum.reduceat(s[:, order], first, axis=1)
        out[count == 0] = np.nan
    else:
        raise ValueError(f"unknown templates {templates!r}: image, mean or max")
    enrolled = np.unique(layout.gallery_person)
    mates = (layout.mates > 0).astype(np.intp)
    # A person of whom nothing but the probe itself is enrolled is no template for this probe, and is in no other's way less.
    others = len(enrolled) - np.isin(layout.probe_person, enrolled).astype(np.intp)
    layout = replace(
        layout,
        text=f"{layout.text}, {templates} of the templates",
        gallery=enrolled,
        gallery_person=enrolled,
        same_image=np.full(len(layout.probes), -1, np.intp),
        mates=mates,
        others=others,
    )
    return out[:, enrolled].astype(np.float32), layout


def rates(events: npt.NDArray[np.float64], trials: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rate per column of events (P, k) over trials (P,).  Column by column: equal columns give equal bits."""
    sums: npt.NDArray[np.float64] = np.array([np.ascontiguousarray(column).sum() for column in events.T])
    out: npt.NDArray[np.float64] = sums / trials.sum()
    return out


def view(probes: Probes, convention: str, ranks: int) -> View:
    """One convention's counts (PROTOCOL, samples and failures).

    headline: all probes, those without a face through the fallback crop.  without_fta: only probes in which a face was
    found.  fta_as_miss: all probes, those without a face never identified and never accepted.  Withheld probes are no
    information (chance) in headline and fta_as_miss.
    """
    layout = probes.layout
    persons = len(layout.persons)
    take = np.ones(len(layout.probes), np.bool_)
    miss = np.zeros(len(layout.probes), np.bool_)
    if convention == "without_fta":
        take = ~probes.fta & ~probes.withheld
    elif convention == "fta_as_miss":
        miss = probes.fta
    mated = np.flatnonzero(take & (layout.mates > 0))
    standing = probes.standing
    hit = identification.hits(standing.above[mated], standing.tied[mated], standing.tied_mates[mated], ranks)
    hit[miss[mated]] = 0
    person = layout.probe_person[mated]
    # Summed in the same way as the hits, so that an attacker at chance shows the very same figure.
    tried = np.bincount(person, minlength=persons).astype(np.float64)
    guess = intervals.per_person(person, identification.chance(layout.mates[mated], layout.others[mated], ranks), persons)
    rows = np.flatnonzero(take)
    pairs = None
    if probes.scores is not None:
        scores = probes.scores[rows]
        scores[miss[rows]] = -np.inf
        pairs = verification.extract(scores, layout.probe_person[rows], layout.gallery_person, layout.same_image[rows])
    return View(
        hits=intervals.per_person(person, hit, persons),
        tried=tried,
        guesses=guess[:, 0],
        chance=rates(guess, tried) if len(mated) else None,
        searches=_searches(probes, take, miss),
        pairs=pairs,
        probes=len(rows),
        probe_persons=len(np.unique(layout.probe_person[rows])),
        streamed=probes.streamed if take.all() and not miss.any() else None,
    )


def _searches(probes: Probes, take: npt.NDArray[np.bool_], miss: npt.NDArray[np.bool_]) -> Searches:
    layout, rows = probes.layout, np.flatnonzero(take)
    mated = layout.mates[rows] > 0
    hit = np.zeros(len(rows))
    standing = identification.Standing(*(column[rows[mated]] for column in probes.standing))
    hit[mated] = identification.hits(*standing, 1)[:, 0]
    mate, other = probes.outcomes.best_mate[rows].copy(), probes.outcomes.best_other[rows].copy()
    missed = miss[rows]
    hit[missed], mate[missed], other[missed] = 0, -np.inf, -np.inf
    return Searches(layout.probe_person[rows], mated, hit, mate, other)
