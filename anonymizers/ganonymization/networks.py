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


#: Transposed convolutions with at least this many weights and an input side in this range are made by phases.
PHASES_FROM, PHASES_SIDES = 1 << 22, (4, 8, 16)


class Inference:
    """A generator that only ever runs forward on a CPU in float32: the same numbers up to rounding, in about half the time.

    What it does otherwise than the modules: activations lie channels last; the norm is worked out in place and its ReLU
    writes straight into the tensor where the skip is joined; deep transposed convolutions, where reading the weights is the
    work, are four plain 2 x 2 convolutions; and "nearest x 2, pad, 4 x 4 convolution" is one 3 x 3 convolution on the small
    image that makes the four pixels of each 2 x 2 block as channels (Shi et al., CVPR 2016).
    The weights are copied: later changes of ``generator`` are not seen.
    """

    def __init__(self, generator: Generator) -> None:
        self.shape = generator.shape
        weights = {k: v.detach().to("cpu", torch.float32) for k, v in generator.state_dict().items()}
        depth = self.shape.depth
        self._down = [_last(weights[f"down{i + 1}.model.0.weight"]) for i in range(depth)]
        self._up: list[Tensor | list[Tensor]] = []
        for i in range(depth - 1):
            weight = weights[f"up{i + 1}.model.0.weight"]
            by_phase = weight.numel() >= PHASES_FROM and self.shape.side >> (depth - i) in PHASES_SIDES
            self._up.append(_phases(weight) if by_phase else _last(weight))
        self._final = _last(_subpixel(weights["final.2.weight"]))
        self._bias = weights["final.2.bias"].repeat_interleave(4)

    def __call__(self, x: Tensor) -> Tensor:
        """As :meth:`Generator.forward` in eval mode; x float32 on the CPU.  No gradients."""
        with torch.inference_mode():
            x = _last(x)
            skips = []
            for i, weight in enumerate(self._down):
                x = functional.conv2d(x, weight, None, 2, 1)
                if 0 < i < self.shape.depth - 1:
                    _normalise(x)
                skips.append(functional.leaky_relu_(x, 0.2))
            x = skips.pop()
            for up in self._up:
                made = _by_phases(x, up) if isinstance(up, list) else functional.conv_transpose2d(x, up, None, 2, 1)
                _normalise(made)
                skip = skips.pop()
                n, c, h, w = made.shape
                x = torch.empty((n, c + skip.shape[1], h, w), memory_format=torch.channels_last)
                torch.clamp(made, min=0, out=x[:, :c])
                x[:, c:] = skip
            x = functional.conv2d(x, self._final, self._bias, padding=1).tanh_()
            return functional.pixel_shuffle(x, 2)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _normalise(x: Tensor, eps: float = 1e-5) -> None:
    """:func:`instance_norm` in place; x (n, c, h, w) lies channels last.

    Two passes, the variance from the centred values: nothing cancels.  Each image on its own, so that neither the result
    nor the memory depends on how many there are.
    """
    n, c, h, w = x.shape
    squares = torch.empty((h * w, c))
    for image in x.permute(0, 2, 3, 1).view(n, h * w, c):
        image.sub_(image.mean(0))
        torch.mul(image, image, out=squares)
        image.mul_(squares.mean(0).add_(eps).rsqrt_())


def _phases(weight: Tensor) -> list[Tensor]:
    """A transposed convolution 4 x 4, stride 2, padding 1 as four convolutions 2 x 2, one for each parity of row and column.

    Row 2m of the output has taps 3 and 1 on rows m - 1 and m of the input, row 2m + 1 taps 2 and 0 on rows m and m + 1.
    """
    return [_last(weight[:, :, 1 - a :: 2, 1 - b :: 2].flip(2, 3).transpose(0, 1)) for a in (0, 1) for b in (0, 1)]


def _by_phases(x: Tensor, weights: list[Tensor]) -> Tensor:
    n, _, h, w = x.shape
    padded = _last(functional.pad(x, (1, 1, 1, 1)))
    out = torch.empty((n, weights[0].shape[0], 2 * h, 2 * w), memory_format=torch.channels_last)
    for i, weight in enumerate(weights):
        a, b = divmod(i, 2)
        out[:, :, a::2, b::2] = functional.conv2d(_last(padded[:, :, a : a + h + 1, b : b + w + 1]), weight)
    return out


def _subpixel(weight: Tensor) -> Tensor:
    """Nearest x 2, zero pad (1, 0, 1, 0), convolution 4 x 4 with padding 1 -> the 3 x 3 kernels (4 c, inside, 3, 3) before a pixel shuffle.

    Row 2m of the output sees rows m - 1, m - 1, m, m of the small image, row 2m + 1 rows m - 1, m, m, m + 1: where a pixel is
    seen twice, its weights add up.
    """
    rows = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]]).double()
    kernels = torch.einsum("akp,blq,oipq->oabikl", rows, rows, weight.double())
    return kernels.flatten(0, 2).float()


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
