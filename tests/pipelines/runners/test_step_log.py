"""The log of a run: what it reads from kfp's lines, and from the file that a step left."""

import json
from pathlib import Path

import pytest

from expunge.errors import OperationalError, RefusedError
from expunge_pipelines.runners.step_log import StepLog

STARTED = "09:00:00 - INFO - Executing task \x1b[96m'compute-fim'\x1b[0m\n"
FAILED = "09:00:01 - INFO - Task \x1b[96m'compute-fim'\x1b[0m finished with status FAILURE\n"


@pytest.fixture
def log(tmp_path: Path) -> StepLog:
    return StepLog(tmp_path / "log.txt")


def leave_error(log: StepLog, kind: str, message: str) -> None:
    log.error_file.write_text(json.dumps({"kind": kind, "message": message}))


def test_the_log_reads_events_and_keeps_lines(tmp_path: Path) -> None:
    seen: list[str] = []
    log = StepLog(tmp_path / "log.txt", seen.append)
    log.write(STARTED + "    half a li")
    leave_error(log, "RefusedError", "version 1 remembers class 3")
    log.write("ne\n    somebody.DataError: what is printed is no reason\n")
    log.write(FAILED)
    assert seen == ["compute_fim"] == list(log.seconds)
    assert isinstance(log.raised, RefusedError)
    assert (str(log.raised), log.raised.exit_code) == ("version 1 remembers class 3", 1)
    assert log.failure() is log.raised
    assert "half a line\n" in (tmp_path / "log.txt").read_text()
    assert "\x1b" not in (tmp_path / "log.txt").read_text()


def test_an_error_that_an_earlier_step_left_is_no_reason(log: StepLog) -> None:
    leave_error(log, "RefusedError", "a child of the step before was refused")
    log.write(STARTED + FAILED)
    assert log.raised is None
    assert str(log.failure()) == f"step compute_fim failed; its log is {log.path}"


def test_what_an_exit_handler_leaves_hides_no_reason(log: StepLog) -> None:
    log.write(STARTED)
    leave_error(log, "RefusedError", "the reason")
    log.write(FAILED + STARTED.replace("compute-fim", "close-requests"))
    leave_error(log, "OperationalError", "the ledger is down")
    log.write("    OSError: the ledger is down\n" + FAILED.replace("compute-fim", "close-requests"))
    assert str(log.failure()) == "the reason"
    assert list(log.seconds) == ["compute_fim", "close_requests"]


@pytest.mark.parametrize("kind", ["sqlalchemy.exc.OperationalError", "psycopg.errors.DataError"])
def test_an_error_of_somebody_else_may_be_called_like_ours(log: StepLog, kind: str) -> None:
    log.write(STARTED)
    leave_error(log, kind, "value too long\nCONTEXT: a query")
    log.write(FAILED)
    name = kind.rpartition(".")[2]
    assert str(log.failure()) == (
        f"step compute_fim failed ({name}: value too long); its log is {log.path}"
    )


@pytest.mark.parametrize("left", ["", '{"kind": "RefusedEr', '{"kind": "RefusedError"}'])
def test_a_file_that_was_not_written_whole_leaves_the_printed_text(log: StepLog, left: str) -> None:
    log.write(STARTED)
    log.error_file.write_text(left)
    log.write("    ImportError: no module of that name\n" + FAILED)
    assert log.raised is None
    assert "failed (ImportError: no module of that name); its log" in str(log.failure())


def test_a_full_disk_is_named(log: StepLog) -> None:
    """Also where it is too full for `error.json`, whatever error comes out of it at last."""
    log.write(STARTED + "    OSError: [Errno 28] No space left on device\n")
    log.write("    RuntimeError: unexpected pos 64 vs 0\n" + FAILED)
    assert isinstance(log.raised, OperationalError)
    assert "free some and run it again" in str(log.raised)
