"""The GANonymization paper's measure: how far the anonymised face is from the original, to a recogniser."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.kinds import metrics
from deidbench.metrics.base import NO_BACKGROUND, NO_PERSONS, Background, Findings, Metric, Protocol, Quantity, Table
from deidbench.metrics.reid.base import cosine
from deidbench.records import Row
from deidbench.stats import intervals, roc
from deidbench.stats.evidence import Evidence
from deidbench.stats.intervals import Interval

if TYPE_CHECKING:
    from deidbench.datasets.base import Dataset

#: The threshold is calibrated on the pairs of at most so many clear images (12.5 million pairs); of larger data sets on
#: those of the first persons in the order of a hash of (seed, person).
CALIBRATION_IMAGES = 5_000
_TILE = 512

#: headline: released images; those without a face through the attacker's fallback crop.  without_fta: released images in
#: which a face was found.  withheld_as_unchanged: a withheld image has distance 0.
CONVENTIONS = ("headline", "without_fta", "withheld_as_unchanged")


@dataclass(frozen=True)
class Calibration:
    """What clear images say about a recogniser's distances.

    threshold: cosine similarity; a pair is accepted (the same person) iff its similarity is at least that.  None where there
    are no genuine or no impostor pairs (``reason``).  eer: at that threshold.  genuine, impostor: number of pairs.
    genuine_mean, impostor_mean: mean distances, NaN without pairs.  beyond: share of impostor pairs beyond the threshold.
    """

    threshold: float | None
    eer: float
    genuine: int
    impostor: int
    genuine_mean: float
    impostor_mean: float
    beyond: float
    images: int
    reason: str = ""


def calibrate(embeddings: npt.NDArray[np.float32], subjects: npt.NDArray[np.str_], seed: int) -> Calibration:
    """Threshold at the equal error rate of all pairs of different clear images (:func:`deidbench.stats.roc.eer`).

    embeddings: float32 (n, d), unit rows or NaN; images without an embedding are in no pair.
    """
    use = np.flatnonzero(~np.isnan(embeddings).any(1))
    if len(use) > CALIBRATION_IMAGES:
        persons, counts = np.unique(subjects[use], return_counts=True)
        order = sorted(range(len(persons)), key=lambda i: hashlib.sha256(f"{seed}|distance|{persons[i]}".encode()).hexdigest())
        total = np.cumsum(counts[order])
        some = persons[order[: max(2, int(np.searchsorted(total, CALIBRATION_IMAGES, "right")))]]
        use = use[np.isin(subjects[use], some)]
    x, who = embeddings[use], np.unique(subjects[use], return_inverse=True)[1]
    parts: tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]] = ([], [])
    for start in range(0, len(x), _TILE):
        stop = min(start + _TILE, len(x))
        scores = cosine(x[start:], x[start:stop])
        later = np.arange(start, len(x))[None, :] > np.arange(start, stop)[:, None]
        mate = who[start:stop, None] == who[None, start:]
        parts[0].append(scores[later & mate])
        parts[1].append(scores[later & ~mate])
    none = np.empty(0, np.float32)
    genuine, impostor = (np.concatenate([none, *p]) for p in parts)

    def distance(scores: npt.NDArray[np.float32]) -> float:
        return float(1 - scores.mean(dtype=np.float64)) if len(scores) else float("nan")

    found = Calibration(
        None, float("nan"), len(genuine), len(impostor), distance(genuine), distance(impostor), float("nan"), len(x)
    )
    if not len(genuine) or not len(impostor):
        lacking = "genuine" if not len(genuine) else "impostor"
        return replace(found, reason=f"no threshold can be calibrated: the clear images have no {lacking} pairs")
    value, threshold = roc.eer(genuine, impostor)
    # All thresholds down to the next lower score accept the same pairs.  Their middle favours neither side, which matters
    # where the two samples are far apart.
    lower = [s[s < np.float32(threshold)].max(initial=-np.inf) for s in (genuine, impostor)]
    if np.isfinite(max(lower)):
        threshold = (threshold + float(max(lower))) / 2
    beyond = np.count_nonzero(impostor < np.float32(threshold)) / len(impostor)
    return replace(found, threshold=threshold, eer=value, beyond=float(beyond))


def paired(clear: npt.NDArray[np.float32], anonymised: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosine similarity of row i with row i: float64 (n,), NaN where either row is NaN.

    Bit-identical to the diagonal of :func:`deidbench.metrics.reid.base.cosine`, and so comparable with a threshold made of it.
    """
    if clear.shape != anonymised.shape:
        raise ValueError(f"embeddings of shape {clear.shape} and {anonymised.shape} are not of the same images")
    out = np.empty(len(clear))
    step = 32  # the diagonal of small blocks: a product of blocks wastes little and keeps cosine's checks and its grid
    for start in range(0, len(clear), step):
        part = slice(start, start + step)
        out[part] = np.diagonal(cosine(clear[part], anonymised[part]))
    return out


@metrics.register("distance")
class Distance(Metric):
    """Cosine distance between the original and the anonymised image of the same sample, per recogniser.

    This is what the paper reports; it is no re-identification rate.  A face may be far from its original and still be nearer
    to it than to anybody else's, so ``reid`` says how well somebody is hidden.  "Beyond" means: the recogniser, at its equal
    error rate on clear images of this data set, takes original and output for two persons.

    A withheld image reveals nothing and has no distance.  It is counted, and it lifts no mean: ``headline`` is about the
    released images, and ``withheld_as_unchanged`` counts a withheld one as distance 0, so that a method gains nothing by
    withholding what it would have done badly.
    """

    version = "2"
    citation = "Hellmann et al., GANonymization, ACM TOMM 2024, arXiv 2305.02143 (the distance; our threshold is calibrated)"
    quantities = (
        Quantity("distance.cosine", "Cosine distance between original and output", "distance", True, "privacy", "distance"),
        Quantity(
            "distance.beyond",
            "Outputs farther from their original than the threshold of clear pairs",
            "rate",
            True,
            "privacy",
            "distance",
        ),
    )

    def bind(self, dataset: Dataset) -> None:
        """A data set without identities has no pairs of one person: no threshold, and the recogniser cannot be checked on it."""
        self.persons_ = dataset.identities

    def params(self) -> dict[str, Any]:
        return {} if getattr(self, "persons_", True) else {"persons": False}

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not."""
        if not (np.array_equal(clear.ids, anonymised.ids) and np.array_equal(clear.subjects, anonymised.subjects)):
            raise InputError(
                f"{anonymised.method!r} and the clear images of {clear.dataset!r} are not the same images in the same order",
                "run the same deidbench run command again",
            )
        persons = getattr(self, "persons_", True)
        rows: list[Row] = []
        for recognizer in sorted(clear.embeddings.keys() & anonymised.embeddings.keys()):
            # Without identities every image stands for itself; chance is then between two images, of two persons as a rule.
            calibration = calibrate(clear.embeddings[recognizer], clear.subjects if persons else clear.ids, protocol.seed)
            if not persons:
                calibration = replace(calibration, threshold=None, reason=f"no threshold can be calibrated: {NO_PERSONS}")
            similarity = paired(clear.embeddings[recognizer], anonymised.embeddings[recognizer])
            similarity[anonymised.withheld] = np.nan  # what is not released cannot be embedded
            for convention in CONVENTIONS:
                rows += _rows(anonymised, recognizer, convention, similarity, calibration, protocol)
        return Findings(rows, [])


def _rows(
    table: Table,
    recognizer: str,
    convention: str,
    similarity: npt.NDArray[np.float64],
    calibration: Calibration,
    protocol: Protocol,
) -> list[Row]:
    known = ~np.isnan(similarity)
    dark = ~known & ~table.withheld
    # An image without an embedding of its own is treated as a withheld one: nothing is known about it.
    unchanged = ~known if convention == "withheld_as_unchanged" else np.zeros(table.n, np.bool_)
    use = known & ~table.fta if convention == "without_fta" else known | unchanged
    distance = np.where(unchanged, 0.0, 1 - similarity)

    trouble = calibration.reason
    if not trouble and calibration.eer > protocol.max_clear_eer:
        trouble = f"clear EER {calibration.eer:.3f} is above {protocol.max_clear_eer:g}"
    notes = [
        f"untrusted, sanity check failed: {trouble}" if trouble else "",
        (
            f"clear pairs: EER {calibration.eer:.3f}, mean distance {calibration.genuine_mean:.3f} of one person"
            f" ({calibration.genuine} pairs) and {calibration.impostor_mean:.3f} of two ({calibration.impostor} pairs)"
            if calibration.threshold is not None
            else ""
        ),
        f"threshold calibrated on {calibration.images} of {table.n} images" if calibration.images < table.n else "",
        f"{int(dark.sum())} released images without an embedding" if dark.any() else "",
    ]
    if convention == "withheld_as_unchanged":
        notes.append(f"{int(unchanged.sum())} images at distance 0" if unchanged.any() else "")
    elif table.withheld.any():
        notes.append(f"{int(table.withheld.sum())} withheld images are not in the figure")
    persons, who = np.unique(table.subjects, return_inverse=True)
    base = Row(
        dataset=table.dataset,
        method=table.method,
        metric="",
        unit="",
        higher_is_better=None,
        value=None,
        recognizer=recognizer,
        convention=convention,
        n_images=int(use.sum()),
        n_persons=len(np.unique(table.subjects[use])),
        n_failed=int(table.withheld.sum()),
        n_fta=int((table.fta & ~table.withheld).sum()),
        family="distance",
        trusted=not trouble,
        note="; ".join(n for n in notes if n),
    )
    draws = intervals.person_draws(persons.tolist(), protocol.replicates, protocol.seed)
    counts = intervals.per_person(who, use, len(persons))
    empty = (
        "no images"
        if not table.n
        else "nothing was released"
        if table.withheld.all()
        else "no face was found in any released image"
        if known.any()
        else "no image has an embedding"
    )
    mean, beyond = Distance.quantities

    def put(quantity: Quantity, values: npt.NDArray[np.float64], reason: str, chance: float, threshold: float | None) -> Row:
        row = replace(
            base, metric=quantity.name, unit=quantity.unit, higher_is_better=quantity.higher_is_better, threshold=threshold
        )
        row = replace(row, chance=None if np.isnan(chance) else chance)
        if reason:
            return replace(row, reason=reason, ci_reason=reason)
        sums = intervals.per_person(who, np.where(use, values, 0), len(persons))
        interval: Interval
        if quantity is beyond:
            interval = intervals.rate_interval(sums, counts, draws, protocol.confidence)
        else:
            interval = intervals.mean_interval(sums, counts, draws, protocol.confidence)
        return replace(
            row,
            value=float(sums.sum() / counts.sum()),
            lo=interval.lo,
            hi=interval.hi,
            ci_level=interval.level if interval.lo is not None else None,
            ci_method=interval.method,
            ci_reason=interval.reason,
            evidence=Evidence.sums("rate" if quantity is beyond else "mean", sums, counts),
        )

    missing = "" if use.any() else empty
    # Chance: what the clear image of somebody else would give.
    out = [put(mean, distance, missing, calibration.impostor_mean, None)]
    if calibration.threshold is None:
        out.append(put(beyond, distance, calibration.reason, float("nan"), None))
    else:
        far = (similarity < np.float32(calibration.threshold)) & ~unchanged  # False for NaN
        out.append(put(beyond, far.astype(np.float64), missing, calibration.beyond, 1 - calibration.threshold))
    return out
