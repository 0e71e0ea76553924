"""Runs inside the environment of DeepPrivacy2, in the root of its checkout: answers one request per image.

Plain Python 3.8 with what DeepPrivacy2 itself needs (torch, numpy, Pillow), and the channel to deidbench.

A request is a line of JSON on standard input: ``{"id", "name", "seed", "boxes"}`` with the name of a PNG in ``EXCHANGE/in``
and, with ``--detections suite``, the faces as whole pixels.  An answer is a line that begins with ``@deidbench``.  The picture goes to
``EXCHANGE/out`` under the same name.  When standard input ends, the process ends, whatever it is doing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import random
import sys
import urllib.request
from pathlib import Path
from typing import Any

from deidbench_channel import drive  # type: ignore[import-not-found]  # deidbench lays it beside, on PYTHONPATH


def forbid_downloads() -> None:
    """Weights come from the checked folder or not at all; the program would fetch what is missing without a word."""

    def refuse(url: Any, *_: Any, **__: Any) -> Any:
        address = url if isinstance(url, str) else getattr(url, "full_url", str(url))
        raise RuntimeError(
            "a file is missing that DeepPrivacy2 would download from {}; put it, as {}, into the weights folder".format(
                address, address.rsplit("/", 1)[-1]
            )
        )

    urllib.request.urlopen = refuse  # before torch is imported, which takes it from here


class Program:
    """DeepPrivacy2's own anonymizer behind a config of its checkout."""

    def __init__(self, config: str, detections: str, device: str, truncation: float) -> None:
        import numpy
        import torch

        self._numpy, self._torch = numpy, torch
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("device = 'cuda', but torch finds no GPU in this environment")
        # The same picture must come out the same however often it is asked for.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self.truncation, self.own = truncation, detections == "own"
        self._tops = importlib.import_module("tops")
        cfg = importlib.import_module("dp2.utils").load_config(config)
        if not self.own:
            cfg.anonymizer.detector = None  # its detector needs weights, and would not be asked
        self._anonymizer = importlib.import_module("tops.config").instantiate(cfg.anonymizer, load_cache=False)
        self._face_detection = importlib.import_module("dp2.detection.structures").FaceDetection
        self._post = dict(cfg.detector.face_post_process_cfg)
        self._check_trained()

    def _check_trained(self) -> None:
        """The program warns and goes on with random weights where a generator has no checkpoint; that is no anonymizer."""
        for kind, cfg in self._anonymizer.generator_cfgs.items():
            generator = self._anonymizer.generators[kind]
            learnt = sum(p.numel() for p in generator.parameters())
            if learnt and "model_url" not in cfg.common and not any(Path(str(cfg.checkpoint_dir)).glob("*")):
                raise RuntimeError(
                    f"the generator of this config has {learnt} parameters and no checkpoint: its weights would be random"
                )

    def about(self) -> dict[str, Any]:
        versions = {"python": platform.python_version(), "numpy": self._numpy.__version__, "torch": self._torch.__version__}
        return dict(versions, device=str(self._tops.get_device()))

    def seed(self, seed: int) -> None:
        """Its latents come from numpy's and torch's global generators, so they are set for every image."""
        random.seed(seed)
        self._numpy.random.seed(seed % 2**32)
        self._torch.manual_seed(seed % 2**63)

    def run(self, source: Path, target: Path, seed: int, boxes: list[list[int]] | None) -> dict[str, Any]:
        from PIL import Image

        numpy, torch = self._numpy, self._torch
        with Image.open(str(source)) as picture:
            pixels = numpy.ascontiguousarray(numpy.array(picture.convert("RGB")).transpose(2, 0, 1))
        image = torch.from_numpy(pixels)
        self.seed(seed)
        with torch.no_grad():
            if self.own:
                found = self._anonymizer.detector(self._tops.to_cuda(image))
            else:
                found = [self._face_detection(torch.LongTensor(boxes), **self._post)]
            where = [[int(v) for v in box] for group in found for box in group.boxes]
            if not where:
                return {"status": "no_face"}
            out = self._anonymizer(
                image,
                detections=found,
                track=False,
                amp=True,  # the program's default
                multi_modal_truncation=False,
                truncation_value=self.truncation,
            )
        result = out.detach().cpu().numpy()
        if str(result.dtype) != "uint8" or result.ndim != 3 or result.shape[0] != 3:
            return {"status": "failed", "reason": f"the program returned {result.dtype} {result.shape}, not uint8 (3, H, W)"}
        part = target.with_suffix(".part")
        Image.fromarray(numpy.ascontiguousarray(result.transpose(1, 2, 0))).save(str(part), format="PNG", compress_level=1)
        os.replace(str(part), str(target))  # noqa: PTH105
        return {"status": "ok", "boxes": where}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--exchange", type=Path, required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--detections", choices=("own", "suite"), required=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), required=True)
    parser.add_argument("--truncation", type=float, required=True)
    given = parser.parse_args()

    def load() -> Program:
        here = Path(__file__).resolve().parent
        sys.path[:] = [str(Path.cwd()), *(p for p in sys.path if Path(p).resolve() != here)]  # the checkout, not this folder
        forbid_downloads()
        return Program(given.config, given.detections, given.device, given.truncation)

    def work(program: Program, source: Path, target: Path, request: dict[str, Any]) -> dict[str, Any]:
        return program.run(source, target, int(request["seed"]), request.get("boxes"))

    drive(load, work, given.exchange)


if __name__ == "__main__":
    main()
