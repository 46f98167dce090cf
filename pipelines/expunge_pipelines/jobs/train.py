"""Training of a new version of a model: plan it, run the pipeline, report what came of it."""

from collections.abc import Callable, Sequence
from typing import Any

from expunge import class_selection, ledger, registry, states
from expunge.config import GateConfig, TrainConfig
from expunge.errors import UserError
from expunge.lifecycle import promotion
from expunge.steps.plan_training import check_model_name
from expunge.training.trainjob import check_nodes
from expunge_pipelines.jobs.mlflow_run import find_registered_version, open_mlflow_run, read_reports
from expunge_pipelines.jobs.sources import absolute_file, absolute_source, check_known
from expunge_pipelines.runners.docker import LOCAL
from expunge_pipelines.runners.lease import hold_lease, new_run_id
from expunge_pipelines.runners.local import run_locally


def train(
    name: str,
    source: str,
    config: TrainConfig,
    *,
    image_size: int = 0,
    gate: GateConfig | None = None,
    without: Sequence[str] = (),
    on_start: Callable[[str], None] = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Train a new version of `name`; it may replace the version that is champion at the start.

    Classes that a champion of this model ever forgot are left out. So are those in `without`, which
    are indices or, if the model has a champion, names.

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
    # An erased class stays out without being named: a champion must not learn it again.
    chosen = _find_left_out(known.get(serving or 0), without) | set(erased)
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

    with hold_lease(name, new_run_id()), open_mlflow_run("train", name, arguments) as mlflow_run:
        local_run = run_locally(
            build_train(no_resources),
            arguments,
            on_start=on_start,
            runner=runner,
            reads=[arguments[key] for key in ("source", "weights", "init_from")],
        )
    reports = read_reports(mlflow_run)
    validation = reports["validation"]
    version = find_registered_version(name, mlflow_run)
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
        "training": reports["work"],
        "checks": validation["checks"],
        "passed": validation["passed"],
        "grade": validation["grade"],
        "run_id": mlflow_run,
        "seconds": dict(local_run.seconds),
        "total_seconds": local_run.total,
    }


# What the train pipeline takes from the recipe as it is; `without` is completed first.
_TRAIN_FIELDS = tuple(f for f in TrainConfig.__dataclass_fields__ if f != "without")


def _find_left_out(champion: registry.Version | None, without: Sequence[str]) -> frozenset[int]:
    """Return the classes that the user leaves out, with those that the champion has forgotten."""
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
