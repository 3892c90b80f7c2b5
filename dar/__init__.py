"""dar: diffusion transformers with Diffusion-Adaptive Routing (arXiv:2605.20708)."""

from dar import architectures
from dar.attached import attach_routing, detach_routing
from dar.attached_folder import load_routing, save_routing, stock_weights
from dar.checkpoints import describe_checkpoint, load_pretrained, load_projectors
from dar.folding import FoldedTimestep, fold_routing
from dar.presets import PRESETS, num_parameters, preset, sit_plus
from dar.reference import depth_route_reference
from dar.retrofit import function_error, replace_routing, retrofit
from dar.route import depth_route
from dar.routing import RoutingConfig
from dar.sit import SiT, SiTConfig

__all__ = [
    "PRESETS",
    "FoldedTimestep",
    "RoutingConfig",
    "SiT",
    "SiTConfig",
    "architectures",
    "attach_routing",
    "depth_route",
    "depth_route_reference",
    "describe_checkpoint",
    "detach_routing",
    "fold_routing",
    "function_error",
    "load_pretrained",
    "load_projectors",
    "load_routing",
    "num_parameters",
    "preset",
    "replace_routing",
    "retrofit",
    "save_routing",
    "sit_plus",
    "stock_weights",
]
