"""The step that makes a registered version the champion."""

from typing import Any


def promote(
    name: str, version: int, expected: int | None, token: int | None = None
) -> dict[str, Any]:
    """Promote `version` if the champion is still `expected`, with which the gate compared it.

    `token` is that of the claim whose requests the version fulfils.
    """
    from expunge.lifecycle import promotion

    fulfilled = promotion.promote(name, version, expected, token)
    return {
        "model": name,
        "version": version,
        "replaced": expected,
        "fulfilled": [request.id for request in fulfilled],
    }
