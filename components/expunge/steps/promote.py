"""Make a registered version the champion."""

from typing import Any


def promote(
    name: str, version: int, expected: int | None, token: int | None = None
) -> dict[str, Any]:
    """Promote `version` if the champion is still `expected`, which the gate compared with.

    `token` is that of the claim on the requests which the version fulfils.
    """
    from expunge.lifecycle import promotion

    fulfilled = promotion.promote(name, version, expected, token)
    return {
        "model": name,
        "version": version,
        "replaced": expected,
        "fulfilled": [request.id for request in fulfilled],
    }
