"""Runs of the pipelines on Kubeflow Pipelines: their start, and how they stand.

The server's tasks are the nodes of an Argo workflow: a pipeline's task `train` is the node `train`
and a node `train-driver` before it, and there are nodes for what only holds the others together.
Times that are not there yet come as 1970, states of what was left out as unspecified, and versions
up to 2.17 fill in neither a task's error nor its pod.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from expunge.errors import OperationalError, UserError
from expunge_pipelines.kubeflow.connection import (
    is_missing,
    is_passing,
    link_run,
    translate_errors,
)
from expunge_pipelines.kubeflow.uploads import PREFIX, ensure_experiment, filter_names

SUCCEEDED, FAILED, CANCELED = "SUCCEEDED", "FAILED", "CANCELED"
SKIPPED, PENDING, RUNNING = "SKIPPED", "PENDING", "RUNNING"
CANCELING, PAUSED = "CANCELING", "PAUSED"
ENDED = (SUCCEEDED, FAILED, CANCELED, SKIPPED)
# How a run that has ended came out. A rejection is told by its tasks: what the gate said is
# recorded, and nothing was registered.
PROMOTED, REJECTED, NOTHING_TO_DO, DONE = "promoted", "rejected", "nothing to do", "done"
BROKEN, CANCELLED, UNKNOWN = "failed", "cancelled", "unknown"
# The task that records what the gate said. A schedule that was made before the task had its name
# is pinned to a pipeline that calls it `record`.
RECORDING = ("log-run", "record")

ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]*")
DRIVER = "-driver"
# Nodes that are no task of a pipeline; the first is the workflow, named after the pipeline.
NODES = re.compile(
    r"expunge-.*|root|executor.*|iteration.*|for-loop-.*|condition-.*|exit-handler-.*|.*\.onExit"
)
COPY = re.compile(r"-\d+$")  # of a step that stands several times in a pipeline
# What a task is called that has several nodes (of a loop): the first of these that one of them is.
WORST = (FAILED, CANCELED, CANCELING, RUNNING, PAUSED, PENDING, SUCCEEDED, SKIPPED)


def start_run(
    client: Any,
    kind: str,
    name: str,
    *,
    version: Any,
    parameters: Mapping[str, Any],
    service_account: str | None = None,
) -> dict[str, Any]:
    """Start a run of a pipeline's version for model `name`, and return what `read_run` does.

    Where the answer is lost, the server is asked for the run, by a name that no other has.

    Raises:
        OperationalError: the cluster cannot be reached or refuses.
    """
    label = f"{PREFIX}{kind}-{name}-{secrets.token_hex(4)}"
    with translate_errors("make the experiment"):
        where = ensure_experiment(client, name)
    try:
        with translate_errors("start the run"):
            kfp_run = client.run_pipeline(
                experiment_id=where,
                job_name=label,
                params=dict(parameters),
                pipeline_id=version.pipeline_id,
                version_id=version.pipeline_version_id,
                enable_caching=None,  # each task has its own setting, which this would override
                service_account=service_account,
            )
    except OperationalError as error:
        if not is_passing(error):
            raise
        with translate_errors(
            f"say whether it started run {label}, so look before you start another"
        ):
            found = client.list_runs(experiment_id=where, filter=filter_names("EQUALS", label)).runs
        if not found:
            raise
        kfp_run = found[0]
    return _build_document(kfp_run)


def check_id(run: str) -> str:
    """Return the id of a run, from the id or the link that `expunge submit` printed.

    Raises:
        UserError: it is neither.
    """
    id_ = run.strip().rpartition("/")[2]
    if ID.fullmatch(id_) is None:
        raise UserError(
            f"the run {run!r} is neither an id nor a link; give what `expunge submit` printed"
        )
    return id_


def read_run(client: Any, run: str) -> dict[str, Any]:
    """Return how a run stands, and each of its tasks; `outcome` is None until it has ended.

    Raises:
        UserError: there is no such run.
        OperationalError: the cluster cannot be reached or refuses.
    """
    from kfp_server_api import ApiException

    with translate_errors(f"show run {run}"):
        try:
            found = client.get_run(run)
        except ApiException as error:
            if not is_missing(error):
                raise
            raise UserError(
                f"there is no run {run!r} at {link_run(run).partition('/#')[0]}; expected an id "
                "that `expunge submit` printed there"
            ) from error
    return _build_document(found)


def _build_document(kfp_run: Any) -> dict[str, Any]:
    tasks = _list_tasks((kfp_run.run_details.task_details if kfp_run.run_details else None) or [])
    state, error = _read_state(kfp_run.state) or PENDING, _find_message([kfp_run])
    begun, ended = _read_moment(kfp_run.created_at), _read_moment(kfp_run.finished_at)
    return {
        "run": kfp_run.run_id,
        "name": kfp_run.display_name,
        "state": state,
        "outcome": _judge_outcome(kfp_run, state, tasks),
        "link": link_run(kfp_run.run_id),
        "created_at": begun.isoformat() if begun else None,
        "finished_at": ended.isoformat() if ended else None,
        "error": error,
        "tasks": tasks,
    }


def _judge_outcome(kfp_run: Any, state: str, tasks: Iterable[Mapping[str, Any]]) -> str | None:
    states = _merge_copies(tasks)
    if state not in ENDED:
        return None
    if state != SUCCEEDED:  # Argo calls what was terminated failed
        stopped = any(entry.state == CANCELING for entry in kfp_run.state_history or [])
        return CANCELLED if stopped or state == CANCELED else BROKEN
    if states.get("promote") == SUCCEEDED:
        return PROMOTED
    if not states or any(state not in ENDED for state in states.values()):
        return UNKNOWN  # what the server has of the tasks is older than what it has of the run
    if states.get("validate") == SUCCEEDED:
        over = SUCCEEDED in map(states.get, RECORDING) and states.get("register") != SUCCEEDED
        return REJECTED if over else UNKNOWN
    return NOTHING_TO_DO if states.get("claim-requests") == SUCCEEDED else DONE


def _merge_copies(tasks: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the state of each step: of one that stands several times, as in a ladder, the first
    that is not skipped.
    """
    states: dict[str, str] = {}
    for task in tasks:
        name = COPY.sub("", task["name"])
        if states.get(name, SKIPPED) == SKIPPED:
            states[name] = task["state"]
    return states


def _list_tasks(details: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the pipeline's tasks, in the order in which they started."""
    nodes: dict[str, list[Any]] = {}
    for detail in details:
        name = detail.display_name or ""
        is_driver = name.endswith(DRIVER)
        task = name.removesuffix(DRIVER)
        if NODES.fullmatch(task):
            if not (is_driver and detail.state == FAILED):
                continue
            task = name  # a condition that could not be evaluated
        nodes.setdefault(task, []).append(detail)
    tasks = [_describe_task(name, found) for name, found in nodes.items()]
    return sorted(tasks, key=lambda task: (task["started_at"] or "9", task["name"]))


def _describe_task(name: str, nodes: list[Any]) -> dict[str, Any]:
    drivers = [node for node in nodes if node.display_name.endswith(DRIVER)]
    own = [node for node in nodes if node not in drivers]
    states = [_read_state(node.state) or SKIPPED for node in own]
    if any(node.state == FAILED for node in drivers):
        states.append(FAILED)
    starts = [moment for node in own or drivers if (moment := _read_moment(node.start_time))]
    ends = [moment for node in own if (moment := _read_moment(node.end_time))]
    state = next((state for state in WORST if state in states), PENDING)
    over = starts and ends and state in ENDED
    return {
        "name": name,
        "state": state,
        "started_at": min(starts).isoformat() if starts else None,
        "seconds": (max(ends) - min(starts)).total_seconds() if over else None,
        "error": _find_message([*own, *drivers]),
        "pod": next((node.pod_name for node in own if node.pod_name), None),
    }


def _find_message(entries: Iterable[Any]) -> str | None:
    """Return the last error that the server has for one of these."""
    for entry in entries:
        for part in (entry, *reversed(entry.state_history or [])):
            if part.error and part.error.message:
                return " ".join(part.error.message.split())
    return None


def _read_state(state: str | None) -> str | None:
    return None if state == "RUNTIME_STATE_UNSPECIFIED" else state


def _read_moment(value: datetime | None) -> datetime | None:
    return value if value and value.timestamp() > 0 else None
