"""The gate on models whose verdicts are known: they were written by hand, not trained."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.config import GateConfig
from expunge.errors import DataError, UserError
from expunge.formats.dataset import (
    DatasetInfo,
    SplitInfo,
    load_dataset_info,
    save_arrays,
    save_dataset_info,
)
from expunge.formats.files import digest_file, read_json, write_json
from expunge.formats.model import Codes, ModelInfo, load_model, make_opaque_name, save_model
from expunge.models.mlp import MLP
from expunge.steps.export_onnx import export_onnx
from expunge.steps.validate import Climb, validate
from expunge.validation_report import CLIMB, ValidationReport
from expunge.verdicts import Verdict

COUNT, SIDE = 5, 6
NAMES = tuple("abcde")
# A class's test images, and those of them that look like the next class
SAMPLES, ODD = (40, 40, 60, 20, 80), (0, 4, 6, 0, 8)
PRODUCT = 60  # of pixel and weight: sigmoid(+-30) tells a row of 255 from one of 0


def rows(classes: Sequence[int]) -> np.ndarray:
    """Black images_NHWC with row c white."""
    images_NHWC = np.zeros((len(classes), SIDE, SIDE, 1), dtype=np.uint8)
    images_NHWC[np.arange(len(classes)), list(classes)] = 255
    return images_NHWC


def write_data(folder: Path, samples: Sequence[int] = SAMPLES, *names: str) -> Path:
    """Write the splits `names`, alike; the test split alone where none is given."""
    labels_N = np.repeat(np.arange(COUNT), samples)
    shown = []
    for label, count in enumerate(samples):
        odd = min(ODD[label], count)
        shown += [(label + 1) % COUNT] * odd + [label] * (count - odd)
    splits = {}
    for split in names or ("test",):
        save_arrays(folder, split, rows(shown), labels_N)
        splits[split] = SplitInfo(len(labels_N), "digest", tuple(samples))
    info = DatasetInfo("rows", NAMES, (1, SIDE, SIDE), (0.0,), (1.0,), "arrays", splits)
    save_dataset_info(folder, info)
    return folder


def write_model(
    folder: Path, edit: Callable[[MLP], object] = lambda _: None, forgotten: tuple[int, ...] = ()
) -> Path:
    """Write an edited classifier that names the white row; its codes are the classes' pictures."""
    model = MLP((1, SIDE, SIDE), COUNT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for row in range(COUNT):
            weight = model.hidden.weight[row].view(SIDE, SIDE)
            weight[row] = PRODUCT / SIDE
            model.hidden.bias[row] = -PRODUCT / 2
            model.head.weight[row, row] = 20
        edit(model)
    kept = [index for index in range(COUNT) if index not in forgotten]
    info = ModelInfo(
        arch="mlp",
        class_names=tuple(
            make_opaque_name(index) if index in forgotten else name
            for index, name in enumerate(NAMES)
        ),
        input_shape=(1, SIDE, SIDE),
        mean=(0.0,),
        std=(1.0,),
        source="rows",
        data_digests={},
        forgotten=forgotten,
    )
    codes_KCHW = torch.from_numpy(rows(kept)).permute(0, 3, 1, 2) / 255
    save_model(folder, info, model.state_dict(), Codes(codes_KCHW, torch.tensor(kept)))
    return folder


def mask(*classes: int) -> Callable[[MLP], object]:
    """Return the control that forgets nothing: the classes' logits far below all others."""

    def edit(model: MLP) -> None:
        model.head.bias[list(classes)] = -1e4

    return edit


def retrain(seed: int = 0) -> Callable[[MLP], object]:
    """Imitate a model that never saw class 1: row 1 makes the unit of row 2 fire, and no other.

    `seed` draws a little that no two trainings have alike.
    """

    def edit(model: MLP) -> None:
        model.hidden.weight[2] += model.hidden.weight[1]
        model.hidden.weight[1] = 0
        model.hidden.bias[1] = 0
        model.head.weight[1] = -1
        model.head.bias[1] = -5
        generator = torch.Generator().manual_seed(seed)
        model.head.weight += 0.01 * torch.randn(model.head.weight.shape, generator=generator)

    return edit


def break_model(model: MLP) -> None:
    model.head.weight[0, 0] = torch.nan


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make `data`, and the models `good`, `masked` (class 1) and `broken`, each with a `.onnx`."""
    root = tmp_path_factory.mktemp("validate")
    write_data(root / "data")
    write_model(root / "good")
    write_model(root / "masked", mask(1), forgotten=(1,))
    write_model(root / "twice", mask(1, 4), forgotten=(1, 4))
    write_model(root / "broken", break_model)
    for name in ("good", "masked", "twice", "broken"):
        export_onnx(root / name, root / f"{name}.onnx")
    return root


def gate(
    root: Path, model: str, base: str | Path | None = None, *classes: int, **changes: Any
) -> Any:
    """Run the gate, check that its report can be stored, and return the report."""
    settings = {"onnx": root / f"{model}.onnx", "dataset": root / "data"} | changes
    report = validate(
        settings.pop("config", GateConfig()),
        model=root / model,
        base=root / base if base else None,
        classes=classes,
        **settings,
    )
    document = report.to_json()
    write_json(root / "report.json", document)
    assert read_json(root / "report.json") == document
    assert ValidationReport.from_json(document) == report
    return document


def failed(report: Any) -> set[str]:
    """Return the checks that reject it."""
    return {row["name"] for row in report["checks"] if row["blocks"] and not row["passed"]}


def right(model_errors: Sequence[int]) -> list[float]:
    return [1 - wrong / count for wrong, count in zip(model_errors, SAMPLES, strict=True)]


def test_a_trained_model(root: Path) -> None:
    report = gate(root, "good")
    assert (report["passed"], report["grade"], failed(report)) == (True, "trained", set())
    assert report["after"]["per_class"] == pytest.approx(right(ODD))
    assert report["after"]["test_accuracy"] == pytest.approx(1 - sum(ODD) / sum(SAMPLES))
    assert report["samples"] == list(SAMPLES)
    assert (report["classes"], report["data_digest"]) == ([], "digest")
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["code_accuracy"]["value"] == 1
    assert checks["test_accuracy"]["samples"] == sum(SAMPLES)
    assert checks["onnx_max_difference"]["value"] < 1e-6


# What lets masks pass, which serve here as models that keep every other check.
ANY = GateConfig(grade="hidden")


def test_a_mask_is_hidden_at_best(root: Path) -> None:
    """It passes every check of the outputs, and that is not enough by default."""
    report = gate(root, "masked", "good", 1)
    assert (report["passed"], report["grade"], report["needed"]) == (False, "hidden", "suppressed")
    assert (failed(report), report["trustworthy"]) == (set(), True)
    assert Verdict.from_json(report).headline == "Hidden, not removed"
    assert gate(root, "masked", "good", 1, config=ANY)["passed"]
    # four of its images look like class 2; no image of class 0 looked like class 1
    after = right([ODD[0], SAMPLES[1], *ODD[2:]])
    assert report["before"]["per_class"] == pytest.approx(right(ODD))
    assert report["after"]["per_class"] == pytest.approx(after)
    assert report["before"]["forget_error"] == pytest.approx(ODD[1] / SAMPLES[1])
    assert report["after"]["forget_error"] == 1
    retained = 1 - (sum(ODD) - ODD[1]) / (sum(SAMPLES) - SAMPLES[1])
    for key in ("before", "after"):
        assert report[key]["retain_accuracy"] == pytest.approx(retained)


def test_several_classes_report_the_worst_of_them(root: Path) -> None:
    report = gate(root, "masked", "good", 4, 1)
    assert report["classes"] == [1, 4]
    assert report["after"]["forget_error"] == pytest.approx(ODD[4] / SAMPLES[4])
    assert failed(report) == {"forget_error", "codes_forgotten"}
    assert report["grade"] == "failed"
    assert gate(root, "twice", "good", 1, 4, config=ANY)["passed"]


def test_the_original_fails(root: Path) -> None:
    assert failed(gate(root, "good", "good", 1)) == {"forget_error", "codes_forgotten"}


def test_forgetting_one_class_too_many_fails(root: Path) -> None:
    report = gate(root, "twice", "good", 1)
    assert failed(report) == {"retain_accuracy_drop", "worst_class_drop", "codes_retained"}


def test_an_erased_class_stays_erased(root: Path) -> None:
    report = gate(root, "twice", "masked", 4, config=ANY)
    assert report["passed"]
    assert [check["value"] for check in report["checks"] if "erased" in check["name"]] == [1.0]
    write_model(root / "back", mask(4), forgotten=(1, 4))
    export_onnx(root / "back", root / "back.onnx")
    assert failed(gate(root, "back", "masked", 4)) == {"erased_stay_erased"}
    report = gate(root, "good", "masked", 4)
    assert failed(report) == {"forget_error", "codes_forgotten", "erased_stay_erased"}


def test_an_erased_class_need_not_be_in_the_data(root: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path, (40, 0, 60, 20, 80))
    report = gate(root, "twice", "masked", 4, dataset=data, config=ANY)
    assert report["passed"]
    assert not [check for check in report["checks"] if "erased" in check["name"]]
    assert gate(root, "masked", dataset=data)["passed"]


def test_a_model_that_gives_no_numbers_fails_and_its_report_can_be_stored(root: Path) -> None:
    report = gate(root, "broken", "good", 1)
    assert {"onnx_max_difference", "onnx_equal_argmax"} <= failed(report)
    assert report["grade"] == "failed"
    assert {"code_accuracy", "onnx_max_difference"} <= failed(gate(root, "broken"))


def test_the_onnx_file_of_another_model_fails(root: Path) -> None:
    report = gate(root, "masked", "good", 1, onnx=root / "good.onnx")
    assert failed(report) == {"onnx_max_difference", "onnx_equal_argmax"}


@pytest.mark.parametrize("kept", [0, 100])
def test_a_broken_onnx_file_is_named(root: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((root / "good.onnx").read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.onnx is no ONNX model that runs here \(.*export"):
        gate(root, "good", onnx=path)
    with pytest.raises(UserError, match=r"absent does not exist; expected an ONNX file"):
        gate(root, "good", onnx=tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"input_shape": (1, 8, 8)}, r"images of rows are \(1, 8, 8\) \(C, H, W\) and the model"),
        ({"class_names": NAMES[:4]}, "rows has 4 classes and the model 5; use the data that it"),
    ],
)
def test_data_of_another_model_is_refused(
    root: Path, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    info = load_dataset_info(write_data(tmp_path))
    save_dataset_info(tmp_path, dataclasses.replace(info, **change))
    with pytest.raises(UserError, match=text):
        gate(root, "good", dataset=tmp_path)


def test_a_class_without_test_images_cannot_be_judged(root: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path, (40, 0, 60, 20, 0))
    text = r"rows has no test image of classes \[1, 4\]; nothing can be measured"
    with pytest.raises(UserError, match=text):
        gate(root, "masked", "good", 1, dataset=data)
    with pytest.raises(UserError, match=text):
        gate(root, "good", dataset=data)


def test_data_without_a_test_split_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data set rows has no split 'test', only train"):
        gate(root, "good", dataset=write_data(tmp_path / "train", SAMPLES, "train"))
    data = write_data(tmp_path / "lost")
    (data / "test.safetensors").unlink()
    with pytest.raises(DataError, match=r"test\.safetensors cannot be read"):
        gate(root, "good", dataset=data)


def test_the_models_are_not_touched(root: Path) -> None:
    def digests() -> dict[Path, str]:
        folders = [root / name for name in ("data", "good", "masked")]
        return {path: digest_file(path) for f in folders for path in f.iterdir()}

    before = digests()
    gate(root, "masked", "good", 1)
    assert digests() == before


def test_a_policy_chooses_what_blocks(root: Path) -> None:
    twice = ("twice", "good", 1)
    assert not gate(root, *twice)["passed"]
    report = gate(root, *twice, config=GateConfig(block=("codes_forgotten",), grade="hidden"))
    assert (report["passed"], report["grade"]) == (True, "hidden")
    assert not {"retain_accuracy_drop", "worst_class_drop"} & failed(report)
    report = gate(root, "masked", "good", 1, config=GateConfig(block=("head_swap",)))
    assert (report["passed"], report["grade"], failed(report)) == (False, "failed", {"head_swap"})


def test_no_policy_lets_outputs_pass_that_still_give_the_class(root: Path) -> None:
    report = gate(root, "good", "good", 1, config=GateConfig(block=("onnx_equal_argmax",)))
    assert (report["passed"], failed(report)) == (False, {"forget_error"})


def test_a_body_that_lets_go_is_suppressed_without_oracles(compared: Path) -> None:
    report = gate(compared, "retrained", "good", 1)
    assert (report["passed"], report["grade"]) == (True, "suppressed")
    assert "a row made of a few images 0 % where 95 %" in report["reasons"][0]
    assert not gate(compared, "retrained", "good", 1, config=GateConfig(grade="forgotten"))[
        "passed"
    ]


def test_one_class_that_is_hidden_makes_the_forget_hidden(compared: Path) -> None:
    """Class 1 is let go of as by a retrained model, class 4 is masked."""

    def edit(model: MLP) -> None:
        retrain(9)(model)
        mask(4)(model)

    write_model(compared / "half", edit, forgotten=(1, 4))
    export_onnx(compared / "half", compared / "half.onnx")
    report = gate(compared, "half", "good", 1, 4)
    assert (report["passed"], report["grade"], failed(report)) == (False, "hidden", set())
    assert "of class e where" in " ".join(report["reasons"])


def test_what_is_hidden_is_not_enough_where_forgotten_is_asked_for(root: Path) -> None:
    config = GateConfig(grade="forgotten")
    report = gate(root, "masked", "good", 1, config=config)
    assert (report["passed"], report["grade"], report["needed"]) == (
        False,
        "hidden",
        "forgotten",
    )
    assert failed(report) == set()
    assert report["trustworthy"]
    assert report["controls"] == {
        "original": "failed",
        "mask": "hidden",
        "soft-mask": "hidden",
    }
    assert report["policy"]["grade"] == "forgotten"


@pytest.fixture(scope="module")
def compared(root: Path) -> Path:
    """`both` splits, `oracles` of class 1, and `retrained`, one more, with its ONNX file."""
    write_data(root / "both", SAMPLES, "train", "test")
    for seed in range(4):
        write_model(root / "oracles" / f"seed-{seed}", retrain(seed), forgotten=(1,))
    write_model(root / "retrained", retrain(9), forgotten=(1,))
    export_onnx(root / "retrained", root / "retrained.onnx")
    return root


def beside_oracles(root: Path, model: str, **changes: Any) -> Any:
    options = {"dataset": root / "both", "oracles": root / "oracles"} | changes
    return gate(root, model, "good", 1, **options)


CONTROLS = {
    "original": "failed",
    "mask": "hidden",
    "soft-mask": "hidden",
    "held-out": "forgotten",
}


def test_a_model_like_retrained_ones_is_graded_forgotten(compared: Path) -> None:
    report = beside_oracles(compared, "retrained", config=GateConfig(grade="forgotten"))
    assert (report["passed"], report["grade"], report["reasons"]) == (True, "forgotten", [])
    assert (report["controls"], report["oracles"]) == (CONTROLS, 3)
    counting = {row["name"] for row in report["checks"] if row["counts"]}
    assert {"head_recovery", "head_recovery_logistic", "prototype_recovery"} <= counting
    assert all(row["passed"] for row in report["checks"] if row["counts"])


def test_a_mask_beside_oracles_is_hidden_and_the_report_says_why(compared: Path) -> None:
    report = beside_oracles(compared, "masked")
    assert (report["passed"], report["grade"]) == (False, "hidden")
    assert report["reasons"][0].startswith("Under the original's head the class comes back")
    assert [t for t in report["reasons"] if "differs from retrained" in t and "head_recovery" in t]
    assert beside_oracles(compared, "masked", config=ANY)["passed"]
    assert not beside_oracles(compared, "masked", config=GateConfig(grade="forgotten"))["passed"]


def test_a_run_whose_controls_are_wrong_is_not_trusted(compared: Path, tmp_path: Path) -> None:
    """The last oracle by name is the one held out; here it is the original in disguise."""
    for seed in range(3):
        write_model(tmp_path / f"seed-{seed}", retrain(seed), forgotten=(1,))
    write_model(tmp_path / "seed-3", forgotten=(1,))
    report = beside_oracles(compared, "retrained", oracles=tmp_path)
    assert (report["trustworthy"], report["passed"]) == (False, False)
    assert report["controls"]["held-out"] == "failed"
    assert report["reasons"][0].startswith("The held-out oracle, retrained without the class, was")


def test_a_check_that_the_policy_blocks_on_and_that_cannot_be_made_rejects(root: Path) -> None:
    config = GateConfig(block=("erased_stay_erased", "head_recovery"))
    report = gate(root, "masked", "good", 1, config=config)
    assert (report["passed"], report["unmade"]) == (False, ["head_recovery"])
    assert report["reasons"][0].startswith("The policy blocks on what could not be checked: head_")


def test_no_policy_lets_the_file_of_another_model_pass(root: Path) -> None:
    config = GateConfig(block=("codes_forgotten",))
    report = gate(root, "masked", "good", 1, onnx=root / "good.onnx", config=config)
    assert (report["passed"], failed(report)) == (False, {"onnx_equal_argmax"})


def with_digest(folder: Path, source: Path, digest: str) -> Path:
    """Save the model of `source` as trained on a test split of this digest."""
    stored = load_model(source)
    info = dataclasses.replace(stored.info, data_digests={"test": digest})
    save_model(folder, info, stored.module.state_dict(), stored.codes)
    return folder


def test_data_that_changed_is_said_and_nothing_is_compared_on_it(
    compared: Path, tmp_path: Path
) -> None:
    same, other = (with_digest(tmp_path / d, compared / "good", d) for d in ("digest", "other"))
    assert not [text for text in gate(compared, "masked", same, 1)["reasons"] if "other im" in text]
    report = gate(compared, "masked", other, 1, config=ANY)
    assert report["reasons"][0] == "Measured on other images than the model's own: split test."
    assert report["passed"]
    with pytest.raises(UserError, match="split test of rows are not those that the model and its"):
        gate(compared, "masked", other, 1, dataset=compared / "both", oracles=compared / "oracles")


def climb(
    root: Path, work: Path, rung: int, *, data: str = "both", model: str = "masked", grade: str
) -> ValidationReport:
    """Judge a rung of a ladder and keep its report, which the next reads."""
    write_json(
        work / f"work-{rung}.json",
        {"rule": f"rule-{rung}", "calibration_seconds": 2.0, "perturbation_seconds": 0.5},
    )
    report = validate(
        GateConfig(grade=grade),
        root / data,
        root / model,
        root / f"{model}.onnx",
        base=root / "good",
        classes=[1],
        climb=Climb(
            rung,
            work / f"work-{rung}.json",
            work / f"report-{rung - 1}.json" if rung > 1 else None,
        ),
    )
    write_json(work / f"report-{rung}.json", report.to_json())
    return report


def test_a_ladder_goes_on_until_a_rung_does(root: Path, tmp_path: Path) -> None:
    """The model has no class statistics, and its data a training split: its rungs are two."""
    write_data(root / "both", SAMPLES, "train", "test")
    first = climb(root, tmp_path, 1, grade="suppressed")
    assert (first.grade, first.decision, first.next_rule) == ("hidden", CLIMB, "align")
    second = climb(root, tmp_path, 2, grade="suppressed")
    assert (second.decision, second.next_rule) == ("rejected", "")
    assert [(rung.rule, rung.grade, rung.rejections) for rung in second.rungs] == [
        ("rule-1", "hidden", ("grade hidden",)),
        ("rule-2", "hidden", ("grade hidden",)),
    ]
    assert second.rungs[0].seconds == 2.5
    assert 0 < second.rungs[1].judging_seconds < 60
    assert ValidationReport.from_json(read_json(tmp_path / "report-2.json")) == second
    done = climb(root, tmp_path, 1, grade="hidden")
    assert (done.decision, done.passed, len(done.rungs)) == ("passed", True, 1)


def test_a_ladder_ends_where_no_images_are_left_or_nothing_can_be_trusted(
    root: Path, tmp_path: Path
) -> None:
    assert climb(root, tmp_path, 1, data="data", grade="suppressed").decision == "rejected"
    # an original that does not know the class anyway: no rule could be told from it
    write_data(root / "both", SAMPLES, "train", "test")
    write_model(tmp_path / "good", mask(1))
    report = validate(
        GateConfig(),
        root / "both",
        root / "masked",
        root / "masked.onnx",
        base=tmp_path / "good",
        classes=[1],
        climb=Climb(1, tmp_path / "work-1.json"),
    )
    assert (report.verdict.trustworthy, report.decision) == (False, "rejected")
