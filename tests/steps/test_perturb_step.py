"""What the step that forgets writes: the changed weights, and nothing of the forgotten classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow_store import SHAPE, save_tiny, tiny_model

from expunge.config import PerturbConfig
from expunge.core.rules.calibrate import calibrate
from expunge.errors import UserError
from expunge.formats.fisher import load_forget_terms
from expunge.formats.model import load_model, load_model_info
from expunge.steps.compute_fim import compute_fim
from expunge.steps.perturb import perturb


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Save a model that has just learned its codes."""
    stored = tiny_model()
    optimizer = torch.optim.SGD(stored.module.parameters(), lr=0.5, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        logits_KC = stored.module(stored.codes.images_KCHW)
        torch.nn.functional.cross_entropy(logits_KC, stored.codes.classes_K).backward()
        optimizer.step()
    return save_tiny(tmp_path / "model", stored)


def forget(model: Path, work: Path, *classes: int, **settings: Any) -> dict[str, Any]:
    compute_fim(model, work / "terms", classes=classes)
    config = PerturbConfig(classes, **settings)
    return perturb(config, model, work / "terms", work / "unlearned", parent="shapes/7")


def test_the_weights_are_the_calibrators(model: Path, tmp_path: Path) -> None:
    forget(model, tmp_path, 2)
    before, after = (load_model(folder) for folder in (model, tmp_path / "unlearned"))
    terms = load_forget_terms(tmp_path / "terms", torch.device("cpu"))
    codes = before.codes
    choice = calibrate(
        before.module, codes.images_KCHW, codes.classes_K, codes.classes_K == 2, terms=terms
    )
    changed = dict(after.module.named_parameters())
    for name, weight_W in before.module.named_parameters():
        torch.testing.assert_close(changed[name], weight_W + choice.change[name])
    right_K = after.module(codes.images_KCHW).argmax(1) == codes.classes_K
    assert right_K.tolist() == [True, True, False, True]


def test_the_folder_holds_the_retained_codes_and_no_name(model: Path, tmp_path: Path) -> None:
    forget(model, tmp_path, 2, 0)
    folder = tmp_path / "unlearned"
    before, after = load_model(model), load_model(folder)
    assert {path.name for path in folder.iterdir()} == {
        "model.json",
        "weights.safetensors",
        "codes.safetensors",
    }
    assert after.info.class_names == ("forgotten-0", "name-1", "forgotten-2", "name-3")
    assert (after.info.forgotten, after.info.parent) == ((0, 2), "shapes/7")
    assert after.codes.classes_K.tolist() == [1, 3]
    assert torch.equal(after.codes.images_KCHW, before.codes.images_KCHW[[1, 3]])
    whole = b"".join(path.read_bytes() for path in folder.iterdir())
    for gone in (0, 2):
        assert before.codes.images_KCHW[gone].numpy().tobytes() not in whole
        assert f"name-{gone}".encode() not in whole
    assert before.codes.images_KCHW[1].numpy().tobytes() in whole


def test_a_second_forget_keeps_the_first(model: Path, tmp_path: Path) -> None:
    forget(model, tmp_path / "first", 3)
    forget(tmp_path / "first" / "unlearned", tmp_path / "second", 0)
    info = load_model_info(tmp_path / "second" / "unlearned")
    assert info.forgotten == (0, 3)
    assert info.class_names == ("forgotten-0", "name-1", "name-2", "forgotten-3")


@pytest.mark.parametrize(
    "settings",
    [{}, {"rule": "paper"}, {"rule": "natural"}, {"rule": "paper", "lambdas": (1e-3, 10.0)}],
)
def test_the_report_is_json_with_every_trial(
    model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    report = forget(model, tmp_path, 1, **settings)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["classes"] == [1]
    row = {key: report[key] for key in report["trials"][0]}
    assert row in report["trials"]
    if settings.get("lambdas"):
        assert report["lambdas"] == [1e-3, 10.0]
        assert len(report["trials"]) == 2
    if settings.get("rule"):
        assert {trial["rule"] for trial in report["trials"]} == {settings["rule"]}
    assert min(report["calibration_seconds"], report["perturbation_seconds"]) >= 0


def test_numbers_beyond_all_bounds_are_null(model: Path, tmp_path: Path) -> None:
    """Strengths that overflow float32 give losses that JSON cannot hold."""
    report = forget(model, tmp_path, 1, rule="paper", lambdas=(1e300, 1e300))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert None in (report["forget_loss"], report["damage"], report["retain_loss"])


def test_the_base_is_left_as_it_was(model: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    forget(model, tmp_path, 1)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((3,), "class 3 is already forgotten by this version"),
        ((4,), "class 4 is unknown; the model has classes 0 to 3"),
        ((0, 1, 2), r"classes \[0, 1, 2\] are all that the model has left"),
        ((0, 1), r"forgetting \[0, 1\] would leave one class"),
    ],
)
def test_what_cannot_be_forgotten_writes_nothing(
    tmp_path: Path, classes: tuple[int, ...], message: str
) -> None:
    model = save_tiny(tmp_path / "model", tiny_model(forgotten=(3,)))
    assert load_model_info(model).input_shape == SHAPE
    with pytest.raises(UserError, match=message):
        perturb(PerturbConfig(classes), model, tmp_path / "none", tmp_path / "out", parent="s/1")
    assert not (tmp_path / "out").exists()
