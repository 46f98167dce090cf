import json
from pathlib import Path

import pytest
from forget_reports import render_document, validation, work

from expunge.errors import UserError
from expunge.formats.files import write_json
from expunge.steps.render_report import render_report


def write(folder: Path) -> tuple[Path, Path]:
    paths = folder / "validation.json", folder / "work.json"
    for path, value in zip(paths, (validation(), work()), strict=True):
        write_json(path, value)
    return paths


def test_the_page_is_written(tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.html"
    render_report(*write(tmp_path), page)
    assert page.read_text(encoding="utf-8") == render_document(validation(), work())
    assert [left.name for left in page.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("broken", ["validation", "work"])
def test_what_is_no_report_is_named_and_leaves_the_old_page(tmp_path: Path, broken: str) -> None:
    paths = write(tmp_path)
    page = tmp_path / "report.html"
    page.write_text("old")
    path = tmp_path / f"{broken}.json"
    for content, message in (
        ("{", rf"{broken}\.json is not valid JSON"),
        ("[]", rf"{broken}\.json is not the report of a forget \(it lacks .*\); expected one"),
        (json.dumps({"classes": [3], "rule": "paper"}), r"lacks (class_names, before|strength)"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            render_report(*paths, page)
    path.unlink()
    with pytest.raises(UserError, match=rf"{broken}\.json does not exist"):
        render_report(*paths, page)
    assert page.read_text() == "old"
