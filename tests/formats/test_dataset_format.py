"""A data set comes back from disk as it was written, and what is broken is named."""

from pathlib import Path

import numpy as np
import pytest
from stored_formats import spoil_json

from expunge.errors import UserError
from expunge.formats.dataset import (
    DatasetInfo,
    SplitInfo,
    load_arrays,
    load_dataset_info,
    save_arrays,
    save_dataset_info,
)

DATA = DatasetInfo(
    source="folder:/données",
    class_names=("Zoë", "cat", "dog, small"),
    input_shape=(3, 8, 6),
    mean=(0.1, 0.2, 1 / 3),
    std=(0.5, 0.25, 0.125),
    storage="files",
    splits={
        "train": SplitInfo(7, "ab" * 32, (3, 2, 2)),
        "test": SplitInfo(2, "cd" * 32, (1, 1, 0)),
    },
)


def test_dataset_info(tmp_path: Path) -> None:
    save_dataset_info(tmp_path, DATA)
    assert load_dataset_info(tmp_path) == DATA


def test_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (5, 4, 3, 2), dtype=np.uint8)[:, ::-1]  # not contiguous
    save_arrays(tmp_path / "new", "train", images_NHWC, np.arange(5, dtype=np.int32))
    images, labels = load_arrays(tmp_path / "new", "train")
    assert np.array_equal(images, images_NHWC)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json does not exist; expected a file written"):
        load_dataset_info(tmp_path)


@pytest.mark.parametrize("change", ["list", "missing", "shape", "type"])
def test_json_of_something_else_is_named(tmp_path: Path, change: str) -> None:
    save_dataset_info(tmp_path, DATA)
    spoil_json(tmp_path / "dataset.json", change)
    with pytest.raises(UserError, match=r"dataset\.json is not as expunge writes it \(.*Error"):
        load_dataset_info(tmp_path)
