"""The states of a request to forget; `expunge.ledger` moves it from one to the next.

unapproved -> pending -> claimed -> fulfilled
                 ^          |----> rejected: needs retraining, still due
                 |          |----> parked: a person has to look, still due
                 |----------'      a failure around the run
"""

UNAPPROVED, PENDING, CLAIMED = "unapproved", "pending", "claimed"
FULFILLED, REJECTED, PARKED, CANCELLED = "fulfilled", "rejected", "parked", "cancelled"
STATES = (UNAPPROVED, PENDING, CLAIMED, FULFILLED, REJECTED, PARKED, CANCELLED)
OPEN = (UNAPPROVED, PENDING, CLAIMED, REJECTED, PARKED)  # still due
ATTEMPTS = 5  # failures of the operation before a person has to look
