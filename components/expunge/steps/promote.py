"""Make a registered version the champion."""

from typing import Any


def promote(name: str, version: int, expected: int | None) -> dict[str, Any]:
    """Promote `version` if the champion is still `expected`, which the gate compared with."""
    from expunge import registry

    registry.promote(name, version, expected)
    return {"model": name, "version": version, "replaced": expected}
