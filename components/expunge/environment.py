"""Where the state lies: settings from the environment, read at each call."""

import os
import re
from pathlib import Path

from expunge import __version__

# What the components run in. A site's own image takes its place in the settings of a cluster.
IMAGE = f"expunge:{__version__}-python3.11"
PIPELINE_RUN, HOLDER = "EXPUNGE_PIPELINE_RUN", "EXPUNGE_HOLDER"


def home() -> Path:
    """`EXPUNGE_HOME`, the folder of all local state; `.expunge` where you work by default."""
    return Path(os.environ.get("EXPUNGE_HOME") or ".expunge").resolve()


def data_root() -> Path:
    """`EXPUNGE_DATA_ROOT`, where torchvision's data sets and downloads lie."""
    return Path(os.environ.get("EXPUNGE_DATA_ROOT") or home() / "data").resolve()


def checkpoint_root() -> Path:
    """`EXPUNGE_CHECKPOINTS`, where a training that was killed finds its last epoch again."""
    return Path(os.environ.get("EXPUNGE_CHECKPOINTS") or home() / "checkpoints").resolve()


def mlflow_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite store in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def artifact_root() -> str:
    """Where an SQLite store keeps its artifacts; a tracking server decides for itself."""
    return (home() / "mlartifacts").as_uri()


def database_url() -> str:
    """`EXPUNGE_DATABASE_URL`, or an SQLite file in the home folder: the ledger of requests."""
    return os.environ.get("EXPUNGE_DATABASE_URL") or f"sqlite:///{home() / 'ledger.db'}"


def image() -> str:
    """`EXPUNGE_IMAGE`, the image of a step that runs in a container here; `IMAGE` by default."""
    return os.environ.get("EXPUNGE_IMAGE") or IMAGE


def pipeline_run() -> str | None:
    """`EXPUNGE_PIPELINE_RUN`, the id of the pipeline run that a step is part of."""
    return os.environ.get(PIPELINE_RUN) or None


def holder() -> str | None:
    """`EXPUNGE_HOLDER`, the process that runs a pipeline here (`expunge.processes`)."""
    return os.environ.get(HOLDER) or None


def redact_url(text: str) -> str:
    """The text with user names, passwords and query strings cut out of its addresses."""
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", re.sub(r"://[^/\s@'\"]+@", "://", text))
