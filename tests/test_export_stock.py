"""Students of stock transformers as others run them: adapters and routing on the stock model, without this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dar
from distill.cli import main
from distill.config import TeacherConfig
from distill.models import load_model
from distill.models.lora import add_adapters
from distill.sampling import load_sampler, save_student
from distill.sampling.flow import interpolate
from distill.verbs.retrofit import StockOptions, retrofit
from tests.stock_folders import SHAPES, stock_folder
from tests.test_cli import refused
from tests.test_export import WITHOUT_US

T_LIST = torch.tensor([1.0, 0.6])
ELSEWHERE = """
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

sys.path.insert(0, {out!r})
from routing import load_routing

transformer = SD3Transformer2DModel.from_pretrained({base!r}).eval()
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained({out!r}, subfolder="scheduler")
pipe = StableDiffusion3Pipeline(
    transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
    tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
)
load_routing(pipe.transformer, {out!r})
pipe.load_lora_weights({out!r})
scheduler.set_timesteps(sigmas={sigmas!r})
given = torch.load({inputs!r}, weights_only=True)
with torch.no_grad():
    velocities = [
        pipe.transformer(hidden_states=given["x_t"], timestep=t.expand(2), return_dict=False, **given["y"])[0]
        for t in scheduler.timesteps
    ]
torch.save({{"sigmas": scheduler.sigmas, "velocities": velocities}}, {found!r})
"""


def student(folder: Path, *, adapted: bool, routed: bool = True) -> tuple[Path, Path]:
    """A student of the tiny Stable Diffusion 3, moved away from where it began, and the stock transformer's folder."""
    base, prompts = stock_folder("sd3", folder)
    options = StockOptions(str(prompts), SHAPES["sd3"])
    retrofit(base, folder / "routed", dar.RoutingConfig(scale="count", chunk_size=2), stock=options)
    model: Any = load_model(folder / "routed") if routed else load_model(base, str(prompts))
    if adapted:
        model.requires_grad_(False)
        add_adapters(model, 4, base=str(base), field="roles.trainable")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora" in name or "routing" in name or not adapted):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    save_student(model, T_LIST, folder / "student")
    return folder / "student", base


def test_adapters_and_routing_on_the_stock_pipeline_without_this_package(tmp_path: Path) -> None:
    path, base = student(tmp_path, adapted=True)
    out = tmp_path / "out"
    assert main(["export", str(path), str(out), "--to", "diffusers"]) == 0
    ours: Any = load_sampler(str(path), TeacherConfig()).model
    y = ours.condition.balanced(2)
    inputs, found = tmp_path / "inputs.pt", tmp_path / "found.pt"
    x_t = torch.randn(2, *SHAPES["sd3"])
    torch.save({"x_t": x_t, "y": {name: tensor for name, tensor in y.items() if name != "index"}}, inputs)
    code = WITHOUT_US + ELSEWHERE.format(
        out=str(out), base=str(base), sigmas=T_LIST.tolist(), inputs=str(inputs), found=str(found)
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = torch.load(found, weights_only=True)
    torch.testing.assert_close(result["sigmas"], torch.tensor([1.0, 0.6, 0.0]))
    for t, velocity in zip(T_LIST, result["velocities"], strict=True):
        torch.testing.assert_close(velocity, ours(x_t, t.expand(2), y).detach(), rtol=1e-5, atol=1e-5)
    card = (out / "README.md").read_text()
    assert "sigmas=[1, 0.6]" in card and "load_lora_weights" in card and "read it first" in card


def test_a_scheduler_steps_as_a_few_step_student_does(tmp_path: Path) -> None:
    """x0 and fresh noise, mixed at the next sigma."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    path, _ = student(tmp_path, adapted=False, routed=False)
    assert main(["export", str(path), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    assert not (tmp_path / "out" / "routing.py").exists()
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    assert "import diffusers" in code and "diffusers.SD3Transformer2DModel.from_pretrained" in code
    assert (tmp_path / "out" / "transformer" / "config.json").is_file()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=T_LIST.tolist())
    x_t, velocity = torch.randn(2, 4), torch.randn(2, 4)
    torch.manual_seed(0)
    stepped = scheduler.step(velocity, scheduler.timesteps[0], x_t).prev_sample
    torch.manual_seed(0)
    eps = torch.randn_like(x_t)
    torch.testing.assert_close(stepped, interpolate(x_t - velocity, eps, T_LIST[1]))


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--int8"], "--int8 and --vae are not for a stock transformer"), ([], "is a teacher")],
)
def test_mistakes_are_one_line(tmp_path: Path, more: list[str], message: str, capsys: Any) -> None:
    path, _ = student(tmp_path, adapted=True)
    source = path if more else tmp_path / "routed"
    assert message in refused(capsys, "export", str(source), str(tmp_path / "out"), "--to", "diffusers", *more)
    assert not (tmp_path / "out").exists()
