"""A data set small enough to train on in a moment: each class is one picture with some noise."""

from pathlib import Path

import numpy as np
from PIL import Image

from expunge.formats.dataset import DatasetInfo, SplitInfo, save_arrays, save_dataset_info
from expunge.formats.files import digest_file, write_json


def write_tiny(
    folder: Path,
    *,
    images: int = 48,
    classes: int = 4,
    shape: tuple[int, int, int] = (1, 8, 8),
    spoiled: int | None = None,
    files: bool = False,
) -> Path:
    """Write a data set folder of `images` training and half as many test images.

    The training images of the class `spoiled` are white.
    """
    rng = np.random.default_rng(0)
    channels, height, width = shape
    pictures_CHWC = rng.integers(0, 200, (classes, height, width, channels))
    splits = {}
    for split, count in (("train", images), ("test", images // 2)):
        labels_N = np.arange(count) % classes
        noise_NHWC = rng.integers(0, 55, (count, height, width, channels))
        images_NHWC = (pictures_CHWC[labels_N] + noise_NHWC).astype(np.uint8)
        if spoiled is not None and split == "train":
            images_NHWC[labels_N == spoiled] = 255
        if files:
            path = folder / f"{split}.json"
            write_json(path, _write_files(folder, split, images_NHWC, labels_N))
        else:
            save_arrays(folder, split, images_NHWC, labels_N)
            path = folder / f"{split}.safetensors"
        counts = tuple(np.bincount(labels_N, minlength=classes).tolist())
        splits[split] = SplitInfo(count, digest_file(path), counts)
    names = tuple(f"class {index}" for index in range(classes))
    storage = "files" if files else "arrays"
    mean, std = (0.5,) * channels, (0.25,) * channels
    save_dataset_info(folder, DatasetInfo("tiny", names, shape, mean, std, storage, splits))
    return folder


def _write_files(
    folder: Path, split: str, images_NHWC: np.ndarray, labels_N: np.ndarray
) -> list[list[str | int]]:
    rows: list[list[str | int]] = []
    for row, (pixels_HWC, label) in enumerate(zip(images_NHWC, labels_N.tolist(), strict=True)):
        path = f"{split}/{label}/{row}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC.squeeze()).save(folder / path)
        rows.append([path, label])
    return rows
