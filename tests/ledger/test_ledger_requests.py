"""Requests: filed once for a class, approved by a second person, cancelled, put back, found."""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import pytest
from databases import MODEL, Database, claim_or_none, claimed, filed, now_is

from expunge import ledger, states
from expunge.errors import RefusedError, UserError
from expunge.ledger import Request

pytest_plugins = ["databases"]

CLASS = 3  # what `in_state` asks for
PAST, SOON = datetime(2020, 1, 2, tzinfo=UTC), datetime(2090, 1, 2, tzinfo=UTC)


def in_state(state: str, model: str = MODEL) -> Request:
    """Bring a request to a state by the way that leads there."""
    made, run = filed(CLASS, model=model, approval=state == states.UNAPPROVED), f"run-{model}"
    if state in (states.CLAIMED, states.REJECTED, states.PARKED):
        claimed(run, model=model)
    if state == states.REJECTED:
        ledger.note_verdict(run, "rejected", ["forget_error"], "mlflow-1")
        ledger.close_claim(run, ledger.FAILED)
    elif state == states.PARKED:
        ledger.close_claim(run, ledger.FAILED, error="out of memory", attempts=1)
    elif state == states.FULFILLED:
        ledger.change_champion(model, 2, forgotten=[CLASS], grade="suppressed", expected=None)
        ledger.fulfil(model)
    elif state == states.CANCELLED:
        ledger.cancel_request(made.id, "ann")
    found = now_is(made)
    assert found.state == state
    return found


def in_each(*excluded: str) -> list[Request]:
    """Make a request in each state but the excluded, of a model that is called like the state."""
    return [in_state(state, state) for state in states.STATES if state not in excluded]


def test_a_request_says_what_was_asked(database: Database) -> None:
    added = ledger.add_request(
        MODEL, {5: "Bob Ray", 2: None}, reason="consent withdrawn", requester="Ann Lee"
    )
    made = added.created
    assert made is not None
    assert added.requests == (made,)
    assert re.fullmatch(r"20\d{6}-[0-9a-f]{10}", made.id)
    assert made.id.startswith(made.created_at[:10].replace("-", ""))
    assert (made.model, made.classes, made.state) == (MODEL, (2, 5), states.PENDING)
    assert dict(made.names) == {2: None, 5: "Bob Ray"}
    assert (made.requester, made.reason, made.approver) == ("Ann Lee", "consent withdrawn", None)
    assert (made.approved, made.alone, made.overdue, made.attempts) == (False, False, False, 0)
    assert (made.token, made.run, made.version, made.grade) == (None, None, None, None)
    assert (made.failed_checks, made.error, made.settled_at) == ((), None, None)
    created = datetime.fromisoformat(made.created_at)
    assert abs(created - datetime.now(UTC)) < timedelta(minutes=1)
    assert datetime.fromisoformat(made.due_at) - created == timedelta(days=30)
    assert ledger.find_request(made.id) == made
    assert ledger.list_requests() == [made]


def test_ids_are_not_guessed(database: Database) -> None:
    made = [filed(index).id for index in range(9)]
    assert len({request.split("-")[1] for request in made}) == 9


def test_the_due_date_is_kept_in_utc_and_can_pass(database: Database) -> None:
    there = timezone(timedelta(hours=-5))
    late = filed(1, due=datetime(2021, 3, 4, 22, 30, tzinfo=there))
    assert late.due_at == "2021-03-05T03:30:00.000000+00:00"
    assert late.overdue
    assert not filed(2, due=SOON).overdue
    assert not ledger.cancel_request(late.id, "ann").overdue


def test_what_is_open_is_overdue(database: Database) -> None:
    made = in_each()
    assert not any(entry.overdue for entry in made)
    database.execute("UPDATE requests SET due_at = '2020-01-02T00:00:00.000000+00:00'")
    assert {now_is(entry).state for entry in made if now_is(entry).overdue} == set(states.OPEN)


def test_asked_twice_is_the_same_request(database: Database) -> None:
    first = filed(1, 2)
    for classes in ({1: "x", 2: "y"}, {2: "y"}):
        again = ledger.add_request(MODEL, classes, reason="again", requester="bob")
        assert again.created is None
        assert again.existing == again.requests == (first,)
    assert ledger.list_requests() == [first]
    assert [entry.kind for entry in ledger.list_events()] == ["request-added"]


def test_half_of_it_asked_already(database: Database) -> None:
    one, two = filed(1, 2), filed(3)
    both = ledger.add_request(
        MODEL, {3: None, 4: "d", 2: None, 5: None}, reason="more", requester="bob"
    )
    assert both.created is not None
    assert both.created.classes == (4, 5)
    assert dict(both.created.names) == {4: "d", 5: None}
    assert both.existing == tuple(sorted((one, two), key=lambda entry: entry.id))
    assert both.requests == (both.created, *both.existing)


def test_nothing_asked_files_nothing(database: Database) -> None:
    assert ledger.add_request(MODEL, {}, reason="none", requester="ann").requests == ()
    assert ledger.list_requests() == ledger.list_events() == []


def test_a_class_of_another_model_is_another_class(database: Database) -> None:
    assert filed(1) != filed(1, model="fish")


def test_a_request_stands_for_its_class_in_every_state(database: Database) -> None:
    for made in in_each(states.CANCELLED):
        again = ledger.add_request(made.model, {CLASS: None}, reason="again", requester="bob")
        assert again == ledger.Added(None, (made,))


def test_a_cancelled_request_frees_its_class(database: Database) -> None:
    cancelled = in_state(states.CANCELLED)
    again = filed(CLASS)
    assert again.id != cancelled.id
    assert again.state == states.PENDING
    assert now_is(cancelled) == cancelled
    assert ledger.cancel_request(again.id, "ann").state == states.CANCELLED
    assert filed(CLASS).state == states.PENDING


def test_a_second_person_approves(database: Database) -> None:
    made = filed(1, by="Ann Lee", approval=True)
    assert (made.state, made.approved) == (states.UNAPPROVED, False)
    assert claim_or_none() is None
    for same in ("Ann Lee", "ANN LEE", "ann lee"):
        refused = f"request {made.id} was filed by '{same}'; a second person has to approve it"
        with pytest.raises(RefusedError, match=refused):
            ledger.approve_request(made.id, same)
    assert now_is(made) == made
    approved = ledger.approve_request(made.id, "Bob")
    assert (approved.state, approved.approved, approved.approver) == (states.PENDING, True, "Bob")
    assert claimed().requests == (made.id,)


def test_nothing_to_approve(database: Database) -> None:
    for made in in_each(states.UNAPPROVED):
        text = f"request {made.id} is {made.state}; it waits for no approval"
        with pytest.raises(UserError, match=text):
            ledger.approve_request(made.id, "bob")
        assert now_is(made) == made


def test_who_filed_and_had_that_erased_does_not_approve(database: Database) -> None:
    made = filed(1, by="ann", approval=True)
    ledger.erase_texts(made.id, MODEL)
    refused = f"request {made.id} has its texts erased, and nobody can tell who filed it; cancel it"
    with pytest.raises(RefusedError, match=refused):
        ledger.approve_request(made.id, "ann")
    assert now_is(made).state == states.UNAPPROVED


def test_what_no_run_holds_is_cancelled(database: Database) -> None:
    for made in in_each(states.CLAIMED, states.FULFILLED, states.CANCELLED):
        cancelled = ledger.cancel_request(made.id[-6:], "cy")
        assert (cancelled.id, cancelled.state) == (made.id, states.CANCELLED)
        assert cancelled.settled_at is not None
        assert claim_or_none("run-late", made.model) is None


def test_what_is_not_cancelled(database: Database) -> None:
    held = in_state(states.CLAIMED)
    text = f"request {held.id} is being worked on by run run-birds; cancel it after that, if it"
    with pytest.raises(RefusedError, match=text):
        ledger.cancel_request(held.id, "ann")
    assert now_is(held) == held
    ledger.change_champion(MODEL, 7, forgotten=[CLASS], grade="suppressed", expected=None)
    (done,) = ledger.fulfil(MODEL)
    text = f"{done.id} is fulfilled by version 7 of 'birds'; what is forgotten does not come back"
    with pytest.raises(RefusedError, match=text):
        ledger.cancel_request(done.id, "ann")
    gone = ledger.cancel_request(filed(1).id, "ann")
    with pytest.raises(UserError, match=f"request {gone.id} is cancelled already"):
        ledger.cancel_request(gone.id, "ann")
    assert now_is(done) == done


def test_a_request_is_put_back(database: Database) -> None:
    for state in (states.REJECTED, states.PARKED):
        made = in_state(state, state)
        assert made.settled_at is not None
        back = ledger.retry_request(made.id)
        assert (back.state, back.attempts, back.settled_at) == (states.PENDING, 0, None)
        assert claimed("run-later", model=state).requests == (made.id,)
        assert now_is(made).attempts == 1
        ledger.close_claim("run-later", ledger.OVERTAKEN)


def test_what_is_not_put_back(database: Database) -> None:
    for made in in_each(states.REJECTED, states.PARKED):
        text = f"request {made.id} is {made.state}; only a rejected or parked one is put back"
        with pytest.raises(UserError, match=text):
            ledger.retry_request(made.id)
        assert now_is(made) == made


def test_a_request_is_found_by_the_end_of_its_id(database: Database) -> None:
    made = [filed(index) for index in range(17)]  # of 16 digits, two have the same last one
    shared, count = Counter(entry.id[-1] for entry in made).most_common(1)[0]
    for entry in made:
        assert ledger.find_request(entry.id) == ledger.find_request(entry.id[-10:]) == entry
    text = rf"request '{shared}' means {count} requests; `expunge request list` shows their ids"
    with pytest.raises(UserError, match=text):
        ledger.find_request(shared)
    for unknown in ("", "nothing", "%", "_" * 10, made[0].id[:8], made[0].id + " "):
        text = rf"request '{unknown}' is not known; `expunge request list` shows their ids"
        with pytest.raises(UserError, match=re.escape(text)):
            ledger.find_request(unknown)
    with pytest.raises(UserError, match="request 'nothing' is not known"):
        ledger.retry_request("nothing")
    for decide in (ledger.approve_request, ledger.cancel_request):
        with pytest.raises(UserError, match="request 'nothing' is not known"):
            decide("nothing", "ann")


def test_the_list_is_by_due_date(database: Database) -> None:
    last, first = filed(1, due=SOON), filed(2, due=PAST)
    other = filed(1, model="fish", due=PAST + timedelta(days=1))
    same = [filed(index, due=SOON) for index in (3, 4)]
    assert ledger.list_requests() == [first, other, last, *same]
    assert ledger.list_requests("fish") == [other]
    assert ledger.list_requests("cats") == []
    gone = ledger.cancel_request(last.id, "ann")
    assert ledger.list_requests(states=[states.CANCELLED]) == [gone]
    assert ledger.list_requests("fish", [states.CANCELLED]) == []
    both = ledger.list_requests(MODEL, [states.PENDING, states.CANCELLED])
    assert both == [first, gone, *same]


def test_texts_can_be_read_until_they_are_erased(database: Database) -> None:
    made = filed(1, 2, by="Ann Lee", approval=True)
    before = ledger.approve_request(made.id, "Bob Ray")
    assert dict(before.names) == {1: "name-1", 2: "name-2"}
    assert (before.requester, before.reason, before.approver) == ("Ann Lee", "consent", "Bob Ray")
    other = filed(3)
    assert ledger.erase_texts(made.id, MODEL) == 5
    after = now_is(made)
    assert dict(after.names) == {1: None, 2: None}
    assert (after.requester, after.reason, after.approver) == (None, None, None)
    assert after.approved
    assert (after.state, after.classes, after.due_at) == (states.PENDING, (1, 2), made.due_at)
    assert now_is(other) == other
    assert ledger.erase_texts(made.id, MODEL) == 0
    assert claimed().requests == (made.id, other.id)


def test_what_is_no_text_is_not_filed(database: Database) -> None:
    """As the shell hands over an argument that is not UTF-8."""
    with pytest.raises(UserError, match=r"the ledger could not file a request: .*; use UTF-8"):
        ledger.add_request(MODEL, {1: None}, reason="caf\udce9", requester="ann")
    assert ledger.list_requests() == []
    assert filed(1).state == states.PENDING


@pytest.mark.slow
def test_a_ledger_of_many_requests(database: Database) -> None:
    """More than a statement of PostgreSQL may have parameters."""
    made, count = filed(0), 65_536
    numbers = {
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        f"WHERE i < {count}) ",
        "postgresql": f"WITH n(i) AS (SELECT generate_series(1, {count})) ",
    }[database.kind]
    columns = "model, state, created_at, due_at, requester, reason, alone, attempts"
    database.execute(
        f"INSERT INTO requests (id, {columns}) {numbers}"
        f"SELECT 'many-' || i, {columns} FROM requests, n",
        f"INSERT INTO request_classes (request, class_index, model, stands) {numbers}"
        "SELECT 'many-' || i, i, 'birds', 1 FROM n",
    )
    assert ledger.find_request(made.id) == made
    assert len(ledger.list_requests()) == count + 1
