"""Models: the protocol they keep, how they are loaded, copied, adapted (LoRA), sharded (FSDP2) and averaged (EMA).

May import dar, config, conditions, assets and errors.
"""

from distill.models.backbone import Backbone
from distill.models.families import FAMILIES, load_model

__all__ = ["FAMILIES", "Backbone", "load_model"]
