"""A training over several nodes: a TrainJob runs it, and a volume that all pods share carries it.

`expunge.training.volume` lays out the volume, and `expunge.training.node` runs in each pod.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError, OperationalError
from expunge.formats.dataset import load_dataset_info
from expunge.training import volume
from expunge.training.checkpoints import lock_folder
from expunge.training.exchange import ALIVE, EVENTS, read_report, replay_events
from expunge.training.sigterm import exit_on_sigterm
from expunge.training.spec import OnEpoch, TrainingSpec
from expunge.training.trainjob import Cluster, build_train_job
from expunge.training.trainjob_api import Jobs

POLL = 2.0  # seconds
API_PATIENCE = 600.0  # seconds without an answer of the API before the training is given up
# Seconds in which a file that a pod has written shows here: NFS looks again after 60 at the latest.
SETTLING = 90.0
SHOWN = 1000  # characters of each node's output, its last ones, that an error shows

logger = logging.getLogger(__name__)


def train_on_nodes(spec: TrainingSpec, on: Cluster, on_epoch: OnEpoch) -> dict[str, Any]:
    """Train on `nodes` nodes of a cluster, and return the report of the first process.

    Raises:
        ExpungeError: what a process ended with.
        OperationalError: the volume or the API cannot be used, or the job failed.
    """
    from expunge.lifecycle import provenance

    volume.check_mounted(on)
    jobs = Jobs()
    config = spec.config
    key = volume.compute_key(config, spec.dataset)
    name, folder = f"expunge-{key}", Path(on.mount) / "trainings" / key
    classes = range(len(load_dataset_info(spec.dataset).class_names))
    retained = [index for index in classes if index not in config.without]
    with exit_on_sigterm(), volume.name_volume(on), lock_folder(folder):
        # That of a step that was killed: its pods would write into the same folder.
        jobs.remove(name)
        # Before anything is copied: the copy of the data has every class.
        provenance.record_folder(folder, "training", classes)
        try:
            run = volume.fill_folder(folder, spec)
            # A job whose answer was lost may be there all the same, so creating is inside as well.
            try:
                jobs.create(build_train_job(name, config, on, run, _read_owner()))
                logger.info("TrainJob %s: %d nodes of %d", name, config.nodes, config.processes)
                report = _Watch(jobs, name, run, on_epoch).follow()
            finally:
                _end_job(jobs, name, folder)
            shutil.copytree(folder / volume.MODEL, spec.model, dirs_exist_ok=True)
        except BaseException:
            # The error that is on its way says more than one of the clean-up.
            with suppress(OSError, ExpungeError):
                volume.keep_checkpoints(folder, retained)
            raise
        volume.remove_folder(folder)
    return report


class _Watch:
    """What the step has seen so far of its job and of the job's first process."""

    def __init__(self, jobs: Jobs, name: str, run: Path, on_epoch: OnEpoch) -> None:
        self.jobs, self.name, self.run, self.on_epoch = jobs, name, run, on_epoch
        self.beats = 0
        self.position = 0  # in the file of events
        self.epoch = 0  # the last one that was handed on
        self.heard = time.monotonic()  # when the API last answered
        self.ended: float | None = None  # when the job was first seen at its end
        self.state = ""  # what was last logged of it

    def follow(self) -> dict[str, Any]:
        """Hand on what the first process says until there is its report, and return that."""
        while True:
            self._show_life()
            # Before the events: all of them were written before the report.
            report = read_report(self.run)
            self._replay_events()
            if report is not None:
                return report
            self._look_at_job()
            time.sleep(POLL)

    def _show_life(self) -> None:
        self.beats += 1
        (self.run / ALIVE).write_text(str(self.beats))

    def _replay_events(self) -> None:
        # Opened each time: only then does NFS look for what is new.
        with (self.run / EVENTS).open() as events:
            events.seek(self.position)
            replay_events(events, self._tell_once)
            self.position = events.tell()

    def _tell_once(self, epoch: int, metrics: dict[str, float]) -> None:
        # A pod that was started again begins with the epochs before.
        if epoch > self.epoch:
            self.epoch = epoch
            self.on_epoch(epoch, metrics)

    def _look_at_job(self) -> None:
        now = time.monotonic()
        try:
            job = self.jobs.get(self.name)
        except OperationalError as error:
            # The nodes train on without the API, which may be away for minutes in an upgrade.
            if now - self.heard > API_PATIENCE:
                raise
            self._log_state(str(error))
            return
        self.heard = now
        if job is None:
            raise OperationalError(
                f"the TrainJob {self.name} was deleted while it trained; run the pipeline again, "
                "which goes on from the last epoch"
            )
        kind, message = _read_condition(job)
        if kind in ("Complete", "Failed"):
            # Not an end yet: the report may show on this side of the volume a little later.
            self.ended = self.ended or now
            if now - self.ended > SETTLING:
                raise OperationalError(_describe_end(self.name, kind, message, self.run))
        elif not self.epoch:
            # Once an epoch is told it is clear that the pods run.
            self._log_state(message or self.jobs.explain_waiting(self.name))

    def _log_state(self, state: str) -> None:
        if state and state != self.state:
            logger.info("TrainJob %s: %s", self.name, state)
        self.state = state


def _read_owner() -> dict[str, str]:
    """Return this pod, as Kubeflow Pipelines names it to its containers."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return {"name": name, "uid": uid} if name and uid else {}


def _end_job(jobs: Jobs, name: str, folder: Path) -> None:
    """Remove the job and the data. That it cannot be done is no failure of a training.

    The data, which has every class, goes before the pods have ended: that may take longer than the
    30 s that a step has after SIGTERM. Pods that read it still can only fail, and are to end.
    """
    deleted = False
    with _warn_of_errors():
        deleted = jobs.delete(name)
    volume.remove_data(folder)
    if deleted:
        with _warn_of_errors():
            jobs.wait_gone(name)


@contextmanager
def _warn_of_errors() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        logger.warning("%s; it goes with the pod of this step", error)


def _read_condition(job: dict[str, Any]) -> tuple[str, str]:
    """Return the condition that holds, Complete or Failed before Suspended, and its message."""
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


def _describe_end(name: str, kind: str, message: str, run: Path) -> str:
    outputs = sorted(run.glob("output-*.txt"))
    words = [f"{path.name}:\n{path.read_text(errors='replace')[-SHOWN:]}" for path in outputs]
    if kind == "Failed":
        head = f"the TrainJob {name} failed ({message.removeprefix('Failed: ')})"
    else:
        head = f"the TrainJob {name} is complete and left no report"
    if not words:
        return f"{head}; its nodes said nothing: check that they mount the same volume as this step"
    return f"{head}; the last words of its nodes:\n" + "\n".join(words)
