"""Runners: what a step of a pipeline on this machine runs in.

To add a runner, write `runners/NAME.py` with a context manager like `Runner`, and add one line to
`RUNNERS`: `--runner NAME` follows. The module is imported for `--help` too, so import what is heavy
inside the function.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from expunge_pipelines.runners.docker import open_container_runner
from expunge_pipelines.runners.local import open_process_runner


class Runner(Protocol):
    """A context manager around a pipeline, which yields a runner of `kfp.local`."""

    def __call__(self, reads: Sequence[str]) -> AbstractContextManager[Any]:
        """Return it for a pipeline whose steps read the files in `reads`, and maybe a source.

        Raises:
            OperationalError: what the steps run in does not answer.
            UserError: the steps cannot run there as things are set up.
        """


LOCAL, DOCKER = "local", "docker"
RUNNERS: Mapping[str, Runner] = {
    LOCAL: open_process_runner,
    DOCKER: open_container_runner,
}
