"""The plan of a stock transformer: it runs once on the meta device, and what it makes is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dar import RoutingConfig, attach_routing
from dar.attached_folder import CONFIG as ROUTING_FILE
from dar.predictions import PREDICTIONS
from distill.conditions import Prompts
from distill.conditions.prompts import REFERENCE_FILE
from distill.errors import reading
from distill.files import read_json
from distill.models.lora import add_adapters
from distill.models.stock import STOCK, StockBackbone
from distill.models.stock.folders import said_in, source_of
from distill.planning.activations import FLOAT, Setting
from distill.planning.live_bytes import LiveBytes, as_on_a_gpu
from distill.planning.subjects import Subject

TEXT_TOKENS = 512
NUM_EXAMPLES = 10


@dataclass(frozen=True)
class StockSubject(Subject):
    """A stock transformer, by its configuration. The counts are those of one row; R rows take R times as much.

    config: of the class, as diffusers saves it. given_shape: of a sample; None for what the model was trained on last.
    routing: attached, or None. text_tokens: of a prompt. dtype: of the files, which frozen weights keep.
    """

    class_name: str
    config: Mapping[str, Any]
    given_shape: tuple[int, ...] | None = None
    routing: RoutingConfig | None = None
    sources: str = "written"
    text_tokens: int = TEXT_TOKENS
    dtype: torch.dtype = torch.bfloat16
    _measured: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def bytes_as_loaded(self) -> int:
        return self.dtype.itemsize

    @property
    def merges_adapters(self) -> bool:
        return False

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._backbone.sample_shape

    @property
    def summary(self) -> str:
        shape = " x ".join(map(str, self.sample_shape))
        text = f"{self.class_name}, samples {shape}, prompts of {self.text_tokens} tokens"
        return text + (f", routing {self.routing.kind}" if self.routing else ", no routing")

    @property
    def values(self) -> dict[str, Any]:
        return {"class": self.class_name, **{k: v for k, v in self.config.items() if not k.startswith("_")}}

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._backbone.parameters())

    @property
    def num_distinct(self) -> int:
        return NUM_EXAMPLES

    @property
    def num_examples(self) -> int:
        return NUM_EXAMPLES

    @property
    def parameters_at_once(self) -> int:
        names = set(self._backbone.block_classes)
        blocks = [module for module in self._backbone.modules() if type(module).__name__ in names]
        sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
        return 2 * max(sizes) + self.num_parameters - sum(sizes)

    def build(self) -> StockBackbone:
        return self._in(self.dtype)

    def _in(self, dtype: torch.dtype) -> StockBackbone:
        import diffusers

        default = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                transformer = getattr(diffusers, self.class_name).from_config(dict(self.config))
        finally:
            torch.set_default_dtype(default)
        with torch.device("meta"):
            if self.routing is not None:
                attach_routing(transformer, self.routing, sources=self.sources)
            return StockBackbone(transformer, Path(), self.given_shape)

    @cached_property
    def _backbone(self) -> StockBackbone:
        return self.build()

    def saved(self, rows: int, setting: Setting) -> dict[str, int]:
        return {"activations": rows * self._update(setting)[0]}

    def backward(self, rows: int, setting: Setting) -> int:
        saved, peak, _ = self._update(setting)
        return rows * (peak - saved)

    def forward(self, rows: int, product_bytes: int) -> int:
        narrow = min(product_bytes, self.dtype.itemsize)
        return rows * self._once(("forward", narrow), lambda: self._forward(narrow))[0]

    def copies(self, setting: Setting) -> int:
        """Of float32 weights that learn; frozen ones are held in low precision already."""
        full = setting.trainable == "all" and setting.narrow and setting.full_copies
        return self.num_parameters * setting.product_bytes if full else 0

    def work(self, setting: Setting) -> StockWork:
        return StockWork(self._once(("forward", 2), lambda: self._forward(2))[1], self._update(setting)[2])

    def _once(self, key: Any, measure: Any) -> Any:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]

    def _update(self, setting: Setting) -> tuple[int, int, float]:
        setting = replace(setting, told_step=False)
        return self._once(setting, lambda: self._forward_and_backward(setting))

    def _forward(self, product_bytes: int) -> tuple[int, float]:
        """Peak and operations of one row without gradient."""
        model = self._at_work(product_bytes)
        with as_on_a_gpu(), torch.no_grad(), LiveBytes() as memory, FlopCounterMode(display=False) as flops:
            model(*self._row(model))
        return memory.peak, flops.get_total_flops()

    def _forward_and_backward(self, setting: Setting) -> tuple[int, int, float]:
        """What is kept, the peak, and the operations of one row."""
        model = self._at_work(setting.product_bytes)
        if setting.trainable == "lora":
            model.requires_grad_(False)
            with torch.device("meta"):
                add_adapters(model, setting.lora_rank, base="", field="roles.trainable")
        elif setting.trainable == "routing":
            model.requires_grad_(False)
            model.routing.requires_grad_(True)
        model.gradient_checkpointing = setting.checkpointing
        row = self._row(model)
        with as_on_a_gpu(), LiveBytes() as memory:
            velocity = model(*row)
            kept = memory.live
            velocity.square().mean().backward()
        gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        with (
            as_on_a_gpu(),
            FlopCounterMode(display=False) as flops,
        ):  # in a pass of its own: it keeps what is computed again
            model(*row).square().mean().backward()
        return kept, max(memory.peak - gradients, kept), flops.get_total_flops()

    def _at_work(self, product_bytes: int) -> StockBackbone:
        """The model with activations of so many bytes; of its own time nothing is asked."""
        model = self._in(torch.float32 if product_bytes == FLOAT else torch.bfloat16)
        model.prediction = PREDICTIONS["velocity"]
        return model

    def _row(self, model: StockBackbone) -> tuple[Tensor, Tensor, Any]:
        """x_t, t and y of one sample."""
        config, y = model.transformer.config, {}
        with torch.device("meta"):
            for name, width in STOCK[self.class_name].conditions.items():
                length = (self.text_tokens,) if name.startswith("encoder") else ()
                y[name] = torch.zeros(1, *length, getattr(config, width))
            return torch.zeros(1, *model.sample_shape), torch.zeros(1), y or torch.zeros(1, dtype=torch.int64)


@dataclass(frozen=True)
class StockWork:
    """Operations of one row: a forward pass, and forward with backward."""

    forward: float
    both: float

    def update(self, setting: Setting) -> float:
        return self.both


def stock_subject(folder: Path) -> StockSubject:
    """Of a folder of the family `stock`, by its configurations alone. Raises: UserError as `load_stock`."""
    said = said_in(folder)
    source = source_of(folder, said)
    config = read_json(source / "config.json")
    routing, sources = _routing_in(folder / ROUTING_FILE)
    prompts = Prompts.of_model_folder(folder) if (folder / REFERENCE_FILE).is_file() else None
    shape = said.get("sample_shape")
    return StockSubject(
        config["_class_name"],
        {key: value for key, value in config.items() if not key.startswith("_")},
        None if shape is None else tuple(shape),
        routing,
        sources,
        TEXT_TOKENS if prompts is None else prompts.index.length,
    )


def _routing_in(file: Path) -> tuple[RoutingConfig | None, str]:
    """Attached routing and its sources. Raises: UserError where the file is damaged."""
    if not file.is_file():
        return None, "written"
    read = read_json(file, {"routing": dict, "sources": str})
    with reading(file):
        return RoutingConfig(**read["routing"]), read["sources"]


NAMED = {
    "SD3.5-medium": StockSubject(
        "SD3Transformer2DModel",
        {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
            "num_attention_heads": 24, "attention_head_dim": 64, "joint_attention_dim": 4096,
            "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
        },
        text_tokens=333,
    ),
    "Qwen-Image": StockSubject(
        "QwenImageTransformer2DModel",
        {
            "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56),
        },
    ),
    "Wan2.1-T2V-1.3B": StockSubject(
        "WanTransformer3DModel",
        {
            "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
            "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30,
            "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
        },
    ),
}  # fmt: skip
"""Public models by name, as their configurations have them."""
