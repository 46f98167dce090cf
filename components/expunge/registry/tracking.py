"""MLflow runs: one a pipeline. The command holds it open; the steps attach and never end it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from expunge import environment, processes
from expunge.errors import UserError
from expunge.registry.store import connect, ensure_experiment, iterate_pages, translate_errors

MODEL_TAG, PIPELINE_TAG, KEY_TAG = "expunge.model", "expunge.pipeline", "expunge.pipeline_run"
HOLDER_TAG = "expunge.holder"  # the process that runs the pipeline, if it runs on one machine
RUN_ID = "MLFLOW_RUN_ID"
BATCH = 100  # MLflow's limit on the tags, and on the params, of one request; metrics take 1000


@contextmanager
def open_run(kind: str, model: str, params: Mapping[str, Any]) -> Iterator[str]:
    """Open the MLflow run of a whole pipeline while the body runs, and yield its id.

    It attaches to `MLFLOW_RUN_ID` where that is set and makes a run otherwise. System metrics are
    sampled every second. The run ends as FINISHED, as KILLED on a KeyboardInterrupt, and as FAILED
    on anything else that is raised.
    """
    run_id = _start_run(kind, model, params)
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        import mlflow

        if status == "FINISHED":
            with translate_errors("end the run"):
                mlflow.end_run(status)
        else:
            with suppress(Exception):  # what the body raised says more than a store that is down
                mlflow.end_run(status)


@translate_errors("start a run")
def _start_run(kind: str, model: str, params: Mapping[str, Any]) -> str:
    import mlflow

    run_id = _find_preset_run(connect()) or _create_run(connect(), model, kind)
    mlflow.start_run(run_id=run_id, log_system_metrics=True)
    marks = {MODEL_TAG: model, PIPELINE_TAG: kind}
    log_report(run_id, params, metrics={}, tags=marks, files={})
    return run_id


@translate_errors("attach to a run")
def attach_run(model: str, kind: str) -> str:
    """Return the id of the MLflow run that a step logs into.

    It is `MLFLOW_RUN_ID`; else the run of this model whose tag `expunge.pipeline_run` is
    `EXPUNGE_PIPELINE_RUN`; else a new one with that tag, which stays open for the other steps.
    """
    client = connect()
    preset = _find_preset_run(client)
    if preset is not None:
        return preset
    key = environment.pipeline_run()
    if not key:
        return _create_run(client, model, kind)
    for run in _search_runs(client, model, key):
        return str(run.info.run_id)
    return _create_run(client, model, kind)


def _search_runs(client: Any, model: str, key: str) -> Iterator[Any]:
    """Yield the MLflow runs of a pipeline run, the first started first."""
    if "'" in key:
        raise UserError(f"{environment.PIPELINE_RUN} is {key!r}; expected a name without quotes")
    query = {
        "experiment_ids": [ensure_experiment(client, model)],
        "filter_string": f"tags.`{KEY_TAG}` = '{key}'",
        "order_by": ["attributes.start_time ASC"],
    }
    return iterate_pages(client.search_runs, **query)


@translate_errors("delete a run")
def discard_run(run_id: str) -> None:
    """Delete a run in which nothing was done, unless somebody else made it."""
    if os.environ.get(RUN_ID) != run_id:
        connect().delete_run(run_id)


@translate_errors("end a run that was left")
def abandon_runs(model: str) -> None:
    """End what forget runs of this machine left whose process was killed.

    Their steps are ended, the files of a version that has not become one are deleted, and the runs
    are closed as KILLED.
    """
    client = connect()
    query = f"attributes.status = 'RUNNING' and tags.`{PIPELINE_TAG}` = 'forget'"
    found = iterate_pages(
        client.search_runs,
        experiment_ids=[ensure_experiment(client, model)],
        filter_string=query,
    )
    for run in list(found):  # whole before a run is closed, which would move the next pages
        if not processes.has_ended(run.data.tags.get(HOLDER_TAG)):
            continue
        processes.end_leftovers(run.data.tags[KEY_TAG])
        _end_run(client, run, "KILLED")


@translate_errors("end a run")
def end_pipeline(model: str, key: str, status: str) -> None:
    """End what is open of a pipeline run none of whose steps works any more: FINISHED or FAILED.

    Files of a version that has not become one are deleted.
    """
    client = connect()
    for run in list(_search_runs(client, model, key)):
        _end_run(client, run, status)


def _end_run(client: Any, run: Any, status: str) -> None:
    """Close a run, and delete its files of a version that has not become one."""
    run_id = run.info.run_id
    whole = {entry.source for entry in client.search_model_versions(f"run_id = '{run_id}'")}
    left = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    for entry in left:
        if f"models:/{entry.model_id}" not in whole:
            with _suppress_missing():  # another process was first
                client.delete_logged_model(entry.model_id)
    if run.info.status == "RUNNING":
        client.set_terminated(run_id, status)


def _find_preset_run(client: Any) -> str | None:
    """Return the run that `MLFLOW_RUN_ID` names; `mlflow run` sets it."""
    run_id = os.environ.get(RUN_ID)
    if not run_id:
        return None
    try:
        client.get_run(run_id)
    except Exception as error:
        if not _is_missing(error):
            raise
        raise UserError(f"{RUN_ID} is {run_id!r}, and there is no such run; unset it") from error
    return run_id


@contextmanager
def _suppress_missing() -> Iterator[None]:
    """Go on where MLflow says that what the body names is not there."""
    try:
        yield
    except Exception as error:
        if not _is_missing(error):
            raise


def _is_missing(error: Exception) -> bool:
    return getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def _create_run(client: Any, model: str, kind: str) -> str:
    """Create a run with the marks by which other steps find it, and return its id."""
    marks = {KEY_TAG: environment.pipeline_run(), HOLDER_TAG: environment.holder()}
    run = client.create_run(
        ensure_experiment(client, model),
        tags={
            MODEL_TAG: model,
            PIPELINE_TAG: kind,
            **{tag: value for tag, value in marks.items() if value},
        },
        run_name=f"{kind} {time.strftime('%Y-%m-%d %H:%M:%S')}",
    )
    return str(run.info.run_id)


def log_epoch(run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
    """Log the metrics of one epoch, which is their step."""
    with translate_errors("log an epoch"):
        _log_batches(connect(), run_id, metrics=metrics, step=epoch)


def make_epoch_logger(
    model: str, kind: str = "train", seed: int = 0
) -> Callable[[int, Mapping[str, float]], None]:
    """Return a callback that logs each epoch into the attached run; the first imports mlflow.

    A run of kind "oracles" has several trainings: the metrics of each begin with `oracle-<seed>/`.
    """
    run_id, prefix = "", f"oracle-{seed}/" if kind == "oracles" else ""

    def log(epoch: int, metrics: Mapping[str, float]) -> None:
        nonlocal run_id
        run_id = run_id or attach_run(model, kind)
        log_epoch(run_id, epoch, {prefix + key: value for key, value in metrics.items()})

    return log


def log_report(
    run_id: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    files: Mapping[str, Path],
) -> None:
    """Log all of it into a run without ending it; `files` maps an artifact's path to a file here.

    A param that the run has already keeps its value: MLflow's are written once, and `mlflow run`
    sets some in its own spelling.
    """
    with translate_errors("log a report"):
        client = connect()
        known = client.get_run(run_id).data.params if params else {}
        fresh = {key: value for key, value in params.items() if key not in known}
        _log_batches(client, run_id, params=fresh, metrics=metrics, tags=tags)
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for name, path in files.items():
                    target = Path(folder) / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                client.log_artifacts(run_id, folder)


def _log_batches(
    client: Any,
    run_id: str,
    *,
    params: Mapping[str, Any] = MappingProxyType({}),
    metrics: Mapping[str, float],
    tags: Mapping[str, str] = MappingProxyType({}),
    step: int = 0,
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    entries = {
        "params": (Param(key, str(value)) for key, value in params.items()),
        "metrics": (Metric(key, float(value), now, step) for key, value in metrics.items()),
        "tags": (RunTag(key, str(value)) for key, value in tags.items()),
    }
    for kind, rows in entries.items():
        while part := list(islice(rows, BATCH)):
            client.log_batch(run_id, **{kind: part})


@translate_errors("read an artifact")
def read_artifact(run_id: str, name: str) -> bytes:
    """Return the bytes of a run's artifact, such as `validation.json`."""
    import mlflow

    client = connect()
    folder, _, _ = name.rpartition("/")
    if name not in [entry.path for entry in client.list_artifacts(run_id, folder or None)]:
        raise UserError(f"run {run_id} has no artifact {name!r}; was it recorded?")
    with tempfile.TemporaryDirectory() as target:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, dst_path=target
        )
        return Path(path).read_bytes()
