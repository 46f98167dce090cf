"""Recurring runs of the forget pipeline on Kubeflow Pipelines, each pinned to one version of it.

A schedule of model NAME is the recurring run `expunge-forget-NAME`.
"""

from collections.abc import Mapping
from typing import Any

from expunge.errors import UserError
from expunge_pipelines.jobs.parameters import drop_defaults, flatten_parameters
from expunge_pipelines.kubeflow.connection import connect, translate_errors
from expunge_pipelines.kubeflow.cron import check_cron
from expunge_pipelines.kubeflow.settings import ClusterSettings
from expunge_pipelines.kubeflow.uploads import (
    ensure_experiment,
    ensure_version,
    filter_names,
    read_version_name,
)

PREFIX = "expunge-forget-"
PAGE = 100  # recurring runs a request; the server gives 200 at most


def create_schedule(
    name: str, cron: str, parameters: Mapping[str, Any], settings: ClusterSettings
) -> dict[str, Any]:
    """Let the cluster run the forget pipeline for model `name` at each time of `cron`.

    A schedule that is like this already, and enabled, stays. One that differs is replaced: the new
    one is made first, so that a failure leaves two for the next call to tidy, and never none.
    Parameters at the pipeline's defaults are not handed on.

    Returns what `list_schedules` has of it, and `created` and the ids `replaced`.

    Raises:
        UserError: the cron expression is wrong, or the pipeline has no such parameter.
        OperationalError: the cluster cannot be reached or refuses.
    """
    cron = check_cron(cron)
    client = connect()
    version, defaults = ensure_version(client, "forget", parameters, settings)
    # What is at its default stays out, so that a schedule shows what somebody chose.
    given = drop_defaults(parameters, defaults)
    wanted = {"name": name, **given}
    with translate_errors("list its schedules"):
        before = _list_recurring(client, name)
    pinned = version.pipeline_version_id
    state = ("ENABLE", cron, pinned, True, "1", settings.service_account, defaults | wanted)
    same = [run for run in before if _collect_state(run, defaults, settings) == state]
    with translate_errors("make the schedule"):
        kept = (
            same[0]
            if same
            else _create(
                client, name=name, cron=cron, parameters=wanted, version=version, settings=settings
            )
        )
    replaced = [run.recurring_run_id for run in before if run is not kept]
    _delete(client, replaced)
    row = _build_row(kept, {version.pipeline_version_id: version.display_name})
    return row | {"created": not same, "replaced": replaced}


def list_schedules(name: str | None = None) -> list[dict[str, Any]]:
    """Return the schedules of model `name`, or of all, with the version that each is pinned to.

    Each has `model, cron, enabled, version, id, created_at, parameters`; the last are those that
    are not at the pipeline's defaults.

    Raises:
        OperationalError: the cluster cannot be reached or refuses.
    """
    client = connect()
    with translate_errors("list its schedules"):
        runs = _list_recurring(client, name)
        pinned = {_get_reference(run)[1]: _get_reference(run)[0] for run in runs}
        names = {
            version: read_version_name(client, pipeline, version)
            for version, pipeline in pinned.items()
            if version
        }
    rows = [_build_row(run, names) for run in runs]
    return sorted(rows, key=lambda row: (row["model"], row["created_at"] or "", row["id"]))


def remove_schedule(name: str) -> dict[str, Any]:
    """Remove every schedule of model `name` and return the ids; runs that have started go on.

    Raises:
        UserError: there is none.
        OperationalError: the cluster cannot be reached or refuses.
    """
    client = connect()
    with translate_errors("list its schedules"):
        runs = _list_recurring(client, None)
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
    *,
    name: str,
    cron: str,
    parameters: Mapping[str, Any],
    version: Any,
    settings: ClusterSettings,
) -> Any:
    """Create a recurring run and return it.

    It does not catch up on a time that was missed: the next run takes all that waits.
    """
    return client.create_recurring_run(
        experiment_id=ensure_experiment(client, name),
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
        with translate_errors(f"delete the schedule {id_} (give the same command again)"):
            client.delete_recurring_run(id_)


def _list_recurring(client: Any, name: str | None) -> list[Any]:
    """Return the recurring runs that are schedules, from every page."""
    every = name is None
    label = PREFIX if name is None else PREFIX + name
    wanted = filter_names("IS_SUBSTRING" if every else "EQUALS", label)
    namespace = client.get_user_namespace() or None
    found: list[Any] = []
    token = ""
    while True:
        page = client.list_recurring_runs(token, PAGE, namespace=namespace, filter=wanted)
        found += page.recurring_runs or []
        token = page.next_page_token
        if not token:
            break
    # Again here, with regard to case: the server's database may compare without.
    names = [(row, row.display_name or "") for row in found]
    return [row for row, text in names if (text.startswith(label) if every else text == label)]


def _get_reference(kfp_run: Any) -> tuple[str, str]:
    """Return the ids of pipeline and version, empty for a run that is not pinned to one."""
    reference = kfp_run.pipeline_version_reference
    if reference is None:
        return "", ""
    return reference.pipeline_id or "", reference.pipeline_version_id or ""


def _get_parameters(kfp_run: Any) -> dict[str, Any]:
    return dict(kfp_run.runtime_config.parameters or {}) if kfp_run.runtime_config else {}


def _get_cron(kfp_run: Any) -> str | None:
    schedule = kfp_run.trigger.cron_schedule if kfp_run.trigger else None
    return schedule.cron if schedule else None


def _collect_state(
    kfp_run: Any, defaults: Mapping[str, Any], settings: ClusterSettings
) -> tuple[Any, ...]:
    """Return all that `_create` decides. The server leaves out what is false, and counts in text.

    It gives a run an account of its own choice where none is asked for.
    """
    parameters = {**defaults, **_get_parameters(kfp_run)}
    pinned = _get_reference(kfp_run)[1]
    account = kfp_run.service_account if settings.service_account else ""
    return (
        kfp_run.mode,
        _get_cron(kfp_run),
        pinned,
        kfp_run.no_catchup,
        kfp_run.max_concurrency,
        account,
        parameters,
    )


def _build_row(kfp_run: Any, versions: Mapping[str, str]) -> dict[str, Any]:
    parameters = _get_parameters(kfp_run)
    parameters.pop("name", None)
    return {
        "model": kfp_run.display_name.removeprefix(PREFIX),
        "cron": _get_cron(kfp_run),
        "enabled": kfp_run.mode == "ENABLE",
        "version": versions.get(_get_reference(kfp_run)[1]),
        "id": kfp_run.recurring_run_id,
        "created_at": kfp_run.created_at.isoformat() if kfp_run.created_at else None,
        "parameters": flatten_parameters(parameters),
    }
