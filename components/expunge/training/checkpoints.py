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
KEPT = 2  # the last one, and the one before it for when the last is broken

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` epochs; `extra` is JSON."""

    epoch: int
    model: Mapping[str, "Tensor"]
    momentum: Mapping[str, "Tensor"]
    extra: Mapping[str, Any]


def checkpoint_key(recipe: Mapping[str, Any]) -> str:
    """A digest of everything that the weights depend on, and of this format's version."""
    text = json.dumps({**recipe, "format": FORMAT_VERSION}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process however it ends.

    Raises:
        OperationalError: another process holds it.
    """
    descriptor = _lock(folder / LOCK)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its owner removed the folder just now
            continue
        try:
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
    from safetensors.torch import save_file

    target = folder / f"epoch-{checkpoint.epoch:06d}"
    partial = folder / f"{target.name}.partial"
    for leftover in (partial, target):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    parts = {"model": checkpoint.model, "momentum": checkpoint.momentum}
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
    for old in _written(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint; a broken one is named in the log and passed over."""
    for path in reversed(_written(folder)):
        try:
            return _load(path)
        except (OSError, UserError, KeyError, ValueError) as error:
            logger.warning("checkpoint %s is broken (%s); it is not used", path, error)
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove the folder with all its checkpoints; the caller holds its lock."""
    shutil.rmtree(folder, ignore_errors=True)


def _written(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("epoch-*") if path.suffix != ".partial")


def _load(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    description = read_json(path / DESCRIPTION)
    found = digest_file(path / STATE)
    if found != description["sha256"]:
        raise ValueError(f"{STATE} has SHA-256 {found}, expected {description['sha256']}")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}}
    for key, tensor in load_file(path / STATE).items():
        part, name = key.split("/", 1)
        parts[part][name] = tensor
    return Checkpoint(description["epoch"], parts["model"], parts["momentum"], description["extra"])
