"""Run a pipeline here, on kfp's local runner: no cluster, each step a process of its own."""

import io
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge import environment, errors
from expunge.errors import ExpungeError, OperationalError

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"Executing task '([\w-]+)'")
_ENDED = re.compile(r"Task '([\w-]+)' finished with status (\w+)")
_RAISED = re.compile(r"\s*expunge\.errors\.(\w+): (.*)")
_MISSING_SPACE = "No space left on device"


@dataclass
class StepLog(io.TextIOBase):
    """What kfp's local runner prints, line by line: kept in a file, and read for events.

    `seconds` has an entry for each step that ended, in order; a step that runs twice in a pipeline
    has its number behind its name, as kfp gives it. `raised` is the last error of ours that a step
    ended with, rebuilt from the last line of its traceback.
    """

    path: Path
    on_start: Callable[[str], None] = lambda _: None
    seconds: dict[str, float] = field(default_factory=dict)
    raised: ExpungeError | None = None
    _partial: str = ""
    _step: str = ""
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
            self._step, self._since = started[1].replace("-", "_"), time.monotonic()
            self.on_start(self._step)
        elif _ENDED.search(line):
            self.seconds[self._step] = time.monotonic() - self._since
        elif raised := _RAISED.match(line):
            kind = getattr(errors, raised[1], ExpungeError)
            self.raised = kind(raised[2])
        elif _MISSING_SPACE in line:
            self.raised = OperationalError(f"{_MISSING_SPACE.lower()}; free some and run it again")


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
) -> LocalRun:
    """Run a pipeline with its arguments; what its steps hand on is removed when it has succeeded.

    Raises:
        ExpungeError: a step ended with one; it is raised here as if no process were between.
        OperationalError: a step died in another way; the message names the log to read.
    """
    from kfp import local

    root = environment.home() / "runs"
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=root))
    log = StepLog(work / "log.txt", on_start)
    since = time.monotonic()
    with _steps_environment(work), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp doubts an image whose name does not say python
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(work / "outputs"),
            workspace_root=str(work / "workspace"),
        )
        try:
            with redirect_stdout(log):
                pipeline(**arguments)
        except RuntimeError as error:
            if log.raised is not None:
                raise log.raised from error
            step = log._step or "the first step"
            raise OperationalError(f"step {step} failed; its log is {log.path}") from error
    shutil.rmtree(work, ignore_errors=True)
    return LocalRun(log.seconds, time.monotonic() - since)


@contextmanager
def _steps_environment(work: Path) -> Iterator[None]:
    """Temporary files of the steps in the run's folder, and a terminal for progress bars."""
    scratch = work / "tmp"
    scratch.mkdir()
    added = {"TMPDIR": str(scratch)}
    if sys.stderr.isatty():
        added["EXPUNGE_TTY"] = os.ttyname(sys.stderr.fileno())
    saved = {key: os.environ.get(key) for key in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for key, value in saved.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
