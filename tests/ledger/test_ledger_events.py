"""The log: chained, append-only, without personal texts, and found out where it was changed."""

import hashlib
import json

import pytest
from databases import MODEL, Database, claimed, filed
from sqlalchemy.exc import DBAPIError

from expunge import ledger
from expunge.errors import OperationalError
from expunge.ledger.database import begin_read
from expunge.ledger.schema import events, head

pytest_plugins = ["databases"]

BY_HAND = "somebody wrote into its database by hand: compare it with a backup"
SECRETS = ("Ann Lee", "Bob Ray", "Cy Doe", "moved away", "Zoe Fox")


def worked() -> str:
    """Log nine events and all kinds of texts, and return the id of the request that has them."""
    added = ledger.add_request(
        MODEL, {3: "Zoe Fox", 4: None}, reason="moved away", requester="Ann Lee", approval=True
    )
    assert added.created is not None
    request = added.created.id
    ledger.approve_request(request, "Bob Ray")
    for index in (5, 6, 7):
        filed(index)
    claimed(only=[request])
    ledger.close_claim("run-1", ledger.FAILED, error="Zoe Fox.png is broken")
    ledger.cancel_request(request, "Cy Doe")
    return request


def rehash(database: Database, seq: int) -> str:
    """Compute the hash of an event as it stands, apart from the ledger's code."""
    names = ("seq", "at", "kind", "model", "request", "body", "previous")
    (row,) = database.execute(f"SELECT {', '.join(names)} FROM events WHERE seq = {seq}")
    entry = dict(zip(names, row, strict=True))
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_empty_log(database: Database) -> None:
    assert ledger.list_events() == []
    assert len(ledger.verify_events()) == 0


def test_the_chain(database: Database) -> None:
    worked()
    events = ledger.list_events()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert len(ledger.verify_events()) == len(events) == 9
    previous = "0" * 64
    for event in events:
        assert event.hash == rehash(database, event.seq)
        ((stored,),) = database.execute(f"SELECT previous FROM events WHERE seq = {event.seq}")
        assert stored == previous
        previous = event.hash
    assert database.execute("SELECT id, seq, hash FROM head") == [(1, 9, previous)]


def test_events_are_of_a_model_or_a_request(database: Database) -> None:
    request = worked()
    filed(1, model="fish")
    whole = ledger.list_events()
    assert ledger.list_events("fish") == whole[-1:]
    assert ledger.list_events(MODEL) == whole[:-1]
    assert ledger.list_events(request=request) == [e for e in whole if e.request == request]
    assert [event.kind for event in ledger.list_events(request=request)] == [
        "request-added",
        "request-approved",
        "request-claimed",
        "request-put-back",
        "request-cancelled",
    ]
    assert ledger.list_events("fish", request) == ledger.list_events("cats") == []


def test_no_event_holds_a_personal_text(database: Database) -> None:
    request = worked()
    rows = str(database.execute("SELECT * FROM events"))
    assert request in rows
    for secret in SECRETS:
        assert secret not in rows
    ((digest,),) = database.execute(f"SELECT requester FROM requests WHERE id = '{request}'")
    assert digest in rows
    assert hashlib.sha256(b"Ann Lee").hexdigest() not in rows  # whoever knows the name finds no one


def test_the_same_text_has_another_digest_each_time(database: Database) -> None:
    filed(1)
    filed(2)
    digests = [row[0] for row in database.execute("SELECT digest FROM texts")]
    assert len(digests) == len(set(digests)) == 6
    assert len(set(database.execute("SELECT salt FROM texts"))) == 6


def test_the_body_of_a_filing(database: Database) -> None:
    made = filed(3, 1)
    (event,) = ledger.list_events()
    assert (event.model, event.request, event.at[:13]) == (MODEL, made.id, made.created_at[:13])
    assert event.body["classes"] == [1, 3]
    assert (event.body["due_at"], event.body["state"]) == (made.due_at, "pending")
    digests = {row[0] for row in database.execute("SELECT digest FROM texts")}
    body = event.body
    assert {*body["names"], body["requester"], body["reason"]} == digests


def test_the_database_refuses_to_change_the_log(database: Database) -> None:
    worked()
    before = ledger.list_events()
    columns = "seq, at, kind, model, request, body, previous, hash"
    row = "SELECT 1, at, 'forged', model, request, body, previous, hash FROM events WHERE seq = 1"
    detours = {
        "sqlite": (
            f"INSERT OR REPLACE INTO events ({columns}) {row}",
            f"REPLACE INTO events ({columns}) {row}",
            "UPDATE OR REPLACE events SET seq = 1 WHERE seq = 2",
            f"INSERT INTO events ({columns}) {row} ON CONFLICT (seq) DO UPDATE SET kind = 'forged'",
        ),
        "postgresql": (
            "TRUNCATE events",
            "TRUNCATE events CASCADE",
            f"INSERT INTO events ({columns}) {row} ON CONFLICT (seq) DO UPDATE SET kind = 'forged'",
            "WITH gone AS (DELETE FROM events RETURNING seq) SELECT * FROM gone",
        ),
    }
    plain = (
        "UPDATE events SET kind = 'forged' WHERE seq = 1",
        "DELETE FROM events WHERE seq = 1",
        "DELETE FROM events",
    )
    for change in (*plain, *detours[database.kind]):
        with pytest.raises(DBAPIError, match="the event log is append-only"):
            database.execute(change)
    assert ledger.list_events() == before
    assert len(ledger.verify_events()) == len(before)


FORGED = [
    ("UPDATE events SET kind = 'forged' WHERE seq = 2", "event 2 of the ledger was changed"),
    ("UPDATE events SET at = '2020' WHERE seq = 3", "event 3 of the ledger was changed"),
    ("UPDATE events SET model = 'fish' WHERE seq = 9", "event 9 of the ledger was changed"),
    ("UPDATE events SET request = NULL WHERE seq = 1", "event 1 of the ledger was changed"),
    ("UPDATE events SET body = '{}' WHERE seq = 4", "event 4 of the ledger was changed"),
    ("UPDATE events SET body = body || ' ' WHERE seq = 4", "event 4 of the ledger was changed"),
    ("UPDATE events SET hash = previous WHERE seq = 5", "event 5 of the ledger was changed"),
    ("UPDATE events SET seq = 12 WHERE seq = 9", "event 9 of the ledger is missing"),
    ("DELETE FROM events WHERE seq = 1", "event 1 of the ledger is missing"),
    ("DELETE FROM events WHERE seq = 6", "event 6 of the ledger is missing"),
    ("DELETE FROM events WHERE seq > 7", "the ledger has 7 events and its head says 9"),
    ("DELETE FROM events", "the ledger has 0 events and its head says 9"),
    (
        "INSERT INTO events SELECT 10, at, 'forged', model, request, body, previous, hash "
        "FROM events WHERE seq = 9",
        "event 10 of the ledger was changed",
    ),
    (
        "INSERT INTO events SELECT 0, at, kind, model, request, body, previous, hash "
        "FROM events WHERE seq = 1",
        "event 1 of the ledger is missing",
    ),
    ("UPDATE head SET seq = 8", "the ledger has 9 events and its head says 8"),
    ("UPDATE head SET hash = 'x'", "the ledger has 9 events and its head says 9"),
    ("DELETE FROM head", "could not verify the events: No row was found"),
]


def test_a_changed_log_is_found(database: Database) -> None:
    worked()
    assert len(ledger.verify_events()) == 9
    database.unguard()
    tables = ("events", "head")
    database.execute(*(f"CREATE TABLE kept_{name} AS SELECT * FROM {name}" for name in tables))
    for change, found in FORGED:
        database.execute(change)
        with pytest.raises(OperationalError, match=found) as caught:
            ledger.verify_events()
        assert BY_HAND in str(caught.value) or change == "DELETE FROM head"
        assert "\n" not in str(caught.value)
        for name in tables:
            database.execute(f"DELETE FROM {name}", f"INSERT INTO {name} SELECT * FROM kept_{name}")
        assert len(ledger.verify_events()) == 9


def test_an_event_with_a_fitting_hash_breaks_the_chain_after_it(database: Database) -> None:
    worked()
    database.unguard()
    database.execute("UPDATE events SET kind = 'forged' WHERE seq = 4")
    database.execute(f"UPDATE events SET hash = '{rehash(database, 4)}' WHERE seq = 4")
    with pytest.raises(OperationalError, match="event 5 of the ledger was changed"):
        ledger.verify_events()


def test_an_event_put_at_the_end_with_a_fitting_hash_is_found_by_the_head(
    database: Database,
) -> None:
    worked()
    database.unguard()
    database.execute(
        "INSERT INTO events SELECT 10, at, 'forged', model, request, body, hash, hash "
        "FROM events WHERE seq = 9"
    )
    database.execute(f"UPDATE events SET hash = '{rehash(database, 10)}' WHERE seq = 10")
    with pytest.raises(OperationalError, match="the ledger has 10 events and its head says 9"):
        ledger.verify_events()


def test_a_changed_text_is_found(database: Database) -> None:
    request = worked()
    for field, column, value in (("canceller", "text", "Eve"), ("approver", "salt", "00" * 32)):
        database.execute(f"UPDATE texts SET {column} = '{value}' WHERE field = '{field}'")
        text = f"the {field} of request {request} was changed; {BY_HAND}"
        with pytest.raises(OperationalError, match=text):
            ledger.verify_events()
        database.execute(f"UPDATE texts SET salt = NULL, text = NULL WHERE field = '{field}'")
        assert len(ledger.verify_events()) == 9


def test_erased_texts_leave_the_chain_whole_and_are_nowhere(database: Database) -> None:
    request = worked()
    stored = database.execute(f"SELECT field, salt FROM texts WHERE request = '{request}'")
    salts = dict(stored)
    assert sorted(salts) == ["approver", "canceller", "name of 3", "reason", "requester"]
    kept = database.execute(f"SELECT salt FROM texts WHERE request <> '{request}'")
    gone = set(salts.values())
    before = database.dump()
    for text in (*SECRETS, *gone):
        assert text.encode() in before
    assert ledger.erase_texts(request, MODEL) == 5
    after = database.dump()
    for text in (*SECRETS, *gone):
        assert text.encode() not in after, text
    for (salt,) in kept:
        assert salt.encode() in after
    assert len(ledger.verify_events()) == 10
    last = ledger.list_events()[-1]
    assert (last.kind, last.request, last.body) == ("texts-erased", request, {"texts": 5})
    assert ledger.erase_texts(request, MODEL) == ledger.erase_texts("unknown", MODEL) == 0
    assert len(ledger.verify_events()) == 10


def test_a_log_that_grows_while_it_is_read_is_whole(database: Database) -> None:
    """`verify` sees one moment, whatever others write meanwhile."""
    filed(1)
    with begin_read("look twice") as connection:
        first = connection.execute(events.select()).all()
        if database.kind == "postgresql":  # in SQLite a writer waits for the reader
            filed(2)
        assert connection.execute(events.select()).all() == first
        assert connection.execute(head.select()).one().seq == len(first) == 1
    assert len(ledger.verify_events()) == len(ledger.list_events())
