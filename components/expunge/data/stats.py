"""Statistics of a split: the mean and std of its channels, digests, a stable order.

Shapes: N images, H height, W width, C channels, V = 256 pixel values.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from expunge.formats.dataset import SplitInfo

VALUES = 256
_ROWS = 1024  # images counted at once: np.bincount widens its input to eight bytes a pixel


def count_values(images_NHWC: np.ndarray) -> np.ndarray:
    """Count how often each pixel value occurs in each channel: int64, shape C x V."""
    channels = images_NHWC.shape[-1]
    counts_CV = np.zeros((channels, VALUES), dtype=np.int64)
    for start in range(0, len(images_NHWC), _ROWS):
        part_NHWC = images_NHWC[start : start + _ROWS]
        for channel in range(channels):
            counts_CV[channel] += np.bincount(part_NHWC[..., channel].ravel(), minlength=VALUES)
    return counts_CV


def compute_mean_and_std(counts_CV: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and population std of each channel, pixels scaled to 0..1.

    The sums are exact integers, so equal pixels give equal bits on every machine. The std of a
    constant channel is 1.0, since data are divided by it.
    """
    means, stds = [], []
    # Python's integers: the products pass 64 bits for a large set
    for row in counts_CV.tolist():
        pixels = sum(row)
        total = sum(count * value for value, count in enumerate(row))
        squares = sum(count * value**2 for value, count in enumerate(row))
        variance = (pixels * squares - total**2) / (pixels * (VALUES - 1)) ** 2
        means.append(total / (pixels * (VALUES - 1)))
        stds.append(variance**0.5 if variance > 0 else 1.0)
    return tuple(means), tuple(stds)


def describe_arrays(images_NHWC: np.ndarray, labels_N: np.ndarray, classes: int) -> SplitInfo:
    """Return the split's `SplitInfo`; its digest covers shape, pixels and int64 labels."""
    digest = hashlib.sha256(repr(tuple(images_NHWC.shape)).encode())
    digest.update(np.ascontiguousarray(images_NHWC).data)
    # little endian, for the same digest on every machine
    digest.update(np.ascontiguousarray(labels_N, dtype="<i8").data)
    return SplitInfo(len(labels_N), digest.hexdigest(), count_classes(labels_N, classes))


def describe_files(digests: Iterable[bytes], labels_N: np.ndarray, classes: int) -> SplitInfo:
    """Return the `SplitInfo` of image files; its digest covers their labels and SHA-256s."""
    digest = hashlib.sha256()
    for file_digest, label in zip(digests, labels_N.tolist(), strict=True):
        digest.update(label.to_bytes(8, "little") + file_digest)
    return SplitInfo(len(labels_N), digest.hexdigest(), count_classes(labels_N, classes))


def count_classes(labels_N: np.ndarray, classes: int) -> tuple[int, ...]:
    """Count the labels of each class."""
    return tuple(np.bincount(labels_N, minlength=classes).tolist())


def shuffle_stably(count: int, salt: str) -> list[int]:
    """Return the indices below `count`, shuffled by the SHA-256 of salt and index.

    It depends on no library's random generator, so it never changes.
    """
    keys = [hashlib.sha256(f"{salt}:{index}".encode()).digest() for index in range(count)]
    return sorted(range(count), key=keys.__getitem__)
