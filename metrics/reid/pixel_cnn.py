"""A small convolutional network trained from scratch on the anonymised crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.kinds import attackers
from deidbench.metrics.base import Table
from deidbench.metrics.reid._learning import (
    Discriminant,
    Labels,
    arcface,
    best_discriminant,
    crops_of,
    enough,
    reciprocal_rank,
    running_mean,
    seeded,
    unit,
    who,
)
from deidbench.metrics.reid.base import PIXELS, TrainedAttacker
from deidbench.metrics.reid.pixel_lda import Components, principal_components
from deidbench.metrics.reid.training import Training
from deidbench.types import Floats

if TYPE_CHECKING:
    import torch

#: Sides that :func:`smallest_side` tries, in this order.
SIDES = (7, 14, 28, 56)
#: Share of the pixels' variance that a smaller side may lose.
_LOSS = 0.002
_BATCH = 64


def shrunk(crops: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """uint8 (n, side, side, 3): means over areas."""
    import cv2

    if crops.shape[1:3] == (side, side):
        return crops
    small = [cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA) for crop in crops]
    return np.stack(small) if small else np.empty((0, side, side, 3), np.uint8)


def smallest_side(crops: npt.NDArray[np.uint8], at_most: int = 64) -> int:
    """The smallest side from which the crops can be had back (by repeating or by interpolating), else the largest in SIDES.

    Had back means: what is missing has less than 0.2 % of the variance between pixels of the same place.  Judged on ``at_most`` crops.
    """
    import cv2

    some = crops[:: max(1, len(crops) // at_most)][:at_most]
    spread = np.mean(np.var(some.astype(np.float32), axis=0)) + np.mean(np.var(some.astype(np.float32), axis=(1, 2))) + 1e-6
    full = (crops.shape[2], crops.shape[1])
    for side in SIDES:
        small = shrunk(some, side)
        for how in (cv2.INTER_NEAREST, cv2.INTER_CUBIC):
            back = np.stack([cv2.resize(s, full, interpolation=how) for s in small])
            if np.mean((back.astype(np.float32) - some) ** 2) < _LOSS * spread:
                return side
    return SIDES[-1]


# --- Where a pixel belongs ---------------------------------------------------------------------------------------------

#: Side of the layout that scrambled pixels are put into.
LAYOUT_SIDE = 28
#: Neighbours of a pixel in the graph; 8 touch a pixel in a grid.
_NEIGHBOURS = 8
_LANDMARKS = 100


def is_scrambled(crops: npt.NDArray[np.uint8], at_most: int = 64) -> bool:
    """Whether neighbouring pixels are hardly more alike than pixels anywhere in the crop: one has shuffled them."""
    x = crops[:: max(1, len(crops) // at_most)][:at_most].astype(np.float32).mean(3)
    beside = np.mean((x[:, :, 1:] - x[:, :, :-1]) ** 2) + np.mean((x[:, 1:] - x[:, :-1]) ** 2)
    anywhere = 4 * np.mean(np.var(x, axis=(1, 2)))
    return bool(beside > 0.5 * anywhere > 0)


def recovered_layout(
    crops: npt.NDArray[np.uint8], typical: npt.NDArray[np.floating[Any]], side: int = LAYOUT_SIDE, seed: int = 0
) -> npt.NDArray[np.intp]:
    """Which pixels belong to which cell of a picture, learnt from how alike pixel positions are over many images.

    crops: uint8 (n, size, size, 3) whose pixels were all shuffled in the same way; size is a multiple of ``side``.  typical: (size,
    size, 3), the mean of clear crops of anybody, used only to choose among the eight ways to turn and mirror the layout.  Returns
    (side * side, pixels per cell) flat pixel indices.

    Neighbours in a picture are the most alike over images, so that each pixel is joined to those most like it, and path lengths in
    that graph are distances in the picture up to a smooth distortion: two-dimensional scaling of them gives positions (Le Roux et al.,
    Learning the 2-D Topology of Images, NIPS 2007; Tenenbaum et al., Isomap, 2000; landmarks: de Silva & Tenenbaum 2004).  Positions
    are turned to the axes of the square (fourth moments are least there) and spread evenly by their ranks.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    size = crops.shape[1]
    pixels = size * size
    some = crops[np.sort(np.random.default_rng(seed).permutation(len(crops))[:600])]
    x = some.reshape(len(some), pixels, 3).astype(np.float32)
    x -= x.mean(1, keepdims=True)
    x /= np.maximum(x.std(1, keepdims=True), 1)
    x = np.ascontiguousarray(x.transpose(1, 0, 2).reshape(pixels, -1))
    squared = np.einsum("ij,ij->i", x, x)
    nearest = np.empty((pixels, _NEIGHBOURS), np.intp)
    for start in range(0, pixels, 1024):
        rows = slice(start, min(start + 1024, pixels))
        distance = squared[None] - 2 * (x[rows] @ x.T)
        distance[np.arange(rows.stop - start), np.arange(start, rows.stop)] = np.inf
        nearest[rows] = np.argpartition(distance, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    origin = np.repeat(np.arange(pixels), _NEIGHBOURS)
    graph = csr_matrix((np.ones(len(origin)), (origin, nearest.reshape(-1))), shape=(pixels, pixels))
    graph = graph.maximum(graph.T)
    # Landmarks far from one another, each path length to all pixels.
    landmarks, paths = [0], [dijkstra(graph, indices=0, unweighted=True)]
    far = paths[0].copy()
    for _ in range(_LANDMARKS - 1):
        landmarks.append(int(np.argmax(far)))
        paths.append(dijkstra(graph, indices=landmarks[-1], unweighted=True))
        far = np.minimum(far, paths[-1])
    length = np.array(paths)
    known = np.isfinite(length)
    length = np.where(known, length, 1 + length[known].max()) ** 2
    between = length[:, landmarks]
    centre = np.eye(len(landmarks)) - 1 / len(landmarks)
    values, vectors = np.linalg.eigh(-0.5 * centre @ between @ centre)
    values, vectors = np.maximum(values[-2:], 1e-9), vectors[:, -2:]
    at = -0.5 * (length - between.mean(1)[:, None]).T @ vectors / np.sqrt(values)
    at = (at - at.mean(0)) / np.maximum(at.std(0), 1e-9)

    def turned(angle: float) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = at @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return out

    at = turned(min(np.linspace(0, np.pi / 2, 90, endpoint=False), key=lambda a: float(np.sum(turned(float(a)) ** 4))))
    columns = np.argsort(at[:, 0], kind="stable").reshape(size, size)
    grid = np.stack(
        [column[np.argsort(at[column, 1], kind="stable")] for column in columns], axis=1
    )  # (size, size) pixel indices
    average = crops.reshape(len(crops), pixels, 3).mean(0)
    ways = [np.rot90(g, k) for g in (grid, grid[:, ::-1]) for k in range(4)]
    alike = [np.corrcoef(average[way.reshape(-1)].reshape(-1), typical.reshape(-1))[0, 1] for way in ways]
    best = ways[int(np.argmax(np.nan_to_num(alike)))]
    step = size // side
    return np.ascontiguousarray(best.reshape(side, step, side, step).transpose(0, 2, 1, 3).reshape(side * side, step * step))


def laid_out(crops: npt.NDArray[np.uint8], layout: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """uint8 (n, side, side, 3): means over the pixels of each cell."""
    side, x = round(len(layout) ** 0.5), crops.reshape(len(crops), -1, 3)
    out = np.empty((len(crops), side, side, 3), np.uint8)
    for i in range(0, len(x), 256):
        out[i : i + 256] = np.rint(x[i : i + 256][:, layout].mean(2, dtype=np.float32)).reshape(-1, side, side, 3)
    return out


# --- The attacker ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Linear:
    """Principal components and discriminant over the shrunk pictures: errs elsewhere than the network does."""

    even: bool
    components: Components
    map: Discriminant

    def __call__(self, small: npt.NDArray[np.uint8]) -> Floats:
        x = evened_sides(small) if self.even else small
        return np.nan_to_num(unit(self.map(self.components(x)), np.zeros(len(small), np.bool_)))


def evened_sides(small: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Each picture's mean with its mirror image: takes out light from one side and turned heads, and halves what is to be learnt."""
    out: npt.NDArray[np.uint8] = np.rint((small.astype(np.float32) + small[:, :, ::-1]) / 2).astype(np.uint8)
    return out


def _linear(small: npt.NDArray[np.uint8], person: Labels, unseen: npt.NDArray[np.uint8], unseen_person: Labels) -> _Linear:
    best: _Linear | None = None
    for even in (True, False):
        x, y = (evened_sides(small), evened_sides(unseen)) if even else (small, unseen)
        for evened in (True, False):
            components = principal_components(x, True, evened, 600)
            found = best_discriminant(components(x), person, components(y), unseen_person, dims=(0, 100))
            if best is None or found.score > best.map.score:
                best = _Linear(even, components, found)
    assert best is not None
    return best


@attackers.register("pixel-cnn")
class PixelCnn(TrainedAttacker):
    """A residual network with ArcFace loss over the attacker-train persons, on crops shrunk to the side that holds all they hold.

    The attacker owns the clear originals of his training images: a second loss pulls a linear reading of the features towards what the
    suite's stock recognisers see in the original (distillation), which teaches him what to look for where persons are few.  Where
    pixels were shuffled, all crops in the same way, he first finds out which are neighbours (:func:`recovered_layout`); no pairs of
    clear and anonymised images are used for that.  Training images are mirrored, moved and changed in brightness and contrast; every
    ``check`` steps the held-out persons' mates are ranked with the running mean of the weights, and the state that ranks them best is
    kept.  The score is a weighted mean of the network's cosine and that of a linear discriminant over the same pixels, which errs
    elsewhere; the held-out persons choose the weight.  The length of training is counted in steps, never in seconds, and the number of
    threads is fixed: the same seed gives the same figures.

    steps: gradient steps, each on ``batch`` images.  side: of the network's input in pixels, 0 for the smallest that loses nothing.
    width: channels of the first stage.  teacher: weight of the second loss, 0 for none.

    The defaults suit some hundred images and take about a minute.  For thousands: ``steps = 2000, check = 500, rate =
    3e-3`` (about five minutes of one core).
    """

    version = "1"
    knows = (
        "has the anonymizer, and photographs of other persons, clear and anonymised; trains a network from scratch on the anonymised "
        "pixels, guided by what a stock recogniser sees in the clear ones"
    )
    citation = (
        "Deng, Guo, Xue & Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019; Hinton, Vinyals & Dean, "
        "Distilling the Knowledge in a Neural Network, 2015"
    )
    reads = "crops"

    def __init__(
        self,
        steps: int = 300,
        side: int = 0,
        width: int = 32,
        batch: int = 64,
        dim: int = 128,
        margin: float = 0.2,
        scale: float = 16.0,
        teacher: float = 10.0,
        rate: float = 2e-3,
        decay: float = 0.05,
        check: int = 50,
        threads: int = 1,
    ) -> None:
        self.steps, self.side, self.width, self.batch, self.dim = steps, side, width, batch, dim
        self.margin, self.scale, self.teacher = margin, scale, teacher
        self.rate, self.decay, self.check, self.threads = rate, decay, check, threads

    def columns(self, recognizers: Sequence[str]) -> list[str]:
        return [PIXELS]

    def fit(self, training: Training, recognizer: str, seed: int) -> None:
        import torch
        from torch.nn.functional import normalize

        table, others = training.anonymised, training.held_out_anonymised
        learn, judge = enough(who(table, ~table.withheld)), who(others, ~others.withheld)
        crops, unseen = crops_of(table)[learn.rows], crops_of(others)[judge.rows]
        self.persons_ = learn.persons
        self.layout_ = None
        if not self.side and is_scrambled(crops):
            typical = crops_of(training.clear)[learn.rows].mean(0)
            self.layout_ = recovered_layout(crops, typical, seed=seed)
        self.side_ = self.side or (LAYOUT_SIDE if self.layout_ is not None else smallest_side(crops))
        data, unseen = self._small(crops), self._small(unseen)
        self.linear_ = _linear(data, learn.person, unseen, judge.person)
        self.mean_ = data.mean((0, 1, 2)).astype(np.float32)
        self.spread_ = np.maximum(data.std((0, 1, 2)), 1).astype(np.float32)
        x, person = self._input(data), torch.from_numpy(learn.person)
        names = [name for name, e in training.clear.embeddings.items() if len(e)] if self.teacher else []
        wanted = [np.nan_to_num(training.clear.embeddings[name][learn.rows].astype(np.float32)) for name in names]
        with seeded(seed, self.threads):
            net = _network(self.side_, self.width, self.dim)
            classes = torch.nn.Parameter(torch.randn(learn.persons, self.dim))
            heads = torch.nn.ModuleList([torch.nn.Linear(self.dim, w.shape[1]) for w in wanted])
            targets = [torch.from_numpy(w) for w in wanted]
            optimiser = torch.optim.AdamW(
                [*net.parameters(), *heads.parameters(), classes], lr=self.rate, weight_decay=self.decay
            )
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.rate, total_steps=max(2, self.steps), pct_start=0.1)
            mean = running_mean(net)
            best, order = -1.0, torch.randperm(len(x))
            at = 0
            for step in range(1, self.steps + 1):
                if at + self.batch > len(order):
                    at, order = 0, torch.randperm(len(x)) if len(x) >= self.batch else torch.randint(len(x), (self.batch,))
                rows = order[at : at + self.batch]
                at += self.batch
                net.train()
                features = net(_varied(x[rows]).contiguous(memory_format=torch.channels_last))
                loss = arcface(normalize(features) @ normalize(classes).T, person[rows], self.scale, self.margin)
                for head, target in zip(heads, targets, strict=True):
                    loss = loss + self.teacher / len(heads) * (1 - (normalize(head(features)) * target[rows]).sum(1)).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                mean.update_parameters(net)
                if step % self.check and step < self.steps:
                    continue
                mean.module.eval()
                state = {name: value.detach().clone() for name, value in mean.module.state_dict().items()}
                score = reciprocal_rank(np.nan_to_num(_features(mean.module, self._input(unseen))), judge.person)
                if np.isnan(score) or score > best:
                    best, self.step_, kept = score, step, state
            net.load_state_dict(kept)
            self.net_ = net.eval()
            self.share_ = self._best_share(unseen, judge.person)

    def _small(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return shrunk(crops, self.side_) if self.layout_ is None else laid_out(crops, self.layout_)

    def _best_share(self, unseen: npt.NDArray[np.uint8], person: Labels) -> float:
        """The network's share of a score, the rest is the discriminant's: the one that ranks the held-out persons' mates best."""
        network, linear = _features(self.net_, self._input(unseen)), self.linear_(unseen)
        scores = {s: reciprocal_rank(_joined(network, linear, s), person) for s in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)}
        return max(scores, key=lambda s: np.nan_to_num(scores[s]))

    def _input(self, small: npt.NDArray[np.uint8]) -> torch.Tensor:
        import torch

        x = (small.astype(np.float32) - self.mean_) / self.spread_
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))

    def represent(self, table: Table, *, enrolled: bool = False) -> Floats:
        small = self._small(crops_of(table))
        with seeded(0, self.threads):
            network = _features(self.net_, self._input(small))
        return unit(_joined(network, self.linear_(small), self.share_), table.withheld)

    @property
    def learnt(self) -> str:
        layout = ", layout recovered" if self.layout_ is not None else ""
        share = f"network {self.share_:.0%}, discriminant {1 - self.share_:.0%}"
        return f"{self.side_} x {self.side_} pixels{layout}, {self.step_} steps, {share}, {self.persons_} persons"


def _joined(network: npt.NDArray[Any], linear: npt.NDArray[Any], share: float) -> npt.NDArray[Any]:
    """Rows whose dot product is the weighted mean of the two cosines."""
    return np.concatenate([np.sqrt(share) * network, np.sqrt(1 - share) * linear], axis=1)


def _varied(x: torch.Tensor) -> torch.Tensor:
    """Mirrored half of the time, shifted by up to 3 % and scaled by up to 5 %, changed in brightness and contrast, with noise."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    n = len(x)
    size = 1 + 0.05 * (2 * torch.rand(n) - 1)
    move = 0.06 * (2 * torch.rand(n, 2) - 1)  # the picture is 2 wide
    mirrored = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    how = torch.stack([torch.stack([mirrored * size, zero, move[:, 0]], 1), torch.stack([zero, size, move[:, 1]], 1)], 1)
    x = grid_sample(x, affine_grid(how, list(x.shape), align_corners=False), padding_mode="border", align_corners=False)
    x = x * (1 + 0.15 * torch.randn(n, 1, 1, 1)) + 0.15 * torch.randn(n, 1, 1, 1) + 0.05 * torch.randn(n, 3, 1, 1)
    return x + 0.05 * torch.randn_like(x)


def _features(net: torch.nn.Module, x: torch.Tensor) -> npt.NDArray[Any]:
    """float32 (n, dim) of unit length: of the image plus of its mirror image, in batches of one size."""
    import torch
    from torch.nn.functional import normalize

    out = []
    with torch.inference_mode():
        for start in range(0, len(x), _BATCH):
            part = x[start : start + _BATCH]
            whole = torch.zeros((_BATCH, *x.shape[1:]))
            whole[: len(part)] = part
            whole = whole.contiguous(memory_format=torch.channels_last)
            out.append(normalize(normalize(net(whole)) + normalize(net(whole.flip(3))))[: len(part)])
    return np.asarray(torch.cat(out).numpy()) if out else np.empty((0, 1), np.float32)


def _network(side: int, width: int, dim: int) -> torch.nn.Module:
    """Residual stages down to a side of about 7, then one linear layer over all places: crops are aligned, so where matters."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, into: int, out: int, stride: int) -> None:
            super().__init__()
            self.way = nn.Sequential(
                nn.Conv2d(into, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.Conv2d(out, out, 3, 1, 1, bias=False),
                nn.BatchNorm2d(out),
            )
            self.side: nn.Module = nn.Identity()
            if stride > 1 or into != out:
                self.side = nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(into, out, 1, bias=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.relu(self.way(x) + self.side(x))
            return y

    stride = max(1, -(-side // 14))  # larger pictures are brought to 14 or 7 at once: the first layers take most of the time
    kernel = 3 if stride == 1 else 2 * stride + 1
    layers: list[nn.Module] = [nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels, side = width, (side + 2 * (kernel // 2) - kernel) // stride + 1
    layers += [Block(channels, channels, 1)]
    while side > 7:
        wider = channels + width // 2
        layers += [Block(channels, wider, 2), Block(wider, wider, 1)]
        channels, side = wider, (side + 1) // 2
    layers += [nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * side * side, dim, bias=False), nn.BatchNorm1d(dim)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)
