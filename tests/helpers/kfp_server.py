"""A small strict Kubeflow Pipelines server: what runs and schedules need of the v2beta1 API.

It refuses what the real one ignores: unknown fields and query parameters. A test fails by what was
refused in it, unless it clears `refused`.

PYTEST_DONT_REWRITE: the tests import it by name before pytest loads it as a plugin.
"""

import base64
import json
import re
import ssl
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit

import pytest
import yaml
from kfp_rules import Json, Refused, check, check_inputs, content_of
from kfp_runs import BEGUN, NEVER, Script, stage

API = "/apis/v2beta1"
VARIABLES = tuple(f"EXPUNGE_KFP_{name}" for name in ("HOST", "NAMESPACE", "TOKEN", "CA"))
AWAY = b'{"code": 13, "message": "the database is away"}'
# What only the server sets.
OUTPUT = {"created_at", "updated_at", "status", "error", "storage_state", "last_run_created_at"}
OUTPUT |= {"scheduled_at", "finished_at", "state", "state_history", "run_details"}


class KfpServer:
    """Its state, for tests to look at, and its answers."""

    def __init__(self) -> None:
        self.pipelines: dict[str, Json] = {}
        self.versions: dict[str, Json] = {}
        self.experiments: dict[str, Json] = {}
        self.recurring_runs: dict[str, Json] = {}
        self.runs: dict[str, Json] = {}
        self.script = Script()  # what becomes of each run
        self.contents: dict[str, bytes] = {}  # the file that was uploaded, by version
        self.created: list[Json] = []  # recurring runs as the client sent them
        self.started: list[Json] = []  # and runs
        self.requests: list[str] = []  # method and path
        self.refused: list[str] = []
        self.authorizations: set[str | None] = set()
        self.failures: list[Json] = []
        self.token, self.multi_user, self.largest_page, self.address = "", False, 200, ""

    def fail(self, method: str, path: str, times: int = 1, **how: Any) -> None:
        """Let the next requests of a path and those below fail, with this `status` and `body`.

        With `after` they do their work before; status 0 closes the connection without an answer.
        """
        row = {"method": method, "path": API + path, "status": 500, "body": AWAY, "after": False}
        self.failures.append({**row, "times": times, **how})

    def answer(self, method: str, url: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        """Status and body for one request."""
        path, query = urlsplit(url).path, urlsplit(url).query
        self.requests.append(f"{method} {path.removeprefix(API)}")
        self.authorizations.add(headers["Authorization"])
        waiting = [row for row in self.failures if row["times"] and row["method"] == method]
        failure = next((row for row in waiting if path.startswith(row["path"])), None)
        if failure:
            failure["times"] -= 1
            if not failure["after"]:
                return failure["status"], failure["body"]
        try:
            made = self._route(method, path, query, headers, body)
        except Exception as error:  # a KeyError is a field that is required
            status, message = error.args if isinstance(error, Refused) else (400, repr(error))
            self.refused.append(f"{method} {path}: {message}")
            return status, json.dumps({"code": 3, "message": message}).encode()
        return (failure["status"], failure["body"]) if failure else (200, json.dumps(made).encode())

    def _route(self, method: str, path: str, query: str, headers: Any, body: bytes) -> Json:
        if self.token and headers["Authorization"] != f"Bearer {self.token}":
            raise Refused(401, f"{headers['Authorization']} is not valid")
        given = dict(parse_qsl(query, keep_blank_values=True))
        for wanted, pattern, allowed, handler in ROUTES:
            match = re.fullmatch(API + pattern, path)
            if match and method == wanted:
                if unknown := set(given) - allowed:
                    raise Refused(400, f"unknown query parameters {unknown}")
                content = [content_of(headers, body)] if body else []
                return handler(self, *map(unquote, match.groups()), given, *content)
        raise Refused(404, f"{method} {path} is not there")

    def _new(self, kind: str, body: Json, namespace: str | None = None) -> Json:
        check(body, f"V2beta1{kind}", kind)
        key = "recurring_run_id" if kind == "RecurringRun" else f"{kind.lower()}_id"
        if not body.get("display_name") or set(body) & (OUTPUT | {key}):
            raise Refused(400, f"no display_name, or one of {OUTPUT | {key}}")
        row = {key: str(uuid.uuid4()), "created_at": f"2030-01-01T00:00:{len(self.created):02}Z"}
        where = self._namespace(body) if namespace is None else namespace
        return {**body, **row, "namespace": where}

    def _namespace(self, given: Json) -> str:
        if self.multi_user and not given.get("namespace"):
            raise Refused(400, "a namespace is required")
        return str(given["namespace"]) if self.multi_user else ""

    def health(self, _: Json) -> Json:
        return {"multi_user": self.multi_user}

    def create(self, kind: str, _: Json, body: Json) -> Json:
        rows, row = getattr(self, f"{kind}s"), self._new(kind.capitalize(), body)
        if any(old["display_name"] == row["display_name"] for old in rows.values()):
            raise Refused(409, f"{kind} {row['display_name']} already exists")
        rows[row[f"{kind}_id"]] = row
        return row

    def list_all(self, kind: str, query: Json) -> Json:
        key = "recurringRuns" if kind == "recurringrun" else f"{kind}s"
        rows = self.recurring_runs if kind == "recurringrun" else getattr(self, key)
        return self._page(key, query, rows, self._namespace(query))

    def upload_version(self, query: Json, content: bytes) -> Json:
        pipeline, name = _get(self.pipelines, query.get("pipelineid")), query.get("name")
        spec = next(iter(yaml.load_all(content, yaml.CSafeLoader)), None)
        if not name or not isinstance(spec, dict) or spec.get("schemaVersion") != "2.1.0":
            raise Refused(400, "no name, or the file is no pipeline")
        if any(row["display_name"] == name for row in self.versions.values()):
            raise Refused(409, f"version {name} already exists")
        id_ = str(uuid.uuid4())
        row = {"pipeline_id": pipeline["pipeline_id"], "pipeline_version_id": id_}
        self.contents[id_] = content
        self.versions[id_] = {**row, "display_name": name, "name": name, "pipeline_spec": spec}
        return self.versions[id_]

    def list_versions(self, pipeline: str, query: Json) -> Json:
        rows = {id_: row for id_, row in self.versions.items() if row["pipeline_id"] == pipeline}
        return self._page("pipeline_versions", query, rows)

    def get_version(self, pipeline: str, version: str, _: Json) -> Json:
        row = _get(self.versions, version)
        return row if row["pipeline_id"] == pipeline else _get({}, version)

    def create_recurring_run(self, _: Json, body: Json) -> Json:
        experiment = _get(self.experiments, body.get("experiment_id"))
        row = self._new("RecurringRun", {"namespace": experiment["namespace"], **body})
        triggers, source = list(row["trigger"].values()), row["pipeline_version_reference"]
        if len(triggers) != 1 or "pipeline_spec" in row:
            raise Refused(400, "expected one trigger, and no pipeline beside the version")
        if len(triggers[0]["cron"].split()) not in (5, 6):
            raise Refused(400, "Schedule cron is not a supported format")
        if not 1 <= int(row["max_concurrency"]) <= 10:
            raise Refused(400, "The max concurrency of the recurring run is out of range")
        self._check_source(source, row["runtime_config"]["parameters"])
        self.created.append(body)
        row["max_concurrency"] = str(row["max_concurrency"])
        self.recurring_runs[row["recurring_run_id"]] = row
        self.set_mode(row["recurring_run_id"], row.get("mode", "DISABLE").lower(), {})
        return row

    def _check_source(self, source: Json, parameters: Json) -> None:
        version = self.get_version(source["pipeline_id"], source["pipeline_version_id"], {})
        check_inputs(version["pipeline_spec"]["root"]["inputDefinitions"]["parameters"], parameters)

    def create_run(self, _: Json, body: Json) -> Json:
        experiment = _get(self.experiments, body.get("experiment_id"))
        row = self._new("Run", body, experiment["namespace"])
        if "pipeline_spec" in row:
            raise Refused(400, "expected no pipeline beside the version")
        self._check_source(row["pipeline_version_reference"], row["runtime_config"]["parameters"])
        self.started.append(body)
        times = {"created_at": BEGUN, "scheduled_at": BEGUN, "finished_at": NEVER}
        self.runs[row["run_id"]] = {"service_account": "pipeline-runner", **row, **times}
        return self._run(row["run_id"], stage("PENDING"))

    def get_run(self, id_: str, _: Json) -> Json:
        _get(self.runs, id_)
        return self._run(id_, self.script.now())

    def _run(self, id_: str, now: Json) -> Json:
        row = {**self.runs[id_], **now}
        del row["namespace"]  # a run has none of its own
        check(row, "V2beta1Run", "Run")
        return row

    def list_runs(self, query: Json) -> Json:
        of = _get(self.experiments, query.pop("experiment_id", None))["experiment_id"]
        rows = {id_: row for id_, row in self.runs.items() if row["experiment_id"] == of}
        page = self._page("runs", query, rows)
        shown = [self._run(row["run_id"], stage("PENDING")) for row in page.get("runs", [])]
        return {**page, **({"runs": shown} if shown else {})}

    def delete_recurring_run(self, id_: str, _: Json) -> Json:
        del self.recurring_runs[_get(self.recurring_runs, id_)["recurring_run_id"]]
        return {}

    def set_mode(self, id_: str, mode: str, _: Json) -> Json:
        _get(self.recurring_runs, id_).update(mode=mode.upper(), status=f"{mode.upper()}D")
        return {}

    def _page(self, key: str, query: Json, rows: dict[str, Json], namespace: str = "") -> Json:
        """Return a page of what the filter names, as a database without regard to case finds it."""
        found = [row for row in rows.values() if not namespace or row["namespace"] == namespace]
        asked = query.get("filter", "")
        for predicate in json.loads(unquote_plus(asked) or "{}").get("predicates", []):
            within = predicate.pop("operation") in ("IS_SUBSTRING", 9)
            wanted = predicate.pop("stringValue").lower()
            if predicate != {"key": "display_name"}:
                raise Refused(400, f"no filter by {predicate}")
            names = ((row, row["display_name"].lower()) for row in found)
            found = [row for row, name in names if name == wanted or (within and wanted in name)]
        start = 0
        if query.get("page_token"):
            start, before = json.loads(base64.b64decode(query["page_token"]))
            if before != asked:
                raise Refused(400, "page token does not match the filtering criteria")
        stop = start + min(int(query.get("page_size", 20)), self.largest_page)
        page: Json = {key: found[start:stop], "total_size": len(found)}
        if stop < len(found):
            page["next_page_token"] = base64.b64encode(json.dumps([stop, asked]).encode()).decode()
        return {name: value for name, value in page.items() if value}  # as protobuf leaves out


def _get(rows: dict[str, Json], id_: Any) -> Json:
    if id_ not in rows:
        raise Refused(404, f"{id_} not found")
    return rows[id_]


PAGES = {"page_token", "page_size", "sort_by", "filter"}
SPACED = PAGES | {"namespace"}
ROUTES: tuple[tuple[str, str, set[str], Callable[..., Json]], ...] = (
    ("GET", "/healthz", set(), KfpServer.health),
    ("GET", "/(pipeline|experiment|recurringrun)s", SPACED, KfpServer.list_all),
    ("POST", "/(pipeline|experiment)s", set(), KfpServer.create),
    ("POST", "/pipelines/upload_version", {"name", "pipelineid"}, KfpServer.upload_version),
    ("GET", "/pipelines/([^/]+)/versions", PAGES, KfpServer.list_versions),
    ("GET", "/pipelines/([^/]+)/versions/([^/]+)", set(), KfpServer.get_version),
    ("POST", "/runs", set(), KfpServer.create_run),
    ("GET", "/runs", PAGES | {"experiment_id"}, KfpServer.list_runs),
    ("GET", "/runs/([^/:]+)", set(), KfpServer.get_run),
    ("POST", "/recurringruns", set(), KfpServer.create_recurring_run),
    ("DELETE", "/recurringruns/([^/:]+)", set(), KfpServer.delete_recurring_run),
    ("POST", "/recurringruns/([^/:]+):(enable|disable)", set(), KfpServer.set_mode),
)


@contextmanager
def served(certificate: ssl.SSLContext | None = None) -> Iterator[KfpServer]:
    """Run a server on a free port of this machine."""
    state = KfpServer()

    class Connection(BaseHTTPRequestHandler):
        protocol_version, wbufsize = "HTTP/1.1", -1  # one packet an answer, or each takes 40 ms

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, content = state.answer(self.command, self.path, self.headers, body)
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *where: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # of a client that was interrupted
                super().handle_error(*where)

    server = Server(("127.0.0.1", 0), Connection)
    if certificate:
        server.socket = certificate.wrap_socket(server.socket, server_side=True)
    state.address = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def kfp_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    """Run a server that the environment names."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with served() as server:
        monkeypatch.setenv("EXPUNGE_KFP_HOST", server.address)
        yield server
    assert not server.refused, "what no request may hold"
