"""The last step of a forget, however it went: it settles what the run still holds."""

from expunge.ledger import Claim
from expunge.lifecycle import settlement
from expunge.states import ATTEMPTS


def close_requests(
    name: str, run: str, *, state: str = "", error: str = "", attempts: int = ATTEMPTS
) -> Claim | None:
    """Settle what pipeline run `run` holds of model `name`; None where it holds nothing any more.

    Raises:
        OperationalError: MLflow cannot be reached. The requests are back in the queue all the same.
    """
    return settlement.settle_run(name, run, state=state, error=error, attempts=attempts)
