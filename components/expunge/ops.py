"""Every step as a Kubeflow component: all ports on one page, and each body only forwards.

Only a function's source text travels to a container, so each body imports what it needs and names
nothing of this module. A port `report` is the step's JSON report. A setting that may be absent is
an empty list: the local runner cannot pass None on. Whole numbers inside a list arrive as floats,
since kfp hands lists on as JSON, and are made whole again.

kfp answers a step from its cache by the image's name, the function's source, the values of the
parameters and the names of the artifacts; not by what the artifacts hold, nor by the code in the
image. So a step that may be answered so takes two parameters that its body does not read:

`code`: the digest of the code, as the first step of the same run found it in the image.
`data`: the digests of every artifact that it reads. What hands on an artifact for others to read
gives its `digest`. Each is of the very bytes, also where these follow from others: a step may
compute on other hardware, or not be in the cache any more, and give other ones.
"""

from functools import partial
from typing import List, NamedTuple

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
) -> NamedTuple("Prepared", [("digest", str), ("code", str)]):
    """Turn a data source into a data set folder."""
    from pathlib import Path

    from expunge import environment
    from expunge.code_digest import compute_code_digest
    from expunge.config import PrepareDataConfig
    from expunge.lifecycle import provenance
    from expunge.steps.prepare_data import prepare_data

    config = PrepareDataConfig(source, environment.data_root(), image_size, tuple(splits))
    prepare_data(config, Path(dataset.path))
    return (provenance.record_artifact(dataset, "dataset"), compute_code_digest())


@step
def plan_training(
    name: str,
    arch: str,
    without: List[int] = [],
    expected: int = -1,
    weights: str = "",
    init_from: str = "",
) -> NamedTuple(
    "Plan", [("without", List[int]), ("expected", int), ("init_from", str), ("start", str)]
):
    """Say what a training leaves out and which champion it may replace (-1: the one of now).

    `start` has digests of what it starts from, for the key of its cache.
    """
    from expunge.config import TrainConfig
    from expunge.steps.plan_training import plan_training

    left_out = tuple(int(index) for index in without)
    config = TrainConfig(arch=arch, without=left_out, weights=weights, init_from=init_from)
    return tuple(plan_training(config, name, expected))


@step
def train(
    dataset: Input[Dataset],
    model: Output[Model],
    report: Output[Artifact],
    name: str,
    arch: str,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: str = "cosine",
    t_mix: float = 0.1,
    seed: int = 0,
    without: List[int] = [],
    weights: str = "",
    init_from: str = "",
    precision: str = "auto",
    augment: str = "auto",
    processes: int = 1,
    nodes: int = 1,
    workers: int = 2,
    kind: str = "train",
    code: str = "",
    data: str = "",
) -> NamedTuple("Trained", [("digest", str)]):
    """Train a classifier with mnemonic codes mixed in; resumes where a killed run stopped.

    `kind` is the pipeline's; one that trains oracles has the metrics of several seeds.
    """
    from pathlib import Path

    from expunge import environment, registry
    from expunge.config import TrainConfig
    from expunge.formats import files
    from expunge.lifecycle import provenance
    from expunge.steps.train import train

    config = TrainConfig(
        arch=arch,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        t_mix=t_mix,
        seed=seed,
        without=tuple(int(index) for index in without),
        weights=weights,
        init_from=init_from,
        precision=precision,
        augment=augment,
        processes=processes,
        nodes=nodes,
        workers=workers,
    )
    outcome = train(
        config,
        Path(dataset.path),
        Path(model.path),
        checkpoints=environment.checkpoint_root(),
        on_epoch=registry.make_epoch_logger(name, kind, seed),
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
    from expunge.config import ClaimConfig
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
        classes=tuple(int(index) for index in classes),
        version=version,
    )
    outcome = claim_requests(config, Path(model.path))
    return (*outcome, provenance.record_artifact(model, "model", model=name), compute_code_digest())


@step
def close_requests(name: str, status: PipelineTaskFinalStatus, attempts: int = 5) -> None:
    """Settle each request that this run holds still, however the run went."""
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
    grade: str = "suppressed",
    version: int = 0,
) -> NamedTuple("Found", [("count", int), ("splits", List[str]), ("digest", str)]):
    """Fetch the models retrained without the classes, and say which splits they ask for."""
    from pathlib import Path

    from expunge.lifecycle import provenance
    from expunge.steps.load_oracles import load_oracles

    indices = [int(index) for index in classes]
    found = load_oracles(Path(base.path), Path(oracles.path), name, indices, grade, version)
    return (found.oracles, found.splits, provenance.record_artifact(oracles, "oracles", model=name))


@step
def find_oracle(
    dataset: Input[Dataset],
    name: str,
    version: int,
    classes: List[int],
    seed: int,
    weights: str = "",
) -> NamedTuple("Looked", [("Output", bool), ("start", str)]):
    """Whether the oracle of this seed is there already; the data has to be the version's own.

    `start` is the digest of the weights that it would be trained from.
    """
    from pathlib import Path

    from expunge.steps.find_oracle import find_oracle
    from expunge.steps.plan_training import weights_digest

    indices = [int(index) for index in classes]
    found = find_oracle(Path(dataset.path), name, version, indices, seed)
    return (found, weights_digest(weights))


@step
def keep_oracle(
    model: Input[Model], onnx: Input[Model], report: Input[Artifact], name: str, version: int
) -> int:
    """Register an oracle, and return the number of its version."""
    from pathlib import Path

    from expunge.steps.keep_oracle import keep_oracle

    paths = [Path(port.path) for port in (model, onnx, report)]
    return keep_oracle(name, version, *paths)["version"]


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

    from expunge.formats import files
    from expunge.lifecycle import provenance
    from expunge.steps.compute_fim import compute_fim

    outcome = compute_fim(
        Path(model.path), Path(fisher.path), classes=[int(index) for index in classes]
    )
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
    rule: str = "auto",
    lambdas: List[float] = [],
    budget: float = 0.015,
    code: str = "",
    data: str = "",
) -> NamedTuple("Changed", [("digest", str)]):
    """Forget the classes: one change of the weights, chosen on the codes alone."""
    from pathlib import Path

    from expunge.config import PerturbConfig
    from expunge.formats import files
    from expunge.lifecycle import provenance
    from expunge.steps.perturb import perturb

    config = PerturbConfig(tuple(int(index) for index in classes), rule, tuple(lambdas), budget)
    outcome = perturb(
        config, Path(model.path), Path(fisher.path), Path(unlearned.path), parent=parent
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
    classes: List[int] = [],
    forget_error: float = 0.95,
    budget: float = 0.015,
    worst_drop: float = 0.06,
    chance_factor: float = 3.0,
    onnx_atol: float = 1e-5,
    grade: str = "suppressed",
    block: List[str] = [],
    code: str = "",
    data: str = "",
) -> bool:
    """The gate: measure a model, or an unlearned one beside its base, controls and oracles.

    True when it passed. Without `block` the default checks reject.
    """
    from pathlib import Path

    from expunge.config import GateConfig
    from expunge.formats import files
    from expunge.steps.validate import validate

    config = GateConfig(
        forget_error=forget_error,
        budget=budget,
        worst_drop=worst_drop,
        chance_factor=chance_factor,
        onnx_atol=onnx_atol,
        grade=grade,
        block=tuple(block) or GateConfig.block,
    )
    outcome = validate(
        config,
        Path(dataset.path),
        Path(model.path),
        Path(onnx.path),
        base=Path(base.path) if base else None,
        oracles=Path(oracles.path) if oracles else None,
        classes=[int(index) for index in classes],
    )
    files.write_json(Path(report.path), outcome.to_json())
    return outcome.passed


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
    log_run(kind, name, paths, {}, Path(page.path) if page else None)


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
        Path(model.path),
        Path(fisher.path),
        Path(onnx.path),
        Path(validation.path),
        requests,
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
