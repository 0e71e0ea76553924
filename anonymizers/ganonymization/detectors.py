"""Face detectors by name: who finds the faces that are cut out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from deidbench.errors import InputError, MissingError
from deidbench.types import Box, Face, Image
from deidbench.weights import package_folder

#: Score from which a detection counts, as the reference has it.
LEAST_SCORE = 0.9


class Found(NamedTuple):
    """A face, and its eyes (2, 2: left and right of the image, pixels) where the detector knows them and no landmarks."""

    face: Face
    eyes: np.ndarray[Any, np.dtype[np.float64]] | None = None


class Detector(Protocol):
    def find(self, image: Image) -> list[Found]:
        """All faces of an RGB uint8 (H, W, 3) image, largest first."""


class Mtcnn:
    """MTCNN of facenet-pytorch (its weights are in the wheel; Zhang et al. 2016)."""

    def __init__(self, device: str) -> None:
        try:
            from facenet_pytorch import MTCNN
        except ImportError as error:
            raise MissingError(
                f"facenet-pytorch cannot be imported: {error}", "pip install --no-deps facenet-pytorch"
            ) from error
        self._model = MTCNN(keep_all=True, device=device, select_largest=False)

    def find(self, image: Image) -> list[Found]:
        h, w = image.shape[:2]
        if min(h, w) < 20:  # its own least face; smaller frames break it
            return []
        boxes, scores, points = self._model.detect(np.ascontiguousarray(image), landmarks=True)
        if boxes is None:
            return []
        faces = [
            Found(Face(Box(*(float(v) for v in box)), min(float(score), 1.0)), np.asarray(five[:2], np.float64))
            for box, score, five in zip(boxes, scores, points, strict=True)
            if score >= LEAST_SCORE
        ]
        return sorted(faces, key=lambda f: (-f.face.box.area, f.face.box))


#: The engines of deepface in its own order of precedence: the package that each needs and the weight file that it reads.
ENGINES = {
    "tensorflow": ("tensorflow", "retinaface.h5"),
    "pytorch": ("torch", "retinaface.pth"),
    "onnx": ("onnxruntime", "retinaface.onnx"),
}
_ENGINE_VARIABLE = "DEEPFACE_BACKEND_ENGINE"


class RetinaFace:
    """RetinaFace through deepface (Deng et al. 2020).

    deepface would download weights that are missing; here the file must be in place before deepface is asked for anything.
    """

    def __init__(self, device: str) -> None:
        folder = Path(os.environ.get("DEEPFACE_HOME", "") or Path.home()) / ".deepface" / "weights"
        named = os.environ.get(_ENGINE_VARIABLE, "").strip().lower()
        usable = {e: f for e, (package, f) in ENGINES.items() if package_folder(package) and named in ("", e)}
        ready = next((e for e, f in usable.items() if (folder / f).is_file()), None)
        if ready is None:
            files = " or ".join(usable.values()) or "retinaface.onnx"
            raise MissingError(
                f"RetinaFace of deepface is not ready: its weights are not in {folder}",
                f'pip install deepface retina-face, and put {files} (deepface\'s release v1.0) there; or detector = "mtcnn"',
            )
        os.environ.setdefault(_ENGINE_VARIABLE, ready)  # else deepface takes the first engine whose package is there
        try:
            from deepface import DeepFace
            from deepface.modules import modeling

            modeling.build_model(task="face_detector", model_name="retinaface")
        except (ImportError, ValueError, OSError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MissingError(
                f"RetinaFace of deepface is not ready: {text}",
                'pip install deepface retina-face; or detector = "mtcnn"',
            ) from error
        self._extract = DeepFace.extract_faces

    def find(self, image: Image) -> list[Found]:
        # deepface takes BGR; it answers a frame without a face with the whole frame at confidence 0
        results = self._extract(
            np.ascontiguousarray(image[:, :, ::-1]), detector_backend="retinaface", enforce_detection=False, align=False
        )
        faces = []
        for result in results:
            score, area = float(result["confidence"]), result["facial_area"]
            if score < LEAST_SCORE:
                continue
            x, y, w, h = (float(area[k]) for k in "xywh")
            eyes = None
            if area.get("left_eye") and area.get("right_eye"):
                # deepface names the eyes from the person's side
                eyes = np.array(sorted((area["left_eye"], area["right_eye"])), np.float64)
            faces.append(Found(Face(Box(x, y, x + w, y + h), min(score, 1.0)), eyes))
        return sorted(faces, key=lambda f: (-f.face.box.area, f.face.box))


DETECTORS: dict[str, type[Mtcnn] | type[RetinaFace]] = {"mtcnn": Mtcnn, "retinaface": RetinaFace}
NAMES = ("mediapipe", *DETECTORS)


def detector(name: str, device: str) -> Detector:
    """The detector called ``name``, ready.  Raises InputError for an unknown one, MissingError where it cannot run."""
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}", f"one of {', '.join(NAMES)}")
    return DETECTORS[name](device)
