"""Log the reports of a pipeline's steps into its MLflow run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Parts of a validation's report that its artifact keeps and that are no metrics: names, sentences,
# and the curves, whose areas are among the attacks.
NO_METRICS = ("checks", "class_names", "reasons", "relearning")


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
    from expunge.verdicts import rejected_by, verdict

    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    failed: list[str] = []
    for step, path in reports.items():
        report = read_json(path)
        if step == "validation":
            checks = report["checks"]
            metrics |= {f"check/{check['name']}": float(check["value"]) for check in checks}
            metrics |= {f"threshold/{check['name']}": float(check["threshold"]) for check in checks}
            tags["gate"] = verdict(report)
            failed = rejected_by(report)
            tags["gate.failed"] = ",".join(failed)
            tags["expunge.grade"] = report["grade"]
            report = {key: value for key, value in report.items() if key not in NO_METRICS}
        for key, value in _leaves(step, report):
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
        ledger.note_verdict(run, tags["gate"], failed, run_id)
    for file, path in files.items():
        if "validation" in reports and file in ("validation.json", "report.html"):
            provenance.record_report(f"runs:/{run_id}/{file}", path, reports["validation"], name)
    return {"run_id": run_id, "metrics": len(metrics), "gate": tags.get("gate")}


def _leaves(key: str, value: Any) -> Iterator[tuple[str, bool | str | float]]:
    """The numbers, texts and truths under `value`; of lists the numbers alone, and no nulls."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}/{name}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if isinstance(inner, (int, float)) and not isinstance(inner, bool):
                yield f"{key}/{index}", inner
    elif value is not None:
        yield key, value
