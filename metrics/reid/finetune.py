"""Full fine-tuning of dlib's face recogniser on anonymised images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.kinds import attackers, recognizers
from deidbench.metrics.base import Table
from deidbench.metrics.reid._learning import arcface, crops_of, enough, reciprocal_rank, seeded, unit, who
from deidbench.metrics.reid.base import CROP, TrainedAttacker
from deidbench.metrics.reid.training import CannotLearn, Training
from deidbench.types import Floats

if TYPE_CHECKING:
    import torch

#: The recogniser whose network is trained on; its layers are at hand in PyTorch.
NETWORK = "dlib"
_SIDE = 150
#: Eye centres in the network's own crop, in pixels (midpoints of the eye corners of dlib's mean face).
_EYES_AT = ((47.73, 47.13), (100.28, 47.13))
_BATCH = 16


def recut(crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 (n, 112, 112, 3) in the ArcFace template -> (n, 150, 150, 3) roughly as dlib cuts faces.

    A fixed scaling and shift that puts the template's eyes where dlib's mean face has them.  The lowest tenth of dlib's crop lies
    below the ArcFace crop: the last row is repeated there.
    """
    import cv2

    (left, right), size = CROP.template[:2], CROP.size
    scale = (_EYES_AT[1][0] - _EYES_AT[0][0]) / ((right[0] - left[0]) * size)
    # A pixel's centre is at a half; OpenCV counts from the centre of the first.
    x = (_EYES_AT[0][0] + _EYES_AT[1][0]) / 2 - scale * (left[0] + right[0]) / 2 * size
    y = _EYES_AT[0][1] - scale * (left[1] + right[1]) / 2 * size
    matrix = np.array([[scale, 0, x + 0.5 * scale - 0.5], [0, scale, y + 0.5 * scale - 0.5]])
    out = [cv2.warpAffine(c, matrix, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for c in crops]
    return np.stack(out) if out else np.empty((0, _SIDE, _SIDE, 3), np.uint8)


@attackers.register("finetune")
class Finetune(TrainedAttacker):
    """Goes on training all weights of dlib's ResNet on anonymised images: ArcFace loss, low learning rate, fixed batch statistics.

    The attacker owns the clear originals: a second loss pulls the embedding of an anonymised image towards the one that the untouched
    network gives its original.  Images are mirrored at random; every ``check`` steps, and before the first, the held-out persons' mates
    are ranked, and the state that ranks them best is kept, so that training never ends below where it began.

    steps: gradient steps, each on ``batch`` images.  device: "cuda", or "cpu", where it takes hours.  teacher: weight of the second
    loss.
    """

    version = "1"
    knows = (
        "has the anonymizer, and photographs of other persons, clear and anonymised; trains a stock recogniser's network further on the "
        "anonymised ones, with a GPU"
    )
    citation = "Deng, Guo, Xue & Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019; King, dlib, 2017"
    reads = "crops"

    def __init__(
        self,
        steps: int = 3000,
        batch: int = 64,
        rate: float = 1e-4,
        margin: float = 0.3,
        scale: float = 32.0,
        teacher: float = 10.0,
        check: int = 250,
        device: str = "cuda",
    ) -> None:
        self.steps, self.batch, self.rate, self.margin, self.scale = steps, batch, rate, margin, scale
        self.teacher, self.check, self.device = teacher, check, device

    def missing(self) -> str:
        if self.device != "cpu":
            import torch

            if not torch.cuda.is_available():
                return "it needs a CUDA GPU, and there is none\n  -> the parameter device = 'cpu' trains without (hours)"
        return recognizers.create(NETWORK).missing()

    def columns(self, recognizers: Sequence[str]) -> list[str]:
        return [NETWORK]

    def fit(self, training: Training, recognizer: str, seed: int) -> None:
        import torch
        from torch.nn.functional import normalize

        table, others = training.anonymised, training.held_out_anonymised
        learn, judge = enough(who(table, ~table.withheld)), who(others, ~others.withheld)
        crops, unseen = recut(crops_of(table)[learn.rows]), recut(crops_of(others)[judge.rows])
        original = recut(crops_of(training.clear)[learn.rows]) if self.teacher else None
        self.persons_ = learn.persons
        person = torch.from_numpy(learn.person).to(self.device)
        with seeded(seed):
            self.net_ = _trainable(training, self.device)
            weights = _tensors(self.net_)
            target = None if original is None else torch.from_numpy(_features(self.net_, original, self.device)).to(self.device)
            classes = torch.nn.Parameter(_centres(_features(self.net_, crops, self.device), learn.person).to(self.device))
            for weight in weights:
                weight.requires_grad_(True)
            optimiser = torch.optim.AdamW(
                [{"params": weights, "lr": self.rate, "weight_decay": 1e-4}, {"params": [classes], "lr": 10 * self.rate}]
            )
            rates = [self.rate, 10 * self.rate]
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=max(2, self.steps), pct_start=0.1)
            best, self.step_, kept = -1.0, 0, [w.detach().clone() for w in weights]
            self.losses_: list[float] = []
            for step in range(self.steps + 1):
                if step % self.check == 0 or step == self.steps:
                    score = reciprocal_rank(np.nan_to_num(_features(self.net_, unseen, self.device)), judge.person)
                    if np.isnan(score) or score > best:
                        best, self.step_, kept = score, step, [w.detach().clone() for w in weights]
                if step == self.steps:
                    break
                rows = torch.randint(len(crops), (self.batch,))
                x = _planes(crops[rows.numpy()], self.device)
                mirrored = (torch.rand(len(rows)) < 0.5).to(self.device)
                x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
                rows = rows.to(self.device)
                features = normalize(self.net_(x))
                loss = arcface(features @ normalize(classes).T, person[rows], self.scale, self.margin)
                if target is not None:
                    loss = loss + self.teacher * (1 - (features * target[rows]).sum(1)).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                self.losses_.append(float(loss.detach()))
            with torch.no_grad():
                for weight, value in zip(weights, kept, strict=True):
                    weight.requires_grad_(False)
                    weight.copy_(value)

    def represent(self, table: Table, *, enrolled: bool = False) -> Floats:
        with seeded(0):
            return unit(_features(self.net_, recut(crops_of(table)), self.device), table.withheld)

    @property
    def learnt(self) -> str:
        return f"{self.step_} steps, {self.persons_} persons"


def _trainable(training: Training, device: str) -> Any:
    """A copy of dlib's network whose tensors are on ``device``."""
    stock: Any = training.recognizers.get(NETWORK) or recognizers.create(NETWORK)
    if getattr(stock, "engine", "torch") != "torch":
        stock = recognizers.create(NETWORK, path=stock.path)
    if reason := stock.missing():
        raise CannotLearn(f"the network that would be trained is missing: {reason}")
    stock.load()
    net = copy.deepcopy(stock._model)

    def moved(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return pair[0].to(device), pair[1].to(device)

    net.first = moved(net.first)
    net.blocks = [(moved(one), moved(two), halve) for one, two, halve in net.blocks]
    net.last, net.mean = net.last.to(device), net.mean.to(device)
    return net


def _tensors(net: Any) -> list[torch.Tensor]:
    return [*net.first, *(t for one, two, _ in net.blocks for t in (*one, *two)), net.last]


def _planes(crops: npt.NDArray[np.uint8], device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(crops)).to(device).permute(0, 3, 1, 2).float()


def _features(net: Any, crops: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float32]:
    """float32 (n, 128) of unit length, of each crop plus its mirror image, in batches of one size."""
    import torch
    from torch.nn.functional import normalize

    out = []
    with torch.no_grad():
        for start in range(0, len(crops), _BATCH):
            part = crops[start : start + _BATCH]
            whole = np.zeros((_BATCH, *crops.shape[1:]), np.uint8)
            whole[: len(part)] = part
            x = _planes(whole, device)
            out.append(normalize(normalize(net(x)) + normalize(net(x.flip(3))))[: len(part)].cpu())
    return torch.cat(out).numpy() if out else np.empty((0, 128), np.float32)


def _centres(features: npt.NDArray[np.float32], person: npt.NDArray[np.intp]) -> torch.Tensor:
    """Each person's mean feature: where the class weights start, so that the first steps do not tear the network apart."""
    import torch

    out = np.zeros((int(person.max()) + 1, features.shape[1]), np.float32)
    np.add.at(out, person, features)
    return torch.from_numpy(out)
