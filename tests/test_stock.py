"""Stock transformers as backbones: the interface, their folders, and what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import dar
from distill.cli import main
from distill.conditions import condition_of
from distill.conformance import check_backbone
from distill.models import load_model, save_model
from distill.models.lora import add_adapters
from distill.models.stock import write_reference
from distill.verbs.retrofit import StockOptions, retrofit
from tests.stock_folders import SHAPES, prompts_folder, stock_folder
from tests.tiny_transformers import TINY


def prepared(name: str, folder: Path, **options: Any) -> Any:
    """A stock transformer with attached routing, loaded from the folder that `retrofit` writes."""
    transformer, prompts = stock_folder(name, folder)
    told = {"prompts": str(prompts)} if prompts else {}
    stock = StockOptions(**told, sample_shape=SHAPES[name], **options)
    retrofit(transformer, folder / "routed", dar.RoutingConfig(scale="count", chunk_size=2), stock=stock)
    return load_model(folder / "routed")


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_keeps_to_the_protocol(name: str, tmp_path: Path) -> None:
    model = prepared(name, tmp_path)

    def load(folder: Path) -> Any:
        condition_of(model).save(folder)
        return load_model(folder)

    check_backbone(model, load=load)


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_the_velocity_is_what_the_transformer_predicts(name: str, tmp_path: Path) -> None:
    """With its own time and conditions, by its own call."""
    transformer, inputs = TINY[name]()
    transformer.save_pretrained(tmp_path / "transformer")
    y = {key: inputs[key] for key in ("encoder_hidden_states", "pooled_projections") if key in inputs}
    write_reference(tmp_path, Path("transformer"), SHAPES[name], None)
    model = load_model(tmp_path)
    expected = transformer(**inputs)[0]
    torch.testing.assert_close(model(inputs["hidden_states"], inputs["timestep"] / 1000, y), expected)


def test_packed_latents_are_what_the_pipelines_pack() -> None:
    from diffusers import FluxPipeline, QwenImagePipeline

    from distill.models.stock.base import pack, unpack

    x = torch.randn(2, 4, 6, 8)
    for pipeline in (FluxPipeline, QwenImagePipeline):
        assert torch.equal(pack(x), pipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpack(pack(x), x), x)


def test_places_of_tokens_are_the_pipelines() -> None:
    from diffusers import Flux2Pipeline, FluxPipeline

    from distill.models.stock.flux import grid_places

    x = torch.zeros(1, 4, 6, 8)
    ids = FluxPipeline._prepare_latent_image_ids(1, 6, 8, x.device, x.dtype)
    assert torch.equal(grid_places(6, 8, 3, x), ids)
    assert torch.equal(grid_places(6, 8, 4, x), Flux2Pipeline._prepare_latent_ids(x)[0].float())


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "flux2", "wan", "pixart"])
def test_an_offset_of_the_timestep_embedding(name: str, tmp_path: Path) -> None:
    """What a critic that is told its step adds: it reaches the velocity, and a routing's queries."""
    model = prepared(name, tmp_path)
    for parameter in model.routing.parameters():
        torch.nn.init.normal_(parameter)
    x_t, t = torch.randn(2, *model.sample_shape), torch.tensor([0.3, 0.8])
    y = model.condition.balanced(2)
    zero, offset = torch.zeros(2, model.t_embedding_size), torch.randn(2, model.t_embedding_size)
    plain = model(x_t, t, y)
    assert torch.equal(model(x_t, t, y, t_offset=zero), plain)
    told = model(x_t, t, y, t_offset=offset)
    assert not torch.allclose(told, plain)
    seen = []
    model.transformer.routing.take_timestep = seen.append
    with pytest.raises(AssertionError):  # nothing was taken
        model(x_t, t, y, t_offset=offset)
    before = seen[0]
    seen.clear()
    with pytest.raises(AssertionError):
        model(x_t, t, y)
    torch.testing.assert_close(before - seen[0], offset)


def test_adapters_are_saved_beside_a_reference(tmp_path: Path) -> None:
    model = prepared("sd3", tmp_path, sources="written")
    model.requires_grad_(False)
    add_adapters(model, 4, base="x", field="roles.trainable")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(model, tmp_path / "student")
    names = sorted(path.name for path in (tmp_path / "student").iterdir())
    assert "transformer" not in names and "adapter_model.safetensors" in names
    loaded = load_model(tmp_path / "student")
    x_t, t = torch.randn(2, *model.sample_shape), torch.tensor([0.3, 0.8])
    y = model.condition.balanced(2)
    assert torch.equal(loaded(x_t, t, y), model(x_t, t, y))
    assert loaded.routing.sources == "written"


def test_bfloat16_weights_stay_bfloat16_and_adapters_learn_in_float32(tmp_path: Path) -> None:
    TINY["sd3"]()[0].to(torch.bfloat16).save_pretrained(tmp_path / "transformer")
    prompts = prompts_folder(
        tmp_path / "prompts", "SD3Transformer2DModel", {"encoder_hidden_states": 12, "pooled_projections": 10}
    )
    model: Any = load_model(tmp_path / "transformer", str(prompts))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.requires_grad_(False)
    add_adapters(model, 4, base="x", field="roles.trainable")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    x_t, t = torch.randn(2, *model.sample_shape), torch.tensor([0.3, 0.8])
    assert model(x_t, t, model.condition.balanced(2)).dtype == torch.float32


def test_a_pipeline_folder_and_retrofit_by_the_command_line(tmp_path: Path, capsys: Any) -> None:
    transformer, prompts = stock_folder("sd3", tmp_path)
    pipeline = tmp_path / "pipeline"
    shutil.copytree(transformer, pipeline / "transformer")
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    arguments = ["retrofit", str(pipeline), str(tmp_path / "out"), "routing.chunk_size=2", "--prompts", str(prompts)]
    assert main([*arguments, "--sample-shape", "4", "4", "8"]) == 0
    printed = capsys.readouterr().out
    assert "change of the velocity, over its RMS: at most 0.0e+00" in printed
    model = load_model(tmp_path / "out")
    assert model.sample_shape == (4, 4, 8)
    assert str(condition_of(model)) == "3 prompts"
    assert main(["retrofit", str(pipeline), str(tmp_path / "unasked")]) == 0
    assert "not measured, there are no prompts" in capsys.readouterr().out


def no_prompts(folder: Path) -> None:
    condition_of(load_model(folder / "transformer"))


def edited(**changes: Any) -> Any:
    def act(folder: Path) -> None:
        write_reference(folder, folder / "transformer", (4, 8, 8), None)
        file = folder / "backbone.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        load_model(folder)

    return act


def other_prompts(class_name: str = "SD3Transformer2DModel", **widths: int) -> Any:
    def act(folder: Path) -> None:
        load_model(folder / "transformer", str(prompts_folder(folder / "other", class_name, widths)))

    return act


def damaged(folder: Path) -> None:
    file = next((folder / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    load_model(folder / "transformer")


def prompts_for_a_sit(folder: Path) -> None:
    load_model("embedded", str(folder / "prompts"))


def softmax(folder: Path) -> None:
    retrofit(folder / "transformer", folder / "out", dar.RoutingConfig(scale="softmax"))


def twice(folder: Path) -> None:
    retrofit(folder / "transformer", folder / "one")
    retrofit(folder / "one", folder / "two")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (no_prompts, "prompts"),
        (edited(sample_shape=[4, 8]), r"sample_shape must be \[C, H, W\] or \[C, F, H, W\]; got \[4, 8\]"),
        (edited(sample_shape=[4, 8, -1]), "sample_shape must be"),
        (edited(guidance="x"), "guidance must be null or a number"),
        (edited(transformer=3), "transformer must be the path of a folder; got 3"),
        (edited(transformer="/nowhere"), "holds no transformer that is known here"),
        (edited(depth=3), "fields this version does not know: depth"),
        (other_prompts(encoder_hidden_states=12), "lacks pooled_projections; a SD3Transformer2DModel is told"),
        (other_prompts(encoder_hidden_states=7, pooled_projections=10), r"width 7; this .* takes 12 \(joint_att"),
        (other_prompts(encoder_hidden_states=12, pooled_projections=10, ids=2), "also holds ids"),
        (damaged, "cannot be loaded as a SD3Transformer2DModel"),
        (prompts_for_a_sit, "this model takes 10 classes, not prompts"),
        (softmax, "scale count with summary sum does, --lossy takes any"),
        (twice, "has a routing already"),
    ],
)
def test_what_does_not_fit(act: Any, message: str, tmp_path: Path) -> None:
    stock_folder("sd3", tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        act(tmp_path)
    assert "\n" not in str(caught.value)
