"""What a step says of the artifact that it wrote: a record in the ledger, and its digest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow_store import save_tiny, tiny_model

from expunge import ledger
from expunge.config import PrepareDataConfig
from expunge.data.array_set import write_array_set
from expunge.formats.dataset import save_dataset_info
from expunge.lifecycle import provenance


@dataclass(frozen=True)
class Port:
    path: str
    uri: str


def data_set(folder: Path, images_NHWC: np.ndarray, labels_N: np.ndarray) -> Path:
    config = PrepareDataConfig("digits", folder)
    splits = {"train": (images_NHWC, labels_N), "test": (images_NHWC[:4], labels_N[:4])}
    folder.mkdir()
    save_dataset_info(folder, write_array_set(config, ["a", "b"], splits, folder))
    return folder


def test_a_pixel_or_a_label_of_a_data_set_changes_its_digest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (8, 5, 5, 1)).astype(np.uint8)
    labels_N = np.arange(8) % 2
    first = provenance.digest_path(data_set(tmp_path / "first", images_NHWC, labels_N))
    assert provenance.digest_path(data_set(tmp_path / "same", images_NHWC, labels_N)) == first
    pixel_NHWC = images_NHWC.copy()
    pixel_NHWC[7, 4, 4, 0] ^= 1
    pixel = provenance.digest_path(data_set(tmp_path / "pixel", pixel_NHWC, labels_N))
    label = provenance.digest_path(data_set(tmp_path / "label", images_NHWC, labels_N[::-1]))
    assert len({first, pixel, label}) == 3


@pytest.mark.parametrize("name", ["weights.safetensors", "codes.safetensors", "model.json"])
def test_a_byte_of_a_model_changes_its_digest(tmp_path: Path, name: str) -> None:
    first = provenance.digest_path(save_tiny(tmp_path / "first", tiny_model()))
    folder = save_tiny(tmp_path / "second", tiny_model())
    assert provenance.digest_path(folder) == first
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert provenance.digest_path(folder) != first


def test_one_of_several_models_changes_their_digest(tmp_path: Path) -> None:
    """Oracles are a folder of model folders; none at all have a digest too."""
    seen = {provenance.digest_path(tmp_path)}
    for seed in (1, 2):
        save_tiny(tmp_path / f"seed-{seed}", tiny_model(seed))
        seen.add(provenance.digest_path(tmp_path))
    save_tiny(tmp_path / "seed-2", tiny_model(3))
    seen.add(provenance.digest_path(tmp_path))
    assert len(seen) == 4


def test_a_step_hands_on_the_digest_that_it_recorded(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", tiny_model())
    port = Port(str(folder), "s3://bucket/model")
    given = provenance.record_artifact(port, "model", model="shapes")
    (kept,) = ledger.list_remembering("shapes", [0])
    assert (kept.address, kept.digest) == (port.uri, given)
    assert given == provenance.digest_path(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    provenance.record_artifact(Port(str(empty), "s3://bucket/empty"), "model", model="shapes")
    assert len(ledger.list_remembering("shapes", [0])) == 1, "nothing is nothing to be found again"
