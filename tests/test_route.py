"""depth_route against equation 5 written out, in float64."""

import pytest
import torch
from torch import Tensor

from dar import depth_route, depth_route_reference
from dar.route import mix

B, T = 2, 3


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_sources(num: int, dim: int) -> list[Tensor]:
    return [draw(B, T, dim, seed=100 + i) for i in range(num)]


def query_shape(form: str, dim: int) -> tuple[int, ...]:
    return {"d": (dim,), "Bd": (B, dim), "BTd": (B, T, dim)}[form]


def outputs_and_gradients(function, sources, query, gain, **options):
    leaves = [x.clone().requires_grad_() for x in [*sources, query] + ([] if gain is None else [gain])]
    num = len(sources)
    h, weights = function(leaves[:num], leaves[num], leaves[num + 1] if gain is not None else None, **options)
    # Both outputs take part, so that the gradient of the weights is held to account too.
    loss = (h * draw(*h.shape, seed=7)).sum() + (weights * draw(*weights.shape, seed=8)).sum()
    return [h, weights, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("with_gain", [False, True])
@pytest.mark.parametrize("form", ["d", "Bd", "BTd"])
@pytest.mark.parametrize(("num", "dim"), [(1, 8), (2, 5), (3, 37), (15, 8), (33, 13)])
def test_equals_the_reference(num, dim, form, with_gain):
    sources, query = draw_sources(num, dim), draw(*query_shape(form, dim))
    gain = draw(dim, seed=1) if with_gain else None
    fast = outputs_and_gradients(depth_route, sources, query, gain, return_weights=True)
    slow = outputs_and_gradients(depth_route_reference, sources, query, gain)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_reference_is_the_equation():
    """One token by hand: keys divided by their RMS, times gain; softmax of scale <q, k>."""
    sources, query, gain = draw_sources(4, 6), draw(6), draw(6, seed=1)
    h, weights = depth_route_reference(sources, query, gain, scale=0.7, eps=0.0)
    v = [source[1, 2] for source in sources]
    e = [(0.7 * (query * gain) @ (x / (x @ x / 6).sqrt())).exp() for x in v]
    torch.testing.assert_close(weights[:, 1, 2], torch.stack(e) / sum(e))
    torch.testing.assert_close(h[1, 2], sum(a * x for a, x in zip(e, v, strict=True)) / sum(e))


@pytest.mark.parametrize("scale", [None, 0.0, 0.3, -2.0])
def test_scale(scale):
    sources, query = draw_sources(5, 7), draw(7)
    expected, _ = depth_route_reference(sources, query, scale=7**-0.5 if scale is None else scale)
    torch.testing.assert_close(depth_route(sources, query, scale=scale), expected)


def test_eps_is_under_the_root():
    sources, query = draw_sources(3, 7), draw(7)
    expected, _ = depth_route_reference(sources, query, eps=0.5)
    torch.testing.assert_close(depth_route(sources, query, eps=0.5), expected)
    assert not torch.allclose(depth_route(sources, query), expected)


@pytest.mark.parametrize("form", ["d", "Bd", "BTd"])
@pytest.mark.parametrize("num", [1, 3])
def test_gradcheck(form, num):
    dim = 5
    inputs = [x.requires_grad_() for x in (*draw_sources(num, dim), draw(*query_shape(form, dim)), draw(dim, seed=1))]

    def function(*leaves: Tensor):
        return depth_route(leaves[:num], leaves[num], leaves[num + 1], return_weights=True)

    assert torch.autograd.gradcheck(function, inputs)


def test_sources_of_any_memory_layout():
    dim, query = 6, draw(6)
    transposed = draw(B, dim, T).transpose(1, 2)
    strided = draw(B, T, 2 * dim)[..., ::2]
    expanded = draw(1, 1, dim).expand(B, T, dim)
    sources = [transposed, strided, expanded, transposed]
    assert not any(source.is_contiguous() for source in sources)
    expected, _ = depth_route_reference([source.contiguous() for source in sources], query)
    torch.testing.assert_close(depth_route(sources, query), expected)


def test_a_repeated_source_gathers_both_gradients():
    other, query = draw(B, T, 6, seed=3), draw(6)
    results = []
    for function in (depth_route, lambda *inputs: depth_route_reference(*inputs)[0]):
        v = draw(B, T, 6).requires_grad_()
        h = function([v, other, v], query)
        results += [h, *torch.autograd.grad((h * other).sum(), v)]
    torch.testing.assert_close(results[:2], results[2:])


def test_constant_sources_get_no_gradient():
    sources, query = draw_sources(3, 6), draw(6).requires_grad_()
    sources[1].requires_grad_()
    depth_route(sources, query).square().sum().backward()
    assert sources[0].grad is None and sources[2].grad is None
    assert sources[1].grad is not None and query.grad is not None


@pytest.mark.parametrize("form", ["d", "Bd", "BTd"])
def test_bf16_rounds_once(form):
    """Sums run in float32: against float64 of the same rounded inputs only the last rounding is left."""
    dim, num = 64, 15
    sources = [source.bfloat16() for source in draw_sources(num, dim)]
    query = draw(*query_shape(form, dim)).bfloat16()
    expected, expected_weights = depth_route_reference([s.double() for s in sources], query.double())
    h, weights = depth_route(sources, query, return_weights=True)
    assert h.dtype == torch.bfloat16 and weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(h.double(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("learns", [False, True])
def test_a_mixture_has_the_type_of_its_first_source(learns):
    """Under autocast the embedding is float32 and what follows is not."""
    first, *others = draw_sources(4, 16)
    sources = [first.float(), *(source.bfloat16() for source in others)]
    weights = torch.rand(4, B, T).requires_grad_(learns)
    expected = sum(w.unsqueeze(-1) * v.float() for w, v in zip(weights, sources, strict=True))
    torch.testing.assert_close(mix(sources, weights), expected)
    assert depth_route(sources, draw(16).float().requires_grad_(learns)).dtype == torch.float32


def test_bf16_gradients():
    sources = [source.bfloat16().requires_grad_() for source in draw_sources(9, 64)]
    query = draw(64).bfloat16().requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (*sources, query)]
    upstream = draw(B, T, 64, seed=5).bfloat16()
    depth_route(sources, query).backward(upstream)
    depth_route_reference(exact[:-1], exact[-1])[0].backward(upstream.double())
    for leaf, reference in zip((*sources, query), exact, strict=True):
        assert leaf.grad is not None and leaf.grad.dtype == torch.bfloat16
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=2**-7, atol=2e-3)


def test_sources_of_very_different_size_and_a_row_of_zeros():
    sources = [source * 10.0**power for source, power in zip(draw_sources(8, 16), range(-3, 5), strict=True)]
    sources[2][0, 1] = 0
    sources = [source.float().requires_grad_() for source in sources]
    query = draw(16).float().requires_grad_()
    h = depth_route(sources, query)
    expected, _ = depth_route_reference([s.double() for s in sources], query.double())
    torch.testing.assert_close(h.double(), expected, rtol=1e-4, atol=1e-3)
    h.square().sum().backward()
    for leaf in (*sources, query):
        assert leaf.grad is not None and leaf.grad.isfinite().all()


@pytest.mark.parametrize("form", ["d", "Bd", "BTd"])
def test_zero_queries_give_the_mean(form):
    sources = draw_sources(7, 6)
    h, weights = depth_route(sources, torch.zeros(query_shape(form, 6), dtype=torch.float64), return_weights=True)
    torch.testing.assert_close(h, torch.stack(sources).mean(0))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 7))


def test_a_single_source_is_returned_whatever_the_query():
    (source,), query = draw_sources(1, 6), draw(6).requires_grad_()
    h = depth_route([source], query)
    torch.testing.assert_close(h, source, rtol=0, atol=0)
    h.square().sum().backward()
    assert query.grad is not None and query.grad.abs().max() < 1e-14


def test_weights_are_a_distribution_over_sources():
    h, weights = depth_route(draw_sources(33, 6), 20 * draw(B, 6), return_weights=True)
    assert weights.shape == (33, B, T) and h.shape == (B, T, 6)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(B, T, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sources", "query", "gain", "message"),
    [
        ([], (6,), None, "at least one source"),
        ([(B, 6)], (6,), None, r"\(B, T, d\), got \(2, 6\)"),
        ([(B, T, 6), (B, T, 5)], (6,), None, r"source 1 has shape \(2, 3, 5\), source 0 has \(2, 3, 6\)"),
        ([(B, T, 6)], (5,), None, r"query has shape \(5,\); .* \(2, 3, 6\)"),
        ([(B, T, 6)], (T, 6), None, r"query has shape \(3, 6\)"),
        ([(B, T, 6)], (6,), (5,), r"gain has shape \(5,\); .* \(6,\)"),
    ],
)
def test_what_does_not_fit_is_named(sources, query, gain, message):
    with pytest.raises(ValueError, match=message):
        depth_route([draw(*s) for s in sources], draw(*query), None if gain is None else draw(*gain))
