"""Ctrl-C at a moment when nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Ctrl-C was pressed. Not a KeyboardInterrupt: Lightning would turn that into an exit of its own."""


class Flag:
    """Whether Ctrl-C was pressed."""

    pressed = False


@contextmanager
def deferred_interrupt() -> Iterator[Flag]:
    """Let the first Ctrl-C set a flag; the second one raises `Interrupted` at once.

    In a thread other than the main one, signals are left alone.
    """
    flag = Flag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.pressed:
            raise Interrupted
        flag.pressed = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
