"""The step that trains a classifier together with its mnemonic codes.

`python -m expunge.steps.train ARGUMENTS.json` is how torchrun starts it in several processes.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.formats.dataset import DatasetInfo, load_dataset_info
from expunge.formats.files import read_json, write_json
from expunge.formats.model import Codes, ModelInfo, make_opaque_name, save_model
from expunge.training import trainjob
from expunge.training.checkpoints import checkpoint_key, load_latest, locked, remove_checkpoints
from expunge.training.multinode import launch_across
from expunge.training.torchrun import REPORT, launch, reporting

if TYPE_CHECKING:
    from expunge.training.session import Session

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    dataset: Path,
    model: Path,
    *,
    checkpoints: Path,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
) -> dict[str, Any]:
    """Train, write the model folder that `expunge.formats.model` describes, and report.

    The same config and data give the same bytes on the same machine. A run that is killed goes on
    from its last epoch in `checkpoints`, to the same bytes; `on_epoch` then gets the epochs before
    again, so that a record of them is whole. It gets train_loss (nats, over images and codes),
    train_accuracy (of images; left out where codes replaced them all), code_accuracy,
    test_accuracy (of the classes that take part), learning_rate (of the last step),
    images_per_second (training alone) and epoch_seconds (with the evaluation).

    Returns:
        the last epoch's metrics, test_accuracy_by_class (fractions, None where there are no
        images), epochs, resumed_from_epoch (0 for a run from the start), seconds, and what it ran
        on; all of it JSON.

    Where `EXPUNGE_TRAINJOB` is set, the cluster trains, and the checkpoints are on its volume.

    Raises:
        UserError: config and data do not go together, training diverged, or there is one machine.
        OperationalError: the same training runs already, weights cannot be downloaded, or the
            cluster failed.
    """
    info = load_dataset_info(dataset)
    _check(config, info)
    cluster = trainjob.cluster()
    if cluster is not None:
        return launch_across(config, cluster, dataset, model, on_epoch)
    trainjob.check_nodes(config.nodes)
    if config.processes > 1:
        return launch(config, dataset, model, checkpoints, on_epoch)
    return _train_here(config, info, dataset, model, checkpoints, on_epoch)


def _check(config: TrainConfig, info: DatasetInfo) -> None:
    names = info.class_names
    unknown = [index for index in config.without if index >= len(names)]
    if unknown:
        raise UserError(f"without names class {unknown[0]}; the data has 0 to {len(names) - 1}")
    if len(names) - len(config.without) < 2:
        raise UserError(
            f"without leaves {len(names) - len(config.without)} of {len(names)} classes; "
            "a classifier needs two at least"
        )
    missing = {"train", "test"} - set(info.splits)
    if missing:
        raise UserError(
            f"the data set {info.source} has no split {missing.pop()!r}; prepare it with the "
            "splits train and test"
        )
    retained = [index for index in range(len(names)) if index not in config.without]
    counts = info.splits["train"].counts
    empty = [index for index in retained if counts[index] == 0]
    if empty:
        raise UserError(
            f"class {empty[0]} ({names[empty[0]]}) has no training image; add some, or leave it "
            f"out: --without {','.join(map(str, empty))}"
        )
    images = sum(counts[index] for index in retained)
    processes = config.processes * config.nodes
    if min(config.batch_size, images) < processes:
        raise UserError(
            f"{processes} processes share batches of {min(config.batch_size, images)} "
            "images; choose a larger batch_size or fewer processes"
        )
    if not sum(info.splits["test"].counts[index] for index in retained):
        raise UserError(f"split test of {info.source} has no image of a class that takes part")


def _train_here(
    config: TrainConfig,
    info: DatasetInfo,
    dataset: Path,
    model: Path,
    checkpoints: Path,
    on_epoch: Callable[[int, dict[str, float]], None],
    *,
    recorded: bool = True,
) -> dict[str, Any]:
    """In this process. Its checkpoints go into the ledger unless somebody else has seen to that."""
    from expunge.device import deterministic
    from expunge.lifecycle import provenance
    from expunge.training.build import open_session

    classes = [i for i in range(len(info.class_names)) if i not in config.without]
    started = time.monotonic()
    with deterministic(), open_session(config, info, dataset) as session:
        folder = checkpoints / checkpoint_key(session.recipe)
        with locked(folder) if session.first else nullcontext():
            session.wait()
            if session.first and recorded:
                provenance.record_folder(folder, "checkpoints", classes)
            report = _run(session, folder, on_epoch)
            if session.first:
                _write(session, model)
                remove_checkpoints(folder)
                if recorded:
                    provenance.record_removal(folder)
            session.wait()
    return {**report, "seconds": time.monotonic() - started}


def _run(
    session: Session, folder: Path, on_epoch: Callable[[int, dict[str, float]], None]
) -> dict[str, Any]:
    from expunge.training.checkpoints import save_checkpoint
    from expunge.training.progress import Progress

    epochs, done = session.config.epochs, 0
    history: list[dict[str, float]] = []
    checkpoint = load_latest(folder)
    if checkpoint is not None:
        session.restore(checkpoint)
        done, history = checkpoint.epoch, list(checkpoint.extra["history"])
        logger.info("going on after epoch %d of %d from a checkpoint", done, epochs)
        if session.first:
            for epoch, metrics in enumerate(history, start=1):
                on_epoch(epoch, metrics)
    with Progress(epochs, done, shown=session.first) as progress:
        for epoch in range(done + 1, epochs + 1):
            metrics = session.run_epoch(epoch, progress.step)
            history.append(metrics)
            if session.first:
                save_checkpoint(folder, session.checkpoint(epoch, history))
                on_epoch(epoch, metrics)
                progress.epoch(epoch, metrics)
    return {
        **history[-1],
        "test_accuracy_by_class": session.test_accuracy()[1],
        "epochs": epochs,
        "resumed_from_epoch": done,
        "precision": session.precision,
        "device": session.device_name,
        "processes": session.config.processes,
        "nodes": session.config.nodes,
    }


def _write(session: Session, model: Path) -> None:
    config, info = session.config, session.info
    names = tuple(
        make_opaque_name(index) if index in config.without else name
        for index, name in enumerate(info.class_names)
    )
    described = ModelInfo(
        arch=config.arch,
        class_names=names,
        input_shape=info.input_shape,
        mean=info.mean,
        std=info.std,
        source=info.source,
        data_digests={split: part.digest for split, part in info.splits.items()},
        forgotten=tuple(sorted(config.without)),
        settings=session.recipe["config"],
    )
    codes = Codes(session.inputs.codes_KCHW, session.inputs.classes_K)
    save_model(model, described, session.module.state_dict(), codes)


def main(arguments: Path) -> None:
    """One of torchrun's processes, as `expunge.training.torchrun` starts it."""
    import os

    raw = read_json(arguments)
    settings = {**raw["config"], "without": tuple(raw["config"]["without"])}
    dataset, model, checkpoints = (Path(raw[key]) for key in ("dataset", "model", "checkpoints"))
    first = os.environ["RANK"] == "0"
    with reporting(arguments.parent, raw["launcher"], first=first) as on_epoch:
        info = load_dataset_info(dataset)
        config = TrainConfig(**settings)
        report = _train_here(
            config,
            info,
            dataset,
            model,
            checkpoints,
            on_epoch,
            recorded=raw["launcher"] is not None,
        )
        if first:
            write_json(arguments.with_name(REPORT), report)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
