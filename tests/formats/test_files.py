"""JSON and digests of files."""

from pathlib import Path

import pytest

from expunge.errors import UserError
from expunge.formats.files import digest_file, read_json, write_json


def test_json(tmp_path: Path) -> None:
    value = {"b": [1, None, "ü"], "a": {"x": 0.1}}
    path = tmp_path / "new" / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    first = path.read_bytes()
    write_json(path, dict(reversed(value.items())))
    assert path.read_bytes() == first
    assert [left.name for left in path.parent.iterdir()] == ["value.json"]


def test_json_has_no_number_for_infinity(tmp_path: Path) -> None:
    """And what was there before is still whole."""
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("inf"))
    assert read_json(path) == 1


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert digest_file(tmp_path / "empty") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.json does not exist; expected a file written"):
        read_json(tmp_path / "model.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.json is not valid JSON \(.*\); write it anew"):
        read_json(tmp_path / "model.json")
