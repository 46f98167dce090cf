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

from expunge.formats.files import read_json
from expunge.training.torchrun import ARGUMENTS, TORCHRUN, TRAIN, end, heeding_sigterm

ALIVE = "alive"  # the file whose content changes for as long as a step waits
LOOK = 1.0  # seconds
RANK = "PET_NODE_RANK"  # one of torchrun's variables

logger = logging.getLogger(__name__)


def run_node(folder: Path) -> int:
    """Run this node's processes to their end, and return torchrun's exit status.

    It is 0 as well where nobody waits any more: any other has Kubernetes start the pod again.
    """
    patience = read_json(folder / ARGUMENTS)["patience"]
    output = folder / f"output-{os.environ.get(RANK, '0')}.txt"
    command = [sys.executable, *TORCHRUN, *TRAIN, str(folder / ARGUMENTS)]
    with heeding_sigterm(), output.open("ab") as kept:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        copying = threading.Thread(target=_pass_on, args=(process.stdout, kept), daemon=True)
        copying.start()
        try:
            seen, since = "", time.monotonic()
            while process.poll() is None:
                if (found := _read(folder / ALIVE)) != seen:
                    seen, since = found, time.monotonic()
                elif time.monotonic() - since > patience:
                    logger.warning("nobody has waited for this training for %g s", patience)
                    return 0
                time.sleep(LOOK)
            copying.join()
            return process.returncode
        finally:
            end(process)


def _read(path: Path) -> str:
    with suppress(OSError):  # a volume that is away for a moment is as good as no news
        return path.read_text()
    return ""


def _pass_on(stream: IO[bytes], kept: IO[bytes]) -> None:
    for line in stream:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        with suppress(OSError):  # a full volume; torchrun must not wait for a reader
            kept.write(line)
            kept.flush()


if __name__ == "__main__":
    sys.exit(run_node(Path(sys.argv[1])))
