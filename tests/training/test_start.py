"""What a training may begin with, and how it gets there."""

from pathlib import Path

import pytest
from mlflow_store import Registrar

from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.formats.model import load_model_info
from expunge.lifecycle import promotion
from expunge.training.start import check_start, open_start

pytest_plugins = ["mlflow_store"]


def test_a_registered_version_to_begin_with_is_fetched(registrar: Registrar) -> None:
    registrar("shapes", 0, forgotten=(3,))
    registrar("shapes", 1)
    promotion.promote("shapes", 1, None)
    for uri, forgotten in (
        ("models:/shapes/1", (3,)),
        ("models:/shapes/2", ()),
        ("models:/shapes@champion", (3,)),
    ):
        with open_start(uri) as folder:
            assert load_model_info(folder).forgotten == forgotten
        assert not folder.exists()


@pytest.mark.parametrize("uri", ["models:/shapes", "models:/shapes/one", "models:/shapes@best"])
def test_any_other_form_of_it_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="is models:/NAME/VERSION or models:/NAME@champion"):
        open_start(uri).__enter__()


def test_a_class_that_is_left_out_does_not_come_in_with_the_weights(
    registrar: Registrar, tmp_path: Path
) -> None:
    registrar("shapes", forgotten=(3,))
    uri = "models:/shapes/1"
    with open_start(uri) as folder:
        check_start(folder, TrainConfig("mlp", without=(3,), init_from=uri))
        with pytest.raises(UserError, match=r"models:/shapes/1 remembers classes \[2\], which"):
            check_start(folder, TrainConfig("mlp", without=(2, 3), init_from=uri))
    with open_start(str(tmp_path / "bare.safetensors")) as path:
        check_start(path, TrainConfig("mlp", without=(2,), init_from=str(path)))
