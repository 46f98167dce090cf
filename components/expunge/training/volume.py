"""The folder of a training on the volume that its pods share.

`MOUNT/trainings/<key>/` holds what the pods need and what they make: `data/`, the weights to begin
with, `checkpoints/`, `model/`, and in `run/` the files of `expunge.training.exchange`. It is in the
ledger for as long as it is there. At the end it is removed; after a failure its checkpoints stay,
where the next attempt goes on.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.config import AFTERWARDS, TrainConfig
from expunge.errors import OperationalError
from expunge.knobs import list_fields
from expunge.training.checkpoints import LOCK
from expunge.training.exchange import Arguments, write_arguments
from expunge.training.spec import TrainingSpec
from expunge.training.start import copy_start
from expunge.training.trainjob import Cluster

DATA, PARTIAL_DATA = "data", "data.partial"  # the copy of the data set, and one that is not whole
CHECKPOINTS, MODEL, RUN = "checkpoints", "model", "run"
TORCH_HOME = "torch"  # in the run's folder: where the pods look for torchvision's weights
KEY_LENGTH = 16  # hexadecimal digits; a job's name has room for 63 characters
# Seconds without a sign of the step after which its nodes end themselves: longer than it is ever
# silent, and how nodes go whose job could not be deleted.
NODE_PATIENCE = 900.0


def check_mounted(on: Cluster) -> None:
    """Refuse to train where the volume is not there.

    Raises:
        OperationalError: with the remedy.
    """
    # Made by hand, the folder would be this pod's own, and the nodes would find nothing in theirs.
    if not Path(on.mount).is_dir():
        raise OperationalError(
            f"there is no folder {on.mount}, where the volume of claim {on.claim} should be; "
            "compile the pipelines again and submit what that gives"
        )


@contextmanager
def name_volume(on: Cluster) -> Iterator[None]:
    """Raise what the file system says as an `OperationalError` that names the volume."""
    try:
        yield
    except OSError as error:
        raise OperationalError(
            f"the volume of claim {on.claim} at {on.mount} cannot be used ({error}); check its "
            "space, and that the image's user may write there"
        ) from error


def compute_key(config: TrainConfig, dataset: Path) -> str:
    """Return what another attempt at the same training has as well, and no other training."""
    from expunge.lifecycle import provenance

    # Those that are at their defaults are left out, so that keys without them stay as they were.
    fields = list_fields(TrainConfig)
    settings = {
        key: value
        for key, value in config.to_json().items()
        if key not in AFTERWARDS or value != fields[key].default
    }
    text = json.dumps([settings, provenance.digest_path(dataset)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def fill_folder(folder: Path, spec: TrainingSpec) -> Path:
    """Put everything where the pods see it, and return the folder that they are told of."""
    clear_folder(folder, keep=(CHECKPOINTS, DATA))
    # It gets its name last, so a copy that has it is whole: an earlier attempt's serves again.
    if not (folder / DATA).exists():
        shutil.copytree(spec.dataset, folder / PARTIAL_DATA)
        (folder / PARTIAL_DATA).replace(folder / DATA)
    run = folder / RUN
    run.mkdir()
    there = TrainingSpec(
        config=copy_start(spec.config, folder, run / TORCH_HOME),
        dataset=folder / DATA,
        model=folder / MODEL,
        checkpoints=folder / CHECKPOINTS,
        keeps_ledger=False,
    )
    write_arguments(run, Arguments(there, patience=NODE_PATIENCE))
    return run


def remove_data(folder: Path) -> None:
    """Remove the copy of the data set, as far as that can be done while pods may read it."""
    for part in (DATA, PARTIAL_DATA):
        # NFS keeps a file that is open; `clear_folder` takes it later.
        shutil.rmtree(folder / part, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove everything, from the ledger as well; the caller holds the folder's lock."""
    from expunge.lifecycle import provenance

    # First what must go, with an error if it does not; then the lock and the folder itself.
    clear_folder(folder, keep=())
    shutil.rmtree(folder, ignore_errors=True)
    provenance.record_removal(folder)


def keep_checkpoints(folder: Path, classes: Collection[int]) -> None:
    """Leave the checkpoints, if there are any, and nothing else; the ledger says so.

    `classes` are those that took part: the checkpoints know them, and no other.
    """
    from expunge.lifecycle import provenance

    clear_folder(folder, keep=(CHECKPOINTS,))
    if any(folder.glob(f"{CHECKPOINTS}/*/epoch-*")):
        provenance.record_folder(folder, "checkpoints", classes)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        provenance.record_removal(folder)


def clear_folder(folder: Path, keep: Collection[str]) -> None:
    """Remove all but the lock and the entries of these names."""
    for entry in folder.iterdir():
        # A lock that is removed while it is held would let another step in.
        if entry.name in {LOCK, *keep}:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
