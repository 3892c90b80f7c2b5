"""SiT, arXiv:2401.08740, with a routing slot. Parameter names are those of the public checkpoints."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dar.checksums import CHECKSUMS_FILE
from dar.embeddings import LabelEmbedding, PatchEmbedding, TimestepEmbedding, sincos_positions
from dar.folder import CONFIG_FILE, WEIGHTS_FILE, check_folder
from dar.layers import Block, FinalLayer
from dar.predictions import PREDICTIONS, checked_t
from dar.routing import DepthRouting, DepthStream, RoutingConfig, Stream, build_routing
from dar.routing.base import routing_config_from
from dar.values import check_between, check_types

# Annotations here are real types, not strings: the Hub mixin reads them to rebuild the configuration.


MOST_PARAMETERS = 10**12


@dataclass(frozen=True)
class SiTConfig:
    """The shape of a SiT.

    input_size: side of the square input, in pixels or latent cells; a multiple of patch_size.
    num_classes: without the null class, which is added as class `num_classes`.
    gelu: "tanh" (public checkpoints) or "none" (the exact GELU, several times faster on a CPU).
    prediction: what the weights were trained to predict; a name of `dar.predictions`, turned into the velocity.
    qk_norm: a LayerNorm on each head's queries and keys, an option of REPA.
    frequency_shift, norm2_eps: 0 and 1e-6, but 1 and 1e-5 in diffusers' DiT.
    """

    input_size: int
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int
    mlp_ratio: float = 4.0
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    gelu: str = "tanh"
    prediction: str = "velocity"
    qk_norm: bool = False
    frequency_shift: int = 0
    norm2_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_types(self, "model")
        object.__setattr__(self, "routing", routing_config_from(self.routing))
        check_between(self, "model", 1, 2**16, "input_size", "patch_size", "in_channels", "hidden_size", "num_heads")
        check_between(self, "model", 1, 2**12, "depth")
        check_between(self, "model", 1, 2**24, "num_classes")
        check_between(self, "model", 1 / 64, 64, "mlp_ratio")
        if self.input_size % self.patch_size:
            raise ValueError(
                f"model.input_size must be a multiple of patch_size = {self.patch_size}; got {self.input_size}"
            )
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(
                f"model.hidden_size must be a multiple of num_heads = {self.num_heads} and of 4; got {self.hidden_size}"
            )
        if self.gelu not in ("tanh", "none"):
            raise ValueError(f"model.gelu must be tanh or none; got {self.gelu!r}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"model.prediction must be one of {', '.join(PREDICTIONS)}; got {self.prediction!r}")
        if self.frequency_shift not in (0, 1):
            raise ValueError(f"model.frequency_shift must be 0 or 1; got {self.frequency_shift}")
        if not 0 < self.norm2_eps <= 1:
            raise ValueError(f"model.norm2_eps must be above 0 and at most 1; got {self.norm2_eps:g}")
        if self.least_parameters > MOST_PARAMETERS:
            raise ValueError(
                f"model.depth = {self.depth}, hidden_size = {self.hidden_size}, input_size = {self.input_size} and "
                f"num_classes = {self.num_classes} are {self.least_parameters:.2g} parameters; at most "
                f"{MOST_PARAMETERS:.0g} are possible"
            )

    @property
    def least_parameters(self) -> int:
        """How many parameters there are at least: attention, classes and positions."""
        return self.hidden_size * (4 * self.hidden_size * self.depth + self.num_classes + self.num_tokens)

    @property
    def num_tokens(self) -> int:
        """T: patches of a sample."""
        return (self.input_size // self.patch_size) ** 2


MODEL_CARD = """---
{{ card_data }}
---

A SiT with a routing slot, saved by dar-distill: config.json and model.safetensors.

    model = dar.SiT.from_pretrained(folder)
    velocity = model(x_t, t, y)    # x_t = (1 - t) x0 + t eps, velocity = eps - x0
"""


class SiT(nn.Module, PyTorchModelHubMixin, library_name="dar-distill", model_card_template=MODEL_CARD):
    """velocity = model(x_t, t, y), with x_t = (1 - t) x0 + t eps and velocity = eps - x0.

    Saved by `save_pretrained(folder)` as config.json and model.safetensors; loaded by `from_pretrained`.
    """

    block_classes = (Block.__name__,)
    """What a sharded model gathers by itself."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_size
        self.gradient_checkpointing = False
        self.prediction = PREDICTIONS[config.prediction]
        self.x_embedder = PatchEmbedding(config.patch_size, config.in_channels, dim)
        self.t_embedder = TimestepEmbedding(dim, self.prediction, config.frequency_shift)
        self.y_embedder = LabelEmbedding(config.num_classes, dim)
        positions = sincos_positions(dim, config.input_size // config.patch_size)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.gelu, config.qk_norm, config.norm2_eps)
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(dim, config.patch_size, config.in_channels)
        self.routing = build_routing(config.routing, 2 * config.depth, dim)

    @property
    def null_label(self) -> int:
        """The class that stands for "no class"."""
        return self.config.num_classes

    @property
    def t_range(self) -> tuple[float, float]:
        """The least and the largest t that the model is defined for: (0, 1), less for a DDPM network."""
        return self.prediction.t_range

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return (self.config.in_channels, self.config.input_size, self.config.input_size)

    @property
    def t_embedding_size(self) -> int:
        """d, the width of the embedding of t."""
        return self.config.hidden_size

    @property
    def feature_shape(self) -> tuple[int, int]:
        """(T, d) of what `features` gives."""
        return self.config.num_tokens, self.config.hidden_size

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, t_offset: Tensor | None = None) -> Tensor:
        """Predict the velocity.

        Args:
            x_t: noisy samples (B, C, H, W).
            t: noise levels in [0, 1], shape (B); 0 is data, 1 is noise.
            y: class labels (B), int64; `null_label` for none.
            t_offset: added to the embedding of t, (B, d).

        Returns: eps - x0, shape (B, C, H, W).
        Raises: ValueError where a t lies outside `t_range`; on a GPU the result is NaN instead.
        """
        return self._velocity(*self._trunk(x_t, t, y, t_offset), x_t, t)

    def _velocity(self, stream: Stream, c: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        output = self._unpatchify(self._head(stream.read(), c))
        return self.prediction.velocity(output, x_t, t)

    def velocity_and_features(
        self, x_t: Tensor, t: Tensor, y: Tensor, after: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward` and `features` of one pass, but features before the last block alone."""
        kept: dict[int, Tensor] = {}
        velocity = self._velocity(*self._trunk(x_t, t, y, kept=kept), x_t, t)
        return velocity, [kept[number] for number in after]

    def features(self, x_t: Tensor, t: Tensor, y: Tensor, after: Sequence[int]) -> list[Tensor]:
        """What is read after so many blocks, from 0 to all, (B, T, d) each; arguments as in `forward`.

        In a plain model that is the residual stream, in a routed one the mixture that the next block takes in.
        """
        stream, c = self._open(x_t, t, y)
        found = {}
        for number, block in enumerate(self.blocks[: max(after)]):
            found[number] = stream.read()
            block(found[number], c, stream, self._run)
        found[max(after)] = stream.read()
        return [found[number] for number in after]

    def _trunk(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor,
        t_offset: Tensor | None = None,
        kept: dict[int, Tensor] | None = None,
    ) -> tuple[Stream, Tensor]:
        """All blocks; returns the stream, ready to be read by the head, and the condition (B, d).

        kept: takes up what each block reads, by the number of those before it.
        """
        stream, c = self._open(x_t, t, y, t_offset)
        for number, block in enumerate(self.blocks):
            h = stream.read()
            if kept is not None:
                kept[number] = h
            block(h, c, stream, self._run)
        return stream, c

    def _open(self, x_t: Tensor, t: Tensor, y: Tensor, t_offset: Tensor | None = None) -> tuple[Stream, Tensor]:
        """The stream that holds the patch embedding, and the condition (B, d)."""
        t = checked_t(t, self.t_range, self.config.prediction)
        x = self.x_embedder(self.prediction.network_input(x_t, t)) + self.pos_embed  # (B, T, d)
        t_embedding = self.t_embedder(t)  # (B, d)
        if t_offset is not None:
            t_embedding = t_embedding + t_offset
        c = t_embedding + self.y_embedder(y)  # (B, d)
        return self.routing.open(x, t_embedding), c

    @torch.no_grad()
    def routing_weights(self, x_t: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
        """What each reader, sublayers first and the head last, gives its sources: (N, B, T) each, without gradient.

        The sources are those of `self.routing.plan.sources_of(reader)`, without the embedding where it is
        an anchor. A softmax adds up to 1, with `scale = "count"` to N; densenet's scalars are free.

        Raises: ValueError for a model without weights over depth.
        """
        if not isinstance(self.routing, DepthRouting):
            raise ValueError(f"routing {self.config.routing.kind!r} has no weights over depth")
        stream, _ = self._trunk(x_t, t, y)
        if self.config.routing.final:
            stream.read()
        assert isinstance(stream, DepthStream)
        return stream.weights

    def _run(self, sublayer: Any, *inputs: Tensor) -> Tensor:
        # Only the sublayer is recomputed: the routing keeps its sources, which every later reader needs.
        if self.gradient_checkpointing and torch.is_grad_enabled():
            # Nothing in a sublayer is random.
            return checkpoint(sublayer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return sublayer(*inputs)

    def _head(self, h: Tensor, c: Tensor) -> Tensor:
        """The final layer in the type of its own weights: what a DDPM network's output is rounded by comes back in x0
        as t / (1 - t) of it, 158 at most."""
        dtype = self.final_layer.linear.weight.dtype
        with torch.autocast(h.device.type, enabled=False):
            return self.final_layer(h.to(dtype), c.to(dtype))

    def _unpatchify(self, patches: Tensor) -> Tensor:
        channels, size, _ = self.sample_shape
        p = self.config.patch_size
        grid = size // p
        image = patches.view(-1, grid, grid, p, p, channels).permute(0, 5, 1, 3, 2, 4)
        return image.reshape(-1, channels, size, size)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write config.json and model.safetensors; what a folder says of earlier ones' checksums is removed first."""
        (Path(save_directory) / CHECKSUMS_FILE).unlink(missing_ok=True)
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "SiT":
        """Load a folder written by `save_pretrained`; nothing in it is ever executed.

        Raises: FileNotFoundError where the folder or a file of it is missing, ValueError naming the
            file where it is damaged or its weights and its configuration do not belong together.
        """
        folder = Path(pretrained_model_name_or_path)
        config = check_folder(folder, SiTConfig)
        size = (folder / WEIGHTS_FILE).stat().st_size
        if config.least_parameters > size:  # found out before memory is asked for
            raise ValueError(
                f"{folder / CONFIG_FILE} is of a model of over {config.least_parameters:,} parameters; {WEIGHTS_FILE} "
                f"has {size:,} bytes"
            )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the mixin prints that it loads
                return super().from_pretrained(folder, **{"strict": True, **kwargs})
        except RuntimeError as error:
            raise ValueError(f"{folder}: weights and configuration do not fit: {error}") from error
