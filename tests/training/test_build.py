"""What several processes do about BatchNorm, and what a model to begin with has to be."""

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow_store import Registrar
from tiny_data import write_tiny
from torch import nn

from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.formats.dataset import load_dataset_info
from expunge.formats.model import load_model_info
from expunge.lifecycle import promotion
from expunge.models import build_model
from expunge.training.build import (
    _check_remembers,
    _recipe,
    _with_shared_statistics,
    existing,
    is_small,
)

pytest_plugins = ["mlflow_store"]


def processes(count: int, device: str) -> Any:
    return SimpleNamespace(num_processes=count, device=torch.device(device))


def test_gpus_share_their_statistics() -> None:
    model = build_model("resnet20", (3, 8, 8), 4)
    names = list(model.state_dict())
    shared = _with_shared_statistics(model, processes(2, "cuda"))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in shared.modules()) == 19
    assert list(shared.state_dict()) == names


def test_cpus_do_not_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model("resnet20", (3, 8, 8), 4)
    with caplog.at_level(logging.WARNING):
        assert _with_shared_statistics(model, processes(2, "cpu")) is model
    assert "torch has no BatchNorm across processes on a CPU" in caplog.text


def test_one_process_or_no_batchnorm_needs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    resnet, mlp = build_model("resnet20", (3, 8, 8), 4), build_model("mlp", (1, 8, 8), 4)
    assert _with_shared_statistics(resnet, processes(1, "cuda")) is resnet
    assert _with_shared_statistics(mlp, processes(2, "cpu")) is mlp
    assert caplog.text == ""


def test_one_thread_is_for_small_networks_of_matrices() -> None:
    mlp = build_model("mlp", (1, 28, 28), 10)
    assert is_small(mlp, 128)
    assert not is_small(mlp, 1024)
    assert not is_small(build_model("resnet20", (1, 8, 8), 4), 1)


def test_a_registered_version_to_begin_with_is_fetched(registrar: Registrar) -> None:
    registrar("shapes", 0, forgotten=(3,))
    registrar("shapes", 1)
    promotion.promote("shapes", 1, None)
    for uri, forgotten in (
        ("models:/shapes/1", (3,)),
        ("models:/shapes/2", ()),
        ("models:/shapes@champion", (3,)),
    ):
        with existing(uri) as folder:
            assert load_model_info(folder).forgotten == forgotten
        assert not folder.exists()


@pytest.mark.parametrize("uri", ["models:/shapes", "models:/shapes/one", "models:/shapes@best"])
def test_any_other_form_of_it_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="is models:/NAME/VERSION or models:/NAME@champion"):
        existing(uri).__enter__()


def test_a_class_that_is_left_out_does_not_come_in_with_the_weights(
    registrar: Registrar, tmp_path: Path
) -> None:
    registrar("shapes", forgotten=(3,))
    uri = "models:/shapes/1"
    with existing(uri) as folder:
        _check_remembers(folder, TrainConfig("mlp", without=(3,), init_from=uri))
        with pytest.raises(UserError, match=r"models:/shapes/1 remembers classes \[2\], which"):
            _check_remembers(folder, TrainConfig("mlp", without=(2, 3), init_from=uri))
    with existing(str(tmp_path / "bare.safetensors")) as path:
        _check_remembers(path, TrainConfig("mlp", without=(2,), init_from=str(path)))


def test_one_node_leaves_no_trace_in_a_recipe(tmp_path: Path) -> None:
    """What was trained before there could be several has the same keys still."""
    info = load_dataset_info(write_tiny(tmp_path / "data"))
    config = TrainConfig("mlp", processes=2)

    def settings(nodes: int) -> dict[str, Any]:
        spread = dataclasses.replace(config, nodes=nodes)
        found: dict[str, Any] = _recipe(spread, info, {}, "fp32", torch.device("cpu"))["config"]
        return found

    assert settings(2) == {**settings(1), "nodes": 2}
    assert set(settings(1)) == set(TrainConfig.__dataclass_fields__) - {"nodes"}
