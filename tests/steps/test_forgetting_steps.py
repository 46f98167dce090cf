"""compute_fim, perturb and validate on a small model that knows its data and its codes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.config import GateConfig, PerturbConfig, TrainConfig
from expunge.core.grading.grades import at_least
from expunge.errors import UserError
from expunge.formats.dataset import (
    DatasetInfo,
    SplitInfo,
    load_dataset_info,
    save_arrays,
    save_dataset_info,
)
from expunge.formats.fisher import FISHER, load_fisher, load_forget_terms, save_fisher
from expunge.formats.model import load_codes, load_model, load_model_info
from expunge.steps.compute_fim import compute_fim
from expunge.steps.export_onnx import export_onnx
from expunge.steps.perturb import perturb
from expunge.steps.train import train
from expunge.steps.validate import validate

NAMES = ("ada", "bob", "cyd", "dan", "eve")


def write_rows(folder: Path, *, absent: int | None = None) -> Path:
    """Class c has its bright row c; the class `absent` has no test image."""
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 400), ("test", 200)):
        labels = np.arange(count) % 5
        if split == "test" and absent is not None:
            labels = labels[labels != absent]
        images = generator.integers(0, 120, (len(labels), 6, 6, 1), dtype=np.uint8)
        images[np.arange(len(labels)), labels] += 130
        save_arrays(folder, split, images, labels)
        counts = tuple(np.bincount(labels, minlength=5).tolist())
        splits[split] = SplitInfo(len(labels), split, counts)
    info = DatasetInfo("rows", NAMES, (1, 6, 6), (0.3,), (0.25,), "arrays", splits)
    save_dataset_info(folder, info)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with `data`, `model` (with its Fisher total) and `model.onnx`."""
    root = tmp_path_factory.mktemp("steps")
    config = TrainConfig("mlp", epochs=30, batch_size=20, learning_rate=0.1, precision="fp32")
    train(config, write_rows(root / "data"), root / "model", checkpoints=root / "checkpoints")
    compute_fim(root / "model", root / "model")
    export_onnx(root / "model", root / "model.onnx")
    return root


def unlearned(trained: Path, work: Path, classes: tuple[int, ...], **settings: object) -> Path:
    compute_fim(trained / "model", work / "terms", classes=classes)
    config = PerturbConfig(classes, **settings)  # type: ignore[arg-type]
    perturb(config, trained / "model", work / "terms", work / "unlearned", parent="rows/1")
    export_onnx(work / "unlearned", work / "model.onnx")
    return work


def test_the_terms_are_the_same_with_and_without_the_total(trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(trained / "model", bare)
    (bare / FISHER).unlink()
    device = torch.device("cpu")
    compute_fim(trained / "model", tmp_path / "a", classes=[1])
    direct = compute_fim(bare, tmp_path / "b", classes=[1])
    assert direct["retain_computed_directly"]
    assert direct["gradients"] == 5
    first, second = (load_forget_terms(tmp_path / part, device) for part in "ab")
    for name, value in second.retain.items():
        torch.testing.assert_close(first.retain[name], value, rtol=1e-6, atol=0)


def test_a_total_that_was_computed_in_another_way_is_not_used(
    trained: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained / "model", other)
    total, provenance = load_fisher(other)
    save_fisher(other, total, provenance | {"device": "another"})
    assert compute_fim(other, tmp_path / "terms", classes=[1])["retain_computed_directly"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [([7], r"classes \[7\] have no code in this model"), ([0, 1, 2, 3, 4], "at least one has")],
)
def test_fisher_of_classes_that_cannot_go(
    trained: Path, tmp_path: Path, classes: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compute_fim(trained / "model", tmp_path / "terms", classes=classes)
    assert not (tmp_path / "terms").exists()


def test_nothing_of_a_forgotten_class_is_written(trained: Path, tmp_path: Path) -> None:
    work = unlearned(trained, tmp_path, (1,))
    stored = load_model(work / "unlearned")
    base = load_model_info(trained / "model")
    assert stored.info.forgotten == (1,)
    assert stored.info.parent == "rows/1"
    assert stored.info.settings.keys() == base.settings.keys() - {"seed"}  # it redraws the code
    assert stored.codes.classes_K.tolist() == [0, 2, 3, 4]
    whole = b"".join(path.read_bytes() for path in (work / "unlearned").iterdir())
    assert b"bob" not in whole + (work / "model.onnx").read_bytes()
    assert b"dan" in whole
    code = load_codes(trained / "model").images_KCHW[1].numpy().tobytes()
    assert code not in whole


def test_the_gate_passes_what_forgot(trained: Path, tmp_path: Path) -> None:
    work = unlearned(trained, tmp_path, (1,))
    report = validate(
        GateConfig(grade="hidden"), trained / "data", work / "unlearned", work / "model.onnx",
        base=trained / "model", classes=[1],
    ).to_json()  # fmt: skip
    assert report["passed"]
    assert at_least(report["grade"], "hidden")
    assert report["before"]["per_class"][1] > 0.95
    assert report["after"]["per_class"][1] < 0.05
    assert report["after"]["forget_error"] == 1 - report["after"]["per_class"][1]


def test_the_original_fails_as_its_own_unlearned_model(trained: Path) -> None:
    report = validate(
        GateConfig(), trained / "data", trained / "model", trained / "model.onnx",
        base=trained / "model", classes=[1],
    ).to_json()  # fmt: skip
    failed = {row["name"] for row in report["checks"] if row["blocks"] and not row["passed"]}
    assert failed == {"forget_error", "codes_forgotten"}
    assert (report["passed"], report["grade"]) == (False, "failed")


def test_another_models_onnx_fails_parity(trained: Path, tmp_path: Path) -> None:
    work = unlearned(trained, tmp_path, (1,))
    report = validate(
        GateConfig(), trained / "data", work / "unlearned", trained / "model.onnx",
        base=trained / "model", classes=[1],
    ).to_json()  # fmt: skip
    failed = {row["name"] for row in report["checks"] if row["blocks"] and not row["passed"]}
    assert failed == {"onnx_max_difference", "onnx_equal_argmax"}


def test_a_trained_model_is_checked_on_codes_and_accuracy(trained: Path) -> None:
    report = validate(
        GateConfig(), trained / "data", trained / "model", trained / "model.onnx"
    ).to_json()
    assert report["passed"]
    assert report["grade"] == "trained"
    assert report["after"]["test_accuracy"] > 0.95
    assert {check["name"] for check in report["checks"]} == {
        "code_accuracy", "test_accuracy", "onnx_max_difference", "onnx_equal_argmax",
    }  # fmt: skip


def test_a_second_forget_checks_the_first(trained: Path, tmp_path: Path) -> None:
    first = unlearned(trained, tmp_path / "first", (1,)) / "unlearned"
    terms, second = tmp_path / "terms", tmp_path / "second"
    compute_fim(first, terms, classes=[3])
    perturb(PerturbConfig((3,)), first, terms, second, parent="rows/2")
    export_onnx(second, tmp_path / "second.onnx")
    report = validate(
        GateConfig(), trained / "data", second, tmp_path / "second.onnx", base=first, classes=[3]
    ).to_json()
    assert "erased_stay_erased" in {check["name"] for check in report["checks"]}
    assert load_model_info(second).forgotten == (1, 3)
    with pytest.raises(UserError, match="class 1 is already forgotten"):
        perturb(PerturbConfig((1,)), first, terms, tmp_path / "third", parent="rows/2")


def test_data_that_cannot_say_anything(trained: Path, tmp_path: Path) -> None:
    arguments = (trained / "model", trained / "model.onnx")
    few = write_rows(tmp_path / "few", absent=1)
    with pytest.raises(UserError, match=r"has no test image of classes \[1\]"):
        validate(GateConfig(), few, *arguments, base=trained / "model", classes=[1])
    info = load_dataset_info(few)
    other = DatasetInfo(**(vars(info) | {"class_names": NAMES[:4]}))
    save_dataset_info(few, other)
    with pytest.raises(UserError, match="has 4 classes and the model 5"):
        validate(GateConfig(), few, *arguments)
    save_dataset_info(few, DatasetInfo(**(vars(info) | {"input_shape": (1, 9, 9)})))
    with pytest.raises(UserError, match=r"\(1, 9, 9\) \(C, H, W\) and the model takes"):
        validate(GateConfig(), few, *arguments)
