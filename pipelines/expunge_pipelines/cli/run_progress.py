"""What happens to a run on a cluster, on stderr as it happens: a line for each change of a task.

A terminal also has one line that moves, with the run's age and what runs now.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.text import Text

# Without a line; some build servers take a command that says nothing for ten minutes for dead.
QUIET_SECONDS = 300.0
UNSAID = "PENDING"  # a task that waits for its pod; it runs at the next look, or that takes long


class Watching:
    """Prints what `following.follow` tells it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._moving = self._console.status("") if self._console.is_terminal else None
        self._states: dict[str, str] = {}
        self._last = time.monotonic()

    def __enter__(self) -> "Watching":
        if self._moving:
            self._moving.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._moving:
            self._moving.stop()

    def polled(self, found: Mapping[str, Any]) -> None:
        """Say what is new."""
        age = _age(found)
        now = {
            "the run": found["state"],
            **{task["name"]: task["state"] for task in found["tasks"]},
        }
        for name, state in now.items():
            if state not in (self._states.get(name), UNSAID):
                self._say(f"{age}  {name:16} {state.lower()}")
        self._states = now
        running = ", ".join(task["name"] for task in found["tasks"] if task["state"] == "RUNNING")
        waiting = f"{age}  {found['state'].lower()}" + (f": {running}" if running else "")
        if self._moving:
            self._moving.update(Text(waiting))
        elif time.monotonic() - self._last >= QUIET_SECONDS:
            self._say(waiting)

    def lost(self, reason: str) -> None:
        """Say that the server did not answer, and is asked again."""
        self._say(f"{reason}; asking again")

    def _say(self, line: str) -> None:
        self._last = time.monotonic()
        self._console.print(f"  {line}", markup=False)


def _age(found: Mapping[str, Any]) -> str:
    """How long ago the run was made, or how long it took; clocks may differ."""
    if not found["created_at"]:
        return ""
    begun = datetime.fromisoformat(found["created_at"])
    end = datetime.fromisoformat(found["finished_at"]) if found["finished_at"] else None
    seconds = ((end or datetime.now(UTC)) - begun).total_seconds()
    return str(timedelta(seconds=max(0, round(seconds))))
