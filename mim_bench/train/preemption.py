"""A scheduler's signal to leave, held back until a training has finished its step and saved.

submitit's handler (USR2: preempted, or out of time) requeues the job and ends the process, wherever that
stands. `deferred` puts itself before it: in a training the loop asks after each step, saves, and hands the
signal on; elsewhere everything is on disk already and it is handed on at once. submitit asks rank 0 alone
to requeue, so the other ranks save along and wait for their end.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from submitit.core.job_environment import JobEnvironment

from mim_bench.train import distributed

_LEFT_AFTER_S = 600  # the others of a job are ended as soon as rank 0 has left


class _Deferral:
    """What is known of the signal in this process."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.handler = signal.getsignal(number)
        self.in_training = False
        self.came = False
        self.is_handing_on = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.is_handing_on:  # the second of two signals: the job is being requeued already
            return
        self.came = True
        if not self.in_training:
            self.hand_on()

    def hand_on(self) -> None:
        """Calls the handler that was there before; submitit's does not return on rank 0."""
        self.came = False
        self.is_handing_on = True
        try:
            if callable(self.handler):
                self.handler(self.number, None)
        finally:
            self.is_handing_on = False


_current: _Deferral | None = None


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the signal waits for a training's step; every rank enters."""
    global _current
    _current = _Deferral(JobEnvironment._usr_sig())
    signal.signal(_current.number, _current.receive)
    try:
        yield
    finally:
        signal.signal(_current.number, _current.handler)
        _current = None


@contextmanager
def training() -> Iterator[None]:
    """Inside, somebody asks `is_asked` and then saves."""
    if _current is None:
        yield
        return
    _current.in_training = True
    try:
        yield
    finally:
        _current.in_training = False
    if _current.came:  # after the last question; the training has ended and saved
        _current.hand_on()


def is_asked() -> bool:
    """Whether the signal came to any rank; all ranks ask together."""
    return _current is not None and distributed.any_rank(_current.came)


def leave() -> None:
    """Hands the signal on. It returns only if the handler that was there before does."""
    assert _current is not None
    before = time.monotonic()
    _current.hand_on()
    while not distributed.is_main() and time.monotonic() - before < _LEFT_AFTER_S:
        time.sleep(0.1)
