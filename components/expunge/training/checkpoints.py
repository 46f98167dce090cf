"""Checkpoints: where a training that was killed goes on, to the very same weights.

`ROOT/<key>/epoch-000003/` holds `state.safetensors` (the model's tensors under `model/`, the
momentum buffers under `momentum/`) and `checkpoint.json` (the epoch, the metrics so far, the
digest of the tensors). The key is a digest of the recipe, so another recipe never finds it.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import OperationalError, UserError
from expunge.formats.files import digest_file, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
STATE, DESCRIPTION, LOCK = "state.safetensors", "checkpoint.json", "lock"
KEEP = 2  # the last one, and the one before it for when the last is broken
KEY_LENGTH = 32  # hexadecimal digits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` epochs; `extra` is JSON."""

    epoch: int
    model: Mapping[str, "Tensor"]
    momentum: Mapping[str, "Tensor"]
    extra: Mapping[str, Any]


def compute_checkpoint_key(recipe: Mapping[str, Any]) -> str:
    """Return a digest of everything that the weights depend on, and of this format's version."""
    text = json.dumps({**recipe, "format": FORMAT_VERSION}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process however it ends.

    Raises:
        OperationalError: another process holds it.
    """
    descriptor = _take_lock(folder / LOCK)
    try:
        yield
    finally:
        os.close(descriptor)


def _take_lock(path: Path) -> int:
    # Again and again, since a holder removes the folder at its end, with the lock's file in it.
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its owner removed the folder just now
            continue
        try:
            # The kernel takes this lock back from a killed process; a mere file would stay.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode() or "unknown"
            os.close(descriptor)
            raise OperationalError(
                f"the same training runs already, as process {holder}; wait for it or stop it "
                f"(its lock is {path})"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)  # locked, but the owner removed the file between our two calls


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint, whole or not at all, and remove those that are no longer needed."""
    # In here, since it brings torch along: a step that hands a training on only locks folders.
    from safetensors.torch import save_file

    target = folder / f"epoch-{checkpoint.epoch:06d}"
    partial = folder / f"{target.name}.partial"
    for leftover in (partial, target):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    parts = {"model": checkpoint.model, "momentum": checkpoint.momentum}
    # Cloned, since safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
        for part, values in parts.items()
        for name, tensor in values.items()
    }
    save_file(tensors, partial / STATE)
    description = {
        "epoch": checkpoint.epoch,
        "sha256": digest_file(partial / STATE),
        "extra": dict(checkpoint.extra),
    }
    write_json(partial / DESCRIPTION, description)
    partial.replace(target)
    for old in _list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """Return the newest sound checkpoint; a broken one is named in the log and passed over."""
    for path in reversed(_list_checkpoints(folder)):
        try:
            return _load_checkpoint(path)
        except (OSError, UserError, KeyError, ValueError) as error:
            logger.warning("checkpoint %s is broken (%s); it is not used", path, error)
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove the folder with all its checkpoints; the caller holds its lock."""
    shutil.rmtree(folder, ignore_errors=True)


def _list_checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("epoch-*") if path.suffix != ".partial")


def _load_checkpoint(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    description = read_json(path / DESCRIPTION)
    # safetensors checks only its header: training would go on with a flipped bit in the numbers.
    found = digest_file(path / STATE)
    if found != description["sha256"]:
        raise ValueError(f"{STATE} has SHA-256 {found}, expected {description['sha256']}")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}}
    for key, tensor in load_file(path / STATE).items():
        part, name = key.split("/", 1)
        parts[part][name] = tensor
    return Checkpoint(description["epoch"], parts["model"], parts["momentum"], description["extra"])
