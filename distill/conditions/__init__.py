"""What a model is conditioned on: class labels, or anything else with the interface `Condition`.

Batches of conditions (`y` everywhere) are made here, and cut, joined and moved by the functions of `batches`.
May import errors.
"""

from distill.conditions.base import Condition, condition_of
from distill.conditions.batches import (
    ConditionBatch,
    chunk_rows,
    concat_rows,
    map_tensors,
    num_rows,
    repeat_rows,
    slice_rows,
    take_rows,
    to_device,
    where_rows,
)
from distill.conditions.class_labels import CLASSES_FILE, ClassLabels

__all__ = [
    "CLASSES_FILE",
    "ClassLabels",
    "Condition",
    "ConditionBatch",
    "chunk_rows",
    "concat_rows",
    "condition_of",
    "map_tensors",
    "num_rows",
    "repeat_rows",
    "slice_rows",
    "take_rows",
    "to_device",
    "where_rows",
]
