"""JSON and digests of files, which every format on disk shares."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all, with sorted keys so that digests are stable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # renamed into place: a process that is killed here leaves the file of before, not half of one
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
    partial.replace(path)


def replace_non_finite(value: Any) -> Any:
    """Return the value with None for every number that JSON has none for, at any depth."""
    if isinstance(value, dict):
        return {key: replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a file written by expunge") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); write it anew") from error


@contextmanager
def refuse_other_json(path: Path) -> Iterator[None]:
    """Refuse valid JSON that is not what expunge writes under this name, such as another tool's.

    Whatever the code inside runs into while it takes the document apart becomes a `UserError`.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not as expunge writes it ({type(error).__name__}: {error}); "
            "expected a file of this version of expunge"
        ) from error


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
