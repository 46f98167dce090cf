"""What `expunge oracles` does, without printing: models retrained without the classes."""

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
    wanted: Sequence[str],
    *,
    seeds: int = NEEDED,
    base_version: int | None = None,
    weights: str = "",
    on_start: Callable[[str], None] = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Retrain `name` without classes, given by index or name, once for each of `seeds` seeds.

    The recipe and the data are those of the base version, the champion where none is given; the
    classes may be ones that it has forgotten already. What is registered already is not trained
    again, and a training that was killed goes on from its last epoch.

    Raises:
        ExpungeError: the request is wrong, or a step failed. Oracles that were finished are kept.
    """
    check_model_name(name)
    base = registry.resolve(name, base_version)
    info = registry.read_model_info(base)
    chosen = class_selection.find_classes(info, wanted)
    fresh = [index for index in chosen if index not in info.forgotten]
    if fresh:
        class_selection.check_forgettable(info, fresh)
    # However many trained the model: this machine is one.
    config = replace(build_oracle_config(info, chosen, _same_weights(info, weights)), nodes=1)
    key = compute_recipe_key(info, chosen)
    every = derive_oracle_seeds(key, seeds)
    before = {oracle.seed for oracle in registry.list_oracles(name, key)}
    missing = [seed for seed in every if seed not in before]
    run_id, seconds, total = None, {}, 0.0
    if missing:
        arguments = oracle_parameters(
            base.version, info.source, config, image_size=info.image_side, seeds=missing
        ) | {"name": name}
        from expunge_pipelines.oracles import build_oracles
        from expunge_pipelines.placement import no_resources

        with hold_lease(name, new_run_id()), open_mlflow_run("oracles", name, arguments) as run_id:
            run = run_locally(
                build_oracles(no_resources, missing),
                arguments,
                on_start=on_start,
                runner=runner,
                reads=(info.source, config.weights),
            )
        seconds, total = dict(run.seconds), run.total
    kept = {oracle.seed: oracle for oracle in registry.list_oracles(name, key)}
    compared = _compared(base, chosen, list_left_out(info, chosen), key)
    return {
        "model": name_oracle_model(name),
        "base_version": base.version,
        "classes": list(chosen),
        "without": list(list_left_out(info, chosen)),
        "key": key,
        "request": compared and compared[0],
        "serves": bool(compared and compared[1]),
        "oracles": [
            {
                "seed": seed,
                "version": kept[seed].version,
                "test_accuracy": kept[seed].test_accuracy,
                "reused": seed in before,
            }
            for seed in every
        ],
        "run_id": run_id,
        "seconds": seconds,
        "total_seconds": total,
    }


def _compared(
    base: registry.Version, chosen: Sequence[int], without: Sequence[int], key: str
) -> tuple[str, bool] | None:
    """What `expunge forget` takes to compare with these oracles, and whether it is the champion's.

    It starts from `base`, or from the nearest of those it was made from that has the classes still;
    None where there is none.
    """
    known = {f"{entry.name}/{entry.version}": entry for entry in registry.list_versions(base.name)}
    version: registry.Version | None = base
    while version is not None:
        classes = [index for index in without if index not in version.forgotten]
        if set(chosen) <= set(classes):
            info = registry.read_model_info(version)
            if compute_recipe_key(info, classes) != key:
                return None
            serves = registry.CHAMPION in version.aliases
            return spell_request(base.name, info, classes, 0 if serves else version.version), serves
        version = known.get(version.parent or "")
    return None


def _same_weights(info: ModelInfo, weights: str) -> str:
    """The absolute path of `weights`, if the file holds the tensors that the model started from."""
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
