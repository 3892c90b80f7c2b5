"""What only a GPU can show: the compiled kernels at the sizes of SiT-XL/2, CUDA graphs, memory. `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from dar import RoutingConfig, SiT, depth_route, depth_route_reference
from tests.conftest import perturbed, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def leaves(num: int, tokens: int, dim: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    sources = [torch.randn(2, tokens, dim, generator=generator, device="cuda").to(dtype) for _ in range(num)]
    query = torch.randn(2, dim, generator=generator, device="cuda")
    return [source.requires_grad_() for source in sources], query.requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("num", "dim"), [(1, 1152), (33, 1000), (57, 1152)])
def test_one_router(num: int, dim: int, dtype: torch.dtype, tolerance: float) -> None:
    sources, query = leaves(num, 130, dim, dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in (*sources, query)]
    mixture, weights = depth_route(sources, query, backend="triton", return_weights=True)
    expected, expected_weights = depth_route_reference(exact[:-1], exact[-1])
    upstream = torch.linspace(-1, 1, mixture.numel(), device="cuda").view_as(mixture)
    mixture.backward(upstream.to(dtype))
    expected.backward(upstream.to(dtype).double())
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-3, atol=1e-6)
    pairs = [(mixture, expected), *((a.grad, b.grad) for a, b in zip((*sources, query), exact, strict=True))]
    for got, right in pairs:
        assert got is not None and right is not None
        assert (got.double() - right).norm() <= tolerance * right.norm().clamp_min(1)


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_by_kernels_and_by_torch(chunk_size: int, compiled: bool) -> None:
    config = tiny_config(hidden_size=64, depth=6, routing=RoutingConfig(chunk_size=chunk_size))
    model = perturbed(SiT(config), std=0.1).cuda()
    x, t, y = torch.randn(3, 1, 8, 8, device="cuda"), torch.rand(3, device="cuda"), torch.arange(3, device="cuda")
    found = {}
    for backend in ("torch", "triton"):
        model.routing.backend = backend
        model.zero_grad()
        call = torch.compile(model, fullgraph=True) if compiled and backend == "triton" else model
        output = call(x, t, y)
        output.square().sum().backward()
        found[backend] = [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    for got, right in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(got, right, rtol=2e-3, atol=2e-4 * float(right.abs().max()))


def test_a_cuda_graph_of_the_sampler() -> None:
    """Captured once, replayed on other inputs."""
    model = perturbed(SiT(tiny_config(hidden_size=64, depth=6, routing=RoutingConfig(chunk_size=1))), std=0.1).cuda()
    model.routing.backend = "triton"
    x, t, y = torch.randn(3, 1, 8, 8, device="cuda"), torch.rand(3, device="cuda"), torch.arange(3, device="cuda")
    with torch.no_grad():
        for _ in range(3):
            model(x, t, y)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(x, t, y)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(output, model(x, t, y))


def test_a_tape_keeps_a_twentieth_of_what_eager_keeps() -> None:
    """Beside the sources themselves."""
    sources, query = leaves(57, 1024, 1152, torch.bfloat16)

    def kept(route) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        mixture = route(sources, query)
        used = torch.cuda.memory_allocated() - before
        del mixture
        return used

    kept(lambda *given: depth_route(*given, backend="triton"))  # compiles
    fused = kept(lambda *given: depth_route(*given, backend="triton"))
    assert fused <= 0.05 * kept(lambda *given: depth_route_reference(*given)[0])
