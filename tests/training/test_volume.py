"""The folder of a training on a volume, and its name."""

from pathlib import Path

from expunge.config import TrainConfig
from expunge.training import volume


def test_another_attempt_finds_the_folder(tmp_path: Path) -> None:
    """The key is its name on the volume, where the checkpoints of a failed training stay."""
    (tmp_path / "train.json").write_text("[]")
    config = TrainConfig("mlp", epochs=3, t_mix=1, without=(2, 1), nodes=2)
    assert volume.compute_key(config, tmp_path) == "ed0177f33ad50bc6"
    (tmp_path / "train.json").write_text("[0]")
    assert volume.compute_key(config, tmp_path) != "ed0177f33ad50bc6"


def test_a_lock_outlives_what_it_guards(tmp_path: Path) -> None:
    for name in ("data", "model", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "lock").touch()
    (tmp_path / "start.pt").touch()
    volume.clear_folder(tmp_path, keep=("data",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "lock"]
    (tmp_path / "data.partial").mkdir()
    volume.remove_data(tmp_path)
    volume.remove_data(tmp_path)  # which is not there any more
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
