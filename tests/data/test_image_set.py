import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.config import PrepareDataConfig
from expunge.data import array_set
from expunge.data.folder import list_folder
from expunge.data.image_set import write_image_set
from expunge.data.images import decode_image
from expunge.data.stats import compute_mean_and_std, count_values
from expunge.errors import DataError
from expunge.formats.dataset import load_arrays
from expunge.formats.files import read_json

Write = Callable[..., Path]
Config = Callable[..., PrepareDataConfig]
BOTH = ("train", "test")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3)])
def test_arrays_hold_the_files_pixels_in_order(
    mode: str, channels: int, tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in", mode=mode, size=(6, 4))
    info = write_image_set(folder_config(root), list_folder(root, BOTH), tmp_path)
    images, labels = load_arrays(tmp_path, "train")
    assert (info.storage, info.input_shape) == ("arrays", (channels, 4, 6))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    own = Image.open(root / "train" / "dog" / "1.png").convert("RGB" if channels == 3 else "L")
    np.testing.assert_array_equal(images[4], np.asarray(own).reshape(4, 6, channels))
    assert info.splits["test"].counts == (3, 3)


def test_one_coloured_image_makes_the_set_rgb(
    tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in", mode="L")
    Image.new("RGB", (6, 6)).save(root / "test" / "cat" / "2.png")
    info = write_image_set(folder_config(root), list_folder(root, BOTH), tmp_path)
    assert info.input_shape == (3, 6, 6)


def test_differing_sizes_become_224_unless_a_size_is_given(
    tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in", count=1)
    Image.new("RGB", (9, 6)).save(root / "test" / "cat" / "0.png")
    tree = list_folder(root, BOTH)
    assert write_image_set(folder_config(root), tree, tmp_path / "a").input_shape == (3, 224, 224)
    small = write_image_set(folder_config(root, image_size=3), tree, tmp_path / "b")
    assert small.input_shape == (3, 3, 3)
    assert load_arrays(tmp_path / "b", "test")[0].shape == (2, 3, 3, 3)


def test_beyond_the_memory_limit_files_are_copied(
    tmp_path: Path, write_images: Write, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_set, "MEMORY_LIMIT", 12 * 6 * 6 * 3 - 1)
    root = write_images(tmp_path / "in")
    config, tree, target = folder_config(root), list_folder(root, BOTH), tmp_path / "out"
    info = write_image_set(config, tree, target)
    assert (info.storage, info.input_shape) == ("files", (3, 6, 6))
    rows = read_json(target / "train.json")
    assert [label for _, label in rows] == [0, 0, 0, 1, 1, 1]
    assert rows[3] == ["train/1/0000003.png", 1]
    assert (target / rows[3][0]).read_bytes() == (root / "train" / "dog" / "0.png").read_bytes()
    assert not (target / "train.safetensors").exists()
    digest = hashlib.sha256()
    for path, label in rows:
        digest.update(label.to_bytes(8, "little"))
        digest.update(hashlib.sha256((target / path).read_bytes()).digest())
    assert info.splits["train"].digest == digest.hexdigest()
    pixels = np.stack(
        [decode_image((target / path).read_bytes(), path, (3, 6, 6)) for path, _ in rows]
    )
    assert (info.mean, info.std) == compute_mean_and_std(count_values(pixels))


def test_both_storages_describe_the_same_data(
    tmp_path: Path, write_images: Write, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path / "in")
    tree = list_folder(root, BOTH)
    arrays = write_image_set(folder_config(root), tree, tmp_path / "a")
    monkeypatch.setattr(array_set, "MEMORY_LIMIT", 0)
    files = write_image_set(folder_config(root), tree, tmp_path / "b")
    assert (arrays.mean, arrays.std) == (files.mean, files.std)
    assert [s.counts for s in arrays.splits.values()] == [s.counts for s in files.splits.values()]


@pytest.mark.parametrize("limit", [array_set.MEMORY_LIMIT, 0])
def test_the_digest_ignores_times_and_sees_bytes(
    limit: int, tmp_path: Path, write_images: Write, folder_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(array_set, "MEMORY_LIMIT", limit)
    root = write_images(tmp_path / "in")
    config, tree = folder_config(root), list_folder(root, BOTH)
    first = write_image_set(config, tree, tmp_path / "a").splits
    path = root / "train" / "dog" / "1.png"
    os.utime(path, (1, 1))
    assert write_image_set(config, tree, tmp_path / "b").splits == first
    Image.new("RGB", (6, 6)).save(path)
    changed = write_image_set(config, tree, tmp_path / "c").splits
    assert changed["train"].digest != first["train"].digest
    assert changed["test"] == first["test"]


@pytest.mark.parametrize("limit", [array_set.MEMORY_LIMIT, 0])
def test_broken_files_are_named_with_either_storage(
    limit: int, tmp_path: Path, write_images: Write, folder_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(array_set, "MEMORY_LIMIT", limit)
    root = write_images(tmp_path / "in", suffix=".jpg", size=(64, 64))
    path = root / "test" / "dog" / "2.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"test/dog/2.jpg is a corrupt or truncated image"):
        write_image_set(folder_config(root), list_folder(root, BOTH), tmp_path / "a")
    path.write_text("not an image")
    with pytest.raises(DataError, match=r"test/dog/2.jpg is no image"):
        write_image_set(folder_config(root), list_folder(root, BOTH), tmp_path / "b")
