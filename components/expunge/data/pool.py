"""Threads that read and decode: PIL and file reads release the interpreter lock in part."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 16
_CHUNK = 64  # items a job: few enough to share out evenly, enough to hide the cost of a job


def map_in_parallel(
    function: Callable[[T], R], items: Sequence[T], threads: int | None = None
) -> list[R]:
    """Return the function's result for each item, in order; one thread a core unless told.

    The first failure, in the order of the items, is raised, and jobs not yet begun are dropped.
    """
    workers = min(threads or os.cpu_count() or 1, MAX_THREADS)
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    with ThreadPoolExecutor(workers, thread_name_prefix="data") as pool:
        done = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return [result for results in done for result in results]
