import hashlib
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from disks import mounted

from expunge.config import PrepareDataConfig
from expunge.data.torchvision_sets import write_torchvision
from expunge.errors import DataError
from expunge.formats.dataset import load_arrays

NOWHERE = "http://127.0.0.1:9/"  # the discard port, where nothing listens


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(datasets.CIFAR10, "url", NOWHERE + "cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.CIFAR100, "url", NOWHERE + "cifar-100-python.tar.gz")


def test_mnist_is_read_where_it_lies(shared_data: Path, tmp_path: Path) -> None:
    config = PrepareDataConfig("mnist", shared_data, splits=("test",))
    info = write_torchvision(config, tmp_path)
    images, labels = load_arrays(tmp_path, "test")
    raw = (shared_data / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    assert images.tobytes() == raw[16:]
    assert info.input_shape == (1, 28, 28)
    assert info.class_names == tuple("0123456789")
    assert labels[:4].tolist() == [7, 2, 1, 0]
    assert info.splits["test"].counts[:2] == (980, 1135)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write a CIFAR-10 of four images, in the files that torchvision's reader expects."""
    from torchvision import datasets

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = np.random.default_rng(3).integers(0, 256, (4, 3072), dtype=np.uint8)
    content = {
        "data_batch_1": {"data": rows[:3], "labels": [2, 0, 1]},
        "test_batch": {"data": rows[3:], "labels": [1]},
        "batches.meta": {"label_names": ["plane", "car", "bird"]},
    }
    sums = {}
    for name, value in content.items():
        data = pickle.dumps(value)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    listed = [["data_batch_1", sums["data_batch_1"]]], [["test_batch", sums["test_batch"]]]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed[0])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed[1])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return rows


def test_cifar_pixels_keep_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_cifar(tmp_path / "root", monkeypatch)
    info = write_torchvision(PrepareDataConfig("cifar10", tmp_path / "root"), tmp_path)
    images, labels = load_arrays(tmp_path, "train")
    np.testing.assert_array_equal(images[1, 5, 7], rows[1].reshape(3, 32, 32)[:, 5, 7])
    assert labels.tolist() == [2, 0, 1]
    assert info.class_names == ("plane", "car", "bird")
    assert info.splits["test"].counts == (0, 1, 0)


@pytest.mark.usefixtures("no_network")
def test_a_set_that_is_there_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie on a volume that nobody here may write."""
    with mounted(tmp_path / "root", 4) as root:
        write_cifar(root, monkeypatch)
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()
        info = write_torchvision(PrepareDataConfig("cifar10", root), tmp_path / "out")
        assert info.splits["train"].counts == (1, 1, 1)
        expected = rf"mnist is not in {root}/.* cannot be downloaded .*Read-only.* EXPUNGE_DATA_"
        with pytest.raises(DataError, match=expected):
            write_torchvision(PrepareDataConfig("mnist", root), tmp_path / "out")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_without_files_and_network_the_remedy_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=rf"^{source} is not in {tmp_path}/.* cannot be downloaded .* set EXPUNGE_DATA_ROOT",
    ):
        write_torchvision(PrepareDataConfig(source, tmp_path), tmp_path / "out")


@pytest.mark.usefixtures("no_network")
def test_broken_files_are_told_from_missing_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"^cifar10 cannot be read from .*cifar-10-batches-py and"):
        write_torchvision(PrepareDataConfig("cifar10", tmp_path), tmp_path / "out")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(7))
    with pytest.raises(DataError, match=r"^mnist cannot be read from .*MNIST/raw and"):
        write_torchvision(PrepareDataConfig("mnist", tmp_path), tmp_path / "out")
