"""Other classes for a pretrained model: a label table with rows of its own, taken over or new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dar import SiT
from distill.conditions import ClassLabels
from distill.errors import UserError

REINITIALISE = "reinitialise"


def with_classes(model: SiT, old: ClassLabels, new: ClassLabels, setting: str) -> tuple[SiT, list[int]]:
    """`model` for the classes `new` instead of `old`; everything but the label table is taken over.

    Args:
        setting: `reinitialise`, or a JSON file {new class: old class}, numbers or names; a class that it does not
            mention gets a new row.

    Returns: the model, and the new classes that took a row over. The null class keeps its row.
    Raises: UserError if the file is damaged or names a class that there is not.
    """
    rows = {} if setting == REINITIALISE else _read_map(Path(setting).expanduser(), old, new)
    made = SiT(replace(model.config, num_classes=new.num_classes))
    weights = model.state_dict()
    table = weights["y_embedder.embedding_table.weight"]
    fresh = made.y_embedder.embedding_table.weight.detach().clone()
    fresh[new.num_classes] = table[old.num_classes]
    for row, source in rows.items():
        fresh[row] = table[source]
    made.load_state_dict({**weights, "y_embedder.embedding_table.weight": fresh})
    return made, sorted(rows)


def _read_map(file: Path, old: ClassLabels, new: ClassLabels) -> dict[int, int]:
    field = f"start.classes = {file}"
    try:
        read = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{field} is neither {REINITIALISE} nor a JSON file that can be read: {error}") from error
    if not isinstance(read, Mapping):
        raise UserError(f'{field} must hold {{"new class": "old class", ..}}, numbers or names')
    try:
        rows = [(new.select([str(name)]), old.select([str(source)])) for name, source in read.items()]
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    return {int(row): int(source) for row, source in rows}
