"""Credentials are no part of what is compiled: each is a reference to a Kubernetes secret."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compiled import documents, executors

from expunge_pipelines.kubeflow.compile import KINDS, compile_all
from expunge_pipelines.kubeflow.resources import (
    CHECKPOINTS,
    DATA_ROOT,
    DATABASE_KEYS,
    MLFLOW_KEYS,
    MLFLOW_LOGIN,
    S3_KEYS,
)
from expunge_pipelines.kubeflow.settings import ClusterSettings

CREDENTIALS = {*S3_KEYS, *MLFLOW_KEYS, *MLFLOW_LOGIN, *DATABASE_KEYS}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value that is neither a mapping nor a list, and every key, with where it stands."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if isinstance(key, str):
            yield (*path, key, "a key"), key
        if isinstance(inner, (dict, list)):
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def references(file: Path) -> set[tuple[str, str]]:
    """Return the secrets and keys that a file refers to; a credential elsewhere fails the test."""
    found = set()
    for part in documents(file):
        for path, value in leaves(part):
            named = {name for name in CREDENTIALS if name in str(value)}
            if "keyToEnv" in path:
                assert path[-1] == "a key" or path[-1] in {"envVar", "secretKey"}, path
            else:
                assert not named, f"{named} at {path}"
            assert not re.search(r"://[^\s/@]*:[^\s/@]+@", str(value)), f"a login at {path}"
    for step, container, kubernetes in executors(file):
        assert {row["name"] for row in container.get("env", [])} <= {CHECKPOINTS, DATA_ROOT}, step
        for secret in kubernetes.get("secretAsEnv", []):
            for pair in secret["keyToEnv"]:
                assert pair["envVar"] == pair["secretKey"]
                found.add((secret["secretName"], pair["secretKey"]))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_credential_is_a_reference_to_a_secret(bare: Path, site: Path, name: str) -> None:
    for made, (s3, mlflow, database) in (
        (bare, ("expunge-s3", "expunge-mlflow", "expunge-database")),
        (site, ("store", "tracking", "ledger")),
    ):
        assert references(made / f"{name}.yaml") == {
            *((s3, key) for key in S3_KEYS),
            *((mlflow, key) for key in (*MLFLOW_KEYS, *MLFLOW_LOGIN)),
            *((database, key) for key in DATABASE_KEYS),
        }


def test_a_component_by_itself_names_no_credential(site: Path) -> None:
    for file in (site / "components").iterdir():
        assert not [name for name in CREDENTIALS if name in file.read_text()]


def test_a_walk_finds_a_credential(site: Path, tmp_path: Path) -> None:
    text = (site / "train.yaml").read_text()
    for old, new in (
        ("value: /checkpoints", "value: postgresql://ada:hush@db/expunge"),
        ("- name: EXPUNGE_CHECKPOINTS", "- name: MLFLOW_TRACKING_PASSWORD"),
        ("secretKey: AWS_SECRET_ACCESS_KEY", "value: AWS_SECRET_ACCESS_KEY"),
    ):
        assert old in text
        (tmp_path / "train.yaml").write_text(text.replace(old, new))
        with pytest.raises(AssertionError):
            references(tmp_path / "train.yaml")


def test_what_this_machine_has_does_not_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*CREDENTIALS, "EXPUNGE_KFP_TOKEN", "EXPUNGE_HOME", "EXPUNGE_DATA_ROOT"):
        monkeypatch.setenv(name, f"sqlite:///{tmp_path}/hush-{name}")
    for file in compile_all(tmp_path, ClusterSettings()):
        assert "hush-" not in Path(file).read_text()


def test_optional_is_what_a_site_may_lack(bare: Path) -> None:
    """A key that is missing keeps a pod from starting, unless the reference is optional."""
    found = {step: kubernetes for step, _, kubernetes in executors(bare / "train.yaml")}
    optional = {
        pair["secretKey"]: row["optional"]
        for row in found["train"]["secretAsEnv"]
        for pair in row["keyToEnv"]
    }
    needed = {key for key, value in optional.items() if not value}
    assert needed == {"MLFLOW_TRACKING_URI", "EXPUNGE_DATABASE_URL"}
