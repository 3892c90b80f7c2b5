"""Configurations: what is accepted, and that every mistake is named with its place and its limit."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from distill.comparison.config import load_comparison
from distill.config import (
    DataConfig,
    OptimConfig,
    RoutingConfig,
    SiTConfig,
    StudentConfig,
    TrainConfig,
    config_to_yaml,
    flat_values,
    load_config,
)
from distill.errors import UserError
from distill.objectives import RunConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
COMPARISONS = [Path(__file__).parents[1] / "configs" / "compare" / "fashion.yaml"]
MODEL = "{input_size: 8, patch_size: 2, in_channels: 1, hidden_size: 16, depth: 2, num_heads: 2, num_classes: 3}"


def run_config(tmp_path: Path, text: str = "", *overrides: str) -> RunConfig:
    return load(RunConfig, tmp_path, f"output: out\n{text}", *overrides)


def train_config(tmp_path: Path, text: str = "", *overrides: str) -> TrainConfig:
    return load(TrainConfig, tmp_path, f"output: out\nmodel: {MODEL}\n{text}", *overrides)


def load(config_type, tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(config_type, path, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_load(path):
    config_type = TrainConfig if {"model", "start"} & set(yaml.safe_load(path.read_text())) else RunConfig
    assert isinstance(load_config(config_type, path), config_type)


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.name)
def test_shipped_comparisons_load(path):
    assert load_comparison(path).jobs


def test_there_are_shipped_configurations():
    assert CONFIGS and COMPARISONS


def test_what_is_not_said_has_its_default(tmp_path):
    assert run_config(tmp_path) == RunConfig(output="out")
    model = SiTConfig(input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    assert train_config(tmp_path) == TrainConfig(output="out", model=model)


def test_partial_sections_keep_the_fields_own_defaults(tmp_path):
    """student.optim and fake_score.optim are of one type with different defaults."""
    config = run_config(
        tmp_path,
        "student: {optim: {weight_decay: 0.1}}\nfake_score: {updates: 2, optim: {warmup_steps: 3}}",
    )
    assert config.student.optim == OptimConfig(lr=1e-4, betas=(0.0, 0.95), weight_decay=0.1)
    assert config.objective.fake_score.optim == OptimConfig(lr=3e-4, betas=(0.0, 0.95), warmup_steps=3)
    assert config.objective.fake_score.updates == 2
    assert run_config(tmp_path, "", "fake_score.optim.clip_norm=2").objective.fake_score.optim == OptimConfig(
        lr=3e-4, betas=(0.0, 0.95), clip_norm=2.0
    )


def test_values_take_their_fields_type(tmp_path):
    config = run_config(tmp_path, "student: {shift: 3, optim: {lr: 1e-5, betas: [0, 0.9]}}")
    assert (config.student.shift, config.student.optim.lr) == (3.0, 1e-5)
    assert isinstance(config.student.shift, float) and isinstance(config.student.optim.lr, float)
    assert config.student.optim.betas == (0.0, 0.9) and isinstance(config.student.optim.betas, tuple)
    assert run_config(tmp_path, "evaluate: {teacher_reference: null}").evaluate.teacher_reference is None


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("student.steps=2", lambda c: c.student.steps, 2),
        ("student.optim.lr=2e-5", lambda c: c.student.optim.lr, 2e-5),
        ("student.optim.betas=[0.5,0.9]", lambda c: c.student.optim.betas, (0.5, 0.9)),
        ("train.trackers=[tensorboard,wandb]", lambda c: c.train.trackers, ["tensorboard", "wandb"]),
        ("train.gradient_checkpointing=true", lambda c: c.train.gradient_checkpointing, True),
        ("teacher.interval=[0.1,0.9]", lambda c: c.teacher.interval, (0.1, 0.9)),
        ("teacher.path=a=b", lambda c: c.teacher.path, "a=b"),
        ("evaluate.teacher_reference=null", lambda c: c.evaluate.teacher_reference, None),
    ],
)
def test_overrides(tmp_path, override, read, expected):
    text = "student: {steps: 8, optim: {lr: 1.0, weight_decay: 0.5}}\nteacher: {cfg_scale: 4.0}"
    config = run_config(tmp_path, text, override)
    assert read(config) == expected
    assert config.student.optim.weight_decay == 0.5 and config.teacher.cfg_scale == 4.0


def test_a_list_override_replaces_the_list(tmp_path):
    text = "student: {optim: {betas: [0.1, 0.2]}}\ntrain: {trackers: [a, b, c]}"
    config = run_config(tmp_path, text, "student.optim.betas=[0.3,0.4]", "train.trackers=[d]")
    assert config.student.optim.betas == (0.3, 0.4) and config.train.trackers == ["d"]


def test_the_last_override_wins(tmp_path):
    assert run_config(tmp_path, "", "student.steps=2", "student.steps=3").student.steps == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("studnet: {steps: 4}", "unknown key studnet; did you mean student?"),
        ("student: {step: 4}", r"unknown key student\.step; did you mean student\.steps\?"),
        ("student: {optim: {learning_rate: 1}}", r"unknown key student\.optim\.learning_rate"),
        ("fake_score: {optim: {weight_deacy: 1}}", r"did you mean objective\.fake_score\.optim\.weight_decay\?"),
        ("qqqq: 1", "unknown key qqqq; known: output, teacher, student"),
        ("3: 1", "unknown key 3"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        run_config(tmp_path, text)


def test_unknown_keys_in_overrides_too(tmp_path):
    with pytest.raises(UserError, match=r"unknown key train\.stepz; did you mean train\.steps\?"):
        run_config(tmp_path, "", "train.stepz=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: four}", r"train\.steps must be a whole number; got 'four'"),
        ("train: {steps: 1.5}", r"train\.steps must be a whole number; got 1\.5"),
        ("train: {steps: true}", r"train\.steps must be a whole number; got True"),
        ("train: {steps: null}", r"train\.steps must be a whole number; got None"),
        ("student: {optim: {lr: fast}}", r"student\.optim\.lr must be a number; got 'fast'"),
        ("student: {optim: {lr: [1]}}", r"student\.optim\.lr must be a number"),
        ("student: {optim: {betas: 0.9}}", r"student\.optim\.betas must be a list of 2 numbers; got 0\.9"),
        ("student: {optim: {betas: [0.9]}}", r"student\.optim\.betas must be a list of 2 numbers"),
        ("student: {optim: {betas: [0.9, x]}}", r"student\.optim\.betas must be a number; got 'x'"),
        ("train: {gradient_checkpointing: 1}", r"train\.gradient_checkpointing must be true or false; got 1"),
        ("train: {trackers: wandb}", r"train\.trackers must be a list; got 'wandb'"),
        ("teacher: {path: 3}", r"teacher\.path must be a text; got 3"),
        ("student: 4", "student is a section with keys of its own; got 4"),
        ("student: {optim: 1e-4}", r"student\.optim is a section"),
        ("student: {optim: {lr: .nan}}", r"student\.optim\.lr must be a number; got nan"),
    ],
)
def test_wrong_types_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=f"^{message}"):
        run_config(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student: {steps: 0}", r"student\.steps must be at least 1; got 0"),
        ("student: {shift: 0}", r"student\.shift must lie in \[0\.001, 1000\]; got 0"),
        ("student: {shift: .inf}", r"student\.shift must lie in \[0\.001, 1000\]; got inf"),
        ("student: {ema_decay: 1.0}", r"student\.ema_decay must lie in \[0, 1\); got 1$"),
        ("student: {optim: {lr: .inf}}", r"student\.optim\.lr must be finite; got inf"),
        ("teacher: {cfg_scale: .inf}", r"teacher\.cfg_scale must be finite; got inf"),
        ("student: {optim: {lr: -1}}", r"student\.optim\.lr must be at least 0; got -1"),
        (
            "fake_score: {optim: {betas: [0.9, 1.0]}}",
            r"objective\.fake_score\.optim\.betas must lie in \[0, 0\.999999\]; got \[0\.9, 1",
        ),
        ("fake_score: {optim: {clip_norm: 0}}", r"objective\.fake_score\.optim\.clip_norm must be above 0; got 0"),
        (
            "fake_score: {t_sampler: cosine}",
            r"objective\.fake_score\.t\.sampler must be one of uniform, logit_normal, .*; got 'cosine'",
        ),
        (
            "teacher: {interval: [0.9, 0.1]}",
            r"teacher\.interval must be low < high within \[0, 1\]; got \[0\.9, 0\.1\]",
        ),
        ("teacher: {cfg_scale: -1}", r"teacher\.cfg_scale must be at least 0; got -1"),
        (
            "dmd: {t_min: 0.5, t_max: 0.5}",
            r"objective\.t\.low and t\.high need 0 <= low < high <= 1; got 0\.5 and 0\.5",
        ),
        ("train: {batch_size: 0}", r"train\.batch_size must be at least 1; got 0"),
        ("train: {batch_size: 10, accumulation: 4}", r"train\.batch_size must be a multiple of .*= 4; got 10"),
        ("train: {mixed_precision: fp8}", r"train\.mixed_precision must be one of no, bf16, fp16; got 'fp8'"),
        ("evaluate: {num_images: 3}", r"evaluate\.num_images must be 0 or at least 4; got 3"),
    ],
)
def test_bad_values_name_their_limit(tmp_path, text, message):
    with pytest.raises(UserError, match=f"^{message}"):
        run_config(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=0", r"model\.depth must be at least 1; got 0"),
        ("model.input_size=9", r"model\.input_size must be a multiple of patch_size = 2; got 9"),
        ("model.gelu=erf", r"model\.gelu must be tanh or none; got 'erf'"),
        ("model.routing.query=fixed", r"model\.routing\.query must be one of static, static_t, dynamic; got 'fixed'"),
        (
            "model.routing.kind=unet",
            r"model\.routing\.kind must be one of attnres, dar, densenet, hyper, residual, unet_skip; got 'unet'",
        ),
        ("model.routing.chunk_size=0", r"model\.routing\.chunk_size must be at least 1"),
        (
            "model.routing.chunksize=4",
            r"unknown key model\.routing\.chunksize; did you mean model\.routing\.chunk_size",
        ),
        ("optim.lr=-1", r"optim\.lr must be at least 0; got -1"),
        ("grid_cfg_scale=.inf", "grid_cfg_scale must be finite; got inf"),
        ("grid_steps=0", "grid_steps must be at least 1; got 0"),
        ("flow_matching.ema_decay=1", r"flow_matching\.ema_decay must lie in \[0, 1\); got 1$"),
        ("flow_matching.label_dropout=2", r"flow_matching\.label_dropout must lie in \[0, 1\]; got 2"),
    ],
)
def test_bad_model_values_name_their_full_path(tmp_path, override, message):
    with pytest.raises(UserError, match=f"^{message}"):
        train_config(tmp_path, "", override)


@pytest.mark.parametrize(
    ("config_type", "text", "message"),
    [
        (RunConfig, "student: {steps: 4}", "output is required and has no default"),
        (RunConfig, "", "output is required"),
        (TrainConfig, "output: out", "give either a section model"),
        (TrainConfig, "output: out\nmodel: {input_size: 8}", r"model\.patch_size is required"),
    ],
)
def test_missing_values_are_named(tmp_path, config_type, text, message):
    with pytest.raises(UserError, match=f"^{message}"):
        load(config_type, tmp_path, text)


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\t- x", "output: ${nowhere}"])
def test_malformed_files_are_named(tmp_path, text):
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        load(RunConfig, tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_file_must_hold_sections(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml must hold a mapping of sections; it holds a list"):
        load(RunConfig, tmp_path, "- a\n- b")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no configuration file .*nowhere\.yaml"):
        load_config(RunConfig, tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("override", ["student.steps", "=4", "", "--resume"])
def test_overrides_need_an_equals_sign(tmp_path, override):
    with pytest.raises(UserError, match=r"must look like section\.key=value"):
        run_config(tmp_path, "", override)


@pytest.mark.parametrize("override", ["train.steps=[1", "train.steps={", "student.steps=${x", "student=4"])
def test_malformed_overrides_are_user_errors(tmp_path, override):
    with pytest.raises(UserError) as caught:
        run_config(tmp_path, "", override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "least", "most", "step"),
    [
        ("depth", 1, 2**12, 1),
        ("num_classes", 1, 2**24, 1),
        ("in_channels", 1, 2**16, 1),
        ("mlp_ratio", 1 / 64, 64, 1e-3),
        ("norm2_eps", 1e-9, 1, 1e-9),
        ("streams", 2, 2**10, 1),
    ],
)
def test_limits_of_a_models_numbers(name: str, least: float, most: float, step: float) -> None:
    shape = {"input_size": 8, "patch_size": 2, "in_channels": 1, "hidden_size": 8, "depth": 2, "num_heads": 2}

    def config(value: float) -> RoutingConfig | SiTConfig:
        changed = {**shape, "num_classes": 3, name: value}
        return RoutingConfig(streams=int(value)) if name == "streams" else SiTConfig(**changed)

    assert getattr(config(least), name) == least and getattr(config(most), name) == most
    for value in (least - step, most + step):
        with pytest.raises(ValueError, match=rf"\.{name} must be .*; got"):
            config(value)


def test_configurations_survive_a_file(tmp_path):
    run = RunConfig(
        output="x",
        student=StudentConfig(steps=2, shift=3.0, optim=OptimConfig(lr=1e-5, betas=(0.1, 0.2), clip_norm=0.5)),
    )
    model = SiTConfig(
        input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=3, gelu="none"
    )
    routing = RoutingConfig(query="dynamic", chunk_size=1, summary="last", scale="count", anchor=True, final=False)
    train = TrainConfig(output="y", model=replace(model, routing=routing), data=DataConfig("latents", "/data"))
    for config in (run, train):
        (tmp_path / "saved.yaml").write_text(config_to_yaml(config))
        assert load_config(type(config), tmp_path / "saved.yaml") == config


def test_values_by_dotted_name():
    values = flat_values(RunConfig(output="x", student=StudentConfig(optim=OptimConfig(lr=1e-5, betas=(0.1, 0.2)))))
    assert values["output"] == "x" and values["student.optim.lr"] == 1e-5
    assert values["student.optim.betas"] == [0.1, 0.2] and values["evaluate.vae"] is None
    assert not any(isinstance(value, dict) for value in values.values())
