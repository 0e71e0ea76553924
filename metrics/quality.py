"""Image quality: how much of the picture is left, as SSIM and PSNR against the original."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from deidbench.kinds import metrics
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Table
from deidbench.records import Row
from deidbench.types import Box, Face, Image

#: The face region: the box of the original's face, this much larger, so that hairline and chin are in it.
MARGIN = 1.3
#: Regions are compared at no more than this many pixels a side: the scale at which people look at a face.
LONGEST = 512
#: Side of SSIM's window (uniform), Wang et al. 2004 as scikit-image computes it by default.
WINDOW = 7


def _region(image: Image, box: Box | None) -> Image | None:
    """The part of ``image`` in ``box`` (all of it for None), shrunk to LONGEST; None where nothing is inside."""
    import cv2

    h, w = image.shape[:2]
    if box is not None:
        b = box.clipped(w, h)
        x0, y0, x1, y1 = math.floor(b.x0), math.floor(b.y0), math.ceil(b.x1), math.ceil(b.y1)
        if x1 - x0 < 1 or y1 - y0 < 1:
            return None
        image = image[y0:y1, x0:x1]
        h, w = image.shape[:2]
    scale = LONGEST / max(h, w)
    if scale < 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return image


def ssim(a: Image, b: Image) -> float:
    """Structural similarity of two RGB uint8 images of one shape, in [-1, 1]; mean over channels.

    Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004, with the conventions of scikit-image's
    ``structural_similarity(channel_axis=2, data_range=255)``: uniform 7 x 7 window, sample covariance, borders left out.
    Written here because that function takes two to five times as long; a test holds the two equal to 1e-9.
    Equal images give exactly 1.  NaN for images that differ and are smaller than the window.
    """
    import cv2

    if np.array_equal(a, b):
        return 1.0
    if min(a.shape[:2]) < WINDOW:
        return math.nan
    if all(np.array_equal(x[..., 0], x[..., c]) for x in (a, b) for c in (1, 2)):
        a, b = a[..., :1], b[..., :1]  # grey: three equal channels have one mean
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        half = WINDOW // 2
        filtered = cv2.boxFilter(z, -1, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT)
        return np.asarray(filtered, np.float64)[half:-half, half:-half]

    n = WINDOW * WINDOW
    sample = n / (n - 1)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = sample * (mean(x * x) - mx * mx), sample * (mean(y * y) - my * my), sample * (mean(x * y) - mx * my)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(index.mean())


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio in dB of two RGB uint8 images of one shape; inf for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@metrics.register("quality")
class Quality(Metric):
    """SSIM and PSNR of output against original, on the face and on the whole frame.

    Both are taken on the region of the *original's* face, where crop and paste-back methods meet.  Withheld images have
    no quality: they are left out of the mean and counted.
    """

    version = "1"
    citation = "Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 2004"
    measures = ("ssim_face", "ssim_frame", "psnr_face", "psnr_frame")
    quantities = (
        Quantity("quality.ssim_face", "SSIM, face", "ssim", True, "utility", "quality"),
        Quantity("quality.ssim_frame", "SSIM, frame", "ssim", True, "utility", "quality"),
        Quantity("quality.psnr_face", "PSNR, face", "dB", True, "utility", "quality"),
        Quantity("quality.psnr_frame", "PSNR, frame", "dB", True, "utility", "quality"),
    )

    def measure(self, original: Image, anonymised: Image, face: Face | None, found: Face | None = None) -> Mapping[str, float]:
        """NaN for the face where the original has none, or where the region is smaller than SSIM's window."""
        values = dict.fromkeys(self.measures, math.nan)
        boxes = {"frame": None} if face is None else {"frame": None, "face": face.box.scaled(MARGIN)}
        for where, box in boxes.items():
            a, b = _region(original, box), _region(anonymised, box)
            if a is not None and b is not None:
                values[f"ssim_{where}"], values[f"psnr_{where}"] = ssim(a, b), psnr(a, b)
        return values

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        return Findings([self._row(anonymised, q, protocol) for q in self.quantities], [])

    @staticmethod
    def _row(table: Table, quantity: Quantity, protocol: Protocol) -> Row:
        from deidbench.stats.evidence import Evidence
        from deidbench.stats.intervals import Interval, mean_interval, per_person, person_draws

        column = table.measures[quantity.name.removeprefix("quality.")]
        equal = np.isposinf(column)  # PSNR of equal images: no number to average
        use = np.isfinite(column)
        persons, who = np.unique(table.subjects, return_inverse=True)
        value: float | None = None
        evidence = None
        reason, interval = "", Interval.none(protocol.confidence, "no value")
        if use.any():
            value = float(column[use].mean())
            draws = person_draws(list(persons), protocol.replicates, protocol.seed)
            sums = per_person(who, np.where(use, column, 0.0), len(persons))
            counts = per_person(who, use.astype(np.float64), len(persons))
            interval = mean_interval(sums, counts, draws, protocol.confidence)
            evidence = Evidence.sums("mean", sums, counts)
        elif equal.any():
            reason = "every released image equals its original: the PSNR is infinite"
        elif table.withheld.all():
            reason = "nothing was released"
        else:
            reason = "no image has a region to compare"
        notes = []
        if equal.any():
            notes.append(f"{int(equal.sum())} images equal their original (infinite) and are not in the mean")
        if missing := int((~use & ~equal & ~table.withheld).sum()):
            notes.append(f"{missing} images have no region to compare")
        if table.withheld.any():
            notes.append(f"{int(table.withheld.sum())} withheld images are not in the mean")
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
            n_images=int(use.sum()),
            n_persons=_count(table.subjects[use]),
            n_failed=int(table.withheld.sum()),
            n_fta=int(table.fta.sum()),
            family=quantity.family,
            note="; ".join(notes),
            evidence=evidence,
        )


def _count(subjects: npt.NDArray[np.str_]) -> int:
    return len(np.unique(subjects))
