from pathlib import Path

import pytest
from mlflow_store import Registrar

from expunge import registry
from expunge.artifacts import load_model
from expunge.errors import UserError
from expunge.steps.load_version import load_version

pytest_plugins = ["mlflow_store"]


def test_the_champion_comes_as_a_model_folder(registrar: Registrar, tmp_path: Path) -> None:
    registrar("shapes", 0, forgotten=(3,))
    registrar("shapes", 1, forgotten=(3,))
    registry.promote("shapes", 1, None)
    found = load_version("shapes", 0, tmp_path / "model")
    assert found == (1, "shapes/1", "digits", 4)
    assert load_model(tmp_path / "model").info.forgotten == (3,)
    assert load_version("shapes", 2, tmp_path / "other").version == 2


def test_an_unknown_version_leaves_no_folder(registrar: Registrar, tmp_path: Path) -> None:
    registrar("shapes")
    with pytest.raises(UserError, match="has no version 4; use one of 1"):
        load_version("shapes", 4, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_version_that_cannot_forget_the_class_is_refused(
    registrar: Registrar, tmp_path: Path
) -> None:
    registrar("shapes", forgotten=(3,))
    with pytest.raises(UserError, match="class 3 is already forgotten"):
        load_version("shapes", 1, tmp_path / "model", [3])
