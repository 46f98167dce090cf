"""What the command does, without printing: check the request, run the pipeline, gather the result.

The result of a job is a plain dictionary, the document that `--json` prints.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from expunge import classes as requests
from expunge import environment, registry
from expunge.config import (
    ARCHITECTURES,
    GateConfig,
    PerturbConfig,
    PrepareDataConfig,
    TrainConfig,
)
from expunge.errors import UserError
from expunge.oracles import (
    SUFFIX,
    check_enough,
    check_no_oracles,
    holds_oracles,
    recipe_key,
    request,
)
from expunge_pipelines.local import run_locally
from expunge_pipelines.tracking import exported_page, registered, reports, tracked

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
) -> dict[str, Any]:
    """Train a new version of `name`; the champion at the start is the one that it may replace.

    Classes that a champion of this model ever forgot are left out, and so are those in `without`,
    which are indices or, where the model exists, names.

    Raises:
        ExpungeError: the request is wrong, or a step failed. Nothing was promoted.
    """
    gate = gate or GateConfig()
    if holds_oracles(name):
        raise UserError(
            f"the model name {name!r} is not usable: names that end with {SUFFIX} belong to "
            "oracles; choose another"
        )
    _check_known(source, image_size, config.arch)
    known = registry.versions(name) if registry.has_model(name) else []
    champion = next((v for v in known if "champion" in v.aliases), None)
    erased = registry.erased_classes(name) if known else frozenset()
    chosen = _left_out(champion, without) | erased
    arguments: dict[str, Any] = {
        "name": name,
        "source": absolute_source(source),
        "image_size": image_size,
        **{field: getattr(config, field) for field in _TRAIN_FIELDS},
        "without": sorted(chosen),
        "chance_factor": gate.chance_factor,
        "onnx_atol": gate.onnx_atol,
        "expected": champion.version if champion else 0,
    }
    from expunge_pipelines.resources import anywhere
    from expunge_pipelines.train import build_train

    with tracked("train", name, arguments) as run_id:
        run = run_locally(build_train(anywhere), arguments, on_start=on_start)
    kept = reports(run_id)
    validation = kept["validation"]
    return {
        "model": name,
        "version": registered(name, run_id),
        "replaced": champion.version if champion else None,
        "without": sorted(chosen),
        "erased": sorted(erased),
        "after": validation["after"],
        "training": kept["work"],
        "checks": validation["checks"],
        "passed": validation["passed"],
        "grade": validation["grade"],
        "run_id": run_id,
        "seconds": dict(run.seconds),
        "total_seconds": run.total,
    }


def forget(
    name: str,
    wanted: Sequence[str],
    *,
    rule: str = "auto",
    lambdas: tuple[float, ...] = (),
    gate: GateConfig | None = None,
    base_version: int | None = None,
    dry_run: bool = False,
    on_start: Started = lambda _: None,
) -> dict[str, Any]:
    """Forget classes of `name`, given by index or name, and promote what passes the gate.

    It is compared with the oracles that there are (`expunge_pipelines.retraining`).

    Raises:
        ExpungeError: the request is wrong, or a step failed. Nothing was promoted.
    """
    check_no_oracles(name)
    gate = gate or GateConfig()
    base = registry.resolve(name, base_version)
    if not dry_run and "champion" not in base.aliases:
        champion = registry.resolve(name)
        raise UserError(
            f"version {base.version} of {name!r} is not the champion, {champion.version} is, and "
            "only what was checked against the champion can replace it; leave --base-version out, "
            "or add --dry-run"
        )
    info = registry.model_info(base)
    chosen = requests.find_classes(info, wanted)
    requests.check_forgettable(info, chosen)
    PerturbConfig(chosen, rule, lambdas, gate.budget)  # a wrong setting ends here, not in a step
    if gate.grade == "forgotten":
        kept_oracles = registry.oracles(name, recipe_key(info, chosen))
        check_enough(name, info, chosen, len(kept_oracles), gate.grade, base.version)
    arguments: dict[str, Any] = {
        "name": name,
        "classes": list(chosen),
        "version": base.version,
        "rule": rule,
        "lambdas": list(lambdas),
        "budget": gate.budget,
        "forget_error": gate.forget_error,
        "worst_drop": gate.worst_drop,
        "onnx_atol": gate.onnx_atol,
        "grade": gate.grade,
        "block": list(gate.block),
        "dry_run": dry_run,
    }
    from expunge_pipelines.forget import build_forget
    from expunge_pipelines.resources import anywhere

    with tracked("forget", name, arguments) as run_id:
        run = run_locally(build_forget(anywhere), arguments, on_start=on_start)
    kept = reports(run_id)
    validation, work = kept["validation"], kept["work"]
    return {
        "model": name,
        "base_version": base.version,
        "classes": list(chosen),
        "request": request(name, info, chosen, base.version),
        **{key: work[key] for key in ("rule", "sign", "strength", "lambdas")},
        "before": validation["before"],
        "after": validation["after"],
        **{key: validation[key] for key in _VERDICT},
        "version": registered(name, run_id),
        "dry_run": dry_run,
        "report": exported_page(name, run_id),
        "run_id": run_id,
        "forgetting": work,
        "seconds": dict(run.seconds),
        "total_seconds": run.total,
    }


# What the forget's result has of the validation's report as it is.
_VERDICT = (
    "checks",
    "grade",
    "needed",
    "passed",
    "trustworthy",
    "problems",
    "reasons",
    "unmade",
    "controls",
    "oracles",
    "attacks",
    "depth",
)
# What the train pipeline takes from the recipe as it is; `without` is completed first.
_TRAIN_FIELDS = tuple(f for f in TrainConfig.__dataclass_fields__ if f != "without")


def _check_known(source: str, image_size: int, arch: str) -> None:
    """End a request with a wrong word here, and not after an hour of downloads."""
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


def _left_out(champion: registry.Version | None, without: Sequence[str]) -> frozenset[int]:
    if not without:
        return frozenset()
    if champion is not None:
        info = registry.model_info(champion)
        return frozenset(requests.find_classes(info, without)) | frozenset(info.forgotten)
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
    found = registry.models() if name is None else registry.versions(name)
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
    check_no_oracles(name)
    replaced = registry.resolve(name)
    restored = registry.rollback(name)
    return {"model": name, "version": restored.version, "replaced": replaced.version}
