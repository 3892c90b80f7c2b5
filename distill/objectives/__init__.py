"""What a student learns by, one objective a file, chosen by `objective.name` and `mix`; and the training of teachers.

May import training, sampling, conformance, metrics, render and what stands below them. The loop knows none of them.
"""

from distill.objectives.base import (
    OBJECTIVES,
    Cost,
    Network,
    Objective,
    ObjectiveConfig,
    Samples,
    Setting,
    Turn,
    register,
)
from distill.objectives.config import RunConfig
from distill.objectives.critic import FakeScoreConfig

# Registered first, it is the objective of a section without a name.
from distill.objectives.dmd import Dmd, DmdConfig  # isort: split

from distill.objectives.decoupled_dmd import DecoupledDmd, DecoupledDmdConfig
from distill.objectives.discriminator import DiscriminatorConfig
from distill.objectives.diversity import Diversity, DiversityConfig
from distill.objectives.f_distill import FDistill, FDistillConfig
from distill.objectives.flow_matching import FlowMatching, StudentFlowMatchingConfig
from distill.objectives.gan import Gan, GanConfig
from distill.objectives.losses import dmd_gradient, dmd_loss, flow_matching_loss
from distill.objectives.preference import Preference, PreferenceConfig
from distill.objectives.regression import Regression, RegressionConfig
from distill.objectives.timestep_sharing import TimestepSharing, TimestepSharingConfig

__all__ = [
    "OBJECTIVES",
    "Cost",
    "DecoupledDmd",
    "DecoupledDmdConfig",
    "DiscriminatorConfig",
    "Diversity",
    "DiversityConfig",
    "Dmd",
    "DmdConfig",
    "FDistill",
    "FDistillConfig",
    "FakeScoreConfig",
    "FlowMatching",
    "Gan",
    "GanConfig",
    "Network",
    "Objective",
    "ObjectiveConfig",
    "Preference",
    "PreferenceConfig",
    "Regression",
    "RegressionConfig",
    "RunConfig",
    "Samples",
    "Setting",
    "StudentFlowMatchingConfig",
    "TimestepSharing",
    "TimestepSharingConfig",
    "Turn",
    "dmd_gradient",
    "dmd_loss",
    "flow_matching_loss",
    "register",
]
