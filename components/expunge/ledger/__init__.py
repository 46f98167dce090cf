"""The ledger: requests, claims, champions, what was written, and the log of all events.

One SQL database: an SQLite file in the home folder, or what `EXPUNGE_DATABASE_URL` names. Only this
package reads and writes it, and each function is one transaction.
"""

from expunge.ledger.champions import (
    Champion,
    Erasure,
    adopt_champion,
    change_champion,
    check_no_way_back,
    find_champion,
    fulfil,
    list_champion_models,
    list_erasures,
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
    list_held_requests,
    list_lost_claims,
    note_verdict,
)
from expunge.ledger.events import Event, erase_texts, list_events, verify_events
from expunge.ledger.inventory import (
    Written,
    list_addresses,
    list_remembering,
    note_removed,
    note_written,
)
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
    "adopt_champion",
    "approve_request",
    "cancel_request",
    "change_champion",
    "check_no_way_back",
    "claim_requests",
    "close_claim",
    "erase_texts",
    "explain_failure",
    "extend_claim",
    "find_champion",
    "find_claim",
    "find_request",
    "fulfil",
    "list_addresses",
    "list_champion_models",
    "list_erasures",
    "list_events",
    "list_held_requests",
    "list_lost_claims",
    "list_remembering",
    "list_requests",
    "note_removed",
    "note_restored",
    "note_verdict",
    "note_written",
    "retry_request",
    "verify_events",
]
