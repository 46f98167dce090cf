"""What a SIGTERM does, in a process of its own: no other's end is at stake."""

import signal
import subprocess
import sys

import pytest

HEAD = """
import signal
from expunge.training.sigterm import exit_on_sigterm, hold_sigterm
before = signal.getsignal(signal.SIGTERM)
"""
EXIT = """
try:
    with exit_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
        print("not reached")
finally:
    print("closed", signal.getsignal(signal.SIGTERM) == before)
"""
HOLD = """
with exit_on_sigterm():
    try:
        with hold_sigterm():
            signal.raise_signal(signal.SIGTERM)
            print("to the end of the block")
        print("not reached")
    finally:
        print("closed")
"""
NONE = """
with exit_on_sigterm():
    with hold_sigterm():
        pass
print("goes on", signal.getsignal(signal.SIGTERM) == before)
"""


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (EXIT, 128 + signal.SIGTERM, "closed True\n"),
        (HOLD, 128 + signal.SIGTERM, "to the end of the block\nclosed\n"),
        (NONE, 0, "goes on True\n"),
    ],
    ids=["exit", "hold", "none"],
)
def test_the_end_of_a_block(body: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, said)
