"""What a student learns by, one objective a file, chosen by `objective.name`; and flow matching, by which teachers do.

May import training, sampling, conformance, metrics, render and what stands below them. The loop knows none of them.
"""

from distill.objectives.base import OBJECTIVES, Network, Objective, Setting, Turn, register
from distill.objectives.dmd import Dmd, DmdConfig, FakeScoreConfig
from distill.objectives.losses import dmd_gradient, dmd_loss, flow_matching_loss

__all__ = [
    "OBJECTIVES",
    "Dmd",
    "DmdConfig",
    "FakeScoreConfig",
    "Network",
    "Objective",
    "Setting",
    "Turn",
    "dmd_gradient",
    "dmd_loss",
    "flow_matching_loss",
    "register",
]
