"""What a user can set: dataclasses with their limits, and YAML with overrides that becomes one of them.

May import dar, assets and errors.
"""

from distill.config.load import (
    CONFIG_FILE,
    build_config,
    config_from_overrides,
    config_to_yaml,
    flat_values,
    load_config,
    merge_values,
    override_values,
    plain_values,
    read_values,
    with_variant,
)
from distill.config.repa import RepaConfig
from distill.config.schema import (
    DataConfig,
    EvalConfig,
    FlowMatchingConfig,
    LoopConfig,
    OptimConfig,
    RetrofitConfig,
    RolesConfig,
    RoutingConfig,
    SiTConfig,
    StartConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
    TrainingConfig,
)
from distill.config.times import TConfig
from distill.config.watch import GuardsConfig, WatchConfig

__all__ = [
    "CONFIG_FILE",
    "DataConfig",
    "EvalConfig",
    "FlowMatchingConfig",
    "GuardsConfig",
    "LoopConfig",
    "OptimConfig",
    "RepaConfig",
    "RetrofitConfig",
    "RolesConfig",
    "RoutingConfig",
    "SiTConfig",
    "StartConfig",
    "StudentConfig",
    "TConfig",
    "TeacherConfig",
    "TrainConfig",
    "TrainingConfig",
    "WatchConfig",
    "build_config",
    "config_from_overrides",
    "config_to_yaml",
    "flat_values",
    "load_config",
    "merge_values",
    "override_values",
    "plain_values",
    "read_values",
    "with_variant",
]
