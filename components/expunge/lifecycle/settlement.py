"""Settlement of requests when a forget run ends: fulfilled, rejected, or back in the queue."""

from expunge import ledger, processes, registry
from expunge.errors import OperationalError
from expunge.ledger import Claim
from expunge.lifecycle import promotion
from expunge.states import ATTEMPTS

# kfp's words for how a pipeline run ended: well, or because somebody stopped it.
SUCCEEDED, CANCELLED = "SUCCEEDED", "CANCELLED"


def settle_run(
    name: str, run: str, *, state: str = "", error: str = "", attempts: int = ATTEMPTS
) -> Claim | None:
    """Settle what pipeline run `run` holds of model `name`; None where it holds nothing any more.

    A request that the champion fulfils is fulfilled, one that the gate rejected is rejected. The
    rest goes back into the queue, and after `attempts` failures to where a person has to look. A
    run has not failed if somebody stopped it, as `state` says, or if its base is not champion any
    more. No step works by then: what one had half registered is deleted, and the MLflow run ended.

    Raises:
        OperationalError: MLflow cannot be reached. The requests are back in the queue all the same.
    """
    claim = ledger.find_claim(run)
    if claim is None or not claim.active:
        return None
    problem = None
    try:
        # Where nothing is held, promote has settled everything, and MLflow need not be asked.
        unsettled = ledger.list_held_requests(claim.token)
        if unsettled:
            promotion.reconcile(name)
        # Only on a cluster a claim has no holder, and there no command ends the MLflow run.
        if unsettled or claim.holder is None:
            registry.end_pipeline(name, run, "FINISHED" if state == SUCCEEDED else "FAILED")
    except OperationalError as unreachable:
        # First the ledger: a request that nobody works on must not stay claimed.
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
    """Settle what runs held that died here, or whose lease ran out; return their claims."""
    if registry.has_model(name):
        registry.abandon_runs(name)
    lost = ledger.list_lost_claims(name)
    for claim in lost:
        # First what a dead run left on this machine, so that nothing of it works on.
        if processes.has_ended(claim.holder):
            processes.end_leftovers(claim.run)
        settle_run(name, claim.run, error="the run died or lost its lease", attempts=attempts)
    return lost
