"""Rule align as a step: it needs retained training images alone, and changes the last stage."""

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mlflow_store import CLASSES, SHAPE, make_tiny_statistics, save_tiny, tiny_model
from tiny_data import write_tiny

from expunge.config import PerturbConfig
from expunge.core.epoch import normalise
from expunge.core.rules import RULES, anew
from expunge.core.rules.align import SHARE, plan_steps
from expunge.core.stages import open_stage
from expunge.data.sources import SOURCES
from expunge.errors import UserError
from expunge.forgetting.ladder import list_rungs
from expunge.formats.dataset import (
    load_arrays,
    load_dataset_info,
    save_arrays,
    save_dataset_info,
)
from expunge.formats.model import StoredModel, load_model
from expunge.formats.statistics import STATISTICS, save_statistics
from expunge.models import build_model
from expunge.steps.compute_fim import compute_fim
from expunge.steps.perturb import perturb

EPOCHS = 500  # of 180 images: enough for a repair of 337 steps
START = "the version itself"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data", images=240, classes=CLASSES, shape=SHAPE)


def train(stored: StoredModel, data: Path) -> StoredModel:
    """Train a stored model on its images and codes, in place."""
    images_NHWC, labels_N = load_arrays(data, "train")
    scale = [torch.tensor(row) for row in (stored.info.mean, stored.info.std)]
    images_NCHW = normalise(torch.from_numpy(images_NHWC.copy()), *scale)
    inputs = torch.cat([images_NCHW, stored.codes.images_KCHW])
    labels = torch.cat([torch.from_numpy(labels_N.copy()), stored.codes.classes_K])
    optimizer = torch.optim.Adam(stored.module.parameters(), lr=1e-3)
    stored.module.train()
    for _ in range(120):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(stored.module(inputs), labels).backward()
        optimizer.step()
    stored.module.eval()
    return stored


@pytest.fixture
def model(tmp_path: Path, data: Path) -> Path:
    """Save a model that knows images and codes."""
    stored = train(tiny_model(settings={"epochs": EPOCHS, "t_mix": 0.5}), data)
    return save_tiny(tmp_path / "model", stored)


def align(model: Path, work: Path, data: Path | None, *classes: int) -> dict[str, Any]:
    """Forget without Fisher terms, which align does not read."""
    config = PerturbConfig(classes, rule="align")
    return perturb(config, model, work / "none", work / "out", parent="shapes/7", dataset=data)


def measure(folder: Path, data: Path) -> list[float]:
    """Return the accuracy on the test images of each class."""
    images_NHWC, labels_N = (torch.from_numpy(part.copy()) for part in load_arrays(data, "test"))
    stored = load_model(folder)
    scale = [torch.tensor(row) for row in (stored.info.mean, stored.info.std)]
    right_N = stored.module(normalise(images_NHWC, *scale)).argmax(dim=1) == labels_N
    return [float(right_N[labels_N == index].float().mean()) for index in range(CLASSES)]


def test_without_statistics_it_starts_from_the_version(
    model: Path, data: Path, tmp_path: Path
) -> None:
    assert min(measure(model, data)) == 1
    report = align(model, tmp_path, data, 2)
    assert (report["rule"], report["start"], report["stage"]) == ("align", START, "images_nchw")
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert measure(tmp_path / "out", data) == [1, 1, 0, 1]
    after = load_model(tmp_path / "out")
    assert after.info.class_names[2] == "forgotten-2"
    assert after.codes.classes_K.tolist() == [0, 1, 3]
    assert after.module(after.codes.images_KCHW).argmax(dim=1).tolist() == [0, 1, 3]
    assert report["repair_steps"] == plan_steps(EPOCHS, 180).steps
    assert report["repair_share"] == pytest.approx(SHARE, rel=0.1)


def test_with_statistics_it_starts_from_replay_and_keeps_those_of_the_others(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anew, "STEPS", 50)
    save_statistics(model, make_tiny_statistics(*range(CLASSES), depths={2: 3.25}))
    report = align(model, tmp_path, data, 2)
    assert report["start"] == "replay"
    assert report["way"] == "trained anew"
    save_statistics(tmp_path / "never", make_tiny_statistics(0, 1, 3))
    kept = (tmp_path / "out" / STATISTICS).read_bytes()
    assert kept == (tmp_path / "never" / STATISTICS).read_bytes()
    # so the next class can be forgotten in the same way
    again = align(tmp_path / "out", tmp_path / "again", data, 0)
    assert again["start"] == "replay"
    assert measure(tmp_path / "again" / "out", data) == [0, 1, 0, 1]
    assert load_model(tmp_path / "again" / "out").info.forgotten == (0, 2)


def test_no_image_of_the_class_is_read(model: Path, data: Path, tmp_path: Path) -> None:
    """Nor does it matter what they are, nor that they are there."""
    stored = load_model(model)
    info = dataclasses.replace(stored.info, settings={"epochs": 20, "t_mix": 0.5})
    save_tiny(model, dataclasses.replace(stored, info=info))
    align(model, tmp_path / "whole", data, 2)
    images_NHWC, labels_N = load_arrays(data, "train")
    images_NHWC = images_NHWC.copy()
    images_NHWC[labels_N == 2] = 255
    save_arrays(data, "train", images_NHWC, labels_N)
    align(model, tmp_path / "spoiled", data, 2)
    kept_N = labels_N != 2
    save_arrays(data, "train", images_NHWC[kept_N], labels_N[kept_N])
    align(model, tmp_path / "gone", data, 2)
    made = [
        (tmp_path / name / "out" / "weights.safetensors").read_bytes()
        for name in ("whole", "spoiled", "gone")
    ]
    assert made[0] == made[1] == made[2]


def test_only_the_last_stage_of_a_network_of_maps_changes(tmp_path: Path) -> None:
    """Its running statistics follow, and those before it stay."""
    shape = (3, 16, 16)
    data = write_tiny(tmp_path / "data", images=80, classes=CLASSES, shape=shape)
    tiny = tiny_model(settings={"epochs": 20, "augment": "none"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_model("resnet20", shape, CLASSES).eval()
        codes = dataclasses.replace(tiny.codes, images_KCHW=torch.rand(CLASSES, *shape))
    info = dataclasses.replace(
        tiny.info, arch="resnet20", input_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    model = save_tiny(tmp_path / "model", StoredModel(info, module, codes))
    cut = align(model, tmp_path, data, 2)["stage"]
    before, after = (load_model(folder).module for folder in (model, tmp_path / "out"))
    images_NCHW = torch.rand(4, *shape)
    old, new = (open_stage(part, cut, CLASSES, images_NCHW[:2]) for part in (before, after))
    assert torch.equal(old.enter(images_NCHW), new.enter(images_NCHW))
    state = after.state_dict()
    moved = {key for key, was in before.state_dict().items() if not torch.equal(was, state[key])}
    below = new.lower.state_dict().keys()
    assert "conv.weight" in below
    assert moved.isdisjoint(below)
    assert {key.rpartition(".")[2] for key in moved} == {
        "weight", "bias", "running_mean", "running_var",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("none", "digits gives no split 'train'; take rule auto, or train a version with"),
        ("split", "tiny gives no split 'train'"),
        ("class", r"tiny has no training image of classes \[1\], which are to stay"),
        ("shape", r"are \(1, 8, 8\) \(C, H, W\) in 4 classes, and the model takes \(1, 4, 4\)"),
    ],
)
def test_data_that_cannot_repair_is_refused_before_any_work(
    model: Path, data: Path, tmp_path: Path, broken: str, message: str
) -> None:
    info = load_dataset_info(data)
    if broken == "split":
        info = dataclasses.replace(info, splits={"test": info.splits["test"]})
    if broken == "class":
        lacking = dataclasses.replace(info.splits["train"], counts=(60, 0, 60, 60))
        info = dataclasses.replace(info, splits={**info.splits, "train": lacking})
    if broken == "shape":
        info = dataclasses.replace(info, input_shape=(1, 8, 8))
    save_dataset_info(data, info)
    with pytest.raises(UserError, match=message):
        align(model, tmp_path, None if broken == "none" else data, 2)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_stage_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    stored = load_model(model)
    info = dataclasses.replace(stored.info, settings={"stage": "nowhere"})
    save_tiny(model, dataclasses.replace(stored, info=info))
    with pytest.raises(UserError, match="rule align cannot split this model: no stage begins"):
        align(model, tmp_path, data, 2)


def test_the_rungs_are_what_model_and_data_allow(model: Path, data: Path, tmp_path: Path) -> None:
    info = load_dataset_info(data)
    assert list_rungs(model, None, [2]) == ["codes"]
    assert list_rungs(model, data, [2]) == ["codes", "align"]
    save_statistics(model, make_tiny_statistics(0, 1, 3))
    assert list_rungs(model, data, [2]) == ["codes", "align"]
    save_statistics(model, make_tiny_statistics(*range(CLASSES), depths={2: 3.25}))
    assert list_rungs(model, data, [2]) == ["codes", "replay", "align"]
    save_dataset_info(data, dataclasses.replace(info, splits={"test": info.splits["test"]}))
    assert list_rungs(model, data, [2]) == ["codes", "replay"]
    stored = load_model(model)
    (model / STATISTICS).unlink()
    other = dataclasses.replace(stored.info, settings={"stage": "nowhere"})
    save_tiny(model, dataclasses.replace(stored, info=other))
    save_dataset_info(data, info)
    assert list_rungs(model, data, [2]) == ["codes"]


def test_a_rung_has_the_rule_of_its_number(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anew, "STEPS", 50)
    save_statistics(model, make_tiny_statistics(*range(CLASSES), depths={2: 3.25}))
    compute_fim(model, tmp_path / "terms", classes=[2])
    source = ModuleType("tiny_source")
    source.write = lambda _, target: load_dataset_info(  # type: ignore[attr-defined]
        write_tiny(target, images=40, classes=CLASSES, shape=SHAPE)
    )
    monkeypatch.setitem(sys.modules, "tiny_source", source)
    monkeypatch.setitem(SOURCES, "tiny", "tiny_source:write")
    found = []
    for rung in (1, 2, 3):
        config, out = PerturbConfig((2,), rung=rung, forget_data="tiny"), tmp_path / f"out-{rung}"
        report = perturb(config, model, tmp_path / "terms", out, parent="shapes/7", dataset=data)
        found.append(report["rule"])
    assert found[0] in RULES
    assert found[1:] == ["replay", "align"]
