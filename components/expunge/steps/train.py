"""The step that trains a classifier together with its mnemonic codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.formats.dataset import DatasetInfo, load_dataset_info
from expunge.training import trainjob
from expunge.training.spec import OnEpoch, TrainingSpec


def train(
    config: TrainConfig,
    dataset: Path,
    model: Path,
    *,
    checkpoints: Path,
    on_epoch: OnEpoch = lambda epoch, metrics: None,
) -> dict[str, Any]:
    """Train, write the model folder that `expunge.formats.model` describes, and report.

    The same config and data give the same bytes on the same machine. A run that is killed goes on
    from its last epoch in `checkpoints`, to the same bytes; `on_epoch` then gets the epochs before
    again, so that a record of them is whole. It gets train_loss (nats, over images and codes),
    train_accuracy (of images; left out where codes replaced them all), code_accuracy,
    test_accuracy (of the classes that take part), learning_rate (of the last step),
    images_per_second (training alone) and epoch_seconds (with the evaluation).

    Where `EXPUNGE_TRAINJOB` is set, the cluster trains, and the checkpoints are on its volume.

    Returns:
        the last epoch's metrics, test_accuracy_by_class (fractions, None where there are no
        images), epochs, resumed_from_epoch (0 for a run from the start), seconds, and what it ran
        on; all of it JSON.

    Raises:
        UserError: config and data do not go together, training diverged, or there is one machine.
        OperationalError: the same training runs already, weights cannot be downloaded, or the
            cluster failed.
    """
    _check_data(config, load_dataset_info(dataset))
    trainjob.check_nodes(config.nodes)
    spec = TrainingSpec(config, dataset, model, checkpoints)
    if (cluster := trainjob.read_cluster()) is not None:
        from expunge.training.multinode import train_on_nodes

        return train_on_nodes(spec, cluster, on_epoch)
    if config.processes > 1:
        from expunge.training.torchrun import train_under_torchrun

        return train_under_torchrun(spec, on_epoch)
    from expunge.training.loop import train_here

    return train_here(spec, on_epoch)


def _check_data(config: TrainConfig, info: DatasetInfo) -> None:
    """Refuse what the data cannot give, before anything is launched.

    Raises:
        UserError: with the setting, and what the data has.
    """
    _check_classes(config, info)
    missing = {"train", "test"} - set(info.splits)
    if missing:
        raise UserError(
            f"the data set {info.source} has no split {missing.pop()!r}; prepare it with the "
            "splits train and test"
        )
    _check_images(config, info)


def _check_classes(config: TrainConfig, info: DatasetInfo) -> None:
    classes = len(info.class_names)
    unknown = [index for index in config.without if index >= classes]
    if unknown:
        raise UserError(f"without names class {unknown[0]}; the data has 0 to {classes - 1}")
    retained = classes - len(config.without)
    if retained < 2:
        raise UserError(
            f"without leaves {retained} of {classes} classes; a classifier needs two at least"
        )


def _check_images(config: TrainConfig, info: DatasetInfo) -> None:
    names, counts = info.class_names, info.splits["train"].counts
    retained = [index for index in range(len(names)) if index not in config.without]
    empty = [index for index in retained if counts[index] == 0]
    if empty:
        raise UserError(
            f"class {empty[0]} ({names[empty[0]]}) has no training image; add some, or leave it "
            f"out: --without {','.join(map(str, empty))}"
        )
    images = sum(counts[index] for index in retained)
    processes = config.processes * config.nodes
    # A process without an image in a batch would have no gradient to average with the others'.
    if min(config.batch_size, images) < processes:
        raise UserError(
            f"{processes} processes share batches of {min(config.batch_size, images)} "
            "images; choose a larger batch_size or fewer processes"
        )
    if not sum(info.splits["test"].counts[index] for index in retained):
        raise UserError(f"split test of {info.source} has no image of a class that takes part")
