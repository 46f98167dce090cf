"""Every format on disk comes back as it was written, and what is broken is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import write_tiny

from expunge.core.fisher import ForgetTerms
from expunge.errors import UserError
from expunge.formats import files
from expunge.formats.files import Codes, DatasetInfo, ModelInfo, SplitInfo
from expunge.models import build_model

SHAPE = (1, 4, 4)
DATA = DatasetInfo(
    source="folder:/données",
    class_names=("Zoë", "cat", "dog, small"),
    input_shape=(3, 8, 6),
    mean=(0.1, 0.2, 1 / 3),
    std=(0.5, 0.25, 0.125),
    storage="files",
    splits={
        "train": SplitInfo(7, "ab" * 32, (3, 2, 2)),
        "test": SplitInfo(2, "cd" * 32, (1, 1, 0)),
    },
)
INFO = ModelInfo(
    arch="mlp",
    class_names=("Zoë", "forgotten-1", "dog"),
    input_shape=SHAPE,
    mean=(1 / 3,),
    std=(0.25,),
    source="digits",
    data_digests={"train": "ab", "test": "cd"},
    forgotten=(1,),
    parent="shapes/1",
    settings={"epochs": 3, "nested": {"t_mix": 0.1}},
)


def draw(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (2, 3, 3, 3), "head.bias": (3,)}
    return {
        name: torch.rand(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def save_model(folder: Path, info: ModelInfo = INFO) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_model("mlp", SHAPE, 3).state_dict()
        codes = Codes(torch.rand(2, *SHAPE), torch.tensor([0, 2]))
    files.save_model(folder, info, state, codes)
    return {**state, "codes": codes.images_KCHW}


def test_dataset_info(tmp_path: Path) -> None:
    files.save_dataset_info(tmp_path, DATA)
    assert files.load_dataset_info(tmp_path) == DATA


def test_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (5, 4, 3, 2), dtype=np.uint8)[:, ::-1]  # not contiguous
    files.save_arrays(tmp_path / "new", "train", images_NHWC, np.arange(5, dtype=np.int32))
    images, labels = files.load_arrays(tmp_path / "new", "train")
    assert np.array_equal(images, images_NHWC)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_model(tmp_path: Path) -> None:
    written = save_model(tmp_path / "model")
    stored = files.load_model(tmp_path / "model")
    assert stored.info == files.load_model_info(tmp_path / "model") == INFO
    assert stored.info.retained == (0, 2)
    assert not stored.module.training
    state = stored.module.state_dict()
    assert all(torch.equal(state[name], written[name]) for name in state)
    assert torch.equal(stored.codes.images_KCHW, written["codes"])
    assert stored.codes.classes_K.tolist() == [0, 2]


def test_codes(tmp_path: Path) -> None:
    written = save_model(tmp_path)
    codes = files.load_codes(tmp_path)
    assert torch.equal(codes.images_KCHW, written["codes"])
    assert codes.classes_K.dtype == torch.int64


def test_equal_models_and_fishers_give_equal_bytes(tmp_path: Path) -> None:
    provenance = {"torch": "2", "device": "cpu", "dtype": "float32", "chunk": "1", "more": ""}
    digests = set()
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        save_model(folder)
        files.save_fisher(folder, draw(0), dict(sorted(provenance.items(), reverse=attempt % 2)))  # type: ignore[arg-type]
        digests.add(tuple(files.digest_file(path) for path in sorted(folder.iterdir())))
    assert len(digests) == 1


@pytest.mark.parametrize("provenance", [{"device": "NVIDIA H200", "chunk": "8"}, {}])
def test_fisher(tmp_path: Path, provenance: dict[str, str]) -> None:
    files.save_fisher(tmp_path / "fisher", draw(1), provenance)
    total, how = files.load_fisher(tmp_path / "fisher")
    assert how == provenance
    assert total.keys() == draw(1).keys()
    assert all(torch.equal(total[name], value) for name, value in draw(1).items())
    assert {value.dtype for value in total.values()} == {torch.float64}


def test_a_fisher_of_unknown_origin_has_no_provenance(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"device": "cpu"}):
        save_file(draw(1), tmp_path / files.FISHER, metadata=metadata)
        assert files.load_fisher(tmp_path)[1] == {}


@pytest.mark.parametrize(("direct", "lost"), [(True, 5), (False, 0)])
def test_forget_terms(tmp_path: Path, direct: bool, lost: int) -> None:
    terms = ForgetTerms(draw(1), draw(2), draw(3), direct=direct, lost=lost)
    files.save_forget_terms(tmp_path / "terms", terms)
    read = files.load_forget_terms(tmp_path / "terms", torch.device("cpu"))
    assert (read.direct, read.lost) == (direct, lost)
    for kind in ("forget", "retain", "gradient"):
        written = getattr(terms, kind)
        assert getattr(read, kind).keys() == written.keys()
        assert all(torch.equal(getattr(read, kind)[name], value) for name, value in written.items())


def test_json(tmp_path: Path) -> None:
    value = {"b": [1, None, "ü"], "a": {"x": 0.1}}
    path = tmp_path / "new" / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value
    first = path.read_bytes()
    files.write_json(path, dict(reversed(value.items())))
    assert path.read_bytes() == first
    assert [left.name for left in path.parent.iterdir()] == ["value.json"]


def test_json_has_no_number_for_infinity(tmp_path: Path) -> None:
    """And what was there before is still whole."""
    path = tmp_path / "value.json"
    files.write_json(path, 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, float("inf"))
    assert files.read_json(path) == 1


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert files.digest_file(tmp_path / "empty") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json does not exist; expected a file written"):
        files.load_dataset_info(tmp_path)
    with pytest.raises(UserError, match=r"model\.json does not exist; expected a file written"):
        files.load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.json is not valid JSON \(.*\); write it anew"):
        files.load_model_info(tmp_path)


@pytest.mark.parametrize("change", ["list", "missing", "shape", "type"])
def test_json_of_something_else_is_named(tmp_path: Path, change: str) -> None:
    save_model(tmp_path)
    files.save_dataset_info(tmp_path, DATA)
    for name, load in (
        ("model", files.load_model_info),
        ("dataset", files.load_dataset_info),
    ):
        path = tmp_path / f"{name}.json"
        raw = json.loads(path.read_text())
        if change == "list":
            raw = [raw]
        elif change == "missing":
            del raw["source"]
        else:
            raw["input_shape"] = [3, 8] if change == "shape" else None
        path.write_text(json.dumps(raw))
        with pytest.raises(UserError, match=rf"{name}\.json is not as expunge writes it \(.*Error"):
            load(tmp_path)


def test_a_model_without_codes_says_where_they_come_from(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "model" / files.CODES).unlink()
    with pytest.raises(
        UserError, match=r"model holds no codes\.safetensors: .* --init-from MODEL_URI"
    ):
        files.load_model(tmp_path / "model")


def test_an_opaque_name_says_nothing_but_the_index() -> None:
    assert files.make_opaque_name(3) == "forgotten-3"


def test_reading_descriptions_and_arrays_needs_no_torch(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    save_model(tmp_path)
    code = (
        "import sys, pathlib, expunge.formats.files as a; p = pathlib.Path(sys.argv[1]);"
        "a.load_dataset_info(p); a.load_arrays(p, 'test'); a.load_model_info(p);"
        "a.digest_file(p / a.MODEL); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 0
