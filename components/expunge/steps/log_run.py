"""The step that logs the reports of a pipeline's steps into its MLflow run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.validation_report import ValidationReport

VALIDATION = "validation"
# Parts of a validation's report that its artifact keeps and that are no metrics: names, sentences,
# and the curves, whose areas are among the attacks.
NO_METRICS = ("schema", "checks", "class_names", "reasons", "relearning", "rungs", "next_rule")


def log_run(
    kind: str,
    name: str,
    reports: Mapping[str, Path],
    params: Mapping[str, Any],
    page: Path | None = None,
) -> dict[str, Any]:
    """Log the JSON reports, by the name of the step that wrote each, into the attached run.

    Numbers become metrics `<step>/<key>`, at any depth, and lists of numbers by index; texts and
    truths become tags `expunge.<step>.<key>`; each report is kept whole as artifact `<step>.json`,
    and `page` as `report.html`. A report named `validation` also gives `check/<name>` and
    `threshold/<name>` for each check of the gate and the tags `gate` (passed, rejected or
    untrustworthy), `gate.failed` (the checks that rejected) and `expunge.grade`; of its curves and
    its layers there are no metrics.
    """
    from expunge import environment, ledger, registry
    from expunge.formats.files import read_json
    from expunge.lifecycle import provenance
    from expunge.validation_report import ValidationReport

    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    documents = {step: read_json(path) for step, path in reports.items()}
    validation = None
    if VALIDATION in documents:
        validation = ValidationReport.from_json(documents[VALIDATION])
        metrics, tags = _summarise_gate(validation)
        documents[VALIDATION] = {
            key: value for key, value in documents[VALIDATION].items() if key not in NO_METRICS
        }
    for step, document in documents.items():
        for key, value in _iterate_leaves(step, document):
            if isinstance(value, (bool, str)):
                tags[f"expunge.{key.replace('/', '.')}"] = str(value)
            else:
                metrics[key] = float(value)
    run_id = registry.attach_run(name, kind)
    files = {f"{step}.json": path for step, path in reports.items()}
    files |= {"report.html": page} if page else {}
    registry.log_report(run_id, params, metrics, tags, files)
    run = environment.pipeline_run()
    if kind == "forget" and run:
        # a forget has a validation in every case; a claim without a verdict cannot be settled
        failed = validation.verdict.rejections if validation else []
        ledger.note_verdict(run, tags["gate"], failed, run_id)
    for file, path in files.items():
        if validation and file in (f"{VALIDATION}.json", "report.html"):
            provenance.record_report(f"runs:/{run_id}/{file}", path, reports[VALIDATION], name)
    return {"run_id": run_id, "metrics": len(metrics), "gate": tags.get("gate")}


def _summarise_gate(report: "ValidationReport") -> tuple[dict[str, float], dict[str, str]]:
    """Return the metrics of the gate's checks, and the tags of its verdict."""
    metrics: dict[str, float] = {}
    for check in report.checks:
        for kind, value in (("check", check.value), ("threshold", check.threshold)):
            if value is not None:
                metrics[f"{kind}/{check.name}"] = float(value)
    tags = {
        "gate": report.verdict.outcome,
        "gate.failed": ",".join(report.verdict.rejections),
        "expunge.grade": report.grade,
    }
    return metrics, tags


def _iterate_leaves(key: str, value: Any) -> Iterator[tuple[str, bool | str | float]]:
    """Yield the numbers, texts and truths under `value`; of lists the numbers alone, no nulls."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _iterate_leaves(f"{key}/{name}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            # to Python a truth is a number as well
            if isinstance(inner, (int, float)) and not isinstance(inner, bool):
                yield f"{key}/{index}", inner
    elif value is not None:
        yield key, value
