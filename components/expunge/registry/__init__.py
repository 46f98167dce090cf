"""Runs and registered versions, in MLflow; the only package that imports it, and only when called.

An expunge version is an MLflow model version whose flavour is ONNX, whose artifacts hold a model
folder (`expunge.formats.files`) and whose tags start with `expunge.`. The alias `champion` serves,
`previous` is what it replaced. Oracles are versions of the model `NAME-oracles`, without aliases.
"""

from expunge.registry.aliases import aliases, candidate, erased_tags, set_alias, tag_champion
from expunge.registry.registration import register
from expunge.registry.store import prepared_uri
from expunge.registry.tracking import (
    abandon_runs,
    attached_run,
    discard_run,
    end_pipeline,
    epoch_logger,
    log_epoch,
    log_report,
    pipeline_run,
    read_artifact,
)
from expunge.registry.versions import (
    ACCURACY_TAG,
    CHAMPION,
    ORACLE,
    PREVIOUS,
    REGISTERED,
    Version,
    download,
    export_file,
    has_model,
    model_info,
    models,
    named,
    oracles,
    resolve,
    versions,
)

__all__ = [
    "ACCURACY_TAG",
    "CHAMPION",
    "ORACLE",
    "PREVIOUS",
    "REGISTERED",
    "Version",
    "abandon_runs",
    "aliases",
    "attached_run",
    "candidate",
    "discard_run",
    "download",
    "end_pipeline",
    "epoch_logger",
    "erased_tags",
    "export_file",
    "has_model",
    "log_epoch",
    "log_report",
    "model_info",
    "models",
    "named",
    "oracles",
    "pipeline_run",
    "prepared_uri",
    "read_artifact",
    "register",
    "resolve",
    "set_alias",
    "tag_champion",
    "versions",
]
