"""Versions of the pipelines on Kubeflow Pipelines: each is uploaded once, and named by its content.

Pipeline KIND is there as `expunge-KIND`, with one experiment for each model, `expunge-NAME`.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge_pipelines.kubeflow.compile import compile_pipeline
from expunge_pipelines.kubeflow.connection import translate_errors
from expunge_pipelines.kubeflow.settings import ClusterSettings

PREFIX = "expunge-"
CONFLICT = 409  # HTTP's status where the name is taken
DIGEST_DIGITS = 12  # hexadecimal: 48 bits, enough to tell the versions of one pipeline apart


def ensure_version(
    client: Any, kind: str, parameters: Mapping[str, Any], settings: ClusterSettings
) -> tuple[Any, dict[str, Any]]:
    """Return the version of a pipeline as this code and `settings` make it; upload it if missing.

    Also return its parameters with their defaults, without `name`, which is the model's.

    Raises:
        UserError: the pipeline does not take one of `parameters`.
        OperationalError: the cluster cannot be reached or refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{kind}.yaml"
        defaults = compile_pipeline(kind, file, settings)
        defaults.pop("name", None)
        if unknown := sorted(set(parameters) - set(defaults)):
            raise UserError(
                f"the {kind} pipeline has no parameter {', '.join(unknown)}; expected some of "
                f"{', '.join(sorted(defaults))}"
            )
        with translate_errors(f"take the {kind} pipeline"):
            return _upload_once(client, PREFIX + kind, file), defaults


def ensure_experiment(client: Any, name: str) -> str:
    """Return the id of the experiment with the runs of model `name`; create it if missing."""
    return str(client.create_experiment(PREFIX + name).experiment_id)


def read_version_name(client: Any, pipeline: str, version: str) -> str:
    """Return the name of a version, or its id where somebody deleted it."""
    from kfp_server_api import ApiException

    try:
        return str(client.get_pipeline_version(pipeline, version).display_name)
    except ApiException as error:
        if error.status != 404:
            raise
        return version


def filter_names(operation: str, name: str) -> str:
    """Return a filter by name, as the server's lists take it."""
    predicate = {"operation": operation, "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _upload_once(client: Any, name: str, file: Path) -> Any:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_DIGITS]
    namespace = client.get_user_namespace() or None

    def find_pipeline() -> Any:
        rows = client.list_pipelines(filter=filter_names("EQUALS", name), namespace=namespace)
        return _pick(rows.pipelines, name)

    def make_pipeline() -> Any:
        # No upload: that would make a first version as well, with the name of the pipeline.
        return client.pipelines.pipeline_service_create_pipeline(
            pipeline=client.api_models.V2beta1Pipeline(display_name=name, namespace=namespace)
        )

    id_ = _find_or_make(find_pipeline, make_pipeline).pipeline_id

    def find_version() -> Any:
        rows = client.list_pipeline_versions(id_, filter=filter_names("EQUALS", digest))
        return _pick(rows.pipeline_versions, digest)

    return _find_or_make(
        find_version, lambda: client.upload_pipeline_version(str(file), digest, pipeline_id=id_)
    )


def _find_or_make(find: Callable[[], Any], make: Callable[[], Any]) -> Any:
    """Return what is there, or make it; somebody else may make the same in between."""
    from kfp_server_api import ApiException

    if (found := find()) is not None:
        return found
    try:
        return make()
    except ApiException as error:
        if error.status != CONFLICT or (found := find()) is None:
            raise
        return found


def _pick(found: list[Any] | None, name: str) -> Any:
    """Return the one of that very name: the server's database may ignore case."""
    return next((row for row in found or [] if row.display_name == name), None)
