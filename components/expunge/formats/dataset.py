"""Data set on disk: a folder with `dataset.json` and the images of each split.

For each split there is either `<split>.safetensors` (`images_NHWC` uint8, `labels_N` int64) or
`<split>.json` (relative paths and labels of image files beside it). Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge.formats.files import read_json, refuse_other_json, write_json

DATASET = "dataset.json"


@dataclass(frozen=True)
class SplitInfo:
    """`digest` is the SHA-256 of the images and labels in their order; `counts` is by class."""

    images: int
    digest: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`. `input_shape` is (C, H, W); `mean`, `std`: by channel, of pixels / 255."""

    source: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    storage: str  # "arrays" or "files"
    splits: Mapping[str, SplitInfo]


def save_dataset_info(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json`, last of a data set's files, so that its presence says 'complete'."""
    write_json(folder / DATASET, asdict(info))


def load_dataset_info(folder: Path) -> DatasetInfo:
    """Read `dataset.json`; one that says something else is a `UserError`."""
    raw = read_json(folder / DATASET)
    with refuse_other_json(folder / DATASET):
        channels, height, width = raw["input_shape"]
        return DatasetInfo(
            source=raw["source"],
            class_names=tuple(raw["class_names"]),
            input_shape=(channels, height, width),
            mean=tuple(raw["mean"]),
            std=tuple(raw["std"]),
            storage=raw["storage"],
            splits={
                name: SplitInfo(split["images"], split["digest"], tuple(split["counts"]))
                for name, split in raw["splits"].items()
            },
        )


def save_arrays(folder: Path, split: str, images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
    """Write a split that fits into memory: uint8 images and int64 labels."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # safetensors writes the memory as it lies there: a view with strides would be scrambled
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "images_NHWC": np.ascontiguousarray(images_NHWC, dtype=np.uint8),
        "labels_N": np.ascontiguousarray(labels_N, dtype=np.int64),
    }
    save_file(arrays, folder / f"{split}.safetensors")


def load_arrays(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images_NHWC and labels_N that `save_arrays` wrote."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / f"{split}.safetensors")
    return arrays["images_NHWC"], arrays["labels_N"]
