"""Processes that hold a run: told apart from those that came after them, and their leftovers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from expunge import environment, processes

SAYS = "from expunge import processes; print(processes.name_this_process(), flush=True);"
SLEEPS = "import time; time.sleep(60)"
SECONDS = 20


@contextmanager
def another(code: str = SAYS + SLEEPS, run: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start a process that is ended with the test, whatever it does."""
    environ = {key: value for key, value in os.environ.items() if key != environment.PIPELINE_RUN}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=environ | ({environment.PIPELINE_RUN: run} if run else {}),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_for_zombie(pid: int) -> None:
    end = time.monotonic() + SECONDS
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_this_process_is_there() -> None:
    holder = processes.name_this_process()
    assert holder == processes.name_this_process()
    assert holder.split()[-2] == str(os.getpid())
    assert len(holder) <= 200  # what the ledger has room for
    assert not processes.has_ended(holder)


def test_another_process_ends() -> None:
    with another() as process:
        holder = said(process)
        assert holder.split()[-2] == str(process.pid)
        assert holder.split()[:-2] == processes.name_this_process().split()[:-2]
        assert not processes.has_ended(holder)
        process.send_signal(signal.SIGSTOP)
        assert not processes.has_ended(holder)
        process.kill()
        wait_for_zombie(process.pid)
        assert processes.has_ended(holder)  # also where nobody has asked for its status yet
        process.wait()
        assert processes.has_ended(holder)


def test_a_number_that_was_given_to_another_process() -> None:
    *machine, pid, started = processes.name_this_process().split(" ")
    other = " ".join([*machine, pid, str(int(started) - 1)])
    assert processes.has_ended(other)
    with another() as process:
        theirs = said(process).split(" ")[-1]
        assert processes.has_ended(" ".join([*machine, str(process.pid), started]))
        assert not processes.has_ended(" ".join([*machine, str(process.pid), theirs]))


def test_what_cannot_be_known_has_not_ended() -> None:
    with another() as process:
        *_, pid, started = said(process).split(" ")
    assert processes.has_ended(
        f"{' '.join(processes.name_this_process().split(' ')[:-2])} {pid} {started}"
    )
    assert not processes.has_ended(f"another-machine {pid} {started}")
    assert not processes.has_ended(f"another-boot pid:[4026531836] {pid} {started}")
    assert not processes.has_ended(None)


@pytest.mark.parametrize("name", ["a b", ") Z (", "(((", ")))"])
def test_a_process_may_be_called_anything(name: str) -> None:
    """The kernel puts the name, as it is, before the numbers."""
    rename = f"import ctypes; ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0);"
    with another(rename + SAYS + SLEEPS) as process:
        holder = said(process)
        assert psutil.Process(process.pid).name() == name
        assert not processes.has_ended(holder)


def test_leftovers_are_ended_and_nothing_else() -> None:
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]);"
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);{child}"
    with (
        another(stubborn + SAYS + SLEEPS, run="run-1") as left,
        another(run="run-10") as other,
        another() as unmarked,
    ):
        for process in (left, other, unmarked):
            assert said(process)
        children = psutil.Process(left.pid).children()
        assert len(children) == 1
        processes.end_leftovers("run-1")
        assert not psutil.pid_exists(left.pid)  # it was this process's child, and reaped
        assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE
        assert other.poll() is unmarked.poll() is None
        processes.end_leftovers("run-1")
        processes.end_leftovers("run-never")
        assert other.poll() is unmarked.poll() is None


def test_the_process_that_asks_is_not_a_leftover() -> None:
    ends = "from expunge import processes; processes.end_leftovers('run-1');"
    code = f"{ends} print('there', flush=True)"
    with another(code, run="run-1") as process:
        assert said(process) == "there"
        assert process.wait(SECONDS) == 0
