"""Checkpoints survive whatever moment a run is killed at."""

import logging
import os
from pathlib import Path

import pytest
import torch

from expunge.errors import OperationalError
from expunge.training.checkpoints import (
    Checkpoint,
    compute_checkpoint_key,
    load_latest,
    lock_folder,
    remove_checkpoints,
    save_checkpoint,
)


def make(epoch: int) -> Checkpoint:
    torch.manual_seed(epoch)
    model = {"conv.weight": torch.randn(2, 3, 3, 3), "steps": torch.tensor(epoch)}
    momentum = {"conv.weight": torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last)}
    return Checkpoint(epoch, model, momentum, {"history": [{"train_loss": 0.5}] * epoch})


def test_round_trip(tmp_path: Path) -> None:
    written = make(3)
    save_checkpoint(tmp_path, written)
    read = load_latest(tmp_path)
    assert read is not None
    assert (read.epoch, read.extra) == (3, written.extra)
    assert read.model.keys() == written.model.keys()
    assert all(torch.equal(read.model[name], value) for name, value in written.model.items())
    assert torch.equal(read.momentum["conv.weight"], written.momentum["conv.weight"])


def test_only_the_last_two_are_kept(tmp_path: Path) -> None:
    for epoch in range(1, 5):
        save_checkpoint(tmp_path, make(epoch))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-000003", "epoch-000004"]


def test_none_yet(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "nothing") is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no description", "no state"])
def test_a_broken_checkpoint_is_said_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, make(epoch))
    state = tmp_path / "epoch-000002" / "state.safetensors"
    data = state.read_bytes()
    if damage == "truncated":
        state.write_bytes(data[:-7])
    elif damage == "flipped":
        state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no state":
        state.unlink()
    else:
        (tmp_path / "epoch-000002" / "checkpoint.json").unlink()
    with caplog.at_level(logging.WARNING):
        found = load_latest(tmp_path)
    assert found is not None
    assert found.epoch == 1
    assert "epoch-000002 is broken" in caplog.text


def test_a_half_written_checkpoint_is_not_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    (tmp_path / "epoch-000001").rename(tmp_path / "epoch-000002.partial")
    assert load_latest(tmp_path) is None
    save_checkpoint(tmp_path, make(2))
    found = load_latest(tmp_path)
    assert found is not None
    assert found.epoch == 2


def test_the_key_follows_the_recipe() -> None:
    key = compute_checkpoint_key({"seed": 0, "arch": "mlp"})
    assert key == compute_checkpoint_key({"arch": "mlp", "seed": 0})
    assert key != compute_checkpoint_key({"arch": "mlp", "seed": 1})


def test_a_second_holder_is_refused_with_the_process_id(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    message = f"the same training runs already, as process {os.getpid()}; wait for it or stop it"
    with lock_folder(folder):
        with pytest.raises(OperationalError, match=message), lock_folder(folder):
            pass
        remove_checkpoints(folder)
        assert not folder.exists()
        with lock_folder(folder):  # a new folder is nobody's
            pass
    with lock_folder(folder):  # and a lock ends with its holder
        pass
