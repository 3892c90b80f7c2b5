"""A stock transformer as others run it: adapters as `load_lora_weights` takes them, or all of it; routing with code.

DST/pytorch_lora_weights.safetensors    adapters, for a pipeline of the model that they adapt
DST/transformer/                        in their place the transformer, where it was trained whole
DST/routing.json, .safetensors, .py     an attached routing, and what attaches it
DST/scheduler/                          which leaves the student's sigmas as they are
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file

import dar
from dar.architectures import ARCHITECTURES
from dar.routing import ROUTINGS
from distill.errors import UserError
from distill.exporting import card
from distill.exporting.base import Options, Source, register
from distill.exporting.bundle import Name, bundle
from distill.exporting.schedulers import check_sigmas, flow_scheduler
from distill.exporting.sit_diffusers import STAND_INS
from distill.models.lora import NAME, has_adapters
from distill.models.stock import StockBackbone

LORA_FILE = "pytorch_lora_weights.safetensors"
CODE_FILE = "routing.py"
USE = """## Draw

```python
import sys

import diffusers
import torch

pipe = diffusers.DiffusionPipeline.from_pretrained({base}, torch_dtype=torch.bfloat16)
{load}
pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained("this folder", subfolder="scheduler")
drawn = pipe("a prompt", num_inference_steps={steps}, sigmas=[{sigmas}], guidance_scale={guidance})
```

The sigmas are the student's own: at others it was never trained. The scheduler draws the noise of later steps from
torch's global generator: `torch.manual_seed` makes a picture come again. {code}"""
ATTACH = """sys.path.insert(0, "this folder")
from routing import load_routing

load_routing(pipe.transformer, "this folder")"""
CODE = "routing.py is the code of the routing, which Python runs here: read it first."


@register("stock", "diffusers")
def export_stock(source: Source, options: Options, folder: Path) -> list[str]:
    """Adapters or a transformer, a routing with its code, a scheduler with the student's sigmas."""
    backbone = cast(StockBackbone, source.sampler.model)
    if options.int8 or options.vae:
        raise UserError("--int8 and --vae are not for a stock transformer: its pipeline has its own autoencoder")
    if not source.is_student:
        raise UserError(f"{source.folder} is a teacher, which is a folder of diffusers already; export a student")
    sigmas = source.sampler.t_list.tolist()
    scheduler = flow_scheduler(fresh_noise=source.sampler.num_noises > 1)
    check_sigmas(scheduler, sigmas)
    scheduler.save_pretrained(folder / "scheduler")
    adapted, routed = has_adapters(backbone), backbone.routing is not None
    if adapted:
        save_file(lora_weights(backbone), folder / LORA_FILE)
        load, base = 'pipe.load_lora_weights("this folder")', f'"the pipeline of {backbone.source.parent.name}"'
    else:
        with dar.stock_weights(backbone.transformer) if routed else nullcontext():
            backbone.transformer.save_pretrained(folder / "transformer")
        name = type(backbone.transformer).__name__
        load = f'pipe.transformer = diffusers.{name}.from_pretrained("this folder", subfolder="transformer")'
        base = '"a pipeline of its kind"'
    if routed:
        dar.save_routing(backbone.transformer, folder)
        (folder / CODE_FILE).write_text(routing_code(backbone.transformer))
        load = f"{ATTACH}\n{load}" if adapted else f"{load}\n{ATTACH}"
    use = USE.format(
        base=base, load=load, steps=len(sigmas), sigmas=card.listed(sigmas),
        guidance=1.0 if backbone.guidance is None else f"{backbone.guidance:g}", code=CODE if routed else "",
    )  # fmt: skip
    what = f"{'adapters' if adapted else 'the transformer'}{' with its routing' if routed else ''}"
    about = (
        f"A {len(sigmas)}-step student, {what}: a {type(backbone.transformer).__name__} that makes samples of "
        f"{' x '.join(map(str, backbone.sample_shape))}. Timesteps, 1 being noise: {card.listed(sigmas)}; "
        f"{source.sampler.description}."
    )
    (folder / "README.md").write_text(card.card(source, options, library="diffusers", use=use, about=about))
    return [f"{what}: README.md says how"]


def lora_weights(backbone: StockBackbone) -> dict[str, Any]:
    """The adapters by the names that pipelines read, transformer.BLOCKS.N.LAYER.lora_A.weight; alpha is the rank."""
    from peft import get_peft_model_state_dict

    learnt = get_peft_model_state_dict(cast(Any, backbone), adapter_name=NAME, save_embedding_layers=False)
    return {name: tensor.contiguous() for name, tensor in learnt.items() if ".lora_" in name}


def routing_code(transformer: Any) -> str:
    """A file with `load_routing`, `attach_routing` and `detach_routing` for transformers of this class, without dar."""
    describe = ARCHITECTURES[type(transformer).__name__]
    routing = ROUTINGS[transformer.routing.config.kind]
    entries: list[Name] = [
        ("dar.attached_folder", "load_routing"),
        ("dar.attached", "detach_routing"),
        (describe.__module__, describe.__name__),
        (routing.__module__, routing.__name__),
    ]
    heading = "Depth routing in front of the norms of a transformer of diffusers: load_routing(transformer, folder)."
    return bundle(heading, entries, STAND_INS)
