"""What a launcher and its processes write for each other comes back as it was."""

import json
import logging
from pathlib import Path

import pytest

from expunge.config import TrainConfig
from expunge.errors import DataError, ErrorRecord, OperationalError, UserError
from expunge.training.exchange import (
    Arguments,
    EpochEvent,
    Event,
    LogEvent,
    append_event,
    event_from_json,
    read_arguments,
    read_report,
    replay_events,
    write_arguments,
    write_failure,
    write_report,
)
from expunge.training.spec import TrainingSpec

CONFIG = TrainConfig("mlp", epochs=3, learning_rate=0.05, without=(2, 1), init_from="m.pt")


def spec_in(folder: Path) -> TrainingSpec:
    return TrainingSpec(CONFIG, folder / "data", folder / "model", folder / "checkpoints")


@pytest.mark.parametrize("more", [{"launcher": 17}, {"patience": 0.5}, {}])
def test_arguments(tmp_path: Path, more: dict[str, int]) -> None:
    written = Arguments(spec_in(tmp_path), **more)
    write_arguments(tmp_path, written)
    assert read_arguments(tmp_path) == written
    assert (tmp_path / "events.jsonl").read_text() == ""


def test_paths_hold_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = TrainingSpec(CONFIG, Path("data"), Path("model"), Path("c"), keeps_ledger=False)
    read = TrainingSpec.from_json(json.loads(json.dumps(relative.to_json())))
    assert (read.dataset, read.model, read.checkpoints) == (
        tmp_path.resolve() / "data",
        tmp_path.resolve() / "model",
        tmp_path.resolve() / "c",
    )
    assert (read.config, read.keeps_ledger) == (CONFIG, False)


@pytest.mark.parametrize(
    "event",
    [EpochEvent(3, {"train_loss": 0.1}), LogEvent("expunge.training.loop", logging.INFO, "50 %")],
)
def test_events(event: Event) -> None:
    assert event_from_json(json.loads(json.dumps(event.to_json()))) == event


def test_events_are_handed_on_once_they_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    told: list[tuple[int, dict[str, float]]] = []
    with path.open("w") as out, path.open() as read, caplog.at_level(logging.INFO):
        append_event(out, EpochEvent(1, {"train_loss": 0.5}))
        out.write('{"epoch": 2, "met')
        out.flush()
        replay_events(read, lambda *event: told.append(event))
        assert told == [(1, {"train_loss": 0.5})]
        out.write('rics": {}}\n')
        append_event(out, LogEvent("expunge.training.loop", logging.WARNING, "50 % are through"))
        replay_events(read, lambda *event: told.append(event))
        replay_events(read, lambda *event: told.append(event))
    assert told[1:] == [(2, {})]
    assert [(row.name, row.levelname, row.message) for row in caplog.records] == [
        ("expunge.training.loop", "WARNING", "50 % are through")
    ]


def test_a_report(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    write_report(tmp_path, {"test_accuracy_by_class": [0.5, None]})
    assert read_report(tmp_path) == {"test_accuracy_by_class": [0.5, None]}


@pytest.mark.parametrize("kind", [UserError, DataError, OperationalError])
def test_the_first_failure_comes_out_as_it_was(
    tmp_path: Path, kind: type[UserError | OperationalError]
) -> None:
    write_failure(tmp_path, kind("image a.png is broken"))
    write_failure(tmp_path, OperationalError("the others are gone"))
    write_report(tmp_path, {})
    with pytest.raises(kind, match=r"^image a\.png is broken$") as caught:
        read_report(tmp_path)
    assert type(caught.value) is kind
    written = ErrorRecord.from_json(json.loads((tmp_path / "error.json").read_text()))
    assert written == ErrorRecord(kind.__name__, "image a.png is broken")
