"""The ledger: requests, claims, champions, what was written, and the log of all events.

One SQL database: an SQLite file in the home folder, or what `EXPUNGE_DATABASE_URL` names. Only this
package reads and writes it, and each function is one transaction.
"""

from expunge.ledger.champions import (
    Champion,
    Erasure,
    adopt_champion,
    champion,
    champion_models,
    change_champion,
    check_no_way_back,
    erasures,
    fulfil,
    note_restored,
)
from expunge.ledger.claims import (
    FAILED,
    INTERRUPTED,
    OVERTAKEN,
    Claim,
    claim_requests,
    close_claim,
    explain_failure,
    extend_claim,
    find_claim,
    held_requests,
    lost_claims,
    note_verdict,
)
from expunge.ledger.events import Event, erase_texts, events_of, verified_events, verify
from expunge.ledger.inventory import Written, addresses, holding, note_removed, note_written
from expunge.ledger.requests import (
    DUE,
    Added,
    Request,
    add_request,
    approve_request,
    cancel_request,
    find_request,
    list_requests,
    retry_request,
)

__all__ = [
    "DUE",
    "FAILED",
    "INTERRUPTED",
    "OVERTAKEN",
    "Added",
    "Champion",
    "Claim",
    "Erasure",
    "Event",
    "Request",
    "Written",
    "add_request",
    "addresses",
    "adopt_champion",
    "approve_request",
    "cancel_request",
    "champion",
    "champion_models",
    "change_champion",
    "check_no_way_back",
    "claim_requests",
    "close_claim",
    "erase_texts",
    "erasures",
    "events_of",
    "explain_failure",
    "extend_claim",
    "find_claim",
    "find_request",
    "fulfil",
    "held_requests",
    "holding",
    "list_requests",
    "lost_claims",
    "note_removed",
    "note_restored",
    "note_verdict",
    "note_written",
    "retry_request",
    "verified_events",
    "verify",
]
