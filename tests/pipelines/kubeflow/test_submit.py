"""`expunge submit`: what a run is started with, against a strict server over HTTP."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from command import command, document
from kfp_server import KfpServer

from expunge.config import GateConfig, TrainConfig
from expunge.errors import OperationalError
from expunge.policy import Policy
from expunge_pipelines.kubeflow.compile import compile_pipeline
from expunge_pipelines.kubeflow.settings import ClusterSettings, DataSettings, TrainingSettings
from expunge_pipelines.kubeflow.submit import check_paths, submit_forget, submit_train

pytest_plugins = ["kfp_server"]

TOKEN = "abc.DEF-123_456"
TRAIN = ["submit", "train", "digits", "--data", "digits", "--arch", "mlp"]
FORGET = ["submit", "forget", "digits"]
SETTINGS = ClusterSettings()


@pytest.fixture
def server(kfp_server: KfpServer) -> KfpServer:
    return kfp_server


def only(rows: dict[str, Any]) -> Any:
    (row,) = rows.values()
    return row


def sent(server: KfpServer) -> dict[str, Any]:
    """Return the parameters of the last run."""
    parameters: dict[str, Any] = server.started[-1]["runtime_config"]["parameters"]
    return parameters


def test_a_training_as_the_server_has_it(server: KfpServer, tmp_path: Path) -> None:
    recipe = "--epochs 3 --lr 0.1 --t-mix 0 --seed 7 --precision fp32 --without 5,3 --image-size 8"
    made = document(*TRAIN, *recipe.split(), "--chance-factor", "2")
    compile_pipeline("train", tmp_path / "train.yaml", SETTINGS)
    content = (tmp_path / "train.yaml").read_bytes()
    assert only(server.contents) == content
    version, run = only(server.versions), only(server.runs)
    assert version["display_name"] == hashlib.sha256(content).hexdigest()[:12]
    assert only(server.pipelines)["display_name"] == "expunge-train"
    assert only(server.experiments)["display_name"] == "expunge-digits"
    (body,) = server.started
    assert body["experiment_id"] == only(server.experiments)["experiment_id"]
    pinned = {key: version[key] for key in ("pipeline_id", "pipeline_version_id")}
    assert body["pipeline_version_reference"] == pinned
    assert body["display_name"].startswith("expunge-train-digits-")
    assert "caching" not in json.dumps(body).lower()
    assert "service_account" not in body
    assert made == {
        "pipeline": "train",
        "model": "digits",
        "version": version["display_name"],
        "run": run["run_id"],
        "name": body["display_name"],
        "state": "PENDING",
        "outcome": None,
        "link": f"{server.address}/#/runs/details/{run['run_id']}",
        "created_at": "2030-01-01T00:00:00+00:00",
        "finished_at": None,
        "error": None,
        "tasks": [],
    }


def test_a_training_has_every_parameter_with_its_type(server: KfpServer) -> None:
    recipe = TrainConfig("mlp", epochs=3, learning_rate=1, without=(), weights="", processes=1)
    submit_train("digits", "digits", recipe, SETTINGS, image_size=8, without=["5", "3", "05"])
    assert sent(server) == {
        "name": "digits",
        "source": "digits",
        "image_size": 8,
        "recipe": {**dataclasses.asdict(recipe), "without": [3, 5]},
        "gate": {"chance_factor": GateConfig.chance_factor, "onnx_atol": GateConfig.onnx_atol},
        "expected": -1,  # decided where the ledger is
    }
    inputs = only(server.versions)["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    assert set(inputs) == set(sent(server))


def test_a_forget_takes_what_is_pending(server: KfpServer) -> None:
    made = document(*FORGET, "--rule", "natural", "--budget", "0.02")
    assert sent(server) == {
        "name": "digits",
        "rule": "natural",
        "ladder": False,
        "lambdas": [],
        "forget_data": "",
        "gate": {
            "budget": 0.02,
            "forget_error": GateConfig.forget_error,
            "worst_drop": GateConfig.worst_drop,
            "onnx_atol": GateConfig.onnx_atol,
            "grade": "suppressed",
            "block": list(GateConfig.block),
        },
        "approval": False,
    }
    assert (made["pipeline"], made["requests"]) == ("forget", [])
    assert only(server.pipelines)["display_name"] == "expunge-forget"


def test_a_policy_reaches_the_pipeline(server: KfpServer, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("grade: forgotten\nblock: [forget_error, relearning]\napproval: true\n")
    assert command(*FORGET, "--policy", str(policy))[0] == 0
    found = {
        **{key: sent(server)["gate"][key] for key in ("grade", "block")},
        "approval": sent(server)["approval"],
    }
    wanted = {"grade": "forgotten", "block": ["forget_error", "relearning"], "approval": True}
    assert found == wanted


def test_a_ladder_reaches_the_pipeline_with_the_grade_that_it_climbs_to(
    server: KfpServer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("grade: hidden\n")
    assert command(*FORGET, "--policy", str(policy), "--until", "suppressed")[0] == 0
    given = sent(server)
    assert (given["ladder"], given["rule"]) == (True, "auto")
    assert given["gate"]["grade"] == "suppressed"


def test_two_runs_share_a_version_and_an_experiment(server: KfpServer) -> None:
    for _ in range(2):
        submit_forget("digits", "auto", Policy(), SETTINGS)
    assert server.requests.count("POST /pipelines/upload_version") == 1
    assert server.requests.count("POST /experiments") == 1
    assert len(server.runs) == 2
    assert len({run["display_name"] for run in server.runs.values()}) == 2


def test_other_settings_make_a_version_of_their_own(server: KfpServer) -> None:
    for image in ("team/expunge:1", "team/expunge:2", "team/expunge:1"):
        settings = dataclasses.replace(SETTINGS, image=image)
        submit_forget("digits", "auto", Policy(), settings)
    assert len(server.pipelines) == 1
    assert len(server.versions) == 2
    versions = [run["pipeline_version_reference"] for run in server.started]
    assert versions[0] == versions[2] != versions[1]


def test_a_service_account_is_that_of_the_settings(server: KfpServer) -> None:
    settings = dataclasses.replace(SETTINGS, service_account="expunge")
    submit_forget("digits", "auto", Policy(), settings)
    assert server.started[0]["service_account"] == "expunge"


def test_what_it_says_and_where_to_look(server: KfpServer) -> None:
    code, out, err = command(*TRAIN)
    run, version = only(server.runs)["run_id"], only(server.versions)["display_name"]
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"digits: run {run} of the train pipeline, version {version}, has started",
        f"{server.address}/#/runs/details/{run}",
        f"To follow it: expunge submit status {run} --wait",
    ]
    assert not [line for line in server.requests if line.startswith("GET /runs")]


def test_one_of_several_users(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.multi_user = True
    code, _, err = command(*FORGET)
    assert (code, "EXPUNGE_KFP_NAMESPACE is not set" in err) == (2, True)
    monkeypatch.setenv("EXPUNGE_KFP_NAMESPACE", "team")
    assert command(*FORGET)[0] == 0
    rows = (server.pipelines, server.experiments, server.runs)
    assert [only(made)["namespace"] for made in rows] == ["team"] * 3


def test_a_token_is_sent_and_shown_nowhere(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = TOKEN
    monkeypatch.setenv("EXPUNGE_KFP_TOKEN", TOKEN)
    shown = [*command(*FORGET)[1:], *command(*FORGET, "--wait", "--timeout", "0.01")[1:]]
    assert server.authorizations == {f"Bearer {TOKEN}"}
    assert len(server.runs) == 2
    assert TOKEN not in "".join(shown)


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 0}, {"status": 504, "body": b""}])
def test_a_run_whose_answer_is_lost_is_found_and_not_started_twice(
    how: dict[str, Any], server: KfpServer
) -> None:
    server.fail("POST", "/runs", after=True, **how)
    assert document(*FORGET)["run"] == only(server.runs)["run_id"]
    assert server.requests.count("POST /runs") == 1


@pytest.mark.parametrize("path", ["/pipelines", "/pipelines/upload_version"])
def test_what_somebody_else_made_in_between_is_taken(path: str, server: KfpServer) -> None:
    taken = b'{"code": 6, "message": "it already exists"}'
    server.fail("POST", path, status=409, body=taken, after=True)
    document(*FORGET)
    assert server.requests.count(f"POST {path}") == 1
    version = only(server.versions)["pipeline_version_id"]
    assert only(server.runs)["pipeline_version_reference"]["pipeline_version_id"] == version
    assert len(server.pipelines) == 1


@pytest.mark.parametrize("path", ["/pipelines", "/pipelines/upload_version"])
def test_a_conflict_with_what_is_not_there_is_an_error(path: str, server: KfpServer) -> None:
    server.fail("POST", path, status=409)
    code, _, err = command(*FORGET)
    assert (code, server.runs) == (3, {})
    assert "could not take the forget pipeline: HTTP 409 Conflict: the database is away" in err


def test_a_run_that_was_not_started_is_an_error(server: KfpServer) -> None:
    server.fail("POST", "/runs")
    with pytest.raises(OperationalError, match=r"could not start the run: HTTP 500 .*database"):
        submit_forget("digits", "auto", Policy(), SETTINGS)
    assert not server.runs
    server.fail("POST", "/runs", after=True)
    server.fail("GET", "/runs")
    with pytest.raises(OperationalError, match=r"say whether it started run expunge-forget-dig.*,"):
        submit_forget("digits", "auto", Policy(), SETTINGS)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "HTTP 401 Unauthorized: the database is away; check EXPUNGE_KFP_TOKEN"),
        (403, "; check EXPUNGE_KFP_TOKEN and EXPUNGE_KFP_NAMESPACE"),
        (404, "could not start the run: HTTP 404 Not Found"),
    ],
)
def test_a_refusal_is_not_asked_about(status: int, said: str, server: KfpServer) -> None:
    server.fail("POST", "/runs", status=status)
    code, _, err = command(*FORGET)
    assert (code, said in err) == (3, True)
    assert "GET /runs" not in server.requests


def test_a_server_that_is_down(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_HOST", "http://127.0.0.1:1")
    code, out, err = command(*FORGET, "--json")
    assert (code, "cannot be reached" in err) == (3, True)
    assert json.loads(out)["exit_code"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*TRAIN[:4], "letters", *TRAIN[5:]], "source 'letters' is unknown; expected one of"),
        ([*TRAIN[:4], "s3://k:s@b/p", *TRAIN[5:]], "the source s3://... holds a user name, a key"),
        ([*TRAIN, "--arch", "perceptron"], "architecture 'perceptron' is unknown"),
        ([*TRAIN, "--epochs", "0"], "epochs is 0; expected"),
        ([*TRAIN, "--chance-factor", "0"], "chance_factor is 0.0; expected"),
        ([*TRAIN, "--without", "3,cat"], "--without is 3,cat; a training on a cluster takes ind"),
        ([*TRAIN, "--processes", "2"], "--processes is 2, one GPU each, and the cluster's settin"),
        ([*TRAIN, "--nodes", "2"], "--nodes is 2, and the cluster's settings name no volume for"),
        (["submit", "train", "a b", *TRAIN[3:]], "the model name 'a b' is not usable"),
        (
            ["submit", "train", "a-oracles", *TRAIN[3:]],
            "or choose one that does not end with -oracles",
        ),
        (["submit", "forget", "a-oracles"], "'a-oracles' holds oracles; name the model"),
        (["submit", "forget", "a/b"], "the model name 'a/b' is not usable"),
        ([*FORGET, "--reason", "because"], "--reason is given without --classes; name the class"),
        ([*FORGET, "--timeout", "5"], "--timeout is given without --wait; add that, or leave it"),
        ([*FORGET, "--wait", "--timeout", "0"], "0.0 is not in the range"),
        ([*FORGET, "--cluster", "absent.yaml"], "absent.yaml"),
        (["submit", "status", "a/../"], "the run 'a/../' is neither an id nor a link; give what"),
    ],
)
def test_a_mistake_asks_no_server(arguments: list[str], said: str, server: KfpServer) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert server.requests == []


@pytest.mark.parametrize(
    ("option", "path", "said"),
    [
        (
            "--data",
            "folder:data/birds",
            "--data names 'data/birds', which lies on this machine and",
        ),
        ("--data", "folder:~/birds", "give folder:/ABSOLUTE/PATH on the volume that the pods"),
        ("--weights", "resnet.pth", "pods; give an absolute path on the volume that"),
        ("--weights", "./resnet", "--weights names './resnet'"),
        (
            "--init-from",
            "old.safetensors",
            "give models:/NAME/VERSION, or an absolute path on such",
        ),
    ],
)
def test_a_path_of_this_machine(option: str, path: str, said: str, server: KfpServer) -> None:
    code, _, err = command(*TRAIN, option, path)
    assert (code, server.requests) == (2, [])
    assert said in err


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Write the file of settings that name a volume with data."""
    (tmp_path / "cluster.yaml").write_text("data: {claim: images, path: /mnt/images}")
    return str(tmp_path / "cluster.yaml")


def test_a_path_on_the_volume_that_the_pods_mount(images: str, server: KfpServer) -> None:
    data, start = "folder:/mnt/images/birds", "/mnt/images/models/../old.pth"
    code, out, err = command(*TRAIN, "--cluster", images, "--data", data, "--init-from", start)
    assert (code, err) == (0, "")
    assert "has started" in out
    assert (sent(server)["source"], sent(server)["recipe"]["init_from"]) == (data, start)
    (content,) = server.contents.values()
    assert b"mountPath: /mnt/images\n" in content
    whole = DataSettings("images")
    check_paths("folder:/data", TrainConfig("resnet18", weights="/data/w.pth"), whole)


@pytest.mark.parametrize(
    "place",
    [
        ["--data", "folder:/data/birds"],
        ["--data", "folder:/mnt/images-2"],
        ["--data", "folder:/mnt/images/../other"],
        ["--data", "folder:/mnt"],
        ["--weights", "/models/own.pth"],
        ["--init-from", "/checkpoints/old.pth"],
    ],
)
def test_a_path_that_no_pod_mounts(place: list[str], images: str, server: KfpServer) -> None:
    code, _, err = command(*TRAIN, *place)
    named = f"{place[0]} names {place[1].removeprefix('folder:')!r}, and the pods "
    assert code == 2
    assert f"{named}mount no volume with data; name its claim under data: in the file" in err
    code, _, err = command(*TRAIN, *place, "--cluster", images)
    assert (code, server.requests) == (2, [])
    assert (
        f"{named}have the volume of claim images at /mnt/images; give a path there, or change "
        "data: in the file that --cluster names" in err
    )


def test_what_a_pod_finds_without_a_volume() -> None:
    for config in (
        TrainConfig("resnet18", weights="IMAGENET1K_V1"),
        TrainConfig("mlp", init_from="models:/digits/1"),
    ):
        check_paths("s3://bucket/birds", config, DataSettings())


def test_a_training_over_several_nodes(server: KfpServer) -> None:
    settings = dataclasses.replace(SETTINGS, training=TrainingSettings(claim="checkpoints"))
    submit_train("digits", "digits", TrainConfig("mlp", nodes=2, processes=4), settings)
    recipe = sent(server)["recipe"]
    assert (recipe["nodes"], recipe["processes"]) == (2, 4)
