"""A network that is told which step of the student's list made its sample."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from distill.errors import UserError
from distill.models.backbone import Backbone, without


class StepAware(nn.Module):
    """A backbone with an embedding of the step, which is added to that of t: model(x_t, t, y, step) -> velocity.

    One critic that serves the samples of all S steps can only match their mixture; told the step, it matches each. The
    embedding begins at zero, so that the model begins as it was.

    Args:
        backbone: it has a `t_embedding_size` d, and takes `t_offset` (B, d).
    """

    def __init__(self, backbone: Backbone, num_steps: int) -> None:
        super().__init__()
        self.backbone = cast(nn.Module, backbone)
        self.step_embedding = nn.Embedding(num_steps, cast(Any, backbone).t_embedding_size)
        nn.init.zeros_(self.step_embedding.weight)

    def forward(self, x_t: Tensor, t: Tensor, y: Any, step: Tensor | None = None) -> Tensor:
        """step: which step of the list made the sample, (B) int64, from 0; None adds nothing."""
        offset = {} if step is None else {"t_offset": self.step_embedding(step)}
        return self.backbone(x_t, t, y, **offset)

    @property
    def gradient_checkpointing(self) -> bool:
        return bool(self.backbone.gradient_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        cast(Any, self.backbone).gradient_checkpointing = value


def step_aware(backbone: Backbone, num_steps: int, field: str) -> nn.Module:
    """`backbone`, told the step where there is more than one.

    field: the setting that asks for it. Raises: UserError for a backbone that takes no `t_offset`.
    """
    if num_steps == 1:
        return cast(nn.Module, backbone)
    if not hasattr(backbone, "t_embedding_size"):
        raise UserError(without(backbone, "t_embedding_size and t_offset", f"{field} = true") + ", take false")
    return StepAware(backbone, num_steps)
