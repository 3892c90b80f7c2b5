"""Whether a model keeps to `distill.models.Backbone`: the check that a new backbone has to pass.

check_backbone(model, load=MyModel.from_pretrained)         any weights: shapes, rows, conditions, t_range, saving
check_backbone(model, load=.., data=GaussianClasses(..))    trained on `data`: its convention, against closed forms
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.conditions import ConditionBatch, condition_of, slice_rows, where_rows
from distill.conformance.conventions import convention_of
from distill.conformance.gaussian import GaussianClasses
from distill.models.backbone import Backbone
from distill.sampling.flow import interpolate
from distill.seeds import generator_for

NUM_ROWS = 4
NUM_SAMPLES = 512
INNER_T = (0.1, 0.9)  # at the ends a velocity of a predicted eps or x0 is a small difference over a small number
MAX_ERROR = 0.2
ROUNDING = 1e-4

Load = Callable[[Path], Backbone]


def check_backbone(model: Backbone, *, load: Load, data: GaussianClasses | None = None) -> None:
    """Pass a model that keeps to the protocol.

    Args:
        load: of a folder that `save_pretrained` wrote.
        data: what the model was trained on, to any modest accuracy: mean squared error of the velocity below
            a fifth of its mean square for t in [0.1, 0.9]. None leaves out what only training gives.

    Raises: ValueError with all that is wrong, one line each.
    """
    found = list(violations(model, load, data))
    if found:
        raise ValueError("this model does not keep to distill.models.Backbone:\n" + "\n".join(found))


def violations(model: Backbone, load: Load, data: GaussianClasses | None = None) -> Iterator[str]:
    """What `check_backbone` complains about."""
    for basics in (_attributes, _rows):
        wrong = list(basics(model))
        yield from wrong
        if wrong:
            return
    yield from _range(model)
    yield from _learning(model)
    yield from _saving(model, load)
    if data is not None:
        yield from _convention(model, data)


def _attributes(model: Backbone) -> Iterator[str]:
    if not isinstance(model, nn.Module):
        yield f"it must be an nn.Module; it is a {type(model).__name__}"
        return
    if not hasattr(model, "condition") and not hasattr(model, "null_label"):
        yield "it has neither condition nor null_label"
        return
    for name in ("t_range", "sample_shape", "gradient_checkpointing", "save_pretrained"):
        if not hasattr(model, name):
            yield f"it has no {name}"
            return
    low, high = model.t_range
    if not 0 <= low < high <= 1:
        yield f"t_range must lie within (0, 1), the least t first; got {model.t_range}"
    if not model.sample_shape or min(model.sample_shape) < 1:
        yield f"sample_shape must be sizes of at least 1, such as (C, H, W); got {model.sample_shape}"
    if condition_of(model).num_distinct < 1:
        yield f"its condition must have at least 1 value; got {condition_of(model)}"


@torch.no_grad()
def _rows(model: Backbone) -> Iterator[str]:
    """Shapes, types, and that a row's velocity is a function of that row alone, in training mode too."""
    assert isinstance(model, nn.Module)
    x_t, t, y = _inputs(model)
    was_training = model.training
    again, together = model.train()(x_t, t, y), model.eval()(x_t, t, y)
    model.train(was_training)
    if together.shape != x_t.shape or together.dtype != x_t.dtype:
        yield (
            f"the velocity must have x_t's shape and type, {tuple(x_t.shape)} {x_t.dtype}; got "
            f"{tuple(together.shape)} {together.dtype}"
        )
        return
    if not together.isfinite().all():
        yield "the velocity is not finite"
    alone = torch.cat([model(x_t[i : i + 1], t[i : i + 1], slice_rows(y, i, i + 1)) for i in range(len(x_t))])
    if not _error(alone, together) <= ROUNDING:  # nan is no agreement
        yield "a row's velocity depends on the other rows, or all rows take the t or the condition of one"
    if not _error(again, together) <= ROUNDING:
        yield "in training mode the velocity is another: conditions or values are dropped inside the model"


@torch.no_grad()
def _range(model: Backbone) -> Iterator[str]:
    """The ends are in, and a t beyond them is refused rather than answered with something."""
    x_t, _, y = _inputs(model)
    low, high = model.t_range
    for t in (low, high):
        try:
            velocity = model(x_t, torch.full((len(x_t),), t), y)
        except (ValueError, IndexError) as error:
            yield f"t = {t:g}, an end of t_range, is refused: {error}"
            continue
        if not velocity.isfinite().all():
            yield f"at t = {t:g}, an end of t_range, the velocity is not finite"
    for t, is_outside in ((low / 2, low > 0), ((1 + high) / 2, high < 1)):
        if is_outside:
            try:
                model(x_t, torch.full((len(x_t),), t), y)
            except ValueError:
                continue
            yield f"t = {t:g} lies outside t_range and is answered; it must raise a ValueError"


def _learning(model: Backbone) -> Iterator[str]:
    x_t, t, y = _inputs(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        yield "no parameter of it learns"
        return
    gradients = torch.autograd.grad(model(x_t, t, y).square().sum(), parameters, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        yield "no gradient of the velocity reaches its parameters"


@torch.no_grad()
def _saving(model: Backbone, load: Load) -> Iterator[str]:
    x_t, t, y = _inputs(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        model.save_pretrained(folder)
        loaded = load(folder)
        fields = {"condition": condition_of, "sample_shape": lambda m: m.sample_shape, "t_range": lambda m: m.t_range}
        for field, of in fields.items():
            before, after = of(model), of(loaded)
            if before != after:
                yield f"saved and loaded, its {field} is {after}; it was {before}"
                return
        if not torch.equal(loaded(x_t, t, y), model(x_t, t, y)):
            yield "saved and loaded, it gives other velocities"


@torch.no_grad()
def _convention(model: Backbone, data: GaussianClasses) -> Iterator[str]:
    """Velocity, time and classes, against the closed form of the data that the model was trained on."""
    complaint = convention_of(model).complaint
    if complaint:
        yield complaint
    generator = generator_for(0, "conformance")
    x0, y = data.draw(NUM_SAMPLES, generator)
    t = torch.rand(NUM_SAMPLES, generator=generator).clamp(*INNER_T).clamp(*model.t_range)
    x_t = interpolate(x0, torch.randn(x0.shape, generator=generator), t)
    null, known_null = condition_of(model).null(y), condition_of(data).null(y)
    for name, given, known in (("a class", y, y), ("the null class", null, known_null)):
        error = _error(model(x_t, t, given), data(x_t, t, known))
        if not error <= MAX_ERROR:
            yield (
                f"of {name} the velocity differs from the data's by {error:.2g} of its mean square; "
                f"at most {MAX_ERROR:g} is allowed"
            )


def _inputs(model: Backbone) -> tuple[Tensor, Tensor, ConditionBatch]:
    """Rows that differ in all that a row has, the null condition among them."""
    generator = generator_for(0, "conformance", "rows")
    low, high = model.t_range
    x_t = torch.randn(NUM_ROWS, *model.sample_shape, generator=generator)
    condition = condition_of(model)
    y = condition.balanced(NUM_ROWS)
    y = where_rows(torch.arange(NUM_ROWS) == NUM_ROWS - 1, condition.null(y), y)
    return x_t, torch.linspace(low, high, NUM_ROWS + 2)[1:-1], y


def _error(found: Tensor, expected: Tensor) -> float:
    """Mean squared error over the mean square."""
    return float((found - expected).square().mean() / expected.square().mean().clamp(min=1e-12))
