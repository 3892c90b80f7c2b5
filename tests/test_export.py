"""Export to diffusers: a folder that a process without this package loads, and that draws the same pictures."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

import distill
from dar import RoutingConfig, SiT
from dar.routing import ROUTINGS
from distill.cli import main
from distill.conditions import ClassLabels
from distill.config import CONFIG_FILE, TeacherConfig
from distill.errors import UserError
from distill.evaluation.measured import Measured
from distill.exporting import base, hub
from distill.exporting import stock_dit as stock_dit_module
from distill.exporting.bundle import bundle
from distill.exporting.schedulers import check_sigmas, flow_scheduler
from distill.exporting.sit_diffusers import id2label, model_code, own_model
from distill.exporting.sit_pipeline import SiTPipeline
from distill.exporting.stock_dit import largest_error, refitted, stock_dit
from distill.files import write_bytes
from distill.latents.vae import load_vae
from distill.metrics import Interval
from distill.models import set_classes
from distill.sampling import Sampler, few_step_sampler, save_student, teacher_sampler
from distill.sampling.samplers import load_sampler
from tests.conftest import perturbed, tiny_config
from tests.test_cli import refused
from tests.test_routings import KINDS
from tests.vae_files import save_vae

PLAIN = RoutingConfig(kind="residual")
T_LIST = (1.0, 0.7, 0.35)
NAMES = ("shirt", "shoe", "bag")
WITHOUT_US = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dar", "distill"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocked())
"""


def model_of(routing: RoutingConfig, **changes: Any) -> SiT:
    model = SiT(tiny_config(routing=routing, **changes))
    perturbed(model, std=0.1)
    return model.eval().requires_grad_(False)


def student_folder(folder: Path, routing: RoutingConfig, ode_steps: int = 0, t_list=T_LIST, **changes: Any) -> Path:
    model = model_of(routing, **changes)
    set_classes(model, ClassLabels(3, class_names=NAMES))  # pyright: ignore[reportArgumentType]
    folder.mkdir(parents=True)
    save_student(model, torch.tensor(t_list), folder, ode_steps)  # pyright: ignore[reportArgumentType]
    return folder


def noises(num: int, batch: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """As a pipeline draws them from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(batch, *shape, generator=generator) for _ in range(num)])


def expected(path: Path, labels: list[int], seed: int = 0) -> Tensor:
    sampler = load_sampler(str(path), TeacherConfig(path=str(path), steps=4))
    noise = noises(sampler.num_noises, len(labels), sampler.model.sample_shape, seed)
    return sampler.draw(noise, torch.tensor(labels))


def pipeline_of(sampler: Sampler, **changes: Any) -> SiTPipeline:
    """What an exported folder loads as, without a folder."""
    settings = {
        "sample_shape": list(sampler.model.sample_shape),
        "num_classes": 3,
        "sigmas": sampler.t_list.tolist() or None,
        "ode_steps": sampler.ode_steps if len(sampler.t_list) else None,
        "sigma_range": list(sampler.model.t_range),
        "num_inference_steps": sampler.num_steps,
        "guidance_scale": 1.0,
    }
    names = dict(zip("012", NAMES, strict=True))
    scheduler = flow_scheduler(fresh_noise=True)
    pipe = SiTPipeline(own_model(sampler.model), scheduler, id2label=names, sampler={**settings, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def student(routing: RoutingConfig = KINDS["dar"], ode_steps: int = 0, **changes: Any) -> Sampler:
    return few_step_sampler("student", model_of(routing, **changes), torch.tensor(T_LIST), ode_steps)


# The model's code


QUERIES = {f"dar, {query}": RoutingConfig(query=query, chunk_size=3) for query in ("static", "dynamic")}


def test_no_routing_is_left_out() -> None:
    assert {routing.kind for routing in KINDS.values()} == set(ROUTINGS)
    kinds = {routing.query for routing in (KINDS | QUERIES).values() if routing.kind == "dar"}
    assert kinds == {"static", "static_t", "dynamic"}


@pytest.mark.parametrize("name", [*KINDS, *QUERIES, "reversed_velocity", "ddpm_eps", "qk_norm"])
def test_the_code_of_a_folder_computes_what_ours_does(name: str, tmp_path: Path) -> None:
    changes = {
        "reversed_velocity": {"prediction": name},
        "ddpm_eps": {"prediction": name},
        "qk_norm": {"qk_norm": True},
    }
    model = model_of((KINDS | QUERIES).get(name, KINDS["dar"]), depth=4, **changes.get(name, {}))
    text = model_code(model)
    for node in ast.walk(ast.parse(text)):
        imported = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        assert not {str(module).split(".")[0] for module in imported} & {"dar", "distill", "triton", "huggingface_hub"}
    (tmp_path / "code.py").write_text(text)
    spec = importlib.util.spec_from_file_location("exported_code", tmp_path / "code.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exported_code"] = module  # where dataclasses look up the types of their fields
    spec.loader.exec_module(module)
    assert not hasattr(module, "TorchTape") and not hasattr(module, "_Route")  # nor what only training needs
    assert not hasattr(module.SiT, "features")
    theirs = module.SiTTransformer2DModel(own_model(model).config["sit"]).eval()
    theirs.load_state_dict(own_model(model).state_dict())
    x_t, t, y = (
        noises(1, 3, model.sample_shape)[0].double(),
        torch.tensor([0.9, 0.5, 0.2]).double(),
        torch.arange(3) + 1,
    )
    ours = model.double()(x_t, t, y)
    torch.testing.assert_close(theirs.double().network(x_t, t, y), ours, rtol=1e-10, atol=1e-12)
    assert ours.abs().max() > 0.01


def test_a_bundle_names_what_it_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"dar.routing.mixers.fused_trunk imports dar.kernels.gradients while it runs"):
        bundle("heading", [("dar.routing.mixers", "mixer_for")])
    with pytest.raises(ValueError, match="several definitions have the name register"):
        bundle("heading", [("dar.routing.base", "register"), ("dar.checkpoints.base", "register")])


def test_the_model_has_no_gradient() -> None:
    model = own_model(model_of(KINDS["dar"]).requires_grad_(True))
    sample = model(torch.randn(1, 1, 8, 8), torch.tensor(500.0), torch.tensor([0])).sample
    assert not sample.requires_grad


# A folder in another process


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders that were exported, and what a process without this package drew from them."""
    root = tmp_path_factory.mktemp("export")
    vae = save_vae(root / "vae", scaling_factor=2.0, shift_factor=0.3)
    sources = {
        "routed": student_folder(root / "routed", KINDS["dar"]),
        "plain": student_folder(root / "plain", PLAIN),
        "latents": student_folder(root / "latents", PLAIN, ode_steps=2, in_channels=4),
    }
    for name, source in sources.items():
        argv = ["export", str(source), str(root / f"{name}_out"), "--to", "diffusers"]
        assert main([*argv, *(["--vae", str(vae)] if name == "latents" else [])]) == 0
    code = f"""{WITHOUT_US}
import torch
from diffusers import DiffusionPipeline
drawn = {{}}
for name in {list(sources)}:
    folder = {str(root)!r} + "/" + name + "_out"
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    def draw(pipe, output_type):
        generator = torch.Generator().manual_seed(0)
        return pipe(class_labels=[0, "bag"], generator=generator, output_type=output_type).images
    drawn[name] = draw(pipe, "latent")
    drawn[name + " as pictures"] = draw(pipe, "pt")
    drawn[name + " in half"] = draw(pipe.to(torch.float16), "latent")
    drawn[name + " class"] = type(pipe.transformer).__module__
    drawn[name + " picture"] = draw(pipe, "pil")[0].size
torch.save(drawn, {str(root / "drawn.pt")!r})
try:
    DiffusionPipeline.from_pretrained({str(root)!r} + "/routed_out")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise SystemExit("code ran that nobody trusted")
"""
    environment = {**os.environ, "HF_HOME": str(root / "hf"), "HF_MODULES_CACHE": str(root / "modules")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {"root": root, "vae": vae, "sources": sources, **torch.load(root / "drawn.pt")}


@pytest.mark.parametrize("name", ["routed", "plain", "latents"])
def test_the_same_pictures_without_this_package(name: str, elsewhere: dict[str, Any]) -> None:
    ours = expected(elsewhere["sources"][name], [0, 2])
    torch.testing.assert_close(elsewhere[name], ours, rtol=0, atol=1e-5)
    assert elsewhere[f"{name} in half"].dtype == torch.float32
    torch.testing.assert_close(elsewhere[f"{name} in half"], ours, rtol=0, atol=2e-2)
    assert elsewhere[f"{name} picture"] == ((16, 16) if name == "latents" else (8, 8))


def test_an_autoencoder_goes_along(elsewhere: dict[str, Any]) -> None:
    vae = load_vae(str(elsewhere["vae"]))
    pictures = vae.decode(expected(elsewhere["sources"]["latents"], [0, 2]))
    torch.testing.assert_close(elsewhere["latents as pictures"], (pictures / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


def test_a_plain_student_needs_no_model_code(elsewhere: dict[str, Any]) -> None:
    assert elsewhere["plain class"].startswith("diffusers.models")
    assert "modeling_sit_dar" in elsewhere["routed class"]
    files = {
        name: [path.name for path in (elsewhere["root"] / f"{name}_out").rglob("*.py")] for name in ("plain", "routed")
    }
    assert files["plain"] == ["pipeline.py"] and sorted(files["routed"]) == ["modeling_sit_dar.py", "pipeline.py"]


def test_the_loop_of_the_card_draws(elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain student by diffusers alone, as README.md of its folder says."""
    folder = elsewhere["root"] / "plain_out"
    text = (folder / "README.md").read_text()
    loop = next(block for block in text.split("```python\n")[1:] if "scheduler.step" in block).split("```")[0]
    given = noises(4, 2, (1, 8, 8))
    monkeypatch.setattr(torch, "randn", lambda *_: given[0].clone())
    fresh = iter(given[1:])
    step = "diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor"
    monkeypatch.setattr(step, lambda *_, **__: next(fresh))
    names: dict[str, Any] = {"torch": torch}
    exec(loop.replace("this folder", str(folder)).replace("[0, 1]", "[0, 2]"), names)
    monkeypatch.undo()
    torch.testing.assert_close(names["x"], expected(elsewhere["sources"]["plain"], [0, 2]), rtol=0, atol=1e-5)
    assert "valid at these sigmas alone" in text


def test_what_was_exported_is_no_teacher(elsewhere: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(elsewhere["root"] / "plain_out")
    for argv in (["convert", folder, folder + "_no"], ["sample", folder, "--output", folder + "_no"]):
        assert "is of an exported student, whose weights predict a velocity" in refused(capsys, *argv)


# The pipeline


def test_the_pipeline_follows_the_ode_as_long_as_the_student_does() -> None:
    for ode_steps in (0, 1, 2):
        sampler = student(ode_steps=ode_steps)
        given = noises(3, 2, (1, 8, 8))
        generator = torch.Generator().manual_seed(0)
        drawn = pipeline_of(sampler)([1, 2], generator=generator, output_type="latent").images
        ours = sampler.draw(given[: sampler.num_noises], torch.tensor([1, 2]))
        torch.testing.assert_close(drawn, ours, rtol=0, atol=1e-5)
        from_latents = pipeline_of(sampler)(
            [1, 2], generator=_after_first(), latents=given[0], output_type="latent"
        ).images
        torch.testing.assert_close(from_latents, ours, rtol=0, atol=1e-5)


def _after_first() -> torch.Generator:
    generator = torch.Generator().manual_seed(0)
    torch.randn(2, 1, 8, 8, generator=generator)
    return generator


def test_a_list_that_does_not_begin_at_noise() -> None:
    model = model_of(KINDS["dar"])
    sampler = few_step_sampler("student", model, torch.tensor([0.8, 0.4]))
    drawn = pipeline_of(sampler)(0, generator=torch.Generator().manual_seed(0), output_type="latent").images
    torch.testing.assert_close(drawn, sampler.draw(noises(2, 1, (1, 8, 8)), torch.tensor([0])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["velocity", "ddpm_eps"])
def test_a_teacher_draws_along_its_ode(prediction: str) -> None:
    model = model_of(PLAIN, prediction=prediction)
    sampler = teacher_sampler("teacher", model, TeacherConfig(cfg_scale=2.5, steps=5), 5)
    pipe = pipeline_of(sampler, guidance_scale=2.5, num_inference_steps=50)
    drawn = pipe([0, 2], num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="latent").images
    ours = sampler.draw(noises(1, 2, (1, 8, 8)), torch.tensor([0, 2]))
    torch.testing.assert_close(drawn, ours, rtol=1e-5, atol=1e-5)
    unguided = teacher_sampler("teacher", model, TeacherConfig(cfg_scale=1.0), 50)
    drawn = pipe(0, guidance_scale=1.0, generator=torch.Generator().manual_seed(0), output_type="latent").images
    ours = unguided.draw(noises(1, 1, (1, 8, 8)), torch.tensor([0]))
    torch.testing.assert_close(drawn, ours, rtol=1e-4, atol=1e-4)


def test_one_generator_per_picture_makes_it_independent_of_the_others() -> None:
    pipe = pipeline_of(student())
    both = pipe([0, 2], generator=[torch.Generator().manual_seed(s) for s in (3, 4)], output_type="latent").images
    alone = pipe("bag", generator=[torch.Generator().manual_seed(4)], output_type="latent").images
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-6)


def test_what_a_call_takes() -> None:
    pipe = pipeline_of(student())
    draw = {"output_type": "np", "generator": None}
    for labels in (1, "shoe", [1], torch.tensor([1])):
        assert pipe(labels, **{**draw, "generator": torch.Generator().manual_seed(0)}).images.shape == (1, 8, 8, 1)
    assert pipe(1, num_inference_steps=3, return_dict=False, **draw)[0].min() >= 0
    with pytest.raises(ValueError, match=r"num_inference_steps must be 3 or left out: this student knows \[1.0, 0.69"):
        pipe(1, num_inference_steps=8)
    with pytest.raises(ValueError, match="class_labels: 3 is none of the classes 0 to 2"):
        pipe(3)
    with pytest.raises(ValueError, match="there is no class 'hat'; names are shirt, shoe, bag"):
        pipe("hat")
    pipe.register_to_config(id2label=None)  # all classes, without names
    assert len(pipe([0, 2], **draw).images) == 2
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"class_labels: {label} is none of the classes 0 to 2"):
            pipe(label)
    with pytest.raises(ValueError, match="there is no class 'shirt'; names are none"):
        pipe("shirt")
    with pytest.raises(ValueError, match="samples of 4 channels are no pictures: give a vae"):
        pipeline_of(student(in_channels=4))(0)


def test_a_scheduler_that_shifts_is_refused() -> None:
    pipe = pipeline_of(student())
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(ValueError, match=r"the scheduler makes \[1.0, 0.87.* take one that changes none"):
        pipe(0)
    check_sigmas(flow_scheduler(fresh_noise=True), T_LIST)
    for settings, said in (
        ({"shift": 3.0}, "would change the student's sigmas 1, 0.7, 0.35 to 1, 0.875"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting = true"),
        ({"shift_terminal": 0.1}, "would change"),
    ):
        with pytest.raises(UserError, match=said):
            check_sigmas(FlowMatchEulerDiscreteScheduler(**settings), T_LIST)


def test_names_of_classes_that_can_be_drawn() -> None:
    assert id2label(ClassLabels(3)) is None
    assert id2label(ClassLabels(3, class_names=NAMES)) == {"0": "shirt", "1": "shoe", "2": "bag"}
    assert id2label(ClassLabels(3, trained=(0, 2))) == {"0": "class 0", "2": "class 2"}


# diffusers' own DiT


@pytest.mark.parametrize(
    "changes",
    [{}, {"prediction": "reversed_velocity"}, {"gelu": "tanh", "norm2_eps": 1e-3, "frequency_shift": 1}],
    ids=["velocity", "reversed_velocity", "tanh"],
)
def test_a_plain_student_is_a_stock_model_at_its_timesteps(changes: dict[str, Any]) -> None:
    model = model_of(PLAIN, **changes)
    stock, reason = stock_dit(model, T_LIST)
    assert reason == "" and type(stock).__name__ == "DiTTransformer2DModel"
    assert largest_error(model, stock, T_LIST) < 3e-6
    assert largest_error(model, stock, [0.55]) > 1e-3  # nowhere else


def test_a_refitted_weight_is_the_nearest_that_solves() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, ours, theirs = (torch.randn(n, 8, generator=generator).double() for n in (5, 3, 3))
    found = refitted(weight, ours, theirs)
    torch.testing.assert_close(theirs @ found.T, ours @ weight.T, rtol=1e-10, atol=1e-10)
    # The change lies in the span of the rows of S': no smaller one does it.
    projection = torch.linalg.pinv(theirs) @ theirs
    torch.testing.assert_close((found - weight) @ projection, found - weight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("routing", "changes", "said"),
    [
        (KINDS["dar"], {}, "routing dar"),
        (PLAIN, {"prediction": "ddpm_eps"}, "prediction ddpm_eps"),
        (PLAIN, {"qk_norm": True}, "qk_norm"),
        (PLAIN, {"mlp_ratio": 2.0}, "mlp_ratio 2"),
    ],
)
def test_what_no_stock_model_does(routing: RoutingConfig, changes: dict[str, Any], said: str) -> None:
    stock, reason = stock_dit(model_of(routing, **changes), [0.9, 0.5])
    assert stock is None and reason == said


def test_a_stock_model_that_is_off_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_dit_module, "refitted", lambda weight, *_: weight)
    stock, reason = stock_dit(model_of(PLAIN), T_LIST)
    assert stock is None and re.fullmatch(r"diffusers' DiT is 0\.\d+ off at its timesteps", reason)


def test_positions_of_its_own_are_seen() -> None:
    model = model_of(PLAIN)
    model.pos_embed += 0.1
    assert stock_dit(model, T_LIST) == (None, "positions of its own")


# Card, hub, refusals


def test_the_card_has_the_figures_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "my_run"
    student_folder(run / "student", KINDS["dar"])
    (run / CONFIG_FILE).write_text(
        "teacher: {path: /home/me/big_teacher, cfg_scale: 2.5}\n"
        "objective: {name: dmd}\ntrain: {steps: 70, batch_size: 9}\n"
    )
    for name, evaluations, value in (("student, 3 steps", 3, 1.25), ("teacher, 50 steps", 100, 1.5)):
        measured = Measured(
            name, "", 500, 3, evaluations, 1.0, {"edge_width": Interval(value, value - 0.1, value + 0.1)}
        )
        write_bytes(run / "measures" / f"{evaluations}.json", measured.to_bytes())
    done = distill.export(run, tmp_path / "out", license="mit")
    text = (done.folder / "README.md").read_text()
    assert "license: mit\n" in text and "The weights: mit." in text
    assert "| Edge width, pixels | 1.5 (1.4 to 1.6) | 1.25 (1.15 to 1.35) |" in text
    assert "from the teacher big_teacher (guidance 2.5): objective dmd, 70 updates of 9 samples" in text
    assert "/home/me" not in text and str(tmp_path) not in text
    assert "# my_run" in text and "3 classes: shirt, shoe, bag" in text
    unknown = distill.export(run / "student", tmp_path / "other")
    assert "Of the weights: not stated." in (unknown.folder / "README.md").read_text()


def test_nothing_is_pushed_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, calls = student_folder(tmp_path / "student", KINDS["dar"]), []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo, **given: calls.append((repo, given)) or "address")
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **given: calls.append(given))
    argv = ["export", str(source), str(tmp_path / "out"), "--to", "diffusers"]
    assert main([*argv, "--push", "me/mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "would be written" in out and "pipeline.py" in out and "me/mine would be uploaded" in out
    assert not calls and not (tmp_path / "out").exists()
    assert main(argv) == 0 and not calls
    assert main([*argv[:2], str(tmp_path / "two"), *argv[3:], "--push", "me/mine"]) == 0
    assert calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls[1]["repo_id"] == "me/mine" and calls[1]["folder_path"] == str(tmp_path / "two")
    assert "me/mine uploaded: address" in capsys.readouterr().out
    hub.push_folder(tmp_path / "two", "me/mine", public=True)
    assert calls[2][1]["private"] is False


def test_a_hub_that_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = student_folder(tmp_path / "student", KINDS["dar"]), tmp_path / "out"

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401\nunauthorised")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    line = refused(capsys, "export", str(source), str(out), "--to", "diffusers", "--push", "me/mine")
    assert "--push me/mine: 401 unauthorised" in line and f"hf upload me/mine {out}" in line
    assert (out / "model_index.json").is_file()
    for name in ("mine", "a/b/c", "me/mi ne", "/x"):
        line = refused(capsys, "export", str(source), str(tmp_path / "no"), "--to", "diffusers", "--push", name)
        assert "must be NAMESPACE/NAME" in line and not (tmp_path / "no").exists()


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = student_folder(tmp_path / "student", KINDS["dar"]), tmp_path / "out"

    def said(to: str, *more: str, model: Path | str = source) -> str:
        return refused(capsys, "export", str(model), str(out), "--to", to, *more)

    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in said("diffusers", model=tmp_path / "empty")
    assert "is not a folder" in said("onnx", model=tmp_path / "none")
    for to in ("onnx", "torch"):
        assert f"/teacher is a teacher; --to {to} takes a student" in said(to, model="embedded")
        assert "a graph" in said(to, "--vae", str(tmp_path)) and "gives latents" in said(to, "--vae", str(tmp_path))
    assert "--int8 goes with --to onnx" in said("diffusers", "--int8")
    assert "--int8 goes with --to onnx" in said("torch", "--int8")
    vae = save_vae(tmp_path / "vae")
    assert "the model makes samples of 1 channel; the autoencoder" in said("diffusers", "--vae", str(vae))
    latents = student_folder(tmp_path / "latents", KINDS["dar"], in_channels=4)
    vae = save_vae(tmp_path / "by_channel", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    said_of = said("diffusers", "--vae", str(vae), model=latents)
    assert "by_channel is of AutoencoderKL; the pipeline decodes by an AutoencoderKL with one scale" in said_of
    monkeypatch.setattr(base, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert "--to onnx needs onnxscript: pip install 'dar-distill[export]'" in said("onnx")
    monkeypatch.undo()
    monkeypatch.setattr(base, "family_of", lambda _: "mine")
    assert "is of the family mine, which is not exported to torch; there is sit to diffusers" in said("torch")
    monkeypatch.undo()
    assert not out.exists() and not list(tmp_path.glob(".*partial*"))
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert "is not empty" in said("diffusers") and (out / "mine.txt").read_text() == "precious"
    with pytest.raises(UserError, match="--to must be one of diffusers, onnx, torch; got 'gguf'"):
        distill.export(source, tmp_path / "no", "gguf")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="this one was not loaded from one"):
        distill.export(student(), tmp_path / "no")


def test_an_exporter_is_registered_once() -> None:
    with pytest.raises(ValueError, match="export of sit to onnx is registered already"):
        base.register("sit", "onnx")(lambda *_: [])


def test_a_loaded_sampler_and_a_teacher_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = student_folder(tmp_path / "student", KINDS["dar"], in_channels=4)
    done = distill.export(load_sampler(str(folder), TeacherConfig(path=str(folder))), tmp_path / "out")
    assert set(done.files) >= {"model_index.json", "pipeline.py", "scheduler/scheduler_config.json", "README.md"}
    assert any("the pipeline gives latents" in note for note in done.notes) and done.address == ""
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["shift"] == 1.0 and scheduler["use_dynamic_shifting"] is False
    assert scheduler["shift_terminal"] is None and scheduler["stochastic_sampling"] is True
    (folder / "sampler.json").unlink()
    (folder / "checksums.json").unlink(missing_ok=True)
    teacher = distill.export(folder, tmp_path / "teacher")
    index = json.loads((teacher.folder / "model_index.json").read_text())
    assert index["sampler"]["sigmas"] is None and index["sampler"]["num_inference_steps"] == 50
    assert any("a teacher, asked at any timestep" in note for note in teacher.notes)
