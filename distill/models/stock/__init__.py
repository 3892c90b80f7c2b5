"""Stock transformers of diffusers as backbones: the family `stock`.

One file per architecture, which says how its forward is called. To add one: a file here, `@register("ClassName", ..)`
on a function, and where it shall be routed its norms in `dar/architectures`; a test.
"""

from distill.models.stock import dit, flux, flux2, pixart, qwen_image, sd3, wan
from distill.models.stock.backbone import StockBackbone
from distill.models.stock.base import STOCK, Stock, register
from distill.models.stock.folders import load_stock
from distill.models.stock.saving import BACKBONE_FILE, write_reference

__all__ = [
    "BACKBONE_FILE",
    "STOCK",
    "Stock",
    "StockBackbone",
    "dit",
    "flux",
    "flux2",
    "load_stock",
    "pixart",
    "qwen_image",
    "register",
    "sd3",
    "wan",
    "write_reference",
]
