"""Training over several nodes: the step's side of a TrainJob, and the whole of it, run here."""

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from k8s_server import Cluster, Refused, kill, make_condition, make_kubeconfig
from safetensors.torch import load_file
from tiny_data import write_tiny

from expunge import ledger
from expunge.config import TrainConfig
from expunge.errors import OperationalError, UserError
from expunge.steps.train import train
from expunge.training import multinode, trainjob, trainjob_api

pytest_plugins = ["k8s_server"]

# 13 images a batch: two processes get 6 and 7
CONFIG = TrainConfig("mlp", epochs=3, batch_size=13, t_mix=0.3, precision="fp32", workers=0)
# A node's status: it is through, or the step, which had all that it waited for, ended it.
ENDED = {0, 128 + signal.SIGTERM}
TWO = dataclasses.replace(CONFIG, nodes=2)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the shared volume, and set the variable of a compiled pipeline that names it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    settings = trainjob.Cluster("site/expunge:1", "shared", "4", "16Gi", gpu="", mount=str(folder))
    monkeypatch.setenv(trainjob.VARIABLE, settings.to_variable())
    monkeypatch.setattr(multinode, "POLL", 0.05)
    monkeypatch.setattr(multinode, "SETTLING", 0.2)
    monkeypatch.setattr(multinode, "API_PATIENCE", 5.0)
    monkeypatch.setattr(trainjob_api, "LOOK", 0.02)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data", images=52)


@pytest.fixture
def waits(tmp_path: Path, dataset: Path, cluster: Cluster, volume: Path) -> Callable[..., Any]:
    """Return the step, with nodes that do what the test writes in their place."""
    cluster.runs = False

    def run(config: TrainConfig = TWO, **more: Any) -> Any:
        return train(config, dataset, tmp_path / "model", checkpoints=tmp_path / "unused", **more)

    return run


def run_folder(volume: Path) -> Path:
    (found,) = volume.glob("trainings/*/run")
    return found


def finish(volume: Path, *events: dict[str, Any]) -> None:
    """Write what the first process of a training leaves."""
    run = run_folder(volume)
    model = run.parent / "model"
    model.mkdir()
    (model / "weights.safetensors").write_text("the weights")
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "report.json").write_text('{"epochs": 3}')


def reach_an_epoch(volume: Path) -> None:
    (run_folder(volume).parent / "checkpoints" / "key" / "epoch-000001").mkdir(parents=True)


def recorded() -> list[tuple[str, tuple[int, ...]]]:
    """Kind and classes of all that the ledger has still, by an address in the volume."""
    found = {
        row.address: row for index in range(4) for row in ledger.list_remembering("any", [index])
    }
    return [(row.kind, tuple(row.classes)) for row in found.values() if "volume" in row.address]


def nothing_left(volume: Path) -> bool:
    return not list(volume.glob("trainings/*")) and not recorded()


@pytest.mark.slow
def test_two_nodes_learn_what_one_process_does(
    tmp_path: Path,
    dataset: Path,
    cluster: Cluster,
    volume: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []
    two = train(
        TWO,
        dataset,
        tmp_path / "two",
        checkpoints=tmp_path / "unused",
        on_epoch=lambda epoch, metrics: told.append(epoch),
    )
    (job,) = cluster.created
    assert set(cluster.statuses) <= ENDED
    assert cluster.deleted == [job["metadata"]["name"]]
    assert (two["nodes"], two["processes"], told) == (2, 1, [1, 2, 3])
    assert not (tmp_path / "unused").exists()
    assert nothing_left(volume)
    monkeypatch.delenv(trainjob.VARIABLE)
    train(CONFIG, dataset, tmp_path / "one", checkpoints=tmp_path / "checkpoints")
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        # as two processes on one machine: `test_torchrun` has the reason
        assert torch.allclose(value, second[name], atol=5e-7, rtol=0), name
    texts = [json.loads((tmp_path / name / "model.json").read_text()) for name in ("one", "two")]
    assert texts[1]["settings"].pop("nodes") == 2
    assert texts[0]["settings"] == texts[1]["settings"]


@pytest.mark.slow
def test_a_node_that_dies_is_started_again_and_goes_on(
    tmp_path: Path, dataset: Path, cluster: Cluster, volume: Path
) -> None:
    cluster.restarts = 6  # as Kubernetes' Jobs have it
    told: list[int] = []

    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        told.append(epoch)
        if epoch == 2:
            kill(cluster.nodes[1][0])

    config = dataclasses.replace(TWO, epochs=100)
    report = train(config, dataset, tmp_path / "model", checkpoints=tmp_path, on_epoch=on_epoch)
    assert [len(node) > 1 for node in cluster.nodes] == [True, True]
    assert report["resumed_from_epoch"] > 0
    assert told == list(range(1, 101))


def test_one_node_gives_the_bytes_of_this_machine(
    tmp_path: Path,
    dataset: Path,
    cluster: Cluster,
    volume: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(CONFIG, dataset, tmp_path / "far", checkpoints=tmp_path / "unused")
    assert set(cluster.statuses) <= ENDED
    assert nothing_left(volume)
    monkeypatch.delenv(trainjob.VARIABLE)
    train(CONFIG, dataset, tmp_path / "near", checkpoints=tmp_path / "checkpoints")
    files = [sorted((tmp_path / name).iterdir()) for name in ("far", "near")]
    for far, near in zip(*files, strict=True):
        assert far.read_bytes() == near.read_bytes()


def test_the_step_hands_on_what_the_first_process_says(
    tmp_path: Path,
    cluster: Cluster,
    volume: Path,
    waits: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    epochs = [{"epoch": epoch, "metrics": {"train_loss": 1.0}} for epoch in (1, 2)]
    log = {"logger": "expunge.training.loop", "level": logging.INFO, "message": "going on"}
    cluster.on_get = lambda: finish(volume, *epochs, log, *epochs)
    told: list[int] = []
    with caplog.at_level(logging.INFO):
        report = waits(on_epoch=lambda epoch, metrics: told.append(epoch))
    assert report == {"epochs": 3}
    assert told == [1, 2]  # each once: a pod that is started again tells them again
    assert "going on" in caplog.text
    assert (tmp_path / "model" / "weights.safetensors").read_text() == "the weights"
    assert nothing_left(volume)
    assert not cluster.jobs


def test_what_the_nodes_find_on_the_volume(
    dataset: Path, cluster: Cluster, volume: Path, waits: Callable[..., Any]
) -> None:
    seen: dict[str, Any] = {}

    def look() -> None:
        run = run_folder(volume)
        seen["arguments"] = json.loads((run / "arguments.json").read_text())
        seen["files"] = sorted(path.name for path in (run.parent / "data").iterdir())
        seen["recorded"] = recorded()
        seen["alive"] = (run / "alive").read_text()
        finish(volume)

    cluster.on_get = look
    waits(dataclasses.replace(TWO, without=(3,)))
    (folder,) = {str(Path(seen["arguments"][key]).parent) for key in ("dataset", "model")}
    assert folder.startswith(f"{volume}/trainings/")
    assert cluster.created[0]["metadata"]["name"] == f"expunge-{Path(folder).name}"
    assert cluster.created[0]["spec"]["trainer"]["args"] == [f"{folder}/run"]
    assert seen["arguments"]["checkpoints"] == f"{folder}/checkpoints"
    assert seen["arguments"]["launcher"] is None
    assert seen["arguments"]["config"]["nodes"] == 2
    assert seen["files"] == sorted(path.name for path in dataset.iterdir())
    assert seen["recorded"] == [("training", (0, 1, 2, 3))]
    assert seen["alive"] == "1"


def test_the_pod_owns_its_job(
    cluster: Cluster, volume: Path, waits: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "train-1")
    monkeypatch.setenv("KFP_POD_UID", "u-1")
    cluster.on_get = lambda: finish(volume)
    waits()
    (owner,) = cluster.created[0]["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "train-1", "uid": "u-1"}


def test_an_error_of_a_process_comes_out_as_it_is(
    cluster: Cluster, volume: Path, waits: Callable[..., Any]
) -> None:
    def fail() -> None:
        error = {"kind": "UserError", "message": "training diverged"}
        (run_folder(volume) / "error.json").write_text(json.dumps(error))

    cluster.on_get = fail
    with pytest.raises(UserError, match=r"^training diverged$"):
        waits()
    assert not cluster.jobs
    assert nothing_left(volume)


def test_a_job_that_failed(cluster: Cluster, volume: Path, waits: Callable[..., Any]) -> None:
    def speak() -> None:
        (run_folder(volume) / "output-1.txt").write_text("CUDA out of memory")

    cluster.on_get = speak
    cluster.script = [[], [make_condition("Failed", "JobsFailed", "too many retries")]]
    expected = r"(?s)failed \(JobsFailed too many retries\); the last.*output-1.*out of memory"
    with pytest.raises(OperationalError, match=expected):
        waits()
    assert nothing_left(volume)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Failed", r"failed \(Because\); its nodes said nothing: check that they mount the same"),
        ("Complete", "is complete and left no report; its nodes said nothing"),
    ],
)
def test_a_job_that_ended_without_a_word(
    cluster: Cluster, waits: Callable[..., Any], kind: str, expected: str
) -> None:
    cluster.script = [[make_condition(kind, "Because")]]
    with pytest.raises(OperationalError, match=expected):
        waits()


def test_a_report_may_show_after_the_job_is_complete(
    cluster: Cluster, volume: Path, waits: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multinode, "SETTLING", 60.0)
    looks: list[int] = []

    def late() -> None:
        looks.append(1)
        if len(looks) == 3:
            finish(volume)

    cluster.on_get = late
    cluster.script = [[make_condition("Complete", "JobsCompleted")]]
    assert waits() == {"epochs": 3}


def test_a_job_that_somebody_deleted(
    cluster: Cluster, volume: Path, waits: Callable[..., Any]
) -> None:
    def delete() -> None:
        reach_an_epoch(volume)
        cluster.jobs.clear()

    cluster.on_get = delete
    with pytest.raises(OperationalError, match="was deleted while it trained; run the pipeline"):
        waits(dataclasses.replace(TWO, without=(3,)))
    (folder,) = volume.glob("trainings/*")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "lock"]
    assert recorded() == [("checkpoints", (0, 1, 2))]


def test_the_next_attempt_goes_on_and_clears_what_a_killed_one_left(
    dataset: Path, cluster: Cluster, volume: Path, waits: Callable[..., Any]
) -> None:
    def killed() -> None:
        reach_an_epoch(volume)
        cluster.jobs.clear()

    cluster.on_get = killed
    with pytest.raises(OperationalError, match="was deleted"):
        waits()
    (folder,) = volume.glob("trainings/*")
    for name in ("data.partial", "run", "model"):
        (folder / name).mkdir()
    (folder / "run" / "error.json").write_text('{"kind": "UserError", "message": "of old"}')
    (folder / "data").mkdir()  # it was copied whole
    name = f"expunge-{folder.name}"
    cluster.jobs[name] = {"status": {}}
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(sorted(path.name for path in folder.iterdir()))
        assert not list((folder / "data").iterdir())
        finish(volume)

    cluster.on_get = look
    assert waits() == {"epochs": 3}
    assert seen == [["checkpoints", "data", "lock", "run"]]
    assert nothing_left(volume)


def test_the_same_training_does_not_run_twice(
    cluster: Cluster, volume: Path, waits: Callable[..., Any]
) -> None:
    def again() -> None:
        cluster.on_get = lambda: finish(volume)
        with pytest.raises(OperationalError, match="the same training runs already, as process"):
            waits()

    cluster.on_get = lambda: finish(volume)
    told: list[int] = []

    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        told.append(epoch)
        again()

    cluster.on_get = lambda: finish(volume, {"epoch": 1, "metrics": {}})
    waits(on_epoch=on_epoch)
    assert told == [1]


STEP = """
import sys
from pathlib import Path
from expunge.config import TrainConfig
from expunge.steps.train import train
from expunge.training import multinode, trainjob_api
multinode.POLL, trainjob_api.LOOK, trainjob_api.GONE = 0.05, 0.02, float(sys.argv[3])
data, model = map(Path, sys.argv[1:3])
train(TrainConfig("mlp", batch_size=13, nodes=2), data, model, checkpoints=model)
"""


@pytest.fixture
def end_step(
    tmp_path: Path, dataset: Path, cluster: Cluster, volume: Path
) -> Callable[..., int | None]:
    """End the step by SIGTERM when it first looks at its job, and return its status.

    It has a process of its own, so that the signal cannot end the tests.
    """
    cluster.runs = False
    started, ended = threading.Event(), threading.Event()

    def end(gone: float = 60.0, before: Callable[[], None] = lambda: None) -> int | None:
        def look() -> None:
            if not ended.is_set():
                before()
                assert started.wait(20)
                step.send_signal(signal.SIGTERM)
                ended.set()

        cluster.on_get = look
        arguments = [str(dataset), str(tmp_path / "model"), str(gone)]
        with subprocess.Popen([sys.executable, "-c", STEP, *arguments]) as step:
            started.set()
            try:
                return step.wait(60)
            finally:
                step.kill()

    return end


def test_a_step_that_is_ended_removes_its_job(
    cluster: Cluster, volume: Path, end_step: Callable[..., int | None]
) -> None:
    assert end_step() == 128 + signal.SIGTERM
    assert not cluster.jobs
    assert nothing_left(volume)


def test_the_data_goes_before_the_pods_of_a_step_that_is_ended(
    cluster: Cluster,
    volume: Path,
    end_step: Callable[..., int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kubernetes kills the step after 30 s, and the pods may take longer."""
    monkeypatch.setattr(cluster, "forget", lambda name: None)  # they do not go at all
    get, left = cluster._get, []

    def look(name: str) -> Any:
        if name in cluster.going:
            folder = run_folder(volume).parent
            left.append(sorted(path.name for path in folder.iterdir()))
        return get(name)

    def leave_more() -> None:
        (run_folder(volume).parent / "data.partial").mkdir()

    monkeypatch.setattr(cluster, "_get", look)
    assert end_step(gone=0.2, before=leave_more) == 128 + signal.SIGTERM
    assert left
    assert {tuple(names) for names in left} == {("lock", "run")}
    assert nothing_left(volume)


def test_an_api_that_is_away_for_a_moment(
    cluster: Cluster, volume: Path, waits: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def away() -> None:
        looks.append(1)
        if len(looks) == 1:
            cluster.failures += [("GET", 503, "the API is away")] * 2
        elif not cluster.failures:
            finish(volume)

    cluster.on_get = away
    with caplog.at_level(logging.INFO):
        assert waits() == {"epochs": 3}
    assert caplog.text.count("HTTP 503: the API is away") == 1


def test_an_api_that_stays_away(
    cluster: Cluster, volume: Path, waits: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multinode, "API_PATIENCE", 0.2)
    cluster.on_get = lambda: cluster.failures.extend([("GET", 500, "etcd is full")] * 99)
    expected = r"could not look at the TrainJob expunge-\w+ \(HTTP 500: etcd is full\)$"
    with pytest.raises(OperationalError, match=expected):
        waits()
    assert nothing_left(volume)


def test_a_job_whose_answer_was_lost_is_removed(
    cluster: Cluster,
    volume: Path,
    waits: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = cluster._create

    def lost(job: dict[str, Any]) -> dict[str, Any]:
        create(job)
        raise Refused(504, "the request timed out")

    monkeypatch.setattr(cluster, "_create", lost)
    with pytest.raises(OperationalError, match=r"could not create .*HTTP 504: the request timed"):
        waits()
    assert not cluster.jobs
    assert nothing_left(volume)


def test_an_api_that_nobody_answers_at(
    tmp_path: Path, volume: Path, waits: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nobody"
    path.write_text(json.dumps(make_kubeconfig("http://127.0.0.1:9")))
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(OperationalError, match=r"could not delete the TrainJob .*refused"):
        waits()
    assert not list(volume.glob("trainings/*/[!l]*"))
    assert not recorded()


def test_a_job_that_cannot_be_removed_is_no_failure(
    cluster: Cluster, volume: Path, waits: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    def done() -> None:
        cluster.failures.append(("DELETE", 500, "not now"))
        finish(volume)

    cluster.on_get = done
    assert waits() == {"epochs": 3}
    assert "HTTP 500: not now); it goes with the pod of this step" in caplog.text
    assert nothing_left(volume)


def test_why_nothing_begins_is_said_once(
    cluster: Cluster, volume: Path, waits: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    scheduled = {
        "type": "PodScheduled",
        "status": "False",
        "message": "Insufficient nvidia.com/gpu",
    }
    cluster.pods = [
        {"metadata": {"name": "node-0"}, "status": {"conditions": [scheduled]}},
        {"metadata": {"name": "node-1"}, "status": {"phase": "Running"}},
    ]
    held = [make_condition("Suspended", "Suspended", "TrainJob is suspended")]
    cluster.script = [held, held, []]
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 5:
            finish(volume)

    cluster.on_get = look
    with caplog.at_level(logging.INFO):
        waits()
    assert caplog.text.count("Suspended: Suspended TrainJob is suspended") == 1
    assert caplog.text.count("node-0: Insufficient nvidia.com/gpu\n") == 1


def test_a_volume_that_cannot_be_written(volume: Path, waits: Callable[..., Any]) -> None:
    (volume / "trainings").write_text("a file in its place")
    expected = r"the volume of claim shared at .* cannot be used \(.*that the image's user may"
    with pytest.raises(OperationalError, match=expected):
        waits()
    assert not recorded()


def test_a_volume_that_is_not_mounted(volume: Path, waits: Callable[..., Any]) -> None:
    volume.rmdir()
    with pytest.raises(OperationalError, match="where the volume of claim shared should be; comp"):
        waits()


def test_weights_to_begin_with_come_along(
    tmp_path: Path,
    cluster: Cluster,
    volume: Path,
    waits: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth").write_text("cached")
    asked: list[str] = []
    monkeypatch.setattr(
        "expunge.formats.pretrained.pretrained_state", lambda *names: asked.append(names[1])
    )
    (tmp_path / "own.pth").write_text("a file")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "model.json").write_text("a model")
    seen: list[Any] = []

    def look() -> None:
        run = run_folder(volume)
        config = json.loads((run / "arguments.json").read_text())["config"]
        (name,) = {config["weights"], config["init_from"]} - {""}
        cached = run / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        path = cached if name == "DEFAULT" else Path(name)
        seen.append((path / "model.json" if path.is_dir() else path).read_text())
        finish(volume)

    cluster.on_get = look
    for start in (
        {"weights": str(tmp_path / "own.pth")},
        {"init_from": str(tmp_path / "own.pth")},
        {"init_from": str(tmp_path / "start")},
        {"weights": "DEFAULT"},
    ):
        waits(dataclasses.replace(TWO, **start))  # type: ignore[arg-type]
    assert seen == ["a file", "a file", "a model", "cached"]
    assert asked == ["DEFAULT"]
    with pytest.raises(UserError, match=r"the weights .*gone\.pth to begin with do not exist"):
        waits(dataclasses.replace(TWO, weights=str(tmp_path / "gone.pth")))
    assert nothing_left(volume)
