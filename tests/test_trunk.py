"""All readers of a SiT on one tape, of the fused kernels (run by the interpreter) and of torch, against float64."""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dar import RoutingConfig, SiT, retrofit
from tests.conftest import perturbed, tiny_config

pytest.importorskip("triton")

from dar.kernels import forward
from dar.kernels.tape import Slots, Tape
from dar.routing.mixers import TorchMixer, fused_trunk, torch_trunk
from dar.routing.queries import KnownQueries
from dar.tape import TorchTape

ROUTINGS = {
    "dense": RoutingConfig(chunk_size=1),
    "chunks of 2, packed": RoutingConfig(chunk_size=2, query="static"),
    "chunks of 3, count": RoutingConfig(chunk_size=3, scale="count"),
    "one chunk, cut": RoutingConfig(chunk_size=6),
    "list, anchor, last": RoutingConfig(chunk_size=(1, 4, 1), anchor=True, summary="last"),
    "no final reader": RoutingConfig(chunk_size=2, final=False),
    "dynamic, count": RoutingConfig(query="dynamic", chunk_size=2, scale="count"),
    "attnres": RoutingConfig(kind="attnres", chunk_size=3),
}
EVERY_ROUTING = pytest.mark.parametrize("routing", ROUTINGS.values(), ids=list(ROUTINGS))
TAPES = {"triton": Tape, "torch": TorchTape}
EVERY_BACKEND = pytest.mark.parametrize("backend", TAPES)


def routed(routing: RoutingConfig, backend: str = "triton", **changes: Any) -> SiT:
    torch.manual_seed(0)
    model = SiT(tiny_config(routing=routing, **changes))
    perturbed(model, std=0.3)
    model.routing.backend = backend
    return model


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 1, 8, 8, generator=generator).to(dtype).requires_grad_(),
        torch.tensor([0.1, 0.5], dtype=dtype),
        torch.tensor([0, 1]),
    )


def results(model: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Output and all gradients."""
    x, t, y = inputs(dtype)
    model.zero_grad()
    output = model(x, t, y)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "x": x.grad, **gradients}


@contextlib.contextmanager
def reader_by_reader() -> Iterator[None]:
    """Without a tape: every reader by itself, and autograd adds up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dar.routing.depth.mixer_for", lambda weigher, *_, **__: TorchMixer(weigher))
        yield


def double(model: SiT) -> SiT:
    exact = SiT(model.config).double()
    exact.load_state_dict(model.state_dict())
    return exact


def in_float64(model: SiT) -> dict[str, Tensor]:
    with reader_by_reader():
        return results(double(model), torch.float64)


def assert_near(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, right in expected.items():
        error = (got[name].double() - right.double()).norm() / right.double().norm().clamp_min(1e-2)
        assert error <= tolerance, (name, float(error))


@EVERY_ROUTING
def test_the_kernels_equal_float64(routing: RoutingConfig) -> None:
    model = routed(routing, depth=3)
    assert_near(results(model), in_float64(model), 5e-5)


@EVERY_ROUTING
def test_torch_in_float64_to_the_last_digits(routing: RoutingConfig) -> None:
    model = routed(routing, "torch", depth=3)
    assert_near(results(double(model), torch.float64), in_float64(model), 1e-12)


@EVERY_ROUTING
@EVERY_BACKEND
def test_weights_are_those_of_every_reader_by_itself(backend: str, routing: RoutingConfig) -> None:
    model = routed(routing, backend, depth=3)
    with torch.no_grad():
        on_tape = model.routing_weights(*inputs())
        with reader_by_reader():
            alone = model.routing_weights(*inputs())
    for got, expected in zip(on_tape, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=1e-6)


def test_two_phases_are_one_pass_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randn(2, 5, 24, generator=generator) for _ in range(7)]
    queries = torch.randn(3, 2, 24, generator=generator)
    state = forward.begin(sources[:4], queries, torch.empty(4, 4, 2, 5), 0.3, 1e-6)
    for place, query in enumerate(queries):
        whole = forward.finish(sources, query, torch.empty(7, 1, 2, 5), 0.3, 1e-6, count=7.0)
        start = forward.State(*(part[place] for part in state))
        parts = forward.finish(sources[4:], query, torch.empty(3, 1, 2, 5), 0.3, 1e-6, count=7.0, start=start)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@EVERY_BACKEND
def test_a_retrofitted_model_keeps_its_function_to_the_bit(backend: str) -> None:
    """Zero queries, scale = count: sums run in the order of the residual stream, whatever the blocks."""
    plain = routed(RoutingConfig(kind="residual"))
    dense = retrofit(plain, RoutingConfig(chunk_size=1, scale="count"))
    dense.routing.backend = backend
    with torch.no_grad():
        assert torch.equal(dense(*inputs()), plain(*inputs()))


@functools.cache
def of_dense(backend: str) -> dict[str, Tensor]:
    return results(routed(ROUTINGS["dense"], backend))


@EVERY_BACKEND
def test_two_runs_give_the_same_bits(backend: str) -> None:
    first, second = of_dense(backend), results(routed(ROUTINGS["dense"], backend))
    assert all(torch.equal(first[name], second[name]) for name in first)


@EVERY_BACKEND
def test_a_graph_serves_several_backward_passes(backend: str) -> None:
    """Whole, in part, and whole again: nothing of one pass is left for the next."""
    model = routed(ROUTINGS["chunks of 2, packed"], backend)
    x, t, y = inputs()
    output = model(x, t, y)
    weight = model.routing.queries.weight
    first = torch.autograd.grad(output.sum(), [x, weight], retain_graph=True)
    torch.autograd.grad((3 * output).sum(), model.blocks[-1].mlp.fc2.weight, retain_graph=True)
    torch.autograd.grad(output.square().sum(), weight, retain_graph=True)
    again = torch.autograd.grad(output.sum(), [x, weight])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("learns", ["queries", "backbone"])
@EVERY_BACKEND
def test_gradients_of_a_part_of_the_model(backend: str, learns: str) -> None:
    model, expected = routed(ROUTINGS["dense"], backend), of_dense(backend)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith("routing") == (learns == "queries"))
    got = results(model)
    assert 0 < len(got) < len(expected)
    assert all(torch.equal(got[name], expected[name]) for name in got)


@EVERY_BACKEND
def test_a_reader_that_the_loss_does_not_see(backend: str) -> None:
    """The head reads alone; what other readers would have contributed is zero, not left over."""
    queries = KnownQueries(torch.ones(3, 8, requires_grad=True))
    trunk = fused_trunk(queries, [range(1, 4)]) if backend == "triton" else torch_trunk(queries, 1)
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(1, 2, 8, generator=generator).requires_grad_()
    value, entry = trunk.source(leaf, range(1, 4))
    other, other_entry = trunk.source(torch.randn(1, 2, 8, generator=generator), range(1, 4))
    first, unseen, seen = (trunk.read(reader, [value, other], [entry, other_entry], 1.0) for reader in (1, 2, 3))
    (alone,) = torch.autograd.grad(seen.sum(), leaf, retain_graph=True)
    (around,) = torch.autograd.grad((first + seen).sum(), leaf, retain_graph=True)
    (both,) = torch.autograd.grad((seen + unseen).sum(), leaf)
    for pair in (around, both):
        torch.testing.assert_close(2 * alone, pair)  # the queries are equal


@EVERY_BACKEND
def test_a_source_that_no_reader_has_a_gradient_for(backend: str) -> None:
    """What comes from elsewhere is all; where nothing does, there is no gradient."""
    queries = KnownQueries(torch.ones(2, 8, requires_grad=True))
    trunk = fused_trunk(queries, [range(1, 3)]) if backend == "triton" else torch_trunk(queries, 1)
    leaves = [torch.randn(1, 2, 8).requires_grad_() for _ in range(2)]
    (value, entry), (other, other_entry) = (trunk.source(leaf, range(1, 3)) for leaf in leaves)
    trunk.read(1, [value, other], [entry, other_entry], 1.0)
    first, second = torch.autograd.grad((3 * value).sum(), leaves, allow_unused=True)
    assert torch.equal(first, torch.full_like(value, 3)) and second is None


@EVERY_BACKEND
def test_under_gradient_checkpointing(backend: str) -> None:
    model = routed(ROUTINGS["dense"], backend)
    model.gradient_checkpointing = True
    assert_near(results(model), of_dense(backend), 1e-6)


def test_one_graph_under_compile() -> None:
    model = routed(ROUTINGS["chunks of 2, packed"])
    expected = results(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, t, y = inputs()
    model.zero_grad()
    output = compiled(x, t, y)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_near({"output": output.detach(), "x": x.grad, **gradients}, expected, 1e-5)


@EVERY_BACKEND
def test_under_autocast(backend: str) -> None:
    """bfloat16 sources, their sums in float32: as near to float64 as every reader by itself."""
    model = routed(ROUTINGS["dense"], backend)
    expected = in_float64(model)
    errors = []
    for path in (contextlib.nullcontext(), reader_by_reader()):
        with path, torch.autocast("cpu", torch.bfloat16):
            got = results(model)
        errors.append({n: float((got[n].double() - e).norm() / e.norm()) for n, e in expected.items()})
    assert errors[0]["output"] < 0.03
    assert max(errors[0].values()) < 2 * max(errors[1].values())


@EVERY_BACKEND
def test_a_pass_is_freed_when_it_is_over(backend: str) -> None:
    """Its tape at once, though the loss lives on, and not when Python next looks for cycles."""
    made = []
    original = TAPES[backend].__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(weakref.ref(self))

    model = routed(ROUTINGS["dense"], backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TAPES[backend], "__init__", noted)
        gc.disable()
        try:
            loss = model(*inputs()).sum()
            loss.backward(retain_graph=True)
            assert made[0]() is not None
            loss.backward()
            assert len(made) == 1 and made[0]() is None
            with pytest.raises(RuntimeError, match="second"):
                loss.backward()
        finally:
            gc.enable()


@EVERY_BACKEND
def test_without_gradients_sources_are_not_kept(backend: str) -> None:
    model = routed(ROUTINGS["dense"], backend)
    kept = []
    original = TAPES[backend].enter

    def noted(self: Any, *args: Any) -> Any:
        kept.append(self)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(TAPES[backend], "enter", noted)
        model(*inputs())
    assert kept and not kept[-1].entries


@EVERY_BACKEND
def test_a_backward_pass_that_fails_leaves_nothing_for_the_next(backend: str) -> None:
    model = routed(ROUTINGS["dense"], backend)
    x, t, y = inputs()
    weight = model.routing.queries.weight
    output = model(x, t, y).sum()
    (expected,) = torch.autograd.grad(output, weight, retain_graph=True)

    def fail(_: Tensor) -> None:
        raise ArithmeticError

    hook = x.register_hook(fail)  # when all readers are done
    with pytest.raises(ArithmeticError):
        torch.autograd.grad(output, [x, weight], retain_graph=True)
    hook.remove()
    assert torch.equal(torch.autograd.grad(output, weight)[0], expected)


@EVERY_BACKEND
def test_a_model_in_bfloat16(backend: str) -> None:
    """Mixtures are in the sources' type, so that sublayers can take them."""
    model = routed(ROUTINGS["chunks of 2, packed"], backend).bfloat16()
    got, expected = results(model, torch.bfloat16), in_float64(model)
    assert got["output"].dtype == torch.bfloat16
    assert_near({"output": got["output"]}, {"output": expected["output"]}, 0.05)


def test_slots_of_blocks_of_unequal_length() -> None:
    slots = Slots([range(1, 3), range(3, 6), range(6, 7)])
    assert [slots[reader] for reader in range(1, 7)] == [0, 1, 3, 4, 5, 6] and len(slots) == 9
    by_reader = torch.arange(6.0)[:, None] + 1
    assert slots.spread(by_reader).flatten().tolist() == [1, 2, 0, 3, 4, 5, 6, 0, 0]
    assert torch.equal(slots.gathered(slots.spread(by_reader)), by_reader)


@EVERY_BACKEND
@pytest.mark.parametrize("name", ["dense", "chunks of 3, count"])
def test_gradients_of_gradients_are_refused(name: str, backend: str) -> None:
    """Not left out: the tape's own part of them would be missing without a word."""
    model, (x, t, y) = routed(ROUTINGS[name], backend), inputs()
    with pytest.raises(RuntimeError, match="have no gradients of their own"):
        torch.autograd.grad(model(x, t, y).square().sum(), x, create_graph=True)


def test_float16_has_range_for_what_is_not_yet_divided() -> None:
    """The sum of 57 early sources of 1500 is past its largest number, 65504."""
    source = torch.full((1, 2, 16), 1500.0, dtype=torch.float16)
    tape = Tape(torch.zeros(4, 16), [range(1, 5)], 1.0, 1e-6, keeps=False)
    entries = [tape.enter(source, range(1, 5)) for _ in range(57)]
    for reader in range(1, 5):
        mixture = tape.read(reader, entries, 1.0)
        assert mixture.dtype == torch.float16
        torch.testing.assert_close(mixture, source)
