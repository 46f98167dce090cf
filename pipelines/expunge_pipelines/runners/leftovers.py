"""What a run on this machine leaves behind: its folder but the log, and its processes."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expunge import environment, ledger, processes
from expunge.errors import ExpungeError

HOLDER = "holder"  # the file in a run's folder that says which process runs it
LOG = "log.txt"  # what stays of a run that failed
PATIENCE = 10.0  # seconds that a step gets to end after each signal


@contextmanager
def keep_only_log(work: Path) -> Iterator[None]:
    """Remove all but the log of a run's folder where the body raises.

    What the steps hand on remembers the classes that are to be forgotten.
    """
    try:
        yield
    except BaseException:
        remove_all_but_log(work)
        raise


def remove_all_but_log(work: Path) -> None:
    """Remove all but the log of a run's folder, and record in the ledger that it is gone."""
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name not in (HOLDER, LOG):
            entry.unlink(missing_ok=True)
    if any(entry.is_dir() for entry in work.iterdir()):
        return  # somebody writes here still, and a later run tries again
    # Last: by this mark a later run finds what is left by a process that is killed here.
    (work / HOLDER).unlink(missing_ok=True)
    with suppress(ExpungeError):  # a ledger that is down is no failure of the pipeline
        ledger.note_removed(str(work))


def remove_leftovers() -> None:
    """Remove what runs left here whose process was killed, all but their logs."""
    for mark in (environment.home() / "runs").glob(f"*/{HOLDER}"):
        with suppress(OSError):  # the run has just ended by itself
            if processes.has_ended(mark.read_text()):
                remove_all_but_log(mark.parent)


@contextmanager
def end_steps_on_failure() -> Iterator[None]:
    """End the step's processes when this one is interrupted: the signal may be for this one alone.

    A step that went on would hold the lock of its checkpoints and write where nobody looks. SIGINT
    comes first, which lets a step take back what it has half registered; SIGTERM ends it at once.
    """
    import psutil  # type: ignore[import-untyped]

    def find_children() -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True))

    before = find_children()
    try:
        yield
    except BaseException:
        left = list(find_children() - before)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            _, left = psutil.wait_procs(left, PATIENCE)
        raise
