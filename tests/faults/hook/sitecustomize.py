"""Loaded by every Python process of a run under test: names the places it passes, and kills there.

`EXPUNGE_FAULT_TRACE` is a file that gets a line for each place, in the order of all processes.
`EXPUNGE_FAULT_AT` is one of these, such as `promote/ledger-commit/after#1`, the first time that it
is passed; `EXPUNGE_FAULT_KILLS` says what is killed then, with SIGKILL: the whole `run`, the `step`
alone, or the `command` alone, which leaves the step running.
"""

import atexit
import functools
import importlib.abc
import importlib.util
import os
import signal
import sys
from pathlib import Path

TRACE = os.environ.get("EXPUNGE_FAULT_TRACE")
EXECUTOR = "kfp.dsl.executor_main"
CLIENT_CALLS = (
    "create_run",
    "set_terminated",
    "log_batch",
    "log_artifacts",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "log_outputs",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "set_model_version_tag",
)


def actor():
    """Name the step that this process is, or the command."""
    words = sys.orig_argv
    if EXECUTOR in words and "--function_to_execute" in words:
        return words[words.index("--function_to_execute") + 1]
    return "command"


def passed(place):
    name = f"{actor()}/{place}"
    with Path(TRACE).open("a+") as file:
        file.seek(0)
        number = 1 + sum(line.rpartition("#")[0] == name for line in file.read().splitlines())
        file.write(f"{name}#{number}\n")
    if f"{name}#{number}" == os.environ.get("EXPUNGE_FAULT_AT"):
        kill(os.environ["EXPUNGE_FAULT_KILLS"])


def kill(what):
    if what == "run":
        os.killpg(0, signal.SIGKILL)
    elif what == "step":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        os.kill(int(os.environ["EXPUNGE_HOLDER"].split(" ")[-2]), signal.SIGKILL)


def wrapped(place, call):
    @functools.wraps(call)
    def around(*arguments, **options):
        passed(f"{place(*arguments) if callable(place) else place}/before")
        value = call(*arguments, **options)
        passed(f"{place(*arguments) if callable(place) else place}/after")
        return value

    return around


def commit_of(_dialect, connection):
    """Which of the two databases is committed to, and whether anything was written."""
    path = connection.execute("PRAGMA database_list").fetchall()[0][2]
    kind = "write" if connection.total_changes else "read"
    return f"{'ledger' if path.endswith('ledger.db') else 'mlflow'}-{kind}"


def watch_dialect(module):
    dialect = module.SQLiteDialect_pysqlite
    dialect.do_commit = wrapped(commit_of, dialect.do_commit)


def watch_client(module):
    for call in CLIENT_CALLS:
        setattr(module.MlflowClient, call, wrapped(call, getattr(module.MlflowClient, call)))


def watch_files(module):
    module.save_file = wrapped("save-tensors", module.save_file)


def watch_json(module):
    module.write_json = wrapped("write-json", module.write_json)


def watch_step(module):
    name = module.__name__.rpartition(".")[2]
    if name == actor():
        setattr(module, name, wrapped("step", getattr(module, name)))


WATCHED = {
    "sqlalchemy.dialects.sqlite.pysqlite": watch_dialect,
    "mlflow.tracking.client": watch_client,
    "safetensors.torch": watch_files,
    "safetensors.numpy": watch_files,
    "expunge.formats.files": watch_json,
    f"expunge.steps.{actor()}": watch_step,
}


class Watcher(importlib.abc.MetaPathFinder):
    """Lets the other finders find a watched module, and changes it once it is loaded."""

    def find_spec(self, name, path, target=None):
        if name not in WATCHED:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            WATCHED[name](module)

        spec.loader.exec_module = exec_module
        return spec


if TRACE and (actor() != "command" or "expunge" in " ".join(sys.orig_argv)):
    sys.meta_path.insert(0, Watcher())
    passed("start")
    atexit.register(passed, "end")
