"""Processing of the queue of requests, run after run, until it is empty."""

from collections.abc import Callable
from typing import Any

from expunge import ledger, registry, states
from expunge.errors import ExpungeError
from expunge.lifecycle import promotion
from expunge.lifecycle.settlement import settle_lost
from expunge.oracles import check_model_name
from expunge.policy import Policy
from expunge_pipelines.jobs.forget import ROUNDS, build_parameters
from expunge_pipelines.jobs.forget_run import ForgetRun
from expunge_pipelines.jobs.requests import build_row
from expunge_pipelines.runners.base import LOCAL
from expunge_pipelines.runners.leftovers import remove_leftovers

_QUEUED = (states.PENDING, states.CLAIMED)


def run_requests(
    name: str | None = None,
    *,
    rule: str = "auto",
    until: str = "",
    policy: Policy | None = None,
    attempts: int = states.ATTEMPTS,
    on_start: Callable[[str], None] = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Process what is pending, of one model or of all, until nothing is.

    With a grade in `until`, each run climbs the ladder. A run that fails ends the work on its
    model, and its requests wait for the next call. The document has `runs`, one document for each
    run. It has `requests` too: what was pending or claimed at the start or was filed since, as it
    stands now.

    Raises:
        UserError: there is no such model.
    """
    if name is not None:
        check_model_name(name)
        if not registry.has_model(name):
            registry.resolve(name)  # raises, with the names that are known
    parameters = build_parameters("", rule, policy or Policy(), until=until)
    parameters["attempts"] = attempts
    queued = {entry.model for entry in ledger.list_requests(states=_QUEUED)}
    # Models without a request too: their aliases are reconciled, and what died is settled.
    models = [name] if name else sorted(queued | set(ledger.list_champion_models()))
    remove_leftovers()  # of killed runs; with an empty queue no run would do it
    at_start = [entry.id for entry in ledger.list_requests(name, _QUEUED)]
    runs: list[dict[str, Any]] = []
    for model in models:
        runs += _run_until_empty(ForgetRun(model, parameters | {"name": model}, runner, on_start))
    seen = {*at_start, *(entry["id"] for run in runs for entry in run["requests"])}
    return {
        "models": models,
        "runs": runs,
        "requests": [build_row(entry) for entry in ledger.list_requests(name) if entry.id in seen],
    }


def _run_until_empty(run: ForgetRun) -> list[dict[str, Any]]:
    """Return the documents of the runs on one model's queue, until it is empty or one fails."""
    documents: list[dict[str, Any]] = []
    overtaken = 0
    try:
        settle_lost(run.name, run.parameters["attempts"])
        promotion.reconcile(run.name)
        while overtaken < ROUNDS and ledger.list_requests(run.name, [states.PENDING]):
            run = run.repeat()
            document = run.run()
            if document is not None:
                documents.append(document)
            elif run.has_claim():
                overtaken += 1
            else:
                break  # another run was quicker, or what is left waits for approval
    except ExpungeError as error:
        # A failure of one model is reported and does not keep the others from their turn.
        failed = {"error": str(error), "exit_code": error.exit_code}
        documents.append({"model": run.name, "requests": run.list_requests(), **failed})
    return documents
