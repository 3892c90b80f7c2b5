"""Stops that are asked for by a signal: the update ends, a checkpoint is written, and the command can be resumed.

SIGTERM and SIGUSR1 are what SLURM and machines that are taken back send some time before they end a process, SIGINT is
Ctrl-C. Of several processes each may get the signal at another time, or one alone, and all have to stop after the same
update.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_REQUEST_S = 1.0  # torchrun hands on to its processes what they may have got themselves


class Stop:
    """A context in which a signal is a request, which `agreed` tells all processes; a second one ends at once.

    With several processes the request is spread by a reduction of one number on the host, begun after an update and
    looked at after the next: nobody waits for a device or for another's update, and all stop one update later.

    Python calls handlers in the main thread alone, so that elsewhere signals are left as they are.
    """

    def __init__(self, num_processes: int) -> None:
        self._signal: int | None = None
        self._at = 0.0
        self._several = num_processes > 1
        self._before: dict[int, Any] = {}
        self._spread: tuple[Any, Any] | None = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        if self._several:
            import torch.distributed

            # Of its own, so that it never waits behind what devices exchange.
            self._group: Any = torch.distributed.new_group(backend="gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None and self._spread is not None:  # what another process still waits for
            self._spread[0].wait()

    @property
    def name(self) -> str:
        """The signal that asked, as far as this process knows."""
        return "another process" if self._signal is None else signal.Signals(self._signal).name

    def agreed(self, failed: bool = False) -> bool:
        """Whether to stop here, which all processes are told alike. All of them call it, after every update.

        failed: whether this process has a reason of its own, that it will raise.
        """
        asked = failed or self._signal is not None
        if not self._several:
            return asked
        import torch.distributed

        before, flag = self._spread, torch.tensor(int(asked))
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._spread = work, flag
        if before is None:
            return False
        before[0].wait()
        return bool(before[1])

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._at = number, now
            if os.environ.get("RANK", "0") == "0":  # print might be what was interrupted
                os.write(2, f"\n{self.name}: a checkpoint follows this update; once more ends at once\n".encode())
        elif "TORCHELASTIC_RUN_ID" not in os.environ or now - self._at > SAME_REQUEST_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
