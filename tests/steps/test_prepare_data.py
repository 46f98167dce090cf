import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from expunge.config import PrepareDataConfig
from expunge.errors import DataError, OperationalError, UserError
from expunge.formats.dataset import load_dataset_info
from expunge.steps.prepare_data import prepare_data


def digits(tmp_path: Path, **settings: object) -> PrepareDataConfig:
    return PrepareDataConfig("digits", tmp_path / "root", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_holds_what_is_returned(exists: bool, tmp_path: Path) -> None:
    dataset = tmp_path / "deep" / "dataset"
    if exists:
        dataset.mkdir(parents=True)
    info = prepare_data(digits(tmp_path), dataset)
    assert load_dataset_info(dataset) == info
    assert info.source == "digits"
    names = {path.name for path in dataset.iterdir()}
    assert names == {"dataset.json", "train.safetensors", "test.safetensors"}
    assert list(dataset.parent.iterdir()) == [dataset]


def test_equal_settings_write_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        prepare_data(digits(tmp_path, image_size=5), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_only_the_splits_asked_for_are_written(tmp_path: Path) -> None:
    info = prepare_data(digits(tmp_path, splits=("test",)), tmp_path / "d")
    assert list(info.splits) == ["test"]
    assert not (tmp_path / "d" / "train.safetensors").exists()
    full = prepare_data(digits(tmp_path), tmp_path / "full")
    assert full.splits["test"] == info.splits["test"]


@pytest.mark.parametrize("lacking", ["train", "train/b"])
def test_an_optional_split_is_left_out_where_it_is_not_whole(tmp_path: Path, lacking: str) -> None:
    """A class's training images may be deleted before a model forgets the class."""
    for name in ("train/a", "train/b", "test/a", "test/b"):
        if not name.startswith(lacking):
            (tmp_path / "in" / name).mkdir(parents=True)
            Image.new("RGB", (3, 3)).save(tmp_path / "in" / name / "1.png")
    source = f"folder:{tmp_path / 'in'}"
    config = PrepareDataConfig(source, tmp_path, 0, ("test",), ("train",))
    info = prepare_data(config, tmp_path / "out" / "dataset")
    assert (list(info.splits), load_dataset_info(tmp_path / "out" / "dataset")) == (["test"], info)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dataset"]
    with pytest.raises(DataError, match="train"):
        prepare_data(PrepareDataConfig(source, tmp_path), tmp_path / "both")


def test_an_optional_split_is_taken_along(tmp_path: Path) -> None:
    config = digits(tmp_path, splits=("test",), optional_splits=("train",))
    assert prepare_data(config, tmp_path / "d") == prepare_data(digits(tmp_path), tmp_path / "full")
    with pytest.raises(UserError, match=r"optional_splits is \['valid'\]; expected train, test"):
        digits(tmp_path, optional_splits=("valid",))


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(tmp_path / "in" / name / "1.png")
    (tmp_path / "in" / "test" / "b" / "2.png").write_text("no image")
    dataset = tmp_path / "out" / "dataset"
    dataset.mkdir(parents=True)
    config = PrepareDataConfig(f"folder:{tmp_path / 'in'}", tmp_path)
    with pytest.raises(DataError, match=r"test/b/2.png is no image"):
        prepare_data(config, dataset)
    assert list(dataset.parent.iterdir()) == [dataset]
    assert not list(dataset.iterdir())


def test_an_unknown_source_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source 'svhn' is unknown; expected one of digits, mnist"):
        prepare_data(PrepareDataConfig("svhn", tmp_path), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").touch()
    with pytest.raises(UserError, match="d is not empty; give a new or an empty folder"):
        prepare_data(digits(tmp_path), tmp_path / "d")
    assert (tmp_path / "d" / "mine").exists()


def test_a_place_that_cannot_be_written_is_an_operational_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperationalError, match=r"file/d cannot be written .*check the disk"):
        prepare_data(digits(tmp_path), tmp_path / "file" / "d")


def test_digits_and_folders_are_prepared_without_torch(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("L", (3, 3)).save(tmp_path / "in" / name / "1.png")
    script = f"""
import sys
from pathlib import Path
from expunge.config import PrepareDataConfig
from expunge.steps.prepare_data import prepare_data
root = Path({str(tmp_path)!r})
prepare_data(PrepareDataConfig("folder:" + str(root / "in"), root), root / "one")
assert not {{"torch", "boto3", "sklearn"}} & sys.modules.keys()
prepare_data(PrepareDataConfig("digits", root), root / "two")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ))
