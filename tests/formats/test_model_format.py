"""A model comes back from disk as it was written, and what is broken is named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stored_formats import INFO, spoil_json, write_model
from tiny_data import write_tiny

from expunge.errors import UserError
from expunge.formats.files import digest_file
from expunge.formats.model import CODES, load_codes, load_model, load_model_info, make_opaque_name


def test_model(tmp_path: Path) -> None:
    written = write_model(tmp_path / "model")
    stored = load_model(tmp_path / "model")
    assert stored.info == load_model_info(tmp_path / "model") == INFO
    assert stored.info.retained == (0, 2)
    assert not stored.module.training
    state = stored.module.state_dict()
    assert all(torch.equal(state[name], written[name]) for name in state)
    assert torch.equal(stored.codes.images_KCHW, written["codes"])
    assert stored.codes.classes_K.tolist() == [0, 2]


def test_codes(tmp_path: Path) -> None:
    written = write_model(tmp_path)
    codes = load_codes(tmp_path)
    assert torch.equal(codes.images_KCHW, written["codes"])
    assert codes.classes_K.dtype == torch.int64


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    digests = set()
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        write_model(folder)
        digests.add(tuple(digest_file(path) for path in sorted(folder.iterdir())))
    assert len(digests) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.json does not exist; expected a file written"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.json is not valid JSON \(.*\); write it anew"):
        load_model_info(tmp_path)


@pytest.mark.parametrize("change", ["list", "missing", "shape", "type"])
def test_json_of_something_else_is_named(tmp_path: Path, change: str) -> None:
    write_model(tmp_path)
    spoil_json(tmp_path / "model.json", change)
    with pytest.raises(UserError, match=r"model\.json is not as expunge writes it \(.*Error"):
        load_model(tmp_path)


def test_a_model_without_codes_says_where_they_come_from(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / CODES).unlink()
    with pytest.raises(
        UserError, match=r"model holds no codes\.safetensors: .* --init-from MODEL_URI"
    ):
        load_model(tmp_path / "model")


def test_an_opaque_name_says_nothing_but_the_index() -> None:
    assert make_opaque_name(3) == "forgotten-3"


def test_reading_descriptions_and_arrays_needs_no_torch(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write_model(tmp_path)
    code = (
        "import sys, pathlib; from expunge.formats import dataset, files, fisher, model;"
        "p = pathlib.Path(sys.argv[1]);"
        "dataset.load_dataset_info(p); dataset.load_arrays(p, 'test'); model.load_model_info(p);"
        "files.digest_file(p / model.MODEL); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 0
