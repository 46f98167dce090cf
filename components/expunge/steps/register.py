"""The step that registers what the gate let pass."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.errors import RefusedError


def register(
    name: str,
    kind: str,
    model: Path,
    fisher: Path,
    onnx: Path,
    validation: Path,
    requests: Sequence[str] = (),
) -> dict[str, Any]:
    """Register folders `model` and `fisher` and file `onnx`, if report `validation` says passed.

    `requests` are the ids of the requests that the version fulfils.

    Raises:
        RefusedError: the report says that the gate rejected the model, or this run has lost its
            requests to another.
    """
    from expunge import environment, registry
    from expunge.formats.files import read_json
    from expunge.formats.fisher import FISHER
    from expunge.formats.model import CODES, MODEL, ONNX, WEIGHTS
    from expunge.formats.statistics import STATISTICS
    from expunge.lifecycle import provenance
    from expunge.validation_report import ValidationReport

    verdict = ValidationReport.from_json(read_json(validation)).verdict
    if not verdict.passed:
        raise RefusedError(
            f"the gate's verdict on this model of {name!r} is {verdict.outcome} "
            f"({', '.join(verdict.rejections)}); nothing is registered"
        )
    # A folder of its own, with what a version holds and nothing else that a step may have left.
    sources = {part: model / part for part in (MODEL, WEIGHTS, CODES, STATISTICS)}
    sources |= {FISHER: fisher / FISHER, ONNX: onnx}
    tags = {"expunge.gate": "passed", "expunge.grade": verdict.grade}
    # Before the upload: it takes long, and another run may have the requests by now.
    if requests:
        _check_held(name, environment.pipeline_run())
        tags["expunge.requests"] = ",".join(requests)
    run_id = registry.attach_run(name, kind)
    with tempfile.TemporaryDirectory() as folder:
        for part, path in sources.items():
            if path.is_file():  # the registry names those that are missing and needed
                shutil.copyfile(path, Path(folder) / part)
        version = registry.register(run_id, name, Path(folder), tags, kind)
        provenance.record_version(version, Path(folder))
    return {
        "model": version.name,
        "version": version.version,
        "uri": version.uri,
        "run_id": version.run_id,
        "forgotten": list(version.forgotten),
        "grade": version.grade,
    }


def _check_held(name: str, run: str | None) -> None:
    """Refuse a version whose claim is lost: nothing could promote it."""
    from expunge import ledger

    claim = ledger.find_claim(run) if run else None
    if claim is None or not claim.active:
        raise RefusedError(
            f"run {run} has lost the requests for {name!r} that it worked on; another run does, or "
            "has settled them, and nothing is registered"
        )
