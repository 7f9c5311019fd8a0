"""A scheduler's preemption signal, held back until a training has finished its step and saved.

submitit's handler (USR2: preempted, or out of time) requeues the job and ends the process at once. `deferred`
puts a handler before it: in a training the loop checks for the signal after each step, saves, and passes it
on; elsewhere everything is on disk already and it is passed on at once. submitit requeues on rank 0 alone, so
the other ranks save along and wait for their end.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from submitit.core.job_environment import JobEnvironment

from mim_bench.train import distributed

_MAX_WAIT_S = 600  # the other ranks of a job are ended as soon as rank 0 has exited


class _Deferral:
    """State of the signal in this process."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.handler = signal.getsignal(number)
        self.in_training = False
        self.received = False
        self.is_passing_on = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.is_passing_on:  # the second of two signals: the job is being requeued already
            return
        self.received = True
        if not self.in_training:
            self.pass_on()

    def pass_on(self) -> None:
        """Calls the handler that was there before; submitit's does not return on rank 0."""
        self.received = False
        self.is_passing_on = True
        try:
            if callable(self.handler):
                self.handler(self.number, None)
        finally:
            self.is_passing_on = False


_current: _Deferral | None = None


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the signal waits for the end of a training's step; every rank enters."""
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
    """Inside, the loop checks `is_preempted` after each step, and saves."""
    if _current is None:
        yield
        return
    _current.in_training = True
    try:
        yield
    finally:
        _current.in_training = False
    if _current.received:  # after the last check; the training has ended and saved
        _current.pass_on()


def is_preempted() -> bool:
    """Whether any rank has received the signal; every rank calls it."""
    return _current is not None and distributed.any_rank(_current.received)


def stop() -> None:
    """Passes the signal on, which ends the process, unless the handler that was there before returns."""
    assert _current is not None
    before = time.monotonic()
    _current.pass_on()
    while not distributed.is_main() and time.monotonic() - before < _MAX_WAIT_S:
        time.sleep(0.1)
