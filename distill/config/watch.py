"""How `run` watches its student."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from distill.config.checks import at_least, one_of
from distill.errors import UserError

ACTIONS = ("off", "warn", "lower_rate", "roll_back", "stop")


@dataclass
class GuardsConfig:
    """What happens when a look finds a fault: `off` nothing, `warn` a line in the log, `lower_rate` halves the learning
    rates, `roll_back` takes the student back to its best look and halves them, `stop` ends the training there.

    lag: the critic's loss over the teacher's leaves `lag_band`. The others are of measures that are further from their
        yardstick than `limit`, in the spread of the teacher's own pictures: saturation, of contrast, colourfulness or
        the clipped share, burnt out or washed out; grain, too much of it, or details too little sparse; grid,
        too much power at one period; blur, edges too wide; variety, pictures of one condition too near to each other.
    """

    lag: str = "warn"
    saturation: str = "warn"
    grain: str = "warn"
    grid: str = "warn"
    blur: str = "warn"
    variety: str = "warn"
    limit: float = 2.5
    lag_band: tuple[float, float] = (0.4, 1.6)

    def __post_init__(self) -> None:
        for guard in fields(self):
            if isinstance(guard.default, str):
                one_of(self, "guards", guard.name, ACTIONS)
        at_least(self, "guards", 1e-3, "limit")
        low, high = self.lag_band
        if not 0 <= low < high:
            raise UserError(f"guards.lag_band must be low < high from 0; got [{low:g}, {high:g}]")


@dataclass
class WatchConfig:
    """every: updates between looks at the averaged student's pictures; null for train.grid_every.

    num_images: of a look, at least, from the same noise and conditions each time. teacher_steps: of the teacher's
        pictures from that noise, which are drawn once. pick: the student that is saved is that of the best look, not of
        the last update.
    """

    every: int | None = None
    num_images: int = 80
    teacher_steps: int = 20
    pick: bool = True
    guards: GuardsConfig = field(default_factory=GuardsConfig)

    def __post_init__(self) -> None:
        at_least(self, "watch", 1, "teacher_steps", *(["every"] if self.every is not None else []))
        at_least(self, "watch", 8, "num_images")
