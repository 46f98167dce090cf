"""scikit-learn's embedded handwritten digits: 1797 images, 8x8x1, no network.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), test part.
"""

from pathlib import Path

import numpy as np

from expunge.config import PrepareDataConfig
from expunge.data.array_set import Arrays, write_array_set
from expunge.data.stats import shuffle_stably
from expunge.formats.dataset import DatasetInfo

TEST_SHARE = 0.2
_LEVELS = 16  # the original pixels run from 0 to 16


def write_digits(config: PrepareDataConfig, target: Path) -> DatasetInfo:
    """Write the digits with pixels scaled from 0..16 to 0..255 (rounded), names "0" to "9"."""
    splits = load_digit_splits()
    wanted = {split: splits[split] for split in config.splits}
    return write_array_set(config, [str(digit) for digit in range(10)], wanted, target)


def load_digit_splits() -> dict[str, Arrays]:
    """Return both splits, in scikit-learn's order of images.

    A fifth of each class (rounded) is the test split: the class's images whose SHA-256 of
    "digits:<position>" comes first. The rule uses no random generator, so it never changes.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    # rounded, not cut off: 16 levels of 15.94 each, whose highest has to become 255
    scaled_NHW = np.rint(raw.images * (255 / _LEVELS)).astype(np.uint8)
    labels_N = raw.target.astype(np.int64)
    order = np.array(shuffle_stably(len(labels_N), "digits"))
    test_N = np.zeros(len(labels_N), dtype=bool)
    # class by class, so that each has the same share in the test split
    for digit in range(10):
        own = order[labels_N[order] == digit]
        test_N[own[: round(TEST_SHARE * len(own))]] = True
    images_NHWC = scaled_NHW[..., None]
    return {
        "train": (images_NHWC[~test_N], labels_N[~test_N]),
        "test": (images_NHWC[test_N], labels_N[test_N]),
    }
