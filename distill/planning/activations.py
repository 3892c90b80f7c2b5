"""What a SiT keeps for its backward pass, and what it needs for a moment: the one place where that is written.

Counted from the code in `dar`, tensor by tensor, and held to torch's own accounting in the tests. Under autocast
matrix products are made in two bytes; LayerNorm, the running sum, mixtures and the head stay in float32.

Legend: R rows of a batch, T tokens, d width, M width of the MLP, H heads, N sources of a reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from dar import SiTConfig
from dar.chunks import ChunkPlan, PartialSumPlan, SourceId
from dar.routing.hyper import SINKHORN_STEPS

FLOAT = 4
FREQUENCIES = 256  # sinusoids that the timestep embedding is made from
ATTENTION, MLP, INPUTS, CONDITION, IMAGES = "attention", "MLP", "sublayer inputs", "conditioning", "images"
SOURCES, WEIGHTS = "routing: sources", "routing: logits and weights"
COPIES = "weights in low precision"


@dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as its memory depends on it.

    product_bytes: of a value that a matrix product makes: 4, or 2 under autocast.
    trainable: `all`, `lora` (of rank `lora_rank`, and the routing) or `routing`.
    full_copies: whether autocast makes its own copy of every weight; a sharded model is gathered in low precision.
    """

    product_bytes: int = FLOAT
    checkpointing: bool = False
    trainable: str = "all"
    lora_rank: int = 0
    full_copies: bool = True

    @property
    def narrow(self) -> bool:
        return self.product_bytes < FLOAT


def num_tokens(model: SiTConfig) -> int:
    return (model.input_size // model.patch_size) ** 2


def mlp_width(model: SiTConfig) -> int:
    return int(model.hidden_size * model.mlp_ratio)


def kept(model: SiTConfig, rows: int, setting: Setting) -> dict[str, int]:
    """Bytes that autograd holds between forward and backward of R rows, by what they are; parameters not counted."""
    tokens = rows * num_tokens(model)
    result: Counter[str] = Counter()
    if not setting.checkpointing:
        result[ATTENTION] = tokens * (model.depth - num_idle(model, setting)) * _attention(model, setting)
        result[MLP] = tokens * model.depth * _mlp(model, setting)
    for name, per_token in ROUTINGS[model.routing.kind](model, setting).items():
        result[name] += tokens * per_token
    result[INPUTS] += tokens * _head(model, setting)
    result[CONDITION] = rows * _condition(model, setting)
    cells = model.in_channels * model.input_size**2
    result[IMAGES] = rows * cells * (2 * FLOAT + (setting.product_bytes if setting.trainable == "all" else 0))
    result[COPIES] = weight_copies(model, setting)
    return {name: size for name, size in result.items() if size}


def num_idle(model: SiTConfig, setting: Setting) -> int:
    """Sublayers without a gradient: where the routing alone learns on a tape, the one before its first mixture."""
    return int(setting.trainable == "routing" and on_tape(model))


def _attention(model: SiTConfig, setting: Setting) -> int:
    """One sublayer, per token, its input h not counted."""
    d, w = model.hidden_size, setting.product_bytes
    size = _norm_and_gate(model, setting)
    size += 3 * d * w + d * w + model.num_heads * FLOAT  # q, k, v; their mixture; its normaliser
    if model.qk_norm:
        # What was normalised and what came of it, with its statistics; and the mixture in another order.
        size += 3 * d * w + 4 * model.num_heads * FLOAT + (2 * d * FLOAT if setting.narrow else 0)
    if setting.trainable == "lora":
        # peft takes the input of an adapter to float32 and autocast takes it back: a second copy of the mixture.
        size += 2 * setting.lora_rank * w + (d * w if setting.narrow else 0)
    return size


def _mlp(model: SiTConfig, setting: Setting) -> int:
    """One sublayer, per token, its input h not counted."""
    w, wide = setting.product_bytes, mlp_width(model) * setting.product_bytes
    size = _norm_and_gate(model, setting) + wide  # the GELU's input
    if setting.trainable != "routing":
        size += wide  # its output, which the gradient of fc2 asks for
    if setting.trainable == "lora":
        size += 2 * setting.lora_rank * w
    return size


def _norm_and_gate(model: SiTConfig, setting: Setting) -> int:
    """LayerNorm's statistics and output, the modulated input of the first product, what the gate multiplies."""
    d, w = model.hidden_size, setting.product_bytes
    size = 2 * FLOAT
    if setting.trainable == "all":
        size += d * FLOAT + d * w  # a frozen adaLN asks for neither
    if setting.trainable != "routing":
        size += d * w
    return size


def _head(model: SiTConfig, setting: Setting) -> int:
    """In float32 throughout: LayerNorm's statistics and output, and the modulated input of the product."""
    return 2 * FLOAT + (2 * model.hidden_size * FLOAT if setting.trainable == "all" else 0)


def _condition(model: SiTConfig, setting: Setting) -> int:
    """Per row: modulations, and what made them."""
    d, w = model.hidden_size, setting.product_bytes
    per_block = 6 * d * w + (0 if setting.checkpointing else 2 * d * FLOAT)
    once = d * FLOAT + d * w  # the head's 1 + scale; e(t)
    if setting.trainable == "all":
        per_block += d * w
        once += FREQUENCIES * w + d * w + 2 * d * FLOAT
    return model.depth * per_block + once


def weight_copies(model: SiTConfig, setting: Setting) -> int:
    """Bytes of the weights that autocast copies and the backward pass asks for."""
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
    """Bytes of the copies that autocast keeps as long as its context lasts, gradients or not: of what learns."""
    if setting.trainable == "all":
        return weight_copies(model, replace(setting, checkpointing=False))
    if not setting.narrow or not setting.full_copies:
        return 0
    return setting.product_bytes * (model.depth * _adapters(model, setting) + _routing_products(model))


def _adapters(model: SiTConfig, setting: Setting) -> int:
    """LoRA's numbers in one block."""
    rank = setting.lora_rank if setting.trainable == "lora" else 0
    return rank * (6 * model.hidden_size + 2 * (model.hidden_size + mlp_width(model)))


def _routing_products(model: SiTConfig) -> int:
    """Parameters of the routing that stand in a matrix product, but for the few of Hyper-Connections."""
    d, kind = model.hidden_size, model.routing.kind
    if kind == "dar" and model.routing.query == "dynamic":
        return num_readers(model) * d * d
    return model.depth // 2 * 2 * d * d if kind == "unet_skip" else 0


# --- routing, per token -------------------------------------------------------------------------------------


def num_readers(model: SiTConfig) -> int:
    """Of a routing over depth: one per sublayer, and the aggregator in front of the head."""
    return 2 * model.depth + model.routing.final


def chunk_plan(model: SiTConfig) -> ChunkPlan:
    plan_type = PartialSumPlan if model.routing.kind == "attnres" else ChunkPlan
    return plan_type.of(2 * model.depth, model.routing.chunk_size)


def anchored(model: SiTConfig) -> bool:
    """Whether the embedding is no source: it is added to every mixture, and is itself the first reader's."""
    return model.routing.kind == "dar" and model.routing.anchor


def on_tape(model: SiTConfig) -> bool:
    """Whether queries are known beforehand, so that all readers are on one tape (`dar.tape`)."""
    return model.routing.kind == "attnres" or (model.routing.kind == "dar" and model.routing.query != "dynamic")


def num_pairs(model: SiTConfig) -> int:
    """Of a reader and a source that it weighs, in a routing over depth; on a tape an only source is taken as it is."""
    numbers = [len(sources) for sources in _sources_by_reader(model)]
    return sum(number for number in numbers if number > 1 or not on_tape(model))


def _sources_by_reader(model: SiTConfig) -> list[list[SourceId]]:
    """What is mixed for each reader, an anchor left out."""
    plan = chunk_plan(model)
    return [plan.sources_of(reader)[anchored(model) :] for reader in range(1, num_readers(model) + 1)]


def most_sources(model: SiTConfig) -> int:
    """The largest number of sources that are in memory at once."""
    plan = chunk_plan(model)
    return max(len(plan.sources_of(reader)) for reader in range(1, num_readers(model) + 1))


def _inputs(model: SiTConfig, setting: Setting) -> int:
    """h of every sublayer and of the head."""
    return (2 * model.depth + 1) * model.hidden_size * FLOAT


def _residual(model: SiTConfig, setting: Setting) -> dict[str, int]:
    return {INPUTS: _inputs(model, setting)}


def _depth(model: SiTConfig, setting: Setting) -> dict[str, int]:
    """Sources, mixtures and weights of plain torch (`dar.tape`, `dar.route`).

    A source is kept once, whoever reads it. A pair of reader and source keeps its logit and its weight, a source
    its inverse RMS. The fused pass on a GPU (`dar.kernels.tape`) keeps no weights, but mixtures in the sources'
    type beside what LayerNorm keeps of them: that is not in these figures.
    """
    routing, plan, d, w = model.routing, chunk_plan(model), model.hidden_size, setting.product_bytes
    weighed = [sources for sources in _sources_by_reader(model) if len(sources) > 1 or not on_tape(model)]
    sources = set().union(*weighed)
    size = (len(sources) - 1) * d * w + d * FLOAT  # the embedding is no product
    inputs = _inputs(model, setting)
    per_pair, scalars = 2 * FLOAT, len(sources) * FLOAT
    if anchored(model):
        size += d * (w - FLOAT)  # and no source
    if on_tape(model):
        # The first reader's is the embedding; mixtures stand beside what they make with an anchor.
        inputs += len(weighed) * d * w if anchored(model) else -d * FLOAT
    if routing.kind == "densenet":
        per_pair = scalars = 0  # parameters
    if routing.kind == "dar" and routing.query == "dynamic":
        per_pair += FLOAT if routing.scale == "count" else 0
        # The query of a reader; and its predecessor's output, where that is nobody's source.
        read = {source.index for source in sources if source.kind == "raw"} | _alone(plan)
        unread = num_readers(model) - 1 - len([i for i in read if i < num_readers(model)])
        size += num_readers(model) * d * w + unread * d * w + (d * w if setting.narrow else 0)
    queries = 0
    if routing.kind == "dar" and routing.query == "static_t":
        queries = -(-num_readers(model) * d * FLOAT // num_tokens(model))
    return {SOURCES: size, INPUTS: inputs, WEIGHTS: num_pairs(model) * per_pair + scalars + queries}


def _alone(plan: ChunkPlan) -> set[int]:
    """Sublayers that are a chunk of their own: their output is the chunk's summary."""
    return {end for end, length in zip(plan.ends, plan.lengths, strict=True) if length == 1}


def _long_skips(model: SiTConfig, setting: Setting) -> dict[str, int]:
    """The running sum, which goes on as a product from the first projection; sums that are put together."""
    products = model.depth // 2 * 2 * model.hidden_size
    # LayerNorm keeps its input in float32; only a checkpoint keeps it as it was.
    narrower = FLOAT - setting.product_bytes if setting.checkpointing else 0
    return {INPUTS: _inputs(model, setting) - products * narrower, SOURCES: products * setting.product_bytes}


def _hyper(model: SiTConfig, setting: Setting) -> dict[str, int]:
    """Streams before and after their norm, and the coefficients of each sublayer."""
    n, d, w = model.routing.streams, model.hidden_size, setting.product_bytes
    pairs = 2 * n * (n + 2) + 2 * n if model.routing.mixing == "free" else (2 * SINKHORN_STEPS + 2) * n * n + 5 * n
    streams = n * d * FLOAT + (3 if setting.narrow else 1) * n * d * w  # as they are; normed, and as factors
    size = 2 * model.depth * (streams + d * w + pairs * FLOAT) - (n - 1) * d * FLOAT  # at first they are one
    return {SOURCES: size, INPUTS: _inputs(model, setting)}


ROUTINGS: dict[str, Callable[[SiTConfig, Setting], dict[str, int]]] = {
    "residual": _residual,
    "dar": _depth,
    "attnres": _depth,
    "densenet": _depth,
    "unet_skip": _long_skips,
    "hyper": _hyper,
}


# --- for a moment -------------------------------------------------------------------------------------------


def forward_moment(model: SiTConfig, rows: int, product_bytes: int) -> int:
    """Bytes that a forward pass without gradients needs at most at once: in an MLP, while its GELU is computed."""
    d, wide = model.hidden_size, mlp_width(model)
    return rows * num_tokens(model) * (2 * d * FLOAT + 2 * wide * product_bytes + _held(model, product_bytes))


def _held(model: SiTConfig, product_bytes: int) -> int:
    """What a pass holds beside the sublayer's own, per token: the embedding, what its block read and wrote first, and
    earlier outputs that are still to be read."""
    routing, d = model.routing, model.hidden_size
    if routing.kind in ("dar", "attnres", "densenet"):
        return d * FLOAT + (most_sources(model) - 1) * d * product_bytes + num_pairs(model) * 2 * FLOAT
    earlier = {"unet_skip": model.depth // 2, "hyper": routing.streams}.get(routing.kind, 0)
    return d * (2 * FLOAT + product_bytes) + earlier * d * FLOAT


def backward_moment(model: SiTConfig, rows: int, setting: Setting) -> int:
    """Bytes that a backward pass needs at most beside what is kept and the parameters' gradients.

    That is the gradient on its way; those of all sources, which wait for their other readers; under checkpointing what
    an MLP keeps when it is run again; and what an adapter adds to its layer. On a tape the gradients of mixtures wait,
    each in place of its mixture, and a source's is made of them.
    """
    routing, d = model.routing, model.hidden_size
    again = _mlp(model, setting) if setting.checkpointing else 0
    if setting.trainable == "lora":
        again += mlp_width(model) * setting.product_bytes
    waiting = 2 * routing.streams * d * FLOAT if routing.kind == "hyper" else 0
    if on_tape(model):
        waiting = 2 * d * FLOAT
    elif routing.kind in ("dar", "densenet"):
        waiting = most_sources(model) * d * setting.product_bytes
    return rows * num_tokens(model) * (2 * d * FLOAT + again + waiting)
