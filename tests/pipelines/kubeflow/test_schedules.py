"""Recurring runs of the forget pipeline, and the command, against a strict server over HTTP."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from kfp_server import KfpServer

from expunge.config import BASE_CHECKS
from expunge.errors import OperationalError, UserError
from expunge_pipelines.cli.schedule import COLUMNS, schedule
from expunge_pipelines.kubeflow.compile import compile_all
from expunge_pipelines.kubeflow.schedules import create_schedule, list_schedules, remove_schedule
from expunge_pipelines.kubeflow.settings import ClusterSettings

pytest_plugins = ["kfp_server"]

NIGHTLY, HOURLY = "0 0 2 * * *", "0 30 * * * *"
TOKEN = "abc.DEF-123_456"
MADE = "POST /recurringruns"


@pytest.fixture
def server(kfp_server: KfpServer) -> KfpServer:
    return kfp_server


def make(cron: str = NIGHTLY, model: str = "digits", **parameters: Any) -> dict[str, Any]:
    return create_schedule(model, cron, parameters, ClusterSettings())


def only(rows: dict[str, Any]) -> Any:
    (row,) = rows.values()
    return row


def test_a_schedule_as_the_server_has_it(server: KfpServer, tmp_path: Path) -> None:
    row = make(" 0 0  2 * * *", gate={"budget": 0.02, "grade": "suppressed"})
    (sent,) = server.created
    assert sent["display_name"] == "expunge-forget-digits"
    assert sent["trigger"] == {"cron_schedule": {"cron": NIGHTLY}}
    assert (sent["mode"], sent["no_catchup"], sent["max_concurrency"]) == ("ENABLE", True, 1)
    assert "caching" not in json.dumps(sent).lower()
    assert sent["runtime_config"] == {"parameters": {"name": "digits", "gate": {"budget": 0.02}}}
    version = only(server.versions)
    assert only(server.pipelines)["display_name"] == "expunge-forget"
    pinned = {key: version[key] for key in ("pipeline_id", "pipeline_version_id")}
    assert sent["pipeline_version_reference"] == pinned
    assert sent["experiment_id"] == only(server.experiments)["experiment_id"]
    assert only(server.experiments)["display_name"] == "expunge-digits"

    compile_all(tmp_path, ClusterSettings())
    content = (tmp_path / "forget.yaml").read_bytes()
    assert only(server.contents) == content
    assert version["display_name"] == hashlib.sha256(content).hexdigest()[:12]
    assert row == {
        "model": "digits",
        "cron": NIGHTLY,
        "enabled": True,
        "version": version["display_name"],
        "id": only(server.recurring_runs)["recurring_run_id"],
        "created_at": "2030-01-01T00:00:00+00:00",
        "parameters": {"budget": 0.02},
        "created": True,
        "replaced": [],
    }


def test_twice_is_once(server: KfpServer) -> None:
    first = make(gate={"budget": 0.02})
    again = make(" 0 0 2 * * *", gate={"budget": 0.02}, rule="auto")
    assert again == first | {"created": False}
    assert len(server.recurring_runs) == len(server.versions) == 1
    assert server.requests.count(MADE) == 1
    assert server.requests.count("POST /pipelines/upload_version") == 1


def test_two_models_share_a_version(server: KfpServer) -> None:
    for name in ("digits", "Digits"):  # which the server's filter does not tell apart
        assert make(model=name)["created"]
    assert [row["model"] for row in list_schedules("digits")] == ["digits"]
    assert len(list_schedules()) == 2
    assert len(server.versions) == 1


@pytest.mark.parametrize(
    ("cron", "parameters"),
    [(HOURLY, {"gate": {"budget": 0.02}}), (NIGHTLY, {"gate": {"budget": 0.03}}), (NIGHTLY, {})],
)
def test_another_setting_replaces(cron: str, parameters: dict[str, Any], server: KfpServer) -> None:
    old = make(gate={"budget": 0.02})
    new = make(cron, **parameters)
    assert (new["created"], new["replaced"]) == (True, [old["id"]])
    assert list(server.recurring_runs) == [new["id"]]
    assert server.requests[-2:] == [MADE, f"DELETE /recurringruns/{old['id']}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "DISABLE"),
        ("no_catchup", False),
        ("max_concurrency", "2"),
        ("runtime_config", None),
        ("trigger", {"periodic_schedule": {"interval_second": "60"}}),
        ("pipeline_version_reference", None),
    ],
)
def test_what_somebody_changed_is_replaced(key: str, value: Any, server: KfpServer) -> None:
    old = make()
    server.recurring_runs[old["id"]][key] = value
    new = make()
    assert new["replaced"] == [old["id"]]
    assert list(server.recurring_runs) == [new["id"]]


def test_other_code_replaces(server: KfpServer) -> None:
    old = make()
    only(server.versions)["display_name"] = "0123456789ab"
    assert make()["replaced"] == [old["id"]]
    names = [row["display_name"] for row in server.versions.values()]
    assert names == ["0123456789ab", old["version"]]


def test_other_settings_of_the_cluster_replace(server: KfpServer, tmp_path: Path) -> None:
    old = make()
    settings = tmp_path / "cluster.yaml"
    settings.write_text("image: team/expunge:1\nservice_account: expunge\n")
    command("digits", "--cron", NIGHTLY, "--cluster", str(settings))
    run = only(server.recurring_runs)
    assert run["recurring_run_id"] != old["id"]
    assert run["service_account"] == "expunge"
    content = server.contents[run["pipeline_version_reference"]["pipeline_version_id"]]
    assert b"team/expunge:1" in content
    command("digits", "--cron", NIGHTLY, "--cluster", str(settings))
    assert list(server.recurring_runs) == [run["recurring_run_id"]]
    run["service_account"] = "another"
    command("digits", "--cron", NIGHTLY, "--cluster", str(settings))
    assert only(server.recurring_runs)["service_account"] == "expunge"


def test_an_account_that_the_server_chose_is_no_change(server: KfpServer) -> None:
    row = make()
    only(server.recurring_runs)["service_account"] = "pipeline-runner"
    assert make() == row | {"created": False}


def test_a_failure_leaves_one_or_two_and_the_next_call_tidies(server: KfpServer) -> None:
    old = make()
    server.fail("POST", "/recurringruns")
    with pytest.raises(OperationalError, match=r"not make the schedule: HTTP 500 .*database"):
        make(HOURLY)
    assert list(server.recurring_runs) == [old["id"]]
    server.fail("DELETE", "/recurringruns")
    with pytest.raises(OperationalError, match=rf"not delete the schedule {old['id']} \(give the"):
        make(HOURLY)
    assert len(server.recurring_runs) == 2
    row = make(HOURLY)
    assert (row["created"], row["replaced"]) == (False, [old["id"]])
    assert list(server.recurring_runs) == [row["id"]]


@pytest.mark.parametrize(
    "path", ["/pipelines", "/pipelines/upload_version", "/experiments", "/recurringruns"]
)
def test_an_answer_that_was_lost_makes_nothing_twice(path: str, server: KfpServer) -> None:
    server.fail("POST", path, after=True)
    with pytest.raises(OperationalError, match="HTTP 500"):
        make()
    assert make()["created"] == (path != "/recurringruns")
    rows = (server.pipelines, server.versions, server.experiments, server.recurring_runs)
    assert [len(made) for made in rows] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["name", "treshold"])
def test_a_parameter_that_the_pipeline_does_not_take(name: str, server: KfpServer) -> None:
    with pytest.raises(UserError, match=f"has no parameter {name}; expected some of .*gate, .*"):
        make(**{name: "x"})
    assert not server.pipelines


def test_all_pages_are_listed(server: KfpServer) -> None:
    server.largest_page = 2
    names = ["alpha", "beta", "delta", "gamma", "omega"]
    for name in reversed(names):
        make(model=name)
    server.requests.clear()
    rows = list_schedules()
    assert [row["model"] for row in rows] == names
    assert server.requests.count("GET /recurringruns") == 3
    assert {row["version"] for row in rows} == {only(server.versions)["display_name"]}


def test_what_is_listed(server: KfpServer) -> None:
    assert list_schedules() == []
    row = make(gate={"block": ["forget_error"]})
    run = server.recurring_runs[row["id"]]
    server.recurring_runs["other"] = {**run, "display_name": "my-expunge-forget-run"}
    run.update(mode="DISABLE", status="DISABLED")
    wanted = {key: row[key] for key in row if key not in ("created", "replaced")}
    assert list_schedules() == [wanted | {"enabled": False}]
    assert list_schedules("shapes") == []


def test_a_version_that_was_deleted_is_listed_by_its_id(server: KfpServer) -> None:
    id_ = make()["id"]
    (version, _) = server.versions.popitem()
    assert [row["version"] for row in list_schedules()] == [version]
    server.refused.clear()
    server.fail("GET", "/pipelines")
    with pytest.raises(OperationalError, match="could not list its schedules: HTTP 500"):
        list_schedules()
    bare = {"pipeline_version_reference": None, "runtime_config": None, "trigger": None}
    server.recurring_runs[id_].update(bare)
    (row,) = list_schedules()
    assert (row["version"], row["parameters"], row["cron"]) == (None, {}, None)


def test_removing(server: KfpServer) -> None:
    gone, kept = (make(model=name) for name in ("digits", "shapes"))
    assert remove_schedule("digits") == {"model": "digits", "removed": [gone["id"]]}
    assert list(server.recurring_runs) == [kept["id"]]
    with pytest.raises(UserError, match=r"'digits' has no schedule; expected one of shapes$"):
        remove_schedule("digits")
    remove_schedule("shapes")
    with pytest.raises(UserError, match=r"'shapes' has no schedule; no model has one$"):
        remove_schedule("shapes")


def test_one_of_several_users(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.multi_user = True
    monkeypatch.setenv("EXPUNGE_KFP_NAMESPACE", "team")
    row = make()
    rows = (server.pipelines, server.experiments, server.recurring_runs)
    assert [only(made)["namespace"] for made in rows] == ["team"] * 3
    assert not make()["created"]
    monkeypatch.setenv("EXPUNGE_KFP_NAMESPACE", "another")
    assert list_schedules() == []
    monkeypatch.setenv("EXPUNGE_KFP_NAMESPACE", "team")
    assert remove_schedule("digits")["removed"] == [row["id"]]


def command(*arguments: str) -> None:
    schedule.main(list(arguments), standalone_mode=False)


def test_the_command_makes_lists_and_removes(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.token = TOKEN
    monkeypatch.setenv("EXPUNGE_KFP_TOKEN", TOKEN)

    def document(*arguments: str) -> Any:
        command(*arguments, "--json")
        shown = capsys.readouterr()
        assert TOKEN not in shown.out + shown.err
        return json.loads(shown.out)

    made = document("digits", "--cron", NIGHTLY, "--budget", "0.02", "--rule", "natural")
    assert made["parameters"] == {"budget": 0.02, "rule": "natural"}
    assert [row["id"] for row in document()["schedules"]] == [made["id"]]
    assert document() == document("digits")
    assert document("digits", "--remove") == {"model": "digits", "removed": [made["id"]]}
    assert document() == document("digits") == {"schedules": []}
    assert server.authorizations == {f"Bearer {TOKEN}"}


def test_the_command_prints_tables(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        command(*arguments)
        return capsys.readouterr().out

    def id_() -> str:
        return str(only(server.recurring_runs)["recurring_run_id"])

    assert shown().startswith("No schedule yet: expunge schedule NAME --cron")
    first = shown("digits", "--cron", NIGHTLY)
    version, old = only(server.versions)["display_name"], id_()
    assert first == f"digits: scheduled at {NIGHTLY}, version {version} of the pipeline\n"
    assert "was scheduled already" in shown("digits", "--cron", NIGHTLY)
    assert f"Replaced: {old}" in shown("digits", "--cron", HOURLY, "--worst-drop", "0.1")
    heading, row = map(str.split, shown().splitlines())
    assert heading == list(COLUMNS)
    assert row[:-2] == ["digits", *HOURLY.split(), "yes", version, "worst_drop=0.1"]
    assert row[-1] == id_()
    assert shown("digits", "--remove") == f"digits: removed {row[-1]}\n"


def test_a_policy_becomes_parameters(server: KfpServer, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "grade: forgotten\nforget_error: 0.9\nblock: [forget_error, relearning]\napproval: true\n"
    )
    command("digits", "--cron", NIGHTLY, "--policy", str(policy))
    assert only(server.recurring_runs)["runtime_config"]["parameters"] == {
        "name": "digits",
        "gate": {
            "grade": "forgotten",
            "forget_error": 0.9,
            "block": ["forget_error", "relearning"],
        },
        "approval": True,
    }
    policy.write_text(f"budget: 0.015\nblock: [{', '.join(reversed(BASE_CHECKS))}]\n")
    command("digits", "--cron", NIGHTLY, "--policy", str(policy))
    assert only(server.recurring_runs)["runtime_config"]["parameters"] == {"name": "digits"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits", "--cron", NIGHTLY, "--remove"], "--cron and --remove are both given; choose"),
        (["--cron", NIGHTLY], "--cron is given without a model; name the one"),
        (["--remove"], "--remove is given without a model; name the one"),
        (["no/name"], "the model name 'no/name' is not usable"),
        (["x", "--cron", ""], "cron '' has 0 fields"),
        (["x", "--cron", "0 2 * * *"], "has five fields"),
    ],
)
def test_a_command_that_is_mistaken_asks_no_server(
    arguments: list[str], said: str, server: KfpServer
) -> None:
    with pytest.raises(UserError, match=said):
        command(*arguments)
    assert server.requests == []
