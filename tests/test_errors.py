"""An error on its way from the process that it ended to whoever started that."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from expunge import errors
from expunge.errors import ErrorRecord, ExpungeError, OperationalError, RefusedError, UserError


def run(code: str, file: Path | str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that is to leave its error in a file."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, errors.ERROR_FILE: str(file)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_error_of_ours_comes_through() -> None:
    known = {ExpungeError}
    for kind in errors.KINDS.values():
        known.update(kind.__subclasses__())
        raised = ErrorRecord.from_error(kind("what\nand what to do")).rebuild()
        assert type(raised) is kind
        assert str(raised) == "what\nand what to do"
    assert known == set(errors.KINDS.values())


def test_a_record_is_a_document(tmp_path: Path) -> None:
    record = ErrorRecord("DataError", "image \udcff is broken")
    assert record.to_json() == {"kind": "DataError", "message": "image \udcff is broken"}
    assert ErrorRecord.from_json(record.to_json()) == record
    (tmp_path / "error.json").write_text(json.dumps(record.to_json()))
    assert errors.read_error(tmp_path / "error.json") == record
    assert errors.read_error(tmp_path / "none.json") is None


def chain(last: Exception, *before: Exception) -> Exception:
    """Return the error, as raised from the others."""
    error = last
    for cause in before:
        error.__cause__ = cause
        error = cause
    return last


def test_the_error_behind_that_says_more() -> None:
    found = ErrorRecord.from_error(chain(RuntimeError("x"), RefusedError("no"), UserError("y")))
    assert found == ErrorRecord("RefusedError", "no")
    found = ErrorRecord.from_error(chain(RuntimeError("x"), OSError(28, errors.FULL_DISK)))
    assert found == ErrorRecord("OperationalError", errors.say_full_disk())
    found = ErrorRecord.from_error(
        chain(UserError("choose another"), OSError(28, errors.FULL_DISK))
    )
    assert found == ErrorRecord("UserError", "choose another")


def test_an_error_that_was_put_aside_is_not_behind() -> None:
    error = RuntimeError("at last")
    error.__context__ = RefusedError("got over")
    assert ErrorRecord.from_error(error).kind == "RefusedError"
    error.__suppress_context__ = True
    found = ErrorRecord.from_error(error)
    assert found == ErrorRecord("builtins.RuntimeError", "at last")
    assert found.rebuild() is None
    assert str(found) == "RuntimeError: at last"
    assert str(ErrorRecord("builtins.StopIteration", "")) == "StopIteration"


def test_a_process_leaves_the_error_that_ends_it(tmp_path: Path) -> None:
    """And prints it. One that it got over, or a status that it chose, is none."""
    code = "from expunge.errors import UserError as E\ntry: raise E('a')\nexcept E: pass\n"
    assert run(f"{code}raise SystemExit(3)", tmp_path / "none.json").returncode == 3
    assert not (tmp_path / "none.json").exists()
    done = run(f"{code}raise E('b')", tmp_path / "error.json")
    assert done.returncode == 1
    assert done.stderr.endswith("expunge.errors.UserError: b\n")
    found = errors.read_error(tmp_path / "error.json")
    assert found == ErrorRecord("UserError", "b")


def test_an_interrupt_is_no_error(tmp_path: Path) -> None:
    done = run("import expunge; raise KeyboardInterrupt", tmp_path / "error.json")
    assert done.returncode == -signal.SIGINT
    assert not (tmp_path / "error.json").exists()


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    done = run("import expunge; raise KeyError('b')", tmp_path / "missing" / "error.json")
    assert done.returncode == 1
    assert done.stderr.endswith("KeyError: 'b'\n")
    assert "During handling" not in done.stderr


def test_nothing_is_written_where_no_file_is_named(tmp_path: Path) -> None:
    done = run("import expunge, sys; print(sys.excepthook is sys.__excepthook__)", "")
    assert done.stdout == "True\n"


@pytest.mark.parametrize("kind", [OperationalError, ExpungeError])
def test_a_subclass_travels_as_the_class_above(kind: type[ExpungeError]) -> None:
    special = type("SpecialError", (kind,), {})
    assert ErrorRecord.from_error(special("x")) == ErrorRecord(kind.__name__, "x")
