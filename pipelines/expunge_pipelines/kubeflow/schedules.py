"""Recurring runs of the forget pipeline on Kubeflow Pipelines, each pinned to one version of it.

A schedule of model NAME is the recurring run `expunge-forget-NAME`.
"""

from collections.abc import Mapping
from typing import Any

from expunge.errors import UserError
from expunge_pipelines.jobs.parameters import drop_defaults, flatten_parameters
from expunge_pipelines.kubeflow.connection import api_errors, connect
from expunge_pipelines.kubeflow.cron import check_cron
from expunge_pipelines.kubeflow.settings import ClusterSettings
from expunge_pipelines.kubeflow.uploads import experiment, named, uploaded_version, version_name

PREFIX = "expunge-forget-"
PAGE = 100  # recurring runs a request; the server gives 200 at most


def create_schedule(
    name: str, cron: str, parameters: Mapping[str, Any], settings: ClusterSettings
) -> dict[str, Any]:
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
    version, defaults = uploaded_version(client, "forget", parameters, settings)
    given = drop_defaults(parameters, defaults)
    wanted = {"name": name, **given}
    with api_errors("list its schedules"):
        before = _runs(client, name)
    pinned = version.pipeline_version_id
    state = ("ENABLE", cron, pinned, True, "1", settings.service_account, defaults | wanted)
    same = [run for run in before if _state(run, defaults, settings) == state]
    with api_errors("make the schedule"):
        kept = same[0] if same else _create(client, name, cron, wanted, version, settings)
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
            version: version_name(client, pipeline, version)
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


def _create(
    client: Any,
    name: str,
    cron: str,
    parameters: Mapping[str, Any],
    version: Any,
    settings: ClusterSettings,
) -> Any:
    """A recurring run. A time that was missed is not made up for: the next takes all that waits."""
    return client.create_recurring_run(
        experiment_id=experiment(client, name),
        job_name=PREFIX + name,
        cron_expression=cron,
        max_concurrency=1,
        no_catchup=True,
        params=dict(parameters),
        pipeline_id=version.pipeline_id,
        version_id=version.pipeline_version_id,
        enable_caching=None,  # each task has its own setting, which this would override
        service_account=settings.service_account or None,
    )


def _delete(client: Any, ids: list[str]) -> None:
    for id_ in ids:
        with api_errors(f"delete the schedule {id_} (give the same command again)"):
            client.delete_recurring_run(id_)


def _runs(client: Any, name: str | None) -> list[Any]:
    """The recurring runs that are schedules, from every page."""
    wanted = named("IS_SUBSTRING", PREFIX) if name is None else named("EQUALS", PREFIX + name)
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


def _state(run: Any, defaults: Mapping[str, Any], settings: ClusterSettings) -> tuple[Any, ...]:
    """All that `_create` decides; the server leaves out what is false, and counts in text.

    It gives a run an account of its own choice where none is asked for.
    """
    parameters = {**defaults, **_parameters(run)}
    pinned = _reference(run)[1]
    account = run.service_account if settings.service_account else ""
    return run.mode, _cron(run), pinned, run.no_catchup, run.max_concurrency, account, parameters


def _row(run: Any, versions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model": run.display_name.removeprefix(PREFIX),
        "cron": _cron(run),
        "enabled": run.mode == "ENABLE",
        "version": versions.get(_reference(run)[1]),
        "id": run.recurring_run_id,
        "created_at": run.created_at.isoformat() if run.created_at else None,
        "parameters": flatten_parameters(
            {key: value for key, value in _parameters(run).items() if key != "name"}
        ),
    }
