"""A plain model's folder to a routed one's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from dar import SiT, attach_routing, function_error, replace_routing, save_routing
from dar import retrofit as retrofit_model
from distill.conditions import CLASSES_FILE, Prompts
from distill.config import RoutingConfig
from distill.errors import UserError
from distill.files import new_folder, write_folder
from distill.models import model_folder
from distill.models.families import check_finite
from distill.models.stock import StockBackbone, load_stock, write_reference
from distill.models.stock.folders import is_stock
from distill.sampling.samplers import SAMPLER_FILE


@dataclass(frozen=True)
class Retrofitted:
    """parameters: that the routing added. worst, typical: change of the velocity, over its RMS; NaN where the model has
    no prompts to be asked with."""

    folder: Path
    kind: str
    parameters: int
    worst: float
    typical: float


@dataclass(frozen=True)
class StockOptions:
    """What a folder says of a stock transformer, beside its routing.

    prompts: a folder of encoded prompts. sample_shape: (C, H, W) or (C, F, H, W) of its latents. guidance: what a model
    that embeds a guidance scale is told. sources: as `dar.attach_routing` takes them.
    """

    prompts: str | None = None
    sample_shape: tuple[int, ...] | None = None
    guidance: float | None = None
    sources: str = "differences"


def retrofit(
    source: str | Path,
    target: str | Path,
    routing: RoutingConfig | None = None,
    *,
    lossy: bool = False,
    stock: StockOptions | None = None,
) -> Retrofitted:
    """Load, give routing, measure what that changed, save with the files that belong to the model.

    The folder of a stock transformer refers to its weights, which are not copied.

    Args:
        source: folder of a plain model, or of a transformer or pipeline of diffusers. target: a new folder.
        routing: None for DAR that starts as the plain model.
        lossy: also a routing that starts from another function. stock: for a transformer of diffusers.

    Raises: UserError where the routing cannot start as what the model computes, or an option does not fit.
    """
    routing = routing or RoutingConfig(scale="count")
    folder = new_folder(str(target), "target")
    origin = model_folder(str(source))
    if is_stock(origin):
        return _retrofit_stock(origin, folder, routing, lossy, stock or StockOptions())
    if stock not in (None, StockOptions()):
        raise UserError(f"{source}: prompts, sample_shape, guidance and sources are for a transformer of diffusers")
    plain = SiT.from_pretrained(origin)
    check_finite(plain, str(source))
    try:
        routed = (replace_routing if lossy else retrofit_model)(plain, routing)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    worst, typical = function_error(plain, routed)

    def fill(path: Path) -> None:
        routed.save_pretrained(path)
        for name in (CLASSES_FILE, SAMPLER_FILE):
            if (origin / name).is_file():
                shutil.copy(origin / name, path / name)

    write_folder(folder, fill)
    added = sum(p.numel() for p in routed.routing.parameters())
    return Retrofitted(folder, routing.kind, added, worst, typical)


def _retrofit_stock(
    origin: Path, folder: Path, routing: RoutingConfig, lossy: bool, options: StockOptions
) -> Retrofitted:
    loaded = load_stock(origin)
    if loaded.routing is not None:
        raise UserError(f"{origin} has a routing already")
    backbone = StockBackbone(loaded.transformer, loaded.source, options.sample_shape, options.guidance)
    if options.prompts is not None:
        backbone.set_prompts(Prompts.load(options.prompts))
    expected = _velocity(backbone)
    try:
        attached = attach_routing(backbone.transformer, routing, sources=options.sources).routing
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from error
    if not lossy and not all(stream.starts_as_residual for stream in attached.streams.values()):
        raise UserError(
            f"routing.scale = {routing.scale}, summary = {routing.summary} does not start as the plain model; scale "
            "count with summary sum does, --lossy takes any"
        )
    difference = _velocity(backbone) - expected
    rms = expected.square().mean().sqrt()

    def fill(path: Path) -> None:
        write_reference(path, backbone.source, backbone.sample_shape, backbone.guidance)
        save_routing(backbone.transformer, path)
        if isinstance(condition := getattr(backbone, "condition", None), Prompts):
            condition.save(path)

    write_folder(folder, fill)
    added = sum(p.numel() for p in attached.parameters())
    worst, typical = float(difference.abs().max() / rms), float(difference.square().mean().sqrt() / rms)
    return Retrofitted(folder, routing.kind, added, worst, typical)


@torch.no_grad()
def _velocity(backbone: StockBackbone) -> torch.Tensor:
    """At two noise levels; NaN for a model of prompts that has none."""
    if not hasattr(backbone, "condition"):
        return torch.full((1,), torch.nan)
    noise = torch.randn(2, *backbone.sample_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.9])
    return backbone(noise, t, backbone.condition.balanced(2)).double()
