"""Signals held back until a training has finished its step and saved: preemption, Ctrl-C, termination.

An exception in the middle of a step would go through the code of the autograd engine; `training` holds SIGINT
and SIGTERM back instead, and the loop ends between two steps. A second signal ends at once.

submitit's handler (USR2: preempted, or out of time) requeues the job and ends the process at once. `deferred`
puts a handler before it: in a training the loop checks for the signal after each step, saves, and passes it
on; elsewhere everything is on disk already and it is passed on at once. submitit requeues on rank 0 alone, so
the other ranks save along and wait for their end.
"""

import os
import signal
import threading
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
_STOPS = (signal.SIGINT, signal.SIGTERM)
_OF_THE_THREAD = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
"""Caused by a thread itself, and useless elsewhere."""
_is_stopping = False


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
    """Inside, the loop checks `is_preempted` and `is_stopping` after each step, and saves."""
    with _stops_held_back():
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


@contextmanager
def received_elsewhere() -> Iterator[None]:
    """Inside, an idle thread receives the process's signals, never the thread that computes.

    oneDNN's AVX-512 matrix product keeps values below the stack pointer, where the kernel puts the frame of a
    signal: one that arrives in the middle of it corrupts the heap. Handlers written in Python run in the main
    thread all the same, between two of its instructions. Threads and processes started inside inherit the
    mask; a process that is to be ended by signals must take it off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    finished = threading.Event()
    threading.Thread(target=finished.wait, daemon=True, name="signals").start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OF_THE_THREAD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finished.set()


@contextmanager
def _stops_held_back() -> Iterator[None]:
    global _is_stopping
    if threading.current_thread() is not threading.main_thread():  # it alone may handle signals
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPS}

    def receive(number: int, frame: FrameType | None) -> None:
        global _is_stopping
        if _is_stopping:
            raise KeyboardInterrupt
        _is_stopping = True
        os.write(2, b"stopping after this step; the same signal again stops at once\n")

    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, receive)
    try:
        yield
    except Exception as error:
        if _is_stopping:  # such as a worker's end, by the very same signal
            raise KeyboardInterrupt from error
        raise
    finally:
        was_stopping, _is_stopping = _is_stopping, False
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
    if was_stopping:  # after the last check
        raise KeyboardInterrupt


def is_stopping() -> bool:
    """True if this process has received Ctrl-C or a termination."""
    return _is_stopping


def is_preempted() -> bool:
    """True if any rank has received the signal; every rank calls it."""
    return _current is not None and distributed.any_rank(_current.received)


def stop() -> None:
    """Passes the signal on, which ends the process, unless the handler that was there before returns."""
    assert _current is not None
    before = time.monotonic()
    _current.pass_on()
    while not distributed.is_main() and time.monotonic() - before < _MAX_WAIT_S:
        time.sleep(0.1)
