"""The files that a launcher and its processes exchange in one folder.

`arguments.json` goes in. `events.jsonl` (epochs and log records, as they happen) and then
`report.json` or `error.json` come out. On several nodes the launcher keeps changing `alive` for as
long as it waits.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from expunge.errors import ErrorRecord, ExpungeError
from expunge.formats.files import read_json, write_json
from expunge.training.spec import OnEpoch, TrainingSpec

ARGUMENTS, EVENTS, REPORT, ERROR = "arguments.json", "events.jsonl", "report.json", "error.json"
ALIVE = "alive"


@dataclass(frozen=True)
class Arguments:
    """What each process is told. One of the last two is set: who waits, or how long to wait."""

    spec: TrainingSpec
    launcher: int | None = None  # the id of the process that waits, on the same machine
    patience: float | None = None  # seconds without a change of `alive` after which a node ends

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in one flat object."""
        return {**self.spec.to_json(), "launcher": self.launcher, "patience": self.patience}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Arguments":
        """Return the arguments that `to_json` has written."""
        return cls(TrainingSpec.from_json(raw), raw["launcher"], raw["patience"])


@dataclass(frozen=True)
class EpochEvent:
    """An epoch that has ended; `metrics` are those of `expunge.steps.train`."""

    epoch: int
    metrics: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class LogEvent:
    """A log record, with its message formatted: its arguments may be no JSON."""

    logger: str
    level: int
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


Event = EpochEvent | LogEvent


def event_from_json(raw: Mapping[str, Any]) -> Event:
    """Return the event that one of the two `to_json` has written."""
    if "epoch" in raw:
        return EpochEvent(raw["epoch"], raw["metrics"])
    return LogEvent(raw["logger"], raw["level"], raw["message"])


def write_arguments(folder: Path, arguments: Arguments) -> None:
    """Write what the processes read, and an empty file for their events."""
    # The launcher opens the events before the first process has begun.
    (folder / EVENTS).touch()
    write_json(folder / ARGUMENTS, arguments.to_json())


def read_arguments(folder: Path) -> Arguments:
    """Return what the launcher has written."""
    return Arguments.from_json(read_json(folder / ARGUMENTS))


def append_event(events: TextIO, event: Event) -> None:
    """Write one event as one line, at once: somebody is waiting for it."""
    events.write(json.dumps(event.to_json()) + "\n")
    events.flush()


def replay_events(events: TextIO, on_epoch: OnEpoch) -> None:
    """Hand on the events that have been written whole since the file's position."""
    while True:
        position, line = events.tell(), events.readline()
        # Without its end a line is still being written: the next look reads it from its start.
        if not line.endswith("\n"):
            events.seek(position)
            return
        event = event_from_json(json.loads(line))
        if isinstance(event, EpochEvent):
            on_epoch(event.epoch, event.metrics)
        else:
            logging.getLogger(event.logger).log(event.level, "%s", event.message)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write the result of a training that has ended well."""
    write_json(folder / REPORT, report)


def write_failure(folder: Path, error: ExpungeError) -> None:
    """Write the error that a process ended with, unless another process has written its own."""
    # The first is the cause. The others often only say that they lost a partner.
    if not (folder / ERROR).exists():
        write_json(folder / ERROR, ErrorRecord.from_error(error).to_json())


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return the report of the first process, or None as long as there is none.

    Raises:
        ExpungeError: one of the processes ended with it.
    """
    if (folder / ERROR).exists():
        error = ErrorRecord.from_json(read_json(folder / ERROR)).rebuild()
        # None would be an error that is not ours, and `write_failure` writes no such error.
        if error is not None:
            raise error
    report: dict[str, Any] | None = None
    if (folder / REPORT).exists():
        report = read_json(folder / REPORT)
    return report
