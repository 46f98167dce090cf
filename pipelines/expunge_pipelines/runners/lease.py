"""Lease of a pipeline run on this machine: its id, its hold on the queue, and how it lets go."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from expunge import environment, ledger, processes
from expunge.errors import ExpungeError
from expunge.lifecycle.settlement import CANCELLED, settle_run
from expunge_pipelines.runners.environ import set_variables

LEASE_SECONDS = 600.0  # how long a machine that lost its power keeps a request from the others
RENEWALS = 5  # of a lease, so that a few may fail


def new_run_id() -> str:
    """Return an id for a pipeline run here."""
    return f"local-{uuid.uuid4().hex}"


@contextmanager
def hold_lease(name: str, run: str) -> Iterator[None]:
    """Hold what pipeline run `run` of model `name` claims while the body runs.

    Its steps find its id, and this process, by variables. The lease of the run's claim is renewed.
    The pipeline's exit handler settles the claim; where the run did not come to that, it is settled
    here.
    """
    over = threading.Event()
    # A thread and not the pipeline's loop: kfp gives no control back while a step works.
    renewal = threading.Thread(target=_renew_until, args=(over, run), daemon=True)
    marks = {environment.PIPELINE_RUN: run, environment.HOLDER: processes.name_this_process()}
    with set_variables(**marks):
        renewal.start()
        try:
            yield
        except BaseException as problem:
            state = CANCELLED if isinstance(problem, KeyboardInterrupt) else ""
            with suppress(ExpungeError):  # the next run settles it; what was raised says more
                settle_run(name, run, state=state, error=str(problem))
                if not state:  # the exit handler has closed it, and kfp told that little of why
                    ledger.explain_failure(run, str(problem))
            raise
        finally:
            over.set()
            renewal.join()


def _renew_until(over: threading.Event, run: str) -> None:
    while not over.wait(LEASE_SECONDS / RENEWALS):
        with suppress(ExpungeError):  # a database that is down is for the steps to report
            ledger.extend_claim(run, LEASE_SECONDS)
