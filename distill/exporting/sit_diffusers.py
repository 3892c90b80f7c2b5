"""A SiT as a folder of diffusers: transformer, scheduler, autoencoder, a pipeline, and code that diffusers lacks."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from dar import SiT
from dar.checkpoints.diffusers import EXPORTED
from dar.routing import ROUTINGS
from distill.conditions import ClassLabels
from distill.config import TeacherConfig
from distill.errors import UserError
from distill.exporting import card
from distill.exporting.base import Options, Source, register
from distill.exporting.bundle import Name, bundle
from distill.exporting.schedulers import check_sigmas, flow_scheduler
from distill.exporting.stock_dit import stock_dit
from distill.latents.vae import IMAGE_CHANNELS, load_vae

MODEL_MODULE = "distill.exporting.sit_model"
MODEL_CLASS = "SiTTransformer2DModel"
VAE_CLASS = "AutoencoderKL"
PIPELINE_FILE = "pipeline"
PIPELINE_CLASS = "SiTPipeline"
USE = """## Draw

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this folder", trust_remote_code=True)  # torch_dtype=.., .to("cuda")
pipe(class_labels=[0, 1], generator=torch.Generator().manual_seed(0)).images[0].save("picture.png")
```

Labels are numbers or names. A list of generators has one for each picture."""
BY_HAND = """Without `trust_remote_code`, which runs pipeline.py:

```python
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

transformer = DiTTransformer2DModel.from_pretrained("this folder", subfolder="transformer")
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained("this folder", subfolder="scheduler")
scheduler.set_timesteps(sigmas=[{sigmas}])
y = torch.tensor([0, 1])
x = scheduler.sigmas[0] * torch.randn(len(y), {shape})
with torch.no_grad():
    for t in scheduler.timesteps:
        velocity = transformer(x, timestep=t.expand(len(x)), class_labels=y).sample
        x = scheduler.step(velocity, t, x).prev_sample
```

The weights are **valid at these sigmas alone**: one weight of the timestep's embedding was refitted so that diffusers'
frequencies give there what the student's own gave. DiTPipeline cannot drive it: it passes no sigmas, and takes 1000 for
the class "none"."""
CODE = "What `trust_remote_code` runs is pipeline.py and the file in transformer/: read them first."
STAND_INS: dict[Name, Name] = {
    ("dar.routing.mixers", "mixer_for"): (MODEL_MODULE, "mixer_for"),
    ("dar.route", "route"): (MODEL_MODULE, "route"),
    ("dar.route", "mix"): (MODEL_MODULE, "mix"),
}


@register("sit", "diffusers")
def export_sit(source: Source, options: Options, folder: Path) -> list[str]:
    """What `DiffusionPipeline.from_pretrained` loads: a plain student as diffusers' own model, others with code."""
    model = cast(SiT, source.sampler.model)
    if options.int8:
        raise UserError("--int8 goes with --to onnx; diffusers loads in half precision with torch_dtype")
    sigmas = source.sampler.t_list.tolist() if source.is_student else None
    scheduler = flow_scheduler(fresh_noise=source.is_student and source.sampler.num_noises > 1)
    check_sigmas(scheduler, sigmas or [1.0])
    stock, reason = stock_dit(model, sigmas) if sigmas else (None, "a teacher, asked at any timestep")
    transformer = own_model(model) if stock is None else stock
    transformer.save_pretrained(folder / "transformer")
    if stock is None:
        (folder / "transformer" / f"{model_module(model)}.py").write_text(model_code(model))
    else:
        file = folder / "transformer" / "config.json"
        _write_json(file, json.loads(file.read_text()) | {EXPORTED: sigmas})
    scheduler.save_pretrained(folder / "scheduler")
    if options.vae:
        _save_vae(options.vae, model.sample_shape, folder / "vae")
    shutil.copyfile(Path(__file__).with_name("sit_pipeline.py"), folder / f"{PIPELINE_FILE}.py")
    _write_json(folder / "model_index.json", _index(source, transformer, options))
    (folder / "README.md").write_text(_card(source, options, is_stock=stock is not None))
    notes = [
        f"transformer: {type(transformer).__name__} of diffusers, right at t = {card.listed(sigmas or [])} alone"
        if stock is not None
        else f"transformer: with code of its own, transformer/{model_module(model)}.py ({reason})"
    ]
    if not options.vae and model.sample_shape[0] not in IMAGE_CHANNELS:
        notes.append("no autoencoder: the pipeline gives latents (output_type='latent'); --vae puts one in")
    return notes


def own_model(model: SiT) -> Any:
    """A SiT as a model of diffusers."""
    from distill.exporting.sit_model import SiTTransformer2DModel

    own = SiTTransformer2DModel(asdict(model.config))
    own.network.load_state_dict(model.state_dict())
    return own.eval()


def model_module(model: SiT) -> str:
    """What the file with its code is called; all of one routing are alike, and diffusers keeps files by name."""
    return f"modeling_sit_{model.config.routing.kind}"


def model_code(model: SiT) -> str:
    """The text of a module with the model's class, for a process that has torch and diffusers alone."""
    routing = ROUTINGS[model.config.routing.kind]
    heading = (
        f"SiT with routing {model.config.routing.kind!r} for diffusers: taken from the sources of dar-distill "
        "(Apache-2.0) by its\nexport, definition by definition. It draws and is not trained."
    )
    entries = [(routing.__module__, routing.__name__), (MODEL_MODULE, MODEL_CLASS)]
    return bundle(heading, entries, STAND_INS, left_out=["huggingface_hub"])


def _index(source: Source, transformer: Any, options: Options) -> dict[str, Any]:
    """What `DiffusionPipeline.from_pretrained` reads first."""
    from diffusers import __version__

    sampler, model = source.sampler, cast(SiT, source.sampler.model)
    is_stock = type(transformer).__name__ != MODEL_CLASS
    return {
        "_class_name": [PIPELINE_FILE, PIPELINE_CLASS],
        "_diffusers_version": __version__,
        "transformer": ["diffusers" if is_stock else model_module(model), type(transformer).__name__],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "vae": ["diffusers", VAE_CLASS] if options.vae else [None, None],
        "id2label": id2label(cast(ClassLabels, sampler.condition)),
        "sampler": {
            "sample_shape": list(model.sample_shape),
            "num_classes": model.null_label,
            "sigmas": sampler.t_list.tolist() if source.is_student else None,
            "ode_steps": sampler.ode_steps if source.is_student else None,
            "sigma_range": list(model.t_range),
            "num_inference_steps": sampler.num_steps,
            "guidance_scale": 1.0 if source.is_student else TeacherConfig().cfg_scale,
        },
    }


def _card(source: Source, options: Options, *, is_stock: bool) -> str:
    more = by_hand(source) if is_stock else CODE
    return card.card(source, options, library="diffusers", use=f"{USE}\n\n{more}")


def by_hand(source: Source) -> str:
    """How to draw without code of ours, and where the weights hold."""
    sigmas = ", ".join(f"{t:.9g}" for t in source.sampler.t_list.tolist())  # all digits of a float32
    text = BY_HAND.format(sigmas=sigmas, shape=", ".join(map(str, source.sampler.model.sample_shape)))
    ode_steps = source.sampler.ode_steps
    if ode_steps == 0 or source.sampler.num_noises == 1:
        return text
    return f"{text}\n\nThis loop draws fresh noise at every step; the pipeline only after the first {ode_steps}."


def id2label(classes: ClassLabels) -> dict[str, str] | None:
    """Names of the classes that can be drawn; None where that is all of them, without names."""
    if classes.class_names is None and classes.trained is None:
        return None
    return {
        str(label): name for label, name in zip(classes.labels.tolist(), classes.names(classes.labels), strict=True)
    }


def _save_vae(name: str, sample_shape: tuple[int, ...], folder: Path) -> None:
    """Raises: UserError where the autoencoder does not decode such samples, or not as the pipeline does."""
    vae = load_vae(name)
    vae.image_shape(sample_shape)
    vae.save(folder)
    config = json.loads((folder / "config.json").read_text())
    if config["_class_name"] != VAE_CLASS or config.get("latents_mean") is not None:
        raise UserError(
            f"--vae {name} is of {config['_class_name']}; the pipeline decodes by an {VAE_CLASS} with one scale"
        )


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
