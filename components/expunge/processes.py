"""Names of processes that run a pipeline here, so that another can tell that one is gone.

A lease says when to give up on a run that nobody hears of. On one machine there is no need to wait:
a process that was killed is not there any more, and neither may be the steps that it left.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from expunge import environment

GRACE = 10.0  # seconds for a killed process to be gone


def name_this_process() -> str:
    """Return this process as `MACHINE PID STARTED`.

    The machine is a boot of it and a process namespace; the start tells two users of one pid apart.
    """
    return f"{_name_machine()} {os.getpid()} {_read_start(os.getpid())}"


def has_ended(holder: str | None) -> bool:
    """Return whether a process of this machine is gone.

    False for another machine's, or an unknown one: only its lease says when to give up on it.
    """
    if holder is None:
        return False
    if holder.count(" ") < 2:
        return True  # what a power loss left of a name
    machine, pid, started = holder.rsplit(" ", 2)
    return machine == _name_machine() and _read_start(int(pid)) != started


def _read_start(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks since boot; None where it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        # Behind the last bracket: the name before it may hold blanks and brackets itself.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]  # a zombie works no more
    if Path("/proc/self/stat").exists():
        return None
    import psutil  # type: ignore[import-untyped]

    with suppress(psutil.NoSuchProcess):
        return str(psutil.Process(pid).create_time())
    return None


def end_leftovers(run: str) -> None:
    """End the steps that a killed pipeline run left on this machine, and wait until they are."""
    import psutil

    # By the variable, not by parents: what a killed command leaves is handed to init.
    mark, left = (environment.PIPELINE_RUN, run), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.environ().items() and process.pid != os.getpid():
                process.kill()
                left.append(process)
    psutil.wait_procs(left, GRACE)


def _name_machine() -> str:
    """Return this machine's boot and the process namespace: a container has its own pid 1."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return os.uname().nodename
