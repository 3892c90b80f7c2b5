"""The fused routing kernels against float64, run by Triton's interpreter, and what the compiler makes of them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dar import depth_route, depth_route_reference
from dar.kernels import MAX_SOURCES, choose_backend

pytest.importorskip("triton")
QUERY_SHAPES = {"static": (-1,), "per sample": (0, -1), "per token": (0, 1, -1)}
# N and tokens to walk over, d odd, below and above a power of two. (N, B, T, d)
SHAPES = [
    (1, 1, 9, 64),
    (2, 3, 5, 17),
    (3, 2, 10, 72),
    (15, 1, 2, 1000),
    (33, 1, 1, 1152),
    (57, 1, 2, 24),
    (2, 1, 16, 8),
]


def problem(
    shape: tuple[int, int, int, int], query: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """Sources, query, gain and what their gradients will be asked with."""
    num, *of_source = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    return {
        "sources": [draw(*of_source).requires_grad_() for _ in range(num)],
        "query": draw(*(of_source[i] for i in QUERY_SHAPES[query])).requires_grad_(),
        "gain": (1 + 0.3 * draw(of_source[-1])).requires_grad_(),
        "d_mixture": draw(*of_source),
        "d_weights": draw(num, *of_source[:2]),
    }


def results(route: Any, given: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Mixture, weights and all gradients, in float64."""
    leaves = {"query": given["query"], "gain": given["gain"], **dict(enumerate(given["sources"]))}
    for leaf in leaves.values():
        leaf.grad = None
    mixture, weights = route(given["sources"], given["query"], given["gain"], **options)
    torch.autograd.backward([mixture, weights], [given["d_mixture"], given["d_weights"].to(weights.dtype)])
    gradients = {f"d {name}": leaf.grad.double() for name, leaf in leaves.items()}
    return {"mixture": mixture.detach().double(), "weights": weights.detach().double(), **gradients}


def in_float64(given: dict[str, Any]) -> dict[str, Any]:
    """The same rounded numbers."""

    def widen(value: Any) -> Any:
        return [widen(v) for v in value] if isinstance(value, list) else value.detach().double().requires_grad_()

    return {name: widen(value) for name, value in given.items()}


def fused(*args: Any, **options: Any) -> Any:
    return depth_route(*args, backend="triton", return_weights=True, **options)


def assert_near(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Norm of the difference over the norm (or over 1 where that is less), quantity by quantity."""
    for name, right in expected.items():
        error = (got[name] - right).norm() / right.norm().clamp_min(1)
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("query", QUERY_SHAPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_all_gradients(shape, query) -> None:
    given = problem(shape, query)
    assert_near(results(fused, given), results(depth_route_reference, in_float64(given)), 2e-5)


def test_one_source_is_passed_on_to_the_bit() -> None:
    given = problem((1, 2, 3, 24), "per sample", torch.bfloat16)
    got = results(fused, {**given, "d_weights": torch.zeros(1, 2, 3)})
    assert torch.equal(got["mixture"], given["sources"][0].double())
    assert torch.equal(got["d 0"], given["d_mixture"].double())
    assert not got["d query"].any() and not got["d gain"].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("query", QUERY_SHAPES)
def test_narrow_types(query, dtype) -> None:
    """The mixture to 2 units in the last place, gradients to 1 %, of the same rounded inputs in float64."""
    given = problem((5, 2, 5, 40), query, dtype)
    got, expected = results(fused, given), results(depth_route_reference, in_float64(given))
    unit = torch.finfo(dtype).eps
    largest = torch.stack([v.double().abs() for v in given["sources"]]).amax(0)
    assert ((got["mixture"] - expected["mixture"]).abs() <= 2 * unit * largest).all()
    assert_near(
        {n: g for n, g in got.items() if n != "mixture"}, {n: e for n, e in expected.items() if n != "mixture"}, 1e-2
    )


def test_options_reach_the_kernel() -> None:
    given = problem((3, 2, 5, 16), "per sample")
    options = {"scale": 0.7, "eps": 0.5}
    assert_near(results(fused, given, **options), results(depth_route_reference, in_float64(given), **options), 1e-5)


def strided(source: Tensor) -> Tensor:
    """The same numbers with gaps between tokens."""
    return torch.stack([source.detach(), torch.zeros_like(source)], dim=2)[:, :, 0].requires_grad_()


def test_sources_of_any_memory_layout() -> None:
    """Strided, channels apart, repeated, expanded."""
    given = problem((4, 3, 6, 16), "per token")
    expected = results(depth_route_reference, in_float64(given))
    given["sources"] = [strided(v) for v in given["sources"]]
    assert_near(results(fused, given), expected, 1e-5)
    given["sources"][1] = given["sources"][1].detach().mT.contiguous().mT.requires_grad_()
    assert_near(results(fused, given), expected, 1e-5)
    one = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    repeated = [one.expand(3, 6, 16), one.expand(3, 6, 16), given["sources"][0]]
    mixture, _ = fused(repeated, given["query"])
    (got,) = torch.autograd.grad(mixture.sum(), one)
    wide = one.detach().double().requires_grad_()
    mixture, _ = depth_route_reference([wide.expand(3, 6, 16)] * 2 + [repeated[2].double()], given["query"].double())
    torch.testing.assert_close(got, torch.autograd.grad(mixture.sum(), wide)[0].float(), rtol=1e-4, atol=1e-5)


def test_sources_of_very_different_size() -> None:
    """1e-3 to 1e4 side by side, a row of zeros, and logits of 1e4 that only their difference tells apart."""
    given = problem((4, 2, 5, 32), "static")
    with torch.no_grad():
        for source, size in zip(given["sources"], (1e-3, 1.0, 30.0, 1e4), strict=True):
            source.mul_(size)
        given["sources"][1][0, 2] = 0
    assert_near(results(fused, given), results(depth_route_reference, in_float64(given)), 2e-5)
    with torch.no_grad():
        for source in given["sources"]:
            source[..., 0] = 100 * source.norm(dim=-1)
        given["query"].zero_()[0] = 1e4
    got = results(fused, given)
    v = torch.stack([source.detach().double() for source in given["sources"]])
    logits = 1e4 * v[..., 0] / v.square().mean(-1).add(1e-6).sqrt() / math.sqrt(32)
    assert logits[logits > 0].min() > 9e3  # but for the row of zeros
    assert all(value.isfinite().all() for value in got.values())
    torch.testing.assert_close(got["weights"].sum(0), torch.ones(2, 5, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_the_same_twice_to_the_bit() -> None:
    given = problem((3, 2, 17, 16), "static")
    first, second = results(fused, given), results(fused, given)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_operator_contract() -> None:
    """Schema, fake kernels, autograd registration and tracing, as PyTorch checks them."""
    given = problem((2, 2, 3, 8), "per sample")
    from dar.kernels import op

    torch.library.opcheck(op._route, (given["sources"], given["query"], 0.3, 1e-6, 2.0))


def test_one_graph_under_compile() -> None:
    given = problem((3, 2, 5, 16), "per sample")
    expected = results(fused, given)
    torch.compiler.reset()
    assert_near(results(torch.compile(fused, backend="aot_eager", fullgraph=True), given), expected, 1e-6)


def test_under_checkpointing() -> None:
    given = problem((3, 2, 5, 16), "static")
    expected = results(fused, given)

    def recomputed(*args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(fused, *args, use_reentrant=False)

    assert_near(results(recomputed, given), expected, 1e-7)


def test_forward_mode_is_refused() -> None:
    """Where it would give a tangent of zero."""
    sources = (torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    tangents = (torch.ones(1, 2, 8), torch.ones(1, 2, 8))
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda *v: depth_route(list(v), torch.ones(8), backend="triton"), sources, tangents)


def test_what_it_cannot_take_is_said() -> None:
    source = torch.zeros(1, 1, 8)
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton; got 'cuda'"):
        depth_route([source], source[0, 0], backend="cuda")
    with pytest.raises(ValueError, match=r"cannot run: sources are torch\.float64"):
        depth_route([source.double()], source[0, 0].double(), backend="triton")
    with pytest.raises(ValueError, match="cannot run: sources differ in dtype or device"):
        depth_route([source, source.half()], source[0, 0], backend="triton")
    with pytest.raises(ValueError, match=f"there are {MAX_SOURCES + 1} sources; it takes at most {MAX_SOURCES}"):
        depth_route([source] * (MAX_SOURCES + 1), source[0, 0], backend="triton")


def test_triton_on_the_cpu_is_for_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.zeros(1, 1, 8)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="sources are on cpu; it takes cuda, or the cpu under TRITON_INTERPRET=1"):
        choose_backend("triton", [source])


def test_auto_on_the_cpu_is_torch() -> None:
    assert choose_backend("auto", [torch.zeros(1, 1, 8)]) == "torch"
    assert choose_backend("torch", [torch.zeros(1, 1, 8)]) == "torch"


def test_more_sources_than_any_unrolled_kernel_takes() -> None:
    given = problem((130, 1, 1, 8), "static")
    assert_near(results(fused, given), results(depth_route_reference, in_float64(given)), 2e-5)


def test_compiled_without_stack_and_with_wide_loads() -> None:
    """For sm_80 and sm_90, which need not be here: no spills, 16 bytes at a time."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("codegen.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, binary in json.loads(done.stdout).items():
        assert binary["stack"] == 0, name
        assert binary["wide_loads"] >= 2 and binary["wide_stores"] >= 1, name
        assert binary["wide_pipelined_loads"] >= 3, name  # the loop over sources runs ahead of itself
