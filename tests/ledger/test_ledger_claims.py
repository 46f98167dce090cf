"""Claims: what a run gets of the queue, how it keeps it, and what becomes of it in the end."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from databases import MODEL, Database, claim_or_none, claimed, filed, now_is

from expunge import ledger, processes, states
from expunge.errors import RefusedError
from expunge.ledger import Request

pytest_plugins = ["databases"]

LATE = "2020-01-02T00:00:00.000000+00:00"
HOLDER = (
    "import time; from expunge import processes; print(processes.name_this_process(), flush=True);"
)


def kinds(request: Request) -> list[str]:
    """List what happened to a request, in order."""
    return [entry.kind.removeprefix("request-") for entry in ledger.list_events(request=request.id)]


def day(number: int) -> datetime:
    return datetime(2090, 1, number, tzinfo=UTC)


def test_nothing_to_claim(database: Database) -> None:
    assert claim_or_none() is None
    filed(1, model="fish")
    assert claim_or_none() is None
    assert ledger.find_claim("run-1") is None
    assert ledger.list_lost_claims(MODEL) == []


def test_a_claim_takes_all_that_is_pending(database: Database) -> None:
    last, first, parked = filed(5, 1, due=day(3)), filed(2, 4, due=day(1)), filed(9, due=day(2))
    fish, unapproved, gone = filed(7, model="fish"), filed(8, approval=True), filed(3)
    ledger.close_claim(claimed("run-0", only=[parked.id]).run, ledger.FAILED, attempts=1)
    claim = claimed(base_version=4, forgotten=[2, 3], lease_seconds=60, holder="here 1 2")
    assert (claim.model, claim.run, claim.holder, claim.active) == (
        MODEL,
        "run-1",
        "here 1 2",
        True,
    )
    assert (claim.base_version, claim.classes) == (4, (1, 4, 5))  # and not 2, which is forgotten
    assert claim.requests == (first.id, last.id)
    assert (claim.mlflow_run, claim.verdict, claim.outcome) == (None, None, None)
    assert claim.failed_checks == ()
    lease = datetime.fromisoformat(claim.lease_until) - datetime.now(UTC)
    assert timedelta(seconds=30) < lease < timedelta(seconds=61)
    for entry in (first, last):
        held = now_is(entry)
        assert (held.state, held.token, held.run) == (states.CLAIMED, claim.token, "run-1")
        assert held.attempts == 1
        assert kinds(entry) == ["added", "claimed"]
    assert [entry.id for entry in ledger.list_held_requests(claim.token)] == list(claim.requests)
    body = ledger.list_events(request=first.id)[-1].body
    assert body == {"token": claim.token, "run": "run-1", "base_version": 4}
    alone = ((fish, "pending"), (unapproved, "unapproved"), (parked, "parked"), (gone, "pending"))
    for left, state in alone:
        assert now_is(left).state == state
    assert claim_or_none("run-2", forgotten=[2, 3]) is None


def test_a_run_that_asks_again_gets_its_claim_again(database: Database) -> None:
    filed(1)
    claim = claimed()
    filed(2)
    assert claimed() == claimed(base_version=9) == claim
    assert claimed("run-2").classes == (2,)
    assert ledger.find_claim("run-1") == claim


def test_a_run_that_has_closed_its_claim_gets_a_new_one(database: Database) -> None:
    made = filed(1)
    first = claimed()
    ledger.close_claim("run-1", ledger.INTERRUPTED)
    second = claimed()
    assert second.token > first.token
    assert second.requests == (made.id,)
    assert ledger.find_claim("run-1") == second


def test_tokens_grow_over_models_and_failures(database: Database) -> None:
    tokens = []
    for number in range(3):
        for model in (MODEL, "fish"):
            filed(number, model=model)
            tokens.append(claimed(f"run-{model}", model=model).token)
            ledger.close_claim(f"run-{model}", ledger.FAILED)
    assert tokens == sorted(set(tokens))


def test_only_what_is_named(database: Database) -> None:
    one, two, fish = filed(1), filed(2), filed(3, model="fish")
    claim = claimed(only=[two.id, fish.id, "unknown"])
    assert (claim.requests, claim.classes) == ((two.id,), (2,))
    assert (now_is(one).state, now_is(fish).state) == (states.PENDING, states.PENDING)
    assert claim_or_none("run-2", only=["unknown"]) is None


def test_a_rejected_or_parked_one_is_claimed_by_name(database: Database) -> None:
    one, two, three = filed(1), filed(2), filed(3)
    claimed("run-1", only=[one.id])
    ledger.note_verdict("run-1", "rejected", ["budget"], "mlflow-1")
    ledger.close_claim("run-1", ledger.FAILED)
    claimed("run-2", only=[two.id])
    ledger.close_claim("run-2", ledger.FAILED, error="boom", attempts=1)
    ledger.cancel_request(three.id, "ann")
    assert claim_or_none("run-3") is None
    assert claimed("run-3", only=[one.id, two.id, three.id]).requests == (one.id, two.id)
    assert (now_is(one).settled_at, now_is(two).settled_at) == (None, None)
    ledger.change_champion(MODEL, 2, forgotten=[1, 2], grade="suppressed", expected=None)
    assert len(ledger.fulfil(MODEL)) == 2
    assert claim_or_none("run-4", only=[one.id, two.id]) is None


def test_what_another_run_holds_is_refused(database: Database) -> None:
    one, two = filed(1), filed(2)
    claimed(only=[one.id])
    text = f"request {one.id} is being worked on by run run-1; wait for it"
    with pytest.raises(RefusedError, match=text):
        claim_or_none("run-2", only=[two.id, one.id])
    assert now_is(two).state == states.PENDING
    assert ledger.find_claim("run-2") is None


def test_what_waits_for_approval_is_refused(database: Database) -> None:
    made = filed(1, approval=True)
    text = f"request {made.id} waits for a second person: `expunge request approve {made.id}`"
    for approval in (True, False):
        with pytest.raises(RefusedError, match=text):
            claim_or_none(only=[made.id], approval=approval)
    assert kinds(made) == ["added"]
    ledger.approve_request(made.id, "bob")
    assert claimed(only=[made.id], approval=True).requests == (made.id,)


def test_a_policy_of_approval_holds_for_what_was_filed_before(database: Database) -> None:
    made, approved = filed(1), filed(2, approval=True)
    ledger.approve_request(approved.id, "bob")
    assert claimed(approval=True).requests == (approved.id,)
    assert now_is(made).state == states.UNAPPROVED
    assert [entry.kind for entry in ledger.list_events(request=made.id)][1:] == [
        "approval-demanded"
    ]
    ledger.approve_request(made.id, "bob")
    assert claimed("run-2", approval=True).requests == (made.id,)


def test_what_is_named_and_lacks_approval_can_then_be_approved(database: Database) -> None:
    """The remedy that the refusal names has to work, whatever state the request was in."""
    pending, parked = filed(1), filed(2)
    claimed("run-0", only=[parked.id])
    ledger.close_claim("run-0", ledger.FAILED, attempts=1)
    for made in (pending, parked):
        for _ in range(2):
            with pytest.raises(RefusedError, match=f"`expunge request approve {made.id}`"):
                claim_or_none(only=[made.id], approval=True)
        assert now_is(made).state == states.UNAPPROVED
        demanded = [e.kind for e in ledger.list_events(request=made.id)].count("approval-demanded")
        assert demanded == 1
        ledger.approve_request(made.id, "bob")
    assert claimed(only=[pending.id, parked.id], approval=True).classes == (1, 2)


def test_a_class_that_the_champion_does_not_have(database: Database) -> None:
    good, bad = filed(9), filed(10, 11)
    assert claimed().requests == (good.id,)
    parked = now_is(bad)
    assert (parked.state, parked.error) == ("parked", "class 10 is none of the champion's 10")
    assert parked.settled_at is not None
    assert parked.attempts == 0
    assert kinds(bad) == ["added", "parked"]


def test_two_classes_have_to_stay(database: Database) -> None:
    good, bad = filed(0), filed(*range(1, 10))
    assert claimed().requests == (good.id,)
    parked = now_is(bad)
    assert parked.state == states.PARKED
    assert parked.error == "it would leave fewer than two classes; withdraw the model instead"
    eight = filed(*range(1, 9), model="fish")
    assert claimed("run-2", model="fish").requests == (eight.id,)
    seven = filed(*range(1, 8), model="cats")
    assert claim_or_none("run-3", "cats", forgotten=[0, 8]) is None
    assert now_is(seven).state == states.PARKED


def test_what_does_not_fit_together_stays(database: Database) -> None:
    most, rest, small = filed(*range(6), due=day(1)), filed(6, 7, due=day(2)), filed(9)
    claim = claimed()  # all three would leave one class
    assert claim.requests == (small.id, most.id)  # of 30 days, and so the first due
    assert now_is(rest).state == states.PENDING
    assert kinds(rest) == ["added"]
    ledger.close_claim("run-1", ledger.INTERRUPTED)
    ledger.cancel_request(most.id, "ann")
    assert claimed("run-2").requests == (small.id, rest.id)


def test_a_rejection_of_several_sets_them_apart(database: Database) -> None:
    one, two = filed(1, due=day(1)), filed(2, due=day(2))
    claimed()
    ledger.note_verdict("run-1", "rejected", ["budget", "forget_error"], "mlflow-1")
    closed = ledger.close_claim("run-1", ledger.FAILED, error="the gate rejected it")
    assert closed is not None
    assert (closed.active, closed.outcome, closed.verdict) == (False, "rejected", "rejected")
    assert (closed.failed_checks, closed.mlflow_run) == (("budget", "forget_error"), "mlflow-1")
    for made in (one, two):
        apart = now_is(made)
        assert (apart.state, apart.alone, apart.attempts) == (states.PENDING, True, 0)
        assert apart.failed_checks == ("budget", "forget_error")
        assert kinds(made) == ["added", "claimed", "set-apart"]
    third = filed(3, due=day(1) + timedelta(hours=1))
    assert claimed("run-2").requests == (one.id,)  # alone, as the first due
    assert claimed("run-3").requests == (third.id,)  # together with what is not set apart
    assert claimed("run-4").requests == (two.id,)
    assert claim_or_none("run-5") is None


def test_those_that_are_not_set_apart_go_together(database: Database) -> None:
    apart, first = filed(1, due=day(5)), filed(2, due=day(1))
    set_apart(apart, first)
    three, four = filed(3, due=day(2)), filed(4, due=day(3))
    assert claimed("run-3").requests == (first.id,)
    assert claimed("run-4").requests == (three.id, four.id)
    assert claimed("run-5").requests == (apart.id,)


def test_what_is_named_goes_together_all_the_same(database: Database) -> None:
    both = filed(1, due=day(1)), filed(2, due=day(2))
    set_apart(*both)
    assert claimed(only=[entry.id for entry in both]).classes == (1, 2)


def test_a_rejection_of_one_alone(database: Database) -> None:
    made = filed(1)
    claimed()
    ledger.note_verdict("run-1", "rejected", ["grade"], "mlflow-1")
    ledger.close_claim("run-1", ledger.FAILED)
    rejected = now_is(made)
    assert (rejected.state, rejected.failed_checks) == (states.REJECTED, ("grade",))
    assert (rejected.attempts, rejected.alone) == (0, False)
    assert rejected.settled_at is not None
    assert kinds(made) == ["added", "claimed", "rejected"]
    assert claim_or_none("run-2") is None


def set_apart(*made: Request) -> None:
    claimed("run-rejected", only=[entry.id for entry in made])
    ledger.note_verdict("run-rejected", "rejected", ["budget"], "mlflow-1")
    ledger.close_claim("run-rejected", ledger.FAILED)
    assert all(now_is(entry).alone for entry in made)


def test_what_can_be_forgotten_no_more_holds_nobody_up(database: Database) -> None:
    """As a champion that came between has left too few classes for it."""
    apart, other = filed(*range(1, 6), due=day(1)), filed(9, due=day(2))
    set_apart(apart, filed(0, due=day(3)))
    claim = claimed("run-2", forgotten=[0, 6, 7, 8])
    assert claim.requests == (other.id,)
    assert now_is(apart).state == states.PARKED


def test_what_cannot_go_together_does_not_hold_up_what_goes_alone(database: Database) -> None:
    wide, apart = filed(*range(1, 6), due=day(1)), filed(9, due=day(2))
    set_apart(apart, filed(0, due=day(3)))
    claim = claimed("run-2", forgotten=[0, 6, 7, 8])
    assert claim.requests == (apart.id,)
    assert now_is(wide).state == states.PARKED


def test_an_untrustworthy_measurement_parks(database: Database) -> None:
    both = filed(1), filed(2)
    claimed()
    ledger.note_verdict("run-1", "untrustworthy", [], "mlflow-1")
    closed = ledger.close_claim("run-1", ledger.FAILED)
    assert closed is not None
    assert closed.outcome == "untrustworthy"
    for made in both:
        parked = now_is(made)
        assert (parked.state, parked.alone) == (states.PARKED, False)
        assert parked.error == "the measurement could not be trusted: a control failed"


def test_failures_are_counted(database: Database) -> None:
    made = filed(1)
    for attempt in range(1, states.ATTEMPTS):
        claimed(f"run-{attempt}")
        closed = ledger.close_claim(f"run-{attempt}", ledger.FAILED, error=f"error {attempt}")
        assert closed is not None
        assert closed.outcome == "failed"
        back = now_is(made)
        assert (back.state, back.attempts) == (states.PENDING, attempt)
        assert (back.error, back.settled_at, back.alone) == (f"error {attempt}", None, False)
    claimed("run-last")
    ledger.close_claim("run-last", ledger.FAILED, error="out of memory")
    parked = now_is(made)
    assert (parked.state, parked.error) == (states.PARKED, "out of memory")
    assert parked.attempts == states.ATTEMPTS
    assert kinds(made) == ["added", *["claimed", "put-back"] * 4, "claimed", "parked"]
    assert claim_or_none("run-more") is None
    assert "out of memory" not in str(ledger.list_events(request=made.id))


def test_a_failure_without_words(database: Database) -> None:
    made = filed(1)
    claimed()
    ledger.close_claim("run-1", ledger.FAILED, attempts=1)
    assert (now_is(made).state, now_is(made).error) == (states.PARKED, "the run failed")


def test_several_that_failed_twice_are_tried_alone(database: Database) -> None:
    one, two = filed(1, due=day(1)), filed(2, due=day(2))
    for number, alone in ((1, False), (2, True)):
        claim = claimed(f"run-{number}")
        assert claim.requests == (one.id, two.id)
        ledger.close_claim(claim.run, ledger.FAILED, error="boom")
        assert (now_is(one).alone, now_is(two).alone) == (alone, alone)
    assert claimed("run-3").requests == (one.id,)
    ledger.close_claim("run-3", ledger.FAILED, error="boom")
    assert (now_is(one).alone, now_is(one).attempts) == (True, 3)
    assert (now_is(two).alone, now_is(two).attempts) == (True, 2)


def test_no_fault_of_the_request(database: Database) -> None:
    both = filed(1), filed(2)
    for outcome in (ledger.OVERTAKEN, ledger.INTERRUPTED, ledger.OVERTAKEN):
        claimed()
        closed = ledger.close_claim("run-1", outcome, error="stopped", attempts=1)
        assert closed is not None
        assert closed.outcome == outcome
    for made in both:
        back = now_is(made)
        assert (back.state, back.attempts, back.alone) == (states.PENDING, 0, False)
        assert back.error is None


def test_a_passed_gate_and_a_failure_after_it(database: Database) -> None:
    made = filed(1)
    claimed()
    ledger.note_verdict("run-1", "passed", [], "mlflow-1")
    closed = ledger.close_claim("run-1", ledger.FAILED, error="the export failed")
    assert closed is not None
    assert closed.outcome == "failed"
    assert (now_is(made).state, now_is(made).attempts) == (states.PENDING, 1)


def test_closing_twice(database: Database) -> None:
    made = filed(1)
    claimed()
    closed = ledger.close_claim("run-1", ledger.FAILED)
    assert closed is not None
    events = ledger.list_events()
    assert events[-1].kind == "claim-closed"
    assert events[-1].body == {"token": closed.token, "outcome": "failed"}
    assert ledger.close_claim("run-1", ledger.FAILED) is None
    assert ledger.close_claim("run-never", ledger.FAILED) is None
    assert ledger.list_events() == events
    assert now_is(made).attempts == 1
    assert ledger.find_claim("run-1") == closed


def test_what_was_fulfilled_stays_so(database: Database) -> None:
    one, two = filed(1, due=day(1)), filed(2, due=day(2))
    claim = claimed()
    ledger.change_champion(MODEL, 2, forgotten=[1], grade="suppressed", expected=None)
    ledger.fulfil(MODEL)
    assert [entry.id for entry in ledger.list_held_requests(claim.token)] == [two.id]
    closed = ledger.close_claim("run-1", ledger.OVERTAKEN)
    assert closed is not None
    assert closed.outcome == "overtaken"
    assert now_is(one).state == states.FULFILLED
    assert (now_is(two).state, now_is(two).alone) == (states.PENDING, False)
    claimed("run-2")
    ledger.change_champion(MODEL, 3, forgotten=[1, 2], grade="suppressed", expected=2)
    ledger.fulfil(MODEL)
    closed = ledger.close_claim("run-2", ledger.FAILED, error="too late to matter")
    assert closed is not None
    assert closed.outcome == "fulfilled"
    assert now_is(two).state == states.FULFILLED


def test_what_a_claim_is_told(database: Database) -> None:
    filed(1)
    claimed()
    for run in ("run-1", "run-never"):
        ledger.note_verdict(run, "rejected", ["budget"], "mlflow-8")
    found = ledger.find_claim("run-1")
    assert found is not None
    assert (found.mlflow_run, found.verdict) == ("mlflow-8", "rejected")
    assert found.failed_checks == ("budget",)
    ledger.close_claim("run-1", ledger.FAILED)
    ledger.note_verdict("run-1", "passed", [], "mlflow-9")
    found = ledger.find_claim("run-1")
    assert found is not None
    assert (found.mlflow_run, found.verdict) == ("mlflow-8", "rejected")


def test_a_lease_is_renewed(database: Database) -> None:
    filed(1)
    before = claimed(lease_seconds=10)
    assert ledger.extend_claim("run-1", 60)
    after = ledger.find_claim("run-1")
    assert after is not None
    longer = datetime.fromisoformat(after.lease_until) - datetime.fromisoformat(before.lease_until)
    assert timedelta(seconds=40) < longer < timedelta(seconds=60)
    ledger.close_claim("run-1", ledger.FAILED)
    assert not ledger.extend_claim("run-1", 60)
    assert not ledger.extend_claim("run-never", 60)


def test_a_lease_that_ran_out(database: Database) -> None:
    made, fish = filed(1), filed(1, model="fish")
    claimed()
    claimed("run-2", model="fish")
    assert ledger.list_lost_claims(MODEL) == ledger.list_lost_claims("fish") == []
    database.execute(f"UPDATE claims SET lease_until = '{LATE}' WHERE run = 'run-1'")
    assert [claim.run for claim in ledger.list_lost_claims(MODEL)] == ["run-1"]
    assert ledger.list_lost_claims("fish") == []
    assert ledger.extend_claim("run-1", 60)  # nobody has taken it away yet
    assert ledger.list_lost_claims(MODEL) == []
    database.execute(f"UPDATE claims SET lease_until = '{LATE}' WHERE run = 'run-1'")
    ledger.close_claim("run-1", ledger.FAILED, error="the run died or lost its lease")
    assert ledger.list_lost_claims(MODEL) == []
    assert claimed("run-3").requests == (made.id,)
    assert now_is(fish).state == states.CLAIMED


def test_a_lease_runs_out_by_itself(database: Database) -> None:
    filed(1)
    claim = claimed(lease_seconds=0.0)
    assert ledger.list_lost_claims(MODEL) == [claim]


def test_a_process_that_ended(database: Database) -> None:
    filed(1)
    command = [sys.executable, "-c", HOLDER + "time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        claimed(holder=process.stdout.readline().strip())
        try:
            assert ledger.list_lost_claims(MODEL) == []
        finally:
            process.kill()
    assert [claim.run for claim in ledger.list_lost_claims(MODEL)] == ["run-1"]


def test_processes_that_nobody_can_see_from_here(database: Database) -> None:
    for number, holder in enumerate((None, "another-machine 1 2", processes.name_this_process())):
        filed(number)
        claimed(f"run-{number}", holder=holder)
    assert ledger.list_lost_claims(MODEL) == []


def test_what_fails_again_and_again_waits_for_the_others(database: Database) -> None:
    hard, easy = filed(1, due=day(1)), filed(2, due=day(2))
    for number in range(2):  # from the second failure on, each by itself
        claimed(f"run-{number}")
        ledger.close_claim(f"run-{number}", ledger.FAILED)
    assert claimed("run-2").requests == (hard.id,)
    ledger.close_claim("run-2", ledger.FAILED)
    assert claimed("run-3").requests == (easy.id,)


def test_a_failure_is_explained_where_more_is_known_of_it(database: Database) -> None:
    made = filed(1)
    claimed()
    ledger.explain_failure("run-1", "too early")
    assert now_is(made).error is None
    ledger.close_claim("run-1", ledger.FAILED, error="a task failed")
    ledger.explain_failure("run-1", "the disk is full")
    ledger.explain_failure("run-2", "another's")
    assert now_is(made).error == "the disk is full"
    claimed("run-2")
    ledger.close_claim("run-2", ledger.INTERRUPTED)
    assert now_is(made).error == "the disk is full"


def test_a_rejection_beside_what_serves_no_more_is_none(database: Database) -> None:
    made = filed(1)
    claimed()
    ledger.note_verdict("run-1", "rejected", ["budget"], "mlflow")
    closed = ledger.close_claim("run-1", ledger.OVERTAKEN)
    assert closed is not None
    assert closed.outcome == ledger.OVERTAKEN
    assert (now_is(made).state, now_is(made).attempts) == ("pending", 0)
