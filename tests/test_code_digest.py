"""The digest of the code changes with the code, and with nothing else."""

import shutil
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import expunge
from expunge import code_digest as digests
from expunge.code_digest import DIGITS, LIBRARIES, compute_code_digest, digest_sources
from expunge.errors import OperationalError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Copy the package as it lies here."""
    source = Path(expunge.__file__).parent
    return Path(shutil.copytree(source, tmp_path / "expunge"))


def test_it_is_the_same_for_the_same_code(package: Path) -> None:
    found = digest_sources(package)
    assert digest_sources(Path(expunge.__file__).parent) == found
    assert len(found) == len(compute_code_digest()) == DIGITS
    assert compute_code_digest() == compute_code_digest()
    (package / "core" / "__pycache__").mkdir(exist_ok=True)
    (package / "core" / "__pycache__" / "fisher.cpython-311.pyc").write_bytes(b"\x00")
    (package / "notes.txt").write_text("not code")
    assert digest_sources(package) == found


def test_a_byte_of_a_source_file_or_its_name_changes_it(package: Path) -> None:
    seen = {digest_sources(package)}
    module = package / "core" / "fisher.py"
    module.write_bytes(module.read_bytes() + b"\n")
    seen.add(digest_sources(package))
    module.rename(module.with_name("fisher2.py"))
    seen.add(digest_sources(package))
    (package / "core" / "new.py").touch()
    seen.add(digest_sources(package))
    assert len(seen) == 4


def test_a_zipped_package_has_the_digest_of_its_files(package: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "expunge")
    assert digest_sources(zipfile.Path(archive, "expunge/")) == digest_sources(package)


def test_sources_that_are_missing_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "module.pyc").touch()
    with pytest.raises(OperationalError, match=r"holds no source file.*with its \.py files"):
        digest_sources(tmp_path)


def test_what_it_computes_with_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compute_code_digest()
    assert "torch" in LIBRARIES
    read = metadata.version
    monkeypatch.setattr(
        digests.metadata, "version", lambda name: "0" if name == "torch" else read(name)
    )
    assert compute_code_digest.__wrapped__() != before

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(digests.metadata, "version", absent)
    assert len(compute_code_digest.__wrapped__()) == DIGITS
