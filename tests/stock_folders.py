"""Folders of small stock transformers, and of prompts that they can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dar import RoutingConfig
from distill.conditions import condition_of
from distill.conditions.prompt_files import begin_prompts, finish_prompts, write_prompt
from distill.models import load_model
from distill.models.stock import STOCK, write_reference
from distill.sampling.flow import interpolate
from distill.verbs.retrofit import StockOptions, retrofit
from tests.tiny_transformers import TINY

PROMPTS = ("a cat", "a red kite over the sea", "two dogs")
LENGTHS = (3, 5, 4)


def prompts_folder(folder: Path, class_name: str, widths: dict[str, int]) -> Path:
    """Random embeddings of `PROMPTS`, as a model of that class is told them."""
    masks = STOCK[class_name].masks
    begin_prompts(folder, {"model": class_name}, PROMPTS)
    generator = torch.Generator().manual_seed(5)
    for number in range(-1, len(PROMPTS)):
        length = LENGTHS[number] if masks and number >= 0 else 5
        tensors = {}
        for name, width in widths.items():
            shape = (length, width) if name.startswith("encoder") else (width,)
            tensors[name] = torch.randn(shape, generator=generator)
        for name in masks:
            tensors[name] = torch.ones(length, dtype=torch.int64)
        write_prompt(folder, number, tensors)
    finish_prompts(folder)
    return folder


def stock_folder(name: str, folder: Path) -> tuple[Path, Path | None]:
    """A transformer's own folder, and that of prompts; None for a model of classes."""
    model, inputs = TINY[name]()
    model.save_pretrained(folder / "transformer")
    class_name = type(model).__name__
    widths = {tensor: inputs[tensor].shape[-1] for tensor in STOCK[class_name].conditions}
    prompts = prompts_folder(folder / "prompts", class_name, widths) if widths else None
    return folder / "transformer", prompts


SHAPES = {
    "sd3": (4, 8, 8), "sd35": (4, 8, 8), "qwen_image": (4, 8, 8), "flux": (4, 8, 8), "flux2": (16, 4, 4),
    "wan": (4, 3, 8, 8), "wan_identity": (4, 3, 8, 8), "pixart": (4, 8, 8), "dit": (4, 8, 8),
}  # fmt: skip


def taught(model: Any, updates: int = 60) -> Any:
    """Trained in place, for seconds, on Gaussian data whose mean depends on the prompt: enough for a preflight."""
    generator = torch.Generator().manual_seed(2)
    condition = condition_of(model)
    means = 0.5 * torch.randn(condition.num_distinct, *model.sample_shape, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    y = condition.balanced(12)
    for _ in range(updates):
        x0 = means[condition.groups(y)] + 0.2 * torch.randn(12, *model.sample_shape, generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.rand(12, generator=generator)
        loss = (model(interpolate(x0, eps, t), t, y) - (eps - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def routed_teacher(name: str, folder: Path, sources: str = "written") -> Path:
    """A taught stock transformer with attached routing, as `retrofit` writes it."""
    transformer, prompts = stock_folder(name, folder)
    write_reference(folder / "plain", transformer, SHAPES[name], None)
    taught(load_model(folder / "plain", str(prompts))).transformer.save_pretrained(transformer)
    stock = StockOptions(str(prompts), SHAPES[name], sources=sources)
    retrofit(transformer, folder / "routed", RoutingConfig(scale="count", chunk_size=2), stock=stock)
    return folder / "routed"
