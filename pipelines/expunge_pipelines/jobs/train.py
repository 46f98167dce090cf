"""What the command does, without printing: check the request, run the pipeline, gather the result.

The result of a job is a plain dictionary, the document that `--json` prints.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge import environment, ledger, registry, states
from expunge.config import (
    GateConfig,
    PrepareDataConfig,
    TrainConfig,
)
from expunge.errors import OperationalError
from expunge.lifecycle import promotion
from expunge.lifecycle.plan import plan_new_version
from expunge.models import check_architecture
from expunge.oracles import check_model_name
from expunge.training.trainjob import check_nodes
from expunge_pipelines.jobs.mlflow_run import find_registered_version, open_mlflow_run, read_reports
from expunge_pipelines.jobs.parameters import train_parameters
from expunge_pipelines.runners.base import LOCAL
from expunge_pipelines.runners.lease import hold_lease, new_run_id
from expunge_pipelines.runners.run_locally import run_locally

Started = Callable[[str], None]


def train(
    name: str,
    source: str,
    config: TrainConfig,
    *,
    image_size: int = 0,
    gate: GateConfig | None = None,
    without: Sequence[str] = (),
    on_start: Started = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Train a new version of `name`; the champion at the start is the one that it may replace.

    Classes that a champion of this model ever forgot are left out, and so are those in `without`,
    which are indices or, where the model exists, names.

    Raises:
        ExpungeError: the request is wrong, or a step failed. Nothing was promoted.
    """
    gate = gate or GateConfig()
    check_model_name(name)
    check_known(source, image_size, config.arch)
    check_nodes(config.nodes)
    plan = plan_new_version(config, name, without)
    serving, chosen, erased = plan.expected or None, plan.config.without, plan.erased
    asked = {
        index: request.id
        for request in ledger.list_requests(name, states.OPEN)
        for index in request.classes
        if index not in chosen
    }
    weights, init_from = absolute_file(config.weights), absolute_file(config.init_from)
    arguments = train_parameters(
        absolute_source(source),
        replace(plan.config, weights=weights, init_from=init_from),
        image_size=image_size,
        gate=gate,
        expected=plan.expected,
    ) | {"name": name}
    from expunge_pipelines.placement import no_resources
    from expunge_pipelines.train import build_train

    with hold_lease(name, new_run_id()), open_mlflow_run("train", name, arguments) as run_id:
        run = run_locally(
            build_train(no_resources),
            arguments,
            on_start=on_start,
            runner=runner,
            reads=[arguments["source"], weights, init_from],
        )
    kept = read_reports(run_id)
    validation = kept["validation"].to_json()
    version = find_registered_version(name, run_id)
    return {
        "model": name,
        "version": version,
        "replaced": serving,
        "without": sorted(chosen),
        "erased": sorted(erased),
        "asked": {str(index): asked[index] for index in sorted(asked)},
        "fulfilled": [
            request.id
            for request in ledger.list_requests(name, [states.FULFILLED])
            if version is not None and request.version == version
        ],
        "after": validation["after"],
        "training": kept["work"],
        "checks": validation["checks"],
        "passed": validation["passed"],
        "grade": validation["grade"],
        "run_id": run_id,
        "seconds": dict(run.seconds),
        "total_seconds": run.total,
    }


def check_known(source: str, image_size: int, arch: str) -> None:
    """End a request with a wrong word here, and not after an hour of downloads.

    Raises:
        UserError: there is no such source, size or architecture.
    """
    from expunge.data.sources import find_loader

    PrepareDataConfig(source, environment.data_root(), image_size)
    find_loader(source)
    check_architecture(arch)


def absolute_source(source: str) -> str:
    """The source with a folder's path made absolute, since a version remembers where it was."""
    kind, _, path = source.partition(":")
    return f"folder:{Path(path).expanduser().resolve()}" if kind == "folder" and path else source


def absolute_file(name: str) -> str:
    """The path of a file, made absolute: a step may work elsewhere. Any other name stays."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.exists() else name


def list_models(name: str | None = None) -> dict[str, Any]:
    """The versions of all models or of one, the newest first.

    Raises:
        UserError: the named model does not exist.
    """
    if name is not None and not registry.has_model(name):
        registry.resolve(name)  # raises, with the names that are known
    found = registry.list_models() if name is None else registry.list_versions(name)
    return {
        "models": [
            {
                "model": version.name,
                "version": version.version,
                "aliases": list(version.aliases),
                "kind": version.kind,
                "grade": version.grade,
                "forgotten": list(version.forgotten),
                "parent": version.parent,
                "seed": version.seed,
                "test_accuracy": version.test_accuracy,
                "source": version.source,
                "created": version.created,
                "run_id": version.run_id,
            }
            for version in found
        ]
    }


def rollback(name: str) -> dict[str, Any]:
    """Make the previous champion the champion again.

    Raises:
        UserError: there is no such model, or it never had another champion.
        RefusedError: the previous champion remembers a class that was erased since.
    """
    check_model_name(name)
    version, replaced = promotion.rollback(name)
    return {"model": name, "version": version, "replaced": replaced}


def reconcile(name: str) -> dict[str, Any]:
    """Put MLflow's aliases where the ledger says, and settle what the champion fulfils.

    Raises:
        UserError: there is no such model.
        OperationalError: the champion's version was deleted from the registry.
    """
    check_model_name(name)
    found = promotion.reconcile(name)
    if found.champion is None:
        registry.resolve(name)  # raises, with what there is
    if found.missing:
        raise OperationalError(
            f"version {found.champion}, the champion of {name!r}, was deleted from the registry, "
            f"and nothing serves; train a new one with `expunge train {name}`, or take the one "
            f"before with `expunge rollback {name}`"
        )
    return {
        "model": name,
        "champion": found.champion,
        "restored": [
            {"alias": alias, "found": stood, "restored": put}
            for alias, (stood, put) in found.restored.items()
        ],
        "fulfilled": [request.id for request in found.fulfilled],
    }
