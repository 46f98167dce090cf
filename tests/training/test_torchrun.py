"""Training in several processes, on the CPU."""

import dataclasses
import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_tiny

from expunge.config import TrainConfig
from expunge.errors import OperationalError, UserError
from expunge.steps.train import train

# 13 images a batch: two processes get 6 and 7
CONFIG = TrainConfig("mlp", epochs=3, batch_size=13, t_mix=0.3, precision="fp32", workers=0)

# How far float32 weights may lie apart that one process and two learn from the same batches. Both
# add the same numbers, in another order: one sums the gradients of 13 images; two sum those of 6
# and of 7, and then the two sums. Each such sum is off by some 1e-7 of itself, a step of 0.01 with
# momentum moves a weight below 0.2 by 0.01 at most, and so each of the 12 steps adds 1e-8 for its
# gradient and 1e-8 for the rounding of the weight: 3e-7 at worst. 7e-9 is what was found; shares
# of 6 and 7 that counted alike would give 6e-4.
TOLERANCE = 5e-7


def test_two_processes_learn_what_one_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_tiny(tmp_path / "data", images=52)
    one = train(CONFIG, dataset, tmp_path / "one", checkpoints=tmp_path / "checkpoints")
    told: list[int] = []
    with caplog.at_level(logging.INFO):
        two = train(
            dataclasses.replace(CONFIG, processes=2),
            dataset,
            tmp_path / "two",
            checkpoints=tmp_path / "checkpoints",
            on_epoch=lambda epoch, metrics: told.append(epoch),
        )
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=TOLERANCE, rtol=0), name
    assert two["processes"] == 2
    assert two["test_accuracy_by_class"] == one["test_accuracy_by_class"]
    for metric in ("train_loss", "train_accuracy", "code_accuracy", "test_accuracy"):
        assert two[metric] == pytest.approx(one[metric], abs=1e-4)
    assert told == [1, 2, 3]
    assert "epoch 3 of 3: loss" in caplog.text
    codes = [(tmp_path / name / "codes.safetensors").read_bytes() for name in ("one", "two")]
    assert codes[0] == codes[1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs share the statistics of a batch")
def test_batch_statistics_are_each_process_own_on_a_cpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What holds with BatchNorm there: two processes repeat themselves, but are not as one.

    Each normalises 6 or 7 images by their own mean and variance, where one takes those of all 13.
    """
    dataset = write_tiny(tmp_path / "data", images=52)
    config = dataclasses.replace(CONFIG, arch="resnet20", epochs=1)
    states = {}
    with caplog.at_level(logging.WARNING):
        for name, processes in (("one", 1), ("two", 2), ("again", 2)):
            train(
                dataclasses.replace(config, processes=processes),
                dataset,
                tmp_path / name,
                checkpoints=tmp_path / "checkpoints",
            )
            states[name] = load_file(tmp_path / name / "weights.safetensors")
    assert "no BatchNorm across processes on a CPU" in caplog.text
    one, two, again = (states[name] for name in ("one", "two", "again"))
    assert all(torch.equal(two[name], again[name]) for name in two)
    assert all(torch.isfinite(value).all() for value in two.values())
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert apart > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes fp16")
def test_an_error_inside_comes_out_as_it_is(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, processes=2, precision="fp16")
    with pytest.raises(UserError, match=r"^precision is 'fp16' and the device is a cpu"):
        train(config, write_tiny(tmp_path / "data"), tmp_path / "m", checkpoints=tmp_path / "c")


def replace_torchrun(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have a script in its place, in which $folder is the one of the exchange."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nfor folder; do :; done\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_an_error_that_a_process_wrote_comes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`test_process` has how a process writes it, and a slow test both of them under torchrun."""
    error = '{"kind": "UserError", "message": "training diverged"}'
    replace_torchrun(tmp_path, monkeypatch, f"echo '{error}' > $folder/error.json; exit 1")
    config = dataclasses.replace(CONFIG, processes=2)
    with pytest.raises(UserError, match=r"^training diverged$"):
        train(config, write_tiny(tmp_path / "data"), tmp_path / "m", checkpoints=tmp_path / "c")


def test_an_end_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_torchrun(tmp_path, monkeypatch, "echo out of luck; exit 3")
    config = dataclasses.replace(CONFIG, processes=2)
    with pytest.raises(OperationalError, match=r"(?s)ended with status 3; their last.*out of luck"):
        train(config, write_tiny(tmp_path / "data"), tmp_path / "m", checkpoints=tmp_path / "c")


def test_more_processes_than_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = dataclasses.replace(CONFIG, processes=2)
    with pytest.raises(UserError, match="processes is 2 and there are 1 GPUs"):
        train(config, write_tiny(tmp_path / "data"), tmp_path / "m", checkpoints=tmp_path / "c")
