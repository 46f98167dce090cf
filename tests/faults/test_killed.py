"""A forget run that is killed anywhere, and what the next `expunge run-requests` makes of it.

Each case restores a trained model with two pending requests, kills the run with SIGKILL at one
place, starts it again, and looks at what must be so whatever happened. Minutes: `make test-faults`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from aftermath import ASKED, NAME
from mlflow_store import VARIABLES

pytestmark = pytest.mark.faults

HOOK = os.pathsep.join(
    [str(Path(__file__).parent / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]
)
STEPS = (
    "claim_requests", "compute_fim", "perturb", "export_onnx", "load_oracles", "prepare_data",
    "validate", "render_report", "log_run", "register", "promote", "close_requests",
)  # fmt: skip
BOUNDARIES = [*(f"{step}/start#1" for step in STEPS), "compute_fim/start#2",
              "close_requests/end#1"]  # fmt: skip
INSIDE = {
    "command": ["create_run/before#1", "create_run/after#1", "set_terminated/before#1"],
    "claim_requests": ["step/before#1", "ledger-write/before#1", "ledger-write/after#1"],
    "compute_fim": ["save-tensors/after#2", "ledger-write/before#1", "save-tensors/after#4"],
    "perturb": ["save-tensors/after#1", "write-json/before#1", "ledger-write/after#1"],
    "export_onnx": ["write-json/before#1"],
    "load_oracles": ["step/before#1", "step/after#1"],
    "prepare_data": ["save-tensors/after#1", "write-json/after#1"],
    "validate": ["write-json/before#1"],
    "render_report": ["step/before#1", "step/after#1"],
    "log_run": ["log_batch/after#1", "log_artifacts/before#1", "ledger-write/before#1",
               "ledger-write/after#1"],
    "register": ["create_logged_model/before#1", "create_logged_model/after#1",
                 "log_model_artifacts/before#1", "log_model_artifacts/after#1",
                 "finalize_logged_model/after#1", "create_model_version/before#1",
                 "create_model_version/after#1", "ledger-write/after#1"],
    "promote": ["ledger-write/before#1", "ledger-write/after#1",
                "set_registered_model_tag/after#1", "set_model_version_tag/after#1",
                "set_registered_model_alias/before#1", "set_registered_model_alias/after#1",
                "set_registered_model_alias/after#2", "ledger-write/before#2",
                "ledger-write/after#2"],
    "close_requests": ["ledger-write/before#1", "ledger-write/after#1"],
}  # fmt: skip
PLACES = [*BOUNDARIES, *(f"{step}/{place}" for step, places in INSIDE.items() for place in places)]
# Only the step dies, as for want of memory: the command sees it, and its exit handler runs.
STEPS_ALONE = ["claim_requests/ledger-write/after#1", "perturb/save-tensors/after#1",
               "register/log_model_artifacts/after#1", "promote/ledger-write/after#1",
               "close_requests/ledger-write/before#1"]  # fmt: skip
# Only the command dies: the step works on, while the next run begins.
COMMANDS_ALONE = ["claim_requests/ledger-write/before#1", "validate/step/before#1",
                  "register/create_logged_model/after#1", "promote/ledger-write/before#1",
                  "promote/set_registered_model_alias/before#1"]  # fmt: skip
CASES = [
    *((place, "run") for place in PLACES),
    *((place, "step") for place in STEPS_ALONE),
    *((place, "command") for place in COMMANDS_ALONE),
]


@dataclass(frozen=True)
class Queue:
    """A trained model with two pending requests, at one path: MLflow keeps absolute ones."""

    home: Path
    snapshot: Path

    def restore(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.snapshot, self.home)

    def run(self, *arguments: str, **added: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        command = Path(sys.executable).with_name("expunge")
        return subprocess.run(
            [command, *arguments],
            env={**environment, "EXPUNGE_HOME": str(self.home), **added},
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=300,
        )

    def check(self) -> None:
        """`aftermath.py` on the home, in a process that has no connection to what was before."""
        words = [
            sys.executable,
            str(Path(__file__).parents[1] / "helpers" / "aftermath.py"),
            str(self.home),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr

    def document(self, *arguments: str) -> dict:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    root = tmp_path_factory.mktemp("killed")
    made = Queue(root / "home", root / "snapshot")
    recipe = ["--epochs", "60", "--batch-size", "32", "--lr", "0.05"]
    made.document("train", NAME, "--data", "digits", "--arch", "mlp", *recipe)
    for index in ASKED:
        made.document("request", "add", NAME, "--classes", str(index), "--reason", "asked")
    shutil.copytree(made.home, made.snapshot)
    return made


@pytest.fixture
def restored(queue: Queue) -> Queue:
    queue.restore()
    return queue


def test_there_are_enough_places_and_all_of_them_are_passed(
    restored: Queue, tmp_path: Path
) -> None:
    """Or a case would kill nothing; and no step has an end that no case is beside."""
    trace = tmp_path / "trace"
    done = restored.run("run-requests", NAME, PYTHONPATH=HOOK, EXPUNGE_FAULT_TRACE=str(trace))
    assert done.returncode == 0, done.stderr
    passed = set(trace.read_text().split())
    assert {place for place, _ in CASES} <= passed
    assert {place.partition("/")[0] for place in passed} == {*STEPS, "command"}
    assert len(set(PLACES)) == len(PLACES) >= 40
    restored.check()


@pytest.mark.parametrize(("place", "kills"), CASES, ids=lambda value: value.replace("/", "-"))
def test_killed(restored: Queue, tmp_path: Path, place: str, kills: str) -> None:
    fault = {"EXPUNGE_FAULT_AT": place, "EXPUNGE_FAULT_KILLS": kills}
    trace = {"PYTHONPATH": HOOK, "EXPUNGE_FAULT_TRACE": str(tmp_path / "trace")}
    killed = restored.run("run-requests", NAME, **fault, **trace)
    passed = (tmp_path / "trace").read_text().split()
    assert place in passed
    assert killed.returncode == (3 if kills == "step" else -signal.SIGKILL), killed.stderr
    again = restored.run("run-requests", NAME, "--json")
    assert again.returncode == 0, again.stderr + again.stdout
    restored.check()
