"""Ctrl-C and SIGTERM (docker stop, SLURM, kill) at a moment when nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A signal came. Not a KeyboardInterrupt: Lightning would turn that into an exit of its own."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came. What Ctrl-C does is done, but for the exit code."""


class Flag:
    """Whether a signal came, and which.

    Attributes:
        number: of the signal; None if none came.
    """

    number: int | None = None

    @property
    def pressed(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def error(self) -> KeyboardInterrupt:
        """Return what the signal would have raised."""
        return Terminated() if self.number == signal.SIGTERM else KeyboardInterrupt()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; raise `Interrupted` at the second."""
        if self.pressed:
            raise Interrupted
        self.number = number

    def take(self) -> None:
        """Handle both signals; again where another library has taken one over."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle)


@contextmanager
def deferred_interrupt() -> Iterator[Flag]:
    """Let the first Ctrl-C or SIGTERM set a flag; the second one raises `Interrupted` at once.

    In a thread other than the main one, signals are left alone.
    """
    with _given_back(signal.SIGINT, signal.SIGTERM):
        flag = Flag()
        flag.take()
        yield flag


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt; by default it ends Python at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with _given_back(signal.SIGTERM):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handle)
        yield


@contextmanager
def _given_back(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
