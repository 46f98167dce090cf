import numpy as np
import pytest

from expunge.data.stats import (
    compute_mean_and_std,
    count_values,
    describe_arrays,
    describe_files,
    shuffle_stably,
)


def test_mean_and_std_are_those_of_the_pixels_in_float64() -> None:
    images = np.random.default_rng(1).integers(0, 256, (1500, 5, 4, 3), dtype=np.uint8)
    mean, std = compute_mean_and_std(count_values(images))
    wide = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, wide.std(axis=(0, 1, 2)), rtol=1e-11)


def test_a_constant_channel_has_std_one() -> None:
    images = np.full((2, 3, 3, 2), 51, dtype=np.uint8)
    images[0, 0, 0, 1] = 0
    mean, std = compute_mean_and_std(count_values(images))
    assert mean[0] == pytest.approx(0.2)
    assert std[0] == 1.0
    assert 0 < std[1] < 1


def test_digest_of_arrays_depends_on_shape_pixels_and_labels() -> None:
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    labels = np.array([0, 1, 1])
    info = describe_arrays(images, labels, 3)
    assert (info.images, info.counts) == (3, (1, 2, 0))
    assert info == describe_arrays(images[:, ::-1].copy()[:, ::-1], labels.astype(np.int32), 3)
    changed = images.copy()
    changed[2, 3, 3, 0] ^= 1
    others = [
        describe_arrays(changed, labels, 3),
        describe_arrays(images, np.array([1, 0, 1]), 3),
        describe_arrays(images.reshape(3, 2, 8, 1), labels, 3),
    ]
    assert len({info.digest, *(other.digest for other in others)}) == 4


def test_digest_of_files_depends_on_order_and_labels() -> None:
    one, two = b"1" * 32, b"2" * 32
    digests = {
        describe_files(files, np.array(labels), 2).digest
        for files, labels in (([one, two], [0, 1]), ([two, one], [0, 1]), ([one, two], [1, 0]))
    }
    assert len(digests) == 3


def test_stable_order_is_a_fixed_shuffle() -> None:
    assert sorted(shuffle_stably(100, "a")) == list(range(100))
    assert shuffle_stably(10, "digits") == [0, 6, 1, 8, 9, 2, 3, 4, 5, 7]
    assert shuffle_stably(100, "a") != shuffle_stably(100, "b")
