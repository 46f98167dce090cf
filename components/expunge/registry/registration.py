"""Registration of a version: an ONNX model for any MLflow client, with the model folder inside."""

from __future__ import annotations

import importlib.metadata
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import expunge
from expunge.errors import OperationalError, UserError
from expunge.formats.files import digest_file
from expunge.formats.model import CODES, ONNX, WEIGHTS, ModelInfo, load_model_info, make_opaque_name
from expunge.formats.statistics import list_statistics_classes
from expunge.oracles import SUFFIX, check_model_name, compute_recipe_key, holds_oracles
from expunge.registry.store import connect, translate_errors
from expunge.registry.versions import (
    KEY_TAG,
    KIND_TAG,
    ORACLE,
    SEED_TAG,
    Version,
    list_files,
    list_files_of,
    list_versions,
    name_digest_tag,
    resolve,
)

KINDS = ("train", "forget", ORACLE)
REQUIREMENTS = ("onnx", "onnxruntime", "numpy")


@translate_errors("register a version")
def register(run_id: str, name: str, folder: Path, tags: Mapping[str, str], kind: str) -> Version:
    """Register the model folder, with its Fisher total and ONNX file, and return the new version.

    `tags` are the caller's own (`expunge.gate`, `expunge.grade`, ...); digests, lineage, forgotten
    indices and the code's version are added, and to an oracle, which needs no Fisher total, its key
    and seed. The same weights from the same run are registered once, and so is an oracle of one key
    and seed: called again, it returns the version that is there. The version appears last, in one
    transaction with its tags, so that a failure before it leaves none.

    Raises:
        UserError: a file is missing, or `kind` or `name` is not known or usable.
        OperationalError: the folder still holds the code or the name of a forgotten class.
    """
    if kind not in KINDS:
        raise UserError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    check_model_name(name, oracles=True)
    if (kind == ORACLE) != holds_oracles(name):
        raise UserError(
            f"a version of kind {kind!r} cannot be one of {name!r}: models whose name ends with "
            f"{SUFFIX} hold oracles, and no other does; choose another name"
        )
    missing = [file for file in list_files(kind) if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{folder} holds no {', '.join(missing)}; run the steps that write them")
    info = load_model_info(folder)
    _check_forgotten(info, folder)
    if kind == ORACLE and "seed" not in info.settings:
        raise UserError(f"{folder} does not say its seed; an oracle is a model as train writes it")
    every = {**tags, **_build_tags(run_id, info, folder, kind)}
    client = connect()
    # Kubernetes may start a step again that had registered its version and not said so.
    again = _find_registered(run_id, name, every)
    if again is not None:
        return again
    with _upload_model(client, name, folder, info, run_id=run_id, kind=kind) as model_id:
        _ensure_model(client, name)
        made = client.create_model_version(
            name, f"models:/{model_id}", run_id, tags=every, model_id=model_id
        )
    return resolve(name, int(made.version))


def _find_registered(run_id: str, name: str, tags: Mapping[str, str]) -> Version | None:
    same = (KEY_TAG, SEED_TAG) if KEY_TAG in tags else (name_digest_tag(WEIGHTS),)
    for entry in reversed(list_versions(name)):
        if (entry.run_id == run_id or KEY_TAG in tags) and all(
            entry.tags.get(key) == tags[key] for key in same
        ):
            return entry
    return None


def _check_forgotten(info: ModelInfo, folder: Path) -> None:
    """Refuse a folder that holds the code or the name of a class that it forgot."""
    from safetensors import safe_open

    with safe_open(folder / CODES, framework="numpy") as file:
        coded = {int(index) for index in file.get_tensor("classes_K")}
    described = list_statistics_classes(folder)
    for index in info.forgotten:
        if info.class_names[index] != make_opaque_name(index):
            raise OperationalError(f"the model forgot class {index} and still holds its name")
        if index in coded:
            raise OperationalError(f"the model forgot class {index} and still holds its code")
        if index in described:
            raise OperationalError(f"the model forgot class {index} and still holds its statistics")


def _build_tags(run_id: str, info: ModelInfo, folder: Path, kind: str) -> dict[str, str]:
    tags = {
        name_digest_tag(file): digest_file(folder / file) for file in list_files_of(folder, kind)
    }
    tags |= {f"expunge.data.{split}": digest for split, digest in info.data_digests.items()}
    tags |= {
        KIND_TAG: kind,
        "expunge.code_version": expunge.__version__,
        "expunge.forgotten": ",".join(str(index) for index in sorted(info.forgotten)),
        "expunge.run_id": run_id,
        "expunge.source": info.source,
    }
    if kind == ORACLE:
        tags |= {KEY_TAG: compute_recipe_key(info), SEED_TAG: str(info.settings["seed"])}
    if info.parent is not None:
        tags["expunge.base"] = info.parent
        base, _, number = info.parent.rpartition("/")
        for entry in list_versions(base):
            if str(entry.version) == number:
                tags["expunge.base_weights"] = entry.tags[name_digest_tag(WEIGHTS)]
    return tags


@contextmanager
def _upload_model(
    client: Any, name: str, folder: Path, info: ModelInfo, *, run_id: str, kind: str
) -> Iterator[str]:
    """Upload everything as a logged model of the run; delete it again if the body raises."""
    experiment = client.get_run(run_id).info.experiment_id
    model_id = client.create_logged_model(experiment, name=name, source_run_id=run_id).model_id
    try:
        with tempfile.TemporaryDirectory() as scratch:
            flavoured = Path(scratch) / "model"
            _save_flavour(flavoured, folder, info, run_id=run_id, model_id=model_id)
            for file in list_files_of(folder, kind):
                shutil.copyfile(folder / file, flavoured / file)
            client.log_model_artifacts(model_id, str(flavoured))
        client.finalize_logged_model(model_id, "READY")
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        yield model_id
    except BaseException:
        with suppress(Exception), _ignore_interrupts():  # the failure itself is what the user reads
            client.delete_logged_model(model_id)
        raise


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Let no SIGINT end the body: on Ctrl-C the terminal sends one and the command another."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _save_flavour(path: Path, folder: Path, info: ModelInfo, *, run_id: str, model_id: str) -> None:
    """Write MLflow's ONNX flavour of `folder` to `path`."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    try:
        graph = onnx.load(folder / ONNX)
    except DecodeError as error:
        raise UserError(f"{folder / ONNX} is no ONNX model; run export_onnx again") from error

    channels, height, width = info.input_shape
    images = TensorSpec(np.dtype("uint8"), (-1, height, width, channels))
    probabilities = TensorSpec(np.dtype("float32"), (-1, len(info.class_names)), "probabilities")
    mlflow.onnx.save_model(
        graph,
        str(path),
        mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        signature=ModelSignature(inputs=Schema([images]), outputs=Schema([probabilities])),
        pip_requirements=[f"{lib}=={importlib.metadata.version(lib)}" for lib in REQUIREMENTS],
        onnx_execution_providers=["CPUExecutionProvider"],  # asking for CUDA warns without one
        save_as_external_data=False,
    )


def _ensure_model(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise
