"""Weights from files, from models and by torchvision's names."""

import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expunge.errors import OperationalError, UserError
from expunge.formats.model import Codes, ModelInfo, save_model
from expunge.formats.pretrained import (
    load_exactly,
    load_pretrained,
    model_state,
    pretrained_state,
    read_state,
    state_digest,
)
from expunge.models import build_model

SHAPE = (1, 4, 4)


def mlp_state(classes: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(build_model("mlp", SHAPE, classes).state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_files_hold_what_was_saved(tmp_path: Path, suffix: str) -> None:
    state, path = mlp_state(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 4}, path)
    read = pretrained_state("mlp", str(path))
    assert state_digest(read) == state_digest(state)
    assert state_digest(read) != state_digest(mlp_state(seed=2))


def test_a_pickle_of_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(1), "function": print}, path)
    with pytest.raises(UserError, match=r"weights\.pth cannot be read as tensors"):
        read_state(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(UserError, match=r"is not a dictionary of tensors \(the whole file\)"):
        read_state(path)
    torch.save({}, path)
    with pytest.raises(UserError, match=r"is not a dictionary of tensors \(it is empty\)"):
        read_state(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"short", pickle.dumps({"a": 1}, protocol=2)])
def test_broken_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.(safetensors|pth) (cannot be read|is not a)"):
        read_state(path)


def test_missing_files_and_other_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the weights file .*gone\.pt does not exist"):
        read_state(tmp_path / "gone.pt")
    with pytest.raises(UserError, match=r"weights\.bin is no weights file by its name"):
        read_state(tmp_path / "weights.bin")


def test_a_head_of_another_size_starts_anew(caplog: pytest.LogCaptureFixture) -> None:
    model, state = build_model("mlp", SHAPE, 3), mlp_state(classes=5)
    head = model.head.weight.clone()  # type: ignore[union-attr,operator]
    with caplog.at_level(logging.INFO):
        left = load_pretrained(model, state, 3)
    assert left == ["head.weight", "head.bias"]
    assert "head.weight, head.bias start anew" in caplog.text
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert torch.equal(model.state_dict()["hidden.weight"], state["hidden.weight"])


def test_a_head_of_the_same_size_is_loaded() -> None:
    model, state = build_model("mlp", SHAPE, 3), mlp_state()
    assert load_pretrained(model, state, 3) == []
    assert state_digest(model.state_dict()) == state_digest(state)


def test_the_head_of_a_convolutional_classifier() -> None:
    with torch.device("meta"):  # the names and shapes are all that is looked at
        state = dict(build_model("squeezenet1_1", (3, 32, 32), 10).state_dict())
        model = build_model("squeezenet1_1", (3, 32, 32), 4)
    assert load_pretrained(model, state, 4) == ["classifier.1.weight", "classifier.1.bias"]


def test_side_classifiers_are_dropped() -> None:
    state = {**mlp_state(), "aux1.fc1.weight": torch.ones(2)}
    assert load_pretrained(build_model("mlp", SHAPE, 3), state, 3) == []


def test_any_other_mismatch_names_the_first_tensors() -> None:
    model, state = build_model("mlp", SHAPE, 3), mlp_state()
    wide = {**state, "hidden.weight": torch.ones(1000, 9)}
    with pytest.raises(UserError, match=r"hidden\.weight is \(1000, 9\) instead of \(1000, 16\)"):
        load_pretrained(model, wide, 3)
    missing = {name: value for name, value in state.items() if name != "head.bias"}
    with pytest.raises(UserError, match=r"do not fit the model: head\.bias is missing"):
        load_pretrained(model, missing, 3)
    many = {**state, **{f"other{n}": torch.ones(1) for n in range(7)}}
    with pytest.raises(UserError, match=r"other0 is unknown, .*other4 is unknown and 2 more"):
        load_exactly(model, many)
    with pytest.raises(UserError, match=r"head\.weight is \(5, 1000\) instead of \(3, 1000\)"):
        load_exactly(model, mlp_state(classes=5))


def test_a_model_folder_of_another_architecture(tmp_path: Path) -> None:
    info = ModelInfo("mlp", ("a", "b", "c"), SHAPE, (0.5,), (0.5,), "tiny", {})
    codes = Codes(torch.rand(3, *SHAPE), torch.arange(3))
    save_model(tmp_path, info, mlp_state(), codes)
    assert state_digest(model_state("mlp", tmp_path)) == state_digest(mlp_state())
    with pytest.raises(UserError, match="holds a mlp and arch is 'resnet20'; train with arch mlp"):
        model_state("resnet20", tmp_path)


def test_torchvision_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = dict(build_model("squeezenet1_1", (3, 32, 32), 1000).state_dict())
    cached = tmp_path / "hub" / "checkpoints" / Path(SqueezeNet1_1_Weights.DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        assert state_digest(pretrained_state("squeezenet1_1", name)) == state_digest(state)


def test_a_failed_download_is_operational(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(OperationalError, match=r"IMAGENET1K_V1 of resnet18 cannot be downloaded"):
        pretrained_state("resnet18", "IMAGENET1K_V1")


def test_unknown_names_of_weights() -> None:
    with pytest.raises(UserError, match=r"weights is 'V9'; for resnet18 expected one of IMAGENET"):
        pretrained_state("resnet18", "V9")
    with pytest.raises(UserError, match=r"torchvision has no weights for resnet20; give a file"):
        pretrained_state("resnet20", "DEFAULT")
    with pytest.raises(UserError, match=r"no weights for an architecture 'resnet21'"):
        pretrained_state("resnet21", "DEFAULT")
