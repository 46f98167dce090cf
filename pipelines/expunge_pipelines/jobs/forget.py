"""What `expunge forget` and `expunge run-requests` do, without printing.

Both run the forget pipeline on what it claims from the queue: the one its own request, the other
whatever is pending.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from expunge import class_selection, ledger, registry, states
from expunge.config import PerturbConfig
from expunge.errors import ExpungeError, RefusedError, UserError
from expunge.lifecycle import promotion
from expunge.lifecycle.settlement import settle_lost
from expunge.oracles import (
    check_enough_oracles,
    check_model_name,
    compute_recipe_key,
    spell_request,
)
from expunge.policy import Policy
from expunge_pipelines.jobs.mlflow_run import (
    export_page,
    find_registered_version,
    open_mlflow_run,
    read_reports,
)
from expunge_pipelines.jobs.parameters import forget_parameters
from expunge_pipelines.jobs.requests import as_row, file_missing_requests
from expunge_pipelines.runners.base import DOCKER, LOCAL
from expunge_pipelines.runners.lease import LEASE_SECONDS, hold_lease, new_run_id
from expunge_pipelines.runners.leftovers import remove_leftovers
from expunge_pipelines.runners.run_locally import LocalRun, run_locally

Started = Callable[[str], None]
# How often a run whose base lost the championship starts again. Each time somebody else succeeded.
ROUNDS = 10
_QUEUED = (states.PENDING, states.CLAIMED)


def forget(
    name: str,
    wanted: Sequence[str],
    *,
    rule: str = "auto",
    lambdas: tuple[float, ...] = (),
    policy: Policy | None = None,
    base_version: int | None = None,
    dry_run: bool = False,
    reason: str = "",
    by: str = "",
    on_start: Started = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Forget classes of `name`, given by index or name, and promote what passes the gate.

    It files a request for them, or takes those that stand for them already, and runs these alone.
    It is compared with the oracles that there are. A dry run files and takes nothing. Where this
    is interrupted, or was a mistake, the request that it filed is withdrawn; where it failed,
    `run_requests` takes it up again.

    Raises:
        ExpungeError: the request is wrong, waits for approval, is held by another run, or a step
            failed. Nothing was promoted.
    """
    check_model_name(name)
    policy = policy or Policy()
    settle_lost(name)
    promotion.reconcile(name)
    base = registry.resolve(name, base_version)
    if not dry_run and "champion" not in base.aliases:
        champion = registry.resolve(name)
        raise UserError(
            f"version {base.version} of {name!r} is not the champion, {champion.version} is, and "
            "only what was checked against the champion can replace it; leave --base-version out, "
            "or add --dry-run"
        )
    info = registry.read_model_info(base)
    chosen = class_selection.find_classes(info, wanted)
    class_selection.check_forgettable(info, chosen)
    PerturbConfig(chosen, rule, lambdas, policy.gate.budget)  # a wrong setting ends here
    if policy.gate.grade == "forgotten":
        kept_oracles = registry.list_oracles(name, compute_recipe_key(info, chosen))
        check_enough_oracles(name, info, chosen, len(kept_oracles), policy.gate.grade, base.version)
    arguments = _arguments(name, rule, lambdas, policy)
    if dry_run:
        arguments |= {"classes": list(chosen), "version": base.version, "dry_run": True}
        return _measured(name, arguments, on_start, runner)
    names = {index: info.class_names[index] for index in chosen}
    asked = file_missing_requests(
        name, names, reason=reason or "expunge forget", by=by, approval=policy.approval
    )
    arguments["requests"] = [entry.id for entry in asked.requests]
    try:
        return _insisted(name, arguments, on_start, runner)
    except (KeyboardInterrupt, UserError):
        if asked.created:  # nobody else asked for it, and a later run is not to do it by itself
            with suppress(ExpungeError):
                ledger.cancel_request(asked.created.id, by)
        raise


def _insisted(
    name: str, arguments: Mapping[str, Any], on_start: Started, runner: str
) -> dict[str, Any]:
    """Run until a run comes to its end whose base is champion still."""
    for _ in range(ROUNDS):
        run = new_run_id()
        done = _attempt(name, run, arguments, on_start, runner)
        if done is not None:
            return done
        if ledger.find_claim(run) is None:
            raise RefusedError(
                f"another run has taken request {', '.join(arguments['requests'])}; "
                "`expunge request list` shows what became of it"
            )
    raise RefusedError(
        f"the champion of {name!r} changed {ROUNDS} times while this ran; the request stays in the "
        "queue: `expunge run-requests` takes it up again"
    )


def run_requests(
    name: str | None = None,
    *,
    rule: str = "auto",
    policy: Policy | None = None,
    attempts: int = states.ATTEMPTS,
    on_start: Started = lambda _: None,
    runner: str = LOCAL,
) -> dict[str, Any]:
    """Process what is pending, of one model or of all, until nothing is; a run after a run.

    A run that fails ends the work on its model, and its requests wait for the next call. The result
    has `runs`, one document for each, and `requests`: what was pending or in work at the start or
    came since, as it stands now.

    Raises:
        UserError: there is no such model.
    """
    if name is not None:
        check_model_name(name)
        if not registry.has_model(name):
            registry.resolve(name)  # raises, with the names that are known
    arguments = _arguments("", rule, (), policy or Policy()) | {"attempts": attempts}
    queued = {entry.model for entry in ledger.list_requests(states=_QUEUED)}
    models = [name] if name else sorted(queued | set(ledger.list_champion_models()))
    remove_leftovers()  # of runs that were killed when all was done but this
    queue = [entry.id for entry in ledger.list_requests(name, _QUEUED)]
    runs: list[dict[str, Any]] = []
    for model in models:
        runs += _work_off(model, arguments | {"name": model}, on_start, runner)
    seen = {*queue, *(entry["id"] for run in runs for entry in run["requests"])}
    return {
        "models": models,
        "runs": runs,
        "requests": [as_row(entry) for entry in ledger.list_requests(name) if entry.id in seen],
    }


def _work_off(
    name: str, arguments: Mapping[str, Any], on_start: Started, runner: str
) -> list[dict[str, Any]]:
    """The runs on one model's queue, until it is empty or one has failed."""
    runs: list[dict[str, Any]] = []
    run, overtaken = "", 0
    try:
        settle_lost(name, arguments["attempts"])
        promotion.reconcile(name)
        while overtaken < ROUNDS and ledger.list_requests(name, [states.PENDING]):
            run = new_run_id()
            done = _attempt(name, run, arguments, on_start, runner)
            if done is not None:
                runs.append(done)
            elif ledger.find_claim(run) is not None:
                overtaken += 1
            else:
                break  # another run was quicker, or what is left waits for approval
    except ExpungeError as error:
        failed = {"error": str(error), "exit_code": error.exit_code}
        runs.append({"model": name, "requests": _held(run), **failed})
    return runs


def _attempt(
    name: str, run: str, arguments: Mapping[str, Any], on_start: Started, runner: str
) -> dict[str, Any] | None:
    """One run; None where there was nothing to take, or its base is not champion any more."""
    try:
        run_id, local = _piped(name, run, arguments, on_start, runner)
    except RefusedError:
        claim = ledger.find_claim(run)
        if claim is None or claim.outcome != ledger.OVERTAKEN:
            raise
        return None
    claim = ledger.find_claim(run)
    if claim is None:
        registry.discard_run(run_id)
        return None
    if claim.outcome == ledger.OVERTAKEN:  # and rejected beside what serves no more
        return None
    return _gathered(name, run_id, local, claim.base_version, claim.classes, _held(run))


def _measured(
    name: str, arguments: Mapping[str, Any], on_start: Started, runner: str
) -> dict[str, Any]:
    """A dry run."""
    run_id, local = _piped(name, new_run_id(), arguments, on_start, runner)
    found = _gathered(name, run_id, local, arguments["version"], arguments["classes"], [])
    return found | {"dry_run": True}


def _piped(
    name: str, run: str, arguments: Mapping[str, Any], on_start: Started, runner: str
) -> tuple[str, LocalRun]:
    """Run the forget pipeline here; the id of its MLflow run, and how long it took."""
    from expunge_pipelines.forget import build_forget
    from expunge_pipelines.placement import no_resources

    with hold_lease(name, run), open_mlflow_run("forget", name, arguments) as run_id:
        reads: tuple[str, ...] = ()
        if runner == DOCKER:  # a container sees the folder that the data came from only if told to
            version = registry.resolve(name, arguments.get("version"))
            reads = (registry.read_model_info(version).source,)
        pipeline = build_forget(no_resources)
        return run_id, run_locally(
            pipeline, arguments, on_start=on_start, runner=runner, reads=reads
        )


def _gathered(
    name: str,
    run_id: str,
    local: LocalRun,
    version: int,
    chosen: Sequence[int],
    held: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the pipeline measured, and what became of the requests that it held."""
    info = registry.read_model_info(registry.resolve(name, version))
    left = [index for index in info.retained if index not in chosen]
    kept = read_reports(run_id)
    validation, work = kept["validation"].to_json(), kept["work"]
    return {
        "model": name,
        "base_version": version,
        "classes": list(chosen),
        "requests": list(held),
        "request": spell_request(name, info, chosen, version),
        **{key: work[key] for key in ("rule", "sign", "strength", "lambdas")},
        "before": validation["before"],
        "after": validation["after"],
        **{key: validation[key] for key in _VERDICT},
        "version": find_registered_version(name, run_id),
        "dry_run": False,
        "report": export_page(name, run_id, left),
        "run_id": run_id,
        "forgetting": work,
        "seconds": dict(local.seconds),
        "total_seconds": local.total,
    }


# What the forget's result has of the validation's report as it is.
_VERDICT = (
    "checks",
    "grade",
    "needed",
    "passed",
    "trustworthy",
    "problems",
    "reasons",
    "unmade",
    "controls",
    "oracles",
    "attacks",
    "depth",
)


def _held(run: str) -> list[dict[str, Any]]:
    """The requests that a run took, as they stand now."""
    claim = ledger.find_claim(run)
    held = set(claim.requests) if claim else set()
    return [as_row(entry) for entry in ledger.list_requests() if entry.id in held]


def _arguments(name: str, rule: str, lambdas: Sequence[float], policy: Policy) -> dict[str, Any]:
    """Return what the forget pipeline takes; its other parameters have their defaults."""
    return forget_parameters(rule, policy, lambdas=lambdas) | {
        "name": name,
        "lease_seconds": LEASE_SECONDS,
        "attempts": states.ATTEMPTS,
        "dry_run": False,
    }
