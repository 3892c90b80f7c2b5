"""f-distill, arXiv:2502.15681: distribution matching of another divergence than the reverse Kullback-Leibler one.

Its gradient is that of `dmd` times h(r), with r = p_data(x_t) / p_student(x_t) from a discriminator's logit:

    reverse_kl 1    forward_kl r    jensen_shannon 1 - 1 / (1 + r)    hellinger sqrt(r)    jeffreys 1 + r

Samples that the data has more of than the student then count more. h is divided by its running mean at similar t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config.checks import at_least, one_of
from distill.models.backbone import Backbone
from distill.objectives.base import Cost, Network, Samples, Setting, Turn, register
from distill.objectives.config import RunConfig
from distill.objectives.discriminator import ROLE, Discriminator, DiscriminatorConfig
from distill.objectives.dmd import Dmd, DmdConfig, sample_rows
from distill.objectives.monitor import NUM_BINS, indicator, reduced
from distill.sampling import interpolate

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "jensen_shannon": lambda r: 1 - 1 / (1 + r),
    "hellinger": torch.sqrt,
    "jeffreys": lambda r: 1 + r,
}
MAX_LOGIT = 4.0  # r from 1/55 to 55
MEMORY = 0.95  # of the running means


@dataclass
class FDistillConfig(DmdConfig):
    """As `dmd`. divergence: a name of `WEIGHTS`.

    gan_weight: of the adversarial loss softplus(-D(x_t)) by the same discriminator.
    """

    name: str = "f_distill"
    divergence: str = "jensen_shannon"
    gan_weight: float = 0.0
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "objective", "divergence", tuple(WEIGHTS))
        at_least(self, "objective", 0, "gan_weight")


@register("f_distill")
class FDistill(Dmd):
    """Distribution matching, weighed by the ratio of densities."""

    title = "f-distill"
    Config = FDistillConfig
    needs_data = True
    headline: ClassVar = {**Dmd.headline, "fake": f"{ROLE}/fake"}

    def __init__(self, setting: Setting, config: FDistillConfig) -> None:
        super().__init__(setting, config)
        self.discriminator = Discriminator(setting, config.discriminator)
        self.means = RunningMeans(setting)

    @classmethod
    def networks(cls, config: RunConfig, own: Any, teacher: Backbone) -> dict[str, Network]:
        heads = Discriminator.network(config, own.discriminator, teacher)
        return super().networks(config, own, teacher) | {ROLE: heads}

    @classmethod
    def turns(cls, config: RunConfig, own: Any) -> list[Turn]:
        return [*super().turns(config, own), Discriminator.turn(config, own.discriminator)]

    @classmethod
    def cost(cls, config: RunConfig, own: Any) -> Cost:
        plain = super().cost(config, own)
        judged = int(own.discriminator.share * sample_rows(config))
        learnt = judged if own.gan_weight else 0  # through the features' network and back
        return Cost(plain.passes + judged - learnt, plain.rows + learnt, plain.teacher_passes)

    def stateful(self) -> list[Any]:
        return [*super().stateful(), self.means]

    def teach(self, step: int, *, log_now: bool) -> dict[str, Any]:
        return super().teach(step, log_now=log_now) | self.discriminator.teach(step)

    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert samples is not None
        t, eps = batch
        logits = self.discriminator.logits(interpolate(samples.x0, eps, t), t, samples.y)
        h = WEIGHTS[self.config.divergence](logits.detach().clamp(-MAX_LOGIT, MAX_LOGIT).exp())
        loss, rows = super().loss(samples, *batch, self.means.normalised(h, t))
        if self.config.gan_weight:
            loss = loss + self.config.gan_weight * F.softplus(-logits).mean()
        return loss, (*rows, h)

    def weights(self, samples: Samples, t: Tensor, *batch: Any) -> Tensor | None:
        return batch[2]

    def figures(self, rows: Sequence[Tensor], *, log_now: bool) -> dict[str, Any]:
        self.means.add(rows[-1], rows[0])
        return super().figures(rows, log_now=log_now)


class RunningMeans:
    """Means of h by bin of t, over updates and processes; they keep their place on the device."""

    def __init__(self, setting: Setting) -> None:
        self._accelerator = setting.accelerator
        self._means = torch.ones(NUM_BINS, device=setting.accelerator.device)

    def normalised(self, h: Tensor, t: Tensor) -> Tensor:
        return h / (self._in_bins(t) @ self._means)

    def add(self, h: Tensor, t: Tensor) -> None:
        in_bins = self._in_bins(t)
        sums, counts = reduced(torch.stack([h @ in_bins, in_bins.sum(0)]), self._accelerator)
        known = torch.where(counts > 0, sums / counts.clamp(min=1), self._means)
        self._means.lerp_(known, 1 - MEMORY)

    def state_dict(self) -> dict[str, Any]:
        return {"means": self._means.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means.copy_(state["means"])

    def _in_bins(self, t: Tensor) -> Tensor:
        return indicator((t.float() * NUM_BINS).long().clamp(max=NUM_BINS - 1), NUM_BINS)
