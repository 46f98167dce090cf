"""A training over several nodes: a TrainJob runs it, and a volume that all pods share carries it.

`MOUNT/trainings/<key>/` holds what the pods need and what they make: `data/`, the weights to begin
with, `checkpoints/`, `model/`, and in `run/` the files that `expunge.training.torchrun` describes.
It is in the ledger for as long as it is there. At the end it is removed; after a failure its
checkpoints stay, where the next attempt goes on.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from expunge.config import TrainConfig
from expunge.errors import ExpungeError, OperationalError, UserError
from expunge.formats.dataset import load_dataset_info
from expunge.training.checkpoints import LOCK, locked
from expunge.training.node import ALIVE
from expunge.training.torchrun import (
    EVENTS,
    OnEpoch,
    heeding_sigterm,
    outcome,
    replay,
    write_arguments,
)
from expunge.training.trainjob import Cluster, train_job
from expunge.training.trainjob_api import Jobs

POLL = 2.0  # seconds
API_PATIENCE = 600.0  # seconds without an answer of the API before the training is given up
# Seconds in which a file that a pod has written shows here: NFS looks again after 60 at the latest.
SETTLING = 90.0
# Seconds without a sign of this step after which its nodes end themselves: longer than it is ever
# silent, and how nodes go whose job could not be deleted.
NODE_PATIENCE = 900.0
DATA = ("data", "data.partial")  # the copy of the data set, and one that is not whole

logger = logging.getLogger(__name__)


def launch_across(
    config: TrainConfig, on: Cluster, dataset: Path, model: Path, on_epoch: OnEpoch
) -> dict[str, Any]:
    """Run `expunge.steps.train` on `config.nodes` nodes of a cluster; the first process's report.

    Raises:
        ExpungeError: what a process ended with.
        OperationalError: the volume or the API cannot be used, or the job failed.
    """
    from expunge.lifecycle import provenance

    root = Path(on.mount)
    if not root.is_dir():
        raise OperationalError(
            f"there is no folder {on.mount}, where the volume of claim {on.claim} should be; "
            "compile the pipelines again and submit what that gives"
        )
    jobs = Jobs()
    key = _key(config, dataset)
    name, folder = f"expunge-{key}", root / "trainings" / key
    classes = range(len(load_dataset_info(dataset).class_names))
    kept = [index for index in classes if index not in config.without]
    with heeding_sigterm(), _usable(on), locked(folder):
        jobs.remove(name)  # of a step that was killed
        provenance.record_folder(folder, "training", classes)
        try:
            run = _prepare(folder, config, dataset)
            try:  # a job whose answer was lost may be there all the same
                jobs.create(train_job(name, config, on, run, _owner()))
                logger.info("TrainJob %s: %d nodes of %d", name, config.nodes, config.processes)
                report = _follow(jobs, name, run, on_epoch)
            finally:
                _end(jobs, name, folder)
            shutil.copytree(folder / "model", model, dirs_exist_ok=True)
        except BaseException:
            with suppress(OSError, ExpungeError):
                _tidy(folder, kept)
            raise
        _remove(folder, keep=())
        shutil.rmtree(folder, ignore_errors=True)
        provenance.record_removal(folder)
    return report


def _end(jobs: Jobs, name: str, folder: Path) -> None:
    """Remove the job and the data. That it cannot be done is no failure of a training.

    The data, which has every class, goes before the pods have ended: that may take longer than the
    30 s that a step has after SIGTERM. Pods that read it still can only fail, and are to end.
    """
    deleted = False
    with _warning():
        deleted = jobs.delete(name)
    for part in DATA:
        shutil.rmtree(folder / part, ignore_errors=True)  # what NFS keeps, `_remove` takes later
    if deleted:
        with _warning():
            jobs.wait_gone(name)


@contextmanager
def _warning() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        logger.warning("%s; it goes with the pod of this step", error)


def _key(config: TrainConfig, dataset: Path) -> str:
    """The same for another attempt at the same training, and for no other."""
    from expunge.lifecycle import provenance

    text = json.dumps([asdict(config), provenance.digest_path(dataset)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _owner() -> dict[str, str]:
    """This pod, as Kubeflow Pipelines names it to its containers."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return {"name": name, "uid": uid} if name and uid else {}


@contextmanager
def _usable(on: Cluster) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperationalError(
            f"the volume of claim {on.claim} at {on.mount} cannot be used ({error}); check its "
            "space, and that the image's user may write there"
        ) from error


def _prepare(folder: Path, config: TrainConfig, dataset: Path) -> Path:
    """Put everything where the pods see it; the folder that they are told of."""
    _remove(folder, keep=("checkpoints", "data"))
    if not (folder / "data").exists():  # whole, since it gets its name last
        shutil.copytree(dataset, folder / "data.partial")
        (folder / "data.partial").replace(folder / "data")
    run = folder / "run"
    run.mkdir()
    write_arguments(
        run,
        _with_start(config, folder, run),
        folder / "data",
        folder / "model",
        folder / "checkpoints",
        launcher=None,
        patience=NODE_PATIENCE,
    )
    return run


def _with_start(config: TrainConfig, folder: Path, run: Path) -> TrainConfig:
    """The weights to begin with on the volume: the pods have no registry, network or other files.

    They stand in a recipe by their digest, so that it stays the same; torchvision's keep their
    name, and lie where its cache is looked for.
    """
    if config.init_from:
        from expunge.training.build import existing

        with existing(config.init_from) as source:
            return replace(config, init_from=_copied(source, folder))
    if config.weights:
        import torch

        from expunge.formats.pretrained import SUFFIXES, pretrained_state

        if config.weights.endswith(SUFFIXES):
            return replace(config, weights=_copied(Path(config.weights), folder))
        pretrained_state(config.arch, config.weights)  # puts it into the cache
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        shutil.copytree(cache, run / "torch" / "hub" / "checkpoints")
    return config


def _copied(source: Path, folder: Path) -> str:
    target = folder / f"start{source.suffix}"
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copyfile(source, target)
    else:
        raise UserError(f"the weights {source} to begin with do not exist; check the path")
    return str(target)


def _follow(jobs: Jobs, name: str, run: Path, on_epoch: OnEpoch) -> dict[str, Any]:
    """Hand on what the first process says until it has written its report."""
    beat = position = told = 0
    heard, ended, state = time.monotonic(), 0.0, ""

    def once(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal told
        if epoch > told:  # a pod that was started again begins with the epochs before
            told = epoch
            on_epoch(epoch, metrics)

    while True:
        beat += 1
        (run / ALIVE).write_text(str(beat))
        report = outcome(run)
        with (run / EVENTS).open() as events:  # anew, so that NFS looks for what is new
            events.seek(position)
            replay(events, once)
            position = events.tell()
        if report is not None:
            return report
        now = time.monotonic()
        try:
            job = jobs.get(name)
            heard = now
        except OperationalError as error:
            if now - heard > API_PATIENCE:
                raise
            state = _say(name, state, str(error))
        else:
            if job is None:
                raise OperationalError(
                    f"the TrainJob {name} was deleted while it trained; run the pipeline again, "
                    "which goes on from the last epoch"
                )
            verdict, message = _verdict(job)
            if verdict in ("Complete", "Failed"):
                ended = ended or now
                if now - ended > SETTLING:
                    raise OperationalError(_lament(name, verdict, message, run))
            elif not told:
                state = _say(name, state, message or jobs.waiting(name))
        time.sleep(POLL)


def _say(name: str, before: str, state: str) -> str:
    if state and state != before:
        logger.info("TrainJob %s: %s", name, state)
    return state


def _verdict(job: dict[str, Any]) -> tuple[str, str]:
    """The condition that holds, Complete or Failed before Suspended, and what is said of it."""
    conditions = {
        condition["type"]: condition
        for condition in job.get("status", {}).get("conditions", ())
        if condition["status"] == "True"
    }
    for kind in ("Complete", "Failed", "Suspended"):
        if kind in conditions:
            texts = (conditions[kind].get(key, "") for key in ("reason", "message"))
            return kind, f"{kind}: {' '.join(filter(None, texts))}"
    return "", ""


def _lament(name: str, verdict: str, message: str, run: Path) -> str:
    outputs = sorted(run.glob("output-*.txt"))
    words = [f"{path.name}:\n{path.read_text(errors='replace')[-1000:]}" for path in outputs]
    if verdict == "Failed":
        head = f"the TrainJob {name} failed ({message.removeprefix('Failed: ')})"
    else:
        head = f"the TrainJob {name} is complete and left no report"
    if not words:
        return f"{head}; its nodes said nothing: check that they mount the same volume as this step"
    return f"{head}; the last words of its nodes:\n" + "\n".join(words)


def _tidy(folder: Path, classes: Collection[int]) -> None:
    """After a failure: leave the checkpoints, if there are any, and nothing else."""
    from expunge.lifecycle import provenance

    _remove(folder, keep=("checkpoints",))
    if any(folder.glob("checkpoints/*/epoch-*")):
        provenance.record_folder(folder, "checkpoints", classes)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        provenance.record_removal(folder)


def _remove(folder: Path, keep: Collection[str]) -> None:
    for entry in folder.iterdir():
        if entry.name in {LOCK, *keep}:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
