"""Configurations that something mangled are refused in one line, or are ones that a run could be started with."""

from __future__ import annotations

import os
import random
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.config import TrainConfig, build_config, load_config
from distill.config.load import plain_values
from distill.errors import UserError
from distill.objectives import RunConfig

MANY = int(os.environ.get("DAR_DISTILL_HOSTILE", "1200"))
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**70), 10**400, 0.0, -0.0, 1e-308, 1e308, float("nan"),
    float("inf"), -float("inf"), "", "x", "1", "nan", "1e5", "\x00", "é" * 1000, [], [1], ["a"], [[]], {}, {"a": 1},
    {1: 2}, [1, 2, 3], [float("nan")] * 2, "${output}", "${nothing}", "${oc.env:HOME}", "../..", "/dev/zero",
]  # fmt: skip


def paths(values: Any, prefix: tuple = ()) -> list[tuple]:
    """Where there is something in nested mappings."""
    found = [prefix] if prefix else []
    for name in values if isinstance(values, dict) else ():
        found += paths(values[name], (*prefix, name))
    return found


def mangled(values: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """One to three things replaced, removed, or put where they do not belong."""
    values = deepcopy(values)
    for _ in range(chance.randint(1, 3)):
        *sections, name = chance.choice(paths(values) or [("output",)])
        parent: Any = values
        for section in sections:
            parent = parent[section]
        kind = chance.random()
        if kind < 0.75:
            parent[name] = deepcopy(chance.choice(VALUES))
        elif kind < 0.85:
            del parent[name]
        else:
            parent[chance.choice(["", "x", "lr", name * 2, "__class__", 3])] = parent.pop(name)
    return values


WHOLE = {
    "run": (RunConfig, plain_values(RunConfig("out"))),
    "train": (TrainConfig, plain_values(build_config(TrainConfig, {"output": "out", "start": {"path": "embedded"}}))),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("part", range(3))
def test_what_is_mangled_is_refused_or_meant(name: str, part: int) -> None:
    config_type, whole = WHOLE[name]
    chance = random.Random(f"{name} {part}")
    refused = 0
    for _ in range(MANY // 6):
        values = mangled(whole, chance)
        try:
            built = build_config(config_type, values)
        except UserError as error:
            assert 0 < len(str(error)) < 2500 and "\n" not in str(error), values
            refused += 1
            continue
        assert build_config(config_type, plain_values(built)) == built
    assert refused > MANY // 12


TEXTS = {
    "nested": "a: " + "[" * 100_000,
    "deep": "".join(" " * i + "a:\n" for i in range(3000)),
    "laughs": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    "itself": "a: &a [*a]",
    "python": "!!python/object/apply:os.system ['touch harm']",
    "bytes": "\x00\x01\x02",
    "list": "[1, 2]",
    "nothing": "",
    "many documents": "a: 1\n---\na: 2\n",
    "twice": "output: a\noutput: b\n",
    "number": "3",
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_no_configuration(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(TEXTS[name])
    started = time.process_time()
    with pytest.raises(UserError, match=r"config\.yaml|output is required"):
        load_config(RunConfig, path)
    assert time.process_time() - started < 5


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    chance = random.Random(0)
    whole = yaml.safe_dump(WHOLE["run"][1]).encode()
    for _ in range(MANY // 10):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 20)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        (tmp_path / "config.yaml").write_bytes(bytes(content[: chance.randrange(len(content) + 1)]))
        try:
            load_config(RunConfig, tmp_path / "config.yaml")
        except UserError as error:
            assert "\n" not in str(error)
