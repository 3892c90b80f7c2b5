"""A linear layer with a LoRA adapter that is merged into the weight for a pass, where that needs fewer operations."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from distill.models.merging import merging_is_cheaper


class AdaptedLinear(Linear):
    """peft's layer, which computes W x + s B (A x). This one may compute (W + s B A) x: the same but for rounding.

    It does so only in float32: in bfloat16 a change of W below 0.4 % would be lost. W itself is never changed.
    """

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        name = self._the_adapter()
        if name is not None:
            layers: Any = (self.get_base_layer(), self.lora_A[name], self.lora_B[name])
            weight, a, b = (layer.weight for layer in layers)
            if _in_float32(x, weight, a, b) and _merging_is_cheaper(x, weight, len(a)):
                return F.linear(x, torch.addmm(weight, b, a, alpha=self.scaling[name]), layers[0].bias)
        return super().forward(x, *args, **options)

    def _the_adapter(self) -> str | None:
        """The name of the one plain adapter in use; None if there is more to compute."""
        if self.merged or self.disable_adapters or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        is_plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        return name if is_plain and isinstance(self.lora_dropout[name], nn.Identity) else None


def _merging_is_cheaper(x: Tensor, weight: Tensor, rank: int) -> bool:
    d_out, d_in = weight.shape
    return merging_is_cheaper(x.numel() // d_in, d_in, d_out, rank, torch.is_grad_enabled())


def _in_float32(*operands: Tensor) -> bool:
    device = operands[0].device.type
    narrowed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return not narrowed and all(operand.dtype == torch.float32 for operand in operands)
