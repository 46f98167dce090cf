"""Forgetting of named classes: one request, run at once and alone."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from expunge import ledger, registry, states
from expunge.config import PerturbConfig
from expunge.errors import ExpungeError, RefusedError, UserError
from expunge.lifecycle.settlement import settle_lost
from expunge.oracles import check_enough_oracles, check_model_name, compute_recipe_key
from expunge.policy import Policy
from expunge_pipelines.jobs.forget_run import ForgetRun
from expunge_pipelines.jobs.parameters import forget_parameters, raise_grade
from expunge_pipelines.jobs.requests import file_missing_requests, select_classes
from expunge_pipelines.jobs.sources import absolute_source
from expunge_pipelines.runners.base import LOCAL
from expunge_pipelines.runners.lease import LEASE_SECONDS

# How often a run whose base lost the championship starts again. Each time somebody else succeeded.
ROUNDS = 10


def forget(
    name: str,
    class_texts: Sequence[str],
    *,
    rule: str = "auto",
    lambdas: tuple[float, ...] = (),
    forget_data: str = "",
    until: str = "",
    policy: Policy | None = None,
    base_version: int | None = None,
    dry_run: bool = False,
    reason: str = "",
    by: str = "",
    on_start: Callable[[str], None] = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Forget classes of `name`, given by index or name, and promote what passes the gate.

    It files a request for them, or takes those that stand for them already, and runs these alone.
    The result is compared with the oracles that there are. Images of the classes in `forget_data`
    choose how deep rule replay goes, and nothing else. With a grade in `until`, the rules of the
    ladder are tried in turn until one is graded so and passes the gate. A dry run files and claims
    nothing. If this is interrupted, or was a mistake, the request that it filed is withdrawn. If it
    failed, `run_requests` takes the request up again.

    Raises:
        ExpungeError: the request is wrong, waits for approval, is held by another run, or a step
            failed. Nothing was promoted.
    """
    check_model_name(name)
    policy = raise_grade(policy or Policy(), until)
    settle_lost(name)
    selection = select_classes(name, class_texts, base_version=base_version)
    base, info, classes = selection.version, selection.info, selection.classes
    if not dry_run and registry.CHAMPION not in base.aliases:
        champion = registry.resolve(name)
        raise UserError(
            f"version {base.version} of {name!r} is not the champion, {champion.version} is, and "
            "only what was checked against the champion can replace it; leave --base-version out, "
            "or add --dry-run"
        )
    # Built for its checks alone: a wrong rule or strength is better refused before a run starts.
    PerturbConfig(classes, rule, lambdas, policy.gate.budget, forget_data, rung=1 if until else 0)
    if forget_data:
        forget_data = absolute_source(forget_data)
    if policy.gate.grade == "forgotten":
        oracles = len(registry.list_oracles(name, compute_recipe_key(info, classes)))
        check_enough_oracles(
            name, info, classes, found=oracles, grade=policy.gate.grade, version=base.version
        )
    parameters = build_parameters(name, rule, policy, lambdas, forget_data, until=until)
    if dry_run:
        parameters |= {"classes": list(classes), "version": base.version, "dry_run": True}
        return ForgetRun(name, parameters, runner, on_start).measure()
    added = file_missing_requests(
        selection, reason=reason or "expunge forget", by=by, approval=policy.approval
    )
    parameters["requests"] = [request.id for request in added.requests]
    try:
        return _run_until_current(ForgetRun(name, parameters, runner, on_start))
    except (KeyboardInterrupt, UserError):
        # Nobody else asked for it, and the next scheduled run would do what was just stopped.
        if added.created:
            with suppress(ExpungeError):
                ledger.cancel_request(added.created.id, by)
        raise


def _run_until_current(run: ForgetRun) -> dict[str, Any]:
    """Return the document of the first run whose base is still champion when it ends."""
    for _ in range(ROUNDS):
        document = run.run()
        if document is not None:
            return document
        if not run.has_claim():
            raise RefusedError(
                f"another run has taken request {', '.join(run.parameters['requests'])}; "
                "`expunge request list` shows what became of it"
            )
        run = run.repeat()
    raise RefusedError(
        f"the champion of {run.name!r} changed {ROUNDS} times while this ran; the request stays in "
        "the queue: `expunge run-requests` takes it up again"
    )


def build_parameters(
    name: str,
    rule: str,
    policy: Policy,
    lambdas: Sequence[float] = (),
    forget_data: str = "",
    *,
    until: str = "",
) -> dict[str, Any]:
    """Return what a forget pipeline on this machine takes."""
    given = forget_parameters(rule, policy, lambdas=lambdas, forget_data=forget_data, until=until)
    return given | {
        "name": name,
        "lease_seconds": LEASE_SECONDS,
        "attempts": states.ATTEMPTS,
        "dry_run": False,
    }
