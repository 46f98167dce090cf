"""Environment variables for as long as a pipeline runs here: its steps are processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def set_variables(**added: str) -> Iterator[None]:
    """Set variables while the body runs, and then put back what there was."""
    before = {key: os.environ.get(key) for key in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
