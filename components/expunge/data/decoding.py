"""Image files of a data set folder, decoded by the worker processes of a torch DataLoader.

Shapes: N images, H height, W width, C channels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from expunge.data.images import Box, decode_box, decode_image
from expunge.errors import DataError
from expunge.formats.files import read_json

# Which image, the seed of its random crop (None: cut around the centre), and whether to mirror it.
Job = tuple[int, int | None, bool]

# Szegedy et al. (2015), section 6: the crop's share of the image's area, and its width over height.
AREA = (0.08, 1.0)
PROPORTION = (3 / 4, 4 / 3)


def draw_box(height: int, width: int, generator: torch.Generator) -> Box:
    """Draw a box of random area and proportions at a random place; the whole image if none fits."""
    # ten tries, as torchvision's random resized crop has
    area, proportion, down, right = torch.rand((4, 10), generator=generator).tolist()
    low, high = (math.log(value) for value in PROPORTION)
    for share, shape, y, x in zip(area, proportion, down, right, strict=True):
        pixels = height * width * (AREA[0] + share * (AREA[1] - AREA[0]))
        ratio = math.exp(low + shape * (high - low))
        box_width, box_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(x * (width - box_width + 1))
            upper = int(y * (height - box_height + 1))
            return left, upper, left + box_width, upper + box_height
    return 0, 0, width, height


@dataclass(frozen=True)
class FileReader(Dataset[np.ndarray | str]):
    """Decodes one image at a time; it travels to the workers, so it holds no open file."""

    folder: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    input_shape: tuple[int, int, int]

    @classmethod
    def open(
        cls,
        folder: Path,
        split: str,
        input_shape: tuple[int, int, int],
        without: Sequence[int] = (),
    ) -> "FileReader":
        """Read `<split>.json`, a list of [relative path, label], less the classes in `without`."""
        listed = read_json(folder / f"{split}.json")
        kept = [(path, label) for path, label in listed if label not in set(without)]
        paths, labels = zip(*kept, strict=True) if kept else ((), ())
        return cls(folder, tuple(paths), tuple(labels), input_shape)

    def __getitem__(self, job: Job) -> np.ndarray | str:
        """Return the pixels_HWC, uint8, or what is wrong as text.

        An error would reach the caller as a traceback of the worker; text crosses as it is.
        """
        row, seed, mirror = job
        path = self.folder / self.paths[row]
        try:
            data = path.read_bytes()
            if seed is None:
                pixels_HWC = decode_image(data, str(path), self.input_shape)
            else:
                generator = torch.Generator().manual_seed(seed)
                pixels_HWC = decode_box(
                    data, str(path), self.input_shape, lambda h, w: draw_box(h, w, generator)
                )
        except OSError as error:
            return f"{path} cannot be read ({error}); prepare the data anew"
        except DataError as error:
            return str(error)
        # a view: `_stack` copies the pixels anyway
        return pixels_HWC[:, ::-1] if mirror else pixels_HWC

    def open_loader(self, workers: int, *, pin: bool) -> "Loader":
        """Start worker processes for this reader; 0 decodes in this process."""
        return Loader(self, workers, pin)


class Loader:
    """A DataLoader whose workers live on from epoch to epoch."""

    def __init__(self, reader: FileReader, workers: int, pin: bool) -> None:
        # An object of its own: with this one in a cycle, the garbage collector would close the
        # workers' queues before the DataLoader can stop them, and then wait for 5 s.
        self.sampler = _Jobs()
        options: dict[str, Any] = {}
        if workers:
            # "spawn": a fork would copy the locks of this process's threads in whatever state
            options = {"multiprocessing_context": "spawn", "persistent_workers": True}
        self.loader: DataLoader[np.ndarray | str] = DataLoader(
            reader,
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=_stack,
            pin_memory=pin,
            # its own, since a DataLoader would draw from the default one
            generator=torch.Generator(),
            **options,
        )

    def decode(self, batches: list[list[Job]]) -> Iterator[Tensor]:
        """Yield the images_NHWC of each batch, in order.

        Raises:
            DataError: a file is missing or no sound image.
        """
        # The DataLoader asks the sampler anew at each pass, so its workers live on with new jobs.
        self.sampler.jobs = batches
        for images in self.loader:
            if isinstance(images, str):
                raise DataError(images)
            yield images


class _Jobs:
    """Batch sampler of a DataLoader: the samples of each batch."""

    def __init__(self) -> None:
        self.jobs: list[list[Job]] = []

    def __iter__(self) -> Iterator[list[Job]]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


def _stack(items: list[np.ndarray | str]) -> Tensor | str:
    """Return the images as one tensor, or the first error's text."""
    broken = next((item for item in items if isinstance(item, str)), None)
    return broken if broken is not None else torch.from_numpy(np.stack(items))
