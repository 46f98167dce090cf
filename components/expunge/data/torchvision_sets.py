"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, read by torchvision from its own files."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from expunge.config import PrepareDataConfig
from expunge.data.array_set import write_array_set
from expunge.errors import DataError
from expunge.formats.dataset import DatasetInfo

# Source name: torchvision's class and the folder below `data_root` that its reader looks into.
SETS = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}


def write_torchvision(config: PrepareDataConfig, target: Path) -> DatasetInfo:
    """Write one of `SETS`: from `config.data_root` where it is there, downloaded otherwise.

    Raises:
        DataError: the files are missing or broken and cannot be downloaded.
    """
    splits, names = {}, []
    for split in config.splits:
        data = _load(config, train=split == "train")
        images = np.asarray(data.data)
        images_NHWC = images[..., None] if images.ndim == 3 else images
        splits[split] = images_NHWC, np.asarray(data.targets, dtype=np.int64)
        names = list(data.classes)
    if config.source == "mnist":
        names = [str(digit) for digit in range(10)]  # torchvision says "0 - zero"
    return write_array_set(config, names, splits, target)


def _load(config: PrepareDataConfig, *, train: bool) -> Any:
    from torchvision import datasets

    reader, folder = SETS[config.source]
    root, place = config.data_root, config.data_root / folder
    state = "cannot be read from" if place.exists() else "is not in"
    # A missing set, a broken file, the network and permissions come as exceptions of many types;
    # whatever the first try met, the second meets it again or repairs it by a download.
    with contextlib.suppress(Exception):
        return getattr(datasets, reader)(root, train=train, download=False)
    try:
        return getattr(datasets, reader)(root, train=train, download=True)
    except Exception as error:
        raise DataError(
            f"{config.source} {state} {place} and cannot be downloaded ({_join_lines(error)}); set "
            f"EXPUNGE_DATA_ROOT to a folder that holds {folder} with sound files, or delete "
            "broken ones and run where there is a network"
        ) from error


def _join_lines(error: Exception) -> str:
    # torchvision's messages span lines, and some errors have no message at all
    return " ".join(str(error).split()) or type(error).__name__
