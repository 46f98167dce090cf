"""Fixtures around a real MLflow store on SQLite, and model folders small enough to register.

PYTEST_DONT_REWRITE: the tests import it by name before pytest loads it as a plugin.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import registry
from expunge.core.statistics import ClassStatistics, fit_gaussian
from expunge.formats.fisher import save_fisher
from expunge.formats.model import Codes, ModelInfo, StoredModel, make_opaque_name, save_model
from expunge.models import build_model

SHAPE, CLASSES = (1, 4, 4), 4
VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_RUN_ID",
    "EXPUNGE_DATABASE_URL",
    "EXPUNGE_PIPELINE_RUN",
    "EXPUNGE_HOLDER",
    "EXPUNGE_POLICY",
    "EXPUNGE_USER",
)


def tiny_model(
    seed: int = 0,
    forgotten: tuple[int, ...] = (),
    parent: str | None = None,
    settings: Mapping[str, Any] | None = None,
    arch: str = "mlp",
) -> StoredModel:
    """Build a small untrained model; `seed` gives its weights, and so their digest."""
    names = [make_opaque_name(i) if i in forgotten else f"name-{i}" for i in range(CLASSES)]
    info = ModelInfo(
        arch=arch,
        class_names=tuple(names),
        input_shape=SHAPE,
        mean=(0.5,),
        std=(0.25,),
        source="digits",
        data_digests={"test": "d1", "train": "d2"},
        forgotten=forgotten,
        parent=parent,
        settings=settings or {},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_model(arch, SHAPE, CLASSES).eval()
        codes = torch.rand(len(info.retained), *SHAPE)
    return StoredModel(info, module, Codes(codes, torch.tensor(info.retained)))


def make_tiny_statistics(
    *classes: int, depths: Mapping[int, float] | None = None
) -> ClassStatistics:
    """Draw statistics of the images that enter `tiny_model()`, which is all of it one stage."""
    gaussians = {}
    for index in classes:
        generator = torch.Generator().manual_seed(index)
        images_NCHW = torch.rand(40, *SHAPE, generator=generator) + torch.eye(4) * (index - 1)
        gaussians[index] = fit_gaussian(images_NCHW, SHAPE, 8)
    return ClassStatistics("images_nchw", SHAPE, SHAPE, gaussians, dict(depths or {}))


def save_tiny(folder: Path, model: StoredModel) -> Path:
    """Save the model folder without its Fisher total and ONNX file."""
    save_model(folder, model.info, model.module.state_dict(), model.codes)
    return folder


def save_tiny_fisher(folder: Path) -> Path:
    save_fisher(folder, {"head.bias": torch.ones(CLASSES, dtype=torch.float64)}, {"codes": "all"})
    return folder


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model()` as ONNX."""
    from expunge.formats.onnx import export_onnx

    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(tiny_model(), path)
    return path


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty SQLite store, once: each test gets a copy."""
    home = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_HOME", str(home))
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        registry.list_models()
    return home / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`EXPUNGE_HOME` with an empty store of its own."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    shutil.copyfile(migrated_store, home / "mlflow.db")
    monkeypatch.setenv("EXPUNGE_HOME", str(home))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield home
    import mlflow

    mlflow.end_run()


class Registrar:
    """Registers tiny models, each in a run of its own."""

    def __init__(self, folder: Path, onnx: Path) -> None:
        self.folder, self.onnx, self.count = folder, onnx, 0

    def folder_of(self, model: StoredModel) -> Path:
        """Make a folder with everything that a registered version holds."""
        self.count += 1
        folder = save_tiny(self.folder / f"model-{self.count}", model)
        shutil.copyfile(self.onnx, folder / "model.onnx")
        return save_tiny_fisher(folder)

    def __call__(
        self,
        name: str,
        seed: int = 0,
        forgotten: tuple[int, ...] = (),
        parent: str | None = None,
        gate: str = "passed",
    ) -> registry.Version:
        kind = "forget" if forgotten else "train"
        folder = self.folder_of(tiny_model(seed, forgotten, parent))
        tags = {"expunge.gate": gate, "expunge.grade": "suppressed" if forgotten else "trained"}
        return registry.register(registry.attach_run(name, kind), name, folder, tags, kind)

    def oracle(self, name: str, seed: int, left_out: tuple[int, ...] = (3,)) -> registry.Version:
        """Register an oracle of model `name`, without a Fisher total."""
        model = tiny_model(seed, left_out, settings={"epochs": 2, "seed": seed})
        folder = self.folder_of(model)
        (folder / "fim_total.safetensors").unlink()
        run_id = registry.attach_run(name, "oracles")
        tags = {registry.ACCURACY_TAG: "0.75"}
        return registry.register(run_id, f"{name}-oracles", folder, tags, registry.ORACLE)


@pytest.fixture
def registrar(store: Path, tmp_path: Path, tiny_onnx: Path) -> Registrar:
    return Registrar(tmp_path / "folders", tiny_onnx)


def write_validation(path: Path, passed: bool) -> Path:
    """Write a validation report as the gate writes it."""
    report = {
        "model": "shapes",
        "base_version": 1,
        "classes": [3],
        "before": {"forget_error": 0.02, "retain_accuracy": 0.97, "per_class": [0.9, 1.0]},
        "after": {"forget_error": 0.99, "retain_accuracy": 0.96, "per_class": [0.8, 0.25]},
        "checks": [
            {
                "name": "forget_error",
                "value": 0.99 if passed else 0.5,
                "threshold": 0.95,
                "passed": passed,
                "compare": ">=",
                "blocks": True,
            },
            {
                "name": "budget",
                "value": 0.01,
                "threshold": 0.015,
                "passed": True,
                "compare": "<=",
                "blocks": True,
            },
            {
                "name": "head_recovery",
                "value": 0.3,
                "threshold": 0.1,
                "passed": False,
                "compare": "<=",
                "blocks": False,
            },
        ],
        "passed": passed,
        "grade": "suppressed" if passed else "failed",
    }
    path.write_text(json.dumps(report))
    return path
