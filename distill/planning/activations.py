"""Memory of a SiT in training: tensors kept for the backward pass, and temporary tensors. Only this module counts them.

The counts follow the code in `dar`, tensor by tensor; tests compare them with torch's own accounting. Under autocast,
outputs of matrix products take two bytes; LayerNorm, the running sum, mixtures and the head stay in float32.

Legend: R rows of a batch, T tokens, d width, M width of the MLP, H heads, N sources of a reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from dar import SiTConfig
from dar.chunks import ChunkPlan, PartialSumPlan, SourceId
from dar.routing.hyper import SINKHORN_STEPS
from distill.models.merging import merging_is_cheaper

FLOAT = 4
FREQUENCIES = 256  # sinusoids that the timestep embedding is computed from
ATTENTION, MLP, INPUTS, CONDITION, IMAGES = "attention", "MLP", "sublayer inputs", "conditioning", "images"
SOURCES, WEIGHTS = "routing: sources", "routing: logits and weights"
COPIES, ADAPTERS = "weights in low precision", "adapters"


@dataclass(frozen=True)
class Setting:
    """Settings of a training that affect its memory.

    product_bytes: bytes per value of a matrix product's output: 4, or 2 under autocast.
    trainable: `all`, `lora` (adapters of rank `lora_rank`, and the routing) or `routing`.
    full_copies: whether autocast copies every weight. It does not for a sharded model, whose parameters are gathered in
        low precision.
    told_step: whether an embedding of the student's step learns, beside that of t.
    """

    product_bytes: int = FLOAT
    checkpointing: bool = False
    trainable: str = "all"
    lora_rank: int = 0
    full_copies: bool = True
    told_step: bool = False

    @property
    def narrow(self) -> bool:
        return self.product_bytes < FLOAT


def num_tokens(model: SiTConfig) -> int:
    return (model.input_size // model.patch_size) ** 2


def mlp_width(model: SiTConfig) -> int:
    return int(model.hidden_size * model.mlp_ratio)


def saved_activations(model: SiTConfig, rows: int, setting: Setting) -> dict[str, int]:
    """Bytes that autograd keeps between forward and backward of R rows, by kind, without parameters."""
    tokens = rows * num_tokens(model)
    result: Counter[str] = Counter()
    if not setting.checkpointing:
        result[ATTENTION] = tokens * (model.depth - num_idle(model, setting)) * _attention(model, setting)
        result[MLP] = tokens * model.depth * _mlp(model, setting)
    for name, per_token in ROUTINGS[model.routing.kind](model, setting).items():
        result[name] += tokens * per_token
    result[INPUTS] += tokens * _head(model, setting)
    result[CONDITION] = rows * _condition(model, setting)
    if setting.trainable == "lora" and not setting.checkpointing:
        result[ADAPTERS] = model.depth * _adapters_keep(model, tokens, setting)
    cells = model.in_channels * model.input_size**2
    result[IMAGES] = rows * cells * (2 * FLOAT + (setting.product_bytes if setting.trainable == "all" else 0))
    result[COPIES] = weight_copies(model, setting)
    return {name: size for name, size in result.items() if size}


def num_idle(model: SiTConfig, setting: Setting) -> int:
    """Sublayers without a gradient: if only a routing on a tape is trainable, the one before the first mixture."""
    return int(setting.trainable == "routing" and on_tape(model))


def _attention(model: SiTConfig, setting: Setting) -> int:
    """Bytes of one attention sublayer, per token, without its input h."""
    d, w = model.hidden_size, setting.product_bytes
    size = _norm_and_gate(model, setting)
    size += 3 * d * w + d * w + model.num_heads * FLOAT  # q, k, v; the attention output; its normaliser
    if model.qk_norm:
        # Inputs and outputs of the normalisation with its statistics, and the attention output in another layout.
        size += 3 * d * w + 4 * model.num_heads * FLOAT + (2 * d * FLOAT if setting.narrow else 0)
    if setting.trainable == "lora":
        # peft casts an adapter's input to float32 and autocast casts it back, a second copy of the attention output.
        size += d * w if setting.narrow else 0
    return size


def _mlp(model: SiTConfig, setting: Setting) -> int:
    """Bytes of one MLP sublayer, per token, without its input h."""
    wide = mlp_width(model) * setting.product_bytes
    size = _norm_and_gate(model, setting) + wide  # the GELU's input
    if setting.trainable != "routing":
        size += wide  # its output, needed for the gradient of fc2
    return size


def _adapters_keep(model: SiTConfig, tokens: int, setting: Setting) -> int:
    """Bytes of one block: A x of each adapter, or its merged weight (`distill.models.merging`)."""
    rank, size = setting.lora_rank, 0
    for d_in, d_out in _adapted_layers(model):
        merged = not setting.narrow and merging_is_cheaper(tokens, d_in, d_out, rank, learns=True)
        size += d_in * d_out * FLOAT if merged else tokens * rank * setting.product_bytes
    return size


def _norm_and_gate(model: SiTConfig, setting: Setting) -> int:
    """LayerNorm's statistics and output, the modulated input of the first product, and the input of the gate."""
    d, w = model.hidden_size, setting.product_bytes
    size = 2 * FLOAT
    if setting.trainable == "all" or setting.told_step:
        size += d * FLOAT + d * w  # an adaLN without a gradient needs neither
    if setting.trainable != "routing":
        size += d * w
    return size


def _head(model: SiTConfig, setting: Setting) -> int:
    """LayerNorm's statistics and output, and the modulated input of the product, all in float32."""
    kept = 2 if setting.trainable == "all" else int(setting.told_step)
    return 2 * FLOAT + kept * model.hidden_size * FLOAT


def _condition(model: SiTConfig, setting: Setting) -> int:
    """Modulations and the activations that they are computed from, per row."""
    d, w = model.hidden_size, setting.product_bytes
    per_block = 6 * d * w + (0 if setting.checkpointing else 2 * d * FLOAT)
    once = d * FLOAT + d * w  # the head's 1 + scale; e(t)
    if setting.trainable == "all":
        per_block += d * w
        once += FREQUENCIES * w + d * w + 2 * d * FLOAT
    return model.depth * per_block + once


def weight_copies(model: SiTConfig, setting: Setting) -> int:
    """Bytes of autocast's weight copies that the backward pass needs."""
    if not setting.narrow or not setting.full_copies:
        return 0
    d, wide, cells = model.hidden_size, mlp_width(model), model.in_channels * model.patch_size**2
    count = _routing_products(model)
    if not setting.checkpointing:
        count += model.depth * (4 * d * d + 2 * d * wide + _adapters(model, setting))
    if setting.trainable == "all":
        count += model.depth * 6 * d * d + d * cells + d * d
    return setting.product_bytes * count


def cached_copies(model: SiTConfig, setting: Setting) -> int:
    """Bytes of the copies of trainable weights that autocast caches until its context ends, even without gradients."""
    if setting.trainable == "all":
        return weight_copies(model, replace(setting, checkpointing=False))
    if not setting.narrow or not setting.full_copies:
        return 0
    return setting.product_bytes * (model.depth * _adapters(model, setting) + _routing_products(model))


def _adapters(model: SiTConfig, setting: Setting) -> int:
    """Number of LoRA parameters in one block."""
    rank = setting.lora_rank if setting.trainable == "lora" else 0
    return rank * sum(d_in + d_out for d_in, d_out in _adapted_layers(model))


def _adapted_layers(model: SiTConfig) -> list[tuple[int, int]]:
    """Widths of a block's linear layers, before and after: qkv, proj, fc1, fc2."""
    d, wide = model.hidden_size, mlp_width(model)
    return [(d, 3 * d), (d, d), (d, wide), (wide, d)]


def _routing_products(model: SiTConfig) -> int:
    """Routing parameters that take part in a matrix product, except the few of Hyper-Connections."""
    d, kind = model.hidden_size, model.routing.kind
    if kind == "dar" and model.routing.query == "dynamic":
        return num_readers(model) * d * d
    return model.depth // 2 * 2 * d * d if kind == "unet_skip" else 0


# --- routing, per token -------------------------------------------------------------------------------------


def num_readers(model: SiTConfig) -> int:
    """Readers of a routing over depth: one per sublayer, and the aggregator before the head."""
    return 2 * model.depth + model.routing.final


def chunk_plan(model: SiTConfig) -> ChunkPlan:
    plan_type = PartialSumPlan if model.routing.kind == "attnres" else ChunkPlan
    return plan_type.of(2 * model.depth, model.routing.chunk_size)


def anchored(model: SiTConfig) -> bool:
    """Whether the embedding is not a source: it is added to every mixture and is the input of the first reader."""
    return model.routing.kind == "dar" and model.routing.anchor


def on_tape(model: SiTConfig) -> bool:
    """Whether queries do not depend on the hidden state, so that one tape holds all readers (`dar.tape`)."""
    return model.routing.kind == "attnres" or (model.routing.kind == "dar" and model.routing.query != "dynamic")


def num_pairs(model: SiTConfig) -> int:
    """Pairs of a reader and a source with a weight, in a routing over depth.

    On a tape, a single source has no weight.
    """
    numbers = [len(sources) for sources in _sources_by_reader(model)]
    return sum(number for number in numbers if number > 1 or not on_tape(model))


def _sources_by_reader(model: SiTConfig) -> list[list[SourceId]]:
    """The sources that each reader mixes, without an anchor."""
    plan = chunk_plan(model)
    return [plan.sources_of(reader)[anchored(model) :] for reader in range(1, num_readers(model) + 1)]


def most_sources(model: SiTConfig) -> int:
    """The largest number of sources in memory at once."""
    plan = chunk_plan(model)
    return max(len(plan.sources_of(reader)) for reader in range(1, num_readers(model) + 1))


def _inputs(model: SiTConfig, setting: Setting) -> int:
    """The input h of every sublayer and of the head."""
    return (2 * model.depth + 1) * model.hidden_size * FLOAT


def _residual(model: SiTConfig, setting: Setting) -> dict[str, int]:
    return {INPUTS: _inputs(model, setting)}


def _depth(model: SiTConfig, setting: Setting) -> dict[str, int]:
    """Sources, mixtures and weights in plain torch (`dar.tape`, `dar.route`).

    A source is kept once, for all its readers. Each pair of reader and source keeps its logit and its weight, and each
    source its inverse RMS. The fused kernel on a GPU (`dar.kernels.tape`) keeps no weights. It keeps mixtures in the
    dtype of the sources, besides what LayerNorm keeps of them; these numbers do not include that.
    """
    routing, plan, d, w = model.routing, chunk_plan(model), model.hidden_size, setting.product_bytes
    weighed = [sources for sources in _sources_by_reader(model) if len(sources) > 1 or not on_tape(model)]
    sources = set().union(*weighed)
    size = (len(sources) - 1) * d * w + d * FLOAT  # the embedding is not the output of a product
    inputs = _inputs(model, setting)
    per_pair, scalars = 2 * FLOAT, len(sources) * FLOAT
    if anchored(model):
        size += d * (w - FLOAT)  # and is not a source
    if on_tape(model):
        # The first reader's input is the embedding. With an anchor, a mixture and its sum with the anchor are kept.
        inputs += len(weighed) * d * w if anchored(model) else -d * FLOAT
    if routing.kind == "densenet":
        per_pair = scalars = 0  # the weights are parameters
    if routing.kind == "dar" and routing.query == "dynamic":
        per_pair += FLOAT if routing.scale == "count" else 0
        # The query of each reader, and the output of the sublayer before it if no reader has that output as a source.
        read = {source.index for source in sources if source.kind == "raw"} | _alone(plan)
        unread = num_readers(model) - 1 - len([i for i in read if i < num_readers(model)])
        size += num_readers(model) * d * w + unread * d * w + (d * w if setting.narrow else 0)
    queries = 0
    if routing.kind == "dar" and routing.query == "static_t":
        queries = -(-num_readers(model) * d * FLOAT // num_tokens(model))
    return {SOURCES: size, INPUTS: inputs, WEIGHTS: num_pairs(model) * per_pair + scalars + queries}


def _alone(plan: ChunkPlan) -> set[int]:
    """Sublayers that form a chunk by themselves: their output is the chunk's summary."""
    return {end for end, length in zip(plan.ends, plan.lengths, strict=True) if length == 1}


def _long_skips(model: SiTConfig, setting: Setting) -> dict[str, int]:
    """The running sum, whose dtype is that of a product from the first projection on; and concatenated sums."""
    products = model.depth // 2 * 2 * model.hidden_size
    # LayerNorm keeps its input in float32; only a checkpoint keeps the original dtype.
    narrower = FLOAT - setting.product_bytes if setting.checkpointing else 0
    return {INPUTS: _inputs(model, setting) - products * narrower, SOURCES: products * setting.product_bytes}


def _hyper(model: SiTConfig, setting: Setting) -> dict[str, int]:
    """Streams before and after their norm, and the coefficients of each sublayer."""
    n, d, w = model.routing.streams, model.hidden_size, setting.product_bytes
    pairs = 2 * n * (n + 2) + 2 * n if model.routing.mixing == "free" else (2 * SINKHORN_STEPS + 2) * n * n + 5 * n
    streams = n * d * FLOAT + (3 if setting.narrow else 1) * n * d * w  # unchanged; normalised, and as factors
    size = 2 * model.depth * (streams + d * w + pairs * FLOAT) - (n - 1) * d * FLOAT  # the first streams are one tensor
    return {SOURCES: size, INPUTS: _inputs(model, setting)}


ROUTINGS: dict[str, Callable[[SiTConfig, Setting], dict[str, int]]] = {
    "residual": _residual,
    "dar": _depth,
    "attnres": _depth,
    "densenet": _depth,
    "unet_skip": _long_skips,
    "hyper": _hyper,
}


# --- temporary tensors ---------------------------------------------------------------------------------------


def forward_temporaries(model: SiTConfig, rows: int, product_bytes: int) -> int:
    """Peak bytes of a forward pass without gradients, reached in an MLP while its GELU is computed."""
    d, wide = model.hidden_size, mlp_width(model)
    return rows * num_tokens(model) * (2 * d * FLOAT + 2 * wide * product_bytes + _held(model, product_bytes))


def _held(model: SiTConfig, product_bytes: int) -> int:
    """Bytes per token that a pass holds besides those of the current sublayer.

    These are the embedding, the first input and output of the block, and earlier outputs that later sublayers read.
    """
    routing, d = model.routing, model.hidden_size
    if routing.kind in ("dar", "attnres", "densenet"):
        return d * FLOAT + (most_sources(model) - 1) * d * product_bytes + num_pairs(model) * 2 * FLOAT
    earlier = {"unet_skip": model.depth // 2, "hyper": routing.streams}.get(routing.kind, 0)
    return d * (2 * FLOAT + product_bytes) + earlier * d * FLOAT


def backward_temporaries(model: SiTConfig, rows: int, setting: Setting) -> int:
    """Peak bytes of a backward pass, besides kept activations and parameter gradients.

    These are the current gradient; the gradients of all sources, which wait for their other readers; with
    checkpointing, the activations of a recomputed MLP; and the extra memory of adapters. On a tape, the gradient of
    each mixture waits in the place of the mixture, and the gradients of sources are computed from them.
    """
    routing, d = model.routing, model.hidden_size
    again = _mlp(model, setting) if setting.checkpointing else 0
    if setting.trainable == "lora":
        again += (mlp_width(model) + 2 * setting.lora_rank) * setting.product_bytes
    waiting = 2 * routing.streams * d * FLOAT if routing.kind == "hyper" else 0
    if on_tape(model):
        waiting = 2 * d * FLOAT
    elif routing.kind in ("dar", "densenet"):
        waiting = most_sources(model) * d * setting.product_bytes
    return rows * num_tokens(model) * (2 * d * FLOAT + again + waiting)
