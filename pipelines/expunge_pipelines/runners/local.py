"""Run a pipeline here, on kfp's local runner: no cluster, each step a process or a container."""

import io
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge import environment, errors, ledger
from expunge import processes as holders
from expunge.errors import ExpungeError, OperationalError
from expunge_pipelines.runners.docker import DOCKER, LOCAL, open_container_runner
from expunge_pipelines.runners.environ import set_variables

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"Executing task '([\w-]+)'")
_ENDED = re.compile(r"Task '([\w-]+)' finished with status (\w+)")
_OURS = re.compile(r"\s*expunge\.errors\.(\w+): (.*)")
# The last line of any other traceback, and what the shell around a step says of a SIGKILL.
_OTHER = re.compile(r"\s*(?:\w+\.)*([A-Z]\w*(?:Error|Exception)\b.*)")
_KILLED = re.compile(r"\s*Killed\s*")
_FULL_DISK = "No space left on device"
LAST = ("close_requests",)  # exit handlers: they run after a failure too, and change no verdict
HOLDER = "holder"  # the file in a run's folder that says which process runs it
PATIENCE = 10.0  # seconds that a step gets to end after each signal


@dataclass
class StepLog(io.TextIOBase):
    """What kfp's local runner prints, line by line: kept in a file, and read for events.

    `seconds` has an entry for each step that ended, in order; a step that runs twice in a pipeline
    has its number behind its name, as kfp gives it. `raised` is the last error of ours that a step
    ended with, rebuilt from the last line of its traceback, and `died` the last sign of another
    end. After a step that failed no other may start but an exit handler: kfp would go on with those
    that do not depend on it.
    """

    path: Path
    on_start: Callable[[str], None] = lambda _: None
    seconds: dict[str, float] = field(default_factory=dict)
    raised: ExpungeError | None = None
    died: str = ""
    step: str = ""
    failed: bool = False
    _partial: str = ""
    _since: float = 0.0

    def writable(self) -> bool:
        """Part of the protocol of a text stream."""
        return True

    def write(self, text: str) -> int:
        """Take some output; whole lines are read as they complete."""
        *lines, self._partial = (self._partial + text).split("\n")
        with self.path.open("a") as file:
            for line in lines:
                self._read(_COLOUR.sub("", line))
                file.write(_COLOUR.sub("", line) + "\n")
        return len(text)

    def _read(self, line: str) -> None:
        if started := _STARTED.search(line):
            step = started[1].replace("-", "_")
            if self.failed and step not in LAST:
                raise self.failure()
            self._since = time.monotonic()
            self.on_start(step)
            if not self.failed:
                self.step = step
                self.raised, self.died = None, ""  # what an earlier step got over is no reason
        elif ended := _ENDED.search(line):
            step = ended[1].replace("-", "_")
            self.seconds[step] = time.monotonic() - self._since
            self.failed = self.failed or ended[2] == "FAILURE"
        elif self.failed:
            return  # the reason is known, and what an exit handler says is none
        elif ours := _OURS.match(line):
            kind = getattr(errors, ours[1], ExpungeError)
            self.raised = kind(ours[2])
        elif _FULL_DISK in line:
            self.raised = OperationalError(f"{_FULL_DISK.lower()}; free some and run it again")
        elif other := _OTHER.match(line):
            self.died = other[1]
        elif _KILLED.fullmatch(line):
            self.died = "it was killed, by hand or for want of memory"

    def failure(self) -> ExpungeError:
        """The error to raise after a step has failed."""
        if self.raised is not None:
            return self.raised
        reason = f" ({self.died})" if self.died else ""
        return OperationalError(f"step {self.step or 'one'} failed{reason}; its log is {self.path}")


@dataclass(frozen=True)
class LocalRun:
    """A pipeline that ran to its end: seconds by step, and how many the whole took."""

    seconds: Mapping[str, float]
    total: float


def run_locally(
    pipeline: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    on_start: Callable[[str], None] = lambda _: None,
    runner: str = LOCAL,
    reads: Sequence[str] = (),
) -> LocalRun:
    """Run a pipeline with its arguments, in a folder of its own under `<home>/runs`.

    The folder is removed at the end; after a failure its log stays, and nothing else, since what
    the steps hand on remembers the classes that are to be forgotten. What a run that was killed
    left of it is removed by the next.

    With `runner` "docker" each step has a container of its own, which sees the files in `reads`
    (`expunge_pipelines.runners.docker`).

    Raises:
        ExpungeError: a step ended with one; it is raised here as if no process were between.
        OperationalError: a step died in another way, and the message names the log to read; or
            the folder cannot be written.
    """
    from kfp import local

    root, since = environment.home() / "runs", time.monotonic()
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers()
        work = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=root))
        log = StepLog(work / "log.txt", on_start)
        with (
            _only_the_log_stays(work),
            _steps_environment(work),
            _no_step_left(),
            open_container_runner(reads) if runner == DOCKER else nullcontext() as in_containers,
        ):
            (work / HOLDER).write_text(holders.name_this_process())
            local.init(
                runner=in_containers or local.SubprocessRunner(use_venv=False),
                pipeline_root=str(work / "outputs"),
                workspace_root=str(work / "workspace"),
            )
            try:
                with redirect_stdout(log):
                    pipeline(**arguments)
            except RuntimeError as error:
                raise log.failure() from error
    except OSError as error:
        raise OperationalError(
            f"the steps cannot run in {root} ({error}); check the disk, its space and its "
            "permissions"
        ) from error
    with suppress(OSError):  # somebody else has removed it
        _keep_the_log(work)
    if not (work / HOLDER).exists():
        shutil.rmtree(work, ignore_errors=True)
    return LocalRun(log.seconds, time.monotonic() - since)


@contextmanager
def _only_the_log_stays(work: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _keep_the_log(work)
        raise


def _keep_the_log(work: Path) -> None:
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
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
            if holders.has_ended(mark.read_text()):
                _keep_the_log(mark.parent)


@contextmanager
def _no_step_left() -> Iterator[None]:
    """End the step's processes when this one is interrupted: the signal may be for this one alone.

    A step that went on would hold the lock of its checkpoints and write where nobody looks. SIGINT
    comes first, which lets a step take back what it has half registered; SIGTERM ends it at once.
    """
    import psutil  # type: ignore[import-untyped]

    def children() -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True))

    before = children()
    try:
        yield
    except BaseException:
        left = list(children() - before)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            _, left = psutil.wait_procs(left, PATIENCE)
        raise


@contextmanager
def _steps_environment(work: Path) -> Iterator[None]:
    """Temporary files of the steps in the run's folder, and a terminal for progress bars."""
    scratch = work / "tmp"
    scratch.mkdir()
    added = {"TMPDIR": str(scratch)}
    if sys.stderr.isatty():
        with suppress(OSError):  # a container may have a terminal and no name for it
            added["EXPUNGE_TTY"] = os.ttyname(sys.stderr.fileno())
    with set_variables(**added), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp doubts an image whose name does not say python
        yield
