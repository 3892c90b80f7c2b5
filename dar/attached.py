"""Depth routing in front of the norms of a stock transformer, whose own code and weights stay as they are.

    z_0 = embedding,   z_l = z_{l-1} + v_l,   v_l = gate_l sublayer_l(norm_l(h_l))

The stock model reads h_l = z_{l-1}. A hook on each norm sees that sum, knows what was written since, and hands the norm
a mixture of the sources instead. Zero queries of a routing that starts as the residual stream give z_{l-1} to the bit:

    h_l = z_{l-1} + sum_i (a_i - 1) v_i,   a = N softmax(..)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dar.architectures import Architecture, StreamNorms, architecture_of
from dar.architectures.base import Carried
from dar.routing import DepthRouting, RoutingConfig, build_routing
from dar.stream_passes import SOURCES, StreamPass, Written

ATTRIBUTE = "routing"
"""Where an attached routing is found in its model, as a `SiT` has its own."""


class AttachedRouting(nn.Module):
    """The routing of all streams of a model: the part of it that is trained and saved.

    Args:
        config: of every stream; a stream without a head's norm has no final reader.
        dim: d. sources: see `attach_routing`.
    """

    def __init__(self, config: RoutingConfig, architecture: Architecture, dim: int, sources: str) -> None:
        super().__init__()
        self.config = config
        self.sources = sources
        self.streams = nn.ModuleDict(
            {name: _stream_routing(config, norms, dim) for name, norms in architecture.streams.items() if norms.norms}
        )
        self.kept_weights: dict[str, list[Tensor]] | None = None
        self._passes: dict[str, StreamPass] | None = None
        self._t_embedding: Tensor | None = None

    def begin(self, *, recomputes: bool) -> None:
        """A forward pass begins. recomputes: whether backward will compute parts of it a second time."""
        self._t_embedding = None
        self._passes = {
            name: SOURCES[self.sources](cast(DepthRouting, routing), self._timestep, taped=not recomputes)
            for name, routing in self.streams.items()
        }

    def end(self) -> None:
        """It has ended: nothing of it is kept."""
        if self.kept_weights is not None:
            self.kept_weights = {name: stream.weights for name, stream in self._streams().items()}
        self._passes = self._t_embedding = None

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name; from behind an adapter's wrapper, those that it learns."""
        return {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}

    def at(self, stream: str) -> StreamPass:
        return self._streams()[stream]

    def take_timestep(self, t_embedding: Tensor) -> None:
        """e(t), (B, d); the first of a pass counts."""
        if self._t_embedding is None:
            self._t_embedding = t_embedding

    def snapshot(self) -> tuple[Any, Any]:
        """The pass as it is now."""
        return {name: stream.copy() for name, stream in self._streams().items()}, self._t_embedding

    @contextmanager
    def back_at(self, snapshot: tuple[Any, Any]) -> Iterator[None]:
        """Go back to where a pass was, and then to what goes on now."""
        now = self._passes, self._t_embedding
        self._passes, self._t_embedding = {name: stream.copy() for name, stream in snapshot[0].items()}, snapshot[1]
        try:
            yield
        finally:
            self._passes, self._t_embedding = now

    def _streams(self) -> dict[str, StreamPass]:
        if self._passes is None:
            raise RuntimeError(
                "a part of a routed model was called outside of the model's own forward pass; "
                "gradient checkpointing is model.enable_gradient_checkpointing()"
            )
        return self._passes

    def _timestep(self) -> Tensor:
        assert self._t_embedding is not None, "the timestep is embedded before the second sublayer"
        return self._t_embedding


def _stream_routing(config: RoutingConfig, norms: StreamNorms, dim: int) -> DepthRouting:
    """num_sublayers: what the norms of a stream feed; after the last of a stream without a head nobody reads."""
    config = replace(config, final=config.final and norms.head is not None)
    if isinstance(config.chunk_size, int):  # streams differ in depth
        config = replace(config, chunk_size=min(config.chunk_size, len(norms.norms)))
    routing = build_routing(config, len(norms.norms), dim)
    if not isinstance(routing, DepthRouting):
        raise ValueError(f"routing.kind must have weights over depth (dar, attnres, densenet); got {config.kind!r}")
    return routing


def attach_routing(model: Any, routing: RoutingConfig | None = None, *, sources: str = "differences") -> Any:
    """Give a stock transformer depth routing, in place; `detach_routing` takes it away again.

    Args:
        model: of a class in `dar.architectures`. Its weights keep their names; the routing's begin with "routing.".
        routing: None for dar with scale "count", whose zero queries leave the function as it is.
        sources: how what a sublayer writes is known. "differences" of the stream before and after: exact at zero
            queries in any precision; in bfloat16 a difference of sums is wrong by a tenth of itself. "written": each
            block is handed zeros for its stream, whose sums then hold only what it wrote, which is true to its own
            rounding, and mixtures are added up in float32: for training in bfloat16.

    Returns: the model. Its routing is in float32, on the model's device.
    Raises: ValueError for an unknown architecture, a model that has a routing, or sources that it cannot have.
    """
    if hasattr(model, ATTRIBUTE):
        raise ValueError(f"this {type(model).__name__} has a routing already; detach_routing(model) takes it away")
    if sources not in SOURCES:
        raise ValueError(f"sources must be one of {', '.join(SOURCES)}; got {sources!r}")
    architecture = architecture_of(model)
    if sources == "written" and not architecture.blocks:
        raise ValueError(
            f"sources = written is not for {type(model).__name__}, of which a sublayer reads the stream past the norms"
        )
    config = RoutingConfig(scale="count") if routing is None else routing
    dim = model.config.num_attention_heads * model.config.attention_head_dim
    attached = AttachedRouting(config, architecture, dim, sources)
    model.routing = attached.to(next(model.parameters()).device).train(model.training)
    _add_hooks(model, architecture)
    return model


def detach_routing(model: Any) -> Any:
    """Take the routing away, in place: the stock model with its own weights.

    Raises: ValueError for a model without an attached routing.
    """
    routing_of(model)
    for module in model.modules():
        hooks = {**module._forward_pre_hooks, **module._forward_hooks}
        for key, hook in hooks.items():
            if isinstance(hook, _Hook):
                for kind in (module._forward_pre_hooks, module._forward_hooks):
                    kind.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_with_kwargs.pop(key, None)
    del model.routing
    return model


def routing_of(model: Any) -> AttachedRouting:
    """Raises: ValueError for a model without an attached routing."""
    routing = getattr(model, ATTRIBUTE, None)
    if not isinstance(routing, nn.Module) or not hasattr(routing, "take_timestep"):
        raise ValueError(f"this {type(model).__name__} has no attached routing")
    return routing  # pyright: ignore[reportReturnType] # or what peft wraps around it, which hands everything on


@torch.no_grad()
def attached_weights(model: Any, *args: Any, **kwargs: Any) -> dict[str, list[Tensor]]:
    """What each reader of each stream gives its sources in model(*args, **kwargs): (N, B, T), without gradient."""
    routing = routing_of(model)
    routing.kept_weights = {}
    try:
        model(*args, **kwargs)
        return routing.kept_weights
    finally:
        routing.kept_weights = None


class _Hook:
    """What hangs on a module of a model. The routing is looked up anew: adapters put a copy in its place."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def routing(self) -> AttachedRouting:
        return self.model.routing


class _Begin(_Hook):
    def __call__(self, module: Any, args: Any) -> None:
        recomputes = bool(getattr(module, "gradient_checkpointing", False)) and torch.is_grad_enabled()
        if recomputes and not isinstance(module._gradient_checkpointing_func, _Checkpoint):
            module._gradient_checkpointing_func = _Checkpoint(module, module._gradient_checkpointing_func)
        self.routing.begin(recomputes=recomputes)


class _End(_Hook):
    def __call__(self, module: Any, args: Any, output: Any) -> None:
        self.routing.end()


class _Timestep(_Hook):
    def __call__(self, module: Any, args: Any, output: Tensor) -> None:
        self.routing.take_timestep(output)


class _Reader(_Hook):
    """In front of a norm, which takes the stream first or by name."""

    def __init__(self, model: Any, stream: str) -> None:
        super().__init__(model)
        self.stream = stream

    def __call__(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        read = self.routing.at(self.stream).read
        if args:
            return (read(args[0]), *args[1:]), kwargs
        name = next(name for name in ("hidden_states", "x", "input") if name in kwargs)
        return args, {**kwargs, name: read(kwargs[name])}


class _Block(_Hook):
    """Hands a block zeros for its streams, and what it wrote together with them on.

    carried: (argument, stream), in the order of its outputs. parameters: of its forward, in order.
    """

    def __init__(self, model: Any, carried: Carried, block: nn.Module) -> None:
        super().__init__(model)
        self.carried = carried
        code = type(block).forward.__code__
        self.parameters = code.co_varnames[1 : code.co_argcount]
        self.arguments: dict[str, list[str]] = {}
        for argument, stream in carried:
            self.arguments.setdefault(stream, []).append(argument)

    def written(self, stream: str) -> Written:
        return cast(Written, self.routing.at(stream))  # the only kind whose blocks have these hooks


class _Enter(_Block):
    def __call__(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        given = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        for stream, arguments in self.arguments.items():
            parts = [given[name] for name in arguments]
            self.written(stream).enter(parts)
            given |= {name: torch.zeros_like(part) for name, part in zip(arguments, parts, strict=True)}
        return (), given


class _Leave(_Block):
    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        outputs = list(output) if isinstance(output, tuple) else [output]
        for stream, arguments in self.arguments.items():
            places = [place for place, (name, _) in enumerate(self.carried) if name in arguments]
            if outputs[places[0]] is None:  # the last block, whose text nobody reads
                continue
            for place, z in zip(places, self.written(stream).leave([outputs[p] for p in places]), strict=True):
                outputs[place] = z
        return tuple(outputs) if isinstance(output, tuple) else outputs[0]


class _Leaves(_Hook):
    """Behind the last block of a stream that others go on with: they read it too, without a choice.

    place: of the stream among the outputs.
    """

    def __init__(self, model: Any, stream: str, place: int) -> None:
        super().__init__(model)
        self.stream, self.place = stream, place

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        outputs = list(output)
        outputs[self.place] = self.routing.at(self.stream).read(outputs[self.place])
        return tuple(outputs)


class _Checkpoint(_Hook):
    """Gradient checkpointing of blocks by `inner`: what is computed again finds the sources as they were."""

    def __init__(self, model: Any, inner: Any) -> None:
        super().__init__(model)
        self.inner = inner

    def __call__(self, block: Any, *args: Any) -> Any:
        return self.inner(_Recomputed(self.routing, block), *args)


class _Recomputed:
    def __init__(self, routing: AttachedRouting, block: Any) -> None:
        self._routing, self._block = routing, block
        self._entry = routing.snapshot()
        self._is_again = False

    def __call__(self, *args: Any) -> Any:
        if self._is_again:
            with self._routing.back_at(self._entry):
                return self._block(*args)
        self._is_again = True
        return self._block(*args)


def _add_hooks(model: Any, architecture: Architecture) -> None:
    model.register_forward_pre_hook(_Begin(model))
    model.register_forward_hook(_End(model))
    model.get_submodule(architecture.timestep).register_forward_hook(_Timestep(model))
    for stream, norms in architecture.streams.items():
        for name in [*norms.norms, *([norms.head] if norms.head else [])]:
            model.get_submodule(name).register_forward_pre_hook(_Reader(model, stream), with_kwargs=True)
    if model.routing.sources == "written":
        for name, carried in architecture.blocks.items():
            block = model.get_submodule(name)
            block.register_forward_pre_hook(_Enter(model, carried, block), with_kwargs=True)
            block.register_forward_hook(_Leave(model, carried, block))
    for stream, norms in architecture.streams.items():
        if norms.norms and norms.leaves:  # what it sees is the stream itself: behind the hooks above
            place = [name for _, name in architecture.blocks[norms.leaves]].index(stream)
            model.get_submodule(norms.leaves).register_forward_hook(_Leaves(model, stream, place))
