"""Progress of a run on a cluster, on stderr: a line for each change of a task.

A terminal also has a last line that is rewritten, with the run's age and the tasks that run now.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.text import Text

# The longest time without a line. Some build servers end a command that is silent for ten minutes.
QUIET_SECONDS = 300.0
# The state of a task that waits for its pod. It is not said: most tasks run at the next look.
UNSAID = "PENDING"


class RunProgress:
    """Printer of what `kubeflow.follow` sees of a run; a context, since the last line moves."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self._console.status("") if self._console.is_terminal else None
        self._states: dict[str, str] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "RunProgress":
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status:
            self._status.stop()

    def print_changes(self, kfp_run: Mapping[str, Any]) -> None:
        """Print what has changed since the last call."""
        age = _format_age(kfp_run)
        states = {
            "the run": kfp_run["state"],
            **{task["name"]: task["state"] for task in kfp_run["tasks"]},
        }
        for name, state in states.items():
            if state not in (self._states.get(name), UNSAID):
                self._print_line(f"{age}  {name:16} {state.lower()}")
        self._states = states
        running = ", ".join(task["name"] for task in kfp_run["tasks"] if task["state"] == "RUNNING")
        waiting = f"{age}  {kfp_run['state'].lower()}" + (f": {running}" if running else "")
        if self._status:
            self._status.update(Text(waiting))
        elif time.monotonic() - self._last_line >= QUIET_SECONDS:
            self._print_line(waiting)

    def print_loss(self, reason: str) -> None:
        """Print that the server did not answer and is asked again."""
        self._print_line(f"{reason}; asking again")

    def _print_line(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(f"  {line}", markup=False)


def _format_age(kfp_run: Mapping[str, Any]) -> str:
    """Return how long ago the run was created, or how long it took if it has ended."""
    if not kfp_run["created_at"]:
        return ""
    start = datetime.fromisoformat(kfp_run["created_at"])
    end = datetime.fromisoformat(kfp_run["finished_at"]) if kfp_run["finished_at"] else None
    seconds = ((end or datetime.now(UTC)) - start).total_seconds()
    # The server's clock may be ahead of this one, and no run has a negative age.
    return str(timedelta(seconds=max(0, round(seconds))))
