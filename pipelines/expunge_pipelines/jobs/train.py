"""Training of a new version of a model: plan it, run the pipeline, report what came of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from expunge import ledger, states
from expunge.config import GateConfig, TrainConfig
from expunge.lifecycle.plan import plan_new_version
from expunge.oracles import check_model_name
from expunge.training.trainjob import check_nodes
from expunge_pipelines.jobs.mlflow_run import find_registered_version, open_mlflow_run, read_reports
from expunge_pipelines.jobs.parameters import train_parameters
from expunge_pipelines.jobs.sources import absolute_file, absolute_source, check_known
from expunge_pipelines.runners.base import LOCAL
from expunge_pipelines.runners.lease import hold_lease, new_run_id
from expunge_pipelines.runners.run_locally import run_locally


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
    plan = plan_new_version(config, name, without)
    chosen = plan.config.without
    asked = {
        index: request.id
        for request in ledger.list_requests(name, states.OPEN)
        for index in request.classes
        if index not in chosen
    }
    weights, init_from = absolute_file(config.weights), absolute_file(config.init_from)
    parameters = train_parameters(
        absolute_source(source),
        replace(plan.config, weights=weights, init_from=init_from),
        image_size=image_size,
        gate=gate,
        expected=plan.expected,
    ) | {"name": name}
    from expunge_pipelines.placement import no_resources
    from expunge_pipelines.train import build_train

    with hold_lease(name, new_run_id()), open_mlflow_run("train", name, parameters) as mlflow_run:
        local_run = run_locally(
            build_train(no_resources),
            parameters,
            on_start=on_start,
            runner=runner,
            reads=[parameters["source"], weights, init_from],
        )
    reports = read_reports(mlflow_run)
    validation = reports["validation"].to_json()
    version = find_registered_version(name, mlflow_run)
    return {
        "model": name,
        "version": version,
        "replaced": plan.expected or None,
        "without": sorted(chosen),
        "erased": sorted(plan.erased),
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
