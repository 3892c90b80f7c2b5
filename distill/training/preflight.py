"""Checks before the first update: most failed distillations come from a wrong convention, not a wrong learning rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from distill.conditions import Prompts, condition_of, to_device
from distill.config import TeacherConfig
from distill.conformance.conventions import convention_of, in_parts, num_samples, rows_at_once
from distill.data.checking import check_prompts
from distill.errors import UserError
from distill.models.backbone import Backbone
from distill.sampling import draw_images, teacher_sampler
from distill.seeds import generator_for

STD_RANGE = (0.1, 3.0)
NUM_STEPS = 10


@torch.no_grad()
def preflight(teacher: Backbone, copies: Mapping[str, Backbone], config: TeacherConfig) -> float:
    """Raise UserError if the teacher or a trainable copy of it does not meet the assumptions of distillation, or its
    prompts are damaged.

    Args:
        copies: models that must compute the same as the teacher before the first update, by role.

    Returns: standard deviation of the teacher's samples, the reference for the student's drift.
    """
    condition = condition_of(teacher)
    if isinstance(condition, Prompts):
        check_prompts(condition)
    complaint = convention_of(teacher).complaint
    if complaint:
        raise UserError(f"preflight: teacher: {complaint}")
    device = next(teacher.parameters()).device
    generator = generator_for(0, "preflight")
    num, rows = num_samples(teacher.sample_shape), rows_at_once(teacher.sample_shape)
    x_t = torch.randn(num, *teacher.sample_shape, generator=generator).to(device)
    t = torch.rand(num, generator=generator).clamp(*teacher.t_range).to(device)
    conditions = condition.balanced(num)
    y = to_device(conditions, device)
    expected = in_parts(teacher, x_t, t, y)
    for role, model in copies.items():
        difference = float((in_parts(model, x_t, t, y) - expected).abs().max())
        if difference > 0:
            raise UserError(f"preflight: {role} differs from the teacher at the start, by up to {difference:.3g}")
    sampler = teacher_sampler("teacher", teacher, config, NUM_STEPS)
    samples, _ = draw_images(sampler, conditions, seed=0, batch_size=rows)
    std = float(samples.std())
    if not torch.isfinite(samples).all():
        raise UserError(f"preflight: the teacher's samples are not finite at cfg_scale {config.cfg_scale:g}")
    if not STD_RANGE[0] <= std <= STD_RANGE[1]:
        raise UserError(
            f"preflight: the teacher's samples have std {std:.3g}; expected {STD_RANGE[0]:g} to {STD_RANGE[1]:g}. "
            f"Is teacher.cfg_scale = {config.cfg_scale:g} right, and are latents scaled?"
        )
    return std
