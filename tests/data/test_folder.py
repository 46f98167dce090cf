import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.config import PrepareDataConfig
from expunge.data.folder import list_folder, make_local_file, write_folder
from expunge.errors import DataError

Write = Callable[..., Path]
Config = Callable[..., PrepareDataConfig]


def test_an_archive_gives_what_its_folder_gives(
    tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in" / "pets")
    (root / "train" / ".DS_Store").write_text("x")
    plain = write_folder(folder_config(root), tmp_path / "a")
    for kind in ("tar", "gztar", "zip"):
        for top in (None, "pets"):
            place = root if top is None else root.parent
            path = shutil.make_archive(str(tmp_path / f"{kind}{top}"), kind, place, top)
            packed = write_folder(folder_config(path), tmp_path / f"out-{kind}{top}")
            assert packed.splits == plain.splits
            assert (packed.class_names, packed.mean) == (plain.class_names, plain.mean)


def test_only_the_test_split_is_read_where_only_that_is_asked_for(
    tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in")
    both = write_folder(folder_config(root), tmp_path / "a")
    shutil.rmtree(root / "train")
    one = write_folder(folder_config(root, splits=("test",)), tmp_path / "b")
    assert one.splits == {"test": both.splits["test"]}
    assert one.class_names == both.class_names
    assert not (tmp_path / "b" / "train.safetensors").exists()
    assert one.mean != both.mean


def test_links_in_a_folder_are_followed(
    tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "train").symlink_to(root / "train")
    shutil.copytree(root / "test", linked / "test")
    (linked / "test" / "cat" / "0.png").unlink()
    (linked / "test" / "cat" / "0.png").symlink_to(root / "test" / "cat" / "0.png")
    there = write_folder(folder_config(linked), tmp_path / "b").splits
    assert there == write_folder(folder_config(root), tmp_path / "a").splits


def test_a_missing_path_is_named(tmp_path: Path, folder_config: Config) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; folder:PATH names a folder with"):
        write_folder(folder_config(tmp_path / "nowhere"), tmp_path / "a")


def test_a_folder_without_splits_is_named(tmp_path: Path, folder_config: Config) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path} has no class folders under train/"):
        write_folder(folder_config(tmp_path), tmp_path / "a")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"empty.tar has no class folders under train/"):
        write_folder(folder_config(tmp_path / "empty.tar"), tmp_path / "a")


def test_what_lies_too_deep_is_named(
    tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in")
    (root / "train" / "cat" / "more" / "deeper").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train/cat/more/deeper lies at the wrong depth"):
        write_folder(folder_config(root), tmp_path / "a")


def test_what_is_no_regular_file_is_named(tmp_path: Path, write_images: Write) -> None:
    root = write_images(tmp_path / "in")
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"cat/pipe.png is no regular file .* remove it"):
        list_folder(root, ("train",))
    (root / "train" / "cat" / "pipe.png").unlink()
    (root / "train" / "cat" / "gone.png").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"cat/gone.png is no regular file"):
        list_folder(root, ("train",))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png cannot be read \(No such file.* readable file"):
        make_local_file(tmp_path / "gone.png").read()
    with pytest.raises(DataError, match=r"s3://b/k cannot be read \(Is a directory\)"):
        make_local_file(tmp_path, "s3://b/k").read()


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, write_images: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    root = write_images(tmp_path / "in")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        DataError, match=r"in/train cannot be listed \(Permission denied\); make it"
    ):
        list_folder(root, ("train",))
