"""What the command does, without printing: check the request, run the pipeline, gather the result.

The result of a job is a plain dictionary, the document that `--json` prints.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from expunge import class_selection, environment, ledger, registry, states
from expunge.config import (
    ARCHITECTURES,
    GateConfig,
    PrepareDataConfig,
    TrainConfig,
)
from expunge.errors import OperationalError, UserError
from expunge.lifecycle import promotion
from expunge.oracles import check_no_oracle_model
from expunge.steps.plan_training import check_model_name
from expunge.training.trainjob import check_nodes
from expunge_pipelines.jobs.mlflow_run import find_registered_version, open_mlflow_run, read_reports
from expunge_pipelines.runners.docker import LOCAL
from expunge_pipelines.runners.lease import hold_lease, new_run_id
from expunge_pipelines.runners.local import run_locally

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
    serving = promotion.reconcile(name).champion
    known = {version.version: version for version in registry.list_versions(name)}
    erased = promotion.list_erased(name)
    chosen = _left_out(known.get(serving or 0), without) | set(erased)
    asked = {
        index: request.id
        for request in ledger.list_requests(name, states.OPEN)
        for index in request.classes
        if index not in chosen
    }
    arguments: dict[str, Any] = {
        "name": name,
        "source": absolute_source(source),
        "image_size": image_size,
        **{field: getattr(config, field) for field in _TRAIN_FIELDS},
        **{field: absolute_file(getattr(config, field)) for field in ("weights", "init_from")},
        "without": sorted(chosen),
        "chance_factor": gate.chance_factor,
        "onnx_atol": gate.onnx_atol,
        "expected": serving or 0,
    }
    from expunge_pipelines.placement import no_resources
    from expunge_pipelines.train import build_train

    with hold_lease(name, new_run_id()), open_mlflow_run("train", name, arguments) as run_id:
        run = run_locally(
            build_train(no_resources),
            arguments,
            on_start=on_start,
            runner=runner,
            reads=[arguments[key] for key in ("source", "weights", "init_from")],
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


# What the train pipeline takes from the recipe as it is; `without` is completed first.
_TRAIN_FIELDS = tuple(f for f in TrainConfig.__dataclass_fields__ if f != "without")


def check_known(source: str, image_size: int, arch: str) -> None:
    """End a request with a wrong word here, and not after an hour of downloads.

    Raises:
        UserError: there is no such source, size or architecture.
    """
    from expunge.data.sources import find_loader

    PrepareDataConfig(source, environment.data_root(), image_size)
    find_loader(source)
    if arch not in ARCHITECTURES:  # torch and torchvision take seconds, so for their names only
        from expunge.models import check_architecture

        check_architecture(arch)


def absolute_source(source: str) -> str:
    """The source with a folder's path made absolute, since a version remembers where it was."""
    kind, _, path = source.partition(":")
    return f"folder:{Path(path).expanduser().resolve()}" if kind == "folder" and path else source


def absolute_file(name: str) -> str:
    """The path of a file, made absolute: a step may work elsewhere. Any other name stays."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.exists() else name


def _left_out(champion: registry.Version | None, without: Sequence[str]) -> frozenset[int]:
    if not without:
        return frozenset()
    if champion is not None:
        info = registry.read_model_info(champion)
        return frozenset(class_selection.find_classes(info, without)) | frozenset(info.forgotten)
    if not all(text.isdecimal() for text in without):
        raise UserError(
            f"--without is {','.join(without)}; a model that has no champion yet takes indices"
        )
    return frozenset(int(text) for text in without)


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
    check_no_oracle_model(name)
    version, replaced = promotion.rollback(name)
    return {"model": name, "version": version, "replaced": replaced}


def reconcile(name: str) -> dict[str, Any]:
    """Put MLflow's aliases where the ledger says, and settle what the champion fulfils.

    Raises:
        UserError: there is no such model.
        OperationalError: the champion's version was deleted from the registry.
    """
    check_no_oracle_model(name)
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
