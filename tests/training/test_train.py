"""Training as a step: what it writes, that it repeats itself, and that it survives being killed."""

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_tiny

from expunge.config import TrainConfig
from expunge.core.codes import draw_codes
from expunge.errors import OperationalError, UserError
from expunge.formats.dataset import load_dataset_info, save_dataset_info
from expunge.formats.model import load_model
from expunge.steps.train import train
from expunge.training.checkpoints import lock_folder

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = TrainConfig("mlp", epochs=3, batch_size=16, t_mix=0.3, workers=0)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data")


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


def weights_of(model: Path) -> bytes:
    return (model / "weights.safetensors").read_bytes()


def run(config: TrainConfig, dataset: Path, model: Path, **options: Any) -> dict[str, Any]:
    return train(config, dataset, model, checkpoints=model.parent / "checkpoints", **options)


def interrupt(config: TrainConfig, dataset: Path, model: Path, after: int) -> Path:
    """Stop a run after some epochs; the folder of its checkpoints."""

    def stop(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(config, dataset, model, on_epoch=stop)
    assert not (model / "model.json").exists()
    (folder,) = (model.parent / "checkpoints").iterdir()
    return folder


def test_what_it_writes_and_reports(dataset: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=25, learning_rate=0.05)
    told: list[tuple[int, dict[str, float]]] = []
    report = run(config, dataset, tmp_path / "model", on_epoch=lambda *event: told.append(event))
    stored = load_model(tmp_path / "model")
    assert stored.info.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert stored.info.data_digests == {
        name: split.digest for name, split in load_dataset_info(dataset).splits.items()
    }
    assert (stored.info.parent, stored.info.forgotten) == (None, ())
    assert stored.info.settings["epochs"] == 25
    expected = draw_codes(range(4), 4, (1, 8, 8), torch.Generator().manual_seed(0))
    assert torch.equal(stored.codes.images_KCHW, expected)
    assert stored.codes.classes_K.tolist() == [0, 1, 2, 3]
    logits_KC = stored.module(stored.codes.images_KCHW)
    assert logits_KC.argmax(dim=1).tolist() == [0, 1, 2, 3]

    assert json.loads(json.dumps(report)) == report
    assert report["test_accuracy"] == report["code_accuracy"] == 1.0
    assert report["test_accuracy_by_class"] == [1.0] * 4
    assert report["epochs"] == 25
    assert report["resumed_from_epoch"] == 0
    assert report["processes"] == 1
    assert report["device"] in (
        "cpu",
        torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    )
    assert report["seconds"] > 0
    assert [epoch for epoch, _ in told] == list(range(1, 26))
    assert set(told[-1][1]) == {
        "train_loss",
        "train_accuracy",
        "code_accuracy",
        "test_accuracy",
        "learning_rate",
        "images_per_second",
        "epoch_seconds",
    }
    assert told[0][1]["train_loss"] > told[-1][1]["train_loss"] == report["train_loss"]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_seed_gives_the_same_bytes_and_another_seed_others(dataset: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        run(dataclasses.replace(CONFIG, seed=seed), dataset, tmp_path / name)
    for file in ("weights.safetensors", "codes.safetensors", "model.json"):
        first = (tmp_path / "first" / file).read_bytes()
        assert (tmp_path / "again" / file).read_bytes() == first
        assert (tmp_path / "other" / file).read_bytes() != first


KILLED = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from expunge.config import TrainConfig
from expunge.steps.train import train
data, model, checkpoints = map(Path, sys.argv[1:4])
config = TrainConfig("mlp", epochs=6, batch_size=16, t_mix=0.3, workers=0)
train(config, data, model, checkpoints=checkpoints, on_epoch=lambda *event: time.sleep(0.5))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=6)
    run(config, dataset, tmp_path / "undisturbed")
    paths = [dataset, tmp_path / "model", tmp_path / "checkpoints"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, paths)])
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "checkpoints").glob("*/epoch-000002/checkpoint.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "model").exists()
    report = run(config, dataset, tmp_path / "model")
    assert 2 <= report["resumed_from_epoch"] < 6
    assert weights_of(tmp_path / "model") == weights_of(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("arch", "size", "precision"),
    # BatchNorm, momentum in channels-last layout; and dropout
    [("resnet20", 8, "fp32"), ("resnet20", 8, "bf16"), ("squeezenet1_1", 32, "fp32")],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, arch: str, size: int, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_tiny(tmp_path / "data", shape=(3, size, size))
    config = dataclasses.replace(CONFIG, arch=arch, precision=precision)
    run(config, dataset, tmp_path / "undisturbed")
    interrupt(config, dataset, tmp_path / "model", after=2)
    told: list[int] = []
    with caplog.at_level(logging.INFO):
        report = run(
            config, dataset, tmp_path / "model", on_epoch=lambda epoch, metrics: told.append(epoch)
        )
    assert report["resumed_from_epoch"] == 2
    assert "going on after epoch 2 of 3 from a checkpoint" in caplog.text
    assert told == [1, 2, 3]
    assert weights_of(tmp_path / "model") == weights_of(tmp_path / "undisturbed")


def test_a_run_killed_while_it_writes_its_model_only_writes(dataset: Path, tmp_path: Path) -> None:
    run(CONFIG, dataset, tmp_path / "undisturbed")
    interrupt(CONFIG, dataset, tmp_path / "model", after=3)
    report = run(CONFIG, dataset, tmp_path / "model")
    assert report["resumed_from_epoch"] == 3
    assert report["test_accuracy"] >= 0
    assert weights_of(tmp_path / "model") == weights_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("broken", [["epoch-000002"], ["epoch-000001", "epoch-000002"]])
def test_broken_checkpoints_are_said_and_the_weights_are_the_same(
    dataset: Path, tmp_path: Path, broken: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(CONFIG, dataset, tmp_path / "undisturbed")
    folder = interrupt(CONFIG, dataset, tmp_path / "model", after=2)
    for name in broken:
        state = folder / name / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-100])
    report = run(CONFIG, dataset, tmp_path / "model")
    assert report["resumed_from_epoch"] == 2 - len(broken)
    assert all(f"{name} is broken" in caplog.text for name in broken)
    assert weights_of(tmp_path / "model") == weights_of(tmp_path / "undisturbed")


def test_another_recipe_does_not_use_the_checkpoint(dataset: Path, tmp_path: Path) -> None:
    interrupt(CONFIG, dataset, tmp_path / "model", after=2)
    other = dataclasses.replace(CONFIG, weight_decay=0.0)
    assert run(other, dataset, tmp_path / "other")["resumed_from_epoch"] == 0


def test_the_same_training_twice_at_once_is_refused(dataset: Path, tmp_path: Path) -> None:
    folder = interrupt(CONFIG, dataset, tmp_path / "model", after=1)
    with (
        lock_folder(folder),
        pytest.raises(OperationalError, match=r"the same training runs already, as process \d+;"),
    ):
        run(CONFIG, dataset, tmp_path / "model")
    assert run(CONFIG, dataset, tmp_path / "model")["resumed_from_epoch"] == 1


def test_a_class_left_out_plays_no_part(dataset: Path, tmp_path: Path) -> None:
    spoiled = write_tiny(tmp_path / "spoiled", spoiled=2)
    config = dataclasses.replace(CONFIG, without=(2,), epochs=5, learning_rate=0.05)
    for name, data in (("model", dataset), ("spoiled model", spoiled)):
        report = run(config, data, tmp_path / name)
    assert weights_of(tmp_path / "model") == weights_of(tmp_path / "spoiled model")
    stored = load_model(tmp_path / "model")
    assert stored.info.class_names == ("class 0", "class 1", "forgotten-2", "class 3")
    assert stored.info.forgotten == (2,)
    assert "class 2" not in (tmp_path / "model" / "model.json").read_text()
    assert stored.codes.classes_K.tolist() == [0, 1, 3]
    expected = draw_codes([0, 1, 3], 4, (1, 8, 8), torch.Generator().manual_seed(0))
    assert torch.equal(stored.codes.images_KCHW, expected)
    assert stored.module(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    by_class = report["test_accuracy_by_class"]
    assert by_class[2] == 0.0
    assert report["test_accuracy"] == pytest.approx(sum(by_class) / 3)


def test_full_mixing_never_sees_an_image(dataset: Path, tmp_path: Path) -> None:
    spoiled = write_tiny(tmp_path / "spoiled", spoiled=1)
    for t_mix, same in ((1.0, True), (0.3, False)):
        config = dataclasses.replace(CONFIG, t_mix=t_mix)
        first = run(config, dataset, tmp_path / f"first {t_mix}")
        run(config, spoiled, tmp_path / f"second {t_mix}")
        equal = weights_of(tmp_path / f"first {t_mix}") == weights_of(tmp_path / f"second {t_mix}")
        assert equal == same
        assert ("train_accuracy" in first) == (t_mix < 1)


def test_a_model_to_begin_with_keeps_its_weights(dataset: Path, tmp_path: Path) -> None:
    run(CONFIG, dataset, tmp_path / "first")
    start = load_file(tmp_path / "first" / "weights.safetensors")
    settings = []
    for number, source in enumerate(("first", "first/weights.safetensors")):
        config = dataclasses.replace(
            CONFIG, epochs=1, learning_rate=1e-9, seed=7, init_from=str(tmp_path / source)
        )
        run(config, dataset, tmp_path / f"second {number}")
        stored = load_model(tmp_path / f"second {number}")
        for name, value in stored.module.state_dict().items():
            assert torch.allclose(value, start[name], atol=1e-7)
        assert not torch.equal(
            stored.codes.images_KCHW, load_model(tmp_path / "first").codes.images_KCHW
        )
        settings.append(stored.info.settings)
    assert settings[0] == settings[1]  # by their content, not by their path
    assert settings[0]["init_from"].startswith("sha256:")


def test_pretrained_weights_of_another_task(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(CONFIG, write_tiny(tmp_path / "other", classes=6), tmp_path / "first")
    path = tmp_path / "first" / "weights.safetensors"
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-9, weights=str(path))
    with caplog.at_level(logging.INFO):
        run(config, dataset, tmp_path / "second")
    assert "head.weight, head.bias start anew" in caplog.text
    found, start = load_file(tmp_path / "second" / "weights.safetensors"), load_file(path)
    assert torch.allclose(found["hidden.weight"], start["hidden.weight"], atol=1e-7)
    assert found["head.weight"].shape == (4, 1000)


def test_image_files_train_as_well(tmp_path: Path) -> None:
    dataset = write_tiny(tmp_path / "data", shape=(3, 8, 8), files=True)
    for name in ("first", "again"):
        report = run(dataclasses.replace(CONFIG, epochs=2), dataset, tmp_path / name)
    assert report["test_accuracy"] >= 0
    assert weights_of(tmp_path / "first") == weights_of(tmp_path / "again")


def test_the_process_is_left_as_it_was(dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    torch.set_num_threads(2)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    run(CONFIG, dataset, tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2


def test_the_step_starts_without_torch() -> None:
    code = "import sys, expunge.steps.train; print({'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_divergence_stops_with_one_line(dataset: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=40, learning_rate=1000.0, weight_decay=1.0)
    message = r"training diverged: the loss is (nan|inf) at epoch \d+, step \d of 3, learning rate"
    with pytest.raises(UserError, match=message):
        run(config, dataset, tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": (4,)}, "without names class 4; the data has 0 to 3"),
        ({"without": (0, 1, 2)}, "without leaves 1 of 4 classes; a classifier needs two"),
        ({"precision": "fp16"}, "precision is 'fp16' and the device is a cpu"),
        ({"processes": 17}, "17 processes share batches of 16 images; choose a larger batch_size"),
        ({"arch": "resnet18"}, "resnet18 takes RGB images"),
    ],
)
def test_settings_that_do_not_fit(
    dataset: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if changes == {"precision": "fp16"} and torch.cuda.is_available():
        pytest.skip("a GPU takes fp16")
    with pytest.raises(UserError, match=message):
        run(dataclasses.replace(CONFIG, **changes), dataset, tmp_path / "model")


def test_data_that_does_not_fit(dataset: Path, tmp_path: Path) -> None:
    info = load_dataset_info(dataset)
    train_split, test_split = info.splits["train"], info.splits["test"]
    cases = [
        ({"train": train_split}, "tiny has no split 'test'; prepare it with the splits"),
        (
            {"train": dataclasses.replace(train_split, counts=(16, 0, 16, 16)), "test": test_split},
            r"class 1 \(class 1\) has no training image; add some, or leave it out: --without 1",
        ),
        (
            {"train": train_split, "test": dataclasses.replace(test_split, counts=(0, 0, 0, 0))},
            "split test of tiny has no image of a class that takes part",
        ),
    ]
    for splits, message in cases:
        save_dataset_info(dataset, dataclasses.replace(info, splits=splits))
        with pytest.raises(UserError, match=message):
            run(CONFIG, dataset, tmp_path / "model")
