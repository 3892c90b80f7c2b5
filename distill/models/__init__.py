"""Models: the interface of a backbone, and how to load, copy, adapt (LoRA), shard (FSDP2) and average (EMA) one.

May import dar, config, conditions, assets and errors.
"""

from distill.models.backbone import Backbone
from distill.models.families import FAMILIES, load_model, model_folder, save_model, set_classes

__all__ = ["FAMILIES", "Backbone", "load_model", "model_folder", "save_model", "set_classes"]
