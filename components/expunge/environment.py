"""Settings from the environment: where the state lies, and which run a process is part of.

They are read at each call, since a test or a runner changes them while this process lives.
"""

import os
import re
from pathlib import Path

from expunge import __version__

# What the components run in. A site's own image takes its place in the settings of a cluster.
IMAGE = f"expunge:{__version__}-python3.11"
PIPELINE_RUN, HOLDER = "EXPUNGE_PIPELINE_RUN", "EXPUNGE_HOLDER"


def home() -> Path:
    """Return `EXPUNGE_HOME`, the folder of all local state; `.expunge` where you work if unset."""
    return Path(os.environ.get("EXPUNGE_HOME") or ".expunge").resolve()


def data_root() -> Path:
    """Return `EXPUNGE_DATA_ROOT`, where torchvision's data sets and downloads lie."""
    return Path(os.environ.get("EXPUNGE_DATA_ROOT") or home() / "data").resolve()


def checkpoint_root() -> Path:
    """Return `EXPUNGE_CHECKPOINTS`, where a killed training finds its last epoch again."""
    return Path(os.environ.get("EXPUNGE_CHECKPOINTS") or home() / "checkpoints").resolve()


def mlflow_uri() -> str:
    """Return `MLFLOW_TRACKING_URI`, or an SQLite store in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def artifact_root() -> str:
    """Return where an SQLite store keeps its artifacts; a tracking server decides for itself."""
    return (home() / "mlartifacts").as_uri()


def database_url() -> str:
    """Return `EXPUNGE_DATABASE_URL`, or an SQLite file in the home folder: the ledger's address."""
    return os.environ.get("EXPUNGE_DATABASE_URL") or f"sqlite:///{home() / 'ledger.db'}"


def image() -> str:
    """Return `EXPUNGE_IMAGE`, the image of a step in a container here; `IMAGE` by default."""
    return os.environ.get("EXPUNGE_IMAGE") or IMAGE


def pipeline_run() -> str | None:
    """Return `EXPUNGE_PIPELINE_RUN`, the id of the pipeline run that a step is part of."""
    return os.environ.get(PIPELINE_RUN) or None


def holder() -> str | None:
    """Return `EXPUNGE_HOLDER`, the process that runs a pipeline here (`expunge.processes`)."""
    return os.environ.get(HOLDER) or None


def redact_url(text: str) -> str:
    """Return the text with user names, passwords and query strings cut out of its addresses."""
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", re.sub(r"://[^/\s@'\"]+@", "://", text))
