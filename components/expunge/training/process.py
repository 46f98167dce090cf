"""One of the processes that torchrun starts: reads its arguments, trains, and reports.

`python -m expunge.training.process FOLDER` runs it; `expunge.training.exchange` has the folder's
files.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from expunge.errors import ExpungeError
from expunge.training.exchange import (
    EVENTS,
    EpochEvent,
    LogEvent,
    append_event,
    read_arguments,
    write_failure,
    write_report,
)
from expunge.training.spec import OnEpoch

RANK = "RANK"  # torchrun's number of this process over all nodes
LAUNCHER_POLL = 1.0  # seconds between two looks whether the launcher is there


def run_process(folder: Path) -> None:
    """Train with the other processes; the first one writes the report.

    Raises:
        SystemExit: the training failed; the error is in the folder.
    """
    arguments = read_arguments(folder)
    first = os.environ[RANK] == "0"
    # Before torch is imported, which takes seconds in which a launcher may be killed as well.
    if arguments.launcher is not None:
        watch = threading.Thread(target=exit_without, args=(arguments.launcher,), daemon=True)
        watch.start()
    with report_events(folder, first=first) as on_epoch:
        from expunge.training.loop import train_here

        report = train_here(arguments.spec, on_epoch)
        if first:
            write_report(folder, report)


def exit_without(launcher: int) -> None:
    """End this process as soon as the launching one is gone.

    Nobody would collect its work, and it would hold the lock of the checkpoints. On several nodes
    `expunge.training.node` looks after that.
    """
    while True:
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            # sys.exit would end this thread alone.
            os._exit(1)
        time.sleep(LAUNCHER_POLL)


@contextmanager
def report_events(folder: Path, *, first: bool) -> Iterator[OnEpoch]:
    """Yield an `on_epoch` that writes events; the first process forwards its log as well.

    Raises:
        SystemExit: in place of an `ExpungeError`, which it has written down.
    """
    package = logging.getLogger("expunge")
    with (folder / EVENTS).open("a") as events:
        handler = EventHandler(events)
        if first:
            package.setLevel(logging.INFO)
            package.addHandler(handler)
            # The launcher shows each record; in the output it would stand twice.
            package.propagate = False
        try:
            yield lambda epoch, metrics: append_event(events, EpochEvent(epoch, metrics))
        except ExpungeError as error:
            write_failure(folder, error)
            raise SystemExit(1) from error
        finally:
            package.removeHandler(handler)


class EventHandler(logging.Handler):
    """Sends log records to the launching process."""

    def __init__(self, events: TextIO) -> None:
        super().__init__()
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as an event."""
        append_event(self.events, LogEvent(record.name, record.levelno, record.getMessage()))


if __name__ == "__main__":
    run_process(Path(sys.argv[1]))
