"""Conditions: class labels, the functions of batches, and another condition as a worked example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.conditions import (
    ClassLabels,
    chunk_rows,
    concat_rows,
    condition_of,
    map_tensors,
    num_rows,
    repeat_rows,
    slice_rows,
    take_rows,
    where_rows,
)
from distill.conformance import check_backbone
from distill.errors import UserError
from distill.models.families import FAMILIES, register
from distill.report import Report, write_report
from distill.sampling import Denoiser, draw_images, few_step_sampler, grid_conditions, t_like
from distill.verbs.run import run
from distill.verbs.sample import sample

# --- the worked example: a model of text prompts ------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Prompts of a list, as embeddings (B, L, D) and a mask (B, L); the null prompt is the empty one."""

    prompts: tuple[str, ...]
    length: int = 3
    dim: int = 2

    @property
    def num_distinct(self) -> int:
        return len(self.prompts)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        embeddings, mask = torch.zeros(len(prompts), self.length, self.dim), torch.zeros(len(prompts), self.length)
        for row, prompt in enumerate(prompts):
            for place, word in enumerate(prompt.split()[: self.length]):
                embeddings[row, place] = torch.tensor([len(word) / 4, ord(word[0]) % 7 / 7])
                mask[row, place] = 1
        return {"embeddings": embeddings, "mask": mask}

    def _rows(self, indices: Tensor) -> dict[str, Tensor]:
        return self.encode([self.prompts[i] for i in indices.tolist()])

    def random(self, num: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self._rows(torch.randint(len(self.prompts), (num,), generator=generator))

    def balanced(self, num: int) -> dict[str, Tensor]:
        return self._rows(torch.arange(num) % len(self.prompts))

    def examples(self, most: int = 10) -> dict[str, Tensor]:
        return self._rows(torch.arange(min(most, len(self.prompts))))

    def null(self, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(tensor) for name, tensor in y.items()}

    def includes(self, other: object) -> bool:
        return isinstance(other, Prompts) and set(other.prompts) <= set(self.prompts)

    def select(self, names: list[str]) -> dict[str, Tensor]:
        return self.encode(names)

    def names(self, y: dict[str, Tensor]) -> list[str]:
        known = self.encode(list(self.prompts))["embeddings"].flatten(1)
        return [
            next((p for p, k in zip(self.prompts, known, strict=True) if torch.equal(k, row)), "another prompt")
            for row in y["embeddings"].flatten(1)
        ]

    def groups(self, y: dict[str, Tensor]) -> Tensor:
        return torch.tensor([self.prompts.index(name) for name in self.names(y)])

    def group_names(self) -> list[str]:
        return list(self.prompts)

    def __str__(self) -> str:
        return f"{len(self.prompts)} prompts"


class Painter(nn.Module):
    """velocity = eps - x0 of data at a grey that the prompt says, with unit variance around it."""

    gradient_checkpointing = False
    t_range = (0.0, 1.0)
    sample_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.condition = Prompts(("a cat", "a dog", "two grey mice"))
        self.weight = nn.Parameter(torch.tensor([0.5, 0.3]))

    def forward(self, x_t: Tensor, t: Tensor, y: dict[str, Tensor]) -> Tensor:
        mean = t_like((y["embeddings"] @ self.weight * y["mask"]).mean(1), x_t)
        t = t_like(t, x_t)
        return (2 * t - 1) / (t**2 + (1 - t) ** 2) * (x_t - (1 - t) * mean) - mean

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "painter.pt")


def load_painter(folder: Path) -> Painter:
    model = Painter()
    model.load_state_dict(torch.load(folder / "painter.pt", weights_only=True))
    return model


@pytest.fixture
def painter_family() -> Iterator[None]:
    register("painter", reads=lambda folder: (folder / "painter.pt").is_file())(load_painter)
    yield
    del FAMILIES["painter"]


def test_a_model_of_prompts_keeps_to_the_protocol() -> None:
    check_backbone(Painter(), load=load_painter)


def test_guidance_of_prompts_is_against_the_empty_prompt() -> None:
    model = Painter()
    y = model.condition.balanced(3)
    x_t, t = torch.randn(3, 1, 28, 28), torch.full((3,), 0.5)
    guided = Denoiser(model, model.condition, 2.0).velocity(x_t, t, y)
    cond, uncond = model(x_t, t, y), model(x_t, t, model.condition.null(y))
    torch.testing.assert_close(guided, uncond + 2 * (cond - uncond))
    assert not torch.allclose(cond, uncond)


def test_a_model_of_prompts_is_distilled_measured_and_drawn(
    tmp_path: Path, painter_family: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of `run`, by the name of a folder: nothing but the condition knows what y is."""
    pages: list[Report] = []

    def kept(page: Report, folder: Path) -> Path:
        pages.append(page)
        return write_report(page, folder)

    monkeypatch.setattr("distill.verbs.run.write_report", kept)
    Painter().save_pretrained(tmp_path / "painter")
    done = run(
        {
            "output": str(tmp_path / "run"),
            "teacher": {"path": str(tmp_path / "painter"), "steps": 3, "cfg_scale": 2.0},
            "student": {"steps": 2},
            "objective": {"fake_score": {"updates": 1, "knows_step": False}},
            "train": {"steps": 2, "batch_size": 4, "accumulation": 2, "grid_every": 1},
            "evaluate": {"num_images": 12, "teacher_reference": None, "bootstrap": 2},
        }
    )
    assert done is not None and done.report.is_file()
    assert pages[0].class_names == ["a cat", "a dog", "two grey mice"] and pages[0].labels[:4].tolist() == [0, 1, 2, 0]
    assert (tmp_path / "run" / "grids" / "step_00000001.png").is_file()
    drawn = sample(done.student, 2, classes=["a dog"], output=tmp_path / "drawn")
    assert drawn.names == ["a dog", "a dog"]
    assert sorted(path.name for path in (tmp_path / "drawn").glob("*.png")) == [
        "000000_adog.png",
        "000001_adog.png",
        "grid.png",
    ]


# --- class labels and batches ------------------------------------------------------------------------------------


def test_class_labels() -> None:
    labels = ClassLabels(3)
    assert labels.balanced(5).tolist() == [0, 1, 2, 0, 1]
    assert ClassLabels(1000).examples().tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert labels.null(torch.tensor([0, 2])).tolist() == [3, 3]
    assert labels.select(["2", "0"]).tolist() == [2, 0] and labels.names(torch.tensor([2])) == ["class 2"]
    assert labels.includes(ClassLabels(2)) and not labels.includes(ClassLabels(4)) and not labels.includes(Prompts(()))
    with pytest.raises(UserError, match="class 3 is out of range; the model has 0 to 2"):
        labels.select(["3"])
    for wrong in ("-1", "cat"):
        with pytest.raises(UserError, match=rf"class '{wrong}' is not known; the model has 3 classes"):
            labels.select([wrong])
    drawn = labels.random(3000, torch.Generator().manual_seed(0))
    assert drawn.bincount(minlength=3).min() > 900 and drawn.max() == 2
    assert condition_of(Painter()) == Prompts(("a cat", "a dog", "two grey mice"))


def as_dict(y: Tensor) -> dict[str, Tensor]:
    return {"a": y, "b": torch.stack([y, 10 * y], dim=1)}


@pytest.mark.parametrize("of", [lambda y: y, as_dict], ids=["tensor", "dictionary"])
def test_batches_are_cut_and_joined_row_by_row(of: Any) -> None:
    y = of(torch.tensor([3, 1, 4, 1, 5]))

    def same(found: Any, rows: list[int]) -> None:
        expected = of(torch.tensor(rows))
        pairs = [(found[name], expected[name]) for name in found] if isinstance(found, dict) else [(found, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)

    assert num_rows(y) == 5
    same(slice_rows(y, 1, 3), [1, 4])
    same(take_rows(y, torch.tensor([4, 0])), [5, 3])
    same(repeat_rows(slice_rows(y, 0, 2), 2), [3, 1, 3, 1])
    same(concat_rows(slice_rows(y, 0, 1), slice_rows(y, 4, 5)), [3, 5])
    same(map_tensors(lambda tensor: tensor.flip(0), y), [5, 1, 4, 1, 3])
    for part, rows in zip(chunk_rows(y, 2), ([3, 1, 4], [1, 5]), strict=True):
        same(part, rows)
    same(where_rows(torch.tensor([True, False, True, False, False]), y, of(torch.arange(5))), [3, 1, 4, 3, 4])


def test_a_grid_has_a_column_for_each_example() -> None:
    assert grid_conditions(ClassLabels(2), 3).tolist() == [0, 0, 0, 1, 1, 1]
    painter = Painter()
    rows = grid_conditions(painter.condition, 2)
    assert painter.condition.names(rows) == ["a cat", "a cat", "a dog", "a dog", "two grey mice", "two grey mice"]


def test_images_of_prompts_do_not_depend_on_the_batch_size() -> None:
    painter = Painter()
    sampler = few_step_sampler("student", painter, torch.tensor([1.0, 0.5]))
    y = painter.condition.balanced(5)
    images, _ = draw_images(sampler, y, seed=3, batch_size=5)
    again, _ = draw_images(sampler, y, seed=3, batch_size=2)
    torch.testing.assert_close(images, again)


def test_untrained_classes_are_never_drawn(tmp_path) -> None:
    classes = ClassLabels.of_names(["ant", None, "bee", None])
    generator = torch.Generator().manual_seed(0)
    assert set(classes.random(100, generator).tolist()) == {0, 2}
    assert classes.balanced(3).tolist() == [0, 2, 0] and classes.examples().tolist() == [0, 2]
    assert classes.num_distinct == 2 and classes != ClassLabels(4) and classes == ClassLabels(4, (0, 2))
    assert classes.select(["bee", "0"]).tolist() == [2, 0] and classes.names(torch.tensor([2, 1])) == ["bee", "class 1"]
    classes.save(tmp_path)
    assert ClassLabels.load(tmp_path, 4) == classes
    # Trained on further, it knows what it knew and what it was shown; the data's names come first.
    more = classes.shown(ClassLabels(2, class_names=("ape", "bat")), torch.tensor([1, 1]))
    assert more == ClassLabels(4, (0, 1, 2)) and more.class_names == ("ape", "bat", "bee", "class 3")
    assert ClassLabels(2, ()).shown(ClassLabels(2), torch.tensor([0, 1])) == ClassLabels(2)
