from pathlib import Path

import numpy as np
import pytest

from expunge.config import PrepareDataConfig
from expunge.data import array_set
from expunge.data.array_set import resize_images, write_array_set
from expunge.data.stats import compute_mean_and_std, count_values
from expunge.errors import UserError
from expunge.formats.dataset import load_arrays

ARRAYS = np.arange(2 * 6 * 4 * 3, dtype=np.uint8).reshape(2, 6, 4, 3), np.array([1, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_a_constant_image_and_its_own_size(channels: int) -> None:
    images = np.full((3, 8, 8, channels), 77, dtype=np.uint8)
    assert resize_images(images, 0) is images
    assert resize_images(images, 8) is images
    scaled = resize_images(images, 20)
    assert scaled.shape == (3, 20, 20, channels)
    assert (scaled == 77).all()


def test_the_arrays_written_are_the_arrays_described(tmp_path: Path) -> None:
    config = PrepareDataConfig("x", tmp_path, image_size=5)
    info = write_array_set(config, ("a", "b"), {"train": ARRAYS, "test": ARRAYS}, tmp_path)
    images, labels = load_arrays(tmp_path, "test")
    assert info.input_shape == (3, 5, 5)
    assert images.shape == (2, 5, 5, 3)
    assert labels.tolist() == [1, 0]
    assert info.splits["train"] == info.splits["test"]
    assert (info.mean, info.std) == compute_mean_and_std(count_values(images))


def test_mean_and_std_are_the_train_splits(tmp_path: Path) -> None:
    config = PrepareDataConfig("x", tmp_path)
    dark = np.zeros_like(ARRAYS[0]), ARRAYS[1]
    assert write_array_set(config, "ab", {"train": ARRAYS, "test": dark}, tmp_path).mean[0] > 0
    assert write_array_set(config, "ab", {"test": dark}, tmp_path).std == (1.0, 1.0, 1.0)


def test_an_image_size_beyond_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_set, "MEMORY_LIMIT", 599)
    config = PrepareDataConfig("cifar10", tmp_path, image_size=10)
    with pytest.raises(
        UserError, match="cifar10 at image_size 10 takes 600 bytes of pixels, above"
    ):
        write_array_set(config, ("a", "b"), {"test": ARRAYS}, tmp_path)
