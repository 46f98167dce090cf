import pytest
from mlflow_store import Registrar

from expunge import registry
from expunge.errors import RefusedError, UserError
from expunge.registry import store as connection

pytest_plugins = ["mlflow_store"]


def test_promote_moves_champion_and_previous(registrar: Registrar) -> None:
    for seed in range(3):
        registrar("shapes", seed)
    registry.promote("shapes", 1, None)
    registry.promote("shapes", 2, 1)
    registry.promote("shapes", 2, 1)  # again: nothing
    aliases = {entry.version: entry.aliases for entry in registry.versions("shapes")}
    assert aliases == {1: ("previous",), 2: ("champion",), 3: ()}
    promoted = {entry.version: entry.promoted for entry in registry.versions("shapes")}
    assert promoted == {1: True, 2: True, 3: False}


def test_promote_refuses_when_another_champion_came_between(registrar: Registrar) -> None:
    for seed in range(3):
        registrar("shapes", seed)
    registry.promote("shapes", 1, None)
    with pytest.raises(
        RefusedError, match="is version 1 by now and version 2 was compared with none"
    ):
        registry.promote("shapes", 2, None)
    registry.promote("shapes", 2, 1)
    with pytest.raises(RefusedError, match="is version 2 by now and version 3 was compared with"):
        registry.promote("shapes", 3, 1)
    with pytest.raises(UserError, match="has no version 7"):
        registry.promote("shapes", 7, 2)


def test_promote_refuses_what_the_gate_rejected(registrar: Registrar) -> None:
    registrar("shapes", gate="rejected")
    with pytest.raises(RefusedError, match="not registered by expunge with a passed gate"):
        registry.promote("shapes", 1, None)
    assert registry.erased_classes("shapes") == frozenset()


def test_an_erased_class_does_not_come_back(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    registrar("shapes", 2, forgotten=(1, 3))
    registrar("shapes", 3, forgotten=(1,))
    registry.promote("shapes", 1, None)
    assert registry.erased_classes("shapes") == frozenset()
    registry.promote("shapes", 2, 1)
    assert registry.erased_classes("shapes") == {3}
    with pytest.raises(RefusedError, match=r"remembers class 3 \(erased by version 2\)"):
        registry.rollback("shapes")
    registry.promote("shapes", 3, 2)
    assert registry.erased_classes("shapes") == {1, 3}
    with pytest.raises(RefusedError, match=r"version 4 .* class 3 \(erased by version 2\)"):
        registry.promote("shapes", 4, 3)
    with pytest.raises(RefusedError, match=r"class 1 \(erased by version 3\); an erased class"):
        registry.rollback("shapes")
    assert registry.resolve("shapes").version == 3


def test_erasure_outlives_the_version_that_erased(registrar: Registrar) -> None:
    registrar("shapes", 0, forgotten=(3,))
    registrar("shapes", 1)
    registry.promote("shapes", 1, None)
    connection.connect().delete_model_version("shapes", "1")
    assert registry.erased_classes("shapes") == {3}
    with pytest.raises(RefusedError, match=r"remembers class 3 \(erased by version 1\)"):
        registry.promote("shapes", 2, None)


def test_rollback_swaps_champion_and_previous(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1)
    registry.promote("shapes", 1, None)
    with pytest.raises(UserError, match="'shapes' has no previous champion; version 1 stays"):
        registry.rollback("shapes")
    registry.promote("shapes", 2, 1)
    assert registry.rollback("shapes").version == 1
    assert {e.version: e.aliases for e in registry.versions("shapes")} == {
        1: ("champion",),
        2: ("previous",),
    }
    assert registry.rollback("shapes").version == 2
