"""The champion: changed by compare-and-swap, and never to what remembers an erased class."""

import pytest
from databases import MODEL, Database, claimed, filed, now_is

from expunge import ledger, states
from expunge.errors import RefusedError
from expunge.ledger import Champion, Erasure

pytest_plugins = ["databases"]


def change(version: int, *forgotten: int, expected: int | None, token: int | None = None) -> None:
    ledger.change_champion(
        MODEL, version, forgotten=forgotten, grade="suppressed", expected=expected, token=token
    )


def test_a_model_without_a_champion(database: Database) -> None:
    assert ledger.find_champion(MODEL) is None
    assert ledger.list_champion_models() == []
    assert ledger.list_erasures(MODEL) == {}
    assert ledger.fulfil(MODEL) == []


def test_a_champion_is_replaced(database: Database) -> None:
    first = ledger.change_champion(MODEL, 1, forgotten=(), grade="trained", expected=None)
    assert first == ledger.find_champion(MODEL) == Champion(MODEL, 1, "", None, (), "trained", 1)
    second = ledger.change_champion(MODEL, 4, forgotten={7, 3}, grade="forgotten", expected=1)
    assert (
        second == ledger.find_champion(MODEL) == Champion(MODEL, 4, "", 1, (3, 7), "forgotten", 2)
    )
    third = ledger.change_champion(
        MODEL, 3, forgotten=[3, 7], grade="suppressed", expected=4, why="rolled-back"
    )
    assert (
        third == ledger.find_champion(MODEL) == Champion(MODEL, 3, "", 4, (3, 7), "suppressed", 3)
    )
    assert ledger.find_champion("fish") is None
    kinds = [event.kind for event in ledger.list_events()]
    assert kinds == ["champion-promoted", "class-erased", "class-erased", "champion-promoted",
                     "champion-rolled-back"]  # fmt: skip
    assert ledger.list_events()[3].body == {
        "version": 4,
        "weights": "",
        "previous": 1,
        "forgotten": [3, 7],
        "grade": "forgotten",
        "revision": 2,
        "token": None,
    }


def test_models_with_a_champion(database: Database) -> None:
    for model in ("fish", MODEL):
        ledger.change_champion(model, 1, forgotten=(), grade="trained", expected=None)
    assert ledger.list_champion_models() == [MODEL, "fish"]


def test_what_is_champion_already_is_left(database: Database) -> None:
    change(1, expected=None)
    change(2, 3, expected=1)
    before, events = ledger.find_champion(MODEL), ledger.list_events()
    for expected, token in ((1, None), (2, None), (None, None), (9, 77)):
        change(2, 3, expected=expected, token=token)
    assert (ledger.find_champion(MODEL), ledger.list_events()) == (before, events)


def test_another_champion_came_between(database: Database) -> None:
    change(1, expected=None)
    change(2, 3, expected=1)
    again = "run the pipeline again from the new champion"
    for expected, said in ((1, "version 1"), (None, "none")):
        text = (
            "the champion of 'birds' is version 2 by now and version 3 was compared with "
            f"{said}; {again}"
        )
        with pytest.raises(RefusedError, match=text):
            change(3, 3, expected=expected)
    text = "the champion of 'fish' is none by now and version 3 was compared with version 1; run"
    with pytest.raises(RefusedError, match=text):
        ledger.change_champion("fish", 3, forgotten=(), grade="trained", expected=1)
    found = ledger.find_champion(MODEL)
    assert found is not None
    assert (found.version, found.revision) == (2, 2)
    assert list(ledger.list_erasures(MODEL)) == [3]
    assert ledger.find_champion("fish") is None


def test_a_claim_that_was_lost(database: Database) -> None:
    change(1, expected=None)
    filed(3)
    first = claimed()
    ledger.close_claim("run-1", ledger.FAILED, error="the run died or lost its lease")
    second = claimed("run-2")
    text = (
        rf"the run that made version 2 of 'birds' has lost its requests \(claim {first.token} is "
        r"closed\); another run works on them or has settled them, so that this version is not"
    )
    with pytest.raises(RefusedError, match=text):
        change(2, 3, expected=1, token=first.token)
    with pytest.raises(RefusedError, match=r"has lost its requests \(claim 99 is unknown\)"):
        change(2, 3, expected=1, token=99)
    assert ledger.list_erasures(MODEL) == {}
    change(3, 3, expected=1, token=second.token)
    found = ledger.find_champion(MODEL)
    assert found is not None
    assert found.version == 3
    assert ledger.list_events()[-1].body["token"] == second.token


def test_a_lease_that_ran_out_is_no_loss_until_somebody_takes_the_claim(database: Database) -> None:
    change(1, expected=None)
    made = filed(3)
    claim = claimed(lease_seconds=0.0)
    assert ledger.list_lost_claims(MODEL) == [claim]
    change(2, 3, expected=1, token=claim.token)
    assert [entry.id for entry in ledger.fulfil(MODEL)] == [made.id]


def test_an_erased_class_does_not_come_back(database: Database) -> None:
    made = filed(3)
    change(1, expected=None)
    change(2, 3, expected=1)
    change(3, 3, 5, expected=2)
    known = {3: Erasure(2, made.id), 5: Erasure(3, None)}
    assert ledger.list_erasures(MODEL) == known
    text = (
        rf"version 4 of 'birds' remembers class 3 \(erased by version 2 for request {made.id}\), "
        r"class 5 \(erased by version 3\); an erased class does not come back: forget it in this "
        "version too, or train without it"
    )
    for forgotten in ((), (4,)):
        with pytest.raises(RefusedError, match=text):
            change(4, *forgotten, expected=3)
    with pytest.raises(RefusedError, match=r"version 1 of 'birds' remembers class 5 \(erased by v"):
        change(1, 3, expected=3)
    with pytest.raises(RefusedError, match="version 9 of 'birds' remembers class 3"):
        ledger.check_no_way_back(MODEL, 9, [5], known)
    ledger.check_no_way_back(MODEL, 9, [3, 4, 5], known)
    found = ledger.find_champion(MODEL)
    assert found is not None
    assert (found.version, found.previous) == (3, 2)
    assert ledger.list_erasures(MODEL) == known
    ledger.change_champion("fish", 1, forgotten=(), grade="trained", expected=None)


def test_a_cancelled_request_has_not_erased(database: Database) -> None:
    ledger.cancel_request(filed(3).id, "ann")
    change(2, 3, expected=None)
    assert ledger.list_erasures(MODEL) == {3: Erasure(2, None)}


def test_what_is_covered_is_fulfilled_once(database: Database) -> None:
    one, half, other = filed(3), filed(4, 5), filed(3, model="fish")
    unapproved, parked = filed(6, approval=True), filed(10)
    cancelled = ledger.cancel_request(filed(7).id, "ann")
    claim = claimed()
    assert claim.requests == (one.id, half.id)
    change(1, expected=None)
    change(2, 3, 4, 6, 7, 10, expected=1)
    done = ledger.fulfil(MODEL)
    assert sorted(entry.id for entry in done) == sorted([one.id, unapproved.id, parked.id])
    for entry in done:
        assert entry == now_is(entry)
        assert (entry.state, entry.version, entry.grade) == (states.FULFILLED, 2, "suppressed")
        assert (entry.error, entry.failed_checks) == (None, ())
        assert entry.settled_at is not None
    for entry in (half, other, cancelled):
        assert now_is(entry).version is None
    assert now_is(half).state == states.CLAIMED
    events = ledger.list_events()
    assert ledger.fulfil(MODEL) == []
    assert ledger.list_events() == events
    settled = [(event.request, event.body) for event in events if event.kind == "request-fulfilled"]
    assert sorted(request or "" for request, _ in settled) == sorted(entry.id for entry in done)
    assert all(body == {"version": 2, "grade": "suppressed"} for _, body in settled)
    ledger.change_champion(
        MODEL, 3, forgotten=[3, 4, 5, 6, 7, 10], grade="forgotten", expected=2, token=claim.token
    )
    assert [(entry.id, entry.version, entry.grade) for entry in ledger.fulfil(MODEL)] == [
        (half.id, 3, "forgotten")
    ]
    assert now_is(one).version == 2


def test_a_rejected_request_is_fulfilled_by_a_retrained_champion(database: Database) -> None:
    made = filed(3)
    claimed()
    ledger.note_verdict("run-1", "rejected", ["forget_error"], "mlflow-1")
    ledger.close_claim("run-1", ledger.FAILED)
    assert now_is(made).failed_checks == ("forget_error",)
    ledger.change_champion(MODEL, 2, forgotten=[3], grade="retrained", expected=None)
    (done,) = ledger.fulfil(MODEL)
    assert (done.id, done.grade, done.failed_checks) == (made.id, "retrained", ())


def test_a_champion_is_adopted(database: Database) -> None:
    made = filed(4)
    row = ledger.adopt_champion(
        MODEL, 5, previous=2, forgotten=(1, 4), grade="suppressed", erased={1: 3, 4: 5}
    )
    assert row == ledger.find_champion(MODEL) == Champion(MODEL, 5, "", 2, (1, 4), "suppressed", 1)
    assert ledger.list_erasures(MODEL) == {1: Erasure(3, None), 4: Erasure(5, made.id)}
    events = ledger.list_events()
    assert events[-1].kind == "champion-adopted"
    again = ledger.adopt_champion(
        MODEL, 9, previous=None, forgotten=(), grade="trained", erased={7: 9}
    )
    assert again == row
    assert ledger.list_events() == events
    assert [entry.id for entry in ledger.fulfil(MODEL)] == [made.id]


def test_what_an_adopted_champion_has_forgotten_does_not_come_back(database: Database) -> None:
    """Also where nothing but the version itself says that it has."""
    ledger.adopt_champion(MODEL, 5, previous=None, forgotten=(1, 4), grade="x", erased={1: 3, 6: 2})
    assert ledger.list_erasures(MODEL) == {
        1: Erasure(3, None),
        4: Erasure(5, None),
        6: Erasure(2, None),
    }
    with pytest.raises(RefusedError, match=r"class 4 \(erased by version 5\)"):
        change(6, 1, 6, expected=5)


def test_a_restored_alias_is_logged(database: Database) -> None:
    ledger.note_restored(MODEL, "champion", 3, 4)
    ledger.note_restored(MODEL, "previous", None, 3)
    first, second = ledger.list_events(MODEL)
    assert (first.kind, first.request) == ("alias-restored", None)
    assert first.body == {"alias": "champion", "found": 3, "restored": 4}
    assert second.body == {"alias": "previous", "found": None, "restored": 3}
