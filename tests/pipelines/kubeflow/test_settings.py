"""The settings of a cluster: what a file may hold, and that each mistake is named with its line."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import command

from expunge.core.rules import LADDER
from expunge.errors import UserError
from expunge.ops import IMAGE, STEPS
from expunge_pipelines.kubeflow.settings import (
    CheckpointSettings,
    ClusterSettings,
    DataSettings,
    Gpu,
    Retries,
    RunAs,
    Secrets,
    Ttl,
    read_settings,
)
from expunge_pipelines.kubeflow.task_defaults import DAY, HOUR, RESOURCES, Resources, Toleration

EXAMPLE = Path(__file__).parents[3] / "docker" / "cluster.yaml"
DIGEST = "0123456789abcdef" * 4
IMAGE_ERROR = "an image with its tag or digest, NAME:TAG or NAME@sha256:DIGEST"
KEYS = "checkpoints, data, deadline, gpu, image, image_pull_policy, "
SIZE_ERROR = "a whole number and one of Ki, Mi, Gi, Ti, Pi, Ei, M, G, T, P, E, such as 8Gi"
PATH_ERROR = "an absolute path of letters, digits, '-', '_' and '.', without a slash at its end"
TIME_ERROR = "a whole number and one of s, m, h, d, such as 90s or 2h"
LABEL_ERROR = (
    "at most 63 letters, digits, '-', '_' and '.'; write a number, true or false in quotes"
)
CREDENTIAL = "this looks like a credential; put it into a Kubernetes secret, and name that"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def read(file: Path, text: str) -> ClusterSettings:
    file.write_text(text, encoding="utf-8")
    return read_settings(str(file))


def refused(file: Path, text: str) -> str:
    """Return the message about a refused file, from its line on."""
    with pytest.raises(UserError) as caught:
        read(file, text)
    message = str(caught.value)
    start = f"cluster settings {file}, "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


def test_every_step_has_resources() -> None:
    steps = {component.name for component in STEPS.values()}
    # the upper rungs of a ladder have rows of their own
    assert set(RESOURCES) == steps | {f"perturb-{rung}" for rung in range(2, len(LADDER) + 1)}


def test_no_file_and_an_empty_one_are_the_defaults(file: Path) -> None:
    assert read_settings("") == ClusterSettings()
    for text in ("", "# nothing\n", "---\n", "null", "{}", "gpu:\ntasks:\nttl:\n  success:\n"):
        assert read(file, text) == ClusterSettings()


def test_the_example_says_what_the_defaults_are(file: Path) -> None:
    expected = ClusterSettings(image=IMAGE)
    assert read_settings(str(EXAMPLE)) == expected
    row = re.compile(r"^  # ([a-z0-9-]+: \{cpu)", re.MULTILINE)
    text, rows = row.subn(r"  \1", EXAMPLE.read_text())
    assert rows == len(RESOURCES)
    settings = read(file, text)
    assert set(settings.tasks) == set(RESOURCES)
    assert settings.resources == expected.resources == RESOURCES
    assert dataclasses.replace(settings, tasks={}) == expected


def test_the_example_has_every_key() -> None:
    """Each is taken out of the file: what stands there is known, and nothing known is missing."""
    top = yaml.safe_load(EXAMPLE.read_text())
    fields = [field.name for field in dataclasses.fields(ClusterSettings)]
    assert list(top) == fields
    for key, value in top.items():
        if isinstance(value, dict) and key not in {"node_selector", "tasks"}:
            part = getattr(ClusterSettings(), key)
            assert list(value) == [field.name for field in dataclasses.fields(part)]


def test_every_key_is_taken(file: Path) -> None:
    text = f"""
        image: registry.example.com:5000/a/b@sha256:{DIGEST}
        image_pull_policy: Never
        image_pull_secrets: [one, two.example]
        service_account: runner
        secrets: {{s3: a, mlflow: b, database: c}}
        run_as: {{user: 1, group: 2}}
        gpu:
          type: amd.com/gpu
          node_selector: {{example.com/card: mi300}}
          tolerations: [{{key: amd.com/gpu, operator: Exists}}]
        node_selector: {{zone: ""}}
        tolerations:
          - {{key: spot, value: "true", effect: NoExecute, toleration_seconds: 0}}
          - {{operator: Exists}}
        ttl: {{finished: 1d, success: 2h, failure: 3m}}
        deadline: 4d
        retries: {{count: 1, backoff: 5s, factor: 1, within: 8d}}
        checkpoints: {{claim: volume}}
        data: {{claim: images, path: /mnt/data_2/images.old}}
        training: {{}}
        tasks:
          train:
            cpu: 1.5
            memory: 10G
            gpus: 8
            shared_memory: 0
            timeout: 3h
            retries: 0
            node_selector: {{pool: big}}
            tolerations: [{{key: big}}]
          render-report: {{cpu: 500m}}
    """
    usual = {name: dataclasses.replace(row, retries=1) for name, row in RESOURCES.items()}
    settings = read(file, text)
    assert dataclasses.replace(settings, tasks={}) == ClusterSettings(
        image=f"registry.example.com:5000/a/b@sha256:{DIGEST}",
        image_pull_policy="Never",
        image_pull_secrets=("one", "two.example"),
        service_account="runner",
        secrets=Secrets(s3="a", mlflow="b", database="c"),
        run_as=RunAs(user=1, group=2),
        gpu=Gpu(
            "amd.com/gpu", {"example.com/card": "mi300"}, (Toleration("amd.com/gpu", "Exists"),)
        ),
        node_selector={"zone": ""},
        tolerations=(
            Toleration("spot", "Equal", "true", "NoExecute", 0),
            Toleration(operator="Exists"),
        ),
        ttl=Ttl(finished=DAY, success=2 * HOUR, failure=180),
        deadline=4 * DAY,
        retries=Retries(count=1, backoff=5, factor=1, within=8 * DAY),
        checkpoints=CheckpointSettings("volume"),
        data=DataSettings("images", "/mnt/data_2/images.old"),
    )
    assert settings.resources == {
        **usual,
        "train": dataclasses.replace(
            usual["train"],
            cpu="1.5",
            memory="10G",
            gpus=8,
            shared_memory="",
            timeout_seconds=3 * HOUR,
            retries=0,
            node_selector={"pool": "big"},
            tolerations=(Toleration("big"),),
        ),
        "render-report": dataclasses.replace(usual["render-report"], cpu="500m"),
    }


def test_a_cluster_without_gpus_and_one_that_chooses_the_users(file: Path) -> None:
    settings = read(file, "gpu: off\nrun_as: off\n")
    assert (settings.gpu, settings.run_as) == (None, None)
    assert {task.gpus for task in settings.resources.values()} == {0}


@pytest.mark.parametrize(
    "image",
    [
        "expunge:0.1.0-python3.11",
        "localhost:5000/expunge:latest",
        f"expunge@sha256:{DIGEST}",
        f"registry.example.com/a/b_c/d-e:v1@sha256:{DIGEST}",
    ],
)
def test_an_image_that_is_pinned_is_taken(file: Path, image: str) -> None:
    assert read(file, f"image: {image}").image == image


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # images
        ("image: expunge", f"line 1: image is 'expunge'; expected {IMAGE_ERROR}"),
        (
            "image: host:5000/expunge",
            f"line 1: image is 'host:5000/expunge'; expected {IMAGE_ERROR}",
        ),
        ("image: Expunge:1", f"line 1: image is 'Expunge:1'; expected {IMAGE_ERROR}"),
        ("image: 'a b:1'", f"line 1: image is 'a b:1'; expected {IMAGE_ERROR}"),
        ("image: 3", f"line 1: image is 3; expected {IMAGE_ERROR}"),
        ("image: [a:1]", f"line 1: image is ['...']; expected {IMAGE_ERROR}"),
        (
            "\nimage: a@sha256:0123abcd",
            "line 2: image is 'a@sha256:0123abcd'; expected an image with its tag or digest, "
            "NAME:TAG or NAME@sha256:DIGEST of 64 hexadecimal digits",
        ),
        (
            f"image: a@sha512:{DIGEST}",
            f"line 1: image is 'a@sha512:{DIGEST}'; expected {IMAGE_ERROR}",
        ),
        ("image_pull_policy: always", "is 'always'; expected one of Always, IfNotPresent, Never"),
        ("image_pull_secrets: one", "line 1: image_pull_secrets is 'one'; expected a list"),
        (
            "image_pull_secrets:\n  - one\n  - A_B",
            "line 3: image_pull_secrets[1] is something else; expected the name of a Kubernetes",
        ),
        # names
        ("service_account: a_b", "line 1: service_account is 'a_b'; expected the name of a Kubern"),
        (f"service_account: {'a' * 254}", "expected the name of a Kubernetes object"),
        ("checkpoints: {claim: -a}", "line 1: checkpoints.claim is '-a'; expected the name of a"),
        ("checkpoints: {claim: no}", "line 1: checkpoints.claim is false; expected the name of a"),
        ("checkpoints: volume", "line 1: checkpoints is 'volume'; expected keys and values"),
        # the volume with data
        ("data: {claim: A}", "line 1: data.claim is 'A'; expected the name of a Kubernetes object"),
        ("data: {path: /a}", "line 1: data.path is set without claim; name the volume that has"),
        ("data: {claims: a}", "line 1: data.claims is unknown; expected claim, path"),
        ("data: {claim: a, path: data}", f"line 1: data.path is 'data'; expected {PATH_ERROR}"),
        ("data: {claim: a, path: /}", f"data.path is '/'; expected {PATH_ERROR}"),
        ("data: {claim: a, path: /a/}", f"data.path is '/a/'; expected {PATH_ERROR}"),
        ("data: {claim: a, path: /a/../b}", f"data.path is '/a/../b'; expected {PATH_ERROR}"),
        ("data: {claim: a, path: '/a:b'}", f"data.path is '/a:b'; expected {PATH_ERROR}"),
        ("data: {claim: a, path: [/a]}", f"data.path is ['...']; expected {PATH_ERROR}"),
        (
            "data:\n  claim: a\n  path: /checkpoints",
            "line 3: data.path is '/checkpoints'; expected another path, such as /data: a step has "
            "something else at /checkpoints",
        ),
        ("data: {claim: a, path: /mnt}", "another path, such as /data: a step has something else"),
        ("data: {claim: a, path: /dev/shm}", "a step has something else at /dev"),
        ("data: {claim: a, path: /home/expunge/data}", "something else at /home/expunge"),
        (
            "checkpoints: {claim: a}\ndata: {claim: a}",
            "line 2: data.claim is 'a', which checkpoints or training has too, and KFP mounts a",
        ),
        ("training: {claim: a}\ndata: {claim: a}", "line 2: data.claim is 'a', which checkpoints"),
        ("secrets:\n  s4: a", "line 2: secrets.s4 is unknown; expected database, mlflow, s3"),
        # memory, CPUs and GPUs
        (
            "tasks:\n  train:\n    memory: 8Gb",
            f"line 3: tasks.train.memory is '8Gb'; expected {SIZE_ERROR}",
        ),
        ("tasks: {train: {memory: 8}}", f"tasks.train.memory is 8; expected {SIZE_ERROR}"),
        ("tasks: {train: {memory: 1.5Gi}}", f"is '1.5Gi'; expected {SIZE_ERROR}"),
        ("tasks: {train: {memory: 0Gi}}", f"is '0Gi'; expected {SIZE_ERROR}"),
        ("tasks: {train: {memory: 8K}}", f"is '8K'; expected {SIZE_ERROR}"),
        ("tasks: {train: {memory: 8k}}", f"is '8k'; expected {SIZE_ERROR}"),
        (
            "tasks:\n  train:\n    memory: 4Gi",
            "line 3: tasks.train.memory does not fit: the shared memory of 8Gi counts as part of "
            "the memory of 4Gi; raise memory or lower shared_memory",
        ),
        (
            "tasks:\n  train:\n    memory: 4Gi\n    shared_memory: 5G",
            "line 4: tasks.train.shared_memory does not fit: the shared memory of 5G counts as",
        ),
        ("tasks: {train: {shared_memory: off}}", f"is false; expected {SIZE_ERROR}"),
        (
            "tasks: {train: {cpu: 2 cores}}",
            "tasks.train.cpu is '2 cores'; expected a number of CPUs",
        ),
        (
            "tasks: {train: {cpu: 0}}",
            "tasks.train.cpu is 0; expected a number of CPUs above 0, at most 1000000, such as 2",
        ),
        ("tasks: {train: {cpu: true}}", "tasks.train.cpu is true; expected a number of CPUs above"),
        ("tasks: {train: {gpus: 1.5}}", "tasks.train.gpus is 1.5; expected a whole number from 0"),
        (
            "tasks: {train: {gpus: true}}",
            "tasks.train.gpus is true; expected a whole number from 0",
        ),
        ("tasks: {train: {gpus: -1}}", "tasks.train.gpus is -1; expected a whole number from 0 to"),
        (
            "tasks: {train: {gpus: 010}}",
            "tasks.train.gpus is '010'; expected a whole number from 0",
        ),
        (
            "gpu: off\ntasks:\n  train:\n    gpus: 1",
            "line 4: tasks.train.gpus is 1, and gpu is off; say which GPUs there are",
        ),
        (
            "gpu: {type: A100}",
            "gpu.type is 'A100'; expected a resource of the nodes with its domain",
        ),
        ("gpu: {type: a b/c}", "gpu.type is 'a b/c'; expected a resource of the nodes"),
        ("gpu: 2", "line 1: gpu is 2; expected keys and values, or off without quotes"),
        ('gpu: "off"', "gpu is 'off'; expected keys and values, or off without quotes"),
        ("run_as: on", "run_as is true; expected keys and values, or off without quotes"),
        ("run_as: {user: 0}", "run_as.user is 0; expected a whole number from 1 to 2147483647"),
        # times
        ("deadline: 90", f"line 1: deadline is 90; expected {TIME_ERROR}"),
        ("deadline: 1:30", f"line 1: deadline is '1:30'; expected {TIME_ERROR}"),
        ("deadline: 1h30m", f"line 1: deadline is '1h30m'; expected {TIME_ERROR}"),
        (
            "ttl: {finished: 0s}",
            f"ttl.finished is '0s'; expected {TIME_ERROR}, more than 0s and at most 2147483647s",
        ),
        ("ttl: {success: 99999d}", f"ttl.success is '99999d'; expected {TIME_ERROR}, more than"),
        ("ttl: 3d", "line 1: ttl is '3d'; expected keys and values"),
        (
            "tasks: {render-report: {timeout: 20000d}}",
            "tasks.render-report.timeout does not fit: all attempts of tasks.render-report come to "
            "5184000090 s, and 2147483647 is the most; lower its timeout or its retries",
        ),
        # retries
        ("retries: {factor: 1.5}", "retries.factor is 1.5; expected a whole number from 1 to 10"),
        ("retries: {count: -1}", "retries.count is -1; expected a whole number from 0 to 100"),
        ("retries: {max: 1h}", "retries.max is unknown; expected backoff, count, factor, within"),
        (
            "image: a:1\nretries: {count: 20}",
            "line 2: retries does not fit: before retry 20 of tasks.prepare-data there would be a "
            "pause of 15728640 s, and a day is the most; lower the number of retries, the",
        ),
        (
            "tasks:\n  render-report:\n    retries: 30",
            "line 3: tasks.render-report.retries does not fit: before retry 30 of "
            "tasks.render-report there",
        ),
        (
            "retries: {within: 1h}",
            "line 1: retries does not fit: tasks.train may take 604800 s, and retries.within ends "
            "it 3600 s after its first start; raise that or lower the timeout",
        ),
        (
            "retries: {within: 1h}\ntasks:\n  prepare-data:\n    timeout: 2h",
            "line 4: tasks.prepare-data.timeout does not fit: tasks.prepare-data may take 7200 s",
        ),
        # nodes
        (
            "node_selector: {a b: c}",
            "line 1: a key of node_selector is 'a b'; expected the key of a",
        ),
        (
            "node_selector: {A.com/b: c}",
            "a key of node_selector is 'A.com/b'; expected the key of a",
        ),
        ("node_selector: {/b: c}", "a key of node_selector is '/b'; expected the key of a label"),
        (
            "node_selector:\n  a: b\n  gpu: true",
            f"line 3: node_selector.gpu is true; expected {LABEL_ERROR}",
        ),
        (
            "node_selector: {a: 1}",
            f"is 1; expected {LABEL_ERROR}",
        ),
        ("node_selector: {a: [b]}", "node_selector.a is ['...']; expected at most 63 letters"),
        (
            "node_selector: {a: b c}",
            "node_selector.a is 'b c'; expected at most 63 letters, digits",
        ),
        ("node_selector: [a]", "line 1: node_selector is ['...']; expected keys and values"),
        ("node_selector: {1: a}", "line 1: the key 1 is no text; write it in quotes"),
        ("tolerations: {key: a}", "line 1: tolerations is {'key': '...'}; expected a list"),
        ("tolerations: [a]", "line 1: tolerations[0] is 'a'; expected keys and values"),
        (
            "tolerations:\n  - key: a\n    operator: In",
            "line 3: tolerations[0].operator is 'In'; expected one of Equal, Exists",
        ),
        ("tolerations: [{key: a, effect: x}]", "effect is 'x'; expected one of NoSchedule, Prefer"),
        (
            "tolerations:\n  - operator: Exists\n    value: a",
            "line 3: tolerations[0].value is set, and operator Exists takes none; leave it out",
        ),
        (
            "tolerations:\n  - key: a\n  - value: b",
            "line 3: tolerations[1].key is missing; set it, or operator: Exists for every taint",
        ),
        (
            "gpu:\n  tolerations:\n    - {key: a, toleration_seconds: 5}",
            "line 3: gpu.tolerations[0].toleration_seconds counts only with effect: NoExecute; set",
        ),
        # keys
        ("images: a:1", f"line 1: images is unknown; expected {KEYS}"),
        (
            "tasks:\n  trian: {cpu: 1}",
            "line 2: a key of tasks is 'trian'; expected one of prepare-data, ",
        ),
        ("tasks: {train: {cpus: 1}}", "tasks.train.cpus is unknown; expected cpu, gpus, memory, "),
        ("training: {a: 1}", "line 1: training.a is unknown; expected "),
        ("<<: {image: a:1}", "line 1: << is unknown; expected checkpoints"),
        (
            "image: a:1\ngpu: off\nimage: a:2",
            "line 3: image is set more than once, in line 1 too; leave one of them",
        ),
        (
            "tasks:\n  train:\n    cpu: 1\n    cpu: 2",
            "line 4: tasks.train.cpu is set more than once, in line 3 too; leave one of them",
        ),
        # YAML
        ("image: a: 1", "line 1: this is no YAML (mapping values are not allowed here)"),
        (
            "image: a:1\n\ttasks:",
            "line 2: this is no YAML (found character '\\t' that cannot start",
        ),
        ("a: [\n", "line 2: this is no YAML ("),
        ("image: a:1\n---\nimage: a:2", "line 2: this is no YAML (but found another document)"),
        ("image: *a", "line 1: this is no YAML (found undefined alias 'a')"),
        ("image: a:1\n\nttl: \x00", "line 3: a character that YAML does not take, number 0"),
        (
            "[1, 2]",
            "line 1: the file holds ['...', '...']; expected keys and values",
        ),
        (
            "image",
            "line 1: the file holds 'image'; expected keys and values",
        ),
        ("[" * 5000, "line 1: its values are nested too deep"),
        ("? [a]\n: b", "line 1: the key ['...'] is no text; write it in quotes"),
        (
            "&a tasks: {train: &b {cpu: 0, node_selector: *b}}",
            "tasks.train.cpu is 0; expected a number of CPUs above 0",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(file: Path, text: str, message: str) -> None:
    assert message in refused(file, text)


@pytest.mark.parametrize(
    "place",
    [
        *("secrets", "run_as", "gpu", "ttl", "retries", "checkpoints", "data", "training"),
        *("tasks.train", "tolerations.0", "gpu.tolerations.0", "tasks.perturb.tolerations.0"),
    ],
)
def test_an_unknown_key_is_refused_in_every_section(file: Path, place: str) -> None:
    value: Any = {"surprise": 1}
    for part in reversed(place.split(".")):
        value = [value] if part == "0" else {part: value}
    name = place.replace(".0", "[0]")
    assert f"line 1: {name}.surprise is unknown; expected " in refused(file, json.dumps(value))


def test_a_label_without_a_value_is_a_mistake(file: Path) -> None:
    message = "line 2: node_selector.zone is None; expected at most 63 letters"
    assert message in refused(file, "node_selector:\n  zone:")


def test_a_secret_in_the_place_of_a_section_is_not_shown(file: Path) -> None:
    assert "secrets is something else; expected keys and values" in refused(file, "secrets: hush")


def test_aliases_of_aliases_take_no_time(file: Path) -> None:
    rows = ["a0: &a0 [x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    assert "a0 is unknown" in refused(file, "\n".join(rows))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("image: a:1\nAWS_SECRET_ACCESS_KEY: hush", 2),
        ("secrets:\n  s3: a\n  mlflow:\n    MLFLOW_TRACKING_PASSWORD: hush", 4),
        ("secrets:\n  s3: {aws_access_key_id: hush}", 2),
        ("token: hush", 1),
        ("secrets: {database: 'postgresql+psycopg://ada:hush@db/expunge'}", 1),
        ("image: ada:hush@registry.example.com/expunge:1", 1),
        ("image: 'https://:hush@registry.example.com/expunge:1'", 1),
        ("image_pull_secrets:\n  - a\n  - AKIAHUSH456789ABCDEF", 3),
        ("training:\n  certificate: |\n    -----BEGIN RSA PRIVATE KEY-----\n    hush", 2),
        ("unknown: [[{deep: 'redis://ada:hush@host'}]]", 1),
    ],
)
def test_a_credential_is_refused_and_not_repeated(file: Path, text: str, line: int) -> None:
    message = refused(file, text)
    assert message.startswith(f"line {line}: {CREDENTIAL}")
    assert "hush" not in message.lower()


def test_what_stands_for_the_name_of_a_secret_is_not_repeated(file: Path) -> None:
    message = refused(file, "secrets:\n  s3: wJalrXUtnFEMI/K7MDENG")
    assert message.startswith("line 2: secrets.s3 is something else; expected the name of a Kub")


def test_names_of_secrets_may_speak_of_what_they_hold(file: Path) -> None:
    text = "image_pull_secrets: [registry-password]\nsecrets: {s3: access-token}"
    assert read(file, text).secrets.s3 == "access-token"


def test_an_alias_is_what_it_stands_for(file: Path) -> None:
    text = "tasks:\n  train: &much {cpu: 9}\n  perturb: *much\n"
    tasks = read(file, text).resources
    assert (tasks["train"].cpu, tasks["perturb"].cpu, tasks["render-report"].cpu) == ("9", "9", "1")


def test_an_alias_that_holds_itself_ends(file: Path) -> None:
    assert "a is unknown" in refused(file, "a: &a [*a]")


def test_a_file_that_cannot_be_read(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match=rf"cluster settings {file} cannot be read \(No such file"):
        read_settings(str(file))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_settings(str(tmp_path))
    file.write_bytes(b"image: a:1\n# caf\xe9\n")
    with pytest.raises(UserError, match=r"yaml, line 2: this is no UTF-8; save it as UTF-8"):
        read_settings(str(file))


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    file.write_bytes("\ufeffimage: a:1 # é\n".encode())
    assert read_settings(str(file)).image == "a:1"


def test_all_attempts_of_a_task_fit_into_its_time() -> None:
    assert Retries(backoff=10, factor=3).sum_attempts(Resources("1", "1Gi", retries=0)) == HOUR
    task = Resources("1", "1Gi", retries=3, timeout_seconds=100)
    assert Retries(backoff=10, factor=3).sum_attempts(task) == 4 * 100 + 10 + 30 + 90


def test_the_command_takes_the_file_from_the_option_and_the_environment(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("image: expunge")
    code, _, err = command("compile", str(tmp_path / "out"), "--cluster", str(file))
    assert (code, "image is 'expunge'" in err) == (2, True)
    monkeypatch.setenv("EXPUNGE_CLUSTER", str(file))
    code, _, err = command("compile", str(tmp_path / "out"))
    assert (code, "image is 'expunge'" in err) == (2, True)
    assert not (tmp_path / "out").exists()
