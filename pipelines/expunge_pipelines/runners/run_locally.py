"""A pipeline on kfp's local runner: no cluster, and a folder of its own for what its steps write.

`base`, `local` and `docker` say what a step runs in.
"""

import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge import environment, processes
from expunge.errors import ERROR_FILE, OperationalError
from expunge_pipelines.runners.base import LOCAL, load_runner
from expunge_pipelines.runners.environ import set_variables
from expunge_pipelines.runners.leftovers import (
    HOLDER,
    LOG,
    end_steps_on_failure,
    keep_only_log,
    remove_all_but_log,
    remove_leftovers,
)
from expunge_pipelines.runners.step_log import StepLog


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

    `runner` is a name in `RUNNERS`. With "docker" each step has a container of its own, which sees
    the files in `reads` (`expunge_pipelines.runners.docker`).

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
        log = StepLog(work / LOG, on_start)
        # The order matters: the folder is emptied when no step writes there any more, and a runner
        # reads the variables that the steps are to get.
        with (
            keep_only_log(work),
            _prepare_environment(work, log.error_file),
            end_steps_on_failure(),
            load_runner(runner)(reads) as kfp_runner,
        ):
            (work / HOLDER).write_text(processes.name_this_process())
            local.init(
                runner=kfp_runner,
                pipeline_root=str(work / "outputs"),
                workspace_root=str(work / "workspace"),
            )
            try:
                with redirect_stdout(log):
                    pipeline(**arguments)
            except RuntimeError as error:  # kfp's: it names the step and nothing else
                raise log.failure() from error
    except OSError as error:
        raise OperationalError(
            f"the steps cannot run in {root} ({error}); check the disk, its space and its "
            "permissions"
        ) from error
    with suppress(OSError):  # somebody else has removed it
        remove_all_but_log(work)
    if not (work / HOLDER).exists():
        shutil.rmtree(work, ignore_errors=True)
    return LocalRun(log.seconds, time.monotonic() - since)


@contextmanager
def _prepare_environment(work: Path, error_file: Path) -> Iterator[None]:
    """Give the steps a folder for temporary files, a file for errors, a terminal for bars."""
    scratch = work / "tmp"
    scratch.mkdir()
    added = {"TMPDIR": str(scratch), ERROR_FILE: str(error_file)}
    if sys.stderr.isatty():
        with suppress(OSError):  # a container may have a terminal and no name for it
            added["EXPUNGE_TTY"] = os.ttyname(sys.stderr.fileno())
    with set_variables(**added), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp doubts an image whose name does not say python
        yield
