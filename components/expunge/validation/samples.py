"""The few samples that every model of a validation is shown, and what each model says of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge.core.attacks.case import BODY_PARTS, PARTS, Body, Seen
from expunge.core.attacks.relearning import Relearning, measure_relearning
from expunge.core.blocks import find_blocks
from expunge.core.epoch import normalise
from expunge.core.grading import battery
from expunge.core.heads import Observed, find_head_name, observe, read_head
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
    """Raw pixels images_NHWC and labels_N by part, the parts being those of `battery.Rows`.

    `remarks` say what the parts are drawn from, where it is not what it should be.
    """

    forget: tuple[int, ...]
    parts: Mapping[str, tuple[Tensor, Tensor]]
    mean_C: Tensor
    std_C: Tensor
    device: torch.device
    num_classes: int
    remarks: tuple[str, ...] = ()

    def observe(self, model: nn.Module, part: str, blocks: Sequence[str] = ()) -> Observed:
        """Return what the model says of a part, and what its `blocks` give for it."""
        return observe(model, self._iterate_batches(part), self.num_classes, blocks=blocks)

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
        blocks = find_blocks(model, find_head_name(model, self.num_classes))
        observed = {
            part: self.observe(model, part, blocks if part in BODY_PARTS else ()) for part in PARTS
        }
        head = read_head(model, self.num_classes)
        return Seen(head=head, relearning=self.relearn(model), **observed)

    def see_body(self, model: nn.Module) -> Body:
        """Return what the body checks need of a model."""
        test = self.observe(model, "forget_test")
        # no class has the index -1: where there is no sample, it is one of no image
        sample = self.observe(model, "head_train") if "head_train" in self.parts else test.of(-1)
        return Body(read_head(model, self.num_classes), sample, test)

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
    whole: bool = True,
) -> Bench:
    """Draw the samples of a data set folder.

    Args:
        dataset: the folder.
        info: what it holds.
        scale: the models' mean and standard deviation by channel.
        forget: the forgotten classes' indices.
        retain: the retained classes' indices.
        whole: whether every part is needed, as beside oracles. Else there are those of the body
            checks alone, and a folder without the training images will do.

    Raises:
        UserError: every part is needed, and a class that takes part has no image in one of the
            splits.
        DataError: the data cannot be read.
    """
    host, device = torch.device("cpu"), best_device()
    names = [name for name in ("train", "test") if whole or name in info.splits]
    splits = {name: open_split(dataset, info, name, host) for name in names}
    labels = {name: split.labels_N for name, split in splits.items()}
    try:
        drawn, remarks = _draw(labels, forget, retain, whole=whole)
    except ValueError as error:
        raise UserError(
            f"{info.source} has too few images to look into a model: {error}"
        ) from error
    mean_C, std_C = (torch.tensor(row, device=device) for row in scale)
    return Bench(
        forget=tuple(forget),
        parts={
            part: (splits[split].take(rows_N), labels[split][rows_N])
            for part, (split, rows_N) in drawn.items()
        },
        mean_C=mean_C,
        std_C=std_C,
        device=device,
        num_classes=len(info.class_names),
        remarks=remarks,
    )


def _draw(
    labels: Mapping[str, Tensor], forget: Sequence[int], retain: Sequence[int], *, whole: bool
) -> tuple[dict[str, tuple[str, Tensor]], tuple[str, ...]]:
    """Return the split and the rows of each part, and what is to be said of them.

    `labels` are those of each split that there is.
    """

    def generate() -> torch.Generator:
        return torch.Generator().manual_seed(SEED)

    if whole or _has_all(labels.get("train"), (*forget, *retain)):
        rows = battery.choose_rows(
            labels["train"], labels["test"], forget=forget, retain=retain, generator=generate()
        )
        wanted = vars(rows) if whole else {part: getattr(rows, part) for part in BODY_PARTS}
        return {part: (part.rpartition("_")[2], own_N) for part, own_N in wanted.items()}, ()
    try:
        half = battery.choose_half_rows(
            labels["test"], forget=forget, retain=retain, generator=generate()
        )
    except ValueError as error:
        remark = f"No new head was trained, as the training images are not here and {error}."
        test_N = battery.draw_rows(
            labels["test"], dict.fromkeys(forget, battery.FORGET_TEST), generate()
        )
        return {"forget_test": ("test", test_N)}, (remark,)
    remark = (
        "The training images are not here, so new heads were trained on one half of the test split "
        "and measured on the other."
    )
    return {part: ("test", own_N) for part, own_N in half.items()}, (remark,)


def _has_all(labels_N: Tensor | None, classes: Sequence[int]) -> bool:
    # the images of a class may be deleted already, before the model forgets it
    return labels_N is not None and set(classes) <= set(torch.unique(labels_N).tolist())
