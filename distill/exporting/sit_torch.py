"""A few-step SiT as a program of torch.export, which a process with torch alone loads: `sampler.pt2`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.conditions import condition_of
from distill.errors import UserError
from distill.exporting.base import Options, Source, register
from distill.exporting.sampler_graph import NUM_COMPARED, compared, example, student_of, what_comes_out, write_beside
from distill.sampling import few_step_sample
from distill.sampling.guidance import Denoiser

PROGRAM_FILE = "sampler.pt2"
WHERE_FROM = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")  # of a node: half of a file, and paths


class SamplerGraph(nn.Module):
    """noise (K, B, *sample_shape), labels (B) -> samples (B, *sample_shape)."""

    def __init__(self, model: Any, t_list: Tensor, ode_steps: int) -> None:
        super().__init__()
        self.model, self.ode_steps = model, ode_steps
        self.t_list: Tensor
        self.register_buffer("t_list", t_list)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        student = Denoiser(self.model, condition_of(self.model))
        return few_step_sample(student, noise, labels, self.t_list, self.ode_steps)


@register("sit", "torch")
def export_sit(source: Source, options: Options, folder: Path) -> list[str]:
    model = student_of(source, options, "torch")
    if options.int8:
        raise UserError("--int8 goes with --to onnx; a program of torch is quantised by torchao, see docs/hand_on.md")
    graph = SamplerGraph(model, source.sampler.t_list, source.sampler.ode_steps).eval().requires_grad_(False)
    program = exported(graph, example(source, 2), {"noise": {1: BATCH}, "labels": {0: BATCH}})
    torch.export.save(program, folder / PROGRAM_FILE)
    write_beside(source, options, folder, "run_torch.py", "torch")
    samples = torch.export.load(folder / PROGRAM_FILE).module()(*example(source, NUM_COMPARED))
    return [*what_comes_out(model), compared(source, samples)]


BATCH = torch.export.Dim("batch")


def exported(graph: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """A program for any number of samples, with nothing in it of where its source lies.

    A first pass makes what is made once: while a graph is traced, tensors have no values.
    """
    with torch.no_grad():
        graph(*inputs)
        program = torch.export.export(graph, inputs, dynamic_shapes=dynamic_shapes)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for name in WHERE_FROM:
                node.meta.pop(name, None)
    return program
