"""The few samples that every model of a validation is shown, and what each model says of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge.core.attacks.case import PARTS, Seen
from expunge.core.attacks.relearning import Relearning, measure_relearning
from expunge.core.epoch import normalise
from expunge.core.grading import battery
from expunge.core.heads import Observed, observe, read_head
from expunge.core.metrics import predict
from expunge.data.batches import open_split
from expunge.device import best_device
from expunge.errors import UserError
from expunge.formats.dataset import DatasetInfo

BATCH = 256
# Fixed: the battery is an instrument, and two validations of one model have to agree.
SEED = 20240606


@dataclass(frozen=True)
class Bench:
    """Raw pixels images_NHWC and labels_N by part, the parts being those of `battery.Rows`."""

    forget: tuple[int, ...]
    parts: Mapping[str, tuple[Tensor, Tensor]]
    mean_C: Tensor
    std_C: Tensor
    device: torch.device
    num_classes: int

    def observe(self, model: nn.Module, part: str) -> Observed:
        """Return what the model says of a part."""
        return observe(model, self._iterate_batches(part), self.num_classes)

    def observe_outputs(self, model: nn.Module, part: str) -> Observed:
        """Return the same of a model whose features cannot be read: its logits stand for them."""
        images, labels = zip(*self._iterate_batches(part), strict=True)
        logits_NC = predict(model, images)
        return Observed(logits_NC, logits_NC, torch.cat(labels))

    def relearn(self, model: nn.Module) -> Relearning:
        """Return how a copy of the model relearns."""
        train, test = self._read_whole("relearn_train"), self._read_whole("relearn_test")
        return measure_relearning(model, train, test, self.forget, seed=SEED)

    def see(self, model: nn.Module) -> Seen:
        """Return everything that the attacks need of a model."""
        observed = {part: self.observe(model, part) for part in PARTS}
        head = read_head(model, self.num_classes)
        return Seen(head=head, relearning=self.relearn(model), **observed)

    def _iterate_batches(self, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        # the pixels stay on the host, as bytes: all parts at once as floats may not fit a GPU
        images_NHWC, labels_N = self.parts[part]
        parts = torch.split(images_NHWC, BATCH), torch.split(labels_N, BATCH)
        for pixels_NHWC, own_N in zip(*parts, strict=True):
            yield self._normalise(pixels_NHWC), own_N.to(self.device)

    def _read_whole(self, part: str) -> tuple[Tensor, Tensor]:
        images_NHWC, labels_N = self.parts[part]
        return self._normalise(images_NHWC), labels_N.to(self.device)

    def _normalise(self, images_NHWC: Tensor) -> Tensor:
        return normalise(images_NHWC.to(self.device), self.mean_C, self.std_C)


def open_bench(
    dataset: Path,
    info: DatasetInfo,
    scale: tuple[Sequence[float], Sequence[float]],
    *,
    forget: Sequence[int],
    retain: Sequence[int],
) -> Bench:
    """Draw the samples of a data set folder; `scale` is the models' mean and std by channel.

    A folder without a training split gives `forget_test` alone.

    Raises:
        UserError: a class that takes part has no image in one of the splits.
        DataError: the data cannot be read.
    """
    host, device = torch.device("cpu"), best_device()
    names = [name for name in ("train", "test") if name in info.splits]
    splits = {name: open_split(dataset, info, name, host) for name in names}
    labels = {name: split.labels_N for name, split in splits.items()}
    generator = torch.Generator().manual_seed(SEED)
    try:
        if "train" in splits:
            drawn = battery.choose_rows(
                labels["train"],
                labels["test"],
                forget=forget,
                retain=retain,
                generator=generator,
            )
            rows = vars(drawn)
        else:
            # a forget without oracles needs no training data, so it may not be here
            wanted = dict.fromkeys(forget, battery.FORGET_TEST)
            rows = {"forget_test": battery.draw_rows(labels["test"], wanted, generator)}
    except ValueError as error:
        raise UserError(
            f"{info.source} has too few images to look into a model: {error}"
        ) from error
    parts = {}
    for part, rows_N in rows.items():
        split = part.rpartition("_")[2]
        parts[part] = splits[split].take(rows_N), labels[split][rows_N]
    mean_C, std_C = (torch.tensor(row, device=device) for row in scale)
    return Bench(
        forget=tuple(forget),
        parts=parts,
        mean_C=mean_C,
        std_C=std_C,
        device=device,
        num_classes=len(info.class_names),
    )
