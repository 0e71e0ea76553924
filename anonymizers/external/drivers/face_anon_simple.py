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
        import face_alignment
        import torch
        from diffusers import AutoencoderKL, DDPMScheduler
        from src.diffusers.models.referencenet.referencenet_unet_2d_condition import ReferenceNetModel
        from src.diffusers.models.referencenet.unet_2d_condition import UNet2DConditionModel
        from src.diffusers.pipelines.referencenet.pipeline_referencenet import StableDiffusionReferenceNetPipeline
        from transformers import CLIPImageProcessor, CLIPVisionModel
        from utils.anonymize_faces_in_image import anonymize_faces_in_image

        self._torch, self._anonymize = torch, anonymize_faces_in_image
        pipe = StableDiffusionReferenceNetPipeline(
            unet=UNet2DConditionModel.from_pretrained(FACE, subfolder="unet", use_safetensors=True),
            referencenet=ReferenceNetModel.from_pretrained(FACE, subfolder="referencenet", use_safetensors=True),
            conditioning_referencenet=ReferenceNetModel.from_pretrained(
                FACE, subfolder="conditioning_referencenet", use_safetensors=True
            ),
            vae=AutoencoderKL.from_pretrained(DIFFUSION, subfolder="vae", use_safetensors=True),
            feature_extractor=CLIPImageProcessor.from_pretrained(CLIP, use_safetensors=True),
            image_encoder=CLIPVisionModel.from_pretrained(CLIP, use_safetensors=True),
            scheduler=DDPMScheduler.from_pretrained(DIFFUSION, subfolder="scheduler", use_safetensors=True),
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
