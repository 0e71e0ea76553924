"""Person segmentation for training data: the background of a training face is black.

Segmenters register by name in :data:`SEGMENTERS`; a function that makes one takes nothing and returns a callable from an
RGB uint8 image (H, W, 3) to a mask float32 (H, W) in [0, 1] (the share of the person in each pixel).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deidbench.errors import InputError
from deidbench.types import Floats, Image

Segmenter = Callable[[Image], Floats]


def _none() -> Segmenter:
    return lambda image: np.ones(image.shape[:2], np.float32)


def _selfie() -> Segmenter:
    """MediaPipe's selfie segmentation (256 x 256 general model; its weights are in the wheel)."""
    from deidbench.faces import quiet_native_stderr

    with quiet_native_stderr():
        from deidbench.faces import mediapipe_solutions

        graph = mediapipe_solutions().selfie_segmentation.SelfieSegmentation(model_selection=0)
        graph.process(np.zeros((64, 64, 3), np.uint8))  # the first inference is what prints

    def segment(image: Image) -> Floats:
        return np.asarray(graph.process(image).segmentation_mask, np.float32)

    return segment


SEGMENTERS: dict[str, Callable[[], Segmenter]] = {"selfie": _selfie, "none": _none}


def segmenter(name: str) -> Segmenter:
    """The segmenter called ``name``, or ``module:function`` from outside.  Raises InputError for an unknown one."""
    if name in SEGMENTERS:
        return SEGMENTERS[name]()
    module, colon, function = name.partition(":")
    if colon:
        import importlib

        try:
            made: Segmenter = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise InputError(f"segmenter {name!r} cannot be imported: {error}", "name it as module:function") from error
        return made
    raise InputError(f"unknown segmenter {name!r}", f"one of {', '.join(SEGMENTERS)}, or module:function of your own")
