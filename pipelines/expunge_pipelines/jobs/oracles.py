"""Training of oracles: models retrained from scratch without the classes of a request."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge import class_selection, registry
from expunge.errors import UserError
from expunge.formats.model import ModelInfo
from expunge.oracles import (
    NEEDED,
    build_oracle_config,
    check_model_name,
    compute_recipe_key,
    derive_oracle_seeds,
    list_left_out,
    name_oracle_model,
    spell_request,
)
from expunge_pipelines.jobs.mlflow_run import open_mlflow_run
from expunge_pipelines.jobs.parameters import oracle_parameters
from expunge_pipelines.runners.base import LOCAL
from expunge_pipelines.runners.lease import hold_lease, new_run_id
from expunge_pipelines.runners.run_locally import run_locally


def make_oracles(
    name: str,
    class_texts: Sequence[str],
    *,
    seeds: int = NEEDED,
    base_version: int | None = None,
    weights: str = "",
    on_start: Callable[[str], None] = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Retrain `name` without classes, given by index or name, once for each of `seeds` seeds.

    The recipe and the data are those of the base version, which is the champion by default. It may
    have forgotten the classes already. An oracle that is registered is not trained again, and a
    training that was killed goes on from its last epoch.

    Raises:
        ExpungeError: the request is wrong, or a step failed. Oracles that were finished are kept.
    """
    check_model_name(name)
    base = registry.resolve(name, base_version)
    info = registry.read_model_info(base)
    classes = class_selection.find_classes(info, class_texts)
    fresh = [index for index in classes if index not in info.forgotten]
    if fresh:  # the check takes no class that is forgotten, and here that is nothing wrong
        class_selection.check_forgettable(info, fresh)
    # The model may come from several nodes of a cluster, and this machine is one node.
    config = replace(build_oracle_config(info, classes, _find_weights(info, weights)), nodes=1)
    key = compute_recipe_key(info, classes)
    every = derive_oracle_seeds(key, seeds)
    before = {oracle.seed for oracle in registry.list_oracles(name, key)}
    missing = [seed for seed in every if seed not in before]
    mlflow_run, seconds, total = None, {}, 0.0
    if missing:
        parameters = oracle_parameters(
            base.version, info.source, config, image_size=info.image_side, seeds=missing
        ) | {"name": name}
        from expunge_pipelines.oracles import build_oracles
        from expunge_pipelines.placement import no_resources

        with (
            hold_lease(name, new_run_id()),
            open_mlflow_run("oracles", name, parameters) as mlflow_run,
        ):
            local_run = run_locally(
                build_oracles(no_resources, missing),
                parameters,
                on_start=on_start,
                runner=runner,
                reads=(info.source, config.weights),
            )
        seconds, total = dict(local_run.seconds), local_run.total
    oracles = {oracle.seed: oracle for oracle in registry.list_oracles(name, key)}
    left_out = list_left_out(info, classes)
    request, serves = _spell_comparison(base, classes, left_out, key)
    return {
        "model": name_oracle_model(name),
        "base_version": base.version,
        "classes": list(classes),
        "without": list(left_out),
        "key": key,
        "request": request,
        "serves": serves,
        "oracles": [
            {
                "seed": seed,
                "version": oracles[seed].version,
                "test_accuracy": oracles[seed].test_accuracy,
                "reused": seed in before,
            }
            for seed in every
        ],
        "run_id": mlflow_run,
        "seconds": seconds,
        "total_seconds": total,
    }


def _spell_comparison(
    base: registry.Version, classes: Sequence[int], without: Sequence[int], key: str
) -> tuple[str | None, bool]:
    """Return what `expunge forget` takes to compare with these oracles.

    A forget can start from `base` if that still has the classes, else from the nearest of its
    ancestors that has. The second part of the result says whether this is the champion. The result
    is None and False if there is no such version.
    """
    known = registry.list_versions(base.name)
    versions = {f"{entry.name}/{entry.version}": entry for entry in known}
    version: registry.Version | None = base
    while version is not None:
        forgettable = [index for index in without if index not in version.forgotten]
        if set(classes) <= set(forgettable):
            info = registry.read_model_info(version)
            # An ancestor may be of another recipe, and its oracles are others then.
            if compute_recipe_key(info, forgettable) != key:
                return None, False
            serves = registry.CHAMPION in version.aliases
            number = 0 if serves else version.version
            return spell_request(base.name, info, forgettable, number), serves
        version = versions.get(version.parent or "")
    return None, False


def _find_weights(info: ModelInfo, weights: str) -> str:
    """Return the absolute path of `weights`, the file of the weights that the model started from.

    A model without pretrained weights, or with torchvision's, gets the text back as it is.

    Raises:
        UserError: the file holds other tensors.
    """
    stored = info.settings.get("weights", "")
    if not weights or not stored:
        return weights
    from expunge.formats.pretrained import read_state, state_digest

    path = Path(weights).expanduser().resolve()
    digest = f"sha256:{state_digest(read_state(path))}"
    expected = stored.rpartition(" ")[2]
    if digest != expected:
        raise UserError(
            f"the weights in {path} are not those that the model started from: they have {digest} "
            f"and the model says {expected}; name the file that it was trained with"
        )
    return str(path)
