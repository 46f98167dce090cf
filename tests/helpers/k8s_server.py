"""A small strict Kubernetes API server with Kubeflow Trainer's TrainJobs, which it runs here.

It refuses what the real one would: unknown fields, wrong types, another method or path. A node of a
job is a process on this machine with the variables that Kubeflow Trainer sets for torchrun.

PYTEST_DONT_REWRITE: the tests import it by name before pytest loads it as a plugin.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob as TrainJob

NAMESPACE, TOKEN = "team", "letmein"
JOBS = rf"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
# What a node's process has of this one's variables. PYTHONPATH says whose code it runs.
INHERITED = ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR")
Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 (no error of the server's)
    """An answer that is no 200: its status and message."""


def make_condition(kind: str, reason: str, message: str = "", status: str = "True") -> Json:
    """Return a condition as the API shows it."""
    moment = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": moment}  # fmt: skip


class Cluster:
    """Its state, for tests to look at, and its answers."""

    def __init__(self) -> None:
        self.jobs: dict[str, Json] = {}
        self.pods: list[Json] = []
        self.created: list[Json] = []
        self.deleted: list[str] = []
        self.going: set[str] = set()  # deleted, and there until their nodes have ended
        self.requests: list[str] = []
        self.failures: list[tuple[str, int, str]] = []  # method, status, message: for the next ones
        self.runs = True  # whether a job's nodes are run
        self.restarts = 0  # how often a node that failed is started again
        self.variables: dict[str, str] = {}  # more for the nodes
        self.script: list[list[Json]] = []  # the conditions at each look, the last one staying
        self.on_get: Callable[[], None] = lambda: None
        self.address = ""
        self.broken: list[Exception] = []  # what went wrong in here
        self.nodes: list[list[subprocess.Popen[bytes]]] = []  # the processes of each, in time
        self.statuses: list[int] = []  # with which they ended
        self._threads: list[threading.Thread] = []

    def answer(self, method: str, url: str, headers: Any, body: bytes) -> Json:
        """Return what the API says to one request."""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        self.requests.append(f"{method} {path}")
        for row in self.failures:
            if row[0] == method:
                self.failures.remove(row)
                raise Refused(row[1], row[2])
        if headers["Authorization"] != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized")
        if method == "POST" and re.fullmatch(JOBS, path):
            if query != {"fieldValidation": ["Strict"]}:
                raise Refused(400, f"the query is {query}")
            return self._create(json.loads(body))
        if method == "GET" and path == f"/api/v1/namespaces/{NAMESPACE}/pods":
            (label,) = query["labelSelector"]
            assert label.startswith("jobset.sigs.k8s.io/jobset-name=expunge-")
            return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.pods}
        if named := re.fullmatch(JOBS + "/([a-z0-9-]+)", path):
            if named[1] not in self.jobs:
                raise Refused(404, f'trainjobs.trainer.kubeflow.org "{named[1]}" not found')
            if method == "GET":
                return self._get(named[1])
            if method == "DELETE" and query == {"propagationPolicy": ["Foreground"]}:
                return self._delete(named[1])
        raise Refused(405, f"{method} {url} is not for pipelines")

    def _create(self, job: Json) -> Json:
        if TrainJob.from_dict(job).to_dict() != job:
            raise Refused(400, f"strict decoding error: unknown field in {job}")
        name = job["metadata"]["name"]
        if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
            raise Refused(422, "metadata.name must match RFC 1035 DNS label format")
        if name in self.jobs:
            raise Refused(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.jobs[name] = {**job, "status": {}}
        self.created.append(job)
        if self.runs:
            self._run(self.jobs[name])
        return job

    def _get(self, name: str) -> Json:
        if name not in self.going:
            self.on_get()
        if name not in self.jobs:
            raise Refused(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        job = self.jobs[name]
        if self.script:
            job["status"] = {"conditions": self.script[0]}
            self.script = self.script[1:] or self.script
        return job

    def _delete(self, name: str) -> Json:
        job = self.jobs[name]
        self.deleted.append(name)
        self.going.add(name)
        for node in self.nodes:
            node[-1].send_signal(signal.SIGTERM)
        threading.Thread(target=self.forget, args=(name,)).start()
        return job

    def forget(self, name: str) -> None:
        for thread in self._threads:
            thread.join()
        del self.jobs[name]
        self.going.remove(name)

    def _run(self, job: Json) -> None:
        trainer, count = job["spec"]["trainer"], job["spec"]["trainer"]["numNodes"]
        assert trainer["command"][0] == "python"
        command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = {row["name"]: row["value"] for row in trainer["env"]}
        assert not any(name.startswith("PET_") for name in given)  # which the webhook refuses
        # A pod has none of the step's variables: no ledger, no registry, no credentials.
        plain = {k: v for k, v in os.environ.items() if k in INHERITED}
        threads, done = [], []
        for rank in range(count):
            variables = {
                **plain, **given, "PET_NNODES": str(count), "PET_NODE_RANK": str(rank),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **self.variables,
            }  # fmt: skip
            self.nodes.append(node := [_start(command, variables)])
            thread = threading.Thread(target=self._run_node, args=(node, command, variables, done))
            threads.append(thread)
        self._threads += threads
        for thread in threads:
            thread.start()
        threading.Thread(target=_settle, args=(job, threads, done)).start()

    def _run_node(
        self, node: list[Any], command: list[str], variables: dict[str, str], done: list[int]
    ) -> None:
        for _ in range(self.restarts):
            if node[-1].wait() in (0, 128 + signal.SIGTERM):
                break
            node.append(_start(command, variables))
        done.append(node[-1].wait())
        self.statuses.append(done[-1])


def kill(node: subprocess.Popen[bytes]) -> None:
    """Kill a node with all that runs in it, as the end of a container does."""
    with suppress(psutil.NoSuchProcess):
        inside = psutil.Process(node.pid).children(recursive=True)
        node.kill()
        for process in inside:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _start(command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)


def _settle(job: Json, threads: list[threading.Thread], done: list[int]) -> None:
    for thread in threads:
        thread.join()
    if any(done):
        said = make_condition(
            "Failed", "JobsFailed", "jobset failed due to one or more job failures"
        )
    else:
        said = make_condition("Complete", "JobsCompleted", "jobset completed successfully")
    job["status"] = {"conditions": [said]}


def _make_handler(state: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, answer = 200, state.answer(self.command, self.path, self.headers, body)
            except Refused as refusal:
                status, message = refusal.args
            except Exception as error:
                state.broken.append(error)
                status, message = 500, repr(error)
            if status != 200:
                answer = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": status,
                          "status": "Failure", "message": message}  # fmt: skip
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Run a server that KUBECONFIG names."""
    state = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(state))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(make_kubeconfig(state.address)))
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield state
    for node in state.nodes:
        kill(node[-1])
    server.shutdown()
    server.server_close()
    assert not state.broken


def make_kubeconfig(address: str) -> Json:
    """Return a file as kubectl has it."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": address}}],
        "users": [{"name": "step", "user": {"token": TOKEN}}],
        "contexts": [
            {"name": "it", "context": {"cluster": "here", "user": "step", "namespace": NAMESPACE}}
        ],
        "current-context": "it",
    }
