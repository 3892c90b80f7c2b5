"""Parameters, memory and compute of a training, computed from its configuration before anything is built.

May import dar, objectives, training, sampling, models, config and what stands below them.
"""

from distill.planning.plan import Launch, Phase, Plan, plan_run, plan_train
from distill.planning.roles import Role
from distill.planning.shapes import named_shape, shape_in
from distill.planning.subjects import Subject
from distill.planning.work import DEVICES, UTILISATION, Device

__all__ = [
    "DEVICES",
    "UTILISATION",
    "Device",
    "Launch",
    "Phase",
    "Plan",
    "Role",
    "Subject",
    "named_shape",
    "plan_run",
    "plan_train",
    "shape_in",
]
