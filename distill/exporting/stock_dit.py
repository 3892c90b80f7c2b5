"""A plain few-step student as a DiTTransformer2DModel of diffusers, which needs no code of ours.

The two differ in the frequencies of their timestep embedding, 10000^(-i / 128) and 10000^(-i / 127), and in what they
are fed, t and 1000 t. A few-step student is asked at few timesteps: there its first layer W (d, 256) meets the rows of
S (steps, 256), and in diffusers those of S'. With fewer timesteps than frequencies

    W' = W + (pinv(S') (S W^T - S' W^T))^T   solves   S' W'^T = S W^T

exactly, by the smallest change. At any other timestep the model is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dar import SiT
from dar.checkpoints.diffusers import by_diffusers_names
from dar.embeddings import TimestepEmbedding

FIRST_LAYER = "t_embedder.mlp.0.weight"  # that meets the sinusoid
TRAIN_TIMESTEPS = 1000
TOLERANCE = 1e-5  # of the velocity over its RMS: rounding, in another order
CHECK_SEED = 0
NUM_CHECKED = 4


def stock_dit(model: SiT, t_list: Sequence[float]) -> tuple[Any, str]:
    """A DiTTransformer2DModel that computes what `model` computes at the timesteps of `t_list`, and "".

    Returns: None and the reason where there is none.
    """
    reason = obstacle(model)
    if reason:
        return None, reason
    stock = _stock_shape(model)
    stock.load_state_dict(_stock_weights(model, t_list))
    error = largest_error(model, stock, t_list)
    return (stock, "") if error <= TOLERANCE else (None, f"diffusers' DiT is {error:.1g} off at its timesteps")


def obstacle(model: SiT) -> str:
    """What a DiTTransformer2DModel cannot do that `model` does; "" where there is nothing."""
    config = model.config
    if config.routing.kind != "residual":
        return f"routing {config.routing.kind}"
    if config.prediction not in ("velocity", "reversed_velocity"):
        return f"prediction {config.prediction}"
    if config.qk_norm:
        return "qk_norm"
    if config.mlp_ratio != 4:
        return f"mlp_ratio {config.mlp_ratio:g}"
    if not torch.equal(model.pos_embed.float(), SiT(config).pos_embed):
        return "positions of its own"
    return ""


def refitted(weight: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """W' with theirs W'^T = ours W^T, nearest to W; weight (d, f), ours and theirs (S, f)."""
    w, s, s_theirs = weight.double(), ours.double(), theirs.double()
    change = torch.linalg.pinv(s_theirs) @ (s @ w.T - s_theirs @ w.T)
    return (w + change.T).to(weight.dtype)


@torch.no_grad()
def largest_error(model: SiT, stock: nn.Module, t_list: Sequence[float]) -> float:
    """Of the velocity at the timesteps of `t_list`, over its RMS."""
    generator = torch.Generator().manual_seed(CHECK_SEED)
    x_t = torch.randn(NUM_CHECKED, *model.sample_shape, generator=generator)
    y = torch.arange(NUM_CHECKED) * model.null_label // (NUM_CHECKED - 1)  # the null class, too
    worst = 0.0
    for t in t_list:
        velocity = model(x_t, torch.full((NUM_CHECKED,), t), y)
        theirs = stock(x_t, timestep=torch.full((NUM_CHECKED,), TRAIN_TIMESTEPS * t), class_labels=y).sample
        worst = max(worst, float((theirs - velocity).abs().max() / velocity.square().mean().sqrt().clamp_min(1e-12)))
    return worst


def _stock_shape(model: SiT) -> Any:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    config = model.config
    return DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=config.in_channels,
        num_layers=config.depth,
        sample_size=config.input_size,
        patch_size=config.patch_size,
        activation_fn="gelu-approximate" if config.gelu == "tanh" else "gelu",
        num_embeds_ada_norm=config.num_classes,
        norm_eps=config.norm2_eps,
    ).eval()


def _stock_weights(model: SiT, t_list: Sequence[float]) -> dict[str, Tensor]:
    ours = dict(model.state_dict())
    ours[FIRST_LAYER] = refitted(ours[FIRST_LAYER], *_sinusoids(model, t_list))
    if model.config.prediction == "reversed_velocity":  # x0 - eps
        ours |= {name: -ours[name] for name in ours if name.startswith("final_layer.linear.")}
    return by_diffusers_names(ours)


def _sinusoids(model: SiT, t_list: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What the first layer of the timestep's embedding is fed at `t_list`, ours and theirs, (S, 256) each.

    In float32, as they are fed it: at 1000 t the angles' rounding is a part of what the weight is fitted to.
    """
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor(list(t_list), dtype=torch.float32)
    embedder = cast(TimestepEmbedding, model.t_embedder)
    theirs = get_timestep_embedding(
        TRAIN_TIMESTEPS * t, 2 * embedder.num_frequencies, flip_sin_to_cos=True, downscale_freq_shift=1
    )
    return embedder.sinusoid(t), theirs
