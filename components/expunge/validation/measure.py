"""Measurement of a model on test data, on its codes, and beside its exported file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from expunge.core import metrics
from expunge.core.epoch import normalise
from expunge.data.batches import Share, Split, open_split
from expunge.device import best_device
from expunge.errors import UserError
from expunge.formats import onnx
from expunge.formats.dataset import DatasetInfo, load_dataset_info
from expunge.formats.model import StoredModel, load_model
from expunge.validation_report import Accuracies

BATCH = 256


@dataclass(frozen=True)
class Subject:
    """What is judged: a trained model, or an unlearned one beside its original.

    `classes` are those that it was to forget; a trained model has none.
    """

    dataset: Path
    info: DatasetInfo
    model: StoredModel
    original: StoredModel | None = None
    classes: tuple[int, ...] = ()

    @property
    def owner(self) -> StoredModel:
        """The model whose codes and classes the judged one is measured by."""
        return self.original or self.model

    @property
    def classes_that_stay(self) -> list[int]:
        """The classes that the model should know."""
        return [index for index in self.owner.info.retained if index not in self.classes]

    @property
    def split_changes(self) -> list[str]:
        """The splits that are not what the model was trained with, as far as it says."""
        known = self.owner.info.data_digests
        splits = self.info.splits.items()
        return [name for name, part in splits if known.get(name, part.digest) != part.digest]


@dataclass(frozen=True)
class Measurement:
    """What was measured: `samples` are test images by class, `codes_right_K` 1.0 or 0.0 a code.

    `before` and `after` are accuracies by class, of the original (None for a training) and of the
    model. `onnx_difference` is the largest difference of a probability between the exported file
    and the model, `onnx_equal_argmax` whether they agree on the class of every test image.
    """

    samples: tuple[int, ...]
    before: tuple[float, ...] | None
    after: tuple[float, ...]
    codes_right_K: Tensor
    onnx_difference: float
    onnx_equal_argmax: bool


def open_subject(
    dataset: Path, model: Path, base: Path | None = None, classes: Sequence[int] = ()
) -> Subject:
    """Load what is to be judged.

    Raises:
        UserError: the data set does not fit the model.
    """
    info, judged = load_dataset_info(dataset), load_model(model)
    original = load_model(base) if base else None
    _check_fit(info, judged)
    return Subject(dataset, info, judged, original, classes=tuple(classes))


def measure(subject: Subject, onnx_file: Path) -> Measurement:
    """Measure the model on every test image and on every code.

    Accuracies are those of the float32 model; the file, which is what will serve, is compared with
    it.

    Raises:
        UserError: the data lacks images of a class that is looked at.
    """
    split = open_split(subject.dataset, subject.info, "test", torch.device("cpu"))
    batches = (images.numpy() for images, _ in split.eval_batches(BATCH, Share()))
    parity = onnx.parity(subject.model, onnx_file, batches)
    labels_N = split.labels_N
    samples = torch.bincount(labels_N, minlength=len(subject.model.info.class_names)).tolist()
    # of a class that was erased before there may be no images any more
    needed = [*subject.classes, *subject.classes_that_stay]
    empty = [index for index in needed if not samples[index]]
    if empty:
        raise UserError(
            f"{subject.info.source} has no test image of classes {empty}; nothing can be measured"
        )
    before = None
    if subject.original is not None:
        # its file is not here, and it serves already: the model itself is asked
        predictions_N = _predict_classes(subject.original, split)
        before = _measure_accuracies(predictions_N, labels_N, len(samples))
    predictions_N = torch.from_numpy(parity.predictions_N)
    return Measurement(
        samples=tuple(samples),
        before=before,
        after=_measure_accuracies(predictions_N, labels_N, len(samples)),
        codes_right_K=_judge_codes(subject.model, subject.owner),
        # no two probabilities differ by more than 1, and JSON has no number for infinity
        onnx_difference=min(parity.max_abs_difference, 1.0),
        onnx_equal_argmax=parity.equal_argmax,
    )


def _check_fit(info: DatasetInfo, stored: StoredModel) -> None:
    if info.input_shape != stored.info.input_shape:
        raise UserError(
            f"images of {info.source} are {info.input_shape} (C, H, W) and the model takes "
            f"{stored.info.input_shape}; use the data that it was trained on"
        )
    if len(info.class_names) != len(stored.info.class_names):
        raise UserError(
            f"{info.source} has {len(info.class_names)} classes and the model "
            f"{len(stored.info.class_names)}; use the data that it was trained on"
        )


def _measure_accuracies(
    predictions_N: Tensor, labels_N: Tensor, num_classes: int
) -> tuple[float, ...]:
    """Return the accuracy by class; 0 for a class without samples, which no check then reads."""
    accuracy_C = metrics.class_accuracy(predictions_N, labels_N, num_classes)
    return tuple(float(value) for value in accuracy_C.nan_to_num(0.0))


def _predict_classes(stored: StoredModel, split: Split) -> Tensor:
    """Return the class that the model gives each test image, computed on the best device."""
    device = best_device()
    mean_C, std_C = (
        torch.tensor(row, device=device) for row in (stored.info.mean, stored.info.std)
    )
    batches = (
        normalise(images_NHWC.to(device), mean_C, std_C)
        for images_NHWC, _ in split.eval_batches(BATCH, Share())
    )
    return metrics.predict(stored.module.to(device), batches).argmax(1).cpu()


def _judge_codes(judged: StoredModel, owner: StoredModel) -> Tensor:
    """Return 1.0 for each of the owner's codes that the judged model classifies right, else 0.0."""
    with torch.no_grad():
        predictions_K = judged.module(owner.codes.images_KCHW).argmax(1)
    return torch.eq(predictions_K, owner.codes.classes_K).double()


def measure_retained(subject: Subject, per_class: Sequence[float], samples: Sequence[int]) -> float:
    """Return the accuracy over all test images of the classes that the model should know."""
    right = sum(per_class[i] * samples[i] for i in subject.classes_that_stay)
    return right / sum(samples[i] for i in subject.classes_that_stay)


def summarise(subject: Subject, per_class: Sequence[float], samples: Sequence[int]) -> Accuracies:
    """Return the accuracies of a training, or of a forget in the paper's terms."""
    retained = measure_retained(subject, per_class, samples)
    if subject.original is None:
        return Accuracies(per_class=tuple(per_class), test_accuracy=retained)
    return Accuracies(
        per_class=tuple(per_class),
        # the lowest error of the forgotten classes: each of them has to be forgotten
        forget_error=1 - max(per_class[i] for i in subject.classes),
        retain_accuracy=retained,
    )
