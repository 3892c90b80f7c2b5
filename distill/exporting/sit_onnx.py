"""A few-step SiT as one ONNX graph, in float32 or with its weights in 8 bits: `sampler.onnx`.

One step is traced, and an ONNX `Scan` runs it for each t: a graph of all steps would be so many times as large and as
long in the making.

    x_1 = t_1 noise_0;   for each (t, t_next, keeps, fresh):   x0 = x - t velocity,   x = (1 - t_next) x0 + t_next eps

with eps = x0 + velocity where the step `keeps` its noise, else the fresh one; t_next of the last step is 0.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.exporting.base import Options, Source, register
from distill.exporting.sampler_graph import NUM_COMPARED, compared, example, student_of, what_comes_out, write_beside
from distill.exporting.sit_torch import BATCH, exported
from distill.sampling.flow import interpolate, velocity_to_x0

GRAPH_FILE = "sampler.onnx"
OPSET = 20
INT8_BLOCK = 32  # weights that share a scale
FLOAT_ACTIVATIONS = 1  # of MatMulNBits: products in float32
MOST_BYTES = 1_500_000_000  # of weights in the graph's own file, which can hold 2 GB
CARRIED = ["x_t", "t", "t_next", "keeps", "fresh"]


class StepGraph(nn.Module):
    """One step: x_t to x at t_next (B, *sample_shape), at scalars t, t_next and keeps (bool)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_t: Tensor, t: Tensor, t_next: Tensor, keeps: Tensor, fresh: Tensor, labels: Tensor) -> Tensor:
        velocity = self.model(x_t, t.expand(x_t.shape[0]), labels)
        x0 = velocity_to_x0(x_t, velocity, t)
        return interpolate(x0, torch.where(keeps, x0 + velocity, fresh), t_next)


@register("sit", "onnx")
def export_sit(source: Source, options: Options, folder: Path) -> list[str]:
    sampler, model = source.sampler, student_of(source, options, "onnx")
    with quiet():
        step = step_graph(StepGraph(model).eval().requires_grad_(False), source)
        if options.int8:
            step = in_int8(step)
        graph = looped(step, sampler.t_list.tolist(), sampler.ode_steps, sampler.num_noises)
        save(graph, folder / GRAPH_FILE)
    write_beside(source, options, folder, "run_onnx.py", "numpy and onnxruntime")
    return [*what_comes_out(model), compared(source, run(folder / GRAPH_FILE, *example(source, NUM_COMPARED)))]


def run(file: Path, noise: Tensor, labels: Tensor) -> Tensor:
    """Samples of a graph, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})[0])


def step_graph(step: StepGraph, source: Source) -> Any:
    """`step` as an onnx.ModelProto, with nothing in it of where its source lies."""
    noise, labels = example(source, 2)
    scalars = torch.tensor(0.5), torch.tensor(0.25), torch.tensor(False)
    rows = {0: BATCH}
    program = exported(step, (noise[0], *scalars, noise[0], labels), (rows, None, None, None, rows, rows))
    converted = torch.onnx.export(
        program, (), input_names=[*CARRIED, "labels"], output_names=["x_next"], opset_version=OPSET, verbose=False
    )
    assert converted is not None
    model = converted.model_proto
    for entry in [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        del entry.metadata_props[:]
    return model


def in_int8(model: Any) -> Any:
    """Weights of linear layers in 8 bits, each 32 of them with a scale; all products in float32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()
    quantizer: Any = MatMulNBitsQuantizer(
        wrapped.model, bits=8, block_size=INT8_BLOCK, is_symmetric=True, accuracy_level=FLOAT_ACTIVATIONS
    )
    quantizer.process()
    return quantizer.model.model


def looped(step: Any, t_list: Sequence[float], ode_steps: int, num_noises: int) -> Any:
    """A graph noise (K, B, ..), labels (B) -> samples (B, ..) that runs `step` at each t of `t_list`."""
    from onnx import TensorProto, helper

    steps, inputs = len(t_list), {value.name: value for value in step.graph.input}
    sample_shape = [dim.dim_value for dim in inputs["x_t"].type.tensor_type.shape.dim[1:]]
    carried = [inputs[name] for name in CARRIED]  # labels are those of the graph around
    body = helper.make_graph(step.graph.node, "step", carried, step.graph.output, value_info=step.graph.value_info)
    next_noise = [*range(1, steps), 0] if num_noises > 1 else [0] * steps  # that of the last step is multiplied by 0

    def values(name: str, kind: int, shape: Sequence[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Gather", ["noise", "first"], ["first_noise"]),
        helper.make_node("Mul", ["first_noise", "first_t"], ["first_x"]),
        helper.make_node("Gather", ["noise", "next_noise"], ["noises"]),
        helper.make_node(
            "Scan", ["first_x", "ts", "next_ts", "all_keeps", "noises"], ["samples"], body=body, num_scan_inputs=4
        ),
    ]
    initializers = [
        *step.graph.initializer,
        helper.make_tensor("first", TensorProto.INT64, [], [0]),
        helper.make_tensor("first_t", TensorProto.FLOAT, [], [t_list[0]]),
        helper.make_tensor("next_noise", TensorProto.INT64, [steps], next_noise),
        helper.make_tensor("ts", TensorProto.FLOAT, [steps], t_list),
        helper.make_tensor("next_ts", TensorProto.FLOAT, [steps], [*t_list[1:], 0.0]),
        helper.make_tensor("all_keeps", TensorProto.BOOL, [steps], [i < ode_steps for i in range(steps)]),
    ]
    graph = helper.make_graph(
        nodes,
        "sampler",
        [
            values("noise", TensorProto.FLOAT, [num_noises, "batch", *sample_shape]),
            values("labels", TensorProto.INT64, ["batch"]),
        ],
        [values("samples", TensorProto.FLOAT, ["batch", *sample_shape])],
        initializers,
    )
    return helper.make_model(
        graph, opset_imports=step.opset_import, ir_version=step.ir_version, functions=step.functions
    )


def save(model: Any, file: Path, most_bytes: int = MOST_BYTES) -> None:
    """Write a graph; weights that are too many for its file go to one beside it."""
    import onnx

    apart = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > most_bytes
    onnx.save_model(model, file, save_as_external_data=apart, location=f"{file.name}.data" if apart else None)
    onnx.checker.check_model(file)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the converters tell each other."""
    before = logging.root.manager.disable, logging.root.level, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before[0])
        logging.root.setLevel(before[1])  # onnxruntime's quantisers change it on being imported
        logging.root.handlers[:] = before[2]
