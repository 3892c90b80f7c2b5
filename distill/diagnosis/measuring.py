"""Measures one stream of a model along depth and t.

Legend: n_t times, N samples, K blocks, L sublayers, R probe draws of t per image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dar import SiT
from dar.diagnostics import (
    AXES,
    DepthMeasure,
    Pass,
    Place,
    RunningMarginals,
    View,
    cosine_matrix,
    effect_variances,
    hidden_features,
    interpolated,
    measures_of,
    probe_r2,
    recorded_pass,
    removal_costs,
    view_of,
)
from dar.diagnostics.variance import Marginals
from dar.routing import DepthRouting
from distill.conditions import ConditionBatch, map_tensors
from distill.diagnosis.results import LOSS, REMOVAL_COST, ModelDiagnosis, Probe, Profile, WeightsOverDepth, titled
from distill.errors import UserError
from distill.seeds import generator_for

BATCH_SIZE = 50
PROBE_DRAWS = 8
PROBE_SPLITS = 5
BACKWARD_COST = 3  # a forward and a backward pass, in units of forward passes

Advance = Callable[[int], object]

LOSS_MEASURE = ("Flow matching loss", "mean_CHW |velocity - (eps - x0)|^2", "loss")
REMOVAL_MEASURE = (
    "Cost of removing a sublayer",
    "loss with zeros written in place of the sublayer's output, minus the loss as it is, same image and noise",
    "sublayer",
)


@dataclass(frozen=True, eq=False)
class Design:
    """The inputs for every model: N images, each with one noise, at every t.

    x0, eps: (N, *sample_shape). y: N rows. groups: of the rows, (N) int64, equally many of each. t_values: (n_t).
    batch_size: samples at once.
    """

    x0: Tensor
    eps: Tensor
    y: ConditionBatch
    groups: Tensor
    t_values: Tensor
    seed: int
    batch_size: int = BATCH_SIZE

    @classmethod
    def of(
        cls,
        x0: Tensor,
        y: ConditionBatch,
        t_values: Tensor,
        seed: int,
        groups: Tensor | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Design:
        """A design with noise drawn from `seed`. groups: None where y are labels."""
        eps = torch.randn(x0.shape, generator=generator_for(seed, "diagnosis", "eps"))
        return cls(x0, eps, y, y if groups is None else groups, t_values, seed, batch_size)

    def batches(self) -> Iterator[slice]:
        step = self.batch_size
        return (slice(i, min(i + step, len(self.x0))) for i in range(0, len(self.x0), step))

    def at(self, images: slice, t: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Any]:
        """x0, eps, t (B) and y of a batch."""
        x0, eps = (part[images].to(device) for part in (self.x0, self.eps))
        y = map_tensors(lambda tensor: tensor[images].to(device), self.y)
        return x0, eps, torch.full((len(x0),), t, device=device), y


def num_forwards(model: SiT | View, design: Design) -> int:
    """The cost of `diagnose_model`, in forward passes of one sample."""
    passes = BACKWARD_COST + view_of(model).num_sublayers + 1
    return len(design.x0) * (len(design.t_values) * passes + PROBE_DRAWS)


def diagnose_model(
    name: str, path: str, model: SiT | View, design: Design, advance: Advance, stream: str = ""
) -> ModelDiagnosis:
    """Measure one stream of a model.

    Args:
        advance: called with the number of forward passes done (a progress bar's advance).
        stream: its name, where the model has several.

    Raises: UserError if the model's loss is not finite.
    """
    view = view_of(model)
    passes, routing, similarity = _passes(view, design, advance)
    if not np.isfinite(passes[LOSS].values).all():
        raise UserError(f"{path}: the loss is not finite; a model that is broken cannot be diagnosed")
    return ModelDiagnosis(
        name=titled(name, stream),
        path=path,
        description=f"{view.num_blocks} blocks x {view.routing.dim}, routing {describe_routing(view)}",
        num_blocks=view.num_blocks,
        num_parameters=sum(parameter.numel() for parameter in view.parameters),
        profiles={**passes, REMOVAL_COST: _removal_profile(view, design, advance)},
        probe=_probe(view, design, advance),
        routing=routing,
        similarity=similarity,
        stream=stream,
        sublayers=view.sublayers,
    )


def describe_routing(view: View) -> str:
    """The kind of a routing and its main settings, such as "dar static_t, S = 4"."""
    routing = view.routing
    if isinstance(routing, DepthRouting) and not view.readers:  # a stand-in
        return "residual"
    text = routing.config.kind
    if routing.config.kind == "dar":
        text += f" {routing.config.query}"
    if isinstance(routing, DepthRouting):
        lengths = routing.plan.lengths
        even = len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
        text += f", S = {lengths[0] if even else list(lengths)}"
    return text


def _passes(
    view: View, design: Design, advance: Advance
) -> tuple[dict[str, Profile], WeightsOverDepth | None, np.ndarray]:
    """All registered measures with the loss, the weights over depth, and the similarity of all sublayers' outputs.

    Everything comes from one recorded pass per image and t.
    """
    measures = measures_of(view)
    shape = len(design.t_values), len(design.x0)
    values = {measure.name: np.empty((shape[0], len(AXES[measure.axis](view)), shape[1])) for measure in measures}
    values[LOSS] = np.empty((shape[0], 1, shape[1]))
    marginals = [RunningMarginals(*shape) for _ in view.readers]
    similarity = np.zeros((view.num_sublayers, view.num_sublayers))
    for t_index, t in enumerate(design.t_values.tolist()):
        for images in design.batches():
            run = recorded_pass(view, *design.at(images, t, view.device))
            _store(values, measures, run, t_index, images)
            for sums, weights in zip(marginals, run.weights, strict=True):
                sums.add(weights, t_index, images)
            similarity += len(run.loss) * cosine_matrix(run.record.writes).cpu().numpy()
            advance(BACKWARD_COST * len(run.loss))
    profiles = {LOSS: _profile(*LOSS_MEASURE, [Place("loss", float(view.num_blocks))], values[LOSS])}
    for m in measures:
        places = AXES[m.axis](view)
        profiles[m.name] = _profile(m.title, m.explanation, m.axis, places, values[m.name], m.unit, m.log)
    routing = _weights_over_depth(view, [sums.result() for sums in marginals], design.groups)
    return profiles, routing, similarity / (shape[0] * shape[1])


def _store(
    values: dict[str, np.ndarray], measures: Sequence[DepthMeasure], run: Pass, t_index: int, images: slice
) -> None:
    values[LOSS][t_index, 0, images] = run.loss.cpu().numpy()
    for measure in measures:
        values[measure.name][t_index, :, images] = measure.compute(run).cpu().numpy()


def _profile(
    title: str,
    explanation: str,
    axis: str,
    places: Sequence[Place],
    values: np.ndarray,
    unit: str = "",
    log: bool = False,
) -> Profile:
    names, positions = [place.name for place in places], np.array([place.position for place in places])
    return Profile(title, explanation, unit, log, axis, names, positions, values)


def _weights_over_depth(view: View, marginals: list[Marginals], groups: Tensor) -> WeightsOverDepth | None:
    if not view.readers:
        return None
    return WeightsOverDepth(
        reader_names=[reader.name for reader in view.readers],
        source_names=[list(reader.sources) for reader in view.readers],
        weights=[sums.by_t.numpy() for sums in marginals],
        variances=torch.stack([effect_variances(sums, groups).sum(0) for sums in marginals]).numpy(),
    )


def _removal_profile(view: View, design: Design, advance: Advance) -> Profile:
    values = np.empty((len(design.t_values), view.num_sublayers, len(design.x0)))
    for t_index, t in enumerate(design.t_values.tolist()):
        for images in design.batches():
            costs = removal_costs(view, *design.at(images, t, view.device))
            values[t_index, :, images] = costs.cpu().numpy()
            advance((view.num_sublayers + 1) * costs.shape[1])
    return _profile(*REMOVAL_MEASURE, AXES["sublayer"](view), values)


def _probe(view: View, design: Design, advance: Advance) -> Probe:
    """Probe of t with new t, uniform in [0, 1], R times per image, each time with new noise."""
    features, times, image = [], [], []
    for draw in range(PROBE_DRAWS):
        generator = generator_for(design.seed, "diagnosis", "probe", draw)
        t = torch.rand(len(design.x0), generator=generator).clamp(*view.model.t_range)
        x_t = interpolated(design.x0, torch.randn(design.x0.shape, generator=generator), t)
        for images in design.batches():
            y = map_tensors(lambda tensor, images=images: tensor[images].to(view.device), design.y)
            batch = (x_t[images].to(view.device), t[images].to(view.device), y)
            features.append(hidden_features(view, *batch).cpu())
            advance(images.stop - images.start)
        times.append(t)
        image.append(torch.arange(len(t)))
    by_block, target, rows = torch.cat(features, dim=1), torch.cat(times), torch.cat(image)
    scores = [
        # The same splits for every block and every model.
        probe_r2(
            block, target, rows, num_splits=PROBE_SPLITS, generator=generator_for(design.seed, "diagnosis", "split")
        )
        for block in by_block
    ]
    return Probe(
        r2=np.array([score.mean for score in scores]),
        spread=np.array([score.spread for score in scores]),
        penalty=np.array([score.penalty for score in scores]),
        num_rows=len(target),
        num_splits=PROBE_SPLITS,
    )
