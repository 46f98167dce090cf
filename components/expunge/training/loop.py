"""The loop of a training: opens it, runs its epochs, keeps its checkpoints, writes the model.

It is the same in one process and in each of several, and never knows how it was launched.
"""

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from expunge.device import deterministic
from expunge.formats.dataset import load_dataset_info
from expunge.formats.model import Codes, ModelInfo, make_opaque_name, save_model
from expunge.training.build import open_session
from expunge.training.checkpoints import (
    compute_checkpoint_key,
    load_latest,
    lock_folder,
    remove_checkpoints,
    save_checkpoint,
)
from expunge.training.progress import Progress
from expunge.training.session import Session
from expunge.training.spec import OnEpoch, TrainingSpec
from expunge.training.statistics import write_statistics

logger = logging.getLogger(__name__)


def train_here(spec: TrainingSpec, on_epoch: OnEpoch) -> dict[str, Any]:
    """Train in this process, write the model, and return the report of `expunge.steps.train`.

    Only the first process writes and calls `on_epoch`; each returns the same report.

    Raises:
        UserError: config and data do not go together, or training diverged.
        OperationalError: the same training runs already, or weights cannot be downloaded.
    """
    config, info = spec.config, load_dataset_info(spec.dataset)
    retained = [index for index in range(len(info.class_names)) if index not in config.without]
    started = time.monotonic()
    with deterministic(), open_session(config, info, spec.dataset) as session:
        folder = spec.checkpoints / compute_checkpoint_key(session.recipe)
        recording = session.first and spec.keeps_ledger
        with lock_folder(folder) if session.first else nullcontext():
            # Behind the lock: the others must not load what another training still writes.
            session.wait()
            # Before the first checkpoint: one that the ledger does not know would never be found.
            if recording:
                _record_checkpoints(folder, retained)
            report = _run_epochs(session, folder, on_epoch)
            if session.first:
                statistics = write_statistics(session, spec.model)
                # The model first: a process killed in between only writes it again.
                _write_model(session, spec.model)
                report["statistics"] = statistics
                remove_checkpoints(folder)
            if recording:
                _record_removal(folder)
            # Nobody leaves before the model is whole; torchrun would take that for the end.
            session.wait()
    return {**report, "seconds": time.monotonic() - started}


def _record_checkpoints(folder: Path, classes: list[int]) -> None:
    # In here: the ledger's database takes half a second to import, in one process of many.
    from expunge.lifecycle import provenance

    provenance.record_folder(folder, "checkpoints", classes)


def _record_removal(folder: Path) -> None:
    from expunge.lifecycle import provenance

    provenance.record_removal(folder)


def _run_epochs(session: Session, folder: Path, on_epoch: OnEpoch) -> dict[str, Any]:
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
            metrics = session.run_epoch(epoch, progress.show_step)
            history.append(metrics)
            if session.first:
                # The checkpoint first: an epoch that was reported is never trained again.
                save_checkpoint(folder, session.make_checkpoint(epoch, history))
                on_epoch(epoch, metrics)
                progress.show_epoch(epoch, metrics)
    return {
        **history[-1],
        # Measured anew: a run that was killed after its last epoch has trained none.
        "test_accuracy_by_class": session.measure_test_accuracy()[1],
        "epochs": epochs,
        "resumed_from_epoch": done,
        "precision": session.precision,
        "device": session.device_name,
        "processes": session.config.processes,
        "nodes": session.config.nodes,
    }


def _write_model(session: Session, model: Path) -> None:
    config, info = session.config, session.info
    # Not even the name of a class that took no part goes into the model.
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
