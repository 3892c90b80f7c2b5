"""Models of prompts from end to end: trained on samples with captions, distilled, drawn, and loaded again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.cli.common import name_list
from distill.conditions import Prompts, begin_prompts, condition_of, finish_prompts, write_prompt
from distill.config import DataConfig
from distill.conformance import check_backbone
from distill.data.checking import check_prompts
from distill.data.configured import Flipped, configured_dataset
from distill.data.latents import listing
from distill.errors import UserError
from distill.latents.space import LatentSpace
from distill.models import load_model, save_model
from distill.models.families import FAMILIES, register
from distill.sampling import t_like
from distill.training.preflight import preflight
from distill.verbs.run import run
from distill.verbs.sample import file_name, sample
from distill.verbs.train import train

TEXTS = ["a / b", 'a "red" fox, asleep', "猫"]
SHAPE = (4, 4, 4)


class Speaker(nn.Module):
    """velocity = eps - x0 of data around a mean that the prompt says, with unit variance."""

    gradient_checkpointing = False
    t_range = (0.0, 1.0)
    sample_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 0.3]))

    def forward(self, x_t: Tensor, t: Tensor, y: dict[str, Tensor]) -> Tensor:
        words = (y["encoder_hidden_states"].float() * y["encoder_attention_mask"][..., None]).sum(1)
        mean, t = t_like(words @ self.weight, x_t), t_like(t, x_t)
        return (2 * t - 1) / (t**2 + (1 - t) ** 2) * (x_t - (1 - t) * mean) - mean

    def set_prompts(self, prompts: Prompts) -> None:
        if prompts.index.tensors["encoder_hidden_states"].shape != ("L", 2):
            raise UserError(f"{prompts.folder} holds {prompts.tensors}; a Speaker reads a width of 2")
        self.condition = prompts

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "speaker.pt")


def load_speaker(folder: Path) -> Any:
    model: Any = Speaker()
    model.load_state_dict(torch.load(folder / "speaker.pt", weights_only=True))
    return model


@pytest.fixture(autouse=True)
def speaker_family() -> Iterator[None]:
    register("speaker", reads=lambda folder: (folder / "speaker.pt").is_file())(load_speaker)
    yield
    del FAMILIES["speaker"]


def write_prompts(folder: Path, texts: list[str] = TEXTS, width: int = 2) -> Path:
    begin_prompts(folder, {}, texts)
    for number in range(-1, len(texts)):
        generator = torch.Generator().manual_seed(number + 1)
        length = 1 if number < 0 else number + 1
        embedding = torch.randn(length, width, generator=generator) * (number >= 0)
        told = {"encoder_hidden_states": embedding, "encoder_attention_mask": torch.ones(length, dtype=torch.bool)}
        write_prompt(folder, number, told)
    finish_prompts(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts")


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """Eight latents, of which sample i has label i mod 3."""
    folder = tmp_path / "latents" / "vae-sd"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        moments = np.concatenate([rng.normal(size=SHAPE) / 0.18215, np.zeros(SHAPE)]).astype(np.float32)
        np.save(folder / f"{i}.npy", moments)
    (folder / "dataset.json").write_text(listing([(f"{i}.npy", i % 3) for i in range(8)], LatentSpace()))
    return tmp_path / "latents"


def caption(latents: Path, captions: object) -> None:
    (latents / "captions.json").write_text(json.dumps(captions))


def dataset(latents: Path, prompts: Path) -> Any:
    return configured_dataset(DataConfig("latents", str(latents), prompts=str(prompts)))


def test_samples_have_the_prompts_that_their_captions_say(latents: Path, prompts: Path) -> None:
    order = [2, 0, 0, 1, 2, 1, 0, 2]
    caption(latents, [f" {TEXTS[i]}\n" for i in order])
    data = dataset(latents, prompts)
    plain = configured_dataset(DataConfig("latents", str(latents)))
    assert data.labels.tolist() == order and data.condition == Prompts.load(prompts) and len(data) == 8
    x0, y = data.batch(torch.tensor([4, 1]), torch.zeros)
    torch.testing.assert_close(x0, plain.batch(torch.tensor([4, 1]), torch.zeros)[0])
    assert y["index"].tolist() == [2, 0] and y["encoder_attention_mask"].sum(1).tolist() == [3, 1]
    assert data.space == plain.space  # what says that they are latents
    with pytest.raises(UserError, match=r"data\.flip is for images"):
        Flipped(data)


def test_without_captions_labels_are_numbers_of_prompts(latents: Path, prompts: Path, tmp_path: Path) -> None:
    assert dataset(latents, prompts).labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    fewer = write_prompts(tmp_path / "fewer", TEXTS[:2])
    with pytest.raises(UserError, match=r"has labels up to 2 and no captions.json; data.prompts = .* has 2 prompts"):
        dataset(latents, fewer)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (TEXTS, "captions.json has 3 captions; there are 8 samples"),
        (["a dog", *TEXTS, *TEXTS, "猫"], "captions.json: 'a dog' is not among the 3 prompts of data.prompts = "),
        ([3] * 8, "captions.json must be a list of texts, one a sample"),
        ({"a": "b"}, "captions.json must be a list of texts, one a sample"),
    ],
)
def test_captions_that_are_not_right_say_so(latents: Path, prompts: Path, captions: object, message: str) -> None:
    caption(latents, captions)
    with pytest.raises(UserError, match=message):
        dataset(latents, prompts)


def told(prompts: Path) -> Any:
    model = Speaker()
    model.set_prompts(Prompts.load(prompts))
    return model


def test_a_model_of_prompts_keeps_to_the_protocol(prompts: Path) -> None:
    def load(folder: Path) -> Any:
        model = load_speaker(folder)
        model.set_prompts(Prompts.load(prompts))
        return model

    check_backbone(told(prompts), load=load)


def test_a_model_is_trained_on_captions_and_finds_its_prompts_again(
    latents: Path, prompts: Path, tmp_path: Path
) -> None:
    Speaker().save_pretrained(tmp_path / "stock")
    start: Any = load_model(tmp_path / "stock")
    with pytest.raises(UserError, match="prompts=FOLDER"):
        condition_of(start)
    config = {
        "output": str(tmp_path / "run"),
        "start": {"path": str(tmp_path / "stock")},
        "data": {"name": "latents", "path": str(latents), "prompts": str(prompts)},
        "flow_matching": {"label_dropout": 0.5, "ema_decay": 0.0},
        "optim": {"lr": 0.1},
        "train": {"steps": 3, "batch_size": 4, "grid_every": 3},
        "grid_steps": 2,
    }
    done = train(config)
    assert done is not None
    model: Any = load_model(done.teacher)
    assert condition_of(model) == Prompts.load(prompts)
    assert not torch.equal(model.weight, start.weight) and (done.folder / "grids" / "step_00000003.png").is_file()


def test_a_model_of_classes_or_of_another_encoder_is_not_trained_on_captions(
    latents: Path, prompts: Path, tmp_path: Path
) -> None:
    data = {"name": "latents", "path": str(latents), "prompts": str(prompts)}
    output, train_ = str(tmp_path / "run"), {"steps": 1, "batch_size": 4}
    config = {"input_size": 4, "in_channels": 4, "patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
    with pytest.raises(UserError, match="has 3 prompts; the model is conditioned on 10 classes"):
        train({"output": output, "model": config | {"num_classes": 10}, "data": data, "train": train_})
    save_model(told(prompts), tmp_path / "model")
    wide = data | {"prompts": str(write_prompts(tmp_path / "wide", width=3))}
    with pytest.raises(UserError, match=r"wide holds .*\(L, 3\) in F32; a Speaker reads a width of 2"):
        train({"output": output, "start": {"path": str(tmp_path / "model")}, "data": wide, "train": train_})


def test_a_model_of_prompts_is_distilled_and_drawn(prompts: Path, tmp_path: Path) -> None:
    save_model(told(prompts), tmp_path / "teacher")
    done = run(
        {
            "output": str(tmp_path / "run"),
            "teacher": {"path": str(tmp_path / "teacher"), "steps": 3, "cfg_scale": 2.0},
            "student": {"steps": 2},
            "objective": {"fake_score": {"updates": 1, "knows_step": False}},
            "train": {"steps": 2, "batch_size": 4, "grid_every": 2},
            "watch": {"num_images": 8, "teacher_steps": 2},
            "evaluate": {"num_images": 0},
        }
    )
    assert done is not None and condition_of(load_model(done.student)) == Prompts.load(prompts)
    drawn = sample(done.student, 4, classes=["猫", 'a "red" fox, asleep'], output=tmp_path / "drawn")
    assert drawn.names == ["猫", 'a "red" fox, asleep'] * 2 and drawn.y["index"].tolist() == [2, 1, 2, 1]
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert {"000000.png", "000001_aredfoxasleep.png", "000002.png", "000003_aredfoxasleep.png", "grid.png"} <= names
    with pytest.raises(UserError, match="--classes: prompt 'a dog' is not known; there are 3, from 0 on: 'a / b', "):
        sample(done.student, 4, classes=["a dog"])


def test_a_damaged_prompt_is_found_before_the_first_update(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "many", [f"a boat, {i}" for i in range(60)])  # more than a preflight draws
    model = told(prompts)
    write_prompt(
        prompts, 59, {"encoder_hidden_states": torch.ones(2, 2), "encoder_attention_mask": torch.ones(2).bool()}
    )
    with pytest.raises(UserError, match=r"00059\.safetensors is not the file that was written"):
        preflight(model, {}, Any)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"00059\.safetensors is not the file that was written"):
        check_prompts(model.condition)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a / b", "000007_ab"),
        ("../../etc", "000007_etc"),
        ("x" * 300, f"000007_{'x' * 60}"),
        ("猫", "000007"),
        ("", "000007"),
    ],
)
def test_files_are_named_by_what_every_file_system_takes(name: str, expected: str) -> None:
    assert file_name(7, name) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0, cat", ["0", "cat"]),
        ('3, "a fox, asleep"', ["3", "a fox, asleep"]),
        ('a "red" fox', ['a "red" fox']),
        ('"say ""hi"""', ['say "hi"']),
        ("", [""]),
    ],
)
def test_names_with_commas_are_given_in_quotes(text: str, names: list[str]) -> None:
    assert name_list(text) == names
