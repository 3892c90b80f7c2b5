"""Make the shipped teacher of a finished `dar-distill train`: weights in half precision, statistics, card.

    dar-distill train configs/train_fashion.yaml
    python scripts/ship_teacher.py runs/teacher_fashion --trained-on "2 CPU cores, two processes"

Writes distill/assets/teacher/ (config.json, model.safetensors, classes.json, README.md), and of images drawn with
the reference sampler teacher.npz (statistics) and teacher.json (measures) beside it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from dar import SiT
from distill.assets import EMBEDDED, FOLDER
from distill.conditions import ClassLabels
from distill.config import EvalConfig, TeacherConfig, TrainConfig, load_config
from distill.evaluation.drawing import draw
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.files import replace_folder, write_bytes, write_text
from distill.metrics import MEASURES, Interval
from distill.sampling.samplers import teacher_sampler
from distill.training.run_log import read_log

CLASSES = ["T-shirt", "trouser", "pullover", "style_axes", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]

CARD = """---
license: apache-2.0
library_name: dar-distill
datasets: [fashion_mnist]
---
# The shipped teacher of dar-distill

A class-conditional SiT with Diffusion-Adaptive Routing on 28 x 28 grey images of clothes, small enough for two CPU
cores. It is here to be distilled and looked into, not to be used for anything else.

| | |
|---|---|
| model | {depth} blocks, width {hidden}, patch {patch}, routing {kind} {query}, S = {chunk}, summary {summary} |
| parameters | {parameters:,}, stored in float16 |
| data | Fashion-MNIST, 60,000 training images; Zalando SE, MIT licence |
| training | {steps:,} updates of {batch} samples, flow matching, label dropout {dropout:g}; EMA {ema:g} |
| time and device | {hours:.1f} h, {device} |
| command | `dar-distill train configs/train_fashion.yaml` |
| conventions | t = 0 data, t = 1 noise, velocity = eps - x0; images in [-1, 1]; class 10 is "none" |

Measured over {num_images} images, {description} (95 % intervals; statistics in teacher.npz, figures in
teacher.json; the features are those of the shipped classifier and compare with each other only):

| measure | value | interval |
|---|---|---|
{rows}
"""


def limits(value: Interval) -> str:
    """Nothing where none are known."""
    return "" if math.isnan(value.low) else f"{value.low:.4f} to {value.high:.4f}"


def card(config: TrainConfig, model: SiT, measured: Measured, elapsed_s: float, device: str) -> str:
    shape, routing = model.config, model.config.routing
    rows = [
        f"| {MEASURES[name].title} | {value.value:.4f} {MEASURES[name].unit} | {limits(value)} |"
        for name, value in measured.measures.items()
    ]
    return CARD.format(
        depth=shape.depth,
        hidden=shape.hidden_size,
        patch=shape.patch_size,
        kind=routing.kind,
        query=routing.query,
        chunk=routing.chunk_size,
        summary=routing.summary,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=config.train.steps,
        batch=config.train.batch_size,
        dropout=config.flow_matching.label_dropout,
        ema=config.flow_matching.ema_decay,
        hours=elapsed_s / 3600,
        device=device,
        num_images=measured.num_images,
        description=measured.description,
        rows="\n".join(rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of `dar-distill train`")
    parser.add_argument("--trained-on", required=True, help="the device, for the card")
    parser.add_argument("--cfg-scale", type=float, default=TeacherConfig.cfg_scale)
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--assets", type=Path, default=FOLDER, help="where to (the package's own)")
    args = parser.parse_args()
    config = load_config(TrainConfig, args.run / "config.yaml")
    # Statistics are of what is shipped: the weights as rounded to half precision.
    model = SiT.from_pretrained(args.run / "teacher").half().float().eval()
    settings = TeacherConfig(cfg_scale=args.cfg_scale)
    sampler = teacher_sampler(f"teacher, {settings.steps} steps", model, settings, settings.steps)
    evaluation = EvalConfig(num_images=args.num_images)
    evaluator = Evaluator(evaluation, torch.device("cpu"), model.sample_shape, EMBEDDED)
    (drawing,) = draw([(sampler, args.num_images)], evaluation, evaluator.decoder)
    measured = evaluator.measure(drawing)
    evaluator.statistics(drawing, f"shipped teacher, {sampler.description}").save(args.assets / "teacher.npz")
    write_bytes(args.assets / "teacher.json", measured.to_bytes())

    def fill(folder: Path) -> None:
        model.half().save_pretrained(folder)
        ClassLabels.of_names(CLASSES).save(folder)
        text = card(config, model, measured, read_log(args.run)[-1]["elapsed_s"], args.trained_on)
        write_text(folder / "README.md", text)

    replace_folder(args.assets / "teacher", fill)
    print(args.assets / "teacher")


if __name__ == "__main__":
    main()
