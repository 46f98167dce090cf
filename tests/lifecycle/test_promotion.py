import pytest
from mlflow_store import Registrar

from expunge import ledger, registry
from expunge.errors import RefusedError, UserError
from expunge.lifecycle import promotion
from expunge.registry import store as connection

pytest_plugins = ["mlflow_store"]


def test_promote_moves_champion_and_previous(registrar: Registrar) -> None:
    for seed in range(3):
        registrar("shapes", seed)
    promotion.promote("shapes", 1, None)
    promotion.promote("shapes", 2, 1)
    promotion.promote("shapes", 2, 1)  # again: nothing
    aliases = {entry.version: entry.aliases for entry in registry.list_versions("shapes")}
    assert aliases == {1: ("previous",), 2: ("champion",), 3: ()}
    promoted = {entry.version: entry.promoted for entry in registry.list_versions("shapes")}
    assert promoted == {1: True, 2: True, 3: False}


def test_promote_refuses_when_another_champion_came_between(registrar: Registrar) -> None:
    for seed in range(3):
        registrar("shapes", seed)
    promotion.promote("shapes", 1, None)
    with pytest.raises(
        RefusedError, match="is version 1 by now and version 2 was compared with none"
    ):
        promotion.promote("shapes", 2, None)
    promotion.promote("shapes", 2, 1)
    with pytest.raises(RefusedError, match="is version 2 by now and version 3 was compared with"):
        promotion.promote("shapes", 3, 1)
    with pytest.raises(UserError, match="has no version 7"):
        promotion.promote("shapes", 7, 2)


def test_promote_refuses_what_the_gate_rejected(registrar: Registrar) -> None:
    registrar("shapes", gate="rejected")
    with pytest.raises(RefusedError, match="not registered by expunge with a passed gate"):
        promotion.promote("shapes", 1, None)
    assert promotion.list_erased("shapes") == {}


def test_an_erased_class_does_not_come_back(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    registrar("shapes", 2, forgotten=(1, 3))
    registrar("shapes", 3, forgotten=(1,))
    promotion.promote("shapes", 1, None)
    assert promotion.list_erased("shapes") == {}
    promotion.promote("shapes", 2, 1)
    assert set(promotion.list_erased("shapes")) == {3}
    with pytest.raises(RefusedError, match=r"remembers class 3 \(erased by version 2\)"):
        promotion.rollback("shapes")
    promotion.promote("shapes", 3, 2)
    assert set(promotion.list_erased("shapes")) == {1, 3}
    with pytest.raises(RefusedError, match=r"version 4 .* class 3 \(erased by version 2\)"):
        promotion.promote("shapes", 4, 3)
    with pytest.raises(RefusedError, match=r"class 1 \(erased by version 3\); an erased class"):
        promotion.rollback("shapes")
    assert registry.resolve("shapes").version == 3


def test_erasure_outlives_the_version_that_erased(registrar: Registrar) -> None:
    registrar("shapes", 0, forgotten=(3,))
    registrar("shapes", 1)
    promotion.promote("shapes", 1, None)
    connection.connect().delete_model_version("shapes", "1")
    assert set(promotion.list_erased("shapes")) == {3}
    with pytest.raises(RefusedError, match=r"remembers class 3 \(erased by version 1\)"):
        promotion.promote("shapes", 2, None)


def test_rollback_swaps_champion_and_previous(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1)
    promotion.promote("shapes", 1, None)
    with pytest.raises(UserError, match="'shapes' has no previous champion; version 1 stays"):
        promotion.rollback("shapes")
    promotion.promote("shapes", 2, 1)
    assert promotion.rollback("shapes") == (1, 2)
    assert {e.version: e.aliases for e in registry.list_versions("shapes")} == {
        1: ("champion",),
        2: ("previous",),
    }
    assert promotion.rollback("shapes") == (2, 1)


def stand(name: str) -> dict[str, int]:
    """Where MLflow's aliases stand."""
    return registry.read_aliases(name)


def test_an_alias_that_somebody_moved_is_put_right_and_logged(registrar: Registrar) -> None:
    """Onto a version that remembers, off the model, or onto another that may serve."""
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    registrar("shapes", 2, forgotten=(3,))
    promotion.promote("shapes", 1, None)
    promotion.promote("shapes", 2, 1)
    client = connection.connect()
    for moved in (1, 3):
        client.set_registered_model_alias("shapes", "champion", str(moved))
        found = promotion.reconcile("shapes")
        assert found.restored == {"champion": (moved, 2)}
        assert stand("shapes") == {"champion": 2, "previous": 1}
    client.delete_registered_model_alias("shapes", "champion")
    client.set_registered_model_alias("shapes", "previous", "3")
    found = promotion.reconcile("shapes")
    assert found.restored == {"champion": (None, 2), "previous": (3, 1)}
    assert promotion.reconcile("shapes").restored == {}
    logged = [e.body for e in ledger.list_events("shapes") if e.kind == "alias-restored"]
    assert [(body["alias"], body["found"], body["restored"]) for body in logged] == [
        ("champion", 1, 2), ("champion", 3, 2), ("champion", None, 2), ("previous", 3, 1),
    ]  # fmt: skip


def test_a_refusal_names_the_request_that_stands_in_the_way(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    registrar("shapes", 2)
    asked = ledger.add_request("shapes", {3: "eve"}, reason="asked", requester="ada").created
    assert asked is not None
    promotion.promote("shapes", 1, None)
    promotion.promote("shapes", 2, 1)
    said = rf"remembers class 3 \(erased by version 2 for request {asked.id}\); an erased class"
    with pytest.raises(RefusedError, match=f"version 3 of 'shapes' {said}"):
        promotion.promote("shapes", 3, 2)
    with pytest.raises(RefusedError, match=f"version 1 of 'shapes' {said}"):
        promotion.rollback("shapes")
    assert stand("shapes") == {"champion": 2, "previous": 1}


def test_a_store_of_an_older_version_of_expunge_is_taken_over(registrar: Registrar) -> None:
    """It has aliases and tags, and no row in a ledger."""
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    client = connection.connect()
    client.set_model_version_tag("shapes", "2", "expunge.promoted", "true")
    client.set_registered_model_tag("shapes", "expunge.erased.3", "2")
    client.set_registered_model_alias("shapes", "previous", "1")
    client.set_registered_model_alias("shapes", "champion", "2")
    assert promotion.reconcile("shapes").champion == 2
    row = ledger.find_champion("shapes")
    assert row is not None
    assert (row.version, row.previous, row.forgotten) == (2, 1, (3,))
    assert set(ledger.list_erasures("shapes")) == {3}
    with pytest.raises(RefusedError, match=r"remembers class 3 \(erased by version 2\)"):
        promotion.rollback("shapes")


def test_an_alias_on_what_may_not_serve_is_not_taken_over(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, gate="rejected")
    client = connection.connect()
    client.set_registered_model_tag("shapes", "expunge.erased.3", "7")
    for version in ("1", "2"):
        client.set_registered_model_alias("shapes", "champion", version)
        found = promotion.reconcile("shapes")
        assert (found.champion, found.restored) == (None, {"champion": (int(version), None)})
        assert stand("shapes") == {}
    assert ledger.find_champion("shapes") is None


def test_a_champion_that_was_deleted_serves_nothing_else(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1)
    promotion.promote("shapes", 1, None)
    promotion.promote("shapes", 2, 1)
    client = connection.connect()
    client.delete_model_version("shapes", "2")
    client.set_registered_model_alias("shapes", "champion", "1")
    found = promotion.reconcile("shapes")
    assert found.missing
    assert stand("shapes") == {"previous": 1}
    assert promotion.rollback("shapes") == (1, 2)
    assert not promotion.reconcile("shapes").missing
    assert stand("shapes") == {"champion": 1}


def test_a_process_that_died_between_row_and_alias_is_made_good(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    asked = ledger.add_request("shapes", {3: "eve"}, reason="asked", requester="ada").created
    assert asked is not None
    promotion.promote("shapes", 1, None)
    weights = registry.resolve("shapes", 2).digests["weights"]
    ledger.change_champion(
        "shapes", 2, forgotten=(3,), grade="suppressed", expected=1, weights=weights
    )
    assert stand("shapes") == {"champion": 1}
    assert ledger.find_request(asked.id).state == "pending", "not before it serves"
    found = promotion.reconcile("shapes")
    assert [entry.id for entry in found.fulfilled] == [asked.id]
    assert stand("shapes") == {"champion": 2, "previous": 1}
    assert registry.read_erased_tags("shapes") == {3: 2}


def test_a_model_that_nobody_knows_has_nothing_to_reconcile(registrar: Registrar) -> None:
    found = promotion.reconcile("shapes")
    assert (found.champion, found.restored, found.fulfilled) == (None, {}, ())
    with pytest.raises(UserError, match="there is no model 'shapes'"):
        promotion.rollback("shapes")
    registrar("shapes", 0)
    with pytest.raises(UserError, match="has no champion among its versions 1"):
        promotion.rollback("shapes")


def test_a_model_made_anew_under_the_same_name_has_other_versions(registrar: Registrar) -> None:
    """The numbers of a deleted model come again, and stand for versions that nobody checked."""
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    promotion.promote("shapes", 1, None)
    promotion.promote("shapes", 2, 1)
    client = connection.connect()
    client.delete_registered_model("shapes")
    registrar("shapes", 5)
    registrar("shapes", 6)
    asked = ledger.add_request("shapes", {1: "bob"}, reason="asked", requester="ada").created
    assert asked is not None
    for version in (1, 2):
        with pytest.raises(RefusedError, match=r"remembers class 3 \(erased by version 2\)"):
            promotion.promote("shapes", version, 2)
    found = promotion.reconcile("shapes")
    assert (found.champion, found.missing, found.fulfilled) == (2, True, ())
    assert "champion" not in stand("shapes")
    assert not any(entry.promoted for entry in registry.list_versions("shapes"))
    registrar("shapes", 7, forgotten=(1, 3))
    (done,) = promotion.promote("shapes", 3, 2)
    assert done.id == asked.id
    assert stand("shapes")["champion"] == 3


def test_the_same_number_of_a_model_made_anew_is_another_champion(registrar: Registrar) -> None:
    registrar("shapes", 0)
    promotion.promote("shapes", 1, None)
    connection.connect().delete_registered_model("shapes")
    registrar("shapes", 1, forgotten=(3,))
    asked = ledger.add_request("shapes", {3: "eve"}, reason="asked", requester="ada").created
    assert asked is not None
    (done,) = promotion.promote("shapes", 1, 1)
    assert (done.id, done.version) == (asked.id, 1)
    assert stand("shapes") == {"champion": 1}


def test_the_newest_champion_is_taken_over_where_the_alias_may_not_stand(
    registrar: Registrar,
) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    client = connection.connect()
    for version in ("1", "2"):
        client.set_model_version_tag("shapes", version, "expunge.promoted", "true")
    client.set_registered_model_alias("shapes", "champion", "1")
    assert promotion.reconcile("shapes").restored == {"champion": (1, 2)}
    assert set(ledger.list_erasures("shapes")) == {3}


def test_a_version_that_was_not_recorded_is_recorded(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    promotion.promote("shapes", 1, None)
    assert ledger.list_addresses("shapes") == set()
    promotion.reconcile("shapes")
    assert ledger.list_addresses("shapes") == {"models:/shapes/1", "models:/shapes/2"}
    assert [entry.address for entry in ledger.list_remembering("shapes", [3])] == [
        "models:/shapes/1"
    ]
    promotion.reconcile("shapes")
    assert len(ledger.list_remembering("shapes", [0])) == 2


@pytest.mark.parametrize("name", ["a'b", "a b", ""])
def test_a_name_that_is_none(store: object, name: str) -> None:
    for act in (promotion.reconcile, promotion.rollback, promotion.list_erased):
        with pytest.raises(UserError, match=r"the model name .* is not usable"):
            act(name)
