"""Which process runs a pipeline here, so that another can tell that it is gone.

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
    """This process as `MACHINE PID STARTED`: the boot and process namespace, and when it began."""
    return f"{_name_machine()} {os.getpid()} {_read_start(os.getpid())}"


def has_ended(holder: str | None) -> bool:
    """Whether a process of this machine is gone; False for another machine's, or an unknown one."""
    if holder is None:
        return False
    if holder.count(" ") < 2:
        return True  # what a power loss left of a name
    machine, pid, started = holder.rsplit(" ", 2)
    return machine == _name_machine() and _read_start(int(pid)) != started


def _read_start(pid: int) -> str | None:
    """When a process began, in the kernel's own ticks since boot; None for one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]
    if Path("/proc/self/stat").exists():
        return None
    import psutil  # type: ignore[import-untyped]

    with suppress(psutil.NoSuchProcess):
        return str(psutil.Process(pid).create_time())
    return None


def end_leftovers(run: str) -> None:
    """End the steps that a killed pipeline run left on this machine, and wait until they are."""
    import psutil

    mark, left = (environment.PIPELINE_RUN, run), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.environ().items() and process.pid != os.getpid():
                process.kill()
                left.append(process)
    psutil.wait_procs(left, GRACE)


def _name_machine() -> str:
    """This boot of this machine, and the process namespace: in a container, pid 1 is another."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return os.uname().nodename
