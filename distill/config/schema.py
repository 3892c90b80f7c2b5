"""Everything a user can set, as dataclasses; defaults are the sane ones, values are checked here.

`TrainConfig` is what `train` takes; what `run` takes has objectives in it and stands with them (`distill.objectives`).
Errors name field, value and limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dar import RoutingConfig, SiTConfig
from distill.assets import EMBEDDED
from distill.config import checks
from distill.config.checks import at_least, ema_decay, one_of, within
from distill.config.repa import RepaConfig
from distill.config.times import TConfig
from distill.errors import UserError

MIN_IMAGES = 4  # precision and recall look at three neighbours


MOST_BETA = 0.999999


@dataclass
class OptimConfig:
    """AdamW; the rate warms up linearly, stays, and falls linearly to zero over the last `decay_fraction`.

    name: `adamw`, or `adamw_8bit`, its moments in 8 bits (bitsandbytes, on a CUDA device).
    routing_lr_factor: the rate of the routing's own parameters over that of all others.
    """

    name: str = "adamw"
    lr: float = 1e-4
    routing_lr_factor: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_fraction: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        one_of(self, "optim", "name", ("adamw", "adamw_8bit"))
        at_least(self, "optim", 0, "routing_lr_factor", "weight_decay", "warmup_steps")
        at_least(self, "optim", 0, "lr", most=100)
        within(self, "optim", 0, 1, "decay_fraction")
        if self.clip_norm <= 0:
            raise UserError(f"optim.clip_norm must be above 0; got {self.clip_norm:g}")
        if not all(0 <= beta <= MOST_BETA for beta in self.betas):  # beyond it 1 - beta is nothing in float32
            raise UserError(f"optim.betas must lie in [0, {MOST_BETA}]; got {list(self.betas)}")
        if self.lr * max(1, self.routing_lr_factor) * self.weight_decay > 1:
            raise UserError(
                f"optim.weight_decay times lr must be at most 1, or weights change their sign at every update; got "
                f"{self.weight_decay:g} x {self.lr * max(1, self.routing_lr_factor):g}"
            )


@dataclass
class DataConfig:
    """name: a registered data set (`idx`, `images`, `npz`, `latents`, `pictures`, `crops`); path: its folder or file.

    size: resize and crop the files of `images` and `pictures` to size x size, antialiased; null takes them as they are.
        Of `crops` the side of a crop.
    flip: mirror images at random, left to right.
    vae: the autoencoder that latents were made with, a folder or a hub name in the local cache, for the sample grids;
        without it they show the latents' first three channels. null for pixels.
    prompts: a folder of encoded prompts that samples have in the place of classes: `captions.json` in `path` is a list
        of their texts, one a sample; without it the labels are numbers of prompts.
    """

    name: str = "idx"
    path: str = "/usr/share/datasets/fashion-mnist"
    size: int | None = None
    flip: bool = False
    vae: str | None = None
    prompts: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            at_least(self, "data", 1, "size")


@dataclass
class LoopConfig:
    """What every training has.

    batch_size: samples per update over all processes and accumulation steps.
    accumulation: micro-batches per update; k x B/k gives the gradient of B.
    launch: `auto` captures the work of an update as CUDA graphs where that is possible, and says where it is not;
        `graph` ends with an error there; `eager` launches every kernel from Python.
    *_every: in updates; of `run`, grids are looks at the student (`WatchConfig`). keep: checkpoints kept, the newest.
    """

    steps: int = 1000
    batch_size: int = 64
    accumulation: int = 1
    seed: int = 0
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    launch: str = "auto"
    log_every: int = 20
    grid_every: int = 200
    save_every: int = 500
    keep: int = 2
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        at_least(self, "train", 1, "steps", "batch_size", "accumulation", "log_every", "grid_every")
        at_least(self, "train", 1, "save_every", "keep")
        checks.seed(self, "train")
        one_of(self, "train", "mixed_precision", ("no", "bf16", "fp16"))
        one_of(self, "train", "launch", ("auto", "graph", "eager"))
        if self.batch_size % self.accumulation:
            raise UserError(
                f"train.batch_size must be a multiple of train.accumulation = {self.accumulation}; "
                f"got {self.batch_size}"
            )


@dataclass
class FlowMatchingConfig:
    """Flow matching with label dropout for classifier-free guidance; the average as in `StudentConfig`."""

    t: TConfig = field(default_factory=lambda: TConfig(sampler="logit_normal"))
    label_dropout: float = 0.1
    ema_decay: float = 0.9999

    def __post_init__(self) -> None:
        if self.t.sampler == "student_list":
            raise UserError("flow_matching.t.sampler = student_list is for a student; a teacher learns at every t")
        within(self, "flow_matching", 0, 1, "label_dropout")
        ema_decay(self, "flow_matching")


@dataclass
class StartConfig:
    """Fine-tuning: path is the model folder to start from (or `embedded`), in place of a section `model`.

    trainable: `all`, `routing` (its parameters only) or `lora` (the routing, and adapters of rank
        `lora_rank` on the linear layers of all blocks, merged into the weights at the end).
    classes: null, the model's own; `reinitialise`, those of the data, learned anew; or a JSON file {data's class:
        model's class}, by number or name, which says where each begins.
    """

    path: str | None = None
    trainable: str = "all"
    lora_rank: int = 16
    classes: str | None = None

    def __post_init__(self) -> None:
        one_of(self, "start", "trainable", ("all", "routing", "lora"))
        if self.classes is not None and (self.path is None or self.trainable != "all"):
            raise UserError(
                f"start.classes = {self.classes} needs start.path and start.trainable = all; got {self.path} and "
                f"{self.trainable}"
            )
        at_least(self, "start", 1, "lora_rank")


@dataclass
class TrainConfig:
    """`dar-distill train`: a teacher from data, new (`model`) or from a folder (`start`).

    repa: alignment of its inner features with an encoder's; none where it is null.
    grid_*: guidance and Euler steps of the sample grids on the way.
    """

    output: str
    model: SiTConfig | None = None
    start: StartConfig = field(default_factory=StartConfig)
    data: DataConfig = field(default_factory=DataConfig)
    flow_matching: FlowMatchingConfig = field(default_factory=FlowMatchingConfig)
    repa: RepaConfig | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    grid_cfg_scale: float = 1.5
    grid_steps: int = 25

    def __post_init__(self) -> None:
        if (self.model is None) == (self.start.path is None):
            raise UserError("give either a section model (a new model) or start.path (a folder to fine-tune)")
        at_least(self, "", 0, "grid_cfg_scale")
        at_least(self, "", 1, "grid_steps")
        if self.model is not None and self.start.trainable != "all":
            raise UserError(f"start.trainable = {self.start.trainable} needs start.path, a folder to fine-tune")


class TrainingConfig(Protocol):
    """What a training loop takes of a configuration, of a teacher's or a student's."""

    output: str
    train: LoopConfig


@dataclass
class RetrofitConfig:
    """`dar-distill retrofit`: the routing that a plain model is given."""

    routing: RoutingConfig = field(default_factory=lambda: RoutingConfig(scale="count"))


@dataclass
class TeacherConfig:
    """path: a model folder, or `embedded` for the shipped Fashion-MNIST teacher.

    cfg_scale: guidance, uncond + cfg_scale (cond - uncond); 1.0 is none. A student of distribution matching takes it up
        more strongly than a sampler does, so a good value of one is not a good value of the other.
    interval: guidance acts for t within it only.
    cfg_channels: guidance acts on the first so many channels; null is all, 3 what DiT's and SiT's samplers do.
    cfg_rescale: how far guided velocities get the norm of the conditional ones, from 0 to 1; less saturated at a high
        cfg_scale (arXiv:2305.08891).
    steps: of the reference sampler. solver: of it: `euler`, `heun`, or `sde`, Euler-Maruyama as in SiT's paper, whose
        published figures without guidance take 250 of these steps.
    prompts: a folder of encoded prompts (`scripts/encode_prompts.py`) for a text-to-image model, in place of those that
        its folder names.
    """

    path: str = "embedded"
    cfg_scale: float = 1.5
    interval: tuple[float, float] = (0.0, 1.0)
    cfg_channels: int | None = None
    cfg_rescale: float = 0.0
    steps: int = 50
    solver: str = "euler"
    prompts: str | None = None

    def __post_init__(self) -> None:
        at_least(self, "teacher", 0, "cfg_scale")
        at_least(self, "teacher", 1, "steps", *(["cfg_channels"] if self.cfg_channels is not None else []))
        within(self, "teacher", 0, 1, "cfg_rescale")
        one_of(self, "teacher", "solver", ("euler", "heun", "sde"))
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise UserError(f"teacher.interval must be low < high within [0, 1]; got [{low:g}, {high:g}]")

    @property
    def passes(self) -> int:
        """Network evaluations of one velocity where guidance acts: with its condition, and without."""
        return 2 if self.cfg_scale != 1 else 1


@dataclass
class StudentConfig:
    """steps: evaluations at inference; shift moves its t list, {1, .., 1/steps}, towards noise.

    t_list: the list by hand instead, descending from at most 1, such as [1, .9, .75, .5] for 4 steps.
    ode_steps: after so many of the first steps a sample follows the student's ODE, after the others its noise is fresh:
        0, or `steps` for a student whose picture is a function of one noise.
    start: the student begins as this model, a student's folder for one, instead of as a copy of the teacher.
    rollout: steps of the list that an update learns at: `shared`, all of them alike often, row by row, out of one
        rollout for the whole update, which takes fewest evaluations; `random_step`, one for the whole batch, as DMD2
        published it; `every_step`, all of them, train.batch_size then counting trajectories (small models: more
        gradient per rollout); `last_step`, the last alone.
    ema_decay: of the average that is saved; at most 0.05^(1 / train.steps), or it would still be where it began.
    more_ema_decays: of further averages; each is looked at, and the best look's is the one that is saved.
    """

    steps: int = 4
    shift: float = 1.0
    t_list: list[float] | None = None
    ode_steps: int = 0
    start: str | None = None
    rollout: str = "shared"
    ema_decay: float = 0.98
    more_ema_decays: list[float] = field(default_factory=list)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, betas=(0.0, 0.95)))

    def __post_init__(self) -> None:
        at_least(self, "student", 1, "steps", most=1000)
        at_least(self, "student", 0, "ode_steps")
        if not all(0 <= decay < 1 for decay in self.more_ema_decays):
            raise UserError(f"student.more_ema_decays must lie in [0, 1); got {self.more_ema_decays}")
        one_of(self, "student", "rollout", ("random_step", "every_step", "shared", "last_step"))
        ema_decay(self, "student")
        if not 1e-3 <= self.shift <= 1e3:
            raise UserError(f"student.shift must lie in [0.001, 1000]; got {self.shift:g}")
        if self.t_list is not None:
            self._check_t_list(self.t_list)

    def _check_t_list(self, t_list: list[float]) -> None:
        checks.t_list("student.t_list", t_list)
        if len(t_list) != self.steps:
            raise UserError(f"student.t_list has {len(t_list)} values; student.steps is {self.steps}")
        if self.shift != 1:
            raise UserError(f"student.t_list is the list itself, which student.shift = {self.shift:g} does not move")


@dataclass
class RolesConfig:
    """What of the student and of the objective's copies of the teacher learns.

    trainable: `all`, or `lora`: the routing, and adapters of rank `lora_rank` on the linear layers of all blocks,
        over the teacher's own weights, which then are in memory once.
    """

    trainable: str = "all"
    lora_rank: int = 64

    def __post_init__(self) -> None:
        one_of(self, "roles", "trainable", ("all", "lora"))
        at_least(self, "roles", 1, "lora_rank")


@dataclass
class EvalConfig:
    """What is drawn and measured at the end.

    num_images: per sampler, 0 to train only; the teacher's reference sampler draws only the grid where its statistics
        are stored.
    extractor: of features, for Fréchet distance, KID, precision and recall: `inception`, `embedded` (the shipped
        classifier of Fashion-MNIST), `dinov2` (by transformers; extractor_path: a folder or a Hub name), or `auto`:
        embedded for the shipped teacher and its data, Inception for all else. Where weights cannot be had, the measures
        that need them are left out and named.
    reference: statistics of the data: a file of `statistics`, ADM's or torch-fidelity's, `embedded`, or
        `auto`: those of `data` where it is named, the shipped ones for the shipped teacher, else none.
    data: a data set that the statistics are made of, in place of a file.
    teacher_reference: statistics of the teacher's reference sampler, `embedded`, a measures.npz that `evaluate`
        wrote (its measures.json beside it), or null: then the teacher draws as many images as the others.
    vae: the autoencoder that decodes the samples of a model of latents, for grids too: a folder or a hub name in the
        local cache; null for pixels.
    mixed_precision: `no`, or `bf16`: the networks draw in bf16 autocast.
    offline: download no weights, as with HF_HUB_OFFLINE=1.
    """

    num_images: int = 2000
    batch_size: int = 250
    extractor: str = "auto"
    extractor_path: str | None = None
    reference: str | None = "auto"
    data: DataConfig | None = None
    teacher_reference: str | None = "embedded"
    vae: str | None = None
    bootstrap: int = 200
    seed: int = 1
    mixed_precision: str = "no"
    offline: bool = False

    def __post_init__(self) -> None:
        at_least(self, "evaluate", 0, "num_images")
        checks.seed(self, "evaluate")
        if 0 < self.num_images < MIN_IMAGES:
            raise UserError(f"evaluate.num_images must be 0 or at least {MIN_IMAGES}; got {self.num_images}")
        at_least(self, "evaluate", 1, "batch_size", "bootstrap")
        one_of(self, "evaluate", "extractor", ("auto", "embedded", "inception", "dinov2"))
        one_of(self, "evaluate", "mixed_precision", ("no", "bf16"))
        if self.data is not None and self.reference not in ("auto", None):
            raise UserError(f"evaluate.data and evaluate.reference = {self.reference} are two references; give one")

    def reference_for(self, teacher_path: str | None) -> str | None:
        """`teacher_reference`, or None where that would be the embedded teacher's for another teacher."""
        return None if self.teacher_reference == EMBEDDED != teacher_path else self.teacher_reference
