"""MLflow run around a pipeline that runs here, and what the pipeline's steps left in it.

`mlflow_run` is an MLflow run's id everywhere in this folder; `run` and `local_run` are the
pipeline's. The documents of the jobs call it `run_id`.
"""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge import environment, registry
from expunge.errors import OperationalError
from expunge.lifecycle import provenance
from expunge.validation_report import ValidationReport
from expunge_pipelines.jobs.parameters import flatten_parameters
from expunge_pipelines.runners.environ import set_variables


@contextmanager
def open_mlflow_run(kind: str, name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Open one MLflow run around a pipeline, and yield its id.

    The steps are processes of their own and find the run by `MLFLOW_RUN_ID`.
    """
    params = flatten_parameters({key: value for key, value in arguments.items() if key != "name"})
    with (
        registry.open_run(kind, name, params) as mlflow_run,
        set_variables(MLFLOW_RUN_ID=mlflow_run),
    ):
        yield mlflow_run


def read_reports(mlflow_run: str) -> dict[str, Any]:
    """Return the reports `validation` and `work` that the step `log_run` stored in the run."""
    names = ("validation", "work")
    reports = {
        name: json.loads(registry.read_artifact(mlflow_run, f"{name}.json")) for name in names
    }
    return reports | {"validation": ValidationReport.from_json(reports["validation"])}


def export_page(name: str, mlflow_run: str, classes: Collection[int]) -> str | None:
    """Copy the run's `report.html` to where a browser can open it, and return that path.

    `classes` are those that the page names. The result is None if the page cannot be copied. By
    then the pipeline is over and may have promoted, so a full disk here is no failure of it.
    """
    path: Path = environment.home() / "exports" / f"{name}-{mlflow_run}.html"
    try:
        page = registry.read_artifact(mlflow_run, "report.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its target, since a rename is atomic only within one file system.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as fresh:
            partial = Path(fresh) / path.name
            partial.write_bytes(page)
            partial.replace(path)
        provenance.record_folder(path, "report", classes, name)
    except (OSError, OperationalError):
        return None
    return str(path)


def find_registered_version(name: str, mlflow_run: str) -> int | None:
    """Return the version that the run registered, or None if it registered none."""
    if not registry.has_model(name):
        return None
    versions = [v.version for v in registry.list_versions(name) if v.run_id == mlflow_run]
    return max(versions, default=None)  # a step that ran twice may have registered twice
