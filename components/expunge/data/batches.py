"""Batches of a data set folder, for training and for evaluation.

Shapes: N images, H height, W width, C channels. Arrays lie on the device as uint8 and are augmented
there; image files are decoded, cropped and mirrored by worker processes. Either way a batch depends
on the epoch's draws alone, not on the number of processes or workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from expunge.core.epoch import Batch, EpochDraws, crop_and_flip, flip, split_evenly
from expunge.data.decoding import FileReader, Job
from expunge.errors import DataError, UserError
from expunge.formats.dataset import DatasetInfo, load_arrays

# Arrays larger than this share of a GPU's free memory stay in the host's, to leave the model room.
DEVICE_SHARE = 0.5
TAKEN_AT_ONCE = 256  # rows that a worker decodes before it hands them on
SMALL = 64  # pixels a side up to which images are cropped within a border of zeros


@dataclass(frozen=True)
class Share:
    """Which part of every batch is this process's."""

    rank: int = 0
    processes: int = 1

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """Return this process's (start, stop) of a batch."""
        low, high = split_evenly(stop - start, self.processes)[self.rank]
        return start + low, start + high


class Split(Protocol):
    """A split whose batches are on the device."""

    @property
    def labels_N(self) -> Tensor:
        """The label of each image that takes part, on the device."""

    def train_batches(
        self, draws: EpochDraws, bounds: Sequence[tuple[int, int]], augment: str, share: Share
    ) -> Iterator[Batch]:
        """Yield an epoch's batches, augmented; `bounds` are positions in the epoch."""

    def eval_batches(self, size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images_NHWC and labels_N of this process's part of the split, in order."""

    def take(self, rows_N: Tensor) -> Tensor:
        """Return the images_NHWC of these rows, in their order."""


def choose_augmentation(requested: str, info: DatasetInfo) -> str:
    """Return `requested`, or for "auto" what is usual for such images: none, flip or crop-flip.

    A crop is one within a border of zeros for arrays, and a random resized crop for files.
    """
    if requested != "auto":
        return requested
    channels, *size = info.input_shape
    # gray sets are mostly digits and letters, which have no mirror images
    if channels == 1:
        return "none"
    return "crop-flip" if info.storage == "files" or max(size) <= SMALL else "flip"


def open_split(
    folder: Path,
    info: DatasetInfo,
    split: str,
    device: torch.device,
    *,
    without: Sequence[int] = (),
    workers: int = 0,
) -> Split:
    """Open a split of a data set folder, less the images of the classes in `without`.

    Raises:
        UserError: the data set has no such split.
        DataError: its files are missing or broken, or no image is left.
    """
    if split not in info.splits:
        raise UserError(
            f"the data set {info.source} has no split {split!r}, only {', '.join(info.splits)}; "
            "prepare it with the splits train and test"
        )
    if info.storage == "files":
        reader = FileReader.open(folder, split, info.input_shape, without)
        opened: Split = FileSplit(reader, device, workers)
    else:
        opened = ArraySplit.open(folder, split, device, without)
    if len(opened.labels_N) == 0:
        raise DataError(f"split {split} of {info.source} has no image to use; check the data")
    return opened


@dataclass(frozen=True)
class ArraySplit:
    """A split that lies in memory: the device's, or the host's where it would not leave room."""

    images_NHWC: Tensor
    labels_N: Tensor
    device: torch.device

    @classmethod
    def open(
        cls, folder: Path, split: str, device: torch.device, without: Sequence[int]
    ) -> "ArraySplit":
        """Read `<split>.safetensors` and put it where it fits."""
        from safetensors import SafetensorError

        try:
            arrays = load_arrays(folder, split)
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(
                f"{folder / split}.safetensors cannot be read ({error}); prepare the data anew"
            ) from error
        # copied: arrays from safetensors are read-only, of which torch would warn
        images_NHWC, labels_N = (torch.tensor(array) for array in arrays)
        if without:
            kept_N = ~torch.isin(labels_N, torch.tensor(list(without)))
            images_NHWC, labels_N = images_NHWC[kept_N], labels_N[kept_N]
        place = device if _fits(images_NHWC.nbytes, device) else torch.device("cpu")
        return cls(images_NHWC.to(place), labels_N.to(device), device)

    def take(self, rows_N: Tensor) -> Tensor:
        """Implement `Split`."""
        place = self.images_NHWC.device
        return self.images_NHWC.index_select(0, rows_N.to(place)).to(self.device)

    def train_batches(
        self, draws: EpochDraws, bounds: Sequence[tuple[int, int]], augment: str, share: Share
    ) -> Iterator[Batch]:
        """Implement `Split`."""
        draws = draws.to(self.device)
        for start, stop in bounds:
            part = slice(*share.within(start, stop))
            rows_N = draws.order_N[part]
            images_NHWC = self.take(rows_N)
            if augment == "crop-flip":
                images_NHWC = crop_and_flip(images_NHWC, draws.shifts_N2[part], draws.flips_N[part])
            elif augment == "flip":
                images_NHWC = flip(images_NHWC, draws.flips_N[part])
            yield Batch(images_NHWC, self.labels_N[rows_N], draws.replaced_N[part], stop - start)

    def eval_batches(self, size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Implement `Split`."""
        low, high = share.within(0, len(self.labels_N))
        for start in range(low, high, size):
            part = slice(start, min(start + size, high))
            yield self.images_NHWC[part].to(self.device), self.labels_N[part]


def _fits(size: int, device: torch.device) -> bool:
    """Return whether this many bytes leave room on the device."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= DEVICE_SHARE * free


class FileSplit:
    """A split of image files, decoded by worker processes; augmented where they are decoded."""

    def __init__(self, reader: FileReader, device: torch.device, workers: int) -> None:
        self.reader, self.device = reader, device
        self.labels_N = torch.tensor(reader.labels, dtype=torch.int64, device=device)
        self.loader = reader.open_loader(workers, pin=device.type == "cuda")

    def train_batches(
        self, draws: EpochDraws, bounds: Sequence[tuple[int, int]], augment: str, share: Share
    ) -> Iterator[Batch]:
        """Implement `Split`."""
        # Plain numbers: a tensor in a job would cross to the workers through shared memory.
        order, flips, seeds = (
            values.tolist() for values in (draws.order_N, draws.flips_N, draws.seeds_N)
        )
        mirror, crop = augment != "none", augment == "crop-flip"
        parts = [share.within(start, stop) for start, stop in bounds]
        batches = [
            [(order[i], seeds[i] if crop else None, mirror and flips[i]) for i in range(low, high)]
            for low, high in parts
        ]
        draws = draws.to(self.device)
        images = self.loader.decode(batches)
        for images_NHWC, (start, stop), part in zip(images, bounds, parts, strict=True):
            rows_N = draws.order_N[slice(*part)]
            yield Batch(
                # from pinned memory, the copy runs beside the step before
                images_NHWC.to(self.device, non_blocking=True),
                self.labels_N[rows_N],
                draws.replaced_N[slice(*part)],
                stop - start,
            )

    def eval_batches(self, size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Implement `Split`."""
        low, high = share.within(0, len(self.labels_N))
        parts = [(start, min(start + size, high)) for start in range(low, high, size)]
        batches: list[list[Job]] = [[(row, None, False) for row in range(*part)] for part in parts]
        for images_NHWC, part in zip(self.loader.decode(batches), parts, strict=True):
            yield images_NHWC.to(self.device, non_blocking=True), self.labels_N[slice(*part)]

    def take(self, rows_N: Tensor) -> Tensor:
        """Implement `Split`."""
        parts = torch.split(rows_N, TAKEN_AT_ONCE)
        batches: list[list[Job]] = [[(row, None, False) for row in p.tolist()] for p in parts]
        return torch.cat(list(self.loader.decode(batches))).to(self.device)
