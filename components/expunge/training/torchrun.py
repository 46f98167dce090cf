"""A training in several local processes: torchrun starts them, files carry what they report.

`arguments.json` goes in; `events.jsonl` (epochs and log records, as they happen), `report.json` or
`error.json` come out, all in one temporary folder. The processes' own output is kept in a file and
shown only where they end without a word.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from expunge import errors
from expunge.config import TrainConfig
from expunge.errors import ExpungeError, OperationalError, UserError
from expunge.formats.files import read_json, write_json
from expunge.training.progress import TTY

POLL = 0.1  # seconds
PATIENCE = 30  # seconds that torchrun gets to stop its processes before it is killed itself
ARGUMENTS, EVENTS, REPORT, ERROR = "arguments.json", "events.jsonl", "report.json", "error.json"
# What each process runs; on several nodes torchrun reads its own settings from the environment.
TORCHRUN = ("-m", "torch.distributed.run")
TRAIN = ("-m", "expunge.steps.train")

OnEpoch = Callable[[int, dict[str, float]], None]


def launch(
    config: TrainConfig, dataset: Path, model: Path, checkpoints: Path, on_epoch: OnEpoch
) -> dict[str, Any]:
    """Run `expunge.steps.train` in `config.processes` processes; the first one's report.

    Raises:
        UserError: there are fewer GPUs than processes; or whatever a process ended with.
        OperationalError: a process ended without a word.
    """
    _check_devices(config.processes)
    with tempfile.TemporaryDirectory(prefix="expunge-train-") as scratch:
        folder = Path(scratch)
        write_arguments(folder, config, dataset, model, checkpoints, launcher=os.getpid())
        status = _run(config.processes, folder, on_epoch)
        report = outcome(folder)
        if status != 0 or report is None:
            tail = (folder / "output.txt").read_text(errors="replace")[-2000:]
            raise OperationalError(
                f"the training's processes ended with status {status}; their last words:\n{tail}"
            )
        return report


def write_arguments(
    folder: Path, config: TrainConfig, dataset: Path, model: Path, checkpoints: Path, **more: Any
) -> None:
    """Write what `expunge.steps.train` reads in each process, and an empty file for its events."""
    paths = {"dataset": dataset, "model": model, "checkpoints": checkpoints}
    arguments = {key: str(path.resolve()) for key, path in paths.items()}
    (folder / EVENTS).touch()
    write_json(folder / ARGUMENTS, {**arguments, "config": asdict(config), **more})


def outcome(folder: Path) -> dict[str, Any] | None:
    """The report of the first process, or None if it has written none.

    Raises:
        ExpungeError: one of the processes ended with it.
    """
    if (folder / ERROR).exists():
        error = read_json(folder / ERROR)
        raise getattr(errors, error["kind"])(error["message"])
    report: dict[str, Any] | None = None
    if (folder / REPORT).exists():
        report = read_json(folder / REPORT)
    return report


def _check_devices(processes: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise UserError(
            f"processes is {processes} and there are {torch.cuda.device_count()} GPUs; "
            "choose one process for each GPU at most"
        )


def _run(processes: int, folder: Path, on_epoch: OnEpoch) -> int:
    # --standalone takes a free port, so trainings side by side do not meet
    options = ["--standalone", "--nproc-per-node", str(processes)]
    environment = dict(os.environ)
    if TTY not in environment and sys.stderr.isatty():
        environment[TTY] = os.ttyname(sys.stderr.fileno())
    with (folder / "output.txt").open("wb") as output, (folder / EVENTS).open() as read:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *TORCHRUN, *options, *TRAIN, str(folder / ARGUMENTS)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while process.poll() is None:
                replay(read, on_epoch)
                time.sleep(POLL)
            replay(read, on_epoch)
        finally:
            end(process)
        return process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    """Let torchrun stop its processes, if it still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """SIGTERM, with which Kubernetes ends a pod, raises `SystemExit`: what is open gets closed."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def replay(events: TextIO, on_epoch: OnEpoch) -> None:
    """Hand on the events that have been written whole since the file's position."""
    while True:
        position, line = events.tell(), events.readline()
        if not line.endswith("\n"):  # nothing new, or a line that is being written
            events.seek(position)
            return
        event = json.loads(line)
        if "epoch" in event:
            on_epoch(event["epoch"], event["metrics"])
        else:
            logging.getLogger(event["logger"]).log(event["level"], "%s", event["message"])


class _Forward(logging.Handler):
    """Sends log records to the launching process."""

    def __init__(self, events: TextIO) -> None:
        super().__init__()
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        _send(
            self.events,
            {"logger": record.name, "level": record.levelno, "message": record.getMessage()},
        )


def _send(events: TextIO, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


@contextmanager
def reporting(folder: Path, launcher: int | None, *, first: bool) -> Iterator[OnEpoch]:
    """Inside one of the processes: gives `on_epoch`, forwards logs, writes an error down.

    The process ends itself when the launching one, of the process id `launcher`, is gone: nobody
    would collect its work, and it would hold the checkpoints' lock. Without one, on several nodes,
    `expunge.training.node` looks after that.
    """
    if launcher is not None:
        threading.Thread(target=_end_without, args=(launcher,), daemon=True).start()
    with (folder / EVENTS).open("a") as events:
        handler = _Forward(events)
        package = logging.getLogger("expunge")
        if first:
            package.setLevel(logging.INFO)
            package.addHandler(handler)
            package.propagate = False
        try:
            yield lambda epoch, metrics: _send(events, {"epoch": epoch, "metrics": metrics})
        except ExpungeError as error:
            if not (folder / ERROR).exists():
                kind = type(error).__name__
                write_json(folder / ERROR, {"kind": kind, "message": str(error)})
            raise SystemExit(1) from error
        finally:
            package.removeHandler(handler)


def _end_without(launcher: int) -> None:
    while True:
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)
