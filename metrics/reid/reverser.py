"""The reverser: learns to undo the anonymizer, then looks at what comes out with a stock recogniser."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.kinds import attackers
from deidbench.metrics.base import Table
from deidbench.metrics.reid import identification
from deidbench.metrics.reid._reverser_columns import learn_columns
from deidbench.metrics.reid._reverser_linear import learn_linear
from deidbench.metrics.reid._reverser_recut import recut
from deidbench.metrics.reid._reverser_unet import UNet, learn_unet
from deidbench.metrics.reid.base import CROP, TrainedAttacker, cosine
from deidbench.metrics.reid.training import CannotLearn, Training
from deidbench.types import Floats

Crops = npt.NDArray[np.uint8]

#: The least pairs to learn from.
LEAST_PAIRS = 20
#: A way back is exact where at least this share of the held-out values comes within so many levels; nothing else is tried then.
EXACT_SHARE, EXACT_LEVELS = 0.99, 2


class Restorer(Protocol):
    """A way back that was learnt."""

    def restore(self, crops: Crops) -> Crops:
        """Anonymised crops uint8 (n, s, s, 3) -> clear ones as far as they can be told; each depends on its crop alone."""


class AsItIs:
    """Nothing is undone."""

    def restore(self, crops: Crops) -> Crops:
        return crops


class MeanFace:
    """The mean clear face whatever is shown, for an anonymizer that always gives the same picture."""

    def __init__(self, clear: Crops) -> None:
        self.mean = np.rint(clear.mean(axis=0, dtype=np.float64)).astype(np.uint8)

    def restore(self, crops: Crops) -> Crops:
        return np.repeat(self.mean[None], len(crops), axis=0)


class Candidate(NamedTuple):
    """A way back and how well it does on the held-out persons.

    rank1: in [0, 1], NaN where no held-out person has two images.  error: mean squared error of the values.
    """

    title: str
    restorer: Restorer
    rank1: float
    error: float


class Pairs(NamedTuple):
    """Anonymised and clear crops of the same released images, uint8 (n, 112, 112, 3), and whom they show."""

    anonymised: Crops
    clear: Crops
    subjects: npt.NDArray[np.str_]


@attackers.register("reverser")
class Reverser(TrainedAttacker):
    """Learns from pairs how to get back from the anonymised face to the clear one; a stock recogniser compares the outcome with clear photographs.

    Ways back, of which the one with the best rank-1 on held-out persons is used: none; matching pixel columns, which undoes any
    fixed shuffle of pixels, inversion or change of contrast; ridge regression from all pixels to each; and a pix2pix U-Net.
    Where one comes back to the clear pictures exactly, the slower ones are not tried.

    steps: of the U-Net's training, 0 leaves it out (400 take a minute or two on one CPU thread; with a GPU rather 20,000).
    width: its first block's channels.  batch: pairs per step.  device: "cpu", "cuda" or "auto", for the U-Net.
    """

    version = "2"
    knows = (
        "has the anonymizer, learns to undo it from pairs of other persons' faces before and after, and enrols clear photographs; "
        "a stock recogniser"
    )
    citation = (
        "McPherson, Shokri & Shmatikov, Defeating Image Obfuscation with Deep Learning, arXiv:1609.00408, 2016 (the threat); "
        "Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017 (the U-Net)"
    )
    gallery = "clear"
    reads = "crops"

    #: U-Nets trained by this process, latest last: they do not depend on the recogniser, and take longest.
    _trained: ClassVar[OrderedDict[str, UNet]] = OrderedDict()
    _KEPT: ClassVar[int] = 4

    def __init__(self, steps: int = 400, width: int = 16, batch: int = 1, device: str = "cpu") -> None:
        for name, value, least in (("steps", steps, 0), ("width", width, 1), ("batch", batch, 1)):
            if value < least:
                raise InputError(f"attacker 'reverser': {name} = {value} is below {least}", f"{name} = {least} or more")
        self.steps, self.width, self.batch, self.device = steps, width, batch, device

    def fit(self, training: Training, recognizer: str, seed: int) -> None:
        """See :meth:`TrainedAttacker.fit`.  Raises ValueError where tables have no crops or the recogniser was not handed over."""
        if recognizer not in training.recognizers:
            raise ValueError(f"recognizer {recognizer!r} was not given to the reverser")
        self.recognizer_, self.column_ = training.recognizers[recognizer], recognizer
        learn = _pairs(training.anonymised, training.clear)
        held = _pairs(training.held_out_anonymised, training.held_out_clear)
        if len(learn.clear) < LEAST_PAIRS or len(held.clear) == 0:
            raise CannotLearn(
                f"{len(learn.clear)} pairs of released images to learn from and {len(held.clear)} held out: "
                f"the reverser needs {LEAST_PAIRS} and 1"
            )
        both = np.flatnonzero(~training.held_out_anonymised.withheld & ~training.held_out_clear.withheld)
        gallery = self._seen(training.held_out_clear, both)
        tried: list[Candidate] = []
        for title, restorer in self._ways(learn, held, seed):
            restored = restorer.restore(held.anonymised)
            as_it_is = isinstance(restorer, AsItIs)
            probes = self._seen(training.held_out_anonymised, both) if as_it_is else self._embed(restored)
            tried.append(Candidate(title, restorer, _rank1(gallery, probes, held.subjects), _error(restored, held.clear)))
            if _is_exact(restored, held.clear):
                break
        self.tried_ = tried
        # the simpler one where two do equally well; rank-1 is known for all of them or for none
        self.best_ = min(tried, key=lambda c: c.error if math.isnan(c.rank1) else -c.rank1)

    def _ways(self, learn: Pairs, held: Pairs, seed: int) -> Iterator[tuple[str, Restorer]]:
        """Ways back, the quickest first; the next is learnt when it is asked for."""
        if not (learn.anonymised != learn.anonymised[0]).any():
            yield "nothing to learn, all anonymised faces are the same: mean face", MeanFace(learn.clear)
            return
        yield "as it is", AsItIs()
        columns = learn_columns(learn.anonymised, learn.clear)
        if columns is not None:
            what = "pixels" if columns.together else "values"
            yield f"column matching ({columns.mutual:.0%} of {what} matched both ways)", columns
        linear = learn_linear(learn.anonymised, learn.clear, held.anonymised, held.clear)
        if linear is not None:
            yield "ridge regression", linear
        if self.steps:
            # a convolution sees neighbours: it is given the pixels in their order where that was found
            if columns is None:
                yield f"U-Net ({self.steps} steps)", self._unet(learn.anonymised, learn.clear, seed)
            else:
                unet = self._unet(columns.restore(learn.anonymised), learn.clear, seed)
                yield f"column matching, then U-Net ({self.steps} steps)", _Both(columns, unet)

    def _unet(self, anonymised: Crops, clear: Crops, seed: int) -> UNet:
        import torch

        how = f"{self.steps}|{self.width}|{self.batch}|{seed}|{self.device}|{torch.get_num_threads()}|{anonymised.shape}"
        key = hashlib.sha256(how.encode())
        key.update(anonymised.tobytes())
        key.update(clear.tobytes())
        name = key.hexdigest()
        known = self._trained.pop(name, None)
        if known is None:
            known = learn_unet(
                anonymised, clear, steps=self.steps, width=self.width, batch=self.batch, seed=seed, device=self.device
            )
        self._trained[name] = known
        while len(self._trained) > self._KEPT:
            self._trained.popitem(last=False)
        return known

    def represent(self, table: Table, *, enrolled: bool = False) -> Floats:
        """See :meth:`TrainedAttacker.represent`.  enrolled: clear images, which are not restored.

        Clear images are embedded through the same crop as the restored ones, although a recogniser with another crop saw them
        better before: like is compared with like (dlib on 30 held-out persons of CelebA-HQ, rank-1 after ridge regression:
        14 x 14 pixelation 0.27 against 0.25 with a gallery cut out of the photographs, blur 0.15 against 0.13).
        """
        released = np.flatnonzero(~table.withheld)
        if enrolled or isinstance(self.best_.restorer, AsItIs):
            embedded = self._seen(table, released)
        else:
            embedded = self._embed(self.best_.restorer.restore(_crops(table)[released]))
        out = np.full((table.n, embedded.shape[1]), np.nan, np.float32)
        out[released] = embedded
        return out

    @property
    def learnt(self) -> str:
        if not hasattr(self, "best_"):
            return ""
        others = [f"{c.title} {_figure(c)}" for c in self.tried_ if c is not self.best_]
        more = f" ({'; '.join(others)})" if others else ""
        return f"{self.best_.title}, held-out {_figure(self.best_)}{more}"

    def _seen(self, table: Table, rows: npt.NDArray[np.intp]) -> Floats:
        """Embeddings of some of the table's own pictures; a recogniser with this very crop has embedded them before."""
        if self.recognizer_.crop == CROP and self.column_ in table.embeddings:
            return table.embeddings[self.column_][rows]
        return self._embed(_crops(table)[rows])

    def _embed(self, crops: Crops) -> Floats:
        """Embeddings of crops cut by :data:`CROP`, float32 (n, d); pictures that are alike are embedded once."""
        first: dict[bytes, int] = {}
        place = [first.setdefault(hashlib.sha256(crop.tobytes()).digest(), len(first)) for crop in crops]
        chosen = np.unique(place, return_index=True)[1]
        self.recognizer_.load()
        embedded = self.recognizer_.embed(recut(crops[chosen], CROP, self.recognizer_.crop))
        return embedded[place] if place else embedded


class _Both:
    """One way back after the other."""

    def __init__(self, first: Restorer, second: Restorer) -> None:
        self.first, self.second = first, second

    def restore(self, crops: Crops) -> Crops:
        return self.second.restore(self.first.restore(crops))


def _figure(candidate: Candidate) -> str:
    if math.isnan(candidate.rank1):
        return f"error {candidate.error**0.5:.0f} levels"
    return f"rank-1 {candidate.rank1:.2f}"


def _crops(table: Table) -> Crops:
    if table.crops is None:
        raise ValueError("the reverser needs the table's crops")
    return table.crops


def _pairs(anonymised: Table, clear: Table) -> Pairs:
    both = ~anonymised.withheld & ~clear.withheld
    return Pairs(_crops(anonymised)[both], _crops(clear)[both], clear.subjects[both])


def _rank1(gallery: Floats, probes: Floats, subjects: npt.NDArray[np.str_]) -> float:
    """Rank-1 in [0, 1] of restored probes in the clear gallery without the probe's own image; NaN where nobody has two images."""
    person = np.unique(subjects, return_inverse=True)[1].astype(np.intp)
    mated = np.flatnonzero(np.bincount(person)[person] > 1)
    if len(mated) == 0:
        return math.nan
    standing = identification.identify(lambda rows: cosine(gallery, probes[mated[rows]]), person[mated], person, mated)
    return float(identification.hits(*standing, max_rank=1)[:, 0].mean())


def _error(restored: Crops, clear: Crops) -> float:
    """Mean squared difference of the values; sums of whole numbers, exact."""
    return sum(int(((a.astype(np.int64) - b) ** 2).sum()) for a, b in zip(restored, clear, strict=True)) / clear.size


def _is_exact(restored: Crops, clear: Crops) -> bool:
    near = sum(int((np.abs(a.astype(np.int16) - b) <= EXACT_LEVELS).sum()) for a, b in zip(restored, clear, strict=True))
    return near >= EXACT_SHARE * clear.size
