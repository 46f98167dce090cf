"""One node of a training that runs over several: torchrun, while somebody waits for its result.

`python -m expunge.training.node FOLDER` is what a TrainJob's pod runs. Kubeflow Trainer sets the
variables that tell torchrun of the other nodes. What the processes print goes to the pod's log and
to `output-<node>.txt` in the folder, since a pod that failed may be gone with its log.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from expunge.training.exchange import ALIVE, read_arguments
from expunge.training.sigterm import exit_on_sigterm, hold_sigterm
from expunge.training.torchrun import build_command, end_torchrun

LOOK = 1.0  # seconds
RANK = "PET_NODE_RANK"  # one of torchrun's variables

logger = logging.getLogger(__name__)


def run_node(folder: Path) -> int:
    """Run this node's processes to their end, and return torchrun's exit status.

    It is 0 as well where nobody waits any more: any other has Kubernetes start the pod again.
    """
    patience = read_arguments(folder).patience
    output = folder / f"output-{os.environ.get(RANK, '0')}.txt"
    process: subprocess.Popen[bytes] | None = None
    with exit_on_sigterm(), output.open("ab") as copy:
        try:
            with hold_sigterm():
                process = subprocess.Popen(  # noqa: S603
                    build_command(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            # Of its own, since torchrun would stand still in front of a pipe that nobody reads.
            copier = threading.Thread(target=_copy_output, args=(process.stdout, copy), daemon=True)
            copier.start()
            if not _wait_while_needed(process, folder / ALIVE, patience):
                return 0
            copier.join()
            return process.returncode
        finally:
            if process is not None:
                end_torchrun(process)


def _wait_while_needed(
    process: subprocess.Popen[bytes], alive: Path, patience: float | None
) -> bool:
    """Wait for the end of the process; return False if its launcher was silent for too long."""
    # Compared by content and by this node's own clock: those of two machines differ.
    seen, since = "", time.monotonic()
    while process.poll() is None:
        if (content := _read_text(alive)) != seen:
            seen, since = content, time.monotonic()
        elif patience is not None and time.monotonic() - since > patience:
            logger.warning("nobody has waited for this training for %g s", patience)
            return False
        time.sleep(LOOK)
    return True


def _read_text(path: Path) -> str:
    with suppress(OSError):  # a volume that is away for a moment is as good as no news
        return path.read_text()
    return ""


def _copy_output(stream: IO[bytes], copy: IO[bytes]) -> None:
    for line in stream:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        with suppress(OSError):  # a full volume; torchrun must not wait for a reader
            copy.write(line)
            copy.flush()


if __name__ == "__main__":
    sys.exit(run_node(Path(sys.argv[1])))
