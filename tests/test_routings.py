"""Every kind of routing: how it starts, what it computes, that it trains and survives a folder."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dar import (
    RoutingConfig,
    SiT,
    function_error,
    num_parameters,
    preset,
    replace_routing,
    retrofit,
    sit_plus,
)
from dar.routing import ROUTINGS
from dar.routing.hyper import DoublyStochasticMixing, sinkhorn
from dar.routing.queries import TokenQueries
from distill.assets import asset
from tests.test_sit import RESIDUAL, SMALL, generator, inputs, perturbed

KINDS = {
    "residual": RESIDUAL,
    "unet_skip": RoutingConfig(kind="unet_skip"),
    "attnres, full": RoutingConfig(kind="attnres", chunk_size=1),
    "attnres, blocks": RoutingConfig(kind="attnres", chunk_size=3),
    "attnres, blocks, no aggregator": RoutingConfig(kind="attnres", chunk_size=4, final=False),
    "densenet": RoutingConfig(kind="densenet", chunk_size=1),
    "densenet, chunks": RoutingConfig(kind="densenet", chunk_size=3),
    "densenet, last": RoutingConfig(kind="densenet", chunk_size=3, summary="last"),
    "hyper": RoutingConfig(kind="hyper"),
    "hyper, three streams": RoutingConfig(kind="hyper", streams=3),
    "mhc": RoutingConfig(kind="hyper", mixing="doubly_stochastic"),
    "dar": RoutingConfig(),
    "dar, count": RoutingConfig(scale="count"),
    "dar, count, anchor": RoutingConfig(scale="count", anchor=True, final=False),
    "dar, count, uneven": RoutingConfig(scale="count", query="dynamic", chunk_size=(1, 4, 3)),
    "dar, count, auto": RoutingConfig(scale="count", chunk_size="auto"),
    "dar, count, mean": RoutingConfig(scale="count", summary="mean"),
    "dar, count, dense mean": RoutingConfig(scale="count", summary="mean", chunk_size=1),
    "dar, count, one chunk": RoutingConfig(scale="count", summary="last", chunk_size=8),
    "dar, uneven": RoutingConfig(chunk_size=(2, 5, 1), summary="last"),
}
EVERY_KIND = pytest.mark.parametrize("routing", KINDS.values(), ids=KINDS.keys())


def test_no_kind_is_left_out():
    assert {routing.kind for routing in KINDS.values()} == set(ROUTINGS)


@EVERY_KIND
def test_starts_as_residual_says_the_truth(routing):
    plain = perturbed(SMALL)
    routed = replace_routing(plain, routing)
    worst, typical = function_error(plain, routed)
    assert typical <= worst
    if routed.routing.starts_as_residual:
        assert worst < 1e-12
    else:
        assert typical > 1e-8


@EVERY_KIND
def test_every_kind_trains(routing):
    """Away from the zeros of the start, gradients are finite and reach every parameter."""
    config = replace(SMALL, routing=routing)
    model = perturbed(config)
    model(*inputs(config)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@EVERY_KIND
def test_every_kind_survives_a_folder(routing, tmp_path):
    config = replace(SMALL, routing=routing)
    model = perturbed(config, torch.float32)
    model.save_pretrained(tmp_path)
    loaded = SiT.from_pretrained(tmp_path)
    assert loaded.config == config
    x = inputs(config, dtype=torch.float32)
    assert torch.equal(loaded(*x), model(*x))


def test_a_folder_from_before_a_field_existed_still_loads(tmp_path):
    config = replace(SMALL, routing=RoutingConfig())
    model = perturbed(config, torch.float32)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in ("streams", "mixing", "anchor"):
        del saved["routing"][name]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert SiT.from_pretrained(tmp_path).config == config


def outputs_of(num: int, dim: int = 16) -> list[Tensor]:
    return [torch.randn(2, 4, dim, generator=generator(i), dtype=torch.float64) for i in range(num)]


def test_each_reader_has_a_query_of_its_own() -> None:
    weight, previous = torch.randn(3, 4, 4), torch.randn(2, 5, 4)
    for reader in (1, 2, 3):
        torch.testing.assert_close(TokenQueries(weight).query(reader, previous), previous @ weight[reader - 1].T)


class Steady(torch.nn.Module):
    """A velocity of 2 wherever it is asked; keeps what it was asked."""

    sample_shape, t_range, null_label = (1, 4, 4), (0.0, 0.9), 3

    def __init__(self, velocity: float = 2.0) -> None:
        super().__init__()
        self.velocity = torch.nn.Parameter(torch.tensor(velocity))
        self.asked: list[tuple[torch.Tensor, ...]] = []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.asked.append((x_t, t, y))
        return self.velocity.expand(x_t.shape)


def test_models_are_compared_on_noise_mixed_into_their_own_estimates() -> None:
    model: Any = Steady()
    other: Any = Steady(2.5)
    assert function_error(model, other) == pytest.approx((0.25, 0.25))
    (eps, high, _), (x_t, t, y) = model.asked
    assert high.unique().tolist() == pytest.approx([0.9]) and t.tolist() == torch.linspace(0.05, 0.9, 16).tolist()
    assert y.tolist() == [0, 1, 2, 3] * 4
    row = t.view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - row) * (eps - 0.9 * 2) + row * eps)


@pytest.mark.parametrize("block", [1, 3, 4, 8])
def test_attention_residuals_as_the_paper_writes_them(block):
    """Finished blocks are kept as sums; the block at hand is one partial sum, none where it begins."""
    routing = perturbed(replace(SMALL, routing=RoutingConfig(kind="attnres", chunk_size=block))).routing
    outputs = outputs_of(9)
    stream = routing.open(outputs[0], torch.zeros(2, 16, dtype=torch.float64))
    blocks, partial = [outputs[0]], None
    for sublayer in range(1, 10):
        # The head reads behind the last sublayer, whose block is still the partial sum.
        if partial is not None and (sublayer - 1) % block == 0 and sublayer <= 8:
            blocks, partial = [*blocks, partial], None
        values = torch.stack(blocks if partial is None else [*blocks, partial])
        keys = values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * routing.queries.gain[sublayer - 1]
        alpha = (keys @ routing.queries.weight[sublayer - 1]).softmax(0)
        torch.testing.assert_close(stream.read(), (alpha[..., None] * values).sum(0))
        if sublayer <= 8:
            stream.write(outputs[sublayer])
            partial = outputs[sublayer] if partial is None else partial + outputs[sublayer]


def test_attention_residuals_start_from_the_mean():
    routing = SiT(replace(SMALL, routing=RoutingConfig(kind="attnres", chunk_size=1))).double().routing
    outputs = outputs_of(3)
    stream = routing.open(outputs[0], torch.zeros(2, 16))
    for output in outputs[1:]:
        stream.read()
        stream.write(output)
    torch.testing.assert_close(stream.read(), torch.stack(outputs).mean(0))


def test_densenet_weighs_by_its_scalars():
    routing = SiT(replace(SMALL, routing=RoutingConfig(kind="densenet", chunk_size=1))).double().routing
    assert routing.scalars.shape == (9 * 10 // 2,)
    with torch.no_grad():
        routing.scalars.copy_(torch.arange(45))
    outputs = outputs_of(4)
    stream = routing.open(outputs[0], torch.zeros(2, 16))
    for output in outputs[1:]:
        stream.read()
        stream.write(output)
    # Readers 1, 2, 3 have one, two, three scalars: the fourth begins at 6.
    expected = sum((6 + i) * output for i, output in enumerate(outputs))
    torch.testing.assert_close(stream.read(), expected)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_long_skips_as_u_vit_writes_them(depth):
    config = replace(SMALL, depth=depth, routing=RoutingConfig(kind="unet_skip"))
    model = perturbed(config)
    x_t, t, y = inputs(config)
    x = model.x_embedder(x_t) + model.pos_embed
    c = model.t_embedder(t) + model.y_embedder(y)
    skips, projections = [], list(model.routing.skips)
    assert len(projections) == depth // 2
    for k, block in enumerate(model.blocks):
        if k >= (depth + 1) // 2:
            x = projections.pop(0)(torch.cat([x, skips.pop()], dim=-1))
        modulation = block.modulation(c)
        x = x + block.attention(x, *modulation[:3])
        x = x + block.feed_forward(x, *modulation[3:])
        if k < depth // 2:
            skips.append(x)
    assert not skips and not projections
    torch.testing.assert_close(model(x_t, t, y), model._unpatchify(model.final_layer(x, c)))


@pytest.mark.parametrize("kind", [RoutingConfig(kind="unet_skip"), RoutingConfig(kind="densenet", chunk_size=1)])
def test_controls_start_as_residual_to_the_bit(kind):
    plain = perturbed(SMALL, torch.float32)
    assert function_error(plain, retrofit(plain, kind)) == (0, 0)


def random_mixing(mixing: str) -> torch.nn.Module:
    model = SiT(replace(SMALL, routing=RoutingConfig(kind="hyper", mixing=mixing, streams=3))).double()
    for parameter in model.routing.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator(8), dtype=torch.float64)
    return model.routing


@pytest.mark.parametrize("mixing", ["free", "doubly_stochastic"])
def test_hyper_connections_stream_by_stream(mixing):
    """H'_j = sum_i res_ij H_i + post_j v, with loops over the streams."""
    routing = random_mixing(mixing)
    outputs = outputs_of(4)
    stream = routing.open(outputs[0], torch.zeros(2, 16))
    streams = [outputs[0]] * 3
    for sublayer, output in enumerate(outputs[1:]):
        pre, res, post = routing.mixings[sublayer](torch.stack(streams, dim=2))
        expected = sum(pre[..., i, None] * streams[i] for i in range(3))
        torch.testing.assert_close(stream.read(), expected)
        stream.write(output)
        streams = [
            sum(res[..., i, j, None] * streams[i] for i in range(3)) + post[..., j, None] * output for j in range(3)
        ]
    torch.testing.assert_close(stream._streams, torch.stack(streams, dim=2))


def test_free_mixing_by_hand():
    mixing = random_mixing("free").mixings[0]
    streams = torch.randn(1, 1, 3, 16, generator=generator(9), dtype=torch.float64)
    pre, res, post = mixing(streams)
    for i in range(3):
        h = streams[0, 0, i]
        normed = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt()
        say = (normed @ mixing.token).tanh()
        gate_pre, gate_res, gate_post = mixing.gates
        torch.testing.assert_close(pre[0, 0, i], mixing.static[i, 0] + gate_pre * say[0])
        torch.testing.assert_close(res[0, 0, i], mixing.static[i, 1:4] + gate_res * say[1:4])
        torch.testing.assert_close(post[0, 0, i], mixing.static[i, 4] + gate_post * say[4])


def test_doubly_stochastic_mixing_keeps_its_promise():
    mixing = random_mixing("doubly_stochastic").mixings[0]
    streams = torch.randn(2, 4, 3, 16, generator=generator(9), dtype=torch.float64)
    pre, res, post = mixing(streams)
    assert (pre > 0).all() and (pre < 1).all() and (post > 0).all() and (post < 2).all() and (res > 0).all()
    ones = torch.ones(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(res.sum(-2), ones)
    torch.testing.assert_close(res.sum(-1), ones, atol=1e-3, rtol=0)
    assert (res - 1 / 3).abs().max() > 0.1  # not just uniform


def test_streams_begin_nearly_apart():
    """Of 4: e^4 / (e^4 + 3) of a stream stays in it."""
    mixing = DoublyStochasticMixing(0, 4, 8)
    res = mixing(torch.randn(2, 5, 4, 8)).res
    torch.testing.assert_close(res.diagonal(dim1=-2, dim2=-1), torch.full((2, 5, 4), math.exp(4) / (math.exp(4) + 3)))


def test_sinkhorn_keeps_a_doubly_stochastic_matrix():
    matrix = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.7, 0.2], [0.4, 0.1, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(matrix.log()), matrix)
    torch.testing.assert_close(sinkhorn((3 * matrix).log()), matrix)


def test_hyper_connections_leave_their_start():
    """Equal streams part company: after two steps of gradient descent they differ."""
    for mixing in ("free", "doubly_stochastic"):
        torch.manual_seed(0)
        config = replace(SMALL, routing=RoutingConfig(kind="hyper", mixing=mixing))
        model = replace_routing(perturbed(SMALL), config.routing)
        for _ in range(2):
            model.zero_grad()
            model(*inputs(config)).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
        x, t_embedding = outputs_of(2)[0], torch.zeros(2, 16)
        stream = model.routing.open(x, t_embedding)
        for output in outputs_of(3)[1:]:
            stream.read()
            stream.write(output)
        assert (stream._streams - stream._streams[:, :, :1]).abs().max() > 1e-6, mixing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": (2, 0, 6)}, r"routing\.chunk_size must be at least 1 \(1 = dense\); got 0"),
        ({"chunk_size": "often"}, r"routing\.chunk_size must be a whole number, a list of them or auto; got 'often'"),
        ({"chunk_size": (2, 1.5)}, r"routing\.chunk_size must be at least 1 \(1 = dense\); got 1\.5"),
        ({"anchor": 1}, r"routing\.anchor must be true or false; got 1"),
        ({"streams": 2.0}, r"routing\.streams must be a whole number; got 2\.0"),
        ({"streams": 1}, r"routing\.streams must be at least 2; got 1"),
        ({"mixing": "loose"}, r"routing\.mixing must be one of free, doubly_stochastic; got 'loose'"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(**change)


def test_chunks_that_do_not_make_up_the_depth_are_refused():
    with pytest.raises(ValueError, match=r"must add up to 8, the number of sublayers; \[4, 3\] adds up to 7"):
        SiT(replace(SMALL, routing=RoutingConfig(chunk_size=(4, 3))))


# Retrofit


def test_retrofit_is_exact_when_dense():
    """At every depth of a preset, in float32: 12, 24 and 28 blocks are 25, 49 and 57 sources for the head."""
    for depth in (1, 12, 24, 28):
        plain = perturbed(replace(SMALL, depth=depth), torch.float32)
        for query in ("static", "static_t", "dynamic"):
            routed = retrofit(plain, RoutingConfig(query=query, chunk_size=1, scale="count"))
            assert function_error(plain, routed) == (0, 0), (depth, query)


@pytest.mark.parametrize("chunk_size", [1, 4, (3, 10, 11), "auto"])
def test_retrofit_keeps_function_and_gradients(chunk_size):
    config = replace(SMALL, depth=12)
    routing = RoutingConfig(chunk_size=chunk_size, scale="count")
    narrow = perturbed(config, torch.float32)
    worst, _ = function_error(narrow, retrofit(narrow, routing))
    assert worst <= 1e-5
    plain = perturbed(config)
    routed = retrofit(plain, routing)
    for model in (plain, routed):
        model(*inputs(config)).square().mean().backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(routed.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("chunk_size", "limit"), [(1, 0.0), (4, 1e-5), ((8, 8, 16), 1e-5)])
def test_retrofit_on_trained_weights(chunk_size, limit):
    """The shipped teacher's backbone under the plain residual stream: trained weights, with all they amplify."""
    teacher = SiT.from_pretrained(asset("teacher"))
    plain = SiT(replace(teacher.config, routing=RESIDUAL))
    plain.load_state_dict({n: t for n, t in teacher.state_dict().items() if not n.startswith("routing.")})
    worst, _ = function_error(plain, retrofit(plain, RoutingConfig(chunk_size=chunk_size, scale="count")))
    assert worst <= limit


def test_retrofit_copies():
    plain = perturbed(SMALL)
    routed = retrofit(plain, RoutingConfig(scale="count"))
    with torch.no_grad():
        routed.final_layer.linear.weight.zero_()
    assert plain.final_layer.linear.weight.any()
    assert next(routed.parameters()).dtype == torch.float64


def test_retrofit_refuses_what_it_cannot_keep():
    plain = perturbed(SMALL)
    with pytest.raises(ValueError, match=r"summary 'last' and chunk_size 4 does not preserve the function"):
        retrofit(plain, RoutingConfig(scale="count", summary="last"))
    with pytest.raises(ValueError, match=r"kind 'attnres' .* does not preserve"):
        retrofit(plain, RoutingConfig(kind="attnres"))
    with pytest.raises(ValueError, match=r"only a plain model .* this one has 'dar'"):
        replace_routing(SiT(replace(SMALL, routing=RoutingConfig())), RESIDUAL)


def test_function_error_is_relative_to_the_velocity():
    """Twice the output weights: an error as large as the velocity itself."""
    plain = perturbed(SMALL)
    other = replace_routing(plain, RESIDUAL)
    assert function_error(plain, other) == (0, 0)
    with torch.no_grad():
        other.final_layer.linear.weight.mul_(2)
        other.final_layer.linear.bias.mul_(2)
    worst, typical = function_error(plain, other)
    assert typical == pytest.approx(1, rel=1e-9) and 1 < worst < 10


def test_sit_plus_is_no_smaller_and_hardly_larger():
    for query in ("static_t", "dynamic"):
        config = preset("SiT-XL/2", RoutingConfig(query=query))
        plus = sit_plus(config)
        assert plus.routing.kind == "residual" and plus.hidden_size % 16 == 0
        assert 1 <= num_parameters(plus) / num_parameters(config) < 1.03
    # The paper's SiT-Plus has 752 M.
    assert round(num_parameters(plus) / 1e6) == 752


@pytest.mark.parametrize("name", ["unet_skip", "attnres, full", "densenet", "hyper", "mhc", "dar, count"])
def test_one_graph_under_compile(name):
    """torch.compile sees the whole model, forward and backward, and computes the same."""
    torch.compiler.reset()
    config = replace(SMALL, depth=2 if name in ("unet_skip", "dar, count") else 1, routing=KINDS[name])
    model = perturbed(config)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(*inputs(config)).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, msg=parameter)
    if name != "dar, count":
        return  # the others take one way through the code, whether or not gradients are wanted
    with torch.no_grad():  # as a student is compiled to be sampled
        torch.testing.assert_close(compiled(*inputs(config)), model(*inputs(config)))
    model.requires_grad_(False)  # as a teacher is
    torch.testing.assert_close(compiled(*inputs(config)), model(*inputs(config)))


@pytest.mark.parametrize("name", ["residual", "dar, count", "densenet", "unet_skip", "hyper", "mhc"])
def test_no_value_is_looked_at(name):
    """Fake tensors have none: on a GPU nothing is waited for, and a CUDA graph can hold the model."""
    config = replace(SMALL, depth=2, routing=KINDS[name])
    model, given = SiT(config).double(), inputs(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(*given).shape == given[0].shape
