"""Where the state lies: settings from the environment, read at each call."""

import os
from pathlib import Path


def home() -> Path:
    """`EXPUNGE_HOME`, the folder of all local state; `.expunge` where you work by default."""
    return Path(os.environ.get("EXPUNGE_HOME") or ".expunge").resolve()


def data_root() -> Path:
    """`EXPUNGE_DATA_ROOT`, where torchvision's data sets and downloads lie."""
    return Path(os.environ.get("EXPUNGE_DATA_ROOT") or home() / "data").resolve()


def checkpoint_root() -> Path:
    """`EXPUNGE_CHECKPOINTS`, where a training that was killed finds its last epoch again."""
    return Path(os.environ.get("EXPUNGE_CHECKPOINTS") or home() / "checkpoints").resolve()


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite store in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def artifact_root() -> str:
    """Where an SQLite store keeps its artifacts; a tracking server decides for itself."""
    return (home() / "mlartifacts").as_uri()
