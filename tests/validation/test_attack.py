"""The battery on real models: the digits, retrained four times without a class."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tiny_data import write_tiny

from expunge.config import PrepareDataConfig, TrainConfig
from expunge.core.heads import MASK, SOFT_MASK, mask_head, read_head, with_head
from expunge.errors import UserError
from expunge.formats.dataset import load_arrays, load_dataset_info, save_arrays, save_dataset_info
from expunge.formats.files import write_json
from expunge.formats.model import Codes, ModelInfo, StoredModel, load_model, save_model
from expunge.models import build_model
from expunge.steps.prepare_data import prepare_data
from expunge.steps.train import train
from expunge.validation.attack import attack
from expunge.validation.findings import Findings
from expunge.validation.measure import Subject
from expunge.validation_report import HELD_OUT, ORIGINAL, UNLEARNED

GONE, CLASSES = 3, 10
SEEDS = (1001, 1002, 1003, 1004)
# As short as the grades allow: the controls have to get theirs from models that know the digits.
RECIPE = TrainConfig(arch="mlp", epochs=8, batch_size=32, learning_rate=0.1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: the models are so small that more would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make `data`, the model `original`, and an oracle a seed."""
    root = tmp_path_factory.mktemp("attack")
    prepare_data(PrepareDataConfig("digits", root), root / "data")
    made = {"original": RECIPE}
    for seed in SEEDS:
        made[f"oracle-{seed}"] = dataclasses.replace(RECIPE, seed=seed, without=(GONE,))
    for name, config in made.items():
        train(config, root / "data", root / name, checkpoints=root / "checkpoints")
    return root


def model(root: Path, name: str) -> StoredModel:
    return load_model(root / name)


def hidden(root: Path) -> StoredModel:
    """Return the original with its output for the class masked."""
    stored = model(root, "original")
    mask = mask_head(read_head(stored.module, CLASSES), [GONE])
    return dataclasses.replace(stored, module=with_head(stored.module, mask))


def disguised(root: Path) -> StoredModel:
    """Return the original, which is made to say that it never saw the class."""
    stored = model(root, "original")
    return dataclasses.replace(stored, info=dataclasses.replace(stored.info, forgotten=(GONE,)))


def attacked(
    root: Path, judged: StoredModel, oracles: Sequence[str | StoredModel], data: str = "data"
) -> Findings:
    folder = root / data
    info, original = load_dataset_info(folder), model(root, "original")
    retrained = [model(root, found) if isinstance(found, str) else found for found in oracles]
    return attack(Subject(folder, info, judged, original, (GONE,)), retrained, forget_error=0.95)


ORACLES = [f"oracle-{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def found(root: Path) -> Findings:
    return attacked(root, hidden(root), ORACLES)


def test_every_control_gets_its_grade_and_a_mask_is_seen_through(found: Findings) -> None:
    assert found.grades == {
        UNLEARNED: "hidden",
        ORIGINAL: "failed",
        MASK: "hidden",
        SOFT_MASK: "hidden",
        HELD_OUT: "forgotten",
    }
    assert found.problems == ()
    assert found.oracles == 3


def test_the_checks_say_what_gave_it_away(found: Findings) -> None:
    checks = {check.name: check for check in found.checks}
    assert not checks["head_swap"].passed
    assert checks["head_swap"].counts is None  # it is not compared with oracles
    assert checks["prototype_recovery"].counts
    assert not checks["prototype_recovery"].passed
    assert not checks["tow"].counts
    assert [text for text in found.reasons if "differs" in text and "prototype_recovery" in text]
    swap = found.attacks["head_swap"]
    returned = [text for text in found.reasons if "Under the original's head" in text]
    assert bool(returned) == (swap.values[UNLEARNED] > max(swap.oracles))


def test_the_report_has_every_model(found: Findings) -> None:
    names = {UNLEARNED, ORIGINAL, MASK, SOFT_MASK, HELD_OUT}
    attacks = found.attacks
    assert names <= set(attacks["head_recovery"].values)
    for metric in (
        "head_recovery",
        "head_recovery_logistic",
        "prototype_recovery",
        "layer_recovery",
        "relearning",
        "output_distance",
    ):
        row = attacks[metric]
        assert row.values[UNLEARNED] == row.values[MASK]
        assert len(row.oracles or ()) == 3
        assert (row.threshold or 0) > 0
    assert attacks["membership"].oracles == (None,) * 3
    assert attacks["anamnesis"].values[ORIGINAL] == 0
    relearning = found.relearning
    assert relearning is not None
    assert (set(relearning.curves), len(relearning.oracles)) == (names, 3)
    curves = [*relearning.curves.values(), *relearning.oracles]
    assert all(len(curve) == len(relearning.steps) for curve in curves)


def test_a_mask_changed_the_head_alone(found: Findings) -> None:
    depth = found.depth
    changed = {layer.name: layer.relative_change for layer in depth.layers}
    assert set(changed) == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}
    assert changed["hidden.weight"] == changed["hidden.bias"] == 0
    assert (changed["head.weight"] or 0) > 0
    assert (depth.head_alone, depth.both) == (1, 1)
    assert depth.body_alone is not None
    assert depth.body_alone < 0.2


def test_a_control_that_was_not_retrained_without_the_class_is_a_problem(root: Path) -> None:
    """The last oracle is held out; here the original stands in its place."""
    found = attacked(root, hidden(root), [*ORACLES[:3], disguised(root)])
    assert found.grades[HELD_OUT] == "failed"
    assert found.problems == (
        "The held-out oracle, retrained without the class, was graded failed.",
    )


def test_an_oracle_of_other_classes_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"trained without classes \[\]; expected \[3\]"):
        attacked(root, hidden(root), [*ORACLES[:3], "original"])
    stored = model(root, ORACLES[0])
    smaller = dataclasses.replace(stored.info, class_names=stored.info.class_names[:9])
    with pytest.raises(
        UserError, match=r"an oracle takes images of .* and has 9 classes; expected"
    ):
        attacked(root, hidden(root), [dataclasses.replace(stored, info=smaller)])


def test_an_oracle_without_numbers_is_refused(root: Path) -> None:
    broken = model(root, ORACLES[0])
    with torch.no_grad():
        broken.module.get_parameter("hidden.weight").fill_(torch.nan)
    with pytest.raises(UserError, match="the original or an oracle gives values that are no numb"):
        attacked(root, hidden(root), [broken, *ORACLES[1:]])


BODY_CHECKS = {"head_swap", "head_recovery", "head_recovery_logistic", "prototype_recovery"}


@pytest.mark.parametrize("oracles", [[], ORACLES[:3]])
def test_without_enough_oracles_the_body_checks_tell_a_mask(root: Path, oracles: list[str]) -> None:
    found = attacked(root, hidden(root), oracles)
    assert found.grades == {
        UNLEARNED: "hidden",
        ORIGINAL: "failed",
        MASK: "hidden",
        SOFT_MASK: "hidden",
    }
    assert [check.name for check in found.checks] == ["head_swap"]
    assert set(found.attacks) == BODY_CHECKS
    assert all(row.oracles is None for row in found.attacks.values())
    assert (found.oracles, found.relearning, found.problems) == (0, None, ())
    assert found.reasons[0].startswith("Under the original's head the class comes back")
    assert found.reasons[1].startswith("The class is still in the body: a new head finds ")
    assert "there are fewer than 4 (3 to compare with, one" in found.reasons[-1]


@pytest.mark.parametrize("data", ["data", "test-only"])
def test_an_oracle_without_other_oracles_is_suppressed(root: Path, data: str) -> None:
    """Nothing brings the class back so far, and what comes back stands in figures."""
    if data == "test-only" and not (root / data).exists():
        prepare_data(PrepareDataConfig("digits", root, splits=("test",)), root / data)
    for name in ORACLES[:2]:
        found = attacked(root, model(root, name), [], data)
        assert found.grades[UNLEARNED] == "suppressed"
        own = 100 * (found.attacks["head_recovery"].values[UNLEARNED] or 0)
        assert found.reasons[0].startswith(f"A new head finds {own:.0f} % of class 3 where the ")


def test_new_heads_learn_from_half_of_the_test_split_where_there_is_no_other(root: Path) -> None:
    if not (root / "test-only").exists():
        prepare_data(PrepareDataConfig("digits", root, splits=("test",)), root / "test-only")
    found = attacked(root, hidden(root), [], "test-only")
    assert found.grades[UNLEARNED] == found.grades[MASK] == found.grades[SOFT_MASK] == "hidden"
    assert set(found.attacks) == BODY_CHECKS
    half = load_dataset_info(root / "data").splits["test"].counts[GONE] / 2
    assert found.checks[0].samples == pytest.approx(half, abs=0.5)
    assert any(text.startswith("The training images are not here") for text in found.reasons)


def test_the_blocks_of_the_body_are_in_the_report(found: Findings) -> None:
    row = found.depth.blocks["hidden"]
    assert set(row.values) == {UNLEARNED, ORIGINAL, HELD_OUT}
    assert row.values[UNLEARNED] == row.values[ORIGINAL]
    assert len(row.oracles or ()) == 3
    assert found.attacks["layer_recovery"].values[ORIGINAL] == row.values[ORIGINAL]  # the only one


def test_the_original_is_not_forgotten_by_its_own_attack(root: Path) -> None:
    found = attacked(root, model(root, "original"), [])
    assert found.grades[UNLEARNED] == "failed"


@pytest.mark.parametrize("oracles", [[], ORACLES])
def test_a_model_without_numbers_fails_and_can_be_reported(
    root: Path, tmp_path: Path, oracles: list[str]
) -> None:
    broken = model(root, "original")
    with torch.no_grad():
        broken.module.get_parameter("hidden.weight").fill_(torch.nan)
    found = attacked(root, broken, oracles)
    assert found.grades[UNLEARNED] == "failed"
    assert found.reasons == (
        "The unlearned model gives values that are no numbers; no attack was made.",
    )
    write_json(tmp_path / "report.json", found.depth.to_json())


def test_a_class_without_training_images_is_named(root: Path, tmp_path: Path) -> None:
    info = load_dataset_info(root / "data")
    for split in ("train", "test"):
        images_NHWC, labels_N = load_arrays(root / "data", split)
        kept_N = labels_N != (GONE if split == "train" else -1)
        save_arrays(tmp_path, split, images_NHWC[kept_N], labels_N[kept_N])
    save_dataset_info(tmp_path, info)
    with pytest.raises(UserError, match=r"digits has too few images .*: class 3 has no image"):
        attacked(root, hidden(root), ORACLES, str(tmp_path))
    # without oracles the test images do
    assert attacked(root, hidden(root), [], str(tmp_path)).grades[UNLEARNED] == "hidden"


def test_a_class_with_one_test_image_is_looked_for_by_the_swap_alone(
    root: Path, tmp_path: Path
) -> None:
    info = load_dataset_info(root / "data")
    images_NHWC, labels_N = load_arrays(root / "data", "test")
    own_N = (labels_N == GONE).nonzero()[0]
    kept_N = labels_N != GONE
    kept_N[own_N[:1]] = True
    save_arrays(tmp_path, "test", images_NHWC[kept_N], labels_N[kept_N])
    save_dataset_info(tmp_path, dataclasses.replace(info, splits={"test": info.splits["test"]}))
    found = attacked(root, hidden(root), [], str(tmp_path))
    assert set(found.attacks) == {"head_swap"}
    assert any("No new head was trained" in text for text in found.reasons)


def test_an_original_without_numbers_is_refused(root: Path) -> None:
    folder, broken = root / "data", model(root, "original")
    with torch.no_grad():
        broken.module.get_parameter("hidden.weight").fill_(torch.nan)
    subject = Subject(folder, load_dataset_info(folder), hidden(root), broken, (GONE,))
    with pytest.raises(UserError, match="the original or an oracle gives values that are no numb"):
        attack(subject, [], forget_error=0.95)


def squeezed(folder: Path, edit: Callable[[torch.nn.Module], object]) -> StoredModel:
    module = build_model("squeezenet1_1", (3, 32, 32), 4).eval()
    edit(module)
    info = ModelInfo(
        arch="squeezenet1_1",
        class_names=("a", "b", "c", "d"),
        input_shape=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        source="tiny",
        data_digests={},
    )
    codes = Codes(torch.rand(4, 3, 32, 32), torch.arange(4))
    save_model(folder, info, module.state_dict(), codes)
    return load_model(folder)


def test_a_model_without_a_linear_head_is_not_looked_into(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "data", shape=(3, 32, 32))
    torch.manual_seed(0)
    stored = squeezed(tmp_path / "model", lambda module: None)
    info = load_dataset_info(data)
    found = attack(Subject(data, info, stored, stored, (1,)), [], forget_error=0.95)
    assert found.grades[UNLEARNED] == found.grades[ORIGINAL]
    assert bool(found.problems) == (found.grades[ORIGINAL] != "failed")
    assert found.reasons[0].startswith("No attack looked into the body: the model has no linear")
    assert {layer.relative_change for layer in found.depth.layers} == {0}
