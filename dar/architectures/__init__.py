"""Where a stock transformer reads its residual streams: what `dar.attach_routing` has to know of it.

One file per architecture, and in it a list of the names of its norms. To add one: a file here,
`@register_architecture("ClassName")` on a function of the model, a test.
"""

from dar.architectures import dit, flux, flux2, pixart, qwen_image, sd3, wan
from dar.architectures.base import ARCHITECTURES, Architecture, StreamNorms, architecture_of, register_architecture

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "StreamNorms",
    "architecture_of",
    "dit",
    "flux",
    "flux2",
    "pixart",
    "qwen_image",
    "register_architecture",
    "sd3",
    "wan",
]
