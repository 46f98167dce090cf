"""The runs of the small Kubeflow Pipelines server: a test writes what becomes of one.

Task details are as version 2.17 gives them: the nodes of an Argo workflow, without errors or pods
unless a test adds some.
"""

import uuid
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
NEVER = "1970-01-01T00:00:00Z"  # what the server has for a time that is not there yet
BEGUN, STARTED, ENDED = (f"2030-01-01T00:0{minute}:00Z" for minute in range(3))
OVER = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
WORKFLOW = "expunge-train-x7k2p"


def stage(state: str, tasks: Mapping[str, str | None] | None = None, **more: Any) -> Json:
    """Describe a run at one moment: its state, that of each node by name, and other fields.

    `errors` are the messages of nodes by name, and `pods` their pods. A node without state is what
    Argo omits. Each task but those of drivers gets the nodes that come with it.
    """
    errors, pods = more.pop("errors", {}), more.pop("pods", {})
    nodes: dict[str, list[str | None]] = {}
    for name, node in (tasks or {}).items():
        nodes.setdefault(name, []).append(node)
        if not name.endswith("-driver") and node is not None:
            nodes.setdefault(f"{name}-driver", []).append("SUCCEEDED")
            nodes.setdefault("executor", []).append(node)
    if nodes:
        nodes |= {WORKFLOW: [state], "root": [state], "root-driver": ["SUCCEEDED"]}
    details = [
        _detail(name, state, errors.get(name), pods.get(name))
        for name, states in sorted(nodes.items(), reverse=True)
        for state in states
    ]
    if details:
        more["run_details"] = {"task_details": details}
    return {"state": state, "finished_at": ENDED if state in OVER else NEVER, **more}


def _detail(name: str, state: str | None, error: str | None, pod: str | None) -> Json:
    """One node. The server leaves out what it has not, but times."""
    begun = NEVER if state == "PENDING" else STARTED
    row: Json = {
        "task_id": str(uuid.uuid4()),
        "display_name": name,
        "create_time": BEGUN,
        "start_time": begun,
        "end_time": ENDED if state in (None, *OVER) else NEVER,
        "child_tasks": [{"pod_name": f"{WORKFLOW}-1234567890"}],
    }
    row |= {"state": state} if state else {}
    row |= {"error": {"code": 13, "message": error}} if error else {}
    return row | ({"pod_name": pod} if pod else {})


def bare_run(id_: str, name: str = "expunge-train-digits-1a2b3c4d") -> Json:
    """Describe a run that somebody started, as the server keeps it."""
    times = {"created_at": BEGUN, "scheduled_at": BEGUN, "finished_at": NEVER}
    return {"run_id": id_, "display_name": name, "namespace": "", **times}


class Script:
    """What is to become of the runs: at each look at one, its next stage; the last one stays."""

    def __init__(self, *stages: Json) -> None:
        self.stages = [*stages] or [stage("PENDING")]
        self.looks = 0

    def now(self) -> Json:
        """Count this look, and return the stage at it."""
        self.looks += 1
        return self.stages[min(self.looks, len(self.stages)) - 1]
