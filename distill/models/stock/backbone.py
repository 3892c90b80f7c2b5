"""A stock transformer with the interface of a backbone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from dar.architectures import architecture_of
from dar.predictions import PREDICTIONS, checked_t
from distill.conditions import ClassLabels, Condition, Prompts
from distill.conditions.prompt_files import INDEX
from distill.errors import UserError
from distill.models.stock.base import STOCK
from distill.models.stock.saving import save_stock

LINEARS_OUTSIDE = ("norm", "mod", "ada")
"""Parts of names of linear layers that no adapter is put on: modulations."""


class StockBackbone(nn.Module):
    """velocity = model(x_t, t, y), of a transformer of diffusers, with attached routing or without.

    A transformer in bfloat16 is given x_t and the conditions in bfloat16; t and the velocity keep x_t's type.

    Args:
        transformer: of a class in `STOCK`. source: the folder that its own weights are from.
        sample_shape: (C, H, W) of latents, (C, F, H, W) of video; None for what the model was trained on last.
        guidance: what a model that embeds a guidance scale is told; None for the default.
    """

    saves_adapters = True

    def __init__(
        self,
        transformer: Any,
        source: Path,
        sample_shape: Sequence[int] | None = None,
        guidance: float | None = None,
    ) -> None:
        super().__init__()
        self.stock = STOCK[type(transformer).__name__]
        self.transformer = transformer.eval()
        self.source = source
        self.guidance = self.stock.guidance if guidance is None else guidance
        self.prediction = PREDICTIONS[self.stock.prediction]
        config = transformer.config
        self.sample_shape = tuple(self.stock.sample_shape(config) if sample_shape is None else sample_shape)
        if self.stock.num_classes is not None:
            self.condition: Condition = ClassLabels(self.stock.num_classes(config))
        if self.stock.has_one_timestep_embedder:
            embedder = transformer.get_submodule(architecture_of(transformer).timestep)
            embedder.register_forward_hook(_Offset(self), prepend=True)  # before a routing looks at e(t)
            self.t_embedding_size = config.num_attention_heads * config.attention_head_dim
        self.t_offset: Tensor | None = None

    def set_prompts(self, prompts: Prompts) -> None:
        """Let `prompts` be what the model is told. Raises: UserError where their tensors are not what it takes."""
        needed, found = self.stock.conditions, prompts.index.tensors
        name = type(self.transformer).__name__
        if not needed:
            raise UserError(f"{prompts.folder}: a {name} takes no prompts")
        missing = sorted(needed.keys() - found.keys())
        left = sorted(found.keys() - needed.keys() - set(self.stock.masks))
        if missing or left:
            what = f"lacks {', '.join(missing)}" if missing else f"also holds {', '.join(left)}"
            raise UserError(f"{prompts.folder} {what}; a {name} is told {', '.join(needed)}")
        for tensor, field in needed.items():
            width = getattr(self.transformer.config, field)
            if found[tensor].shape[-1] != width:
                there = f"{prompts.folder}: {tensor} has width {found[tensor].shape[-1]}"
                raise UserError(f"{there}; this {name} takes {width} ({field})")
        self.condition = prompts

    @property
    def t_range(self) -> tuple[float, float]:
        return self.prediction.t_range

    @property
    def routing(self) -> Any:
        """The attached routing, or None."""
        return getattr(self.transformer, "routing", None)

    @property
    def patch_size(self) -> int:
        """Along a side, in cells."""
        size = getattr(self.transformer.config, "patch_size", 1)
        return size if isinstance(size, int) else size[-1]

    @property
    def block_classes(self) -> list[str]:
        """Names of the classes of its blocks, each of which FSDP gathers by itself."""
        names = architecture_of(self.transformer).blocks or {"transformer_blocks.0": ()}
        return sorted({type(self.transformer.get_submodule(name)).__name__ for name in names})

    @property
    def adapted_layers(self) -> str:
        """What LoRA adapts: a pattern of the names of the blocks' linear layers, but for modulations."""
        ends: dict[str, set[str]] = {}
        for name, module in self.transformer.named_modules():
            blocks, _, inside = name.partition(".")
            end = inside.partition(".")[2]  # behind the number of the block
            is_modulation = any(part in end for part in LINEARS_OUTSIDE)
            if isinstance(module, nn.Linear) and blocks.endswith("blocks") and end and not is_modulation:
                ends.setdefault(blocks, set()).add(re.escape(end))
        return "|".join(rf"transformer\.{blocks}\.\d+\.({'|'.join(sorted(found))})" for blocks, found in ends.items())

    @property
    def gradient_checkpointing(self) -> bool:
        return bool(getattr(self.transformer, "gradient_checkpointing", False))

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        if value:
            self.transformer.enable_gradient_checkpointing()
        else:
            self.transformer.disable_gradient_checkpointing()

    def train(self, mode: bool = True) -> Self:
        """The transformer stays in evaluation mode: some of diffusers drop labels otherwise."""
        super().train(mode)
        self.transformer.eval()
        return self

    def forward(self, x_t: Tensor, t: Tensor, y: Any, t_offset: Tensor | None = None) -> Tensor:
        """The velocity, in the shape and dtype of x_t (B, *sample_shape); y is a batch of `condition`.

        t_offset: added to the embedding of t, (B, d).
        Raises: ValueError where a t lies outside `t_range`; on a GPU the result is NaN instead.
        """
        t = checked_t(t, self.t_range, self.stock.prediction)
        dtype = self.transformer.dtype
        conditions = {"class_labels": y} if isinstance(y, Tensor) else {k: v for k, v in y.items() if k != INDEX}
        given = {name: v.to(dtype) if v.is_floating_point() else v for name, v in conditions.items()}
        x = self.prediction.network_input(x_t, t).to(dtype)
        self.t_offset = t_offset
        try:
            output = self.stock.call(self.transformer, x, self.prediction.embedded_time(t), given, self.guidance)
        finally:
            self.t_offset = None
        return self.prediction.velocity(output.to(x_t.dtype), x_t, t)

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder that `load_stock` reads: adapters beside a reference to the weights that they adapt, or else
        all weights."""
        save_stock(self, Path(folder))


class _Offset:
    """Adds to e(t) what the backbone was called with."""

    def __init__(self, backbone: StockBackbone) -> None:
        self._backbone = backbone

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
        offset = self._backbone.t_offset
        return output if offset is None else output + offset.to(output.dtype)
