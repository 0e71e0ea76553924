"""Undoing by a network: pix2pix from the anonymised crop to the clear one, trained as GANonymization's generator is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from deidbench.anonymizers.ganonymization.train import Settings


@dataclass(frozen=True, eq=False)
class UNet:
    """A trained generator.  run: float (n, 3, side, side) in [-1, 1] -> the same.  device: where it computes."""

    run: Any
    side: int
    device: str

    def restore(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Anonymised crops uint8 (n, s, s, 3) -> what the network takes them for, same shape and type.

        One at a time: convolutions of a batch may differ in the last bit with its size.
        """
        import torch

        from deidbench.anonymizers.ganonymization.landmarks import network_input
        from deidbench.anonymizers.ganonymization.synthesis import as_images

        out = np.empty_like(crops)
        with torch.inference_mode():
            for i in range(len(crops)):
                image = as_images(self.run(network_input(framed(crops[i : i + 1], self.side)).to(self.device)))
                before, after = _rim(crops.shape[1], self.side)
                out[i] = image[0, before : self.side - after, before : self.side - after]
        return out


def settings_for(side: int, steps: int, width: int, batch: int, seed: int) -> Settings:
    """The trainer's settings: the paper's losses, for crops of ``side`` pixels and a short training.

    The learning rate is five times the paper's (measured on 14 x 14 pixelation, 300 steps: held-out mean squared error 415
    against 505), falls over the second half, and a running average of the weights is used: both steady a short training.
    """
    from deidbench.anonymizers.ganonymization.train import Settings

    return Settings(
        size=max(32, 1 << (side - 1).bit_length()),
        width=width,
        discriminator_width=max(1, width // 2),
        batch=batch,
        learning_rate=1e-3,
        decay_from=0.5,
        ema=0.99,
        seed=seed,
    )


def learn_unet(
    anonymised: npt.NDArray[np.uint8],
    clear: npt.NDArray[np.uint8],
    *,
    steps: int,
    width: int,
    batch: int,
    seed: int,
    device: str,
) -> UNet:
    """Trains on pairs, both uint8 (n, s, s, 3), for ``steps`` steps of ``batch`` pairs (at most n).

    Everything random follows from ``seed`` and the step's number: the same weights on the same machine with the same threads.
    """
    from deidbench.anonymizers.ganonymization.checkpoint import resolve_device
    from deidbench.anonymizers.ganonymization.networks import Inference
    from deidbench.anonymizers.ganonymization.train import Batch, Trainer

    device = resolve_device(device)
    settings = settings_for(clear.shape[1], steps, width, batch, seed)
    trainer = Trainer(settings, device, steps)
    n = len(clear)
    for step in range(steps):
        at = np.arange(step * batch, (step + 1) * batch)
        chosen = [
            np.random.default_rng([seed, 4, epoch]).permutation(n)[place] for epoch, place in zip(*divmod(at, n), strict=True)
        ]
        trainer.step(Batch(framed(clear[chosen], settings.size), framed(anonymised[chosen], settings.size)))
    generator = trainer.averaged()
    return UNet(Inference(generator) if device == "cpu" else generator, settings.size, device)


def framed(crops: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Crops uint8 (n, s, s, 3), s <= side, in a frame of their border pixels, as (n, 3, side, side): nothing is resampled."""
    before, after = _rim(crops.shape[1], side)
    wide = np.pad(crops, ((0, 0), (before, after), (before, after), (0, 0)), "edge")
    return np.ascontiguousarray(wide.transpose(0, 3, 1, 2))


def _rim(small: int, side: int) -> tuple[int, int]:
    return (side - small) // 2, (side - small + 1) // 2
