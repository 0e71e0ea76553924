"""Runs inside the environment of Face Anonymization Made Simple, in the root of its checkout; see its recipe.

Models stay resident; the generator of noise is seeded for every image, so a picture does not depend on those before it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deidbench_channel import drive  # type: ignore[import-not-found]  # deidbench lays it beside, on PYTHONPATH

FACE = "hkung/face-anon-simple"
CLIP = "openai/clip-vit-large-patch14"
DIFFUSION = "stabilityai/stable-diffusion-2-1"


class Program:
    """The pipeline as its README assembles it, and its own face alignment."""

    def __init__(self, device: str) -> None:
        sys.path.insert(0, str(Path.cwd()))
        from importlib import import_module

        face_alignment: Any = import_module("face_alignment")
        torch: Any = import_module("torch")
        diffusers: Any = import_module("diffusers")
        transformers: Any = import_module("transformers")
        models = "src.diffusers.models.referencenet"
        Reference: Any = import_module(f"{models}.referencenet_unet_2d_condition").ReferenceNetModel
        UNet: Any = import_module(f"{models}.unet_2d_condition").UNet2DConditionModel
        pipeline: Any = import_module("src.diffusers.pipelines.referencenet.pipeline_referencenet")
        anonymize_faces_in_image: Any = import_module("utils.anonymize_faces_in_image").anonymize_faces_in_image
        self._torch, self._anonymize = torch, anonymize_faces_in_image
        pipe = pipeline.StableDiffusionReferenceNetPipeline(
            unet=UNet.from_pretrained(FACE, subfolder="unet", use_safetensors=True),
            referencenet=Reference.from_pretrained(FACE, subfolder="referencenet", use_safetensors=True),
            conditioning_referencenet=Reference.from_pretrained(
                FACE, subfolder="conditioning_referencenet", use_safetensors=True
            ),
            vae=diffusers.AutoencoderKL.from_pretrained(DIFFUSION, subfolder="vae", use_safetensors=True),
            feature_extractor=transformers.CLIPImageProcessor.from_pretrained(CLIP, use_safetensors=True),
            image_encoder=transformers.CLIPVisionModel.from_pretrained(CLIP, use_safetensors=True),
            scheduler=diffusers.DDPMScheduler.from_pretrained(DIFFUSION, subfolder="scheduler", use_safetensors=True),
        )
        self._pipe = pipe.to(device)
        self._faces = face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, face_detector="sfd", device=device)
        self._device = device

    def about(self) -> dict[str, Any]:
        return {"torch": self._torch.__version__, "device": self._device}

    def run(self, source: Path, target: Path, seed: int, options: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image, ImageChops

        with Image.open(str(source)) as file:
            picture = file.convert("RGB")
        made = self._anonymize(
            image=picture.copy(),
            face_alignment=self._faces,
            pipe=self._pipe,
            generator=self._torch.manual_seed(seed % 2**63),
            **options,
        )
        made = made.convert("RGB")
        if made.size == picture.size and ImageChops.difference(made, picture).getbbox() is None:
            return {"status": "no_face"}  # it returns its input where it finds none
        made.save(str(target), format="PNG")
        return {}


def main() -> None:
    device = sys.argv[sys.argv.index("--device") + 1]

    def work(program: Program, source: Path, target: Path, request: dict[str, Any]) -> dict[str, Any]:
        return program.run(source, target, int(request["seed"]), request["options"])

    drive(lambda: Program(device), work)


if __name__ == "__main__":
    main()
