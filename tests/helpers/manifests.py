"""The Kubernetes manifests as the tests read them."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "docker" / "kubernetes"

Document = dict[str, Any]


def documents(file: Path) -> list[Document]:
    return [found for found in yaml.safe_load_all(file.read_text()) if found]


FOLDERS = sorted(file.parent for file in MANIFESTS.rglob("kustomization.yaml"))
FILES = sorted(
    file
    for file in MANIFESTS.rglob("*.yaml")
    if file.name not in {"kustomization.yaml", "patch.yaml"}
)
OBJECTS = [found for file in FILES for found in documents(file)]


def named(kind: str, name: str = "") -> list[Document]:
    return [
        found
        for found in OBJECTS
        if found["kind"] == kind and name in {"", found["metadata"]["name"]}
    ]


def pods() -> dict[str, Document]:
    """Return what each object with pods puts into them."""
    return {
        f"{found['kind']}/{found['metadata']['name']}": found["spec"]["template"]["spec"]
        for found in OBJECTS
        if found["kind"] in {"Deployment", "Job"}
    }


def kustomization(folder: Path) -> Document:
    return documents(folder / "kustomization.yaml")[0]


def variables(file: Path) -> dict[str, str]:
    """Read what an example sets, with the lines whose # is to be taken off."""
    return dict(re.findall(r"^(?:# )?([A-Z][A-Z_0-9]+)=(.*)$", file.read_text(), re.MULTILINE))
