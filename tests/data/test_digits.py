from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from expunge.config import PrepareDataConfig
from expunge.data.digits import load_digit_splits, write_digits
from expunge.formats.dataset import load_arrays


def test_the_splits_part_scikit_learns_digits() -> None:
    splits = load_digit_splits()
    images = np.concatenate([splits["train"][0], splits["test"][0]])
    raw = load_digits().images
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.max() == 255
    np.testing.assert_array_equal(
        np.sort(images.reshape(1797, -1), axis=0),
        np.sort(np.rint(raw * 255 / 16).reshape(1797, -1), axis=0),
    )
    counts = {split: np.bincount(labels) for split, (_, labels) in splits.items()}
    share = counts["test"] / (counts["test"] + counts["train"])
    np.testing.assert_allclose(share, 0.2, atol=0.003)


def test_the_split_never_changes(tmp_path: Path) -> None:
    info = write_digits(PrepareDataConfig("digits", tmp_path), tmp_path)
    assert info.splits["train"].digest == (
        "ec9cb196c7a9da722bfff20ccf54ba400a175cb79e1bb9ce07f209267ecca272"
    )
    assert info.splits["test"].digest == (
        "4d9068a048b0226c9b6a1838b264ae28fbb4f5a5eff360b72997bee23b9c3a59"
    )
    assert info.splits["test"].counts == (36, 36, 35, 37, 36, 36, 36, 36, 35, 36)
    assert info.class_names == tuple("0123456789")
    assert info.input_shape == (1, 8, 8)
    train = load_arrays(tmp_path, "train")[0] / 255
    np.testing.assert_allclose(info.mean, train.mean(), rtol=1e-12)
    np.testing.assert_allclose(info.std, train.std(), rtol=1e-12)
