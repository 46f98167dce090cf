"""Data sets that fit into memory: pixels and labels in, a data set folder out.

Shapes: N images, H height, W width, C channels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from expunge.config import PrepareDataConfig
from expunge.data.images import fit_image
from expunge.data.pool import map_in_parallel
from expunge.data.stats import compute_mean_and_std, count_values, describe_arrays
from expunge.errors import UserError
from expunge.formats.dataset import DatasetInfo, save_arrays

# Bytes of uint8 pixels, over all splits read, that are held in memory; above it files stay files.
# The training process holds them as well, on machines with 8 GiB and more.
MEMORY_LIMIT = 4 * 2**30

Arrays = tuple[np.ndarray, np.ndarray]  # images_NHWC uint8 and labels_N int64


def write_array_set(
    config: PrepareDataConfig,
    class_names: Sequence[str],
    splits: Mapping[str, Arrays],
    target: Path,
) -> DatasetInfo:
    """Write each split's `<split>.safetensors`; `dataset.json` is left to the caller.

    Images are scaled to `config.image_size` where it is given. Mean and std are the train split's
    where that is read.

    Raises:
        UserError: at that image size the data would not fit into memory.
    """
    _refuse_too_large(config, splits)
    stored, infos = {}, {}
    for split, (images_NHWC, labels_N) in splits.items():
        stored[split] = resize_images(images_NHWC, config.image_size)
        infos[split] = describe_arrays(stored[split], labels_N, len(class_names))
        save_arrays(target, split, stored[split], labels_N)
    measured_NHWC = stored["train" if "train" in stored else "test"]
    mean, std = compute_mean_and_std(count_values(measured_NHWC))
    _, height, width, channels = measured_NHWC.shape
    return DatasetInfo(
        source=config.source,
        class_names=tuple(class_names),
        input_shape=(channels, height, width),
        mean=mean,
        std=std,
        storage="arrays",
        splits=infos,
    )


def resize_images(images_NHWC: np.ndarray, image_size: int) -> np.ndarray:
    """Scale the images to `image_size` pixels a side, as `decode_image` does; 0 keeps them."""
    count, height, width, channels = images_NHWC.shape
    if image_size in (0, height) and image_size in (0, width):
        return images_NHWC
    scaled_NHWC = np.empty((count, image_size, image_size, channels), dtype=np.uint8)

    def scale(row: int) -> None:
        # PIL takes gray pixels without an axis for the channel
        pixels = images_NHWC[row, :, :, 0] if channels == 1 else images_NHWC[row]
        fitted = fit_image(Image.fromarray(pixels), image_size, image_size)
        scaled_NHWC[row] = np.asarray(fitted).reshape(scaled_NHWC.shape[1:])

    map_in_parallel(scale, range(count))
    return scaled_NHWC


def _refuse_too_large(config: PrepareDataConfig, splits: Mapping[str, Arrays]) -> None:
    size = config.image_size
    needed = sum(
        images.size if size == 0 else len(images) * size * size * images.shape[-1]
        for images, _ in splits.values()
    )
    if needed > MEMORY_LIMIT:
        raise UserError(
            f"{config.source} at image_size {size} takes {needed} bytes of pixels, above the "
            f"{MEMORY_LIMIT} that are held in memory; choose a smaller image_size"
        )
