"""dar: diffusion transformers with Diffusion-Adaptive Routing (arXiv:2605.20708)."""

from dar.presets import PRESETS, preset
from dar.reference import depth_route_reference
from dar.route import depth_route
from dar.routing import RoutingConfig
from dar.sit import SiT, SiTConfig

__all__ = [
    "PRESETS",
    "RoutingConfig",
    "SiT",
    "SiTConfig",
    "depth_route",
    "depth_route_reference",
    "preset",
]
