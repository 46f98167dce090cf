"""Runs and registered versions, in MLflow; the only package that imports it, and only when called.

An expunge version is an MLflow model version whose flavour is ONNX, whose artifacts hold a model
folder (`expunge.formats.model`) and whose tags start with `expunge.`. The alias `champion` serves,
`previous` is what it replaced. Oracles are versions of the model `NAME-oracles`, without aliases.
"""

from expunge.registry.aliases import (
    find_candidate,
    read_aliases,
    read_erased_tags,
    set_alias,
    tag_champion,
)
from expunge.registry.registration import register
from expunge.registry.store import prepare_uri
from expunge.registry.tracking import (
    abandon_runs,
    attach_run,
    discard_run,
    end_pipeline,
    log_epoch,
    log_report,
    make_epoch_logger,
    open_run,
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
    list_models,
    list_oracles,
    list_versions,
    read_model_info,
    resolve,
    resolve_uri,
)

__all__ = [
    "ACCURACY_TAG",
    "CHAMPION",
    "ORACLE",
    "PREVIOUS",
    "REGISTERED",
    "Version",
    "abandon_runs",
    "attach_run",
    "discard_run",
    "download",
    "end_pipeline",
    "export_file",
    "find_candidate",
    "has_model",
    "list_models",
    "list_oracles",
    "list_versions",
    "log_epoch",
    "log_report",
    "make_epoch_logger",
    "open_run",
    "prepare_uri",
    "read_aliases",
    "read_artifact",
    "read_erased_tags",
    "read_model_info",
    "register",
    "resolve",
    "resolve_uri",
    "set_alias",
    "tag_champion",
]
