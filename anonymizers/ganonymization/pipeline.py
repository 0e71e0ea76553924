"""The adapter: extraction, landmarks, re-synthesis, and the face alone or back in its frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deidbench.anonymizers.base import Anonymizer
from deidbench.anonymizers.ganonymization.checkpoint import data_behind
from deidbench.anonymizers.ganonymization.detectors import NAMES as DETECTOR_NAMES
from deidbench.anonymizers.ganonymization.detectors import Detector, Found, detector
from deidbench.anonymizers.ganonymization.extraction import Cut, cut_face, edge_share, extract, oval_share, paste
from deidbench.anonymizers.ganonymization.landmarks import landmark_images
from deidbench.anonymizers.ganonymization.synthesis import Engine, checkpoint_path, engine
from deidbench.anonymizers.regions import (
    FaceProblem,
    check_choice,
    check_face,
    check_landmarks,
    check_number,
    image_fault,
    release,
)
from deidbench.errors import InputError
from deidbench.kinds import anonymizers
from deidbench.types import Anonymized, Box, FaceResult, Floats, Image, Item, Status

#: Side of the crop that FaceMesh looks at, as specified.
MESH_SIDE = 512


@dataclass(frozen=True, eq=False)
class _Job:
    """One face on its way: where it lies, its landmarks as fractions of the crop."""

    cut: Cut
    points: Floats


@anonymizers.register("ganonymization")
class Ganonymization(Anonymizer):
    """GANonymization: each face is made anew by a pix2pix generator that sees its 478 landmarks and nothing else.

    checkpoint: "" for the one that ships (128 px), or a file: official Lightning checkpoint, state dict, safetensors, or
        ``.onnx`` that ``deidbench export`` wrote.
    output: "frame" puts the new face back in its place (turned as the old one was, fading out at the border; a grey frame
        stays grey), "crop" gives the upright face alone in the generator's size, as the reference does.
    detector: "mediapipe" (the faces that the suite found), "mtcnn" or "retinaface".
    landmarks: "found" takes FaceMesh's points from the frame where the detector is MediaPipe; "crop" runs FaceMesh on the
        512 px crop, as specified.  (Other detectors give none, so there it is always the crop.)
    margin: factor on the face's box; None for what the checkpoint was trained with.
    region: what of the cut is pasted: "oval" (the outline of the landmarks, with some room), "ellipse" (inscribed in the cut),
        "box" (all of it), or "auto" (oval from a margin of 1.2 on, otherwise box: a tight cut holds no room to fade out in).
        feather: share of the face's size over which the new face fades out, 0 to 0.5 (oval: outwards, else inwards).
    size: side in pixels for files that do not say it (an official layout trained at 256).  device: "auto", "cpu", "cuda".
    precision: "fp32" or "bf16".
    """

    citation = "Hellmann et al.: GANonymization: A GAN-based Face Anonymization Framework for Preserving Emotional Expressions, ACM TOMM 2024, arXiv 2305.02143"
    licence = "Apache-2.0 (code); the shipped weights are for non-commercial research (trained on CelebA-HQ)"

    def __init__(
        self,
        checkpoint: str = "",
        output: str = "frame",
        detector: str = "mediapipe",
        landmarks: str = "found",
        margin: float | None = None,
        region: str = "auto",
        feather: float = 0.07,
        size: int | None = None,
        device: str = "auto",
        precision: str = "fp32",
    ) -> None:
        self.checkpoint = checkpoint
        self.output = output
        self.detector = detector
        self.landmarks = landmarks
        self.margin = margin
        self.region = region
        self.feather = feather
        self.size = size
        self.device = device
        self.precision = precision

    # -- what it says of itself ---------------------------------------------------------------------------------
    @property
    def needs_faces(self) -> bool:  # type: ignore[override]
        """True where the faces are the suite's; other detectors look for themselves."""
        return self.detector == "mediapipe"

    @property
    def trained_on(self) -> tuple[str, ...]:  # type: ignore[override]
        """The data that shaped the weights, as far as the file or its hash says."""
        return data_behind(checkpoint_path(self.checkpoint))

    def weights_sha256(self) -> str:
        from deidbench.weights import sha256_of

        return sha256_of(checkpoint_path(self.checkpoint))

    def validate(self) -> None:
        name = self.name
        check_choice(name, "output", self.output, ("frame", "crop"))
        check_choice(name, "detector", self.detector, DETECTOR_NAMES)
        check_choice(name, "landmarks", self.landmarks, ("found", "crop"))
        check_choice(name, "region", self.region, ("auto", "oval", "ellipse", "box"))
        check_choice(name, "precision", self.precision, ("fp32", "bf16"))
        check_number(name, "feather", self.feather, 0, 0.5)
        if self.margin is not None:
            check_number(name, "margin", self.margin, 0.5, 4)
        if not isinstance(self.checkpoint, str):
            raise InputError(
                f"{name}: checkpoint = {self.checkpoint!r} is no path", 'give a file, or "" for the one that ships'
            )
        if self.size is not None and not (
            isinstance(self.size, int) and 32 <= self.size <= 4096 and not self.size & (self.size - 1)
        ):
            raise InputError(
                f"{name}: size = {self.size!r} is not allowed", "size is a power of two from 32 to 4096, or left out"
            )
        checkpoint_path(self.checkpoint)

    def load(self) -> None:
        self.validate()
        self._ready()

    # -- resident parts, made once per process ---------------------------------------------------------------------
    def _ready(self) -> tuple[Engine, Detector | None]:
        parts: tuple[Engine, Detector | None] | None = self.__dict__.get("_parts")
        if parts is None:
            made = engine(self.checkpoint, self.size, self.device, self.precision)
            finder = None
            if self.detector != "mediapipe":
                from deidbench.anonymizers.ganonymization.checkpoint import resolve_device

                finder = detector(self.detector, resolve_device(self.device))
            parts = self.__dict__["_parts"] = (made, finder)
        return parts

    def _mesh(self, crop: Image) -> Floats | None:
        from deidbench.faces import FaceFinder

        if "_finder" not in self.__dict__:
            self.__dict__["_finder"] = FaceFinder()
        points: Floats | None = self.__dict__["_finder"].mesh(crop)
        return points

    def __getstate__(self) -> dict[str, Any]:  # weights and native graphs are made anew in each process
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    # -- work ----------------------------------------------------------------------------------------------------
    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        """One result per item; a frame with a face that could not be handled is withheld whole (see :func:`release`)."""
        self.validate()
        maker, _ = self._ready()
        ready: list[Anonymized | list[_Job | FaceResult]] = []
        for item in items:
            try:
                ready.append(self._prepare(item))
            except Exception as error:  # one bad item must not take the batch with it; the reason is kept with the item
                ready.append(Anonymized.failed(item.id, f"{type(error).__name__}: {error}"))
        points = [job.points for entry in ready if isinstance(entry, list) for job in entry if isinstance(job, _Job)]
        d = maker.description
        new = iter(maker.run(landmark_images(np.stack(points), d.side, d.render)) if points else ())
        results = []
        for item, entry in zip(items, ready, strict=True):
            if isinstance(entry, Anonymized):
                results.append(entry)
                continue
            made = [next(new) if isinstance(job, _Job) else None for job in entry]
            try:
                results.append(self._finish(item, entry, made))
            except Exception as error:  # as above
                results.append(Anonymized.failed(item.id, f"{type(error).__name__}: {error}"))
        return results

    def _prepare(self, item: Item) -> Anonymized | list[_Job | FaceResult]:
        """The item's faces, cut and with landmarks, each a job or what is wrong with it; or the item's end."""
        if fault := image_fault(item.image):
            return Anonymized.failed(item.id, fault)
        _, finder = self._ready()
        if finder is not None:
            found = finder.find(item.image)
        elif item.faces is None:
            return Anonymized.failed(item.id, f"{self.name} needs to know the faces: pass Item(faces=FaceFinder().find(image))")
        else:
            found = [Found(face) for face in item.faces]
        if not found:
            return Anonymized.no_face(item.id)
        jobs: list[_Job | FaceResult] = []
        for one in found:
            try:
                jobs.append(self._job(item.image, one))
            except FaceProblem as problem:
                jobs.append(FaceResult(problem.status, reason=problem.reason))
        return jobs

    def _job(self, image: Image, found: Found) -> _Job:
        """Raises FaceProblem for a face that cannot be cut out or has no landmarks."""
        check_face(found.face)
        d = self._ready()[0].description
        margin = d.margin if self.margin is None else self.margin
        face = found.face
        if face.landmarks is not None:
            check_landmarks(face)
        try:
            cut = cut_face(face, d.side, margin, found.eyes)
            inside = cut.box.clipped(image.shape[1], image.shape[0])
            if inside.width <= 0 or inside.height <= 0:
                raise FaceProblem(Status.FAILED, "face lies outside the image")
            if face.landmarks is not None and self.landmarks == "found":
                return _Job(cut, cut.to_crop(face.landmarks))
            larger = cut_face(face, MESH_SIDE, margin, found.eyes)
        except ValueError as error:
            raise FaceProblem(Status.FAILED, str(error)) from error
        points = self._mesh(extract(image, larger))
        if points is None:
            raise FaceProblem(Status.NO_LANDMARKS, "FaceMesh finds no landmarks in this face's crop")
        return _Job(cut, cut.to_crop(larger.to_frame(points)))

    def _finish(self, item: Item, jobs: Sequence[_Job | FaceResult], made: Sequence[Image | None]) -> Anonymized:
        done = [
            (job, new, FaceResult(Status.OK, self._box(job.cut)))
            for job, new in zip(jobs, made, strict=True)
            if isinstance(job, _Job) and new is not None
        ]
        results = iter([r for *_, r in done])
        faces = [job if isinstance(job, FaceResult) else next(results) for job in jobs]
        if any(f.status is not Status.OK for f in faces):
            return release(item.id, item.image, faces)
        if self.output == "crop":
            crops = [new.copy() for _, new, _ in done]
            largest = max(range(len(done)), key=lambda i: done[i][0].cut.size[0] * done[i][0].cut.size[1])
            return release(item.id, crops[largest], faces, crops)
        out = item.image.copy()
        out.flags.writeable = True
        grey = bool((out == out[:, :, :1]).all())
        margin = self._ready()[0].description.margin if self.margin is None else self.margin
        region = ("oval" if margin >= 1.2 else "box") if self.region == "auto" else self.region
        for job, new, _ in done:
            share = (
                oval_share(job.cut, job.points, self.feather)
                if region == "oval"
                else edge_share(job.cut, region == "ellipse", self.feather)
            )
            paste(out, _grey(new) if grey else new, job.cut, share)
        return release(item.id, out, faces)

    def _box(self, cut: Cut) -> Box:
        """Where the face lies in the output."""
        if self.output == "frame":
            return cut.box
        left, top, width, height = cut.content
        return Box(float(left), float(top), float(left + width), float(top + height))


def _grey(image: Image) -> Image:
    """Luma by ITU-R BT.601 in all three channels, uint8."""
    luma = np.rint(image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))
    return np.repeat(luma.astype(np.uint8)[:, :, None], 3, axis=2)
