"""Every step as a Kubeflow component: all ports on one page, and each body only forwards.

Only a function's source text travels to a container, so each body imports what it needs and names
nothing of this module. A port `report` is the step's JSON report. A setting that may be absent is
an empty list: the local runner cannot pass None on. `recipe` and `gate` are a `TrainConfig` and a
`GateConfig` as JSON; what is left out of them has its default. kfp hands lists and dicts on as
JSON, where a whole number is a float: `from_json` and `restore_classes` make it whole again.

kfp answers a step from its cache by the image's name, the function's source, the values of the
parameters and the names of the artifacts; not by what the artifacts hold, nor by the code in the
image. So a step that may be answered so takes two parameters that its body does not read:

`code`: the digest of the code, as the first step of the same run found it in the image.
`data`: the digests of every artifact that it reads. What hands on an artifact for others to read
gives its `digest`. Each is of the very bytes, also where these follow from others: a step may
compute on other hardware, or not be in the cache any more, and give other ones.
"""

from functools import partial
from typing import Any, Dict, List, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output, PipelineTaskFinalStatus

from expunge.environment import IMAGE

step = partial(dsl.component, base_image=IMAGE, packages_to_install=[], install_kfp_package=False)


@step
def prepare_data(
    dataset: Output[Dataset],
    source: str,
    image_size: int = 0,
    splits: List[str] = ["train", "test"],
    optional_splits: List[str] = [],
) -> NamedTuple("Prepared", [("digest", str), ("code", str)]):
    """Turn a data source into a data set folder; it may lack the optional splits."""
    from pathlib import Path

    from expunge import environment
    from expunge.code_digest import compute_code_digest
    from expunge.config import PrepareDataConfig
    from expunge.lifecycle import provenance
    from expunge.steps.prepare_data import prepare_data

    config = PrepareDataConfig(
        source, environment.data_root(), image_size, tuple(splits), tuple(optional_splits)
    )
    prepare_data(config, Path(dataset.path))
    return (provenance.record_artifact(dataset, "dataset"), compute_code_digest())


@step
def plan_training(name: str, recipe: Dict[str, Any], expected: int = -1) -> NamedTuple(
    "Plan", [("recipe", Dict[str, Any]), ("expected", int), ("start", str)]
):
    """Complete a recipe, and say which champion its model may replace (-1: the one of now).

    `start` has digests of what the training starts from, for the key of its cache.
    """
    from expunge.config import TrainConfig
    from expunge.steps.plan_training import plan_training

    plan = plan_training(TrainConfig.from_json(recipe), name, expected)
    return (plan.config.to_json(), plan.expected, plan.start)


@step
def train(
    dataset: Input[Dataset],
    model: Output[Model],
    report: Output[Artifact],
    name: str,
    recipe: Dict[str, Any],
    seed: int = -1,
    kind: str = "train",
    code: str = "",
    data: str = "",
) -> NamedTuple("Trained", [("digest", str)]):
    """Train a classifier with mnemonic codes mixed in; resumes where a killed run stopped.

    A `seed` of 0 or more goes before the recipe's. `kind` is the pipeline's; one that trains
    oracles has the metrics of several seeds.
    """
    import dataclasses
    from pathlib import Path

    from expunge import environment, registry
    from expunge.config import TrainConfig
    from expunge.formats import files
    from expunge.lifecycle import provenance
    from expunge.steps.train import train

    config = TrainConfig.from_json(recipe)
    config = dataclasses.replace(config, seed=seed if seed >= 0 else config.seed)
    outcome = train(
        config,
        Path(dataset.path),
        Path(model.path),
        checkpoints=environment.checkpoint_root(),
        on_epoch=registry.make_epoch_logger(name, kind, config.seed),
    )
    files.write_json(Path(report.path), outcome)
    return (provenance.record_artifact(model, "model", model=name),)


@step
def claim_requests(
    model: Output[Model],
    name: str,
    requests: List[str] = [],
    approval: bool = False,
    lease_seconds: float = 86400.0,
    dry_run: bool = False,
    classes: List[int] = [],
    version: int = 0,
) -> NamedTuple(
    "Claimed",
    [
        ("Output", bool),
        ("token", int),
        ("requests", List[str]),
        ("classes", List[int]),
        ("version", int),
        ("reference", str),
        ("source", str),
        ("image_size", int),
        ("digest", str),
        ("code", str),
    ],
):
    """Take every pending request of a model, or those named, and fetch its champion.

    `Output` says whether there was any: kfp's local runner finds a condition's value by that name.
    """
    from pathlib import Path

    from expunge import environment
    from expunge.code_digest import compute_code_digest
    from expunge.config import ClaimConfig, restore_classes
    from expunge.lifecycle import provenance
    from expunge.steps.claim_requests import claim_requests

    config = ClaimConfig(
        name=name,
        run=environment.pipeline_run() or "",
        requests=tuple(requests),
        approval=approval,
        lease_seconds=lease_seconds,
        holder=environment.holder(),
        dry_run=dry_run,
        classes=restore_classes(classes),
        version=version,
    )
    outcome = claim_requests(config, Path(model.path))
    return (*outcome, provenance.record_artifact(model, "model", model=name), compute_code_digest())


@step
def close_requests(name: str, status: PipelineTaskFinalStatus, attempts: int = 5) -> None:
    """Settle each request that this run still holds, however the run went."""
    from expunge import environment
    from expunge.steps.close_requests import close_requests

    close_requests(
        name,
        environment.pipeline_run() or "",
        state=status.state,
        error=status.error_message or "",
        attempts=attempts,
    )


@step
def load_oracles(
    base: Input[Model],
    oracles: Output[Artifact],
    name: str,
    classes: List[int],
    gate: Dict[str, Any] = {},
    version: int = 0,
) -> NamedTuple(
    "Found",
    [("count", int), ("splits", List[str]), ("optional_splits", List[str]), ("digest", str)],
):
    """Fetch the models retrained without the classes, and say which splits to validate on."""
    from pathlib import Path

    from expunge.config import GateConfig, restore_classes
    from expunge.lifecycle import provenance
    from expunge.steps.load_oracles import load_oracles

    found = load_oracles(
        Path(base.path),
        Path(oracles.path),
        name,
        restore_classes(classes),
        grade=GateConfig.from_json(gate).grade,
        version=version,
    )
    digest = provenance.record_artifact(oracles, "oracles", model=name)
    return (found.oracles, found.splits, found.optional_splits, digest)


@step
def find_oracle(
    dataset: Input[Dataset], name: str, version: int, recipe: Dict[str, Any], seed: int
) -> NamedTuple("Looked", [("Output", bool), ("start", str)]):
    """Say whether the oracle of this seed is there; the data has to be the version's own.

    `start` is the digest of the weights that it would be trained from.
    """
    from pathlib import Path

    from expunge.config import TrainConfig
    from expunge.lifecycle.plan import digest_weights
    from expunge.steps.find_oracle import find_oracle

    config = TrainConfig.from_json(recipe)
    found = find_oracle(Path(dataset.path), name, version, config.without, seed=seed)
    return (found, digest_weights(config.weights))


@step
def keep_oracle(
    model: Input[Model], onnx: Input[Model], report: Input[Artifact], name: str, version: int
) -> int:
    """Register an oracle, and return the number of its version."""
    from pathlib import Path

    from expunge.steps.keep_oracle import keep_oracle

    paths = {"model": model, "onnx": onnx, "report": report}
    kept = keep_oracle(name, version, **{key: Path(port.path) for key, port in paths.items()})
    return kept["version"]


@step
def compute_fim(
    model: Input[Model],
    fisher: Output[Artifact],
    report: Output[Artifact],
    classes: List[int] = [],
    code: str = "",
    data: str = "",
) -> NamedTuple("Computed", [("digest", str)]):
    """Fisher information on the codes: the total, or what forgetting the classes needs."""
    from pathlib import Path

    from expunge.config import restore_classes
    from expunge.formats import files
    from expunge.lifecycle import provenance
    from expunge.steps.compute_fim import compute_fim

    outcome = compute_fim(Path(model.path), Path(fisher.path), classes=restore_classes(classes))
    files.write_json(Path(report.path), outcome)
    return (provenance.record_artifact(fisher, "fisher", of=model),)


@step
def perturb(
    model: Input[Model],
    fisher: Input[Artifact],
    unlearned: Output[Model],
    report: Output[Artifact],
    classes: List[int],
    parent: str,
    dataset: Input[Dataset] = None,
    rule: str = "auto",
    lambdas: List[float] = [],
    forget_data: str = "",
    gate: Dict[str, Any] = {},
    ladder: bool = False,
    rung: int = 1,
    code: str = "",
    data: str = "",
) -> NamedTuple("Changed", [("digest", str)]):
    """Forget the classes: one change of the weights.

    Of the gate it reads what a forget may cost, as deep as which a rule by the codes goes. Replay
    finds the depth of a class by its images in `dataset`, or in source `forget_data`, where none
    was kept at training. With `ladder`, the rung's number chooses the rule.
    """
    from pathlib import Path

    from expunge.config import GateConfig, PerturbConfig, restore_classes
    from expunge.formats import files
    from expunge.lifecycle import provenance
    from expunge.steps.perturb import perturb

    budget, strengths = GateConfig.from_json(gate).budget, tuple(lambdas)
    rung = rung if ladder else 0
    config = PerturbConfig(restore_classes(classes), rule, strengths, budget, forget_data, rung)
    outcome = perturb(
        config,
        Path(model.path),
        Path(fisher.path),
        Path(unlearned.path),
        parent=parent,
        dataset=Path(dataset.path) if dataset else None,
    )
    files.write_json(Path(report.path), outcome)
    return (provenance.record_artifact(unlearned, "model"),)


@step
def export_onnx(
    model: Input[Model],
    onnx: Output[Model],
    report: Output[Artifact],
    code: str = "",
    data: str = "",
) -> NamedTuple("Exported", [("digest", str)]):
    """Write a model as one ONNX graph that takes raw pixels."""
    from pathlib import Path

    from expunge.formats import files
    from expunge.lifecycle import provenance
    from expunge.steps.export_onnx import export_onnx

    outcome = export_onnx(Path(model.path), Path(onnx.path))
    files.write_json(Path(report.path), outcome)
    return (provenance.record_artifact(onnx, "onnx", of=model),)


@step
def validate(
    dataset: Input[Dataset],
    model: Input[Model],
    onnx: Input[Model],
    report: Output[Artifact],
    base: Input[Model] = None,
    oracles: Input[Artifact] = None,
    work: Input[Artifact] = None,
    before: Input[Artifact] = None,
    classes: List[int] = [],
    gate: Dict[str, Any] = {},
    ladder: bool = False,
    rung: int = 1,
    code: str = "",
    data: str = "",
) -> NamedTuple("Judged", [("Output", str), ("passed", bool), ("digest", str)]):
    """Judge a model, or an unlearned one beside its base, controls and oracles: the gate.

    `Output` is "passed", "rejected" or, with `ladder`, "climb" to the next rung.
    """
    from pathlib import Path

    from expunge.config import GateConfig, restore_classes
    from expunge.formats import files
    from expunge.steps.validate import Climb, validate

    climb = Climb(rung, Path(work.path), Path(before.path) if before else None) if ladder else None
    outcome = validate(
        GateConfig.from_json(gate),
        Path(dataset.path),
        Path(model.path),
        Path(onnx.path),
        base=Path(base.path) if base else None,
        oracles=Path(oracles.path) if oracles else None,
        classes=restore_classes(classes),
        climb=climb,
    )
    files.write_json(Path(report.path), outcome.to_json())
    return (outcome.decision, outcome.passed, files.digest_file(Path(report.path)))


@step
def render_report(validation: Input[Artifact], work: Input[Artifact], page: Output[HTML]) -> None:
    """Write what was measured of a forget as one page to read."""
    from pathlib import Path

    from expunge.steps.render_report import render_report

    render_report(Path(validation.path), Path(work.path), Path(page.path))


@step
def log_run(
    kind: str,
    name: str,
    validation: Input[Artifact],
    export: Input[Artifact],
    work: Input[Artifact],
    page: Input[HTML] = None,
) -> None:
    """Log the reports into the pipeline's MLflow run, whatever the gate said."""
    from pathlib import Path

    from expunge.steps.log_run import log_run

    reports = {"validation": validation, "export": export, "work": work}
    paths = {key: Path(port.path) for key, port in reports.items()}
    log_run(kind, name, paths, {}, page=Path(page.path) if page else None)


@step
def register(
    kind: str,
    name: str,
    model: Input[Model],
    fisher: Input[Artifact],
    onnx: Input[Model],
    validation: Input[Artifact],
    requests: List[str] = [],
) -> int:
    """Register what the gate let pass as a new version, and return its number."""
    from pathlib import Path

    from expunge.steps.register import register

    outcome = register(
        name,
        kind,
        model=Path(model.path),
        fisher=Path(fisher.path),
        onnx=Path(onnx.path),
        validation=Path(validation.path),
        requests=requests,
    )
    return outcome["version"]


@step
def promote(name: str, version: int, expected: int = 0, token: int = 0) -> None:
    """Make a version the champion, if the champion is still the expected one (0: none).

    `token` is that of the claim which the version fulfils (0: it comes from no request).
    """
    from expunge.steps.promote import promote

    promote(name, version, expected or None, token or None)


STEPS = {
    component.name.replace("-", "_"): component
    for component in (
        plan_training,
        prepare_data,
        train,
        claim_requests,
        load_oracles,
        find_oracle,
        keep_oracle,
        compute_fim,
        perturb,
        export_onnx,
        validate,
        render_report,
        log_run,
        register,
        promote,
        close_requests,
    )
}
