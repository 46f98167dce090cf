"""What the step that forgets writes: the changed weights, and nothing of the forgotten classes."""

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mlflow_store import CLASSES, SHAPE, make_tiny_statistics, save_tiny, tiny_model
from tiny_data import write_tiny

from expunge.config import PerturbConfig, PrepareDataConfig
from expunge.core.rules import RULES, anew, depths, objective
from expunge.core.rules.calibrate import calibrate
from expunge.core.stages import find_stage
from expunge.core.statistics import ClassStatistics, fit_gaussian
from expunge.data.sources import SOURCES
from expunge.errors import UserError
from expunge.forgetting import by_replay
from expunge.formats.dataset import (
    DatasetInfo,
    load_arrays,
    load_dataset_info,
    save_arrays,
    save_dataset_info,
)
from expunge.formats.fisher import load_forget_terms
from expunge.formats.model import load_model, load_model_info
from expunge.formats.statistics import STATISTICS, load_statistics, save_statistics
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


KEPT, IMAGES, USUAL = "kept at training", "images of the class", "usual for such a model"
ANEW, REFITTED = "trained anew", "refitted"


@pytest.fixture
def described(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Add class statistics to the model, with a depth of class 2 alone."""
    monkeypatch.setattr(anew, "STEPS", 300)  # enough for four classes of 16 pixels
    save_statistics(model, make_tiny_statistics(*range(CLASSES), depths={2: 3.25}))
    return model


def replay(model: Path, work: Path, *classes: int, **options: Any) -> dict[str, Any]:
    """Forget without Fisher terms, which replay does not read."""
    dataset = options.pop("dataset", None)
    config = PerturbConfig(classes, **options)
    unlearned = work / "unlearned"
    return perturb(config, model, work / "none", unlearned, parent="shapes/7", dataset=dataset)


def test_auto_is_replay_where_there_are_statistics_and_the_codes_rules_elsewhere(
    model: Path, tmp_path: Path
) -> None:
    assert forget(model, tmp_path / "codes", 2)["rule"] in RULES
    # statistics of other classes say nothing of this one
    save_statistics(model, make_tiny_statistics(0, 1, 3))
    assert forget(model, tmp_path / "others", 2)["rule"] in RULES
    save_statistics(model, make_tiny_statistics(*range(CLASSES), depths={2: 3.25}))
    assert replay(model, tmp_path, 2)["rule"] == "replay"
    # a rule that is named is taken all the same
    assert forget(model, tmp_path / "named", 2, rule="natural")["rule"] == "natural"
    assert forget(model, tmp_path / "any", 2, rule="codes")["rule"] in RULES


def test_a_stage_of_vectors_is_trained_anew(described: Path, tmp_path: Path) -> None:
    report = replay(described, tmp_path, 2)
    assert report["way"] == ANEW
    assert 0 <= report["distance"] < 0.1
    assert report["sufficient"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    before, after = (load_model(folder) for folder in (described, tmp_path / "unlearned"))
    codes_KCHW, classes_K = before.codes.images_KCHW, before.codes.classes_K
    named_K = after.module(codes_KCHW).argmax(dim=1)
    assert torch.equal(named_K[classes_K != 2], classes_K[classes_K != 2])
    drawn = make_tiny_statistics(2).draw(2, 200, torch.Generator().manual_seed(9))
    assert (after.module(drawn).argmax(dim=1) != 2).all()


def test_a_small_stage_is_trained_on_one_thread(
    described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that share their cores with others wait for each other at each short operation."""
    seen = []

    def look(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return train_anew(*given)

    train_anew = by_replay.train_anew
    monkeypatch.setattr(by_replay, "train_anew", look)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        replay(described, tmp_path, 2)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_nothing_of_the_class_is_left_in_the_folder(described: Path, tmp_path: Path) -> None:
    """Neither its code nor its Gaussian, nor its depth nor its name."""
    replay(described, tmp_path, 2)
    folder = tmp_path / "unlearned"
    before = load_model(described)
    statistics = load_statistics(described)
    assert statistics is not None
    gone = statistics.gaussians[2]
    parts = [before.codes.images_KCHW[2], gone.mean_G, gone.factor_RG, gone.residual_G]
    traces = [part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts]
    traces += [b"name-2", b"3.25", str(gone.high).encode(), b"2.mean"]
    known, left = (
        b"".join(path.read_bytes() for path in sorted(place.iterdir()))
        for place in (described, folder)
    )
    for trace in traces:
        assert trace in known
        assert trace not in left
    # what stays is to the byte what a version that never had the class would hold
    save_statistics(tmp_path / "never", make_tiny_statistics(0, 1, 3))
    assert (folder / STATISTICS).read_bytes() == (tmp_path / "never" / STATISTICS).read_bytes()


def test_a_rule_by_the_codes_drops_the_statistics_of_the_class_too(
    described: Path, tmp_path: Path
) -> None:
    forget(described, tmp_path, 2, rule="natural")
    left = load_statistics(tmp_path / "unlearned")
    assert left is not None
    assert (set(left.gaussians), left.depths) == ({0, 1, 3}, {})


def test_a_second_replay_goes_by_what_the_first_left(described: Path, tmp_path: Path) -> None:
    replay(described, tmp_path / "first", 2)
    report = replay(tmp_path / "first" / "unlearned", tmp_path / "second", 0)
    assert report["rule"] == "replay"
    folder = tmp_path / "second" / "unlearned"
    left = load_statistics(folder)
    assert left is not None
    assert set(left.gaussians) == {1, 3}
    assert load_model_info(folder).forgotten == (0, 2)


@pytest.fixture
def maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a network of feature maps with class statistics, and a depth of class 2 alone.

    The fits are too short to be good.
    """
    monkeypatch.setattr(depths, "DEPTH_FITS", 2)
    monkeypatch.setattr(objective, "EVALUATIONS", 3)
    stored = tiny_model(arch="resnet20")
    stage = find_stage(stored.module, stored.codes.images_KCHW, CLASSES)
    gaussians = {}
    for index in range(CLASSES):
        images_NCHW = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            gaussians[index] = fit_gaussian(stage.enter(images_NCHW), stage.shape, 8)
    statistics = ClassStatistics(stage.cut.name, stage.shape, stage.shape, gaussians, {2: 3.25})
    folder = save_tiny(tmp_path / "maps", stored)
    save_statistics(folder, statistics)
    return folder


def test_a_depth_that_was_kept_needs_no_images(maps: Path, tmp_path: Path) -> None:
    report = replay(maps, tmp_path, 2)
    assert report["way"] == REFITTED
    assert report["depths"] == {"2": {"depth": 3.25, "from": KEPT, "trials": []}}
    assert report["sufficient"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    left = load_statistics(tmp_path / "unlearned")
    assert left is not None
    assert (set(left.gaussians), left.depths) == ({0, 1, 3}, {})


def test_images_choose_the_depth_of_a_class_without_one(maps: Path, tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "data", classes=CLASSES, shape=SHAPE)
    by_images = replay(maps, tmp_path / "images", 1, dataset=data)["depths"]["1"]
    assert by_images["from"] == IMAGES
    depths = [trial["depth"] for trial in by_images["trials"]]
    assert by_images["depth"] in depths
    by_habit = replay(maps, tmp_path / "none", 1)["depths"]["1"]
    assert by_habit == {"depth": 1.5, "from": USUAL, "trials": []}
    # a split that is gone is as no images
    info = load_dataset_info(data)
    save_dataset_info(data, dataclasses.replace(info, splits={"test": info.splits["test"]}))
    again = replay(maps, tmp_path / "gone", 1, dataset=data)["depths"]["1"]
    assert again == by_habit


def test_a_class_that_is_still_named_beside_others_goes_deeper(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However deep: here the images never say that the class is gone."""
    data = write_tiny(tmp_path / "data", classes=CLASSES, shape=SHAPE)
    once = replay(maps, tmp_path / "once", 0, dataset=data)["depths"]["0"]
    monkeypatch.setattr(by_replay, "is_gone", lambda *given: given[-1] != 0)
    report = replay(maps, tmp_path / "both", 0, 2, dataset=data)
    assert report["depths"]["0"]["depth"] == pytest.approx(once["depth"] * by_replay.JOINT_RATIO**3)
    assert report["depths"]["2"] == {"depth": 3.25, "from": KEPT, "trials": []}
    assert not report["sufficient"]


@pytest.fixture
def _toy_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the source "toy", whose images are the model's, but that class 1 has none to train on."""

    def write(config: PrepareDataConfig, target: Path) -> DatasetInfo:
        info = load_dataset_info(write_tiny(target, classes=CLASSES, shape=SHAPE))
        images_NHWC, labels_N = load_arrays(target, "train")
        kept_N = labels_N != 1
        save_arrays(target, "train", images_NHWC[kept_N], labels_N[kept_N])
        split = dataclasses.replace(
            info.splits["train"], images=int(kept_N.sum()), counts=(12, 0, 12, 12)
        )
        return dataclasses.replace(info, splits={"train": split})

    module = ModuleType("toy_source")
    module.write = write  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_source", module)
    monkeypatch.setitem(SOURCES, "toy", "toy_source:write")


@pytest.mark.usefixtures("_toy_source")
def test_images_that_are_named_come_before_the_depth_that_was_kept(
    maps: Path, tmp_path: Path
) -> None:
    report = replay(maps, tmp_path, 2, forget_data="toy")
    assert report["depths"]["2"]["from"] == IMAGES
    with pytest.raises(UserError, match=r"toy has no training image of class 1 \(name-1\), which"):
        replay(maps, tmp_path / "missing", 1, forget_data="toy")
    assert not (tmp_path / "missing" / "unlearned").exists()


def test_images_of_another_kind_are_refused(maps: Path, tmp_path: Path) -> None:
    """scikit-learn's digits, at the model's size, are in ten classes."""
    text = r"images of digits are \(1, 4, 4\) \(C, H, W\) in 10 classes, and the model takes "
    with pytest.raises(UserError, match=text + r"\(1, 4, 4\) in 4; give images that it could"):
        replay(maps, tmp_path, 2, forget_data="digits")
    with pytest.raises(UserError, match=r"are \(1, 8, 8\) \(C, H, W\) in 4 classes"):
        replay(maps, tmp_path, 1, dataset=write_tiny(tmp_path / "data", classes=CLASSES))
    assert not (tmp_path / "unlearned").exists()


def test_replay_without_statistics_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rule replay needs class statistics, and this version has"):
        replay(model, tmp_path, 2, rule="replay")
    save_statistics(model, make_tiny_statistics(0, 1, 3))
    text = r"no statistics of classes \[2\], which rule replay needs; it has those of \[0, 1, 3\]"
    with pytest.raises(UserError, match=text):
        replay(model, tmp_path, 2, rule="replay")
    wrong = dataclasses.replace(make_tiny_statistics(*range(CLASSES)), cut="elsewhere")
    save_statistics(model, wrong)
    with pytest.raises(
        UserError, match="replay cannot split this model: it has no cut 'elsewhere'"
    ):
        replay(model, tmp_path, 2, rule="replay")
    assert not (tmp_path / "unlearned").exists()


def test_images_are_not_read_where_no_depth_is_needed(
    described: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replay(described, tmp_path, 2, forget_data="folder:/nowhere")
    assert "folder:/nowhere is not read: the last stage is trained anew" in caplog.text
