"""Batches of arrays and of image files."""

import dataclasses
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import write_tiny

from expunge.core.epoch import Batch, batch_bounds, draw_epoch
from expunge.data.batches import Share, choose_augmentation, open_split
from expunge.data.decoding import draw_box
from expunge.errors import DataError, UserError
from expunge.formats.dataset import DatasetInfo, load_arrays, load_dataset_info

CPU = torch.device("cpu")
DRAWS = draw_epoch(24, 0.25, torch.Generator().manual_seed(7))
BOUNDS = batch_bounds(24, 7)


def batches_of(
    folder: Path, augment: str, share: Share | None = None, workers: int = 0
) -> list[Batch]:
    split = open_split(folder, load_dataset_info(folder), "train", CPU, workers=workers)
    return list(split.train_batches(DRAWS, BOUNDS, augment, share or Share()))


@pytest.fixture(params=[False, True], ids=["arrays", "files"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data", images=24, shape=(3, 8, 8), files=request.param)


def test_an_epoch_shows_every_image_once_in_the_drawn_order(folder: Path, tmp_path: Path) -> None:
    images_NHWC, labels_N = load_arrays(
        write_tiny(tmp_path / "same", images=24, shape=(3, 8, 8)), "train"
    )
    found = batches_of(folder, "none")
    order = DRAWS.order_N.numpy()
    assert [len(batch.labels_N) for batch in found] == [batch.total for batch in found] == [6] * 4
    assert np.array_equal(torch.cat([b.images_NHWC for b in found]).numpy(), images_NHWC[order])
    assert np.array_equal(torch.cat([b.labels_N for b in found]).numpy(), labels_N[order])
    assert torch.equal(torch.cat([b.replaced_N for b in found]), DRAWS.replaced_N)


def test_flip_mirrors_the_drawn_images(folder: Path) -> None:
    plain, flipped = batches_of(folder, "none"), batches_of(folder, "flip")
    before = torch.cat([b.images_NHWC for b in plain])
    after = torch.cat([b.images_NHWC for b in flipped])
    assert torch.equal(after[DRAWS.flips_N], before[DRAWS.flips_N].flip(2))
    assert torch.equal(after[~DRAWS.flips_N], before[~DRAWS.flips_N])


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_processes_share_what_one_would_see(folder: Path, augment: str) -> None:
    whole = batches_of(folder, augment)
    parts = [batches_of(folder, augment, Share(rank, 4)) for rank in range(4)]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert {share.total for share in shares} == {batch.total}
        assert torch.equal(torch.cat([s.images_NHWC for s in shares]), batch.images_NHWC)
        assert torch.equal(torch.cat([s.labels_N for s in shares]), batch.labels_N)
        assert torch.equal(torch.cat([s.replaced_N for s in shares]), batch.replaced_N)


def test_evaluation_covers_the_split_in_order(folder: Path) -> None:
    split = open_split(folder, load_dataset_info(folder), "test", CPU)
    whole = next(iter(split.eval_batches(100, Share())))
    parts = [p for rank in range(3) for p in split.eval_batches(3, Share(rank, 3))]
    assert len(whole[0]) == 12
    assert torch.equal(torch.cat([images for images, _ in parts]), whole[0])
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])


def test_classes_without_are_left_out(folder: Path) -> None:
    info = load_dataset_info(folder)
    split = open_split(folder, info, "train", CPU, without=(1, 3))
    assert sorted(set(split.labels_N.tolist())) == [0, 2]
    images = next(iter(split.eval_batches(100, Share())))[0]
    assert len(images) == 12


def test_workers_decode_what_this_process_would_and_end_at_once(tmp_path: Path) -> None:
    """At once is before the garbage collector runs: it would wait for each of them."""
    folder = write_tiny(tmp_path, images=24, shape=(3, 12, 10), files=True)
    before = set(active_children())
    here, there = batches_of(folder, "crop-flip"), batches_of(folder, "crop-flip", workers=1)
    assert not set(active_children()) - before
    plain = batches_of(folder, "none")
    for mine, theirs, whole in zip(here, there, plain, strict=True):
        assert torch.equal(mine.images_NHWC, theirs.images_NHWC)
        assert mine.images_NHWC.shape == whole.images_NHWC.shape
        assert not torch.equal(mine.images_NHWC, whole.images_NHWC)


def test_random_boxes_lie_inside_and_follow_their_seed() -> None:
    for seed in range(200):
        left, upper, right, lower = draw_box(30, 50, torch.Generator().manual_seed(seed))
        assert 0 <= left < right <= 50
        assert 0 <= upper < lower <= 30
        assert (right - left) * (lower - upper) >= 0.05 * 1500
    again = [draw_box(30, 50, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert again[0] == again[1]


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    assert draw_box(1, 1000, torch.Generator().manual_seed(0)) == (0, 0, 1000, 1)


@pytest.mark.parametrize(
    ("requested", "shape", "storage", "expected"),
    [
        ("auto", (1, 28, 28), "arrays", "none"),
        ("auto", (3, 32, 32), "arrays", "crop-flip"),
        ("auto", (3, 64, 64), "arrays", "crop-flip"),
        ("auto", (3, 96, 96), "arrays", "flip"),
        ("auto", (3, 224, 224), "files", "crop-flip"),
        ("auto", (1, 224, 224), "files", "none"),
        ("flip", (1, 28, 28), "arrays", "flip"),
    ],
)
def test_augmentation(
    requested: str, shape: tuple[int, int, int], storage: str, expected: str
) -> None:
    info = DatasetInfo("tiny", ("a", "b"), shape, (0.5,), (0.5,), storage, {})
    assert choose_augmentation(requested, info) == expected


def test_a_missing_split(folder: Path) -> None:
    info = dataclasses.replace(load_dataset_info(folder), splits={})
    with pytest.raises(UserError, match="tiny has no split 'train'"):
        open_split(folder, info, "train", CPU)


def test_no_image_left(folder: Path) -> None:
    with pytest.raises(DataError, match="split train of tiny has no image to use"):
        open_split(folder, load_dataset_info(folder), "train", CPU, without=(0, 1, 2, 3))


def test_a_broken_array_file(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    info = load_dataset_info(folder)
    (folder / "train.safetensors").write_bytes(b"short")
    with pytest.raises(
        DataError, match=r"train\.safetensors cannot be read .*prepare the data anew"
    ):
        open_split(folder, info, "train", CPU)


def test_broken_and_missing_image_files(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, images=24, files=True)
    (folder / "train/0/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train/0/0\.png is no image"):
        batches_of(folder, "none")
    (folder / "train/0/0.png").unlink()
    with pytest.raises(DataError, match=r"train/0/0\.png cannot be read .*No such file"):
        batches_of(folder, "none")
