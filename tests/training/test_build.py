"""What several processes do about BatchNorm, and what the keys of checkpoints depend on."""

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_data import write_tiny
from torch import nn

from expunge.config import AFTERWARDS, TrainConfig
from expunge.device import is_small
from expunge.formats.dataset import DatasetInfo, SplitInfo, load_dataset_info
from expunge.models import build_model
from expunge.training.build import (
    _build_recipe,
    _share_statistics,
)
from expunge.training.checkpoints import compute_checkpoint_key


def processes(count: int, device: str) -> Any:
    return SimpleNamespace(num_processes=count, device=torch.device(device))


def test_gpus_share_their_statistics() -> None:
    model = build_model("resnet20", (3, 8, 8), 4)
    names = list(model.state_dict())
    shared = _share_statistics(model, processes(2, "cuda"))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in shared.modules()) == 19
    assert list(shared.state_dict()) == names


def test_cpus_do_not_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model("resnet20", (3, 8, 8), 4)
    with caplog.at_level(logging.WARNING):
        assert _share_statistics(model, processes(2, "cpu")) is model
    assert "torch has no BatchNorm across processes on a CPU" in caplog.text


def test_one_process_or_no_batchnorm_needs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    resnet, mlp = build_model("resnet20", (3, 8, 8), 4), build_model("mlp", (1, 8, 8), 4)
    assert _share_statistics(resnet, processes(1, "cuda")) is resnet
    assert _share_statistics(mlp, processes(2, "cpu")) is mlp
    assert caplog.text == ""


def test_one_thread_is_for_small_networks_of_matrices() -> None:
    mlp = build_model("mlp", (1, 28, 28), 10)
    assert is_small(mlp, 128)
    assert not is_small(mlp, 1024)
    assert not is_small(build_model("resnet20", (1, 8, 8), 4), 1)


def test_a_training_that_was_cut_short_is_found_again() -> None:
    """A key is a name on disk: another one, and every checkpoint of today is lost."""
    splits = {"train": SplitInfo(6, "11", (2, 2, 2)), "test": SplitInfo(3, "22", (1, 1, 1))}
    classes = ("a", "b", "c")
    info = DatasetInfo("digits", classes, (1, 8, 8), (0.5,), (0.25,), "arrays", splits)
    keys = []
    for nodes in (1, 2):
        config = TrainConfig("mlp", epochs=3, t_mix=1, without=(2, 1), nodes=nodes)
        recipe = _build_recipe(config, info, {}, "fp32", torch.device("cpu"))
        keys.append(compute_checkpoint_key(recipe))
    assert keys == ["77da2ec400fb4674bb6cf9e34caed3e3", "6c2e70682fcc02a90ab06991d0bafbf3"]


def test_one_node_leaves_no_trace_in_a_recipe(tmp_path: Path) -> None:
    """What was trained before there could be several has the same keys still."""
    info = load_dataset_info(write_tiny(tmp_path / "data"))
    config = TrainConfig("mlp", processes=2)

    def settings(nodes: int) -> dict[str, Any]:
        spread = dataclasses.replace(config, nodes=nodes)
        found: dict[str, Any] = _build_recipe(spread, info, {}, "fp32", torch.device("cpu"))[
            "config"
        ]
        return found

    assert settings(2) == {**settings(1), "nodes": 2}
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(settings(1)) == fields - {"nodes", *AFTERWARDS}


def test_what_comes_after_the_training_leaves_no_trace_in_a_recipe(tmp_path: Path) -> None:
    """A killed training goes on whatever is kept beside its model."""
    info = load_dataset_info(write_tiny(tmp_path / "data"))
    configs = [
        TrainConfig("mlp"),
        TrainConfig("mlp", statistics=0.0, stage="hidden", depths="never"),
    ]
    first, second = (
        _build_recipe(config, info, {}, "fp32", torch.device("cpu")) for config in configs
    )
    assert first == second
