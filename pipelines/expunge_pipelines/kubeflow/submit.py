"""Submission of a pipeline run to a cluster, without printing."""

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from expunge.config import GateConfig, TrainConfig
from expunge.errors import OperationalError, UserError
from expunge.policy import Policy
from expunge_pipelines.jobs.parameters import forget_parameters, train_parameters
from expunge_pipelines.kubeflow.connection import connect
from expunge_pipelines.kubeflow.follow import Polled, follow
from expunge_pipelines.kubeflow.runs import check_id, read_run, start_run
from expunge_pipelines.kubeflow.settings import ClusterSettings, DataSettings
from expunge_pipelines.kubeflow.uploads import ensure_version

# Where the team's ledger and registry are; a file on this machine is none of theirs.
SHARED = {
    "EXPUNGE_DATABASE_URL": "postgresql+psycopg://...",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.com",
}


def submit_train(
    name: str,
    source: str,
    config: TrainConfig,
    settings: ClusterSettings,
    *,
    image_size: int = 0,
    chance_factor: float = GateConfig.chance_factor,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Start the train pipeline for model `name` on the cluster.

    What an erased class or a champion has to do with it, its first step finds out there. The
    result is what `read_run` gives, and `pipeline, model, version` of the pipeline.

    Raises:
        UserError: the request is wrong, or names what no pod can see.
        OperationalError: the cluster cannot be reached or refuses.
    """
    from expunge.oracles import check_model_name
    from expunge_pipelines.jobs.sources import check_known

    check_model_name(name)
    check_known(source, image_size, config.arch)
    check_paths(source, config, settings.data)
    _check_spread(config, settings)
    parameters = train_parameters(
        source,
        replace(config, without=tuple(_parse_indices(without))),
        image_size=image_size,
        gate=GateConfig(chance_factor=chance_factor),
    )
    client = connect()
    version = ensure_version(client, "train", parameters, settings)[0]
    return _start(client, "train", name, version=version, given=parameters, settings=settings)


def submit_forget(
    name: str,
    rule: str,
    policy: Policy,
    settings: ClusterSettings,
    *,
    until: str = "",
    classes: Sequence[str] = (),
    reason: str = "",
    by: str = "",
) -> dict[str, Any]:
    """Start the forget pipeline for model `name` on the cluster, for all that is pending.

    With `classes` it files a request for them in the team's ledger, or takes those that stand for
    them already, and runs these alone. With a grade in `until` the run climbs the ladder. The
    result is that of `submit_train`, and `requests`.

    Raises:
        UserError: the request is wrong, or the team's ledger and registry are not named.
        RefusedError: the request waits for approval.
        OperationalError: the cluster, ledger or registry cannot be reached or refuses.
    """
    from expunge.oracles import check_model_name

    check_model_name(name)
    if classes:
        _check_shared()
    elif reason:
        raise UserError("--reason is given without --classes; name the classes that it is for")
    parameters = forget_parameters(rule, policy, until=until)
    client = connect()
    version = ensure_version(client, "forget", parameters, settings)[0]
    asked = []
    if classes:  # when nothing but the run itself can go wrong any more
        asked = _file_requests(
            name, classes, policy, reason=reason or "expunge submit forget", by=by
        )
        parameters["requests"] = asked
    try:
        started = _start(
            client, "forget", name, version=version, given=parameters, settings=settings
        )
    except OperationalError as error:
        if not asked:
            raise
        raise OperationalError(
            f"{error}; filed all the same: {', '.join(asked)}, for the same command or the next "
            "run to take"
        ) from error
    return started | {"requests": asked}


def run_status(run: str) -> dict[str, Any]:
    """Return how a run stands now; `run` is its id or link.

    Raises:
        UserError: there is no such run.
        OperationalError: the cluster cannot be reached or refuses.
    """
    id_ = check_id(run)
    return read_run(connect(), id_)


def follow_run(
    run: str,
    timeout: float | None,
    on_poll: Polled,
    on_lost: Callable[[str], None],
) -> dict[str, Any]:
    """Return how a run stands at its end (`expunge_pipelines.kubeflow.follow`).

    Raises:
        UserError: there is no such run.
        OperationalError: the cluster cannot be reached, or the run has not ended by then.
    """
    id_ = check_id(run)
    return follow(connect(), id_, timeout=timeout, on_poll=on_poll, on_lost=on_lost)


def check_paths(source: str, config: TrainConfig, mounted: DataSettings) -> None:
    """Check that every path that a training names is one on the volume that its pods mount.

    Raises:
        UserError: one of them means something on this machine only, or lies beside the volume.
    """
    kind, _, folder = source.partition(":")
    named = {"--data": folder if kind == "folder" else ""}
    if config.weights or config.init_from:
        from expunge.formats.pretrained import SUFFIXES
        from expunge.registry import REGISTERED

        by_name = "/" not in config.weights and not config.weights.endswith(SUFFIXES)
        named["--weights"] = "" if by_name else config.weights
        registered = config.init_from.startswith(REGISTERED)
        named["--init-from"] = "" if registered else config.init_from
    for option, path in named.items():
        if path and not path.startswith("/"):
            instead = {
                "--data": "give folder:/ABSOLUTE/PATH on the volume that the pods mount, or s3://...",
                "--weights": "give an absolute path on the volume that the pods mount",
                "--init-from": "give models:/NAME/VERSION, or an absolute path on such a volume",
            }
            raise UserError(
                f"{option} names {path!r}, which lies on this machine and not in the cluster's "
                f"pods; {instead[option]}"
            )
        inside = mounted.claim and f"{posixpath.normpath(path)}/".startswith(f"{mounted.path}/")
        if path and not inside:
            raise UserError(
                f"{option} names {path!r}, and the pods "
                + (
                    f"have the volume of claim {mounted.claim} at {mounted.path}; give a path "
                    "there, or change data: in the file that --cluster names"
                    if mounted.claim
                    else "mount no volume with data; name its claim under data: in the file that "
                    f"--cluster names, and give a path below its path, such as {mounted.path}"
                )
            )


def _start(
    client: Any,
    kind: str,
    name: str,
    *,
    version: Any,
    given: Mapping[str, Any],
    settings: ClusterSettings,
) -> dict[str, Any]:
    kfp_run = start_run(
        client,
        kind,
        name,
        version=version,
        parameters={"name": name, **given},
        service_account=settings.service_account or None,
    )
    return {"pipeline": kind, "model": name, "version": version.display_name, **kfp_run}


def _check_spread(config: TrainConfig, settings: ClusterSettings) -> None:
    """Check that the cluster's settings allow the processes and nodes of a training."""
    gpus = settings.resources["train"].gpus if settings.gpu else 0
    if not settings.training.claim and 0 < gpus < config.processes:
        raise UserError(
            f"--processes is {config.processes}, one GPU each, and the cluster's settings give the "
            f"task train {gpus}; set its gpus under tasks in the file that --cluster names"
        )
    if config.nodes > 1 and not settings.training.claim:
        raise UserError(
            f"--nodes is {config.nodes}, and the cluster's settings name no volume for them to "
            "share; set claim under training in the file that --cluster names"
        )


def _parse_indices(without: Sequence[str]) -> list[int]:
    if not all(text.isdecimal() for text in without):
        raise UserError(
            f"--without is {','.join(without)}; a training on a cluster takes indices, since names "
            "are looked up in the registry"
        )
    return sorted({int(text) for text in without})


def _check_shared() -> None:
    for variable, example in SHARED.items():
        value = os.environ.get(variable, "")
        if not value or value.startswith(("sqlite:", "file:", "/", ".")):
            found = "a file on this machine" if value else "not set"
            raise UserError(
                f"--classes files a request for the cluster to find, and {variable} is {found}; "
                f"set it to what the cluster's steps use, such as {example}"
            )


def _file_requests(
    name: str, class_texts: Sequence[str], policy: Policy, *, reason: str, by: str
) -> list[str]:
    """Return the ids of the requests for exactly these classes; file what is missing."""
    from expunge_pipelines.jobs.requests import file_missing_requests, select_classes

    selection = select_classes(name, class_texts)
    added = file_missing_requests(selection, reason=reason, by=by, approval=policy.approval)
    return [request.id for request in added.requests]
