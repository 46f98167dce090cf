"""What several processes do about BatchNorm."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from expunge.models import build_model
from expunge.steps.setup import _with_shared_statistics, is_small


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
