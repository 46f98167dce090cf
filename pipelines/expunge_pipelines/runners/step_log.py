"""Log of a run on this machine: what kfp prints of its steps, kept in a file and read for events.

kfp's local runner has no callbacks. That a step begins or ends is known from its log lines alone.
Why a step failed is not: its process leaves that in `error.json` (`expunge.errors`).
"""

import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from expunge.errors import (
    FULL_DISK,
    ExpungeError,
    OperationalError,
    read_error,
    say_full_disk,
)

ERROR = "error.json"  # beside the log
LAST = ("close_requests",)  # exit handlers: they run after a failure too, and change no verdict
_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"Executing task '([\w-]+)'")
_ENDED = re.compile(r"Task '([\w-]+)' finished with status (\w+)")
# What is printed where no `error.json` could be written: the last line of a traceback from before
# the package was imported, and what the shell around a step says of a SIGKILL.
_ERROR_LINE = re.compile(r"\s*(?:\w+\.)*([A-Z]\w*(?:Error|Exception)\b.*)")
_KILLED = re.compile(r"\s*Killed\s*")


@dataclass
class StepLog(io.TextIOBase):
    """A stream that takes what kfp prints, and knows how far the pipeline is.

    `seconds` has an entry for each step that ended, in order; a step that runs twice in a pipeline
    has its number behind its name, as kfp gives it. `raised` is the error of ours that ended the
    step, and `died` the sign of another end. After a step that failed no other may start but an
    exit handler: kfp would go on with those that do not depend on it.
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

    @property
    def error_file(self) -> Path:
        """Where the process of a step leaves its error."""
        return self.path.with_name(ERROR)

    def writable(self) -> bool:
        """Return True: part of the protocol of a text stream."""
        return True

    def write(self, text: str) -> int:
        """Take some output, and return its length; whole lines are read as they complete."""
        *lines, self._partial = (self._partial + text).split("\n")
        with self.path.open("a") as file:
            for line in lines:
                self._read_line(_COLOUR.sub("", line))
                file.write(_COLOUR.sub("", line) + "\n")
        return len(text)

    def _read_line(self, line: str) -> None:
        if started := _STARTED.search(line):
            self._start_step(started[1].replace("-", "_"))
        elif ended := _ENDED.search(line):
            self._end_step(ended[1].replace("-", "_"), failed=ended[2] == "FAILURE")
        elif self.failed:
            return  # the reason is known, and what an exit handler says is none
        elif FULL_DISK in line:
            self.died = FULL_DISK
        elif self.died != FULL_DISK and (error := _ERROR_LINE.match(line)):
            self.died = error[1]
        elif _KILLED.fullmatch(line):
            self.died = "it was killed, by hand or for want of memory"

    def _start_step(self, step: str) -> None:
        if self.failed and step not in LAST:
            raise self.failure()
        self._since = time.monotonic()
        self.on_start(step)
        # What an earlier step got over is no reason, and neither is what a child of it left.
        self.error_file.unlink(missing_ok=True)
        if not self.failed:
            self.step = step
            self.raised, self.died = None, ""

    def _end_step(self, step: str, *, failed: bool) -> None:
        self.seconds[step] = time.monotonic() - self._since
        if failed and not self.failed:  # an exit handler's error comes later and hides no other
            self.failed = True
            if record := read_error(self.error_file):
                self.raised, self.died = record.rebuild(), str(record)
            elif self.died == FULL_DISK:
                self.raised = OperationalError(say_full_disk())

    def failure(self) -> ExpungeError:
        """Return the error to raise after a step has failed."""
        if self.raised is not None:
            return self.raised
        reason = f" ({self.died})" if self.died else ""
        return OperationalError(f"step {self.step or 'one'} failed{reason}; its log is {self.path}")
