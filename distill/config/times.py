"""How random timesteps are drawn, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass

from distill.config.checks import at_least, one_of
from distill.errors import UserError

SETTLING = ("shifted", "beta")


@dataclass
class TConfig:
    """t = low + (high - low) u; `distill.sampling.schedules` draws it.

    sampler: of u: `uniform`; `logit_normal`, the sigmoid of N(mean, std^2); `shifted`, a uniform one moved towards
        noise by `shift`; `beta`, Beta(alpha, beta); or `student_list`: t is one of the student's own timesteps.
    settles_over: updates over which `shifted` and `beta` become uniform, by a cosine (DynaRS, arXiv:2511.13649);
        0 for never.
    """

    sampler: str = "uniform"
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    shift: float = 3.0
    alpha: float = 4.0
    beta: float = 1.5
    settles_over: int = 0

    def __post_init__(self) -> None:
        one_of(self, "t", "sampler", ("uniform", "logit_normal", "shifted", "beta", "student_list"))
        at_least(self, "t", 0, "settles_over")
        at_least(self, "t", 1e-3, "std", "shift", "alpha", "beta")
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"t.low and t.high need 0 <= low < high <= 1; got {self.low:g} and {self.high:g}")
        if self.settles_over and self.sampler not in SETTLING:
            raise UserError(
                f"t.settles_over = {self.settles_over} needs t.sampler {' or '.join(SETTLING)}; got {self.sampler!r}"
            )
