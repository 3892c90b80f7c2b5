"""A plain model's folder to a routed one's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dar import SiT, function_error, replace_routing
from dar import retrofit as retrofit_model
from distill.conditions import CLASSES_FILE
from distill.config import RoutingConfig
from distill.errors import UserError
from distill.files import new_folder, write_folder
from distill.models import model_folder
from distill.models.families import check_finite
from distill.sampling.samplers import SAMPLER_FILE


@dataclass(frozen=True)
class Retrofitted:
    """parameters: that the routing added. worst, typical: change of the velocity, over its RMS."""

    folder: Path
    kind: str
    parameters: int
    worst: float
    typical: float


def retrofit(
    source: str | Path, target: str | Path, routing: RoutingConfig | None = None, *, lossy: bool = False
) -> Retrofitted:
    """Load, give routing, measure what that changed, save with the files that belong to the model.

    Args:
        source: folder of a plain model. target: a new folder. routing: None for DAR that starts as the plain model.
        lossy: also a routing that starts from another function.

    Raises: UserError where the routing cannot start as what the model computes.
    """
    routing = routing or RoutingConfig(scale="count")
    folder = new_folder(str(target), "target")
    origin = model_folder(str(source))
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
