"""Errors with a message for the person at the command line."""


class UserError(ValueError):
    """A mistake that the user can mend: one clear line, exit code 2."""


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; raised before the optimizer step."""

    def __init__(self, role: str, step: int, what: str) -> None:
        super().__init__(
            f"{role}: {what} is not finite at step {step}; nothing was updated. Lower the learning rate or "
            f"the guidance scale, and resume from the last checkpoint"
        )
        self.role = role
        self.step = step
