"""How different anonymised faces look to trained networks: LPIPS per image, KID and the Frechet distance (FID) per set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError, MissingError
from deidbench.kinds import metrics
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Reading, Table
from deidbench.metrics.models.inception import FILENAME as INCEPTION_FILE
from deidbench.metrics.models.inception import check_suffix, hub_folder
from deidbench.metrics.quality import MARGIN
from deidbench.records import Row
from deidbench.stats import intervals
from deidbench.stats.intervals import Interval
from deidbench.types import Box, Face, Image
from deidbench.weights import WeightFile, package_folder, safe_torch_load, sha256_of

FAMILY = "perceptual"
#: Networks of LPIPS: the file of torchvision's weights, and the name under which torchvision offers them.
NETWORKS = {"alex": ("alexnet-owt-7be5be79.pth", "alexnet"), "vgg": ("vgg16-397923af.pth", "vgg16")}
INSTALL = "pip install lpips"
#: The networks shrink their input; below this side nothing would be left of it.
SMALLEST = 32
#: KID's kernel is (x . y / d + 1) ** DEGREE (Binkowski et al. 2018).
DEGREE = 3
#: Of FID: images of which the covariance of Inception's features has full rank.
FULL_RANK = 2048
#: Beyond so many persons, KID's interval comes from ``curve_replicates`` draws: the work grows with the square.
MANY_PERSONS = 1000
#: Rows of the kernel matrix at a time.
_ROWS = 1024

_Matrix = npt.NDArray[np.float64]


# -- LPIPS -------------------------------------------------------------------------------------------------------------
class Lpips:
    """LPIPS v0.1 (Zhang et al., CVPR 2018) through the authors' library, with torchvision's weights from a file.

    The library carries the weights of its linear layers; the network below is torchvision's, trained on ImageNet.
    net: "alex" or "vgg".  path: its weights; empty: looked for in torch.hub's folder and in deidbench's folder of weights.
    """

    def __init__(self, net: str = "alex", path: str = "") -> None:
        if net not in NETWORKS:
            raise InputError(f"LPIPS has no network {net!r}", f"use one of {', '.join(NETWORKS)}")
        self.net, self.path = net, path
        self._network: Any = None

    @property
    def weights(self) -> WeightFile:
        filename, model = NETWORKS[self.net]
        return WeightFile(
            name=f"LPIPS ({model})",
            filename=filename,
            licence="BSD-3-Clause",
            trained_on=("ImageNet",),
            install=f"python -c \"import torchvision; torchvision.models.{model}(weights='IMAGENET1K_V1')\" downloads it",
            folders=(hub_folder(),),
        )

    def missing(self) -> str:
        """Empty when it can be computed, else what is missing and how to get it; says the same on every machine."""
        if package_folder("lpips") is None:
            return f"LPIPS needs the package lpips: {INSTALL}"
        if self.weights.missing(self.path):
            if self.path:
                return f"the file that path names is not there: {Path(self.path).name}"
            record = self.weights
            return (
                f"weights of {record.name} are missing: {record.filename}; {record.install}, "
                "or put it into torch.hub's folder of checkpoints or the folder that $DEIDBENCH_WEIGHTS names"
            )
        return ""

    def state(self) -> dict[str, str]:
        """What determines the figures besides the pixels; "" for what is not there."""
        if self.missing():
            return {"weights": "", "library": ""}
        try:
            library = f"lpips {version('lpips')}"
        except PackageNotFoundError:
            library = "lpips"
        return {"weights": sha256_of(self.weights.locate(self.path)), "library": library}

    def load(self) -> None:
        """Raises MissingError; InputError, naming the file, where it is broken or another network's."""
        if self._network is not None:
            return
        if why := self.missing():
            raise MissingError(why, "LPIPS is left out without it")
        path = self.weights.locate(self.path)
        if not self.path:
            check_suffix(path)
        state = safe_torch_load(path)
        import torch

        try:
            import lpips
        except ImportError as error:
            raise MissingError(f"lpips cannot be imported: {error}", INSTALL) from error
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks torchvision in a way that is out of fashion
            network = lpips.LPIPS(net=self.net, pnet_rand=True, verbose=False)
        remedy = f"get it again: {self.weights.install}"
        found = {}
        for key, old in network.net.state_dict().items():  # slice2.3.weight is torchvision's features.3.weight
            value = state.get("features." + key.partition(".")[2]) if isinstance(state, dict) else None
            if not isinstance(value, torch.Tensor) or value.shape != old.shape:
                raise InputError(
                    f"{path} holds no weights of {NETWORKS[self.net][1]}: {key} is absent or of another shape", remedy
                )
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"{path}: {key} has values that are not finite", remedy)
            found[key] = value
        network.net.load_state_dict(found)
        self._network = network.eval().requires_grad_(False)

    def __call__(self, a: Image, b: Image) -> float:
        """Distance of two RGB uint8 images of one shape, each side at least :data:`SMALLEST`; >= 0, 0 for equal ones."""
        self.load()
        if np.array_equal(a, b):
            return 0.0
        import torch

        pair = torch.from_numpy(np.stack([a, b]).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
        with torch.inference_mode():
            return float(self._network(pair[:1], pair[1:]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None}


def face_region(image: Image, box: Box, size: int) -> Image | None:
    """The part of ``image`` in ``box``, scaled so that its longer side is ``size``; None where it has no SMALLEST pixels then."""
    import cv2

    b = box.clipped(image.shape[1], image.shape[0])
    x0, y0, x1, y1 = math.floor(b.x0), math.floor(b.y0), math.ceil(b.x1), math.ceil(b.y1)
    w, h = x1 - x0, y1 - y0
    if w < 1 or h < 1:
        return None
    scale = size / max(w, h)
    to = (round(w * scale), round(h * scale))
    if min(to) < SMALLEST:
        return None
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image[y0:y1, x0:x1], to, interpolation=how), np.uint8)


# -- sets --------------------------------------------------------------------------------------------------------------
def frechet(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Frechet distance between the Gaussians fitted to two sets of features (n, d) and (m, d), n and m >= 2.

    |mx - my|^2 + Tr(Sx + Sy - 2 (Sx Sy)^(1/2)) with sample covariances: FID where the features are Inception's (Heusel et al.
    2017, equation 6; after Dowson & Landau 1982).  With A and B the centred features over sqrt(n - 1), Sx = A'A and Sy = B'B,
    the trace of the root is the sum of the singular values of A B': no root of a matrix, and exact for singular covariances.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    shift = a.mean(0) - b.mean(0)
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (a, b))
    spread = float(np.sum(a * a) + np.sum(b * b))
    a, b = (np.asarray(np.linalg.qr(z, mode="r")) if len(z) > z.shape[1] else z for z in (a, b))
    root = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return max(0.0, float(shift @ shift) + spread - 2 * root)


class KernelSums(NamedTuple):
    """Sums of KID's kernel over pairs of images, per pair of persons: (P, P) each; counts of images (P,).

    own: the sum over clear images, and over anonymised ones, of the kernel of an image with itself.
    """

    xx: _Matrix
    yy: _Matrix
    xy: _Matrix
    nx: _Matrix
    ny: _Matrix
    own: tuple[float, float]


def kernel_sums(
    x: npt.ArrayLike, who_x: npt.NDArray[np.intp], y: npt.ArrayLike, who_y: npt.NDArray[np.intp], persons: int
) -> KernelSums:
    """x, y: features (n, d) and (m, d).  who_x, who_y: (n,) and (m,), the person of each, in [0, persons)."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def block(u: _Matrix, who_u: npt.NDArray[np.intp], v: _Matrix, who_v: npt.NDArray[np.intp]) -> _Matrix:
        out = np.zeros((persons, persons))
        order = np.argsort(who_v, kind="stable")
        present, first = np.unique(who_v[order], return_index=True)
        right = v[order].T / v.shape[1]
        for start in range(0, len(u), _ROWS):
            k = (u[start : start + _ROWS] @ right + 1) ** DEGREE
            part = np.zeros((len(k), persons))
            part[:, present] = np.add.reduceat(k, first, axis=1)
            np.add.at(out, who_u[start : start + _ROWS], part)
        return out

    own = tuple(float(np.sum((np.einsum("ij,ij->i", z, z) / z.shape[1] + 1) ** DEGREE)) for z in (a, b))
    return KernelSums(
        block(a, who_x, a, who_x),
        block(b, who_y, b, who_y),
        block(a, who_x, b, who_y),
        np.bincount(who_x, minlength=persons).astype(np.float64),
        np.bincount(who_y, minlength=persons).astype(np.float64),
        (own[0], own[1]),
    )


def published_kid(sums: KernelSums) -> float:
    """KID over all pairs of different images, the unbiased estimator of Binkowski et al. (2018) for independent sets.

    NaN with fewer than two images in a set.  Of the same images twice it is below 0: each meets itself in the mixed term.
    """
    n, m = float(sums.nx.sum()), float(sums.ny.sum())
    if min(n, m) < 2:
        return math.nan
    within = (sums.xx.sum() - sums.own[0]) / (n * (n - 1)) + (sums.yy.sum() - sums.own[1]) / (m * (m - 1))
    return float(within - 2 * sums.xy.sum() / (n * m))


def kid_replicates(sums: KernelSums, weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """KID over the pairs of different persons, once per row of ``weights`` (B, P): how often each person is drawn.

    The clear and the anonymised images show the same persons, so pairs of one person say nothing about the two
    distributions; without them each mean is a U-statistic over independent persons, unbiased, and 0 for equal sets.  A
    person drawn twice is not paired with the copy either.  NaN where there is no pair.
    """
    out = np.empty(len(weights))
    blocks = [z - np.diag(np.diag(z)) for z in (sums.xx, sums.yy, sums.xy)]
    counts = ((sums.nx, sums.nx, 1.0), (sums.ny, sums.ny, 1.0), (sums.nx, sums.ny, -2.0))
    for start in range(0, len(weights), 256):
        w = np.asarray(weights[start : start + 256], np.float64)
        total = np.zeros(len(w))
        for z, (a, b, sign) in zip(blocks, counts, strict=True):
            pairs = (w @ a) * (w @ b) - (w * w) @ (a * b)
            with np.errstate(invalid="ignore", divide="ignore"):
                total += sign * np.where(pairs > 0.5, np.einsum("bp,bp->b", w @ z, w) / pairs, np.nan)
        out[start : start + 256] = total
    return out


class _Sets(NamedTuple):
    """Features (n, d) and (m, d) of the clear and the anonymised images in use, and (n,), (m,) whose they are."""

    x: npt.NDArray[np.float32]
    who_x: npt.NDArray[np.intp]
    y: npt.NDArray[np.float32]
    who_y: npt.NDArray[np.intp]
    used: npt.NDArray[np.bool_]


@metrics.register("perceptual")
class Perceptual(Metric):
    """LPIPS of each face against its original; KID and the Frechet distance between all clear and all anonymised faces.

    net: LPIPS' network, "alex" or "vgg"; path: its weights.  size: to which the longer side of the face region is scaled for
    LPIPS.  features: name of a classifier of the suite whose features stand in where no classifier of task "features"
    (``inception``) is in the suite; figures on other features than Inception's have no scale but their own.

    The region of LPIPS is that of the quality metric, around the original's face.  Sets: every clear image against every
    released one; where no face was found in the output, what is at the fallback crop (``without_fta``: images with a face,
    on both sides).  What is absent (library, weights, features) gives an empty row that says what is needed.
    """

    version = "1"
    citation = "Zhang et al., CVPR 2018 (LPIPS); Binkowski et al., ICLR 2018 (KID); Heusel et al., NIPS 2017 (FID)"
    measures = ("lpips_face",)
    quantities = (
        Quantity("perceptual.lpips", "LPIPS, face", "lpips", False, "utility", FAMILY),
        Quantity("perceptual.kid", "KID, faces", "kid", False, "utility", FAMILY),
        Quantity("perceptual.frechet", "Frechet distance (FID), faces", "frechet", False, "utility", FAMILY),
    )

    def __init__(self, net: str = "alex", path: str = "", size: int = 256, features: str = "") -> None:
        if size < SMALLEST or size > 1024:
            raise InputError(f"metric 'perceptual': size is {size}", f"a number of pixels from {SMALLEST} to 1024")
        self.net, self.path, self.size, self.features = net, path, size, features
        self._lpips = Lpips(net, path)
        self._ready: bool | None = None

    def params(self) -> dict[str, Any]:
        """With the hash of LPIPS' weights: what was not measured for lack of them is measured when they are there."""
        return {"net": self.net, "size": self.size, "features": self.features, **self._lpips.state()}

    def missing(self) -> str:
        """What LPIPS lacks on this machine, "" where it can be computed."""
        return self._lpips.missing()

    # -- per image ---------------------------------------------------------------------------------------------
    def measure(self, original: Image, anonymised: Image, face: Face | None, found: Face | None = None) -> Mapping[str, float]:
        """NaN where the original has no face, where the region is too thin, and without LPIPS' weights."""
        if self._ready is None:
            self._ready = not self._lpips.missing()
        value = math.nan
        if face is not None and self._ready:
            box = face.box.scaled(MARGIN)
            a, b = face_region(original, box, self.size), face_region(anonymised, box, self.size)
            if a is not None and b is not None:
                value = self._lpips(a, b)
        return {"lpips_face": value}

    # -- scores ------------------------------------------------------------------------------------------------
    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not."""
        if not (np.array_equal(clear.ids, anonymised.ids) and np.array_equal(clear.subjects, anonymised.subjects)):
            raise InputError(
                f"{anonymised.method!r} and the clear images of {clear.dataset!r} are not the same images in the same order",
                "run the same deidbench run command again",
            )
        rows = [self._lpips_row(anonymised, protocol)]
        name, reason = self._source(clear, anonymised)
        done: dict[bytes, list[Row]] = {}
        for convention in ("headline", "without_fta"):
            if not name:
                rows += [self._row(anonymised, q, protocol, reason=reason, convention=convention) for q in self.quantities[1:]]
                continue
            sets = self._sets(clear, anonymised, name, convention)
            same = sets.used.tobytes() + len(sets.x).to_bytes(8, "little")
            if same not in done:
                done[same] = self._set_rows(anonymised, sets, name, clear.readings[name].task, protocol)
            rows += [replace(r, convention=convention) for r in done[same]]
        return Findings(rows, [])

    def _source(self, clear: Table, anonymised: Table) -> tuple[str, str]:
        """The classifier whose features are used, or "" and why there is none."""
        both = [n for n in clear.readings if n in anonymised.readings]
        name = next((n for n in both if clear.readings[n].task == "features"), "")
        if not name and self.features in both:
            name = self.features
        if not name:
            have = ", ".join(both) or "none"
            wish = f"the suite has no classifier {self.features!r} (it has: {have})" if self.features else "no features"
            return "", (
                f'{wish}: add the classifier "inception" to the suite (it needs torch-fidelity and {INCEPTION_FILE}), '
                'or name one of its classifiers as a stand-in: features = "..."'
            )
        if clear.readings[name].features.shape[1] == 0:
            return "", f"the classifier {name!r} gives no features"
        return name, ""

    @staticmethod
    def _sets(clear: Table, anonymised: Table, name: str, convention: str) -> _Sets:
        def use(table: Table, reading: Reading) -> npt.NDArray[np.bool_]:
            good: npt.NDArray[np.bool_] = np.isfinite(reading.features).all(1) & ~table.withheld
            return good & ~table.fta if convention == "without_fta" else good

        _, who = np.unique(clear.subjects, return_inverse=True)
        before, after = clear.readings[name], anonymised.readings[name]
        a, b = use(clear, before), use(anonymised, after)
        return _Sets(before.features[a], who[a], after.features[b], who[b], b)

    def _set_rows(self, table: Table, sets: _Sets, name: str, task: str, protocol: Protocol) -> list[Row]:
        n, m, d = len(sets.x), len(sets.y), sets.x.shape[1]
        label = f"on {name} features"
        said = [f"{m} anonymised against {n} clear images, {d} features"]
        if name.partition("#")[0] != "inception":
            said.append(f"features of {name!r} instead of Inception's: not comparable with published figures")
        if lost := table.n - m:
            said.append(f"{lost} images are not in the anonymised set")
        few = (
            ""
            if min(n, m) >= 2
            else "nothing was released"
            if m == 0 and table.withheld.all()
            else "fewer than two images in a set"
        )

        def row(quantity: Quantity, value: float | None, interval: Interval, notes: list[str], why: str) -> Row:
            return self._row(
                table, quantity, protocol, value=value, interval=interval, reason=why, used=sets.used, recognizer=name,
                label=label, note="; ".join(said + notes),
            )  # fmt: skip

        # KID
        persons = np.unique(table.subjects)
        kid, interval, notes, why = None, Interval.none(protocol.confidence, "no value"), list[str](), few
        if not few:
            sums = kernel_sums(sets.x, sets.who_x, sets.y, sets.who_y, len(persons))
            value = float(kid_replicates(sums, np.ones((1, len(persons))))[0])
            notes = [f"pairs of one person left out; over all pairs, as published: {published_kid(sums):.6g}"]
            if math.isnan(value):
                why = "one person: pairs of different persons are compared"
            else:
                kid = value
                interval = self._kid_interval(sums, list(persons), protocol)
        rows = [row(self.quantities[1], kid, interval, notes, why)]

        # the Frechet distance
        interval = Interval.none(
            protocol.confidence,
            "the distance is biased upwards, the more the fewer different images there are, and bootstrap replicates have fewer",
        )
        notes = []
        if min(n, m) <= d:
            notes.append(f"covariances of {d} features from {min(n, m)} images are rank-deficient: prefer KID")
        elif min(n, m) < FULL_RANK:
            notes.append("biased upwards with so few images: prefer KID")
        rows.append(row(self.quantities[2], None if few else frechet(sets.x, sets.y), interval, notes, few))
        return rows

    @staticmethod
    def _kid_interval(sums: KernelSums, persons: list[str], protocol: Protocol) -> Interval:
        many = len(persons) > MANY_PERSONS
        draws = intervals.person_draws(persons, protocol.curve_replicates if many else protocol.replicates, protocol.seed)
        return intervals.percentile_interval(
            kid_replicates(sums, draws),
            protocol.confidence,
            int(np.count_nonzero((sums.nx > 0) & (sums.ny > 0))),
            "person bootstrap, pairs of one person left out",
        )

    def _lpips_row(self, table: Table, protocol: Protocol) -> Row:
        column = table.measures.get("lpips_face", np.full(table.n, np.nan))
        use = np.isfinite(column) & ~table.withheld
        value: float | None = None
        reason, interval = "", Interval.none(protocol.confidence, "no value")
        if use.any():
            persons, who = np.unique(table.subjects, return_inverse=True)
            value = float(column[use].mean())
            draws = intervals.person_draws(list(persons), protocol.replicates, protocol.seed)
            interval = intervals.mean_interval(
                intervals.per_person(who, np.where(use, column, 0.0), len(persons)),
                intervals.per_person(who, use, len(persons)),
                draws,
                protocol.confidence,
            )
        elif table.withheld.all():
            reason = "nothing was released"
        else:
            reason = self._lpips.missing() or "no image has a face region to compare"
        notes = []
        if value is not None:
            if lost := int((~use & ~table.withheld).sum()):
                notes.append(f"{lost} images have no face region to compare")
            if table.withheld.any():
                notes.append(f"{int(table.withheld.sum())} withheld images are not in the mean")
        return self._row(
            table, self.quantities[0], protocol, value=value, interval=interval, reason=reason, used=use, label=self.net,
            note="; ".join(notes),
        )  # fmt: skip

    @staticmethod
    def _row(
        table: Table,
        quantity: Quantity,
        protocol: Protocol,
        *,
        value: float | None = None,
        interval: Interval | None = None,
        reason: str = "",
        used: npt.NDArray[np.bool_] | None = None,
        **more: Any,
    ) -> Row:
        interval = interval if value is not None and interval is not None else Interval.none(protocol.confidence, "no value")
        return Row(
            dataset=table.dataset,
            method=table.method,
            metric=quantity.name,
            unit=quantity.unit,
            higher_is_better=quantity.higher_is_better,
            value=value,
            reason=reason,
            lo=interval.lo,
            hi=interval.hi,
            ci_level=protocol.confidence,
            ci_method=interval.method,
            ci_reason=interval.reason,
            n_images=0 if used is None else int(used.sum()),
            n_persons=0 if used is None else len(np.unique(table.subjects[used])),
            n_failed=int(table.withheld.sum()),
            n_fta=int(table.fta.sum()),
            family=quantity.family,
            **more,
        )
