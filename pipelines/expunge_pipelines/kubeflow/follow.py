"""Following of a run on Kubeflow Pipelines until it ends.

kfp's own `wait_for_run_completion` never ends for a run that was cancelled, ends at the first
question without an answer, and tells nothing of the tasks.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from expunge.errors import OperationalError
from expunge_pipelines.kubeflow.connection import is_passing, link_run
from expunge_pipelines.kubeflow.runs import UNKNOWN, read_run

Polled = Callable[[Mapping[str, Any]], None]

FIRST_SECONDS = 2.0  # between two questions; a run of the demo takes a minute
LONGEST_SECONDS = 20.0  # a pod takes about as long to start, so nothing is seen late by more
GROWTH = 1.2  # at 20 s after two minutes
# Questions in a row that may go unanswered. The pauses between them grow to a minute, so a server
# may be away for nine: long enough to be moved to another node.
LOST = 12
LOST_SECONDS = 60.0
# Further questions after the end, for tasks that the server has not caught up with.
LATE = 3


class Unfollowed(KeyboardInterrupt):
    """An interrupt while a run was followed: it goes on by itself."""

    def __init__(self, said: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.said = said


def follow(
    client: Any,
    run: str,
    *,
    timeout: float | None = None,
    on_poll: Polled = lambda _: None,
    on_lost: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return what `read_run` gives of the run at its end; `on_poll` gets each state before.

    A question without an answer is asked again, and `on_lost` gets the reason.

    Raises:
        UserError: there is no such run.
        OperationalError: the run still goes on after `timeout` seconds, the server was away for too
            long, or it refuses.
        Unfollowed: somebody interrupts.
    """
    try:
        return _poll_until_end(client, run, timeout=timeout, on_poll=on_poll, on_lost=on_lost)
    except KeyboardInterrupt as stop:
        raise Unfollowed(f"interrupted; {_say_it_goes_on(run)}", *stop.args) from stop


def _poll_until_end(
    client: Any,
    run: str,
    *,
    timeout: float | None,
    on_poll: Polled,
    on_lost: Callable[[str], None],
) -> dict[str, Any]:
    end = None if timeout is None else time.monotonic() + timeout
    pause, lost, late = FIRST_SECONDS, 0, 0
    while True:
        try:
            found = read_run(client, run)
        except OperationalError as error:
            lost += 1
            if not is_passing(error) or lost > LOST:
                raise OperationalError(f"{error}; {_say_it_goes_on(run)}") from error
            on_lost(str(error))
            wait = min(FIRST_SECONDS * 2**lost, LOST_SECONDS)
        else:
            on_poll(found)
            lost, late = 0, late + (found["outcome"] == UNKNOWN)
            if found["outcome"] and (found["outcome"] != UNKNOWN or late > LATE):
                return found
            wait, pause = pause, min(pause * GROWTH, LONGEST_SECONDS)
        if end is not None:
            if (left := end - time.monotonic()) <= 0:
                raise OperationalError(
                    f"run {run} has not ended after {timeout:g} s; {_say_it_goes_on(run)}"
                )
            wait = min(wait, left)
        time.sleep(wait)


def _say_it_goes_on(run: str) -> str:
    return (
        f"the run goes on by itself: {link_run(run)}, and `expunge submit status {run} --wait` "
        "follows it again"
    )
