"""Generator and discriminator, with the key names and shapes of the official checkpoints.

The generator is pix2pix's U-Net (Isola et al., CVPR 2017) with instance normalisation and no biases; 512 pixels with width
64 is exactly GANonymization's network.  Smaller ones differ in depth and width alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Blocks of the official network; deeper ones do not exist (512 pixels end at 2 x 2).
DEEPEST = 8


def depth_of(side: int) -> int:
    """Down blocks for a side in pixels: log2 of it, at most 8."""
    if side < 32 or side & (side - 1):
        raise ValueError(f"side {side} is no power of two of at least 32")
    return min(side.bit_length() - 1, DEEPEST)


@dataclass(frozen=True)
class Shape:
    """What determines a generator's layout.

    side: of its square input and output in pixels, a power of two from 32.  width: channels of the first block (the
    deepest have 8 times as many).  dropout: in the blocks with the most channels, while training.
    """

    side: int = 512
    width: int = 64
    dropout: float = 0.5

    @property
    def depth(self) -> int:
        return depth_of(self.side)

    def channels(self) -> list[int]:
        """Output channels of each down block."""
        return [min(self.width * 2**i, self.width * 8) for i in range(self.depth)]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance normalisation without affine parameters (Ulyanov et al. 2016)."""
    return functional.instance_norm(x, eps=eps)


class _InstanceNorm(nn.Module):
    """Without parameters and buffers, so that a state dict holds convolutions only."""

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x)


class Down(nn.Module):
    """Halves the side: convolution 4 x 4, stride 2, no bias; [instance norm]; leaky ReLU 0.2; [dropout]."""

    def __init__(self, inside: int, out: int, norm: bool, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inside, out, 4, 2, 1, bias=False)]
        if norm:
            layers.append(_InstanceNorm())
        layers.append(nn.LeakyReLU(0.2))
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class Up(nn.Module):
    """Doubles the side: transposed convolution 4 x 4, stride 2, no bias; instance norm; ReLU; [dropout]; then the skip is joined."""

    def __init__(self, inside: int, out: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ConvTranspose2d(inside, out, 4, 2, 1, bias=False), _InstanceNorm(), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat((self.model(x), skip), 1)


class Generator(nn.Module):
    """Landmark images float (n, 3, s, s) in [-1, 1] -> faces (n, 3, s, s) in [-1, 1]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        channels = shape.channels()
        depth = len(channels)
        most = 8 * shape.width
        for i, out in enumerate(channels):
            block = Down(
                3 if i == 0 else channels[i - 1], out, norm=0 < i < depth - 1, dropout=shape.dropout if out == most else 0.0
            )
            self.add_module(f"down{i + 1}", block)
        for i in range(depth - 1):
            inside = channels[-1] if i == 0 else 2 * channels[depth - 1 - i]
            out = channels[depth - 2 - i]
            self.add_module(f"up{i + 1}", Up(inside, out, shape.dropout if out == most else 0.0))
        self.final = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(2 * channels[0], 3, 4, padding=1), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i in range(self.shape.depth):
            x = self.get_submodule(f"down{i + 1}")(x)
            skips.append(x)
        for i in range(self.shape.depth - 1):
            x = self.get_submodule(f"up{i + 1}")(x, skips[-2 - i])
        out: Tensor = self.final(x)
        return out


class Discriminator(nn.Module):
    """PatchGAN: face and landmark image, both float (n, 3, s, s) -> scores (n, 1, s / 16, s / 16)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 6
        for i, out in enumerate((width, 2 * width, 4 * width, 8 * width)):
            layers.append(nn.Conv2d(inside, out, 4, 2, 1))
            if i:
                layers.append(_InstanceNorm())
            layers.append(nn.LeakyReLU(0.2))
            inside = out
        layers += [nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(inside, 1, 4, padding=1, bias=False)]
        self.model = nn.Sequential(*layers)

    def forward(self, face: Tensor, landmarks: Tensor) -> Tensor:
        out: Tensor = self.model(torch.cat((face, landmarks), 1))
        return out


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Weights N(0, 0.02), biases 0, as in pix2pix."""
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
