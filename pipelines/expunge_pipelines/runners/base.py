"""Runners: what a step of a pipeline on this machine runs in.

To add a runner, write one file in this folder with a context manager like `Runner`, and one line in
`RUNNERS`: `--runner NAME` follows.
"""

import pkgutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Runner(Protocol):
    """A context manager around a pipeline, which yields a runner of `kfp.local`."""

    def __call__(self, reads: Sequence[str]) -> AbstractContextManager[Any]:
        """Return it for a pipeline whose steps read the files in `reads`, and maybe a source.

        Raises:
            OperationalError: what the steps run in does not answer.
            UserError: the steps cannot run there as things are set up.
        """


LOCAL, DOCKER = "local", "docker"
# Name: where its context manager is, as "module:attribute". Text and no import, since the command
# offers the names and starts without kfp and docker.
RUNNERS = {
    LOCAL: "expunge_pipelines.runners.local:open_process_runner",
    DOCKER: "expunge_pipelines.runners.docker:open_container_runner",
}


def load_runner(name: str) -> Runner:
    """Import and return the runner of this name.

    Raises:
        KeyError: there is no such runner.
    """
    runner: Runner = pkgutil.resolve_name(RUNNERS[name])
    return runner
