"""Class statistics that a training leaves: within their room, seeded, and with equal weights."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import write_tiny

from expunge.config import TrainConfig
from expunge.core.epoch import normalise
from expunge.core.rules import depths, objective, replay
from expunge.core.stages import open_stage
from expunge.core.statistics import ClassStatistics
from expunge.data.batches import open_split
from expunge.formats.dataset import load_dataset_info
from expunge.formats.model import load_model
from expunge.formats.statistics import STATISTICS, load_statistics
from expunge.steps.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
MLP = TrainConfig("mlp", epochs=2, batch_size=16, t_mix=0.3, workers=0)
RESNET = dataclasses.replace(MLP, arch="resnet20", epochs=1, augment="none", precision="fp32")


@pytest.fixture
def _short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a search for the depths of four classes a matter of seconds."""
    monkeypatch.setattr(depths, "DEPTH_FITS", 2)
    monkeypatch.setattr(objective, "EVALUATIONS", 2)
    monkeypatch.setattr(replay, "FORGET_DRAWS", 40)
    monkeypatch.setattr(replay, "RETAIN_DRAWS", 20)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data", images=100)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "colours", images=100, shape=(3, 16, 16))


def run(config: TrainConfig, dataset: Path, model: Path) -> dict[str, Any]:
    report: dict[str, Any] = train(config, dataset, model, checkpoints=model.parent / "points")[
        "statistics"
    ]
    return report


def load(model: Path) -> ClassStatistics:
    statistics = load_statistics(model)
    assert statistics is not None
    return statistics


def count_weights(model: Path) -> int:
    module = load_model(model).module
    return sum(p.numel() * p.element_size() for p in module.parameters())


def test_none_are_kept_where_none_are_asked_for(dataset: Path, tmp_path: Path) -> None:
    report = run(dataclasses.replace(MLP, statistics=0.0), dataset, tmp_path / "none")
    assert report == {"kept": False, "reason": "none are asked for"}
    assert not (tmp_path / "none" / STATISTICS).exists()
    # and the weights are those of a training that keeps some
    assert run(MLP, dataset, tmp_path / "some")["kept"]
    for file in ("weights.safetensors", "codes.safetensors", "model.json"):
        first, second = ((tmp_path / name / file).read_bytes() for name in ("none", "some"))
        assert first == second


def test_the_gaussians_are_those_of_the_training_images(dataset: Path, tmp_path: Path) -> None:
    """In eval mode and not augmented, each class by itself."""
    report = run(MLP, dataset, tmp_path / "model")
    statistics = load(tmp_path / "model")
    assert set(statistics.gaussians) == {0, 1, 2, 3}
    info, stored = load_dataset_info(dataset), load_model(tmp_path / "model")
    split = open_split(dataset, info, "train", torch.device("cpu"))
    images_NCHW = normalise(
        split.take(torch.arange(100)), torch.tensor(info.mean), torch.tensor(info.std)
    )
    stage = open_stage(stored.module, statistics.cut, 4, images_NCHW[:2])
    for index, own in statistics.gaussians.items():
        with torch.no_grad():
            entering = stage.enter(images_NCHW[split.labels_N == index])
        assert (own.low, own.high) == (float(entering.min()), float(entering.max()))
        expected_G = entering.flatten(1).double().mean(dim=0)
        torch.testing.assert_close(own.mean_G.double(), expected_G, rtol=1e-2, atol=1e-3)
        variance_G = own.factor_RG.double().square().sum(dim=0) + own.residual_G.double() ** 2
        expected_G = entering.flatten(1).double().var(dim=0)
        # of 25 images the noise is divided by 25, and the directions by 24
        torch.testing.assert_close(variance_G, expected_G, rtol=0.1, atol=1e-3)
    assert report["stage"] == statistics.cut
    assert report["bytes"] == statistics.count_bytes()
    assert report["shape"] == list(statistics.shape)


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("config", [MLP, RESNET], ids=lambda config: config.arch)
def test_they_take_no_more_room_than_they_have(
    config: TrainConfig, share: float, dataset: Path, colours: Path, tmp_path: Path
) -> None:
    data = dataset if config is MLP else colours
    spare = dataclasses.replace(config, statistics=share, depths="never")
    report = run(spare, data, tmp_path / "model")
    limit = share * count_weights(tmp_path / "model")
    assert report["kept"]
    assert 0 < report["bytes"] <= limit
    assert load(tmp_path / "model").count_bytes() == report["bytes"]
    # what the file has beside its numbers is a description
    size = (tmp_path / "model" / STATISTICS).stat().st_size
    assert size <= report["bytes"] + 4096


def test_no_room_is_said_and_is_no_failure(
    colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = run(dataclasses.replace(RESNET, statistics=1e-6), colours, tmp_path / "model")
    assert not report["kept"]
    assert "more than there is room for" in report["reason"]
    assert "no class statistics are kept, so replay cannot be used" in caplog.text
    assert load_model(tmp_path / "model").info.arch == "resnet20"


def test_a_stage_that_is_named_is_taken(colours: Path, tmp_path: Path) -> None:
    named = dataclasses.replace(RESNET, arch="resnet18-cifar", stage="layer4", depths="never")
    report = run(named, colours, tmp_path / "model")
    assert report["stage"] == "layer3_1_relu_1"
    unknown = dataclasses.replace(RESNET, stage="layer9")
    report = run(unknown, colours, tmp_path / "other")
    assert not report["kept"]
    assert "no stage begins with 'layer9'" in report["reason"]


@pytest.mark.usefixtures("_short_search")
@pytest.mark.parametrize("config", [MLP, RESNET], ids=lambda config: config.arch)
def test_the_same_training_gives_the_same_bytes(
    config: TrainConfig, dataset: Path, colours: Path, tmp_path: Path
) -> None:
    data = dataset if config is MLP else colours
    whole = dataclasses.replace(config, depths="always")
    for name in ("first", "again"):
        run(whole, data, tmp_path / name)
    first, again = ((tmp_path / name / STATISTICS).read_bytes() for name in ("first", "again"))
    assert first == again
    run(dataclasses.replace(whole, seed=1, depths="never"), data, tmp_path / "other")
    assert (tmp_path / "other" / STATISTICS).read_bytes() != first


def test_a_class_that_takes_no_part_has_none(dataset: Path, tmp_path: Path) -> None:
    run(dataclasses.replace(MLP, without=(1,)), dataset, tmp_path / "model")
    assert set(load(tmp_path / "model").gaussians) == {0, 2, 3}


@pytest.mark.usefixtures("_short_search")
def test_depths_are_found_where_they_are_asked_for(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each class that some depth was enough for; here of all but class 1."""
    monkeypatch.setattr(depths, "measure_named", lambda *given: float(given[-1] == 1))
    found = {}
    for when in ("never", "auto", "always"):
        report = run(dataclasses.replace(RESNET, depths=when), colours, tmp_path / when)
        found[when] = load(tmp_path / when).depths
        assert report["depths"] == {str(index): depth for index, depth in found[when].items()}
    # one epoch of a hundred images is cheaper than any search
    assert found["never"] == found["auto"] == {}
    assert set(found["always"]) == {0, 2, 3}
    assert all(depth > 0 for depth in found["always"].values())


def test_a_stage_that_is_trained_anew_has_no_depths(dataset: Path, tmp_path: Path) -> None:
    assert run(dataclasses.replace(MLP, depths="always"), dataset, tmp_path / "m")["depths"] == {}
