"""HSEmotion (EmotiEffLib): Savchenko's networks for emotions, from their ONNX files, without the library and its downloads."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from deidbench.errors import InputError
from deidbench.kinds import classifiers
from deidbench.metrics.models.classifier_files import IMAGENET_MEAN, IMAGENET_STD, OnnxClassifier, template_crop
from deidbench.types import CropSpec
from deidbench.weights import WeightFile

#: AffectNet's classes in the order of the networks' outputs (emotiefflib 1.1.1, facial_analysis.py).
EIGHT = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
SEVEN = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")


class _Variant(NamedTuple):
    """size: side of the input in pixels.  half: pixels are scaled to -1..1 instead of by ImageNet's mean and spread."""

    words: tuple[str, ...]
    size: int
    half: bool = False


#: Multi-task networks ("mtl") have two outputs more, valence and arousal, which are left out.
VARIANTS = {
    "enet_b0_8_best_afew": _Variant(EIGHT, 224),
    "enet_b0_8_best_vgaf": _Variant(EIGHT, 224),
    "enet_b0_8_va_mtl": _Variant((*EIGHT, "-", "-"), 224),
    "enet_b2_8": _Variant(EIGHT, 260),
    "enet_b2_7": _Variant(SEVEN, 260),
    "mbf_va_mtl": _Variant((*EIGHT, "-", "-"), 112, half=True),
    "mobilevit_va_mtl": _Variant((*EIGHT, "-", "-"), 224),
}


@classifiers.register("hsemotion")
class HSEmotion(OnnxClassifier):
    """Seven or eight emotions, learnt on AffectNet; ``hsemotion:enet_b2_8``.  The file must be in place.

    variant: the model's name in EmotiEffLib.  path: the ONNX file, or the folder it is in; empty: where that library keeps it
    (``~/.emotiefflib`` or ``~/.hsemotion``) or in deidbench's folder of weights.  threads: of ONNX Runtime within one call.
    The face is cut out as by the library's MTCNN box.
    """

    citation = (
        "Savchenko, Facial expression recognition with adaptive frame rate based on multiple testing correction, ICML 2023"
    )
    licence = "Apache-2.0 (library); AffectNet, which the weights were learnt from, is for non-commercial research"
    trained_on = ("VGGFace2", "AffectNet")

    def __init__(self, variant: str = "enet_b0_8_best_afew", path: str = "", threads: int = 1) -> None:
        if variant not in VARIANTS:
            close = difflib.get_close_matches(variant, VARIANTS, n=2, cutoff=0.5)
            raise InputError(
                f"classifier 'hsemotion' has no model {variant!r}",
                f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(VARIANTS)}",
            )
        spec = VARIANTS[variant]
        self.variant = variant
        super().__init__(
            path,
            "emotion",
            spec.words,
            spec.size,
            127.5 if spec.half else IMAGENET_MEAN,
            127.5 if spec.half else IMAGENET_STD,
            template="mtcnn",
            threads=threads,
        )

    @property
    def crop(self) -> CropSpec:
        return template_crop("mtcnn", self.size)

    @property
    def weights(self) -> WeightFile:
        home = Path.home()
        return WeightFile(
            name=f"hsemotion:{self.variant}",
            filename=f"{self.variant}.onnx",
            licence=self.licence,
            citation=self.citation,
            trained_on=self.trained_on,
            install="pip install emotiefflib (it downloads the file when a recogniser with engine='onnx' is made)",
            folders=(home / ".emotiefflib", home / ".hsemotion"),
        )

    def _file(self) -> Path:
        return self.weights.locate(self.path)

    @property
    def _source(self) -> str:
        return self.path or self.weights.filename
