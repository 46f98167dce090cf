"""Recurring runs of the forget pipeline on Kubeflow Pipelines, each pinned to one version of it.

A schedule of model NAME is the recurring run `expunge-forget-NAME`. A version of the pipeline is
named by its content, so the same code is uploaded once.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge_pipelines.client import compile_pipeline
from expunge_pipelines.cluster import api_errors, connect
from expunge_pipelines.cron import check_cron
from expunge_pipelines.settings import ClusterSettings

PIPELINE = "expunge-forget"
PREFIX = f"{PIPELINE}-"
DIGEST_DIGITS = 12  # hexadecimal: 48 bits, enough to tell the versions of one pipeline apart
PAGE = 100  # recurring runs a request; the server gives 200 at most


def create_schedule(name: str, cron: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Let the cluster run the forget pipeline for model `name` at each time of `cron`.

    A schedule that is already so, and enabled, stays. One that differs is replaced: the new one is
    made first, so that a failure leaves two for the next call to tidy and never none. Parameters
    at the pipeline's defaults are not handed on. Returns what `list_schedules` has of it, and
    `created` and the ids `replaced`.

    Raises:
        UserError: the cron expression is wrong, or the pipeline has no such parameter.
        OperationalError: the cluster cannot be reached or refuses.
    """
    cron = check_cron(cron)
    client = connect()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "forget.yaml"
        defaults = _compile(file)
        if unknown := sorted(set(parameters) - set(defaults)):
            raise UserError(
                f"the forget pipeline has no parameter {', '.join(unknown)}; expected some of "
                f"{', '.join(sorted(defaults))}"
            )
        with api_errors("take the forget pipeline"):
            version = _version(client, file)
    given = {key: value for key, value in parameters.items() if value != defaults[key]}
    wanted = {"name": name, **given}
    with api_errors("list its schedules"):
        before = _runs(client, name)
    settings = ("ENABLE", cron, version.pipeline_version_id, True, "1", defaults | wanted)
    same = [run for run in before if _settings(run, defaults) == settings]
    with api_errors("make the schedule"):
        kept = same[0] if same else _create(client, name, cron, wanted, version)
    replaced = [run.recurring_run_id for run in before if run is not kept]
    _delete(client, replaced)
    row = _row(kept, {version.pipeline_version_id: version.display_name})
    return row | {"created": not same, "replaced": replaced}


def list_schedules(name: str | None = None) -> list[dict[str, Any]]:
    """The schedules of model `name`, or of all models, with the version that each is pinned to.

    Each has `model, cron, enabled, version, id, created_at, parameters`; the last are those that
    are not at the pipeline's defaults.

    Raises:
        OperationalError: the cluster cannot be reached or refuses.
    """
    client = connect()
    with api_errors("list its schedules"):
        runs = _runs(client, name)
        pinned = {_reference(run)[1]: _reference(run)[0] for run in runs}
        names = {
            version: _version_name(client, pipeline, version)
            for version, pipeline in pinned.items()
            if version
        }
    rows = [_row(run, names) for run in runs]
    return sorted(rows, key=lambda row: (row["model"], row["created_at"] or "", row["id"]))


def remove_schedule(name: str) -> dict[str, Any]:
    """Remove every schedule of model `name`; runs that have started go on. Returns the ids.

    Raises:
        UserError: there is none.
        OperationalError: the cluster cannot be reached or refuses.
    """
    client = connect()
    with api_errors("list its schedules"):
        runs = _runs(client, None)
    ids = [run.recurring_run_id for run in runs if run.display_name == PREFIX + name]
    if not ids:
        known = ", ".join(sorted({run.display_name.removeprefix(PREFIX) for run in runs}))
        raise UserError(
            f"model {name!r} has no schedule; "
            + (f"expected one of {known}" if known else "no model has one")
        )
    _delete(client, ids)
    return {"model": name, "removed": ids}


def _compile(file: Path) -> dict[str, Any]:
    """Write the forget pipeline as a cluster takes it; its parameters but `name`, with defaults."""
    defaults = compile_pipeline("forget", file, ClusterSettings())
    return {key: value for key, value in defaults.items() if key != "name"}


def _version(client: Any, file: Path) -> Any:
    """The version of the pipeline with this content, uploaded if it is not there."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_DIGITS]
    namespace = client.get_user_namespace() or None
    pipelines = client.list_pipelines(filter=_named("EQUALS", PIPELINE), namespace=namespace)
    pipeline = _first(pipelines.pipelines, PIPELINE)
    if pipeline is None:
        # No upload: that would make a first version as well, with the name of the pipeline.
        pipeline = client.pipelines.pipeline_service_create_pipeline(
            pipeline=client.api_models.V2beta1Pipeline(display_name=PIPELINE, namespace=namespace)
        )
    id_ = pipeline.pipeline_id
    versions = client.list_pipeline_versions(id_, filter=_named("EQUALS", digest))
    return _first(versions.pipeline_versions, digest) or client.upload_pipeline_version(
        str(file), digest, pipeline_id=id_
    )


def _first(found: list[Any] | None, name: str) -> Any:
    """The one of that very name: the server's database may compare without regard to case."""
    return next((row for row in found or [] if row.display_name == name), None)


def _version_name(client: Any, pipeline: str, version: str) -> str:
    """The name of a version, or its id where somebody deleted it."""
    from kfp_server_api import ApiException

    try:
        return str(client.get_pipeline_version(pipeline, version).display_name)
    except ApiException as error:
        if error.status != 404:
            raise
        return version


def _create(client: Any, name: str, cron: str, parameters: Mapping[str, Any], version: Any) -> Any:
    """A recurring run. A time that was missed is not made up for: the next takes all that waits."""
    experiment = client.create_experiment(f"expunge-{name}")
    return client.create_recurring_run(
        experiment_id=experiment.experiment_id,
        job_name=PREFIX + name,
        cron_expression=cron,
        max_concurrency=1,
        no_catchup=True,
        params=dict(parameters),
        pipeline_id=version.pipeline_id,
        version_id=version.pipeline_version_id,
        enable_caching=None,  # each task has its own setting, which this would override
    )


def _delete(client: Any, ids: list[str]) -> None:
    for id_ in ids:
        with api_errors(f"delete the schedule {id_} (give the same command again)"):
            client.delete_recurring_run(id_)


def _runs(client: Any, name: str | None) -> list[Any]:
    """The recurring runs that are schedules, from every page."""
    wanted = _named("IS_SUBSTRING", PREFIX) if name is None else _named("EQUALS", PREFIX + name)
    namespace = client.get_user_namespace() or None
    found: list[Any] = []
    token = ""
    while True:
        page = client.list_recurring_runs(token, PAGE, namespace=namespace, filter=wanted)
        found += page.recurring_runs or []
        token = page.next_page_token
        if not token:
            break
    if name is not None:
        return [run for run in found if run.display_name == PREFIX + name]
    return [run for run in found if (run.display_name or "").startswith(PREFIX)]


def _named(operation: str, name: str) -> str:
    predicate = {"operation": operation, "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _reference(run: Any) -> tuple[str, str]:
    """The ids of the pipeline and of the version, empty for a run that is not pinned to one."""
    reference = run.pipeline_version_reference
    if reference is None:
        return "", ""
    return reference.pipeline_id or "", reference.pipeline_version_id or ""


def _parameters(run: Any) -> dict[str, Any]:
    return dict(run.runtime_config.parameters or {}) if run.runtime_config else {}


def _cron(run: Any) -> str | None:
    schedule = run.trigger.cron_schedule if run.trigger else None
    return schedule.cron if schedule else None


def _settings(run: Any, defaults: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that `_create` decides; the server leaves out what is false, and counts in text."""
    parameters = {**defaults, **_parameters(run)}
    pinned = _reference(run)[1]
    return run.mode, _cron(run), pinned, run.no_catchup, run.max_concurrency, parameters


def _row(run: Any, versions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model": run.display_name.removeprefix(PREFIX),
        "cron": _cron(run),
        "enabled": run.mode == "ENABLE",
        "version": versions.get(_reference(run)[1]),
        "id": run.recurring_run_id,
        "created_at": run.created_at.isoformat() if run.created_at else None,
        "parameters": {key: value for key, value in _parameters(run).items() if key != "name"},
    }
