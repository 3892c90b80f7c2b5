"""What a student gains and loses when its routing weights become constants at its timesteps (dar.fold_routing).

python scripts/fold_student.py runs/quickstart --output benchmarks/folding.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from dar import FoldedTimestep, SiT, fold_routing
from distill.assets import EMBEDDED
from distill.config import EvalConfig, TeacherConfig
from distill.evaluation.drawing import draw
from distill.evaluation.evaluator import Evaluator
from distill.files import write_text
from distill.processes import default_device
from distill.sampling import draw_images, noise_for
from distill.sampling.few_step import rollout
from distill.sampling.guidance import Denoiser
from distill.sampling.samplers import Sampler, few_step_sampler, load_sampler

CALIBRATION_SEED = 7
TIMED_BATCH = 50
MEASURES = (("frechet", 3), ("class_agreement", 3), ("high_frequency_ratio", 4))


def calibration(sampler: Sampler, num: int, device: torch.device) -> list[tuple[Tensor, float, Tensor]]:
    """The student's own inputs at each of its timesteps."""
    y = sampler.condition.balanced(num).to(device)
    noise = noise_for(range(num), sampler.num_noises, sampler.model.sample_shape, CALIBRATION_SEED).to(device)
    student = Denoiser(sampler.model, sampler.condition)
    return [
        (rollout(student, noise, y, sampler.t_list, step, sampler.ode_steps), float(t), y)
        for step, t in enumerate(sampler.t_list)
    ]


def rates(samplers: list[Sampler], repeats: int) -> list[float]:
    """Median images per second of each, drawn in turn, after a round that does not count."""
    labels = samplers[0].condition.balanced(2 * TIMED_BATCH)
    rounds = [
        [draw_images(sampler, labels, seed=1, batch_size=TIMED_BATCH)[1] for sampler in samplers]
        for _ in range(1 + repeats)
    ]
    return [statistics.median(of_one) for of_one in zip(*rounds[1:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, or its student's")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.05, 0.1, 0.15, 2.0])
    parser.add_argument("--calibration", type=int, default=200, help="samples that the means rest on (200)")
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=20, help="of the timing (20)")
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parser.parse_args()
    device = default_device()
    sampler = load_sampler(args.run, TeacherConfig())
    if sampler.role != "student":
        sys.exit(f"{args.run} is no few-step student: it has no timesteps of its own to fold at")
    sampler.model.to(device).eval()
    assert isinstance(sampler.model, SiT)
    inputs = calibration(sampler, args.calibration, device)
    arms: list[tuple[str, Sampler, list[FoldedTimestep]]] = [("none", sampler, [])]
    for tolerance in args.tolerances:
        model, found = fold_routing(sampler.model, inputs, tolerance)
        arms.append((f"{tolerance:g}", few_step_sampler(sampler.name, model, sampler.t_list, sampler.ode_steps), found))
    lines = [
        "# Routing weights as constants at the student's timesteps",
        "",
        f"`python scripts/fold_student.py {' '.join(sys.argv[1:])}`, {time.strftime('%Y-%m-%d')}, {device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s); means over {args.calibration} of the "
        f"student's own inputs; n = {args.num_images}; rates in batches of {TIMED_BATCH}, median of {args.repeats}, "
        "arms in turn.",
        "",
        "| tolerance | readers folded, by t | Fréchet distance | class agreement | high-frequency share | images/s |",
        "|---|---|---|---|---|---|",
    ]
    evaluator = Evaluator(
        EvalConfig(num_images=args.num_images, teacher_reference=None), device, sampler.model.sample_shape, EMBEDDED
    )
    for (name, arm, found), rate in zip(arms, rates([arm for _, arm, _ in arms], args.repeats), strict=True):
        (drawing,) = draw([(arm, args.num_images)], evaluator.config, evaluator.decoder)
        measures = evaluator.measure(drawing).measures
        cells = [f"{measures[key].value:.{digits}f}" for key, digits in MEASURES]
        folded = ", ".join(f"{f.num_folded} of {len(f.deviations)} at {f.t:g}" for f in found) or "none"
        lines.append(f"| {name} | {folded} | {' | '.join(cells)} | {rate:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    main()
