"""A small network over stock embeddings of anonymised images, trained with the ArcFace loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deidbench.kinds import attackers
from deidbench.metrics.base import Table
from deidbench.metrics.reid._learning import (
    arcface,
    best_discriminant,
    embeddings,
    enough,
    joined_columns,
    reciprocal_rank,
    running_mean,
    seeded,
    unit,
    who,
)
from deidbench.metrics.reid.base import TrainedAttacker
from deidbench.metrics.reid.training import Training
from deidbench.types import Floats

if TYPE_CHECKING:
    import torch


@attackers.register("arcface")
class ArcfaceHead(TrainedAttacker):
    """A network with one hidden layer that turns a stock recogniser's embedding of an anonymised image into one that names persons.

    It starts as the linear discriminant of the ``lda`` attacker and is trained from there with the ArcFace loss over the attacker-train
    persons, noise added to its input.  Every ``check`` steps, and before the first, the held-out persons' mates are ranked with the
    running mean of the weights, and the state that ranks them best is kept: training never ends below where it began.

    steps: gradient steps at most, each on ``batch`` images.  hidden: width of the hidden layer.  noise: standard deviation of the
    noise, as a share of each input's own.  patience: checks without a better one after which training ends.
    """

    version = "1"
    knows = (
        "has the anonymizer, and photographs of other persons, anonymised; a stock recogniser's embeddings of them, on which a small "
        "network is trained"
    )
    citation = "Deng, Guo, Xue & Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019"
    reads = "embeddings"

    def __init__(
        self,
        steps: int = 1500,
        batch: int = 128,
        hidden: int = 512,
        margin: float = 0.2,
        scale: float = 16.0,
        rate: float = 3e-4,
        noise: float = 0.3,
        check: int = 25,
        patience: int = 12,
    ) -> None:
        self.steps, self.batch, self.hidden = steps, batch, hidden
        self.margin, self.scale, self.rate, self.noise = margin, scale, rate, noise
        self.check, self.patience = check, patience

    def columns(self, recognizers: Sequence[str]) -> list[str]:
        return joined_columns(recognizers)

    def fit(self, training: Training, recognizer: str, seed: int) -> None:
        import torch

        x, y = embeddings(training.anonymised, recognizer), embeddings(training.held_out_anonymised, recognizer)
        learn = enough(who(training.anonymised, np.isfinite(x).all(1)))
        judge = who(training.held_out_anonymised, np.isfinite(y).all(1))
        self.recognizer_, self.persons_ = recognizer, learn.persons
        x, y = x[learn.rows], y[judge.rows]
        self.mean_ = x.mean(0)
        self.spread_ = np.maximum(x.std(0), 1e-4 + 0.1 * x.std(0).mean())
        data, person = torch.from_numpy((x - self.mean_) / self.spread_), torch.from_numpy(learn.person)
        start = best_discriminant(x, learn.person, y, judge.person)
        with seeded(seed):
            # The discriminant works on x; the network on (x - mean) / spread, with features of a mean square of 1.
            straight = start.axes * self.spread_[:, None]
            shift = (self.mean_ - start.mean) @ start.axes
            scale = 1 / np.sqrt(np.mean(((x - start.mean) @ start.axes) ** 2) + 1e-30)
            net = _network(straight * scale, shift * scale, self.hidden)
            with torch.no_grad():
                first = torch.nn.functional.normalize(net(data))
            classes = torch.zeros(learn.persons, first.shape[1]).index_add_(0, person, first)
            classes = torch.nn.Parameter(torch.nn.functional.normalize(classes))
            optimiser = torch.optim.AdamW([*net.parameters(), classes], lr=self.rate, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.rate, total_steps=max(2, self.steps), pct_start=0.1)
            mean = running_mean(net)
            best, self.step_, waited = -1.0, 0, 0
            for step in range(self.steps + 1):
                if step % self.check == 0 or step == self.steps:
                    layers = _layers(mean.module)
                    features = unit(_apply(layers, self._standard(y)), np.zeros(len(y), np.bool_))
                    score = reciprocal_rank(np.nan_to_num(features), judge.person)
                    if np.isnan(score) or score > best:
                        best, self.step_, waited, self.layers_ = score, step, 0, layers
                    else:
                        waited += 1
                    if waited >= self.patience or step == self.steps:
                        break
                rows = torch.randint(len(data), (self.batch,))
                batch = data[rows]
                out = net(batch + self.noise * torch.randn_like(batch))
                cosine = torch.nn.functional.normalize(out) @ torch.nn.functional.normalize(classes).T
                loss = arcface(cosine, person[rows], self.scale, self.margin)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                mean.update_parameters(net)

    def _standard(self, x: Floats) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = (x.astype(np.float64) - self.mean_) / self.spread_
        return out

    def represent(self, table: Table, *, enrolled: bool = False) -> Floats:
        return unit(_apply(self.layers_, self._standard(embeddings(table, self.recognizer_))), table.withheld)

    @property
    def learnt(self) -> str:
        return f"{self.step_} steps, {self.persons_} persons"


def _network(straight: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], hidden: int) -> torch.nn.Module:
    """A linear way, which starts as x @ straight + shift, and one with a hidden layer beside it, which starts at zero."""
    import torch

    inputs, dim = straight.shape

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.straight = torch.nn.Linear(inputs, dim)
            self.into = torch.nn.Linear(inputs, hidden)
            self.out = torch.nn.Linear(hidden, dim)
            with torch.no_grad():
                self.straight.weight.copy_(torch.from_numpy(straight.T))
                self.straight.bias.copy_(torch.from_numpy(shift))
                self.out.weight.zero_()
                self.out.bias.zero_()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.straight(x) + self.out(torch.relu(self.into(x)))
            return y

    return Net()


def _layers(net: torch.nn.Module) -> dict[str, npt.NDArray[np.float64]]:
    return {name: value.detach().double().numpy().copy() for name, value in net.state_dict().items()}


def _apply(layers: dict[str, npt.NDArray[np.float64]], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The network in float64: an image's digits do not depend on its batch."""

    def linear(name: str, z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        y: npt.NDArray[np.float64] = z @ layers[f"{name}.weight"].T + layers[f"{name}.bias"]
        return y

    return linear("straight", x) + linear("out", np.maximum(linear("into", x), 0))
