"""The end of a forget run, however it went: each request that it held is settled."""

from expunge.errors import OperationalError
from expunge.ledger import Claim
from expunge.states import ATTEMPTS

# kfp's words for how a pipeline run ended: well, or because somebody stopped it.
SUCCEEDED, CANCELLED = "SUCCEEDED", "CANCELLED"


def close_requests(
    name: str, run: str, *, state: str = "", error: str = "", attempts: int = ATTEMPTS
) -> Claim | None:
    """Settle what pipeline run `run` holds of model `name`; None where it holds nothing any more.

    Requests that the champion fulfils are fulfilled, those that the gate rejected rejected, and the
    rest goes back into the queue: after `attempts` failures to where a person has to look. A run
    that was stopped, as `state` says, or whose base is not champion any more, has not failed. No
    step works any more by then: what one had half registered is deleted, and the MLflow run ended.

    Raises:
        OperationalError: MLflow cannot be reached. The requests are back in the queue all the same.
    """
    from expunge import ledger, registry
    from expunge.lifecycle import promotion

    claim = ledger.find_claim(run)
    if claim is None or not claim.active:
        return None
    problem = None
    try:
        unsettled = ledger.list_held_requests(claim.token)  # else promote has settled them
        if unsettled:
            promotion.reconcile(name)
        if unsettled or claim.holder is None:  # on a cluster no command ends its MLflow run
            registry.end_pipeline(name, run, "FINISHED" if state == SUCCEEDED else "FAILED")
    except OperationalError as unreachable:
        problem = unreachable
    champion = ledger.find_champion(name)
    if champion is None or champion.version != claim.base_version:
        outcome = ledger.OVERTAKEN
    else:
        outcome = ledger.INTERRUPTED if state == CANCELLED else ledger.FAILED
    closed = ledger.close_claim(run, outcome, error=error, attempts=attempts)
    if problem is not None:
        raise problem
    return closed


def settle_lost(name: str, attempts: int = ATTEMPTS) -> list[Claim]:
    """Settle what runs held that died here, or whose lease ran out; returns their claims.

    What a dead run left on this machine is ended first, so that nothing of it works on.
    """
    from expunge import ledger, registry
    from expunge import processes as holders

    if registry.has_model(name):
        registry.abandon_runs(name)
    lost = ledger.list_lost_claims(name)
    for claim in lost:
        if holders.has_ended(claim.holder):
            holders.end_leftovers(claim.run)
        close_requests(name, claim.run, error="the run died or lost its lease", attempts=attempts)
    return lost
