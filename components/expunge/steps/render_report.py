"""The step that writes the HTML page of a forget."""

from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge.formats.files import read_json

# What a page cannot be written without; all else may be absent.
VALIDATION = ("classes", "class_names", "before", "after", "checks", "grade", "passed")
WORK = ("rule", "strength")


def render_report(validation: Path, work: Path, page: Path) -> None:
    """Write `page`, whole or not at all, from the JSON reports of `validate` and `perturb`.

    Raises:
        UserError: a report is missing, is no JSON, or is not that of a forget.
    """
    from expunge.report import render
    from expunge.validation_report import ValidationReport

    report = ValidationReport.from_json(_read(validation, VALIDATION))
    text = render(report, _read(work, WORK))
    page.parent.mkdir(parents=True, exist_ok=True)
    # a reader never sees half a page, and an interrupted run leaves the one that was there
    partial = page.with_name(page.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(page)


def _read(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    raw = read_json(path)
    absent = [key for key in needed if key not in raw] if isinstance(raw, dict) else needed
    if absent:
        raise UserError(
            f"{path} is not the report of a forget (it lacks {', '.join(absent)}); "
            "expected one that this version of expunge wrote"
        )
    return dict(raw)
