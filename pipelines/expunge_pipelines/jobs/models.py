"""Versions of the registered models: list them, and decide which one serves."""

from typing import Any

from expunge import registry
from expunge.errors import OperationalError
from expunge.lifecycle import promotion
from expunge.oracles import check_model_name


def list_models(name: str | None = None) -> dict[str, Any]:
    """Return the versions of all models or of one, the newest first.

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
    """Set MLflow's aliases as the ledger has them, and settle what the champion fulfils.

    Raises:
        UserError: there is no such model.
        OperationalError: the champion's version was deleted from the registry.
    """
    check_model_name(name)
    found = promotion.reconcile(name)
    if found.champion is None:
        registry.resolve(name)  # raises, with the names that are known
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
