"""A student as others run it on a CPU: eager, compiled, as a program of torch, by onnxruntime, and there in 8 bits.

    python scripts/bench_export.py runs/quickstart --output benchmarks/export.md

Size of what is handed on, milliseconds per picture, and what becomes of detail: edge width, grain, and the largest
difference from the eager student over the same noise. Exports are kept in --folder; they take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from bench_tools import milliseconds, parsed, parser_of, setup, table, time_in_turn, version_of
from torch import Tensor

from distill.config import TeacherConfig
from distill.exporting.sampler_graph import detail
from distill.files import write_text
from distill.latents.vae import IMAGE_CHANNELS
from distill.sampling import noise_for
from distill.sampling.few_step import few_step_sample
from distill.sampling.guidance import Denoiser
from distill.sampling.samplers import Sampler, load_sampler
from distill.verbs.export import export

EXPORTS = {"onnx": ("onnx", False), "onnx_int8": ("onnx", True), "torch": ("torch", False)}
BATCHES = (1, 16)
AT_ONCE = 50
Draw = Callable[[Tensor, Tensor], Tensor]


def of_onnx(file: Path, threads: int) -> Draw:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def draw(noise: Tensor, labels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})[0])

    return draw


def compiled(sampler: Sampler) -> Draw:
    """The network compiled for any number of samples; the steps around it are eager."""
    denoiser = Denoiser(torch.compile(sampler.model, dynamic=True), sampler.condition)
    return lambda noise, y: few_step_sample(denoiser, noise, y, sampler.t_list, sampler.ode_steps)


def arms(sampler: Sampler, folder: Path, threads: int) -> dict[str, tuple[Draw, int]]:
    """By name: how it draws, and bytes of what is handed on."""
    for name, (to, int8) in EXPORTS.items():
        if not (folder / name).is_dir():
            export(sampler, folder / name, to, int8=int8)  # pyright: ignore[reportArgumentType]
    program, plain, small = (
        folder / "torch/sampler.pt2",
        folder / "onnx/sampler.onnx",
        folder / "onnx_int8/sampler.onnx",
    )
    weights = sum(tensor.nbytes for tensor in sampler.model.state_dict().values())  # pyright: ignore
    return {
        "eager": (sampler.draw, weights),
        "torch.compile": (compiled(sampler), weights),
        "torch.export": (torch.export.load(program).module(), program.stat().st_size),
        "onnxruntime": (of_onnx(plain, threads), plain.stat().st_size),
        "onnxruntime, int8": (of_onnx(small, threads), small.stat().st_size),
    }


@torch.no_grad()
def main() -> None:
    parser = parser_of(__doc__, {"cpu": 10, "cuda": 10})
    parser.add_argument("run", help="a run's folder, or its student's")
    parser.add_argument("--folder", type=Path, default=Path("runs/exported"), help="of the exports (runs/exported)")
    parser.add_argument("--num-images", type=int, default=500, help="that detail is measured on (500)")
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parsed(parser)
    sampler = load_sampler(args.run, TeacherConfig(path=args.run))
    sampler.model.eval().requires_grad_(False)
    found = {name: arm for name, arm in arms(sampler, args.folder, args.threads).items() if args.arms.search(name)}
    draws = {name: draw for name, (draw, _) in found.items()}

    def given(num: int) -> tuple[Tensor, Tensor]:
        noise = noise_for(range(num), sampler.num_noises, sampler.model.sample_shape, seed=1)
        return noise, sampler.condition.balanced(num)

    times = [
        time_in_turn({name: partial(draw, *given(batch)) for name, draw in draws.items()}, args.repeats, "cpu")
        for batch in BATCHES
    ]
    noise, labels = given(args.num_images)
    parts = list(zip(noise.split(AT_ONCE, dim=1), labels.split(AT_ONCE), strict=True))
    ours = torch.cat([sampler.draw(*part) for part in parts])
    rows = []
    for name, (draw, size) in found.items():
        images = torch.cat([draw(*part) for part in parts])
        is_picture = images.shape[1] in IMAGE_CHANNELS
        width, grains = (f"{value:.3f}" for value in detail(images)) if is_picture else ("", "")
        per_picture = [
            milliseconds([s / batch for s in by_name[name]]) for batch, by_name in zip(BATCHES, times, strict=True)
        ]
        largest = f"{float((images - ours).abs().max()):.2g}"
        rows.append([name, f"{size / 2**20:.1f}", *per_picture, width, grains, largest])
    header = [
        "student",
        "MiB",
        *(f"ms per picture, {batch} at once" for batch in BATCHES),
        "edge width, pixels",
        "grain x 1000",
        "largest difference",
    ]
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("onnxruntime", "onnx", "onnxscript"))
    text = (
        f"# A student handed on\n\n{setup('cpu')}, {versions}; {sampler.num_steps} steps, {args.repeats} repeats, arms "
        f"in turn; median [quartiles]. Detail over {args.num_images} pictures of the same noise; the size of eager and "
        f"compiled is that of the weights.\n\n{table(header, rows)}\n"
    )
    print(text)
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    main()
