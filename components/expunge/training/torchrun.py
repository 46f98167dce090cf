"""A training in several processes of this machine: torchrun starts them, files carry the rest.

`expunge.training.exchange` has the files, which lie in a temporary folder. What the processes print
is kept in one more, and shown only where they end without a word.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from expunge.errors import OperationalError, UserError
from expunge.training.exchange import (
    EVENTS,
    Arguments,
    read_report,
    replay_events,
    write_arguments,
)
from expunge.training.progress import TTY
from expunge.training.spec import OnEpoch, TrainingSpec

POLL = 0.1  # seconds
PATIENCE = 30  # seconds that torchrun gets to stop its processes before it is killed itself
OUTPUT = "output.txt"
SHOWN = 2000  # characters of the output, its last ones, that an error shows
TORCHRUN = ("-m", "torch.distributed.run")
PROCESS = ("-m", "expunge.training.process")


def train_under_torchrun(spec: TrainingSpec, on_epoch: OnEpoch) -> dict[str, Any]:
    """Train in `processes` processes, and return the report of the first.

    Raises:
        UserError: there are fewer GPUs than processes; or whatever a process ended with.
        OperationalError: a process ended without a word.
    """
    processes = spec.config.processes
    _check_devices(processes)
    with tempfile.TemporaryDirectory(prefix="expunge-train-") as scratch:
        folder = Path(scratch)
        write_arguments(folder, Arguments(spec, launcher=os.getpid()))
        status = _run_processes(processes, folder, on_epoch)
        report = read_report(folder)
        if status != 0 or report is None:
            tail = (folder / OUTPUT).read_text(errors="replace")[-SHOWN:]
            raise OperationalError(
                f"the training's processes ended with status {status}; their last words:\n{tail}"
            )
        return report


def build_command(folder: Path, *options: str) -> list[str]:
    """Return the command that starts the processes; on several nodes torchrun needs no options.

    There it reads its settings from the environment, which Kubeflow Trainer has set.
    """
    return [sys.executable, *TORCHRUN, *options, *PROCESS, str(folder)]


def end_torchrun(process: subprocess.Popen[bytes]) -> None:
    """Let torchrun stop its processes, if it still runs."""
    if process.poll() is not None:
        return
    # Not killed at first: its processes would go on without it.
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _check_devices(processes: int) -> None:
    # Without GPUs any number of processes share the CPU, which is how tests train.
    from expunge.device import count_gpus

    gpus = count_gpus()
    if 0 < gpus < processes:
        raise UserError(
            f"processes is {processes} and there are {gpus} GPUs; "
            "choose one process for each GPU at most"
        )


def _run_processes(processes: int, folder: Path, on_epoch: OnEpoch) -> int:
    # --standalone takes a free port, so trainings side by side do not meet
    command = build_command(folder, "--standalone", "--nproc-per-node", str(processes))
    environment = dict(os.environ)
    # The processes' own output is a file; the bar belongs on this one's terminal.
    if TTY not in environment and sys.stderr.isatty():
        environment[TTY] = os.ttyname(sys.stderr.fileno())
    with (folder / OUTPUT).open("wb") as output, (folder / EVENTS).open() as events:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                replay_events(events, on_epoch)
                time.sleep(POLL)
            # Once more: the last events may have come after the last look.
            replay_events(events, on_epoch)
        finally:
            end_torchrun(process)
        return process.wait()
