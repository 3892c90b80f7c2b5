"""Small heads on features of a frozen network, which tell data from the student's samples, noised alike.

    D minimises softplus(-D(x_t of data)) + softplus(D(x_t of samples)) + r1_weight |D(x_t) - D(x_t + r1_std n)|^2

(arXiv:1406.2661; heads and the approximate R1 of FastGen). At its best D(x_t) is ln p_data(x_t) / p_student(x_t).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.conditions import ConditionBatch
from distill.config import OptimConfig, TConfig
from distill.config.checks import at_least, one_of
from distill.errors import UserError
from distill.models.backbone import Backbone, without
from distill.models.step_aware import StepAware
from distill.objectives.base import Network, Setting, Turn
from distill.objectives.config import RunConfig
from distill.objectives.critic import ROLE as FAKE_SCORE
from distill.objectives.data_rows import data_rows
from distill.objectives.noising import noise_rows, t_and_eps
from distill.objectives.rollouts import ROLLOUTS
from distill.sampling import interpolate
from distill.seeds import generator_for

ROLE = "discriminator"


@dataclass
class DiscriminatorConfig:
    """features: whose it reads, the `teacher`'s or `fake_score`'s. blocks: after so many blocks; null for the middle.

    updates: per student update. t: noise levels at which it judges. r1_weight, r1_std: of the approximate R1 penalty,
        0 for none.
    """

    features: str = "teacher"
    blocks: list[int] | None = None
    updates: int = 1
    t: TConfig = field(default_factory=TConfig)
    r1_weight: float = 0.0
    r1_std: float = 0.01
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, betas=(0.0, 0.99)))

    def __post_init__(self) -> None:
        one_of(self, "discriminator", "features", ("teacher", "fake_score"))
        at_least(self, "discriminator", 1, "updates")
        at_least(self, "discriminator", 0, "r1_weight", "r1_std")

    @property
    def share(self) -> float:
        """Of a network's pass, at most, that its features take."""
        return 0.5 if self.blocks is None else 1.0


class Head(nn.Module):
    """Features of one block (B, T, d) -> logits (B): the tokens as a map, two convolutions, the mean over places."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.side = math.isqrt(num_tokens)
        kernel = min(4, self.side)
        hidden = max(width // 2, 1)
        self.conv1 = nn.Conv2d(width, hidden, kernel, stride=min(2, self.side), padding=(kernel - 1) // 2)
        self.norm = nn.GroupNorm(math.gcd(hidden, 32), hidden)
        self.conv2 = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.to(self.conv1.weight.dtype)[:, : self.side**2].transpose(1, 2)
        x = self.conv1(tokens.unflatten(2, (self.side, self.side)))
        if x.shape[-1] * x.shape[-2] > 1:  # of one place nothing would be left
            x = self.norm(x)
        return self.conv2(F.leaky_relu(x, 0.2)).flatten(1).mean(1)


class Heads(nn.Module):
    """Features of several blocks -> the mean of their heads' logits (B)."""

    def __init__(self, num: int, num_tokens: int, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(num_tokens, width) for _ in range(num))

    def forward(self, *features: Tensor) -> Tensor:
        return torch.stack([head(part) for head, part in zip(self.heads, features, strict=True)]).mean(0)


class Discriminator:
    """The heads, their updates, and their verdict on the student's samples."""

    def __init__(self, setting: Setting, config: DiscriminatorConfig) -> None:
        self.setting, self.config = setting, config
        self.learner = setting.networks[ROLE]
        self.blocks = blocks_of(config, self._read)
        if config.features == FAKE_SCORE and setting.accelerator.is_fsdp2:
            raise UserError("FSDP: discriminator.features must be teacher; got fake_score")
        self._teach = self.learner.on(self._loss, setting.config.train.accumulation)

    @staticmethod
    def network(config: RunConfig, own: DiscriminatorConfig, teacher: Backbone) -> Network:
        """Raises: UserError for a backbone without features, and for a block that it does not have."""
        if own.features == "fake_score" and not hasattr(config.objective, "fake_score"):
            raise UserError(f"discriminator.features = fake_score: {config.objective.name} trains none; take teacher")
        if not hasattr(teacher, "features"):
            raise UserError(without(teacher, "features and feature_shape", "a discriminator"))
        num_tokens, width = cast(Any, teacher).feature_shape
        heads = Heads(len(blocks_of(own, teacher)), num_tokens, width)
        device = next(teacher.parameters()).device
        return Network(heads.to(device), own.optim, own.updates * config.train.steps)

    @staticmethod
    def turn(config: RunConfig, own: DiscriminatorConfig) -> Turn:
        rows, before, finishing = ROLLOUTS[config.student.rollout].cost(config.train.batch_size, config.student.steps)
        judged = 3 if own.r1_weight else 2  # data, samples, and data nudged
        return Turn(ROLE, own.updates, 0, before + finishing + judged * own.share * rows, 0, 0)

    def teach(self, step: int) -> dict[str, Any]:
        """Its updates before update number `step` of the student."""
        setting, values = self.setting, {}
        for number in range(step * self.config.updates, (step + 1) * self.config.updates):
            generator = generator_for(setting.config.train.seed, ROLE, number)
            inputs = setting.rollout.inputs(generator)
            num_rows = len(inputs.x_in) * setting.accelerator.num_processes
            t, eps = t_and_eps(setting, self.config.t, step, num_rows, generator)
            eps_real = noise_rows(setting, num_rows, generator)
            nudge = (noise_rows(setting, num_rows, generator),) if self.config.r1_weight else ()
            real, y_real = data_rows(setting, number, num_rows, generator)
            x0 = setting.rollout.finished(inputs)
            batch = (x0, eps, t, inputs.y, real, eps_real, y_real, *nudge)
            values, (on_real, on_fake) = self._teach(number, *batch)
            values |= {"real": (on_real > 0).float().mean(), "fake": (on_fake < 0).float().mean()}
        return {f"{ROLE}/{name}": value for name, value in values.items()}

    def logits(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        """D(x_t), (B), with gradient to x_t alone."""
        heads: Any = self.learner.module
        with _still(heads):
            return heads(*self._features(x_t, t, y))

    def _features(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> list[Tensor]:
        with _still(self._read):
            return self._read.features(x_t, t, y, self.blocks)

    @property
    def _read(self) -> Any:
        """The network whose features are judged."""
        if self.config.features != FAKE_SCORE:
            return self.setting.teacher.model
        critic: Any = self.setting.networks[FAKE_SCORE].module
        return critic.backbone if isinstance(critic, StepAware) else critic

    def _loss(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        y: ConditionBatch,
        real: Tensor,
        eps_real: Tensor,
        y_real: ConditionBatch,
        *nudge: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x_real = interpolate(real, eps_real, t)
        with self.setting.accelerator.autocast():
            with torch.no_grad():
                of_fake = self._features(interpolate(x0, eps, t), t, y)
                of_real = self._features(x_real, t, y_real)
            on_fake, on_real = self.learner.model(*of_fake), self.learner.model(*of_real)
            loss = F.softplus(on_fake).mean() + F.softplus(-on_real).mean()
            if nudge:
                with torch.no_grad():
                    nudged = self._features(x_real + self.config.r1_std * nudge[0], t, y_real)
                loss = loss + self.config.r1_weight * F.mse_loss(self.learner.model(*nudged), on_real)
        return loss, (on_real.detach(), on_fake.detach())


def blocks_of(config: DiscriminatorConfig, model: Any) -> list[int]:
    """After which blocks features are taken. Raises: UserError for one that the model does not have."""
    depth = len(model.blocks)
    blocks = [max(depth // 2, 1)] if config.blocks is None else config.blocks
    if not blocks or not all(0 <= block <= depth for block in blocks):
        raise UserError(f"discriminator.blocks must be from 0 to {depth}, the teacher's blocks; got {blocks}")
    return blocks


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """The parameters of `model` take no gradient of what is computed meanwhile."""
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learns:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learns:
            parameter.requires_grad_(True)
