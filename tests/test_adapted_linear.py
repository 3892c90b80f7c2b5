"""Linear layers with adapters: merged for a pass where that needs fewer operations, the same numbers either way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from distill.models.adapted_linear import AdaptedLinear
from distill.models.lora import add_adapters
from distill.models.merging import merging_is_cheaper

SHAPES = [(rows, d_in, d_out, rank) for rows in (1, 8, 100) for d_in, d_out in ((32, 32), (32, 96)) for rank in (2, 24)]


class Net(nn.Module):
    adapted_layers = "fc"

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d_in, d_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def adapted(d_in: int, d_out: int, rank: int) -> Any:
    torch.manual_seed(0)
    net = Net(d_in, d_out)
    add_adapters(net, rank, base="x", field="x")
    layer: Any = net.fc
    assert type(layer) is AdaptedLinear
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer


def operations(layer: Any, x: Tensor, learns: bool) -> int:
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learns):
        y = layer(x)
        if learns:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(("rows", "d_in", "d_out", "rank"), SHAPES)
def test_the_way_of_fewer_operations_is_taken(rows: int, d_in: int, d_out: int, rank: int, learns: bool) -> None:
    layer, x = adapted(d_in, d_out, rank), torch.randn(rows, d_in, requires_grad=learns)
    beside = operations(lambda x: Linear.forward(layer, x), x, learns)
    merged = operations(lambda x: F.linear(x, merged_weight(layer), layer.base_layer.bias), x, learns)
    assert operations(layer, x, learns) == min(beside, merged)
    if beside != merged:
        assert merging_is_cheaper(rows, d_in, d_out, rank, learns) == (merged < beside)


def merged_weight(layer: Any) -> Tensor:
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return torch.addmm(layer.base_layer.weight, b, a)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_output_and_gradients_are_those_of_the_formula(scale: float) -> None:
    layer, x = adapted(32, 32, 24), torch.randn(4, 25, 32, requires_grad=True)
    layer.scaling["default"] = scale
    assert merging_is_cheaper(100, 32, 32, 24, learns=True)
    leaves = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    w, bias = layer.base_layer.weight.detach().double(), layer.base_layer.bias.detach().double()
    y, expected = layer(x), exact[0] @ w.T + bias + scale * exact[0] @ exact[1].T @ exact[2].T
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, g)
    for grad, of_formula in zip(found, torch.autograd.grad(expected, exact, g.double()), strict=True):
        torch.testing.assert_close(grad.double(), of_formula, rtol=1e-5, atol=1e-3)
    assert layer.base_layer.weight.grad is None and not layer.base_layer.weight.requires_grad


@pytest.mark.parametrize("way", ["float32", "weights", "autocast"])
def test_in_low_precision_a_small_change_of_the_weight_is_not_lost(way: str) -> None:
    """1 + 0.001 is 1 in bfloat16, so that a merged adapter would have no effect."""
    layer, x = adapted(32, 32, 24), torch.zeros(64, 32)
    x[:, 0], x[:, 1] = 1.0, -1.0  # W x = 0, B A x = 0.001
    with torch.no_grad():
        layer.base_layer.weight.fill_(1.0), layer.base_layer.bias.zero_()
        layer.lora_A["default"].weight.zero_()[:, 0] = 0.001
        layer.lora_B["default"].weight.fill_(1 / 24)
    if way == "weights":
        layer.base_layer.bfloat16()
        x = x.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        torch.testing.assert_close(layer(x).float(), torch.full((64, 32), 0.001), rtol=0.01, atol=0)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_other_kinds_of_adapters_are_left_to_peft(options: dict[str, Any]) -> None:
    config = LoraConfig(r=24, target_modules=["fc"], init_lora_weights=False, **options)
    config._register_custom_module({nn.Linear: AdaptedLinear})
    torch.manual_seed(0)
    net: Any = Net(32, 32)
    inject_adapter_in_model(config, net)
    layer = net.fc
    x = torch.randn(20, 32)
    torch.manual_seed(1)
    expected = Linear.forward(layer, x)
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    assert not torch.allclose(expected, F.linear(x, merged_weight(layer), layer.base_layer.bias))
