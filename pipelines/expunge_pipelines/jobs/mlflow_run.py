"""The MLflow run around a pipeline that runs here, and what its steps left in it."""

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
    """One MLflow run around the pipeline; the steps' processes find it by `MLFLOW_RUN_ID`."""
    params = flatten_parameters({key: value for key, value in arguments.items() if key != "name"})
    with registry.open_run(kind, name, params) as run_id, set_variables(MLFLOW_RUN_ID=run_id):
        yield run_id


def read_reports(run_id: str) -> dict[str, Any]:
    """The reports `validation` and `work` that the run's step `log_run` kept."""
    names = ("validation", "work")
    kept = {name: json.loads(registry.read_artifact(run_id, f"{name}.json")) for name in names}
    return kept | {"validation": ValidationReport.from_json(kept["validation"])}


def export_page(name: str, run_id: str, classes: Collection[int]) -> str | None:
    """Copy the run's `report.html` whole to where a browser can open it, and return that path.

    `classes` are those that it names.

    None where it cannot be copied: the pipeline is over and may have promoted, so that a full disk
    here is no failure of it.
    """
    path: Path = environment.home() / "exports" / f"{name}-{run_id}.html"
    try:
        page = registry.read_artifact(run_id, "report.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as fresh:
            partial = Path(fresh) / path.name
            partial.write_bytes(page)
            partial.replace(path)
        provenance.record_folder(path, "report", classes, name)
    except (OSError, OperationalError):
        return None
    return str(path)


def find_registered_version(name: str, run_id: str) -> int | None:
    """The version that the run registered; None for none."""
    if not registry.has_model(name):
        return None
    found = [v.version for v in registry.list_versions(name) if v.run_id == run_id]
    return max(found, default=None)
