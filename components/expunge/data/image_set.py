"""Data sets of image files: arrays where they fit into memory, files otherwise.

Shapes: N images, H height, W width, C channels.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from expunge.config import PrepareDataConfig
from expunge.data import array_set
from expunge.data.images import (
    Header,
    ImageFile,
    check_pixels,
    decode_image,
    read_header,
    refuse_bombs,
)
from expunge.data.layout import Arranged, Tree, arrange
from expunge.data.pool import map_in_parallel
from expunge.data.stats import compute_mean_and_std, count_values, describe_files, shuffle_stably
from expunge.formats.dataset import DatasetInfo
from expunge.formats.files import write_json

DEFAULT_SIZE = 224  # pixels a side, where sizes differ and none is asked for: ImageNet's custom
SAMPLE = 2048  # images that mean and std of a set of files are measured on: std error under 1e-2

Shape = tuple[int, int, int]  # (C, H, W)


def write_image_set(config: PrepareDataConfig, tree: Tree, target: Path) -> DatasetInfo:
    """Write the tree's images; `dataset.json` is left to the caller.

    One channel where every image is gray, three otherwise. Images are `config.image_size` pixels a
    side where it is given; else they keep their size where all have the same one, and are 224 a
    side where sizes differ. Up to `MEMORY_LIMIT` bytes of pixels become arrays. Above it, each
    file is copied unchanged to `<split>/<class index>/`, and `<split>.json` lists
    [relative path, label]: a reader gets its pixels by `decode_image`.

    Raises:
        DataError: the layout is wrong, or a file is no sound image.
    """
    arranged = arrange(tree, config.splits)
    # outside of the pool: Python's warning filters belong to the process, not to a thread
    with refuse_bombs():
        headers = {
            split: map_in_parallel(read_header, [file for file, _ in files])
            for split, files in arranged.splits.items()
        }
        found = [header for part in headers.values() for header in part]
        shape = _choose_shape(found, config.image_size)
        if len(found) * int(np.prod(shape)) <= array_set.MEMORY_LIMIT:
            splits = {
                split: (decode_all([file for file, _ in files], shape), _list_labels(files))
                for split, files in arranged.splits.items()
            }
            return array_set.write_array_set(config, arranged.class_names, splits, target)
        return _write_files(config, arranged, headers, shape=shape, target=target)


def decode_all(files: Sequence[ImageFile], shape: Shape) -> np.ndarray:
    """Decode the files to images_NHWC, uint8, at the (C, H, W) of `shape`."""
    channels, height, width = shape
    images_NHWC = np.empty((len(files), height, width, channels), dtype=np.uint8)

    def decode(row: int) -> None:
        images_NHWC[row] = decode_image(files[row].read(), files[row].name, shape)

    map_in_parallel(decode, range(len(files)))
    return images_NHWC


def _choose_shape(headers: Iterable[Header], image_size: int) -> Shape:
    found = list(headers)
    channels = 1 if all(header.gray for header in found) else 3
    sizes = {(header.height, header.width) for header in found}
    if image_size or len(sizes) > 1:
        return channels, image_size or DEFAULT_SIZE, image_size or DEFAULT_SIZE
    return channels, *sizes.pop()


def _list_labels(files: Sequence[tuple[ImageFile, int]]) -> np.ndarray:
    return np.array([label for _, label in files], dtype=np.int64)


def _write_files(
    config: PrepareDataConfig,
    arranged: Arranged,
    headers: Mapping[str, Sequence[Header]],
    *,
    shape: Shape,
    target: Path,
) -> DatasetInfo:
    classes, infos = len(arranged.class_names), {}
    for split, files in arranged.splits.items():
        for index in range(classes):
            (target / split / str(index)).mkdir(parents=True)
        # Numbers instead of the files' own names, which can be personal and of any length.
        paths = [
            f"{split}/{label}/{row:07d}{header.suffix}"
            for row, ((_, label), header) in enumerate(zip(files, headers[split], strict=True))
        ]

        def copy(job: tuple[ImageFile, str]) -> bytes:
            data = job[0].read()
            # decoded now: a broken file would else end a training in the middle of an epoch
            check_pixels(data, job[0].name)
            (target / job[1]).write_bytes(data)
            return hashlib.sha256(data).digest()

        images = [file for file, _ in files]
        digests = map_in_parallel(copy, list(zip(images, paths, strict=True)))
        labels_N = _list_labels(files)
        infos[split] = describe_files(digests, labels_N, classes)
        rows = [list(row) for row in zip(paths, labels_N.tolist(), strict=True)]
        write_json(target / f"{split}.json", rows)
    measured = arranged.splits["train" if "train" in arranged.splits else "test"]
    sample = sorted(shuffle_stably(len(measured), "sample")[:SAMPLE])
    mean, std = compute_mean_and_std(_count_sample([measured[row][0] for row in sample], shape))
    return DatasetInfo(
        source=config.source,
        class_names=arranged.class_names,
        input_shape=shape,
        mean=mean,
        std=std,
        storage="files",
        splits=infos,
    )


def _count_sample(files: Sequence[ImageFile], shape: Shape) -> np.ndarray:
    """Count the pixel values of all files, without holding their pixels."""

    def count(file: ImageFile) -> np.ndarray:
        return count_values(decode_image(file.read(), file.name, shape)[None])

    counts_CV: np.ndarray = np.sum(map_in_parallel(count, files), axis=0)
    return counts_CV
