"""One run of the forget pipeline on this machine, and its document."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from expunge import ledger, registry
from expunge.errors import RefusedError
from expunge.formats.model import ModelInfo
from expunge.oracles import spell_request
from expunge_pipelines.jobs.mlflow_run import (
    export_page,
    find_registered_version,
    open_mlflow_run,
    read_reports,
)
from expunge_pipelines.jobs.requests import build_row
from expunge_pipelines.runners.base import DOCKER, LOCAL
from expunge_pipelines.runners.lease import hold_lease, new_run_id
from expunge_pipelines.runners.run_locally import LocalRun, run_locally

# What the forget's result has of the validation's report as it is.
_VERDICT = (
    "checks",
    "grade",
    "needed",
    "passed",
    "trustworthy",
    "problems",
    "reasons",
    "unmade",
    "controls",
    "oracles",
    "attacks",
    "depth",
)


@dataclass(frozen=True)
class ForgetRun:
    """One run of the forget pipeline on the queue of one model.

    `name` is the model, `parameters` are the pipeline's, and `runner` says where its steps run.
    `on_start` is called with the name of each step that begins. `id` is the run's in the ledger.
    """

    name: str
    parameters: Mapping[str, Any]
    runner: str = LOCAL
    on_start: Callable[[str], None] = lambda _: None
    id: str = field(default_factory=new_run_id)

    def repeat(self) -> "ForgetRun":
        """Return the same run under a new id, since a claim belongs to one run for ever."""
        return replace(self, id=new_run_id())

    def run(self) -> dict[str, Any] | None:
        """Run the pipeline on what it claims; return the document of what it did.

        The result is None if the run claimed nothing (`has_claim` is then false), or if another
        version became champion meanwhile, so that the requests are back in the queue.

        Raises:
            ExpungeError: a step failed. Nothing was promoted.
        """
        try:
            mlflow_run, local_run = self._run_pipeline()
        except RefusedError:
            # Promotion refuses a version whose base no longer serves. That is nobody's mistake.
            if not self._is_overtaken():
                raise
            return None
        claim = ledger.find_claim(self.id)
        if claim is None:
            registry.discard_run(mlflow_run)  # an empty run each night would bury the real ones
            return None
        # The gate rejected, so nothing was refused; but it compared with a former champion.
        if self._is_overtaken():
            return None
        return self._build_document(mlflow_run, local_run, claim.base_version, claim.classes)

    def measure(self) -> dict[str, Any]:
        """Run the pipeline dry, on the version and the classes that its parameters name.

        Returns the document of what it measured. It claims no request and registers nothing.

        Raises:
            ExpungeError: a step failed.
        """
        mlflow_run, local_run = self._run_pipeline()
        version, classes = self.parameters["version"], self.parameters["classes"]
        return self._build_document(mlflow_run, local_run, version, classes) | {"dry_run": True}

    def has_claim(self) -> bool:
        """Return whether this run has claimed any request, settled since or not."""
        return ledger.find_claim(self.id) is not None

    def list_requests(self) -> list[dict[str, Any]]:
        """Return the requests that this run has claimed, as they stand now."""
        claim = ledger.find_claim(self.id)
        claimed = set(claim.requests) if claim else set()
        return [build_row(entry) for entry in ledger.list_requests() if entry.id in claimed]

    def _is_overtaken(self) -> bool:
        claim = ledger.find_claim(self.id)
        return claim is not None and claim.outcome == ledger.OVERTAKEN

    def _run_pipeline(self) -> tuple[str, LocalRun]:
        """Run the pipeline; return the id of its MLflow run, and how long its steps took."""
        from expunge_pipelines.forget import build_forget
        from expunge_pipelines.placement import no_resources

        with (
            hold_lease(self.name, self.id),
            open_mlflow_run("forget", self.name, self.parameters) as mlflow_run,
        ):
            reads: tuple[str, ...] = ()
            if self.runner == DOCKER:  # a container sees the folder of the data only if told to
                version = registry.resolve(self.name, self.parameters.get("version"))
                source = registry.read_model_info(version).source
                reads = (source, self.parameters["forget_data"])
            local_run = run_locally(
                build_forget(no_resources),
                self.parameters,
                on_start=self.on_start,
                runner=self.runner,
                reads=reads,
            )
            return mlflow_run, local_run

    def _build_document(
        self, mlflow_run: str, local_run: LocalRun, version: int, classes: Sequence[int]
    ) -> dict[str, Any]:
        """Return what the pipeline measured, and what became of the requests that it claimed."""
        info = registry.read_model_info(registry.resolve(self.name, version))
        retained = [index for index in info.retained if index not in classes]
        reports = read_reports(mlflow_run)
        validation, work = reports["validation"].to_json(), reports["work"]
        return {
            "model": self.name,
            "base_version": version,
            "classes": list(classes),
            "requests": self.list_requests(),
            "request": spell_request(self.name, info, classes, version),
            **{key: work[key] for key in ("rule", "sign", "strength", "lambdas")},
            "before": validation["before"],
            "after": validation["after"],
            **{key: validation[key] for key in _VERDICT},
            **self._describe_ladder(validation, info, classes),
            "version": find_registered_version(self.name, mlflow_run),
            "dry_run": False,
            "report": export_page(self.name, mlflow_run, retained),
            "run_id": mlflow_run,
            "forgetting": work,
            "seconds": dict(local_run.seconds),
            "total_seconds": local_run.total,
        }

    def _describe_ladder(
        self, validation: Mapping[str, Any], info: ModelInfo, classes: Sequence[int]
    ) -> dict[str, Any]:
        """Return what a ladder tried and, where no rung was enough, what is left to do."""
        if not validation.get("rungs"):
            return {}
        request = spell_request(self.name, info, classes).replace("--classes", "--without")
        remedy = None if validation["passed"] else f"expunge train {request} ..."
        return {"rungs": validation["rungs"], "remedy": remedy}
