"""The generated pages of the reference are those of this code, and the site builds."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_script(name: str) -> ModuleType:
    """Load a script of `docs/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOADED = r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"(https?:[^\"]+)"
reference = load_script("write_reference")


@pytest.mark.parametrize("page", sorted(reference.PAGES))
def test_a_page_is_what_the_code_gives(page: str) -> None:
    """`make docs` writes it anew."""
    written = (reference.REFERENCE / page).read_text(encoding="utf-8")
    assert written == reference.PAGES[page](), "run `make docs` and commit what it writes"


def test_the_command_line_is_there_as_a_terminal_shows_it() -> None:
    page = (reference.REFERENCE / "command-line.md").read_text(encoding="utf-8")
    shown = subprocess.run(
        [Path(sys.executable).with_name("expunge"), "request", "add", "--help"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": str(reference.WIDTH + 2)},
    ).stdout
    assert shown.split() == page[page.index(shown.split("\n")[0]) :].split("```")[0].split()


def test_every_public_module_of_the_core_is_in_the_python_page() -> None:
    page = (reference.REFERENCE / "python.md").read_text(encoding="utf-8")
    for path in (ROOT / "components/expunge/core").rglob("*.py"):
        if re.search(r"^(def|class) [a-zA-Z]", path.read_text(encoding="utf-8"), re.MULTILINE):
            name = ".".join(path.relative_to(ROOT / "components").with_suffix("").parts)
            assert f"### {name.removesuffix('.__init__')}\n" in page


def test_the_script_of_the_picture_still_finds_what_it_draws() -> None:
    assert load_script("demo_svg").main


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the documents' tools come with `make install`")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going",
         "-d", tmp_path / "trees", "docs", tmp_path / "site"],
        check=True, cwd=ROOT,
    )  # fmt: skip
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"(https?:[^\"]+)", text
        )
        assert loaded == [], page
    for sheet in (tmp_path / "site").rglob("*.css"):
        style = sheet.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(['\"]?https?:", style), sheet
