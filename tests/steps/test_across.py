"""Training over several nodes: the whole way of a TrainJob, with its nodes on this machine."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from k8s_server import Cluster
from safetensors.torch import load_file
from tiny_data import write_tiny

from expunge.config import TrainConfig
from expunge.steps import across, trainjob, trainjob_api
from expunge.steps.train import train

pytest_plugins = ["k8s_server"]

CONFIG = TrainConfig("mlp", epochs=3, batch_size=13, t_mix=0.3, precision="fp32", workers=0)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared volume, and the variable of a compiled pipeline that names it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    settings = trainjob.Cluster("site/expunge:1", "shared", "4", "16Gi", gpu="", mount=str(folder))
    monkeypatch.setenv(trainjob.VARIABLE, settings.variable())
    for module in (across, trainjob_api):
        monkeypatch.setattr(module, "POLL" if module is across else "LOOK", 0.05)
    monkeypatch.setattr(across, "SETTLING", 0.3)
    return folder


def test_two_nodes_learn_what_one_process_does(
    tmp_path: Path, cluster: Cluster, volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_tiny(tmp_path / "data", images=52)
    told: list[int] = []
    with caplog.at_level(logging.INFO):
        two = train(
            dataclasses.replace(CONFIG, nodes=2),
            dataset,
            tmp_path / "two",
            checkpoints=tmp_path / "unused",
            on_epoch=lambda epoch, metrics: told.append(epoch),
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(trainjob.VARIABLE)
        one = train(CONFIG, dataset, tmp_path / "one", checkpoints=tmp_path / "checkpoints")
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-5, rtol=1e-5)
    assert told == [1, 2, 3]
    assert list(volume.rglob("*")) == [volume / "trainings"]
