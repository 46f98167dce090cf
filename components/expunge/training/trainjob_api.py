"""TrainJobs through the Kubernetes API: create, look at, remove."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import OperationalError
from expunge.training.trainjob import GROUP, PLURAL, VERSION

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LABEL = "jobset.sigs.k8s.io/jobset-name"  # on the pods of a job, with its name
TIMEOUT = (5.0, 30.0)  # seconds for the connection, and for an answer
SHORT = (5.0, 10.0)  # of a delete: a step that is ended has 30 s for this and all that follows
GONE = 120.0  # seconds that a removed job's pods get to end; Kubernetes kills them after 30
LOOK = 1.0  # seconds between two looks whether they have
LONGEST = 500  # characters of a message
REMEDIES = {
    401: "; check the pipeline's service account",
    403: "; give the pipeline's service account the rights to create, get and delete trainjobs",
}
DENIED = "denied the request"  # by a webhook, which gives its reason: the rights are there
TRAINER = "; Kubeflow Trainer 2.2 or later has to be installed"


class Jobs:
    """The TrainJobs of the namespace that this pod is in, or of the one that KUBECONFIG names."""

    def __init__(self) -> None:
        from kubernetes import client, config

        # A configuration of its own: the client's default one is the whole process's.
        configuration, path = client.Configuration(), os.environ.get("KUBECONFIG")
        try:
            if path:
                config.load_kube_config(path, client_configuration=configuration)
                context = config.list_kube_config_contexts(path)[1]["context"]
                self.namespace = context.get("namespace", "default")
            else:
                config.load_incluster_config(configuration)
                self.namespace = NAMESPACE.read_text().strip()
        except (config.ConfigException, OSError) as error:
            raise OperationalError(
                f"there is no Kubernetes API to ask for a TrainJob ({error}); train in a pod of "
                "a pipeline, or let KUBECONFIG name the cluster"
            ) from error
        configuration.retries = False  # a request that is repeated may be carried out twice
        connection = client.ApiClient(configuration)
        self._jobs, self._core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)
        self._where = (GROUP, VERSION, self.namespace, PLURAL)

    def create(self, job: dict[str, Any]) -> None:
        """Create a job; a field that the cluster's version does not know is an error.

        Raises:
            OperationalError: the API cannot be reached, or refuses.
        """
        with _translate_errors("create the TrainJob", {404: TRAINER, 400: TRAINER}):
            self._jobs.create_namespaced_custom_object(
                *self._where, job, field_validation="Strict", _request_timeout=TIMEOUT
            )

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the job with its status, or None where there is none of that name."""
        job: dict[str, Any] | None = self._ask(
            f"look at the TrainJob {name}",
            self._jobs.get_namespaced_custom_object,
            name,
            _request_timeout=TIMEOUT,
        )
        return job

    def remove(self, name: str) -> None:
        """Delete a job, if it is there, and wait until its pods are gone.

        Raises:
            OperationalError: they do not go, or the API fails.
        """
        if self.delete(name):
            self.wait_gone(name)

    def delete(self, name: str) -> bool:
        """Have a job deleted, and do not wait until it is; return False where there is none.

        Raises:
            OperationalError: the API fails.
        """
        answer = self._ask(
            f"delete the TrainJob {name}",
            self._jobs.delete_namespaced_custom_object,
            name,
            # The job stays until its pods are gone, which `wait_gone` relies on.
            propagation_policy="Foreground",
            _request_timeout=SHORT,
        )
        return answer is not None

    def _ask(self, doing: str, call: Callable[..., Any], name: str, **options: Any) -> Any:
        """Return what the API answers of a job; None where there is none of that name."""
        from kubernetes.client import ApiException

        with _translate_errors(doing):
            try:
                return call(*self._where, name, **options)
            except ApiException as error:
                if error.status != 404:
                    raise
                return None

    def wait_gone(self, name: str) -> None:
        """Wait until a job that was deleted is gone, and its pods with it.

        Raises:
            OperationalError: they do not go, or the API fails.
        """
        until = time.monotonic() + GONE
        while self.get(name) is not None:
            if time.monotonic() > until:
                raise OperationalError(
                    f"the TrainJob {name} was deleted {GONE:g} s ago and is still there; look at "
                    f"its pods: kubectl get pods -n {self.namespace} -l {LABEL}={name}"
                )
            time.sleep(LOOK)

    def explain_waiting(self, name: str) -> str:
        """Return why pods of the job do not run; empty if they do, or if nobody may tell."""
        try:
            with _translate_errors("list pods"):
                pods = self._core.list_namespaced_pod(
                    self.namespace, label_selector=f"{LABEL}={name}", _request_timeout=TIMEOUT
                ).items
        except OperationalError:
            # Only a hint: a service account without the right to list pods trains all the same.
            return ""
        reasons = ((pod.metadata.name, _explain_status(pod.status)) for pod in pods)
        return "; ".join(f"{pod}: {reason}" for pod, reason in reasons if reason)[:LONGEST]


def _explain_status(status: Any) -> str:
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return str(condition.message or condition.reason)
    for container in status.container_statuses or ():
        state = container.state
        if state is not None and state.waiting is not None:
            return ", ".join(filter(None, (state.waiting.reason, state.waiting.message)))
    return ""


@contextmanager
def _translate_errors(doing: str, remedies: dict[int, str] | None = None) -> Iterator[None]:
    """Raise what the client, its transport and the network raise as one line."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ApiException, HTTPError, OSError) as error:
        status = getattr(error, "status", None) or 0
        said = " ".join((_read_message(error) or str(error)).split())[:LONGEST]
        remedy = (REMEDIES | (remedies or {})).get(status, "")
        # A webhook's refusal has a 403 as well, and the remedy for missing rights would mislead.
        if DENIED in said:
            remedy = ""
        code = f"HTTP {status}: " if status else ""
        raise OperationalError(
            f"the Kubernetes API could not {doing} ({code}{said}){remedy}"
        ) from error


def _read_message(error: Exception) -> str:
    """Return what the API says in the body of its answer, or the reason that the client has."""
    try:
        return str(json.loads(getattr(error, "body", None) or "")["message"])
    except (ValueError, TypeError, KeyError):
        return str(getattr(error, "reason", None) or "")
