"""The first step of a training: its plan, made where the ledger and the registry are.

Whoever submits a run to a cluster may have neither at hand.
"""

import dataclasses

from expunge.config import TrainConfig
from expunge.lifecycle import plan
from expunge.lifecycle.plan import TrainingPlan
from expunge.models import check_architecture
from expunge.oracles import check_model_name

SERVING = -1  # for `expected`: whoever serves when the step runs


def plan_training(config: TrainConfig, name: str, expected: int = SERVING) -> TrainingPlan:
    """Return the plan of a training of model `name` with the recipe `config`.

    Where `expected` is a version, or 0, whoever starts the pipeline has made the plan. Then it
    stands as it is, and nothing is looked up.

    Raises:
        UserError: the model name is not usable, or one of oracles; the architecture, the start or
            a class is unknown.
        OperationalError: MLflow or the ledger cannot be reached.
    """
    check_model_name(name)
    if expected != SERVING:
        # What was not looked up is in nobody's key, so that no cached training stands for this.
        start = plan.mark_unknown_start() if config.init_from or config.weights else ""
        ordered = dataclasses.replace(config, without=tuple(sorted(config.without)))
        return TrainingPlan(ordered, expected, start=start)
    check_architecture(config.arch)
    planned = plan.plan_new_version(config, name)
    completed, start = plan.resolve_start(planned.config)
    return dataclasses.replace(planned, config=completed, start=start)
