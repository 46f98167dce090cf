"""SIGTERM, with which Kubernetes ends a pod."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raise `SystemExit` on SIGTERM inside the block, so that what is open gets closed.

    The first process of a container needs that most: without a handler the kernel would not even
    deliver the signal to it.
    """
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        # None stands for a handler that was not set from Python.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def hold_sigterm() -> Iterator[None]:
    """Let a SIGTERM wait until the end of the block.

    For starting a process: an exception in the middle would leave one that nobody knows to end.
    """
    arrived: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if arrived:
        signal.raise_signal(signal.SIGTERM)
