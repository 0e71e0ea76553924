"""Runs inside the environment of NullFace, in the root of its checkout; see its recipe.

Its function reads the models anew for every image; what stays resident is the interpreter with its imports.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from deidbench_channel import drive  # type: ignore[import-not-found]  # deidbench lays it beside, on PYTHONPATH

DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def load() -> Any:
    if sys.argv[sys.argv.index("--device") + 1] != "cuda":
        raise RuntimeError("NullFace names its device cuda:N in its code: it needs a CUDA GPU")
    sys.path.insert(0, str(Path.cwd()))
    from anonymize_face import anonymize_face  # type: ignore[import-not-found]

    return anonymize_face


def work(anonymize_face: Any, source: Path, target: Path, request: dict[str, Any]) -> dict[str, Any]:
    weights = sys.argv[sys.argv.index("--weights") + 1]
    made = anonymize_face(
        image_path=str(source),
        mask_image_path="",  # none: the whole face
        sd_model_path=DIFFUSION,
        insightface_model_path=str(Path(weights) / "insightface"),
        output_log_file=os.devnull,
        seed=int(request["seed"]) % 2**32,
        **request["options"],
    )
    if made is None:
        return {"status": "no_face"}
    made.convert("RGB").save(str(target), format="PNG")
    return {}


if __name__ == "__main__":
    drive(load, work)
