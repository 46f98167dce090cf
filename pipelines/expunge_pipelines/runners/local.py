"""Each step of a pipeline in a process of its own, with this command's Python and packages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def open_process_runner(reads: Sequence[str]) -> Iterator[Any]:
    """Yield kfp's runner for a pipeline whose steps are processes.

    `reads` is what a container would have to be shown; a process sees all of it.
    """
    from kfp import local

    del reads
    # A virtual environment for each step would install the same packages anew, from the network.
    yield local.SubprocessRunner(use_venv=False)
