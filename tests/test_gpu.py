"""What only a GPU can show: the compiled kernels at the sizes of SiT-XL/2, CUDA graphs, memory. `pytest -m gpu`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dar import RoutingConfig, SiT, depth_route, depth_route_reference
from distill.config import RolesConfig
from distill.models.frozen import frozen_in
from distill.models.launching import EAGER_VARIABLE
from distill.objectives.task import DistillationTask, build_models
from distill.sampling import draw_images, few_step_sampler
from distill.sampling.schedules import t_grid
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


@pytest.mark.parametrize("routing", [RoutingConfig(kind="residual"), RoutingConfig(chunk_size=1)])
def test_a_sampler_by_graphs_draws_what_single_kernels_draw(routing: RoutingConfig, monkeypatch) -> None:
    """Ten images in batches of four: the first as it is, the second captured, two rows of the third filled up."""
    model = perturbed(SiT(tiny_config(hidden_size=64, depth=6, routing=routing)), std=0.1).cuda()
    sampler = few_step_sampler("student", model, t_grid(4)[:-1])
    y = torch.arange(10) % 3
    graphs, _ = draw_images(sampler, y, seed=0, batch_size=4)
    monkeypatch.setenv(EAGER_VARIABLE, "1")
    expected, _ = draw_images(sampler, y, seed=0, batch_size=4)
    assert torch.equal(graphs[:8], expected[:8])
    torch.testing.assert_close(graphs[8:], expected[8:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("roles", ["all", "lora"])
@pytest.mark.parametrize("rollout", ["random_step", "shared"])
def test_updates_by_graphs_are_those_of_single_kernels(
    run_config, tmp_path, roles: str, precision: str, rollout: str
) -> None:
    perturbed(SiT(tiny_config(hidden_size=64, depth=6)), std=0.1).save_pretrained(tmp_path / "teacher")
    config = replace(
        run_config,
        teacher=replace(run_config.teacher, path=str(tmp_path / "teacher")),
        roles=RolesConfig(roles, 4),
        student=replace(run_config.student, rollout=rollout),
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, found = Accelerator(mixed_precision=precision), {}
    for launch in ("eager", "graph"):
        torch.manual_seed(0)
        train = replace(config.train, launch=launch)
        models = build_models(config).to(accelerator.device)
        task = DistillationTask(replace(config, train=train), models, accelerator, 1.0)
        with frozen_in(precision, models.teacher):
            values = [{name: float(value) for name, value in task.update(step).items()} for step in range(5)]
        found[launch] = values, [parameter.clone() for parameter in task.student.module.parameters()]
    assert found["graph"][0] == found["eager"][0]
    assert all(torch.equal(*pair) for pair in zip(found["graph"][1], found["eager"][1], strict=True))
    AcceleratorState._reset_state(reset_partial_state=True)


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
