"""What a model is conditioned on: class labels, prompts, or anything else with the interface `Condition`.

Batches of conditions (`y` everywhere) are made here, and cut, joined and moved by the functions of `batches`.
May import dar.checksums, files and errors.
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
from distill.conditions.prompt_files import begin_prompts, finish_prompts, write_prompt
from distill.conditions.prompts import Prompts

__all__ = [
    "CLASSES_FILE",
    "ClassLabels",
    "Condition",
    "ConditionBatch",
    "Prompts",
    "begin_prompts",
    "chunk_rows",
    "concat_rows",
    "condition_of",
    "finish_prompts",
    "map_tensors",
    "num_rows",
    "repeat_rows",
    "slice_rows",
    "take_rows",
    "to_device",
    "where_rows",
    "write_prompt",
]
