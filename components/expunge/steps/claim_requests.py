"""The first step of a forget: what the queue holds, and the version to forget it from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from expunge.config import ClaimConfig
from expunge.errors import UserError
from expunge.formats.model import ModelInfo, load_model_info
from expunge.oracles import SUFFIX

if TYPE_CHECKING:
    from expunge.registry import Version


class Claimed(NamedTuple):
    """What a run has to do; `claimed` is False where there is nothing, and the rest is empty."""

    claimed: bool
    token: int  # of the claim; 0 for a dry run, which claims nothing
    requests: list[str]  # ids
    classes: list[int]
    version: int
    reference: str  # NAME/VERSION, what a version made from it calls its parent
    source: str  # of the data that it was trained on
    image_size: int  # the side of its images; 0 where they are not square


NOTHING = Claimed(False, 0, [], [], 0, "", "", 0)


def claim_requests(config: ClaimConfig, model: Path) -> Claimed:
    """Claim requests of a model for this pipeline run, and copy the champion into folder `model`.

    First it settles what runs held that died or lost their lease. A dry run claims nothing: it
    takes the classes and the version of the config.

    Raises:
        UserError: there is no such model or version, it has no codes, it cannot forget the classes
            of a dry run, or it is an oracle.
        RefusedError: a request that is named is held by another run, or waits for approval.
    """
    from expunge import ledger, registry
    from expunge.class_selection import check_forgettable
    from expunge.lifecycle import promotion, settlement

    if config.dry_run:
        base = registry.resolve(config.name, config.version or None)
        info = _fetch_base(base, model)
        check_forgettable(info, config.classes)
        return _describe_claim(base, info, config.classes)
    # First, so that what a dead run held is in the queue again, for this one to take.
    settlement.settle_lost(config.name)
    promotion.reconcile(config.name)
    base = registry.resolve(config.name)
    info = registry.read_model_info(base)
    claim = ledger.claim_requests(
        config.name,
        config.run,
        base_version=base.version,
        classes=len(info.class_names),
        forgotten=info.forgotten,
        lease_seconds=config.lease_seconds,
        holder=config.holder,
        only=config.requests,
        approval=config.approval,
    )
    if claim is None:
        model.mkdir(parents=True, exist_ok=True)
        return NOTHING
    # A claim that this run has already, of a pod that died, keeps the base that it was made with.
    base = registry.resolve(config.name, claim.base_version)
    info = _fetch_base(base, model)
    return _describe_claim(base, info, claim.classes, token=claim.token, requests=claim.requests)


def _fetch_base(base: Version, model: Path) -> ModelInfo:
    from expunge import registry

    if base.kind == registry.ORACLE:
        raise UserError(
            f"version {base.version} of {base.name!r} is an oracle, which is there to be compared "
            f"with; forget classes of {base.name.removesuffix(SUFFIX)!r}"
        )
    registry.download(base, model)
    return load_model_info(model)


def _describe_claim(
    base: Version,
    info: ModelInfo,
    classes: Sequence[int],
    *,
    token: int = 0,
    requests: Sequence[str] = (),
) -> Claimed:
    return Claimed(
        True,
        token,
        list(requests),
        list(classes),
        base.version,
        f"{base.name}/{base.version}",
        info.source,
        info.image_side,
    )
