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
from expunge_pipelines.kubeflow.connection import api_errors
from expunge_pipelines.kubeflow.settings import ClusterSettings

PREFIX = "expunge-"
CONFLICT = 409  # HTTP's status where the name is taken
DIGEST_DIGITS = 12  # hexadecimal: 48 bits, enough to tell the versions of one pipeline apart


def uploaded_version(
    client: Any, kind: str, parameters: Mapping[str, Any], settings: ClusterSettings
) -> tuple[Any, dict[str, Any]]:
    """The version of a pipeline as this code and `settings` make it, uploaded if it is not there.

    Also its parameters with their defaults, but `name`, which is the model's.

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
        with api_errors(f"take the {kind} pipeline"):
            return _version(client, PREFIX + kind, file), defaults


def experiment(client: Any, name: str) -> str:
    """The id of the experiment that holds the runs of model `name`; it is made if need be."""
    return str(client.create_experiment(PREFIX + name).experiment_id)


def version_name(client: Any, pipeline: str, version: str) -> str:
    """The name of a version, or its id where somebody deleted it."""
    from kfp_server_api import ApiException

    try:
        return str(client.get_pipeline_version(pipeline, version).display_name)
    except ApiException as error:
        if error.status != 404:
            raise
        return version


def named(operation: str, name: str) -> str:
    """A filter by name, as the server's lists take it."""
    predicate = {"operation": operation, "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _version(client: Any, name: str, file: Path) -> Any:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_DIGITS]
    namespace = client.get_user_namespace() or None

    def pipeline() -> Any:
        rows = client.list_pipelines(filter=named("EQUALS", name), namespace=namespace)
        return _first(rows.pipelines, name)

    def new_pipeline() -> Any:
        # No upload: that would make a first version as well, with the name of the pipeline.
        return client.pipelines.pipeline_service_create_pipeline(
            pipeline=client.api_models.V2beta1Pipeline(display_name=name, namespace=namespace)
        )

    id_ = _found_or_made(pipeline, new_pipeline).pipeline_id

    def version() -> Any:
        rows = client.list_pipeline_versions(id_, filter=named("EQUALS", digest))
        return _first(rows.pipeline_versions, digest)

    return _found_or_made(
        version, lambda: client.upload_pipeline_version(str(file), digest, pipeline_id=id_)
    )


def _found_or_made(find: Callable[[], Any], make: Callable[[], Any]) -> Any:
    """What is there, or is made; somebody else may make the same in between."""
    from kfp_server_api import ApiException

    if (found := find()) is not None:
        return found
    try:
        return make()
    except ApiException as error:
        if error.status != CONFLICT or (found := find()) is None:
            raise
        return found


def _first(found: list[Any] | None, name: str) -> Any:
    """The one of that very name: the server's database may compare without regard to case."""
    return next((row for row in found or [] if row.display_name == name), None)
